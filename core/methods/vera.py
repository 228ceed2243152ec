"""VeRA: one pair of random matrices for all layers, of which each layer learns how loud every line is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from core.config import knob
from core.methods import Layer, Shape, WeightMethod, read_places, refuse_embeddings
from core.problem import Problem

if TYPE_CHECKING:
    import torch

    from core.methods import Tensors


class Vera(WeightMethod):
    """y = W x + b * (B (d * (A dropout(x)))), with b (out,) and d (rank,) learned (Kopiczko et al. 2024, equation 2).

    A (rank, widest in) and B (widest out, rank) are drawn once and never trained; a layer takes as much of them as fits it.
    """

    title = "VeRA"
    about = "Learns two vectors a layer beside random matrices that all layers share: hardly any numbers to keep."
    family = "Low rank"
    peft_type = "VERA"
    peft_keys = {"b": "vera_lambda_b", "d": "vera_lambda_d"}
    peft_shared_keys = {"A": "vera_A", "B": "vera_B"}
    table = "vera"
    learning_rate_factor = 10.0
    is_low_rank = True

    rank: int = knob(
        256, "Rank", "Lines of the shared random matrices; VeRA needs far more of them than LoRA.", group="method", ge=1, le=16384
    )  # fmt: skip
    start: float = knob(
        0.1, "Start of d", "What the inner vector begins with; small values are recommended.", group="method", gt=0, le=10
    )  # fmt: skip
    dropout: float = knob(
        0.0,
        "Dropout",
        "Share of the inputs that is hidden while training, against learning by heart.",
        group="method",
        ge=0.0,
        lt=1.0,
        step=0.01,
    )
    projection_key: int = knob(
        0, "Key of the random matrices", "The number that they are drawn from.", group="method", ge=0, le=2**31
    )
    save_projection: bool = knob(
        True,
        "Save the random matrices",
        "Larger files that load anywhere; without them they are drawn from the key again.",
        group="method",
    )

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        return refuse_embeddings(self, layers)

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        return {"b": torch.zeros(layer.shape.out), "d": torch.full((self.rank,), self.start)}

    def create_shared(self, shapes: Sequence[Shape]) -> dict[str, torch.Tensor]:
        import torch

        generator = torch.Generator().manual_seed(self.projection_key)
        inn, out = max(shape.inn for shape in shapes), max(shape.out for shape in shapes)

        def draw(rows: int, columns: int) -> torch.Tensor:
            # U(-sqrt(6 / in), sqrt(6 / in)), torch's kaiming start for a relu; PEFT draws A and then B.
            bound = math.sqrt(6 / columns)
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

        return {"A": draw(self.rank, inn), "B": draw(out, self.rank)}

    def count(self, shape: Shape) -> int:
        return shape.out + self.rank

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        out, inn = weight.shape
        inner = tensors["d"][:, None] * tensors["A"][:, :inn]
        return weight + strength * tensors["b"][:, None] * (tensors["B"][:out] @ inner)

    def gain(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn import functional as F

        inner = F.linear(F.dropout(x, self.dropout, training), tensors["A"][:, : x.shape[-1]]) * tensors["d"]
        return F.linear(inner, tensors["B"][: len(tensors["b"])]) * tensors["b"]

    def low_rank(self, tensors: Tensors, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            tensors["d"][:, None] * tensors["A"][:, : shape.inn],
            tensors["b"][:, None] * tensors["B"][: shape.out],
        )

    def peft_shared(self, shared: Tensors) -> dict[str, torch.Tensor]:
        return dict(shared) if self.save_projection else {}

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return {
            "r": self.rank,
            "d_initial": self.start,
            "vera_dropout": self.dropout,
            "projection_prng_key": self.projection_key,
            "save_projection": self.save_projection,
            "target_modules": target_modules,
            "bias": "none",
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        return cls.read(
            read_places(config)
            | {
                "rank": config.get("r", 256),
                "start": config.get("d_initial", 0.1),
                "dropout": config.get("vera_dropout", 0.0),
                "projection_key": config.get("projection_prng_key", 0),
                "save_projection": any(key.endswith("vera_A") for key in shapes),
            }
        )
