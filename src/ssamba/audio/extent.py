"""Decide where the samples of a file made of chunks end, whatever its size fields state.

Recorders that lose power or that count in 32 bits leave sizes that are wrong, and decoders believe them. Here a size
counts only if the file agrees with it: where the samples end, the file ends, or another chunk, a tag or another file
begins. If no size agrees, the fields, the length of the file and the bytes themselves are weighed: either a field is
wrong and the recording is complete, or the end of the recording is missing.

Offsets and sizes are in bytes.
"""

from __future__ import annotations

import re
import struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ssamba.audio.chunks import PLACEHOLDERS, SEARCH_BYTES, ChunkedFile, Chunks, read_headers
from ssamba.audio.contents import Contents, Part, Raw
from ssamba.audio.files import Bytes

Values: TypeAlias = "npt.NDArray[np.float64]"

_LOOK_BYTES = 1 << 15
"""How many bytes are looked at in each place to tell samples from refuse."""
_FEW_VALUES = 1024
"""Fewer values than this are judged by their level alone."""
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_FILE = re.compile(rb"(?s:(?:RIFF|RF64|BW64).{4}WAVE|FORM.{4}AIF[FC]|riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb)")


def inspect_chunks(data: Bytes, start: int, limit: int) -> tuple[Contents, int] | None:
    """Find the samples of the file at `start`, which extends to `limit` at most.

    Returns:
        Its contents, with one part, and the offset where it ends; None if its headers are beyond repair.
    """
    file = read_headers(data, start, limit)
    if file is None or file.samples_at > limit:
        return None
    sizes = (size for size in (file.claimed, *file.counts, *file.hints) if size is not None)
    for size in sorted(sizes, key=lambda size: file.raw is not None and size % file.frame_bytes > 0):
        if (found := _agreeing_end(data, file, size)) is not None:
            end, (file_end, is_regular) = _longer_by_pad(data, file, found)
            file.is_regular = file.is_regular and is_regular
            if (chunk := _counted_chunk(data, file, end)) is not None:
                return _contents(file, chunk, file.limit, size), file.limit
            return _contents(file, end, file_end, _contradiction(file, end)), file_end
    rest = file.present - (file.claimed or 0)
    if file.claimed and 0 <= rest < file.frame_bytes and _before_chunks(data, file) == limit:
        return _contents(file, file.samples_at + file.claimed, limit), limit  # a few bytes more than the samples
    return _weigh(data, file)


def _weigh(data: Bytes, file: ChunkedFile) -> tuple[Contents, int]:
    """Decide for a file in which no size field says where the samples end."""
    claimed = file.claimed
    wrapped = claimed is not None and file.present >= 2**32 and (file.present - claimed) % 2**32 < file.frame_bytes
    if not wrapped and (joined := _next_file(data, file)) is not None:
        file.limit = joined
    end = _before_chunks(data, file)
    padding = _padding(data, file, end)
    if file.raw:
        end -= (end - file.samples_at) % file.frame_bytes
    present = end - file.samples_at
    if claimed is None or claimed in PLACEHOLDERS:
        contents = _contents(file, end - padding, file.limit)
        text = f"its header does not state the size of its samples, and {padding} bytes at its end look like padding"
        return contents.with_verdict("wrong header", text) if padding else contents, file.limit
    # The length that the outermost header states is another witness, unless it follows from the size of the samples.
    claimed_end, total_end = file.samples_at + claimed, file.total_end
    fits = total_end is not None and abs(total_end - file.limit) <= 8  # some state the whole length, not the rest
    if claimed > present:
        counts_header = claimed - present in (file.samples_at - file.start, 44)
        if counts_header or (fits and total_end is not None and total_end < claimed_end):
            return _contents(file, end - padding, file.limit, claimed), file.limit
        return _cut(file, end, claimed), file.limit
    wrapped = present >= 2**32 and (present - claimed) % 2**32 < file.frame_bytes
    slack = 8 if file.frame_bytes > 1 or total_end != file.limit else 0
    accounted = fits and total_end is not None and total_end > claimed_end + slack
    if wrapped or _continues(data, file, claimed_end, end, accounted):
        return _contents(file, end - padding, file.limit, claimed), file.limit
    reason = f"{file.limit - claimed_end:,} bytes after its samples are not audio, and are left out"
    return _contents(file, claimed_end, file.limit).with_verdict("wrong header", reason), file.limit


