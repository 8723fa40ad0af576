"""Initialize every parameter of the encoders, as the released code of SSAMBA and SSAST does.

The patch projection, the heads, and SSAMBA's `in_proj` and `x_proj` keep PyTorch's defaults.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from ssamba.config import BaseEncoderConfig, EncoderConfig, SSASTConfig

_DELTA_RANGE = (1e-3, 1e-1)
_DELTA_FLOOR = 1e-4


@torch.no_grad()
def initialize_encoder(encoder: nn.Module, config: BaseEncoderConfig) -> None:
    """Initialize all parameters of an encoder, or of a stack of its blocks, from torch's global generator.

    Parameters on the meta device have no values, and stay as they are: some of the functions below would import
    torch's compiler there, which takes seconds and 100 MB.
    """
    if any(parameter.is_meta for parameter in encoder.parameters()):
        return
    for name, parameter in encoder.named_parameters():
        if name in ("position_embed", "cls_token", "dist_token"):
            nn.init.trunc_normal_(parameter, std=0.02)

    if isinstance(config, SSASTConfig):  # as DeiT
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        return

    assert isinstance(config, EncoderConfig), type(config)
    for name, parameter in encoder.named_parameters():
        if name.endswith("A_log"):  # A = -1, -2, ..., -N
            states = torch.arange(1, config.state_size + 1, dtype=torch.float32)
            parameter.copy_(states.log().expand_as(parameter))
        elif name.endswith("_scan.D"):
            parameter.fill_(1.0)
        elif name.endswith(("conv_weight", "conv_bias")):  # nn.Conv1d's default for one input channel per group
            bound = 1 / math.sqrt(config.conv_kernel)
            parameter.uniform_(-bound, bound)
        elif name.endswith("dt_proj.weight"):
            bound = config.dt_rank**-0.5
            parameter.uniform_(-bound, bound)
        elif name.endswith("dt_proj.bias"):  # the inverse softplus of step sizes drawn log-uniformly from 0.001 to 0.1
            low, high = (math.log(bound) for bound in _DELTA_RANGE)
            delta = torch.empty_like(parameter).uniform_(low, high).exp().clamp(min=_DELTA_FLOOR)
            parameter.copy_(delta + torch.log(-torch.expm1(-delta)))
        elif name.endswith("out_proj.weight"):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            parameter.div_(math.sqrt(config.depth))
