"""The operators of the BiMamba block: the selective scan, the depthwise causal convolution, and the whole mixer."""

from ssamba.ops.conv import causal_conv
from ssamba.ops.dispatch import BackendCheck, BackendStatus, available_backends, check_backends
from ssamba.ops.mixer import bimamba_mixer
from ssamba.ops.operators import DirectionWeights
from ssamba.ops.scan import selective_scan

__all__ = [
    "BackendCheck",
    "BackendStatus",
    "DirectionWeights",
    "available_backends",
    "bimamba_mixer",
    "causal_conv",
    "check_backends",
    "selective_scan",
]
