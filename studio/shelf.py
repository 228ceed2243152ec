"""The data sets and models that can be picked, and a short memory of those that were looked at."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core import dataset, runs, sources
from core.dataset import Dataset
from core.model import PLAYGROUND
from core.problem import Problem

_KEPT, _KEPT_GLANCES = 4, 500
_seen: OrderedDict[tuple[object, ...], Dataset] = OrderedDict()
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


def look(source: str, format: str = "auto", columns: Mapping[str, str] | None = None) -> Dataset:
    """The data set, from memory when it was looked at before and has not changed since.

    Raises:
        Problem: what `core.dataset.load` raises.
    """
    key = (source, sources.stamp(source), format, tuple(sorted((columns or {}).items())))
    # One at a time: five impatient clicks on a large file shall not read it five times.
    with _looking:
        if key not in _seen:
            _seen[key] = dataset.load(source, format, columns)
            while len(_seen) > _KEPT:
                _seen.popitem(last=False)
        _seen.move_to_end(key)
        return _seen[key]


def remembered(source: str, format: str, columns: Mapping[str, str]) -> Dataset | None:
    """The data set if it was looked at before."""
    return _seen.get((source, sources.stamp(source), format, tuple(sorted(columns.items()))))


@dataclass(frozen=True)
class Glance:
    """A data set in a few words: its format and rows, or why it cannot be read."""

    format: str = ""
    rows: int = 0
    problem: Problem | None = None


def glance(source: str, format: str = "auto", columns: Mapping[str, str] | None = None) -> Glance:
    """What a file is, kept for many files as the rows themselves are for a few."""
    key = (source, sources.stamp(source), format, tuple(sorted((columns or {}).items())))
    with _looking:
        if key not in _glances:
            try:
                data = _seen.get(key) or dataset.load(source, format, columns)
                _glances[key] = Glance(data.format, data.rows)
            except Problem as problem:
                _glances[key] = Glance(problem=problem)
            while len(_glances) > _KEPT_GLANCES:
                _glances.popitem(last=False)
        _glances.move_to_end(key)
        return _glances[key]


def models() -> list[str]:
    """The built-in model, and those of the hub that are on this machine already."""
    return [PLAYGROUND, *cached_models()]


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
