"""The scorecard with other models. No peer is run, since their wheels are not available here."""

from __future__ import annotations

import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from benchmarks.peers import __main__ as command
from benchmarks.peers import speed
from benchmarks.peers.musicnn import Musicnn, parts, read_checkpoint
from benchmarks.peers.networks import birdnet_chunks
from benchmarks.peers.peer import Loaded, Peer, PeerError, centered, pad_end, unpacked, windows
from benchmarks.peers.scorecard import CLIP, PARTS, Content, Line, markdown, merged, read, save

from ssamba.evaluation import evaluate_model, read_suite

TASKS = {
    "sfx14": {"digest": "a", "clips": 10, "classes": 2},
    "kws35": {"digest": "b", "clips": 20, "classes": 4},
}


def line(name, kind="peer", view="final.mean", scores=(0.5, 0.7), **more):
    by_task = dict(zip(TASKS, scores, strict=False))
    intervals = {task: [score - 0.1, score + 0.1] for task, score in by_task.items()} | {"mean": [0.5, 0.7]}
    return Line(name, kind, view, by_task, intervals, "whole", **more)


def make_wheel(path, content="ok"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_net/__init__.py", content)
    return path


def make_peer(load, needs=("numpy",)):
    return Peer("some-net", "1.2", 16_000, "MIT", "whole", needs, load)


def test_a_wheel_is_unpacked_once_and_by_its_name(tmp_path):
    with pytest.raises(PeerError, match=r"pip download --no-deps some-net==1\.2"):
        unpacked(tmp_path, "some-net", "1.2")
    make_wheel(tmp_path / "some_net-1.20-py3-none-any.whl", "other")
    make_wheel(tmp_path / "Some_Net-1.2-py3-none-any.whl")
    folder = unpacked(tmp_path, "some-net", "1.2")
    assert (folder / "some_net" / "__init__.py").read_text() == "ok"
    (folder / "mark").touch()
    assert (unpacked(tmp_path, "some-net", "1.2") / "mark").exists()


def test_a_damaged_wheel_is_named_and_leaves_nothing(tmp_path):
    (tmp_path / "some_net-1.2-py3-none-any.whl").write_text("no archive")
    with pytest.raises(PeerError, match=r"some_net-1\.2-py3-none-any\.whl is damaged"):
        unpacked(tmp_path, "some-net", "1.2")
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def test_a_peer_gives_one_vector_a_clip_or_its_reason(tmp_path, suite):
    make_wheel(tmp_path / "some_net-1.2-py3-none-any.whl")
    model, parameters = make_peer(lambda folder: Loaded(lambda wave: wave[:40], 7)).model(tmp_path)
    assert parameters == 7
    assert len(evaluate_model(model, read_suite(suite, ["kinds"])).rows) == 1
    with pytest.raises(PeerError, match="does not load: OSError: no file"):
        make_peer(_fail).model(tmp_path)
    with pytest.raises(PeerError, match="needs no-such-runtime: pip install no-such-runtime"):
        make_peer(_fail, ("no-such-runtime",)).model(tmp_path)


def _fail(folder):
    raise OSError("no file")


def test_clips_are_cut_and_padded_as_peers_require():
    wave = np.arange(1, 11)
    assert list(pad_end(wave[:3], 5)) == [1, 2, 3, 0, 0]
    assert list(centered(wave[:3], 6)) == [0, 1, 2, 3, 0, 0]
    assert len(centered(wave, 6)) == 10
    assert [list(part) for part in windows(wave[:5], 4, 2)] == [[1, 2, 3, 4], [2, 3, 4, 5]]
    assert [int(part[0]) for part in windows(wave, 4, 2)] == [1, 3, 5, 7]
    assert len(windows(wave[:4], 4, 2)) == 1
    chunk = 3 * 48_000
    lengths = {100: 1, chunk: 1, chunk + chunk // 2 - 1: 1, chunk + chunk // 2: 2, 3 * chunk: 3}
    assert {length: len(birdnet_chunks(np.ones(length))) for length in lengths} == lengths
    assert all(len(part) == chunk for part in birdnet_chunks(np.ones(chunk + chunk // 2)))
    assert [len(part) for part in parts(np.zeros((400, 96)))] == [187, 187]
    assert [len(part) for part in parts(np.zeros((100, 96)))] == [100]


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries):
    """A block of a LevelDB table, whose keys share what they can with the one before; and its trailer."""
    content, before = b"", b""
    for key, value in entries:
        shared = next(
            (i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), min(len(key), len(before))
        )
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return content + (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes(5)


def write_checkpoint(folder, variables, shard=0):
    data, entries = b"", [(b"", field(1, 1))]
    for name, array in sorted(variables.items()):
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        kind = 1 if array.dtype == np.float32 else 9
        place = (field(4, len(data)) if data else b"") + field(5, array.nbytes)
        crc = varint(6 << 3 | 5) + bytes(4)
        entries.append(
            (name.encode(), field(1, kind) + field(2, shape) + (field(3, shard) if shard else b"") + place + crc)
        )
        data += array.tobytes()
    first = block(entries)
    index = block([(b"z", varint(0) + varint(len(first) - 5))])
    handle = varint(len(first)) + varint(len(index) - 5)
    footer = (varint(0) + varint(0) + handle).ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")
    (folder / "c.index").write_bytes(first + index + footer)
    (folder / "c.data").write_bytes(data)
    return folder / "c.index", folder / "c.data"


def test_tensorflow_checkpoints_are_read_without_tensorflow(tmp_path):
    generator = np.random.default_rng(0)
    variables = {
        "conv2d/kernel": generator.normal(size=(7, 38, 1, 204)).astype(np.float32),
        "conv2d/bias": generator.normal(size=204).astype(np.float32),
        "conv2d_1/bias": generator.normal(size=3).astype(np.float32),
        "power": np.float32(0.5).reshape(()),
    }
    found = read_checkpoint(*write_checkpoint(tmp_path, variables | {"step": np.array([3])}))
    assert found.keys() == variables.keys()
    for name, expected in variables.items():
        np.testing.assert_array_equal(found[name], expected)
    with pytest.raises(ValueError, match="several shards"):
        read_checkpoint(*write_checkpoint(tmp_path, variables, shard=1))
    (tmp_path / "c.index").write_bytes(b"something else" * 9)
    with pytest.raises(ValueError, match="not the index of a TensorFlow checkpoint"):
        read_checkpoint(tmp_path / "c.index", tmp_path / "c.data")


def small_musicnn():
    """Variables of a network on 6 bands with 2 + 2 + 1 + 1 + 1 filters in front and 3 in the middle."""
    generator = np.random.default_rng(1)
    shapes = [
        (7, 4, 1, 2),
        (7, 5, 1, 2),
        (4, 1, 1, 1),
        (3, 1, 1, 1),
        (2, 1, 1, 1),
        (7, 7, 1, 3),
        (7, 3, 1, 3),
        (7, 3, 1, 3),
    ]
    variables = {}

    def norm(number, size):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        for part in ("gamma", "beta", "moving_mean"):
            variables[f"{name}/{part}"] = generator.normal(size=size).astype(np.float32)
        variables[f"{name}/moving_variance"] = generator.uniform(0.5, 2, size=size).astype(np.float32)

    norm(0, 1)
    for number, shape in enumerate(shapes):
        name = f"conv2d_{number}" if number else "conv2d"
        variables[f"{name}/kernel"] = generator.normal(size=shape).astype(np.float32)
        variables[f"{name}/bias"] = generator.normal(size=shape[3]).astype(np.float32)
        norm(number + 1, shape[3])
    return variables


def musicnn_by_hand(variables, bands):
    """The package's graph in plain loops, (T, M) to (2 C,)."""

    def norm(x, number):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        scale = variables[f"{name}/gamma"] / np.sqrt(variables[f"{name}/moving_variance"] + 1e-3)
        return (x - variables[f"{name}/moving_mean"]) * scale + variables[f"{name}/beta"]

    def layer(x, number):
        name = f"conv2d_{number}" if number else "conv2d"
        kernel = variables[f"{name}/kernel"][:, :, 0]
        frames, width = kernel.shape[:2]
        padded = np.pad(x, (((frames - 1) // 2, frames // 2), (0, 0)))
        out = np.empty((len(x), x.shape[1] - width + 1, kernel.shape[2]))
        for t in range(out.shape[0]):
            for m in range(out.shape[1]):
                out[t, m] = np.einsum("fw,fwc->c", padded[t : t + frames, m : m + width], kernel)
        return norm(np.maximum(out + variables[f"{name}/bias"], 0), number + 1)

    image = norm(bands[..., None], 0)[..., 0]
    front = np.concatenate([layer(image, number).max(1) for number in range(5)], 1)
    first = layer(front, 5)[:, 0]
    second = layer(first, 6)[:, 0] + first
    third = layer(second, 7)[:, 0] + second
    everything = np.concatenate((front, first, second, third), 1)
    return np.concatenate((everything.max(0), everything.mean(0)))


def test_musicnn_in_torch_equals_the_graph_of_its_package():
    variables = small_musicnn()
    bands = np.random.default_rng(2).normal(size=(11, 6)).astype(np.float32)
    with torch.no_grad():
        found = Musicnn(variables).eval()(torch.from_numpy(bands)[None])[0].numpy()
    np.testing.assert_allclose(found, musicnn_by_hand(variables, bands.astype(float)), rtol=1e-4, atol=1e-4)


def test_lines_stay_until_they_are_measured_again():
    tuned = line("tuned", "fine-tuned", "final.mean", (0.6,))
    old = Content(TASKS, [line("ours", "ours"), tuned, line("a"), line("b")], {"c": "no wheel", "d": "no wheel"})
    new = Content(TASKS, [line("b", scores=(0.1, 0.2)), line("c"), line("ours", "ours", "best")], {"e": "no runtime"})
    both = merged(old, new)
    assert [(one.name, one.view) for one in both.lines] == [
        ("ours", "final.mean"),
        ("ours", "best"),
        ("tuned", "final.mean"),
        ("a", "final.mean"),
        ("b", "final.mean"),
        ("c", "final.mean"),
    ]
    assert both.lines[4].scores["sfx14"] == 0.1
    assert both.missing == {"d": "no wheel", "e": "no runtime"}
    other = {"sfx14": {**TASKS["sfx14"], "digest": "other"}}
    with pytest.raises(ValueError, match="sfx14 is not the task"):
        merged(old, Content(other))


def test_the_card_shows_its_lines_and_survives_its_file(tmp_path):
    ours = line("ssamba2-tiny-1", "ours", "final.mean", parameters=7_300_000)
    quoted = line("resemblyzer 0.1.4", scores=(0.25, 0.1))
    tuned = line("tuned", "fine-tuned", "final.mean", (0.6,))
    speeds = {"ssamba2-tiny-1": {"times_real_time": {"10 s": 123.4}, "date": "d", "processor": "p", "threads": 1}}
    content = Content(TASKS, [ours, tuned, quoted], {"other": "no wheel"}, speeds)
    save(content, tmp_path)
    assert markdown(read(tmp_path / "scorecard.json")) == markdown(content)  # its figures are rounded
    assert (tmp_path / "scorecard.png").stat().st_size > 1000
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in markdown(content).splitlines() if "|" in row]
    assert ["ssamba2-tiny-1", "7.3", ".500", ".700", ".600", ".500-.700"] in rows
    assert ["tuned", "-", ".600", "-", "-", "-"] in rows
    assert ["chance", "-", ".500", ".250", "-", "-"] in rows
    assert ["ssamba2-tiny-1", "123", "d, p, 1 thread(s)"] in rows
    assert ["resemblyzer 0.1.4", ".267", ".082"] in [row[:3] for row in rows]
    assert ["resemblyzer 0.1.4", "-0.017", "+0.018", "+0.000"] in rows
    assert ["other", "no wheel"] in rows
    assert read(tmp_path / "nowhere.json") == Content({})
    save(Content({}, speeds=speeds), tmp_path / "alone")
    assert (tmp_path / "alone" / "scorecard.md").read_text(encoding="utf-8").startswith("Seconds of audio embedded")


def test_a_peer_that_cannot_be_scored_is_reported_and_the_others_go_on(suite, tmp_path, monkeypatch):
    out = tmp_path / "results"
    arguments = ["--suite", suite, "--wheels", tmp_path, "--out", out, "--cache", tmp_path / "cache", "--workers", "1"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["peers", *map(str, arguments), *more])
        command.main()
        return json.loads((out / "scorecard.json").read_text(encoding="utf-8"))

    found = run("--only", "log-mel", "musicnn", "--task", "kinds")
    assert [(one["name"], one["view"]) for one in found["lines"]] == [
        ("log-mel statistics", CLIP),
        ("log-mel statistics", PARTS),
    ]
    ranked = found["lines"][1]["retrieval"]["half_whitened"]
    assert set(ranked["intervals"]["mAP"]) == {"kinds", "mean"}
    assert "Retrieval by similarity" in (out / "scorecard.md").read_text(encoding="utf-8")
    assert set(found["lines"][0]["intervals"]) == {"kinds", "mean"}
    assert found["missing"]["musicnn 0.1.0"].startswith("musicnn 0.1.0 ")
    monkeypatch.setattr(speed, "_AUDIO_S", 2)
    monkeypatch.setattr(speed, "_CLIPS_S", (1, 2))
    monkeypatch.setattr(speed, "_ROUNDS", 1)
    arguments[:2] = []
    found = run("--speed", "--only", "log-mel", "musicnn")
    assert len(found["lines"]) == 2
    times = found["speeds"]["log-mel statistics"]["times_real_time"]
    assert list(times) == ["1 s", "1 s, parts", "2 s", "2 s, parts"]
    assert all(value > 1 for value in times.values())
    with pytest.raises(SystemExit):
        run("--only", "nobody")
