"""The models as upstreams of s3prl, for SUPERB's downstream tasks (docs/use-with.md); imports nothing of s3prl.

    s3prl.hub.ssamba = UpstreamExpert
    upstream = S3PRLUpstream("ssamba", path_or_url="ssamba2-tiny")

Shapes: B recordings, S samples, K time steps, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.embedder import load_model
from ssamba.errors import ConfigError
from ssamba.inference import clip_batch
from ssamba.model.patches import column_counts
from ssamba.model.readouts import time_steps

_RATE_HZ = 16_000


class UpstreamExpert(nn.Module):
    """Waveforms of 16 kHz to the hidden states of all layers, with gradients."""

    def __init__(self, ckpt: str | None = None, model_config: str | None = None, **kwargs: Any):
        """Load the model.

        Args:
            ckpt: name or path, as `ssamba.load_model` takes them; None means the default model.
            model_config: ignored: checkpoints hold it.
            kwargs: ignored.

        Raises:
            ConfigError: the model takes audio of another rate.
        """
        super().__init__()
        embedder = load_model(ckpt, device="cpu")
        self.encoder, self.front_end = embedder.encoder, embedder.front_end
        if self.front_end.sample_rate_hz != _RATE_HZ:
            raise ConfigError(
                f"s3prl's audio has 16000 Hz, {ckpt} takes {self.front_end.sample_rate_hz} Hz: use another"
            )

    def get_downsample_rates(self, key: str) -> int:
        """Return the samples from one time step to the next, of any key."""
        return self.encoder.config.patch_stride[1] * self.front_end.shift_samples

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """Return `hidden_states`, (B, K, D) for the input of the first layer, each layer and the final output.

        Args:
            wavs: B recordings (S,), each encoded whole, with interpolated positions beyond the pretraining length.

        Returns:
            Also `last_hidden_state`, the final output. A recording has as many steps as s3prl counts,
            ceil(samples / rate): its last one stands for those that it lacks.
        """
        config = self.encoder.config
        batch = clip_batch(wavs, config, self.front_end)
        states = self.encoder.hidden_states(self.encoder.embed_patches(batch.features, batch.lengths))
        columns = column_counts(batch.lengths, config)
        count = -(-max(map(len, wavs)) // self.get_downsample_rates("hidden_states"))
        own = torch.minimum(torch.arange(count, device=columns.device), columns[:, None] - 1)[..., None]
        hidden = [time_steps(state, config, columns).take_along_dim(own, 1) for state in states]
        return {"hidden_states": hidden, "last_hidden_state": hidden[-1]}
