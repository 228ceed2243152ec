"""Extractive question answering: mark the answer in the text that holds it, and measure as SQuAD does."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from core.objectives import Objective, Row, Scored, SpanRow, Speller
from core.problem import Problem

if TYPE_CHECKING:
    import torch

    from core.config import DataSettings
    from core.formats import Example

LONGEST_ANSWER = 30
"""Tokens that a predicted answer may have, as in SQuAD's baseline."""
_ONE_BY_ONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Characters of languages that put no blanks between words: each counts as a word."""


class Span(NamedTuple):
    """The best answer in one window: characters in the context, the sum of its two logits, that of no answer at all,
    and how probable the model holds it in this window."""

    start: int
    end: int
    score: float
    none: float
    probability: float


class ExtractiveQA(Objective):
    """The head gives every token two logits, for being the answer's first and its last. Token 0 stands for no answer."""

    title = "Questions about a text"
    about = "Marks the answer to a question in the text that holds it; long texts are read in overlapping windows."
    order = 60
    measures = ("exact_match", "f1")
    model_kind = "question_answering"

    def __init__(self, unanswered: bool = False):
        self.unanswered = unanswered

    def fits(self, example: Example) -> bool:
        return example.question is not None and example.context is not None

    def fitted(self, examples: Iterable[Example]) -> Self:
        """Only where the data has questions without an answer may the model say that there is none."""
        return type(self)(any(self.fits(example) and not example.answers for example in examples))

    def facts(self) -> dict[str, Any]:
        return {"unanswered": self.unanswered}

    def restored(self, facts: Mapping[str, Any]) -> Self:
        return type(self)(bool(facts.get("unanswered")))

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        windows = speller.spell_windows(example.question or "", example.context or "", data.stride)
        if not example.answers:
            return list(windows)
        answer = example.answers[0]
        if answer.start is None:
            raise Problem(
                "The answer does not stand in the context.",
                "It is {answer}.",
                "Correct it, or choose the task generative_qa.",
                answer=repr(answer.text[:80]),
            )
        end = answer.start + len(answer.text)
        spans = [_find_span(window, answer.start, end) for window in windows]
        if not any(spans):
            raise Problem(
                "The answer is in no window as a whole.",
                "Neighbouring windows share {stride} tokens.",
                "Raise the overlap, or the longest row.",
                field="data.stride",
                stride=data.stride,
            )
        return [
            SpanRow(window.ids, segments=window.segments, span=span or (0, 0), places=window.places)
            for window, span in zip(windows, spans, strict=True)
        ]

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed over rows: logits (rows, length, 2), minus infinity where no answer can be, targets (rows, 2); a row's
        loss is the mean of that of its start and that of its end."""
        from torch.nn import functional as F

        return F.cross_entropy(logits.float(), targets, reduction="sum") / 2

    def predict(self, row: Row, logits: torch.Tensor) -> Span:
        """The best answer in a window, from its logits (length, 2)."""
        import torch

        assert isinstance(row, SpanRow)
        logits = logits[: len(row.ids)].float()
        inside = torch.tensor([place is not None for place in row.places])
        position = torch.arange(len(row.ids))
        length = position[None, :] - position[:, None] + 1  # of the span from (row) to (column)
        possible = (length >= 1) & (length <= LONGEST_ANSWER) & inside[None, :] & inside[:, None]
        sums = (logits[:, :1] + logits[:, 1]).masked_fill(~possible, -torch.inf)
        best = int(sums.argmax())
        first, last = divmod(best, len(row.ids))
        none = float(logits[0].sum())
        start_place, end_place = row.places[first], row.places[last]
        if start_place is None or end_place is None:  # a window without a single token of the context
            return Span(0, 0, -float("inf"), none, 0.0)
        score = float(sums[first, last])
        probability = float((sums[first, last] - logits.logsumexp(0).sum()).exp())
        return Span(start_place[0], end_place[1], score, none, probability)

    def choose(self, spans: Sequence[Span]) -> Span | None:
        """The best answer over all windows of a context, None when having no answer is likelier (where it may be)."""
        best = max(spans, key=lambda span: span.score)
        if best.end <= best.start or (self.unanswered and min(span.none for span in spans) > best.score):
            return None
        return best

    def score(self, scored: Scored) -> dict[str, float]:
        """exact_match and f1, 0 to 1, against the answer that suits the prediction best (Rajpurkar et al. 2016)."""
        pairs = []
        for example, spans in scored:
            span = self.choose(spans)
            text = "" if span is None else (example.context or "")[span.start : span.end]
            pairs.append((text, tuple(answer.text for answer in example.answers or ()) or ("",)))
        return score_answers(pairs)


def _find_span(window: SpanRow, start: int, end: int) -> tuple[int, int] | None:
    """The first and last token of the characters from `start` to before `end`; None when they are not all in here."""
    inside = [(position, place) for position, place in enumerate(window.places) if place and place[1] > place[0]]
    held = [position for position, place in inside if place[1] > start and place[0] < end]
    if not held or inside[0][1][0] > start or inside[-1][1][1] < end:
        return None
    return held[0], held[-1]


def score_answers(pairs: Iterable[tuple[str, Sequence[str]]]) -> dict[str, float]:
    """exact_match and f1 of (prediction, right answers): each against the right answer that suits it best, then the
    mean over all; empty for no pairs."""
    exact, overlap = [], []
    for guess, answers in pairs:
        exact.append(max(float(split_words(guess) == split_words(answer)) for answer in answers))
        overlap.append(max(count_overlap(guess, answer) for answer in answers))
    return {"exact_match": sum(exact) / len(exact), "f1": sum(overlap) / len(overlap)} if exact else {}


def split_words(text: str) -> list[str]:
    """The words that count: lower case, without punctuation and articles. Chinese, Japanese and Korean characters are
    words of their own."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return re.findall(rf"[{_ONE_BY_ONE}]|[^\s{_ONE_BY_ONE}]+", text)


def count_overlap(guess: str, answer: str) -> float:
    """F1 of the words that two answers share."""
    one, other = split_words(guess), split_words(answer)
    if not one or not other:
        return float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return 2 * shared / (len(one) + len(other))
