"""Freeze: only the last blocks of the model are trained, and the head if wanted; all below stays as it is."""

from __future__ import annotations

from core.config import knob
from core.methods import SelectiveMethod
from core.targets import HEADS, number_of_block


class Freeze(SelectiveMethod):
    """Trains the last `layers` blocks; no gradient flows below them, so a step costs less."""

    title = "Freeze all but the last layers"
    about = "Trains only the last blocks of the model: quick, because nothing below them is computed backwards."
    family = "Selective"
    peft_type = "ATELIER_FREEZE"
    learning_rate_factor = 0.1

    layers: int = knob(
        2,
        "Trained layers",
        "How many of the last blocks are trained; 0 trains the head alone.",
        group="method",
        ge=0,
        le=1000,
    )
    head: bool = knob(
        False,
        "Train the head",
        "Also train the output head; one that shares its weight with the embedding gets its own.",
        group="method",
    )

    def trains(self, parameter: str, layers: int) -> bool:
        block = number_of_block(parameter)
        if block is not None:
            return block >= layers - self.layers
        return (self.head or self.layers == 0) and parameter.partition(".")[0] in HEADS
