"""Data sets: every kind of file is read at the first try, and every broken one is answered with a sentence."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from core import dataset, readers
from core.formats import Example, Message
from core.problem import Problem
from core.readers import objects

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
ROW = '{"prompt": "Hi", "completion": "Hello"}\n'
HELLO = Example((Message("user", "Hi"), Message("assistant", "Hello")))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, data: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def refusal(source: Any, **choices: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        dataset.load(source, **choices)
    for part in caught.value.parts:
        assert part.to_do, f"says nothing of what to do: {part}"
        assert part.field and part.field.startswith("data.")
    assert len(str(caught.value)) < 2500
    return caught.value


# ---- real data ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside this checkout")
class TestRealData:
    @pytest.mark.parametrize(
        ("name", "format", "rows"),
        [
            ("alpaca_en_demo.json", "alpaca", 999),
            ("alpaca_zh_demo.json", "alpaca", 1000),
            ("identity.json", "alpaca", 91),
            ("glaive_toolcall_en_demo.json", "sharegpt", 300),
            ("gsm8k_train_2000.jsonl", "completion", 2000),
            ("gsm8k_test.jsonl", "completion", 1319),
            ("squad_train_3000.jsonl", "squad", 3000),
            ("squad_test_600.jsonl", "squad", 600),
            ("tinystories_train.jsonl", "text", 2084),
            ("tinystories_valid.jsonl", "text", 232),
            ("wikisql/train.jsonl", "text", 1000),
            ("wikisql/valid.jsonl", "text", 100),
            ("wikisql/test.jsonl", "text", 100),
        ],
    )
    def test_is_read_whole(self, name: str, format: str, rows: int) -> None:
        data = dataset.load(SHARED / name, strict=True)
        assert (data.format, data.rows, len(data.examples), data.bad) == (format, rows, rows, [])

    @pytest.mark.parametrize(
        "name", ["sms_train.csv", "sms_test.csv", *(f"sst2/sst2_{part}.csv" for part in ("train", "dev", "test"))]
    )
    def test_labels(self, name: str) -> None:
        data = dataset.load(SHARED / name, strict=True)
        assert data.format == "labels"
        assert {example.labels for example in data.examples} in (
            {("ham",), ("spam",)},
            {("negative",), ("positive",)},
        )
        data = dataset.load(SHARED / name, columns={"prompt": "text", "completion": "label"}, strict=True)
        assert {example.messages[-1].content for example in data.examples} in (
            {"ham", "spam"},
            {"negative", "positive"},
        )

    @pytest.mark.parametrize(("name", "rows"), [("train", 10003), ("test", 3080)])
    def test_banking77_has_newlines_within_cells(self, name: str, rows: int) -> None:
        path = SHARED / "banking77" / f"{name}.csv"
        plain = dataset.load(path, strict=True)
        assert plain.format == "labels"
        assert len({example.labels for example in plain.examples}) == 77
        data = dataset.load(path, columns={"prompt": "text", "completion": "category"}, strict=True)
        assert len(data.examples) == rows and len({e.messages[-1].content for e in data.examples}) == 77

    @pytest.mark.parametrize("name", ["squad_train_3000.jsonl", "squad_test_600.jsonl"])
    def test_every_answer_stands_where_it_is_said_to(self, name: str) -> None:
        for example in dataset.load(SHARED / name, strict=True).examples:
            assert example.answers
            for answer in example.answers:
                assert example.context[answer.start :].startswith(answer.text)

    def test_preferences(self) -> None:
        data = dataset.load(SHARED / "dpo_en_demo.json", strict=True)
        assert data.format == "preference" and len(data.examples) == 299
        assert all(one.messages[:-1] == one.rejected.messages[:-1] for one in data.examples)
        chosen = dataset.load(SHARED / "dpo_en_demo.json", "chosen", strict=True)
        assert [one.messages for one in chosen.examples] == [one.messages for one in data.examples]
        data = dataset.load(SHARED / "kto_en_demo.json", strict=True)
        good = dataset.load(SHARED / "kto_en_demo.json", "good", strict=True)
        assert (data.format, good.format, good.rows) == ("judgement", "good", 300)
        assert list(good.numbers) == [n for n, one in zip(data.numbers, data.examples, strict=True) if one.good]
        assert not good.bad and 0 < len(good.examples) < 300

    def test_tools_are_kept(self) -> None:
        data = dataset.load(SHARED / "glaive_toolcall_en_demo.json")
        assert json.loads(data.examples[0].tools)[0]["name"] == "search_recipes"
        assert "tool" in {turn.role for turn in data.examples[0].messages}


def test_a_format_that_leaves_every_row_out_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Hi", "completion": "Go", "label": false}\n' * 2)
    assert len(dataset.load(path).examples) == 2
    with pytest.raises(Problem, match=r"format good leaves every row out.*2 rows") as caught:
        dataset.load(path, "good")
    assert caught.value.field == "data.format"
    path.write_text(path.read_text() + '{"prompt": "Hi", "completion": "Hello", "label": "true"}\n')
    data = dataset.load(path, "good", strict=True)
    assert (data.rows, list(data.numbers), data.bad) == (3, [3], [])


def test_every_built_in_sample_is_read_whole() -> None:
    playground = pytest.importorskip("core.playground")
    if not hasattr(playground, "SAMPLES"):
        pytest.skip("the playground has no samples yet")
    for name in playground.SAMPLES:
        assert dataset.load(f"sample:{name}", strict=True).examples
    assert "sample:" in str(refusal("sample:nothing-like-it"))


def test_squad_as_it_is_published(tmp_path: Path) -> None:
    asked = [
        {"id": "1", "question": "What fell?", "answers": [{"text": "rain", "answer_start": 3}], "is_impossible": False},
        {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": "It rained.", "qas": asked}, {"context": "It snowed.", "qas": asked[:1]}]
    path = tmp_path / "dev.json"
    for indent in (None, 2):  # on one line and on many
        path.write_text(
            json.dumps({"version": "2.0", "data": [{"title": "Weather", "paragraphs": paragraphs}]}, indent=indent)
        )
        data = dataset.load(path, strict=True)
        assert (data.format, data.rows) == ("squad", 3)
        assert [len(example.answers) for example in data.examples] == [1, 0, 1]
        assert data.examples[1].context == "It rained."
        assert data.examples[2].answers[0].start is None  # "rain" is not in "It snowed."
        assert dataset.load(path, limit=2).rows == 2
    path.write_text(json.dumps({"data": [{"title": "x", "paragraphs": [{"qas": [{"question": "?"}]}]}]}))
    assert "'context'" in str(refusal(path))


# ---- kinds of file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", ROW * 2),
        ("a.ndjson", ROW * 2),
        ("a.JSONL", ROW * 2),
        ("lines.json", ROW * 2),
        ("blank.jsonl", "\n" + ROW + " \r\n" + ROW.strip()),
        ("array.json", f"[{ROW},{ROW}]"),
        ("array.jsonl", f"[{ROW},{ROW}]"),
        ("bom.jsonl", b"\xef\xbb\xbf" + ROW.encode() * 2),
        ("utf16.jsonl", (ROW * 2).encode("utf-16")),
        ("utf32.jsonl", (ROW * 2).encode("utf-32")),
        ("packed.jsonl.gz", gzip.compress(ROW.encode() * 2, mtime=0)),
        ("a.csv", "prompt,completion\nHi,Hello\nHi,Hello\n"),
        ("bom.csv", "\ufeffprompt,completion\r\nHi,Hello\r\nHi,Hello\r\n"),
        ("semicolon.csv", "prompt;completion\nHi;Hello\nHi;Hello"),
        ("quoted.csv", '"prompt","completion"\n"Hi","Hello"\n\n"Hi",Hello'),
        ("index.csv", ",prompt,completion\n0,Hi,Hello\n1,Hi,Hello\n"),
        ("a.tsv", "prompt\tcompletion\nHi\tHello\nHi\tHello\n"),
        ("a.csv.gz", gzip.compress(b"prompt,completion\nHi,Hello\nHi,Hello\n", mtime=0)),
    ],
)
def test_kinds_of_file(write: Any, name: str, data: str | bytes) -> None:
    read = dataset.load(write(name, data), strict=True)
    assert list(read.examples) == [HELLO, HELLO] and list(read.numbers) == [1, 2]
    assert len(dataset.load(write(name, data), limit=1).examples) == 1


def test_a_long_cell_and_a_column_without_a_name(write: Any) -> None:
    rows = dataset.read_rows(write("a.csv", f",text\n0,{'x' * 300_000}\n"))
    assert rows.columns == ("column 1", "text") and len(rows[0]["text"]) == 300_000


def test_parquet(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": str(n)}]}
        for n in range(2000)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = dataset.load(tmp_path / "a.parquet", strict=True)
    assert [int(e.messages[1].content) for e in data.examples] == list(range(2000))
    (tmp_path / "b.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert list(dataset.load(tmp_path / "b.parquet.gz").examples) == list(data.examples)
    read = dataset.read_rows(tmp_path / "a.parquet", limit=1500)
    assert len(read) == 1500 and read.columns == ("messages",)
    for index in (1499, 0, 700, -1):
        assert read[index] == rows[:1500][index]
    with pytest.raises(IndexError):
        read[1500]


def test_parquet_with_one_broken_text_loses_one_row(tmp_path: Path) -> None:
    buffer = pyarrow.array([b"good", b"\xff\xff", b"fine"], pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 3, buffer.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    data = dataset.load(tmp_path / "a.parquet")
    assert [e.text for e in data.examples] == ["good", "fine"]
    assert [(bad.row, "UTF-8" in str(bad.problem)) for bad in data.bad] == [(2, True)]


@pytest.mark.parametrize(
    ("text", "texts", "lines"),
    [
        ("one\ntwo\n\n", ["one", "two"], [1, 2]),
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"], [1, 4]),
        ("one\r\n \r\n\r\ntwo\r\nthree", ["one", "two\nthree"], [1, 4]),
        ("\n\none\n", ["one"], [3]),
        ("only", ["only"], [1]),
    ],
)
def test_plain_text_is_cut_at_blank_lines_or_else_at_lines(
    write: Any, text: str, texts: list[str], lines: list[int]
) -> None:
    rows = dataset.read_rows(write("a.txt", text))
    assert [row["text"] for row in rows] == texts
    assert [rows.line(index) for index in range(len(rows))] == lines


def test_cells_and_lines_survive_whatever_they_hold(tmp_path: Path) -> None:
    """The same random rows through CSV, TSV, JSON, JSON lines and Parquet are the same examples."""
    letters = [
        "a",
        "é",
        "你",
        "🦜",
        '"',
        "'",
        ",",
        ";",
        "\t",
        "\n",
        "\r\n",
        "\\",
        "\u2028",
        "\x0b",
        "\x85",
        " ",
        "{",
        "}",
        "0",
    ]
    for seed in range(30):
        draw = random.Random(seed)
        rows = [
            {name: "x" + "".join(draw.choices(letters, k=draw.randrange(12))) for name in ("prompt", "completion")}
            for _ in range(draw.randrange(1, 9))
        ]
        wanted = [Example((Message("user", r["prompt"]), Message("assistant", r["completion"]))) for r in rows]
        for mark, name in ((",", "a.csv"), ("\t", "a.tsv")):
            table = io.StringIO(newline="")
            writer = csv.writer(table, delimiter=mark)
            writer.writerows([["prompt", "completion"], *([r["prompt"], r["completion"]] for r in rows)])
            (tmp_path / name).write_bytes(table.getvalue().encode())
        (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
        lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (tmp_path / "a.jsonl").write_bytes(lines.encode())
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        for path in sorted(tmp_path.glob("a.*")):
            assert list(dataset.load(path, strict=True).examples) == wanted, (seed, path.name)


def test_damage_anywhere_is_a_problem_and_never_a_crash(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["Hi"] * 9, "completion": ["Hello"] * 9}), tmp_path / "seed.parquet"
    )
    files = {
        "a.jsonl": ROW.encode() * 9,
        "a.json": json.dumps(
            [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "é"}]}] * 4
        ).encode(),
        "a.csv": b'prompt,completion\n"Hi ""you""",Hello\nHi,"He\nllo"\n' * 3,
        "a.jsonl.gz": gzip.compress(ROW.encode() * 9, mtime=0),
        "a.parquet": (tmp_path / "seed.parquet").read_bytes(),
    }
    for name, good in files.items():
        for seed in range(150):
            draw, data = random.Random(seed), bytearray(good)
            for _ in range(draw.randrange(1, 4)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            end = draw.randrange(1, len(data)) if seed % 3 == 0 else len(data)
            (tmp_path / name).write_bytes(data[:end])
            try:
                read = dataset.load(tmp_path / name)
            except Problem as problem:
                assert str(problem)
            else:
                assert len(read.examples) + len(read.bad) == read.rows


# ---- broken files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        (
            "latin.jsonl",
            ROW.encode() * 2 + b'{"prompt": "na\xefve"}',
            "Line 3 of latin.jsonl is not UTF-8: the byte 0xef, number 15",
        ),
        ("gbk.csv", "prompt,completion\n你好,世界\n".encode("gbk"), "Line 2 of gbk.csv is not UTF-8"),
        ("cut.jsonl", ROW.encode("utf-16")[:-1], "not UTF-16"),
        ("utf16le.csv", "prompt,completion\nHi,Hello".encode("utf-16-le"), "UTF-16 without its mark"),
        ("empty.json", "", "empty.json is empty"),
        ("blank.jsonl", " \n\n", "blank.jsonl is empty"),
        ("bom.csv", b"\xef\xbb\xbf", "bom.csv is empty"),
        ("empty.parquet", "", "empty.parquet is empty"),
        ("list.json", "[]", "holds an empty list"),
        (
            "header.csv",
            "prompt,completion\n",
            "has a header and no rows. Its first line is read as the names of the columns",
        ),
        ("noheader.csv", "Who is it?,A friend\nWhat now?,Wait\n", "Their columns are Who is it?, A friend"),
        ("twice.csv", "a,b,a\n1,2,3\n", "several columns of the same name: a"),
        (
            "headerquote.csv",
            'prompt,"completion\nHi,Hello\n',
            "a quote is opened and never closed. It is in the first line",
        ),
        ("broken.json", '[{"prompt": "a",\n "completion" "b"}]', "line 2, column 15: Expecting ':' delimiter"),
        ("comma.json", '[{"prompt": "a"},\n]', "broken JSON at line 2, column 1"),
        ("open.json", "[" + ROW, "broken JSON at line 2, column 1"),
        (
            "object.json",
            '{\n "version": 1,\n "data": []\n}',
            "and a list of rows is needed. Its keys are version, data",
        ),
        ("brokenobject.json", '{\n "version": 1\n "data": []\n}', "broken JSON at line 3, column 2"),
        ("html.json", "<html>", "broken JSON at column 1"),
        (
            "numbers.json",
            "[1, 2]",
            "The row is of type number, and an object with named columns is needed. Found in 2 of 2 rows",
        ),
        (
            "arrays.json",
            "[1]\n[2]\n",
            "The row is of type list, and an object with named columns is needed. Found in 2 of 2",
        ),
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("torn.jsonl.gz", gzip.compress(ROW.encode() * 9, mtime=0)[:-9], "cannot be unpacked"),
        ("fake.jsonl.gz", "hello", "cannot be unpacked"),
        ("fake.parquet", "hello, I am no parquet", "no whole Parquet file"),
        ("a.pkl", "x", "can run a program that is hidden"),
        ("a.pt", "x", "can run a program that is hidden"),
        ("pytorch_model.bin", "x", "can run a program that is hidden"),
        ("a.pkl.gz", "x", "can run a program that is hidden"),
        ("a.zip", "x", "archives are not unpacked"),
        ("a.tar.gz", "x", "archives are not unpacked"),
        ("a.xls", "x", "save it as .xlsx"),
        ("a.docx", "x", "of a kind that cannot be read. Endings that can be read: .json"),
        ("noending", "x", "of a kind that cannot be read"),
        ("a.parquet.gz", "x", "cannot be unpacked"),
        ("b.parquet.gz", gzip.compress(b"x", mtime=0), "no whole Parquet file"),
        ("c.parquet.gz", gzip.compress(b"", mtime=0), "c.parquet.gz is empty"),
    ],
)
def test_a_file_that_cannot_be_read(write: Any, name: str, data: str | bytes, words: str) -> None:
    assert words.lower() in str(refusal(write(name, data))).lower()


