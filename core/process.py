"""A process known for certain: by its number, the time of its birth, and the start of the machine that it belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

_SAME_BIRTH = 1.0
_SAME_BOOT = 120.0  # seconds; a clock that is set right moves what systems without an id of the boot say of it


@cache
def boot() -> str:
    """What is different after every start of this machine: Linux's own id, elsewhere the second at which it started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def identify(pid: int | None = None) -> dict[str, Any]:
    """What a note must hold so that `lives` knows the process again (by default this one); of a dead one, no birth."""
    pid = os.getpid() if pid is None else pid
    return {"pid": pid, "birth": _birth(pid), "ticks": _ticks(pid), "boot": boot()}


def lives(note: Mapping[str, Any] | None) -> bool:
    """Whether the process of a note is at work still: the same one, since the same start of the machine, and no zombie."""
    pid, born = (note or {}).get("pid"), (note or {}).get("birth")
    if note is None or not isinstance(pid, int) or not isinstance(born, int | float):
        return False
    if not _same_boot(note.get("boot")):
        return False
    birth = _birth(pid)
    if birth is None:
        return False
    # Linux counts from the start of the machine; a birth by the clock moves when the clock is set.
    if isinstance(note.get("ticks"), int) and (ticks := _ticks(pid)) is not None:
        return ticks == note["ticks"]
    return abs(birth - born) < _SAME_BIRTH


def _same_boot(told: Any) -> bool:
    if not isinstance(told, str):
        return True  # a note of an older version
    try:
        return abs(float(told) - float(boot())) < _SAME_BOOT
    except ValueError:
        return told == boot()


def _birth(pid: int) -> float | None:
    """When the living process of that number was born; None for none, or for one that is dead but not yet buried."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except (psutil.Error, ValueError):
        return None


def _ticks(pid: int) -> int | None:
    """Clock ticks between the start of the machine and the process's own, where the system tells (proc(5), field 22)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
