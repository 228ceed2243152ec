"""Full fine-tuning: every parameter of the model is trained, the yardstick for all other methods."""

from core.methods import SelectiveMethod


class Full(SelectiveMethod):
    """Trains everything; what is saved is the whole model."""

    title = "Full fine-tuning"
    about = "Trains every weight: the most memory, the largest file, and a learning rate ten times smaller than LoRA's."
    family = "Selective"
    peft_type = "ATELIER_FULL"
    learning_rate_factor = 0.1

    def trains(self, parameter: str, layers: int) -> bool:
        return True
