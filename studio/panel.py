"""One run on a page: its state, its buttons, its charts, its samples; the Train and the Runs tab show the same."""

from __future__ import annotations

import zlib
from typing import Any

import gradio as gr

from core import runs
from core.problem import Problem
from core.runs import Metrics, Run
from studio import answers, charts, report
from studio.course import Course
from studio.metrics import read_metrics
from studio.tabs import Page

Updates = dict[Any, Any]


def find(run_id: Any) -> Run | None:
    """The run of an id that came from the page; None when there is none."""
    try:
        return runs.find_id(run_id) if isinstance(run_id, str) and run_id else None
    except Problem:
        return None


def signature(run: Run) -> str:
    """What changes when the run has something new to show."""
    stamps = []
    for name in ("metrics.jsonl", "samples.jsonl", "result.json", "worker.json"):
        try:
            status = (run.folder / name).stat()
            stamps.append(f"{status.st_size}:{status.st_mtime_ns}")
        except OSError:
            stamps.append("-")
    return " ".join([run.id, run.state(), str(run.has_adapter()), *stamps])


class Panel:
    """The components that show one run, and the handlers behind its buttons."""

    def __init__(self, page: Page, run: gr.BrowserState):
        """Draw it here; `run` holds the id of the run that it shows."""
        self.page, self.run, words = page, run, page.words
        self.seen = gr.State({})
        self.head = gr.HTML(elem_classes=["run-card"])
        with gr.Row(elem_classes=["actions"]):
            self.stop = gr.Button(words.t("common.stop_keep"), variant="stop", visible=False, size="md", min_width=100)
            self.save = gr.Button(words.t("common.save_now"), visible=False, size="md", min_width=100)
            self.discard = gr.Button(words.t("common.discard"), visible=False, size="md", min_width=100)
            self.resume = gr.Button(
                words.t("common.resume"), variant="primary", visible=False, size="md", min_width=100
            )
            self.chat = gr.Button(words.t("common.chat_with_it"), visible=False, size="md", min_width=120)
            self.export = gr.Button(words.t("common.export_it"), visible=False, size="md", min_width=100)
        with gr.Column(visible=False) as self.sure:
            gr.HTML(f"<p class='strong'>{report.escape(words.t('common.discard_sure'))}</p>")
            with gr.Row(elem_classes=["actions"]):
                self.yes = gr.Button(words.t("common.discard_yes"), variant="stop", size="md", min_width=100)
                self.no = gr.Button(words.t("common.discard_no"), size="md", min_width=100)
        self.trouble = gr.HTML()
        self.course = Course(words, page.launcher)
        self.advice = gr.HTML()
        with gr.Column(elem_classes=["plots"]):
            self.chart = charts.component(words.t("common.loss_chart"))
            self.small = charts.component(words.t("common.small_charts"), kind="small")
            self.matrix = charts.component(words.t("common.matrix"), kind="matrix")
        gr.HTML(f"<h3>{report.escape(words.t('common.samples_title'))}</h3>")
        self.samples = gr.HTML()
        with gr.Accordion(words.t("common.events_title"), open=False):
            self.events = gr.HTML()
        self._listen()

    @property
    def outputs(self) -> list[Any]:
        """Every component that `refresh` may change."""
        return [
            self.seen,
            self.head,
            self.stop,
            self.save,
            self.discard,
            self.sure,
            self.resume,
            self.chat,
            self.export,
            self.trouble,
            self.advice,
            self.chart,
            self.small,
            self.matrix,
            self.samples,
            self.events,
            *self.course.outputs,
        ]

    def refresh(self, run_id: Any, seen: Any, offer: Any = None) -> Updates:
        """What has changed since `seen`; nothing when nothing has. `offer` is what the fold of changes was filled with."""
        run = find(run_id)
        if run is None:
            return {self.seen: {}} if seen else {}
        seen, now = seen if isinstance(seen, dict) else {}, signature(run)
        # Of another run everything is shown: what is seen of the one before may just have changed.
        seen = seen if str(seen.get("files")).startswith(f"{run.id} ") else {}
        if now == seen.get("files"):
            return {}
        # Several looks may fall into the writing of a config by another version: such a run is shown as it can be.
        try:
            metrics = read_metrics(run)
            buttons, about = self._buttons(run, metrics), self._tell(run, metrics)
            # What seldom changes takes the page as long as a curve, though it be the same.
            marks = {part._id: zlib.crc32(repr(value).encode()) for part, value in (buttons | about).items()}
            quiet = {part: value for part, value in (buttons | about).items() if seen.get(part._id) != marks[part._id]}
            changed = self._draw(run, metrics) | self.course.refresh(run, offer) | quiet
            return {self.seen: {"files": now} | marks} | changed
        except Exception as error:  # whatever lies in a folder, the page goes on, and lets it be deleted
            buttons = (self.stop, self.save, self.discard, self.sure, self.resume, self.chat, self.export)
            hidden = {button: gr.update(visible=False) for button in buttons}
            return {
                self.seen: {"files": now},
                self.head: f"<div class='note bad'>{report.escape(error)}</div>",
            } | hidden

    def _buttons(self, run: Run, metrics: Metrics) -> Updates:
        state = run.state()
        busy = state in ("starting", "running", "stalled")
        return {
            self.stop: gr.update(visible=busy or state == "queued"),
            # An export has no checkpoints, and leaves nothing when it is stopped.
            self.save: gr.update(visible=busy and bool(metrics.steps) and run.job == "train"),
            self.discard: gr.update(visible=busy and run.job == "train"),
            # Whoever is asked whether it shall be thrown away is not asked again when it has ended meanwhile.
            **({} if busy else {self.sure: gr.update(visible=False)}),
            self.resume: gr.update(
                visible=run.resumable or run.repairable,
                value=self.page.words.t("common.repair" if run.repairable else "common.resume"),
            ),
            self.chat: gr.update(visible=run.has_adapter(), value=self._invitation(run)),
            self.export: gr.update(visible=run.has_adapter() and state not in report.ACTIVE),
        }

    def _draw(self, run: Run, metrics: Metrics) -> Updates:
        """What every step changes."""
        words = self.page.words
        return {
            self.head: report.headline(words, run, metrics),
            self.chart: {"figures": [charts.loss_figure(metrics, run.id, self._names())] if metrics.steps else []},
            self.small: {"figures": self._small(metrics, run.id)},
        }

    def _tell(self, run: Run, metrics: Metrics) -> Updates:
        """What an evaluation or an event changes."""
        words = self.page.words
        return {
            self.advice: report.advice(words, metrics),
            self.matrix: {"figures": self._matrix(run, metrics)},
            self.samples: report.samples(words, run.samples()),
            self.events: report.events(words, metrics),
        }

    def _invitation(self, run: Run) -> str:
        """What the button to Chat says: not everything that was trained is talked to."""
        writes = answers.about(run).manner in answers.GENERATING if run.has_adapter() else True
        return self.page.words.t("common.chat_with_it" if writes else "common.try_it")

    def _names(self) -> dict[str, str]:
        return {
            name: self.page.words.t(f"common.curve_{name}")
            for name in ("raw", "smoothed", "evaluation", "step", "loss")
        }

    def _small(self, metrics: Metrics, run_id: str) -> list[charts.Figure]:
        columns = [
            name
            for name in ("learning_rate", "grad_norm", "tokens_per_second", "memory_gb")
            if any(row.get(name) is not None for row in metrics.steps[-5:])
        ]
        words, step = self.page.words, self.page.words.t("common.curve_step")
        figures = [
            charts.small_figure(metrics, run_id, name, words.t(f"common.curve_{name}"), step) for name in columns
        ]
        scored = {f"eval_{name}": words.t(f"common.score_{name}") for name in report.SCORES}
        scored = {
            column: name for column, name in scored.items() if any(row.get(column) is not None for row in metrics.evals)
        }
        if scored:
            figures.insert(0, charts.score_figure(metrics, run_id, scored, step))
        return figures

    def _matrix(self, run: Run, metrics: Metrics) -> list[charts.Figure]:
        """What the newest evaluation confused with what; where a row may have several labels, how each of them fared."""
        words, table = self.page.words, report.confusion(run, metrics)
        if table is None:
            return []
        labels, counts, several = table
        names = {"title": words.t("common.matrix"), "true": words.t("common.matrix_true")}
        names["said"] = "" if several else words.t("common.matrix_said")
        columns = [words.t(f"common.matrix_{name}") for name in ("right", "missed", "wrong")] if several else labels
        return [charts.matrix_figure(labels, columns, counts, f"{run.id}-matrix", names)]

    def _listen(self) -> None:
        quick = {"queue": False, "show_progress": "hidden"}
        look = {"inputs": [self.run, self.seen, self.course.offer], "outputs": self.outputs}

        def refresh(run_id: Any, seen: Any, offer: Any) -> Any:
            return self.refresh(run_id, seen, offer) or gr.skip()

        self.page.clock.add(self.refresh, **look)
        self.run.change(refresh, **look, **quick)
        self.page.blocks.load(
            lambda run_id: refresh(run_id, {}, None), inputs=[self.run], outputs=self.outputs, **quick
        )
        launcher = self.page.launcher
        self.discard.click(lambda: gr.update(visible=True), outputs=[self.sure], **quick)
        for button in (self.yes, self.no):
            button.click(lambda: gr.update(visible=False), outputs=[self.sure], **quick)
        acts = (
            (self.stop, launcher.stop),
            (self.save, launcher.save),
            (self.yes, launcher.discard),
            (self.resume, launcher.resume),
        )
        for button, act in acts:
            button.click(
                lambda run_id, act=act: self._act(run_id, act), inputs=[self.run], outputs=self.outputs, **quick
            )
        for button, tab in ((self.chat, "chat"), (self.export, "export")):
            button.click(
                lambda run_id, tab=tab: (run_id, self.page.go(tab)),
                inputs=[self.run],
                outputs=[self.page.run, self.page.tabs],
                **quick,
            )

        typed = [self.run, *self.course.inputs]
        for box in (self.course.more, self.course.unit, *self.course.boxes.values()):
            box.input(
                lambda run_id, *rest: self.course.preview(find(run_id), *rest) or gr.skip(),
                inputs=typed, outputs=self.course.outputs, trigger_mode="always_last", **quick,
            )  # fmt: skip
        self.course.go.click(self._change, inputs=typed, outputs=self.outputs, **quick)

    def _change(self, run_id: Any, *typed: Any) -> Updates:
        run = find(run_id)
        told = self.course.press(run, *typed) if run is not None else {}
        return self.refresh(run_id, {}, typed[0]) | told if told else gr.skip()

    def _act(self, run_id: Any, act: Any) -> Updates:
        run = find(run_id)
        try:
            if run is not None:
                act(run)
        except Problem as problem:
            return {self.trouble: report.problems(self.page.words, problem.parts)}
        return {self.trouble: ""} | self.refresh(run_id, {})
