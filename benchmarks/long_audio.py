"""Long recordings for real: `python -m benchmarks.long_audio [--recordings FOLDER] [--needles FOLDER] [--minutes 1 10 60]`.

Recordings of a folder (default: the demo's, 28 s in all, which then repeat; give an hour or more of your own for figures that
mean something) are joined to each length. `long`: windows against full context, with time, peak memory and agreement of time
steps, through the shipped model; and full context alone at the official size, 50 patches a second, random weights.
`needle`: known short sounds (default: some of the recordings) searched for in them. Writes
benchmarks/results/long.*, long_official.* and needle.*; an interrupted `needle` goes on when the command is repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import ssamba
from benchmarks.timing import RESULTS
from ssamba.audio.files import find_audio
from ssamba.checkpoint import save_checkpoint
from ssamba.studies.long_audio import LongOptions, measure_long
from ssamba.studies.long_audio_report import headlines as long_headlines
from ssamba.studies.long_audio_report import save_long
from ssamba.studies.needle import NeedleStudy, Progress, measure_needles
from ssamba.studies.needle_plan import NeedleOptions
from ssamba.studies.needle_report import headlines, read_needles, save_needles

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", nargs="+", default=[ROOT / "demo" / "audio"], help="what is joined")
    parser.add_argument("--needles", nargs="*", default=[], help="sounds to search for")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1, 10, 60, 150])
    parser.add_argument("--official-minutes", nargs="*", type=float, default=[60], help="at the official size")
    parser.add_argument(
        "--parts", nargs="+", choices=("long", "official", "needle"), default=("long", "official", "needle")
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recordings, needles = find_audio(args.recordings), find_audio(args.needles)
    if "long" in args.parts:
        _long(recordings, args.minutes, None, "long")
    if "official" in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            save_checkpoint(folder, ssamba.create_encoder("tiny"))
            _long(recordings, args.official_minutes, folder, "long_official")
    if "needle" in args.parts:
        _needle(recordings, needles, args.minutes)


def _long(recordings: list[Path], minutes: list[float], checkpoint: str | None, name: str) -> None:
    options = LongOptions(minutes=tuple(minutes), device="cpu")
    study = measure_long(
        recordings,
        options,
        checkpoint=checkpoint,
        on_progress=lambda progress, study: print(
            f"{name}: {progress.done} of {progress.total}, {progress.what}", flush=True
        ),
    )
    if checkpoint is not None:
        study.environment["model"] = "official structure, tiny, random weights"
    print("\n".join([*long_headlines(study), *map(str, save_long(study, RESULTS, name=name))]))


def _needle(recordings: list[Path], needles: list[Path], minutes: list[float]) -> None:
    before = read_needles(RESULTS) if (RESULTS / "needle.json").exists() else None
    before = None if before is not None and before.finished else before

    def show(progress: Progress, study: NeedleStudy) -> None:
        print(f"needle: {progress.done:.0f} of {progress.total:.0f} minutes of audio, {progress.what}", flush=True)
        save_needles(study, RESULTS, picture=False)

    options = NeedleOptions(minutes=tuple(minutes))
    study = measure_needles(
        ssamba.load_model(device="cpu"), recordings, needles, options, before=before, on_progress=show
    )
    print("\n".join([*headlines(study), *map(str, save_needles(study, RESULTS))]))


if __name__ == "__main__":
    main()
