"""The page: a header, and one tab for each file in tabs/."""

from __future__ import annotations

import copy
import gc
import os
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn

from core import dataset, garbage
from core.problem import Problem
from studio import language as languages
from studio import report, shelf, tabs, theme
from studio.clock import Clock
from studio.early import Early
from studio.gate import GateSettings, create_app
from studio.language import Language
from studio.launcher import Launcher
from studio.overview import overview
from studio.panel import Updates, find
from studio.tabs import Page

_QUICK = {"queue": False, "show_progress": "hidden"}
_SWITCH = """
const button = element.querySelector('[data-theme]');
button.addEventListener('click', () => {
  window.atelierThemed = true;
  const dark = document.body.classList.toggle('dark');
  localStorage.setItem('atelier.theme', dark ? 'dark' : 'light');
});
for (const link of element.querySelectorAll('a[data-language]')) link.href = '/language/' + link.dataset.language;
"""
_LEAD = "element.addEventListener('click', (e) => { if (e.target.closest('[data-lead]')) trigger('click'); });"


class Window(gr.Blocks):
    """Blocks that leave alone what a handler leaves alone: Gradio makes each skipped component anew, which takes longer than all else."""

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """What is sent for what the handler returned."""
        outputs = list(block_fn.outputs)
        given = {} if predictions == gr.skip() else predictions
        if len(outputs) < 2 or not isinstance(given, dict) or not given.keys() <= set(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        fewer = copy.copy(block_fn)
        fewer.outputs = [one for one in outputs if one in given]
        values = [given[one] for one in fewer.outputs]
        # Of one output, Gradio expects the bare value.
        done = await super().postprocess_data(fewer, values[0] if len(values) == 1 else values, state) if values else []
        sent = dict(zip(fewer.outputs, done, strict=True))
        return [sent.get(one, gr.skip()) for one in outputs]


def build(language: str, launcher: Launcher | None = None) -> gr.Blocks:
    """The whole window in one language; nothing of it starts a process."""
    words = Language(language)
    with Window(title=words.t("common.title"), analytics_enabled=False, fill_width=True) as blocks:
        page = Page(
            words=words,
            blocks=blocks,
            tabs=gr.Tabs(selected="train", render=False, elem_classes=["atelier-tabs"]),
            run=gr.BrowserState("", storage_key="atelier.run", secret="atelier"),
            form=gr.BrowserState(None, storage_key="atelier.form", secret="atelier"),
            data=gr.State(None),
            config=gr.State(None),
            clock=Clock(),
            launcher=launcher or Launcher(),
        )
        _Header(page)
        page.tabs.render()
        with page.tabs:
            for name, module in tabs.walk().items():
                with gr.Tab(words.t(module.NAME), id=name, elem_id=f"tab-{name}") as tab:
                    page.clock.tab = name
                    module.build(replace(page, tab=tab))
        page.clock.listen()
        _put_first(
            blocks, [one for one in blocks.blocks.values() if isinstance(one, gr.State) or one.visible == "hidden"]
        )
        for handler in blocks.fns.values():
            # Gradio writes a manual of every handler and field into the page, some twenty megabytes with so many.
            handler.api_visibility = "private"
            if handler.show_progress == "hidden" and handler.show_progress_on is None:
                # At every event the page looks up each field that ever showed progress: seconds, when all of them do.
                handler.show_progress_on = [page.clock.face]
    return blocks


def _put_first(blocks: gr.Blocks, unseen: Sequence[Any]) -> None:
    """Let what nobody sees stand before everything else: at every event the page looks for each of these from the beginning."""
    for one in unseen:
        one.parent.children.remove(one)
        one.parent = blocks
    blocks.children[:0] = unseen


class _Header:
    """Name, device, what is running, language, light and dark: on every page."""

    def __init__(self, page: Page):
        self.page, words = page, page.words
        self.seen = gr.State([])
        self.leads_to = gr.State("")
        with gr.Row(elem_classes=["header"], equal_height=True):
            gr.HTML(f"<h1>{report.escape(words.t('common.title'))}</h1>", min_width=90, elem_classes=["brand"])
            self.device = gr.HTML(elem_classes=["chips"], min_width=120)
            self.running = gr.HTML(js_on_load=_LEAD, elem_classes=["chips"], min_width=120)
            gr.HTML(_switches(words), js_on_load=_SWITCH, elem_classes=["switches"], min_width=120)
        shown = [self.seen, self.device, self.running, self.leads_to]
        page.clock.add(self._refresh, [self.seen], shown, everywhere=True)
        page.blocks.load(lambda: self._refresh([]), outputs=shown, **_QUICK)
        self.running.click(self._lead, inputs=[self.leads_to], outputs=[page.run, page.tabs], **_QUICK)

    def _refresh(self, seen: Any) -> Any:
        device, (run_id, running) = self._device(), self._running()
        now = [device, run_id, running]
        if now == seen:
            return gr.skip()
        updates: Updates = {self.seen: now, self.leads_to: run_id}
        if not seen or seen[0] != device:
            told = device or self.page.words.t("common.asking_device")
            updates[self.device] = f"<span class='chip'>{report.escape(told)}</span>"
        updates[self.running] = (
            f"<button type='button' class='chip lead' data-lead>{report.escape(running)}</button>" if running else ""
        )
        return updates

    def _device(self) -> str:
        """The machine in words; empty until it is known."""
        facts = self.page.launcher.device()
        if facts.get("kind") == "cpu":
            return self.page.words.t("common.cpu", cores=facts["cores"], gigabytes=facts["memory_gb"])
        return str(facts.get("device", ""))

    def _running(self) -> tuple[str, str]:
        """The run at work and how far it is; else how many wait."""
        words = self.page.words
        active = [run for run in overview.look() if run.state in report.ACTIVE]
        working = [run for run in active if run.state != "queued"] or active[-1:]
        if not working:
            return "", ""
        run = working[0]
        parts = [
            run.title,
            words.share(run.step / run.steps)
            if run.steps and run.state != "queued"
            else words.t(f"common.word_{run.state}"),
        ]
        left = run.left if run.state == "running" else None
        if isinstance(left, int | float):
            parts.append(words.duration(left))
        if others := sum(run.state == "queued" for run in active if run is not working[0]):
            parts.append(words.t("common.waiting", count=others))
        return run.id, " · ".join(parts)

    def _lead(self, run_id: Any) -> Any:
        run = find(run_id)
        return {self.page.run: run.id, self.page.tabs: self.page.go("runs")} if run else gr.skip()


def _switches(words: Language) -> str:
    names = {code: Language(code).t("common.language") for code in languages.codes()}
    links = "".join(
        f"<a data-language='{code}' lang='{code}' href='/language/{code}'>{report.escape(name)}</a>"
        for code, name in names.items()
        if code != words.code
    )
    return f"<nav>{links}<button type='button' data-theme title='{report.escape(words.t('common.light_dark'))}' aria-label='{report.escape(words.t('common.light_dark'))}'>◐</button></nav>"


def serve(settings: GateSettings) -> int:
    """Open the studio at its address and stay until it is told to end; workers that it started go on.

    Raises:
        Problem: the address is taken.
    """
    launcher = Launcher()
    windows = {code: build(code, launcher) for code in languages.codes()}
    app = create_app(
        windows, settings, _resolve, say=languages.say, theme=theme.build(), css_paths=[theme.STYLE], head=theme.HEAD
    )
    app.add_middleware(Early, paths=[f"/{code}/" for code in windows])
    with socket.socket(socket.AF_INET6 if ":" in settings.address else socket.AF_INET) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.address, settings.port))
        except OSError as error:
            raise Problem(
                "The port {port} cannot be used.",
                "{error}.",
                "Another studio may be open; end it, or give another port with --port.",
                port=settings.port,
                error=error.strerror,
            ) from None
    garbage.take_up()
    gc.collect()
    gc.freeze()  # the windows stay as they are, and to search them all would hold up every page
    launcher.start()
    dataset.remove_abandoned(shelf.folder())
    # Many runs that were never looked at take a moment; it shall pass before somebody asks for them.
    threading.Thread(target=overview.read_all, daemon=True).start()
    print(f"Atelier is open at {next(iter(settings.hosts().values()))}", flush=True)
    try:
        # A page keeps a connection open for as long as it is looked at; the end must not wait for it.
        uvicorn.run(app, host=settings.address, port=settings.port, log_level="warning", timeout_graceful_shutdown=1)
    finally:
        launcher.close()
    return 0


def _resolve(run_id: str, path: str) -> Path | None:
    """What lies at that path in a run's folder, for the download route, which checks that it stays inside."""
    run = find(run_id)
    return run.folder / path if run else None
