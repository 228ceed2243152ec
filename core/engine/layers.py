"""Layers that carry adapters: a linear layer, an embedding, the stacked weights of experts, each with its base untouched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from core.engine.quantization import dequantize, is_packed
from core.methods import Layer, LayerMethod, Shape, WeightMethod
from core.problem import Problem


class Site(nn.Module):
    """A place in the model with a table of named adapters, at most one of them active."""

    def __init__(self, path: str, base: nn.Module):
        super().__init__()
        self.path, self.base = path, base

        self.table = nn.ModuleDict()
        self.methods: dict[str, LayerMethod] = {}
        self.shared: dict[str, Mapping[str, torch.Tensor]] = {}
        self.active: str | None = None
        self.strength = 1.0

    @property
    def shape(self) -> Shape:
        raise NotImplementedError

    @property
    def parameter(self) -> str:
        """The path of the base's weight in the model."""
        return f"{self.path}.weight"

    def weight(self) -> torch.Tensor:
        """The base weight as (out, in), or (experts, out, in)."""
        raise NotImplementedError

    def restore_layout(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight (out, in) as the base stores it."""
        raise NotImplementedError

    def peft_path(self, name: str) -> str:
        """What PEFT's keys of an adapter begin with, before the tensor's own name."""
        return self.path

    @property
    def layer(self) -> Layer:
        return Layer(self.path, self.shape, lambda: self.weight().detach().float())

    def add(self, name: str, method: LayerMethod, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put an adapter into the table; what its method calls frozen is no parameter to train."""
        device = self.weight_device
        self.table["@" + name] = nn.ParameterDict(
            {
                key: nn.Parameter(value.to(device), requires_grad=False)
                if key in method.frozen
                else nn.Parameter(value.to(device))
                for key, value in tensors.items()
            }
        )
        self.methods[name] = method

    def follow(self, name: str, leader: Site) -> None:
        """Compute with another site's tensors of an adapter: the two have one weight."""
        self.table["@" + name] = leader.tensors(name)
        self.methods[name] = leader.methods[name]

    def remove(self, name: str) -> None:
        """Take an adapter off."""
        if "@" + name in self.table:
            del self.table["@" + name], self.methods[name]
        self.shared.pop(name, None)
        if self.active == name:
            self.active = None

    @property
    def weight_device(self) -> torch.device:
        return next(self.base.parameters()).device

    def tensors(self, name: str) -> nn.ParameterDict:
        """This layer's own tensors of an adapter."""
        return self.table["@" + name]  # type: ignore[return-value]  # "@": a module's name may not be one of its attributes

    def all_tensors(self, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The layer's own tensors and those that all layers share, as the layer computes with them."""
        precise = self.methods[name].precise
        own = {key: value if key in precise else value.to(dtype) for key, value in self.tensors(name).items()}
        return own | {key: value.to(dtype) for key, value in self.shared.get(name, {}).items()}

    def merged(self, name: str, strength: float) -> torch.Tensor:
        """The merged weight in the base's own layout and precision; computed in float32, because half precision
        would lose a part of the adapter at every merge.

        Raises:
            Problem: when the method is none that a weight could stand for.
        """
        method = self.methods[name]
        if not isinstance(method, WeightMethod):
            raise cannot_merge(method)
        tensors = {key: value.detach() for key, value in self.all_tensors(name, torch.float32).items()}
        weight = method.merged(self.weight().detach().float(), tensors, strength)
        return self.restore_layout(weight).contiguous().to(self.stored_dtype)

    def merged_bias(self, name: str, strength: float) -> torch.Tensor | None:
        """The bias (out,) that belongs to the merged weight; None where it is the base's own, or there is none."""
        method, bias = self.methods[name], getattr(self.base, "bias", None)
        if not isinstance(method, WeightMethod) or not isinstance(bias, torch.Tensor):
            return None
        tensors = {key: value.detach() for key, value in self.all_tensors(name, torch.float32).items()}
        merged = method.merged_bias(bias.detach().float(), tensors, strength)
        return None if merged is None else merged.to(bias.dtype)

    @property
    def stored_dtype(self) -> torch.dtype:
        return self.weight().dtype


def cannot_merge(method: Any) -> Problem:
    """What a user is told who wants to merge a method that no weight can stand for."""
    return Problem(
        "An adapter of the method {method} cannot be merged.",
        "What it does is no change of a weight.",
        "Use it applied, beside the base model.",
        method=method.title,
    )


class AdaptedLinear(Site):
    """A linear layer; GPT-2's Conv1D stores its weight the other way round, a quantised one packed."""

    #: What a packed layer computes with instead of its own weight, for as long as an adapter is merged into it.
    stand_in: torch.Tensor | None = None

    @property
    def shape(self) -> Shape:
        return linear_shape(self.base)

    def weight(self) -> torch.Tensor:
        if is_packed(self.base):
            return dequantize(self.base)
        return self.base.weight.T if isinstance(self.base, Conv1D) else self.base.weight  # type: ignore[return-value]

    def restore_layout(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T if isinstance(self.base, Conv1D) else weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stand_in is not None:
            return F.linear(x, self.stand_in.to(x.dtype), self.base.bias)  # type: ignore[arg-type]
        if self.active is None:
            return self.base(x)
        tensors = self.all_tensors(self.active, x.dtype)
        return self.methods[self.active].apply(self.base, self.layer, x, tensors, self.strength, self.training)


class AdaptedEmbedding(Site):
    """An embedding: a linear layer of one-hot tokens. Ids beyond the vocabulary are virtual tokens of a prompt."""

    def __init__(self, path: str, base: nn.Embedding):
        super().__init__(path, base)
        self.prompts = nn.ModuleDict()
        self.prompt: str | None = None
        # Gemma scales what it looks up; what an adapter adds to the weight is scaled alike.
        self.scale = getattr(base, "embed_scale", 1.0)

    @property
    def shape(self) -> Shape:
        return Shape(self.base.embedding_dim, self.base.num_embeddings, embedding=True)  # type: ignore[arg-type]

    def weight(self) -> torch.Tensor:
        return self.base.weight.T  # type: ignore[union-attr, return-value]

    def restore_layout(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.T

    def remove(self, name: str) -> None:
        super().remove(name)
        if "@" + name in self.prompts:
            del self.prompts["@" + name]
        if self.prompt == name:
            self.prompt = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.prompt is None:
            return self._look_up(ids)
        vocabulary: int = self.base.num_embeddings  # type: ignore[assignment]
        virtual = ids >= vocabulary
        found = self._look_up(ids.masked_fill(virtual, 0))
        vectors = self.prompts["@" + self.prompt]().to(found.dtype)
        return torch.where(virtual[..., None], vectors[(ids - vocabulary).clamp(min=0)], found)

    def _look_up(self, ids: torch.Tensor) -> torch.Tensor:
        found = self.base(ids)
        if self.active is None:
            return found
        method = self.methods[self.active]
        assert isinstance(method, WeightMethod)
        tensors = self.all_tensors(self.active, found.dtype)
        gain = method.lookup(self.layer, ids, tensors)
        if gain is None:
            weight = self.weight()
            return found + F.embedding(ids, (method.merged(weight, tensors, self.strength) - weight).T) * self.scale
        return found + self.strength * gain * self.scale


class ExpertWeight(Site):
    """One stacked parameter (experts, out, in) of a module of fused experts."""

    def __init__(self, path: str, base: nn.Module):
        super().__init__(path, base)
        self.name = path.rsplit(".", 1)[-1]
        # Some families (gpt-oss, Llama 4) store (experts, in, out).
        self.transposed = bool(getattr(base, "is_transposed", False))
        #: All sites of the same module, by the name of their parameter.
        self.beside: dict[str, ExpertWeight] = {}

    @property
    def parameter(self) -> str:
        return self.path

    def peft_path(self, name: str) -> str:
        # PEFT nests its wrappers in the order in which the parameters are declared: the last one is the outermost.
        declared = [one for one, _ in self.base.named_parameters(recurse=False)]
        order = [one for one in declared if one in self.beside and "@" + name in self.beside[one].table]
        return self.path.rpartition(".")[0] + ".base_layer" * (len(order) - 1 - order.index(self.name))

    @property
    def shape(self) -> Shape:
        experts, rows, columns = getattr(self.base, self.name).shape
        return Shape(columns, rows, experts) if self.transposed else Shape(rows, columns, experts)

    def weight(self) -> torch.Tensor:
        stored = getattr(self.base, self.name)
        return stored.mT if self.transposed else stored

    def restore_layout(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.mT if self.transposed else weight


class AdaptedExperts(nn.Module):
    """A module of fused experts that computes with the adapted stacks in place of its own."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.sites: dict[str, ExpertWeight] = {}
        self.tables = nn.ModuleList()

    def wrap(self, site: ExpertWeight) -> None:
        """Let one more of its parameters be adapted."""
        self.sites[site.name] = site
        self.tables.append(site.table)
        site.beside = self.sites

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapted = {}
        for name, site in self.sites.items():
            if site.active is not None:
                method = site.methods[site.active]
                assert isinstance(method, WeightMethod)
                weight = site.weight()
                merged = method.merged(weight, site.all_tensors(site.active, weight.dtype), site.strength)
                adapted[name] = site.restore_layout(merged)
        return functional_call(self.base, adapted, args, kwargs) if adapted else self.base(*args, **kwargs)


def linear_shape(layer: nn.Module) -> Shape:
    """(out, in) of a Linear or Conv1D."""
    if isinstance(layer, Conv1D):
        rows, columns = layer.weight.shape
        return Shape(columns, rows)
    return Shape(layer.out_features, layer.in_features)  # type: ignore[arg-type]
