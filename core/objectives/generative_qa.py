"""Generative question answering: write the answer to a question, with or without a text that holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from core.formats import Message
from core.objectives import Objective, Row, Scored, Speller
from core.objectives.extractive_qa import score_answers

if TYPE_CHECKING:
    from core.config import DataSettings
    from core.formats import Example


class GenerativeQA(Objective):
    """Only the answer is learned; what does not fit of a long context is cut off its end, never off the answer."""

    title = "Questions and answers"
    about = "Writes the answer to a question, with or without a text to read; scored by exact match and F1."
    order = 30
    measures = ("exact_match", "f1")
    generates = True

    def fits(self, example: Example) -> bool:
        return bool(example.messages) and example.pair() is not None

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        return speller.spell_conversation(_fit(example, speller, 0), "answers")

    def prompt(self, example: Example, speller: Speller, room: int) -> list[int]:
        return speller.prompt(_fit(example, speller, room)[:-1])

    def score(self, scored: Scored) -> dict[str, float]:
        """exact_match and f1, 0 to 1, against the answer that suits the written one best."""
        return score_answers((texts[0], _right(example)) for example, texts in scored)


def _right(example: Example) -> tuple[str, ...]:
    """Every answer that counts as right."""
    pair = example.pair()
    return tuple(answer.text for answer in example.answers or ()) or (pair[1] if pair else "",)


def _fit(example: Example, speller: Speller, room: int) -> tuple[Message, ...]:
    """The conversation with as much of its context as leaves `room` tokens."""
    excess = speller.count_excess(example.messages) + room
    if example.context is None or excess <= 0:
        return example.messages
    shorter = speller.shorten(example.context, excess)
    return tuple(
        replace(turn, content=turn.content.replace(example.context, shorter, 1)) if turn.role == "user" else turn
        for turn in example.messages
    )
