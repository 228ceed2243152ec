"""Every data-set shape: recognised for the right reason, read as the right turns, refused in words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import pytest

from core import formats
from core.formats import Answer, Example, Message
from core.problem import Problem

ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3"}
TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
SPOKEN = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
SQUAD = {"id": "1", "context": "It rained.", "question": "What fell?", "answers": {"text": ["rain", "water"]}}
HELLO = (Message("user", "Hi"), Message("assistant", "Hello"))
RAIN = (Message("user", "It rained.\n\nWhat fell?"), Message("assistant", "rain"))
WORSE = (Message("user", "Hi"), Message("assistant", "Go"))
BAD = {"role": "assistant", "content": "Go"}
SHORT = Message("system", "Be brief.")
READ = {"question": "What fell?", "context": "It rained."}

# The row, the format that it has, the example that it is.
SHAPES: list[tuple[dict[str, Any], str, Example]] = [
    (ALPACA, "alpaca", Example((Message("user", "Add\n1 and 2"), Message("assistant", "3")))),
    (
        ALPACA | {"input": "", "system": "Be brief.", "history": [["Hi", "Hello"]]},
        "alpaca",
        Example((Message("system", "Be brief."), *HELLO, Message("user", "Add"), Message("assistant", "3"))),
    ),
    ({"instruction": "", "input": "Hi", "output": "Hello"}, "alpaca", Example(HELLO)),
    ({"conversations": SPOKEN}, "sharegpt", Example(HELLO)),
    ({"conversations": TURNS, "tools": "[]"}, "sharegpt", Example(HELLO, tools="[]")),
    ({"messages": TURNS}, "messages", Example(HELLO)),
    ({"messages": TURNS, "tools": [{"name": "é"}]}, "messages", Example(HELLO, tools='[{"name": "é"}]')),
    ({"prompt": "Hi", "completion": "Hello"}, "completion", Example(HELLO)),
    ({"Question": "Hi", " Answer": "Hello"}, "completion", Example(HELLO)),
    ({"query": "Hi", "response": "Hello"}, "completion", Example(HELLO)),
    ({"input": "Hi", "output": "Hello"}, "completion", Example(HELLO)),
    ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "completion", Example(HELLO)),
    ({"prompt": "7", "completion": 42}, "completion", Example((Message("user", "7"), Message("assistant", "42")))),
    (SQUAD, "squad", Example(RAIN, **READ, answers=(Answer("rain", 3), Answer("water")))),
    (READ | {"answer": "rain"}, "squad", Example(RAIN, **READ, answers=(Answer("rain", 3),))),
    (READ | {"answers": []}, "squad", Example(**READ, answers=())),
    (READ | {"answers": {"text": [], "answer_start": []}}, "squad", Example(**READ, answers=())),
    (READ | {"answers": [{"text": "rain", "answer_start": 3}], "is_impossible": True}, "squad", Example(**READ, answers=())),
    ({"question": "Hi", "answers": ["Hello", "Hey"]}, "questions", Example(HELLO, question="Hi", answers=(Answer("Hello"), Answer("Hey")))),
    ({"source": "Hi", "target": "Hello"}, "pairs", Example(HELLO, source="Hi", target="Hello")),
    ({"document": "Hi", "summary": "Hello"}, "pairs", Example(HELLO, source="Hi", target="Hello")),
    ({"translation": {"en": "Hi", "fr": "Hello"}}, "translation", Example(HELLO, source="Hi", target="Hello")),
    ({"input": "Hi", "target": "Hello"}, "completion", Example(HELLO)),
    ({"text": "Hi", "label": "ham"}, "labels", Example(text="Hi", labels=("ham",))),
    ({"text": "Hi", "category": 3}, "labels", Example(text="Hi", labels=("3",))),
    ({"utterance": "Hi", "intent": True}, "labels", Example(text="Hi", labels=("true",))),
    ({"text": "Hi", "labels": ["b", "a", "b"]}, "labels", Example(text="Hi", labels=("b", "a"), several=True)),
    ({"text": "Hi", "labels": '["b", "a"]'}, "labels", Example(text="Hi", labels=("b", "a"), several=True)),
    ({"text": "Hi", "labels": []}, "labels", Example(text="Hi", labels=(), several=True)),
    ({"text": "Once upon a time"}, "text", Example(text="Once upon a time")),
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go"}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"instruction": "Add", "input": "1 and 2", "chosen": "3", "rejected": 4, "system": "Be brief."}, "preference",
     Example((SHORT, Message("user", "Add\n1 and 2"), Message("assistant", "3")),
             rejected=Example((SHORT, Message("user", "Add\n1 and 2"), Message("assistant", "4"))))),
    ({"conversations": SPOKEN[:1], "chosen": SPOKEN[1], "rejected": {"from": "gpt", "value": "Go"}}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [BAD]}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"prompt": "Hi", "chosen": TURNS, "rejected": [TURNS[0], BAD]}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"chosen": json.dumps(TURNS), "rejected": json.dumps([TURNS[0], BAD])}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"chosen": "Hello", "rejected": '{"content": '}, "preference", Example(text="Hello", rejected=Example(text='{"content": '))),
    ({"input": "Hi", "chosen": "Hello", "rejected": "Go"}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"}, "preference",
     Example(HELLO, rejected=Example(WORSE))),
    ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello", "rejected": "Go"}, "preference", Example(HELLO, rejected=Example(WORSE))),
    ({"prompt": "Hi", "completion": "Hello", "label": True}, "judgement", Example(HELLO, good=True)),
    ({"prompt": "Hi", "completion": "Go", "label": "False"}, "judgement", Example(WORSE, good=False)),
    ({"question": "Hi", "answer": "Hello", "label": 1}, "judgement", Example(HELLO, good=True)),
    ({"messages": [TURNS[0], BAD], "kto_tag": "no"}, "judgement", Example(WORSE, good=False)),
    ({"question": "Hi", "answer": "Hello", "label": "greeting"}, "completion", Example(HELLO)),
    ({"text": "Hi", "label": True}, "labels", Example(text="Hi", labels=("true",))),
    # Beside nothing that it answers, a label is what the text is called; other names say what they mean.
    ({"response": "Hi", "label": 1}, "labels", Example(text="Hi", labels=("1",))),
    ({"answer": "Hi", "label": "0", "id": 3}, "labels", Example(text="Hi", labels=("0",))),
    ({"response": "Hello", "desirable": 0}, "judgement", Example(text="Hello", good=False)),
    ({"messages": [*TURNS], "label": 1}, "judgement", Example(HELLO, good=True)),
]  # fmt: skip


@pytest.mark.parametrize(("row", "name", "example"), SHAPES)
def test_a_row_is_recognised_and_read(row: dict[str, Any], name: str, example: Example) -> None:
    found = formats.recognise([row])
    assert found.format.name == name
    assert found.format.read(row, found.columns) == example
    assert "{" not in found.reason and any(column in found.reason for column in found.columns.values())


def test_every_format_is_a_file_and_is_tried_above() -> None:
    files = {path.stem for path in Path(formats.__file__).parent.glob("[a-z]*.py")}
    assert {name for _, name, _ in SHAPES} == files - {
        "template",
        "chosen",
        "good",
    }  # a user's choice, never recognised
    assert files == set(formats.formats())


@pytest.mark.parametrize("name", formats.formats())
def test_a_format_describes_itself(name: str) -> None:
    format = formats.find(name)
    assert format.title and format.about.endswith(".") and (format.needs or format.may)
    assert {field for _, field, _, _ in Formatter().parse(format.because) if field} <= set(format.needs)


def test_unused_columns_are_named() -> None:
    assert formats.recognise([SQUAD | {"title": "Rain"}]).unused == ("id", "title")


def test_columns_of_any_name_can_be_mapped() -> None:
    rows = [{"Frage": "Hi", "Antwort": "Hello", "text": "no"}]
    found = formats.recognise(rows, {"prompt": "Frage", "completion": "Antwort"})
    assert found.format.name == "completion"
    assert found.format.read(rows[0], found.columns) == Example(HELLO)
    assert formats.recognise(rows, {"text": "Frage"}).format.name == "text"
    labelled = [{"Frage": "Hi", "Klasse": "a"}]
    assert formats.recognise(labelled, {"text": "Frage"}).format.name == "text"
    found = formats.recognise(labelled, {"text": "Frage", "label": "Klasse"})
    assert found.format.read(labelled[0], found.columns) == Example(text="Hi", labels=("a",))
    # A label whose name is known is not left out in silence, unless the format says so.
    assert formats.recognise([{"Frage": "Hi", "label": "a"}], {"text": "Frage"}).format.name == "labels"
    assert formats.recognise([{"Frage": "Hi", "label": "a"}], {"text": "Frage"}, "text").format.name == "text"
    assert formats.recognise([{"question": "Hi", "Antwort": "Hello"}], {"completion": "Antwort"}).columns == {
        "prompt": "question",
        "completion": "Antwort",
    }


WRITTEN = {
    "instruction": "Add",
    "input": "1 and {2}",
    "output": 3,
    "empty": None,
    "list": ["a"],
    "a.b": "dot",
    "x[0]": "at",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{instruction}\n{input}", "Add\n1 and {2}"),
        (r"{instruction}\n{input}", "Add\n1 and {2}"),
        (r"{instruction}\\n\frac{{1}}{{2}}", r"Add\n\frac{1}{2}"),
        ("{{{instruction}}} }}{{", "{Add} }{"),
        ("{output}: {instruction}{empty}.", "3: Add."),
        ("{a.b} {x[0]}", "dot at"),
        ("x {input} {input}", "x 1 and {2} 1 and {2}"),
        ("x {empty} y", ""),
    ],
)
@pytest.mark.parametrize("format", ["auto", "text", "template"])
def test_a_template_makes_the_text_of_columns(template: str, text: str, format: str) -> None:
    found = formats.recognise([WRITTEN], {"text": template}, format)
    assert found.format.name == {"auto": "text"}.get(format, format)
    if text:
        assert found.format.read(WRITTEN, found.columns) == Example(text=text)
    else:
        with pytest.raises(Problem, match="text is empty"):
            found.format.read(WRITTEN, found.columns)


@pytest.mark.parametrize("format", ["auto", "completion", "template"])
def test_a_prompt_and_its_completion_can_be_written(format: str) -> None:
    row = {"title": "Rain", "body": "It rained.", "tone": None, "note": "x"}
    columns = {"system": "Be {tone}", "prompt": "{title}?\n{tone}", "completion": "{body}"}
    found = formats.recognise([row], columns, format)
    assert found.unused == ("note",) and "{" not in found.because.replace("{prompt}", "").replace("{completion}", "")
    assert found.reason and dict(found.columns) == columns
    assert found.format.read(row, found.columns).messages == (
        Message("user", "Rain?\n"),
        Message("assistant", "It rained."),
    )
    assert found.format.read(row | {"tone": "calm"}, found.columns).messages[0] == Message("system", "Be calm")
    for empty in ({"title": "x"}, {"title": "x", "body": " "}):
        with pytest.raises(Problem, match="completion is empty"):
            found.format.read(empty, found.columns)
    with pytest.raises(Problem, match="body is of type list"):
        found.format.read(row | {"body": ["x"]}, found.columns)


def test_a_template_can_play_other_roles() -> None:
    row = {"a": "Hi", "b": "there", "label": "ham", "{a}": "itself"}
    found = formats.recognise([row], {"text": "{a} {b}"})
    assert found.format.read(row, found.columns) == Example(text="Hi there", labels=("ham",))
    found = formats.recognise([row], {"text": "{a}"}, "text")
    assert found.format.read(row, found.columns) == Example(text="itself")


@pytest.mark.parametrize(
    ("row", "columns", "format", "field", "words"),
    [
        ({"foo": 1, "bar": 2}, {}, "auto", "data.columns", ["not recognised", "foo, bar", "prompt"]),
        ({"foo": 1}, {"prompt": "fooo"}, "auto", "data.columns", ["no column fooo", "foo"]),
        ({"foo": 1}, {"text": "foo"}, "alpaca", "data.columns", ["alpaca has no text", "instruction"]),
        ({"foo": 1}, {}, "alpaca", "data.format", ["alpaca needs a column for instruction, output", "foo"]),
        ({"foo": 1}, {}, "alpacca", "data.format", ["no format alpacca", "alpaca, "]),
        ({"text": "x"}, {}, "labels", "data.format", ["labels needs a column for label"]),
        ({"foo": 1, "bar": 2}, {"text": "{foo} {baz} {}"}, "auto", "data.columns", ["names baz, , which", "foo, bar", "{{ and }}"]),
        ({"foo": 1}, {"text": "{foo} {"}, "auto", "data.columns", ["brace without its partner", "{{ and }}"]),
        ({"foo": 1}, {"text": "{foo.__class__}"}, "template", "data.columns", ["names foo.__class__"]),
        ({"foo": 1}, {"text": "{foo[0]}"}, "template", "data.columns", ["names foo[0]"]),
        ({"foo": 1}, {"text": "{foo!r:>9}"}, "template", "data.columns", ["names foo!r:>9"]),
        ({"foo": 1}, {"text": "{{foo}}"}, "template", "data.columns", ["no column {{foo}}"]),
        ({"foo": 1}, {}, "template", "data.columns", ["needs a prompt and a completion, or a text alone", "prompt={instruction}"]),
        ({"foo": 1}, {"completion": "foo"}, "template", "data.columns", ["needs a prompt"]),
        ({"foo": 1}, {"text": "foo", "completion": "foo", "prompt": "foo"}, "template", "data.columns", ["text alone"]),
        ({"foo": 1}, {"text": "foo", "system": "foo"}, "template", "data.columns", ["text alone"]),
        ({"foo": 1}, {"label": "{foo}"}, "template", "data.columns", ["template has no label"]),
        ({"prompt": "a", "chosen": "b"}, {}, "preference", "data.format", ["needs a column for rejected"]),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_with_a_way_out(
    row: dict[str, Any], columns: dict[str, str], format: str, field: str, words: list[str]
) -> None:
    with pytest.raises(Problem) as caught:
        formats.recognise([row], columns, format)
    assert caught.value.field == field
    for word in words:
        assert word in str(caught.value)


PREFERENCES = [row for row, name, _ in SHAPES if name == "preference"]
JUDGEMENTS = [row for row, name, _ in SHAPES if name == "judgement"]


@pytest.mark.parametrize("row", PREFERENCES)
def test_the_chosen_answers_alone(row: dict[str, Any]) -> None:
    """The format that is offered reads what was recognised, by the same columns, and what it reads can be learned."""
    seen = formats.recognise([row])
    found = formats.recognise([row], seen.columns, "chosen")
    whole, chosen = seen.format.read(row, seen.columns), found.format.read(row, found.columns)
    assert chosen == replace(whole, rejected=None) == formats.find("chosen").read(row, {"chosen": "chosen"})
    assert whole.judged and not chosen.judged and "rejected" not in found.unused


@pytest.mark.parametrize("row", JUDGEMENTS)
def test_the_good_answers_alone(row: dict[str, Any]) -> None:
    seen = formats.recognise([row])
    found = formats.recognise([row], seen.columns, "good")
    whole, good = seen.format.read(row, seen.columns), found.format.read(row, found.columns)
    assert whole.judged and good == (replace(whole, good=None) if whole.good else None)


def test_a_transcript_is_a_conversation_and_says_so() -> None:
    """As hh-rlhf writes it: what only looks so by chance stays the answer that it is."""
    said = "\n\nHuman: What did he say?\n\nAssistant: He said:\n\nHumans: 3\nAssistant: 4"
    row = {"chosen": said + "\n\nHuman: And then?\n\nAssistant: Nothing.", "rejected": said}
    found = formats.recognise([row])
    assert "conversations between Human and Assistant" in found.reason
    read = found.format.read(row, found.columns)
    chosen, rejected = read.messages, read.rejected.messages
    assert [turn.role for turn in chosen] == ["user", "assistant"] * 2 and chosen[:2] == rejected
    assert chosen[1].content == "He said:\n\nHumans: 3\nAssistant: 4"
    alone = formats.recognise([row], found.columns, "chosen")
    assert alone.format.read(row, alone.columns).messages == chosen and "Human and Assistant" in alone.reason
    plain = {"prompt": "Who?", "chosen": "Human: the one who asks.", "rejected": "An answer\n\nAssistant: x"}
    found = formats.recognise([plain])
    assert (
        "two answers" in found.reason and found.format.read(plain, found.columns).messages[1].content == plain["chosen"]
    )
    with pytest.raises(Problem, match="Turn 2, from assistant, is empty"):
        found.format.read(
            {"chosen": "Human: Hi\n\nAssistant:\n\nHuman: Well?\n\nAssistant: Yes", "rejected": "No"}, found.columns
        )


def test_an_answer_is_not_its_own_prompt() -> None:
    row = {"messages": [TURNS[0], BAD], "label": False, "input": "x"}
    assert formats.recognise([row]).columns == {"answer": "messages", "good": "label", "input": "input"}
    said = {"prompt": "messages", "answer": "messages"}
    assert formats.recognise([row], said).columns == {**said, "good": "label", "input": "input"}


def test_judged_rows_under_names_of_their_own() -> None:
    row = {"q": "Hi", "a": "Hello", "b": "Go", "ok": "maybe"}
    found = formats.recognise([row], {"prompt": "q", "chosen": "a", "rejected": "b"})
    assert found.format.name == "preference" and found.format.read(row, found.columns).rejected == Example(WORSE)
    found = formats.recognise([row], {"prompt": "Say {q}", "answer": "a", "good": "ok"}, "judgement")
    with pytest.raises(Problem, match="ok says neither yes nor no: it is 'maybe'"):
        found.format.read(row, found.columns)
    assert found.format.read(row | {"ok": 0}, found.columns).messages[0].content == "Say Hi"
    for odd in ({"chosen": "a", "rejected": " "}, {"chosen": [], "rejected": "b"}):
        with pytest.raises(Problem, match=r"is empty|of type list"):
            formats.find("preference").read(odd, {"chosen": "chosen", "rejected": "rejected"})


def test_one_odd_row_does_not_decide_for_all() -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 9
    for odd in ({"messages": TURNS}, {"prompt": "x", "chosen": "a", "rejected": "b"}, {"completion": "c"}):
        assert formats.recognise([odd, *rows]).format.name == "completion"


def say(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles, 1)]}


@pytest.mark.parametrize(
    "roles",
    [
        "user assistant",
        "system user assistant user assistant",
        "user assistant tool assistant",
        "user assistant tool tool assistant user",
    ],
)
def test_turns_in_order(roles: str) -> None:
    example = formats.find("messages").read(say(*roles.split()), {"messages": "messages"})
    assert " ".join(turn.role for turn in example.messages) == roles


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (say("assistant", "user"), "Turn 1 is from assistant, where system / user"),
        (say("user", "user", "assistant"), "Turn 2 is from user, where assistant"),
        (say("user", "assistant", "assistant"), "Turn 3 is from assistant, where user / tool"),
        (say("user", "assistant", "system"), "Turn 3 is from system"),
        (say("user", "tool", "assistant"), "Turn 2 is from tool"),
        (say("user"), "No turn is from the assistant"),
        (say("system", "user"), "No turn is from the assistant"),
        (say(), "No turn is from the assistant"),
        (say("user", "wizard"), "Turn 2 has the role 'wizard'"),
        ({"messages": [{"content": "x"}]}, "Turn 1 has the role None"),
        ({"messages": [{"role": "user", "body": "x"}]}, "no content; its keys are role, body"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": " \n"}]}, "Turn 2, from assistant, is empty"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": True}]}, "turn 2 is of type boolean"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "no text: image_url"),
        ({"messages": ["Hi", "Hello"]}, "Turn 1 is of type string"),
        ({"messages": 5}, "messages is of type number, and a list of turns is needed"),
        ({"messages": None}, "messages is of type null"),
        ({"messages": "[{'role': 'user'}]"}, "no JSON list"),
        ({"other": 1}, "The column messages is missing; the row has other"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "\ud83d"}]}, "half of a character (\\ud83d)"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "x" * 10_000_001}]}, "10,000,003 characters"),
    ],
)
def test_a_bad_row_is_named_by_what_is_wrong(row: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem) as caught:
        formats.find("messages").read(row, {"messages": "messages"})
    assert words in str(caught.value)
    assert caught.value.to_do and not caught.value.there_is  # the place is for whoever knows the row
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "words"),
    [(float("nan"), "nan"), (None, "is empty"), (" ", "is empty"), (True, "boolean"), ({}, "object"), (b"x", "binary")],
)  # fmt: skip
def test_a_cell_that_is_no_text(value: Any, words: str) -> None:
    row = {"text": value}
    with pytest.raises(Problem, match=words):
        formats.find("text").read(row, {"text": "text"})


def test_tool_calls_become_the_text_to_learn() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "Orléans"}'}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "What time "}, {"type": "text", "text": "is it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, {"name": "wait", "arguments": "not json"}]},
        {"role": "tool", "content": ""},
        {"role": "assistant", "content": "Noon.", "tool_calls": None},
    ]
    read = formats.find("messages").read({"messages": turns}, {"messages": "messages"}).messages
    assert [turn.content for turn in read] == [
        "What time is it?",
        '{"name": "time", "arguments": {"zone": "Orléans"}}\n{"name": "wait", "arguments": "not json"}',
        "",
        "Noon.",
    ]


def test_function_calls_of_sharegpt() -> None:
    speakers = ["system", "human", "function_call", "observation", "gpt"]
    row = {"conversations": [{"from": speaker, "value": speaker} for speaker in speakers]}
    read = formats.find("sharegpt").read(row, {"conversations": "conversations"}).messages
    assert [turn.role for turn in read] == ["system", "user", "assistant", "tool", "assistant"]


def test_squad_without_an_answer_is_refused() -> None:
    """Nothing at all may be a mistake; an empty list says that there is none."""
    for answers in (None, ""):
        with pytest.raises(Problem, match="no answer"):
            formats.find("squad").read(SQUAD | {"answers": answers}, formats.recognise([SQUAD]).columns)


@pytest.mark.parametrize(
    ("start", "place"), [(3, 3), ("3", 3), (13, 13), (12, 13), (4, 3), (None, 3), (99, 13), (-1, 3), ("x", 3)]
)
def test_an_answer_is_found_where_it_stands(start: Any, place: int) -> None:
    """Files count in bytes, from 1, or not at all: the occurrence nearest to what they say is meant."""
    answers = {"text": ["rain"], "answer_start": [start]}
    row = {"context": "It rain and  rain.", "question": "?", "answers": answers}
    (answer,) = formats.find("squad").read(row, formats.recognise([row]).columns).answers
    assert answer == Answer("rain", place)
    flat = {"context": row["context"], "question": "?", "answer": "rain", "answer_start": start}
    assert formats.find("squad").read(flat, formats.recognise([flat]).columns).answers == (answer,)


def test_an_answer_that_is_not_in_the_text_has_no_place() -> None:
    example = formats.find("squad").read(READ | {"answers": ["snow"]}, formats.recognise([SQUAD]).columns)
    assert example.answers == (Answer("snow", None),)


@pytest.mark.parametrize(
    "row", [{"translation": {"en": "Hi"}}, {"translation": "Hi"}, {"translation": {"en": "", "fr": "x"}}]
)
def test_a_translation_needs_two_texts(row: dict[str, Any]) -> None:
    with pytest.raises(Problem, match="translation"):
        formats.find("translation").read(row, {"translation": "translation"})


def test_an_empty_label_is_refused() -> None:
    for value in ("", " ", None, ["a", ""]):
        with pytest.raises(Problem, match="label is empty"):
            formats.find("labels").read({"text": "Hi", "label": value}, {"text": "text", "label": "label"})


def test_a_pair_is_one_text_and_another() -> None:
    assert Example(HELLO).pair() == ("Hi", "Hello")
    assert Example((Message("system", "Be brief."), *HELLO)).pair() == ("Be brief.\n\nHi", "Hello")
    assert Example((*HELLO, *HELLO)).pair() is None
    assert Example(HELLO, source="s", target="t").pair() == ("s", "t")
    assert Example(text="x").pair() is None


def test_listing_formats_loads_nothing_heavy() -> None:
    code = (
        "import sys; from core import formats; formats.formats();"
        "print([m for m in ('torch', 'pyarrow', 'datasets') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
