"""A quantised base: frozen, the same in training and at use, and merged into a base that is named."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from core import fit, methods, objectives, runs
from core.config import Config, ModelSettings
from core.engine import export as exports
from core.engine import loop, worker
from core.engine.adapt import Adapted, Weights
from core.engine.chat import Speaker
from core.engine.generate import GREEDY
from core.engine.model import load_model
from core.engine.quantization import Int8Linear, configure, count_parameters, dequantize, is_packed
from core.formats import Message
from core.problem import Problem
from core.runs import ExportConfig, Run

pytest.importorskip("bitsandbytes")

KINDS = ("nf4", "int8")
CPU = torch.device("cpu")
ASK = [Message("user", "what is 3")]


@pytest.fixture(scope="session")
def wide(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny model whose layers are at least as wide as a block of NF4."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    made: dict[str, Path] = {}

    def make(name: str, **more: int) -> Path:
        key = f"{name} {more}"
        if key in made:
            return made[key]
        folder = Path(shutil.copytree(family(name), tmp_path_factory.mktemp("wide") / name))
        sizes = {
            "gpt2": {"n_embd": 64, "n_layer": 2},
            "opt": {"hidden_size": 64, "word_embed_proj_dim": 64, "ffn_dim": 192, "num_hidden_layers": 2},
            "t5": {"d_model": 64, "d_kv": 16, "d_ff": 192, "num_layers": 2, "num_decoder_layers": 2},
        }.get(name, {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2})
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "head_dim", None):
            sizes["head_dim"] = 16
        config = type(config)(**config.to_dict() | sizes | more)
        torch.manual_seed(0)
        build = {"bert": AutoModel, "t5": AutoModelForSeq2SeqLM}.get(name, AutoModelForCausalLM)
        model = build.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.15)
        model.save_pretrained(folder)
        made[key] = folder
        return folder

    return make


def load(folder: Path, kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> Adapted:
    return Adapted(load_model(ModelSettings(name=str(folder), quantization=kind), CPU, dtype, **more)[0])  # type: ignore[arg-type]


def fingerprint(adapted: Adapted) -> str:
    """Of everything that the base consists of, scales included."""
    sha = hashlib.sha256()
    for path, parameter in adapted.parameters.items():
        sha.update(path.encode() + parameter.detach().view(-1).view(torch.uint8).numpy().tobytes())
        if (state := getattr(parameter, "quant_state", None)) is not None:
            for part in (state.absmax, state.state2.absmax, state.offset.view(-1)):
                sha.update(part.view(torch.uint8).numpy().tobytes())
    for layer in adapted.model.modules():
        if isinstance(layer, Int8Linear):
            sha.update(layer.scale.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def ids(adapted: Adapted) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(7, adapted.model.config.vocab_size, (2, 12), generator=generator)


def logits(adapted: Adapted, weights: Weights | None = None) -> torch.Tensor:
    with torch.no_grad(), adapted.using(weights or Weights()) as model:
        more = {"decoder_input_ids": ids(adapted)} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids(adapted), **more).logits.clone()


def fill(adapted: Adapted, name: str) -> None:
    """As if something had been learned."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for path in adapted.adapters[name].sites:
            for value in adapted.layers[path].tensors(name).values():
                if value.is_floating_point():
                    value.add_(torch.randn(value.shape, generator=generator) * 0.1)


