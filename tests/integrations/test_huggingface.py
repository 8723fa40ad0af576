"""The classes of transformers: one folder for both libraries, the same numbers, training, the hub."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from tests.checkpoint.fake_hub import FakeHub, serving
from tests.conftest import ROOT, invoke, small_encoder
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoProcessor,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    pipeline,
)

import ssamba
from ssamba.audio.decode import decode
from ssamba.checkpoint import weights_digest
from ssamba.config import ClassifierConfig, FrontEndConfig, PretrainingConfig
from ssamba.errors import CheckpointError, ConfigError
from ssamba.integrations.huggingface import (
    SsambaConfig,
    SsambaFeatureExtractor,
    SsambaForAudioClassification,
    SsambaForPreTraining,
    SsambaModel,
)
from ssamba.model import Classifier, PretrainingModel, create_encoder, info_nce, reconstruction_error
from ssamba.model.masking import draw_mask

pytestmark = pytest.mark.usefixtures("one_thread")
STRUCTURES = {
    "official": {"embed_dim": 32, "depth": 4},
    "ssamba2": {"variant": "ssamba2", "embed_dim": 32, "depth": 4, "num_frames": 256},
    "ssast": {"variant": "ssast", "embed_dim": 32, "depth": 2, "num_heads": 2},
}
LABELS = ("crow", "drum", "choir")
FRONT_END = FrontEndConfig(mean=-5.0, std=4.0)
each_structure = pytest.mark.parametrize("structure", STRUCTURES)


def classifier_of(structure="official", **head):
    torch.manual_seed(3)
    encoder = create_encoder("tiny", **STRUCTURES[structure]).config
    classifier = Classifier(encoder, ClassifierConfig(num_classes=3, labels=LABELS, **head))
    with torch.no_grad():
        classifier.linear.weight.mul_(20)  # probabilities that differ
    return classifier


@pytest.fixture(scope="module")
def waves(clips):
    """Four recordings of different lengths, 0.9 to 2.8 s."""
    return [decode(path) for path in clips[:4]]


def differences(model, waves, **changes):
    """Largest difference of each output between a batch and its clips alone."""
    extractor = SsambaFeatureExtractor.from_config(model.config)
    with torch.no_grad():
        batch = model(**extractor(waves, return_tensors="pt"), **changes)
        single = [model(**extractor(wave, return_tensors="pt"), **changes) for wave in waves]
    found = {}
    for name, value in batch.items():
        rows = zip(value, (one[name][0] for one in single), strict=True)
        found[name] = max((mine[: len(own)] - own).abs().max().item() for mine, own in rows)
    return found


@each_structure
def test_an_encoder_gives_what_ours_gives_and_goes_both_ways(structure, waves, tmp_path):
    encoder = create_encoder("tiny", **STRUCTURES[structure]).eval()
    ssamba.save_checkpoint(tmp_path / "ours", encoder, front_end=FRONT_END)
    model, extractor = (auto.from_pretrained(tmp_path / "ours") for auto in (AutoModel, AutoFeatureExtractor))
    assert isinstance(model, SsambaModel)
    assert not model.training
    assert SsambaFeatureExtractor.from_config(model.config).to_dict() == extractor.to_dict()
    inputs = extractor(waves, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
        plain = model(inputs["input_values"], inputs["attention_mask"])
        tokens = encoder(inputs["input_values"], inputs["attention_mask"].sum(1))
        layers = [encoder(inputs["input_values"], inputs["attention_mask"].sum(1), layer=k) for k in (0, 1, -1)]
    assert (plain.last_hidden_state - tokens).abs().max() <= 1e-6
    assert (out.last_hidden_state - tokens).abs().max() <= 2e-6
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    for k, layer in zip((0, 1, -1), layers, strict=True):
        torch.testing.assert_close(out.hidden_states[k], layer, atol=1e-5, rtol=1e-5)
    embedded = ssamba.load_model(tmp_path / "ours", device="cpu").embed(waves, context="full")
    for row, embedding in enumerate(embedded):
        for mine, theirs in (
            (out.pooler_output[row], embedding.clip),
            (out.parts[row], embedding.parts),
            (out.frames[row, : len(embedding.frames)], embedding.frames),
        ):
            assert (mine - theirs).abs().max() <= 1e-5
    assert max(differences(model, waves).values()) <= 1e-5

    model.save_pretrained(tmp_path / "theirs")
    back = ssamba.load_model(tmp_path / "theirs", device="cpu")
    assert back.front_end == FRONT_END
    assert back.config == ssamba.load_model(tmp_path / "ours", device="cpu").config
    assert weights_digest(back.encoder) == weights_digest(encoder)
    again, info = AutoModel.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not any(info.values())
    assert again.front_end == FRONT_END
    for auto in (AutoFeatureExtractor, AutoProcessor):
        assert auto.from_pretrained(tmp_path / "theirs").to_dict() == extractor.to_dict()


def test_the_shipped_folder_loads_as_float32(capfd):
    folder = next(model.path for model in ssamba.available_models() if model.where == "shipped")
    model = AutoModel.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert AutoConfig.from_pretrained(folder).hidden_size == 192
    assert "UNEXPECTED" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("structure", "heads"),
    [
        ("official", PretrainingConfig()),
        ("ssamba2", PretrainingConfig(encode="visible", decoder_depth=1, normalize_targets=True, clip_dim=8)),
        ("ssast", PretrainingConfig()),
    ],
)
def test_pretraining_gives_the_losses_and_gradients(structure, heads, waves, tmp_path):
    torch.manual_seed(0)
    ours = PretrainingModel(create_encoder("tiny", **STRUCTURES[structure]).config, heads)
    ssamba.save_checkpoint(tmp_path / "ours", ours, front_end=FRONT_END)
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "ours")
    assert isinstance(model, SsambaForPreTraining)
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path / "ours")(waves, return_tensors="pt")
    lengths = inputs["attention_mask"].sum(1)
    drawn = model(**inputs).bool_masked_pos
    share = drawn.sum().item() / (lengths // ours.encoder.config.patch_size[1] * ours.encoder.config.rows).sum().item()
    assert share == pytest.approx(400 / 512, abs=0.02)
    columns = lengths // ours.encoder.config.patch_size[1]
    mask = draw_mask(torch.arange(4), ours.encoder.config, columns, int(columns.max()), ratio=0.5)
    out = ours(inputs["input_values"], mask, lengths)
    contrast = info_nce(out.heads["discriminative"], out.values, out.masked.valid)
    error = reconstruction_error(out.heads["generative"], out.values, out.masked.valid)
    found = model(**inputs, bool_masked_pos=mask)
    torch.testing.assert_close(found.discriminative_loss, contrast.loss)
    torch.testing.assert_close(found.generative_loss, error)
    torch.testing.assert_close(found.loss, contrast.loss + 10 * error)
    found.loss.backward()
    assert model.encoder.patch_embed.proj.weight.grad.abs().max() > 0
    model.save_pretrained(tmp_path / "theirs")
    back = ssamba.load_checkpoint(tmp_path / "theirs")
    assert back.config == ssamba.load_checkpoint(tmp_path / "ours").config
    assert all(torch.equal(value, back.model.state_dict()[name]) for name, value in ours.state_dict().items())


@pytest.mark.filterwarnings("ignore:. of 6 recordings are longer than what")
@pytest.mark.parametrize(
    ("structure", "head"),
    [
        ("official", {"padding": "official"}),
        ("official", {"activation": "sigmoid", "label_frames": 100}),
        ("ssamba2", {}),
        ("ssast", {"pooling": "cls"}),
        ("ssamba2", {"clip_lengths_s": (0.5, 1.0, 1.5), "temperature": 1.7}),
        ("official", {"clip_lengths_s": (0.5, 0.8, 1.2), "activation": "sigmoid", "background": "choir"}),
    ],
)
def test_classification_pipelines_equal_predict(structure, head, waves, medley, tmp_path):
    ssamba.save_checkpoint(tmp_path / "ours", classifier_of(structure, **head), front_end=FRONT_END)
    sounds = [*waves, np.concatenate((medley[:100_000], np.zeros(50_000, np.float32), medley[100_000:])), waves[0] * 0]
    predicted = [p[0].best(3) for p in ssamba.load_model(tmp_path / "ours", device="cpu").predict(sounds, per="clip")]
    pipe = pipeline("audio-classification", model=tmp_path / "ours", device="cpu")
    single = [pipe(sound) for sound in sounds]
    pipe.save_pretrained(tmp_path / "theirs")
    batched = pipeline("audio-classification", model=tmp_path / "theirs", device="cpu")(sounds, batch_size=6)
    again = ssamba.load_model(tmp_path / "theirs", device="cpu")
    assert again.config.classifier == ssamba.load_model(tmp_path / "ours", device="cpu").config.classifier
    for ours, *theirs in zip(predicted, single, batched, strict=True):
        for found in theirs:
            assert [one["label"] for one in found] == [label for label, _ in ours]
            np.testing.assert_allclose([one["score"] for one in found], [p for _, p in ours], atol=1e-5)


def test_the_feature_pipeline_equals_embed(clips, medley, tmp_path):
    encoder = small_encoder(**STRUCTURES["ssamba2"])
    ssamba.save_checkpoint(tmp_path, encoder)
    pipe = pipeline("feature-extraction", model=tmp_path, device="cpu")
    ours = ssamba.load_model(tmp_path, device="cpu")
    sounds = [*clips[:3], medley]
    embedded = ours.embed(sounds, context="full")
    for batch_size in (1, 4):
        for tokens, embedding in zip(pipe(sounds, return_tensors=True, batch_size=batch_size), embedded, strict=True):
            frames = tokens.reshape(-1, 32)[1 : 1 + len(embedding.frames)]  # one row of patches
            assert (frames - embedding.frames).abs().max() <= 1e-5
    by_hand = pipeline(
        "feature-extraction",
        model=AutoModel.from_pretrained(tmp_path),
        tokenizer=AutoFeatureExtractor.from_pretrained(tmp_path),
        device="cpu",
    )
    assert len(by_hand(medley[:16_000])[0]) == 26


def labeled_pieces(waves, extractor):
    """Pieces of three recordings with their labels, as features."""
    items = []
    for label, wave in enumerate(waves[:3]):
        for start in range(0, 8000, 2000):
            inputs = extractor(wave[start : start + 4000 + start])
            items.append({**{key: value[0] for key, value in inputs.items()}, "labels": label})
    return items


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


def train(waves, folder, output, *callbacks, resume=False, **settings):
    """Two epochs of three steps with the Trainer, each evaluated."""
    torch.manual_seed(0)
    model = AutoModelForAudioClassification.from_pretrained(
        folder, num_labels=3, id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)}
    )
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    sounds = labeled_pieces(waves, extractor)
    arguments = TrainingArguments(
        output_dir=output,
        num_train_epochs=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="steps",
        save_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        dataloader_pin_memory=False,
        **settings,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sounds,
        eval_dataset=sounds,
        processing_class=extractor,
        compute_metrics=lambda found: {"accuracy": (found.predictions.argmax(-1) == found.label_ids).mean()},
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_trainer_trains_evaluates_and_resumes(waves, tmp_path):
    ssamba.save_checkpoint(tmp_path / "pretrained", PretrainingModel(small_encoder().config), front_end=FRONT_END)
    straight = train(waves, tmp_path / "pretrained", tmp_path / "straight")
    scores = [entry["eval_accuracy"] for entry in straight.state.log_history if "eval_accuracy" in entry]
    losses = [entry["eval_loss"] for entry in straight.state.log_history if "eval_loss" in entry]
    assert len(scores) == 2
    assert losses[-1] < losses[0]
    with pytest.raises(InterruptedError):
        train(waves, tmp_path / "pretrained", tmp_path / "killed", KillAt(5))
    resumed = train(waves, tmp_path / "pretrained", tmp_path / "killed", resume=True)
    weights = straight.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], msg=name)
    resumed.save_model(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path / "killed" / "checkpoint-6"):
        model = ssamba.load_model(folder, device="cpu")
        assert model.front_end == FRONT_END
        assert model.config.classifier.labels == LABELS
        found = pipeline("audio-classification", model=folder, device="cpu")(waves[1])
        assert found[0]["label"] == model.predict(waves[1])[0].best()[0][0]


def test_pretraining_runs_in_the_trainer(waves, tmp_path):
    model = SsambaForPreTraining(SsambaConfig(**STRUCTURES["ssamba2"]))
    extractor = SsambaFeatureExtractor.from_config(model.config)
    sounds = [{key: value[0] for key, value in extractor(wave, return_tensors="np").items()} for wave in waves]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, bf16=True,
        activation_checkpointing=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=sounds, eval_dataset=sounds, processing_class=extractor)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(tmp_path / "saved")
    assert ssamba.load_checkpoint(tmp_path / "saved").config.kind == "pretraining"


@each_structure
def test_checkpointing_half_precision_compilation_and_device_maps(structure, waves, tmp_path):
    ssamba.save_checkpoint(tmp_path, classifier_of(structure))
    model = AutoModelForAudioClassification.from_pretrained(tmp_path)
    inputs = AutoFeatureExtractor.from_pretrained(tmp_path)(waves, return_tensors="pt")

    def gradients():
        model.zero_grad()
        model.train()(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
        }

    plain = gradients()
    assert len(plain) >= sum(1 for _ in model.parameters()) - 1  # [CLS] of mean pooling may end without one
    model.activation_checkpointing_enable()
    assert model.encoder.gradient_checkpointing
    assert all(torch.equal(gradient, plain[name]) for name, gradient in gradients().items())
    model.activation_checkpointing_disable()
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
        mapped = AutoModelForAudioClassification.from_pretrained(tmp_path, device_map="auto")
        torch.testing.assert_close(mapped(**inputs).logits, logits)
        half = AutoModelForAudioClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert half(**inputs).logits.dtype == torch.bfloat16
        assert (half(**inputs).logits.softmax(-1).float() - logits.softmax(-1)).abs().max() < 0.2
    half.save_pretrained(tmp_path / "half")
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert ssamba.load_encoder(tmp_path / "half").cls_token.dtype == torch.float32


def test_a_model_compiles_to_one_graph(waves):
    model = SsambaModel(SsambaConfig(**STRUCTURES["ssamba2"])).eval()
    inputs = SsambaFeatureExtractor.from_config(model.config)(waves, return_tensors="pt")
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(**inputs)
        torch.testing.assert_close(compiled.parts, model(**inputs).parts)


@each_structure
def test_fresh_models_are_initialized_by_our_rules(structure):
    torch.manual_seed(5)
    ours = create_encoder("tiny", **STRUCTURES[structure])
    torch.manual_seed(5)
    model = AutoModel.from_config(SsambaConfig(**STRUCTURES[structure]))
    assert weights_digest(model.encoder) == weights_digest(ours)


def test_a_new_head_leaves_the_encoder_and_a_missing_tensor_is_drawn_by_our_rules(tmp_path):
    encoder = small_encoder()
    ssamba.save_checkpoint(tmp_path, encoder)
    model = SsambaForAudioClassification.from_pretrained(tmp_path, num_labels=7)
    assert weights_digest(model.encoder) == weights_digest(encoder)
    assert model.linear.weight.shape == (7, 32)
    assert 0 < model.linear.weight.abs().max() <= 32**-0.5
    assert torch.equal(model.norm.weight, torch.ones(32))
    model.save_pretrained(tmp_path / "seven")
    other = SsambaForAudioClassification.from_pretrained(tmp_path / "seven", num_labels=5, ignore_mismatched_sizes=True)
    assert torch.equal(other.norm.weight, model.norm.weight)
    assert other.linear.weight.shape == (5, 32)
    tensors = {name: value for name, value in SsambaModel(model.config).state_dict().items() if "dt_proj" not in name}
    partial = SsambaModel.from_pretrained(None, config=model.config, state_dict=tensors)
    steps = torch.nn.functional.softplus(partial.encoder.blocks[1].mixer.backward_scan.dt_proj.bias)
    assert 1e-4 <= steps.min() < steps.max() <= 0.11


def test_configurations_take_the_arguments_of_create_encoder():
    config = SsambaConfig(size="small", variant="ssamba2", num_frames=512)
    assert config.encoder_config == create_encoder("small", "ssamba2", num_frames=512, depth=24).config
    assert SsambaConfig(encoder=small_encoder().config).to_model_config().encoder == small_encoder().config
    with pytest.raises(ConfigError, match="paired blocks need an even depth, got 3"):
        SsambaConfig(depth=3)


def test_labels_follow_id2label_and_back(tmp_path):
    ssamba.save_checkpoint(tmp_path / "a", classifier_of(activation="sigmoid"))
    model = AutoModelForAudioClassification.from_pretrained(tmp_path / "a")
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.problem_type == "multi_label_classification"
    model.config.id2label = {0: "Krähe", 1: "Trommel", 2: "Chor"}
    model.save_pretrained(tmp_path / "b")
    assert ssamba.load_checkpoint(tmp_path / "b").config.classifier.labels == ("Krähe", "Trommel", "Chor")
    assert ssamba.load_checkpoint(tmp_path / "b").config.classifier.activation == "sigmoid"
    fresh = SsambaForAudioClassification(SsambaConfig(**STRUCTURES["official"], num_labels=3))
    assert fresh(torch.zeros(2, 64, 128), labels=torch.ones(2, 3)).loss > 0
    fresh.save_pretrained(tmp_path / "c")
    assert ssamba.load_checkpoint(tmp_path / "c").config.classifier == ClassifierConfig(
        num_classes=3, activation="sigmoid"
    )
    with pytest.raises(ValueError, match="attention_mask must be ones, then zeros"):
        model(torch.zeros(1, 64, 128), torch.tensor([[0] * 16 + [1] * 48]))
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 64\), as input_values are; got \(1, 60\)"):
        model(torch.zeros(1, 64, 128), torch.ones(1, 60))
    with pytest.raises(ValueError, match=r"features \(batch, frames, mel bins\), as AutoFeatureExtractor makes them"):
        model(torch.zeros(1, 16_000))
    model.save_pretrained(tmp_path / "split", max_shard_size="50KB")
    with pytest.raises(CheckpointError, match=r"holds its weights in several files, expected model\.safetensors"):
        ssamba.load_model(tmp_path / "split")


def test_feature_extractors_resample_pad_and_truncate(clips, waves):
    extractor = SsambaFeatureExtractor()
    model = ssamba.Embedder(small_encoder(), device="cpu")
    both = extractor([clips[0], decode(clips[1], sample_rate_hz=48_000)], 48_000, return_tensors="np")
    for row, path in enumerate(clips[:2]):
        features = model.features(path).numpy()
        assert np.abs(both["input_values"][row, : len(features)] - features).max() <= (1e-6, 0.3)[row]
        assert both["valid_frames"][row] == len(features)
    cut = extractor(waves, max_length=8000, truncation=True, padding="max_length", return_tensors="pt")
    assert cut["input_values"].shape == (4, 48, 128)
    assert extractor(waves[0].tolist())["input_values"].shape == (1, 160, 128)
    assert len(extractor(waves, padding=False)["input_values"][3]) == 96
    with pytest.raises(ValueError, match="max_length, in samples"):
        extractor(waves, truncation=True)
    pair = np.stack((waves[1][:9000], waves[2][:9000]))
    for both in (pair, torch.from_numpy(pair), list(pair), pair.tolist()):
        assert np.array_equal(extractor(both)["input_values"], extractor(list(pair))["input_values"])
    with pytest.raises(ValueError, match="NaN"):
        extractor([waves[0], waves[1] * np.nan])
    mean = extractor(pair.mean(0))["input_values"]
    for stereo in (pair, pair.T, [pair.T]):  # (samples, channels), as soundfile reads them
        np.testing.assert_allclose(extractor(stereo, channels="mean")["input_values"], mean, atol=1e-4)
    with pytest.raises(ValueError, match=r"looks like \(samples, channels\), as soundfile does"):
        extractor(pair.T)


SCRIPT = """
import sys
sys.modules["ssamba"] = None  # as where it is not installed
from transformers import AutoFeatureExtractor, AutoModel, pipeline
try:
    AutoModel.from_pretrained({folder!r}, trust_remote_code=True)
