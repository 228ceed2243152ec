"""The gate in front of the studio: who may talk to it, how much they may send, and what may leave it."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import html
import ipaddress
import os
import re
import secrets
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote, urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import parcel, runs
from core.parcel import Spool
from core.problem import Problem

if TYPE_CHECKING:
    # Gradio reads its environment while it is imported, so `drop_gradio_environment` has to come before it.
    import gradio as gr

LANGUAGE_COOKIE = "atelier_language"
SIGN_IN_PATH = "/atelier/sign-in"
SIGN_OUT_PATH = "/atelier/sign-out"
PLOTLY_PATH = "/atelier/plotly.js"
_ICON_PATH = "/favicon.ico"
DOWNLOAD_PATH = "/atelier/download"
PACK_PATH = "/atelier/pack"

Say = Callable[[str, str], str]
Resolve = Callable[[str, str], Path | None]

_MIB = 2**20
_BODY_BYTES = 16 * _MIB
_SIGN_IN_BYTES = 8 * 2**10
_MULTIPART_BYTES = _MIB
_CHUNK_BYTES = _MIB
_SESSION_SECONDS = 12 * 3600
_LEFTOVER_SECONDS = 24 * 3600
_YEAR_SECONDS = 365 * 24 * 3600
_SHORTEST_PASSWORD = 8

# 'unsafe-inline' and 'unsafe-eval' are Gradio's needs (inline configuration, `js_on_load` compiled in the page); what this
# policy secures is that nothing is loaded from, or sent to, another place.
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self'; "
    "worker-src 'self' blob:; frame-src 'none'; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
_SIGN_IN_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" a browser posts the sign-in form with "Origin: null", which this gate refuses.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
# Gradio builds the addresses in its pages from these, whoever sent them.
_UNTRUSTED_HEADERS = {b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-for", b"x-gradio-server", b"forwarded"}

# What the window needs of the routes that Gradio offers; all others (proxy, monitoring, deep links, run history, MCP, its
# code editor, ...) do not exist here. A path of two slashes makes Windows ask another machine for the file.
_GRADIO_READS = re.compile(
    r"/?|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/(static|assets|svelte)/.+"
    r"|/gradio_api/(info/?|startup-events|app_id/?|heartbeat/\w+|queue/data|upload_progress"
    r"|file=(?![A-Za-z][A-Za-z0-9+.-]+:)(?![/\\]{2}).+)"
)
_GRADIO_WRITES = re.compile(r"/gradio_api/(queue/join|run/[^/]+|upload|cancel|reset)/?")

_RUN_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_UNSAFE_IN_NAME = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')


def _as_written(language: str, text: str) -> str:
    return text


@dataclass(frozen=True)
class Credentials:
    """The one user who may sign in when the studio listens beyond this machine."""

    user: str
    password: str = field(repr=False)

    @classmethod
    def parse(cls, line: str) -> Credentials:
        """``user:password``; a Problem when it has no such shape or the password is short."""
        user, colon, password = line.strip().partition(":")
        if not (colon and user):
            raise Problem(
                "The sign-in is not of the form user:password.", to_do="Write both, with a colon between them."
            )
        if len(password) < _SHORTEST_PASSWORD:
            raise Problem(
                "The password for signing in is too short.",
                "It has {length} characters.",
                "Choose one of at least {least}.",
                length=len(password),
                least=_SHORTEST_PASSWORD,
            )
        return cls(user, password)

    @classmethod
    def read(cls, file: Path | None = None, variable: str = "ATELIER_SIGN_IN") -> Credentials | None:
        """From a file that is private to its owner, else from the environment (and out of it), else None."""
        line = os.environ.pop(variable, None)
        if file is None:
            return None if line is None else cls.parse(line)
        try:
            if os.name == "posix" and file.stat().st_mode & 0o077:
                raise Problem(
                    "The sign-in file {file} can be read by other users of this machine.",
                    to_do="Make it private: chmod 600 {file}",
                    file=file,
                )
            return cls.parse(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise Problem("The sign-in file {file} cannot be read.", "{error}", file=file, error=error) from error

    def match(self, user: str, password: str) -> bool:
        """Compare in a time that does not depend on where the two differ, nor on their lengths."""
        given, expected = (
            b"".join(hashlib.sha256(part.encode()).digest() for part in pair)
            for pair in ((user, password), (self.user, self.password))
        )
        return hmac.compare_digest(given, expected)


@dataclass(frozen=True)
class GateSettings:
    """Where the studio listens and whom it serves.

    Args:
        address: the address that it listens on.
        port: the port that it listens on.
        origins: further addresses that browsers may call it by, as ``http://name:port`` or ``https://name`` (behind a proxy).
        credentials: who may sign in; None leaves the door open, which only a loopback address allows.
        downloads: the folder that holds all runs; nothing outside leaves by the download route.
        upload_bytes: the most that one upload may hold.
    """

    downloads: Path
    address: str = "127.0.0.1"
    port: int = 7860
    origins: tuple[str, ...] = ()
    credentials: Credentials | None = None
    upload_bytes: int = 2048 * _MIB

    def hosts(self) -> dict[str, str]:
        """Every ``Host`` that is served, with the one ``Origin`` that its pages have."""
        names = ["127.0.0.1", "localhost", "[::1]"]
        if not _is_wildcard(self.address) and not is_loopback(self.address):
            names.append(f"[{self.address}]" if ":" in self.address else self.address.lower())
        served = [f"http://{name}" if self.port == 80 else f"http://{name}:{self.port}" for name in names]
        origins = served + [_parse_origin(origin) for origin in self.origins]
        return {origin.partition("://")[2]: origin for origin in origins}


def _parse_origin(text: str) -> str:
    try:
        parts = urlsplit(text.strip().lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    name = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[a-z0-9.:-]+", name) or parts.path not in ("", "/"):
        raise Problem(
            "{origin} is not an address that a browser could call the studio by.",
            to_do="Write it as http://name:port or https://name.",
            origin=text,
        )
    name = f"[{name}]" if ":" in name else name
    usual = port in (None, {"http": 80, "https": 443}[parts.scheme])
    return f"{parts.scheme}://{name}" if usual else f"{parts.scheme}://{name}:{port}"


def _is_wildcard(address: str) -> bool:
    return address in ("", "*", "0.0.0.0", "::")


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address; a name other than localhost is not trusted to be one."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


def check_settings(settings: GateSettings) -> None:
    """Raise a Problem when the studio would be open to other machines without a sign-in, or an origin is not one."""
    settings.hosts()
    if not is_loopback(settings.address) and settings.credentials is None:
        raise Problem(
            "The studio does not listen on {address} without a sign-in: whoever reaches it could use this machine.",
            to_do="Put user:password into the environment variable ATELIER_SIGN_IN or into a private file, "
            "or listen on 127.0.0.1 and reach it through an SSH tunnel.",
            field="address",
            address=settings.address or "every address",
        )


def drop_gradio_environment(home: Path) -> None:
    """Make Gradio deaf to the environment and silent to the outside; call it before anything imports Gradio.

    Every ``GRADIO_*`` variable goes, so that none can share the window, open folders or start further servers; telemetry
    is switched off, and what Gradio stores for a while lies in `home`, private to the user.

    Raises:
        RuntimeError: Gradio is imported already and has read what it was to be kept from.
    """
    if "gradio" in sys.modules:
        raise RuntimeError("drop_gradio_environment must run before gradio is imported")
    for name in [name for name in os.environ if name.upper().startswith("GRADIO_")]:
        del os.environ[name]
    folder = home.absolute() / "gradio"
    for private in (home, folder, folder / "examples"):
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        private.chmod(0o700)
    # Gradio leaves the parts of an upload that was broken off or refused.
    for part in folder.glob("tmp*"):
        if part.is_file() and part.stat().st_mtime < time.time() - _LEFTOVER_SECONDS:
            part.unlink(missing_ok=True)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def choose_language(codes: list[str], cookie: str | None, accepted: str) -> str:
    """The language of the cookie, else the most wanted one of an ``Accept-Language`` header (RFC 9110, 12.5.4), else English."""
    if cookie in codes:
        return cookie
    wanted = []
    for position, item in enumerate(accepted.split(",")):
        tag, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = next((p.removeprefix("q=") for p in parameters if p.startswith("q=")), "1")
        if re.fullmatch(r"(0(\.\d{0,3})?|1(\.0{0,3})?)", weight) and float(weight) > 0:
            wanted.append((-float(weight), position, tag.partition("-")[0]))
    spoken = (code for _, _, tag in sorted(wanted) for code in codes if code.partition("-")[0] == tag)
    return next(spoken, "en" if "en" in codes else codes[0])


class _Attempts:
    """Failed sign-ins by client; after five, each further one doubles the time to wait."""

    free, longest_wait, most_clients = 5, 300, 10_000

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def wait(self, client: str) -> float:
        """Seconds until this client may try again."""
        count, last = self._failures.get(client, (0, 0.0))
        pause = 0 if count < self.free else min(2 ** (count - self.free), self.longest_wait)
        return max(0.0, last + pause - time.monotonic())

    def fail(self, client: str) -> None:
        count, _ = self._failures.pop(client, (0, 0.0))
        # A dict keeps the order of insertion: the client whose last failure is oldest is forgotten first.
        if len(self._failures) >= self.most_clients:
            del self._failures[next(iter(self._failures))]
        self._failures[client] = (min(count + 1, 64), time.monotonic())

    def forget(self, client: str) -> None:
        self._failures.pop(client, None)


def _client_of(request: Request) -> str:
    """The client's address; of IPv6 its /64, within which one machine can have as many addresses as it likes."""
    try:
        address = ipaddress.ip_address(request.client.host if request.client else "")
    except ValueError:
        return "unknown"
    return str(address if address.version == 4 else ipaddress.ip_network((address, 64), strict=False))


