"""Follow the frames of MP3 and raw AAC (ADTS) files, without decoding.

Every frame header gives the frame's length. The first frame of an MP3 file often holds no sound but a Xing, Info or
VBRI header with the numbers of frames and bytes, which decoders believe: MP3 files that were joined, or cut by tools
that do not know it, have wrong ones. The same goes for the size of an ID3v2 tag at the beginning.

Offsets and sizes are in bytes.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import NamedTuple

from ssamba.audio.contents import Contents, Part
from ssamba.audio.files import Bytes

_MP3_KBPS = {  # (is MPEG-1, layer) -> bit rates by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"ID3")
_SYNC = re.compile(rb"\xff[\xe2-\xe7\xea-\xef\xf2-\xf7\xfa-\xff]")
_CHAIN = 3
"""Consecutive frames that confirm a sync word."""
_lengths: dict[bytes, int] = {}  # a file has a handful of distinct headers and 140,000 frames per hour


class _Run(NamedTuple):
    """MP3 frames that follow each other."""

    start: int
    stop: int
    """End of the last whole frame."""
    num_frames: int
    """Whole frames; the first may hold a header instead of sound."""
    fault: str = ""
    """What is missing."""


class _Header(NamedTuple):
    """What a Xing, Info or VBRI header states; 0 is not stated."""

    frames: int
    size: int
    frames_at: int
    size_at: int


def skip_id3v2(head: bytes) -> int:
    """Return the length of the ID3v2 tag at the start of `head`, or 0."""
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 127:
        return 0
    return 10 + _number(head[6:10], 7) + (10 if head[5] & 0x10 else 0)


def inspect_mp3(data: Bytes, tag: int, start: int) -> Contents | None:
    """Follow the frames of an MP3 file.

    Args:
        data: the file.
        tag: where ID3v2 tags begin.
        start: where the frames begin, if the sizes of the tags are right.

    Returns:
        Its contents, one part for each of the files that were joined; None if there is no frame.
    """
    first = _first_frame(data, tag, start)
    if first is None:
        return None
    contents = Contents(is_parsed=True)
    parts: list[Part] = []
    for run in _runs(data, first):
        header = _read_header(data, run)
        found = _compare(header, run, data)
        parts.append(_part(data, run, header if found is None or found.verdict != "cut" else None))
        if found is not None and contents.verdict != "cut":
            contents = found
    is_plain = first == start and len(parts) == 1 and not isinstance(parts[0].pieces[0], bytes)
    return contents if is_plain else replace(contents, parts=tuple(parts))


def _compare(header: _Header | None, run: _Run, data: Bytes) -> Contents | None:
    """Return what is missing from the frames, or what is wrong in the header that counts them; None if nothing is."""
    claimed, there, size = (header.frames if header else 0), run.num_frames - 1, run.stop - run.start
    fraction = run.num_frames / claimed if claimed > run.num_frames else None
    if run.fault:
        return Contents("cut", run.fault, fraction=fraction)
    if header is None or claimed in (0, there):
        return None
    if claimed == run.num_frames and header.size <= size:
        return None  # some encoders count the frame with the header, too
    reason = f"its header counts {claimed:,} MP3 frames, the file holds {there:,}"
    if claimed > there and header.size != size:
        return Contents("cut", reason, fraction=fraction)
    samples = 1152 if data[run.start + 1] & 8 else 576
    return Contents("wrong header", reason, claimed_samples=claimed * samples, is_parsed=True)


def _part(data: Bytes, run: _Run, header: _Header | None) -> Part:
    """Return the frames, behind a header that states their number and size if there is a header."""
    size = run.stop - run.start
    if header is None or (
        header.frames == run.num_frames - 1 and (not header.size_at or abs(header.size - size) <= size / 100)
    ):
        return Part(((run.start, run.stop),))
    length = mp3_frame(data, run.start)
    frame = bytearray(data[run.start : run.start + length])
    for at, value in ((header.frames_at, run.num_frames - 1), (header.size_at, size)):
        if at:
            frame[at - run.start : at - run.start + 4] = value.to_bytes(4, "big")
    return Part((bytes(frame), (run.start + length, run.stop)))


def _read_header(data: Bytes, run: _Run) -> _Header | None:
    first = data[run.start : run.start + 60]
    frames_at, size_at = 0, 0
    if (tag := max(first.find(b"Xing", 0, 44), first.find(b"Info", 0, 44))) >= 0:
        flags = first[tag + 7]
        frames_at = tag + 8 if flags & 1 else 0
        size_at = tag + (12 if flags & 1 else 8) if flags & 2 else 0
    elif first[36:40] == b"VBRI":
        frames_at, size_at = 50, 46
    else:
        return None
    frames, size = (int.from_bytes(first[at : at + 4], "big") if at else 0 for at in (frames_at, size_at))
    return _Header(frames, size, frames_at and run.start + frames_at, size_at and run.start + size_at)


def _first_frame(data: Bytes, tag: int, start: int) -> int | None:
    """Return where the frames begin, even if a tag before them states another size."""
    at = tag
    while at < start:
        content_end = _id3v2_end(data, at, start)
        early = _find_frames(data, content_end, start) if content_end < start else None
        if early is not None:
            return early
        at += skip_id3v2(data[at : at + 10]) or start
    return start if mp3_frame(data, start) else _find_frames(data, _id3v2_end(data, tag, len(data)), len(data))


def _id3v2_end(data: Bytes, at: int, stop: int) -> int:
    """Return where the frames of an ID3v2 tag and the zeros after them end, `stop` at most."""
    id_bytes, size_bytes, head_bytes = (3, 3, 6) if data[at + 3] == 2 else (4, 4, 10)
    bits = 7 if data[at + 3] == 4 else 8
    at += 10
    while at + head_bytes <= stop and re.fullmatch(rb"[A-Z][A-Z0-9]+", data[at : at + id_bytes]):
        at += head_bytes + _number(data[at + id_bytes : at + id_bytes + size_bytes], bits)
    while at < stop and data[at] == 0:
        at += 1
    return min(at, stop)


def _number(digits: bytes, bits: int) -> int:
    value = 0
    for digit in digits:
        value = value << bits | digit
    return value


def mp3_frame(data: Bytes, at: int) -> int:
    """Return the length of the MPEG audio frame whose header is at `at`, or 0 if there is no (fixed-rate) header."""
    head = data[at : at + 3]
    length = _lengths.get(head)
    if length is None:
        length = _mp3_length(head)
        if len(_lengths) < 4096:
            _lengths[head] = length
    return length


def _mp3_length(head: bytes) -> int:
    if len(head) < 3 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_index, hz_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or hz_index == 3 or rate_index in (0, 15):
        return 0
    bits_s = 1000 * _MP3_KBPS[version == 3, layer][rate_index]
    hz = _MP3_HZ[version][hz_index]
    if layer == 1:
        return (12 * bits_s // hz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits_s // hz + padding


def _runs(data: Bytes, start: int) -> list[_Run]:
    """Return the frames of the file; those of each of the files that were joined, if a header or tag divides them."""
    runs: list[_Run] = []
    first, at, count, end = start, start, 0, len(data)
    stream = data[start + 1] & 0xFE  # version and layer, the same in every frame
    while at + 4 <= end:
        length = mp3_frame(data, at)
        if not length or data[at + 1] & 0xFE != stream:
            is_tag = data[at : at + 11].startswith(_TAGS)
            after = _find_frames(data, at + 1, end, None if is_tag else stream)
            if after is None:
                break
            if is_tag:
                runs.append(_Run(first, at, count))
                first, count, stream = after, 0, data[after + 1] & 0xFE
            at = after
            continue
        if at + length > end:
            fault = f"its last MP3 frame is cut ({end - at} of {length} bytes are there)"
            return [*runs, _Run(first, at, count, fault)]
        at += length
        count += 1
    return [part for run in (*runs, _Run(first, at, count)) for part in _divide(data, run)]


def _divide(data: Bytes, run: _Run) -> list[_Run]:
    """Split a run at further Xing or VBRI headers if its own header counts fewer frames than it has."""
    header = _read_header(data, run)
    if header is None or header.frames in (0, run.num_frames - 1, run.num_frames) or header.frames > run.num_frames:
        return [run]
    runs, first, at, count = [], run.start, run.start, 0
    while at < run.stop:
        length = mp3_frame(data, at)
        if not length:
            found = _find_frames(data, at + 1, run.stop, data[run.start + 1] & 0xFE)
            if found is None:
                break
            at = found
            continue
        if count and _read_header(data, _Run(at, at, 0)) is not None:
            runs.append(_Run(first, at, count))
            first, count = at, 0
        at += length
        count += 1
    return [*runs, _Run(first, run.stop, count)]


def _find_frames(data: Bytes, at: int, stop: int, stream: int | None = None) -> int | None:
    """Return where several frames follow each other, of the version and layer in `stream` if it is given."""
    while found := _SYNC.search(data, at, stop):
        at = found.start()
        wanted = data[at + 1] & 0xFE if stream is None else stream
        position, count = at, 0
        while count < _CHAIN and data[position + 1 : position + 2] and data[position + 1] & 0xFE == wanted:
            length = mp3_frame(data, position)
            if not length:
                break
            position, count = position + length, count + 1
            if position >= len(data):  # the last frame, perhaps cut
                return at if count > 1 else None
        if count == _CHAIN:
            return at
        at += 1
    return None


def adts_frame(data: Bytes, at: int) -> int:
    """Return the length of the AAC frame whose header is at `at`, or 0."""
    head = data[at : at + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length > 7 else 0


def inspect_adts(data: Bytes, start: int) -> Contents:
    """Follow the frames of a raw AAC file from `start`."""
    at, end = start, len(data)
    while length := adts_frame(data, at):
        if at + length > end:
            return Contents("cut", f"its last AAC frame is cut ({end - at} of {length} bytes are there)")
        at += length
    return Contents(is_parsed=True)
