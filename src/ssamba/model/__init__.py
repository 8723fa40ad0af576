"""The models: patches, positions, BiMamba blocks, encoder, heads and pretraining objectives."""

from ssamba.model.create import SIZES, VARIANTS, create_encoder, encoder_config
from ssamba.model.encoder import PatchTokens, SSAMBAEncoder
from ssamba.model.heads import Classifier, PredictionHead
from ssamba.model.objectives import info_nce, reconstruction_error
from ssamba.model.pretraining import PretrainingModel

__all__ = [
    "SIZES",
    "VARIANTS",
    "Classifier",
    "PatchTokens",
    "PredictionHead",
    "PretrainingModel",
    "SSAMBAEncoder",
    "create_encoder",
    "encoder_config",
    "info_nce",
    "reconstruction_error",
]
