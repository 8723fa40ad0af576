"""A plain transformer of SSAST's shape, for comparison: 16 x 16 patches, 12 blocks of attention and MLP, pre-norm.

The structure is DeiT's, which SSAST uses (Gong et al., 2022, arXiv:2110.09784): two prefix tokens, learned positions, GELU, an
MLP four times as wide, biases everywhere. Nothing is tuned for or against it; `fused=False` writes the attention matrix
out, as SSAST's own code does.
Shapes: B batch, T frames, M mel bins, L tokens, D channels, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEADS = {"tiny": 3, "small": 6, "base": 12}
WIDTHS = {"tiny": 192, "small": 384, "base": 768}
PREFIX_TOKENS = 2


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b l (n h d) -> n b h l d", n=3, h=self.heads)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        out: Tensor = self.project(rearrange(y, "b h l d -> b l (h d)"))
        return out


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, fused: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads, fused)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Transformer(nn.Module):
    """(B, T, M) normalised features to (B, 2 + L, D) tokens; T may be anything up to `max_frames`."""

    def __init__(
        self, size: str, max_frames: int, *, fused: bool = True, depth: int = 12, mel_bins: int = 128, patch: int = 16
    ):
        super().__init__()
        dim = WIDTHS[size]
        self.patches = nn.Conv2d(1, dim, patch, stride=patch)
        self.prefix = nn.Parameter(torch.zeros(1, PREFIX_TOKENS, dim))
        tokens = PREFIX_TOKENS + (mel_bins // patch) * (max_frames // patch)
        self.positions = nn.Parameter(torch.randn(1, tokens, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, HEADS[size], fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        grid = self.patches(rearrange(features, "b t m -> b 1 m t"))
        tokens = rearrange(grid, "b d r c -> b (r c) d")
        tokens = torch.cat((self.prefix.expand(len(tokens), -1, -1), tokens), dim=1)
        out: Tensor = self.norm(self.blocks(tokens + self.positions[:, : tokens.shape[1]]))
        return out
