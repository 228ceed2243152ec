"""Prompt tuning: learned embeddings stand before every input, [P; E(x)] (Lester et al. 2021, section 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from core.config import knob
from core.methods import PromptMethod

if TYPE_CHECKING:
    import torch
    from torch import nn


class PromptTuning(PromptMethod):
    """P (tokens, width) is all that is trained; it begins as embeddings of real words, where the model can read it."""

    title = "Prompt tuning"
    about = "Learns a few made-up words before every input: the smallest file of all, and a slow learner."
    family = "Prompts"
    peft_type = "PROMPT_TUNING"
    place = "embeddings"
    learning_rate_factor = 10.0

    tokens: int = knob(
        20, "Virtual tokens", "How many learned positions stand before every input.", group="method", ge=1, le=2048
    )

    def build(self, width: int, start: Callable[[], torch.Tensor]) -> nn.Module:
        import torch
        from torch import nn

        class Prompt(nn.Module):
            def __init__(self, vectors: torch.Tensor):
                super().__init__()
                self.vectors = nn.Parameter(vectors)

            def forward(self) -> torch.Tensor:
                return self.vectors

        return Prompt(torch.randn(self.tokens, width) if self.init == "random" else start())

    def count(self, width: int) -> int:
        return self.tokens * width

    def to_peft(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        # TEXT would have whoever loads it look for a tokenizer; the file holds what became of the text anyway.
        init = "SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM"
        return super().to_peft(sizes) | {"prompt_tuning_init": init}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        text = config.get("prompt_tuning_init_text") or ""
        init = {"SAMPLE_VOCAB": "vocabulary", "TEXT": "text"}.get(config.get("prompt_tuning_init", ""), "random")
        init = "random" if init == "text" and not text.strip() else init
        return cls.read(
            {"tokens": config.get("num_virtual_tokens"), "init": init, "text": text if init == "text" else ""}
        )
