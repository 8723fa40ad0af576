"""Set the size fields of audio headers to wrong values, and see what is read: `python -m benchmarks.header_fuzzer`.

Each size field of WAV, RF64, W64, AIFF, CAF, FLAC, Ogg (Vorbis, Opus) and MP3 files is set to 0, 1, its maximum, half,
double, one more and one less, and the header's length more and less; one field in each file. The files are made from
the demo recordings, with one or two channels, of several codings, with and without other chunks. What `ssamba.audio`
reads is compared with the source: bit for bit, or by the number of samples and the correlation for lossy codecs.

Outcomes: `whole` (all samples, no word), `warned` (all samples, and a warning), `skipped` (an error with a reason),
`silently short` (samples are missing, and nothing was said), `wrong` (anything else: samples that were no audio, a part
of the recording with a warning, another length when measured). `--files 10000` is the whole run; writes
benchmarks/results/header_fuzzer.json and .md.
"""

from __future__ import annotations

import argparse
import io
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from benchmarks.timing import DEMO_AUDIO, save
from ssamba.audio.decode import AudioBytes, collect_remarks, decode, measure
from ssamba.errors import AudioDecodeError
from ssamba.studies.harness import environment, table

OUTCOMES = ("whole", "warned", "skipped", "silently short", "wrong")
FORMATS = ("WAV", "RF64", "W64", "AIFF", "CAF", "FLAC", "MP3", "Ogg Vorbis", "Ogg Opus")
CHANGES = ("0", "1", "maximum", "half", "double", "+1", "-1", "+header", "-header")


class Field(NamedTuple):
    """A size field in a file."""

    name: str
    bit: int
    """Offset of the field in the file, in bits."""
    width: int
    """In bits."""
    order: str = "big"
    """`big`, `little`, or `synchsafe` (7 bits in each byte, as in ID3v2)."""
    page: int | None = None
    """Offset of the Ogg page whose checksum covers the field, if it is to be made right again."""


class Sample(NamedTuple):
    """A file whose headers are right."""

    format: str
    content: bytes
    fields: list[Field]
    samples: npt.NDArray[np.float32]
    """What it holds, mono: (samples,)."""
    sample_rate_hz: int
    is_exact: bool
    """Whether the codec is lossless."""
    header_bytes: int


class Case(NamedTuple):
    """A field of a file, changed."""

    sample: Sample
    field: Field
    change: str
    content: bytes


def main() -> None:
    """Run, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts, notable = run(options.files, options.seed)
    results: dict[str, Any] = {
        **environment(),
        "libsndfile": soundfile.__libsndfile_version__,
        "soundfile": soundfile.__version__,
        "files": options.files,
        "seed": options.seed,
        "counts": {" / ".join(key): dict(outcomes) for key, outcomes in counts.items()},
        "notable": notable[:200],
    }
    text = report(counts)
    print(text)
    for line in notable[:30]:
        print(line)
    save("header_fuzzer", results, text)


def run(files: int, seed: int = 0) -> tuple[dict[tuple[str, str], Counter[str]], list[str]]:
    """Read `files` changed files; return outcomes by format and field, and a line for each that is silent or wrong."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    notable: list[str] = []
    for number, case in enumerate(cases(seed)):
        if number == files:
            break
        outcome, detail = judge(case)
        counts.setdefault((case.sample.format, case.field.name), Counter())[outcome] += 1
        if outcome in ("silently short", "wrong"):
            notable.append(f"{outcome}: {case.sample.format}, {case.field.name} {case.change}: {detail}")
    return counts, notable


def cases(seed: int = 0) -> Iterator[Case]:
    """Yield changed files without end: of every format in turn, each change of each of its fields."""
    rng = np.random.default_rng(seed)
    while True:
        for name in FORMATS:
            sample = make_sample(name, rng)
            for field in sample.fields:
                for change in CHANGES:
                    content = changed(sample, field, change)
                    # With a right checksum these are other files: the end of the last packet is trimmed differently.
                    is_other = field.page is not None and "granule" in field.name and change[0] in "+-"
                    if content != sample.content and not is_other:
                        yield Case(sample, field, change, content)


