"""The transformer that SSAMBA is compared with, at its best: SSAST's shape in plain PyTorch.

Twelve pre-norm blocks (attention with 3 / 6 / 12 heads, MLP of four times the width, GELU), patch projection, two prefix
tokens, positions, final norm. Attention goes through `scaled_dot_product_attention`, or is written out with `fused=False`, as
in the code that the paper measured.

Shapes: B clips, T frames, M mel bins, L tokens, D channels, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

HEADS = {192: 3, 384: 6, 768: 12}
DEPTH = 12


class Attention(nn.Module):
    """Multi-head self-attention, (B, L, D) -> (B, L, D)."""

    def __init__(self, dim: int, heads: int, fused: bool):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b l (three h c) -> three b h l c", three=3, h=self.heads)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v
        out: Tensor = self.proj(rearrange(y, "b h l c -> b l (h c)"))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP."""

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
    """Features (B, T, M = 128) to tokens (B, 2 + L, D), for inputs of one size."""

    def __init__(self, dim: int, patches: int, fused: bool = True):
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, 16, 16)
        self.prefix = nn.Parameter(torch.zeros(1, 2, dim))
        self.positions = nn.Parameter(torch.randn(1, 2 + patches, dim) * 0.02)
        self.blocks = nn.Sequential(*(Block(dim, HEADS[dim], fused) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        x = rearrange(self.patch_embed(rearrange(features, "b t m -> b 1 m t")), "b d r k -> b (r k) d")
        x = torch.cat((self.prefix.expand(len(x), -1, -1), x), dim=1) + self.positions
        out: Tensor = self.norm(self.blocks(x))
        return out
