"""Texts with labels: intents, spam, sentiment, topics; one label a text, or a list of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.formats import Example, Format, as_text, labelled, parse
from core.problem import Problem


class Labels(Format):
    title = "Texts with labels"
    about = "A row has a text and its label, or a list of labels; for learning to classify."
    because = "The rows have {text} and {label}."
    needs = {
        "text": ("text", "sentence", "review", "tweet", "utterance", "content", "message", "sms", "comment", "headline",
                 "query", "question", "input", "prompt", "response", "answer", "completion", "output"),
        "label": ("label", "labels", "category", "categories", "intent", "class", "topic", "topics", "sentiment",
                  "emotion", "emotions", "tags", "target"),
    }  # fmt: skip
    order = 80

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        text = self.text(row, "text", columns)
        value, column = self.cell(row, "label", columns), columns["label"]
        if isinstance(value, str) and value.strip().startswith("["):
            value = parse(value, column)  # tables can only store lists as text
        if isinstance(value, list | tuple):
            return labelled(text, tuple(dict.fromkeys(_read_label(one, column) for one in value)), True)
        return labelled(text, (_read_label(value, column),), False)


def _read_label(value: Any, column: str) -> str:
    label = str(value).lower() if isinstance(value, bool) else as_text(value, column).strip()
    if not label:
        raise Problem("{column} is empty.", "", "Fill it in, or delete the row.", column=column)
    return label
