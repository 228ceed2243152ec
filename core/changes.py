"""What may be changed of a training that has begun: asked by a reader, taken by the worker, kept beside the settings."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from core.config import Config, assign
from core.problem import Problem
from core.runs import Run, write_whole

CHANGEABLE = (
    "train.epochs", "train.max_steps", "train.learning_rate", "train.scheduler", "train.max_grad_norm", "train.eval_every",
    "train.save_every", "train.keep", "train.early_stopping", "train.early_stopping_metric",
)  # fmt: skip
"""Settings that later steps alone depend on."""
PROLONGING = ("train.epochs", "train.max_steps", "train.early_stopping", "train.early_stopping_metric")
"""Those that can make a finished training go on."""
_FILE, _WISH, _TAKEN = "changes.json", "control/change", "control/change.taken"


def ask(run: Run, settings: Mapping[str, Any]) -> None:
    """Ask for other settings from the next step on; a run that nobody works on takes them when it is resumed.

    Raises:
        Problem: for a setting that cannot be changed now, and for a value that it cannot have.
    """
    expected(run, settings)
    waiting = (run.read_json(_WISH) or {}).get("set", {})
    wish = {"id": str(time.time_ns()), "set": {**waiting, **settings}}
    (run.folder / "control").mkdir(exist_ok=True)
    write_whole(run.folder / _WISH, json.dumps(wish))


def expected(run: Run, settings: Mapping[str, Any] | None = None) -> Config:
    """The settings as they are when all that was asked for, and these, are taken.

    Raises:
        Problem: as `ask` does.
    """
    settings = settings or {}
    problems = [
        Problem(
            "The setting {key} cannot be changed in a training that has begun.",
            "These can: {keys}.",
            "Start a new run with it.",
            field=key,
            key=key,
            keys=", ".join(CHANGEABLE),
        )
        for key in settings
        if key not in CHANGEABLE
    ]
    Problem.raise_all(problems)
    # Read in the direction in which a wish travels, or one could be missed on its way.
    wish, moved = ({"set": (run.read_json(name) or {}).get("set", {})} for name in (_WISH, _TAKEN))
    return apply(run.config(), [*taken(run), moved, wish, {"set": settings}])


def can_go_on(run: Run, settings: Mapping[str, Any]) -> bool:
    """Whether a worker finds something to do: it ended before its end, these settings make a finished one longer, or its
    adapter is damaged."""
    longer = run.state() == "completed" and any(key in PROLONGING for key in settings)
    return run.resumable or longer or run.repairable


def waits(run: Run) -> bool:
    """Whether something was asked for that no worker has taken yet."""
    return any((run.folder / name).exists() for name in (_WISH, _TAKEN))


def taken(run: Run) -> list[dict[str, Any]]:
    """What was changed so far, in its order: each {id, step, set}, valid from that step on."""
    found = (run.read_json(_FILE) or {}).get("changes")
    return list(found) if isinstance(found, list) else []


def take(run: Run, step: int) -> list[dict[str, Any]]:
    """The worker's side of `ask`: a new wish is valid from this step on, also when the run is resumed from before it."""
    _keep_taken(run, step)  # one that a killed worker took and did not keep
    with contextlib.suppress(FileNotFoundError):
        # Moved before it is read: what is asked meanwhile is another wish, and must not go with this one.
        os.replace(run.folder / _WISH, run.folder / _TAKEN)
        _keep_taken(run, step)
    return taken(run)


def _keep_taken(run: Run, step: int) -> None:
    """Put the wish that was taken among the changes, once."""
    if (wish := run.read_json(_TAKEN)) is not None:
        changes = taken(run)
        if wish.get("id") not in [change["id"] for change in changes]:
            changes.append({"id": wish.get("id"), "step": step, "set": wish.get("set", {})})
            write_whole(run.folder / _FILE, json.dumps({"changes": changes}, indent=2))
    (run.folder / _TAKEN).unlink(missing_ok=True)


def apply(config: Config, changes: Sequence[Mapping[str, Any]]) -> Config:
    """The settings with these changes made, one after the other."""
    data = config.to_data()
    for change in changes:
        for key, value in change["set"].items():
            assign(data, key, value)
    return Config.read(data)
