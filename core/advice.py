"""What a training's numbers say about it in words: diverging, flat, or learning by heart, and what usually helps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.problem import Problem
from core.runs import Metrics, column

_LEAST_STEPS = 20
_LEAST_EVALS = 3
"""Evaluations since the best one, all of them worse, before it is called learning by heart."""
_WORSE = 1.03
_DIVERGED = 1.3
_FLAT = 0.98
_LEARNED = 0.05
"""A loss below which there is nothing left that could fall."""


def advise(metrics: Metrics) -> list[Problem]:
    """Whatever is wrong with the course of a training so far, worst first; empty where nothing is, or too little is known."""
    found = (find_divergence(metrics), find_overfitting(metrics), find_plateau(metrics))
    return [problem for problem in found if problem is not None]


def find_divergence(metrics: Metrics) -> Problem | None:
    """The training loss is far above what it was already."""
    losses = _losses(metrics.steps)
    if len(losses) < _LEAST_STEPS:
        return None
    means, recent = _means(losses), _span(losses)
    lowest = int(means.argmin())
    # What came down from its start and went up a little is noise; what is above its start as well has lost something.
    if means[-1] < _DIVERGED * means[lowest] or means[-1] <= means[0] or means[lowest] < _LEARNED:
        return None
    return Problem(
        "The training loss rises: it was {lowest}, and is {now} now.",
        "",
        "It diverges. Stop it and begin again with a smaller learning rate, a third of it; a longer warm-up helps too.",
        field="train.learning_rate",
        lowest=_short(means[lowest]),
        now=_short(losses[-recent:].mean()),
    )


def find_overfitting(metrics: Metrics) -> Problem | None:
    """The evaluation loss rises since its best while the training loss goes on falling."""
    evals = [(row["step"], row["eval_loss"]) for row in metrics.evals if _is_number(row.get("eval_loss"))]
    if len(evals) <= _LEAST_EVALS:
        return None
    best = min(range(len(evals)), key=lambda at: evals[at][1])
    since = evals[best + 1 :]
    step, least = evals[best]
    losses, is_after = column(metrics.steps, "loss"), column(metrics.steps, "step") > step
    earlier, later = (some[np.isfinite(some)] for some in (losses[~is_after], losses[is_after]))
    falls = bool(len(earlier) and len(later)) and later.mean() < earlier[-len(later) :].mean()
    if (
        len(since) < _LEAST_EVALS
        or min(loss for _, loss in since) <= least
        or since[-1][1] < _WORSE * least
        or not falls
    ):
        return None
    return Problem(
        "The evaluation loss rises since step {step}: it was {least}, and is {now} now, while the training loss falls.",
        "",
        "It learns the rows by heart. Stop it, or set early stopping, which keeps the best; next time fewer epochs, more rows, a lower rank or some dropout.",
        field="train.early_stopping",
        step=step,
        least=_short(least),
        now=_short(since[-1][1]),
    )


def find_plateau(metrics: Metrics) -> Problem | None:
    """The training loss hardly falls at all."""
    losses = _losses(metrics.steps)
    steps = metrics.steps[-1].get("steps") if metrics.steps else None
    if len(losses) < max(_LEAST_STEPS, 0.2 * (steps or 0)):
        return None
    means = _means(losses)
    if means[0] < _LEARNED or means.min() < _FLAT * means[0] or find_divergence(metrics):
        return None
    return Problem(
        "The training loss hardly falls: it began at {first} and is {now} now.",
        "",
        "Little is learned. Raise the learning rate, three times at first; train more layers or a higher rank; and see under Data whether the answers are what is learned.",
        field="train.learning_rate",
        first=_short(means[0]),
        now=_short(means[-1]),
    )


def _losses(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    losses = column(rows, "loss")
    return losses[np.isfinite(losses)]


def _span(losses: np.ndarray) -> int:
    return max(5, len(losses) // 10)


def _means(losses: np.ndarray) -> np.ndarray:
    """The means of neighbouring steps, each of as many: a single step says little."""
    span = _span(losses)
    return losses[len(losses) % span :].reshape(-1, span).mean(axis=1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: float) -> float:
    return float(f"{value:.3g}")
