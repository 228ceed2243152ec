"""Nobody's work is lost: a training that is killed at any instant goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core import changes, disk, methods, objectives, runs
from core.config import Config
from core.engine import checkpoint as checkpoints
from core.engine import loop, rows, wishes, worker
from core.engine.chat import Speaker
from core.engine.export import export
from core.engine.optim import create_optimizer, reserve_moments
from core.fit import learning_rate
from core.problem import Problem
from core.runs import Run

TASKS = {
    "chat": "llama",
    "text": "qwen3",
    "classification": "bert",
    "extractive_qa": "bert",
    "generative_qa": "gpt2",
    "seq2seq": "t5",
}
#: What the clock and the machine say, which is never twice the same.
TIMED = {"time", "tokens_per_second", "eta_s", "memory_gb", "seconds"}


def row(task: str, number: int) -> dict[str, Any]:
    """One row of a task; rows of different lengths, so that every micro-batch is another."""
    words = " ".join(["the cat sat", "on the mat", "sky"][: 1 + number % 3])
    if task == "classification":
        return {"text": f"{words} {number}", "label": ("pet", "hue")[number % 2]}
    if task in ("extractive_qa", "generative_qa"):
        return {
            "context": f"{words} qx sat",
            "question": f"what is {number}",
            "answers": {"text": ["qx"], "answer_start": [len(words) + 1]},
        }
    if task == "seq2seq":
        return {"source": f"{words} {number}", "target": f"sky {number}"}
    if task == "text":
        return {"text": f"{words} {number} {words}"}
    turns = [{"role": "user", "content": f"what is {number}"}, {"role": "assistant", "content": words}]
    return {"messages": turns}


@pytest.fixture
def prepare(home: Path, family: Callable[[str], Path], tmp_path: Path) -> Callable[..., Run]:
    """A small run with everything on that could get lost: shuffling, packing, accumulation, early stopping, scores."""

    def make(task: str = "chat", name: str = "", **groups: dict[str, Any]) -> Run:
        path = tmp_path / f"{task}.jsonl"
        path.write_text("".join(json.dumps(row(task, number)) + "\n" for number in range(14)), encoding="utf-8")
        settings: dict[str, Any] = {
            "task": task,
            "model": {"name": str(family(name or TASKS[task]))},
            "data": {"train": str(path), "max_length": 48, "stride": 8, "eval_rows": 2, "packing": True},
            "method": {"name": "lora", "rank": 2, "dropout": 0.2},
            "train": {
                "epochs": 3, "batch_size": 2, "gradient_accumulation": 2, "learning_rate": 2e-2, "eval_every": 2, "save_every": 3,
                "early_stopping": 2, "keep": 9,
            },
            "samples": {"max_new_tokens": 2, "scored": 2},
        }  # fmt: skip
        for group, values in groups.items():
            settings[group] = values if group == "method" else settings[group] | values
        return runs.create(Config.read(settings))

    return make


def killed_at(run: Run, name: str) -> Run:
    """What a kill at this instant leaves behind: the folder as it is now, and nobody who works on it."""
    return Run(Path(shutil.copytree(run.folder, run.folder.parent / name)))


def train(run: Run, at: Callable[[dict[str, Any]], str | None] = lambda _: None) -> tuple[Run, list[Run]]:
    """Train a run to its end; with each line of numbers, `at` may name a copy of what a kill would leave just then."""
    copies: list[Run] = []
    write = loop.Log.write

    def watched(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if self.folder == run.folder and (name := at(facts)):
            copies.append(killed_at(run, name))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Log, "write", watched)
        worker.work(run)
    return run, copies


def left_behind(run: Run) -> dict[str, Any]:
    """All that a finished run leaves, without what the clock says."""
    metrics, result = run.metrics(), run.result() or {}
    newest = run.checkpoints()[-1]
    lines = metrics.steps + metrics.evals
    return {
        "result": {key: value for key, value in result.items() if key not in TIMED},
        "lines": [{key: value for key, value in line.items() if key not in TIMED} for line in lines],
        "samples": run.samples(),
        "events": {event["step"]: event["in_a_row"] for event in metrics.events if event["event"] == "not_finite"},
        "state": {key: value for key, value in checkpoints.read_state(newest).items() if key not in TIMED},
        "adapter": (run.folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        **{path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))},
    }


def assert_same(one: Run, other: Run) -> None:
    mine, theirs = left_behind(one), left_behind(other)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if mine[key] != theirs[key]] == []


# --- exact --------------------------------------------------------------------------------------------------------------


def at_steps(*steps: int) -> Callable[[Mapping[str, Any]], str | None]:
    """A kill right after these steps."""
    return lambda facts: f"killed-{facts['step']}" if "loss" in facts and facts["step"] in steps else None


@pytest.mark.parametrize("kind", sorted(methods.catalogue()))
def test_every_method_goes_on_bit_for_bit(prepare: Callable[..., Run], kind: str) -> None:
    """GPT-2 has biases and a dropout of its own, so that every method trains something at random."""
    knobs = {"dropout": 0.2} if "dropout" in methods.find(kind).model_fields else {}
    settings = {"method": {"name": kind, **knobs}, "train": {"early_stopping": 9}}
    untouched, (killed,) = train(prepare(name="gpt2", **settings), at_steps(5))
    newest = int(killed.checkpoints()[-1].name.removeprefix("step-"))
    assert killed.result() is None and newest in (3, 4)
    assert_same(untouched, train(killed)[0])
    assert [event["step"] for event in killed.metrics().events if event["event"] == "resumed"] == [newest]


@pytest.mark.parametrize("task", sorted(objectives.catalogue()))
def test_every_objective_goes_on_bit_for_bit(prepare: Callable[..., Run], task: str) -> None:
    untouched, copies = train(prepare(task), at_steps(2, 7))
    (started,) = [event for event in untouched.metrics().events if event["event"] == "started"]
    assert started["packing"] is (task in ("chat", "text", "generative_qa"))
    for killed in copies:
        assert_same(untouched, train(killed)[0])


def test_a_machine_with_other_cores_goes_on_bit_for_bit(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted for the threads that spell rows, and for nothing else that a training does."""
    threads, pool = [], rows.ThreadPoolExecutor
    monkeypatch.setattr(rows, "ThreadPoolExecutor", lambda count, *more: threads.append(count) or pool(count, *more))
    monkeypatch.setattr(rows, "_is_known", lambda *_: False)
    monkeypatch.setattr(rows, "_BLOCK", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    untouched, (killed,) = train(prepare(), at_steps(5))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert_same(untouched, train(killed)[0])
    assert set(threads) == {1, 4}


@contextmanager
def calls(seen: Callable[[str], None]) -> Iterator[None]:
    """Tell of every call of a function that changes a file, before it is made and after, also within libraries."""
    changing = {"open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir", "serialize_file", "close"}

    def profile(frame: FrameType, event: str, function: Any) -> None:
        name = function.__name__ if isinstance(function, BuiltinFunctionType) else ""
        if event in ("c_call", "c_return") and name in changing:
            sys.setprofile(None)
            seen(name)
            sys.setprofile(profile)

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def test_killed_at_every_write_fsync_and_rename_of_a_save(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each of them the newest checkpoint that holds is the one before or the new one, as it would have been."""
    run, copies, names = prepare(train={"keep": 1, "early_stopping": None, "max_steps": 8}), [], []
    save, save_adapter = loop.save_checkpoint, loop.Adapted.save

    def seen(name: str) -> None:
        names.append(name)
        copies.append(killed_at(run, f"killed-{len(names)}"))

    def watched(of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            if not any(line["step"] in (6, 8) for line in run.metrics().steps[-1:]):
                return of(*arguments, **more)
            with calls(seen):
                return of(*arguments, **more)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", watched(save))
        patch.setattr(loop.Adapted, "save", watched(save_adapter))
        worker.work(run)
    assert {"serialize_file", "fsync", "replace", "mkdir", "rmdir", "open", "write", "unlink"} <= set(names)
    newest = set()
    for killed in copies:
        found, damaged = checkpoints.find_checkpoint(killed)
        assert found is not None and damaged == [], killed.id
        newest.add(found.name)
        load_file(killed.folder / "adapter" / "adapter_model.safetensors")
    assert newest == {"step-000003", "step-000006", "step-000008"}
    draw = random.Random(0)
    for killed in [
        *draw.sample(copies, 4),
        next(killed for killed in copies if checkpoints.find_checkpoint(killed)[0].name == "step-000008"),
    ]:
        assert_same(run, train(killed)[0])
        assert killed.checkpoints()[-1].name == "step-000008"


# --- every saved state is needed ------------------------------------------------------------------------------------------


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Out of memory once, gradients without a number at steps 5 and 6, and a scaler as float16 has it."""
    backward, rate, create, at = loop._backward, loop.learning_rate, loop.Accelerator, [-1]

    def spoiled(rows: Any, micro_batch: int, *more: Any) -> float:
        if micro_batch > 1 and at[0] == 1:
            raise torch.OutOfMemoryError("out of memory")
        loss = backward(rows, micro_batch, *more)
        return float("nan") if at[0] in (4, 5) else loss

    def scaled(**settings: Any) -> Any:
        accelerator = create(**settings)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=3.0, growth_factor=1.7, growth_interval=2)
        return accelerator

    monkeypatch.setattr(loop, "_backward", spoiled)
    monkeypatch.setattr(loop, "learning_rate", lambda step, *more: (at.__setitem__(0, step), rate(step, *more))[1])
    monkeypatch.setattr(loop, "Accelerator", scaled)
    yield


def test_every_saved_state_is_needed(
    prepare: Callable[..., Run], trouble: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on without any one of them gives another run, so that the tests above would see that it is missing."""
    settings = {"head_learning_rate": 1e-3, "save_every": 1, "eval_every": 3, "early_stopping": 2, "epochs": 4}
    course = iter([5.0, 4.0, 4.5, 9.0, 9.0])
    score = loop._judge
    told: dict[int, float] = {}

    def judge(measured: Any, step: int, *more: Any) -> dict[str, Any]:
        if step not in told:
            told[step] = next(course)
        return score({"loss": told[step]}, step, *more)

    monkeypatch.setattr(loop, "_judge", judge)
    run = prepare("classification", train=settings)
    changes.ask(run, {"train.learning_rate": 0.03})
    untouched, copies = train(run, at_steps(6, 7))
    at = {int(copy.id.removeprefix("killed-")): copy for copy in copies}
    # `seconds` alone is the clock's.
    keys = set(checkpoints.read_state(untouched.checkpoints()[-1])) - {"seconds", "step"}
    assert keys == {
        "evaluated", "tokens", "best", "best_step", "worse", "broken", "micro_batch", "inputs", "scaler", "changed", "start",
    }  # fmt: skip
    assert_same(untouched, train(killed_at(at[7], "whole"))[0])

    read, load = checkpoints.read_state, checkpoints.load_file

    def forget_key(lost: str) -> None:
        def without(path: Path) -> dict[str, Any]:
            return {key: value for key, value in read(path).items() if key != lost}

        monkeypatch.setattr(checkpoints, "read_state", without)
        monkeypatch.setattr(loop, "read_state", without)

    def forget_file(lost: str) -> None:
        def without(path: Path) -> dict[str, torch.Tensor]:
            found = load(path)
            if path.name != lost:
                return found
            fresh = {"cpu": torch.get_rng_state()} if lost == "random.safetensors" else {}
            return {key: value * 0 for key, value in found.items()} if lost == "trained.safetensors" else fresh

        monkeypatch.setattr(checkpoints, "load_file", without)

    for lost in sorted(keys):
        with monkeypatch.context():
            forget_key(lost)
            run = train(killed_at(at[6 if lost == "broken" else 7], f"without-{lost}"))[0]
        monkeypatch.setattr(checkpoints, "read_state", read)
        monkeypatch.setattr(loop, "read_state", read)
        assert left_behind(run) != left_behind(untouched), lost
    for lost in ("trained.safetensors", "optimizer.safetensors", "random.safetensors"):
        forget_file(lost)
        run = train(killed_at(at[7], f"without-{lost}"))[0]
        monkeypatch.setattr(checkpoints, "load_file", load)
        assert left_behind(run) != left_behind(untouched), lost


# --- damaged ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


def name_elsewhere(folder: Path) -> None:
    """The manifest names a file outside, and rightly, for the one that should be inside."""
    manifest = json.loads((folder / "manifest.json").read_text())
    shutil.move(folder / "trained.safetensors", folder.parent / "x")
    manifest["../x"] = manifest.pop("trained.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda folder: (folder / "trained.safetensors").write_bytes((folder / "trained.safetensors").read_bytes()[:-9]),
    "flipped": lambda folder: flip(folder / "optimizer.safetensors"),
    "zeros": lambda folder: (folder / "random.safetensors").write_bytes(bytes((folder / "random.safetensors").stat().st_size)),
    "missing": lambda folder: (folder / "random.safetensors").unlink(),
    "no_manifest": lambda folder: (folder / "manifest.json").unlink(),
    "empty_manifest": lambda folder: (folder / "manifest.json").write_text("{}"),
    "no_list": lambda folder: (folder / "manifest.json").write_text("[3]"),
    "elsewhere": name_elsewhere,
    "state": lambda folder: flip(folder / "state.json"),
    "a_folder": lambda folder: ((folder / "state.json").unlink(), (folder / "state.json").mkdir()),
}  # fmt: skip


def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_taken(prepare: Callable[..., Run]) -> None:
    untouched, (killed,) = train(prepare(train={"early_stopping": None}), at_steps(8))
    for number, (name, damage) in enumerate(DAMAGES.items()):
        run = killed_at(killed, name)
        newest = run.checkpoints()[-1]
        assert checkpoints.find_checkpoint(run) == (newest, [])
        damage(newest)
        before = run.checkpoints()[-2]
        assert checkpoints.find_checkpoint(run) == (before, [newest]), name
        if number < 2:
            assert_same(untouched, train(run)[0])
            told = [event["name"] for event in run.metrics().events if event["event"] == "damaged_checkpoint"]
            assert told == [newest.name]
    # With none left, it begins anew.
    for folder in killed.checkpoints():
        DAMAGES["flipped"](folder)
    assert_same(untouched, train(killed)[0])


def test_a_damaged_best_is_not_taken_for_the_result(prepare: Callable[..., Run]) -> None:
    """The last one is, and it is said."""
    course = iter([5.0, 4.0] + [6.0] * 9)
    with pytest.MonkeyPatch.context() as patch:
        judge = loop._judge
        patch.setattr(loop, "_judge", lambda _, *more: judge({"loss": next(course)}, *more))
        run, (killed,) = train(prepare(train={"early_stopping": 2}), at_steps(5))
        assert (run.result() or {})["kept"] == "best"
        flip(killed.folder / "best" / "adapter_model.safetensors")
        course = iter([6.0] * 9)
        train(killed)
    result = killed.result() or {}
    assert (result["outcome"], result["kept"], result["kept_step"]) == ("completed", "last", result["step"])
    (lost,) = [event for event in killed.metrics().events if event["event"] == "best_lost"]
    assert lost["best_step"] == 2
    newest = load_file(killed.checkpoints()[-1] / "trained.safetensors")
    kept = load_file(killed.folder / "adapter" / "adapter_model.safetensors")
    assert sorted(float(value.sum()) for value in newest.values()) == sorted(
        float(value.sum()) for value in kept.values()
    )


def test_an_adapter_that_lost_a_bit_is_neither_chatted_with_nor_exported(
    prepare: Callable[..., Run], tmp_path: Path
) -> None:
    run, _ = train(prepare(train={"max_steps": 1}))
    flip(run.folder / "adapter" / "adapter_model.safetensors")
    with pytest.raises(Problem, match="damaged"):
        Speaker(run.config().model).choose(run)
    with pytest.raises(Problem, match="damaged"):
        export(run, "adapter", tmp_path / "out")


@pytest.mark.parametrize("kept", ["last", "best"])
def test_a_damaged_adapter_of_a_finished_run_is_written_anew(prepare: Callable[..., Run], kept: str) -> None:
    course = iter([5.0, 4.0] + [6.0] * 20)
    with pytest.MonkeyPatch.context() as patch:
        judge = loop._judge
        patch.setattr(loop, "_judge", lambda _, *more: judge({"loss": next(course)}, *more))
        run, _ = train(prepare(train={"early_stopping": 3 if kept == "best" else None}))
    assert (run.result() or {})["kept"] == kept and not run.is_damaged() and not changes.can_go_on(run, {})
    weights, result = run.folder / "adapter" / "adapter_model.safetensors", run.result() or {}
    whole = weights.read_bytes()
    for damage in (flip, Path.unlink, lambda path: shutil.rmtree(path.parent)):
        damage(weights)
        assert run.is_damaged() and changes.can_go_on(run, {})
        run.ask("resume")
        train(run)
        assert run.state() == "completed" and weights.read_bytes() == whole and not run.is_damaged()
        assert {key: value for key, value in (run.result() or {}).items() if key not in TIMED} == {
            key: value for key, value in result.items() if key not in TIMED
        }
    flip(weights)
    shutil.rmtree(run.folder / "checkpoints")
    assert run.is_damaged() and not changes.can_go_on(run, {}), "there is nothing to write it from"


# --- alive --------------------------------------------------------------------------------------------------------------

#: Where a worker may be for long, as names in the loop.
PHASES = {"reading": "Material", "loading": "load_model", "evaluating": "measure", "a_step": "_backward"}


def hang(run: Run, wish: str) -> Callable[..., None]:
    """Work that never ends by itself, in which somebody asks for something."""

    def work(*_: Any, **__: Any) -> None:
        run.ask(wish)  # type: ignore[arg-type]
        while True:
            time.sleep(0.01)

    return work


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "_PATIENCE", 0.0)
    monkeypatch.setattr(wishes, "_EVERY", 0.05)


def hang_in(phase: str, run: Run, wish: str, patch: pytest.MonkeyPatch) -> None:
    """At the first time, or where steps have been made, at step 4."""
    name = PHASES[phase]
    real = getattr(loop, name)
    if phase == "reading":
        patch.setattr(loop.Material, "read", hang(run, wish))
    elif phase == "loading":
        patch.setattr(loop, name, hang(run, wish))
    else:

        def sometimes(*arguments: Any, **more: Any) -> Any:
            steps = run.metrics().steps
            if len(steps) != 4 or run.asked("done"):
                return real(*arguments, **more)
            run.ask("done")  # type: ignore[arg-type]
            torch.rand(3)  # what was drawn in work that is broken off is drawn again
            return hang(run, wish)()

        patch.setattr(loop, name, sometimes)


@pytest.mark.parametrize("phase", PHASES)
def test_a_stop_is_heard_in_the_midst_of_work(
    prepare: Callable[..., Run], impatient: None, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was learned is kept, and going on gives what would have been without it."""
    untouched, run = train(prepare())[0], prepare()
    with monkeypatch.context() as patch:
        hang_in(phase, run, "stop", patch)
        worker.work(run)
    step = 0 if phase in ("reading", "loading") else 4
    result = run.result() or {}
    assert (run.state(), result["step"], run.adapter_step(), run.resumable) == ("stopped", step, step or None, True)
    run.ask("resume")
    assert_same(untouched, train(run)[0])


@pytest.mark.parametrize("phase", ["evaluating", "a_step"])
def test_a_checkpoint_is_written_in_the_midst_of_work_which_goes_on(
    prepare: Callable[..., Run], impatient: None, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched, run = train(prepare(train={"save_every": 0}))[0], prepare(train={"save_every": 0})
    with monkeypatch.context() as patch:
        hang_in(phase, run, "save", patch)
        train(run)
    assert [event["step"] for event in run.metrics().events if event["event"] == "saved"][:2] != []
    assert "step-000004" in [path.name for path in run.checkpoints()]
    assert_same(untouched, run)


def test_stop_and_discard_leaves_settings_and_numbers(
    prepare: Callable[..., Run], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched, run = train(prepare())[0], prepare()
    with monkeypatch.context() as patch:
        hang_in("a_step", run, "discard", patch)
        worker.work(run)
    assert (run.state(), run.has_adapter(), run.checkpoints()) == ("stopped", False, [])
    assert not (run.folder / "best").exists() and (run.result() or {})["discarded"]
    assert len(run.metrics().steps) == 4
    assert not run.asked("discard") and not run.asked("stop")
    run.ask("resume")
    assert_same(untouched, train(run)[0])


@pytest.mark.skipif(os.name != "posix", reason="Windows knows no signal that asks")
def test_a_signal_is_a_wish_to_stop_and_to_keep(prepare: Callable[..., Run], impatient: None) -> None:
    run = prepare()
    train(run, lambda facts: os.kill(os.getpid(), signal.SIGTERM) if "loss" in facts and facts["step"] == 3 else None)
    assert (run.state(), run.adapter_step()) == ("stopped", 3)


# --- honest -------------------------------------------------------------------------------------------------------------


def told_of(run: Run, name: str) -> list[dict[str, Any]]:
    return [event for event in run.metrics().events if event["event"] == name]


def test_a_finished_run_is_made_longer_and_the_course_is_said(prepare: Callable[..., Run]) -> None:
    """The steps before are as they were, those after are of the longer course, and a kill changes nothing of that."""
    short = {"early_stopping": None, "epochs": 2}
    run, _ = train(prepare(train=short))
    losses = [line["loss"] for line in run.metrics().steps]
    with pytest.raises(Problem, match="already completed"):
        worker.work(run)
    changes.ask(run, {"train.epochs": 3})
    other = killed_at(run, "other")
    untouched, (killed,) = train(run, at_steps(8))
    assert (run.result() or {})["steps"] == 9
    assert [line["loss"] for line in run.metrics().steps][:6] == losses and len(losses) == 6
    (course,) = told_of(run, "course")
    rates = [line["learning_rate"] for line in run.metrics().steps]
    expected = [learning_rate(step, 9, run.config().train) for step in range(6, 9)]
    assert rates[6:] == pytest.approx(expected, rel=1e-5)
    assert (course["was"], course["steps"], course["learning_rate"]) == (6, 9, pytest.approx(rates[6]))
    (changed,) = told_of(run, "changed")
    assert (changed["key"], changed["old"], changed["new"], changed["step"]) == ("train.epochs", "2.0", "3.0", 6)
    assert_same(untouched, train(killed)[0])
    assert_same(untouched, train(other)[0])


def test_a_change_in_the_midst_is_valid_from_the_next_step_and_is_made_again_after_a_kill(
    prepare: Callable[..., Run],
) -> None:
    usual, _ = train(prepare(train={"early_stopping": None}))
    run = prepare(train={"early_stopping": None})

    def change(facts: dict[str, Any]) -> str | None:
        if "loss" in facts and facts["step"] == 4:
            changes.ask(run, {"train.learning_rate": 1e-3, "train.max_steps": 7})
        return at_steps(5)(facts)

    untouched, (killed,) = train(run, change)
    rates, before = ([line["learning_rate"] for line in one.metrics().steps] for one in (run, usual))
    assert rates[:4] == before[:4] and len(rates) == 7
    course = run.config().train.model_copy(update={"learning_rate": 1e-3})
    assert rates[4:] == pytest.approx([learning_rate(step, 7, course) for step in range(4, 7)], rel=1e-5)
    assert killed.checkpoints()[-1].name == "step-000003", "from before the change"
    assert_same(untouched, train(killed)[0])
    assert [event["step"] for event in told_of(killed, "changed") if event["key"] == "train.max_steps"] == [4, 4]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"method.rank": 8}, "method.rank"),
        ({"train.epochs": -1}, "train.epochs"),
        ({"train.seed": 5}, "train.seed"),
        ({"train.early_stopping": 2, "train.early_stopping_metric": "accuracy"}, "train.early_stopping_metric"),
    ],
)
def test_a_change_that_cannot_be_is_refused_at_once(
    prepare: Callable[..., Run], settings: dict[str, Any], field: str
) -> None:
    run = prepare()
    with pytest.raises(Problem) as caught:
        changes.ask(run, settings)
    assert caught.value.field == field and not changes.waits(run)