# --- the base -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox", "t5"])
def test_the_base_computes_with_its_dequantised_weights(wide: Callable[..., Path], name: str, kind: str) -> None:
    """Each layer, and the whole model; near the original, and the head and the embeddings are the original."""
    task = objectives.find("seq2seq" if name == "t5" else "chat")
    packed, plain = (load(wide(name), one, objective=task) for one in (kind, "none"))
    layers = {path: layer for path, layer in packed.model.named_modules() if is_packed(layer)}
    # transformers keeps T5's `wo` in float32, because half precision overflows there.
    assert set(layers) == {path for path in plain.linear if not path.endswith(".wo")}
    assert set(packed.linear) == set(plain.linear)
    for path, layer in layers.items():
        x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
        weight = dequantize(layer)
        assert weight.shape == (layer.out_features, layer.in_features)
        assert torch.allclose(layer(x), F.linear(x, weight, layer.bias), atol=1e-5), path
    expected = logits(packed)
    for path, weight in exports.dequantized_weights(packed.model).items():
        original = plain.parameters[path].detach()
        error = (weight - original).norm() / original.norm()
        assert 1e-4 < error < {"nf4": 0.12, "int8": 0.012}[kind], (path, error)
        plain.parameters[path].data = weight
    assert torch.allclose(logits(plain), expected, atol=1e-4)
    for path in packed.named_only:
        assert torch.equal(packed.parameters.get(f"{path}.weight", torch.zeros(1)), plain.parameters.get(f"{path}.weight", torch.zeros(1)))  # fmt: skip
    assert count_parameters(packed.parameters.values()) == count_parameters(plain.parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_broken_blocks_stay_as_they_are(wide: Callable[..., Path], kind: str) -> None:
    """bitsandbytes unpacks NF4 wrongly on the CPU where a row is no whole number of blocks."""
    folder = wide("llama", intermediate_size=112)
    packed, plain = load(folder, kind), load(folder, "none")
    kept = {path for path, layer in packed.linear.items() if not is_packed(layer)}
    assert kept == {path for path in plain.linear if path.endswith("down_proj")}
    assert all(torch.equal(packed.parameters[f"{path}.weight"], plain.parameters[f"{path}.weight"]) for path in kept)
    with pytest.raises(Problem, match="No layer of this model can be compressed") as caught:
        load(wide("llama", hidden_size=96, head_dim=24, intermediate_size=112), kind)
    assert told(caught.value) == ["model.quantization"]


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_use_compute_the_same(wide: Callable[..., Path], kind: str) -> None:
    """An answer between two steps leaves the weights as they are packed, and a row does not hang on its neighbours."""
    adapted = load(wide("llama"), kind)
    before, first = fingerprint(adapted), logits(adapted)
    rows = ids(adapted)
    with torch.no_grad():
        alone = adapted.model(input_ids=rows[:1]).logits
        trained = adapted.model.train()(input_ids=rows).logits
    assert torch.allclose(alone, first[:1], atol=1e-5)
    assert torch.allclose(trained, first, atol=1e-6)
    assert fingerprint(adapted) == before
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in adapted.linear.values() if kind == "nf4")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_dequantised_layer(
    wide: Callable[..., Path], kind: str, dtype: torch.dtype
) -> None:
    layer = load(wide("opt"), kind, dtype).linear["model.decoder.layers.0.fc1"]
    x, twin = (
        torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_() for _ in "ab"
    )
    y = layer(x)
    assert y.dtype == dtype == dequantize(layer).dtype
    y.square().sum().backward()
    F.linear(twin, dequantize(layer), layer.bias).square().sum().backward()
    near = {"rtol": 3e-2, "atol": 0.1} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-3}
    assert torch.allclose(x.grad, twin.grad, **near)
    assert layer.weight.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_a_task_are_not_quantised(wide: Callable[..., Path], kind: str) -> None:
    task = type(objectives.find("classification"))(("good", "bad"))
    for name, heads in (("bert", {"classifier", "bert.pooler.dense"}), ("llama", {"score"})):
        model = load(wide(name), kind, objective=task).model
        plain = {path for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and not is_packed(layer)}
        assert plain == heads


