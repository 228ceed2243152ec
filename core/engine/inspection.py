"""What a model would see of a data set, all of it: every row as tokens, counted, with what is wrong found before a step."""

from __future__ import annotations

import copy
import json
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig

from core import objectives
from core.config import Config
from core.dataset import find_row
from core.engine.adapt import Adapted, Weights
from core.engine.material import Material
from core.engine.model import end_token_ids, load_tokenizer, longest_input, padding_token
from core.engine.rows import Spelled, order_rows, spell_each
from core.engine.tokens import Tokens
from core.findings import KINDS, SEVERITIES, Finding
from core.formats import Example
from core.judgement import LEAVABLE, Flags, texts_of
from core.methods import PromptMethod
from core.model import check_safety, check_task, locate
from core.objectives import AnswerRow, Objective, Row
from core.problem import Problem
from core.runs import write_whole

ROWS_FILE, REPORT_FILE, TOKENIZER_FILE = "rows.arrow", "report.json", "tokenizer.json"
"""What an inspection leaves in its folder: every row's tokens, the numbers with the findings, and how ids are spelled."""

BATCH = 500
"""Rows of ROWS_FILE that lie together."""

_SCHEMA = pyarrow.schema(
    {
        "number": pyarrow.int64(),
        "aside": pyarrow.bool_(),
        "ids": pyarrow.list_(pyarrow.int32()),
        "learned": pyarrow.list_(pyarrow.bool_()),
        "lost": pyarrow.list_(pyarrow.int32()),
        "findings": pyarrow.list_(pyarrow.string()),
    }
)
_SHOWN = 20
_TOKENS_AT_ONCE = 1_000_000
_SAY_EVERY = 0.5
_GUESSED_BATCH = 8
_SKETCHED_WORDS = 64
_BINS = 40
_SYSTEM_PROMPTS = 200
_TEMPLATE = ("refused", "dropped_system", "double_start")
_TOO_LONG = ("unlearned", "cut_answer", "cut", "shortened", "dropped")

SCRIPTS = {
    "Latin": "A-Za-zÀ-ɏ", "Han": "㐀-䶿一-鿿", "Kana": "぀-ヿ", "Hangul": "가-힯", "Cyrillic": "Ѐ-ӿ", "Greek": "Ͱ-Ͽ",
    "Arabic": "؀-ۿ", "Hebrew": "֐-׿", "Devanagari": "ऀ-ॿ", "Thai": "฀-๿",
}  # fmt: skip
"""Writing systems that are told apart, as ranges of characters."""
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}


Tell = Callable[[int, int], None]


def inspect(config: Config, folder: Path | None = None, tell: Tell | None = None) -> dict[str, Any]:
    """Spell every row as training would, with the same code, and say what there is and what is wrong.

    Args:
        config: what would be trained.
        folder: where the rows' tokens, the report and the tokenizer are kept for people to look at; None keeps nothing.
        tell: is told (rows done, rows in all) now and then, 0 in all while they are being read; what it raises ends the
            inspection.

    Returns:
        The report as plain data: `rows`, `trained_rows`, `tokens`, `trained_tokens`, counts of what is odd, `lengths` (of
        whole rows, before they are cut), `findings` (worst first), `starts` (whether a training could), ...

    Raises:
        Problem: when the data or the model cannot be read, or do not suit the task.
    """
    began = time.monotonic()
    where = locate(config.model.name, config.model.revision, download=True)
    assert where is not None
    check_task(config.task, check_safety(where), config.model.name)
    material = Material.read(config, (lambda rows: tell(rows, 0)) if tell else None)
    tokens, limit = load_tokens(config, where, material.objective)
    tokens.keeps_lost = True
    look = _Look(material, tokens, config, limit)
    if folder is None:
        for _ in look.read(tell):
            pass
    else:
        folder.mkdir(parents=True, exist_ok=True)
        tokens.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
        with pyarrow.OSFile(str(folder / ROWS_FILE), "wb") as file, pyarrow.ipc.new_file(file, _SCHEMA) as writer:
            for batch in look.read(tell):
                writer.write_batch(batch)
    report = look.report()
    report["seconds"] = time.monotonic() - began
    report["rows_per_second"] = report["rows"] / max(report["seconds"], 1e-9)
    if folder is not None:
        write_whole(folder / REPORT_FILE, json.dumps(report, ensure_ascii=False))
    return report


