"""The serving process: one base model and its adapters, started when someone wants an answer, and the client that reads it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, Self

import httpx
from pydantic import Field, ValidationError

from core import runs
from core.config import Settings
from core.parent import introduce
from core.problem import Problem
from studio import launcher

_COMMAND = (sys.executable, "-m", "core", "serve")
_LOG_BYTES = 2**20
_TAIL_BYTES = 600
_LINE_BYTES = 64 * 2**10
_ASK_EVERY = 0.2
_SHOW_EVERY = 0.08
_END_SECONDS = 5.0
_HEALTH_SECONDS = 10.0
_SAME_FAILURE_SECONDS = 2.0
# A long prompt on a slow device is silent until its first token; whoever does not want to wait presses Stop.
_PATIENCE = httpx.Timeout(10.0, read=900.0)

How = Literal["base", "applied", "merged"]
Manner = Literal["talk", "ask", "continue", "label", "find"]
"""How a model is spoken to: a conversation; one message and its answer; a text that it continues; a text that it labels; a
question whose answer it finds in a text."""


@dataclass(frozen=True)
class Base:
    """The model that is loaded: what `core.config.ModelSettings` calls name, revision and quantization."""

    name: str
    revision: str | None = None
    quantization: str = "none"

    @property
    def title(self) -> str:
        """Its name with its quantisation: quantised, it is another base."""
        return self.name if self.quantization == "none" else f"{self.name} ({self.quantization})"


@dataclass(frozen=True)
class Weights:
    """The weights that shall answer.

    Attributes:
        base: the model underneath.
        run: id of the run whose adapter it is; None for the base that nobody trained.
        how: the adapter beside the base with a strength, merged into it, or the base alone.
        strength: 0 is the base, 1 as trained, up to 2.
        manner: what it was trained for.
    """

    base: Base
    run: str | None = None
    how: How = "base"
    strength: float = 1.0
    manner: Manner = "talk"

    @property
    def model(self) -> str:
        """What the serving process calls them."""
        if self.run is None or self.how == "base":
            return "base"
        return f"{self.run}:merged" if self.how == "merged" else self.run


def _slid(default: float, least: float, most: float, step: float, **limits: float) -> Any:
    """A field that is set by a slider from `least` to `most`; `limits` are what is taken at all, where that is more."""
    return Field(default, **({"ge": least, "le": most} | limits), json_schema_extra={"slider": [least, most, step]})


class Sampling(Settings):
    """How the next token is chosen, and when to end."""

    temperature: float = _slid(0.7, 0, 2, 0.05)
    top_p: float = _slid(0.95, 0.05, 1, 0.05)
    top_k: int = _slid(0, 0, 200, 1, le=1000)
    max_tokens: int = _slid(256, 1, 2048, 1, le=8192)
    repetition_penalty: float = _slid(1.0, 1, 2, 0.05, ge=0.5)
    seed: int = Field(0, ge=0, le=2**31 - 1)

    @classmethod
    def sliders(cls) -> dict[str, tuple[float, float, float]]:
        """The fields that a slider sets, in their order: least, most, step."""
        found = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return {name: tuple(extra["slider"]) for name, extra in found.items() if isinstance(extra, dict)}  # type: ignore[arg-type,misc]

    @classmethod
    def read(cls, **given: Any) -> Self:
        """The settings in `given`; a Problem names each that is out of its range."""
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise Problem.join(
                Problem(
                    "{setting} cannot be {given}.",
                    to_do="Give a number from {least} to {most}.",
                    field=str(detail["loc"][0]),
                    setting=detail["loc"][0],
                    given=repr(detail.get("input"))[:40],
                    **_range(str(detail["loc"][0])),
                )
                for detail in error.errors()
            ) from None


def _range(name: str) -> dict[str, Any]:
    limits = {type(limit).__name__: limit for limit in Sampling.model_fields[name].metadata}
    return {"least": limits["Ge"].ge, "most": limits["Le"].le}


@dataclass(frozen=True)
class Passage:
    """A text to be labelled, or with a question a text to find its answer in."""

    text: str
    question: str | None = None


Said = str | Sequence[Mapping[str, str]] | Passage
"""What a model is given: a text to continue, messages to answer, or a passage."""


@dataclass(frozen=True)
class Span:
    """The answer in a context: from its character `start` to before `end`; empty where the text does not say."""

    start: int
    end: int
    probability: float | None = None


@dataclass(frozen=True)
class Piece:
    """What arrived: seconds of loading so far, some text, a whole result, or the numbers at the end; `weights` says what made it."""

    text: str = ""
    labels: Sequence[tuple[str, float]] = ()
    span: Span | None = None
    loading: float | None = None
    weights: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None
    speed: float | None = None
    finish: str | None = None


@dataclass
class Answer:
    """One answer while it grows: text, labels with their probabilities (the likeliest first), or a place in a context."""

    text: str = ""
    state: Literal["loading", "writing", "done", "stopped", "failed"] = "writing"
    loading: float = 0.0
    weights: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)
    speed: float | None = None
    finish: str = ""
    problem: Problem | None = None
    labels: list[tuple[str, float]] = field(default_factory=list)
    span: Span | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing came."""
        return not self.text and not self.labels and self.span is None

    def take(self, piece: Piece) -> None:
        """Add what arrived."""
        self.state = "writing" if piece.loading is None else "loading"
        self.loading = piece.loading or 0.0
        self.text += piece.text
        self.labels = list(piece.labels) or self.labels
        self.span = piece.span or self.span
        self.weights = dict(piece.weights or self.weights)
        self.usage = dict(piece.usage or self.usage)
        self.speed = piece.speed if piece.speed is not None else self.speed
        self.finish = piece.finish or self.finish


