"""The model in pretraining: encoder, mask token, optional decoder, and the heads that the objectives need.

`encode="all"` is the original: the mask token replaces the tokens of masked patches, and the encoder runs over all
patches (SSAMBA, section 3.3). `encode="visible"` runs the encoder over visible patches only, and a shallow decoder over
its output with mask tokens in between (He et al., 2022, arXiv:2111.06377; Huang et al., 2022, arXiv:2207.06405): with
400 of 512 patches masked, the encoder does a quarter of the work. The decoder is discarded after pretraining.

Shapes: B clips, T frames, M mel bins, L patch tokens, D channels, V values of a patch; `masked` and `visible`
patches of the clip with most of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig, HeadConfig, PretrainingConfig
from ssamba.model.create import build_blocks, build_encoder
from ssamba.model.encoder import PatchTokens
from ssamba.model.heads import build_head
from ssamba.model.initialize import initialize_encoder
from ssamba.model.objectives import profile_bands, texture_values
from ssamba.model.patches import order_tokens, patch_values


class PatchSubset(NamedTuple):
    """Some patches of each clip, such as the masked ones; clips with fewer of them are padded."""

    indices: Tensor
    """Their indices among the patch tokens (B, count)."""
    valid: Tensor
    """Which entries are not padding (B, count), bool."""

    def gather(self, x: Tensor) -> Tensor:
        """Select the subset from x: (B, L) -> (B, count), or (B, L, channels) -> (B, count, channels)."""
        if x.ndim == 2:
            return x.gather(1, self.indices)
        return x.gather(1, self.indices[..., None].expand(-1, -1, x.shape[2]))


def patch_subset(mask: Tensor) -> PatchSubset:
    """Return the True entries of a mask (B, L), each clip's in ascending order."""
    counts = mask.sum(1)
    most = int(counts.max()) if len(counts) else 0
    index = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
    return PatchSubset(index, torch.arange(most, device=mask.device) < counts[:, None])


class PretrainingOutput(NamedTuple):
    """Result of a forward pass with masked patches."""

    tokens: Tensor
    """Tokens at the masked patches (B, masked, D)."""
    values: Tensor
    """True values of the masked patches (B, masked, V), normalized patch by patch if the configuration says so."""
    masked: PatchSubset
    """The masked patches."""
    visible_tokens: Tensor
    """The encoder's tokens at the visible patches (B, visible, D)."""
    visible: PatchSubset
    """The visible patches."""
    clip: Tensor
    """Mean over the tokens of visible patches, the clip vector (B, D)."""
    heads: dict[str, Tensor]
    """Output of each head by its name; leading dimensions are those of what it reads."""

    @property
    def discriminative(self) -> Tensor:
        """Predictions of the discriminative head (B, masked, V)."""
        return self.heads["discriminative"]

    @property
    def generative(self) -> Tensor:
        """Predictions of the generative head (B, masked, V)."""
        return self.heads["generative"]


