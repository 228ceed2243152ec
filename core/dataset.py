"""Data sets: reading rows from files, samples and the hub, and turning every row into an example or a named problem."""

from __future__ import annotations

import csv
import difflib
import errno
import gzip
import io
import itertools
import json
import os
import random
import re
import secrets
import shutil
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import formats
from core.formats import Example, Recognition, squad
from core.problem import Problem

MAX_BYTES = 2 * 1024**3
"""Text files are read whole: larger ones are refused before they fill the memory (bytes, after unpacking .gz)."""

BLOCK = 512
"""Rows of an Arrow table that are unpacked together."""

PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"}
ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar", ".bz2", ".xz", ".zst"}
SHEETS = {".xlsx", ".xls", ".ods", ".numbers"}
HUB_ID = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?::([\w.-]+))?", re.ASCII)
"""owner/name, owner/name:split or owner/name:config:split, with hub: in front or not."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: `row` counts from 1, `line` is where it begins in a text file."""

    row: int
    line: int | None
    problem: Problem


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


@dataclass(frozen=True)
class Dataset:
    """Rows turned into examples.

    `examples[i]` is row `numbers[i]` of the file (from 1); `rows` counts all rows of the file, good and bad; `bad` are
    the rows that are no example, each with what is wrong.
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
    def reason(self) -> str:
        return self.recognition.reason

    def problems(self, field: str = "data.train") -> list[Problem]:
        """One Problem for each kind of mistake, the commonest first, naming how many rows have it and the first."""
        return _summarise(self.bad, self.rows, field)


def load(
    source: str | Path, format: str = "auto", columns: Mapping[str, str] | None = None, *, strict: bool = False,
    limit: int | None = None, field: str = "data.train",
) -> Dataset:  # fmt: skip
    """Read a data set and turn every row into an example.

    Args:
        source: what `read_rows` takes.
        format: a format's name, or auto.
        columns: role -> column, where the names are not the usual ones.
        strict: raise when any row is bad, instead of returning it in `bad`.
        limit: rows to read at most.
        field: the setting that a Problem is shown beside.

    Raises:
        Problem: the source cannot be read, its shape is not known, no row is good, or (strict) any row is bad.
    """
    rows = read_rows(source, limit=limit, field=field)
    recognition = formats.recognise(rows, columns, format)
    examples, numbers, bad = [], [], list(rows.bad)
    for index, number in enumerate(rows.numbers):
        try:
            examples.append(recognition.format.read(rows[index], recognition.columns))
            numbers.append(number)
        except Problem as problem:
            bad.append(BadRow(number, rows.line(index), problem))
        except (RecursionError, ValueError) as error:
            bad.append(BadRow(number, rows.line(index), _unreadable(error)))
    bad.sort(key=lambda one: one.row)
    dataset = Dataset(examples, numbers, recognition, len(rows) + len(rows.bad), bad)
    if strict or not examples:
        Problem.raise_all(dataset.problems(field))
    return dataset


def split(
    n_rows: int, eval_fraction: float = 0.0, *, eval_count: int | None = None, seed: int = 0
) -> tuple[list[int], list[int]]:
    """The indices to train on and those set aside, in the order of the file; the same seed sets the same rows aside.

    Args:
        n_rows: how many rows there are.
        eval_fraction: share of the rows to set aside, 0 to below 1; above 0 it sets at least one aside.
        eval_count: rows to set aside, instead of a share.

    Raises:
        Problem: when nothing would be left to train on.
    """
    count = eval_count if eval_count is not None else max(round(n_rows * eval_fraction), 1 if eval_fraction > 0 else 0)
    if n_rows < 1 or not 0 <= count < n_rows:
        raise Problem(
            "{count} of {rows} rows cannot be set aside for evaluation.", "At least one must be left to train on.",
            "Add rows, or set less aside (0 sets nothing aside).", field="data.eval_fraction", count=count, rows=n_rows,
        )  # fmt: skip
    aside = set(random.Random(seed).sample(range(n_rows), count))
    return [i for i in range(n_rows) if i not in aside], sorted(aside)


def _summarise(bad: Sequence[BadRow], n_rows: int, field: str) -> list[Problem]:
    kinds: dict[Any, list[BadRow]] = {}
    for row in bad:
        kinds.setdefault((row.problem.what, row.problem.facts.get("column")), []).append(row)
    found = []
    for rows in sorted(kinds.values(), key=len, reverse=True):
        first, problem = rows[0], rows[0].problem
        there_is = "Found in {bad_rows} of {all_rows} rows: row {first_rows}."
        if first.line:
            there_is = "Found in {bad_rows} of {all_rows} rows: row {first_rows} (the first begins on line {line})."
        shown = ", ".join(str(row.row) for row in rows[:5]) + (" …" if len(rows) > 5 else "")
        place = {"bad_rows": len(rows), "all_rows": n_rows, "first_rows": shown, "line": first.line or 0}
        found.append(Problem(problem.what, there_is, problem.to_do, field=field, **{**problem.facts, **place}))
    return found


def read_rows(source: str | Path, *, limit: int | None = None, field: str = "data.train") -> Rows:
    """The rows of a file, of a built-in sample (``sample:style``) or of a hub data set (``owner/name``).

    A hub data set may say its split or configuration and split: ``owner/name:test``, ``owner/name:main:test``. It is
    the only source for which a request leaves the machine, and only when there is no local file or folder of that name.

    Raises:
        Problem: the source cannot be read or has no rows. Single bad rows do not raise: they are in `Rows.bad`.
    """
    try:
        rows = _read_source(str(source), limit)
        if not rows:
            Problem.raise_all(_summarise(rows.bad, len(rows.bad), field))
            raise Problem("{name} has no rows.", "", "Choose data with at least one row.", name=Path(str(source)).name)
    except Problem as problem:
        for part in problem.parts:
            part.field = part.field or field
        raise
    return rows


def import_file(source: Path, folder: Path) -> Path:
    """Copy an upload into the studio's own folder, whole or not at all, readable by its owner alone.

    The new name is an id of ours and what is harmless of the old name, so that it is safe on every file system.

    Raises:
        Problem: the kind of file cannot be read, it is no file, or the disk is full.
    """
    source = Path(source)
    _find_reader(source)
    if not source.is_file():
        raise _missing(source)
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
        raise _os_problem(error, source, folder) from None
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return target


def _safe_name(name: str) -> str:
    path = Path(unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2]))
    ending = _suffix(path) + (".gz" if path.suffix.lower() == ".gz" else "")
    clean = re.sub(r"[^\w-]+", "_", path.name[: -len(ending)]).strip("_")
    # File systems count bytes, at most 255, and one character may take four of them.
    return (clean.encode()[:120].decode(errors="ignore") or "data") + ending


def _read_source(source: str, limit: int | None) -> Rows:
    if source.startswith("sample:"):
        return _read_sample(source.removeprefix("sample:"), limit)
    path = Path(source).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError):  # a name that no file system takes
        there = False
    if not there and (hub := HUB_ID.fullmatch(source)) and looks_like_hub_id(source, path):
        return _read_hub(*hub.groups(), limit)
    if not there:
        raise _missing(path)
    if path.is_dir():
        files = [p.name for p in sorted(path.iterdir()) if _suffix(p) in READERS]
        raise Problem(
            "{path} is a folder.", "Files in it that can be read: {files}.", "Choose one of its files.",
            path=path, files=", ".join(files[:10]) or "-",
        )  # fmt: skip
    reader = _find_reader(path)
    try:
        if not path.is_file():
            raise Problem("{path} is no ordinary file.", "", "Choose a file.", path=path)
        return reader(path, limit)
    except OSError as error:
        raise _os_problem(error, path, path.parent) from None


def looks_like_hub_id(source: str, path: Path) -> bool:
    """A mistyped path must not become a request: an id has no file ending, and no local folder has its owner's name."""
    ending = re.fullmatch(r"\.[a-z]\w*", path.suffix.lower())
    return source.startswith("hub:") or not (ending or path.parent.exists())


