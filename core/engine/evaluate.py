"""Evaluation: the loss on rows that were set aside, and what else tells how good the predictions are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from core import dataset, objectives
from core.config import Config
from core.engine.chat import Speaker, restore_task
from core.engine.data import Reader, collate
from core.engine.generate import GREEDY, answer
from core.engine.model import padding_token
from core.engine.rows import Rows, spell
from core.engine.tokens import Tokens
from core.formats import Example
from core.objectives import Objective
from core.objectives.classification import Classification
from core.problem import Problem
from core.runs import Run


@dataclass(frozen=True)
class Measured:
    """The mean loss per target, and each example with what was predicted for its rows (none where nothing can be read
    off the logits)."""

    loss: float
    scored: list[tuple[Example, list[Any]]] = field(default_factory=list)


def measure(
    model: Any,
    reader: Reader,
    objective: Objective,
    rows: Rows,
    *,
    pad: int,
    batch_size: int,
    pack: int | None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Measured:
    """Loss and predictions over all rows (the exponential of a language model's loss is its perplexity); leaves the
    model in the mode it was in."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    scored: list[tuple[Example, list[Any]]] = []
    last = None
    with torch.inference_mode():
        for start in range(0, len(rows.rows), batch_size):
            some = rows.rows[start : start + batch_size]
            batch = collate(some, pad, pack=pack, before=reader.before).to(device)
            with autocast():
                logits = reader.logits(model, batch)
            total += float(objective.loss(logits, batch.targets))
            count += sum(row.targets for row in some)
            if reader.kind not in ("sequence_classification", "question_answering"):
                continue
            for index, (row, one) in enumerate(zip(some, logits.float().cpu(), strict=True), start):
                if rows.origins[index] != last:
                    last = rows.origins[index]
                    scored.append((rows.examples[index], []))
                scored[-1][1].append(objective.predict(row, one))
    model.train(was_training)
    return Measured(total / count, scored)


def write_answers(
    model: Any,
    tokens: Tokens,
    objective: Objective,
    rows: Rows,
    *,
    most: int,
    max_tokens: int,
    stop: Callable[[], bool] = lambda: False,
) -> list[tuple[Example, list[Any]]]:
    """Each of the first `most` examples that gave rows, with what the model writes when it is asked: the likeliest token
    each time.

    Args:
        stop: asked before every answer; when it says yes, nothing was measured.
    """
    was_training = model.training
    model.eval()
    sampling = GREEDY.model_copy(update={"max_tokens": max_tokens})
    room = min(max_tokens, tokens.max_length // 2)
    scored: list[tuple[Example, list[Any]]] = []
    # A long example gave several rows one behind the other, and is asked once.
    firsts = (place for place, of in enumerate(rows.origins) if place == 0 or of != rows.origins[place - 1])
    for example in map(rows.examples.__getitem__, itertools.islice(firsts, most)):
        if stop():
            scored = []
            break
        scored.append((example, [answer(model, tokens, objective.prompt(example, tokens, room), sampling)]))
    model.train(was_training)
    return scored


def evaluate(
    config: Config, source: str, run: Run | None = None, *, merged: bool = False, scale: float = 1.0
) -> dict[str, Any]:
    """How well a run, or a base model alone, does on a data set of its task.

    Args:
        config: the run's own, or one that names the base model and the task.
        source: what `dataset.load` takes.

    Returns:
        {task, rows, refused_rows, cut_rows, loss, what the task measures, weights, and the tables of the task}; a
        language model's loss also as perplexity, and `scored_rows` of a task that writes: only some rows are answered.

    Raises:
        Problem: when the data does not suit the task, or the base model has no head for it.
    """
    data = dataset.load(source, config.data.format, config.data.columns, field="data.eval")
    task = objectives.find(config.task)
    speaker = Speaker(config.model, task if run is None else restore_task(run))
    weights, provenance = speaker.choose(run, merged=merged, scale=scale, kinds=(task.model_kind,))
    # What is classified has the labels of the run, or of the base's own head, whatever the data says.
    known = run is not None or isinstance(task, Classification)
    task = speaker.objective if known else task.fitted(data.examples)
    limit = min(config.data.max_length, speaker.tokens.max_length)
    tokens = Tokens(speaker.tokens.tokenizer, limit, speaker.tokens.end_ids, template=config.data.template)
    rows = spell(data, range(len(data.examples)), task, tokens, config.data, "data.eval")
    if not rows.rows:
        Problem.raise_all(rows.refused[:3])
        raise Problem(
            "No row of {data} has anything to measure.",
            "Every row was cut to {limit} tokens before its answer began.",
            "Raise the longest row.",
            field="data.max_length",
            data=source,
            limit=limit,
        )
    with speaker.adapted.using(weights) as model:
        measured = measure(
            model, speaker.reader, task, rows, pad=padding_token(tokens.tokenizer), batch_size=8, pack=None,
            device=model.device, autocast=nullcontext,
        )  # fmt: skip
        scored = measured.scored
        if task.generates:
            scored = write_answers(
                model, tokens, task, rows, most=config.samples.scored, max_tokens=config.samples.max_new_tokens
            )
    report: dict[str, Any] = {
        "task": task.name,
        "rows": len(set(rows.origins)),
        "refused_rows": len(rows.refused) + len(data.bad),
        "cut_rows": rows.cut,
        "loss": measured.loss,
    }
    if task.model_kind in ("causal_lm", "seq2seq"):
        report["perplexity"] = math.exp(min(measured.loss, 700))
    if task.generates:
        report["scored_rows"] = len(scored)
    return report | task.score(scored) | task.tables(scored) | {"weights": provenance}
