"""Find and fetch checkpoints in repositories of the Hugging Face hub, through the cache of huggingface_hub.

    fetch("hf:OWNER/NAME")                      the checkpoint in a repository
    fetch("hf:OWNER/NAME/FILE.pth@REVISION")    one file of it, or one folder with a checkpoint of ours
    fetch_matching(name, repo, None, choose)    the file that `choose` picks among the files of a repository

A repository is listed first, with one request, and only the files of the chosen checkpoint are downloaded. Where the
hub cannot be reached (or `HF_HUB_OFFLINE` is set), what the cache holds is used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import NamedTuple, cast

from ssamba.checkpoint.files import CONFIG_FILE, PREPROCESSOR_FILE, WEIGHTS_FILE
from ssamba.errors import CheckpointError, MissingExtraError
from ssamba.files import write_text
from ssamba.hashing import file_checksum

PREFIX = "hf:"
WEIGHTS_SUFFIXES = (".pth", ".pth.tar", ".pt", ".safetensors", ".bin", ".ckpt", ".th")
"""Names of files that may hold weights, the preferred ones first."""
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_PAGE = "https://huggingface.co"
_MAX_LISTED = 20
# Of each request while a repository is listed; a network that drops packets answers never.
_TIMEOUT_S = 5.0
_log = logging.getLogger("ssamba")


class RemoteFile(NamedTuple):
    """Size and checksum of a file of the hub, before it is downloaded."""

    size: int | None = None
    """Bytes; None where the hub does not say."""
    sha256: str | None = None
    """Checksum that the hub states for large files."""


class Listing(NamedTuple):
    """The files of one commit of a repository."""

    repo: str
    """`OWNER/NAME`."""
    commit: str
    """The 40 hexadecimal digits of the commit."""
    files: Mapping[str, RemoteFile]
    """Facts by path."""
    is_cached: bool = False
    """Whether these are only the files that the local cache holds."""

    def weights(self) -> list[str]:
        """Return the paths that may be weights, sorted."""
        return sorted(path for path in self.files if path.lower().endswith(WEIGHTS_SUFFIXES))

    def named(self, file: str) -> str:
        """Return the name that stands for one file in this repository."""
        return f"{PREFIX}{self.repo}/{file}"

    def described(self) -> str:
        """Return a list of the files with their sizes, those that may be weights first."""
        weights = self.weights()
        paths = weights or sorted(self.files)
        if not paths:
            return "no file at all"
        texts = [f"{path}{f' ({_megabytes(size)})' if (size := self.files[path].size) else ''}" for path in paths]
        more = f" and {len(texts) - _MAX_LISTED} more" if len(texts) > _MAX_LISTED else ""
        return f"{'' if weights else 'no weights, only '}{', '.join(texts[:_MAX_LISTED])}{more}"


class Choice(NamedTuple):
    """The checkpoint that was chosen among the files of a repository."""

    path: str
    """A file of weights, or a folder of ours ("" is the root)."""
    files: tuple[str, ...]
    """Files to download, the weights first."""
    note: str = ""
    """Reason for choosing this file."""
    is_certain: bool = False
    """Whether no other file of the repository could have been chosen instead."""


class Fetched(NamedTuple):
    """A hub checkpoint on this machine."""

    path: Path
    """Folder or file."""
    name: str
    """Name that pins it: `hf:OWNER/NAME@COMMIT`, or `hf:OWNER/NAME/FILE@COMMIT`."""
    sha256: str
    """Checksum of the file of weights, 64 hexadecimal digits."""
    notes: tuple[str, ...]
    """Text for the log: source, reason for the choice, and the name that pins this version."""


def fetch(name: str) -> Fetched:
    """Download a hub checkpoint, or find it in the local cache.

    Args:
        name: `hf:OWNER/NAME`, optionally `/FILE` for one file of the repository or a folder with a checkpoint of ours,
            optionally `@REVISION` (a commit, tag or branch) to pin the version.

    Raises:
        CheckpointError: the name is malformed, the hub cannot be reached and nothing is cached, there is no such
            repository, revision or checkpoint, or the file in the cache is damaged.
        MissingExtraError: huggingface_hub is not installed.
    """
    match = _NAME.fullmatch(name.removeprefix(PREFIX))
    if match is None or ".." in name:
        raise CheckpointError(
            f"{name!r} is not a hub name: expected hf:OWNER/NAME, hf:OWNER/NAME@REVISION or hf:OWNER/NAME/FILE"
        )
    file = match["file"]

    def choose(listing: Listing) -> Choice:
        return _named_file(name, listing, file) if file else _only_checkpoint(name, listing)

    by_hand = f"the files of its checkpoint{f', {file},' if file else ''}"
    return fetch_matching(name, match["repo"], match["revision"], choose, by_hand=by_hand)


def fetch_matching(
    name: str, repo: str, revision: str | None, choose: Callable[[Listing], Choice], *, by_hand: str
) -> Fetched:
    """Download the checkpoint that `choose` picks among the files of a repository, or find it in the local cache.

    Args:
        name: what the user asked for, for messages.
        repo: `OWNER/NAME`.
        revision: commit, tag or branch; None is the main branch.
        choose: gets the listing; it raises a CheckpointError if nothing fits.
        by_hand: what to download by hand where the hub cannot be reached, for the message.

    Raises:
        CheckpointError, MissingExtraError: as `fetch`.
    """
    if find_spec("huggingface_hub") is None:
        raise MissingExtraError(
            f'{name} needs huggingface_hub: pip install "ssamba[hub]", or {_by_hand(_PAGE, repo, revision, by_hand)}'
        )
    from huggingface_hub import constants

    if revision is not None and _COMMIT.fullmatch(revision):
        # A commit never changes, so what is cached needs no network.
        for listing in cached_listings(repo, revision):
            choice = None
            with contextlib.suppress(CheckpointError):
                choice = choose(listing)
            if choice is not None and choice.is_certain:
                return _fetched(name, listing, choice, revision)
    try:
        if constants.HF_HUB_OFFLINE:
            raise CheckpointError(_unreachable(name, repo, revision, "HF_HUB_OFFLINE is set", by_hand))
        listing = _list(name, repo, revision, by_hand)
    except CheckpointError as problem:
        return _from_cache(name, repo, revision, choose, problem)
    return _fetched(name, listing, choose(listing), revision)


def cached_folders(*files: str) -> Iterator[tuple[str, tuple[str, ...], Path]]:
    """Yield the snapshots in the cache that have all of these files, without a network.

    Yields:
        The name that pins the snapshot, the names that stand for it now (`hf:OWNER/NAME` for the newest that was
        fetched), and its folder.
    """
    for cache in sorted(_cache_folder().glob("models--*--*")) if find_spec("huggingface_hub") else ():
        name = PREFIX + cache.name.removeprefix("models--").replace("--", "/")
        newest = _read_ref(cache, "main")
        for folder in sorted((cache / "snapshots").glob("*")):
            if all((folder / file).is_file() for file in files):
                yield f"{name}@{folder.name}", (name,) if folder.name == newest else (), folder


def cached_listings(repo: str, revision: str | None = None) -> Iterator[Listing]:
    """Yield the commits of a repository that the cache holds files of: the revision's, and without one all others, too.

    No network is used.
    """
    if find_spec("huggingface_hub") is None:
        return
    cache = _repo_folder(repo)
    commit = revision if revision and _COMMIT.fullmatch(revision) else _read_ref(cache, revision or "main")
    folders = [folder for folder in (cache / "snapshots").glob("*") if folder.is_dir()]
    folders.sort(key=lambda folder: (folder.name != commit, -folder.stat().st_mtime))
    for folder in folders:
        if folder.name == commit or revision is None:
            files = {
                path.relative_to(folder).as_posix(): RemoteFile(path.stat().st_size, _stated_sha256(path))
                for path in folder.glob("**/*")
                if path.is_file()
            }
            yield Listing(repo, folder.name, files, is_cached=True)


def cached_path(listing: Listing, file: str) -> Path:
    """Return where the cache holds a file, or would hold it."""
    return _repo_folder(listing.repo) / "snapshots" / listing.commit / file


def choice_of(listing: Listing, file: str) -> Choice:
    """Return the choice of a file of weights: `model.safetensors` beside a `config.json` is the folder of both."""
    path = PurePosixPath(file)
    folder = _folder_of_ours(listing, str(path.parent)) if path.name == WEIGHTS_FILE else None
    return folder or Choice(file, (file,), is_certain=True)


def _named_file(name: str, listing: Listing, file: str) -> Choice:
    file = file.strip("/")
    if file not in listing.files:
        if (folder := _folder_of_ours(listing, file)) is not None:
            return folder
        raise CheckpointError(f"{name}: the repository has no file {file}. It holds {listing.described()}")
    return choice_of(listing, file)


def _only_checkpoint(name: str, listing: Listing) -> Choice:
    """Choose the folder of ours that a repository is, or its only file of weights."""
    if (folder := _folder_of_ours(listing, "")) is not None:
        return folder
    candidates = [path for path in listing.weights() if path != WEIGHTS_FILE]
    if len(candidates) == 1:
        return Choice(candidates[0], (candidates[0],))
    if candidates:
        raise CheckpointError(
            f"{name} holds several checkpoints: choose one, as {listing.named('FILE')}. It holds {listing.described()}"
        )
    raise CheckpointError(
        f"{name} holds no checkpoint: expected config.json with model.safetensors, or a .pth file. It holds "
        f"{listing.described()}"
    )


def _folder_of_ours(listing: Listing, folder: str) -> Choice | None:
    """Return the checkpoint of ours in a folder of a repository, if there is one."""
    weights, config, front_end = (
        str(PurePosixPath(folder, file)) for file in (WEIGHTS_FILE, CONFIG_FILE, PREPROCESSOR_FILE)
    )
    if weights not in listing.files or config not in listing.files:
        return None
    # The configuration is the last to arrive: where it is, all is there.
    files = (weights, *([front_end] if front_end in listing.files else []), config)
    return Choice("" if folder == "." else folder, files, is_certain=True)


def _from_cache(
    name: str, repo: str, revision: str | None, choose: Callable[[Listing], Choice], problem: CheckpointError
) -> Fetched:
    """Return the checkpoint in the cache that fits, or raise what kept it from being fetched."""
    from huggingface_hub import constants

    reason = None
    for listing in cached_listings(repo, revision):
        try:
            choice = choose(listing)
        except CheckpointError as error:
            reason = reason or error
            continue
        if not constants.HF_HUB_OFFLINE:
            _log.warning("%s: the hub could not be asked, so the copy in the local cache is used", name)
        return _fetched(name, listing, choice, revision)
    if reason is not None:
        raise CheckpointError(f"{problem} (Of the repository's files in the cache none fits: {reason})") from None
    raise problem


def _list(name: str, repo: str, revision: str | None, by_hand: str) -> Listing:
    """Ask the hub for the files of a repository."""
    import huggingface_hub as hub
    from huggingface_hub import constants

    api = hub.HfApi(endpoint=constants.ENDPOINT)
    with _hub_errors(name, repo, revision, by_hand):
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=_timeout_s())
    files = {
        one.rfilename: RemoteFile(one.size, None if one.lfs is None else one.lfs.sha256) for one in info.siblings or ()
    }
    return Listing(repo, str(info.sha), files)


def _timeout_s() -> float:
    """Return the timeout of a request: the user's `HF_HUB_ETAG_TIMEOUT`, or ours."""
    from huggingface_hub import constants

    return float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else _TIMEOUT_S


