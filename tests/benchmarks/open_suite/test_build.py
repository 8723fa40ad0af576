"""The open suite as a whole: building, evaluating, resuming, and reporting what is left out; and its command."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.open_suite import build, build_suite, synthesis
from benchmarks.open_suite.build import read_clip
from benchmarks.open_suite.synthesis import notes, utterances
from benchmarks.open_suite.tasks import FONTS
from tests.benchmarks.open_suite.conftest import files_below, speaking

from ssamba.errors import DataError
from ssamba.evaluation.clips import read_waves
from ssamba.evaluation.suite import read_suite

ROOT = Path(__file__).resolve().parents[3]
VOICE = "usr/share/gcin-voice/ogg"


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mandarin(debs, wav):
    """Seven clips, of which one is silent, one damaged, and one the same in both splits."""
    same = wav(0.2)
    silent = wav(0.1)[:44] + bytes(3_200)
    files = {
        f"{VOICE}/ㄅㄚ1/3.wav": wav(0.2),
        f"{VOICE}/ㄅㄚ1/5.wav": wav(0.4),
        f"{VOICE}/ㄍㄨ/3.wav": same,
        f"{VOICE}/ㄍㄨ2/3.wav": wav(5.0),
        f"{VOICE}/ㄍㄨ/5.wav": same,
        f"{VOICE}/ㄦ2/3.wav": silent,
        f"{VOICE}/ㄦ2/5.wav": b"no sound",
        "usr/share/doc/gcin-voice/copyright": b"free",
    }
    return debs("gcin-voice", files)


def test_a_recorded_task_is_built_and_evaluated(mandarin, tmp_path):
    steps = []
    built = build_suite(
        tmp_path / "suite", mandarin, tasks=["zh_final"], on_progress=lambda step, done, total: steps.append(step)
    )
    assert built.written["zh_final"].clips == 5
    assert [entry.path.rpartition("ogg/")[2] for entry in built.skipped] == ["ㄦ2/3.wav", "ㄦ2/5.wav"]
    assert "is silent" in built.skipped[0].reason
    assert built.notes[0] == "zh_final: 1 clips are the same recording as one of another split"
    assert "zh_final: 5 of the 2358 clips" in built.notes[1]
    assert steps[0] == "unpacking gcin-voice"
    assert steps[-1] == "zh_final"
    rows = table(tmp_path / "suite" / "zh_final.csv")
    assert [(row["label"], row["split"], row["group"]) for row in rows] == [
        ("ㄚ", "train", "3"),
        ("ㄚ", "test", "5"),
        ("ㄨ", "train", "3"),
        ("ㄨ", "test", "5"),
        ("ㄨ", "train", "3"),
    ]
    (task,) = read_suite(tmp_path / "suite")
    assert task.both_directions
    waves = read_waves(task)
    assert waves.lengths.tolist() == [4_800, 6_400, 4_800, 4_800, 64_000]  # filled, whole, filled, cut
    assert "gcin-voice 1:2.0-1: usr/share/doc/gcin-voice/copyright" in (tmp_path / "suite" / "PACKAGES.txt").read_text()
    assert files_below(tmp_path / "suite") == ["PACKAGES.txt", "suite.json", "zh_final.csv", "zh_final.tar"]


def test_an_existing_task_is_not_built_again_unless_requested(mandarin, tmp_path):
    suite = tmp_path / "suite"
    build_suite(suite, mandarin, tasks=["zh_final"])
    before = (suite / "zh_final.tar").read_bytes()
    again = build_suite(suite, mandarin, tasks=["zh_final"])
    assert again.existing == ["zh_final"]
    assert not again.written
    assert (suite / "zh_final.tar").read_bytes() == before
    (suite / "zh_final.csv").unlink()  # as a job leaves it that was killed between the two
    assert "zh_final" in build_suite(suite, mandarin, tasks=["zh_final"], workers=1).written
    assert "zh_final" in build_suite(suite, mandarin, tasks=["zh_final"], overwrite=True).written


def test_a_killed_job_does_not_read_its_packages_again(mandarin, tmp_path, monkeypatch):
    suite = tmp_path / "suite"

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_task", killed)
    with pytest.raises(KeyboardInterrupt):
        build_suite(suite, mandarin, tasks=["zh_final"])
    monkeypatch.undo()
    file = next(mandarin.glob("*.deb"))
    file.write_bytes(b"")
    assert build_suite(suite, mandarin, tasks=["zh_final"]).written["zh_final"].clips == 5


def test_a_task_that_cannot_be_built_is_left_out_with_instructions(mandarin, program, tmp_path):
    built = build_suite(tmp_path / "suite", mandarin)
    assert list(built.written) == ["zh_final"]
    reasons = {entry.path: entry.reason for entry in built.left_out}
    assert "no espeak-ng, no flite, no text2wave" in reasons["kws35"]
    assert "apt install espeak-ng flite festival festvox-kallpc16k" in reasons["kws35"]
    assert "fluidsynth" in reasons["instr_family"]
    assert "chuck-data hydrogen-data" in reasons["drum8"]
    assert "--fetch" in reasons["drum8"]
    assert "and 52 more" in reasons["sfx14"]
    assert (tmp_path / "suite.skipped.csv").is_file()
    assert (tmp_path / "suite" / ".work").is_dir()  # the next try needs it


def test_a_damaged_package_costs_only_its_tasks(mandarin, debs, wav, tmp_path):
    for name in ("chuck-data", "hydrogen-data", "hydrogen-drumkits", "lmms-common", "sonic-pi-samples"):
        debs(name, {f"usr/share/{name}/kit/kick.wav": wav()})
    damaged = next(mandarin.glob("lmms*.deb"))
    damaged.write_bytes(damaged.read_bytes()[:200])
    built = build_suite(tmp_path / "suite", mandarin, tasks=["drum8", "zh_final"])
    assert list(built.written) == ["zh_final"]
    assert "lmms-common" in built.left_out[0].reason
    assert "cut off" in built.left_out[0].reason


def test_missing_packages_are_fetched_on_request(mandarin, program, tmp_path):
    source = next(mandarin.glob("*.deb"))
    kept = source.rename(tmp_path / source.name)
    code = f"import shutil\nshutil.copy({str(kept)!r}, '.') if sys.argv[-1] == 'gcin-voice' else sys.exit(100)"
    program("apt-get", code)
    built = build_suite(tmp_path / "suite", tmp_path / "new", tasks=["zh_final", "drum8"], fetch=True)
    assert list(built.written) == ["zh_final"]
    assert any("chuck-data: apt-get download failed" in note for note in built.notes)


def test_words_are_spoken_by_every_synthesizer(program, debs, tmp_path, monkeypatch):
    names = [u.name for u in utterances() if u.word in ("bed", "zero") and u.name.endswith("0")]
    monkeypatch.setattr(build, "chosen", lambda task: {name: i for i, name in enumerate(reversed(names[::5]))})
    program("espeak-ng", speaking("-w", rate=22_050))
    program("flite", speaking("-o"))
    program("text2wave", speaking("-o"))
    built = build_suite(tmp_path / "suite", debs.folder, tasks=["kws35"])
    assert not built.left_out
    rows = table(tmp_path / "suite" / "kws35.csv")
    assert len(rows) == len(names[::5])
    assert {row["label"] for row in rows} <= {"bed", "zero"}
    assert {row["split"] for row in rows} == {"train", "test"}
    assert rows[0]["group"].startswith("festival_")
    program("text2wave", "print('no voice kal_diphone', file=sys.stderr); sys.exit(1)")
    failed = build_suite(tmp_path / "suite", debs.folder, tasks=["kws35"], overwrite=True)
    assert "text2wave failed (exit code 1): no voice kal_diphone" in failed.left_out[0].reason
    assert not (tmp_path / "suite" / "kws35.csv").exists()


def test_instruments_are_played_and_cut(program, debs, tmp_path, monkeypatch):
    few = [note for note in notes() if note.program in (0, 8) and note.pitch < 44 and note.start_s < 300]
    monkeypatch.setattr(build, "notes", lambda: iter(few))
    monkeypatch.setattr(synthesis, "notes", lambda: iter(few))
    monkeypatch.setattr(build, "chosen", lambda task: {})
    program("fluidsynth", speaking("-F", rate=8_000, channels=2, repeats=8 * 270 * 125))
    for package, _ in FONTS.values():
        debs(package, {"usr/share/sounds/sf2/font.sf2": package.encode()})
    built = build_suite(tmp_path / "suite", debs.folder, tasks=["instr_family"])
    assert not built.left_out
    assert len(few) == 16
    rows = table(tmp_path / "suite" / "instr_family.csv")
    assert {row["label"] for row in rows} == {"piano", "chromatic_perc"}
    assert {(row["group"], row["split"]) for row in rows} == {(f, split) for f, (_, split) in FONTS.items()}
    (task,) = read_suite(tmp_path / "suite")
    assert np.unique(read_waves(task).lengths).tolist() == [32_000]


def test_telephone_codecs_are_read(tmp_path, medley):
    av = pytest.importorskip("av")
    path = tmp_path / "a.g722"
    samples = (medley[:16_000] * 32_767).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    read = read_clip(path, 4.0)
    assert abs(len(read) - 16_000) < 400
    lag = 22  # of the codec's filters
    assert np.corrcoef(read[lag:12_000], medley[: 12_000 - lag])[0, 1] > 0.95


def test_an_unknown_task_or_missing_folder_is_an_error(debs, tmp_path):
    with pytest.raises(DataError, match=r"no task 'esc50'\. It has: sfx14"):
        build_suite(tmp_path / "suite", debs.folder, tasks=["esc50"])
    with pytest.raises(DataError, match="not a folder"):
        build_suite(tmp_path / "suite", tmp_path / "absent", tasks=["zh_final"])


def run_command(*arguments):
    command = [sys.executable, "-m", "benchmarks.open_suite", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_command_end_to_end(mandarin, tmp_path):
    suite = tmp_path / "suite"
    done = run_command(mandarin, "-o", suite, "--workers", 0, "--task", "zh_final", "--task", "drum8")
    assert done.returncode == 0, done.stderr
    assert "zh_final: 5 clips, 2 classes" in done.stdout
    assert "1 tasks, 1 left out" in done.stdout
    assert "drum8 is left out: packages are missing" in done.stderr
    assert "suite.skipped.csv" in done.stderr
    again = run_command(mandarin, "-o", suite, "--strict", "--task", "zh_final", "--task", "drum8")
    assert again.returncode == 3
    assert "exists already: zh_final" in again.stdout
    nothing = run_command(mandarin, "-o", tmp_path / "other", "--task", "drum8")
    assert nothing.returncode == 1
    assert "no task could be built" in nothing.stderr
    unknown = run_command(mandarin, "-o", suite, "--task", "esc50")
    assert unknown.returncode == 1
    assert "no task 'esc50'" in unknown.stderr
    for wrong in ((mandarin,), ("-o", suite), (mandarin, "-o", suite, "--workers", "-1")):
        assert run_command(*wrong).returncode == 2
