"""Prefix tuning: learned keys and values before every input, written by a small network (Li & Liang 2021, section 4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from core.config import knob
from core.methods import PromptMethod

if TYPE_CHECKING:
    import torch
    from torch import nn


class PrefixTuning(PromptMethod):
    """P = P0 + MLP(E), E (tokens, hidden), stands before the keys and values of every block (Li & Liang 2021, section
    4.3). P0 is what a text, or words of the vocabulary, leave there; the MLP begins at nothing and is thrown away at
    save, where only P remains.

    PEFT calls this PREFIX_TUNING with `prefix_projection`; without it, an adapter is read as `p_tuning_v2`.
    """

    title = "Prefix tuning"
    about = "Learns made-up memories in every layer's attention through a small network, which steadies the training."
    family = "Prompts"
    peft_type = "PREFIX_TUNING"
    place = "attention"
    learning_rate_factor = 0.1  # its last layer moves every number of the prefix at once

    tokens: int = knob(
        30, "Virtual tokens", "How many learned positions stand before every input.", group="method", ge=1, le=2048
    )
    hidden: int = knob(
        512,
        "Projection width",
        "Width of the network that writes the keys and values while it is trained.",
        group="method",
        ge=1,
        le=16_384,
    )

    def build(self, width: int, start: Callable[[], torch.Tensor]) -> nn.Module:
        import torch
        from torch import nn

        tokens, hidden, begins = self.tokens, self.hidden, self.init != "random"
        before = start() if begins else torch.zeros(tokens, width)

        class Projection(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("start", before)
                self.embedding = nn.Parameter(torch.randn(tokens, hidden))
                self.transform = nn.Sequential(nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, width))
                if begins:
                    nn.init.zeros_(self.transform[-1].weight)  # type: ignore[arg-type]
                    nn.init.zeros_(self.transform[-1].bias)  # type: ignore[arg-type]

            def forward(self) -> torch.Tensor:
                return self.start + self.transform(self.embedding)

        return Projection()

    def count(self, width: int) -> int:
        return self.tokens * self.hidden + (self.hidden + 1) * self.hidden + (self.hidden + 1) * width

    def to_peft(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        return super().to_peft(sizes) | {"prefix_projection": True, "encoder_hidden_size": self.hidden}

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and bool(config.get("prefix_projection"))

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        return cls.read(
            {"tokens": config.get("num_virtual_tokens"), "hidden": config.get("encoder_hidden_size") or 512}
        )
