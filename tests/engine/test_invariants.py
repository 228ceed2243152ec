"""What libraries of adapters promise of every method, held here too: precision, switching, other files, other sizes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import ENCODERS, FAMILIES, MORE, SEQ2SEQ, open_once
from safetensors.torch import load_file
from test_adapt import LAYERS, MERGING, METHODS, PROMPTS, fill, ids, load, logits, walk
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from core import methods, objectives
from core.config import ModelSettings, TrainSettings
from core.engine.adapt import Adapted, Weights
from core.engine.data import Reader, collate
from core.engine.device import choose_dtype
from core.engine.model import find_heads, load_model
from core.engine.optim import create_optimizer
from core.fit import count_trainable
from core.model import describe
from core.objectives import Row
from core.problem import Problem

Family = Callable[[str], Path]
HALVES = (torch.bfloat16, torch.float16)
SELECTIVE = [kind for kind in METHODS if issubclass(methods.find(kind), methods.SelectiveMethod)]
DROPPING = [kind for kind in METHODS if "dropout" in methods.find(kind).model_fields]
A = Weights("a")


def load_in(folder: Path, dtype: torch.dtype) -> Adapted:
    return Adapted(open_once(_read_in, folder, dtype))


def _read_in(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    return load_model(ModelSettings(name=str(folder)), torch.device("cpu"), dtype)[0]


def saved(folder: Path, kind: str, out: Path, **knobs: Any) -> Path:
    """A folder with a trained adapter."""
    adapted = load(folder)
    adapted.add("x", methods.find(kind)(**knobs))
    fill(adapted, "x")
    adapted.save("x", out, base="some/base", about={})
    return out


def said(adapted: Adapted, weights: Weights) -> torch.Tensor:
    """The logits of the real tokens with these weights."""
    with adapted.using(weights) as model:
        return logits(model, adapted.before(weights)[0])


def lose(adapted: Adapted, name: str = "a") -> torch.Tensor:
    """The loss of going on with a text, behind the adapter's virtual tokens."""
    virtual = torch.tensor([adapted.prompt_ids(name)] * 2, dtype=torch.long)
    asked, wanted = torch.cat([virtual, ids()], dim=1), torch.cat([torch.full_like(virtual, -100), ids()], dim=1)
    return adapted.model(input_ids=asked, labels=wanted, use_cache=False).loss


