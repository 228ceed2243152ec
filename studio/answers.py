"""What Chat and Compare share: the fields that choose weights, sampling and the message, and how an answer says what made it."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr

from core import methods, model, objectives, runs
from core.problem import Problem
from core.runs import Run
from studio import charts, predictions
from studio.language import Language
from studio.report import escape
from studio.serving import Answer, Base, How, Manner, Passage, Said, Sampling, Weights

STRONGEST = 2.0
UNTRAINED = ""
#: What a page follows that was opened and where no other page has selected a run yet.
OPENED = "-"
"""The value of the choice "the playground, as it comes"."""

GENERATING: tuple[Manner, ...] = ("talk", "ask", "continue")
"""The manners whose answer is a text that the model writes, token by token."""

_BY_KIND: dict[str, Manner] = {"sequence_classification": "label", "question_answering": "find", "seq2seq": "ask"}
_BY_TASK: dict[str, Manner] = {"text": "continue", "generative_qa": "ask"}

_LONGEST_NAME = 200
_LONGEST_TEXT = 200_000


@dataclass(frozen=True)
class About:
    """What the header needs to know of a run; a run's settings never change, so it is read once."""

    id: str
    title: str
    base: Base
    method: str
    manner: Manner


@lru_cache(maxsize=2000)
def _about(folder: Path) -> About:
    run = Run(folder)
    data = run.config_data()
    of = data["model"]
    base = Base(str(of["name"]), of.get("revision") or None, str(of.get("quantization") or "none"))
    task = objectives.find(data["task"])
    manner = _BY_TASK.get(task.name) or _BY_KIND.get(task.model_kind, "talk")
    return About(run.id, run.title, base, methods.find(data["method"]["name"]).name, manner)


def about(run: Run) -> About:
    """What there is to know of a training run, without its numbers."""
    return _about(run.folder)


def trained() -> list[About]:
    """Every run that has something to answer with, newest first; a folder that cannot be read is left out."""
    found = []
    for run in runs.all_runs():
        if run.has_adapter():
            try:
                found.append(about(run))
            except (Problem, OSError, KeyError, TypeError):
                continue
    return found


def label(words: Language, run: About) -> str:
    """A run as one line of a list: its name, its method, and when it was begun."""
    stamp = re.match(r"\d{4}(\d\d)(\d\d)-(\d\d)(\d\d)\d\d", run.id)
    when = " · {}-{} {}:{}".format(*stamp.groups()) if stamp else ""
    return f"{run.title} · {words.text(methods.find(run.method).title)}{when}"


def choices(words: Language, like: About | None = None, *, untrained: bool = True) -> list[tuple[str, str]]:
    """The runs to choose from, newest first, and the playground as it comes; `like` leaves those that can stand beside it."""
    found = [
        (label(words, run), run.id)
        for run in trained()
        if like is None or (run.base == like.base and go_together(run.manner, like.manner))
    ]
    if untrained and (like is None or (like.base.name == model.PLAYGROUND and like.manner in GENERATING)):
        found.append((words.t("chat.untrained"), UNTRAINED))
    return found


def go_together(one: Manner, other: Manner) -> bool:
    """Whether one message can go to both, and their answers be laid side by side."""
    return one == other or {one, other} <= set(GENERATING)


def ways(words: Language, run: About | None, *, all: bool = False) -> list[tuple[str, str]]:
    """How the chosen weights can be used; `all` whatever they are."""
    if run is None and not all:
        return [(words.t("chat.how_base"), "base")]
    hows = [how for how in ("applied", "merged", "base") if how != "merged" or all or _merges(run)]
    return [(words.t(f"chat.how_{how}"), how) for how in hows]


def _merges(run: About | None) -> bool:
    return run is not None and methods.find(run.method).merges


def find(run_id: Any) -> About | None:
    """The run of that id, as it came over the network; None for the base that nobody trained.

    Raises:
        Problem: there is no such run, or it has nothing to answer with.
    """
    if run_id in (None, UNTRAINED):
        return None
    if not isinstance(run_id, str) or len(run_id) > _LONGEST_NAME:
        raise Problem("This is no run.", to_do="Choose one of the list.")
    run = runs.find_id(run_id)
    if not run.has_adapter():
        raise Problem(
            "The run {run} has nothing to answer with yet.",
            to_do="Wait until it has saved a checkpoint or ended, or choose another.",
            run=run.title,
        )
    return about(run)


