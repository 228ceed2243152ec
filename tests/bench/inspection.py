"""Measures how many rows a second an inspection reads, beside what is usually done with the same file.

    python tests/bench/inspection.py --rows 20000 --rounds 3
    python tests/bench/inspection.py --rows 100000 --sentences a.json b.jsonl  # conversations of sentences out of these
    python tests/bench/inspection.py --rows 1000000 --memory   # how much memory ours takes, over what Python has taken before

The usual way is `datasets.map` over `apply_chat_template` with the mask of the assistant's tokens, in batches, with a
process for each core. Both read the same file with the same tokenizer and template, in processes of their own that take
turns; what is compared are the medians of rows a second, the start of Python and the import of libraries left out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"

WORDS = "the harbour wakes before dawn and every boat leaves with its nets folded so that none of them can tear on the stones"


def write_rows(path: Path, count: int) -> None:
    """Conversations of one to three questions, no two alike."""
    draw, words = random.Random(0), WORDS.split()
    with path.open("w") as file:
        for number in range(count):
            turns = []
            for _ in range(draw.choice((1, 1, 2, 3))):
                question = f"{number} " + " ".join(draw.choices(words, k=draw.randint(5, 30)))
                answer = " ".join(draw.choices(words, k=draw.randint(10, 80)))
                turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")


def write_sentences(path: Path, count: int, sources: list[str]) -> None:
    """Conversations whose turns are sentences of these data sets, in any order."""
    from core import dataset
    from core.judgement import texts_of

    texts = itertools.chain.from_iterable(texts_of(one) for source in sources for one in dataset.load(source).examples)
    found = (sentence.strip() for text in texts for sentence in re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n", text))
    sentences = list(dict.fromkeys(one for one in found if 4 < len(one) < 300))
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            turns = []
            for _ in range(draw.choice((1, 1, 2, 3))):
                for role, most in (("user", 2), ("assistant", 6)):
                    said = " ".join(draw.sample(sentences, draw.randint(1, most)))
                    turns.append({"role": role, "content": said})
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    print(f"{len(sentences)} sentences, {path.stat().st_size / 1e6:.0f} MB")


def measure_usual(path: Path) -> tuple[int, int, float]:
    """Rows, learned tokens and seconds of the usual way."""
    import datasets
    from transformers import AutoTokenizer

    from core.model import locate

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(locate("playground"))
    # The same text as the model's own template, with the answers marked as this way needs it.
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
    )

    def spell(batch: dict) -> dict:
        told = tokenizer.apply_chat_template(
            batch["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, truncation=True, max_length=512
        )  # fmt: skip
        return {"input_ids": told["input_ids"], "mask": told["assistant_masks"]}

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        done = data.map(spell, batched=True, num_proc=os.cpu_count(), remove_columns=data.column_names)
        seconds = time.monotonic() - began
        return len(done), sum(map(sum, done["mask"])), seconds


def measure_ours(path: Path) -> tuple[int, int, float]:
    """Rows, learned tokens and seconds of an inspection that keeps every row."""
    from core import garbage, presets, sources
    from core.engine.helper import start_helpers

    # As the command line does: helpers start while this process does.
    garbage.put_off()
    helpers = start_helpers(sources.size(str(path)))
    from core.engine.inspection import inspect

    config = presets.load("chat", {"data.train": str(path), "data.max_length": 512})
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        report = inspect(config, Path(folder), None, helpers)
        return report["trained_rows"], report["trained_tokens"], time.monotonic() - began


def measure_memory(path: Path) -> tuple[int, float, float]:
    """Rows, the most memory that an inspection takes beyond the bare process with its libraries, and with all of its helper
    processes (GB), and seconds."""
    import psutil

    # torch and transformers are there before the memory is looked at
    from core.engine import inspection  # noqa: F401

    process, peak, ended = psutil.Process(), [0], threading.Event()
    bare = process.memory_info().rss

    def watch() -> None:
        while not ended.wait(0.2):
            used = process.memory_info().rss
            for helper in process.children():
                with contextlib.suppress(psutil.Error):
                    used += helper.memory_info().rss
            peak[0] = max(peak[0], used)

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows, _, seconds = measure_ours(path)
    ended.set()
    watcher.join()
    return rows, (peak[0] - bare) / 1e9, seconds


def main() -> None:
    """Take turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=("usual", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--sentences", nargs="*", default=[])
    options = parser.parse_args()
    if options.one:
        print("RESULT " + json.dumps({"usual": measure_usual, "ours": measure_ours}[options.one](options.file)))
        return
    if options.memory:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, options.rows)
            rows, memory, seconds = measure_memory(path)
            print(
                f"{rows} rows, {path.stat().st_size / 1e6:.0f} MB: {memory:.2f} GB, {seconds:.0f} s, {rows / seconds:.0f} rows/s"
            )
        return
    paces: dict[str, list[float]] = {"usual": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        if options.sentences:
            write_sentences(path, options.rows, options.sentences)
        else:
            write_rows(path, options.rows)
        for _ in range(options.rounds):
            for way, told in paces.items():
                command = [sys.executable, __file__, "--one", way, "--file", str(path)]
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
                line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
                rows, learned, seconds = json.loads(line.removeprefix("RESULT "))
                told.append(rows / seconds)
                print(f"{way:6} {rows} rows, {learned} learned tokens, {seconds:.1f} s, {rows / seconds:.0f} rows/s")
    usual, ours = (statistics.median(told) for told in paces.values())
    print(f"medians: usual {usual:.0f} rows/s, ours {ours:.0f} rows/s, {ours / usual:.2f} times")


if __name__ == "__main__":
    main()
