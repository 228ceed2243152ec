"""A course of numbers is said in words, and an ordinary one is not complained of."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from core import advice
from core.problem import Problem
from core.runs import Metrics


def course(steps: int, loss: Callable[[int], float | None], evals: Callable[[int], float] | None = None) -> Metrics:
    """Steps with a little noise, and an evaluation after every tenth of them."""
    draw = random.Random(0)
    metrics = Metrics(Path("none"))
    for step in range(1, steps + 1):
        value = loss(step)
        noisy = None if value is None else value * draw.uniform(0.9, 1.1)
        metrics.steps.append({"step": step, "steps": steps, "loss": noisy})
    if evals is not None:
        metrics.evals += [{"step": step, "eval_loss": evals(step)} for step in range(0, steps + 1, max(1, steps // 10))]
    return metrics


def falling(step: int) -> float:
    return 1 + 2 * math.exp(-step / 30)


FINDERS = {"diverges": advice.find_divergence, "heart": advice.find_overfitting, "Little": advice.find_plateau}


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (course(100, falling, falling), ""),
        (course(10, lambda step: 3.0), ""),  # too early to tell
        (course(100, lambda step: 3.0), "Little"),
        (course(100, lambda step: 0.01), ""),  # nothing is left to fall
        (course(100, lambda step: falling(step) if step < 60 else 2.0), ""),  # worse than it was, better than the start
        (course(100, lambda step: 3 - step / 50 if step < 50 else 2 + (step - 50) / 5), "diverges"),
        (course(100, lambda step: falling(step) if step < 60 else 9.0), "diverges"),
        (course(100, lambda step: None), ""),
        (course(100, falling, lambda step: 2 - step / 50 if step <= 40 else 1.2 + (step - 40) / 100), "heart"),
        (course(100, falling, lambda step: 1.2 + 0.01 * (step > 50)), ""),  # hardly worse
        (course(100, falling, lambda step: 2 - step / 100 if step < 90 else 3.0), ""),  # twice is no course
    ],
)
def test_a_course_in_words(metrics: Metrics, said: str) -> None:
    found = advice.advise(metrics)
    assert [said in problem.to_do for problem in found] == ([True] if said else []), found
    if said:
        assert found == [FINDERS[said](metrics)] or str(found[0]) == str(FINDERS[said](metrics))
        assert all(isinstance(problem, Problem) and problem.field for problem in found)


def test_nothing_is_said_of_nothing() -> None:
    assert advice.advise(Metrics(Path("none"))) == []


def test_the_step_and_the_numbers_are_named() -> None:
    metrics = course(100, falling, lambda step: 2 - step / 50 if step <= 40 else 1.2 + (step - 40) / 100)
    (problem,) = advice.advise(metrics)
    assert problem.facts == {"step": 40, "least": 1.2, "now": 1.8}
