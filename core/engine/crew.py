"""Processes that share the judging and spelling of a large data set's rows; what they cannot do, or not yet, is done here.

Over the pipes go lines of JSON, each with blocks of bytes behind it. A helper ends when its pipe does, so that none outlives
the process that it helps, however that one ends.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
import queue
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import transformers
from transformers import PreTrainedTokenizerBase

from core import garbage, likeness, objectives
from core.config import DataSettings
from core.dataset import Dataset
from core.engine.helper import Helper, Told, receive, send
from core.engine.rows import check_fits, spell_one
from core.engine.survey import COUNTERS, NUMBERS, SCHEMA, Part, Surveyor
from core.engine.tokens import LOCAL, Tokens
from core.examples import as_lines, from_line, keep_examples, ranges
from core.formats import Example
from core.judgement import Facts, measure
from core.objectives import Objective
from core.problem import Problem
from core.spool import BLOCK_BYTES, Spool, full_disk_told, open_nameless

_BLOCK = 1000
"""Examples that a helper does at once, at most."""

_AHEAD = 64
"""Blocks that may wait for one before them."""

_FACTS = tuple(one.name for one in dataclasses.fields(Facts))


class Crew:
    """Some helper processes; they end with `with`."""

    def __init__(self, helpers: Sequence[Helper]):
        self._helpers = helpers
        #: Each several times: while it is at work, it is already given what comes next.
        self._free: queue.SimpleQueue[Helper] = queue.SimpleQueue()
        for helper in self._helpers * 3:
            self._free.put(helper)
        self._threads = ThreadPoolExecutor(3 * len(self._helpers), "crew")
        self._here, self._lock, self._ended = Hand(), threading.Lock(), False
        self._prepared: list[Future[Told | None]] = []
        self._ahead: dict[int, _Ahead] = {}
        #: What was found of examples while others were being read.
        self._found: dict[int, _Drafts] = {}

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        for helper in self._helpers:
            helper.end()
        self._threads.shutdown(cancel_futures=True)

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [helper.process.pid for helper in self._helpers]

    def prepare(self, surveyor: Surveyor, settings: DataSettings, folder: Path, *, keeps_rows: bool = True) -> None:
        """Tell the helpers how rows are spelled, with the tokenizer in that folder; one that comes to another does nothing.

        Examples that are read after this are surveyed at once: what is not known yet, their numbers, which of them are set
        aside, and what comparing them tells, is put in when it is. Unless somebody `keeps_rows`, they are only counted then.
        """
        self._keeps_rows = keeps_rows
        tokens = copy.copy(surveyor.tokens)
        self._here.surveyor = Surveyor(tokens, surveyor.objective, apart=surveyor.apart)
        self._here.settings = settings
        told = {
            "do": "prepare", "folder": str(folder), "kind": type(tokens.tokenizer).__name__,
            "tokenizer": fingerprint(tokens.tokenizer), "max_length": tokens.max_length, "end_ids": sorted(tokens.end_ids),
            "template": tokens.template, "keeps_lost": tokens.keeps_lost,
            "task": surveyor.objective.facts() | {"task": surveyor.objective.name}, "apart": surveyor.apart,
            "settings": settings.model_dump(mode="json"),
        }  # fmt: skip
        # It is sent before anything else is asked; nobody waits until a helper has begun.
        self._prepared = [self._threads.submit(helper.hear, helper.tell((told, []))) for helper in self._helpers]

    def keep(self) -> Spool[Example]:
        """A place for examples that are looked at while others are still being read."""
        told, drafts = {"do": "measure"}, None
        if self._prepared:
            told, drafts = {"do": "look", "field": "", "keeps_rows": self._keeps_rows}, _Drafts()
        ahead = _Ahead(lambda lines, examples: self._ask((told, lines), examples), drafts)
        kept = keep_examples(ahead.add)
        self._ahead[id(kept)] = ahead
        if drafts is not None:
            self._found[id(kept)] = drafts
        return kept

    def measure(self, data: Dataset, indices: Sequence[int]) -> Iterator[Facts]:
        """The facts of the examples of these indices, in their order."""
        places, start = np.asarray(indices, np.int64), 0
        ahead = self._ahead.pop(id(data.examples), None)
        for blocks in self._measure_all(data) if ahead is None else ahead.take(data.examples):
            facts = _read_facts(blocks)
            stop = start + len(facts.bare)
            chosen = places[np.searchsorted(places, start) : np.searchsorted(places, stop)] - start
            yield facts if len(chosen) == len(facts.bare) else facts.take(chosen)
            start = stop

    def _measure_all(self, data: Dataset) -> Iterator[list[bytes]]:
        asked = (({"do": "measure"}, as_lines(data.examples, some)) for some in ranges(data.examples, _BLOCK))
        return (blocks for _, (_, blocks) in self._map(asked))

    def survey(
        self, data: Dataset, field: str, know: Callable[[int], tuple[bool, list[str]]], objective: Objective
    ) -> Iterator[tuple[Part, int]]:
        """What is found of some examples after others, and how many they are; `know` says of each whether it is set aside,
        and what its content tells.

        Raises:
            Problem: when no example is of a kind that the task can learn from.
        """
        check_fits(data, range(len(data.examples)), objective)
        if (drafts := self._found.pop(id(data.examples), None)) is not None:
            yield from drafts.take(data, field, know, apart=self._here.surveyor.apart)
            return

        def ask(some: range) -> Told:
            known = list(map(know, some))
            told = {
                "do": "survey", "field": field, "numbers": [data.numbers[index] for index in some],
                "aside": [int(is_aside) for is_aside, _ in known],
                "found": [[place, found] for place, (_, found) in enumerate(known) if found],
            }  # fmt: skip
            return told, as_lines(data.examples, some)

        for future in self._prepared:
            future.result()
        for (told, _), reply in self._map(map(ask, ranges(data.examples, _BLOCK))):
            found, (rows, *numbers) = reply
            yield _read_part(found, rows, numbers), len(told["numbers"])

    def _map(self, asked: Iterable[Told]) -> Iterator[tuple[Told, Told]]:
        """What becomes of each of these, in their order; some are asked for ahead."""
        ahead: deque[tuple[Told, Future[Told]]] = deque()
        try:
            for told in asked:
                ahead.append((told, self._ask(told)))
                while ahead and (ahead[0][1].done() or len(ahead) > 8 * len(self._helpers)):
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()

    def _ask(self, told: Told, examples: Sequence[Example] | None = None) -> Future[Told]:
        """What becomes of it some time; it is done at once, and here, while all helpers have enough to do. `examples` are
        those of its lines, where they are at hand."""
        try:
            helper = self._free.get_nowait()
        except queue.Empty:
            done: Future[Told] = Future()
            done.set_result(self._do_here(told, examples))
            return done
        return self._threads.submit(self._do, helper, told)

    def _do(self, helper: Helper, told: Told) -> Told:
        try:
            reply = helper.ask(told)
        finally:
            self._free.put(helper)
        return self._do_here(told) if reply is None else reply

    def _do_here(self, told: Told, examples: Sequence[Example] | None = None) -> Told:
        with self._lock:
            if self._ended:
                raise InterruptedError
            return self._here.do(*told, examples)


class _Ahead:
    """Examples that are asked for as soon as there are enough of them, and what is known of those before."""

    def __init__(self, ask: Callable[[list[bytes], list[Example]], Future[Told]], drafts: _Drafts | None):
        self._ask, self._drafts = ask, drafts
        self._lines: list[bytes] = []
        self._examples: list[Example] = []
        self._asked: deque[Future[Told]] = deque()
        self._facts: deque[list[bytes]] = deque()

    def add(self, examples: Sequence[Example], lines: list[bytes]) -> None:
        """More of them."""
        self._lines += lines
        self._examples += examples
        if len(self._lines) >= _BLOCK or sum(map(len, lines)) > BLOCK_BYTES // 2:
            self._send()
        # What is done waits in memory for what comes before it.
        while self._asked and (self._asked[0].done() or len(self._asked) > _AHEAD):
            self._hear()

    def take(self, kept: Sequence[Example]) -> Iterator[list[bytes]]:
        """The facts of all, in their order."""
        if kept:
            kept[0]  # to read it ends the writing
        if self._lines or not (self._asked or self._facts):
            self._send()
        while self._asked:
            self._hear()
        while self._facts:
            yield self._facts.popleft()

    def _send(self) -> None:
        self._asked.append(self._ask(self._lines, self._examples))
        self._lines, self._examples = [], []

    def _hear(self) -> None:
        told, blocks = self._asked.popleft().result()
        facts = len(_FACTS)
        if self._drafts is not None:
            self._drafts.add((told, blocks[facts:]))
        self._facts.append(blocks[:facts])


class _Drafts:
    """What was found of examples whose numbers were not known; the rows themselves lie in a file."""

    def __init__(self) -> None:
        self._file = open_nameless()
        self._parts: deque[tuple[dict[str, Any], list[bytes], int]] = deque()
        self._has_first = False

    def add(self, told: Told) -> None:
        """What was found of the next ones."""
        data, (rows, *numbers) = told
        with full_disk_told():
            self._file.write(rows)
        if self._has_first:  # people see one
            data["first"] = None
        self._has_first = self._has_first or data["first"] is not None
        self._parts.append((data, numbers, len(rows)))

    def take(
        self, data: Dataset, field: str, know: Callable[[int], tuple[bool, list[str]]], *, apart: bool
    ) -> Iterator[tuple[Part, int]]:
        """What was found, with what is known since, and of how many examples, in their order."""
        start = 0
        with full_disk_told():
            self._file.seek(0)
        while self._parts:
            told, numbers, size = self._parts.popleft()
            # To map the file would be slower: every page is needed once.
            part, count = _read_part(told, self._file.read(size), numbers), told["examples"]
            part.settle(data, range(start, start + count), field, know, apart=apart)
            yield part, count
            start += count
        self._file.close()


class Hand:
    """Does what is asked, in a helper or here."""

    surveyor: Surveyor
    settings: DataSettings

    def do(self, told: dict[str, Any], lines: list[bytes], examples: Sequence[Example] | None = None) -> Told:
        """What is to be answered; `examples` are those of the lines, where they are at hand."""
        if told["do"] == "prepare":
            return self._prepare(told), []
        examples = [*map(from_line, lines)] if examples is None else examples
        if told["do"] == "measure":
            return {}, _write_facts(measure(examples))
        facts = _write_facts(measure(examples)) if told["do"] == "look" else []
        # What is looked at ahead has its place among these for a number, and nothing else is known of it.
        numbers, aside = told.get("numbers", range(len(examples))), told.get("aside", bytes(len(examples)))
        surveyor, settings, known = self.surveyor, self.settings, dict(told.get("found", ()))
        for place, (example, number, is_aside) in enumerate(zip(examples, numbers, aside, strict=True)):
            spelled = spell_one(example, number, surveyor.objective, surveyor.tokens, settings, told["field"])
            surveyor.take(example, number, known.get(place, []), spelled, bool(is_aside))
        found = surveyor.end()
        if not told.get("keeps_rows", True):
            assert found.rows is not None
            found.rows = found.rows.slice(0, 0)
        data, part = _write_part(found)
        return data | {"examples": len(examples)}, facts + part

    def _prepare(self, told: dict[str, Any]) -> dict[str, Any]:
        # To look for the class takes longer than to load the tokenizer, and is known already.
        kind = getattr(transformers, told["kind"], None) or transformers.AutoTokenizer
        tokenizer = kind.from_pretrained(told["folder"], **LOCAL)
        tokens = Tokens(tokenizer, told["max_length"], set(told["end_ids"]), template=told["template"])
        tokens.keeps_lost = told["keeps_lost"]
        self.surveyor = Surveyor(tokens, objectives.restore(told["task"]), apart=told["apart"])
        self.settings = DataSettings.model_validate(told["settings"])
        return {} if fingerprint(tokenizer) == told["tokenizer"] else {"failed": "it is another tokenizer"}


def assist() -> None:
    """`python -m core assist`: do what is asked over the standard input until it ends."""
    garbage.take_up(stays=True)
    hand, asked, answers = Hand(), sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed is no answer
    sent: Future[None] | None = None
    # Whoever asked may be at work itself, and listens now and then: what comes next is begun meanwhile.
    with contextlib.suppress(OSError), ThreadPoolExecutor(1) as sender:
        while told := receive(asked):
            try:
                reply = hand.do(*told)
            except Exception as error:  # whoever asked does it, and learns what is wrong
                reply = {"failed": repr(error)}, []
            if sent is not None:
                sent.result()
            sent = sender.submit(send, answers, reply)


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What is the same of tokenizers that spell alike."""
    backend = tokenizer.backend_tokenizer.to_str()
    told = [backend, tokenizer.chat_template, tokenizer.special_tokens_map, tokenizer.split_special_tokens]
    return hashlib.sha256(json.dumps([*map(str, told)]).encode()).hexdigest()


