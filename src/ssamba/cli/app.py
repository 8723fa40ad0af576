"""Shared by all commands: the application, global options, logging, exit codes, and common options."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from ssamba import __version__
from ssamba.errors import ConfigError, OtherSettingsError, SkippedFilesError, SsambaError
from ssamba.files import finite, json_text, utf8_text
from ssamba.progress import format_duration as format_duration

if TYPE_CHECKING:
    from types import FrameType

    from ssamba.audio.files import Remark, Skipped

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_SKIPPED = 3
EXIT_INTERRUPTED = 130

EXIT_CODES = (
    "Exit codes: 0 done; 1 an error (the message says what to do); 2 wrong usage; "
    "3 with --strict, some files were skipped; 130 interrupted."
)


class _PipeConsole(Console):
    """A console whose reader may go away, as `head` does.

    When nobody reads the results any more, the command ends quietly; messages that nobody reads do not end a job.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        try:
            super().print(*objects, **options)
        except BrokenPipeError:  # before rich 13.9, which calls the method below
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _discard(sys.stderr if self.stderr else sys.stdout)
        if not self.stderr:
            sys.exit(0)


def _discard(stream: TextIO) -> None:
    """Let a stream whose reader has gone lead nowhere, also what it still holds when the interpreter ends."""
    with suppress(OSError, ValueError):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


out = _PipeConsole()
err = _PipeConsole(stderr=True)
log = logging.getLogger("ssamba")

_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
UsageError: Any = typer.BadParameter.__base__
"""Base of click's errors of wrong usage, which typer does not hand on."""
_MAX_SKIPPED_SHOWN = 10
_GUESSED_OPTIONS = {
    **dict.fromkeys(("--model", "--model-name", "--ckpt", "--pretrained"), ("--checkpoint", "use -c, --checkpoint")),
    **dict.fromkeys(("--out", "--output-dir", "--output_dir", "--out-dir", "--save"), ("--output", "use -o, --output")),
    **dict.fromkeys(("--force", "--restart"), ("--overwrite", "use --overwrite")),
    **dict.fromkeys(
        ("--resume", "--no-resume"), ("--overwrite", "repeat the command to resume, or --overwrite to start anew")
    ),
    **dict.fromkeys(("--gpu", "--cuda"), ("--device", "use --device cuda")),
    **dict.fromkeys(("--num-workers", "--num_workers", "--jobs"), ("--workers", "use --workers")),
    **dict.fromkeys(("--lr", "--learning-rate"), ("--set", "use --set optimizer.learning_rate=VALUE")),
    "--config": ("--recipe", "use --recipe"),
    "--engine": ("--merge", "embed alone runs on Ray; divide the recordings among the machines"),
}
"""Options of other tools: an option that the command must have, and what to use."""
_STYLES = {"ERROR": "bold red", "WARNING": "yellow", "DEBUG": "dim"}


class _StderrHandler(logging.Handler):
    """Shows messages on standard error, above a progress bar if there is one; or as JSON lines."""

    as_json = False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        if self.as_json:
            write_json_line({"event": "log", "level": record.levelname.lower(), "message": message})
            return
        style = _STYLES.get(record.levelname)
        prefix = f"[{style}]{record.levelname.lower()}:[/] " if style else ""
        err.print(prefix + escape(printable(message)), soft_wrap=True, highlight=False)


HANDLER = _StderrHandler()
_interrupts: list[int] = []  # signals of this command that ended it, or became an error of C++ code


def printable(text: str) -> str:
    r"""Return text that a terminal shows as it is: control characters and bytes in file names become `\x1b`."""
    return _NOT_SHOWN.sub(lambda found: f"\\x{ord(found[0]):02x}", utf8_text(text))


def write_json_line(values: dict[str, Any]) -> None:
    """Write an event of `--log-json` to standard error."""
    line = json_text(finite({"time": round(time.time(), 3), **values}), ascii_only=False)
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _discard(sys.stderr)


def log_to_stderr() -> None:
    """Show what is logged under `ssamba` on standard error, as lines of text."""
    log.setLevel(logging.INFO)
    HANDLER.as_json = False
    if HANDLER not in log.handlers:
        log.addHandler(HANDLER)


def is_quiet() -> bool:
    """Return whether `--quiet` was given: errors and requested data only."""
    return log.level >= logging.ERROR


