"""The operators of the BiMamba block: the selective scan and the depthwise causal convolution."""

from ssamba.ops.backends import BackendStatus, available_backends
from ssamba.ops.conv import causal_conv
from ssamba.ops.scan import selective_scan

__all__ = ["BackendStatus", "available_backends", "causal_conv", "selective_scan"]
