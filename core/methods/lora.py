"""LoRA: two thin matrices beside a frozen one, W' = W + s B A (Hu et al. 2021, equation 3)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr

from core.config import knob
from core.methods import Layer, LayerMethod, Shape, WeightMethod, read_places, uniform
from core.problem import Problem
from core.targets import full_match

if TYPE_CHECKING:
    import torch

    from core.methods import Call, Tensors


class Lora(WeightMethod):
    """y = W x + s B A dropout(x), with A (rank, in), B (out, rank) and s = alpha / rank.

    The starts `pissa` and `olora` begin at the strongest directions of W itself. Elsewhere that changes the base; here
    what the start adds is subtracted again by its frozen copy A0, B0, so that the base stays as it is, and the adapter
    is saved as plain LoRA of twice the rank, [B, -B0] [A; A0].
    """

    title = "LoRA"
    about = "Learns two thin matrices beside each chosen layer: small, quick, and easy to take off again."
    family = "Low rank"
    peft_type = "LORA"
    peft_keys = {"A": "lora_A.weight", "B": "lora_B.weight"}
    peft_embedding_keys = {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    frozen = frozenset({"A0", "B0"})
    is_low_rank = True

    rank: int = knob(16, "Rank", "Room to learn: more rank holds more and costs more.", group="method", ge=1, le=4096)
    alpha: float = knob(
        32.0,
        "Alpha",
        "How loud the adapter speaks: the update is scaled by alpha / rank.",
        group="method",
        gt=0,
        le=65536,
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
    scaling: Literal["standard", "rslora"] = knob(
        "standard",
        "Scaling",
        "standard divides alpha by the rank, rslora by its square root (steadier at high rank).",
        group="method",
    )
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"] = knob(
        "kaiming",
        "Initialisation",
        "How the matrices begin; pissa and olora begin at the strongest directions of the layer itself and learn faster at first.",
        group="method",
    )
    rate_ratio: float = knob(
        1.0,
        "LoRA+ ratio",
        "How much faster the matrix B is trained than A; LoRA+ recommends 16 with a smaller learning rate.",
        group="method",
        ge=1.0,
        le=64.0,
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=4096)]] = knob(
        {},
        "Rank of some layers",
        "A rank of their own for layers by name or expression, such as down_proj = 32; the first that matches counts.",
        group="method",
        max_length=50,
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0, le=65536)]] = knob(
        {},
        "Alpha of some layers",
        "An alpha of their own for layers by name or expression, such as down_proj = 64; the first that matches counts.",
        group="method",
        max_length=50,
    )
    target_parameters: list[str] = knob(
        [],
        "Expert weights",
        "Stacked weights of fused experts that are adapted too, such as experts.down_proj.",
        group="method",
        max_length=20,
    )
    trainable_token_indices: list[Annotated[int, Field(ge=0)]] = knob(
        [],
        "Trained tokens",
        "Ids of tokens whose own vectors are trained whole beside the adapter, such as those of new special tokens.",
        group="method",
        max_length=10_000,
    )
    #: Whether it was read from a file: what others trained is computed as it is, and not judged.
    _read: bool = PrivateAttr(default=False)

    @property
    def scale(self) -> float:
        """s of the formula; rsLoRA divides by sqrt(rank) (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)

    def parts(self) -> Sequence[LayerMethod]:
        parts: list[LayerMethod] = []
        if self.target_parameters:
            fields = ("rank", "alpha", "scaling", "rate_ratio", "target_parameters", "rank_pattern", "alpha_pattern")
            experts = Experts(**{name: getattr(self, name) for name in fields})
            experts._read = self._read
            parts.append(experts)
        if self.trainable_token_indices:
            parts.append(Tokens(trainable_token_indices=self.trainable_token_indices))
        # Nothing need be adapted but these.
        return [self, *parts] if self.targets or not parts else parts

    def at(self, path: str) -> Self:
        own = {
            knob: found
            for knob, pattern in (("rank", self.rank_pattern), ("alpha", self.alpha_pattern))
            if (found := _find_first(pattern, path, knob)) is not None
        }
        return self.model_copy(update=own) if own else self

    def check_names(self, paths: Collection[str]) -> list[Problem]:
        return [
            Problem(
                "No adapted layer is called {name}.",
                "Adapted are {names}.",
                "Choose among them, or leave it out.",
                field=f"method.{knob}_pattern",
                name=key,
                names=", ".join(sorted({path.rpartition(".")[2] for path in paths})),
            )
            for knob, pattern in (("rank", self.rank_pattern), ("alpha", self.alpha_pattern))
            for key in pattern
            if not self._read and all(_find_first({key: True}, path, knob) is None for path in paths)
        ]

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        if not layers:
            return []  # names that mean nothing are told where they are looked for
        ranks = {path: self.at(path).rank for path in layers}
        path, shape = min(layers.items(), key=lambda item: min(item[1][:2]) - ranks[item[0]])
        if self._read or ranks[path] <= min(shape[:2]):
            return []
        return [
            Problem(
                "The rank {rank} is more than the layer {layer} can hold.",
                "It is {out} x {inn}.",
                "Take a rank of at most {limit}.",
                field="method.rank" if ranks[path] == self.rank else "method.rank_pattern",
                rank=ranks[path],
                layer=path,
                out=shape.out,
                inn=shape.inn,
                limit=min(shape[:2]),
            )
        ]

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        shape, rank = layer.shape, self.rank
        if shape.embedding:
            # The other way round: a token's row of A is looked up, so A must begin at zero for any token to do so.
            return {"A": torch.zeros(rank, shape.inn), "B": torch.randn(shape.out, rank, generator=generator)}
        if self.init in ("pissa", "olora"):
            a, b = self._begin_at(layer.weight())
            return {"A": a, "B": b, "A0": a.clone(), "B0": b.clone()}
        size = (rank, shape.inn)
        if self.init == "kaiming":
            a = uniform(size, generator)
        else:
            a = torch.randn(size, generator=generator) / rank
            if self.init == "orthogonal":
                # Rows of length and at right angles as those of the gaussian start have in the mean.
                a = torch.linalg.qr(a.T).Q.T * math.sqrt(shape.inn) / rank
        return {"A": a, "B": torch.zeros(shape.out, rank)}

    def _begin_at(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The strongest directions of the weight (out, in), so that s B A is their part of it."""
        import torch

        if self.init == "pissa":
            # W = U S V', of which the largest: A = sqrt(S) V' / sqrt(s), B = U sqrt(S) / sqrt(s) (Meng et al. 2024, eq. 2-3).
            u, s, v = torch.linalg.svd(weight, full_matrices=False)
            root = (s[: self.rank] / self.scale).sqrt()
            return root[:, None] * v[: self.rank], u[:, : self.rank] * root
        # W = Q R: B = Q, A = R of the first columns and rows (Büyükakyüz 2024), s taken out of both alike.
        q, r = torch.linalg.qr(weight)
        root = math.sqrt(self.scale)
        return r[: self.rank].contiguous() / root, q[:, : self.rank].contiguous() / root

    def count(self, shape: Shape) -> int:
        return self.rank * (shape.inn + shape.out)

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        product = tensors["B"] @ tensors["A"]
        if "A0" in tensors:
            product = product - tensors["B0"] @ tensors["A0"]
        return weight + strength * self.scale * product

    def gain(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor:
        from torch.nn import functional as F

        gain = F.linear(F.linear(F.dropout(x, self.dropout, training), tensors["A"]), tensors["B"])
        if "A0" in tensors:
            # The start is subtracted without dropout: it is the base's own part, which must stay whole.
            gain = gain - F.linear(F.linear(x, tensors["A0"]), tensors["B0"])
        return gain * self.scale

    def lookup(self, layer: Layer, ids: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        from torch.nn import functional as F

        return F.linear(F.embedding(ids, tensors["A"].T), tensors["B"]) * self.scale

    def low_rank(self, tensors: Tensors, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        saved = self.peft_tensors(tensors)
        return saved["A"], saved["B"] * self.scale

    def learning_rate_ratio(self, tensor: str) -> float:
        return self.rate_ratio if tensor == "B" else 1.0

    def peft_tensors(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        import torch

        if "A0" not in tensors:
            return dict(tensors)
        return {
            "A": torch.cat([tensors["A"], tensors["A0"]]),
            "B": torch.cat([tensors["B"], -tensors["B0"]], dim=1),
        }

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        rank, alpha = self._saved(doubled=self.init in ("pissa", "olora"))
        return {
            "r": rank,
            "lora_alpha": alpha,
            # PEFT takes no dropout beside experts, not even in a file, where it means nothing.
            "lora_dropout": 0.0 if self.target_parameters else self.dropout,
            "use_rslora": self.scaling == "rslora",
            "init_lora_weights": {"gaussian": "gaussian", "orthogonal": "orthogonal"}.get(self.init, True),
            "target_modules": target_modules,
            "target_parameters": self.target_parameters or None,
            "trainable_token_indices": self.trainable_token_indices or None,
            "bias": "none",
        }

    def peft_facts(self, layers: Mapping[str, Tensors]) -> dict[str, Any]:
        doubled = self.init in ("pissa", "olora")
        # An embedding and experts begin as ever, whatever the others do.
        saved = {path: self.at(path)._saved("A0" in tensors) for path, tensors in layers.items() if "A" in tensors}
        ranks = {
            key: self.model_copy(update={"rank": rank})._saved(doubled)[0] for key, rank in self.rank_pattern.items()
        }
        alphas = {
            key: self.model_copy(update={"alpha": alpha})._saved(doubled)[1]
            for key, alpha in self.alpha_pattern.items()
        }
        rank, alpha = self._saved(doubled)
        return {
            "rank_pattern": _spell(ranks, rank, {path: own[0] for path, own in saved.items()}, "rank"),
            "alpha_pattern": _spell(alphas, alpha, {path: own[1] for path, own in saved.items()}, "alpha"),
        }

    def _saved(self, doubled: bool) -> tuple[int, float]:
        """Rank and alpha in the file. What began at the layer's own directions has twice the rank there, and the same
        scale."""
        if not doubled:
            return self.rank, self.alpha
        return 2 * self.rank, self.alpha * (math.sqrt(2) if self.scaling == "rslora" else 2)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") == cls.peft_type and not config.get("use_dora")

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Self:
        places = read_places(config, known=("trainable_token_indices",))
        targets = config.get("target_modules")
        if targets == [] or (targets is None and config.get("target_parameters")):
            # PEFT writes out what it takes by default: only experts are adapted where it wrote nothing beside them.
            places["targets"] = []
        init = config.get("init_lora_weights", True)
        if init not in (True, False, None, "gaussian", "orthogonal"):
            raise Problem(
                "The adapter was begun by {init}, which changes the base model, and its file does not hold that change.",
                to_do="Save it again converted to plain LoRA with the tool that made it.",
                init=init,
            )
        knobs = {
            "rank": config.get("r", 8),
            "alpha": config.get("lora_alpha", 8),
            "dropout": config.get("lora_dropout", 0.0),
            "rank_pattern": config.get("rank_pattern") or {},
            "alpha_pattern": config.get("alpha_pattern") or {},
            "target_parameters": config.get("target_parameters") or [],
            "trainable_token_indices": _read_tokens(config.get("trainable_token_indices")),
            "scaling": "rslora" if config.get("use_rslora") else "standard",
        }
        method = cls.read(places | {key: value for key, value in knobs.items() if key in cls.model_fields})
        method._read = True
        return method


class Experts(Lora):
    """LoRA on the stacked weights of fused experts, in PEFT's order: rows of A by expert, columns of B by rank."""

    targets: str | list[str] = []
    name = "lora"
    place = "stacks"
    peft_embedding_keys = {}
    is_low_rank = False

    def parameters(self) -> list[str]:
        return self.target_parameters

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        import torch

        rows = self.rank * layer.shape.experts
        return {"A": uniform((rows, layer.shape.inn), generator), "B": torch.zeros(layer.shape.out, rows)}

    def count(self, shape: Shape) -> int:
        return shape.experts * super().count(shape)

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        import torch

        experts, out, inn = weight.shape
        a = tensors["A"].view(experts, self.rank, inn)
        b = tensors["B"].view(out, self.rank, experts)
        return weight + strength * self.scale * torch.einsum("ore,eri->eoi", b, a)


class Tokens(WeightMethod):
    """The vectors of some tokens, trained as they are; the file holds them and not their change, in PEFT's way.

    What is tied to the embedding goes with it: with one weight for both there is one vector a token, merged or not.
    """

    title = "Trained tokens"
    name = "lora"
    peft_keys = {"rows": "token_adapter.trainable_tokens_delta"}
    frozen = frozenset({"start"})
    place: ClassVar[str] = "embedding"

    targets: str | list[str] = []
    trainable_token_indices: list[int] = []

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        vocabulary = min(shape.inn for shape in layers.values())
        named = Counter(self.trainable_token_indices)
        wrong = sorted(token for token, times in named.items() if token >= vocabulary or times > 1)
        if not wrong:
            return []
        return [
            Problem(
                "The tokens {tokens} cannot be trained.",
                "The model has {count} tokens, from 0 on.",
                "Name each once.",
                field="method.trainable_token_indices",
                tokens=", ".join(map(str, wrong[:5])),
                count=vocabulary,
            )
        ]

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        rows = layer.weight()[:, self.trainable_token_indices].T.contiguous()
        return {"rows": rows, "start": rows.clone()}

    def count(self, shape: Shape) -> int:
        return len(self.trainable_token_indices) * shape.out

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        import torch

        rows = torch.lerp(tensors["start"], tensors["rows"], strength)
        return weight.index_copy(1, self._ids(weight), rows.T)

    def lookup(self, layer: Layer, ids: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        import torch
        from torch.nn import functional as F

        known, order = self._ids(ids).sort()
        place = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
        gain = F.embedding(order[place], tensors["rows"] - tensors["start"])
        return gain * (known[place] == ids)[..., None]

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        from torch.nn import functional as F

        # As a head, it is these tokens' own logits that change.
        gain = F.linear(x, tensors["rows"] - tensors["start"])
        return call(x).index_add(-1, self._ids(x), strength * gain)

    def _ids(self, like: torch.Tensor) -> torch.Tensor:
        import torch

        return torch.tensor(self.trainable_token_indices, device=like.device)


def _find_first(pattern: Mapping[str, Any], path: str, knob: str) -> Any:
    """PEFT's rule: a key matches a layer's path, or the end of it behind a dot."""
    for key, value in pattern.items():
        if full_match(rf"(.*\.)?({key})", path, f"method.{knob}_pattern"):
            return value
    return None


def _spell(pattern: Mapping[str, float], usual: float, wanted: Mapping[str, float], knob: str) -> dict[str, float]:
    """The pattern for a file that gives every layer what is wanted. A file's keys stand in the order of the alphabet,
    and the first that matches counts: where that is not the user's order, every layer is named."""
    written = dict(sorted(pattern.items()))
    found = {path: _find_first(written, path, knob) for path in wanted}
    if all((usual if found[path] is None else found[path]) == value for path, value in wanted.items()):
        return written
    return {f"^{path}": value for path, value in wanted.items() if value != usual}


def _read_tokens(tokens: Any) -> list[int]:
    """PEFT's list of tokens; it may also be given by layer, and is then read when all have the same."""
    lists = list(tokens.values()) if isinstance(tokens, Mapping) else [tokens or []]
    if any(one != lists[0] for one in lists):
        raise Problem(
            "The adapter uses {keys}, which this version does not compute.",
            to_do="Merge it with the tool that made it and load the merged model.",
            keys="trainable_token_indices",
        )
    return lists[0]
