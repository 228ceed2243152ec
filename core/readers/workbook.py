"""Excel workbooks: the first row of a sheet names the columns; cells become the text that the sheet shows."""

from __future__ import annotations

import contextlib
import io
import itertools
import zipfile
from collections.abc import Iterator
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from core import readers
from core.problem import Problem
from core.readers import Entry, first_line, read_bytes, too_large
from core.readers.table import check_header, no_rows, wrong_width

ENDINGS = (".xlsx",)

_OLE = b"\xd0\xcf\x11\xe0"
"""What a file begins with that is no zip: an old .xls, or an .xlsx inside an envelope that a password opens."""


def read(path: Path, limit: int | None, sheet: str = "") -> Iterator[Entry]:
    """The rows of one sheet: the named one, else the only visible one that has any."""
    data = read_bytes(path)
    if not data:
        raise Problem("{name} is empty.", "", "Choose a file with at least one row.", name=path.name)
    if data.startswith(_OLE):
        raise Problem(
            "{name} is protected by a password, or is an .xls file by another name.", "",
            "In the spreadsheet program, save it as .xlsx without a password.", name=path.name,
        )  # fmt: skip
    try:
        with _open(data, path) as book:
            yield from _read_sheet(_choose(book, sheet, path), path, limit)
    except Problem:
        raise
    except Exception as error:  # whatever a damaged file makes of openpyxl, the user needs a sentence
        raise Problem(
            "{name} is no whole Excel file.", "The reader says: {error}.",
            "Open it in the spreadsheet program and save it again as .xlsx.", name=path.name, error=first_line(error),
        ) from None  # fmt: skip


@contextlib.contextmanager
def _open(data: bytes, path: Path) -> Iterator[Any]:
    import openpyxl

    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        # A part is never unpacked beyond the size that the archive says it has.
        if sum(part.file_size for part in packed.infolist()) > readers.MAX_BYTES:
            raise too_large(path)
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    with contextlib.closing(book):
        yield book


def _choose(book: Any, sheet: str, path: Path) -> Any:
    sheets = {one.title: one for one in book.worksheets}
    if sheet and sheet not in sheets:
        raise Problem(
            "There is no sheet {sheet} in {name}.", "Its sheets are {sheets}.", "Name one of them.",
            name=path.name, sheet=sheet[:100], sheets=", ".join(sheets)[:400],
        )  # fmt: skip
    if sheet:
        return sheets[sheet]
    seen = [one for one in sheets.values() if one.sheet_state == "visible"]
    filled = [one for one in seen if len(list(itertools.islice(_rows(one), 2))) == 2]
    if len(filled) > 1:
        raise Problem(
            "{name} has several sheets with rows: {sheets}.", "",
            "Say which by its name behind a #: {name}#{first}.",
            name=path.name, sheets=", ".join(one.title for one in filled)[:400], first=filled[0].title,
        )  # fmt: skip
    return next(iter([*filled, *seen, *sheets.values()]))


def _rows(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """The rows that are not blank, by their number in the sheet, up to their last cell that holds something."""
    sheet.reset_dimensions()  # what the file says of its size is often wrong
    for number, cells in enumerate(sheet.iter_rows(), 1):
        cells = list(cells)
        while cells and not _spell(cells[-1].value).strip():
            cells.pop()
        if cells:
            yield number, cells


def _read_sheet(sheet: Any, path: Path, limit: int | None) -> Iterator[Entry]:
    there = _rows(sheet)
    _, first = next(there, (0, []))
    if not first:
        raise Problem("{name} is empty.", "", "Choose a file with at least one row.", name=path.name)
    header, row = check_header([_spell(cell.value) for cell in first], path.name), 0
    for row, (line, cells) in enumerate(itertools.islice(there, limit), 1):
        broken = next((place for place, cell in enumerate(cells) if cell.data_type == "e"), None)
        if len(cells) > len(header):
            yield Entry(row, line, wrong_width(cells, header))
        elif broken is not None:
            yield Entry(row, line, _broken_cell(header[broken], cells[broken].value))
        else:
            values = [_spell(cell.value) for cell in cells] + [""] * (len(header) - len(cells))
            yield Entry(row, line, dict(zip(header, values, strict=True)))
    if row == 0 and limit != 0:
        raise no_rows(header, path.name)


def _spell(value: Any) -> str:
    """A cell's value as text: numbers with the digits that a sheet shows, dates as ISO writes them, nothing as nothing."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value)


def _broken_cell(column: str, error: Any) -> Problem:
    return Problem(
        "{column} holds the error {error}.", "", "Mend its formula, or delete the row.", column=column, error=error
    )