class _Door:
    """Sign-in with one user name and password; sessions are random tokens of which only the digest is kept."""

    def __init__(self, settings: GateSettings, codes: list[str], say: Say):
        self._credentials, self._codes, self._say = settings.credentials, codes, say
        self._hosts = settings.hosts()
        self._attempts = _Attempts()
        self._sessions: dict[bytes, float] = {}
        # Cookies do not know ports; the port in the name keeps two studios on one machine apart.
        self._cookie = f"atelier_session_{settings.port}"

    def is_open(self, headers: Headers) -> bool:
        """Whether the request may pass: no sign-in is asked for, or it carries a living session, which this renews."""
        if self._credentials is None:
            return True
        key, now = self._key(headers), time.monotonic()
        if self._sessions.get(key, 0) < now:
            return False
        self._sessions[key] = now + _SESSION_SECONDS
        return True

    def _key(self, headers: Headers) -> bytes:
        token = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        return hashlib.sha256(token.encode()).digest()

    async def sign_in(self, request: Request) -> Response:
        if self.is_open(request.headers):
            return RedirectResponse("/", status_code=303)
        if request.method != "POST":
            return self._page(request)
        form = await request.form()
        client = _client_of(request)
        if wait := self._attempts.wait(client):
            return self._page(request, 429, {"Retry-After": str(int(wait) + 1)}, int(wait) + 1)
        user, password = (form.get(name) for name in ("user", "password"))
        assert self._credentials is not None
        if not (isinstance(user, str) and isinstance(password, str) and self._credentials.match(user, password)):
            self._attempts.fail(client)
            return self._page(request, 401)
        self._attempts.forget(client)
        now, token = time.monotonic(), secrets.token_urlsafe(32)
        self._sessions = {key: end for key, end in self._sessions.items() if end > now}
        self._sessions[hashlib.sha256(token.encode()).digest()] = now + _SESSION_SECONDS
        response = RedirectResponse("/", status_code=303)
        secure = self._hosts[request.headers["host"].lower()].startswith("https:")
        response.set_cookie(self._cookie, token, httponly=True, samesite="strict", secure=secure)
        return response

    async def sign_out(self, request: Request) -> Response:
        self._sessions.pop(self._key(request.headers), None)
        response = RedirectResponse(SIGN_IN_PATH, status_code=303)
        response.delete_cookie(self._cookie, httponly=True, samesite="strict")
        return response

    def _page(
        self, request: Request, status: int = 200, headers: Mapping[str, str] | None = None, wait: int = 0
    ) -> Response:
        language = _language_of(request.headers, self._codes)

        def say(text: str, **facts: int) -> str:
            return html.escape(self._say(language, text).format(**facts))

        message = {
            401: say("This user name and password do not belong together."),
            429: say("Too many attempts. Try again in {seconds} s.", seconds=wait),
        }.get(status, "")
        page = _SIGN_IN_PAGE.format(
            language=language,
            title=say("Sign in to Atelier"),
            user=say("User name"),
            password=say("Password"),
            submit=say("Sign in"),
            message=message,
            path=SIGN_IN_PATH,
        )
        policy = {"Content-Security-Policy": _SIGN_IN_POLICY, "Cache-Control": "no-store"}
        return HTMLResponse(page, status, {**policy, **(headers or {})})


