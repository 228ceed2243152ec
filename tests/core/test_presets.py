"""Every preset of the folders loads, gives reasons, and is laid over the defaults in the right order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core import methods, objectives, presets
from core.config import Config, fields
from core.fit import count_trainable
from core.model import describe
from core.problem import Problem


@pytest.mark.parametrize("size", presets.sizes())
@pytest.mark.parametrize("task", presets.tasks())
@pytest.mark.parametrize("method", methods.catalogue())
def test_every_combination_gives_a_whole_configuration(task: str, size: str, method: str) -> None:
    resolved = presets.resolve(task, size, {"method": {"name": method}})
    assert resolved.config.task == task
    assert resolved.config.method.name == method
    for key, (origin, why) in resolved.reasons.items():
        assert origin in ("task", "size", "method", "you"), key
        assert why.endswith(".") or origin == "you", key


BASES = {"causal_lm": "gpt2", "seq2seq": "t5", "sequence_classification": "bert", "question_answering": "bert"}


@pytest.mark.parametrize(
    ("task", "method"),
    [
        (task, method)
        for task in presets.tasks()
        for method in methods.catalogue()
        if (task, method) != ("seq2seq", "bitfit")  # T5 has no biases
    ],
)
def test_every_method_trains_something_at_its_presets_settings(
    family: Callable[[str], Path], task: str, method: str
) -> None:
    """A preset's value is meant for a knob, and not for every knob of that name."""
    base = BASES[objectives.find(task).model_kind]
    small = {"method.rank": 4} if "rank" in methods.find(method).model_fields else {}
    config = presets.load(task, {"model.name": str(family(base)), "method.name": method} | small)
    count = count_trainable(config.method, describe(family(base)), fresh_head=base == "bert")
    assert count > 0 or (method, base) == ("head", "bert"), "a fresh head is not counted before there are labels"


def test_there_is_a_preset_for_every_task() -> None:
    assert presets.tasks().keys() == objectives.catalogue().keys()


@pytest.mark.parametrize("kind", ["tasks", "sizes", "for_methods"])
def test_presets_set_what_there_is(kind: str) -> None:
    known = set(fields(Config)).union(*(fields(method, "method.") for method in methods.catalogue().values()))
    for preset in getattr(presets, kind)().values():
        assert preset.values.keys() <= known
        assert preset.title
        assert preset.about.endswith(".")


@pytest.mark.parametrize("name", presets.recipes())
def test_every_recipe_loads_and_opens_with_its_command(name: str) -> None:
    assert Config.load(presets.recipes()[name]).title
    assert f"python -m core train presets/recipes/{name}.yaml" in presets.recipes()[name].read_text(encoding="utf-8")


def test_yours_is_over_size_is_over_task() -> None:
    plain = presets.resolve("chat", "tiny")
    assert plain.config.origins["train.learning_rate"] == "size"
    assert plain.config.origins["method.rank"] == "task"
    mine = presets.resolve("chat", "tiny", {"train": {"learning_rate": 0.5}, "method": {"rank": 3}})
    assert (mine.config.train.learning_rate, mine.config.method.rank) == (0.5, 3)
    assert mine.config.origins["train.learning_rate"] == mine.config.origins["method.rank"] == "you"
    assert mine.config.method.alpha == plain.config.method.alpha


def test_a_methods_preset_is_over_task_and_size_and_under_yours() -> None:
    assert presets.for_methods().keys() <= methods.catalogue().keys()
    for name, preset in presets.for_methods().items():
        plain = presets.resolve("chat", "tiny", {"method": {"name": name}})
        for key, value in preset.values.items():
            assert plain.reasons[key][0] == "method"
            assert presets.flatten(plain.config.to_data())[key] == value
    assert presets.resolve("chat", "tiny", {"method": {"name": "vera", "rank": 8}}).config.method.rank == 8


def test_full_fine_tuning_steps_ten_times_smaller() -> None:
    lora, full = (presets.resolve("chat", "small", {"method": {"name": n}}).config for n in ("lora", "full"))
    assert full.train.learning_rate == pytest.approx(lora.train.learning_rate / 10)


def test_a_rate_that_the_method_changed_says_so() -> None:
    tiny = {method: presets.resolve("chat", "tiny", {"method": {"name": method}}) for method in ("lora", "ia3")}
    assert tiny["lora"].reasons["train.learning_rate"][0] == "size"
    assert tiny["ia3"].reasons["train.learning_rate"][0] == "method"
    assert tiny["ia3"].config.origins["train.learning_rate"] == "method"


def test_size_by_parameters() -> None:
    assert [presets.size_for(n) for n in (None, 3e6, 1e9, 7e9, 7e10)] == ["small", "tiny", "small", "medium", "large"]


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(Problem, match="chat"):
        presets.load("chess")
    with pytest.raises(Problem, match="tiny"):
        presets.resolve("chat", "enormous")
