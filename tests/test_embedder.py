"""The Embedder: any source, any length, batches, windows, options, predictions, threads, and its messages."""

from __future__ import annotations

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile as sf
import torch

import ssamba
from ssamba.audio.decode import decode
from ssamba.audio.fbank import fbank, log_mel
from ssamba.embedder import Embedder, EmbedOptions
from ssamba.embedding import PredictOptions
from ssamba.errors import AudioDecodeError, ConfigError
from ssamba.inference import group_by_length


def assert_same(one, other, atol=1e-5):
    for name in ("clip", "parts", "frames", "times_s"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=atol, rtol=0)


def test_a_recording_gives_clip_frames_and_times(embedder, clips):
    for path in clips:
        e = embedder.embed(path)
        duration_s = sf.info(path).duration
        assert e.duration_s == pytest.approx(duration_s, abs=1e-3)
        assert e.clip.shape == (embedder.dim,)
        assert e.frames.shape == (len(e.times_s), embedder.dim)
        assert (e.times_s.diff() > 0).all()
        assert 0 < e.times_s[0] <= e.times_s[-1] < e.duration_s
        torch.testing.assert_close(e.clip, e.frames.mean(0))


def test_files_arrays_and_tensors_agree(embedder, clips):
    samples, rate = sf.read(clips[8], dtype="float32")
    from_file = embedder.embed(str(clips[8]))
    assert_same(embedder.embed(samples, rate), from_file)
    assert_same(embedder.embed(torch.from_numpy(samples), rate), from_file)
    assert_same(embedder.embed(samples.astype(np.float64), rate), from_file)
    pcm = (samples * 32768).round().clip(-32768, 32767).astype(np.int16)
    assert_same(embedder.embed(pcm, rate), from_file, atol=1e-3)
    at_model_rate = decode(clips[8])
    assert_same(embedder.embed(at_model_rate), from_file)
    assert_same(embedder.embed(at_model_rate, 16_000), from_file)


def test_batches_and_lists_give_what_single_recordings_give(embedder, clips, medley):
    sources = [*clips, medley[:4800], medley[: 16000 * 10], medley[-7000:], medley]
    together = embedder.embed(sources)
    for one, source in zip(together, sources, strict=True):
        assert_same(one, embedder.embed(source))
    batch = torch.from_numpy(medley[:32000]).reshape(2, -1)
    for one, row in zip(embedder.embed(batch, batch=True), batch, strict=True):
        assert_same(one, embedder.embed(row))
    assert embedder.embed([]) == []


def test_ssast_embeds_what_ssamba_does(ssast_pth, clips, medley):
    model = ssamba.load_model(ssast_pth, device="cpu")
    sources = [*clips[:3], medley[:4800], medley[: 16000 * 4]]
    for one, source in zip(model.embed(sources), sources, strict=True):
        assert_same(one, model.embed(source))
    features = model.features(medley[:16000])[None, :96]
    with torch.no_grad():
        tokens = model.encoder(features)[0, 2:]  # [CLS] and the distillation token do not count
    torch.testing.assert_close(model.embed(medley[: 95 * 160 + 400]).clip, tokens.mean(0), atol=1e-5, rtol=0)
    whole = model.embed(medley, context="full", layer=1)
    assert torch.isfinite(whole.frames).all()
    other = ssamba.load_model(ssast_pth, device="cpu", patch_stride=10)
    assert other.digest() != model.digest() == ssamba.load_model(ssast_pth, device="cpu").digest()


