"""The clips of the proxy suite's tasks, for `benchmarks.open_suite.build.build_suite`."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.open_suite.build import BuiltSuite, OnProgress, Source, Suite, recorded
from benchmarks.open_suite.synthesis import SPACING_S, Note, play_font
from benchmarks.open_suite.tasks import Label, OpenTask
from benchmarks.proxy_suite.speech import spoken_syllables, spoken_words
from benchmarks.proxy_suite.tasks import EFFECTS, PERCUSSION, PROXY_FONTS, PROXY_TASKS, is_used
from ssamba.evaluation.suite import SuiteMetadata, TaskMetadata

_VELOCITIES = (60, 90, 120)
_PITCHES = range(40, 81, 5)
_FIRST_EFFECT = 112
_DRUM_CHANNEL = 9
_TRAINING_PROMPTS, _TEST_PROMPTS = 8, 20
_FEWEST_PROMPTS = 6


def _sources(task: OpenTask, work: Path, debs: Path, built: BuiltSuite, on_progress: OnProgress) -> Sequence[Source]:
    if task.name == "words":
        return spoken_words(task, work, debs, on_progress)
    if task.name == "syllables":
        return spoken_syllables(task, work)
    if task.name in ("percussion", "effects"):
        return list(_played(task, work, on_progress))
    assert task.rule is not None, "recorded tasks have a rule"
    candidates = recorded(task, work, task.rule)
    return _in_both_splits(candidates) if task.name == "prompts" else _few_prompts(candidates)


def _played(task: OpenTask, work: Path, on_progress: OnProgress) -> Iterator[Source]:
    fonts = {font: place for font, place in PROXY_FONTS.items() if place[0] in task.packages}
    for done, (font, (package, fold)) in enumerate(fonts.items()):
        on_progress(f"playing {font}", done, len(fonts))
        score = list(drum_notes(font) if task.name == "percussion" else effect_notes(font))
        played = play_font(font, work / package, work / task.name, score)
        for note in score:
            kind = PERCUSSION[note.pitch] if note.channel else EFFECTS[note.program - _FIRST_EFFECT]
            name = f"{font}/{note.channel:02d}_{note.program:03d}_{note.pitch:03d}_{note.velocity:03d}"
            yield Source(name, Label(kind, font, fold), played, task.longest_s, note)


def drum_notes(font: str) -> Iterator[Note]:
    """Yield each drum at three velocities."""
    hits = [(key, velocity) for key in PERCUSSION for velocity in _VELOCITIES]
    for number, (key, velocity) in enumerate(hits):
        yield Note(font, 0, key, velocity, number * SPACING_S, _DRUM_CHANNEL)


def effect_notes(font: str) -> Iterator[Note]:
    """Yield each effect at nine pitches, at a velocity drawn for it."""
    rng = random.Random(112)
    places = [(program, pitch) for program in range(_FIRST_EFFECT, 128) for pitch in _PITCHES]
    for number, (program, pitch) in enumerate(places):
        yield Note(font, program, pitch, rng.choice(_VELOCITIES), number * SPACING_S)


def _in_both_splits(sources: Sequence[Source]) -> list[Source]:
    """Return the clips whose class is in both splits."""
    splits = defaultdict(set)
    for source in sources:
        splits[source.label.label].add(source.label.split)
    return [source for source in sources if len(splits[source.label.label]) > 1]


def _few_prompts(sources: Sequence[Source]) -> list[Source]:
    """Return at most 8 training and 20 test clips of each voice, the first by a hash of their names.

    Voices with fewer than 6 of either are left out.
    """
    of_voice: dict[str, dict[str, list[Source]]] = defaultdict(lambda: defaultdict(list))
    for source in sorted(sources, key=lambda source: hashlib.sha256(source.name.encode()).digest()):
        of_voice[source.label.label][source.label.split].append(source)
    chosen = []
    for _, splits in sorted(of_voice.items()):
        if min(len(splits["train"]), len(splits["test"])) >= _FEWEST_PROMPTS:
            chosen += splits["train"][:_TRAINING_PROMPTS] + splits["test"][:_TEST_PROMPTS]
    return chosen


_BOTH = TaskMetadata(both_directions=True)
PROXY_SUITE = Suite(
    PROXY_TASKS,
    SuiteMetadata(tasks={name: _BOTH if name in ("words", "prompts") else TaskMetadata() for name in PROXY_TASKS}),
    is_used,
    _sources,
)
"""Six tasks for choosing settings: words, syllables, prompts, percussion, effects, voices."""
