"""P-tuning: virtual tokens that a small network writes, which is trained with them (Liu et al. 2021, equation 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Self

from core.config import knob
from core.methods import PromptMethod

if TYPE_CHECKING:
    import torch
    from torch import nn


class PTuning(PromptMethod):
    """P = P0 + encoder(E), E (tokens, width): the encoder ties the tokens together. P0 is where it begins, and the
    encoder begins at nothing; from `random` it is PEFT's, P = encoder(E). What is saved is P; the encoder is in the
    checkpoint, so that a training goes on with it."""

    title = "P-tuning"
    about = "Learns made-up words before every input through a small network that ties them together."
    family = "Prompts"
    peft_type = "P_TUNING"
    place = "embeddings"
    learning_rate_factor = 4.5

    encoder: Literal["mlp", "lstm"] = knob(
        "mlp",
        "Encoder",
        "The network that writes the virtual tokens: mlp, or lstm, in which each hears its neighbours.",
        group="method",
    )
    hidden: int = knob(
        0, "Encoder width", "Width of the encoder; 0 takes the model's own.", group="method", ge=0, le=16_384
    )
    layers: int = knob(2, "Encoder layers", "Layers of the lstm; the mlp has two.", group="method", ge=1, le=8)
    dropout: float = knob(
        0.0, "Dropout", "Share of the lstm's numbers between its layers that is hidden while training.",
        group="method", ge=0.0, lt=1.0, step=0.01,
    )  # fmt: skip

    def build(self, width: int, start: Callable[[], torch.Tensor]) -> nn.Module:
        import torch
        from torch import nn

        hidden, begins = self.hidden or width, self.init != "random"
        tokens, kind, layers = self.tokens, self.encoder, self.layers
        dropout = self.dropout if layers > 1 else 0.0  # there is nothing between the layers of one
        before = start() if begins else torch.zeros(tokens, width)

        class Encoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("start", before)
                self.embedding = nn.Parameter(torch.randn(tokens, width))
                if kind == "lstm":
                    self.lstm_head = nn.LSTM(width, hidden, layers, dropout=dropout, bidirectional=True)
                    sizes = [2 * hidden, 2 * hidden, width]
                else:
                    sizes = [width, hidden, hidden, width]
                steps = [nn.Linear(inn, out) for inn, out in pairwise(sizes)]
                self.mlp_head = nn.Sequential(*(one for step in steps for one in (step, nn.ReLU())))[:-1]
                if begins:
                    nn.init.zeros_(self.mlp_head[-1].weight)  # type: ignore[arg-type]
                    nn.init.zeros_(self.mlp_head[-1].bias)  # type: ignore[arg-type]

            def forward(self) -> torch.Tensor:
                read = self.lstm_head(self.embedding)[0] if kind == "lstm" else self.embedding
                return self.start + self.mlp_head(read)

        return Encoder()

    def count(self, width: int) -> int:
        hidden = self.hidden or width
        if self.encoder == "mlp":
            head = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
            return self.tokens * width + head
        # A direction of an LSTM layer has four gates, each of the input, the state and two biases.
        inputs = [width, *[2 * hidden] * (self.layers - 1)]
        lstm = sum(2 * 4 * hidden * (inn + hidden + 2) for inn in inputs)
        return self.tokens * width + lstm + (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width

    def to_peft(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        return super().to_peft(sizes) | {
            "encoder_reparameterization_type": self.encoder.upper(),
            "encoder_hidden_size": self.hidden or sizes["token_dim"],
            "encoder_num_layers": self.layers,
            "encoder_dropout": self.dropout,
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        return cls.read(
            {
                "tokens": config.get("num_virtual_tokens"),
                "init": "random",
                "encoder": str(config.get("encoder_reparameterization_type") or "MLP").lower(),
                "hidden": config.get("encoder_hidden_size") or 0,
                "layers": config.get("encoder_num_layers", 2),
                "dropout": config.get("encoder_dropout", 0.0),
            }
        )
