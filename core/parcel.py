"""Runs that travel: a run as a zip without anything private in it, and a run's folder from another machine taken in."""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import yaml

from core import runs
from core.config import Config, load_yaml
from core.problem import Problem
from core.runs import Run, slug, sync_folder

# What belongs to the machine and its processes, and what is somebody's wish of the moment.
_LEFT_OUT = {"worker.json", "worker.lock", "launch.json", "log.txt", "control"}
# What the libraries of trackers wrote holds the names of machine and user in forms that nobody here knows.
_LEFT_OUT |= {"tensorboard", "wandb", "mlflow.db", "mlruns", "mlartifacts"}
_TEXTS = {".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".jinja", ".csv"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".npy", ".npz"}
_CHUNK = 2**20
_MOST_FILES = 20_000
_RUN_ID = re.compile(r"\d{8}-\d{6}-[a-z0-9-]{1,60}")
_TOKEN = re.compile(r"\b(?:hf|sk|gh[pousr]|github_pat|glpat|xox[abp]|wandb)[_-][A-Za-z0-9_-]{16,}|(?<=Bearer )\S{8,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")  # fmt: skip
_POSIX_PATH = re.compile(r"(?<![\w:/.~<-])~?(?:/[^\s/'\"<>;,:|)\]}]+){2,}/?")
_WINDOWS_PATH = re.compile(r"(?<![A-Za-z])(?:[A-Za-z]:[\\/]|\\\\)[^\s'\"<>;,|)\]}]+")


class Spool:
    """A file that can only be written, from which the bytes written so far are taken."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def write(self, data: bytes) -> int:
        self._bytes += data
        return len(data)

    def flush(self) -> None: ...

    def take(self) -> bytes:
        taken, self._bytes = bytes(self._bytes), bytearray()
        return taken


def pack(run: Run) -> Iterator[bytes]:
    """A run's folder as a zip, as it is read: config, numbers, samples, adapter, checkpoints, and what was written about it.

    Paths are replaced by their last name and tokens by stars, in every text. Stays out: what belongs to this machine (the
    log, the process), links, and binary files and checkpoints in which a path of this user's home stands.

    Raises:
        Problem: while it is at work, or waits.
    """
    if run.state() not in runs.ENDED:
        raise Problem("The run {run} is not at its end.", "It is {state}.", "Stop it first.", run=run.title, state=run.state())  # fmt: skip
    return _pack(run, _Cleaner(run))


def _pack(run: Run, clean: _Cleaner) -> Iterator[bytes]:
    spool = Spool()
    spoiled = {path.parent for path in run.folder.glob("checkpoints/*/*") if path.is_file() and clean.spoils(path)}
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for path in _files(run.folder):
            name = path.relative_to(run.folder)
            if name.parts[0] in _LEFT_OUT or path.name.startswith(".") or path.parent in spoiled:
                continue
            in_checkpoint = name.parts[0] == "checkpoints"  # its manifest holds every byte of it
            if in_checkpoint or path.suffix.lower() not in _TEXTS:
                if not in_checkpoint and clean.spoils(path):
                    continue
                content = _read(path)
            else:
                content = clean.read(path)
            info = zipfile.ZipInfo(f"{run.id}/{name.as_posix()}", (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o600 << 16
            with archive.open(info, "w", force_zip64=path.stat().st_size >= 2**30) as entry:
                for chunk in content:
                    entry.write(chunk)
                    yield spool.take()
    yield spool.take()


def _files(folder: Path) -> Iterator[Path]:
    """Regular files below a folder; links are not followed and are none."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for path in sorted(Path(parent, name) for name in names):
            if path.is_file() and not path.is_symlink():
                yield path


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


class _Cleaner:
    """Takes paths and tokens out of texts."""

    def __init__(self, run: Run) -> None:
        self.user = ""
        with contextlib.suppress(Exception):  # a process may have no user of a name
            self.user = getpass.getuser()
        homes = {str(Path.home()), str(runs.home()), os.path.expanduser("~"), str(Path.home().resolve())}
        paths = set(_paths(run.config_data())) | homes
        # The longest first: a home is the beginning of all the others. Spaces and the like are part of a known path.
        self.known = sorted((path for path in paths if len(path) > 3), key=len, reverse=True)
        # Not the shortest: by chance they stand in any large file.
        self.private = [path.encode() for path in self.known if len(path) > 5]
        secrets = {
            value for name, value in os.environ.items() if name.upper().endswith(("TOKEN", "API_KEY", "PASSWORD"))
        }
        with contextlib.suppress(Exception):  # the hub's own library: whatever ails it must not stand in the way
            from huggingface_hub import get_token

            secrets.add(get_token() or "")
        self.secrets = [secret for secret in secrets if len(secret) >= 8]

    def spoils(self, path: Path) -> bool:
        """Whether one of the user's own folders, one that the settings name, or a secret stands in the file."""
        wanted = [*self.private, *(secret.encode() for secret in self.secrets)]
        longest, rest = max(map(len, wanted), default=1), b""
        for chunk in _read(path):
            rest = rest[-longest:] + chunk
            if any(one in rest for one in wanted):
                return True
        return False

    def read(self, path: Path) -> Iterator[bytes]:
        """A text file, cleaned; JSON and YAML stay what they are."""
        suffix = path.suffix.lower()
        if suffix == ".jsonl":
            with path.open("rb") as file:
                for line in file:
                    yield self._json(line.decode("utf-8", "replace")).encode() + b"\n"
        elif suffix == ".json":
            yield self._json(path.read_text(encoding="utf-8", errors="replace"), indent=2).encode()
        elif suffix in (".yaml", ".yml"):
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                yield yaml.safe_dump(
                    _walk(yaml.safe_load(text), self.clean), sort_keys=False, allow_unicode=True
                ).encode()
            except (yaml.YAMLError, RecursionError):
                yield self.clean(text).encode()
        else:
            yield self.clean(path.read_text(encoding="utf-8", errors="replace")).encode()

    def _json(self, text: str, indent: int | None = None) -> str:
        try:
            return json.dumps(_walk(json.loads(text), self.clean), ensure_ascii=False, indent=indent)
        except (ValueError, RecursionError):
            return self.clean(text).rstrip("\n")

    def clean(self, text: str) -> str:
        """A text with paths as their last names, and stars for tokens."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        text = _TOKEN.sub("***", text)
        if "/" not in text and "\\" not in text:
            return text
        for path in self.known:
            if path in text:
                text = re.sub(re.escape(path) + r"(?![\w-])", lambda _, path=path: self._last(path), text)
        text = _WINDOWS_PATH.sub(lambda found: self._last(found.group()), text)
        return _POSIX_PATH.sub(lambda found: self._last(found.group()), text)

    def _last(self, path: str) -> str:
        name = (PureWindowsPath if "\\" in path else PurePosixPath)(path.rstrip("/\\")).name
        return "home" if not name or name == self.user or path in self.known[-1:] else name


def _paths(value: Any) -> Iterator[str]:
    """The texts of some settings that are paths from the root of a disk, also several with ; between them."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
    elif isinstance(value, str):
        for piece in value.split(";"):
            piece = piece.strip()
            if "\n" not in piece and (PurePosixPath(piece).is_absolute() or PureWindowsPath(piece).is_absolute()):
                yield piece


def _walk(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {clean(key) if isinstance(key, str) else key: _walk(inner, clean) for key, inner in value.items()}
    if isinstance(value, list):
        return [_walk(inner, clean) for inner in value]
    return clean(value) if isinstance(value, str) else value


def take_in(folder: Path) -> Run:
    """Copy a run's folder from elsewhere among the studio's runs, whole or not at all.

    A training that had not ended is interrupted here, and can be resumed; nothing of it starts by itself.

    Args:
        folder: a run's folder: of another machine or home, or an unpacked zip of `pack`.

    Raises:
        Problem: it is no run's folder, or holds what no run of ours does: links, pickles, special files.
    """
    try:
        folder = folder.expanduser().resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        raise Problem("There is no folder {folder}.", to_do="Type the path of a run's folder on this machine.", folder=folder) from None  # fmt: skip
    if folder.is_file():
        raise Problem("{folder} is a file.", to_do="Unpack it, and name the folder that holds config.yaml.", folder=folder)  # fmt: skip
    if not (folder / "config.yaml").is_file():
        raise Problem("{folder} holds no run.", "There is no config.yaml in it.", "Name the folder that holds it.", folder=folder)  # fmt: skip
    home = runs.home()
    if folder.is_relative_to(runs.runs_folder()) or home.is_relative_to(folder):
        raise Problem("{folder} is the studio's own already.", to_do="Name a folder elsewhere.", folder=folder)
    names = _check(folder)
    _check_config(folder)
    size = sum((folder / name).stat().st_size for name in names)
    free = shutil.disk_usage(home).free
    if size + 50 * 2**20 > free:
        raise Problem(
            "There is too little room for this run.", "It needs {needed} MB, and {free} MB are free.", "Free some space and try again.",
            needed=size // 10**6 + 50, free=free // 10**6,
        )  # fmt: skip
    waiting_room = home / "imports"
    runs.make_private_folder(waiting_room)
    copy = Path(tempfile.mkdtemp(dir=waiting_room))
    try:
        for name in names:
            target = copy / name
            for folder_of_it in [*reversed(target.relative_to(copy).parents)][1:]:
                runs.make_private_folder(copy / folder_of_it)
            with _open(folder / name) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
                os.chmod(target, 0o600)
        _check_config(copy)
        if Run(copy).result() is None:
            problem = Problem(
                "It was brought here before its end.", to_do="Resume it, or take its settings for a new one."
            )
            Run(copy).finish("interrupted", str(problem), problem=problem.to_data())
        return Run(_settle(copy, folder.name))
    except OSError as error:
        raise Problem("{folder} could not be copied.", "{error}.", "Nothing of it was kept.", folder=folder, error=error) from None  # fmt: skip
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _settle(copy: Path, name: str) -> Path:
    """Give the copy its place under its own id, or the next that is free."""
    stem = name if _RUN_ID.fullmatch(name) else ""
    if not stem:
        stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{slug(str(Run(copy).config_data().get('name') or name))}"
    for number in range(1, 1000):
        target = runs.runs_folder() / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            target.mkdir(mode=0o700)
            # Onto the empty folder that nobody else can have: a rename, so that the run is there whole or not at all.
            if os.name == "nt":
                target.rmdir()
            os.replace(copy, target)
            sync_folder(target.parent)
            return target
    raise Problem("There are too many runs of this name.", to_do="Delete some of them.")


def _open(path: Path) -> BinaryIO:
    """A file for reading that is none when a link was put in its place meanwhile."""
    return os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)), "rb")


