"""What a person writes about a run: a name, a note and tags, in a file of its own that no worker touches."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Self

from core.problem import Problem
from core.runs import NOTES, Run, write_whole

_LONGEST_NAME = 80
_LONGEST_NOTE = 4000
_LONGEST_TAG = 30
_MOST_TAGS = 12


@dataclass(frozen=True)
class Notes:
    """A person's words about a run; all empty when nobody wrote any.

    Attributes:
        name: what the run is called in place of the name that it was started with; "" for that one.
        note: any text, several lines of it.
        tags: short words to find it by, each once.
    """

    name: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()

    @classmethod
    def read(cls, run: Run) -> Self:
        """What lies in the run's folder; a file that is none of ours counts as nothing."""
        data = run.read_json(NOTES) or {}
        name, note, tags = data.get("name"), data.get("note"), data.get("tags")
        return cls(
            name if isinstance(name, str) else "",
            note if isinstance(note, str) else "",
            tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else (),
        )

    @classmethod
    def check(cls, name: Any, note: Any, tags: Any) -> Self:
        """Notes from what somebody typed; `tags` as a list, or as one text with commas between them.

        Raises:
            Problem: with everything that is too long, or no text at all.
        """
        listed = tags.replace("，", ",").replace("、", ",").split(",") if isinstance(tags, str) else tags
        if not isinstance(name, str) or not isinstance(note, str) or not isinstance(listed, list | tuple):
            raise Problem("Name, note and tags of a run are texts.", to_do="Type them again.")
        if not all(isinstance(tag, str) for tag in listed):
            raise Problem("Name, note and tags of a run are texts.", to_do="Type them again.")
        name, note = " ".join(_plain(name).split()), _plain(note, keep="\n\t").strip()
        words = tuple(dict.fromkeys(word for tag in listed if (word := " ".join(_plain(tag).split()))))
        Problem.raise_all(_too_long(name, note, words))
        return cls(name, note, words)

    def write(self, run: Run) -> None:
        """Put them into the run's folder."""
        write_whole(run.folder / NOTES, json.dumps(asdict(self), ensure_ascii=False, indent=2))


def _plain(text: str, keep: str = "") -> str:
    """Text without control characters, and without what no file could be written with."""
    return "".join(
        letter if letter.isprintable() or letter in keep else " " for letter in text.encode("utf-8", "ignore").decode()
    )


def _too_long(name: str, note: str, tags: Iterable[str]) -> Iterable[Problem]:
    tags = tuple(tags)
    if len(name) > _LONGEST_NAME:
        yield Problem(
            "The name is too long.",
            "It has {count} letters.",
            "Keep it to {most}.",
            count=len(name),
            most=_LONGEST_NAME,
        )
    if len(note) > _LONGEST_NOTE:
        yield Problem(
            "The note is too long.",
            "It has {count} letters.",
            "Keep it to {most}.",
            count=len(note),
            most=_LONGEST_NOTE,
        )
    if any(len(tag) > _LONGEST_TAG for tag in tags) or len(tags) > _MOST_TAGS:
        yield Problem(
            "A run has at most {count} tags of {most} letters.",
            to_do="Take shorter ones, or fewer.",
            count=_MOST_TAGS,
            most=_LONGEST_TAG,
        )
