"""The authors' pretrained models by name: which file of their repository a name such as `ssamba-tiny-400` means.

    find_released("ssamba-tiny-400")            size tiny, 400 of 512 patches masked while pretraining
    choose_file(released, listing)              the file of the repository that fits

The repository does not document the names of its files, so a file is matched by the words and numbers of its path: size
(`tiny`, `small`, `base`) and masked patches (250, 300, 400), each from the file's own name or else from the innermost
folder that says it. Numbers of epochs, steps, batches and the like are no masked patches. States of optimizers,
fine-tuned models and SSAST's never fit.

Of several files that fit, these come first: the name that the authors' scripts use (`ssamba_tiny_400`), names without
further words, the `best` checkpoint, the last one of a training, the usual suffix (.pth), the outer folder. Files that
are equal in all of this and differ in content are an error that lists them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

from ssamba.checkpoint.hub import WEIGHTS_SUFFIXES, Choice, Fetched, Listing, choice_of, fetch_matching
from ssamba.errors import CheckpointError
from ssamba.model.create import SIZES

REPOSITORY = "attentionisallyouneed369/ssamba"
"""The authors' repository on the hub (README of github.com/SiavashShams/ssamba)."""
MASKED_PATCHES = (250, 300, 400)
"""Masked patches, of 512, that the authors pretrained with."""
DATA = "AudioSet-2M and LibriSpeech-960"
"""Training data of all of them."""

_AFFIX = "(?:ssamba|amba|model|patch|pretrained|mask)?"
_SIZE_WORD = re.compile(f"{_AFFIX}(tiny|small|base){_AFFIX}")
# DeiT's and Vim's short forms: alone, or directly before the masked patches.
_SHORT_SIZE = re.compile(r"(?<![a-z0-9])(ti|t|s|b)(?=[^a-z0-9]|$|(?:250|300|400)(?!\d))")
_SHORT_SIZES = {"ti": "tiny", "t": "tiny", "s": "small", "b": "base"}
_COUNT = re.compile(r"(?<!\d)(250|300|400)(?!\d)")
_TRAINING_STEP = ("epoch", "epochs", "ep", "step", "steps", "iter", "iters", "it", "checkpoint", "ckpt", "model")
_OTHER_NUMBER = ("lr", "seed", "batch", "bs", "f", "frames", "frame", "k", "h", "hz", "khz", "d", "dim", "e", "v")
_FINE_TUNED = re.compile(
    r"fine-?_?tun|(?<![a-z])(?:ft|sc|scv\d|ks|ksv\d|kws|sid|er|esc|as-?_?20k|us8k|cls|probe)(?![a-z])|esc-?_?50|"
    r"speech-?_?commands|urban|voxceleb|iemocap|classif|emotion"
)
_NO_MODEL = re.compile(r"optim|sched|scaler|rng|(?<![a-z])args(?![a-z])")
_PLAIN_WORD = re.compile(
    "s?samba|amba|audio|models?|patch(es)?|mask(s|ed)?|m|p|pretrain(ed|ing)?|weights?|checkpoints?|ckpts?|main|official|"
    "exp|best|last|final|epochs?|ep|steps?|iters?|state|dict|ti|t|s|b|full|pth|tar|pt|safetensors|bin|th"
)


class Released(NamedTuple):
    """A pretrained model that the authors released."""

    name: str
    """`ssamba-tiny-400`."""
    size: str
    """`tiny`, `small` or `base`."""
    masked_patches: int
    """Masked patches of 512 while pretraining."""
    parameters: int
    """Parameters of the encoder."""

    @property
    def script_name(self) -> str:
        """The name in the authors' scripts, `ssamba_tiny_400`."""
        return self.name.replace("-", "_")

    @property
    def dim(self) -> int:
        """Length D of an embedding."""
        return int(SIZES[self.size]["embed_dim"])


_PARAMETERS = {"tiny": 6_922_176, "small": 25_345_920, "base": 96_698_112}
RELEASED = tuple(
    Released(f"ssamba-{size}-{count}", size, count, _PARAMETERS[size])
    for size in SIZES
    for count in sorted(MASKED_PATCHES, reverse=True)
)
"""All of them."""
_BY_NAME = {name: one for one in RELEASED for name in (one.name, one.script_name)}
NAMES = f"ssamba-{{{','.join(SIZES)}}}-{{{','.join(map(str, MASKED_PATCHES))}}}"
"""The names in short, for messages."""


def find_released(text: str) -> Released | None:
    """Return the model that a name stands for, with or without `@REVISION`; None if it is no such name."""
    return _BY_NAME.get(text.partition("@")[0])


def fetch_released(name: str) -> Fetched:
    """Download the file that `NAME` or `NAME@REVISION` stands for, or find it in the local cache.

    Raises:
        CheckpointError: no file of the repository fits, several do, or it cannot be fetched; the message says what to
            do.
        MissingExtraError: huggingface_hub is not installed.
    """
    released, revision = _BY_NAME[name.partition("@")[0]], name.partition("@")[2] or None
    what = (
        f"the file of the {released.size} model with {released.masked_patches} masked patches ("
        f"{released.script_name} in the authors' scripts)"
    )
    return fetch_matching(name, REPOSITORY, revision, lambda listing: choose_file(released, listing), by_hand=what)


