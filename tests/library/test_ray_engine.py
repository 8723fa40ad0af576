"""The Ray engine without Ray: a stand-in runs its workers in this process, lets them die and repeat chunks.

`python -m benchmarks.ray_engine faults` does the same with Ray itself.
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile

from ssamba.errors import ConfigError, MissingExtraError, SkippedFilesError, WorkerDiedError, WorkerStartError
from ssamba.library.embed import EmbedStream, embed_files
from ssamba.library.ray_engine import Plan
from ssamba.library.tables import read_embeddings


class RayError(Exception):
    """As Ray's."""


class StandIn(ModuleType):
    """Does what the engine asks of Ray, in this process; a `Death` ends a worker in the middle of a chunk."""

    def __init__(self, monkeypatch, resources):
        super().__init__("ray")
        self.resources, self.initialized, self.shut_down, self.twice = resources, None, 0, False
        self.server = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.get_runtime_context = lambda: SimpleNamespace(gcs_address=address)
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.data = ModuleType("ray.data")
        context = SimpleNamespace(enable_progress_bars=True)
        self.data.DataContext = SimpleNamespace(get_current=lambda: context)
        self.data.ActorPoolStrategy = lambda **sizes: sizes
        self.data.from_items = lambda rows, override_num_blocks: _Data(self, rows)
        monkeypatch.setitem(sys.modules, "ray", self)
        monkeypatch.setitem(sys.modules, "ray.data", self.data)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def is_initialized(self):
        return False

    def init(self, **options):
        self.initialized = options

    def shutdown(self):
        self.shut_down += 1

    def cluster_resources(self):
        return self.resources

    def remote(self, **_):
        class Remote:
            def __init__(self, kind):
                self.kind = kind

            def remote(self):
                actor = self.kind()
                begin, ended = SimpleNamespace(remote=actor.begin), SimpleNamespace(remote=actor.ended)
                return SimpleNamespace(begin=begin, ended=ended)

        return Remote

    def get(self, value):
        return value


class Death(BaseException):
    """The end of a worker."""


class _Data:
    def __init__(self, ray, rows):
        self.ray, self.rows = ray, rows

    def map_batches(self, kind, *, fn_constructor_args, **options):
        self.kind, self.arguments, self.ray.options = kind, fn_constructor_args, options
        return self

    def iter_batches(self, **_):
        worker = self.kind(*self.arguments)
        for row in self.rows:
            batch = {name: np.array([value], object) for name, value in row.items()}
            for _ in range(10):
                try:
                    done = list(worker(batch))
                except Death:
                    worker = self.kind(*self.arguments)
                    continue
                yield from done * (2 if self.ray.twice else 1)
                break


@pytest.fixture
def ray(monkeypatch):
    stand_in = StandIn(monkeypatch, {"CPU": 2.0})
    with stand_in.server:
        yield stand_in


@pytest.fixture
def recordings(tmp_path, clips, medley):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index, path in enumerate(clips[:6]):
        soundfile.write(folder / f"{index}.wav", soundfile.read(path)[0][:16_000], 16_000)
    (folder / "text.wav").write_text("hello")
    soundfile.write(folder / "loud.wav", 20_000 * medley[:16_000], 16_000, subtype="FLOAT")
    whole = clips[0].read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) * 2 // 3])
    return folder


def outcome_of(output):
    table = read_embeddings(output)
    lists = [Path(f"{output}.{kind}.csv") for kind in ("skipped", "remarks")]
    texts = [path.read_text() if path.exists() else "" for path in lists]
    return {str(path): table["embedding"][table["file"] == i] for i, path in enumerate(table["path"])}, texts


def assert_same(output, expected):
    (rows, texts), (expected_rows, expected_texts) = outcome_of(output), outcome_of(expected)
    assert rows.keys() == expected_rows.keys()
    assert texts == expected_texts
    for name, row in expected_rows.items():
        np.testing.assert_allclose(rows[name], row, atol=1e-5)


class Deadly(EmbedStream):
    """Ends its worker at some recordings, as often as the file `deaths` says."""

    deaths: dict[str, int] = {}  # noqa: RUF012 - pickled copies share it, as processes share a disk

    def __call__(self, items):
        def watched():
            for path, source in items:
                if Deadly.deaths.get(path.name, 0):
                    Deadly.deaths[path.name] -= 1
                    raise Death
                yield path, source

        return super().__call__(watched())


