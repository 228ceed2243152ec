"""Helper processes and how one speaks with them; they can start before whoever asks them has loaded its own libraries."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from typing import IO, Any

from core import launch

ENOUGH = 16 * 1024**2
"""Bytes of data that are worth the start of a helper."""

_MOST = 8

Told = tuple[dict[str, Any], list[bytes]]
"""What goes over a pipe: plain data, and bytes."""


class Helper:
    """One process, and the pipes to it; threads that ask it are answered in turn."""

    def __init__(self) -> None:
        hidden = {"creationflags": subprocess.CREATE_NO_WINDOW} if os.name == "nt" else {}  # type: ignore[attr-defined]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "core", "assist"], cwd=launch.ROOT, env=launch.environment(), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, **hidden,
        )  # fmt: skip
        self._sending, self._turn = threading.Lock(), threading.Condition()
        self._sent = self._answered = 0
        self._is_lost = False

    def ask(self, told: Told) -> Told | None:
        """Its answer; None when it has none to give."""
        return self.hear(self.tell(told))

    def tell(self, told: Told) -> int:
        """Send it, and say which of all it was."""
        assert self.process.stdin is not None
        with self._sending:
            mine, self._sent = self._sent, self._sent + 1
            if not self._is_lost:
                try:
                    send(self.process.stdin, told)
                except (OSError, ValueError):
                    self._is_lost = True
            return mine

    def hear(self, mine: int) -> Told | None:
        """The answer to that; None when it has none to give."""
        assert self.process.stdout is not None
        reply = None
        with self._turn:
            self._turn.wait_for(lambda: self._answered == mine or self._is_lost)
        if not self._is_lost:
            with contextlib.suppress(OSError, ValueError, OverflowError, MemoryError):
                reply = receive(self.process.stdout)
        with self._turn:
            self._answered = mine + 1
            # A helper that could not do one thing is asked no more.
            self._is_lost = self._is_lost or reply is None or "failed" in reply[0]
            self._turn.notify_all()
        return None if self._is_lost else reply

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        with self._turn:
            self._is_lost = True
            self._turn.notify_all()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


def start_helpers(size: int) -> list[Helper]:
    """As many as pay for so many bytes of data, or as the system lets start; whoever starts them ends them."""
    started: list[Helper] = []
    with contextlib.suppress(OSError):
        for _ in range(count_helpers(size)):
            started.append(Helper())
    return started


def count_helpers(size: int) -> int:
    """How many helpers pay for so many bytes of data: one for each core but that of this process, if it is enough for all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, _MOST, size // ENOUGH)


def send(pipe: IO[bytes], told: Told) -> None:
    """Write it into a pipe."""
    data, blocks = told
    head = json.dumps(data | {"sizes": [*map(len, blocks)]}).encode()
    pipe.write(b"".join([len(head).to_bytes(8, "little"), head, *blocks]))
    pipe.flush()


def receive(pipe: IO[bytes]) -> Told | None:
    """What was sent; None at the end."""
    size = pipe.read(8)
    if len(size) < 8:
        return None
    data = json.loads(pipe.read(int.from_bytes(size, "little")))
    whole = pipe.read(sum(data["sizes"]))
    if len(whole) < sum(data["sizes"]):
        return None
    ends = [0, *itertools.accumulate(data.pop("sizes"))]
    return data, [whole[start:end] for start, end in itertools.pairwise(ends)]
