"""The models as a transformer of scikit-learn (`pip install "ssamba[eval]"`, docs/use-with.md): recordings to vectors.

    pipeline = make_pipeline(AudioEmbedder("ssamba2-tiny", readout="parts"), StandardScaler(), LogisticRegression())
    pipeline.fit(["owl.wav", "wren.flac"], ["owl", "wren"])

Shapes: n recordings, S samples, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_memory

from ssamba.checkpoint.files import WEIGHTS_FILE
from ssamba.checkpoint.names import find_model, is_model_name
from ssamba.config import FrontEndConfig
from ssamba.embedder import Embedder, EmbedOptions, Source, load_model
from ssamba.embedding import Context, Readout, checked_readout, readout_dim
from ssamba.errors import ConfigError, ModelMismatchError

Array = np.ndarray[Any, Any]


class AudioEmbedder(TransformerMixin, BaseEstimator):
    """Turns recordings into their embeddings; `fit` only loads the model.

    Recordings are a list, an array or a column of paths, or waveforms: a list of (S,), or an array (n, S). Several
    channels, as in files or a list of (2, S), are averaged. Copies and pickles hold the name of the model, not its
    weights: whoever loads one needs the same model under that name, and is told if it is another.

    Attributes:
        weights_digest_: identifies the weights of the model that it was fitted with.
    """

    def __init__(
        self,
        model: str | Path | Embedder = "ssamba2-tiny",
        *,
        readout: Readout = "clip",
        layer: int | None = None,
        context: Context = "windows",
        sample_rate: int | None = None,
        front_end: FrontEndConfig | str | None = None,
        device: str | None = None,
        memory: Any = None,
    ):
        """Keep the parameters, as estimators do; they are checked by `fit`.

        Args:
            model: name or path (`ssamba.load_model`), loaded once in each process. An `Embedder` is copied with its
                weights by `clone` and pickles.
            readout: `clip` (D,) or `parts` (4 * D,), as in `Embedding`.
            layer: hidden state in place of the final output, as in `Embedder.embed`.
            context: `windows` or `full`, as in `Embedder.embed`.
            sample_rate: rate of waveforms in Hz; None means the model's.
            front_end: band that the model hears, as in `ssamba.load_model`.
            device: where to run; None means CUDA if available, else the CPU.
            memory: folder (or `joblib.Memory`) that keeps the vectors of recordings, so that a search over other
                parameters computes them once. A file whose size or time has changed is embedded again.
        """
        self.model = model
        self.readout = readout
        self.layer = layer
        self.context = context
        self.sample_rate = sample_rate
        self.front_end = front_end
        self.device = device
        self.memory = memory

    def fit(self, X: Any = None, y: Any = None) -> AudioEmbedder:
        """Load the model and check the parameters; recordings and labels are not looked at.

        Raises:
            ValueError: a parameter is wrong, or the model cannot be loaded.
        """
        embedder, digest = self._loaded()
        checked_readout(self.readout)
        embedder.check(self._options())
        self.weights_digest_ = digest
        return self

    def transform(self, X: Any) -> Array:
        """Return the vectors of recordings, (n, D) or for `parts` (n, 4 * D), float32.

        Raises:
            AudioDecodeError: a file cannot be read; the message says which.
            ModelMismatchError: the model's name stands for other weights than when it was fitted.
            ValueError: `X` holds no recordings.
        """
        embedder, digest = self._loaded()
        fitted = getattr(self, "weights_digest_", digest)
        if fitted != digest:
            raise ModelMismatchError(
                f"fitted with {self.model} of weights {fitted}, which are now {digest}: set model= to the former "
                "weights, or fit again"
            )
        recordings = _recordings(X)
        dim = readout_dim(embedder.dim, self.readout)
        if self.memory is None:
            rows = dict(self._embedded(embedder, dict(enumerate(recordings))))
        else:
            keep = check_memory(self.memory).cache(_keep, ignore=["vector"])
            settings = embedder.digest(self._options())
            keys = [_key(one, self.sample_rate) for one in recordings]
            new = {i: recordings[i] for i, key in enumerate(keys) if not keep.check_call_in_cache(key, settings, None)}
            # What is done is kept, whatever happens to the rest.
            rows = {i: keep(keys[i], settings, row) for i, row in self._embedded(embedder, new)}
            rows |= {i: keep(key, settings, None) for i, key in enumerate(keys) if i not in rows}
        return np.stack([rows[i][:dim] for i in range(len(rows))]) if rows else np.empty((0, dim), np.float32)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the dimensions, `e0`, `e1`, ..., as in the CSV tables of `ssamba embed`."""
        dim = readout_dim(self._loaded()[0].dim, self.readout)
        return np.array([f"e{k}" for k in range(dim)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array, tags.input_tags.string = False, True
        return tags

    def _embedded(self, embedder: Embedder, recordings: dict[int, Source]) -> Iterator[tuple[int, Array]]:
        """Yield the readout `parts`, (4 * D,), of each recording, with its number."""
        rate = self.sample_rate if any(hasattr(one, "shape") for one in recordings.values()) else None
        found = embedder.embed_stream(recordings.items(), rate, self._options(), frames=False, channels="mean")
        for i, embedding in found:
            if isinstance(embedding, Exception):
                raise type(embedding)(f"recording {i} (from 0): {embedding}")
            yield i, embedding.parts.numpy()

    def _options(self) -> EmbedOptions:
        return EmbedOptions.parse({"context": self.context, "layer": self.layer}, type(self).__name__)

    def _loaded(self) -> tuple[Embedder, str]:
        """Return the model and the digest of its weights."""
        if isinstance(self.model, Embedder):
            if self.front_end is not None or self.device is not None:
                raise ConfigError("front_end and device are for names and paths: an Embedder has its own, omit them")
            return self.model, self.model.identity.weights_digest
        changed_ns = 0
        if not (isinstance(self.model, str) and is_model_name(self.model)):
            path = find_model(self.model).path
            changed_ns = (path / WEIGHTS_FILE if path.is_dir() else path).stat().st_mtime_ns
        return _load(self.model, changed_ns, self.front_end, self.device)


@lru_cache(maxsize=2)
def _load(
    model: str | Path, changed_ns: int, front_end: FrontEndConfig | str | None, device: str | None
) -> tuple[Embedder, str]:
    """Load a model once for all copies of an estimator; a checkpoint written since is another one."""
    embedder = load_model(model, front_end=front_end, device=device)
    return embedder, embedder.identity.weights_digest


def _recordings(X: Any) -> list[Source]:
    """Return the recordings of a list, an array, or a column of a table."""
    if isinstance(X, str | bytes | Path | Mapping) or not isinstance(X, Iterable):
        raise ValueError(f"expected a list, an array or a column of recordings, got {type(X).__name__}")
    if hasattr(X, "to_numpy") or isinstance(X, np.ndarray):
        X = np.asarray(X)
        if X.dtype.kind in "OUST" and X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]  # a table with one column
        if X.ndim != 1 + (X.dtype.kind not in "OUST"):
            raise ValueError(f"expected paths (n,) or waveforms (n, S), got {X.dtype} of the shape {X.shape}")
    return list(X)


def _key(source: Source, sample_rate: int | None) -> Any:
    """Return what tells a recording from others: path, size and time of a file, or a waveform with its rate."""
    if isinstance(source, str | Path):
        path = Path(source).expanduser().resolve()
        status = path.stat() if path.is_file() else None  # a missing one is an error of `embed`
        return str(path), status and (status.st_size, status.st_mtime_ns)
    return source, sample_rate


def _keep(key: Any, settings: str, vector: Array | None) -> Array:
    """Return the vector: what `joblib.Memory` keeps under the key and the settings."""
    if vector is None:
        raise RuntimeError("a vector was removed from the folder `memory` while it was read: repeat the call")
    return vector
