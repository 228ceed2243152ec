"""The good ones of judged answers alone: rows with a bad answer are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.formats import Example
from core.formats.judgement import Judgement


class Good(Judgement):
    title = "Good answers alone (of judged ones)"
    about = "As judged answers; the good ones are learned, and rows with a bad one are left out."
    because = "The rows have {answer}, learned where {good} says that it is good."
    spoken = (
        "The rows have {answer}, a conversation between Human and Assistant, learned where {good} says that it is good."
    )
    order = 13

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        return False  # only a user may leave rows out

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example | None:
        example = super().read(row, columns)
        return replace(example, good=None) if example and example.good else None
