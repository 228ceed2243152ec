"""AdapterH: a narrow two-layer network at the attention and at the MLP of every block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from core.config import knob
from core.methods import Layer, Shape
from core.methods.adapter_p import AdapterP
from core.targets import match_targets, play, read_blocks

if TYPE_CHECKING:
    import torch

    from core.methods import Call, Tensors


class AdapterH(AdapterP):
    """y + s f(y) behind the attention and behind the MLP (Houlsby et al. 2019, section 2.1); or, as LLM-Adapters has it,
    W (x + s f(x)) at the layers into the MLP and y + s f(y) behind it.
    """

    title = "AdapterH (Houlsby)"
    about = (
        "Puts a narrow network behind every attention and every MLP: a little slower to run, and it cannot be merged."
    )

    learning_rate_factor = 1.0  # twice as many places as AdapterP, one behind the other: its rate throws BERT off

    targets: str | list[str] = knob(
        "placement",
        "Target layers",
        "placement (the layers that belong to it), names such as o_proj, down_proj, or a regular expression over full paths.",
        group="method",
        min_length=1,
        max_length=1000,
    )
    placement: Literal["after_attention", "mlp_input"] = knob(
        "after_attention",
        "Placement",
        "after_attention stands behind the attention and behind the MLP, mlp_input before the MLP and behind it.",
        group="method",
    )

    def choose(
        self, layers: Iterable[str], named_only: Iterable[str] = (), model_type: str = "", *, all_names: bool = True
    ) -> list[str]:
        if self.targets != "placement":
            return super().choose(layers, named_only, model_type, all_names=all_names)
        layers, chosen = list(layers), set()
        for word in ("attention-out" if self.placement == "after_attention" else "mlp-in", "mlp-out"):
            # One by one: half of the adapters would be another method.
            chosen |= {*match_targets(word, layers, exclude=self.exclude, blocks=read_blocks(self.blocks))}
        return [path for path in layers if path in chosen]

    def at(self, path: str) -> Self:
        # At one layer, mlp_input says that the adapter stands before it.
        before = self.placement == "mlp_input" and play(path, "mlp_in")
        return self.model_copy(update={"placement": "mlp_input" if before else "after_attention"})

    def measure(self, shape: Shape) -> tuple[int, int]:
        return (shape.inn, shape.inn) if self.placement == "mlp_input" else (shape.out, shape.out)

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        if self.placement == "mlp_input":
            return call(x + strength * self.bend(x, tensors, training))
        return super().apply(call, layer, x, tensors, strength, training)

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return super().to_peft(target_modules) | {"use_adapterp": False}

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        other = config.get("use_parallel_adapter") or config.get("use_adapterp")
        return config.get("peft_type") == cls.peft_type and not other

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        read = super().from_peft(config, shapes)
        before = any(play(key.partition(".adapter_")[0], "mlp_in") for key in shapes)
        return read.model_copy(update={"placement": "mlp_input" if before else "after_attention"})
