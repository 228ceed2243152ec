"""The command line: everything that the window does, on the same YAML."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core import advice, changes, garbage, notice, parcel, presets, queue, runs, sources
from core.config import Config, assign, parse_assignment
from core.findings import Finding
from core.model import PLAYGROUND, describe, locate
from core.problem import Problem
from core.runs import Run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0, or 2 with a Problem on stderr."""
    # Threads that wait by spinning make a training several times slower as soon as anything else is at work, be it the
    # browser that shows it. It must be said before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    options = parser.parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(encoding="utf-8", errors="replace")  # Windows consoles default to something else
    try:
        return options.run_command(options) or 0
    except Problem as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output went away; Python must not complain about it while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(
        prog="python -m core", description="Fine-tune language models on your own machine."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int | None], help: str, *names: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run_command=run)
        for positional in names:
            sub.add_argument(positional)
        return sub

    sub = command("train", _train, "Train from a YAML file, a recipe or a preset.")
    sub.add_argument("config", help="a YAML file, or the name of a recipe or task")
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, such as train.max_steps=50"
    )
    sub.add_argument("--run-dir", type=Path, help="the run's folder (default: a new one among the studio's runs)")
    command("work", _work, "Do the job of a run folder (what the studio starts).", "run")
    sub = command("resume", _resume, "Go on with a run from its newest checkpoint.", "run")
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="go on otherwise: train.epochs=5 makes it longer",
    )
    sub = command("change", _change, "Change a setting of a training that has begun, from its next step on.", "run")
    sub.add_argument(
        "--set", action="append", required=True, metavar="KEY=VALUE", help="such as train.learning_rate=1e-4"
    )
    sub = command("stop", _stop, "Ask a run to stop; what it learned is kept.", "run")
    sub.add_argument("--discard", action="store_true", help="throw away what it learned: adapter and checkpoints")
    command("save", _save, "Ask a run to save a checkpoint now, and to go on.", "run")
    sub = command("runs", _runs, "List the runs.")
    sub.add_argument("--json", action="store_true")
    _add_queue(
        commands.add_parser("queue", help="See and change what waits: one run is at work at a time on each device.")
    )
    sub = command("pack", _pack, "Write a run as a zip that holds no path and no token of this machine.", "run")
    sub.add_argument("--out", type=Path, required=True, help="the zip file")
    command("import", _import, "Copy a run's folder from elsewhere among the studio's runs.", "folder")
    sub = command("notify", _notify, "Who is told when a run ends.")
    sub.add_argument("--webhook", help='an address that gets a POST of run, name, outcome and message; "" for none')
    sub.add_argument("--test", metavar="RUN", help="tell now how that run ended")
    sub.add_argument(
        "--command",
        nargs=argparse.REMAINDER,
        help="a program and its arguments, no shell; {name} and {outcome} are filled",
    )
    sub = command("estimate", _estimate, "What a configuration would train, on how much.", "config")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    sub.add_argument("--json", action="store_true")
    sub = command(
        "check-data", _check_data, "What the model would see of a data set, or of that of a YAML file.", "file"
    )
    sub.add_argument("--model", default="playground")
    sub.add_argument("--task", default="chat")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as data.max_length=512")
    sub.add_argument("--out", type=Path, help="keep every row's tokens and the report in this folder")
    sub.add_argument("--parent", help="end when the process of this number has ended")
    sub.add_argument("--json", action="store_true")
    command("assist", _assist, "Share the work of an inspection (what that starts).")
    sub = command("evaluate", _evaluate, "How well a run, or a base model alone, does on a data set.", "target")
    sub.add_argument("--data", required=True, help="a file, a built-in sample or an id on the Hugging Face hub")
    sub.add_argument("--task", help="of a base model: what it is to do (default: the first that it can)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as samples.scored=200")
    sub.add_argument("--scale", type=float, default=1.0, help="strength of the adapter, 0 to 2")
    sub.add_argument("--merged", action="store_true", help="merge the adapter into the base first")
    sub.add_argument("--base", action="store_true", help="the run's base model alone")
    sub.add_argument("--json", action="store_true")
    sub = command("chat", _chat, "Ask a run: a chat, the labels of a text, the answer in a context.", "run")
    sub.add_argument("--prompt", help="one question or text; without it, a conversation")
    sub.add_argument("--context", help="the text that holds the answer, for a run of extractive_qa")
    sub.add_argument("--scale", type=float, default=1.0, help="strength of the adapter, 0 to 2")
    sub.add_argument("--merged", action="store_true", help="merge the adapter into the base first")
    sub.add_argument("--base", action="store_true", help="the base model alone")
    sub.add_argument("--temperature", type=float, default=0.7)
    sub.add_argument("--max-tokens", type=int, default=256)
    sub.add_argument("--seed", type=int)
    sub = command("serve", _serve, "Serve a base model and the runs on it through the OpenAI API.")
    sub.add_argument("--model", default="playground")
    sub.add_argument("--revision")
    sub.add_argument(
        "--quantization", choices=["none", "nf4", "int8"], default="none", help="compress the base, for runs that did"
    )
    sub.add_argument("--task", help="what it is loaded for at first (default: the first task that the model can do)")
    sub.add_argument("--host", default="127.0.0.1", choices=["127.0.0.1", "::1", "localhost"])
    sub.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    sub.add_argument("--ready", type=Path, help="write the address to this file when ready")
    sub.add_argument("--parent", help="end when the process of this number has ended")
    sub = command("export", _export, "Write what a run learned to a folder.", "run")
    sub.add_argument("--to", choices=["adapter", "lora", "merged"], required=True)
    sub.add_argument("--out", type=Path, required=True)
    sub.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    sub.add_argument(
        "--merge-base", choices=["original", "dequantised"], default="original",
        help="of a run on a quantised base: merge into the original one, or into the one that it was trained on",
    )  # fmt: skip
    command("methods", _methods, "List the fine-tuning methods.")
    command("presets", _presets, "List the presets and recipes.")
    sub = command("doctor", _doctor, "What this machine has.")
    sub.add_argument("--json", action="store_true")
    return parser


