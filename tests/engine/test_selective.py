"""Methods that train some of the model's own parameters: which ones, on every family, and what happens to shared ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ground import ENCODERS, FAMILIES, MORE, SEQ2SEQ
from safetensors.torch import load_file
from test_adapt import fill, load, logits, train_a_step
from test_scaling_and_adapters import FRESH, ask, plain, task_type

from core import fit, methods, presets
from core.engine.adapt import Adapted, Weights
from core.fit import count_trainable
from core.model import describe
from core.problem import Problem

ALL = (*FAMILIES, *MORE, *ENCODERS, *SEQ2SEQ)
WITHOUT_BIASES = ("llama", "qwen3", "mistral", "gemma3_text", "phi3", "mixtral")
TIED = ("gpt2", "opt")


# --- norms and PEFT ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_our_norms_in_peft(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    adapted = Adapted(plain(family(name), name))
    base = ask(adapted.model, name)
    adapted.add("a", methods.find("ln_tuning")(), heads=FRESH.get(name, []))
    fill(adapted, "a")
    expected = ask(adapted.model, name)
    adapted.save("a", tmp_path, base="some/base", about={}, task_type=task_type(name))
    theirs = peft.PeftModel.from_pretrained(plain(family(name), name), tmp_path)
    assert torch.allclose(ask(theirs, name), expected, atol=1e-5)
    assert not torch.allclose(base, expected, atol=1e-3)
    saved, shapes = peft.get_peft_model_state_dict(theirs), load_file(tmp_path / "adapter_model.safetensors")
    assert {key: value.shape for key, value in saved.items()} == {key: value.shape for key, value in shapes.items()}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() <= peft.LNTuningConfig().to_dict().keys()
    assert config["modules_to_save"] == (sorted(FRESH[name]) if name in FRESH else None)
    # And back here, where half of it is half of it.
    other = Adapted(plain(family(name), name))
    other.load("a", tmp_path)
    with other.using(Weights("a")) as model:
        assert torch.allclose(ask(model, name), expected, atol=1e-5)
    assert torch.equal(ask(other.model, name), base)


#: PEFT knows norms of its own accord only in some families.
NAMED = {
    "llama": None,
    "gpt2": None,
    "gemma3_text": ["input_layernorm", "q_norm"],
    "qwen3": ["q_norm", "k_norm", "norm"],
    "gpt_neox": r".*\.1\..*layernorm",
    "opt": ["model.decoder.layers.1.final_layer_norm"],
    "bert": ["LayerNorm"],
    "t5": None,
}


@pytest.mark.parametrize("name", NAMED)
def test_norms_of_peft_in_ours(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    peft = pytest.importorskip("peft")
    more = {"exclude_modules": ["model.layers.0.input_layernorm"]} if name == "gemma3_text" else {}
    config = peft.LNTuningConfig(target_modules=NAMED[name], **more)
    theirs = peft.get_peft_model(plain(family(name), name), config).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, value in theirs.named_parameters():
            if "ln_tuning_layers" in key:
                value.add_(torch.randn(value.shape, generator=generator) * 0.2)
    expected = ask(theirs, name)
    theirs.save_pretrained(tmp_path)
    adapted = Adapted(plain(family(name), name))
    base = ask(adapted.model, name)
    adapted.load("a", tmp_path)
    for merged in (False, True):
        with adapted.using(Weights("a", merged=merged)) as model:
            assert torch.allclose(ask(model, name), expected, atol=1e-5)
    assert not torch.allclose(expected, base, atol=1e-3)
    # Saved again, it is theirs again.
    adapted.save("a", tmp_path / "again", base="b", about={}, task_type="FEATURE_EXTRACTION")
    again = peft.PeftModel.from_pretrained(plain(family(name), name), tmp_path / "again")
    assert torch.allclose(ask(again, name), expected, atol=1e-5)
    assert peft.get_peft_model_state_dict(again).keys() == peft.get_peft_model_state_dict(theirs).keys()


def test_a_norm_that_is_missing_in_the_file_is_told(family: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    adapted = load(family("llama"))
    adapted.add("a", methods.find("ln_tuning")())
    adapted.save("a", tmp_path, base="b", about={})
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.norm.ln_tuning_layers.weight"]
    save_file(tensors, path)
    with pytest.raises(Problem, match="lacks 1"):
        load(family("llama")).load("a", tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_every_norm_is_found_and_nothing_else(family: Callable[[str], Path], name: str) -> None:
    model = plain(family(name), name)
    norms = {
        f"{path}.{key}"
        for path, module in model.named_modules()
        if "norm" in type(module).__name__.lower()
        for key, _ in module.named_parameters(recurse=False)
    }
    adapted = Adapted(model)
    adapted.add("a", methods.find("ln_tuning")())
    assert set(adapted.start_training("a")) == norms


# --- biases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ALL if name not in (*WITHOUT_BIASES, *SEQ2SEQ)])
def test_every_bias_is_trained_and_nothing_else(family: Callable[[str], Path], name: str) -> None:
    adapted = Adapted(plain(family(name), name))
    adapted.add("a", methods.find("bitfit")())
    modules = dict(adapted.model.named_modules())
    biases = {
        f"{path}.bias"
        for path, module in modules.items()
        if isinstance(getattr(module, "bias", None), torch.nn.Parameter)
    }
    assert set(adapted.start_training("a")) == biases


@pytest.mark.parametrize("name", [*WITHOUT_BIASES, *SEQ2SEQ])
def test_a_model_without_biases_is_refused(family: Callable[[str], Path], name: str) -> None:
    adapted = Adapted(plain(family(name), name))
    facts, method = describe(family(name)), methods.find("bitfit")()
    for refuse in (lambda: adapted.add("a", method), lambda: count_trainable(method, facts)):
        with pytest.raises(Problem, match="trains nothing") as caught:
            refuse()
        assert caught.value.field == "method.name"
        assert "weight" in str(caught.value)  # what there is
        assert "no biases" in str(caught.value)
    assert not adapted.adapters


def test_the_window_shows_it_before_anything_starts(family: Callable[[str], Path]) -> None:
    for task in ("chat", "classification"):
        changes = {"method": {"name": "bitfit"}, "model": {"name": str(family("llama"))}}
        config = presets.resolve(task, "tiny", changes).config
        with pytest.raises(Problem, match="no biases"):
            fit.estimate(config)


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "knobs"), [("head", {}), ("freeze", {"layers": 0}), ("freeze", {"layers": 1, "head": True})]
)
@pytest.mark.parametrize("name", TIED)
def test_a_shared_head_is_trained_alone(
    family: Callable[[str], Path], tmp_path: Path, name: str, kind: str, knobs: dict
) -> None:
    """Head and embedding are one weight; trained as it stands, what the model reads would change with what it says."""
    method = methods.find(kind)(**knobs)
    adapted = load(family(name))
    head, embedding = adapted.model.get_output_embeddings(), adapted.model.get_input_embeddings()
    assert head.weight is embedding.weight
    base = logits(adapted.model)
    adapted.add("a", method)
    assert torch.equal(logits(adapted.model), base)
    before = embedding.weight.detach().clone()
    trained = train_a_step(adapted, "a")
    assert "lm_head.weight" in trained
    assert torch.equal(embedding.weight, before)
    assert not torch.equal(head.weight, before)
    assert count_trainable(method, describe(family(name))) == sum(value.numel() for value in trained.values())
    # Saved and loaded onto a base whose head is still shared.
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base="b", about={})
    other = load(family(name))
    other.load("a", tmp_path)
    with other.using(Weights("a")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-5)
        assert torch.equal(model.get_input_embeddings().weight, before)
    assert torch.equal(logits(other.model), base)
    # Merged and written out, it is no longer shared.
    for path, weight in other.merged_weights("a").items():
        other.parameters[path].data = weight
    other.unwrap()
    other.model.save_pretrained(tmp_path / "merged")
    again = plain(tmp_path / "merged", name)
    assert torch.allclose(logits(again), expected, atol=1e-5)


def test_a_shared_head_stays_shared_where_both_are_trained(family: Callable[[str], Path]) -> None:
    adapted = load(family("gpt2"))
    adapted.add("a", methods.find("full")())
    assert adapted.model.get_output_embeddings().weight is adapted.model.get_input_embeddings().weight
    assert "lm_head.weight" not in adapted.start_training("a")


@pytest.mark.parametrize(("name", "head"), [("llama", "lm_head"), ("gpt_neox", "embed_out"), ("t5", "lm_head")])
def test_a_head_of_its_own_is_all_that_is_trained(family: Callable[[str], Path], name: str, head: str) -> None:
    adapted = Adapted(plain(family(name), name))
    own = {path for path in adapted.parameters if path.startswith(head)}
    adapted.add("a", methods.find("head")())
    assert set(adapted.start_training("a")) == (own or {"lm_head.weight"})
    assert count_trainable(methods.find("head")(), describe(family(name))) > 0


@pytest.mark.parametrize("name", ENCODERS)
def test_a_classifier_is_all_that_is_trained(family: Callable[[str], Path], name: str) -> None:
    adapted = Adapted(plain(family(name), name))
    adapted.add("a", methods.find("head")(), heads=FRESH.get(name, []))
    trained = set(adapted.start_training("a"))
    assert {path.split(".")[0] for path in trained if "pooler" not in path} <= {"classifier", "pre_classifier"}
    assert {"classifier.weight", "classifier.out_proj.weight"} & trained
    config = presets.resolve(
        "classification", "tiny", {"method": {"name": "head"}, "model": {"name": str(family(name))}}
    ).config
    assert fit.estimate(config).trainable is None  # its size is known when the labels are


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bitfit", "ln_tuning", "head"])
def test_half_the_strength_lies_half_way(family: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    adapted = load(family("gpt_neox"))
    start = {path: value.detach().clone() for path, value in adapted.parameters.items()}
    adapted.add("a", methods.find(kind)())
    end = {path: value.detach().clone() for path, value in fill(adapted, "a").items()}
    adapted.save("a", tmp_path, base="b", about={})
    other = load(family("gpt_neox"))
    other.load("a", tmp_path)
    for strength in (0.0, 0.5, 1.0, 2.0):
        with other.using(Weights("a", strength)):
            for path, value in end.items():
                assert torch.allclose(other.parameters[path], start[path] + strength * (value - start[path]), atol=1e-6)
    assert all(torch.equal(other.parameters[path], value) for path, value in start.items())


def test_norms_that_are_not_there_are_refused(family: Callable[[str], Path]) -> None:
    with pytest.raises(Problem, match=r"trains nothing.*input_layernorm") as caught:
        load(family("llama")).add("a", methods.find("ln_tuning")(norms=["ln_1"]))
    assert caught.value.field == "method.name"
