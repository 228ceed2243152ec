"""Export: how do I take it with me? What there is to take, for whom, how large; then the job, and its files."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import gradio as gr

from core import methods, model, objectives, runs
from core.loading import write_lines
from core.problem import Problem
from core.runs import ExportConfig, Run
from studio import answers, report
from studio.answers import About
from studio.gate import DOWNLOAD_PATH
from studio.language import Language, in_bytes
from studio.report import escape
from studio.tabs import Page

ORDER = 60
NAME = "export.title"

Kind = Literal["adapter", "lora", "merged"]

_QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
_DTYPES = ("auto", "float32", "bfloat16", "float16")
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MOST_FILES = 200
_SHOWN = 20
_KINDS = ("adapter", "lora", "merged")
_MERGE_BASES = ("original", "dequantised")
_CLICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (button?.dataset.cancel) trigger('select', {run: button.dataset.cancel});
  if (button?.dataset.go) trigger('submit', {});
  if (button?.dataset.copy) {
    navigator.clipboard.writeText(button.parentElement.querySelector('code').textContent);
    button.classList.add('copied'); setTimeout(() => button.classList.remove('copied'), 1200);
  }
});"""
# Two presses of a button are one export.
_starting = threading.Lock()


def build(page: Page) -> None:
    """The run, what can be made of it, and what was made."""
    _Export(page)


