"""Questions with a list of right answers and no text to read: the first is learned, all count as right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from core.formats import Answer, Example, Format, Message, as_text, check_text, conversation, parse
from core.problem import Problem


class Questions(Format):
    title = "Questions with several right answers"
    about = "A row has question and answers, a list of texts that all count as right."
    because = "The rows have {question} and {answers}, a list."
    needs = {"question": ("question", "query"), "answers": ("answers", "answer", "aliases")}
    order = 46

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        cells = [row.get(columns["answers"]) for row in rows]
        return sum(isinstance(cell, list) and all(isinstance(one, str) for one in cell) for cell in cells) * 2 >= len(
            rows
        )

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        question, column = self.text(row, "question", columns), columns["answers"]
        cell = self.cell(row, "answers", columns)
        cell = parse(cell, column) if isinstance(cell, str) and cell.startswith("[") else cell
        texts = [as_text(one, column) for one in (cell if isinstance(cell, list | tuple) else [cell])]
        texts = [text for text in texts if text.strip()]
        if not texts:
            to_do = "Write one, such as 'The text does not say.', or delete the row."
            raise Problem("The question has no answer.", "", to_do)
        check_text(texts)
        talk = conversation([Message("user", question), Message("assistant", texts[0])])
        return replace(talk, question=question, answers=tuple(Answer(text) for text in texts))