def load_tokens(config: Config, folder: Path, objective: Objective) -> tuple[Tokens, int]:
    """The tokenizer with the room that a training would have, found without any of the model's weights; and how long a
    row could be in this model at most."""
    tokenizer, model_config = load_tokenizer(folder, config.model.name)
    own = (folder / "generation_config.json").exists()
    # Without a file of their own, a model's generation settings are those of its configuration.
    generation = (
        GenerationConfig.from_pretrained(folder, local_files_only=True)
        if own
        else GenerationConfig.from_model_config(model_config)
    )
    limit = longest_input(_outline(model_config, objective))
    tokens = Tokens(
        tokenizer, min(config.data.max_length, limit or config.data.max_length), end_token_ids(generation, tokenizer),
        template=config.data.template,
    )  # fmt: skip
    before: tuple[list[int], int] = ([], 0)
    if isinstance(config.method, PromptMethod):
        adapted = Adapted(_sketch(model_config, objective))
        # What a prompt begins as does not matter here, and the words that it may begin from are not there.
        adapted.add("sketch", config.method.model_copy(update={"init": "random"}), config.train.seed)
        before = adapted.before(Weights("sketch"))
        tokens.leave_room(*before, limit)
    return tokens, (limit or 2**20) - len(before[0]) - before[1]


def _outline(config: PretrainedConfig, objective: Objective) -> Any:
    """The model's modules with nothing in them."""
    with torch.device("meta"):
        return getattr(transformers, objective.auto_class).from_config(config)


def _sketch(config: PretrainedConfig, objective: Objective) -> Any:
    """A small model of the same build: one block and a few words."""
    config = copy.deepcopy(config)
    inner = config.get_text_config()
    inner.vocab_size = _SKETCHED_WORDS
    for name in ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"):
        if getattr(inner, name, None):
            setattr(inner, name, 1)
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[:1]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        number = getattr(inner, name, None)
        if isinstance(number, int) and number >= _SKETCHED_WORDS:
            setattr(inner, name, 0)
    return getattr(transformers, objective.auto_class).from_config(config)


