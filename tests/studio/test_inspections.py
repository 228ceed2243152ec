"""All rows looked at from the page: by a real helper process, with what it found read back row by row."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import psutil
import pytest

from core import presets
from core.engine.inspection import inspect
from core.problem import Problem
from studio import inspections, launcher
from studio.form import Form
from studio.inspections import Inspection
from studio.inspector import Inspector
from studio.language import Language


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [talk(f"What is {n}?", f"It is {n}. 猫 é") for n in range(30)]
    lines += [
        talk("Tell me", "a very long story " * 400),
        talk("<b>bold</b>", "a </s> b"),
        talk("What is 3?", "it is 3! 猫 é"),
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def done(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    """An inspection as a helper leaves it."""
    folder = tmp_path_factory.mktemp("inspections") / "done"
    inspect(presets.load("chat", {"data.train": str(rows), "data.max_length": 64, "data.eval_fraction": 0.1}), folder)
    return Inspection(folder)


def test_a_row_as_the_model_reads_it(done: Inspection) -> None:
    tokens = done.tokens(0, 1000)
    assert "".join(token.text for token in tokens if not token.special) == "What is 0?It is 0. 猫 é"
    assert "".join(token.text for token in tokens if token.learned) == "It is 0. 猫 é</s>"
    assert [token.text for token in tokens if token.special] == ["<s>", "<|user|>", "<|assistant|>", "</s>"]
    # A character of several ids is one piece, and no id is lost.
    assert max(len(token.ids) for token in tokens) > 1 and not any("\ufffd" in token.text for token in tokens)
    assert sum(len(token.ids) for token in tokens) == done.count(0)[0]


def test_rows_are_found(done: Inspection) -> None:
    assert len(done) == 33 and [done.number(place) for place in (0, 32)] == [1, 33]
    assert done.extreme(True) == 30 == done.with_trouble("cut_answer", -1) == done.with_trouble("cut_answer", 30)
    read, learned, lost = done.count(30)
    assert read == 64 > learned and lost > 1000
    cut = done.tokens(30, 100)
    assert [token.lost for token in cut].index(True) <= 64 and len(cut) <= 100
    assert done.extreme(False) == 31
    assert (
        done.with_text("IT IS 7", 0) == 7
        and done.with_text("what is", 32) == 0
        and done.with_text("nowhere", 0) is None
    )
    assert done.with_trouble("special", -1) == 31 and done.with_trouble("conflict", -1) is None
    assert done.troubles(32) == ["duplicate"]
    aside = [place for place in range(len(done)) if done.is_aside(place)]
    assert len(aside) == 3 == done.report()["aside_rows"]


@pytest.fixture
def page(home: Path) -> Iterator[Inspector]:
    from studio import window

    blocks = window.build("en", launcher.Launcher())
    found = {
        handler.fn.__self__
        for handler in blocks.fns.values()
        if isinstance(getattr(handler.fn, "__self__", None), Inspector)
    }
    yield found.pop()
    inspections.shared().stop(inspections.shared()._key)


def wait(page: Inspector, key: str, seconds: float = 90) -> dict[Any, Any]:
    """What the page shows when the helper is done, told by the timer alone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = page._refresh(key, "")
        if answer[page.seen] == "done" or not answer[page.key]:
            return answer
        assert "progressbar" in answer[page.state] or "tokenizer" in answer[page.state]
        time.sleep(0.3)
    raise AssertionError("waited too long")


