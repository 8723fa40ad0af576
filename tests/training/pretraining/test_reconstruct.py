"""Reconstructed patches as a plot and as sound: settings in the plot, resuming, refusals."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from ssamba.audio.decode import decode
from ssamba.errors import AudioDecodeError, CheckpointError, ConfigError, DataError, OtherSettingsError
from ssamba.training.pretraining.reconstruct import reconstruct_recording


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_plot_that_is_there_is_left_and_other_settings_are_refused(tmp_path, clips, ssamba_pth, suffix):
    plot = tmp_path / "new" / f"p (1){suffix}"
    report = reconstruct_recording(clips[0], plot, ssamba_pth)
    assert report.is_new
    assert str(report) == f"mean squared error of the masked patches {report.error:.4f}, plot in {plot}"
    before = plot.read_bytes()
    again = reconstruct_recording(clips[0], plot, ssamba_pth)
    assert (again.is_new, again.error) == (False, report.error)
    with pytest.raises(OtherSettingsError, match=r"other settings: ratio was 0\.78125, is 0\.5; seed was 0, is 3: use"):
        reconstruct_recording(clips[0], plot, ssamba_pth, ratio=0.5, seed=3)
    with pytest.raises(OtherSettingsError, match="other settings: the samples differ: use"):
        reconstruct_recording(clips[1], plot, ssamba_pth)
    assert plot.read_bytes() == before
    assert reconstruct_recording(clips[1], plot, ssamba_pth, overwrite=True).is_new


def test_sound_is_written_beside_the_plot(tmp_path, clips, ssamba_pth):
    plot, sound = tmp_path / "p.png", tmp_path / "p.wav"
    reconstruct_recording(clips[0], plot, ssamba_pth)
    assert reconstruct_recording(clips[0], plot, ssamba_pth, audio=sound).is_new
    assert np.abs(decode(sound)).max() > 0.1
    assert not reconstruct_recording(clips[0], plot, ssamba_pth, audio=sound).is_new
    plot.unlink()
    with pytest.raises(DataError, match=r"p\.wav exists without .*p\.png: use another output, or --overwrite"):
        reconstruct_recording(clips[0], plot, ssamba_pth, audio=sound)


def test_wrong_calls_are_refused_and_write_nothing(tmp_path, clips, ssamba_pth, classifier_folder):
    other = shutil.copy(clips[0], tmp_path / "other.png")
    for arguments, options, error, message in (
        ((clips[0], tmp_path / "p.txt", ssamba_pth), {}, ConfigError, r"ends in \.png, \.pdf, \.svg"),
        ((clips[0], tmp_path, ssamba_pth), {}, ConfigError, "ends in"),
        ((clips[0], tmp_path / "p.png", ssamba_pth), {"audio": "p.mp3"}, ConfigError, r"ends in \.wav"),
        ((clips[0], tmp_path / "p.png", ssamba_pth), {"ratio": 1.0}, ConfigError, "ratio: Input should be less than 1"),
        ((clips[0], tmp_path / "p.png", ssamba_pth), {"start": 900.0}, AudioDecodeError, "past the end"),
        ((clips[0], tmp_path / "p.png", classifier_folder), {}, CheckpointError, "without prediction heads"),
        ((tmp_path / "a.wav", tmp_path / "p.png", ssamba_pth), {}, AudioDecodeError, "no such file"),
        ((clips[0], other, ssamba_pth), {}, DataError, "was not written by `ssamba reconstruct`"),
    ):
        with pytest.raises(error, match=message):
            reconstruct_recording(*arguments, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["other.png"]
