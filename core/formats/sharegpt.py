"""ShareGPT: a list of turns, each with from and value (or role and content)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.formats import Example, Format, Message, conversation, parse, read_turns


class ShareGPT(Format):
    title = "Conversations (ShareGPT)"
    about = (
        "A row has conversations: turns with from (human, gpt, system, function_call, observation) and value; "
        "it may have system and tools."
    )
    because = "The rows have {conversations}, a list of turns."
    needs = {"conversations": ("conversations", "conversation")}
    may = {"system": ("system", "system_prompt"), "tools": ("tools",)}
    order = 20

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        column = columns["conversations"]
        turns = read_turns(parse(self.cell(row, "conversations", columns), column), column)
        system = Message("system", self.text(row, "system", columns))
        return conversation([system, *turns], self.cell(row, "tools", columns))
