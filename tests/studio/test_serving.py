"""The serving process as the window uses it: the real engine, the real playground, over real HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core import runs
from core.problem import Problem
from studio import launcher, serving
from studio.serving import Answer, Base, Passage, Piece, Said, Sampling, Serving, Weights, read_together

PLAYGROUND = Base("playground")
HELLO = [{"role": "user", "content": "Who are you?"}]
GREEDY = Sampling(temperature=0.0, max_tokens=30)
# A penalty under one makes it repeat itself: it never comes to an end.
LONG = Sampling(temperature=0.0, repetition_penalty=0.5, max_tokens=8000)


@pytest.fixture(scope="module")
def served(trained_home: Path) -> Iterator[Serving]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATELIER_HOME", str(trained_home))
        patch.setenv("MY_CLOUD_SECRET", "hunter2-hunter2")
        one = Serving()
        yield one
        one.end()


@pytest.fixture(autouse=True)
def _home(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_HOME", str(trained_home))


def collect(one: Serving, weights: Weights, said: Said, sampling: Sampling = GREEDY) -> list[Piece]:
    async def read() -> list[Piece]:
        return [piece async for piece in one.stream(weights, said, sampling)]

    return asyncio.run(read())


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def process_of(one: Serving) -> psutil.Process:
    assert one._process is not None
    return psutil.Process(one._process.pid)


def test_it_starts_on_demand_and_says_what_answered(served: Serving):
    pieces = collect(served, Weights(PLAYGROUND), HELLO)
    assert text(pieces).strip()
    assert pieces[0].loading is not None, "the first caller is told that the model is being loaded"
    assert pieces[-1].weights is not None and pieces[-1].weights["adapter"] is None
    assert pieces[-1].usage is not None and 1 <= pieces[-1].usage["completion_tokens"] <= 30
    assert pieces[-1].speed and pieces[-1].finish in ("stop", "length")
    assert served.base == PLAYGROUND
    again = collect(served, Weights(PLAYGROUND), HELLO)
    assert not any(piece.loading for piece in again) and text(again) == text(pieces)


def test_the_token_is_in_no_argument_file_or_log_and_secrets_stay_here(served: Serving, trained_home: Path):
    collect(served, Weights(PLAYGROUND), HELLO)
    process = process_of(served)
    assert len(served._token) >= 32
    assert not any(served._token in argument for argument in process.cmdline())
    assert "MY_CLOUD_SECRET" in os.environ and "MY_CLOUD_SECRET" not in process.environ()
    for path in trained_home.rglob("*"):
        if path.is_file() and path.stat().st_size < 10**6:
            assert served._token.encode() not in path.read_bytes(), path
    if os.name == "posix":
        assert serving.log_path().stat().st_mode & 0o077 == 0


def test_adapter_merged_and_base_come_from_one_loaded_model(served: Serving, trained_run: str):
    said = {how: collect(served, Weights(PLAYGROUND, trained_run, how), HELLO) for how in ("base", "applied", "merged")}
    process = process_of(served)
    untouched = collect(served, Weights(PLAYGROUND, trained_run, "applied", 0.0), HELLO)
    assert text(untouched) == text(said["base"]), "an adapter of strength 0 is the base"
    assert text(said["merged"]) == text(said["applied"]) != text(said["base"])
    for how, merged in (("applied", False), ("merged", True)):
        weights = said[how][-1].weights
        assert (
            weights is not None
            and weights["adapter"] == trained_run
            and weights["merged"] is merged
            and weights["digest"]
        )
    assert process_of(served).pid == process.pid


def test_a_text_is_continued(served: Serving):
    pieces = collect(served, Weights(PLAYGROUND, manner="continue"), "Once upon a time")
    assert text(pieces).strip() and pieces[-1].usage


def test_closing_the_generator_ends_the_generation(served: Serving):
    collect(served, Weights(PLAYGROUND), HELLO)

    async def read_a_little() -> None:
        async with contextlib.aclosing(served.stream(Weights(PLAYGROUND, manner="continue"), "Once", LONG)) as pieces:
            async for piece in pieces:
                if piece.text:
                    return

    asyncio.run(read_a_little())
    assert served._streams == 0
    for _ in range(40):
        before = sum(process_of(served).cpu_times()[:2])
        time.sleep(0.5)
        if sum(process_of(served).cpu_times()[:2]) - before < 0.1:
            return
    pytest.fail("the process goes on generating for nobody")


def test_columns_stream_side_by_side_and_stop_together(served: Serving, trained_run: str):
    hows = ("base", "applied", "merged")
    grown, stop = [Answer() for _ in hows], threading.Event()

    async def ask() -> None:
        streams = [
            served.stream(Weights(PLAYGROUND, trained_run, how, manner="continue"), "Once upon", LONG) for how in hows
        ]
        async for _ in read_together(list(zip(grown, streams, strict=True)), stop):
            if all(len(answer.text) > 20 for answer in grown):
                assert {answer.state for answer in grown} == {"writing"}, "they grow at the same time"
                stop.set()

    asyncio.run(ask())
    assert stop.is_set() and {answer.state for answer in grown} == {"stopped"}
    assert served._streams == 0


def test_what_the_process_refuses_is_told_as_its_problem(served: Serving):
    with pytest.raises(Problem, match="no run 'nobody'") as caught:
        collect(served, Weights(PLAYGROUND, "nobody", "applied"), HELLO)
    assert caught.value.what == "There is no run {name}.", "the template, so that it can be translated"


def test_a_process_that_died_is_started_again(served: Serving):
    collect(served, Weights(PLAYGROUND), HELLO)
    old = process_of(served)
    old.kill()
    # At once: whoever asks need not wait until its death is known.
    assert text(collect(served, Weights(PLAYGROUND), HELLO)).strip()
    assert process_of(served).pid != old.pid


def test_death_in_mid_answer_is_a_problem_and_keeps_what_came(served: Serving):
    answer = Answer()

    async def ask() -> None:
        stream = served.stream(Weights(PLAYGROUND, manner="continue"), "Once upon", LONG)
        async for _ in read_together([(answer, stream)], threading.Event()):
            if answer.text:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process_of(served).kill()

    asyncio.run(ask())
    assert answer.state == "failed" and answer.text and answer.problem is not None
    assert "broke off" in str(answer.problem) and answer.problem.to_do


def test_another_base_ends_the_old_process_first(served: Serving, family):
    collect(served, Weights(PLAYGROUND), HELLO)
    old = process_of(served)
    other = Base(str(family("llama")))
    assert collect(served, Weights(other), HELLO)[-1].finish
    assert not old.is_running() or old.status() == psutil.STATUS_ZOMBIE
    assert served.base == other


def test_two_who_want_two_models_do_not_end_each_other_for_ever(served: Serving, family):
    served.end()
    grown = [Answer(), Answer()]
    bases = [PLAYGROUND, Base(str(family("llama")))]

    async def ask() -> None:
        streams = [served.stream(Weights(base), HELLO, GREEDY) for base in bases]
        async for _ in read_together(list(zip(grown, streams, strict=True)), threading.Event()):
            pass

    asyncio.run(asyncio.wait_for(ask(), 120))
    (failed,) = [answer for answer in grown if answer.state == "failed"]
    (done,) = [answer for answer in grown if answer.state == "done"]
    assert "gave way" in str(failed.problem) and done.weights["base"] in [base.name for base in bases]


def test_a_model_that_cannot_be_loaded_says_why_once_for_all(served: Serving, tmp_path: Path):
    weights = Weights(Base(str(tmp_path)))
    grown = [Answer(), Answer()]

    async def ask() -> None:
        async for _ in read_together(
            [(answer, served.stream(weights, HELLO, GREEDY)) for answer in grown], threading.Event()
        ):
            pass

    asyncio.run(ask())
    assert grown[0].problem is not None and grown[0].problem is grown[1].problem
    assert "config.json" in str(grown[0].problem)
    assert served.base is None and not list(runs.home().glob("serve-*.json"))


def test_it_ends_with_the_studio_even_when_that_was_killed(trained_home: Path):
    code = (
        "import os, time\n"
        "from studio.serving import Base, Serving\n"
        "one = Serving()\n"
        "while one.want(Base('playground')) is None: time.sleep(0.2)\n"
        "print(one._process.pid, flush=True)\n"
        "os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=launcher.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 9, done.stderr
    child = int(done.stdout)
    deadline = time.monotonic() + 60
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.5)
    ended = not _lives(child)
    if not ended:
        psutil.Process(child).kill()
    assert ended, "the serving process outlived the studio"


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_log_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serving, "_LOG_BYTES", 1000)
    reader, writer = os.pipe()
    thread = threading.Thread(target=serving._keep, args=(os.fdopen(reader, "rb"), tmp_path / "log"))
    thread.start()
    with os.fdopen(writer, "wb") as pipe:
        for number in range(500):
            pipe.write(b"line %d\n" % number)
    thread.join(10)
    kept = (tmp_path / "log").read_bytes()
    assert len(kept) <= 1000 and kept.endswith(b"line 499\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", True), ("temperature", None), ("top_p", 0), ("top_p", "x"),
        ("top_k", -1), ("top_k", 1.5), ("max_tokens", 0), ("max_tokens", 10**9), ("repetition_penalty", float("inf")), ("seed", -1),
        ("seed", [1]), ("seed", {"a": 1}), ("seed", "9" * 100_000), ("temperature", "A" * 1_000_000),
    ],
)  # fmt: skip
def test_sampling_refuses_what_makes_no_sense(name: str, value: object):
    with pytest.raises(Problem) as caught:
        Sampling.read(**{name: value})
    assert caught.value.field == name and len(str(caught.value)) < 300


def test_sampling_names_all_mistakes_at_once():
    with pytest.raises(Problem) as caught:
        Sampling.read(temperature=9, top_k="many", seed=-3)
    assert [part.field for part in caught.value.parts] == ["temperature", "top_k", "seed"]


@pytest.fixture(scope="module")
def solver(solved_home: Path) -> Iterator[Serving]:
    """A serving process over the home with a classifier and a run for questions about a text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATELIER_HOME", str(solved_home))
        one = Serving()
        yield one
        one.end()


