"""Starts, adopts and buries the workers: one run at a time on the device, the others wait in the order of their start."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

import core
from core import process, runs
from core.problem import Problem
from core.runs import Run

ROOT = Path(core.__file__).resolve().parent.parent
"""Where `python -m core` finds the engine."""

_NOTE = "launch.json"
_EVERY = 1.0
_LOG_TAIL = 2000

# A worker gets what it needs to find its files, its devices and the hub, and nothing else that the user's shell knows.
_ENVIRONMENT = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "APPDATA", "LOCALAPPDATA",
    "PROGRAMDATA", "NUMBER_OF_PROCESSORS", "ATELIER_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE", "CC", "CXX",
}  # fmt: skip
_ENVIRONMENT_PREFIXES = (
    "LC_",
    "XDG_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "OMP_",
    "MKL_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "HF_",
)


def environment() -> dict[str, str]:
    """The variables that a worker gets."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ENVIRONMENT or name.upper().startswith(_ENVIRONMENT_PREFIXES)
    }
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "ATELIER_HOME": str(runs.home())}


def spawn(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """`python -m core ARGUMENTS`, detached: it outlives the studio, and nothing of it is read but the file `log`."""
    detached: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        detached = {
            "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP
            | subprocess.DETACHED_PROCESS
            | subprocess.CREATE_NO_WINDOW
        }  # type: ignore[attr-defined]
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "core", *arguments],
            cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT, close_fds=True, **detached,
        )  # fmt: skip
    finally:
        os.close(handle)


class Launcher:
    """Looks at the run folders once a second and starts what waits.

    All that it knows lies in the folders, so that a studio that was killed and started again goes on where it was: a run
    is known by its state, a worker that has been started and has not yet signed in by the launcher's own note.
    """

    def __init__(self) -> None:
        self._children: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
        self._awake = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._device: dict[str, Any] | None = None

    def start(self) -> None:
        """Begin to look, in a thread of its own; it ends with the studio, the workers do not."""
        if self._thread is None:
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

    def device(self) -> str:
        """The machine in words, such as `CPU · 2 cores · 24 GB`; empty until it is known."""
        return str((self._device or {}).get("device", ""))

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

    def resume(self, run: Run) -> None:
        """Put a run that ended before its end back into the queue.

        Raises:
            Problem: when it is complete, or at work.
        """
        if not run.resumable:
            raise Problem("The run {run} cannot be resumed.", "It is {state}.", run=run.title, state=run.state())
        run.take("stop")
        run.ask("resume")
        self.wake()

    def step(self) -> None:
        """One look: bury, cancel, start."""
        self._bury()
        everything = sorted(runs.all_runs(), key=lambda run: run.id)
        waiting = [run for run in everything if run.state() == "queued"]
        for run in [run for run in waiting if run.asked("stop")]:
            _cancel(run)
            waiting.remove(run)
        busy = any(run.worker() is not None for run in everything)
        starting = [run for run in waiting if self._is_starting(run)]
        if waiting and not busy and not starting:
            self._launch(waiting[0])

    def _work(self) -> None:
        # Two studios may share a home; only one of them starts workers, the other waits for its turn.
        lock = FileLock(runs.home() / "launcher.lock", mode=0o600)
        while not self._ended.is_set():
            with contextlib.suppress(Timeout), lock.acquire(timeout=0):
                while not self._ended.is_set():
                    try:
                        self.step()
                    except (OSError, Problem, psutil.Error, KeyError, TypeError, ValueError) as error:
                        # A folder that vanishes or is half written while it is looked at is looked at again.
                        print(f"launcher: {error}", file=sys.stderr)
                    self._awake.wait(_EVERY)
                    self._awake.clear()
            self._ended.wait(_EVERY)

    def _launch(self, run: Run) -> None:
        started = time.time()
        try:
            child = spawn(["work", str(run.folder)], run.folder / "log.txt")
        except OSError as error:
            run.finish("failed", f"The worker could not be started: {error}", step=0)
            return
        self._children[run.id] = child, started
        with contextlib.suppress(OSError):
            runs.write_whole(run.folder / _NOTE, json.dumps(process.identify(child.pid)))

    def _is_starting(self, run: Run) -> bool:
        """Whether a worker was started for it and lives, but has not yet written its own name into the folder."""
        if run.id in self._children:
            return True
        return process.lives(run.read_json(_NOTE))

    def _bury(self) -> None:
        """Take in the children that ended; one that ended before it could say anything is given its last words."""
        for run_id, (child, started) in list(self._children.items()):
            if child.poll() is None:
                continue
            del self._children[run_id]
            with contextlib.suppress(Problem):
                run = runs.find_id(run_id)
                if not _signed_in(run, started):
                    run.take("resume")
                    run.finish(
                        "failed",
                        run.log_tail(_LOG_TAIL).strip() or f"The worker ended with {child.returncode}.",
                        step=0,
                    )

    def _ask_device(self) -> None:
        """Ask the engine once which device there is; the studio itself never loads torch."""
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            answer = subprocess.run(
                [sys.executable, "-m", "core", "doctor", "--json"],
                cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=True,
            )  # fmt: skip
            self._device = json.loads(answer.stdout)


def _signed_in(run: Run, started: float) -> bool:
    """Whether a worker that was started then has written its name into the folder; by time, since its pid may be a child's."""
    birth = (run.read_json("worker.json") or {}).get("birth")
    return isinstance(birth, int | float) and birth > started - 2


def _cancel(run: Run) -> None:
    """Take a run out of the queue: one that never began ends as stopped, one that was to be resumed is as before."""
    if run.take("discard"):
        run.discard()
    for wish in ("stop", "resume", "save"):
        run.take(wish)
    if run.state() == "queued":
        run.finish("stopped", "It was taken out of the queue before it began.", step=0)