def _add_queue(parser: argparse.ArgumentParser) -> None:
    """The commands of `queue`; without one it lists what waits."""
    parser.set_defaults(run_command=_queue)
    parser.add_argument("--json", action="store_true")
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    add = actions.add_parser("add", help="put a training behind the others and return at once")
    add.add_argument("config", help="a YAML file, or the name of a recipe or task")
    add.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    add.set_defaults(run_command=_queue_add)
    for name, act, help in (
        ("remove", queue.remove, "take a run out; it can be resumed later"),
        ("hold", queue.hold, "let a run wait until it is released"),
        ("release", lambda run: queue.hold(run, False), "let a run that is on hold start in its turn"),
    ):
        one = actions.add_parser(name, help=help)
        one.add_argument("run")
        one.set_defaults(run_command=_queue_act, act=act)
    one = actions.add_parser("move", help="let a run start earlier or later")
    one.add_argument("run")
    one.add_argument("by", type=int, help="places: -1 is one earlier, 1 one later")
    one.set_defaults(run_command=lambda options: (queue.move(runs.find(options.run), options.by), _queue(options))[1])
    for name, on, help in (("pause", True, "start nothing new"), ("go-on", False, "start again what waits")):
        one = actions.add_parser(name, help=help)
        one.set_defaults(run_command=lambda options, on=on: (queue.pause(on), _queue_start(options))[1])
    actions.add_parser("start", help="start the next one if no studio is open").set_defaults(run_command=_queue_start)


def _queue(options: argparse.Namespace) -> None:
    order, waiting = queue.read(), queue.waiting()
    if options.json:
        found = [{"id": run.id, "name": run.title, "held": run.id in order.held} for run in waiting]
        print(json.dumps({"paused": order.paused, "waiting": found}, indent=2, ensure_ascii=False))
        return
    if order.paused:
        print("The queue is paused: nothing new starts.")
    for place, run in enumerate(waiting, 1):
        print(f"{place:>3} {run.id:<48} {'on hold' if run.id in order.held else ''}".rstrip())
    if not waiting:
        print("Nothing waits.")


