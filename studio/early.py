"""What runs in a page before Gradio does: what Gradio calls the head of a page comes when its own program is at work."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Gradio's loader counts the seconds at every frame, and nobody tells it that it is gone: the page would be drawn sixty times
# a second for as long as it is open, which takes a twentieth of a core.
SCRIPT = b"""<script>(() => {
  const draw = window.requestAnimationFrame.bind(window);
  let counting = false, stands = false;
  window.requestAnimationFrame = (step) => {
    if (!counting && (stands || !String(step).includes('performance.now()'))) return draw(step);
    stands = document.querySelector('[role=tab]') !== null;
    if (stands) return counting ? 0 : draw(step);
    return draw((time) => {
      counting = true;
      try { step(time); } finally { counting = false; }
    });
  };
})();</script>"""

_HEAD = b"<head>"


class Early:
    """ASGI middleware that puts the script at the beginning of the pages at these paths."""

    def __init__(self, app: ASGIApp, paths: Sequence[str]):
        self._app, self._paths = app, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = False

        async def send_with_script(message: Message) -> None:
            nonlocal is_page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                kind, packed = headers.get("content-type", ""), headers.get("content-encoding")
                is_page = message["status"] == 200 and kind.startswith("text/html") and not packed
                if is_page:
                    del headers["content-length"]
            elif is_page and _HEAD in message.get("body", b""):
                message = message | {"body": message["body"].replace(_HEAD, _HEAD + SCRIPT, 1)}
                is_page = False
            await send(message)

        is_one = scope["type"] == "http" and scope["path"] in self._paths
        await self._app(scope, receive, send_with_script if is_one else send)
