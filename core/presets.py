"""Presets: the YAML of a task, of a model size and of a method laid over the defaults, and your own values over all, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core import methods
from core.config import Config, assign, fields, load_yaml
from core.model import PLAYGROUND, describe, locate
from core.problem import Problem

FOLDER = Path(__file__).resolve().parent.parent / "presets"


@dataclass(frozen=True)
class Preset:
    """One file of presets/tasks, presets/sizes or presets/methods: values by dotted key, each with why."""

    name: str
    title: str
    about: str
    values: dict[str, Any]
    reasons: dict[str, str]
    most_parameters: float | None = None


@dataclass(frozen=True)
class Resolved:
    """A configuration, and for each key of it who said so and why: (origin, reason)."""

    config: Config
    reasons: dict[str, tuple[str, str]]


@cache
def _load(folder: str) -> dict[str, Preset]:
    found = {}
    for path in sorted((FOLDER / folder).glob("*.yaml")):
        data = load_yaml(path)
        values = {key: entry["value"] for key, entry in data["settings"].items()}
        reasons = {key: entry["why"] for key, entry in data["settings"].items()}
        found[path.stem] = Preset(path.stem, data["title"], data["about"], values, reasons, data.get("most_parameters"))
    return found


def tasks() -> dict[str, Preset]:
    """The presets by task."""
    return _load("tasks")


def sizes() -> dict[str, Preset]:
    """The presets by model size, smallest first."""
    return dict(sorted(_load("sizes").items(), key=lambda item: item[1].most_parameters or float("inf")))


def for_methods() -> dict[str, Preset]:
    """The presets by method, for those to which a task's values do not fit."""
    return _load("methods")


def recipes() -> dict[str, Path]:
    """Whole configurations that read alone, by name."""
    return {path.stem: path for path in sorted((FOLDER / "recipes").glob("*.yaml"))}


def size_for(parameters: int | None) -> str:
    """The name of the size preset for a model of that many parameters; unknown counts as small."""
    if parameters is None:
        return "small"
    return next(name for name, preset in sizes().items() if parameters <= (preset.most_parameters or float("inf")))


def method_knobs(data: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of the chosen method by dotted key."""
    group = data.get("method")
    name = group.get("name", "lora") if isinstance(group, Mapping) else "lora"
    return dict(fields(methods.find(name), "method."))


def resolve(task: str, size: str, yours: Mapping[str, Any] | None = None) -> Resolved:
    """Lay the presets of task, size and method, and your own values (nested plain data) over the defaults.

    Raises:
        Problem: for an unknown task or size, and for every mistake in `yours`.
    """
    yours = yours or {}
    layers = []
    for kind, name, known in (("task", task, tasks()), ("size", size, sizes())):
        if name not in known:
            raise Problem(
                "There is no preset {name}.",
                "There are {names}.",
                field="task" if kind == "task" else None,
                name=repr(name),
                names=", ".join(known),
            )
        layers.append((kind, known[name]))
    data: dict[str, Any] = {"task": task}
    reasons: dict[str, tuple[str, str]] = {}
    own_knobs = method_knobs(yours)
    group = yours.get("method")
    method = methods.find(group.get("name", "lora") if isinstance(group, Mapping) else "lora")
    if method.name in for_methods():
        layers.append(("method", for_methods()[method.name]))
    for kind, preset in layers:
        for key, value in preset.values.items():
            if key.startswith("method.") and key not in own_knobs:
                continue  # a preset's rank says nothing about a method without one
            reasons[key] = (kind, preset.reasons[key])
            if key == "train.learning_rate" and method.learning_rate_factor != 1:
                value *= method.learning_rate_factor
                reasons[key] = ("method", RATE_OF_THE_METHOD)
            assign(data, key, value)
    for key, value in flatten(yours).items():
        if key == "origins" or key.startswith("origins."):
            continue
        assign(data, key, value)
        reasons[key] = ("you", "")
    data["origins"] = {key: origin for key, (origin, _) in reasons.items()}
    return Resolved(Config.read(data), reasons)


RATE_OF_THE_METHOD = "The rate for LoRA on a model of this size, times what this method needs."


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data by dotted key; `data.columns` is one value."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        key = prefix + str(name)
        if isinstance(value, Mapping) and key != "data.columns" and prefix.count(".") < 1:
            flat |= flatten(value, key + ".")
        else:
            flat[key] = value
    return flat


def load(name: str, changes: Mapping[str, Any] | None = None) -> Config:
    """The configuration in a YAML file, in a recipe, or of a task's preset for the model that is asked for.

    Args:
        name: a path, a recipe's name, or a task's name.
        changes: values by dotted key that are laid over it.
    """
    changes = changes or {}
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        if name in tasks():
            yours: dict[str, Any] = {}
            for key, value in changes.items():
                assign(yours, key, value)
            return resolve(name, size_for(_count_parameters(yours)), yours).config
        if name not in recipes():
            names = ", ".join([*recipes(), *tasks()])
            raise Problem(
                "There is no preset and no file {name}.",
                "Presets are {names}.",
                "Give one of them or the path of a YAML file.",
                name=repr(name),
                names=names,
            )
        path = recipes()[name]
    data = Config.load(path).to_data()
    before = methods.find(data["method"]["name"])
    # The method first: another one has other knobs, and those that follow are meant for it.
    for key, value in sorted(changes.items(), key=lambda item: item[0] != "method.name"):
        if key == "method.name" and value != before.name:
            after = methods.find(value)
            data["method"] = {}
            data["train"]["learning_rate"] *= after.learning_rate_factor / before.learning_rate_factor
        if key != "origins" and not key.startswith("origins."):
            assign(data, key, value)
            data["origins"] = dict(data["origins"]) | {key: "you"}
    return Config.read(data)


def _count_parameters(yours: Mapping[str, Any]) -> int | None:
    """Of the model that is asked for, when its files are here."""
    group = yours.get("model")
    name = group.get("name", PLAYGROUND) if isinstance(group, Mapping) else PLAYGROUND
    revision = group.get("revision") if isinstance(group, Mapping) else None
    folder = locate(str(name), None if revision is None else str(revision))
    return describe(folder).parameters if folder else None