def judge(case: Case) -> tuple[str, str]:
    """Return the outcome of reading a changed file, and what happened."""
    sample = case.sample
    source = AudioBytes(f"{sample.format} {case.field.name} {case.change}", case.content)
    measured = measure(source)
    with collect_remarks() as remarks:
        try:
            read = decode(source, sample_rate_hz=sample.sample_rate_hz)
        except AudioDecodeError as error:
            agrees = isinstance(measured.duration_s, Exception)
            return ("skipped", str(error)) if agrees else ("wrong", f"measured {measured.duration_s} s, then {error}")
    said = "; ".join(remark.reason for remark in remarks)
    if isinstance(measured.duration_s, Exception):
        return "wrong", f"decoded, but not measured: {measured.duration_s}"
    if abs(measured.duration_s * sample.sample_rate_hz - len(read)) > (0.5 if sample.is_exact else 2400):
        return "wrong", f"measured {measured.duration_s:.4f} s, decoded {len(read) / sample.sample_rate_hz:.4f} s"
    if len(read) != len(sample.samples):
        is_short = len(read) < len(sample.samples)
        detail = f"{len(read)} of {len(sample.samples)} samples. {said}"
        return ("silently short" if is_short and not said else "wrong"), detail
    if sample.is_exact:
        is_right = bool(np.array_equal(read, sample.samples))
    else:
        is_right = bool(np.corrcoef(read, sample.samples)[0, 1] > 0.9999)
    return ("wrong", f"other samples. {said}") if not is_right else ("warned" if said else "whole", said)


def report(counts: dict[tuple[str, str], Counter[str]]) -> str:
    """Return a table of outcomes by format and field, and the share that was read whole by format."""
    rows = [
        [form, field, str(sum(outcomes.values())), *_cells(outcomes)]
        for (form, field), outcomes in sorted(counts.items(), key=lambda item: (FORMATS.index(item[0][0]), item[0][1]))
    ]
    by_format: dict[str, Counter[str]] = {}
    for (form, _), outcomes in counts.items():
        by_format.setdefault(form, Counter()).update(outcomes)
    totals = []
    for form in by_format:
        outcomes, total = by_format[form], sum(by_format[form].values())
        whole = 100 * (outcomes["whole"] + outcomes["warned"]) / total
        totals.append([form, str(total), f"{whole:.1f} %", *_cells(outcomes)])
    first = table(["format", "files", "read whole", *OUTCOMES], totals)
    return f"{first}\n\n{table(['format', 'field', 'files', *OUTCOMES], rows)}"


def _cells(outcomes: Counter[str]) -> list[str]:
    return [str(outcomes[outcome] or "") for outcome in OUTCOMES]


# Changing


def changed(sample: Sample, field: Field, change: str) -> bytes:
    """Return the file with another value in a field."""
    value, most = _get(sample.content, field), (1 << field.width) - 1
    new = {
        "0": 0,
        "1": 1,
        "maximum": most,
        "half": value // 2,
        "double": 2 * value,
        "+1": value + 1,
        "-1": value - 1,
        "+header": value + sample.header_bytes,
        "-header": value - sample.header_bytes,
    }[change]
    content = _set(sample.content, field, min(max(new, 0), most))
    return content if field.page is None else _with_checksum(content, field.page)


