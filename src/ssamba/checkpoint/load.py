"""Load checkpoints by name or path (our folders, official `.pth` files, the hub) and write our folders."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.checkpoint.files import (
    CONFIG_FILE,
    PREPROCESSOR_FILE,
    WEIGHTS_FILE,
    own_keys,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from ssamba.checkpoint.names import FoundModel, find_model
from ssamba.checkpoint.official import convert_official, is_official
from ssamba.checkpoint.released import REPOSITORY
from ssamba.config import MODEL_TYPES, BaseEncoderConfig, FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.errors import CheckpointError, ConfigError, OtherSettingsError
from ssamba.files import output_folder
from ssamba.hashing import digest_of
from ssamba.model.create import SIZES, build_encoder
from ssamba.model.encoder import PatchEncoder
from ssamba.model.heads import Classifier
from ssamba.model.pretraining import PretrainingModel

_log = logging.getLogger(__name__)


class EncoderOnly(nn.Module):
    """An encoder without a head, with the same tensor names as models that have one."""

    def __init__(self, encoder: PatchEncoder):
        super().__init__()
        self.encoder = encoder


Model = EncoderOnly | PretrainingModel | Classifier


@dataclass(frozen=True)
class LoadReport:
    """Summary of a loaded checkpoint, with everything that was ignored or assumed."""

    name: str
    """Versioned name of a known model or hub checkpoint (`hf:OWNER/NAME@COMMIT`); otherwise the path as given."""
    kind: str
    """encoder, pretraining or classifier."""
    num_parameters: int
    """Number of parameters of the model."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Ignored tensors of the file, each with the reason."""
    notes: tuple[str, ...] = ()
    """Facts that were inferred or assumed."""
    file_sha256: str | None = None
    """Checksum of the weights file of a hub checkpoint, 64 hexadecimal digits."""

    def ignored_by_reason(self) -> list[str]:
        """Return a line for each reason: the tensors that were ignored for it, and the reason."""
        names: dict[str, list[str]] = {}
        for name, reason in self.ignored.items():
            names.setdefault(reason, []).append(name)
        return [f"{', '.join(names[reason])}: {reason}" for reason in sorted(names)]

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.kind}, {self.num_parameters / 1e6:.2f} M parameters"]
        lines += [f"ignored {line}" for line in self.ignored_by_reason()]
        return "\n  ".join([*lines, *self.notes])


@dataclass(frozen=True)
class Checkpoint:
    """A rebuilt model (in evaluation mode, on the CPU) with its configuration."""

    model: Model
    config: ModelConfig
    front_end: FrontEndConfig
    report: LoadReport

    @property
    def identity(self) -> ModelIdentity:
        """Versioned name, digest of the encoder's weights, and checksum of the file that was downloaded."""
        digest = weights_digest(self.model.encoder)
        return ModelIdentity(name=self.report.name, weights_digest=digest, file_sha256=self.report.file_sha256)


def weights_digest(encoder: PatchEncoder) -> str:
    """Return 16 hexadecimal digits that identify the weights of an encoder, whatever file they came from."""
    return digest_of(encoder.state_dict())


def build_model(config: ModelConfig) -> Model:
    """Build the model that a configuration describes, randomly initialized."""
    if config.kind == "pretraining":
        return PretrainingModel(config.encoder, config.pretraining)
    if config.classifier is not None:
        return Classifier(config.encoder, config.classifier)
    return EncoderOnly(build_encoder(config.encoder))


