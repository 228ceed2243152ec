"""The training loop, once: it reads from top to bottom, and everything it writes goes into the run's folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from core.config import Config
from core.engine.adapt import Adapted, Weights
from core.engine.checkpoint import find_checkpoint, load_checkpoint, read_state, save_checkpoint
from core.engine.data import Reader, Tokens, collate, order_rows
from core.engine.evaluate import measure, write_answers
from core.engine.material import Material
from core.engine.model import (
    choose_dtype,
    describe_device,
    end_token_ids,
    find_device,
    find_heads,
    load_model,
    longest_input,
    padding_token,
    peft_task,
)
from core.engine.optim import create_optimizer, head_ratios, learning_rate, measure_inputs
from core.engine.quantization import count_parameters
from core.engine.trackers import Tracking
from core.fit import choose_batch_size, count_steps
from core.methods import PromptMethod
from core.objectives import Objective, Row
from core.problem import Problem
from core.runs import Run, write_whole

ADAPTER = "default"
_BROKEN_STEPS = 5  # so many steps in a row without a finite gradient end the run


class Log:
    """metrics.jsonl and samples.jsonl, a whole line at a time."""

    def __init__(self, run: Run):
        self.folder = run.folder
        self.fresh = not (run.folder / "metrics.jsonl").exists()
        self.tracking = Tracking.of(run, lambda why: self.event("tracker_failed", why=why))
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            # A killed worker may have left half a line; the next one must not be glued to it.
            if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
                with path.open("ab") as file:
                    file.write(b"\n")

    def write(self, **numbers: Any) -> None:
        line = {key: _round(value) for key, value in numbers.items()} | {"time": round(time.time(), 2)}
        self._append("metrics.jsonl", line)
        self.tracking.write(line)

    def event(self, event: str, step: int = 0, **facts: Any) -> None:
        self.write(event=event, step=step, **facts)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        self._append("samples.jsonl", {"step": step, "prompt": prompt, "answer": answer})

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _round(value: Any) -> Any:
    if isinstance(value, float):
        # JSON knows no NaN; a gap in the curve is what it means.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def train(run: Run, config: Config) -> dict[str, Any]:
    """Train a run from its newest checkpoint, or from the start, to its end or until it is told to stop.

    Returns:
        What result.json says: outcome, message, step, steps, kept (best or last), kept_step.

    Raises:
        Problem: when model, data and settings do not go together, or the training diverges.
    """
    log = Log(run)
    accelerator = Accelerator(gradient_accumulation_steps=1, mixed_precision=_mixed_precision(config))
    device = accelerator.device
    torch.manual_seed(config.train.seed)

    # What there is to learn, before the model: its head may depend on the labels in the data.
    log.event("doing", doing="reading_data")
    material = Material.read(config)
    objective = material.objective

    # The model and what is trained of it.
    log.event("doing", doing="loading_model")
    dtype = choose_dtype(config.model.dtype, device, config.method)  # type: ignore[arg-type]
    model, tokenizer = load_model(config.model, device, dtype, objective)
    limit = longest_input(model)
    chats = objective.model_kind == "causal_lm"
    ends = end_token_ids(getattr(model, "generation_config", None), tokenizer)
    tokens = Tokens(tokenizer, min(config.data.max_length, limit or config.data.max_length), ends, chats=chats)
    adapted = Adapted(model)
    text = config.method.starting_text() if isinstance(config.method, PromptMethod) else None
    heads = find_heads(model, config.model)  # type: ignore[arg-type]
    adapted.add(
        ADAPTER, config.method, config.train.seed, heads=heads,
        starting_ids=tokens.text_prompt(text) if text else (),
    )  # fmt: skip
    tokens.leave_room(*adapted.before(Weights(ADAPTER)), limit)
    trained = adapted.start_training(ADAPTER)
    parameters = count_parameters(adapted.parameters.values())

    # The data, as tokens.
    train_rows, eval_rows = material.spell(tokens, config)
    watched = material.watch(tokens, config)
    pad = padding_token(tokenizer)
    reader = Reader(model, packing=config.data.packing, kind=objective.model_kind, before=tokens.before)
    max_length = tokens.max_length
    pack = max_length + len(tokens.before) if reader.packs else None

    # The course: every number below is a function of the step, so that a resumed run needs to remember little.
    batch_size = choose_batch_size(config, parameters)
    window = batch_size * config.train.gradient_accumulation
    steps = count_steps(config, len(train_rows.rows), batch_size)
    per_epoch = math.ceil(len(train_rows.rows) / window)
    checkpoint, damaged = find_checkpoint(run)
    if checkpoint is not None:
        inputs = read_state(checkpoint).get("inputs", {})
    else:
        fresh = heads if config.train.head_learning_rate is not None else ()
        inputs = measure_inputs(model, fresh, lambda: _read_some(model, reader, train_rows.rows, pad))
    ratios = adapted.learning_rate_ratios(ADAPTER) | head_ratios(trained, heads, config.train, inputs)
    optimizer = create_optimizer(trained, config.train, ratios)
    model, optimizer = accelerator.prepare(model, optimizer)  # type: ignore[assignment]
    state: dict[str, Any] = {
        "step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "best_loss": None,
        "best_step": 0,
        "worse": 0,
        "micro_batch": batch_size,
        "inputs": inputs,
    }
    for path in damaged:
        log.event("damaged_checkpoint", name=path.name)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, trained | adapted.frozen(ADAPTER), optimizer)
        log.event("resumed", step=state["step"], steps=steps)
    else:
        if not log.fresh:
            log.event("resumed", step=-1, steps=steps)  # whatever an earlier try wrote did not happen
        log.event(
            "started", steps=steps, rows=len(train_rows.rows), eval_rows=len(eval_rows.rows), tokens=train_rows.tokens,
            trained_tokens=train_rows.targets, cut_rows=train_rows.cut + eval_rows.cut, empty_rows=train_rows.empty + eval_rows.empty,
            dropped_rows=train_rows.dropped + eval_rows.dropped,
            refused_rows=len(train_rows.refused) + len(eval_rows.refused), parameters=parameters, trainable=sum(p.numel() for p in trained.values()),
            batch_size=batch_size, max_length=max_length, packing=reader.packs, dtype=str(dtype).removeprefix("torch."), device=describe_device()["device"],
        )  # fmt: skip

    def answer_prompts(step: int) -> None:
        for prompt in watched:
            # A request to stop does not wait for answers.
            if not run.asked("stop"):
                text = prompt.answer(model, reader, objective, tokens, config)
                if text is not None:
                    log.sample(step, prompt.text, text)

    def evaluate(step: int) -> float | None:
        log.event("doing", step=step, doing="evaluating")
        answer_prompts(step)
        if not eval_rows.rows:
            return None
        while True:
            try:
                measured = measure(
                    model, reader, objective, eval_rows, pad=pad, batch_size=state["micro_batch"], pack=pack,
                    device=device, autocast=accelerator.autocast,
                )  # fmt: skip
                break
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                _halve_micro_batch(error, state, eval_rows.rows, log, step)
        loss, scored = measured.loss, measured.scored
        if objective.generates and config.samples.scored:
            scored = write_answers(
                model, tokens, objective, eval_rows.examples, most=config.samples.scored,
                max_tokens=config.samples.max_new_tokens, stop=lambda: run.asked("stop"),
            )  # fmt: skip
        log.write(
            step=step, eval_loss=loss, **{f"eval_{name}": value for name, value in objective.score(scored).items()}
        )
        if step == 0 and not math.isfinite(loss):
            raise Problem(
                "The base model's loss on these rows is not a finite number.",
                to_do="The model's files are broken, or its precision does not suit it: fetch it again, or choose float32.",
                field="model.name",
            )
        return loss if math.isfinite(loss) else None

    def save_adapter(folder: Path, step: int) -> None:
        about = {"run": run.id, "task": config.task, "step": step, "own_template": tokens.own_template}
        about |= objective.facts()
        adapted.save(ADAPTER, folder, base=config.model.name, about=about, task_type=peft_task(objective))

    def save(step: int) -> None:
        kept = trained | adapted.frozen(ADAPTER)
        save_checkpoint(run, step, kept, optimizer.optimizer, state, config.train.keep)
        log.event("saved", step=step)

    if checkpoint is None:
        loss = evaluate(0)
        state |= {"best_loss": loss}
    model.train()
    outcome, broken, started_at = "completed", 0, time.monotonic()
    speed = _Speed()
    step = state["step"]
    while step < steps and not _is_enough(state, config):
        if run.take("stop"):
            outcome = "stopped"
            break
        # One window: its rows, its micro-batches, one optimizer step.
        epoch, index = divmod(step, per_epoch)
        order = order_rows(len(train_rows.rows), config.train.seed, epoch)
        rows = [train_rows.rows[i] for i in order[index * window : (index + 1) * window]]
        rate = learning_rate(step, steps, config.train)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        began = time.monotonic()
        try:
            loss = _backward(rows, state["micro_batch"], model, reader, objective, accelerator, pad, pack)
            penalty = adapted.penalty(ADAPTER)
            if penalty is not None:
                accelerator.backward(penalty)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            _halve_micro_batch(error, state, rows, log, step)
            optimizer.zero_grad(set_to_none=True)
            continue
        norm = float(accelerator.clip_grad_norm_(list(trained.values()), config.train.max_grad_norm or math.inf))
        # float16 has a scaler that skips a step whose gradient overflows, and learns its scale from doing so.
        scaled = accelerator.scaler is not None
        finite = math.isfinite(loss) and (scaled or math.isfinite(norm))
        if finite or scaled:
            optimizer.step()
            adapted.after_step(ADAPTER, step + 1, steps)
        if finite:
            broken = 0
        else:
            broken += 1
            log.event("not_finite", step=step + 1, in_a_row=broken)
        optimizer.zero_grad(set_to_none=True)
        step += 1
        size = sum(row.length for row in rows)
        state |= {"step": step, "tokens": state["tokens"] + size}
        speed.add(size, time.monotonic() - began)
        log.write(
            step=step, steps=steps, epoch=step / per_epoch, loss=loss, learning_rate=rate, grad_norm=norm, tokens=state["tokens"],
            tokens_per_second=speed.tokens_per_second, memory_gb=_memory(device), eta_s=speed.seconds_per_step * (steps - step),
        )  # fmt: skip
        if broken >= _BROKEN_STEPS:
            save_adapter(run.folder / "adapter", step - broken)
            _fail(broken, step)

        # What is due after this step.
        last = step == steps
        if last or (config.train.eval_every and step % config.train.eval_every == 0):
            loss_now = evaluate(step)
            if loss_now is not None and (state["best_loss"] is None or loss_now < state["best_loss"]):
                state |= {"best_loss": loss_now, "best_step": step, "worse": 0}
                if config.train.early_stopping:
                    save_adapter(run.folder / "best", step)
            elif loss_now is not None:
                state["worse"] += 1
            model.train()
        enough = _is_enough(state, config)
        asked = run.take("save")
        if last or enough or asked or (config.train.save_every and step % config.train.save_every == 0):
            state["seconds"] += time.monotonic() - started_at
            started_at = time.monotonic()
            save(step)
            save_adapter(run.folder / "adapter", step)
        if enough:
            log.event("stopped_early", step=step, best_step=state["best_step"])

    if broken:
        _fail(broken, step)

    # What was learned.
    if outcome == "stopped" and step > 0:
        save(step)
        save_adapter(run.folder / "adapter", step)
    kept_step = step
    best = run.folder / "best"
    if outcome == "completed" and config.train.early_stopping and state["best_step"] and best.exists():
        _take_best(best, run.folder / "adapter")
        kept_step = state["best_step"]
    return {
        "outcome": outcome, "step": step, "steps": steps, "kept": "last" if kept_step == step else "best", "kept_step": kept_step,
        "best_loss": state["best_loss"], "seconds": round(state["seconds"] + time.monotonic() - started_at, 1),
    }  # fmt: skip


def _is_enough(state: dict[str, Any], config: Config) -> bool:
    """Whether early stopping has waited long enough."""
    return config.train.early_stopping is not None and state["worse"] >= config.train.early_stopping


def _fail(broken: int, step: int) -> NoReturn:
    raise Problem(
        "The training diverged: the loss was not finite {count} steps in a row.",
        "The last finite weights, of step {step}, are saved.",
        "Start again with a smaller learning rate.",
        field="train.learning_rate",
        count=broken,
        step=step - broken,
    )


def _backward(
    rows: Sequence[Row],
    micro_batch: int,
    model: Any,
    reader: Reader,
    objective: Objective,
    accelerator: Accelerator,
    pad: int,
    pack: int | None,
) -> float:
    """Gradients of a window: the loss *summed* over all its targets and divided by their number, so that the split into
    micro-batches changes nothing. Returns the mean loss per target."""
    targets = sum(row.targets for row in rows)
    total = 0.0
    for start in range(0, len(rows), micro_batch):
        some = rows[start : start + micro_batch]
        batch = collate(some, pad, pack=pack, before=reader.before).to(accelerator.device)
        with accelerator.autocast():
            loss = objective.loss(reader.logits(model, batch), batch.targets) / targets
        accelerator.backward(loss)
        total += float(loss.detach())
    return total


def _take_best(best: Path, adapter: Path) -> None:
    for name in ("adapter_model.safetensors", "atelier.json", "adapter_config.json"):
        write_whole(adapter / name, (best / name).read_bytes())


def _read_some(model: nn.Module, reader: Reader, rows: Sequence[Row], pad: int) -> None:
    """Run the first rows through the model, one by one."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for row in rows[:8]:
            batch = collate([row], pad, pack=None, before=reader.before)
            reader.logits(model, batch.to(next(model.parameters()).device))
    model.train(was_training)


