"""Data sets as rows of tokens: every example spelled by its task, and kept in order, however many there are."""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import random
from array import array
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import pyarrow

from core.config import DataSettings
from core.dataset import Dataset
from core.engine.tokens import Tokens
from core.formats import Example
from core.judgement import texts_of
from core.objectives import AnswerRow, LabelRow, Objective, Row, SpanRow, refuse
from core.problem import Problem
from core.spool import Spool

_BLOCK = 32
"""Examples that a thread spells before it hands them over."""
_ASKED = 8
_KINDS: tuple[type[Row], ...] = (Row, LabelRow, SpanRow, AnswerRow)


class Rows:
    """All rows of a data set as tokens, and what became of the others.

    `rows[i]` was made of `examples[i]`, which is example `origins[i]` of the data set: several rows may be made of one.

    Args:
        source: the data set's examples.
    """

    def __init__(self, source: Sequence[Example] = ()):
        self.rows: Spool[Row] = Spool(_columns, _pack, _unpack, weigh=_weigh)
        self.origins = array("q")
        self.examples: Sequence[Example] = _Chosen(source, self.origins)
        self.tokens = self.targets = 0
        self.cut = self.dropped = self.empty = 0
        self.refused: list[Problem] = []

    def add(self, row: Row, origin: int) -> None:
        """A row that was made of example `origin`; one that teaches nothing is only counted."""
        if not row.targets:
            self.empty += 1
            return
        self.rows.append(row)
        self.origins.append(origin)
        self.tokens += row.length
        self.targets += row.targets


class _Chosen(Sequence[Example]):
    """Some examples of many, looked up when they are asked for."""

    def __init__(self, source: Sequence[Example], places: Sequence[int]):
        self._source, self._places = source, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._source[place] for place in self._places[index]]
        return self._source[self._places[index]]


def spell(
    dataset: Dataset,
    indices: Sequence[int],
    objective: Objective,
    tokens: Tokens,
    settings: DataSettings,
    field: str = "data.train",
) -> Rows:
    """Turn the examples of those indices into rows; what gives no row is counted or kept with its Problem.

    Raises:
        Problem: beside `task`, when no row is of a kind that the task can learn from.
    """
    result = Rows(dataset.examples)
    cut_before, dropped_before = tokens.cut, tokens.dropped
    for index, spelled in spell_each(dataset, indices, objective, tokens, settings, field):
        if isinstance(spelled, Problem):
            result.refused.append(spelled)
            continue
        for row in spelled:
            result.add(row, index)
    result.cut, result.dropped = tokens.cut - cut_before, tokens.dropped - dropped_before
    return result


Spelled = list[Row] | Problem
"""What becomes of an example: its rows (none when it is too long and therefore dropped), or why it cannot be used."""


def spell_each(
    dataset: Dataset,
    indices: Sequence[int],
    objective: Objective,
    tokens: Tokens,
    settings: DataSettings,
    field: str = "data.train",
) -> Iterator[tuple[int, Spelled]]:
    """Each example of those indices with what becomes of it, in their order.

    Raises:
        Problem: beside `task`, when no example is of a kind that the task can learn from.
    """
    check_fits(dataset, indices, objective)

    def spell_block(some: Sequence[int]) -> tuple[list[Spelled], int, int]:
        own = copy.copy(tokens)  # with counts of its own
        own.cut = own.dropped = 0
        pairs = ((dataset.examples[index], dataset.numbers[index]) for index in some)
        return [spell_one(*pair, objective, own, settings, field) for pair in pairs], own.cut, own.dropped

    # Threads only help where the tokenizer is at work; those of encoders change its settings.
    alone = objective.model_kind != "causal_lm" or _is_known(dataset, indices, tokens)
    for some, (done, cut, dropped) in _map_ahead(spell_block, indices, alone=alone):
        tokens.cut, tokens.dropped = tokens.cut + cut, tokens.dropped + dropped
        yield from zip(some, done, strict=True)


def check_fits(dataset: Dataset, indices: Sequence[int], objective: Objective) -> None:
    """Raise a Problem when no example is of a kind that the task can learn from."""
    if indices and not any(objective.fits(dataset.examples[index]) for index in indices):
        raise refuse(objective.name, dataset.examples[indices[0]])


