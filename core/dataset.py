"""Data sets: reading rows from files, samples and the hub, and turning every row into an example or a named problem."""

from __future__ import annotations

import hashlib
import os
import random
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import formats, readers, sources
from core.formats import Example, Recognition
from core.problem import Problem
from core.readers import BadRow, Rows, unreadable
from core.sources import HUB_ID, looks_like_hub_id

__all__ = [
    "HUB_ID", "BadRow", "Dataset", "Rows", "check_count", "find_overlap", "has_eval_files", "import_file", "load",
    "looks_like_hub_id", "read_rows", "split",
]  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Rows turned into examples.

    `examples[i]` is row `numbers[i]` of the file (from 1); `rows` counts all rows of the file, good and bad; `bad` are
    the rows that are no example, each with what is wrong; what is in neither, the format leaves out. Several files are counted through, as if they were one.
    """

    examples: Sequence[Example]
    numbers: Sequence[int]
    recognition: Recognition
    rows: int
    bad: Sequence[BadRow]

    @property
    def format(self) -> str:
        return self.recognition.format.name

    @property
    def labels(self) -> list[str] | None:
        """The label of each example, None unless every one has exactly one."""
        found = [example.labels[0] for example in self.examples if example.labels and len(example.labels) == 1]
        return found if len(found) == len(self.examples) else None

    def chosen(self, indices: Iterable[int]) -> Dataset:
        """The same with these examples alone."""
        indices = list(indices)
        return replace(self, examples=[self.examples[i] for i in indices], numbers=[self.numbers[i] for i in indices])

    @property
    def reason(self) -> str:
        return self.recognition.reason

    def problems(self, field: str = "data.train") -> list[Problem]:
        """One Problem for each kind of mistake, the commonest first, naming how many rows have it and the first."""
        return _summarise(self.bad, self.rows, field)


def load(
    source: str | Path, format: str = "auto", columns: Mapping[str, str] | None = None, *, strict: bool = False,
    limit: int | None = None, field: str = "data.train", aside: bool = False,
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

    Raises:
        Problem: the source cannot be read, its shape is not known, no row is good, or (strict) any row is bad.
    """
    files = _read_files(str(source), limit, field, "aside" if aside else "eval" if field == "data.eval" else "train")
    recognitions = _recognise(files, columns, format, field)
    examples, numbers, bad = [], [], [row for file in files for row in file.bad()]
    for file, recognition in zip(files, recognitions, strict=True):
        for index, number in enumerate(file.rows.numbers):
            try:
                example = recognition.format.read(file.rows[index], recognition.columns)
                if example is not None:
                    examples.append(example)
                    numbers.append(number + file.before)
            except Problem as problem:
                bad.append(file.place(BadRow(number, file.rows.line(index), problem)))
            except (RecursionError, ValueError) as error:
                bad.append(file.place(BadRow(number, file.rows.line(index), unreadable(error))))
    bad.sort(key=lambda one: one.row)
    dataset = Dataset(examples, numbers, recognitions[0], files[-1].before + files[-1].count, bad)
    if strict or not examples:
        Problem.raise_all(dataset.problems(field))
    if not examples:
        raise Problem(
            "The format {format} leaves every row out.", "{rows} rows were read.", "Choose another format, or other data.",
            field="data.format", format=dataset.format, rows=dataset.rows,
        )  # fmt: skip
    return dataset


def has_eval_files(source: str | Path) -> bool:
    """Whether it names a folder with files to train on and others, by their names, to measure on."""
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


def find_overlap(train: Dataset, held: Dataset) -> list[tuple[int, int]]:
    """Rows that are in both, by content: the number of the first row of `train` that is as a row of `held`, and its.

    Capitals and white space make no difference, nor do labels and answers to a question: the text gives them away.
    """
    first: dict[bytes, int] = {}
    for number, example in zip(train.numbers, train.examples, strict=True):
        first.setdefault(_digest(example), number)
    pairs = ((first.get(_digest(example)), number) for number, example in zip(held.numbers, held.examples, strict=True))
    return [(there, number) for there, number in pairs if there is not None]


def _digest(example: Example) -> bytes:
    if example.question is not None:
        texts = [example.question, example.context or ""]
    elif example.text is not None:
        texts = [example.text]
    else:
        texts = [text for turn in example.messages for text in (turn.role, turn.content)]
    plain = [" ".join(unicodedata.normalize("NFC", text).casefold().split()) for text in texts]
    return hashlib.blake2b("\0".join(plain).encode(), digest_size=16).digest()


@dataclass(frozen=True)
class _File:
    """One of the files that are read as one data set; `name` is empty when it is the only one."""

    name: str
    rows: Rows
    before: int

    @property
    def count(self) -> int:
        return len(self.rows) + len(self.rows.bad)

    def place(self, bad: BadRow) -> BadRow:
        """The bad row as the whole data set counts it."""
        return replace(bad, row=bad.row + self.before, file=self.name, row_of_file=bad.row)

    def bad(self) -> list[BadRow]:
        return [self.place(bad) for bad in self.rows.bad]


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
    files = _read_files(str(source), limit, field, "eval" if field == "data.eval" else "train")
    if len(files) == 1:
        return files[0].rows
    return Rows(
        [row for file in files for row in file.rows],
        [number + file.before for file in files for number in file.rows.numbers],
        bad=[bad for file in files for bad in file.bad()],
    )


def _read_files(source: str, limit: int | None, field: str, want: sources.Want) -> list[_File]:
    """The files with their rows, at least one row in all."""
    files: list[_File] = []
    try:
        found = sources.find_files(source, want)
        for one in found:
            before = files[-1].before + files[-1].count if files else 0
            if limit is not None and files and before >= limit:
                break
            rows = sources.read(one, None if limit is None else limit - before)
            files.append(_File(Path(one).name if len(found) > 1 else "", rows, before))
        if not any(file.rows for file in files):
            bad = [row for file in files for row in file.bad()]
            Problem.raise_all(_summarise(bad, len(bad), field))
            raise Problem("{name} has no rows.", "", "Choose data with at least one row.", name=Path(source).name)
    except Problem as problem:
        for part in problem.parts:
            part.field = part.field or field
        raise
    return files


def _recognise(files: Sequence[_File], columns: Mapping[str, str] | None, format: str, field: str) -> list[Recognition]:
    """What each file is; raises Problem when they are not all of one format."""
    lead = next(file for file in files if file.rows)
    first = formats.recognise(lead.rows, columns, format)
    found = []
    for file in files:
        if not file.rows or set(file.rows.columns) == set(lead.rows.columns):
            found.append(first)
            continue
        try:
            found.append(formats.recognise(file.rows, columns, format))
        except Problem:
            found.append(None)
        if found[-1] is None or found[-1].format is not first.format:
            raise Problem(
                "{name} and {first} are not of one shape, and cannot be read as one data set.",
                "The columns of {first} are {there}; those of {name} are {columns}.",
                "Give them the same columns, or choose one of them.", field=field, name=file.name, first=lead.name,
                there=", ".join(lead.rows.columns)[:400] or "-", columns=", ".join(file.rows.columns)[:400] or "-",
            )  # fmt: skip
    return found


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


def _safe_name(name: str) -> str:
    path = Path(unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2]))
    ending = readers.ending(path) + (".gz" if path.suffix.lower() == ".gz" else "")
    clean = re.sub(r"[^\w-]+", "_", path.name[: -len(ending)]).strip("_")
    # File systems count bytes, at most 255, and one character may take four of them.
    return (clean.encode()[:120].decode(errors="ignore") or "data") + ending
