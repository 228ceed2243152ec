"""Rows of tokens in any number: threads and files change nothing of what is learned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core import runs, spool
from core.config import Config
from core.engine import rows as engine_rows
from core.engine import worker
from core.engine.inspection import load_tokens
from core.engine.material import Material
from core.engine.rows import Rows, Spelled, order_rows, spell, spell_each
from core.objectives import AnswerRow, LabelRow, Row, SpanRow
from core.problem import Problem

KINDS = [
    Row([1, 2, 3], b"\0\1\1"),
    Row([5, 6], b"\0\1", lost=[7, 8]),
    LabelRow([1, 2], segments=[0, 1], label=3),
    LabelRow([1], label=(0.0, 1.0)),
    SpanRow([1, 2, 3], segments=[0, 0, 1], span=(1, 2), places=[None, (0, 3), (4, 9)]),
    AnswerRow([1, 2], answer=[4, 5, 6]),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardly anything is kept in memory."""
    monkeypatch.setattr(spool, "IN_MEMORY", 2000)
    monkeypatch.setattr(spool, "BLOCK", 4)


def test_every_kind_of_row_is_read_as_it_was_kept(small: None) -> None:
    kept = Rows()
    for place in range(60):
        kept.add(KINDS[place % len(KINDS)], place)
    kept.add(Row([1, 2], [False, False]), 60)  # teaches nothing
    wanted = [KINDS[place % len(KINDS)] for place in range(60)]
    assert list(kept.rows) == wanted == [kept.rows[place] for place in range(60)]
    assert [type(row) for row in kept.rows] == [type(row) for row in wanted]
    assert (kept.empty, kept.targets) == (1, sum(row.targets for row in wanted))
    assert kept.tokens == sum(row.length for row in wanted)


def config_of(model: Path, path: Path, task: str = "chat", **data: Any) -> Config:
    return Config.read(
        {
            "task": task, "model": {"name": str(model)}, "data": {"train": str(path), "max_length": 48, "eval_fraction": 0.1} | data,
            "method": {"name": "lora", "rank": 4, "dropout": 0.1},
            "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 8}, "samples": {"max_new_tokens": 4},
        }
    )  # fmt: skip


UNSPACED = "猫坐在垫子上。" * 200
"""What is written without spaces has no words that come again."""