def raise_interrupt(signum: int, frame: FrameType | None) -> None:
    """Signal handler that ends a job by `KeyboardInterrupt`, but not in the middle of an import.

    PyTorch's C++ parts abort when the modules that they import raise. So the signal comes again a little later.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            _signal_again(signum)
            return
        frame = frame.f_back
    _interrupts.append(signum)
    raise KeyboardInterrupt


def _signal_again(signum: int) -> None:
    again = threading.Timer(0.02, _signal_main_thread, [signum])
    again.daemon = True
    again.start()


@contextmanager
def _no_interrupt_lost() -> Iterator[None]:
    """Let a signal come again that was raised where Python ignores exceptions, such as in `__del__`."""
    before = sys.unraisablehook

    def ignored(unraisable: Any) -> None:
        if _interrupts and issubclass(unraisable.exc_type, KeyboardInterrupt):
            _signal_again(_interrupts.pop())
        else:
            before(unraisable)

    sys.unraisablehook = ignored
    try:
        yield
    finally:
        sys.unraisablehook = before


def ignore_signals() -> None:
    """Ignore the signals that end a job, where `raise_interrupt` handles them."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(signum) is raise_interrupt:
            signal.signal(signum, signal.SIG_IGN)


def _signal_main_thread(signum: int) -> None:
    """Send a signal that also wakes the main thread from a system call."""
    if sys.platform == "win32":
        signal.raise_signal(signum)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, signum)


def fail(message: str, code: int = EXIT_ERROR) -> NoReturn:
    """Log the message as an error and exit."""
    log.error(message)
    sys.exit(code)


