"""Prompts: virtual tokens and prefixes compute what PEFT's do, and stand where they should in all that a model reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import ENCODERS, FAMILIES, MORE, open_model
from test_adapt import fill, ids, load, logits
from test_loop import assert_same, config_of
from test_loop import train as train
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    EncoderDecoderCache,
    PreTrainedModel,
)

from core import methods, objectives, runs
from core.config import Config, ModelSettings
from core.engine import loop, worker
from core.engine.adapt import Adapted, Weights
from core.engine.chat import Speaker
from core.engine.data import Reader, collate
from core.engine.generate import Sampling, generate
from core.engine.model import find_heads, load_model
from core.engine.predict import find_answer
from core.engine.tokens import Tokens
from core.fit import count_trainable
from core.formats import Message
from core.model import describe
from core.objectives import Row
from core.problem import Problem
from core.runs import Run

KNOBS: list[dict[str, Any]] = [
    {"name": "prompt_tuning", "tokens": 5},
    {"name": "p_tuning", "tokens": 4},
    {"name": "p_tuning", "tokens": 3, "encoder": "lstm", "hidden": 12, "layers": 2, "dropout": 0.2},
    {"name": "p_tuning_v2", "tokens": 6},
    {"name": "prefix_tuning", "tokens": 4, "hidden": 16},
]
EMBEDDED, ATTENDED = KNOBS[:3], KNOBS[3:]
WINDOW = 8
LABELS = type(objectives.find("classification"))(("a", "b", "c"))
TRAINED, BASE = Weights("a"), Weights()


def named(knobs: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("knobs", knobs, ids=lambda one: f"{one['name']}-{one.get('encoder', '')}")


def method_of(knobs: Mapping[str, Any]) -> methods.Method:
    return methods.find(knobs["name"])(**{key: value for key, value in knobs.items() if key != "name"})


def put(adapted: Adapted, knobs: Mapping[str, Any], name: str = "a", **more: Any) -> None:
    """A prompt on the model, with other numbers than it begins with, and not in training."""
    adapted.add(name, method_of(knobs), **more)
    fill(adapted, name)
    adapted._activate(None, 1.0)
    adapted.model.eval()


def answer(adapted: Adapted, weights: Weights = TRAINED, asked: torch.Tensor | None = None, **more: Any) -> Any:
    """Logits of the real tokens of rows without padding."""
    asked = ids() if asked is None else asked
    before, _ = adapted.before(weights)
    asked = torch.cat([torch.tensor([before] * len(asked), dtype=torch.long), asked], dim=1)
    with adapted.using(weights) as model, torch.no_grad():
        found = model(input_ids=asked, **more).logits
    return found[:, len(before) :] if found.ndim == 3 else found


@pytest.fixture(scope="session")
def narrow(family: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Models some or all of whose layers see no farther than a few tokens; gemma2's attention is no sdpa."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        llama = AutoConfig.from_pretrained(family("llama")).to_dict()
        keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
        config = AutoConfig.for_model(
            name, **{key: llama[key] for key in keys}, sliding_window=WINDOW,
            **({} if name in ("mistral", "phi3") else {"head_dim": 8}),
        )  # fmt: skip
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder)
        for path in family("llama").glob("*token*"):
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    made: dict[str, Path] = {}
    return lambda name: made.setdefault(name, made.get(name) or make(name))


@pytest.fixture
def peft() -> Any:
    return pytest.importorskip("peft")


def their_config(peft: Any, knobs: Mapping[str, Any], task: str, model: PreTrainedModel | None = None) -> Any:
    """PEFT's configuration of the same prompt."""
    common = {"task_type": task, "num_virtual_tokens": knobs["tokens"]}
    if model is not None and model.config.model_type == "distilbert":
        # PEFT looks for these under other names.
        common |= {"token_dim": model.config.dim, "num_attention_heads": model.config.n_heads, "num_layers": 3}
    if knobs["name"] == "prompt_tuning":
        return peft.PromptTuningConfig(**common)
    if knobs["name"] == "p_tuning":
        return peft.PromptEncoderConfig(
            **common, encoder_reparameterization_type=knobs.get("encoder", "mlp").upper(),
            encoder_hidden_size=knobs.get("hidden"), encoder_num_layers=knobs.get("layers", 2),
        )  # fmt: skip
    projected = knobs["name"] == "prefix_tuning"
    head = getattr(model.config, "head_dim", None) if model is not None else None
    heads = getattr(model.config, "num_key_value_heads", None) if model is not None else None
    sizes = {"num_attention_heads": heads, "token_dim": heads * head} if head and heads else {}
    return peft.PrefixTuningConfig(
        **common, **sizes, prefix_projection=projected, encoder_hidden_size=knobs.get("hidden")
    )


