"""Starts, adopts and buries the workers: one run at a time on each device, the others wait in the order of their start."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from filelock import FileLock, Timeout

from core import changes, devices, notice, queue, runs
from core.launch import ROOT, environment
from core.problem import Problem
from core.runs import Run

_EVERY = 1.0
_LOG_TAIL = 2000


class Launcher:
    """Looks at the run folders once a second and starts what waits.

    All that it knows lies in the folders, so that a studio that was killed and started again goes on where it was: a run
    is known by its state, a worker that has been started and has not yet signed in by the launcher's own note.
    """

    def __init__(self) -> None:
        self._children: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._working: set[str] | None = None
        self._resuming = threading.Lock()
        self._over: dict[str, tuple[int, ...]] = {}
        self._awake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._device: dict[str, Any] | None = None

    def start(self) -> None:
        """Begin to look, in a thread of its own; it ends with the studio, the workers do not."""
        if self._thread is None:
            devices.forget()
            self._thread = threading.Thread(target=self._work, name="launcher", daemon=True)
            self._thread.start()
            threading.Thread(target=self._ask_device, name="doctor", daemon=True).start()

    def close(self) -> None:
        """End the looking; workers go on."""
        self._ended.set()
        self._awake.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def wake(self) -> None:
        """Look now: something was just created or asked."""
        self._awake.set()

    def device(self) -> dict[str, Any]:
        """What `doctor` says of the machine; empty until it is known."""
        return self._device or {}

    def stop(self, run: Run) -> None:
        """Ask the worker to end, and to keep what was learned; a run that still waits leaves the queue."""
        self._ask(run, "stop")

    def discard(self, run: Run) -> None:
        """Ask the worker to end, and to throw away what was learned."""
        self._ask(run, "discard")

    def save(self, run: Run) -> None:
        """Ask the worker for a checkpoint; it goes on."""
        self._ask(run, "save")

    def _ask(self, run: Run, what: Literal["stop", "discard", "save"]) -> None:
        if run.state() in runs.ACTIVE:
            run.ask(what)
            self.wake()

    def resume(self, run: Run, settings: Mapping[str, Any] | None = None) -> None:
        """Put a run that ended back into the queue, with other settings from where it goes on.

        Raises:
            Problem: when it is at work, when it is complete and nothing makes it longer, and for impossible settings.
        """
        settings = settings or {}
        with self._resuming:  # of two presses at once the second finds that it waits
            if not changes.can_go_on(run, settings):
                raise Problem("The run {run} cannot be resumed.", "It is {state}.", run=run.title, state=run.state())
            if settings:
                changes.ask(run, settings)
            run.take("stop")
            run.ask("resume")
        self.wake()

    def step(self) -> None:
        """One look: bury, cancel, start."""
        self._bury()
        touched = {run: run.touched() for run in sorted(runs.all_runs(), key=lambda run: run.id)}
        # What is over is looked at again when it is touched: to ask for the state of hundreds takes a sixth of a core.
        everything = [run for run, when in touched.items() if self._over.get(run.id) != when]
        waiting = queue.waiting(everything)
        # One that is starting keeps the wish: its worker takes it.
        for run in [run for run in waiting if run.asked("stop") and not self._is_starting(run)]:
            queue.remove(run)
            waiting.remove(run)
        self._tell_killed(everything)
        for run in everything:
            if run.state() in runs.ENDED and run.worker() is None and runs.is_long_ago(touched[run]):
                self._over[run.id] = touched[run]
        starting = [run for run in waiting if self._is_starting(run)]
        busy = [*starting, *(run for run in everything if run not in starting and run.worker() is not None)]
        began = time.time()
        for run, child in queue.start([run for run in queue.ready(waiting) if run not in starting], busy).items():
            self._children[run.id] = child, began

    def _tell_killed(self, everything: Sequence[Run]) -> None:
        """A worker that was killed can tell nobody that the run has ended; also one that was killed while no studio was open."""
        working = {run.id for run in everything if run.worker() is not None and run.result() is None}
        for run in everything:
            if (self._working is None or run.id in self._working - working) and run.state() == "interrupted":
                _tell(run, notice.tell_killed)
        self._working = working

    def _work(self) -> None:
        # Two studios may share a home; only one of them starts workers, the other waits for its turn.
        lock = FileLock(runs.home() / "launcher.lock", mode=0o600)
        while not self._ended.is_set():
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):
                while not self._ended.is_set():
                    try:
                        self.step()
                    except Exception as error:
                        # A folder that vanishes or is half written while it is looked at is looked at again; whatever
                        # is in it, the others must go on.
                        print(f"launcher: {type(error).__name__}: {error}", file=sys.stderr)
                    self._awake.wait(_EVERY)
                    self._awake.clear()
            self._ended.wait(_EVERY)

    def _is_starting(self, run: Run) -> bool:
        """Whether a worker was started for it and lives, but has not yet written its own name into the folder."""
        if run.id in self._children:
            return True
        return queue.is_starting(run)

    def _bury(self) -> None:
        """Take in the children that ended; one that ended before it could say anything is given its last words."""
        for run_id, (child, started) in list(self._children.items()):
            if child.poll() is None:
                continue
            del self._children[run_id]
            with contextlib.suppress(Problem):
                run = runs.find_id(run_id)
                if not _signed_in(run, started):
                    self._give_last_words(run, child.returncode)

    def _give_last_words(self, run: Run, code: int) -> None:
        """Say that it failed, unless somebody else works on it: then it was that worker who sent ours away."""
        with contextlib.suppress(Timeout), FileLock(run.folder / "worker.lock", mode=0o600).acquire(timeout=0):
            if run.worker() is None and run.state() == "queued":
                run.take("resume")
                run.finish("failed", run.log_tail(_LOG_TAIL).strip() or f"The worker ended with {code}.", step=0)
                _tell(run)

    def _ask_device(self) -> None:
        """Ask the engine once which device there is; the studio itself never loads torch."""
        with contextlib.suppress(OSError, KeyError, ValueError, subprocess.SubprocessError):
            answer = subprocess.run(
                [sys.executable, "-m", "core", "doctor", "--json"],
                cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True,
            )  # fmt: skip
            self._device = json.loads(answer.stdout)
            devices.note(self._device["devices"])


def _tell(run: Run, tell: Callable[[Run], object] = notice.tell) -> None:
    """Tell whoever wants to know how it ended, which may take a while."""
    threading.Thread(target=tell, args=(run,), name="notice", daemon=True).start()


def _signed_in(run: Run, started: float) -> bool:
    """Whether a worker that was started then has written its name into the folder; by time, since its pid may be a child's."""
    birth = (run.read_json("worker.json") or {}).get("birth")
    return isinstance(birth, int | float) and birth > started - 2
