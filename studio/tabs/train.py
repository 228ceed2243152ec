"""Train: what shall it learn, from what? Four choices and Start; everything else one level down."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterable
from typing import Any

import gradio as gr

from core import fit, formats, methods, objectives, presets, runs, sources
from core.config import Config
from core.dataset import Dataset
from core.problem import Problem
from studio import report, shelf
from studio.fields import draw_component, name_setting
from studio.form import CHOSEN, GROUPS, Form, Knob, basis, is_nonce, knobs, place, short_name, size_of, tasks_of, token
from studio.language import Language
from studio.panel import Panel, Updates, find
from studio.tabs import Page
from studio.upload import find_upload

ORDER = 20
NAME = "train.title"

_QUICK = {"queue": False, "show_progress": "hidden"}
# One ear for all ways back: with one for each knob, a page takes noticeably longer to open.
_RESET = """document.addEventListener('click', (event) => {
  const back = event.target.closest('[data-reset]');
  if (back) trigger('click', {knob: back.dataset.reset});
});"""
# The text goes from the page into a file without lying on the server's disk in between.
_SAVE = """(text, name) => {
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/yaml'}));
  link.download = name; link.click(); setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}"""
# The method is chosen from a list of radio buttons; a click folds it together again, the arrow keys leave it open.
_PICK = """
const fold = element.querySelector('details'), chosen = element.querySelector('summary span');
const show = () => {
  const radio = [...element.querySelectorAll('input')].find((one) => one.value === props.value);
  if (!radio) return;
  radio.checked = true;
  const title = radio.parentNode.querySelector('b'), about = radio.parentNode.querySelector('small');
  chosen.replaceChildren(title.cloneNode(true), about.cloneNode(true));
};
element.addEventListener('change', (event) => {
  event.stopPropagation();
  props.value = event.target.value; show(); trigger('input');
});
element.addEventListener('click', (event) => {
  if (event.detail && event.target.closest('label')) setTimeout(() => { fold.open = false; }, 120);
});
element.addEventListener('keydown', (event) => {
  if (fold.open && (event.key === 'Escape' || (event.key === 'Enter' && event.target.type === 'radio'))) {
    fold.open = false; fold.firstElementChild.focus();
  }
});
watch('value', show);
show();
"""
_LOOKED_AT = 100
_KEY = """() => { if (window.atelierKeys) return; window.atelierKeys = true;
  document.addEventListener('keydown', (e) => {
    if (e.key !== 'Enter' || !(e.ctrlKey || e.metaKey)) return;
    const start = document.querySelector('#train-start');
    if (start && start.offsetParent) { document.activeElement?.blur(); setTimeout(() => start.click(), 50); }
  }); }"""


def build(page: Page) -> None:
    """The form on the left, what it comes to on the right; after Start the run in their place."""
    _Train(page)


class _Train:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        self.memory = page.form
        self.nonce = gr.BrowserState("", storage_key="atelier.nonce", secret="atelier")
        # None: nobody has said yet; "": the form is wanted; else the id of the run that is watched.
        self.watched = gr.BrowserState(None, storage_key="atelier.watched", secret="atelier")
        self.boxes: dict[str, Any] = {}
        self.notes: dict[str, gr.HTML] = {}
        #: What a page shows when it opens: it is not told again.
        self.drawn: Updates = {}
        self.form = Form.fresh()
        self.ear = gr.HTML(js_on_load=_RESET, visible="hidden")
        with gr.Column(elem_classes=["setup"]) as self.setup:
            self._draw_welcome()
            with gr.Row(elem_classes=["split"], equal_height=False):
                with gr.Column(scale=7, min_width=320):
                    self._draw_choices()
                    self._draw_groups()
                with gr.Column(scale=4, min_width=300, elem_classes=["sticky"]):
                    self._draw_card()
        with gr.Column(visible=False, elem_classes=["run-view"]) as self.run_view:
            with gr.Row(elem_classes=["actions", "above"]):
                self.again = gr.Button(
                    self.words.t("train.again"), size="sm", min_width=140, elem_classes=["quiet-button"]
                )
            self.panel = Panel(page, self.watched)
        self._listen()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw_welcome(self) -> None:
        with gr.Row(visible=False, elem_classes=["welcome"], equal_height=True) as self.welcome:
            gr.HTML(
                f"<h2>{report.escape(self.words.t('train.welcome'))}</h2><p>{report.escape(self.words.t('train.welcome_more'))}</p>"
            )
            self.first = gr.Button(self.words.t("train.first"), variant="primary", min_width=240)

    def _draw_choices(self) -> None:
        words, form = self.words, self.form
        gr.HTML(f"<h2>{report.escape(words.t('train.question'))}</h2>")
        with gr.Row(elem_classes=["pair"]):
            self._draw_knob(knobs()["model.name"], choices=shelf.model_choices(words))
            self._draw_knob(knobs()["data.train"], choices=_data_choices(words))
        with gr.Row(elem_classes=["pair"]):
            self._draw_knob(
                knobs()["task"],
                choices=[(words.text(objectives.find(name).title), name) for name in knobs()["task"].choices],
            )
            with gr.Column(elem_classes=["knob"], min_width=240):
                sizes = [(words.text(preset.title), name) for name, preset in presets.sizes().items()]
                self.size = gr.Dropdown(
                    sizes,
                    value=form.size,
                    label=words.t("train.size"),
                    info=words.t("train.size_help"),
                    interactive=True,
                    filterable=False,
                )
                self.size_note = gr.HTML(elem_classes=["knob-note"])
        with gr.Row(elem_classes=["pair"]):
            for knob in knobs().values():
                if not knob.group and knob.id not in (*CHOSEN, "name"):
                    self._draw_knob(knob)

    def _draw_groups(self) -> None:
        for group in GROUPS:
            with gr.Accordion(self.words.t(f"train.group_{group}"), open=False, elem_classes=["group"]):
                if group == "method":
                    self._draw_methods()
                else:
                    self._draw_grid(knob for knob in knobs().values() if knob.group == group and knob.method is None)

    def _draw_methods(self) -> None:
        words = self.words
        self.method = gr.HTML(
            self.form.method, html_template=_picker(words), js_on_load=_PICK, label=words.t("train.method"),
            elem_id="train-method", elem_classes=["picker-box"],
        )  # fmt: skip
        self.method_groups: dict[str, gr.Column] = {}
        for name in methods.catalogue():
            own = [knob for knob in knobs().values() if knob.method == name]
            with gr.Column(visible=name == self.form.method) as self.method_groups[name]:
                self._draw_grid(own)
            self.drawn[self.method_groups[name]] = gr.update(visible=name == self.form.method)

    def _draw_grid(self, wanted: Iterable[Knob]) -> None:
        with gr.Row(elem_classes=["grid"]):
            for knob in wanted:
                # A choice of one is none.
                if not (knob.kind == "choice" and len(knob.choices) == 1):
                    self._draw_knob(knob)

    def _draw_knob(self, knob: Knob, choices: list[tuple[str, str]] | None = None) -> None:
        with gr.Column(elem_classes=["knob", knob.kind.replace(" ", "-")], min_width=240) as column:
            # Gradio's box around the field would stand in every page a hundred times.
            column.allow_expected_parents = False
            shown, mark = self.form.shown[knob.id], _mark(self.words, self.form, knob, [])
            self.boxes[knob.id] = draw_component(self.words, knob, shown, choices)
            self.notes[knob.id] = gr.HTML(mark, elem_classes=["knob-note"])
            # A number without a value is drawn as 0 until it is told.
            self.drawn |= {self.notes[knob.id]: mark} | ({} if shown is None else {self.boxes[knob.id]: shown})

    def _draw_card(self) -> None:
        words = self.words
        with gr.Column(elem_classes=["card"]):
            gr.HTML(f"<h3>{report.escape(words.t('train.card'))}</h3>")
            self.sum = gr.HTML()
            # Ticks only while rows are being read.
            self.clock = gr.Timer(1, active=False)
            self._draw_knob(knobs()["name"])
            self.trouble = gr.HTML()
            self.start = gr.Button(words.t("train.start"), variant="primary", size="lg", elem_id="train-start")
            gr.HTML(f"<p class='quiet center'>{report.escape(words.t('train.keys'))}</p>")
            with gr.Accordion(words.t("train.command_title"), open=False, elem_classes=["plain"]):
                self.command = gr.Code(
                    language="shell",
                    interactive=False,
                    show_label=False,
                    label=words.t("train.command_title"),
                    wrap_lines=True,
                    lines=3,
                )
            with gr.Row(elem_classes=["actions"]):
                self.save = gr.Button(words.t("train.save"), size="sm", min_width=100)
                self.load = gr.UploadButton(
                    words.t("train.load"), size="sm", file_types=[".yaml", ".yml"], min_width=100
                )
                self.reset = gr.Button(words.t("train.reset_all"), size="sm", min_width=100)
            self.yaml = gr.Textbox(visible=False)
            self.yaml_name = gr.Textbox(visible=False)

    # --- listening ----------------------------------------------------------------------------------------------------

    @property
    def _entries(self) -> list[Any]:
        return [self.memory, self.size, self.method, *self.boxes.values()]

    @property
    def _shown(self) -> list[Any]:
        return [
            self.memory, self.size, self.size_note, self.method, *self.method_groups.values(), *self.boxes.values(), *self.notes.values(),
            self.sum, self.clock, self.trouble, self.command,
        ]  # fmt: skip

    def _listen(self) -> None:
        boxes = [self.size, self.method, *self.boxes.values()]
        # What is pasted or put in by the browser is no input to Gradio.
        left = [box.blur for box in boxes if isinstance(box, gr.Textbox)]
        gr.on(
            [*(box.input for box in boxes), *left],
            self._change,
            inputs=self._entries,
            outputs=self._shown,
            trigger_mode="always_last",
            **_QUICK,
        )
        self.clock.tick(self._look_again, inputs=self._entries, outputs=self._shown, **_QUICK)
        self.ear.click(self._reset, inputs=self._entries, outputs=self._shown, **_QUICK)
        self.reset.click(self._reset_all, inputs=[self.memory], outputs=self._shown, **_QUICK)
        self.load.upload(self._load, inputs=[self.load], outputs=self._shown, **_QUICK)
        self.page.config.change(
            self._take_config, inputs=[self.page.config], outputs=[*self._shown, *self._views], **_QUICK
        )
        self.page.data.change(
            self._take_data, inputs=[self.page.data, *self._entries], outputs=[*self._shown, *self._views], **_QUICK
        )
        self.save.click(
            self._save, inputs=self._entries, outputs=[self.yaml, self.yaml_name, *self._shown], **_QUICK
        ).then(None, [self.yaml, self.yaml_name], None, js=_SAVE)
        started = [self.nonce, self.page.run, *self._shown, *self._views]
        self.start.click(self._start, inputs=[self.nonce, *self._entries], outputs=started, **_QUICK)
        self.first.click(self._start_first, inputs=[self.nonce], outputs=started, **_QUICK)
        self.again.click(self._show_form, outputs=[self.nonce, *self._views], **_QUICK)
        self.watched.change(self._show_run, inputs=[self.watched], outputs=self._views[1:], **_QUICK)
        self.page.blocks.load(
            self._open,
            inputs=[self.memory, self.watched, self.nonce],
            outputs=[self.nonce, *self._shown, *self._views],
            **_QUICK,
        )
        self.page.blocks.load(None, js=_KEY)

    @property
    def _views(self) -> list[Any]:
        return [self.watched, self.setup, self.run_view, self.welcome]

    # --- handlers -----------------------------------------------------------------------------------------------------

    def _gather(self, memory: Any, size: Any, method: Any, *shown: Any) -> tuple[Form, Form]:
        """The form before this change, and as it stands now."""
        old = Form.from_memory(memory)
        values = dict(zip(self.boxes, shown, strict=True))
        task = _one_of(values["task"], presets.tasks(), old.task)
        return old, Form(
            task,
            _one_of(size, presets.sizes(), old.size),
            _one_of(method, methods.catalogue(), old.method),
            {**old.shown, **values},
        )

    def _change(self, *entries: Any) -> Updates:
        old, new = self._gather(*entries)
        has_other_model = new.shown["model.name"] != old.shown["model.name"]
        if has_other_model:
            new.size = size_of(new.shown["model.name"])
        if has_other_model or (new.task, new.size, new.method) != (old.task, old.size, old.method):
            return self._fill(new.refilled(old))
        return self._tell(new)

    def _look_again(self, *entries: Any) -> Updates:
        """The rows may have been read meanwhile."""
        return self._tell(self._gather(*entries)[1], patience=0)

    def _reset(self, event: gr.EventData, *entries: Any) -> Updates:
        told = event._data.get("knob") if isinstance(event._data, dict) else None
        return self._fill(self._gather(*entries)[1].reset(_one_of(told, knobs(), "")))

    def _reset_all(self, memory: Any) -> Updates:
        old = Form.from_memory(memory)
        new = Form.fresh(old.task, old.size, old.method)
        new.shown |= {id: old.shown[id] for id in CHOSEN}
        return self._fill(new)

    def _load(self, file: Any) -> Updates:
        try:
            return self._fill(Form.from_config(Config.load(find_upload(file))))
        except Problem as problem:
            return {self.trouble: report.problems(self.words, problem.parts, self.words.t("train.not_loaded"))}

    def _take_config(self, data: Any) -> Updates:
        if not isinstance(data, dict):
            return gr.skip()
        try:
            return self._fill(Form.from_config(Config.read(data.get("config") or {}))) | self._show("")
        except Problem as problem:
            return {self.trouble: report.problems(self.words, problem.parts)} | self._show("")

    def _take_data(self, data: Any, *entries: Any) -> Updates:
        if not isinstance(data, dict):
            return gr.skip()
        new = self._gather(*entries)[1]
        handed = [key for key in ("train", "format", "columns") if key in data]
        for key in handed:
            new.shown[f"data.{key}"] = knobs()[f"data.{key}"].show(data[key])
        # The likeliest task that these rows can teach and the model can do, if that is not chosen already.
        told = data.get("tasks")
        fitting = [name for name in knobs()["task"].choices if isinstance(told, list) and name in told]
        possible = tasks_of(new.shown["model.name"])
        if fitting and new.task not in fitting:
            new = new.for_task(next((name for name in possible if name in fitting), new.task))
        settings = data.get("settings")
        for key, value in settings.items() if isinstance(settings, dict) else ():
            if key == "model.name":
                new = new.for_model(str(value))
            elif key in knobs():
                new.shown[key] = knobs()[key].show(value)
        # Another model alone is no reason to look away from a run.
        return self._fill(new) | (self._show("") if handed else {})

    def _save(self, *entries: Any) -> Updates:
        form = self._gather(*entries)[1]
        try:
            config = form.config()
        except Problem as problem:
            return {self.yaml: ""} | self._tell(form, problem)
        return {self.yaml: config.to_yaml(), self.yaml_name: f"{runs.slug(config.name)}.yaml"}

    def _start(self, nonce: Any, *entries: Any) -> Updates:
        return self._begin(nonce, self._gather(*entries)[1])

    def _start_first(self, nonce: Any) -> Updates:
        form = Form.fresh()
        return self._fill(form) | self._begin(nonce, form)

    def _begin(self, nonce: Any, form: Form) -> Updates:
        try:
            config = form.config()
            self._check(config)
            run = runs.create(config, token=token(nonce, config))
        except Problem as problem:
            return self._tell(form, problem)
        self.page.launcher.wake()
        return self._tell(form) | self._show(run.id) | {self.page.run: run.id}

    def _check(self, config: Config) -> None:
        """What can be seen before a worker is started: the model's files, its layers, and the data."""
        rows = None
        if shelf.is_here(config.data.train):
            # What takes long to read is refused by the worker, in the same words.
            with contextlib.suppress(shelf.StillReading):
                data = shelf.look(config.data.train, config.data.format, config.data.columns)
                _check_fit(self.words, config.task, data)
                rows = len(data.examples)
        fit.estimate(config, rows)

    def _show_form(self) -> Updates:
        return {self.nonce: secrets.token_hex(8)} | self._show("")

    def _show_run(self, watched: Any) -> Updates:
        return {key: value for key, value in self._show(watched).items() if key is not self.watched}

    def _show(self, watched: Any) -> Updates:
        is_run = find(watched) is not None
        return {
            self.watched: watched if is_run else "",
            self.setup: gr.update(visible=not is_run),
            self.run_view: gr.update(visible=is_run),
            self.welcome: gr.update(visible=not is_run and not runs.all_runs()),
        }

    def _open(self, memory: Any, watched: Any, nonce: Any) -> Updates:
        """The page was opened: the form as it was left, or the run that is under way."""
        if find(watched) is None and watched != "":
            watched = next((run.id for run in runs.all_runs() if run.state() in report.ACTIVE), "")
        form = Form.from_memory(memory)
        filled = self._fill(form)
        updates = {part: value for part, value in filled.items() if part not in self.drawn or self.drawn[part] != value}
        updates |= self._show(watched)
        updates[self.nonce] = nonce if is_nonce(nonce) else secrets.token_hex(8)
        return updates

    # --- answers ------------------------------------------------------------------------------------------------------

    def _fill(self, form: Form) -> Updates:
        """Everything that stands in the form, and what is said of it; a task that the model cannot do gives way to one that it can."""
        possible = tasks_of(form.shown["model.name"])
        moved_from = None
        if form.task not in possible:
            moved_from, form = form.task, form.for_task(possible[0])
        updates: Updates = {box: form.shown[id] for id, box in self.boxes.items()}
        # Uploads may have come since the page was drawn; without its choice a path would stand there bare.
        updates[self.boxes["data.train"]] = gr.update(
            choices=_data_choices(self.words, form.shown["data.train"]), value=form.shown["data.train"]
        )
        updates |= {group: gr.update(visible=name == form.method) for name, group in self.method_groups.items()}
        updates |= {self.size: form.size, self.method: form.method}
        updates |= self._tell(form)
        titles = [(self.words.text(objectives.find(name).title), name) for name in possible]
        updates[self.boxes["task"]] = gr.update(choices=titles, value=form.task)
        if moved_from is not None:
            was = self.words.text(objectives.find(moved_from).title)
            said = self.words.t("train.moved", model=short_name(form.shown["model.name"]), task=was)
            updates[self.notes["task"]] += f"<p class='moved' role='status'>{report.escape(said)}</p>"
        return updates

    def _tell(self, form: Form, problem: Problem | None = None, **more: float) -> Updates:
        """What is said of the form as it stands: marks, problems beside their fields, the card, the command line."""
        updates: Updates = {self.memory: form.to_memory(), self.clock: gr.Timer(active=False)}
        try:
            config = form.config()
            updates[self.command] = form.command()
            updates[self.sum], found, waits = _sum(self.words, config, **more)
            updates[self.clock] = gr.Timer(active=waits)
            problem = problem or (Problem.join(found) if found else None)
        except Problem as found_in_form:
            problem = problem or found_in_form
        placed, others = place(problem, form) if problem else ({}, [])
        # What belongs to other methods is out of sight, and is drawn when it comes into it.
        updates |= {
            note: _mark(self.words, form, knobs()[id], placed.get(id, []))
            for id, note in self.notes.items()
            if knobs()[id].method in (None, form.method)
        }
        hidden = [part for id, parts in placed.items() if id not in self.notes for part in parts]
        said = [*others, *hidden]
        updates[self.trouble] = report.problems(self.words, said) if said else _pointer(self.words, placed)
        updates[self.size_note] = f"<p>{report.escape(self.words.text(presets.sizes()[form.size].about))}</p>"
        return updates


