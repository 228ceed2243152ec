"""LoRA where it is more than two matrices beside a linear layer: patterns, embeddings, heads, tokens, experts, starts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import ENCODERS, FAMILIES, SEQ2SEQ, open_model
from safetensors.torch import load_file, save_file
from test_adapt import fill, ids, load, logits, train_a_step
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from core import methods
from core.config import TrainSettings
from core.engine.adapt import Adapted, Weights
from core.engine.adapter_files import read_adapter
from core.engine.model import find_heads
from core.engine.optim import create_optimizer
from core.fit import count_trainable
from core.methods.lora import Lora
from core.model import describe
from core.problem import Problem
from core.targets import match_targets, play

peft = pytest.importorskip("peft")

Family = Callable[[str], Path]


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, family: Family) -> Family:
    """Models with fused experts; gpt-oss stores them the other way round."""
    folders = {"mixtral": family("mixtral")}
    for name in ("qwen3_moe", "gpt_oss"):
        folders[name] = tmp_path_factory.mktemp(name)
        config = AutoConfig.for_model(
            name, vocab_size=300, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_local_experts=4,
            num_experts_per_tok=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        randomise(AutoModelForCausalLM.from_config(config)).save_pretrained(folders[name])
    return lambda name: folders[name]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, family: Family) -> Family:
    """Models that tell three classes apart, their heads in the files."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            config = AutoConfig.from_pretrained(family(name), num_labels=3)
            made[name] = tmp_path_factory.mktemp(name)
            randomise(AutoModelForSequenceClassification.from_config(config)).save_pretrained(made[name])
        return made[name]

    return make


def open_classifier(folder: Path) -> PreTrainedModel:
    return open_model(folder, AutoModelForSequenceClassification)


def trained(model: PreTrainedModel, method: methods.Method, folder: Path, **more: Any) -> tuple[Adapted, torch.Tensor]:
    """An adapter of ours as after a training, saved in the folder, and the logits that it gives."""
    adapted = Adapted(model)
    adapted.add("a", method, **more)
    fill(adapted, "a")
    expected = logits(adapted.model)
    task = "SEQ_CLS" if "SequenceClassification" in type(model).__name__ else "CAUSAL_LM"
    adapted.save("a", folder, base="some/base", about={}, task_type=task)
    return adapted, expected


