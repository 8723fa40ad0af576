"""`ssamba pretrain`."""

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
    MinutesOption,
    RecipeOption,
    RunOverwriteOption,
    SeedOption,
    TakeOverOption,
    TensorBoardOption,
    app,
    no_model_name,
    only_rank_0_prints,
    say,
)
from ssamba.cli.progress import ProgressDisplay


@app.command(
    epilog="[bold]Recipes[/]: laptop, one-gpu, many-nodes, official; adapt, with -c: go on from a model.\n\n"
    "[bold]Examples[/]\n\n"
    "ssamba pretrain recordings/ -o runs/mine --minutes 60\n\n"
    "ssamba pretrain recordings/ -o runs/more -c ssamba2-tiny --epochs 5   (start from a model's weights)\n\n"
    "ssamba pretrain recordings/ -o runs/adapted -c ssamba2-tiny --recipe adapt --evaluate labeled.csv\n\n"
    "ssamba pretrain audioset/ librispeech/ -o runs/base --recipe official --size base --set masking.count=250\n\n"
    "torchrun --nproc-per-node 8 -m ssamba pretrain shards/ -o runs/eight --recipe one-gpu\n\n" + EXIT_CODES
)
def pretrain(
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            callback=no_model_name,
            help="Folders of audio, manifests, folders of shards, or hf:OWNER/NAME.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="RUN", help="Folder of the run; RUN/model is the model.", show_default=False
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="START",
            help="Model whose weights training starts from, with its structure: a name (see `ssamba models`), a folder "
            "of a run or checkpoint, an official .pth file, or hf:OWNER/NAME. Default: random weights.",
        ),
    ] = None,
    recipe: RecipeOption = None,
    changes: ChangesOption = None,
    size: Annotated[str | None, typer.Option(help="tiny, small or base. Default: the recipe's, else tiny.")] = None,
    minutes: MinutesOption = None,
    epochs: EpochsOption = None,
    seed: SeedOption = None,
    batch_size: BatchSizeOption = None,
    device: DeviceOption = None,
    front_end: FrontEndOption = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--evaluate",
            metavar="TASK.csv",
            help="Labeled recordings (columns clip, label, split, group): when the run is finished, compare the model "
            "with the one that it started from by linear probes. Without START, with log-mel statistics.",
            show_default=False,
        ),
    ] = None,
    encoding: EncodingOption = None,
    tensorboard: TensorBoardOption = False,
    overwrite: RunOverwriteOption = False,
    take_over: TakeOverOption = False,
) -> None:
    """Pretrain an encoder on unlabeled recordings.

    Repeat the command to resume after an interruption. Recordings that cannot be read are listed in RUN/skipped.csv;
    RUN/log.jsonl and RUN/pictures/ show the progress.
    """
    from ssamba.training.pretraining.run import pretrain as run

    only_rank_0_prints()
    with ProgressDisplay() as progress:
        report = run(
            data,
            output,
            checkpoint,
            recipe=recipe,
            set=changes,
            size=size,
            minutes=minutes,
            epochs=epochs,
            seed=seed,
            batch_size=batch_size,
            device=device,
            front_end=front_end,
            encoding=encoding,
            tensorboard=tensorboard,
            evaluate=evaluate,
            overwrite=overwrite,
            take_over=take_over,
            progress=progress,
        )
    say(str(report))
