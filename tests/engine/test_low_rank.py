"""DoRA, VeRA and AdaLoRA compute what their papers and PEFT say, and go both ways between PEFT and us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import FAMILIES, MORE, open_model
from safetensors.torch import load_file, save_file
from test_adapt import fill, ids, load, logits
from test_lora import CHOICES, applied, ends, in_peft, saved_shapes, trained
from test_lora import theirs as saved_by_peft

from core import methods
from core.config import ModelSettings
from core.engine.adapt import Adapted, Weights
from core.engine.model import load_model
from core.fit import count_trainable
from core.methods import Layer, Shape
from core.model import describe
from core.problem import Problem

peft = pytest.importorskip("peft")

KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("dora", {}),
    ("dora", {"rank": 4, "alpha": 3, "scaling": "rslora", "targets": "attention"}),
    ("dora", {"rank": 3, "init": "pissa"}),
    ("vera", {}),
    (
        "vera",
        {"rank": 7, "projection_key": 5, "start": 0.3, "targets": r".*1.*(v_proj|c_attn|qkv_proj|query_key_value)"},
    ),
    ("vera", {"rank": 9, "save_projection": False}),
    ("adalora", {}),
    ("adalora", {"init_rank": 5, "target_rank": 2, "alpha": 3}),
]


def their_config(kind: str, targets: str | list[str], name: str, **more: Any) -> Any:
    usual = {"target_modules": targets, "fan_in_fan_out": name == "gpt2", "task_type": "CAUSAL_LM"}
    if kind == "vera":
        return peft.VeraConfig(**{"r": 6, "projection_prng_key": 3, "init_weights": False} | usual | more)
    if kind == "adalora":
        wanted = {"init_r": 5, "target_r": 2, "lora_alpha": 3, "total_step": 9, "init_lora_weights": False}
        return peft.AdaLoraConfig(**wanted | usual | more)
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "use_dora": True, "init_lora_weights": False} | usual | more)


def shake(model: torch.nn.Module) -> None:
    """What was trained is nowhere at its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("lora_", "vera_lambda")):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def train(adapted: Adapted, steps: int, first: int = 1, last: int | None = None, rate: float = 1e-2) -> list[float]:
    """Steps first..last of a training of `steps`, as the loop does them, with an optimizer that remembers nothing."""
    trained = adapted.start_training("a")
    optimizer = torch.optim.SGD(trained.values(), lr=rate)
    losses = []
    for step in range(first, (last or steps) + 1):
        loss = adapted.model(input_ids=ids(), labels=ids()).loss
        losses.append(float(loss.detach()))
        penalty = adapted.penalty("a")
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        adapted.after_step("a", step, steps)
        optimizer.zero_grad()
    return losses


# --- to PEFT and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "knobs"), KNOBS)
@pytest.mark.parametrize("name", FAMILIES + MORE)
def test_ours_in_peft(family: Callable[[str], Path], tmp_path: Path, name: str, kind: str, knobs: dict) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)(**knobs))
    fill(adapted, "a")
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base=str(family(name)), about={})
    theirs = peft.PeftModel.from_pretrained(open_model(family(name)), tmp_path)
    assert torch.allclose(logits(theirs), expected, atol=1e-5)
    assert not torch.allclose(logits(open_model(family(name))), expected, atol=1e-3)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved.keys() <= their_config(kind, ["q_proj"], name).to_dict().keys() | {"peft_type", "task_type"}
    assert any("vera_A" in key for key in load_file(tmp_path / "adapter_model.safetensors")) == (
        kind == "vera" and knobs.get("save_projection", True)
    )


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("dora", {}),
        ("dora", {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"c_attn|query_key_value": 7}}),
        ("vera", {}),
        ("vera", {"save_projection": False, "d_initial": 0.3}),
        ("adalora", {}),
    ],
)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "c_attn", "query_key_value"]])
@pytest.mark.parametrize("name", FAMILIES)
def test_theirs_in_ours(
    family: Callable[[str], Path], tmp_path: Path, name: str, kind: str, targets: str | list[str], more: dict
) -> None:
    theirs = peft.get_peft_model(open_model(family(name)), their_config(kind, targets, name, **more)).eval()
    shake(theirs)
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path)
    adapted = load(family(name))
    base = logits(adapted.model)
    adapted.load("a", tmp_path)
    assert adapted.methods["a"].name == kind
    with adapted.using(Weights("a")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-5)
    with adapted.using(Weights("a", merged=True)) as model:
        assert torch.allclose(logits(model), expected, atol=2e-4)
    assert torch.equal(logits(adapted.model), base)
    # And once more out of our hands.
    adapted.save("a", tmp_path / "again", base="b", about={})
    read, written = (
        json.loads((folder / "adapter_config.json").read_text()) for folder in (tmp_path, tmp_path / "again")
    )
    # Whose name and start, and how it was trained, may be told otherwise; nothing else.
    free = {"base_model_name_or_path", "init_lora_weights", "target_modules", "total_step", "rank_pattern"}
    assert {key: value for key, value in written.items() if key not in free and value != read[key]} == {}
    theirs = peft.PeftModel.from_pretrained(open_model(family(name)), tmp_path / "again")
    assert torch.allclose(logits(theirs), expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["dora", "vera", "adalora"])