def test_the_page_has_every_row_looked_at(page: Inspector, rows: Path) -> None:
    view = {"source": str(rows), "format": "auto", "columns": {}, "row": 0}
    page.page.launcher.wake()
    answer = page._look(view, Form.fresh().to_memory(), "playground")
    key = answer[page.key]
    assert Inspection(inspections.folder() / key).is_at_work() and answer[page.stop]["visible"]
    told = wait(page, key)
    assert "33 rows as playground reads them" in told[page.state] and "at most 512 tokens" in told[page.state]
    assert "data-row='cut_answer'" in told[page.findings] and "data-row='duplicate'" in told[page.findings]
    assert told[page.place] == 30  # what is worst comes first
    assert "cut off" in told[page.row] and "token learned" in told[page.row]
    figure = told[page.chart]["figures"][0]
    assert sum(figure["data"][0]["y"]) == 33 and figure["data"][1]["x"] == [512, 512]
    # Asked again, nothing is done again; nor for the page of another language.
    helper = inspections.shared()._process
    again = page._look(view, Form.fresh().to_memory(), "playground")
    assert (again[page.key], again[page.seen]) == (key, "done") and inspections.shared()._process is helper
    place, shown = page._move(key, 30, "next")
    assert place == 31 and "<b>bold" not in shown and "&lt;" in shown
    assert page._move(key, 32, "next")[0] == 0 == page._move(key, 9, "first")[0]
    assert page._search(key, 0, "it is 12")[0] == 12
    assert "No row holds" in page._search(key, 0, "zebra")[1]
    event = gr.EventData(None, {"row": "duplicate"})
    assert page._pick(key, 0, view, None, "playground", event)[page.place] == 32
    # A page may send anything.
    for wrong in (None, "", "../runs", 7, "x" * 99, "\U00020000" * 64, [], {}):
        assert page._refresh(wrong, "done") == gr.skip() and page._move(wrong, 0, "next") == gr.skip()
        assert (
            page._pick(wrong, 0, view, None, "playground", event) == gr.skip()
            and page._search(wrong, None, "a") == gr.skip()
        )


def test_nonsense_from_a_page_does_nothing(page: Inspector, rows: Path) -> None:
    view = {"source": str(rows), "format": "auto", "columns": {}, "row": 0}
    key = page._look(view, Form.fresh().to_memory(), "playground")[page.key]
    assert wait(page, key)[page.seen] == "done"
    for told in (
        {"row": []},
        {"row": "nothing"},
        {"mend": "cut_answer 999"},
        {"mend": "cut_answer " + "9" * 5000},
        {"mend": 3},
        {},
    ):
        assert page._pick(key, 0, view, None, "playground", gr.EventData(None, told)) == gr.skip()
    # A name that no file system takes is a sentence.
    answer = page._look({"source": "a" * 300, "format": "auto", "columns": {}}, Form.fresh().to_memory(), "playground")
    answer = wait(page, answer[page.key])
    assert answer[page.key] == "" and "There is no file" in answer[page.state] and "role='alert'" in answer[page.state]
    # A stop that nobody asked for, or asked for twice, ends and deletes nothing.
    inspections.shared().stop(inspections.shared()._key)
    (inspections.folder() / "kept").mkdir()
    before = sorted(inspections.folder().iterdir())
    for wrong in ("", None, 7):
        page._stop(wrong)
    assert sorted(inspections.folder().iterdir()) == before != []
    # A page whose inspection another page ended is as it was before.
    assert page._refresh("0" * 24, "")[page.key] == ""
    # Other rows are looked at now.
    assert page._follow(view, str(rows)) == gr.skip() == page._follow(view, "")
    assert page._follow({**view, "source": "sample:facts"}, str(rows))[page.key] == ""