def _check(folder: Path) -> list[Path]:
    """The files to be taken, relative; every reason against them at once."""
    names: list[Path] = []
    wrong: list[Problem] = []
    for parent, folders, files in os.walk(folder):
        for entry in [*folders, *files]:
            path = Path(parent, entry)
            name = path.relative_to(folder)
            if path.is_symlink() or os.path.realpath(path) != str(folder / name):
                wrong.append(Problem("{name} is a link, and links are not taken in.", to_do="Put the file itself there.", name=name))  # fmt: skip
            elif path.is_dir():
                continue
            elif not path.is_file():
                wrong.append(Problem("{name} is no ordinary file.", to_do="Remove it.", name=name))
            elif {suffix.lower() for suffix in path.suffixes} & _PICKLES:
                wrong.append(Problem("{name} could run a program when it is read, and is not taken in.", to_do="Remove it; a run needs .safetensors alone.", name=name))  # fmt: skip
            elif name.parts[0] not in _LEFT_OUT and not entry.startswith("."):
                names.append(name)
        folders[:] = [one for one in folders if one not in _LEFT_OUT or Path(parent) != folder]
        if len(names) > _MOST_FILES or len(wrong) > 20:
            break
    if len(names) > _MOST_FILES:
        wrong.append(Problem("This is no run's folder: it holds more than {most} files.", to_do="Name the folder of one run.", most=_MOST_FILES))  # fmt: skip
    Problem.raise_all(wrong[:20])
    return names


def _check_config(folder: Path) -> None:
    """Whether its settings are those of a training that this version knows."""
    data = load_yaml(folder / "config.yaml")
    if data.get("job", "train") != "train":
        raise Problem("{folder} holds no training.", "Its job is {job}.", "Name the folder of a training.", folder=folder, job=str(data.get("job"))[:50])  # fmt: skip
    Config.read(data)
