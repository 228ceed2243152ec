"""Rows as a model reads them, judged and counted, some at a time: what several processes can share of an inspection."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow

from core import columns
from core.dataset import Dataset
from core.engine.rows import Spelled
from core.engine.tokens import Tokens
from core.formats import Example
from core.judgement import texts_of
from core.objectives import AnswerRow, Objective, Row
from core.problem import Problem

SCHEMA = pyarrow.schema(
    {
        "number": pyarrow.int64(),
        "aside": pyarrow.bool_(),
        "ids": pyarrow.list_(pyarrow.int32()),
        "learned": pyarrow.list_(pyarrow.bool_()),
        "lost": pyarrow.list_(pyarrow.int32()),
        "findings": pyarrow.list_(pyarrow.string()),
    }
)
"""What is kept of every row."""

SHOWN = 20
"""Rows that are named of those that something is wrong with."""

REFUSED = 10
"""Problems that are told of those that the task or the template has."""

_SYSTEM_PROMPTS = 200

SCRIPTS = {
    "Latin": "A-Za-zÀ-ɏ", "Han": "㐀-䶿一-鿿", "Kana": "぀-ヿ", "Hangul": "가-힯", "Cyrillic": "Ѐ-ӿ", "Greek": "Ͱ-Ͽ",
    "Arabic": "؀-ۿ", "Hebrew": "֐-׿", "Devanagari": "ऀ-ॿ", "Thai": "฀-๿",
}  # fmt: skip
"""Writing systems that are told apart, as ranges of characters."""
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}


class _Scripts(dict[int, int | None]):
    """A character's writing system: which of SCRIPTS it is."""

    def __missing__(self, code: int) -> int | None:
        places = enumerate(_LETTERS.values())
        self[code] = next((place for place, letters in places if letters.match(chr(code))), None)
        return self[code]


_SCRIPT_OF = _Scripts()
_OTHERS = re.compile("[^\0-\x7f]+")
_NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalpha())


NUMBERS = ("full", "lengths", "targets", "numbers", "is_aside")
COUNTERS = ("counts", "labels", "aside_labels", "turns", "scripts", "systems")
"""What a Part has many of."""


@dataclass
class Part:
    """What was found of some examples.

    Attributes:
        rows: those that they became, as SCHEMA has them.
        full: tokens of every row that counts, before it is cut; of those that teach something, `lengths` as the model reads
            them, `targets`, the `numbers` of their examples, and whether each `is_aside`.
        counts: how many examples there are of each finding; `found` names the first few, with whether they are measured on alone.
        refusals: the first problems, and the first that is about the template.
        cut, dropped: rows that were too long.
        first: the first row that teaches something, as people see it.
    """

    rows: pyarrow.RecordBatch | None = None
    full: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    targets: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    is_aside: array[int] = field(default_factory=lambda: array("b"))
    counts: Counter[str] = field(default_factory=Counter)
    found: dict[str, list[tuple[int, bool]]] = field(default_factory=dict)
    refusals: list[Problem] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    aside_labels: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    dropped: int = 0
    first: list[tuple[int, bool]] | None = None

    def add(self, other: Part) -> None:
        """Count in what was found of the examples behind these, but for the rows."""
        for name in NUMBERS:
            getattr(self, name).extend(getattr(other, name))
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for name, places in other.found.items():
            self.found[name] = (self.found.get(name, []) + places)[:SHOWN]
        for problem in other.refusals:
            self.refuse(problem)
        self.cut, self.dropped = self.cut + other.cut, self.dropped + other.dropped
        self.first = self.first or other.first

    def settle(
        self, data: Dataset, some: range, field: str, know: Callable[[int], tuple[bool, list[str]]], *, apart: bool
    ) -> None:  # fmt: skip
        """Say what was not known of the examples `some` when their places among these stood for their numbers; none of
        them has a label, as a task that learns labels has to see all of them first.

        Args:
            field: the setting that the data stands in.
            know: tells of an example whether it is set aside, and what its content tells.
            apart: whether the rows that are measured on are of a data set of their own.
        """
        assert self.rows is not None and not self.labels
        told = list(map(know, some))
        aside = np.array([is_aside for is_aside, _ in told], bool)
        numbers = np.array(data.numbers[some.start : some.stop], np.int64)
        found = {place: flags for place, (_, flags) in enumerate(told) if flags}
        places = columns.numbers_of(self.rows.column("number"))
        table = {name: self.rows.column(name) for name in SCHEMA.names}
        table["number"] = columns.of_numbers(numbers[places], pyarrow.int64())
        table["aside"] = columns.of_flags(aside[places])
        if found:
            own = zip(places.tolist(), table["findings"].to_pylist(), strict=True)
            table["findings"] = _as_column([[*found.get(place, ()), *flags] for place, flags in own])
        self.rows = pyarrow.RecordBatch.from_arrays([*table.values()], schema=SCHEMA)
        for place, flags in found.items():
            for flag in flags:
                self.counts[flag] += 1
                self.found.setdefault(flag, []).append((place, False))
        self.found = {
            flag: [(int(numbers[place]), bool(apart and aside[place])) for place, _ in rows[:SHOWN]]
            for flag, rows in self.found.items()
        }
        for problem in self.refusals:
            problem.field = problem.field or field
            problem.facts["row"] = int(numbers[problem.facts["row"]])
        known = np.asarray(self.numbers)
        self.numbers, self.is_aside = array("q", numbers[known].tobytes()), array("b", aside[known].tobytes())

    def refuse(self, problem: Problem) -> None:
        """Keep a problem, if it has to be told."""
        is_new = problem.field == "data.template" and not any(one.field == problem.field for one in self.refusals)
        if len(self.refusals) < REFUSED or is_new:
            self.refusals.append(problem)


