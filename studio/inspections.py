"""Whole data sets looked at by a helper process: started, watched, ended, and read from what it left behind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import yaml
from filelock import FileLock
from pyarrow import compute
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from core import dataset, launch, model, process, runs, sources
from core.config import Config
from core.findings import Finding
from core.parent import introduce
from core.problem import Problem

_KEPT = 8
_TAIL = 1500
_SEARCHED = 200_000
_HELPER = "process.json"
# What decides over a row's tokens; all else of a configuration may change and the answer is the same.
_DECIDES = ("task", "model", "data", "method")
_KEY = re.compile(r"[0-9a-f]{24}")
_LAYOUT = 3
"""To be raised whenever a report or a table of rows has something else in it."""


@dataclass(frozen=True)
class Token:
    """A piece of a row as people see it; several ids where a character takes more than one."""

    text: str
    ids: tuple[int, ...]
    learned: bool = False
    special: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Inspection:
    """What a helper has found so far, in a folder."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def progress(self) -> tuple[int, int]:
        """Rows done, of how many; zeros while nobody knows."""
        told = self._read("progress.json") or {}
        return int(told.get("done", 0)), int(told.get("total", 0))

    def report(self) -> dict[str, Any] | None:
        """The numbers, once all rows have been seen."""
        return _report(self.folder / "report.json") if (self.folder / "rows.arrow").exists() else None

    def problem(self) -> Problem | None:
        """Why there will be no report."""
        told = self._read("problem.json")
        return Problem.from_data(told) if told else None

    def is_at_work(self) -> bool:
        """Whether a helper is on it, of this studio or of another one on the same home."""
        return process.lives(self._read(_HELPER))

    def findings(self) -> list[Finding]:
        """What is wrong, worst first."""
        return [Finding.from_data(one) for one in (self.report() or {}).get("findings", ())]

    # --- rows ---------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return _table(self.folder).num_rows

    def number(self, place: int) -> int:
        """Which row it is, from 1; several files are counted through."""
        return int(_table(self.folder)["number"][place].as_py())

    def where(self, place: int) -> tuple[str, int]:
        """The name of the file, where there are several, and which of its rows it is."""
        read, measured = (self.report() or {}).get("files", ((), ()))
        return dataset.find_row(measured if measured and self.is_aside(place) else read, self.number(place))

    def is_aside(self, place: int) -> bool:
        """Whether it is measured on, and never trained."""
        return bool(_table(self.folder)["aside"][place].as_py())

    def troubles(self, place: int) -> list[str]:
        """The names of the findings that it has."""
        return list(_table(self.folder)["findings"][place].as_py())

    def tokens(self, place: int, most: int) -> list[Token]:
        """At most so many pieces of a row, with those that were cut off."""
        table, tokenizer = _table(self.folder), _tokenizer(self.folder)
        ids = table["ids"][place].as_py()[:most]
        learned = table["learned"][place].as_py()
        lost = table["lost"][place].as_py()[: most - len(ids)]
        special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        return [
            *_spell(tokenizer, ids, learned, special),
            *(Token(one.text, one.ids, False, one.special, True) for one in _spell(tokenizer, lost, [], special)),
        ]

    def count(self, place: int) -> tuple[int, int, int]:
        """Tokens that are read, of them those that are learned, and those that were cut off."""
        table = _table(self.folder)
        return (
            len(table["ids"][place]),
            sum(table["learned"][place].as_py()),
            len(table["lost"][place]),
        )

    def extreme(self, longest: bool) -> int:
        """The place of the longest or the shortest row, counted whole."""
        table = _table(self.folder)
        lengths = _lengths(table, "ids") + _lengths(table, "lost")
        return int(lengths.argmax() if longest else lengths.argmin()) if len(lengths) else 0

    def with_trouble(self, name: str, after: int) -> int | None:
        """The next row with that finding, round again from the last; None when no row is kept that has it."""
        places = _troubled(self.folder, name)
        return next((place for place in places if place > after), places[0] if places else None)

    def with_text(self, text: str, after: int) -> int | None:
        """The next row whose text holds that, round again from the last; None for none."""
        count, wanted = len(self), text.casefold()
        tokenizer, column = _tokenizer(self.folder), _table(self.folder)["ids"]
        first = (after + 1) % count if count else 0
        for low, high in ((first, count), (0, first)):
            for start in range(low, min(high, low + _SEARCHED), 256):
                part = column.slice(start, min(256, high - start)).to_pylist()
                said = tokenizer.decode_batch(part, skip_special_tokens=False)
                for place, one in enumerate(said, start):
                    if wanted in one.casefold():
                        return place
        return None


