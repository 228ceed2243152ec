"""Examples in any number: what `core.spool` has to know to keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core.formats import Answer, Example, Message
from core.spool import Spool

if TYPE_CHECKING:
    import pyarrow


def keep_examples() -> Spool[Example]:
    """A place for any number of examples."""
    return Spool(_columns, asdict, _unpack, weigh=_weigh)


def _columns() -> pyarrow.Schema:
    import pyarrow as pa

    text = pa.large_string()
    own = {
        "messages": pa.list_(pa.struct({"role": text, "content": text})), "text": text, "tools": text,
        "labels": pa.list_(text), "several": pa.bool_(), "question": text, "context": text,
        "answers": pa.list_(pa.struct({"text": text, "start": pa.int64()})), "source": text, "target": text,
        "good": pa.bool_(),
    }  # fmt: skip
    return pa.schema(own | {"rejected": pa.struct(own)})


def _unpack(row: Mapping[str, Any]) -> Example:
    labels, answers, rejected = row["labels"], row["answers"], row.get("rejected")
    return Example(
        **{
            **row,
            "messages": tuple(Message(**message) for message in row["messages"]),
            "labels": None if labels is None else tuple(labels),
            "answers": None if answers is None else tuple(Answer(**answer) for answer in answers),
            "rejected": None if rejected is None else _unpack(rejected),
        }
    )


def _weigh(example: Example) -> int:
    texts = (example.text, example.tools, example.question, example.context, example.source, example.target)
    turns = sum(200 + len(message.content) for message in example.messages)
    others = _weigh(example.rejected) if example.rejected else 0
    return 500 + turns + sum(map(len, filter(None, texts))) + others