def read_weights(run_id: Any, how: Any, strength: Any) -> Weights:
    """The header's fields as weights, whatever was sent.

    Raises:
        Problem: when they are none.
    """
    run = find(run_id)
    if how not in ("applied", "merged", "base"):
        raise Problem(
            "There is no way {how} to use weights.", to_do="Choose applied, merged or base.", how=repr(how)[:40]
        )
    is_number = isinstance(strength, int | float) and not isinstance(strength, bool) and math.isfinite(strength)
    if not is_number or not 0 <= strength <= STRONGEST:
        raise Problem("The strength cannot be {given}.", to_do="Give a number from 0 to 2.", given=repr(strength)[:40])
    if run is None:
        return Weights(Base(model.PLAYGROUND), manner=manner(None))
    chosen: How = how
    return Weights(run.base, run.id, chosen, float(strength) if chosen == "applied" else 1.0, manner=manner(run))


def manner(run: About | None) -> Manner:
    """How it is spoken to: as it was trained; the playground in messages when its files bring a chat template."""
    if run is not None:
        return run.manner
    try:
        folder = model.locate(model.PLAYGROUND)
        return "talk" if folder is None or model.describe(folder).chat_template else "continue"
    except (Problem, OSError):
        return "talk"


def say(manner: Manner, said: str, context: str = "", system: str = "", before: Sequence[tuple[str, str]] = ()) -> Said:
    """What is sent for it: the text itself, a passage, or messages; `before` are earlier messages with their answers.

    Raises:
        Problem: there is no text to find an answer in.
    """
    if manner == "label":
        return Passage(said)
    if manner == "find":
        if not context.strip():
            raise Problem(
                "There is no text to find the answer in.", to_do="Paste it into the field above the question."
            )
        return Passage(context, said)
    if manner == "continue":
        return said
    messages = [{"role": "system", "content": system}] if system.strip() else []
    for asked, answered in before if manner == "talk" else ():
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return [*messages, {"role": "user", "content": said}]


@dataclass(frozen=True)
class Header:
    """The row of fields that chooses weights."""

    run: gr.Dropdown
    how: gr.Radio
    strength: gr.Slider

    @property
    def fields(self) -> list[Any]:
        return [self.run, self.how, self.strength]


def draw_weights(
    words: Language,
    name: str,
    *,
    how: How = "applied",
    listed: Sequence[tuple[str, str]] | None = None,
    label: str | None = None,
) -> Header:
    """The header, filled with what there is now; `name` begins the ids of its fields, `label` stands over the first."""
    listed = choices(words) if listed is None else list(listed)
    chosen = listed[0][1] if listed else UNTRAINED
    run = next((run for run in trained() if run.id == chosen), None)
    return Header(
        gr.Dropdown(listed, value=chosen, label=label or words.t("chat.weights"), elem_id=f"{name}-run", allow_custom_value=True, elem_classes="weights-run"),
        # All ways at first: a page that outlives a restart of the studio still says the one it had.
        gr.Radio(ways(words, None, all=True), value=how if run else "base", label=words.t("chat.how"), elem_id=f"{name}-how", elem_classes="weights-how"),
        gr.Slider(
            0, STRONGEST, value=1.0, step=0.05, label=words.t("chat.strength"), info=words.t("chat.strength_help"),
            elem_id=f"{name}-strength", visible=run is not None and how == "applied", elem_classes="weights-strength", buttons=["reset"],
        ),
    )  # fmt: skip


def redraw_weights(words: Language, run_id: Any, how: Any, listed: Sequence[tuple[str, str]]) -> tuple[str, list[Any]]:
    """The run that is chosen after the list or the choice has changed, and the updates of the header's three fields."""
    values = [value for _, value in listed]
    chosen = run_id if run_id in values else (values[0] if values else UNTRAINED)
    run = next((run for run in trained() if run.id == chosen), None)
    possible = ways(words, run)
    way: How = "base" if run is None else how if how in [value for _, value in possible] else "applied"
    updates = [
        gr.Dropdown(choices=list(listed), value=chosen),
        gr.Radio(choices=possible, value=way),
        gr.Slider(visible=run is not None and way == "applied"),
    ]
    return chosen, updates