def _spell(tokenizer: Tokenizer, ids: Sequence[int], learned: Sequence[bool], special: set[int]) -> list[Token]:
    """Ids as pieces of text: those of a character that takes several ids stand together."""
    stream, pieces, waiting = DecodeStream(skip_special_tokens=False), [], []
    for place, number in enumerate(ids):
        waiting.append(number)
        try:
            text = stream.step(tokenizer, number)
        except Exception:  # what the tokenizers of the world raise at ids that make no text
            stream, text = DecodeStream(skip_special_tokens=False), "\ufffd"
        if text is not None:
            marked = place < len(learned) and learned[place]
            pieces.append(Token(text, tuple(waiting), marked, number in special))
            waiting = []
    if waiting:
        pieces.append(Token("�", tuple(waiting), bool(learned) and learned[len(ids) - 1]))
    return pieces


@lru_cache(maxsize=4)
def _table_at(path: Path, stamp: int) -> pyarrow.Table:
    # Mapped, not read: a million rows take no memory until they are looked at.
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all()


def _table(folder: Path) -> pyarrow.Table:
    path = folder / "rows.arrow"
    return _table_at(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _troubled_at(path: Path, stamp: int, name: str) -> list[int]:
    column = _table_at(path, stamp)["findings"].combine_chunks()
    names, parents = compute.list_flatten(column), compute.list_parent_indices(column)
    return sorted(set(parents.filter(compute.equal(names, name)).to_pylist()))


def _troubled(folder: Path, name: str) -> list[int]:
    path = folder / "rows.arrow"
    return _troubled_at(path, path.stat().st_mtime_ns, name)


def _lengths(table: pyarrow.Table, column: str) -> np.ndarray:
    return compute.list_value_length(table[column]).to_numpy()


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@lru_cache(maxsize=4)
def _report_at(path: Path, stamp: int) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _report(path: Path) -> dict[str, Any] | None:
    try:
        return _report_at(path, path.stat().st_mtime_ns)
    except OSError:
        return None


class Inspections:
    """At most one helper at work; a new wish ends the one before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._key = ""

    def start(self, config: Config) -> Inspection:
        """Have all rows looked at as this configuration would train them; nothing is done twice."""
        key = _key_of(config)
        with self._lock, FileLock(runs.home() / "inspections.lock", mode=0o600):
            one = Inspection(folder() / key)
            if one.report() is not None or one.is_at_work():
                return one
            self._end()
            shutil.rmtree(one.folder, ignore_errors=True)
            runs.make_private_folder(one.folder)
            _forget_old(one.folder)
            # The helper works in another folder: what is named by its place here is named whole.
            data = yaml.safe_dump(runs.resolve_paths(config), sort_keys=False, allow_unicode=True)
            runs.write_whole(one.folder / "config.yaml", data)
            arguments = ["check-data", str(one.folder / "config.yaml"), "--out", str(one.folder)]
            self._process = launch.spawn([*arguments, "--parent", introduce()], one.folder / "log.txt")
            self._key = one.key
            runs.write_whole(one.folder / _HELPER, json.dumps(process.identify(self._process.pid)))
            return one

    def failure(self, one: Inspection) -> Problem | None:
        """Why it ended without a report; None while it is at work, or when it has one."""
        if one.is_at_work() or one.report() is not None:
            return None
        tail = ""
        with contextlib.suppress(OSError):
            tail = (one.folder / "log.txt").read_bytes()[-_TAIL:].decode("utf-8", errors="replace").strip()
        told = one.problem()
        with self._lock:
            if told is None and self._process is not None and one.key != self._key:
                return Problem("Another page had other rows looked at, which ended this.", to_do="Try it again.")
        return told or Problem("The rows could not be looked at.", tail and "{tail}", "Try it again.", tail=tail)

    def stop(self, key: str) -> None:
        """End the helper and leave nothing behind."""
        with self._lock:
            if key and key == self._key:
                self._end()
                shutil.rmtree(folder() / key, ignore_errors=True)

    def _end(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
        self._process, self._key = None, ""


@cache
def shared() -> Inspections:
    """The one of this studio."""
    return Inspections()


def find(key: Any) -> Inspection | None:
    """The inspection of a key that came from a page; None for none."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        return None
    one = Inspection(folder() / key)
    return one if one.folder.is_dir() else None


def folder() -> Path:
    """Where inspections are kept."""
    path = runs.home() / "inspections"
    runs.make_private_folder(path)
    return path


def _key_of(config: Config) -> str:
    data = runs.resolve_paths(config)
    told: list[Any] = [_LAYOUT, {name: data[name] for name in _DECIDES}, config.train.seed, config.train.batch_size]
    for source in (config.data.train, config.data.eval or ""):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            told.append(sources.stamp(source))
    with contextlib.suppress(OSError, Problem):
        # A local model's template may have been edited.
        where = model.locate(config.model.name, config.model.revision)
        files = [*where.glob("*.json"), *where.glob("*.jinja")] if where else []
        told += sorted([path.name, path.stat().st_mtime_ns, path.stat().st_size] for path in files)
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _forget_old(new: Path) -> None:
    """Keep the newest few: tokens of large files take room."""
    with contextlib.suppress(OSError):
        there = sorted(folder().iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in [path for path in there if path != new and not Inspection(path).is_at_work()][_KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
