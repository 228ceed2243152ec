"""What can be wrong with a data set: the kinds of trouble that an inspection finds, worst first, and what to do about each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from core.problem import Problem

SEVERITIES = ("stop", "warn", "note")
"""What teaches nothing, what spoils a training, and what is worth knowing."""


class Kind(NamedTuple):
    """One kind of trouble: `what` is wrong with `count` rows, and `why` that matters, with what can be done."""

    severity: str
    what: str
    why: str


KINDS: dict[str, Kind] = {
    "refused": Kind(
        "stop",
        "Rows that the model or the task refuses: {count}.",
        "They teach nothing. Correct or delete them, or choose another model; where its template refuses them, use the plain one.",
    ),
    "bad": Kind(
        "stop",
        "Rows that cannot be read as the others are: {count}.",
        "They are left out. Correct or delete them.",
    ),
    "judged": Kind(
        "stop",
        "Rows that say how good an answer is: {count}.",
        "Training on preferences (DPO, KTO) is not possible yet. Choose the format chosen or good to learn the good answers alone.",
    ),
    "unlearned": Kind(
        "stop",
        "Rows of which nothing is learned: {count}.",
        "All that would be learned was cut off, so that they only cost time. Raise the longest row, or drop them.",
    ),
    "cut_answer": Kind(
        "warn",
        "Rows that lose the end of what is to be learned: {count}.",
        "The model learns to stop in mid-sentence, or never to stop. Raise the longest row, or drop them.",
    ),
    "endless": Kind(
        "warn",
        "Rows whose answer does not end with a token that ends it: {count}.",
        "The model would learn to go on for ever. Choose a model whose tokenizer names its end.",
    ),
    "double_start": Kind(
        "warn",
        "Rows that begin with the token for the beginning twice: {count}.",
        "The model has never seen that; quality suffers. Its chat template writes it twice, or the text begins with it: use the plain template, or remove it from the text.",
    ),
    "dropped_system": Kind(
        "warn",
        "Rows whose system prompt the model's template leaves out: {count}.",
        "What it says is neither read in training nor in use. Use the plain template, move it into the first question, or choose another model.",
    ),
    "overlap": Kind(
        "warn",
        "Rows of the evaluation data that are trained on, too: {count}.",
        "The evaluation would praise what was learned by heart. Remove duplicates, or choose other evaluation data.",
    ),
    "near_overlap": Kind(
        "warn",
        "Rows of the evaluation data that are nearly the same as one that is trained on: {count}.",
        "The evaluation would praise what was learned by heart. Leave them out, or choose other evaluation data.",
    ),
    "conflict": Kind(
        "warn",
        "Rows with the input of another and a different label: {count}.",
        "They teach opposite things. Keep one of each.",
    ),
    "mojibake": Kind(
        "warn",
        "Rows with garbled characters: {count}.",
        "The file was read in a wrong encoding at some time, and the model would learn to write them. Export it again as UTF-8.",
    ),
    "special": Kind(
        "warn",
        "Rows with words that the model reads as special tokens: {count}.",
        "They end or begin turns where none should. Remove them from the text.",
    ),
    "duplicate": Kind(
        "note",
        "Rows that repeat one before, but for case, spaces and punctuation: {count}.",
        "They count twice or more often. Remove them unless that is meant.",
    ),
    "near_duplicate": Kind(
        "note",
        "Rows that are nearly the same as one before: {count}.",
        "They count nearly twice or more often. Leave them out unless that is meant.",
    ),
    "unlearned_label": Kind(
        "warn",
        "Rows of the evaluation data with a label that no row to train on has: {count}.",
        "The model cannot learn it, and every such row counts as an error. Add rows with that label to train on.",
    ),
    "unmeasured_label": Kind(
        "note",
        "Rows to train on with a label that no row of the evaluation data has: {count}.",
        "How well it is learned will not be seen. Set more rows aside.",
    ),
    "pad_is_end": Kind(
        "note",
        "Rows that would be filled up with the token that ends an answer: {count}.",
        "Nothing is lost here, as what fills up is never learned. Other programs leave the end out, too, and their models never stop.",
    ),
    "lonely_label": Kind(
        "note",
        "Rows with a label that hardly any other has: {count}.",
        "Of a handful of rows a class is hardly learned, and not measured. Add rows or join classes.",
    ),
    "plain": Kind(
        "note",
        "Rows that are written in the plain template: {count}.",
        "The model has none of its own, or you chose it. Chat uses it as well, and it goes along with what is exported.",
    ),
    "dropped": Kind(
        "note",
        "Rows that are dropped because they are too long: {count}.",
        "Nothing of them is learned. Have them cut or split instead, or raise the longest row.",
    ),
    "shortened": Kind(
        "note",
        "Rows whose oldest turns are left out because they are too long: {count}.",
        "The model does not read what was said first. Raise the longest row if memory allows.",
    ),
    "left_out": Kind(
        "note",
        "Rows that are left out for what was found in them: {count}.",
        "You asked for it: they are neither trained on nor measured on.",
    ),
    "cut": Kind(
        "note",
        "Rows that are cut at their end: {count}.",
        "They are longer than the longest row allows. Raise it if memory allows.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One kind of trouble with a data set: how many rows have it, and the first of them by their number in the file.

    `files` are the names of the files of these rows, where there are several.
    `remedies` are the ways to mend it, each as settings by dotted key; empty where no setting does.
    """

    name: str
    count: int
    rows: tuple[int, ...] = ()
    remedies: tuple[Mapping[str, Any], ...] = ()
    files: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        return KINDS[self.name].severity

    @property
    def problem(self) -> Problem:
        """The finding in words."""
        kind = KINDS[self.name]
        return Problem(kind.what, "", kind.why, count=self.count)

    def list_rows(self, most: int, shorten: Callable[[str], str] = str) -> str:
        """The first rows as people write them: 3, 17; or those of each file behind its name: a.jsonl 3, 17 · b.jsonl 1."""
        lists: dict[str, list[str]] = {}
        for row, file in itertools.zip_longest(self.rows[:most], self.files[:most], fillvalue=""):
            lists.setdefault(str(file), []).append(f"{row:,}")
        told = (f"{shorten(file)} {', '.join(rows)}".strip() for file, rows in lists.items())
        return " · ".join(told) + (" …" if self.count > most else "")

    def to_data(self) -> dict[str, Any]:
        """As plain data, for a file that another process reads."""
        told = {
            "name": self.name,
            "severity": self.severity,
            "count": self.count,
            "rows": list(self.rows),
            "files": list(self.files),
        }
        return told | {"remedies": [dict(one) for one in self.remedies], "says": str(self.problem)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_data`."""
        return cls(
            data["name"], int(data["count"]), tuple(data["rows"]), tuple(data["remedies"]), tuple(data.get("files", ()))
        )  # fmt: skip
