"""Rows of an unknown shape: which columns could play which part, guessed from their names and values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core import formats
from core.formats import SAMPLE
from core.problem import Problem

MOST = 4
"""Proposals that are made at most: more would be no help."""

_ANSWER = (
    "answer", "response", "reply", "completion", "output", "solution", "target", "summary", "antwort", "ausgabe",
    "lösung", "respuesta", "réponse", "reponse", "ответ", "答", "回复", "输出",
)  # fmt: skip
_QUESTION = (
    "question", "prompt", "query", "instruction", "input", "ask", "source", "frage", "eingabe", "aufgabe", "pregunta", "вопрос",
    "问", "提示", "指令", "输入",
)  # fmt: skip
_LABEL = (
    "label", "class", "categor", "topic", "type", "sentiment", "intent", "tag", "klasse", "kategorie", "thema",
    "标签", "类别", "分类", "类型", "情感", "意图",
)  # fmt: skip
_NO_TEXT = ("id", "idx", "index", "uuid", "guid", "url", "link", "date", "time", "timestamp", "file", "path", "hash")
_LONGEST_LABEL = 40
_MOST_LABELS = 100

_PARTS = {
    "messages": "turns", "conversations": "turns", "label": "label",
    "completion": "answer", "output": "answer", "answer": "answer", "answers": "answer", "target": "answer", "chosen": "answer",
    "prompt": "question", "instruction": "question", "question": "question", "source": "question",
    "text": "text", "context": "text",
}  # fmt: skip
"""What plays each role of a format."""


@dataclass(frozen=True)
class Proposal:
    """A way to read the rows: a format's name, and role -> column."""

    format: str
    columns: Mapping[str, str]


@dataclass(frozen=True)
class _Column:
    name: str
    kind: str
    length: float

    def is_called(self, hints: Sequence[str]) -> bool:
        return any(hint in self.name.lower() for hint in hints)


def propose(
    rows: Sequence[Mapping[str, Any]], format: str = "auto", columns: Mapping[str, str] | None = None
) -> list[Proposal]:
    """Ways to read rows that were not recognised, the likeliest first; each was tried and reads most of the rows.

    Args:
        rows: the first 100 are looked at.
        format: what the user wants them to be; what that lacks is looked for first.
        columns: role -> column as far as the user has said.
    """
    rows = [rows[index] for index in range(min(SAMPLE, len(rows)))]
    there = [_judge(name, rows) for name in dict.fromkeys(str(key) for row in rows for key in row)]
    found: list[Proposal] = []
    for proposal in (*_complete(rows, there, format, dict(columns or {})), *_guess(there)):
        if len(found) < MOST and proposal not in found and _works(rows, proposal):
            found.append(proposal)
    return found


def _judge(name: str, rows: Sequence[Mapping[str, Any]]) -> _Column:
    """What kind of values a column has: turns, label, text or other."""
    values = [row[name] for row in rows if row.get(name) not in (None, "", [])]
    shown = [value if isinstance(value, str) else str(value) for value in values]
    length = sum(map(len, shown)) / max(1, len(shown))

    def kind() -> str:
        if len(values) * 2 < len(rows) or not values:
            return "other"
        if sum(map(_is_turns, values)) * 2 > len(values):
            return "turns"
        if set(name.lower().replace("-", "_").split("_")) & set(_NO_TEXT):
            return "other"
        if not all(isinstance(value, str | int) for value in values):
            return "other"
        # Of very few rows nothing can be said by counting.
        few = 2 <= len(set(shown)) <= min(_MOST_LABELS, len(shown) / 2)
        named = any(hint in name.lower() for hint in _LABEL)
        if (few or named) and max(map(len, shown)) <= _LONGEST_LABEL:
            return "label"
        return "text" if any(isinstance(value, str) for value in values) else "other"

    return _Column(name, kind(), length)


def _is_turns(value: Any) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, Mapping) and {"role", "from"} & set(turn) for turn in turns)


def _guess(there: Sequence[_Column]) -> Iterator[Proposal]:
    texts = [column for column in there if column.kind == "text"]
    labels = [column for column in there if column.kind == "label"]
    for column in there:
        if column.kind == "turns":
            yield Proposal("messages", {"messages": column.name})
    pair = _pair(texts)
    label = next((column for column in labels if column.is_called(_LABEL)), labels[0] if labels else None)
    longest = max(texts, key=lambda column: column.length, default=None)
    ways: list[Proposal] = []
    if pair:
        ways.append(Proposal("completion", {"prompt": pair[0].name, "completion": pair[1].name}))
    if label and longest:
        way = Proposal("labels", {"text": longest.name, "label": label.name})
        # A column that is called a label or an answer says what the rows are for.
        ways.insert(0 if label.is_called(_LABEL) and not (pair and pair[1].is_called(_ANSWER)) else len(ways), way)
    yield from ways
    if pair and not (pair[0].is_called(_QUESTION) or pair[1].is_called(_ANSWER)):
        yield Proposal("completion", {"prompt": pair[1].name, "completion": pair[0].name})
    if longest:
        yield Proposal("text", {"text": longest.name})


def _pair(texts: Sequence[_Column]) -> tuple[_Column, _Column] | None:
    """The column that asks and the one that answers: by their names, else the longest answers."""
    if len(texts) < 2:
        return None
    asks = [column for column in texts if column.is_called(_QUESTION) and not column.is_called(_ANSWER)]
    answers = [column for column in texts if column.is_called(_ANSWER)]
    others = answers or [column for column in texts if column not in asks] or list(texts)
    answer = max(others, key=lambda column: column.length)
    question = next((column for column in (*asks, *texts) if column is not answer), None)
    return (question, answer) if question else None


def _complete(
    rows: Sequence[Mapping[str, Any]], there: Sequence[_Column], format: str, columns: dict[str, str]
) -> Iterator[Proposal]:
    """The format that the user wants, with a column for every part that it lacks."""
    if format not in formats.formats():
        return
    wanted = formats.find(format)
    names = {column.name for column in there}
    said = {role: column for role, column in columns.items() if column in names}
    found = wanted.find_columns(rows, said)
    for role in wanted.needs:
        if role not in found:
            free = [column for column in there if column.name not in found.values()]
            if (column := _play(_PARTS.get(role, "text"), free)) is None:
                return
            found[role] = said[role] = column.name
    yield Proposal(format, said)


def _play(part: str, free: Sequence[_Column]) -> _Column | None:
    """Which of the free columns plays a part best."""
    if part in ("turns", "label"):
        return next((column for column in free if column.kind == part), None)
    texts = [column for column in free if column.kind == "text"]
    hints = {"answer": _ANSWER, "question": _QUESTION}.get(part, ())
    called = [column for column in texts if column.is_called(hints)]
    if part == "question":
        return next(iter(called or texts), None)
    return max(called or texts, key=lambda column: column.length, default=None)


def _works(rows: Sequence[Mapping[str, Any]], proposal: Proposal) -> bool:
    """Whether most of the rows can be read so."""
    try:
        found = formats.recognise(rows, proposal.columns, proposal.format)
    except Problem:
        return False
    good = 0
    for row in rows:
        try:
            good += found.format.read(row, found.columns) is not None
        except (Problem, RecursionError, ValueError):
            continue
    return good * 2 > len(rows)
