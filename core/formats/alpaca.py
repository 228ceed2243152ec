"""Alpaca: an instruction, perhaps an input, and the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.formats import Example, Format, Message, conversation, parse
from core.problem import Problem


class Alpaca(Format):
    title = "Instructions (Alpaca)"
    about = "A row has instruction and output, and may have input, system and history (pairs of earlier turns)."
    because = "The rows have {instruction} and {output}."
    needs = {"instruction": ("instruction",), "output": ("output", "response")}
    may = {"input": ("input", "context"), "system": ("system", "system_prompt"), "history": ("history",)}
    order = 30

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        turns = [Message("system", self.text(row, "system", columns))]
        for pair in parse(self.cell(row, "history", columns) or [], "history"):
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise Problem("history is no list of pairs of texts.", "", 'Write it as [["question", "answer"]].')
            turns += [Message("user", pair[0]), Message("assistant", pair[1])]
        more = self.text(row, "input", columns)
        # Some rows put the whole request into input: an empty instruction is wrong only when nothing else is asked.
        empty = more and not str(self.cell(row, "instruction", columns) or "").strip()
        asked = more if empty else "\n".join(filter(None, [self.text(row, "instruction", columns), more]))
        return conversation([*turns, Message("user", asked), Message("assistant", self.text(row, "output", columns))])
