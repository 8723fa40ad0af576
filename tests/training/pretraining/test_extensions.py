"""Objectives: those that do not come with ssamba (given, found, refused, resumed), and golden losses of ours."""

import math
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
from tests.training.pretraining.test_pretrain import OURS, logged, recipe

import ssamba
from ssamba.checkpoint import load_checkpoint
from ssamba.errors import ConfigError, OtherSettingsError, TrainingDivergedError, TrainingError
from ssamba.training.pretraining import extensions
from ssamba.training.pretraining.recipe import PretrainRecipe
from ssamba.training.pretraining.run import pretrain


class Peak(ssamba.Objective):
    """Predict the loudest value of a clip; it counts its steps."""

    name = "peak"

    def __init__(self, weight=1.0, scale=0.1):
        super().__init__(weight)
        self.scale, self._steps = float(scale), 0

    def heads(self, encoder):
        return [ssamba.HeadConfig(name="peak", reads="visible", outputs=1, hidden=4)]

    def loss(self, step):
        target = step.inputs.features.amax((1, 2)) * self.scale
        assert len(step.inputs.keys) == len(target)
        error = (step.head("peak").mean((1, 2)) - target).square().mean()
        return ssamba.ObjectiveLoss(error, {"peak_target": target.mean()})

    def after_step(self, model, step):
        self._steps += 1

    def state_dict(self):
        return {"steps": self._steps}

    def load_state_dict(self, state):
        self._steps = state["steps"]


class Given(ssamba.Objective):
    """Its loss is what it was given."""

    name = "given"

    def __init__(self, found, weight=1.0):
        super().__init__(weight)
        self._found = found

    def loss(self, step):
        return self._found if step.training else None


class Negate(ssamba.FeatureAugmentation):
    name = "negate"

    def __call__(self, features, seeds, lengths):
        assert len(features) == len(seeds) == len(lengths)
        return -features


@pytest.fixture
def installed(monkeypatch):
    """Let a package with entry points look installed."""
    values = {
        "ssamba.objectives": {"peak": f"{__name__}:Peak", "gone": "ssamba:Gone", "other": f"{__name__}:Peak"},
        "ssamba.augmentations": {"negate": f"{__name__}:Negate"},
    }

    def entry_points(group):
        return [EntryPoint(name, value, group) for name, value in values[group].items()]

    monkeypatch.setattr(extensions, "entry_points", entry_points)


def test_an_objective_is_trained_saved_and_resumed_however_it_is_named(clips, tmp_path, installed):
    folder, run = clips[0].parent, tmp_path / "run"
    peak = Peak(weight=2)
    report = pretrain([folder], run, recipe=recipe(), objectives=[peak])
    assert peak._steps == 4
    assert report.validation["peak@400"] > 0
    assert all(value > 0 for key in ("peak", "peak_target") for value in logged(run, key=key))
    with pytest.raises(OtherSettingsError, match=r"own_objectives.peak.weight was 2, is 1"):
        pretrain([folder], run, recipe=recipe(), set={"own_objectives.peak": {"weight": 1}})
    again = Peak(2)
    assert pretrain([folder], run, recipe=recipe(), set=["run.steps=5"], objectives=[again]).resumed_from == 4
    assert again._steps == 5
    # By entry point, without the object; its head goes on from the checkpoint that the run starts from.
    changes = {"own_objectives.peak.weight": 2, "run.steps": 1, "optimizer.learning_rate": 1e-9}
    pretrain([folder], tmp_path / "next", run, recipe=recipe({"run": {"ema_decay": None}}), set=changes)
    first, then = (load_checkpoint(one).model.state_dict() for one in (run, tmp_path / "next"))
    heads = [name for name in first if name.startswith("own_heads.peak.")]
    assert len(heads) == 4
    for name in heads:
        torch.testing.assert_close(then[name], first[name], atol=1e-6, rtol=0)


def test_an_augmentation_changes_what_the_model_hears(clips, tmp_path, installed):
    folder = clips[0].parent
    changes = {"own_augmentations.negate": {}, "run.steps": 1, "run.validate_every": None}
    pretrain([folder], tmp_path / "named", recipe=recipe(), set=changes)
    pretrain([folder], tmp_path / "given", recipe=recipe({"run": {"steps": 1}}), augmentations=[Negate()])
    pretrain([folder], tmp_path / "none", recipe=recipe({"run": {"steps": 1}}))
    named, given, without = (logged(tmp_path / name)[0] for name in ("named", "given", "none"))
    assert named == given != without


