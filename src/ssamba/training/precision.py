"""Which precision trains quickest on a device."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

Precision: TypeAlias = Literal["fp32", "bf16"]


def chosen_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """What `auto` is on a device: bf16 where its arithmetic units compute it, fp32 where it would be emulated.

    Emulation is several times as slow as fp32: CPUs without AVX512_BF16 or AMX, GPUs before Ampere. (Processors other
    than x86 and Apple's GPUs, on which it was not measured, get fp32.)
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Not public, so perhaps not in every PyTorch.
        units = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
        return "bf16" if any(unit() for unit in units) else "fp32"
    return "fp32"
