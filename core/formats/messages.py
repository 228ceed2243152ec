"""Messages: the list of role and content that the OpenAI API takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.formats import Example, Format, conversation, parse, read_turns


class Messages(Format):
    title = "Messages (OpenAI)"
    about = "A row has messages: turns with role (system, user, assistant, tool) and content; it may have tools."
    because = "The rows have {messages}, a list of turns."
    needs = {"messages": ("messages",)}
    may = {"tools": ("tools",)}
    order = 20

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        column = columns["messages"]
        turns = read_turns(parse(self.cell(row, "messages", columns), column), column)
        return conversation(turns, self.cell(row, "tools", columns))
