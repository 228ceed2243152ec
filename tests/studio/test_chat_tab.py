"""The Chat tab's handlers, with the real serving process behind them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from studio import serving
from studio.answers import OPENED
from studio.serving import Answer
from studio.tabs.chat import Turn, _Chat

Send = Callable[..., dict[Any, Any]]
FIELDS = ("", 0.0, 0.95, 0, 12, 1.0, "1")
# A penalty under one makes it repeat itself: it never comes to an end.
LONG = ("", 0.0, 1.0, 0, 8000, 0.5, "1")


@pytest.fixture
def chat(served: None, draw: Any, trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> _Chat:
    monkeypatch.setenv("ATELIER_HOME", str(trained_home))
    return draw(_Chat)


@pytest.fixture
def send(chat: _Chat, visitor: Any, merge: Any) -> Send:
    def send(
        said: Any,
        turns: list[Any],
        run: Any,
        how: Any = "applied",
        strength: Any = 1.0,
        sampling: tuple[Any, ...] = FIELDS,
        context: Any = "",
    ) -> dict[Any, Any]:
        return asyncio.run(merge(chat._send(visitor, said, context, turns, run, how, strength, *sampling)))

    return send


def test_a_conversation_grows_and_each_answer_says_what_made_it(chat: _Chat, send: Send, trained_run: str):
    first = send("Who are you? <script>alert(1)</script>", [], trained_run)
    turns = first[chat.turns]
    assert len(turns) == 1 and turns[0].answer.text and turns[0].answer.weights["adapter"] == trained_run
    assert "&lt;script&gt;" in first[chat.talk] and "<script" not in first[chat.talk]
    assert "first &lt;b&gt;try" in first[chat.talk] and " tokens · " in first[chat.talk]
    assert first[chat.box] == "" and first[chat.problem] == ""
    second = send("And now?", turns, trained_run, "base")
    assert [turn.said for turn in second[chat.turns]] == [turns[0].said, "And now?"]
    assert second[chat.turns][1].answer.weights["adapter"] is None and "no adapter" in second[chat.talk]
    assert second[chat.talk].count("made-by") == 2
    assert not chat.stops


def test_the_model_hears_the_conversation_and_the_system_prompt(
    chat: _Chat, send: Send, trained_run: str, monkeypatch: pytest.MonkeyPatch
):
    heard = []
    real = serving.shared().stream

    def listen(weights: Any, said: Any, sampling: Any) -> Any:
        heard.append(said)
        return real(weights, said, sampling)

    monkeypatch.setattr(serving.shared(), "stream", listen)
    turns = send("One", [], trained_run)[chat.turns]
    send("Two", turns, trained_run, sampling=("Be brief.", *FIELDS[1:]))
    assert heard[0] == [{"role": "user", "content": "One"}]
    assert heard[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": turns[0].answer.text},
        {"role": "user", "content": "Two"},
    ]


def test_answer_again_replaces_the_last_answer(chat: _Chat, send: Send, visitor: Any, merge: Any, trained_run: str):
    turns = send("Who are you?", [], trained_run)[chat.turns]
    again = asyncio.run(merge(chat._send_again(visitor, turns, trained_run, "base", 1.0, *FIELDS)))
    assert [turn.said for turn in again[chat.turns]] == ["Who are you?"]
    assert again[chat.turns][0].answer.weights["adapter"] is None
    assert chat.box not in again, "what is being typed meanwhile stays"
    assert asyncio.run(merge(chat._send_again(visitor, [], trained_run, "base", 1.0, *FIELDS))) == {}


def test_stop_keeps_what_came_and_a_second_press_does_nothing(chat: _Chat, visitor: Any, merge: Any, trained_run: str):
    async def talk() -> dict[Any, Any]:
        merged: dict[Any, Any] = {}
        async for update in chat._send(visitor, "Once", "", [], trained_run, "applied", 1.0, *LONG):
            merged |= update if "__type__" not in update else {}
            if not chat.stops:
                continue
            twice = await merge(chat._send(visitor, "Twice", "", [], trained_run, "base", 1.0, *FIELDS))
            assert twice == {}, "pressed twice, sent once"
            cleared = chat._clear([], trained_run, visitor)
            assert all(value == gr.skip() for value in cleared), "nothing is cleared under an answer in the making"
            if "caret" in str(merged.get(chat.talk)):
                chat._stop(SimpleNamespace(session_hash="another"))
                assert not chat.stops["one"].is_set(), "one window does not stop another"
                chat._stop(visitor)
        return merged

    done = asyncio.run(talk())
    assert done[chat.turns][0].answer.state == "stopped" and done[chat.turns][0].answer.text
    assert "stopped by you" in done[chat.talk] and not chat.stops


def test_a_page_that_goes_away_ends_the_answer(chat: _Chat, visitor: Any, trained_run: str):
    async def leave() -> None:
        async with contextlib.aclosing(
            chat._send(visitor, "Once", "", [], trained_run, "applied", 1.0, *LONG)
        ) as updates:
            async for update in updates:
                if "caret" in str(update.get(chat.talk)):
                    return

    asyncio.run(leave())
    assert not chat.stops and serving.shared()._streams == 0


@pytest.mark.parametrize(
    ("said", "run", "how", "strength", "sampling"),
    [
        ("Hello", "nobody", "applied", 1.0, FIELDS),
        ("Hello", ["x"], {"a": 1}, float("nan"), FIELDS),
        ("Hello", "", "base", 1.0, ("", float("nan"), True, "x", -5, None, "seven")),
        (["Hello"], "", "base", 1.0, FIELDS),
        ("A" * 1_000_000, "", "base", 1.0, FIELDS),
    ],
)
def test_nonsense_is_refused_in_words_and_what_was_typed_stays(
    chat: _Chat, send: Send, said: Any, run: Any, how: Any, strength: Any, sampling: Any
):
    done = send(said, [], run, how, strength, sampling)
    assert set(done) == {chat.problem} and "note bad" in done[chat.problem]


def test_when_nothing_can_answer_the_words_come_back(chat: _Chat, send: Send, trained_run: str):
    turns = send("Who are you?", [], trained_run)[chat.turns]
    long = "word " * 30_000
    done = send(long, turns, trained_run)
    assert done[chat.box] == long and done[chat.turns] == turns
    assert "note bad" in done[chat.problem]
    assert done[chat.talk].count("talk-turn user") == 1


def test_nothing_is_sent_for_an_empty_box(send: Send):
    assert send(" \n", [], "") == {}


def test_without_runs_it_leads_to_train_and_the_base_can_be_talked_to(draw: Any, home: Path):
    chat = draw(_Chat)
    assert "data-go='train'" in chat._talk([]) and "data-prompt" in chat._talk([])
    run, how, strength, *_ = chat._refresh("gone", "merged", 1.0, [], "", "")
    assert run.value == "" and how.value == "base" and strength.visible is False


def test_a_page_that_was_drawn_before_there_were_runs_begins_with_the_newest(chat: _Chat, trained_run: str):
    run, how, _, _, _, _, _, _, followed, *_ = chat._refresh("", "base", 1.0, [], "", "")
    assert (run.value, how.value) == (trained_run, "applied")
    run, how, *_ = chat._refresh("", "base", 1.0, [], "", followed)
    assert (run.value, how.value) == ("", "base"), "what was chosen here since then stays"


def test_a_run_that_another_page_selected_is_taken_over_once(chat: _Chat, trained_run: str):
    run, how, strength, _, talk, _, _, _, followed, *_ = chat._refresh("", "base", 1.0, [], trained_run, "")
    assert (run.value, how.value, strength.visible, followed) == (trained_run, "applied", True, trained_run)
    assert "Who are you?" in talk, "the prompts that it watched are offered"
    run, how, *_ = chat._refresh("", "base", 1.0, [], trained_run, trained_run)
    assert (run.value, how.value) == ("", "base"), "what was chosen here since then stays"


def test_it_is_drawn_in_every_language(draw: Any, trained_home: Path):
    assert "重新回答" in str(draw(_Chat, "zh").again.value)


@pytest.fixture
def solver(served: None, draw: Any, solved_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Chat]:
    # The process that serves has the home in which it was started.
    serving.shared().end()
    monkeypatch.setenv("ATELIER_HOME", str(solved_home))
    yield draw(_Chat)
    serving.shared().end()


def test_a_text_is_labelled(solver: _Chat, visitor: Any, merge: Any, solved: dict[str, str]):
    said = "a lamp is on the <i>old</i> table."
    # What stands in the fields of sampling means nothing to a classifier, not even when it is nonsense.
    fields = (solved["classification"], "applied", 1.0, "", "x", None, 0, 12, 1.0, "seven")
    done = asyncio.run(merge(solver._send(visitor, said, "", [], *fields)))
    (turn,) = done[solver.turns]
    assert turn.manner == "label" and len(turn.answer.labels) == 3
    assert done[solver.talk].count("<li>") == 3 and "label-bar" in done[solver.talk] and " %" in done[solver.talk]
    assert (
        "&lt;b&gt;moon" in done[solver.talk]
        and "<b>moon" not in done[solver.talk]
        and "<i>old" not in done[solver.talk]
    )
    assert "made-by" in done[solver.talk] and "strength 1" in done[solver.talk] and "seed" not in done[solver.talk]


def test_an_answer_is_marked_in_its_text(solver: _Chat, visitor: Any, merge: Any, solved: dict[str, str]):
    run, context = solved["extractive_qa"], "Look: <u>the cat</u> is under a green chair."
    done = asyncio.run(merge(solver._send(visitor, "Where is the cat?", context, [], run, "merged", 1.0, *FIELDS)))
    (turn,) = done[solver.turns]
    assert turn.answer.span is not None and turn.context == context
    assert "<mark>" in done[solver.talk] and "<u>" not in done[solver.talk] and "merged" in done[solver.talk]
    again = asyncio.run(merge(solver._send_again(visitor, [turn], run, "applied", 1.0, *FIELDS)))
    assert again[solver.turns][0].context == context and "strength 1" in again[solver.talk]
    nothing = asyncio.run(merge(solver._send(visitor, "Where?", " ", [], run, "applied", 1.0, *FIELDS)))
    assert set(nothing) == {solver.problem} and "no text to find" in nothing[solver.problem]


def test_the_fields_are_those_that_the_run_needs(solver: _Chat, solved: dict[str, str]):
    def look(task: str) -> tuple[Any, ...]:
        *_, talk, context, box, settings, _, _, _ = solver._refresh(solved[task], "applied", 1.0, [], "", OPENED)
        return talk, context.visible, box.placeholder, settings.visible

    talk, has_context, hint, has_settings = look("classification")
    assert (has_context, has_settings) == (False, False) and "labels it" in hint and "how likely" in talk
    talk, has_context, hint, has_settings = look("extractive_qa")
    assert (has_context, has_settings) == (True, False) and "looks for the answer" in hint and "data-prompt" not in talk


def test_a_conversation_does_not_tell_of_what_was_labelled_before(chat: _Chat, visitor: Any, trained_run: str):
    labelled = Turn("a lamp", Answer("", "done", labels=[("lamp", 1.0)]), 0, "label")
    talked = Turn("Hello", Answer("Ahoy", "done"), 0)
    *_, sent, turn = chat._read("And now?", None, [labelled, talked], trained_run, "applied", 1.0, *FIELDS)
    assert [message["content"] for message in sent] == ["Hello", "Ahoy", "And now?"] and turn.manner == "talk"