class Surveyor:
    """Takes in one example after the other.

    Args:
        apart: whether the rows that are measured on are of a data set of their own.
    """

    def __init__(self, tokens: Tokens, objective: Objective, *, apart: bool):
        self.tokens, self.objective, self.apart = tokens, objective, apart
        added = tokens.tokenizer.added_tokens_decoder.values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        writes = objective.model_kind == "causal_lm"
        self._start = tokens.tokenizer.bos_token_id
        self.talks = writes and objective.name != "text"
        self._special = re.compile("|".join(map(re.escape, special))) if special and writes else None
        self._special_starts = {text[0] for text in special}
        self._keeps_system: dict[tuple[str, ...], bool] = {}
        self.part, self.table = Part(), _Table()

    def end(self) -> Part:
        """What was found since it was last asked."""
        part, tokens = self.part, self.tokens
        part.rows, part.cut, part.dropped = self.table.take(), part.cut + tokens.cut, part.dropped + tokens.dropped
        self.part = Part()
        tokens.cut = tokens.dropped = 0
        return part

    def take(self, example: Example, number: int, found: list[str], spelled: Spelled, is_aside: bool) -> None:
        """One example, what its content tells (`found`), and its rows."""
        part, is_left_out = self.part, found == ["left_out"]
        flags = found if is_left_out else [*found, *self.judge(example, is_aside)]
        if isinstance(spelled, Problem):
            self.note(flags if is_left_out else [*flags, "refused"], number, is_aside)
            if not is_left_out:
                part.refuse(spelled)
            return
        if is_left_out:
            # The tokenizer counted them as well, and a training will not.
            part.cut -= sum(bool(row.ids and row.lost) for row in spelled)
            part.dropped -= any(not row.ids for row in spelled)
        noted = list(flags)
        for row in spelled:
            (ids, learned), targets = _spread(row), row.targets
            own = [] if is_left_out else self._judge_row(row, learned, targets)
            # A row that became several counts once.
            noted += [flag for flag in own if flag not in noted]
            if not is_left_out:
                part.full.append(row.whole)
                if targets:
                    part.lengths.append(row.length)
                    part.targets.append(targets)
                    part.numbers.append(number)
                    part.is_aside.append(is_aside)
                    part.first = part.first or row.shown()
            self.table.add(number, is_aside, ids, learned, row.lost, [*flags, *own])
        self.note(noted, number, is_aside)

    def note(self, flags: Sequence[str], number: int, is_aside: bool = False) -> None:
        """Count what is wrong with an example."""
        place = number, is_aside and self.apart
        for flag in flags:
            self.part.counts[flag] += 1
            rows = self.part.found.setdefault(flag, [])
            if len(rows) < SHOWN and place not in rows[-1:]:
                rows.append(place)

    def judge(self, example: Example, is_aside: bool) -> list[str]:
        """What the model's template and tokenizer would make of its texts."""
        flags, part, texts = [], self.part, texts_of(example)
        part.scripts[_script(texts)] += 1
        if example.messages:
            part.turns[[turn.role for turn in example.messages].count("user")] += 1
            if example.messages[0].role == "system":
                flags += self._judge_system(example)
        for label in example.labels or ():
            (part.aside_labels if is_aside else part.labels)[label] += 1
        # Letters are looked for in a fraction of the time, and most texts have none of these.
        if self._special and any([start in text for text in texts for start in self._special_starts]):
            flags += ["special"] * any(map(self._special.search, texts))
        return flags

    def _judge_system(self, example: Example) -> list[str]:
        """Whether the template passes the system prompt on, which is the same for all conversations of the same roles."""
        system = example.messages[0].content.strip()
        self.part.systems[system[:1000]] += 1
        key = system, *(turn.role for turn in example.messages)
        if key not in self._keeps_system:
            if not self.talks:
                return []
            try:
                said = self.tokens.render(example.messages)
            except Problem:  # it is told of as refused
                return []
            if len(self._keeps_system) >= _SYSTEM_PROMPTS:
                self._keeps_system.clear()
            self._keeps_system[key] = " ".join(system.split()) in " ".join(said.split())
        return [] if self._keeps_system[key] else ["dropped_system"]

    def _judge_row(self, row: Row, learned: Sequence[int], targets: int) -> list[str]:
        if not row.ids:
            return ["dropped"]
        flags = []
        if self._start is not None and row.ids[0] == self._start and [*row.ids[1:2]] == [self._start]:
            flags.append("double_start")
        if not targets:
            flags.append("unlearned")
        elif row.lost or row.left_out:
            flags.append(
                "cut_answer" if self.talks and row.lost and learned[-1] else "cut" if row.lost else "shortened"
            )
        elif isinstance(row, AnswerRow) and row.answer[-1] not in self.tokens.end_ids:
            flags.append("cut_answer")
        elif self.talks and not (row.trained[-1] and row.ids[-1] in self.tokens.end_ids):
            # Most end with it.
            pairs = zip(reversed(row.ids), reversed(row.trained), strict=True)
            if not any(trained and token in self.tokens.end_ids for token, trained in pairs):
                flags.append("endless")
        return flags


