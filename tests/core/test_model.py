"""Models as files: found, described without torch, and refused when they would run foreign code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ground import FAMILIES

from core import fit, methods
from core.config import Config
from core.model import check_safety, describe, locate
from core.problem import Problem


@pytest.mark.parametrize("kind", ["lora", "full", "freeze"])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_told_before_is_what_is_trained(family: Callable[[str], Path], name: str, kind: str) -> None:
    import torch

    from core.config import ModelSettings
    from core.engine.adapt import Adapted
    from core.engine.model import load_model

    method = methods.find(kind)()
    facts = describe(family(name))
    adapted = Adapted(load_model(ModelSettings(name=str(family(name))), torch.device("cpu"), torch.float32)[0])
    adapted.add("a", method)
    assert fit.count_trainable(method, facts) == sum(p.numel() for p in adapted.start_training("a").values())
    assert facts.parameters == sum(p.numel() for p in adapted.parameters.values())
    assert set(facts.linear_layers) == set(adapted.linear)
    assert facts.blocks == adapted.blocks == 3
    assert facts.chat_template
    assert facts.max_length == 128


@pytest.fixture
def copy(family: Callable[[str], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(family("llama"), tmp_path / "model"))


def test_pickled_weights_are_refused_by_name(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(Problem, match=r"pytorch_model\.bin"):
        describe(copy)


def test_code_of_the_models_own_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    with pytest.raises(Problem, match="code of its own"):
        check_safety(copy)


def test_cut_file_is_told(copy: Path) -> None:
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(Problem, match="damaged"):
        describe(copy)


def test_sharded_weights_are_counted_whole(family: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(family("llama")).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert describe(tmp_path).parameters == describe(family("llama")).parameters


def test_places(family: Callable[[str], Path], tmp_path: Path) -> None:
    assert locate("playground") is not None
    assert locate(str(family("llama"))) == family("llama")
    assert locate("no-such-owner/no-such-model") is None
    with pytest.raises(Problem, match=r"cannot be reached|does not give"):
        locate("no-such-owner/no-such-model", download=True)
    for name in (str(tmp_path / "nothing"), "./nothing", "a/b/c", str(tmp_path)):
        with pytest.raises(Problem) as caught:
            locate(name)
        assert caught.value.field == "model.name"


def test_rows_and_steps() -> None:
    config = Config.read(
        {"train": {"epochs": 2, "batch_size": 4, "gradient_accumulation": 2}, "data": {"eval_fraction": 0.1}}
    )
    assert fit.count_eval_rows(config, 100) == 10
    assert fit.count_eval_rows(config, 1) == 0
    assert fit.count_steps(config, 90, 4) == 24
    assert fit.count_steps(Config.read({"train": {"max_steps": 5}}), 90, 4) == 5


def test_rows_to_set_aside_win_over_the_share() -> None:
    config = Config.read({"data": {"eval_fraction": 0.1, "eval_rows": 7}})
    assert fit.count_eval_rows(config, 100) == 7 and fit.estimate(config, 100).rows == 93
    assert fit.count_eval_rows(Config.read({"data": {"eval_rows": 0}}), 100) == 0
    assert fit.count_eval_rows(Config.read({"data": {"eval_rows": 7, "eval": "x.csv"}}), 5) == 0
    for rows in (7, 1, 0):
        with pytest.raises(Problem, match="7 of") as caught:
            fit.count_eval_rows(config, rows)
        assert caught.value.field == "data.eval_rows"