def theirs(
    model: PreTrainedModel, folder: Path, task_type: str = "CAUSAL_LM", **config: Any
) -> tuple[Any, torch.Tensor]:
    """An adapter of PEFT's with something in every tensor, saved in the folder, and the logits that it gives."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task_type, **config)).eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    expected = logits(wrapped)
    wrapped.save_pretrained(folder)
    return wrapped, expected


def in_peft(model: PreTrainedModel, folder: Path) -> torch.Tensor:
    """The logits of a saved adapter in PEFT; it must have found every tensor, and known every key."""
    wrapped = peft.PeftModel.from_pretrained(model, folder).eval()
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    saved = load_file(folder / "adapter_model.safetensors")
    assert state.keys() <= saved.keys()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config.keys() <= peft.LoraConfig().to_dict().keys() | {"peft_type", "task_type"}
    return logits(wrapped)


def applied(model: PreTrainedModel, folder: Path) -> torch.Tensor:
    """The logits of a saved adapter in ours; merged, they are the same, and taken off, the base is back."""
    adapted = Adapted(model)
    base = logits(adapted.model)
    adapted.load("x", folder)
    with adapted.using(Weights("x")) as active:
        found = logits(active)
    with adapted.using(Weights("x", merged=True)) as active:
        assert torch.allclose(logits(active), found, atol=2e-4)
    assert torch.equal(logits(adapted.model), base)
    assert not torch.allclose(found, base, atol=1e-3)
    return found


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in tensors.items()}


def saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return shapes(load_file(folder / "adapter_model.safetensors"))


# --- which layers, and how much of each ---------------------------------------------------------------------------

PATTERNS: list[dict[str, Any]] = [
    {"rank_pattern": {"q_proj": 3, "layers.1.mlp.down_proj": 2}},
    {"rank_pattern": {"layers.1.self_attn.q_proj": 3, "q_proj": 5}, "alpha_pattern": {"v_proj": 7.0, ".*": 3.0}},
    # The general one comes first and holds for all; in the order of the alphabet it would come last.
    {"rank_pattern": {"q_proj": 5, "layers.1.self_attn.q_proj": 3}},
    {"rank_pattern": {r"^model\.layers\.[02]\..*": 2, "k_proj|o_proj": 6}, "scaling": "rslora"},
    {"rank_pattern": {"_proj": 3, "z|v_proj": 2}, "alpha_pattern": {"proj": 3.0, "gate_proj": 9.0}},
]


@pytest.mark.parametrize("patterns", PATTERNS[:4])
def test_patterns_are_those_of_peft(family: Family, tmp_path: Path, patterns: dict[str, Any]) -> None:
    knobs = {key: value for key, value in patterns.items() if key != "scaling"}
    method = Lora(rank=4, alpha=8, **patterns)
    adapted, expected = trained(open_model(family("llama")), method, tmp_path / "ours")
    assert torch.allclose(in_peft(open_model(family("llama")), tmp_path / "ours"), expected, atol=1e-5)
    assert torch.allclose(applied(open_model(family("llama")), tmp_path / "ours"), expected, atol=1e-5)
    more = {"use_rslora": "scaling" in patterns, "target_modules": "all-linear"}
    wrapped, _ = theirs(open_model(family("llama")), tmp_path / "theirs", r=4, lora_alpha=8, **knobs, **more)
    assert shapes(adapted.state("a")) == shapes(peft.get_peft_model_state_dict(wrapped))
    scales = {name: layer.scaling["default"] for name, layer in wrapped.named_modules() if hasattr(layer, "lora_A")}
    for path, site in adapted.layers.items():
        assert site.methods["a"].scale == pytest.approx(scales[f"base_model.model.{path}"])


@pytest.mark.parametrize("patterns", [PATTERNS[0], PATTERNS[1]])
def test_patterns_of_peft_are_read(family: Family, tmp_path: Path, patterns: dict[str, Any]) -> None:
    theirs(
        open_model(family("llama")),
        tmp_path,
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        use_rslora=True,
        **patterns,
    )
    # PEFT itself reads its patterns in the order of the alphabet, whatever they were trained in.
    expected = in_peft(open_model(family("llama")), tmp_path)
    assert torch.allclose(applied(open_model(family("llama")), tmp_path), expected, atol=1e-5)


def test_a_pattern_that_matches_nothing_is_told_beside_its_field(family: Family) -> None:
    adapted = load(family("llama"))
    with pytest.raises(Problem) as caught:
        adapted.add("a", Lora(**PATTERNS[4]))
    assert [part.field for part in caught.value.parts] == ["method.rank_pattern", "method.alpha_pattern"]
    assert "_proj" in str(caught.value) and "down_proj" in str(caught.value)
    with pytest.raises(Problem) as foreseen:
        count_trainable(Lora(**PATTERNS[4]), describe(family("llama")))
    assert str(foreseen.value) == str(caught.value)
    # What another trained is computed as it is: PEFT says nothing of such a key.
    assert not adapted.adapters and not any(site.table for site in adapted.layers.values())


#: Every way to cut a name into words is tried, and none ends in a digit.
RUNS_AWAY = r"(.|..|...)+\d"


@pytest.mark.parametrize(
    ("knobs", "field"),
    [
        ({"rank_pattern": {"q_proj": 0}}, "method.rank_pattern"),
        ({"alpha_pattern": {"q_proj": -1}}, "method.alpha_pattern"),
        ({"trainable_token_indices": [-1]}, "method.trainable_token_indices"),
        ({"rank_pattern": {"q_proj": 40}}, "method.rank_pattern"),
        ({"rank_pattern": {"(": 4}}, "method.rank_pattern"),
        ({"alpha_pattern": {RUNS_AWAY: 4}}, "method.alpha_pattern"),
        ({"targets": RUNS_AWAY}, "method.targets"),
        ({"exclude": RUNS_AWAY}, "method.exclude"),
        ({"targets": []}, "method.targets"),
        ({"targets": ["lm_head"], "rank": 33}, "method.rank"),
        ({"blocks": "7"}, "method.blocks"),
        ({"blocks": "a-b"}, "method.blocks"),
        ({"exclude": ".*"}, "method.exclude"),
        ({"modules_to_save": ["nowhere"]}, "method.modules_to_save"),
        ({"targets": ["lm_head", "q_proj"], "modules_to_save": ["lm_head"]}, "method.targets"),
        ({"target_parameters": ["experts.down_proj"]}, "method.target_parameters"),
        ({"trainable_token_indices": [3, 999]}, "method.trainable_token_indices"),
        ({"trainable_token_indices": [3, 3]}, "method.trainable_token_indices"),
        ({"trainable_token_indices": [3], "targets": ["embed_tokens"]}, "method.targets"),
        ({"trainable_token_indices": [3], "modules_to_save": ["embed_tokens"]}, "method.modules_to_save"),
    ],
)
def test_what_cannot_be_is_told_beside_its_field(family: Family, knobs: dict[str, Any], field: str) -> None:
    adapted = load(family("llama"))
    base = logits(adapted.model)
    with pytest.raises(Problem) as caught:
        adapted.add("a", Lora.read(knobs))
    # What a group of settings says of itself alone, it says without the group's name.
    assert {str(part.field).removeprefix("method.") for part in caught.value.parts} == {field.removeprefix("method.")}
    assert ("takes for ever" in str(caught.value)) == ("|..|" in str(knobs))
    assert not adapted.adapters
    assert torch.equal(logits(adapted.model), base)


def test_blocks_are_those_of_peft(family: Family, tmp_path: Path) -> None:
    wrapped, expected = theirs(
        open_model(family("llama")), tmp_path, r=4, target_modules=["q_proj", "up_proj"], layers_to_transform=[0, 2]
    )
    adapted = load(family("llama"))
    adapted.add("a", Lora(rank=4, targets=["q_proj", "up_proj"], blocks="0, 2"))
    assert shapes(adapted.state("a")) == shapes(peft.get_peft_model_state_dict(wrapped))
    assert torch.allclose(applied(open_model(family("llama")), tmp_path), expected, atol=1e-5)
    # Some blocks only: the saved names must not mean the others.
    _, ours = trained(open_model(family("llama")), Lora(rank=4, targets=["q_proj"], blocks="1-2"), tmp_path / "ours")
    assert torch.allclose(in_peft(open_model(family("llama")), tmp_path / "ours"), ours, atol=1e-5)


def test_the_number_of_an_expert_is_no_block() -> None:
    paths = [
        f"model.layers.{block}.block_sparse_moe.experts.{expert}.w1" for block in range(3) for expert in range(4)
    ] + ["lm_head"]
    for blocks in ([1], [0, 3], [2, 3]):
        config = peft.LoraConfig(target_modules=["w1"], layers_to_transform=blocks)
        meant = [path for path in paths if peft.tuners.tuners_utils.check_target_module_exists(config, path)]
        assert match_targets(["w1"], paths, blocks=blocks) == meant


@pytest.mark.parametrize(
    ("targets", "exclude"),
    [
        (["q_proj", "k_proj"], ["layers.1.self_attn.q_proj"]),
        (["q_proj", "k_proj"], r".*\.1\..*"),
        (r".*\.[02]\..*_proj", ["v_proj", "o_proj"]),
        ("all-linear", r".*mlp.*"),
        (["_proj", "self_attn.o_proj"], None),
    ],
)
def test_chosen_layers_are_those_of_peft(
    family: Family, targets: str | list[str], exclude: str | list[str] | None
) -> None:
    wrapped = peft.get_peft_model(
        open_model(family("llama")), peft.LoraConfig(target_modules=targets, exclude_modules=exclude)
    )
    adapted = load(family("llama"))
    adapted.add("a", Lora(rank=4, targets=targets, exclude=exclude), all_names=False)
    meant = {
        name.removeprefix("base_model.model.") for name, layer in wrapped.named_modules() if hasattr(layer, "lora_A")
    }
    assert set(adapted.layers) == meant


@pytest.mark.parametrize("name", [*FAMILIES, "bert", "roberta", "mistral", "gemma3_text"])
def test_peft_default_is_what_peft_takes(family: Family, name: str) -> None:
    model = open_classifier(family(name)) if name in ENCODERS else open_model(family(name))
    task = "SEQ_CLS" if name in ENCODERS else "CAUSAL_LM"
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task))
    adapted = Adapted(open_classifier(family(name)) if name in ENCODERS else open_model(family(name)))
    adapted.add("a", Lora(rank=2, targets="peft-default"))
    meant = {
        path.removeprefix("base_model.model.") for path, layer in wrapped.named_modules() if hasattr(layer, "lora_A")
    }
    assert set(adapted.layers) == meant


@pytest.mark.parametrize("name", ["phi3", "distilbert"])
def test_a_family_without_a_default_is_told(family: Family, name: str) -> None:
    model = open_classifier(family(name)) if name in ENCODERS else open_model(family(name))
    with pytest.raises(ValueError, match="target_modules"):
        peft.get_peft_model(model, peft.LoraConfig())
    with pytest.raises(Problem, match=name) as caught:
        Adapted(model).add("a", Lora(targets="peft-default"))
    assert caught.value.field == "method.targets"


WORDS = {
    "llama": ({"gate_proj", "up_proj", "down_proj"}, {"q_proj", "v_proj"}),
    "gpt2": ({"c_fc", "c_proj"}, {"c_attn"}),
    "gpt_neox": ({"dense_h_to_4h", "dense_4h_to_h"}, {"query_key_value"}),
    "opt": ({"fc1", "fc2"}, {"q_proj", "v_proj"}),
    "bert": ({"dense"}, {"query", "value"}),
    "distilbert": ({"lin1", "lin2"}, {"q_lin", "v_lin"}),
    "t5": ({"wi", "wo"}, {"q", "v"}),
    "phi3": ({"gate_up_proj", "down_proj"}, {"qkv_proj"}),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_mean_parts_of_a_block(family: Family, name: str) -> None:
    folder = family(name)
    kind = (
        AutoModelForSequenceClassification
        if name in ENCODERS
        else AutoModelForSeq2SeqLM
        if name in SEQ2SEQ
        else AutoModelForCausalLM
    )
    for word, names in zip(("mlp", "query-value"), WORDS[name], strict=True):
        adapted = Adapted(kind.from_pretrained(folder))
        adapted.add("a", Lora(rank=2, targets=word))
        assert {path.rsplit(".", 1)[-1] for path in adapted.layers} == names
        assert not any(play(path, "attention_out") for path in adapted.layers)
        # T5 has two stacks of three blocks, and a second attention in the decoder's; BERT calls both halves `dense`.
        parts = 2 if (name, word) == ("bert", "mlp") else len(names)
        stacks = 1 if name != "t5" else 2 if word == "mlp" else 3
        assert len(adapted.layers) == 3 * stacks * parts


# --- embeddings and heads -----------------------------------------------------------------------------------------

ENDS = {
    "llama": (["embed_tokens"], ["lm_head"]),
    "opt": (["embed_tokens"], ["lm_head"]),
    "gemma3_text": (["embed_tokens"], ["lm_head"]),
    "gpt2": (["wte"], ["lm_head"]),
    "gpt_neox": (["embed_in"], ["lm_head"]),
}
CHOICES = [(name, which) for name in ENDS for which in ("embedding", "head", "both", "with layers")]


def ends(name: str, which: str) -> list[str]:
    embedding, head = ENDS[name]
    layers = {"gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}.get(name, ["q_proj"])
    positions = ["wpe"] if name == "gpt2" else []  # a table as well, and neither end of the model
    return {
        "embedding": embedding,
        "head": head,
        "both": embedding + head + positions,
        "with layers": embedding + layers,
    }[which]


@pytest.mark.parametrize(("name", "which"), CHOICES)
def test_adapted_embeddings_and_heads_go_both_ways(family: Family, tmp_path: Path, name: str, which: str) -> None:
    targets, folder = ends(name, which), family(name)
    _wrapped, expected = theirs(
        open_model(folder),
        tmp_path / "theirs",
        r=4,
        lora_alpha=6,
        target_modules=targets,
        fan_in_fan_out=name == "gpt2",
    )
    assert torch.allclose(applied(open_model(folder), tmp_path / "theirs"), expected, atol=1e-5)
    _adapted, ours = trained(open_model(folder), Lora(rank=4, alpha=6, targets=targets), tmp_path / "ours")
    assert saved_shapes(tmp_path / "ours") == saved_shapes(tmp_path / "theirs")
    assert torch.allclose(in_peft(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)
    assert torch.allclose(applied(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)


@pytest.mark.parametrize(("name", "which"), CHOICES)
def test_a_fresh_one_changes_nothing(family: Family, name: str, which: str) -> None:
    adapted = load(family(name))
    base = logits(adapted.model)
    adapted.add("a", Lora(rank=4, targets=ends(name, which)))
    before = {path: value.detach().clone() for path, value in adapted.model.named_parameters() if "@a" not in path}
    adapted.start_training("a")
    assert torch.equal(logits(adapted.model), base)
    train_a_step(adapted, "a")
    assert not torch.allclose(logits(adapted.model), base, atol=1e-3)
    for path, value in adapted.model.named_parameters():
        assert "@a" in path or torch.equal(value, before[path])


def test_a_scaled_embedding_scales_what_is_learned(family: Family) -> None:
    adapted = load(family("gemma3_text"))
    scale = adapted.model.get_input_embeddings().embed_scale
    assert abs(float(scale) - 1) > 1
    adapted.add("a", Lora(rank=4, targets=["embed_tokens"]))
    fill(adapted, "a")
    site = adapted.layers["model.embed_tokens"]
    weight = site.merged("a", 1.0)
    assert torch.allclose(site(ids()), weight[ids()] * scale, atol=1e-5)


def test_copies_of_another_base_are_refused(family: Family, tmp_path: Path) -> None:
    trained(open_model(family("llama")), Lora(rank=4, targets=["embed_tokens"]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    save_file({name: value for name, value in tensors.items() if name != key}, path)
    applied(open_model(family("llama")), tmp_path)  # the copy need not be there
    save_file(tensors | {key: tensors[key] + 1}, path)
    with pytest.raises(Problem, match="other embeddings"):
        load(family("llama")).load("a", tmp_path)


@pytest.mark.parametrize("which", ["embedding", "head"])
@pytest.mark.parametrize("name", ["opt", "gpt2", "gemma3_text"])
def test_a_tied_weight_is_learned_for_one_of_its_uses(family: Family, tmp_path: Path, name: str, which: str) -> None:
    folder = family(name)
    assert load(folder).ties
    targets = ends(name, which)
    method = Lora(rank=4, alpha=16 if which == "embedding" else 256, targets=targets)
    _, expected = trained(open_model(folder), method, tmp_path / "adapter")
    near = 2e-5 * float(expected.abs().max())
    adapted = load(folder)
    adapted.load("a", tmp_path / "adapter")
    merged = adapted.merged_weights("a")
    (changed,) = merged
    assert changed.split(".")[-2] in targets
    # The other use computes with what the base had.
    before = open_model(folder).get_input_embeddings().weight
    with adapted.using(Weights("a", merged=True)) as model:
        assert torch.allclose(logits(model), expected, atol=near)
        others = [model.get_input_embeddings(), model.get_output_embeddings()]
        others = [getattr(one, "base", one).weight for one in others]
        assert [torch.equal(one, before) for one in others] == [which == "head", which == "embedding"]
    adapted.remove("a")
    adapted.unwrap()
    for path, weight in merged.items():
        adapted.parameters[path].data = weight
    adapted.model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert torch.allclose(logits(again), expected, atol=near)
    assert not again.config.tie_word_embeddings  # whoever reads it ties nothing
    # PEFT merges into the one weight, and changes the other use with it.
    wrapped = peft.PeftModel.from_pretrained(open_model(folder), tmp_path / "adapter").eval()
    assert torch.allclose(logits(wrapped), expected, atol=near)
    assert (logits(wrapped.merge_and_unload()) - expected).abs().max() > 1


def test_t5_is_not_saved_with_parts_that_it_would_tie_again(family: Family, tmp_path: Path) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(family("t5")).eval()
    adapted = Adapted(model)
    asked = {"input_ids": ids(), "decoder_input_ids": ids()}
    base = model(**asked).logits
    adapted.add("a", Lora(rank=4, targets=["encoder.embed_tokens"]))
    fill(adapted, "a")
    adapted.save("a", tmp_path, base="b", about={}, task_type="SEQ_2_SEQ_LM")
    expected = model(**asked).logits
    adapted.remove("a")
    adapted.load("x", tmp_path)
    with adapted.using(Weights("x", merged=True)):  # the decoder's embedding and the head stay
        assert torch.allclose(model(**asked).logits, expected, atol=2e-4)
    assert torch.equal(model(**asked).logits, base)
    with pytest.raises(Problem, match="t5"):
        adapted.unwrap()


def test_a_weight_with_four_uses_is_saved_as_four(tmp_path: Path) -> None:
    """BART's two embeddings, the one that they are tied to, and the head."""
    config = AutoConfig.for_model(
        "bart", vocab_size=300, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    randomise(AutoModelForSeq2SeqLM.from_config(config)).save_pretrained(tmp_path / "base")
    asked = {"input_ids": ids(), "decoder_input_ids": ids()}

    def answer(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            return model(**asked).logits

    def reopen(name: str) -> PreTrainedModel:
        return AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).eval()

    for name, method in {
        "tokens": Lora(rank=4, targets=["q_proj"], trainable_token_indices=ids()[0, :3].tolist()),
        "encoder": Lora(rank=4, alpha=512, targets=["encoder.embed_tokens"]),
        "head": Lora(rank=4, targets=["lm_head"]),
    }.items():
        adapted = Adapted(reopen("base"))
        assert len(adapted.ties["model.shared"]) == 3
        adapted.add("a", method)
        fill(adapted, "a")
        expected = answer(adapted.model)
        assert not torch.allclose(expected, answer(reopen("base")), atol=1e-2)
        adapted.save("a", tmp_path / name, base="b", about={}, task_type="SEQ_2_SEQ_LM")
        wrapped = peft.PeftModel.from_pretrained(reopen("base"), tmp_path / name).eval()
        assert torch.allclose(answer(wrapped), expected, atol=1e-5)
        adapted = Adapted(reopen("base"))
        adapted.load("a", tmp_path / name)
        merged = adapted.merged_weights("a")
        adapted.remove("a")
        adapted.unwrap()
        for path, weight in merged.items():
            adapted.parameters[path].data = weight
        adapted.model.save_pretrained(tmp_path / f"merged {name}")
        assert torch.allclose(answer(reopen(f"merged {name}")), expected, atol=2e-4)


def test_adapters_of_the_two_uses_of_one_weight_do_not_mix(family: Family, tmp_path: Path) -> None:
    """Whatever the order: an adapter of the head, of the embedding, of tokens, and one that trains the weight itself."""
    folder = family("opt")
    makers = {
        "head": Lora(rank=4, targets=["lm_head"]),
        "embedding": Lora(rank=4, targets=["embed_tokens"]),
        "tokens": Lora(targets=[], trainable_token_indices=[20, 41]),
        "saved": Lora(targets=["q_proj"], modules_to_save=["lm_head"]),
        "full": methods.find("full")(),
    }
    expected = {}
    for name, method in makers.items():
        _, expected[name] = trained(open_model(folder), method, tmp_path / name)
    for order in (list(makers), list(makers)[::-1], ["tokens", "full", "embedding", "saved", "head"]):
        adapted = load(folder)
        base = logits(adapted.model)
        for name in order:
            adapted.load(name, tmp_path / name)
        for name in order:
            for merged in (False, True):
                with adapted.using(Weights(name, merged=merged)) as model:
                    assert torch.allclose(logits(model), expected[name], atol=2e-4), (order, name, merged)
        assert torch.equal(logits(adapted.model), base)


# --- modules that are trained whole -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "modules", [["lm_head"], ["embed_tokens"], ["model.norm"], ["lm_head", "embed_tokens"], ["mlp"]]
)
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_modules_trained_whole_go_both_ways(family: Family, tmp_path: Path, name: str, modules: list[str]) -> None:
    folder = family(name)
    _, expected = theirs(
        open_model(folder),
        tmp_path / "theirs",
        r=4,
        target_modules=["q_proj", "up_proj", "lm_head"],
        modules_to_save=modules,
    )
    assert torch.allclose(applied(open_model(folder), tmp_path / "theirs"), expected, atol=1e-5)
    adapted, ours = trained(
        open_model(folder), Lora(rank=4, targets="all-linear", modules_to_save=modules), tmp_path / "ours"
    )
    assert not any(".mlp." in path for path in adapted.layers) or modules != ["mlp"]
    assert torch.allclose(in_peft(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)
    assert torch.allclose(applied(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)
    saved = saved_shapes(tmp_path / "ours")
    for key in modules:
        assert any(f".{key}." in path and "lora" not in path for path in saved)
        assert not any(f".{key}." in path and "lora" in path for path in saved)


def test_a_tied_head_trained_whole_leaves_the_embedding(family: Family) -> None:
    adapted = load(family("gemma3_text"))
    before = adapted.parameters["model.embed_tokens.weight"].detach().clone()
    adapted.add("a", Lora(rank=4, targets=["embed_tokens"], modules_to_save=["lm_head"]))
    start = adapted.start_training("a")
    assert "lm_head.weight" in start
    train_a_step(adapted, "a")
    assert torch.equal(adapted.parameters["model.embed_tokens.weight"], before)
    assert not torch.equal(adapted.parameters["lm_head.weight"], before)


def test_what_is_named_must_be_in_the_file(family: Family, tmp_path: Path) -> None:
    trained(open_model(family("llama")), Lora(rank=4, targets=["q_proj"], modules_to_save=["lm_head"]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "lm_head" not in key}, path)
    with pytest.raises(Problem, match=r"lm_head\.weight"):
        load(family("llama")).load("a", tmp_path)


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "gpt2"])
def test_classifiers_go_both_ways(classifier: Family, tmp_path: Path, name: str) -> None:
    """PEFT adds `classifier` and `score` by itself."""
    folder = classifier(name)
    # PEFT's all-linear takes DistilBERT's second head for a layer, and then stumbles over it.
    targets = ["q_lin", "lin1"] if name == "distilbert" else "all-linear"
    wrapped, expected = theirs(
        open_classifier(folder), tmp_path / "theirs", "SEQ_CLS", r=4, target_modules=targets,
        fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    assert set(wrapped.peft_config["default"].modules_to_save) == {"classifier", "score"}
    assert torch.allclose(applied(open_classifier(folder), tmp_path / "theirs"), expected, atol=1e-5)
    model = open_classifier(folder)
    heads = find_heads(model)
    _, ours = trained(model, Lora(rank=4, targets=targets), tmp_path / "ours", heads=heads)
    assert torch.allclose(in_peft(open_classifier(folder), tmp_path / "ours"), ours, atol=1e-5)
    assert torch.allclose(applied(open_classifier(folder), tmp_path / "ours"), ours, atol=1e-5)
    mine, yours = saved_shapes(tmp_path / "ours"), saved_shapes(tmp_path / "theirs")
    # A name for each kind of layer, though the head has layers of these names as well.
    assert not any(
        "." in target for target in json.loads((tmp_path / "ours/adapter_config.json").read_text())["target_modules"]
    )
    # Our heads count a pooler, which PEFT adapts like any other layer.
    assert {key for key in mine if "pooler" not in key} == {key for key in yours if "pooler" not in key}


def test_peft_reads_a_name_as_an_ending(classifier: Family, tmp_path: Path) -> None:
    model = open_classifier(classifier("distilbert"))
    adapted, expected = trained(model, Lora(rank=4, modules_to_save=["classifier"]), tmp_path)
    assert "pre_classifier.weight" in adapted.adapters["a"].whole
    assert torch.allclose(in_peft(open_classifier(classifier("distilbert")), tmp_path), expected, atol=1e-5)


def test_the_real_distilbert_adapter_loads(shared: Path) -> None:
    folder = shared / "adapters" / "distilbert-imdb-r8"
    config = AutoConfig.for_model("distilbert", num_labels=2)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    theirs_model = AutoModelForSequenceClassification.from_config(config).eval()
    theirs_model.load_state_dict(model.state_dict())
    found = applied(model, folder)
    _tensors, method = read_adapter(folder)
    assert method.rank == 8 and set(method.modules_to_save) == {"classifier", "score"}
    adapted = Adapted(model)
    assert torch.allclose(logits(peft.PeftModel.from_pretrained(theirs_model, folder).eval()), found, atol=1e-5)
    assert not adapted.adapters


# --- single tokens ------------------------------------------------------------------------------------------------

TOKENS = [41, 7, 250]


def asked_tokens() -> torch.Tensor:
    """Every position of the usual question, some of them these tokens."""
    asked = ids()
    asked[0, 2], asked[1, 5], asked[1, 9] = TOKENS
    return asked


def token_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=asked_tokens()).logits


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gemma3_text", "qwen3"])
def test_trained_tokens_are_those_of_peft(family: Family, tmp_path: Path, name: str) -> None:
    folder = family(name)
    targets = ["c_attn"] if name == "gpt2" else ["q_proj"]
    adapted = load(folder)
    adapted.add("a", Lora(rank=4, targets=targets, trainable_token_indices=TOKENS))
    base = token_logits(adapted.model)
    adapted.start_training("a")
    assert torch.equal(token_logits(adapted.model), base)
    fill(adapted, "a")
    expected = token_logits(adapted.model)
    adapted.save("a", tmp_path / "ours", base="b", about={})
    wrapped = peft.PeftModel.from_pretrained(open_model(folder), tmp_path / "ours").eval()
    assert torch.allclose(token_logits(wrapped), expected, atol=1e-5)
    wrapped, _ = theirs(
        open_model(folder), tmp_path / "theirs", r=4, target_modules=targets, trainable_token_indices=TOKENS,
        fan_in_fan_out=name == "gpt2",
    )  # fmt: skip
    assert saved_shapes(tmp_path / "ours") == saved_shapes(tmp_path / "theirs")
    assert any(key.endswith("token_adapter.trainable_tokens_delta") for key in saved_shapes(tmp_path / "ours"))
    expected = token_logits(wrapped)
    other = load(folder)
    other.load("x", tmp_path / "theirs")
    for strength in (0.0, 0.5, 1.0, 2.0):
        with other.using(Weights("x", strength)) as model:
            found = token_logits(model)
        with other.using(Weights("x", strength, merged=True)) as model:
            assert torch.allclose(token_logits(model), found, atol=2e-4)
        assert strength != 1.0 or torch.allclose(found, expected, atol=1e-5)
        assert strength != 0.0 or torch.allclose(found, base, atol=1e-5)
    assert torch.equal(token_logits(other.model), base)


