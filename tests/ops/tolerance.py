"""How far a kernel may be from exact, and memory that shows what it leaves out."""

from __future__ import annotations

from contextlib import contextmanager

import torch

# What a kernel may lose, relative to a result's largest value: twice what the reference operations lose in the same
# dtype on the same inputs, and this much more.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 2e-3}


@contextmanager
def poison():
    """Fill every new tensor with NaN, so that an element which a kernel leaves out shows up."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1).new_empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def loss(result, exact, terms=None):
    """Return the largest error relative to the largest exact value (at least 1e-25); infinite if not finite.

    Where `exact` is the sum of `terms` over clips and steps, it may cancel to nearly nothing: it then counts as large
    as a random walk with these terms goes.
    """
    if exact.numel() == 0:
        return 0.0
    size = exact.abs().max().clamp(min=1e-25)
    if terms is not None:
        size = torch.maximum(size, terms.square().sum((0, 1)).sqrt().max())
    error = (result.double() - exact).abs().max() / size
    return error.item() if torch.isfinite(error) else float("inf")
