"""Self-supervised audio representations with SSAMBA, a bidirectional Mamba over spectrogram patches.

    import ssamba

    model = ssamba.load_model("ssamba2-tiny")
    embedding = model.embed("dog.wav")
    ssamba.embed_files("recordings/", "embeddings.npz")

Names are imported on first use, so `import ssamba` is fast, and processes that only decode audio never load torch.
"""

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import ssamba.cores  # noqa: F401 - before PyTorch is loaded, says how its threads wait

if TYPE_CHECKING:
    from ssamba.annotations import Annotation, read_annotations, write_annotations
    from ssamba.checkpoint import (
        available_models,
        average_checkpoints,
        convert_checkpoint,
        load_checkpoint,
        load_encoder,
        save_checkpoint,
    )
    from ssamba.config import EncoderConfig, FrontEndConfig, HeadConfig, SSASTConfig
    from ssamba.embedder import Embedder, load_model
    from ssamba.embedding import Embedding, EmbedOptions, Prediction
    from ssamba.evaluation import evaluate
    from ssamba.library.embed import embed_files
    from ssamba.library.predict import predict_files
    from ssamba.library.tables import read_embeddings
    from ssamba.model import create_encoder
    from ssamba.training.compare import compare_runs
    from ssamba.training.finetuning.recipe import FinetuneRecipe
    from ssamba.training.finetuning.run import finetune
    from ssamba.training.pretraining.extensions import FeatureAugmentation, Objective, ObjectiveLoss, ObjectiveStep
    from ssamba.training.pretraining.recipe import PretrainRecipe
    from ssamba.training.pretraining.reconstruct import reconstruct_recording
    from ssamba.training.pretraining.run import pretrain

_MODULES = {
    "Annotation": "ssamba.annotations",
    "read_annotations": "ssamba.annotations",
    "write_annotations": "ssamba.annotations",
    "available_models": "ssamba.checkpoint",
    "average_checkpoints": "ssamba.checkpoint",
    "convert_checkpoint": "ssamba.checkpoint",
    "load_checkpoint": "ssamba.checkpoint",
    "load_encoder": "ssamba.checkpoint",
    "save_checkpoint": "ssamba.checkpoint",
    "EncoderConfig": "ssamba.config",
    "FrontEndConfig": "ssamba.config",
    "HeadConfig": "ssamba.config",
    "SSASTConfig": "ssamba.config",
    "Embedder": "ssamba.embedder",
    "Embedding": "ssamba.embedding",
    "EmbedOptions": "ssamba.embedding",
    "Prediction": "ssamba.embedding",
    "load_model": "ssamba.embedder",
    "evaluate": "ssamba.evaluation",
    "create_encoder": "ssamba.model",
    "embed_files": "ssamba.library.embed",
    "compare_runs": "ssamba.training.compare",
    "FinetuneRecipe": "ssamba.training.finetuning.recipe",
    "finetune": "ssamba.training.finetuning.run",
    "FeatureAugmentation": "ssamba.training.pretraining.extensions",
    "Objective": "ssamba.training.pretraining.extensions",
    "ObjectiveLoss": "ssamba.training.pretraining.extensions",
    "ObjectiveStep": "ssamba.training.pretraining.extensions",
    "PretrainRecipe": "ssamba.training.pretraining.recipe",
    "pretrain": "ssamba.training.pretraining.run",
    "reconstruct_recording": "ssamba.training.pretraining.reconstruct",
    "predict_files": "ssamba.library.predict",
    "read_embeddings": "ssamba.library.tables",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())  # what is logged is shown where the caller asks for it

try:
    __version__ = version("ssamba")
except PackageNotFoundError:  # imported from the source tree, not installed
    __version__ = "0+unknown"

__all__ = [
    "Annotation",
    "EmbedOptions",
    "Embedder",
    "Embedding",
    "EncoderConfig",
    "FeatureAugmentation",
    "FinetuneRecipe",
    "FrontEndConfig",
    "HeadConfig",
    "Objective",
    "ObjectiveLoss",
    "ObjectiveStep",
    "Prediction",
    "PretrainRecipe",
    "SSASTConfig",
    "available_models",
    "average_checkpoints",
    "compare_runs",
    "convert_checkpoint",
    "create_encoder",
    "embed_files",
    "evaluate",
    "finetune",
    "load_checkpoint",
    "load_encoder",
    "load_model",
    "predict_files",
    "pretrain",
    "read_annotations",
    "read_embeddings",
    "reconstruct_recording",
    "save_checkpoint",
    "write_annotations",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    from ssamba.hints import PACKAGE, no_attribute

    raise no_attribute("module 'ssamba'", name, PACKAGE, __all__)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
