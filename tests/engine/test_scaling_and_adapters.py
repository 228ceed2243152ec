"""IA3 goes both ways between us and PEFT; bottleneck adapters compute their formula in the layout of LLM-Adapters; and no
layer method makes the old mistakes: a thin matrix added to a weight, a lost base, a base that is trained as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import ENCODERS, FAMILIES, MORE, SEQ2SEQ, open_model
from safetensors.torch import load_file, save_file
from test_adapt import LAYERS, MERGING, fill, ids, load, logits, train_a_step, walk
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from core import methods
from core.config import TrainSettings
from core.engine.adapt import Adapted, Weights
from core.engine.layers import AdaptedLinear
from core.engine.optim import create_optimizer
from core.fit import count_trainable
from core.model import describe
from core.problem import Problem

ALL = (*FAMILIES, *MORE, *ENCODERS, *SEQ2SEQ)
#: What a classifier begins afresh.
FRESH = {"bert": ["classifier"], "roberta": ["classifier"], "distilbert": ["pre_classifier", "classifier"]}
BOTTLENECKS = ("adapter_h", "adapter_p", "parallel_adapter")


def plain(folder: Path, name: str) -> torch.nn.Module:
    """The model of a family under the head that it is used with, a fresh one always alike."""
    kinds = {
        **dict.fromkeys(ENCODERS, AutoModelForSequenceClassification),
        **dict.fromkeys(SEQ2SEQ, AutoModelForSeq2SeqLM),
    }
    torch.manual_seed(3)
    return open_model(folder, kinds.get(name))


def task_type(name: str) -> str:
    return "SEQ_CLS" if name in ENCODERS else "SEQ_2_SEQ_LM" if name in SEQ2SEQ else "CAUSAL_LM"


def ask(model: torch.nn.Module, name: str) -> torch.Tensor:
    more = {"decoder_input_ids": ids()} if name in SEQ2SEQ else {}
    with torch.no_grad():
        return model(input_ids=ids(), **more).logits


# --- IA3 and PEFT -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["key-value-mlp-out", "all-linear"])
@pytest.mark.parametrize("name", ALL)
def test_our_ia3_in_peft(family: Callable[[str], Path], tmp_path: Path, name: str, targets: str) -> None:
    peft = pytest.importorskip("peft")
    adapted = Adapted(plain(family(name), name))
    base = ask(adapted.model, name)
    # A pooler is a part of the head, which is trained whole.
    adapted.add("a", methods.find("ia3")(targets=targets, exclude=["pooler.dense"]), heads=FRESH.get(name, []))
    fill(adapted, "a")
    expected = ask(adapted.model, name)
    adapted.save("a", tmp_path, base="some/base", about={}, task_type=task_type(name))
    theirs = peft.PeftModel.from_pretrained(plain(family(name), name), tmp_path)
    assert torch.allclose(ask(theirs, name), expected, atol=1e-5)
    assert not torch.allclose(base, expected, atol=1e-3)
    saved, shapes = peft.get_peft_model_state_dict(theirs), load_file(tmp_path / "adapter_model.safetensors")
    assert {key: value.shape for key, value in saved.items()} == {key: value.shape for key, value in shapes.items()}
    known = peft.IA3Config().to_dict().keys()
    assert json.loads((tmp_path / "adapter_config.json").read_text()).keys() <= known


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("mixtral", "phi3", "distilbert")])
def test_ia3_of_peft_in_ours(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    """PEFT's own choice of layers; BERT's output.dense among them, which is the attention's too."""
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(plain(family(name), name), peft.IA3Config(init_ia3_weights=False)).eval()
    expected = ask(theirs, name)
    theirs.save_pretrained(tmp_path)
    adapted = Adapted(plain(family(name), name))
    base = ask(adapted.model, name)
    adapted.load("a", tmp_path)
    with adapted.using(Weights("a")) as model:
        assert torch.allclose(ask(model, name), expected, atol=1e-5)
    with adapted.using(Weights("a", merged=True)) as model:
        assert torch.allclose(ask(model, name), expected, atol=2e-4)
    assert torch.equal(ask(adapted.model, name), base)
    # The same choice, made here.
    fresh = Adapted(plain(family(name), name))
    fresh.add("a", methods.find("ia3")(targets="peft-default"))
    sizes = {key: value.shape for key, value in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert {key: value.shape for key, value in fresh.state("a").items()} == sizes


def test_ia3_saved_with_names_that_peft_takes_for_others(family: Callable[[str], Path], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(
        target_modules=r".*layer\.1\..*dense", feedforward_modules=["put.dense"], init_ia3_weights=False
    )
    theirs = peft.get_peft_model(plain(family("bert"), "bert"), config).eval()
    expected = ask(theirs, "bert")
    theirs.save_pretrained(tmp_path)
    adapted = Adapted(plain(family("bert"), "bert"))
    adapted.load("a", tmp_path)
    with adapted.using(Weights("a")) as model:
        assert torch.allclose(ask(model, "bert"), expected, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_ia3_scales_where_its_authors_do(family: Callable[[str], Path], name: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find("ia3")())
    sizes = {
        path.rsplit(".", 1)[-1]: tuple(value.shape)
        for path, site in adapted.layers.items()
        for value in site.tensors("a").values()
    }
    wanted = {
        "llama": {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)},
        "qwen3": {"k_proj": (16, 1), "v_proj": (16, 1), "down_proj": (1, 64)},
        "gpt2": {"c_attn": (96, 1), "c_proj": (1, 128)},
        "gpt_neox": {"query_key_value": (96, 1), "dense_4h_to_h": (1, 64)},
        "opt": {"k_proj": (32, 1), "v_proj": (32, 1), "fc2": (1, 64)},
    }
    assert sizes == wanted[name]


def test_ia3_at_the_input_of_what_is_named(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("ia3")(targets=["q_proj", "v_proj"], feedforward=["q_proj"]))
    layer = next(site for path, site in adapted.layers.items() if path.endswith("q_proj"))
    fill(adapted, "a")
    x, scale = torch.randn(4, 32), layer.tensors("a")["l"][0]
    assert torch.allclose(layer(x), (x * scale) @ layer.weight().T, atol=1e-5)


def test_ia3_is_no_thin_product(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("ia3")())
    with pytest.raises(Problem, match="plain LoRA"):
        adapted.low_rank("a")


def test_a_merged_bias_is_scaled_with_its_layer(family: Callable[[str], Path]) -> None:
    adapted = load(family("opt"))
    adapted.add("a", methods.find("ia3")())
    fill(adapted, "a")
    merged = adapted.merged_weights("a", 0.5)
    path = next(path for path in adapted.layers if path.endswith("k_proj"))
    scale = 1 + 0.5 * (adapted.layers[path].tensors("a")["l"].flatten() - 1)
    assert torch.allclose(merged[f"{path}.bias"], adapted.parameters[f"{path}.bias"] * scale)
    assert f"{path.replace('self_attn.k_proj', 'fc2')}.bias" not in merged


def test_what_begins_at_one_does_not_decay_to_zero(family: Callable[[str], Path]) -> None:
    for kind, decays in (("ia3", False), ("lora", True)):
        adapted = load(family("llama"))
        adapted.add("a", methods.find(kind)())
        trained = adapted.start_training("a")
        groups = create_optimizer(trained, TrainSettings(weight_decay=0.1)).param_groups
        assert {group["weight_decay"] for group in groups} == {0.1 if decays else 0.0}


# --- bottleneck adapters ----------------------------------------------------------------------------------------------


def by_formula(model: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The adapters of a folder put on a plain model, written down anew from LLM-Adapters' description."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in [key for key in tensors if key.endswith(".adapter_down.weight")]:
        path = key.removeprefix("base_model.model.").removesuffix(".adapter_down.weight")
        down, up, act = tensors[key], tensors[key.replace("_down", "_up")], ACT2FN[config["non_linearity"]]

        def f(h: torch.Tensor, down=down, up=up, act=act) -> torch.Tensor:
            return act(h @ down.T) @ up.T * config["scaling"]

        layer, name = model.get_submodule(path), path.rsplit(".", 1)[-1]
        if config.get("use_parallel_adapter"):
            layer.register_forward_hook(lambda _, x, y, f=f: y + f(x[0]))
        elif name in ("gate_proj", "up_proj", "fc1", "dense_h_to_4h", "c_fc") and not config.get("use_adapterp"):
            layer.register_forward_pre_hook(lambda _, x, f=f: (x[0] + f(x[0]),))
        else:
            layer.register_forward_hook(lambda _, x, y, f=f: y + f(y))
    return model


@pytest.mark.parametrize(
    ("kind", "knobs"),
    [
        ("adapter_h", {}),
        ("adapter_h", {"placement": "mlp_input", "activation": "silu", "size": 7}),
        ("adapter_p", {"activation": "tanh", "scaling": 0.5}),
        ("parallel_adapter", {"scaling": 4.0, "activation": "gelu"}),
        ("parallel_adapter", {"targets": "all-linear"}),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_compute_their_formula(
    family: Callable[[str], Path], tmp_path: Path, name: str, kind: str, knobs: dict[str, Any]
) -> None:
    method = methods.find(kind)(**knobs)
    adapted = load(family(name))
    adapted.add("a", method)
    fill(adapted, "a")
    expected = logits(adapted.model)
    adapted.save("a", tmp_path, base="some/base", about={})
    theirs = by_formula(plain(family(name), name), tmp_path)
    assert torch.allclose(logits(theirs), expected, atol=1e-5)
    trained = sum(value.numel() for value in adapted.start_training("a").values())
    assert count_trainable(method, describe(family(name))) == trained
    # And back, from the folder alone.
    other = load(family(name))
    base = logits(other.model)
    other.load("b", tmp_path)
    read = other.methods["b"]
    assert read.name == kind
    assert {key: value for key, value in read if key != "targets"} == {
        key: value for key, value in method if key != "targets"
    }
    with other.using(Weights("b")) as model:
        assert torch.allclose(logits(model), expected, atol=1e-5)
    with other.using(Weights("b", 0.0)) as model:
        assert torch.equal(logits(model), base)


FORKS = {
    "adapter_h": (["gate_proj", "up_proj", "down_proj"], {}),
    "adapter_p": (["down_proj"], {"use_adapterp": True}),
    "parallel_adapter": (["q_proj", "k_proj", "v_proj"], {"use_parallel_adapter": True}),
}


@pytest.mark.parametrize("kind", FORKS)
def test_a_folder_as_llm_adapters_writes_it(family: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    targets, switch = FORKS[kind]
    config = {
        "base_model_name_or_path": "a/base", "bias": "none", "bottleneck_size": 6, "inference_mode": True,
        "init_weights": "bert", "modules_to_save": None, "non_linearity": "tanh", "adapter_dropout": 0.0,
        "peft_type": "BOTTLENECK", "scaling": 1.0, "target_modules": targets, "task_type": "CAUSAL_LM",
        "use_parallel_adapter": False,
    } | switch  # fmt: skip
    tensors = {}
    sizes = {
        "gate_proj": (32, 32),
        "up_proj": (32, 32),
        "down_proj": (32, 32),
        "q_proj": (32, 32),
        "k_proj": (32, 16),
        "v_proj": (32, 16),
    }
    for block in range(3):
        for name in targets:
            place = "self_attn" if name in ("q_proj", "k_proj", "v_proj") else "mlp"
            key = f"base_model.model.model.layers.{block}.{place}.{name}."
            inn, out = sizes[name]
            tensors[key + "adapter_down.weight"] = torch.randn(6, inn) * 0.3
            tensors[key + "adapter_up.weight"] = torch.randn(out, 6) * 0.3
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapted = load(family("llama"))
    adapted.load("a", tmp_path)
    assert adapted.methods["a"].name == kind
    with adapted.using(Weights("a")) as model:
        ours = logits(model)
    assert torch.allclose(logits(by_formula(plain(family("llama"), "llama"), tmp_path)), ours, atol=1e-5)
    # The tensors under the fork's keys, and its switches, come out again as they went in.
    adapted.save("a", tmp_path / "again", base="a/base", about={})
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    saved = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {key: saved[key] for key in config if key != "init_weights"} | {"target_modules": sorted(targets)} == {
        key: value for key, value in config.items() if key != "init_weights"
    } | {"target_modules": sorted(targets)}


def test_a_learned_scaling_is_refused(family: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("adapter_p")())
    adapted.save("a", tmp_path, base="b", about={})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling": "learned"}))
    with pytest.raises(Problem, match="does not compute"):
        load(family("llama")).load("a", tmp_path)


@pytest.mark.parametrize("kind", ["adapter_h", "adapter_p"])
def test_a_model_without_the_layers_is_refused(family: Callable[[str], Path], kind: str) -> None:
    """Fused experts are no layer that an adapter could stand behind; half of the places would be another method."""
    adapted = load(family("mixtral"))
    with pytest.raises(Problem, match=r"mlp-out.*o_proj") as caught:
        adapted.add("a", methods.find(kind)())
    assert caught.value.field == "method.targets"
    assert not adapted.layers


@pytest.mark.parametrize("kind", [*BOTTLENECKS, "ia3"])
def test_an_embedding_is_refused(family: Callable[[str], Path], kind: str) -> None:
    adapted = load(family("llama"))
    with pytest.raises(Problem, match="embedding"):
        adapted.add("a", methods.find(kind)(targets=["embed_tokens"]))
    assert not adapted.layers


@pytest.mark.parametrize("kind", BOTTLENECKS)
@pytest.mark.parametrize("name", [*ENCODERS, *SEQ2SEQ])
def test_adapters_on_encoders_and_both(family: Callable[[str], Path], tmp_path: Path, name: str, kind: str) -> None:
    adapted = Adapted(plain(family(name), name))
    base = ask(adapted.model, name)
    adapted.add("a", methods.find(kind)())
    adapted.start_training("a")
    assert torch.equal(ask(adapted.model, name), base)
    fill(adapted, "a")
    expected = ask(adapted.model, name)
    adapted.save("a", tmp_path, base="b", about={})
    assert torch.allclose(ask(by_formula(plain(family(name), name), tmp_path), name), expected, atol=1e-4)
    assert not torch.allclose(base, expected, atol=1e-4)


def test_houlsby_stands_behind_attention_and_mlp(family: Callable[[str], Path]) -> None:
    for name, places in {
        "llama": {"self_attn.o_proj", "mlp.down_proj"},
        "gpt2": {"attn.c_proj", "mlp.c_proj"},
        "bert": {"output.dense"},
        "distilbert": {"attention.out_lin", "ffn.lin2"},
    }.items():
        adapted = Adapted(plain(family(name), name))
        adapted.add("a", methods.find("adapter_h")())
        assert {".".join(path.split(".")[-2:]) for path in adapted.layers} == places
        assert len(adapted.layers) == 6


def test_blocks_and_exclusions_hold_for_placements(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("adapter_h")(blocks="1-2", exclude=["model.layers.2.mlp.down_proj"]))
    assert sorted(adapted.layers) == [
        "model.layers.1.mlp.down_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.2.self_attn.o_proj",
    ]


# --- the mistakes that must not come back -----------------------------------------------------------------------------


def _thin(kind: str, width: int) -> methods.LayerMethod:
    """A method whose thin matrix has as many rows as it takes to fit onto a weight by mistake."""
    fields = methods.find(kind).model_fields
    return methods.find(kind)(**{name: width for name in ("rank", "size") if name in fields})


@pytest.mark.parametrize("width", [1, 16])
@walk(LAYERS)
def test_no_thin_matrix_is_added_to_a_weight(family: Callable[[str], Path], name: str, kind: str, width: int) -> None:
    """A (rank, in) fits onto W (out, in) where the rank is 1, or out; it begins at random, and must not show alone."""
    adapted = load(family(name))
    adapted.add("a", _thin(kind, width))
    adapted.start_training("a")
    for site in adapted.layers.values():
        x = torch.randn(2, site.shape.inn)
        assert torch.equal(site(x), site.base(x))
        if kind in MERGING:
            assert torch.allclose(site.merged("a", 1.0), site.base.weight, atol=1e-6)


@walk(LAYERS)
def test_the_base_path_stays(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    fill(adapted, "a")
    for site in adapted.layers.values():
        assert isinstance(site, AdaptedLinear)
        x = torch.randn(2, site.shape.inn)
        applied, alone = site(x), site.base(x)
        site.strength = 0.0
        assert torch.allclose(site(x), alone, atol=1e-5)
        site.strength = 1.0
        with torch.no_grad():
            site.base.weight.mul_(2)
        assert not torch.allclose(site(x), applied, atol=1e-3)


@walk(LAYERS)
def test_the_weights_below_an_adapter_are_not_trained(family: Callable[[str], Path], name: str, kind: str) -> None:
    adapted = load(family(name))
    adapted.add("a", methods.find(kind)())
    before = {path: value.detach().clone() for path, value in adapted.parameters.items()}
    trained = train_a_step(adapted, "a")
    for site in adapted.layers.values():
        assert isinstance(site.base, torch.nn.Linear | Conv1D)
        assert not any(parameter.requires_grad for parameter in site.base.parameters())
    assert not {id(value) for value in trained.values()} & {id(value) for value in adapted.parameters.values()}
    assert all(torch.equal(value, before[path]) for path, value in adapted.parameters.items())
