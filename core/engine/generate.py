"""Generation: one token after the other from a prompt, with the sampling that people expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from pydantic import Field
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from core.config import Settings
from core.engine.tokens import Tokens
from core.problem import Problem


class Sampling(Settings):
    """How the next token is chosen; temperature 0 always takes the likeliest."""

    temperature: float = Field(0.7, ge=0.0, le=5.0)
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, le=100_000)
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    max_tokens: int = Field(256, ge=1, le=131_072)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)


GREEDY = Sampling(temperature=0.0)


def generate(
    model: PreTrainedModel,
    prompt: Sequence[int],
    end_ids: set[int],
    sampling: Sampling,
    using: Callable[[], AbstractContextManager[object]] = nullcontext,
    taken: int = 0,
) -> Iterator[int]:
    """Yield the ids of an answer, without the token that ends it.

    Args:
        prompt: token ids, at least one; the encoder's where the model has one. Virtual tokens may stand before it.
        using: entered around every single step, so that several generations with different weights can take turns.
        taken: positions that the model can read and that a prefix takes.

    Raises:
        Problem: when the prompt leaves no room for an answer.
    """
    encodes = bool(getattr(model.config, "is_encoder_decoder", False))
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limit = limit and max(1, limit - taken)
    if limit and len(prompt) >= limit + encodes:
        raise Problem(
            "The conversation is too long for this model.",
            "It has {count} tokens; the model reads {limit}.",
            "Shorten it, or clear the conversation.",
            count=len(prompt),
            limit=limit,
        )
    read = torch.tensor([list(prompt)], device=model.device)
    more: dict[str, Any] = {}
    if encodes:
        with using(), torch.inference_mode():
            more["encoder_outputs"] = model.get_encoder()(input_ids=read)
        cache: Any = EncoderDecoderCache(DynamicCache(), DynamicCache())
        ids = read.new_tensor([[first_token(model)]])
        name = "decoder_input_ids"
    else:
        cache, ids, name = DynamicCache(config=model.config), read, "input_ids"
    room = min(sampling.max_tokens, limit - ids.shape[1]) if limit else sampling.max_tokens
    processors = list_processors(sampling)
    generator = torch.Generator(device="cpu")
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    new = ids
    for _ in range(room):
        with using(), torch.inference_mode():
            output = model(**{name: new}, past_key_values=cache, use_cache=True, **more)
            scores = output.logits[:, -1].float()
            # Virtual tokens have no score that could be changed.
            scores = processors(ids[:, ids[0] < scores.shape[-1]], scores)
            if sampling.temperature > 0:
                # Drawn on the CPU: the same seed then gives the same answer on every device.
                token = torch.multinomial(torch.softmax(scores, -1).cpu(), 1, generator=generator).to(ids.device)
            else:
                token = scores.argmax(-1, keepdim=True)
        if int(token) in end_ids:
            return
        yield int(token)
        new = token
        ids = torch.cat([ids, token], dim=1)


def list_processors(sampling: Sampling) -> LogitsProcessorList:
    """What is done to the scores of the next token, in order."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


def first_token(model: PreTrainedModel) -> int:
    """The token that a decoder begins with."""
    named = (
        getattr(model.config, "decoder_start_token_id", None),
        getattr(model.generation_config, "decoder_start_token_id", None),
        getattr(model.config, "bos_token_id", None),  # T5 has none
        getattr(model.config, "pad_token_id", None),
    )
    return int(next(token for token in named if token is not None))


class TextStream:
    """Turns ids into text as they come, holding back the bytes of a character that is not yet complete."""

    def __init__(self, tokens: Tokens):
        self.tokens = tokens
        self.ids: list[int] = []
        self.given = ""

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self.ids.append(token)
        return self._take(self.tokens.decode(self.ids))

    def finish(self) -> str:
        """What was held back."""
        text = self.tokens.decode(self.ids)
        rest, self.given = text[len(self.given) :], text
        return rest

    def _take(self, text: str) -> str:
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self.given):
            return ""
        new, self.given = text[len(self.given) :], text
        return new


def answer(model: PreTrainedModel, tokens: Tokens, prompt: Sequence[int], sampling: Sampling) -> str:
    """A whole answer at once, with the weights that the model has now."""
    prompt = [*tokens.before, *prompt]
    return tokens.decode(list(generate(model, prompt, tokens.end_ids, sampling, taken=tokens.taken))).strip()
