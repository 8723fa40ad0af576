"""Names of models: what a name or path stands for, and what is said when it stands for nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssamba
from ssamba.checkpoint import average_checkpoints, convert_checkpoint, find_model, load_checkpoint, save_checkpoint
from ssamba.checkpoint.names import KNOWN_MODELS, FoundModel
from ssamba.config import FrontEndConfig, ModelConfig, ModelIdentity
from ssamba.errors import CheckpointError, ModelMismatchError
from ssamba.model import create_encoder

COMMIT = "b" * 40
WEIGHTS_OF_SSAMBA2_TINY_1 = "c3877dccfa5c327f"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def cached_hub(tmp_path, monkeypatch, ssamba_pth):
    """An offline hub cache: a checkpoint of ours in two revisions, a damaged one, and another model."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, commit in (("ours", "a" * 40), ("ours", COMMIT), ("damaged", COMMIT), ("bert", COMMIT)):
        folder = cache / f"models--me--{name}" / "snapshots" / commit
        convert_checkpoint(ssamba_pth, folder, origin="a test")
        refs = cache / f"models--me--{name}" / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text(COMMIT)
        if name == "damaged":
            (folder / "config.json").write_text("{")
        if name == "bert":
            (folder / "config.json").write_text('{"model_type": "bert"}')
    return cache


def small_checkpoint(folder, **config):
    torch.manual_seed(0)
    encoder = create_encoder("tiny", "ssamba2", embed_dim=24, depth=2)
    return save_checkpoint(folder, encoder, ModelConfig(encoder=encoder.config, **config))


# Known names.


@pytest.mark.parametrize("name", ["ssamba2-tiny", "ssamba2-tiny-1", None])
def test_a_name_and_its_alias_are_the_versioned_model(name, here):
    model = ssamba.load_model(name, device="cpu")
    assert model.name == "ssamba2-tiny-1"
    # Weights never change under a versioned name: new ones get another version.
    assert model.identity == ModelIdentity(name="ssamba2-tiny-1", weights_digest=WEIGHTS_OF_SSAMBA2_TINY_1)
    assert load_checkpoint(name).report.name == "ssamba2-tiny-1"
    assert ssamba.load_encoder(name).config.embed_dim == 192


def test_no_two_models_share_a_name():
    names = [name for known in KNOWN_MODELS for name in (known.name, *known.aliases)]
    assert len(set(names)) == len(names)


def test_available_models_describes_what_ships():
    shipped = [model for model in ssamba.available_models() if model.where == "shipped"]
    (model,) = shipped
    assert (model.name, model.aliases) == ("ssamba2-tiny-1", ("ssamba2-tiny",))
    assert (model.family, model.size, model.dim, model.license) == ("ssamba2", "tiny", 192, "MIT")
    assert model.parameters == sum(p.numel() for p in ssamba.load_encoder(model.name).parameters())
    assert model.file_bytes == (model.path / "model.safetensors").stat().st_size
    assert "Debian" in model.data


def test_available_models_describes_what_the_hub_cached(cached_hub):
    cached = [model for model in ssamba.available_models() if model.where == "cached"]
    assert [(model.name, model.aliases) for model in cached] == [
        (f"hf:me/ours@{'a' * 40}", ()),
        (f"hf:me/ours@{COMMIT}", ("hf:me/ours",)),
    ]
    model = cached[1]
    assert (model.family, model.size, model.dim, model.license) == ("ssamba", "custom", 32, "not stated")
    assert model.data == "a test"
    for name in (model.name, *model.aliases):
        assert load_checkpoint(name).report.name == model.name


# Names against paths.


def test_a_name_comes_before_a_folder_of_that_name(here):
    small_checkpoint("ssamba2-tiny")
    with pytest.warns(UserWarning, match=r"name that one '\./ssamba2-tiny'"):
        assert load_checkpoint("ssamba2-tiny").report.name == "ssamba2-tiny-1"
    for path in ("./ssamba2-tiny", "ssamba2-tiny/", Path("ssamba2-tiny"), here / "ssamba2-tiny"):
        assert load_checkpoint(path).config.encoder.embed_dim == 24


def test_a_folder_of_that_name_that_is_no_checkpoint_is_not_mentioned(here):
    (here / "ssamba2-tiny").mkdir()
    assert find_model("ssamba2-tiny").name == "ssamba2-tiny-1"


def test_a_path_that_looks_like_a_name_is_a_path(here):
    small_checkpoint("ssamba2-tiny-9")
    assert find_model("ssamba2-tiny-9") == FoundModel(Path("ssamba2-tiny-9"), "ssamba2-tiny-9")
    small_checkpoint("random")
    assert load_checkpoint("random").config.encoder.embed_dim == 24


def test_the_folder_of_a_run_stands_for_its_model(here):
    small_checkpoint("run/model")
    small_checkpoint("run/checkpoints/step-00000003/model")
    for path in ("run", "run/model", "run/model/model.safetensors", "run/checkpoints/step-00000003"):
        assert load_checkpoint(path).report.name == path
        assert load_checkpoint(path).config.encoder.embed_dim == 24


def test_runs_that_have_not_finished_say_what_to_do(here):
    (here / "pretraining" / "checkpoints").mkdir(parents=True)
    (here / "finetuning" / "rounds").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"has not finished: repeat its command .*checkpoints/step-N"):
        load_checkpoint("pretraining")
    with pytest.raises(CheckpointError, match=r"has not finished: repeat its command .*rounds/NAME/chosen"):
        load_checkpoint("finetuning")


# Names of nothing.


def message_of(source) -> str:
    with pytest.raises(CheckpointError) as error:
        ssamba.load_model(source)
    return str(error.value)


