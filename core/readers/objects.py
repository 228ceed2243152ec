"""JSON: a list of objects, one object a line, or a file as SQuAD is published."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from core.formats import squad
from core.problem import Problem
from core.readers import Rows, number_lines, read_text, take_objects, unreadable

ENDINGS = (".json", ".jsonl", ".ndjson")


def read(path: Path, limit: int | None) -> Rows:
    """A JSON array of objects, or one object a line; what the file holds decides, not its ending."""
    text = read_text(path)
    if text.lstrip()[0] == "[":
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # several arrays under each other are read as lines, and refused one by one
                raise _broken_json(path.name, error) from None
        except (RecursionError, ValueError) as error:
            raise unreadable(error) from None
        else:
            if not items:
                raise Problem("{name} holds an empty list.", "", "Choose a file with at least one row.", name=path.name)
            return take_objects(enumerate(items[:limit], 1))
    if (articles := _read_squad(text)) is not None:
        return take_objects(enumerate(itertools.islice(squad.unfold(articles), limit), 1))
    return _read_json_lines(path, text, limit)


def _read_squad(text: str) -> dict[str, Any] | None:
    """What a file holds that is one object, as SQuAD is published; None for any other."""
    if '"paragraphs"' not in text or '"qas"' not in text:
        return None
    try:
        data = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return data if isinstance(data, dict) and isinstance(data.get("data"), list) else None


def _read_json_lines(path: Path, text: str, limit: int | None) -> Rows:
    lines, values = [], []
    for number, line in number_lines(text):
        if limit is not None and len(values) >= limit:
            break
        try:
            values.append(json.loads(line))
        except json.JSONDecodeError as error:
            if not values and line.strip() == "{":
                raise _single_object(path, text) from None
            values.append(_broken_line(error))
        except (RecursionError, ValueError) as error:
            values.append(unreadable(error))
        lines.append(number)
    return take_objects(enumerate(values, 1), lines)


def _broken_json(name: str, error: json.JSONDecodeError) -> Problem:
    near = error.doc[max(error.pos - 20, 0) : error.pos + 20]
    return Problem(
        "{name} is broken JSON at line {line}, column {column}: {error}.", "It stands near {near}.",
        "Correct that place; often a quote, a comma or a closing bracket is missing before it.",
        name=name, line=error.lineno, column=error.colno, error=error.msg, near=repr(near),
    )  # fmt: skip


def _broken_line(error: json.JSONDecodeError) -> Problem:
    return Problem(
        "The line is broken JSON at column {at}: {error}.", "",
        "Correct it; often a quote or a comma is missing. Every line has to be one whole object.",
        at=error.colno, error=error.msg,
    )  # fmt: skip


def _single_object(path: Path, text: str) -> Problem:
    try:
        keys = list(json.loads(text))
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            return _broken_json(path.name, error)
        keys = ["…"]
    except (RecursionError, ValueError) as error:
        return unreadable(error)
    return Problem(
        "{name} is one object over several lines, and a list of rows is needed.", "Its keys are {keys}.",
        "Put the rows into [ ], or write each on a line of its own.",
        name=path.name, keys=", ".join(map(str, keys[:10]))[:300],
    )  # fmt: skip