def _write_facts(facts: Facts) -> list[bytes]:
    return [getattr(facts, name).tobytes() for name in _FACTS]


def _read_facts(blocks: list[bytes]) -> Facts:
    kinds = {"garbled": bool, "labelled": bool, "signatures": np.uint32}
    columns = {
        name: np.frombuffer(block, kinds.get(name, np.uint64)) for name, block in zip(_FACTS, blocks, strict=True)
    }
    columns["signatures"] = columns["signatures"].reshape(-1, likeness.SLOTS)
    return Facts(**columns)


def _write_part(part: Part) -> Told:
    told: dict[str, Any] = {name: list(getattr(part, name).items()) for name in COUNTERS}
    told |= {"found": part.found, "refusals": [problem.to_data() for problem in part.refusals], "first": part.first}
    told |= {"cut": part.cut, "dropped": part.dropped}
    assert part.rows is not None
    return told, [part.rows.serialize().to_pybytes(), *(getattr(part, name).tobytes() for name in NUMBERS)]


def _read_part(data: dict[str, Any], rows: Any, numbers: list[bytes]) -> Part:
    part = Part(
        pyarrow.ipc.read_record_batch(pyarrow.py_buffer(rows), SCHEMA), cut=data["cut"], dropped=data["dropped"]
    )
    for name, block in zip(NUMBERS, numbers, strict=True):
        getattr(part, name).frombytes(block)
    for name in COUNTERS:
        setattr(part, name, Counter(dict(map(tuple, data[name]))))
    part.found = {name: [(number, held) for number, held in places] for name, places in data["found"].items()}
    part.refusals = [Problem.from_data(one) for one in data["refusals"]]
    part.first = data["first"] and [(token, learned) for token, learned in data["first"]]
    return part
