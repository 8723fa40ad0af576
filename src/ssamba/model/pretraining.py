"""The model while it is pretrained: encoder, mask token, heads, and ours: visible-only encoding and a clip vector.

`encode="all"` is the original: a hidden patch's token is replaced by the mask token and the encoder runs over all of
them (SSAMBA, section 3.3). `encode="visible"` runs the encoder over the visible patches only and puts mask tokens back
for a shallow decoder (He et al., 2022, arXiv:2111.06377; Huang et al., 2022, arXiv:2207.06405): with 400 of 512 patches
hidden the encoder does a quarter of the work. The decoder is thrown away afterwards.

Shapes: B batch, T frames, M mel bins, L patch tokens, D channels, K hidden patches of the clip with most of them,
V = values of a patch, C channels of the clip projection, S visible patches of the clip with most of them, U classes of
sound.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssamba.config import BaseEncoderConfig, PretrainingConfig
from ssamba.model.create import build_blocks, build_encoder
from ssamba.model.encoder import PatchTokens
from ssamba.model.heads import PredictionHead
from ssamba.model.initialize import initialize_encoder
from ssamba.model.objectives import profile_bands, texture_values
from ssamba.model.patches import order_tokens, patch_values


class Hidden(NamedTuple):
    """Some patches of each clip, such as the hidden ones; entries beyond a clip's own count are padding."""

    places: Tensor
    """Their places in the token sequence without the prefix (B, K)."""
    valid: Tensor
    """Which entries are the clip's own (B, K), bool."""

    def take(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, K, C)."""
        return x.gather(1, self.places[..., None].expand(-1, -1, x.shape[2]))

    def pick(self, x: Tensor) -> Tensor:
        """(B, L) -> (B, K)."""
        return x.gather(1, self.places)


class Units(NamedTuple):
    """Scores (logits) of the classes of sound."""

    seen: Tensor
    """At the visible patches, from the encoder's tokens (B, S, U)."""
    places: Hidden
    """Where these stand."""
    hidden: Tensor
    """At the hidden patches, from the tokens that the heads read (B, K, U)."""


class PretrainingOutput(NamedTuple):
    """One encoder pass with some patches hidden."""

    tokens: Tensor
    """Tokens at the hidden patches, what the heads read (B, K, D)."""
    discriminative: Tensor
    """The discriminative head's predictions (B, K, V)."""
    generative: Tensor
    """The generative head's predictions (B, K, V)."""
    values: Tensor
    """The values that were hidden (B, K, V), normalized patch by patch if the configuration says so."""
    hidden: Hidden
    """Where they stand."""
    clip: Tensor
    """Mean over the tokens of the visible patches (B, D)."""
    projection: Tensor | None
    """Projection of `clip` (B, C) for the clip objective, None without."""
    statistics: Tensor | None
    """Prediction from `clip` of the clip's log-mel statistics (B, 3 M), None without that objective."""
    profile: Tensor | None
    """Prediction from `clip` of the clip's course over time (B, segments * bands), None without that objective."""
    texture: Tensor | None
    """Prediction from `clip` of the clip's texture (B, values), None without that objective."""
    units: Units | None
    """Scores of the classes of sound, None without that objective."""
    latent: Tensor | None
    """Prediction of the teacher's tokens at the hidden patches (B, K, D), None without teacher."""


def hidden_patches(mask: Tensor) -> Hidden:
    """The True entries of a mask (B, L) as indices, each clip's in rising order."""
    counts = mask.sum(1)
    most = int(counts.max()) if len(counts) else 0
    index = torch.argsort(mask.to(torch.uint8), dim=1, descending=True, stable=True)[:, :most]
    return Hidden(index, torch.arange(most, device=mask.device) < counts[:, None])


