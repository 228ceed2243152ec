"""Runs: how is it going, how did it go, and what is next?"""

from __future__ import annotations

import secrets
from functools import lru_cache
from typing import Any

import gradio as gr

from core import presets, runs
from core.config import Config
from core.problem import Problem
from core.runs import Metrics, Run
from studio import charts, report
from studio.form import knobs, short_name
from studio.language import Language
from studio.panel import Panel, Updates, find, read_metrics, signature
from studio.tabs import Page

ORDER = 30
NAME = "runs.title"

_QUICK = {"queue": False, "show_progress": "hidden"}
_PICK = """element.addEventListener('click', (e) => {
  const row = e.target.closest('[data-run]');
  if (row) trigger('select', {run: row.dataset.run});
});"""
_MOST = 200


def build(page: Page) -> None:
    """The table of all runs, and under it the one that is selected."""
    _Runs(page)


class _Runs:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        words = self.words
        self.seen = gr.State("")
        gr.HTML(f"<h2>{report.escape(words.t('runs.question'))}</h2>")
        self.table = gr.HTML(js_on_load=_PICK, elem_classes=["runs-table"])
        with gr.Accordion(words.t("runs.overlay"), open=False, elem_classes=["group"]):
            self.several = gr.Dropdown(
                _choices(),
                value=[],
                multiselect=True,
                max_choices=8,
                allow_custom_value=True,
                label=words.t("runs.several"),
                interactive=True,
            )
            self.overlay = charts.component(words.t("common.loss_chart"))
            self.differing = gr.HTML()
        with gr.Column(visible=False, elem_classes=["run-view"]) as self.detail:
            self.panel = Panel(page, page.run)
            with gr.Accordion(words.t("runs.settings"), open=False, elem_classes=["group"]):
                self.settings = gr.HTML()
                self.again = gr.Button(words.t("runs.again"), size="sm")
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
            self._draw_delete()
        self._listen()

    def _draw_delete(self) -> None:
        words = self.words
        with gr.Row(elem_classes=["actions"]):
            self.delete = gr.Button(words.t("runs.delete"), size="sm", min_width=100, elem_classes=["quiet-button"])
        with gr.Row(visible=False, elem_classes=["note", "bad", "ask"]) as self.ask:
            self.question = gr.HTML()
            self.yes = gr.Button(words.t("runs.delete_yes"), variant="stop", size="sm", min_width=120)
            self.no = gr.Button(words.t("runs.delete_no"), size="sm", min_width=100)

    def _listen(self) -> None:
        page = self.page
        shown = [self.seen, self.table, self.several, self.detail, self.settings, self.log, self.ask]
        look = {"inputs": [page.run, self.seen], "outputs": shown}
        page.timer.tick(self._refresh, **look, **_QUICK)
        page.run.change(lambda run_id: self._draw(run_id), inputs=[page.run], outputs=shown, **_QUICK)
        page.blocks.load(lambda run_id: self._draw(run_id), inputs=[page.run], outputs=shown, **_QUICK)
        self.table.select(_picked, outputs=[page.run], **_QUICK)
        self.several.input(self._overlay, inputs=[self.several], outputs=[self.overlay, self.differing], **_QUICK)
        # Gradio tells of a changed State by its queue alone.
        self.again.click(
            self._take_settings, inputs=[page.run], outputs=[page.config, page.tabs], show_progress="hidden"
        )
        self.delete.click(self._ask_delete, inputs=[page.run], outputs=[self.ask, self.question], **_QUICK)
        self.no.click(lambda: gr.update(visible=False), outputs=[self.ask], **_QUICK)
        self.yes.click(self._delete, inputs=[page.run], outputs=[page.run, self.panel.trouble, *shown], **_QUICK)

    def _refresh(self, run_id: Any, seen: Any) -> Any:
        now = _stamp(run_id)
        return gr.skip() if now == seen else self._draw(run_id, keep_question=True)

    def _draw(self, run_id: Any, keep_question: bool = False) -> Updates:
        run = find(run_id)
        updates: Updates = {
            self.seen: _stamp(run_id),
            self.table: _table(self.words, run_id),
            self.several: gr.update(choices=_choices()),
            self.detail: gr.update(visible=run is not None),
            self.settings: _settings(self.words, run) if run else "",
            self.log: run.log_tail() if run else "",
        }
        return updates if keep_question else updates | {self.ask: gr.update(visible=False)}

    def _overlay(self, chosen: Any) -> Updates:
        """The losses of several runs in one chart, and the settings in which they differ."""
        found = [
            run for run_id in (chosen if isinstance(chosen, list) else [])[:8] if (run := find(run_id)) is not None
        ]
        words = self.words
        lines = [(run.id, run.title, read_metrics(run)) for run in found]
        figure = charts.overlay_figure(lines, words.t("common.curve_step"), words.t("common.curve_loss"))
        return {self.overlay: {"figures": [figure] if found else []}, self.differing: _differences(words, found)}

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
        return {
            self.ask: gr.update(visible=True),
            self.question: f"<p>{report.escape(self.words.t('runs.delete_ask', name=run.title))}</p>",
        }

    def _delete(self, run_id: Any) -> Any:
        run = find(run_id)
        if run is None:
            return gr.skip()
        try:
            if run.state() == "queued":
                raise Problem("The run {run} is still waiting for its turn.", to_do="Stop it first.", run=run.title)
            runs.delete(run)
        except Problem as problem:
            return {self.panel.trouble: report.problems(self.words, problem.parts), self.ask: gr.update(visible=False)}
        return {self.page.run: "", self.panel.trouble: ""} | self._draw("")