def test_a_remedy_sets_train_and_looks_again(page: Inspector, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Form.fresh()
    memory.shown["data.max_length"] = 64
    view = {"source": str(rows), "format": "auto", "columns": {}, "row": 0}
    key = page._look(view, memory.to_memory(), "playground")[page.key]
    told = wait(page, key)
    assert (
        "data-mend='cut_answer 0'" in told[page.findings]
        and "Longest row: 512" in told[page.findings]
        and "Rows that are too long: drop them" in told[page.findings]
    )
    answer = page._pick(key, 0, view, memory.to_memory(), "playground", gr.EventData(None, {"mend": "cut_answer 0"}))
    handed = answer[page.page.data]
    assert handed["settings"] == {"data.max_length": 512} and handed["train"] == str(rows)
    assert answer[page.key] not in ("", key)
    assert "at most 512 tokens" in wait(page, answer[page.key])[page.state]


def test_the_model_here_is_the_one_that_train_trains(
    page: Inspector, rows: Path, family: Callable[[str], Path]
) -> None:
    """Chosen here it is handed to Train, looked through at once, and what was found through another is gone."""
    other = str(family("llama"))
    told = page._choose(other)
    assert told[page.page.data]["settings"] == {"model.name": other} and told[page.key] == ""
    view = {"source": str(rows), "format": "auto", "columns": {}, "row": 0}
    config = page._config(view, Form.fresh().to_memory(), other, {})
    assert config.model.name == other and config == page._config(
        view, Form.fresh().for_model(other).to_memory(), other, {}
    )
    with pytest.raises(Problem):
        page._config(view, None, "", {})
    assert "role='alert'" in page._choose(None)[page.state] and "role='alert'" in page._look(view, None, 7)[page.state]


def test_it_can_be_cancelled_and_says_what_is_wrong(page: Inspector, tmp_path: Path, rows: Path) -> None:
    view = {"source": str(rows), "format": "auto", "columns": {}, "row": 0}
    key = page._look(view, Form.fresh().to_memory(), "playground")[page.key]
    process = psutil.Process(inspections.shared()._process.pid)
    assert page._stop(key)[page.key] == "" and inspections.find(key) is None
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"a": 1}\n')
    answer = page._look(
        {"source": str(broken), "format": "auto", "columns": {}}, Form.fresh().to_memory(), "playground"
    )
    told = wait(page, answer[page.key])
    assert "The shape of these rows is not recognised." in told[page.state] and told[page.key] == ""


def test_old_ones_are_forgotten_and_keys_follow_the_file(home: Path, rows: Path, tmp_path: Path) -> None:
    for number in range(12):
        (inspections.folder() / f"old{number}").mkdir()
    config = presets.load("chat", {"data.train": str(rows)})
    one = inspections.shared().start(config)
    inspections.shared().stop(one.key)
    assert len(list(inspections.folder().iterdir())) < 9
    copy = tmp_path / "rows.jsonl"
    copy.write_bytes(rows.read_bytes())
    keys = [inspections._key_of(presets.load("chat", {"data.train": str(copy)}))]
    copy.write_bytes(rows.read_bytes() + b"\n")
    keys.append(inspections._key_of(presets.load("chat", {"data.train": str(copy)})))
    keys.append(inspections._key_of(presets.load("chat", {"data.train": str(copy), "train.learning_rate": 0.5})))
    keys.append(inspections._key_of(presets.load("chat", {"data.train": str(copy), "data.max_length": 99})))
    assert keys[0] != keys[1] == keys[2] != keys[3]


def test_two_studios_on_one_home_leave_each_others_work_alone(home: Path, rows: Path) -> None:
    one, other = inspections.Inspections(), inspections.Inspections()
    try:
        config = presets.load("chat", {"data.train": str(rows)})
        made = one.start(config)
        # What another looks at is followed, and not begun again, nor ended by whoever did not begin it.
        assert other.start(config) == made and other._process is None and other.failure(made) is None
        other.stop(made.key)
        for number in range(12):
            (inspections.folder() / f"old{number}").mkdir()
        os.utime(made.folder, (0, 0))
        later = other.start(presets.load("chat", {"data.train": str(rows), "data.max_length": 99}))
        assert made.is_at_work() and later.is_at_work() and (made.folder / "config.yaml").exists()
        one.stop(made.key)
        assert not made.is_at_work() and later.is_at_work() and not made.folder.exists()
    finally:
        one._end()
        other._end()


def test_every_name_has_its_word() -> None:
    from core.engine.survey import SCRIPTS
    from core.findings import KINDS, SEVERITIES

    words = Language("en")
    for key in [*(f"name_{name}" for name in KINDS), *(f"severity_{name}" for name in SEVERITIES)]:
        assert words.t(f"inspector.{key}")
    page = SimpleNamespace(words=words)
    said = {Inspector._remedy(page, "data.template", to) for to in ("plain", "model")}  # type: ignore[arg-type]
    assert said == {"Chat template: plain", "Chat template: the model's own"}
    for name in (*SCRIPTS, "other", "none"):
        assert words.t(f"inspector.script_{name.lower()}")
