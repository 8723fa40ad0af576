"""Initialization of the classifier by logistic regression, against scikit-learn on embeddings computed separately."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ssamba.checkpoint import load_checkpoint, save_checkpoint
from ssamba.config import FrontEndConfig
from ssamba.embedder import Embedder
from ssamba.model import create_encoder
from ssamba.splits import Fold
from ssamba.training.finetuning import job
from ssamba.training.finetuning.data import open_labeled
from ssamba.training.finetuning.head_init import fit_initial_head
from ssamba.training.finetuning.recipe import FinetuneRecipe
from ssamba.training.finetuning.run import finetune
from ssamba.training.finetuning.task import FinetuneTask

CPU = torch.device("cpu")


def recipe(**changes):
    values = {
        "start": {"fitted_head": True},
        "clips": {"batch_size": 4, "workers": 0, "frames": 96},
        "schedule": {"warmup_steps": 2},
        "run": {"epochs": 1, "log_every": 1, "validate_every": "epoch", "ema_decay": None, "keep_last": 1},
        "finish": {"refit": False},
    }
    return FinetuneRecipe.parse({**values, **changes}, "test")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return create_encoder("tiny", "ssamba2", embed_dim=24, depth=2).eval()


def task_of(encoder, classes, settings, train, valid):
    data = open_labeled(classes, settings, FrontEndConfig(), 0.96, None)
    part = Fold(np.array(train), np.zeros(0, np.int64), np.array(valid, dtype=np.int64))
    return FinetuneTask(settings, data, part, encoder.config, FrontEndConfig(), encoder.state_dict())


def test_the_fitted_head_equals_scikit_learns(encoder, classes):
    train, valid = [i for i in range(24) if i % 4], list(range(0, 24, 4))
    task = task_of(encoder, classes, recipe(), train, valid)
    before = {name: value.clone() for name, value in task.model.encoder.state_dict().items()}
    strength = fit_initial_head(task, CPU)
    assert strength is not None
    assert all(torch.equal(value, before[name]) for name, value in task.model.encoder.state_dict().items())
    embedder = Embedder(encoder, device="cpu")
    vectors = np.stack([embedder.embed(task.data.corpus.read(i)).clip.numpy() for i in range(24)])
    vectors = torch.nn.functional.layer_norm(torch.from_numpy(vectors), (24,)).double().numpy()
    labels = task.data.clip_targets().argmax(1)
    scaler = StandardScaler().fit(vectors[train])
    theirs = LogisticRegression(C=1 / (len(train) * strength), max_iter=5000, tol=1e-10)
    theirs.fit(scaler.transform(vectors[train]), labels[train])
    with torch.no_grad():
        ours = task.model.linear(torch.from_numpy(vectors).float()).softmax(-1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(scaler.transform(vectors)), atol=2e-3)


@pytest.mark.parametrize("changes", [{"loss": {"kind": "bce"}}, {"choice": {"metric": "loss"}}])
def test_the_fit_minimizes_the_loss_of_the_recipe(encoder, classes, changes):
    train, valid = [i for i in range(24) if i % 4], list(range(0, 24, 4))
    task = task_of(encoder, classes, recipe(**changes), train, valid)
    answers = task.predict(task.model.eval(), task.fold.train)
    fit_initial_head(task, CPU)
    fitted = task.predict(task.model.eval(), task.fold.train)
    assert task.metrics(fitted)["loss"] < task.metrics(answers)["loss"]
    assert task.metrics(fitted)["accuracy"] > 0.6


def test_without_validation_clips_the_default_strength_is_used(encoder, classes):
    task = task_of(encoder, classes, recipe(), range(24), [])
    assert fit_initial_head(task, CPU) == 1e-2


def test_the_initial_model_is_kept_if_training_does_not_improve_it(encoder, classes, tmp_path):
    settings = recipe(optimizer={"learning_rate": 10.0})  # destroys what was fitted
    settings = settings.with_changes(run=settings.run.with_changes(validate_first=True))
    checkpoint = save_checkpoint(tmp_path / "encoder", encoder)
    report = finetune(classes, tmp_path / "run", checkpoint, recipe=settings, refit=True)
    (only,) = report.folds
    assert (only.step, only.epoch) == (0, 0)
    assert report.refit is None  # of no step
    kept = load_checkpoint(tmp_path / "run" / "model").model.state_dict()
    assert all(torch.equal(kept[f"encoder.{name}"], value) for name, value in encoder.state_dict().items())


def test_a_run_fits_its_head_once_and_not_from_scratch(encoder, classes, tmp_path, monkeypatch):
    fitted = []
    monkeypatch.setattr(job, "fit_initial_head", lambda task, device: fitted.append(fit_initial_head(task, device)))
    checkpoint = save_checkpoint(tmp_path / "encoder", encoder)
    finetune(classes, tmp_path / "run", checkpoint, recipe=recipe())
    assert len(fitted) == 1
    finetune(classes, tmp_path / "run", checkpoint, recipe=recipe())
    finetune(classes, tmp_path / "new", checkpoint, recipe=recipe(start={"fitted_head": True, "scratch": True}))
    assert len(fitted) == 1
    assert load_checkpoint(tmp_path / "run" / "model").config.classifier is not None
