"""Checkpoints: official files, our folders, the hub, and every way in which they can be wrong."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssamba.checkpoint import build_model, convert_checkpoint, hub, load_checkpoint, load_encoder, save_checkpoint
from ssamba.config import ClassifierConfig, FrontEndConfig, ModelConfig
from ssamba.errors import CheckpointError, ConfigError, OtherSettingsError
from ssamba.model import Classifier, PretrainingModel, SSASTEncoder, encoder_config


@pytest.fixture
def official(ssamba_pth):
    return torch.load(ssamba_pth, weights_only=True)


def save(tmp_path, tensors, name="x.pth"):
    torch.save(tensors, tmp_path / name)
    return tmp_path / name


def test_an_official_file_loads_strictly_and_reports_what_it_ignored(ssamba_pth):
    loaded = load_checkpoint(ssamba_pth)
    assert isinstance(loaded.model, PretrainingModel)
    assert not loaded.model.training
    assert loaded.report.ignored == dict.fromkeys(["v.head.weight", "v.head.bias"], "the unused vision head")
    assert "vision head" in str(loaded.report)
    config = loaded.config.encoder
    assert (config.embed_dim, config.depth, config.dt_rank, config.num_frames, config.grid) == (32, 4, 2, 128, (8, 8))


def test_the_module_prefix_is_optional(tmp_path, official, ssamba_pth):
    path = save(tmp_path, {name.removeprefix("module."): tensor for name, tensor in official.items()})
    ours, theirs = (load_encoder(p).state_dict() for p in (path, ssamba_pth))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_released_sizes_are_inferred_from_shapes(tmp_path, size):
    """An official state dict of each released size, made by renaming ours back (depth cut to stay quick)."""
    from ssamba.checkpoint.official import our_name

    model = PretrainingModel(encoder_config(size, depth=2))
    ours = model.state_dict()
    width = model.encoder.config.embed_dim
    official = {"module.p_input_fdim": torch.tensor(128), "module.p_input_tdim": torch.tensor(1024)}
    official |= {"module.v.head.weight": torch.zeros(1000, width), "module.v.head.bias": torch.zeros(1000)}
    names = [f"v.layers.{i}.{rest}" for i in range(2) for rest in ("norm.weight", "norm.bias")]
    from ssamba.checkpoint import official as table

    names += [f"v.layers.{i}.mixer.{rest}" for i in range(2) for rest in table.MIXER]
    names += [name for name in table.OUTSIDE_BLOCKS if not name.startswith("mlp_head")]
    for name in names:
        tensor = ours[our_name(name)]
        official[f"module.{name}"] = tensor[:, None] if "conv1d" in name and tensor.ndim == 2 else tensor
    loaded = load_checkpoint(save(tmp_path, official))
    assert loaded.config.encoder == model.encoder.config
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.model.state_dict().items())


def fine_tuned(official, columns, rows=12, classes=5):
    width = official["module.v.cls_token"].shape[-1]
    kept = {k: v for k, v in official.items() if k.startswith("module.v.")}
    head = {"0.weight": torch.ones(width), "0.bias": torch.zeros(width)}
    head |= {"1.weight": torch.randn(classes, width), "1.bias": torch.randn(classes)}
    positions = torch.randn(1, 1 + rows * columns, width)
    return {**kept, "module.v.pos_embed": positions, **{f"module.mlp_head.{k}": v for k, v in head.items()}}


@pytest.mark.parametrize(
    ("rows", "columns", "frames", "stride"),
    [
        (12, 101, 1024, 10),
        (12, 50, 512, 10),
        (12, 12, 128, 10),
        (8, 384, 6144, 16),
        (12, 99, 996, 10),
        (8, 61, 976, 16),
    ],
)
def test_fine_tuned_official_files_load_as_classifiers(tmp_path, official, rows, columns, frames, stride):
    path = save(tmp_path, fine_tuned(official, columns, rows))
    loaded = load_checkpoint(path)
    assert isinstance(loaded.model, Classifier)
    config = loaded.config.encoder
    assert (config.grid, config.num_frames, config.patch_stride) == ((rows, columns), frames, (stride, stride))
    assert loaded.config.classifier == ClassifierConfig(num_classes=5)
    features = torch.randn(2, frames, 128)
    with torch.no_grad():
        logits = loaded.model(features)
        tokens = loaded.model.encoder(features)
        expected = loaded.model.linear(loaded.model.norm(tokens[:, 1:].mean(1)))
    torch.testing.assert_close(logits, expected)
    assert any("inferred" in note for note in loaded.report.notes)


def test_patch_stride_chooses_between_the_readings_of_a_fine_tuned_file(tmp_path, official):
    path = save(tmp_path, fine_tuned(official, 50))  # 600 patches: 12 x 50 with stride 10, or 8 x 75 with 16
    assert load_encoder(path).config.grid == (12, 50)
    assert load_encoder(path, patch_stride=16).config.grid == (8, 75)


def test_ssast_files_load_strictly_and_report_what_was_ignored_and_assumed(ssast_pth):
    loaded = load_checkpoint(ssast_pth)
    assert isinstance(loaded.model, PretrainingModel)
    assert isinstance(loaded.model.encoder, SSASTEncoder)
    heads = [f"v.{head}.{what}" for head in ("head", "head_dist") for what in ("weight", "bias")]
    assert loaded.report.ignored == dict.fromkeys(heads, "the unused vision head")
    assert "3 attention heads are assumed" in str(loaded.report)
    config = loaded.config.encoder
    assert (config.embed_dim, config.depth, config.num_heads, config.grid) == (24, 2, 3, (8, 8))
    assert loaded.config.family == "ssast"


def official_ssast(model):
    """Our SSAST pretraining model as its training script would save it."""
    config = model.encoder.config
    width = config.embed_dim
    official = {"p_input_fdim": torch.tensor(config.num_mel_bins), "p_input_tdim": torch.tensor(config.num_frames)}
    official |= {"v.head.weight": torch.zeros(1000, width), "v.head.bias": torch.zeros(1000)}
    ours = {"v.head_dist.weight": None, "v.head_dist.bias": None}
    theirs = {name: f"v.{name.removeprefix('encoder.')}" for name in model.state_dict()}
    for name, tensor in model.state_dict().items():
        their = theirs[name].replace("attention.", "attn.").replace("mlp.0", "mlp.fc1").replace("mlp.2", "mlp.fc2")
        their = their.replace("v.position_embed", "v.pos_embed").replace("v.mask_token", "mask_embed")
        their = their.replace("v.discriminative_head", "cpredlayer").replace("v.generative_head", "gpredlayer")
        official[their] = tensor
    if config.distillation_token:
        official |= {name: torch.zeros(1000, width) if "weight" in name else torch.zeros(1000) for name in ours}
    return {f"module.{name}": tensor for name, tensor in official.items()}


@pytest.mark.parametrize("variant", ["ssast", "ssast_frame"])
@pytest.mark.parametrize(
    ("size", "distilled", "heads"), [("tiny", True, 3), ("small", True, 6), ("base", True, 12), ("base", False, 12)]
)
def test_released_ssast_models_are_inferred_from_shapes(tmp_path, variant, size, distilled, heads):
    model = PretrainingModel(encoder_config(size, variant, depth=1, distillation_token=distilled))
    loaded = load_checkpoint(save(tmp_path, official_ssast(model)))
    assert loaded.config.encoder == model.encoder.config
    assert loaded.config.encoder.num_heads == heads
    assert not any("assumed" in note for note in loaded.report.notes)
    ours = model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("variant", "rows", "columns", "frames", "stride"),
    [("ssast", 12, 101, 1024, (10, 10)), ("ssast", 12, 50, 512, (10, 10)), ("ssast_frame", 1, 511, 512, (128, 1))],
)
def test_fine_tuned_ssast_files_load_as_classifiers(tmp_path, variant, rows, columns, frames, stride):
    model = PretrainingModel(encoder_config("tiny", variant, embed_dim=24, depth=1))
    tensors = fine_tuned(official_ssast(model), columns, rows)
    tensors["module.v.pos_embed"] = torch.randn(1, 2 + rows * columns, 24)
    loaded = load_checkpoint(save(tmp_path, tensors))
    config = loaded.config.encoder
    assert (config.grid, config.num_frames, config.patch_stride) == ((rows, columns), frames, stride)
    assert loaded.model(torch.randn(1, frames, 128)).shape == (1, 5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("module.v.blocks.1.attn.proj.bias"), "1 missing"),
        (lambda t: t.update({"module.v.blocks.1.attn.bias": torch.zeros(1)}), "no SSAST model has"),
        (lambda t: t.pop("module.v.blocks.0.attn.qkv.weight"), "not an official SSAST checkpoint"),
        (lambda t: t.pop("module.v.dist_token"), "65 patches"),
        (lambda t: t.update({"module.v.blocks.0.mlp.fc1.weight": torch.zeros(50, 24)}), "not a multiple of the width"),
    ],
)
def test_ssast_files_that_do_not_fit_are_refused_with_a_reason(tmp_path, ssast_pth, spoil, message):
    tensors = torch.load(ssast_pth, weights_only=True)
    spoil(tensors)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(save(tmp_path, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["encoder"].update(num_head=3), "encoder: unknown key 'num_head'; did you mean 'num_heads'"),
        (lambda c: c["encoder"].update(state_size=3), "unknown key 'state_size'"),
        (lambda c: c["encoder"].update(num_heads=5), "not a multiple of num_heads"),
        (lambda c: c.update(family="ssamba"), "unknown key 'num_heads'"),
    ],
)
def test_ssast_folders_convert_and_are_checked_as_ssambas_are(tmp_path, ssast_pth, change, message):
    convert_checkpoint(ssast_pth, tmp_path / "c")
    before, after = load_checkpoint(ssast_pth), load_checkpoint(tmp_path / "c")
    assert after.config == before.config
    theirs = before.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in after.model.state_dict().items())
    _edit(change)(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c")


def test_families_and_encoders_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="does not fit"):
        ModelConfig.parse({"family": "ssamba", "encoder": encoder_config("tiny", "ssast")}, "here")
    assert ModelConfig(encoder=encoder_config("tiny", "ssast")).family == "ssast"
    before_family = {"model_type": "ssast", "encoder": encoder_config("tiny", "ssast").model_dump()}
    assert ModelConfig.parse(before_family, "here").family == "ssast"


def test_conversion_is_exact_both_ways(tmp_path, ssamba_pth):
    convert_checkpoint(ssamba_pth, tmp_path / "ours")
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    before, after = load_checkpoint(ssamba_pth), load_checkpoint(tmp_path / "ours")
    assert after.config == before.config
    assert after.front_end == before.front_end
    theirs = before.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in after.model.state_dict().items())
    convert_checkpoint(tmp_path / "ours", tmp_path / "again")
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


def test_a_folder_that_holds_the_checkpoint_is_left_and_another_one_refused(tmp_path, ssamba_pth, ssast_pth):
    convert_checkpoint(ssamba_pth, tmp_path / "c")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()}
    convert_checkpoint(ssamba_pth, tmp_path / "c")
    for options, named in (
        ({"origin": "here"}, r"another checkpoint: origin was '.*', is 'here'\. Use another folder"),
        ({"half": True}, r"another checkpoint: float16 or float32 is another \(--half\)\. Use"),
    ):
        with pytest.raises(OtherSettingsError, match=named):
            convert_checkpoint(ssamba_pth, tmp_path / "c", **options)
    with pytest.raises(
        OtherSettingsError, match=r"family was 'ssamba', is 'ssast'; .*encoder\.embed_dim was 32, is 24"
    ):
        convert_checkpoint(ssast_pth, tmp_path / "c")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").iterdir()} == before
    convert_checkpoint(ssamba_pth, tmp_path / "c", half=True, overwrite=True)
    convert_checkpoint(ssamba_pth, tmp_path / "c", half=True)
    tensors = load_file(tmp_path / "c" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "c" / "model.safetensors")
    with pytest.raises(OtherSettingsError, match="another checkpoint: the weights are others"):
        convert_checkpoint(ssamba_pth, tmp_path / "c", half=True)


def test_folders_whose_names_are_not_utf8_hold_checkpoints(tmp_path, ssamba_pth):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    convert_checkpoint(ssamba_pth, folder)
    loaded = load_checkpoint(folder)
    assert (folder / "model.safetensors").is_file()
    expected = load_checkpoint(ssamba_pth).model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())


def test_converted_tensors_are_the_official_ones(tmp_path, official, ssamba_pth):
    convert_checkpoint(ssamba_pth, tmp_path / "ours")
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    assert torch.equal(ours["encoder.blocks.3.mixer.backward_scan.A_log"], official["module.v.layers.3.mixer.A_b_log"])
    assert torch.equal(ours["mask_token"], official["module.mask_embed"])
    assert len(ours) == len(official) - 4  # two sizes, and the vision head


def test_classifiers_keep_labels_pooling_and_front_end(tmp_path):
    config = ClassifierConfig(num_classes=2, pooling="cls", labels=("crow", "door"))
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), config)
    front_end = FrontEndConfig(sample_rate_hz=48_000, low_hz=200, mean=-5)
    save_checkpoint(tmp_path / "c", model, front_end=front_end)
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.config.classifier == config
    assert loaded.front_end == front_end
    save_checkpoint(tmp_path / "e", loaded.model.encoder)
    assert load_checkpoint(tmp_path / "e").config.kind == "encoder"


def test_weights_of_lower_precision_load_as_float32(tmp_path):
    from ssamba.checkpoint.files import write_tensors

    model = build_model(ModelConfig(encoder=encoder_config("tiny", embed_dim=32, depth=2)))
    save_checkpoint(tmp_path / "c", model)
    write_tensors(tmp_path / "c" / "model.safetensors", {k: v.half() for k, v in model.state_dict().items()})
    assert all(p.dtype == torch.float32 for p in load_encoder(tmp_path / "c").parameters())


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def _write_text(path):
    path.write_text("not a checkpoint")


def _write_pickled_code(path):
    torch.save({"a": Evil()}, path)


def _write_plain_pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}))


def _write_truncated(path):
    torch.save({"module.v.cls_token": torch.zeros(1, 1, 4000)}, path)
    path.write_bytes(path.read_bytes()[:3000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_write_text, "not a PyTorch checkpoint"),
        (lambda path: path.touch(), "empty"),
        (_write_pickled_code, "can run code"),
        (_write_plain_pickle, "besides tensors"),
        (_write_truncated, "damaged"),
        (lambda path: torch.save([1, 2], path), "holds a list"),
        (lambda path: torch.save({"state_dict": {}, "epoch": 3}, path), "keys state_dict, epoch"),
        (lambda path: torch.save({"conv.weight": torch.zeros(3)}, path), "not those of an SSAMBA model"),
    ],
)
def test_files_that_are_no_checkpoints_say_what_they_are(tmp_path, write, message, capsys):
    write(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "x.pth")
    assert "executed" not in capsys.readouterr().out


def _drop(tensors):
    del tensors["module.v.layers.2.mixer.D"]


def _add(tensors):
    tensors["module.v.layers.2.mixer.E"] = torch.zeros(3)


def _misshape(tensors):
    tensors["module.v.layers.2.mixer.D"] = torch.zeros(3)


def _resize(tensors):
    tensors["module.p_input_tdim"] = torch.tensor(256)


def _diverge(tensors):
    tensors["module.v.layers.2.mixer.D"][3] = float("nan")


def _flatten(tensors):
    tensors["module.v.layers.0.mixer.A_log"] = tensors["module.v.layers.0.mixer.A_log"].flatten()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_diverge, "NaN or infinite weights"),
        (_flatten, "tensors of other shapes"),
        (_drop, "1 missing"),
        (_add, "no SSAMBA model has"),
        (_misshape, "of another shape"),
        (_resize, "64 patches"),
    ],
)
def test_official_files_that_do_not_fit_are_refused_with_a_reason(tmp_path, official, spoil, message):
    spoil(official)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(save(tmp_path, official))


def _edit(change):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_edit(lambda c: c.update(model_type="bert")), "type 'bert', expected 'ssamba'"),
        (_edit(lambda c: c["encoder"].update(embed_dims=3)), "did you mean 'embed_dim'"),
        (_edit(lambda c: c["encoder"].update(depth=6)), "missing"),
        (_edit(lambda c: c.update(format_version=2)), "format_version"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "not a safetensors file"),
        (lambda folder: (folder / "preprocessor_config.json").write_text('{"rate": 1}'), "unknown key 'rate'"),
    ],
)
def test_damaged_folders_are_refused_with_a_reason(tmp_path, ssamba_pth, spoil, message):
    convert_checkpoint(ssamba_pth, tmp_path / "c")
    spoil(tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "c")


def test_a_missing_path_says_what_is_accepted():
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load_checkpoint("no/such/model")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    from ssamba.files import write_atomically

    target = tmp_path / "x"
    target.write_text("old")

    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


COMMIT = "a" * 40


@pytest.fixture
def cached_hub(tmp_path, monkeypatch, ssamba_pth):
    """A hub cache as huggingface_hub lays it out, with one checkpoint of ours and one official file, offline."""
    constants = pytest.importorskip("huggingface_hub.constants")
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("ours", "official", "empty"):
        repo = cache / f"models--me--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(COMMIT)
        folder = repo / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        if name == "ours":
            convert_checkpoint(ssamba_pth, folder)
        elif name == "official":
            (folder / "ssamba_tiny.pth").write_bytes(ssamba_pth.read_bytes())
        else:
            (folder / "README.md").write_text("nothing")
    return cache


@pytest.mark.parametrize(
    "name",
    ["hf:me/ours", f"hf:me/ours@{COMMIT}", "hf:me/ours@main", "hf:me/official", "hf:me/official/ssamba_tiny.pth"],
)
def test_hub_checkpoints_load_from_the_cache(cached_hub, name, ssamba_pth):
    loaded = load_checkpoint(name)
    assert COMMIT in str(loaded.report)
    theirs = load_checkpoint(ssamba_pth).model.state_dict()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:me/absent", "not in the local cache.*another machine"),
        ("hf:me/empty", "holds no checkpoint"),
        ("hf:me/official/other.pth", "no file other.pth|not in the local cache"),
        ("hf:me", "expected hf:OWNER/NAME"),
    ],
)
def test_hub_names_that_cannot_be_had_say_what_to_do(cached_hub, name, message):
    with pytest.raises(CheckpointError, match=message):
        hub.fetch(name)
