"""The package as a stranger meets it: guessed names, and wrong arguments of every public function."""

from __future__ import annotations

import copy
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ssamba
from ssamba import hints
from ssamba.cli import app
from ssamba.embedder import Embedder

CLIP = np.zeros(16_000, np.float32)

GUESSES_OF_THE_PACKAGE = {
    "list_models": "ssamba.available_models()",  # timm
    "create_model": "ssamba.load_model(",
    "from_pretrained": "ssamba.load_model(",  # transformers
    "AutoModel": "ssamba.load_model(",
    "pipeline": "ssamba.load_model(",
    "load_audio": "ssamba.audio.decode.decode(path)",  # whisper
    "log_mel_spectrogram": "ssamba.audio.fbank.log_mel(waveform)",
    "transcribe": "model.embed(source)",
    "embed": "model.embed(source)",
    "load_mode": "Did you mean 'load_model'?",
}
GUESSES_OF_A_MODEL = {
    "encode": "model.embed(source)",  # sentence-transformers
    "similarity": "cosine_similarity(one.clip, other.clip",
    "get_sentence_embedding_dimension": "model.dim",
    "transcribe": "model.embed(source)",  # whisper
    "forward_features": "model.encoder(features)",  # timm
    "num_features": "model.dim",
    "eval": "evaluation mode",  # torch
    "half": "model.encoder.bfloat16()",
    "cuda": 'model.to("cuda")',
    "parameters": "model.encoder",
    "state_dict": "model.encoder",
    "save_pretrained": "ssamba.save_checkpoint(folder, model.encoder)",  # transformers
    "sampling_rate": "model.front_end.sample_rate_hz",
    "labels": "model.config.classifier.labels",
    "embd": "Did you mean 'embed'?",
}


@pytest.mark.parametrize(("name", "hint"), GUESSES_OF_THE_PACKAGE.items())
def test_guessed_names_of_the_package_name_the_right_one(name, hint):
    with pytest.raises(AttributeError) as caught:
        getattr(ssamba, name)
    assert str(caught.value).startswith(f"module 'ssamba' has no attribute {name!r}")
    assert hint in str(caught.value)


@pytest.mark.parametrize(("name", "hint"), GUESSES_OF_A_MODEL.items())
def test_guessed_names_of_a_model_name_the_right_one(embedder, name, hint):
    assert not hasattr(embedder, name)
    with pytest.raises(AttributeError) as caught:
        getattr(embedder, name)
    assert str(caught.value).startswith(f"'Embedder' has no attribute {name!r}")
    assert hint in str(caught.value)


def test_guessed_uses_of_results_name_the_right_one(embedder, classifier_folder, clips):
    with pytest.raises(TypeError, match=r"model.embed\(source\)"):
        embedder(clips[8])
    embedding = embedder.embed(clips[8])
    with pytest.raises(TypeError, match=r"embedding.clip \(D,\)"):  # else an array of objects
        np.asarray(embedding)
    with pytest.raises(AttributeError, match=r"'numpy': use embedding.clip \(D,\)"):
        embedding.numpy()
    with pytest.raises(AttributeError, match=r"Did you mean 'frames'"):
        embedding.frame  # noqa: B018
    (prediction,) = ssamba.load_model(classifier_folder, device="cpu").predict(clips[8])
    with pytest.raises(AttributeError, match=r"'label': use prediction.best\(count\)"):
        prediction.label  # noqa: B018
    for one in (embedder, embedding, prediction):
        for again in (copy.deepcopy(one), copy.copy(one), pickle.loads(pickle.dumps(one))):
            assert repr(again) == repr(one)


def test_models_are_listed_in_short():
    first = ssamba.available_models()[0]
    assert repr(first) == "ModelInfo('ssamba2-tiny-1', 6.9 M parameters, dim 192, shipped)"