def gradients(adapted: Adapted, trained: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The gradients of a backward pass, taken away from the parameters."""
    adapted.model.zero_grad(set_to_none=True)
    lose(adapted).backward()
    found = {key: value.grad.clone() for key, value in trained.items() if value.grad is not None}
    adapted.model.zero_grad(set_to_none=True)
    return found


def base_of(adapted: Adapted) -> dict[str, torch.Tensor]:
    return {path: value.detach().clone() for path, value in adapted.parameters.items()}


def is_base(adapted: Adapted, base: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(adapted.parameters[path], value) for path, value in base.items())


# --- merging ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@walk(MERGING, ("gpt2",))
def test_a_merged_weight_is_rounded_once_and_taken_off_bit_for_bit(
    family: Family, tmp_path: Path, name: str, kind: str, dtype: torch.dtype
) -> None:
    """Half precision loses nothing at a merge but the last bit of the sum, and whoever merges twice merges once."""
    saved(family(name), kind, tmp_path)
    adapted = load_in(family(name), dtype)
    base, before = logits(adapted.model), base_of(adapted)
    adapted.load("a", tmp_path)
    last_bit = torch.finfo(dtype).eps / 2
    for path, merged in adapted.merged_weights("a").items():
        assert merged.dtype == dtype
        if (site := adapted.layers.get(path.removesuffix(".weight"))) is None:
            continue
        tensors = {key: value.double() for key, value in site.all_tensors("a", torch.float32).items()}
        exact = site.restore_layout(site.methods["a"].merged(site.weight().double(), tensors, 1.0))
        assert torch.allclose(merged.double(), exact, rtol=1.01 * last_bit, atol=1e-6), path
    applied, merged = said(adapted, A), said(adapted, Weights("a", merged=True))
    error = float((merged - applied).norm() / applied.norm())
    assert error < {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype], f"differs by {error:.2g}"
    assert is_base(adapted, before)
    assert torch.equal(said(adapted, Weights("a", merged=True)), merged)
    adapted._overlays.clear()
    assert torch.equal(said(adapted, Weights("a", merged=True)), merged)
    assert is_base(adapted, before) and torch.equal(logits(adapted.model), base)


@walk(MERGING, ("llama",))
def test_a_merge_that_is_not_finite_is_refused(family: Family, tmp_path: Path, name: str, kind: str) -> None:
    saved(family(name), kind, tmp_path)
    adapted = load(family(name))
    base, before = logits(adapted.model), base_of(adapted)
    for bad in (math.nan, math.inf):
        adapted.load("a", tmp_path)
        own = adapted.adapters["a"]
        if own.sites:
            path, broken = own.sites[1], next(iter(adapted.layers[own.sites[1]].tensors("a").values()))
        else:
            path, broken = next(iter(own.values.items()))
        good = broken.detach().clone()
        with torch.no_grad():
            broken.view(-1)[0] = bad
        for weights in (Weights("a", merged=True), Weights("a", 0.5, merged=True)):
            with pytest.raises(Problem, match="not finite") as caught, adapted.using(weights):
                pass
            assert path in str(caught.value)
        assert is_base(adapted, before) and torch.equal(logits(adapted.model), base)
        with torch.no_grad():
            broken.copy_(good)
        assert not torch.allclose(said(adapted, Weights("a", merged=True)), base, atol=1e-2)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_merge_that_half_precision_cannot_hold_is_refused(family: Family, tmp_path: Path, kind: str) -> None:
    """Finite in the adapter, and beyond what float16 can say once it is a weight."""
    saved(family("llama"), kind, tmp_path)
    for dtype in HALVES:
        adapted = load_in(family("llama"), dtype)
        adapted.load("a", tmp_path)
        own, before = adapted.adapters["a"], base_of(adapted)
        large = adapted.layers[own.sites[0]].tensors("a")["B"] if own.sites else next(iter(own.values.values()))
        with torch.no_grad():
            large.fill_(1e6)
        if dtype == torch.bfloat16:
            assert all(torch.isfinite(one).all() for one in adapted.merged_weights("a").values())
        else:
            with pytest.raises(Problem, match="not finite"), adapted.using(Weights("a", merged=True)):
                pass
        assert is_base(adapted, before)


# --- training ---------------------------------------------------------------------------------------------------------

#: What has a gradient at the first step: what begins at zero holds back whatever it is multiplied with.
FIRST = {
    "lora": {"B"}, "dora": {"B", "M"}, "vera": {"b"}, "adalora": {"E"}, "ia3": {"l"},
    "adapter_h": {"up"}, "adapter_p": {"up"}, "parallel_adapter": {"up"},
}  # fmt: skip


@walk(LAYERS + PROMPTS, ("llama", "gpt2"))
def test_every_tensor_has_a_gradient_from_the_second_step_on(family: Family, name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    trained = adapted.start_training("a")
    optimizer = create_optimizer(trained, TrainSettings(learning_rate=1e-2))
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(one) for one in own} == {id(one) for one in adapted.model.parameters() if one.requires_grad}
    assert len(own) == len(trained)
    lose(adapted).backward()
    moved = {key for key, value in trained.items() if value.grad is not None and value.grad.abs().max() > 0}
    if kind in FIRST:
        assert moved == {key for key in trained if key.rpartition(".")[2] in FIRST[kind]}
    assert moved
    optimizer.step()
    found = gradients(adapted, trained)
    assert found.keys() == trained.keys()
    for key, gradient in found.items():
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0, key


@walk(DROPPING, ("llama", "gpt2"))
def test_dropout_hides_the_same_inputs_when_a_block_is_computed_again(family: Family, name: str, kind: str) -> None:
    more = {"encoder": "lstm"} if kind == "p_tuning" else {}
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)(dropout=0.4, **more))
    trained = fill(adapted, "a")
    quiet = gradients(adapted, trained)
    adapted.model.train()
    torch.manual_seed(3)
    plain = gradients(adapted, trained)
    adapted.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(3)
    again = gradients(adapted, trained)
    assert plain.keys() == again.keys() == trained.keys()
    assert all(torch.allclose(plain[key], again[key], atol=1e-5) for key in plain)
    if name == "llama":  # whose base hides nothing
        assert not all(torch.allclose(plain[key], quiet[key], atol=1e-3) for key in plain)
        if kind in MERGING:
            loud = said(adapted, Weights("a", merged=True))
            adapted.model.eval()
            assert torch.equal(said(adapted, Weights("a", merged=True)), loud)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@walk(METHODS, ("llama",))
def test_a_half_precision_base_gives_whole_gradients(
    family: Family, name: str, kind: str, dtype: torch.dtype, autocast: bool
) -> None:
    """What is trained stays in float32, and learns what it would beside the same weights in float32."""
    method = methods.find(kind)()
    stored = choose_dtype(str(dtype).removeprefix("torch."), torch.device("cpu"), method)
    assert (stored == torch.float32) == (kind in SELECTIVE)
    found = []
    for whole in (True, False):
        adapted = load_in(family(name), dtype)
        adapted.model.to(torch.float32 if whole else stored)
        adapted.add("a", method)
        trained = fill(adapted, "a")
        with torch.autocast("cpu", dtype, enabled=autocast and not whole):
            loss = lose(adapted)
        loss.backward()
        for key, value in trained.items():
            assert value.dtype == torch.float32 and value.grad is not None and value.grad.dtype == torch.float32, key
            assert torch.isfinite(value.grad).all(), key
        found.append(torch.cat([value.grad.flatten() for value in trained.values()]))
    assert F.cosine_similarity(*found, dim=0) > 0.99


@walk(["freeze", *LAYERS], ("llama", "gpt2", "opt", "gpt_neox"))
def test_nothing_is_computed_backwards_below_the_lowest_trained_block(family: Family, name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)(**{"layers": 1} if kind == "freeze" else {"blocks": "2"}))
    trained = fill(adapted, "a")
    blocks = next(m for m in adapted.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    learns: list[bool] = []

    def look(block: torch.nn.Module, given: tuple[Any, ...], out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        learns.append((out if isinstance(out, torch.Tensor) else out[0]).requires_grad)

    for block in blocks:
        block.register_forward_hook(look)
    cut = gradients(adapted, trained)
    assert learns == [False, False, True]
    for parameter in adapted.model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    whole = gradients(adapted, trained)
    assert learns[3:] == [True, True, True]
    assert cut.keys() == whole.keys() and cut
    assert all(torch.allclose(cut[key], whole[key], atol=1e-6) for key in cut)


@pytest.mark.parametrize("name", FAMILIES + MORE)
def test_a_head_at_the_targets_only_gives_the_same_loss_and_gradients(family: Family, name: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find("lora")(rank=4, targets="attention"))
    trained = fill(adapted, "a")
    reader = Reader(adapted.model, packing=False)
    assert reader.selects
    rows = [Row(ids()[0].tolist(), [i % 3 > 0 for i in range(11)]), Row(ids()[1, :6].tolist(), [True] * 6)]
    batch, found = collate(rows, 0, pack=None), []
    for selects in (True, False):
        reader.selects = selects
        loss = objectives.find("chat").loss(reader.logits(adapted.model, batch), batch.targets)
        loss.backward()
        found.append([loss.detach(), *(value.grad.clone() for value in trained.values())])
        adapted.model.zero_grad()
    assert all(torch.allclose(few, all_, rtol=1e-4, atol=1e-4) for few, all_ in zip(*found, strict=True))


@walk(METHODS, ("llama",))
def test_the_seed_alone_decides_how_an_adapter_begins(family: Family, name: str, kind: str) -> None:
    found = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        adapted = load(family(name))
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        adapted.add("a", methods.find(kind)(), seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append({key: value.detach().clone() for key, value in adapted.start_training("a").items()})
    one, same, other = found
    assert all(torch.equal(one[key], same[key]) for key in one)
    draws = kind in PROMPTS or (kind in LAYERS and kind not in ("ia3", "vera"))  # VeRA draws from a key of its own
    assert draws != all(torch.equal(one[key], other[key]) for key in one)


# --- files of others --------------------------------------------------------------------------------------------------

#: What PEFT's file must say at least, of an adapter that has PEFT's own defaults.
LEAST: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": ({"rank": 8, "alpha": 8.0}, {"target_modules"}),
    "dora": ({"rank": 8, "alpha": 8.0}, {"target_modules", "use_dora"}),
    "vera": ({}, {"target_modules"}),
    "ia3": ({}, {"target_modules", "feedforward_modules"}),
    "adalora": ({"alpha": 8.0}, {"target_modules"}),
    "ln_tuning": ({}, {"target_modules"}),
    "prompt_tuning": ({}, {"num_virtual_tokens"}),
    "p_tuning": ({}, {"num_virtual_tokens"}),
    "p_tuning_v2": ({}, {"num_virtual_tokens"}),
    "prefix_tuning": ({}, {"num_virtual_tokens", "prefix_projection"}),
}
#: What PEFT wrote years ago, what other tools write, and what none has written yet: nothing that changes a computation.
OTHERS: dict[str, Any] = {
    "enable_lora": None, "merge_weights": False, "modules_to_save": None, "bias": "none", "layers_to_transform": None,
    "layers_pattern": None, "revision": None, "auto_mapping": None, "peft_version": "0.99.0", "megatron_config": None,
    "loftq_config": {}, "lora_bias": False, "eva_config": None, "runtime_config": {"ephemeral_gpu_offload": False},
    "inference_mode": False, "init_lora_weights": True, "what_nobody_knows_yet": {"deep": [1, 2]},
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(LEAST))
def test_a_config_may_say_little_or_more_than_is_known(family: Family, tmp_path: Path, kind: str) -> None:
    knobs, keys = LEAST[kind]
    saved(family("llama"), kind, tmp_path, **knobs)
    (tmp_path / "atelier.json").unlink()
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    base = logits(load(family("llama")).model)
    least = {key: written[key] for key in ("peft_type", *keys)}
    answers_of = []
    for config in (written, least, least | OTHERS, written | {"what_nobody_knows_yet": 1}):
        path.write_text(json.dumps(config))
        adapted = load(family("llama"))
        adapted.load("a", tmp_path)
        answers_of.append(said(adapted, A))
    assert all(torch.equal(one, answers_of[0]) for one in answers_of)
    assert not torch.allclose(answers_of[0], base, atol=1e-2)
    if kind in ("lora", "dora", "vera", "ia3", "ln_tuning"):
        peft = pytest.importorskip("peft")
        path.write_text(json.dumps(least))
        model = AutoModelForCausalLM.from_pretrained(family("llama"), dtype=torch.float32).eval()
        assert torch.allclose(logits(peft.PeftModel.from_pretrained(model, tmp_path)), answers_of[0], atol=1e-5)


#: Parts of a model's own names, of ours, of PEFT's and of each other.
NAMES = ["q_proj", "layers", "0", "base", "lora_A", "lora", "a", "ab", "@a", "keys"]


@pytest.mark.parametrize("kind", ["lora", "prompt_tuning", "p_tuning_v2", "ln_tuning"])
def test_the_name_of_an_adapter_means_nothing(family: Family, tmp_path: Path, kind: str) -> None:
    """Names that are parts of module names or of each other stand side by side; none of them is in a file."""
    expected = {}
    for number, name in enumerate(NAMES):
        adapted = load(family("llama"))
        adapted.add(name, methods.find(kind)(), number)
        trained = fill(adapted, name)
        with torch.no_grad():
            for parameter in trained.values():
                parameter.mul_(1 + 0.1 * number)
        expected[name] = logits(adapted.model, adapted.prompt_ids(name))
        adapted.save(name, tmp_path / str(number), base="some/base", about={})
    keys = [load_file(tmp_path / str(number) / "adapter_model.safetensors").keys() for number in range(len(NAMES))]
    configs = [(tmp_path / str(number) / "adapter_config.json").read_text() for number in range(len(NAMES))]
    assert all(one == keys[0] for one in keys) and all(one == configs[0] for one in configs)
    adapted = load(family("llama"))
    base = logits(adapted.model)
    for number, name in enumerate(NAMES):
        adapted.load(name, tmp_path / str(number))
    for name in [*NAMES, *reversed(NAMES)]:
        assert torch.allclose(said(adapted, Weights(name)), expected[name], atol=1e-5), name
    adapted.remove("a")
    adapted.remove("lora")
    for name in ("ab", "@a", "lora_A"):
        assert torch.allclose(said(adapted, Weights(name)), expected[name], atol=1e-5), name
    assert torch.equal(logits(adapted.model), base)


# --- other sizes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wider(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama with twenty more tokens."""
    folder = tmp_path_factory.mktemp("wider")
    model = AutoModelForCausalLM.from_pretrained(family("llama"), dtype=torch.float32)
    model.resize_token_embeddings(len(model.get_input_embeddings().weight) + 20, mean_resizing=False)
    model.save_pretrained(folder)
    for path in family("llama").glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind not in ("bitfit", "full", "head")])
