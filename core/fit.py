"""What a training will be before it starts: what is trained, on how much, in how many steps."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core import dataset, methods, objectives
from core.config import Config, Settings, TrainSettings
from core.model import ModelFacts, check_safety, check_task, describe, locate
from core.problem import Problem
from core.targets import HEADS, ends_with, lies_in


@dataclass(frozen=True)
class Estimate:
    """Counted from the model's headers and the number of rows; None where it can't be known yet."""

    parameters: int | None
    trainable: int | None
    rows: int | None
    eval_rows: int | None
    steps: int | None
    batch_size: int

    @property
    def share(self) -> float | None:
        """Trainable numbers as a share of the base model's."""
        return None if not self.parameters or self.trainable is None else self.trainable / self.parameters


def count_trainable(method: methods.Method, facts: ModelFacts, *, fresh_head: bool = False) -> int:
    """How many numbers the method trains in that model.

    Args:
        fresh_head: whether the task puts a head of its own on the model; its size is known when the data are, and is
            not counted.

    Raises:
        Problem: when the targets match no layer, the rank is above what a layer can hold, or nothing would be trained.
    """
    if isinstance(method, methods.LayerMethod):
        return _count_layers(method, facts)
    if isinstance(method, methods.PromptMethod):
        return method.count(facts.prefix_width if method.place == "attention" else facts.hidden_size)
    assert isinstance(method, methods.SelectiveMethod)
    names = dict(facts.names)
    heads = [name for name in names if name.partition(".")[0] in HEADS]
    if fresh_head:
        names = {name: shape for name, shape in names.items() if name not in heads} | {"classifier.weight": (0,)}
    elif not heads and facts.embedding:
        # The head shares the embedding's weight, and gets one of its own when it alone is trained.
        head, shared = "lm_head.weight", facts.embedding
        if method.trains(head, facts.blocks) and not method.trains(shared, facts.blocks):
            names[head] = names[shared]
    return sum(math.prod(names[name]) for name in method.choose(names, facts.blocks))


def _count_layers(method: methods.LayerMethod, facts: ModelFacts) -> int:
    names = dict(facts.names)
    if facts.embedding and not any(name.partition(".")[0] in HEADS for name in names):
        names["lm_head.weight"] = names[facts.embedding]  # tied, and a weight of its own when it is adapted or trained
    chosen = [(part, _measure(part, names, facts)) for part in method.parts()]
    problems = [problem for part, shapes in chosen for problem in part.check(shapes)]
    problems += method.check_names([path for part, shapes in chosen if part.place != "embedding" for path in shapes])
    Problem.raise_all(problems)
    whole = [shape for name, shape in names.items() if lies_in(name, method.modules_to_save)]
    counts = [part.at(path).count(shape) for part, shapes in chosen for path, shape in shapes.items()]
    return sum(counts) + sum(map(math.prod, whole))


def _measure(
    part: methods.LayerMethod, names: Mapping[str, tuple[int, ...]], facts: ModelFacts
) -> dict[str, methods.Shape]:
    """The sizes of what a part of a method adapts, by path."""
    if part.place == "stacks":
        stacks = {path: shape for path, shape in names.items() if len(shape) == 3}
        wanted = part.parameters()
        return {path: methods.Shape(*shape[1:], shape[0]) for path, shape in stacks.items() if ends_with(path, wanted)}
    if part.place == "embedding":
        tokens, width = names[facts.embedding] if facts.embedding else (0, facts.hidden_size)
        return {"embedding": methods.Shape(width, tokens, embedding=True)}
    others = {
        name.removesuffix(".weight"): shape
        for name, shape in names.items()
        if name.endswith(".weight") and len(shape) == 2 and name.removesuffix(".weight") not in facts.linear_layers
    }
    sizes = others | facts.linear_layers
    return {
        path: methods.Shape(*sizes[path])
        if path in facts.linear_layers or path.partition(".")[0] in HEADS
        else methods.Shape(*sizes[path][::-1], embedding=True)
        for path in part.choose(facts.linear_layers, others, facts.model_type)
    }


