"""Chat templates that are seen not to look at what is said: rendered once for an order of roles, and from then on filled in."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Macro

from core.formats import Message

_KNOWN = 4096
_STRIPS = ("strip", "lstrip", "rstrip")
# White space and signs that escaping would change: what is done to it where nobody sees it leaves no whole mark behind.
_MARK = ' \n"&<\ue000{}{}\ue001>&"\n '
_MARKS = re.compile(re.escape(_MARK.format("T", "H")).replace("T", r"(\d+)").replace("H", f"({'|'.join(_STRIPS)}|)"))
_ODD = ("a", "  a b\n", "\n\n- a", "<think>\na\n</think>\n\nb", '{"a": 1}', "é 日本 \t", "0", "None", "A\n\nb")
_ROUNDS = 4
_CHANGES = re.compile(r"strftime_now|lipsum|random")
"""What makes another text of the same conversation at another time."""


class _Looked(Exception):
    """A template wants to know what is said."""


class _Hole(str):
    """Stands for what is said in a turn, or for a text with that in it: it can be put together with others, and stripped,
    and whoever looks at it ends the rendering."""

    turn: tuple[int, str] | None = None

    @classmethod
    def of(cls, turn: int, how: str = "") -> _Hole:
        """What is said in a turn, stripped like that."""
        hole = cls(_MARK.format(turn, how))
        hole.turn = turn, how
        return hole

    def __bool__(self) -> bool:
        return True  # turns that say nothing are never filled in

    def __iter__(self) -> Any:
        raise _Looked
        yield  # that it could be done, every text may tell

    def __add__(self, other: str) -> _Hole:
        return _join((self, other))

    def __radd__(self, other: str) -> _Hole:
        return _join((other, self))


def _refuse(*_: Any, **__: Any) -> Any:
    raise _Looked


def _strips(how: str) -> Callable[..., _Hole]:
    def strip(hole: _Hole, chars: str | None = None) -> _Hole:
        if hole.turn is None or chars is not None or hole.turn[1] not in ("", "strip", how):
            raise _Looked
        return hole if hole.turn[1] else _Hole.of(hole.turn[0], how)

    return strip


_COMPARE = {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "hash", "str", "repr", "format")}
for _name in (set(dir(str)) - set(dir(object)) - set(vars(_Hole))) | _COMPARE:
    setattr(_Hole, _name, _strips(_name) if _name in _STRIPS else _refuse)


def _text(value: Any) -> str:
    return value if isinstance(value, _Hole) else str(value)


def _join(parts: Iterable[Any]) -> Any:
    parts = list(parts)
    text = "".join(parts)
    return _Hole(text) if any(isinstance(part, _Hole) for part in parts) else text


@dataclass(frozen=True)
class Skeleton:
    """A conversation as a template writes it: texts that are always there (`fixed`), and between them what is said (`said`:
    in which turn, and how it is stripped)."""

    fixed: tuple[str, ...]
    said: tuple[tuple[int, str], ...]

    def take(self, messages: Sequence[Message]) -> list[str]:
        """What is said, as it stands in the text."""
        return [getattr(messages[turn].content, how)() if how else messages[turn].content for turn, how in self.said]

    def fill(self, said: Sequence[str]) -> str:
        """The text."""
        parts = [""] * (2 * len(said) + 1)
        parts[::2], parts[1::2] = self.fixed, said
        return "".join(parts)

    def begins(self, other: Skeleton) -> bool:
        """Whether the other begins with it, whatever is said."""
        count = len(self.said)
        return (
            self.said == other.said[:count]
            and self.fixed[:count] == other.fixed[:count]
            and other.fixed[count].startswith(self.fixed[count])
        )

    @property
    def end(self) -> tuple[int, int]:
        """Where it ends, as a place in those that begin with it: how many turns are said before, and how long the rest is."""
        return len(self.said), sum(map(len, self.fixed))


@dataclass(frozen=True)
class Layout:
    """A conversation up to an answer, and where each answer that is learned begins and ends in it."""

    whole: Skeleton
    places: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    def fill(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and for each answer the ends of its prompt and of itself."""
        said = self.whole.take(messages)
        lengths = [0, *itertools.accumulate(map(len, said))]
        places = [(rest + lengths[turns], more + lengths[upto]) for (turns, rest), (upto, more) in self.places]
        return self.whole.fill(said), places


