"""Loading a base model and its tokenizer, and refusing what is not whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from core import garbage, objectives
from core.config import ModelSettings
from core.engine import quantization
from core.engine.tokens import LOCAL
from core.fit import check_quantization
from core.model import check_safety, check_task, describe, locate
from core.objectives import Objective
from core.problem import Problem

transformers.utils.logging.disable_progress_bar()

#: A task's model kind -> what PEFT calls it.
_PEFT_TASKS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "question_answering": "QUESTION_ANS",
}


def load_model(
    settings: ModelSettings, device: torch.device, dtype: torch.dtype, objective: Objective | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with the head that a task needs, in evaluation mode on its device, and its tokenizer.

    A head that the files do not hold, or hold for other labels, begins at random (`torch.manual_seed` decides); the
    modules that make it up are `find_heads`.

    Args:
        objective: the task, fitted to its labels; without one, the model goes on with texts.

    Raises:
        Problem: when it is not there, is not whole, is no model that transformers knows, or cannot do the task.
    """
    objective = objective or objectives.find("chat")
    folder = locate(settings.name, settings.revision, download=True)
    assert folder is not None
    check_task(objective.name, check_safety(folder), settings.name)
    tokenizer, _ = load_tokenizer(folder, settings.name)
    check_quantization(settings.quantization, files=check_safety(folder))
    with _told(settings.name), _quiet():
        model, info = _load_weights(folder, device, dtype, objective, settings.quantization)
    garbage.take_up()
    heads = tuple(f"{head}." for head in find_heads(model, settings))
    problems = [
        Problem(
            "The model {name} is not whole: {keys}.",
            to_do="Fetch it again.",
            field="model.name",
            name=settings.name,
            keys=f"{kind} " + ", ".join(sorted(keys)[:5]),
        )
        for kind in ("missing_keys", "mismatched_keys")
        if (keys := [key for key in _names(info[kind]) if not (heads and key.startswith(heads))])
    ]
    Problem.raise_all(problems)
    if objective.model_kind == "sequence_classification":
        _name_padding(model, tokenizer)
    return model.to(device).eval(), tokenizer


def _names(keys: Any) -> list[str]:
    """Keys as transformers reports them: names, or (name, shape, shape) where shapes differ."""
    return [str(key[0] if isinstance(key, tuple) else key) for key in keys]


def _name_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A decoder classifies at the last token that is no padding, and therefore has to know what padding is."""
    config = model.config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = padding_token(tokenizer)


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up: the tokenizer's, else the one that ends a text, else the first."""
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(token for token in named if token is not None))


def find_heads(model: PreTrainedModel, settings: ModelSettings | None = None) -> list[str]:
    """The modules that a task puts on the base model, by path: they are trained whole, whatever the method.

    Empty for models that write text, whose head is a part of what they learned.

    Args:
        settings: which files the model is of. An encoder's pooler counts only where they lack it, so that it began at
            random; where nothing is known of the files, it counts.
    """
    if model.get_output_embeddings() is not None:
        return []
    body = model.base_model
    stacks = ("shared", "encoder", "decoder") if body is model else ()
    heads = [
        name
        for name, module in model.named_children()
        if module is not body and name not in stacks and next(module.parameters(), None) is not None
    ]
    folder = locate(settings.name, settings.revision) if settings else None
    there = describe(folder).names if folder else {}
    if isinstance(getattr(body, "pooler", None), nn.Module) and not any("pooler" in name.split(".") for name in there):
        heads.append(f"{model.base_model_prefix}.pooler")
    return heads


def has_trained_head(settings: ModelSettings, model: PreTrainedModel) -> bool:
    """Whether the model's own files hold its head: a base without one knows nothing of the task."""
    folder = locate(settings.name, settings.revision)
    assert folder is not None
    names = describe(folder).names
    heads = find_heads(model, settings)
    return all(any(name.startswith(f"{head}.") for name in names) for head in heads)


