"""One step across all processes: gradients of every share, their mean over all terms, and what the processes agree on.

With w_i terms and mean loss l_i in share i, each share adds the gradient of w_i l_i; the sum over shares is divided by
the sum of w_i only then, when it is known. One small exchange carries the sums, signals and the clock, and one transfer
brings them to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.randomness import seed_generators
from ssamba.training.distributed import World, backward_zeros, no_sync
from ssamba.training.task import StepContext, StepOutcome, Task


@dataclass(frozen=True)
class Agreement:
    """What every process knows after a step, the same in each."""

    weight: float
    """Terms of the step, over all shares."""
    loss: float
    """Their mean."""
    grad_norm: float
    """Euclidean norm of the mean's gradient."""
    signal: str | None
    """A signal that came to any process."""
    elapsed_s: float
    """The first process's clock."""
    save_is_due: bool
    """By the first process's clock."""

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient may be used."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def accumulate_gradients(
    task: Task, model: nn.Module, batches: Sequence[Any], context: StepContext, world: World
) -> list[StepOutcome]:
    """Add up the gradients of w l over this process's shares; with several processes they become means over these.

    Returns:
        The outcomes, their losses without graphs.
    """
    outcomes = []
    for part, batch in enumerate(batches, start=1):
        seed_generators(context.seed, context.step, part, world.rank)
        is_last = part == len(batches)
        with no_sync(model, not is_last):
            outcome = task.step_loss(model, batch, context)
            loss, weight = outcome.loss, outcome.weight
            if loss is not None and weight > 0:
                (loss * weight).backward()  # type: ignore[no-untyped-call]
            elif is_last:
                backward_zeros(model)
        outcomes.append(replace(outcome, loss=None if loss is None else loss.detach()))
    return outcomes


def agree(
    outcomes: Sequence[StepOutcome],
    gradients: Sequence[Tensor],
    world: World,
    *,
    signal: str | None,
    elapsed_s: float,
    save_is_due: bool,
) -> Agreement:
    """Exchange a step's sums. The clock and the wish to save are the first process's."""
    weights = [outcome.weight for outcome in outcomes]
    first = float(world.is_main)
    own = [sum(weights), 0.0, signal == "SIGTERM", signal == "SIGINT", first * elapsed_s, first * save_is_due]
    kind = torch.float32 if world.device.type == "mps" else torch.float64
    sums = torch.tensor(own, dtype=kind).to(world.device)
    for outcome, weight in zip(outcomes, weights, strict=True):
        if outcome.loss is not None and weight > 0:
            sums[1] += outcome.loss.to(kind) * weight
    world.all_reduce(sums)
    norm = torch.nn.utils.get_total_norm(gradients).to(sums)
    weight, loss, terminated, interrupted, clock_s, due, size = torch.cat((sums, norm[None])).tolist()
    per_term = 1 / weight if weight else math.nan
    return Agreement(
        weight=weight,
        loss=loss * per_term,
        grad_norm=size * world.size * per_term,
        signal="SIGTERM" if terminated else "SIGINT" if interrupted else None,
        elapsed_s=clock_s,
        save_is_due=bool(due),
    )


def scale_gradients(gradients: Sequence[Tensor], agreed: Agreement, world: World, clip_norm: float | None) -> None:
    """Make sums into the gradient of the mean loss, no longer than `clip_norm`."""
    scale = world.size / agreed.weight
    if clip_norm is not None and agreed.grad_norm > clip_norm:
        scale *= clip_norm / agreed.grad_norm
    if scale != 1:
        torch._foreach_mul_(list(gradients), scale)


def keys_of_bad_shares(outcomes: Sequence[StepOutcome], world: World) -> tuple[str, ...]:
    """Clips of the shares, of all processes, whose loss is not finite; all clips if only the gradient is not."""
    everything = [(bool(o.loss is not None and not torch.isfinite(o.loss)), tuple(o.keys)) for o in outcomes]
    shares = [share for process in world.all_gather(everything) for share in process]
    suspects = [keys for bad, keys in shares if bad] or [keys for _, keys in shares]
    return tuple(key for keys in suspects for key in keys)
