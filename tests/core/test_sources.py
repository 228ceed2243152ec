"""Several files, folders and the hub: what a source names, and that nothing is mixed that should not be."""

from __future__ import annotations

import gzip
import secrets
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from core import dataset, readers, sources
from core.problem import Problem

Lay = Callable[..., Path]


def row(prompt: str, completion: str = "yes") -> str:
    return f'{{"prompt": "{prompt}", "completion": "{completion}"}}\n'


@pytest.fixture
def lay(tmp_path: Path) -> Lay:
    """Files of one row each: its prompt is the file's name, or its lines are given."""

    def lay(*names: str, **texts: str) -> Path:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_text(row(name))
        for name, text in texts.items():
            (folder / name.replace("_", ".")).write_text(text)
        return folder

    return lay


def asked(source: Any, **choices: Any) -> list[str]:
    return [example.messages[-2].content for example in dataset.load(source, **choices).examples]


def refusal(source: Any, **choices: Any) -> str:
    with pytest.raises(Problem) as caught:
        dataset.load(source, **choices)
    assert all(part.to_do and part.field for part in caught.value.parts)
    return str(caught.value)


# ---- several files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [";", "\n", " ; ", ";;", ";\n"])
def test_several_files_are_one_data_set(lay: Lay, mark: str) -> None:
    folder = lay("b.jsonl", "a.jsonl", "c.jsonl")
    source = mark.join(str(folder / name) for name in ("b.jsonl", "a.jsonl")) + mark
    assert asked(source) == ["b.jsonl", "a.jsonl"]
    assert [one["prompt"] for one in dataset.read_rows(source)] == ["b.jsonl", "a.jsonl"]
    assert list(dataset.read_rows(source).numbers) == list(dataset.load(source).numbers) == [1, 2]
    assert asked(source, limit=1) == ["b.jsonl"]


def test_a_name_with_a_semicolon_is_a_name(lay: Lay) -> None:
    folder = lay("a;b.jsonl", "b.jsonl")
    assert asked(folder / "a;b.jsonl") == ["a;b.jsonl"]
    assert "There is no file" in refusal(f"{folder}/b.jsonl;{folder}/x.jsonl")
    assert "x.jsonl" in refusal(f"{folder}/b.jsonl;{folder}/x.jsonl")
    assert "There is no file" in refusal(";")


@pytest.mark.parametrize("mark", [";", "\n", ";\n "])
def test_a_folder_with_a_semicolon_in_its_name_holds_several_files(tmp_path: Path, mark: str) -> None:
    """Also where a folder is there by a part of the name."""
    folder = tmp_path / "my; data;"
    for there in (tmp_path / "my", folder):
        there.mkdir()
    names = [str(folder / name) for name in ("a.jsonl", "b;c.jsonl", "d.jsonl")]
    for name in names:
        Path(name).write_text(row(name))
    assert sources.pieces(mark.join(names)) == names == asked(mark.join(names))
    assert sources.pieces(f"x;{names[0]};sample:style") == ["x", names[0], "sample:style"]
    assert len(sources.stamp(";".join(names))) == 3


def test_samples_and_files_together(lay: Lay) -> None:
    turns = '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}'
    both = dataset.load(f"sample:style;{lay(a_jsonl=turns)}/a.jsonl")
    assert both.rows == dataset.load("sample:style").rows + 1


def test_rows_are_counted_through_and_the_file_is_named(lay: Lay) -> None:
    folder = lay(a_jsonl=row("1") + "{oops\n" + row("3"), b_jsonl=row("4") + "\n" + row("", "x"), c_json="[3]")
    data = dataset.load(folder)
    assert (data.rows, list(data.numbers)) == (6, [1, 3, 4])
    assert [(bad.row, bad.line, bad.file, bad.row_of_file) for bad in data.bad] == [
        (2, 2, "a.jsonl", 2),
        (5, 3, "b.jsonl", 2),
        (6, None, "c.json", 1),
    ]
    told = [str(problem) for problem in data.problems()]
    assert "row 2 (the first begins on line 2 of a.jsonl)" in told[0]
    assert "row 5 (the first begins on line 3 of b.jsonl)" in told[1]
    assert "row 6 (the first is row 1 of c.json)" in told[2]
    rows = dataset.read_rows(folder)
    assert (list(rows.numbers), [bad.row for bad in rows.bad]) == ([1, 3, 4, 5], [2, 6])
    assert dataset.load(folder, limit=4).rows == 4
    assert "broken JSON" in refusal(folder, strict=True)