class _Table:
    """Rows of SCHEMA on their way there."""

    def __init__(self) -> None:
        self._numbers, self._asides, self._findings = array("q"), bytearray(), list[list[str]]()
        # Numbers of all rows side by side: Arrow would look at each, and takes ten times as long for a list of lists.
        self._ids, self._learned, self._lost = array("i"), bytearray(), array("i")
        self._ends, self._lost_ends = array("i", [0]), array("i", [0])

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def tokens(self) -> int:
        return len(self._ids) + len(self._lost)

    def add(
        self, number: int, aside: bool, ids: Sequence[int], learned: Sequence[int], lost: Sequence[int], findings: list[str]
    ) -> None:  # fmt: skip
        """One row of tokens."""
        self._numbers.append(number)
        self._asides.append(aside)
        self._findings.append(findings)
        self._ids.extend(ids)
        self._learned.extend(learned)
        self._ends.append(len(self._ids))
        self._lost.extend(lost)
        self._lost_ends.append(len(self._lost))

    def take(self) -> pyarrow.RecordBatch:
        """All of them, and begin anew."""
        ids = columns.of_lists(self._ends, columns.of_numbers(self._ids, pyarrow.int32()))
        learned = columns.of_lists(self._ends, columns.of_flags(self._learned))
        lost = columns.of_lists(self._lost_ends, columns.of_numbers(self._lost, pyarrow.int32()))
        numbers, asides = columns.of_numbers(self._numbers, pyarrow.int64()), columns.of_flags(self._asides)
        table = [numbers, asides, ids, learned, lost, _as_column(self._findings)]
        self.__init__()  # type: ignore[misc]
        return pyarrow.RecordBatch.from_arrays(table, schema=SCHEMA)


def _as_column(findings: Sequence[Sequence[str]]) -> pyarrow.Array:
    """The names of what is wrong with each row."""
    ends = np.zeros(len(findings) + 1, np.int32)
    np.cumsum(list(map(len, findings)), out=ends[1:])
    names = [name.encode() for some in findings for name in some]
    return columns.of_lists(ends, columns.of_bytes(names, pyarrow.string()))


def _spread(row: Row) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens of a row, and which of them are learned."""
    if type(row) is Row:
        return row.ids, row.trained or bytes(len(row.ids))
    shown = row.shown()
    return [token for token, _ in shown], [learned for _, learned in shown]


def _script(texts: Sequence[str]) -> str:
    """The writing system of most letters at the beginning of some texts."""
    text = "\n".join(texts)[:2000]
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    # Of most texts that are not all ASCII, nearly all is.
    others = "".join(_OTHERS.findall(text)).translate(_SCRIPT_OF)
    counts = {name: others.count(chr(place)) for place, name in enumerate(SCRIPTS)}
    counts["Latin"] += len(text.encode("ascii", "ignore").translate(None, _NO_LETTERS))
    # Japanese is written in both.
    if counts["Kana"] and counts["Han"]:
        return "Kana"
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ("other" if any(map(str.isalpha, text)) else "none")
