"""Where rows come from: which files a source names, and the rows of each of them, of a sample or of the hub."""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from core import readers
from core.problem import Problem
from core.readers import BLOCK, Entry, first_line, unpack_batches

HUB_ID = re.compile(r"(?:hub:)?([\w.-]+/[\w.-]+)(?:@([\w./-]+))?(?::([\w.-]+))?(?::([\w.-]+))?", re.ASCII)
"""owner/name, owner/name:split or owner/name:config:split, a revision as owner/name@revision, hub: in front or not."""

NAMED = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid", "eval": "valid", "evaluation": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Words in the name of a file -> what it is for, when it stands in a folder with others."""

_MOST_PARTS = 8

Want = Literal["train", "eval", "aside"]
"""Which files of a folder: to train on; to measure on; to measure on, and only where others are to be trained on."""


def pieces(source: str) -> list[str]:
    """What a source names: itself, or the parts of a list with ; or new lines between them."""
    if _is_there(source):
        return [source]
    # Texts, and between them what parts them: that may belong to a name, too, as what is there by it shows.
    parts, found = re.split(r"([;\n])", source), []
    while parts:
        counts = range(min(_MOST_PARTS, len(parts) // 2), 0, -1)
        names = ((count, "".join(parts[: 2 * count + 1]).strip()) for count in counts)
        count, name = next((one for one in names if _is_there(str(_find_sheet(one[1])[0]))), (0, parts[0].strip()))
        found += [name] if name else []
        del parts[: 2 * count + 2]
    return found or [source]


def resolve(name: str) -> str:
    """The whole path of what is there, with the sheet that is named; else the name as it is."""
    # A name that no file system takes is a mistake that is told elsewhere.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path, sheet = _find_sheet(name)
        if path.exists():
            return f"{path.resolve()}#{sheet}" if sheet else str(path.resolve())
    return name


def find_files(source: str, want: Want = "train") -> list[str]:
    """The files, samples and hub ids that a source names, the files of a folder by their names.

    Raises:
        Problem: a folder has no file that can be read, or does not say which of its files are to be trained on.
    """
    found: list[str] = []
    for piece in pieces(source):
        folder = Path(piece).expanduser() if _is_there(piece) else None
        if folder and folder.is_dir():
            found += map(str, _choose(folder, want))
        elif want != "aside":
            found.append(piece)
    return found


def stamp(source: str) -> tuple[tuple[int, int], ...]:
    """When the local files of a source were last changed, and how long they are; nothing for none."""
    found = []
    # The name of nothing is that of the folder in which a process stands.
    for piece in pieces(source) if source else ():
        path = _find_sheet(piece)[0]
        # A name that no file system takes, or a folder that nobody may look into, has no date.
        with contextlib.suppress(OSError, ValueError):
            files = _readable(path) if path.is_dir() else [path] if path.exists() else []
            found += [(status.st_mtime_ns, status.st_size) for status in map(Path.stat, files)]
    return tuple(found)


def size(*named: str | None) -> int:
    """How many bytes the local files of some sources have."""
    return sum(length for source in named for _, length in stamp(source or ""))


def read(source: str, limit: int | None) -> Iterator[Entry]:
    """The rows of one file, sample or hub data set, as they are reached; raises Problem when it cannot be read."""
    if source.startswith("sample:"):
        yield from _read_sample(source.removeprefix("sample:"), limit)
        return
    path, sheet = _find_sheet(source)
    if not _is_there(str(path)):
        if (hub := HUB_ID.fullmatch(source)) and looks_like_hub_id(source, path):
            yield from _read_hub(*hub.groups(), limit)
            return
        raise missing(path)
    reader = readers.find(path)
    try:
        if not path.is_file():
            raise Problem("{path} is no ordinary file.", "", "Choose a file.", path=path)
        yield from reader.read(path, limit, sheet) if sheet else reader.read(path, limit)
    except OSError as error:
        raise os_problem(error, path, path.parent) from None


def looks_like_hub_id(source: str, path: Path) -> bool:
    """A mistyped path must not become a request: an id has no file ending, and no local folder has its owner's name."""
    ending = re.fullmatch(r"\.[a-z]\w*", path.suffix.lower())
    return source.startswith("hub:") or not (ending or path.parent.exists() or Path(path.parts[0]).exists())


def _is_there(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a name that no file system takes
        return False


def _find_sheet(source: str) -> tuple[Path, str]:
    """The file, and the sheet that `book.xlsx#Sheet` names."""
    name, _, sheet = source.rpartition("#")
    if name and not _is_there(source) and readers.ending(Path(name)) == ".xlsx":
        source = name
    else:
        sheet = ""
    try:
        return Path(source).expanduser(), sheet
    except RuntimeError:  # there is no such user
        return Path(source), sheet


# ---- folders --------------------------------------------------------------------------------------------------------


def _readable(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if readers.ending(path) in readers.readers()]
    return [path for path in files if path.is_file() and not path.name.startswith(".")]


def _use(path: Path) -> str:
    """What a file is for, by the words of its name; empty when it says nothing, or two things."""
    uses = {NAMED[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in NAMED}
    return uses.pop() if len(uses) == 1 else ""


def _choose(folder: Path, want: Want) -> list[Path]:
    try:
        files = _readable(folder)
    except OSError as error:
        raise os_problem(error, folder, folder) from None
    if not files:
        raise Problem(
            "No file of the folder {path} can be read.", "Endings that can be read: {known}, all also with .gz.",
            "Choose a file, or a folder with such files directly in it.",
            path=folder, known=", ".join(readers.readers()),
        )  # fmt: skip
    uses: dict[str, list[Path]] = {"train": [], "valid": [], "test": [], "": []}
    for path in files:
        uses[_use(path)].append(path)
    # Where there are both, the test files are left alone: they are for the end.
    aside = uses["valid"] or uses["test"]
    if want == "eval":
        return aside or files
    if want == "aside":
        return aside if uses["train"] else []
    if aside and (uses[""] or not uses["train"]):
        names = {use: ", ".join(path.name for path in paths)[:400] or "-" for use, paths in uses.items()}
        raise Problem(
            "It is not clear which files of {path} are to be trained on.",
            "Named for training: {train}; for evaluation: {aside}; for neither: {others}.",
            "Write the files to train on one after another with ; between them, and the others in the evaluation data.",
            path=folder, train=names["train"], others=names[""],
            aside=", ".join(path.name for path in (*uses["valid"], *uses["test"]))[:400],
        )  # fmt: skip
    return uses["train"] if aside else files


# ---- samples and the hub --------------------------------------------------------------------------------------------


def _read_sample(name: str, limit: int | None) -> Iterator[Entry]:
    from core.playground import SAMPLES

    if name not in SAMPLES:
        raise Problem(
            "There is no sample {name}.", "Samples are {known}.", "Choose one of them.",
            name=name[:100], known=", ".join(f"sample:{known}" for known in SAMPLES),
        )  # fmt: skip
    return read(str(SAMPLES[name].path), limit)


def _read_hub(
    name: str, revision: str | None, first: str | None, second: str | None, limit: int | None
) -> Iterator[Entry]:
    import datasets

    config, part = (first, second) if second else (None, first or "train")
    shown = f"{name}@{revision}" if revision else name
    try:
        data = datasets.load_dataset(name, config, split=part, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise Problem(
            "The data set {name} was not found on the Hugging Face hub.", "{error}",
            "Check its spelling; a private or gated one needs a login (hf auth login) and its owner's consent.",
            name=shown, error=first_line(error),
        ) from None  # fmt: skip
    except ConnectionError as error:
        raise Problem(
            "The data set {name} could not be fetched: the hub cannot be reached.", "{error}",
            "Connect to the internet (and unset HF_HUB_OFFLINE), or choose a file on this machine.",
            name=shown, error=first_line(error),
        ) from None  # fmt: skip
    except Exception as error:  # whatever a foreign repository makes of it, the user needs a sentence
        raise Problem(
            "The data set {name} cannot be read.", "{error}",
            "Name its configuration and split as {name}:config:split, or download one of its files and choose that.",
            name=shown, error=first_line(error),
        ) from None  # fmt: skip
    return unpack_batches(data.data.table.slice(0, limit).to_batches(BLOCK), limit)


# ---- what to say ----------------------------------------------------------------------------------------------------


def missing(path: Path) -> Problem:
    """What to say of a file that is not there."""
    similar: list[str] = []
    try:
        similar = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3)
        there_is = "Similar names there: {similar}." if similar else "Nothing in its folder has a similar name."
    except (OSError, ValueError):
        there_is = "Its folder is not there either."
    facts = {"path": str(path)[:500], "similar": ", ".join(similar)}
    return Problem("There is no file {path}.", there_is, "Check the spelling.", **facts)


def os_problem(error: OSError, path: Path, folder: Path) -> Problem:
    """What to say when the system refuses a file."""
    if error.errno == errno.ENOSPC:
        need, free = path.stat().st_size / 1e6, shutil.disk_usage(folder).free / 1e6
        return Problem(
            "The disk is full.", "{name} needs {need:.0f} MB, {free:.0f} MB are free.", "Make room, then try again.",
            name=path.name, need=need, free=free,
        )  # fmt: skip
    return Problem(
        "{path} could not be read or copied.", "The system says: {error}.", "Check its permissions.",
        path=path, error=error.strerror or error,
    )  # fmt: skip
