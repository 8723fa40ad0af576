"""Digests keep their values; splitmix64 is the published one."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from pydantic import Field
from tests.data.corpora import NoiseCorpus

from ssamba.config import Config, EncoderConfig, FrontEndConfig, PretrainingConfig
from ssamba.embedder import Embedder
from ssamba.hashing import digest_of, digest_of_files, digest_of_json, file_checksum, hash_bytes, splitmix64


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Pinned: caches, tables and saved runs hold such digests. The values were computed before hashing.py existed.
def test_digests_of_configurations_stay_what_they_were():
    assert FrontEndConfig().digest() == "b80ef1cff313a05a"
    assert PretrainingConfig().digest() == PINNED_PRETRAINING


def test_digests_of_embedders_stay_what_they_were(make_encoder):
    encoder = make_encoder()
    with torch.no_grad():
        for values in encoder.state_dict().values():
            values.copy_((torch.arange(values.numel()) % 7 / 8).reshape(values.shape))
    assert Embedder(encoder, device="cpu").digest() == "5f89c4d34ff7b7bd"


def test_digests_of_corpora_stay_what_they_were():
    assert NoiseCorpus([1.0, 2.5, 0.75]).fingerprint() == "2f434faf1337039f"


def test_digests_are_beginnings_of_sha256(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"weight": torch.tensor([1.5, 2.5]), "bias": torch.ones(1, requires_grad=True)}
    data = b"weight" + tensors["weight"].numpy().tobytes() + b"bias" + np.ones(1, np.float32).tobytes()
    assert digest_of("é", b"\0", array, tensors) == sha256("é\0".encode() + array.tobytes() + data)[:16]
    assert digest_of(array.T) == sha256(array.T.tobytes())[:16]
    assert digest_of_json({"b": 1, "a": None}) == sha256(json.dumps({"a": None, "b": 1}).encode())[:16]
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"abc")
    other.write_bytes(b"")
    assert file_checksum(one) == sha256(b"abc")
    assert file_checksum(one, "md5") == hashlib.md5(b"abc").hexdigest()
    sizes = (3).to_bytes(8, "little"), bytes(8)
    assert digest_of_files(one, other) == sha256(sizes[0] + b"abc" + sizes[1])[:16]
    assert digest_of_files(other, one) != digest_of_files(one, other)
    assert hash_bytes(b"abc") == hashlib.blake2b(b"abc", digest_size=8).digest()


@pytest.mark.parametrize("as_input", [lambda x: np.array(x, np.int64), torch.tensor], ids=["numpy", "torch"])
def test_splitmix64_is_the_reference_implementation(as_input):
    """The first outputs of https://prng.di.unimi.it/splitmix64.c for the seed 1234567."""
    step = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * step) % 2**64 for i in range(3)], np.uint64).view(np.int64).tolist()
    outputs = [int(value) % 2**64 for value in splitmix64(as_input(states))]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


class Inner(Config):
    size: int = 1


class OldFactor(Inner):
    factor: float = 2.0


class NewInner(Inner):
    factor: float = Field(2.0, json_schema_extra={"since": 2})


class Outer(Config):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(), Inner(size=3))
    named: dict[str, Inner] = Field({"a": Inner()})


class NewOuter(Config):
    inner: NewInner = NewInner()
    many: tuple[NewInner, ...] = (NewInner(), NewInner(size=3))
    named: dict[str, NewInner] = Field({"a": NewInner()})
    names: tuple[str, ...] = Field((), json_schema_extra={"since": 2})


def test_new_fields_at_their_default_leave_digests_unchanged():
    assert NewInner().digest() == Inner().digest()
    assert NewInner(size=2).digest() == Inner(size=2).digest() != Inner().digest()
    assert NewInner(factor=3.0).digest() != NewInner().digest()
    assert NewOuter().digest() == Outer().digest()
    changed = NewInner(factor=3.0)
    others = {"inner": changed}, {"many": (NewInner(), changed)}, {"named": {"a": changed}}, {"names": ("x",)}
    digests = {NewOuter.model_validate(values).digest() for values in others}
    assert len(digests | {NewOuter().digest()}) == 5


def test_old_fields_at_their_default_count():
    assert OldFactor().digest() != Inner().digest()
    assert EncoderConfig().digest() == PINNED_ENCODER


PINNED_PRETRAINING = "11372415f891f197"
PINNED_ENCODER = "f3c2190f21258f51"
