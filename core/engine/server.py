"""The serving process: one base model and the runs on it, through the OpenAI API, several answers at a time.

Two requests are our own: `/v1/classify` gives the labels of a text, `/v1/answer` the answer to a question in its context.
Which head the base model has follows the run that is asked; see `core.engine.chat`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvicorn
from pydantic import Field, ValidationError, field_validator, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core import objectives
from core.config import ModelSettings, Settings
from core.engine.chat import Speaker, Speech, resolve_weights
from core.engine.generate import Sampling
from core.formats import Message
from core.parent import end_with
from core.problem import Problem
from core.runs import all_runs, write_whole

Asked = TypeVar("Asked", bound=Settings)
_LARGEST_BODY = 4 * 2**20
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}


class Turn(Settings):
    """A message of a request; content as text, or as a list of parts of which the text counts."""

    model_config = Settings.model_config | {"extra": "ignore"}

    role: Literal["system", "user", "assistant", "tool"]
    content: str = Field(max_length=1_000_000)

    @field_validator("role", mode="before")
    @classmethod
    def _read_role(cls, role: Any) -> Any:
        return "system" if role == "developer" else role

    @field_validator("content", mode="before")
    @classmethod
    def _read_content(cls, content: Any) -> Any:
        if isinstance(content, list):
            return "".join(
                part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
            )
        return content


class Ask(Settings):
    """A request: OpenAI's fields, and what only we have (scale, top_k, repetition_penalty)."""

    model_config = Settings.model_config | {"extra": "ignore"}

    model: str = Field("base", max_length=200)
    messages: list[Turn] = Field([], max_length=1000)
    prompt: str = Field("", max_length=1_000_000)
    stream: bool = False
    scale: float = Field(1.0, ge=0.0, le=2.0)
    temperature: float = Field(0.7, ge=0.0, le=5.0)
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, le=100_000)
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    max_tokens: int = Field(256, ge=1, le=131_072)
    seed: int | None = Field(None, ge=0, le=2**63 - 1)

    @model_validator(mode="before")
    @classmethod
    def _read_synonyms(cls, data: Any) -> Any:
        """Clients send null for what they leave open, and the newer name of max_tokens."""
        if isinstance(data, dict):
            data = {key: value for key, value in data.items() if value is not None}
            if "max_completion_tokens" in data:
                data["max_tokens"] = data.pop("max_completion_tokens")
        return data

    def sampling(self) -> Sampling:
        return Sampling.model_validate({name: getattr(self, name) for name in Sampling.model_fields})


class Classify(Settings):
    """A request for the labels of a text."""

    model_config = Settings.model_config | {"extra": "ignore"}

    model: str = Field("base", max_length=200)
    input: str = Field(min_length=1, max_length=1_000_000)
    scale: float = Field(1.0, ge=0.0, le=2.0)

    def reply(self, speaker: Speaker, busy: Sequence[str | None]) -> dict[str, Any]:
        run, merged = resolve_weights(self.model)
        labels, weights = speaker.classify(run, self.input, merged=merged, scale=self.scale, busy=busy)
        return {
            "labels": [{"label": label, "probability": probability} for label, probability in labels],
            "several": speaker.objective.several,
            "weights": weights,
        }


class FindAnswer(Settings):
    """A request for the answer to a question in its context."""

    model_config = Settings.model_config | {"extra": "ignore"}

    model: str = Field("base", max_length=200)
    question: str = Field(min_length=1, max_length=100_000)
    context: str = Field(min_length=1, max_length=200_000)
    scale: float = Field(1.0, ge=0.0, le=2.0)

    def reply(self, speaker: Speaker, busy: Sequence[str | None]) -> dict[str, Any]:
        run, merged = resolve_weights(self.model)
        found, weights = speaker.find_answer(
            run, self.question, self.context, merged=merged, scale=self.scale, busy=busy
        )
        return asdict(found) | {"weights": weights}


class Errand:
    """A request that is answered at once, not token by token."""

    def __init__(self, request: Classify | FindAnswer):
        self.request = request
        self.events = asyncio.get_running_loop()
        self.result: asyncio.Future[dict[str, Any] | Problem] = self.events.create_future()

    def give(self, result: dict[str, Any] | Problem) -> None:
        with contextlib.suppress(RuntimeError):  # the connection's loop is gone with the server
            self.events.call_soon_threadsafe(self._set, result)

    def _set(self, result: dict[str, Any] | Problem) -> None:
        if not self.result.done():  # whoever asked may have gone away
            self.result.set_result(result)