def test_a_file_that_is_not_there(tmp_path: Path, write: Any) -> None:
    write("identity.json", ROW)
    assert "Similar names there: identity.json." in str(refusal(tmp_path / "identty.json"))
    assert "Its folder is not there either" in str(refusal(tmp_path / "no" / "such.json"))
    for name in ("a" * 5000 + ".json", "a\0b.json", "~nobody/x.json"):
        assert "There is no file" in str(refusal(name))
    assert refusal(tmp_path / "x.json", field="data.eval").field == "data.eval"


def test_a_file_larger_than_memory(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_BYTES", 1000)
    assert len(dataset.load(write("a.jsonl", ROW * 100), strict=True).examples) == 100
    assert len(dataset.load(write("a.json", f"[{','.join([ROW] * 100)}]"), strict=True).examples) == 100
    squad = json.dumps({"data": [{"paragraphs": [{"context": "x" * 2000, "qas": []}]}]}, indent=1)
    assert "too large" in str(refusal(write("squad.json", squad)))
    monkeypatch.setattr(readers, "MAX_LINE", 1000)
    assert "Line 3 of b.jsonl is longer" in str(refusal(write("b.jsonl", ROW * 2 + "x" * 5000)))
    assert "Line 1 of bomb.jsonl.gz is longer" in str(
        refusal(write("bomb.jsonl.gz", gzip.compress(b"0" * 1_000_000, 9, mtime=0)))
    )


def test_a_list_is_read_in_pieces(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a piece ends, the rows and the places of mistakes are the same."""
    rows = [{"prompt": 'a \\ " é' * n, "completion": n, "more": [n, {"b": None}]} for n in range(1, 9)]
    texts = [
        json.dumps(rows),
        json.dumps(rows, indent=1),
        json.dumps(rows, ensure_ascii=False).replace(", {", " ,\n\n{"),
    ]
    whole = {}
    for size in (1, 2, 3, 7, 50, 1_000_000):
        monkeypatch.setattr(objects, "_PIECE", size)
        for number, text in enumerate(texts):
            assert list(dataset.read_rows(write("a.json", text))) == rows, (size, number)
            for at in range(40, len(text) - 1, 41):
                try:
                    found = str([list(dataset.read_rows(write("b.json", text[:at] + "}" + text[at:])))])
                except Problem as problem:
                    found = str(problem.facts | {"near": ""})
                assert whole.setdefault((number, at), found) == found, (size, number, at)


def test_a_list_in_one_line_longer_than_a_line_may_be(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 1000)
    monkeypatch.setattr(objects, "_PIECE", 300)
    monkeypatch.setattr(objects, "_SNIFFED", 100)
    assert len(dataset.load(write("a.json", json.dumps([json.loads(ROW)] * 200)), strict=True).examples) == 200


def test_a_mistake_early_in_a_list_is_told_without_the_rest(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PIECE", 200)
    fetched = []
    fetch = objects._Array._fetch
    monkeypatch.setattr(objects._Array, "_fetch", lambda *given: fetched.append(1) or fetch(*given))
    problem = refusal(write("a.json", "[" + ",\n".join([ROW, '{"prompt" "x"}', *[ROW] * 500]) + "]"))
    assert "broken JSON at line 3, column 11" in str(problem) and len(fetched) < 5


def test_a_table_of_too_many_columns(write: Any) -> None:
    assert "has 30001 columns" in str(refusal(write("a.csv", "," * 30_000 + "\n")))


def test_half_a_character_anywhere_costs_its_row_alone(write: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    good = {"messages": messages, "tools": '[{"name": "look"}]'}
    rows = [
        good,
        {"messages": messages, "tools": '[{"name": "\\ud800"}]'},
        {"messages": messages, "tools": "[" * 3000},
        good,
    ]
    data = dataset.load(write("a.jsonl", "\n".join(map(json.dumps, rows))))
    assert [bad.row for bad in data.bad] == [2, 3] and data.examples[1].tools == '[{"name": "look"}]'
    asked = [{"question": "Who?", "answers": answers} for answers in (["Ann"], ["Ann", "\ud800"])]
    assert [bad.row for bad in dataset.load(write("b.jsonl", "\n".join(map(json.dumps, asked)))).bad] == [2]
    told = refusal(write("c.jsonl", '{"a\\ud800": 1}\n'))
    assert json.dumps(told.to_data(), ensure_ascii=False).encode()


def test_rows_that_are_all_bad_are_told_of_in_little_memory(write: Any) -> None:
    lines = [f'{{"prompt": "{"x" * (n % 3000)}" "y"}}' for n in range(4000)]
    data = dataset.load(write("a.jsonl", ROW + "\n".join(lines)))
    assert (len(data.examples), len(data.bad)) == (1, 4000) and len({id(bad.problem) for bad in data.bad}) <= 1001


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    assert "no ordinary file" in str(refusal(tmp_path / "a.json"))


# ---- bad rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "row", "line", "words"),
    [
        ("a.jsonl", ROW * 3 + "\n" + '{"prompt": "a" "b"}\n' + ROW, 4, 5, "broken JSON at column 16"),
        ("a.jsonl", ROW * 3 + "[1]\n", 4, 4, "The row is of type list"),
        ("a.json", f"[{ROW},{ROW},null]", 3, None, "The row is of type null"),
        ("a.jsonl", ROW * 3 + '{"messages": []}\n', 4, 4, "The column prompt is missing; the row has messages"),
        ("a.jsonl", ROW * 3 + '{"prompt": "a"}\n', 4, 4, "The column completion is missing"),
        ("a.jsonl", ROW * 3 + '{"prompt": "a", "completion": NaN}\n', 4, 4, "completion is nan"),
        ("a.jsonl", ROW * 3 + '{"prompt": "a", "completion": null}\n', 4, 4, "completion is empty"),
        ("a.jsonl", ROW * 3 + '{"prompt": "a", "completion": 1' + "0" * 5000 + "}\n", 4, 4, "thousands of digits"),
        ("a.jsonl", ROW + '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n", 2, 2, "nested too deeply"),
        ("a.jsonl", ROW + '{"prompt": "\\ud800", "completion": "b"}\n', 2, 2, "half of a character"),
        ("a.jsonl", ROW + '{"prompt": "a", "completion": "' + "x" * 50_000_000 + '"}\n', 2, 2, "50,000,001 characters"),
        (
            "a.csv",
            'prompt,completion\n"a\n""b""",c\nHi,Hello,too\nHi,Hello\n',
            2,
            4,
            "The row has 3 cells, where the header names 2",
        ),
        ("a.csv", "prompt,completion\nHi,Hello\nHi\n", 2, 3, "The row has 1 cells"),
        ("a.csv", 'prompt,completion\nHi,Hello\n"a"b,c\nHi,Hello\n', 2, 3, "The quotes of the row are wrong"),
        ("a.csv", 'prompt,completion\nHi,Hello\n"a,c\nHi,Hello\n', 2, 3, "A quote is opened and never closed"),
        ("a.csv", "prompt,completion\nHi,Hello\n,\n", 2, 3, "prompt is empty"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_row_is_named_and_the_good_ones_are_kept(
    write: Any, name: str, data: str, row: int, line: int | None, words: str
) -> None:
    path = write(name, data)
    read = dataset.load(path)
    assert [(bad.row, bad.line) for bad in read.bad] == [(row, line)]
    assert words in str(read.bad[0].problem)
    assert len(read.examples) == read.rows - 1 and row not in read.numbers
    problem = refusal(path, strict=True)
    assert f"row {row}" in str(problem) and words in str(problem)
    assert line is None or f"line {line})" in str(problem)


def test_strict_counts_the_bad_rows_by_kind(write: Any) -> None:
    path = write("a.jsonl", ROW + '{"prompt": "", "completion": "x"}\n' * 7 + '{"prompt": "k"}\n' + "{oops\n")
    first, second, third = refusal(path, strict=True).parts
    assert "prompt is empty. Found in 7 of 10 rows: row 2, 3, 4, 5, 6 …" in str(first)
    assert "completion is missing" in str(second) and "row 9" in str(second)
    assert "broken JSON" in str(third) and "row 10" in str(third)
    assert [str(p) for p in dataset.load(path).problems()] == [str(first), str(second), str(third)]


def test_no_good_row_at_all_is_a_problem(write: Any) -> None:
    assert "Found in 7 of 7 rows" in str(refusal(write("a.jsonl", '{"prompt": "", "completion": "x"}\n' * 7)))
    assert "Found in 2 of 2 rows" in str(refusal(write("b.jsonl", "{oops\n" * 2)))


def test_one_row_can_be_read_but_not_be_split(write: Any) -> None:
    data = dataset.load(write("a.jsonl", ROW), strict=True)
    assert dataset.split(len(data.examples)) == ([0], [])
    with pytest.raises(Problem, match="At least one must be left") as caught:
        dataset.split(len(data.examples), 0.05)
    assert caught.value.field == "data.eval_fraction"


# ---- split ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [2, 3, 10, 999])
@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.05, 0.5])
def test_split_is_a_partition_and_repeats(rows: int, fraction: float) -> None:
    train, aside = dataset.split(rows, fraction, seed=7)
    assert sorted(train + aside) == list(range(rows)) and train and train == sorted(train)
    assert len(aside) == (max(round(rows * fraction), 1) if fraction else 0)
    assert (train, aside) == dataset.split(rows, fraction, seed=7)


