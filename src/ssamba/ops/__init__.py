"""The operators of the BiMamba block: the selective scan, the depthwise causal convolution, and the whole mixer."""

from ssamba.ops.conv import causal_conv
from ssamba.ops.dispatch import BackendStatus, available_backends
from ssamba.ops.mixer import DirectionWeights, bimamba_mixer, can_mix_into, mix_into, mixing_dtype
from ssamba.ops.scan import selective_scan

__all__ = [
    "BackendStatus",
    "DirectionWeights",
    "available_backends",
    "bimamba_mixer",
    "can_mix_into",
    "causal_conv",
    "mix_into",
    "mixing_dtype",
    "selective_scan",
]