class _Export:
    def __init__(self, page: Page):
        self.page, self.words = page, page.words
        words = self.words
        self.seen, self.followed = gr.State(""), gr.State("")
        listed = answers.choices(words, untrained=False)
        run = _find(listed[0][1]) if listed else None
        gr.HTML(f"<h2>{escape(words.t('export.question'))}</h2>")
        self.nothing = gr.HTML(self._nothing(), js_on_load=_CLICK, visible=run is None, elem_id="export-nothing")
        with gr.Column(visible=run is not None) as self.all:
            self.run = gr.Dropdown(
                listed,
                value=run.id if run else None,
                label=words.t("export.run"),
                allow_custom_value=True,
                elem_id="export-run",
                elem_classes=["export-run"],
            )
            with gr.Row(elem_classes=["offers"], equal_height=True):
                with gr.Column(elem_classes=["card", "offer"], min_width=300):
                    self.adapter_text = gr.HTML(self._offer(run, "adapter"))
                    self.adapter = gr.Button(
                        words.t("export.make_adapter"), variant=_variant(run, "adapter"), elem_id="export-adapter"
                    )
                with gr.Column(
                    elem_classes=["card", "offer"], min_width=300, visible=_can(run, "lora")
                ) as self.lora_card:
                    self.lora_text = gr.HTML(self._offer(run, "lora"))
                    self.lora = gr.Button(words.t("export.make_lora"), variant="secondary", elem_id="export-lora")
                with gr.Column(
                    elem_classes=["card", "offer"], min_width=300, visible=_can(run, "merged")
                ) as self.merged_card:
                    self.merged_text = gr.HTML(self._offer(run, "merged"))
                    self.dtype = gr.Dropdown(
                        [(words.t("export.dtype_auto"), "auto"), *((name, name) for name in _DTYPES[1:])],
                        value="auto", label=words.t("export.dtype"), info=words.t("export.dtype_help"), filterable=False, elem_id="export-dtype",
                    )  # fmt: skip
                    self.merge_base = gr.Radio(
                        [(words.t(f"export.base_{name}"), name) for name in _MERGE_BASES], value="original", label=words.t("export.merge_base"),
                        info=words.t("export.merge_base_help"), visible=_is_quantized(run), elem_id="export-merge-base",
                    )  # fmt: skip
                    self.merged = gr.Button(
                        words.t("export.make_merged"), variant=_variant(run, "merged"), elem_id="export-merged"
                    )
            self.problem = gr.HTML(elem_id="export-problem")
            self.made = gr.HTML(self._made(run), js_on_load=_CLICK, elem_id="export-made")
        self._listen()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _nothing(self) -> str:
        words = self.words
        return (
            f"<div class='nothing'><h3>{escape(words.t('export.nothing'))}</h3><p>{escape(words.t('export.nothing_more'))}</p>"
            f"<button type='button' class='way' data-go='train'>{escape(words.t('chat.go_train'))}</button></div>"
        )

    def _offer(self, run: About | None, kind: Kind, dtype: str = "auto") -> str:
        """What you get, for whom, and how large it is."""
        if run is None or (kind != "adapter" and not _can(run, kind)):
            return ""
        words, base = self.words, answers.base_name(self.words, run.base.name)
        what = words.t(f"export.{kind}_selective") if _is_selective(run) else words.t(f"export.{kind}_what", base=base)
        size = _size_of(run, kind, dtype)
        told = words.t("export.size", size=in_bytes(size)) if size else words.t("export.size_unknown")
        whom = (
            ""
            if kind == "adapter" and _is_selective(run)
            else f"<p class='quiet'>{escape(words.t(f'export.{kind}_for'))}</p>"
        )
        return f"<div class='offer-head'><h3>{escape(words.t(f'export.{kind}'))}</h3><span class='chip'>{escape(told)}</span></div><p>{escape(what)}</p>{whom}"

    def _made(self, run: About | None) -> str:
        """The exports of a run, the newest first."""
        jobs = _jobs(run.id)[:_SHOWN] if run is not None else []
        if not jobs:
            return ""
        return f"<h3>{escape(self.words.t('export.earlier'))}</h3>" + "".join(self._job(job) for job in jobs)

    def _job(self, job: Run) -> str:
        words, state = self.words, job.state()
        data = job.config_data()
        to = data.get("to")
        kind = words.t(f"export.{to}") if to in _KINDS else words.t("export.adapter")
        number = data.get("dtype", "auto")
        about = f"{kind} · {number}" if to == "merged" and number != "auto" else kind
        head = f"<div class='run-head'><span class='strong'>{escape(about)}</span>{self._badge(state)}<span class='when'>{escape(report.began(job))}</span>"
        if state in report.ACTIVE and state != "stopping":
            head += f"<button type='button' class='cancel' data-cancel='{escape(job.id)}'>{escape(words.t('export.cancel'))}</button>"
        body = (
            self._working(job, state)
            if state in report.ACTIVE
            else self._files(job)
            if state == "completed"
            else self._ended(job, state)
        )
        return f"<section class='card export-job'>{head}</div>{body}</section>"

    def _badge(self, state: str) -> str:
        if state not in ("starting", "running", "stalled"):
            return report.badge(self.words, state)
        # What is training for a training is exporting here.
        return f"<span class='badge running'>{escape(self.words.t('export.running'))}</span>"

    def _working(self, job: Run, state: str) -> str:
        words = self.words
        steps = job.metrics().steps
        if state == "queued" or not steps:
            text = words.t("export.waiting") if state == "queued" else words.t("export.preparing")
            return f"<p class='quiet'>{escape(text)}</p><div class='bar busy'><span></span></div>"
        last = steps[-1]
        step, all_steps = last.get("step") or 0, last.get("steps") or 1
        text = (
            words.t("export.stopping")
            if state == "stopping"
            else words.t("export.working", doing=self._doing(last.get("doing")), step=step, steps=all_steps)
        )
        return (
            f"<p class='quiet'>{escape(text)}</p><div class='bar' role='progressbar' aria-valuemin='0' aria-valuemax='{all_steps}'"
            f" aria-valuenow='{step}' aria-label='{escape(words.t('common.progress'))}'><span style='width:{100 * (step - 0.5) / all_steps:.0f}%'></span></div>"
        )

    def _doing(self, doing: Any) -> str:
        known = {
            name: self.words.t(f"export.doing_{name}")
            for name in ("copying", "loading_model", "merging", "saving", "checking")
        }
        return known.get(str(doing), str(doing))

    def _ended(self, job: Run, state: str) -> str:
        told = report.reason(self.words, job)
        return told or f"<p class='quiet'>{escape(self.words.t(f'export.{state}'))}</p>"

    def _files(self, job: Run) -> str:
        words, folder = self.words, job.folder / "export"
        files = _listing(folder)
        rows = "".join(
            f"<tr><td><a href='{escape(_link(job, path, folder))}' download>{escape(path.relative_to(folder).as_posix())}</a></td><td class='number'>{escape(in_bytes(size))}</td></tr>"
            for path, size in files[:_MOST_FILES]
        )
        total = in_bytes(sum(size for _, size in files))
        result = job.result() or {}
        difference, tested = result.get("difference"), result.get("tested_difference")
        checked = ""
        if isinstance(tested, int | float) and (merge_base := result.get("merge_base")) in _MERGE_BASES:
            checked = f"<p>✓ {escape(words.t(f'export.checked_{merge_base}', difference=f'{tested:.2g}'))}</p>"
        elif isinstance(difference, int | float):
            checked = f"<p>✓ {escape(words.t('export.checked', difference=f'{difference:.2g}'))}</p>"
        return (
            f"{checked}<div class='scroll'><table><thead><tr><th>{escape(words.t('export.file'))}</th><th class='number'>{escape(words.t('export.bytes'))}</th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
            f"<p><a class='way' href='{escape(f'{DOWNLOAD_PATH}/{quote(job.id)}.zip?part=export')}' download>{escape(words.t('export.all', size=total))}</a></p>"
            f"<p class='path'><span class='quiet'>{escape(words.t('export.path'))}</span> <code>{escape(folder)}</code>"
            f"<button type='button' class='copy' data-copy='1'>{escape(words.t('chat.copy'))}</button></p>"
            f"<details><summary>{escape(words.t('export.using'))}</summary>{_using(words, job, folder)}</details>"
        )

    # --- what happens -------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        page = self.page
        offers = [
            self.adapter_text,
            self.lora_text,
            self.merged_text,
            self.adapter,
            self.merged,
            self.lora_card,
            self.merged_card,
            self.merge_base,
        ]
        shown = [self.run, self.nothing, self.all, *offers, self.made, self.seen]
        look = {"inputs": [page.run, self.followed, self.run, self.dtype], "outputs": [*shown, self.followed]}
        page.tab.select(self._refresh, **look, **_QUICK)
        self.run.input(self._choose, [self.run, self.dtype], [*shown, self.problem, page.run, self.followed], **_QUICK)
        self.dtype.input(
            lambda run_id, dtype: self._offer(_find(run_id), "merged", dtype),
            [self.run, self.dtype],
            self.merged_text,
            **_QUICK,
        )
        page.clock.add(self._look, [self.run, self.seen], [self.made, self.seen])
        self.adapter.click(self._start_adapter, self.run, [self.problem, self.made, self.seen], **_QUICK)
        self.lora.click(self._start_lora, self.run, [self.problem, self.made, self.seen], **_QUICK)
        self.merged.click(
            self._start_merged,
            [self.run, self.dtype, self.merge_base],
            [self.problem, self.made, self.seen],
            **_QUICK,
        )
        self.made.select(self._cancel, self.run, [self.made, self.seen], **_QUICK)
        self.nothing.submit(lambda: page.go("train"), None, page.tabs, **_QUICK)

    def _refresh(self, elsewhere: Any, followed: str, run_id: Any, dtype: Any) -> list[Any]:
        listed = [value for _, value in answers.choices(self.words, untrained=False)]
        if elsewhere and elsewhere != followed and elsewhere in listed:
            run_id, followed = elsewhere, elsewhere
        elif not followed:
            # A fresh page begins with the newest run: what was drawn is as old as the studio.
            run_id, followed = None, answers.OPENED
        return [*self._show(run_id, dtype), followed]

    def _choose(self, run_id: Any, dtype: Any) -> list[Any]:
        chosen = _find(run_id)
        return [*self._show(run_id, dtype), "", chosen.id if chosen else gr.skip(), chosen.id if chosen else gr.skip()]

    def _show(self, run_id: Any, dtype: Any) -> list[Any]:
        listed = answers.choices(self.words, untrained=False)
        names = [value for _, value in listed]
        run = _find(run_id if run_id in names else names[0] if names else None)
        return [
            gr.Dropdown(choices=listed, value=run.id if run else None),
            gr.HTML(visible=run is None),
            gr.Column(visible=run is not None),
            self._offer(run, "adapter"),
            self._offer(run, "lora"),
            self._offer(run, "merged", dtype),
            gr.Button(variant=_variant(run, "adapter")),
            gr.Button(variant=_variant(run, "merged")),
            gr.Column(visible=_can(run, "lora")),
            gr.Column(visible=_can(run, "merged")),
            gr.Radio(visible=_is_quantized(run)),
            self._made(run),
            _stamp(run),
        ]

    def _look(self, run_id: Any, seen: str) -> Any:
        run = _find(run_id)
        now = _stamp(run)
        return gr.skip() if now == seen else {self.made: self._made(run), self.seen: now}

    def _start_adapter(self, run_id: Any) -> Any:
        return self._start(run_id, "adapter", "auto")

    def _start_lora(self, run_id: Any) -> Any:
        return self._start(run_id, "lora", "auto")

    def _start_merged(self, run_id: Any, dtype: Any, merge_base: Any = "original") -> Any:
        return self._start(run_id, "merged", dtype, merge_base)

    def _start(self, run_id: Any, kind: Kind, dtype: Any, merge_base: Any = "original") -> Any:
        try:
            start(run_id, kind, dtype, merge_base)
        except Problem as problem:
            return report.problems(self.words, problem.parts), gr.skip(), gr.skip()
        self.page.launcher.wake()
        run = _find(run_id)
        return "", self._made(run), _stamp(run)

    def _cancel(self, run_id: Any, event: gr.EventData) -> Any:
        run = _find(run_id)
        wanted = event._data.get("run") if isinstance(event._data, dict) else None
        for job in _jobs(run.id) if run is not None else []:
            if job.id == wanted:
                self.page.launcher.stop(job)
        return self._made(run), _stamp(run)


