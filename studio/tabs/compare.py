"""Compare: is it better? One prompt, and up to four choices of weights that answer it side by side."""

from __future__ import annotations

import contextlib
import difflib
import re
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.problem import Problem
from studio import answers, report, serving
from studio.answers import About, Header
from studio.report import escape
from studio.serving import Answer, How, Said, Sampling, Weights
from studio.tabs import Page

ORDER = 50
NAME = "compare.title"

COLUMNS = 4
_BEGIN: tuple[How, ...] = ("base", "applied", "merged", "applied")
_SHOWN = (True, True, True, False)

_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_WINDOWS = 16
_LONGEST_DIFFERENCE = 4000

_CLICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button?.dataset.prompt !== undefined) trigger('select', {prompt: button.dataset.prompt});
  if (button?.dataset.go) trigger('submit', {});
});"""
# A word, one character of a script that writes none between its words, or a sign; spaces are kept as they are.
_WORD = re.compile(
    r"\s+|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|[^\w\s]"
)


@dataclass(frozen=True)
class Round:
    """One prompt with the answers to it, a column each; None where the column was not asked."""

    said: str
    seed: int
    answers: tuple[Answer | None, ...]
    context: str = ""


def build(page: Page) -> None:
    """The prompt, the columns under it, and the settings that all of them share."""
    _Compare(page)


class _Compare:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        self.stops: dict[str, threading.Event] = {}
        words = self.words
        self.shown, self.round, self.followed = gr.State(list(_SHOWN)), gr.State(None), gr.State("")
        trained = answers.trained()
        lead = trained[0] if trained else None
        gr.HTML(f"<h2>{escape(words.t('compare.question'))}</h2>")
        self.nothing = gr.HTML(self._nothing(), js_on_load=_CLICK, visible=lead is None, elem_id="compare-nothing")
        with gr.Column(visible=lead is not None) as self.all:
            self.composer = answers.draw_composer(
                words,
                "compare",
                label=words.t("compare.box"),
                hint=words.t("compare.box_hint"),
                send=words.t("compare.send"),
            )
            self.box, self.send, self.stop = self.composer.box, self.composer.send, self.composer.stop
            self.prompts = gr.HTML(self._prompts(lead), js_on_load=_CLICK, elem_id="compare-prompts")
            self.problem = gr.HTML(elem_id="compare-problem")
            with gr.Row(elem_classes=["compare-columns"], equal_height=False):
                drawn = [self._draw_column(number, lead) for number in range(COLUMNS)]
            self.columns = [column for column, *_ in drawn]
            self.headers = [header for _, header, *_ in drawn]
            self.removes = [remove for *_, remove, _ in drawn]
            self.said = [said for *_, said in drawn]
            with gr.Row(elem_classes=["actions", "compare-actions"]):
                self.changes = gr.Checkbox(
                    False,
                    label=words.t("compare.changes"),
                    info=words.t("compare.changes_help"),
                    elem_id="compare-changes",
                    scale=0,
                    min_width=440,
                )
                self.add = gr.Button(words.t("compare.add"), size="sm", scale=0, min_width=140, elem_id="compare-add")
            with gr.Accordion(
                words.t("compare.settings"), open=False, elem_id="compare-settings", elem_classes=["group"]
            ) as self.settings:
                gr.HTML(f"<p class='quiet'>{escape(words.t('compare.same'))}</p>")
                self.sampling = answers.draw_sampling(words, "compare")
        self._listen()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw_column(self, number: int, lead: About | None) -> tuple[gr.Column, Header, gr.Button, gr.HTML]:
        words = self.words
        with gr.Column(
            visible=_SHOWN[number],
            min_width=260,
            elem_classes=["card", "compare-column"],
            elem_id=f"compare-column-{number}",
        ) as column:
            name = words.t("compare.column", number=number + 1)
            header = answers.draw_weights(
                words,
                f"compare-{number}",
                how=_BEGIN[number],
                listed=self._listed(lead if number else None),
                label=name,
            )
            said = gr.HTML(self._column(None), elem_classes=["column-said"], elem_id=f"compare-said-{number}")
            remove = gr.Button(
                words.t("compare.remove"),
                size="sm",
                visible=number > 0,
                elem_classes=["quiet-button", "remove"],
                elem_id=f"compare-remove-{number}",
            )
        return column, header, remove, said

    def _listed(self, like: About | None) -> list[tuple[str, str]]:
        return answers.choices(self.words, like, untrained=False)

    def _nothing(self) -> str:
        words = self.words
        return (
            f"<div class='nothing'><h3>{escape(words.t('compare.nothing'))}</h3><p>{escape(words.t('compare.nothing_more'))}</p>"
            f"<button type='button' class='way' data-go='train'>{escape(words.t('chat.go_train'))}</button></div>"
        )

    def _prompts(self, lead: About | None) -> str:
        is_question = lead is not None and lead.manner == "find"
        return "" if is_question else answers.prompt_buttons(self.words, answers.watched_prompts(lead))

    def _column(self, answer: Answer | None, round: Round | None = None, first: str | None = None) -> str:
        """A column's answer; with `first`, the words that it does not share with that text are marked."""
        words = self.words
        if answer is None or round is None:
            return f"<div class='talk-said quiet'>{escape(words.t('compare.waiting'))}</div>"
        says, note = None, ""
        if first and answer.text and answer.state in ("done", "stopped"):
            says, missing = mark_changes(first, answer.text)
            note = (
                words.t("compare.equal")
                if not missing and answer.text == first
                else words.t("compare.missing", count=missing)
            )
            note = f"<span class='counted'>{escape(note)}</span>"
        return answers.said(words, answer, says, round.context) + answers.foot(words, answer, round.seed, note)

    def _columns(self, round: Round | None, changes: Any) -> list[str]:
        if round is None:
            return [self._column(None)] * COLUMNS
        first = next((answer for answer in round.answers if answer is not None), None)
        # Only what a model wrote has words that differ.
        text = first.text if changes is True and first is not None and first.span is None else None
        return [self._column(answer, round, text if answer is not first else None) for answer in round.answers]

    # --- what happens -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        page = self.page
        chosen = [field for header in self.headers for field in header.fields]
        shown = [
            *chosen, self.prompts, self.nothing, self.all, self.composer.context, self.box, self.settings, self.changes,
        ]  # fmt: skip
        streaming = [self.problem, self.send, self.stop, self.round, *self.said]
        look = {"inputs": [page.run, self.followed, *chosen], "outputs": [*shown, self.followed]}
        page.tab.select(self._refresh, **look, **_QUICK)
        self.headers[0].run.input(self._choose_lead, chosen, shown, **_QUICK)
        for header in self.headers:
            header.how.input(_choose_how, [header.run, header.how], header.strength, **_QUICK)
            if header is not self.headers[0]:
                header.run.input(_choose_how, [header.run, header.how], header.strength, **_QUICK)
        gr.on(
            [self.box.submit, self.send.click],
            self._send, [self.box, self.composer.context, self.shown, self.changes, *chosen, *self.sampling], streaming,
            show_progress="hidden", concurrency_limit=_WINDOWS, trigger_mode="once",
        )  # fmt: skip
        self.stop.click(self._stop, None, None, **_QUICK)
        self.changes.input(self._columns, [self.round, self.changes], self.said, **_QUICK)
        for html in (self.prompts, self.nothing):
            html.select(answers.picked_prompt, None, self.box, **_QUICK)
            html.submit(lambda: page.go("train"), None, page.tabs, **_QUICK)
        self.add.click(_add, self.shown, [self.shown, *self.columns, self.add], **_QUICK)
        for number, remove in enumerate(self.removes):
            remove.click(_remover(number), self.shown, [self.shown, *self.columns, self.add], **_QUICK)

    def _refresh(self, elsewhere: Any, followed: str, *chosen: Any) -> list[Any]:
        """The lists of runs as they are now; a run that another page selected is taken over in every column.

        A fresh page begins with the newest run: what was drawn is as old as the studio.
        """
        listed = [run_id for _, run_id in self._listed(None)]
        if elsewhere and elsewhere != followed and elsewhere in listed:
            followed = elsewhere
            chosen = tuple(value for how in _BEGIN for value in (elsewhere, how, 1.0))
        elif not followed and listed:
            followed = answers.OPENED
            chosen = tuple(value for how in _BEGIN for value in (None, how, 1.0))
        return [*self._choose_lead(*chosen), followed]

    def _choose_lead(self, *chosen: Any) -> list[Any]:
        """The first column's run decides which base is loaded; a column on another base takes that run."""
        runs = _by_column(chosen)
        listed = self._listed(None)
        lead_id, updates = answers.redraw_weights(self.words, *runs[0][:2], listed)
        lead = next((run for run in answers.trained() if run.id == lead_id), None)
        fellows = self._listed(lead) if lead is not None else listed
        names = [run_id for _, run_id in fellows]
        for run_id, how, _ in runs[1:]:
            updates += answers.redraw_weights(self.words, run_id if run_id in names else lead_id, how, fellows)[1]
        manner = answers.manner(lead)
        writes = manner in answers.GENERATING
        return [
            *updates, self._prompts(lead), gr.HTML(visible=lead is None), gr.Column(visible=lead is not None),
            *self.composer.redraw(self.words, manner), gr.Accordion(visible=writes), gr.Checkbox(visible=writes),
        ]  # fmt: skip

    async def _send(
        self, request: gr.Request, said: Any, context: Any, shown: list[bool], changes: Any, *fields: Any
    ) -> AsyncGenerator[Any, None]:
        """Ask all columns at once."""
        key = str(request.session_hash)
        if key in self.stops or (isinstance(said, str) and not said.strip()):
            yield gr.skip()
            return
        try:
            asked, sent, round, settings = _read(said, context, shown, fields)
        except Problem as problem:
            yield {self.problem: report.problems(self.words, problem.parts)}
            return
        stop = self.stops[key] = threading.Event()
        try:
            before = self._columns(round, False)
            yield {self.problem: "", self.send: gr.Button(visible=False), self.stop: gr.Button(visible=True)} | dict(
                zip(self.said, before, strict=True)
            )
            streams = [
                (answer, serving.shared().stream(weights, one, settings))
                for answer, weights, one in zip(round.answers, asked, sent, strict=True)
                if answer is not None and weights is not None and one is not None
            ]
            async with contextlib.aclosing(serving.read_together(streams, stop)) as ticks:
                async for _ in ticks:
                    now = self._columns(round, False)
                    yield {
                        html: new for html, new, old in zip(self.said, now, before, strict=True) if new != old
                    } or gr.skip()
                    before = now
        finally:
            del self.stops[key]
        last = dict(zip(self.said, self._columns(round, changes), strict=True))
        yield {self.send: gr.Button(visible=True), self.stop: gr.Button(visible=False), self.round: round} | last

    def _stop(self, request: gr.Request) -> None:
        if (stop := self.stops.get(str(request.session_hash))) is not None:
            stop.set()


