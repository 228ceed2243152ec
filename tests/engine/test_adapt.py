"""Every method of the folder on models of different families keeps the promises of an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ground import ENCODERS, FAMILIES, MORE, SEQ2SEQ, open_once

from core import methods, objectives
from core.config import ModelSettings
from core.engine.adapt import Adapted, Weights
from core.engine.adapter_files import PREFIX, read_adapter
from core.engine.layers import AdaptedLinear
from core.engine.model import find_heads, load_model, peft_task
from core.fit import count_trainable
from core.model import describe
from core.problem import Problem

METHODS = sorted(methods.catalogue())
LAYERS = [kind for kind in METHODS if issubclass(methods.find(kind), methods.LayerMethod)]
PROMPTS = [kind for kind in METHODS if issubclass(methods.find(kind), methods.PromptMethod)]
MERGING = [kind for kind in METHODS if methods.find(kind).merges]


#: What cannot work, and why: no biases, no linear layers in the MLP (experts).
REFUSED = [
    *((family, "bitfit") for family in ("llama", "qwen3", "mistral", "gemma3_text", "phi3", "mixtral", "t5")),
    *(("mixtral", kind) for kind in ("adapter_h", "adapter_p")),
]


def walk(kinds: list[str], families: tuple[str, ...] = FAMILIES + MORE) -> pytest.MarkDecorator:
    pairs = [(family, kind) for family in families for kind in kinds if (family, kind) not in REFUSED]
    return pytest.mark.parametrize(("name", "kind"), pairs)


def task_of(name: str) -> objectives.Objective:
    if name in SEQ2SEQ:
        return objectives.find("seq2seq")
    return objectives.find("classification").restored({"labels": ["a", "b", "c"]})


def load(folder: Path, *, task: bool = False) -> Adapted:
    """The model of a folder; with `task`, as the task of its family needs it, its fresh head the same each time."""
    return Adapted(open_once(_read, folder, task))


def _read(folder: Path, task: bool) -> torch.nn.Module:
    objective = task_of(describe(folder).model_type) if task else None
    torch.manual_seed(0)
    return load_model(ModelSettings(name=str(folder)), torch.device("cpu"), torch.float32, objective)[0]


def answers(model: torch.nn.Module, virtual: list[int] | None = None) -> torch.Tensor:
    """What a classifier or an encoder-decoder says of an input."""
    asked = torch.cat([torch.tensor([virtual or []] * 2, dtype=torch.long), ids()], dim=1)
    more = {"decoder_input_ids": ids()[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=asked, **more).logits


def ids() -> torch.Tensor:
    return torch.randint(10, 290, (2, 11), generator=torch.Generator().manual_seed(1))


def logits(model: torch.nn.Module, virtual: list[int] | None = None) -> torch.Tensor:
    """Logits of the real tokens; virtual ones stand before them."""
    asked = torch.cat([torch.tensor([virtual or []] * 2, dtype=torch.long), ids()], dim=1)
    with torch.no_grad():
        return model(input_ids=asked).logits[:, len(virtual or []) :]


def fill(adapted: Adapted, name: str) -> dict[str, torch.nn.Parameter]:
    """As after a training: every trained number is something else than at the start."""
    trained = adapted.start_training(name)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return trained


def train_a_step(adapted: Adapted, name: str, steps: int = 2) -> dict[str, torch.nn.Parameter]:
    trained = adapted.start_training(name)
    # Adam, because a plain step of what learns slowest is lost in rounding.
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)
    virtual = torch.tensor([adapted.prompt_ids(name)] * 2, dtype=torch.long)
    asked, wanted = torch.cat([virtual, ids()], dim=1), torch.cat([torch.full_like(virtual, -100), ids()], dim=1)
    for _ in range(steps):
        adapted.model(input_ids=asked, labels=wanted).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return trained


@walk([kind for kind in METHODS if kind not in PROMPTS])
def test_fresh_adapter_changes_nothing(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    base = logits(adapted.model)
    adapted.add("a", methods.find(kind)())
    adapted.start_training("a")
    assert torch.equal(logits(adapted.model), base)


@walk(METHODS)
def test_only_what_is_trained_changes(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    trained = adapted.start_training("a")
    before = {path: value.detach().clone() for path, value in adapted.model.named_parameters()}
    own = {id(value) for value in trained.values()}
    start = {key: value.detach().clone() for key, value in trained.items()}
    train_a_step(adapted, "a")
    for path, value in adapted.model.named_parameters():
        assert value.requires_grad == (id(value) in own)
        if id(value) not in own:
            assert torch.equal(value, before[path]), path
    assert any(not torch.equal(value, start[key]) for key, value in trained.items())
    if isinstance(adapted.methods["a"], methods.LayerMethod):
        assert all(not torch.equal(value, start[key]) for key, value in trained.items())


@walk(METHODS)
def test_saved_and_loaded_answers_alike_and_base_is_restored(
    family: Callable[[str], Path], tmp_path: Path, name: str, kind: str
) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    expected = logits(adapted.model, adapted.prompt_ids("a"))
    adapted.save("a", tmp_path, base="some/base", about={"step": 3})

    other = load(family(name))
    base = logits(other.model)
    other.load("b", tmp_path)
    assert not torch.allclose(expected, base, atol=1e-2)
    with other.using(Weights("b")) as model:
        assert torch.allclose(logits(model, other.prompt_ids("b")), expected, atol=1e-5)
    assert torch.equal(logits(other.model), base)
    with other.using(Weights()) as model:
        assert torch.equal(logits(model), base)


@walk(MERGING)
def test_merged_is_applied(family: Callable[[str], Path], tmp_path: Path, name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    adapted.save("a", tmp_path, base="some/base", about={})
    other = load(family(name))
    base = logits(other.model)
    other.load("a", tmp_path)
    for strength in (0.0, 0.5, 1.0, 2.0):
        with other.using(Weights("a", strength)) as model:
            applied = logits(model)
        with other.using(Weights("a", strength, merged=True)) as model:
            assert torch.allclose(logits(model), applied, atol=2e-4), strength
        if strength == 0.0:
            assert torch.allclose(applied, base, atol=1e-5)
    for path, weight in other.merged_weights("a").items():
        other.parameters[path].data = weight
    other.unwrap()
    with_adapter = load(family(name))
    with_adapter.load("a", tmp_path)
    with with_adapter.using(Weights("a")) as model:
        assert torch.allclose(logits(other.model), logits(model), atol=2e-4)


@walk([kind for kind in MERGING if kind in LAYERS])
def test_fast_forward_is_the_merged_one(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    for layer in adapted.layers.values():
        x = torch.randn(3, layer.shape.inn)
        bias = layer.base.bias if layer.base.bias is not None else 0
        bias = bias if (merged := layer.merged_bias("a", 1.0)) is None else merged
        method, tensors = layer.methods["a"], layer.all_tensors("a", torch.float32)
        assert torch.allclose(layer(x), x @ method.merged(layer.weight(), tensors, 1.0).T + bias, atol=1e-4)
        pair = method.low_rank(tensors, layer.shape)
        if pair is not None:
            a, b = pair
            assert torch.allclose(b @ a, method.merged(layer.weight(), tensors, 1.0) - layer.weight(), atol=1e-5)


@walk(METHODS)
def test_what_is_counted_is_what_is_trained(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    trained = sum(parameter.numel() for parameter in adapted.start_training("a").values())
    assert count_trainable(methods.find(kind)(), describe(family(name))) == trained


@walk(PROMPTS + [kind for kind in LAYERS if kind not in MERGING])
def test_what_is_no_weight_is_not_merged(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    base = logits(adapted.model)
    with pytest.raises(Problem, match="cannot be merged"), adapted.using(Weights("a", merged=True)):
        pass
    assert torch.equal(logits(adapted.model), base)


@walk(METHODS)
def test_checkpointing_changes_neither_loss_nor_gradients(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    trained = fill(adapted, "a")
    virtual = torch.tensor([adapted.prompt_ids("a")] * 2, dtype=torch.long)
    asked, wanted = torch.cat([virtual, ids()], dim=1), torch.cat([torch.full_like(virtual, -100), ids()], dim=1)
    adapted.model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            adapted.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        loss = adapted.model(input_ids=asked, labels=wanted, use_cache=False).loss
        loss.backward()
        gradients = {key: value.grad for key, value in trained.items() if value.grad is not None}
        found.append((loss.detach(), gradients))
        adapted.model.zero_grad(set_to_none=True)
    (plain, before), (checkpointed, after) = found
    assert torch.allclose(plain, checkpointed, atol=1e-6)
    assert before.keys() == after.keys() and before
    assert all(torch.allclose(before[key], after[key], atol=1e-5) for key in before)


@walk(METHODS)
def test_a_layer_keeps_its_base(family: Callable[[str], Path], name: str, kind: str) -> None:
    """No method may answer without the base, nor train the weights of the layers that it stands beside."""
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    trained = adapted.start_training("a")
    if isinstance(adapted.methods["a"], methods.SelectiveMethod):
        return
    own = {id(parameter) for parameter in trained.values()}
    assert not own & {id(parameter) for parameter in adapted.parameters.values()}
    for site in adapted.layers.values():
        if isinstance(site, AdaptedLinear):
            x = torch.randn(2, site.shape.inn)
            out = site(x)
            bias = 0 if site.base.bias is None else site.base.bias
            assert torch.allclose(out, x @ site.weight().T + bias, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_a_model_cannot_carry_is_refused(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name), task=name in SEQ2SEQ)
    with pytest.raises(Problem) as caught:
        adapted.add("a", methods.find(kind)())
    assert all(part.field and part.field.startswith("method.") for part in caught.value.parts)
    assert not adapted.adapters


@walk(METHODS, ENCODERS + SEQ2SEQ)
def test_models_of_other_tasks(family: Callable[[str], Path], tmp_path: Path, name: str, kind: str) -> None:
    """A classifier's fresh head is trained whole beside the method; an encoder-decoder has its embedding twice."""
    adapted = load(family(name), task=True)
    base = answers(adapted.model)
    heads = find_heads(adapted.model)
    assert bool(heads) == (name in ENCODERS)
    adapted.add("a", methods.find(kind)(), heads=heads)
    adapted.start_training("a")
    if kind not in PROMPTS:
        assert torch.equal(answers(adapted.model), base)
    fill(adapted, "a")
    expected = answers(adapted.model, adapted.prompt_ids("a"))
    adapted.save("a", tmp_path, base="some/base", about={}, task_type=peft_task(task_of(name)))

    other = load(family(name), task=True)
    other.load("b", tmp_path)
    assert not torch.allclose(expected, base, atol=1e-3)
    with other.using(Weights("b")) as model:
        assert torch.allclose(answers(model, other.prompt_ids("b")), expected, atol=1e-5)
    assert torch.equal(answers(other.model), base)
    if kind in MERGING:
        with other.using(Weights("b", merged=True)) as model:
            assert torch.allclose(answers(model), expected, atol=2e-4)