def peft_task(objective: Objective) -> str:
    """What PEFT calls the task."""
    return _PEFT_TASKS[objective.model_kind]


def longest_input(model: PreTrainedModel) -> int | None:
    """How many tokens the model can read, None when nothing limits it."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind the padding's own number.
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return limit


def load_tokenizer(folder: Path, name: str) -> tuple[PreTrainedTokenizerBase, PretrainedConfig]:
    """A model's tokenizer and configuration, without its weights; `name` is what a Problem calls it."""
    check_safety(folder)
    with _told(name):
        return AutoTokenizer.from_pretrained(folder, **LOCAL), AutoConfig.from_pretrained(folder, **LOCAL)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report of fresh and unused weights: what must not be missing is checked here."""
    before = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.utils.logging.set_verbosity(before)


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever transformers raises, in the user's words."""
    try:
        yield
    except Problem:
        raise
    except (ValueError, OSError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise Problem(
            "The model {name} cannot be loaded as a language model.",
            "{reason}",
            "Choose another model, or fetch this one again.",
            field="model.name",
            name=name,
            reason=reason,
        ) from error


def _load_weights(
    folder: Path, device: torch.device, dtype: torch.dtype, objective: Objective, packing: str
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Kernels are named here and never taken from the model's own config.json, which could name foreign ones."""
    build = getattr(transformers, objective.auto_class)
    more: dict[str, Any] = {}
    if objective.model_kind in ("sequence_classification", "question_answering"):
        more["ignore_mismatched_sizes"] = True  # a head for other labels gives way to a fresh one
    if objective.model_kind == "question_answering":
        more["num_labels"] = 2  # the files may be those of a classifier of more
        more["key_mapping"] = _rename_body(folder, build)
    if objective.labels:
        more |= {
            "num_labels": len(objective.labels),
            "id2label": dict(enumerate(objective.labels)),
            "label2id": {label: number for number, label in enumerate(objective.labels)},
            "problem_type": "multi_label_classification" if objective.several else "single_label_classification",
        }
    packed: dict[str, Any] = {}
    if packing != "none":
        kept = _find_unpacked(build.from_config, AutoConfig.from_pretrained(folder, **more, **LOCAL))
        packed["quantization_config"] = quantization.configure(packing, device, dtype, kept)
        packed["device_map"] = {"": device}
    for attention in ("sdpa", "eager"):
        try:
            model, info = build.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
                **packed,
                **more,
                **LOCAL,
            )
            if packed:
                quantization.settle(model, dtype)
            return model, info
        except ValueError as error:
            if attention == "eager" or "attention" not in str(error):
                raise
    raise AssertionError("unreachable")


def _rename_body(folder: Path, build: Any) -> dict[str, str] | None:
    """What of the files' names has to change where a family calls its body otherwise under another head, as Llama
    does: transformers would begin it at random."""
    config = AutoConfig.from_pretrained(folder, **LOCAL)
    named = {
        getattr(one._model_mapping.get(type(config), None), "base_model_prefix", "")
        for one in (AutoModelForCausalLM, build)
    }
    there = {name.partition(".")[0] for name in describe(folder).names}
    here = build._model_mapping[type(config)].base_model_prefix
    other = next((name for name in named - {here, ""} if name in there and here not in there), None)
    return {rf"^{other}\.": f"{here}."} if other else None


def _find_unpacked(build: Callable[[PretrainedConfig], PreTrainedModel], config: PretrainedConfig) -> list[str]:
    """The modules of such a model whose weights are never compressed: its output head, the heads of its task, and
    layers whose rows are no whole blocks."""
    with torch.device("meta"):
        skeleton = build(config)
    head = skeleton.get_output_embeddings()
    return find_heads(skeleton) + [
        path for path, module in skeleton.named_modules() if module is head or not quantization.fits(module)
    ]


def end_token_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the tokenizer's and those of the model's generation settings."""
    named = generation.eos_token_id if generation else None
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return {end for end in ends if end is not None}
