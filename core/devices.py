"""The machine's devices that runs share: which there are, which are free, and how a worker is given one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from core import process, runs
from core.runs import Run, write_whole

_FILE = "devices.json"


def note(told: Mapping[str, Any]) -> None:
    """Keep what the engine says of the devices ({variable, names}) for whoever starts a run next, until the next boot."""
    write_whole(runs.home() / _FILE, json.dumps({**told, "boot": process.boot()}))


def _told() -> tuple[str, list[str]]:
    """The environment variable that says which devices a process sees, and the names of all that there are."""
    try:
        told = json.loads((runs.home() / _FILE).read_text(encoding="utf-8"))
        variable, names = told["variable"], told["names"]
    except (OSError, ValueError, KeyError, TypeError):
        return "", []
    plain = isinstance(variable, str) and isinstance(names, list) and all(isinstance(name, str) for name in names)
    return (variable, names) if plain and told.get("boot") == process.boot() else ("", [])


def names() -> list[str]:
    """The devices by name; a single nameless one where there is only one, or nobody knows."""
    variable, found = _told()
    return found if variable and len(found) > 1 else [""]


def variables(name: str) -> dict[str, str]:
    """What a process has to find in its environment to see that device alone."""
    return {_told()[0]: name} if name else {}


def free(at_work: Iterable[Run]) -> list[str]:
    """The devices that none of these runs was given; who took one without asking has the first."""
    there = names()
    taken = {given(run) for run in at_work}
    if taken - set(there):
        taken.add(there[0])
    return [name for name in there if name not in taken]


def given(run: Run) -> str:
    """The device that its worker was started on, "" for whichever it finds."""
    name = (run.read_json(runs.LAUNCH) or {}).get("device")
    return name if isinstance(name, str) else ""
