import warnings

import numpy as np
import pytest
import soundfile
import torch
from tests.conftest import invoke, small_encoder

from ssamba.audio.band import MUCH, BandMeter
from ssamba.audio.decode import decode
from ssamba.audio.fbank import log_mel, mel_centers
from ssamba.checkpoint import save_checkpoint
from ssamba.config import FrontEndConfig
from ssamba.data.corpus import open_corpus
from ssamba.embedder import Embedder, load_model
from ssamba.errors import AudioBandWarning, ConfigError
from ssamba.library.tables import read_embeddings
from ssamba.training.batches import above_band_notes
from ssamba.training.pretraining.run import pretrain

RATE_HZ = 250_000


def share(samples, rate_hz):
    meter = BandMeter(rate_hz, 8000)
    meter.add_all(samples.astype(np.float32))
    return meter.share


def without_lows(samples, low_hz, rate_hz):
    spectrum = np.fft.rfft(samples)
    spectrum[np.fft.rfftfreq(len(samples), 1 / rate_hz) < low_hz] = 0
    return np.fft.irfft(spectrum, len(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def bats(clips, tmp_path_factory):
    """Files of real sounds played ten times faster, at 250 kHz, without what lies below 15 kHz, as bats have it."""
    folder = tmp_path_factory.mktemp("bats")
    for path in clips[:3]:
        samples = without_lows(decode(path, sample_rate_hz=RATE_HZ // 10), 15_000, RATE_HZ)
        soundfile.write(folder / f"{path.stem}.wav", 0.5 * samples / np.abs(samples).max(), RATE_HZ)
    return folder


def test_ordinary_recordings_lose_little_and_compressed_ones_nearly_everything(clips, bats):
    ordinary = [share(decode(path, sample_rate_hz=44_100), 44_100) for path in clips]
    assert max(ordinary) < MUCH
    assert np.median(ordinary) < 0.1
    assert min(share(decode(path, sample_rate_hz=RATE_HZ), RATE_HZ) for path in bats.iterdir()) > 0.95


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_quiet_noise_of_any_color_is_not_sound(slope):
    size = 2 * RATE_HZ
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(size))
    noise = np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 50) ** slope, size)
    assert share(10 ** (-55 / 20) * noise / noise.std(), RATE_HZ) == 0


def test_noise_and_wind_do_not_hide_sound_above_the_band(bats):
    for path in bats.iterdir():
        call = decode(path, sample_rate_hz=RATE_HZ)
        size, generator = max(len(call), RATE_HZ), np.random.default_rng(0)
        wind = np.fft.rfft(generator.standard_normal(size))
        wind = np.fft.irfft(wind / np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 100) ** 2, size)
        mixed = 10 ** (-60 / 20) * generator.standard_normal(size) + 10 ** (-35 / 20) * wind / wind.std()
        mixed[: len(call)] += 0.2 * call
        assert share(mixed, RATE_HZ) > MUCH


def test_time_expansion_makes_the_features_of_the_slowed_recording(clips):
    samples = torch.from_numpy(decode(clips[0]))
    for factor in (3, 10, 16):
        front_end = FrontEndConfig(mean=-4.0).named(f"x{factor}")
        assert (front_end.sample_rate_hz, front_end.mean) == (16_000 * factor, -4.0)
        assert torch.equal(log_mel(samples, config=front_end), log_mel(samples, config=FrontEndConfig(mean=-4.0)))
    expected = 10 * mel_centers(FrontEndConfig())
    torch.testing.assert_close(mel_centers(FrontEndConfig().named("x10")), expected)
    assert FrontEndConfig().named("x1") == FrontEndConfig().named("16khz") == FrontEndConfig()
    assert FrontEndConfig().named("48khz") == FrontEndConfig(sample_rate_hz=48_000)
    with pytest.raises(ConfigError, match=r"16khz, 48khz .* or x10 .*got 'bats'"):
        FrontEndConfig().named("bats")


def test_python_calls_warn_once_and_not_with_a_front_end_that_reaches_higher(bats, clips):
    model, paths = Embedder(small_encoder(), device="cpu"), sorted(bats.iterdir())
    with pytest.warns(AudioBandWarning, match=r"^3 of 4 recordings, such as .*choir.wav: \d+% of") as found:
        model.embed([*paths, clips[0]])
    assert len(found) == 1
    with pytest.warns(AudioBandWarning, match="Further recordings of this call are not named") as found:
        list(model.embed_stream(enumerate(paths)))
    assert len(found) == 1
    samples = decode(paths[0], sample_rate_hz=RATE_HZ)
    with pytest.warns(AudioBandWarning, match="^the waveform: "):
        model.embed(samples, RATE_HZ)
    slowed = Embedder(small_encoder(), "x16", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding = slowed.embed(samples, RATE_HZ)
    assert embedding.duration_s == pytest.approx(len(samples) / RATE_HZ, abs=1e-4)


def test_the_command_warns_once_lists_files_and_tables_state_the_front_end(bats, clips, tmp_path, caplog):
    checkpoint = save_checkpoint(tmp_path / "model", small_encoder())
    output = tmp_path / "out.npz"
    done = invoke("embed", bats, clips[0], "-c", checkpoint, "-o", output)
    assert done.exit_code == 0, done.output
    text = " ".join(done.stderr.split())
    assert text.count("where this model hears nothing") == 1
    assert "3 of 4 recordings" in text
    listed = (tmp_path / "out.npz.remarks.csv").read_text(encoding="utf-8")
    assert listed.count(",above band,") == 3
    assert "16000 Hz" in str(read_embeddings(output)["settings"])
    done = invoke("embed", bats, "-c", checkpoint, "-o", tmp_path / "x.npz", "--front-end", "x16")
    assert done.exit_code == 0
    assert "hears nothing" not in done.stderr
    assert "time expansion 16" in str(read_embeddings(tmp_path / "x.npz")["settings"])
    assert "time expansion 16" in invoke("info", tmp_path / "x.npz").stdout.replace("\n", " ")


def test_training_notes_what_the_model_does_not_hear(bats, clips):
    assert "3 of 3 recordings" in above_band_notes([open_corpus(bats)])[0]
    assert above_band_notes([open_corpus(bats, 256_000)]) == []
    others = open_corpus(clips[0].parent)
    noted = [above_band_notes([*[others] * count, open_corpus(bats)]) for count in (3, 1)]
    assert [len(notes) for notes in noted] == [0, 1]  # some of many do not count


def test_checkpoints_keep_the_front_end_they_were_trained_with(bats, clips, tmp_path):
    start = save_checkpoint(tmp_path / "start", small_encoder())
    short = {"run.steps": 1, "data.workers": 0, "data.crop_s": 0.5, "data.batch_s": 1.0, "run.validate_every": 1}
    pretrain(bats, tmp_path / "run", start, set=short, front_end="x16", device="cpu")
    front_end = load_model(tmp_path / "run", device="cpu").front_end
    assert front_end == FrontEndConfig().named("x16")
