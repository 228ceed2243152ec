"""Training objectives, one a file: what a row teaches, how far off the model is, and how its predictions are scored."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from core.problem import Problem

if TYPE_CHECKING:
    import torch

    from core.config import DataSettings
    from core.formats import Example, Message


# As with examples, nobody changes rows, and millions are made.
@dataclass(slots=True)
class Row:
    """What the model reads, as token ids, and for each whether (1) or not (0) it is learned as the token that comes next.

    `segments` says which of two texts each token is of, for models that are told; `lost` is what was cut off its end,
    where somebody wants to see that; `left_out` counts the tokens of the turns that were left out of it.
    """

    ids: Sequence[int]
    trained: Sequence[int] = b""
    segments: list[int] | None = None
    lost: Sequence[int] = field(default_factory=list)
    left_out: int = 0

    @property
    def targets(self) -> int:
        """How many things the row teaches; its first token has nothing before it and is never one."""
        return self.trained.count(True) - (self.trained[0] if self.trained else 0)

    @property
    def length(self) -> int:
        """Tokens that pass through the model."""
        return len(self.ids)

    @property
    def whole(self) -> int:
        """How long a row would have to be to hold all that is known of it."""
        return len(self.ids) + len(self.lost) + self.left_out

    def shown(self) -> list[tuple[int, bool]]:
        """Its tokens for people: (id, whether it is learned)."""
        return list(zip(self.ids, map(bool, self.trained or bytes(len(self.ids))), strict=True))


@dataclass(slots=True)
class LabelRow(Row):
    """A text with the number of its label, or with a 0 or 1 for each label where a text may have several."""

    label: int | tuple[float, ...] = 0

    @property
    def targets(self) -> int:
        return 1


@dataclass(slots=True)
class SpanRow(Row):
    """A question and a window of its context. `span` is the answer's first and last token, (0, 0) when it is not in
    this window; `places` are each token's characters in the context, None for a token that is not of it."""

    span: tuple[int, int] = (0, 0)
    places: list[tuple[int, int] | None] = field(default_factory=list)

    @property
    def targets(self) -> int:
        return 1

    def shown(self) -> list[tuple[int, bool]]:
        first, last = self.span
        return [(token, 0 < first <= position <= last) for position, token in enumerate(self.ids)]


@dataclass(slots=True)
class AnswerRow(Row):
    """A text for the encoder and what the decoder shall make of it, with the token that ends it."""

    answer: Sequence[int] = field(default_factory=list)

    @property
    def targets(self) -> int:
        return len(self.answer)

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.answer)

    @property
    def whole(self) -> int:
        return max(len(self.ids) + len(self.lost), len(self.answer))

    def shown(self) -> list[tuple[int, bool]]:
        return [*((token, False) for token in self.ids), *((token, True) for token in self.answer)]


class Speller(Protocol):
    """What an objective may ask of the engine: text into rows of tokens."""

    def spell_conversation(
        self, messages: tuple[Message, ...], train_on: str, tools: str | None = None, too_long: str = "cut"
    ) -> list[Row]: ...

    def spell_text(self, text: str) -> list[Row]: ...

    def spell_input(self, text: str) -> Row: ...

    def spell_windows(self, question: str, context: str, stride: int) -> list[SpanRow]: ...

    def spell_answer(self, text: str) -> list[int]: ...

    def shorten(self, text: str, tokens: int) -> str: ...

    def count_excess(self, messages: tuple[Message, ...]) -> int: ...

    def prompt(self, messages: Sequence[Message]) -> list[int]: ...


Scored = Sequence[tuple["Example", list[Any]]]
"""Examples, each with what was predicted for its rows (of a long context, one prediction a window)."""


