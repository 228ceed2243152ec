"""Tables as text, CSV and TSV: the first row names the columns, everything is text, as it stands."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from core.problem import Problem
from core.readers import BadRow, Rows, ending, number_lines, read_text

ENDINGS = (".csv", ".tsv")


def read(path: Path, limit: int | None) -> Rows:
    """CSV or TSV: the first row names the columns, everything is text, as it stands."""
    text = read_text(path)
    csv.field_size_limit(2**31 - 1)
    mark = "\t" if ending(path) == ".tsv" else _find_separator(next(number_lines(text))[1])
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
            header = check_header(values, path.name)
            continue
        number += 1
        if problem or len(values) != len(header):
            bad.append(BadRow(number, began, problem or wrong_width(values, header)))
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


def check_header(values: list[str], name: str) -> list[str]:
    """The names of the columns; raises Problem when two are the same."""
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


def wrong_width(values: Sequence[str], header: Sequence[str]) -> Problem:
    """What to say of a row that does not fit its header."""
    return Problem(
        "The row has {count} cells, where the header names {columns}.", "",
        "Put cells that hold a separator or a new line into quotes, and give every row all its cells.",
        count=len(values), columns=len(header),
    )  # fmt: skip
