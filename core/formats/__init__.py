"""Data-set shapes: each file of this folder says how a row is recognised and read as an example.

A new shape is a new file here with one subclass of `Format`; the file's name is the name that a config writes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import json
import math
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from core.problem import Problem

LONGEST = 10_000_000
"""Characters that one example may have; beyond it a file is almost surely not what it was taken for."""

SAMPLE = 100
"""Rows looked at to recognise a shape."""

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool", "function_response": "tool",
}  # fmt: skip
"""What the field's data sets call the speakers -> our four roles."""

FOLLOWS = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
"""Who may speak after whom; None is the start."""


# Nobody changes messages and examples. But millions are made, and to make one that is frozen takes three times as long.
@dataclass(slots=True, unsafe_hash=True)
class Message:
    """One turn: `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that counts as right; `start` is its first character in the context, None when it is not in there."""

    text: str
    start: int | None = None


@dataclass(slots=True, unsafe_hash=True)
class Example:
    """What a row teaches, in as many ways as it can be learned from; what a row does not have is None or empty.

    Attributes:
        messages: a conversation with at least one answer.
        text: raw text, or the text that has the `labels`.
        tools: JSON text, of a conversation.
        labels: what a text is called; none of them is an empty tuple, and only `several` may be more than one.
        several: whether the data gives a list of labels to every text.
        question, context, answers: reading comprehension; no answer is an empty tuple.
        source, target: one text made of another.
        rejected: the same with an answer that was thought worse, where people or models compared two.
        good: whether the answer was thought good, where answers were judged one by one.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tools: str | None = None
    labels: tuple[str, ...] | None = None
    several: bool = False
    question: str | None = None
    context: str | None = None
    answers: tuple[Answer, ...] | None = None
    source: str | None = None
    target: str | None = None
    rejected: Example | None = None
    good: bool | None = None

    @property
    def judged(self) -> bool:
        """Whether the row says how good its answer is: to learn from that takes more than to repeat the answer."""
        return self.rejected is not None or self.good is not None

    def pair(self) -> tuple[str, str] | None:
        """The one text that is given and the one that is made of it; None for a row of several turns, of none, or a
        judged one."""
        if self.source is not None and self.target is not None:
            return self.source, self.target
        turns = [turn for turn in self.messages if turn.role != "system"]
        if self.judged or [turn.role for turn in turns] != ["user", "assistant"]:
            return None
        before = [turn.content for turn in self.messages[:-1]]
        return "\n\n".join(before), self.messages[-1].content


@dataclass(frozen=True)
class Recognition:
    """Which format the rows have and why: `columns` maps each role to its column, `unused` are the others."""

    format: Format
    because: str
    columns: Mapping[str, str]
    unused: tuple[str, ...] = ()

    @property
    def reason(self) -> str:
        """The sentence for people; a window in another language translates `because` and fills it with `columns`."""
        return self.because.format(**self.columns)


class Template(str):
    r"""What a role is made of, when that is more than a column: a text with the names of columns in braces.

    ``{{`` and ``}}`` are braces, ``\n`` a new line (``\\n`` is not). Nothing but whole names is read in the braces.
    """

    _PART = re.compile(r"(?P<brace>\{\{|\}\})|\{(?P<column>[^{}]*)\}|(?P<lone>[{}])|\\(?P<escaped>\\?n)")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names in its braces."""
        found = [match["column"] for match in self._PART.finditer(self)]
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def check(self, there: Sequence[str]) -> None:
        """Raise a Problem for a brace without its partner and for a name that is no column."""
        if any(match["lone"] for match in self._PART.finditer(self)):
            raise Problem(
                "The template {template} has a brace without its partner.", "",
                "Put the names of columns into braces; write {{{{ and }}}} for braces that stay.",
                field="data.columns", template=_cut(repr(str(self))),
            )  # fmt: skip
        if absent := [name for name in self.columns if name not in there]:
            raise Problem(
                "The template {template} names {absent}, which is no column.", "The columns are {there}.",
                "Name columns as the file does; write {{{{ and }}}} for braces that stay.", field="data.columns",
                template=_cut(repr(str(self))), absent=_cut(", ".join(absent)), there=_cut(", ".join(there), 400),
            )  # fmt: skip

    def fill(self, row: Mapping[str, Any]) -> str:
        """The text that a row makes of it; empty when all its cells are, as the words between them say nothing alone."""
        cells = {name: as_text(row.get(name), name) for name in self.columns}

        def put(match: re.Match[str]) -> str:
            if match["column"] is not None:
                return cells[match["column"]]
            return match["brace"][0] if match["brace"] else "\n" if match["escaped"] == "n" else "\\n"

        return self._PART.sub(put, self) if any(cell.strip() for cell in cells.values()) else ""


