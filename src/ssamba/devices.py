"""Devices by name, and modules moved to them, with errors that say which devices there are."""

from __future__ import annotations

import reprlib

import torch
from torch import nn

from ssamba.errors import ConfigError


def parse_device(device: str | int | torch.device) -> torch.device:
    """Return the device that a name stands for; it need not exist here.

    Raises:
        ConfigError: it does not name a device.
    """
    if isinstance(device, torch.dtype):
        raise ConfigError(f"a device is expected, got {device}: to convert the encoder, model.encoder.to({device})")
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        got = reprlib.repr(device)
        raise ConfigError(f"device must be 'cpu', 'cuda', 'cuda:1' or the like, got {got}") from None


def move_to(module: nn.Module, device: str | int | torch.device) -> None:
    """Move a module to a device, in place.

    Raises:
        ConfigError: `device` does not name a device, or it holds no numbers.
        ValueError: there is no such device here.
    """
    place = parse_device(device)
    if place.type == "meta":
        raise ConfigError("device='meta' holds no weights, so nothing can be computed there")
    try:
        module.to(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        here = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device={str(place)!r} cannot be used here ({reason}). Choose from: {here}") from None
