"""Models: patches, encoders (SSAMBA and SSAST), heads, masking and pretraining objectives."""

from ssamba.model.create import SIZES, VARIANTS, build_encoder, create_encoder, encoder_config
from ssamba.model.encoder import PatchEncoder, PatchTokens, SSAMBAEncoder
from ssamba.model.heads import Classifier
from ssamba.model.objectives import info_nce, reconstruction_error
from ssamba.model.pretraining import PretrainingModel
from ssamba.model.ssast import SSASTEncoder

__all__ = [
    "SIZES",
    "VARIANTS",
    "Classifier",
    "PatchEncoder",
    "PatchTokens",
    "PretrainingModel",
    "SSAMBAEncoder",
    "SSASTEncoder",
    "build_encoder",
    "create_encoder",
    "encoder_config",
    "info_nce",
    "reconstruction_error",
]