def test_split_depends_on_the_seed_alone() -> None:
    assert dataset.split(1000, 0.1, seed=1) != dataset.split(1000, 0.1, seed=2)
    assert len(dataset.split(10, 0.9, eval_count=3)[1]) == 3
    for rows, count in ((0, 0), (5, 5), (5, 9), (5, -1)):
        with pytest.raises(Problem):
            dataset.split(rows, eval_count=count)


def shares(labels: list[str], count: int, seed: int = 0) -> dict[str, int]:
    """How many rows of each label are set aside."""
    train, aside = dataset.split(len(labels), eval_count=count, seed=seed, labels=labels)
    assert sorted(train + aside) == list(range(len(labels))) and train == sorted(train) and aside == sorted(aside)
    assert (train, aside) == dataset.split(len(labels), eval_count=count, seed=seed, labels=labels)
    return {label: [labels[index] for index in aside].count(label) for label in dict.fromkeys(labels)}


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ({"a": 50, "b": 50}, 10, {"a": 5, "b": 5}),
        ({"a": 90, "b": 10}, 10, {"a": 9, "b": 1}),
        ({"a": 70, "b": 26, "c": 4}, 10, {"a": 7, "b": 3, "c": 0}),
        ({"a": 66, "b": 24, "c": 10}, 10, {"a": 7, "b": 2, "c": 1}),
        ({"a": 98, "b": 1, "c": 1}, 50, {"a": 50, "b": 0, "c": 0}),  # the only row of a label is learned
        ({"a": 2, "b": 2, "c": 2}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 5, "b": 2}, 5, {"a": 4, "b": 1}),
        ({"a": 4, "b": 1}, 4, {"a": 3, "b": 1}),  # more than can be left of every label: the single row goes first
        ({"a": 1, "b": 1, "c": 2}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 3}, 2, {"a": 2}),
        ({"a": 3, "b": 3}, 0, {"a": 0, "b": 0}),
    ],
)
def test_every_label_gives_its_share(sizes: dict[str, int], count: int, expected: dict[str, int]) -> None:
    labels = [label for label, size in sizes.items() for _ in range(size)]
    for seed in range(20):
        random.Random(seed).shuffle(labels)
        assert shares(labels, count, seed) == expected


