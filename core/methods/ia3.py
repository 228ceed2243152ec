"""(IA)3: one learned number for every output of keys and values, and for every input of the MLP's last layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from core.config import knob
from core.methods import Layer, Shape, WeightMethod, read_places, refuse_embeddings
from core.problem import Problem
from core.targets import ends_with, full_match, play

if TYPE_CHECKING:
    import torch

    from core.methods import Call, Tensors


class IA3(WeightMethod):
    """y = l * (W x + b), or y = W (l * x) + b, with l all ones at the start (Liu et al. 2022, section 3.3).

    At strength s, what is multiplied is 1 + s (l - 1).
    """

    title = "IA3"
    about = "Learns how loud every key, value and hidden number speaks: a few thousand numbers, and once merged as quick as the base."
    family = "Scaling"
    peft_type = "IA3"
    peft_keys = {"l": "ia3_l"}
    table = "ia3"
    learning_rate_factor = 50.0

    targets: str | list[str] = knob(
        "key-value-mlp-out",
        "Target layers",
        "key-value-mlp-out (keys, values and the last layer of each MLP), peft-default, all-linear, attention, mlp, names such as k_proj, v_proj, or a regular expression over full paths.",
        group="method",
        min_length=1,
        max_length=1000,
    )
    feedforward: str | list[str] | None = knob(
        None,
        "Scaled at the input",
        "Names, or a regular expression, of the layers whose input is scaled in place of their output; empty takes the last layer of each MLP.",
        group="method",
        max_length=1000,
    )

    def at(self, path: str) -> Self:
        return self.model_copy(update={"feedforward": [path] if self._scales_input(path) else []})

    def _scales_input(self, path: str) -> bool:
        if isinstance(self.feedforward, str):
            return full_match(self.feedforward, path, "method.feedforward")
        if self.feedforward is not None:
            return ends_with(path, self.feedforward)
        # Where PEFT takes BERT's output.dense, it takes the attention's too, and scales both at the input.
        return play(path, "mlp_out") or (self.targets == "peft-default" and ends_with(path, ["output.dense"]))

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        return refuse_embeddings(self, layers)

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        return {"l": torch.ones(1, layer.shape.inn) if self.feedforward else torch.ones(layer.shape.out, 1)}

    def count(self, shape: Shape) -> int:
        return shape.inn if self.feedforward else shape.out

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        return weight * (1 + strength * (tensors["l"] - 1))

    def merged_bias(self, bias: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor | None:
        return None if self.feedforward else bias * (1 + strength * (tensors["l"][:, 0] - 1))

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        scale = 1 + strength * (tensors["l"].flatten() - 1)
        return call(x * scale) if self.feedforward else call(x) * scale

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return {"target_modules": target_modules}

    def peft_facts(self, layers: Mapping[str, Tensors]) -> dict[str, Any]:
        # An expression over whole paths: a name such as output.dense means other layers too, and PEFT takes a list only
        # of names that the targets are called by.
        inputs = [path.replace(".", r"\.") for path in layers if self._scales_input(path)]
        return {"feedforward_modules": "|".join(inputs) or []}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        # The tensors say it better than the config, whose names PEFT matches without regard to dots.
        inputs = [key.removesuffix(".ia3_l") for key, shape in shapes.items() if shape[0] == 1]
        return cls.read(
            read_places(config) | {"feedforward": [key.removeprefix("base_model.model.") for key in inputs]}
        )
