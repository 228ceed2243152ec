"""A run in words: its state and the next step, its numbers, its events and its samples, as text and as HTML."""

from __future__ import annotations

import contextlib
import datetime
import html
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from core.advice import advise
from core.problem import Problem
from core.runs import ACTIVE, Metrics, Run, State
from studio.charts import score_scale
from studio.form import knobs
from studio.language import Language, keys

_TROUBLE = ("damaged_checkpoint", "best_lost")
SCORES = ("accuracy", "macro_f1", "exact_match", "f1", "rouge_l", "bleu")
"""What evaluations tell beside the loss, of all that they score; `eval_` stands before it in metrics.jsonl."""


def escape(value: Any) -> str:
    """Text that a user or a model wrote, as text."""
    return html.escape(str(value), quote=True)


def problems(words: Language, found: Iterable[Problem], title: str = "", tone: str = "bad") -> str:
    """Problems as a list, worst first as they come; empty for none."""
    items = "".join(f"<li>{escape(words.explain(problem))}</li>" for problem in found)
    head = f"<p class='strong'>{escape(title)}</p>" if title else ""
    return f"<div class='note {tone}' role='alert'>{head}<ul>{items}</ul></div>" if items else ""


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, the values aligned right."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)
    return f"<dl class='facts'>{items}</dl>"


def progress(run: Run, metrics: Metrics) -> tuple[int, int]:
    """The step that it is at, of how many."""
    last = metrics.steps[-1] if metrics.steps else {}
    result = run.result() or {}
    return _count(last.get("step") or result.get("step")), _count(last.get("steps") or result.get("steps"))


def _count(value: Any) -> int:
    """A number of steps; 0 for what is none, since a file may hold anything."""
    return int(value) if _is_number(value) and math.isfinite(value) else 0


def sentence(words: Language, run: Run, metrics: Metrics, state: State | None = None) -> str:
    """What is the matter with the run, and what can be done next."""
    state = state or run.state()
    step, steps = progress(run, metrics)
    known = {"step": words.number(step), "steps": words.number(steps) if steps else "?"}
    if state in ("starting", "running") and (doing := _doing(words, metrics)):
        return doing
    said = [words.t(f"common.state_{state}", **known)]
    if not step and state in ("stopped", "failed", "interrupted"):
        said = [words.t("common.state_before", state=words.t(f"common.word_{state}"))]
    if state == "queued" and run.asked("resume"):
        said = [words.t("common.state_resuming")]
    if state == "completed" and run.is_damaged():
        kept = run.checkpoints()
        said += [
            words.t("common.damaged"),
            words.t("common.repairs", step=words.number(int(kept[-1].name.removeprefix("step-"))))
            if kept
            else words.t("common.lost"),
        ]
    if state in ("stopped", "failed", "interrupted"):
        said += _on_disk(words, run)
        following = [words.t("common.resume")] if run.resumable else []
        if run.has_adapter():
            following += [words.t("common.chat_with_it"), words.t("common.export_it")]
        said += [words.t("common.next", what=" · ".join(following))] if following else []
    return " ".join(said)


def _on_disk(words: Language, run: Run) -> list[str]:
    """What is left of a run that ended before its end."""
    kept = run.checkpoints()
    if (run.result() or {}).get("discarded"):
        return [words.t("common.discarded")]
    said = []
    if kept:
        said.append(words.t("common.checkpoint_kept", step=words.number(int(kept[-1].name.removeprefix("step-")))))
    if (step := run.adapter_step()) is not None:
        said.append(words.t("common.adapter_kept", step=words.number(step)))
    return said if kept or run.has_adapter() else [words.t("common.nothing_kept")]


def _doing(words: Language, metrics: Metrics) -> str:
    """What the worker does while no step is made."""
    last = metrics.events[-1] if metrics.events else {}
    step = metrics.steps[-1]["step"] if metrics.steps else 0
    key = f"common.doing_{last.get('doing')}"
    begins = last.get("doing") in ("loading_model", "reading_data")
    if last.get("event") == "doing" and (begins or (last.get("step") or 0) >= step) and key in keys(words.code):
        return words.t(key)
    return "" if metrics.steps else words.t("common.state_starting")


