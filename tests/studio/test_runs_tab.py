"""The Runs page: found, sorted, laid over each other, named, queued, taken in and deleted; and quick with many of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core import queue, runs
from core.config import Config, load_yaml
from core.notes import Notes
from core.problem import Problem
from core.runs import Run
from studio import notifier as notifiers
from studio import overview as overviews
from studio import report
from studio.metrics import Reader, Steps, read_metrics
from studio.overview import Overview, overview
from studio.panel import find
from studio.tabs.runs import _Runs

STATE = ({}, {}, [], "")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def tab(draw: Any) -> Iterator[_Runs]:
    yield draw(_Runs)


def _run(name: str, losses: tuple[float, ...] = (2.0, 1.0), outcome: str | None = "completed", **settings: Any) -> Run:
    run = runs.create(Config.read({"name": name, **settings}))
    lines = [
        {"step": step, "steps": len(losses), "loss": loss, "tokens": step * 100, "time": 1000.0 + 60 * step}
        for step, loss in enumerate(losses, 1)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if outcome:
        run.finish(outcome, step=len(losses), steps=len(losses), seconds=60.0 * len(losses))  # type: ignore[arg-type]
    return run


def _ids(table: str) -> list[str]:
    return re.findall(r"<tr data-run='([^']+)'", table)


def _open(tab: _Runs, run_id: str = "", view: Any = None, picked: Any = (), search: Any = "", *knobs: Any) -> Any:
    return tab._open(run_id, {}, view or {}, list(picked), search, *knobs)


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_row_shows_a_curve_notes_and_tags_as_text(tab: _Runs) -> None:
    run = _run("plain", (3.0, 2.0, 1.0))
    Notes("<b>new</b>", "<script>alert(1)</script>\nsecond line", ("<i>x</i>", "keep")).write(run)
    table = _open(tab)[tab.table]
    assert "&lt;b&gt;new&lt;/b&gt;" in table and "&lt;script&gt;" in table and "&lt;i&gt;x&lt;/i&gt;" in table
    assert "<script>" not in table and "second line" not in table and "plain</button>" not in table
    points = re.search(r"<polyline points='([^']+)'", table)
    assert points
    heights = [float(pair.split(",")[1]) for pair in points[1].split()]
    assert len(heights) == 3 and heights == sorted(heights), "a falling loss falls on the screen"


def test_the_table_is_sorted_by_any_column_and_what_has_no_value_comes_last(tab: _Runs) -> None:
    low, high, none = _run("b", (1.0,)), _run("a", (5.0,)), _run("c", ())
    shown = _ids(_open(tab, view={"sort": "loss", "down": False})[tab.table])
    assert shown == [low.id, high.id, none.id]
    assert _ids(_open(tab, view={"sort": "loss", "down": True})[tab.table]) == [high.id, low.id, none.id]
    assert _ids(_open(tab, view={"sort": "name", "down": False})[tab.table]) == [high.id, low.id, none.id]
    # A second press on the same head turns it round, another begins anew.
    answer = tab._clicked({"sort": "loss"}, "", {}, {"sort": "name", "down": True}, [], "")
    assert (answer[tab.view]["sort"], answer[tab.view]["down"]) == ("loss", False)
    answer = tab._clicked({"sort": "loss"}, "", {}, answer[tab.view], [], "")
    assert answer[tab.view]["down"] is True and "aria-sort='descending'" in answer[tab.table]


def test_every_word_that_is_searched_for_has_to_be_somewhere(tab: _Runs) -> None:
    one, two = _run("captain"), _run("pirate")
    Notes("", "answers in rhyme", ("sea",)).write(one)
    assert _ids(_open(tab, search="SEA rhyme")[tab.table]) == [one.id]
    assert _ids(_open(tab, search="playground")[tab.table]) == [two.id, one.id]
    assert _ids(_open(tab, search="pirate rhyme")[tab.table]) == []
    assert "No run holds" in _open(tab, search="pirate rhyme")[tab.table]


def test_many_runs_come_in_parts(tab: _Runs) -> None:
    made = [_run(f"run {number:03}", ()) for number in range(60)]
    newest = sorted((run.id for run in made), reverse=True)
    first = _open(tab)
    assert _ids(first[tab.table]) == newest[:50] and "1 to 50 of 60" in first[tab.table]
    second = tab._clicked({"page": "1"}, "", first[tab.seen], {}, [], "")
    assert _ids(second[tab.table]) == newest[50:]
    assert _ids(_open(tab, view={"page": 99})[tab.table]) == newest[50:], "a part that is gone is the last one"


def test_a_folder_that_cannot_be_read_hides_no_other(tab: _Runs) -> None:
    run = _run("good")
    broken = runs.runs_folder() / "00000000-000000-broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("[: no yaml")
    table = _open(tab)[tab.table]
    assert _ids(table) == [run.id, broken.name] and "cannot be read" in table
    assert tab._clicked({"run": broken.name}, "", *STATE) == {tab.page.run: broken.name}
    assert "no valid YAML" in tab.panel.refresh(broken.name, "")[tab.panel.head]
    assert "no valid YAML" in _open(tab, broken.name)[tab.settings]
    assert tab._ask_delete(broken.name)[tab.ask]["visible"] is True
    assert _ids(tab._delete(broken.name, *STATE)[tab.table]) == [run.id] and not broken.exists()


@pytest.mark.parametrize("name", ["notes.json", "metrics.jsonl", "result.json", "samples.jsonl", "worker.json"])
@pytest.mark.parametrize(
    "inside", ["[" * 100_000 + "\n", '{"step": 1, "steps": Infinity, "loss": 1e999, "outcome": "failed"}\n']
)
def test_whatever_lies_in_a_folder_the_pages_go_on(tab: _Runs, name: str, inside: str) -> None:
    good, odd = _run("good"), _run("odd")
    (odd.folder / name).write_text(inside)
    assert set(_ids(_open(tab)[tab.table])) == {good.id, odd.id}
    assert tab.panel.head in tab.panel.refresh(odd.id, "") and odd.state() in runs.ENDED
    assert _ids(tab._delete(odd.id, *STATE)[tab.table]) == [good.id]


def test_settings_that_are_nested_too_deeply_are_told(home: Path) -> None:
    (home / "deep.yaml").write_text("a: " + "[" * 100_000)
    with pytest.raises(Problem):
        load_yaml(home / "deep.yaml")


# --- several runs -----------------------------------------------------------------------------------------------------


def test_ticked_runs_are_laid_over_each_other_with_what_differs(tab: _Runs) -> None:
    first, second = _run("first", (4.0, 2.0)), _run("second <b>", (3.0, 1.0), train={"epochs": 9})
    answer = tab._clicked({"pick": first.id, "on": True}, "", {}, {}, [], "")
    assert answer[tab.picked] == [first.id] and "Tick another" in answer[tab.differing]
    answer = tab._clicked({"pick": second.id, "on": True}, "", {}, {}, [first.id, "no such run", 3], "")
    figure = answer[tab.overlay]["figures"][0]
    assert [trace["name"] for trace in figure["data"]] == ["first", "second &lt;b&gt;"]
    assert figure["data"][0]["line"]["color"] != figure["data"][1]["line"]["color"]
    assert (
        "Epochs" in answer[tab.differing] and "Seed" not in answer[tab.differing] and "<b>" not in answer[tab.differing]
    )
    assert answer[tab.several]["visible"] is True
    gone = tab._clicked({"pick": first.id, "on": False}, "", {}, {}, [first.id], "")
    assert gone[tab.picked] == [] and gone[tab.overlay] == {"figures": []} and gone[tab.several]["visible"] is False


def test_curves_go_by_step_tokens_or_time_smooth_or_not_and_logarithmic(tab: _Runs) -> None:
    run = _run("one", (4.0, 1.0, 4.0, 1.0))
    with (run.folder / "metrics.jsonl").open("a") as file:  # an hour's pause before step 5
        file.write(json.dumps({"event": "resumed", "step": 4, "time": 1240.0 + 3600}) + "\n")
        file.write(json.dumps({"step": 5, "loss": 1.0, "tokens": 500, "time": 1300.0 + 3600}) + "\n")

    def figure(*knobs: Any) -> Any:
        return _open(tab, "", {}, [run.id], "", *knobs)[tab.overlay]["figures"][0]

    plain = figure("step", 0, False)
    assert plain["data"][0]["x"] == [1, 2, 3, 4, 5] and plain["data"][0]["y"] == [4, 1, 4, 1, 1] and not plain["log"]
    assert figure("tokens", 0, True)["data"][0]["x"] == [100, 200, 300, 400, 500] and figure("tokens", 0, True)["log"]
    assert figure("minutes", 0, False)["data"][0]["x"] == [0, 1, 2, 3, 4], "a pause is no time at work"
    even = figure("step", 30, False)["data"][0]["y"]
    assert even[0] == 4 and max(even[1:]) < 4 and min(even) > 1
    assert figure("nonsense", float("nan"), "yes")["data"][0]["x"] == [1, 2, 3, 4, 5]


# --- one run ----------------------------------------------------------------------------------------------------------


def test_a_name_note_and_tags_are_kept_and_shown_everywhere(tab: _Runs) -> None:
    run = _run("old name")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    answer = tab._keep(run.id, *STATE, " New  name ", "a, b,，a ,", " some\nthing\0 ")
    assert Notes.read(run) == Notes("New name", "some\nthing", ("a", "b"))
    assert run.title == "New name" and "New name" in answer[tab.table] and "New name" in answer[tab.panel.head]
    assert {name: (run.folder / name).read_bytes() for name in before} == before, "what the worker wrote is as it was"
    opened = _open(tab, run.id)
    assert (opened[tab.name], opened[tab.tags], opened[tab.note]) == ("New name", "a, b", "some\nthing")
    # The name that it began with is no other name.
    tab._keep(run.id, *STATE, "old name", "", "")
    assert Notes.read(run) == Notes() and run.title == "old name"


@pytest.mark.parametrize("value", [None, 3, ["x"], {"a": 1}, float("nan"), True])
def test_notes_that_are_no_text_are_refused(tab: _Runs, value: Any) -> None:
    run = _run("one")
    for place in range(3):
        typed = ["name", "tags", "note"]
        typed[place] = value
        answer = tab._keep(run.id, *STATE, *typed)
        assert "role='alert'" in answer[tab.note_trouble] or value == ["x"]
    assert Notes.read(run) in (Notes(), Notes("name", "note", ("x",)))


def test_what_is_too_long_is_told_all_at_once() -> None:
    with pytest.raises(Problem) as told:
        Notes.check("x" * 81, "y" * 4001, ",".join(["z" * 31] + [str(number) for number in range(13)]))
    assert len(told.value.parts) == 3


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", '{"name": 3, "note": [], "tags": {"a": 1}}', '{"tags": [1, null, "a"]}']
)
def test_notes_that_another_program_wrote_hurt_nobody(tab: _Runs, text: str) -> None:
    run = _run("one")
    (run.folder / "notes.json").write_text(text)
    assert run.title == "one" and Notes.read(run).name == ""
    assert _ids(_open(tab, run.id)[tab.table]) == [run.id]


def test_files_and_log_of_a_run_are_shown_as_they_grow(tab: _Runs) -> None:
    run = _run("one")
    (run.folder / "log.txt").write_text("<b>began</b>\n")
    opened = _open(tab, run.id)
    assert "metrics.jsonl" in opened[tab.files] and opened[tab.log] == "<b>began</b>\n"
    with (run.folder / "log.txt").open("a") as file:
        file.write("went on\n")
    later = tab._refresh(run.id, opened[tab.seen], {}, [], "")
    assert later[tab.log].endswith("went on\n") and tab.table not in later, "only what changed is sent"


def test_deleting_asks_says_what_it_frees_and_removes_nothing_else(tab: _Runs, home: Path) -> None:
    keep, gone = _run("keep"), _run("gone <b>")
    outside = home / "data" / "rows.jsonl"
    outside.parent.mkdir()
    outside.write_text("{}")
    (gone.folder / "adapter").mkdir()
    with contextlib.suppress(OSError):  # links need rights on Windows
        (gone.folder / "adapter" / "link").symlink_to(outside)
    (gone.folder / "adapter" / "weights").write_bytes(bytes(123_000))
    asked = tab._ask_delete(gone.id)
    assert asked[tab.ask]["visible"] is True and "124 kB" in asked[tab.question] and "<b>" not in asked[tab.question]
    assert find(gone.id) is not None, "a question deletes nothing"
    answer = tab._delete(gone.id, *STATE)
    assert answer[tab.page.run] == "" and _ids(answer[tab.table]) == [keep.id]
    assert not gone.folder.exists() and keep.folder.exists() and outside.read_text() == "{}"


def test_a_folder_that_cannot_be_removed_or_written_is_told(tab: _Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run("one")
    (run.folder / "adapter").mkdir()
    (run.folder / "notes.json").mkdir()
    assert "could be written" in tab._keep(run.id, *STATE, "name", "", "note")[tab.note_trouble]
    (run.folder / "notes.json").rmdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(runs.shutil, "rmtree", refuse)
    assert "could not be deleted" in str(tab._delete(run.id, *STATE)[tab.panel.trouble])


def test_a_zip_can_be_fetched_as_soon_as_a_run_has_ended_and_no_longer(tab: _Runs) -> None:
    run = _run("one", outcome=None)
    opened = _open(tab, run.id)
    assert opened[tab.take] == ""
    run.finish("stopped", step=2)
    ended = tab._refresh(run.id, opened[tab.seen], {}, [], "")
    assert f"{run.id}.zip" in ended[tab.take]
    run.ask("resume")
    assert tab._refresh(run.id, ended[tab.seen], {}, [], "")[tab.take] == ""


def test_an_export_offers_no_checkpoint_and_nothing_to_throw_away(tab: _Runs) -> None:
    for config, offered in ((Config(name="a"), True), (runs.ExportConfig(name="b", run="x"), False)):
        run = runs.create(config)
        (run.folder / "metrics.jsonl").write_text('{"step": 1, "steps": 2, "loss": 1.0, "time": 1}\n')
        with run.claim():
            shown = tab.panel.refresh(run.id, "")
        buttons = (tab.panel.stop, tab.panel.save, tab.panel.discard)
        assert [shown[button]["visible"] for button in buttons] == [True, offered, offered]


def test_settings_go_to_train(tab: _Runs) -> None:
    run = _run("one", train={"epochs": 7})
    answer = tab._take_settings(run.id)
    assert answer[tab.page.config]["config"]["train"]["epochs"] == 7


def test_a_folder_from_elsewhere_is_taken_in_and_opened(tab: _Runs, tmp_path: Path) -> None:
    elsewhere = runs.create(Config(name="afar <b>"), folder=tmp_path / "stick" / "run")
    answer = tab._import(f" {elsewhere.folder} ", "", *STATE)
    assert find(answer[tab.page.run]) is not None and "afar &lt;b&gt;" in answer[tab.import_trouble]
    assert _ids(answer[tab.table]) == [answer[tab.page.run]] and answer[tab.detail]["visible"] is True
    for wrong in (None, "", "/nowhere", "\0", ["x"], "x" * 2000):
        assert "role='alert'" in tab._import(wrong, "", *STATE)[tab.import_trouble]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_the_queue_is_seen_and_changed(tab: _Runs) -> None:
    first, second = _run("first <b>", (), None), _run("second", (), None)
    shown = _open(tab)[tab.waiting]
    assert shown.index("first &lt;b&gt;") < shown.index("second") and "<b>first" not in shown
    moved = tab._change_queue({"act": "earlier", "run": second.id}, "", *STATE)[tab.waiting]
    assert moved.index("second") < moved.index("first") and queue.waiting() == [second, first]
    assert "on hold" in tab._change_queue({"act": "hold", "run": second.id}, "", *STATE)[tab.waiting]
    assert queue.ready(queue.waiting()) == [first]
    assert "paused" in tab._change_queue({"act": "pause"}, "", *STATE)[tab.waiting]
    assert queue.ready(queue.waiting()) == []
    tab._change_queue({"act": "go_on"}, "", *STATE)
    tab._change_queue({"act": "remove", "run": second.id}, "", *STATE)
    queue.pause()
    tab.page.launcher.step()
    assert second.state() == "stopped" and queue.waiting() == [first]
    with first.claim():  # it began just before the button was pressed
        (first.folder / "metrics.jsonl").unlink()
        answer = tab._change_queue({"act": "remove", "run": first.id}, "", *STATE)
        assert "does not wait" in answer[tab.panel.trouble] and not first.asked("stop")


@pytest.mark.parametrize("data", [None, 3, "x", [], {}, {"act": "delete"}, {"act": "hold", "run": "../x"}, {"act": ["hold"]}, {"act": "hold", "run": {"a": 1}}])  # fmt: skip
def test_the_queue_answers_nonsense(tab: _Runs, data: Any) -> None:
    run = _run("one", (), None)
    tab._change_queue(data, "", *STATE)
    assert queue.waiting() == [run] and queue.read() == queue.Order()


@pytest.mark.parametrize("data", [None, 3, [], {"sort": "__class__"}, {"sort": ["loss"]}, {"page": -1}, {"page": "9" * 99}, {"pick": 3}, {"run": {}}])  # fmt: skip
def test_the_table_answers_nonsense(tab: _Runs, data: Any) -> None:
    _run("one")
    answer = tab._clicked(data, data, data, data, data, data)
    assert tab.page.run not in answer
    assert answer.get(tab.picked, []) in ([], [data])


# --- summed up once for all pages -------------------------------------------------------------------------------------


def test_what_has_ended_is_read_once_and_known_by_the_next_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run("one", (3.0, 2.0))
    first = Overview()
    (seen,) = first.look()
    assert (seen.loss, seen.step, seen.state) == (2.0, 2, "completed")
    reads: list[Path] = []
    real = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self: (reads.append(self.path), real(self))[1])
    assert first.look(now=True) == Overview().look() == [seen] and reads == []
    # Another size or time of any of its files, and it is read again.
    Notes("named").write(run)
    assert first.look(now=True)[0].title == "named" and len(reads) == 1
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "steps": 3, "loss": 0.5}\n')
    assert first.look(now=True)[0].loss == 0.5


@pytest.mark.parametrize("text", ["", "[", "[]", '{"version": 1, "runs": {"x": 3}}', '{"version": 99, "runs": {}}'])
def test_summaries_that_are_none_of_ours_are_made_anew(home: Path, text: str) -> None:
    run = _run("one")
    (home / "overview.json").write_text(text)
    assert [one.id for one in Overview().look()] == [run.id]


def test_nobody_waits_for_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overviews, "_LONG", 1000)
    run = _run("long", tuple(float(loss) for loss in range(900, 0, -1)))
    looking = Overview()
    (seen,) = looking.look()
    assert (seen.loss, seen.step, seen.spark) == (1.0, 900, ()), "its end is known at once, its curve is not"
    looking._reading[run.id].join(30)
    (seen,) = looking.look(now=True)
    assert seen.loss == 1.0 and len(seen.spark) == 40 and seen.spark[0] > seen.spark[-1]


def test_what_no_studio_has_read_comes_part_by_part_and_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, draw: Any
) -> None:
    monkeypatch.setattr(overviews, "_PATIENCE", 0)
    ids = [_run(name).id for name in ("a", "b", "c")][::-1]
    notifier = draw(lambda page: notifiers._Notifier(page))
    assert [(one.id, one.late) for one in overview.look(now=True)] == [(ids[0], False), (ids[1], True), (ids[2], True)]
    assert all(one.state == "completed" for one in overview.look()), "how it ended is known at once"
    assert notifier.bell not in notifier._open() and notifier._refresh("") == gr.skip()
    _run("waits", outcome=None)
    assert [one.late for one in overview.look(now=True)] == [False, False, False, True], "what waits is never late"
    overview.read_all()
    assert [one.step for one in overview.look()] == [2, 2, 2, 2]
    assert len(notifier._refresh("")[notifier.bell]["ended"]) == 3
    assert not any(one.late for one in Overview().look()), "the next studio knows them all"


def test_a_run_that_ended_long_ago_is_looked_at_by_three_times_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run, looking = _run("one"), Overview()

    def rest() -> None:
        """All that was done to it is long ago, and it has been looked at since."""
        for path in (run.folder, run.folder / "control", run.folder / "metrics.jsonl"):
            if path.exists():
                os.utime(path, (next(ago), next(ago)))
        looking.look(now=True)
        looked.clear()

    looked: list[str] = []
    ago = itertools.count(1000)
    real = overviews._stamp
    monkeypatch.setattr(overviews, "_stamp", lambda run: (looked.append(run.id), real(run))[1])
    looking.look()
    looking.look(now=True)
    assert len(looked) == 2, "two changes may have one time"
    rest()
    assert looking.look(now=True)[0].title == "one" and looked == []
    Notes("named").write(run)
    assert looking.look(now=True)[0].title == "named"
    rest()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "steps": 3, "loss": 0.5}\n')
    assert looking.look(now=True)[0].loss == 0.5
    rest()
    run.ask("resume")
    assert looking.look(now=True)[0].state == "queued"
    run.take("resume")
    rest()
    run.ask("resume")
    assert looking.look(now=True)[0].state == "queued", "also when control/ has been there"
    run.take("resume")
    rest()
    runs.delete(run)
    assert looking.look(now=True) == [] and looking._settled == {}


def test_no_look_goes_through_a_run_row_by_row(tab: _Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run("one", tuple(3.0 for _ in range(500)))
    asked: list[Any] = []
    real = Steps.__getitem__
    monkeypatch.setattr(Steps, "__getitem__", lambda steps, at: (asked.append(at), real(steps, at))[1])
    shown = tab.panel.refresh(run.id, "")
    assert shown[tab.panel.chart]["figures"] and "hardly falls" in shown[tab.panel.advice]
    assert 0 < len(asked) < 100, "there may be 200,000"


# --- numbers as columns -----------------------------------------------------------------------------------------------


def test_steps_are_what_was_written() -> None:
    rows = [{"step": 1, "loss": 2.5, "tokens": 10}, {"step": 2, "loss": None, "tokens": 20, "why": "odd"}, {"step": 3, "loss": 1, "more": 7, "tokens": True}]  # fmt: skip
    steps = Steps()
    steps.add(rows[:1])
    steps.add(rows[1:])
    assert len(steps) == 3 and [row["step"] for row in steps] == [1, 2, 3] and steps[-1] == steps[2]
    for row, written in zip(steps, rows, strict=True):
        assert {name: value for name, value in row.items() if value is not None} == {name: value for name, value in written.items() if value is not None}  # fmt: skip
    assert isinstance(steps[0]["step"], int) and isinstance(steps[0]["loss"], float)
    assert steps[1:] == [steps[1], steps[2]]
    with pytest.raises(IndexError):
        steps[3]


def test_what_is_added_or_undone_later_changes_no_snapshot() -> None:
    steps = Steps()
    steps.add([{"step": step, "loss": float(step)} for step in range(1, 6)])
    before = steps.snapshot()
    steps.undo(2)
    steps.add([{"step": 3, "loss": 99.0, "new": 1}])
    assert [row["loss"] for row in before] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in steps] == [1, 2, 99]


def test_numbers_are_read_as_the_engine_reads_them(tmp_path: Path) -> None:
    lines = [{"event": "started", "step": 0}] + [{"step": n, "loss": 9.0 / n, "tokens": n} for n in range(1, 30)]
    lines += [{"step": 29, "eval_loss": 1.0}, {"event": "resumed", "step": 20}, {"step": 20, "eval_loss": 2.0}]
    lines += [{"step": n, "loss": None, "tokens": n} for n in range(21, 25)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + 'not json\n3\n{"step": 25, "lo')
    ours, theirs = Reader(path).read().snapshot(), runs.Metrics(path)
    path.write_text(path.read_text().replace("3\n{", "{"))  # the engine never writes a bare number
    theirs.read()
    assert list(ours.steps) == theirs.steps and ours.evals == theirs.evals and ours.events == theirs.events


def test_a_file_in_the_place_of_another_is_read_anew() -> None:
    run = _run("one", (3.0, 2.0))
    assert len(read_metrics(run).steps) == 2
    longer = run.folder / "other"
    longer.write_text("".join(json.dumps({"step": step, "loss": 7.0}) + "\n" for step in range(1, 40)))
    longer.replace(run.folder / "metrics.jsonl")
    assert [row["loss"] for row in read_metrics(run).steps] == [7.0] * 39


def test_the_notifier_tells_what_has_ended_and_keeps_an_address(draw: Any) -> None:
    from core.notice import Wishes
    from studio.notifier import _Notifier

    notifier = draw(lambda page: _Notifier(page))
    run = _run("one", outcome=None)
    overview.look(now=True)
    assert notifier._open()[notifier.bell] == {"ended": []}
    run.finish("failed", step=2)
    overview.look(now=True)
    answer = notifier._refresh("")
    assert [one["title"] for one in answer[notifier.bell]["ended"]] == ["one"]
    for number in range(25):  # an older run may end last
        _run(str(number))
    overview.look(now=True)
    answer = notifier._refresh("")
    assert len(answer[notifier.bell]["ended"]) == 26
    assert notifier._refresh(answer[notifier.seen]) == gr.skip()
    assert (
        "role='alert'" in notifier._keep("ftp://x")
        and "role='alert'" in notifier._keep({"a": 1})
        and Wishes.read() == Wishes()
    )
    Wishes("http://127.0.0.1/x", ("x",), anywhere=True).write()
    assert "its own network" in notifier._keep("http://127.0.0.1/y") and Wishes.read().webhook == "http://127.0.0.1/x"
    assert "Kept" in notifier._keep("https://a/b") and Wishes.read() == Wishes("https://a/b", ("x",))
    assert "Kept" in notifier._keep("https://name.example/secret-token")
    shown = str(notifier._open().values())
    assert "name.example" in shown and "secret-token" not in shown, "others may look at this page"


def test_what_waited_in_the_queue_was_not_worked_on_meanwhile(home: Path) -> None:
    run = runs.create(Config(name="late"), folder=home / "runs" / "20200101-120000-late")
    with run.claim():
        run.finish("stopped")  # before its first step, and long after it was made
    assert 0 <= report.seconds(run) < 3600
    (run.folder / "metrics.jsonl").write_text(json.dumps({"event": "doing", "time": time.time() - 50}) + "\n")
    assert 40 < report.seconds(run) < 3600
