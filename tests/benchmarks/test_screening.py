"""The queue of short pretraining runs: its order, its commands, goings-on after a failure, finalists."""

import json
from itertools import pairwise
from pathlib import Path

from benchmarks.screening import runner
from benchmarks.screening.runner import commands, keep_snapshot, queue, read_arms, scores_of, work_through
from tests.conftest import invoke

from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.recipes import parse_changes

ARMS = Path(runner.__file__).with_name("arms.toml")
SMALL = {"run.steps": 1, "run.validate_every": "none", "model.encoder.embed_dim": 24, "model.encoder.depth": 2}
SMALL |= {"model.start": "none"}


def test_candidates_are_recipes():
    for arm in read_arms(ARMS.with_name("candidates.toml")).values():
        words = commands(arm, Path("arm"), {"first": "", "more": ""}, Path(), "", Path())[0]
        changes = parse_changes([word for before, word in pairwise(words) if before == "--set"])
        settings = PretrainRecipe.from_arguments(runner._CHECKOUT / arm["recipe"], changes)
        assert (settings.schedule.kind, settings.run.steps) == ("wsd", 20_475)
        assert settings.model.start == "ssamba2-tiny-1"
        assert arm["snapshot_steps"] == 1365


def test_models_on_the_way_are_kept_once(tmp_path):
    for step in (90, 110, 140, 210):
        state = tmp_path / "run" / "checkpoints" / f"step-{step:08}"
        (state / "model").mkdir(parents=True)
        (state / "model" / "config.json").write_text(str(step))
        (state / "meta.json").touch()
        keep_snapshot(tmp_path, 100)
    kept = {path.parent.name: path.read_text() for path in (tmp_path / "snapshots").glob("*/config.json")}
    assert kept == {"001": "110", "002": "210"}


def test_every_arm_is_a_command_that_pretrains(clips, tmp_path):
    arms = read_arms(ARMS)
    assert {"base17", "voice_warp", "parts", "queue", "mixed", "own_units", "mask30"} <= arms.keys()
    for arm in arms.values():
        assert 800 < arm["set"]["run.steps"] < 2000
        assert arm["set"]["run.max_minutes"] == "none"
    arm = {**arms["voice_warp"], "set": {**arms["voice_warp"]["set"], **SMALL, "objectives.unit_count": 8}}
    data = dict.fromkeys(("first", "more"), str(clips[0].parent))
    pretrain, evaluate = commands(arm, tmp_path / "arm", data, tmp_path / "suite", "python", runner._CHECKOUT)
    assert pretrain[:3] == evaluate[:3] == ["python", "-m", "ssamba"]
    assert invoke(*pretrain[3:]).exit_code == 0
    assert (tmp_path / "arm" / "run" / "model").is_dir()
    assert evaluate[-4:] == ["--readout", "clip", "--readout", "parts"]


def test_a_queue_goes_on_after_a_failure_and_ends_with_the_finalists(tmp_path, monkeypatch, capsys):
    names = ["base17", "a", "b", "c", "d", "later"]
    base = {"recipe": "recipe.toml", "data": ["first"], "set": {"run.seed": 0}, "about": ""}
    arms = {name: {**base, "snapshot_steps": None, "after": "d" if name == "later" else None} for name in names}
    monkeypatch.setattr(runner, "read_arms", lambda path: arms)
    done, broken = [], {"c"}

    def fake_commands(arm, folder, data, suite, python, checkout):
        done.append((folder.name, arm["set"]["run.seed"]))
        rows = [{"view": view, "scores": {"words": 0.1}, "mean": 0.1 * len(done)} for view in runner._VIEWS]
        text = json.dumps({"rows": rows})
        fails = folder.name in broken
        return [["sh", "-c", f"echo '{text}' > {folder}/scores.json" if not fails else "exit 3"]]

    monkeypatch.setattr(runner, "commands", fake_commands)
    work_through(Path("arms.toml"), tmp_path, {}, Path("suite"))
    assert [name for name, _ in done] == ["base17", "a", "b", "c", "d", "later"]
    assert "c: ended with 3" in capsys.readouterr().out
    assert scores_of(tmp_path / "c") == {} != scores_of(tmp_path / "d")
    broken.clear()
    work_through(Path("arms.toml"), tmp_path, {}, Path("suite"))
    assert done[6:] == [("c", 0), ("base17-seed1", 1), ("c-seed1", 1), ("later-seed1", 1), ("d-seed1", 1)]
    assert list(queue(Path("arms.toml"), tmp_path))[6:] == [name for name, _ in done[7:]]
