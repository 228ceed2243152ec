"""Data sets: reading rows from files, samples and the hub, and turning every row into an example or a named problem."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import re
import secrets
import shutil
import time
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from core import formats, readers, sources
from core.examples import keep_examples
from core.formats import Example, Recognition
from core.problem import Problem
from core.readers import BadRow, Entry, Rows, unreadable
from core.sources import HUB_ID, looks_like_hub_id
from core.spool import Spool

__all__ = [
    "HUB_ID", "BadRow", "Dataset", "Rows", "check_count", "find_row", "has_eval_files", "import_file", "load",
    "looks_like_hub_id", "read_rows", "remove_abandoned", "split",
]  # fmt: skip

_SAY_EVERY = 1000
_ABANDONED = 3600.0
_MOST_SAID = 1000
_LOOKED_AT = 10_000


@dataclass(frozen=True)
class Dataset:
    """Rows turned into examples.

    `examples[i]` is row `numbers[i]` of the file (from 1); `rows` counts all rows of the file, good and bad; `bad` are
    the rows that are no example, each with what is wrong; what is in neither, the format leaves out. Several files are
    counted through, as if they were one; `files` are their names, each with how many of the rows are in it.
    """

    examples: Sequence[Example]
    numbers: Sequence[int]
    recognition: Recognition
    rows: int
    bad: Sequence[BadRow]
    files: Sequence[tuple[str, int]] = ()

    @property
    def format(self) -> str:
        return self.recognition.format.name

    @property
    def labels(self) -> list[str] | None:
        """The label of each example, None unless every one has exactly one."""
        found = []
        for example in self.examples:
            if not example.labels or len(example.labels) != 1:
                return None
            found.append(example.labels[0])
        return found

    @property
    def reason(self) -> str:
        return self.recognition.reason

    def problems(self, field: str = "data.train") -> list[Problem]:
        """One Problem for each kind of mistake, the commonest first, naming how many rows have it and the first."""
        return _summarise(self.bad, self.rows, field)


Keep = Callable[[], Spool[Example]]
"""Makes a place for the examples of a data set."""


def load(
    source: str | Path, format: str = "auto", columns: Mapping[str, str] | None = None, *, strict: bool = False,
    limit: int | None = None, field: str = "data.train", aside: bool = False, tell: Callable[[int], None] | None = None,
    keep: Keep = keep_examples,
) -> Dataset:  # fmt: skip
    """Read a data set and turn every row into an example.

    Args:
        source: what `read_rows` takes.
        format: a format's name, or auto.
        columns: role -> column, where the names are not the usual ones.
        strict: raise when any row is bad, instead of returning it in `bad`.
        limit: rows to read at most.
        field: the setting that the source stands in, which a Problem is shown beside.
        aside: read the evaluation files of the folders in it (`has_eval_files`) instead.
        tell: is told the rows done now and then; what it raises ends the reading.
        keep: makes the place for the examples.

    Raises:
        Problem: the source cannot be read, its shape is not known, no row is good, or (strict) any row is bad.
    """
    examples, numbers, bad = keep(), array("q"), _BadRows()
    count, lead, files = 0, None, []
    with _beside(field):
        for file in _open_files(str(source), limit, "aside" if aside else "eval" if field == "data.eval" else "train"):
            recognition = file.recognise(columns, format, lead)
            if recognition and lead is None:
                lead = _Lead(file.name, tuple(file.columns), recognition)
            before = count
            for entry in itertools.islice(file.entries(), None if limit is None else limit - count):
                count += 1
                value = _read_example(entry, recognition)
                if isinstance(value, Problem):
                    bad.add(count, entry, file.name, value)
                elif value is not None:
                    examples.append(value)
                    numbers.append(count)
                if tell and count % _SAY_EVERY == 0:
                    tell(count)
            files.append((Path(file.source).name, count - before))
        if lead is None:
            Problem.raise_all(_summarise(bad.rows, count, field))
            raise _no_rows(source)
    dataset = Dataset(examples, numbers, lead.recognition, count, bad.rows, files)
    if strict or not examples:
        Problem.raise_all(dataset.problems(field))
    if not examples:
        raise Problem(
            "The format {format} leaves every row out.", "{rows} rows were read.", "Choose another format, or other data.",
            field="data.format", format=dataset.format, rows=dataset.rows,
        )  # fmt: skip
    return dataset


def _read_example(entry: Entry, recognition: Recognition | None) -> Example | Problem | None:
    """None for a row that the format leaves out."""
    if isinstance(entry.value, Problem) or recognition is None:
        return entry.value  # type: ignore[return-value]  # a file without a good row is recognised as nothing
    try:
        return recognition.format.read(entry.value, recognition.columns)
    except Problem as problem:
        return problem
    except (RecursionError, ValueError) as error:
        return unreadable(error)


def find_row(files: Sequence[tuple[str, int]], number: int) -> tuple[str, int]:
    """The name of the file that holds row `number` of all, and which of its rows it is; no name for no files."""
    for name, rows in files:
        if number <= rows:
            return name, number
        number -= rows
    return "", number


def has_eval_files(source: str | Path) -> bool:
    """Whether it names a folder with files to train on and others, by their names, to measure on."""
    with _beside("data.train"):
        return bool(sources.find_files(str(source), "aside"))


def split(
    n_rows: int, eval_fraction: float = 0.0, *, eval_count: int | None = None, seed: int = 0,
    labels: Sequence[str] | None = None,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """The indices to train on and those set aside, in the order of the file; the same seed sets the same rows aside.

    Args:
        n_rows: how many rows there are.
        eval_fraction: share of the rows to set aside, 0 to below 1; above 0 it sets at least one aside.
        eval_count: rows to set aside, instead of a share.
        labels: what each row is called, when the same share of every label shall be set aside.

    Raises:
        Problem: when nothing would be left to train on.
    """
    count = eval_count if eval_count is not None else max(round(n_rows * eval_fraction), 1 if eval_fraction > 0 else 0)
    check_count(count, n_rows, "data.eval_fraction")
    draw = random.Random(seed)
    groups: dict[str, list[int]] = {}
    for index in range(n_rows):
        groups.setdefault(labels[index] if labels else "", []).append(index)
    shares = _share(count, [len(group) for group in groups.values()], draw)
    aside = {index for group, share in zip(groups.values(), shares, strict=True) for index in draw.sample(group, share)}
    return [i for i in range(n_rows) if i not in aside], sorted(aside)


def check_count(count: int, n_rows: int, field: str) -> None:
    """Raise a Problem when so many rows cannot be set aside."""
    if n_rows < 1 or not 0 <= count < n_rows:
        raise Problem(
            "{count} of {rows} rows cannot be set aside for evaluation.", "At least one must be left to train on.",
            "Add rows, or set less aside (0 sets nothing aside).", field=field, count=count, rows=n_rows,
        )  # fmt: skip


def _share(count: int, sizes: Sequence[int], draw: random.Random) -> list[int]:
    """How many of each group are set aside: in proportion, and the last of a group only when there is no other way.

    The parts of a row that proportion leaves go to the groups that lack most; `draw` decides between equals.
    """
    if len(sizes) == 1:
        return [count]
    total = sum(sizes)
    shares = [count * size // total for size in sizes]
    order = draw.sample(range(len(sizes)), len(sizes))
    order.sort(key=lambda group: shares[group] * total - count * sizes[group])
    # A label that was never learned is not worth measuring. If it has to be, one of a single row comes first: it lacks most.
    for most in ([size - 1 for size in sizes], sizes):
        while (left := count - sum(shares)) and (able := [group for group in order if shares[group] < most[group]]):
            for group in able[:left]:
                shares[group] += 1
    return shares


class _Lead(NamedTuple):
    """The file that says what all others have to be: the first with a good row."""

    name: str
    columns: tuple[str, ...]
    recognition: Recognition


class _File:
    """One of the files that are read as one data set, no further than it is asked for; `name` is empty when it is the
    only one."""

    def __init__(self, source: str, name: str, limit: int | None):
        self.name, self.source = name, source
        self._rest = sources.read(source, limit)
        self._first: list[Entry] = []

    @functools.cached_property
    def rows(self) -> list[Mapping[str, Any]]:
        """Its first good rows, by which its format is told."""
        found: list[Mapping[str, Any]] = []
        for entry in self._rest:
            self._first.append(entry)
            found += [] if isinstance(entry.value, Problem) else [entry.value]
            if len(found) == formats.SAMPLE or (found and len(self._first) >= _LOOKED_AT):
                break
        return found

    @property
    def columns(self) -> dict[str, None]:
        """Every key that one of these has, in the order of first sight."""
        return dict.fromkeys(str(key) for row in self.rows for key in row)

    def entries(self) -> Iterator[Entry]:
        """All that is in it, once."""
        first, self._first = self._first, []
        return itertools.chain(first, self._rest)

    def recognise(self, columns: Mapping[str, str] | None, format: str, lead: _Lead | None) -> Recognition | None:
        """What its rows are, None when none is good; raises Problem when they are not what those of the `lead` are."""
        if not self.rows:
            return None
        if lead is None:
            return formats.recognise(self.rows, columns, format)
        if set(self.columns) == set(lead.columns):
            return lead.recognition
        found = None
        with contextlib.suppress(Problem):
            found = formats.recognise(self.rows, columns, format)
        if found is None or found.format is not lead.recognition.format:
            raise Problem(
                "{name} and {first} are not of one shape, and cannot be read as one data set.",
                "The columns of {first} are {there}; those of {name} are {columns}.",
                "Give them the same columns, or choose one of them.", name=self.name, first=lead.name,
                there=", ".join(lead.columns)[:400] or "-", columns=", ".join(self.columns)[:400] or "-",
            )  # fmt: skip
        return found


class _BadRows:
    """Rows that are no example. All rows of a file may be bad in the same way: what is said of them is kept once."""

    def __init__(self) -> None:
        self.rows: list[BadRow] = []
        self._said: dict[str, Problem] = {}

    def add(self, row: int, entry: Entry, file: str, problem: Problem) -> None:
        """Row `row` of the data set, which is row `entry.number` of that file."""
        # What differs in every row, as the place of a mistake does, is told of the first ones alone.
        key = repr(problem.to_data()) if len(self._said) < _MOST_SAID else problem.what
        problem = self._said.setdefault(key, problem)
        self.rows.append(BadRow(row, entry.line, problem, file, entry.number if file else 0))


def _open_files(source: str, limit: int | None, want: sources.Want) -> Iterator[_File]:
    found = sources.find_files(source, want)
    for one in found:
        yield _File(one, Path(one).name if len(found) > 1 else "", limit)


@contextlib.contextmanager
def _beside(field: str) -> Iterator[None]:
    """Problems are shown beside that setting unless they name another."""
    try:
        yield
    except Problem as problem:
        for part in problem.parts:
            part.field = part.field or field
        raise


def _no_rows(source: str | Path) -> Problem:
    return Problem("{name} has no rows.", "", "Choose data with at least one row.", name=Path(source).name)


def read_rows(source: str | Path, *, limit: int | None = None, field: str = "data.train") -> Rows:
    """The rows of a file, of several, of a built-in sample (``sample:style``) or of a hub data set (``owner/name``).

    Several files stand with ; between them, or are a folder: all that can be read directly in it, by name, and only
    those for training where others are named for evaluation (for data.eval, those). A sheet of a workbook is
    ``book.xlsx#Sheet``. A hub data set may say its split or configuration and split, and a revision before them:
    ``owner/name:test``, ``owner/name:main:test``, ``owner/name@v2:main:test``. It is the only source for which a request
    leaves the machine, and only when there is no local file or folder of that name.

    Raises:
        Problem: the source cannot be read or has no rows. Single bad rows do not raise: they are in `Rows.bad`.
    """
    items, numbers, lines, count = [], [], [], 0
    bad = _BadRows()
    with _beside(field):
        for file in _open_files(str(source), limit, "eval" if field == "data.eval" else "train"):
            for entry in itertools.islice(file.entries(), None if limit is None else limit - count):
                count += 1
                if isinstance(entry.value, Problem):
                    bad.add(count, entry, file.name, entry.value)
                    continue
                items.append(entry.value)
                numbers.append(count)
                # Where there are several files, a line alone says nothing.
                lines += [] if entry.line is None or file.name else [entry.line]
        if not items:
            Problem.raise_all(_summarise(bad.rows, count, field))
            raise _no_rows(source)
    return Rows(items, numbers, lines, bad.rows)


def _summarise(bad: Sequence[BadRow], n_rows: int, field: str) -> list[Problem]:
    kinds: dict[Any, list[BadRow]] = {}
    for row in bad:
        kinds.setdefault((row.problem.what, row.problem.facts.get("column")), []).append(row)
    found = []
    for rows in sorted(kinds.values(), key=len, reverse=True):
        first, problem = rows[0], rows[0].problem
        there_is = "Found in {bad_rows} of {all_rows} rows: row {first_rows}."
        if first.line and first.file:
            there_is = (
                "Found in {bad_rows} of {all_rows} rows: row {first_rows} (the first begins on line {line} of {file})."
            )
        elif first.line:
            there_is = "Found in {bad_rows} of {all_rows} rows: row {first_rows} (the first begins on line {line})."
        elif first.file:
            there_is = "Found in {bad_rows} of {all_rows} rows: row {first_rows} (the first is row {number} of {file})."
        shown = ", ".join(str(row.row) for row in rows[:5]) + (" …" if len(rows) > 5 else "")
        place = {
            "bad_rows": len(rows), "all_rows": n_rows, "first_rows": shown, "line": first.line or 0,
            "file": first.file, "number": first.row_of_file,
        }  # fmt: skip
        found.append(Problem(problem.what, there_is, problem.to_do, field=field, **{**problem.facts, **place}))
    return found


def import_file(source: Path, folder: Path) -> Path:
    """Copy an upload into the studio's own folder, whole or not at all, readable by its owner alone.

    The new name is an id of ours and what is harmless of the old name, so that it is safe on every file system.

    Raises:
        Problem: the kind of file cannot be read, it is no file, or the disk is full.
    """
    source = Path(source)
    readers.find(source)
    if not source.is_file():
        raise sources.missing(source)
    target = folder / f"{secrets.token_hex(6)}-{_safe_name(source.name)}"
    partial = target.with_name(target.name[:12] + ".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove_abandoned(folder)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        with open(source, "rb") as data, open(os.open(partial, flags, 0o600), "wb") as out:
            shutil.copyfileobj(data, out, 1024 * 1024)
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise sources.os_problem(error, source, folder) from None
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return target


def remove_abandoned(folder: Path) -> None:
    """Delete copies that nobody goes on with: whoever made them was killed."""
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):  # somebody else may do the same
            if time.time() - partial.stat().st_mtime > _ABANDONED:
                partial.unlink()


def _safe_name(name: str) -> str:
    path = Path(unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2]))
    ending = readers.ending(path) + (".gz" if path.suffix.lower() == ".gz" else "")
    clean = re.sub(r"[^\w-]+", "_", path.name[: -len(ending)]).strip("_")
    # File systems count bytes, at most 255, and one character may take four of them.
    return (clean.encode()[:120].decode(errors="ignore") or "data") + ending
