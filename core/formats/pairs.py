"""Source and target: one text made of another, as in translations and summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.formats import Example, Format, Message, conversation


class Pairs(Format):
    title = "Source and target"
    about = "A row has a source and its target: a text and its translation, a document and its summary."
    because = "The rows have {source} and {target}."
    needs = {
        "source": ("source", "document", "article", "dialogue", "src", "source_text", "input_text"),
        "target": ("target", "summary", "highlights", "translation", "tgt", "target_text"),
    }
    order = 45

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        source, target = self.text(row, "source", columns), self.text(row, "target", columns)
        return replace(
            conversation([Message("user", source), Message("assistant", target)]), source=source, target=target
        )