@pytest.mark.parametrize("more", [{}, {"every_s": 0.5}, {"damaged": "keep"}], ids=str)
def test_the_table_and_the_lists_are_those_of_the_local_engine(ray, recordings, tmp_path, embedder, more, caplog):
    embed_files(recordings, tmp_path / "local.npz", embedder, workers=0, **more)
    local_warnings = sorted(record.getMessage() for record in caplog.records)
    caplog.clear()
    ray.twice = True  # results of a chunk that come twice count once
    report = embed_files(recordings, tmp_path / "ray.npz", embedder, engine="ray", **more)
    assert_same(tmp_path / "ray.npz", tmp_path / "local.npz")
    assert sorted(record.getMessage() for record in caplog.records) == local_warnings
    assert ray.initialized["address"] == "local"
    assert ray.shut_down == 1
    assert ray.options["num_cpus"] == 1
    assert report.done + len(report.skipped) == 9
    # Nothing to do: no cluster is asked.
    ray.initialized = None
    shrunk = embed_files(sorted(recordings.glob("?.wav")), tmp_path / "ray.npz", embedder, engine="ray", **more)
    assert (shrunk.done, ray.initialized) == (0, None)


@pytest.mark.parametrize("deaths", [1, 3])
def test_a_worker_that_dies_now_and_then_costs_nothing(
    ray, recordings, tmp_path, embedder, monkeypatch, caplog, deaths
):
    monkeypatch.setattr("ssamba.library.embed.EmbedStream", Deadly)
    monkeypatch.setattr(Deadly, "deaths", {"3.wav": deaths})
    embed_files(recordings, tmp_path / "ray.npz", embedder, engine="ray", workers=1)
    monkeypatch.undo()
    embed_files(recordings, tmp_path / "local.npz", embedder, workers=0)
    assert_same(tmp_path / "ray.npz", tmp_path / "local.npz")
    assert f"at attempt {deaths + 1}" in caplog.text


def test_a_recording_on_which_every_worker_dies_is_skipped(ray, recordings, tmp_path, embedder, monkeypatch):
    monkeypatch.setattr("ssamba.library.embed.EmbedStream", Deadly)
    monkeypatch.setattr(Deadly, "deaths", {"3.wav": 1000})
    with pytest.raises(SkippedFilesError) as caught:
        embed_files(recordings, tmp_path / "ray.npz", embedder, engine="ray", strict=True)
    reasons = {Path(one.path).name: one.reason for one in caught.value.report.skipped}
    assert "3.wav: two worker processes died while they worked on it" in reasons["3.wav"]
    assert reasons.keys() == {"3.wav", "text.wav", "cut.flac"}
    assert len(outcome_of(tmp_path / "ray.npz")[0]) == 6


def test_progress_stops_the_job_and_keeps_what_is_done(ray, recordings, tmp_path, embedder):
    report = embed_files(
        recordings, tmp_path / "ray.npz", embedder, engine="ray", progress=lambda state: state.done < 3
    )
    assert not report.finished
    assert ray.shut_down == 1
    assert embed_files(recordings, tmp_path / "ray.npz", embedder).done == 7 - report.done


def test_errors_of_workers_and_of_the_cluster_are_one_message(ray, recordings, tmp_path, embedder, monkeypatch):
    def fails(*_):
        raise RuntimeError("CUDA out of memory")

    output = tmp_path / "ray.npz"
    with monkeypatch.context() as patch:
        patch.setattr(EmbedStream, "__call__", fails)
        with pytest.raises(RuntimeError, match="CUDA out of memory"):
            embed_files(recordings, output, embedder, engine="ray")
    for text, kind in (("node lost\nat last", WorkerDiedError), ("creation task\nNo module", WorkerStartError)):
        with monkeypatch.context() as patch:
            patch.setattr(_Data, "iter_batches", lambda *_, text=text, **__: (_ for _ in ()).throw(RayError(text)))
            with pytest.raises(kind, match=text.splitlines()[1]):
                embed_files(recordings, output, embedder, engine="ray")
    with monkeypatch.context() as patch:
        patch.setattr("ssamba.library.ray_engine.__version__", "0.0")
        patch.setattr("ssamba.library.ray_engine._Worker", lambda version, *_: pytest.fail(version))
        with pytest.raises(pytest.fail.Exception, match=r"0\.0"):
            embed_files(recordings, output, embedder, engine="ray")


