"""Translations as data sets publish them: one column with the text in each language, from the first to the second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.formats import Example, Format, Message, as_text, conversation, parse
from core.problem import Problem


class Translation(Format):
    title = "Translations"
    about = "A row has translation, an object of two languages and their texts; the first is turned into the second."
    because = "The rows have {translation}, a text in two languages."
    needs = {"translation": ("translation",)}
    order = 44

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        cells = [row.get(columns["translation"]) for row in rows]
        return sum(isinstance(cell, Mapping) or str(cell).startswith('{"') for cell in cells) * 2 >= len(rows)

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        column = columns["translation"]
        cell = parse(self.cell(row, "translation", columns), column)
        texts = [as_text(text, column) for text in cell.values()] if isinstance(cell, Mapping) else []
        if len(texts) != 2 or not all(text.strip() for text in texts):
            raise Problem(
                "{column} is no object of two languages and their texts.", "",
                'Write it as {{"en": "Good morning", "fr": "Bonjour"}}.', column=column,
            )  # fmt: skip
        talk = conversation([Message("user", texts[0]), Message("assistant", texts[1])])
        return replace(talk, source=texts[0], target=texts[1])
