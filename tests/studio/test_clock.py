"""What a page asks again and again: once for all of it, and for no more than is seen."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from gradio.state_holder import SessionState

from studio import clock, window
from studio.clock import Clock, Pace


def _fail(value: Any) -> Any:
    raise RuntimeError("such a look")


@pytest.fixture
def parts() -> Any:
    """A window of two tabs: a look on each, one that fails, and one that is told everywhere."""
    with window.Window() as blocks:
        one = Clock()
        boxes = [gr.Textbox() for _ in range(4)]
        one.tab = "runs"
        one.add(_fail, [boxes[0]], [boxes[0]])
        one.add(lambda value: {boxes[1]: value + "!"}, [boxes[1]], [boxes[1]])
        one.add(lambda value: {boxes[2]: "told"} if value else gr.skip(), [boxes[2]], [boxes[2]], everywhere=True)
        one.tab = "data"
        one.add(lambda value: {boxes[3]: "rows"}, [boxes[3]], [boxes[3]])
        one.listen()
    return SimpleNamespace(blocks=blocks, clock=one, boxes=boxes)


def _handlers(blocks: gr.Blocks, tab: str) -> list[Any]:
    """What is asked while that tab is open."""
    return [one for one in blocks.fns.values() if any(event == f"tick_{tab}" for _, event in one.targets)]


def _ask(parts: Any, tab: str, *values: str, told: Any = None) -> Any:
    """What a page on that tab is answered whose boxes hold these values; `told` is what it sends with its event."""
    (handler,) = _handlers(parts.blocks, tab)
    held = dict(zip(parts.boxes, values, strict=True))
    event = SimpleNamespace(_data={"tab": tab} if told is None else told)
    return handler.fn(event, SimpleNamespace(session_hash="one"), *(held[box] for box in handler.inputs))


def test_a_page_asks_by_one_event() -> None:
    blocks = window.build("en")
    for tab in ("", "data", "train", "runs", "export"):
        assert len(_handlers(blocks, tab)) == 1, "a handler more is a request more at every look of every page"
    ticks = [one for one in blocks.fns.values() if any(event.startswith("tick") for _, event in one.targets)]
    of_timers = [one for one in ticks if any(block.get_block_name() == "timer" for block in one.outputs)]
    assert len(ticks) == len(of_timers) + 5


def test_a_tab_asks_for_no_more_than_its_own(parts: Any) -> None:
    """The page looks for each input and output from its beginning."""
    first, second, told, rows = parts.boxes
    taken = {tab: _handlers(parts.blocks, tab)[0] for tab in ("", "runs", "data")}
    assert {tab: one.inputs for tab, one in taken.items()} == {
        "": [told],
        "runs": [first, second, told],
        "data": [told, rows],
    }
    assert all(one.outputs == [parts.clock.face, *one.inputs] for one in taken.values())


def test_every_changing_part_of_the_window_is_looked_at_on_its_own_tab() -> None:
    with window.Window():
        clocks: list[Clock] = []
        real = Clock.listen
        try:
            Clock.listen = lambda self: clocks.append(self) or real(self)  # type: ignore[method-assign, func-returns-value]
            window.build("en")
        finally:
            Clock.listen = real  # type: ignore[method-assign]
    assert sorted(look.tab for look in clocks[0].looks) == ["", "", "data", "export", "runs", "runs", "train"]


def test_the_open_tab_is_looked_at_and_what_is_told_everywhere(parts: Any, capsys: Any) -> None:
    _, said, told, rows = parts.boxes
    assert _ask(parts, "runs", "a", "b", "c", "d") == {said: "b!", told: "told"}, "the look that failed stops no other"
    assert "such a look" in capsys.readouterr().err
    assert _ask(parts, "data", "a", "b", "", "d") == {rows: "rows"}
    assert _ask(parts, "", "a", "b", "c", "d") == {told: "told"}, "a page that nobody sees"
    assert _ask(parts, "", "a", "b", "", "d") == gr.skip(), "nothing new"


@pytest.mark.parametrize("told", [{}, {"tab": 7}, {"tab": ["runs"]}, 7, "runs"])
def test_what_a_page_says_of_its_tab_changes_nothing(parts: Any, told: Any) -> None:
    assert _ask(parts, "data", "a", "b", "", "d", told=told) == {parts.boxes[3]: "rows"}
    assert _ask(parts, "", "a", "b", "", "d", told=told) == gr.skip()


def test_what_is_left_as_it_is_is_left_alone(parts: Any) -> None:
    """Gradio makes every component that is skipped anew: most of what a look of a page cost."""
    (handler,) = _handlers(parts.blocks, "runs")

    def send(answer: Any) -> tuple[list[Any], list[Any]]:
        state = SessionState(parts.blocks)
        sent = asyncio.run(parts.blocks.postprocess_data(handler, answer, state))
        return sent, [box for box in handler.outputs if state.blocks_config.blocks[box._id] is not box]

    _, said, told, rows = parts.boxes
    nothing = [gr.skip()] * len(handler.outputs)
    assert send(gr.skip()) == (nothing, []) == send({})
    assert send({told: "x"}) == ([*nothing[:3], "x"], [])
    sent, anew = send({told: "x", said: gr.update(visible=False)})
    assert sent == [*nothing[:2], {"__type__": "update", "visible": False}, "x"] and anew == [said]
    assert send(["a", gr.skip(), "b", "c"])[0] == [sent_as(parts, "a"), gr.skip(), "b", "c"]
    with pytest.raises(ValueError, match="not specified as output"):
        send({rows: "elsewhere"})


def sent_as(parts: Any, value: Any) -> Any:
    return parts.clock.face.postprocess(value)


def test_pages_look_seldomer_the_more_of_them_there_are() -> None:
    pace = Pace()
    pace.share = 0.033 / (os.cpu_count() or 1)
    assert pace.look("a", True) is None, "one page alone keeps its pace"
    told = [pace.look(f"page {number}", True) for number in range(30)]
    assert told[-1] is not None and 10 < told[-1] < 20
    assert pace.look("page 29", True) is None, "it was told already"
    assert pace.look("page 29", False) == 2.0, "with nothing at work they may ask as often as they like"


def test_a_page_that_nobody_sees_slows_no_other(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    monkeypatch.setattr(clock.pace, "look", lambda session, is_busy: counted.append(session))
    _ask(parts, "", "a", "b", "", "d")
    assert counted == []
    _ask(parts, "runs", "a", "b", "", "d")
    assert counted == ["one"]