def test_shares_of_many_labels_are_near_the_whole_and_equals_are_drawn() -> None:
    for seed in range(200):
        draw = random.Random(seed)
        sizes = [draw.randrange(1, 9) for _ in range(draw.randrange(2, 9))]
        labels = [str(label) for label, size in enumerate(sizes) for _ in range(size)]
        count = draw.randrange(len(labels))
        found = list(shares(labels, count, seed).values())
        assert sum(found) == count
        able = sum(size - 1 for size in sizes)
        if count <= able + sizes.count(1):
            assert all(share < size for share, size in zip(found, sizes, strict=True) if size > 1)
        if count <= able and 1 not in sizes:
            assert all(abs(share - count * size / len(labels)) < 1 for share, size in zip(found, sizes, strict=True))
    even = [str(label) for label in range(20) for _ in range(5)]
    assert len({tuple(shares(even, 3, seed).items()) for seed in range(20)}) > 10


def test_rows_without_labels_are_set_aside_as_ever() -> None:
    assert dataset.split(20, eval_count=4, seed=3)[1] == sorted(random.Random(3).sample(range(20), 4))
    assert dataset.split(20, eval_count=4, seed=3, labels=["a"] * 20) == dataset.split(20, eval_count=4, seed=3)


def test_labels_of_a_data_set(write: Any) -> None:
    assert dataset.load(write("a.csv", "text,label\nHi,a\nHo,b\n")).labels == ["a", "b"]
    assert dataset.load(write("b.jsonl", '{"text": "Hi", "labels": ["a"]}\n')).labels == ["a"]
    assert (
        dataset.load(write("b.jsonl", '{"text": "Hi", "labels": ["a"]}\n{"text": "Ho", "labels": []}\n')).labels is None
    )
    assert dataset.load(write("b.jsonl", '{"text": "Hi", "labels": ["a", "b"]}\n')).labels is None
    assert dataset.load(write("c.jsonl", ROW)).labels is None