class Answer:
    """One request on its way: filled by the engine's thread, read by the connection."""

    def __init__(self, ask: Ask, chat: bool):
        self.ask, self.chat = ask, chat
        self.pieces: asyncio.Queue[str | Problem | None] = asyncio.Queue()
        self.events = asyncio.get_running_loop()
        self.cancelled = False
        self.speech: Speech | None = None
        self.iterator: Iterator[str] = iter(())

    def give(self, piece: str | Problem | None) -> None:
        with contextlib.suppress(RuntimeError):  # the connection's loop is gone with the server
            self.events.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Engine(threading.Thread):
    """The one thread that touches the model: each answer in turn gets its next token."""

    def __init__(self, speaker: Speaker):
        super().__init__(daemon=True, name="engine")
        self.speaker = speaker
        self.waiting: queue.Queue[Answer | Errand] = queue.Queue()
        self.active: list[Answer] = []

    def run(self) -> None:
        while True:
            if not self.active:
                self._begin(self.waiting.get())
            with contextlib.suppress(queue.Empty):
                while True:
                    self._begin(self.waiting.get_nowait())
            for answer in list(self.active):
                self._step(answer)

    def _begin(self, answer: Answer | Errand) -> None:
        busy = [other.speech.adapter for other in self.active if other.speech]
        if isinstance(answer, Errand):
            try:
                answer.give(answer.request.reply(self.speaker, busy))
            except Exception as error:
                answer.give(_as_problem(error))
            return
        ask = answer.ask
        try:
            run, merged = resolve_weights(ask.model)
            weights, provenance = self.speaker.choose(run, merged=merged, scale=ask.scale, busy=busy)
            prompt = [Message(turn.role, turn.content) for turn in ask.messages] if answer.chat else ask.prompt
            answer.speech = self.speaker.speak(prompt, ask.sampling(), weights, provenance)
            answer.iterator = answer.speech.pieces
            self.active.append(answer)
        except Exception as error:
            answer.give(_as_problem(error))

    def _step(self, answer: Answer) -> None:
        try:
            if answer.cancelled:
                answer.iterator.close()  # type: ignore[attr-defined]
                self.active.remove(answer)
                return
            answer.give(next(answer.iterator))
        except StopIteration:
            self.active.remove(answer)
            answer.give(None)
        except Exception as error:
            self.active.remove(answer)
            answer.give(_as_problem(error))


def _as_problem(error: Exception) -> Problem:
    """The engine's thread outlives every mistake; what was not foreseen goes to the log as well."""
    if isinstance(error, Problem):
        return error
    traceback.print_exception(error)
    return Problem(
        "The answer broke off: {error}.",
        to_do="Try again; the server's log has the details.",
        error=f"{type(error).__name__}: {error}".rstrip("."),
    )


def create_app(engine: Engine, token: str | None) -> ASGIApp:
    """The API as an ASGI application; with a token, every request must bear it."""
    begun = int(time.time())

    async def models(request: Request) -> Response:
        tasks = {"base": engine.speaker.tasks[0] if engine.speaker.tasks else ""}
        for run in all_runs():
            with contextlib.suppress(Problem):
                if run.job != "train" or not run.has_adapter():
                    continue
                base, ours = run.config().model, engine.speaker.settings
                if (base.name, base.quantization) == (ours.name, ours.quantization):
                    tasks |= dict.fromkeys((run.id, f"{run.id}:merged"), run.config().task)
        data = [
            {"id": name, "object": "model", "created": begun, "owned_by": "atelier", "task": task}
            for name, task in tasks.items()
        ]
        return JSONResponse({"object": "list", "data": data})

    async def complete(request: Request) -> Response:
        chat = request.url.path.endswith("/chat/completions")
        try:
            ask = await _read(request, Ask)
            if chat and not ask.messages:
                raise Problem("The request has no messages.", to_do="Send at least one.")
        except Problem as problem:
            return _refuse(problem)
        answer = Answer(ask, chat)
        engine.waiting.put(answer)
        first_piece = await answer.pieces.get()
        if isinstance(first_piece, Problem):
            return _refuse(first_piece)
        if ask.stream:
            return StreamingResponse(
                _stream(answer, first_piece), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
            )
        return await _whole(answer, first_piece)

    async def run_errand(request: Request) -> Response:
        kind = Classify if request.url.path.endswith("/classify") else FindAnswer
        try:
            errand = Errand(await _read(request, kind))
        except Problem as problem:
            return _refuse(problem)
        engine.waiting.put(errand)
        result = await errand.result
        return _refuse(result) if isinstance(result, Problem) else JSONResponse(result)

    routes = [
        Route("/v1/models", models),
        Route("/v1/classify", run_errand, methods=["POST"]),
        Route("/v1/answer", run_errand, methods=["POST"]),
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), token)


async def _read(request: Request, kind: type[Asked]) -> Asked:
    """The request's body; raises Problem for what is none."""
    try:
        return kind.model_validate(await request.json())
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(
            "The request's {key} is wrong: {reason}.",
            key=".".join(map(str, first["loc"])) or "body",
            reason=first["msg"],
        ) from None
    except Problem:
        raise
    except (ValueError, RecursionError):
        raise Problem("The request is no JSON.") from None