def test_files_have_to_be_of_one_shape(lay: Lay) -> None:
    folder = lay("a.jsonl", b_csv="question,answer\nWho?,I\n", c_jsonl='{"system": "s", ' + row("c")[1:])
    assert asked(folder) == ["a.jsonl", "Who?", "c"]
    (folder / "LICENSE.txt").write_text("Do what you like.\n")
    told = refusal(folder)
    assert (
        "a.jsonl and LICENSE.txt are not of one shape" in told or "LICENSE.txt and a.jsonl are not of one shape" in told
    )
    assert "prompt, completion" in told and "text" in told
    (folder / "LICENSE.txt").write_text("")
    assert "LICENSE.txt is empty" in refusal(folder)
    with pytest.raises(Problem, match="not of one shape"):
        dataset.load(f"{folder}/a.jsonl;{folder}/b.csv", columns={"prompt": "prompt", "completion": "completion"})


# ---- folders --------------------------------------------------------------------------------------------------------


def test_a_folder_is_all_files_directly_in_it(lay: Lay) -> None:
    folder = lay("b.jsonl", "a.jsonl", ".hidden.jsonl", "10.jsonl")
    (folder / "more").mkdir()
    (folder / "more" / "c.jsonl").write_text(row("c"))
    (folder / "README.md").write_text("# Read me")
    (folder / "model.bin").write_bytes(b"x")
    assert asked(folder) == asked(f"{folder}/") == ["10.jsonl", "a.jsonl", "b.jsonl"]
    assert not dataset.has_eval_files(folder)


def test_a_folder_without_files(tmp_path: Path) -> None:
    (tmp_path / "x.docx").write_text("x")
    told = refusal(tmp_path)
    assert "No file of the folder" in told and ".jsonl" in told


@pytest.mark.parametrize(
    ("names", "train", "aside"),
    [
        ("train.jsonl test.jsonl", "train.jsonl", "test.jsonl"),
        ("train.jsonl dev.jsonl", "train.jsonl", "dev.jsonl"),
        ("my-train.jsonl my-eval.jsonl", "my-train.jsonl", "my-eval.jsonl"),
        ("x.train.jsonl x.val.jsonl", "x.train.jsonl", "x.val.jsonl"),
        ("TRAIN.JSONL Validation.jsonl", "TRAIN.JSONL", "Validation.jsonl"),
        ("train-00000-of-2.jsonl train-00001-of-2.jsonl test-0.jsonl", "train-00000-of-2.jsonl train-00001-of-2.jsonl", "test-0.jsonl"),
        # The test files are for the end, where there are others to watch the progress on.
        ("train.jsonl validation.jsonl test.jsonl", "train.jsonl", "validation.jsonl"),
        ("train.jsonl contest.jsonl trainer.jsonl", "contest.jsonl train.jsonl trainer.jsonl", ""),
        ("train.jsonl more.jsonl", "more.jsonl train.jsonl", ""),
    ],
)  # fmt: skip
def test_files_named_for_evaluation_are_not_trained_on(lay: Lay, names: str, train: str, aside: str) -> None:
    folder = lay(*names.split())
    assert asked(folder) == train.split()
    assert [one["prompt"] for one in dataset.read_rows(folder)] == train.split()
    assert dataset.has_eval_files(folder) is bool(aside)
    if aside:
        assert asked(folder, aside=True) == aside.split()
        assert asked(folder, field="data.eval") == aside.split()
        # A file that is named by itself is what its place says, whatever it is called.
        assert asked(f"{folder};{folder / aside.split()[0]}") == [*train.split(), aside.split()[0]]
        assert asked(f"{folder};{folder / aside.split()[0]}", aside=True) == aside.split()


