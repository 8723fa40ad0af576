"""Embed the fourteen recordings in demo/audio, list the nearest neighbors of each, and plot four of them.

`make demo` runs this script. It uses the public API only, and writes to build/demo/.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import ssamba
from ssamba.audio.files import find_audio
from ssamba.library.figures import plot_recordings
from ssamba.library.search import nearest_neighbors
from ssamba.library.tables import read_embeddings

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "build" / "demo"
PLOTTED = ("misc_crow", "guit_e_slide", "loop_amen", "ambi_choir")


def main() -> None:
    """Run the demo."""
    console = Console()
    model = ssamba.load_model()
    files = find_audio([HERE / "audio"])
    started = time.perf_counter()
    result = ssamba.embed_files(files, OUTPUT / "embeddings.npz", model, overwrite=True)
    elapsed_s = time.perf_counter() - started
    console.print(
        f"{result.done} recordings, {result.audio_s:.1f} s of audio, embedded in {elapsed_s:.1f} s "
        f"-> {_relative(OUTPUT / 'embeddings.npz')}"
    )
    if result.skipped:
        sys.exit("some recordings of the demo cannot be read: " + "; ".join(s.reason for s in result.skipped))

    embeddings = read_embeddings(OUTPUT / "embeddings.npz")
    names = [Path(path).stem for path in embeddings["path"]]
    neighbors = nearest_neighbors(embeddings["embedding"], count=2)
    table = Table("recording", "seconds", "nearest", "next")
    for row, name in enumerate(names):
        near = [
            f"{names[other]} ({similarity:+.2f})"
            for other, similarity in zip(neighbors.indices[row], neighbors.similarity[row], strict=True)
        ]
        table.add_row(name, f"{embeddings['duration_s'][row]:.2f}", *near)
    console.print(table)

    recordings = [(path.stem, model.features(path), model.embed(path)) for path in files if path.stem in PLOTTED]
    title = f"ssamba {ssamba.__version__}: log-mel features and frame embeddings ({model.name})"
    plot = plot_recordings(recordings, OUTPUT / "demo.png", model.front_end, title)
    console.print(f"plot: {_relative(plot)}")


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    main()
