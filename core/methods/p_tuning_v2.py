"""P-tuning v2: learned keys and values before every input, in the attention of every block (Liu et al. 2022, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from core.config import knob
from core.methods import PromptMethod

if TYPE_CHECKING:
    import torch
    from torch import nn


class PTuningV2(PromptMethod):
    """Attention(q, [P_k; k], [P_v; v]) in every block, the keys behind any rotation. P begins as what a text, or words
    of the vocabulary, leave there, and is trained as it is.

    PEFT calls this PREFIX_TUNING without `prefix_projection`; with it, an adapter is read as `prefix_tuning`. What the
    two compute from a file is the same.
    """

    title = "P-tuning v2"
    about = "Learns made-up memories in every layer's attention: more to learn with than made-up words, and as easy to take off."
    family = "Prompts"
    peft_type = "PREFIX_TUNING"
    place = "attention"
    learning_rate_factor = 30.0

    tokens: int = knob(
        30, "Virtual tokens", "How many learned positions stand before every input.", group="method", ge=1, le=2048
    )

    def build(self, width: int, start: Callable[[], torch.Tensor]) -> nn.Module:
        import torch
        from torch import nn

        class Prefix(nn.Module):
            def __init__(self, vectors: torch.Tensor):
                super().__init__()
                self.vectors = nn.Parameter(vectors)

            def forward(self) -> torch.Tensor:
                return self.vectors

        return Prefix(torch.randn(self.tokens, width) if self.init == "random" else start())

    def count(self, width: int) -> int:
        return self.tokens * width

    def to_peft(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        return super().to_peft(sizes) | {"prefix_projection": False}

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and not config.get("prefix_projection")
