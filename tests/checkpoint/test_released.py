"""Official weights by name, against a hub on the loopback: which file is meant, what is recorded, what can go wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
import time
from pathlib import Path

import pytest
from tests.checkpoint.fake_hub import COMMIT, FakeHub, serving
from typer.testing import CliRunner

import ssamba
from ssamba.checkpoint import convert_checkpoint, find_model, load_checkpoint, released, save_checkpoint
from ssamba.checkpoint.hub import Listing, RemoteFile
from ssamba.cli.app import app
from ssamba.errors import CheckpointError, MissingExtraError
from ssamba.library.tables import read_embeddings
from ssamba.model.create import SIZES

REPO = released.REPOSITORY
BY_NAME = {one.name: one for one in released.RELEASED}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with an empty repository of the authors', and an empty cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    fake = FakeHub()
    fake.repositories[REPO] = {}
    with serving(fake) as endpoint:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
        yield fake


@pytest.fixture
def content(ssamba_pth):
    return ssamba_pth.read_bytes()


def go_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def message_of(source) -> str:
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(source)
    assert error.value.__suppress_context__ or error.value.__context__ is None
    return str(error.value)


def chosen(name: str, *files: str, sums: dict[str, str] | None = None) -> str:
    listing = Listing(REPO, COMMIT, {file: RemoteFile(1, (sums or {}).get(file)) for file in files})
    return released.choose_file(BY_NAME[name], listing).path


# Which file is meant.


def folders_of(pattern: str) -> list[str]:
    return [pattern.format(size=size, count=count) for size in ("tiny", "small", "base") for count in (250, 300, 400)]


@pytest.mark.parametrize(
    "pattern",
    [
        "ssamba_{size}_{count}.pth",
        "ssamba-{size}-patch-{count}.pth",
        "SSAMBA_{size}_16x16_m{count}_best.pth",
        "{size}/{count}/audio_model.100.pth",
        "{size}/{count}/audio_model.300.pth",
        "{size}_{count}/models/best_audio_model.pth",
        "models/{count}/ssamba_{size}.pth",
        "ssamba{size}{count}.pt",
        "Amba-{size}-f16-t16-b64-lr1e-4-m{count}-pretrain_joint-asli/models/audio_model.10.pth",
        "checkpoints/mask{count}/{size}.safetensors",
        "ssamba_{size}_{count}p_epoch10.bin",
        "ssamba_{size}_{count}_ep10.pth",
        "300_epochs/ssamba_{size}_400ep_m{count}_of_512.pth",
        "pretrained base models/{size} ({count} masked patches).pth",
        "{count}masks_{size}_400k_steps.pth.tar",
        "Ssamba_{size}_num_mask_{count}_lr_400.ckpt",
    ],
)
def test_odd_names_are_recognized(pattern):
    files = folders_of(pattern)
    for index, (size, count) in enumerate((s, c) for s in ("tiny", "small", "base") for c in (250, 300, 400)):
        assert chosen(f"ssamba-{size}-{count}", "README.md", "config.json", *files) == files[index]


@pytest.mark.parametrize(
    "pattern", ["SsambaTinyMask400.pth", "SSAMBATiny400.pth", "ssamba_t_400.pth", "ssamba-t400.pth"]
)
def test_other_spellings_of_the_size_are_recognized(pattern):
    assert chosen("ssamba-tiny-400", pattern, "SsambaBaseMask400.pth", "ssamba_b_400.pth") == pattern


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        ("ssamba_tiny_400.pth", ["ssamba_tiny_400_v2.pth", "ssamba_tiny_400_best.pth", "old/ssamba_tiny_400.pth"]),
        ("ssamba_tiny_400.pth", ["ssamba_tiny_400_esc50.pth", "finetuned/ssamba_tiny_400.pth", "ssast_tiny_400.pth"]),
        ("tiny/400/best_audio_model.pth", ["tiny/400/audio_model.9.pth", "tiny/400/best_optim_state.pth"]),
        ("tiny/400/audio_model.10.pth", ["tiny/400/audio_model.9.pth", "tiny/400/audio_optimizer.10.pth"]),
        ("ssamba-tiny-400-last.pth", ["ssamba-tiny-400-epoch9.pth"]),
        ("tiny-400.pth", ["tiny-400.pt", "tiny-400.safetensors"]),
        ("ssast/ssamba_tiny_400.pth", ["ssast/tiny_400.pth", "ssamba_base_from_tiny_400.pth"]),
        ("tiny_400/model.pth", ["tiny_400/training_args.bin", "tiny_400/optimizer.pt", "tiny_400/rng_state.pth"]),
    ],
)
def test_of_several_files_the_plainest_is_taken(wanted, others):
    assert chosen("ssamba-tiny-400", *others, wanted) == wanted


@pytest.mark.parametrize(
    "files",
    [
        ["ssamba_tiny.pth", "ssamba_base.pth"],
        ["ssamba_tiny_350.pth", "ssamba_small_400.pth", "400.pth"],
        ["ssamba_tiny_epoch400.pth", "tiny/audio_model.400.pth", "ssamba_tiny_1400.pth", "ssamba_tiny_400hz.pth"],
        ["ssast_tiny_400.pth", "ssamba_tiny_400_finetuned_esc50.pth", "ssamba_tiny_400_optimizer.pth"],
        ["baseline_400.pth", "database/400.pth", "ssamba_tiny_400.txt"],
    ],
)
def test_what_does_not_fit_is_shown(files):
    with pytest.raises(CheckpointError, match=r"no file of .* is recognized as the tiny model") as error:
        chosen("ssamba-tiny-400", *files)
    for text in (*[file for file in files if not file.endswith(".txt")], f"name it as hf:{REPO}/FILE"):
        assert text in str(error.value)


def test_equal_fits_are_an_error_that_lists_them_unless_they_are_copies():
    files = ("a/ssamba-tiny-400-x.pth", "b/ssamba-tiny-400-y.pth")
    with pytest.raises(CheckpointError, match=f"2 files .*{files[0]}, {files[1]}.*name it as hf:{REPO}/FILE"):
        chosen("ssamba-tiny-400", *files)
    assert chosen("ssamba-tiny-400", *files, sums=dict.fromkeys(files, "0" * 64)) == files[0]


def test_facts_of_the_released_models_are_those_of_their_structure():
    sizes = ("tiny", "small", "base")
    assert list(BY_NAME) == [f"ssamba-{size}-{count}" for size in sizes for count in (400, 300, 250)]
    for size in sizes:
        # Shallow ones are built faster, and every pair of blocks has as many parameters.
        two, four = (parameters_of(ssamba.create_encoder(size, depth=depth)) for depth in (2, 4))
        one = BY_NAME[f"ssamba-{size}-400"]
        assert (one.parameters, one.dim) == (two + 11 * (four - two), SIZES[size]["embed_dim"])


def parameters_of(encoder):
    return sum(parameter.numel() for parameter in encoder.parameters())


# Loading by name.


def test_a_name_downloads_its_file_alone_and_records_commit_and_checksum(hub, content, ssamba_pth, caplog):
    other = content + b"\0"
    hub.repositories[REPO] = {"README.md": b"#", "tiny/400/audio_model.10.pth": content, "base/250/a.pth": other}
    with caplog.at_level(logging.INFO, "ssamba"):
        model = ssamba.load_model("ssamba-tiny-400", device="cpu")
    assert hub.downloads() == ["tiny/400/audio_model.10.pth"]
    assert f"downloading tiny/400/audio_model.10.pth ({len(content) / 1e6:.1f} MB) of {REPO}" in caplog.text
    pinned = f"hf:{REPO}/tiny/400/audio_model.10.pth@{COMMIT}"
    assert (model.name, model.identity.name) == (pinned, pinned)
    assert model.identity.file_sha256 == hashlib.sha256(content).hexdigest()
    assert "ssamba-tiny-400 is hf:" in str(model.report)
    theirs = load_checkpoint(ssamba_pth)
    assert model.identity.weights_digest == theirs.identity.weights_digest

    hub.requests.clear()
    assert ssamba.load_encoder("ssamba_tiny_400").config == model.encoder.config
    assert load_checkpoint(pinned).identity == model.identity
    assert [how for how, _ in hub.requests] == ["LIST"]  # the pinned name asks nothing


def test_tables_conversions_and_the_info_record_them(hub, content, clips, tmp_path):
    hub.repositories[REPO] = {"ssamba_small_300.pth": content}
    table = tmp_path / "e.npz"
    done = CliRunner().invoke(app, ["embed", str(clips[8]), "-o", str(table), "-c", "ssamba-small-300"])
    assert done.exit_code == 0, done.output
    written = read_embeddings(table)
    assert str(written["model"]) == f"hf:{REPO}/ssamba_small_300.pth@{COMMIT}"
    checksum = hashlib.sha256(content).hexdigest()
    assert json.loads(str(written["settings"]))["file_sha256"] == checksum
    done = CliRunner().invoke(app, ["convert", "ssamba-small-300", "-o", str(tmp_path / "ours")])
    assert done.exit_code == 0, done.output
    origin = f"official checkpoint hf:{REPO}/ssamba_small_300.pth@{COMMIT} (SHA-256 {checksum})"
    assert load_checkpoint(tmp_path / "ours").config.origin == origin
    assert f"SHA-256{checksum}" in "".join(CliRunner().invoke(app, ["info", "ssamba-small-300"]).output.split())
    # The same weights from elsewhere go on with the table.
    assert ssamba.embed_files(clips[8], table, checkpoint=str(tmp_path / "ours")).unchanged == 1


def test_names_load_what_the_file_holds(hub, content, ssamba_pth):
    hub.repositories[REPO] = {f"ssamba_{one.size}_{one.masked_patches}.pth": content for one in released.RELEASED}
    expected = load_checkpoint(ssamba_pth).identity.weights_digest
    for name in ("ssamba-tiny-400", "ssamba-base-250", "ssamba-small-300@main", f"ssamba-small-300@{COMMIT}"):
        assert load_checkpoint(name).identity.weights_digest == expected
    assert len(hub.downloads()) == 1  # the files are copies of one another


def test_a_folder_of_ours_in_the_repository_is_taken_whole(hub, ssamba_pth, tmp_path):
    folder = tmp_path / "ours"
    convert_checkpoint(ssamba_pth, folder)
    hub.repositories[REPO] = {f"ssamba-tiny-400/{path.name}": path.read_bytes() for path in folder.iterdir()}
    loaded = load_checkpoint("ssamba-tiny-400")
    assert loaded.report.name == f"hf:{REPO}/ssamba-tiny-400@{COMMIT}"
    assert loaded.front_end == load_checkpoint(folder).front_end
    assert load_checkpoint(f"hf:{REPO}/ssamba-tiny-400").identity == loaded.identity


def test_a_file_of_another_size_than_its_name_says_is_refused(hub, tmp_path):
    folder = save_checkpoint(tmp_path / "small", ssamba.create_encoder("small", depth=2), half=True)
    hub.repositories[REPO] = {f"ssamba-tiny-400/{path.name}": path.read_bytes() for path in folder.iterdir()}
    assert "holds a model of size small (dimension 384)" in message_of("ssamba-tiny-400")


def test_names_list_and_load_from_the_cache_without_a_network(hub, content, monkeypatch):
    official = [model for model in ssamba.available_models() if model.where == "official"]
    assert [model.name for model in official] == list(BY_NAME)
    assert {(model.license, model.path, model.file_bytes) for model in official} == {("not stated", None, None)}
    assert "AudioSet-2M and LibriSpeech-960" in official[0].data
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content, "ssamba_base_400.pth": content}
    name = load_checkpoint("ssamba-tiny-400").report.name
    hub.requests.clear()
    (cached,) = [model for model in ssamba.available_models() if model.where == "cached"]
    assert (cached.name, cached.aliases) == ("ssamba-tiny-400", ("ssamba_tiny_400", name))
    assert (cached.path.read_bytes(), cached.file_bytes) == (content, len(content))
    listed = CliRunner().invoke(app, ["models"]).output
    assert "license: not stated, official, downloaded when first named" in listed
    assert "ssamba-tiny-400  (ssamba_tiny_400, hf:" in listed
    go_offline(monkeypatch)
    for given in ("ssamba-tiny-400", "ssamba-tiny-400@main", f"hf:{REPO}/ssamba_tiny_400.pth", name):
        assert load_checkpoint(given).report.name == name
    assert not hub.requests


def test_what_is_cached_of_an_earlier_commit_is_found_too(hub, content, monkeypatch):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content, "ssamba_base_400.pth": content + b"\0"}
    first = find_model("ssamba-tiny-400")
    hub.commit = "d" * 40
    assert find_model("ssamba-base-400").name.endswith("d" * 40)
    go_offline(monkeypatch)
    assert find_model("ssamba-tiny-400").path == first.path


def test_two_downloads_at_once_give_one_file(hub, content):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content}
    found = []
    threads = [threading.Thread(target=lambda: found.append(find_model("ssamba-tiny-400"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1
    assert found[0].path.read_bytes() == content


# What can go wrong.


def test_offline_the_message_says_how_to_fetch_by_hand(hub, monkeypatch):
    go_offline(monkeypatch)
    message = message_of("ssamba-tiny-400")
    for text in (
        "HF_HUB_OFFLINE is set",
        f"/{REPO}/tree/main",
        "the tiny model with 400 masked patches",
        "ssamba_tiny_400",
        'ssamba.load_model("PATH")',
    ):
        assert text in message
    assert not hub.requests


def test_a_hub_that_cannot_be_reached_falls_back_to_the_cache_or_says_what_to_do(hub, content, monkeypatch, caplog):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content}
    found = find_model("ssamba-tiny-400")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert find_model("ssamba-tiny-400").path == found.path
        assert "the copy in the local cache is used" in caplog.text
        assert "Connection refused" in message_of("ssamba-base-400")


def test_a_hub_that_never_answers_is_given_up(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started_s = time.monotonic()
        message = message_of("ssamba-tiny-400")
    assert time.monotonic() - started_s < 3
    assert "timed out" in message.lower()
    assert "do it by hand: open" in message


@pytest.mark.parametrize(
    ("fault", "messages"),
    [
        ({"web_page": True}, ["what answered is not the hub", "login page", "Try again, or do it by hand: open"]),
        ({"status": 503}, ["the hub answered 503", "Try again, or do it by hand: open"]),
        ({"status": 403}, ["the hub answered 403", "hf auth login"]),
        ({"status": 404}, ["no such repository, or no such revision or file in it (404): check http"]),
        ({"repositories": {}}, ["no such repository as attentionisallyouneed369/ssamba", "hf auth login"]),
        ({"repositories": {REPO: {}}}, ["It holds no file at all"]),
        ({"repositories": {REPO: {"README.md": b"#"}}}, ["It holds no weights, only README.md"]),
        ({"gated": {REPO}}, ["is gated: accept its terms", "hf auth login"]),
        ({"corrupt": True}, ["is damaged in the local cache", "the hub states", "Delete"]),
        ({"cut": 100}, ["could not be fetched", "Try again, or do it by hand: open"]),
    ],
)
def test_faults_of_the_hub_say_what_to_do(hub, content, fault, messages):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content}
    for name, value in fault.items():
        setattr(hub, name, value)
    message = message_of("ssamba-tiny-400")
    for text in messages:
        assert text in message
    assert "\n" not in message


def test_an_interrupted_download_goes_on_and_a_damaged_file_is_fetched_again_once_deleted(hub, content):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content}
    hub.cut = 1
    found = find_model("ssamba-tiny-400")
    assert found.path.read_bytes() == content
    found.path.resolve().write_bytes(b"PK" + content[2:-1])
    assert "is damaged in the local cache" in message_of("ssamba-tiny-400")
    found.path.resolve().unlink()
    assert find_model("ssamba-tiny-400").path.read_bytes() == content


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "holds no weights but a web page"),
        (b"", "is empty"),
        (b"PK\x03\x04 not a checkpoint", "damaged or not a PyTorch checkpoint"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(hub, bad, message, tmp_path):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": bad}
    assert message in message_of("ssamba-tiny-400")
    (tmp_path / "downloaded.pth").write_bytes(bad)
    assert message in message_of(tmp_path / "downloaded.pth")


def test_revisions_and_files_that_are_not_there_say_so(hub, content):
    hub.repositories[REPO] = {"ssamba_tiny_400.pth": content, "ssamba_base_400.pth": content}
    assert "has no revision 'v9'" in message_of("ssamba-tiny-400@v9")
    message = message_of(f"hf:{REPO}/tiny.pth")
    assert "has no file tiny.pth. It holds ssamba_base_400.pth" in message
    assert f"choose one, as hf:{REPO}/FILE" in message_of(f"hf:{REPO}")
    assert not hub.downloads()


def test_without_huggingface_hub_the_extra_and_the_page_are_named(monkeypatch):
    monkeypatch.setattr("ssamba.checkpoint.hub.find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"pip install \"ssamba\[hub\]\", or do it by hand: open https://.*/tree/main"
    ):
        ssamba.load_model("ssamba-tiny-400")
    assert [model.where for model in ssamba.available_models()].count("official") == 9


def test_near_misses_of_official_names_are_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("SSAMBA-Tiny-400", "ssamba-tiny-40", "ssamba.tiny.400"):
        assert "Did you mean 'ssamba-tiny-400'" in message_of(name)
    assert "as a string, 'ssamba-tiny-400'" in message_of(Path("ssamba-tiny-400"))
    assert "give the path of their .pth file" in message_of("ssast-base-400")
    assert "official, downloaded when first named: ssamba-{tiny,small,base}-{250,300,400}" in message_of("whisper")
