"""Long recordings for real: `python -m benchmarks.long_audio [--recordings FOLDER] [--needles FOLDER] [--minutes 1 10 60]`.

Recordings of a folder (default: the demo's, 28 s in all, which then repeat; give an hour or more of your own for figures that
mean something) are joined to each length. `long`: windows against full context, with time, peak memory and agreement of time
steps, through the shipped model; and full context alone at the official size, 50 patches a second, random weights.
`needle`: known short sounds (default: some of the recordings) searched for in them. Writes
benchmarks/results/long.*, long-official.* and needle.*; an interrupted `needle` goes on when the command is repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import ssamba
from benchmarks.timing import RESULTS
from ssamba.audio.collection import find_audio
from ssamba.checkpoint import save_checkpoint
from ssamba.evaluation.long_audio import LongOptions, measure_long
from ssamba.evaluation.long_audio_report import headlines as long_headlines
from ssamba.evaluation.long_audio_report import save_long
from ssamba.evaluation.needle import measure_needles
from ssamba.evaluation.needle_plan import NeedleOptions
from ssamba.evaluation.needle_report import headlines, read_needles, save_needles

ROOT = Path(__file__).resolve().parent.parent