@pytest.mark.parametrize("name", ["whisper", "no/such/model", "x" * 300, "a\0b", "~nobody-at-all/x", " ", ""])
def test_an_unknown_name_lists_the_known_ones_and_what_else_is_accepted(name, here):
    message = message_of(name)
    for text in ("ssamba2-tiny-1 (ssamba2-tiny)", "folder of a checkpoint", "run", ".pth", "hf:OWNER/NAME"):
        assert text in message
    assert "Did you mean" not in message
    assert "empty" in message or "no such file or folder" in message


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tiny", "ssamba2-tiny"),
        ("ssamba2_tiny", "ssamba2-tiny"),
        ("SSAMBA2-Tiny", "ssamba2-tiny"),
        ("ssamba2-tinny", "ssamba2-tiny"),
        ("ssamba2-tiny-2", "ssamba2-tiny-1"),
        ("ssamba2-tiny/", "ssamba2-tiny"),
    ],
)
def test_a_typo_names_the_nearest_name(name, near, here):
    assert f"Did you mean {near!r}?" in message_of(name)


def test_names_of_the_hub_cache_are_listed_too(cached_hub, here):
    assert f"hf:me/ours@{COMMIT} (hf:me/ours)" in message_of("hf-me/our")


@pytest.mark.parametrize("name", ["random", "logmel"])
def test_baselines_belong_to_evaluate(name, here):
    assert "baseline of `ssamba evaluate`" in message_of(name)


def test_a_path_object_is_never_a_name(here):
    assert "as a string, 'ssamba2-tiny'" in message_of(Path("ssamba2-tiny"))


def test_urls_are_not_fetched():
    assert "hf:OWNER/NAME" in message_of("https://huggingface.co/me/ours")


@pytest.mark.parametrize("source", [3, 1.5, True, b"ssamba2-tiny", ["ssamba2-tiny"], {}, object()])
def test_wrong_types_are_refused(source):
    assert f"got {type(source).__name__}" in message_of(source)


def test_a_module_is_referred_to_the_embedder(make_encoder):
    assert "ssamba.Embedder(model)" in message_of(make_encoder())


def test_an_installation_without_weights_says_so(here, monkeypatch):
    known = KNOWN_MODELS[0]
    absent = type(known)(known.name, known.aliases, known.data, known.license, here / "nowhere")
    monkeypatch.setattr("ssamba.checkpoint.names.KNOWN_MODELS", (absent,))
    monkeypatch.setattr("ssamba.checkpoint.names._NAMES", {known.name: absent, "ssamba2-tiny": absent})
    for name in ("ssamba2-tiny", None):
        assert "came without weights" in message_of(name)
    assert not [model for model in ssamba.available_models() if model.where == "shipped"]


# What is made with a model records it.


def test_models_are_the_same_by_their_weights(here):
    small_checkpoint("one")
    shutil.copytree("one", "two")
    one, two = (load_checkpoint(name).identity for name in ("one", "two"))
    assert (one.name, two.name) == ("one", "two")
    one.check_same(two, "table.npz", "use the same model")
    with pytest.raises(ModelMismatchError) as error:
        one.check_same(load_checkpoint("ssamba2-tiny").identity, "table.npz", "use the same model")
    for text in ("table.npz", str(one), f"ssamba2-tiny-1 (weights {WEIGHTS_OF_SSAMBA2_TINY_1})", "use the same model"):
        assert text in str(error.value)


def test_the_base_is_kept_by_conversion_and_by_the_mean_of_models_with_the_same(here):
    base, other = (ModelIdentity(name=name, weights_digest=name * 16) for name in "ab")
    for name, model in (("one", base), ("two", base), ("three", other)):
        small_checkpoint(name, base=model)
    convert_checkpoint("one", "converted")
    assert load_checkpoint("converted").config.base == base
    assert average_checkpoints(["one", "two"], "mean").config.base == base
    assert average_checkpoints(["one", "three"], "mixed").config.base is None
    assert load_checkpoint("mixed").config.origin == "mean of 1 of one and 1 of three"


def test_a_configuration_without_base_has_the_digest_that_it_had():
    config = ModelConfig(encoder=create_encoder("tiny").config)
    assert config.digest() == "489d3389531a9a19"
    assert config.with_changes(base=ModelIdentity(name="a", weights_digest="b")).digest() != config.digest()
    assert FrontEndConfig().digest() == "b80ef1cff313a05a"


# The command line.


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "ssamba", *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def test_the_command_lists_models(cached_hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(cached_hub))
    done = command("models")
    assert done.returncode == 0, done.stderr
    for text in (
        "ssamba2-tiny-1  (ssamba2-tiny)",
        "6.92 M parameters, dimension 192, 16.3 MB",
        "license: MIT, shipped",
    ):
        assert text in done.stdout
    assert f"hf:me/ours@{COMMIT}  (hf:me/ours)" in done.stdout
    listed = json.loads(command("models", "--json").stdout)
    assert [model["where"] for model in listed] == ["shipped", *["official"] * 9, "cached", "cached"]
    assert listed[0]["parameters"] == 6_922_176


def test_commands_take_names(tmp_path, clips):
    table = tmp_path / "e.npz"
    done = command("embed", clips[8], "-o", table, "-c", "ssamba2-tiny")
    assert done.returncode == 0, done.stderr
    done = command("info", "ssamba2-tiny")
    assert f"digest {WEIGHTS_OF_SSAMBA2_TINY_1}" in done.stdout
    done = command("embed", clips[8], "-o", table, "-c", "ssamba2-tinny")
    assert (done.returncode, "Did you mean 'ssamba2-tiny'?" in done.stderr) == (1, True)
    done = command("info", "ssamba2-tinny")
    assert (done.returncode, "Did you mean 'ssamba2-tiny'?" in done.stderr) == (1, True)