def load_checkpoint(source: str | Path | None = None, patch_stride: int | tuple[int, int] | None = None) -> Checkpoint:
    """Rebuild the model of a checkpoint.

    Args:
        source: the name of a model (`ssamba.available_models`; official weights such as "ssamba-tiny-400" are
            downloaded when first named), a hub name (`hf:OWNER/NAME`), a folder written by `save_checkpoint`, the
            folder of a run, or an official `.pth` file; None means the default model. A name comes before a path:
            `./ssamba2-tiny` is the folder (`ssamba.checkpoint.names`).
        patch_stride: cut patches with this stride (mel bins and frames, or one number for both) instead of the
            checkpoint's; positions are interpolated as the official code does. Fine-tuning often uses 10.

    Raises:
        CheckpointError: it is missing, damaged, of another model, or its tensors do not fit its configuration.
    """
    found = find_model(source)
    path, name, notes = found.path, found.name, list(found.notes)
    if path.is_dir():
        ignored: dict[str, str] = {}
        config, front_end, tensors = _read_folder(path, notes)
    else:
        tensors = read_tensors(path)
        if not is_official(tensors):
            raise CheckpointError(
                f"{name} holds {len(tensors)} tensors, but not those of an SSAMBA model or an SSAST one (first names: "
                f"{', '.join(list(tensors)[:3])}). Expected an official .pth file (SSAMBA: module.v.layers.0..., "
                "SSAST: module.v.blocks.0...), or a folder with config.json and model.safetensors."
            )
        try:
            source_name = path.name if found.sha256 is None else name
            config, tensors, ignored, more = convert_official(tensors, source_name, patch_stride)
        except (ValueError, IndexError, AttributeError, TypeError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{name} has the names of an official checkpoint, but tensors of other shapes ({error}): fetch it again"
            ) from None
        notes += more
        if found.sha256 is not None:
            config = config.with_changes(origin=f"{config.origin} (SHA-256 {found.sha256})")
        front_end = FrontEndConfig()
        notes.append("normalization is not in the file: AudioSet's mean and deviation are used")
    if found.official is not None:
        _check_size(config, found)
    if patch_stride is not None:
        config = config.with_changes(encoder=config.encoder.with_patch_stride(patch_stride))
    with torch.device("meta"):
        model = build_model(config)
    _fill(model, tensors, name)
    count = sum(p.numel() for p in model.parameters())
    report = LoadReport(name, config.kind, count, ignored, tuple(notes), found.sha256)
    return Checkpoint(model.eval(), config, front_end, report)


def load_encoder(source: str | Path | None = None, patch_stride: int | tuple[int, int] | None = None) -> PatchEncoder:
    """Load the encoder of a checkpoint, without heads, in evaluation mode: normalized features (B, T, M) to tokens.

    Arguments and errors as `load_checkpoint`.
    """
    return load_checkpoint(source, patch_stride).model.encoder


def save_checkpoint(
    folder: str | Path,
    model: Model | PatchEncoder,
    config: ModelConfig | None = None,
    front_end: FrontEndConfig | None = None,
    *,
    half: bool = False,
) -> Path:
    """Write `config.json`, `model.safetensors` and `preprocessor_config.json`, each atomically, the weights first.

    Args:
        folder: created if absent; files of the same names in it are replaced.
        model: the model, or an encoder alone.
        config: its configuration; None derives it from the model.
        front_end: the features it was trained with; None means the official front end.
        half: write the weights as float16, half the size; loading converts them to float32.

    Returns:
        The folder.

    Raises:
        ConfigError: an argument is of a wrong kind, the folder is a file, or the front end does not fit the encoder.
    """
    folder = output_folder(folder)
    if isinstance(model, PatchEncoder):
        model = EncoderOnly(model)
    given: object = model
    if not isinstance(given, Model):
        raise ConfigError(
            f"expected an encoder, a classifier or a pretraining model, got {type(given).__name__} (of an Embedder, "
            "save model.encoder or model.classifier; of a wrapper, the module inside)"
        )
    if config is not None and not isinstance(config, ModelConfig):
        raise ConfigError(f"config: expected a ModelConfig or None, got {type(config).__name__}")
    config = config or _config_of(model)
    front_end = FrontEndConfig() if front_end is None else front_end
    check_front_end(front_end, config.encoder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = model.state_dict()
    write_tensors(folder / WEIGHTS_FILE, {k: v.half() for k, v in tensors.items()} if half else tensors)
    write_json(folder / PREPROCESSOR_FILE, front_end.model_dump(mode="json"))
    write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
    return folder


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    half: bool = False,
    origin: str | None = None,
) -> LoadReport:
    """Write any checkpoint that `load_checkpoint` reads as a folder of ours, with its tensors unchanged.

    If the folder holds this very checkpoint, nothing is done.

    Args:
        checkpoint: the checkpoint to load.
        output: the folder to write.
        overwrite: replace another checkpoint in the folder.
        half: write float16.
        origin: a line that tells readers where the weights come from; None keeps the source's.

    Raises:
        CheckpointError: the source cannot be loaded.
        ConfigError: the output is a file, or lies below one.
        OtherSettingsError: the folder holds another checkpoint; the message names the differences.
    """
    folder = output_folder(output)
    loaded = load_checkpoint(checkpoint)
    config = loaded.config if origin is None else loaded.config.with_changes(origin=origin)
    _write_new(folder, loaded, config, overwrite=overwrite, half=half)
    return loaded.report


