"""The window's words: one YAML a language in locales/, under the same keys in every language."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from core.problem import Problem

FOLDER = Path(__file__).parent / "locales"
FIRST = "en"


@cache
def _load(code: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8"))


def codes() -> list[str]:
    """Every language there is a file for, English first."""
    return sorted((path.stem for path in FOLDER.glob("*.yaml")), key=lambda code: (code != FIRST, code))


@cache
def keys(code: str) -> dict[str, str]:
    """Every text of the window by dotted key (``train.start``); what is under ``texts`` is left out."""
    found: dict[str, str] = {}

    def walk(group: dict[str, Any], prefix: str) -> None:
        for name, value in group.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                found[f"{prefix}{name}"] = value

    walk({name: group for name, group in _load(code).items() if name != "texts"}, "")
    return found


def texts(code: str) -> dict[str, str]:
    """English text of the core -> the same in that language; empty for English."""
    return _load(code).get("texts", {})


def say(code: str, english: str) -> str:
    """A text that was born in English (a setting's title, a Problem's template) in that language; itself where none is."""
    there = texts(code)
    if english in there or code == FIRST:
        return there.get(english, english)
    # A template that was put before another ("Row {row}: ") ends with a space, and both are translated.
    prefix = next((text for text in there if text.endswith(" ") and english.startswith(text)), "")
    return there[prefix] + say(code, english.removeprefix(prefix)) if prefix else english


class Language:
    """One language: `t` for the window's own texts, `text` for those of the core."""

    def __init__(self, code: str):
        self.code = code

    def t(self, key: str, /, **facts: Any) -> str:
        """The window's text of that key, filled with `facts`; KeyError for a key that no file has."""
        text = keys(self.code)[key]
        return text.format(**facts) if facts else text

    def text(self, english: str, /, **facts: Any) -> str:
        """The core's text in this language, filled with `facts`."""
        text = say(self.code, english)
        return text.format(**facts) if facts else text

    def explain(self, problem: Problem) -> str:
        """All parts of a Problem as sentences, one part a line; a run's state is said as the window says it."""
        parts = [
            Problem(part.what, part.there_is, part.to_do, **part.facts | self._word(part.facts))
            for part in problem.parts
        ]
        return Problem.join(parts).text(lambda english: say(self.code, english))

    def _word(self, facts: dict[str, Any]) -> dict[str, str]:
        key = f"common.word_{facts.get('state')}"
        return {"state": self.t(key).lower()} if key in keys(self.code) else {}

    def number(self, value: Any) -> str:
        """A count for people: 950, 1.2k, 3.4M, 7B; a dash for none."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return "–"
        for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size * 0.9995:
                return f"{value / size:.3g}{letter}" if abs(value) < 999.5 * size else f"{value / size:.0f}{letter}"
        return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}"

    def small(self, value: Any) -> str:
        """A loss or a rate: four digits that mean something."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return "–"
        return f"{value:.4g}"

    def share(self, value: float) -> str:
        """A part of a whole: 0.42 %, 12 %."""
        percent = value * 100
        return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"

    def percent(self, value: Any) -> str:
        """A probability or a score as a column of figures has it: 93.2 %, and what is nearly nothing as < 0.1 %."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return "–"
        return "< 0.1 %" if 0 < value < 0.0005 else f"{value * 100:.1f} %"

    def duration(self, seconds: float) -> str:
        """A time for people: 40 s, 3 min, 2 h 10 min, 3 d 4 h."""
        minutes, hours = round(seconds / 60), round(seconds / 3600)
        if seconds < 99:
            return self.t("common.seconds", s=round(seconds))
        if minutes < 99:
            return self.t("common.minutes", m=minutes)
        if hours < 48:
            return self.t("common.hours", h=minutes // 60, m=minutes % 60)
        return self.t("common.days", d=hours // 24, h=hours % 24)


def in_bytes(size: float) -> str:
    """A size for people, in powers of a thousand as file managers show it."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 9.95 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