def test_a_larger_vocabulary_carries_what_leaves_it_alone(
    family: Family, wider: Path, tmp_path: Path, kind: str
) -> None:
    saved(family("llama"), kind, tmp_path)
    narrow, wide = load(family("llama")), load(wider)
    for adapted in (narrow, wide):
        adapted.load("a", tmp_path)
    known = narrow.model.config.vocab_size
    expected = said(narrow, A)
    assert torch.allclose(said(wide, A)[..., :known], expected, atol=1e-5)
    assert not torch.allclose(expected, logits(narrow.model), atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("full", {}),
        ("head", {}),
        ("lora", {"targets": ["embed_tokens"], "rank": 4}),
        ("lora", {"targets": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ],
)
def test_another_vocabulary_is_refused_where_it_was_trained(
    family: Family, wider: Path, tmp_path: Path, kind: str, knobs: dict[str, Any]
) -> None:
    for number, (mine, other) in enumerate(((family("llama"), wider), (wider, family("llama")))):
        folder = saved(mine, kind, tmp_path / str(number), **knobs)
        adapted = load(other)
        base = logits(adapted.model)
        with pytest.raises(Problem, match="wrong shape") as caught:
            adapted.load("a", folder)
        assert all(str(one.model.config.vocab_size) in str(caught.value) for one in (adapted, load(mine)))
        assert not adapted.adapters and torch.equal(logits(adapted.model), base)


def test_peft_saves_a_larger_vocabulary_beside_its_adapter(family: Family, wider: Path, tmp_path: Path) -> None:
    """It does so where the base's own files are smaller; ours answers the same on a base of that size only."""
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(wider, dtype=torch.float32).eval()
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1.1)
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    adapted = load(wider)
    base = logits(adapted.model)
    adapted.load("a", tmp_path)
    assert torch.allclose(said(adapted, A), expected, atol=1e-5)
    assert torch.equal(logits(adapted.model), base)
    with pytest.raises(Problem, match="wrong shape"):
        load(family("llama")).load("a", tmp_path)


