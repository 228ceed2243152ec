"""A training is exact: the same however its batches are split, and the same after an interruption."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core import objectives, runs
from core.config import Config
from core.engine import checkpoint as checkpoints
from core.engine import loop, worker
from core.engine.adapt import Adapted, Weights
from core.engine.chat import Speaker
from core.engine.data import Reader
from core.engine.evaluate import Measured, measure
from core.engine.generate import GREEDY
from core.engine.model import end_token_ids, load_model
from core.engine.rows import Rows, order_rows
from core.engine.tokens import Tokens
from core.fit import learning_rate
from core.formats import Message
from core.objectives import Row
from core.problem import Problem
from core.runs import Run


def config_of(folder: Path, rows: Path, /, **groups: dict[str, Any]) -> Config:
    settings: dict[str, Any] = {
        "model": {"name": str(folder)},
        "data": {"train": str(rows), "max_length": 64, "eval_fraction": 0.1},
        "method": {"name": "lora", "rank": 4, "alpha": 8},
        "train": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 4, "save_every": 3},
        "samples": {"max_new_tokens": 4},
    }
    for group, values in groups.items():
        settings[group] = values if group == "method" else settings[group] | values
    return Config.read(settings)


@pytest.fixture
def train(home: Path, family: Callable[[str], Path], rows_file: Path) -> Callable[..., Run]:
    def start(name: str = "llama", /, **groups: dict[str, Any]) -> Run:
        run = runs.create(config_of(family(name), rows_file, **groups))
        worker.work(run)
        return run

    return start


def started(run: Run) -> dict[str, Any]:
    """What the run said of its data before the first step."""
    return next(event for event in run.metrics().events if event["event"] == "started")


def events(run: Run, name: str) -> list[dict[str, Any]]:
    return [event for event in run.metrics().events if event["event"] == name]


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def spelled(folder: Path, path: Path) -> list[Row]:
    """The rows of a file, none of them cut."""
    model, tokenizer = load_model(config_of(folder, path).model, torch.device("cpu"), torch.float32)
    tokens = Tokens(tokenizer, 10_000, end_token_ids(model.generation_config, tokenizer))
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        turns = tuple(Message(turn["role"], turn["content"]) for turn in json.loads(line)["messages"])
        found += tokens.spell_conversation(turns, "answers")
    return found


def adapter(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "adapter" / "adapter_model.safetensors")


def numbers(run: Run) -> list[dict[str, Any]]:
    """Metrics without what the clock and the machine say."""
    timed = {"time", "tokens_per_second", "eta_s", "memory_gb"}
    metrics = run.metrics()
    return [{key: value for key, value in line.items() if key not in timed} for line in metrics.steps + metrics.evals]


def assert_same(one: Run, other: Run) -> None:
    first, second = adapter(one), adapter(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert numbers(one) == numbers(other)
    assert one.samples() == other.samples()


def test_training_learns_and_tells(train: Callable[..., Run]) -> None:
    run = train(train={"epochs": 6})
    result = run.result()
    assert result is not None
    assert (result["outcome"], result["step"], run.state()) == ("completed", 54, "completed")
    metrics = run.metrics()
    assert [line["step"] for line in metrics.steps] == list(range(1, 55))
    assert metrics.evals[0]["step"] == 0
    assert metrics.evals[-1]["eval_loss"] < metrics.evals[0]["eval_loss"] - 0.5
    assert {"loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "memory_gb", "eta_s"} <= metrics.steps[
        0
    ].keys()
    assert (started(run)["rows"], started(run)["eval_rows"]) == (36, 4)
    assert metrics.steps[-1]["eta_s"] == 0 < metrics.steps[0]["eta_s"]
    assert {sample["step"] for sample in run.samples()} >= {0, 4, 54}
    assert [path.name for path in run.checkpoints()] == ["step-000051", "step-000054"]


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_accumulation_and_packing_change_nothing(train: Callable[..., Run], name: str) -> None:
    """8 rows at once, 2 x 4 and 4 x 2, joined or padded: the same gradients, in the ragged last window too."""
    whole = train(name, train={"batch_size": 8, "gradient_accumulation": 1})
    for batch_size, accumulation, packing in ((4, 2, True), (2, 4, False), (8, 1, False)):
        split = train(
            name,
            train={"batch_size": batch_size, "gradient_accumulation": accumulation},
            data={"packing": packing},
        )
        for mine, theirs in zip(split.metrics().steps, whole.metrics().steps, strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        for key, value in adapter(whole).items():
            # Adam divides by the gradient's own size, so that rounding is seen where a gradient is nearly zero
            assert torch.allclose(adapter(split)[key], value, atol=2e-3), key


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "rank": 4, "dropout": 0.3},
        {"name": "freeze", "layers": 1},
        {"name": "full"},
    ],
    ids=lambda method: method["name"],
)
@pytest.mark.parametrize("stop_after", [1, 5, 11])
def test_resumed_is_never_interrupted(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], stop_after: int
) -> None:
    settings = {"method": method, "train": {"epochs": 1.5, "gradient_accumulation": 2, "batch_size": 2}}
    untouched = train(**settings)
    steps = untouched.result()["steps"]

    write = loop.Log.write

    def cut(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if facts.get("loss") is not None and facts["step"] == stop_after:
            raise KeyboardInterrupt  # not an Exception: nothing is written any more, as after a kill

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Log, "write", cut)
        train(**settings)
    run = next(run for run in runs.all_runs() if run.id != untouched.id)
    (run.folder / "worker.json").write_text('{"pid": 1, "birth": 0, "host": "elsewhere"}')
    assert run.state() == "interrupted"
    assert len(run.metrics().steps) == stop_after < steps
    worker.work(run)
    assert_same(untouched, run)


def test_every_part_of_a_checkpoint_is_needed(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming without the optimizer's moments, or without the random states, gives another run: the test above bites."""
    settings = {"method": {"name": "lora", "rank": 4, "dropout": 0.3}, "train": {"epochs": 1}}
    untouched = train(**settings)
    load = checkpoints.load_file
    for lost in ("optimizer.safetensors", "random.safetensors"):
        run = train(**settings)
        shutil.rmtree(run.folder / "checkpoints" / "step-000009")
        (run.folder / "result.json").unlink()

        def forget(path: Path, lost: str = lost) -> dict[str, torch.Tensor]:
            found = load(path)
            return found if path.name != lost else {"cpu": torch.get_rng_state()} if lost[0] == "r" else {}

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "load_file", forget)
            worker.work(run)
        with pytest.raises(AssertionError):
            assert_same(untouched, run)


