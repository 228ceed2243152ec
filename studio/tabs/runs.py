"""Runs: how is it going, how did it go, and what is next?"""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import gradio as gr

from core import parcel, presets, queue, runs
from core.config import Config
from core.notes import Notes
from core.problem import Problem
from core.runs import Run
from studio import charts, notifier, report
from studio.form import knobs, short_name
from studio.gate import PACK_PATH
from studio.language import Language, in_bytes
from studio.metrics import read_metrics
from studio.overview import Summary, overview
from studio.panel import Panel, Updates, find, signature
from studio.tabs import Page

ORDER = 30
NAME = "runs.title"

_QUICK = {"queue": False, "show_progress": "hidden"}
_PICK = """
let last = '', left = 0;
element.addEventListener('click', (e) => {
  const at = (name) => e.target.closest(`[data-${name}]`);
  if (at('pick')) trigger('select', {pick: at('pick').dataset.pick, on: at('pick').checked});
  else if (e.target.closest('.pick')) return;
  else if (at('sort')) trigger('select', {sort: at('sort').dataset.sort});
  else if (at('page')) trigger('select', {page: at('page').dataset.page});
  else if (at('run')) {
    trigger('select', {run: at('run').dataset.run});
    setTimeout(() => document.querySelector('#runs-detail')?.scrollIntoView({behavior: 'smooth', block: 'nearest'}), 400);
  }
});
element.addEventListener('focusin', (e) => {
  const key = Object.entries(e.target.dataset)[0];
  last = key ? `${e.target.tagName.toLowerCase()}[data-${key[0]}="${CSS.escape(key[1])}"]` : '';
});
element.addEventListener('scroll', (e) => { left = [e.target.scrollLeft, e.target.scrollTop]; }, true);
// Of a table of many rows, the cells that are others are drawn, alone: who presses one that stays is not disturbed.
const list = element.querySelector('.list'), body = document.createElement('tbody');
const patch = (old, text) => {
  body.innerHTML = text.slice(text.indexOf('<tr')) + '</tr>';
  const row = body.rows[0];
  if (old.dataset.run !== row.dataset.run || old.cells.length !== row.cells.length) { old.replaceWith(row); return; }
  old.className = row.className;
  [...row.cells].forEach((cell, at) => { if (!old.cells[at].isEqualNode(cell)) old.cells[at].replaceWith(cell); });
};
let parts = [];
const draw = () => {
  const now = (props.value || '').split('</tr>'), rows = list.querySelectorAll('tr'), end = now.length - 1;
  const is_same = now.length === parts.length && rows.length === end && end > 0 && now[0] === parts[0] && now[end] === parts[end];
  if (is_same) {
    for (let row = 1; row < end; row++) {
      if (now[row] !== parts[row]) patch(rows[row], now[row]);
    }
  } else list.innerHTML = props.value || '';
  parts = now;
};
draw();
watch('value', draw);
watch('value', () => requestAnimationFrame(() => {
  const box = element.querySelector('.scroll');
  if (box && left) box.scrollTo(...left);
  if (last && document.activeElement === document.body) element.querySelector(last)?.focus({preventScroll: true});
}));
"""
_ACT = """element.addEventListener('click', (e) => {
  const button = e.target.closest('[data-act]');
  if (button) trigger('select', {act: button.dataset.act, run: button.dataset.of || ''});
});"""
_ROWS = 50
_MOST_PICKED = 8
_MOST_FILES = 200
_COLUMNS: dict[str, Callable[[Summary], Any]] = {
    "name": lambda run: run.title.casefold(),
    "began": lambda run: run.id,
    "state": lambda run: run.state,
    "curve": lambda run: None,
    "step": lambda run: run.step,
    "loss": lambda run: run.loss,
    "eval_loss": lambda run: run.eval_loss,
    "model": lambda run: short_name(run.model).casefold(),
    "method": lambda run: run.method,
    "took": lambda run: run.seconds,
}
"""The columns of the table, and what it is sorted by when their head is pressed; a curve has no order."""
_NUMBERS = ("step", "loss", "eval_loss", "took")
_OVER = ("step", "tokens", "minutes")
_ASKED = ("", "step", 5, False)


def build(page: Page) -> None:
    """The table of all runs, several of them in one chart, and the one that is selected."""
    _Runs(page)


