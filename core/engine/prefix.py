"""Keys and values that stand before every input: prefixes put into a model's own attention, without a cache.

Transformers lets the attention function of a model be chosen by name. While a prefix is active, ours is: it puts the
prefix before the layer's keys and values and then calls the model's own, so that gradients, checkpointing, packing and
generation with a cache all work (Li & Liang 2021; P-Tuning v2: Liu et al. 2022).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from core.problem import Problem

_NAME = "atelier_prefix_"
Pair = tuple[torch.Tensor, torch.Tensor]


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over this layer's prefix and its keys (batch, key heads, length, size)."""
    state: Prefixes = module.atelier_prefixes  # type: ignore[assignment]
    if state.captured is not None:
        state.captured.append((module, key, value, more.get("position_bias") is None))
    if state.active is None or module not in state.numbers:
        return state.usual(module, query, key, value, attention_mask, is_causal, more)
    before, values = state.active[state.numbers[module]]
    (batch, _, known, _), asked, size = key.shape, query.shape[2], before.shape[1]
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    # A layer that sees no farther than its window sees no prefix that is farther away either.
    window = more.get("sliding_window") if state.causal else None
    if attention_mask is None and (window or (causal and asked > 1)):
        attention_mask = torch.ones(asked, known, dtype=torch.bool, device=key.device).tril(known - asked)[None, None]
    if attention_mask is not None:
        seen = torch.ones(1, 1, asked, size, dtype=torch.bool, device=key.device)
        if window:
            assert state.positions is not None
            seen = state.positions[:, None, :, None] - torch.arange(size, device=key.device) < window
        if attention_mask.dtype != torch.bool:
            lowest = torch.finfo(attention_mask.dtype).min
            seen = torch.zeros(seen.shape, dtype=attention_mask.dtype, device=key.device).masked_fill(~seen, lowest)
        rows = torch.broadcast_shapes(attention_mask.shape[:-1], seen.shape[:-1])
        attention_mask = torch.cat([seen.expand(*rows, size), attention_mask[..., :known].expand(*rows, known)], dim=-1)
    if state.biased is not None:
        # How far away the prefix is; how far the tokens are from each other stays as it is.
        owner: Any = module if getattr(module, "has_relative_attention_bias", False) else state.biased
        far = owner.compute_bias(asked, size, device=key.device, past_seen_tokens=size + known - asked)
        more["position_bias"] = torch.cat([far, more["position_bias"]], dim=-1)
    key = torch.cat([before.to(key.dtype).expand(batch, -1, -1, -1), key], dim=2)
    value = torch.cat([values.to(value.dtype).expand(batch, -1, -1, -1), value], dim=2)
    return state.usual(module, query, key, value, attention_mask, False, more)


for _kind, _mask in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(_NAME + _kind, _attend)
    AttentionMaskInterface.register(_NAME + _kind, _mask)


