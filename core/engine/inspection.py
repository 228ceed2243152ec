"""What a model would see of a data set, all of it: every row as tokens, counted, with what is wrong found before a step."""

from __future__ import annotations

import copy
import hashlib
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
import regex
import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig

from core import objectives
from core.config import Config
from core.dataset import find_overlap
from core.engine.adapt import Adapted, Weights
from core.engine.data import Tokens
from core.engine.material import Material
from core.engine.model import end_token_ids, load_tokenizer, longest_input, padding_token
from core.engine.rows import order_rows, spell_each
from core.findings import KINDS, SEVERITIES, Finding
from core.formats import Example
from core.methods import PromptMethod
from core.model import check_safety, check_task, locate
from core.objectives import Objective, Row
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
_SAY_EVERY = 0.5
_GUESSED_BATCH = 8
_SKETCHED_WORDS = 64
_BINS = 40
_SYSTEM_PROMPTS = 200
_SEPARATORS = regex.compile(r"[^\p{L}\p{N}\p{M}\p{S}]+")
_TOO_LONG = ("unlearned", "cut_answer", "cut", "dropped")

SCRIPTS = {
    "Latin": "A-Za-zÀ-ɏ", "Han": "㐀-䶿一-鿿", "Kana": "぀-ヿ", "Hangul": "가-힯", "Cyrillic": "Ѐ-ӿ", "Greek": "Ͱ-Ͽ",
    "Arabic": "؀-ۿ", "Hebrew": "֐-׿", "Devanagari": "ऀ-ॿ", "Thai": "฀-๿",
}  # fmt: skip
"""Writing systems that are told apart, as ranges of characters."""
_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
# UTF-8 read as Windows-1252 or Latin-1, and the mark that decoders put where they gave up.
_MOJIBAKE = re.compile("[ÂÃ][\x80-\xbf©®°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§¨ª«¬¯]|â€[\x80-\xbf™œž“”˜¦]|ï»¿|\ufffd")


Tell = Callable[[int, int], None]