def test_key_names_and_shapes_are_those_of_peft(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    knobs = {"dora": {"rank": 3}, "vera": {"rank": 6}, "adalora": {"init_rank": 5, "target_rank": 2}}[kind]
    adapted.add("a", methods.find(kind)(**knobs))
    theirs = peft.get_peft_model(open_model(family(name)), their_config(kind, "all-linear", name))
    expected = {key: value.shape for key, value in peft.get_peft_model_state_dict(theirs).items()}
    assert {key: value.shape for key, value in adapted.state("a").items()} == expected


def test_a_config_is_read_by_one_method_only() -> None:
    for config, name in (
        ({"peft_type": "LORA"}, "lora"),
        ({"peft_type": "LORA", "use_dora": False}, "lora"),
        ({"peft_type": "LORA", "use_dora": True}, "dora"),
        ({"peft_type": "ADALORA"}, "adalora"),
        ({"peft_type": "VERA"}, "vera"),
    ):
        assert [method.name for method in methods.catalogue().values() if method.reads(config)] == [name]


@pytest.mark.parametrize("kind", ["dora", "vera", "adalora"])
def test_what_is_not_computed_is_refused(family: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    theirs = peft.get_peft_model(open_model(family("llama")), their_config(kind, ["q_proj"], "llama"))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bias": "all"}))
    with pytest.raises(Problem, match="bias"):
        load(family("llama")).load("a", tmp_path)


@pytest.mark.parametrize("kind", ["vera", "adalora"])
def test_embeddings_are_refused(family: Callable[[str], Path], kind: str) -> None:
    adapted = load(family("llama"))
    with pytest.raises(Problem, match="is an embedding") as caught:
        adapted.add("a", methods.find(kind)(targets=["embed_tokens", "q_proj"]))
    assert caught.value.parts[0].field == "method.targets"
    assert not adapted.adapters
    adapted.add("a", methods.find(kind)(targets=["lm_head"]))
    fill(adapted, "a")
    assert not torch.equal(logits(adapted.model), logits(load(family("llama")).model))


@pytest.mark.parametrize(("name", "which"), CHOICES)
def test_dora_of_embeddings_and_heads_goes_both_ways(
    family: Callable[[str], Path], tmp_path: Path, name: str, which: str
) -> None:
    targets, folder = ends(name, which), family(name)
    _, expected = saved_by_peft(
        open_model(folder), tmp_path / "theirs", r=4, lora_alpha=6, target_modules=targets, use_dora=True,
        fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    assert torch.allclose(applied(open_model(folder), tmp_path / "theirs"), expected, atol=1e-5)
    method = methods.find("dora")(rank=4, alpha=6, targets=targets)
    adapted, ours = trained(open_model(folder), method, tmp_path / "ours")
    assert saved_shapes(tmp_path / "ours") == saved_shapes(tmp_path / "theirs")
    assert torch.allclose(in_peft(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)
    assert torch.allclose(applied(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)
    if (name, which) not in [("gpt_neox", "head"), ("gpt_neox", "both")]:  # the file has another name for its head
        counted = sum(parameter.numel() for parameter in adapted.start_training("a").values())
        assert count_trainable(method, describe(folder)) == counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "which"), CHOICES)
def test_a_fresh_dora_of_embeddings_changes_nothing(
    family: Callable[[str], Path], name: str, which: str, dtype: torch.dtype
) -> None:
    adapted = Adapted(load_model(ModelSettings(name=str(family(name))), torch.device("cpu"), dtype)[0])
    base = logits(adapted.model)
    adapted.add("a", methods.find("dora")(rank=4, targets=ends(name, which)))
    before = {path: value.detach().clone() for path, value in adapted.model.named_parameters() if "@a" not in path}
    adapted.start_training("a")
    assert torch.equal(logits(adapted.model), base)
    fill(adapted, "a")
    changed = logits(adapted.model)
    assert changed.dtype == dtype
    assert not torch.allclose(changed, base, atol=1e-3)
    for path, value in adapted.model.named_parameters():
        assert "@a" in path or torch.equal(value, before[path])


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_dora_trains_an_embedding_like_peft(family: Callable[[str], Path], name: str) -> None:
    """A length for each dimension of the vectors; Gemma scales what it looks up, and so what is learned."""
    config = their_config("dora", ["embed_tokens", "q_proj"], name)
    theirs = peft.get_peft_model(open_model(family(name)), config)
    shake(theirs)
    adapted = load(family(name))
    adapted.add("a", methods.find("dora")(rank=3, alpha=5, targets=["embed_tokens", "q_proj"]))
    ours = adapted.start_training("a")
    named = {key.replace(".default", ""): value for key, value in theirs.named_parameters() if value.requires_grad}
    keys = {"A": ".lora_embedding_A", "B": ".lora_embedding_B", "M": ".lora_magnitude_vector.weight"}
    place = "model.embed_tokens"
    own = {key: named["base_model.model." + place + spelt] for key, spelt in keys.items()}
    assert own["M"].shape == (adapted.model.config.hidden_size,)
    with torch.no_grad():
        for key, value in ours.items():
            path, _, part = key.rpartition(".")
            spelt = keys[part] if path == place else {"M": keys["M"]}.get(part, f".lora_{part}.weight")
            value.copy_(named["base_model.model." + path + spelt])
    for model in (theirs, adapted.model):
        model(input_ids=ids(), labels=ids()).loss.backward()
    for key, value in own.items():
        assert float(value.grad.abs().max()) > 1e-4
        assert torch.allclose(ours[f"{place}.{key}"].grad, value.grad, atol=1e-5), key


@pytest.mark.parametrize("which", ["embedding", "head"])
@pytest.mark.parametrize("name", ["opt", "gpt2", "gemma3_text"])
def test_dora_learns_a_tied_weight_for_one_of_its_uses(family: Callable[[str], Path], name: str, which: str) -> None:
    adapted = load(family(name))
    assert adapted.ties
    before = adapted.model.get_input_embeddings().weight.detach().clone()
    adapted.add("a", methods.find("dora")(rank=4, alpha=16, targets=ends(name, which)))
    fill(adapted, "a")
    expected = logits(adapted.model)
    with adapted.using(Weights("a", merged=True)) as model:
        assert torch.allclose(logits(model), expected, atol=2e-5 * float(expected.abs().max()))
        found = [model.get_input_embeddings(), model.get_output_embeddings()]
        same = [torch.equal(getattr(one, "base", one).weight, before) for one in found]
    assert same == [which == "head", which == "embedding"]


def test_dora_has_no_experts() -> None:
    assert "target_parameters" not in methods.find("dora").model_fields
    with pytest.raises(Problem, match="target_parameters"):
        methods.find("dora").read({"target_parameters": ["experts.down_proj"]})


# --- formulas ---------------------------------------------------------------------------------------------------------


def layer_of(weight: torch.Tensor) -> Layer:
    return Layer("x.q_proj", Shape(*weight.shape), lambda: weight)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_dora_is_its_formula() -> None:
    """Liu et al. 2024, equation 5; the norm is a constant in the backward pass (section 4.3)."""
    method = methods.find("dora")(rank=3, alpha=6)
    weight, bias, x = draw(8, 5), draw(8), draw(2, 4, 5).requires_grad_()
    tensors = {"A": draw(3, 5), "B": draw(8, 3), "M": draw(8).abs() + 0.5}
    for value in tensors.values():
        value.requires_grad_()
    asked = [x, *tensors.values()]
    for strength in (0.0, 0.5, 1.0, 2.0):

        def call(x: torch.Tensor) -> torch.Tensor:
            return x @ weight.T + bias

        got = method.apply(call, layer_of(weight), x, tensors, strength, False)
        turned = weight + 2.0 * tensors["B"] @ tensors["A"]
        grown = tensors["M"][:, None] * turned / turned.norm(dim=1, keepdim=True).detach()
        expected = x @ (weight + strength * (grown - weight)).T + bias
        assert torch.allclose(got, expected, atol=1e-5)
        if strength == 0.0:
            assert torch.equal(got, call(x))
            continue
        pulls = zip(
            torch.autograd.grad(got.square().sum(), asked),
            torch.autograd.grad(expected.square().sum(), asked),
            strict=True,
        )
        assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-3) for one, two in pulls)


def test_dora_hides_the_same_inputs_from_both_of_its_terms() -> None:
    """y = W x + (g - 1) W drop(x) + g s B A drop(x), which is what PEFT computes while it trains."""
    method = methods.find("dora")(rank=3, alpha=6, dropout=0.4)
    weight, bias, x = draw(8, 5), draw(8), draw(2, 4, 5)
    tensors = {"A": draw(3, 5), "B": draw(8, 3), "M": draw(8).abs() + 0.5}
    torch.manual_seed(1)
    got = method.apply(lambda x: x @ weight.T + bias, layer_of(weight), x, tensors, 1.0, True)
    torch.manual_seed(1)
    hidden = torch.nn.functional.dropout(x, 0.4)
    product = 2.0 * tensors["B"] @ tensors["A"]
    growth = tensors["M"] / (weight + product).norm(dim=1)
    expected = x @ weight.T + bias + (growth - 1) * (hidden @ weight.T) + growth * (hidden @ product.T)
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(
        got, method.apply(lambda x: x @ weight.T + bias, layer_of(weight), x, tensors, 1.0, False)
    )


def test_dora_trains_like_peft_with_dropout(family: Callable[[str], Path]) -> None:
    config = their_config("dora", ["q_proj", "down_proj"], "llama", lora_dropout=0.3, init_lora_weights=True)
    theirs = peft.get_peft_model(open_model(family("llama")), config)
    shake(theirs)
    adapted = load(family("llama"))
    adapted.add("a", methods.find("dora")(rank=3, alpha=5, dropout=0.3, targets=["q_proj", "down_proj"]))
    trained = adapted.start_training("a")
    given = peft.get_peft_model_state_dict(theirs)
    with torch.no_grad():
        for key, value in adapted.state("a").items():
            path, part = key.removeprefix("base_model.model.").split(".lora_")
            trained[f"{path}.{part[0].upper()}"].copy_(given[key].view_as(value))
    pulls = []
    for model in (theirs.train(), adapted.model.train()):
        torch.manual_seed(4)
        loss = model(input_ids=ids(), labels=ids()).loss
        loss.backward()
        pulls.append(float(loss.detach()))
    assert pulls[0] == pytest.approx(pulls[1], abs=1e-5)
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            path, part = name.removeprefix("base_model.model.").split(".lora_")
            assert torch.allclose(trained[f"{path}.{part[0].upper()}"].grad, parameter.grad, atol=1e-5), name


@pytest.mark.parametrize("kind", ["dora", "vera", "adalora"])
def test_fresh_in_half_precision_changes_nothing(family: Callable[[str], Path], kind: str) -> None:
    settings = ModelSettings(name=str(family("llama")))
    adapted = Adapted(load_model(settings, torch.device("cpu"), torch.bfloat16)[0])
    base = logits(adapted.model)
    adapted.add("a", methods.find(kind)())
    trained = adapted.start_training("a")
    assert torch.equal(logits(adapted.model), base)
    assert {value.dtype for value in trained.values()} == {torch.float32}


def test_dora_learns_lengths_that_half_precision_cannot_tell(family: Callable[[str], Path]) -> None:
    weight, x = draw(8, 5).bfloat16(), draw(4, 5).bfloat16()
    method = methods.find("dora")(rank=3)
    fresh_ones = method.create(layer_of(weight.float()), torch.Generator())
    site_like = {key: value.bfloat16() for key, value in fresh_ones.items()} | {"M": fresh_ones["M"] * 1.001}
    zero = method.apply(lambda x: torch.zeros(len(x), 8) + x.float() @ weight.float().T, layer_of(weight.float()), x,
                        site_like, 1.0, False)  # fmt: skip
    assert torch.allclose(zero, 1.001 * x.float() @ weight.float().T, rtol=1e-4, atol=1e-5)
    adapted = Adapted(load_model(ModelSettings(name=str(family("llama"))), torch.device("cpu"), torch.bfloat16)[0])
    adapted.add("a", method)
    site = next(iter(adapted.layers.values()))
    assert {key: value.dtype for key, value in site.all_tensors("a", torch.bfloat16).items()} == {
        "A": torch.bfloat16, "B": torch.bfloat16, "M": torch.float32,
    }  # fmt: skip


def test_vera_is_its_formula_and_its_matrices_are_those_of_peft(family: Callable[[str], Path]) -> None:
    """Kopiczko et al. 2024, equation 2; A and B are drawn from the key as PEFT draws them."""
    method = methods.find("vera")(rank=6, projection_key=3)
    shared = method.create_shared([Shape(8, 5), Shape(4, 9)])
    assert {key: tuple(value.shape) for key, value in shared.items()} == {"A": (6, 9), "B": (8, 6)}
    tensors = shared | {"b": draw(8), "d": draw(6)}
    x = draw(3, 5)
    expected = tensors["b"] * ((tensors["d"] * (x @ shared["A"][:, :5].T)) @ shared["B"][:8].T)
    assert torch.allclose(method.gain(x, tensors, False), expected, atol=1e-5)
    adapted = load(family("llama"))
    adapted.add("a", method)
    theirs = peft.get_peft_model(open_model(family("llama")), their_config("vera", "all-linear", "llama"))
    given = peft.get_peft_model_state_dict(theirs)
    for key in ("base_model.vera_A", "base_model.vera_B"):
        assert torch.equal(adapted.state("a")[key], given[key])
    other = load(family("llama"))
    other.add("a", methods.find("vera")(rank=6, projection_key=4))
    assert not torch.equal(other.state("a")["base_model.vera_A"], given["base_model.vera_A"])


def test_vera_takes_the_matrices_of_the_file_before_those_of_the_key(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    theirs = peft.get_peft_model(open_model(family("llama")), their_config("vera", "all-linear", "llama"))
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.vera_A": torch.ones_like(tensors["base_model.vera_A"])}, path)
    adapted = load(family("llama"))
    adapted.load("a", tmp_path)
    assert all(bool((site.shared["a"]["A"] == 1).all()) for site in adapted.layers.values())
    # All layers hold the same two matrices, not one pair each.
    assert len({site.shared["a"]["A"].data_ptr() for site in adapted.layers.values()}) == 1


def test_adalora_is_its_formula() -> None:
    method = methods.find("adalora")(init_rank=4, target_rank=2, alpha=6)
    weight, x = draw(8, 5), draw(3, 5)
    tensors = {"A": draw(4, 5), "E": draw(4, 1), "B": draw(8, 4)}
    expected = 6 / (4 + 1e-5) * tensors["B"] @ torch.diag(tensors["E"][:, 0]) @ tensors["A"]
    assert torch.allclose(method.gain(x, tensors, False), x @ expected.T, atol=1e-5)
    assert torch.allclose(method.merged(weight, tensors, 0.5), weight + 0.5 * expected, atol=1e-5)
    norms = [
        (tensors["A"] @ tensors["A"].T - torch.eye(4)).norm(),
        (tensors["B"].T @ tensors["B"] - torch.eye(4)).norm(),
    ]
    assert torch.allclose(method.penalty([tensors]), 0.1 * sum(norms) / 2)
    assert methods.find("adalora")(orthogonality=0).penalty([tensors]) is None


# --- AdaLoRA's course -------------------------------------------------------------------------------------------------


def ada(**more: Any) -> Any:
    knobs = {
        "init_rank": 4,
        "target_rank": 2,
        "alpha": 8,
        "warm_up": 0.2,
        "final": 0.3,
        "interval": 2,
        "orthogonality": 0.5,
    }
    return methods.find("adalora")(**knobs | more)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ranks_move_as_in_peft(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """The same start, the same gradients: after every step the same triplets are out, and the files are the same."""
    steps = 10
    config = their_config(
        "adalora", "all-linear", name, init_r=4, target_r=2, lora_alpha=8, tinit=2, tfinal=3, deltaT=2, total_step=steps,
        init_lora_weights=True,
    )  # fmt: skip
    theirs = peft.get_peft_model(open_model(family(name)), config)
    adapted = load(family(name))
    adapted.add("a", ada())
    trained = adapted.start_training("a")
    given = {
        key.removeprefix("base_model.model.").replace(".default", ""): value for key, value in theirs.named_parameters()
    }
    ours = {f"{path[:-2]}.lora_{path[-1]}": value for path, value in trained.items()}
    assert ours.keys() <= given.keys()
    with torch.no_grad():
        for key, value in ours.items():
            value.copy_(given[key])
    first = torch.optim.Adam([value for value in theirs.parameters() if value.requires_grad], lr=1e-2)
    second = torch.optim.Adam(trained.values(), lr=1e-2)
    seen = set()
    for step in range(1, steps + 1):
        theirs(input_ids=ids(), labels=ids()).loss.backward()
        first.step()
        theirs.base_model.update_and_allocate(step)
        first.zero_grad()
        (adapted.model(input_ids=ids(), labels=ids()).loss + adapted.penalty("a")).backward()
        second.step()
        adapted.after_step("a", step, steps)
        second.zero_grad()
        for key, value in ours.items():
            assert torch.allclose(value, given[key], atol=1e-4), (step, key)
            if key.endswith("lora_E"):
                assert torch.equal(value == 0, given[key] == 0), (step, key)
        seen.add(sum(int((value == 0).sum()) for key, value in ours.items() if key.endswith("lora_E")))
    assert len(seen) > 2  # they went by and by
    theirs.save_pretrained(tmp_path / "theirs")
    adapted.save("a", tmp_path / "ours", base="b", about={})
    patterns = [
        json.loads((tmp_path / who / "adapter_config.json").read_text())["rank_pattern"] for who in ("theirs", "ours")
    ]
    assert patterns[0] == patterns[1]
    assert {len(kept) for kept in patterns[0].values()} == {4} and not all(all(kept) for kept in patterns[0].values())
    files = [load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours")]
    assert {key: value.shape for key, value in files[0].items()} == {
        key: value.shape for key, value in files[1].items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_pruned_ranks_go_both_ways(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    adapted = load(family(name))
    adapted.add("a", ada())
    train(adapted, 10, rate=1.0)
    ranks = {path: int(table["kept"].sum()) for path, table in adapted._tables("a").items()}
    assert sum(ranks.values()) == 2 * len(ranks)
    assert len(set(ranks.values())) > 1
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base="b", about={})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for path, rank in ranks.items():
        assert tensors[f"base_model.model.{path}.lora_E"].shape == (rank, 1)
        assert tensors[f"base_model.model.{path}.lora_B"].shape[1] == rank
    theirs = peft.PeftModel.from_pretrained(open_model(family(name)), tmp_path)
    assert torch.allclose(logits(theirs), expected, atol=1e-5)
    other = load(family(name))
    other.load("b", tmp_path)
    with other.using(Weights("b")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-5)
    other.save("b", tmp_path / "again", base="b", about={})
    theirs = peft.PeftModel.from_pretrained(open_model(family(name)), tmp_path / "again")
    assert torch.allclose(logits(theirs), expected, atol=1e-5)


def test_what_is_saved_between_two_choices_is_what_was_trained(family: Callable[[str], Path], tmp_path: Path) -> None:
    """A triplet that was put out may come back until the next choice; the file must not forget it."""
    adapted = load(family("llama"))
    adapted.add("a", ada(interval=4))
    train(adapted, 20, last=9, rate=1.0)
    tables = adapted._tables("a")
    assert any(bool(((table["E"][:, 0] != 0) & ~table["kept"]).any()) for table in tables.values())
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base="b", about={})
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    pattern = json.loads((tmp_path / "adapter_config.json").read_text()).get("rank_pattern", {})
    for path, table in tables.items():
        there = int((table["kept"] | (table["E"][:, 0] != 0)).sum())
        assert len(tensors[f"base_model.model.{path}.lora_A"]) == there
        assert sum(pattern.get(f"{path}.lora_E", [True] * 4)) == there
    other = load(family("llama"))
    other.load("b", tmp_path)
    with other.using(Weights("b")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-5)


def test_a_checkpoint_holds_the_statistics(family: Callable[[str], Path], tmp_path: Path) -> None:
    """Trained and frozen tensors together are all that is needed to go on exactly where it was."""
    whole = load(family("llama"))
    whole.add("a", ada())
    train(whole, 20, rate=1.0)
    first = load(family("llama"))
    first.add("a", ada())
    train(first, 20, last=7, rate=1.0)
    assert not {key for key in first.state("a") if not key.rsplit(".", 1)[-1].startswith("lora_")}
    save_file(
        {key: value.detach().contiguous() for key, value in (first._trained("a") | first.frozen("a")).items()},
        tmp_path / "x",
    )
    second = load(family("llama"))
    second.add("a", ada(), seed=5)
    kept = load_file(tmp_path / "x")
    with torch.no_grad():
        for key, value in (second._trained("a") | second.frozen("a")).items():
            value.copy_(kept[key])
    train(second, 20, first=8, rate=1.0)
    for key, value in (whole._trained("a") | whole.frozen("a")).items():
        assert torch.equal(value, (second._trained("a") | second.frozen("a"))[key]), key
    assert not any(value.requires_grad for value in first.frozen("a").values())


@pytest.mark.parametrize(
    ("more", "steps"),
    [({"target_rank": 4}, 10), ({"warm_up": 0.0, "final": 0.0, "interval": 1}, 7), ({}, 1), ({"final": 0.0}, 3)],
)
def test_the_course_ends_at_its_target(family: Callable[[str], Path], more: dict, steps: int) -> None:
    """Whatever the shares are, also when nothing is to go, or there is a single step."""
    adapted = load(family("llama"))
    adapted.add("a", ada(**more))
    train(adapted, steps, rate=1.0)
    tables = adapted._tables("a")
    target = ada(**more).target_rank
    assert sum(int(table["kept"].sum()) for table in tables.values()) == target * len(tables)


def test_nothing_goes_before_its_time_and_everything_is_fixed_after_it(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", ada(interval=1))
    counts, kept = [], []
    for step in range(1, 11):
        train(adapted, 10, first=step, last=step, rate=1.0)
        tables = adapted._tables("a")
        counts.append(sum(int(table["kept"].sum()) for table in tables.values()))
        kept.append(torch.cat([table["kept"].clone() for table in tables.values()]))
        if step > 7:
            assert all(bool((table["E"][:, 0] == 0)[~table["kept"]].all()) for table in tables.values())
    everything = 4 * len(adapted._tables("a"))
    assert counts[:2] == [everything] * 2
    assert counts == sorted(counts, reverse=True) and counts[2] < everything
    assert counts[6:] == [everything // 2] * 4
    assert torch.equal(kept[6], kept[9])


def test_equal_scores_do_not_put_everything_out(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", ada())
    adapted.start_training("a")
    for step in range(1, 11):  # no gradient was ever there: all scores are zero
        adapted.after_step("a", step, 10)
    tables = adapted._tables("a")
    assert sum(int(table["kept"].sum()) for table in tables.values()) == 2 * len(tables)


def test_a_step_without_finite_gradients_does_not_spoil_the_statistics(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", ada())
    trained = adapted.start_training("a")
    for value in trained.values():
        value.grad = torch.full_like(value, float("nan"))
    adapted.after_step("a", 1, 10)
    assert all(bool(torch.isfinite(value).all()) for value in adapted.frozen("a").values())


@pytest.mark.parametrize(
    ("knobs", "field"),
    [
        ({"init_rank": 2, "target_rank": 3}, "method.target_rank"),
        ({"warm_up": 0.6, "final": 0.4}, "method.final"),
        ({"init_rank": 17, "target_rank": 2}, "method.init_rank"),
    ],
)
def test_wrong_courses_are_refused(family: Callable[[str], Path], knobs: dict, field: str) -> None:
    with pytest.raises(Problem) as caught:
        load(family("llama")).add("a", methods.find("adalora")(**knobs))
    assert [part.field for part in caught.value.parts] == [field]
    assert "{" not in str(caught.value)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["dora", "vera", "adalora"])
def test_a_few_steps_reduce_the_loss(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    trained = adapted.start_training("a")
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2 * methods.find(kind).learning_rate_factor)
    losses = []
    for step in range(1, 31):
        loss = adapted.model(input_ids=ids(), labels=ids()).loss
        losses.append(float(loss.detach()))
        penalty = adapted.penalty("a")
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        adapted.after_step("a", step, 30)
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.5
