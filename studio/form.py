"""The form of a training: every setting as a knob, and the knobs back as settings.

Everything here is drawn from core.config, the methods and the presets; no setting is named but the few that stand in sight.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from core import formats, methods, objectives, presets, sources
from core.config import Config, assign, fields
from core.model import ModelFacts, describe, locate
from core.problem import Problem

Kind = Literal["choice", "open choice", "number", "integer", "switch", "text", "lines", "names", "pairs"]

GROUPS = ("method", "optimisation", "data", "saving")
CHOSEN = ("model.name", "data.train", "task")
"""The settings that are chosen, with the size, above everything else."""

_LONGEST = 20_000
_NAME = re.compile(r"[\w.]+")
_UPLOAD_ID = re.compile(r"^[0-9a-f]{12}-")


@dataclass(frozen=True)
class Knob:
    """A setting as a field of the form.

    Attributes:
        id: the dotted key; of a method's own knob, the method's name and a colon before it.
        low, high: the range, when there is one; `above` and `below` say that the end itself is outside.
    """

    id: str
    key: str
    method: str | None
    title: str
    help: str
    group: str
    unit: str
    step: float | None
    kind: Kind
    choices: tuple[str, ...]
    optional: bool
    default: Any
    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False

    def show(self, value: Any) -> Any:
        """The value as its component holds it."""
        if self.kind == "pairs":
            # A line each: a new line inside a template is shown as it is written there.
            pairs = [f"{role} = {column}" for role, column in (value or {}).items()]
            return "\n".join(pair.replace("\n", "\\n") for pair in pairs)
        if self.kind == "lines":
            return "\n".join(value or [])
        if self.kind == "names":
            return value if isinstance(value, str) else ", ".join(value or ())
        if self.kind in ("text", "open choice", "choice"):
            return "" if value is None else str(value)
        return _rounded(value)

    def read(self, shown: Any) -> Any:
        """The setting's value behind what the component holds; whatever makes no sense is passed on for config to refuse."""
        if self.kind in ("number", "integer", "switch") or not isinstance(shown, str):
            return None if shown == "" and self.optional else _rounded(shown)
        text = shown.strip()
        if self.kind == "pairs":
            return dict(_pair(line) for line in text.splitlines() if line.strip())
        if self.kind == "lines":
            return [line.strip() for line in text.splitlines() if line.strip()]
        if self.kind == "names":
            names = [name.strip() for name in text.split(",") if name.strip()]
            if not names:
                return None if self.optional else type(self.default)()
            return names if len(names) > 1 and all(map(_NAME.fullmatch, names)) else text
        if self.kind == "open choice" and re.fullmatch(r"[+-]?\d+", text):
            return int(text)
        return None if not text and self.optional else text


def _pair(line: str) -> tuple[str, str]:
    role, _, column = line.partition("=")
    return role.strip(), column.strip()


def _rounded(value: Any) -> Any:
    """Numbers as people write them: 3e-4 x 0.1 is 3e-05 and not 2.9999999999999997e-05."""
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


@cache
def knobs() -> dict[str, Knob]:
    """Every knob by id, the methods' own among them, in reading order."""
    found = {key: _knob(key, key, None, info) for key, info in fields(Config).items()}
    for name, method in methods.catalogue().items():
        for key, info in fields(method, "method.").items():
            found[f"{name}:{key}"] = _knob(f"{name}:{key}", key, name, info)
    return found


def _knob(id: str, key: str, method: str | None, info: FieldInfo) -> Knob:
    extra: Mapping[str, Any] = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    limits = {
        name: getattr(item, name) for item in info.metadata for name in ("ge", "gt", "le", "lt") if hasattr(item, name)
    }
    kind, choices, optional = _kind(info.annotation)
    if key == "task":
        kind, choices = "choice", tuple(name for name in objectives.catalogue() if name in presets.tasks())
    elif key == "data.format":
        kind, choices = "choice", ("auto", *formats.formats())
    elif key in ("model.name", "data.train"):
        kind = "open choice"
    return Knob(
        id=id, key=key, method=method, title=info.title or key, help=info.description or "", group=str(extra.get("group") or ""),
        unit=str(extra.get("unit") or ""), step=extra.get("step"), kind=kind, choices=choices, optional=optional,
        default=info.get_default(call_default_factory=True), low=limits.get("ge", limits.get("gt")), high=limits.get("le", limits.get("lt")),
        above="gt" in limits, below="lt" in limits,
    )  # fmt: skip