def start(run_id: Any, kind: Kind, dtype: Any, merge_base: Any = "original") -> Run:
    """A new export job of that run; the one that is already on its way when there is such a one.

    Raises:
        Problem: there is no such run, it has learned nothing yet, or the number format or the base to merge into is none.
    """
    run = answers.find(run_id)
    if run is None:
        raise Problem("This is no run.", to_do="Choose one of the list.")
    if dtype not in _DTYPES:
        raise Problem("There is no number format {dtype}.", to_do="Choose one of the list.", dtype=repr(dtype)[:40])
    if merge_base not in _MERGE_BASES:
        raise Problem(
            "There is no base {base} to merge into.", to_do="Choose one of the list.", base=repr(merge_base)[:40]
        )
    into = merge_base if _is_quantized(run) and kind == "merged" else "original"
    config = ExportConfig(run=run.id, to=kind, dtype=dtype, merge_base=into, name=f"{run.title} {kind}")
    wanted = {"to": kind, "dtype": dtype, "merge_base": into}
    with _starting:
        for job in _jobs(run.id):
            data = {"dtype": "auto", "merge_base": "original"} | job.config_data()
            if job.state() in report.ACTIVE and job.state() != "stopping" and wanted.items() <= data.items():
                return job
        return runs.create(config)


