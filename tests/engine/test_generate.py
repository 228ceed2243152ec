"""Answers come token by token, end where they should, and are the same for the same seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ground import FAMILIES
from transformers import BloomConfig, BloomForCausalLM

from core.config import ModelSettings
from core.engine.generate import GREEDY, Sampling, TextStream, answer, generate
from core.engine.model import end_token_ids, load_model
from core.engine.tokens import Tokens
from core.formats import Message
from core.problem import Problem

PROMPT = (Message("user", "what is the colour of the sky"),)


def load(folder: Path) -> tuple[torch.nn.Module, Tokens]:
    model, tokenizer = load_model(ModelSettings(name=str(folder)), torch.device("cpu"), torch.float32)
    return model, Tokens(tokenizer, 128, end_token_ids(model.generation_config, tokenizer))


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_is_what_transformers_generates(family: Callable[[str], Path], name: str) -> None:
    model, tokens = load(family(name))
    prompt = tokens.prompt(PROMPT)
    mine = list(generate(model, prompt, tokens.end_ids, GREEDY.model_copy(update={"max_tokens": 12})))
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=list(tokens.end_ids)
    )
    expected = [token for token in theirs[0, len(prompt) :].tolist() if token not in tokens.end_ids]
    assert mine == expected


def test_same_seed_same_answer(family: Callable[[str], Path]) -> None:
    model, tokens = load(family("llama"))
    prompt = tokens.prompt(PROMPT)

    def run(**settings: float) -> list[int]:
        return list(generate(model, prompt, set(), Sampling.model_validate({"max_tokens": 20} | settings)))

    assert run(seed=1, temperature=1.5) == run(seed=1, temperature=1.5)
    assert run(seed=1, temperature=1.5) != run(seed=2, temperature=1.5)
    assert run(temperature=1.0, top_k=1) == run(temperature=0)
    assert run(temperature=0, repetition_penalty=5.0) != run(temperature=0)
    # Without a seed every answer is another.
    assert run(temperature=1.5) != run(temperature=1.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.4},
        {"temperature": 2.0},
        {"temperature": 1.5, "top_k": 7},
        {"temperature": 1.5, "top_p": 0.6},
        {"temperature": 3.0, "top_p": 0.95},
        {"temperature": 2.5, "top_k": 12, "top_p": 0.8, "repetition_penalty": 1.3},
        {"temperature": 0.0, "repetition_penalty": 1.3},
        {"temperature": 0.0, "repetition_penalty": 0.6},
    ],
    ids=str,
)
def test_every_setting_does_what_it_says(family: Callable[[str], Path], settings: dict[str, float]) -> None:
    """The same tokens as from the definitions, written out, and from reading everything anew at every step."""
    model, tokens = load(family("llama"))
    prompt = tokens.prompt(PROMPT)
    sampling = Sampling.model_validate(settings | {"max_tokens": 40, "seed": 11})
    if "top_p" not in settings:
        sampling = sampling.model_copy(update={"top_p": 1.0})
    generator = torch.Generator().manual_seed(11)
    ids = list(prompt)
    for _ in range(40):
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1]
        for token in set(ids):
            penalty = sampling.repetition_penalty
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
        if sampling.temperature == 0:
            ids.append(int(scores.argmax()))
            continue
        chances = (scores / sampling.temperature).softmax(-1)
        likeliest = chances.argsort(descending=True)
        if sampling.top_k:
            likeliest = likeliest[: sampling.top_k]
        # The fewest of the likeliest that have top_p together (Holtzman et al. 2020, section 3.1).
        shares = chances[likeliest] / chances[likeliest].sum()
        likeliest = likeliest[shares.cumsum(-1) - shares < sampling.top_p]
        kept = torch.zeros_like(chances)
        kept[likeliest] = chances[likeliest]
        ids.append(int(torch.multinomial(kept / kept.sum(), 1, generator=generator)))
    assert list(generate(model, prompt, set(), sampling)) == ids[len(prompt) :]


def test_ends_at_the_end_token_and_at_the_models_length(family: Callable[[str], Path]) -> None:
    model, tokens = load(family("llama"))
    prompt = tokens.prompt(PROMPT)
    free = list(generate(model, prompt, set(), Sampling(temperature=0, max_tokens=1000)))
    assert len(prompt) + len(free) == 128
    stop = free[5]
    assert list(generate(model, prompt, {stop}, GREEDY)) == free[: free.index(stop)]
    assert len(list(generate(model, prompt, set(), GREEDY.model_copy(update={"max_tokens": 7})))) == 7
    assert len(list(generate(model, [5] * 127, set(), GREEDY))) == 1
    with pytest.raises(Problem, match="too long"):
        next(generate(model, [5] * 128, set(), GREEDY))


def test_characters_are_never_given_in_halves(family: Callable[[str], Path]) -> None:
    _, tokens = load(family("llama"))
    text = "äß 中文 🙂 ok"
    stream = TextStream(tokens)
    pieces = [stream.add(token) for token in tokens.encode(text)]
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text


def test_what_was_held_back_comes_at_the_end_and_once(family: Callable[[str], Path]) -> None:
    _, tokens = load(family("llama"))
    stream = TextStream(tokens)
    half = tokens.encode("ok 🙂")[:-1]
    assert "".join(stream.add(token) for token in half) == "ok "
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"
    assert stream.finish() == ""


def test_a_model_without_a_longest_length_gives_as_many_tokens_as_asked() -> None:
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2)).eval()
    assert len(list(generate(model, [5, 6], set(), GREEDY.model_copy(update={"max_tokens": 9})))) == 9


def test_a_whole_answer_has_no_blanks_around_it(family: Callable[[str], Path]) -> None:
    model, tokens = load(family("llama"))
    prompt, blanks = tokens.prompt(PROMPT), 0
    for seed in range(40):
        sampling = Sampling(temperature=2.0, max_tokens=3, seed=seed)
        text = tokens.decode(list(generate(model, prompt, tokens.end_ids, sampling)))
        blanks += text != text.strip()
        assert answer(model, tokens, prompt, sampling) == text.strip()
    assert blanks


def test_every_single_step_is_made_with_the_weights_that_are_asked_for(family: Callable[[str], Path]) -> None:
    """Several answers take turns: outside a step the weights belong to others."""
    model, tokens = load(family("llama"))
    prompt = tokens.prompt(PROMPT)
    weight = model.get_parameter("model.norm.weight")
    own, foreign = weight.detach().clone(), torch.zeros_like(weight)
    expected = list(generate(model, prompt, set(), GREEDY.model_copy(update={"max_tokens": 6})))
    weight.data = foreign

    @contextlib.contextmanager
    def using() -> Iterator[None]:
        weight.data = own
        yield
        weight.data = foreign

    got = []
    for token in generate(model, prompt, set(), GREEDY.model_copy(update={"max_tokens": 6}), using):
        assert weight.data is foreign or torch.equal(weight, foreign)
        got.append(token)
    assert got == expected
