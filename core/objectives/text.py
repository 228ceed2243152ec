"""Text: continued pretraining on raw text, every token of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.objectives import Objective, Row, Speller

if TYPE_CHECKING:
    from core.config import DataSettings
    from core.formats import Example


class Text(Objective):
    """Every token is learned, and that the text ends where it ends."""

    title = "Raw text"
    about = "Goes on reading: learns the language, facts and manner of plain text."
    order = 20

    def fits(self, example: Example) -> bool:
        # A label that nobody asked about must not be left out in silence.
        return example.text is not None and example.labels is None and not example.judged

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        assert example.text is not None
        return speller.spell_text(example.text)
