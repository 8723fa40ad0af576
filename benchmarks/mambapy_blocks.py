"""The bidirectional mixer made of mamba.py's own blocks (`mambapy` on PyPI): its convolution, projections and scan.

Their blocks know one direction: two of them share the projections into and out of the mixer, as in SSAMBA, the second
hears the sequence flipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.ops import DirectionWeights

Mixer = Callable[..., Tensor]
How = Literal["parallel scan", "loop over steps", "step"]


def blocks_mixer(how: How) -> Mixer | None:
    """`bimamba_mixer` over mamba.py's blocks; None where it is missing.

    `how`: with its parallel scan; with its loop over the steps of the scan alone; or one token after the other through the whole
    block, by its `step`.
    """
    try:
        from mambapy.mamba import MambaBlock, MambaConfig
    except ImportError:
        return None
    blocks: dict[int, tuple[Any, DirectionWeights]] = {}

    def block_of(weights: DirectionWeights, in_weight: Tensor, out_weight: Tensor) -> Any:
        if id(weights.A_log) not in blocks:
            inner, state = weights.A_log.shape
            config = MambaConfig(
                d_model=inner // 2,
                n_layers=1,
                dt_rank=weights.dt_weight.shape[1],
                d_state=state,
                d_conv=weights.conv_weight.shape[1],
                pscan=how == "parallel scan",
            )
            block = MambaBlock(config)
            block.conv1d.weight = nn.Parameter(weights.conv_weight.detach()[:, None])
            block.conv1d.bias = nn.Parameter(weights.conv_bias.detach())
            block.x_proj.weight = nn.Parameter(weights.x_weight.detach())
            block.dt_proj.weight = nn.Parameter(weights.dt_weight.detach())
            block.dt_proj.bias = nn.Parameter(weights.dt_bias.detach())
            block.A_log, block.D = nn.Parameter(weights.A_log.detach()), nn.Parameter(weights.D.detach())
            block.in_proj.weight, block.out_proj.weight = (
                nn.Parameter(in_weight.detach()),
                nn.Parameter(out_weight.detach()),
            )
            blocks[id(weights.A_log)] = block, weights  # kept, so that no other tensor gets this id
        return blocks[id(weights.A_log)][0]

    def by_step(block: Any, hidden: Tensor) -> Tensor:
        cache: Any = None, hidden.new_zeros(len(hidden), block.config.d_inner, block.config.d_conv - 1)
        outputs = []
        for token in hidden.unbind(1):
            output, cache = block.step(token, cache)
            outputs.append(output)
        return torch.stack(outputs, dim=1)

    def one_way(x: Tensor, block: Any, flipped: bool) -> Tensor:
        x = x.flip(1) if flipped else x
        y: Tensor
        if how == "step":
            y = by_step(block, x)
        else:
            y = block.ssm(F.silu(block.conv1d(x.transpose(1, 2))[:, :, : x.shape[1]].transpose(1, 2)), None)
        return y.flip(1) if flipped else y

    def mixer(
        hidden: Tensor,
        in_weight: Tensor,
        out_weight: Tensor,
        forward: DirectionWeights,
        reverse: DirectionWeights,
        *,
        lengths: Tensor | None = None,
        reversed_time: bool = False,
    ) -> Tensor:
        if lengths is not None:
            raise ValueError("mamba.py's blocks know no lengths")
        first, second = (block_of(weights, in_weight, out_weight) for weights in (forward, reverse))
        if how == "step":  # its blocks have the projections, and the gate, inside
            return (one_way(hidden, first, reversed_time) + one_way(hidden, second, not reversed_time)) * 0.5
        x, z = torch.chunk(F.linear(hidden, in_weight), 2, dim=-1)
        y = one_way(x, first, reversed_time) + one_way(x, second, not reversed_time)
        return F.linear(y * F.silu(z), out_weight * 0.5)

    return mixer
