"""Excel workbooks: what a sheet shows is what is read, and every file that is none is answered with a sentence."""

from __future__ import annotations

import datetime
import gzip
import io
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from core import dataset, readers, sources
from core.config import Config
from core.formats import Example, Message
from core.problem import Problem
from core.runs import resolve_paths

Write = Callable[..., Path]
TABLE = [["prompt", "completion"], ["Hi", "Hello"], ["Bye", "See you"]]


def pack(sheets: Mapping[str, Sequence[Sequence[Any]]], hidden: str = "") -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        if name == hidden:
            sheet.sheet_state = "hidden"
    data = io.BytesIO()
    book.save(data)
    return data.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(sheets: Mapping[str, Sequence[Sequence[Any]]], name: str = "a.xlsx", **choices: Any) -> Path:
        data = pack(sheets, **choices)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / name

    return write


def refusal(source: Any) -> str:
    with pytest.raises(Problem) as caught:
        dataset.load(source)
    assert all(part.to_do and part.field == "data.train" for part in caught.value.parts)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.xlsx", "A.XLSX", "a.xlsx.gz"])
def test_a_table_is_read(write: Write, name: str) -> None:
    read = dataset.load(write({"Sheet1": TABLE}, name), strict=True)
    assert list(read.examples) == [
        Example((Message("user", "Hi"), Message("assistant", "Hello"))),
        Example((Message("user", "Bye"), Message("assistant", "See you"))),
    ]
    assert len(dataset.read_rows(write({"Sheet1": TABLE}, name), limit=1)) == 1


def test_cells_become_the_text_that_is_seen(write: Write) -> None:
    cells = {
        "text": " 007\nx ", "whole": 42, "half": 1.5, "sum": 4.35 * 100, "yes": True, "day": datetime.date(2024, 2, 29),
        "moment": datetime.datetime(2024, 2, 29, 13, 5), "time": datetime.time(7, 30), "none": None, "last": "x",
    }  # fmt: skip
    rows = dataset.read_rows(write({"Sheet1": [list(cells), list(cells.values())]}))
    assert rows[0] == {
        "text": " 007\nx ", "whole": "42", "half": "1.5", "sum": "435", "yes": "TRUE", "day": "2024-02-29",
        "moment": "2024-02-29T13:05:00", "time": "07:30:00", "none": "", "last": "x",
    }  # fmt: skip


def test_blank_rows_and_columns_around_the_table_are_no_rows(write: Write) -> None:
    table = [[], ["prompt", None, "completion", None], [None, " "], ["Hi", None, "Hello"], [], ["Bye", "x", None]]
    rows = dataset.read_rows(write({"Sheet1": table}))
    assert rows.columns == ("prompt", "column 2", "completion")
    assert list(rows) == [
        {"prompt": "Hi", "column 2": "", "completion": "Hello"},
        {"prompt": "Bye", "column 2": "x", "completion": ""},
    ]
    assert (list(rows.numbers), list(rows.lines)) == ([1, 2], [4, 6])


def test_a_row_that_cannot_be_used_is_named(write: Write) -> None:
    read = dataset.load(write({"Sheet1": [*TABLE, ["a", "b", "note"], ["a", "#N/A"], ["a", None], ["", 0]]}))
    assert len(read.examples) == 2 and read.rows == 6
    assert [(bad.row, bad.line) for bad in read.bad] == [(3, 4), (4, 5), (5, 6), (6, 7)]
    words = [
        "has 3 cells, where the header names 2",
        "completion holds the error #N/A",
        "completion is empty",
        "prompt is",
    ]
    assert all(one in str(bad.problem) for one, bad in zip(words, read.bad, strict=True))


