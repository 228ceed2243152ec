"""The form draws every setting once, keeps what was typed, and gives back the configuration that stands in it."""

import shlex

import pytest
import yaml

from core import methods, presets
from core.__main__ import _load, build_parser
from core.config import Config, fields
from core.formats import Template
from core.problem import Problem
from studio.form import Form, knobs, place, short_name, size_of, tasks_of, token


def test_every_setting_is_a_knob_once() -> None:
    keys = [knob.key for knob in knobs().values() if knob.method is None]
    assert sorted(keys) == sorted(fields(Config))
    for name, method in methods.catalogue().items():
        own = [knob.key for knob in knobs().values() if knob.method == name]
        assert sorted(own) == sorted(fields(method, "method."))


@pytest.mark.parametrize("method", methods.catalogue())
@pytest.mark.parametrize("size", presets.sizes())
@pytest.mark.parametrize("task", presets.tasks())
def test_a_fresh_form_is_the_preset(task: str, size: str, method: str) -> None:
    form = Form.fresh(task, size, method)
    assert form.changed() == {}
    expected = presets.resolve(task, size, {"method": {"name": method}}).config.to_data()
    given = form.config().to_data()
    assert given.pop("name") and expected.pop("name") == ""
    given.pop("origins"), expected.pop("origins")
    assert presets.flatten(given).keys() == presets.flatten(expected).keys()
    for key, value in presets.flatten(given).items():
        other = presets.flatten(expected)[key]
        assert value == (pytest.approx(other) if isinstance(other, float) else other), key


@pytest.mark.parametrize("id", knobs())
def test_what_is_shown_reads_back_as_the_same_value(id: str) -> None:
    knob = knobs()[id]
    assert knob.read(knob.show(knob.default)) == knob.default


def test_values_in_every_spelling() -> None:
    form = Form.fresh()
    form.shown |= {
        "data.columns": "prompt = Frage\ncompletion=Antwort\n",
        "samples.prompts": "Who are you?\n\n  What is the sea?  ",
        "lora:method.targets": "q_proj, v_proj",
        "train.batch_size": "16",
        "train.max_steps": 7,
        "data.eval": "",
    }
    config = form.config()
    assert config.data.columns == {"prompt": "Frage", "completion": "Antwort"}
    assert config.samples.prompts == ["Who are you?", "What is the sea?"]
    assert config.method.targets == ["q_proj", "v_proj"]
    assert (config.train.batch_size, config.train.max_steps, config.data.eval) == (16, 7, None)


def test_a_template_over_columns_stays_one() -> None:
    columns = {"prompt": "{instruction}\n{input}", "completion": "{output}"}
    form = Form.from_config(Config.read({"data": {"columns": columns}}))
    assert form.shown["data.columns"] == "prompt = {instruction}\\n{input}\ncompletion = {output}"
    again = form.config().data.columns
    assert {role: Template(column).fill({"instruction": "a", "input": "b"}) for role, column in again.items()} == {
        "prompt": "a\nb",
        "completion": "",
    }


def test_a_regular_expression_with_a_comma_stays_one() -> None:
    form = Form.fresh()
    form.shown["lora:method.targets"] = r".*layers\.\d{1,2}\.self_attn\.q_proj"
    assert form.config().method.targets == r".*layers\.\d{1,2}\.self_attn\.q_proj"


def test_what_was_changed_is_yours_and_can_be_reset() -> None:
    form = Form.fresh()
    form.shown["lora:method.rank"] = 4
    assert form.changed() == {"lora:method.rank": 4}
    assert form.config().origins["method.rank"] == "you"
    assert form.reset("lora:method.rank").changed() == {}


def test_another_size_moves_what_nobody_touched() -> None:
    old = Form.fresh(size="tiny")
    old.shown["train.warmup"] = 0.2
    new = Form(old.task, "medium", old.method, old.shown).refilled(old)
    assert new.values()["train.learning_rate"] == 2e-4
    assert new.values()["train.warmup"] == 0.2


def test_another_method_and_back_keeps_its_knobs() -> None:
    first = Form.fresh()
    first.shown["lora:method.rank"] = 3
    full = Form(first.task, first.size, "full", first.shown).refilled(first)
    assert full.values()["train.learning_rate"] == pytest.approx(first.values()["train.learning_rate"] / 10)
    back = Form(full.task, full.size, "lora", full.shown).refilled(full)
    assert back.values() == first.values()


def test_the_browser_keeps_the_form() -> None:
    form = Form.fresh("chat", "small", "full")
    form.shown |= {"lora:method.rank": 3, "train.seed": 9, "data.train": "/there/<b>.csv"}
    assert Form.from_memory(form.to_memory()) == form


