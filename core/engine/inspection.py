"""What a model would see of a data set, all of it: every row as tokens, counted, with what is wrong found before a step."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig

from core import garbage, objectives, sources
from core.config import Config
from core.dataset import Dataset, find_row, has_eval_files
from core.engine.adapt import Adapted, Weights
from core.engine.crew import Crew
from core.engine.helper import Helper, start_helpers
from core.engine.material import Material
from core.engine.model import end_token_ids, load_tokenizer, longest_input, padding_token
from core.engine.rows import order_rows, spell_each
from core.engine.survey import REFUSED, SCHEMA, SHOWN, Part, Surveyor
from core.engine.tokens import Tokens
from core.findings import KINDS, SEVERITIES, Finding
from core.judgement import LEAVABLE, Flags
from core.methods import PromptMethod
from core.model import check_safety, check_task, locate
from core.objectives import Objective
from core.problem import Problem
from core.readers import ending, metered
from core.runs import write_whole

ROWS_FILE, REPORT_FILE, TOKENIZER_FILE = "rows.arrow", "report.json", "tokenizer.json"
"""What an inspection leaves in its folder: every row's tokens, the numbers with the findings, and how ids are spelled."""

BATCH = 500
"""Rows of ROWS_FILE that lie together."""

_IN_LINES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt"}
_TOKENS_AT_ONCE = 1_000_000
_SAY_EVERY = 0.5
_GUESSED_BATCH = 8
_SKETCHED_WORDS = 64
_BINS = 40
_TEMPLATE = ("refused", "dropped_system", "double_start")
_TOO_LONG = ("unlearned", "cut_answer", "cut", "shortened", "dropped")

Tell = Callable[[int, int], None]