def choose_file(released: Released, listing: Listing) -> Choice:
    """Return the file of a repository that is a released model.

    Raises:
        CheckpointError: none fits, or several do equally well; the message lists them, and says how to name one.
    """
    fitting = {path: key for path in listing.weights() if (key := _rank(path, released)) is not None}
    asked = f"the {released.size} model with {released.masked_patches} masked patches"
    where = f"{listing.repo} at commit {listing.commit[:12]}"
    name_one = f"name it as {listing.named('FILE')}"
    if not fitting:
        raise CheckpointError(
            f"{released.name}: no file of {where} is recognized as {asked}. It holds {listing.described()}. "
            f"If one of them is what you mean, {name_one}"
        )
    ranked = sorted(fitting, key=lambda path: (fitting[path], path))
    equal = [path for path in ranked if fitting[path] == fitting[ranked[0]]]
    sums = {listing.files[path].sha256 for path in equal}
    if len(equal) > 1 and (len(sums) > 1 or None in sums):
        raise CheckpointError(
            f"{released.name}: {len(equal)} files of {where} could be {asked}: {', '.join(equal)}. Choose one, and "
            f"{name_one}"
        )
    others = f" (others that would fit: {', '.join(ranked[1:])}; {name_one})" if len(ranked) > 1 else ""
    note = f"{released.name} is {listing.named(ranked[0])}{others}"
    # In the cache a file may be missing that would come first.
    return choice_of(listing, ranked[0])._replace(note=note, is_certain=False)


def _rank(path: str, released: Released) -> tuple[int, ...] | None:
    """Return how well a path fits a model, the lowest first; None if it does not."""
    parts = [_spaced(part) for part in reversed(PurePosixPath(path).parts)]
    whole = " / ".join(parts)
    if _NO_MODEL.search(whole) or _FINE_TUNED.search(whole):
        return None
    family = next((found for part in parts if (found := _family(part))), "ssamba")
    sizes = _innermost(map(_sizes, parts))
    is_short = not sizes
    if is_short:
        sizes = _innermost(map(_short_sizes, parts))
    if family != "ssamba" or sizes != {released.size} or _innermost(map(_counts, parts)) != {released.masked_patches}:
        return None
    words = set(re.findall("[a-z]+", whole.replace(" ", "/")))
    others = [word for word in words if not (_PLAIN_WORD.fullmatch(word) or _SIZE_WORD.fullmatch(word))]
    suffix = next(index for index, suffix in enumerate(WEIGHTS_SUFFIXES) if path.lower().endswith(suffix))
    return (
        re.sub("[^a-z0-9]+", "_", PurePosixPath(path).stem.lower()) != released.script_name,
        is_short,
        bool(others),
        "best" not in words,
        words.isdisjoint(("last", "final")),
        -_step(parts[0]),
        suffix,
        len(parts),
    )


def _spaced(part: str) -> str:
    """Return a part of a path in lower case, with a space where CamelCase begins a word."""
    return re.sub("(?<=[a-z])(?=[A-Z])", " ", part).lower()


def _innermost(found: Iterable[set[str] | set[int]]) -> set[str] | set[int]:
    """Return the first set that is not empty."""
    return next((one for one in found if one), set())


def _family(part: str) -> str | None:
    if "amba" in part:
        return "ssamba"
    return "ssast" if re.search("(?<![a-z])(?:ss)?ast(?![a-z])", part) else None


def _sizes(part: str) -> set[str]:
    matches = (_SIZE_WORD.fullmatch(word) for word in re.findall("[a-z]+", part))
    return {match[1] for match in matches if match}


def _short_sizes(part: str) -> set[str]:
    return {_SHORT_SIZES[match[1]] for match in _SHORT_SIZE.finditer(part)}


def _counts(part: str) -> set[int]:
    """Return the numbers in a part of a path that are masked patches."""
    return {int(match[0]) for match in _COUNT.finditer(part) if not _is_other_number(part, match)}


def _is_other_number(part: str, match: re.Match[str]) -> bool:
    """Return whether a number counts epochs, steps, channels or the like, by the word before or after it."""
    before = re.search(r"([a-z]+)([^a-z0-9]*)$", part[: match.start()])
    # In 400_ep10 the word belongs to the number after it.
    after = re.match(r"([a-z]+)|[^a-z0-9]([a-z]+)(?![a-z]|[^a-z0-9]*\d)", part[match.end() :])
    if after and (after[1] or after[2]) in (
        "epoch",
        "epochs",
        "ep",
        "step",
        "steps",
        "iter",
        "iters",
        "k",
        "h",
        "hz",
        "khz",
        "d",
    ):
        return True
    if before is None:
        return False
    # The original saves `audio_model.N.pth` after each epoch N; `model_400` and `model-400` may be masked patches.
    if before[1] == "model":
        return before[2] == "."
    return before[1] in _TRAINING_STEP or before[1] in _OTHER_NUMBER


def _step(part: str) -> int:
    """Return the epoch or step that a name states, or -1."""
    pattern = rf"(?<![a-z])(?:{'|'.join(_TRAINING_STEP)})[^a-z0-9]*(\d+)"
    steps = [int(number) for number in re.findall(pattern, part)]
    # Not the masked patches themselves, as in model_400.
    return max((step for step in steps if step not in _counts(part)), default=-1)