def reason(words: Language, run: Run) -> str:
    """Why it ended, as HTML: the Problem in the page's language, else the message as it was written."""
    result = run.result() or {}
    if run.state() in (*ACTIVE, "completed"):
        return ""
    told = result.get("problem")
    if told:
        try:
            return problems(words, Problem.from_data(told).parts)
        except (KeyError, TypeError, IndexError):
            pass
    message = str(result.get("message") or "").strip()
    # A stop that was asked for needs no reason.
    if not message or run.state() == "stopped":
        return ""
    return f"<div class='note bad' role='alert'><pre>{escape(message)}</pre></div>"


def advice(words: Language, metrics: Metrics) -> str:
    """What the numbers say of the course of the training, with what usually helps, and what was found damaged."""
    items = [event_text(words, event) for event in metrics.events if event.get("event") in _TROUBLE]
    noted = "".join(f"<li>{escape(item)}</li>" for item in dict.fromkeys(items))
    damaged = f"<div class='note warn' role='alert'><ul>{noted}</ul></div>" if noted else ""
    return problems(words, advise(metrics), tone="warn") + damaged


def badge(words: Language, state: str) -> str:
    """The state as a coloured word."""
    return f"<span class='badge {escape(state)}'>{escape(words.t(f'common.word_{state}'))}</span>"


def headline(words: Language, run: Run, metrics: Metrics) -> str:
    """Name, state in words, a bar, and the numbers of this moment."""
    state = run.state()
    step, steps = progress(run, metrics)
    last = metrics.steps[-1] if metrics.steps else {}
    share = 1.0 if state == "completed" else step / steps if steps else 0.0
    bar = (
        f"<div class='bar' role='progressbar' aria-valuemin='0' aria-valuemax='100' aria-valuenow='{share * 100:.0f}'"
        f" aria-label='{escape(words.t('common.progress'))}'><span class='{escape(state)}' style='width:{share * 100:.1f}%'></span></div>"
    )
    waits = state == "starting" or (state == "running" and not metrics.steps) or state == "queued"
    if waits:
        bar = "<div class='bar busy'><span></span></div>"
    return (
        f"<div class='run-head'><h2>{escape(run.title)}</h2>{badge(words, state)}</div>"
        f"<p class='sentence'>{escape(sentence(words, run, metrics, state))}</p>{bar}"
        f"{_moment(words, state, step, steps, last, metrics)}{reason(words, run)}"
    )


def _moment(words: Language, state: str, step: int, steps: int, last: Mapping[str, Any], metrics: Metrics) -> str:
    tiles = [
        (
            words.t("common.step"),
            words.t("common.of", some=words.number(step), all=words.number(steps)) if steps else "–",
        )
    ]
    tiles.append((words.t("common.loss"), words.small(last.get("loss"))))
    if metrics.evals:
        best = min((row["eval_loss"] for row in metrics.evals if _is_number(row.get("eval_loss"))), default=None)
        tiles.append((words.t("common.eval_loss"), words.small(metrics.evals[-1].get("eval_loss"))))
        if best is not None and len(metrics.evals) > 1:
            tiles.append((words.t("common.best_eval_loss"), words.small(best)))
        tiles += scores(words, metrics)
    tiles.append(
        (words.t("common.speed"), words.t("common.per_second", number=words.number(last.get("tokens_per_second"))))
    )
    if _is_number(last.get("memory_gb")):
        tiles.append((words.t("common.memory"), f"{last['memory_gb']:.1f} GB"))
    if state in ("running", "stalled") and _is_number(last.get("eta_s")):
        tiles.append((words.t("common.left"), words.duration(last["eta_s"])))
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    return f"<dl class='tiles'>{cells}</dl>"


def scores(words: Language, metrics: Metrics) -> list[tuple[str, str]]:
    """What the evaluations scored beside the loss: names, and their last values."""
    found = []
    for name in SCORES:
        values = [row[f"eval_{name}"] for row in metrics.evals if _is_number(row.get(f"eval_{name}"))]
        if values:
            told = f"{values[-1]:.1f}" if score_scale(f"eval_{name}") == 1 else words.percent(values[-1])
            found.append((words.t(f"common.score_{name}"), told))
    return found