_SIGN_IN_PAGE = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ display: grid; place-items: center; min-height: 90vh; margin: 0 }}
form {{ display: grid; gap: .5rem; width: min(20rem, 90vw) }}
h1 {{ font-size: 1.25rem; margin: 0 0 .5rem }}
input, button {{ font: inherit; padding: .5rem .75rem; margin-bottom: .5rem }}
</style></head><body><form method="post" action="{path}">
<h1>{title}</h1>
<label for="user">{user}</label><input id="user" name="user" autocomplete="username" autofocus required>
<label for="password">{password}</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button>{submit}</button><p role="alert">{message}</p>
</form></body></html>
"""
# A session cookie is withheld when a link on another site led here; asking again from this very page brings it along.
_ASK_AGAIN = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0"><title>Atelier</title>'


def _language_of(headers: Headers, codes: list[str]) -> str:
    cookie = cookie_parser(headers.get("cookie", "")).get(LANGUAGE_COOKIE)
    return choose_language(codes, cookie, headers.get("accept-language", ""))


class Gate:
    """ASGI middleware in front of every route, Gradio's own included.

    In this order: websockets are refused (nothing here speaks them), the Host has to be one of ours (421), the Origin absent
    or that of the Host (403), the request not sent by another site (403), the visitor signed in if sign-in is on (401), the
    route one that the window needs (404), the body within its limit, before and while it is read (413).
    """

    def __init__(self, app: ASGIApp, settings: GateSettings, door: _Door, codes: list[str], say: Say):
        self._app, self._door, self._codes, self._say = app, door, codes, say
        self._hosts = settings.hosts()
        self._upload_bytes = settings.upload_bytes + _MULTIPART_BYTES
        self._pages = {"/", SIGN_IN_PATH} | {f"/{code}{slash}" for code in codes for slash in ("", "/")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        headers = Headers(scope=scope)
        send = _with_headers(send, scope["path"])
        refusal = self._refuse(scope, headers)
        if refusal is not None:
            return await refusal(scope, receive, send)
        origin = self._hosts[headers["host"].lower()]
        scope = {
            **scope,
            "scheme": origin.partition(":")[0],
            "headers": [pair for pair in scope["headers"] if pair[0].lower() not in _UNTRUSTED_HEADERS],
        }
        await self._within_limit(scope, receive, send, self._limit_of(scope["path"]))

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        """The answer to a request that does not get through; None for one that does."""
        path, method = scope["path"], scope["method"]
        hosts = [host.lower() for host in headers.getlist("host")]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            problem = Problem(
                "The studio is not served under this address.",
                "It is served under {origins}.",
                "Open one of these, or start the studio with this address as a further origin.",
                origins=", ".join(self._hosts.values()),
            )
            return self._answer(headers, 421, problem)
        foreign = Problem("Another site sent this request. The studio answers its own pages only.")
        if any(origin.lower() != self._hosts[hosts[0]] for origin in headers.getlist("origin")):
            return self._answer(headers, 403, foreign)
        is_visit = (
            method == "GET"
            and path in self._pages
            and headers.get("sec-fetch-mode") == "navigate"
            and headers.get("sec-fetch-dest") == "document"
        )
        is_foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        if is_foreign and not is_visit:
            return self._answer(headers, 403, foreign)
        if path not in (SIGN_IN_PATH, _ICON_PATH) and not self._door.is_open(headers):
            if is_foreign:
                return HTMLResponse(_ASK_AGAIN, headers={"Cache-Control": "no-store"})
            if method == "GET" and path in self._pages:
                return RedirectResponse(SIGN_IN_PATH, status_code=303, headers={"Cache-Control": "no-store"})
            return self._answer(headers, 401, Problem("You are not signed in.", to_do="Reload the page and sign in."))
        code, slash, rest = path[1:].partition("/")
        if code in self._codes:
            routes = {"GET": _GRADIO_READS, "HEAD": _GRADIO_READS, "POST": _GRADIO_WRITES}.get(method)
            if routes is None or not routes.fullmatch(slash + rest):
                return self._answer(headers, 404, Problem("There is nothing here."))
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._limit_of(path):
            return self._answer(headers, 413, self._too_much(path))
        return None

    def _limit_of(self, path: str) -> int:
        if path == SIGN_IN_PATH:
            return _SIGN_IN_BYTES
        return self._upload_bytes if path.endswith("/gradio_api/upload") else _BODY_BYTES

    def _too_much(self, path: str) -> Problem:
        return Problem(
            "This is too much at once.",
            "The limit is {limit} MiB.",
            "Send a smaller file, or start the studio with a higher limit.",
            limit=round(self._limit_of(path) / _MIB, 2),
        )

    def _answer(self, headers: Headers, status: int, problem: Problem) -> Response:
        language = _language_of(headers, self._codes)
        text = problem.text(lambda sentence: self._say(language, sentence))
        # What is left of a refused body is not worth reading.
        return PlainTextResponse(text, status, {"Connection": "close", "Cache-Control": "no-store"})

    async def _within_limit(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Count the body while it is read; past the limit answer 413 and tell the application that the client is gone."""
        received, started, refused = 0, False, False

        async def count() -> Message:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received <= limit:
                return message
            if not (refused or started):
                refused = True
                await self._answer(Headers(scope=scope), 413, self._too_much(scope["path"]))(scope, receive, send)
            return {"type": "http.disconnect"}

        async def pass_on(message: Message) -> None:
            nonlocal started
            if not refused:
                started = True
                await send(message)

        try:
            await self._app(scope, count, pass_on)
        except Exception:
            if not refused:
                raise