@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text"])
def test_trained_tokens_change_their_own_rows(family: Family, tmp_path: Path, name: str) -> None:
    adapted = load(family(name))
    adapted.add("a", Lora(targets=[], trainable_token_indices=TOKENS))
    tied = bool(adapted.ties)
    fill(adapted, "a")
    expected = token_logits(adapted.model)
    adapted.save("a", tmp_path / "adapter", base="b", about={})
    other = load(family(name))
    other.load("a", tmp_path / "adapter")
    assert not other.untied
    merged = other.merged_weights("a")
    (path,) = merged
    before = other.parameters[path]
    changed = (merged[path] != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(TOKENS)
    other.remove("a")
    other.unwrap()
    other.parameters[path].data = merged[path]
    other.model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert again.config.tie_word_embeddings == tied
    assert torch.allclose(token_logits(again), expected, atol=2e-4)
    # A tied head follows: the logits of the tokens themselves change where none of them was asked.
    with torch.no_grad():
        plain = torch.full((1, 4), 100)
        difference = (again(plain).logits - open_model(family(name))(plain).logits).abs().amax(dim=(0, 1))
    assert (difference > 1e-3).nonzero().flatten().tolist() == (sorted(TOKENS) if tied else [])


def test_trained_tokens_of_t5_follow_in_all_four_places(family: Family, tmp_path: Path) -> None:
    def open_t5() -> PreTrainedModel:
        return AutoModelForSeq2SeqLM.from_pretrained(family("t5")).eval()

    asked = {"input_ids": asked_tokens(), "decoder_input_ids": asked_tokens()}
    adapted = Adapted(open_t5())
    adapted.add("a", Lora(rank=4, targets=["q"], trainable_token_indices=TOKENS))
    assert len(adapted.adapters["a"].followers) == 3
    fill(adapted, "a")
    expected = adapted.model(**asked).logits
    adapted.save("a", tmp_path, base="b", about={}, task_type="SEQ_2_SEQ_LM")
    wrapped = peft.PeftModel.from_pretrained(open_t5(), tmp_path).eval()
    assert torch.allclose(wrapped(**asked).logits, expected, atol=1e-4)
    other = Adapted(open_t5())
    other.load("a", tmp_path)
    with other.using(Weights("a", merged=True)):
        assert torch.allclose(other.model(**asked).logits, expected, atol=1e-3)


def test_tokens_named_by_layer_are_read(family: Family, tmp_path: Path) -> None:
    for number, (tokens, tied) in enumerate(
        [({"embed_tokens": TOKENS}, False), ({"embed_tokens": TOKENS, "lm_head": TOKENS}, True)]
    ):
        folder = family("opt" if tied else "llama")
        wrapped, _ = theirs(
            open_model(folder), tmp_path / str(number), r=4, target_modules=["q_proj"], trainable_token_indices=tokens
        )
        adapted = load(folder)
        adapted.load("a", tmp_path / str(number))
        with adapted.using(Weights("a")) as model:
            assert torch.allclose(token_logits(model), token_logits(wrapped), atol=1e-5)
    theirs(
        open_model(family("llama")), tmp_path / "two", r=4, target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": [1], "lm_head": [2]},
    )  # fmt: skip
    with pytest.raises(Problem, match="trainable_token_indices"):
        load(family("llama")).load("a", tmp_path / "two")


# --- fused experts ------------------------------------------------------------------------------------------------

STACKS = [["experts.gate_up_proj", "experts.down_proj"], ["experts.gate_up_proj"], ["experts.down_proj"]]
MOES = ["mixtral", "qwen3_moe", "gpt_oss"]


@pytest.mark.parametrize("stacks", STACKS, ids=len)
@pytest.mark.parametrize("name", MOES)
def test_experts_go_both_ways(experts: Family, tmp_path: Path, name: str, stacks: list[str]) -> None:
    folder = experts(name)
    _wrapped, expected = theirs(
        open_model(folder), tmp_path / "theirs", r=3, lora_alpha=5, target_modules=["q_proj"], target_parameters=stacks,
        rank_pattern={"experts.down_proj": 2} if "experts.down_proj" in stacks else {},
    )  # fmt: skip
    assert torch.allclose(applied(open_model(folder), tmp_path / "theirs"), expected, atol=1e-5)
    knobs = {"rank_pattern": {"experts.down_proj": 2}} if "experts.down_proj" in stacks else {}
    method = Lora(rank=3, alpha=5, dropout=0.1, targets=["q_proj"], target_parameters=stacks[::-1], **knobs)
    _adapted, ours = trained(open_model(folder), method, tmp_path / "ours")
    assert saved_shapes(tmp_path / "ours") == saved_shapes(tmp_path / "theirs")
    assert torch.allclose(in_peft(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)
    assert torch.allclose(applied(open_model(folder), tmp_path / "ours"), ours, atol=1e-5)


@pytest.mark.parametrize("name", MOES)
def test_fresh_experts_change_nothing_and_all_of_them_are_trained(experts: Family, name: str) -> None:
    adapted = load(experts(name)) if name == "mixtral" else Adapted(open_model(experts(name)))
    base = logits(adapted.model)
    adapted.add("a", Lora(rank=2, targets=[], target_parameters=STACKS[0]))
    assert len(adapted.layers) == 2 * adapted.blocks
    start = {key: value.detach().clone() for key, value in adapted.start_training("a").items()}
    assert torch.equal(logits(adapted.model), base)
    after = train_a_step(adapted, "a")
    assert all(not torch.equal(value, start[key]) for key, value in after.items())
    count = count_trainable(adapted.methods["a"], describe(experts(name)))
    assert count == sum(value.numel() for value in after.values())


@pytest.mark.parametrize("name", MOES)
def test_merged_experts_are_saved_and_answer_alike(experts: Family, tmp_path: Path, name: str) -> None:
    folder = experts(name)
    _, expected = trained(open_model(folder), Lora(rank=2, target_parameters=STACKS[0]), tmp_path / "adapter")
    adapted = Adapted(open_model(folder))
    adapted.load("a", tmp_path / "adapter")
    for strength in (0.0, 0.5, 2.0):
        with adapted.using(Weights("a", strength)) as model:
            found = logits(model)
        with adapted.using(Weights("a", strength, merged=True)) as model:
            assert torch.allclose(logits(model), found, atol=2e-4)
    merged = adapted.merged_weights("a")
    adapted.remove("a")
    adapted.unwrap()
    for path, weight in merged.items():
        adapted.parameters[path].data = weight
    adapted.model.save_pretrained(tmp_path / "model")
    assert torch.allclose(logits(open_model(tmp_path / "model")), expected, atol=2e-4)


def test_adapters_of_different_experts_do_not_mix(experts: Family, tmp_path: Path) -> None:
    """PEFT's keys count only the stacks that an adapter has itself, whatever others stand on the same model."""
    folder = experts("mixtral")
    expected = [
        trained(open_model(folder), Lora(rank=2, targets=[], target_parameters=stacks), tmp_path / str(number))[1]
        for number, stacks in enumerate(STACKS)
    ]
    for order in ([0, 1, 2], [2, 1, 0]):
        adapted = Adapted(open_model(folder))
        for number in order:
            adapted.load(str(number), tmp_path / str(number))
        for number in order:
            with adapted.using(Weights(str(number))) as model:
                assert torch.allclose(logits(model), expected[number], atol=1e-5)
            assert shapes(adapted.state(str(number))) == saved_shapes(tmp_path / str(number))


def test_experts_are_no_plain_lora(experts: Family) -> None:
    adapted = Adapted(open_model(experts("mixtral")))
    adapted.add("a", Lora(rank=2, target_parameters=STACKS[0]))
    with pytest.raises(Problem, match=r"experts\.gate_up_proj"):
        adapted.low_rank("a")
    with pytest.raises(Problem) as caught:
        adapted.add("b", Lora(rank=2, target_parameters=["experts.w1"]))
    assert caught.value.field == "method.target_parameters" and "experts.down_proj" in str(caught.value)
    with pytest.raises(Problem) as caught:
        adapted.add("c", Lora(rank=2, targets=[], target_parameters=STACKS[0], rank_pattern={"experts.down_proj": 40}))
    assert caught.value.field == "method.rank_pattern"


# --- starts at the layer's own directions -------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_start_at_the_layer_itself_is_saved_as_plain_lora(
    family: Family, tmp_path: Path, name: str, init: str, scaling: str
) -> None:
    folder = family(name)
    first, second = ("c_attn", "c_fc") if name == "gpt2" else ("q_proj", "down_proj")
    adapted = load(folder)
    base = logits(adapted.model)
    method = Lora(
        rank=4, alpha=6, init=init, scaling=scaling, rank_pattern={second: 7, first: 3}, alpha_pattern={second: 5}
    )
    adapted.add("a", method)
    adapted.start_training("a")
    assert torch.allclose(logits(adapted.model), base, atol=1e-5)
    train_a_step(adapted, "a")
    expected = logits(adapted.model)
    assert not torch.allclose(expected, base, atol=1e-2)
    adapted.save("a", tmp_path, base="b", about={})
    assert torch.allclose(in_peft(open_model(folder), tmp_path), expected, atol=1e-4)
    assert torch.allclose(applied(open_model(folder), tmp_path), expected, atol=1e-4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["init_lora_weights"]) == (8, {first: 6, second: 14}, True)


def test_a_start_at_the_layer_itself_takes_its_strongest_directions(family: Family) -> None:
    adapted = load(family("llama"))
    adapted.add("p", Lora(rank=5, alpha=3, init="pissa"))
    adapted.add("o", Lora(rank=5, alpha=3, init="olora"))
    for parameter in adapted.model.parameters():
        parameter.requires_grad_(False)
    for site in adapted.layers.values():
        weight, scale = site.weight(), site.methods["p"].scale
        begun = scale * site.tensors("p")["B"] @ site.tensors("p")["A"]
        # No matrix of rank 5 is nearer (Eckart & Young 1936).
        singular = torch.linalg.svdvals(weight)
        assert torch.linalg.matrix_norm(weight - begun) == pytest.approx(float(singular[5:].norm()), rel=1e-4)
        begun = scale * site.tensors("o")["B"] @ site.tensors("o")["A"]
        assert torch.allclose(begun[:, :5], weight[:, :5], atol=1e-5)  # Q R is exact where R has its first columns


def test_an_embedding_and_experts_begin_as_ever(family: Family, experts: Family, tmp_path: Path) -> None:
    """Their rank in the file is not twice as high, though that of the layers beside them is."""
    for number, (folder, knobs) in enumerate(
        [
            (family("llama"), {"targets": ["embed_tokens", "q_proj", "lm_head"]}),
            (experts("mixtral"), {"targets": ["q_proj"], "target_parameters": STACKS[0]}),
        ]
    ):
        method = Lora(rank=4, init="pissa", scaling="rslora", **knobs)
        _, expected = trained(open_model(folder), method, tmp_path / str(number))
        assert torch.allclose(in_peft(open_model(folder), tmp_path / str(number)), expected, atol=1e-4)
        assert torch.allclose(applied(open_model(folder), tmp_path / str(number)), expected, atol=1e-4)


def test_dropout_leaves_the_start_whole(family: Family) -> None:
    """What the start took from the layer is subtracted without dropout, which is for what is learned."""
    adapted = load(family("llama"))
    adapted.add("a", Lora(rank=4, init="pissa", dropout=0.5, targets=["q_proj"]))
    adapted.start_training("a")
    site = adapted.layers["model.layers.0.self_attn.q_proj"]
    a, b, scale = site.tensors("a")["A"], site.tensors("a")["B"], site.methods["a"].scale
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(site(x), site.base(x), atol=1e-6)
    site.train()
    torch.manual_seed(0)
    hidden = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.allclose(site(x), site.base(x) + scale * (hidden - x) @ a.T @ b.T, atol=1e-5)


# --- different rates ----------------------------------------------------------------------------------------------


def test_the_matrix_b_is_trained_faster(family: Family, experts: Family) -> None:
    adapted = load(family("llama"))
    adapted.add("a", Lora(rank=4, rate_ratio=16, targets=["q_proj", "embed_tokens"], modules_to_save=["lm_head"]))
    ratios = adapted.learning_rate_ratios("a")
    assert ratios == {f"model.layers.{block}.self_attn.q_proj.B": 16.0 for block in range(3)}
    mixed = Adapted(open_model(experts("mixtral")))
    mixed.add("a", Lora(rank=2, rate_ratio=4, targets=[], target_parameters=STACKS[2]))
    assert set(mixed.learning_rate_ratios("a").values()) == {4.0}

    parameters = adapted.start_training("a")
    parameters["bias"] = torch.nn.Parameter(torch.zeros(3))
    settings = TrainSettings(learning_rate=1e-3, weight_decay=0.1)
    optimizer = create_optimizer(parameters, settings, ratios)
    found = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    assert len(found) == len(parameters)
    for name, parameter in parameters.items():
        group = found[id(parameter)]
        assert group["ratio"] == (16.0 if name in ratios else 1.0)
        assert group["weight_decay"] == (0.0 if name == "bias" else 0.1)
    # A first step of Adam is as long as its rate: B goes sixteen times as far as A where both have gradients.
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * group["ratio"]
        group["weight_decay"] = 0.0
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in parameters.items():
        moved = float((before[name] - parameter.detach()).mean())
        assert moved == pytest.approx(16e-3 if name in ratios else 1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("llama", {"targets": ["embed_tokens", "lm_head"]}),
        ("gemma3_text", {"targets": ["lm_head", "q_proj"]}),
        ("gpt2", {"targets": "all-linear", "modules_to_save": ["lm_head"], "rank_pattern": {"c_fc": 2}}),
        ("opt", {"targets": ["q_proj"], "trainable_token_indices": [3, 5]}),
        ("llama", {"targets": [], "trainable_token_indices": [3]}),
        ("mixtral", {"rank_pattern": {"experts.down_proj": 2}, "target_parameters": STACKS[0]}),
        ("llama", {"init": "pissa"}),
    ],
)
def test_what_is_foreseen_is_what_is_trained(family: Family, name: str, knobs: dict[str, Any]) -> None:
    method = Lora(rank=4, **knobs)
    adapted = load(family(name))
    adapted.add("a", method)
    count = sum(parameter.numel() for parameter in adapted.start_training("a").values())
    assert count_trainable(method, describe(family(name))) == count