def shake(model: torch.nn.Module) -> None:
    """Other numbers in PEFT's prompt than it begins with."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():  # type: ignore[union-attr]
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


# --- PEFT -------------------------------------------------------------------------------------------------------------


@named(KNOBS)
@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_ours_in_peft(peft: Any, family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict) -> None:
    adapted = load(family(name))
    put(adapted, knobs)
    expected = answer(adapted)
    adapted.save("a", tmp_path, base=str(family(name)), about={})
    theirs = peft.PeftModel.from_pretrained(open_model(family(name)), tmp_path)
    with torch.no_grad():
        found = theirs(input_ids=ids()).logits[:, -ids().shape[1] :]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(logits(adapted.model), expected, atol=1e-2)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config.keys() <= theirs.peft_config["default"].to_dict().keys()
    saved = peft.get_peft_model_state_dict(theirs)
    assert {key: value.shape for key, value in adapted.state("a").items()} == {k: v.shape for k, v in saved.items()}


@named(KNOBS)
@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_theirs_in_ours(peft: Any, family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict) -> None:
    model = open_model(family(name))
    theirs = peft.get_peft_model(model, their_config(peft, knobs, "CAUSAL_LM", model)).eval()
    shake(theirs)
    with torch.no_grad():
        expected = theirs(input_ids=ids()).logits[:, -ids().shape[1] :]
    theirs.save_pretrained(tmp_path)
    adapted = load(family(name))
    base = logits(adapted.model)
    adapted.load("a", tmp_path)
    assert adapted.methods["a"].name == knobs["name"]
    assert torch.allclose(answer(adapted), expected, atol=1e-5)
    assert torch.equal(answer(adapted, BASE), base)
    assert torch.equal(answer(adapted, Weights("a", 0.0)), base)


@named(ATTENDED)
@pytest.mark.parametrize("name", ["mistral", "gemma3_text", "phi3", "gemma2"])
def test_a_window_passes_by_the_prefix_as_in_peft(
    peft: Any, narrow: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict
) -> None:
    """Layers with a window see the prefix only from nearby; on the way the cache is used as well."""
    adapted = load(narrow(name))
    put(adapted, knobs)
    asked = torch.randint(10, 290, (2, 25), generator=torch.Generator().manual_seed(1))
    expected = answer(adapted, asked=asked)
    adapted.save("a", tmp_path, base="b", about={})
    theirs = peft.PeftModel.from_pretrained(open_model(narrow(name)), tmp_path)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=asked).logits, expected, atol=1e-5)
    with adapted.using(TRAINED) as model:
        assert torch.allclose(step_by_step(model, asked[:1]), expected[:1], atol=1e-5)


@named(EMBEDDED)
@pytest.mark.parametrize("name", ENCODERS)
def test_a_classifier_goes_both_ways(
    peft: Any, family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict
) -> None:
    torch.manual_seed(1)
    task = LABELS
    model, _ = load_model(ModelSettings(name=str(family(name))), torch.device("cpu"), torch.float32, task)
    start = {key: value.clone() for key, value in model.state_dict().items()}

    def theirs_of(head: dict[str, torch.Tensor]) -> PreTrainedModel:
        found = open_model(family(name), AutoModelForSequenceClassification, num_labels=3)
        found.load_state_dict(head)
        return found

    more = {"token_type_ids": torch.tensor([[0] * 6 + [1] * 5] * 2)} if name == "bert" else {}
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 7:] = 0
    adapted = Adapted(model)
    put(adapted, knobs, heads=find_heads(model))
    n = knobs["tokens"]
    padded = {"attention_mask": torch.cat([torch.ones(2, n, dtype=torch.long), mask], dim=1)}
    behind = {key: torch.nn.functional.pad(value, (n, 0)) for key, value in more.items()}
    expected = answer(adapted, **behind, **padded)
    adapted.save("a", tmp_path / "ours", base="b", about={}, task_type="SEQ_CLS")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == sorted(find_heads(model))
    theirs = peft.PeftModel.from_pretrained(theirs_of(start), tmp_path / "ours")
    with torch.no_grad():
        found = theirs(input_ids=ids(), attention_mask=mask, **more).logits
    assert torch.allclose(found, expected, atol=1e-5)

    other = theirs_of(start)
    theirs = peft.get_peft_model(other, their_config(peft, knobs, "SEQ_CLS", other)).eval()
    shake(theirs)
    with torch.no_grad():
        for key, value in theirs.named_parameters():
            if "modules_to_save" in key:
                value.add_(0.3 * torch.randn(value.shape))
        expected = theirs(input_ids=ids(), attention_mask=mask, **more).logits
    theirs.save_pretrained(tmp_path / "theirs")
    torch.manual_seed(1)
    other = Adapted(load_model(ModelSettings(name=str(family(name))), torch.device("cpu"), torch.float32, task)[0])
    base = answer(other, BASE, **more, attention_mask=mask)
    other.load("a", tmp_path / "theirs")
    assert torch.allclose(answer(other, **behind, **padded), expected, atol=1e-5)
    assert torch.equal(answer(other, BASE, **more, attention_mask=mask), base)


@named(EMBEDDED[:2])
def test_the_encoder_of_t5_reads_virtual_tokens(
    peft: Any, family: Callable[[str], Path], tmp_path: Path, knobs: dict
) -> None:
    def load_t5() -> Adapted:
        return Adapted(open_model(family("t5"), AutoModelForSeq2SeqLM))

    wanted = torch.randint(10, 290, (2, 6), generator=torch.Generator().manual_seed(2))

    def ours(adapted: Adapted, weights: Weights = TRAINED) -> torch.Tensor:
        before, _ = adapted.before(weights)
        asked = torch.cat([torch.tensor([before] * 2, dtype=torch.long), ids()], dim=1)
        with adapted.using(weights) as model, torch.no_grad():
            return model(input_ids=asked, decoder_input_ids=wanted).logits

    adapted = load_t5()
    base = ours(adapted, BASE)
    put(adapted, knobs)
    assert not torch.allclose(ours(adapted), base, atol=1e-2)
    assert torch.equal(ours(adapted, BASE), base)
    adapted.save("a", tmp_path / "ours", base="b", about={}, task_type="SEQ_2_SEQ_LM")
    theirs = peft.PeftModel.from_pretrained(open_model(family("t5"), AutoModelForSeq2SeqLM), tmp_path / "ours")
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids(), decoder_input_ids=wanted).logits, ours(adapted), atol=1e-5)

    model = open_model(family("t5"), AutoModelForSeq2SeqLM)
    theirs = peft.get_peft_model(model, their_config(peft, knobs, "SEQ_2_SEQ_LM")).eval()
    shake(theirs)
    with torch.no_grad():
        expected = theirs(input_ids=ids(), decoder_input_ids=wanted).logits
    theirs.save_pretrained(tmp_path / "theirs")
    other = load_t5()
    other.load("a", tmp_path / "theirs")
    assert torch.allclose(ours(other), expected, atol=1e-5)


#: Encoder-decoders, built small: an even number of blocks, fewer of them in the decoder, a bias in every layer.
SPOKEN: list[tuple[str, dict[str, Any]]] = [
    ("t5", {"num_layers": 3}),
    ("t5", {"num_layers": 4, "num_heads": 3}),
    ("t5", {"num_layers": 3, "num_decoder_layers": 2}),
    ("umt5", {"num_layers": 3}),
]
SAID = torch.randint(10, 290, (2, 6), generator=torch.Generator().manual_seed(2))
spoken = pytest.mark.parametrize(("name", "sizes"), SPOKEN, ids=lambda one: one if isinstance(one, str) else "")


def encoder_decoder(folder: Path, name: str = "t5", **sizes: Any) -> Path:
    sizes = {"num_heads": 4, "decoder_start_token_id": 0, "d_model": 32, "d_kv": 8, "d_ff": 64} | sizes
    config = AutoConfig.for_model(name, vocab_size=300, pad_token_id=0, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / "base")
    return folder / "base"


def half_read() -> dict[str, torch.Tensor]:
    """Rows for an encoder-decoder, one of them padded on both sides of it."""
    read, said = torch.ones_like(ids()), torch.ones_like(SAID)
    read[1, 7:], said[1, 4:] = 0, 0
    return {"attention_mask": read, "decoder_attention_mask": said, "decoder_input_ids": SAID}


@named(ATTENDED)
@spoken
def test_a_decoder_carries_a_prefix_both_ways(peft: Any, tmp_path: Path, name: str, sizes: dict, knobs: dict) -> None:
    folder = encoder_decoder(tmp_path, name, **sizes)
    adapted = Adapted(open_model(folder, AutoModelForSeq2SeqLM))
    base = answer(adapted, BASE, **half_read())
    put(adapted, knobs)
    expected = answer(adapted, **half_read())
    assert not torch.allclose(expected, base, atol=1e-2)
    assert torch.equal(answer(adapted, BASE, **half_read()), base)
    adapted.save("a", tmp_path / "ours", base="b", about={}, task_type="SEQ_2_SEQ_LM")
    theirs = peft.PeftModel.from_pretrained(open_model(folder, AutoModelForSeq2SeqLM), tmp_path / "ours")
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids(), **half_read()).logits, expected, atol=1e-5)

    model = open_model(folder, AutoModelForSeq2SeqLM)
    config = their_config(peft, knobs, "SEQ_2_SEQ_LM")
    config.token_dim = model.config.num_heads * model.config.d_kv
    theirs = peft.get_peft_model(model, config).eval()
    shake(theirs)
    with torch.no_grad():
        expected = theirs(input_ids=ids(), **half_read()).logits
    theirs.save_pretrained(tmp_path / "theirs")
    adapted.load("b", tmp_path / "theirs")
    assert adapted.methods["b"].name == knobs["name"]
    assert torch.allclose(answer(adapted, Weights("b"), **half_read()), expected, atol=1e-5)
    saved = peft.get_peft_model_state_dict(theirs)
    assert {key: value.shape for key, value in adapted.state("b").items()} == {k: v.shape for k, v in saved.items()}
    files = [json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs")]
    for key in ("num_layers", "num_attention_heads", "token_dim", "num_transformer_submodules", "num_virtual_tokens"):
        assert files[0][key] == files[1][key]
    # What is foreseen from the files alone is what is trained.
    trained = sum(parameter.numel() for parameter in adapted.start_training("a").values())
    assert count_trainable(method_of(knobs), describe(folder)) == trained
    adapted.unwrap()
    assert torch.equal(adapted.model(input_ids=ids(), **half_read()).logits, base)
    assert adapted.model.state_dict().keys() == open_model(folder, AutoModelForSeq2SeqLM).state_dict().keys()


@named(ATTENDED)
@spoken
def test_a_decoder_writes_with_a_prefix_and_a_cache(
    peft: Any, tmp_path: Path, name: str, sizes: dict, knobs: dict
) -> None:
    adapted = Adapted(open_model(encoder_decoder(tmp_path, name, **sizes), AutoModelForSeq2SeqLM))
    put(adapted, knobs)
    asked, cache, found = ids()[:1], EncoderDecoderCache(DynamicCache(), DynamicCache()), []
    with adapted.using(TRAINED) as model, torch.no_grad():
        for first, behind in ((0, 3), (3, 4), (4, 5), (5, 6)):  # the first few tokens at once, then one at a time
            said = SAID[:1, first:behind]
            more = {"decoder_input_ids": said, "past_key_values": cache, "use_cache": True}
            found.append(model(input_ids=asked, **more).logits)
    at_once = answer(adapted, asked=asked, decoder_input_ids=SAID[:1], use_cache=False)
    assert torch.allclose(torch.cat(found, dim=1), at_once, atol=1e-5)

    sampling = Sampling(temperature=0.0, max_tokens=12, repetition_penalty=9.0)
    before, taken = adapted.before(TRAINED)
    assert (before, taken) == ([], 0)

    def write(weights: Weights) -> list[int]:
        return list(generate(adapted.model, asked[0].tolist(), set(), sampling, lambda: adapted.using(weights)))

    written = write(TRAINED)
    assert write(BASE) != written
    adapted.save("a", tmp_path / "ours", base="b", about={}, task_type="SEQ_2_SEQ_LM")
    theirs = peft.PeftModel.from_pretrained(open_model(tmp_path / "base", AutoModelForSeq2SeqLM), tmp_path / "ours")
    wanted = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1, "eos_token_id": None, "repetition_penalty": 9.0}
    assert theirs.generate(input_ids=asked, **wanted)[0].tolist() == [0, *written]


def check_checkpointing(
    adapted: Adapted, trained: dict[str, torch.nn.Parameter], asked: torch.Tensor, wanted: torch.Tensor
) -> None:
    """The same loss to the bit, and the same gradients of all that is trained, with checkpointing and without."""
    adapted.model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            adapted.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        loss = adapted.model(input_ids=asked, labels=wanted, use_cache=False).loss
        loss.backward()
        found.append((loss.detach(), {key: value.grad.clone() for key, value in trained.items()}))
        adapted.model.zero_grad(set_to_none=True)
    (plain, before), (checkpointed, after) = found
    assert torch.equal(plain, checkpointed)
    assert all(before[key].abs().max() > 0 for key in before)
    assert all(torch.allclose(before[key], after[key], atol=1e-6, rtol=1e-4) for key in before)


@named(ATTENDED)
@spoken
def test_checkpointing_a_decoder_changes_nothing_where_pefts_prefix_refuses_it(
    peft: Any, tmp_path: Path, name: str, sizes: dict, knobs: dict
) -> None:
    folder = encoder_decoder(tmp_path, name, **sizes)
    adapted = Adapted(open_model(folder, AutoModelForSeq2SeqLM))
    adapted.add("a", method_of(knobs))
    trained = fill(adapted, "a")
    check_checkpointing(adapted, trained, ids(), SAID)
    model = open_model(folder, AutoModelForSeq2SeqLM)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(ValueError, match="gradient checkpointing"):
        peft.get_peft_model(model, their_config(peft, knobs, "SEQ_2_SEQ_LM"))


@named(ATTENDED)
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("bart", {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}),
        ("t5", {"num_layers": 2, "num_decoder_layers": 3}),  # PEFT has pairs for as many layers as the encoder has
    ],
)
def test_prefixes_that_a_model_cannot_carry_are_refused(tmp_path: Path, name: str, sizes: dict, knobs: dict) -> None:
    if name == "bart":
        sizes = sizes | {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    adapted = Adapted(open_model(encoder_decoder(tmp_path, name, **sizes), AutoModelForSeq2SeqLM))
    with pytest.raises(Problem, match="cannot carry a prefix") as caught:
        adapted.add("a", method_of(knobs))
    assert caught.value.parts[0].field == "method.name"
    assert not adapted.methods
    adapted.model(input_ids=ids(), decoder_input_ids=SAID)  # and it is left as it was


@named(ATTENDED)
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_carries_a_prefix(
    peft: Any, family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict
) -> None:
    """PEFT's prefix is a cache, which DistilBERT does not have."""
    task = LABELS

    def build() -> Adapted:
        torch.manual_seed(1)
        return Adapted(load_model(ModelSettings(name=str(family(name))), torch.device("cpu"), torch.float32, task)[0])

    adapted = build()
    start = {key: value.clone() for key, value in adapted.model.state_dict().items()}
    base = answer(adapted, BASE)
    put(adapted, knobs, heads=find_heads(adapted.model))
    expected = answer(adapted)
    assert not torch.allclose(expected, base, atol=1e-2)
    # Keys before the row are seen by every token, and padding is seen by none.
    wide = torch.nn.functional.pad(ids(), (0, 4))
    mask = torch.nn.functional.pad(torch.ones_like(ids()), (0, 4))
    assert torch.allclose(answer(adapted, asked=wide, attention_mask=mask), expected, atol=1e-5)
    adapted.save("a", tmp_path, base="b", about={}, task_type="SEQ_CLS")
    other = build()
    other.load("a", tmp_path)
    assert torch.allclose(answer(other), expected, atol=1e-6)
    assert torch.equal(answer(other, BASE), base)
    theirs = open_model(family(name), AutoModelForSequenceClassification, num_labels=3)
    if name == "distilbert":
        with pytest.raises(ValueError, match="past key values"):
            peft.PeftModel.from_pretrained(theirs, tmp_path)(input_ids=ids())
        return
    theirs.load_state_dict({key: value for key, value in start.items() if key in theirs.state_dict()})
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids()).logits, expected, atol=1e-5)


