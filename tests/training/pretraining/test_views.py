"""Second views with another voice or another clip in them, and objectives that contrast thirds of clips."""

import math
from pathlib import PurePath
from types import SimpleNamespace

import pytest
import torch
from tests.training.pretraining.test_pretrain import OURS, logged, losses_of, recipe

from ssamba.audio.augmentation import change_voice
from ssamba.checkpoint import load_checkpoint
from ssamba.errors import ConfigError, DataError
from ssamba.model.patches import column_counts
from ssamba.model.pretraining import patch_subset
from ssamba.model.readouts import parts
from ssamba.training.pretraining.data import open_corpora
from ssamba.training.pretraining.extensions import ObjectiveStep
from ssamba.training.pretraining.objectives import positives_of_mixtures
from ssamba.training.pretraining.part_objectives import (
    PartsContrast,
    VoiceContrast,
    have_same_labels,
    means_of_thirds,
)
from ssamba.training.pretraining.recipe import MixedView, OtherVoice, PretrainRecipe
from ssamba.training.pretraining.run import pretrain
from ssamba.training.pretraining.views import change_voices, label_numbers, mix_views

EVERYTHING = {
    "views": {"count": 2, "longest_s": 0.8, "other_voice": {"share": 0.5}, "mixed": {"share": 0.5}},
    "objectives": {
        **OURS["objectives"],
        "teacher": 0.0,
        "parts": 1.0,
        "part_units": 1.0,
        "voice": 1.0,
        "clip_queue": 10,
    },
}


@pytest.fixture
def recordings(clips):
    return clips[0].parent


def features_of(recordings):
    task, _, inputs = losses_of(recipe(OURS), recordings)
    front_end = task.recipe.front_end
    return inputs.clean * (2 * front_end.std) + front_end.mean, inputs, front_end


def test_another_voice_is_in_the_second_view_of_a_share_of_the_clips(recordings):
    features, _inputs, front_end = features_of(recordings)
    settings, count = OtherVoice(share=0.5, formants=0.3, pitch=0.6), len(features) // 2
    seeds = torch.arange(len(features))
    found, changed = change_voices(features, seeds, settings, front_end)
    assert not changed[:count].any()
    assert torch.equal(found[~changed], features[~changed])
    assert change_voices(features, seeds, OtherVoice(), front_end) == (features, None)
    many = change_voices(torch.zeros(400, 2, 128), torch.arange(400), settings, front_end)[1]
    assert 0.4 < many[200:].float().mean() < 0.6
    everyone, _ = change_voices(features, seeds, OtherVoice(share=1.0, formants=0.3, pitch=0.6), front_end)
    torch.testing.assert_close(everyone[count:], change_voice(features[count:], seeds[count:], 0.3, 0.6, front_end))


def test_another_clip_is_mixed_in_at_its_level(recordings):
    features, inputs, _ = features_of(recordings)
    count, lengths = len(features) // 2, inputs.frames
    mixture, mixed = mix_views(features, inputs.seeds, lengths, MixedView(share=1.0, below_db=(3.0, 3.0)))
    assert torch.equal(mixture[:count], features[:count])
    assert (mixed[:count] == 0).all()
    for own in range(count):
        other = own + int(mixed[count + own])
        assert other != own
        assert 0 <= other < count
        length, there = int(lengths[count + own]), int(lengths[count + other])
        added = mixture[count + own].double().exp() - features[count + own].double().exp()
        assert added[length:].abs().max() == 0 if length < len(added) else True
        assert added[there:length].abs().sum() <= 1e-4 * added.sum()
        if there <= length:  # all of the other clip is heard
            power = features[count + own, :length].double().exp().sum() / length
            assert 10 * math.log10(power / (added[:there].sum() / there)) == pytest.approx(3.0, abs=0.05)
    assert mix_views(features, inputs.seeds, lengths, MixedView()) == (features, None)


def test_positives_of_a_mixture_are_both_clips():
    partner, mixed = torch.tensor([3, 4, 5, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 0, 0])
    positive = positives_of_mixtures(partner, mixed)  # the second view of clip 0 has clip 1 in it
    assert torch.equal(positive, positive.T)
    assert [row.nonzero()[:, 0].tolist() for row in positive] == [[3], [3, 4], [5], [0, 1], [1], [2]]


