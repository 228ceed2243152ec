"""Measures what the built-in model learns from the three samples: `python tests/bench/playground.py [style facts sentiment]`.

Trains each recipe in a home of its own through the command line's own code and asks the rows that were never trained on,
before and after. Prints a table for core/playground/README.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does


def main(names: list[str]) -> None:
    os.environ["ATELIER_HOME"] = tempfile.mkdtemp()
    from core import dataset, playground, presets, runs
    from core.engine import worker
    from core.engine.chat import Speaker
    from core.engine.generate import GREEDY
    from core.runs import Run

    def exact_match(speaker: Speaker, run: Run | None, held_out: Path) -> float:
        weights, provenance = speaker.choose(run)
        examples = dataset.load(held_out).examples
        right = 0
        for example in examples:
            speech = speaker.speak(
                example.messages[:-1], GREEDY.model_copy(update={"max_tokens": 60}), weights, provenance
            )
            right += "".join(speech.pieces).strip() == example.messages[-1].content.strip()
        return right / len(examples)

    for name in names:
        sample = playground.SAMPLES[name]
        config = presets.load(f"playground-{name}")
        run = runs.create(config)
        speaker = Speaker(config.model)
        before = exact_match(speaker, None, sample.held_out) if sample.held_out else None
        began = time.monotonic()
        result = worker.work(run)
        seconds = time.monotonic() - began
        after = exact_match(speaker, run, sample.held_out) if sample.held_out else None
        evals = run.metrics().evals
        row = {
            "sample": name,
            "steps": result["steps"],
            "seconds": round(seconds),
            "loss": [round(evals[0]["eval_loss"], 3), round(evals[-1]["eval_loss"], 3)],
            "exact match": [before, after],
        }
        print(json.dumps(row), flush=True)
        for answer in run.samples():
            if answer["step"] in (0, result["step"]):
                print(f"  step {answer['step']:>4}  {answer['prompt']!r}: {answer['answer']}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["style", "facts", "sentiment"])
