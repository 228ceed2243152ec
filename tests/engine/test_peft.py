"""Adapters go both ways between us and PEFT with equal logits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ground import FAMILIES, open_model
from test_adapt import fill, load, logits

from core import methods
from core.engine.adapt import Adapted, Weights
from core.problem import Problem

peft = pytest.importorskip("peft")

KNOBS = [
    {},
    {"rank": 4, "alpha": 3, "scaling": "rslora", "init": "gaussian"},
    {"targets": "attention"},
    {"targets": r".*1.*(q_proj|c_attn|query_key_value)"},
]


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ours_in_peft(family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find("lora")(**knobs))
    fill(adapted, "a")
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base=str(family(name)), about={})
    theirs = peft.PeftModel.from_pretrained(open_model(family(name)), tmp_path)
    assert torch.allclose(logits(theirs), expected, atol=1e-5)
    assert not torch.allclose(logits(open_model(family(name))), expected, atol=1e-4)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    known = peft.LoraConfig().to_dict().keys() | {"peft_type", "task_type"}
    assert saved.keys() <= known  # PEFT warns of keys that it does not know
    assert str(tmp_path) not in json.dumps(saved)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "c_attn", "query_key_value"]])
def test_theirs_in_ours(family: Callable[[str], Path], tmp_path: Path, name: str, targets: str | list[str]) -> None:
    config = peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=targets, init_lora_weights=False,
        fan_in_fan_out=name == "gpt2", task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(open_model(family(name)), config).eval()
    expected = logits(theirs)
    theirs.save_pretrained(tmp_path)
    adapted = load(family(name))
    adapted.load("a", tmp_path)
    with adapted.using(Weights("a")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-5)
    with adapted.using(Weights("a", merged=True)) as model:
        assert torch.allclose(logits(model), expected, atol=2e-4)


@pytest.mark.parametrize("more", [{"lora_bias": True}, {"layer_replication": [(0, 2), (1, 3)]}, {"bias": "all"}])
def test_what_we_do_not_compute_is_refused(family: Callable[[str], Path], tmp_path: Path, more: dict) -> None:
    # GPT-2, since PEFT adds a bias only to layers that have one.
    name, target = ("gpt2", "c_attn") if "lora_bias" in more else ("llama", "q_proj")
    config = peft.LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM", fan_in_fan_out=name == "gpt2", **more)
    peft.get_peft_model(open_model(family(name)), config).save_pretrained(tmp_path)
    adapted: Adapted = load(family(name))
    with pytest.raises(Problem, match=next(iter(more))):
        adapted.load("a", tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_that_change_the_base_are_refused(family: Callable[[str], Path], tmp_path: Path, init: str) -> None:
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=init)
    peft.get_peft_model(open_model(family("llama")), config).save_pretrained(tmp_path)
    with pytest.raises(Problem, match=init):
        load(family("llama")).load("a", tmp_path)


def test_key_names_and_shapes_are_those_of_peft(family: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("lora")(rank=4))
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model_state_dict(peft.get_peft_model(open_model(family("llama")), config))
    assert {key: value.shape for key, value in adapted.state("a").items()} == {k: v.shape for k, v in theirs.items()}
