"""Many strings in few arrays: columns that are small, quick to pickle, and shared by forked worker processes.

Two million Python strings or records are gigabytes of small objects, copied into every worker as soon as their reference
counts are touched. A column holds them as one block of bytes and the offsets into it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

H = TypeVar("H", bound=Hashable)


class TextColumn(Sequence[str]):
    """An immutable sequence of strings (also of such that UTF-8 cannot hold, as file names may be)."""

    def __init__(self, values: Iterable[str]):
        encoded = [value.encode("utf-8", "surrogateescape") for value in values]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a column of {len(self)}")
        index %= len(self)
        return self.raw(index).decode("utf-8", "surrogateescape")

    def raw(self, index: int) -> bytes:
        """The string's bytes."""
        return self._bytes[self._ends[index] : self._ends[index + 1]].tobytes()


class CategoryColumn(Sequence[H], Generic[H]):
    """An immutable sequence of values few of which are different."""

    def __init__(self, values: Iterable[H]):
        numbers: dict[H, int] = {}
        self.codes: np.ndarray[Any, np.dtype[np.int32]] = np.fromiter(
            (numbers.setdefault(value, len(numbers)) for value in values), np.int32
        )
        """Which of `values` each is (n,)."""
        self.values: tuple[H, ...] = tuple(numbers)
        """The different ones, in order of appearance."""

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> H: ...
    @overload
    def __getitem__(self, index: slice) -> list[H]: ...
    def __getitem__(self, index: int | slice) -> H | list[H]:
        if isinstance(index, slice):
            return [self.values[code] for code in self.codes[index]]
        value: H = self.values[int(self.codes[index])]
        return value

    def is_value(self, value: H) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Where the column holds `value` (n,)."""
        if value not in self.values:
            return np.zeros(len(self), dtype=bool)
        return np.asarray(self.codes == self.values.index(value))