def _agreeing_end(data: Bytes, file: ChunkedFile, size: int) -> tuple[int, tuple[int, bool]] | None:
    """Return where samples of this size end, and `_file_end`; None if the rest of the file has another form."""
    at, frame_bytes = file.samples_at, file.frame_bytes
    if size < 0 or size - file.present >= max(2, frame_bytes):
        return None
    if size == 0 and file.present >= 8 and not (file.chunks and file.chunks.is_plausible(data, at, file.limit)):
        return None  # a size that was never filled in, not an empty chunk
    end = min(at + size, file.limit)
    if file.raw and size % frame_bytes:  # a part of a frame is too much, or lacks the rest
        end = at + size - size % frame_bytes
        longer = end + frame_bytes
        found = _file_end(data, longer, file) if longer <= file.limit else None
        is_needed = found is not None and (any(data[end:longer]) or _file_end(data, end, file) is None)
        if found is not None and is_needed and _before_chunks(data, file) >= longer:
            return longer, found
    found = _file_end(data, end, file)
    return None if found is None else (end, found)


def _longer_by_pad(data: Bytes, file: ChunkedFile, found: tuple[int, tuple[int, bool]]) -> tuple[int, tuple[int, bool]]:
    """Return `found`, unless what was taken for pad bytes after the samples are samples.

    A count of samples may include them, and pad bytes are zeros.
    """
    end, frame_bytes = found[0], file.frame_bytes
    if file.chunks is None or file.raw is None:
        return found
    aligned = min(file.limit, end + -(end - file.samples_at) % file.chunks.alignment)
    for size in file.counts:
        other = _agreeing_end(data, file, size)
        if other is not None and end < other[0] <= aligned:
            return other
    if (end - file.samples_at) % frame_bytes == 0:
        used = len(data[end:aligned].rstrip(b"\0"))
        longer = end + used + -used % frame_bytes
        if longer <= aligned:
            return longer, found[1]
    return found


def _file_end(data: Bytes, at: int, file: ChunkedFile) -> tuple[int, bool] | None:
    """Return where the file ends whose samples end at `at`, and whether the sizes of all chunks lead there.

    None if neither a chunk, nor a tag, another file or the end follows at `at`.
    """
    chunks, limit = file.chunks, file.limit
    alignment = chunks.alignment if chunks else 1
    knows_chunk = False
    while True:
        starts = at + -(at - file.samples_at) % alignment, at
        if limit - at in (0, starts[0] - at):
            return limit, True
        if chunks and alignment == 1 and limit - at == 1 and limit % 2 == 0 and not data[at]:
            return limit, True  # libsndfile makes the length of a CAF even
        for start in starts:
            if _FILE.match(data, start, limit):
                return start, True
            if data[start : start + 11].startswith(_TAGS):
                return limit, True
        known = [chunks is not None and chunks.names.match(data, start, limit) is not None for start in starts]
        heads = [start for start in starts if chunks and chunks.is_plausible(data, start, limit)]
        if chunks is None or not heads:
            return (limit, False) if knows_chunk or any(known) else None
        knows_chunk = knows_chunk or any(known)
        _, size = chunks.read(data, heads[0])
        at = heads[0] + chunks.head_bytes + max(0, size)
        if at >= limit + chunks.alignment:
            return limit, False
        at = min(at, limit)


def _next_file(data: Bytes, file: ChunkedFile) -> int | None:
    """Return where another file of the same format begins that was appended to this one."""
    magic = re.compile(re.escape(data[file.start : file.start + 4]))
    at = file.samples_at
    while found := magic.search(data, at, file.limit):
        if _FILE.match(data, found.start(), file.limit):
            return found.start()
        at = found.end()
    return None


def _before_chunks(data: Bytes, file: ChunkedFile) -> int:
    """Return where the samples end: before the chunks and tags at the end of the file, if there are any."""
    chunks, limit = file.chunks, file.limit
    first = max(file.samples_at, limit - SEARCH_BYTES)
    if limit - 128 >= first and data[limit - 128 : limit - 125] == b"TAG":
        limit -= 128
    end = limit
    if (tag := data[first:limit].rfind(b"APETAGEX", -4096)) >= 0:
        end = first + tag
    return end if chunks is None else _first_chunk(data, chunks, first, end, limit)