def _read_sample(name: str, limit: int | None) -> Rows:
    from core.playground import SAMPLES

    if name not in SAMPLES:
        raise Problem(
            "There is no sample {name}.", "Samples are {known}.", "Choose one of them.",
            name=name[:100], known=", ".join(f"sample:{known}" for known in SAMPLES),
        )  # fmt: skip
    return _read_source(str(SAMPLES[name].path), limit)


def _read_hub(name: str, first: str | None, second: str | None, limit: int | None) -> Rows:
    import datasets

    config, part = (first, second) if second else (None, first or "train")
    try:
        data = datasets.load_dataset(name, config, split=part)
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise Problem(
            "The data set {name} was not found on the Hugging Face hub.", "{error}",
            "Check its spelling; a private or gated one needs a login (hf auth login) and its owner's consent.",
            name=name, error=_first_line(error),
        ) from None  # fmt: skip
    except ConnectionError as error:
        raise Problem(
            "The data set {name} could not be fetched: the hub cannot be reached.", "{error}",
            "Connect to the internet (and unset HF_HUB_OFFLINE), or choose a file on this machine.",
            name=name, error=_first_line(error),
        ) from None  # fmt: skip
    except Exception as error:  # whatever a foreign repository makes of it, the user needs a sentence
        raise Problem(
            "The data set {name} cannot be read.", "{error}",
            "Name its configuration and split as {name}:config:split, or download one of its files and choose that.",
            name=name, error=_first_line(error),
        ) from None  # fmt: skip
    return _unpack(data.data.table.slice(0, limit).to_batches(BLOCK), limit)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _suffix(path: Path) -> str:
    return Path(path.stem if path.suffix.lower() == ".gz" else path).suffix.lower()


