"""Numbers go to another library as well, and whatever that library does, the run goes on and its own numbers are whole."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from core import runs
from core.config import Config
from core.engine import trackers, worker
from core.engine.loop import Log
from core.engine.trackers import TRACKERS, Tracking
from core.runs import Run


def _run(tracker: str, home: Path) -> Run:
    return runs.create(Config.read({"name": "tracked", "train": {"tracker": tracker, "epochs": 2}}))


def _write(log: Log, first: int, last: int) -> None:
    log.event("started", steps=last) if first == 1 else log.event("resumed", step=first - 1, evaluated=0)
    for step in range(first, last + 1):
        log.write(step=step, steps=last, loss=1.0 / step, learning_rate=0.1, grad_norm=float("nan"))
    log.write(step=last, eval_loss=0.5, eval_f1=0.25)


class _Written:
    """A library that remembers, or does whatever a test wants it to."""

    def __init__(self, run: Run, settings: Mapping[str, Any], resumed: int | None):
        self.run, self.settings, self.resumed = run, settings, resumed
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False
        _Written.made.append(self)

    made: list[_Written] = []
    forgets = False

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.lines.append((step, dict(numbers)))

    def finish(self) -> None:
        self.is_finished = True


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[_Written]:
    monkeypatch.setattr(_Written, "made", [])
    for name in TRACKERS:
        monkeypatch.setitem(TRACKERS, name, _Written)
    return _Written.made


def test_every_tracker_is_a_choice_and_every_choice_a_tracker() -> None:
    from typing import get_args

    from core.config import TrainSettings

    assert set(get_args(TrainSettings.model_fields["tracker"].annotation)) == {"none", *TRACKERS}


@pytest.mark.parametrize("name", TRACKERS)
def test_numbers_arrive_in_order_and_events_do_not(home: Path, written: list[_Written], name: str) -> None:
    log = Log(_run(name, home))
    _write(log, 1, 3)
    log.tracking.close()
    (one,) = written
    assert [step for step, _ in one.lines] == [1, 2, 3, 3]
    assert one.lines[1][1] == {"loss": 0.5, "learning_rate": 0.1}, "a gap is no number"
    assert one.lines[3][1] == {"eval_loss": 0.5, "eval_f1": 0.25}
    assert one.settings["train.epochs"] == 2 and one.resumed is None and one.is_finished


def test_a_resumed_run_tells_where_it_goes_on(home: Path, written: list[_Written]) -> None:
    log = Log(_run("wandb", home))
    _write(log, 8, 9)
    log.tracking.close()
    assert written[0].resumed == 7


@pytest.mark.parametrize("forgets", [False, True])
def test_steps_that_a_library_keeps_though_they_are_done_again_are_told(
    home: Path, written: list[_Written], monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    monkeypatch.setattr(_Written, "forgets", forgets)
    run = _run("mlflow", home)
    for first, last in ((1, 6), (4, 6), (7, 8)):  # the second time from the checkpoint of step 3; then from the last
        log = Log(run)
        _write(log, first, last)
        log.tracking.close()
    told = [(event["first"], event["last"]) for event in run.metrics().events if event["event"] == "tracker_keeps"]
    assert told == ([] if forgets else [(4, 6)])


def test_an_evaluation_that_is_made_again_takes_no_step_away(home: Path, written: list[_Written]) -> None:
    """It is of the step of the checkpoint, whose own numbers are not written again."""
    log = Log(_run("tensorboard", home))
    log.event("resumed", step=3, evaluated=0)
    log.write(step=3, eval_loss=0.5)
    log.tracking.close()
    assert written[0].resumed == 3


def test_nothing_is_asked_of_a_library_that_nobody_wants(home: Path, written: list[_Written]) -> None:
    log = Log(_run("none", home))
    _write(log, 1, 3)
    log.tracking.close()
    assert written == []


@pytest.mark.parametrize("error", [ImportError("No module named x"), RuntimeError("no network"), SystemExit(1)])
@pytest.mark.parametrize("where", ["begin", "log", "finish"])
def test_a_library_that_fails_is_an_event_and_the_numbers_are_whole(
    home: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, where: str
) -> None:
    class Bad(_Written):
        def __init__(self, *rest: Any):
            if where == "begin":
                raise error
            super().__init__(*rest)

        def log(self, numbers: Mapping[str, float], step: int) -> None:
            if where == "log":
                raise error

        def finish(self) -> None:
            raise error

    monkeypatch.setitem(TRACKERS, "mlflow", Bad)
    run = _run("mlflow", home)
    log = Log(run)
    _write(log, 1, 5)
    log.tracking.close()
    metrics = run.metrics()
    assert [row["step"] for row in metrics.steps] == [1, 2, 3, 4, 5] and len(metrics.evals) == 1
    told = [event for event in metrics.events if event["event"] == "tracker_failed"]
    assert len(told) == 1 and type(error).__name__ in told[0]["why"]


def test_a_library_that_hangs_holds_up_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    class Slow(_Written):
        def log(self, numbers: Mapping[str, float], step: int) -> None:
            free.wait(60)

    monkeypatch.setitem(TRACKERS, "trackio", Slow)
    monkeypatch.setattr(trackers, "_MOST_WAITING", 10)
    monkeypatch.setattr(trackers, "_LAST_SECONDS", 0.1)
    run = _run("trackio", home)
    log = Log(run)
    _write(log, 1, 50)
    log.tracking.close()
    assert not free.is_set() and len(run.metrics().steps) == 50
    assert "cannot keep pace" in next(e for e in run.metrics().events if e["event"] == "tracker_failed")["why"]
    free.set()


def test_a_library_that_is_missing_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = _run("wandb", home)
    log = Log(run)
    _write(log, 1, 2)
    log.tracking.close()
    (told,) = [event for event in run.metrics().events if event["event"] == "tracker_failed"]
    assert "wandb" in told["why"] and len(run.metrics().steps) == 2


def test_a_folder_that_is_no_training_has_none(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("job: export\nrun: x\n")
    said: list[str] = []
    Tracking.of(Run(tmp_path), said.append).write({"step": 1, "loss": 1.0})
    assert said == []


def test_tensorboard_reads_what_was_written_and_a_resumed_run_goes_on(home: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = _run("tensorboard", home)
    for first, last in ((1, 6), (4, 5)):  # the second time from the checkpoint of step 3
        log = Log(run)
        _write(log, first, last)
        log.tracking.close()
    read = EventAccumulator(str(run.folder / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert read.Scalars("loss")[4].value == pytest.approx(0.2)
    assert [event.value for event in read.Scalars("eval_f1")][-1] == 0.25
    assert [event for event in run.metrics().events if event["event"] == "tracker_failed"] == []


def test_what_waits_is_written_before_the_run_has_ended_and_until_then_it_is_stopping(
    home: Path, tmp_path: Path, family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, written: list[_Written]
) -> None:
    states: list[str] = []

    class Slow(_Written):
        def log(self, numbers: Mapping[str, float], step: int) -> None:
            super().log(numbers, step)
            self.run.ask("stop")

        def finish(self) -> None:
            super().finish()
            states.append(self.run.state())

    monkeypatch.setitem(TRACKERS, "trackio", Slow)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": "the cat sat on the mat"}) + "\n" for _ in range(8)))
    settings = {
        "task": "text",
        "model": {"name": str(family("gpt2"))},
        "data": {"train": str(rows), "max_length": 32, "eval_rows": 0},
    }
    run = runs.create(Config.read(settings | {"train": {"tracker": "trackio", "max_steps": 100_000, "batch_size": 2}}))
    assert worker.work(run)["outcome"] == "stopped" and run.state() == "stopped"
    assert states == ["stopping"] and [step for step, _ in written[0].lines] == [
        row["step"] for row in run.metrics().steps
    ]