@named(KNOBS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_checkpointing_changes_nothing_where_pefts_prefix_refuses_it(
    peft: Any, family: Callable[[str], Path], name: str, knobs: dict
) -> None:
    adapted = load(family(name))
    adapted.add("a", method_of(knobs | {"dropout": 0.0} if "dropout" in knobs else knobs))
    trained = fill(adapted, "a")
    virtual = torch.tensor([adapted.prompt_ids("a")] * 2, dtype=torch.long)
    asked, wanted = torch.cat([virtual, ids()], dim=1), torch.cat([torch.full_like(virtual, -100), ids()], dim=1)
    check_checkpointing(adapted, trained, asked, wanted)
    if knobs in ATTENDED:
        model = open_model(family(name))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with pytest.raises(ValueError, match="gradient checkpointing"):
            peft.get_peft_model(model, their_config(peft, knobs, "CAUSAL_LM", model))


# --- what stands where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "p_tuning_v2", "prefix_tuning"])
@pytest.mark.parametrize("name", [*FAMILIES, *MORE, "gemma2"])
def test_a_fresh_prompt_is_the_text_that_it_begins_as(
    family: Callable[[str], Path], narrow: Callable[[str], Path], name: str, kind: str
) -> None:
    """Embeddings, or keys and values, of a text do what the text itself does when it stands there."""
    adapted = load(narrow(name) if name == "gemma2" else family(name))
    text = [5, 17, 30, 121]
    with torch.no_grad():
        spoken = adapted.model(input_ids=torch.cat([torch.tensor([text] * 2), ids()], dim=1)).logits[:, len(text) :]
    adapted.add("a", methods.find(kind)(tokens=4, init="text", text="unread"), starting_ids=text)
    assert torch.allclose(answer(adapted), spoken, atol=1e-5)
    assert not torch.allclose(answer(adapted, BASE), spoken, atol=1e-2)


def test_a_text_is_repeated_or_cut_and_words_are_drawn_by_the_seed(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    embeddings = adapted.model.get_input_embeddings().weight
    method = methods.find("prompt_tuning")
    for tokens, expected in ((5, [7, 8, 9, 7, 8]), (2, [7, 8])):
        adapted.add("a", method(tokens=tokens, init="text", text="x"), starting_ids=[7, 8, 9])
        assert torch.equal(adapted.state("a")["prompt_embeddings"], embeddings[expected])
        adapted.remove("a")

    def draw(seed: int, **knobs: Any) -> torch.Tensor:
        adapted.add("a", method(tokens=6, **knobs), seed=seed)
        found = adapted.state("a")["prompt_embeddings"].clone()
        adapted.remove("a")
        return found

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert all(any(torch.equal(one, word) for word in embeddings) for one in draw(1))
    assert not any(torch.equal(one, word) for one in draw(1, init="random") for word in embeddings)


def step_by_step(model: PreTrainedModel, asked: torch.Tensor, together: int = 3) -> torch.Tensor:
    """Logits (1, length, vocabulary) by a cache: the first few tokens at once, then one at a time."""
    cache, found, done = DynamicCache(config=model.config), [], 0
    with torch.no_grad():
        while done < asked.shape[1]:
            new = asked[:, done : done + (1 if done else together)]
            found.append(model(input_ids=new, past_key_values=cache, use_cache=True).logits)
            done += new.shape[1]
    return torch.cat(found, dim=1)


@named(KNOBS)
@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_a_cache_changes_nothing(family: Callable[[str], Path], name: str, knobs: dict) -> None:
    adapted = load(family(name))
    put(adapted, knobs)
    before, _ = adapted.before(TRAINED)
    expected = answer(adapted)[:1]
    with adapted.using(TRAINED) as model:
        whole = torch.cat([torch.tensor([before], dtype=torch.long), ids()[:1]], dim=1)
        found = step_by_step(model, whole, len(before) + 3)[:, len(before) :]
    assert torch.allclose(found, expected, atol=1e-5)


ROWS = [
    Row([20, 21, 22, 23, 24], [True, False, True, True, True]),
    Row([30, 31, 32], [False, True, True]),
    Row([40, 41, 42, 43, 44, 45, 46], [True] * 7),
]


@named(KNOBS)
@pytest.mark.parametrize("name", [*FAMILIES, *MORE, "narrow"])
def test_neither_packing_nor_padding_changes_anything(
    family: Callable[[str], Path], narrow: Callable[[str], Path], name: str, knobs: dict
) -> None:
    adapted = load(narrow("gemma3_text") if name == "narrow" else family(name))
    put(adapted, knobs)
    with adapted.using(TRAINED) as model, torch.no_grad():
        before, _ = adapted.before(TRAINED)
        reader = Reader(model, packing=True, before=before)
        assert reader.packs == (name not in ("opt", "mixtral")) or name == "mixtral"
        alone = [(row, reader.logits(model, collate([row], 0, pack=None, before=before))) for row in ROWS]
        for pack in (None, 200) if reader.packs else (None,):
            batch = collate(ROWS, 0, pack=pack, before=before)
            assert batch.input_ids.shape[0] == (1 if pack else 3)
            order = sorted(alone, key=lambda pair: -len(pair[0].ids)) if pack else alone
            assert torch.allclose(reader.logits(model, batch), torch.cat([one for _, one in order]), atol=1e-4)
            learned = [token for row, _ in order for token in torch.tensor(row.ids)[1:][torch.tensor(row.trained[1:])]]
            assert batch.targets.tolist() == [int(token) for token in learned]
        # The logits are those of the places before the learned tokens.
        whole = answer(adapted, asked=torch.tensor([ROWS[0].ids]))[0]
        assert torch.allclose(alone[0][1], whole[[1, 2, 3]], atol=1e-5)


def test_answers_in_a_text_are_found_where_they_are(family: Callable[[str], Path]) -> None:
    """Neither the windows nor the places of their tokens are moved by virtual tokens."""
    task = objectives.find("extractive_qa")
    torch.manual_seed(0)
    model, tokenizer = load_model(ModelSettings(name=str(family("bert"))), torch.device("cpu"), torch.float32, task)
    adapted = Adapted(model)
    put(adapted, EMBEDDED[0], heads=find_heads(model))
    tokens = Tokens(tokenizer, 128, set())
    (row,) = tokens.spell_windows("what sat", "the cat sat on the mat", 0)
    before, _ = adapted.before(TRAINED)
    n = len(before)
    reader = Reader(model, packing=False, kind="question_answering").behind(before)
    with adapted.using(TRAINED) as active, torch.no_grad():
        found = reader.logits(active, collate([row], 0, pack=None, before=before))[0]
        segments = torch.tensor([[0] * n + (row.segments or [])])
        output = active(input_ids=torch.tensor([before + row.ids]), token_type_ids=segments)
        answer_found = find_answer(active, reader, task, tokens, "what sat", "the cat sat on the mat")
    expected = torch.stack([output.start_logits[0], output.end_logits[0]], -1)[n:]
    inside = torch.tensor([number == 0 or place is not None for number, place in enumerate(row.places)])
    assert found.shape == expected.shape == (len(row.ids), 2)
    assert torch.allclose(found[inside], expected[inside], atol=1e-6)
    assert torch.isinf(found[~inside]).all()
    assert answer_found.answer
    assert answer_found.answer in "the cat sat on the mat"


# --- switching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_two_prompts_two_prefixes_and_a_lora_do_not_mix(family: Callable[[str], Path], name: str) -> None:
    adapted = load(family(name))
    kinds = [
        EMBEDDED[0], EMBEDDED[0] | {"tokens": 3}, ATTENDED[0], ATTENDED[1], {"name": "lora", "rank": 2},
        {"name": "lora", "rank": 2, "targets": ["embed_tokens"]},
    ]  # fmt: skip
    asked = [Weights(str(number)) for number in range(len(kinds))]
    alone = []
    for number, knobs in enumerate(kinds):
        single = load(family(name))
        put(single, knobs, str(number), seed=number)
        alone.append(answer(single, asked[number]))
    base = answer(adapted, BASE)
    for number, knobs in enumerate(kinds):
        put(adapted, knobs, str(number), seed=number)
    for _ in range(2):
        for number in (0, 5, 2, 4, 1, 3):
            assert torch.allclose(answer(adapted, asked[number]), alone[number], atol=1e-5), kinds[number]
            assert torch.equal(answer(adapted, BASE), base)
            assert torch.equal(answer(adapted, Weights(str(number), 0.0)), base)
            assert adapted.model.config._attn_implementation == "sdpa"
    for number in (2, 3, 4, 0):  # training takes turns as well, with nothing between
        adapted.start_training(str(number))
        before = adapted.prompt_ids(str(number))
        assert torch.allclose(logits(adapted.model, before), alone[number], atol=1e-5)
    adapted._activate(None, 1.0)
    adapted.remove("0")
    adapted.remove("2")
    assert torch.allclose(answer(adapted, asked[1]), alone[1], atol=1e-5)
    assert torch.allclose(answer(adapted, asked[3]), alone[3], atol=1e-5)
    adapted.unwrap()
    assert torch.equal(logits(adapted.model), base)


@named(KNOBS)
def test_answers_that_take_turns_keep_their_own_prompt(family: Callable[[str], Path], knobs: dict) -> None:
    adapted = load(family("llama"))
    put(adapted, knobs)
    sampling = Sampling(temperature=0.0, max_tokens=12, repetition_penalty=1.3)
    prompt = [9, 50, 60]

    def speak(weights: Weights) -> Any:
        before, taken = adapted.before(weights)
        return generate(adapted.model, [*before, *prompt], set(), sampling, lambda: adapted.using(weights), taken)

    with_it, without = list(speak(TRAINED)), list(speak(BASE))
    assert with_it != without
    pairs = list(zip(speak(TRAINED), speak(BASE), strict=True))
    assert [one for one, _ in pairs] == with_it
    assert [one for _, one in pairs] == without


def test_a_prompt_leaves_the_tied_head_alone(family: Callable[[str], Path], tmp_path: Path) -> None:
    model = open_model(family("gpt2"))
    assert model.lm_head.weight is model.transformer.wte.weight
    adapted = Adapted(model)
    put(adapted, EMBEDDED[0])
    assert model.lm_head.weight is model.transformer.wte.base.weight
    assert not adapted.untied
    adapted.unwrap()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(open_model(tmp_path)), logits(open_model(family("gpt2"))))


@named(KNOBS)
def test_strengths_that_a_prompt_cannot_have_are_told(family: Callable[[str], Path], knobs: dict) -> None:
    adapted = load(family("llama"))
    put(adapted, knobs)
    for weights, words in ((Weights("a", 0.5), "strength 0.5"), (Weights("a", merged=True), "cannot be merged")):
        with pytest.raises(Problem, match=words):
            adapted.check(weights)
        with pytest.raises(Problem, match=words), adapted.using(weights):
            pass
    with pytest.raises(Problem, match="plain LoRA"):
        adapted.low_rank("a")


@named(KNOBS)
def test_a_half_precision_base_is_trained_beside(family: Callable[[str], Path], knobs: dict) -> None:
    model, _ = load_model(ModelSettings(name=str(family("llama"))), torch.device("cpu"), torch.bfloat16)
    adapted = Adapted(model)
    base = logits(adapted.model)
    put(adapted, knobs)
    trained = adapted.start_training("a")
    virtual = torch.tensor([adapted.prompt_ids("a")] * 2, dtype=torch.long)
    output = model(input_ids=torch.cat([virtual, ids()], dim=1))
    assert output.logits.dtype == torch.bfloat16
    output.logits.float().logsumexp(-1).sum().backward()
    for parameter in trained.values():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()
    assert torch.equal(answer(adapted, BASE), base)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@named(KNOBS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_more_virtual_tokens_than_there_is_room_for(
    family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict
) -> None:
    adapted = load(family(name))
    with pytest.raises(Problem, match="no room for 121") as caught:
        adapted.add("a", method_of(knobs | {"tokens": 121}))
    assert caught.value.parts[0].field == "method.tokens"
    adapted.add("a", method_of(knobs | {"tokens": 120}))
    adapted.save("a", tmp_path, base="b", about={})
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"num_virtual_tokens": 200}))
    other = load(family(name))
    with pytest.raises(Problem, match="no room for 200"):
        other.load("a", tmp_path)


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning", "p_tuning_v2", "prefix_tuning"])
@pytest.mark.parametrize(
    ("knobs", "field"),
    [
        ({"init": "text"}, "method.text"),
        ({"init": "text", "text": " \n"}, "method.text"),
        ({"text": "Answer."}, "method.text"),
        ({"tokens": 0}, "method.tokens"),
        ({"tokens": 5000}, "method.tokens"),
        ({"init": "words"}, "method.init"),
    ],
)
def test_wrong_knobs_are_told_beside_their_field(kind: str, knobs: dict, field: str) -> None:
    with pytest.raises(Problem) as caught:
        Config.read({"method": {"name": kind} | knobs})
    assert [part.field for part in caught.value.parts] == [field]


