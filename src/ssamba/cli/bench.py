"""`ssamba bench`: what the models cost."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ssamba.cli.app import EXIT_CODES, EXIT_INTERRUPTED, app, err, fail, out

if TYPE_CHECKING:
    from ssamba.studies.efficiency import Progress, Study

bench = typer.Typer(
    name="bench", help="Measure what the models cost.", no_args_is_help=True, rich_markup_mode="rich", epilog=EXIT_CODES
)
app.add_typer(bench)


@bench.callback()
def _bench() -> None:
    """Measure what the models cost."""


@bench.command(
    epilog="[bold]Examples[/]\n\n"
    "ssamba bench efficiency -o cost/\n\n"
    "ssamba bench efficiency --sizes tiny --patches 512:8192 --batch 1 --passes inference\n\n"
    "ssamba bench efficiency --paper --device cuda\n\n" + EXIT_CODES
)
def efficiency(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for efficiency.json, efficiency.md and pictures.")
    ] = Path("efficiency"),
    sizes: Annotated[str | None, typer.Option(help="Sizes of both models. [dim]Default: tiny,small,base[/]")] = None,
    patches: Annotated[
        str | None,
        typer.Option(
            help="Numbers of patches: 512,2048, or 512:32768 for every doubling (512 patches are 10 s). "
            "[dim]Default: 512:32768[/]"
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Clips in a batch. [dim]Default: 1,4[/]")] = None,
    passes: Annotated[
        str | None,
        typer.Option(help="inference, training (forward and backward). [dim]Default: inference,training[/]"),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(
            help="ssamba-fp32, ssamba-bf16, ssast-fp32, ssast-bf16 (fused attention), ssast-unfused-fp32, "
            "ssast-unfused-bf16. [dim]Default: all but the last[/]"
        ),
    ] = None,
    throughput: Annotated[
        bool | None,
        typer.Option("--throughput/--no-throughput", help="Search the batch size with the most clips per second."),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's setting: batches of 4 and 2, fp32, inference, up to 40,704 patches."),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on the CPU. Default: torch's own choice.")] = None,
    budget_s: Annotated[float, typer.Option("--budget-s", help="A side stops after a call that took longer.")] = 20.0,
    each_s: Annotated[float, typer.Option("--each-s", help="About how long a side is repeated at one shape.")] = 2.0,
    depth: Annotated[int | None, typer.Option(help="So many blocks only, to try the command out.", hidden=True)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a study that is there.")] = False,
) -> None:
    """Time and memory of SSAMBA and SSAST over input length, for inference and training, and where they cross.

    A side that runs out of memory or past its budget stops, and the others go on. An interrupted study keeps what it
    measured: repeat the command to go on.
    """
    import torch

    from ssamba.errors import ConfigError
    from ssamba.studies.efficiency import EfficiencyOptions, measure_efficiency
    from ssamba.studies.efficiency_report import crossovers, growths, read_study, save_study

    asked = {
        "sizes": words(sizes),
        "patches": None if patches is None else parse_patches(patches),
        "batches": None if batch is None else integers(batch, "--batch"),
        "passes": words(passes),
        "sides": words(sides),
        "throughput": throughput,
        "depth": depth,
    }
    values: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    values |= {"device": device, "budget_s": budget_s, "each_s": each_s}
    try:
        make = EfficiencyOptions.paper if paper else lambda **v: EfficiencyOptions.parse(v, "bench efficiency")
        options = make(**values)
    except (ConfigError, RuntimeError) as error:  # torch's, for a device of no known kind
        raise typer.BadParameter(str(error).splitlines()[0]) from None
    before = read_study(output) if (output / "efficiency.json").exists() and not overwrite else None
    if before is not None and before.finished:
        fail(f"{output} holds a study already: choose another folder, or --overwrite")
    if threads is not None:
        torch.set_num_threads(threads)
    latest: list[Study] = []
    with _ProgressBar() as bar:

        def show(progress: Progress, study: Study) -> None:
            bar.update(progress)
            latest[:] = [study]
            save_study(study, output, pictures=False)

        try:
            study = measure_efficiency(options, show, before=before)
        except ConfigError as error:
            bar.stop()
            fail(f"{output}: {error}; choose another folder, or --overwrite")
        except KeyboardInterrupt:
            bar.stop()
            files = save_study(latest[0], output) if latest else []
            kept = f": what was measured is in {output}" if files else ""
            err.print(f"[yellow]interrupted[/]{escape(kept)}", soft_wrap=True)
            sys.exit(EXIT_INTERRUPTED)
    for found in crossovers(study):
        what = f"{found.size}, {found.mode}, batch {found.batch}: {found}"
        out.print(escape(what), highlight=False, soft_wrap=True)
    for grown in growths(study):
        if grown.quantity == "time":
            what = f"{grown.size}, {grown.mode}, batch {grown.batch}: the time of {grown.side} grows with patches^{grown.exponent:.2f}"
            out.print(escape(f"{what} from {grown.first:,} to {grown.last:,}"), highlight=False, soft_wrap=True)
    for path in save_study(study, output):
        out.print(escape(str(path)), highlight=False, soft_wrap=True)


def parse_patches(text: str) -> tuple[int, ...]:
    """`512,2048` as it stands; `512:32768` every doubling from the first up to the second, which is included."""
    if ":" not in text:
        return integers(text, "--patches")
    ends = integers(text.replace(":", ","), "--patches")
    if len(ends) != 2 or not 0 < ends[0] <= ends[1]:
        raise typer.BadParameter(f"--patches: expected FIRST:LAST with FIRST up to LAST, got {text!r}")
    counts = [ends[0]]
    while counts[-1] * 2 < ends[1]:
        counts.append(counts[-1] * 2)
    return (*counts, ends[1]) if ends[1] > counts[-1] else tuple(counts)


def integers(text: str, option: str) -> tuple[int, ...]:
    """`1,2,3`; wrong usage says which option is meant."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option}: expected whole numbers with commas between, got {text!r}") from None


def numbers(text: str, option: str) -> tuple[float, ...]:
    """`1,2.5,60`; wrong usage says which option is meant."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option}: expected numbers with commas between, got {text!r}") from None


def words(text: str | None) -> tuple[str, ...] | None:
    """`a,b`; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(","))


class _ProgressBar:
    """Shapes measured, the one under way, and the time left, on standard error when it is a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("measuring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("shapes  [cyan]{task.fields[what]}[/]  left:"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, what="")

    def __enter__(self) -> _ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def update(self, state: Progress) -> None:
        """Show how far the study is."""
        self._progress.update(self._task, total=state.total, completed=state.done, what=state.what)