def write_talks(path: Path, count: int, mark: str = UNSPACED) -> Path:
    """Conversations that the tokenizer is asked for, in threads; without the mark they are spelled from memory."""
    turns = [
        {"messages": [{"role": "user", "content": f"what is {n}{mark}"}, {"role": "assistant", "content": "cat sat " * (n % 40)}]}
        for n in range(count)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, turns)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("mark", "some", "threads"), [(UNSPACED, 40, True), (" é", 40, False), ("", 40, False), ("", 3, True)]
)
def test_threads_are_used_where_most_rows_need_the_tokenizer(
    mark: str, some: int, threads: bool, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_talks(tmp_path / "a.jsonl", some, mark)
    others = write_talks(tmp_path / "b.jsonl", 99)
    path.write_text("\n".join([path.read_text(), *(others.read_text().splitlines() if some == 3 else ())]))
    material = Material.read(config := config_of(family("llama"), path))
    tokens, _ = load_tokens(config, family("llama"), material.objective)
    seen, real = [], engine_rows._map_ahead

    def look(work: Any, indices: Any, *, alone: bool) -> Any:
        seen.append(not alone)
        return real(work, indices, alone=alone)

    monkeypatch.setattr(engine_rows, "_map_ahead", look)
    assert list(spell_each(material.data, range(len(material.data.examples)), material.objective, tokens, config.data))
    assert seen == [threads]


@pytest.mark.parametrize("too_long", ["cut", "drop"])
def test_threads_keep_order_and_counts(
    too_long: str, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(family("llama"), write_talks(tmp_path / "a.jsonl", 300), too_long=too_long)
    material = Material.read(config)
    found: list[list[tuple[int, Spelled]]] = []
    for block, cores in ((7, 1), (7, 8), (10_000, 8)):  # in many blocks, ahead of each other, and in one
        monkeypatch.setattr(engine_rows, "_BLOCK", block)
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        tokens, _ = load_tokens(config, family("llama"), material.objective)
        indices = list(reversed(range(len(material.data.examples))))
        found.append(list(spell_each(material.data, indices, material.objective, tokens, config.data)))
        kept = spell(material.data, indices, material.objective, tokens, config.data)
        found.append([(kept.cut, [str(kept.dropped)]), *zip(kept.origins, kept.rows, strict=True)])  # type: ignore[list-item]
    assert found[0] == found[2] == found[4] and found[1] == found[3] == found[5]
    assert [index for index, _ in found[0]] == indices
    assert kept.cut + kept.dropped > 20 and (kept.dropped > 0) == (too_long == "drop")


def test_who_stops_looking_is_not_kept_waiting(family: Callable[[str], Path], tmp_path: Path) -> None:
    config = config_of(family("llama"), write_talks(tmp_path / "a.jsonl", 2000))
    material = Material.read(config)
    tokens, _ = load_tokens(config, family("llama"), material.objective)
    asked: list[int] = []
    render = tokens.render
    tokens.render = lambda *given, **more: asked.append(1) or render(*given, **more)  # type: ignore[method-assign,func-returns-value]
    some = spell_each(material.data, range(2000), material.objective, tokens, config.data)
    next(some)
    some.close()
    assert 0 < len(asked) < 2000  # two renderings a row, of whom most were never asked for


def test_a_row_that_a_thread_refuses_is_named(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = ['{"prompt": "what is it é", "completion": "the cat"}'] * 200
    rows[150] = '{"text": "x", "prompt": "<|im_end|>", "completion": "' + "cat " * 3 + '"}'
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    config = config_of(family("llama"), tmp_path / "a.jsonl")
    material = Material.read(config)
    tokens, _ = load_tokens(config, family("llama"), material.objective)
    tokens.tokenizer.chat_template = "{% if '<|im_end|>' in messages[0].content %}{{ raise_exception('No!') }}{% endif %}" + str(
        tokens.tokenizer.chat_template
    )  # fmt: skip
    found = dict(spell_each(material.data, range(200), material.objective, tokens, config.data))
    problem = found.pop(150)
    assert isinstance(problem, Problem) and "Row 151: The model's chat template refuses" in str(problem)
    assert not any(isinstance(one, Problem) for one in found.values())


@pytest.mark.parametrize(("task", "name"), [("chat", "llama"), ("classification", "bert"), ("extractive_qa", "bert")])
def test_a_run_on_rows_in_a_file_learns_the_same(
    task: str, name: str, home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    write_talks(path, 40, " é")
    words = "the cat sat on the mat what is colour of sky".split()
    if task == "classification":
        rows = [{"text": " ".join(words[n % 7 : n % 9 + 2]), "label": "ab"[n % 2]} for n in range(40)]
        path.write_text("\n".join(map(json.dumps, rows)))
    if task == "extractive_qa":
        rows = [{"context": " ".join(words * 6), "question": "what is", "answers": [words[n % 9]]} for n in range(40)]
        path.write_text("\n".join(map(json.dumps, rows)))
    found = []
    for limit in (2000, 10**9):
        monkeypatch.setattr(spool, "IN_MEMORY", limit)
        monkeypatch.setattr(spool, "BLOCK", 4)
        run = runs.create(config_of(family(name), path, task))
        assert worker.work(run)["outcome"] == "completed", run.log_tail()
        metrics = run.metrics()
        numbers = [
            {key: line[key] for key in line if "loss" in key or "eval" in key} for line in metrics.steps + metrics.evals
        ]
        found.append((load_file(run.folder / "adapter" / "adapter_model.safetensors"), numbers))
    (kept, numbers), (wanted, same) = found
    assert numbers == same
    assert kept.keys() == wanted.keys() and all(kept[key].equal(wanted[key]) for key in wanted)


def test_an_epoch_has_every_row_once() -> None:
    order = order_rows(1000, 3, 2)
    assert sorted(order) == list(range(1000)) and list(order) != list(range(1000))
    assert list(order) == list(order_rows(1000, 3, 2)) != list(order_rows(1000, 3, 1))
