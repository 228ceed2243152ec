"""Predictions of a trained head: the labels of one text, the answer to one question in its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.engine.data import Reader, collate
from core.engine.model import padding_token
from core.engine.tokens import Tokens
from core.objectives import LabelRow, Row
from core.objectives.classification import Classification
from core.objectives.extractive_qa import ExtractiveQA

_AT_ONCE = 8


@dataclass(frozen=True)
class Found:
    """An answer in its context: characters `start` to before `end`; empty when the model holds that there is none."""

    answer: str
    start: int
    end: int
    probability: float


def read_logits(model: Any, reader: Reader, rows: Sequence[Row], pad: int) -> list[torch.Tensor]:
    """Each row's logits, (labels,) or (length, 2), in float32 on the CPU; the model is left in the mode that it had."""
    was_training = model.training
    model.eval()
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(rows), _AT_ONCE):
            batch = collate(rows[start : start + _AT_ONCE], pad, pack=None, before=reader.before).to(model.device)
            found += reader.logits(model, batch).float().cpu().unbind(0)
    model.train(was_training)
    return found


def classify(model: Any, reader: Reader, task: Classification, tokens: Tokens, text: str) -> list[tuple[str, float]]:
    """Every label with its probability, the likeliest first."""
    read = tokens.spell_input(text)
    row = LabelRow(read.ids, segments=read.segments)
    (logits,) = read_logits(model, reader, [row], padding_token(tokens.tokenizer))
    return sorted(zip(task.labels, task.probabilities(logits).tolist(), strict=True), key=lambda pair: -pair[1])


def find_answer(
    model: Any, reader: Reader, task: ExtractiveQA, tokens: Tokens, question: str, context: str, stride: int = 128
) -> Found:
    """The best answer over all windows of the context. Its probability is the model's within the best window; that of
    no answer is the largest that it gives to having none."""
    rows = tokens.spell_windows(question, context, stride)
    logits = read_logits(model, reader, rows, padding_token(tokens.tokenizer))
    spans = [task.predict(row, one) for row, one in zip(rows, logits, strict=True)]
    best = task.choose(spans)
    if best is None:
        return Found("", 0, 0, max(float(one.log_softmax(0)[0].sum().exp()) for one in logits))
    text = context[best.start : best.end]
    start = best.start + len(text) - len(text.lstrip())
    return Found(text.strip(), start, start + len(text.strip()), best.probability)
