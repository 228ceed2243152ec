"""Every sentence of the window is there in every language, and every sentence of the core in Chinese."""

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import core
from core import formats, methods, objectives, presets
from core.config import Config, fields
from core.findings import KINDS
from core.playground import SAMPLES
from core.problem import Problem
from studio import language
from studio.language import Language

ROOT = Path(core.__file__).resolve().parent.parent
SOURCES = [ROOT / "app.py", *sorted((ROOT / "core").rglob("*.py")), *sorted((ROOT / "studio").rglob("*.py"))]
OTHERS = [code for code in language.codes() if code != "en"]


def _strings(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def _assigned(scope: ast.AST, name: str) -> Iterator[str]:
    """The texts that a local variable may hold, by every assignment to it."""
    for node in ast.walk(scope):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id == name:
                yield from _strings(node.value)
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=True):
                    if isinstance(one, ast.Name) and one.id == name:
                        yield from _strings(value)


def _told(node: ast.Call) -> list[ast.expr]:
    """The arguments of a call that a user reads."""
    name = node.func.id if isinstance(node.func, ast.Name) else ""
    if name in ("Problem", "StillReading"):
        return [
            *node.args[:3],
            *(keyword.value for keyword in node.keywords if keyword.arg in ("what", "there_is", "to_do")),
        ]
    return node.args[:1] if name == "say" else []


def problem_texts() -> set[str]:
    """The templates of every Problem in the sources, and what the gate says."""
    found: set[str] = set()
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        for scope in [*functions, tree]:
            for node in ast.walk(scope):
                for told in _told(node) if isinstance(node, ast.Call) else []:
                    if isinstance(told, ast.Name):
                        found |= set(_assigned(scope, told.id))
                    elif not (isinstance(told, ast.Subscript | ast.Attribute | ast.Call)):
                        found |= set(_strings(told))
    # A word alone is a key or a name, not a sentence.
    return {text for text in found if " " in text.strip()}


def core_texts() -> set[str]:
    """Titles, helps and reasons: all that the window shows of the core."""
    found = set()
    for settings in (Config, *methods.catalogue().values()):
        for knob in fields(settings).values():
            extra = knob.json_schema_extra if isinstance(knob.json_schema_extra, dict) else {}
            found |= {str(knob.title), str(knob.description), str(extra.get("unit") or "")}
    for one in (*methods.catalogue().values(), *objectives.catalogue().values()):
        found |= {one.title, one.about, getattr(one, "nothing", "")}
    found |= set(methods.FAMILIES)
    for preset in (*presets.tasks().values(), *presets.sizes().values(), *presets.for_methods().values()):
        found |= {preset.title, preset.about, *preset.reasons.values()}
    for format in formats.formats().values():
        found |= {format.title, format.about, format.because, getattr(format, "spoken", "")}
    found |= {text for kind in KINDS.values() for text in (kind.what, kind.why)}
    found |= {sample.title for sample in SAMPLES.values()} | {presets.RATE_OF_THE_METHOD}
    return found - {""}


def _facts(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("code", OTHERS)
def test_the_same_keys(code: str) -> None:
    ours, theirs = language.keys("en"), language.keys(code)
    assert set(ours) - set(theirs) == set(), f"missing in {code}"
    assert set(theirs) - set(ours) == set(), f"left over in {code}"


@pytest.mark.parametrize("code", OTHERS)
def test_the_same_facts_in_a_sentence(code: str) -> None:
    other = language.keys(code)
    wrong = {key for key, text in language.keys("en").items() if _facts(text) != _facts(other.get(key, ""))}
    assert wrong == set()


@pytest.mark.parametrize("code", OTHERS)
def test_every_text_of_the_core_is_translated(code: str) -> None:
    there = language.texts(code)
    missing = sorted(text for text in core_texts() | problem_texts() if text not in there)
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("code", OTHERS)
def test_translations_use_no_fact_that_the_original_has_not(code: str) -> None:
    wrong = [text for text, other in language.texts(code).items() if not _facts(other) <= _facts(text)]
    assert wrong == []


@pytest.mark.parametrize("code", OTHERS)
def test_no_translation_is_left_over(code: str) -> None:
    left = sorted(set(language.texts(code)) - core_texts() - problem_texts())
    assert not left, "\n".join(left)


def test_no_key_is_left_over_and_none_is_missing() -> None:
    """Keys stand in the sources whole, or as the beginning of an f-string (`common.state_{state}`)."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES if path.is_relative_to(ROOT / "studio"))
    whole = set(re.findall(r"""["']([a-z]+(?:\.[a-z_0-9]+)+)["']""", source))
    begun = tuple(set(re.findall(r"""["']([a-z]+\.[a-z_0-9]*){""", source)))
    unused = [key for key in language.keys("en") if key not in whole and not (begun and key.startswith(begun))]
    assert unused == []
    groups = {key.partition(".")[0] for key in language.keys("en")}
    used = set(re.findall(r"""words\.t\(\s*["']([a-z]+\.[a-z_0-9.]+)["']""", source))
    assert {key for key in used if key.partition(".")[0] in groups} - set(language.keys("en")) == set()


def test_every_state_has_a_word_and_a_sentence() -> None:
    from typing import get_args

    from core.runs import State

    for state in get_args(State):
        assert f"common.word_{state}" in language.keys("en")
        assert f"common.state_{state}" in language.keys("en")


def test_problem_texts_finds_what_is_passed_by_a_variable() -> None:
    assert "{name} is an archive, and archives are not unpacked." in problem_texts()


def test_a_state_is_said_in_the_readers_words() -> None:
    problem = Problem("The run {run} cannot be resumed.", "It is {state}.", run="completed", state="completed")
    assert Language("zh").explain(problem).endswith("已完成。") and "completed" in Language("zh").explain(problem)
    assert Language("en").explain(problem).endswith("It is completed.")
    odd = Problem("The run {run} cannot be resumed.", "It is {state}.", run="a", state="{odd}")
    assert Language("zh").explain(Problem.join([problem, odd])).count("\n") == 1
