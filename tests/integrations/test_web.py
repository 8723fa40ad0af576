"""The web page of a model, driven in a browser: PyTorch's numbers, labels, neighbors, keyboard, refusals, privacy."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
import time

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Error, sync_playwright
from tests.browser import find_browser
from tests.conftest import ROOT, invoke, small_encoder

from ssamba.audio.decode import decode
from ssamba.checkpoint.files import read_json, write_json
from ssamba.embedder import Embedder, load_model
from ssamba.errors import ConfigError, MissingExtraError, OtherSettingsError, SsambaError
from ssamba.integrations.onnx import export_onnx
from ssamba.integrations.web import export_web, runtime
from ssamba.library.search import nearest_neighbors


@pytest.fixture(scope="module")
def browser(clips, tmp_path_factory):
    """Chromium, whose microphone hears a demo recording."""
    heard = tmp_path_factory.mktemp("microphone") / "heard.wav"
    soundfile.write(heard, np.tile(decode(clips[6], sample_rate_hz=48_000), 4), 48_000)
    options = ("--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={heard}")
    path = find_browser()
    assert path, "no Chromium or Chrome was found: install it (make browser), or set CHROMIUM=/path/to/it"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[*options, "--deny-permission-prompts"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory, classifier_folder, clips):
    """A folder in which the commands and the code of docs/browser.md have run: pages `page` and `birds`."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copytree(classifier_folder, folder / "runs" / "birds")
    (folder / "reference").mkdir()
    for path in clips[:3]:
        shutil.copy(path, folder / "reference")
    text = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, block in re.findall(r"^```(bash|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            if language == "python":
                exec(block, {})
            for line in block.splitlines() if language == "bash" else ():
                if line.startswith("ssamba "):
                    done = invoke(*line.split()[1:])
                    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def site(written):
    """The page of the shipped model."""
    return written / "page"


def visit(browser, address, **options):
    """Open a page, and wait until its model is loaded."""
    page = browser.new_page(**options)
    page.set_default_timeout(60_000)
    page.requested = []
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(address)
    page.wait_for_selector("body[data-state=ready]")
    return page


@pytest.fixture(scope="module")
def page(browser, site):
    opened = visit(browser, (site / "index.html").as_uri())
    yield opened
    opened.close()


def settled(page):
    """Wait for an answer; return what was computed, or the text of the error."""
    page.wait_for_selector("body[data-state=done], body[data-state=error]")
    if page.get_attribute("body", "data-state") == "error":
        assert page.is_visible("#error")
        return page.inner_text("#error")
    assert not page.is_visible("#error")
    return page.evaluate(
        """() => { const { features, ...others } = ssamba.result;
        return { ...others, probabilities: others.probabilities && Array.from(others.probabilities.values) }; }"""
    )


def until(page, condition):
    """Wait for a condition in JavaScript; the page's policy forbids what `wait_for_function` does."""
    end = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        time.sleep(0.02)


def dropped(page, path):
    page.evaluate("document.body.dataset.state = 'waiting'")
    page.set_input_files("#file", path)
    return settled(page)


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_clips_are_those_of_pytorch_and_neighbors_those_of_the_library(page, clips, tmp_path):
    model = load_model("ssamba2-tiny", device="cpu")
    wave = decode(clips[6], sample_rate_hz=44_100)
    soundfile.write(tmp_path / "eight.wav", np.stack([wave * share for share in range(8)], 1) / 8, 44_100, "PCM_24")
    soundfile.write(tmp_path / "float.wav", decode(clips[0], sample_rate_hz=96_000), 96_000, "FLOAT")
    soundfile.write(tmp_path / "one.ogg", decode(clips[4], sample_rate_hz=22_050), 22_050)
    soundfile.write(tmp_path / "one.mp3", decode(clips[4], sample_rate_hz=32_000), 32_000)
    collection = np.stack([model.embed(path).clip.numpy() for path in clips])
    wanted = nearest_neighbors(collection, count=6)
    for path in (clips[4], clips[6], clips[8], clips[11], *sorted(tmp_path.iterdir())):
        result = dropped(page, path)
        expected = model.embed(path)
        lossy = path.suffix in (".mp3", ".ogg")  # decoders differ in what they cut off at the ends
        assert cosine(result["clip"], expected.clip) > (0.999 if lossy else 0.9999), path.name
        if not lossy:
            assert result["samples"] == len(decode(path))
            np.testing.assert_allclose(result["clip"], expected.clip, atol=0.01)
        if path in clips:
            row = clips.index(path)
            assert result["nearest"][0]["index"] == row
            assert result["nearest"][0]["similarity"] > 0.999
            found = [near["index"] for near in result["nearest"][1:]]
            assert found == list(wanted.indices[row][:5])
            similarity = [near["similarity"] for near in result["nearest"][1:]]
            np.testing.assert_allclose(similarity, wanted.similarity[row][:5], atol=0.01)
    # One of the page's own sounds is not among its own neighbors.
    page.get_by_role("button", name="guit e slide", exact=True).click()
    until(page, "ssamba.result?.name === 'guit_e_slide'")
    own = settled(page)
    assert [near["index"] for near in own["nearest"]] == list(wanted.indices[4])
    assert cosine(own["clip"], collection[4]) > 0.9999


def test_parts_of_long_recordings_are_chosen_by_keyboard(page, medley, tmp_path):
    model = load_model("ssamba2-tiny", device="cpu")
    soundfile.write(tmp_path / "long.wav", medley, 16_000, "PCM_16")
    soundfile.write(tmp_path / "long.flac", medley, 16_000)
    for name in ("long.wav", "long.flac"):
        assert dropped(page, tmp_path / name)["seconds"] == pytest.approx(10.24)
        page.focus("#start")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        until(page, "ssamba.result.start_s === 1.5")
        result = settled(page)
        part = decode(tmp_path / "long.wav", start_s=1.5, duration_s=10.24)
        assert cosine(result["clip"], model.embed(part, sample_rate=16_000).clip) > 0.9999
        assert page.get_attribute("#start", "aria-valuetext") == f"1.5 to 11.7 of {len(medley) / 16_000 + 1e-6:.1f} s"
        page.keyboard.press("End")  # the last part ends with the recording
        until(page, "ssamba.result.start_s > 15")
        assert settled(page)["start_s"] == pytest.approx(len(medley) / 16_000 - 10.24, abs=1e-3)


def test_what_cannot_be_read_is_said_and_the_page_goes_on(page, clips, tmp_path):
    def written(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "short.wav", np.ones(300), 16_000)
    soundfile.write(tmp_path / "nan.wav", np.full(9000, np.nan), 16_000, "FLOAT")
    for path, message in (
        (written("notes.wav", b"These are field notes, not a recording.\n" * 50), "notes.wav cannot be read as sound"),
        (written("cut.flac", clips[0].read_bytes()[:60]), "cut.flac cannot be read as sound"),
        (written("empty.mp3", b""), "empty.mp3 is empty"),
        (tmp_path / "none.wav", "none.wav holds no sound"),
        (tmp_path / "short.wav", "short.wav is too short: a sound has at least 25 ms"),
        (tmp_path / "nan.wav", "nan.wav holds values that are no numbers"),
    ):
        assert message in dropped(page, path)
    assert dropped(page, clips[3])["name"] == clips[3].name
    # A file of two hours is refused before it is decoded, unless it can be read in parts.
    page.evaluate("Object.defineProperty(HTMLMediaElement.prototype, 'duration', { get: () => 7200 }) && 0")
    assert "is 2.0 h long" in dropped(page, clips[4])


def test_the_microphone_is_recorded_or_its_refusal_said(page, site, browser):
    page.click("#record")
    assert "The microphone was refused" in settled(page)
    allowed = browser.new_context(permissions=["microphone"])
    other = visit(allowed, (site / "index.html").as_uri())
    other.click("#record")
    other.wait_for_selector("body[data-state=recording]")
    until(other, "parseFloat(document.querySelector('#record-text').textContent.slice(4)) > 1")
    other.click("#record")
    result = settled(other)
    assert result["name"] == "Your recording"
    assert result["seconds"] >= 1
    assert other.inner_text("#facts").endswith("mono")  # and not "this part is silent"
    allowed.close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_labels_are_those_of_predict_and_keys_are_enough_and_nothing_is_sent(
    browser, written, classifier_folder, clips
):
    site = written / "birds"
    handler = functools.partial(_Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        page = visit(browser, address + "index.html", color_scheme="dark", viewport={"width": 390, "height": 800})
        result = dropped(page, clips[8])
        (prediction,) = load_model(classifier_folder, device="cpu").predict(clips[8])
        np.testing.assert_allclose(result["probabilities"], prediction.probabilities, atol=1e-3)
        assert (
            page.locator("#bars .label").first.inner_text()
            == prediction.labels[int(np.argmax(result["probabilities"]))]
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        # From the name of the recording on, Tab reaches the players of the recording and of the first neighbor.
        pressed = []
        for _ in range(6):
            page.keyboard.press("Tab")
            label = page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
            if label.startswith("Play"):
                page.keyboard.press("Enter")
                until(page, "document.activeElement.getAttribute('aria-pressed') === 'true'")
                pressed.append(label)
        assert pressed[0] == "Play"
        assert re.fullmatch(r"Play (ambi|drum) .*, similarity -?[01]\.\d\d", pressed[1])
        assert page.locator("[aria-pressed=true]").count() == 1
        # What the page asked for are its own files, and the browser refuses the rest.
        with pytest.raises(Error, match="Failed to fetch"):
            page.evaluate(f"fetch('{address}index.html')")
        assert {url.split(":")[0] for url in page.requested} <= {"http", "blob", "data"}
        assert all(url.startswith((address, "blob:", "data:")) for url in page.requested)
        page.close()
        server.shutdown()
    # A page without its model says which file is missing.
    (site / "data" / "model.js").unlink()
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    assert "data/model.js cannot be loaded: is the whole folder there?" in settled(page)
    page.close()


def test_a_runtime_that_is_not_there_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"expected the unpacked npm package onnxruntime-web 1\.30\.0"):
        runtime.read_runtime(tmp_path)
    monkeypatch.setenv("SSAMBA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match=r"npm was not found: install Node\.js.*--runtime DIR"):
        runtime.read_runtime()
    monkeypatch.setattr(runtime.shutil, "which", lambda _: "npm")
    for done, message in (
        ((1, "npm error request to the registry failed"), r"request to the registry failed\): is this machine offline"),
        ((0, ""), "it wrote no file"),
    ):
        result = runtime.subprocess.CompletedProcess([], done[0], "", done[1])
        monkeypatch.setattr(runtime.subprocess, "run", lambda *_, result=result, **__: result)
        with pytest.raises(SsambaError, match=message):
            runtime.read_runtime()

    def packed(command, cwd, **_):
        (tmp_path.__class__(cwd) / "onnxruntime-web-1.30.0.tgz").write_bytes(b"another package")
        return runtime.subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr(runtime.subprocess, "run", packed)
    with pytest.raises(SsambaError, match=r"another onnxruntime-web 1\.30\.0 than ssamba knows"):
        runtime.read_runtime()


def test_options_of_the_page_need_web(tmp_path, clips):
    done = invoke("export", "ssamba2-tiny", "-o", tmp_path / "x", "--sounds", clips[0])
    assert (done.exit_code, "add --web" in done.output) == (2, True)
    done = invoke("export", "ssamba2-tiny", "-o", tmp_path / "x", "--web", "--layers", "1")
    assert (done.exit_code, "omit them with --web" in done.output) == (2, True)
    done = invoke("export", "ssamba2-tiny", "-o", tmp_path / "x", "--web", "--sounds", clips[0])
    assert "a page compares with 2 to 1,000 sounds; got 1" in done.output
    assert not (tmp_path / "x").exists()


def test_a_page_replaces_files_and_files_a_page(tmp_path, clips):
    model, folder = Embedder(small_encoder(depth=2), device="cpu"), tmp_path / "export"
    (tmp_path / "kept.txt").touch()
    export_onnx(model, folder, inputs="features")
    report = read_json(folder / "export.json")
    write_json(folder / "export.json", {**report, "files": [*report["files"], "../kept.txt"]})
    with pytest.raises(OtherSettingsError, match="kind was 'ONNX files', is 'web page'"):
        export_web(model, folder, sounds=clips[:2])
    export_web(model, folder, sounds=clips[:2], overwrite=True)
    assert {path.name for path in folder.iterdir()} >= {"index.html", "data", "export.json"}
    assert not list(folder.glob("*.onnx"))
    export_onnx(model, folder, inputs="features", overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"features.onnx", "export.json"}
    assert (tmp_path / "kept.txt").exists()


def test_the_packaged_sounds_are_those_of_the_demo(clips):
    folder = ROOT / "src" / "ssamba" / "integrations" / "web" / "sounds"
    assert [path.name for path in sorted(folder.glob("*.flac"))] == [path.name for path in clips]
    assert all((folder / path.name).read_bytes() == path.read_bytes() for path in clips)
