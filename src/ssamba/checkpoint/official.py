"""Convert official checkpoints (`.pth` files of the SSAMBA and SSAST training scripts) to our tensor names.

A pretraining file holds `module.p_input_fdim/tdim` (the size of the input), a mask token, prediction heads and the
encoder `module.v.*`; a fine-tuned file holds the encoder, with positions already cut or interpolated to its own input,
and `module.mlp_head.*`. The blocks are `module.v.layers.*` in SSAMBA and `module.v.blocks.*` (attention) in SSAST. All
sizes but the number of attention heads follow from the shapes of the tensors. Conversion is strict: every tensor is
used or is a known unused one, otherwise the file is refused with a reason. The quirks of the structure are fields of
`EncoderConfig` (`block_layout`, `pair_residual`, `final_norms`, `patch_order`); docs/maths.md has the equations.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ssamba.config import ENCODER_CONFIGS, ClassifierConfig, EncoderConfig, ModelConfig, SSASTConfig
from ssamba.errors import CheckpointError

# Image classifiers of the vision encoder: in every official file, used by none.
_UNUSED = {
    f"v.{head}.{part}": "the unused vision head" for head in ("head", "head_dist") for part in ("weight", "bias")
}

# Official recipes fine-tune with these (stride, frames); a fine-tuned file records neither.
_FINE_TUNING_INPUTS = {
    (16, 16): ((10, 1024), (10, 512), (10, 128), (16, 6144)),
    (128, 2): ((1, 1024), (1, 512), (1, 128)),
}
_FINE_TUNING_STRIDES = {(16, 16): ((10, 10), (16, 16)), (128, 2): ((128, 1), (128, 2))}
_MEL_BINS = 128

_HEAD_SIZE = 64  # channels of an attention head in every released SSAST
_MIN_HEADS = 3  # of the smallest released SSAST

MIXER = {
    "in_proj.weight": "in_proj.weight",
    "out_proj.weight": "out_proj.weight",
    **{
        theirs.format(suffix): f"{scan}.{ours}"
        for suffix, scan in (("", "forward_scan"), ("_b", "backward_scan"))
        for theirs, ours in (
            ("A{}_log", "A_log"),
            ("D{}", "D"),
            ("conv1d{}.weight", "conv_weight"),
            ("conv1d{}.bias", "conv_bias"),
            ("x_proj{}.weight", "x_proj.weight"),
            ("dt_proj{}.weight", "dt_proj.weight"),
            ("dt_proj{}.bias", "dt_proj.bias"),
        )
    },
}
_WEIGHT_AND_BIAS = ("weight", "bias")
_ATTENTION_BLOCK = {
    f"{theirs}.{part}": f"{ours}.{part}"
    for theirs, ours in (
        ("norm1", "norm1"),
        ("attn.qkv", "attention.qkv"),
        ("attn.proj", "attention.proj"),
        ("norm2", "norm2"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"),
    )
    for part in _WEIGHT_AND_BIAS
}
OUTSIDE_BLOCKS = {
    "v.cls_token": "encoder.cls_token",
    "v.pos_embed": "encoder.position_embed",
    "mask_embed": "mask_token",
    **{
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in (
            ("v.patch_embed.proj", "encoder.patch_embed.proj"),
            ("v.norm_f", "encoder.norm"),
            ("mlp_head.0", "norm"),
            ("mlp_head.1", "linear"),
            ("cpredlayer.0", "discriminative_head.0"),
            ("cpredlayer.2", "discriminative_head.2"),
            ("gpredlayer.0", "generative_head.0"),
            ("gpredlayer.2", "generative_head.2"),
        )
        for part in _WEIGHT_AND_BIAS
    },
}
_SSAST_OUTSIDE_BLOCKS = {
    "v.dist_token": "encoder.dist_token",
    "v.norm.weight": "encoder.norm.weight",
    "v.norm.bias": "encoder.norm.bias",
}


class Converted(NamedTuple):
    """An official checkpoint with our tensor names."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    ignored: dict[str, str]
    """Tensors that were left out, each with the reason."""
    notes: list[str]
    """Facts that the file does not hold and that were inferred."""


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether the names are those of a state dict of the SSAMBA or SSAST training scripts."""
    return any(name.startswith("v.") for name in map(_bare, tensors))


def convert_official(
    tensors: Mapping[str, Tensor], source: str, patch_stride: int | tuple[int, int] | None = None
) -> Converted:
    """Rename the tensors of an official state dict and infer its configuration.

    Args:
        tensors: the state dict, with or without the prefix `module.`.
        source: name of the file, for messages.
        patch_stride: stride of a fine-tuned file that fits several.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of the wrong shape.
    """
    bare = {_bare(name): tensor for name, tensor in tensors.items()}
    ssast = any(name.startswith("v.blocks.") for name in bare)
    family = "SSAST" if ssast else "SSAMBA"
    first = "v.blocks.0.attn.qkv.weight" if ssast else "v.layers.0.mixer.A_log"
    _require(bare, ("v.cls_token", "v.pos_embed", "v.patch_embed.proj.weight", first), family, source)
    notes: list[str] = []
    fine_tuned = "mlp_head.1.weight" in bare
    encoder = _encoder_config(bare, source, patch_stride, notes)
    renamed: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    unknown: list[str] = []
    for name, tensor in bare.items():
        ours = our_name(name)
        if ours is not None:
            renamed[ours] = tensor.squeeze(1) if ours.endswith("conv_weight") and tensor.ndim == 3 else tensor
        elif name in _UNUSED:
            ignored[name] = _UNUSED[name]
        elif name not in ("p_input_fdim", "p_input_tdim"):
            unknown.append(name)
    if unknown:
        raise CheckpointError(
            f"{source} holds tensors that no {family} model has: {_listed(unknown)}. "
            f"Expected the state dict of an official {family} run, unchanged."
        )
    if fine_tuned:
        for name in [n for n in renamed if n == "mask_token" or n.startswith(("discriminative", "generative"))]:
            ignored[name] = "a pretraining head of a fine-tuned model"
            del renamed[name]
    classifier = ClassifierConfig(num_classes=bare["mlp_head.1.weight"].shape[0]) if fine_tuned else None
    kind = "classifier" if fine_tuned else "pretraining" if "mask_token" in renamed else "encoder"
    config = ModelConfig(kind=kind, encoder=encoder, classifier=classifier, origin=f"official checkpoint {source}")
    return Converted(config, {name: tensor.contiguous() for name, tensor in renamed.items()}, ignored, notes)


def _bare(name: str) -> str:
    return name.removeprefix("module.")


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _require(tensors: Mapping[str, Tensor], names: tuple[str, ...], family: str, source: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{source} is not an official {family} checkpoint: {_listed(missing)} missing. Expected a state dict saved "
            f"by the {family} training scripts (keys such as module.{names[-1]})."
        )


def our_name(name: str) -> str | None:
    """Return our name of an official tensor, without the prefix `module.`; None for unknown ones."""
    outside = OUTSIDE_BLOCKS.get(name) or _SSAST_OUTSIDE_BLOCKS.get(name)
    if outside is not None:
        return outside
    match = re.fullmatch(r"v\.blocks\.(\d+)\.(.+)", name)
    if match is not None:
        ours = _ATTENTION_BLOCK.get(match[2])
        return None if ours is None else f"encoder.blocks.{match[1]}.{ours}"
    match = re.fullmatch(r"v\.layers\.(\d+)\.(mixer|norm)\.(.+)", name)
    if match is None:
        return None
    index, part, rest = match.groups()
    if part == "norm":
        return f"encoder.blocks.{index}.norm.{rest}"
    return f"encoder.blocks.{index}.mixer.{MIXER[rest]}" if rest in MIXER else None


def _encoder_config(
    tensors: Mapping[str, Tensor], source: str, patch_stride: int | tuple[int, int] | None, notes: list[str]
) -> EncoderConfig | SSASTConfig:
    ssast = any(name.startswith("v.blocks.") for name in tensors)
    patch_bins, patch_frames = tensors["v.patch_embed.proj.weight"].shape[-2:]
    values: dict[str, Any] = {
        "embed_dim": tensors["v.cls_token"].shape[-1],
        "depth": 1 + max(int(m[1]) for m in (re.match(r"v\.(?:layers|blocks)\.(\d+)\.", n) for n in tensors) if m),
        "patch_size": (patch_bins, patch_frames),
        **(_attention_sizes(tensors, source, notes) if ssast else _mamba_sizes(tensors, source)),
    }
    patches = tensors["v.pos_embed"].shape[1] - (2 if values.get("distillation_token") else 1)
    if "p_input_fdim" in tensors and "p_input_tdim" in tensors:
        values["num_mel_bins"] = int(tensors["p_input_fdim"])
        values["num_frames"] = int(tensors["p_input_tdim"])
        values["patch_stride"] = (patch_bins, patch_frames)  # pretraining never overlaps patches
    else:
        values.update(_fine_tuning_input(patches, (patch_bins, patch_frames), patch_stride, source, notes))
    config = ENCODER_CONFIGS["ssast" if ssast else "ssamba"].parse(values, source)
    rows, columns = config.grid
    if rows * columns != patches:
        raise CheckpointError(
            f"{source} has positions for {patches} patches, but an input of {config.num_mel_bins} mel bins x "
            f"{config.num_frames} frames makes {rows} x {columns} = {rows * columns}"
        )
    return config


def _mamba_sizes(tensors: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Return the sizes of SSAMBA's blocks, from their shapes."""
    embed_dim = tensors["v.cls_token"].shape[-1]
    mixer = "v.layers.0.mixer"
    _require(tensors, (f"{mixer}.conv1d.weight", f"{mixer}.dt_proj.weight"), "SSAMBA", source)
    inner, state = tensors[f"{mixer}.A_log"].shape
    if inner % embed_dim:
        raise CheckpointError(f"{source}: blocks of {inner} channels are not a multiple of the width {embed_dim}")
    rank = tensors[f"{mixer}.dt_proj.weight"].shape[1]
    return {
        "expand": inner // embed_dim,
        "state_size": state,
        "conv_kernel": tensors[f"{mixer}.conv1d.weight"].shape[-1],
        "delta_rank": None if rank == EncoderConfig(embed_dim=embed_dim).dt_rank else rank,
    }


