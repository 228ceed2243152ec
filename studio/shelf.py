"""The data sets and models that can be picked, and a short memory of those that were looked at."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core import dataset, runs, sources
from core.dataset import Dataset
from core.model import PLAYGROUND
from core.problem import Problem
from studio.language import Language

_KEPT, _KEPT_GLANCES = 4, 500
_PATIENCE = 3.0
_READ_AT_ONCE = 2
_FORGOTTEN = 10.0
_GLANCED = 20_000
_seen: OrderedDict[tuple[object, ...], Dataset] = OrderedDict()
_readings: OrderedDict[tuple[object, ...], _Reading] = OrderedDict()
_glances: OrderedDict[tuple[object, ...], Glance] = OrderedDict()
_looking = threading.Lock()


def folder() -> Path:
    """Where uploads are kept."""
    path = runs.home() / "data"
    runs.make_private_folder(path)
    return path


def samples() -> dict[str, str]:
    """The built-in samples: what a config writes -> title in English."""
    from core.playground import SAMPLES

    return {f"sample:{name}": str(getattr(sample, "title", name)) for name, sample in SAMPLES.items()}


def uploads() -> list[Path]:
    """The files that were given to the studio, newest first."""
    files = [
        path
        for path in folder().iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix != ".partial"
    ]
    return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)


def is_here(source: str) -> bool:
    """Whether it can be read without asking another machine."""
    return all(map(_is_here, sources.pieces(source)))


def _is_here(source: str) -> bool:
    if source.startswith("sample:"):
        return True
    if source.startswith("hub:"):
        return False
    path = Path(source).expanduser()
    try:
        return path.exists() or dataset.HUB_ID.fullmatch(source) is None or not dataset.looks_like_hub_id(source, path)
    except (OSError, ValueError, RuntimeError):
        return True


class StillReading(Problem):
    """Rows that a thread goes on reading: to be asked for again."""


class _Stopped(Exception):
    """Nobody waits for these rows any more."""


class _Reading:
    """A data set that is read in a thread of its own, so that a page can say how far it is, and go elsewhere."""

    def __init__(self, source: str, format: str, columns: Mapping[str, str] | None):
        self.rows, self.stopped = 0, False
        self.asked = time.monotonic()
        self.data: Dataset | None = None
        self.problem: Problem | None = None
        self._what = source, format, columns
        self.thread = threading.Thread(target=self._read, daemon=True, name="reading")
        self.thread.start()

    def _read(self) -> None:
        try:
            self.data = dataset.load(*self._what, tell=self._tell)
        except Problem as problem:
            self.problem = _bare(problem)
        except _Stopped:
            pass
        except Exception as error:  # whoever waits must learn of it
            self.problem = Problem("The rows cannot be read: {error}.", error=f"{type(error).__name__}: {error}")

    def _tell(self, rows: int) -> None:
        self.rows = rows
        if self.stopped:
            raise _Stopped


def look(
    source: str, format: str = "auto", columns: Mapping[str, str] | None = None, patience: float = _PATIENCE
) -> Dataset:
    """The data set, from memory when it was looked at before and has not changed since.

    Args:
        patience: seconds to wait for it; it is read on meanwhile.

    Raises:
        StillReading: when it takes longer.
        Problem: what `core.dataset.load` raises.
    """
    key = _key(source, format, columns)
    # Five impatient clicks on a large file shall not read it five times.
    with _looking:
        if key in _seen:
            _seen.move_to_end(key)
            return _seen[key]
        if key not in _readings:
            for other in [name for name, one in _readings.items() if time.monotonic() - one.asked > _FORGOTTEN]:
                _readings.pop(other).stopped = True
            if len(_readings) >= _READ_AT_ONCE:
                raise StillReading(
                    "Other rows are being read first.", "", "Wait a moment, or choose other data.", field="data.train"
                )
            _readings[key] = _Reading(source, format, columns)
        one = _readings[key]
        one.asked = time.monotonic()
    one.thread.join(patience)
    if one.thread.is_alive():
        raise StillReading(
            "The rows are still being read: {rows} so far.", "", "Wait a moment, or choose other data.",
            field="data.train", rows=f"{one.rows:,}",
        )  # fmt: skip
    with _looking:
        _readings.pop(key, None)
        if one.problem is not None:
            raise one.problem
        if one.data is None:
            raise StillReading("The reading was stopped.", "", "Choose the data again.", field="data.train")
        _seen[key] = one.data
        while len(_seen) > _KEPT:
            _seen.popitem(last=False)
        return one.data


def stop(source: str, format: str = "auto", columns: Mapping[str, str] | None = None) -> None:
    """Read these rows no further."""
    with _looking:
        if one := _readings.pop(_key(source, format, columns), None):
            one.stopped = True


def _key(source: str, format: str, columns: Mapping[str, str] | None) -> tuple[object, ...]:
    return source, sources.stamp(source), format, tuple(sorted((columns or {}).items()))


def remembered(source: str, format: str, columns: Mapping[str, str]) -> Dataset | None:
    """The data set if it was looked at before."""
    return _seen.get(_key(source, format, columns))


@dataclass(frozen=True)
class Glance:
    """A data set in a few words: its format and how many rows it has (`more`: at least), or why it cannot be read."""

    format: str = ""
    rows: int = 0
    more: bool = False
    problem: Problem | None = None


def glance(source: str, format: str = "auto", columns: Mapping[str, str] | None = None) -> Glance:
    """What a file is, by its first rows, kept for many files as the rows themselves are for a few."""
    key = _key(source, format, columns)
    with _looking:
        if key in _glances:
            _glances.move_to_end(key)
            return _glances[key]
        data = _seen.get(key)
    try:
        data = data or dataset.load(source, format, columns, limit=_GLANCED)
        seen = Glance(data.format, data.rows, data.rows == _GLANCED)
    except Problem as problem:
        seen = Glance(problem=_bare(problem))
    with _looking:
        _glances[key] = seen
        while len(_glances) > _KEPT_GLANCES:
            _glances.popitem(last=False)
    return seen


def _bare(problem: Problem) -> Problem:
    """Without the frames that it went through, which would keep files open and rows in memory for as long as it is kept."""
    problem.__context__ = problem.__cause__ = None
    return problem.with_traceback(None)


def models() -> list[str]:
    """The built-in model, and those of the hub that are on this machine already."""
    return [PLAYGROUND, *cached_models()]


def model_choices(words: Language) -> list[tuple[str, str]]:
    """The same with what people are shown for each."""
    return [(words.t("train.playground") if name == PLAYGROUND else name, name) for name in models()]


def cached_models() -> list[str]:
    """Models in the hub's cache on this machine, by id."""
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        found = [path for path in Path(HF_HUB_CACHE).iterdir() if path.name.startswith("models--")]
    except OSError:
        return []
    return sorted(
        path.name.removeprefix("models--").replace("--", "/", 1)
        for path in found
        if any(path.glob("snapshots/*/config.json"))
    )


def check_text(value: object, longest: int = 1000) -> str:
    """A short text that came from the page, or a Problem."""
    if isinstance(value, str) and len(value) <= longest and "\0" not in value:
        return value.strip()
    raise Problem("This is no text that could be meant.", to_do="Choose from the list, or type a shorter name.")
