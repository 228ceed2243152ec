"""The queue: which run is next, in the order that the user gave it; one at a time on each device, whoever starts it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock, Timeout

from core import devices, notice, process, runs
from core.launch import spawn
from core.problem import Problem
from core.runs import Run, write_whole

_FILE = "queue.json"
_LEFT = ".left.json"


@dataclass
class Order:
    """What the user said of the queue; what waits stands in the run folders alone.

    Attributes:
        order: ids of runs that were moved, first come first; who is not in it comes after, in the order of their start.
        held: ids of runs that wait until they are released.
        paused: whether nothing new starts.
    """

    order: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    paused: bool = False


def read() -> Order:
    """The queue's own file; one that is none of ours counts as empty."""
    try:
        data = json.loads((runs.home() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Order()
    data = data if isinstance(data, dict) else {}
    order, held = (
        [name for name in found if isinstance(name, str)] if isinstance(found := data.get(key), list) else []
        for key in ("order", "held")
    )
    return Order(order, set(held), data.get("paused") is True)


@contextlib.contextmanager
def _change() -> Iterator[Order]:
    """The queue's file, to be changed by one process at a time."""
    with FileLock(runs.home() / "queue.lock", mode=0o600):
        order = read()
        yield order
        data = {"order": order.order, "held": sorted(order.held), "paused": order.paused}
        write_whole(runs.home() / _FILE, json.dumps(data, indent=2))


def waiting(everything: Sequence[Run] | None = None) -> list[Run]:
    """The runs that wait for their turn, next first, those on hold among them."""
    return arrange([run for run in (runs.all_runs() if everything is None else everything) if run.state() == "queued"])


def arrange(some: Sequence[Run]) -> list[Run]:
    """These runs in the order of the queue: as the user moved them, then as they were made."""
    places = {name: place for place, name in enumerate(read().order)}

    def place(run: Run) -> tuple[int, int, str]:
        # Ids tell seconds alone, and a script makes several runs in one.
        made = 0
        with contextlib.suppress(OSError):
            made = (run.folder / "config.yaml").stat().st_mtime_ns
        return places.get(run.id, len(places)), made, run.id

    return sorted(some, key=place)


def ready(some: Sequence[Run]) -> list[Run]:
    """Of runs that wait those that may start: none of them while the queue is paused."""
    order = read()
    return [] if order.paused else [run for run in some if run.id not in order.held]


def move(run: Run, by: int) -> None:
    """Let a waiting run start earlier (a negative number of places) or later."""
    with _change() as order:
        names = [one.id for one in waiting()]
        _check_waiting(run, names)
        place = names.index(run.id)
        names.insert(max(0, min(len(names) - 1, place + by)), names.pop(place))
        order.order = names


def hold(run: Run, on: bool = True) -> None:
    """Let a waiting run wait until it is released; the others pass it by."""
    with _change() as order:
        names = {one.id for one in waiting()}
        _check_waiting(run, names)
        order.held = (order.held | {run.id} if on else order.held - {run.id}) & names


def pause(on: bool = True) -> None:
    """Start nothing new until it goes on; what is at work is not touched."""
    with _change() as order:
        order.paused = on


def remove(run: Run) -> None:
    """Take a run out of the queue: one that never began ends as stopped, one that was to be resumed is as before.

    One whose worker is starting already is asked to stop instead: that worker finds the wish, whatever else it is.
    """
    if is_starting(run):
        run.ask("stop")
        return
    with _change() as order:
        # Resumed later it waits like any other.
        order.order, order.held = [name for name in order.order if name != run.id], order.held - {run.id}
    if run.take("discard"):
        run.discard()
    for wish in ("stop", "resume", "save"):
        run.take(wish)
    if run.state() == "queued":
        run.finish("stopped", "It was taken out of the queue before it began.", step=0)


def _check_waiting(run: Run, names: Sequence[str] | set[str]) -> None:
    if run.id not in names:
        raise Problem("The run {run} does not wait in the queue.", "It is {state}.", run=run.title, state=run.state())


def launch(run: Run, device: str = "") -> subprocess.Popen[bytes] | None:
    """Start the run's worker on that device, in a session of its own; None, and a failed run, when that cannot be."""
    try:
        child = spawn(["work", str(run.folder)], run.folder / "log.txt", devices.variables(device))
    except OSError as error:
        run.take("resume")  # or it would be tried again for ever
        problem = Problem("The worker could not be started.", "{error}.", error=error)
        run.finish("failed", str(problem), step=0, problem=problem.to_data())
        return None
    with contextlib.suppress(OSError):
        runs.note_start(run, child.pid, device)
    return child


def is_starting(run: Run) -> bool:
    """Whether a worker was started for it and lives, but has not yet written its own name into the folder."""
    return process.lives(run.read_json(runs.LAUNCH))


def follow(run: Run) -> None:
    """The last thing that a worker of this run does: start what is next; whatever is wrong then is not its own failure."""
    # Who adds a run from now on starts it, and need not wait until this process is gone, of which nobody would learn.
    try:
        write_whole(run.folder / _LEFT, json.dumps(process.identify()))
        start_next(patience=5.0)
    except OSError as error:
        print(f"queue: {error}", file=sys.stderr)


def _has_left(run: Run, worker: Mapping[str, Any]) -> bool:
    """Whether that worker of the run has ended its work and is about to be gone."""
    left = run.read_json(_LEFT) or {}
    return (left.get("pid"), left.get("birth")) == (worker["pid"], worker["birth"])


def start_next(patience: float = 1.0) -> Run | None:
    """Start what is next when a device is free and no studio is open, which would start it itself.

    A worker calls this when it has ended, so that a queue is worked off with no studio at all. What is started has a
    session of its own and outlives the caller.

    Args:
        patience: seconds to wait for another process that looks what is next, and may not have seen the newest.

    Returns:
        The run that was started, the first of several on several devices; None when there is none, or another process
        sees to it.
    """
    started = _start_next(patience)
    for run in runs.all_runs():
        notice.tell_killed(run)  # with no studio open, nobody else would
    return started


def _start_next(patience: float) -> Run | None:
    lock = FileLock(runs.home() / "launcher.lock", mode=0o600)
    with contextlib.suppress(Timeout), lock.acquire(timeout=patience):
        everything = runs.all_runs()
        some = waiting(everything)
        for run in [run for run in some if run.asked("stop") and not is_starting(run)]:
            remove(run)
            some.remove(run)
        at_work = [(run, worker) for run in everything if (worker := run.worker()) is not None]
        busy = [run for run, worker in at_work if worker["pid"] != os.getpid() and not _has_left(run, worker)]
        # What this process was started for and could not begin is not tried again at once.
        mine = {run for run in some if (run.read_json(runs.LAUNCH) or {}).get("pid") == os.getpid()}
        # Also one that was started and has not signed in yet, whatever its state is called.
        others = [run for run in everything if run not in mine and (run.result() is None or run.asked("resume"))]
        busy += [
            run for run in others
            if run not in busy and (run.read_json(runs.LAUNCH) or {}).get("pid") != os.getpid() and is_starting(run)
        ]  # fmt: skip
        able = [run for run in ready(some) if run not in mine and run not in busy]
        return next(iter(start(able, busy)), None)
    return None


def start(some: Iterable[Run], at_work: Iterable[Run]) -> dict[Run, subprocess.Popen[bytes]]:
    """Start as many of these runs, in their order, as devices are free beside those `at_work`."""
    free, started = devices.free(at_work), {}
    for run in some:
        if not free:
            break
        if (child := launch(run, free[0])) is not None:
            started[run] = child
            free.pop(0)
    return started