def _with_headers(send: Send, path: str) -> Send:
    policy = _FILE_POLICY if "/gradio_api/file=" in path else _PAGE_POLICY

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", policy)
        await send(message)

    return send_with_headers


@cache
def _plotly() -> tuple[bytes, bytes]:
    from plotly.offline import get_plotlyjs

    source = get_plotlyjs().encode()
    return source, gzip.compress(source, 6)


def plotly_url() -> str:
    """Where a page finds plotly.js; the address changes with its version, so that browsers may keep it for good."""
    return f"{PLOTLY_PATH}?v={version('plotly')}"


def _send_plotly(request: Request) -> Response:
    plain, packed = _plotly()
    accepts_gzip = "gzip" in request.headers.get("accept-encoding", "")
    is_this_version = request.query_params.get("v") == version("plotly")
    headers = {
        "Cache-Control": f"private, max-age={_YEAR_SECONDS}, immutable" if is_this_version else "no-cache",
        "Vary": "Accept-Encoding",
        **({"Content-Encoding": "gzip"} if accepts_gzip else {}),
    }
    return Response(packed if accepts_gzip else plain, media_type="text/javascript", headers=headers)


def _find(root: Path, resolve: Resolve, run_id: str, path: str) -> tuple[Path, Path] | None:
    """The run's folder and what lies in it at `path` (slashes between names, "" for the folder); None if it may not leave."""
    names = path.split("/") if path else []
    if not _RUN_ID.fullmatch(run_id) or any(name in ("", ".", "..") or _UNSAFE_IN_NAME.search(name) for name in names):
        return None
    folder, target = resolve(run_id, ""), resolve(run_id, path)
    if folder is None or target is None:
        return None
    try:
        folder, target = folder.resolve(strict=True), target.resolve(strict=True)
    except OSError:
        return None
    is_inside = folder.is_relative_to(root.resolve()) and folder != root.resolve() and target.is_relative_to(folder)
    return (folder, target) if is_inside else None