def test_a_short_recording_is_the_mean_over_its_patch_tokens(embedder, medley):
    samples = torch.from_numpy(medley[: 16000 * 3])
    features = fbank(samples)
    filled = torch.nn.functional.pad(features, (0, 0, 0, -len(features) % 16))
    config = embedder.front_end
    with torch.no_grad():
        tokens = embedder.encoder(((filled - config.mean) / (2 * config.std))[None])[0, 1:]
    e = embedder.embed(samples)
    torch.testing.assert_close(e.clip, tokens.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(e.frames, tokens.reshape(8, -1, embedder.dim).mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("overlap", "hop"), [(0.5, 32), (0, 64), (0.75, 16), (0.3, 44)])
def test_windows_are_merged_as_the_contract_says(embedder, medley, overlap, hop):
    """An independent windowing: 64 columns, overlapping, the last at the end, triangular weights."""
    features = log_mel(torch.from_numpy(medley))
    columns = -(-len(features) // 16)
    silent = -embedder.front_end.mean / (2 * embedder.front_end.std)
    features = torch.nn.functional.pad(features, (0, 0, 0, columns * 16 - len(features)), value=silent)
    starts = [s for s in range(0, columns, hop) if s + 64 <= columns]
    if starts[-1] + 64 < columns:
        starts.append(columns - 64)
    triangle = torch.tensor([min(i + 1, 64 - i) for i in range(64)], dtype=torch.float32)[:, None]
    total, weight = torch.zeros(columns, embedder.dim), torch.zeros(columns, 1)
    for start in starts:
        with torch.no_grad():
            tokens = embedder.encoder(features[None, start * 16 : (start + 64) * 16])[0, 1:]
        total[start : start + 64] += triangle * tokens.reshape(8, 64, -1).mean(0)
        weight[start : start + 64] += triangle
    e = embedder.embed(medley, overlap=overlap)
    torch.testing.assert_close(e.frames, total / weight, atol=1e-4, rtol=0)
    assert e.times_s[1] - e.times_s[0] == pytest.approx(0.16)
    assert e.times_s[0] == pytest.approx(0.0875)


def test_long_recordings_do_not_depend_on_how_they_are_read(embedder, medley, tmp_path):
    long = np.tile(medley, 3)  # 84 s: several blocks of features
    sf.write(tmp_path / "long.wav", long, 16_000, subtype="FLOAT")
    assert_same(embedder.embed(tmp_path / "long.wav"), embedder.embed(long))
    direct = log_mel(torch.from_numpy(long))
    torch.testing.assert_close(embedder.features(long), direct, atol=1e-3, rtol=0)


def test_full_context_sees_the_whole_recording(embedder, medley):
    window = medley[: round(embedder.window_s * 16_000)]
    assert_same(embedder.embed(window, context="full"), embedder.embed(window), atol=0)
    full = embedder.embed(medley, context="full")
    windows = embedder.embed(medley)
    assert full.frames.shape == windows.frames.shape
    assert not torch.allclose(full.frames, windows.frames, atol=1e-3)
    changed = medley.copy()
    changed[-1600:] = 0
    assert not torch.equal(embedder.embed(changed, context="full").frames[0], full.frames[0])
    torch.testing.assert_close(embedder.embed(changed).frames[0], windows.frames[0], atol=1e-5, rtol=0)


def test_layers_and_official_padding(embedder, medley):
    clip = medley[:16000]
    last = embedder.embed(clip)
    hidden = [embedder.embed(clip, layer=layer).clip for layer in range(3)]
    assert len({tuple(h.tolist()) for h in [last.clip, *hidden]}) == 4
    assert torch.equal(embedder.embed(clip, layer=-1).clip, hidden[2])
    official = embedder.embed(clip, padding="official")
    assert official.frames.shape == last.frames.shape
    features = torch.nn.functional.pad(fbank(torch.from_numpy(clip)), (0, 0, 0, 1024 - 98))
    config = embedder.front_end
    with torch.no_grad():
        tokens = embedder.encoder(((features - config.mean) / (2 * config.std))[None])[0, 1:]
    torch.testing.assert_close(official.clip, tokens.mean(0), atol=1e-5, rtol=0)


def test_ragged_batches_waste_little_on_padding(embedder):
    class Item:
        def __init__(self, columns):
            self.columns = columns

    torch.manual_seed(0)
    items = [(None, Item(int(c))) for c in torch.randint(1, 65, (300,))]
    groups = list(group_by_length(items, 1.1))
    assert sorted(id(i) for g in groups for i in g) == sorted(map(id, items))
    computed = sum(len(g) * g[0][1].columns for g in groups)
    assert computed <= 1.1 * sum(i.columns for _, i in items)
    assert len(groups) < 30


def test_a_stream_goes_on_past_broken_recordings(embedder, clips, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    items = {"a": clips[0], "b": tmp_path / "text.wav", "c": np.zeros(100, np.float32), "d": clips[1]}
    results = dict(embedder.embed_stream(items.items()))
    assert isinstance(results["b"], AudioDecodeError)
    assert isinstance(results["c"], ValueError)
    assert_same(results["a"], embedder.embed(clips[0]))
    assert_same(results["d"], embedder.embed(clips[1]))


def test_batches_of_any_budget_give_the_same(embedder, clips, medley):
    sources = [*clips[:5], medley]
    expected = embedder.embed(sources)
    for batch_tokens in (1, 700, 100_000):
        for one, other in zip(embedder.embed(sources, batch_tokens=batch_tokens), expected, strict=True):
            assert_same(one, other)


def test_digital_silence_of_many_windows_is_encoded_once(embedder, medley):
    samples = np.concatenate((medley[:100_000], np.zeros(16_000 * 120, np.float32), medley[:50_000]))
    encoded = []
    handle = embedder.encoder.register_forward_pre_hook(lambda module, inputs: encoded.append(len(inputs[0])))
    try:
        found = embedder.embed(samples, batch_tokens=1_000_000)
        once = sum(encoded)
        encoded.clear()
        alone = embedder.embed(samples, batch_tokens=1)
    finally:
        handle.remove()
    assert sum(encoded) >= 24  # 127 s in windows of 10.24 s, half overlapping
    assert once <= 8
    torch.testing.assert_close(found.clip, alone.clip, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.frames, alone.frames, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.parts, alone.parts, atol=1e-5, rtol=0)


def test_batches_and_channels_of_arrays(embedder, medley):
    batch = np.stack((medley[:32_000], medley[32_000:64_000], medley[64_000:96_000], medley[-32_000:])).reshape(
        2, 2, -1
    )
    alone = [[embedder.embed(channel) for channel in recording] for recording in batch]
    left, right = embedder.embed(batch[0], channels="separate")
    assert_same(left, alone[0][0])
    assert_same(right, alone[0][1])
    assert_same(embedder.embed(batch[0], channels=1), alone[0][1])
    assert_same(embedder.embed(batch[0].T, channels="mean"), embedder.embed(batch[0].mean(0)))
    for one, expected in zip(embedder.embed(batch[:, 0], batch=True), alone, strict=True):
        assert_same(one, expected[0])
    for one, expected in zip(embedder.embed(batch[:, :1], batch=True), alone, strict=True):  # (B, 1, S)
        assert_same(one, expected[0])
    for result in (
        embedder.embed(torch.from_numpy(batch), batch=True, channels="separate"),
        embedder.embed(list(batch), channels="separate"),
    ):
        for ones, expected in zip(result, alone, strict=True):
            for one, same in zip(ones, expected, strict=True):
                assert_same(one, same)


def test_precision(medley):
    model = ssamba.load_model(device="cpu")
    clip = medley[:48_000]
    exact, bf16, auto = (model.embed(clip, precision=precision) for precision in ("fp32", "bf16", "auto"))
    assert torch.equal(auto.clip, exact.clip)
    assert bf16.clip.dtype == torch.float32
    assert 1e-4 < (bf16.clip - exact.clip).norm() / exact.clip.norm() < 1e-2
    assert (
        model.digest(EmbedOptions(precision="auto")) == model.digest() != model.digest(EmbedOptions(precision="bf16"))
    )
    model.encoder.double()
    with pytest.raises(ValueError, match=r"precision='bf16' requires a float32 encoder, .* float64"):
        model.embed(clip, precision="bf16")


def test_the_callers_context_changes_nothing(embedder, medley):
    clips = [medley[:16_000], medley]
    expected = embedder.embed(clips)

    def check():
        for one, other in zip(embedder.embed(clips), expected, strict=True):
            assert one.clip.dtype == one.parts.dtype == one.frames.dtype == torch.float32
            assert_same(one, other, atol=0)

    with torch.autocast("cpu", torch.bfloat16):
        check()
    with torch.inference_mode():
        check()
    torch.set_default_dtype(torch.float64)
    try:
        check()
    finally:
        torch.set_default_dtype(torch.float32)


def test_progress_is_told_and_may_stop(embedder, clips, medley):
    sources, states = [*clips[:6], medley], []
    embedder.embed(sources, progress=states.append)
    assert [state.done for state in states] == list(range(1, 8))
    assert {(state.step, state.total, state.unit) for state in states} == {("embedding", 7, "recordings")}
    assert states[-1].audio_s == pytest.approx(sum(e.duration_s for e in embedder.embed(sources)))
    # What was read before it stopped is there, in order; nothing is computed in vain.
    for stop_after in (1, 3):
        some = embedder.embed(sources, progress=lambda state, last=stop_after: state.done < last, batch_tokens=1)
        assert len(some) == stop_after
        for one, source in zip(some, sources[:stop_after], strict=True):
            assert_same(one, embedder.embed(source))
    in_batch = embedder.embed(sources, progress=lambda state: False, batch_tokens=1_000_000)
    assert len(in_batch) == 7
    # A recording counts when all its channels are done; the length of an iterator is not known.
    stereo, states = np.stack((medley, medley))[:, :32_000], []
    pairs = embedder.embed(iter([stereo, stereo]), channels="separate", progress=states.append)
    assert [len(pair) for pair in pairs] == [2, 2]
    assert [(state.done, state.total, state.audio_s) for state in states] == [(1, None, 2.0), (2, None, 4.0)]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    from ssamba.checkpoint import save_checkpoint
    from ssamba.config import ClassifierConfig
    from ssamba.model import Classifier, encoder_config

    torch.manual_seed(0)
    config = ClassifierConfig(num_classes=3, labels=("crow", "drum", "guitar"))
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), config).eval()
    torch.nn.init.normal_(model.linear.weight)
    folder = tmp_path_factory.mktemp("classifier")
    save_checkpoint(folder, model)
    return ssamba.load_model(folder, device="cpu")


def test_predictions_are_probabilities_with_labels_and_times(classifier, clips, medley):
    predictions = classifier.predict(clips)
    for (one,), path in zip(predictions, clips, strict=True):
        assert one.labels == ("crow", "drum", "guitar")
        assert float(one.probabilities.sum()) == pytest.approx(1)
        assert (one.start_s, one.end_s) == (0, pytest.approx(sf.info(path).duration, abs=1e-3))
        best = one.best(0)
        assert [score for _, score in best] == sorted(one.probabilities.tolist(), reverse=True)
        assert one.best() == best[:1]
        assert repr(one).startswith(f"Prediction(0 to {one.end_s:.2f} s: {best[0][0]} {best[0][1]:.3f}, ")
    logits = dict(classifier.logits_stream(enumerate(clips)))
    torch.testing.assert_close(predictions[3][0].probabilities, logits[3].softmax(-1))
    seconds = classifier.predict(medley, per="second")
    assert [one.start_s for one in seconds] == list(range(29))
    assert [one.end_s for one in seconds] == [*range(1, 29), pytest.approx(len(medley) / 16_000)]
    assert len(classifier.predict(clips, progress=lambda state: False, batch_tokens=1)) == 1
    stream = dict(classifier.predict_stream([("a", medley), ("b", "no.wav")], options=PredictOptions(per="second")))
    assert len(stream["a"]) == 29
    assert isinstance(stream["b"], AudioDecodeError)


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double"])
@pytest.mark.parametrize("whole", [False, True], ids=["encoder", "classifier"])
def test_converted_classifiers_predict(classifier, clips, kind, whole):
    converted = copy.deepcopy(classifier)
    getattr(converted.classifier if whole else converted.encoder, kind)()
    for per in ("clip", "second"):
        (expected, *_), (found, *_) = (m.predict(clips[0], per=per) for m in (classifier, converted))
        assert found.probabilities.dtype == torch.float32
        torch.testing.assert_close(found.probabilities, expected.probabilities, atol=0.02, rtol=0)


def test_copies_and_pickles_give_the_same(embedder, classifier, medley):
    for model in (embedder, classifier):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert repr(twin) == repr(model)
            assert twin.digest() == model.digest()
            assert_same(twin.embed(medley), model.embed(medley), atol=0)
    twin = pickle.loads(pickle.dumps(classifier))
    assert twin.encoder is twin.classifier.encoder
    assert torch.equal(twin.predict(medley)[0].probabilities, classifier.predict(medley)[0].probabilities)
    e = embedder.embed(medley[:16_000])
    assert_same(pickle.loads(pickle.dumps(e)), e, atol=0)


def test_threads_share_a_model(classifier, clips, medley):
    """Four threads, each with its own mixture of sources and options, get what one thread gets."""
    jobs = [
        lambda: classifier.embed([*clips, medley]),
        lambda: [classifier.embed(medley, overlap=0.75), classifier.embed(medley[:30_000], precision="bf16")],
        lambda: classifier.embed([medley[i : i + 40_000] for i in range(0, 400_000, 20_000)]),
        lambda: [classifier.embed(clips[0], context="full"), *classifier.embed(clips[::-1], layer=0)],
    ]
    expected = [job() for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = [[pool.submit(job) for job in jobs] for _ in range(3)]
        for turn in found:
            for results, ones in zip(turn, expected, strict=True):
                for result, one in zip(results.result(), ones, strict=True):
                    assert_same(result, one, atol=0)


def test_short_representations(embedder, classifier, medley):
    assert repr(embedder) == "Embedder('small', 0.08 M parameters, dim 32, cpu)"
    assert repr(classifier).endswith("0.052 M parameters, dim 32, 3 classes, cpu)")
    assert repr(embedder.embed(medley[:16_000])) == "Embedding(1.00 s, clip (32,), frames (7, 32))"


def test_moving_to_a_device_returns_the_model(embedder):
    assert embedder.to("cpu") is embedder
    assert embedder.to(torch.device("cpu")).device == torch.device("cpu")


CLIP = np.zeros(16_000, np.float32)
WRONG_SOURCES = [
    (CLIP[:399], "24.9 ms long, shorter than one frame of 25 ms: leave it out, or pad it"),
    (CLIP[:0], "0.0 ms long, shorter than one frame"),
    (np.array([0.0, np.nan] * 400), "holds NaN or infinity, first at sample 1"),
    (np.full(800, 1e300), "holds NaN or infinity, first at sample 0"),
    (np.zeros((16_000, 2)), r"shape \(16000, 2\) looks like \(samples, channels\), as soundfile .* channels='mean'"),
    (np.zeros((2, 16_000)), r"shape \(2, 16000\) looks like \(channels, samples\), as torchaudio .* batch=True"),
    (np.zeros((500, 400)), "neither axis .* holds 1 to 256 channels"),
    (np.zeros((2, 3, 4)), r"must have the shape \(samples,\).* got \(2, 3, 4\)"),
    (np.array(1.0), r"must have the shape \(samples,\).* got \(\)"),
    (np.zeros(800, complex), "must be float, int16, int32, int8 or uint8, got complex128"),
    (np.zeros(800, bool), "got bool"),
    (
        np.zeros(800, np.int64),
        r"got int64: convert it to the type of the recording, such as waveform.astype\(np.int16\)",
    ),
    (np.array(["a.wav", "b.wav"]), "got <U5: give a list of recordings"),
    ((CLIP, 16_000), r"a tuple of a waveform and a number: give them as two arguments, embed\(waveform, sample_rate\)"),
    ({"array": CLIP, "sampling_rate": 16_000}, r"got dict. .* give .* item\['array'\], item\['sampling_rate'\]"),
    ([1.0, 2.0], r"got float as number 0 .* np.asarray\(samples, dtype=np.float32\)"),
    (["a.wav", None], "got NoneType as number 1"),
    (None, "expected a recording .a path, bytes, .* got NoneType"),
    (16_000, "got int"),
    ("no/such.wav", "no/such.wav: no such file"),
    ([CLIP, CLIP[:100]], r"recording 1 \(from 0\): the recording is 6.2 ms long"),
    ([CLIP, "no/such.wav"], r"recording 1 \(from 0\): no/such.wav: no such file"),
    ("https://example.org/dog.wav", "https://example.org/dog.wav: is a URL, and nothing is read over the network"),
    (b"", "bytes in memory: is empty"),
    (b"text, not audio", "bytes in memory: is text"),
]


@pytest.mark.parametrize(("source", "message"), WRONG_SOURCES)
@pytest.mark.parametrize("method", ["embed", "predict"])
def test_wrong_sources_say_what_was_expected(classifier, method, source, message):
    with pytest.raises(ValueError, match=message) as caught:
        getattr(classifier, method)(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_rate": 0}, "sample rate must be a positive whole number of hertz; got 0"),
        ({"sample_rate": -1}, "got -1"),
        ({"sample_rate": float("nan")}, "got nan"),
        ({"sample_rate": float("inf")}, "got inf"),
        ({"sample_rate": "16000"}, "got '16000'"),
        ({"sample_rate": [16_000]}, r"got \[16000\]"),
        ({"source": "dog.wav", "sample_rate": 8000}, "sample_rate=8000 is for waveforms, but a file has its own"),
        ({"source": ["dog.wav"], "sample_rate": 8000}, "sample_rate=8000 is for waveforms"),
        ({"channels": "left"}, "channels must be \"mean\" or the number of a channel .* got 'left'"),
        ({"channels": -1}, "channels must be .* got -1"),
        ({"channels": True}, "channels must be .* got True"),
        ({"channels": 1}, "channels=1 does not exist: the waveform has 1 channel"),
        ({"batch": True}, r"batch=True is for an array .* got the shape \(16000,\)"),
        ({"source": [CLIP], "batch": True}, "got list: a list is a batch anyway"),
        ({"batch_tokens": 0}, "batch_tokens must be a whole number of patch tokens, at least 1; got 0"),
        ({"precision": "fp16"}, "precision: Input should be 'fp32', 'bf16' or 'auto' .got 'fp16'."),
        ({"progress": True}, "progress must be a function that takes a Progress, got True"),
    ],
)
@pytest.mark.parametrize("method", ["embed", "predict"])
def test_wrong_arguments_say_what_was_expected(classifier, method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(classifier, method)(**{"source": CLIP, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context": "all"}, "context: Input should be 'windows' or 'full' .got 'all'."),
        ({"padding": "same"}, "padding: Input should be 'patch' or 'official'"),
        ({"layer": 3}, "layer must lie between 0 .* and 1 .*got 3"),
        ({"layer": 1.5}, "layer: Input should be a valid integer"),
        ({"overlap": 1}, "overlap: Input should be less than 1"),
        ({"overlap": -0.1}, "overlap: Input should be greater than or equal to 0"),
        ({"overlap": 0, "context": "full"}, "^embed: overlap is for windows, .*: omit one of the two$"),
    ],
)
def test_wrong_options_of_embed(classifier, arguments, message):
    with pytest.raises(ValueError, match=message):
        classifier.embed(CLIP, **arguments)


def test_wrong_uses_of_predict(embedder, classifier):
    with pytest.raises(
        ValueError, match="small has no classifier: expected a fine-tuned checkpoint, got kind 'encoder'"
    ):
        embedder.predict(CLIP)
    with pytest.raises(ValueError, match=r"number of a channel \(from 0\); got 'separate'"):
        classifier.predict(CLIP, channels="separate")
    with pytest.raises(TypeError, match="unexpected keyword argument 'context'"):
        classifier.predict(CLIP, context="full")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "ssamba2-tny"}, "ssamba2-tiny"),
        ({"source": "no/such/folder"}, "no/such/folder"),
        ({"source": 3}, "expected the name of a model or the path of a checkpoint, got int"),
        ({"source": "."}, "config.json"),
        ({"source": "https://example.org/model.pth"}, "is a URL, which is not fetched"),
        ({"device": "gpu"}, "device must be 'cpu', 'cuda', 'cuda:1' or the like, got 'gpu'"),
        ({"device": "cuda:77"}, "device='cuda:77' cannot be used here .*Choose from: cpu"),
        ({"device": torch.float16}, "a device is expected, got torch.float16: to convert the encoder"),
        ({"patch_stride": 17}, "leaves gaps between patches"),
        ({"patch_stride": 0}, r"patch_stride must be at least \(1, 1\), got \(0, 0\)$"),
        ({"front_end": ssamba.FrontEndConfig(num_mel_bins=64)}, "makes 64 mel bins, but the encoder takes 128"),
    ],
)
def test_wrong_uses_of_load_model(arguments, message):
    with pytest.raises(ValueError, match=message):
        ssamba.load_model(**{"device": "cpu", **arguments})