def _first_chunk(data: Bytes, chunks: Chunks, first: int, end: int, limit: int) -> int:
    """Return where the chunks begin, between `first` and `end`, that lead to `limit`; `end` if there are none."""
    at = first
    while found := chunks.names.search(data, at, end):
        if _leads_to(data, found.start(), limit, chunks):
            return found.start()
        at = found.start() + 1
    return end


def _counted_chunk(data: Bytes, file: ChunkedFile, end: int) -> int | None:
    """Return where chunks begin before `end` that lead to the end of the file, as if their bytes were samples."""
    if file.chunks is None:
        return None
    first = max(file.samples_at, end - _LOOK_BYTES // 2)
    at = _first_chunk(data, file.chunks, first, end, file.limit)
    is_other_file = file.chunks.samples in data[at:end]
    return None if at == end or is_other_file else at


def _padding(data: Bytes, file: ChunkedFile, end: int) -> int:
    """Return how many bytes of the last whole frames before `end` are padding.

    They are zeros, and taken for samples where most samples are zeros.
    """
    frame_bytes, alignment = file.frame_bytes, file.chunks.alignment if file.chunks else 1
    alignment = max(alignment, 2 if file.container == "CAF" else 1)  # libsndfile makes its length even
    if file.raw is None or frame_bytes >= alignment or (end - file.samples_at) % alignment:
        return 0
    last = end - (end - file.samples_at) % frame_bytes
    first = max(file.samples_at, last - 4096 * frame_bytes)
    silent = sum(not any(data[at : at + frame_bytes]) for at in range(first, last, frame_bytes))
    if 2 * silent > (last - first) // frame_bytes:
        return 0
    padded = last
    while end - padded + frame_bytes < alignment and not any(data[padded - frame_bytes : padded]):
        padded -= frame_bytes
    return last - padded


def _leads_to(data: Bytes, at: int, limit: int, chunks: Chunks) -> bool:
    """Return whether chunks stand one after the other from `at` to the end."""
    while chunks.is_plausible(data, at, limit):
        _, size = chunks.read(data, at)
        ends = list(chunks.ends(at + chunks.head_bytes, size))
        if any(abs(limit - end) <= 1 for end in ends):
            return True
        at = next((end for end in ends if chunks.is_plausible(data, end, limit)), limit)
    return False


def _continues(data: Bytes, file: ChunkedFile, at: int, end: int, is_accounted: bool) -> bool:
    """Return whether the bytes from `at` to `end`, in no chunk, look like samples and not like refuse.

    Args:
        data: the file.
        file: its headers.
        at: end of the samples by their size.
        end: end of the bytes in question.
        is_accounted: whether the outermost header counts these bytes.
    """
    if is_accounted and at - file.samples_at < file.frame_bytes:
        return True  # nothing is known that they would have to resemble
    raw = file.raw or Raw("PCM_U8", 1, 1, "LITTLE")
    size = max(1, _LOOK_BYTES // file.frame_bytes) * file.frame_bytes
    at += -(at - file.samples_at) % file.frame_bytes
    known = _values(b"".join(_excerpts(data, file.samples_at, at, size, file.frame_bytes)), raw)
    contents = _excerpts(data, at, end, size, file.frame_bytes)
    is_octets = raw.subtype in ("PCM_U8", "PCM_S8", "ULAW", "ALAW")
    if not contents or (not (is_octets and is_accounted) and any(_is_text(content) for content in contents)):
        return False  # samples of 8 bits may read as text
    filling = [content[0] for content in contents if content.count(content[0]) == len(content)]
    is_filled = bool(filling) and (filling[0] == 0 or end - at > 8)
    if is_filled and filling[0] != data[at - 1] and not is_accounted:
        return False  # filled up with one value
    return all(_alike(_values(content, raw), known, raw, is_accounted) for content in contents)


def _excerpts(data: Bytes, first: int, end: int, size: int, frame_bytes: int) -> list[bytes]:
    """Return the beginning, the middle and the end of a range in whole frames, each of `size` bytes at most."""
    starts = (first, first + (end - first) // 2 // frame_bytes * frame_bytes, max(first, end - size))
    return [data[start : min(end, start + size)] for start in dict.fromkeys(starts) if start < end]


def _is_text(content: bytes) -> bool:
    return sum(map(content.count, range(32, 127))) > 0.95 * len(content)


def _alike(values: Values, known: Values, raw: Raw, is_accounted: bool) -> bool:
    """Return whether values may be samples of the recording whose samples `known` are some of."""
    if raw.subtype in ("FLOAT", "DOUBLE"):
        return bool(np.isfinite(values).all() and np.abs(values).max() <= 100 * max(1.0, np.abs(known).max(initial=0)))
    level, level_known = (float(np.sqrt(np.mean(x**2))) if len(x) else 0.0 for x in (values, known))
    if len(values) < _FEW_VALUES:
        return is_accounted or level <= 8 * level_known + 0.001
    # Coded data are noise of full scale, without correlation; few recordings are, and those all along.
    return level < 0.25 or level < 2 * level_known or abs(_correlation(values, raw.channels)) > 0.2


def _correlation(values: Values, lag: int) -> float:
    energy = float(values @ values)
    return float(values[lag:] @ values[:-lag]) / energy if energy and len(values) > lag else 0.0


def _values(content: bytes, raw: Raw) -> Values:
    """Return samples of all channels one after the other, where full scale is 1: (samples * channels,)."""
    order = "<" if raw.endian == "LITTLE" else ">"
    if raw.subtype in ("FLOAT", "DOUBLE"):
        kind = np.dtype(order + ("f4" if raw.subtype == "FLOAT" else "f8"))
        with np.errstate(invalid="ignore"):  # bytes that are no samples may be signaling NaN
            return np.frombuffer(content, kind, len(content) // kind.itemsize).astype(np.float64)
    octets = np.frombuffer(content, np.uint8)
    if raw.subtype in ("PCM_U8", "ULAW", "ALAW"):
        return (octets.astype(np.float64) - 128) / 128
    width = 1 if raw.subtype == "PCM_S8" else int(raw.subtype[4:]) // 8
    octets = octets[: len(octets) // width * width].reshape(-1, width)
    values: Values = octets[:, -1 if order == "<" else 0].astype(np.int8).astype(np.float64) / 128
    if width > 1:
        values += octets[:, -2 if order == "<" else 1] / 32768.0
    return values


def _contradiction(file: ChunkedFile, end: int) -> int | None:
    """Return a stated size that is not that of the samples, if there is one."""
    size = end - file.samples_at
    for stated in (file.claimed, *file.counts):
        if stated is not None and stated not in PLACEHOLDERS and not 0 <= stated - size < max(2, file.frame_bytes):
            return stated
    return None


def _contents(file: ChunkedFile, end: int, file_end: int, claimed: int | None = None) -> Contents:
    """Return contents that are whole: samples up to `end`, although a header claims another size."""
    size, total = end - file.samples_at, file.total_end
    is_plain = file.is_regular and file.claimed is not None and 0 <= file.claimed - size < max(2, file.frame_bytes)
    is_plain = is_plain and (total is None or -1 <= total - file_end <= 8)
    is_plain = is_plain and (file.container != "W64" or file_end == end)  # libsndfile reads what follows
    part = _part(file, end, file_end, is_plain and claimed is None)
    if claimed is None:
        return Contents(parts=(part,))
    stated = None if file.raw is None else max(0, claimed) // file.frame_bytes
    reason = f"its header claims {claimed:,} bytes of samples, the file holds {size:,}"
    return Contents("wrong header", reason, (part,), stated)


def _cut(file: ChunkedFile, end: int, claimed: int) -> Contents:
    """Return contents that lack their end."""
    size = end - file.samples_at
    reason = f"its header claims {claimed:,} bytes of samples, the file holds {size:,}"
    stated = None if file.raw is None else claimed // file.frame_bytes
    return Contents("cut", reason, (_part(file, end, file.limit, file.raw is None),), stated, size / claimed)


def _part(file: ChunkedFile, end: int, file_end: int, is_plain: bool) -> Part:
    """Return what a decoder reads: the file, the bare samples, or coded samples behind a corrected header."""
    if is_plain:
        return Part(((file.start, file_end),))
    samples = file.samples_at, end
    if file.raw is not None:
        return Part((samples,), file.container, file.raw, (end - file.samples_at) // file.frame_bytes)
    head = bytearray(file.head)
    size = min(end - file.samples_at + file.size_offset, 256 ** struct.calcsize(file.size_format) // 2 - 1)
    struct.pack_into(file.size_format, head, file.size_at, size)
    return Part((bytes(head), samples), file.container)