class Prefixes:
    """The attention layers of a model, and the prefix that is active in them.

    Raises:
        Problem: when the model does not let its attention be chosen, or has more than one kind of it.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        layers = [module for module in model.modules() if "ALL_ATTENTION_FUNCTIONS" in _names(module)]
        configs = [model.config.get_text_config(), *(module.config for module in layers)]
        #: Every configuration that names an attention function -> the name that it has without a prefix.
        self.kinds = {id(one): (one, one._attn_implementation) for one in configs}
        self.kind = str(configs[-1]._attn_implementation)
        self.on = False
        #: Of every layer a key and a value (key heads, tokens, head size).
        self.active: Sequence[Pair] | None = None
        #: Where the tokens of this forward stand, the prefix counted (batch, length).
        self.positions: torch.Tensor | None = None
        self.captured: list[tuple[nn.Module, torch.Tensor, torch.Tensor, bool]] | None = None
        self.layers = layers
        for module in layers:
            module.atelier_prefixes = self  # type: ignore[assignment]
        self.causal = any(getattr(module, "is_causal", False) for module in layers)
        #: Whether the tokens can be told that they stand behind the prefix, and where they would begin without one.
        self.moves = "position_ids" in inspect.signature(model.forward).parameters
        self.first = max((_first_position(*one) for one in model.named_modules()), default=0)
        found = self._probe(model) if layers else []
        #: How many pairs of a key and a value a prefix has, and which of them each layer takes.
        self.pairs, self.numbers = len(found), {module: number for number, (module, *_) in enumerate(found)}
        #: T5's first decoder layer, whose bias by distance the other layers add to their scores as well.
        self.biased: nn.Module | None = None
        if model.config.is_encoder_decoder and found and hasattr(found[0][0], "compute_bias"):
            self.biased, self.pairs = found[0][0], int(configs[0].num_hidden_layers)
            # PEFT lays the pairs out twice, as if for the cross-attention too, and deals out two of them to each layer,
            # of which the decoder's own attention keeps the first (get_prompt, num_transformer_submodules = 2).
            self.numbers = {module: 2 * number % self.pairs for module, number in self.numbers.items()}
        shapes = {tuple(part.shape) for _, key, value, _ in found for part in (key, value)}
        if (
            len(shapes) != 1
            or len(self.numbers) != len(found)  # one layer that stands for several
            or len(found) > self.pairs
            or any(plain == (self.biased is not None) for *_, plain in found)
            or getattr(configs[0], "num_kv_shared_layers", 0)
            or (self.biased is None and (model.config.is_encoder_decoder or (self.causal and not self.moves)))
        ):
            raise Problem(
                "This model cannot carry a prefix.",
                "It is of the family {family}, whose attention takes no keys from outside.",
                "Choose prompt tuning, or a method that adapts layers.",
                field="method.name",
                family=model.config.model_type,
            )
        ((_, self.heads, _, self.size),) = shapes
        #: Every prefix by name; a part of the model, so that it moves and is trained with it.
        self.prompts = nn.ModuleDict()
        layers[0].atelier_prompts = self.prompts

    def take_out(self) -> None:
        """Leave the model as it was found."""
        self.switch(False)
        for module in self.layers:
            for name in ("atelier_prefixes", "atelier_prompts"):
                if hasattr(module, name):
                    delattr(module, name)

    def _probe(self, model: PreTrainedModel) -> list[tuple[nn.Module, torch.Tensor, torch.Tensor, bool]]:
        """What every layer attends to when the model reads one token, in the order in which they are asked."""
        if self.kind not in ("sdpa", "eager"):
            return []
        return self._listen(torch.zeros(1, dtype=torch.long, device=model.device))

    def _listen(self, ids: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor, torch.Tensor, bool]]:
        was_training, active, on = self.model.training, self.active, self.on
        self.model.eval()
        self.captured, self.active = [], None
        self.switch(True)
        try:
            with torch.no_grad():
                if not self.model.config.is_encoder_decoder:
                    self.model.base_model(input_ids=ids[None], use_cache=False)
                    return self.captured
                # The text is read and said; what the decoder attends to in itself is what it has of past tokens.
                self.model.base_model(input_ids=ids[None], decoder_input_ids=ids[None], use_cache=False)
                return [one for one in self.captured if getattr(one[0], "is_causal", False)]
        finally:
            self.captured, self.active = None, active
            self.switch(on)
            self.model.train(was_training)

    def usual(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool | None,
        more: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attention that the model has without a prefix."""
        if self.kind == "sdpa":
            return sdpa_attention_forward(module, query, key, value, mask, is_causal=is_causal, **more)
        own = inspect.unwrap(type(module).forward).__globals__["eager_attention_forward"]
        return own(module, query, key, value, mask, **more)

    def switch(self, on: bool) -> None:
        """Have the model attend by way of us, or as it did before."""
        self.on = on
        for config, kind in self.kinds.values():
            config._attn_implementation = _NAME + self.kind if on else kind

    @property
    def width(self) -> int:
        """Numbers that one virtual token has: layers x 2 x key heads x head size."""
        return self.pairs * 2 * self.heads * self.size

    def read(self, vectors: torch.Tensor) -> list[Pair]:
        """Vectors (tokens, width) as a key and a value of every layer; PEFT's order."""
        parts = vectors.view(len(vectors), self.pairs * 2, self.heads, self.size).permute(1, 2, 0, 3)
        return [(parts[2 * number], parts[2 * number + 1]) for number in range(self.pairs)]

    def capture(self, ids: torch.Tensor) -> torch.Tensor:
        """The keys and values (tokens, width) that a text (tokens,) itself leaves: a prefix that begins as that text."""
        # A pair begins as what the first layer that takes it has; one that no layer takes is in the file all the same.
        heard = {self.numbers[module]: (key[0], value[0]) for module, key, value, _ in reversed(self._listen(ids))}
        parts = [part for number in range(self.pairs) for part in heard.get(number, heard[0])]
        # (layers x 2, heads, tokens, size) -> (tokens, width)
        return torch.stack(parts).permute(2, 0, 1, 3).reshape(len(ids), -1).float()


def _first_position(name: str, module: nn.Module) -> int:
    """RoBERTa counts positions from behind the padding's own number."""
    counts = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    return 0 if not counts or module.padding_idx is None else int(module.padding_idx) + 1  # type: ignore[arg-type]


def _names(module: nn.Module) -> tuple[str, ...]:
    """The names that a module's forward looks up."""
    return getattr(getattr(inspect.unwrap(type(module).forward), "__code__", None), "co_names", ())