def _find(run_id: Any) -> About | None:
    try:
        return answers.find(run_id)
    except Problem:
        return None


@lru_cache(maxsize=2000)
def _exports_what(folder: Path) -> str | None:
    """Which run an export job is of; None for another job. A run's settings never change, so they are read once."""
    data = Run(folder).config_data()
    return str(data.get("run")) if data.get("job") == "export" else None


def _jobs(run_id: str) -> list[Run]:
    """The export jobs of a run, newest first; a folder that cannot be read is left out."""
    found = []
    for job in runs.all_runs():
        try:
            if _exports_what(job.folder) == run_id:
                found.append(job)
        except (Problem, OSError):
            continue
    return found


def _stamp(run: About | None) -> str:
    """What changes when there is something new to show."""
    if run is None:
        return ""
    stamps = [run.id]
    for job in _jobs(run.id)[:_SHOWN]:
        metrics = job.folder / "metrics.jsonl"
        stamps.append(f"{job.id} {job.state()} {metrics.stat().st_size if metrics.exists() else 0}")
    return "\n".join(stamps)


def _is_selective(run: About) -> bool:
    return issubclass(methods.find(run.method), methods.SelectiveMethod)


def _is_quantized(run: About | None) -> bool:
    """Whether there is more than one base to merge into."""
    return run is not None and run.base.quantization != "none"


def _can(run: About | None, kind: Kind) -> bool:
    """Whether what the run's method learns has that form."""
    method = methods.find(run.method) if run is not None else None
    return method is not None and (method.merges if kind == "merged" else getattr(method, "is_low_rank", False))


def _variant(run: About | None, kind: Kind) -> Any:
    """One primary button: the form in which it is mostly taken along."""
    usual = "merged" if run is not None and _is_selective(run) else "adapter"
    return "primary" if kind == usual else "secondary"


@lru_cache(maxsize=100)
def _base_sizes(name: str, revision: str | None) -> tuple[int, int]:
    """Numbers and bytes of a base model's weights; zeros when it is not on this machine."""
    try:
        folder = model.locate(name, revision)
        if folder is None:
            return 0, 0
        return model.describe(folder).parameters, sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    except (Problem, OSError):
        return 0, 0


def _size_of(run: About, kind: Kind, dtype: Any) -> int:
    """About how many bytes the export will have; 0 when nobody knows."""
    if kind == "adapter" or (kind == "lora" and run.method == "lora"):
        folder = runs.find_id(run.id).folder / "adapter"
        return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if kind == "lora":
        return 0
    numbers, size = _base_sizes(run.base.name, run.base.revision)
    return numbers * _BYTES[dtype] if dtype in _BYTES else size


def _listing(folder: Path) -> list[tuple[Path, int]]:
    """Every file below the folder with its size, by name."""
    return sorted((path, path.stat().st_size) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _link(job: Run, path: Path, folder: Path) -> str:
    return f"{DOWNLOAD_PATH}/{quote(job.id)}/export/{quote(path.relative_to(folder).as_posix())}"


def _using(words: Language, job: Run, folder: Path) -> str:
    """The lines of Python that load it."""
    data = job.config_data()
    run = _find(data.get("run"))
    if run is None:
        return ""
    of = runs.find_id(run.id).config_data()
    lines = write_lines(
        str(data.get("to")), methods.find(run.method), objectives.find(of["task"]), _base_folder(run), str(folder)
    )
    return f"<pre>{escape(lines)}</pre>" if lines else f"<p>{escape(words.t('export.only_here'))}</p>"


def _base_folder(run: About) -> str:
    """How transformers finds the base: the playground by its folder, any other by its name."""
    return str(model.locate(run.base.name)) if run.base.name == model.PLAYGROUND else run.base.name