def _find_reader(path: Path) -> Callable[[Path, int | None], Rows]:
    suffix = _suffix(path)
    if suffix in READERS and not (suffix == ".parquet" and path.suffix.lower() == ".gz"):
        return READERS[suffix]
    what = "{name} is of a kind that cannot be read."
    to_do = "Convert it to JSON, JSON lines, CSV, TSV, Parquet or text."
    if suffix in PICKLES:
        what = "{name} is refused: opening files of this kind can run a program that is hidden in them."
    elif suffix in ARCHIVES or path.suffix.lower() in ARCHIVES:
        what, to_do = "{name} is an archive, and archives are not unpacked.", "Unpack it and choose the file inside."
    elif suffix in SHEETS:
        what, to_do = "{name} is a spreadsheet.", "In the spreadsheet program, save it as 'CSV UTF-8'."
    there_is = "Endings that can be read: {known}, all but .parquet also with .gz."
    raise Problem(what, there_is, to_do, name=path.name[-100:], known=", ".join(READERS))


def _missing(path: Path) -> Problem:
    similar: list[str] = []
    try:
        similar = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3)
        there_is = "Similar names there: {similar}." if similar else "Nothing in its folder has a similar name."
    except (OSError, ValueError):
        there_is = "Its folder is not there either."
    facts = {"path": str(path)[:500], "similar": ", ".join(similar)}
    return Problem("There is no file {path}.", there_is, "Check the spelling.", **facts)


def _os_problem(error: OSError, path: Path, folder: Path) -> Problem:
    if error.errno == errno.ENOSPC:
        need, free = path.stat().st_size / 1e6, shutil.disk_usage(folder).free / 1e6
        return Problem(
            "The disk is full.", "{name} needs {need:.0f} MB, {free:.0f} MB are free.", "Make room, then try again.",
            name=path.name, need=need, free=free,
        )  # fmt: skip
    return Problem(
        "{path} could not be read or copied.", "The system says: {error}.", "Check its permissions.",
        path=path, error=error.strerror or error,
    )  # fmt: skip


