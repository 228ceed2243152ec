"""The tabs of the window, one a file: dropping a file in here adds a tab, deleting it removes one.

A tab's file has

- ``ORDER: int``, its place from left to right,
- ``NAME: str``, the locale key of its title (``chat.title``),
- ``build(page: Page) -> None``, which draws it: it is called inside its open ``gr.Tab``.

The file's name is the tab's id: ``page.go("chat")``.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

import gradio as gr

from studio.clock import Clock
from studio.language import Language

if TYPE_CHECKING:
    from studio.launcher import Launcher


@dataclass(frozen=True)
class Page:
    """What the tabs of one window share.

    Attributes:
        words: `words.t("chat.send")`, `words.text(english_of_core)`, `words.explain(problem)`.
        blocks: the window itself, for `page.blocks.load(...)`.
        tabs: the row of tabs; a handler that returns `page.go("chat")` to it switches.
        run: id of the selected run ("" for none); kept in the browser. Listen with `page.run.change(...)`, select by
            returning the id to it. It comes over the network: look it up with `core.runs.find_id`.
        form: what Train is set to, as `studio.form.Form.to_memory` writes it; kept in the browser.
        data: the data set that the Data tab hands to Train: {"train", "format", "columns", "tasks"} or None; with
            "settings", values by knob that Train shall take as well, or alone.
        config: plain data of a configuration that is handed to Train (from Runs): {"config"} or None. Gradio tells of a
            changed State by its queue alone, so the handler that sets it must not say `queue=False`.
        clock: asks what is new on the open tab: `page.clock.add(look, inputs, outputs)`, see `studio.clock.Look`.
        launcher: starts the workers.
        tab: the one that is being drawn: `page.tab.select(...)` hears when it is opened.
    """

    words: Language
    blocks: gr.Blocks
    tabs: gr.Tabs
    run: gr.BrowserState
    form: gr.BrowserState
    data: gr.State
    config: gr.State
    clock: Clock
    launcher: Launcher
    tab: gr.Tab = field(default_factory=lambda: gr.Tab(render=False))

    @property
    def language(self) -> str:
        return self.words.code

    def go(self, tab: str) -> gr.Tabs:
        """The update that opens that tab, for a handler with `page.tabs` among its outputs."""
        return gr.Tabs(selected=tab)


def walk() -> dict[str, ModuleType]:
    """Every tab by name, in their order."""
    found = {info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
    return dict(sorted(found.items(), key=lambda item: item[1].ORDER))
