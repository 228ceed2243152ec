"""Whether a living worker gets on, by the newest lines of its numbers: starting, running, or stalled."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Literal

Pulse = Literal["starting", "running", "stalled"]

_TAIL = 16_384
_LEAST = 60.0
_TIMES = 10.0
"""A step that takes longer than this many usual ones, and than `_LEAST` seconds, is much longer than usual."""
_PATIENCE = 1800.0
"""Seconds without a word in work of which nobody knows how long it usually takes: loading, reading, an evaluation."""


def judge(lines: Sequence[dict[str, Any]], born: float, now: float) -> Pulse:
    """What the newest lines say, oldest first.

    Args:
        lines: of metrics.jsonl, each with its `time`.
        born: when the worker was born, in the same seconds as `time`; lines from before are another worker's.
        now: the present time.
    """
    own = [line for line in lines if isinstance(line.get("time"), int | float) and line["time"] >= born - 1]
    last = own[-1] if own else {}
    begins = not own or last.get("doing") in ("reading_data", "loading_model") or last.get("event") == "resumed"
    steps = [line["time"] for line in own if "event" not in line and "eval_loss" not in line]
    usual = [later - earlier for earlier, later in pairwise(steps)]
    waits = now - last.get("time", born)
    knows = "loss" in last and len(usual) > 2
    if waits > (max(_LEAST, _TIMES * median(usual)) if knows else _PATIENCE):
        return "stalled"
    return "starting" if begins else "running"


def read(path: Path) -> list[dict[str, Any]]:
    """The newest whole lines of metrics.jsonl, however long it is."""
    try:
        status = path.stat()
    except OSError:
        return []
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _read(path: Path, mtime_ns: int, size: int) -> list[dict[str, Any]]:
    """Read once for all that ask for the state of a run in one look."""
    lines: list[dict[str, Any]] = []
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL))
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1].splitlines()
        for line in whole if size <= _TAIL else whole[1:]:
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(line)
                lines += [found] if isinstance(found, dict) else []
    return lines
