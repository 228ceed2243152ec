"""JSON: a list of objects, one object a line, or a file as SQuAD is published."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from core import readers
from core.formats import squad
from core.problem import Problem
from core.readers import Entry, check_object, number_lines, read_lines, read_pieces, unreadable

ENDINGS = (".json", ".jsonl", ".ndjson")

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_PIECE = 1024 * 1024
_FEW = 1000
_SNIFFED = 1 << 16
_LONGEST_WORD = 16


def read(path: Path, limit: int | None) -> Iterator[Entry]:
    """A JSON array of objects, or one object a line; what the file holds decides, not its ending."""
    start = next(piece for piece in read_pieces(path, _SNIFFED) if not piece.isspace())
    first, _, more = start.lstrip().partition("\n")
    if first[0] == "[" and not (more.strip() and _is_whole(first)):
        yield from _number(_Array(path).read(), limit)
    elif (articles := _read_squad(path)) is not None:
        yield from _number(squad.unfold(articles), limit)
    else:
        yield from _read_json_lines(path, limit)


def _number(values: Iterable[Any], limit: int | None) -> Iterator[Entry]:
    for number, value in enumerate(itertools.islice(values, limit), 1):
        yield Entry(number, None, check_object(value))


def _is_whole(line: str) -> bool:
    """Whether a line is JSON by itself: arrays under each other are read as lines, and refused one by one."""
    try:
        json.loads(line)
    except (RecursionError, ValueError):
        return False
    return True


class _Array:
    """A JSON array that is read item by item; `text` is the part of the file that is at hand, read up to `at`."""

    def __init__(self, path: Path):
        self.path, self.pieces = path, read_pieces(path, _PIECE)
        self.text, self.at = "", 0
        #: Where the part at hand begins in the file.
        self.line, self.column = 1, 0

    def read(self) -> Iterator[Any]:
        """Its items; raises Problem where it is broken."""
        self._skip_space()
        self.at += 1  # the bracket
        for count in itertools.count():
            char = self._skip_space()
            if char == "]" and not count:
                raise Problem(
                    "{name} holds an empty list.", "", "Choose a file with at least one row.", name=self.path.name
                )
            yield self._decode()
            char = self._skip_space()
            if char not in (",", "]"):
                raise self._broken(json.JSONDecodeError("Expecting ',' delimiter", self.text, self.at))
            self.at += 1
            if char == "]":
                break
        if self._skip_space():
            raise self._broken(json.JSONDecodeError("Extra data", self.text, self.at))

    def _decode(self) -> Any:
        """The value that begins here; what is at hand may end within it."""
        size = _PIECE
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # Elsewhere than at the end of what is at hand, it is a mistake, whatever follows.
                is_cut = error.pos > len(self.text) - _LONGEST_WORD or error.msg.startswith("Unterminated string")
                if not is_cut or len(self.text) - self.at > readers.MAX_LINE or not self._fetch(size):
                    raise self._broken(error) from None
            except (RecursionError, ValueError) as error:
                problem = unreadable(error)
                there_is = "It is in {name}, in the item of the list that begins on line {line}."
                line = self.line + self.text.count("\n", 0, self.at)
                facts = problem.facts | {"name": self.path.name, "line": line}
                raise Problem(problem.what, there_is, problem.to_do, **facts) from None
            else:
                # More digits of a number may follow.
                if end < len(self.text) or not self._fetch(size):
                    self.at = end
                    return value
            size *= 2

    def _skip_space(self) -> str:
        """Go to the next character that is no space, and say which it is; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._fetch(_PIECE):
                return ""

    def _fetch(self, size: int) -> bool:
        """Take in so many characters more and let go of what was read; False at the end of the file."""
        pieces, length = [], 0
        for piece in self.pieces:
            pieces.append(piece)
            length += len(piece)
            if length >= size:
                break
        if not pieces:
            return False
        breaks = self.text.count("\n", 0, self.at)
        self.line += breaks
        self.column = self.at - self.text.rfind("\n", 0, self.at) - 1 if breaks else self.column + self.at
        self.text, self.at = self.text[self.at :] + "".join(pieces), 0
        return True

    def _broken(self, error: json.JSONDecodeError) -> Problem:
        column = error.colno + (self.column if error.lineno == 1 else 0)
        return _broken_json(self.path.name, error, self.line + error.lineno - 1, column)


def _read_squad(path: Path) -> dict[str, Any] | None:
    """What a file holds that is one object, as SQuAD is published; None for any other."""
    text = first = next(line for _, line in number_lines(read_lines(path)))
    if not _is_whole(first):
        text = "".join(itertools.islice(read_lines(path), _FEW))
        if '"paragraphs"' in text:
            text = _read_text(path)
    if '"paragraphs"' not in text or '"qas"' not in text:
        return None
    try:
        data = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("data"), list) else None


def _read_text(path: Path) -> str:
    """The whole file; raises Problem when that is too much."""
    if path.stat().st_size > readers.MAX_BYTES:
        raise readers.too_large(path)
    pieces, length = [], 0
    for piece in read_pieces(path, _PIECE):
        pieces.append(piece)
        length += len(piece)
        if length > readers.MAX_BYTES:
            raise readers.too_large(path)
    return "".join(pieces)


def _read_json_lines(path: Path, limit: int | None) -> Iterator[Entry]:
    lines = itertools.islice(number_lines(read_lines(path)), limit)
    for row, (number, line) in enumerate(lines, 1):
        try:
            value = _read_line(line)
        except json.JSONDecodeError as error:
            if row == 1 and line.strip() == "{":
                raise _single_object(path) from None
            value = _broken_line(error)
        except (RecursionError, ValueError) as error:
            value = unreadable(error)
        yield Entry(row, number, check_object(value))


def _read_line(line: str) -> Any:
    # What json.loads does as well, without a look for white space at both ends, which hardly a line has.
    with contextlib.suppress(json.JSONDecodeError):
        value, end = _DECODER.raw_decode(line)
        if end == len(line):
            return value
    return json.loads(line)


def _broken_json(name: str, error: json.JSONDecodeError, line: int, column: int) -> Problem:
    near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
    return Problem(
        "{name} is broken JSON at line {line}, column {column}: {error}.", "It stands near {near}.",
        "Correct that place; often a quote, a comma or a closing bracket is missing before it.",
        name=name, line=line, column=column, error=error.msg, near=repr(near),
    )  # fmt: skip


def _broken_line(error: json.JSONDecodeError) -> Problem:
    return Problem(
        "The line is broken JSON at column {at}: {error}.", "",
        "Correct it; often a quote or a comma is missing. Every line has to be one whole object.",
        at=error.colno, error=error.msg,
    )  # fmt: skip


def _single_object(path: Path) -> Problem:
    try:
        keys = list(json.loads(_read_text(path)))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            return _broken_json(path.name, error, error.lineno, error.colno)
        keys = ["…"]
    except (RecursionError, ValueError) as error:
        return unreadable(error)
    return Problem(
        "{name} is one object over several lines, and a list of rows is needed.", "Its keys are {keys}.",
        "Put the rows into [ ], or write each on a line of its own.",
        name=path.name, keys=", ".join(map(str, keys[:10]))[:300],
    )  # fmt: skip
