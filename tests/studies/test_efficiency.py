"""The efficiency study on toy shapes, when its sides stop, and its crossovers against closed forms."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ssamba.cli import app
from ssamba.cli.bench import parse_patches
from ssamba.errors import ConfigError
from ssamba.studies import efficiency
from ssamba.studies.efficiency import SIDES, EfficiencyOptions, Job, Point, Study, measure_efficiency, prepare
from ssamba.studies.efficiency_report import (
    crossing,
    crossovers,
    curve,
    growth,
    growths,
    markdown,
    plot_study,
    save_study,
)

SMALL = {"sizes": ("tiny",), "patches": (8, 16), "batches": (1,), "device": "cpu", "depth": 2, "each_s": 0.01}


@pytest.fixture
def no_children(monkeypatch):
    """Peaks from a formula instead of processes: SSAST unfused needs more memory than there is at 16 patches."""

    def cost(job, options):
        if "unfused" in job.side and job.patches > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return job.patches * job.batch * 1000, 10**9, 0.01

    monkeypatch.setattr(efficiency, "_cost_in_child", cost)


def options(**changes):
    return EfficiencyOptions.parse({**SMALL, **changes}, "test")


def test_every_side_is_measured_and_a_side_without_memory_stops(no_children, tmp_path):
    seen = []
    study = measure_efficiency(options(throughput=False), lambda progress, _: seen.append(progress))
    assert study.finished
    assert [(p.done, p.total) for p in seen] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(study.points) == 2 * 2 * 5
    for point in study.points:
        if "unfused" in point.side and point.patches == 16:
            assert (point.median_s, point.stopped) == (None, "out of memory")
        else:
            assert 0 < point.low_s <= point.median_s <= point.high_s
            assert point.peak_bytes == point.patches * 1000
    files = save_study(study, tmp_path / "s")
    assert [f.name for f in files] == ["efficiency.json", "efficiency.md", "efficiency_batch1.png"]
    assert len(json.loads(files[0].read_text())["points"]) == 20
    text = files[1].read_text()
    assert "SSAST unfused fp32: out of memory" in text
    assert files[2].stat().st_size > 10_000
    unreached = replace(study, options=study.options.model_copy(update={"sizes": ("tiny", "base")}))
    assert plot_study(unreached, 1, tmp_path / "same.png").read_bytes() == files[2].read_bytes()


def test_a_side_past_its_budget_is_recorded_once_and_stops(no_children, monkeypatch):
    monkeypatch.setattr(
        efficiency, "_cost_in_child", lambda job, options: (1, 2, 99.0 if job.side == "ssast-fp32" else 0.01)
    )
    study = measure_efficiency(options(throughput=False, passes=("inference",), sides=("ssamba-fp32", "ssast-fp32")))
    slow = [p for p in study.points if p.side == "ssast-fp32"]
    assert [(p.patches, p.median_s, p.rounds) for p in slow] == [(8, 99.0, 1)]
    assert "longer than the budget of 20 s" in slow[0].stopped
    assert "once" in markdown(study)
    # One call is no median: nothing is fitted to it.
    assert slow[0].is_single
    assert 8 not in curve(study, "inference", "tiny", 1, "ssast-fp32", "time")
    assert curve(study, "inference", "tiny", 1, "ssast-fp32", "time", single=True) == {8: 99.0}
    assert [p.patches for p in study.points if p.side == "ssamba-fp32"] == [8, 16]


def test_a_side_that_fails_leaves_the_others(no_children, monkeypatch):
    def cost(job, options):
        if job.side == "ssast-fp32":
            raise RuntimeError("could not create a primitive")
        return 1, 2, 0.01

    monkeypatch.setattr(efficiency, "_cost_in_child", cost)
    study = measure_efficiency(options(throughput=False, passes=("inference",), sides=("ssamba-fp32", "ssast-fp32")))
    assert [p.stopped for p in study.points if p.side == "ssast-fp32"] == ["failed: could not create a primitive"]
    assert [p.median_s is not None for p in study.points if p.side == "ssamba-fp32"] == [True, True]
    with pytest.raises(RuntimeError, match="primitive"):
        measure_efficiency(options(throughput=False, passes=("inference",), sides=("ssast-fp32",)))


def test_the_batch_is_doubled_while_clips_per_second_grow(no_children, monkeypatch):
    def timings(runs, **_):
        return {name: [0.1 if run.run.batch < 8 else 0.1 * run.run.batch / 8] * 3 for name, run in runs.items()}

    class Stub:
        def __init__(self, job, device):
            self.batch = job.batch

        def __call__(self):
            pass

    monkeypatch.setattr(efficiency, "prepare", Stub)
    monkeypatch.setattr(efficiency, "timings_s", timings)
    study = measure_efficiency(options(passes=("inference",), sides=("ssast-fp32",)))
    assert [p.batch for p in study.points if p.section == "batch"] == [1, 2, 4, 8, 16]
    (best,) = study.best_batches()
    assert (best.batch, best.clips_per_s) == (8, 80.0)


@pytest.mark.skipif(sys.platform != "linux", reason="resident peaks are Linux's")
def test_a_child_measures_memory_and_reports_its_failure(monkeypatch):
    job = Job("ssast-unfused-fp32", "tiny", "inference", 1, 512, 1)
    peak, total, seconds = efficiency._cost_in_child(job, options())
    matrix = 3 * 514**2 * 4
    assert peak is None or matrix <= peak <= 12 * matrix
    assert total is None or total > peak
    assert 0 < seconds < 60
    with pytest.raises(RuntimeError, match="num_frames"):
        efficiency._cost_in_child(job._replace(patches=0), options())

    def never(*_, timeout, **__):
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(subprocess, "run", never)
    with pytest.raises(TimeoutError, match="did not end within 140 s"):
        efficiency._cost_in_child(job, options())


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_each_side_runs_as_its_name_says(side, mode, monkeypatch):
    used = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def recording(q, *rest, **options):
        used.append(q.dtype)
        return attend(q, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recording)
    prepare(Job(side, "tiny", mode, 2, 16, 2), torch.device("cpu"))()
    fused = SIDES[side].attention == "fused"
    dtype = torch.bfloat16 if side.endswith("bf16") else torch.float32
    assert used == ([dtype] * 2 if fused else [])


def test_crossings_of_power_laws_are_found_where_they_are():
    lengths = [512 * 2**i for i in range(7)]
    ours = {n: 3.0 * n for n in lengths}
    theirs = {n: n**2 / 1000 for n in lengths}
    at, first, last, factor = crossing(ours, theirs)
    assert (first, last) == (512, 32_768)
    assert at == pytest.approx(3000)
    assert factor == pytest.approx(32_768 / 3000)
    assert crossing(theirs, ours) == (None, 512, 32_768, pytest.approx(3000 / 32_768))
    assert crossing({n: n / 10 for n in lengths}, theirs)[0] == 512
    assert crossing({512: 1.0}, theirs) is None


@settings(deadline=None)
@given(exponent=st.floats(0.2, 3.0), scale=st.floats(1e-6, 1e3))
def test_the_exponent_of_a_power_law_is_found_whatever_its_scale(exponent, scale):
    values = {n: scale * n**exponent for n in (2048, 4096, 8192, 32_768)}
    found, first, last = growth({512: 1e9, **values, 65_536: 1e-9})  # what is outside the range changes nothing
    assert found == pytest.approx(exponent, abs=1e-6)
    assert (first, last) == (2048, 32_768)
    assert growth({2048: 1.0, 4096: 2.0}) is None


def test_crossovers_are_described_in_the_report():
    chosen = options(throughput=False, passes=("inference",), patches=(512, 1024, 2048, 4096))
    study = Study(chosen, {"processor": "x", "threads": 1}, finished=True)
    for n in chosen.patches:
        for side in chosen.sides:
            seconds = n * 2e-3 if side.startswith("ssamba") else n * n * 1e-6
            study.points.append(Point("length", side, "tiny", "inference", 1, n, seconds, seconds, seconds, 3, None))
    found = crossovers(study)
    assert {(c.ours, c.theirs) for c in found} == {
        ("ssamba-fp32", "ssast-fp32"),
        ("ssamba-fp32", "ssast-unfused-fp32"),
        ("ssamba-bf16", "ssast-bf16"),
    }
    assert all(c.patches == pytest.approx(2000) for c in found)
    assert growths(study) == []
    assert "is faster than SSAST fp32 from about 2,000 patches on, 40 s of audio" in markdown(study)
    study.finished = False
    assert "interrupted" in markdown(study)


def test_growth_is_in_the_table_of_a_long_study():
    chosen = options(throughput=False, passes=("inference",), patches=(2048, 4096, 8192), sides=("ssast-fp32",))
    study = Study(chosen, {"processor": "x", "threads": 1}, finished=True)
    for n in chosen.patches:
        study.points.append(Point("length", "ssast-fp32", "tiny", "inference", 1, n, n * n, n * n, n * n, 3, n))
    assert [(g.quantity, round(g.exponent, 6)) for g in growths(study)] == [("time", 2.0), ("memory", 1.0)]
    assert "SSAST fp32 | time     | 2.00" in markdown(study)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patches": (12,)}, "multiples of 8"),
        ({"sides": ("ssamba",)}, "unknown side 'ssamba'"),
        ({"batches": ()}, "at least one"),
        ({"batches": (0,)}, "positive"),
        ({"sizes": ("huge",)}, "'tiny', 'small' or 'base'"),
        ({"device": "mps"}, "auto, cpu or cuda"),
    ],
)
def test_wrong_options_say_what_was_expected(changes, message):
    with pytest.raises(ConfigError, match=message):
        options(**changes)


def test_a_missing_gpu_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert options(device="auto").resolved_device().type == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        measure_efficiency(options(device="cuda"))


def test_the_papers_setting_is_one_flag():
    paper = EfficiencyOptions.paper(device="cpu")
    assert paper.batches == (4, 2)
    assert paper.patches[-2:] == (22_000, 40_704)
    assert all(side.endswith("fp32") for side in paper.sides)
    assert EfficiencyOptions.paper(sizes=("tiny",)).sizes == ("tiny",)


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("512", (512,)),
        ("8,24", (8, 24)),
        ("512:2048", (512, 1024, 2048)),
        ("512:3000", (512, 1024, 2048, 3000)),
        ("8:8", (8,)),
    ],
)
def test_patches_are_lists_or_doublings(text, counts):
    assert parse_patches(text) == counts


def test_the_command_writes_a_study_once(no_children, tmp_path):
    command = ["bench", "efficiency", "--sizes", "tiny", "--patches", "8:16", "--batch", "1", "--passes", "inference"]
    command += ["--no-throughput", "--device", "cpu", "--each-s", "0.01", "--depth", "2", "-o", str(tmp_path / "e")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "tiny, inference, batch 1" in done.output
    assert (tmp_path / "e" / "efficiency_batch1.png").exists()
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, again.output.splitlines()[0]) == (0, done.output.splitlines()[0])
    wrong = CliRunner().invoke(app, ["bench", "efficiency", "--patches", "8:x", "-o", str(tmp_path / "f")])
    assert wrong.exit_code == 2
    assert not (tmp_path / "f").exists()


def test_an_interrupted_command_keeps_what_it_measured(no_children, tmp_path, monkeypatch):
    measure = efficiency._measure

    def interrupted(section, jobs, *rest):
        if jobs[0].patches > 8:
            raise KeyboardInterrupt
        return measure(section, jobs, *rest)

    monkeypatch.setattr(efficiency, "_measure", interrupted)
    command = ["bench", "efficiency", "--sizes", "tiny", "--patches", "8:16", "--batch", "1", "--each-s", "0.01"]
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--depth", "2", "-o", str(tmp_path / "e")])
    assert done.exit_code == 130
    content = json.loads((tmp_path / "e" / "efficiency.json").read_text())
    assert not content["finished"]
    assert len(content["points"]) == 5
    # The same command goes on; another one does not.
    monkeypatch.setattr(efficiency, "_measure", measure)
    other = CliRunner().invoke(app, [*command, "--device", "cpu", "--depth", "1", "-o", str(tmp_path / "e")])
    assert other.exit_code == 1
    assert "depth was 2, is 1" in " ".join(other.output.split())
    seen = []
    monkeypatch.setattr(efficiency, "_measure", lambda *a: seen.append(a[1][0]) or measure(*a))
    done = CliRunner().invoke(app, [*command, "--device", "cpu", "--depth", "2", "-o", str(tmp_path / "e")])
    assert done.exit_code == 0, done.output
    assert ("inference", 8, 1) not in [(job.mode, job.patches, job.batch) for job in seen[:1]]
    whole = json.loads((tmp_path / "e" / "efficiency.json").read_text())
    assert whole["finished"]
    assert whole["points"][:5] == content["points"]
