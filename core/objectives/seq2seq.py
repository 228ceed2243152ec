"""Sequence to sequence: one text in, another out, by a model with an encoder and a decoder such as T5."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from core.objectives import AnswerRow, Objective, Row, Scored, Speller

if TYPE_CHECKING:
    from core.config import DataSettings
    from core.formats import Example

_ONE_BY_ONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"


class Seq2Seq(Objective):
    """The encoder reads the source; every token of the target is learned, its end too."""

    title = "Text to text"
    about = "Turns one text into another with an encoder and a decoder: translation, summaries, rewriting."
    order = 25
    measures = ("rouge_1", "rouge_2", "rouge_l", "bleu")
    model_kind = "seq2seq"
    generates = True

    def fits(self, example: Example) -> bool:
        return example.pair() is not None

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        source, target = example.pair() or ("", "")
        row = speller.spell_input(source)
        return [AnswerRow(row.ids, segments=row.segments, lost=row.lost, answer=speller.spell_answer(target))]

    def prompt(self, example: Example, speller: Speller, room: int) -> list[int]:
        return speller.spell_input((example.pair() or ("", ""))[0]).ids

    def score(self, scored: Scored) -> dict[str, float]:
        """rouge_1, rouge_2 and rouge_l (F-measure, the mean over the rows, 0 to 1) and bleu (of all rows, 0 to 100)."""
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu import corpus_bleu

        if not scored:
            return {}
        pairs = [((example.pair() or ("", ""))[1], texts[0]) for example, texts in scored]
        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
        found = [scorer.score(right, text) for right, text in pairs]
        measures = {
            name: sum(one[key].fmeasure for one in found) / len(found)
            for name, key in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"))
        }
        # sacrebleu's own splitting for languages without blanks; the default for all others.
        chinese = any(re.search(f"[{_ONE_BY_ONE}]", right) for right, _ in pairs)
        bleu = corpus_bleu(
            [text for _, text in pairs], [[right for right, _ in pairs]], tokenize="zh" if chinese else "13a"
        )
        return measures | {"bleu": float(bleu.score)}


class _Words:
    """rouge-score's own splitting knows a to z only; this one is the same on English and sees every other letter."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(rf"[{_ONE_BY_ONE}]|[^\W_{_ONE_BY_ONE}]+", text.lower())
