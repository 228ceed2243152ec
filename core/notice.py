"""Tells somebody that a run has ended: a POST to an address, or a command, both only if the user asked for them."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import unquote_to_bytes, urlsplit

from core import runs
from core.launch import environment
from core.problem import Problem
from core.runs import Run, write_whole

_FILE = "notify.json"
_SECONDS = 10.0
_COMMAND_SECONDS = 60.0
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Wishes:
    """Who is told.

    Attributes:
        webhook: an address that gets a POST of {run, name, outcome, message}; "" for none.
        command: a program and its arguments; {run}, {name}, {outcome} and {message} in them are filled. No shell reads it.
        anywhere: whether the address may be of this machine or of its own network. Who sets it on a page may be somebody
            else than who owns the machine, and must not make it ask what only it can reach; the command line may.
    """

    webhook: str = ""
    command: tuple[str, ...] = ()
    anywhere: bool = False

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
            data.get("anywhere") is True,
        )

    def write(self) -> None:
        """Keep them, readable for their owner alone: an address may hold a token."""
        data = {"webhook": self.webhook, "command": list(self.command), "anywhere": self.anywhere}
        write_whole(runs.home() / _FILE, json.dumps(data))


def check_webhook(text: Any, *, anywhere: bool = False) -> str:
    """An address that can be posted to, or "".

    Raises:
        Problem: it is none, or one of this machine or of its own network, and must not be.
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
    if not anywhere and not all(map(_is_public, _resolve(str(parts.hostname)))):
        raise Problem(
            "The address leads to this machine or to its own network.",
            to_do="Choose one on the internet, or let the owner of this machine set it: python -m core notify --webhook.",
        )
    return text


def _resolve(host: str) -> list[str]:
    """The numbers behind a name; none while nobody knows it."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return []


def _is_public(number: str) -> bool:
    """Whether an IP address is one of the internet, and hides no other within."""
    address = ipaddress.ip_address(number)
    if isinstance(address, ipaddress.IPv6Address):
        hidden = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            hidden = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if hidden is not None:
            return _is_public(str(hidden))
    return address.is_global and not address.is_multicast


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
                act(wishes, facts)
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


def _post(wishes: Wishes, facts: dict[str, str]) -> None:
    """To this address alone: no redirect is followed, no proxy and no password of the environment is used."""
    import httpcore
    import httpx

    class Public(httpcore.SyncBackend):
        """Connects to the very number that was looked at: a name may mean another a moment later."""

        def connect_tcp(self, host: str, *rest: Any, **more: Any) -> httpcore.NetworkStream:
            numbers = _resolve(host)
            if not numbers or not all(map(_is_public, numbers)):
                raise OSError("the address is unknown, or leads to this machine or to its own network")
            return super().connect_tcp(numbers[0], *rest, **more)

    url = httpx.URL(check_webhook(wishes.webhook, anywhere=True))
    headers = {"host": url.netloc.decode("ascii"), "content-type": "application/json"}
    if url.userinfo:
        headers["authorization"] = f"Basic {base64.b64encode(unquote_to_bytes(url.userinfo)).decode()}"
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    limits = dict.fromkeys(("connect", "read", "write", "pool"), _SECONDS)
    with httpcore.ConnectionPool(network_backend=None if wishes.anywhere else Public()) as pool:
        answer = pool.request(
            "POST", target, headers=headers, content=json.dumps(facts).encode(), extensions={"timeout": limits}
        )
    if answer.status >= 300:
        # Not the address: it may hold a token, and this goes into the run's log.
        raise OSError(f"the address answered {answer.status}")


def _call(wishes: Wishes, facts: dict[str, str]) -> None:
    arguments = [_fill(argument, facts) for argument in wishes.command]
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
