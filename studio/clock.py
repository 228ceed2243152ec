"""When a page asks what is new, and that it asks once for all that it shows."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from studio import report
from studio.overview import overview

# A page that nobody sees asks for what is told from everywhere alone, and seldom; shown again, it catches up at once.
_TICK = """
let last = null, due = Date.now() + 1000 * props.value.every;
let tabs;
const open = () => {
  tabs ??= document.querySelector('.atelier-tabs');
  const shown = document.hidden ? undefined : [...tabs?.children || []].find((one) => one.getAttribute('role') === 'tabpanel' && one.offsetParent);
  return (shown?.id || '').slice(4);
};
setInterval(() => {
  const tab = open(), is_new = tab && last !== null && tab !== last;
  if (tab || document.hidden) last = tab;
  if (Date.now() < due && !is_new) return;
  due = Date.now() + 1000 * (document.hidden ? props.value.unseen : props.value.every);
  trigger(events[tab] || events[''], {tab});
}, 200);
"""


@dataclass(frozen=True)
class Look:
    """A part of the page that may change by itself.

    Attributes:
        function: takes the values of `inputs`, only reads files, takes a few milliseconds and returns updates by
            component; none, or `gr.skip()`, when nothing is new.
        tab: the tab on which it is seen; "" for what is seen, or said, from everywhere.
    """

    function: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    tab: str


class Clock:
    """Asks for all looks of the open tab by one event: a request takes Gradio longer than what is asked.

    Each tab has an event of its own, as the page searches for all that one takes and changes, from beginning to end.

    Attributes:
        tab: the tab that is being drawn, whose looks are added.
    """

    usual, unseen = 2.0, 30.0

    def __init__(self) -> None:
        """Drawn here, inside the window; nobody sees it."""
        self.looks: list[Look] = []
        self.tab = ""
        self.face = gr.HTML({"every": self.usual, "unseen": self.unseen}, html_template="", visible="hidden")

    def add(
        self, function: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], *, everywhere: bool = False
    ) -> None:
        """Look at that part of the page while its tab is open, or `everywhere` and also while the page is hidden."""
        self.looks.append(Look(function, inputs, outputs, "" if everywhere else self.tab))

    def listen(self) -> None:
        """Begin, when everything is drawn."""
        events = {tab: f"tick_{tab}" for tab in ("", *dict.fromkeys(look.tab for look in self.looks))}
        self.face.js_on_load = f"const events = {json.dumps(events)};" + _TICK
        for tab, event in events.items():
            looks = [look for look in self.looks if look.tab in ("", tab)]
            inputs = list(dict.fromkeys(one for look in looks for one in look.inputs))
            outputs = list(dict.fromkeys(one for look in looks for one in look.outputs))
            getattr(self.face, event)(
                self._answer(looks, inputs),
                inputs,
                [self.face, *outputs],
                queue=False,
                show_progress="hidden",
                trigger_mode="always_last",
            )

    def _answer(self, looks: Sequence[Look], inputs: Sequence[Any]) -> Callable[..., Any]:
        def answer(event: gr.EventData, request: gr.Request, *values: Any) -> Any:
            """What is new on the page, and when its next look is due."""
            said = None
            if isinstance(event._data, dict) and event._data.get("tab"):
                said = pace.look(str(request.session_hash), any(run.state in report.ACTIVE for run in overview.look()))
            updates = {} if said is None else {self.face: {"every": said, "unseen": self.unseen}}
            return updates | _look(looks, dict(zip(inputs, values, strict=True))) or gr.skip()

        return answer


def _look(looks: Sequence[Look], known: dict[Any, Any]) -> dict[Any, Any]:
    """What is new, with these values of the page's components."""
    updates = dict[Any, Any]()
    for look in looks:
        try:
            found = look.function(*(known[one] for one in look.inputs))
            updates |= {} if found == gr.skip() else found
        except Exception:  # one part of the page must not stand in the way of the others
            traceback.print_exc()
    return updates


class Pace:
    """How often pages look: the more of them while a training is at work, the seldomer, so that together they cost it little.

    A look of a page takes some 15 ms of a core; all pages together may have 3 % of the machine.
    """

    cost, share, forgotten = 0.015, 0.03, 90.0

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def look(self, session: str, is_busy: bool) -> float | None:
        """Seconds until the next look of that page, when it has to be told; None when it keeps its pace."""
        now = time.monotonic()
        with self._lock:
            self._seen = {one: known for one, known in self._seen.items() if now - known[0] < self.forgotten}
            _, told = self._seen.get(session, (now, Clock.usual))
            pages = len(self._seen | {session: None})
            due = Clock.usual
            if is_busy:
                due = min(self.forgotten / 2, max(due, pages * self.cost / (self.share * (os.cpu_count() or 1))))
            # Not for every page that comes or goes.
            is_new = not 0.75 * told <= due <= 1.25 * told
            self._seen[session] = now, due if is_new else told
            return round(due, 1) if is_new else None


pace = Pace()