class Commands(TyperGroup):
    """A group of commands that all take the global options; errors end in one message and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        shared = [parameter for parameter in self.params if parameter.name in ("verbose", "quiet", "log_json")]
        for command in self.commands.values():
            for one in command.commands.values() if isinstance(command, TyperGroup) else (command,):
                one.params = [*one.params, *shared]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Set up logging to standard error, then parse."""
        for stream in (sys.stdout, sys.stderr):  # letters that a terminal lacks must not end a job
            with suppress(AttributeError, OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        log_to_stderr()
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            _fail_usage(error)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        _interrupts.clear()
        for signum in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(signum) in (signal.default_int_handler, signal.SIG_DFL):
                signal.signal(signum, raise_interrupt)
        try:
            with _no_interrupt_lost(), warnings.catch_warnings():
                warnings.showwarning = _log_warning
                result = super().invoke(ctx)
                sys.stdout.flush()
                return result
        except UsageError as error:
            _fail_usage(error, ctx.invoked_subcommand)
        except SkippedFilesError as error:
            show_report(error.report)
            fail(str(error), EXIT_SKIPPED)
        except BrokenPipeError:
            _discard(sys.stdout)
            sys.exit(0)
        except (SsambaError, OSError, ValueError) as error:
            log.debug("traceback", exc_info=True)
            if _interrupts:
                log.warning("interrupted")
                sys.exit(EXIT_INTERRUPTED)
            wrong_usage = isinstance(error, ConfigError) and not isinstance(error, OtherSettingsError)
            message = _with_options(str(error), self.commands.get(ctx.invoked_subcommand))
            fail(message, EXIT_USAGE if wrong_usage else EXIT_ERROR)
        except KeyboardInterrupt as error:
            log.warning(f"interrupted{f': {error}' if str(error) else ''}")
            sys.exit(EXIT_INTERRUPTED)


def _fail_usage(error: Any, subcommand: str | None = None) -> NoReturn:
    """Exit with code 2 and one line that says what is wrong; without arguments, a group shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    command = error.ctx.command_path if error.ctx else f"ssamba {subcommand}" if subcommand else "ssamba"
    message = _usage_message(error)
    fail(f"{message}{'' if message[-1] in '.?' else '.'} See `{command} --help`", EXIT_USAGE)


def _usage_message(error: Any) -> str:
    """Return what an error of wrong usage says, with the value that was given, or the option that was meant."""
    if hasattr(error, "possibilities"):  # of an unknown option
        guessed = str(error.option_name)
        known = {name for one in error.ctx.command.params for name in one.opts} if error.ctx else set()
        near = sorted(one for one in error.possibilities or () if SequenceMatcher(None, guessed, one).ratio() > 0.65)
        hint = ""
        if _GUESSED_OPTIONS.get(guessed, ("",))[0] in known:
            hint = f": {_GUESSED_OPTIONS[guessed][1]}"
        elif near:
            hint = f". Did you mean {' or '.join(near)}?"
        return f"{error.message}{hint}"
    message = str(error.format_message()).replace("Value error, ", "")
    description = getattr(getattr(error, "param", None), "help", None)
    if type(error).__name__ == "MissingParameter" and description:
        return f"{message.rstrip('.')} ({description.rstrip('.')})"
    problems = getattr(error.__cause__, "errors", None)  # of pydantic, which checks the types of values
    if problems is None:
        return message
    got = problems()[0]["input"]
    shortened = re.sub(", unable to parse string as an? [a-z]+", "", message)
    return f"{shortened.rstrip('.')} (got {got!r})"


def _with_options(message: str, command: Any) -> str:
    """Return a message of a Python function with the command's options in place of arguments in seconds (`gap_s`)."""
    for option in getattr(command, "params", ()):
        message = re.sub(rf"\b{option.name}_s\b", option.opts[0], message)
    return message


def _log_warning(message: Warning | str, *_: object, **__: object) -> None:
    log.warning(str(message))


app = typer.Typer(
    name="ssamba",
    cls=Commands,
    help="Self-supervised audio representations: any recording, any length, on a CPU or a GPU.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        out.print(f"ssamba {__version__}", highlight=False)
        raise typer.Exit


def _set_verbose(wanted: bool) -> None:
    if wanted:
        log.setLevel(logging.DEBUG)


def _set_quiet(wanted: bool) -> None:
    if wanted:
        log.setLevel(logging.ERROR)


def _set_log_json(wanted: bool) -> None:
    if wanted:
        HANDLER.as_json = True


def _global_option(callback: Any, *names: str, help: str) -> Any:
    return typer.Option(
        *names, callback=callback, expose_value=False, is_eager=True, rich_help_panel="Global options", help=help
    )


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    verbose: Annotated[
        bool,
        _global_option(
            _set_verbose,
            "--verbose",
            "-v",
            help="Also what is used, each file or state when it is done, and the traceback of an error.",
        ),
    ] = False,
    quiet: Annotated[
        bool, _global_option(_set_quiet, "--quiet", "-q", help="Errors only: no progress, no summary.")
    ] = False,
    log_json: Annotated[
        bool,
        _global_option(_set_log_json, "--log-json", help="Progress and messages as JSON lines on standard error."),
    ] = False,
) -> None:
    pass


CheckpointOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoint",
        "-c",
        metavar="MODEL",
        help="Name of a model (see `ssamba models`; official ones such as ssamba-tiny-400 are downloaded), folder of a "
        "checkpoint or a run, official .pth file, or hf:OWNER/NAME. Default: ssamba2-tiny.",
    ),
]


def no_model_name(values: Any) -> Any:
    """Refuse the name of a model where recordings belong (callback of arguments)."""
    for value in values if isinstance(values, list) else [values]:
        text = str(value)
        if text.startswith("ssamba"):  # else torch would be imported for nothing
            from ssamba.checkpoint.names import is_model_name

            if is_model_name(text) and not Path(text).exists():
                raise typer.BadParameter(f"{text!r} is the name of a model, which is given with -c")
    return values


RecordingsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RECORDINGS...",
        help="Audio files, folders (searched recursively) and patterns.",
        callback=no_model_name,
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU if available.")]
FrontEndOption = Annotated[
    str | None,
    typer.Option(
        "--front-end",
        metavar="16khz|48khz|xN",
        help="What the model hears: '16khz' to 8 kHz, '48khz' to 24 kHz, 'x10' (time expansion, for bats) to 80 kHz. "
        "Default: the checkpoint's.",
    ),
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start anew; what exists stays until the new result is complete.")
]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Take the output away from another process that is writing it.")
]
DamagedOption = Annotated[
    Literal["skip", "keep"],
    typer.Option(
        "--damaged", help="'skip': leave out files of which a part is missing; 'keep': use what comes before it."
    ),
]
PrecisionOption = Annotated[
    Literal["fp32", "bf16", "auto"], typer.Option("--precision", help="'auto': bf16 on CUDA, fp32 elsewhere.")
]
BatchTokensOption = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens", min=1, help="Patch tokens encoded together. Default: 4096 on a CPU, 32768 on a GPU."
    ),
]
PruneOption = Annotated[bool, typer.Option("--prune", help="Remove the rows of files that are not named this time.")]
ChannelsOption = Annotated[
    str, typer.Option(metavar="mean|NUMBER", help="Average the channels, or take one of them (from 0).")
]
EncodingOption = Annotated[
    str | None,
    typer.Option("--encoding", help="Encoding of CSV and JSON files that are not UTF-8: cp1252, latin-1, utf-16, ..."),
]
LabelsFromOption = Annotated[
    int | None,
    typer.Option(
        "--labels-from",
        metavar="LEVEL",
        min=1,
        help="Level of nested folders whose names are the labels, from 1: of SITE/DATE/CLASS/a.wav it is 3. Needed "
        "where it is not clear; a message then lists the levels.",
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with code 3 if any file was skipped.")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe, e.g. run.seed=1; repeatable."),
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", "-r", help="Name of a shipped recipe (see below), or path of a TOML file."),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        help="Time budget in minutes; replaces the recipe's length. [dim]More than before lengthens a finished run.[/]"
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(help="Number of epochs; replaces the recipe's length. [dim]More lengthens a finished run.[/]"),
]
TensorBoardOption = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write curves for TensorBoard. [dim]tensorboard --logdir RUN shows them.[/]"),
]
SeedOption = Annotated[int | None, typer.Option(help="Seed of everything random.")]
BatchSizeOption = Annotated[int | None, typer.Option(help="Clips in a batch, over all processes.")]
RunOverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Start anew; an earlier run is moved to RUN.old (RUN.old-2, ...).")
]


def only_rank_0_prints() -> None:
    """Be quiet in the processes of `torchrun` other than rank 0."""
    if os.environ.get("RANK", "0") != "0":
        log.setLevel(logging.ERROR)


def parse_numbers(text: str, option: str, kind: Any = float) -> tuple[Any, ...]:
    """Parse `1,2.5,60`; an error names the option."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        expected = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{option}: expected {expected} with commas between, got {text!r}") from None


def parse_seconds(text: str) -> float:
    """Parse a length of time, such as `1s`, `500ms`, `2.5` (seconds) or `1min` (type of options)."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|min|h)?\s*", text)
    if found is None:
        raise typer.BadParameter(f"expected a length of time, such as 1s, 500ms or 1min; got {text!r}")
    return float(found[1]) * {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}[found[2] or "s"]


def parse_channels(text: str) -> Any:
    """Return the number that an option holds, or its text, which the library checks."""
    return int(text) if text.isdecimal() else text


def say(text: str) -> None:
    """Print a line of the result to standard output, unless `--quiet`."""
    if not is_quiet():
        out.print(escape(printable(text)), highlight=False, soft_wrap=True)


def report_skipped(skipped: Sequence[Skipped], report: object = None) -> None:
    """Log the first skipped files, and the path of the full list."""
    for entry in skipped[:_MAX_SKIPPED_SHOWN]:
        log.warning(f"skipped {entry.reason}")
    if len(skipped) > _MAX_SKIPPED_SHOWN:
        log.warning(f"and {len(skipped) - _MAX_SKIPPED_SHOWN} more")
    if skipped and report is not None:
        log.warning(f"all reasons: {report}")


def report_remarks(remarks: Sequence[Remark], report: object = None) -> None:
    """Log the first files that were used although something is wrong with them, and the path of the full list."""
    for entry in remarks[:_MAX_SKIPPED_SHOWN]:
        log.warning(entry.reason)
    if len(remarks) > _MAX_SKIPPED_SHOWN:
        log.warning(f"and {len(remarks) - _MAX_SKIPPED_SHOWN} more")
    if remarks and report is not None:
        log.warning(f"all remarks: {report}")


def show_report(report: Any) -> None:
    """Print the summary of a job (its report as text) and log the files that it skipped or has remarks about.

    Without an output file, standard output is for the results.
    """
    if report.output is None:
        log.info(str(report))
    else:
        say(str(report))
    report_skipped(report.skipped, report.skipped_file)
    # The job has warned about recordings with much above the model's band, once for all.
    remarks = [entry for entry in getattr(report, "remarks", ()) if entry.verdict != "above band"]
    report_remarks(remarks, getattr(report, "remarks_file", None))