def _kind(annotation: Any) -> tuple[Kind, tuple[str, ...], bool]:
    """How a type is edited, its choices, and whether it may be empty."""
    if get_origin(annotation) is Literal:
        return "choice", tuple(map(str, get_args(annotation))), False
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [one for one in get_args(annotation) if one is not type(None)]
        optional = len(inner) < len(get_args(annotation))
        words = [one for one in inner if get_origin(one) is Literal]
        if words and len(inner) > 1:
            return "open choice", (*map(str, get_args(words[0])), "1", "2", "4", "8", "16", "32"), optional
        if str in inner and len(inner) > 1:
            return "names", (), optional
        kind, choices, _ = _kind(inner[0])
        return kind, choices, optional
    origin = get_origin(annotation)
    if origin in (list, dict):
        return ("lines" if origin is list else "pairs"), (), False
    kinds: dict[Any, Kind] = {bool: "switch", int: "integer", float: "number"}
    return kinds.get(annotation, "text"), (), False


@dataclass(frozen=True)
class Basis:
    """What the presets say for a task, a size and a method: value, origin and reason of every knob, by id."""

    task: str
    size: str
    method: str
    values: Mapping[str, Any]
    origins: Mapping[str, tuple[str, str]]


@cache
def basis(task: str, size: str, method: str) -> Basis:
    """The values before the user changes one.

    Raises:
        Problem: there is no such task, size or method.
    """
    resolved = presets.resolve(task, size, {"method": {"name": method}})
    said = presets.flatten(resolved.config.to_data())
    values = {id: _rounded(said[knob.key]) for id, knob in knobs().items() if knob.method in (None, method)}
    origins = {id: resolved.reasons.get(knobs()[id].key, ("default", "")) for id in values}
    return Basis(task, size, method, values, origins)


def _beginnings(task: str, size: str, method: str) -> dict[str, Any]:
    """The value that each knob begins with, by id: a method's own knobs as the presets have them for that method."""
    return {id: basis(task, size, knob.method or method).values[id] for id, knob in knobs().items()}


@dataclass
class Form:
    """What stands in the form: three choices and, by the knobs' ids, what their components hold."""

    task: str = "chat"
    size: str = "tiny"
    method: str = "lora"
    shown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fresh(cls, task: str = "chat", size: str = "tiny", method: str = "lora") -> Form:
        """The form as the presets fill it."""
        return cls(
            task, size, method, {id: knobs()[id].show(value) for id, value in _beginnings(task, size, method).items()}
        )

    def values(self) -> dict[str, Any]:
        """The settings behind what is shown, for the knobs that the chosen method has."""
        return {
            id: knob.read(_short(self.shown.get(id)))
            for id, knob in knobs().items()
            if knob.method in (None, self.method)
        }

    def changed(self) -> dict[str, Any]:
        """Those that are not as the presets have them."""
        base = basis(self.task, self.size, self.method).values
        return {id: value for id, value in self.values().items() if not _same(value, base[id])}

    def refilled(self, old: Form) -> Form:
        """After another task, size or method was chosen: whatever was as the presets had it in `old` becomes as they have it now."""
        before, now = _beginnings(old.task, old.size, old.method), _beginnings(self.task, self.size, self.method)
        shown = dict(self.shown)
        for id, value in now.items():
            if id not in CHOSEN and _same(knobs()[id].read(_short(shown.get(id))), before[id]):
                shown[id] = knobs()[id].show(value)
        return Form(self.task, self.size, self.method, shown | {"task": self.task})

    def for_task(self, task: str) -> Form:
        """The same with another task."""
        return self if task == self.task else Form(task, self.size, self.method, self.shown).refilled(self)

    def for_model(self, model: str) -> Form:
        """The same with another model, and with what the presets say for its size."""
        if model == self.shown["model.name"]:
            return self
        return Form(self.task, size_of(model), self.method, self.shown | {"model.name": model}).refilled(self)

    def reset(self, id: str) -> Form:
        """One knob as the presets have it."""
        base = basis(self.task, self.size, self.method).values
        return Form(
            self.task, self.size, self.method, self.shown | ({id: knobs()[id].show(base[id])} if id in base else {})
        )

    def config(self) -> Config:
        """All settings, resolved, with where each came from.

        Raises:
            Problem: with every mistake at once, each with the key of its field.
        """
        yours: dict[str, Any] = {}
        for id, value in self.changed().items():
            if id != "task":
                assign(yours, knobs()[id].key, value)
        assign(yours, "method.name", self.method)
        if not yours.get("name"):
            values = self.values()
            yours["name"] = f"{short_name(values.get('model.name'))}-{short_name(values.get('data.train'))}"[:80]
        return presets.resolve(self.task, self.size, yours).config

    def command(self) -> str:
        """The command line that does the same."""
        there = presets.flatten(presets.load(self.task).to_data())
        config = self.config()
        said = presets.flatten(config.to_data())
        wanted = {key: value for key, value in said.items() if key not in there or not _same(value, there[key])}
        if self.method != there["method.name"]:
            # The command line drops the other method's knobs with its name.
            wanted |= {key: value for key, value in said.items() if key.startswith("method.")}
        order = [
            key
            for key in said
            if key in wanted
            and not key.startswith("origins")
            and key not in ("task", "job", *(["name"] if not self.values().get("name") else []))
        ]
        parts = [f"--set {_quoted(key, wanted[key])}" for key in order]
        return " \\\n  ".join([f"python -m core train {self.task}", *parts])

    def to_memory(self) -> dict[str, Any]:
        """What the browser keeps: the choices, and whatever is not as the presets have it, other methods' knobs among them."""
        base = _beginnings(self.task, self.size, self.method)
        kept = {
            id: shown
            for id, shown in self.shown.items()
            if id in base and not _same(knobs()[id].read(_short(shown)), base[id])
        }
        return {"task": self.task, "size": self.size, "method": self.method, "shown": kept}

    @classmethod
    def from_memory(cls, memory: Any) -> Form:
        """The form that the browser kept; what it cannot have kept is left out."""
        if not isinstance(memory, Mapping):
            return cls.fresh()
        task, size, method = (memory.get(name) for name in ("task", "size", "method"))
        catalogues = (presets.tasks(), presets.sizes(), methods.catalogue())
        known = all(
            isinstance(name, str) and name in names
            for name, names in zip((task, size, method), catalogues, strict=True)
        )
        form = cls.fresh(str(task), str(size), str(method)) if known else cls.fresh()
        kept = memory.get("shown")
        for id, value in kept.items() if isinstance(kept, Mapping) else ():
            if id in knobs() and isinstance(value, str | int | float | bool | None):
                form.shown[id] = _short(value)
        return form

    @classmethod
    def from_config(cls, config: Config) -> Form:
        """The form that gives this configuration."""
        form = cls.fresh(config.task, size_of(config.model.name), config.method.name)  # type: ignore[attr-defined]
        said = presets.flatten(config.to_data())
        for id, knob in knobs().items():
            if knob.method in (None, form.method) and knob.key in said:
                form.shown[id] = knob.show(said[knob.key])
        return form