def _one_of(value: Any, names: Iterable[str], otherwise: str) -> str:
    """The value if it is one of these names: what a page sends may be anything."""
    return value if isinstance(value, str) and value in names else otherwise


def _data_choices(words: Language, chosen: Any = "") -> list[tuple[str, str]]:
    built_in = [(words.t("train.sample", title=words.text(title)), source) for source, title in shelf.samples().items()]
    several = [(short_name(chosen), chosen)] if isinstance(chosen, str) and len(sources.pieces(chosen)) > 1 else []
    return several + built_in + [(short_name(path), str(path)) for path in shelf.uploads()]


def _picker(words: Language) -> str:
    """All methods by family, each with what it is for; folded into the one that is chosen."""

    def entry(name: str, method: type[methods.Method]) -> str:
        says = (
            f"<b>{report.escape(words.text(method.title))}</b><small>{report.escape(words.text(method.about))}</small>"
        )
        return f"<label><input type='radio' name='method' value='{report.escape(name)}'><span>{says}</span></label>"

    groups = []
    for family in methods.FAMILIES:
        entries = [entry(name, one) for name, one in methods.catalogue().items() if one.family == family]
        if entries:
            title = report.escape(words.text(family))
            groups.append(f"<fieldset><legend>{title}</legend><div>{''.join(entries)}</div></fieldset>")
    label = report.escape(words.t("train.method"))
    return (
        f"<p class='picker-label' id='picker-label'>{label}</p>"
        f"<details class='picker'><summary aria-labelledby='picker-label picker-chosen'><span id='picker-chosen'></span></summary>"
        f"<div class='picker-list'>{''.join(groups)}</div></details>"
    )


