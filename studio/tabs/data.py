"""Data: which rows are there, are they read as they are meant, and what will the model see?"""

from __future__ import annotations

import json
import random
import re
import secrets
from collections import Counter
from pathlib import PurePath
from typing import Any

import gradio as gr

from core import dataset, formats, objectives, proposals, sources
from core.dataset import Dataset
from core.formats import Example, Message
from core.problem import Problem
from core.proposals import Proposal
from studio import report, shelf
from studio.form import short_name
from studio.inspector import Inspector
from studio.language import Language
from studio.panel import Updates
from studio.predictions import mark_place
from studio.tabs import Page
from studio.upload import find_upload

ORDER = 10
NAME = "data.title"

_QUICK = {"queue": False, "show_progress": "hidden"}
_SLOTS = 6
_FIRST = "sample:style"
_LONGEST_TURN = 4000
_MOST_TURNS = 60
_MOST_FILES = 50
_LONGEST_SOURCE = 10_000
_CLICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-way], button[data-away]');
  if (button) trigger('select', {...button.dataset});
});"""


def build(page: Page) -> None:
    """On the left where the rows come from and how they are read, on the right a row as the model will see it."""
    _Data(page)


class _Data:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        # What is looked at: {"source", "format", "columns", "row"}; kept in the browser.
        self.view = gr.BrowserState(
            {"source": _FIRST, "format": "auto", "columns": {}, "row": 0}, storage_key="atelier.data", secret="atelier"
        )
        gr.HTML(f"<h2>{report.escape(self.words.t('data.question'))}</h2>")
        with gr.Row(elem_classes=["split"], equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._draw_source()
            with gr.Column(scale=6, min_width=320):
                self._draw_preview()
        Inspector(page, self.view, _looked_at)
        self._listen()

    def _draw_source(self) -> None:
        words = self.words
        self.file = gr.File(label=words.t("data.drop"), file_count="multiple", height=120, elem_classes=["drop"])
        self.pick = gr.Dropdown(
            _choices(words, _FIRST),
            value=_FIRST,
            allow_custom_value=True,
            label=words.t("data.pick"),
            info=words.t("data.pick_help"),
            interactive=True,
        )
        self.listed = gr.HTML(js_on_load=_CLICK, elem_id="data-files")
        self.more = gr.UploadButton(
            words.t("data.add"), file_count="multiple", size="sm", visible=False, elem_id="data-more"
        )
        self.left_out = gr.HTML()
        self.wait = gr.HTML(elem_id="data-wait")
        self.stop = gr.Button(
            words.t("data.stop_reading"), variant="stop", size="sm", visible=False, elem_id="data-stop"
        )
        # Ticks only while rows are being read.
        self.clock = gr.Timer(1, active=False)
        self.trouble = gr.HTML()
        self.recognised = gr.HTML()
        self.ways = gr.HTML(js_on_load=_CLICK, elem_id="data-ways")
        with gr.Accordion(words.t("data.reading"), open=False, elem_classes=["group"]) as self.reading:
            listed = [
                (words.t("data.auto"), "auto"),
                *((words.text(one.title), name) for name, one in formats.formats().items()),
            ]
            self.format = gr.Dropdown(
                listed, value="auto", label=words.t("data.format"), interactive=True, filterable=False
            )
            self.format_about = gr.HTML()
            with gr.Row(elem_classes=["grid"]):
                self.columns = [
                    gr.Dropdown([], visible=False, interactive=True, allow_custom_value=True, min_width=160)
                    for _ in range(_SLOTS)
                ]
        self.use = gr.Button(words.t("data.use"), variant="primary", size="lg")

    def _draw_preview(self) -> None:
        words = self.words
        with gr.Column(elem_classes=["card"]):
            self.preview = gr.HTML(elem_classes=["preview"])
            with gr.Row(elem_classes=["actions"]):
                self.first = gr.Button(words.t("data.first"), size="sm", min_width=70)
                self.back = gr.Button(words.t("data.back"), size="sm", min_width=70)
                self.next = gr.Button(words.t("data.next"), size="sm", min_width=70)
                self.random = gr.Button(words.t("data.random"), size="sm", min_width=70)
        self.findings = gr.HTML()

    @property
    def _shown(self) -> list[Any]:
        return [
            self.view,
            self.pick,
            self.listed,
            self.more,
            self.left_out,
            self.wait,
            self.stop,
            self.clock,
            self.trouble,
            self.recognised,
            self.ways,
            self.format,
            self.format_about,
            self.reading,
            *self.columns,
            self.preview,
            self.findings,
            self.use,
        ]

    def _listen(self) -> None:
        slow = {
            "queue": False,
            "show_progress": "minimal",
            "show_progress_on": [self.preview],
            "trigger_mode": "always_last",
        }
        self.file.upload(self._take_file, inputs=[self.file], outputs=[self.file, *self._shown], **slow)
        self.more.upload(self._add_files, inputs=[self.view, self.more], outputs=self._shown, **slow)
        self.listed.select(self._take_away, inputs=[self.view], outputs=self._shown, **slow)
        self.pick.input(self._pick, inputs=[self.pick], outputs=self._shown, **slow)
        self.format.input(self._choose_format, inputs=[self.view, self.format], outputs=self._shown, **slow)
        for slot in self.columns:
            slot.input(self._choose_columns, inputs=[self.view, *self.columns], outputs=self._shown, **slow)
        for button, move in ((self.first, "first"), (self.back, "back"), (self.next, "next"), (self.random, "random")):
            button.click(
                lambda view, move=move: self._move(view, move),
                inputs=[self.view],
                outputs=[self.view, self.preview],
                **_QUICK,
            )
        # Gradio tells of a changed State by its queue alone.
        self.use.click(self._use, inputs=[self.view], outputs=[self.page.data, self.page.tabs], show_progress="hidden")
        self.ways.select(
            self._take_way, inputs=[self.view], outputs=[*self._shown, self.page.data], show_progress="hidden"
        )
        self.page.blocks.load(self._open, inputs=[self.view], outputs=self._shown, **slow)
        self.clock.tick(self._look_again, inputs=[self.view], outputs=self._shown, **_QUICK)
        self.stop.click(self._stop, inputs=[self.view], outputs=self._shown, **_QUICK)

    # --- handlers -----------------------------------------------------------------------------------------------------

    def _open(self, view: Any) -> Updates:
        source, format, columns, row = _read(view)
        if not shelf.is_here(source):
            # A page that is opened asks no other machine.
            source, format, columns, row = _FIRST, "auto", {}, 0
        return self._look(source, format, columns, row)

    def _take_file(self, files: Any) -> Updates:
        return {self.file: None} | self._take(files, [])

    def _add_files(self, view: Any, files: Any) -> Updates:
        source, format, columns, _ = _read(view)
        return self._take(files, sources.pieces(source), format, columns)

    def _take(self, files: Any, there: list[str], format: str = "auto", columns: Any = None) -> Updates:
        """Look at these files with those that are there; what cannot be read is named and left out."""
        kept, wrong = [], []
        files = files if isinstance(files, list) else [files]
        for place, file in enumerate(files):
            name, copy = PurePath(str(file or "")).name[:100], None
            try:
                if place >= _MOST_FILES or len(";".join([*there, *kept])) > _LONGEST_SOURCE - 500:
                    raise Problem("These are too many files at once.", to_do="Put them into a folder, and name that.")
                copy = dataset.import_file(find_upload(file), shelf.folder())
                # One that is alone is shown with what is wrong; of several the good ones shall not wait for the bad.
                alone = len(files) + len(there) == 1
                problem = None if alone else shelf.glance(str(copy), format, columns).problem
                if problem is not None and not _is_mendable(problem):
                    raise problem
                kept.append(str(copy))
            except Problem as problem:
                wrong.append((name, problem))
                if copy is not None:
                    copy.unlink(missing_ok=True)
        said = _left_out(self.words, wrong)
        if not kept:
            return {self.left_out: said}
        return self._look(";".join([*there, *kept]), format, columns) | {self.left_out: said}

    def _take_away(self, view: Any, event: gr.EventData) -> Updates:
        """One of several files was taken away; it stays among the uploads."""
        source, format, columns, row = _read(view)
        told = event._data if isinstance(event._data, dict) else {}
        files, number = sources.pieces(source), told.get("away")
        if not isinstance(number, str) or not re.fullmatch(r"[0-9]{1,3}", number) or not int(number) < len(files) > 1:
            return gr.skip()
        del files[int(number)]
        return self._look(";".join(files), format, columns, row)

    def _pick(self, source: Any) -> Updates:
        try:
            return self._look(shelf.check_text(source, _LONGEST_SOURCE) or _FIRST)
        except Problem as problem:
            return {self.trouble: report.problems(self.words, problem.parts)}

    def _choose_format(self, view: Any, format: Any) -> Updates:
        source, _, _, _ = _read(view)
        return self._look(source, format if isinstance(format, str) else "auto")

    def _choose_columns(self, view: Any, *chosen: Any) -> Updates:
        source, format, columns, row = _read(view)
        data = shelf.remembered(source, format, columns)
        named = format if format != "auto" else data.format if data else ""
        if named not in formats.formats():
            return gr.skip()
        roles = _roles(named)
        said = {role: column for role, column in zip(roles, chosen, strict=False) if isinstance(column, str) and column}
        return self._look(source, named, said, row)

    def _move(self, view: Any, move: str) -> Updates:
        source, format, columns, row = _read(view)
        data = shelf.remembered(source, format, columns)
        if data is None or not data.examples:
            return gr.skip()
        count = len(data.examples)
        row = {"first": 0, "back": row - 1, "next": row + 1, "random": random.randrange(count)}[move] % count
        return {self.view: _view(source, format, columns, row), self.preview: _conversation(self.words, data, row)}

    def _use(self, view: Any) -> Updates:
        source, format, columns, _ = _read(view)
        data = shelf.remembered(source, format, columns)
        if data is None or data.examples[0].judged:
            return gr.skip()
        return {self.page.data: _handed(source, format, columns, data), self.page.tabs: self.page.go("train")}

    def _take_way(self, view: Any, event: gr.EventData) -> Updates:
        """A way to read the rows was pressed: they are read so, here and in Train."""
        source, _, _, row = _read(view)
        told = event._data if isinstance(event._data, dict) else {}
        try:
            way = json.loads(told.get("way", ""))
        except (TypeError, ValueError, RecursionError):
            return gr.skip()
        # What the button said, and no other: the list may have changed since it was drawn.
        _, format, columns, _ = _read(way)
        if format == "auto":
            return gr.skip()
        updates = self._look(source, format, columns, row)
        data = shelf.remembered(source, format, columns)
        return updates | ({self.page.data: _handed(source, format, columns, data)} if data else {})

    def _look_again(self, view: Any) -> Updates:
        """The rows may have been read meanwhile."""
        return self._look(*_read(view), patience=0)

    def _stop(self, view: Any) -> Updates:
        source, format, columns, _ = _read(view)
        shelf.stop(source, format, columns)
        return self._look(_FIRST)

    def _look(
        self, source: str, format: str = "auto", columns: dict[str, str] | None = None, row: int = 0, **more: float
    ) -> Updates:
        columns = columns or {}
        updates: Updates = {
            self.wait: "",
            self.stop: gr.update(visible=False),
            self.clock: gr.Timer(active=False),
            self.view: _view(source, format, columns, row),
            self.pick: gr.update(choices=_choices(self.words, source), value=source),
            self.listed: _files(self.words, source, format, columns),
            self.more: gr.update(visible=not source.startswith("sample:") and shelf.is_here(source)),
            self.left_out: "",
            self.format: format if format in formats.formats() else "auto",
        }
        try:
            data = shelf.look(source, format, columns, **more)
        except shelf.StillReading as problem:
            return updates | self._waiting(problem)
        except Problem as problem:
            return updates | self._refused(source, format, columns, problem)
        row %= len(data.examples)
        return updates | {
            self.trouble: "",
            self.recognised: _recognised(self.words, data, source),
            self.ways: _judged(self.words, data, columns),
            self.format_about: f"<p class='quiet'>{report.escape(self.words.text(data.recognition.format.about))}</p>",
            **self._slots(data.format, data.recognition.columns, _all_columns(data)),
            self.preview: _conversation(self.words, data, row),
            self.findings: _findings(self.words, data),
            self.use: gr.update(interactive=not data.examples[0].judged),
        }

    def _waiting(self, problem: Problem) -> Updates:
        words = self.words
        said = report.escape(words.text(problem.what, **problem.facts))
        return {
            self.wait: f"<p class='quiet' role='status'>{said}</p><div class='bar busy'><span></span></div>",
            self.stop: gr.update(visible=True),
            self.clock: gr.Timer(active=True),
            self.trouble: "",
            self.recognised: "",
            self.ways: "",
            self.preview: f"<p class='quiet center'>{report.escape(words.t('data.wait'))}</p>",
            self.findings: "",
            self.use: gr.update(interactive=False),
        }

    def _refused(self, source: str, format: str, columns: dict[str, str], problem: Problem) -> Updates:
        """What is wrong, with the columns still at hand when they are what has to be changed."""
        there: list[str] = []
        unknown = any(part.field == "data.columns" for part in problem.parts) and not columns
        ways = self._offer(source, format, columns, problem)
        try:
            if _is_mendable(problem):
                there = list(dataset.read_rows(source, limit=formats.SAMPLE).columns)
        except Problem:
            pass
        if unknown and format == "auto" and there:
            # Nothing fits by its names: two columns are most often a question and its answer.
            format = "completion" if len(there) > 1 else "text"
        about = formats.formats().get(format)
        return {
            self.view: _view(source, format, columns, 0),
            self.format: format,
            self.reading: gr.update(open=bool(there)),
            self.trouble: report.problems(self.words, problem.parts),
            self.recognised: "",
            self.ways: ways,
            self.format_about: f"<p class='quiet'>{report.escape(self.words.text(about.about))}</p>" if about else "",
            **self._slots(format if there else "", columns, there),
            self.preview: f"<p class='quiet center'>{report.escape(self.words.t('data.no_preview'))}</p>",
            self.findings: "",
            self.use: gr.update(interactive=False),
        }

    def _offer(self, source: str, format: str, columns: dict[str, str], problem: Problem) -> str:
        """What the rows could be instead, a button each."""
        ways = _find_ways(source, format, columns) if _is_mendable(problem) else []
        if not ways:
            return ""
        buttons = "".join(_way(way, _say(self.words, way)) for way in ways)
        return f"<div class='note'><p>{report.escape(self.words.t('data.ways'))}</p><div class='ways'>{buttons}</div></div>"

    def _slots(self, format: str, chosen: Any, there: list[str]) -> Updates:
        roles = _roles(format) if format in formats.formats() else []
        needs = formats.formats()[format].needs if roles else {}
        updates: Updates = {}
        for place, slot in enumerate(self.columns):
            if place >= len(roles):
                updates[slot] = gr.update(visible=False, choices=[], value=None)
                continue
            role = roles[place]
            choices = [(column, column) for column in there]
            if role not in needs:
                choices.insert(0, (self.words.t("data.none"), ""))
            updates[slot] = gr.update(
                visible=True,
                label=self.words.t("data.column_for", role=role),
                choices=choices,
                value=chosen.get(role) or None,
            )
        return updates


def _view(source: str, format: str, columns: dict[str, str], row: int) -> dict[str, Any]:
    return {"source": source, "format": format, "columns": columns, "row": row}


def _read(view: Any) -> tuple[str, str, dict[str, str], int]:
    """What is looked at, as the page says it; nonsense becomes the beginning."""
    view = view if isinstance(view, dict) else {}
    source, format, columns, row = (view.get(name) for name in ("source", "format", "columns", "row"))
    source = (
        source
        if isinstance(source, str) and source and len(source) <= _LONGEST_SOURCE and "\0" not in source
        else _FIRST
    )
    format = format if isinstance(format, str) and format in formats.formats() else "auto"
    pairs = columns.items() if isinstance(columns, dict) else ()
    columns = {role: column for role, column in pairs if isinstance(role, str) and isinstance(column, str)}
    return (
        source,
        format,
        columns,
        row if isinstance(row, int) and not isinstance(row, bool) and abs(row) < 2**40 else 0,
    )


def _looked_at(view: Any) -> tuple[Dataset | None, dict[str, Any]]:
    """The data set that is looked at, if it could be read, and the settings that name it."""
    source, format, columns, _ = _read(view)
    return shelf.remembered(source, format, columns), {
        "data.train": source,
        "data.format": format,
        "data.columns": columns,
    }


def _handed(source: str, format: str, columns: dict[str, str], data: Dataset) -> dict[str, Any]:
    """What Train is given."""
    tasks = list(objectives.fitting(data.examples[0]))
    return {"train": source, "format": format, "columns": columns, "tasks": tasks, "press": secrets.token_hex(4)}


def _find_ways(source: str, format: str, columns: dict[str, str]) -> list[Proposal]:
    """How rows that could not be read may be meant."""
    try:
        rows = dataset.read_rows(source, limit=formats.SAMPLE) if shelf.is_here(source) else []
    except Problem:
        return []
    return proposals.propose(rows, format, columns)


def _way(way: Proposal, says: str) -> str:
    told = report.escape(json.dumps({"format": way.format, "columns": dict(way.columns)}))
    return f"<button type='button' class='way' data-way='{told}'>{report.escape(says)}</button>"


def _say(words: Language, way: Proposal) -> str:
    mapped = ", ".join(f"{role} = {column}" for role, column in way.columns.items())
    return words.t("data.way", format=words.text(formats.find(way.format).title), columns=mapped[:120])


def _judged(words: Language, data: Dataset, columns: dict[str, str]) -> str:
    """That rows which judge answers can only be looked at, and what can be trained on instead."""
    example = data.examples[0]
    if not example.judged:
        return ""
    problem = objectives.refuse("chat", example)
    said = f"{words.text(problem.what)} {words.text(problem.there_is)}"
    alone = "good" if example.rejected is None else "chosen"
    button = _way(Proposal(alone, columns), words.t(f"data.way_{alone}"))
    return f"<div class='note warn' role='status'><p>{report.escape(said)}</p><div class='ways'>{button}</div></div>"


def _roles(format: str) -> list[str]:
    one = formats.find(format)
    return [*one.needs, *one.may][:_SLOTS]


def _all_columns(data: Dataset) -> list[str]:
    return list(dict.fromkeys([*data.recognition.columns.values(), *data.recognition.unused]))


def _choices(words: Language, source: str) -> list[tuple[str, str]]:
    built_in = [(words.t("train.sample", title=words.text(title)), source) for source, title in shelf.samples().items()]
    several = [(short_name(source), source)] if len(sources.pieces(source)) > 1 else []
    return several + built_in + [(short_name(path), str(path)) for path in shelf.uploads()]


def _files(words: Language, source: str, format: str, columns: dict[str, str]) -> str:
    """Several files that are read as one, each with its format and its rows, and a way to take it away."""
    pieces = sources.pieces(source)
    if len(pieces) < 2 or not shelf.is_here(source):
        return ""
    head = "".join(
        f"<th scope='col'{' class=number' if name == 'rows' else ''}>{report.escape(words.t(f'data.file_{name}'))}</th>"
        for name in ("name", "format", "rows")
    )
    lines = []
    for number, piece in enumerate(pieces):
        seen, name = shelf.glance(piece, format, columns), short_name(piece)
        what = words.text(formats.find(seen.format).title) if seen.format else ""
        if seen.problem is not None:
            what = words.text(seen.problem.parts[0].what, **seen.problem.parts[0].facts)
        label = report.escape(words.t("data.take_away", name=name))
        button = (
            f"<button type='button' class='away' data-away='{number}' aria-label='{label}' title='{label}'>×</button>"
        )
        tone = " class='wrong'" if seen.problem is not None else ""
        rows = f"{seen.rows:,}" + ("+" if seen.more else "") if seen.rows else "–"
        lines.append(
            f"<tr><td>{report.escape(name)}</td><td{tone}>{report.escape(what)}</td><td class='number'>{rows}</td><td>{button}</td></tr>"
        )
    table = (
        f"<table class='settings files'><thead><tr>{head}<th></th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
    return f"<div class='scroll'>{table}</div>"


def _is_mendable(problem: Problem) -> bool:
    """Whether another format or other columns may help."""
    return any(part.field in ("data.columns", "data.format") for part in problem.parts)


def _left_out(words: Language, wrong: list[tuple[str, Problem]]) -> str:
    """Files that were not taken, each with its reason."""
    items = "".join(
        f"<li>{f'<b>{report.escape(name)}</b> ' if name else ''}{report.escape(words.explain(problem))}</li>"
        for name, problem in wrong
    )
    head = f"<p class='strong'>{report.escape(words.t('data.not_taken'))}</p>"
    return f"<div class='note bad' role='alert'>{head}<ul>{items}</ul></div>" if items else ""


def _recognised(words: Language, data: Dataset, source: str) -> str:
    title = words.text(data.recognition.format.title)
    why = words.text(data.recognition.because, **data.recognition.columns)
    return (
        f"<div class='note good'><p class='strong'>{report.escape(words.t('data.recognised', name=short_name(source), format=title))}</p>"
        f"<p>{report.escape(why)}</p></div>"
    )


def _conversation(words: Language, data: Dataset, row: int) -> str:
    """A row as the model will see it; what it learns from is marked."""
    example = data.examples[row]
    place = words.t("data.row_of", row=f"{data.numbers[row]:,}", all=f"{data.rows:,}")
    head = f"<div class='preview-head'><h3>{report.escape(words.t('data.preview'))}</h3><span class='when'>{report.escape(place)}</span></div>"
    return head + "".join(_turns(words, example))


def _turns(words: Language, example: Example) -> list[str]:
    if example.judged:
        return _compared(words, example)
    if example.labels is not None:
        return _labelled(words, example)
    if example.question is not None:
        return _asked(words, example)
    if example.source is not None and example.target is not None:
        return [
            _turn(words.t("data.source"), _cut(words, example.source), "user"),
            _turn(words.t("data.target"), _cut(words, example.target), "assistant", words.t("data.learned")),
        ]
    if example.text is not None:
        return [_turn(words.t("data.learned_text"), _cut(words, example.text), "text learned")]
    return [_spoken(words, message, learned=message.role == "assistant") for message in example.messages[:_MOST_TURNS]]


def _spoken(words: Language, message: Message, learned: bool = False) -> str:
    who = words.t(f"data.role_{message.role}")
    return _turn(who, _cut(words, message.content), message.role, words.t("data.learned") if learned else "")


def _compared(words: Language, example: Example) -> list[str]:
    """What was asked, and the answers to it side by side, or the one with what was thought of it; nothing is learned."""
    said = _said(example)
    if example.rejected is None:
        kind = "good" if example.good else "bad"
        shown = [_spoken(words, message) for message in said[:-1]]
        return [*shown[-_MOST_TURNS:], _answer(words, said[-1:], kind)]
    other = _said(example.rejected)
    alike = next((n for n, (left, right) in enumerate(zip(said, other, strict=False)) if left != right), None)
    # An answer that is the beginning of the other, or the same, is shown all the same.
    alike = min(len(said), len(other)) - 1 if alike is None else alike
    answers = _answer(words, said[alike:], "chosen") + _answer(words, other[alike:], "rejected")
    return [
        *(_spoken(words, message) for message in said[:alike][-_MOST_TURNS:]),
        f"<div class='versus'>{answers}</div>",
    ]


def _said(example: Example) -> tuple[Message, ...]:
    return example.messages or (Message("assistant", example.text or ""),)


def _answer(words: Language, turns: tuple[Message, ...], kind: str) -> str:
    """One of the answers of a judged row; more than one turn where the answers part earlier."""
    first = turns[0].role == "assistant"
    head = report.escape(words.t(f"data.{kind}_answer"))
    says = _cut(words, turns[0].content) if first else ""
    shown = f"<div class='turn answered {kind}'><span class='who'>{head}</span><p>{says}</p></div>"
    return f"<div>{shown}{''.join(_spoken(words, turn) for turn in turns[first:][:_MOST_TURNS])}</div>"


def _labelled(words: Language, example: Example) -> list[str]:
    """A text and what it is called."""
    names = "".join(f"<span class='label-chip'>{report.escape(label)}</span>" for label in example.labels or ())
    names = names or report.escape(words.t("data.no_label"))
    several = words.t("data.labels") if example.several else words.t("data.label")
    return [
        _turn(words.t("data.text"), _cut(words, example.text or ""), "user"),
        _turn(several, names, "assistant", words.t("data.learned")),
    ]


def _asked(words: Language, example: Example) -> list[str]:
    """A question, the text that it is about with the answer marked in it, and the answers."""
    turns, answers = [], example.answers or ()
    if example.context is not None:
        start = answers[0].start if answers else None
        place = (-1, -1) if start is None else (start, start + len(answers[0].text))
        turns.append(_turn(words.t("data.text"), mark_place(example.context, *place), "wide"))
    turns.append(_turn(words.t("data.asked"), _cut(words, example.question or ""), "user"))
    says = _cut(words, answers[0].text) if answers else f"<em>{report.escape(words.t('data.no_answer'))}</em>"
    also = list(dict.fromkeys(answer.text for answer in answers[1:] if answer.text != answers[0].text))
    if also:
        says += f"<br><small>{report.escape(words.t('data.also_right', answers=' · '.join(also)[:400]))}</small>"
    return [*turns, _turn(words.t("data.answer"), says, "assistant", words.t("data.learned"))]


def _turn(who: str, says: str, kind: str, learned: str = "") -> str:
    """One part of a row: whose it is, and what stands there, which is HTML already; `learned` is the word for it."""
    who = report.escape(f"{who} · {learned}" if learned else who)
    return f"<div class='turn {kind}{' learned' if learned else ''}'><span class='who'>{who}</span><p>{says}</p></div>"


def _cut(words: Language, text: str) -> str:
    more = words.t("data.more", count=f"{len(text) - _LONGEST_TURN:,}") if len(text) > _LONGEST_TURN else ""
    return report.escape(text[:_LONGEST_TURN]) + (f" <em>{report.escape(more)}</em>" if more else "")


def _findings(words: Language, data: Dataset) -> str:
    """How many rows, how long, and what is wrong with which."""
    some = data.examples[:5000]
    # What is read at once, such as a question about a text, has no turns to count.
    turns = [len(example.messages) for example in some if example.messages and example.pair() is None]
    lengths = sorted(map(_count_characters, some))
    rows = [(words.t("data.rows"), f"{data.rows:,}")]
    if data.examples[0].judged:
        rows.append((words.t("data.read_rows"), f"{len(data.examples):,}"))
    else:
        rows.append((words.t("data.good_rows"), f"{len(data.examples):,}"))
    if left_out := data.rows - len(data.examples) - len(data.bad):
        rows.append((words.t("data.left_out"), f"{left_out:,}"))
    if data.examples[0].good is not None:
        good = sum(bool(example.good) for example in data.examples)
        rows.append((words.t("data.judged_rows"), f"{good:,} · {len(data.examples) - good:,}"))
    if turns:
        rows.append((words.t("data.turns"), f"{sum(turns) / len(turns):.1f}"))
    labelled = data.examples if data.examples[0].labels is not None else ()
    if counts := Counter(label for example in labelled for label in example.labels or ()):
        most, least = max(counts.values()), min(counts.values())
        rows.append((words.t("data.labels"), f"{len(counts):,}"))
        rows.append((words.t("data.rows_a_label"), words.t("data.from_to", least=f"{least:,}", most=f"{most:,}")))
    rows.append((words.t("data.middle_length"), words.t("data.characters", count=f"{lengths[len(lengths) // 2]:,}")))
    rows.append((words.t("data.longest"), words.t("data.characters", count=f"{lengths[-1]:,}")))
    found = data.problems()
    fine = "" if found else f"<p class='quiet'>{report.escape(words.t('data.nothing_odd'))}</p>"
    odd = report.problems(words, found[:8], words.t("data.odd"), tone="warn")
    return f"<div class='card'><h3>{report.escape(words.t('data.numbers'))}</h3>{report.facts(rows)}{fine}</div>{odd}"


def _count_characters(example: Example) -> int:
    if example.messages:
        return sum(len(message.content) for message in example.messages)
    parts = (example.text, example.context, example.question, example.source, example.target)
    return sum(len(part) for part in parts if part)