def test_a_cluster_that_does_not_answer_any_more_is_one_message(ray, recordings, tmp_path, embedder, monkeypatch):
    whole = _Data.iter_batches

    def stops(self, **options):
        yield next(whole(self, **options))
        ray.server.close()
        threading.Event().wait(30)

    monkeypatch.setattr("ssamba.library.ray_engine._CONNECT_S", 0.05)
    monkeypatch.setattr("ssamba.library.ray_engine._LOST_S", 0.1)
    with monkeypatch.context() as patch:
        patch.setattr(_Data, "iter_batches", stops)
        with pytest.raises(WorkerDiedError, match=r"127\.0\.0\.1:\d+ does not answer any more.*repeat the command"):
            embed_files(recordings, tmp_path / "ray.npz", embedder, engine="ray", workers=1)
    assert ray.shut_down == 0
    assert embed_files(recordings, tmp_path / "ray.npz", embedder, workers=0).unchanged > 0


def test_without_ray_the_message_says_what_to_install(recordings, tmp_path, embedder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'pip install "ssamba\[ray\]"'):
        embed_files(recordings, tmp_path / "x.npz", embedder, engine="ray")
    assert not (tmp_path / "x.npz.partial").exists()


def test_addresses_and_other_arguments_that_cannot_be(ray, recordings, tmp_path, embedder, monkeypatch):
    def refuses(text, **arguments):
        with pytest.raises(ConfigError, match=text):
            embed_files(recordings, tmp_path / "x.npz", embedder, **arguments)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        refuses(f"address {address}: no cluster can be reached there", engine="ray", address=address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        refuses(f"address {address}", engine="ray")
        monkeypatch.delenv("RAY_ADDRESS")
    refuses("expected HOST:PORT", engine="ray", address="nonsense")
    refuses("Run the command on a machine of the cluster", engine="ray", address="ray://head:10001")
    refuses("add --engine ray", address="auto")
    refuses("engine must be one of local, ray", engine="dask")
    refuses("at least 1, got 0", engine="ray", workers=0)
    refuses("precision='auto' depends on the device", engine="ray", precision="auto")
    refuses("the cluster has 2 cores and 0 GPUs", engine="ray", device="cuda")

    def none_there(**_):
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    monkeypatch.setattr(ray, "init", none_there, raising=False)
    refuses("address auto: no cluster runs on this machine", engine="ray", address="auto")


def test_plans_use_what_the_cluster_has():
    assert Plan.of({"CPU": 8.0}) == Plan("cpu", 8, 1)
    assert Plan.of({"CPU": 8.0}, workers=3) == Plan("cpu", 3, 1)
    assert Plan.of({"CPU": 64.0, "GPU": 4.0}) == Plan("cuda", 4, 8)
    assert Plan.of({"CPU": 6.0, "GPU": 2.0}, "cuda:0") == Plan("cuda", 2, 3)
    assert Plan.of({"CPU": 6.0, "GPU": 2.0}, "cpu") == Plan("cpu", 6, 1)


@pytest.mark.parametrize(("count", "workers"), [(1, 2), (10, 2), (2000, 2), (2000, 500), (9999, 64)])
def test_chunks_hold_every_file_once_and_share_the_work(count, workers):
    files = [Path(f"{number}.wav") for number in range(count)]
    chunks = Plan("cpu", workers, 1).chunks(files, [160_000] * count)
    assert [path for chunk in chunks for path in chunk] == files
    assert max(map(len, chunks)) <= 64
    assert len(chunks) >= min(count, 2 * workers)
    large = Plan("cpu", 2, 1).chunks(files[:10], [40_000_000] * len(files[:10]))
    assert set(map(len, large)) == {1}


def test_a_million_files_are_few_enough_chunks():
    files = [Path("x.wav")] * 1_000_000
    chunks = Plan("cpu", 64, 1).chunks(files, [500_000_000] * len(files))
    assert 10_000 <= len(chunks) <= 20_001
