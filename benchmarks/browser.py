"""Measure the web page of `ssamba export --web` in headless Chromium: `python -m benchmarks.browser`.

For weights stored as float16 and as float32: the time from opening the page from a disk until its model is ready, of
the model on a clip of 10.24 s (demo recordings one after the other), and that from handing over a WAV file at
44.1 kHz until everything is shown. Figures are medians. PyTorch (`Embedder.embed`) on one thread stands beside them,
with the cosine of the two clip vectors. Writes benchmarks/results/browser.json and browser.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from playwright.sync_api import Browser, sync_playwright
from tests.browser import find_browser

from benchmarks.timing import DEMO_AUDIO, save
from ssamba.audio.decode import decode
from ssamba.embedder import load_model
from ssamba.integrations.web import export_web
from ssamba.studies.harness import environment, table

MODEL, RATE_HZ, CLIP_S = "ssamba2-tiny", 44_100, 10.24


def measure(browser: Browser, site: Path, recording: Path, loads: int, calls: int) -> dict[str, Any]:
    """Return times in ms and the clip vector."""
    ready, model, shown, clip = [], [], [], []
    for _ in range(loads):
        page = browser.new_page()
        started = time.perf_counter()
        page.goto((site / "index.html").as_uri())
        page.wait_for_selector("body[data-state=ready]", timeout=120_000)
        ready.append(1000 * (time.perf_counter() - started))
        for call in range(calls + 1):
            page.evaluate("document.body.dataset.state = 'waiting'")
            started = time.perf_counter()
            page.set_input_files("#file", recording)
            page.wait_for_selector("body[data-state=done]", timeout=120_000)
            if call:  # the first one warms up
                shown.append(1000 * (time.perf_counter() - started))
                model.append(page.evaluate("ssamba.result.ms"))
            clip = page.evaluate("ssamba.result.clip")
        page.close()
    return {
        "ready": statistics.median(ready),
        "model": statistics.median(model),
        "shown": statistics.median(shown),
        "clip": clip,
    }


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--calls", type=int, default=5, help="clips after each load")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(1)
    embedder = load_model(MODEL, device="cpu")
    samples = np.concatenate([decode(path, sample_rate_hz=RATE_HZ) for path in sorted(DEMO_AUDIO.glob("*.flac"))])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        recording = Path(folder) / "clip.wav"
        soundfile.write(recording, samples[: round(CLIP_S * RATE_HZ)], RATE_HZ, "PCM_16")
        sites = {dtype: Path(folder) / dtype for dtype in ("float16", "float32")}
        sizes = {dtype: export_web(embedder, site, dtype=dtype).size_bytes for dtype, site in sites.items()}  # type: ignore[arg-type]
        wave = decode(recording)
        times = []
        for _ in range(options.calls + 1):
            started = time.perf_counter()
            wanted = embedder.embed(wave).clip.double().numpy()
            times.append(1000 * (time.perf_counter() - started))
        browser = playwright.chromium.launch(executable_path=find_browser())
        found = {name: measure(browser, site, recording, options.loads, options.calls) for name, site in sites.items()}
        version = browser.version
        browser.close()
    rows = []
    for name, one in found.items():
        clip = np.array(one.pop("clip"))
        one["cosine"] = float(clip @ wanted / np.linalg.norm(clip) / np.linalg.norm(wanted))
        one["megabytes"] = sizes[name] / 1e6
        row = [name, f"{one['megabytes']:.0f}", *(f"{one[key]:,.0f}" for key in ("ready", "model", "shown"))]
        rows.append([*row, f"{one['cosine']:.7f}"])
    torch_ms = statistics.median(times[1:])
    text = table(["weights", "page, MB", "ready, ms", "model, ms", "file to picture, ms", "cosine to PyTorch"], rows)
    text += (
        f"\n\n{CLIP_S} s of sound, `{MODEL}`, Chromium {version}, one thread; PyTorch, one thread: {torch_ms:.0f} ms."
    )
    if options.no_save:
        print(text)
    else:
        save("browser", {"environment": environment(), "pages": found, "torch_ms": torch_ms, "chromium": version}, text)


if __name__ == "__main__":
    main()