def _queue_add(options: argparse.Namespace) -> None:
    run = runs.create(_load(options))
    print(f"run {run.id} in {run.folder}")
    queue.start_next()


def _queue_act(options: argparse.Namespace) -> None:
    run = runs.find(options.run)
    if run.state() != "queued":
        raise Problem("The run {run} does not wait in the queue.", "It is {state}.", run=run.title, state=run.state())
    options.act(run)
    _queue(options)


def _queue_start(options: argparse.Namespace) -> None:
    started = queue.start_next()
    print(f"{started.id} has started." if started else "Nothing was to be started here.")


def _pack(options: argparse.Namespace) -> None:
    content = parcel.pack(runs.find(options.run))
    try:
        file = options.out.open("xb")
    except OSError as error:
        raise Problem("{path} cannot be written.", "{error}.", path=options.out, error=error.strerror) from None
    try:
        with file:
            for chunk in content:
                file.write(chunk)
    except BaseException as error:
        options.out.unlink(missing_ok=True)  # half a zip is none
        if not isinstance(error, OSError):
            raise
        path = error.filename or options.out  # what is read has a name, what is written is open already
        raise Problem("The run could not be packed.", "{path}: {error}.", path=path, error=error.strerror) from None
    print(f"{options.out}, {options.out.stat().st_size / 1e6:.1f} MB")


def _import(options: argparse.Namespace) -> None:
    run = parcel.take_in(Path(options.folder))
    print(f"run {run.id} in {run.folder}")


def _notify(options: argparse.Namespace) -> int:
    wishes = notice.Wishes.read()
    if options.webhook is not None or options.command is not None:
        webhook = wishes.webhook if options.webhook is None else notice.check_webhook(options.webhook, anywhere=True)
        command = wishes.command if options.command is None else tuple(options.command)
        wishes = notice.Wishes(webhook, command, options.webhook is not None or wishes.anywhere)
        wishes.write()
    print(f"webhook  {'yes, ' + (urlsplit(wishes.webhook).hostname or '') if wishes.webhook else 'none'}")
    print(f"command  {' '.join(wishes.command) if wishes.command else 'none'}")
    return 2 if options.test and notice.tell(runs.find(options.test), wishes) else 0


def _load(options: argparse.Namespace) -> Config:
    return presets.load(options.config, dict(parse_assignment(text) for text in options.set))


def _train(options: argparse.Namespace) -> int:
    run = runs.create(_load(options), folder=options.run_dir, here=True)
    print(f"run {run.id} in {run.folder}")
    return _work_here(run)


def _work(options: argparse.Namespace) -> int:
    from core.engine import worker

    run = runs.find(options.run)
    try:
        status = worker.main(run)
        notice.tell(run)
    finally:
        queue.follow(run)  # with no studio open, who ends starts the next one
    return status


def _resume(options: argparse.Namespace) -> int:
    run = runs.find(options.run)
    if run.worker() is not None and run.result() is None:
        raise Problem("The run {run} is still running.", to_do="Stop it first.", run=run.id)
    told = dict(parse_assignment(text) for text in options.set)
    if not changes.can_go_on(run, told):
        raise Problem(
            "The run {run} cannot be resumed.",
            "It is {state}.",
            "Make it longer with --set train.epochs=5, or start a new one with its settings.",
            run=run.id,
            state=run.state(),
        )
    if told:
        changes.ask(run, told)
    runs.note_start(run)  # before it is seen to wait: an open studio would start it
    run.ask("resume")
    return _work_here(run)


def _change(options: argparse.Namespace) -> None:
    run = runs.find(options.run)
    if run.state() == "completed":
        raise Problem(
            "The run {run} is already completed.", to_do="Make it longer with `python -m core resume`.", run=run.id
        )
    changes.ask(run, dict(parse_assignment(text) for text in options.set))
    print("It is taken at the next step." if run.worker() else "It is taken when the run is resumed.")


