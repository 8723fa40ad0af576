"""Write the tables of the documentation from the JSON in benchmarks/results: `python -m benchmarks.results_page`.

A page has a pair of comments for each table, `<!-- figures: NAME -->` and `<!-- end -->`; what stands between them is
replaced by the table of that name (`TABLES`), headed by its machine and date. Each table stands on one page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.peers import scorecard
from benchmarks.timing import RESULTS
from ssamba.files import write_atomically
from ssamba.similarity import SIMILARITIES, SIMILARITY

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(?<=<!-- figures: )([\w-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
_SIDES = ("ssamba-fp32", "ssast-fp32", "ssast-unfused-fp32", "ssamba-bf16", "ssast-bf16")
_SECONDS_A_PATCH = 0.02
"""Duration of a patch of the official structure, of which 512 make 10.24 s."""


def pages() -> list[Path]:
    """Return the pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """Return a page with its tables written again.

    Raises:
        KeyError: it names a table that is not in `TABLES`.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{found[2]}{TABLES[found[1]]()}\n", text)


def names(text: str) -> list[str]:
    """Return the names of the tables of a page."""
    return [found[1] for found in _BLOCK.finditer(text)]


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(facts: Mapping[str, Any], columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table under a line with machine, threads, version of PyTorch and date."""
    threads = facts.get("threads", 1)
    what = f"{threads} thread{'s' if threads != 1 else ''}"
    processor = facts["processor"].replace("(R)", "").replace(" Processor", "")
    head = f"({processor}, {what}, PyTorch {facts['torch'].split('+')[0]}, {facts['date']})"
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([head, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def _digits(value: float) -> str:
    """Return three digits, and thousands with a comma."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _embedding() -> str:
    found = _read("embedding")
    long = found["long"]
    rows = [
        ["log-mel features of a 10 s clip, one thread", f"{found['fbank_10s_ms']:.1f} ms",
         _digits(found["fbank_real_time_factor"])],
        ["a 10.24 s clip, waveform to embedding", f"{found['tiny_clip_10.24s_ms']:.0f} ms",
         _digits(found["tiny_clip_real_time_factor"])],
        ["a one-hour recording, in windows, decoding included", f"{long['seconds']:.0f} s",
         _digits(long["real_time_factor"])],
    ]  # fmt: skip
    return _table(found, ["what", "time", "times real time"], rows)


def _front() -> str:
    """Return the table of the front page."""
    speed, study = _read("embedding"), _read("efficiency_zen5_inference/efficiency")
    points = _points(study, patches=22_000)
    ours, theirs = points["ssamba-fp32"], points["ssast-fp32"]
    time, memory = (ours[key] / theirs[key] for key in ("median_s", "peak_bytes"))
    card = scorecard.read(RESULTS / "scorecard.json")
    means = {
        line.name: _share(scorecard.mean_of(line, list(card.tasks)))
        for line in card.lines if line.view == scorecard.PARTS
    }  # fmt: skip
    own = next(line.name for line in card.lines if line.kind == "ours")
    random = next(name for name in means if "random" in name)
    rows = [
        ["a 10.24 s clip, waveform to embedding, tiny (6.9 M parameters)",
         f"{speed['tiny_clip_10.24s_ms']:.0f} ms: {speed['tiny_clip_real_time_factor']:.0f}x real time"],
        ["a one-hour recording, decoding included",
         f"{speed['long']['seconds']:.0f} s: {speed['long']['real_time_factor']:.0f}x real time"],
        ["7.3 minutes at once, against a transformer of the same size with fused attention (SSAST)",
         f"{time:.3f} of its time, {memory:.2f} of its memory"],
        ["mean accuracy of linear probes on six tasks",
         f"{means[own]} (random weights {means[random]}, log-mel statistics {means['log-mel statistics']})"],
    ]  # fmt: skip
    return _table(speed, ["on two CPU threads, float32", "measured"], rows)


def _memory() -> str:
    found = _read("memory")
    hours = sorted({hours for run in found["runs"].values() for hours in run}, key=float)
    rows = [
        [
            f"`{name}`" if name[0].isupper() else f"`ssamba {name}`",
            *(f"{run[h]['peak_mb']:.0f}" if h in run else "-" for h in hours),
        ]
        for name, run in found["runs"].items()
    ]
    return _table(found["environment"], ["peak of the process, MB", *(f"{h} h" for h in hours)], rows)


def _points(study: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the points of an efficiency study by side."""
    return {
        point["side"]: point
        for point in study["points"]
        if point["section"] == "length" and all(point[name] == value for name, value in fields.items())
    }


def _ms(point: Mapping[str, Any] | None) -> str:
    """Return milliseconds; in brackets a single cold call, which took longer than the study's budget."""
    if point is None or point["median_s"] is None:
        return "-"
    text = _digits(1000 * point["median_s"])
    return f"({text})" if point["stopped"] else text


def _length_of(patches: int) -> str:
    seconds = patches * _SECONDS_A_PATCH
    return f"{patches:,} ({seconds:.0f} s)" if seconds < 100 else f"{patches:,} ({seconds / 60:.1f} min)"


def _efficiency() -> str:
    study = _read("efficiency_zen5_inference/efficiency")
    rows = []
    for patches in study["options"]["patches"]:
        own = _points(study, patches=patches)
        ours, theirs = own["ssamba-fp32"], own.get("ssast-fp32")
        ratio = f"{ours['median_s'] / theirs['median_s']:.2f}" if theirs else "-"
        memory = (own.get(side) for side in _SIDES[:3])
        rows.append([
            _length_of(patches), *(_ms(own.get(side)) for side in _SIDES[:2]), ratio,
            *(_ms(own.get(side)) for side in _SIDES[2:]),
            " / ".join(_digits(p["peak_bytes"] / 1e6) if p and p["peak_bytes"] else "-" for p in memory),
        ])  # fmt: skip
    columns = ["patches (audio)", "SSAMBA, ms", "SSAST", "ratio", "SSAST, unfused", "SSAMBA, bf16", "SSAST, bf16",
               "MB: SSAMBA / SSAST / unfused"]  # fmt: skip
    return _table(study["environment"], columns, rows)


def _study(folder: str, mode: str) -> str:
    """Return all sizes, batches and lengths of one pass of an efficiency study."""
    study = _read(f"{folder}/efficiency")
    cases = dict.fromkeys((p["size"], p["batch"], p["patches"]) for p in study["points"] if p["section"] == "length")
    rows = []
    for size, batch, patches in cases:
        own = _points(study, size=size, batch=batch, patches=patches, mode=mode)
        if own:
            rows.append([f"{size}, {batch} x {_length_of(patches)}", *(_ms(own.get(side)) for side in _SIDES)])
    columns = ["size, batch x patches", "SSAMBA, ms", "SSAST", "SSAST, unfused", "SSAMBA, bf16", "SSAST, bf16"]
    return _table(study["environment"], columns, rows)


def _encoder(*files: str) -> str:
    """Return every comparison of an encoder benchmark, one side beside the other."""
    found = [_read(name) for name in files]
    rows = [
        [row["what"], _digits(row["ssamba_ms"]), row["other"].replace("transformer", "SSAST"),
         _digits(row["other_ms"]), f"{row['ratio']:.3f}"]
        for part in found for row in part["rows"]
    ]  # fmt: skip
    return _table(found[0]["where"], ["what", "SSAMBA (ms, MB)", "against", "it (ms, MB)", "ratio"], rows)


def _scan(name: str) -> str:
    found = _read(name)
    rows = [
        [f"{row['length']:,} x {row['channels']:,}", row["capability"], str(row["threads"]),
         f"{row['forward_ns']:.3f}", f"{row['backward_ns']:.3f}"]
        for row in found["scaled"]
    ]  # fmt: skip
    columns = ["steps x channels", "instructions", "threads", "forward, ns", "backward, ns"]
    return _table(found, columns, rows)


def _models(card: scorecard.Content) -> dict[str, dict[str, scorecard.Line]]:
    """Return the lines of each model by view."""
    models: dict[str, dict[str, scorecard.Line]] = {}
    for line in card.lines:
        models.setdefault(line.name, {})[line.view] = line
    return models


def _both(lines: Mapping[str, scorecard.Line], value: Callable[[scorecard.Line], float]) -> str:
    """Return a figure of both readouts, `clip` and `parts`."""
    return " / ".join(_share(value(lines[view])) for view in (scorecard.CLIP, scorecard.PARTS) if view in lines)


def _accuracy() -> str:
    card = scorecard.read(RESULTS / "scorecard.json")
    tasks = list(card.tasks)
    rows = []
    for name, lines in _models(card).items():
        first = next(iter(lines.values()))
        speed = card.speeds.get(name, {}).get("times_real_time", {}).get("10 s")
        interval = lines[scorecard.PARTS].intervals["mean"] if scorecard.PARTS in lines else None
        rows.append([
            name, "-" if first.parameters is None else f"{first.parameters / 1e6:.2g}",
            *(_both(lines, lambda line, task=task: line.scores[task]) for task in tasks),  # type: ignore[misc]
            _both(lines, partial(scorecard.mean_of, tasks=tasks)),
            f"{_share(interval[0])} to {_share(interval[1])}" if interval else "",
            "-" if speed is None else _digits(speed),
        ])  # fmt: skip
    rows.append(["chance", "", *(_share(1 / card.tasks[task]["classes"]) for task in tasks), "", "", ""])
    columns = ["model", "M params", *tasks, "mean", "95 % (parts)", "x real time"]
    return _table(card.lines[0].measured, columns, rows)


def _retrieval() -> str:
    card = scorecard.read(RESULTS / "scorecard.json")
    tasks = list(card.tasks)

    def score(line: scorecard.Line, task: str, metric: str = "mAP") -> float:
        return float(line.retrieval[SIMILARITY]["scores"][metric][task])

    def mean(line: scorecard.Line, metric: str) -> float:
        return sum(score(line, task, metric) for task in tasks) / len(tasks)

    rows = [
        [name, *(_both(lines, partial(score, task=task)) for task in tasks),
         _both(lines, partial(mean, metric="mAP")), _both(lines, partial(mean, metric="precision_at_10"))]
        for name, lines in _models(card).items()
    ]  # fmt: skip
    return _table(card.lines[0].measured, ["model", *tasks, "mean", "P@10"], rows)


def _similarity() -> str:
    card = scorecard.read(RESULTS / "scorecard.json")

    def mean(line: scorecard.Line, kind: str) -> float:
        scores = line.retrieval[kind]["scores"]["mAP"]
        return float(sum(scores.values()) / len(scores))

    rows = [
        [name, *(_both(lines, partial(mean, kind=kind)) for kind in SIMILARITIES)]
        for name, lines in _models(card).items()
    ]
    return _table(card.lines[0].measured, ["model", *SIMILARITIES], rows)


def _peer_speed() -> str:
    speeds = scorecard.read(RESULTS / "scorecard.json").speeds
    cases = ["1 s", "1 s, parts", "10 s, parts"]
    rows = [[name, *(_digits(own["times_real_time"][case]) for case in cases)] for name, own in speeds.items()]
    return _table(next(iter(speeds.values())), ["model", *cases], rows)


def _finetuning() -> str:
    found = _read("finetuning")
    rows = [
        [row["task"], f"`{row['recipe']}`", f"{row['rounds']} ({row['seconds']} s)", _share(row["shipped"]),
         _share(row["scratch"]), f"{row['shipped'] - row['scratch']:+.3f}"]
        for row in found["rows"]
    ]  # fmt: skip
    columns = ["task", "recipe", "rounds (all of them)", "shipped weights", "from scratch", "difference"]
    return _table(found["environment"], columns, rows)


def _adapt() -> str:
    found = _read("adapt")
    arms: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, row in found["rows"].items():
        arms.setdefault(tuple(key.split("/")[:2]), []).append(row)
    rows = []
    for task in dict.fromkeys(task for task, _ in arms):
        for arm in ("logmel", "start", "adapt", "half", "scratch"):
            own = arms[task, arm]
            cells = []
            for readout in ("clip", "parts"):
                cells.append(_share(mean(row["scores"][readout] for row in own)))
                differences = [row["difference"][readout] for row in own if "difference" in row]
                middle, low, high = zip(*differences, strict=True) if differences else ((), (), ())
                cells.append(f"{mean(middle):+.3f} ({min(low):+.3f} to {max(high):+.3f})" if middle else "")
            rows.append([task, arm, str(len(own)), *cells])
    columns = ["task", "model", "runs", "`clip`", "to the start", "`parts`", "to the start"]
    return _table(found["where"], columns, rows)


def _needles() -> str:
    found = _read("needle/summary")
    sides = found["options"]["sides"]
    rows = []
    for minutes in found["options"]["minutes"]:
        cells = []
        for side in sides:
            own = [s for s in found["scores"] if (s["minutes"], s["side"], s["rule"]) == (minutes, side, "matched")]
            count = sum(score["trials"] for score in own)
            cells.append(" / ".join(f"{100 * sum(s[k] for s in own) / count:.0f}" for k in ("first", "five")))
        chance = sum(score["chance"] * score["trials"] for score in own) / count
        rows.append([f"{minutes:g} min", *cells, f"{100 * chance:.2g}"])
    return _table(found["environment"], ["recording", *sides, "chance (first)"], rows)


def _long() -> str:
    found = _read("long_official/long")
    rows = [
        [one["context"], f"{one['seconds']:.0f} s", f"{one['process_bytes'] / 1e6:,.0f}",
         f"{one['peak_bytes'] / 1e6:,.0f}"]
        for one in found["passes"]
    ]  # fmt: skip
    return _table(found["environment"], ["context", "time", "whole process, MB", "beyond the model, MB"], rows)


def _events() -> str:
    found = _read("events")
    rows = [
        [f"{level} dB", *(" / ".join(_share(own[side][k]) for k in ("precision", "recall"))
                          for side in ("before", "windows", "background"))]
        for level, own in found["found"].items()
    ]  # fmt: skip
    columns = ["level over the ambience", "whole windows of 10.24 s", "windows as long as the clips",
               "these, with `--background`"]  # fmt: skip
    return _table(found["environment"], columns, rows)


def _pretraining() -> str:
    found = _read("pretraining")
    steps = found["step_s"]
    slowest = max(steps.values())
    rows = [[name, f"{1000 * s:,.0f}", f"{slowest / s:.2f} x"] for name, s in steps.items()]
    return _table(found, ["step", "median, ms", "speed-up"], rows)


def _variants() -> str:
    found = _read("variants")["rows"]
    rows = []
    for name, row in found.items():
        held_out = row.get("held_out", {})
        clips = f"{row['clips']:,}" if "clips" in row else ""
        values = (held_out.get(f"{key}@300") for key in ("discriminative", "accuracy", "generative"))
        rows.append([name, clips, *map(_share, values), _share(row["scores"]["mean"])])
    facts = next(iter(found.values()))["where"]
    return _table(facts, ["run", "clips", "InfoNCE", "its accuracy", "MSE", "inner score"], rows)


def _data() -> str:
    found = _read("data")
    rows = [
        [name, _digits(own["write"]["hours_per_core_hour"]), *(_digits(own["read"][k]) for k in ("core", "wall")),
         " / ".join(f"{100 * (1 - own['filled'][k]):.0f}" for k in ("join", "bucket", "pad"))]
        for name, own in found["corpora"].items()
    ]  # fmt: skip
    columns = ["corpus", "shards written", "read, one core", "read, two workers",
               "padding, %: joined / bucketed / padded"]  # fmt: skip
    return _table(found, columns, rows)


def _readouts() -> str:
    words, others = _read("readouts_proxy_words"), _read("readouts_proxy")
    spoken = {(row["model"], row["readout"]): row["scores"] for row in words["rows"]}
    tasks = ["words", *others["tasks"]]
    rows = []
    for row in others["rows"]:
        scores = {**spoken[row["model"], row["readout"]], **row["scores"]}
        rows.append([row["model"], row["readout"], *(_share(scores[task]) for task in tasks),
                     _share(sum(scores[task] for task in tasks) / len(tasks))])  # fmt: skip
    rows.sort()
    return _table(others, ["model", "readout", *tasks, "mean"], rows)


def _above_band() -> str:
    found = _read("above_band")
    rows = [
        [row["what"], str(row["count"]), *(_share(row[q]) if row[q] < 1 else "1" for q in ("q5", "q50", "q95")),
         str(row["warned"])]
        for row in found["rows"]
    ]  # fmt: skip
    return _table(found, ["recordings", "number", "5 %", "median", "95 %", "warned of"], rows)


def _fuzzer() -> str:
    found = _read("header_fuzzer")
    totals: dict[str, dict[str, int]] = {}
    for name, counts in found["counts"].items():
        own = totals.setdefault(name.split(" / ")[0], {})
        for outcome, count in counts.items():
            own[outcome] = own.get(outcome, 0) + count
    outcomes = ["whole", "warned", "skipped", "silently short", "wrong"]
    rows = [
        [name, f"{sum(own.values()):,}", *(f"{own.get(outcome, 0):,}" for outcome in outcomes)]
        for name, own in totals.items()
    ]
    columns = ["format", "files", "whole", "whole, with a warning", "skipped, with a reason", *outcomes[3:]]
    return _table({**found, "threads": 1}, columns, rows)


def _kills() -> str:
    found = _read("kills")
    lost, saved = found["lost_s"], found["killed while saving"] + found["killed after saving"]
    columns = ["runs", "kills", "of these while or after saving", "lost, median / largest", "models equal, bit for bit"]
    rows = [[str(found["rounds"]), str(found["kills"]), str(saved), f"{lost['median']} s / {lost['largest']} s",
             f"{found['models_equal_to_the_reference']} of {found['rounds']}"]]  # fmt: skip
    facts = {"processor": "AMD EPYC", "threads": 1, "torch": "2.13.0", "date": "2026-11-30", **found}
    return _table(facts, columns, rows)


def _onnx_speed() -> str:
    found = _read("onnx")
    rows = []
    for row in found["speed"]:
        what, *times, ratio = row.values()
        rows.append([what, *map(_digits, times), f"{ratio:.1f}"])
    facts = {**found, "torch": f"{found['torch'].split('+')[0]}, onnxruntime {found['onnxruntime']}"}
    return _table(facts, [*list(found["speed"][0])[:3], "ratio"], rows)


def _onnx_storage() -> str:
    found = _read("onnx")
    rows = [[row["stored as"], *(f"{value:.2g}" for value in list(row.values())[1:])] for row in found["storage"]]
    return _table(found, list(found["storage"][0]), rows)


def _nodes() -> str:
    found = _read("nodes")
    killed = {"none": "none", "second": "the second", "first": "the first, with the rendezvous",
              "elastic": "the second, `--nnodes 1:2`"}  # fmt: skip
    rows = [
        [killed[name], ", ".join(f"{session['step']} ({session['processes']})" for session in run["sessions"]),
         f"{run['held_out_loss']:.4f}", f"{run['relative_difference']:.1g}", f"{run['seconds']:.0f}"]
        for name, run in found["runs"].items()
    ]  # fmt: skip
    columns = ["killed", "sessions began at step (processes)", "held-out loss", "largest difference of a weight", "s"]
    facts = {"processor": "AMD EPYC", "threads": 1, "torch": "2.13.0", "date": "2026-11-30", **found}
    return _table(facts, columns, rows)


def _busy() -> str:
    found = _read("busy")
    medians = found["medians_ms"]
    rows = [[name, *(f"{medians[state][name]:.0f}" for state in medians)] for name in medians["quiet"]]
    return _table(found["environment"], ["ten seconds through the encoder, ms", *medians], rows)


def _browser() -> str:
    found = _read("browser")
    keys = ("ready", "model", "shown")
    rows = [
        [name, f"{one['megabytes']:.0f} MB", *(f"{one[key] / 1000:.2f} s" for key in keys), f"{one['cosine']:.6f}"]
        for name, one in found["pages"].items()
    ]
    rows.append(["PyTorch", "", "", f"{found['torch_ms'] / 1000:.2f} s", "", ""])
    columns = ["weights", "page", "opened until ready", "10.24 s, model alone", "10.24 s, file to picture", "cosine"]
    return _table(found["environment"], columns, rows)


def _ray_rates() -> str:
    found = _read("ray_engine")["rate"]
    rows = [
        [name, f"{one['real_time']:.0f}", f"{one['real_time'] / found['environment']['threads']:.0f}",
         f"{one['start_s']:.0f} s"]
        for name, one in found["engines"].items()
    ]  # fmt: skip
    columns = ["engine", "times real time, two cores", "for each core", "first tenth done after"]
    return _table(found["environment"], columns, rows)


def _ray_faults() -> str:
    found = _read("ray_engine")["faults"]
    cases = found["cases"]
    rows = [[name, *("yes" if one is True else str(one) for one in case.values())] for name, case in cases.items()]
    return _table(found["environment"], ["case", *next(iter(cases.values()))], rows)


TABLES: dict[str, Callable[[], str]] = {
    "front": _front,
    "embedding": _embedding,
    "memory": _memory,
    "efficiency": _efficiency,
    "accuracy": _accuracy,
    "retrieval": _retrieval,
    "similarity": _similarity,
    "peer-speed": _peer_speed,
    "finetuning": _finetuning,
    "adapt": _adapt,
    "needles": _needles,
    "long": _long,
    "events": _events,
    "pretraining": _pretraining,
    "variants": _variants,
    "data": _data,
    "readouts": _readouts,
    "above-band": _above_band,
    "fuzzer": _fuzzer,
    "kills": _kills,
    "ray-rates": _ray_rates,
    "ray-faults": _ray_faults,
    "nodes": _nodes,
    "busy": _busy,
    "browser": _browser,
    "onnx-speed": _onnx_speed,
    "onnx-storage": _onnx_storage,
    "encoder-zen5": partial(_encoder, "encoder_zen5", "encoder_zen5_scans", "encoder_zen5_blocks"),
    "encoder-zen5-kept": partial(_encoder, "encoder_zen5_kept"),
    "encoder-zen4": partial(_encoder, "encoder_zen4"),
    "encoder-xeon": partial(_encoder, "encoder_xeon"),
    "scan-zen5": partial(_scan, "scan_zen5"),
    "scan-zen4": partial(_scan, "scan_zen4"),
    "sizes-zen5": partial(_study, "efficiency_zen5_sizes", "inference"),
    "paper-zen5": partial(_study, "efficiency_paper_zen5", "inference"),
    "training-zen5": partial(_study, "efficiency_zen5", "training"),
    "training-sizes-zen5": partial(_study, "efficiency_zen5_training", "training"),
    "length-zen4": partial(_study, "efficiency_zen4", "inference"),
    "training-zen4": partial(_study, "efficiency_zen4", "training"),
}
"""The tables by name."""


def main() -> None:
    """Write the tables of all pages again."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            write_atomically(page, partial(Path.write_text, data=new, encoding="utf-8"))
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