def average_checkpoints(
    checkpoints: Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    overwrite: bool = False,
    half: bool = False,
    origin: str | None = None,
) -> Checkpoint:
    """Write the weighted mean of checkpoints of one structure as a folder of ours.

    The checkpoints should be trained from one another: between such models the loss is often flat, and their mean
    generalizes better than each of them, above all to other sources of data (model soups: Wortsman et al., 2022,
    arXiv:2203.05482; WiSE-FT: arXiv:2109.01903). Models that were trained separately do not average.

    If the folder holds this very mean, nothing is done.

    Args:
        checkpoints: two or more checkpoints to load.
        output: the folder to write.
        weights: weight of each checkpoint, relative to their sum; None weights all alike.
        overwrite: replace another checkpoint in the folder.
        half: write float16.
        origin: a line that tells readers where the weights come from; None names the checkpoints.

    Returns:
        The mean, as written.

    Raises:
        CheckpointError: a checkpoint cannot be loaded or has another structure.
        ConfigError: there are fewer than two checkpoints, the weights do not fit them, or the output is a file.
        OtherSettingsError: the folder holds another checkpoint; the message names the differences.
    """
    folder = output_folder(output)
    if isinstance(checkpoints, str | Path) or len(checkpoints) < 2:
        got = f"{str(checkpoints)!r} alone" if isinstance(checkpoints, str | Path) else len(checkpoints)
        raise ConfigError(f"averaging takes two checkpoints or more, got {got}")
    shares = _checked_shares(weights, len(checkpoints))
    loaded = [load_checkpoint(source) for source in checkpoints]
    first = loaded[0]
    for source, other in zip(checkpoints[1:], loaded[1:], strict=True):
        story = {"origin": first.config.origin, "base": first.config.base, "recipe": first.config.recipe}
        same = other.config.with_changes(**story) == first.config
        if not same or other.front_end != first.front_end:
            raise CheckpointError(
                f"{source} is of another structure than {checkpoints[0]} (encoder, heads or front end), so their "
                "weights do not average: compare them with `ssamba info`"
            )
    parts = [checkpoint.model.state_dict() for checkpoint in loaded]
    with torch.no_grad():
        for name, tensor in parts[0].items():
            mean = sum(share / sum(shares) * part[name] for share, part in zip(shares, parts, strict=True))
            tensor.copy_(torch.as_tensor(mean))
    named = " and ".join(f"{share:g} of {other.report.name}" for share, other in zip(shares, loaded, strict=True))
    bases = {other.config.base for other in loaded}
    base = first.config.base if len(bases) == 1 else None
    config = first.config.with_changes(origin=origin or f"mean of {named}", base=base)
    _write_new(folder, first, config, overwrite=overwrite, half=half)
    return replace(first, config=config, report=replace(first.report, name=str(folder)))