def _attention_sizes(tensors: Mapping[str, Tensor], source: str, notes: list[str]) -> dict[str, Any]:
    """Return the sizes of SSAST's blocks, from their shapes, and the number of heads, which no shape shows."""
    embed_dim = tensors["v.cls_token"].shape[-1]
    _require(tensors, ("v.blocks.0.mlp.fc1.weight",), "SSAST", source)
    inner = tensors["v.blocks.0.mlp.fc1.weight"].shape[0]
    if inner % embed_dim:
        raise CheckpointError(f"{source}: an MLP of {inner} channels is not a multiple of the width {embed_dim}")
    released = embed_dim % _HEAD_SIZE == 0
    heads = embed_dim // _HEAD_SIZE if released else _MIN_HEADS
    if not released:
        notes.append(f"{heads} attention heads are assumed: the file does not record them, and no released size fits")
    return {
        "num_heads": heads,
        "mlp_ratio": inner // embed_dim,
        "distillation_token": "v.dist_token" in tensors,
    }


def _fine_tuning_input(
    patches: int,
    patch_size: tuple[int, int],
    patch_stride: int | tuple[int, int] | None,
    source: str,
    notes: list[str],
) -> dict[str, int | tuple[int, int]]:
    """Infer stride and frames of a fine-tuned file from its number of positions.

    Both 12 rows (stride 10) and 8 rows (stride 16) may divide it. Then `patch_stride` decides, else a size that an
    official recipe uses, else stride 10, which all recipes but one use.
    """
    strides = _FINE_TUNING_STRIDES.get(patch_size, (patch_size,))
    candidates: list[tuple[tuple[int, int], int]] = []
    for stride in strides:
        rows = (_MEL_BINS - patch_size[0]) // stride[0] + 1
        if patches % rows == 0:
            candidates.append((stride, (patches // rows - 1) * stride[1] + patch_size[1]))
    if not candidates:
        raise CheckpointError(
            f"{source} has positions for {patches} patches, which fits no grid of {patch_size[0]} x {patch_size[1]} "
            f"patches over {_MEL_BINS} mel bins with a stride of {' or '.join(str(s[1]) for s in strides)}"
        )
    asked = [(stride, frames) for stride, frames in candidates if patch_stride in (stride, stride[1])]
    official = [
        (stride, known)
        for known_stride, known in _FINE_TUNING_INPUTS.get(patch_size, ())
        for stride, frames in candidates
        if stride[1] == known_stride and frames <= known < frames + known_stride
    ]
    stride, frames = (asked or official or candidates)[0]
    notes.append(f"an input of {frames} frames with patch stride {stride[1]} was inferred from {patches} positions")
    if len(candidates) > 1 and not asked:
        others = ", ".join(f"stride {s[1]} with {f} frames" for s, f in candidates if s != stride)
        notes.append(f"{others} would also fit the file: pass patch_stride to choose")
        if not official:
            warnings.warn(
                f"{source} does not record its patch stride: stride {stride[1]} with {frames} frames is assumed, but "
                f"it would also fit {others}. Say which with patch_stride=.",
                stacklevel=2,
            )
    return {"num_mel_bins": _MEL_BINS, "num_frames": frames, "patch_stride": stride}
