"""Settings: read from anything a file or a form may hold, with every mistake told at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from core import methods
from core.config import Config, assign, fields, load_yaml, parse_assignment
from core.problem import Problem


def test_defaults_are_whole_and_survive_the_way_to_yaml(tmp_path: Path) -> None:
    config = Config()
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.load(path) == config


@pytest.mark.parametrize("name", methods.catalogue())
def test_every_method_survives_the_way_to_yaml(tmp_path: Path, name: str) -> None:
    config = Config.read({"method": {"name": name}})
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.load(path) == config
    assert type(config.method) is methods.find(name)


def test_every_setting_is_explained_and_has_a_range() -> None:
    for settings in (Config, *methods.catalogue().values()):
        for key, field in fields(settings).items():
            assert field.title, key
            assert field.description, key
            assert field.description.endswith("."), key
            if field.annotation in (int, float):
                limits = " ".join(type(item).__name__ for item in field.metadata)
                assert "Ge" in limits or "Gt" in limits, key
                assert "Le" in limits or "Lt" in limits, key


def test_numbers_may_be_spelled_as_yaml_does() -> None:
    config = Config.read({"train": {"learning_rate": "1e-4", "batch_size": "8", "epochs": 2}})
    assert (config.train.learning_rate, config.train.batch_size, config.train.epochs) == (1e-4, 8, 2.0)


def test_all_mistakes_at_once_each_with_its_field() -> None:
    with pytest.raises(Problem) as caught:
        Config.read(
            {
                "task": "sing",
                "train": {"learning_rate": -1, "epochs": True, "schedular": "cosine", "batch_size": 0},
                "method": {"name": "lora", "rank": 0, "dropout": 1, "rnak": 3},
                "data": {"max_length": 1},
            }
        )
    found = {part.field for part in caught.value.parts}
    assert found == {
        "task", "train.learning_rate", "train.epochs", "train.schedular", "train.batch_size",
        "method.rank", "method.dropout", "method.rnak", "data.max_length",
    }  # fmt: skip
    text = str(caught.value)
    assert "scheduler" in text
    assert "chat, text" in text


@pytest.mark.parametrize("value", [math.nan, math.inf, True, None, [], {}, "x", "1" * 1_000_000, [[1]], -1])
@pytest.mark.parametrize(
    "key", ["train.learning_rate", "method.rank", "data.max_length", "train.batch_size", "train.seed"]
)
def test_whatever_a_form_may_send_is_refused_in_words(key: str, value: Any) -> None:
    data: dict[str, Any] = {}
    assign(data, key, value)
    with pytest.raises(Problem) as caught:
        Config.read(data)
    assert [part.field for part in caught.value.parts] == [key]
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", [None, 3, "lora", [], {"name": None}, {"name": []}, {"name": "Lora"}])
def test_method_of_any_shape_is_refused_in_words(value: Any) -> None:
    with pytest.raises(Problem):
        Config.read({"method": value})


def test_assignments_of_the_command_line() -> None:
    assert parse_assignment("train.max_steps=50") == ("train.max_steps", 50)
    assert parse_assignment("method.targets=[q_proj, v_proj]") == ("method.targets", ["q_proj", "v_proj"])
    assert parse_assignment("data.eval=null") == ("data.eval", None)
    with pytest.raises(Problem):
        parse_assignment("train.max_steps")


@pytest.mark.parametrize("text", ["- a", "a: [", "", "\x00", "a: !!python/object:os.system {}"])
def test_yaml_that_is_no_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(Problem):
        load_yaml(path)


def test_problem_survives_the_way_to_another_process() -> None:
    problem = Problem.join([Problem("a {x}", "b", field="f", x=1), Problem("c {y}", y="{braces}")])
    again = Problem.from_data(problem.to_data())
    assert str(again) == str(problem) == "a 1 b\nc {braces}"
    assert [part.field for part in again.parts] == ["f", None]