def _check_fit(words: Language, task: str, data: Dataset) -> None:
    """Raise a Problem when none of the first rows is what the task learns from; it names the tasks that can."""
    objective, first = objectives.find(task), data.examples[:_LOOKED_AT]
    if not first or any(objective.fits(example) for example in first):
        return
    if first[0].judged:
        raise _named_format(words, objectives.refuse(task, first[0]))
    able = [words.text(objectives.find(name).title) for name in objectives.fitting(first[0])]
    raise Problem(
        "The task {task} cannot learn from these rows.",
        "They suit {tasks}." if able else "",
        "Choose another task or other data, or say under Data which column plays which part.",
        field="task",
        task=words.text(objective.title),
        tasks=" · ".join(able),
    )


def _named_format(words: Language, problem: Problem) -> Problem:
    """The problem with a format's title where its name stands."""
    title = words.text(formats.find(problem.facts["format"]).title)
    return Problem(
        problem.what, problem.there_is, problem.to_do, field=problem.field, **problem.facts | {"format": title}
    )


def _mark(words: Language, form: Form, knob: Knob, wrong: list[Problem]) -> str:
    """Under a knob: what is wrong with it, where its value came from, and the way back."""
    if knob.method not in (None, form.method):
        return ""
    told = "".join(
        f"<p class='wrong' role='alert'>{report.escape(words.explain(name_setting(words, part, knob)))}</p>"
        for part in wrong
    )
    if knob.id in (*CHOSEN, "name"):
        return told
    base = basis(form.task, form.size, form.method)
    origin, why = base.origins[knob.id]
    if knob.id in form.changed():
        preset = knob.show(base.values[knob.id])
        shown = (
            words.t("train.nothing")
            if preset in ("", None)
            else words.t("common.on")
            if preset is True
            else words.t("common.off")
            if preset is False
            else f"{preset}"
        )
        button = f"<button type='button' data-reset='{report.escape(knob.id)}'>{report.escape(words.t('train.reset'))}</button>"
        return (
            told
            + f"<p><span class='mark you'>{report.escape(words.t('train.from_you'))}</span> {report.escape(words.t('train.was', value=shown))} {button}</p>"
        )
    mark = f"<span class='mark {origin}'>{report.escape(words.t(f'train.from_{origin}'))}</span>"
    return told + f"<p>{mark} {report.escape(words.text(why))}</p>"


