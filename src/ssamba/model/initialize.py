"""How every parameter of the models starts: the official initialization, in one place (the released code of SSAMBA and SSAST).

Patch projection and prediction heads keep PyTorch's default; so do SSAMBA's linear layers and convolutions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig, EncoderConfig, SSASTConfig

_DELTA_RANGE = (1e-3, 1e-1)
_DELTA_FLOOR = 1e-4


@torch.no_grad()
def initialize_encoder(encoder: nn.Module, config: BaseEncoderConfig) -> None:
    """Fill every parameter of an encoder, or of a stack of its blocks, from torch's global generator."""
    for name, parameter in encoder.named_parameters():
        if name in ("position_embed", "cls_token", "dist_token"):
            nn.init.trunc_normal_(parameter, std=0.02)
    if isinstance(config, SSASTConfig):
        _initialize_attention(encoder)
    else:
        assert isinstance(config, EncoderConfig), type(config)
        _initialize_mamba(encoder, config)


def _initialize_attention(encoder: nn.Module) -> None:
    """DeiT's."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def _initialize_mamba(encoder: nn.Module, config: EncoderConfig) -> None:
    for name, parameter in encoder.named_parameters():
        if name.endswith("A_log"):
            states = torch.arange(1, config.state_size + 1, dtype=torch.float32)
            parameter.copy_(states.log().expand_as(parameter))
        elif name.endswith("_scan.D"):
            parameter.fill_(1.0)
        elif name.endswith("conv_weight") or name.endswith("conv_bias"):
            # nn.Conv1d's default for one input channel per group.
            bound = 1 / math.sqrt(config.conv_kernel)
            parameter.uniform_(-bound, bound)
        elif name.endswith("dt_proj.weight"):
            bound = config.rank**-0.5
            parameter.uniform_(-bound, bound)
        elif name.endswith("dt_proj.bias"):
            parameter.copy_(_delta_bias(parameter))
        elif name.endswith("out_proj.weight"):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            parameter.div_(math.sqrt(config.depth))


def initialize_mask_token(token: Tensor) -> None:
    """Xavier normal, as the original."""
    nn.init.xavier_normal_(token)


def _delta_bias(like: Tensor) -> Tensor:
    """The inverse softplus of step sizes drawn log-uniformly from 0.001 to 0.1."""
    low, high = (math.log(bound) for bound in _DELTA_RANGE)
    delta = torch.empty_like(like).uniform_(low, high).exp().clamp(min=_DELTA_FLOOR)
    return delta + torch.log(-torch.expm1(-delta))
