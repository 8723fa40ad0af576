"""`ssamba pretrain` and `finetune`, and the functions of the same names: resuming, starting anew, wrong uses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import ssamba
from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.cli import app
from ssamba.config import FrontEndConfig
from ssamba.errors import Interrupted, OtherSettingsError
from ssamba.model import create_encoder

PRETRAIN = {
    "model.encoder": {"embed_dim": 24, "depth": 2},
    **{"data.crop_s": 1.0, "data.workers": 0, "data.valid_share": 0.0},
    **{"run.log_every": 1, "run.ema_decay": None, "schedule.warmup_steps": 2},
}
FINETUNE = {
    **{
        "clips.workers": 0,
        "clips.frames": 96,
        "run.ema_decay": None,
        "schedule.warmup_steps": 2,
        "optimizer.learning_rate": 5e-4,
    },
    **{"run.log_every": 1, "run.patience": None, "start.fitted_head": False, "run.precision": "fp32"},
}
COMMANDS = {"pretrain": (ssamba.pretrain, PRETRAIN), "finetune": (ssamba.finetune, FINETUNE)}
each_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Checkpoint of a small encoder."""
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("start"), create_encoder("tiny", "ssamba2", embed_dim=24, depth=2))


@pytest.fixture
def run(classes, start, tmp_path):
    """Call a command's function on the three classes; the keyword `changes` adds settings."""

    def call(command, output=None, **options):
        function, settings = COMMANDS[command]
        settings = {**settings, **options.pop("changes", {})}
        checkpoint = options.pop("checkpoint", start if command == "finetune" else None)
        if checkpoint is not None:
            settings.pop("model.encoder", None)
        options = {"epochs": 1, "batch_size": 4 if command == "pretrain" else 8, **options}
        return function(options.pop("data", classes), output or tmp_path / "run", checkpoint, set=settings, **options)

    return call


def states(run_folder: Path) -> list[str]:
    """Names of the saved states; of a finished fine-tuning, which has none, its length."""
    results = run_folder / "results.json"
    length = [str(json.loads(results.read_text())["recipe"]["run"]["epochs"])] if results.exists() else []
    return sorted(path.name for path in run_folder.rglob("checkpoints/step-*")) or length


@each_command
def test_the_same_call_goes_on_and_a_longer_one_lengthens_a_finished_run(command, run, tmp_path):
    seen = []
    first = run(command, epochs=2, progress=lambda state: seen.append(state) or state.done < 40)
    assert first.stopped == "stopped"
    assert first.model is None
    assert {state.unit for state in seen} == {"clips", "%"}
    assert {"loss"} <= seen[-1].metrics.keys()
    second = run(command, epochs=2)
    assert second.stopped == "finished"
    before = states(tmp_path / "run")
    assert "already finished" not in str(second)
    again = run(command, epochs=2)
    assert "already finished" in str(again)
    assert "(more minutes or epochs" in str(again)
    assert states(tmp_path / "run") == before
    assert "already finished" not in str(run(command, epochs=3))
    assert states(tmp_path / "run") != before


@each_command
def test_other_settings_are_refused_with_every_difference(command, run, tmp_path, classes):
    run(command)
    before = states(tmp_path / "run")
    with pytest.raises(OtherSettingsError) as caught:
        run(command, seed=7, changes={"optimizer.learning_rate": 1.0})
    message = str(caught.value)
    assert "run.seed was 0, is 7" in message
    assert "optimizer.learning_rate was 0.0005, is 1.0" in message
    assert "--overwrite to start anew, or choose another output" in message
    with pytest.raises(ValueError, match=r"not those of the saved run \(they were .* are .*--overwrite"):
        run(command, data=[classes / "choir", classes / "drum"])
    assert states(tmp_path / "run") == before
    assert not list(tmp_path.glob("run.old*"))


@each_command
def test_overwrite_starts_anew_and_keeps_the_earlier_run(command, run, tmp_path):
    run(command)
    kept = {path.relative_to(tmp_path / "run"): path.read_bytes() for path in (tmp_path / "run").rglob("*.safetensors")}
    report = run(command, seed=7, overwrite=True)
    assert report.moved_to == tmp_path / "run.old"
    assert str(tmp_path / "run.old") in str(report)
    assert {name: (tmp_path / "run.old" / name).read_bytes() for name in kept} == kept
    assert run(command, seed=7).stopped == "finished"