def _checked_shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Return the weights of `count` checkpoints, equal ones for None; raise a ConfigError if they do not fit."""
    try:
        shares = [1.0] * count if weights is None else [float(weight) for weight in weights]
    except (TypeError, ValueError):
        shares = []
    if len(shares) != count or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ConfigError(f"{count} checkpoints need as many weights, none below 0 and not all 0; got {weights!r}")
    return shares


def check_front_end(front_end: FrontEndConfig, encoder: BaseEncoderConfig) -> None:
    """Raise a ConfigError unless the front end makes the features that the encoder takes."""
    if not isinstance(front_end, FrontEndConfig):
        raise ConfigError(f"front_end: expected a FrontEndConfig, got {type(front_end).__name__}")
    if front_end.num_mel_bins != encoder.num_mel_bins:
        raise ConfigError(
            f"the front end makes {front_end.num_mel_bins} mel bins, but the encoder takes {encoder.num_mel_bins}: "
            f"set num_mel_bins={encoder.num_mel_bins}"
        )


def _write_new(folder: Path, new: Checkpoint, config: ModelConfig, *, overwrite: bool, half: bool) -> None:
    """Write a model with its front end, unless the folder holds this very checkpoint."""
    if (folder / CONFIG_FILE).exists() and not overwrite:
        changed = _differences(_read_folder(folder, []), new, config, half=half)
        if changed:
            raise OtherSettingsError(
                f"{folder} holds another checkpoint: {'; '.join(changed)}. Use another folder, or --overwrite "
                "(overwrite=True) to replace it"
            )
        _log.info("%s: nothing to do, it holds this checkpoint already", folder)
        return
    save_checkpoint(folder, new.model, config, new.front_end, half=half)


def _differences(
    found: tuple[ModelConfig, FrontEndConfig, dict[str, Tensor]], new: Checkpoint, config: ModelConfig, *, half: bool
) -> list[str]:
    """Return how the contents of a checkpoint folder differ from what is to be written, a phrase each."""
    old_config, old_front_end, old_tensors = found
    changed = []
    for before, now in ((old_config, config), (old_front_end, new.front_end)):
        was, values = (dict(_flat(one.model_dump(mode="json"))) for one in (before, now))
        changed += [
            f"{name} was {was.get(name)!r}, is {value!r}" for name, value in values.items() if was.get(name) != value
        ]
    tensors = {name: tensor.half() if half else tensor for name, tensor in new.model.state_dict().items()}
    if old_tensors.keys() == tensors.keys():
        old_types, types = ({tensor.dtype for tensor in one.values()} for one in (old_tensors, tensors))
        if old_types != types:
            changed.append("float16 or float32 is another (--half)")
        elif not all(torch.equal(old_tensors[name], tensor) for name, tensor in tensors.items()):
            changed.append("the weights are others")
    return changed


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _config_of(model: Model) -> ModelConfig:
    if isinstance(model, Classifier):
        return ModelConfig(kind="classifier", encoder=model.encoder.config, classifier=model.config)
    if isinstance(model, PretrainingModel):
        return ModelConfig(kind="pretraining", encoder=model.encoder.config, pretraining=model.pretraining)
    return ModelConfig(kind="encoder", encoder=model.encoder.config)


def _read_folder(folder: Path, notes: list[str]) -> tuple[ModelConfig, FrontEndConfig, dict[str, Tensor]]:
    values = read_json(folder / CONFIG_FILE)
    if values.get("model_type") not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} describes a model of type {values.get('model_type')!r}, expected 'ssamba'"
        )
    try:
        config = ModelConfig.parse(own_keys(values, ModelConfig), str(folder / CONFIG_FILE))
        if (source := folder / PREPROCESSOR_FILE).exists():
            front_end = FrontEndConfig.parse(own_keys(read_json(source), FrontEndConfig), str(source))
        elif isinstance(values.get("front_end"), Mapping):  # as transformers' classes write it
            front_end = FrontEndConfig.parse(values["front_end"], str(folder / CONFIG_FILE))
        else:
            front_end = FrontEndConfig()
            notes.append(f"{PREPROCESSOR_FILE} is missing: the official front end is used")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not (folder / WEIGHTS_FILE).exists():
        is_split = (folder / f"{WEIGHTS_FILE}.index.json").exists()
        raise CheckpointError(
            f"{folder} holds its weights in several files, expected {WEIGHTS_FILE}: load it with transformers, and "
            "save it with save_pretrained(..., max_shard_size='50GB')"
            if is_split
            else f"{folder / WEIGHTS_FILE} is missing: expected it beside {CONFIG_FILE}"
        )
    return config, front_end, read_tensors(folder / WEIGHTS_FILE)


def _check_size(config: ModelConfig, found: FoundModel) -> None:
    """Refuse a file that holds another size than the official model that was named."""
    assert found.official is not None
    dim = config.encoder.embed_dim
    sizes = {values["embed_dim"]: size for size, values in SIZES.items()}
    if sizes.get(dim, found.official.size) != found.official.size:
        raise CheckpointError(
            f"{found.official.name} was recognized by its name as {found.name}, but that file holds a model of size "
            f"{sizes[dim]} (dimension {dim}): name the right file, hf:{REPOSITORY}/FILE"
        )


def _fill(model: Model, tensors: Mapping[str, Tensor], name: str) -> None:
    """Load tensors into a model on the meta device; a CheckpointError if any is missing, unknown or misshapen."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{key} is {tuple(tensors[key].shape)}, expected {shape}"
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
        for what, found in (("missing", missing), ("unknown", unknown), ("of another shape", misshapen))
        if found
    ]
    if problems:
        raise CheckpointError(
            f"{name} does not fit its model ({'; '.join(problems)}). The file is damaged or was changed: "
            "fetch it again."
        )
    damaged = [key for key in expected if not torch.isfinite(tensors[key].float()).all()]
    if damaged:
        raise CheckpointError(f"{name} holds NaN or infinite weights, first in {damaged[0]}: the training diverged")
    floats = {key: tensors[key].to(torch.float32) for key in expected}
    model.load_state_dict(floats, strict=True, assign=True)
