"""Preferences (DPO, KTO): recognised, so that rejected answers are not learned in silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.formats import Format
from core.problem import Problem

ANSWERED = {"messages": "messages", "conversations": "sharegpt", "completion": "completion", "response": "completion"}
"""Columns that a judgement can be about -> the format that reads them."""


class Preference(Format):
    title = "Preferences"
    about = "A row has a chosen and a rejected answer, or an answer and whether it is a good one."
    because = "The rows judge answers."
    needs = {}
    may = {
        "asked": ("prompt", "question", "instruction", "input", "conversations", "messages"),
        "chosen": ("chosen",),
        "rejected": ("rejected",),
        "judged": tuple(ANSWERED),
        "good": ("label", "kto_tag"),
    }
    order = 10
    trains = False

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        pairs = sum("chosen" in row and "rejected" in row for row in rows)
        marks = "judged" in columns and sum(_is_mark(row.get(columns.get("good", ""))) for row in rows)
        return max(pairs, marks) * 2 >= len(rows)

    def refuse(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Problem:
        what = "This is preference data, and training on preferences (DPO, KTO) is not possible yet."
        asked, chosen = columns.get("asked", ""), columns.get("chosen")
        if not chosen or "rejected" not in columns:
            return Problem(
                what, "{good} says which answers are good.",
                "Keep only the good rows and delete that column; or, to train on good and bad answers alike, "
                "choose the format {format}.",
                field="data.format", good=columns["good"], format=ANSWERED[columns["judged"]],
            )  # fmt: skip
        there_is = "Its columns are {columns}."
        whole = any(isinstance(row.get(chosen), list) and len(row[chosen]) > 1 for row in rows)
        to_do = "To train on the chosen answers alone, set the columns to prompt={asked}, completion={chosen}."
        if whole:
            to_do = "To train on the chosen conversations alone, set the columns to messages={chosen}."
        elif not asked:
            to_do = "To train on the chosen texts alone, set the columns to text={chosen}."
        shown = ", ".join(dict.fromkeys(columns.values()))
        return Problem(what, there_is, to_do, field="data.columns", columns=shown, asked=asked, chosen=chosen)


def _is_mark(value: Any) -> bool:
    """Whether it says yes or no; tables can only say so in words."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))