class _Look:
    """One pass over all rows, and what is remembered of it."""

    def __init__(self, material: Material, tokens: Tokens, config: Config, limit: int):
        self.material, self.tokens, self.config, self.limit = material, tokens, config, limit
        self.total = sum(map(len, (material.train, material.aside, *material.left_out)))
        self.full = array("q")
        self.lengths = array("q")
        self.targets = array("q")
        self.is_aside = array("b")
        self.apart = material.held is not material.data
        files = (material.data.files, material.held.files if self.apart else ())
        #: Names and rows of those that are read, and of those that are measured on alone; where they are several.
        self.files = files if sum(map(len, files)) > 1 else ((), ())
        self.found: dict[str, list[tuple[int, bool]]] = {name: [] for name in KINDS}
        self.counts: Counter[str] = Counter()
        self.refusals: list[Problem] = []
        self.labels: Counter[str] = Counter()
        self.aside_labels: Counter[str] = Counter()
        self.turns: Counter[int] = Counter()
        self.scripts: Counter[str] = Counter()
        self.systems: Counter[str] = Counter()
        self.keeps_system: dict[str, bool] = {}
        added = tokens.tokenizer.added_tokens_decoder.values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        self.writes = writes = material.objective.model_kind == "causal_lm"
        self.talks = writes and material.objective.name != "text"
        self.special = re.compile("|".join(map(re.escape, special))) if special and writes else None
        self.special_starts = {text[0] for text in special}
        self.flags: tuple[Flags, Flags] = ({}, {})
        self.table = _Table()
        self.first: Row | None = None

    def read(self, tell: Tell | None) -> Iterator[pyarrow.RecordBatch]:
        """Take in every row; yields them as tables."""
        objective, data = self.material.objective, self.config.data
        own, apart = self.material.data, self.material.held is not self.material.data
        left_out = tuple(map(frozenset, self.material.left_out))
        aside = set() if apart else left_out[1].union(self.material.aside)
        # In the order of the file, whatever is trained on.
        parts = [(own, range(len(own.examples)), "data.train")]
        if apart:
            field = "data.eval" if data.eval else "data.train"
            parts.append((self.material.held, range(len(self.material.held.examples)), field))
        if tell:
            tell(0, self.total)
        # The first look is the shorter one.
        first = self.total // 5
        self.flags = self.material.judge((lambda count: tell(count // 5, self.total)) if tell else None)
        done, said = 0, time.monotonic()
        if own.examples[0].judged:
            # No task can learn them; what they hold is known all the same.
            for index, example in enumerate(own.examples):
                self._note([*self.flags[0].get(index, []), *self._judge(example, False), "judged"], own.numbers[index])
            parts = []
        for dataset, indices, source in parts:
            for index, spelled in spell_each(dataset, indices, objective, self.tokens, data, source):
                is_aside = dataset is not own or index in aside
                flags = self.flags[dataset is not own].get(index, [])
                found = ["left_out"] if index in left_out[is_aside] else flags
                self._take(dataset.examples[index], dataset.numbers[index], found, spelled, is_aside)
                done += 1
                if len(self.table) >= BATCH or self.table.tokens > _TOKENS_AT_ONCE:
                    yield self.table.take()
                if tell and time.monotonic() - said > _SAY_EVERY:
                    tell(first + done * 4 // 5, self.total)
                    said = time.monotonic()
        yield self.table.take()
        if tell:
            tell(self.total, self.total)

    def _take(self, example: Example, number: int, found: list[str], spelled: Spelled, is_aside: bool) -> None:
        """One example, what its content tells (`found`), and its rows."""
        is_left_out = found == ["left_out"]
        flags = found if is_left_out else [*found, *self._judge(example, is_aside)]
        if isinstance(spelled, Problem):
            self._note(flags if is_left_out else [*flags, "refused"], number, is_aside)
            self.refusals += [] if is_left_out else [spelled]
            return
        if is_left_out:
            # The tokenizer counted them as well, and a training will not.
            self.tokens.cut -= sum(bool(row.ids and row.lost) for row in spelled)
            self.tokens.dropped -= any(not row.ids for row in spelled)
        noted = dict.fromkeys(flags)
        for row in spelled:
            (ids, learned), targets = _spread(row), row.targets
            own = [] if is_left_out else self._judge_row(row, learned, targets)
            noted |= dict.fromkeys(own)
            if not is_left_out:
                self.full.append(row.whole)
            if targets and not is_left_out:
                self.lengths.append(row.length)
                self.targets.append(targets)
                self.is_aside.append(is_aside)
                self.first = self.first or row
            self.table.add(number, is_aside, ids, learned, row.lost, [*flags, *own])
        # A row that became several counts once.
        self._note(list(noted), number, is_aside)

    def _note(self, flags: Sequence[str], number: int, is_aside: bool = False) -> None:
        place = number, is_aside and self.apart
        for flag in flags:
            self.counts[flag] += 1
            rows = self.found[flag]
            if len(rows) < _SHOWN and place not in rows[-1:]:
                rows.append(place)

    def _judge(self, example: Example, is_aside: bool) -> list[str]:
        """What the model's template and tokenizer would make of its texts."""
        flags = []
        texts = texts_of(example)
        self.scripts[_script(texts)] += 1
        if example.messages:
            self.turns[sum(message.role == "user" for message in example.messages)] += 1
            if example.messages[0].role == "system":
                flags += self._judge_system(example)
        for label in example.labels or ():
            (self.aside_labels if is_aside else self.labels)[label] += 1
        # Letters are looked for in a fraction of the time, and most texts have none of these.
        likely = self.special and [text for text in texts if any(map(text.__contains__, self.special_starts))]
        if likely and any(map(self.special.search, likely)):
            flags.append("special")
        return flags

    def _judge_system(self, example: Example) -> list[str]:
        """Whether the template passes the system prompt on: tried once for each of the first few hundred."""
        system = example.messages[0].content.strip()
        self.systems[system[:1000]] += 1
        if system not in self.keeps_system and len(self.keeps_system) < _SYSTEM_PROMPTS and self.talks:
            try:
                said = self.tokens.render(example.messages)
                self.keeps_system[system] = " ".join(system.split()) in " ".join(said.split())
            except Problem:
                self.keeps_system[system] = True  # it is told of as refused
        return [] if self.keeps_system.get(system, True) else ["dropped_system"]

    def _judge_row(self, row: Row, learned: Sequence[bool], targets: int) -> list[str]:
        if not row.ids:
            return ["dropped"]
        flags = []
        start = self.tokens.tokenizer.bos_token_id
        if start is not None and row.ids[:2] == [start, start]:
            flags.append("double_start")
        if not targets:
            flags.append("unlearned")
        elif row.lost or row.left_out:
            flags.append(
                "cut_answer" if self.talks and row.lost and learned[-1] else "cut" if row.lost else "shortened"
            )
        elif isinstance(row, AnswerRow) and row.answer[-1] not in self.tokens.end_ids:
            flags.append("cut_answer")
        elif self.talks:
            # Most end with it.
            pairs = zip(reversed(row.ids), reversed(row.trained), strict=True)
            if not any(trained and token in self.tokens.end_ids for token, trained in pairs):
                flags.append("endless")
        return flags

    def report(self) -> dict[str, Any]:
        """All of it in numbers, as plain data."""
        data, objective = self.material.data, self.material.objective
        lengths, full = np.asarray(self.lengths), np.asarray(self.full)
        bad = [(row.row, False) for row in data.bad]
        bad += [(row.row, True) for row in self.material.held.bad] if self.apart else []
        problems = [*data.problems()]
        if bad:
            self.counts["bad"], self.found["bad"] = len(bad), bad[:_SHOWN]
        if self.writes and padding_token(self.tokens.tokenizer) in self.tokens.end_ids:
            self.counts["pad_is_end"] = len(lengths)
        for missing, named in ((self.labels, self.aside_labels), (self.aside_labels, self.labels)):
            if missing and (unknown := set(named) - set(missing)):
                self.counts["unlearned_label" if missing is self.labels else "unmeasured_label"] = sum(
                    map(named.__getitem__, unknown)
                )
        few = {label for label, count in self.labels.items() if count < 2}
        if self.talks and self.tokens.plain:
            self.counts["plain"] = len(lengths)
        if few:
            self.counts["lonely_label"] = sum(self.labels[label] for label in few)
        trained = int(np.sum(self.targets))
        learnable = int(np.sum(np.asarray(self.is_aside) == 0)) if len(lengths) else 0
        findings = self._findings(int(full.max()) if len(full) else 0)
        return {
            "format": data.format,
            "reason": data.reason,
            "rows": data.rows + (self.material.held.rows if self.apart else 0),
            "files": [list(map(list, files)) for files in self.files],
            "trained_rows": len(lengths),
            "train_rows": learnable,
            "aside_rows": len(lengths) - learnable,
            "bad_rows": len(bad),
            "refused_rows": self.counts["refused"],
            "empty_rows": self.counts["unlearned"],
            "cut_rows": self.tokens.cut,
            "dropped_rows": self.tokens.dropped,
            "left_out_rows": self.counts["left_out"],
            "tokens": int(lengths.sum()) if len(lengths) else 0,
            "trained_tokens": trained,
            "longest": int(lengths.max()) if len(lengths) else 0,
            "median": int(np.sort(lengths)[len(lengths) // 2]) if len(lengths) else 0,
            "max_length": self.tokens.max_length,
            "lengths": _histogram(full),
            "cut_at": _cut_at(full),
            "padding": self._padding(),
            "packs": objective.model_kind == "causal_lm" and self.config.data.packing,
            "tasks": list(objectives.fitting(data.examples[0])),
            "task": objective.name,
            "model": self.config.model.name,
            "labels": dict(self.labels + self.aside_labels),
            "turns": {str(turns): count for turns, count in sorted(self.turns.items())},
            "scripts": dict(self.scripts.most_common()),
            "systems": {"rows": sum(self.systems.values()), "kinds": len(self.systems), "most": self.systems.most_common(3)},
            "own_template": self.tokens.own_template,
            "findings": [finding.to_data() for finding in findings],
            "starts": learnable > 0,
            "problems": [str(problem) for problem in [*problems, *self.refusals[:10]]],
            "preview": [] if self.first is None else [
                (self.tokens.tokenizer.decode([token]), learned) for token, learned in self.first.shown()
            ],
        }  # fmt: skip

    def _findings(self, longest: int) -> list[Finding]:
        """What was found, worst first; within a severity what concerns the most rows."""
        found = []
        for name in KINDS:
            if count := self.counts[name]:
                remedies = self._remedies(longest) if name in _TOO_LONG else []
                if name in LEAVABLE:
                    remedies = [{"data.leave_out": [*self.config.data.leave_out, name]}]
                elif name == "left_out":
                    remedies = [{"data.leave_out": []}]
                elif name in _TEMPLATE and self.talks and not self.tokens.plain:
                    by_template = name != "refused" or any(one.field == "data.template" for one in self.refusals)
                    remedies = [{"data.template": "plain"}] if by_template else []
                elif name == "plain" and self.tokens.own_template:
                    remedies = [{"data.template": "model"}]
                places = [find_row(self.files[is_held], number) for number, is_held in self.found[name]]
                files = tuple(file for file, _ in places if file)
                found.append(Finding(name, count, tuple(row for _, row in places), tuple(remedies), files))
        return sorted(found, key=lambda one: (SEVERITIES.index(one.severity), -one.count))

    def _remedies(self, longest: int) -> list[dict[str, Any]]:
        """What may be done about rows that are too long: a longer row where the setting is what cuts, and not the model."""
        data = self.config.data
        ways = []
        if longest > data.max_length < self.limit:
            ways.append({"data.max_length": min(-(-longest // 64) * 64, self.limit)})
        several = self.material.objective.name == "chat" and max(self.turns, default=0) > 1
        ways += [{"data.too_long": way} for way in (("oldest", "split") if several else ()) if way != data.too_long]
        return [*ways, {"data.too_long": "cut" if data.too_long == "drop" else "drop"}]

    def _padding(self) -> dict[str, float]:
        """The share of padding in the batches of the first epoch, with every row in a line of its own, and packed."""
        lengths = [int(one) for one, aside in zip(self.lengths, self.is_aside, strict=True) if not aside]
        size = self.config.train.batch_size
        size = size if isinstance(size, int) else _GUESSED_BATCH
        order = order_rows(len(lengths), self.config.train.seed, 0)
        apart = packed = 0
        for start in range(0, len(order), size):
            batch = [lengths[index] for index in order[start : start + size]]
            apart += max(batch) * len(batch)
            packed += _count_packed(batch, self.tokens.max_length)
        total = sum(lengths)
        return {"apart": 1 - total / apart if apart else 0.0, "packed": 1 - total / packed if packed else 0.0}


def _count_packed(lengths: Sequence[int], most: int) -> int:
    """Tokens of the batch that these rows are joined into, padding included (first fit, the longest first)."""
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        place = next((place for place, taken in enumerate(bins) if taken + length <= most), None)
        if place is None:
            bins.append(length)
        else:
            bins[place] += length
    return max(bins) * len(bins)


class _Table:
    """Rows of ROWS_FILE on their way there."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
        self._ends: dict[str, list[int]] = {name: [0] for name in ("ids", "learned", "lost")}

    def __len__(self) -> int:
        return len(self._columns["number"])

    @property
    def tokens(self) -> int:
        return len(self._columns["ids"]) + len(self._columns["lost"])

    def add(
        self, number: int, aside: bool, ids: Sequence[int], learned: Sequence[bool], lost: Sequence[int], findings: list[str]
    ) -> None:  # fmt: skip
        """One row of tokens."""
        for name, value in (("number", number), ("aside", aside), ("findings", findings)):
            self._columns[name].append(value)
        for name, values in (("ids", ids), ("learned", learned), ("lost", lost)):
            # One long list: a list of lists takes ten times as long.
            self._columns[name].extend(values)
            self._ends[name].append(len(self._columns[name]))

    def take(self) -> pyarrow.RecordBatch:
        """All of them, and begin anew."""
        arrays = []
        for field in _SCHEMA:
            values = self._columns[field.name]
            if field.name in self._ends:
                ends = pyarrow.array(self._ends[field.name], pyarrow.int32())
                flat = pyarrow.array(values, field.type.value_type)
                arrays.append(pyarrow.ListArray.from_arrays(ends, flat, type=field.type))
            else:
                arrays.append(pyarrow.array(values, field.type))
        self.__init__()  # type: ignore[misc]
        return pyarrow.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _spread(row: Row) -> tuple[Sequence[int], Sequence[bool]]:
    """The tokens of a row, and which of them are learned."""
    if type(row) is Row:
        return row.ids, row.trained or [False] * len(row.ids)
    shown = row.shown()
    return [token for token, _ in shown], [learned for _, learned in shown]


def _histogram(lengths: np.ndarray) -> dict[str, list[int]]:
    """How many rows have which length: `edges` (one more than counts) and `counts`."""
    if not len(lengths):
        return {"edges": [], "counts": []}
    top = int(lengths.max())
    step = max(1, -(-top // _BINS))
    edges = np.arange(0, top + step + 1, step)
    return {"edges": edges.tolist(), "counts": np.histogram(lengths, edges)[0].tolist()}


def _cut_at(lengths: np.ndarray) -> list[dict[str, float]]:
    """What each likely longest row would cut: the share of rows, and of tokens."""
    if not len(lengths):
        return []
    told, total = [], max(1, int(lengths.sum()))
    for limit in (2**power for power in range(5, 21)):
        told.append(
            {
                "max_length": limit, "rows": float((lengths > limit).mean()),
                "tokens": float(np.clip(lengths - limit, 0, None).sum() / total),
            }
        )  # fmt: skip
        if limit >= lengths.max():
            break
    return told


def _script(texts: Sequence[str]) -> str:
    """The writing system of most letters at the beginning of some texts."""
    text = "\n".join(texts)[:2000]
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    # Japanese is written in both.
    if counts["Kana"] and counts["Han"]:
        return "Kana"
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ("other" if any(map(str.isalpha, text)) else "none")