def _work_here(run: Run) -> int:
    """Work in this process, with the numbers on the screen; what waits in the queue comes after it."""
    try:
        return _work_on(run)
    finally:
        queue.follow(run)


def _work_on(run: Run) -> int:
    from core.engine import worker

    done = threading.Event()
    printer = threading.Thread(target=_print_progress, args=(run, done), daemon=True)
    printer.start()
    try:
        result = worker.work(run)
    finally:
        done.set()
        printer.join(timeout=2)
    for problem in advice.advise(run.metrics()):
        print(problem, file=sys.stderr)
    notice.tell(run)
    if result["outcome"] == "failed":
        print(result["message"], file=sys.stderr)
        return 2
    if result["message"]:
        print(result["message"], file=sys.stderr)
    print(
        f"{result['outcome']} at step {result['step']} of {result['steps']}; adapter in {run.folder / 'adapter'}"
        if result["adapter"]
        else result["outcome"]
    )
    return 0


_TOLD = (
    "damaged_checkpoint",
    "not_finite",
    "out_of_memory",
    "no_room_to_step",
    "best_lost",
    "changed",
    "course",
    "stopped_early",
)
"""Events that are printed while somebody looks on."""


def _print_progress(run: Run, done: threading.Event) -> None:
    metrics = runs.Metrics(run.folder / "metrics.jsonl")
    metrics.read()
    steps, evals, events = len(metrics.steps), len(metrics.evals), len(metrics.events)
    while True:
        finished = done.wait(0.5)
        metrics.read()
        for event in metrics.events[events:]:
            if event["event"] in _TOLD:
                facts = ", ".join(
                    f"{key} {value}" for key, value in event.items() if key not in ("event", "step", "time")
                )
                print(f"step {event.get('step', 0)}: {event['event'].replace('_', ' ')}: {facts}", flush=True)
        events = len(metrics.events)
        steps, evals = min(steps, len(metrics.steps)), min(evals, len(metrics.evals))
        for line in metrics.evals[evals:]:
            loss = "not finite" if line["eval_loss"] is None else f"{line['eval_loss']:.4f}"
            more = "".join(
                f" · {name.removeprefix('eval_').replace('_', ' ')} {value:.4g}"
                for name, value in line.items()
                if name.startswith("eval_") and name != "eval_loss" and value is not None
            )
            print(f"step {line['step']}: evaluation loss {loss}{more}")
        if len(metrics.steps) > steps:
            line = metrics.steps[-1]
            loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
            print(
                f"step {line['step']}/{line['steps']} loss {loss} · {line['tokens_per_second']:.0f} tokens/s · {line['eta_s']:.0f} s left",
                flush=True,
            )
        steps, evals = len(metrics.steps), len(metrics.evals)
        if finished:
            return


def _stop(options: argparse.Namespace) -> None:
    run = _find_active(options.run)
    run.ask("discard" if options.discard else "stop")
    if run.state() == "queued" and not queue.is_starting(run):
        queue.remove(run)  # there is no worker that would take the wish
        print("It was taken out of the queue.")
        return
    print(
        "It stops; what it learned is thrown away."
        if options.discard
        else "It stops within seconds; what it learned is kept."
    )


def _save(options: argparse.Namespace) -> None:
    run = _find_active(options.run)
    if run.state() == "queued":
        raise Problem("The run {run} is not running.", "It is {state}.", run=run.id, state=run.state())
    run.ask("save")
    print("It saves a checkpoint and goes on.")


def _find_active(name: str) -> Run:
    """The run of that name, which is at work or waits for it."""
    run = runs.find(name)
    if run.state() not in runs.ACTIVE:
        raise Problem("The run {run} is not running.", "It is {state}.", run=run.id, state=run.state())
    return run


