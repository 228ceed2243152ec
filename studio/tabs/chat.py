"""Chat: does it work? Try the weights of any run: talk to it, give it a text to label, or ask it about a text."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from core.problem import Problem
from studio import answers, report, serving
from studio.report import escape
from studio.serving import Answer, Manner, Said, Sampling, Weights
from studio.tabs import Page

ORDER = 40
NAME = "chat.title"

_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_WINDOWS = 16

# A click inside the conversation: a prompt to begin with, the way to Train, or an answer to be copied. The view follows the
# answer while the reader is at its end, and stays where it is when the reader has scrolled up.
_TALK = """
const atEnd = () => element.scrollHeight - element.scrollTop - element.clientHeight < 80;
let follow = true;
element.addEventListener('scroll', () => { follow = atEnd(); }, true);
watch('value', () => { if (follow) element.scrollTop = element.scrollHeight; });
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.prompt !== undefined) trigger('select', {prompt: button.dataset.prompt});
  if (button.dataset.go) trigger('submit', {});
  if (button.dataset.copy) {
    navigator.clipboard.writeText(button.closest('.talk-turn').querySelector('.talk-said').textContent);
    button.classList.add('copied'); setTimeout(() => button.classList.remove('copied'), 1200);
  }
});
"""
# Enter confirms a word in the input methods of Chinese, Japanese and Korean; it must not send it.
_COMPOSING = """() => { if (window.atelierComposing) return; window.atelierComposing = true;
  document.addEventListener('keydown', (e) => { if (e.isComposing && e.key === 'Enter') e.stopPropagation(); }, true); }"""


@dataclass(frozen=True)
class Turn:
    """What was said, about which text, and the answer to it."""

    said: str
    answer: Answer
    seed: int
    manner: Manner = "talk"
    context: str = ""


def build(page: Page) -> None:
    """Weights on top, the conversation, and below it the box to write in; settings in a drawer."""
    _Chat(page)


class _Chat:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        self.stops: dict[str, threading.Event] = {}
        self.turns = gr.State([])
        self.followed = gr.State("")
        words = self.words
        gr.HTML(f"<h2>{escape(words.t('chat.question'))}</h2>")
        with gr.Column(elem_classes=["talk-page"]):
            with gr.Row(elem_classes=["card", "weights-row"], equal_height=False):
                self.header = answers.draw_weights(words, "chat")
            self.note = gr.HTML(elem_classes=["chat-note"])
            self.talk = gr.HTML(self._talk([]), js_on_load=_TALK, elem_id="chat-talk", elem_classes=["talk"])
            self.problem = gr.HTML(elem_id="chat-problem")
            self.composer = answers.draw_composer(
                words, "chat", label=words.t("chat.box"), hint=words.t("chat.box_hint"), send=words.t("chat.send")
            )
            self.box, self.send, self.stop = self.composer.box, self.composer.send, self.composer.stop
            with gr.Row(elem_classes=["talk-actions"]):
                self.again = gr.Button(
                    words.t("chat.again"), size="sm", scale=0, min_width=140, interactive=False, elem_id="chat-again"
                )
                self.clear = gr.Button(
                    words.t("chat.clear"), size="sm", scale=0, min_width=140, interactive=False, elem_id="chat-clear"
                )
            with gr.Accordion(
                words.t("chat.settings"), open=False, elem_id="chat-settings", elem_classes=["group"]
            ) as self.settings:
                self.sampling = answers.draw_sampling(words, "chat")
            with gr.Row(elem_classes=["loaded"]):
                self.loaded = gr.HTML()
                self.unload = gr.Button(
                    words.t("chat.unload"), size="sm", scale=0, min_width=180, elem_id="chat-unload",
                    visible=serving.shared().base is not None,
                )  # fmt: skip
        self._listen()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _talk(self, turns: list[Turn], run_id: Any = None) -> str:
        """The conversation as HTML; everything that a user or a model wrote in it is text."""
        words = self.words
        if not turns:
            return self._empty(run_id)
        shown = []
        for turn in turns:
            copy = ""
            if (
                turn.answer.state not in ("loading", "writing")
                and turn.manner in answers.GENERATING
                and turn.answer.text
            ):
                copy = f"<button type='button' class='copy' data-copy='1'>{escape(words.t('chat.copy'))}</button>"
            shown.append(
                f"<div class='talk-turn user'><div class='talk-said'>{escape(turn.said)}</div></div>"
                f"<div class='talk-turn answer'>{answers.said(words, turn.answer, context=turn.context)}{answers.foot(words, turn.answer, turn.seed, copy)}</div>"
            )
        label = escape(words.t("chat.conversation"))
        return f"<div class='talk-turns' role='log' aria-live='polite' aria-label='{label}'>{''.join(shown)}</div>"

    def _empty(self, run_id: Any) -> str:
        words = self.words
        run = _find(run_id)
        if run is not None:
            title, text = words.t("chat.empty_run", run=run.title), words.t("chat.empty_run_more")
            if run.manner not in answers.GENERATING:
                title, text = words.t("chat.empty_try", run=run.title), words.t(f"chat.empty_{run.manner}_more")
            # A question alone, without the text that it was about, is no beginning.
            prompts, way = [] if run.manner == "find" else answers.watched_prompts(run), ""
        else:
            trained = bool(answers.trained())
            title = words.t("chat.empty_base")
            text = words.t("chat.empty_base_more") if trained else words.t("chat.empty_nothing")
            prompts = [words.t(f"chat.prompt_{number}") for number in (1, 2, 3)]
            way = (
                ""
                if trained
                else f"<button type='button' class='way' data-go='train'>{escape(words.t('chat.go_train'))}</button>"
            )
        return f"<div class='nothing'><h3>{escape(title)}</h3><p>{escape(text)}</p>{answers.prompt_buttons(words, prompts)}{way}</div>"

    def _memory(self) -> tuple[str, gr.Button]:
        """What is loaded, and whether there is something to free."""
        base = serving.shared().base
        text = (
            self.words.t("chat.loaded", base=answers.base_name(self.words, base.name))
            if base
            else self.words.t("chat.not_loaded")
        )
        return f"<span class='quiet'>{escape(text)}</span>", gr.Button(visible=base is not None)

    def _note(self, manner: Manner) -> str:
        """What is special about talking to the chosen weights."""
        said = {"continue": self.words.t("chat.continues"), "ask": self.words.t("chat.asks")}.get(manner)
        return f"<p class='quiet'>{escape(said)}</p>" if said else ""

    # --- what happens -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        header, page = self.header, self.page
        chosen = header.fields
        show = [*chosen, self.note, self.talk, self.composer.context, self.box, self.settings]
        memory = [self.loaded, self.unload]
        streaming = [
            self.talk,
            self.box,
            self.turns,
            self.problem,
            self.send,
            self.stop,
            self.again,
            self.clear,
            *memory,
        ]
        streamed: dict[str, Any] = {
            "show_progress": "hidden",
            "concurrency_limit": _WINDOWS,
            "trigger_mode": "once",
            "outputs": streaming,
        }

        page.blocks.load(None, js=_COMPOSING)
        look = {"inputs": [*chosen, self.turns, page.run, self.followed], "outputs": [*show, self.followed, *memory]}
        page.tab.select(self._refresh, **look, **_QUICK)
        header.run.input(self._choose_run, [*chosen, self.turns], [*show, page.run, self.followed], **_QUICK)
        header.how.input(self._choose_how, [*chosen, self.turns], show, **_QUICK)
        gr.on(
            [self.box.submit, self.send.click],
            self._send,
            [self.box, self.composer.context, self.turns, *chosen, *self.sampling],
            **streamed,
        )
        self.again.click(self._send_again, [self.turns, *chosen, *self.sampling], **streamed)
        self.stop.click(self._stop, None, None, **_QUICK)
        self.clear.click(
            self._clear,
            [self.turns, header.run],
            [self.turns, self.talk, self.problem, self.again, self.clear],
            **_QUICK,
        )
        self.talk.select(answers.picked_prompt, None, self.box, **_QUICK)
        self.talk.submit(lambda: page.go("train"), None, page.tabs, **_QUICK)
        self.unload.click(self._unload, None, memory, show_progress="hidden")

    def _refresh(
        self, run_id: Any, how: Any, strength: Any, turns: list[Turn], elsewhere: Any, followed: str
    ) -> tuple[Any, ...]:
        """The list of runs as it is now; a run that another page selected is taken over once it has something to say.

        A fresh page begins with the newest run: what was drawn is as old as the studio.
        """
        listed = answers.choices(self.words)
        if elsewhere and elsewhere != followed and elsewhere in [value for _, value in listed]:
            run_id, how, followed = elsewhere, "applied", elsewhere
        elif not followed:
            run_id, how, followed = None, "applied", answers.OPENED
        chosen, fields = answers.redraw_weights(self.words, run_id, how, listed)
        return *fields, *self._beside(chosen, turns), followed, *self._memory()

    def _choose_run(self, run_id: Any, how: Any, strength: Any, turns: list[Turn]) -> tuple[Any, ...]:
        # Whoever chooses a run wants what it learned.
        way = how if how == "merged" else "applied"
        chosen, fields = answers.redraw_weights(self.words, run_id, way, answers.choices(self.words))
        return *fields, *self._beside(chosen, turns), chosen or gr.skip(), chosen or gr.skip()

    def _choose_how(self, run_id: Any, how: Any, strength: Any, turns: list[Turn]) -> tuple[Any, ...]:
        chosen, fields = answers.redraw_weights(self.words, run_id, how, answers.choices(self.words))
        return *fields, *self._beside(chosen, turns)

    def _beside(self, run_id: Any, turns: list[Turn]) -> tuple[Any, ...]:
        """What goes with the chosen weights: a note, the conversation when it is still empty, the fields of the message."""
        manner = answers.manner(_find(run_id))
        talk = gr.skip() if turns else self._talk([], run_id)
        settings = gr.Accordion(visible=manner in answers.GENERATING)
        return self._note(manner), talk, *self.composer.redraw(self.words, manner), settings

    async def _send(
        self, request: gr.Request, said: Any, context: Any, turns: list[Turn], *fields: Any
    ) -> AsyncGenerator[Any, None]:
        """Answer what stands in the box."""
        async with contextlib.aclosing(self._answer(request, said, context, turns, *fields)) as updates:
            async for update in updates:
                yield update

    async def _send_again(self, request: gr.Request, turns: list[Turn], *fields: Any) -> AsyncGenerator[Any, None]:
        """Answer what was said last once more, with the weights that are chosen now."""
        if not turns:
            yield gr.skip()
            return
        last = turns[-1]
        async with contextlib.aclosing(
            self._answer(request, last.said, last.context, turns[:-1], *fields, old=turns)
        ) as updates:
            async for update in updates:
                yield update

    async def _answer(
        self,
        request: gr.Request,
        said: Any,
        context: Any,
        before: list[Turn],
        *fields: Any,
        old: list[Turn] | None = None,
    ) -> AsyncGenerator[Any, None]:
        """Answer with the weights and sampling in `fields`; `old` is the conversation that a new answer is tried for."""
        key = str(request.session_hash)
        if key in self.stops or (isinstance(said, str) and not said.strip()):
            yield gr.skip()
            return
        try:
            weights, settings, sent, turn = self._read(said, context, before, *fields)
        except Problem as problem:
            yield {self.problem: report.problems(self.words, [problem])}
            return
        stop = self.stops[key] = threading.Event()
        turns = [*before, turn]
        try:
            typed = "" if old is None else gr.skip()
            yield {self.talk: self._talk(turns), self.box: typed, self.problem: "", **self._busy(True)}
            stream = serving.shared().stream(weights, sent, settings)
            shown = ""
            async with contextlib.aclosing(serving.read_together([(turn.answer, stream)], stop)) as ticks:
                async for _ in ticks:
                    html = self._talk(turns)
                    yield {self.talk: gr.skip() if html == shown else html}
                    shown = html
        finally:
            del self.stops[key]
        if not turn.answer.is_empty:
            yield {self.talk: self._talk(turns), self.turns: turns, **self._busy(False, turns)}
        else:
            yield self._put_back(turn, before if old is None else old, fields[0], is_new=old is None)

    def _read(
        self, said: Any, context: Any, before: list[Turn], run_id: Any, how: Any, strength: Any, *sampling: Any
    ) -> tuple[Weights, Sampling, Said, Turn]:
        """What came from the page: the weights, how they shall answer, what they are given, and the turn that begins.

        Raises:
            Problem: when it makes no sense.
        """
        said = answers.check_text(said)
        weights = answers.read_weights(run_id, how, strength)
        manner = weights.manner
        system, settings = answers.read_sampling(*sampling) if manner in answers.GENERATING else ("", Sampling())
        about = answers.check_text(context) if manner == "find" else ""
        talked = [(turn.said, turn.answer.text) for turn in before if turn.manner == "talk"]
        sent = answers.say(manner, said, about, system, talked)
        return weights, settings, sent, Turn(said, Answer(), settings.seed, manner, about)

    def _put_back(self, turn: Turn, kept: list[Turn], run_id: Any, *, is_new: bool) -> dict[Any, Any]:
        """Nothing came: the conversation is as it was, and what was typed stands in the box again."""
        nothing = Problem("The answer is empty.", to_do="Say it in other words, or raise the temperature.")
        told = [] if turn.answer.state == "stopped" else [turn.answer.problem or nothing]
        return {
            self.talk: self._talk(kept, run_id),
            self.box: turn.said if is_new else gr.skip(),
            self.turns: kept,
            self.problem: report.problems(self.words, told),
            **self._busy(False, kept),
        }

    def _busy(self, is_busy: bool, turns: list[Turn] | None = None) -> dict[Any, Any]:
        return {
            self.send: gr.Button(visible=not is_busy),
            self.stop: gr.Button(visible=is_busy),
            self.again: gr.Button(interactive=not is_busy and bool(turns)),
            self.clear: gr.Button(interactive=not is_busy and bool(turns)),
            **dict(zip((self.loaded, self.unload), self._memory(), strict=True)),
        }

    def _stop(self, request: gr.Request) -> None:
        if (stop := self.stops.get(str(request.session_hash))) is not None:
            stop.set()

    def _clear(self, turns: list[Turn], run_id: Any, request: gr.Request) -> Any:
        if str(request.session_hash) in self.stops:
            return (gr.skip(),) * 5
        return [], self._talk([], run_id), "", gr.Button(interactive=False), gr.Button(interactive=False)

    def _unload(self) -> tuple[Any, ...]:
        serving.shared().end()
        return self._memory()


def _find(run_id: Any) -> answers.About | None:
    try:
        return answers.find(run_id)
    except Problem:
        return None
