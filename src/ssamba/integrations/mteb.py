"""The models as encoders of MTEB's audio tasks (docs/use-with.md).

    mteb.evaluate(SsambaEncoder("ssamba2-tiny", readout="parts"), mteb.get_tasks(modalities=["audio"], ...))

Shapes: n recordings, D channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from ssamba.audio.readers import Samples
from ssamba.audio.sources import read
from ssamba.embedder import load_model
from ssamba.embedding import Readout, readout_dim


class SsambaEncoder(AbsEncoder):
    """A model that MTEB can evaluate; similarity is the cosine."""

    def __init__(
        self,
        model_name: str = "ssamba2-tiny",
        revision: str | None = None,
        *,
        device: str | None = None,
        readout: Readout = "clip",
        **kwargs: Any,
    ):
        """Load the model.

        Args:
            model_name: name or path, as `ssamba.load_model` takes them.
            revision: ignored: versioned names hold it.
            device: where to run; None means CUDA if available, else the CPU.
            readout: `clip` (D,) or `parts` (4 * D,), as in `Embedding`.
            kwargs: ignored.
        """
        self.model, self.readout = load_model(model_name, device=device), readout
        identity = self.model.identity
        parameters = sum(parameter.numel() for parameter in self.model.encoder.parameters())
        self.mteb_model_meta = ModelMeta(
            loader=type(self),
            loader_kwargs={"readout": readout},
            name=f"ssamba/{identity.name.strip('/').replace('/', '__')}",
            revision=identity.weights_digest,
            release_date=None,
            languages=None,
            n_parameters=parameters,
            memory_usage_mb=round(4 * parameters / 2**20, 1),
            max_tokens=None,
            embed_dim=readout_dim(self.model.dim, readout),
            license=None,
            open_weights=True,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["audio"],
            experiment_kwargs={"readout": readout},
        )

    def encode(self, inputs: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        """Return the vectors of all recordings of a data loader, (n, D) float32, whatever their rates and lengths.

        Raises:
            ValueError: a batch holds no audio, or a recording cannot be embedded.
        """
        found = self.model.embed(self._waves(inputs), frames=False)
        return np.stack([getattr(embedding, self.readout).numpy() for embedding in found])

    def _waves(self, inputs: Any) -> Iterator[Samples]:
        for batch in inputs:
            if "audio" not in batch:
                raise ValueError(f"ssamba embeds audio alone, but the task has {', '.join(batch)}: choose audio tasks")
            for item in batch["audio"]:
                array, rate_hz = np.asarray(item["array"], np.float32), int(item["sampling_rate"])
                yield np.concatenate(list(read(array, rate_hz, self.model.front_end, "mean")))