@named([KNOBS[0], KNOBS[3]])
def test_files_that_do_not_fit_are_refused(family: Callable[[str], Path], tmp_path: Path, knobs: dict) -> None:
    from safetensors.torch import load_file, save_file

    adapted = load(family("llama"))
    put(adapted, knobs)
    adapted.save("a", tmp_path, base="b", about={})
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({"prompt_embeddings": tensors["prompt_embeddings"][:, 1:].clone(), "more": torch.ones(1)}, path)
    base = logits(adapted.model)
    with pytest.raises(Problem) as caught:
        adapted.load("b", tmp_path)
    assert "more" in str(caught.value)
    assert "wrong shape" in str(caught.value)
    assert torch.equal(logits(adapted.model), base)
    assert set(adapted.methods) == {"a"}


# --- a whole training -------------------------------------------------------------------------------------------------


@named(KNOBS)
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_resumed_is_never_interrupted(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, name: str, knobs: dict
) -> None:
    settings = {"method": knobs, "train": {"epochs": 1, "save_every": 2, "learning_rate": 0.05}}
    untouched = train(name, **settings)
    write = loop.Log.write

    def cut(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if facts.get("loss") is not None and facts["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Log, "write", cut)
        train(name, **settings)
    run = next(run for run in runs.all_runs() if run.id != untouched.id)
    (run.folder / "worker.json").write_text('{"pid": 1, "birth": 0, "host": "elsewhere"}')
    worker.work(run)
    assert_same(untouched, run)
    losses = [line["eval_loss"] for line in untouched.metrics().evals]
    assert losses[-1] < losses[0]


@named([KNOBS[0], KNOBS[3]])
def test_packed_and_split_trainings_are_the_same(train: Callable[..., Run], knobs: dict) -> None:
    whole = train("llama", method=knobs, train={"batch_size": 8, "epochs": 0.5})
    split = train(
        "llama", method=knobs, data={"packing": False},
        train={"batch_size": 2, "gradient_accumulation": 4, "epochs": 0.5},
    )  # fmt: skip
    for mine, theirs in zip(split.metrics().steps, whole.metrics().steps, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


@named([KNOBS[0], KNOBS[1], KNOBS[3]])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_run_is_spoken_with_as_it_was_trained(train: Callable[..., Run], name: str, knobs: dict) -> None:
    run = train(name, method=knobs, train={"epochs": 3, "learning_rate": 0.05}, samples={"prompts": ["what is 3"]})
    speaker = Speaker(run.config().model)
    greedy = Sampling(temperature=0.0, max_tokens=4)
    conversation = [Message("user", "what is 3")]

    def say(*chosen: Any, sampling: Sampling = greedy) -> str:
        return "".join(speaker.speak(conversation, sampling, *chosen).pieces)

    chosen = speaker.choose(run)
    assert say(*chosen).strip() == run.samples()[-1]["answer"]
    base = say(*speaker.choose(None))
    assert say(*speaker.choose(run, scale=0.0)) == base
    for wrong, words in (({"scale": 0.5}, "strength 0.5"), ({"merged": True}, "cannot be merged")):
        with pytest.raises(Problem, match=words):
            speaker.choose(run, **wrong)
    # To the very end of what the model can read, and with the words already said held against it.
    long = Sampling(temperature=0.0, max_tokens=1000, repetition_penalty=1.5)
    speaker.tokens.end_ids = set()
    speech = speaker.speak(conversation, long, *chosen)
    assert "".join(speech.pieces)
    asked = len(speaker.tokens.prompt(conversation))
    assert speech.usage["completion_tokens"] == 128 - knobs["tokens"] - asked
    assert speech.finish_reason == "length"


def test_rows_end_before_the_room_does(home: Path, family: Callable[[str], Path], rows_file: Path) -> None:
    for knobs in (KNOBS[0], KNOBS[3]):
        config = config_of(
            family("gpt2"), rows_file, method=knobs | {"tokens": 100}, data={"max_length": 128}, train={"max_steps": 1}
        )
        run = runs.create(config)
        worker.work(run)
        started = next(event for event in run.metrics().events if event["event"] == "started")
        assert started["max_length"] == 28
        assert run.state() == "completed"


def test_a_training_begins_at_its_text(home: Path, family: Callable[[str], Path], rows_file: Path) -> None:
    text = "the cat sat on the mat"
    config = config_of(
        family("llama"), rows_file, method={"name": "prompt_tuning", "tokens": 4, "init": "text", "text": text},
        train={"max_steps": 1, "learning_rate": 1e-12},
    )  # fmt: skip
    run = runs.create(config)
    worker.work(run)
    model, tokenizer = load_model(config.model, torch.device("cpu"), torch.float32)
    expected = model.get_input_embeddings().weight[tokenizer(text, add_special_tokens=False).input_ids[:4]]
    adapted = Adapted(model)
    adapted.load("a", run.folder / "adapter")
    assert torch.allclose(adapted.state("a")["prompt_embeddings"], expected, atol=1e-6)


@pytest.mark.parametrize("name", [*ENCODERS, "llama"])
@named([KNOBS[0], KNOBS[1], KNOBS[3]])
def test_classifiers_are_trained_and_asked(
    home: Path, family: Callable[[str], Path], tmp_path: Path, name: str, knobs: dict
) -> None:
    rows = tmp_path / "rows.jsonl"
    words = {"good": "the cat sat", "bad": "what is the sky"}
    lines = [
        json.dumps({"text": f"{words[label]} {number}", "label": label}) for number in range(20) for label in words
    ]
    rows.write_text("\n".join(lines), encoding="utf-8")
    config = Config.read(
        {
            "task": "classification", "model": {"name": str(family(name))}, "method": knobs,
            "data": {"train": str(rows), "max_length": 64, "eval_fraction": 0.2},
            "train": {"epochs": 24, "batch_size": 8, "learning_rate": 0.02, "eval_every": 0, "save_every": 0},
        }
    )  # fmt: skip
    run = runs.create(config)
    worker.work(run)
    losses = [line["eval_loss"] for line in run.metrics().evals]
    assert losses[-1] < 0.9 * losses[0]
    speaker = Speaker(config.model)
    shown = run.samples()[-1]
    again, _ = speaker.classify(run, shown["prompt"])
    assert shown["answer"].startswith(f"{again[0][0]} {again[0][1]:.3f}")