def test_hints_are_for_names_that_do_not_exist(embedder):
    """Otherwise a renamed thing would have a hint that says it is not there."""
    for guesses, owner in ((hints.PACKAGE, ssamba), (hints.EMBEDDER, embedder)):
        assert not [name for name in guesses if hasattr(owner, name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clips, classifier_folder):
    """A folder with a recording, a classifier and a text, which no wrong use may change."""
    folder = tmp_path_factory.mktemp("front")
    (folder / "recs").mkdir()
    shutil.copy(clips[8], folder / "recs" / "good.flac")
    shutil.copytree(classifier_folder, folder / "classifier")
    for name in ("text.npz", "text.parquet", "text.txt"):
        (folder / name).write_text("no table")
    return folder


PATH = "expected a path (a string or a Path), got "
RECORDINGS = "expected the path of a recording, a folder or a pattern, or a list of these, got "
MODEL = "expected the name of a model or the path of a checkpoint, got "
WRONG_ARGUMENTS: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], str]]] = {
    "Embedder": [
        (("ssamba2-tiny",), {}, "got str: ssamba.load_model takes names and paths of models"),
        ((torch.nn.Linear(2, 2),), {}, "expected an encoder (of create_encoder) or a checkpoint, got Linear"),
        (("ENCODER", "official"), {}, "front_end: expected a FrontEndConfig or a name: 16khz"),
        (("ENCODER",), {"device": "gpu"}, "device must be 'cpu', 'cuda', 'cuda:1' or the like, got 'gpu'"),
        (("ENCODER",), {"device": "meta"}, "holds no weights"),
    ],
    "load_model": [
        (("classifier",), {"patch_stride": "ten"}, "patch_stride is a whole number, or one for mel bins and one for"),
        (("classifier",), {"patch_stride": (10,)}, "got (10,)"),
        (("classifier",), {"patch_stride": 2.5}, "got 2.5"),
        (("classifier",), {"front_end": {"low_hz": 20}}, "front_end: expected a FrontEndConfig, got dict"),
    ],
    "load_encoder": [
        (("tiny",), {}, "Did you mean 'ssamba2-tiny'?"),
        ((3,), {}, f"{MODEL}int"),
        ((b"classifier",), {}, f"{MODEL}bytes"),
        (("",), {}, "the name of the model is empty"),
        (("no/model",), {}, "no/model: no such file or folder"),
        (("text.txt",), {}, "text.txt is damaged or not a PyTorch checkpoint"),
        (("recs",), {}, "recs holds no checkpoint: config.json is missing"),
        ((Path("ssamba2-tiny"),), {}, "given as a string, 'ssamba2-tiny'"),
        (("https://example.org/a.pth",), {}, "is a URL, which is not fetched"),
        (("classifier", 99), {}, "patch_stride=99 leaves gaps between patches"),
    ],
    "create_encoder": [
        (("huge",), {}, "unknown size 'huge': expected one of tiny, small, base"),
        (("ssamba2-tiny",), {}, "ssamba.load_encoder and ssamba.load_model take names of trained models"),
        ((192,), {}, "unknown size 192"),
        ((["tiny"],), {}, "unknown size ['tiny']"),
        (("tiny", "ssamba3"), {}, "unknown variant 'ssamba3': expected one of official, ssamba2, ssast, ssast_frame"),
        (("tiny",), {"depth": 0}, "depth: Input should be greater than 0 (got 0)"),
        (("tiny",), {"embed_dims": 3}, "unknown key 'embed_dims'; did you mean 'embed_dim'?"),
        (("tiny",), {"embed_dim": "big"}, "embed_dim: Input should be a valid integer (got 'big')"),
        (("tiny",), {"patch_size": (300, 16)}, "is smaller than one patch of 300 x 16"),
        (("tiny",), {"pretrained": True}, "unknown key 'pretrained'; known keys: embed_dim, depth"),
        (("base", "ssast"), {"num_heads": 7}, "embed_dim 768 is not a multiple of num_heads 7"),
    ],
    "save_checkpoint": [
        (("x", "classifier"), {}, "expected an encoder, a classifier or a pretraining model, got str"),
        (("x", "EMBEDDER"), {}, "got Embedder (of an Embedder, save model.encoder or model.classifier"),
        (("x", torch.nn.Linear(2, 2)), {}, "got Linear"),
        (("x", {}), {}, "got dict"),
        (("ENCODER", "x"), {}, f"{PATH}SSAMBAEncoder"),
        ((3, "ENCODER"), {}, f"{PATH}int"),
        (("text.txt", "ENCODER"), {}, "text.txt is a file, or lies below one: expected the name of a folder to write"),
        (("text.txt/x", "ENCODER"), {}, "text.txt/x is a file, or lies below one"),
        (("x", "ENCODER", {"a": 1}), {}, "config: expected a ModelConfig or None, got dict"),
        (("x", "ENCODER"), {"front_end": "official"}, "front_end: expected a FrontEndConfig, got str"),
        (
            ("x", "ENCODER"),
            {"front_end": ssamba.FrontEndConfig(num_mel_bins=64)},
            "makes 64 mel bins, but the encoder takes 128",
        ),
    ],
    "convert_checkpoint": [
        ((3, "x"), {}, f"{MODEL}int"),
        (("EMBEDDER", "x"), {}, f"{MODEL}Embedder"),
        (("no/model", "x"), {}, "no/model: no such file or folder"),
        (("recs", "x"), {}, "recs holds no checkpoint: config.json is missing"),
        (("text.txt", "x"), {}, "text.txt is damaged or not a PyTorch checkpoint"),
        (("https://example.org/a.pth", "x"), {}, "is a URL, which is not fetched"),
        (("classifier", None), {}, f"{PATH}NoneType"),
        (("classifier", "text.txt"), {}, "text.txt is a file, or lies below one"),
        (("classifier", "text.txt/x"), {}, "text.txt/x is a file, or lies below one"),
        (("classifier", "x"), {"origin": 3}, "origin: Input should be a valid string (got 3)"),
    ],
    "average_checkpoints": [
        (("classifier", "x"), {}, "averaging takes two checkpoints or more, got 'classifier' alone"),
        ((["classifier"], "x"), {}, "averaging takes two checkpoints or more, got 1"),
        (([], "x"), {}, "got 0"),
        ((["classifier", "ENCODER"], "x"), {}, MODEL),
        ((["classifier"] * 2, None), {}, f"{PATH}NoneType"),
        ((["classifier"] * 2, "text.txt"), {}, "text.txt is a file"),
        ((["classifier"] * 2, "x"), {"weights": 3}, "2 checkpoints need as many weights, none below 0 and not all 0"),
        ((["classifier"] * 2, "x"), {"weights": [1]}, "got [1]"),
        ((["classifier"] * 2, "x"), {"weights": ["a", "b"]}, "got ['a', 'b']"),
        ((["classifier"] * 2, "x"), {"weights": [0, 0]}, "got [0, 0]"),
        ((["classifier"] * 2, "x"), {"weights": [float("nan"), 1]}, "got [nan, 1]"),
    ],
    "read_embeddings": [
        (("absent.npz",), {}, "absent.npz: no such file. Expected a file that `ssamba embed -o` wrote"),
        (("recs",), {}, "recs: is a folder"),
        (("",), {}, "is a folder"),
        ((3,), {}, f"{PATH}int"),
        ((None,), {}, f"{PATH}NoneType"),
        ((CLIP,), {}, f"{PATH}ndarray"),
        (("text.txt",), {}, "expected a table that `ssamba embed -o` wrote, .npz, .parquet, .csv"),
        (("recs/good.flac",), {}, "expected a table that"),
        (("text.npz",), {}, "text.npz is damaged or was not written by `ssamba embed` (it is no .npz archive)"),
        (("text.parquet",), {}, "text.parquet is damaged or was not written by `ssamba embed`"),
    ],
    "embed_files": [
        (("recs", None), {}, f"{PATH}NoneType"),
        ((None, "x.npz", "EMBEDDER"), {}, f"{RECORDINGS}NoneType"),
        ((CLIP, "x.npz", "EMBEDDER"), {}, f"{RECORDINGS}float32"),
        (([CLIP], "x.npz", "EMBEDDER"), {}, "ndarray (waveforms in memory: Embedder.embed and Embedder.predict take"),
        (([], "x.npz", "EMBEDDER"), {}, "no file could be embedded: none was named"),
        (("recs", "x.txt", "EMBEDDER"), {}, "x.txt: expected a file name that ends in .npz, .parquet, .csv"),
        (("recs", "x.npz", "ENCODER"), {}, f"{MODEL}SSAMBAEncoder"),
        (("recs", "x.npz", "EMBEDDER"), {"device": "cpu"}, "this model is already loaded: omit it"),
        (("recs", "x.npz", "EMBEDDER"), {"layer": 9}, "layer must lie between 0"),
        (("recs", "x.npz", "EMBEDDER"), {"channels": "separate"}, 'channels must be "mean" or the number of a channel'),
        (("recs", "x.npz", "EMBEDDER"), {"workers": -1}, "workers is a number of processes, 0 for none besides this"),
        (("recs", "x.npz", "EMBEDDER"), {"workers": "two"}, "got 'two'"),
        (("recs", "x.npz", "EMBEDDER"), {"progress": True}, "progress must be a function that takes a Progress"),
        (("recs", "x.npz", "EMBEDDER"), {"damaged": "mend"}, "damaged must be 'skip' or 'keep'; got 'mend'"),
        (("recs", "x.npz", "EMBEDDER"), {"batch_tokens": 0}, "batch_tokens must be a whole number"),
    ],
    "predict_files": [
        (("recs", "EMBEDDER"), {}, "has no classifier: expected a fine-tuned checkpoint, got kind 'encoder' (`ssamba"),
        (("recs", "ENCODER"), {}, f"{MODEL}SSAMBAEncoder"),
        (("recs", "classifier", "x.npz"), {}, "x.npz: expected a file name that ends in .csv, .json or .parquet"),
        (("recs", "classifier", 3), {}, f"{PATH}int"),
        (("recs", "classifier"), {"top": -1}, "top is the number of labels to keep, 0 for all; got -1"),
        (("recs", "classifier"), {"top": "all"}, "got 'all'"),
        (("recs", "classifier"), {"top": 2.5}, "got 2.5"),
        (("recs", "classifier"), {"progress": 1}, "progress must be a function"),
        (("recs", "classifier"), {"workers": -1}, "workers is a number of processes"),
        (("recs", "classifier"), {"device": "gpu"}, "device must be 'cpu', 'cuda'"),
        ((CLIP, "classifier"), {}, f"{RECORDINGS}float32"),
    ],
    "evaluate": [
        ((None,), {}, "suite is a folder of tasks, or a list of tasks of `read_suite`; got NoneType"),
        (([],), {}, "got an empty list"),
        (("recs", []), {}, "no model named"),
        (("recs", 3), {}, "an Embedder or another ClipModel, got int"),
        (("recs", "ENCODER"), {}, "got SSAMBAEncoder (an encoder in memory: ssamba.Embedder(encoder))"),
        (("recs", "logmel"), {"pooling": 3}, "poolings: Input should be a valid tuple (got 3)"),
        (("recs", "logmel"), {"workers": "two"}, "workers is a number of threads, at least 1; got 'two'"),
        (("recs", "logmel"), {"output": 3}, f"{PATH}int"),
        (("recs", "logmel"), {"task": 3}, "task takes the name of a task, or a list of names; got 3"),
        (("recs", "logmel"), {"progress": 3}, "progress must be a function"),
    ],
    "pretrain": [
        (("recs", None), {}, f"{PATH}NoneType"),
        ((3, "x"), {}, "expected a folder, a manifest, hf:OWNER/NAME, a corpus or a datasets.Dataset, got int"),
        (("https://example.org/a.tar", "x"), {}, "is a URL, and nothing is read over the network"),
        (("recs", "classifier"), {}, "classifier holds a checkpoint (config.json): choose another output"),
        (("recs", "x"), {"set": 3}, "set takes {KEY: VALUE} or a list of KEY=VALUE, got int"),
        (("recs", "x"), {"set": {"seed": 3}}, "unknown key 'seed'; did you mean 'run.seed'?"),
        (("recs", "x"), {"set": {"run.learning_rate": 3}}, "did you mean 'optimizer.learning_rate'?"),
        (("recs", "x"), {"progress": 3}, "progress must be a function"),
        (("recs", "x"), {"recipe": 3}, "expected a PretrainRecipe, the name of a recipe (adapt, laptop,"),
    ],
    "finetune": [
        (("recs", None), {}, f"{PATH}NoneType"),
        (("recs", "classifier"), {}, "classifier holds a checkpoint (config.json): choose another output"),
        (("recs", "x", 3), {}, f"{MODEL}int"),
        (("recs", "x"), {"progress": "x"}, "progress must be a function"),
        (("recs", "x"), {"recipe": ssamba.PretrainRecipe.read()}, "got PretrainRecipe"),
    ],
    "reconstruct_recording": [
        (("recs/good.flac", None), {}, f"{PATH}NoneType"),
        ((CLIP, "x.png"), {}, f"{PATH}ndarray"),
        (("recs/good.flac", "x.png"), {"ratio": "x"}, "reconstruct: ratio: Input should be a valid number (got 'x')"),
        (("recs/good.flac", "x.png"), {"ratio": 2}, "ratio: Input should be less than 1 (got 2)"),
        (
            ("recs/good.flac", "x.png"),
            {"style": "random"},
            "style: Input should be 'clustered', 'official' or 'frames'",
        ),
        (("recs/good.flac", "x.png"), {"seed": -1}, "seed: Input should be greater than or equal to 0"),
        (("recs/good.flac", "x.png"), {"start": "x"}, "start: Input should be a valid number"),
    ],
}


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"),
    [(name, *case) for name, cases in WRONG_ARGUMENTS.items() for case in cases],
    ids=[f"{name}-{number}" for name, cases in WRONG_ARGUMENTS.items() for number in range(len(cases))],
)
def test_a_wrong_argument_says_what_was_expected(folder, embedder, monkeypatch, function, arguments, options, message):
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    values = {"ENCODER": embedder.encoder, "EMBEDDER": embedder}

    def value(one):
        if isinstance(one, list):
            return [value(inner) for inner in one]
        return values.get(one, one) if isinstance(one, str) else one

    given = [value(one) for one in arguments]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is compared below
        getattr(ssamba, function)(*given, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_wrong_devices_say_what_was_expected(embedder):
    for device in ("gpu", 3, None, "cpu:x", CLIP):
        with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda', 'cuda:1' or the like, got ") as caught:
            copy.copy(embedder).to(device)
        assert len(str(caught.value)) < 200
    assert isinstance(Embedder(embedder.encoder).to("cpu"), Embedder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models", "tiny"], "Got unexpected extra argument"),
        (["models", "--jsn"], "No such option: --jsn. Did you mean --json"),
        (["models", "-o", "x"], "No such option: -o"),
        (["models", "-c", "ssamba2-tiny"], "No such option: -c"),
        (["models", "--json=1"], "does not take a value. See `ssamba models --help`"),
        (["models", "list"], "Got unexpected extra argument"),
        (["models", "--device", "cpu"], "No such option: --device"),
        (["models", "--all"], "No such option: --all"),
        (["models", "--jso", "1"], "No such option: --jso"),
        (["model"], "No such command 'model'. Did you mean 'models'?"),
        (["bench", "speed"], "No such command 'speed'"),
        (["bench", "efficiency", "--sizes", "huge"], "Input should be 'tiny', 'small' or 'base' (got 'huge')"),
        (["bench", "efficiency", "--patches", "512:8"], "expected FIRST:LAST with FIRST up to LAST, got '512:8'"),
        (["bench", "efficiency", "--device", "gpu"], "device must be 'cpu', 'cuda', 'cuda:1' or the like, got 'gpu'"),
        (["bench", "efficiency", "-o", "text.txt"], "text.txt is a file, or lies below one"),
        (["bench", "needle"], "Missing argument 'RECORDINGS...'"),
        (["bench", "needle", "recs", "--levels", "loud"], "expected numbers with commas between, got 'loud'"),
        (["bench", "needle", "recs", "--sides", "half"], "Input should be 'windows', 'full' or 'log-mel'"),
        (["bench", "needle", "recs", "-o", "text.txt"], "text.txt is a file, or lies below one"),
        (["bench", "long", "recs", "--minutes", "-1"], "minutes must be different lengths of at least 0.1"),
        (["bench", "long", "recs", "--budget-s", "0"], "budget_s: Input should be greater than 0"),
        (["bench", "long", "recs", "-o", "text.txt"], "text.txt is a file, or lies below one"),
        (["shard", "recs", "-o", "recs/"], "recs is the folder of the recordings: choose another output"),
        (
            ["embed", "ssamba2-tiny", "recs", "-o", "x.npz"],
            "'ssamba2-tiny' is the name of a model, which is given with",
        ),
        (["evaluate", "ssamba2-tiny-1"], "'ssamba2-tiny-1' is the name of a model"),
        (["embed", "recs", "--model", "x"], "No such option: --model: use -c, --checkpoint. See `ssamba embed --help`"),
        (["embed", "recs", "--out", "x.npz"], "No such option: --out: use -o, --output"),
        (
            ["embed", "recs"],
            "Missing option '--output' / '-o' (Table to write: .npz, .parquet or .csv; or a folder of Parquet",
        ),
        (["reconstruct", "-o", "x.png"], "Missing argument 'RECORDING' (Audio file; 10.24 s of it are used)"),
        (["embed", "recs", "-o"], "Option '-o' requires an argument. See `ssamba embed --help`"),
        (["embed", "recs", "-o", "x.npz", "--layer", "two"], "Input should be a valid integer (got 'two')"),
        (["pretrain", "recs", "-o", "x", "--resume"], "repeat the command to resume, or --overwrite to start anew"),
        (["pretrain", "recs", "-o", "x", "--lr", "1"], "use --set optimizer.learning_rate=VALUE"),
        (["help"], "No such command 'help'. See `ssamba --help`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_says_what_is_meant(folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "interrupted", "message"),
    [
        (["stats", "recs"], "ssamba.data.statistics.corpus_statistics", "interrupted"),
        (["models"], "ssamba.checkpoint.available_models", "interrupted"),
        (["info", "recs"], "ssamba.library.info.stream", "interrupted"),
        (["convert", "classifier", "-o", "x"], "ssamba.checkpoint.load.write_tensors", "interrupted"),
        (["average", "classifier", "classifier", "-o", "x"], "ssamba.checkpoint.load.write_tensors", "interrupted"),
        (["reconstruct", "recs/good.flac", "-o", "x.png"], "ssamba.training.pretraining.reconstruct.log_mel", "interr"),
        (
            ["bench", "long", "recs", "-o", "x"],
            "ssamba.studies.long_audio.embed_in_child",
            "the results so far are in x",
        ),
        (
            ["embed", "recs", "-o", "x.npz"],
            "ssamba.embedder.InferenceEngine.run",
            "0 files are embedded and saved: repeat the command",
        ),
        (["predict", "recs", "-c", "classifier"], "ssamba.library.engines.decode_files", "0 files are classified"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_interrupted_command_exits_130(folder, tmp_path, monkeypatch, arguments, interrupted, message):
    """By SIGTERM in this process, in the middle of the work; other tests interrupt real processes."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the command takes it over

    def interrupt(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(interrupted, interrupt)
    try:
        done = CliRunner().invoke(app, arguments)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (done.exit_code, done.stdout) == (130, "")
    assert message in done.stderr
    assert not [path.name for path in tmp_path.glob("x*") if path.is_file()]
    assert not list(tmp_path.rglob("*.tmp"))
