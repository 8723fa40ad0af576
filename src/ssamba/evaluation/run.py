"""Score models on a suite of labeled tasks: what the command `ssamba evaluate` calls.

    print(evaluate("suite/", "ssamba2-tiny"))
    result = evaluate("suite/", ["runs/mine", "ssamba2-tiny", "random", "logmel"], output="cards.json")
    result.cards[0].best().mean

Decoded clips and embeddings are cached, so that an interrupted call resumes where it stopped.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ssamba.checkpoint import has_default_weights, load_checkpoint
from ssamba.checkpoint.files import write_json
from ssamba.config import FrontEndConfig, settings_differences
from ssamba.cores import free_cores
from ssamba.embedder import Embedder, load_model
from ssamba.errors import ConfigError, Interrupted, OtherSettingsError, SsambaError
from ssamba.evaluation.report import (
    PLOT_FORMATS,
    ReferenceRow,
    check_plotting,
    plot_scorecard,
    reference_rows,
    write_details,
)
from ssamba.evaluation.scorecard import EvaluateOptions, Evaluation, evaluate_model, problems
from ssamba.evaluation.suite import read_suite
from ssamba.evaluation.task import Task
from ssamba.evaluation.vectors import ClipModel, EncoderModel, LogMelStatistics, VectorOptions, WaveformParts
from ssamba.files import cache_folder, user_path
from ssamba.model.create import build_encoder, encoder_config
from ssamba.probes import ProbeKind
from ssamba.progress import OnProgress, checked_progress

Model = str | Path | Embedder | ClipModel

_log = logging.getLogger(__name__)

_RANDOM_SEED = 0


def evaluate(
    suite: str | Path | Sequence[Task],
    checkpoint: Model | Sequence[Model] | None = None,
    *,
    task: str | Sequence[str] | None = None,
    inner: bool = False,
    layers: Literal["final", "all"] = "final",
    pooling: str | Sequence[str] = ("mean",),
    readout: str | Sequence[str] = ("clip",),
    padding: Literal["patch", "official"] = "patch",
    probe: ProbeKind = "linear",
    weighted: bool = False,
    level: float = 0.9,
    output: str | Path | None = None,
    figure: str | Path | None = None,
    details: str | Path | None = None,
    cache: str | Path | bool | None = None,
    workers: int | None = None,
    device: str | None = None,
    encoding: str | None = None,
    overwrite: bool = False,
    progress: OnProgress | None = None,
) -> Evaluation:
    """Score the frozen embeddings of one or several models on a suite of labeled tasks, by probes and by retrieval.

    Args:
        suite: folder of TASK.csv files with TASK.tar beside each, or of tasks of HEAR; one such table; or tasks from
            `read_suite`.
        checkpoint: the model: a name or path as for `ssamba.load_model`, an `Embedder` or another `ClipModel`; or a
            baseline: `random` (the default model's structure, untrained) or `logmel` (log-mel statistics). A list
            scores several models. None means the default model.
        task: names of the tasks to score; None scores all.
        inner: score inside the training parts only, to choose between recipes.
        layers: `final`, or `all`: every layer, and the best by validation.
        pooling: `mean`, `cls` or `rows`, or several of them.
        readout: `clip`, the mean over time; `parts`, that and the means of thirds of the sounding region
            (`Embedding.parts`; log-mel statistics and other models get the thirds of the waveform); or both, each with
            a row.
        padding: `patch` or `official`, as for `Embedder.embed`.
        probe: `linear`, `knn` or `mlp`.
        weighted: with all layers: also learn a mixture of them.
        level: peak that clips are scaled to; 0 leaves them as they are.
        output: file for the scorecard as JSON, a list if there are several.
        figure: file for a plot of the scores beside reference rows (.png, .pdf, .svg).
        details: folder for the scores of each task's classes and, if clips have one label, confusion matrices.
        cache: folder for decoded clips and embeddings; None means the user's cache folder, False caches nothing.
        workers: threads for the probes; None means the number of cores.
        device: where to run; None means a GPU if there is one.
        encoding: of tables (TASK.csv), such as `cp1252`; None is UTF-8.
        overwrite: replace a scorecard of other models, tasks or options in `output`.
        progress: called after each clip, view and fold; returning False stops as Ctrl-C does.

    Returns:
        The scorecards, one for each model; `card` is the first.

    Raises:
        ConfigError: an argument is of a wrong kind, an option is unknown, or options exclude each other.
        SuiteError: there is no such suite or task, or a model or option cannot do a task.
        CheckpointError: a model cannot be loaded.
        AudioDecodeError: a clip cannot be read.
        OtherSettingsError: `output` holds a scorecard of other models, tasks or options; every difference is named.
        MissingExtraError: scikit-learn, or for a plot matplotlib, is not installed.
        Interrupted: Ctrl-C; embeddings of finished tasks are in the cache.
    """
    checked_progress(progress)
    poolings, readouts = ([one] if isinstance(one, str) else one for one in (pooling, readout))
    vectors = VectorOptions.parse(
        {"layers": layers, "poolings": poolings, "readouts": readouts, "padding": padding}, "evaluate"
    )
    options = EvaluateOptions.parse(
        {"inner": inner, "probe": probe, "weighted": weighted, "level": level or None}, "evaluate"
    )
    output, figure, details = (None if path is None else user_path(path) for path in (output, figure, details))
    if figure is not None and figure.suffix not in PLOT_FORMATS:
        raise ConfigError(f"figure must end in {', '.join(PLOT_FORMATS)}, got {str(figure)!r}")
    if weighted and layers != "all":
        raise ConfigError("weighted learns a mixture of the layers: it needs layers 'all'")
    if workers is not None and (type(workers) is not int or workers < 1):
        raise ConfigError(f"workers is a number of threads, at least 1; got {workers!r}")
    given: list[Any] = list(checkpoint) if isinstance(checkpoint, list | tuple) else [checkpoint]
    if not given:
        raise ConfigError("no model named: expected a name, a path, 'random' or 'logmel'")
    for one in given:
        if not (one is None or isinstance(one, str | Path | Embedder) or hasattr(one, "vectors")):
            raise ConfigError(
                f"expected a name, a path, 'random', 'logmel', an Embedder or another ClipModel, got "
                f"{type(one).__name__} (an encoder in memory: ssamba.Embedder(encoder))"
            )
    if figure is not None or details is not None:
        check_plotting()
    tasks = _read_tasks(suite, task, encoding)
    models = [load_clip_model(one, vectors, device) for one in given]
    for one in tasks:
        for note in problems(one, inner=inner):
            _log.warning("%s: %s", one.name, note)
    if output is not None and output.exists() and not overwrite:
        _check_output(output, models, tasks, options, vectors)
    folder = None if cache is False else cache_folder() if cache in (None, True) else Path(str(cache)).expanduser()
    threads = workers or free_cores()
    try:
        evaluation = Evaluation(
            tuple(
                evaluate_model(model, tasks, options, cache=folder, workers=threads, progress=progress)
                for model in models
            )
        )
    except KeyboardInterrupt:
        kept = "finished embeddings are in the cache: repeat the command to resume" if folder else "nothing is cached"
        raise Interrupted(kept) from None
    cards = evaluation.cards
    for name, count in {name: count for card in cards for name, count in card.repeated.items()}.items():
        _log.warning(
            "%s: %d test clips have the samples of a training clip with another name: they flatter every model",
            name,
            count,
        )
    if figure is not None:
        others = [ReferenceRow(card.model, None, card.best().scores) for card in cards[1:]]
        plot_scorecard(cards[0], figure, [*others, *([] if inner else reference_rows())])
    if details is not None:
        for number, card in enumerate(cards, start=1):
            own = re.sub(r"[^\w.-]+", "-", card.model).strip("-")
            write_details(card, tasks, details / f"{number}-{own}" if len(cards) > 1 else details)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, evaluation.as_json())
    return evaluation


def _read_tasks(
    suite: str | Path | Sequence[Task], names: str | Sequence[str] | None, encoding: str | None
) -> list[Task]:
    if not isinstance(suite, str | Path):
        given: object = suite
        tasks = list(given) if isinstance(given, Sequence) else [given]
        found = [one for one in tasks if isinstance(one, Task)]
        if not found or len(found) < len(tasks):
            got = ", ".join(type(one).__name__ for one in tasks[:3]) or "an empty list"
            raise ConfigError(f"suite is a folder of tasks, or a list of tasks of `read_suite`; got {got}")
        return found
    wanted = [names] if isinstance(names, str) else names
    if wanted is not None and not (isinstance(wanted, Sequence) and all(isinstance(name, str) for name in wanted)):
        raise ConfigError(f"task takes the name of a task, or a list of names; got {names!r}")
    return read_suite(suite, wanted, lambda name, reason: _log.warning("left out: %s: %s", name, reason), encoding)


def load_clip_model(source: Any, options: VectorOptions, device: str | None) -> ClipModel:
    """Return a model that can be scored; its name, path or `Embedder` or itself is given."""
    if source == "logmel":
        if options != VectorOptions(readouts=options.readouts):
            raise ConfigError("'logmel' has no layers, tokens or padding: leave out layers, pooling and padding")
        source = LogMelStatistics()
    if isinstance(source, Embedder):
        return EncoderModel(source, options)
    if source is not None and not isinstance(source, str | Path):
        model: ClipModel = source
        if isinstance(model, EncoderModel | WaveformParts):
            own = model.options.readouts if isinstance(model, EncoderModel) else model.readouts
            if own != options.readouts:
                raise ConfigError(f"{model.name} was made with the readouts {own}: give evaluate the same ones")
            return model
        return model if options.readouts == ("clip",) else WaveformParts(model, options.readouts)
    try:
        embedder = random_model(device=device) if source == "random" else load_model(source, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        if isinstance(error, SsambaError):
            raise
        raise ConfigError(f"cannot use device {device!r}: {str(error).splitlines()[0]}") from None
    return EncoderModel(embedder, options)


def _check_output(
    output: Path, models: Sequence[ClipModel], tasks: Sequence[Task], options: EvaluateOptions, vectors: VectorOptions
) -> None:
    """Refuse to replace a scorecard of other models, tasks or options, or a file that is none."""
    remedy = "choose another output, or --overwrite"
    try:
        content = json.loads(output.read_text(encoding="utf-8"))
        cards = content if isinstance(content, list) else [content]
        before = {
            "models": ", ".join(f"{card['model']} ({card['model_digest']})" for card in cards),
            "tasks": {name: facts["digest"] for name, facts in cards[0]["tasks"].items()},
            "options": cards[0]["options"],
            "readouts": cards[0].get("readouts", ["clip"]),
        }
    except (ValueError, KeyError, TypeError, IndexError, OSError):
        raise OtherSettingsError(f"{output} exists, and holds no scorecard: {remedy}") from None
    now = {
        "models": ", ".join(f"{model.name} ({model.digest()})" for model in models),
        "tasks": {task.name: task.facts["digest"] for task in tasks},
        "options": options.model_dump(),
        "readouts": list(vectors.readouts),
    }
    differences = settings_differences(before, now)
    if differences:
        raise OtherSettingsError(f"{output} holds a scorecard of other settings: {'; '.join(differences)}: {remedy}")


def random_model(
    *,
    device: str | torch.device | None = None,
    patch_stride: int | tuple[int, int] | None = None,
    front_end: FrontEndConfig | None = None,
) -> Embedder:
    """Return the default model's structure (else the tiny one) with random weights from a fixed seed, as a baseline.

    Arguments as `load_model`.
    """
    if has_default_weights():
        like = load_checkpoint(None, patch_stride)
        config, front_end = like.config.encoder, front_end or like.front_end
    else:
        config = encoder_config("tiny")
        if patch_stride is not None:
            config = config.with_patch_stride(patch_stride)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_RANDOM_SEED)
        encoder = build_encoder(config)
    return Embedder(encoder, front_end, device=device, name="random tiny")
