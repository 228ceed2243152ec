"""The run folder: the only thing that the studio and the engine share; one process writes it, anyone may read it."""

from __future__ import annotations

import contextlib
import copy
import datetime
import hashlib
import json
import math
import os
import platform
import re
import shutil
import socket
import tempfile
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from filelock import FileLock, Timeout
from pydantic import Field

from core import process, pulse, sources
from core.config import Config, Settings, load_yaml
from core.problem import Problem

State = Literal["queued", "starting", "running", "stalled", "stopping", "completed", "stopped", "failed", "interrupted"]
ACTIVE = ("queued", "starting", "running", "stalled", "stopping")
"""The states of a run that somebody works on, or will without being asked again."""
ENDED = ("completed", "stopped", "failed", "interrupted")
"""The states of a run that has ended, and so what a result may say."""

_PATIENCE = 40
"""How many times a twentieth of a second a file is waited for that somebody reads."""
_RESERVE, _RESERVED = ".reserve", 2**16

LAUNCH = "launch.json"
"""Which process was started to work on a run, as `note_start` writes it."""

WEIGHTS = "adapter_model.safetensors"
"""What an adapter holds of numbers, in PEFT's layout."""

NOTES = "notes.json"
"""What a person wrote about a run, as `core.notes` reads and writes it."""


class ExportConfig(Settings):
    """A job that turns a run's result into something to take away."""

    job: Literal["export"] = "export"
    name: str = ""
    run: str = Field(description="The id of the run whose result is exported.")
    to: Literal["adapter", "lora", "merged"] = "merged"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    merge_base: Literal["original", "dequantised"] = Field(
        "original", description="Into which base a run on a quantised one is merged."
    )


def home() -> Path:
    """The studio's own folder: `ATELIER_HOME`, or `.atelier` in the user's home. Made private to the user."""
    folder = Path(os.environ.get("ATELIER_HOME") or Path.home() / ".atelier").expanduser().resolve()
    make_private_folder(folder)
    return folder


def runs_folder() -> Path:
    """Where the runs are."""
    folder = home() / "runs"
    make_private_folder(folder)
    return folder


def make_private_folder(folder: Path) -> None:
    """A folder that only its owner can look into (on Windows the profile's own rights do that)."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name == "posix" and folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader, a crash or a power cut sees the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def _replace(temporary: str, path: Path) -> None:
    """Put a file in the place of another, which Windows refuses as long as somebody reads that one."""
    for _ in range(_PATIENCE):
        with contextlib.suppress(PermissionError):
            return os.replace(temporary, path)
        time.sleep(0.05)
    os.replace(temporary, path)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass
class Metrics:
    """What metrics.jsonl holds so far, read on from where the last look ended."""

    path: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0

    def read(self) -> Self:
        """Take in the whole lines that have been added; a last line without its newline waits for the next look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return self
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
                self._take(json.loads(line))
        return self

    def _take(self, line: dict[str, Any]) -> None:
        if "event" in line:
            self.events.append(line)
            if line["event"] == "resumed":
                # What came after the checkpoint that the run goes on from did not happen.
                self.steps = [old for old in self.steps if old["step"] <= line["step"]]
                # An evaluation that was broken off after that step is made again.
                evaluated = line.get("evaluated", line["step"])
                self.evals = [old for old in self.evals if old["step"] <= evaluated]
        elif "eval_loss" in line:
            self.evals.append(line)
        elif "step" in line:
            self.steps.append(line)