@pytest.mark.parametrize(
    "memory",
    [
        None,
        3,
        "x",
        [],
        {"task": 3},
        {"task": "chat", "size": "huge", "method": "lora"},
        {"shown": {"no": 1, "train.seed": [1]}},
    ],
)
def test_a_broken_memory_is_a_fresh_form(memory: object) -> None:
    assert Form.from_memory(memory) == Form.fresh()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, [1], {"a": 1}, "x" * 10**6, -1, 0, "", None])
def test_nonsense_from_anywhere_is_a_problem_beside_its_field(value: object) -> None:
    form = Form.fresh()
    form.shown["lora:method.rank"] = value
    with pytest.raises(Problem) as caught:
        form.config()
    placed, others = place(caught.value, form)
    assert list(placed) == ["lora:method.rank"] and others == []


def test_all_mistakes_are_placed_at_once() -> None:
    form = Form.fresh()
    form.shown |= {"lora:method.rank": 0, "train.learning_rate": -1, "data.max_length": 1}
    with pytest.raises(Problem) as caught:
        form.config()
    assert set(place(caught.value, form)[0]) == {"lora:method.rank", "train.learning_rate", "data.max_length"}


def test_yaml_and_back() -> None:
    form = Form.fresh("text", "medium", "freeze")
    form.shown |= {"freeze:method.layers": 3, "train.early_stopping": 2, "model.name": "some/model", "name": "mine"}
    config = Config.read(yaml.safe_load(form.config().to_yaml()))
    again = Form.from_config(config).config().to_data()
    again.pop("origins")
    expected = config.to_data()
    expected.pop("origins")
    assert again == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "full"},
        {"train.epochs": 1.5, "lora:method.targets": "q_proj, v_proj", "samples.prompts": "It's <me>?\nYes"},
    ],
)
def test_the_command_line_does_the_same(changes: dict[str, object]) -> None:
    form = Form.fresh(method=str(changes.get("method", "lora")))
    form.shown |= {id: value for id, value in changes.items() if id in knobs()}
    words = shlex.split(form.command().replace("\\\n", " "))
    assert words[:3] == ["python", "-m", "core"]
    given, expected = _load(build_parser().parse_args(words[3:])).to_data(), form.config().to_data()
    for data in (given, expected):
        data.pop("origins"), data.pop("name")
    assert given == expected


def test_five_presses_are_one_run_and_another_setting_is_another() -> None:
    form = Form.fresh()
    nonce = "0123456789abcdef"
    assert token(nonce, form.config()) == token(nonce, form.config())
    other = Form.fresh()
    other.shown["train.seed"] = 1
    assert token(nonce, other.config()) != token(nonce, form.config())
    assert token("fedcba9876543210", form.config()) != token(nonce, form.config())
    assert "/" not in token("../../x", form.config())


def test_names_for_people() -> None:
    assert short_name("sample:style") == "style"
    assert short_name("/data/0123456789ab-my_data.csv") == "my_data"
    assert short_name("/data/0123456789ab-my_data.xlsx") == "my_data"
    assert short_name("org/model-1.5B") == "model-1.5B"
    assert short_name("/data/0123456789ab-my_data.csv;sample:style;b.csv") == "my_data + 2"
    assert short_name("") == "" == short_name(None)
    assert size_of("playground") == "tiny"
    assert size_of("/no/such/folder") == "small"


def test_a_model_is_offered_what_it_can_do(family) -> None:
    known = set(knobs()["task"].choices)
    assert tasks_of("playground")[0] == "chat" and "seq2seq" not in tasks_of("playground")
    encoder = tasks_of(str(family("bert")))
    assert {"classification", "extractive_qa"} <= set(encoder) and not {"chat", "text", "seq2seq"} & set(encoder)
    assert set(tasks_of("not/here")) == set(tasks_of("/no/such/folder")) == set(tasks_of(None)) == known


def test_another_task_brings_its_presets() -> None:
    form = Form.fresh("chat")
    assert form.for_task("chat") is form
    other = form.for_task("text")
    assert (other.task, other.shown["task"]) == ("text", "text") and other.changed() == {}


def test_an_empty_list_of_names_is_what_it_says() -> None:
    """Nothing where it may be nothing; else an empty list, or the empty text for config to refuse."""
    found = [knob for knob in knobs().values() if knob.kind == "names"]
    assert {knob.optional for knob in found} == {True, False}
    for knob in found:
        assert knob.show(None) == "" and knob.read("  ") == (None if knob.optional else type(knob.default)())
        assert knob.read("q_proj, v_proj") == ["q_proj", "v_proj"]
