"""What is asked of a worker while it is busy: a thread looks at the run's folder and breaks into work that would not."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from core.runs import Run

_EVERY = 0.25
_PATIENCE = 2.0
"""Seconds in which the loop comes to look by itself, if a step of it is no longer than that."""
_BREAK = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGBREAK  # type: ignore[attr-defined]


class Interrupted(BaseException):
    """Work was broken off because somebody asked for something. No Exception: no handler of a library may swallow it."""


class Wishes:
    """Signals and the folder's control files, for the thread that does the work.

    A signal that ends programs is a wish to stop, like the file. Between two steps the loop looks by itself; work that can
    be begun anew, such as reading data or an evaluation, says that it may be broken off.
    """

    def __init__(self, run: Run):
        self.run = run
        self._open: tuple[str, ...] = ()
        self._ended = threading.Event()

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Take signals, and look at the folder, for as long as the work goes on; of the main thread only."""
        old = {name: signal.signal(name, self._ask) for name in (signal.SIGINT, signal.SIGTERM)}
        old[_BREAK] = signal.signal(_BREAK, self._break)
        watcher = threading.Thread(target=self._watch, name="wishes", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            self._open = ()
            self._ended.set()
            watcher.join()
            for name, handler in old.items():
                signal.signal(name, handler)

    def may_break(self, *wishes: str) -> None:
        """From now on any of these wishes raises Interrupted; without any, none does."""
        self._open = wishes

    def breakable(self) -> _Breakable:
        """A block that ends early, without an exception, when a stop or a checkpoint is asked for; what comes after it
        must look whether it came to its end."""
        return _Breakable(self)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.run.ask("stop")

    def _break(self, number: int, frame: FrameType | None) -> None:
        if self._open:
            self._open = ()  # before the exception: it may fly out of the very end of the block
            raise Interrupted

    def _watch(self) -> None:
        since: float | None = None
        while not self._ended.wait(_EVERY):
            if not any(self.run.asked(wish) for wish in self._open):
                since = None
                continue
            since = since or time.monotonic()
            if time.monotonic() - since >= _PATIENCE:
                # The handler runs in the main thread, which alone knows whether it is still there.
                _interrupt_main()
                since = None


def _interrupt_main() -> None:
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, _BREAK)  # also out of a wait in the system
    else:
        _thread.interrupt_main(_BREAK)


class _Breakable:
    def __init__(self, wishes: Wishes):
        self.wishes = wishes

    def __enter__(self) -> None:
        self.wishes.may_break("stop", "save")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.wishes.may_break()
        return kind is Interrupted
