"""Arrow columns made of bytes that lie there already: pyarrow's own way, which looks at each value, first loads pandas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow


def of_numbers(values: Any, kind: pyarrow.DataType) -> pyarrow.Array:
    """A column of numbers of that kind: `values` are their bytes side by side (an array, bytes)."""
    import pyarrow

    buffer = pyarrow.py_buffer(values)
    return pyarrow.Array.from_buffers(kind, buffer.size * 8 // kind.bit_width, [None, buffer])


def of_flags(values: Any) -> pyarrow.Array:
    """A column of yes (1) and no (0): `values` has a byte for each."""
    import pyarrow

    flags = np.frombuffer(values, np.uint8)
    bits = np.packbits(flags, bitorder="little")
    return pyarrow.Array.from_buffers(pyarrow.bool_(), len(flags), [None, pyarrow.py_buffer(bits)])


def of_lists(ends: Any, values: pyarrow.Array) -> pyarrow.Array:
    """A column of lists: `ends` are the bytes of int32, 0 and then where each list ends among the `values`."""
    import pyarrow

    return pyarrow.ListArray.from_arrays(of_numbers(ends, pyarrow.int32()), values)


def of_bytes(values: Sequence[bytes], kind: pyarrow.DataType) -> pyarrow.Array:
    """A column of bytes or, by its kind, of text in UTF-8.

    Raises:
        OverflowError: when they have 2 GiB or more.
    """
    import pyarrow

    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError("a column of bytes holds 2 GiB at most")
    buffers = [None, pyarrow.py_buffer(ends.astype(np.int32)), pyarrow.py_buffer(b"".join(values))]
    return pyarrow.Array.from_buffers(kind, len(values), buffers)


def numbers_of(column: pyarrow.Array) -> np.ndarray:
    """The numbers of an int64 column without gaps, as they lie there."""
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column)]