def column(rows: Sequence[dict[str, Any]], name: str) -> Any:
    """The numbers of one name, a float64 array; what is no finite number is a gap (NaN). Rows that are kept as columns give theirs."""
    import numpy as np  # not everybody who looks at a run needs it

    if hasattr(rows, "column"):
        column = rows.column(name)
        return np.where(np.isfinite(column), column, np.nan)
    values = (row.get(name) for row in rows)
    return np.array(
        [value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else math.nan for value in values],
        dtype=float,
    )  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run: a folder whose name is its id."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    def config_data(self) -> dict[str, Any]:
        """config.yaml as plain data."""
        path = self.folder / "config.yaml"
        try:
            status = path.stat()
        except OSError:
            return load_yaml(path)
        return copy.deepcopy(_load_config(path, status.st_mtime_ns, status.st_size))

    def config(self) -> Config:
        """The settings of a training run."""
        return Config.read(self.config_data())

    @property
    def job(self) -> str:
        """What kind of work it is: train or export."""
        return str(self.config_data().get("job", "train"))

    @property
    def title(self) -> str:
        """Its name for people: the one that somebody gave it, else the one that it was started with."""
        given = (self.read_json(NOTES) or {}).get("name")
        if isinstance(given, str) and given:
            return given
        try:
            return str(self.config_data().get("name") or self.id)
        except Problem:
            return self.id

    def read_json(self, name: str) -> dict[str, Any] | None:
        """One of the folder's JSON files; None while there is none."""
        try:
            data = json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) else None

    def result(self) -> dict[str, Any] | None:
        """How it ended: outcome, message, step, what is on disk; None before that."""
        found = self.read_json("result.json")
        # A folder that another program wrote, or only half, must not stand in the way of all others.
        return found if found and found.get("outcome") in ENDED else None

    def worker(self) -> dict[str, Any] | None:
        """The process that works on it, when it lives."""
        worker = self.read_json("worker.json")
        mine = worker is not None and worker.get("host") == socket.gethostname()
        return worker if mine and process.lives(worker) else None

    def asked(self, what: str) -> bool:
        """Whether a reader asked for it: stop, discard (with stop), save or resume."""
        return (self.folder / "control" / what).exists()

    def ask(self, what: Literal["stop", "discard", "save", "resume"]) -> None:
        """Ask the worker for something: an empty file that it finds and takes."""
        folder = self.folder / "control"
        folder.mkdir(exist_ok=True)
        if what == "resume":
            for old in ("stop", "discard"):
                (folder / old).unlink(missing_ok=True)  # an old wish that nobody came to take
        (folder / what).touch(mode=0o600)
        if what == "discard":
            (folder / "stop").touch(mode=0o600)  # second, or it would stop and keep

    def take(self, what: str) -> bool:
        """The worker's side of `ask`: True once for each time it was asked."""
        try:
            (self.folder / "control" / what).unlink()
        except FileNotFoundError:
            return False
        return True

    def discard(self) -> None:
        """Remove all that it learned; settings, numbers and samples stay."""
        for name in ("checkpoints", "best", "adapter"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def state(self) -> State:
        """Worked out from the folder at every look, never stored."""
        worker = self.worker()
        # A resumed run keeps its old result until its worker takes it away.
        if worker is not None and self.result() is None:
            if self.asked("stop"):
                return "stopping"
            return pulse.judge(pulse.read(self.folder / "metrics.jsonl"), worker["birth"], time.time())
        if self.asked("resume"):
            return "queued"
        result = self.result()
        if result is not None:
            return result["outcome"]
        # Whoever wrote a result that is none: it was begun, and does not begin by itself.
        begun = any((self.folder / name).exists() for name in ("worker.json", "result.json"))
        return "interrupted" if begun else "queued"

    def touched(self) -> tuple[int, ...]:
        """Times (ns) of which one is another after any change to a run that has ended: there may be hundreds, looked at each second.

        Files are renamed into its folder, wishes lie in control/, numbers are appended.
        """
        folder, times = os.fspath(self.folder), []
        for name in ("", "/control", "/metrics.jsonl"):
            try:
                times.append(os.stat(folder + name).st_mtime_ns)
            except OSError:
                times.append(0)
        return tuple(times)

    @property
    def resumable(self) -> bool:
        """Whether going on makes sense: it ended before its end, and is a training."""
        return self.job == "train" and self.state() in ("stopped", "failed", "interrupted")

    def has_adapter(self) -> bool:
        """Whether there is something to chat with."""
        return (self.folder / "adapter" / "adapter_config.json").exists()

    def is_damaged(self) -> bool:
        """Whether it is complete, and its adapter is gone or has other bytes than those that were saved."""
        if self.job != "train" or self.state() != "completed":
            return False
        if not self.has_adapter():
            return (self.result() or {}).get("adapter") is True
        expected, path = (self.read_json("adapter/atelier.json") or {}).get("sha256"), self.folder / "adapter" / WEIGHTS
        try:
            status = path.stat()
            return bool(expected) and expected != _sha256(path, status.st_mtime_ns, status.st_size)
        except OSError:
            return True

    @property
    def repairable(self) -> bool:
        """Whether a checkpoint can give back what is damaged."""
        return self.is_damaged() and bool(self.checkpoints())

    def adapter_step(self) -> int | None:
        """After how many steps what one can chat with was saved; None where there is nothing."""
        step = (self.read_json("adapter/atelier.json") or {}).get("step")
        return step if isinstance(step, int) and self.has_adapter() else None

    def checkpoints(self) -> list[Path]:
        """Finished checkpoints, oldest first, by step number."""
        found = [path for path in (self.folder / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def metrics(self) -> Metrics:
        """A reader of its numbers."""
        return Metrics(self.folder / "metrics.jsonl").read()

    def samples(self) -> list[dict[str, Any]]:
        """The answers to the watched prompts over time: {step, prompt, answer}; a step that was done again counts once."""
        lines: dict[tuple[int, str], dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "samples.jsonl").read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):
                        sample = json.loads(line)
                        lines[sample["step"], sample["prompt"]] = sample
        return list(lines.values())

    def log_tail(self, size: int = 8000) -> str:
        """The end of what the worker printed."""
        try:
            with (self.folder / "log.txt").open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - size))
                return file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Become the folder's one writer for as long as this process works on it.

        Raises:
            Problem: when another process is at work on it.
        """
        lock = FileLock(self.folder / "worker.lock", mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Problem(
                "The run {run} is being worked on by another process.",
                to_do="Wait for it, or stop it first.",
                run=self.id,
            ) from None
        try:
            versions = {
                name: _version(name) for name in ("torch", "transformers", "accelerate", "tokenizers", "safetensors")
            }
            about = process.identify() | {
                "host": socket.gethostname(),
                "python": platform.python_version(),
                "versions": versions,
            }
            write_whole(self.folder / "worker.json", json.dumps(about, indent=2))
            with contextlib.suppress(OSError):
                (self.folder / _RESERVE).write_bytes(bytes(_RESERVED))
            yield
        finally:
            lock.release()

    def finish(self, outcome: State, message: str = "", **facts: Any) -> None:
        """Write result.json: the last thing that a worker does."""
        (self.folder / _RESERVE).unlink(missing_ok=True)  # on a full disk, this is the room for it
        write_whole(
            self.folder / "result.json",
            json.dumps({"outcome": outcome, "message": message, **facts}, indent=2, ensure_ascii=False),
        )


def is_long_ago(touched: tuple[int, ...]) -> bool:
    """Whether two changes cannot have had one of these times, however coarse the clock of the disk."""
    return time.time_ns() - max(touched) > 2 * 10**9


@lru_cache(maxsize=1024)
def _load_config(path: Path, mtime_ns: int, size: int) -> dict[str, Any]:
    """A config.yaml, read once: it is never changed afterwards, and YAML is slow to read five hundred times."""
    return load_yaml(path)


@lru_cache(maxsize=256)
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    """A file's digest, worked out once as long as it is the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def slug(text: str) -> str:
    """A short name that every file system takes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "run"


def create(config: Settings, *, folder: Path | None = None, token: str | None = None, here: bool = False) -> Run:
    """A new run folder with its config.yaml, waiting for a worker.

    Args:
        config: all settings, resolved.
        folder: where; by default a new folder among the runs.
        token: one press of the Start button; the same token gives the same run, however often it arrives.
        here: this process will work on it itself, and nobody else shall start it.
    """
    if token is None:
        return _create(config, folder, here)
    starts = home() / "starts"
    make_private_folder(starts)
    note = starts / slug(token)
    with FileLock(starts / "lock", mode=0o600):
        if note.exists():
            return find(note.read_text())
        run = _create(config, folder, here)
        write_whole(note, run.id)
    return run


def resolve_paths(config: Config) -> dict[str, Any]:
    """A training's settings with its name, and with paths that mean the same from every folder."""
    data = config.to_data() | {"name": config.title}
    for group, key in (("model", "name"), ("data", "train"), ("data", "eval")):
        if (value := data[group][key]) and value != "playground":
            pieces = sources.pieces(value) if group == "data" else [value]
            data[group][key] = ";".join(map(sources.resolve, pieces))
    return data