def _is_known(dataset: Dataset, indices: Sequence[int], tokens: Tokens) -> bool:
    """Whether most of these examples are spelled from memory, by a few of them."""
    some = indices[:: max(1, len(indices) // _ASKED)]
    known = 0
    for index in some:
        example = dataset.examples[index]
        with contextlib.suppress(Problem):
            text = tokens.render(example.messages) if example.messages else "\n".join(texts_of(example))
            known += tokens.speller.knows(text)
    return 2 * known > len(some)


def spell_one(
    example: Example, number: int, objective: Objective, tokens: Tokens, settings: DataSettings, field: str
) -> Spelled:
    """What becomes of an example, which is that row of its file; what is too long is counted by `tokens`."""
    cut = tokens.cut
    try:
        rows = objective.spell(example, tokens, settings)
    except Problem as problem:
        facts = problem.facts | {"row": number}
        return Problem(
            "Row {row}: " + problem.what, problem.there_is, problem.to_do, field=problem.field or field, **facts
        )
    if settings.too_long == "drop" and tokens.cut > cut:
        tokens.cut, tokens.dropped = cut, tokens.dropped + 1
        # Where people look at it, all of it is lost.
        rows = [Row([], lost=[*row.ids, *row.lost]) for row in rows] if tokens.keeps_lost else []
    return rows


def _map_ahead(work: Any, indices: Sequence[int], *, alone: bool) -> Iterator[tuple[Sequence[int], Any]]:
    """Blocks of the indices with what `work` makes of them, in order; a few of them ahead, in threads, as a tokenizer lets
    the others go on while it is at work, unless it shall be `alone`."""
    blocks = (indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK))
    if alone or len(indices) <= _BLOCK:
        yield from ((some, work(some)) for some in blocks)
        return
    threads = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "spelling") as pool:
        ahead: deque[tuple[Sequence[int], Future[Any]]] = deque()
        try:
            for some in itertools.chain(blocks, [None] * 2 * threads):
                if some is not None:
                    ahead.append((some, pool.submit(work, some)))
                if ahead and (some is None or len(ahead) >= 2 * threads):
                    first, future = ahead.popleft()
                    yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


@lru_cache(maxsize=2)
def order_rows(count: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run needs no memory of it."""
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return array("q", order)


def _columns() -> pyarrow.Schema:
    ids = pyarrow.list_(pyarrow.int32())
    place = pyarrow.struct({"start": pyarrow.int32(), "end": pyarrow.int32()})
    return pyarrow.schema(
        {
            "kind": pyarrow.int8(), "ids": ids, "trained": pyarrow.binary(), "segments": ids, "lost": ids,
            "left_out": pyarrow.int32(), "label": pyarrow.int64(), "labels": pyarrow.list_(pyarrow.float64()), "span": ids,
            "places": pyarrow.list_(place), "answer": ids,
        }
    )  # fmt: skip


def _weigh(row: Row) -> int:
    places = len(row.places) if isinstance(row, SpanRow) else 0
    return 300 + 16 * (row.length + len(row.lost)) + 100 * places


def _pack(row: Row) -> dict[str, Any]:
    packed: dict[str, Any] = {
        "kind": _KINDS.index(type(row)), "ids": row.ids, "trained": bytes(row.trained), "segments": row.segments, "lost": row.lost,
        "left_out": row.left_out,
    }  # fmt: skip
    if isinstance(row, LabelRow):
        packed["labels" if isinstance(row.label, tuple) else "label"] = row.label
    elif isinstance(row, SpanRow):
        packed["span"] = row.span
        packed["places"] = [place and {"start": place[0], "end": place[1]} for place in row.places]
    elif isinstance(row, AnswerRow):
        packed["answer"] = row.answer
    return packed


def _unpack(packed: Mapping[str, Any]) -> Row:
    kind = _KINDS[packed["kind"]]
    more: dict[str, Any] = {}
    if kind is LabelRow:
        more["label"] = packed["label"] if packed["labels"] is None else tuple(packed["labels"])
    elif kind is SpanRow:
        more["span"] = tuple(packed["span"])
        more["places"] = [place and (place["start"], place["end"]) for place in packed["places"]]
    elif kind is AnswerRow:
        more["answer"] = packed["answer"]
    return kind(
        packed["ids"], packed["trained"], packed["segments"], packed["lost"], packed["left_out"], **more
    )  # fmt: skip
