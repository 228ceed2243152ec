"""A setting as a field of a page: the component that edits it, and what is said of it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from core import formats
from core.problem import Problem
from studio import language as languages
from studio.form import Knob
from studio.language import Language


def draw_component(words: Language, knob: Knob, value: Any, choices: list[tuple[str, str]] | None) -> Any:
    """The component that edits a knob; ranges are said and not enforced by it: the answer to a wrong value is a Problem."""
    unit = f" ({words.text(knob.unit)})" if knob.unit else ""
    common: dict[str, Any] = {
        "value": value,
        "label": words.text(knob.title) + unit,
        "info": words.text(knob.help),
        "interactive": True,
    }
    if span := _span(words, knob):
        common["info"] += f" {span}"
    if choices or knob.kind in ("choice", "open choice"):
        listed = choices or [(title_choice(words, knob, choice), choice) for choice in knob.choices]
        custom = knob.kind == "open choice"
        return gr.Dropdown(listed, allow_custom_value=custom, filterable=custom, **common)
    if knob.kind == "switch":
        return gr.Checkbox(**common)
    if knob.kind in ("number", "integer"):
        return gr.Number(step=_step(knob), **common)
    many = {"lines": 2, "pairs": 2}.get(knob.kind, 1)
    hint = {"data.columns": "prompt = question"}.get(knob.key, "q_proj = 8" if knob.kind == "pairs" else "")
    return gr.Textbox(lines=many, max_lines=8, placeholder=hint, **common)


def _step(knob: Knob) -> float:
    # A browser calls a number wrong that is no multiple of the step; what may be any number must not have one.
    return 1 if knob.kind == "integer" and not knob.step else (knob.step or 0.00001)


def title_choice(words: Language, knob: Knob, choice: str) -> str:
    if knob.key == "data.format" and choice != "auto":
        return words.text(formats.find(choice).title)
    key = f"train.choice_{choice}"
    return words.t(key) if key in languages.keys(words.code) else choice  # bfloat16 is called so in every language


def _span(words: Language, knob: Knob) -> str:
    """The range in words; one without a sensible end says the beginning alone."""
    if knob.low is None or knob.kind not in ("number", "integer"):
        return ""
    low = f"{knob.low:g}"
    if knob.high is None or knob.high > 100_000:
        return words.t("train.above" if knob.above else "train.from", low=low)
    return words.t("train.above_to" if knob.above else "train.between", low=low, high=f"{knob.high:g}")


def name_setting(words: Language, problem: Problem, knob: Knob) -> Problem:
    """The problem with the setting's title where its key stands."""
    facts = {**problem.facts, **({"key": words.text(knob.title)} if problem.facts.get("key") == knob.key else {})}
    return Problem(problem.what, problem.there_is, problem.to_do, field=problem.field, **facts)
