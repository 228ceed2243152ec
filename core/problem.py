"""Problem: the one error a user ever sees, in three parts: what is wrong, what there is, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self


def _same(text: str) -> str:
    return text


def _sayable(value: Any) -> str:
    """A value as text that every page and file can hold: half of a character is written as what it is."""
    return str(value).encode("utf-8", "backslashreplace").decode()


class Problem(ValueError):
    """A user's mistake, or the world's, told so that the reader can act on it.

    It is a ValueError, so that a pydantic validator may raise it and the others still run.

    The three texts are templates that `facts` fill (``str.format``). They are English in the code; a window in another
    language translates the *template* and fills it afterwards, which is why they are kept apart.

    Args:
        what: what is wrong, in a whole sentence.
        there_is: what was found instead, or what is available.
        to_do: what the reader can do next.
        field: dotted key of the setting that it is about (``method.rank``), so that a form can show it there.
        facts: the values that fill the three templates.
    """

    def __init__(self, what: str, there_is: str = "", to_do: str = "", *, field: str | None = None, **facts: Any):
        self.what, self.there_is, self.to_do, self.field = what, there_is, to_do, field
        self.facts = {
            name: value if isinstance(value, int | float) else _sayable(value) for name, value in facts.items()
        }
        self.parts: tuple[Problem, ...] = (self,)
        super().__init__(what)

    @classmethod
    def join(cls, problems: Iterable[Problem]) -> Problem:
        """One Problem that carries all of the given ones (at least one)."""
        parts = [part for problem in problems for part in problem.parts]
        if len(parts) == 1:
            return parts[0]
        joined = cls("There are {count} problems.", count=len(parts))
        joined.parts = tuple(parts)
        return joined

    @classmethod
    def raise_all(cls, problems: Iterable[Problem]) -> None:
        """Raise one Problem for all of the given ones; return when there are none."""
        if problems := list(problems):
            raise cls.join(problems)

    def text(self, translate: Callable[[str], str] = _same) -> str:
        """All parts as sentences, one part a line; `translate` maps each English template to another language."""
        lines = []
        for part in self.parts:
            sentences = (
                translate(text).format(**part.facts) for text in (part.what, part.there_is, part.to_do) if text
            )
            lines.append(" ".join(sentences))
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()

    def to_data(self) -> list[dict[str, Any]]:
        """The parts as plain data, for a file or a reply that another process reads."""
        return [
            {"what": p.what, "there_is": p.there_is, "to_do": p.to_do, "field": p.field, "facts": p.facts}
            for p in self.parts
        ]

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]]) -> Self:
        """The inverse of `to_data`."""
        parts = [cls(d["what"], d["there_is"], d["to_do"], field=d["field"], **d["facts"]) for d in data]
        return cls.join(parts)  # type: ignore[return-value]