def test_a_classifier_says_every_label_with_its_probability(
    solver: Serving, solved: dict[str, str], solved_home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ATELIER_HOME", str(solved_home))
    run = solved["classification"]
    said = Passage("the cat is under a green chair.")
    for how, merged in (("applied", False), ("merged", True)):
        piece = collect(solver, Weights(PLAYGROUND, run, how, manner="label"), said)[-1]
        assert {label for label, _ in piece.labels} == {"the <b>moon</b>", "a lamp", "the cat"}
        shares = [probability for _, probability in piece.labels]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
        assert piece.weights is not None and piece.weights["adapter"] == run and piece.weights["merged"] is merged
    with pytest.raises(Problem, match="learned no labels"):
        collect(solver, Weights(PLAYGROUND, run, "base", manner="label"), said)


def test_an_answer_is_found_in_its_text(
    solver: Serving, solved: dict[str, str], solved_home: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ATELIER_HOME", str(solved_home))
    context = "Look: a lamp is on the old table."
    weights = Weights(PLAYGROUND, solved["extractive_qa"], "applied", manner="find")
    piece = collect(solver, weights, Passage(context, "Where is a lamp?"))[-1]
    assert piece.span is not None and context[piece.span.start : piece.span.end] == piece.text
    assert piece.span.probability is not None and 0 <= piece.span.probability <= 1
    assert piece.weights is not None and piece.weights["adapter"] == solved["extractive_qa"]
    with pytest.raises(Problem, match="asked otherwise"):
        collect(solver, weights, Passage("a text to label"))


@pytest.mark.parametrize(
    "reply",
    ["", "[]", "{}", '{"labels": 3, "weights": {}}', '{"labels": [{"label": "x"}], "weights": {}}', '{"answer": "x", "weights": {}}'],
)  # fmt: skip
def test_a_reply_that_is_none_is_a_problem(reply: str):
    with pytest.raises(Problem):
        serving._result(reply)


def test_every_slider_begins_where_it_can_and_reaches_no_further_than_is_taken():
    start = Sampling()
    assert set(Sampling.sliders()) == set(Sampling.model_fields) - {"seed"}
    for name, (least, most, step) in Sampling.sliders().items():
        assert least <= getattr(start, name) <= most and step > 0
        assert Sampling.read(**{name: least}) and Sampling.read(**{name: most})
