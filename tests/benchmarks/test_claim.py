"""The comparison of SSAMBA with SSAST: settings that both sides share, clips four times as long, a whole tiny run."""

import json

import numpy as np
import pytest
from benchmarks import claim

from ssamba.evaluation import read_suite
from ssamba.evaluation.clips import read_waves


def test_sides_differ_in_structure_and_rate_alone():
    one, other = (claim.recipe(side, 40.96, 20, 1e-3, 1).model_dump() for side in claim.SIDES)
    assert (one["model"].pop("variant"), other["model"].pop("variant")) == ("official", "ssast")
    assert one == other
    assert (one["data"]["crop_s"], one["model"]["encoder"]) == (40.96, {"num_frames": 4096})


def test_clips_of_one_cell_are_joined(suite, tmp_path):
    tasks = read_suite(suite)
    claim.write_suite(tasks, tmp_path / "long", 4)
    for before, after in zip(tasks, read_suite(tmp_path / "long"), strict=True):
        assert {*before.labels} == {*after.labels}
        assert {*before.groups} == {*after.groups}
        short, long = read_waves(before), read_waves(after)
        cells = [[*zip(task.labels, task.splits, task.groups, strict=True)] for task in (before, after)]
        assert len({*cells[1]}) == len({*cells[0]})
        members = [k for k, cell in enumerate(cells[0]) if cell == cells[1][0]]
        joined = np.concatenate([short[members[k % len(members)]] for k in range(4)])
        np.testing.assert_allclose(long[0], joined, atol=1e-3)


def test_every_part_is_a_row_once(suite, clips, tmp_path, monkeypatch):
    whole = claim.recipe

    def tiny(*arguments):
        small = {
            "model.encoder": {"embed_dim": 48, "depth": 2, "num_frames": 1024},
            "data.batch_s": 20.48,
            "data.valid_share": 0.2,
        }
        return whole(*arguments).with_values(small | {"run.precision": "fp32"})

    monkeypatch.setattr(claim, "recipe", tiny)
    monkeypatch.setattr(claim, "RATES", (1e-3,))
    monkeypatch.setattr(claim, "_SAME_TIME", 1e9)
    command = ["--corpus", str(clips[0].parent), "--suite", str(suite), "--task", "kinds", "--work", str(tmp_path)]
    command += ["--crops", "10.24", "--seeds", "0", "--minutes", "0.01", "--epochs", "1", "--pilot-steps", "3"]
    claim.main(command)
    content = json.loads((tmp_path / "rows.json").read_text())
    rows = content["rows"]
    assert [key.split("/")[2] for key in rows if "probe" in rows[key]] == ["clips", "clips"]
    for key, row in rows.items():
        assert row["step_s"] > 0
        if not key.startswith("pilot"):
            assert 0 <= row["finetuned"]["kinds"]["accuracy"] <= 1
            low, high = row["probe"]["parts"]["interval"]
            assert low <= row["probe"]["parts"]["mean"] <= high
            assert row["retrieval"]["clip"]["mean"] == pytest.approx(row["retrieval"]["clip"]["scores"]["kinds"])
    first, second = (rows[f"10.24 s/{side}/clips/0"] for side in claim.SIDES)
    assert first["clips"] == second["clips"]
    assert claim.report(content).count("SSA") == 2
    monkeypatch.setattr(claim, "pretrain", None)  # nothing is trained again
    claim.main(command)
    assert json.loads((tmp_path / "rows.json").read_text()) == content
    asked, train = [], claim.Claim.train
    monkeypatch.setattr(claim, "_SAME_TIME", 0)
    monkeypatch.setattr(claim.Claim, "score", lambda self, key, suite, seed: None)
    monkeypatch.setattr(
        claim.Claim, "train", lambda self, key, *rest: train(self, key, *rest) if key in rows else asked.append(key)
    )
    claim.main(command)  # the faster side goes on for the time of the other
    fast = min(claim.SIDES, key=lambda side: rows[f"10.24 s/{side}/clips/0"]["step_s"])
    assert asked == [f"10.24 s/{fast}/time/0"]
