"""Kinds of file: each file of this folder reads one kind as rows; what it is called by stands in its `ENDINGS`.

A new kind is a new file here with `ENDINGS` and `read(path, limit)`, which yields every row as it is reached, so that
no file has to fit into memory.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import importlib
import io
import itertools
import pkgutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any, NamedTuple

from core import formats
from core.problem import Problem

MAX_BYTES = 2 * 1024**3
"""What can only be read whole is refused when it is larger, before it fills the memory (bytes, unpacked)."""

MAX_LINE = 256 * 1024**2
"""Characters of one line or one object, beyond which a file is not what its ending says."""

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


class Entry(NamedTuple):
    """A row as it stands in a file: its number from 1, the line on which it begins (of a text file), and what it holds,
    or what is wrong with it."""

    number: int
    line: int | None
    value: Mapping[str, Any] | Problem


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


class Meter:
    """How far the reading of files has come."""

    def __init__(self) -> None:
        self._read: dict[Path, int] = {}
        #: The same file may be open several times.
        self._open: dict[IO[bytes], Path] = {}

    @property
    def read(self) -> int:
        """Bytes that were read of all files, packed as they are."""
        for file, path in self._open.items():
            if not file.closed:
                self._read[path] = max(self._read.get(path, 0), file.tell())
        return sum(self._read.values())

    @contextlib.contextmanager
    def watch(self, path: Path, file: IO[bytes]) -> Iterator[None]:
        """Look at a file's place for as long as it is open; of one that is opened again the farthest place counts."""
        self._open[file] = path
        try:
            yield
            if file.closed:  # as whoever reads text does at its end
                with contextlib.suppress(OSError):
                    self._read[path] = path.stat().st_size
        finally:
            del self._open[file]


_METER: ContextVar[Meter | None] = ContextVar("meter", default=None)


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Tells how far the files have been read that are opened by `open_bytes` meanwhile."""
    meter = Meter()
    before = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(before)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked when it is packed; raises Problem when it turns out to be damaged."""
    meter = _METER.get()
    try:
        with (
            open(path, "rb") as raw,
            meter.watch(path, raw) if meter else contextlib.nullcontext(),
            gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else contextlib.nullcontext(raw) as file,
        ):
            yield file  # type: ignore[misc]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Problem(
            "{name} is damaged: it cannot be unpacked.", "The reader says: {error}.", "Fetch or pack it again.",
            name=path.name, error=first_line(error),
        ) from None  # fmt: skip


def read_bytes(path: Path) -> bytes:
    """The whole file, unpacked when it is packed; raises Problem when it is too large or damaged."""
    if path.stat().st_size > MAX_BYTES:
        raise too_large(path)
    with open_bytes(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise too_large(path)
    return data


def too_large(path: Path) -> Problem:
    """What to say of a file that would fill the memory."""
    return Problem(
        "{name} is too large to read into memory.", "A file that is read whole may have {limit:.0f} GB.",
        "Convert it to Parquet or to JSON lines, or split it.", name=path.name, limit=MAX_BYTES / 1024**3,
    )  # fmt: skip


def find_encoding(path: Path) -> str:
    """The encoding that the file's first bytes tell of; raises Problem when they are no text."""
    with open_bytes(path) as file:
        start = file.read(4096)
    if start[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        return "utf-32"
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if b"\0" in start:
        raise Problem(
            "{name} is no UTF-8 text: it holds zero bytes.", "It may be UTF-16 without its mark, or no text at all.",
            "Save it as UTF-8.", name=path.name,
        )  # fmt: skip
    return "utf-8-sig"


def read_lines(path: Path, ends: str = "\n") -> Iterator[str]:
    """The lines of a text file with their ends, as they are reached.

    Args:
        ends: "\\n" cuts at that alone, as U+2028 or a lone carriage return may stand inside a JSON text; "" cuts at every
            kind of line end.

    Raises:
        Problem: naming line and byte when it is no Unicode; when it is empty, damaged, or one endless line.
    """
    for number, line in enumerate(_decode(path, ends, lambda text: text.readline(MAX_LINE)), 1):
        if len(line) >= MAX_LINE:
            raise Problem(
                "Line {line} of {name} is longer than {most} million characters.", "",
                "Check that the file is what its ending says, and write one row a line.",
                name=path.name, line=number, most=MAX_LINE // 1_000_000,
            )  # fmt: skip
        yield line


def read_pieces(path: Path, size: int) -> Iterator[str]:
    """A text file in pieces of so many characters, wherever its lines end; raises what `read_lines` raises."""
    return _decode(path, "\n", lambda text: text.read(size))


def _decode(path: Path, ends: str, take: Callable[[io.TextIOWrapper], str]) -> Iterator[str]:
    """What is taken of a text file, until nothing is left."""
    encoding, blank = find_encoding(path), True
    try:
        with open_bytes(path) as data, io.TextIOWrapper(data, encoding, newline=ends) as text:
            while piece := take(text):
                blank = blank and piece.isspace()
                yield piece
    except UnicodeDecodeError:
        raise _undecodable(path, encoding) from None
    if blank:
        raise Problem("{name} is empty.", "", "Choose a file with at least one row.", name=path.name)


def _undecodable(path: Path, encoding: str) -> Problem:
    """Where the first byte stands that is no character."""
    line, position, byte = 1, 1, 0
    with open_bytes(path) as file:
        # Of two bytes and four a line cannot be cut off.
        for data in file if encoding == "utf-8-sig" else [read_bytes(path)]:
            try:
                data.decode(encoding)
            except UnicodeDecodeError as error:
                line, byte = line + data.count(b"\n", 0, error.start), data[error.start]
                position = error.start - data.rfind(b"\n", 0, error.start)
                break
            line += 1
    return Problem(
        "Line {line} of {name} is not {encoding}: the byte {byte}, number {position} of the line, is no character.",
        "The file was probably saved in another encoding (such as GBK or Windows-1252).",
        "Save it as UTF-8; in Excel as 'CSV UTF-8', in Notepad with the encoding UTF-8.",
        name=path.name, encoding=encoding.removesuffix("-sig").upper(), byte=f"0x{byte:02x}", line=line, position=position,
    )  # fmt: skip


def number_lines(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, without their ends, with their numbers."""
    for number, line in enumerate(lines, 1):
        if not line.isspace():
            yield number, line.rstrip("\n").strip("\r")


def check_object(value: Any) -> Mapping[str, Any] | Problem:
    """The value when it is an object with named columns (or a Problem already), else what is wrong with it."""
    if type(value) is dict or isinstance(value, dict | Problem):
        return value
    return Problem(
        "The row is of type {kind}, and an object with named columns is needed.", "",
        'Write it as {{"prompt": "...", "completion": "..."}} or {{"text": "..."}}.',
        kind=formats.kind_of(value),
    )  # fmt: skip


def unpack_batches(batches: Iterable[Any], limit: int | None) -> Iterator[Entry]:
    """Arrow batches as rows; a cell that is no valid text or date costs its own row alone."""
    for number, value in enumerate(itertools.islice(_unpack(batches), limit), 1):
        yield Entry(number, None, check_object(value))


def _unpack(batches: Iterable[Any]) -> Iterator[Any]:
    for batch in batches:
        try:
            yield from batch.to_pylist()
        except (ValueError, OverflowError):
            for index in range(len(batch)):
                try:
                    (value,) = batch.slice(index, 1).to_pylist()
                except (ValueError, OverflowError) as error:
                    value = unreadable(error)
                yield value


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
