"""Rows of an unknown shape get proposals that a person would make, each of which reads them."""

from __future__ import annotations

from typing import Any

import pytest

from core import formats
from core.problem import Problem
from core.proposals import MOST, Proposal, propose

TOPICS = ["sport", "weather", "money"]
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Twelve rows: a value that is a list goes round, a text gets a number."""
    return [
        {name: value[n % len(value)] if isinstance(value, list) else f"{value} {n}" for name, value in columns.items()}
        for n in range(12)
    ]


def ways(found: list[Proposal]) -> list[tuple[str, dict[str, str]]]:
    return [(one.format, dict(one.columns)) for one in found]


@pytest.mark.parametrize(
    ("given", "first"),
    [
        (rows(id="a", Frage="Was ist das", Antwort="Ein"), ("completion", {"prompt": "Frage", "completion": "Antwort"})),
        (rows(问题="这是什么", 回答="一个"), ("completion", {"prompt": "问题", "completion": "回答"})),
        (rows(reply="Short", my_question="A long question about the world"), ("completion", {"prompt": "my_question", "completion": "reply"})),
        (rows(a="Short", b="A much longer piece of text"), ("completion", {"prompt": "a", "completion": "b"})),
        (rows(b="A much longer piece of text", a="Short"), ("completion", {"prompt": "a", "completion": "b"})),
        (rows(body="The ball was in the net", group=TOPICS), ("labels", {"text": "body", "label": "group"})),
        (rows(body="The ball was in the net", head="Goal", category_name=TOPICS), ("labels", {"text": "body", "label": "category_name"})),
        (rows(ask="What", reply="That is so", my_type=TOPICS), ("completion", {"prompt": "ask", "completion": "reply"})),
        (rows(body="The ball was in the net", stars=[1, 2, 5]), ("labels", {"text": "body", "label": "stars"})),
        ([{"n": n, "talk": TURNS} for n in range(3)], ("messages", {"messages": "talk"})),
        ([{"talk": '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes"}]'}], ("messages", {"messages": "talk"})),
        (rows(story="Once upon a time", file_name="x"), ("text", {"text": "story"})),
    ],
)  # fmt: skip
def test_the_likeliest_comes_first_and_all_can_be_read(
    given: list[dict[str, Any]], first: tuple[str, dict[str, str]]
) -> None:
    with pytest.raises(Problem, match="not recognised"):
        formats.recognise(given)
    found = propose(given)
    assert ways(found)[0] == first and len(found) <= MOST
    for one in found:
        seen = formats.recognise(given, one.columns, one.format)
        assert seen.format.read(given[0], seen.columns)


def test_two_columns_may_be_meant_either_way() -> None:
    told = ways(propose(rows(a="Short", b="A much longer piece of text")))
    assert told == [
        ("completion", {"prompt": "a", "completion": "b"}), ("completion", {"prompt": "b", "completion": "a"}),
        ("text", {"text": "b"}),
    ]  # fmt: skip


def test_there_are_never_many() -> None:
    given = [row | {"talk": TURNS} for row in rows(a="Short", b="A much longer piece of text", c=TOPICS)]
    assert len(propose(given, "text")) == MOST


def test_a_format_gets_what_it_lacks() -> None:
    given = rows(instruction="Say", body="It is so and not otherwise", note="x")
    assert ways(propose(given, "alpaca"))[0] == ("alpaca", {"output": "body"})
    assert ways(propose(given, "completion", {"prompt": "note"}))[0] == (
        "completion",
        {"prompt": "note", "completion": "body"},
    )
    given = rows(text="The ball", kind=TOPICS)
    assert ways(propose(given, "labels", {"label": "gone"}))[0] == ("labels", {"label": "kind"})
    # There is nothing that could be turns: what else the rows may be is told.
    assert "messages" not in [name for name, _ in ways(propose(given, "messages"))] and propose(given, "messages")
    assert propose(given, "no such format") == propose(given)


@pytest.mark.parametrize(
    "given", [[], [{}], [{"n": 1}], [{"x": None}], [{"x": {"y": 1}}], rows(id="a"), [{"x": float("nan")}], [{1: ["a"]}]]
)
def test_where_nothing_can_be_said_nothing_is(given: list[dict[str, Any]]) -> None:
    assert propose(given) == []


def test_what_reads_too_few_rows_is_not_proposed() -> None:
    half = [{"story": "Once"}, *({"story": "\ud800"} for _ in range(2))]
    assert propose(half) == [] and propose([*half, {"story": "Then"}, {"story": "So"}]) != []