def inspect(config: Config, folder: Path | None = None, tell: Tell | None = None) -> dict[str, Any]:
    """Spell every row as training would, with the same code, and say what there is and what is wrong.

    Args:
        config: what would be trained.
        folder: where the rows' tokens, the report and the tokenizer are kept for people to look at; None keeps nothing.
        tell: is told (rows done, rows in all) now and then; what it raises ends the inspection.

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
    material = Material.read(config)
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
        chats=objective.model_kind == "causal_lm",
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
        self.total = len(material.train) + len(material.aside)
        self.full = array("l")
        self.lengths = array("l")
        self.targets = array("l")
        self.is_aside = array("b")
        self.found: dict[str, list[int]] = {name: [] for name in KINDS}
        self.counts: Counter[str] = Counter()
        self.refusals: list[Problem] = []
        self.seen: set[bytes] = set()
        self.inputs: dict[bytes, bytes] = {}
        self.labels: Counter[str] = Counter()
        self.aside_labels: Counter[str] = Counter()
        self.turns: Counter[int] = Counter()
        self.scripts: Counter[str] = Counter()
        self.systems: Counter[str] = Counter()
        self.keeps_system: dict[str, bool] = {}
        added = tokens.tokenizer.added_tokens_decoder.values()
        special = sorted((token.content for token in added if token.special), key=len, reverse=True)
        pairs = find_overlap(material.data.chosen(material.train), material.held.chosen(material.aside))
        self.trained_too = {number for _, number in pairs}
        self.special = re.compile("|".join(map(re.escape, special))) if special else None
        self.first: Row | None = None

    def read(self, tell: Tell | None) -> Iterator[pyarrow.RecordBatch]:
        """Take in every row; yields them as tables."""
        objective, data = self.material.objective, self.config.data
        said, pending = time.monotonic(), []
        own, apart = self.material.data, self.material.held is not self.material.data
        aside = set() if apart else set(self.material.aside)
        # In the order of the file, whatever is trained on.
        parts = [(own, range(len(own.examples)), "data.train")]
        if apart:
            field = "data.eval" if data.eval else "data.train"
            parts.append((self.material.held, range(len(self.material.held.examples)), field))
        if tell:
            tell(0, self.total)
        done = 0
        for dataset, indices, source in parts:
            for index, spelled in spell_each(dataset, indices, objective, self.tokens, data, source):
                is_aside = dataset is not own or index in aside
                pending += self._take(dataset.examples[index], dataset.numbers[index], spelled, is_aside)
                done += 1
                if len(pending) >= BATCH:
                    yield _batch(pending[:BATCH])
                    pending = pending[BATCH:]
                if tell and time.monotonic() - said > _SAY_EVERY:
                    tell(done, self.total)
                    said = time.monotonic()
        for start in range(0, len(pending), BATCH):
            yield _batch(pending[start : start + BATCH])
        if tell:
            tell(self.total, self.total)

    def _take(
        self, example: Example, number: int, spelled: list[Row] | Problem, is_aside: bool
    ) -> list[dict[str, Any]]:
        flags = self._judge(example, number, is_aside)
        if isinstance(spelled, Problem):
            self._note([*flags, "refused"], number)
            self.refusals.append(spelled)
            return []
        if not spelled:
            flags.append("dropped")
        rows = []
        noted = dict.fromkeys(flags)
        for row in spelled:
            shown = row.shown()
            own = self._judge_row(row, shown)
            noted |= dict.fromkeys(own)
            self.full.append(row.length + len(row.lost))
            if row.targets:
                self.lengths.append(row.length)
                self.targets.append(row.targets)
                self.is_aside.append(is_aside)
                self.first = self.first or row
            rows.append(
                {
                    "number": number, "aside": is_aside, "ids": [token for token, _ in shown],
                    "learned": [learned for _, learned in shown], "lost": row.lost, "findings": [*flags, *own],
                }
            )  # fmt: skip
        # A row that became several counts once.
        self._note(list(noted), number)
        return rows

    def _note(self, flags: Sequence[str], number: int) -> None:
        for flag in flags:
            self.counts[flag] += 1
            rows = self.found[flag]
            if len(rows) < _SHOWN and number not in rows[-1:]:
                rows.append(number)

    def _judge(self, example: Example, number: int, is_aside: bool) -> list[str]:
        """What is wrong with an example, whatever the model makes of it."""
        flags = []
        texts = _texts(example)
        whole = "\n".join(texts)
        self.scripts[_script(whole)] += 1
        if example.messages:
            self.turns[sum(message.role == "user" for message in example.messages)] += 1
            if example.messages[0].role == "system":
                flags += self._judge_system(example)
        for label in example.labels or ():
            (self.aside_labels if is_aside else self.labels)[label] += 1
        if not whole.isascii() and _MOJIBAKE.search(whole):
            flags.append("mojibake")
        if self.special and self.material.objective.model_kind == "causal_lm" and self.special.search(whole):
            flags.append("special")
        if is_aside and number in self.trained_too:
            flags.append("overlap")
        elif not is_aside:
            key = _digest(_SEPARATORS.sub("", whole.casefold()) or whole)
            flags += ["duplicate"] if key in self.seen else []
            self.seen.add(key)
        if example.labels is not None and not example.several:
            given, told = _digest(example.text or ""), _digest("\n".join(example.labels))
            if self.inputs.setdefault(given, told) != told:
                flags.append("conflict")
        return flags

    def _judge_system(self, example: Example) -> list[str]:
        """Whether the template passes the system prompt on: tried once for each of the first few hundred."""
        system = example.messages[0].content.strip()
        self.systems[system[:1000]] += 1
        if (
            system not in self.keeps_system
            and len(self.keeps_system) < _SYSTEM_PROMPTS
            and self.tokens.tokenizer.chat_template
        ):
            try:
                said = self.tokens.render(example.messages)
                self.keeps_system[system] = " ".join(system.split()) in " ".join(said.split())
            except Problem:
                self.keeps_system[system] = True  # it is told of as refused
        return [] if self.keeps_system.get(system, True) else ["dropped_system"]

    def _judge_row(self, row: Row, shown: list[tuple[int, bool]]) -> list[str]:
        flags = []
        start = self.tokens.tokenizer.bos_token_id
        if start is not None and row.ids[:2] == [start, start]:
            flags.append("double_start")
        writes = self.material.objective.model_kind == "causal_lm"
        if not row.targets:
            flags.append("unlearned")
        elif row.lost and shown[-1][1] and writes and self.material.objective.name != "text":
            flags.append("cut_answer")
        elif row.lost:
            flags.append("cut")
        elif (
            writes
            and self.material.objective.name != "text"
            and not any(t and i in self.tokens.end_ids for i, t in shown)
        ):
            flags.append("endless")
        return flags

    def report(self) -> dict[str, Any]:
        """All of it in numbers, as plain data."""
        data, objective = self.material.data, self.material.objective
        lengths, full = np.asarray(self.lengths), np.asarray(self.full)
        bad = [*data.bad, *(self.material.held.bad if self.material.held is not data else ())]
        problems = [*data.problems()]
        if bad:
            self.counts["bad"], self.found["bad"] = len(bad), [row.row for row in bad[:_SHOWN]]
        few = {label for label, count in self.labels.items() if count < 2}
        if few:
            self.counts["lonely_label"] = sum(self.labels[label] for label in few)
        trained = int(np.sum(self.targets))
        learnable = int(np.sum(np.asarray(self.is_aside) == 0)) if len(lengths) else 0
        findings = self._findings(int(full.max()) if len(full) else 0)
        return {
            "format": data.format,
            "reason": data.reason,
            "rows": data.rows + (self.material.held.rows if self.material.held is not data else 0),
            "trained_rows": len(lengths),
            "train_rows": learnable,
            "aside_rows": len(lengths) - learnable,
            "bad_rows": len(bad),
            "refused_rows": self.counts["refused"],
            "empty_rows": self.counts["unlearned"],
            "cut_rows": self.tokens.cut,
            "dropped_rows": self.tokens.dropped,
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
            "pad_is_end": padding_token(self.tokens.tokenizer) in self.tokens.end_ids,
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
                found.append(Finding(name, count, tuple(self.found[name]), tuple(remedies)))
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


def _batch(rows: Sequence[dict[str, Any]]) -> pyarrow.RecordBatch:
    return pyarrow.RecordBatch.from_pylist(list(rows), schema=_SCHEMA)


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


def _texts(example: Example) -> list[str]:
    """Everything that stands in an example."""
    parts = [example.text, example.question, example.context, example.source, example.target]
    answers = [answer.text for answer in example.answers or ()]
    if example.messages:
        # Pairs are a conversation, too, and would count twice.
        parts = []
        answers = [message.content for message in example.messages]
    return [part for part in (*parts, *answers) if part]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _script(text: str) -> str:
    """The writing system of most letters at the beginning of a text."""
    text = text[:2000]
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else "none"
    counts = {name: len(letters.findall(text)) for name, letters in _LETTERS.items()}
    # Japanese is written in both.
    if counts["Kana"] and counts["Han"]:
        return "Kana"
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else ("other" if any(map(str.isalpha, text)) else "none")