def _attachment(name: str, media_type: str, content: Iterator[bytes], size: int | None = None) -> Response:
    headers = {
        "Content-Disposition": f"attachment; filename*=utf-8''{quote(name, safe='')}",
        "Content-Security-Policy": _FILE_POLICY,
        "Cache-Control": "no-store",
        **({"Content-Length": str(size)} if size is not None else {}),
    }
    return StreamingResponse(content, media_type=media_type, headers=headers)


def _read(file: BinaryIO, size: int) -> Iterator[bytes]:
    """At most `size` bytes: a log may grow while it is sent, and the length has been announced."""
    with file:
        while size and (chunk := file.read(min(size, _CHUNK_BYTES))):
            size -= len(chunk)
            yield chunk


def stream_zip(folder: Path, target: Path, name: str) -> Iterator[bytes]:
    """Pack all regular files below `target` into a zip, as it is read; links that lead out of `folder` stay out.

    Stored, not compressed: weights do not shrink. A file that vanishes meanwhile is left out. `name` is the top folder in
    the zip.
    """
    spool = Spool()
    with zipfile.ZipFile(spool, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for parent, folders, files in os.walk(target):
            folders.sort()
            for file in sorted(Path(parent, file) for file in files):
                if not (file.is_file() and file.resolve().is_relative_to(folder)):
                    continue
                try:
                    source = file.open("rb")
                except OSError:
                    continue
                inside = f"{name}/{file.relative_to(target).as_posix()}"
                info = zipfile.ZipInfo.from_file(file, inside, strict_timestamps=False)
                size = info.file_size
                with archive.open(info, "w", force_zip64=size >= 2**31) as entry:
                    for chunk in _read(source, size):
                        entry.write(chunk)
                        yield spool.take()
    yield spool.take()


def _routes(settings: GateSettings, codes: list[str], door: _Door, resolve: Resolve, say: Say) -> list[Route]:
    def go_home(request: Request) -> Response:
        headers = {"Vary": "Accept-Language, Cookie", "Cache-Control": "no-store"}
        return RedirectResponse(f"/{_language_of(request.headers, codes)}/", headers=headers)

    def set_language(request: Request) -> Response:
        code = request.path_params["code"]
        if code not in codes:
            return PlainTextResponse("There is no such language.", 404)
        query = f"?{request.url.query}" if request.url.query else ""
        response = RedirectResponse(f"/{code}/{query}", status_code=303, headers={"Cache-Control": "no-store"})
        response.set_cookie(LANGUAGE_COOKIE, code, max_age=_YEAR_SECONDS, httponly=True, samesite="lax")
        return response

    def send_file(request: Request) -> Response:
        found = _find(settings.downloads, resolve, request.path_params["run_id"], request.path_params["path"])
        if found is None or not found[1].is_file():
            return PlainTextResponse("There is no such file.", 404)
        file = found[1].open("rb")
        size = os.fstat(file.fileno()).st_size
        return _attachment(found[1].name, "application/octet-stream", _read(file, size), size)

    def send_folder(request: Request) -> Response:
        run_id, part = request.path_params["run_id"], request.query_params.get("part", "").strip("/")
        found = _find(settings.downloads, resolve, run_id, part)
        if found is None or not found[1].is_dir():
            return PlainTextResponse("There is no such folder.", 404)
        name = "-".join([run_id, *part.split("/")]) if part else run_id
        return _attachment(f"{name}.zip", "application/zip", stream_zip(*found, name))

    def send_packed(request: Request) -> Response:
        run_id = request.path_params["run_id"]
        found = _find(settings.downloads, resolve, run_id, "")
        try:
            if found is None:
                raise Problem(
                    "There is no run {name}.", to_do="Reload the page and choose one of the list.", name=repr(run_id)
                )
            return _attachment(f"{run_id}.zip", "application/zip", parcel.pack(runs.Run(found[0])))
        except Problem as problem:
            language = _language_of(request.headers, codes)
            return PlainTextResponse(problem.text(lambda text: say(language, text)), 404)

    return [
        Route("/", go_home),
        Route("/language/{code}", set_language),
        # Browsers ask for it before the page has named its icon, and would log an error.
        Route(_ICON_PATH, lambda request: Response(status_code=204)),
        Route(SIGN_IN_PATH, door.sign_in, methods=["GET", "POST"]),
        Route(SIGN_OUT_PATH, door.sign_out, methods=["POST"]),
        Route(PLOTLY_PATH, _send_plotly),
        Route(DOWNLOAD_PATH + "/{run_id}.zip", send_folder),
        Route(PACK_PATH + "/{run_id}.zip", send_packed),
        Route(DOWNLOAD_PATH + "/{run_id}/{path:path}", send_file),
    ]


async def _refuse_download(url: str, cache_dir: str) -> str:
    raise ValueError("The studio fetches nothing from other addresses.")


def create_app(
    windows: Mapping[str, gr.Blocks],
    settings: GateSettings,
    resolve: Resolve,
    *,
    say: Say = _as_written,
    **page: Any,
) -> FastAPI:
    """The studio behind its gate, ready for uvicorn.

    Args:
        windows: one Blocks a language, by language code; each is served at ``/code/``.
        settings: where it listens and whom it serves.
        resolve: (run id, path in the run with slashes, "" for its folder) -> what may be downloaded there, or None.
        say: (language code, English text) -> the text in that language, for the sign-in page and for refusals.
        page: how the window looks, as `gradio.mount_gradio_app` takes it: ``theme``, ``css``, ``css_paths``, ``js``, ``head``.

    Raises:
        Problem: it would be open to other machines without a sign-in.
    """
    import gradio as gr
    from gradio import processing_utils

    check_settings(settings)
    # Gradio would fetch whatever address a visitor names in place of an upload.
    processing_utils.async_ssrf_protected_download = _refuse_download
    codes = list(windows)
    door = _Door(settings, codes, say)
    app = FastAPI(routes=_routes(settings, codes, door, resolve, say), docs_url=None, redoc_url=None, openapi_url=None)
    for code, blocks in windows.items():
        gr.mount_gradio_app(
            app,
            blocks,
            path=f"/{code}",
            server_name=settings.address,
            server_port=settings.port,
            footer_links=[],
            run_history=False,
            app_kwargs={"openapi_url": None},
            allowed_paths=[],
            show_error=False,
            max_file_size=settings.upload_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            **page,
        )
        # Gradio checks that a file named by a visitor was uploaded only after `launch`, which a mounted window never sees:
        # without this any file that the studio can read could be named and fetched.
        blocks.has_launched = True
    app.add_middleware(Gate, settings=settings, door=door, codes=codes, say=say)
    return app