def test_what_cannot_be_used_is_refused_in_words(installed):
    def load(name, **settings):
        return extensions.load_extensions(PretrainRecipe.parse({"own_objectives": {name: settings}}, "test"))

    with pytest.raises(ConfigError, match=r"'ssamba.objectives' \(installed packages have gone, other, peak\)"):
        load("peek")
    with pytest.raises(ConfigError, match=r"own_objectives.peak: .*:Peak does not take these settings .*'wait'"):
        load("peak", wait=1.0)
    with pytest.raises(ConfigError, match=r"ssamba:Gone cannot be imported"):
        load("gone")
    with pytest.raises(ConfigError, match=r"has the name 'peak': name both alike"):
        load("other")
    with pytest.raises(ConfigError, match=r"the weight of peak is -1"):
        load("peak", weight=-1)
    with pytest.raises(ConfigError, match=r"expected an object of a subclass of ssamba.Objective, got <class"):
        extensions.given_extensions([Peak])
    with pytest.raises(ConfigError, match="each needs a name of its own, got peak, peak"):
        extensions.given_extensions([Peak(), Peak()])
    twice = extensions.Extensions((Peak(), type("Copy", (Peak,), {"name": "copy"})()))
    with pytest.raises(ConfigError, match="more than one head is named peak"):
        twice.heads(None)
    given = extensions.given_extensions([Peak()])
    settings = PretrainRecipe.parse({"own_objectives": {"peak": {"weight": 3.0}}}, "test")
    with pytest.raises(ConfigError, match=r"own_objectives.peak is set to .*3.0.*give one of them"):
        extensions.load_extensions(settings, given)
    with pytest.raises(ConfigError, match=r"Peak does not take these settings \(could not convert string to float"):
        load("peak", scale="much")
    for name, why in (("clip", "an objective of this name"), ("corpora", "use this name"), ("epoch", "use this name")):
        with pytest.raises(ConfigError, match=why):
            extensions.given_extensions([type("Other", (Peak,), {"name": name})()])
    one = type("One", (Peak,), {"heads": lambda self, encoder: Peak().heads(encoder)[0]})()
    with pytest.raises(ConfigError, match=r"heads of peak returned .*expected a list of ssamba.HeadConfig"):
        extensions.Extensions((one,)).heads(None)
    off = {"own_objectives": {"peak": {"weight": 0}}, "objectives": {"discriminative": 0.0, "generative": 0.0}}
    with pytest.raises(ConfigError, match="every objective has weight 0"):
        PretrainRecipe.parse(off, "test")


@pytest.mark.parametrize(
    ("found", "got"),
    [
        (torch.zeros(3), r"loss of given must be a scalar tensor, got one of shape \(3,\)"),
        (1.0, "loss of given must be a scalar tensor, got 1.0"),
        (None, r"got None \(None leaves it out of a validation alone\)"),
        (ssamba.ObjectiveLoss(torch.tensor(1.0), {"width": torch.ones(2)}), r"figure 'width' of given .*\(2,\)"),
    ],
)
def test_a_loss_that_is_no_scalar_is_refused(found, got):
    with pytest.raises(TrainingError, match=got):
        extensions.objective_loss(Given(found), SimpleNamespace(training=True))


def test_an_augmentation_that_returns_other_features_is_refused():
    features, two = torch.zeros(2, 4, 3), torch.zeros(2)
    for found in (features[:, 1:], features.double(), features.numpy(), None):
        other = type("Other", (Negate,), {"__call__": lambda self, *_, found=found: found})()
        with pytest.raises(TrainingError, match=r"augmentation negate must return features like .*\(2, 4, 3\)"):
            extensions.augmented(features, other, two, two)


def test_a_run_whose_every_step_fails_is_an_error_that_names_the_objective(clips, tmp_path):
    off = {"objectives.discriminative": 0.0, "objectives.generative": 0.0, "run.steps": 1}
    changes = {"recipe": recipe(), "set": off}
    with pytest.raises(TrainingDivergedError, match=r"all 1 steps had (.|\n)*not finite: given\)"):
        pretrain([clips[0].parent], tmp_path / "nan", objectives=[Given(torch.tensor(math.nan))], **changes)
    # One that leaves itself out of validations leaves them without a loss, which is not 0.
    report = pretrain([clips[0].parent], tmp_path / "run", objectives=[Given(torch.tensor(1.0))], **changes)
    assert math.isnan(report.validation["loss"])
    assert report.best is None


def test_the_first_losses_of_every_objective_are_golden(clips, tmp_path):
    pretrain([clips[0].parent], tmp_path / "run", recipe=recipe(OURS, {"run": {"steps": 1}}))
    found = {name: logged(tmp_path / "run", key=name)[0] for name in GOLDEN}
    assert found == pytest.approx(GOLDEN, rel=2e-3)


GOLDEN = {
    "loss": 21.2496,
    "discriminative": 2.66052,
    "generative": 1.03013,
    "statistics": 1.29412,
    "profile": 1.2809,
    "texture": 1.21465,
    "units_seen": 2.73797,
    "units_hidden": 2.63472,
    "teacher": 1.07404,
    "clip": 0.737765,
    "accuracy": 0.0845753,
    "units_seen_accuracy": 0,
    "grad_norm": 19.422,
}
"""Losses of the first step before objectives were parts (commit a5a9c8a)."""
