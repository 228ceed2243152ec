"""The chat server in one process: who is let in, what a request may look like, and what comes back."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from core import runs
from core.config import Config, ModelSettings
from core.engine import server, worker
from core.engine.chat import Speaker, Speech
from core.engine.generate import GREEDY
from core.formats import Message
from core.runs import Run

HELLO = [{"role": "user", "content": "what is 3"}]
TOKEN = {"Authorization": "Bearer secret"}
LARGEST = 4 * 2**20


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("home")
        patch.setenv("ATELIER_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def run(home: Path, family: Callable[[str], Path], rows_file: Path) -> Run:
    settings = {
        "model": {"name": str(family("llama"))},
        "data": {"train": str(rows_file), "max_length": 64},
        "method": {"name": "lora", "rank": 4},
        "train": {"max_steps": 6, "learning_rate": 1e-2},
        "samples": {"max_new_tokens": 2},
    }
    run = runs.create(Config.read(settings))
    assert worker.work(run)["outcome"] == "completed"
    return run


@pytest.fixture(scope="module")
def engine(run: Run, family: Callable[[str], Path]) -> server.Engine:
    engine = server.Engine(Speaker(ModelSettings(name=str(family("llama")))))
    engine.start()
    return engine


@pytest.fixture(scope="module")
def address(engine: server.Engine) -> Iterator[tuple[str, int]]:
    """The whole server on a port of its own, in a thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    settings = uvicorn.Config(server.create_app(engine, "secret"), log_level="warning", lifespan="off")
    running = uvicorn.Server(settings)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()
    running.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def client(address: tuple[str, int]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{address[1]}", headers=TOKEN, timeout=60, trust_env=False) as client:
        yield client


def ask(client: httpx.Client, path: str = "/v1/chat/completions", **more: Any) -> httpx.Response:
    settings = {"messages": HELLO, "temperature": 0, "max_tokens": 6}
    return client.post(path, json=settings | more)


def said(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def send_raw(address: tuple[str, int], headers: dict[str, str], body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """A request as no decent client would send it."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    connection.putrequest("POST", "/v1/chat/completions")
    for name, value in (TOKEN | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    connection.send(body)
    reply = connection.getresponse()
    answer = reply.status, json.loads(reply.read())
    connection.close()
    return answer


def test_a_body_of_four_mebibytes_is_read_and_a_larger_one_is_refused(address: tuple[str, int]) -> None:
    # Refused by what its headers say, before a byte of it was sent.
    status, answer = send_raw(address, {"Content-Length": str(LARGEST + 1)})
    assert (status, answer["error"]["message"]) == (413, "too large")
    status, answer = send_raw(address, {"Content-Length": str(10**15)})
    assert status == 413
    # One that does not say how long it is could be of any length.
    status, answer = send_raw(address, {"Transfer-Encoding": "chunked"}, b"2\r\n{}\r\n0\r\n\r\n")
    assert status == 413
    status, answer = send_raw(address, {"Content-Length": str(LARGEST)}, b" " * LARGEST)
    assert (status, answer["error"]["problem"][0]["what"]) == (400, "The request is no JSON.")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:7860", 200), ("localhost:1", 200), ("[::1]:80", 200),
        ("evil.example", 421), ("evil.example:80", 421), ("127.0.0.1.evil.example", 421), ("", 421),
    ],
)  # fmt: skip
def test_only_this_machines_own_names_are_answered(client: httpx.Client, host: str, status: int) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("bearer", ["Bearer secre", "Bearer secrets", "bearer secret", "secret", "", "Bearer sécret"])
def test_only_the_whole_token_opens(client: httpx.Client, bearer: str) -> None:
    assert client.get("/v1/models", headers={"Authorization": bearer.encode()}).status_code == 401
    assert client.get("/v1/models", headers={"Origin": "http://127.0.0.1"}).status_code == 403


def test_the_models_are_the_base_and_the_trainings_on_it(client: httpx.Client, run: Run) -> None:
    runs.create(Config.read({"model": {"name": run.config().model.name}}))  # has no adapter yet
    other = runs.create(Config(name="on another base"))
    (other.folder / "adapter").mkdir()
    (other.folder / "adapter" / "adapter_config.json").write_text("{}")
    told = client.get("/v1/models").json()
    assert [model["id"] for model in told["data"]] == ["base", run.id, f"{run.id}:merged"]
    assert told["object"] == "list" and {model["object"] for model in told["data"]} == {"model"}
    refused = ask(client, model=other.id)
    assert (refused.status_code, "another base model" in refused.json()["error"]["message"]) == (400, True)


def test_requests_are_understood_as_clients_write_them(client: httpx.Client, engine: server.Engine) -> None:
    talk = [{"role": "system", "content": "be kind"}, *HELLO]
    usual = said(ask(client, messages=talk))
    speaker = engine.speaker
    sampling = GREEDY.model_copy(update={"max_tokens": 6})
    turns = [Message(turn["role"], turn["content"]) for turn in talk]
    assert "".join(speaker.speak(turns, sampling, *speaker.choose(None)).pieces) == usual
    assert said(ask(client)) != usual

    parts = [
        {"type": "text", "text": "what "},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "text": "is 3"},
    ]
    assert said(ask(client, messages=[talk[0], {"role": "user", "content": parts}])) == usual
    assert said(ask(client, messages=[{"role": "developer", "content": "be kind"}, *HELLO])) == usual
    named = [turn | {"name": "x"} for turn in talk]
    assert said(ask(client, messages=named, seed=None, top_p=None, stop=None, user="me")) == usual

    reply = ask(client, max_tokens=100, max_completion_tokens=3).json()
    assert (reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]) == (3, "length")
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + 3
    assert reply["usage"]["prompt_tokens"] == len(speaker.tokens.prompt(turns[1:]))
    assert (reply["object"], reply["choices"][0]["message"]["role"], reply["model"]) == (
        "chat.completion", "assistant", "base",
    )  # fmt: skip


def test_sampling_is_what_the_request_says(client: httpx.Client, engine: server.Engine) -> None:
    chosen = {"temperature": 2.0, "top_p": 0.9, "top_k": 9, "repetition_penalty": 1.2, "max_tokens": 12, "seed": 4}
    speaker = engine.speaker
    sampling = GREEDY.model_copy(update=chosen)
    expected = "".join(speaker.speak([Message("user", "what is 3")], sampling, *speaker.choose(None)).pieces)
    assert said(ask(client, **chosen)) == expected


def test_a_text_is_continued(client: httpx.Client, engine: server.Engine) -> None:
    speaker = engine.speaker
    sampling = GREEDY.model_copy(update={"max_tokens": 6})
    expected = "".join(speaker.speak("the cat", sampling, *speaker.choose(None)).pieces)
    reply = ask(client, "/v1/completions", prompt="the cat").json()
    assert (reply["object"], reply["choices"][0]["text"]) == ("text_completion", expected)
    with client.stream("POST", "/v1/completions", json={"prompt": "the cat", "temperature": 0, "max_tokens": 6, "stream": True}) as stream:  # fmt: skip
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert "".join(json.loads(line)["choices"][0].get("text", "") for line in lines[:-1]) == expected
    refused = ask(client, "/v1/completions", prompt="")
    assert (refused.status_code, "nothing to go on" in refused.json()["error"]["message"]) == (400, True)


def test_a_streamed_chat_opens_with_the_role_and_ends_with_the_numbers(client: httpx.Client, run: Run) -> None:
    body = {"model": run.id, "messages": HELLO, "temperature": 0, "max_tokens": 6, "stream": True, "scale": 0.5}
    with client.stream("POST", "/v1/chat/completions", json=body) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    chunks = [json.loads(line) for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1]["usage"]["completion_tokens"] == 6
    assert chunks[-1]["speed"] == chunks[-1]["usage"]["tokens_per_second"]
    assert chunks[-1]["weights"]["scale"] == 0.5
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == said(
        ask(client, model=run.id, scale=0.5)
    )


def test_answers_grow_side_by_side(engine: server.Engine) -> None:
    """A short answer that was asked for after a long one is there before it."""
    ended: list[int] = []

    async def read(answer: server.Answer) -> None:
        while await answer.pieces.get() is not None:
            pass
        ended.append(answer.ask.max_tokens)

    async def both() -> None:
        answers = [
            server.Answer(server.Ask(prompt="the", temperature=1.5, seed=1, max_tokens=length), chat=False)
            for length in (110, 2)
        ]
        for answer in answers:
            engine.waiting.put(answer)
        await asyncio.wait_for(asyncio.gather(*map(read, answers)), 60)

    asyncio.run(both())
    assert ended == [2, 110]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 100_000, "no JSON"), (b"\xff", "no JSON"), (b"[]", "body"), (b"{}", "no messages"),
        (b'{"messages": [{"role": "wizard", "content": "x"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "user", "content": 5}]}', "messages.0.content"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 9}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": "nobody:louder"}', "There is no model"),
    ],
    ids=lambda value: value[:20].decode("latin-1") if isinstance(value, bytes) else None,
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_words(client: httpx.Client, body: bytes, words: str) -> None:
    reply = client.post("/v1/chat/completions", content=body)
    assert reply.status_code == 400
    assert words in reply.json()["error"]["message"]


def test_a_mistake_of_ours_ends_one_answer_and_no_other(
    client: httpx.Client, engine: server.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(ids: list[int]) -> str:
        raise ZeroDivisionError("alas")

    with monkeypatch.context() as patch:
        patch.setattr(engine.speaker.tokens, "decode", fail)
        reply = ask(client)
    assert reply.status_code == 400
    assert "ZeroDivisionError: alas" in reply.json()["error"]["message"]
    assert engine.is_alive() and engine.active == []
    assert said(ask(client))


def test_a_reader_that_goes_away_frees_its_place(
    client: httpx.Client, engine: server.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    speak, made, go_on = engine.speaker.speak, [], threading.Event()

    def halted(*arguments: Any) -> Speech:
        """Makes two pieces and no third until the reader has gone."""
        speech = speak(*arguments)
        pieces = speech.pieces

        def count() -> Iterator[str]:
            for piece in pieces:
                made.append(piece)
                yield piece
                if len(made) >= 2:
                    go_on.wait(60)

        speech.pieces = count()
        return speech

    with monkeypatch.context() as patch:
        patch.setattr(engine.speaker, "speak", halted)
        body = {"prompt": "the", "temperature": 1.5, "seed": 1, "max_tokens": 100, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as reply:
            next(reply.iter_lines())
            (answer,) = engine.active
        end = time.monotonic() + 60
        while not answer.cancelled:
            assert time.monotonic() < end, "nobody noticed that the reader is gone"
            time.sleep(0.01)
        go_on.set()
    assert said(ask(client))
    assert len(made) <= 3
    assert engine.active == []