except ImportError as error:
    print(type(error).__name__, error)
del sys.modules["ssamba"]
pipe = pipeline("audio-classification", model={folder!r}, trust_remote_code=True, device="cpu")
print(type(pipe.model).__module__, type(AutoModel.from_pretrained({folder!r}, trust_remote_code=True)).__name__)
"""


def test_remote_code_imports_the_installed_package(tmp_path):
    ssamba.save_checkpoint(tmp_path / "ours", classifier_of())
    assert invoke("convert", tmp_path / "ours", "-o", tmp_path / "hf", "--to", "hf").exit_code == 0
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path / "hf"))],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert re.fullmatch(r'ImportError This model needs the package ssamba \(.*\): pip install "ssamba\[hf\]"', first)
    assert second == "ssamba.integrations.huggingface.modeling SsambaModel"
    assert "Traceback" not in done.stderr


def test_convert_writes_folders_for_the_hub(tmp_path, ssast_pth, waves):
    for _ in range(2):  # the second time there is nothing to do
        done = invoke("convert", ssast_pth, "-o", tmp_path / "hf", "--to", "hf", "--half")
        assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {
        "README.md", "config.json", "model.safetensors", "modeling_ssamba.py", "preprocessor_config.json"
    }  # fmt: skip
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "\n# hf\n" in card
    assert 'ssamba.load_model("hf:OWNER/NAME")' in card
    assert "library_name: transformers\npipeline_tag: feature-extraction" in card
    assert "SSAST, 2 blocks, width 24" in card
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "hf")
    assert model.dtype == torch.float32
    assert ssamba.load_checkpoint(tmp_path / "hf").config == ssamba.load_checkpoint(ssast_pth).config
    done = invoke("convert", "ssamba2-tiny", "-o", tmp_path / "hf", "--to", "hf")
    assert done.exit_code == 1
    assert "holds another checkpoint" in done.output


def test_convert_for_the_hub_names_the_missing_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("ssamba.cli.convert.find_spec", lambda name: None)
    done = invoke("convert", "ssamba2-tiny", "-o", tmp_path / "hf", "--to", "hf")
    assert (done.exit_code, done.output.strip()) == (
        1,
        'error: --to hf needs transformers: pip install "ssamba[hf]"',
    )


def test_push_to_hub_uploads_a_folder_with_our_card(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    fake = FakeHub()
    folder = ssamba.save_checkpoint(tmp_path / "ours", classifier_of(), front_end=FRONT_END)
    model = SsambaForAudioClassification.from_pretrained(folder)
    with serving(fake) as endpoint:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        model.push_to_hub("me/birds", token="hf_x", tags=["birds"])
        files = fake.repositories["me/birds"]
        assert {"config.json", "model.safetensors", "preprocessor_config.json", "modeling_ssamba.py"} < set(files)
        card = files["README.md"].decode()
        assert "pipeline_tag: audio-classification" in card
        assert "- birds" in card
        assert "3 (crow, drum, choir), softmax" in card
        files["README.md"] = b"mine"
        model.push_to_hub("me/birds", token="hf_x")
        assert files["README.md"] == b"mine"
        back = ssamba.load_model("hf:me/birds", device="cpu")
        theirs = AutoModelForAudioClassification.from_pretrained("me/birds")
        listed = [model.dim for model in ssamba.available_models() if model.name.startswith("hf:me/birds@")]
    assert listed == [32]
    assert theirs.front_end == FRONT_END
    assert back.config.classifier.labels == LABELS
    assert weights_digest(back.encoder) == weights_digest(model.encoder)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # of the Trainer on a CPU
def test_the_page_runs(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ssamba.save_checkpoint("finetuned", classifier_of())
    for name, path in (("dog", clips[3]), ("crow", clips[1])):
        (tmp_path / f"{name}.flac").write_bytes(path.read_bytes())
    page = (ROOT / "docs" / "huggingface.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names: dict[str, object] = {}
    for block in blocks:
        exec(textwrap.dedent(block), names)
    for line in re.findall(r"^ssamba (convert .*)$", page, re.MULTILINE):
        assert invoke(*line.split("#")[0].split()).exit_code == 0
