"""Recordings from arrays of every kind, bytes, file objects and files of several channels; what is refused, and how."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio.decode import decode, stream
from ssamba.audio.sources import Recordings, read
from ssamba.config import FrontEndConfig
from ssamba.errors import AudioDecodeError

FRONT_END = FrontEndConfig()


def samples_of(source, sample_rate=None, channels=None):
    return np.concatenate(list(read(source, sample_rate, FRONT_END, channels)))


def separate(source):
    """Return the samples of each channel, read as `channels="separate"` does."""
    found = []

    def run(items):
        for key, blocks in items:
            found.append(np.concatenate(list(blocks)))
            yield key, 0

    Recordings(source, None, FRONT_END, channels="separate").collect(run, float, None, "reading")
    return found


@pytest.fixture(scope="module")
def wave(medley):
    """Two seconds that 16 bits hold exactly, below full scale."""
    return np.round(medley[20_000:52_000] * 32_768).clip(-32_768, 32_767).astype(np.float32) / 32_768


@pytest.fixture(scope="module")
def stereo(wave):
    """(2, S): two different channels."""
    return np.stack((wave, wave[::-1] / 2))


def read_only(wave):
    locked = wave.copy()
    locked.flags.writeable = False
    return locked


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x,
        lambda x: x[None],
        lambda x: x.astype(np.float64),
        lambda x: x.astype(">f4"),
        lambda x: x.astype(">f8"),
        lambda x: (x * 32_768).astype(np.int16),
        lambda x: (x * 32_768).astype(">i2"),
        lambda x: (x * 32_768).astype(np.int32) * 65_536,
        lambda x: ((x * 32_768).astype(np.int32) * 65_536).astype(">i4"),
        lambda x: np.repeat(x, 3)[::3],
        lambda x: x[::-1].copy()[::-1],
        lambda x: np.stack((x, x), 1)[:, 0],
        read_only,
        torch.from_numpy,
        lambda x: torch.from_numpy(x)[None],
        lambda x: torch.from_numpy(x).double().requires_grad_(),
        lambda x: torch.from_numpy((x * 32_768).astype(np.int16)),
        lambda x: torch.repeat_interleave(torch.from_numpy(x), 2)[::2],
        lambda x: torch.complex(torch.zeros(len(x)), torch.from_numpy(-x)).conj().imag,
    ],
)
def test_arrays_of_every_layout_are_the_same_samples(wave, given):
    np.testing.assert_array_equal(samples_of(given(wave)), wave)


@pytest.mark.parametrize(
    ("given", "tolerance"),
    [
        (lambda x: x.astype(np.float16), 2**-11),
        (lambda x: torch.from_numpy(x).bfloat16(), 2**-8),
        (lambda x: torch.from_numpy(x).half(), 2**-11),
        (lambda x: np.round(x * 127 + 128).astype(np.uint8), 2**-6),
        (lambda x: torch.from_numpy(np.round(x * 127 + 128).astype(np.uint8)), 2**-6),
        (lambda x: np.round(x * 127).astype(np.int8), 2**-6),
    ],
)
def test_coarse_types_are_scaled_to_one(wave, given, tolerance):
    np.testing.assert_allclose(samples_of(given(wave)), wave, atol=tolerance)


def test_arrays_are_resampled_and_never_changed(wave):
    before = wave.copy()
    assert len(samples_of(wave, 48_000)) == round(len(wave) / 3)
    np.testing.assert_array_equal(samples_of(wave, 16_000), wave)
    np.testing.assert_array_equal(wave, before)


@pytest.mark.parametrize("turned", [False, True], ids=["channels first", "samples first"])
def test_channels_of_arrays(stereo, turned):
    array = stereo.T if turned else stereo
    np.testing.assert_allclose(samples_of(array, channels="mean"), stereo.mean(0), atol=1e-7)
    for channel in (0, 1, np.int64(1)):
        np.testing.assert_array_equal(samples_of(array, channels=channel), stereo[channel])
    np.testing.assert_array_equal(separate(array), stereo)
    np.testing.assert_array_equal(separate(stereo[0]), stereo[:1])


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
def test_channels_of_files(stereo, name, tmp_path):
    path = tmp_path / name
    if name.endswith("m4a"):
        write_alac(path, stereo)
    else:
        soundfile.write(path, stereo.T, 16_000, subtype="PCM_16")
    tolerance = 2**-15  # of the mean, and of what the halved channel loses
    np.testing.assert_allclose(samples_of(path), stereo.mean(0), atol=tolerance)
    np.testing.assert_array_equal(samples_of(path, channels="mean"), samples_of(path))
    for channel in (0, 1):
        np.testing.assert_allclose(samples_of(path, channels=channel), stereo[channel], atol=tolerance)
        np.testing.assert_array_equal(decode(path, channel=channel), samples_of(path, channels=channel))
    np.testing.assert_allclose(separate(path), stereo, atol=tolerance)
    part = decode(path, channel=1, start_s=0.5, duration_s=1)
    np.testing.assert_allclose(part, stereo[1, 8000:24_000], atol=tolerance)
    assert [len(block) for block in stream(path, channel=1, block_s=1.5)] == [24_000, 8000]
    with pytest.raises(AudioDecodeError, match="has no channel 2, but 2 channels"):
        decode(path, channel=2)


def write_alac(path, stereo):
    import av

    with av.open(str(path), "w", format="ipod") as container:
        output = container.add_stream("alac", rate=16_000, layout="stereo")
        pcm = np.ascontiguousarray((stereo * 32_768).round().clip(-32_768, 32_767).astype(np.int16))
        for start in range(0, pcm.shape[1], 4096):
            frame = av.AudioFrame.from_ndarray(pcm[:, start : start + 4096], format="s16p", layout="stereo")
            frame.sample_rate, frame.pts = 16_000, start
            container.mux(output.encode(frame))
        container.mux(output.encode(None))


def test_bytes_and_file_objects_are_files(clips):
    expected = decode(clips[0])
    data = clips[0].read_bytes()
    with clips[0].open("rb") as file:
        for source in (data, bytearray(data), memoryview(data), io.BytesIO(data), file, str(clips[0])):
            np.testing.assert_array_equal(samples_of(source), expected)
        with pytest.raises(ValueError, match=r"has already been read to its end: call its seek\(0\) first"):
            samples_of(file)
    with clips[0].open(encoding="latin1") as text, pytest.raises(ValueError, match="open it with mode 'rb'"):
        samples_of(text)
    assert len(separate(io.BytesIO(data))) == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://a.org/x.flac?b=1", "https://a.org/x.flac.b=1: is a URL, and nothing is read over the network. Down"),
        ("s3://bucket/x.flac", "s3://bucket/x.flac: is a URL"),
        ("file:///data/x.flac", "file:///data/x.flac: is a URL, where a path is expected. Give /data/x.flac"),
        ("https://a.org/" + 300 * "x", "is a URL"),
    ],
)
def test_urls_are_refused_by_name(url, message):
    from ssamba.audio.files import find_audio

    with pytest.raises(AudioDecodeError, match=message):
        samples_of(url)
    if "?" in url:
        with pytest.raises(AudioDecodeError, match=message):
            find_audio([url])


def test_a_file_may_be_named_like_a_url(clips, tmp_path, monkeypatch):
    (tmp_path / "https:").mkdir()
    (tmp_path / "https:" / "x.flac").write_bytes(clips[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(samples_of("https://x.flac"), decode(clips[0]))


@pytest.mark.parametrize("scale", [15, 17, 32_767, 8e6, 2e9, 1e12])
def test_loud_floats_warn_with_the_divisor(wave, scale):
    loud = wave * (scale / np.abs(wave).max())
    if scale < 16:
        samples_of(loud)
        return
    with pytest.warns(UserWarning, match="peak") as caught:
        samples_of(loud)
    (warning,) = caught
    divisor = {17: "32768", 32_767: "32768", 8e6: "8388608", 2e9: "2147483648"}.get(scale, "little: scale it to")
    assert divisor in str(warning.message)
