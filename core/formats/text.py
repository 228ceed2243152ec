"""Raw text: the model learns to continue it, without questions and answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.formats import Example, Format, raw_text


class Text(Format):
    title = "Raw text"
    about = "A row has text. In a .txt file every paragraph is a row when there are blank lines, else every line."
    because = "The rows have {text}, and nothing to answer."
    needs = {"text": ("text", "content", "document")}
    order = 90

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        return raw_text(self.text(row, "text", columns))
