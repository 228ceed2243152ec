"""Columns made of bytes are those that pyarrow makes of values, and nothing loads pandas for them."""

from __future__ import annotations

import subprocess
import sys
from array import array

import numpy as np
import pyarrow
import pytest
from ground import ROOT

from core import columns


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000])
def test_they_are_what_pyarrow_makes_of_values(count: int) -> None:
    numbers = [number * 7 % 11 - 5 for number in range(count)]
    made = columns.of_numbers(array("q", numbers), pyarrow.int64())
    assert made.equals(pyarrow.array(numbers, pyarrow.int64()))
    flags = [number % 3 == 0 for number in range(count)]
    assert columns.of_flags(bytearray(flags)).equals(pyarrow.array(flags, pyarrow.bool_()))
    assert columns.of_flags(np.array(flags, bool)).equals(pyarrow.array(flags, pyarrow.bool_()))
    texts = ["é" * (number % 4) for number in range(count)]
    spelled = [text.encode() for text in texts]
    assert columns.of_bytes(spelled, pyarrow.string()).equals(pyarrow.array(texts, pyarrow.string()))
    assert columns.of_bytes(spelled, pyarrow.binary()).equals(pyarrow.array(spelled, pyarrow.binary()))
    lists = [list(range(number % 4)) for number in range(count)]
    ends = array("i", [0, *np.cumsum([len(one) for one in lists], dtype=int)])
    flat = array("i", [number for one in lists for number in one])
    made = columns.of_lists(ends, columns.of_numbers(flat, pyarrow.int32()))
    assert made.equals(pyarrow.array(lists, pyarrow.list_(pyarrow.int32())))
    made.validate(full=True)


def test_what_is_too_much_for_a_column_is_refused() -> None:
    with pytest.raises(OverflowError, match="2 GiB"):
        columns.of_bytes([range(2**31 - 1), range(1)], pyarrow.binary())  # type: ignore[list-item]  # as long as such bytes


def test_numbers_are_read_where_they_lie() -> None:
    column = pyarrow.array(range(10), pyarrow.int64())
    assert columns.numbers_of(column).tolist() == [*range(10)]
    assert columns.numbers_of(column.slice(3, 4)).tolist() == [3, 4, 5, 6]


def test_pandas_is_not_loaded() -> None:
    code = """
import sys
from array import array
import pyarrow
from core import columns
from core.examples import keep_examples
from core.formats import Example
from core.engine.survey import _Table
column = columns.of_numbers(array("q", [1, 2]), pyarrow.int64())
columns.numbers_of(column)
kept = keep_examples(lambda *_: None)
kept.append(Example(text="the cat"))
assert kept[0].text == "the cat"
table = _Table()
table.add(1, False, [1, 2], b"01", [], ["cut"])
table.take()
assert "pandas" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
