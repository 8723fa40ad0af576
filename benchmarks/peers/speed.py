"""How fast models are: seconds of audio that one core embeds in a second, from waveform to vector.

The models take turns, so that what else the machine does meets all alike, and the processor time of this process is
read, on one thread: time that other processes take does not count, nor does a runtime gain by more threads. The
recordings of the demo, joined, are cut into clips of 1 s and of 10 s at each model's own sample rate; neither reading
nor resampling them is part of the time. `parts` is the readout of that name: the models of this project have it from
the same pass, peers and log-mel statistics embed the thirds of each clip as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.timing import DEMO_AUDIO
from ssamba.audio.decode import decode
from ssamba.evaluation import ClipModel, EncoderModel, VectorOptions, WaveformParts
from ssamba.probes import single_threaded
from ssamba.studies.harness import environment

_CLIPS_S = (1, 10)
_AUDIO_S = 10  # of each call
_ROUNDS = 5


def measure_speeds(models: Mapping[str, ClipModel]) -> dict[str, dict[str, Any]]:
    """Return the real-time factors of models by name, each with the environment.

    `times_real_time` has, for each length of clips, `L s` for the readout `clip`, and `L s, parts` for models that have
    it. Torch and the runtimes of the models should have been told to use one thread.
    """
    calls = {(name, case): call for name, model in models.items() for case, call in _calls(model).items()}
    with single_threaded():
        seconds = _seconds(calls)
    about = environment()
    return {
        name: {**about, "times_real_time": {case: _AUDIO_S / own for (of, case), own in seconds.items() if of == name}}
        for name in models
    }


def _calls(model: ClipModel) -> dict[str, Callable[[], object]]:
    """Return what to time, by case."""
    rate_hz = model.sample_rate_hz
    joined = np.concatenate([decode(path, sample_rate_hz=rate_hz) for path in sorted(DEMO_AUDIO.glob("*.flac"))])
    samples = np.resize(joined, _AUDIO_S * rate_hz)
    calls: dict[str, Callable[[], object]] = {}
    for clip_s in _CLIPS_S:
        clips = np.split(samples, _AUDIO_S // clip_s)
        for readout, own in _by_readout(model).items():
            case = f"{clip_s} s" if readout == "clip" else f"{clip_s} s, {readout}"
            calls[case] = lambda own=own, clips=clips: [own.vectors([clip]) for clip in clips]  # type: ignore[misc]
    return calls


def _by_readout(model: ClipModel) -> dict[str, ClipModel]:
    """Return a model of each readout."""
    if isinstance(model, WaveformParts):
        return {"clip": model.model, "parts": WaveformParts(model.model, ("parts",))}
    if isinstance(model, EncoderModel):
        return {
            readout: EncoderModel(model.embedder, VectorOptions(readouts=(readout,)))
            for readout in model.options.readouts
        }
    return {"clip": model}


def _seconds(calls: Mapping[Any, Callable[[], object]]) -> dict[Any, float]:
    """Return the median processor seconds of each call over rounds in which all take turns; the first warms up."""
    times: dict[Any, list[float]] = {name: [] for name in calls}
    for number in range(_ROUNDS + 1):
        for name, call in calls.items():
            started = time.process_time()
            call()
            if number:
                times[name].append(time.process_time() - started)
    return {name: statistics.median(own) for name, own in times.items()}
