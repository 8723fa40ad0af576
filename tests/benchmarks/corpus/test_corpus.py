"""The corpus: the games' archives, what is left out and why, and recordings that end the build."""

from __future__ import annotations

import io
import json
import struct
import tarfile

import numpy as np
import pytest
import soundfile as sf
from benchmarks.corpus.__main__ import main
from benchmarks.corpus.archives import queen_sounds, sky_sounds, unpack
from benchmarks.corpus.build import build_corpus
from benchmarks.corpus.clean import main as clean
from benchmarks.corpus.sources import RUSSIAN_SENTENCES, SOURCES
from benchmarks.open_suite.__main__ import exit_with_code
from benchmarks.open_suite.tasks import chosen

from ssamba.data.corpus import open_corpus
from ssamba.data.shards import write_shards
from ssamba.errors import DataError

QUEEN = "usr/share/scummvm/flight-of-the-amazon-queen/queen.1c"
SKY = "usr/share/scummvm/beneath-a-steel-sky/sky"
RUSSIAN = "usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav"


def queen_bytes(files):
    start = 15 + 21 * len(files)
    table, data = b"", b""
    for name, content in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(data), len(content))
        data += content
    return b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(files)) + table + data


class BitWriter:
    """Writes bits to 16-bit words, little-endian, lowest bit first; bytes go after the word that was begun last."""

    def __init__(self):
        self.data, self.bits = bytearray(), 0

    def put(self, value, count):
        for bit in range(count):
            if self.bits % 16 == 0:
                self.word = len(self.data)
                self.data += bytes(2)
            self.data[self.word + self.bits % 16 // 8] |= (value >> bit & 1) << self.bits % 8
            self.bits += 1


def rnc_bytes(blocks):
    """Compress blocks of (literal bytes, distance, length of a match); the last match of a block is not used."""
    writer, size = BitWriter(), 0
    writer.put(0, 2)
    for pairs in blocks:
        for _ in range(3):  # 16 symbols with codes of four bits each: symbol s has the code s, highest bit first
            writer.put(16, 5)
            for _ in range(16):
                writer.put(4, 4)
        writer.put(len(pairs), 16)

        def put_value(value):
            symbol = value if value < 2 else value.bit_length()
            writer.put(int(f"{symbol:04b}"[::-1], 2), 4)
            if symbol > 1:
                writer.put(value - (1 << symbol - 1), symbol - 1)

        for number, (literals, distance, length) in enumerate(pairs, 1):
            put_value(len(literals))
            writer.data += literals
            size += len(literals)
            if number < len(pairs):
                put_value(distance - 1)
                put_value(length - 2)
                size += length
    return struct.pack(">4sIIHHBB", b"RNC\1", size, len(writer.data), 0, 0, 0, len(blocks)) + bytes(writer.data)


def sky_bytes(files):
    """`sky.dnr` and `sky.dsk` of (number, flags, content); the second half is addressed in units of 16 bytes."""
    index, data = struct.pack("<I", len(files)), b""
    for place, (number, flags, content) in enumerate(files):
        data += bytes(-len(data) % 16)
        offset = 0x800000 | len(data) // 16 if 2 * place >= len(files) else len(data)
        index += struct.pack("<H", number) + offset.to_bytes(3, "little")
        index += (flags << 22 | 22 + len(content)).to_bytes(3, "little")
        data += bytes([0x81, 0, *[128] * 20]) + content
    return index, data


def pcm8(wav_bytes):
    samples, _ = sf.read(io.BytesIO(wav_bytes), dtype="float32")
    return np.clip(np.round(samples * 127 + 128), 0, 255).astype(np.uint8).tobytes()


def test_rnc_literals_and_overlapping_matches_are_unpacked():
    pairs = [(b"abc", 3, 7), (b"", 2, 2), (bytes(range(40)), 45, 300), (b"end", 1, 2)]
    expected = bytearray()
    for number, (literals, distance, length) in enumerate(pairs, 1):
        expected += literals
        for _ in range(length if number < len(pairs) else 0):
            expected.append(expected[-distance])
    assert unpack(rnc_bytes([pairs])) == expected
    assert unpack(rnc_bytes([[(b"x", 1, 2)], [(b"", 1, 5), (b"y", 1, 2)]])) == b"xxxxxxy"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"RNC\2" + data[4:], "method 1"),
        (lambda data: data[:10], "damaged"),
        (lambda data: data[:-3], "cut off"),
        (lambda data: data[:7] + b"\xff" + data[8:], "expected"),
        (lambda data: data[:18] + b"\0\0\2" + bytes(len(data) - 21), "no code"),  # no symbols, one pair
        (lambda data: rnc_bytes([[(b"ab", 3, 2), (b"", 1, 2)]]), "before the data"),
    ],
)
def test_damaged_rnc_data_raises_one_error(damage, message):
    with pytest.raises(DataError, match=message):
        unpack(damage(rnc_bytes([[(b"abc", 1, 2), (b"de", 1, 2)]])))


