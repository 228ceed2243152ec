"""AdapterP: a narrow two-layer network behind every MLP; also the arithmetic that all bottleneck adapters share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from core.config import knob
from core.methods import Layer, LayerMethod, Shape, read_places, refuse_embeddings, uniform
from core.problem import Problem

if TYPE_CHECKING:
    import torch

    from core.methods import Call, Tensors


class AdapterP(LayerMethod):
    """y + s f(y), where y is what the MLP's last layer gives and f(h) = U act(D dropout(h)) (Pfeiffer et al. 2021).

    D is (size, in), U (out, size), s the scaling. U begins at zero, so that a fresh adapter changes nothing. Names are
    those of LLM-Adapters (Hu et al. 2023), whose adapters have no biases.
    """

    title = "AdapterP (Pfeiffer)"
    about = "Puts a narrow network behind every MLP: half the size of AdapterH; it cannot be merged."
    family = "Adapters"
    peft_type = "BOTTLENECK"
    peft_keys = {"down": "adapter_down.weight", "up": "adapter_up.weight"}
    learning_rate_factor = 3.0
    merges = False

    targets: str | list[str] = knob(
        "mlp-out",
        "Target layers",
        "mlp-out (the last layer of each MLP), names such as down_proj, or a regular expression over full paths.",
        group="method",
        min_length=1,
        max_length=1000,
    )
    size: int = knob(64, "Bottleneck", "Width of the adapter: wider holds more.", group="method", ge=1, le=65536)
    activation: Literal["relu", "gelu", "silu", "tanh"] = knob(
        "relu", "Activation", "What bends the line between the adapter's two layers.", group="method"
    )
    dropout: float = knob(
        0.0,
        "Dropout",
        "Share of the inputs that is hidden while training, against learning by heart.",
        group="method",
        ge=0.0,
        lt=1.0,
        step=0.01,
    )
    scaling: float = knob(
        1.0, "Adapter scaling", "How loud the adapter speaks beside the layer.", group="method", gt=0, le=1000
    )

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        return refuse_embeddings(self, layers)

    def measure(self, shape: Shape) -> tuple[int, int]:
        """(in, out) of the adapter beside a layer of that shape."""
        return shape.out, shape.out

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        inn, out = self.measure(layer.shape)
        return {"down": uniform((self.size, inn), generator), "up": torch.zeros(out, self.size)}

    def count(self, shape: Shape) -> int:
        return self.size * sum(self.measure(shape))

    def bend(self, h: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        """s f(h) of h (..., in); (..., out)."""
        from torch.nn import functional as F

        act = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": F.tanh}[self.activation]
        inner = act(F.linear(F.dropout(h, self.dropout, training), tensors["down"]))
        return F.linear(inner, tensors["up"]) * self.scaling

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        y = call(x)
        return y + strength * self.bend(y, tensors, training)

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return {
            "target_modules": target_modules,
            "bottleneck_size": self.size,
            "non_linearity": self.activation,
            "adapter_dropout": self.dropout,
            "scaling": self.scaling,
            "use_adapterp": True,
            "use_parallel_adapter": False,
            "init_weights": "mam_adapter",
            "bias": "none",
        }

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        parallel, after_mlp = config.get("use_parallel_adapter"), config.get("use_adapterp")
        return config.get("peft_type") == cls.peft_type and bool(after_mlp) and not parallel

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        scaling = config.get("scaling", 1.0)
        if scaling == "learned":
            raise Problem(
                "The adapter uses {keys}, which this version does not compute.",
                to_do="Merge it with the tool that made it and load the merged model.",
                keys="scaling: learned",
            )
        own = {
            "size": config.get("bottleneck_size", 256),
            "activation": {"swish": "silu"}.get(name := config.get("non_linearity", "tanh"), name),
            "dropout": config.get("adapter_dropout", 0.0),
            "scaling": scaling,
        }
        return cls.read(read_places(config) | own)