def _create(config: Settings, folder: Path | None, here: bool) -> Run:
    data = resolve_paths(config) if isinstance(config, Config) else config.model_dump(mode="json")
    if folder is None:
        stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{slug(data['name'] or data['job'])}"
        for number in range(1, 1000):
            folder = runs_folder() / (stem if number == 1 else f"{stem}-{number}")
            try:
                folder.mkdir(mode=0o700)
                break
            except FileExistsError:
                continue
    else:
        folder = folder.expanduser().resolve()
        if folder.is_file():
            raise Problem("{folder} is a file.", to_do="Name a folder.", folder=folder)
        if folder.exists() and any(folder.iterdir()):
            raise Problem(
                "The folder {folder} is not empty.",
                to_do="Name a new one, or go on with `python -m core resume {folder}`.",
                folder=folder,
            )
        make_private_folder(folder)
    assert folder is not None
    if here:
        note_start(Run(folder))  # before there is a run to be seen
    write_whole(folder / "config.yaml", yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
    return Run(folder)


def note_start(run: Run, pid: int | None = None, device: str = "") -> None:
    """Note whose turn it is to become the run's worker (by default this process), until it signs in itself."""
    write_whole(run.folder / LAUNCH, json.dumps(process.identify(pid) | ({"device": device} if device else {})))


def find(name: str) -> Run:
    """The run of that id, or the run folder at that path.

    Raises:
        Problem: that lists the newest runs when there is none of that name.
    """
    runs = {run.id: run for run in all_runs()}
    if name in runs:
        return runs[name]
    path = Path(name).expanduser()
    if (path / "config.yaml").is_file():
        return Run(path.resolve())
    newest = ", ".join(list(runs)[:5])
    there_is = "The newest are {newest}." if newest else "There are no runs yet."
    raise Problem(
        "There is no run {name}.", there_is, "See them all with `python -m core runs`.", name=repr(name), newest=newest
    )


def find_id(run_id: str) -> Run:
    """The run of that id and nothing else: for names that came over the network, which never become a path."""
    folder = runs_folder()
    if run_id in os.listdir(folder) and (folder / run_id / "config.yaml").is_file():
        return Run(folder / run_id)
    raise Problem("There is no run {name}.", to_do="Reload the page and choose one of the list.", name=repr(run_id))


def all_runs() -> list[Run]:
    """Every run, newest first."""
    folder = runs_folder()
    # Not by Path: with five hundred runs that takes longer than the disk, at every look of a page.
    names = [name for name in os.listdir(folder) if os.path.isfile(f"{folder}/{name}/config.yaml")]
    return [Run(folder / name) for name in sorted(names, reverse=True)]


def delete(run: Run) -> None:
    """Remove a run's folder; refused while a worker is on it."""
    if run.worker() is not None and run.result() is None:
        raise Problem("The run {run} is still running.", to_do="Stop it first.", run=run.id)
    if run.folder.parent != runs_folder():
        raise Problem("{folder} is not among the studio's runs.", to_do="Remove it yourself.", folder=run.folder)
    lock = FileLock(run.folder / "worker.lock", mode=0o600)
    try:
        with lock.acquire(timeout=0):
            # The settings last but what says that it has ended: a run without them is none, and is not begun by anybody.
            last = ["config.yaml", "result.json", "worker.json"]
            others = [path for path in run.folder.iterdir() if path.name not in (*last, "worker.lock")]
            for path in [*others, *(run.folder / name for name in last)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        shutil.rmtree(run.folder)
    except Timeout:
        raise Problem("The run {run} is still running.", to_do="Stop it first.", run=run.id) from None
    except OSError as error:
        raise Problem(
            "{path} could not be deleted.",
            "{error}.",
            "Close what uses it and try again.",
            path=error.filename or run.folder,
            error=error.strerror or error,
        ) from None


def summarise(run: Run) -> dict[str, Any]:
    """What a list shows of a run, as plain data."""
    data: Mapping[str, Any] = run.config_data()
    summary: dict[str, Any] = {
        "id": run.id,
        "folder": str(run.folder),
        "job": run.job,
        "name": run.title,
        "state": run.state(),
    }
    if run.job == "train":
        metrics = run.metrics()
        last = metrics.steps[-1] if metrics.steps else {}
        summary |= {
            "model": data["model"]["name"],
            "data": data["data"]["train"],
            "method": data["method"]["name"],
            "step": last.get("step", 0),
            "steps": last.get("steps"),
            "loss": last.get("loss"),
            "eval_loss": metrics.evals[-1]["eval_loss"] if metrics.evals else None,
            "adapter": run.has_adapter(),
            "resumable": run.resumable,
        }
    if (result := run.result()) is not None:
        summary["message"] = result.get("message", "")
    return summary
