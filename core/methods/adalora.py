"""AdaLoRA: LoRA written as a singular value decomposition, whose ranks move to the layers where they matter most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from pydantic import PrivateAttr

from core.config import knob
from core.methods import Layer, Shape, WeightMethod, read_places, refuse_embeddings
from core.problem import Problem

if TYPE_CHECKING:
    import torch

    from core.methods import Tensors

_MATRICES = ("A", "E", "B")
#: How much of the past the two running means of the importance keep (the paper's beta 1 and 2).
_MEMORY = 0.85


class AdaLora(WeightMethod):
    """y = W x + s B (E * A) dropout(x), s = alpha / (first rank + 1e-5) (Zhang et al. 2023, section 3.1, in PEFT's scale).

    A (rank, in) and B (out, rank) are kept near to orthogonal, E (rank, 1) are the singular values. After the first
    steps the least important of all layers' triplets have their E set to 0, more and more of them, until `target_rank` a
    layer are left in the mean. Who is out may come back until the last steps begin.
    """

    title = "AdaLoRA"
    about = "LoRA that moves its ranks, while it trains, from layers where they do little to those where they matter."
    family = "Low rank"
    peft_type = "ADALORA"
    peft_keys = {"A": "lora_A", "E": "lora_E", "B": "lora_B"}
    table = "adalora"
    learning_rate_factor = 3.0
    frozen = frozenset({"kept", *(f"{key}_{about}" for key in _MATRICES for about in ("mean", "spread"))})
    precise = frozen
    is_low_rank = True

    init_rank: int = knob(
        12, "First rank", "Every layer's rank at the beginning, half as much again as at the end.", group="method", ge=1, le=4096
    )  # fmt: skip
    target_rank: int = knob(
        8, "Rank at the end", "What is left of it, in the mean over the layers.", group="method", ge=1, le=4096
    )
    alpha: float = knob(
        32.0, "Alpha", "How loud the adapter speaks: the update is scaled by alpha / first rank.", group="method", gt=0, le=65536
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
    warm_up: float = knob(
        0.1, "Before ranks move", "Share of the steps that train with the full first rank.", group="method", ge=0, lt=1, step=0.05
    )  # fmt: skip
    final: float = knob(
        0.3, "After ranks moved", "Share of the steps, at the end, that train with what was kept.", group="method", ge=0, lt=1, step=0.05
    )  # fmt: skip
    interval: int = knob(
        10, "Choose every", "How often it is chosen anew what is kept.", group="method", unit="steps", ge=1, le=10_000
    )
    orthogonality: float = knob(
        0.1, "Orthogonality", "How strongly the lines of A and B are held at right angles.", group="method", ge=0, le=10, step=0.05
    )  # fmt: skip

    #: The ranks that are left, by layer, of an adapter that was read from a file.
    _ranks: dict[str, int] = PrivateAttr(default_factory=dict)
    _rank: int | None = PrivateAttr(default=None)

    @property
    def scale(self) -> float:
        """s of the formula: it stays when ranks go."""
        return self.alpha / (self.init_rank + 1e-5)

    def at(self, path: str) -> Self:
        own = self.model_copy()
        own._rank = self._ranks.get(path)
        return own

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        if found := refuse_embeddings(self, layers):
            return found
        if self.target_rank > self.init_rank:
            found.append(
                Problem(
                    "The rank at the end, {target}, is more than the first rank, {first}.",
                    to_do="Take less, or a higher first rank.",
                    field="method.target_rank",
                    target=self.target_rank,
                    first=self.init_rank,
                )
            )
        if self.warm_up + self.final >= 1:
            found.append(
                Problem(
                    "No steps are left for moving ranks.",
                    "{warm_up:.0%} go before it and {final:.0%} after it.",
                    "Take less of one of them.",
                    field="method.final",
                    warm_up=self.warm_up,
                    final=self.final,
                )
            )
        path, shape = min(layers.items(), key=lambda item: min(item[1][:2]))
        if not self._ranks and self.init_rank > min(shape[:2]):
            found.append(
                Problem(
                    "The rank {rank} is more than the layer {layer} can hold.",
                    "It is {out} x {inn}.",
                    "Take a rank of at most {limit}.",
                    field="method.init_rank",
                    rank=self.init_rank,
                    layer=path,
                    out=shape.out,
                    inn=shape.inn,
                    limit=min(shape[:2]),
                )
            )
        return found

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        rank = self.init_rank if self._rank is None else self._rank
        tensors = {
            "A": 0.02 * torch.randn(rank, layer.shape.inn, generator=generator),
            "E": torch.zeros(rank, 1),
            "B": 0.02 * torch.randn(layer.shape.out, rank, generator=generator),
        }
        if self._rank is not None:
            return tensors
        statistics = {
            f"{key}_{about}": torch.zeros_like(value) for key, value in tensors.items() for about in ("mean", "spread")
        }
        return tensors | statistics | {"kept": torch.ones(rank, dtype=torch.bool)}

    def count(self, shape: Shape) -> int:
        return self.init_rank * (shape.inn + 1 + shape.out)

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        return weight + strength * self.scale * (tensors["B"] @ (tensors["E"] * tensors["A"]))

    def gain(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn import functional as F

        inner = F.linear(F.dropout(x, self.dropout, training), tensors["E"] * tensors["A"])
        return F.linear(inner, tensors["B"]) * self.scale

    def low_rank(self, tensors: Tensors, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        saved = self.peft_tensors(tensors)
        return saved["E"] * saved["A"], saved["B"] * self.scale

    def penalty(self, layers: Sequence[Tensors]) -> torch.Tensor | None:
        """The mean of |A A' - 1| and |B' B - 1| over the layers (section 3.1; PEFT's norms are not squared)."""
        import torch

        if not self.orthogonality:
            return None
        lines = [line for tensors in layers for line in (tensors["A"], tensors["B"].T)]
        off = [torch.linalg.matrix_norm(line @ line.T - torch.eye(len(line), device=line.device)) for line in lines]
        return self.orthogonality * torch.stack(off).mean()

    def after_step(self, layers: Mapping[str, Tensors], step: int, steps: int) -> None:
        """Weigh the triplets and choose those that are kept (section 3.2-3.3); `step` counts from 1."""
        first, last = int(self.warm_up * steps), steps - int(self.final * steps)
        if step < last:
            for tensors in layers.values():
                self._weigh(tensors)
        everything, target = self.init_rank * len(layers), self.target_rank * len(layers)
        if step == last:
            self._choose_kept(layers, target)
        elif first < step < last and step % self.interval == 0:
            left = 1 - (step - first) / (last - first)
            self._choose_kept(layers, int(target + (everything - target) * left**3))
        elif step > last:
            _silence(layers)

    def _weigh(self, tensors: Tensors) -> None:
        """Running means of |p grad p| and of how far it is from its own mean."""
        import torch

        for key in _MATRICES:
            mean, spread = tensors[f"{key}_mean"], tensors[f"{key}_spread"]
            gradient = tensors[key].grad
            if gradient is None:
                continue
            # A step whose gradients were not finite was left out, and tells nothing of importance.
            now = torch.nan_to_num(tensors[key] * gradient, 0.0, 0.0, 0.0).abs()
            mean.lerp_(now, 1 - _MEMORY)
            spread.lerp_((now - mean).abs(), 1 - _MEMORY)

    def _choose_kept(self, layers: Mapping[str, Tensors], budget: int) -> None:
        """Keep the `budget` most important triplets of all layers: exactly as many, and never none for a tie's sake."""
        import torch

        scores = [_score(tensors) for tensors in layers.values()]
        order = torch.cat(scores).argsort(descending=True, stable=True)
        kept = torch.zeros(len(order), dtype=torch.bool, device=order.device)
        kept[order[:budget]] = True
        for tensors, own in zip(layers.values(), kept.split([len(score) for score in scores]), strict=True):
            tensors["kept"].copy_(own)
        _silence(layers)

    def peft_tensors(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Without the ranks that are out; one that is coming back between two choices is saved like the others."""
        if "kept" not in tensors:
            return dict(tensors)
        stays = tensors["kept"] | (tensors["E"].view(-1) != 0)
        return {"A": tensors["A"][stays], "E": tensors["E"][stays], "B": tensors["B"][:, stays]}

    def peft_facts(self, layers: Mapping[str, Tensors]) -> dict[str, Any]:
        pattern = {}
        for path, tensors in layers.items():
            if "kept" in tensors:
                stays = (tensors["kept"] | (tensors["E"].view(-1) != 0)).tolist()
            else:
                stays = [number < len(tensors["E"]) for number in range(self.init_rank)]
            pattern[f"{path}.lora_E"] = stays
        return {} if all(all(stays) for stays in pattern.values()) else {"rank_pattern": pattern}

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        return {
            "init_r": self.init_rank,
            "target_r": self.target_rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "orth_reg_weight": self.orthogonality,
            "deltaT": self.interval,
            "beta1": _MEMORY,
            "beta2": _MEMORY,
            # PEFT reads no adapter without a course of training; the one of this adapter is over.
            "tinit": 0,
            "tfinal": 0,
            "total_step": 1,
            "target_modules": target_modules,
            "bias": "none",
        }

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        first = config.get("init_r", 12)
        method = cls.read(
            read_places(config)
            | {
                "init_rank": first,
                "target_rank": min(config.get("target_r", 8), first),
                "alpha": config.get("lora_alpha", 8),
                "dropout": config.get("lora_dropout", 0.0),
                "orthogonality": config.get("orth_reg_weight", 0.5),
                "interval": config.get("deltaT", 1),
            }
        )
        # The tensors of a layer are as many as it was left; the scale goes by the first rank.
        method._ranks = {
            key.removeprefix("base_model.model.").removesuffix(".lora_A"): shape[0]
            for key, shape in shapes.items()
            if key.endswith(".lora_A")
        }
        return method


def _score(tensors: Tensors) -> torch.Tensor:
    """The importance of a layer's triplets (rank,): of its singular value, and of its lines in the mean."""
    a, e, b = (tensors[f"{key}_mean"] * tensors[f"{key}_spread"] for key in _MATRICES)
    return e.view(-1) + a.mean(1) + b.mean(0)


def _silence(layers: Mapping[str, Tensors]) -> None:
    for tensors in layers.values():
        tensors["E"].masked_fill_(~tensors["kept"][:, None], 0.0)
