"""The chosen answers of preferences alone: what was rejected is not learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.formats import Answered, Example
from core.formats.preference import Preference


class Chosen(Answered):
    title = "Chosen answers alone (of preferences)"
    about = "As preferences; the chosen answer of each row is learned, and the rejected one is left out."
    because = "The rows have {chosen}, which alone is learned."
    spoken = "The rows have {chosen}, a conversation between Human and Assistant, which alone is learned."
    needs = {"chosen": Preference.needs["chosen"]}
    may = {**Answered.may, "rejected": Preference.needs["rejected"]}
    order = 11

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        return False  # only a user may leave half of the answers out

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        return self.read_answer(row, "chosen", columns)