def _fetched(name: str, listing: Listing, choice: Choice, revision: str | None) -> Fetched:
    """Download the files of a choice that are not cached yet, and verify the weights."""
    paths = [_download(name, listing, file, revision) for file in choice.files]
    weights = paths[0]
    sha256 = file_checksum(weights)
    stated = listing.files[choice.files[0]].sha256 or _stated_sha256(weights)
    if stated is not None and sha256 != stated:
        blob = weights.resolve()
        raise CheckpointError(
            f"{name} is damaged in the local cache: {choice.files[0]} has the SHA-256 {sha256}, and the hub states "
            f"{stated}. Delete {blob} and load it again."
        )
    pinned = f"{PREFIX}{listing.repo}{f'/{choice.path}' if choice.path else ''}@{listing.commit}"
    note = f"fetched from {PREFIX}{listing.repo} at commit {listing.commit}"
    if revision != listing.commit:
        note += f"; name it {pinned} to pin it"
    path = weights if choice.path == choice.files[0] else weights.parent
    return Fetched(path, pinned, sha256, (*([choice.note] if choice.note else []), note))


def _download(name: str, listing: Listing, file: str, revision: str | None) -> Path:
    """Return the path of a file in the cache, downloading it if need be."""
    import huggingface_hub as hub
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    cached = cached_path(listing, file)
    if not cached.is_file():
        size, sha256 = listing.files[file]
        if sha256 is None or not (_repo_folder(listing.repo) / "blobs" / sha256).is_file():
            _log.info(
                "downloading %s%s of %s at commit %s",
                file,
                "" if size is None else f" ({_megabytes(size)})",
                listing.repo,
                listing.commit[:12],
            )
        hide = not _log.isEnabledFor(logging.WARNING) and not are_progress_bars_disabled()
        if hide:
            disable_progress_bars()
        try:
            with _hub_errors(name, listing.repo, revision, f"the file {file}"):
                # The download itself tries many times where the hub does not answer; this asks once.
                url = hub.hf_hub_url(listing.repo, file, revision=listing.commit, endpoint=constants.ENDPOINT)
                hub.get_hf_file_metadata(url, timeout=_timeout_s())
                cached = Path(
                    hub.hf_hub_download(listing.repo, file, revision=listing.commit, endpoint=constants.ENDPOINT)
                )
        finally:
            if hide:
                enable_progress_bars()
    if not listing.is_cached and revision != listing.commit:
        _write_ref(_repo_folder(listing.repo), revision or "main", listing.commit)
    return cached