@dataclass(frozen=True)
class Composer:
    """The fields of a message: a text that it is about, the message, and the buttons; `hint` stands in the empty box."""

    context: gr.Textbox
    box: gr.Textbox
    send: gr.Button
    stop: gr.Button
    label: str
    hint: str

    def redraw(self, words: Language, manner: Manner) -> list[Any]:
        """The updates of context and box for weights that are spoken to in that manner."""
        label, hint = self.label, self.hint
        if manner not in GENERATING:
            label, hint = words.t(f"chat.box_{manner}"), words.t(f"chat.hint_{manner}")
        return [gr.Textbox(visible=manner == "find"), gr.Textbox(label=label, placeholder=hint)]


def draw_composer(words: Language, name: str, *, label: str, hint: str, send: str) -> Composer:
    """The box to write in, over it the text that a question may be about; `name` begins the ids of the fields."""
    context = gr.Textbox(
        label=words.t("chat.context"), placeholder=words.t("chat.context_hint"), lines=4, max_lines=10, visible=False,
        elem_id=f"{name}-context",
    )  # fmt: skip
    with gr.Row(elem_classes=["composer"], equal_height=False):
        box = gr.Textbox(
            label=label, placeholder=hint, show_label=False, lines=1, max_lines=10, scale=8, min_width=200,
            elem_id=f"{name}-box",
        )  # fmt: skip
        button: dict[str, Any] = {"scale": 0, "min_width": 110}
        sent = gr.Button(send, variant="primary", elem_id=f"{name}-send", **button)
        stop = gr.Button(words.t("chat.stop"), variant="stop", visible=False, elem_id=f"{name}-stop", **button)
    return Composer(context, box, sent, stop, label, hint)


def draw_sampling(words: Language, name: str) -> list[Any]:
    """The fields of `Sampling` in its order, and before them the system prompt."""
    start = Sampling()
    system = gr.Textbox(
        "",
        label=words.t("chat.system"),
        info=words.t("chat.system_help"),
        lines=2,
        max_lines=6,
        elem_id=f"{name}-system",
    )
    with gr.Row(equal_height=False, elem_classes=["sampling"]):
        sliders = [
            gr.Slider(
                least, most, value=getattr(start, key), step=step, label=words.t(f"chat.{key}"), info=words.t(f"chat.{key}_help"),
                elem_id=f"{name}-{key}", min_width=240, buttons=["reset"],
            )
            for key, (least, most, step) in Sampling.sliders().items()
        ]  # fmt: skip
        seed = gr.Textbox(
            "",
            label=words.t("chat.seed"),
            info=words.t("chat.seed_help"),
            max_lines=1,
            elem_id=f"{name}-seed",
            min_width=240,
        )
    return [system, *sliders, seed]


def read_sampling(system: Any, *given: Any) -> tuple[str, Sampling]:
    """What stands in the fields of `draw_sampling`, whatever was sent: the system prompt and the settings.

    An empty seed becomes one that nobody chose, and is said with the answer.

    Raises:
        Problem: with everything that is out of its range.
    """
    *numbers, seed = given
    text = seed.strip() if isinstance(seed, str) else seed
    chosen = secrets.randbelow(10**6) if text in ("", None) else text
    return check_text(system), Sampling.read(**dict(zip(Sampling.sliders(), numbers, strict=True)), seed=chosen)


def check_text(text: Any) -> str:
    """A text from the page, or a Problem when it is none or longer than any model reads."""
    if isinstance(text, str) and len(text) <= _LONGEST_TEXT:
        return text
    raise Problem("This is too long, or no text at all.", to_do="Write at most {most} characters.", most=_LONGEST_TEXT)


def base_name(words: Language, name: Any) -> str:
    """A base model for people; of a long path the end."""
    if name == model.PLAYGROUND:
        return words.t("chat.playground")
    parts = re.split(r"[/\\]", str(name))
    return "/".join(["…", *parts[-2:]]) if len(parts) > 3 else str(name)


def made_by(words: Language, weights: Mapping[str, Any]) -> str:
    """Which weights made an answer, as the serving process says it; HTML."""
    base = base_name(words, weights.get("base", "?"))
    if (packed := weights.get("quantization") or "none") != "none":
        base = f"{base} ({packed})"
    adapter = str(weights.get("adapter") or "")
    parts = []
    if adapter:
        parts.append(
            f"<span class='run-dot' style='background:{charts.colour(adapter)}'></span><b>{escape(_title(adapter))}</b>"
        )
        if (step := weights.get("step")) is not None:
            parts.append(escape(words.t("chat.step", step=step)))
        way = (
            words.t("chat.made_merged")
            if weights.get("merged")
            else words.t("chat.made_applied", strength=_short(weights.get("scale")))
        )
        parts.append(escape(way))
        parts.append(escape(words.t("chat.made_on", base=base)))
    else:
        parts += [f"<b>{escape(base)}</b>", escape(words.t("chat.made_base"))]
    if digest := weights.get("digest"):
        parts.append(f"<code title='{escape(words.t('chat.digest'))}'>{escape(digest)}</code>")
    return "<span class='made-by'>" + " · ".join(parts) + "</span>"


