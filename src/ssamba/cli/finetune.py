"""`ssamba finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssamba.cli.app import (
    EXIT_CODES,
    BatchSizeOption,
    ChangesOption,
    DeviceOption,
    EncodingOption,
    EpochsOption,
    FrontEndOption,
    LabelsFromOption,
    MinutesOption,
    RecipeOption,
    RunOverwriteOption,
    SeedOption,
    TakeOverOption,
    TensorBoardOption,
    app,
    log,
    no_model_name,
    only_rank_0_prints,
    say,
)
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Recipes[/]: cpu (any sounds; the default without a GPU), cpu-speech (words, independent of the "
    "speaker), audioset20k, esc50, iemocap, speech-commands-v1, speech-commands-v2, "
    "urbansound8k-1min, voxceleb1; and official-NAME of each of these "
    "data sets, with the settings of the original.\n\n"
    "[bold]Examples[/]\n\n"
    "ssamba finetune birds/ -o runs/birds   (birds/ has a folder for each class)\n\n"
    "ssamba finetune birds/ -o runs/birds --background nights/   (nights/ has none of their calls)\n\n"
    "ssamba finetune surveys/ -o runs/birds --labels-from 3   (surveys/SITE/DATE/CLASS/a.wav)\n\n"
    "ssamba finetune manifest.parquet -o runs/mine --recipe cpu --minutes 10\n\n"
    "ssamba finetune esc50.csv -o runs/esc50 -c ssamba_base.pth --recipe official-esc50\n\n"
    "ssamba finetune manifest.csv -o runs/probe --frozen\n\n"
    "ssamba finetune bats/ -o runs/bats --front-end x10   (time expansion: to 80 kHz)\n\n"
    "torchrun --nproc-per-node 8 -m ssamba finetune audioset.parquet -o runs/as20k --recipe audioset20k\n\n"
    + EXIT_CODES
)
def finetune(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            callback=no_model_name,
            help="Folders with one folder per class, manifests with labels, folders of shards, or hf:OWNER/NAME.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="Folder of the results; RUN/model is the classifier.",
            show_default=False,
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="START",
            help="Model to start from: a name (see `ssamba models`), a folder of a run or checkpoint, an official .pth "
            "file, or hf:OWNER/NAME. Default: the weights that ship with ssamba.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    changes: ChangesOption = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights, for comparison.")] = False,
    frozen: Annotated[bool, typer.Option("--frozen", help="Train only the classifier.")] = False,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = None,
    front_end: FrontEndOption = None,
    encoding: EncodingOption = None,
    background: Annotated[
        list[str] | None,
        typer.Option(
            "--background",
            metavar="RECORDINGS",
            help="Recordings without any of the classes, such as whole nights: a folder, a file or a manifest; may be "
            'repeated. Windows of them become the class "background", "none of the others".',
        ),
    ] = None,
    labels_from: LabelsFromOption = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Train the final classifier on all clips, test clips included, after the test. "
            "[dim]\\[default: as the recipe says: yes, but no for public data sets][/]",
            show_default=False,
        ),
    ] = None,
    tensorboard: TensorBoardOption = False,
    overwrite: RunOverwriteOption = False,
    take_over: TakeOverOption = False,
) -> None:
    """Fine-tune a pretrained encoder on labeled recordings, and test it.

    Splits are those of the manifest (train, valid, test, or folds, which are cross-validated). Without splits, test and
    validation clips are held out by groups, stratified by class. Repeat the command to resume after an interruption.
    Test scores with 95 % intervals are in RUN/results.json, scores of each class in RUN/classes.csv, the confusion
    matrix in RUN/confusion.png; with folds, the last two are also in RUN/rounds/FOLD.
    """
    from ssamba.training.finetuning.run import finetune as run

    only_rank_0_prints()
    with ProgressDisplay() as progress:
        report = run(
            data,
            output,
            checkpoint,
            recipe=recipe,
            set=changes,
            scratch=scratch,
            frozen=frozen,
            minutes=minutes,
            epochs=epochs,
            seed=seed,
            batch_size=batch_size,
            device=device,
            front_end=front_end,
            encoding=encoding,
            background=background or None,
            labels_from=labels_from,
            refit=refit,
            tensorboard=tensorboard,
            overwrite=overwrite,
            take_over=take_over,
            progress=progress,
        )
    for note in report.notes:
        log.info(f"note: {note}")
    say(str(report))
