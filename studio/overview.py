"""Every run in a few numbers, worked out once for all pages and kept for as long as the stamp of its files."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from core import runs
from core.notes import Notes
from core.runs import NOTES, Metrics, Run, write_whole
from studio import charts, report
from studio.metrics import Reader, has_read, read_metrics

_STAMPED = (
    "config.yaml", "metrics.jsonl", "result.json", "worker.json", NOTES, "control/stop", "control/resume", "adapter/adapter_config.json",
)  # fmt: skip
_PATIENCE = 0.25
"""Seconds that a look takes to read what no studio has read yet; the rest is read by the next looks."""
_FRESH = 0.9
_SAVE_EVERY = 20.0
_ENDED = runs.ENDED
_VERSION = 1
_LONG = 8 * 2**20
_END_BYTES = 2**16


@dataclass(frozen=True)
class Summary:
    """What the table shows of a run.

    Attributes:
        seconds: how long it was worked on; None when nobody knows.
        left: seconds until its last step, as its worker last said.
        scores: the newest value of each score, by its name.
        spark: its training loss in at most 40 numbers.
        broken: whether its folder cannot be read; all else is empty then.
        late: whether it has not been read yet; only its state is known then.
    """

    id: str
    title: str
    state: str = ""
    job: str = "train"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    eval_loss: float | None = None
    scores: tuple[tuple[str, float], ...] = ()
    model: str = ""
    data: str = ""
    method: str = ""
    seconds: float | None = None
    left: float | None = None
    spark: tuple[float, ...] = ()
    note: str = ""
    tags: tuple[str, ...] = ()
    broken: bool = False
    late: bool = False

    @property
    def metrics(self) -> Metrics:
        """The newest scores as one evaluation, for `report.scores`."""
        return Metrics(Path(), [], [{f"eval_{name}": value for name, value in self.scores}])


class Overview:
    """All runs as summaries; thread-safe, and looked at again once a second at the most."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Summary]] = {}
        self._settled: dict[str, tuple[tuple[int, ...], Summary]] = {}
        self._listed: list[Summary] = []
        self._home: Path | None = None
        self._looked = self._saved = self._spent = 0.0
        self._unsaved = False
        self._lock = threading.Lock()
        self._reading: dict[str, threading.Thread] = {}

    def look(self, *, now: bool = False) -> list[Summary]:
        """Every run, newest first. `now` looks again however short ago the last look was."""
        with self._lock:
            if self._home != runs.home():
                self._home, self._known, self._settled = runs.home(), {}, {}
                self._looked = self._saved = 0.0
                self._load()
            if now or time.monotonic() - self._looked > _FRESH:
                self._spent = 0.0
                self._listed = [self._summarise(run) for run in runs.all_runs()]
                self._known = {one.id: self._known[one.id] for one in self._listed if one.id in self._known}
                self._settled = {one.id: self._settled[one.id] for one in self._listed if one.id in self._settled}
                self._looked = time.monotonic()
                self._save()
            return self._listed

    def read_all(self) -> None:
        """Look until everything has been read."""
        while any(one.late for one in self.look(now=True)):
            pass

    def _summarise(self, run: Run) -> Summary:
        try:
            touched = run.touched()
            if (settled := self._settled.get(run.id)) is not None and settled[0] == touched:
                return settled[1]
            found = self._find(run)
            if found.state in _ENDED and run.id in self._known and runs.is_long_ago(touched):
                self._settled[run.id] = touched, found
            return found
        except Exception:
            # A folder that was made by hand, or is being deleted, must not hide the others.
            return Summary(run.id, run.id, broken=True)

    def _find(self, run: Run) -> Summary:
        known = self._known.get(run.id)
        if known is None and self._spent > _PATIENCE and (state := run.state()) in _ENDED:
            return Summary(run.id, run.id, state, late=True)
        stamp = _stamp(run)
        if known is not None and known[0] == stamp and known[1].state in _ENDED:
            return known[1]
        state = run.state()
        # What is at work is asked for its state at every look: its process may have died, or make no steps.
        if known is not None and known[0] == stamp and known[1].state == state:
            return known[1]
        if self._is_long(run):
            return _read(run, state, _read_end(run))
        began = time.monotonic()
        # What has ended is read once and let go; what is at work is read on by all that look at it.
        kept = state not in _ENDED or has_read(run)
        metrics = read_metrics(run) if kept else Reader(run.folder / "metrics.jsonl").read().snapshot()
        found = _read(run, state, metrics)
        self._known[run.id] = stamp, found
        if state in _ENDED:
            self._spent += time.monotonic() - began
            self._unsaved = True
        return found

    def _is_long(self, run: Run) -> bool:
        """Whether its numbers take long to read and have not been read yet: a thread does that, and nobody waits for it."""
        try:
            size = (run.folder / "metrics.jsonl").stat().st_size
        except OSError:
            return False
        if size < _LONG or has_read(run):
            return False
        if run.id not in self._reading or not self._reading[run.id].is_alive():
            self._reading[run.id] = threading.Thread(target=read_metrics, args=(run,), daemon=True)
            self._reading[run.id].start()
        return True

    def _save(self) -> None:
        """Keep the summaries of what has ended, so that the next studio need not read every run to the end."""
        if (
            any(one.late for one in self._listed)
            or not self._unsaved
            or time.monotonic() - self._saved < _SAVE_EVERY
            or self._home is None
        ):
            return
        kept = {run_id: [stamp, asdict(one)] for run_id, (stamp, one) in self._known.items() if one.state in _ENDED}
        with contextlib.suppress(OSError):
            write_whole(self._home / "overview.json", json.dumps({"version": _VERSION, "runs": kept}))
        self._saved, self._unsaved = time.monotonic(), False

    def _load(self) -> None:
        names = {field.name for field in fields(Summary)}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            assert self._home is not None
            data = json.loads((self._home / "overview.json").read_text(encoding="utf-8"))
            if data["version"] == _VERSION:
                for run_id, (stamp, one) in data["runs"].items():
                    if set(one) == names and one["id"] == run_id:
                        self._known[run_id] = stamp, Summary(**{name: _freeze(value) for name, value in one.items()})


