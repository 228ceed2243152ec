"""Changing a training on its way and training on: what is said before the press, and what the worker makes of it."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import changes, fit, runs
from core.config import Config
from core.runs import Run
from studio import language, report
from studio.course import Course
from studio.form import knobs
from studio.language import Language
from studio.metrics import read_metrics
from studio.panel import Panel
from studio.tabs.runs import _Runs

PER_EPOCH = 10


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def panel(draw: Any, home: Path) -> Panel:
    return draw(_Runs).panel


def _run(outcome: str | None = "completed", steps: int = 30, **train: Any) -> Run:
    """A run of three epochs, of ten steps each, that is at this step."""
    run = runs.create(Config.read({"name": "one", "train": {"epochs": 3, "learning_rate": 1e-3, "warmup": 0} | train}))
    settings, last = run.config().train, fit.limit_steps(run.config().train, PER_EPOCH)
    lines = [
        {"step": step, "steps": last, "epoch": step / PER_EPOCH, "loss": 2.0, "learning_rate": fit.learning_rate(step - 1, last, settings)}
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "checkpoints" / f"step-{steps:06d}").mkdir(parents=True)
    if outcome:
        run.finish(outcome, step=steps, steps=last)  # type: ignore[arg-type]
    return run


def _opened(panel: Panel, run: Run) -> dict[Any, Any]:
    return panel.refresh(run.id, "")


def _typed(course: Course, opened: dict[Any, Any], more: Any = None, unit: Any = None, **settings: Any) -> list[Any]:
    """What the page sends after its fields were filled so, and these were typed over."""
    typed = {key.replace("train.", ""): opened[box] for key, box in course.boxes.items()} | settings
    opened_with = [opened[course.more] if more is None else more, opened[course.unit] if unit is None else unit]
    return [opened[course.offer], *opened_with, *typed.values()]


def _words(html: str) -> list[str]:
    return re.findall(r"<li>(.*?)</li>", html)


def _asked(run: Run) -> dict[str, Any]:
    return (run.read_json("control/change") or {}).get("set", {})


def test_what_can_be_changed_is_what_the_worker_takes(panel: Panel) -> None:
    run = _run(None, 12)
    opened = _opened(panel, run)
    assert tuple(panel.course.boxes) == changes.CHANGEABLE
    assert opened[panel.course.fold]["visible"] is True and opened[panel.course.length]["visible"] is False
    assert opened[panel.course.boxes["train.learning_rate"]] == 1e-3 and not opened[panel.course.says]
    # What is typed stays while the numbers grow.
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 13, "steps": 30, "epoch": 1.3, "loss": 1.0, "learning_rate": 5e-4}) + "\n")
    later = panel.refresh(run.id, opened[panel.seen], opened[panel.course.offer])
    assert panel.head in later and not set(later) & set(panel.course.outputs)


def test_the_first_step_leaves_what_is_typed_alone(panel: Panel) -> None:
    run = _run(None, 0)
    opened = _opened(panel, run)
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "steps": 30, "epoch": 0.1, "loss": 1.0, "learning_rate": 5e-4}) + "\n")
    later = panel.refresh(run.id, opened[panel.seen], opened[panel.course.offer])
    assert set(later) & set(panel.course.outputs) == {panel.course.offer}
    assert later[panel.course.offer]["per_epoch"] == PER_EPOCH


def test_what_kept_no_checkpoint_is_said_to_begin_anew(panel: Panel) -> None:
    run = _run("completed", 30)
    assert "step 30" in _opened(panel, run)[panel.course.about]
    shutil.rmtree(run.folder / "checkpoints")
    assert "from the start" in _opened(panel, run)[panel.course.about]


def test_a_change_is_said_before_the_press_and_asked_for_once(panel: Panel) -> None:
    run = _run(None, 12)
    course, opened = panel.course, _opened(panel, run)
    typed = _typed(course, opened, learning_rate=1e-4, epochs=2, early_stopping=4)
    told = _words(course.preview(run, *typed)[course.says])
    assert told[0].startswith("Epochs becomes 2; it is 3") and told[1].startswith("Learning rate becomes 0.0001")
    assert told[2].startswith("Early stopping becomes 4; it is –") and told[3] == "It will be 20 steps instead of 30."
    settings = run.config().train.model_copy(update={"learning_rate": 1e-4})
    first, end = (Language("en").small(fit.learning_rate(step, 20, settings)) for step in (12, 19))
    assert f"goes on at {first} and is {end} at the end: cosine, over all 20 steps" in told[4]
    answer = panel._change(run.id, *typed)
    assert "Asked for" in answer[course.told]
    wanted = {"train.learning_rate": 1e-4, "train.epochs": 2, "train.early_stopping": 4}
    wish = run.read_json("control/change")
    assert wish and wish["set"] == wanted
    assert "Asked for" in panel._change(run.id, *typed)[course.told] and run.read_json("control/change") == wish
    # The fields are filled with what is to come, and nothing of it is asked for again.
    again = panel._change(run.id, *_typed(course, answer))
    assert "Nothing is changed yet" in again[course.told] and run.read_json("control/change") == wish


def test_a_page_that_is_behind_takes_nothing_back(panel: Panel) -> None:
    run = _run(None, 12)
    behind = _opened(panel, run)
    changes.ask(run, {"train.learning_rate": 5e-4})
    panel._change(run.id, *_typed(panel.course, behind, early_stopping=2))
    assert _asked(run) == {"train.learning_rate": 5e-4, "train.early_stopping": 2}


def test_an_end_that_is_past_comes_at_the_next_step(panel: Panel) -> None:
    run = _run(None, 12)
    typed = _typed(panel.course, _opened(panel, run), max_steps=5)
    assert "ends at its next step: 12" in _words(panel.course.preview(run, *typed)[panel.course.says])[-1]


@pytest.mark.parametrize(
    ("train", "more", "unit", "asked", "end"),
    [
        ({}, 2, "epochs", {"train.epochs": 5}, 50),
        ({}, 7, "steps", {"train.max_steps": 37, "train.epochs": 4}, 37),
        ({}, 0.5, "epochs", {"train.max_steps": 35, "train.epochs": 4}, 35),
        ({"max_steps": 30, "epochs": 9}, 1, "epochs", {"train.max_steps": 40}, 40),
    ],
)
def test_a_finished_run_trains_on_for_so_much(
    panel: Panel, train: dict[str, Any], more: float, unit: str, asked: dict[str, Any], end: int
) -> None:
    run = _run(**train)
    course, opened = panel.course, _opened(panel, run)
    assert opened[course.length]["visible"] is True and opened[course.columns["train.epochs"]]["visible"] is False
    assert (opened[course.more], opened[course.unit]) == (1, "epochs")
    typed = _typed(course, opened, more, unit)
    told = _words(course.preview(run, *typed)[course.says])
    assert told[0] == f"It trains from step 30 to step {end}." and f"over all {end} steps" in told[1]
    assert told[2].startswith("It rises again with that")
    answers = [panel._change(run.id, *typed) for _ in range(3)]
    assert all("goes on as soon as" in answer[course.told] for answer in answers)
    assert run.state() == "queued" and _asked(run) == asked
    assert fit.limit_steps(changes.expected(run).train, PER_EPOCH) == end


def test_two_presses_at_once_make_it_longer_once(panel: Panel) -> None:
    run = _run()
    typed = _typed(panel.course, _opened(panel, run))
    threads = [threading.Thread(target=panel._change, args=(run.id, *typed)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.state() == "queued" and _asked(run) == {"train.epochs": 4}


def test_a_press_that_comes_after_it_has_gone_on_is_told_so(panel: Panel) -> None:
    run = _run()
    course, typed = panel.course, _typed(panel.course, _opened(panel, run))
    (run.folder / "checkpoints" / "step-000040").mkdir()
    answer = panel._change(run.id, *typed)
    assert "has gone on since this was shown" in answer[course.told] and "step 40" in answer[course.about]
    assert run.state() == "completed" and not changes.waits(run)
    at_work = _run(None, 12)
    typed = _typed(course, _opened(panel, at_work), learning_rate=1e-4)
    at_work.finish("completed", step=30, steps=30)
    assert "has gone on since" in panel._change(at_work.id, *typed)[course.told] and not changes.waits(at_work)


def test_a_stopped_run_goes_on_to_its_end_otherwise(panel: Panel) -> None:
    run = _run("stopped", 12)
    opened = _opened(panel, run)
    assert (opened[panel.course.more], opened[panel.course.unit]) == (18, "steps")
    panel._change(run.id, *_typed(panel.course, opened, learning_rate=1e-4))
    assert run.state() == "queued" and _asked(run) == {"train.learning_rate": 1e-4}


def test_one_that_ended_early_goes_on_to_the_end_that_it_was_to_have(panel: Panel) -> None:
    run = _run("completed", 20, early_stopping=2)
    opened = _opened(panel, run)
    assert (opened[panel.course.more], opened[panel.course.unit]) == (1, "epochs")
    panel._change(run.id, *_typed(panel.course, opened))
    assert run.state() == "queued" and _asked(run) == {"train.epochs": 3}


@pytest.mark.parametrize("code", language.codes())
def test_mistakes_stand_beside_their_fields_and_change_nothing(draw: Any, home: Path, code: str) -> None:
    panel = draw(_Runs, code).panel
    run = _run()
    course, opened = panel.course, _opened(panel, run)
    answer = panel._change(run.id, *_typed(course, opened, -1, "epochs", learning_rate=7, eval_every=-3))
    title = Language(code).text(knobs()["train.learning_rate"].title)
    assert title in answer[course.notes["train.learning_rate"]] and "7" in answer[course.notes["train.learning_rate"]]
    assert answer[course.notes["train.eval_every"]] and "-1" in answer[course.notes["more"]]
    assert course.boxes["train.learning_rate"] not in answer, "what was typed stays"
    assert run.state() == "completed" and not changes.waits(run)
    for much in (1e9, float("nan"), float("inf"), True, "x", [], None):
        typed = _typed(course, opened)
        typed[1] = much
        assert panel._change(run.id, *typed)[course.notes["more"]], much
    assert run.state() == "completed"


@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, "x" * 10**5, "<script>alert(1)</script>", float("nan")])
def test_nonsense_changes_nothing(panel: Panel, value: Any) -> None:
    run = _run(None, 12)
    course, opened = panel.course, _opened(panel, run)
    for place in range(len(_typed(course, opened))):
        typed = _typed(course, opened)
        typed[place] = value
        answer = panel._change(run.id, *typed)
        told = "".join(shown for shown in answer.values() if isinstance(shown, str)) if isinstance(answer, dict) else ""
        assert "<script>alert" not in told
    wish = changes.expected(run)  # it can still be read
    assert all(value == value for value in wish.train.model_dump().values()), "no number is none"


def test_what_is_no_training_offers_nothing(panel: Panel) -> None:
    export = runs.create(runs.ExportConfig(run="x"))
    broken = _run()
    (broken.folder / "changes.json").write_text('{"changes": [3]}')
    for run in (export, broken):
        assert _opened(panel, run)[panel.course.fold]["visible"] is False
        assert panel._change(run.id, {}, 1, "epochs") is not None


@pytest.mark.parametrize("code", language.codes())
def test_a_change_is_an_event_in_the_words_of_the_form(code: str) -> None:
    words = Language(code)
    event = {"event": "changed", "step": 3, "key": "train.early_stopping", "old": "None", "new": "4"}
    said = report.event_text(words, event)
    assert words.text("Early stopping") in said and "train." not in said and "None" not in said


def _until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_the_worker_does_what_was_said(draw: Any, home: Path, trained_home: Path, trained_run: str) -> None:
    """A run of ten steps is trained on, and changed while it is at work: all of it stands in its numbers."""
    shutil.copytree(trained_home / "runs", home / "runs")
    panel, run = draw(_Runs).panel, runs.find_id(trained_run)
    course, opened = panel.course, _opened(panel, run)
    panel._change(run.id, *_typed(course, opened, 5000, "steps"))
    panel.page.launcher.step()
    try:
        _until(lambda: len(read_metrics(run).steps) > 12)
        end = len(read_metrics(run).steps) + 20
        changed = _typed(course, _opened(panel, run), learning_rate=1e-3, max_steps=end)
        assert "Asked for" in panel._change(run.id, *changed)[course.told]
        _until(lambda: run.state() == "completed")
    finally:
        run.ask("stop")  # of one that has ended nobody takes it
    steps = run.metrics().steps
    told = [event for event in run.metrics().events if event["event"] in ("changed", "course")]
    (at,) = {event["step"] for event in told if event.get("key") == "train.learning_rate"}
    assert [line["learning_rate"] for line in steps] == [0.005] * at + [1e-3] * (end - at) and 12 < at < end
    assert [event["steps"] for event in told if event["event"] == "course"] == [5010, end]
    shown = _opened(panel, run)
    assert "Learning rate is 0.001 from here on; it was 0.005." in shown[panel.events]
    assert f"Done after {end} steps" in shown[panel.head]
