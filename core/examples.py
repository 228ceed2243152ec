"""Examples in any number: what `core.spool` has to know to keep them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson

from core.formats import Answer, Example, Message
from core.spool import Spool

if TYPE_CHECKING:
    import pyarrow


def keep_examples(written: Callable[[Sequence[Example], list[bytes]], None] | None = None) -> Spool[Example]:
    """A place for any number of examples; `written` is given them, and each as a line, some at a time, as soon as they are
    there."""
    tell = None if written is None else lambda some, rows: written(some, [row["example"] for row in rows])
    return Spool(_columns, _pack, _unpack, weigh=_weigh, written=tell)


def ranges(examples: Sequence[Example], most: int) -> Iterator[range]:
    """All places in order, those together that are worked on together: `most` at most, and fewer of long ones."""
    assert isinstance(examples, Spool)
    return examples.ranges(most)


def as_lines(examples: Sequence[Example], some: range) -> list[bytes]:
    """Examples of such a range, each as a line that another process reads."""
    assert isinstance(examples, Spool)
    return [row["example"] for row in examples.packed(some.start, some.stop)]


def from_line(line: bytes) -> Example:
    """The example in a line."""
    try:
        return _from_data(orjson.loads(line))
    except ValueError:
        return _from_data(json.loads(line))


def _columns() -> pyarrow.Schema:
    import pyarrow as pa

    # As JSON text they are written and read in a tenth of the time that lists of structures take.
    return pa.schema({"example": pa.binary()})


def _pack(example: Example) -> dict[str, bytes]:
    told = _to_data(example)
    try:
        return {"example": orjson.dumps(told)}
    except TypeError:  # half of a character, or a number without end
        return {"example": json.dumps(told, ensure_ascii=False).encode("utf-8", "surrogatepass")}


def _unpack(row: Mapping[str, bytes]) -> Example:
    return from_line(row["example"])


_USUAL = {field.name: field.default for field in fields(Example)}
_OTHERS = [name for name in _USUAL if name != "messages"]
_others: Callable[[Example], tuple[Any, ...]] = attrgetter(*_OTHERS)
_NONE = tuple(map(_USUAL.__getitem__, _OTHERS))


def _to_data(example: Example) -> dict[str, Any]:
    """What an example has, as plain data."""
    told: dict[str, Any] = {}
    if (others := _others(example)) != _NONE:
        told = {name: value for name, value in zip(_OTHERS, others, strict=True) if value != _USUAL[name]}
    if example.messages:
        told["messages"] = [(message.role, message.content) for message in example.messages]
    if example.answers:
        told["answers"] = [(answer.text, answer.start) for answer in example.answers]
    if example.rejected:
        told["rejected"] = _to_data(example.rejected)
    return told


def _from_data(told: dict[str, Any]) -> Example:
    for name, kind in (("messages", Message), ("answers", Answer)):
        if name in told:
            told[name] = tuple([kind(*parts) for parts in told[name]])
    if "labels" in told:
        told["labels"] = tuple(told["labels"])
    if "rejected" in told:
        told["rejected"] = _from_data(told["rejected"])
    return Example(**told)


def _weigh(example: Example) -> int:
    turns = sum([200 + len(message.content) for message in example.messages])
    if _others(example) == _NONE:
        return 500 + turns
    texts = (example.text, example.tools, example.question, example.context, example.source, example.target)
    others = _weigh(example.rejected) if example.rejected else 0
    return 500 + turns + sum(map(len, filter(None, texts))) + others
