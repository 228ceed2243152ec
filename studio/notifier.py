"""Notify me: a notification of the browser when a run ends, asked for by a click, and an address that is told as well."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from core import notice, runs
from core.problem import Problem
from studio import report
from studio.overview import overview
from studio.tabs import Page

_QUICK = {"queue": False, "show_progress": "hidden"}
# Who ended while nobody looked is known by what this browser has seen; on its first look it remembers and says nothing.
_LISTEN = """
const key = 'atelier.ended', wish = 'atelier.notify';
const button = element.querySelector('button'), told = element.querySelector('span');
const can = 'Notification' in window;
const draw = () => {
  const on = can && Notification.permission === 'granted' && localStorage.getItem(wish) === 'on';
  button.setAttribute('aria-pressed', on);
  button.textContent = on ? button.dataset.off : button.dataset.on;
  told.textContent = !can || Notification.permission === 'denied' ? told.dataset.denied : on ? told.dataset.on : '';
};
button.addEventListener('click', async () => {
  if (!can) return draw();
  const on = localStorage.getItem(wish) === 'on' && Notification.permission === 'granted';
  if (on) localStorage.setItem(wish, 'off');
  else if (await Notification.requestPermission() === 'granted') localStorage.setItem(wish, 'on');
  draw();
});
const look = () => {
  const ended = (props.value && props.value.ended) || null;
  if (!ended) return;
  const old = localStorage.getItem(key), seen = new Set(JSON.parse(old || '[]'));
  // What is gone from the list for a moment is not told again.
  localStorage.setItem(key, JSON.stringify([...new Set([...seen, ...ended.map((one) => one.key)])]));
  if (old === null || !can || Notification.permission !== 'granted' || localStorage.getItem(wish) !== 'on') return;
  for (const one of ended.filter((one) => !seen.has(one.key))) new Notification(one.title, {body: one.body, tag: one.key});
};
watch('value', look);
draw(); look();
"""


def draw(page: Page) -> None:
    """The wishes, folded away, at the place where this is called."""
    _Notifier(page)


class _Notifier:
    def __init__(self, page: Page):
        self.page, words = page, page.words
        self.seen = gr.State("")
        with gr.Accordion(words.t("notify.title"), open=False, elem_classes=["group"]):
            self.bell = gr.HTML(
                {"ended": None}, html_template=_button(page), js_on_load=_LISTEN, label=words.t("notify.browser"),
                elem_classes=["notify"],
            )  # fmt: skip
            with gr.Row(elem_classes=["composer"]):
                self.webhook = gr.Textbox(
                    label=words.t("notify.webhook"), info=words.t("notify.webhook_help"), placeholder="https://", max_length=2000,
                )  # fmt: skip
                self.keep = gr.Button(words.t("notify.keep"), min_width=110)
            self.told = gr.HTML()
            self.command = gr.HTML()
        page.clock.add(self._refresh, [self.seen], [self.seen, self.bell], everywhere=True)
        page.blocks.load(self._open, outputs=[self.seen, self.bell, self.told, self.command], **_QUICK)
        self.keep.click(self._keep, inputs=[self.webhook], outputs=[self.told], **_QUICK)

    def _refresh(self, seen: Any) -> Any:
        words, everything = self.page.words, overview.look()
        # Who has not been read yet would be told of twice: without its last step, and with it.
        if any(run.late for run in everything):
            return gr.skip()
        ended = {f"{run.id} {run.state} {run.step}": run for run in everything if run.state in runs.ENDED}
        now = " ".join(ended)
        if now == seen:
            return gr.skip()
        told = [
            {"key": key, "title": run.title, "body": words.t(f"common.word_{run.state}")} for key, run in ended.items()
        ]
        return {self.seen: now, self.bell: {"ended": told}}

    def _open(self) -> Any:
        wishes = notice.Wishes.read()
        said = self.page.words.t("notify.command", command=" ".join(wishes.command) or "–")
        found = self._refresh(None)
        return (found if self.seen in found else {}) | {
            self.told: self._address(wishes),
            self.command: f"<p class='quiet'>{report.escape(said)}</p>",
        }

    def _address(self, wishes: notice.Wishes) -> str:
        """Which host is told. Not the whole address: it may hold a token, and others may look at this page."""
        if not wishes.webhook:
            return ""
        said = self.page.words.t("notify.webhook_host", host=urlsplit(wishes.webhook).hostname or "?")
        return f"<p class='quiet'>{report.escape(said)}</p>"

    def _keep(self, webhook: Any) -> Any:
        """Keep the address. The command is not set from a page: who can reach a page shall not run programs."""
        try:
            wishes = notice.Wishes(notice.check_webhook(webhook), notice.Wishes.read().command)
        except Problem as problem:
            return report.problems(self.page.words, problem.parts)
        try:
            wishes.write()
        except OSError as error:
            problem = Problem("Nothing could be written.", "{error}.", error=error.strerror or error)
            return report.problems(self.page.words, problem.parts)
        return f"<p class='quiet' role='status'>{report.escape(self.page.words.t('notify.kept'))}</p>"


def _button(page: Page) -> str:
    on, off, denied, listens = (
        report.escape(page.words.t(f"notify.{name}")) for name in ("browser", "browser_off", "denied", "listens")
    )
    return (
        f"<p><button type='button' class='way quiet-way' data-on='{on}' data-off='{off}'>{on}</button> "
        f"<span class='quiet' role='status' data-denied='{denied}' data-on='{listens}'></span></p>"
    )
