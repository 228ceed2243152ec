"""Classification: a text and its label, or its labels, learned by a fresh head on the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from core.objectives import LabelRow, Objective, Row, Scored, Speller
from core.problem import Problem

if TYPE_CHECKING:
    import torch

    from core.config import DataSettings
    from core.formats import Example

_ENOUGH = 20
"""So few rows may all have labels of their own; of more rows, half as many labels as rows are none."""


class Classification(Objective):
    """One label a row, or several where the data's labels are lists."""

    title = "Classification"
    about = "Puts texts into classes: topics, intents, spam, sentiment; one label a text, or several."
    order = 40
    measures = ("accuracy", "macro_f1")
    model_kind = "sequence_classification"

    def __init__(self, labels: tuple[str, ...] = (), several: bool = False):
        self.labels, self.several = labels, several

    def fits(self, example: Example) -> bool:
        return example.labels is not None and example.text is not None

    def fitted(self, examples: Iterable[Example]) -> Self:
        names, count, several = set(), 0, False
        for example in filter(self.fits, examples):
            names.update(example.labels or ())
            count, several = count + 1, several or example.several
        labels = sorted(names, key=_as_number)
        if count and len(labels) < 2:
            raise Problem(
                "There is nothing to tell apart: every row has the same label.",
                "It is {label}.",
                "Add rows with another label, or choose another column.",
                field="data.columns",
                label=", ".join(labels) or "-",
            )
        if count > _ENOUGH and len(labels) > count / 2:
            raise Problem(
                "There are {count} labels in {rows} rows: that is no choice among classes.",
                "The first are {labels}.",
                "Choose the column that holds the class, or another task.",
                field="data.columns",
                count=len(labels),
                rows=count,
                labels=", ".join(label[:40] for label in labels[:3]),
            )
        return type(self)(tuple(labels), several)

    def facts(self) -> dict[str, Any]:
        return {"labels": list(self.labels), "several": self.several}

    def restored(self, facts: Mapping[str, Any]) -> Self:
        return type(self)(tuple(map(str, facts.get("labels", ()))), bool(facts.get("several")))

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        own = example.labels or ()
        if unknown := [label for label in own if label not in self.labels]:
            raise Problem(
                "The label {label} is none of those that are learned.",
                "They are {labels}.",
                "Correct it, or add rows that have it to the data to train on.",
                label=unknown[0][:100],
                labels=", ".join(label[:40] for label in self.labels[:10]),
            )
        row = speller.spell_input(example.text or "")
        marks = tuple(float(label in own) for label in self.labels)
        label = marks if self.several else self.labels.index(own[0])
        return [LabelRow(row.ids, segments=row.segments, lost=row.lost, label=label)]

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Summed over rows: logits (rows, labels), targets (rows,), or (rows, labels) where a row may have several;
        then a row's loss is the mean over the labels."""
        from torch.nn import functional as F

        if not self.several:
            return F.cross_entropy(logits.float(), targets, reduction="sum")
        return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(-1).sum()

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each label, from a row's logits (labels,): they add up to one unless a row may have several."""
        return logits.float().sigmoid() if self.several else logits.float().softmax(-1)

    def predict(self, row: Row, logits: torch.Tensor) -> tuple[int, ...]:
        """The numbers of the labels that the model gives the row."""
        if self.several:
            return tuple((logits > 0).nonzero().flatten().tolist())
        return (int(logits.argmax()),)

    def score(self, scored: Scored) -> dict[str, float]:
        """accuracy and macro_f1 (the mean of the classes' F1), 0 to 1. With several labels a row counts as right when
        all of its labels are."""
        from sklearn.metrics import accuracy_score, f1_score

        if not scored:
            return {}
        truth, guess = self._compare(scored)
        if not self.several:
            first = [[row[0] for row in rows] for rows in (truth, guess)]
            macro = f1_score(*first, average="macro", zero_division=0)
            return {"accuracy": float(accuracy_score(*first)), "macro_f1": float(macro)}
        # A class that is neither among the rows nor among the guesses says nothing about the model.
        seen = [n for n in range(len(self.labels)) if any(n in row for row in truth + guess)]
        marks = [[[int(n in row) for n in range(len(self.labels))] for row in rows] for rows in (truth, guess)]
        macro = f1_score(*marks, labels=seen, average="macro", zero_division=0) if seen else 1.0
        return {"accuracy": float(accuracy_score(*marks)), "macro_f1": float(macro)}

    def tables(self, scored: Scored) -> dict[str, Any]:
        """confusion[i][j] counts the rows of label i that were given label j; with several labels, one table
        [[neither, only given], [only true, both]] for each label."""
        from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

        if not scored:
            return {}
        truth, guess = self._compare(scored)
        numbers = list(range(len(self.labels)))
        if self.several:
            marks = [[[int(n in row) for n in numbers] for row in rows] for rows in (truth, guess)]
            table = multilabel_confusion_matrix(*marks)
        else:
            table = confusion_matrix([row[0] for row in truth], [row[0] for row in guess], labels=numbers)
        return {"labels": list(self.labels), "confusion": table.tolist()}

    def _compare(self, scored: Scored) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        truth = [tuple(self.labels.index(label) for label in example.labels or ()) for example, _ in scored]
        return truth, [predictions[0] for _, predictions in scored]


def _as_number(label: str) -> tuple[float, str]:
    """Labels that are numbers are sorted as such, before all others."""
    try:
        return float(label), label
    except ValueError:
        return float("inf"), label