# ---- hub ------------------------------------------------------------------------------------------------------------


def test_the_hub_is_asked_only_for_an_id(tmp_path: Path) -> None:
    """In a process of its own, because the hub's client reads HF_HUB_OFFLINE once; no request can leave it."""
    code = (
        "import sys\n"
        "from core import dataset\n"
        "from core.problem import Problem\n"
        "for source in sys.argv[1:]:\n"
        "    try: dataset.read_rows(source)\n"
        "    except Problem as problem: print(problem)\n"
        "    print('datasets' in sys.modules, 'torch' in sys.modules)\n"
    )
    (tmp_path / "folder").mkdir()
    sources = ["folder/nothing", "typo/data.jsn", "../x", "nobody/nothing", "hub:nobody/nothing:main:train"]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", code, *sources], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.startswith("There is no file") for line in lines[0:6:2]] == [True] * 3
    assert lines[1:6:2] == ["False False"] * 3
    assert [line.startswith("The data set nobody/nothing could not be fetched") for line in lines[6::2]] == [True] * 2
    assert lines[7::2] == ["True False"] * 2


# ---- uploads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("my data.csv", "-my_data.csv"),
        ("évil näme<>|?* 你好.JSONL.GZ", "-évil_näme_你好.jsonl.gz"),
        ("..\\..\\CON.csv", "-CON.csv"),
        ("---.txt", "----.txt"),
        ("$(rm -rf).json", "-rm_-rf.json"),
        ("你" * 80 + ".parquet", "-" + "你" * 40 + ".parquet"),
    ],
)
def test_an_upload_gets_a_safe_name(tmp_path: Path, name: str, ending: str) -> None:
    source = tmp_path / name
    try:
        source.write_text(ROW)
    except OSError:
        pytest.skip("this file system does not take such a name")
    home = tmp_path / "home" / "uploads"
    first, second = dataset.import_file(source, home), dataset.import_file(source, home)
    assert first.name.endswith(ending) and first != second
    assert first.parent == home and first.read_text() == ROW
    assert len(first.name.encode()) < 200 and {p.name for p in home.iterdir()} == {first.name, second.name}
    if os.name == "posix":
        assert first.stat().st_mode & 0o777 == 0o600 and home.stat().st_mode & 0o777 == 0o700