def test_pairs_of_thirds():
    partner, other_voice = torch.tensor([2, 3, 0, 1]), torch.tensor([False, False, False, True])
    names = [f"{view}{third}" for view in ("a", "b", "A", "B") for third in range(3)]  # B: clip b in another voice

    def named(which, name):
        return {names[i] for i in which[names.index(name)].nonzero()[:, 0].tolist()}

    nothing = torch.zeros(4, 4, dtype=torch.bool)
    positive, left_out = PartsContrast(1.0, 0.1, 4).pairs(partner, other_voice, nothing)
    assert named(positive, "a0") == {"A0"}
    assert named(positive, "B2") == {"b2"}
    assert not left_out.any()
    alike = have_same_labels(torch.tensor([5, 5, 5, 5]))
    positive, _ = PartsContrast(1.0, 0.1, 4).pairs(partner, other_voice, alike)
    assert named(positive, "a0") == {"a0", "A0", "b0", "B0"}  # itself is left out by the loss
    positive, left_out = VoiceContrast(1.0, 0.1, 4).pairs(partner, other_voice, nothing)
    assert named(positive, "a0") == {"A2"}
    assert named(positive, "A0") == {"a2"}
    assert named(positive, "a1") == set()
    assert named(positive, "b0") == {"b2"}
    assert named(positive, "B0") == {"B2"}
    middles = {"a1", "b1", "A1", "B1"}
    assert named(left_out, "a0") == middles | {"a0", "a2", "A0"}
    assert named(left_out, "b0") == middles | {"b0"}  # the same words in another voice are negatives


def test_thirds_are_those_of_the_readout(recordings):
    task, _, inputs = losses_of(recipe(OURS), recordings)
    encoder, front_end = task.model.encoder, task.recipe.front_end
    columns = column_counts(inputs.lengths, encoder.config)
    visible = patch_subset(torch.arange(int(columns.max())) < columns[:, None])  # nothing is masked
    with torch.no_grad():
        tokens = encoder(inputs.features, inputs.lengths)
    outputs = SimpleNamespace(visible=visible)
    step = ObjectiveStep(inputs, outputs, outputs, True, encoder.config, front_end)
    means, there = means_of_thirds(step, visible.gather(tokens[:, 1:]))
    expected = parts(inputs.clean, tokens, encoder.config, front_end, inputs.lengths, inputs.frames)
    assert there.all()
    assert columns.unique().numel() > 1
    torch.testing.assert_close(means.flatten(1), expected[:, encoder.config.embed_dim :], atol=1e-5, rtol=1e-5)


