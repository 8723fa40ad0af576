"""Fetch checkpoints named `hf:OWNER/NAME` through the cache of huggingface_hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ssamba.errors import CheckpointError, MissingExtraError

PREFIX = "hf:"
_FOLDER_FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")


class Fetched(NamedTuple):
    """A hub checkpoint on this machine."""

    path: Path
    """Folder or file."""
    name: str
    """Name that pins it: `hf:OWNER/NAME@COMMIT`, or `hf:OWNER/NAME/FILE@COMMIT`."""
    note: str
    """Where it was fetched from, and how to pin it."""


def fetch(name: str) -> Fetched:
    """Download a hub checkpoint, or find it in the local cache.

    Args:
        name: `hf:OWNER/NAME`, optionally `/FILE.pth` for one file of the repository, optionally `@REVISION` (a
            commit, tag or branch) to pin the version.

    Raises:
        CheckpointError: the name is malformed, the hub cannot be reached and nothing is cached, or there is no such
            repository, revision or checkpoint.
        MissingExtraError: huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None:
        raise CheckpointError(
            f"{name!r} is not a hub name: expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE"
        )
    repo, file, revision = match["repo"], match["file"], match["revision"]
    folder = _snapshot(name, repo, revision, [file] if file else _FOLDER_FILES)
    if file is None and not (folder / "config.json").exists():
        folder = _snapshot(name, repo, folder.name, ["*.pth"])
    note = f"fetched from {PREFIX}{repo} at commit {folder.name}"
    pinned = f"{PREFIX}{repo}{'/' + file if file else ''}@{folder.name}"
    if revision != folder.name:
        note += f"; name it {pinned} to pin it"
    if file is not None:
        if not (folder / file).exists():
            raise CheckpointError(f"{name}: the repository has no file {file}")
        return Fetched(folder / file, pinned, note)
    if (folder / "config.json").exists():
        return Fetched(folder, pinned, note)
    candidates = sorted(folder.glob("**/*.pth"))
    if len(candidates) == 1:
        return Fetched(candidates[0], pinned, note)
    if candidates:
        names = ", ".join(str(c.relative_to(folder)) for c in candidates)
        raise CheckpointError(f"{name} holds several checkpoints ({names}): choose one, as {PREFIX}{repo}/FILE")
    raise CheckpointError(f"{name} holds no checkpoint: expected config.json with model.safetensors, or a .pth file")


def cached_folders(*files: str) -> Iterator[tuple[str, tuple[str, ...], Path]]:
    """Yield the snapshots in the cache that have all of these files, without a network.

    Yields:
        The name that pins the snapshot, the names that stand for it now (`hf:OWNER/NAME` for the newest that was
        fetched), and its folder.
    """
    if find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import constants

    for cache in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = PREFIX + cache.name.removeprefix("models--").replace("--", "/")
        main = cache / "refs" / "main"
        newest = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
        for folder in sorted((cache / "snapshots").glob("*")):
            if all((folder / file).is_file() for file in files):
                yield f"{name}@{folder.name}", (name,) if folder.name == newest else (), folder


def _snapshot(name: str, repo: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise MissingExtraError(f'{name} needs huggingface_hub: pip install "ssamba[hf]"') from None
    try:
        if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
            # A commit never changes, so its cached files need no network.
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                cached = Path(hub.snapshot_download(repo, revision=revision, local_files_only=True))
                if any(file for pattern in patterns for file in cached.glob(pattern)):
                    return cached
        return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name} is not a hub name ({error}): expected hf:OWNER/NAME") from None
    except errors.GatedRepoError:
        raise CheckpointError(f"{name} is gated: accept its terms on the hub, then run `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: the repository has no revision {revision!r}; check it on the hub") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: no such repository, or it is private: check the name, or run `hf auth login`"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name} is not in the local cache and the hub could not be reached ({type(error).__name__}). Connect once "
            f"to fetch it (`hf download {repo}` does only that), unset HF_HUB_OFFLINE if it is set, or download the "
            "files on another machine and give their folder's path instead."
        ) from None