def test_the_sheet_that_has_rows_is_taken_and_never_guessed_among_several(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = [["prompt", "completion"], ["1", "2"]]
    one = write({"About": [["Made by hand"]], "Data": TABLE, "Lists": other}, hidden="Lists")
    assert dataset.load(one).rows == 2
    several = write({"Data": TABLE, "More data": other}, "b.xlsx")
    assert (
        f"several sheets with rows: Data, More data. Say which by its name behind a #: {several.name}#Data."
        in refusal(several)
    )
    assert dataset.load(f"{several}#More data").examples[0].messages[1].content == "2"
    assert dataset.load(f"{several}#Data").rows == 2
    monkeypatch.chdir(several.parent)
    assert sources.resolve(f"{several.name}#More data") == f"{several.resolve()}#More data"
    config = Config.read({"data": {"train": f"{several.name}#Data;{several.name}#More data"}})
    assert resolve_paths(config)["data"]["train"] == f"{several.resolve()}#Data;{several.resolve()}#More data"
    assert dataset.load(resolve_paths(config)["data"]["train"]).rows == 3
    assert "There is no sheet Nothing in b.xlsx. Its sheets are Data, More data." in refusal(f"{several}#Nothing")
    assert dataset.load(f"{one}#Lists").rows == 1
    assert "There is no file" in refusal(f"{several.with_name('c.csv')}#Data")
    sharp = several.rename(several.with_name("b#Data.xlsx"))
    assert "several sheets" in refusal(sharp) and dataset.load(f"{sharp}#Data").rows == 2


def test_sheets_without_rows(write: Write) -> None:
    assert "is empty" in refusal(write({"Sheet1": []}))
    assert "has a header and no rows" in refusal(write({"Sheet1": TABLE[:1]}))
    assert "several columns of the same name: a" in refusal(write({"Sheet1": [["a", "a"], [1, 2]]}))


def test_a_file_that_is_no_workbook(tmp_path: Path, write: Write) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(b"")
    assert "is empty" in refusal(path)
    path.write_bytes(b"hello")
    assert "no whole Excel file" in refusal(path)
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2000))
    assert "protected by a password" in refusal(path)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("word/document.xml", "<x/>")
    assert "no whole Excel file" in refusal(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.xlsx"
    path.write_bytes(pack({"Sheet1": TABLE}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("xl/bomb.xml", bytes(10_000_000))
    assert dataset.load(path).rows == 2
    monkeypatch.setattr(readers, "MAX_BYTES", 1_000_000)
    assert path.stat().st_size < 100_000 and "too large" in refusal(path)


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(9))
    path = tmp_path / "a.xlsx"
    with zipfile.ZipFile(io.BytesIO(pack({"Sheet1": TABLE}))) as old, zipfile.ZipFile(path, "w") as new:
        for part in old.infolist():
            data = old.read(part)
            if part.filename == "xl/worksheets/sheet1.xml":
                data = f"<!DOCTYPE worksheet [{laughs}]>".encode() + data.replace(b"</v>", b"&l8;</v>", 1)
            new.writestr(part, data)
    assert "no whole Excel file" in refusal(path)


def test_damage_anywhere_is_a_problem_and_never_a_crash(tmp_path: Path) -> None:
    good, path = pack({"Sheet1": TABLE}), tmp_path / "a.xlsx"
    parts = {
        part.filename: zipfile.ZipFile(io.BytesIO(good)).read(part)
        for part in zipfile.ZipFile(io.BytesIO(good)).infolist()
    }
    for seed in range(150):
        draw, data = random.Random(seed), bytearray(good)
        if seed % 2:  # whole as an archive, wrong inside
            name = draw.choice(sorted(parts))
            inner = bytearray(parts[name])
            for _ in range(draw.randrange(1, 9)):
                inner[draw.randrange(len(inner))] = draw.randrange(256)
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                for other, content in parts.items():
                    archive.writestr(other, bytes(inner) if other == name else content)
            data = bytearray(packed.getvalue())
        else:
            data[draw.randrange(len(data))] = draw.randrange(256)
            data = data[: draw.randrange(1, len(data))] if seed % 3 == 0 else data
        path.write_bytes(data)
        try:
            read = dataset.load(path)
        except Problem as problem:
            assert str(problem)
        else:
            assert len(read.examples) + len(read.bad) == read.rows