@each_command
def test_a_folder_of_something_else_is_refused(command, run, tmp_path):
    other = "finetune" if command == "pretrain" else "pretrain"
    run(other, tmp_path / "other")
    with pytest.raises(ValueError, match=rf"holds a {'fine-tuning' if other == 'finetune' else 'pretraining'} run"):
        run(command, tmp_path / "other")
    run(command)
    for folder in [*(tmp_path / "run").rglob("checkpoints"), *(tmp_path / "run").glob("rounds")]:
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(ValueError, match="contains a trained model but no saved state to resume from"):
        run(command)


@each_command
def test_several_sources_are_trained_on_together(command, run, classes, tmp_path):
    ssamba_cli("manifest", classes / "tabla", "-o", tmp_path / "tabla.csv", "--labels", "folder")
    report = run(command, data=[classes / "choir", classes / "drum", tmp_path / "tabla.csv"], seed=1, batch_size=4)
    if command == "finetune":
        assert report.classes == ("choir", "drum", "tabla")
        assert sum(report.folds[0].clips.values()) == 24
    else:
        assert report.clips >= 24
    if command == "finetune":
        recipe = json.loads((tmp_path / "run" / "results.json").read_text())["run"]["settings"]
    else:
        (meta,) = (tmp_path / "run").rglob("checkpoints/*/meta.json")
        recipe = json.loads(meta.read_text())["recipe"]
    assert recipe["run"]["seed"] == 1
    assert (recipe["task"].get("clips", {}).get("batch_size"), recipe["task"].get("data", {}).get("batch_s")) in [
        (4, None),
        (None, 4.0),
    ]


@pytest.mark.parametrize("kind", ["encoder", "classifier", "pretraining", "official", "ssast", "front end"])
def test_pretraining_goes_on_from_any_checkpoint(kind, run, start, ssamba_pth, ssast_pth, tmp_path):
    checkpoint = {"encoder": start, "official": ssamba_pth, "ssast": ssast_pth}.get(kind, tmp_path / "first")
    if kind == "front end":
        encoder = create_encoder("tiny", "ssamba2", embed_dim=24, depth=2, num_mel_bins=64)
        save_checkpoint(tmp_path / "first", encoder, front_end=FrontEndConfig(num_mel_bins=64, mean=-5.0))
    elif kind in ("classifier", "pretraining"):
        run("finetune" if kind == "classifier" else "pretrain", tmp_path / "first")
    report = run("pretrain", checkpoint=checkpoint, changes={"optimizer.learning_rate": 1e-9})
    model, first = load_checkpoint(report.model), load_checkpoint(checkpoint)
    assert model.front_end == first.front_end
    for name, value in first.model.encoder.state_dict().items():
        torch.testing.assert_close(model.model.encoder.state_dict()[name], value, atol=1e-5, rtol=0)
    assert model.config.base is not None
    assert model.config.base.weights_digest == first.identity.weights_digest
    assert run("pretrain", checkpoint=checkpoint, changes={"optimizer.learning_rate": 1e-9}, epochs=2).resumed_from
    with pytest.raises(OtherSettingsError, match=r"\.old|model|settings"):
        run("pretrain", checkpoint=None, changes={"optimizer.learning_rate": 1e-9})


def ssamba_cli(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done


def settings_as_options(settings):
    def text(value):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {text(inner)}" for key, inner in value.items()) + "}"
        return "none" if value is None else json.dumps(value)

    return [part for key, value in settings.items() for part in ("--set", f"{key}={text(value)}")]