def test_the_weights_that_ship_know_a_recording_from_another(clips):
    model = ssamba.load_model(device="cpu")
    assert model.report is not None
    recordings = [torch.from_numpy(decode(path)) for path in clips[:8]]
    halves = [half for x in recordings for half in (x[: len(x) // 2], x[len(x) // 2 :])]
    vectors = torch.nn.functional.normalize(torch.stack([e.clip for e in model.embed(halves)]), dim=1)
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
    nearest = (vectors @ vectors.T - 2 * torch.eye(16)).argmax(1)
    right = sum(int(nearest[i]) == i ^ 1 for i in range(16))
    assert right >= 10, f"{right} of 16 halves are nearest to their other half (chance: 1)"


def test_load_model_reads_checkpoints(ssamba_pth, medley):
    model = ssamba.load_model(ssamba_pth, device="cpu")
    assert model.report is not None
    assert model.classifier is None
    assert model.embed(medley[:16000]).clip.shape == (32,)
    with pytest.raises(ValueError, match="no classifier"):
        model.predict(medley)


def test_without_frames_an_embedding_is_the_same_vector(embedder, medley):
    medley = medley[: 16 * 16_000]
    whole, vector = embedder.embed(medley), embedder.embed(medley, frames=False)
    assert torch.equal(vector.clip, whole.clip)
    assert torch.equal(vector.parts, whole.parts)
    torch.testing.assert_close(whole.clip, whole.frames.double().mean(0).float())
    assert repr(vector) == "Embedding(16.00 s, clip (32,))"
    for name in ("frames", "times_s"):
        with pytest.raises(AttributeError, match=f"made with frames=False, so it has no {name}"):
            getattr(vector, name)


def test_frames_can_be_means_over_stretches_of_time(embedder, medley):
    medley = medley[: 17 * 16_000]
    whole = embedder.embed(medley)
    ((_, pooled),) = embedder.embed_stream([("medley", medley)], every_s=1.6)
    torch.testing.assert_close(pooled.frames[:10], whole.frames[:100].reshape(10, 10, -1).mean(1))
    assert torch.equal(pooled.clip, whole.clip)
    assert len(pooled.frames) == 11
    assert pooled.times_s[[0, 1, 10]].tolist() == pytest.approx([0.8, 2.4, 16.5])
    for bad in (0.1, 1.005, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"every {bad:g} s: expected at least a time step of this model, 0.16 s"):
            embedder.embed_stream([], every_s=bad)


def test_a_classifier_gives_logits_for_any_length(tmp_path, medley):
    from ssamba.checkpoint import save_checkpoint
    from ssamba.config import ClassifierConfig
    from ssamba.model import Classifier, encoder_config

    torch.manual_seed(0)
    model = Classifier(encoder_config("tiny", embed_dim=32, depth=2), ClassifierConfig(num_classes=3)).eval()
    save_checkpoint(tmp_path / "c", model)
    loaded = ssamba.load_model(tmp_path / "c", device="cpu")
    short = medley[: 16000 * 2 - 320]
    with torch.no_grad():
        features = loaded.features(short)
        features = torch.nn.functional.pad(
            features, (0, 0, 0, -len(features) % 16), value=loaded.front_end.silent_feature
        )
        expected = model(features[None])[0]
    results = dict(loaded.logits_stream({"short": short, "long": medley}.items()))
    torch.testing.assert_close(results["short"], expected)
    assert results["long"].shape == (3,)
    (prediction,) = loaded.predict(short)
    torch.testing.assert_close(prediction.probabilities, expected.softmax(0))
    assert (prediction.start_s, prediction.end_s, prediction.labels) == (0, 1.98, ("0", "1", "2"))


def test_the_digest_changes_with_everything_that_changes_embeddings(embedder, make_encoder):
    base = embedder.digest()
    assert base == Embedder(make_encoder(), device="cpu").digest()
    assert base != embedder.digest(EmbedOptions(layer=1))
    assert base != Embedder(make_encoder(final_norms=1), device="cpu").digest()
    other = make_encoder()
    with torch.no_grad():
        other.cls_token += 1
    assert base != Embedder(other, device="cpu").digest()


def test_models_at_other_rates(make_encoder, clips):
    front_end = ssamba.FrontEndConfig(sample_rate_hz=48_000, num_mel_bins=64, low_hz=500, frame_ms=20, shift_ms=5)
    model = Embedder(make_encoder(num_mel_bins=64), front_end, device="cpu")
    e = model.embed(clips[0])
    assert e.times_s[1] - e.times_s[0] == pytest.approx(0.08)
    with pytest.raises(ValueError, match="64 mel bins"):
        Embedder(make_encoder(), front_end)


def test_import_is_light():
    import subprocess
    import sys

    code = (
        "import sys, ssamba, ssamba.audio.decode; "
        "print([m for m in ('torch', 'matplotlib', 'pyarrow', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = (
        "import sys, ssamba; ssamba.load_model; "
        "print([m for m in ('matplotlib', 'pyarrow', 'av', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_of_the_package_raise_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'embed_everything'"):
        ssamba.embed_everything  # noqa: B018
    assert set(ssamba.__all__) <= set(dir(ssamba))
    with warnings.catch_warnings():
        for name in ssamba.__all__:
            getattr(ssamba, name)
