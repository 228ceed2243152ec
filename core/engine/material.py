"""What a training reads: its examples, which of them are set aside, and the prompts that are watched while it learns."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core import dataset, objectives, playground
from core.config import Config
from core.dataset import Dataset, Keep
from core.engine.data import Reader
from core.engine.generate import GREEDY, answer
from core.engine.predict import classify, find_answer
from core.engine.rows import Rows, spell
from core.engine.tokens import Tokens
from core.examples import keep_examples
from core.fit import count_eval_rows
from core.formats import Example, Message
from core.judgement import REPEATED, Flags, Measure, judge
from core.objectives import Objective
from core.objectives.classification import Classification
from core.objectives.extractive_qa import ExtractiveQA
from core.problem import Problem

_WATCHED = 3


@dataclass(frozen=True)
class Material:
    """The examples of `data` and `held` that are trained on and measured on, and the task fitted to them.

    `left_out` are those that would be in `train` and in `aside` if nothing were wrong with them.
    """

    objective: Objective
    data: Dataset
    train: Sequence[int]
    held: Dataset
    aside: Sequence[int]
    left_out: tuple[Sequence[int], Sequence[int]] = ((), ())

    @classmethod
    def read(
        cls, config: Config, tell: Callable[[int], None] | None = None, measure: Measure | None = None,
        keep: Keep = keep_examples,
    ) -> Material:  # fmt: skip
        """Read the data sets that a configuration names.

        Args:
            tell: is told the rows done now and then; what it raises ends the reading.
            measure: as `judge` takes it.
            keep: makes the places for the examples.

        Raises:
            Problem: when they cannot be read, or the task cannot learn from them.
        """
        data = dataset.load(config.data.train, config.data.format, config.data.columns, tell=tell, keep=keep)
        held, given = data, config.data.eval or dataset.has_eval_files(config.data.train)
        if config.data.eval:
            held = dataset.load(
                config.data.eval, config.data.format, config.data.columns, field="data.eval", tell=tell, keep=keep
            )
        elif given:
            held = dataset.load(
                config.data.train, config.data.format, config.data.columns, aside=True, tell=tell, keep=keep
            )
        count = len(data.examples)
        wanted = count_eval_rows(config, count)
        train, aside = dataset.split(count, eval_count=wanted, seed=config.train.seed, labels=data.labels)
        if given:
            aside = range(len(held.examples))
        examples = itertools.chain(data.examples, held.examples if held is not data else ())
        material = cls(objectives.find(config.task).fitted(examples), data, train, held, aside)
        return material.without(config.data.leave_out, tell, measure) if config.data.leave_out else material

    def judge(
        self, tell: Callable[[int], None] | None = None, measure: Measure | None = None
    ) -> tuple[Flags, Flags]:  # fmt: skip
        """What is wrong with the examples of `data` and of `held` that are not left out."""
        return judge(self.data, self.train, self.held, self.aside, tell, measure)

    def without(
        self, flags: Collection[str], tell: Callable[[int], None] | None = None, measure: Measure | None = None
    ) -> Material:
        """The same without the examples that have any of these flags.

        Raises:
            Problem: when nothing would be left to train on.
        """
        material = self
        # Of two that are alike the first stays: it must not be one that goes for another reason.
        for some in (set(flags) - REPEATED, set(flags) & REPEATED):
            if not some:
                continue
            kept = []
            found = material.judge(tell, measure)
            for indices, names in zip((material.train, material.aside), found, strict=True):
                kept.append([index for index in indices if some.isdisjoint(names.get(index, ()))])
            material = replace(material, train=kept[0], aside=kept[1])
        if not material.train:
            raise Problem(
                "No row is left to train on: all have {flags}.",
                to_do="Leave out fewer.",
                field="data.leave_out",
                flags=", ".join(flags),
            )
        left = (sorted(set(self.train) - set(material.train)), sorted(set(self.aside) - set(material.aside)))
        return replace(material, left_out=left)

    def spell(self, tokens: Tokens, config: Config) -> tuple[Rows, Rows]:
        """The rows to train on and those to measure on.

        Raises:
            Problem: when no row has anything to learn.
        """
        train = spell(self.data, self.train, self.objective, tokens, config.data)
        field = "data.eval" if config.data.eval else "data.train"
        aside = spell(self.held, self.aside, self.objective, tokens, config.data, field)
        if not train.rows:
            Problem.raise_all(train.refused[:3])
            raise Problem(
                "No row of {data} has anything to learn.",
                "Every row was cut to {limit} tokens before its answer began.",
                "Raise the longest row, or train on everything.",
                field="data.max_length",
                data=config.data.train,
                limit=tokens.max_length,
            )
        return train, aside

    def watch(self, tokens: Tokens, config: Config) -> list[Watched]:
        """The prompts that are answered again and again: the given ones, else some of the rows set aside."""
        writes = self.objective.model_kind == "causal_lm"
        texts = list(config.samples.prompts)
        if not texts and writes and (sample := playground.SAMPLES.get(config.data.train.removeprefix("sample:"))):
            texts = list(sample.prompts)
        # A question without a text to find its answer in is none.
        found = [] if isinstance(self.objective, ExtractiveQA) else [self._ask(text, tokens) for text in texts]
        source = self.held if self.aside else self.data
        for index in [] if found else self.aside or self.train:
            example = source.examples[index]
            # A row that the model's template refuses was counted already and is no prompt.
            with contextlib.suppress(Problem):
                if self.objective.fits(example):
                    found.append(self._open(example, tokens, config.samples.max_new_tokens))
            if len(found) == _WATCHED:
                break
        return found

    def _ask(self, text: str, tokens: Tokens) -> Watched:
        if self.objective.model_kind == "seq2seq":
            return Watched(text, tokens.spell_input(text).ids)
        if isinstance(self.objective, Classification):
            return Watched(text)
        return Watched(
            text, tokens.text_prompt(text) if self.objective.name == "text" else tokens.prompt((Message("user", text),))
        )

    def _open(self, example: Example, tokens: Tokens, room: int) -> Watched:
        """An example's prompt: the conversation up to its first answer, a text's first words, or what else is asked."""
        if isinstance(self.objective, ExtractiveQA | Classification) or self.objective.generates:
            shown = example.question or example.text or (example.pair() or ("",))[0]
            ids = self.objective.prompt(example, tokens, room) if self.objective.generates else []
            return Watched(shown, ids, example.context)
        if example.text is not None:
            text = " ".join(example.text.split()[:12])
            return Watched(text, tokens.text_prompt(text))
        first = next(index for index, message in enumerate(example.messages) if message.role == "assistant")
        turns = example.messages[:first]
        return Watched(turns[-1].content if turns else "", tokens.prompt(turns))


@dataclass(frozen=True)
class Watched:
    """A prompt as people see it, as a model that writes reads it, and the text that a question is about."""

    text: str
    ids: Sequence[int] = ()
    context: str | None = None

    def answer(self, model: Any, reader: Reader, objective: Objective, tokens: Tokens, config: Config) -> str | None:
        """What the model says now, None where it has no room to say anything."""
        if isinstance(objective, Classification):
            best = classify(model, reader, objective, tokens, self.text)[:3]
            return " · ".join(f"{label} {probability:.3f}" for label, probability in best)
        if isinstance(objective, ExtractiveQA):
            found = find_answer(model, reader, objective, tokens, self.text, self.context or "", config.data.stride)
            return f"{found.answer or '-'} · {found.probability:.3f}"
        if not self.ids or (objective.model_kind == "causal_lm" and len(self.ids) >= tokens.max_length):
            return None
        was_training = model.training
        model.eval()
        sampling = GREEDY.model_copy(update={"max_tokens": config.samples.max_new_tokens})
        text = answer(model, tokens, self.ids, sampling)
        model.train(was_training)
        return text