def _get(content: bytes, field: Field) -> int:
    if field.order == "big":
        last = field.bit + field.width
        span = content[field.bit // 8 : -(-last // 8)]
        return int.from_bytes(span, "big") >> (-last % 8) & (1 << field.width) - 1
    span = content[field.bit // 8 : field.bit // 8 + -(-field.width // (7 if field.order == "synchsafe" else 8))]
    if field.order == "synchsafe":
        return sum(byte << 7 * place for place, byte in enumerate(reversed(span)))
    return int.from_bytes(span, "little")


def _set(content: bytes, field: Field, value: int) -> bytes:
    first = field.bit // 8
    if field.order == "big":
        last = field.bit + field.width
        stop = -(-last // 8)
        whole = int.from_bytes(content[first:stop], "big")
        mask = (1 << field.width) - 1 << -last % 8
        new = (whole & ~mask | value << -last % 8).to_bytes(stop - first, "big")
    elif field.order == "synchsafe":
        size = field.width // 7
        new = bytes(value >> 7 * place & 127 for place in reversed(range(size)))
    else:
        new = value.to_bytes(field.width // 8, "little")
    return content[:first] + new + content[first + len(new) :]


def _with_checksum(content: bytes, page: int) -> bytes:
    """Return the file with the right checksum in the Ogg page at `page`, whose length the next page shows."""
    stop = content.find(b"OggS", page + 4)
    span = bytearray(content[page : stop if stop > 0 else None])
    span[22:26] = bytes(4)
    reverse = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    crc = zlib.crc32(bytes(span).translate(reverse), 0xFFFFFFFF) ^ 0xFFFFFFFF
    span[22:26] = int(f"{crc:032b}"[::-1], 2).to_bytes(4, "little")
    return content[:page] + bytes(span) + content[page + len(span) :]


# Making files


def make_sample(name: str, rng: np.random.Generator) -> Sample:
    """Make a file of a format from a random part of a random recording."""
    paths = sorted(DEMO_AUDIO.glob("*.flac"))
    recording, rate_hz = soundfile.read(paths[rng.integers(len(paths))], dtype="float32", always_2d=True)
    mono = recording.mean(axis=1)
    length = int(rng.integers(8000, 60_000))
    mono = np.resize(np.roll(mono, -int(rng.integers(len(mono)))), length)
    channels = int(rng.integers(1, 3))
    samples = np.stack([mono * np.float32(rng.uniform(0.3, 0.9)) for _ in range(channels)], axis=1)
    if name in ("WAV", "RF64", "W64", "AIFF", "CAF"):
        return _pcm(name, samples, rate_hz, rng)
    if name == "Ogg Opus":
        rate_hz = 48_000
    if name == "MP3" and rate_hz > 48_000:
        rate_hz = 44_100
    kind = {
        "FLAC": {"format": "FLAC", "subtype": ("PCM_16", "PCM_24")[int(rng.integers(2))]},
        "MP3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
        "Ogg Vorbis": {"format": "OGG", "subtype": "VORBIS"},
        "Ogg Opus": {"format": "OGG", "subtype": "OPUS"},
    }[name]
    target = io.BytesIO()
    with soundfile.SoundFile(target, "w", rate_hz, channels, **kind) as file:
        for start in range(0, len(samples), 8192):
            file.write(samples[start : start + 8192])
    content = target.getvalue()
    if name == "MP3" and rng.integers(2):
        frame = b"TIT2" + struct.pack(">IH", 11, 0) + b"\3recording!"
        padding = int(rng.integers(0, 2000))
        size = len(frame) + padding
        head = bytes(size >> 7 * place & 127 for place in (3, 2, 1, 0))
        content = b"ID3\3\0\0" + head + frame + bytes(padding) + content
    fields, header = {"FLAC": _flac_fields, "MP3": _mp3_fields}.get(name, _ogg_fields)(content)
    read = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)[0]
    return Sample(name, content, fields, _mean(read), rate_hz, name == "FLAC", header)


def _mean(samples: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    total: npt.NDArray[np.float32] = samples[:, 0].copy()
    for channel in samples.T[1:]:
        total += channel
    total /= np.float32(samples.shape[1])
    return total


class _Pcm(NamedTuple):
    """Coded samples."""

    coded: bytes
    channels: int
    width: int
    """Bytes per sample."""
    is_float: bool
    rate_hz: int
    num_samples: int
    """Samples per channel."""
    is_big: bool


class _Writer:
    """Bytes of a file, and where its size fields are."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.fields: list[Field] = []

    def field(self, name: str, code: str, value: int) -> None:
        """Add a size field."""
        order = "little" if code[0] == "<" else "big"
        packed = struct.pack(code, value)
        self.fields.append(Field(name, 8 * len(self.content), 8 * len(packed), order))
        self.content += packed


def _pcm(name: str, samples: npt.NDArray[np.float32], rate_hz: int, rng: np.random.Generator) -> Sample:
    is_big = name == "AIFF" or (name == "CAF" and bool(rng.integers(2)))
    width, is_float = ((1, False), (2, False), (3, False), (4, False), (4, True))[int(rng.integers(5))]
    if name == "AIFF":
        is_float = False
    if width == 1 and samples.shape[1] == 1:
        width = 2  # one byte more or less could be padding
    if is_float:
        coded = samples.astype(">f4" if is_big else "<f4").tobytes()
        values = samples
    else:
        scale = 2.0 ** (8 * width - 1)
        numbers = np.clip(np.round(samples.astype(np.float64) * scale), -scale, scale - 1).astype(np.int64)
        values = (numbers / scale).astype(np.float32)
        unsigned = width == 1 and name not in ("AIFF", "CAF")
        octets = (numbers + 128 if unsigned else numbers).astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width]
        coded = (octets[:, ::-1] if is_big else octets).tobytes()
    out = _Writer()
    pcm = _Pcm(coded, samples.shape[1], width, is_float, rate_hz, len(samples), is_big)
    {"WAV": _wav, "RF64": _rf64, "W64": _w64, "AIFF": _aiff, "CAF": _caf}[name](out, pcm, rng)
    content = bytes(out.content)
    return Sample(name, content, out.fields, _mean(values), rate_hz, True, content.find(coded[:64]))


def _text(rng: np.random.Generator) -> bytes:
    return b"ICMT" + bytes(rng.integers(97, 123, int(rng.integers(20, 200))).astype(np.uint8))


def _wav(out: _Writer, pcm: _Pcm, rng: np.random.Generator) -> None:
    before, after, is_extensible = _text(rng), _text(rng), bool(rng.integers(2))
    parts = {name: bool(rng.integers(2)) for name in ("before", "after", "fact")}
    body = _Writer()
    body.content += b"WAVE"
    _fmt(body, pcm, is_extensible)
    if parts["fact"]:
        body.content += b"fact"
        body.field("fact size", "<I", 4)
        body.field("fact count", "<I", pcm.num_samples)
    if parts["before"]:
        body.content += b"LIST"
        body.field("LIST size", "<I", 4 + len(before))
        body.content += b"INFO" + before + bytes(len(before) % 2)
    body.content += b"data"
    body.field("data size", "<I", len(pcm.coded))
    body.content += pcm.coded + bytes(len(pcm.coded) % 2)
    if parts["after"]:
        body.content += b"LIST"
        body.field("LIST size after", "<I", 4 + len(after))
        body.content += b"INFO" + after + bytes(len(after) % 2)
    out.content += b"RIFF"
    out.field("RIFF size", "<I", len(body.content))
    _append(out, body)


def _append(out: _Writer, body: _Writer) -> None:
    shift = 8 * len(out.content)
    out.fields += [field._replace(bit=field.bit + shift) for field in body.fields]
    out.content += body.content


def _fmt(body: _Writer, pcm: _Pcm, is_extensible: bool) -> None:
    tag = 3 if pcm.is_float else 1
    body.content += b"fmt "
    body.field("fmt size", "<I", 40 if is_extensible else 16)
    body.content += struct.pack("<HHI", 0xFFFE if is_extensible else tag, pcm.channels, pcm.rate_hz)
    body.field("fmt bytes per second", "<I", pcm.rate_hz * pcm.channels * pcm.width)
    body.field("fmt block size", "<H", pcm.channels * pcm.width)
    body.content += struct.pack("<H", 8 * pcm.width)
    if is_extensible:
        body.field("fmt extension size", "<H", 22)
        body.content += struct.pack("<HI", 8 * pcm.width, 0)
        body.content += struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")


def _rf64(out: _Writer, pcm: _Pcm, rng: np.random.Generator) -> None:
    after = _text(rng) if rng.integers(2) else b""
    body = _Writer()
    _fmt(body, pcm, bool(rng.integers(2)))
    body.content += b"data"
    body.field("data size", "<I", 0xFFFFFFFF)
    body.content += pcm.coded + bytes(len(pcm.coded) % 2)
    if after:
        body.content += b"LIST"
        body.field("LIST size after", "<I", 4 + len(after))
        body.content += b"INFO" + after + bytes(len(after) % 2)
    out.content += (b"RF64", b"BW64")[int(rng.integers(2))]
    out.field("RIFF size", "<I", 0xFFFFFFFF)
    out.content += b"WAVEds64"
    out.field("ds64 size", "<I", 28)
    out.field("ds64 RIFF size", "<Q", 4 + 36 + len(body.content))
    out.field("ds64 data size", "<Q", len(pcm.coded))
    out.field("ds64 count", "<Q", pcm.num_samples)
    out.field("ds64 table length", "<I", 0)
    _append(out, body)


_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")


def _w64(out: _Writer, pcm: _Pcm, rng: np.random.Generator) -> None:
    body = _Writer()
    frame = pcm.channels * pcm.width
    tag = 3 if pcm.is_float else 1
    fmt = struct.pack("<HHIIHH", tag, pcm.channels, pcm.rate_hz, pcm.rate_hz * frame, frame, 8 * pcm.width)
    body.content += b"wave" + _W64_TAIL + b"fmt " + _W64_TAIL
    body.field("fmt size", "<Q", 24 + len(fmt))
    body.content += fmt
    if rng.integers(2):
        body.content += b"fact" + _W64_TAIL
        body.field("fact size", "<Q", 32)
        body.field("fact count", "<Q", pcm.num_samples)
    body.content += b"data" + _W64_TAIL
    body.field("data size", "<Q", 24 + len(pcm.coded))
    body.content += pcm.coded + bytes(-len(pcm.coded) % 8)
    if rng.integers(2):
        body.content += b"junk" + _W64_TAIL
        body.field("junk size after", "<Q", 24 + 40)
        body.content += bytes(40)
    out.content += b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
    out.field("riff size", "<Q", 24 + len(body.content))
    _append(out, body)


def _aiff(out: _Writer, pcm: _Pcm, rng: np.random.Generator) -> None:
    body = _Writer()
    body.content += b"AIFF"
    note = _text(rng)
    if rng.integers(2):
        body.content += b"NAME"
        body.field("NAME size", ">I", len(note))
        body.content += note + bytes(len(note) % 2)
    exponent = pcm.rate_hz.bit_length() - 1
    body.content += b"COMM"
    body.field("COMM size", ">I", 18)
    body.content += struct.pack(">H", pcm.channels)
    body.field("COMM count", ">I", pcm.num_samples)
    body.content += struct.pack(">HHQ", 8 * pcm.width, 16383 + exponent, pcm.rate_hz << 63 - exponent)
    body.content += b"SSND"
    body.field("SSND size", ">I", 8 + len(pcm.coded))
    body.field("SSND offset", ">I", 0)
    body.field("SSND block size", ">I", 0)
    body.content += pcm.coded + bytes(len(pcm.coded) % 2)
    if rng.integers(2):
        body.content += b"ANNO"
        body.field("ANNO size after", ">I", len(note))
        body.content += note + bytes(len(note) % 2)
    out.content += b"FORM"
    out.field("FORM size", ">I", len(body.content))
    _append(out, body)


def _caf(out: _Writer, pcm: _Pcm, rng: np.random.Generator) -> None:
    out.content += b"caff\0\1\0\0desc"
    out.field("desc size", ">q", 32)
    flags = int(pcm.is_float) | (0 if pcm.is_big else 2)
    out.content += struct.pack(
        ">d4sIIIII", pcm.rate_hz, b"lpcm", flags, pcm.channels * pcm.width, 1, pcm.channels, 8 * pcm.width
    )
    if rng.integers(2):
        out.content += b"free"
        out.field("free size", ">q", 100)
        out.content += bytes(100)
    out.content += b"data"
    out.field("data size", ">q", 4 + len(pcm.coded))
    out.content += bytes(4) + pcm.coded
    if rng.integers(2):
        out.content += b"info"
        out.field("info size after", ">q", 20)
        out.content += struct.pack(">I", 1) + b"artist\0somebody\0"


def _flac_fields(content: bytes) -> tuple[list[Field], int]:
    names = {0: "STREAMINFO", 1: "PADDING", 3: "SEEKTABLE", 4: "VORBIS_COMMENT"}
    fields = [
        Field("STREAMINFO smallest block", 8 * 8, 16),
        Field("STREAMINFO largest block", 8 * 10, 16),
        Field("STREAMINFO smallest frame", 8 * 12, 24),
        Field("STREAMINFO largest frame", 8 * 15, 24),
        Field("STREAMINFO count", 8 * 18 + 28, 36),
    ]
    at, is_last = 4, False
    while not is_last:
        is_last = content[at] >= 128
        fields.append(Field(f"{names[content[at] & 127]} size", 8 * (at + 1), 24))
        at += 4 + int.from_bytes(content[at + 1 : at + 4], "big")
    return fields, at


def _mp3_fields(content: bytes) -> tuple[list[Field], int]:
    fields = []
    start = 0
    if content[:3] == b"ID3":
        fields += [Field("ID3v2 size", 8 * 6, 28, "synchsafe"), Field("ID3v2 frame size", 8 * 14, 32)]
        start = 10 + _get(content, fields[0])
    tag = max(content.find(b"Xing", start, start + 60), content.find(b"Info", start, start + 60))
    fields += [Field("Xing frames", 8 * (tag + 8), 32), Field("Xing bytes", 8 * (tag + 12), 32)]
    return fields, tag + 120 - start


def _ogg_fields(content: bytes) -> tuple[list[Field], int]:
    pages, at = [], 0
    while at < len(content):
        pages.append(at)
        at += 27 + content[at + 26] + sum(content[at + 27 : at + 27 + content[at + 26]])
    chosen = {"first": 0, "second": 1, "audio": min(2, len(pages) - 1), "last": len(pages) - 1}
    fields = []
    for name, number in chosen.items():
        page = pages[number]
        own = [("segments", page + 26, 8), ("lacing", page + 27, 8), ("granule", page + 6, 64)]
        for field, offset, width in own:
            fields.append(Field(f"{name} page, {field}", 8 * offset, width, "little"))
            fields.append(Field(f"{name} page, {field}, checksum right", 8 * offset, width, "little", page))
    return fields, 27


if __name__ == "__main__":
    main()
