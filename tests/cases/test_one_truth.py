"""Every function and command finds the same in a folder: which files are used, how long they are, and what is said."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import soundfile

from ssamba.audio.decode import collect_remarks, decode, measure, probe
from ssamba.audio.files import read_remarks
from ssamba.data.corpus import open_corpus, read_or_error
from ssamba.data.listing import make_manifest
from ssamba.data.manifest import read_manifest
from ssamba.data.shards import write_shards
from ssamba.errors import AudioTruncatedWarning
from ssamba.library.embed import embed_files
from ssamba.library.tables import read_embeddings

LENGTHS_S = {"chained.ogg": 5.0, "healthy.flac": 4.0, "twice.flac": 6.0, "written_once.wav": 4.0}
CUT = ("cut.flac", "cut.mp3", "cut.ogg", "cut.wav")


@pytest.fixture
def folder(tmp_path, medley):
    """Recordings that are whole, that have wrong headers, and that lack their end, and a text."""
    root = tmp_path / "rec"
    root.mkdir()

    def encoded(seconds, **kind):
        target = io.BytesIO()
        with soundfile.SoundFile(target, "w", 16_000, 1, **kind) as file:
            for start in range(0, seconds * 16_000, 8192):
                file.write(medley[start : min(start + 8192, seconds * 16_000)])
        return target.getvalue()

    flac, ogg = {"format": "FLAC"}, {"format": "OGG", "subtype": "VORBIS"}
    (root / "healthy.flac").write_bytes(encoded(4, **flac))
    (root / "twice.flac").write_bytes(encoded(4, **flac) + encoded(2, **flac))
    (root / "chained.ogg").write_bytes(encoded(3, **ogg) + encoded(2, **ogg))
    wav = encoded(4, format="WAV", subtype="PCM_16")
    (root / "written_once.wav").write_bytes(
        wav[:4] + struct.pack("<I", 36 + 32_000) + wav[8:40] + struct.pack("<I", 32_000) + wav[44:]
    )
    for name, content in (
        ("cut.wav", wav),
        ("cut.flac", encoded(4, **flac)),
        ("cut.ogg", encoded(4, **ogg)),
        ("cut.mp3", encoded(4, format="MP3")),
    ):
        (root / name).write_bytes(content[: len(content) * 3 // 4 + 1])
    (root / "text.wav").write_text("no sound")
    return root


def lengths(folder, damaged):
    """What decoding finds, the reference of all others."""
    found = {}
    for path in sorted(folder.iterdir()):
        with collect_remarks():
            try:
                found[path.name] = len(decode(path, damaged=damaged)) / 16_000
            except ValueError:
                continue
    return found


@pytest.mark.parametrize("damaged", ["skip", "keep"])
def test_lengths_verdicts_and_reasons_are_the_same_everywhere(folder, tmp_path, embedder, damaged):
    expected = lengths(folder, damaged)
    assert {name: expected[name] for name in LENGTHS_S} == pytest.approx(LENGTHS_S)
    assert set(expected) == {*LENGTHS_S, *(CUT if damaged == "keep" else ())}
    assert all(0.5 < expected[name] < 4 for name in CUT if name in expected), expected
    skipped = {"text.wav", *CUT} - set(expected)

    report = make_manifest(folder, tmp_path / "m.csv", damaged=damaged)
    rows = read_manifest(tmp_path / "m.csv")
    assert {row.path.name: row.duration_s for row in rows} == pytest.approx(expected, abs=1e-6)
    reasons = {entry.path.rpartition("/")[2]: entry.reason for entry in report.skipped}
    assert set(reasons) == skipped
    remarks = {entry.path.rpartition("/")[2]: (entry.verdict, entry.reason) for entry in report.remarks}
    said = {"twice.flac": "wrong header", "written_once.wav": "wrong header"}
    said |= {name: "cut" for name in CUT if damaged == "keep"}
    assert {name: verdict for name, (verdict, _) in remarks.items()} == said

    embedded = embed_files(folder, tmp_path / "e.npz", embedder, damaged=damaged)
    table = read_embeddings(tmp_path / "e.npz")
    names = [str(path).rpartition("/")[2] for path in table["path"]]
    assert dict(zip(names, map(float, table["duration_s"]), strict=True)) == pytest.approx(expected, abs=1e-6)
    assert {entry.path.rpartition("/")[2]: entry.reason for entry in embedded.skipped} == reasons
    found = {entry.path.rpartition("/")[2]: (entry.verdict, entry.reason) for entry in embedded.remarks}
    assert found == remarks
    assert set(read_remarks(embedded.remarks_file)) == set(embedded.remarks)

    with collect_remarks() as opened:
        corpus = open_corpus(folder, damaged=damaged)
    assert {corpus.key(i): float(corpus.seconds[i]) for i in range(len(corpus))} == pytest.approx(expected, abs=1e-6)
    assert {entry.path.rpartition("/")[2]: entry.reason for entry in corpus.skipped} == reasons
    assert {entry.path.rpartition("/")[2]: (entry.verdict, entry.reason) for entry in opened} == remarks
    for i in range(len(corpus)):
        samples = read_or_error(corpus, i)
        assert len(samples) == pytest.approx(16_000 * expected[corpus.key(i)], abs=1)

    shards = write_shards(folder, tmp_path / "shards", "flac", damaged=damaged, workers=0)
    assert shards.audio_s == pytest.approx(sum(expected.values()), abs=1e-3)
    assert {entry.path.rpartition("/")[2]: entry.reason for entry in shards.skipped} == reasons
    assert {entry.path.rpartition("/")[2]: (entry.verdict, entry.reason) for entry in shards.remarks} == remarks

    for path in folder.iterdir():
        if path.name != "text.wav":
            assert probe(path).verdict == said.get(path.name, "cut" if path.name in CUT else "whole")
        measured = measure(path, damaged)
        assert isinstance(measured.duration_s, Exception) == (path.name in skipped)


def test_keeping_damaged_files_adds_them_and_what_was_said_stays(folder, tmp_path, embedder):
    first = embed_files(folder, tmp_path / "e.npz", embedder)
    assert (first.done, len(first.skipped), len(first.remarks)) == (4, 5, 2)
    second = embed_files(folder, tmp_path / "e.npz", embedder, damaged="keep")
    assert (second.done, second.unchanged, len(second.skipped), len(second.remarks)) == (4, 4, 1, 4)
    third = embed_files(folder, tmp_path / "e.npz", embedder)
    assert (third.done, third.unchanged, third.remarks) == (0, 8, [])
    assert len(read_remarks(third.remarks_file)) == 6
    again = write_shards(folder, tmp_path / "s", "flac", workers=0)
    assert write_shards(folder, tmp_path / "s", "flac", workers=0).remarks == again.remarks != []


def test_a_model_and_the_commands_take_the_option(ssamba, folder, embedder, ssamba_pth):
    with pytest.raises(ValueError, match="--damaged keep"):
        embedder.embed(folder / "cut.wav")
    with pytest.warns(AudioTruncatedWarning, match="can be read"):
        kept = embedder.embed(folder / "cut.wav", damaged="keep")
    assert kept.duration_s == pytest.approx(lengths(folder, "keep")["cut.wav"])
    with pytest.raises(ValueError, match="damaged must be 'skip' or 'keep'; got 'drop'"):
        embedder.embed(folder / "cut.wav", damaged="drop")
    for name, output in (("embed", "e.npz"), ("manifest", "m.csv"), ("shard", "s")):
        model = ["-c", ssamba_pth] if name == "embed" else []
        code, _, err = ssamba(name, "rec", "-o", output, "--damaged", "keep", *model)
        assert code == 0, err
        assert "warning: rec/cut.wav: truncated or damaged" in err
        assert "skipped rec/text.wav: is text" in err
    assert ssamba("shard", "rec", "-o", "s", "--damaged", "drop")[0] == 2
    code, out, _ = ssamba("info", "rec/cut.wav", "rec/written_once.wav", "rec/healthy.flac")
    assert code == 0
    assert [line.split(maxsplit=1)[1].strip() for line in out.splitlines() if line.startswith("verdict")] == [
        "cut",
        "wrong header",
        "whole",
    ]


def test_a_crop_of_a_file_with_a_wrong_header_is_the_slice_of_it(folder, medley):
    read = decode(folder / "written_once.wav", start_s=2.0, duration_s=1.0)
    np.testing.assert_allclose(read, medley[32_000:48_000], atol=1e-4)
