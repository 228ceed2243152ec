"""Head: only the output head is trained, on what the frozen model already makes of its input."""

from core.methods import SelectiveMethod
from core.targets import HEADS


class Head(SelectiveMethod):
    """Trains the head alone. One that shares its weight with the embedding gets a weight of its own, so that what the
    model reads stays as it was."""

    title = "Head only"
    about = "Trains the output head on the frozen model: no gradient flows back through it, so that a step costs least."
    family = "Selective"
    peft_type = "ATELIER_HEAD"
    learning_rate_factor = 10.0

    def trains(self, parameter: str, layers: int) -> bool:
        return parameter.partition(".")[0] in HEADS