overview = Overview()
"""The one that all pages share."""


def _freeze(value: Any) -> Any:
    return tuple(map(_freeze, value)) if isinstance(value, list) else value


def _stamp(run: Run) -> str:
    """Size and time of every file that the summary is made of."""
    # Not by Path: five hundred runs have four thousand files to be looked at.
    folder, stamps = os.fspath(run.folder), []
    for name in _STAMPED:
        try:
            status = os.stat(f"{folder}/{name}")
            stamps.append(f"{status.st_size}:{status.st_mtime_ns}")
        except OSError:
            stamps.append("-")
    return " ".join(stamps)


def _read_end(run: Run) -> Metrics:
    """The last step and the last evaluation of a long file."""
    found = Metrics(run.folder / "metrics.jsonl")
    with found.path.open("rb") as file:
        file.seek(-_END_BYTES, os.SEEK_END)
        lines = file.read().split(b"\n")[1:-1]
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and "event" not in row and _is_number(row.get("step")):
                (found.evals if "eval_loss" in row else found.steps).append(row)
    return found


def _read(run: Run, state: str, metrics: Metrics) -> Summary:
    data, notes = run.config_data(), Notes.read(run)
    step, steps = report.progress(run, metrics)
    losses = charts.column(metrics.steps, "loss")
    newest: dict[str, float] = {}
    for row in metrics.evals:
        newest |= {name: row[f"eval_{name}"] for name in report.SCORES if _is_number(row.get(f"eval_{name}"))}
    evaluated = metrics.evals[-1].get("eval_loss") if metrics.evals else None
    last = metrics.steps[-1] if metrics.steps else {}
    return Summary(
        run.id, run.title, state, str(data.get("job", "train")), step, steps,
        loss=last.get("loss") if _is_number(last.get("loss")) else None,
        left=last.get("eta_s") if _is_number(last.get("eta_s")) else None,
        eval_loss=evaluated if _is_number(evaluated) else None,
        scores=tuple(newest.items()),
        model=_name(data, "model", "name"), data=_name(data, "data", "train"), method=_name(data, "method", "name"),
        seconds=report.seconds(run), spark=tuple(charts.spark(losses)) if metrics.offset else (), note=notes.note, tags=notes.tags,
    )  # fmt: skip


def _name(data: dict[str, Any], group: str, key: str) -> str:
    found = data.get(group)
    return str(found.get(key, "")) if isinstance(found, dict) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