def test_sounds_of_the_first_game_are_found_by_the_table():
    files = {"020001P2.SB": b"first", "MAP.PCX": b"picture", "C1_1.SB": b"second"}
    data = queen_bytes(files)
    assert list(queen_sounds(data)) == [("020001P2.SB", b"first"), ("C1_1.SB", b"second")]
    for damaged, message in ((b"PK" + data, "expected 'QTBL'"), (data[:40], "table"), (data[:-1], "C1_1.SB is cut")):
        with pytest.raises(DataError, match=message):
            list(queen_sounds(damaged))


def test_sounds_of_the_second_game_are_the_compressed_files_with_a_header():
    one, two = bytes(range(100)), bytes(range(100, 200))
    packed = [rnc_bytes([[(data, 1, 2)]]) for data in (one, two)]
    files = [(50_001, 0, packed[0]), (59_503, 1, packed[1]), (60_300, 0, packed[1])]
    files += [(49_999, 0, packed[0]), (59_501, 2, two), (55_037, 0, packed[1])]
    index, data = sky_bytes(files)
    assert list(sky_sounds(index, data)) == [(50_001, one), (55_037, two)]
    with pytest.raises(DataError, match="file 55037: is cut off"):
        list(sky_sounds(index, data[:-5]))
    with pytest.raises(DataError, match=r"sky\.dnr"):
        list(sky_sounds(index[:-1], data))


def test_no_sentence_of_the_corpus_is_a_clip_of_the_open_suite():
    assert len(RUSSIAN_SENTENCES) == 235
    assert not any(f"festvox-ru/{RUSSIAN}/{name}.wav" in chosen("speaker") for name in RUSSIAN_SENTENCES)


@pytest.fixture
def packages(debs, wav):
    """Writes miniature packages, and returns their folder and the recordings by name."""
    recordings = {name: wav(seconds) for name, seconds in (("A.SB", 1.0), ("B.SB", 4.5), ("C.SB", 0.1))}
    recordings |= {name: wav(0.8) for name in ("sky", "ru_0001", "ru_0002")}
    silence = io.BytesIO()
    sf.write(silence, np.zeros(8_000), 16_000, format="WAV", subtype="PCM_16")
    queen = {**{name: recordings[name] for name in ("A.SB", "B.SB", "C.SB")}, "D.SB": recordings["A.SB"]}
    queen["E.SB"] = silence.getvalue()
    index, data = sky_bytes([(50_001, 0, rnc_bytes([[(pcm8(recordings["sky"]), 1, 2)]]))])
    notice = {"usr/share/doc/x/copyright": b"notice"}
    debs("flight-of-the-amazon-queen", {QUEEN: queen_bytes(queen), **notice})
    debs("beneath-a-steel-sky", {f"{SKY}.dnr": index, f"{SKY}.dsk": data, **notice})
    sentences = {f"{RUSSIAN}/{name}.wav": recordings[name] for name in ("ru_0001", "ru_0002")}
    debs("festvox-ru", {**sentences, **notice})
    debs("another-game-data", {"usr/share/sounds/x.wav": wav()})
    return debs.folder, recordings


def test_the_corpus_holds_the_recordings_of_its_packages_and_says_what_was_left_out(
    packages, excluded, wav, tmp_path, capsys
):
    folder, _ = packages
    output = tmp_path / "corpus"
    suite = excluded([wav(0.9) for _ in range(4)])
    main([str(folder), "-o", str(output), "--exclude", str(suite), "--workers", "0"])
    printed = capsys.readouterr().out
    assert "none of 4 excluded clips" in printed
    assert "2 recordings, 0.00 h" in printed
    corpus = open_corpus(output)
    assert sorted(len(corpus.read(i)) for i in range(len(corpus))) == [12_800, 16_000, 18_576, 72_000]
    assert {corpus.clip(i).group for i in range(len(corpus))} == set(SOURCES)
    report = json.loads((output / "corpus.json").read_text(encoding="utf-8"))
    assert report["packages"]["flight-of-the-amazon-queen"]["left_out"] == {"too short": 1, "copy": 1, "silent": 1}
    assert report["packages"]["festvox-ru"]["recordings"] == 1
    assert report["hours"] == pytest.approx((1.0 + 4.5 + 1.161 + 0.8) / 3600, rel=1e-3)
    assert (output / "licenses" / "festvox-ru" / "copyright").read_text(encoding="utf-8") == "notice"
    assert not (output / ".work").exists()
    with pytest.raises(DataError, match="holds a corpus already"):
        build_corpus(output, folder, [suite])