class Skeletons:
    """Those of one template.

    It is rendered with holes for what is said. When it asks nothing of them but to be stripped and put together with
    other texts, it writes the same around everything that may be said. What no hole can see (a search for what is said
    within another text) shows by comparison with true renderings, of the template's own words among others.

    Args:
        compiled: the template, as transformers compiles it.
        names: what it knows besides the conversation.
    """

    def __init__(self, compiled: jinja2.Template, source: str, names: Mapping[str, Any]):
        self._compiled, self._names = compiled, names
        self._known: dict[tuple[tuple[str, ...], bool], Skeleton | None] = {}
        self._layouts: dict[tuple[tuple[str, ...], tuple[int, ...]], Layout | None] = {}
        self._seen: set[Any] = set()
        self._blind: jinja2.Template | None = None
        if _CHANGES.search(source):
            return
        environment = copy.copy(compiled.environment)
        call = environment.call  # type: ignore[attr-defined]

        def call_blind(context: Any, callee: Any, *given: Any, **named: Any) -> Any:
            if not isinstance(callee, Macro) and any(isinstance(one, _Hole) for one in (*given, *named.values())):
                raise _Looked
            return call(context, callee, *given, **named)

        environment.call, environment.concat = call_blind, _join  # type: ignore[attr-defined,method-assign]
        self._blind = jinja2.Template.from_code(environment, environment.compile(source), compiled.globals)
        self._blind.root_render_func.__globals__.update(  # type: ignore[attr-defined]
            str=_text, str_join=lambda parts: _join(map(_text, parts))
        )
        words = [node.value for node in environment.parse(source).find_all(nodes.Const) if isinstance(node.value, str)]
        self._words = itertools.cycle([*_ODD, *dict.fromkeys(word for word in words if word.strip())])

    def render(self, messages: Sequence[Message], answer_next: bool) -> str:
        """The conversation as the template writes it."""
        skeleton = self._find(messages, answer_next)
        if skeleton is not None:
            return skeleton.fill(skeleton.take(messages))
        return "".join(self._write(self._compiled, messages, answer_next))

    def lay_out(self, messages: Sequence[Message], answers: Sequence[int]) -> Layout | None:
        """The conversation up to the last of these answers; None where no skeleton says where they stand."""
        key = tuple([turn.role for turn in messages]), tuple(answers)
        if key not in self._layouts and self._comes_again(key):
            self._layouts[key] = self._try_layout(messages, answers)
        return self._layouts.get(key) if all([turn.content.strip() for turn in messages]) else None

    def _find(self, messages: Sequence[Message], answer_next: bool) -> Skeleton | None:
        """The skeleton of these roles; None where the template looks at what is said, and where nothing is."""
        key = tuple([turn.role for turn in messages]), answer_next
        if key not in self._known and self._comes_again(key):
            self._know(messages, answer_next)
        return self._known.get(key) if all([turn.content.strip() for turn in messages]) else None

    def _know(self, messages: Sequence[Message], answer_next: bool) -> Skeleton | None:
        key = tuple([turn.role for turn in messages]), answer_next
        if key not in self._known:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[key] = self._try(messages, answer_next)
        return self._known[key]

    def _comes_again(self, key: Any) -> bool:
        """What comes once need not be known."""
        if len(self._seen) >= _KNOWN:
            self._seen.clear()
            self._layouts.clear()
        if self._blind is None or key in self._seen:
            return self._blind is not None
        self._seen.add(key)
        return False

    def _try_layout(self, messages: Sequence[Message], answers: Sequence[int]) -> Layout | None:
        whole = self._know(messages[: answers[-1] + 1], False)
        places = []
        for index in answers:
            prompt, answered = self._know(messages[:index], True), self._know(messages[: index + 1], False)
            if whole is None or prompt is None or answered is None:
                return None
            if not (prompt.begins(answered) and answered.begins(whole)):
                return None
            if index not in [turn for turn, _ in answered.said[len(prompt.said) :]]:
                return None
            places.append((prompt.end, answered.end))
        return whole and Layout(whole, tuple(places))

    def _try(self, messages: Sequence[Message], answer_next: bool) -> Skeleton | None:
        """The skeleton that holes show, if it is that of other conversations as well."""
        assert self._blind is not None
        holes = [Message(turn.role, _Hole.of(place)) for place, turn in enumerate(messages)]
        try:
            parts = list(self._write(self._blind, holes, answer_next))
            if any("\ue000" in part for part in parts if not isinstance(part, _Hole)):
                return None
            fixed = _MARKS.split("".join(parts))
            found = Skeleton(tuple(fixed[::3]), tuple(zip(map(int, fixed[1::3]), fixed[2::3], strict=True)))
            if any("\ue000" in text for text in found.fixed):
                return None
            for attempt in range(_ROUNDS):
                some = [Message(turn.role, next(self._words)) for turn in messages] if attempt else messages
                if found.fill(found.take(some)) != "".join(self._write(self._compiled, some, answer_next)):
                    return None
        except Exception:  # it looked, or it refuses this conversation, whatever is said
            return None
        return found

    def _write(self, template: jinja2.Template, messages: Sequence[Message], answer_next: bool) -> Iterable[str]:
        turns = [{"role": turn.role, "content": turn.content} for turn in messages]
        names = {**self._names, "messages": turns, "add_generation_prompt": answer_next}
        return template.root_render_func(template.new_context(names, shared=True))
