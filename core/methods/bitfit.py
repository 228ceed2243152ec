"""BitFit: every bias of the model is trained and nothing else (Ben Zaken et al. 2022)."""

from core.methods import SelectiveMethod


class BitFit(SelectiveMethod):
    """Trains b of every W x + b, and of every norm that has one."""

    title = "BitFit"
    about = "Trains the biases alone: very small and quick to switch; Llama, Mistral, Gemma and their like have none."
    family = "Selective"
    peft_type = "ATELIER_BITFIT"
    learning_rate_factor = 2.0
    nothing = "There are no biases in it: choose LayerNorm tuning or LoRA."

    def trains(self, parameter: str, layers: int) -> bool:
        return parameter.rpartition(".")[2].endswith("bias")