class Decoder(nn.Module):
    """A few blocks over all patches, with mask tokens at the masked ones."""

    def __init__(self, config: BaseEncoderConfig, depth: int):
        super().__init__()
        self.enter = nn.Linear(config.embed_dim, config.embed_dim)
        self.blocks = build_blocks(config, depth)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        initialize_encoder(self, config)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Decode tokens (B, L, D), `lengths` (B,) of them valid."""
        out: Tensor = self.norm(self.blocks(tokens, lengths))
        return out


def built_in_heads(config: BaseEncoderConfig, pretraining: PretrainingConfig) -> list[HeadConfig]:
    """Return the heads of the objectives that come with ssamba, as far as the configuration has them."""
    dim, bins, values = config.embed_dim, config.num_mel_bins, config.patch_size[0] * config.patch_size[1]
    heads = [
        HeadConfig(name=name, reads="masked", outputs=values, hidden=dim, activation="relu")
        for name in ("discriminative", "generative")
    ]
    if (width := pretraining.clip_dim) > 0:
        clip = HeadConfig(name="clip", reads="clip", outputs=width, hidden=4 * dim, activation="relu", norm=True)
        heads.append(clip)
    if pretraining.statistics:
        heads.append(HeadConfig(name="statistics", reads="clip", outputs=3 * bins))
    if pretraining.profile:
        heads.append(HeadConfig(name="profile", reads="clip", outputs=pretraining.profile * profile_bands(bins)))
    if pretraining.texture:
        heads.append(HeadConfig(name="texture", reads="clip", outputs=texture_values(bins)))
    if pretraining.units:
        heads.append(HeadConfig(name="seen_units", reads="visible", outputs=pretraining.units))
        heads.append(HeadConfig(name="hidden_units", reads="masked", outputs=pretraining.units))
    if pretraining.teacher:
        heads.append(HeadConfig(name="latent", reads="masked", outputs=dim, hidden=2 * dim))
    return heads


class PretrainingHeads(nn.Module):
    """What a pretraining model consists of and computes; a subclass calls `_build` in its constructor."""

    def _build(self, config: BaseEncoderConfig, pretraining: PretrainingConfig | None = None) -> None:
        """Add encoder, mask token and heads."""
        self.pretraining = pretraining or PretrainingConfig()
        self.encoder = build_encoder(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        built_in = built_in_heads(config, self.pretraining)
        self.heads = (*built_in, *self.pretraining.heads)
        # The order of parameters and of random numbers is that of states and runs since the first version.
        for head in built_in[:2]:
            self.add_module(f"{head.name}_head", build_head(head, config.embed_dim))
        if self.pretraining.decoder_depth:
            self.decoder = Decoder(config, self.pretraining.decoder_depth)
        for head in built_in[2:]:
            self.add_module(f"{head.name}_head", build_head(head, config.embed_dim))
        if not self.mask_token.is_meta:  # as in `initialize_encoder`
            nn.init.xavier_normal_(self.mask_token)
        self.own_heads = nn.ModuleDict({h.name: build_head(h, config.embed_dim) for h in self.pretraining.heads})

    def predict_masked(self, features: Tensor, mask: Tensor, lengths: Tensor | None = None) -> PretrainingOutput:
        """Encode clips with masked patches, and apply all heads.

        Args:
            features: normalized features (B, T, M).
            mask: True where a patch is masked (B, L), in token order; padding must be False.
            lengths: valid frames of each clip (B,), None if all are.

        Raises:
            ValueError: the mask is not a bool tensor (B, L).
        """
        patches = self.encoder.embed_patches(features, lengths)
        if mask.shape != patches.tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be {tuple(patches.tokens.shape[:2])} bool, got {tuple(mask.shape)} {mask.dtype}"
            )
        masked = patch_subset(mask)
        values = masked.gather(
            order_tokens(patch_values(features, self.encoder.config), self.encoder.config, patches.columns)
        )
        if self.pretraining.normalize_targets:
            values = (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-4).sqrt()
        encode = self._encode_visible if self.pretraining.encode == "visible" else self._encode_all
        visible = patch_subset(self._valid_tokens(patches) & ~mask)
        tokens, visible_tokens = encode(patches, mask, visible)
        tokens, clip = masked.gather(tokens), _mean(visible_tokens, visible.valid)
        read = {"masked": tokens, "visible": visible_tokens, "clip": clip}
        return PretrainingOutput(
            tokens=tokens,
            values=values,
            masked=masked,
            visible_tokens=visible_tokens,
            visible=visible,
            clip=clip,
            heads={head.name: self._head(head.name)(read[head.reads]) for head in self.heads},
        )

    def _head(self, name: str) -> nn.Module:
        head: nn.Module = self.own_heads[name] if name in self.own_heads else getattr(self, f"{name}_head")
        return head

    def _encode_all(self, patches: PatchTokens, mask: Tensor, visible: PatchSubset) -> tuple[Tensor, Tensor]:
        """Return the encoder's tokens (B, L, D) with masked patches replaced, and those of visible patches."""
        tokens = torch.where(mask[..., None], self.mask_token, patches.tokens)
        encoded = self.encoder.encode(PatchTokens(tokens, patches.columns, patches.longest))
        encoded = encoded[:, self.encoder.num_prefix_tokens :]
        return encoded, visible.gather(encoded)

    def _encode_visible(self, patches: PatchTokens, mask: Tensor, visible: PatchSubset) -> tuple[Tensor, Tensor]:
        """Return the decoder's tokens (B, L, D), and the encoder's tokens of visible patches (B, visible, D)."""
        positions = self.encoder.positions(patches.columns, patches.longest).expand_as(patches.tokens)
        counts = visible.valid.sum(1)
        inputs = visible.gather(patches.tokens + positions)
        encoded = self.encoder.encode_tokens(inputs, counts)[:, self.encoder.num_prefix_tokens :]
        decoder_inputs = self.decoder.enter(encoded).to(positions.dtype)
        # Padding entries of `visible` point at masked patches or padding, which must keep the mask token: they are
        # scattered to an extra place that is cut off.
        place = torch.where(visible.valid, visible.indices, patches.tokens.shape[1])
        tokens = torch.cat((self.mask_token.expand_as(positions), self.mask_token.expand(len(mask), 1, -1)), dim=1)
        tokens = tokens.scatter(1, place[..., None].expand_as(decoder_inputs), decoder_inputs)[:, :-1] + positions
        lengths = None if patches.columns is None else patches.columns * self.encoder.config.rows
        return self.decoder(tokens, lengths), encoded

    def _valid_tokens(self, patches: PatchTokens) -> Tensor:
        """Return which patch tokens are not padding (B, L), bool."""
        length = patches.tokens.shape[1]
        step = torch.arange(length, device=patches.tokens.device)
        if patches.columns is None:
            return (step >= 0).expand(patches.tokens.shape[0], -1)
        return step < (patches.columns * self.encoder.config.rows)[:, None]


class PretrainingModel(PretrainingHeads):
    """Encoder, mask token, and the heads that the objectives need."""

    def __init__(self, config: BaseEncoderConfig, pretraining: PretrainingConfig | None = None):
        super().__init__()
        self._build(config, pretraining)

    def forward(self, features: Tensor, mask: Tensor, lengths: Tensor | None = None) -> PretrainingOutput:
        """Encode clips with masked patches, and apply all heads; see `predict_masked`."""
        return self.predict_masked(features, mask, lengths)


def _mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """Average tokens (B, L, D) over the valid ones (B, L): (B, D)."""
    return torch.where(valid[..., None], tokens, 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