class Serving:
    """At most one serving process, and only ever the one that was started here."""

    def __init__(self, command: Sequence[str] = _COMMAND):
        self._command = tuple(command)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._base: Base | None = None
        self._ready: Path | None = None
        self._url: str | None = None
        self._token = ""
        self._since = 0.0
        self._streams = 0
        self._seen = 0.0
        self._failure: tuple[Base, float, Problem] | None = None
        atexit.register(self.end)

    @property
    def base(self) -> Base | None:
        """The model that is loaded or being loaded; None when no process lives."""
        return self._base if self._process is not None and self._process.poll() is None else None

    @property
    def loading(self) -> float:
        """Seconds since the process was started."""
        return time.monotonic() - self._since

    def want(self, base: Base, *, switch: bool = True) -> str | None:
        """The address at which `base` is served, or None while it is being loaded.

        Starts the process when there is none, ends it first when it serves another base, and starts it anew when it died
        or no longer answers. It may take some seconds while an old process ends: not for an event loop.

        Args:
            switch: False for whoever waits already: two that wait for two models would end each other's for ever.

        Raises:
            Problem: the model cannot be loaded (the next call tries again), or it had to give way to another.
        """
        with self._lock:
            if not switch and self._base != base:
                raise Problem(
                    "The model {model} gave way to another that was asked for after it.",
                    to_do="Send it again when the other answer has ended.",
                    model=base.name,
                )
            if self._process is not None and self._base != base:
                self._end()
            if self._process is not None and self._url is not None and not self._is_well():
                self._end()
            if self._process is None:
                self._refuse_again(base)
                self._start(base)
            if self._url is None:
                self._look()
            return self._url

    def end(self) -> None:
        """End the process and free its memory."""
        with self._lock:
            self._end()

    async def stream(self, weights: Weights, said: Said, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """The answer of those weights as it is made; labels and places come whole, in one piece.

        Closing the generator closes the connection, which ends the generation.

        Raises:
            Problem: the model cannot be loaded, the process refuses, or it ends in mid-answer.
        """
        path, body = _request(weights, said, sampling)
        for is_last_try in (False, True):
            switch = not is_last_try
            while (url := await asyncio.to_thread(self.want, weights.base, switch=switch)) is None:
                switch = False
                yield Piece(loading=self.loading)
                await asyncio.sleep(_ASK_EVERY)
            heard = False
            try:
                async with contextlib.aclosing(self._read(url + path, body)) as pieces:
                    async for piece in pieces:
                        heard = True
                        yield piece
                return
            except httpx.HTTPError as error:
                if heard or is_last_try or isinstance(error, httpx.ReadTimeout):
                    raise _broken_off() from error
                # It died since the last answer: nothing is lost by asking a new one.
                await asyncio.to_thread(self._forget, url)

    async def _read(self, url: str, body: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
        headers = {"Authorization": f"Bearer {self._token}"}
        self._streams += 1
        try:
            # The answer comes from this machine: no proxy of the user's environment may see it.
            async with (
                httpx.AsyncClient(timeout=_PATIENCE, trust_env=False) as client,
                client.stream("POST", url, json=body, headers=headers) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _refusal(response.text)
                if not body.get("stream"):
                    yield _result((await response.aread()).decode("utf-8", errors="replace"))
                    return
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data:"):
                        yield _piece(line.removeprefix("data:"))
            raise _broken_off()
        finally:
            self._streams -= 1
            self._seen = time.monotonic()

    def _forget(self, url: str) -> None:
        """Be done with a process that no longer listens, unless another has already done it."""
        with self._lock:
            if self._url == url:
                self._end()

    def _start(self, base: Base) -> None:
        self._base, self._url, self._token, self._since = base, None, secrets.token_urlsafe(32), time.monotonic()
        self._ready = runs.home() / f"serve-{secrets.token_hex(6)}.json"
        arguments = ["--model", base.name, "--port", "0", "--ready", str(self._ready), "--parent", introduce()]
        if base.revision:
            arguments += ["--revision", base.revision]
        if base.quantization != "none":
            arguments += ["--quantization", base.quantization]
        apart: dict[str, Any] = {"start_new_session": True}
        if os.name == "nt":
            apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}  # type: ignore[attr-defined]
        try:
            process = subprocess.Popen(
                [*self._command, *arguments],
                cwd=launcher.ROOT,
                env=launcher.environment() | {"ATELIER_SERVE_TOKEN": self._token},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                close_fds=True,
                **apart,
            )
        except OSError as error:
            raise Problem("The serving process could not be started.", "{error}", error=error) from error
        self._process = process
        assert process.stdout is not None
        threading.Thread(target=_keep, args=(process.stdout, log_path()), name="serve-log", daemon=True).start()

    def _refuse_again(self, base: Base) -> None:
        """Several that wait for one model hear of one failure, instead of each trying anew."""
        if (
            self._failure is not None
            and self._failure[0] == base
            and time.monotonic() - self._failure[1] < _SAME_FAILURE_SECONDS
        ):
            raise self._failure[2]

    def _look(self) -> None:
        """Take in the ready file, or the last words of a process that ended without being ready."""
        assert self._process is not None and self._base is not None and self._ready is not None
        ended = self._process.poll() is not None
        note: Any = None
        with contextlib.suppress(OSError, ValueError):
            note = json.loads(self._ready.read_text(encoding="utf-8"))
        if isinstance(note, dict) and isinstance(note.get("url"), str):
            self._url, self._seen = note["url"], time.monotonic()
            self._ready.unlink(missing_ok=True)
        elif ended or (isinstance(note, dict) and "problem" in note):
            base = self._base
            self._end()
            told = _problem(note.get("problem")) if isinstance(note, dict) else None
            unknown = Problem(
                "The model {model} could not be loaded.",
                _tail() and "{tail}",
                "See {log}.",
                model=base.name,
                tail=_tail(),
                log=log_path(),
            )
            self._failure = (base, time.monotonic(), told or unknown)
            raise self._failure[2]

    def _is_well(self) -> bool:
        """Whether the process lives and answers; one that is just making an answer is not asked."""
        assert self._process is not None
        if self._process.poll() is not None:
            return False
        if self._streams or time.monotonic() - self._seen < _HEALTH_SECONDS:
            return True
        with contextlib.suppress(httpx.HTTPError):
            headers = {"Authorization": f"Bearer {self._token}"}
            with httpx.Client(timeout=_HEALTH_SECONDS, trust_env=False) as client:
                if client.get(f"{self._url}/v1/models", headers=headers).status_code == httpx.codes.OK:
                    self._seen = time.monotonic()
                    return True
        return False

    def _end(self) -> None:
        process, self._process, self._url = self._process, None, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._ready is not None:
            self._ready.unlink(missing_ok=True)


@cache
def shared() -> Serving:
    """The one that all tabs of this studio talk to."""
    return Serving()


def log_path() -> Path:
    """What the serving process printed."""
    return runs.home() / "serve.log"


async def read_together(
    streams: Sequence[tuple[Answer, AsyncGenerator[Piece, None]]], stop: threading.Event
) -> AsyncGenerator[None, None]:
    """Read all streams at once, each into its Answer, and yield some ten times a second until all have ended.

    It yields even when nothing is new, because only then does Gradio notice that the page is gone. When `stop` is set, or
    when this is closed, all connections close.
    """
    readers = [asyncio.create_task(_fill(answer, stream)) for answer, stream in streams]
    try:
        pending = set(readers)
        while pending and not stop.is_set():
            _, pending = await asyncio.wait(pending, timeout=_SHOW_EVERY)
            if pending:
                yield
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        for answer, _ in streams:
            if answer.state in ("loading", "writing"):
                answer.state = "stopped"


async def _fill(answer: Answer, stream: AsyncGenerator[Piece, None]) -> None:
    try:
        async with contextlib.aclosing(stream) as pieces:
            async for piece in pieces:
                answer.take(piece)
        answer.state = "done"
    except Problem as problem:
        answer.problem, answer.state = problem, "failed"


def _request(weights: Weights, said: Said, sampling: Sampling) -> tuple[str, dict[str, Any]]:
    """The endpoint that it belongs to, and its body."""
    body: dict[str, Any] = {"model": weights.model, "scale": weights.strength}
    if isinstance(said, Passage):
        if said.question is None:
            return "/v1/classify", body | {"input": said.text}
        return "/v1/answer", body | {"question": said.question, "context": said.text}
    body |= {"stream": True} | sampling.model_dump()
    if isinstance(said, str):
        return "/v1/completions", body | {"prompt": said}
    return "/v1/chat/completions", body | {"messages": list(said)}


def _result(text: str) -> Piece:
    """A whole result: labels, the likeliest first, or a place in the context."""
    try:
        told = json.loads(text)
        weights = dict(told["weights"])
        if "labels" in told:
            labels = [(str(one["label"]), float(one["probability"])) for one in told["labels"]]
            return Piece(labels=sorted(labels, key=lambda one: -one[1]), weights=weights)
        span = Span(int(told["start"]), int(told["end"]), float(told["probability"]))
        return Piece(text=str(told["answer"]), span=span, weights=weights)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _broken_off() from error


def _piece(line: str) -> Piece:
    try:
        chunk = json.loads(line)
        if "error" in chunk:
            raise _refusal(line)
        choice = (chunk.get("choices") or [{}])[0]
        text = choice.get("text", choice.get("delta", {}).get("content"))
        return Piece(
            text=str(text or ""),
            weights=chunk.get("weights"),
            usage=chunk.get("usage"),
            speed=chunk.get("speed"),
            finish=choice.get("finish_reason"),
        )
    except (ValueError, AttributeError, LookupError) as error:
        if isinstance(error, Problem):
            raise
        raise _broken_off() from error


def _problem(data: Any) -> Problem | None:
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        return Problem.from_data(data)
    return None


def _refusal(body: str) -> Problem:
    """What the process says when it does not answer."""
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        error = json.loads(body)["error"]
        return _problem(error.get("problem")) or Problem(
            "The model does not answer.", "{error}", error=error["message"]
        )
    return Problem("The model does not answer.", "{error}", error=body[:_TAIL_BYTES])


def _broken_off() -> Problem:
    return Problem(
        "The answer broke off: the serving process ended.", to_do="Send it again; the model is then loaded anew."
    )


def _keep(pipe: IO[bytes], path: Path) -> None:
    """Write what the process prints to a file of bounded size; when it is full it begins again."""
    with pipe, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0) as log:
        while line := pipe.readline(_LINE_BYTES):
            if log.tell() + len(line) > _LOG_BYTES:
                log.seek(0)
                log.truncate()
            log.write(line)


def _tail() -> str:
    with contextlib.suppress(OSError):
        return log_path().read_bytes()[-_TAIL_BYTES:].decode("utf-8", errors="replace").strip()
    return ""
