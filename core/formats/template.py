"""Something else: what a row becomes is written by the user, over whatever columns there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.formats import Example, Format, Message, Recognition, conversation, raw_text
from core.problem import Problem


class Written(Format):
    title = "Something else"
    about = (
        "You write in the columns setting what a row becomes: a prompt and its completion, or a text alone, each with the "
        "names of columns in braces, such as {title}: {body}."
    )
    because = "The columns setting says what a row becomes."
    needs = {}
    may = {"prompt": (), "completion": (), "text": (), "system": ()}
    order = 100

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        return False  # only a user who chooses it knows what to write

    def claim(self, rows: Sequence[Mapping[str, Any]], found: Mapping[str, str]) -> Recognition:
        if set(found) - {"system"} not in ({"prompt", "completion"}, {"text"}) or {"text", "system"} <= set(found):
            there = dict.fromkeys(str(key) for row in rows for key in row)
            raise Problem(
                "The format {format} needs a prompt and a completion, or a text alone.", "The columns are {there}.",
                "Write in the columns setting what they are, such as prompt={{instruction}} {{input}} and "
                "completion={{output}}.",
                field="data.columns", format=self.name, there=", ".join(there)[:400] or "-",
            )  # fmt: skip
        return super().claim(rows, found)

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        if "text" in columns:
            return raw_text(self._fill(row, "text", columns))
        asked, answer = self._fill(row, "prompt", columns), self._fill(row, "completion", columns)
        system = Message("system", self.text(row, "system", columns))
        return conversation([system, Message("user", asked), Message("assistant", answer)])

    def _fill(self, row: Mapping[str, Any], role: str, columns: Mapping[str, str]) -> str:
        if text := self.text(row, role, columns):
            return text
        raise Problem("{column} is empty.", "", "Fill it in, or delete the row.", column=role)