def _pointer(words: Language, placed: dict[str, list[Problem]]) -> str:
    """Which fields have something wrong: they may be folded away."""
    if not placed:
        return ""
    names = ", ".join(words.text(knobs()[id].title) for id in placed)
    return f"<div class='note bad'>{report.escape(words.t('train.see_fields', names=names))}</div>"


def _sum(words: Language, config: Config, **more: float) -> tuple[str, list[Problem], bool]:
    """What the training will be, as HTML, with the rows that are odd; what has to be mended before it can start; and
    whether more can be said once the rows are read."""
    rows, odd, wrong, wait = None, [], [], ""
    if shelf.is_here(config.data.train):
        try:
            data = shelf.look(config.data.train, config.data.format, config.data.columns, **more)
            rows, odd = len(data.examples), data.problems()
            _check_fit(words, config.task, data)
        except shelf.StillReading as problem:
            wait = f"<p class='quiet' role='status'>{report.escape(words.text(problem.what, **problem.facts))}</p>"
        except Problem as problem:
            wrong += problem.parts
    try:
        facts = report.facts(_sum_rows(words, config, fit.estimate(config, rows)))
    except Problem as problem:
        facts = ""
        wrong += problem.parts
    return facts + wait + report.problems(words, odd[:5], tone="warn"), wrong, bool(wait)


def _sum_rows(words: Language, config: Config, sum: fit.Estimate) -> list[tuple[str, str]]:
    later = words.t("train.at_start")
    trained = later
    if sum.trainable is not None and sum.share is not None:
        trained = words.t(
            "train.trained_of",
            some=words.number(sum.trainable),
            all=words.number(sum.parameters),
            share=words.share(sum.share),
        )
    rows = later if sum.rows is None else words.number(sum.rows)
    if sum.eval_rows:
        rows = words.t("train.rows_aside", rows=rows, aside=words.number(sum.eval_rows))
    batch = sum.batch_size * config.train.gradient_accumulation
    return [
        (words.t("train.sum_model"), short_name(config.model.name)),
        (words.t("train.sum_data"), re.sub(r"^sample:", "", short_name(config.data.train))),
        (words.t("train.sum_method"), words.text(type(config.method).title)),  # type: ignore[attr-defined]
        (words.t("train.sum_trained"), trained),
        (words.t("train.sum_rows"), rows),
        (words.t("train.sum_batch"), words.t("train.rows_a_step", rows=batch)),
        (words.t("train.sum_steps"), later if sum.steps is None else words.number(sum.steps)),
    ]
