"""Answering with chosen weights: one base model, the adapters of runs put on it when they are asked for.

A base model is held with one head at a time: the one that the asked run needs. Asking a run of another kind (or a
classifier of other labels) loads the model again with that one's head; answers in the making keep theirs until they end.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from core import objectives
from core.config import ModelSettings
from core.engine.adapt import Adapted, Weights
from core.engine.adapter_files import check_bytes, digest
from core.engine.data import Reader
from core.engine.device import choose_dtype, find_device
from core.engine.generate import Sampling, TextStream, generate
from core.engine.model import end_token_ids, has_trained_head, load_model, longest_input
from core.engine.predict import Found, classify, find_answer
from core.engine.tokens import Tokens
from core.formats import Message
from core.model import check_safety, locate, possible_tasks
from core.objectives import Objective
from core.objectives.classification import Classification
from core.objectives.extractive_qa import ExtractiveQA
from core.problem import Problem
from core.runs import Run, find_id

_KEPT_ADAPTERS = 8
WRITERS = ("causal_lm", "seq2seq")
"""The kinds of model that answer with a text of their own."""


@dataclass
class Speech:
    """An answer in the making: iterate over its text; `weights` says what made it, `usage` is filled as it goes."""

    pieces: Iterator[str]
    weights: dict[str, Any]
    adapter: str | None
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = "stop"


class Speaker:
    """A loaded base model that answers with the base, or with any run's adapter applied or merged.

    Not thread-safe: steps of several answers may alternate, on one thread.

    Args:
        objective: the task that it is first loaded for; without one, the likeliest that the model can do.
    """

    adapted: Adapted
    tokens: Tokens
    reader: Reader
    objective: Objective

    def __init__(self, settings: ModelSettings, objective: Objective | None = None):
        self.settings = settings
        self._loaded: dict[str, tuple[Run, dict[str, Any]]] = {}
        self._stamps: dict[str, tuple[tuple[int, int], str]] = {}
        self._untrained: dict[tuple[str, tuple[str, ...]], Problem] = {}
        self._load(objective or objectives.find(self.tasks[0] if self.tasks else "chat"))

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the base model can do."""
        folder = locate(self.settings.name, self.settings.revision, download=True)
        assert folder is not None
        return possible_tasks(check_safety(folder))

    def _load(self, objective: Objective) -> None:
        device = find_device()
        model, tokenizer = load_model(self.settings, device, choose_dtype(self.settings.dtype, device), objective)
        self._head = (objective.model_kind, objective.labels)
        if isinstance(objective, Classification) and not objective.labels:
            names = [str(name) for _, name in sorted(model.config.id2label.items())]
            objective = Classification(tuple(names), model.config.problem_type == "multi_label_classification")
        self.adapted, self.objective = Adapted(model), objective
        self._loaded.clear()
        ends = end_token_ids(getattr(model, "generation_config", None), tokenizer)
        self.tokens = Tokens(tokenizer, longest_input(model) or 2**20, ends)
        self.reader = Reader(model, packing=False, kind=objective.model_kind)

    def _suit(self, run: Run | None, kinds: Sequence[str]) -> None:
        """Have the model with the head that the run needs, or that the base brings, if it is of one of these kinds.

        Raises:
            Problem: when it is of none, or the base's head has learned nothing.
        """
        if run is not None:
            wanted = restore_task(run)
            if wanted.model_kind not in kinds:
                raise Problem(
                    "The run {run} was trained for the task {task}, which is asked otherwise.",
                    "A classifier is given a text, a run for questions about a text a question and its context, and all others a chat.",
                    "Choose another run, or ask it in its own way.",
                    run=run.title,
                    task=wanted.name,
                )
        else:
            able = [objectives.find(task) for task in self.tasks]
            fitting = [task for task in able if task.model_kind in kinds]
            if not fitting:
                raise Problem(
                    "The base model cannot do this by itself.",
                    "It can do {tasks}.",
                    "Choose a run, or another model.",
                    tasks=", ".join(self.tasks) or "-",
                )
            wanted = fitting[0]
        head = (wanted.model_kind, wanted.labels)
        if run is None and head in self._untrained:
            raise self._untrained[head]
        if head != self._head:
            self._load(wanted)
        if run is not None or not isinstance(wanted, Classification):
            self.objective = wanted  # a base that classifies keeps its own labels, which loading told
        if run is None and not has_trained_head(self.settings, self.adapted.model):
            self._untrained[head] = Problem(
                "The base model has learned no labels and no answers of its own: its head begins at random.",
                to_do="Choose a run that was trained on it.",
            )
            raise self._untrained[head]

    def choose(
        self,
        run: Run | None,
        *,
        merged: bool = False,
        scale: float = 1.0,
        busy: Sequence[str | None] = (),
        kinds: Sequence[str] = WRITERS,
    ) -> tuple[Weights, dict[str, Any]]:
        """The weights that are meant, loaded when they are not yet there, and their provenance.

        Args:
            run: whose adapter; None is the base alone.
            busy: adapters that answers in the making still use, and which therefore stay.
            kinds: which heads will do for what is asked.

        Raises:
            Problem: when the run has no adapter, belongs to another base model, or does another kind of task.
        """
        base = {"base": self.settings.name, "quantization": self.settings.quantization}
        if run is None:
            self._suit(None, kinds)
            return Weights(), base | {
                "adapter": None,
                "method": None,
                "step": None,
                "scale": 0.0,
                "merged": False,
                "digest": None,
            }
        folder = run.folder / "adapter"
        if not run.has_adapter():
            raise Problem(
                "The run {run} has no adapter yet.",
                to_do="Wait until it has saved one, or choose another run.",
                run=run.title,
            )
        config = run.config()
        other_files = (config.model.name, config.model.revision) != (self.settings.name, self.settings.revision)
        if config.model.quantization != self.settings.quantization or (
            other_files
            and locate(config.model.name, config.model.revision) != locate(self.settings.name, self.settings.revision)
        ):
            raise Problem(
                "The run {run} was trained on another base model.",
                "It needs {wanted}; {loaded} is loaded.",
                "Choose a run of this base model.",
                run=run.title,
                wanted=_named(config.model),
                loaded=_named(self.settings),
            )
        self._suit(run, kinds)
        # The digest is part of the name: an adapter that is trained on meanwhile is another adapter.
        name = f"{run.id}-{self._digest(run)}".replace(".", "-")
        if name not in self._loaded:
            check_bytes(folder)
            self.adapted.load(name, folder)
            self._loaded[name] = (run, _about(run) | {"template": config.data.template})
            for old in [old for old in self._loaded if old != name and old not in busy][
                : max(0, len(self._loaded) - _KEPT_ADAPTERS)
            ]:
                self.adapted.remove(old)
                del self._loaded[old]
        weights = Weights(name, scale, merged)
        self.adapted.check(weights)
        about = self._loaded[name][1]
        provenance = {
            "adapter": run.id,
            "method": about["method"]["name"],
            "step": about.get("step"),
            "scale": scale,
            "merged": merged,
            "digest": self._digest(run),
        }
        return weights, base | provenance

    def _digest(self, run: Run) -> str:
        stat = (run.folder / "adapter" / "adapter_model.safetensors").stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if self._stamps.get(run.id, (None, ""))[0] != stamp:
            self._stamps[run.id] = (stamp, digest(run.folder / "adapter"))
        return self._stamps[run.id][1]

    def speak(
        self, prompt: Sequence[Message] | str, sampling: Sampling, weights: Weights, provenance: dict[str, Any]
    ) -> Speech:
        """Begin an answer to a conversation, or a continuation of a text."""
        # A run is spoken to in the template that it was trained with, the base in its own.
        about = self._loaded[weights.adapter][1] if weights.adapter else {}
        tokens = self.tokens.with_template(about.get("template", "model"))
        if self.objective.model_kind == "seq2seq":
            # It turns one text into another: only the last turn is one.
            text = prompt if isinstance(prompt, str) else next((turn.content for turn in reversed(prompt)), "")
            ids = tokens.spell_input(text).ids if text else []
        else:
            ids = tokens.text_prompt(prompt) if isinstance(prompt, str) else tokens.prompt(prompt)
        if not ids:
            raise Problem("There is nothing to go on with.", to_do="Write a few words first.")
        speech = Speech(iter(()), provenance, weights.adapter)
        speech.pieces = self._speak(ids, sampling, weights, speech)
        return speech

    def _speak(self, ids: list[int], sampling: Sampling, weights: Weights, speech: Speech) -> Iterator[str]:
        # Another question may have the model loaded anew; this answer goes on with what it began with.
        adapted, tokens = self.adapted, self.tokens

        def using() -> AbstractContextManager[object]:
            return adapted.using(weights)

        text, count, began = TextStream(tokens), 0, time.monotonic()
        speech.usage = {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
        before, taken = adapted.before(weights)
        read = 0 if self.objective.model_kind == "seq2seq" else len(before) + taken + len(ids)
        room = min(sampling.max_tokens, tokens.max_length - read)
        for token in generate(adapted.model, [*before, *ids], tokens.end_ids, sampling, using, taken):
            count += 1
            speech.usage = {
                "prompt_tokens": len(ids),
                "completion_tokens": count,
                "total_tokens": len(ids) + count,
                "tokens_per_second": round(count / max(1e-9, time.monotonic() - began), 1),
            }
            yield text.add(token)
        speech.finish_reason = "length" if count >= room else "stop"
        yield text.finish()

    def classify(
        self, run: Run | None, text: str, *, merged: bool = False, scale: float = 1.0, busy: Sequence[str | None] = ()
    ) -> tuple[list[tuple[str, float]], dict[str, Any]]:
        """Every label of a text with its probability, the likeliest first, and the weights that said so."""
        kinds = ("sequence_classification",)
        weights, provenance = self.choose(run, merged=merged, scale=scale, busy=busy, kinds=kinds)
        task = self.objective
        assert isinstance(task, Classification)
        before, taken = self.adapted.before(weights)
        tokens = copy.copy(self.tokens)
        tokens.leave_room(before, taken, tokens.max_length)
        with self.adapted.using(weights) as model:
            return classify(model, self.reader.behind(before), task, tokens, text), provenance

    def find_answer(
        self,
        run: Run | None,
        question: str,
        context: str,
        *,
        merged: bool = False,
        scale: float = 1.0,
        busy: Sequence[str | None] = (),
    ) -> tuple[Found, dict[str, Any]]:
        """The answer to a question in its context, and the weights that marked it."""
        kinds = ("question_answering",)
        weights, provenance = self.choose(run, merged=merged, scale=scale, busy=busy, kinds=kinds)
        task = self.objective
        assert isinstance(task, ExtractiveQA)
        tokens, stride = self.tokens, 128
        if run is not None:
            # Windows as long as those that it was trained on.
            data = run.config().data
            tokens = copy.copy(tokens)
            tokens.max_length = min(tokens.max_length, data.max_length)
            stride = data.stride
            tokens.leave_room(*self.adapted.before(weights), self.tokens.max_length)
        reader = self.reader.behind(self.adapted.before(weights)[0])
        with self.adapted.using(weights) as model:
            return find_answer(model, reader, task, tokens, question, context, stride), provenance


def restore_task(run: Run) -> Objective:
    """The run's task, with the labels that its adapter was trained on if it has one."""
    facts = _about(run) if run.has_adapter() else {}
    return objectives.restore(facts | {"task": run.config().task})


def _about(run: Run) -> dict[str, Any]:
    """What the run's adapter says of itself."""
    path = run.folder / "adapter" / "atelier.json"
    return json.loads(path.read_text(encoding="utf-8"))


def _named(base: ModelSettings) -> str:
    """A base model for people: quantised, it is another one."""
    return base.name if base.quantization == "none" else f"{base.name} ({base.quantization})"


def resolve_weights(name: str) -> tuple[Run | None, bool]:
    """What an API's model name means: `base`, a run's id, or a run's id with `:merged`."""
    if name == "base":
        return None, False
    run_id, _, how = name.partition(":")
    if how not in ("", "merged"):
        raise Problem(
            "There is no model {name}.", to_do="Give base, a run's id, or a run's id with :merged.", name=repr(name)
        )
    return find_id(run_id), how == "merged"


def open_chat(run: Run, *, base: bool, merged: bool, scale: float, context: str | None = None) -> Any:
    """A function for the command line that answers a history of (role, text) with this run's weights.

    Args:
        context: the text that a run for questions about a text looks into.
    """
    if not 0 <= scale <= 2:
        raise Problem("--scale cannot be {scale}.", to_do="It goes from 0 to 2.", scale=scale)
    config = run.config()
    task = objectives.find(config.task)
    if isinstance(task, ExtractiveQA) and not context:
        raise Problem(
            "A run for the task extractive_qa looks for the answer in a text.", to_do="Give the text with --context."
        )
    speaker = Speaker(config.model, None if base else restore_task(run))
    chosen = None if base else run
    if task.model_kind in WRITERS:
        weights, provenance = speaker.choose(chosen, merged=merged, scale=scale)

    def respond(history: Sequence[tuple[str, str]], settings: dict[str, Any]) -> Iterator[str]:
        said = history[-1][1]
        if isinstance(task, Classification):
            labels, _ = speaker.classify(chosen, said, merged=merged, scale=scale)
            yield "\n".join(f"{probability:.3f} {label}" for label, probability in labels)
        elif isinstance(task, ExtractiveQA):
            found, _ = speaker.find_answer(chosen, said, context or "", merged=merged, scale=scale)
            yield f"{found.answer or '-'} ({found.probability:.3f})"
        else:
            prompt = said if config.task == "text" else [Message(*turn) for turn in history]
            yield from speaker.speak(prompt, Sampling.read(settings), weights, provenance).pieces

    return respond