class Decoder(nn.Module):
    """A few blocks over all patches, mask tokens at the hidden ones."""

    def __init__(self, config: BaseEncoderConfig, depth: int):
        super().__init__()
        self.enter = nn.Linear(config.embed_dim, config.embed_dim)
        self.blocks = build_blocks(config, depth)
        self.norm = nn.LayerNorm(config.embed_dim, eps=config.norm_eps)
        initialize_encoder(self, config)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, L, D) with `lengths` (B,) valid tokens -> (B, L, D)."""
        out: Tensor = self.norm(self.blocks(tokens, lengths))
        return out


class PretrainingModel(nn.Module):
    """Encoder, mask token, and one head for each objective."""

    def __init__(self, config: BaseEncoderConfig, pretraining: PretrainingConfig | None = None):
        super().__init__()
        self.pretraining = pretraining or PretrainingConfig()
        self.encoder = build_encoder(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.embed_dim))
        self.discriminative_head = PredictionHead(config)
        self.generative_head = PredictionHead(config)
        if self.pretraining.decoder_depth:
            self.decoder = Decoder(config, self.pretraining.decoder_depth)
        dim = config.embed_dim
        if self.pretraining.clip_dim:
            self.clip_head = nn.Sequential(
                nn.Linear(dim, 4 * dim), nn.LayerNorm(4 * dim), nn.ReLU(), nn.Linear(4 * dim, self.pretraining.clip_dim)
            )
        if self.pretraining.statistics:
            self.statistics_head = nn.Linear(dim, 3 * config.num_mel_bins)
        if self.pretraining.profile:
            self.profile_head = nn.Linear(dim, self.pretraining.profile * profile_bands(config.num_mel_bins))
        if self.pretraining.texture:
            self.texture_head = nn.Linear(dim, texture_values(config.num_mel_bins))
        if self.pretraining.units:
            self.seen_units_head = nn.Linear(dim, self.pretraining.units)
            self.hidden_units_head = nn.Linear(dim, self.pretraining.units)
        if self.pretraining.teacher:
            self.latent_head = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        nn.init.xavier_normal_(self.mask_token)

    def forward(self, features: Tensor, mask: Tensor, lengths: Tensor | None = None) -> PretrainingOutput:
        """Encode with some patches hidden.

        Args:
            features: normalized, (B, T, M).
            mask: True where a patch is hidden, (B, L) in token order; padding must be False.
            lengths: valid frames of each clip (B,), None when all are.

        Raises:
            ValueError: the mask is not (B, L) bool.
        """
        patches = self.encoder.embed_patches(features, lengths)
        if mask.shape != patches.tokens.shape[:2] or mask.dtype != torch.bool:
            raise ValueError(
                f"mask must be {tuple(patches.tokens.shape[:2])} bool, got {tuple(mask.shape)} {mask.dtype}"
            )
        hidden = hidden_patches(mask)
        values = hidden.take(
            order_tokens(patch_values(features, self.encoder.config), self.encoder.config, patches.columns)
        )
        if self.pretraining.normalize_targets:
            values = (values - values.mean(-1, keepdim=True)) / (values.var(-1, keepdim=True) + 1e-4).sqrt()
        encode = self._encode_visible if self.pretraining.encode == "visible" else self._encode_all
        seen = hidden_patches(self._valid(patches) & ~mask)
        tokens, visible = encode(patches, mask, seen)
        tokens, clip = hidden.take(tokens), _mean(visible, seen.valid)
        return PretrainingOutput(
            tokens=tokens,
            discriminative=self.discriminative_head(tokens),
            generative=self.generative_head(tokens),
            values=values,
            hidden=hidden,
            clip=clip,
            projection=self.clip_head(clip) if self.pretraining.clip_dim else None,
            statistics=self.statistics_head(clip) if self.pretraining.statistics else None,
            profile=self.profile_head(clip) if self.pretraining.profile else None,
            texture=self.texture_head(clip) if self.pretraining.texture else None,
            units=Units(self.seen_units_head(visible), seen, self.hidden_units_head(tokens))
            if self.pretraining.units
            else None,
            latent=self.latent_head(tokens) if self.pretraining.teacher else None,
        )

    def _encode_all(self, patches: PatchTokens, mask: Tensor, seen: Hidden) -> tuple[Tensor, Tensor]:
        """All tokens (B, L, D), and the encoder's at the visible patches (B, S, D)."""
        tokens = torch.where(mask[..., None], self.mask_token, patches.tokens)
        encoded = self.encoder.encode(PatchTokens(tokens, patches.columns, patches.longest))
        encoded = encoded[:, self.encoder.num_prefix_tokens :]
        return encoded, seen.take(encoded)

    def _encode_visible(self, patches: PatchTokens, mask: Tensor, seen: Hidden) -> tuple[Tensor, Tensor]:
        """The same, the first from the decoder."""
        positions = self.encoder.positions(patches.columns, patches.longest).expand_as(patches.tokens)
        counts = seen.valid.sum(1)
        visible = seen.take(patches.tokens + positions)
        encoded = self.encoder.encode_tokens(visible, counts)[:, self.encoder.num_prefix_tokens :]
        entering = self.decoder.enter(encoded).to(positions.dtype)
        # The padding of `seen` points at patches that are hidden or padding; they take the mask token instead.
        place = torch.where(seen.valid, seen.places, patches.tokens.shape[1])
        tokens = torch.cat((self.mask_token.expand_as(positions), self.mask_token.expand(len(mask), 1, -1)), dim=1)
        tokens = tokens.scatter(1, place[..., None].expand_as(entering), entering)[:, :-1] + positions
        lengths = None if patches.columns is None else patches.columns * self.encoder.config.rows
        return self.decoder(tokens, lengths), encoded

    def _valid(self, patches: PatchTokens) -> Tensor:
        length = patches.tokens.shape[1]
        step = torch.arange(length, device=patches.tokens.device)
        if patches.columns is None:
            return (step >= 0).expand(patches.tokens.shape[0], -1)
        return step < (patches.columns * self.encoder.config.rows)[:, None]


def _mean(tokens: Tensor, valid: Tensor) -> Tensor:
    """(B, L, D), (B, L) -> (B, D): the mean over valid tokens."""
    return torch.where(valid[..., None], tokens, 0).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