def _choices() -> list[tuple[str, str]]:
    return [(label, run.id) for run in runs.all_runs()[:_MOST] if (label := _label(run))]


@lru_cache(maxsize=4 * _MOST)
def _label(run: Run) -> str:
    """What a training is called in a list; empty for anything else. Its settings never change, so they are read once."""
    try:
        return f"{run.title} · {report.began(run)}" if run.job == "train" else ""
    except Problem:
        return ""


def _differences(words: Language, found: list[Run]) -> str:
    """A table of the settings that are not the same in all of these runs."""
    said = [
        presets.flatten({key: value for key, value in run.config_data().items() if key not in ("origins", "name")})
        for run in found
    ]
    titles = {knob.key: words.text(knob.title) for knob in knobs().values()} | {"method.name": words.t("train.method")}
    rows = []
    for key in dict.fromkeys(key for one in said for key in one):
        values = [one.get(key) for one in said]
        if any(value != values[0] for value in values):
            cells = "".join(
                f"<td class='number'>{report.escape('–' if value is None else value)}</td>" for value in values
            )
            rows.append(f"<tr><th scope='row'>{report.escape(titles.get(key, key))}</th>{cells}</tr>")
    if len(found) < 2:
        return ""
    if not rows:
        return f"<p class='quiet'>{report.escape(words.t('runs.no_difference'))}</p>"
    head = "".join(f"<th scope='col' class='number'>{report.escape(run.title)}</th>" for run in found)
    return f"<div class='scroll'><table class='settings'><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _picked(event: gr.EventData) -> str:
    run = find(event._data.get("run") if isinstance(event._data, dict) else None)
    return run.id if run else ""


def _stamp(run_id: Any) -> str:
    return f"{run_id}|" + "|".join(signature(run) for run in runs.all_runs()[:_MOST])


def _table(words: Language, selected: Any) -> str:
    """All runs, newest first; a row is a button."""
    rows = []
    for run in runs.all_runs()[:_MOST]:
        try:
            rows.append(_row(words.code, run, signature(run), run.id == selected))
        except (Problem, KeyError, TypeError, ValueError, OSError):
            # A folder that was made by hand, or is being deleted, must not hide the others.
            rows.append(f"<tr><td></td><td colspan='8'>{report.escape(run.id)}</td></tr>")
    if not rows:
        return f"<p class='quiet center empty'>{report.escape(words.t('runs.none'))}</p>"
    names = ("name", "state", "step", "loss", "eval_loss", "model", "data", "method", "took")
    numbers = ("step", "loss", "eval_loss", "took")
    head = "".join(
        f"<th scope='col' class='{'number' if name in numbers else name}'>{report.escape(words.t(f'runs.column_{name}'))}</th>"
        for name in names
    )
    return f"<div class='scroll'><table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


@lru_cache(maxsize=4 * _MOST)
def _row(code: str, run: Run, signature: str, is_selected: bool) -> str:
    """One run of the table; kept for as long as its `signature` says that nothing of it has changed."""
    words = Language(code)
    data, metrics, state = run.config_data(), read_metrics(run), run.state()
    step, steps = report.progress(run, metrics)
    last = metrics.steps[-1] if metrics.steps else {}
    evaluation = metrics.evals[-1].get("eval_loss") if metrics.evals else None
    method = str((data.get("method") or {}).get("name", ""))
    cells = [
        f"<td><button type='button' data-run='{report.escape(run.id)}' aria-pressed='{str(is_selected).lower()}'>{report.escape(run.title)}</button><span class='when'>{report.escape(report.began(run))}</span></td>",
        f"<td>{report.badge(words, state)}</td>",
        f"<td class='number'>{words.number(step)}{f' / {words.number(steps)}' if steps else ''}</td>",
        f"<td class='number'>{words.small(last.get('loss'))}</td>",
        f"<td class='number'>{words.small(evaluation)}{_scores(words, metrics)}</td>",
        f"<td>{report.escape(short_name((data.get('model') or {}).get('name', '')))}</td>",
        f"<td>{report.escape(short_name((data.get('data') or {}).get('train', '')))}</td>",
        f"<td>{report.escape(method)}</td>",
        f"<td class='number'>{report.escape(report.took(words, run))}</td>",
    ]
    mark = f"<td><span class='dot' style='background:{charts.colour(run.id)}'></span></td>"
    return f"<tr data-run='{report.escape(run.id)}' class='{'selected' if is_selected else ''}'>{mark}{''.join(cells)}</tr>"


def _scores(words: Language, metrics: Metrics) -> str:
    """The first of the scores under the evaluation loss; all of them when it is pointed at."""
    found = report.scores(words, metrics)
    all_of_them = " · ".join(f"{name} {value}" for name, value in found)
    first = " ".join(found[0]) if found else ""
    return f"<span class='when' title='{report.escape(all_of_them)}'>{report.escape(first)}</span>" if found else ""


def _settings(words: Language, run: Run) -> str:
    """Every setting of a run with where it came from."""
    if run.job != "train":
        return ""
    try:
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
