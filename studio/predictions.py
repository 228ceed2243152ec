"""Labels with their probabilities, and an answer marked in its text, as HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence

from studio.language import Language
from studio.report import escape
from studio.serving import Span

_SHOWN = 5
_AROUND = 1500
"""Characters of a text that are shown before and after the place that is marked in it."""


def label_bars(words: Language, labels: Sequence[tuple[str, float]]) -> str:
    """Each label with its probability as a bar, the likeliest first; the unlikely ones of many are folded away."""
    rows = [_row(words, label, probability) for label, probability in labels]
    # One more is no reason to fold anything away.
    shown = len(rows) if len(rows) <= _SHOWN + 1 else _SHOWN
    more = ""
    if rest := rows[shown:]:
        summary = escape(words.t("chat.more_labels", count=len(rest)))
        more = f"<details><summary>{summary}</summary><ul>{''.join(rest)}</ul></details>"
    return f"<div class='labels'><ul>{''.join(rows[:shown])}</ul>{more}</div>"


def _row(words: Language, label: str, probability: float) -> str:
    name = escape(label).replace("_", "_<wbr>")
    width = min(1.0, max(0.0, probability)) * 100 if math.isfinite(probability) else 0.0
    return (
        f"<li><span class='label-name'>{name}</span><span class='label-bar'><span style='width:{width:.2f}%'></span></span>"
        f"<span class='number'>{escape(words.percent(probability))}</span></li>"
    )


def show_answer(words: Language, context: str, answer: str, span: Span) -> str:
    """The answer with its probability, and under it the text with the answer marked in it."""
    sure = "" if span.probability is None else f" <span class='number'>{escape(words.percent(span.probability))}</span>"
    says = answer.strip() or context[max(0, span.start) : max(0, span.end)].strip() or words.t("chat.not_in_text")
    text = f"<p class='found-text'>{mark_place(context, span.start, span.end)}</p>" if context else ""
    return f"<div class='found'><p class='found-answer'><b>{escape(says)}</b>{sure}</p>{text}</div>"


def mark_place(text: str, start: int, end: int) -> str:
    """The text around a place in it, with the place marked; its beginning where the place is none."""
    if not 0 <= start < end <= len(text):
        return escape(text[: 2 * _AROUND]) + ("…" if len(text) > 2 * _AROUND else "")
    first, last = max(0, start - _AROUND), min(len(text), end + _AROUND)
    before, after = escape(text[first:start]), escape(text[end:last])
    cut_before, cut_after = "…" if first else "", "…" if last < len(text) else ""
    return f"{cut_before}{before}<mark>{escape(text[start:end])}</mark>{after}{cut_after}"