def _by_column(fields: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Run, how and strength of each column."""
    return [(fields[3 * number], fields[3 * number + 1], fields[3 * number + 2]) for number in range(COLUMNS)]


def _read(
    said: Any, context: Any, shown: Sequence[bool], fields: Sequence[Any]
) -> tuple[list[Weights | None], list[Said | None], Round, Sampling]:
    """What came from the page: for each column its weights and what they are given, the round, and the sampling.

    Raises:
        Problem: when it makes no sense.
    """
    said = answers.check_text(said)
    asked = [
        answers.read_weights(*field) if is_shown else None
        for field, is_shown in zip(_by_column(fields), shown, strict=True)
    ]
    there = [weights for weights in asked if weights is not None]
    _check_alike(there)
    manners = {weights.manner for weights in there}
    writes = manners <= set(answers.GENERATING)
    system, settings = answers.read_sampling(*fields[3 * COLUMNS :]) if writes else ("", Sampling())
    about = answers.check_text(context) if "find" in manners else ""
    sent = [None if weights is None else answers.say(weights.manner, said, about, system) for weights in asked]
    grown = tuple(None if weights is None else Answer() for weights in asked)
    return asked, sent, Round(said, settings.seed, grown, about), settings


def _choose_how(run_id: Any, how: Any) -> Any:
    try:
        run = answers.find(run_id)
    except Problem:
        return gr.skip()
    return gr.Slider(visible=run is not None and how == "applied")


def _check_alike(asked: Sequence[Weights]) -> None:
    """One base is loaded for all columns, and one message goes to all."""
    for weights in asked:
        if not answers.go_together(weights.manner, asked[0].manner):
            raise Problem(
                "The columns were trained for different tasks, and one message cannot go to all of them.",
                to_do="Choose runs of one task.",
            )
        if weights.base != asked[0].base:
            raise Problem(
                "All columns share one base, and {run} has another.",
                to_do="Choose a run on {base}.",
                run=weights.run,
                base=asked[0].base.title,
            )


def _add(shown: list[bool]) -> list[Any]:
    return _show(
        [True if not is_shown and number == shown.index(False) else is_shown for number, is_shown in enumerate(shown)]
    )


def _remover(number: int) -> Any:
    def remove(shown: list[bool]) -> list[Any]:
        return _show([is_shown and place != number for place, is_shown in enumerate(shown)])

    return remove


def _show(shown: list[bool]) -> list[Any]:
    return [shown, *(gr.Column(visible=is_shown) for is_shown in shown), gr.Button(interactive=not all(shown))]


def mark_changes(first: str, text: str) -> tuple[str, int]:
    """`text` as HTML in which the words that `first` does not have at that place are marked, and how many of its words are gone."""
    old, new = _WORD.findall(first)[:_LONGEST_DIFFERENCE], _WORD.findall(text)[:_LONGEST_DIFFERENCE]
    marked, missing = [], 0
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        here = escape("".join(new[c:d]))
        marked.append(f"<mark>{here}</mark>" if kind != "equal" and here.strip() else here)
        missing += 0 if kind == "equal" else sum(1 for word in old[a:b] if not word.isspace())
    return "".join(marked) + escape("".join(_WORD.findall(text)[_LONGEST_DIFFERENCE:])), missing