class Objective:
    """A task. Its file name is its name.

    What a task must learn of its data before it starts, such as the labels that there are, is kept in the instance:
    `fitted` gives one that knows, `facts` is what is stored of it, and `restored` reads that back.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    about: ClassVar[str]
    order: ClassVar[int] = 50
    """The likeliest task of a model or a row comes first: the lower the earlier."""
    model_kind: ClassVar[str] = "causal_lm"
    """Which head the model needs: causal_lm, seq2seq, sequence_classification or question_answering."""
    auto_classes: ClassVar[dict[str, str]] = {
        "causal_lm": "AutoModelForCausalLM",
        "seq2seq": "AutoModelForSeq2SeqLM",
        "sequence_classification": "AutoModelForSequenceClassification",
        "question_answering": "AutoModelForQuestionAnswering",
    }
    """What transformers calls the class that loads a model with each head."""
    generates: ClassVar[bool] = False
    """Whether what is scored is generated text; else it is read off the logits by `predict`."""
    measures: ClassVar[tuple[str, ...]] = ()
    """What `score` gives, by name; the more of it the better."""
    labels: tuple[str, ...] = ()
    """What the outputs of the model's head are called, where they have names."""
    several: bool = False
    """Whether a row may have several labels at once."""

    @property
    def auto_class(self) -> str:
        """What transformers calls the class that loads a model for this task."""
        return self.auto_classes[self.model_kind]

    def fits(self, example: Example) -> bool:
        """Whether an example has what this task learns from."""
        raise NotImplementedError

    def rows(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        """The rows of tokens that a fitting example gives; a Problem for one that cannot be used."""
        raise NotImplementedError

    def spell(self, example: Example, speller: Speller, data: DataSettings) -> list[Row]:
        """The rows of tokens that an example gives.

        Raises:
            Problem: for an example that it cannot use, naming the task that can.
        """
        if not self.fits(example):
            raise refuse(self.name, example)
        return self.rows(example, speller, data)

    def loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss summed over all targets, a scalar. Of a language model: logits (n, vocabulary), targets (n,).

        A sum and not a mean, so that the step can divide by all targets of its window (a mean of means weighs short
        rows too much).
        """
        return next_token_loss(logits, targets)

    @property
    def learns_of_data(self) -> bool:
        """Whether `fitted` looks at the data."""
        return type(self).fitted is not Objective.fitted

    def fitted(self, examples: Iterable[Example]) -> Self:
        """This task for data like these."""
        return self

    def facts(self) -> dict[str, Any]:
        """What has to be stored to restore it."""
        return {}

    def restored(self, facts: Mapping[str, Any]) -> Self:
        """The task that stored these facts."""
        return self

    def predict(self, row: Row, logits: torch.Tensor) -> Any:
        """What the model says of a row, from its logits (float32, on the CPU)."""
        raise NotImplementedError

    def prompt(self, example: Example, speller: Speller, room: int) -> list[int]:
        """What a model that generates is asked, with `room` tokens left for its answer."""
        raise NotImplementedError

    def score(self, scored: Scored) -> dict[str, float]:
        """Named measures of predictions against the examples that they were made for; empty where there are none."""
        return {}

    def tables(self, scored: Scored) -> dict[str, Any]:
        """More than a number that an evaluation tells, as plain data."""
        return {}


@cache
def catalogue() -> dict[str, Objective]:
    """Every objective by name, the likeliest first."""
    found: dict[str, Objective] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Objective) and item.__module__ == module.__name__:
                item.name = info.name
                found[info.name] = item()
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def find(name: Any) -> Objective:
    """The objective of that name."""
    if name not in catalogue():
        raise Problem(
            "There is no task {name}.",
            "There are {names}.",
            field="task",
            name=repr(name),
            names=", ".join(catalogue()),
        )
    return catalogue()[name]


def restore(facts: Mapping[str, Any]) -> Objective:
    """The objective that atelier.json tells of."""
    return find(facts.get("task", "chat")).restored(facts)


def fitting(example: Example) -> tuple[str, ...]:
    """The names of the tasks that an example can be learned by, the likeliest first."""
    return tuple(name for name, objective in catalogue().items() if objective.fits(example))


def refuse(task: str, example: Example) -> Problem:
    """Why that task cannot use an example, and which can, or how it could be read otherwise."""
    if example.rejected is not None:
        return Problem(
            "This is preference data, and training on preferences (DPO, KTO) is not possible yet.",
            "Its rows have a chosen and a rejected answer.",
            "To train on the chosen answers alone, choose the format {format}.",
            field="data.format",
            format="chosen",
        )
    if example.good is not None:
        return Problem(
            "This is preference data, and training on preferences (DPO, KTO) is not possible yet.",
            "Its rows say of an answer whether it is good.",
            "To train on the good answers alone, choose the format {format}.",
            field="data.format",
            format="good",
        )
    names = fitting(example)
    return Problem(
        "It is not what the task {task} learns from.",
        "It fits {names}." if names else "It fits no task.",
        "Choose that task, or say in the columns setting which column plays which part.",
        field="task",
        task=task,
        names=", ".join(names),
    )


def next_token_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy summed over targets, in float32: half precision loses the small differences that training needs."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), targets, reduction="sum")
