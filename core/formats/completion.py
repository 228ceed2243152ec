"""Prompt and completion: two columns, whatever they are called, one question and its answer a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.formats import Example, Format, Message, conversation, read_turns


class Completion(Format):
    title = "Prompt and completion"
    about = (
        "A row has a prompt and its completion; question and answer, query and response, input and output are known, "
        "and any other two columns can be mapped."
    )
    because = "The rows have {prompt} and {completion}."
    needs = {
        "prompt": ("prompt", "question", "query", "input", "source"),
        "completion": ("completion", "answer", "response", "output", "target"),
    }
    may = {"system": ("system", "system_prompt")}
    order = 50

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        system = Message("system", self.text(row, "system", columns))
        asked = self._turns(row, "prompt", "user", columns)
        return conversation([system, *asked, *self._turns(row, "completion", "assistant", columns)])

    def _turns(self, row: Mapping[str, Any], role: str, speaker: str, columns: Mapping[str, str]) -> list[Message]:
        """A text is one turn; a turn or a list of turns is taken as it is."""
        value = self.cell(row, role, columns)
        if isinstance(value, Mapping | list):
            return read_turns(value, columns[role])
        return [Message(speaker, self.text(row, role, columns))]
