"""Out of memory: what it looks like, and what is done about it."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from core.engine.log import Log
from core.objectives import Row
from core.problem import Problem


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device or the machine itself had no room for a tensor."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in str(error).lower()
        or "can't allocate memory" in str(error)
    )


def halve_micro_batch(error: RuntimeError, state: dict[str, Any], rows: Sequence[Row], log: Log, step: int) -> None:
    """Fewer rows at once, the same rows a step; a Problem when a single row is too much."""
    if not is_out_of_memory(error):
        raise error
    if state["micro_batch"] == 1:
        longest = max(row.length for row in rows)
        raise Problem(
            "The device has too little memory for a single row.",
            "The longest row of this step has {tokens} tokens.",
            "Lower the longest row, or choose a smaller model.",
            field="data.max_length",
            tokens=longest,
        ) from error
    state["micro_batch"] = max(1, state["micro_batch"] // 2)
    log.event("out_of_memory", step=step, micro_batch=state["micro_batch"])
    free()


class NoRoomToStep(Exception):
    """The optimizer found no room in the midst of a step: what is trained may be half changed, and is good for nothing.

    Attributes:
        micro_batch: how many rows at once are to be tried next.
    """

    def __init__(self, micro_batch: int):
        super().__init__()
        self.micro_batch = micro_batch


def give_way(
    error: RuntimeError, state: Mapping[str, Any], log: Log, step: int, *, is_frugal: bool, trainable: int
) -> NoReturn:
    """NoRoomToStep where something smaller can be tried, else a Problem."""
    if not is_out_of_memory(error) or (is_frugal and state["micro_batch"] == 1):
        refuse_optimizer(error, trainable)
    micro_batch = max(1, state["micro_batch"] // 2)
    log.event("no_room_to_step", step=step, micro_batch=micro_batch)
    raise NoRoomToStep(micro_batch) from error


def refuse_optimizer(error: RuntimeError, trainable: int) -> NoReturn:
    """A Problem for an optimizer that finds no room: what it keeps does not depend on how many rows pass at once."""
    if not is_out_of_memory(error):
        raise error
    raise Problem(
        "The device has too little memory for the optimizer.",
        "It keeps two numbers for each of {trainable} that are trained.",
        "Train less: a lower rank, fewer layers, or a method that trains less; or choose a smaller model.",
        field="method",
        trainable=trainable,
    ) from error


def free() -> None:
    """Give back what nobody holds any longer."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
