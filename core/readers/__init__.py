"""Kinds of file: each file of this folder reads one kind as rows; what it is called by stands in its `ENDINGS`.

A new kind is a new file here with `ENDINGS` and `read(path, limit)`.
"""

from __future__ import annotations

import functools
import gzip
import importlib
import pkgutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from core import formats
from core.problem import Problem

MAX_BYTES = 2 * 1024**3
"""Files other than Parquet are read whole: larger ones are refused before they fill the memory (bytes, unpacked)."""

BLOCK = 512
"""Rows of an Arrow table that are unpacked together."""

PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"}
ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"}
SHEETS = {".xls", ".xlsm", ".xlsb", ".ods", ".numbers"}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: `row` counts from 1, `line` is where it begins in a text file.

    Of several files, `row` counts through all of them, and it is row `row_of_file` of `file`.
    """

    row: int
    line: int | None
    problem: Problem
    file: str = ""
    row_of_file: int = 0


@dataclass
class Rows(Sequence[Mapping[str, Any]]):
    """The rows that could be read, and what is wrong with the others: `bad`.

    `numbers` and `lines` say, for each row held, which row of the file it is (from 1) and on which line it begins.
    """

    items: Sequence[Mapping[str, Any]]
    numbers: Sequence[int] = ()
    lines: Sequence[int] = ()
    bad: list[BadRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = self.numbers or range(1, len(self.items) + 1)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every key that a row has, in the order of first sight."""
        return tuple(dict.fromkeys(str(key) for row in self.items for key in row))

    def line(self, index: int) -> int | None:
        return self.lines[index] if self.lines else None


def ending(path: Path) -> str:
    """What the file's kind is told by: its ending, before .gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


@functools.cache
def readers() -> dict[str, ModuleType]:
    """The module that reads files of an ending, by ending."""
    found = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {name: module for module in found for name in module.ENDINGS}


def find(path: Path) -> ModuleType:
    """The reader of that kind of file; raises Problem naming those that there are."""
    kind = ending(path)
    if kind in readers():
        return readers()[kind]
    what = "{name} is of a kind that cannot be read."
    to_do = "Convert it to JSON, JSON lines, CSV, TSV, Excel (.xlsx), Parquet or text."
    if kind in PICKLES:
        what = "{name} is refused: opening files of this kind can run a program that is hidden in them."
    elif kind in ARCHIVES or path.suffix.lower() in ARCHIVES:
        what, to_do = "{name} is an archive, and archives are not unpacked.", "Unpack it and choose the file inside."
    elif kind in SHEETS:
        what, to_do = "{name} is a spreadsheet of another kind.", "In the spreadsheet program, save it as .xlsx."
    there_is = "Endings that can be read: {known}, all also with .gz."
    raise Problem(what, there_is, to_do, name=path.name[-100:], known=", ".join(readers()))


def read_bytes(path: Path) -> bytes:
    """The whole file, unpacked when it is packed; raises Problem when it is too large or damaged."""
    unpack = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with unpack(path, "rb") as file:
            data = file.read(MAX_BYTES + 1) if path.stat().st_size <= MAX_BYTES else b" " * (MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Problem(
            "{name} is damaged: it cannot be unpacked.", "The reader says: {error}.", "Fetch or pack it again.",
            name=path.name, error=first_line(error),
        ) from None  # fmt: skip
    if len(data) > MAX_BYTES:
        raise too_large(path)
    return data


def too_large(path: Path) -> Problem:
    """What to say of a file that would fill the memory."""
    return Problem(
        "{name} is too large to read into memory.", "A file that is read whole may have {limit:.0f} GB.",
        "Convert it to Parquet, or split it.", name=path.name, limit=MAX_BYTES / 1024**3,
    )  # fmt: skip


def read_text(path: Path) -> str:
    """The whole file as text; raises Problem naming line and byte when it is no Unicode."""
    data = read_bytes(path)
    encoding = "utf-8-sig"
    if data[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        encoding = "utf-32"
    elif data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif b"\0" in data[:4096]:
        raise Problem(
            "{name} is no UTF-8 text: it holds zero bytes.", "It may be UTF-16 without its mark, or no text at all.",
            "Save it as UTF-8.", name=path.name,
        )  # fmt: skip
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise Problem(
            "Line {line} of {name} is not {encoding}: the byte {byte}, number {position} of the line, is no character.",
            "The file was probably saved in another encoding (such as GBK or Windows-1252).",
            "Save it as UTF-8; in Excel as 'CSV UTF-8', in Notepad with the encoding UTF-8.",
            name=path.name, encoding=encoding.removesuffix("-sig").upper(), byte=f"0x{data[error.start]:02x}",
            line=data.count(b"\n", 0, error.start) + 1, position=error.start - data.rfind(b"\n", 0, error.start),
        ) from None  # fmt: skip
    if not text.strip():
        raise Problem("{name} is empty.", "", "Choose a file with at least one row.", name=path.name)
    return text


def number_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; not `splitlines`, as U+2028 may stand inside a JSON text."""
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        number += 1
        if (line := text[start:end].strip("\r")) and not line.isspace():
            yield number, line
        start = end + 1


def take_objects(values: Iterable[tuple[int, Any]], lines: Sequence[int] = ()) -> Rows:
    """Those values that are objects; the others, and the Problems among them, become bad rows."""
    rows, numbers, row_lines, bad = [], [], [], []
    for number, value in values:
        line = lines[number - 1] if lines else None
        if isinstance(value, dict):
            rows.append(value)
            numbers.append(number)
            row_lines += [line] if lines else []
            continue
        if not isinstance(value, Problem):
            value = Problem(
                "The row is of type {kind}, and an object with named columns is needed.", "",
                'Write it as {{"prompt": "...", "completion": "..."}} or {{"text": "..."}}.',
                kind=formats.kind_of(value),
            )  # fmt: skip
        bad.append(BadRow(number, line, value))
    return Rows(rows, numbers, row_lines, bad)


def unpack_batches(batches: Iterable[Any], limit: int | None) -> Rows:
    """Arrow batches as rows; a cell that is no valid text or date costs its own row alone."""
    values: list[Any] = []
    for batch in batches:
        try:
            values += batch.to_pylist()
        except (ValueError, OverflowError):
            for index in range(len(batch)):
                try:
                    values += batch.slice(index, 1).to_pylist()
                except (ValueError, OverflowError) as error:
                    values.append(unreadable(error))
        if limit is not None and len(values) >= limit:
            break
    return take_objects(enumerate(values[:limit], 1))


def unreadable(error: Exception) -> Problem:
    """What to say of a row that a reader stumbled over."""
    if isinstance(error, RecursionError):
        return Problem("The data is nested too deeply to be read.", "", "Flatten it, or delete the row.")
    if isinstance(error, UnicodeDecodeError):
        return Problem("The row holds text that is not UTF-8.", "", "Write it again as UTF-8, or delete the row.")
    if "integer string conversion" in str(error):
        return Problem("The row holds a number of thousands of digits.", "", "Write it as text, or delete the row.")
    return Problem("The row cannot be read: {error}.", "", "Correct it, or delete the row.", error=first_line(error))


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
