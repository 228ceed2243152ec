"""The queue: its order is the user's, it lies on disk, and one run is at work at a time, with a studio open or without."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock
from ground import ROOT

from core import notice, process, queue, runs
from core.__main__ import main
from core.config import Config
from core.problem import Problem
from core.runs import Run

# A run of no steps at all: the real worker of the real command line, without a model.
_BROKEN = Config.read({"name": "broken", "model": {"name": "/nowhere/at/all"}})


def _new(name: str) -> Run:
    return runs.create(Config(name=name))


def _names() -> list[str]:
    return [run.title for run in queue.waiting()]


def _until(true: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def quiet(home: Path) -> None:
    """Every test has a home of its own."""


def test_runs_wait_in_the_order_of_their_start_until_they_are_moved() -> None:
    first, _, third = (_new(name) for name in "abc")
    assert _names() == ["a", "b", "c"]
    queue.move(third, -1)
    assert _names() == ["a", "c", "b"]
    queue.move(third, -9)
    assert _names() == ["c", "a", "b"]
    queue.move(third, 99)
    assert _names() == ["a", "b", "c"]
    queue.move(first, 1)
    _new("d")
    assert _names() == ["b", "a", "c", "d"], "who comes later stands behind"


def test_the_order_outlives_the_process() -> None:
    runs_made = [_new(name) for name in "abc"]
    queue.move(runs_made[2], -2)
    queue.hold(runs_made[0])
    code = "from core import queue; print([run.title for run in queue.waiting()], [r.title for r in queue.ready(queue.waiting())])"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "['c', 'a', 'b'] ['c', 'b']"


def test_a_run_on_hold_is_passed_by_until_it_is_released() -> None:
    first, second = _new("a"), _new("b")
    queue.hold(first)
    assert queue.ready(queue.waiting()) == [second]
    queue.hold(first, False)
    assert queue.ready(queue.waiting()) == [first, second]


def test_a_paused_queue_starts_nothing() -> None:
    _new("a")
    queue.pause()
    assert queue.ready(queue.waiting()) == [] and queue.start_next() is None
    queue.pause(False)
    assert len(queue.ready(queue.waiting())) == 1


def test_who_is_taken_out_is_stopped_and_the_others_move_up() -> None:
    first, _ = _new("a"), _new("b")
    queue.remove(first)
    assert first.state() == "stopped" and _names() == ["b"]
    with pytest.raises(Problem, match="does not wait"):
        queue.move(first, 1)
    with pytest.raises(Problem, match="does not wait"):
        queue.hold(first)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"order": 3, "held": {"a": 1}, "paused": "yes"}', '{"order": [1, null]}']
)
def test_a_file_that_is_none_of_ours_is_an_empty_order(home: Path, text: str) -> None:
    _new("a")
    (home / "queue.json").write_text(text)
    assert _names() == ["a"] and len(queue.ready(queue.waiting())) == 1


def test_many_changes_at_once_lose_none() -> None:
    made = [_new(f"run {number}") for number in range(6)]
    threads = [threading.Thread(target=queue.hold, args=(run,)) for run in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.read().held == {run.id for run in made}


def test_nothing_is_started_while_another_process_sees_to_it(home: Path) -> None:
    run = _new("a")
    with FileLock(home / "launcher.lock"):
        assert queue.start_next() is None
    assert run.state() == "queued" and not (run.folder / "launch.json").exists()


def test_nothing_is_started_while_a_run_is_at_work() -> None:
    busy, waits = _new("busy"), _new("waits")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        about = {"pid": child.pid, "birth": psutil.Process(child.pid).create_time()}
        (busy.folder / "worker.json").write_text(json.dumps(about | {"host": __import__("socket").gethostname()}))
        assert busy.state() == "starting" and queue.start_next() is None and waits.state() == "queued"
        (busy.folder / "worker.json").unlink()
        # It was started and has not signed in yet: its launch note alone tells it.
        (busy.folder / "launch.json").write_text(json.dumps(about))
        assert queue.start_next() is None
    finally:
        child.kill()
        child.wait()


def test_a_queue_is_worked_off_with_no_studio_and_a_failing_run_does_not_block_the_rest(home: Path) -> None:
    made = [runs.create(_BROKEN) for _ in range(3)]
    queue.hold(made[1])
    assert main(["queue", "start"]) == 0
    _until(lambda: made[2].state() == "failed")
    assert made[0].state() == "failed" and made[1].state() == "queued", "the one on hold is passed by"
    began = [json.loads((run.folder / "worker.json").read_text()) for run in (made[0], made[2])]
    assert began[0]["pid"] != began[1]["pid"] and began[0]["birth"] < began[1]["birth"]
    if os.name == "posix":
        assert began[1]["pid"] != os.getpid()


def test_the_command_line_adds_lists_and_changes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    queue.pause()
    assert main(["queue", "add", "chat", "--set", "name=one"]) == 0
    assert main(["queue", "add", "chat", "--set", "name=two"]) == 0
    one, two = queue.waiting()
    assert main(["queue", "move", two.id, "-1"]) == 0 and queue.waiting() == [two, one]
    assert main(["queue", "hold", one.id]) == 0
    capsys.readouterr()
    assert main(["queue", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["paused"] is True
    assert [(run["name"], run["held"]) for run in told["waiting"]] == [("two", False), ("one", True)]
    assert main(["queue", "release", one.id]) == 0 and queue.read().held == set()
    assert main(["queue", "remove", two.id]) == 0 and two.state() == "stopped"
    assert main(["queue", "remove", two.id]) == 2 and "does not wait" in capsys.readouterr().err


def test_who_cannot_be_started_fails_once_and_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _new("a")
    run.finish("stopped", step=3)
    run.ask("resume")
    monkeypatch.setattr(sys, "executable", "/nowhere/at/all")
    assert queue.start_next() is None
    assert run.state() == "failed" and queue.waiting() == []
    told = Problem.from_data((run.result() or {})["problem"])
    assert told.what == "The worker could not be started."


def test_who_is_taken_out_is_no_longer_on_hold() -> None:
    run, other = _new("a"), _new("b")
    queue.hold(run)
    queue.move(other, -1)
    queue.remove(run)
    run.ask("resume")
    assert run in queue.ready(queue.waiting()) and queue.read().order == [other.id]


@pytest.mark.parametrize("command", ["work", "resume"])
def test_who_ends_starts_the_next_whatever_happened_to_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    mine, waits = runs.create(_BROKEN), runs.create(_BROKEN)
    mine.finish("failed")
    order: list[str] = []
    monkeypatch.setattr(notice, "tell", lambda run: order.append("tell"))
    monkeypatch.setattr(queue, "launch", lambda run, device: order.append(run.id))
    assert main([command, mine.id]) == 2
    assert order == ["tell", waits.id], (
        "who is told may take a while, in which the next would not see that this one ends"
    )
    order.clear()
    with FileLock(mine.folder / "worker.lock"):  # another process works on it
        assert main([command, mine.id]) == 2
    assert order == [waits.id]


def test_a_worker_that_is_about_to_be_gone_holds_up_nobody() -> None:
    over, waits = _new("over"), runs.create(_BROKEN)
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        about = process.identify(child.pid)
        (over.folder / "worker.json").write_text(json.dumps(about | {"host": socket.gethostname()}))
        over.finish("completed")
        assert queue.start_next() is None, "it may hold the device still"
        (over.folder / ".left.json").write_text(json.dumps(about))
        assert queue.start_next() == waits
        _until(lambda: waits.state() == "failed")
    finally:
        child.kill()
        child.wait()


def test_what_could_not_be_begun_is_not_begun_again_by_itself() -> None:
    run = _new("a")
    runs.note_start(run)
    assert queue.start_next() is None and run.state() == "queued"


def test_who_waits_is_stopped_at_once_and_saves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    new, old = _new("new"), _new("old")
    old.finish("failed", step=3)
    old.ask("resume")
    (old.folder / "adapter").mkdir()
    assert main(["save", new.id]) == 2 and "not running" in capsys.readouterr().err and not new.asked("save")
    assert main(["stop", new.id]) == 0 and new.state() == "stopped"
    assert (
        main(["stop", "--discard", old.id]) == 0 and old.state() == "failed" and not (old.folder / "adapter").exists()
    )
    starts = _new("starts")
    runs.note_start(starts)
    assert main(["stop", starts.id]) == 0 and starts.asked("stop") and starts.result() is None