def test_two_adapters_do_not_mix(family: Callable[[str], Path], tmp_path: Path) -> None:
    for number in (0, 1):
        one = load(family("llama"))
        one.add("x", methods.find("lora")(rank=2 + number), seed=number)
        fill(one, "x")
        one.save("x", tmp_path / str(number), base="b", about={})
    both = load(family("llama"))
    both.load("0", tmp_path / "0")
    with both.using(Weights("0")) as model:
        alone = logits(model)
    both.load("1", tmp_path / "1")
    with both.using(Weights("1")) as model:
        second = logits(model)
    with both.using(Weights("0")) as model:
        assert torch.equal(logits(model), alone)
    assert not torch.allclose(second, alone)
    both.remove("1")
    with both.using(Weights("0")) as model:
        assert torch.equal(logits(model), alone)


def test_dropout_only_while_training(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("lora")(dropout=0.5))
    fill(adapted, "a")
    assert torch.equal(logits(adapted.model), logits(adapted.model))
    adapted.model.train()
    assert not torch.equal(logits(adapted.model), logits(adapted.model))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], 2),
        ("attention", 4),
        ("all-linear", 7),
        (r".*\.(q_proj|down_proj)", 2),
        (r"model\.layers\.1\..*", 7 / 3),
        ("q_proj", 1),
    ],
)
def test_targets(family: Callable[[str], Path], targets: str | list[str], expected: float) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("lora")(targets=targets))
    assert len(adapted.layers) == round(expected * 3)