def _runs(options: argparse.Namespace) -> None:
    found = []
    for run in runs.all_runs():
        # One folder that another program made or broke must not hide the others.
        with contextlib.suppress(Problem, KeyError, TypeError, AttributeError):
            found.append(runs.summarise(run))
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    for run in found:
        step = f"{run.get('step', 0)}/{run['steps']}" if run.get("steps") else ""
        loss = f"{run['loss']:.4f}" if run.get("loss") is not None else ""
        print(f"{run['id']:<48} {run['state']:<12} {step:>12} {loss:>8}")
    if not found:
        print("No runs yet. Start one with `python -m core train chat`.")


def _estimate(options: argparse.Namespace) -> None:
    from core import dataset, fit

    config = _load(options)
    estimate = fit.estimate(
        config, len(dataset.load(config.data.train, config.data.format, config.data.columns).examples)
    )
    facts = vars(estimate) | {"share": estimate.share}
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        for name, value in facts.items():
            print(f"{name:<12} {value}")


def _assist(options: argparse.Namespace) -> None:
    # Rows are spelled without torch, whose start takes longer than that of all else.
    sys.modules["torch"] = None  # type: ignore[assignment]
    from core.engine.crew import assist

    assist()


def _check_data(options: argparse.Namespace) -> int:
    from core.engine.helper import start_helpers
    from core.parent import end_with

    if options.parent is not None:
        end_with(options.parent)
    changes = dict(parse_assignment(text) for text in options.set)
    name = options.file
    if Path(name).suffix not in (".yaml", ".yml"):
        changes = {"model.name": options.model, "data.train": name} | changes
        name = options.task

    def tell(done: int, total: int) -> None:
        if options.out is not None:
            runs.write_whole(options.out / "progress.json", json.dumps({"done": done, "total": total}))

    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        for old in ("report.json", "problem.json"):
            (options.out / old).unlink(missing_ok=True)
    try:
        config = presets.load(name, changes)
        # They start while this process loads what takes it longer.
        with contextlib.ExitStack() as started:
            helpers = start_helpers(sources.size(config.data.train, config.data.eval))
            for helper in helpers:
                started.callback(helper.end)
            from core.engine.inspection import inspect

            report = inspect(config, options.out, tell, helpers)
    except Problem as problem:
        if options.out is not None:
            runs.write_whole(options.out / "problem.json", json.dumps(problem.to_data()))
        raise
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print_report(report)
    return 0 if report["starts"] else 2


def _print_report(report: Mapping[str, Any]) -> None:
    """An inspection as lines of text: the numbers, then what was found, worst first."""
    for name, value in report.items():
        if not isinstance(value, list | dict):
            print(f"{name:<16} {value:.4g}" if isinstance(value, float) else f"{name:<16} {value}")
    for at in report["cut_at"]:
        print(f"max_length {at['max_length']:>7} cuts {at['rows']:.1%} of the rows, {at['tokens']:.1%} of the tokens")
    for found in report["findings"]:
        rows = Finding.from_data(found).list_rows(5)
        print(f"[{found['severity']}] {found['says']}" + (f" (rows {rows})" if found["rows"] else ""))
    for problem in report["problems"]:
        print(problem)


def _evaluate(options: argparse.Namespace) -> None:
    from core.engine.evaluate import evaluate

    if not 0 <= options.scale <= 2:
        raise Problem("--scale cannot be {scale}.", to_do="It goes from 0 to 2.", scale=options.scale)
    run = _find_run(options.target)
    if run is not None:
        data = run.config().to_data()
    else:
        data = {"model": {"name": options.target}, "task": options.task or _likeliest_task(options.target)}
    for text in options.set:
        assign(data, *parse_assignment(text))
    report = evaluate(
        Config.read(data), options.data, None if options.base else run, merged=options.merged, scale=options.scale
    )
    if options.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for name, value in report.items():
        if name not in ("labels", "confusion", "weights"):
            print(f"{name:<14} {value:.4f}" if isinstance(value, float) else f"{name:<14} {value}")
    if "confusion" in report:
        _print_confusion(report["labels"], report["confusion"])