@pytest.mark.parametrize("names", ["test.jsonl", "test.jsonl other.jsonl", "train.jsonl test.jsonl other.jsonl", "train.jsonl train_test.jsonl dev.jsonl"])  # fmt: skip
def test_what_is_not_clear_is_asked(lay: Lay, names: str) -> None:
    folder = lay(*names.split())
    told = refusal(folder)
    assert dataset.has_eval_files(folder) is ("train.jsonl" in names)
    assert "It is not clear which files" in told and all(name in told for name in names.split())


def test_a_folder_as_evaluation_data(lay: Lay) -> None:
    assert asked(lay("a.jsonl", "test.jsonl"), field="data.eval") == ["test.jsonl"]
    (lay() / "test.jsonl").unlink()
    assert asked(lay(), field="data.eval") == ["a.jsonl"]


def test_a_stamp_changes_with_any_file(lay: Lay) -> None:
    folder = lay("a.jsonl", "b.jsonl")
    every = [str(folder), f"{folder}/a.jsonl;{folder}/b.jsonl", f"{folder}/b.jsonl"]
    before = [sources.stamp(source) for source in every]
    assert before == [sources.stamp(source) for source in every]
    (folder / "b.jsonl").write_text(row("b") * 2)
    assert all(old != sources.stamp(source) for old, source in zip(before, every, strict=True))
    assert sources.stamp("sample:style") == sources.stamp("no/thing") == sources.stamp("a\0b") == ()


# ---- hub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("owner/name", ("owner/name", None, "train", None)),
        ("hub:owner/name", ("owner/name", None, "train", None)),
        ("owner/name:test", ("owner/name", None, "test", None)),
        ("owner/name:main:test", ("owner/name", "main", "test", None)),
        ("owner/name@v1.0", ("owner/name", None, "train", "v1.0")),
        ("owner/name@0123abc:test", ("owner/name", None, "test", "0123abc")),
        ("hub:owner/na.me@refs/convert/parquet:main:test", ("owner/na.me", "main", "test", "refs/convert/parquet")),
    ],
)
def test_what_a_hub_id_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: str, call: tuple[str | None, ...]
) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)
    asked_for = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> Any:
        asked_for.append((name, config, split, revision))
        table = pyarrow.table({"prompt": ["Hi"] * 3, "completion": ["Hello"] * 3})
        return types.SimpleNamespace(data=types.SimpleNamespace(table=table))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert dataset.load(source, limit=2).rows == 2 and asked_for == [call]
    assert not dataset.has_eval_files(source)


def test_a_path_with_an_at_is_no_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("a request was made"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for source in ("rows/data@v2.csv", "folder/data@v2", "folder/data@refs/x", "./data@v2"):
        assert "There is no file" in refusal(source)


def test_a_revision_is_named_when_it_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    def load_dataset(*_: Any, **__: Any) -> Any:
        raise datasets.exceptions.DatasetNotFoundError("Revision 'v9' doesn't exist")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    assert "owner/name@v9 was not found on the Hugging Face hub. Revision 'v9'" in refusal("owner/name@v9")


@pytest.mark.parametrize("packed", [False, True])
def test_how_far_the_reading_has_come_is_known(tmp_path: Path, packed: bool) -> None:
    names = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    if packed:
        names = [path.with_suffix(".jsonl.gz") for path in names]
    for path in names:
        # What is alike would be packed into next to nothing.
        lines = "".join(row(secrets.token_hex(200)) for _ in range(500))
        path.write_bytes(gzip.compress(lines.encode()) if packed else lines.encode())
    size, shares = sum(path.stat().st_size for path in names), []
    with readers.metered() as meter:
        assert meter.read == 0
        for path in names:
            for _ in sources.read(str(path), None):
                shares.append(meter.read / size)
    assert shares == sorted(shares) and shares[0] < 0.2 and 0.4 < shares[499] < 0.6 and shares[-1] > 0.95
    with readers.metered() as other:
        list(sources.read(str(names[0]), None))
    assert other.read <= names[0].stat().st_size < meter.read


def test_nothing_has_no_files(lay: Lay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the folder in which a process stands."""
    folder = lay("a.jsonl")
    monkeypatch.chdir(folder)
    assert sources.stamp("") == () and len(sources.stamp(str(folder))) == 1