@pytest.mark.parametrize(
    ("knobs", "field", "words"),
    [
        ({"targets": ["q_proj", "query"]}, "method.targets", "k_proj"),
        ({"targets": "("}, "method.targets", "regular expression"),
        ({"targets": "nothing.*"}, "method.targets", "q_proj"),
        ({"rank": 17}, "method.rank", "at most 16"),
    ],
)
def test_wrong_knobs_are_refused(family: Callable[[str], Path], knobs: dict, field: str, words: str) -> None:
    adapted = load(family("llama"))
    with pytest.raises(Problem) as caught:
        adapted.add("a", methods.find("lora")(**knobs))
    assert caught.value.parts[0].field == field
    assert words in str(caught.value)


def test_freeze_takes_the_last_blocks(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("freeze")(layers=1))
    assert {path.split(".")[2] for path in adapted.start_training("a")} == {"2"}


def test_loading_tells_everything_that_is_wrong(family: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapted = load(family("llama"))
    adapted.add("a", methods.find("lora")(rank=4))
    adapted.save("a", tmp_path, base="b", about={})
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    del tensors[names[0]]
    tensors["base_model.model.elsewhere.lora_A.weight"] = torch.zeros(4, 4)
    tensors[names[1]] = torch.zeros(3, 3)
    tensors[names[2]][0, 0] = float("nan")
    save_file(tensors, path)
    other = load(family("llama"))
    base = logits(other.model)
    with pytest.raises(Problem) as caught:
        other.load("a", tmp_path)
    text = str(caught.value)
    for words in ("lacks 1", "elsewhere", "[3, 3]", "not finite"):
        assert words in text
    assert torch.equal(logits(other.model), base)
    assert not other.methods


def test_unprefixed_keys_are_accepted(family: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapted = load(family("llama"))
    adapted.add("a", methods.find("lora")())
    fill(adapted, "a")
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base="b", about={})
    path = tmp_path / "adapter_model.safetensors"
    save_file({key.removeprefix(PREFIX): value for key, value in load_file(path).items()}, path)
    other = load(family("llama"))
    other.load("a", tmp_path)
    with other.using(Weights("a")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-6)


def test_unknown_adapter_type_is_refused_by_name(shared: Path) -> None:
    folder = shared / "adapters" / "roberta-mrpc-finegates"
    kind = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    with pytest.raises(Problem, match=kind):
        read_adapter(folder)


def test_real_gpt2_adapter_loads(shared: Path) -> None:
    """A LoRA that PEFT saved for gpt2 (Conv1D) fits a gpt2 of the right shape, tensor by tensor."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = shared / "adapters" / "gpt2-causal-kto-r16"
    tensors, method = read_adapter(folder)
    adapted = Adapted(GPT2LMHeadModel(GPT2Config()).eval())
    adapted.load("a", folder)
    base = logits(adapted.model)
    with adapted.using(Weights("a")) as model:
        assert not torch.allclose(logits(model), base)
    assert adapted.state("a").keys() == tensors.keys()
    assert method.rank == 16