def _find_run(name: str) -> Run | None:
    """The run of that name; None for what is a model."""
    try:
        return runs.find(name)
    except Problem:
        if name == PLAYGROUND or (Path(name).expanduser() / "config.json").exists() or name.count("/") == 1:
            return None
        raise


def _likeliest_task(model: str) -> str:
    folder = locate(model, download=True)
    assert folder is not None
    return (describe(folder).tasks or ("chat",))[0]


def _print_confusion(labels: Sequence[str], table: Sequence[Sequence[Any]]) -> None:
    """Few labels as a table, a row for each true label; of many, what is mistaken for what the most often."""
    if table and isinstance(table[0][0], list):
        for label, ((_, surplus), (missed, both)) in zip(labels, table, strict=True):
            print(f"{label:<30} right {both} · missed {missed} · too many {surplus}")
    elif len(labels) <= 12:
        width = max(6, *(len(label[:20]) for label in labels)) + 1
        print("true \\ given".ljust(21) + "".join(label[:20].rjust(width) for label in labels))
        for label, counts in zip(labels, table, strict=True):
            print(label[:20].ljust(21) + "".join(str(count).rjust(width) for count in counts))
    else:
        wrong = [(n, labels[i], labels[j]) for i, row in enumerate(table) for j, n in enumerate(row) if i != j and n]
        for count, true, given in sorted(wrong, reverse=True)[:10]:
            print(f"{count:>6} x {true} taken for {given}")


def _chat(options: argparse.Namespace) -> None:
    run = runs.find(options.run)
    from core.engine.chat import open_chat  # some seconds, which nobody should wait to be told of a mistake

    respond = open_chat(run, base=options.base, merged=options.merged, scale=options.scale, context=options.context)
    sampling: dict[str, Any] = {
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "seed": options.seed,
    }
    history: list[tuple[str, str]] = []
    while True:
        prompt = options.prompt if options.prompt is not None else _ask()
        if prompt is None:
            return
        history.append(("user", prompt))
        answer = ""
        for piece in respond(history, sampling):
            print(piece, end="", flush=True)
            answer += piece
        print()
        history.append(("assistant", answer))
        if options.prompt is not None:
            return


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


def _serve(options: argparse.Namespace) -> int:
    from core.engine.server import serve

    return serve(
        options.model, options.revision, options.host, options.port, ready=options.ready, parent=options.parent,
        task=options.task, quantization=options.quantization,
    )  # fmt: skip


def _export(options: argparse.Namespace) -> None:
    run = runs.find(options.run)
    from core.engine.export import export

    facts = export(
        run,
        options.to,
        options.out,
        options.dtype,
        lambda doing: print(doing.replace("_", " "), flush=True),
        merge_base=options.merge_base,
    )
    if "difference" in facts:
        print(f"checked: logits differ by at most {facts['difference']:.2g} from the applied adapter")
    if "tested_difference" in facts:
        print(f"merged into the {facts['merge_base']} base: by {facts['tested_difference']:.2g} from what was tested")
    print(f"{len(facts['files'])} files in {options.out}")


def _methods(options: argparse.Namespace) -> None:
    from core import methods

    for name, method in methods.catalogue().items():
        print(f"{name:<10} {method.title}: {method.about}")


def _presets(options: argparse.Namespace) -> None:
    for kind, found in (("task", presets.tasks()), ("size", presets.sizes())):
        for name, preset in found.items():
            print(f"{kind:<8} {name:<20} {preset.about}")
    for name, path in presets.recipes().items():
        print(f"{'recipe':<8} {name:<20} {path}")


def _doctor(options: argparse.Namespace) -> None:
    from core.engine.device import describe_device

    facts = describe_device()
    print(json.dumps(facts) if options.json else "\n".join(f"{name:<10} {value}" for name, value in facts.items()))


if __name__ == "__main__":
    garbage.put_off()
    sys.exit(main())
