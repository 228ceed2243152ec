"""A section of the Data page: all rows as the model will read them, in numbers, with what is wrong, and token by token."""

from __future__ import annotations

import json
import random
import re
import secrets
from collections.abc import Callable
from typing import Any

import gradio as gr

from core import objectives
from core.config import Config
from core.dataset import Dataset
from core.findings import KINDS, Finding
from core.problem import Problem
from studio import charts, inspections, report, shelf
from studio.form import Form, knobs, short_name
from studio.inspections import Inspection, Token
from studio.panel import Updates
from studio.tabs import Page

_QUICK = {"queue": False, "show_progress": "hidden"}
_MOST_TOKENS = 3000
_ROWS_NAMED = 8
_CLICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-row], button[data-mend]');
  if (!button) return;
  trigger('select', {...button.dataset});
  // The row stands further down.
  if (button.dataset.row) document.querySelector('#inspect-row')?.scrollIntoView({block: 'center', behavior: 'smooth'});
});"""
_FOLLOW = f"(form) => form?.shown?.['model.name'] ?? {json.dumps(knobs()['model.name'].default)}"

Source = Callable[[Any], tuple[Dataset | None, dict[str, Any]]]


class Inspector:
    """Draws itself where it is made.

    Args:
        view: the component that says what is looked at.
        read: what `view` holds -> the data set, if it was read, and its settings ("data.train": ..., ...).
    """

    def __init__(self, page: Page, view: gr.BrowserState, read: Source):
        self.page, self.words, self.view, self.read = page, page.words, view, read
        words = self.words
        self.key = gr.State("")
        self.place = gr.State(0)
        self.seen = gr.State("")
        self.of = gr.State("")
        with gr.Column(elem_classes=["card", "inspector"]):
            gr.HTML(
                f"<h3>{report.escape(words.t('inspector.title'))}</h3><p class='quiet'>{report.escape(words.t('inspector.about'))}</p>"
            )
            with gr.Row(elem_classes=["actions"]):
                self.model = gr.Dropdown(
                    shelf.model_choices(words), value=knobs()["model.name"].default, allow_custom_value=True,
                    label=words.text(knobs()["model.name"].title), info=words.t("inspector.model_help"), interactive=True,
                    elem_id="inspect-model", min_width=240,
                )  # fmt: skip
                self.look = gr.Button(
                    words.t("inspector.look"), variant="primary", elem_id="inspect", min_width=180, scale=0
                )
                self.stop = gr.Button(
                    words.t("inspector.stop"), variant="stop", visible=False, elem_id="inspect-stop", min_width=120, scale=0
                )  # fmt: skip
            self.state = gr.HTML(elem_id="inspect-state")
            self.findings = gr.HTML(js_on_load=_CLICK, elem_id="inspect-findings")
            with gr.Column(visible=False) as self.found:
                self.chart = charts.component(words.t("inspector.lengths"))
                self.numbers = gr.HTML(elem_id="inspect-numbers")
                gr.HTML(f"<h3>{report.escape(words.t('inspector.tokens'))}</h3>")
                with gr.Row(elem_classes=["actions"]):
                    names = ("first", "back", "next", "random", "longest", "shortest")
                    self.moves = {
                        name: gr.Button(
                            words.t(f"inspector.{name}"), size="sm", min_width=70, elem_id=f"inspect-{name}"
                        )
                        for name in names
                    }
                self.search = gr.Textbox(
                    label=words.t("inspector.search"), placeholder=words.t("inspector.search_hint"), max_lines=1,
                    elem_id="inspect-search",
                )  # fmt: skip
                self.row = gr.HTML(elem_id="inspect-row")
        self._listen()

    @property
    def _shown(self) -> list[Any]:
        return [
            self.key, self.place, self.seen, self.of, self.look, self.stop, self.state, self.findings, self.found, self.chart, self.numbers, self.row,
        ]  # fmt: skip

    def _listen(self) -> None:
        page, given = self.page, [self.view, self.page.form, self.model]
        # One setting in two places: what is chosen here is handed to Train, and follows what Train is set to.
        page.form.change(None, inputs=[page.form], outputs=[self.model], js=_FOLLOW)
        self.model.input(
            self._choose, inputs=[self.model], outputs=[*self._shown, page.data], show_progress="hidden"
        )  # fmt: skip
        self.look.click(self._look, inputs=given, outputs=self._shown, **_QUICK)
        self.stop.click(self._stop, inputs=[self.key], outputs=self._shown, **_QUICK)
        self.view.change(self._follow, inputs=[self.view, self.of], outputs=self._shown, **_QUICK)
        page.clock.add(self._refresh, [self.key, self.seen], self._shown)
        for name, button in self.moves.items():
            button.click(
                lambda key, place, name=name: self._move(key, place, name),
                inputs=[self.key, self.place], outputs=[self.place, self.row], **_QUICK,
            )  # fmt: skip
        self.search.submit(
            self._search, inputs=[self.key, self.place, self.search], outputs=[self.place, self.row], **_QUICK
        )
        # Gradio tells of a changed State by its queue alone.
        self.findings.select(
            self._pick, inputs=[self.key, self.place, *given], outputs=[*self._shown, page.data], show_progress="hidden"
        )

    # --- handlers -----------------------------------------------------------------------------------------------------

    def _choose(self, model: Any) -> Updates:
        """Another model was chosen: what was found through the eyes of the one before is none of its."""
        try:
            chosen = shelf.check_text(model)
        except Problem as problem:
            return self._nothing() | {self.state: report.problems(self.words, problem.parts)}
        return self._nothing() | {
            self.page.data: {"settings": {"model.name": chosen}, "press": secrets.token_hex(4)}
        }  # fmt: skip

    def _look(self, view: Any, memory: Any, model: Any, changes: dict[str, Any] | None = None) -> Updates:
        try:
            one = inspections.shared().start(self._config(view, memory, shelf.check_text(model), changes or {}))
        except Problem as problem:
            return self._nothing() | {self.state: report.problems(self.words, problem.parts)}
        except OSError as error:
            return self._nothing() | {self.state: report.problems(self.words, [Problem("{error}", error=error)])}
        return self._show(one) | {self.of: self._source(view)}

    def _config(self, view: Any, memory: Any, model: str, changes: dict[str, Any]) -> Config:
        """What Train is set to, with this model on these rows; a task that they cannot teach gives way to the likeliest that they can."""
        data, settings = self.read(view)
        form = Form.from_memory(memory).for_model(model)
        if data is not None and not any(objectives.find(form.task).fits(one) for one in data.examples[:100]):
            fitting = objectives.fitting(data.examples[0])
            form = form.for_task(fitting[0] if fitting else form.task)
        for id, value in (settings | changes).items():
            form.shown[id] = knobs()[id].show(value)
        return form.config()

    def _source(self, view: Any) -> str:
        return str(self.read(view)[1]["data.train"])

    def _follow(self, view: Any, of: Any) -> Any:
        """Other rows are looked at now: what was found in those before is none of theirs."""
        return self._nothing() if of and of != self._source(view) else gr.skip()

    def _stop(self, key: Any) -> Updates:
        inspections.shared().stop(key if isinstance(key, str) else "")
        return self._nothing()

    def _refresh(self, key: Any, seen: Any) -> Any:
        one = inspections.find(key)
        if one is None and isinstance(key, str) and key and seen != "done":
            return self._nothing()  # another page ended it
        if one is None or seen == "done":
            return gr.skip()
        return self._show(one)

    def _move(self, key: Any, place: Any, move: str) -> Any:
        one = inspections.find(key)
        if one is None or one.report() is None or not len(one):
            return gr.skip()
        place = place if isinstance(place, int) else 0
        where = {
            "first": lambda: 0, "back": lambda: (place - 1) % len(one), "next": lambda: (place + 1) % len(one),
            "random": lambda: random.randrange(len(one)), "longest": lambda: one.extreme(True), "shortest": lambda: one.extreme(False),
        }[move]()  # fmt: skip
        return where, self._row(one, where)

    def _search(self, key: Any, place: Any, text: Any) -> Any:
        one = inspections.find(key)
        if one is None or one.report() is None or not isinstance(text, str) or not text.strip():
            return gr.skip()
        found = one.with_text(text.strip()[:200], place if isinstance(place, int) else 0)
        if found is None:
            said = report.escape(self.words.t("inspector.not_found", text=text.strip()[:60]))
            return gr.skip(), f"<p class='quiet' role='status'>{said}</p>"
        return found, self._row(one, found)

    def _pick(self, key: Any, place: Any, view: Any, memory: Any, model: Any, event: gr.EventData) -> Any:
        """A finding's row was asked for, or its remedy."""
        one = inspections.find(key)
        told = event._data if isinstance(event._data, dict) else {}
        if one is None or one.report() is None:
            return gr.skip()
        if isinstance(told.get("row"), str) and told["row"] in KINDS:
            found = one.with_trouble(told["row"], place if isinstance(place, int) else -1)
            return gr.skip() if found is None else {self.place: found, self.row: self._row(one, found)}
        name, _, number = str(told.get("mend")).partition(" ")
        finding = next((finding for finding in one.findings() if finding.name == name), None)
        if finding is None or not re.fullmatch(r"[0-9]", number) or int(number) >= len(finding.remedies):
            return gr.skip()
        mend = dict(finding.remedies[int(number)])
        data, settings = self.read(view)
        tasks = list(objectives.fitting(data.examples[0])) if data else []
        chosen = {key.removeprefix("data."): value for key, value in settings.items()}
        chosen |= {"tasks": tasks, "settings": mend, "press": secrets.token_hex(4)}
        return self._look(view, memory, model, mend) | {self.page.data: chosen}

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _nothing(self) -> Updates:
        return {
            self.key: "", self.place: 0, self.seen: "", self.of: "", self.look: gr.update(visible=True), self.stop: gr.update(visible=False),
            self.state: "", self.findings: "", self.found: gr.update(visible=False),
        }  # fmt: skip

    def _show(self, one: Inspection) -> Updates:
        told = one.report()
        if told is None:
            failure = inspections.shared().failure(one)
            if failure is not None:
                return self._nothing() | {self.state: report.problems(self.words, failure.parts)}
            return {
                self.key: one.key, self.seen: "", self.look: gr.update(visible=False), self.stop: gr.update(visible=True),
                self.state: self._bar(*one.progress()), self.findings: "", self.found: gr.update(visible=False),
            }  # fmt: skip
        # Where something is wrong, that is the row to begin with.
        first = next(
            (place for finding in one.findings() if (place := one.with_trouble(finding.name, -1)) is not None), 0
        )
        return {
            self.key: one.key, self.place: first, self.seen: "done", self.look: gr.update(visible=True), self.stop: gr.update(visible=False),
            self.state: self._summary(told), self.findings: self._findings(one.findings()),
            self.found: gr.update(visible=bool(len(one))), self.chart: {"figures": self._figures(told)}, self.numbers: self._numbers(told),
            self.row: self._row(one, first) if len(one) else "",
        }  # fmt: skip

    def _bar(self, done: int, total: int) -> str:
        words = self.words
        if not total:
            said = words.t("inspector.reading", done=f"{done:,}") if done else words.t("inspector.preparing")
            return f"<p class='quiet' role='status'>{report.escape(said)}</p><div class='bar busy'><span></span></div>"
        said = words.t("inspector.working", done=f"{done:,}", total=f"{total:,}")
        return (
            f"<p class='quiet' role='status'>{report.escape(said)}</p>"
            f"<div class='bar' role='progressbar' aria-valuemin='0' aria-valuemax='{total}' aria-valuenow='{done}' aria-label='{report.escape(words.t('common.progress'))}'>"
            f"<span style='width:{100 * done / total:.1f}%'></span></div>"
        )

    def _summary(self, told: dict[str, Any]) -> str:
        words = self.words
        said = words.t(
            "inspector.summary", rows=f"{told['rows']:,}", model=short_name(told["model"]), longest=f"{told['max_length']:,}",
            task=words.text(objectives.find(told["task"]).title), speed=words.number(told["rows_per_second"]),
        )  # fmt: skip
        return f"<p class='quiet' role='status'>{report.escape(said)}</p>"

    def _findings(self, found: list[Finding]) -> str:
        words = self.words
        if not found:
            return f"<div class='note good'><p class='strong'>{report.escape(words.t('inspector.fine'))}</p></div>"
        return "<ul class='findings'>" + "".join(map(self._finding, found)) + "</ul>"

    def _finding(self, one: Finding) -> str:
        words, kind = self.words, KINDS[one.name]
        what = words.text(kind.what, count=f"{one.count:,}")
        rows = one.list_rows(_ROWS_NAMED, short_name)
        where = f"<span class='when'>{report.escape(words.t('inspector.rows', rows=rows))}</span>" if one.rows else ""
        buttons = ""
        if one.rows and one.name not in ("bad", "refused"):
            buttons += f"<button type='button' class='way' data-row='{one.name}'>{report.escape(words.t('inspector.show'))}</button>"
        for number, remedy in enumerate(one.remedies):
            said = self._remedy(*next(iter(remedy.items())))
            buttons += (
                f"<button type='button' class='way' data-mend='{one.name} {number}'>{report.escape(said)}</button>"
            )
        severity = report.escape(words.t(f"inspector.severity_{one.severity}"))
        return (
            f"<li class='finding {one.severity}'><div><span class='badge {one.severity}'>{severity}</span> <b>{report.escape(what)}</b></div>"
            f"<div>{report.escape(words.text(kind.why))}</div><div class='finding-foot'>{where}{buttons}</div></li>"
        )

    def _remedy(self, key: str, value: Any) -> str:
        words = self.words
        if key == "data.leave_out":
            return words.t("inspector.leave_out" if value else "inspector.take_back")
        shown = f"{value:,}" if isinstance(value, int) else words.t(f"train.choice_{value}")
        return words.t("inspector.mend", name=words.text(knobs()[key].title), value=shown)

    def _figures(self, told: dict[str, Any]) -> list[charts.Figure]:
        words = self.words
        names = {name: words.t(f"inspector.axis_{name}") for name in ("rows", "length", "limit")}
        return [charts.length_figure(told["lengths"], told["max_length"], names)] if told["lengths"]["counts"] else []

    def _numbers(self, told: dict[str, Any]) -> str:
        words = self.words
        share = told["trained_tokens"] / max(1, told["tokens"])
        rows = [
            (words.t("inspector.rows_to_train"), words.t("inspector.and_aside", rows=f"{told['train_rows']:,}", aside=f"{told['aside_rows']:,}")),
            (words.t("inspector.all_tokens"), f"{told['tokens']:,}"),
            (words.t("inspector.learned_tokens"), f"{told['trained_tokens']:,} · {words.percent(share)}"),
            (words.t("inspector.length"), words.t("inspector.median_longest", median=f"{told['median']:,}", longest=f"{told['longest']:,}")),
        ]  # fmt: skip
        padding = {name: words.percent(share) for name, share in told["padding"].items()}
        rows.append(
            (
                words.t("inspector.padding"),
                words.t("inspector.padding_saved", **padding) if told["packs"] else padding["apart"],
            )
        )
        if told["turns"]:
            most = ", ".join(f"{turns} × {count:,}" for turns, count in list(told["turns"].items())[:5])
            rows.append((words.t("inspector.turns"), most))
        if told["systems"]["rows"]:
            rows.append((words.t("inspector.systems"), words.t("inspector.systems_kinds", rows=f"{told['systems']['rows']:,}", kinds=f"{told['systems']['kinds']:,}")))  # fmt: skip
        rows.append((words.t("inspector.scripts"), " · ".join(f"{self._script(name)} {count:,}" for name, count in list(told["scripts"].items())[:5])))  # fmt: skip
        if told["labels"]:
            balance = sorted(told["labels"].items(), key=lambda item: -item[1])
            rows.append((words.t("inspector.labels"), " · ".join(f"{label[:30]} {count:,}" for label, count in balance[:12]) + (" …" if len(balance) > 12 else "")))  # fmt: skip
        cuts = "".join(
            f"<tr><td class='number'>{at['max_length']:,}</td><td class='number'>{report.escape(words.percent(at['rows']))}</td><td class='number'>{report.escape(words.percent(at['tokens']))}</td></tr>"
            for at in told["cut_at"]
        )
        head = "".join(
            f"<th scope='col' class='number'>{report.escape(words.t(f'inspector.{name}'))}</th>"
            for name in ("cut_limit", "cut_rows", "cut_tokens")
        )
        table = f"<details><summary>{report.escape(words.t('inspector.cut_title'))}</summary><div class='scroll'><table class='settings'><thead><tr>{head}</tr></thead><tbody>{cuts}</tbody></table></div></details>"
        # Plain text goes on in the next row, and nothing of it is cut.
        return report.facts(rows) + (table if told["task"] != "text" else "")

    def _script(self, name: str) -> str:
        return self.words.t(f"inspector.script_{name.lower()}")

    def _row(self, one: Inspection, place: int) -> str:
        """A row token by token."""
        words = self.words
        read, learned, lost = one.count(place)
        file, number = one.where(place)
        named = words.t("inspector.row", number=f"{number:,}")
        said = [
            words.t("inspector.row_of", row=named, file=short_name(file)) if file else named,
            words.t("inspector.row_tokens", read=f"{read:,}", learned=f"{learned:,}"),
        ]
        if lost:
            said.append(words.t("inspector.row_lost", lost=f"{lost:,}"))
        if one.is_aside(place):
            said.append(words.t("inspector.row_aside"))
        troubles = "".join(
            f"<span class='badge {KINDS[name].severity}'>{report.escape(words.t(f'inspector.name_{name}'))}</span> "
            for name in one.troubles(place)
            if name in KINDS
        )
        pieces = "".join(_piece(token) for token in one.tokens(place, _MOST_TOKENS))
        more = read + lost - _MOST_TOKENS
        rest = f" <em>{report.escape(words.t('inspector.more_tokens', count=f'{more:,}'))}</em>" if more > 0 else ""
        legend = "".join(
            f"<span class='token {name}'>{report.escape(words.t(f'inspector.legend_{name}'))}</span> "
            for name in ("learned", "plain", "special", "lost")
        )
        return (
            f"<p class='preview-head'><b>{report.escape(' · '.join(said))}</b> {troubles}</p>"
            f"<div class='tokens' tabindex='0'>{pieces}{rest}</div><p class='legend'>{legend}</p>"
        )


def _piece(token: Token) -> str:
    kinds = [name for name in ("learned", "special", "lost") if getattr(token, name)]
    ids = " ".join(map(str, token.ids))
    # A line's end is shown, and ends the line.
    text = report.escape(token.text).replace("\n", "↵\n") or "∅"
    return f"<span class='token {' '.join(kinds)}' title='{ids}'>{text}</span>"