class _Runs:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        words = self.words
        self.seen = gr.State({})
        self.view = gr.State({"sort": "began", "down": True, "page": 0})
        self.picked = gr.State([])
        # What the search and the knobs were set to: at every look the page would search for each of these itself. The page
        # keeps it, as it keeps what the fields show.
        self.asked = gr.HTML([*_ASKED], html_template="", visible="hidden")
        with gr.Row(elem_classes=["runs-top"]):
            gr.HTML(f"<h2>{report.escape(words.t('runs.question'))}</h2>", min_width=160)
            self.search = gr.Textbox(
                label=words.t("runs.search"), placeholder=words.t("runs.search_hint"), show_label=False, container=False,
                min_width=220, elem_classes=["runs-search"], max_length=200,
            )  # fmt: skip
        self.waiting = gr.HTML(js_on_load=_ACT, elem_classes=["runs-waiting"])
        self.table = gr.HTML(html_template="<div class='list'></div>", js_on_load=_PICK, elem_classes=["runs-table"])
        self._draw_overlay()
        with gr.Column(visible=False, elem_classes=["run-view"], elem_id="runs-detail") as self.detail:
            self.panel = Panel(page, page.run)
            self._draw_notes()
            with gr.Accordion(words.t("runs.settings"), open=False, elem_classes=["group"]):
                self.settings = gr.HTML()
            with gr.Accordion(words.t("runs.log"), open=False, elem_classes=["group"]):
                self.log = gr.Textbox(
                    lines=10,
                    max_lines=20,
                    interactive=False,
                    show_label=False,
                    label=words.t("runs.log"),
                    autoscroll=True,
                    elem_classes=["log"],
                )
            with gr.Accordion(words.t("runs.files"), open=False, elem_classes=["group"]):
                self.files = gr.HTML()
            self._draw_actions()
        self._draw_import()
        notifier.draw(page)
        self._listen()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw_overlay(self) -> None:
        words = self.words
        with gr.Column(visible=False, elem_classes=["card", "runs-overlay"]) as self.several:
            with gr.Row(elem_classes=["runs-knobs"]):
                self.over = gr.Radio(
                    [(words.t(f"runs.over_{name}"), name) for name in _OVER], value="step", label=words.t("runs.over"),
                    min_width=200, elem_classes=["weights-how"],
                )  # fmt: skip
                self.span = gr.Slider(0, 30, value=5, step=1, label=words.t("runs.smoothing"), min_width=200)
                self.log_scale = gr.Checkbox(label=words.t("runs.log_scale"), min_width=140)
                self.clear = gr.Button(words.t("runs.clear"), size="sm", min_width=100)
            self.overlay = charts.component(words.t("common.loss_chart"))
            self.differing = gr.HTML()

    def _draw_notes(self) -> None:
        words = self.words
        with gr.Accordion(words.t("runs.notes"), open=False, elem_classes=["group"]):
            with gr.Row(elem_classes=["pair"]):
                self.name = gr.Textbox(label=words.t("runs.name"), info=words.t("runs.name_help"), max_length=80)
                self.tags = gr.Textbox(label=words.t("runs.tags"), info=words.t("runs.tags_help"), max_length=400)
            self.note = gr.Textbox(label=words.t("runs.note"), lines=3, max_lines=12, max_length=4000)
            self.note_trouble = gr.HTML()
            with gr.Row(elem_classes=["actions"]):
                self.keep = gr.Button(words.t("runs.keep"), size="sm", min_width=100, elem_id="runs-keep")

    def _draw_actions(self) -> None:
        words = self.words
        with gr.Row(elem_classes=["actions"]):
            self.again = gr.Button(words.t("runs.again"), size="sm", min_width=140)
            self.take = gr.HTML(elem_classes=["runs-take"], min_width=140)
            self.delete = gr.Button(words.t("runs.delete"), size="sm", min_width=100, elem_classes=["quiet-button"])
        with gr.Row(visible=False, elem_classes=["note", "bad", "ask"]) as self.ask:
            self.question = gr.HTML()
            self.yes = gr.Button(words.t("runs.delete_yes"), variant="stop", size="sm", min_width=120)
            self.no = gr.Button(words.t("runs.delete_no"), size="sm", min_width=100)

    def _draw_import(self) -> None:
        words = self.words
        with gr.Accordion(words.t("runs.import"), open=False, elem_classes=["group"]):
            with gr.Row(elem_classes=["composer"]):
                self.source = gr.Textbox(
                    label=words.t("runs.import_path"), info=words.t("runs.import_help"), max_length=1000
                )
                self.take_in = gr.Button(words.t("runs.import_go"), min_width=110)
            self.import_trouble = gr.HTML()

    # --- listening ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        page = self.page
        listed = [
            self.seen,
            self.view,
            self.picked,
            self.table,
            self.waiting,
            self.several,
            self.overlay,
            self.differing,
        ]
        shown = [*listed, self.detail, self.log, self.files, self.take]
        opened = [*shown, self.settings, self.ask, self.name, self.tags, self.note, self.note_trouble]
        known = [page.run, self.seen, self.view, self.picked]
        state = [*known, self.asked]
        page.clock.add(_spread(self._refresh), state, shown)
        page.run.change(_spread(self._open), inputs=state, outputs=opened, **_QUICK)
        page.blocks.load(_spread(self._open), inputs=state, outputs=opened, **_QUICK)
        self.table.select(_told(self._clicked), inputs=state, outputs=[page.run, *shown], **_QUICK)
        self.waiting.select(_told(self._change_queue), inputs=state, outputs=[*shown, self.panel.trouble], **_QUICK)
        knobs, live = [self.over, self.span, self.log_scale], {**_QUICK, "trigger_mode": "always_last"}
        typed = {"inputs": [*known, self.search, *knobs], "outputs": [self.asked, *shown]}
        # What is put in without a key pressed, or put back, changes it too, and Gradio does not take that for an input.
        self.search.change(self._find, **typed, **live)
        for knob in knobs:
            knob.change(self._ask, **typed, **live)
        self.clear.click(_spread(self._clear), inputs=state, outputs=shown, **_QUICK)
        # Gradio tells of a changed State by its queue alone.
        self.again.click(
            self._take_settings, inputs=[page.run], outputs=[page.config, page.tabs], show_progress="hidden"
        )
        self.keep.click(
            _spread(self._keep), inputs=[*state, self.name, self.tags, self.note],
            outputs=[*shown, self.panel.head, self.name, self.tags, self.note, self.note_trouble], **_QUICK,
        )  # fmt: skip
        self.delete.click(self._ask_delete, inputs=[page.run], outputs=[self.ask, self.question], **_QUICK)
        self.no.click(lambda: gr.update(visible=False), outputs=[self.ask], **_QUICK)
        self.yes.click(_spread(self._delete), inputs=state, outputs=[page.run, self.panel.trouble, *opened], **_QUICK)
        self.take_in.click(
            _spread(lambda *given: self._import(given[-1], *given[:-1])), inputs=[*state, self.source],
            outputs=[page.run, self.source, self.import_trouble, *opened], show_progress="hidden",
        )  # fmt: skip

    # --- handlers -----------------------------------------------------------------------------------------------------

    def _refresh(self, run_id: Any, seen: Any, view: Any, picked: Any, search: Any, *knobs: Any) -> Updates:
        """What has changed since the page looked last; nothing when nothing has."""
        words, seen = self.words, dict(seen) if isinstance(seen, dict) else {}
        view, everything = _view(view), overview.look()
        there = {one.id for one in everything}
        picked = [one for one in _texts(picked) if one in there][:_MOST_PICKED]
        updates: Updates = {}

        def show(component: Any, key: str, mark: Any, make: Callable[[], Any]) -> None:
            if seen.get(key) != mark:
                seen[key] = mark
                updates[component] = make()

        run = find(run_id)
        table = _table(words, everything, view, search, run.id if run else "", tuple(picked))
        show(self.table, "table", zlib.crc32(table.encode()), lambda: table)
        waiting = _waiting(words, everything)
        show(self.waiting, "waiting", zlib.crc32(waiting.encode()), lambda: waiting)
        found = [find(one) for one in picked]
        chosen = [one for one in found if one is not None]
        settings = _knobs(*knobs)
        if seen.get("overlay") != (mark := [[signature(one) for one in chosen], list(settings)]):
            seen["overlay"] = mark
            updates |= self._overlay(chosen, *settings)
        if run is not None:
            show(self.log, "log", [run.id, _mark(run.folder / "log.txt")], run.log_tail)
            files = _files(words, run)
            show(self.files, "files", zlib.crc32(files.encode()), lambda: files)
            link = _link(words, run)
            show(self.take, "take", link, lambda: link)
        show(self.detail, "detail", run is not None, lambda: gr.update(visible=run is not None))
        return updates | {self.seen: seen} if updates else gr.skip()

    def _open(self, run_id: Any, seen: Any, view: Any, picked: Any, search: Any, *knobs: Any) -> Updates:
        """Another run was selected, or the page was opened: everything is drawn."""
        overview.look(now=True)
        updates = self._refresh(run_id, {}, view, picked, search, *knobs)
        return updates | self._about(find(run_id))

    def _about(self, run: Run | None) -> Updates:
        """What does not change by itself: the settings, and what a person wrote."""
        notes = Notes.read(run) if run else Notes()
        return {
            self.settings: _settings(self.words, run) if run else "",
            self.ask: gr.update(visible=False),
            self.name: notes.name or (run.title if run else ""),
            self.tags: ", ".join(notes.tags),
            self.note: notes.note,
            self.note_trouble: "",
        }

    def _clicked(self, data: Any, run_id: Any, seen: Any, view: Any, picked: Any, *rest: Any) -> Updates:
        """Something in the table was clicked: a run, its box, a column's head, or another part of the list."""
        data = data if isinstance(data, dict) else {}
        view, picked = _view(view), _texts(picked)
        if (run := find(data.get("run"))) is not None:
            return {self.page.run: run.id}
        if isinstance(wanted := data.get("pick"), str):
            picked = [one for one in picked if one != wanted]
            if data.get("on") is True and find(wanted) is not None:
                picked = [*picked, wanted][-_MOST_PICKED:]
        elif isinstance(data.get("sort"), str) and data["sort"] in _COLUMNS:
            down = not view["down"] if view["sort"] == data["sort"] else data["sort"] == "began"
            view |= {"sort": data["sort"], "down": down, "page": 0}
        elif str(data.get("page")).isdecimal():
            view |= {"page": int(str(data["page"])[:6])}
        else:
            return gr.skip()
        return {self.view: view, self.picked: picked} | _plain(self._refresh(run_id, seen, view, picked, *rest))

    def _ask(self, run_id: Any, seen: Any, view: Any, picked: Any, *asked: Any) -> Updates:
        return {self.asked: list(asked)} | _plain(self._refresh(run_id, seen, view, picked, *asked))

    def _find(self, run_id: Any, seen: Any, view: Any, *rest: Any) -> Updates:
        view = _view(view) | {"page": 0}
        return {self.view: view} | self._ask(run_id, seen, view, *rest)

    def _clear(self, run_id: Any, seen: Any, view: Any, picked: Any, *rest: Any) -> Updates:
        return {self.picked: []} | _plain(self._refresh(run_id, seen, view, [], *rest))

    def _overlay(self, chosen: Sequence[Run], over: str, span: float, logarithmic: bool) -> Updates:
        """The losses of several runs in one chart, and the settings in which they differ."""
        words = self.words
        lines = [(run.id, run.title, read_metrics(run)) for run in chosen]
        names = {name: words.t(f"common.curve_{name}") for name in ("step", "loss")}
        names |= {name: words.t(f"runs.axis_{name}") for name in ("tokens", "minutes")}
        figure = charts.overlay_figure(lines, names, over=over, span=span, logarithmic=logarithmic)
        return {
            self.several: gr.update(visible=bool(chosen)),
            self.overlay: {"figures": [figure] if chosen else []},
            self.differing: _differences(words, chosen),
        }

    def _change_queue(self, data: Any, *state: Any) -> Updates:
        """A button of the queue: a run earlier, later, on hold, out of it; or nothing new starts."""
        data = data if isinstance(data, dict) else {}
        act, run = data.get("act"), find(data.get("run"))
        try:
            if act in ("pause", "go_on"):
                queue.pause(act == "pause")
            elif run is not None and act in ("earlier", "later"):
                queue.move(run, -1 if act == "earlier" else 1)
            elif run is not None and act in ("hold", "release"):
                queue.hold(run, act == "hold")
            elif run is not None and act == "remove":
                if run.state() != "queued":  # it may have begun since the page was drawn
                    raise Problem(
                        "The run {run} does not wait in the queue.", "It is {state}.", run=run.title, state=run.state()
                    )
                self.page.launcher.stop(run)
            else:
                return gr.skip()
        except Problem as problem:
            return {self.panel.trouble: report.problems(self.words, problem.parts)} | _plain(self._now(*state))
        self.page.launcher.wake()
        return {self.panel.trouble: ""} | _plain(self._now(*state))

    def _now(self, *state: Any) -> Updates:
        overview.look(now=True)
        return self._refresh(*state)

    def _keep(self, run_id: Any, *rest: Any) -> Updates:
        """Write name, tags and note beside what the worker wrote."""
        *state, name, tags, note = rest
        run = find(run_id)
        if run is None:
            return gr.skip()
        try:
            notes = Notes.check(name, note, tags)
            # The name that it was started with is no other name.
            if notes.name == run.config_data().get("name"):
                notes = Notes("", notes.note, notes.tags)
            try:
                notes.write(run)
            except OSError as error:
                raise Problem("Nothing could be written.", "{error}.", error=error.strerror or error) from None
        except Problem as problem:
            return {self.note_trouble: report.problems(self.words, problem.parts)}
        said = f"<p class='quiet' role='status'>{report.escape(self.words.t('runs.kept'))}</p>"
        head = {self.panel.head: report.headline(self.words, run, read_metrics(run))}
        about = {part: value for part, value in self._about(run).items() if part in (self.name, self.tags, self.note)}
        return _plain(self._now(run_id, *state)) | head | about | {self.note_trouble: said}

    def _take_settings(self, run_id: Any) -> Any:
        run = find(run_id)
        if run is None or run.job != "train":
            return gr.skip()
        # Pressed again it is another value, so that Train hears of it again.
        return {
            self.page.config: {"config": run.config_data(), "press": secrets.token_hex(4)},
            self.page.tabs: self.page.go("train"),
        }

    def _ask_delete(self, run_id: Any) -> Any:
        run = find(run_id)
        if run is None:
            return gr.skip()
        size = in_bytes(sum(size for _, size in _walk(run)))
        question = self.words.t("runs.delete_ask", name=run.title, size=size)
        return {self.ask: gr.update(visible=True), self.question: f"<p>{report.escape(question)}</p>"}

    def _delete(self, run_id: Any, *rest: Any) -> Any:
        run = find(run_id)
        if run is None:
            return gr.skip()
        try:
            if run.state() == "queued" and _is_readable(run):
                raise Problem("The run {run} is still waiting for its turn.", to_do="Stop it first.", run=run.title)
            runs.delete(run)
        except Problem as problem:
            return {self.panel.trouble: report.problems(self.words, problem.parts), self.ask: gr.update(visible=False)}
        return {self.page.run: "", self.panel.trouble: ""} | _plain(self._open("", *_padded(rest)))

    def _import(self, path: Any, *state: Any) -> Any:
        """Copy a run's folder from elsewhere among the studio's own."""
        try:
            if not isinstance(path, str) or not path.strip() or len(path) > 1000 or "\0" in path:
                raise Problem("No folder was named.", to_do="Type the path of a run's folder on this machine.")
            run = parcel.take_in(Path(path.strip()))
        except Problem as problem:
            return {self.import_trouble: report.problems(self.words, problem.parts)}
        said = f"<p class='note good' role='status'>{report.escape(self.words.t('runs.imported', name=run.title))}</p>"
        found = _plain(self._open(run.id, *_padded(state[1:])))
        return {self.page.run: run.id, self.source: "", self.import_trouble: said} | found


