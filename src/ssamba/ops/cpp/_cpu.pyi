"""Types of the C++ extension (csrc/module.cpp). Addresses of 0 mean absent; sizes are those of the kernels' loops.

The first arguments of a kernel are an instruction set (one of `capabilities()`) and a number of threads.
"""

from ssamba.ops.cpp.extension import Rows as _Rows
from ssamba.ops.cpp.extension import Sizes as _Sizes
from ssamba.ops.cpp.extension import Steps as _Steps

# reverse, weight, bias, out, projection, projected
_Conv = tuple[bool, int, int, _Rows, int, _Rows]
# reverse, u, steps, log(-A), B, C, D, bias, state before, state after, saved states
_Scan = tuple[bool, _Rows, _Steps, int, _Rows, _Rows, int, int, int, int, int]

CHUNK: int
BLOCK: int
OPENMP: bool

def capabilities() -> list[str]: ...
def scan_forward(
    capability: str, threads: int, sizes: _Sizes, softplus: bool, reverse: bool, u: _Rows, step: _Steps, A: int,
    B: _Rows, C: _Rows, D: int, z: _Rows, bias: int, lengths: int, initial_state: int, borders: int, out: _Rows,
    last_state: int, /,
) -> None: ...  # fmt: skip
def scan_backward(
    capability: str, threads: int, sizes: _Sizes, softplus: bool, reverse: bool, u: _Rows, step: _Steps, A: int,
    B: _Rows, C: _Rows, D: int, z: _Rows, bias: int, lengths: int, borders: int, grad_out: _Rows, grad_last: int,
    grad_u: _Rows, grad_delta: _Rows, grad_A: int, grad_B: _Rows, grad_C: _Rows, grad_D: int, grad_z: _Rows,
    grad_bias: int, grad_initial: int, /,
) -> None: ...  # fmt: skip
def conv_forward(
    capability: str, threads: int, sizes: _Sizes, silu: bool, reverse: bool, x: _Rows, weight: int, bias: int,
    lengths: int, out: _Rows, /,
) -> None: ...  # fmt: skip
def conv_backward(
    capability: str, threads: int, sizes: _Sizes, silu: bool, reverse: bool, x: _Rows, weight: int, bias: int,
    lengths: int, grad_out: _Rows, grad_x: _Rows, accumulate: bool, grad_weight: int, grad_bias: int, /,
) -> None: ...  # fmt: skip
def mixer_conv(
    capability: str, threads: int, sizes: _Sizes, x: _Rows, lengths: int, starts: int, first_row: int, last_row: int,
    columns: int, directions: list[_Conv], /,
) -> None: ...  # fmt: skip
def mixer_scan(
    capability: str, threads: int, sizes: _Sizes, z: _Rows, y: _Rows, lengths: int, starts: int, accumulate: bool,
    directions: list[_Scan], /,
) -> None: ...  # fmt: skip
def mixer_gate(
    capability: str, threads: int, sizes: tuple[int, int, int], y: _Rows, z: _Rows, lengths: int, gated: _Rows,
    grad: _Rows, grad_z: _Rows, /,
) -> None: ...  # fmt: skip