@lru_cache(maxsize=2000)
def _title(run_id: str) -> str:
    return next((run.title for run in trained() if run.id == run_id), run_id)


def counted(words: Language, answer: Answer, seed: int) -> str:
    """Tokens, speed and seed of a text, and whether it was cut; empty while it is made, and for what is no text."""
    if answer.state in ("loading", "writing") or answer.labels or answer.span:
        return ""
    parts = []
    if isinstance(tokens := answer.usage.get("completion_tokens"), int):
        parts.append(words.t("chat.tokens", tokens=tokens))
    if isinstance(answer.speed, int | float) and math.isfinite(answer.speed):
        parts.append(words.t("chat.speed", speed=_short(answer.speed)))
    parts.append(words.t("chat.made_seed", seed=seed))
    if answer.finish == "length":
        parts.append(words.t("chat.cut"))
    if answer.state == "stopped":
        parts.append(words.t("chat.stopped"))
    return f"<span class='counted'>{escape(' · '.join(parts))}</span>"


def said(words: Language, answer: Answer, says: str | None = None, context: str = "") -> str:
    """An answer as HTML, or what it waits for; `says` is the answer when it is HTML already, `context` the text it was found in."""
    if says is None:
        says = escape(answer.text)
        if answer.labels:
            says = predictions.label_bars(words, answer.labels)
        elif answer.span is not None:
            says = predictions.show_answer(words, context, answer.text, answer.span)
    if answer.state == "loading":
        says = f"<span class='waiting'>{escape(words.t('chat.loading', seconds=round(answer.loading)))}</span>"
    elif answer.state == "writing":
        says = (
            f"{says}<span class='caret'></span>"
            if says
            else f"<span class='waiting'>{escape(words.t('chat.thinking'))}</span>"
        )
    return f"<div class='talk-said'>{says}</div>"


def foot(words: Language, answer: Answer, seed: int, more: str = "") -> str:
    """What stands under an answer: its weights, its numbers, and what went wrong; `more` is HTML."""
    parts = made_by(words, answer.weights) + counted(words, answer, seed) if answer.weights else ""
    if answer.problem is not None:
        parts += f"<span class='broken' role='alert'>{escape(words.explain(answer.problem))}</span>"
    return f"<div class='talk-foot'>{parts}{more}</div>"


def prompt_buttons(words: Language, prompts: Sequence[str]) -> str:
    """Prompts to begin with, as buttons whose click says `data-prompt`; HTML."""
    if not prompts:
        return ""
    buttons = "".join(
        f"<button type='button' class='prompt' data-prompt='{escape(prompt)}'>{escape(_begin(prompt))}</button>"
        for prompt in prompts
    )
    return f"<div class='prompts' role='group' aria-label='{escape(words.t('chat.prompts'))}'>{buttons}</div>"


def picked_prompt(event: gr.EventData) -> Any:
    """The prompt of the button that was clicked, for the box."""
    prompt = event._data.get("prompt") if isinstance(event._data, dict) else None
    return prompt if isinstance(prompt, str) and len(prompt) <= _LONGEST_TEXT else gr.skip()


def _begin(prompt: str, most: int = 90) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _short(number: Any) -> str:
    """1.00 as 1, 0.55 as it is, 21.37 as 21.4."""
    if not isinstance(number, int | float):
        return "?"
    return (
        f"{number:.0f}"
        if number >= 100
        else f"{number:.1f}".removesuffix(".0")
        if number >= 10
        else f"{number:.2f}".rstrip("0").rstrip(".")
    )


def watched_prompts(run: About | None, most: int = 4) -> list[str]:
    """Prompts to begin with: those that the run watched while it trained."""
    if run is None:
        return []
    try:
        said = [line["prompt"] for line in runs.find_id(run.id).samples() if isinstance(line.get("prompt"), str)]
    except (Problem, OSError, KeyError, AttributeError):
        return []
    return list(dict.fromkeys(said))[:most]
