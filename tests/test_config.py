"""Configuration: old spellings of keys in written files are read, and each problem is said once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ssamba
from ssamba.config import ClassifierConfig, ModelConfig
from ssamba.errors import ConfigError
from ssamba.evaluation.vectors import VectorOptions
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.pretraining.recipe import PretrainRecipe

WEIGHTS = Path(ssamba.__file__).parent / "checkpoint" / "weights"


def test_config_of_the_bundled_weights_is_read_with_its_old_spelling():
    values = json.loads((WEIGHTS / "ssamba2-tiny-1" / "config.json").read_text(encoding="utf-8"))
    assert values["pretraining"].pop("normalise_targets") is True
    without = ModelConfig.parse(values, "config.json")
    values["pretraining"]["normalise_targets"] = True
    config = ModelConfig.parse(values, "config.json")
    assert config.pretraining is not None
    assert without.pretraining is not None
    assert (config.pretraining.normalize_targets, without.pretraining.normalize_targets) == (True, False)


def test_old_pretraining_recipe_is_read(tmp_path):
    path = tmp_path / "old.toml"
    path.write_text(
        "[objectives]\nnormalise_targets = true\n[optimiser]\nlearning_rate = 0.25\n"
        "[augmentation]\nequaliser_db = 2.0\n[run]\nsteps = 1\n"
    )
    recipe = PretrainRecipe.read(path)
    assert recipe.objectives.normalize_targets
    assert recipe.optimizer.learning_rate == 0.25
    assert recipe.augmentation.equalizer_db == 2.0


def test_old_fine_tuning_recipe_is_read(tmp_path):
    path = tmp_path / "old.toml"
    path.write_text("[optimiser]\nlearning_rate = 0.25\n[augmentation]\nequaliser_db = 2.0\n[run]\nepochs = 1\n")
    recipe = FinetuneRecipe.read(path)
    assert recipe.optimizer.learning_rate == 0.25
    assert recipe.augmentation.equalizer_db == 2.0


def test_a_wrong_item_of_a_list_is_one_problem():
    with pytest.raises(ConfigError) as error:
        VectorOptions.parse({"readouts": ["both"]}, "evaluate")
    assert str(error.value) == "evaluate: readouts.0: Input should be 'clip' or 'parts' (got 'both')"


def test_a_classifier_checks_what_long_recordings_need():
    labels = ("crow", "drum")
    for change, message in (
        ({"background": "wind"}, "is none of the labels"),
        ({"thresholds": (0.5,)}, "1 thresholds for 2 classes"),
        ({"thresholds": (0.5, 2.0)}, "probabilities from 0 to 1"),
        ({"clip_lengths_s": (2.0, 1.0, 3.0)}, "must be above 0 and not fall"),
        ({"temperature": 0.0}, "greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            ClassifierConfig.parse({"num_classes": 2, "labels": labels, **change}, "config.json")
