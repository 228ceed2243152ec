"""A run's numbers as columns, read on from where the last look ended: 200,000 steps are a few megabytes and quickly drawn."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson

from core.runs import Metrics, Run

_BATCH = 4096
_BLOCK = 8 * 2**20
_KEPT = 32
_NUMBERS = {int, float, type(None)}


class Steps(Sequence[dict[str, Any]]):
    """The lines of all steps, one array a column; by index they are the dicts that they were.

    A value that a line has not is None. What is no number (it is rare) is kept beside.
    """

    def __init__(self) -> None:
        self._length = 0
        self._columns: dict[str, np.ndarray] = {}
        self._whole: set[str] = set()
        self._other: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[at] for at in range(self._length))

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(self._length))]
        place = at + self._length if at < 0 else at
        if not 0 <= place < self._length:
            raise IndexError(at)
        row: dict[str, Any] = {}
        for name, column in self._columns.items():
            value = float(column[place])
            row[name] = None if value != value else int(value) if name in self._whole and abs(value) < 2**53 else value
        return row | self._other.get(place, {})

    def column(self, name: str) -> np.ndarray:
        """The numbers of that name, float64; what is none is NaN."""
        found = self._columns.get(name)
        return np.full(self._length, np.nan) if found is None else found[: self._length]

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Put rows behind the others."""
        begin, self._length = self._length, self._length + len(rows)
        for name in dict.fromkeys([*self._columns, *(name for row in rows for name in row)]):
            if name not in self._columns:
                self._whole.add(name)
            column = self._room(name)
            values = [row.get(name) for row in rows]
            kinds = set(map(type, values))
            if float in kinds:
                self._whole.discard(name)
            if kinds <= _NUMBERS:
                try:
                    column[begin : self._length] = values
                    continue
                except OverflowError:
                    pass
            for place, value in enumerate(values, begin):
                column[place] = value if type(value) is float or (type(value) is int and abs(value) < 2**63) else np.nan
                if value is not None and column[place] != column[place]:
                    self._other.setdefault(place, {})[name] = value

    def _room(self, name: str) -> np.ndarray:
        column = self._columns.get(name)
        if column is None or len(column) < self._length:
            # A new array: who holds a snapshot goes on reading the old one.
            grown = np.full(max(1024, 2 * self._length), np.nan)
            if column is not None:
                grown[: len(column)] = column
            self._columns[name] = column = grown
        return column

    def undo(self, step: float) -> None:
        """Forget what comes after that step: the run went on from a checkpoint before it."""
        kept = np.flatnonzero(~(self.column("step") > step))
        old = self._other
        self._columns = {name: column[: self._length][kept] for name, column in self._columns.items()}
        self._other = {new: old[was] for new, was in enumerate(kept.tolist()) if was in old} if old else {}
        self._length = len(kept)

    def snapshot(self) -> Steps:
        """The same rows, which what is added later does not change; nothing is copied."""
        twin = Steps()
        twin._length, twin._columns = self._length, dict(self._columns)
        twin._whole, twin._other = set(self._whole), dict(self._other)
        return twin


class Reader:
    """Reads one metrics.jsonl, and at every further look only what was added."""

    def __init__(self, path: Path):
        self.path, self.lock = path, threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self.offset, self.inode = 0, 0
        self.steps, self.evals, self.events = Steps(), list[dict[str, Any]](), list[dict[str, Any]]()

    def read(self) -> Self:
        """Take in the whole lines that have been added; a file that begins anew is read anew."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_size < self.offset or self.inode not in (0, status.st_ino):
                    self._begin()
                self.inode = status.st_ino
                file.seek(self.offset)
                rest = b""
                while block := file.read(_BLOCK):
                    block = rest + block
                    end = block.rfind(b"\n") + 1
                    rest = block[end:]
                    self.offset += end
                    self._take(block[:end].splitlines())
        except FileNotFoundError:
            pass
        return self

    def _take(self, lines: list[bytes]) -> None:
        for start in range(0, len(lines), _BATCH):
            pending: list[dict[str, Any]] = []
            for row in _parse(lines[start : start + _BATCH]):
                if not isinstance(row, dict):
                    continue
                if "event" in row:
                    self.events.append(row)
                    if row["event"] == "resumed" and isinstance(row.get("step"), int | float):
                        self._flush(pending)
                        self.steps.undo(row["step"])
                        evaluated = row.get("evaluated", row["step"])
                        self.evals = [old for old in self.evals if old["step"] <= evaluated]
                elif not isinstance(row.get("step"), int | float):
                    continue
                elif "eval_loss" in row:
                    self.evals.append(row)
                else:
                    pending.append(row)
            self._flush(pending)

    def _flush(self, pending: list[dict[str, Any]]) -> None:
        if pending:
            self.steps.add(pending)
            pending.clear()

    def snapshot(self) -> Metrics:
        """What is known now; a later look does not change it."""
        return Metrics(self.path, self.steps.snapshot(), list(self.evals), list(self.events), self.offset)  # type: ignore[arg-type]


def _parse(lines: list[bytes]) -> list[Any]:
    """All lines in one go, which takes an eighth of the time; one by one when one of them is broken, or holds a NaN."""
    try:
        return orjson.loads(b"[" + b",".join(lines) + b"]")
    except (ValueError, RecursionError):
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return found


_readers: OrderedDict[str, Reader] = OrderedDict()
_reading = threading.Lock()


def read_metrics(run: Run) -> Metrics:
    """The run's numbers, read on from where the last look ended, whichever page looked."""
    path = run.folder / "metrics.jsonl"
    with _reading:
        reader = _readers.setdefault(str(path), Reader(path))
        _readers.move_to_end(str(path))
        while len(_readers) > _KEPT:
            _readers.popitem(last=False)
    with reader.lock:  # a long file must not hold up those who look at another
        return reader.read().snapshot()


def has_read(run: Run) -> bool:
    """Whether its numbers were read before, so that a further look takes no time."""
    reader = _readers.get(str(run.folder / "metrics.jsonl"))
    return reader is not None and reader.offset > 0 and not reader.lock.locked()