# --- adapters on it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "method", [name for name, one in methods.catalogue().items() if issubclass(one, methods.LayerMethod)]
)
def test_layer_methods_on_a_quantised_base(
    wide: Callable[..., Path], tmp_path: Path, name: str, kind: str, method: str
) -> None:
    """Fresh it is the base; a step trains the adapter alone; saved and loaded it answers alike; merged it does too, at
    every strength; and then the base is back, bit for bit."""
    adapted = load(wide(name), kind)
    before, base = fingerprint(adapted), logits(adapted)
    adapted.add("one", methods.find(method)())
    assert torch.equal(logits(adapted, Weights("one")), base)
    trained = adapted.start_training("one")
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):
        adapted.model.train()(input_ids=ids(adapted), labels=ids(adapted)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.model.eval()
    assert not torch.equal(logits(adapted, Weights("one")), base)
    assert fingerprint(adapted) == before
    fill(adapted, "one")
    learned = logits(adapted, Weights("one"))
    assert (learned - base).abs().max() > 1e-3
    adapted.save("one", tmp_path / "saved", base="base", about={})
    other = load(wide(name), kind)
    other.load("two", tmp_path / "saved")
    assert torch.allclose(logits(other, Weights("two")), learned, atol=1e-5)
    if issubclass(methods.find(method), methods.WeightMethod):
        for strength in (0.0, 0.5, 1.0, 2.0):
            applied = logits(adapted, Weights("one", strength))
            merged = logits(adapted, Weights("one", strength, merged=True))
            assert torch.allclose(merged, applied, atol=2e-3 * max(1.0, float(applied.abs().max()))), strength
    assert torch.equal(logits(adapted), base)
    assert fingerprint(adapted) == before


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_peft_computes_the_same_on_the_same_base(wide: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """Ours on NF4 is PEFT's on NF4, and the file says how GPT-2's own layers lie."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = load(wide(name), "nf4")
    adapted.add("one", methods.find("lora")(rank=4))
    fill(adapted, "one")
    adapted.save("one", tmp_path, base="base", about={})
    assert json.loads((tmp_path / "adapter_config.json").read_text())["fan_in_fan_out"] == (name == "gpt2")
    config = configure("nf4", CPU, torch.float32, ["lm_head"])
    theirs = AutoModelForCausalLM.from_pretrained(wide(name), quantization_config=config, dtype=torch.float32)
    for layer in theirs.modules():
        layer.support_avx512bf16_for_cpu = False
    with torch.no_grad():
        expected = PeftModel.from_pretrained(theirs, tmp_path).eval()(input_ids=ids(adapted)).logits
    assert torch.allclose(logits(adapted, Weights("one")), expected, atol=1e-4)


def test_a_quantised_module_is_not_trained_whole(wide: Callable[..., Path]) -> None:
    adapted = load(wide("llama"), "nf4")
    with pytest.raises(Problem) as caught:
        adapted.add("one", methods.find("lora")(modules_to_save=["down_proj"], targets="attention"))
    assert caught.value.parts[0].field == "method.modules_to_save"
    adapted = load(wide("llama"), "nf4")
    adapted.add("one", methods.find("lora")(modules_to_save=["lm_head"]))
    assert "lm_head.weight" in adapted.start_training("one")


# --- what a user is told --------------------------------------------------------------------------------------------------


def settings(folder: Path, rows: Path, /, **groups: dict[str, Any]) -> Config:
    data: dict[str, Any] = {
        "model": {"name": str(folder), "quantization": "nf4"},
        "data": {"train": str(rows), "max_length": 64, "eval_fraction": 0.1},
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 4, "save_every": 3},
        "samples": {"max_new_tokens": 4},
    }
    return Config.read({key: data.get(key, {}) | groups.get(key, {}) if key != "method" else groups.get(key, data[key]) for key in data})  # fmt: skip


def told(problem: Problem) -> list[str | None]:
    return [part.field for part in problem.parts]


def test_what_cannot_be_quantised_is_told_beside_the_setting(
    wide: Callable[..., Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(wide("llama"), rows_file)
    assert fit.estimate(config).share == fit.estimate(settings(wide("llama"), rows_file, model={"quantization": "none"})).share  # fmt: skip
    for method in [name for name, one in methods.catalogue().items() if issubclass(one, methods.SelectiveMethod)]:
        with pytest.raises(Problem, match="trains the base weights") as caught:
            fit.estimate(settings(wide("llama"), rows_file, method={"name": method}))
        assert told(caught.value) == ["model.quantization"]
    with pytest.raises(Problem, match="on this device") as caught:
        configure("nf4", torch.device("meta"), torch.float32, [])
    assert told(caught.value) == ["model.quantization"]

    folder = Path(shutil.copytree(wide("llama"), tmp_path / "packed"))
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(data | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Problem, match="compressed already, as gptq") as caught:
        load(folder, "nf4")
    assert told(caught.value) == ["model.name"]

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for ask in (lambda: fit.check_model(config), lambda: load(wide("llama"), "nf4")):
        with pytest.raises(Problem, match=r'pip install "atelier-studio\[quantization\]"') as caught:
            ask()
        assert told(caught.value) == ["model.quantization"]


# --- whole runs -----------------------------------------------------------------------------------------------------------


def start(folder: Path, rows: Path, /, **groups: dict[str, Any]) -> Run:
    run = runs.create(settings(folder, rows, **groups))
    worker.work(run)
    return run


def adapter(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.folder / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_is_never_interrupted(
    home: Path, wide: Callable[..., Path], rows_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    groups = {"model": {"quantization": kind}, "method": {"name": "lora", "rank": 4, "dropout": 0.3}}
    untouched = start(wide("llama"), rows_file, **groups)
    assert untouched.state() == "completed", untouched.result()
    evals = untouched.metrics().evals
    assert evals[-1]["eval_loss"] < evals[0]["eval_loss"] - 0.3
    started = next(event for event in untouched.metrics().events if event["event"] == "started")
    assert started["parameters"] == fit.estimate(untouched.config()).parameters
    write = loop.Log.write

    def cut(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if facts.get("loss") is not None and facts["step"] == 5:
            raise KeyboardInterrupt  # not an Exception: nothing is written any more, as after a kill

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Log, "write", cut)
        start(wide("llama"), rows_file, **groups)
    run = next(run for run in runs.all_runs() if run.id != untouched.id)
    (run.folder / "worker.json").write_text('{"pid": 1, "birth": 0, "host": "elsewhere"}')
    assert worker.work(run)["outcome"] == "completed"
    assert any(event["event"] == "resumed" and event["step"] == 3 for event in run.metrics().events)
    first, second = adapter(untouched), adapter(run)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [line["loss"] for line in run.metrics().steps] == [line["loss"] for line in untouched.metrics().steps]
    assert run.samples() == untouched.samples()


def answer(speaker: Speaker, run: Run | None, **how: Any) -> str:
    weights, provenance = speaker.choose(run, **how)
    assert provenance["quantization"] == speaker.settings.quantization
    return "".join(speaker.speak(ASK, GREEDY.model_copy(update={"max_tokens": 12}), weights, provenance).pieces)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_chat_and_merging_into_either_base(
    home: Path, wide: Callable[..., Path], rows_file: Path, tmp_path: Path, name: str, kind: str
) -> None:
    run = start(wide(name), rows_file, model={"quantization": kind}, train={"epochs": 2})
    assert run.state() == "completed", run.result()
    speaker = Speaker(run.config().model)
    said = answer(speaker, run)
    assert said != answer(speaker, None)
    assert answer(speaker, run, merged=True) == said
    assert answer(speaker, run, scale=0.0) == answer(speaker, None)
    with pytest.raises(Problem, match="another base model") as caught:
        Speaker(ModelSettings(name=str(wide(name)))).choose(run)
    assert kind in str(caught.value)

    made: dict[str, torch.Tensor] = {}
    facts: dict[str, dict[str, Any]] = {}
    for base in ("original", "dequantised"):
        facts[base] = exports.export(run, "merged", tmp_path / base, "float32", merge_base=base)
        made[base] = logits(load(tmp_path / base, "none"))
        assert facts[base]["difference"] < 1e-3
        card = (tmp_path / base / "README.md").read_text()
        assert f"merged into the {base} base" in card
        assert f"{facts[base]['tested_difference']:.2g}" in card
        assert "quantization_config" not in json.loads((tmp_path / base / "config.json").read_text())
    # The dequantised base is the one that was trained on; the original costs the rounding of the base, and says so.
    assert facts["dequantised"]["tested_difference"] < 1e-3 < facts["original"]["tested_difference"]
    tested = load(wide(name), kind)
    tested.load("it", run.folder / "adapter")
    assert torch.allclose(made["dequantised"], logits(tested, Weights("it")), atol=1e-3)
    untouched = load(wide(name), "none")
    untouched.load("it", run.folder / "adapter")
    assert torch.allclose(made["original"], logits(untouched, Weights("it")), atol=1e-3)
    assert all((one - other).abs().max() > 1e-3 for one, other in combinations(made.values(), 2))


def test_the_export_job_takes_the_base_and_the_check_knows_it(
    home: Path, wide: Callable[..., Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(wide("llama"), rows_file)
    result = worker.work(runs.create(ExportConfig(run=run.id, to="merged", merge_base="dequantised")))
    assert (result["outcome"], result["merge_base"]) == ("completed", "dequantised")
    assert worker.work(runs.create(ExportConfig(run=run.id, to="merged")))["merge_base"] == "original"
    # What was trained is compared with itself, not with the other base.
    save = exports.dequantized_weights
    monkeypatch.setattr(exports, "dequantized_weights", lambda model: {path: value * 1.1 for path, value in save(model).items()})  # fmt: skip
    facts = exports.export(run, "merged", tmp_path / "scaled", merge_base="dequantised")
    assert facts["tested_difference"] > 1e-2
    plain = start(wide("llama"), rows_file, model={"quantization": "none"})
    assert "tested_difference" not in exports.export(plain, "merged", tmp_path / "plain", merge_base="dequantised")
    lora = exports.export(run, "lora", tmp_path / "lora")
    assert lora["difference"] < 1e-4


def weigh(tensors: Iterable[torch.Tensor | None]) -> int:
    return sum(
        one.numel() * one.element_size() for one in {id(one): one for one in tensors if one is not None}.values()
    )


def test_what_it_saves(wide: Callable[..., Path]) -> None:
    """Of the linear layers: four bytes a weight, one, and half of one with 0.127 bits for the scales (QLoRA, section 3)."""

    def measure(kind: str) -> int:
        found: list[torch.Tensor | None] = []
        for layer in load(wide("llama"), kind).linear.values():
            state = getattr(layer.weight, "quant_state", None)
            found += [layer.weight, getattr(layer, "scale", None)]
            found += [] if state is None else [state.absmax, state.state2.absmax]
        return weigh(found)

    sizes = {kind: measure(kind) for kind in ("none", *KINDS)}
    weights = sizes["none"] // 4
    assert sizes["int8"] == pytest.approx(weights, rel=0.1)
    assert sizes["nf4"] == pytest.approx(weights * 4.127 / 8, rel=0.03)