@pytest.mark.parametrize("name", ["A.SB", "B.SB"])
def test_a_recording_of_an_excluded_suite_ends_the_build(name, packages, excluded, wav, tmp_path, capsys):
    folder, recordings = packages
    suite = excluded([recordings[name], *(wav(0.9) for _ in range(3))])
    output = tmp_path / "corpus"
    with pytest.raises(SystemExit) as stopped:
        exit_with_code(lambda: main([str(folder), "-o", str(output), "--exclude", str(suite), "--workers", "0"]))
    assert stopped.value.code == 1
    assert "is suite/0.opus" in " ".join(capsys.readouterr().err.split())
    assert not list(output.glob("*.tar"))
    assert "suite/0.opus" in (tmp_path / "corpus.excluded.csv").read_text(encoding="utf-8")


def test_only_allowed_packages_are_read_and_missing_ones_are_named(packages, excluded, wav, tmp_path):
    folder, _ = packages
    suite = excluded([wav(0.9) for _ in range(4)])
    with pytest.raises(DataError, match="another-game-data is not among the packages"):
        build_corpus(tmp_path / "corpus", folder, [suite], packages=["another-game-data"])
    (folder / "festvox-ru_1%3a2.0-1_all.deb").unlink()
    with pytest.raises(DataError, match=r"missing in .*: festvox-ru"):
        build_corpus(tmp_path / "corpus", folder, [suite])


def test_a_corpus_is_copied_without_the_clips_of_a_suite(excluded, wav, tmp_path, capsys):
    recordings = {name: wav(0.9) for name in "abc"}
    (tmp_path / "recordings").mkdir()
    for name, data in recordings.items():
        (tmp_path / "recordings" / f"{name}.wav").write_bytes(data)
    write_shards(tmp_path / "recordings", tmp_path / "first", workers=0)
    suite = excluded([recordings["b"], *(wav(0.9) for _ in range(3))])
    arguments = [str(tmp_path / "first"), "-o", str(tmp_path / "copy"), "--exclude", str(suite)]
    clean(arguments)
    first, copy = open_corpus(tmp_path / "first"), open_corpus(tmp_path / "copy")
    kept = {copy.key(i).rpartition("/")[2] for i in range(len(copy))}
    assert len(kept) == 2
    assert kept < {first.key(i).rpartition("/")[2] for i in range(len(first))}
    assert "is suite/0.opus" in (tmp_path / "copy" / "left_out.csv").read_text(encoding="utf-8")
    clean(arguments)  # nothing is done again
    assert capsys.readouterr().out.count("1 clip left out") == 2


def test_a_copied_corpus_is_grouped_by_the_packages_of_its_table(excluded, wav, tmp_path):
    (tmp_path / "first").mkdir()
    with tarfile.open(tmp_path / "first" / "0.tar", "w") as tar:
        for name, data in (
            ("a.wav", wav(0.9)),
            ("b.wav", wav(0.9)),
            ("c.wav", wav(0.9)),
            ("c.json", b'{"labels": ["c"]}'),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = "key,shard,seconds,package\na,0.tar,0.9,game-data\nc,0.tar,0.9,game-data\n"
    (tmp_path / "first" / "index.csv").write_text(table, encoding="utf-8")
    suite = excluded([wav(0.9) for _ in range(4)])
    clean([str(tmp_path / "first"), "-o", str(tmp_path / "copy"), "--exclude", str(suite)])
    copy = open_corpus(tmp_path / "copy")
    assert {copy.key(i): copy.clip(i).labels for i in range(3)} == {"a": (), "b": (), "c": ("c",)}
    assert {copy.key(i): copy.clip(i).group for i in range(3)} == {"a": "game-data", "b": None, "c": None}
