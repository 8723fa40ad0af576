"""Our rows of the scorecard: log-mel statistics, random weights from several seeds, and the weights that ship."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import ssamba
from ssamba.embedder import Embedder, random_model
from ssamba.evaluation import EncoderModel, VectorOptions
from ssamba.model.create import build_encoder


def shipped() -> EncoderModel:
    """The weights that ship: every layer, both poolings."""
    options = VectorOptions(layers="all", poolings=("mean", "cls"))
    return EncoderModel(ssamba.load_model(device="cpu"), options, "ssamba2-tiny, shipped")


def untrained(seed: int) -> EncoderModel:
    """The same structure with random weights; seed 0 is what `ssamba evaluate random` scores."""
    like = random_model(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(like.encoder.config)
    return EncoderModel(
        Embedder(encoder, like.front_end, device="cpu"), name=f"ssamba2-tiny, random weights, seed {seed}"
    )


def views_of(model: EncoderModel) -> Sequence[str]:
    """The rows of its card that are shown: the final output by pooling, and the best layer."""
    finals = [f"final.{pooling}" for pooling in model.options.poolings]
    return [*finals, "best"] if model.options.layers == "all" else finals
