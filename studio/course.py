"""What can still be changed of a training: settings of one at work, and how far one that has ended goes on, with its schedule said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from core import changes, fit
from core.config import Config
from core.problem import Problem
from core.runs import ENDED, Run
from studio import report
from studio.fields import draw_component, name_setting, title_choice
from studio.form import knobs
from studio.language import Language
from studio.launcher import Launcher
from studio.metrics import read_metrics

Updates = dict[Any, Any]

_LENGTH = ("train.epochs", "train.max_steps")


class Course:
    """The fold with what may be changed: it holds what stood in it when it was filled, so that only what somebody typed counts."""

    def __init__(self, words: Language, launcher: Launcher):
        """Draw it here."""
        self.words, self.launcher = words, launcher
        self.offer = gr.State({})
        self.boxes: dict[str, Any] = {}
        self.notes: dict[str, gr.HTML] = {}
        self.columns: dict[str, gr.Column] = {}
        with gr.Accordion(words.t("course.change"), open=False, visible=False, elem_classes=["group"]) as self.fold:
            self.about = gr.HTML()
            with gr.Row(visible=False, elem_classes=["pair"]) as self.length:
                with gr.Column(elem_classes=["knob", "number"], min_width=240):
                    self.more = gr.Number(label=words.t("course.more"), info=words.t("course.more_help"), step=0.5)
                    self.notes["more"] = gr.HTML(elem_classes=["knob-note"])
                units = [(words.t(f"course.{unit}"), unit) for unit in ("epochs", "steps")]
                self.unit = gr.Radio(units, value="epochs", label=words.t("course.unit"), min_width=240)
            with gr.Row(elem_classes=["grid"]):
                for key in changes.CHANGEABLE:
                    knob = knobs()[key]
                    with gr.Column(elem_classes=["knob", knob.kind], min_width=240) as self.columns[key]:
                        self.boxes[key] = draw_component(words, knob, knob.show(knob.default), None)
                        self.notes[key] = gr.HTML(elem_classes=["knob-note"])
            self.says = gr.HTML()
            self.told = gr.HTML()
            with gr.Row(elem_classes=["actions"]):
                self.go = gr.Button(words.t("course.press"), size="md", min_width=120)

    @property
    def inputs(self) -> list[Any]:
        """What `preview` and `press` are given after the run."""
        return [self.offer, self.more, self.unit, *self.boxes.values()]

    @property
    def outputs(self) -> list[Any]:
        """Every component that may change."""
        return [
            self.offer, self.fold, self.about, self.length, self.more, self.unit, *self.columns.values(), *self.boxes.values(),
            *self.notes.values(), self.says, self.told, self.go,
        ]  # fmt: skip

    # --- what is offered ----------------------------------------------------------------------------------------------

    def refresh(self, run: Run, old: Any = None) -> Updates:
        """The fields as the settings are now; nothing where they still are as they were offered, so that typing is left alone."""
        offer = _offer(run)
        if offer == old:
            return {}
        if not offer:
            return {self.offer: {}, self.fold: gr.update(visible=False)}
        if not offer["ended"] and isinstance(old, dict) and old | {"per_epoch": offer["per_epoch"]} == offer:
            return {self.offer: offer}  # only how long an epoch is was not known before
        words, ended, settings = self.words, offer["ended"], changes.expected(run).train
        counted = ended and bool(offer["per_epoch"])
        step = words.number(offer["step"])
        about = "change_about" if not ended else "on_about" if offer["step"] else "on_anew"
        updates: Updates = {
            self.offer: offer,
            self.fold: gr.update(visible=True, label=words.t("course.on" if ended else "course.change")),
            self.about: _paragraph(words.t(f"course.{about}", step=step)),
            self.go: gr.update(
                value=words.t("course.press_on" if ended else "course.press"),
                variant="primary" if ended else "secondary",
            ),
            self.length: gr.update(visible=counted),
            self.told: "",
        }
        updates |= {self.columns[key]: gr.update(visible=not counted) for key in _LENGTH}
        updates |= {box: knobs()[key].show(offer["shown"][key]) for key, box in self.boxes.items()}
        more, unit = _rest(offer, fit.limit_steps(settings, offer["per_epoch"])) if counted else (1, "epochs")
        updates |= {self.more: more, self.unit: unit}
        return updates | self._tell(run, offer, more, unit, [updates[box] for box in self.boxes.values()])

    # --- what is typed ------------------------------------------------------------------------------------------------

    def preview(self, run: Run | None, offer: Any, more: Any, unit: Any, *values: Any) -> Updates:
        """What would become of the training, and what is wrong, beside its field."""
        if run is None or not isinstance(offer, dict) or offer.get("run") != run.id:
            return {}
        return self._tell(run, offer, more, unit, values)

    def press(self, run: Run, offer: Any, more: Any, unit: Any, *values: Any) -> Updates:
        """Do what was said. A press that comes again finds it done: it asks for settings, and for a step to end at, not for more."""
        if not isinstance(offer, dict) or offer.get("run") != run.id:
            return {}
        words = self.words
        try:
            wanted = self._read(run, offer, more, unit, values)
            said = "course.going"
            if (now := _offer(run)).get("ended") and (not offer["ended"] or now["step"] != offer["step"]):
                raise Problem(
                    "The run {run} has gone on since this was shown.",
                    "It ended at step {step}.",
                    "Look again at how it is to go on.",
                    run=run.title,
                    step=now["step"],
                )
            if now.get("ended"):
                self.launcher.resume(run, wanted)
            elif not offer["ended"]:
                said = "course.asked"
                if not wanted:
                    raise Problem("Nothing is changed yet.", to_do="Set another value above.")
                if changes.expected(run, wanted) != changes.expected(run):
                    changes.ask(run, wanted)
        except Problem as problem:
            return self._mark(problem)
        return self._mark(None) | {self.told: f"<p class='note good' role='status'>{report.escape(words.t(said))}</p>"}

    def _read(self, run: Run, offer: dict[str, Any], more: Any, unit: Any, values: Sequence[Any]) -> dict[str, Any]:
        """The settings that are other than they were offered; of one that has ended, how long it shall be.

        Raises:
            Problem: for what no training can be set to.
        """
        wanted: dict[str, Any] = {}
        for (key, old), value in zip(offer["shown"].items(), values, strict=True):
            knob = knobs()[key]
            # As the field shows the old value: what nobody typed is no change.
            if (typed := knob.read(value)) != knob.read(knob.show(old)):
                wanted[key] = typed
        if not (offer["ended"] and offer["per_epoch"]):
            changes.expected(run, wanted)
            return wanted
        found: list[Problem] = []
        wanted = {key: value for key, value in wanted.items() if key not in _LENGTH}
        try:
            wanted |= self._lengthen(run, offer, more, unit)
        except Problem as problem:
            found.append(problem)
        try:
            changes.expected(run, wanted)
        except Problem as problem:
            found.append(problem)
        Problem.raise_all(found)
        return wanted

    def _lengthen(self, run: Run, offer: dict[str, Any], more: Any, unit: Any) -> dict[str, Any]:
        """The settings that let it end so much after the step from which it goes on; none where it would end there anyway."""
        title = self.words.t("course.more")
        facts = {"field": "more", "key": title, "given": repr(more)[:40]}
        if not isinstance(more, int | float) or isinstance(more, bool) or not math.isfinite(more):
            raise Problem("{key} cannot be {given}.", to_do="Give a number.", **facts)
        per_epoch, settings = offer["per_epoch"], changes.expected(run).train
        size = 1 if unit == "steps" else per_epoch
        epochs, steps = (knobs()[key].high or 0 for key in _LENGTH)
        most = int(min(epochs * per_epoch, steps) - offer["step"]) // size
        if more <= 0:
            raise Problem("{key} cannot be {given}.", to_do="It must be more than {limit}.", limit=0, **facts)
        if more > most:
            raise Problem("{key} cannot be {given}.", to_do="It must be at most {limit}.", limit=most, **facts)
        end = offer["step"] + max(1, round(more * size))
        if end == fit.limit_steps(settings, per_epoch):
            return {} if run.resumable else {"train.epochs": settings.epochs}
        if settings.max_steps is None and end % per_epoch == 0:
            return {"train.epochs": end // per_epoch}
        enough = end <= math.ceil(per_epoch * settings.epochs)
        return {"train.max_steps": end} | ({} if enough else {"train.epochs": math.ceil(end / per_epoch)})

    # --- what is said -------------------------------------------------------------------------------------------------

    def _tell(self, run: Run, offer: dict[str, Any], more: Any, unit: Any, values: Sequence[Any]) -> Updates:
        try:
            wanted = self._read(run, offer, more, unit, values)
        except Problem as problem:
            return {self.says: ""} | self._mark(problem)
        lines = self._foretell(run, offer, changes.expected(run), changes.expected(run, wanted), wanted)
        items = "".join(f"<li>{report.escape(line)}</li>" for line in lines)
        return {self.says: f"<ul class='course' role='status'>{items}</ul>" if items else ""} | self._mark(None)

    def _foretell(
        self, run: Run, offer: dict[str, Any], now: Config, then: Config, wanted: dict[str, Any]
    ) -> list[str]:
        """What becomes of the training in sentences: the settings, its end, and the course of the learning rate."""
        words, ended, per_epoch, metrics = self.words, offer["ended"], offer["per_epoch"], read_metrics(run)
        told = []
        for key in wanted:
            old, new = (_show(words, key, getattr(config.train, key.partition(".")[2])) for config in (now, then))
            if old != new and not (ended and per_epoch and key in _LENGTH):
                told.append(words.t("course.becomes", name=words.text(knobs()[key].title), new=new, old=old))
        if not per_epoch:
            return told
        last = metrics.steps[-1]
        step = offer["step"] if ended else int(last["step"])
        was, steps = fit.limit_steps(now.train, per_epoch), fit.limit_steps(then.train, per_epoch)
        if steps <= step:
            return [*told, words.t("course.ends", step=step)]
        if ended:
            told.append(words.t("course.goes_on", step=step, steps=steps))
        elif steps != was:
            told.append(words.t("course.length", steps=steps, was=was))
        if ended or steps != was or not {"train.learning_rate", "train.scheduler"}.isdisjoint(wanted):
            first, end = (fit.learning_rate(at, steps, then.train) for at in (step, steps - 1))
            schedule = title_choice(words, knobs()["train.scheduler"], then.train.scheduler)
            old = last.get("learning_rate")
            told.append(
                words.t(
                    "course.rate", was=words.small(old), first=words.small(first), end=words.small(end), steps=steps,
                    schedule=schedule,
                )
            )  # fmt: skip
            if isinstance(old, int | float) and first > 1.2 * old:
                told.append(words.t("course.rises"))
        return told

    def _mark(self, problem: Problem | None) -> Updates:
        """Each part of a problem under its field, and what has none in sight under all of them."""
        parts = problem.parts if problem else ()
        updates: Updates = {}
        for key, note in self.notes.items():
            own = [part for part in parts if part.field == key]
            named = [name_setting(self.words, part, knobs()[key]) if key in knobs() else part for part in own]
            updates[note] = "".join(
                f"<p class='wrong' role='alert'>{report.escape(self.words.explain(part))}</p>" for part in named
            )
        others = [part for part in parts if part.field not in self.notes]
        return updates | {self.told: report.problems(self.words, others)}


def _offer(run: Run) -> dict[str, Any]:
    """What can be changed of a run: {run, ended, step, per_epoch, shown}; empty where nothing can.

    `step` is where one that has ended goes on, `per_epoch` how many steps an epoch has (0 while nobody knows).
    """
    try:
        state = run.state()
        if run.job != "train" or state == "stopping":
            return {}
        settings = changes.expected(run).train
    except (Problem, ValueError, TypeError, LookupError, AttributeError):
        return {}  # no settings that this version could change
    ended = state in ENDED
    kept = run.checkpoints() if ended else []
    shown = {key: getattr(settings, key.partition(".")[2]) for key in changes.CHANGEABLE}
    step = int(kept[-1].name.removeprefix("step-")) if kept else 0
    return {"run": run.id, "ended": ended, "step": step, "per_epoch": _per_epoch(run), "shown": shown}


def _per_epoch(run: Run) -> int:
    """Steps of an epoch, by the newest line of its numbers; 0 where there is none."""
    steps = read_metrics(run).steps
    step, epoch = (steps[-1].get(name) if steps else None for name in ("step", "epoch"))
    known = (
        isinstance(step, int | float) and isinstance(epoch, int | float) and epoch > 0 and math.isfinite(step / epoch)
    )
    return max(1, round(step / epoch)) if known else 0


def _rest(offer: dict[str, Any], planned: int) -> tuple[float, str]:
    """How much further it goes if nobody says otherwise: to the end that it was meant to have, else another epoch."""
    left = planned - offer["step"]
    if left <= 0:
        return 1, "epochs"
    return (left, "steps") if left % offer["per_epoch"] else (left // offer["per_epoch"], "epochs")


def _show(words: Language, key: str, value: Any) -> str:
    """A setting's value as people read it."""
    knob = knobs()[key]
    if value is None:
        return "–"
    return (
        title_choice(words, knob, value)
        if knob.kind == "choice"
        else f"{knob.show(value):g}"
        if isinstance(value, float)
        else str(value)
    )


def _paragraph(text: str) -> str:
    return f"<p class='quiet'>{report.escape(text)}</p>"