def size_of(model: Any) -> str:
    """The size preset of that model; small while its files are not here."""
    facts = _look(model)
    return presets.size_for(facts.parameters if facts else None)


def tasks_of(model: Any) -> tuple[str, ...]:
    """The tasks that the model can do, the likeliest first; all while its files are not here, or nothing is known of it."""
    facts = _look(model)
    can = facts.tasks if facts else ()
    return tuple(name for name in can if name in knobs()["task"].choices) or knobs()["task"].choices


def _look(model: Any) -> ModelFacts | None:
    try:
        folder = locate(model) if isinstance(model, str) and model else None
        return describe(folder) if folder else None
    except (Problem, OSError, ValueError):
        return None


def place(problem: Problem, form: Form) -> tuple[dict[str, list[Problem]], list[Problem]]:
    """The parts of a Problem by the knob that each belongs to, and those that belong to none."""
    placed: dict[str, list[Problem]] = {}
    others = []
    for part in problem.parts:
        key = part.field or ""
        own = f"{form.method}:{key}"
        if own in knobs():
            placed.setdefault(own, []).append(part)
        elif key in knobs():
            placed.setdefault(key, []).append(part)
        else:
            others.append(part)
    return placed, others


def token(nonce: Any, config: Config) -> str:
    """One press of Start: the same nonce and settings give the same run, however often they arrive."""
    # Without a nonce that the page was given, presses within a minute are one.
    nonce = nonce if is_nonce(nonce) else f"{int(time.time() // 60):016x}"
    return f"{nonce}-{hashlib.sha256(config.to_yaml().encode()).hexdigest()[:16]}"


def is_nonce(nonce: Any) -> bool:
    """Whether it is one that this studio gave to a page."""
    return isinstance(nonce, str) and re.fullmatch(r"[0-9a-f]{16}", nonce) is not None


def short_name(source: Any) -> str:
    """A model or data set as one word: the last part of its path or id, without what we put before it; of several
    data sets the first, and how many more."""
    first, *more = sources.pieces(str(source or "")) or [""]
    if more:
        return f"{short_name(first)} + {len(more)}"
    text = first.removeprefix("sample:").rstrip("/\\")
    name = re.split(r"[/\\]", text)[-1]
    name = _UPLOAD_ID.sub("", name)
    known = (".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".parquet", ".txt")
    return Path(name).stem if Path(name).suffix in known else name


def _short(value: Any) -> Any:
    return value[:_LONGEST] if isinstance(value, str) else value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, bool) is not isinstance(right, bool):
        return False
    return _rounded(left) == _rounded(right)


def _quoted(key: str, value: Any) -> str:
    """`key=value` as a shell takes it; the value in YAML's own short form."""
    text = (
        value
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_/~][\w./:~@-]*", value)
        else json.dumps(value, ensure_ascii=False)
    )
    return shlex.quote(f"{key}={text}")