def test_all_of_them_train_and_a_resumed_run_goes_on_with_its_queue(recordings, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    pretrain(recordings, whole, recipe=recipe(EVERYTHING))
    pretrain(recordings, halves, recipe=recipe(EVERYTHING, {"run": {"steps": 2}}))
    assert pretrain(recordings, halves, recipe=recipe(EVERYTHING)).resumed_from == 2
    for key in ("clip", "parts", "part_units", "voice", "parts_accuracy", "loss"):
        values = logged(whole, key=key)
        assert values == logged(halves, key=key)
        assert all(map(math.isfinite, values))
    weights = [load_checkpoint(run).model.state_dict() for run in (whole, halves)]
    assert {"own_heads.parts.weight", "own_heads.voice.weight", "own_heads.part_units.weight"} <= weights[0].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_labels_tell_which_views_are_alike():
    numbers = label_numbers([("a", "b"), (), ("b", "a"), ("a",), ()])
    assert numbers.tolist() == [numbers[0], 0, numbers[0], numbers[3], 0]
    assert 0 < numbers[3] != numbers[0]
    assert torch.equal(numbers.float().long(), numbers)
    alike = have_same_labels(numbers)
    assert [row.nonzero()[:, 0].tolist() for row in alike] == [[0, 2], [], [0, 2], [3], []]


@pytest.fixture
def labeled(clips, tmp_path):
    table = tmp_path / "labeled.csv"
    rows = [f"{path},{'ab'[i % 2]},train\n" for i, path in enumerate(clips)]
    table.write_text("".join(["path,labels,split\n", *rows]))
    return table


def test_a_second_view_is_of_another_clip_with_the_label(labeled, clips):
    whole = {"views": {"count": 2, "longest_s": 8.0, "whole_s": 9.0}, "augmentation": {"speed": 0.0}}
    plain = recipe(OURS, whole, {"data": {"crop_s": 8.0, "batch_s": 80.0}})
    _, _, own = losses_of(plain, labeled)
    _, _, inputs = losses_of(plain.with_values({"views.same_label_share": 1.0}), labeled)
    count = len(inputs.features) // 2
    assert inputs.keys == own.keys
    assert inputs.other_voice.tolist() == [False] * count + [True] * count
    assert own.labels is None
    assert len(inputs.labels.unique()) == 2
    assert torch.equal(*inputs.labels.chunk(2))
    heard = {key: clean[:frames] for (key,), clean, frames in zip(own.keys, own.clean, own.frames, strict=True)}
    label = {path.name: "ab"[i % 2] for i, path in enumerate(clips)}
    for (key,), clean, frames in zip(inputs.keys[count:], inputs.clean[count:], inputs.frames[count:], strict=True):
        same = {name for name, one in heard.items() if len(one) == frames and torch.equal(one, clean[:frames])}
        assert same - {key}
        assert {label[PurePath(name).name] for name in same} == {label[PurePath(key).name]}


def test_takes_train_with_all_else_and_a_resumed_run_goes_on(labeled, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    settings = recipe(EVERYTHING, {"views": {**EVERYTHING["views"], "same_label_share": 0.7}})
    pretrain(labeled, whole, recipe=settings)
    pretrain(labeled, halves, recipe=settings.with_values({"run.steps": 2}))
    assert pretrain(labeled, halves, recipe=settings).resumed_from == 2
    assert logged(whole, key="loss") == logged(halves, key="loss")
    assert logged(whole, key="voice") == logged(halves, key="voice")


def test_a_run_does_not_go_on_with_other_labels(labeled, tmp_path):
    settings = recipe(OURS, {"views": {**OURS["views"], "same_label_share": 1.0}, "run": {"steps": 1}})
    pretrain(labeled, tmp_path / "run", recipe=settings)
    labeled.write_text(labeled.read_text().replace(",a,", ",b,"))
    with pytest.raises(DataError, match="clips were renamed or changed"):
        pretrain(labeled, tmp_path / "run", recipe=settings.with_values({"run.steps": 2}))


def test_adapting_does_not_ask_for_labels(labeled, tmp_path):
    settings = recipe(OURS, {"views": {**OURS["views"], "same_label_share": 1.0}, "run": {"steps": 1}})
    pretrain(labeled, tmp_path / "run", recipe=settings)
    start = load_checkpoint(tmp_path / "run").config
    adapted = PretrainRecipe.read("adapt").with_original_objectives(start, ())
    assert adapted.objectives.clip == 1.0
    assert adapted.views.same_label_share == 0.0
    asked = PretrainRecipe.read("adapt", ["views.same_label_share=1"])
    assert asked.with_original_objectives(start, ("views.same_label_share",)).views.same_label_share == 1.0
    with pytest.raises(ConfigError, match="same_label_share goes with"):
        open_corpora(labeled, asked)


def test_units_are_clusters_of_hidden_states_of_a_model(recordings, tmp_path):
    pretrain(recordings, tmp_path / "first", recipe=recipe({"run": {"steps": 1}}))
    second = recipe(OURS, {"objectives": {**OURS["objectives"], "units_from": str(tmp_path / "first")}})
    task, _, inputs = losses_of(second, recordings)
    (units,) = [one for one in task.objectives if one.name == "units"]
    found = units.units.units(inputs.clean, inputs.frames)
    first = load_checkpoint(tmp_path / "first").model.encoder
    assert torch.equal(found, units.units.units(inputs.clean, inputs.frames))
    assert len(found.unique()) > 2
    assert units.units.layer == round(first.config.num_layers / 2)
    with pytest.raises(ConfigError, match="other patches or another front end"):
        losses_of(recipe(OURS, second.model_dump(include={"objectives"}), {"front_end": {"mean": 0.0}}), recordings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": {"parts": 1.0}}, "objectives.parts goes with objectives.clip"),
        ({"objectives": {"part_units": 1.0}}, "objectives.part_units has the units of objectives.units"),
        ({"data": {"grouped_share": 0.5, "short_clips": "join"}}, "grouped_share .* set data.short_clips = 'bucket'"),
        (
            {"views": {"same_label_share": 0.5}},
            "same_label_share goes with objectives.clip",
        ),
    ],
)
def test_what_an_objective_needs_is_said(settings, message):
    with pytest.raises(ConfigError, match=message):
        recipe(settings)
