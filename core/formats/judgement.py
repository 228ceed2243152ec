"""Judgements (KTO): an answer, and whether it is a good one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.formats import Answered, Example, Recognition, as_turns, kind_of
from core.problem import Problem

WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
"""What tables write for yes and no."""


class Judgement(Answered):
    title = "Judged answers (good or bad)"
    about = (
        "A row has an answer, or a conversation that ends with one, and a yes or no: whether it is good. To be looked at: "
        "training on judgements (KTO) is not possible yet."
    )
    because = "The rows have {answer}, and {good} says whether it is good."
    spoken = "The rows have {answer}, a conversation between Human and Assistant, and {good} says whether its answer is good."
    needs = {
        "answer": ("completion", "response", "answer", "output", "messages", "conversations"),
        "good": ("kto_tag", "desirable", "is_desirable", "good", "is_good", "label"),
    }
    order = 12

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        return sum(read_mark(row.get(columns["good"])) is not None for row in rows) * 2 >= len(rows)

    def recognise(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Recognition | None:
        """As every format does; but a label judges an answer only where there is something that it answers."""
        found = super().recognise(rows, columns)
        if found is None or "good" in columns or found.columns["good"].strip().lower() != "label":
            return found
        turns = (as_turns(row.get(found.columns["answer"])) for row in rows)
        return found if "prompt" in found.columns or any(isinstance(one, Mapping | list) for one in turns) else None

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example | None:
        mark = self.cell(row, "good", columns)
        good, column = read_mark(mark), columns["good"]
        if good is None:
            raise Problem(
                "{column} says neither yes nor no: it is {value}.", "", "Write true or false, or delete the row.",
                column=column, value=repr(mark)[:60] if isinstance(mark, str | int | float) else kind_of(mark),
            )  # fmt: skip
        return replace(self.read_answer(row, "answer", columns), good=good)


def read_mark(value: Any) -> bool | None:
    """Whether it says yes or no; None for neither."""
    if isinstance(value, bool):
        return value
    return WORDS.get(str(value).strip().lower()) if isinstance(value, str | int) else None