class Format:
    """One data-set shape. `needs` and `may` map a role to the column names that it usually has, the likeliest first.

    Problems that `read` raises say nothing of where: whoever knows the row puts it into `there_is`.
    """

    title: ClassVar[str]
    about: ClassVar[str]
    because: ClassVar[str]
    needs: ClassVar[Mapping[str, Sequence[str]]]
    may: ClassVar[Mapping[str, Sequence[str]]] = {}
    order: ClassVar[int] = 50
    """Formats are tried from the lowest to the highest: the more special ones first."""

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    def fits(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> bool:
        """Whether the values look right, once every needed column is there."""
        return True

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example | None:
        """The example in a row, None for a row that the user leaves out by choosing this format; raises Problem when
        there is none."""
        raise NotImplementedError

    def find_columns(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, str]:
        """Role -> column for all roles that can be found; the given `columns` come first.

        A needed column has to stand in at least half of the rows, so that one odd row does not decide for all.
        """
        counts: dict[str, int] = {}
        for row in rows:
            for key in row:
                counts[key] = counts.get(key, 0) + 1
        found = {}
        for role, names in {**self.needs, **self.may}.items():
            enough = len(rows) / 2 if role in self.needs else 1
            plain = {str(key).strip().lower(): key for key, count in counts.items() if count >= enough}
            if column := columns.get(role) or next((plain[name] for name in names if name in plain), None):
                found[role] = column
        return found

    def recognise(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Recognition | None:
        """The recognition with its reason, or None when the rows have another shape."""
        found = self.find_columns(rows, columns)
        if not set(self.needs) <= set(found) or not self.fits(rows, found):
            return None
        return self.claim(rows, found)

    def claim(self, rows: Sequence[Mapping[str, Any]], found: Mapping[str, str]) -> Recognition:
        """The recognition of these rows by the `found` columns."""
        used = {name for column in found.values() for name in columns_in(column)}
        unused = dict.fromkeys(str(key) for row in rows for key in row if key not in used)
        return Recognition(self, self.because, dict(found), tuple(unused))

    def column_for(self, row: Mapping[str, Any], role: str, columns: Mapping[str, str]) -> str:
        """The column that plays `role`: the mapped one, else the likeliest that this row has."""
        if column := columns.get(role):
            return column
        for name in self.may.get(role, ()):
            if name in row:
                return name
        return role

    def cell(self, row: Mapping[str, Any], role: str, columns: Mapping[str, str]) -> Any:
        """The value that plays `role`, None when there is none; raises Problem when a needed column is missing."""
        column = self.column_for(row, role, columns)
        if type(column) is str and column in row:
            return row[column]
        if isinstance(column, Template):
            return column.fill(row)
        if column not in row and role in self.needs:
            keys = ", ".join(map(str, row)) or "-"
            raise Problem(
                "The column {column} is missing; the row has {keys}.", "",
                "Add it, delete the row, or say in the columns setting which column is the {role}.",
                column=column, keys=_cut(keys), role=role,
            )  # fmt: skip
        return row.get(column)

    def text(self, row: Mapping[str, Any], role: str, columns: Mapping[str, str]) -> str:
        """The text that plays `role`; empty only for a role that `may` be there. Raises Problem for anything else."""
        value, column = self.cell(row, role, columns), columns.get(role, role)
        column = role if isinstance(column, Template) else column
        text = as_text(value, column)
        if not text.strip() and role in self.needs:
            raise Problem("{column} is empty.", "", "Fill it in, or delete the row.", column=column)
        return text if text.strip() else ""


class Answered(Format):
    """A format whose rows have answers to a prompt, an answer alone or at the end of a conversation that stands with it.

    `spoken` is the reason where a conversation is written as one text, which names the speakers before their turns.
    """

    spoken: ClassVar[str]
    may = {
        "prompt": ("prompt", "question", "instruction", "query", "conversations", "messages", "input"),
        "input": ("input", "context"),
        "system": ("system", "system_prompt"),
        "tools": ("tools",),
    }

    def find_columns(self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> dict[str, str]:
        """As every format does; but what is the answer is not its prompt as well, unless a user says so."""
        found: dict[str, str] = {}
        for role, column in super().find_columns(rows, columns).items():
            if role in columns or column not in found.values():
                found[role] = column
        return found

    def claim(self, rows: Sequence[Mapping[str, Any]], found: Mapping[str, str]) -> Recognition:
        """As every format does; that texts are taken apart into turns is said."""
        claimed, role = super().claim(rows, found), next(iter(self.needs))
        cells = [self.cell(row, role, found) for row in rows if found[role] in row]
        if sum(is_transcript(cell) for cell in cells) * 2 > len(cells):
            return replace(claimed, because=self.spoken)
        return claimed

    def read_answer(self, row: Mapping[str, Any], role: str, columns: Mapping[str, str]) -> Example:
        """The conversation up to and with the answer that plays `role`; raw text for an answer to nothing.

        Raises:
            Problem: when there is no answer, or its turns are not in order.
        """
        value, column = as_turns(self.cell(row, role, columns)), columns.get(role, role)
        turns = read_turns(value, column) if isinstance(value, Mapping | list) else []
        if not turns:
            turns = [Message("assistant", self.text(row, role, columns))]
        tools, before = self.cell(row, "tools", columns), []
        if turns[0].role == "assistant":
            before = self._read_prompt(row, columns)
            if not before and len(turns) == 1:
                return raw_text(turns[0].content)
        if not any(turn.role == "system" for turn in (*before, *turns)):
            before = [Message("system", self.text(row, "system", columns)), *before]
        return conversation([*before, *turns], tools)

    def _read_prompt(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> list[Message]:
        value = as_turns(self.cell(row, "prompt", columns))
        if isinstance(value, Mapping | list):
            return read_turns(value, columns.get("prompt", "prompt"))
        texts = [self.text(row, "prompt", columns)]
        if self.column_for(row, "input", columns) != self.column_for(row, "prompt", columns):
            texts.append(self.text(row, "input", columns))
        asked = "\n".join(filter(None, texts))
        return [Message("user", asked)] if asked else []


def as_turns(value: Any) -> Any:
    """The value, or the turns that its text holds: as JSON, since tables can only store lists as text, or as a transcript."""
    if is_transcript(value):
        _, *parts = _SPEAKER.split(value.strip())
        turns = [{"role": who, "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
        # A prompt ends where the answer begins.
        return turns[:-1] if not turns[-1]["content"] and len(turns) > 1 else turns
    if isinstance(value, str) and re.match(r'\s*\[?\s*\{\s*"(role|content|from|value)"\s*:', value):
        with contextlib.suppress(ValueError):  # an answer may look so by chance
            return json.loads(value)
    return value


_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):(?=\s|$)")


def is_transcript(value: Any) -> bool:
    """Whether it is a conversation in one text, as Anthropic's hh-rlhf writes it: every turn behind Human: or Assistant:."""
    return isinstance(value, str) and re.match(r"\s*Human:\s", value) is not None and "\n\nAssistant:" in value


def columns_in(column: str) -> tuple[str, ...]:
    """The columns that a mapping to `column` reads: itself, or those that a template names."""
    return column.columns if isinstance(column, Template) else (column,)


def as_text(value: Any, column: str) -> str:
    """A cell as text: a number as it is written, nothing as empty text; raises Problem for anything else."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        raise Problem(
            "{column} is {value}: a number that is none, often an empty cell of a table.", "",
            "Write the text that belongs there, or delete the row.", column=column, value=value,
        )  # fmt: skip
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Problem(
        "{column} is of type {kind}, and text is needed.", "", "Write it as text in quotes, or choose another column.",
        column=column, kind=kind_of(value),
    )  # fmt: skip


def parse(value: Any, column: str) -> Any:
    """The value itself, or what its JSON text holds: tables can only store lists as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise Problem(
            "{column} is text that is no JSON list: {error}.", "",
            'Write a list such as [{{"role": "user", "content": "Hi"}}].', column=column, error=error,
        ) from None  # fmt: skip


def read_turns(value: Any, column: str) -> list[Message]:
    """The turns in a list of {role, content} or {from, value}; raises Problem naming the turn that cannot be read."""
    turns = value if type(value) is list else [value] if isinstance(value, Mapping) else value
    if type(turns) is not list and not isinstance(turns, list | tuple):
        raise Problem(
            "{column} is of type {kind}, and a list of turns is needed.", "",
            'Write a list such as [{{"role": "user", "content": "Hi"}}, {{"role": "assistant", "content": "Hello"}}].',
            column=column, kind=kind_of(value),
        )  # fmt: skip
    return [_read_turn(turn, number) for number, turn in enumerate(turns, 1)]


def _read_turn(turn: Any, number: int) -> Message:
    if type(turn) is dict and len(turn) == 2:
        # Most are so; what is below comes to the same.
        speaker, content = turn.get("role"), turn.get("content")
        if type(speaker) is str and speaker in ROLES and type(content) is str:
            return Message(ROLES[speaker], content)
    if not isinstance(turn, Mapping):
        raise Problem(
            "Turn {turn} is of type {kind}, and an object with role and content is needed.", "",
            'Write it as {{"role": "user", "content": "Hi"}}.', turn=number, kind=kind_of(turn),
        )  # fmt: skip
    speaker = turn.get("role") or turn.get("from")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if not isinstance(speaker, str) or speaker.strip().lower() not in ROLES:
        raise Problem(
            "Turn {turn} has the role {role}.", "", "Known roles are {known}.",
            turn=number, role=_cut(repr(speaker)), known=", ".join(ROLES),
        )  # fmt: skip
    calls = turn.get("tool_calls")
    if isinstance(content, list):
        content = "".join(_read_part(part, number) for part in content)
    if content is None and not calls and not {"content", "value"} & set(turn):
        raise Problem(
            "Turn {turn} has no content; its keys are {keys}.", "", "Add the content, or delete the row.",
            turn=number, keys=_cut(", ".join(map(str, turn))),
        )  # fmt: skip
    text = as_text(content, f"turn {number}")
    return Message(ROLES[speaker.strip().lower()], "\n".join(filter(None, [text, *map(_write_call, calls or ())])))


def _read_part(part: Any, number: int) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
    raise Problem(
        "Turn {turn} holds something that is no text: {kind}.", "",
        "Only text can be trained on; delete the part or the row.", turn=number, kind=_cut(str(kind)),
    )  # fmt: skip


def _write_call(call: Any) -> str:
    """A tool call as the text that a model learns to write: {"name": ..., "arguments": {...}}."""
    call = call.get("function", call) if isinstance(call, Mapping) else call
    if isinstance(call, Mapping) and isinstance(call.get("arguments"), str):
        with contextlib.suppress(ValueError):  # arguments that are no JSON stay the text that they are
            call = {**call, "arguments": json.loads(call["arguments"])}
    return call if isinstance(call, str) else json.dumps(call, ensure_ascii=False)


def conversation(messages: Iterable[Message], tools: Any = None) -> Example:
    """The example that these turns are, once they are seen to be in order.

    Raises:
        Problem: empty or misplaced turns, none from the assistant, too long, or text that is no Unicode.
    """
    turns = tuple([turn for turn in messages if turn.role != "system" or turn.content.strip()])
    if not _are_in_order(tuple([turn.role for turn in turns])) or not all([turn.content.strip() for turn in turns]):
        _check_turns(turns)
    tools = None if isinstance(tools, str) and not tools.strip() else tools
    named = json.dumps(parse(tools, "tools"), ensure_ascii=False) if tools else ""
    check_text([*[turn.content for turn in turns], named])
    return Example(messages=turns, tools=tools if isinstance(tools, str) else named or None)


@functools.lru_cache(4096)
def _are_in_order(roles: tuple[str, ...]) -> bool:
    pairs = itertools.pairwise((None, *roles))
    return "assistant" in roles and all(role in FOLLOWS[before] for before, role in pairs)


def _check_turns(turns: Sequence[Message]) -> None:
    before = None
    for number, turn in enumerate(turns, 1):
        if turn.role not in FOLLOWS[before]:
            raise Problem(
                "Turn {turn} is from {role}, where {expected} was expected.", "",
                "A conversation begins with user, or system and user; user and assistant take turns; tool follows the "
                "assistant turn that called it. Reorder or join the turns, or delete the row.",
                turn=number, role=turn.role, expected=" / ".join(FOLLOWS[before]),
            )  # fmt: skip
        if not turn.content.strip() and turn.role != "tool":
            what, to_do = "Turn {turn}, from {role}, is empty.", "Fill it in, or delete the row."
            raise Problem(what, "", to_do, turn=number, role=turn.role)
        before = turn.role
    if not any(turn.role == "assistant" for turn in turns):
        raise Problem(
            "No turn is from the assistant, so there is nothing to learn.", "",
            "Add an answer (role assistant or gpt), or delete the row.",
        )  # fmt: skip


def labelled(text: str, labels: tuple[str, ...], several: bool) -> Example:
    """The example that is a text with its labels; raises Problem when it is too long or no Unicode."""
    check_text([text, *labels])
    return Example(text=text, labels=labels, several=several)


def raw_text(text: str) -> Example:
    """The example that is plain text; raises Problem when it is too long or no Unicode."""
    check_text([text])
    return Example(text=text)


def check_text(texts: Sequence[str]) -> None:
    """Raise a Problem for texts that are too long together or hold half of a character."""
    if (length := sum(map(len, texts))) > LONGEST:
        raise too_long(length)
    for text in texts:
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise Problem(
                "The text holds half of a character ({code}) at position {position}.", "",
                "It was cut or converted wrongly when it was written; repair or delete the row.",
                code=f"\\u{ord(text[error.start]):04x}", position=error.start + 1,
            ) from None  # fmt: skip


def too_long(length: int) -> Problem:
    """What to say of a row of so many characters."""
    return Problem(
        "The row has {length:,} characters; at most {longest:,} can be read as one example.", "",
        "Split it into several rows (in a .txt file: put blank lines between the parts).",
        length=length, longest=LONGEST,
    )  # fmt: skip


def kind_of(value: Any) -> str:
    """The type of a value by the name that it has in JSON, which needs no translation."""
    kinds = {
        type(None): "null", bool: "boolean", int: "number", float: "number", str: "string", dict: "object",
        list: "list", bytes: "binary",
    }  # fmt: skip
    return kinds.get(type(value), type(value).__name__)


def _cut(text: str, length: int = 120) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


@functools.cache
def _all() -> dict[str, Format]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        path = f"{__name__}.{module.name}"
        types = [member for member in vars(importlib.import_module(path)).values() if isinstance(member, type)]
        found[module.name] = next(t for t in types if issubclass(t, Format) and t.__module__ == path)()
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))


def formats() -> dict[str, Format]:
    """All formats by name, in the order in which they are tried."""
    return dict(_all())


def find(name: str) -> Format:
    """The format of that name; raises Problem naming those that there are."""
    if name in formats():
        return formats()[name]
    raise Problem(
        "There is no format {name}.", "Formats are {known}.", "Choose one of them, or auto.",
        field="data.format", name=_cut(str(name)), known=", ".join(formats()),
    )  # fmt: skip


def recognise(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None, format: str = "auto"
) -> Recognition:
    """Which format these rows have.

    Args:
        rows: at least one row; the first 100 are looked at.
        columns: role -> column, for names that are not the usual ones (``{"prompt": "Question"}``), or a `Template`
            over them (``{"prompt": "{instruction}\\n{input}"}``).
        format: a format's name when the user chose one, else auto.

    Raises:
        Problem: when no format fits, or when `columns` is wrong.
    """
    rows, columns = [rows[i] for i in range(min(SAMPLE, len(rows)))], dict(columns or {})
    there = list(dict.fromkeys(str(key) for row in rows for key in row))
    for role, column in columns.items():
        if column not in there and (template := Template(column)).columns:
            template.check(there)
            columns[role] = template
    if absent := [name for column in columns.values() for name in columns_in(column) if name not in there]:
        raise Problem(
            "There is no column {absent}.", "The columns are {there}.", "Name columns as the file does.",
            field="data.columns", absent=", ".join(absent), there=_cut(", ".join(there), 400),
        )  # fmt: skip
    if format != "auto":
        return _recognise_as(find(format), rows, columns, there)
    for candidate in _all().values():
        # A user who maps columns has decided: only formats that have these roles are asked.
        if set(columns) <= {*candidate.needs, *candidate.may} and (found := candidate.recognise(rows, columns)):
            return found
    raise Problem(
        "The shape of these rows is not recognised.", "Their columns are {there}.",
        "Say in the columns setting which column is the prompt and which the completion, or which is the text.",
        field="data.columns", there=_cut(", ".join(there), 400) or "-",
    )  # fmt: skip


def _recognise_as(
    format: Format, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], there: list[str]
) -> Recognition:
    roles = [*format.needs, *format.may]
    if unknown := [role for role in columns if role not in roles]:
        raise Problem(
            "The format {format} has no {unknown}.", "It knows {roles}.", "Map these, or choose another format.",
            field="data.columns", format=format.name, unknown=", ".join(unknown), roles=", ".join(roles),
        )  # fmt: skip
    found = format.find_columns(rows, columns)
    if missing := [role for role in format.needs if role not in found]:
        raise Problem(
            "The format {format} needs a column for {missing}.", "The columns are {there}.",
            "Say in the columns setting which column it is, or choose the format auto.", field="data.format",
            format=format.name, missing=", ".join(missing), there=_cut(", ".join(there), 400) or "-",
        )  # fmt: skip
    return format.claim(rows, found)
