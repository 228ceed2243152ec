"""Tables as text, CSV and TSV: the first row names the columns, everything is text, as it stands."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.formats import LONGEST
from core.problem import Problem
from core.readers import Entry, ending, read_lines

ENDINGS = (".csv", ".tsv")

_MOST_COLUMNS = 10_000


def read(path: Path, limit: int | None) -> Iterator[Entry]:
    """CSV or TSV: the first row names the columns, everything is text, as it stands."""
    csv.field_size_limit(LONGEST + 1)
    lines = read_lines(path, "")
    first = list(_through_header(lines))
    mark = "\t" if ending(path) == ".tsv" else _find_separator(first[-1])
    reader = csv.reader(itertools.chain(first, lines), delimiter=mark, strict=True)
    header, line, number = None, 1, 0
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
            header = check_header(values, path.name)
            continue
        number += 1
        if not problem and len(values) != len(header):
            problem = wrong_width(values, header)
        yield Entry(number, began, problem or dict(zip(header, values, strict=True)))
    if number == 0:
        raise no_rows(header or [], path.name)


def no_rows(header: Sequence[str], name: str) -> Problem:
    """What to say of a table with nothing under its header."""
    return Problem(
        "{name} has a header and no rows.", "Its first line is read as the names of the columns: {columns}.",
        "Add rows below it.", name=name, columns=", ".join(header)[:300],
    )  # fmt: skip


def _through_header(lines: Iterator[str]) -> Iterator[str]:
    """The lines up to the first that is not blank."""
    for line in lines:
        yield line
        if not line.isspace():
            return


def _find_separator(header: str) -> str:
    """The mark that cuts the header into the most cells: spreadsheets write semicolons where the comma is decimal."""
    return max(",;\t", key=lambda mark: len(next(csv.reader([header.strip("\r\n")], delimiter=mark), [])))


def check_header(values: list[str], name: str) -> list[str]:
    """The names of the columns; raises Problem when two are the same."""
    header = [value.strip() or f"column {number}" for number, value in enumerate(values, 1)]
    if len(header) > _MOST_COLUMNS:
        raise Problem(
            "{name} has {count} columns; at most {most} can be read.", "The first line is read as the names of the columns.",
            "Check that the file is a table, and that its rows stand on lines of their own.",
            name=name, count=len(header), most=_MOST_COLUMNS,
        )  # fmt: skip
    if twice := sorted(column for column, count in Counter(header).items() if count > 1):
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


def wrong_width(values: Sequence[str], header: Sequence[str]) -> Problem:
    """What to say of a row that does not fit its header."""
    return Problem(
        "The row has {count} cells, where the header names {columns}.", "",
        "Put cells that hold a separator or a new line into quotes, and give every row all its cells.",
        count=len(values), columns=len(header),
    )  # fmt: skip