def _unreadable(error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return Problem("The data is nested too deeply to be read.", "", "Flatten it, or delete the row.")
    if isinstance(error, UnicodeDecodeError):
        return Problem("The row holds text that is not UTF-8.", "", "Write it again as UTF-8, or delete the row.")
    if "integer string conversion" in str(error):
        return Problem("The row holds a number of thousands of digits.", "", "Write it as text, or delete the row.")
    return Problem("The row cannot be read: {error}.", "", "Correct it, or delete the row.", error=_first_line(error))


# ---- text files -----------------------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    """The whole file as text; raises Problem naming line and byte when it is no Unicode."""
    unpack = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with unpack(path, "rb") as file:
            data = file.read(MAX_BYTES + 1) if path.stat().st_size <= MAX_BYTES else b" " * (MAX_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Problem(
            "{name} is damaged: it cannot be unpacked.", "The reader says: {error}.", "Fetch or pack it again.",
            name=path.name, error=_first_line(error),
        ) from None  # fmt: skip
    if len(data) > MAX_BYTES:
        raise Problem(
            "{name} is too large to read into memory.", "A text file may have {limit:.0f} GB.",
            "Convert it to Parquet, or split it.", name=path.name, limit=MAX_BYTES / 1024**3,
        )  # fmt: skip
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


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; not `splitlines`, as U+2028 may stand inside a JSON text."""
    start, number = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        number += 1
        if (line := text[start:end].strip("\r")) and not line.isspace():
            yield number, line
        start = end + 1


def _read_json(path: Path, limit: int | None) -> Rows:
    """A JSON array of objects, or one object a line; what the file holds decides, not its ending."""
    text = _read_text(path)
    if text.lstrip()[0] == "[":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # several arrays under each other are read as lines, and refused one by one
                raise _broken_json(path.name, error) from None
        except (RecursionError, ValueError) as error:
            raise _unreadable(error) from None
        else:
            if not items:
                raise Problem("{name} holds an empty list.", "", "Choose a file with at least one row.", name=path.name)
            return _objects(enumerate(items[:limit], 1))
    if (articles := _read_squad(text)) is not None:
        return _objects(enumerate(itertools.islice(squad.unfold(articles), limit), 1))
    return _read_json_lines(path, text, limit)


def _read_squad(text: str) -> dict[str, Any] | None:
    """What a file holds that is one object, as SQuAD is published; None for any other."""
    if '"paragraphs"' not in text or '"qas"' not in text:
        return None
    try:
        data = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("data"), list) else None


def _read_json_lines(path: Path, text: str, limit: int | None) -> Rows:
    lines, values = [], []
    for number, line in _lines(text):
        if limit is not None and len(values) >= limit:
            break
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            if not values and line.strip() == "{":
                raise _single_object(path, text) from None
            values.append(_broken_line(error))
        except (RecursionError, ValueError) as error:
            values.append(_unreadable(error))
        lines.append(number)
    return _objects(enumerate(values, 1), lines)


def _objects(values: Iterable[tuple[int, Any]], lines: Sequence[int] = ()) -> Rows:
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


def _broken_json(name: str, error: json.JSONDecodeError) -> Problem:
    near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
    return Problem(
        "{name} is broken JSON at line {line}, column {column}: {error}.", "It stands near {near}.",
        "Correct that place; often a quote, a comma or a closing bracket is missing before it.",
        name=name, line=error.lineno, column=error.colno, error=error.msg, near=repr(near),
    )  # fmt: skip


def _broken_line(error: json.JSONDecodeError) -> Problem:
    return Problem(
        "The line is broken JSON at column {at}: {error}.", "",
        "Correct it; often a quote or a comma is missing. Every line has to be one whole object.",
        at=error.colno, error=error.msg,
    )  # fmt: skip


def _single_object(path: Path, text: str) -> Problem:
    try:
        keys = list(json.loads(text))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            return _broken_json(path.name, error)
        keys = ["…"]
    except (RecursionError, ValueError) as error:
        return _unreadable(error)
    return Problem(
        "{name} is one object over several lines, and a list of rows is needed.", "Its keys are {keys}.",
        "Put the rows into [ ], or write each on a line of its own.",
        name=path.name, keys=", ".join(map(str, keys[:10]))[:300],
    )  # fmt: skip


def _read_table(path: Path, limit: int | None) -> Rows:
    """CSV or TSV: the first row names the columns, everything is text, as it stands."""
    text = _read_text(path)
    csv.field_size_limit(2**31 - 1)
    mark = "\t" if _suffix(path) == ".tsv" else _find_separator(next(_lines(text))[1])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    header, rows, numbers, lines, bad = None, [], [], [], []
    line, number = 1, 0
    while limit is None or number < limit:
        problem = None
        try:
            values = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            problem, values = _bad_quote(error), [""]
        began, line = line, reader.line_num + 1
        if not values:
            continue
        if header is None:
            if problem:
                there_is = "It is in the first line of {name}."
                raise Problem(problem.what, there_is, problem.to_do, name=path.name, **problem.facts)
            header = _check_header(values, path.name)
            continue
        number += 1
        if problem or len(values) != len(header):
            bad.append(BadRow(number, began, problem or _wrong_width(values, header)))
        else:
            rows.append(dict(zip(header, values, strict=True)))
            numbers.append(number)
            lines.append(began)
    if number == 0:
        raise Problem(
            "{name} has a header and no rows.", "Its first line is read as the names of the columns: {columns}.",
            "Add rows below it.", name=path.name, columns=", ".join(header or [])[:300],
        )  # fmt: skip
    return Rows(rows, numbers, lines, bad)


def _find_separator(header: str) -> str:
    """The mark that cuts the header into the most cells: spreadsheets write semicolons where the comma is decimal."""
    return max(",;\t", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))


def _check_header(values: list[str], name: str) -> list[str]:
    header = [value.strip() or f"column {number}" for number, value in enumerate(values, 1)]
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise Problem(
            "{name} has several columns of the same name: {columns}.",
            "The first line is read as the names of the columns.",
            "Rename or delete all but one; if the file has no header, add one.",
            name=name, columns=", ".join(twice)[:300],
        )  # fmt: skip
    return header


def _bad_quote(error: csv.Error) -> Problem:
    to_do = 'Put the whole cell into quotes and write each quote inside it twice ("").'
    if "end of data" in str(error):
        return Problem("A quote is opened and never closed.", "", to_do)
    return Problem("The quotes of the row are wrong: {error}.", "", to_do, error=error)


def _wrong_width(values: list[str], header: list[str]) -> Problem:
    return Problem(
        "The row has {count} cells, where the header names {columns}.", "",
        "Put cells that hold a separator or a new line into quotes, and give every row all its cells.",
        count=len(values), columns=len(header),
    )  # fmt: skip


def _read_plain(path: Path, limit: int | None) -> Rows:
    """Text: every paragraph is a row when there are blank lines, else every line."""
    text = _read_text(path).replace("\r\n", "\n")
    paragraphs = re.search(r"\n[ \t]*\n", text.strip()) is not None
    blocks: list[list[str]] = []
    starts: list[int] = []
    before = -1
    for number, line in _lines(text):
        if paragraphs and number == before + 1:
            blocks[-1].append(line)
        else:
            blocks.append([line])
            starts.append(number)
        before = number
    return Rows([{"text": "\n".join(block)} for block in blocks[:limit]], (), starts[:limit])


def _read_parquet(path: Path, limit: int | None) -> Rows:
    import pyarrow.parquet

    with path.open("rb") as file:
        if not file.read(1):
            raise Problem("{name} is empty.", "", "Choose a file with at least one row.", name=path.name)
        file.seek(0)
        try:
            return _unpack(pyarrow.parquet.ParquetFile(file).iter_batches(BLOCK), limit)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise Problem(
                "{name} is no whole Parquet file.", "The reader says: {error}.", "Fetch or write it again.",
                name=path.name, error=_first_line(error),
            ) from None  # fmt: skip


def _unpack(batches: Iterable[Any], limit: int | None) -> Rows:
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
                    values.append(_unreadable(error))
        if limit is not None and len(values) >= limit:
            break
    return _objects(enumerate(values[:limit], 1))


READERS: dict[str, Callable[[Path, int | None], Rows]] = {
    ".json": _read_json,
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
    ".txt": _read_plain,
}
