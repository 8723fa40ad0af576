"""The models as a module of sentence-transformers (docs/use-with.md): `encode`, `similarity`, its trainer and the hub.

    model = SentenceTransformer(modules=[SsambaModule("ssamba2-tiny")])
    model.encode(["owl.wav", {"array": samples, "sampling_rate": 48_000}])

The folder that it saves is also a checkpoint that `ssamba.load_model` reads.

Shapes: B recordings, S samples, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ssamba.audio.sources import read
from ssamba.checkpoint import save_checkpoint
from ssamba.embedder import Embedder, load_model
from ssamba.embedding import Readout, checked_readout, readout_dim
from ssamba.inference import clip_batch
from ssamba.model.readouts import parts


class SsambaModule(InputModule):
    """Recordings to embeddings; the only module that a model needs."""

    config_file_name = "ssamba_module_config.json"
    config_keys = ["readout"]  # noqa: RUF012 - as the base class declares it

    def __init__(self, model: str | Path | Embedder = "ssamba2-tiny", *, readout: Readout = "clip"):
        """Load the model.

        Args:
            model: name, path (`ssamba.load_model`), or a loaded model.
            readout: `clip` (D,) or `parts` (4 * D,), as in `Embedding`.
        """
        super().__init__()
        self.readout = checked_readout(readout)
        self.embedder = model if isinstance(model, Embedder) else load_model(model, device="cpu")
        self.encoder = self.embedder.encoder

    @property
    def modalities(self) -> list[Any]:
        """Audio alone."""
        return ["audio"]

    def get_embedding_dimension(self) -> int:
        """Return the length of an embedding."""
        return readout_dim(self.embedder.dim, self.readout)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Decode recordings whole, at the model's rate.

        Args:
            inputs: paths; waveforms (S,) or of several channels, which are averaged, at the model's rate or as
                `{"array": ..., "sampling_rate": ...}`; `{"bytes": ...}` or `{"path": ...}`; decoders of torchcodec.
            prompt: not for audio.
            kwargs: ignored.

        Raises:
            AudioDecodeError: a file cannot be read.
            ValueError: an input is no recording.
        """
        waves = [torch.from_numpy(self._decoded(one)) for one in inputs]
        lengths = torch.tensor([len(wave) for wave in waves])
        return {"input_values": pad_sequence(waves, batch_first=True), "num_samples": lengths}

    def _decoded(self, given: Any) -> Any:
        rate_hz = None
        if isinstance(given, Mapping):
            given = given.get("audio", given)
        match given:
            case {"array": samples, "sampling_rate": rate_hz}:
                given = np.asarray(samples)
            case {"bytes": bytes(content)}:  # of `datasets`, with Audio(decode=False)
                given = content
            case {"path": str(path)}:
                given = path
            case Mapping():
                raise ValueError(
                    "expected a recording as {'array': samples, 'sampling_rate': hertz}, {'bytes': file} or "
                    f"{{'path': path}}, got a dictionary of {', '.join(map(repr, given))}"
                )
            case _ if hasattr(given, "get_all_samples"):  # a decoder of torchcodec, as `datasets` gives
                decoded = given.get_all_samples()
                given, rate_hz = decoded.data, decoded.sample_rate
        return np.concatenate(list(read(given, rate_hz, self.embedder.front_end, "mean")))

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (B, D); where gradients are recorded, of recordings of at most a window.

        Raises:
            ValueError: a recording is too long to train on.
        """
        lengths = features["num_samples"].tolist()
        waves = [wave[:length] for wave, length in zip(features["input_values"], lengths, strict=True)]
        if torch.is_grad_enabled():
            vectors = self._with_gradients(waves)
        else:
            found = self.embedder.embed(waves, frames=False)
            vectors = torch.stack([getattr(embedding, self.readout) for embedding in found])
        return {**features, "sentence_embedding": vectors.to(features["input_values"].device)}

    def _with_gradients(self, waves: Sequence[Tensor]) -> Tensor:
        front_end, window_s = self.embedder.front_end, self.embedder.window_s
        longest_s = max(map(len, waves)) / front_end.sample_rate_hz
        if longest_s > window_s:
            raise ValueError(f"training takes recordings of at most {window_s:g} s, got {longest_s:.2f} s: crop them")
        batch = clip_batch(waves, self.encoder.config, front_end)
        tokens = self.encoder(batch.features, batch.lengths)
        vectors = parts(batch.features, tokens, self.encoder.config, front_end, batch.lengths, batch.valid_frames)
        return vectors[:, : self.get_embedding_dimension()]

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write a checkpoint folder of ssamba, and the readout beside it."""
        save_checkpoint(output_path, self.encoder, front_end=self.embedder.front_end)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> SsambaModule:
        """Read what `save` wrote, from a folder or the hub; arguments as of the base class."""
        hub = {name: kwargs.get(name) for name in ("token", "cache_folder", "revision")}
        hub["local_files_only"] = bool(kwargs.get("local_files_only"))
        folder = Path(cls.load_dir_path(model_name_or_path, subfolder, **hub) or model_name_or_path)
        return cls(folder, **cls.load_config(model_name_or_path, subfolder, **hub))
