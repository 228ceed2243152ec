"""The optimizer and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from core.config import TrainSettings


def create_optimizer(
    trained: Mapping[str, nn.Parameter], settings: TrainSettings, ratios: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019); matrices decay, vectors do not: zero is not where biases and scales come from.

    Args:
        ratios: how much faster than the others a parameter is trained, by name (LoRA+); each group keeps its `ratio`,
            by which the loop multiplies the learning rate of a step.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        decays = parameter.ndim >= 2 and min(parameter.shape) > 1
        groups.setdefault((decays, (ratios or {}).get(name, 1.0)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, "ratio": ratio}
            for (decays, ratio), parameters in groups.items()
        ],
        lr=settings.learning_rate,
    )


def head_ratios(trained: Iterable[str], heads: Sequence[str], settings: TrainSettings) -> dict[str, float]:
    """How much faster than the rest a fresh head is trained: it begins at random, whatever suits the method."""
    if settings.head_learning_rate is None:
        return {}
    ratio = settings.head_learning_rate / settings.learning_rate
    return {name: ratio for name in trained if any(name.startswith(f"{head}.") for head in heads)}


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate of a step (counted from 0): a function of the step alone, so that resuming needs no state."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[
        settings.scheduler
    ]
    return settings.learning_rate * factor
