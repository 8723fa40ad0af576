"""Statistics of a corpus, compared with those of all its frames at once in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.data.corpora import NoiseCorpus

from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank
from ssamba.config import FrontEndConfig
from ssamba.data.corpus import ManifestCorpus, open_corpus
from ssamba.data.manifest import Clip, Manifest
from ssamba.data.statistics import corpus_statistics
from ssamba.errors import DataError


def test_statistics_equal_those_of_all_frames_at_once(clips, tmp_path):
    front_end = FrontEndConfig(num_mel_bins=32)
    broken = tmp_path / "broken.wav"
    broken.write_text("no audio")
    parts = [Clip(path) for path in clips] + [Clip(broken, 0.0, 1.0), Clip(clips[6], 0.0, 0.02)]
    corpus = ManifestCorpus(Manifest(parts))
    seen = []
    result = corpus_statistics(corpus, front_end, progress=lambda p: seen.append(p))
    values = np.concatenate([fbank(torch.from_numpy(decode(p)), config=front_end).double().flatten() for p in clips])
    assert result.mean == pytest.approx(values.mean(), abs=1e-5)
    assert result.std == pytest.approx(values.std(), abs=1e-5)
    assert result.clips == len(clips) + 1
    assert seen[-1].audio_s == result.hours * 3600
    assert result.hours == pytest.approx((sum(len(decode(p)) for p in clips) + 320) / 16_000 / 3600)
    assert ["broken.wav" in entry.reason for entry in result.skipped] == [True]


def test_a_part_of_a_corpus_is_close_to_the_whole(foreign_shards, clips):
    corpus = open_corpus(clips[0].parent)
    whole = corpus_statistics(corpus)
    part = corpus_statistics(corpus, limit_hours=whole.hours / 2, seed=3)
    assert part.hours <= whole.hours
    assert part.total_hours == pytest.approx(whole.hours / 2)


def test_another_sample_rate_and_clips_without_a_frame_are_refused():
    with pytest.raises(DataError, match="needs 16000 Hz"):
        corpus_statistics(NoiseCorpus([1.0], rate_hz=8000))
    with pytest.raises(DataError, match=r"at least 25 ms.*on purpose"):
        corpus_statistics(NoiseCorpus([1.0, 0.01], broken=(0,)))