def _is_readable(run: Run) -> bool:
    """Whether its settings are settings, so that it could ever begin."""
    try:
        return bool(run.config_data())
    except Problem:
        return False


def _spread(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of what was asked for, one by one, as one of all of it together."""

    def handle(run_id: Any, seen: Any, view: Any, picked: Any, asked: Any, *rest: Any) -> Any:
        return handler(run_id, seen, view, picked, *_asked(asked), *rest)

    return handle


def _told(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """The same, of a handler that takes what the page's script said before all else."""

    def handle(run_id: Any, seen: Any, view: Any, picked: Any, asked: Any, event: gr.EventData) -> Updates:
        return handler(event._data, run_id, seen, view, picked, *_asked(asked))

    return handle


def _asked(value: Any) -> Sequence[Any]:
    """Search and knobs, whatever a page sends for them."""
    return value if isinstance(value, list) and len(value) == len(_ASKED) else _ASKED


def _padded(rest: Sequence[Any]) -> tuple[Any, ...]:
    """The page's state after the run's id, whole: seen, view, picked, search."""
    return (*rest, *({}, {}, [], "")[len(rest) :]) if len(rest) < 4 else tuple(rest)


def _plain(updates: Any) -> Updates:
    """Updates as a dict, also when there are none."""
    return updates if isinstance(updates, dict) and "__type__" not in updates else {}


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _view(value: Any) -> dict[str, Any]:
    """How the table stands: what a page sends may be anything."""
    value = value if isinstance(value, dict) else {}
    sort, part = value.get("sort"), value.get("page")
    return {
        "sort": sort if isinstance(sort, str) and sort in _COLUMNS else "began",
        "down": value.get("down") is not False,
        "page": part if isinstance(part, int) and not isinstance(part, bool) and 0 <= part < 10**6 else 0,
    }


def _knobs(over: Any = "step", span: Any = 5, logarithmic: Any = False) -> tuple[str, float, bool]:
    """How curves are laid over each other."""
    number = isinstance(span, int | float) and not isinstance(span, bool) and 0 <= span <= 30
    return over if isinstance(over, str) and over in _OVER else "step", span if number else 5, logarithmic is True


def _mark(path: Path) -> str:
    try:
        status = path.stat()
        return f"{status.st_size}:{status.st_mtime_ns}"
    except OSError:
        return "-"


def _differences(words: Language, found: Sequence[Run]) -> str:
    """A table of the settings that are not the same in all of these runs."""
    if len(found) < 2:
        return f"<p class='quiet'>{report.escape(words.t('runs.pick_more'))}</p>" if found else ""
    said = [
        presets.flatten({key: value for key, value in run.config_data().items() if key not in ("origins", "name")})
        for run in found
    ]
    titles = {knob.key: words.text(knob.title) for knob in knobs().values()} | {"method.name": words.t("train.method")}
    rows = []
    for key in dict.fromkeys(key for one in said for key in one):
        values = [one.get(key) for one in said]
        if any(value != values[0] for value in values):
            cells = "".join(f"<td class='number'>{report.escape(_value(words, key, value))}</td>" for value in values)
            rows.append(f"<tr><th scope='row'>{report.escape(titles.get(key, key))}</th>{cells}</tr>")
    if not rows:
        return f"<p class='quiet'>{report.escape(words.t('runs.no_difference'))}</p>"
    marks = [charts.PALETTE[place] for place in charts.places([run.id for run in found])]
    head = "".join(
        f"<th scope='col' class='number'><span class='dot' style='background:{mark}'></span> {report.escape(run.title)}</th>"
        for run, mark in zip(found, marks, strict=True)
    )
    return f"<div class='scroll'><table class='settings'><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _value(words: Language, key: str, value: Any) -> str:
    if isinstance(value, bool):
        return words.t("common.on" if value else "common.off")
    if value in (None, "", [], {}):
        return "–"
    return short_name(value) if key in ("model.name", "data.train", "data.eval") else str(value)


def _table(
    words: Language,
    everything: list[Summary],
    view: dict[str, Any],
    search: Any,
    selected: str,
    picked: tuple[str, ...],
) -> str:
    """The runs that are looked for, in the order that was chosen, a part of them at a time; a row is a button."""
    if not everything:
        return f"<p class='quiet center empty'>{report.escape(words.t('runs.none'))}</p>"
    found = _search(everything, search)
    if not found:
        return f"<p class='quiet center empty'>{report.escape(words.t('runs.none_found'))}</p>"
    found = _sort(found, view["sort"], view["down"])
    first = min(view["page"], (len(found) - 1) // _ROWS) * _ROWS
    rows = [_row(words.code, run, run.id == selected, run.id in picked) for run in found[first : first + _ROWS]]
    head = "".join(_head(words, name, view) for name in _COLUMNS)
    foot = (
        _pager(words, first, len(found), len(everything)) if len(found) > _ROWS or len(found) < len(everything) else ""
    )
    return (
        f"<div class='scroll'><table><thead><tr><th class='pick'><span class='hidden-text'>{report.escape(words.t('runs.compare'))}</span></th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{foot}"
    )


def _search(everything: list[Summary], search: Any) -> list[Summary]:
    """The runs that hold every word somewhere: in name, note, tags, model, data, method or state."""
    words = search.casefold().split()[:20] if isinstance(search, str) and len(search) <= 1000 else []
    if not words:
        return everything
    return [run for run in everything if all(word in _haystack(run) for word in words)]


@lru_cache(maxsize=4096)
def _haystack(run: Summary) -> str:
    return "\n".join([run.id, run.title, run.state, run.note, *run.tags, run.model, run.data, run.method]).casefold()


def _sort(found: list[Summary], name: str, down: bool) -> list[Summary]:
    """Sorted by a column; who has no value there comes last, whichever way."""
    key = _COLUMNS[name]
    there = [run for run in found if key(run) is not None]
    return sorted(there, key=key, reverse=down) + [run for run in found if key(run) is None]


def _head(words: Language, name: str, view: dict[str, Any]) -> str:
    is_sorted = view["sort"] == name
    told = f" aria-sort='{'descending' if view['down'] else 'ascending'}'" if is_sorted else ""
    arrow = f"<span aria-hidden='true'>{'↓' if view['down'] else '↑'}</span>" if is_sorted else ""
    kind = "number" if name in _NUMBERS else name
    if name == "curve":
        return f"<th scope='col' class='curve'>{report.escape(words.t('runs.column_curve'))}</th>"
    return f"<th scope='col' class='{kind}'{told}><button type='button' data-sort='{name}'>{report.escape(words.t(f'runs.column_{name}'))}{arrow}</button></th>"


def _pager(words: Language, first: int, found: int, all_of_them: int) -> str:
    part, last = first // _ROWS, (found - 1) // _ROWS
    told = words.t("runs.part", first=first + 1, last=min(found, first + _ROWS), found=found, all=all_of_them)
    buttons = "".join(
        f"<button type='button' data-page='{to}'{' disabled' if not 0 <= to <= last else ''}>{report.escape(words.t(f'runs.{name}'))}</button>"
        for name, to in (("back", part - 1), ("next", part + 1))
    )
    return f"<div class='pager'><span>{report.escape(told)}</span>{buttons if last else ''}</div>"


@lru_cache(maxsize=4096)
def _row(code: str, run: Summary, is_selected: bool, is_picked: bool) -> str:
    """One run of the table; drawn anew only when its summary is another."""
    words, name, id = Language(code), report.escape(run.title), report.escape(run.id)
    box = f"<td class='pick'><input type='checkbox' data-pick='{id}' aria-label='{report.escape(words.t('runs.compare_one', name=run.title))}'{' checked' if is_picked else ''}></td>"
    if run.broken:
        # It can be opened, so that it can be deleted.
        return (
            f"<tr data-run='{id}' class='{'selected' if is_selected else ''}'><td></td><td class='name' colspan='{len(_COLUMNS)}'>"
            f"<button type='button' data-run='{id}' aria-pressed='{str(is_selected).lower()}'>{name}</button> "
            f"<span class='when'>{report.escape(words.t('runs.broken'))}</span></td></tr>"
        )
    note = f"<span class='run-note'>{report.escape(run.note.splitlines()[0][:120])}</span>" if run.note else ""
    tags = "".join(f"<span class='tag'>{report.escape(tag)}</span>" for tag in run.tags)
    scores = report.scores(words, run.metrics)
    told = (
        f"<span class='when' title='{report.escape(' · '.join(f'{name} {value}' for name, value in scores))}'>{report.escape(' '.join(scores[0]))}</span>"
        if scores
        else ""
    )
    line = charts.sparkline(run.spark, run.id, words.t("common.loss_chart"))
    cells = [
        f"<td class='name'><button type='button' data-run='{id}' aria-pressed='{str(is_selected).lower()}'><span class='dot' style='background:{charts.colour(run.id)}'></span>{name}</button>"
        f"{tags}{note}</td>",
        f"<td><span class='when'>{report.escape(report.began(cast(Run, run)))}</span></td>",
        f"<td>{report.badge(words, run.state)}</td>",
        f"<td class='curve'>{line}</td>",
        f"<td class='number'>{words.number(run.step)}{f' / {words.number(run.steps)}' if run.steps else ''}</td>",
        f"<td class='number'>{words.small(run.loss)}</td>",
        f"<td class='number'>{words.small(run.eval_loss)}{told}</td>",
        f"<td>{report.escape(short_name(run.model))}<span class='when'>{report.escape(short_name(run.data))}</span></td>",
        f"<td>{report.escape(run.method)}</td>",
        f"<td class='number'>{report.escape('–' if run.seconds is None else words.duration(run.seconds))}</td>",
    ]
    return f"<tr data-run='{id}' class='{'selected' if is_selected else ''}'>{box}{''.join(cells)}</tr>"


def _waiting(words: Language, everything: list[Summary]) -> str:
    """What waits for its turn, and the buttons that change its order; nothing when nothing waits."""
    titles = {run.id: run.title for run in everything if run.state == "queued"}
    order = queue.read()
    if not titles and not order.paused:
        return ""
    ids = [run.id for run in queue.arrange([Run(runs.runs_folder() / one) for one in titles])]
    lines = []
    for place, one in enumerate(ids):
        held = one in order.held
        acts = [
            ("earlier", place > 0),
            ("later", place < len(ids) - 1),
            ("release" if held else "hold", True),
            ("remove", True),
        ]
        buttons = "".join(
            f"<button type='button' data-act='{act}' data-of='{report.escape(one)}'{'' if can else ' disabled'}>{report.escape(words.t(f'runs.queue_{act}'))}</button>"
            for act, can in acts
        )
        mark = f"<span class='badge interrupted'>{report.escape(words.t('runs.on_hold'))}</span>" if held else ""
        lines.append(
            f"<li><span class='who'>{report.escape(titles[one])} {mark}</span><span class='acts'>{buttons}</span></li>"
        )
    act = "go_on" if order.paused else "pause"
    told = words.t("runs.queue_paused") if order.paused else words.t("runs.queue", count=len(ids))
    button = f"<button type='button' data-act='{act}'>{report.escape(words.t(f'runs.queue_{act}'))}</button>"
    return (
        f"<section class='queue{' paused' if order.paused else ''}'><div class='queue-head'><b>{report.escape(told)}</b><span class='acts'>{button}</span></div>"
        f"<ol>{''.join(lines)}</ol></section>"
    )


def _walk(run: Run) -> list[tuple[str, int]]:
    """The files of a run by their path, with their sizes; links are not followed."""
    found = []
    for path in sorted(run.folder.rglob("*")):
        try:
            if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
                found.append((path.relative_to(run.folder).as_posix(), path.stat().st_size))
        except OSError:
            continue
    return found


def _files(words: Language, run: Run) -> str:
    found = _walk(run)
    rows = "".join(
        f"<tr><th scope='row'>{report.escape(name)}</th><td class='number'>{report.escape(in_bytes(size))}</td></tr>"
        for name, size in found[:_MOST_FILES]
    )
    told = words.t("runs.files_sum", count=len(found), size=in_bytes(sum(size for _, size in found)))
    return f"<p class='quiet'>{report.escape(told)}</p><div class='scroll'><table class='settings'><tbody>{rows}</tbody></table></div>"


def _link(words: Language, run: Run) -> str:
    """Where the run can be fetched as a zip; nothing while it is at work."""
    if run.state() in report.ACTIVE:
        return ""
    return f"<a class='pack' href='{report.escape(f'{PACK_PATH}/{quote(run.id)}.zip')}' download>{report.escape(words.t('runs.pack'))}</a>"


def _settings(words: Language, run: Run) -> str:
    """Every setting of a run with where it came from."""
    try:
        if run.job != "train":
            return ""
        config = run.config()
    except Problem as problem:
        return report.problems(words, problem.parts)
    return f"<div class='scroll'><table class='settings'><tbody>{''.join(_setting_rows(words, config))}</tbody></table></div>"


def _setting_rows(words: Language, config: Config) -> list[str]:
    said = presets.flatten(config.to_data())
    own = config.method.name  # type: ignore[attr-defined]
    rows = []
    for knob in knobs().values():
        if knob.method in (None, own) and knob.key in said:
            origin = config.origins.get(knob.key, "default")
            mark = (
                f"<span class='mark {report.escape(origin)}'>{report.escape(words.t(f'train.from_{origin}'))}</span>"
                if origin in ("task", "size", "method", "you", "default")
                else ""
            )
            value = knob.show(said[knob.key])
            shown = (
                words.t("common.on")
                if value is True
                else words.t("common.off")
                if value is False
                else "–"
                if value in (None, "")
                else f"{value:g}"
                if isinstance(value, float)
                else f"{value} {words.text(knob.unit)}".strip()
            )
            rows.append(
                f"<tr><th scope='row'>{report.escape(words.text(knob.title))}</th><td class='number'>{report.escape(shown)}</td><td>{mark}</td></tr>"
            )
    return rows
