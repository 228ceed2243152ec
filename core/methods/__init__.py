"""Fine-tuning methods, one a file: dropping a file in here adds it to the engine, the command line and the window."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import model_validator

from core.config import Settings, knob
from core.problem import Problem
from core.targets import lies_in, match_targets, read_blocks

if TYPE_CHECKING:
    import torch
    from torch import nn

    Tensors = Mapping[str, torch.Tensor]
    Call = Callable[[torch.Tensor], torch.Tensor]

#: The order in which the window groups them.
FAMILIES = ("Low rank", "Scaling", "Adapters", "Prompts", "Selective")


class Shape(NamedTuple):
    """A layer's size: `out` x `inn` whatever the way its weight is stored; fused experts hold several such weights.

    An embedding is a linear layer of `inn` tokens.
    """

    out: int
    inn: int
    experts: int = 1
    embedding: bool = False


@dataclass(frozen=True)
class Layer:
    """What a fresh adapter may look at: the layer's size, and its weight (out, in) in float32."""

    path: str
    shape: Shape
    weight: Callable[[], torch.Tensor]


_IN_PEFT = {"LORA", "ADALORA", "VERA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "LN_TUNING"}


class Method(Settings):
    """A frozen class of knobs plus its arithmetic. Its file name is its name."""

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    family: ClassVar[str]
    peft_type: ClassVar[str]
    #: A preset's learning rate is LoRA's; a method that moves the base weights themselves needs a smaller one, one that
    #: begins far from anything useful a larger one.
    learning_rate_factor: ClassVar[float] = 1.0
    #: Whether what was learned can be written into the base weights.
    merges: ClassVar[bool] = True

    @classmethod
    def is_in_peft(cls) -> bool:
        """Whether PEFT loads what this method learns; its name of a type alone does not say so."""
        return cls.peft_type in _IN_PEFT

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether a PEFT adapter_config.json is of this method."""
        return config.get("peft_type") == cls.peft_type

    def learning_rate_ratio(self, tensor: str) -> float:
        """How much faster than the others a tensor of that name is trained."""
        return 1.0


class LayerMethod(Method):
    """Adds trainable tensors to chosen layers, whose own weights never change.

    The engine hands over the layer as a function and as a weight (out, in), and a mapping of this method's tensors;
    `strength` scales what was learned (0 is the base, 1 is as trained).
    """

    #: tensor name -> how PEFT spells it behind the layer's path. Only these are saved.
    peft_keys: ClassVar[dict[str, str]]
    #: The same for an embedding, where it differs.
    peft_embedding_keys: ClassVar[dict[str, str]] = {}
    #: tensor name -> how PEFT spells it behind `base_model.`: one for all layers.
    peft_shared_keys: ClassVar[dict[str, str]] = {}
    #: Tensors that are not trained: a start that is subtracted, projections that stay as they were drawn, statistics.
    frozen: ClassVar[frozenset[str]] = frozenset()
    #: Tensors that stay as they are stored, whatever precision the layer computes in.
    precise: ClassVar[frozenset[str]] = frozenset()
    #: What it adapts: `layers`, `stacks` (the weights of fused experts), or the `embedding` that the input goes through,
    #: with which every layer goes that is tied to it.
    place: ClassVar[str] = "layers"
    #: Which table of core/targets.yaml `peft-default` means.
    table: ClassVar[str] = "lora"

    targets: str | list[str] = knob(
        "all-linear",
        "Target layers",
        "all-linear, attention, mlp, query-value, peft-default, names such as q_proj, v_proj, or a regular expression over full paths.",
        group="method",
        max_length=1000,
    )
    exclude: str | list[str] | None = knob(
        None,
        "Left out",
        "Names, or a regular expression, of layers that are not adapted whatever the target says.",
        group="method",
        max_length=1000,
    )
    blocks: str | None = knob(
        None, "Blocks", "Only layers of these blocks, such as 0-3, 8; empty takes all.", group="method", max_length=200
    )
    modules_to_save: list[str] = knob(
        [],
        "Trained whole",
        "Modules trained as they are beside the adapter and saved with it, such as lm_head.",
        group="method",
        max_length=20,
    )

    def choose(
        self, layers: Iterable[str], named_only: Iterable[str] = (), model_type: str = "", *, all_names: bool = True
    ) -> list[str]:
        """The layers that this method adapts, out of those that a model has.

        Raises:
            Problem: when the targets match nothing.
        """
        # What is trained whole is not adapted as well.
        layers, named_only = (
            [path for path in paths if not lies_in(path, self.modules_to_save)] for paths in (layers, named_only)
        )
        return match_targets(
            self.targets, layers, named_only=named_only, exclude=self.exclude,
            blocks=read_blocks(self.blocks), model_type=model_type, table=self.table, all_names=all_names,
        )  # fmt: skip

    def parts(self) -> Sequence[LayerMethod]:
        """The methods that this one is made of: itself, and whatever its knobs add for other kinds of targets."""
        return (self,)

    def parameters(self) -> list[str]:
        """Names of stacked parameters (fused experts) that this part adapts instead of layers."""
        return []

    def check_names(self, paths: Collection[str]) -> list[Problem]:
        """What is wrong with the knobs that name some of the layers, given all that are adapted."""
        return []

    def at(self, path: str) -> Self:
        """This method with the knobs that hold for one layer."""
        return self

    def check(self, layers: Mapping[str, Shape]) -> list[Problem]:
        """What is wrong with the knobs for these layers."""
        return []

    def create(self, layer: Layer, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Fresh tensors (float32) for a layer; with them the layer computes what it did before."""
        raise NotImplementedError

    def create_shared(self, shapes: Sequence[Shape]) -> dict[str, torch.Tensor]:
        """Frozen tensors that all layers share."""
        return {}

    def count(self, shape: Shape) -> int:
        """How many of the numbers of `create` are trained."""
        raise NotImplementedError

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        """The adapted layer's output; `call` is the layer as it was. x is (..., in)."""
        raise NotImplementedError

    def penalty(self, layers: Sequence[Tensors]) -> torch.Tensor | None:
        """What is added to the loss of a step, given every layer's tensors."""
        return None

    def after_step(self, layers: Mapping[str, Tensors], step: int, steps: int) -> None:
        """What is done to every layer's tensors (in place) after an optimizer step, gradients still there."""

    def to_peft(self, target_modules: list[str]) -> dict[str, Any]:
        """The method's part of PEFT's adapter_config.json."""
        raise NotImplementedError

    def peft_facts(self, layers: Mapping[str, Tensors]) -> dict[str, Any]:
        """What of PEFT's adapter_config.json is known only after the training."""
        return {}

    def peft_tensors(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """A layer's tensors as they are saved; the method's own ones, unless a knob says otherwise."""
        return {key: value for key, value in tensors.items() if key in self.peft_keys}

    def peft_shared(self, shared: Tensors) -> dict[str, torch.Tensor]:
        """What all layers share as it is saved; nothing where a knob has it drawn again at every load."""
        return dict(shared)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> LayerMethod:
        """The knobs behind a PEFT adapter, given its config and the shapes of its tensors by key.

        Raises:
            Problem: for what this version does not compute.
        """
        raise NotImplementedError


class WeightMethod(LayerMethod):
    """A layer method whose effect is another weight, and which can therefore be merged."""

    #: Whether all that it adds is a product of two thin matrices (`low_rank`), which every reader of LoRA understands.
    is_low_rank: ClassVar[bool] = False

    def merged(self, weight: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor:
        """The weight (out, in), or (experts, out, in), that alone computes what the adapted layer does."""
        raise NotImplementedError

    def merged_bias(self, bias: torch.Tensor, tensors: Tensors, strength: float) -> torch.Tensor | None:
        """The bias (out,) beside the merged weight; None when it stays as it is."""
        return None

    def gain(self, x: torch.Tensor, tensors: Tensors, training: bool) -> torch.Tensor | None:
        """What is added to the layer's output for x (..., in) at strength 1, when that is all the method does.

        None lets the engine compute with `merged`, which is right for every method and slower.
        """
        return None

    def lookup(self, layer: Layer, ids: torch.Tensor, tensors: Tensors) -> torch.Tensor | None:
        """`gain` for an embedding: ids (...) instead of x; (..., out)."""
        return None

    def low_rank(self, tensors: Tensors, shape: Shape) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A (rank, in) and B (out, rank) whose product B A is all that the method adds; None where there are none."""
        return None

    def apply(
        self, call: Call, layer: Layer, x: torch.Tensor, tensors: Tensors, strength: float, training: bool
    ) -> torch.Tensor:
        from torch.nn import functional as F

        gain = self.gain(x, tensors, training)
        if gain is not None:
            return call(x) + strength * gain
        weight = layer.weight().to(x.dtype)
        # The difference is added, so that the layer's own bias and rounding stay as they are.
        return call(x) + F.linear(x, self.merged(weight, tensors, strength) - weight)


class PromptMethod(Method):
    """Learns vectors that stand before every input; no weight of the model changes.

    `place` says where: as `embeddings` of virtual tokens, or as keys and values in the `attention` of every block.
    """

    merges = False
    place: ClassVar[str]

    tokens: int = knob(
        20, "Virtual tokens", "How many learned positions stand before every input.", group="method", ge=1, le=2048
    )
    init: Literal["vocabulary", "text", "random"] = knob(
        "vocabulary",
        "Initialisation",
        "What the virtual tokens begin as: words drawn from the vocabulary, a text of your own, or random numbers, which lie where no word does and learn slowly.",
        group="method",
    )
    text: str = knob(
        "",
        "Starting text",
        "The words that the virtual tokens begin as when the initialisation is text; a short one is repeated.",
        group="method",
        max_length=20_000,
    )

    @model_validator(mode="after")
    def _check_text(self) -> Self:
        if self.init == "text" and not self.text.strip():
            raise Problem(
                "The starting text is empty.",
                to_do="Write a few words, or choose another initialisation.",
                field="method.text",
            )
        if self.init != "text" and self.text.strip():
            raise Problem(
                "The starting text is not used.",
                "The initialisation is {init}.",
                "Choose the initialisation text, or remove the text.",
                field="method.text",
                init=self.init,
            )
        return self

    def build(self, width: int, start: Callable[[], torch.Tensor]) -> nn.Module:
        """A module whose call gives the vectors (tokens, width); its parameters are what is trained.

        Args:
            width: of an embedding; or, in the attention, blocks x 2 x key heads x head size, keys before values.
            start: vectors (tokens, width) that the model itself makes of the text or the words to begin with.
        """
        raise NotImplementedError

    def count(self, width: int) -> int:
        """How many numbers `build` trains."""
        raise NotImplementedError

    def starting_text(self) -> str | None:
        """The text to begin with; None takes words of the vocabulary."""
        return self.text if self.init == "text" else None

    def to_peft(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The method's part of PEFT's adapter_config.json; `sizes` are num_layers, num_attention_heads, token_dim."""
        return {"num_virtual_tokens": self.tokens, "num_transformer_submodules": 1} | dict(sizes)

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> PromptMethod:
        """The knobs behind a PEFT adapter."""
        return cls.read({"tokens": config.get("num_virtual_tokens")})


class SelectiveMethod(Method):
    """Trains some of the model's own parameters and adds none."""

    #: What to do when the model has no such parameter.
    nothing: ClassVar[str] = "Choose more layers, or another method."

    def trains(self, parameter: str, layers: int) -> bool:
        """Whether the parameter of that name is trained in a model of that many blocks."""
        raise NotImplementedError

    def choose(self, parameters: Iterable[str], blocks: int) -> list[str]:
        """The parameters that are trained, out of those that a model of that many blocks has.

        Raises:
            Problem: when there are none; it lists what there is.
        """
        parameters = list(parameters)
        chosen = [path for path in parameters if self.trains(path, blocks)]
        if not chosen:
            names = sorted({".".join(path.split(".")[-2:]) for path in parameters})
            raise Problem(
                "The method {method} trains nothing in this model.",
                "It has {blocks} blocks, whose parameters are {names}.",
                self.nothing,
                field="method.name",
                method=self.title,
                blocks=blocks,
                names=", ".join(names[:20]),
            )
        return chosen

    def peft_key(self, parameter: str) -> str:
        """How the parameter is called in the adapter's file."""
        return parameter

    def to_peft(self, parameters: list[str]) -> dict[str, Any]:
        """The method's part of adapter_config.json, given what it trains."""
        return {}

    @classmethod
    def from_peft(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> SelectiveMethod:
        """The knobs behind a PEFT adapter, where PEFT has this method."""
        raise NotImplementedError


@cache
def catalogue() -> dict[str, type[Method]]:
    """Every method by name, in the order of their names."""
    found: dict[str, type[Method]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for item in vars(module).values():
            # The file's own class is the first one: what else its knobs need stands below it.
            own = isinstance(item, type) and issubclass(item, Method) and item.__module__ == module.__name__
            if own and info.name not in found:
                item.name = info.name
                found[info.name] = item
    return found


def find(name: Any) -> type[Method]:
    """The method of that name."""
    if not isinstance(name, str) or name not in catalogue():
        names = ", ".join(catalogue())
        raise Problem(
            "There is no method {name}.", "There are {names}.", field="method.name", name=repr(name), names=names
        )
    return catalogue()[name]


def find_peft(config: Mapping[str, Any]) -> type[Method]:
    """The method of a PEFT adapter_config.json."""
    for method in catalogue().values():
        if method.reads(config):
            return method
    known = ", ".join(sorted({method.peft_type for method in catalogue().values()}))
    raise Problem(
        "The adapter is of a type that is not known here: {type}.",
        "Known types are {known}.",
        type=repr(config.get("peft_type")),
        known=known,
    )


def read_places(config: Mapping[str, Any], known: Collection[str] = ()) -> dict[str, Any]:
    """The knobs of a PEFT adapter_config.json that say where the adapter is.

    Args:
        known: what the method reads itself of all that other methods cannot compute.

    Raises:
        Problem: for what changes a computation, or chooses layers, in a way that this version does not know.
    """
    unknown = [key for key in _REFUSED if key not in known and config.get(key) not in (None, False, {}, [], "none")]
    if unknown:
        # Reading past one of these would give a silently different model.
        raise Problem(
            "The adapter uses {keys}, which this version does not compute.",
            to_do="Merge it with the tool that made it and load the merged model.",
            keys=", ".join(unknown),
        )
    targets, blocks = config.get("target_modules") or "peft-default", config.get("layers_to_transform")
    return {
        "targets": _listed(targets),
        "exclude": _listed(config.get("exclude_modules")),
        "blocks": None if blocks is None else ", ".join(map(str, [blocks] if isinstance(blocks, int) else blocks)),
        "modules_to_save": _listed(config.get("modules_to_save")) or [],
    }


def _listed(value: Any) -> str | list[str] | None:
    return value if value is None or isinstance(value, str) else sorted(value)


_REFUSED = (
    "lora_bias", "bias", "trainable_token_indices", "layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config",
    "layers_pattern",
)  # fmt: skip


def refuse_embeddings(method: Method, layers: Mapping[str, Shape]) -> list[Problem]:
    """What is wrong when a method that only knows linear layers is to adapt an embedding."""
    return [
        Problem(
            "The method {method} cannot adapt {layer}.",
            "It is an embedding.",
            "Leave it out, or choose LoRA.",
            field="method.targets",
            method=method.title,
            layer=path,
        )
        for path, shape in layers.items()
        if shape.embedding
    ]


def uniform(shape: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """U(-1/sqrt(in), 1/sqrt(in)) of shape (out, in): torch's own start of a linear layer (kaiming with a = sqrt 5)."""
    import torch

    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
