"""The training loop, once: it reads from top to bottom, and everything it writes goes into the run's folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from torch import nn

from core import changes
from core.config import Config
from core.engine.adapt import Adapted, Weights
from core.engine.adapter_files import holds
from core.engine.checkpoint import (
    digest,
    find_checkpoint,
    load_checkpoint,
    random_states,
    read_state,
    restore_random,
    save_checkpoint,
)
from core.engine.data import Reader, collate
from core.engine.device import choose_dtype, describe_device, find_device
from core.engine.evaluate import measure, write_answers
from core.engine.log import Log, Speed, memory_in_use
from core.engine.material import Material
from core.engine.memory import NoRoomToStep, free, give_way, halve_micro_batch, refuse_optimizer
from core.engine.model import (
    end_token_ids,
    find_heads,
    load_model,
    longest_input,
    padding_token,
    peft_task,
)
from core.engine.optim import create_optimizer, head_ratios, measure_inputs, reserve_moments
from core.engine.quantization import count_parameters
from core.engine.rows import order_rows
from core.engine.tokens import Tokens
from core.engine.wishes import Interrupted, Wishes
from core.fit import choose_batch_size, count_steps, learning_rate
from core.methods import PromptMethod
from core.objectives import Objective, Row
from core.problem import Problem
from core.runs import Run, write_whole

ADAPTER = "default"
_BROKEN_STEPS = 5  # so many steps in a row without a finite gradient end the run


def train(run: Run, config: Config, wishes: Wishes) -> dict[str, Any]:
    """Train a run from its newest checkpoint, or from the start, to its end or until it is told to stop.

    Returns:
        What result.json says: outcome, message, step, steps, kept (best or last), kept_step.

    Raises:
        Problem: when model, data and settings do not go together, or the training diverges.
        Interrupted: when it is told to stop before its first step.
    """
    most = None
    while True:
        log = Log(run)
        try:
            return _train(run, config, wishes, log, most)
        except NoRoomToStep as error:
            most = error.micro_batch
        finally:
            wishes.may_break()
            log.close()
        free()  # when the exception is gone, which held all that was loaded


def _train(run: Run, config: Config, wishes: Wishes, log: Log, most: int | None) -> dict[str, Any]:
    """One try; `most` rows at once after one that found no room for a step of the optimizer."""
    wishes.may_break("stop")  # there is nothing yet that could be lost
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
    ends = end_token_ids(getattr(model, "generation_config", None), tokenizer)
    longest = min(config.data.max_length, limit or config.data.max_length)
    tokens = Tokens(tokenizer, longest, ends, template=config.data.template)
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
    optimizer = create_optimizer(trained, config.train, ratios, is_frugal=most is not None)
    trainable = sum(parameter.numel() for parameter in trained.values())
    try:
        # Before the first rows: what is then left for them is found by trying.
        reserve_moments(optimizer)
    except RuntimeError as error:
        refuse_optimizer(error, trainable)
    model, optimizer = accelerator.prepare(model, optimizer)  # type: ignore[assignment]
    state: dict[str, Any] = {
        "step": 0,
        "evaluated": -1,
        "tokens": 0,
        "seconds": 0.0,
        "best": None,
        "best_step": 0,
        "worse": 0,
        "broken": 0,
        "micro_batch": batch_size,
        "inputs": inputs,
        "changed": 0,
    }
    for path in damaged:
        log.event("damaged_checkpoint", name=path.name)
    if checkpoint is not None:
        state |= load_checkpoint(checkpoint, trained | adapted.frozen(ADAPTER), optimizer)
        if accelerator.scaler is not None and "scaler" in state:
            accelerator.scaler.load_state_dict(state["scaler"])
        # Its settings as they were then; what was changed later is changed again when that step comes.
        config = changes.apply(config, changes.taken(run)[: state["changed"]])
        steps = count_steps(config, len(train_rows.rows), batch_size)
        log.event("resumed", step=state["step"], evaluated=state["evaluated"], steps=steps)
    else:
        state["start"] = digest(trained)
        if not log.fresh:
            log.event("resumed", step=-1, steps=steps)  # whatever an earlier try wrote did not happen
        log.event(
            "started", steps=steps, rows=len(train_rows.rows), eval_rows=len(eval_rows.rows), tokens=train_rows.tokens,
            trained_tokens=train_rows.targets, cut_rows=train_rows.cut + eval_rows.cut, empty_rows=train_rows.empty + eval_rows.empty,
            dropped_rows=train_rows.dropped + eval_rows.dropped,
            refused_rows=len(train_rows.refused) + len(eval_rows.refused), parameters=parameters, trainable=trainable,
            batch_size=batch_size, max_length=max_length, packing=reader.packs, dtype=str(dtype).removeprefix("torch."), device=describe_device()["device"],
        )  # fmt: skip

    state["micro_batch"] = min(state["micro_batch"], most or state["micro_batch"])

    def answer_prompts(step: int) -> None:
        for prompt in watched:
            # A request to stop does not wait for answers.
            if not run.asked("stop"):
                text = prompt.answer(model, reader, objective, tokens, config)
                if text is not None:
                    log.sample(step, prompt.text, text)

    def evaluate(step: int) -> dict[str, float]:
        log.event("doing", step=step, doing="evaluating")
        answer_prompts(step)
        if not eval_rows.rows:
            return {}
        while True:
            try:
                measured = measure(
                    model, reader, objective, eval_rows, pad=pad, batch_size=state["micro_batch"], pack=pack,
                    device=device, autocast=accelerator.autocast,
                )  # fmt: skip
                break
            except RuntimeError as error:
                halve_micro_batch(error, state, eval_rows.rows, log, step)
        loss, scored = measured.loss, measured.scored
        if objective.generates and config.samples.scored:
            scored = write_answers(
                model, tokens, objective, eval_rows, most=config.samples.scored,
                max_tokens=config.samples.max_new_tokens, stop=lambda: run.asked("stop"),
            )  # fmt: skip
        if run.asked("stop"):
            raise Interrupted  # it did not answer all, and is made anew when the run goes on
        scores = objective.score(scored)
        log.write(step=step, eval_loss=loss, **{f"eval_{name}": value for name, value in scores.items()})
        if step == 0 and not math.isfinite(loss):
            raise Problem(
                "The base model's loss on these rows is not a finite number.",
                to_do="The model's files are broken, or its precision does not suit it: fetch it again, or choose float32.",
                field="model.name",
            )
        return {"loss": loss, **scores}

    def save_adapter(folder: Path, step: int) -> None:
        about = {"run": run.id, "task": config.task, "step": step, "own_template": tokens.own_template}
        about |= objective.facts()
        adapted.save(ADAPTER, folder, base=config.model.name, about=about, task_type=peft_task(objective))

    def save(step: int) -> None:
        nonlocal saved, clock
        state["seconds"], clock = state["seconds"] + time.monotonic() - clock, time.monotonic()
        if accelerator.scaler is not None:
            state["scaler"] = accelerator.scaler.state_dict()
        kept = trained | adapted.frozen(ADAPTER)
        save_checkpoint(run, step, kept, optimizer.optimizer, state, config.train.keep)
        log.event("saved", step=step)
        save_adapter(run.folder / "adapter", step)
        saved = step

    saved, clock, speed = state["step"], time.monotonic(), Speed()
    best = run.folder / "best"
    if saved and not holds(run.folder / "adapter", saved):
        save_adapter(run.folder / "adapter", saved)  # killed between the checkpoint and its adapter, or damaged since
    wishes.may_break()
    model.train()
    while True:
        # What is due at this step: another setting, an evaluation, a checkpoint, the end.
        step = state["step"]
        asked = changes.take(run, step)
        while state["changed"] < len(asked) and asked[state["changed"]]["step"] <= step:
            before, was = config, steps
            config = changes.apply(config, asked[state["changed"] : state["changed"] + 1])
            steps = count_steps(config, len(train_rows.rows), batch_size)
            state |= {"changed": state["changed"] + 1, "worse": 0}
            if config.train.early_stopping_metric != before.train.early_stopping_metric:
                state |= {"best": None, "best_step": 0}
            _tell_changes(log, step, before, config, was, steps)
        due = step in (0, steps) or step > steps or _is_due(step, config.train.eval_every)
        if state["evaluated"] < step and due:
            # What an evaluation draws at random, or one that is broken off, must not change the steps that follow.
            with wishes.breakable(), torch.random.fork_rng():
                state |= _judge(evaluate(step), step, state, config.train.early_stopping_metric)
            model.train()
        evaluated = state["evaluated"] == step or not due
        is_best = bool(config.train.early_stopping) and 0 < step == state["best_step"]
        enough = evaluated and _is_enough(state, config)
        last = evaluated and (step >= steps or enough)
        if (run.take("save") and step > 0) or (
            saved < step and (last or is_best or (evaluated and _is_due(step, config.train.save_every)))
        ):
            save(step)
        if is_best and not holds(best, step):
            save_adapter(best, step)  # after the checkpoint, so that no older checkpoint is left with a newer best
        if enough and step < steps:
            log.event("stopped_early", step=step, best_step=state["best_step"])
        if last:
            outcome = "completed"
            break
        if run.asked("stop"):  # the worker takes it when all is written, and until then it is stopping
            outcome = "stopped"
            break
        if not evaluated:
            continue  # it was broken off by the wish for a checkpoint, and is begun anew

        # One window: its rows, its micro-batches, one optimizer step.
        epoch, index = divmod(step, per_epoch)
        order = order_rows(len(train_rows.rows), config.train.seed, epoch)
        rows = [train_rows.rows[i] for i in order[index * window : (index + 1) * window]]
        rate = learning_rate(step, steps, config.train)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        began, before, loss = time.monotonic(), random_states(), None
        try:
            with wishes.breakable():
                loss = _backward(rows, state["micro_batch"], model, reader, objective, accelerator, adapted, pad, pack)
        except RuntimeError as error:
            halve_micro_batch(error, state, rows, log, step)
        if loss is None:
            # Broken off in the middle: it is as if it had not begun.
            restore_random(before)
            optimizer.zero_grad(set_to_none=True)
            continue
        # float16 has a scaler that skips a step whose gradient overflows, and learns its scale from doing so.
        scaled = accelerator.scaler is not None
        try:
            norm = float(accelerator.clip_grad_norm_(list(trained.values()), config.train.max_grad_norm or math.inf))
            finite = math.isfinite(loss) and (scaled or math.isfinite(norm))
            if finite or scaled:
                optimizer.step()
                adapted.after_step(ADAPTER, step + 1, steps)
        except RuntimeError as error:
            give_way(error, state, log, step, is_frugal=most is not None, trainable=trainable)
        optimizer.zero_grad(set_to_none=True)
        step += 1
        size = sum(row.length for row in rows)
        state |= {"step": step, "tokens": state["tokens"] + size, "broken": 0 if finite else state["broken"] + 1}
        if not finite:
            log.event("not_finite", step=step, in_a_row=state["broken"])
        speed.add(size, time.monotonic() - began)
        log.write(
            step=step, steps=steps, epoch=step / per_epoch, loss=loss, learning_rate=rate, grad_norm=norm, tokens=state["tokens"],
            tokens_per_second=speed.tokens_per_second, memory_gb=memory_in_use(device), eta_s=speed.seconds_per_step * (steps - step),
        )  # fmt: skip
        if state["broken"] >= _BROKEN_STEPS:
            break

    if state["broken"]:
        save_adapter(run.folder / "adapter", step - state["broken"])
        _fail(state["broken"], step)

    # What was learned.
    if outcome == "stopped" and saved < step and not run.asked("discard"):
        save(step)
    if outcome == "completed" and digest(trained) == state.get("start"):
        raise Problem(
            "Nothing was learned: all that was trained is as it was before the first step.",
            "It made {steps} steps with a learning rate of at most {rate}.",
            "Raise the learning rate, or see under Data whether there is anything to learn in the rows.",
            field="train.learning_rate",
            steps=step,
            rate=config.train.learning_rate,
        )
    kept_step = step
    if outcome == "completed" and config.train.early_stopping and state["best_step"]:
        if holds(best, state["best_step"]):
            _take_best(best, run.folder / "adapter")
            kept_step = state["best_step"]
        else:
            log.event("best_lost", step=step, best_step=state["best_step"])
    return {
        "outcome": outcome, "step": step, "steps": steps, "kept": "last" if kept_step == step else "best", "kept_step": kept_step,
        "best_loss": state["best"] if config.train.early_stopping_metric == "loss" else None, "best": state["best"],
        "metric": config.train.early_stopping_metric, "seconds": round(state["seconds"] + time.monotonic() - clock, 1),
    }  # fmt: skip


def _is_due(step: int, every: int) -> bool:
    """Whether something that is done every so many steps is due; 0 is never."""
    return step > 0 and every > 0 and step % every == 0


def _judge(measured: Mapping[str, float], step: int, state: dict[str, Any], metric: str) -> dict[str, Any]:
    """What an evaluation changes of the state: whether it is the best so far, and else how many in a row were not."""
    value = measured.get(metric)
    if measured and value is None:
        raise Problem(
            "The evaluation does not measure {metric}, by which early stopping is to go.",
            "It measures {measures}.",
            "Choose one of them, or have answers scored.",
            field="train.early_stopping_metric",
            metric=metric,
            measures=", ".join(measured),
        )
    if value is None or not math.isfinite(value):
        return {"evaluated": step}
    # A loss is the better the lower it is; everything else that tasks measure, the higher.
    best = state["best"]
    better = best is None or (value < best if metric == "loss" else value > best)
    if step == 0:
        # The base itself is no result; what learns must be better than it was all the same.
        return {"evaluated": 0, "best": value}
    return {"evaluated": step} | (
        {"best": value, "best_step": step, "worse": 0} if better else {"worse": state["worse"] + 1}
    )


def _tell_changes(log: Log, step: int, before: Config, now: Config, was: int, steps: int) -> None:
    """Say which settings are others from this step on, and how the course of the learning rate goes on."""
    for key in changes.CHANGEABLE:
        name = key.partition(".")[2]
        old, new = getattr(before.train, name), getattr(now.train, name)
        if old != new:
            log.event("changed", step=step, key=key, old=str(old), new=str(new))
    if steps != was:
        log.event("course", step=step, was=was, steps=steps, learning_rate=learning_rate(step, steps, now.train))


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
    adapted: Adapted,
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
    penalty = adapted.penalty(ADAPTER)
    if penalty is not None:
        accelerator.backward(penalty)
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


def _mixed_precision(config: Config) -> str:
    """Autocast follows the base's precision; weights that are trained themselves are float32 and cast on the way."""
    dtype = choose_dtype(config.model.dtype, find_device())
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "no")