def confusion(run: Run, metrics: Metrics) -> tuple[list[str], list[list[int]], bool] | None:
    """The newest table of what is true and what was said: labels, counts, and whether a row may have several labels.

    Counts are a row for each true label, a column for each that was said; with several, the columns are those of the label
    that were right, were missed, and were given wrongly.
    """
    for told in (run.result() or {}, *reversed(metrics.evals)):
        labels, counts = told.get("labels"), told.get("confusion")
        if not isinstance(labels, list) or not isinstance(counts, list) or not labels or len(labels) != len(counts):
            continue
        try:
            table = [[int(count) for count in row] for row in counts]
            return list(map(str, labels)), table, False
        except TypeError:
            # A table of two by two for each label: neither, wrongly given; missed, right.
            return list(map(str, labels)), [[int(b[1]), int(b[0]), int(a[1])] for a, b in counts], True
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def events(words: Language, metrics: Metrics) -> str:
    """What happened, newest first."""
    shown = [event for event in reversed(metrics.events) if event.get("event") != "doing"][:50]
    items = "".join(
        f"<li><span class='when'>{escape(words.t('common.at_step', step=words.number(event.get('step') or 0)))}</span> {escape(event_text(words, event))}</li>"
        for event in shown
    )
    return (
        f"<ul class='events'>{items}</ul>" if items else f"<p class='quiet'>{escape(words.t('common.no_events'))}</p>"
    )


def event_text(words: Language, event: Mapping[str, Any]) -> str:
    """One event as a sentence; one that is not known here is shown as it stands."""
    name = str(event.get("event"))
    told = {key: words.number(value) if _is_number(value) else str(value) for key, value in event.items()}
    if name == "changed" and told.get("key") in knobs():
        told["key"] = words.text(knobs()[told["key"]].title)
        told |= {side: "–" if told.get(side) == "None" else told.get(side, "?") for side in ("old", "new")}
    if f"common.event_{name}" in keys(words.code):
        try:
            return words.t(f"common.event_{name}", **told)
        except KeyError:
            pass
    rest = ", ".join(f"{key} {value}" for key, value in told.items() if key not in ("event", "step", "time"))
    return f"{name.replace('_', ' ')}{': ' if rest else ''}{rest}"


def samples(words: Language, lines: list[dict[str, Any]]) -> str:
    """The watched prompts, each with its answers over time: the first, the newest, and those between on request."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_prompt.setdefault(str(line.get("prompt", "")), []).append(line)
    if not by_prompt:
        return f"<p class='quiet'>{escape(words.t('common.no_samples'))}</p>"
    return (
        "<div class='samples'>"
        + "".join(_sample(words, prompt, answers) for prompt, answers in list(by_prompt.items())[:20])
        + "</div>"
    )


def _sample(words: Language, prompt: str, answers: list[dict[str, Any]]) -> str:
    def answer(line: Mapping[str, Any], kind: str = "") -> str:
        step = (
            words.t("common.before")
            if not line.get("step")
            else words.t("common.at_step", step=words.number(line["step"]))
        )
        return f"<div class='answer {kind}'><span class='when'>{escape(step)}</span><p>{escape(str(line.get('answer', '')).strip() or '…')}</p></div>"

    between = answers[1:-1]
    more = ""
    if between:
        summary = escape(words.t("common.between", count=len(between)))
        more = f"<details><summary>{summary}</summary>{''.join(answer(line) for line in between)}</details>"
    newest = answer(answers[-1], "newest") if len(answers) > 1 else ""
    return f"<section class='sample'><p class='prompt'>{escape(prompt)}</p>{answer(answers[0])}{more}{newest}</section>"


def took(words: Language, run: Run) -> str:
    """How long it was worked on, in words; empty where nobody knows."""
    found = seconds(run)
    return "" if found is None else words.duration(found)


def seconds(run: Run) -> float | None:
    """How long it was worked on: as its result says, else from its first word, or its worker's birth, to its last word."""
    told = (run.result() or {}).get("seconds")
    if _is_number(told):
        return float(told)
    try:
        began = _first_word(run)
        last = max(
            (path.stat().st_mtime for name in ("result.json", "metrics.jsonl") if (path := run.folder / name).exists()),
            default=began,
        )
    except (ValueError, OSError):
        return None
    return max(0.0, last - began)


def _first_word(run: Run) -> float:
    """When it was first worked on; one that nobody has worked on was made then."""
    for name, key in (("metrics.jsonl", "time"), ("worker.json", "birth")):
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError), (run.folder / name).open("rb") as file:
            return float(json.loads(file.readline() if key == "time" else file.read())[key])
    return datetime.datetime.strptime(run.id[:15], "%Y%m%d-%H%M%S").timestamp()


def began(run: Run) -> str:
    """When it was made, as people write it."""
    try:
        return f"{datetime.datetime.strptime(run.id[:15], '%Y%m%d-%H%M%S'):%Y-%m-%d %H:%M}"
    except ValueError:
        return ""