@contextlib.contextmanager
def _hub_errors(name: str, repo: str, revision: str | None, by_hand: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into a CheckpointError that says what to do."""
    from huggingface_hub import errors

    # The base of the HTTP client's errors: httpx or requests, as the version of huggingface_hub has it.
    client_error = cast("type[Exception]", errors.HfHubHTTPError.__mro__[1])
    try:
        yield
    except errors.HFValidationError as error:
        raise CheckpointError(f"{name} is not a hub name ({error}): expected hf:OWNER/NAME") from None
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name}: {_page(repo)} is gated: accept its terms there, then run `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{name}: the repository has no revision {revision!r}: check it on {_page(repo)}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"{name}: the hub shows no such repository as {repo}, or it is private: check {_page(repo)}, and if you "
            "have access to it, run `hf auth login` or set HF_TOKEN"
        ) from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code if error.response is not None else None
        if code == 404:
            raise CheckpointError(
                f"{name}: the hub has no such repository, or no such revision or file in it (404): check {_page(repo)}"
            ) from None
        denied = "; your token may lack access (`hf auth login`)" if code in (401, 403) else ""
        said = f"the hub answered {code or error}{denied}"
        raise CheckpointError(_unreachable(name, repo, revision, said, by_hand)) from None
    except (json.JSONDecodeError, KeyError, errors.FileMetadataError):
        said = "what answered is not the hub; a proxy or login page?"
        raise CheckpointError(_unreachable(name, repo, revision, said, by_hand)) from None
    except (client_error, errors.LocalEntryNotFoundError, OSError) as error:
        said = _cause(error)
        raise CheckpointError(_unreachable(name, repo, revision, said, by_hand)) from None


def _cause(error: BaseException) -> str:
    """Return the first line of the error that began a chain of errors."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _unreachable(name: str, repo: str, revision: str | None, reason: str, by_hand: str) -> str:
    from huggingface_hub import constants

    remedy = "Unset it to download" if reason.startswith("HF_HUB_OFFLINE") else "Try again"
    text = _by_hand(constants.ENDPOINT, repo, revision, by_hand)
    return f"{name} is not in the local cache, and it could not be fetched ({reason}). {remedy}, or {text}"


def _by_hand(endpoint: str, repo: str, revision: str | None, what: str) -> str:
    return (
        f"do it by hand: open {endpoint}/{repo}/tree/{revision or 'main'} on another machine, download {what}, copy it "
        'here, and give its path: ssamba.load_model("PATH"), or -c PATH.'
    )


def _page(repo: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _repo_folder(repo: str) -> Path:
    return _cache_folder() / f"models--{repo.replace('/', '--')}"


def _read_ref(cache: Path, revision: str) -> str:
    """Return the commit that a branch or tag stood for when it was last fetched, or an empty string."""
    ref = cache / "refs" / revision
    return ref.read_text(encoding="utf-8").strip() if ref.is_file() else ""


def _write_ref(cache: Path, revision: str, commit: str) -> None:
    """Record the commit that a branch or tag stands for, as huggingface_hub does, where the cache can be written."""
    if _read_ref(cache, revision) != commit:
        with contextlib.suppress(OSError):
            write_text(cache / "refs" / revision, commit)


def _stated_sha256(path: Path) -> str | None:
    """Return the checksum that the cache states for a large file, which is the name of the file it links to."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if _SHA256.fullmatch(name) else None
