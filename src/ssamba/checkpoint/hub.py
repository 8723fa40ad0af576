"""Fetch checkpoints named `hf:OWNER/NAME` through the cache of huggingface_hub."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from ssamba.errors import CheckpointError, MissingExtraError

PREFIX = "hf:"
_FOLDER_FILES = ["config.json", "model.safetensors", "preprocessor_config.json"]
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")


def fetch(name: str) -> tuple[Path, str]:
    """Download a hub checkpoint, or find it in the local cache.

    Args:
        name: `hf:OWNER/NAME`, optionally `/FILE.pth` for one file of the repository, optionally `@REVISION` (a
            commit, tag or branch) to pin the version.

    Returns:
        The local folder or file, and a note with the commit, so that it can be pinned.

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
    if revision != folder.name:
        note += f"; name it {PREFIX}{repo}{'/' + file if file else ''}@{folder.name} to pin it"
    if file is not None:
        if not (folder / file).exists():
            raise CheckpointError(f"{name}: the repository has no file {file}")
        return folder / file, note
    if (folder / "config.json").exists():
        return folder, note
    candidates = sorted(folder.glob("**/*.pth"))
    if len(candidates) == 1:
        return candidates[0], note
    if candidates:
        names = ", ".join(str(c.relative_to(folder)) for c in candidates)
        raise CheckpointError(f"{name} holds several checkpoints ({names}): choose one, as {PREFIX}{repo}/FILE")
    raise CheckpointError(f"{name} holds no checkpoint: expected config.json with model.safetensors, or a .pth file")


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
