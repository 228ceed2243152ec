"""Adapters on a model: wrapping, freezing, choosing, saving, loading, merging and counting, once for all methods."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core import methods
from core.engine.adapter_files import PREFIX, compare, public_name, read_adapter
from core.engine.layers import AdaptedEmbedding, AdaptedExperts, AdaptedLinear, ExpertWeight, Site, cannot_merge
from core.engine.model import longest_input
from core.engine.prefix import Prefixes
from core.engine.quantization import is_packed, stores_transposed
from core.methods import LayerMethod, Method, PromptMethod, SelectiveMethod
from core.problem import Problem
from core.runs import write_whole
from core.targets import HEADS, ends_with, lies_in

_KEPT_OVERLAYS = 3
_LEAST_ROOM = 8  # tokens that an input must be able to have, whatever stands before it


@dataclass(frozen=True)
class Weights:
    """Which weights answer: the base alone, or an adapter at some strength, applied beside the base or merged into it."""

    adapter: str | None = None
    strength: float = 1.0
    merged: bool = False


@dataclass
class Adapter:
    """What an adapter consists of on this model."""

    method: Method
    #: The places that it adapts, by path, and whether they are new with it.
    sites: list[str] = field(default_factory=list)
    #: Layers that compute with a site's tensors because their weight is that site's, by path.
    followers: dict[str, str] = field(default_factory=dict)
    #: The base's own parameters that are trained whole.
    whole: list[str] = field(default_factory=list)
    #: The values of those, when the adapter was loaded and is not trained in place.
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    prompt: nn.Module | None = None


class Vectors(nn.Module):
    """A prompt as it is saved: its vectors (tokens, width)."""

    def __init__(self, vectors: torch.Tensor):
        super().__init__()
        self.vectors = nn.Parameter(vectors, requires_grad=False)

    def forward(self) -> torch.Tensor:
        return self.vectors


class Adapted:
    """A base model and the adapters on it."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        head = model.get_output_embeddings()
        #: Every linear layer that a word such as all-linear may mean, by path; no output head is among them.
        self.linear: dict[str, nn.Module] = {}
        #: Layers that are adapted only when they are named: embeddings and heads.
        self.named_only: dict[str, nn.Module] = {}
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Linear | Conv1D):
                is_head = layer is head or path.split(".")[0] in HEADS
                (self.named_only if is_head else self.linear)[path] = layer
            elif isinstance(layer, nn.Embedding):
                self.named_only[path] = layer
        #: The base's parameters under the names they have without any adapter.
        self.parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
        #: Layers whose weight is also that of other layers, and those others (an embedding and the head tied to it).
        self.ties: dict[str, list[str]] = {}
        for path in self.named_only:
            first, *others = self._sharing(path)
            if path == first and others:
                self.ties[path] = others
        self.layers: dict[str, Site] = {}
        self.adapters: dict[str, Adapter] = {}
        self.untied = False
        self._prefixes: Prefixes | None = None
        self._prefix: str | None = None
        self._experts: dict[str, AdaptedExperts] = {}
        self._overlays: OrderedDict[Weights, dict[str, torch.Tensor]] = OrderedDict()
        for parameter in model.parameters():
            parameter.requires_grad_(False)

    @property
    def blocks(self) -> int:
        """How many transformer blocks the model has."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def methods(self) -> dict[str, Method]:
        """The method of each adapter."""
        return {name: adapter.method for name, adapter in self.adapters.items()}

    # --- adding -------------------------------------------------------------------------------------------------------

    def add(
        self,
        name: str,
        method: Method,
        seed: int = 0,
        *,
        heads: Sequence[str] = (),
        all_names: bool = True,
        starting_ids: Sequence[int] = (),
    ) -> None:
        """Put a fresh adapter on the model, in the place of any other of that name; but for prompts, the model computes
        what it did before until it is trained.

        Args:
            heads: modules (a fresh classifier's) that are trained whole beside whatever the method does.
            all_names: whether every target that is named must be there.
            starting_ids: tokens that a prompt begins with; without any, a seeded choice of the vocabulary.

        Raises:
            Problem: when its targets match nothing, it would train nothing, or the model cannot carry it.
        """
        self.remove(name)
        adapter = self.adapters[name] = Adapter(method)
        try:
            if isinstance(method, LayerMethod):
                self._add_layers(name, method, seed, all_names, heads)
                self._add_whole(adapter, [*method.modules_to_save, *heads])
            elif isinstance(method, PromptMethod):
                self._check_room(method)
                adapter.prompt = self._build_prompt(method, seed, starting_ids)
                self._place_prompt(name, method, adapter.prompt)
                self._add_whole(adapter, heads)
            else:
                assert isinstance(method, SelectiveMethod)
                adapter.whole = self._select(method, copy=True)
                self._add_whole(adapter, heads)
        except BaseException:
            self.remove(name)
            raise

    def _add_layers(
        self, name: str, method: LayerMethod, seed: int, all_names: bool, heads: Sequence[str] = ()
    ) -> None:
        """Fresh tensors on every layer that the method means; nothing is touched when anything is wrong with it."""
        chosen = [(part, self._choose(part, all_names, heads)) for part in method.parts()]
        problems = [problem for part, sizes in chosen for problem in part.check(sizes)]
        problems += method.check_names([path for part, sizes in chosen if part.place != "embedding" for path in sizes])
        everything = [path for _, sizes in chosen for path in sizes]
        problems += [
            Problem(
                "The layer {layer} would be trained in two ways.",
                "It is a target, and tokens of it are trained.",
                "Leave one of them out.",
                field="method.targets",
                layer=path,
            )
            for path in sorted({path for path in everything if everything.count(path) > 1})
        ]
        Problem.raise_all(problems)
        generator = torch.Generator().manual_seed(seed)
        for part, sizes in chosen:
            sites = [self._wrap(path, learns=part.place != "embedding") for path in sizes]
            shared = {
                key: value.to(self.model.device)
                for key, value in part.create_shared([site.shape for site in sites]).items()
            }
            for site in sites:
                own = part.at(site.path)
                site.add(name, own, own.create(site.layer, generator))
                site.shared[name] = shared
                self.adapters[name].sites.append(site.path)
                for path in self.ties.get(site.path, ()) if part.place == "embedding" else ():
                    self._wrap(path, learns=False).follow(name, site)
                    self.adapters[name].followers[path] = site.path

    def _choose(self, method: LayerMethod, all_names: bool, heads: Sequence[str]) -> dict[str, methods.Shape]:
        """The layers that a part of a method means, and their sizes; what is trained whole is none of them."""
        if method.place == "stacks":
            paths = self._find_stacks(method.parameters())
        elif method.place == "embedding":
            found = self.model.get_input_embeddings()
            found = found.base if isinstance(found, AdaptedEmbedding) else found
            paths = [path for path, layer in self.named_only.items() if layer is found]
        else:
            model_type = str(self.model.config.model_type)
            linear, named_only = (
                [path for path in layers if not any(f"{path}.".startswith(f"{head}.") for head in heads)]
                for layers in (self.linear, self.named_only)
            )
            paths = method.choose(linear, named_only, model_type, all_names=all_names)
        return {path: (self.layers.get(path) or self._build_site(path)).shape for path in paths}

    def _build_site(self, path: str) -> Site:
        """A site for a layer, or for a stacked parameter, that stands nowhere in the model yet."""
        if path in self.parameters:
            owner = self.model.get_submodule(path.rpartition(".")[0])
            return ExpertWeight(path, owner.base if isinstance(owner, AdaptedExperts) else owner)  # type: ignore[arg-type]
        layer = (self.linear | self.named_only)[path]
        return AdaptedEmbedding(path, layer) if isinstance(layer, nn.Embedding) else AdaptedLinear(path, layer)

    def _find_stacks(self, wanted: Sequence[str]) -> list[str]:
        stacks = [path for path, parameter in self.parameters.items() if parameter.ndim == 3]
        found = [path for path in stacks if ends_with(path, wanted)]
        missing = [name for name in wanted if not any(ends_with(path, [name]) for path in stacks)]
        if missing:
            raise Problem(
                "No stacked weight of this model is called {targets}.",
                "It has {names}.",
                "Choose among them, or leave it empty.",
                field="method.target_parameters",
                targets=", ".join(missing),
                names=", ".join(sorted({".".join(path.split(".")[-2:]) for path in stacks})) or "0",
            )
        return found

    def _add_whole(self, adapter: Adapter, modules: Sequence[str]) -> None:
        """Train these modules as they are; a tied weight among them becomes one of its own first."""
        for wanted in modules:
            named = [path for path, _ in self.model.named_modules()]
            paths = [path for path in named if ends_with(path, [wanted])]
            # PEFT asks for no dot before a name: told of `classifier`, it trains `pre_classifier` too.
            paths += [path for path in named if path not in paths and any(path.endswith(one) for one in paths)]
            if not paths:
                raise Problem(
                    "No module of this model is called {name}.",
                    "There are {names}.",
                    "Choose among them, or leave it empty.",
                    field="method.modules_to_save",
                    name=wanted,
                    names=", ".join(sorted({path.split(".")[-1] for path in self.named_only})),
                )
            for path in paths:
                if any(is_packed(layer) for layer in self.model.get_submodule(path).modules()):
                    raise Problem(
                        "The module {name} cannot be trained whole.",
                        "Its weights are compressed.",
                        "Leave it out, or choose no quantisation.",
                        field="method.modules_to_save",
                        name=path,
                    )
            for layer in self.named_only:
                if any(layer == path or layer.startswith(path + ".") for path in paths):
                    self._untie(layer)
            found = [
                one
                for one in self.parameters
                if any(one.startswith(path + ".") for path in paths) and one not in adapter.whole
            ]
            if adapted := {self.layers[path].parameter for path in adapter.sites} & {*found}:
                raise Problem(
                    "The layer {layer} would be trained in two ways.",
                    "It is adapted, and trained whole.",
                    "Leave one of them out.",
                    field="method.modules_to_save",
                    layer=", ".join(sorted(adapted)),
                )
            for one in found:
                self._own(one)
            adapter.whole += found

    def _select(self, method: SelectiveMethod, *, copy: bool) -> list[str]:
        """The parameters that the method trains. A head is trained without the embedding that it is tied to only when
        it has a weight of its own."""
        names = dict(self.parameters)
        for first, others in self.ties.items():
            tied = [f"{path}.weight" for path in others]
            if method.trains(f"{first}.weight", self.blocks):
                for path in tied:
                    names.pop(path, None)  # it goes with the first, though another adapter may have parted them
            elif any(method.trains(path, self.blocks) for path in tied):
                self._untie(first)
                names |= {path: self.parameters[path] for path in tied}
        chosen = method.choose(names, self.blocks)
        for path in chosen if copy else ():
            self._own(path)
        return chosen

    def _sharing(self, path: str) -> list[str]:
        """The layers that compute with the same weight as this one, itself among them."""
        return [other for other, layer in self.named_only.items() if layer.weight is self.named_only[path].weight]

    def _untie(self, path: str) -> None:
        """Give every layer that shares this one's weight a parameter of its own: what is learned for one of them must
        not change the others. The numbers themselves stay in one place."""
        for other in self._sharing(path)[1:]:
            layer = self.named_only[other]
            layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)  # type: ignore[operator]
            self.parameters[f"{other}.weight"] = layer.weight
            self.untied = True

    def _own(self, parameter: str) -> None:
        """Let a parameter that is changed in place have its numbers for itself."""
        for group in ([first, *others] for first, others in self.ties.items()):
            names = [f"{path}.weight" for path in group]
            if parameter in names:
                others = [self.parameters[one] for one in names if one != parameter and one in self.parameters]
                own = self.parameters[parameter]
                if any(one.data_ptr() == own.data_ptr() for one in others):
                    own.data = own.data.clone()

    def _find_embedding(self) -> tuple[str, nn.Module]:
        """The embedding that the input goes through, by path; of an encoder-decoder, the encoder's."""
        owner = self.model.get_encoder() if self.model.config.is_encoder_decoder else self.model
        found = owner.get_input_embeddings()
        found = found.base if isinstance(found, AdaptedEmbedding) else found
        return next((path, layer) for path, layer in self.named_only.items() if layer is found)

    def _wrap(self, path: str, *, learns: bool = True) -> Site:
        """The place of a layer; `learns` says whether its weight will be another than that of the layers tied to it."""
        if learns and path in self.named_only:
            self._untie(path)
        if path not in self.layers:
            site = self.layers[path] = self._build_site(path)
            site.train(site.base.training)  # a new module begins in training mode, with dropout
            if isinstance(site, ExpertWeight):
                owner, _, _ = path.rpartition(".")
                if owner not in self._experts:
                    self._experts[owner] = AdaptedExperts(site.base)
                    self._experts[owner].train(site.base.training)
                    self._replace(owner, self._experts[owner])
                self._experts[owner].wrap(site)
            else:
                self._replace(path, site)
        return self.layers[path]

    def _replace(self, path: str, module: nn.Module) -> None:
        parent, _, last = path.rpartition(".")
        setattr(self.model.get_submodule(parent), last, module)

    def remove(self, name: str) -> None:
        """Take an adapter off."""
        if self._prefix == name:
            self._activate(None, 1.0)
        for site in self.layers.values():
            site.remove(name)
        if self._prefixes is not None and "@" + name in self._prefixes.prompts:
            del self._prefixes.prompts["@" + name]
        self.adapters.pop(name, None)
        self._forget(name)

    def _forget(self, name: str) -> None:
        """What was merged of an adapter is no longer what it is."""
        for weights in [weights for weights in self._overlays if weights.adapter == name]:
            del self._overlays[weights]

    def unwrap(self) -> None:
        """Give the model its own layers back; every adapter is gone."""
        for path, site in self.layers.items():
            if not isinstance(site, ExpertWeight):
                self._replace(path, site.base)
        for path, experts in self._experts.items():
            self._replace(path, experts.base)
        self.layers.clear()
        self._experts.clear()
        if self._prefixes is not None:
            self._hook.remove()
            self._prefixes.take_out()
            self._prefixes = self._prefix = None
        if self.untied:
            for path in [path for others in self.ties.values() for path in others]:
                if f"{path}.weight" in self.parameters:
                    self._own(f"{path}.weight")  # what lies in one place is saved as one
            config = self.model.config
            config.get_text_config().tie_word_embeddings = False
            config.tie_word_embeddings = False
            if getattr(type(config).from_dict(config.to_dict()), "tie_word_embeddings", False):
                # T5 reads this word as another one, and ties again what was saved apart.
                raise Problem(
                    "A model of the family {family} cannot be saved with an embedding and a head that differ.",
                    "The adapter makes them differ.",
                    "Take the adapter as it is, or leave embeddings and head out of it.",
                    family=config.model_type,
                )

    # --- prompts ------------------------------------------------------------------------------------------------------

    def _build_prompt(self, method: PromptMethod, seed: int, starting_ids: Sequence[int]) -> nn.Module:
        if method.place == "attention":
            width = self._find_prefixes().width
        else:
            width = self._find_embedding()[1].weight.shape[1]

        def start() -> torch.Tensor:
            embedding = self._find_embedding()[1]
            ids = torch.tensor(list(starting_ids)[: method.tokens])
            if len(ids) == 0:
                # Words of the vocabulary, each at most once: random vectors lie where no word does.
                generator = torch.Generator().manual_seed(seed)
                ids = torch.randperm(embedding.num_embeddings, generator=generator)[: method.tokens]  # type: ignore[call-overload]
            ids = ids.repeat(-(-method.tokens // len(ids)))[: method.tokens].to(self.model.device)
            if method.place == "attention":
                return self._find_prefixes().capture(ids)
            with torch.no_grad():
                return embedding(ids).float().clone()

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return method.build(width, start).to(self.model.device)

    def _find_prefixes(self) -> Prefixes:
        if self._prefixes is None:
            self._prefixes = Prefixes(self.model)
            self._hook = self.model.register_forward_pre_hook(self._put_prefix, with_kwargs=True)
        return self._prefixes

    def _put_prefix(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before every forward: the prefix as keys and values, and the positions moved behind it."""
        assert self._prefixes is not None
        if self._prefix is None:
            return args, kwargs
        prompt = self.adapters[self._prefix].prompt
        assert prompt is not None
        vectors = prompt()
        self._prefixes.active = self._prefixes.read(vectors)
        if self._prefixes.moves:
            ids = args[0] if args else kwargs["input_ids"]
            past = kwargs.get("past_key_values")
            seen = past.get_seq_length() if past is not None else 0
            positions = kwargs.get("position_ids")
            if positions is None:
                positions = self._prefixes.first + torch.arange(seen, seen + ids.shape[1], device=ids.device)
                positions = positions.expand_as(ids)
            self._prefixes.positions = positions = positions + len(vectors)
            kwargs = kwargs | {"position_ids": positions}
        return args, kwargs

    def _place_prompt(self, name: str, method: PromptMethod, prompt: nn.Module) -> None:
        if method.place == "attention":
            self._find_prefixes().prompts["@" + name] = prompt
        else:
            site = self._wrap(self._find_embedding()[0], learns=False)
            assert isinstance(site, AdaptedEmbedding)
            site.prompts["@" + name] = prompt

    def _check_room(self, method: PromptMethod) -> None:
        limit = longest_input(self.model)
        if limit and self._positions(method) > limit - _LEAST_ROOM:
            raise Problem(
                "The model has no room for {tokens} virtual tokens.",
                "It reads {limit} tokens in all.",
                "Take fewer of them.",
                field="method.tokens",
                tokens=method.tokens,
                limit=limit,
            )

    def _positions(self, method: Method) -> int:
        """How many of the positions that the model can read are taken by what stands before every input."""
        if not isinstance(method, PromptMethod):
            return 0
        return method.tokens if method.place == "embeddings" or self._find_prefixes().moves else 0

    def prompt_ids(self, name: str | None) -> list[int]:
        """The virtual tokens that must stand before every input of this adapter."""
        method = self.adapters[name].method if name is not None else None
        if not isinstance(method, PromptMethod) or method.place == "attention":
            return []
        first = self._find_embedding()[1].num_embeddings
        return list(range(first, first + method.tokens))  # type: ignore[operator, arg-type]

    def before(self, weights: Weights) -> tuple[list[int], int]:
        """What stands before every input with these weights: virtual tokens, which whoever asks must put there, and
        how many more of the positions that the model can read are taken."""
        if weights.adapter is None or weights.merged or not weights.strength:
            return [], 0
        virtual = self.prompt_ids(weights.adapter)
        return virtual, self._positions(self.adapters[weights.adapter].method) - len(virtual)

    # --- training -----------------------------------------------------------------------------------------------------

    def start_training(self, name: str) -> dict[str, nn.Parameter]:
        """Make the adapter the one that is active and trained; its parameters by name. Everything else is frozen."""
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        trained = self._trained(name)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self._activate(name, 1.0)
        return trained

    def _trained(self, name: str) -> dict[str, nn.Parameter]:
        adapter = self.adapters[name]
        trained = {
            f"{path}.{key}": value
            for path in adapter.sites
            for key, value in self.layers[path].tensors(name).items()
            if key not in self.layers[path].methods[name].frozen
        }
        if adapter.prompt is not None:
            trained |= {f"prompt.{key}": value for key, value in adapter.prompt.named_parameters()}
        return trained | {path: self.parameters[path] for path in adapter.whole}

    def frozen(self, name: str) -> dict[str, torch.Tensor]:
        """The adapter's tensors that are not trained by gradients, and which a checkpoint must hold as well."""
        adapter = self.adapters[name]
        frozen = {
            f"{path}.{key}": value
            for path in adapter.sites
            for key, value in self.layers[path].tensors(name).items()
            if key in self.layers[path].methods[name].frozen
        }
        if adapter.prompt is not None:
            frozen |= {f"prompt.{key}": value for key, value in adapter.prompt.named_buffers()}
        return frozen

    def learning_rate_ratios(self, name: str) -> dict[str, float]:
        """How much faster than the others each trained parameter is to be trained, where it is not alike."""
        trained = self._trained(name)
        ratios = {
            f"{path}.{key}": self.layers[path].methods[name].learning_rate_ratio(key)
            for path in self.adapters[name].sites
            # The theory behind different rates is one of matrices that multiply, not of tables that are looked up in.
            if not self.layers[path].shape.embedding
            for key in self.layers[path].tensors(name)
        }
        return {key: ratio for key, ratio in ratios.items() if ratio != 1.0 and key in trained}

    def penalty(self, name: str) -> torch.Tensor | None:
        """What the method adds to the loss of a step."""
        method = self.adapters[name].method
        return method.penalty([*self._tables(name).values()]) if isinstance(method, LayerMethod) else None

    def after_step(self, name: str, step: int, steps: int) -> None:
        """What the method does after the optimizer's step, with the gradients still there."""
        self._forget(name)
        method = self.adapters[name].method
        if isinstance(method, LayerMethod):
            with torch.no_grad():
                method.after_step(self._tables(name), step, steps)

    def _tables(self, name: str) -> dict[str, Mapping[str, torch.Tensor]]:
        return {path: dict(self.layers[path].tensors(name).items()) for path in self.adapters[name].sites}

    # --- choosing -----------------------------------------------------------------------------------------------------

    def _activate(self, name: str | None, strength: float) -> None:
        for site in self.layers.values():
            site.active = name if name is not None and "@" + name in site.table else None
            site.strength = strength
            if isinstance(site, AdaptedEmbedding):
                site.prompt = name if name is not None and "@" + name in site.prompts else None
        method = self.adapters[name].method if name is not None else None
        self._prefix = name if isinstance(method, PromptMethod) and method.place == "attention" else None
        if self._prefixes is not None:
            self._prefixes.active = None
            self._prefixes.switch(self._prefix is not None)

    def check(self, weights: Weights) -> None:
        """Raise a Problem when no answer can be had with these weights: the method cannot be merged, or a prompt is
        wanted at half strength."""
        if weights.adapter is None:
            return
        method = self.adapters[weights.adapter].method
        if weights.merged and not method.merges:
            raise cannot_merge(method)
        if isinstance(method, PromptMethod) and weights.strength not in (0.0, 1.0):
            raise Problem(
                "A prompt cannot be applied at strength {strength}.",
                "Its virtual tokens are there or they are not.",
                "Take 1, or 0 for the base.",
                strength=weights.strength,
            )

    @contextlib.contextmanager
    def using(self, weights: Weights) -> Iterator[PreTrainedModel]:
        """The model with these weights, for as long as the block lasts; afterwards the base alone.

        Raises:
            Problem: when the method cannot be merged, or a prompt is wanted at half strength.
        """
        overlay: Mapping[str, torch.Tensor] = {}
        active = None
        if weights.adapter is not None:
            self.check(weights)
            overlay = self._overlay(weights)
            applies = weights.strength or not isinstance(self.adapters[weights.adapter].method, PromptMethod)
            active = weights.adapter if applies and not weights.merged else None
        self._activate(active, weights.strength)
        kept = self._put(overlay)
        try:
            yield self.model
        finally:
            self._put(kept)
            self._activate(None, 1.0)

    def _put(self, values: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
        """Let the model compute with these base parameters; what it computed with before."""
        packed = {site.parameter: site for site in self.layers.values() if is_packed(site.base)}
        before: dict[str, torch.Tensor | None] = {}
        for path, value in values.items():
            if path in packed:
                # A packed weight holds no other numbers; None is the weight itself.
                before[path], packed[path].stand_in = packed[path].stand_in, value
            else:
                assert value is not None
                before[path], self.parameters[path].data = self.parameters[path].data, value
        return before

    def _overlay(self, weights: Weights) -> dict[str, torch.Tensor]:
        """The base parameters that differ under these weights; the last few are kept."""
        assert weights.adapter is not None
        adapter = self.adapters[weights.adapter]
        if not weights.merged and not isinstance(adapter.method, SelectiveMethod):
            return self._whole_values(adapter, 1.0)
        if weights not in self._overlays:
            self._overlays[weights] = self.merged_weights(weights.adapter, weights.strength)
            if len(self._overlays) > _KEPT_OVERLAYS:
                self._overlays.popitem(last=False)
        self._overlays.move_to_end(weights)
        return self._overlays[weights]

    def _whole_values(self, adapter: Adapter, strength: float) -> dict[str, torch.Tensor]:
        values = {}
        for path, tensor in adapter.values.items():
            base = self.parameters[path].data
            # torch.lerp(a, b, 0) is a even where b is not finite.
            values[path] = torch.lerp(base.float(), tensor.to(base.device).float(), strength).to(base.dtype)
            if isinstance(adapter.method, SelectiveMethod):
                # What was one weight when it was trained changes together, though another adapter may have parted it.
                for other in self.ties.get(path.removesuffix(".weight"), ()):
                    if f"{other}.weight" in self.parameters and f"{other}.weight" not in adapter.values:
                        values[f"{other}.weight"] = values[path]
        return values

    def merged_weights(self, name: str, strength: float = 1.0) -> dict[str, torch.Tensor]:
        """The base parameters as the adapter at that strength makes them, by name; the base itself is left alone.

        Raises:
            Problem: when a merged weight would not be finite, or the method cannot be merged.
        """
        adapter = self.adapters[name]
        if not adapter.method.merges:
            raise cannot_merge(adapter.method)
        sites = [self.layers[path] for path in adapter.sites]
        merged = {site.parameter: site.merged(name, strength) for site in sites}
        merged |= {f"{site.path}.bias": one for site in sites if (one := site.merged_bias(name, strength)) is not None}
        merged |= {
            f"{path}.weight": merged[self.layers[leader].parameter]
            for path, leader in adapter.followers.items()
            if f"{path}.weight" in self.parameters
        }
        # What stands whole beside an adapter (a classifier's head) has no strength: half of it is no classifier.
        merged |= self._whole_values(adapter, strength if isinstance(adapter.method, SelectiveMethod) else 1.0)
        broken = [path for path, tensor in merged.items() if not torch.isfinite(tensor).all()]
        if broken:
            raise Problem(
                "Merging would give weights that are not finite.",
                "In {layers}.",
                "The adapter is broken: choose an earlier checkpoint.",
                layers=", ".join(broken[:5]),
            )
        return merged

    def low_rank(self, name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Of every adapted layer A (rank, in) and B (out, rank), float32, with the scale inside B.

        Raises:
            Problem: when what the adapter does is no such product.
        """
        found = {}
        if self.adapters[name].prompt is not None:
            raise Problem(
                "An adapter of the method {method} cannot be written as plain LoRA.",
                "What it does is no change of a weight.",
                "Export it as it is.",
                method=self.adapters[name].method.title,
            )
        for path in self.adapters[name].sites:
            site = self.layers[path]
            method = site.methods[name]
            tensors = {key: value.detach() for key, value in site.all_tensors(name, torch.float32).items()}
            pair = method.low_rank(tensors, site.shape) if isinstance(method, methods.WeightMethod) else None
            if pair is None or not isinstance(site, AdaptedLinear):
                raise Problem(
                    "An adapter of the method {method} cannot be written as plain LoRA.",
                    "What it does to {layer} is no product of two thin matrices.",
                    "Export it merged, or as it is.",
                    method=self.adapters[name].method.title,
                    layer=path,
                )
            found[path] = pair
        return found

    # --- files --------------------------------------------------------------------------------------------------------

    def state(self, name: str) -> dict[str, torch.Tensor]:
        """The adapter's tensors under the keys that PEFT gives them."""
        adapter = self.adapters[name]
        state: dict[str, torch.Tensor] = {}
        for path in adapter.sites:
            site = self.layers[path]
            method = site.methods[name]
            keys = (method.peft_embedding_keys if site.shape.embedding else {}) or method.peft_keys
            for key, value in method.peft_tensors(dict(site.tensors(name).items())).items():
                state[f"{PREFIX}{site.peft_path(name)}.{keys[key]}"] = value
            for key, value in method.peft_shared(site.shared.get(name, {})).items():
                state[f"base_model.{method.peft_shared_keys[key]}"] = value
        state |= self._base_copies(name)
        if adapter.prompt is not None:
            was_training = adapter.prompt.training
            state["prompt_embeddings"] = adapter.prompt.eval()()  # what is saved is never what dropout left of it
            adapter.prompt.train(was_training)
        for path in adapter.whole:
            state[self._whole_key(adapter, path)] = adapter.values.get(path, self.parameters[path])
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def _base_copies(self, name: str) -> dict[str, torch.Tensor]:
        """The base's own numbers that PEFT keeps beside an adapted embedding or head: when one has such a name, and no
        tokens are trained."""
        sites = [self.layers[path] for path in self.adapters[name].sites if path in self.named_only]
        tokens = any(site.methods[name].place == "embedding" for site in sites)
        if tokens or not any(site.path.rsplit(".", 1)[-1] in ("embed_tokens", "lm_head") for site in sites):
            return {}
        ends = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        return {
            f"{PREFIX}{site.path}.base_layer.{key}": value.clone()  # a file holds no two names of one tensor
            for site in sites
            if any(site is end for end in ends)
            for key, value in site.base.named_parameters()
        }

    def _whole_key(self, adapter: Adapter, path: str) -> str:
        if isinstance(adapter.method, SelectiveMethod):
            return adapter.method.peft_key(path)
        return ("base_model." if isinstance(adapter.method, PromptMethod) else PREFIX) + path

    def save(
        self, name: str, folder: Path, *, base: str, about: Mapping[str, Any], task_type: str = "CAUSAL_LM"
    ) -> None:
        """Write adapter_model.safetensors and adapter_config.json in PEFT's layout, and atelier.json beside them.

        Args:
            base: what the base model is called elsewhere; a path on this machine is cut to its last part.
            about: what atelier.json says of the run.
            task_type: PEFT's name of the task.
        """
        adapter = self.adapters[name]
        method = adapter.method
        folder.mkdir(parents=True, exist_ok=True)
        config: dict[str, Any] = {
            "peft_type": method.peft_type,
            "task_type": task_type,
            "inference_mode": True,
            "base_model_name_or_path": public_name(base),
        }
        if isinstance(method, LayerMethod):
            layers = [path for path in adapter.sites if self.layers[path].methods[name].place == "layers"]
            conv = any(stores_transposed(self.layers[path].base) for path in layers)
            config |= method.to_peft(self.shortest_names(layers, adapter.whole))
            config |= method.peft_facts(self._tables(name)) | {"fan_in_fan_out": conv}
            config["modules_to_save"] = self._name_whole(adapter)
        elif isinstance(method, PromptMethod):
            config |= method.to_peft(self._sizes(method)) | {"modules_to_save": self._name_whole(adapter)}
        else:
            assert isinstance(method, SelectiveMethod)
            config |= method.to_peft(adapter.whole)
        weights = save(self.state(name), metadata={"format": "pt"})
        about = {"method": {"name": method.name} | method.model_dump(mode="json"), "base": public_name(base)} | dict(
            about
        )
        about |= {"sha256": hashlib.sha256(weights).hexdigest()}
        write_whole(folder / "adapter_model.safetensors", weights)
        write_whole(folder / "atelier.json", json.dumps(about, indent=2, ensure_ascii=False))
        write_whole(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False))

    def _name_whole(self, adapter: Adapter) -> list[str] | None:
        """The modules that are trained whole, by path; no module of which only a part is. A name alone would mean more to
        PEFT: `norm` is the end of `input_layernorm`."""
        found = set()
        for path in adapter.whole:
            module, _, _ = path.rpartition(".")
            while "." in module:
                above, _, _ = module.rpartition(".")
                if any(one.startswith(above + ".") and one not in adapter.whole for one in self.parameters):
                    break
                module = above
            found.add(module)
        return sorted(found) or None

    def _sizes(self, method: PromptMethod) -> dict[str, int]:
        if method.place == "attention":
            prefixes = self._find_prefixes()
            heads, size, layers = prefixes.heads, prefixes.size, prefixes.pairs
            sizes = {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * size}
            # PEFT builds an encoder-decoder's cache only when told that there are two of them.
            return sizes | ({"num_transformer_submodules": 2} if self.model.config.is_encoder_decoder else {})
        heads = int(self.model.config.get_text_config().num_attention_heads)
        width = int(self._find_embedding()[1].weight.shape[1])
        return {"num_layers": self.blocks, "num_attention_heads": heads, "token_dim": width}

    def shortest_names(self, chosen: list[str], whole: Collection[str] = ()) -> list[str]:
        """The last parts of the paths when they mean these layers and no other, else the whole paths.

        Args:
            whole: parameters that are trained whole: no name means their layers.
        """
        last = sorted({path.rsplit(".", 1)[-1] for path in chosen})
        meant = {path for path in [*self.linear, *self.named_only] if ends_with(path, last)}
        return last if meant - {path.rpartition(".")[0] for path in whole} == set(chosen) else sorted(chosen)

    def load(self, name: str, folder: Path) -> None:
        """Put an adapter from a folder on the model, in the place of any other of that name; strict, and nothing of it is
        on the model when anything is wrong.

        Raises:
            Problem: with all missing, unexpected, misshapen and non-finite tensors at once.
        """
        tensors, method = read_adapter(folder)
        self.remove(name)
        try:
            if isinstance(method, PromptMethod):
                self._load_prompt(name, method, tensors)
            elif isinstance(method, LayerMethod):
                self.adapters[name] = Adapter(method)
                self._add_layers(name, method, 0, all_names=False)
                self._fill(name, tensors)
            else:
                assert isinstance(method, SelectiveMethod)
                adapter = self.adapters[name] = Adapter(method, whole=self._select(method, copy=False))
                self._take_whole(adapter, tensors, {method.peft_key(path): path for path in self.parameters})
                compare({method.peft_key(path): tuple(self.parameters[path].shape) for path in adapter.whole}, tensors)
        except BaseException:
            self.remove(name)
            raise

    def _load_prompt(self, name: str, method: PromptMethod, tensors: dict[str, torch.Tensor]) -> None:
        self._check_room(method)
        in_attention = method.place == "attention"
        width = self._find_prefixes().width if in_attention else int(self._find_embedding()[1].weight.shape[1])
        adapter = self.adapters[name] = Adapter(method)
        whole = self._take_whole(adapter, tensors, {f"base_model.{path}": path for path in self._names()})
        if (
            self.model.config.is_encoder_decoder
            and len(found := tensors.get("prompt_embeddings", ())) == 2 * method.tokens
        ):
            # PEFT saves as many again for the decoder, and never uses them.
            tensors = tensors | {"prompt_embeddings": found[: method.tokens]}
        compare({"prompt_embeddings": (method.tokens, width)} | whole, tensors)
        adapter.prompt = Vectors(tensors["prompt_embeddings"].float().to(self.model.device))
        self._place_prompt(name, method, adapter.prompt)

    def _take_whole(
        self, adapter: Adapter, tensors: Mapping[str, torch.Tensor], names: Mapping[str, str]
    ) -> dict[str, tuple[int, ...]]:
        """Remember the tensors of the file that are the base's own parameters; their shapes by key."""
        shapes = {}
        for key, path in names.items():
            if key in tensors:
                # Whole, a tied weight is learned for both of its uses; beside an adapter for the one that was named.
                owner = path.removesuffix(".weight")
                if owner in self.named_only and not isinstance(adapter.method, SelectiveMethod):
                    self._untie(owner)
                adapter.values[path] = tensors[key]
                shapes[key] = tuple(self.parameters[path].shape)
                adapter.whole += [path] if path not in adapter.whole else []
        return shapes

    def _fill(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        tensors = {key if key.startswith("base_model.") else PREFIX + key: value for key, value in tensors.items()}
        adapter = self.adapters[name]
        method = adapter.method
        assert isinstance(method, LayerMethod)
        expected = {key: tuple(value.shape) for key, value in self.state(name).items()}
        for key in [f"base_model.{one}" for one in method.peft_shared_keys.values()]:
            if key not in tensors:
                expected.pop(key, None)  # drawn again from the seed
        for key in self._base_copies(name):
            del expected[key]
        expected |= self._check_copies(adapter, tensors)
        # A head is in the file without being named in the method; what is named must be there.
        names = self._names()
        expected |= self._take_whole(adapter, tensors, {PREFIX + path: path for path in names})
        expected |= {PREFIX + path: shape for path, shape in names.items() if lies_in(path, method.modules_to_save)}
        compare(expected, tensors)
        with torch.no_grad():
            for path in adapter.sites:
                site = self.layers[path]
                own = site.methods[name]
                keys = (own.peft_embedding_keys if site.shape.embedding else {}) or own.peft_keys
                for key, parameter in site.tensors(name).items():
                    if key in keys:
                        parameter.copy_(tensors[f"{PREFIX}{site.peft_path(name)}.{keys[key]}"])
                    parameter.requires_grad_(False)
                for key, value in site.shared.get(name, {}).items():
                    value.copy_(tensors.get(f"base_model.{own.peft_shared_keys[key]}", value))

    def _names(self) -> dict[str, tuple[int, ...]]:
        """The base's parameters by every name that they have, and their shapes: a tied head has one of its own."""
        tied = {f"{path}.weight": self.named_only[path].weight for paths in self.ties.values() for path in paths}
        return {path: tuple(value.shape) for path, value in (self.parameters | tied).items()}  # type: ignore[union-attr, operator]

    def _check_copies(self, adapter: Adapter, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
        """PEFT's copies of the base's own weights need not be there; those that are must be this base's."""
        shapes = {}
        for path in adapter.sites:
            for name, base in self.layers[path].base.named_parameters() if path in self.named_only else ():
                key = f"{PREFIX}{path}.base_layer.{name}"
                if key not in tensors:
                    continue
                shapes[key] = tuple(base.shape)
                same = tensors[key].shape == base.shape
                if same and not torch.allclose(tensors[key].float(), base.detach().cpu().float(), atol=1e-2):
                    raise Problem(
                        "The adapter was trained on other embeddings than those of this base model.",
                        "Its copy of {key} differs.",
                        "Choose the base model that it was trained on.",
                        key=key,
                    )
        return shapes