def test_stop_keeps_what_was_learned_and_resume_goes_on(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = train()
    write = loop.Log.write

    def stop_at_five(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if facts.get("loss") is not None and facts["step"] == 5:
            Run(self.folder).ask("stop")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Log, "write", stop_at_five)
        run = train()
    assert (run.state(), run.result()["step"], run.resumable) == ("stopped", 5, True)
    assert run.checkpoints()[-1].name == "step-000005"
    assert json.loads((run.folder / "adapter" / "atelier.json").read_text())["step"] == 5
    run.ask("resume")
    assert run.state() == "queued"
    worker.work(run)
    assert run.state() == "completed"
    assert_same(untouched, run)
    with pytest.raises(Problem, match="already completed"):
        worker.work(run)


def test_damaged_checkpoint_is_passed_over(train: Callable[..., Run]) -> None:
    untouched = train()
    for damage in ("flip", "cut", "missing"):
        run = train()
        newest = run.checkpoints()[-1]
        path = newest / "trained.safetensors"
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[-5] ^= 1
            path.write_bytes(data)
        elif damage == "cut":
            path.write_bytes(data[:-9])
        else:
            path.unlink()
        (run.folder / "result.json").unlink()
        worker.work(run)
        assert any(event["event"] == "damaged_checkpoint" for event in run.metrics().events)
        assert_same(untouched, run)


def test_early_stopping_keeps_the_best(train: Callable[..., Run]) -> None:
    run = train(train={"epochs": 60, "eval_every": 3, "early_stopping": 2, "learning_rate": 0.05})
    result = run.result()
    evals = {line["step"]: line["eval_loss"] for line in run.metrics().evals}
    assert result["outcome"] == "completed"
    assert result["step"] < result["steps"]
    assert result["kept"] == "best"
    assert evals[result["kept_step"]] == min(loss for step, loss in evals.items() if step)
    assert json.loads((run.folder / "adapter" / "atelier.json").read_text())["step"] == result["kept_step"]


@pytest.mark.parametrize("good_steps", [3, 6])
def test_divergence_is_a_failure_with_the_last_finite_weights(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, good_steps: int
) -> None:
    """Gradients that are not finite never reach the weights; a run that ends in them is no success, however few they are."""
    settings = {"train": {"max_steps": 9, "scheduler": "constant", "warmup": 0}}
    untouched = train(train={"max_steps": good_steps, "scheduler": "constant", "warmup": 0})
    backward, calls = loop.Accelerator.backward, []

    def spoil(self: Any, loss: torch.Tensor) -> None:
        calls.append(loss)
        backward(self, loss * (float("nan") if len(calls) > good_steps else 1))

    with monkeypatch.context() as patch:
        patch.setattr(loop.Accelerator, "backward", spoil)
        run = train(**settings)
    result = run.result()
    assert result["outcome"] == "failed"
    assert "diverged" in result["message"]
    assert result["problem"][0]["field"] == "train.learning_rate"
    broken = min(5, 9 - good_steps)  # so many in a row are enough, or what there is at the end
    assert result["problem"][0]["facts"] == {"step": good_steps, "count": broken}
    assert [event["in_a_row"] for event in events(run, "not_finite")] == list(range(1, broken + 1))
    # JSON knows no NaN: strict readers would refuse the line
    assert [line["grad_norm"] for line in run.metrics().steps[good_steps:]] == [None] * broken
    assert "NaN" not in (run.folder / "metrics.jsonl").read_text()
    kept, expected = adapter(run), adapter(untouched)
    assert all(torch.equal(kept[key], expected[key]) for key in expected)


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after half of the window's gradients are there; they must not be counted twice."""
    untouched = train(train={"gradient_accumulation": 2})
    backward, calls = loop.Accelerator.backward, []

    def small_memory(self: Any, loss: torch.Tensor) -> None:
        calls.append(loss)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")
        backward(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Accelerator, "backward", small_memory)
        run = train(train={"gradient_accumulation": 2})
    assert run.state() == "completed"
    assert any(event["event"] == "out_of_memory" and event["micro_batch"] == 2 for event in run.metrics().events)
    for mine, theirs in zip(run.metrics().steps, untouched.metrics().steps, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("limit", [0, 0.02, 0.27, 1000])
def test_gradients_are_clipped(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """The norm that the optimizer sees is the limit where the gradient is longer, else its own; 0 is no limit."""
    applied: list[float] = []
    create = loop.create_optimizer

    def watched(*settings: Any, **more: Any) -> torch.optim.Optimizer:
        optimizer = create(*settings, **more)
        optimizer.register_step_pre_hook(lambda one, *_: applied.append(norm_of(one)))
        return optimizer

    def norm_of(optimizer: torch.optim.Optimizer) -> float:
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())

    with monkeypatch.context() as patch:
        patch.setattr(loop, "create_optimizer", watched)
        run = train(train={"max_grad_norm": limit, "max_steps": 4})
    told = [line["grad_norm"] for line in run.metrics().steps]
    assert min(told) < 0.27 < max(told)  # so that one of the limits cuts some steps and not others
    assert applied == pytest.approx([min(norm, limit or norm) for norm in told], rel=1e-3)


def test_a_checkpoint_passed_over_is_not_kept_instead_of_a_good_one(train: Callable[..., Run]) -> None:
    run = train(train={"keep": 2, "save_every": 3})
    newest = run.checkpoints()[-1]
    (newest / "trained.safetensors").write_bytes(b"")
    (run.folder / "result.json").unlink()
    data = run.config_data()
    data["train"]["keep"] = 1
    (run.folder / "config.yaml").write_text(Config.read(data).to_yaml())
    run.ask("save")
    worker.work(run)
    found, damaged = checkpoints.find_checkpoint(run)
    assert found is not None
    assert damaged == []


def test_a_later_damaged_checkpoint_does_not_push_out_the_new_one(home: Path) -> None:
    """A run that went on from step 3, because 9 was damaged, saves step 6 and keeps one: that one."""
    run = runs.create(Config())
    trained = {"w": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(trained.values())
    for step in (3, 9):
        checkpoints.save_checkpoint(run, step, trained, optimizer, {"tokens": step}, 2)
    (run.checkpoints()[-1] / "state.json").write_text("{}")
    left_behind = run.folder / "checkpoints" / ".step-000006"  # by a worker that was killed while it wrote
    left_behind.mkdir()
    (left_behind / "state.json").write_text("{")
    saved = checkpoints.save_checkpoint(run, 6, trained, optimizer, {"tokens": 6}, 1)
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-000006"]
    assert checkpoints.find_checkpoint(run) == (saved, [])
    assert checkpoints.load_checkpoint(saved, trained, optimizer) == {"tokens": 6, "step": 6}


def test_a_checkpoint_is_whole_or_not_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any file of it: the one before is the newest, and there is no other."""
    run = runs.create(Config())
    trained = {"w": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(trained.values())
    saved = checkpoints.save_checkpoint(run, 3, trained, optimizer, {}, 1)
    for name in ("_save", "random_states", "_sha256", "_sync", "sync_folder"):

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(checkpoints, name, killed)
            checkpoints.save_checkpoint(run, 6, trained, optimizer, {}, 1)
        assert run.checkpoints() == [saved], name
        assert checkpoints.find_checkpoint(run) == (saved, [])
    newer = checkpoints.save_checkpoint(run, 6, trained, optimizer, {}, 1)
    assert run.checkpoints() == [newer]


def test_a_checkpoint_of_other_settings_is_refused(train: Callable[..., Run]) -> None:
    run = train(train={"max_steps": 3})
    (run.folder / "result.json").unlink()
    data = run.config_data()
    data["method"]["rank"] = 2
    (run.folder / "config.yaml").write_text(Config.read(data).to_yaml())
    result = worker.work(run)
    assert (result["outcome"], "does not fit" in result["message"]) == ("failed", True)


def test_saving_a_step_again_never_leaves_it_unsaved(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(train={"keep": 1, "max_steps": 3})
    trained = {"w": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.AdamW(trained.values())
    saved = run.checkpoints()
    manifest = (saved[0] / "manifest.json").read_bytes()

    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", killed)
        assert checkpoints.save_checkpoint(run, 3, trained, optimizer, {}, 1) == saved[0]
    assert checkpoints.find_checkpoint(run) == (saved[0], [])
    assert (saved[0] / "manifest.json").read_bytes() == manifest


def test_one_row_that_the_template_refuses_is_counted_and_no_more(
    train: Callable[..., Run], family: Callable[[str], Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(family("llama"), tmp_path / "model"))
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template = next(model.glob("*.jinja"))
    template.write_text(strict + template.read_text())
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": turns}] * 6 + [{"messages": [{"role": "system", "content": "s"}, *turns]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    run = train(data={"train": str(path), "eval": str(path)}, model={"name": str(model)})
    assert run.state() == "completed"
    assert (started(run)["refused_rows"], started(run)["rows"]) == (2, 6)


def test_data_without_anything_to_learn_is_refused(train: Callable[..., Run], tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "the cat " * 200, "completion": "sat"}) + "\n")
    result = train(data={"train": str(path), "eval_fraction": 0}).result()
    assert result["outcome"] == "failed"
    assert result["problem"][0]["field"] == "data.max_length"


def test_only_matrices_decay() -> None:
    from core.engine.optim import create_optimizer

    trained = {"matrix": torch.nn.Parameter(torch.ones(2, 2)), "norm": torch.nn.Parameter(torch.ones(2))}
    optimizer = create_optimizer(trained, Config.read({"train": {"weight_decay": 0.1}}).train)
    groups = optimizer.param_groups
    assert (groups[0]["betas"], groups[0]["eps"], type(optimizer)) == ((0.9, 0.999), 1e-8, torch.optim.AdamW)
    assert [(group["weight_decay"], group["params"][0].ndim) for group in groups] == [(0.1, 2), (0.0, 1)]


def test_evaluation_is_measured_on_the_rows_set_aside(
    train: Callable[..., Run], rows_file: Path, tmp_path: Path
) -> None:
    strange = tmp_path / "strange.jsonl"
    strange.write_text(json.dumps({"prompt": "zzz", "completion": "%&$ %&$ %&$ %&$ %&$"}) + "\n")
    usual, other = (train(data={"eval": str(path)}, train={"epochs": 4}) for path in (rows_file, strange))
    last = [run.metrics().evals[-1]["eval_loss"] for run in (usual, other)]
    assert last[1] > last[0] + 0.2
    assert (started(other)["rows"], started(other)["eval_rows"]) == (40, 1)


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant"])
def test_learning_rate_rises_and_falls(scheduler: str) -> None:
    settings = Config.read({"train": {"scheduler": scheduler, "warmup": 0.1, "learning_rate": 1.0}}).train
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == 1.0
    assert all(before >= after for before, after in pairwise(rates[10:]))
    assert rates[-1] == 1.0 if scheduler == "constant" else rates[-1] < 0.02


def test_the_learning_rate_is_the_formula() -> None:
    def rates(scheduler: str, warmup: float) -> list[float]:
        values = {"scheduler": scheduler, "warmup": warmup, "learning_rate": 0.8}
        return [learning_rate(step, 10, Config.read({"train": values}).train) for step in range(10)]

    assert rates("linear", 0.2) == pytest.approx([0.4, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert rates("cosine", 0.2)[4] == pytest.approx(0.4 * (1 + 0.5**0.5))  # a quarter of the way, 45 degrees
    assert rates("cosine", 0.2)[6] == pytest.approx(0.4)
    assert rates("cosine", 0)[0] == rates("constant", 0)[9] == 0.8


def test_every_step_tells_its_rows_its_rate_and_its_place(
    train: Callable[..., Run], family: Callable[[str], Path], rows_file: Path
) -> None:
    """Three windows of twelve rows and one of four make an epoch, and each epoch has an order of its own."""
    settings = {"epochs": 2.5, "batch_size": 6, "gradient_accumulation": 2, "seed": 5, "warmup": 0.2}
    run = train(train=settings, data={"eval_fraction": 0})
    lengths = [len(row.ids) for row in spelled(family("llama"), rows_file)]
    windows = []
    for epoch in range(3):
        order = order_rows(40, 5, epoch)
        windows += [sum(lengths[i] for i in order[start : start + 12]) for start in range(0, 40, 12)]
    steps = run.metrics().steps
    assert len(steps) == 10
    assert [line["tokens"] for line in steps] == [sum(windows[: step + 1]) for step in range(10)]
    assert [line["epoch"] for line in steps] == [(step + 1) / 4 for step in range(10)]
    course = [learning_rate(step, 10, run.config().train) for step in range(10)]
    assert [line["learning_rate"] for line in steps] == pytest.approx(course, rel=1e-5)
    assert (started(run)["tokens"], started(run)["batch_size"]) == (sum(lengths), 6)


def test_what_became_of_every_row_is_told(
    train: Callable[..., Run], family: Callable[[str], Path], tmp_path: Path
) -> None:
    """Rows that are cut and rows that have nothing left to learn are counted, those of both files."""
    whole, cut, empty = talk("what", "the cat"), talk("what", "the cat " * 30), talk("the mat " * 30, "sat")
    train_file = write_rows(tmp_path / "train.jsonl", [whole, whole, cut, cut, empty])
    eval_file = write_rows(tmp_path / "eval.jsonl", [cut, cut, cut, empty, empty, whole])
    run = train(data={"train": str(train_file), "eval": str(eval_file), "max_length": 24})
    told = started(run)
    # An empty row is cut as well: that is how it lost its answer.
    assert {key: told[key] for key in ("rows", "eval_rows", "cut_rows", "empty_rows", "refused_rows")} == {
        "rows": 4, "eval_rows": 4, "cut_rows": 8, "empty_rows": 3, "refused_rows": 0,
    }  # fmt: skip
    kept = spelled(family("llama"), train_file)[:4]
    assert told["tokens"] == sum(min(24, len(row.ids)) for row in kept)
    assert told["trained_tokens"] == sum(sum(row.trained[1:24]) for row in kept)


def test_rows_are_no_longer_than_the_model_reads(train: Callable[..., Run], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "long.jsonl", [talk("what", "the cat " * 200)] * 3)
    run = train(data={"train": str(path), "max_length": 4096})
    assert run.state() == "completed"
    assert (started(run)["max_length"], started(run)["tokens"]) == (128, 2 * 128)


def test_the_measured_loss_is_the_mean_over_all_targets(
    train: Callable[..., Run], family: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without dropout, whatever the method says, and not a mean of means: seven rows, four at a time."""
    rows = [talk(f"what is {number}", "the cat sat " * 8) for number in range(4)]
    rows += [talk(f"what is {number}", f"a {number} z") for number in range(4, 7)]
    path = write_rows(tmp_path / "eval.jsonl", rows)
    run = train(method={"name": "lora", "rank": 4, "dropout": 0.9}, train={"max_steps": 6}, data={"eval": str(path)})
    settings = run.config()
    model, _ = load_model(settings.model, torch.device("cpu"), torch.float32)
    adapted = Adapted(model)
    adapted.load("a", run.folder / "adapter")

    def mean_loss() -> float:
        losses: list[float] = []
        for row in spelled(family("llama"), path):
            with torch.no_grad():
                chances = model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            losses += [-float(chances[at - 1, row.ids[at]]) for at in range(1, len(row.ids)) if row.trained[at]]
        return sum(losses) / len(losses)

    evals = {line["step"]: line["eval_loss"] for line in run.metrics().evals}
    assert evals[0] == pytest.approx(mean_loss(), rel=1e-4)
    with adapted.using(Weights("a")):
        assert evals[6] == pytest.approx(mean_loss(), rel=1e-4)
    assert evals[6] != pytest.approx(evals[0], rel=1e-2)

    reader, rows = Reader(model, packing=True), Rows()
    for row in spelled(family("llama"), path):
        rows.add(row, 0)
    for training in (False, True):
        model.train(training)
        loss = measure(
            model, reader, objectives.find("chat"), rows, pad=0, batch_size=4, pack=64,
            device=torch.device("cpu"), autocast=torch.no_grad,
        ).loss  # fmt: skip
        assert loss == pytest.approx(evals[0], rel=1e-4)
        assert model.training is training


def test_watched_answers_are_what_chat_will_say(train: Callable[..., Run]) -> None:
    run = train(
        method={"name": "lora", "rank": 4, "dropout": 0.9},
        samples={"prompts": ["what is 3", "the cat " * 100], "max_new_tokens": 12},
    )
    speaker = Speaker(run.config().model)
    ask = [Message("user", "what is 3")]
    sampling = GREEDY.model_copy(update={"max_tokens": 12})
    said = {}
    for step, one in ((0, None), (9, run)):
        weights, provenance = speaker.choose(one)
        said[step] = "".join(speaker.speak(ask, sampling, weights, provenance).pieces).strip()
    assert said[0] != said[9]
    told = {sample["step"]: sample["answer"] for sample in run.samples()}
    assert (told[0], told[9]) == (said[0], said[9])
    # the other prompt is longer than any row and is passed over
    assert {sample["prompt"] for sample in run.samples()} == {"what is 3"}


def test_without_watched_prompts_three_rows_set_aside_are_asked(train: Callable[..., Run], tmp_path: Path) -> None:
    rows = [talk(f"the sky {number}", "sat") for number in range(5)]
    path = write_rows(tmp_path / "eval.jsonl", rows)
    run = train(data={"eval": str(path)}, train={"max_steps": 1})
    assert [sample["prompt"] for sample in run.samples() if sample["step"] == 0] == [
        "the sky 0", "the sky 1", "the sky 2",
    ]  # fmt: skip


def test_a_wish_to_stop_waits_for_no_answer(home: Path, family: Callable[[str], Path], rows_file: Path) -> None:
    run = runs.create(config_of(family("llama"), rows_file))
    run.ask("stop")
    worker.work(run)
    assert (run.state(), run.result()["step"], run.has_adapter()) == ("stopped", 0, False)
    assert run.samples() == run.metrics().steps == run.checkpoints() == []


def test_a_wish_to_save_is_granted_once(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    write = loop.Log.write

    def save_at_two(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if facts.get("loss") is not None and facts["step"] == 2:
            Run(self.folder).ask("save")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Log, "write", save_at_two)
        run = train(train={"save_every": 0, "keep": 5})
    assert [path.name for path in run.checkpoints()] == ["step-000002", "step-000009"]
    assert [event["step"] for event in events(run, "saved")] == [2, 9]


def test_early_stopping_counts_from_the_best(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two measurements in a row without a new best end the run, and what is kept is the best one's adapter."""
    course = iter([5.0, 6.0, 4.0, 4.0, 3.0, 3.5, 3.2, 1.0])
    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure", lambda *_, **__: Measured(next(course)))
        settings = {"epochs": 9, "eval_every": 1, "scheduler": "constant", "warmup": 0}
        run = train(train=settings | {"early_stopping": 2})
    result = run.result()
    assert (result["step"], result["kept"], result["kept_step"], result["best_loss"]) == (6, "best", 4, 3.0)
    assert [(event["step"], event["best_step"]) for event in events(run, "stopped_early")] == [(6, 4)]
    until_the_best = train(train=settings | {"max_steps": 4})
    kept, expected = adapter(run), adapter(until_the_best)
    assert all(torch.equal(kept[key], expected[key]) for key in expected)
    assert until_the_best.result()["kept"] == "last"


def test_too_little_memory_for_a_single_row_is_said(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def no_memory(self: Any, loss: torch.Tensor) -> None:
        calls.append(loss)
        if len(calls) > 9:
            raise AssertionError("it tries for ever")
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Accelerator, "backward", no_memory)
        run = train()
    assert run.state() == "failed"
    assert [event["micro_batch"] for event in events(run, "out_of_memory")] == [2, 1]
    (problem,) = run.result()["problem"]
    assert problem["field"] == "data.max_length"
    assert "single row" in problem["what"]


def test_too_little_memory_while_measuring_is_less_at_once(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched = train()

    def small_memory(*arguments: Any, batch_size: int, **more: Any) -> Measured:
        if batch_size > 2:
            raise torch.OutOfMemoryError("out of memory")
        return measure(*arguments, batch_size=batch_size, **more)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "measure", small_memory)
        run = train()
    assert [event["micro_batch"] for event in events(run, "out_of_memory")] == [2]
    mine, theirs = ([line["eval_loss"] for line in one.metrics().evals] for one in (run, untouched))
    assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_base_that_computes_no_number_is_refused(
    train: Callable[..., Run], family: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    model = Path(shutil.copytree(family("llama"), tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].clone().fill_(float("nan"))
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    run = train(model={"name": str(model)})
    (problem,) = run.result()["problem"]
    assert (run.state(), problem["field"], run.metrics().steps) == ("failed", "model.name", [])
    assert "base model" in problem["what"]


def test_half_a_line_of_a_killed_worker_spoils_no_other(home: Path, tmp_path: Path) -> None:
    run = Run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    (tmp_path / "samples.jsonl").write_text('{"step": 0, "prompt": "a", "ans')
    log = loop.Log(run)
    log.write(step=2, loss=float("inf"))
    log.sample(2, "a", "b")
    assert [(line["step"], line["loss"]) for line in run.metrics().steps] == [(1, 2.0), (2, None)]
    assert run.samples() == [{"step": 2, "prompt": "a", "answer": "b"}]
