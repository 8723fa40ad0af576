import torch

from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel
from ssamba.audio.inversion import features_to_waveform


def test_features_of_the_rebuilt_sound_resemble_the_original(clips):
    features = log_mel(torch.from_numpy(decode(clips[0], duration_s=1.5)))
    rebuilt = log_mel(features_to_waveform(features))
    assert rebuilt.shape == features.shape
    # Levels differ (the sound is brought to a peak of 0.9), the pattern stays.
    a, b = (x - x.mean() for x in (features, rebuilt))
    assert float((a * b).sum() / (a.norm() * b.norm())) > 0.95