class _Speed:
    """Speed over the last steps: the mean of all would hide that a machine became slower."""

    def __init__(self) -> None:
        self.recent: list[tuple[int, float]] = []

    def add(self, tokens: int, seconds: float) -> None:
        self.recent = [*self.recent[-19:], (tokens, seconds)]

    @property
    def seconds_per_step(self) -> float:
        return sum(seconds for _, seconds in self.recent) / len(self.recent)

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for tokens, _ in self.recent) / max(1e-9, sum(seconds for _, seconds in self.recent))


def _memory(device: torch.device) -> float:
    """Gigabytes that this process holds: of the accelerator's memory where there is one."""
    if device.type in ("cuda", "npu", "xpu"):
        return torch.get_device_module().max_memory_allocated() / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return psutil.Process().memory_info().rss / 2**30


def _mixed_precision(config: Config) -> str:
    """Autocast follows the base's precision; weights that are trained themselves are float32 and cast on the way."""
    dtype = choose_dtype(config.model.dtype, find_device())
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "out of memory" in str(error).lower()
        or "can't allocate memory" in str(error)
    )


def _halve_micro_batch(error: RuntimeError, state: dict[str, Any], rows: Sequence[Row], log: Log, step: int) -> None:
    """Fewer rows at once, the same rows a step; a Problem when a single row is too much."""
    if state["micro_batch"] == 1:
        longest = max(row.length for row in rows)
        raise Problem(
            "The device has too little memory for a single row.",
            "The longest row of this step has {tokens} tokens.",
            "Lower the longest row, or choose a smaller model.",
            field="data.max_length",
            tokens=longest,
        ) from error
    state["micro_batch"] = max(1, state["micro_batch"] // 2)
    log.event("out_of_memory", step=step, micro_batch=state["micro_batch"])
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