def test_early_stopping_by_what_a_task_measures(prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an accuracy, more is better; the best is kept though its loss was not."""
    course = iter([0.5, 0.6, 0.9, 0.7, 0.9])
    score = loop._judge
    monkeypatch.setattr(
        loop,
        "_judge",
        lambda measured, *more: score(
            {"loss": 1.0 + len(told), "accuracy": told.append(next(course)) or told[-1]}, *more
        ),
    )
    told: list[float] = []
    settings = {"early_stopping": 2, "early_stopping_metric": "accuracy", "eval_every": 1}
    run, _ = train(prepare("classification", train=settings))
    result = run.result() or {}
    assert (result["step"], result["kept"], result["kept_step"], result["best"], result["metric"]) == (
        4, "best", 2, 0.9, "accuracy",
    )  # fmt: skip


@pytest.mark.parametrize("task", sorted(objectives.catalogue()))
def test_every_task_measures_what_it_says(prepare: Callable[..., Run], task: str) -> None:
    measures = objectives.find(task).measures
    run, _ = train(prepare(task, train={"max_steps": 1, "early_stopping_metric": (*measures, "loss")[-1]}))
    assert run.state() == "completed"
    scored = {key.removeprefix("eval_") for key in run.metrics().evals[-1] if key.startswith("eval_")}
    assert scored == {"loss", *measures}


def test_an_adapter_that_is_as_it_was_is_no_success(prepare: Callable[..., Run]) -> None:
    run, _ = train(prepare(method={"name": "bitfit"}, name="gpt2", train={"learning_rate": 1e-30, "max_steps": 2}))
    (problem,) = (run.result() or {})["problem"]
    assert run.state() == "failed" and "Nothing was learned" in problem["what"]
    assert problem["field"] == "train.learning_rate"


@pytest.mark.parametrize("where", ["space", "save_file", "metrics", "adapter"])
def test_a_full_disk_pauses_with_words_and_goes_on_exactly(
    prepare: Callable[..., Run], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    untouched, run = train(prepare())[0], prepare()
    usage, save_file, append = shutil.disk_usage, checkpoints.save_file, loop.Log._append

    def full(*arguments: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def from_step_five(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **more: (
            full() if len(run.metrics().steps) >= 5 and where == name else real(*arguments, **more)
        )

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", from_step_five("save_file", save_file))
        patch.setattr(loop.Log, "_append", from_step_five("metrics", append))
        patch.setattr(loop.Adapted, "save", from_step_five("adapter", loop.Adapted.save))
        if where == "space":
            little = usage(run.folder)._replace(free=3 * 2**20 // 10)
            patch.setattr(
                disk.shutil, "disk_usage", lambda path: little if len(run.metrics().steps) >= 5 else usage(path)
            )
        worker.work(run)
    result = run.result() or {}
    assert (run.state(), run.resumable, result["step"]) == ("stopped", True, 6 if where != "metrics" else 5)
    (problem,) = result["problem"]
    assert "MB are needed" in problem["what"] and problem["facts"]["needed"] >= 1
    if where == "space":
        assert problem["facts"]["free"] == 0.3
    assert not list((run.folder / "checkpoints").glob(".step-*"))
    run.ask("resume")
    assert_same(untouched, train(run)[0])


@pytest.mark.parametrize(("batch_size", "at"), [(1, 2), (1, 5), (2, 5)], ids=["early", "late", "halved"])
def test_without_room_for_a_step_it_goes_back_and_on_with_less(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, batch_size: int, at: int
) -> None:
    """In the midst of a step some is changed and some is not; before the first checkpoint it begins anew."""
    settings: dict[str, Any] = {"train": {"batch_size": batch_size, "gradient_accumulation": 4 // batch_size}}
    if batch_size > 1:
        settings["method"] = {"name": "lora", "rank": 2}  # dropout draws for a batch
    untouched, _ = train(prepare(**settings))
    real, frugal = torch.optim.AdamW.step, []

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        frugal.append(self.defaults["foreach"] is False)
        if len(frugal) == at:
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1)
            raise torch.OutOfMemoryError("out of memory")
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run, _ = train(prepare(**settings))
    assert run.state() == "completed" and frugal == [False] * at + [True] * (len(frugal) - at)
    assert [(event["step"], event["micro_batch"]) for event in told_of(run, "no_room_to_step")] == [(at - 1, 1)]
    assert [event["step"] for event in told_of(run, "resumed")] == [4 if at > 4 else -1]
    if batch_size == 1:
        assert_same(untouched, run)
    else:  # sums of halves are rounded otherwise
        mine, theirs = ([line["loss"] for line in one.metrics().steps] for one in (run, untouched))
        assert mine == pytest.approx(theirs, rel=1e-4)
        assert checkpoints.read_state(run.checkpoints()[-1])["micro_batch"] == 1, "it is remembered"


def test_without_room_for_any_step_the_checkpoint_is_kept(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, run = torch.optim.AdamW.step, prepare(train={"early_stopping": None})

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        if run.checkpoints():
            raise torch.OutOfMemoryError("out of memory")
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        train(run)
    (problem,) = (run.result() or {})["problem"]
    assert run.state() == "failed" and run.resumable and "optimizer" in problem["what"]
    assert [path.name for path in run.checkpoints()] == ["step-000003"] and run.adapter_step() == 3
    run.ask("resume")
    assert train(run)[0].state() == "completed"


def test_without_room_for_the_moments_nothing_begins(
    prepare: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loop, "reserve_moments", full)
    run, _ = train(prepare())
    (problem,) = (run.result() or {})["problem"]
    assert run.state() == "failed" and problem["field"] == "method" and "optimizer" in problem["what"]


def test_moments_that_are_reserved_are_those_of_a_first_step() -> None:
    course = []
    for reserved in (True, False):
        torch.manual_seed(0)
        trained = {"a": torch.nn.Parameter(torch.randn(3, 2)), "b": torch.nn.Parameter(torch.randn(3))}
        optimizer = create_optimizer(trained, Config.read({}).train)
        if reserved:
            reserve_moments(optimizer)
        for parameter in trained.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        state = [value for one in trained.values() for value in optimizer.state[one].values()]
        course.append([*trained.values(), *state])
    assert [value.dtype for value in course[0]] == [value.dtype for value in course[1]]
    assert all(torch.equal(one, other) for one, other in zip(*course, strict=True))
