"""The SSAST encoder: a vision transformer over spectrogram patches (Gong et al., AAAI 2022, arXiv:2110.09784).

The blocks are pre-norm self-attention and MLP as in DeiT (Touvron et al., 2021, arXiv:2012.12877), with its [CLS] and
distillation tokens as prefix. Patches (16 x 16, or whole frames of 128 x 2), positions and lengths work as in SSAMBA.

Attention uses `scaled_dot_product_attention`; a batch without padding needs no mask, which allows the fastest kernel.
`attention="unfused"` computes the L x L matrix explicitly, as the code that the SSAMBA paper compared with.

Shapes: B clips, L tokens (prefix included), D channels, H heads of D / H channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.config import SSASTConfig
from ssamba.model.encoder import DropPath, PatchEncoder, recomputed
from ssamba.model.initialize import initialize_encoder
from ssamba.ops.matmul import Linear


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: SSASTConfig):
        super().__init__()
        self.heads, self.fused = config.num_heads, config.attention == "fused"
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = Linear(config.embed_dim, config.embed_dim)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Attend within x (B, L, D); `valid` (B, 1, 1, L) marks the keys that are not padding, None if all are."""
        # (B, L, 3 D) -> (B, L, 3, H, D / H) -> (B, H, 3, L, D / H) -> three of (B, H, L, D / H)
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=valid)
        else:
            scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            if valid is not None:
                scores = scores.masked_fill(~valid, float("-inf"))
            y = scores.softmax(dim=-1) @ v
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP with residual connections."""

    def __init__(self, config: SSASTConfig, drop_path: float):
        super().__init__()
        dim, inner = config.embed_dim, config.mlp_ratio * config.embed_dim
        self.drop_path = DropPath(drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.mlp = nn.Sequential(Linear(dim, inner), nn.GELU(), Linear(inner, dim))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Apply the block to x (B, L, D); `valid` as in `Attention`."""
        x = x + self.drop_path(self.attention(self.norm1(x), valid))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class AttentionBlocks(nn.ModuleList):
    """A stack of blocks, for an encoder or a decoder; `rates` are their stochastic depth rates."""

    def __init__(self, config: SSASTConfig, rates: list[float]):
        super().__init__(Block(config, rate) for rate in rates)

    def forward(
        self,
        hidden: Tensor,
        lengths: Tensor | None = None,
        layers: int | None = None,
        states: list[Tensor] | None = None,
        *,
        recompute: bool = False,
    ) -> Tensor:
        """Run the first `layers` blocks over `hidden` (B, L, D), `lengths` (B,) tokens valid; without a final norm.

        The input of each block and the output of the last are appended to `states`. With `recompute`, backward computes
        the inside of each block again.
        """
        valid = None
        if lengths is not None:
            valid = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[:, None, None]
        for block in list(self)[:layers]:
            if states is not None:
                states.append(hidden)
            hidden = recomputed(block, recompute)(hidden, valid)
        if states is not None:
            states.append(hidden)
        return hidden


class SSASTEncoder(PatchEncoder):
    """Normalized log-mel features (B, T, M) -> tokens (B, P + L, D) after the final norm.

    The prefix is [CLS] and the distillation token (P = 2), or [CLS] alone with `distillation_token=False`.
    """

    config: SSASTConfig

    def __init__(self, config: SSASTConfig):
        super().__init__(config)
        if config.distillation_token:
            self.dist_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = AttentionBlocks(config, rates)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        initialize_encoder(self, config)

    def prefix_tokens(self) -> Tensor:
        """Return [CLS] and the distillation token (1, P, D), without positions."""
        if not self.config.distillation_token:
            return self.cls_token
        return torch.cat((self.cls_token, self.dist_token), dim=1)

    def _run_blocks(
        self, hidden: Tensor, lengths: Tensor | None, layers: int, *, finish: bool, states: list[Tensor] | None = None
    ) -> Tensor:
        tokens: Tensor = self.blocks(hidden, lengths, layers, states, recompute=self.gradient_checkpointing)
        return self.norm(tokens) if finish else tokens