def test_an_upload_that_cannot_be_kept_leaves_nothing(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with pytest.raises(Problem, match="can run a program"):
        dataset.import_file(write("a.pkl", "x"), home)
    with pytest.raises(Problem, match="There is no file"):
        dataset.import_file(tmp_path / "missing.csv", home)
    assert not home.exists()

    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset.os, "fsync", fill)
    with pytest.raises(Problem, match="The disk is full") as caught:
        dataset.import_file(write("a.jsonl", ROW), home)
    assert "free" in str(caught.value) and list(home.iterdir()) == []


def test_a_paragraph_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path, line = tmp_path / "a.txt", "x" * 999 + "\n"
    path.write_text("first\n\n" + line * 60_000 + "\nlast\nof all\n")
    tracemalloc.start()
    read = dataset.load(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [one.text for one in read.examples] == ["first", "last\nof all"] and list(read.numbers) == [1, 3]
    assert "59,999,999 characters" in str(read.bad[0].problem) and (read.bad[0].row, read.bad[0].line) == (2, 3)
    assert most < 30_000_000


def test_what_a_killed_upload_left_is_removed_by_the_next(tmp_path: Path, write: Any) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name, age in (("killed.partial", 7200), ("going-on.partial", 0)):
        (home / name).write_text("half")
        os.utime(home / name, (time.time() - age,) * 2)
    kept = dataset.import_file(write("a.jsonl", ROW), home)
    assert {path.name for path in home.iterdir()} == {"going-on.partial", kept.name}