def _refuse(problem: Problem) -> Response:
    return JSONResponse(
        {"error": {"message": str(problem), "type": "invalid_request_error", "problem": problem.to_data()}},
        status_code=400,
    )


def _chunk(answer: Answer, identity: str, text: str, finish: str | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"delta": {"content": text} if text else {}} if answer.chat else {"text": text}
    kind = "chat.completion.chunk" if answer.chat else "text_completion"
    return {"id": identity, "object": kind, "created": int(time.time()), "model": answer.ask.model, "choices": [choice]}


async def _stream(answer: Answer, first: str | None) -> AsyncIterator[str]:
    assert answer.speech is not None
    identity = f"cmpl-{uuid.uuid4().hex}"
    piece: str | Problem | None = first
    weights: dict[str, Any] = {"weights": answer.speech.weights}
    try:
        if answer.chat:
            opening = _chunk(answer, identity, "") | weights
            opening["choices"][0]["delta"] = {"role": "assistant", "content": ""}
            yield f"data: {json.dumps(opening)}\n\n"
        while piece is not None:
            if isinstance(piece, Problem):
                yield f"data: {json.dumps({'error': {'message': str(piece), 'problem': piece.to_data()}})}\n\n"
                return
            if piece or weights:
                yield f"data: {json.dumps(_chunk(answer, identity, piece) | weights)}\n\n"
                weights = {}
            piece = await answer.pieces.get()
        usage = answer.speech.usage
        last = _chunk(answer, identity, "", answer.speech.finish_reason) | {
            "usage": usage,
            "speed": usage.get("tokens_per_second"),
            "weights": answer.speech.weights,
        }
        yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n"
    finally:
        # Reached as well when the reader goes away in the middle: nobody waits for the rest then.
        answer.cancelled = True


async def _whole(answer: Answer, first: str | None) -> Response:
    assert answer.speech is not None
    text, piece = "", first
    try:
        while piece is not None:
            if isinstance(piece, Problem):
                return _refuse(piece)
            text += piece
            piece = await answer.pieces.get()
    finally:
        answer.cancelled = True
    body = _chunk(answer, f"cmpl-{uuid.uuid4().hex}", text, answer.speech.finish_reason)
    if answer.chat:
        body["object"] = "chat.completion"
        del body["choices"][0]["delta"]
        body["choices"][0]["message"] = {"role": "assistant", "content": text}
    return JSONResponse(body | {"usage": answer.speech.usage, "weights": answer.speech.weights})


class Guard:
    """In front of the API: our own host name only, no page of another origin, the token, and bodies of a sane size."""

    def __init__(self, app: ASGIApp, token: str | None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
        status = None
        if host not in _LOOPBACK:
            status = 421
        elif "origin" in headers:
            status = 403
        elif self.token and not hmac.compare_digest(
            headers.get("authorization", "").encode(), f"Bearer {self.token}".encode()
        ):
            status = 401
        elif int(
            headers["content-length"] if headers.get("content-length", "").isdigit() else 0
        ) > _LARGEST_BODY or "chunked" in headers.get("transfer-encoding", ""):
            status = 413
        if status is not None:
            return await JSONResponse(
                {
                    "error": {
                        "message": {
                            421: "wrong host",
                            403: "not for other pages",
                            401: "the token is missing or wrong",
                            413: "too large",
                        }[status]
                    }
                },
                status,
            )(scope, receive, send)
        await self.app(scope, receive, send)


def serve(
    model: str,
    revision: str | None,
    host: str,
    port: int,
    *,
    ready: Path | None,
    parent: str | None,
    task: str | None = None,
    quantization: Literal["none", "nf4", "int8"] = "none",
) -> int:
    """Load the model and serve until told to end, or until the parent process has ended.

    Args:
        task: which head the model is loaded with before anybody asks; without one, the likeliest that it can have.
        quantization: as what the base weights are held; only runs that were trained so are served.
        port: 0 takes a free one.
        ready: a file that gets {"url", "pid"} once requests are answered, or {"problem"} when that will never be.
        parent: a process, as core.parent has it.
    """
    token = os.environ.pop("ATELIER_SERVE_TOKEN", None)
    if parent is not None:
        end_with(parent)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except (OSError, OverflowError) as error:
            raise Problem(
                "The port {port} cannot be used.", "{error}.", "Choose another with --port.", port=port, error=error
            ) from None
        objective = None if task is None else objectives.find(task)
        engine = Engine(Speaker(ModelSettings(name=model, revision=revision, quantization=quantization), objective))
    except Problem as problem:
        if ready:
            write_whole(ready, json.dumps({"problem": problem.to_data()}))
        raise
    engine.start()
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"
    listener.listen(64)
    if ready:
        write_whole(ready, json.dumps({"url": url, "pid": os.getpid()}))
    print(f"serving {model} on {url}/v1", file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(create_app(engine, token), log_level="warning", lifespan="off")).run(
        sockets=[listener]
    )
    return 0
