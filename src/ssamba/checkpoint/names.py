"""Names of models: the models known on this machine, and the checkpoint that a name or path stands for.

    find_model("ssamba2-tiny").name     "ssamba2-tiny-1", the versioned name: weights never change under it
    find_model("ssamba-tiny-400")       the authors' weights, downloaded when they are first named
    find_model("./ssamba2-tiny")        the folder of that name, not the model

A string that is the name of a known model is that model, whatever the working directory holds; any other string, and
every `Path`, is a path.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

from safetensors import SafetensorError, safe_open

from ssamba.checkpoint import hub, released
from ssamba.checkpoint.files import CONFIG_FILE, WEIGHTS_FILE, own_keys, read_json
from ssamba.config import MODEL_TYPES, EncoderConfig, ModelConfig
from ssamba.errors import CheckpointError, ConfigError
from ssamba.model.create import SIZES

MODEL_FOLDER = "model"
"""Folder of a run, and of each saved state, with the released model."""
STATES_FOLDER = "checkpoints"
"""Folder of a run with its saved states."""
ROUNDS_FOLDER = "rounds"
"""Folder of a fine-tuning run with the run of each fold."""

DEFAULT_MODEL = "ssamba2-tiny-1"
"""The model that is loaded where none is named; it ships with the package."""
ACCEPTED = (
    "the folder of a checkpoint, the folder of a pretraining or fine-tuning run, an official SSAMBA or SSAST .pth "
    "file, or hf:OWNER/NAME"
)
"""What `find_model` takes besides names of known models."""
_BASELINES = ("random", "logmel")
_NOT_STATED = "not stated"
_log = logging.getLogger("ssamba")


@dataclass(frozen=True)
class KnownModel:
    """A model with a name of its own."""

    name: str
    """Versioned name."""
    aliases: tuple[str, ...]
    """Other names, such as the one without the version, which stands for the newest."""
    data: str
    """Training data, in one line."""
    license: str
    """License of the weights."""
    folder: Path
    """Checkpoint folder."""


KNOWN_MODELS = (
    KnownModel(
        name=DEFAULT_MODEL,
        aliases=("ssamba2-tiny",),
        data="10.3 h of speech prompts, sound effects, instruments, ambience and music from 116 packages of Debian 12",
        license="MIT",
        folder=Path(__file__).parent / "weights" / DEFAULT_MODEL,
    ),
)
"""Models that ship with the package."""
_NAMES = {name: known for known in KNOWN_MODELS for name in (known.name, *known.aliases)}


@dataclass(frozen=True, repr=False)
class ModelInfo:
    """Facts about a model that can be loaded by name."""

    name: str
    """Versioned name."""
    aliases: tuple[str, ...]
    """Other names that stand for it now."""
    family: str
    """`ssamba` (the official structure), `ssamba2` (ours) or `ssast`."""
    size: str
    """`tiny`, `small`, `base`, or `custom` for another width."""
    parameters: int
    """Parameters of the encoder."""
    dim: int
    """Length D of an embedding."""
    data: str
    """Training data, in one line."""
    license: str
    """License of the weights."""
    where: Literal["shipped", "official", "cached"]
    """`shipped` with the package, `official` (the authors': downloaded when first named), or `cached` by
    huggingface_hub."""
    path: Path | None
    """Checkpoint folder, or official file; None if it is not downloaded yet."""
    file_bytes: int | None
    """Size of the weights file; None if it is not downloaded yet."""

    def __repr__(self) -> str:
        return f"ModelInfo({self.name!r}, {self.parameters / 1e6:.2g} M parameters, dim {self.dim}, {self.where})"


class FoundModel(NamedTuple):
    """The checkpoint that a name or path stands for."""

    path: Path
    """Checkpoint folder or file."""
    name: str
    """Versioned name of a known model or hub checkpoint (`hf:OWNER/NAME@COMMIT`); otherwise the path as given."""
    notes: tuple[str, ...] = ()
    """Facts for the user."""
    sha256: str | None = None
    """Checksum of the weights file of a hub checkpoint, 64 hexadecimal digits."""
    official: released.Released | None = None
    """The official model that was named, if one was."""


def available_models() -> list[ModelInfo]:
    """List the models that can be loaded by name: shipped ones, the official ones, then those in the hub's cache.

    No network is used. Every `name` and alias can be given to `ssamba.load_model`, to `-c` and in recipes.

    Examples:
        >>> [model.name for model in available_models() if model.where == "shipped"]
        ['ssamba2-tiny-1']
    """
    return [*_shipped(), *_official(), *_cached()]


def has_default_weights() -> bool:
    """Return whether this installation has the weights of the default model (one from a partial copy may not)."""
    return (_NAMES[DEFAULT_MODEL].folder / WEIGHTS_FILE).exists()


def find_model(source: str | os.PathLike[str] | None = None) -> FoundModel:
    """Return the checkpoint that a name or path stands for; an official model and a hub checkpoint are downloaded.

    Args:
        source: a string is, in this order: the name of a known model; of an official one (`ssamba-tiny-400`,
            `@REVISION` optional); a hub name (`hf:OWNER/NAME`, `@REVISION` and `/FILE` optional); a path. A `Path` is
            always a path, and so is a string such as `./ssamba2-tiny`. The path is a checkpoint folder, the folder of
            a run (its `model/` is taken), or an official `.pth` file. None is the default model.

    Raises:
        CheckpointError: the name is unknown and no path (the message lists known names, near misses, and what else
            is accepted), the run has not finished, the hub checkpoint cannot be fetched, or `source` is no string.
        MissingExtraError: huggingface_hub is not installed, and an official model or hub checkpoint was named.
    """
    if source is None:
        source = DEFAULT_MODEL
    if not isinstance(source, str | os.PathLike):
        raise CheckpointError(
            f"expected the name of a model or the path of a checkpoint, got {type(source).__name__}. "
            "(A model in memory is embedded with ssamba.Embedder(model).)"
        )
    if isinstance(source, str):
        if not source.strip():
            raise CheckpointError(f"the name of the model is empty. {_known_names()} Also accepted: {ACCEPTED}")
        if (known := _NAMES.get(source)) is not None:
            _warn_of_namesake(source)
            return _found(known)
        if (official := released.find_released(source)) is not None:
            _warn_of_namesake(source)
            fetched = released.fetch_released(source)
            return FoundModel(fetched.path, fetched.name, fetched.notes, fetched.sha256, official)
        if source.startswith(hub.PREFIX):
            fetched = hub.fetch(source)
            return FoundModel(fetched.path, fetched.name, fetched.notes, fetched.sha256)
        if re.match("https?://", source):
            raise CheckpointError(
                f"{source} is a URL, which is not fetched: download it and give the file's path, or name a hub "
                "repository as hf:OWNER/NAME"
            )
    name = os.fspath(source)
    path = _expanded(Path(source))
    if not _exists(path):
        raise CheckpointError(_unknown(name, is_path=not isinstance(source, str)))
    if path.is_file() and path.name in (WEIGHTS_FILE, CONFIG_FILE):
        path = path.parent
    return FoundModel(_in_run(path) if path.is_dir() else path, name)


def is_model_name(text: str) -> bool:
    """Return whether a string names a known or official model or a hub checkpoint, rather than a path."""
    return text in _NAMES or released.find_released(text) is not None or text.startswith(hub.PREFIX)


def _found(known: KnownModel) -> FoundModel:
    """Return where a known model is."""
    if not (known.folder / WEIGHTS_FILE).exists():
        raise CheckpointError(
            f"{known.name} ships with ssamba, but {known.folder} is missing: this installation came without weights. "
            f"Reinstall ssamba, or name a checkpoint: {ACCEPTED}"
        )
    return FoundModel(known.folder, known.name)


def _warn_of_namesake(source: str) -> None:
    """Warn if the working directory has a checkpoint with the name of a model."""
    namesake = Path(source)
    if namesake.is_file() or any((namesake / inner / CONFIG_FILE).is_file() for inner in ("", MODEL_FOLDER)):
        warnings.warn(
            f"{source!r} is the model of that name, not the checkpoint in the working directory: "
            f"name that one {f'.{os.sep}{source}'!r}",
            stacklevel=4,
        )


def _in_run(folder: Path) -> Path:
    """Return a checkpoint folder, or the folder `model/` in it if it is that of a run.

    Raises:
        CheckpointError: it holds neither, or a run that has not finished.
    """
    inner = folder / MODEL_FOLDER
    if (folder / CONFIG_FILE).is_file():
        return folder
    if (inner / CONFIG_FILE).is_file():
        return inner
    if (folder / ROUNDS_FOLDER).is_dir():
        raise CheckpointError(
            f"{folder} holds a fine-tuning that has not finished: repeat its command to resume, or name a round that "
            f"has, {folder / ROUNDS_FOLDER / 'NAME' / 'chosen'}"
        )
    if (folder / STATES_FOLDER).is_dir():
        raise CheckpointError(
            f"{folder} holds a run that has not finished: repeat its command to resume, or name one of its saved "
            f"states, {folder / STATES_FOLDER / 'step-N'}"
        )
    raise CheckpointError(f"{folder} holds no checkpoint: {CONFIG_FILE} is missing. Expected {ACCEPTED}")


def _unknown(name: str, *, is_path: bool) -> str:
    """Return the message for a name or path that stands for nothing."""
    if is_path and is_model_name(name):
        return f"{name}: no such file or folder. The model of that name is given as a string, {name!r}"
    message = [f"{name}: no such file or folder, and no model of that name."]
    near = _near_misses(name)
    if name.lower().startswith("ssast"):
        message.append("(SSAST's weights are in no repository that ssamba knows: give the path of their .pth file.)")
    elif near:
        message.append(f"Did you mean {' or '.join(map(repr, near))}?")
    elif name in _BASELINES:
        message.append(f"({name!r} is a baseline of `ssamba evaluate` alone.)")
    message.append(f"{_known_names()} Also accepted: {ACCEPTED}")
    return " ".join(message)


def _near_misses(name: str) -> list[str]:
    """Return known names that a wrong one may stand for: similar ones, else those that it is a part of."""
    plain = re.sub(r"[\s_.-]+", "-", name.lower()).strip("-/\\")
    shipped, official = list(_NAMES), [one.name for one in released.RELEASED]
    for names in (official, shipped) if re.match("ssamba(?!2)", plain) else (shipped, official):
        near = difflib.get_close_matches(plain, names, n=4, cutoff=0.7)
        if not near and len(plain) > 2:
            near = sorted((known for known in names if plain in known), key=len)
        if near:
            one_each = {_NAMES[known].name if known in _NAMES else known: known for known in reversed(near)}
            return list(reversed(one_each.values()))[:3]
    return []


def _known_names() -> str:
    """Return a sentence with all names."""
    cached = [(model.name, model.aliases) for model in _cached()]
    models = [(known.name, known.aliases) for known in KNOWN_MODELS] + cached
    texts = [f"{name} ({', '.join(aliases)})" if aliases else name for name, aliases in models]
    return f"Known names: {', '.join(texts)}; official, downloaded when first named: {released.NAMES}."


def _expanded(path: Path) -> Path:
    """Return a path with `~` replaced by the home folder, if there is one."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _exists(path: Path) -> bool:
    """Return whether a path exists; False for one that no file system allows."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _shipped() -> Iterator[ModelInfo]:
    for known in KNOWN_MODELS:
        if (known.folder / WEIGHTS_FILE).exists():
            yield _describe(known, "shipped")


def _official() -> Iterator[ModelInfo]:
    """Yield the models that the authors released, with the file in the cache of huggingface_hub if it holds one."""
    listings = list(hub.cached_listings(released.REPOSITORY))
    for one in released.RELEASED:
        path, file_bytes = None, None
        aliases = [one.script_name]
        for listing in listings:
            try:
                choice = released.choose_file(one, listing)
            except CheckpointError:
                continue
            path = hub.cached_path(listing, choice.path)
            file_bytes = listing.files[choice.files[0]].size
            aliases.append(f"{listing.named(choice.path)}@{listing.commit}")
            break
        yield ModelInfo(
            name=one.name,
            aliases=tuple(aliases),
            family="ssamba",
            size=one.size,
            parameters=one.parameters,
            dim=one.dim,
            data=f"{released.DATA}, {one.masked_patches} of 512 patches masked",
            license=_NOT_STATED,
            where="official" if path is None else "cached",
            path=path,
            file_bytes=file_bytes,
        )


def _cached() -> Iterator[ModelInfo]:
    """Yield the checkpoint folders in the cache of huggingface_hub; damaged ones and other models are left out."""
    for pinned, aliases, folder in hub.cached_folders(CONFIG_FILE, WEIGHTS_FILE):
        try:
            values = read_json(folder / CONFIG_FILE)
            if values.get("model_type") not in MODEL_TYPES:
                continue
            data = values.get("origin")
            data = data if isinstance(data, str) else _NOT_STATED
            yield _describe(KnownModel(pinned, aliases, data, _NOT_STATED, folder), "cached")
        except (CheckpointError, ConfigError, SafetensorError, OSError) as error:
            _log.debug("%s is left out of the list of models: %s", folder, error)


def _describe(known: KnownModel, where: Literal["shipped", "cached"]) -> ModelInfo:
    """Return the facts about a model, from its configuration and the header of its weights."""
    path = known.folder / CONFIG_FILE
    encoder = ModelConfig.parse(own_keys(read_json(path), ModelConfig), str(path)).encoder
    family = "ssamba2" if isinstance(encoder, EncoderConfig) and encoder.variant == "ssamba2" else encoder.family
    sizes = {values["embed_dim"]: size for size, values in SIZES.items()}
    weights = known.folder / WEIGHTS_FILE
    with safe_open(weights, framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if name.startswith("encoder.")]  # noqa: SIM118
    return ModelInfo(
        name=known.name,
        aliases=known.aliases,
        family=family,
        size=sizes.get(encoder.embed_dim, "custom"),
        parameters=sum(map(prod, shapes)),
        dim=encoder.embed_dim,
        data=known.data,
        license=known.license,
        where=where,
        path=known.folder,
        file_bytes=weights.stat().st_size,
    )
