"""Chat: learn to answer, from conversations and instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.objectives import Objective, Row, Speller

if TYPE_CHECKING:
    from core.config import DataSettings
    from core.formats import Example


class Chat(Objective):
    """Only the answers are learned (or what `train_on` says), each with the token that ends it."""

    title = "Chat and instructions"
    about = "Learns to answer the way the examples do: questions, instructions, conversations."
    order = 10

    def fits(self, example: Example) -> bool:
        return bool(example.messages) and not example.judged

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        return speller.spell_conversation(example.messages, data.train_on, example.tools, data.too_long)
