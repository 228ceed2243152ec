"""Tells somebody that a run has ended: a POST to an address, or a command, both only if the user asked for them."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from core import runs
from core.launch import environment
from core.problem import Problem
from core.runs import Run, write_whole

_FILE = "notify.json"
_SECONDS = 10.0
_COMMAND_SECONDS = 60.0


@dataclass(frozen=True)
class Wishes:
    """Who is told.

    Attributes:
        webhook: an address that gets a POST of {run, name, outcome, message}; "" for none.
        command: a program and its arguments; {run}, {name}, {outcome} and {message} in them are filled. No shell reads it.
    """

    webhook: str = ""
    command: tuple[str, ...] = ()

    @classmethod
    def read(cls) -> Self:
        """What lies in the studio's home; nothing where that is none of ours."""
        try:
            data = json.loads((runs.home() / _FILE).read_text(encoding="utf-8"))
            webhook, command = data.get("webhook", ""), data.get("command", [])
        except (OSError, ValueError, AttributeError):
            return cls()
        return cls(
            webhook if isinstance(webhook, str) else "",
            tuple(command) if isinstance(command, list) and all(isinstance(one, str) for one in command) else (),
        )

    def write(self) -> None:
        """Keep them, readable for their owner alone: an address may hold a token."""
        write_whole(runs.home() / _FILE, json.dumps({"webhook": self.webhook, "command": list(self.command)}))


def check_webhook(text: Any) -> str:
    """An address that can be posted to, or "".

    Raises:
        Problem: it is none.
    """
    text = text.strip() if isinstance(text, str) else "?"
    if not text:
        return ""
    try:
        parts = urlsplit(text)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_one = False
    if not is_one or len(text) > 2000 or not text.isprintable() or " " in text:
        raise Problem("This is no address that a message could be sent to.", to_do="Write it as https://name/path.")
    return text


def tell(run: Run, wishes: Wishes | None = None) -> list[str]:
    """Tell whoever wants to know how the run ended; whatever fails is told and hurts nobody.

    Returns:
        What went wrong, in English; empty when nothing did.
    """
    wishes = Wishes.read() if wishes is None else wishes
    if not wishes.webhook and not wishes.command:
        return []
    result = run.result() or {}
    facts = {
        "run": run.id, "name": run.title, "outcome": str(result.get("outcome") or run.state()), "message": str(result.get("message") or ""),
    }  # fmt: skip
    wrong = []
    for wanted, act in ((wishes.webhook, _post), (wishes.command, _call)):
        if wanted:
            try:
                act(wanted, facts)
            except Exception as error:  # a run that ended well must not end badly for this
                wrong.append(f"{type(error).__name__}: {error}".split("\n")[0][:300])
    for line in wrong:
        print(f"notify: {line}", file=sys.stderr, flush=True)
    return wrong


def tell_killed(run: Run) -> None:
    """Tell of a run whose worker was killed and could not: once, whoever finds it first, be it a studio or another worker."""
    worker = run.read_json("worker.json") or {}
    pid, born = worker.get("pid"), worker.get("birth")
    if run.state() != "interrupted" or worker.get("host") != socket.gethostname():
        return
    if not isinstance(pid, int) or not isinstance(born, int | float):
        return
    try:
        (run.folder / f".told-{pid}-{born:.0f}").touch(0o600, exist_ok=False)
        wished = (runs.home() / _FILE).stat().st_mtime
        signs = [
            path.stat().st_mtime for name in ("worker.json", "metrics.jsonl") if (path := run.folder / name).exists()
        ]
    except OSError:
        return  # it was told, or nobody wants to know
    # What broke off before anybody wanted to know is no news.
    if max(signs, default=0) >= wished:
        tell(run)


def _post(address: Any, facts: dict[str, str]) -> None:
    """To this address alone: no redirect is followed, no proxy and no password of the environment is used."""
    import httpx

    with httpx.Client(timeout=_SECONDS, follow_redirects=False, trust_env=False) as client:
        answer = client.post(check_webhook(address), json=facts)
    if answer.status_code >= 300:
        # Not the address: it may hold a token, and this goes into the run's log.
        raise OSError(f"the address answered {answer.status_code}")


def _call(command: Any, facts: dict[str, str]) -> None:
    arguments = [_fill(argument, facts) for argument in command]
    told = {f"ATELIER_{name.upper()}": value.replace("\0", "") for name, value in facts.items()}
    done = subprocess.run(
        arguments, env=environment() | told, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        timeout=_COMMAND_SECONDS, check=False, cwd=os.path.expanduser("~"),
    )  # fmt: skip
    if done.returncode:
        raise OSError(f"the command ended with {done.returncode}")


def _fill(argument: str, facts: dict[str, str]) -> str:
    # In one pass: a run that somebody called {message} is called so.
    return re.sub(r"\{(\w+)\}", lambda found: facts.get(found[1], found[0]).replace("\0", ""), argument)
