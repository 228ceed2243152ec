"""Data sets that take long to read: the page says how far it is, goes elsewhere, and reads each once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core import dataset, runs
from core.problem import Problem
from studio import shelf, window
from studio.form import Form
from studio.shelf import StillReading
from studio.tabs import data as data_tab
from studio.tabs import train as train_tab

ROW = '{"prompt": "Hi", "completion": "Hello"}\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[str, threading.Event, list[int]]]]:
    """A file whose reading waits, after the first thousand rows, until it may go on; and how often it was begun."""
    gate, begun = threading.Event(), []
    load = dataset.load

    def wait(*given: Any, tell: Any = None, **more: Any) -> Any:
        begun.append(1)

        def told(rows: int) -> None:
            tell(rows)
            gate.wait(30)
            tell(rows)  # what was asked meanwhile is heard

        return load(*given, tell=told if tell else None, **more)

    def make() -> tuple[str, threading.Event, list[int]]:
        path = tmp_path / "rows.jsonl"
        path.write_text(ROW * 1500)
        monkeypatch.setattr(dataset, "load", wait)
        return str(path), gate, begun

    yield make
    gate.set()


def test_rows_are_read_on_while_nobody_waits(slow: Callable[[], tuple[str, threading.Event, list[int]]]) -> None:
    source, gate, begun = slow()
    with pytest.raises(StillReading):
        shelf.look(source, patience=0.01)
    one = next(iter(shelf._readings.values()))
    while one.rows < 1000:
        one.thread.join(0.01)
    with pytest.raises(StillReading, match="1,000 so far"):
        shelf.look(source, patience=0)
    assert shelf.remembered(source, "auto", {}) is None
    gate.set()
    assert shelf.look(source, patience=30).rows == 1500 and len(begun) == 1
    assert shelf.look(source, patience=0).rows == 1500 and not shelf._readings and len(begun) == 1


def test_a_reading_that_is_stopped_ends(slow: Callable[[], tuple[str, threading.Event, list[int]]]) -> None:
    source, gate, begun = slow()
    with pytest.raises(StillReading):
        shelf.look(source, patience=0.01)
    one = next(iter(shelf._readings.values()))
    shelf.stop(source)
    gate.set()
    one.thread.join(30)
    assert not one.thread.is_alive() and one.data is None and one.problem is None and not shelf._readings
    assert shelf.look(source, patience=30).rows == 1500 and len(begun) == 2  # asked again, it begins again


def test_what_is_wrong_is_told_by_who_waits(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    for _ in range(2):
        with pytest.raises(Problem, match="is empty"):
            shelf.look(str(tmp_path / "a.jsonl"))
    assert not shelf._readings


def test_the_page_says_how_far_it_is_and_can_end_it(slow: Callable[[], tuple[str, threading.Event, list[int]]]) -> None:
    source, gate, _ = slow()
    blocks = window.build("en")
    handlers = [
        fn.fn.__self__ for fn in blocks.fns.values() if getattr(fn.fn, "__self__", None).__class__.__name__ == "_Data"
    ]
    tab = handlers[0]
    assert isinstance(tab, data_tab._Data)
    shown = tab._look(source, patience=0.01)
    assert shown[tab.clock].active and shown[tab.stop]["visible"] and "still being read" in shown[tab.wait]
    assert shown[tab.use]["interactive"] is False
    view = shown[tab.view]
    again = tab._look_again(view)
    assert again[tab.clock].active
    gate.set()
    while (again := tab._look_again(view))[tab.clock].active:
        threading.Event().wait(0.02)
    assert again[tab.wait] == "" and again[tab.stop]["visible"] is False and "Hello" in again[tab.preview]
    ended = tab._stop(view)
    assert not ended[tab.clock].active and isinstance(ended[tab.clock], gr.Timer)


def test_train_waits_for_rows_without_calling_it_a_mistake(
    slow: Callable[[], tuple[str, threading.Event, list[int]]],
    draw: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, gate, _ = slow()
    monkeypatch.setattr(shelf.look, "__defaults__", ("auto", None, 0.01))
    train, form = draw(train_tab._Train), Form.fresh()
    form.shown["data.train"] = source
    entries = [form.to_memory(), form.size, form.method, *(form.shown[id] for id in train.boxes)]
    shown = train._change(*entries)
    assert shown[train.clock].active and "role='status'" in shown[train.sum] and "still being read" in shown[train.sum]
    assert shown[train.trouble] == "" and "alert" not in shown[train.notes["data.train"]]
    # It may be started all the same: the worker reads the rows itself.
    train._start("0123456789abcdef", *entries)
    assert [run.config().data.train for run in runs.all_runs()] == [source]
    gate.set()
    while (shown := train._look_again(*entries))[train.clock].active:
        threading.Event().wait(0.02)
    assert "75 set aside" in shown[train.sum] and "role='status'" not in shown[train.sum]


def test_a_third_waits_and_what_nobody_asks_for_gives_way(
    slow: Callable[[], tuple[str, threading.Event, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, gate, begun = slow()
    names = []
    for number in range(3):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(ROW * (1200 + number))
        names.append(str(path))
    for name in names[:2]:
        with pytest.raises(StillReading, match="still being read"):
            shelf.look(name, patience=0.01)
    with pytest.raises(StillReading, match="Other rows are being read first"):
        shelf.look(names[2], patience=0.01)
    assert len(begun) == 2
    monkeypatch.setattr(shelf, "_FORGOTTEN", -1.0)  # as if nobody had asked for long
    with pytest.raises(StillReading, match="still being read"):
        shelf.look(names[2], patience=0.01)
    gate.set()
    assert shelf.look(names[2], patience=30).rows == 1202


def test_a_mistake_that_is_kept_keeps_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{oops\n" * 3)
    assert shelf.glance(str(path)).problem is not None
    assert shelf.glance(str(path)).problem.__traceback__ is None
