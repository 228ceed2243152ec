"""Parallel adapter: a narrow two-layer network beside chosen layers, on the same input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from core.config import knob
from core.methods import Layer, Shape
from core.methods.adapter_p import AdapterP

if TYPE_CHECKING:
    import torch

    from core.methods import Call, Tensors


class ParallelAdapter(AdapterP):
    """W x + b + s f(x) (He et al. 2022, section 3.3), at the layers where LLM-Adapters has it: query, key and value."""

    title = "Parallel adapter"
    about = "Puts a narrow network beside queries, keys and values: like LoRA with a bend, so that it cannot be merged."
    learning_rate_factor = (
        1.0  # beside keys and values it moves what is attended to, and three times as fast throws MiniLM off
    )

    targets: str | list[str] = knob(
        "query-key-value",
        "Target layers",
        "query-key-value, all-linear, attention, mlp, names such as q_proj, v_proj, or a regular expression over full paths.",
        group="method",
        min_length=1,
        max_length=1000,
    )

    def measure(self, shape: Shape) -> tuple[int, int]:
        return shape.inn, shape.out

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        return call(x) + strength * self.bend(x, tensors, training)

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return super().to_peft(target_modules) | {"use_adapterp": False, "use_parallel_adapter": True}

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and bool(config.get("use_parallel_adapter"))
