"""Kill a training again and again, resume it each time, and compare what it leaves with a run that nobody touched.

    python tests/bench/kill.py --kills 100

Each kill is a SIGKILL to the real worker, `python -m core work FOLDER`: half of them at a random instant of its life, half
while a checkpoint is being written. A run that comes to its end is compared, bit for bit, and another one is begun, until
there were enough kills. Ends with status 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from core import presets, runs  # noqa: E402
from core.runs import Run  # noqa: E402

TIMED = {"time", "tokens_per_second", "eta_s", "memory_gb", "seconds"}
#: Shuffling is always on; dropout, packing, accumulation, early stopping and several epochs are wanted here.
SETTINGS: dict[str, Any] = {
    "method.dropout": 0.1, "method.rank": 4, "train.batch_size": 2, "train.gradient_accumulation": 2, "train.max_steps": 30,
    "train.learning_rate": 5e-3, "train.eval_every": 7, "train.save_every": 3, "train.keep": 2, "train.early_stopping": 5,
    "data.max_length": 96, "data.packing": True, "data.eval_rows": 8, "samples.max_new_tokens": 4,
}  # fmt: skip


def left_behind(run: Run) -> dict[str, Any]:
    """What a finished run leaves, without what the clock says."""
    metrics, newest = run.metrics(), run.checkpoints()[-1]
    lines = [{key: line[key] for key in line.keys() - TIMED} for line in metrics.steps + metrics.evals]
    state = json.loads((newest / "state.json").read_text())
    result = run.result() or {}
    return {
        "outcome": [result.get(key) for key in ("outcome", "step", "steps", "kept", "kept_step")],
        "lines": lines,
        "samples": run.samples(),
        "state": {key: state[key] for key in state.keys() - TIMED},
        "adapter": (run.folder / "adapter" / "adapter_model.safetensors").read_bytes(),
        **{path.name: path.read_bytes() for path in newest.glob("*.safetensors")},
    }


def start(run: Run) -> subprocess.Popen[bytes]:
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "core", "work", str(run.folder)], cwd=ROOT, stdout=log, stderr=log
        )


def kill_sometime(run: Run, worker: subprocess.Popen[bytes], draw: random.Random, life: float) -> str:
    """Kill a worker, or see it end; says which."""
    saves, end, inside = draw.randint(1, 4), time.monotonic() + draw.uniform(0, life / 2), False
    saving = draw.random() < 0.5
    while worker.poll() is None:
        was, inside = inside, saving and any((run.folder / "checkpoints").glob(".step-*"))
        saves -= inside and not was
        if (saving and not saves) or (not saving and time.monotonic() >= end):
            time.sleep(draw.uniform(0, 0.02) if saving else 0)
            worker.kill()
            worker.wait()
            return "saving" if saving else "anywhere"
        time.sleep(0.0005 if saving else 0.01)
    return ""


def main() -> int:
    """Kill, resume, compare; print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--task", default="chat")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    draw, wrong, kills, resumed_from = random.Random(options.seed), 0, {"saving": 0, "anywhere": 0}, []
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"ATELIER_HOME": home, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        from core.config import parse_assignment

        changes = SETTINGS | dict(parse_assignment(text) for text in options.set)
        config = presets.load(options.task, changes)
        untouched = runs.create(config)
        began = time.monotonic()
        assert start(untouched).wait() == 0, untouched.log_tail()
        life = time.monotonic() - began
        expected = left_behind(untouched)
        print(f"untouched: {life:.1f} s, {expected['outcome']}", flush=True)
        while sum(kills.values()) < options.kills:
            run = runs.create(config)
            while True:
                worker = start(run)
                how = kill_sometime(run, worker, draw, life) if sum(kills.values()) < options.kills else ""
                if not how:
                    worker.wait()
                    break
                kills[how] += 1
                newest = run.checkpoints()
                resumed_from.append(newest[-1].name if newest else "the start")
            found = left_behind(run)
            differs = [key for key in expected if found[key] != expected[key]]
            wrong += bool(differs)
            print(
                f"{sum(kills.values())} kills so far; {found['outcome']}; differs in: {differs or 'nothing'}",
                flush=True,
            )
    print(
        f"{kills['anywhere']} kills anywhere, {kills['saving']} in a save; resumed from {len(set(resumed_from))} different "
        f"places; runs that differ: {wrong}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
