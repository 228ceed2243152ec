"""The Compare tab's handlers, with the real serving process behind them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core import runs
from core.config import Config
from studio import serving
from studio.tabs.compare import COLUMNS, _add, _Compare, _remover

FIELDS = ("", 0.0, 0.95, 0, 30, 1.0, "1")
# A penalty under one makes it repeat itself: it never comes to an end.
LONG = ("", 0.0, 1.0, 0, 8000, 0.5, "1")
SHOWN = [True, True, True, False]


@pytest.fixture
def compare(served: None, draw: Any, trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> _Compare:
    monkeypatch.setenv("ATELIER_HOME", str(trained_home))
    return draw(_Compare)


def chosen(run: Any) -> tuple[Any, ...]:
    return (run, "base", 1.0, run, "applied", 1.0, run, "merged", 1.0, run, "applied", 0.5)


def test_base_adapter_and_merged_answer_side_by_side_with_one_seed(
    compare: _Compare, visitor: Any, merge: Any, trained_run: str
):
    done = asyncio.run(
        merge(compare._send(visitor, "Who are you?", "", SHOWN, False, *chosen(trained_run), *FIELDS[:-1], ""))
    )
    base, applied, merged, unasked = done[compare.round].answers
    assert unasked is None
    assert (base.weights["adapter"], applied.weights["adapter"], merged.weights["adapter"]) == (
        None,
        trained_run,
        trained_run,
    )
    assert merged.weights["merged"] and not applied.weights["merged"]
    assert merged.text == applied.text != base.text
    seed = f"seed {done[compare.round].seed}"
    assert all(seed in done[html] for html in compare.said[:3])
    marked = compare._columns(done[compare.round], True)
    assert "<mark>" in marked[1] and "<mark>" not in marked[0]
    assert compare._columns(done[compare.round], "yes")[1] == done[compare.said[1]], "only true is true"


def test_stop_ends_every_column(compare: _Compare, visitor: Any, merge: Any, trained_run: str):
    async def ask() -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        async for update in compare._send(visitor, "Once", "", SHOWN, False, *chosen(trained_run), *LONG):
            merged |= update if "__type__" not in update else {}
            if not compare.stops:
                continue
            assert await merge(compare._send(visitor, "Twice", "", SHOWN, False, *chosen(trained_run), *FIELDS)) == {}
            if all("caret" in str(merged.get(html)) for html in compare.said[:3]):
                compare._stop(visitor)
        return merged

    done = asyncio.run(ask())
    assert [answer.state for answer in done[compare.round].answers[:3]] == ["stopped"] * 3
    assert not compare.stops and serving.shared()._streams == 0


@pytest.mark.parametrize("bad", ["nobody", None, ["x"], float("nan")])
def test_nonsense_in_a_shown_column_is_refused_in_words(
    compare: _Compare, visitor: Any, merge: Any, trained_run: str, bad: Any
):
    fields = [*chosen(trained_run)]
    fields[4] = bad
    done = asyncio.run(merge(compare._send(visitor, "Who?", "", SHOWN, False, *fields, *FIELDS)))
    assert set(done) == {compare.problem} and "note bad" in done[compare.problem]


def test_columns_on_two_bases_are_refused_and_the_list_offers_none(
    compare: _Compare, visitor: Any, merge: Any, trained_run: str
):
    other = runs.create(Config.read({"name": "elsewhere", "model": {"name": "/another"}}))
    try:
        (other.folder / "adapter").mkdir()
        (other.folder / "adapter" / "adapter_config.json").write_text("{}")
        fields = [*chosen(trained_run)]
        fields[3] = other.id
        done = asyncio.run(merge(compare._send(visitor, "Who?", "", SHOWN, False, *fields, *FIELDS)))
        assert set(done) == {compare.problem} and "share one base" in done[compare.problem]
        updates = compare._choose_lead(*fields)
        assert other.id in [value for _, value in updates[0].choices]
        assert other.id not in [value for _, value in updates[3].choices] and updates[3].value == trained_run
    finally:
        (other.folder / "adapter" / "adapter_config.json").unlink()
        (other.folder / "adapter").rmdir()
        runs.delete(other)


def test_columns_are_added_and_removed():
    shown, *columns, add = _add(SHOWN)
    assert shown == [True] * COLUMNS and all(column.visible for column in columns) and add.interactive is False
    shown, *columns, add = _remover(1)(shown)
    assert shown == [True, False, True, True] and add.interactive
    assert _add(shown)[0] == [True] * COLUMNS
    assert _add([True] * COLUMNS)[0] == [True] * COLUMNS


def test_without_runs_it_says_what_to_do(draw: Any, home: Path):
    compare = draw(_Compare)
    *_, nothing, everything, _, _, _, _, _followed = compare._refresh("", "", *chosen(""))
    assert nothing.visible is True and everything.visible is False
    assert "data-go='train'" in compare._nothing()


def test_a_page_that_was_drawn_before_there_were_runs_begins_with_the_newest(compare: _Compare, trained_run: str):
    """Each event of a fresh page may be the first that is answered, with the fields as they were drawn."""
    drawn = ["", "base", 1.0] * COLUMNS
    updates = compare._refresh("", "", *drawn)
    assert [update.value for update in updates[:6]][::3] == [trained_run] * 2
    assert [update.value for update in updates[: 3 * COLUMNS] if isinstance(update, gr.Radio)][:3] == [
        "base",
        "applied",
        "merged",
    ]
    kept = compare._refresh("", updates[-1], *[trained_run, "base", 1.0] * COLUMNS)
    assert {update.value for update in kept[: 3 * COLUMNS] if isinstance(update, gr.Radio)} == {"base"}


def test_a_run_that_another_page_selected_fills_the_columns(compare: _Compare, trained_run: str):
    updates = compare._refresh(trained_run, "", *chosen(""))
    assert [update.value for update in updates[: 3 * COLUMNS] if isinstance(update, gr.Radio)] == [
        "base",
        "applied",
        "merged",
        "applied",
    ]
    assert updates[-1] == trained_run


@pytest.fixture
def solver(served: None, draw: Any, solved_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Compare]:
    # The process that serves has the home in which it was started.
    serving.shared().end()
    monkeypatch.setenv("ATELIER_HOME", str(solved_home))
    yield draw(_Compare)
    serving.shared().end()


def test_labels_stand_beside_labels(solver: _Compare, visitor: Any, merge: Any, solved: dict[str, str]):
    fields = chosen(solved["classification"])
    done = asyncio.run(merge(solver._send(visitor, "a lamp is here.", "", SHOWN, True, *fields, *FIELDS)))
    base, applied, merged, _ = done[solver.round].answers
    assert base.problem is not None and "learned no labels" in str(base.problem), "its head begins at random"
    assert dict(merged.labels) == pytest.approx(dict(applied.labels), abs=1e-3)
    assert all(done[html].count("label-bar") == 3 for html in solver.said[1:3]) and "<mark>" not in done[solver.said[2]]


def test_one_question_about_one_text_goes_to_all(solver: _Compare, visitor: Any, merge: Any, solved: dict[str, str]):
    fields = [*chosen(solved["extractive_qa"])]
    fields[1] = "applied"
    context = "Look: a lamp is on the old table."
    done = asyncio.run(merge(solver._send(visitor, "Where is a lamp?", context, SHOWN, True, *fields, *FIELDS)))
    assert all("<mark>" in done[html] and "found-text" in done[html] for html in solver.said[:3])
    updates = solver._choose_lead(*fields)
    context_field, box, settings, changes = updates[-4:]
    assert context_field.visible and "text above" in box.placeholder and not settings.visible and not changes.visible


def test_runs_of_two_tasks_are_refused_and_the_list_offers_none(
    solver: _Compare, visitor: Any, merge: Any, solved: dict[str, str]
):
    fields = [*chosen(solved["classification"])]
    fields[3] = solved["extractive_qa"]
    done = asyncio.run(merge(solver._send(visitor, "Who?", "A text.", SHOWN, False, *fields, *FIELDS)))
    assert set(done) == {solver.problem} and "different tasks" in done[solver.problem]
    updates = solver._choose_lead(*fields)
    assert [value for _, value in updates[3].choices] == [solved["classification"]]