def inspect(
    config: Config, folder: Path | None = None, tell: Tell | None = None, helpers: Sequence[Helper] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Spell every row as training would, with the same code, and say what there is and what is wrong.

    Args:
        config: what would be trained.
        folder: where the rows' tokens, the report and the tokenizer are kept for people to look at; None keeps nothing.
        tell: is told (rows done, rows in all) now and then, 0 in all where nobody knows; what it raises ends the
            inspection.
        helpers: processes that share the work, started before by somebody who ends them; by default as many as pay.

    Returns:
        The report as plain data: `rows`, `trained_rows`, `tokens`, `trained_tokens`, counts of what is odd, `lengths` (of
        whole rows, before they are cut), `findings` (worst first), `starts` (whether a training could), ...

    Raises:
        Problem: when the data or the model cannot be read, or do not suit the task.
    """
    garbage.take_up(stays=True)
    began = time.monotonic()
    where = locate(config.model.name, config.model.revision, download=True)
    assert where is not None
    check_task(config.task, check_safety(where), config.model.name)
    size = sources.size(config.data.train, config.data.eval)
    helpers = start_helpers(size) if helpers is None else helpers
    with Crew(helpers) if helpers else contextlib.nullcontext() as crew, metered() as meter:
        objective = objectives.find(config.task)
        tokens, limit = load_tokens(config, where, objective)
        tokens.keeps_lost = True
        # What a task makes of an example is known at once, unless it has to see all of them before.
        ahead = crew is not None and not objective.learns_of_data and not config.data.leave_out
        apart = bool(config.data.eval) or has_eval_files(config.data.train)
        if crew is not None and ahead:
            crew.prepare(Surveyor(tokens, objective, apart=apart), config.data, where, keeps_rows=folder is not None)

        in_lines = not apart and _reads_lines(config.data.train)

        def read(rows: int) -> None:
            if tell:
                # What is read ahead is as good as done; how many rows there are is guessed by the bytes behind it.
                guessed = ahead and in_lines and 0 < meter.read < size
                tell(rows, _round_up(rows * size / meter.read) if guessed else 0)

        material = Material.read(config, read, crew.measure, crew.keep) if crew else Material.read(config, read)
        look = _Look(material, tokens, config, limit)
        if crew is not None and not ahead:
            crew.prepare(look.surveyor, config.data, where)
        if folder is None:
            for _ in look.read(None if ahead else tell, crew):
                pass
        else:
            folder.mkdir(parents=True, exist_ok=True)
            tokens.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_FILE))
            with pyarrow.OSFile(str(folder / ROWS_FILE), "wb") as file, pyarrow.ipc.new_file(file, SCHEMA) as writer:
                for batch in look.read(None if ahead else tell, crew):
                    writer.write_batch(batch)
    if tell:
        tell(look.total, look.total)
    report = look.report()
    report["seconds"] = time.monotonic() - began
    report["rows_per_second"] = report["rows"] / max(report["seconds"], 1e-9)
    if folder is not None:
        write_whole(folder / REPORT_FILE, json.dumps(report, ensure_ascii=False))
    return report


def _reads_lines(source: str) -> bool:
    """Whether the bytes that were read of it tell how far it is: neither of a table, nor of what is read whole."""
    with contextlib.suppress(Problem):
        return all(ending(Path(name)) in _IN_LINES for name in sources.find_files(source))
    return False


def _round_up(count: float) -> int:
    """A number that is not known exactly, in two digits."""
    step = 10 ** max(0, len(str(int(count))) - 2)
    return math.ceil(count / step) * step


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
        self.apart = material.held is not material.data
        files = (material.data.files, material.held.files if self.apart else ())
        #: Names and rows of those that are read, and of those that are measured on alone; where they are several.
        self.files = files if sum(map(len, files)) > 1 else ((), ())
        self.surveyor = Surveyor(tokens, material.objective, apart=self.apart)
        self.all = Part()
        self.flags: tuple[Flags, Flags] = ({}, {})
        self._left_out = tuple(map(frozenset, material.left_out))
        self._aside = frozenset() if self.apart else self._left_out[1].union(material.aside)

    def read(self, tell: Tell | None, crew: Crew | None = None) -> Iterator[pyarrow.RecordBatch]:
        """Take in every row; yields them as tables."""
        if tell:
            tell(0, self.total)
        # The first look is the shorter one.
        first = self.total // 5
        told = (lambda count: tell(count // 5, self.total)) if tell else None
        self.flags = self.material.judge(told, crew and crew.measure)
        done, said = 0, time.monotonic()
        for part, examples in self._survey(crew):
            self.all.add(part)
            if part.rows is not None:
                yield part.rows
            done += examples
            if tell and time.monotonic() - said > _SAY_EVERY:
                tell(first + done * 4 // 5, self.total)
                said = time.monotonic()

    def _survey(self, crew: Crew | None) -> Iterator[tuple[Part, int]]:
        """What is found of some examples after others, and how many they are, in the order of the file."""
        own, surveyor, data = self.material.data, self.surveyor, self.config.data
        if own.examples[0].judged:
            # No task can learn them; what they hold is known all the same.
            for index, example in enumerate(own.examples):
                surveyor.note(
                    [*self.flags[0].get(index, []), *surveyor.judge(example, False), "judged"], own.numbers[index]
                )
            yield surveyor.end(), len(own.examples)
            return
        parts = [(own, "data.train")]
        if self.apart:
            parts.append((self.material.held, "data.eval" if data.eval else "data.train"))
        for dataset, field in parts:
            if crew is not None:
                yield from crew.survey(dataset, field, partial(self._know, dataset), surveyor.objective)
                continue
            indices, count = range(len(dataset.examples)), 0
            for index, spelled in spell_each(dataset, indices, surveyor.objective, self.tokens, data, field):
                is_aside, found = self._know(dataset, index)
                surveyor.take(dataset.examples[index], dataset.numbers[index], found, spelled, is_aside)
                count += 1
                if len(surveyor.table) >= BATCH or surveyor.table.tokens > _TOKENS_AT_ONCE or count >= BATCH:
                    yield surveyor.end(), count
                    count = 0
            yield surveyor.end(), count

    def _know(self, dataset: Dataset, index: int) -> tuple[bool, list[str]]:
        """Whether an example is set aside, and what its content tells."""
        is_held = dataset is not self.material.data
        is_aside = is_held or index in self._aside
        return is_aside, ["left_out"] if index in self._left_out[is_aside] else self.flags[is_held].get(index, [])

    def report(self) -> dict[str, Any]:
        """All of it in numbers, as plain data."""
        data, objective = self.material.data, self.material.objective
        lengths, full = np.asarray(self.all.lengths), np.asarray(self.all.full)
        bad = [(row.row, False) for row in data.bad]
        bad += [(row.row, True) for row in self.material.held.bad] if self.apart else []
        problems = [*data.problems()]
        if bad:
            self.all.counts["bad"], self.all.found["bad"] = len(bad), bad[:SHOWN]
        if (
            self.material.objective.model_kind == "causal_lm"
            and padding_token(self.tokens.tokenizer) in self.tokens.end_ids
        ):
            self.all.counts["pad_is_end"] = len(lengths)
        for missing, named in ((self.all.labels, self.all.aside_labels), (self.all.aside_labels, self.all.labels)):
            if missing and (unknown := set(named) - set(missing)):
                self.all.counts["unlearned_label" if missing is self.all.labels else "unmeasured_label"] = sum(
                    map(named.__getitem__, unknown)
                )
        few = {label for label, count in self.all.labels.items() if count < 2}
        if self.surveyor.talks and self.tokens.plain:
            self.all.counts["plain"] = len(lengths)
        if few:
            self.all.counts["lonely_label"] = sum(self.all.labels[label] for label in few)
        trained = int(np.sum(self.all.targets))
        learnable = int(np.sum(np.asarray(self.all.is_aside) == 0)) if len(lengths) else 0
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
            "refused_rows": self.all.counts["refused"],
            "empty_rows": self.all.counts["unlearned"],
            "cut_rows": self.all.cut,
            "dropped_rows": self.all.dropped,
            "left_out_rows": self.all.counts["left_out"],
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
            "labels": dict(self.all.labels + self.all.aside_labels),
            "turns": {str(turns): count for turns, count in sorted(self.all.turns.items())},
            "scripts": dict(self.all.scripts.most_common()),
            "systems": {"rows": sum(self.all.systems.values()), "kinds": len(self.all.systems), "most": self.all.systems.most_common(3)},
            "own_template": self.tokens.own_template,
            "findings": [finding.to_data() for finding in findings],
            "starts": learnable > 0,
            "problems": [str(problem) for problem in [*problems, *self.all.refusals[:REFUSED]]],
            "preview": [(self.tokens.tokenizer.decode([token]), learned) for token, learned in self.all.first or ()],
        }  # fmt: skip

    def _findings(self, longest: int) -> list[Finding]:
        """What was found, worst first; within a severity what concerns the most rows."""
        found = []
        for name in KINDS:
            if count := self.all.counts[name]:
                remedies = self._remedies(longest) if name in _TOO_LONG else []
                if name in LEAVABLE:
                    remedies = [{"data.leave_out": [*self.config.data.leave_out, name]}]
                elif name == "left_out":
                    remedies = [{"data.leave_out": []}]
                elif name in _TEMPLATE and self.surveyor.talks and not self.tokens.plain:
                    by_template = name != "refused" or any(one.field == "data.template" for one in self.all.refusals)
                    remedies = [{"data.template": "plain"}] if by_template else []
                elif name == "plain" and self.tokens.own_template:
                    remedies = [{"data.template": "model"}]
                places = [find_row(self.files[is_held], number) for number, is_held in self.all.found.get(name, ())]
                files = tuple(file for file, _ in places if file)
                found.append(Finding(name, count, tuple(row for _, row in places), tuple(remedies), files))
        return sorted(found, key=lambda one: (SEVERITIES.index(one.severity), -one.count))

    def _remedies(self, longest: int) -> list[dict[str, Any]]:
        """What may be done about rows that are too long: a longer row where the setting is what cuts, and not the model."""
        data = self.config.data
        ways = []
        if longest > data.max_length < self.limit:
            ways.append({"data.max_length": min(-(-longest // 64) * 64, self.limit)})
        several = self.material.objective.name == "chat" and max(self.all.turns, default=0) > 1
        ways += [{"data.too_long": way} for way in (("oldest", "split") if several else ()) if way != data.too_long]
        return [*ways, {"data.too_long": "cut" if data.too_long == "drop" else "drop"}]

    def _padding(self) -> dict[str, float]:
        """The share of padding in the batches of the first epoch, with every row in a line of its own, and packed."""
        lengths = np.asarray(self.all.lengths)[np.asarray(self.all.is_aside) == 0]
        size = self.config.train.batch_size
        size = min(size if isinstance(size, int) else _GUESSED_BATCH, max(1, len(lengths)))
        # The last batch may have fewer rows.
        batches = np.zeros((-(-len(lengths) // size), size), np.int64)
        batches.reshape(-1)[: len(lengths)] = lengths[np.asarray(order_rows(len(lengths), self.config.train.seed, 0))]
        apart = int(np.sum(batches.max(axis=1, initial=0) * np.count_nonzero(batches, axis=1)))
        packed, total = _count_packed(batches, self.tokens.max_length), int(lengths.sum())
        return {"apart": 1 - total / apart if apart else 0.0, "packed": 1 - total / packed if packed else 0.0}


def _count_packed(batches: np.ndarray, most: int) -> int:
    """Tokens of the batches that these rows are joined into, padding included (first fit, the longest first).

    Args:
        batches: how long each row is, 0 where there is none; int64 of shape (batches, rows).
        most: how long what they are joined into may be.
    """
    taken, every = np.zeros_like(batches), np.arange(len(batches))
    for lengths in -np.sort(-batches, axis=1).T:
        # What is too long by itself stands alone.
        fits = (taken + lengths[:, None] <= most) | (taken == 0)
        taken[every, fits.argmax(axis=1)] += lengths
    return int(np.sum(taken.max(axis=1, initial=0) * np.count_nonzero(taken, axis=1)))


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
