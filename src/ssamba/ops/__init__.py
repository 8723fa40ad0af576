"""The operators of the BiMamba block: the selective scan, the depthwise causal convolution, and the whole mixer."""

from ssamba.ops.conv import causal_conv
from ssamba.ops.dispatch import BackendStatus, available_backends
from ssamba.ops.mixer import bimamba_mixer
from ssamba.ops.operators import DirectionWeights
from ssamba.ops.scan import selective_scan

__all__ = [
    "BackendStatus",
    "DirectionWeights",
    "available_backends",
    "bimamba_mixer",
    "causal_conv",
    "selective_scan",
]
