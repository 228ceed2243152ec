"""Preferences (DPO): two answers to one prompt, of which one was chosen and the other rejected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.formats import Answered, Example


class Preference(Answered):
    title = "Preferences (chosen and rejected)"
    about = (
        "A row has a chosen and a rejected answer, as texts or as turns, and may have their prompt. To be looked at: training "
        "on preferences (DPO) is not possible yet."
    )
    because = "The rows have {chosen} and {rejected}, two answers of which one is better."
    spoken = (
        "The rows have {chosen} and {rejected}, two conversations between Human and Assistant of which one is better."
    )
    needs = {
        "chosen": ("chosen", "chosen_response", "response_chosen", "preferred"),
        "rejected": ("rejected", "rejected_response", "response_rejected", "dispreferred"),
    }
    order = 10

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        both = sum(row.get(columns["chosen"]) is not None and row.get(columns["rejected"]) is not None for row in rows)
        return both * 2 >= len(rows)

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        rejected = self.read_answer(row, "rejected", columns)
        return replace(self.read_answer(row, "chosen", columns), rejected=rejected)