@each_command
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_exits_130_and_goes_on(command, how, classes, start, tmp_path):
    arguments = [command, classes, "-o", tmp_path / "run", *settings_as_options(COMMANDS[command][1])]
    arguments += ["--batch-size", 8]
    if command == "finetune":
        arguments += ["-c", start]
    process = subprocess.Popen(
        [sys.executable, "-m", "ssamba", *map(str, arguments), "--epochs", "4000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A script's background job, as the tests may be, ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "is saved" in errors
    assert "repeat the command to resume" in errors
    assert "Traceback" not in errors
    assert output == ""
    (state,) = states(tmp_path / "run")
    done = ssamba_cli(*arguments, "--epochs", "1")
    assert "model in" in done.output or "classifier in" in done.output
    assert int(state.removeprefix("step-")) >= 1


@each_command
def test_interrupted_says_how_to_go_on(command, run, monkeypatch):
    sent = []

    def interrupt(state):
        if state.unit == "%" and not sent:
            sent.append(state)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"is saved.*repeat the command without --overwrite to resume") as caught:
        run(command, epochs=9, progress=interrupt, overwrite=True)
    assert caught.value.report.stopped == "SIGINT"


WRONG = [
    ("both", "absent", {}, 1, "absent: no such file or folder"),
    ("both", "text.txt", {}, 1, "is neither a folder of audio, nor a manifest"),
    ("both", "empty", {}, 1, "no audio file in this folder"),
    ("both", None, {"recipe": "lapdog"}, 2, "recipe lapdog does not exist: expected one of"),
    ("both", None, {"recipe": "bad.toml"}, 2, "unknown key 'run.sed'; did you mean 'seed'"),
    ("both", None, {"set": ["run.sed=1"]}, 2, "unknown key 'run.sed'; did you mean 'seed'"),
    ("both", None, {"set": ["run.seed"]}, 2, "expected KEY=VALUE, such as run.epochs=5"),
    ("both", None, {"set": ["run.seed=1"], "seed": 2}, 2, "seed=2 and run.seed=1 contradict each other"),
    ("both", None, {"seed": -1}, 2, "run.seed: Input should be greater than or equal to 0"),
    ("both", None, {"epochs": 0}, 2, "run.epochs: Input should be greater than 0"),
    ("both", None, {"minutes": -1.0}, 2, "run.max_minutes: Input should be greater than 0"),
    ("both", None, {"batch_size": 0}, 2, "batch_size is a number of clips, at least 1; got 0"),
    ("both", None, {"checkpoint": "no/model"}, 1, "no such file or folder"),
    ("both", None, {"output": "text.txt"}, 2, "text.txt is a file, or lies below one: expected the name of a folder"),
    ("both", None, {"device": "tpu", "epochs": 1}, 2, "device must be 'cpu', 'cuda', 'cuda:1' or the like, got 'tpu'"),
    ("pretrain", None, {"size": "huge"}, 2, "model.size: Input should be 'tiny', 'small' or 'base'"),
    ("pretrain", None, {"recipe": "esc50"}, 2, "expected one of adapt, laptop, many-nodes, official, one-gpu"),
    ("pretrain", None, {"size": "base", "checkpoint": "START"}, 2, "model.encoder.embed_dim is 24 there, and 768"),
    ("pretrain", None, {"set": ["masking.ratio=0.5", "masking.count=9"]}, 2, "exclude each other"),
    ("finetune", "classes/drum", {}, 1, "1 label(s) found (drum), expected at least two"),
    ("finetune", "unlabeled.csv", {}, 1, "no clip has a label"),
    ("finetune", None, {"recipe": "laptop"}, 2, "expected one of audioset20k, cpu, cpu-speech, esc50"),
    ("finetune", None, {"set": ["labels.unit=second"]}, 1, "needs a manifest whose rows are segments"),
]


@pytest.mark.parametrize(
    ("command", "data", "options", "code", "message"),
    [(one, *wrong[1:]) for wrong in WRONG for one in (COMMANDS if wrong[0] == "both" else [wrong[0]])],
)
def test_wrong_uses_end_in_one_message(command, data, options, code, message, classes, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes").symlink_to(classes)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no audio")
    (tmp_path / "bad.toml").write_text("[run]\nsed = 1\n")
    (tmp_path / "unlabeled.csv").write_text("path\n" + "".join(f"{path}\n" for path in sorted(classes.rglob("*.wav"))))
    options = {"output": "run", **options}
    options = {name: start if value == "START" else value for name, value in options.items()}
    before = sorted(tmp_path.rglob("*"))
    flags = []
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            flags += [f"--{name.replace('_', '-')}", str(one)]
    done = CliRunner().invoke(app, [command, data or str(classes), *flags])
    assert done.exit_code == code, done.output
    assert message in done.stderr.replace("\n", " ")
    assert done.stderr.count("error:") == 1
    with pytest.raises((ValueError, RuntimeError)) as caught:
        COMMANDS[command][0](data or classes, **options)
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
