"""DoRA: LoRA turns the rows of a weight, and a vector of its own learns how long each is (Liu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from core.methods import Layer, Shape
from core.methods.lora import Lora

if TYPE_CHECKING:
    import torch

    from core.methods import Call, Tensors


class Dora(Lora):
    """W' = g V with V = W + s B A and g = M / |V|, a number for each row (out): equation 5, in PEFT's layout.

    |V| is the length of V's rows. It follows B and A and is taken for a constant in the backward pass (section 4.3). M
    (out,) begins as the length of W's rows, so that W' = W. An embedding's rows are its dimensions, over all tokens.
    """

    title = "DoRA"
    about = "LoRA that learns length and direction of the weights apart: closer to full fine-tuning, and slower."
    peft_keys = Lora.peft_keys | {"M": "lora_magnitude_vector"}
    peft_embedding_keys = Lora.peft_embedding_keys | {"M": "lora_magnitude_vector"}
    # A step changes a length by less than half precision can tell.
    precise = frozenset({"M"})
    is_low_rank = False

    target_parameters: ClassVar[list[str]] = []  # type: ignore[misc]  # no knob: experts have no length of their own here

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        return super().create(layer, generator) | {"M": torch.linalg.vector_norm(layer.weight(), dim=1)}

    def count(self, shape: Shape) -> int:
        return super().count(shape) + shape.out

    def _growth(self, layer: Layer, tensors: Tensors) -> torch.Tensor:
        """g (out,)."""
        import torch

        with torch.no_grad():
            length = torch.linalg.vector_norm(super().merged(layer.weight(), tensors, 1.0), dim=1)
        return tensors["M"] / length

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        import torch

        turned = super().merged(weight, tensors, 1.0)
        growth = tensors["M"] / torch.linalg.vector_norm(turned.detach(), dim=1)
        return weight + strength * (growth[:, None] * turned - weight)

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        # y = W x + (g - 1) W x' + g s B A x', where x' is x with dropout. W x' is the layer's own output without its bias.
        with torch.no_grad():
            bias = call(x.new_zeros(1, x.shape[-1]))
        growth = self._growth(layer, tensors)
        out = call(x)
        hidden = F.dropout(x, self.dropout, training)
        straight = out if hidden is x else call(hidden)
        gain = F.linear(F.linear(hidden, tensors["A"]), tensors["B"])
        if "A0" in tensors:
            gain = gain - F.linear(F.linear(x, tensors["A0"]), tensors["B0"])
        longer, louder = (growth - 1).to(out.dtype), (growth * self.scale).to(out.dtype)
        return out + strength * (longer * (straight - bias) + louder * gain)

    def gain(self, x: torch.Tensor, tensors: Tensors, training: bool) -> None:  # type: ignore[override]
        return None

    def lookup(self, layer: Layer, ids: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        from torch.nn import functional as F

        # g (w + s B a) - w, with a token's columns w of W and a of A.
        growth = self._growth(layer, tensors)
        gain = (growth - 1) * F.embedding(ids, layer.weight().T) + growth * super().lookup(layer, ids, tensors)
        return gain.to(tensors["A"].dtype)

    def low_rank(self, tensors: Tensors, shape: Shape) -> None:  # type: ignore[override]
        return None

    def peft_tensors(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        matrices = super().peft_tensors({key: value for key, value in tensors.items() if key != "M"})
        return matrices | {"M": tensors["M"]}

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return super().to_peft(target_modules) | {"use_dora": True}

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and bool(config.get("use_dora"))