@pytest.mark.parametrize("name", FAMILIES + MORE + ENCODERS + SEQ2SEQ)
def test_all_linear_is_every_layer_but_the_heads(family: Family, name: str) -> None:
    adapted = load(family(name), task=name in ENCODERS + SEQ2SEQ)
    head, heads = adapted.model.get_output_embeddings(), find_heads(adapted.model)
    assert (head is None) == bool(heads)
    outside = {id(module) for path in heads for module in adapted.model.get_submodule(path).modules()} | {id(head)}
    linear = torch.nn.Linear | Conv1D
    meant = {path for path, layer in adapted.model.named_modules() if isinstance(layer, linear)}
    meant -= {path for path, layer in adapted.model.named_modules() if id(layer) in outside}
    adapted.add("a", methods.find("lora")(rank=2), heads=heads)
    assert set(adapted.layers) == meant


# --- padding ----------------------------------------------------------------------------------------------------------


@walk(["lora", *PROMPTS], ("llama", "gpt2", "qwen3", "opt", "gemma3_text"))
def test_padding_on_either_side_changes_no_real_token(family: Family, name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    sizes, length = (11, 5, 8), 11
    with adapted.using(A) as model, torch.no_grad():
        before, _ = adapted.before(A)
        rows = [[*before, *ids()[0, :size].tolist()] for size in sizes]
        alone = [model(input_ids=torch.tensor([row])).logits[0] for row in rows]
        for left in (True, False):
            whole = length + len(before)
            asked = torch.zeros(3, whole, dtype=torch.long)
            mask = torch.zeros_like(asked)
            real = [slice(whole - len(row), whole) if left else slice(0, len(row)) for row in rows]
            for line, (row, place) in enumerate(zip(rows, real, strict=True)):
                asked[line, place], mask[line, place] = torch.tensor(row), 1
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            found = model(input_ids=asked, attention_mask=mask, position_ids=positions).logits
            for line, place in enumerate(real):
                assert torch.allclose(found[line, place], alone[line], atol=1e-4), (left, line)


# --- several adapters on one model ------------------------------------------------------------------------------------


def put_all(folder: Path, out: Path, kinds: Iterable[str]) -> tuple[Adapted, dict[str, torch.Tensor]]:
    """A model with a trained adapter of each method, and what each says on a model of its own."""
    alone, adapted = {}, load(folder)
    for kind in kinds:
        saved(folder, kind, out / kind)
        single = load(folder)
        single.load(kind, out / kind)
        alone[kind] = said(single, Weights(kind))
        adapted.load(kind, out / kind)
    return adapted, alone


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_adapters_of_all_methods_take_turns_on_one_model(family: Family, tmp_path: Path, name: str) -> None:
    kinds = [kind for kind in METHODS if (name, kind) != ("llama", "bitfit")]
    adapted, alone = put_all(family(name), tmp_path, kinds)
    before, base = base_of(adapted), logits(adapted.model)
    order = random.Random(1).sample([(kind, merged) for kind in kinds for merged in (False, True)], 2 * len(kinds))
    for kind, merged in order:
        if not merged or kind in MERGING:
            assert torch.allclose(said(adapted, Weights(kind, merged=merged)), alone[kind], atol=2e-4), (kind, merged)
        assert adapted.methods.keys() == set(kinds)
    assert torch.equal(logits(adapted.model), base) and is_base(adapted, before)
    for number, kind in enumerate(random.Random(2).sample(kinds, len(kinds))):
        if number % 2:  # also while it is what the model computes with
            with adapted.using(Weights(kind, merged=kind in MERGING)):
                adapted.remove(kind)
        adapted.remove(kind)
        assert kind not in adapted.methods
        assert torch.equal(logits(adapted.model), base) and is_base(adapted, before)
        for other in [*adapted.methods][:2]:
            assert torch.allclose(said(adapted, Weights(other)), alone[other], atol=1e-5), (kind, other)
    assert not any("@" in path for path, _ in adapted.model.named_parameters())


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_whoever_is_trained_is_the_only_one(family: Family, name: str) -> None:
    """Turns at training leave nothing behind: neither what is trained nor what the model computes with."""
    adapted = load(family(name))
    kinds = LAYERS + PROMPTS
    for kind in kinds:
        adapted.add(kind, methods.find(kind)())
    base = base_of(adapted)
    for kind in random.Random(3).sample(2 * kinds, 2 * len(kinds)):
        trained = adapted.start_training(kind)
        wanted = {id(one) for one in trained.values()}
        assert {id(one) for one in adapted.model.parameters() if one.requires_grad} == wanted
        others = {
            other: {key: value.clone() for key, value in adapted.state(other).items()}
            for other in kinds
            if other != kind
        }
        optimizer = torch.optim.SGD(trained.values(), lr=0.1)
        lose(adapted, kind).backward()
        optimizer.step()
        optimizer.zero_grad()
        for other, state in others.items():
            now = adapted.state(other)
            assert all(torch.equal(now[key], value) for key, value in state.items()), (kind, other)
    assert is_base(adapted, base)


@pytest.mark.parametrize("kind", LAYERS + PROMPTS)
def test_what_is_taken_off_while_it_is_active_is_gone(family: Family, kind: str) -> None:
    """So is what another of its name takes the place of, wherever that one stands."""
    adapted = load(family("llama"))
    base = logits(adapted.model)
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    adapted.remove("a")
    assert torch.equal(logits(adapted.model), base)
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    adapted.add("a", methods.find("lora")(blocks="1"))
    adapted.start_training("a")
    assert torch.equal(logits(adapted.model), base)


@pytest.fixture(scope="module")
def earlier(family: Family, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters that answer before another does."""
    knobs: list[tuple[str, dict[str, Any]]] = [
        ("p_tuning_v2", {"tokens": 3}),
        ("dora", {}),
        ("prompt_tuning", {"tokens": 3}),
        ("lora", {"rank": 2, "targets": ["lm_head", "q_proj", "embed_tokens"]}),
    ]
    return [saved(family("llama"), kind, tmp_path_factory.mktemp(kind), **more) for kind, more in knobs]


@pytest.mark.parametrize("kind", [kind for kind in METHODS if kind != "bitfit"])
def test_a_used_model_is_as_good_as_a_fresh_one(family: Family, tmp_path: Path, earlier: list[Path], kind: str) -> None:
    """Whatever answered before, and under the same name: nothing of it is left in the next adapter's answers."""
    mine = saved(family("llama"), kind, tmp_path)
    fresh, used = load(family("llama")), load(family("llama"))
    fresh.load("a", mine)
    base = logits(used.model)
    for number, other in enumerate(earlier):
        used.load("a", other)
        said(used, A)
        if used.methods["a"].merges:
            said(used, Weights("a", merged=True))
        if number == 1:
            used.remove("a")
    used.load("a", mine)
    assert {key: value.shape for key, value in used.state("a").items()} == {
        key: value.shape for key, value in fresh.state("a").items()
    }
    for merged in (False, True) if kind in MERGING else (False,):
        weights = Weights("a", merged=merged)
        assert torch.equal(said(used, weights), said(fresh, weights)), merged
    assert torch.equal(logits(used.model), base)


# --- counting ---------------------------------------------------------------------------------------------------------

LLAMA = {"num_key_value_heads": 8, "vocab_size": 128_256}
#: Model type and sizes of published models, and what a LoRA of rank 1 on all linear layers but the head trains there.
REAL: dict[str, tuple[str, dict[str, Any], int]] = {
    "Llama-3.1-8B": ("llama", LLAMA | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32}, 2_621_440),
    "Llama-3.2-1B": ("llama", LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "head_dim": 64, "tie_word_embeddings": True}, 704_512),
    "Llama-3.1-70B": ("llama", LLAMA | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
        "num_attention_heads": 64}, 12_943_360),
    "Qwen3-8B": ("qwen3", {"hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936}, 2_727_936),
}  # fmt: skip


class Headers:
    """A safetensors file of these shapes, without the numbers."""

    def __init__(self, shapes: dict[str, list[int]]):
        self.shapes = shapes

    def __enter__(self) -> Headers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> Iterable[str]:
        return self.shapes.keys()

    def get_slice(self, name: str) -> Headers:
        return Headers({"": self.shapes[name]})

    def get_shape(self) -> list[int]:
        return self.shapes[""]


@pytest.mark.parametrize("name", REAL)
def test_real_models_train_as_many_numbers_as_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """r (in + out) over all layers; the numbers are those of tinker-cookbook's `hyperparam_utils.py`."""
    kind, sizes, expected = REAL[name]
    config = AutoConfig.for_model(kind, **sizes)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    shapes = {path: list(value.shape) for path, value in model.named_parameters()}
    assert ("lm_head.weight" in shapes) == (name != "Llama-3.2-1B")
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("safetensors.safe_open", lambda *_, **__: Headers(shapes))
    facts = describe(tmp_path)
    assert facts.parameters / 1e9 == pytest.approx(float(name.rpartition("-")[2][:-1]), rel=0.25)
    adapted = Adapted(model)
    for rank in (1, 16):
        method = methods.find("lora")(rank=rank)
        assert count_trainable(method, facts) == rank * expected
        adapted.add(str(rank), method)
        assert sum(one.numel() for one in adapted.start_training(str(rank)).values()) == rank * expected


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_merged_is_what_it_is_now(family: Family, kind: str) -> None:
    """What was merged before a step is not what is merged after it."""
    adapted = load(family("llama"))
    adapted.add("a", methods.find(kind)())
    before = said(adapted, Weights("a", merged=True))
    fill(adapted, "a")
    adapted.after_step("a", 0, 1)
    after = said(adapted, Weights("a", merged=True))
    assert not torch.allclose(before, after, atol=1e-3)
    assert torch.allclose(after, said(adapted, A), atol=1e-4)