def count_eval_rows(config: Config, rows: int) -> int:
    """How many of the rows are set aside; a share always leaves one to train on.

    Raises:
        Problem: when that many are wanted that none would be left.
    """
    if config.data.eval or dataset.has_eval_files(config.data.train):
        return 0
    if (wanted := config.data.eval_rows) is not None:
        dataset.check_count(wanted, rows, "data.eval_rows")
        return wanted
    if rows < 2 or config.data.eval_fraction == 0:
        return 0
    return min(rows - 1, max(1, round(rows * config.data.eval_fraction)))


def count_steps(config: Config, rows: int, batch_size: int) -> int:
    """Optimizer steps of the whole training; the last, smaller window of an epoch counts as one."""
    return limit_steps(config.train, math.ceil(rows / (batch_size * config.train.gradient_accumulation)))


def limit_steps(settings: TrainSettings, per_epoch: int) -> int:
    """Optimizer steps of a training whose every epoch has so many."""
    steps = max(1, math.ceil(per_epoch * settings.epochs))
    return min(steps, settings.max_steps) if settings.max_steps else steps


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """The learning rate of a step (counted from 0): a function of the step alone, so that resuming needs no state."""
    warmup = round(settings.warmup * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[
        settings.scheduler
    ]
    return settings.learning_rate * factor


def choose_batch_size(config: Config, parameters: int | None) -> int:
    """What `auto` means: 8 rows for models up to a billion parameters, fewer above; memory decides at run time."""
    if config.train.batch_size != "auto":
        return config.train.batch_size
    billions = (parameters or 0) / 1e9
    return 8 if billions <= 1 else 4 if billions <= 4 else 2 if billions <= 14 else 1


def check_model(config: Config) -> None:
    """Raise a Problem when the model is here and is not safe to load, cannot do the task, or cannot be compressed."""
    folder = locate(config.model.name, config.model.revision)
    files = {} if folder is None else check_safety(folder)
    if folder is not None:
        check_task(config.task, files, config.model.name)
    check_quantization(config.model.quantization, config.method, files)


def check_quantization(kind: str, method: Settings | None = None, files: Mapping[str, Any] | None = None) -> None:
    """Raise a Problem when the base weights cannot be compressed so.

    Args:
        kind: none, nf4 or int8.
        method: what is to be trained.
        files: the model's config.json.
    """
    packed = (files or {}).get("quantization_config")
    if packed and (kind != "none" or dict(packed).get("quant_method") == "bitsandbytes"):
        raise Problem(
            "The model's files are compressed already, as {how}.",
            to_do="Choose the original model; it is compressed while it is loaded.",
            field="model.name",
            how=dict(packed).get("quant_method", "?"),
        )
    if kind == "none":
        return
    if isinstance(method, methods.SelectiveMethod):
        raise Problem(
            "The method {method} trains the base weights themselves, and compressed ones cannot be trained.",
            to_do="Choose LoRA or another method that leaves them as they are, or no quantisation.",
            field="model.quantization",
            method=method.title,
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise Problem(
            "bitsandbytes, which compresses the base weights, is not installed.",
            to_do='Install it with `pip install "atelier-studio[quantization]"`, or choose no quantisation.',
            field="model.quantization",
        )


def estimate(config: Config, rows: int | None = None) -> Estimate:
    """Work it out for a configuration and a number of rows.

    Raises:
        Problem: when the model's files or the method's targets are wrong, or the model cannot do the task.
    """
    folder = locate(config.model.name, config.model.revision)
    facts = describe(folder) if folder else None
    check_model(config)
    batch_size = choose_batch_size(config, facts.parameters if facts else None)
    eval_rows = None if rows is None else count_eval_rows(config, rows)
    fresh_head = objectives.find(config.task).model_kind in ("sequence_classification", "question_answering")
    return Estimate(
        parameters=facts.parameters if facts else None,
        # None: all that is trained is a head that the data will make.
        trainable=(count_trainable(config.method, facts, fresh_head=fresh_head) or None) if facts else None,  # type: ignore[arg-type]
        rows=None if rows is None else rows - (eval_rows or 0),
        eval_rows=eval_rows,
        steps=None if rows is None else count_steps(config, rows - (eval_rows or 0), batch_size),
        batch_size=batch_size,
    )
