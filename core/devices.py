"""The machine's devices that runs share: which there are, which are free, and how a worker is given one of them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import psutil

from core import process, runs
from core.runs import Run, write_whole

_FILE = "devices.json"


def note(told: Mapping[str, Any]) -> None:
    """Keep what the engine says of the devices ({variable, names}) for whoever starts a run next, until the next boot."""
    write_whole(runs.home() / _FILE, json.dumps({**told, "boot": process.boot()}))


def forget() -> None:
    """Know of no devices until the engine was asked again: what a process may see can be another today."""
    (runs.home() / _FILE).unlink(missing_ok=True)


def _told() -> tuple[str, list[str]]:
    """The environment variable that says which devices a process sees, and the names of all where there are several."""
    try:
        told = json.loads((runs.home() / _FILE).read_text(encoding="utf-8"))
        variable, names = told["variable"], told["names"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
    plain = isinstance(variable, str) and isinstance(names, list) and all(isinstance(name, str) for name in names)
    several = plain and variable and len(names) > 1 and told.get("boot") == process.boot()
    return (variable, names) if several else ("", [])


def variables(name: str) -> dict[str, str]:
    """What a process has to find in its environment to see that device alone."""
    return {_told()[0]: name} if name else {}


def free(at_work: Iterable[Run]) -> list[str]:
    """The devices that this process may give away and none of these runs has; "" is the only one, or whichever is found."""
    variable, names = _told()
    if not names:
        return [] if any(True for _ in at_work) else [""]
    taken = {given(run) for run in at_work}
    if taken - set(names):
        taken.add(names[0])  # whoever took one without a name
    # Who is to see some devices alone, as a worker is, gives away no others.
    allowed = split_names(os.environ[variable]) if os.environ.get(variable) else names
    return [name for name in names if name in allowed and name not in taken]


def split_names(value: str) -> list[str]:
    """The devices in the value of such a variable."""
    return [name.strip() for name in value.split(",") if name.strip()]


def given(run: Run) -> str:
    """The device of the run's worker, as it was told when it was started or told itself; "" for whichever it finds."""
    started = run.read_json(runs.LAUNCH) or {}
    if isinstance(name := started.get("device"), str):
        return name
    with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError, OSError):
        return psutil.Process(started["pid"]).environ()[_told()[0]]
    return ""
