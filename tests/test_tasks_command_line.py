"""Classifiers and readers through the command line and the serving process."""

from __future__ import annotations

import csv
import functools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ground import ROOT, Done, run_core

QUICK = (
    "--set", "train.epochs=12", "--set", "train.batch_size=6", "--set", "train.eval_every=0", "--set", "train.save_every=0",
    "--set", "data.max_length=64", "--set", "method.rank=4", "--set", "method.dropout=0", "--set", "train.learning_rate=0.01",
    "--set", "train.head_learning_rate=0.01", "--set", "data.eval_fraction=0.2",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def core(place: Path) -> Callable[..., Done]:
    return functools.partial(run_core, place)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tables to classify, of two and of three classes, and questions about texts; some have no answer."""
    folder, draw = tmp_path_factory.mktemp("rows"), random.Random(0)
    words = {"pet": "the cat sat".split(), "hue": "what is colour of sky".split(), "sum": "1 2 3 4".split()}

    def fill(name: str, count: int) -> str:
        return " ".join(draw.choice(words[name]) for _ in range(count))

    found = {}
    for file, names in (("two", ["pet", "hue"]), ("three", ["pet", "hue", "sum"])):
        found[file] = folder / f"{file}.csv"
        with found[file].open("w", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["text", "intent"])
            writer.writerows([fill(names[n % len(names)], 5), names[n % len(names)]] for n in range(48))
    rows = []
    for number in range(48):
        before = fill("pet", draw.randint(2, 6))
        there = number % 6 != 0
        answers = {"text": ["qx"], "answer_start": [len(before) + 1]} if there else {"text": [], "answer_start": []}
        rows.append(
            {
                "context": f"{before} {'qx' if there else 'sky'} {fill('hue', 3)}",
                "question": "what is it",
                "answers": answers,
            }
        )
    found["read"] = folder / "read.jsonl"
    found["read"].write_text("\n".join(map(json.dumps, rows)))
    return found


@pytest.fixture(scope="module")
def trained(core: Callable, place: Path, family: Callable[[str], Path], files: dict[str, Path]) -> dict[str, Path]:
    """A run of each, on one base model."""
    found = {}
    for name, task in (("two", "classification"), ("three", "classification"), ("read", "extractive_qa")):
        folder = place / "runs" / f"20200101-000000-{name}"
        base, rows = f"model.name={family('bert')}", f"data.train={files[name]}"
        done = core("train", task, *QUICK, "--set", base, "--set", rows, "--run-dir", folder)
        assert "accuracy" in done.stdout if task == "classification" else "exact match" in done.stdout
        found[name] = folder
    return found


def first(path: Path, label: str) -> str:
    """The first text of that class: a tiny model is sure only of what it has seen."""
    with path.open(newline="") as opened:
        return next(row["text"] for row in csv.DictReader(opened) if row["intent"] == label)


def answered(path: Path) -> str:
    """The first context that holds its answer."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return next(row["context"] for row in rows if row["answers"]["text"])


def test_chat_says_the_labels_with_their_probabilities(
    core: Callable, trained: dict[str, Path], files: dict[str, Path]
) -> None:
    text = first(files["three"], "pet")
    lines = core("chat", trained["three"], "--prompt", text).stdout.splitlines()
    pairs = [line.split() for line in lines]
    assert pairs[0][1] == "pet"
    numbers = [float(number) for number, _ in pairs]
    assert numbers == sorted(numbers, reverse=True) and sum(numbers) == pytest.approx(1, abs=0.01)
    assert core("chat", trained["three"], "--prompt", text, "--merged").stdout.splitlines() == lines
    refused = core("chat", trained["three"], "--prompt", "x", "--base", check=False)
    assert (refused.returncode, "begins at random" in refused.stderr) == (2, True)


def test_chat_marks_the_answer_in_its_context(core: Callable, trained: dict[str, Path], files: dict[str, Path]) -> None:
    ask = ("chat", trained["read"], "--prompt", "what is it")
    assert core(*ask, "--context", answered(files["read"])).stdout.startswith("qx (")
    refused = core(*ask, check=False)
    assert (refused.returncode, "--context" in refused.stderr) == (2, True)


def test_evaluate(
    core: Callable, trained: dict[str, Path], files: dict[str, Path], family: Callable[[str], Path]
) -> None:
    report = json.loads(core("evaluate", trained["two"], "--data", files["two"], "--json").stdout)
    assert (report["task"], report["rows"], report["refused_rows"]) == ("classification", 48, 0)
    assert report["labels"] == ["hue", "pet"]
    table = report["confusion"]
    assert sum(map(sum, table)) == 48
    assert report["accuracy"] == pytest.approx((table[0][0] + table[1][1]) / 48)
    assert report["accuracy"] > 0.9 and report["loss"] < 0.3
    assert report["weights"]["adapter"] == trained["two"].name
    assert "true \\ given" in core("evaluate", trained["two"], "--data", files["two"]).stdout
    # Rows with a label that the run never learned are told and left out.
    other = json.loads(core("evaluate", trained["two"], "--data", files["three"], "--json").stdout)
    assert (other["rows"], other["refused_rows"]) == (32, 16)
    read = json.loads(core("evaluate", trained["read"], "--data", files["read"], "--json").stdout)
    assert read["rows"] == 48 and read["exact_match"] > 0.8 and read["f1"] >= read["exact_match"]
    wrong = core("evaluate", trained["two"], "--data", files["read"], check=False)
    assert (wrong.returncode, "fits extractive_qa" in wrong.stderr or "extractive_qa" in wrong.stderr) == (2, True)
    talk = files["two"].with_name("talk.jsonl")
    talk.write_text(json.dumps({"prompt": "what is 3", "completion": "the cat"}) + "\n")
    base = json.loads(core("evaluate", family("llama"), "--data", talk, "--json").stdout)
    assert base["task"] == "chat" and base["loss"] > 0 and base["weights"]["adapter"] is None


def test_estimate_and_check_data_know_the_tasks(
    core: Callable, files: dict[str, Path], family: Callable[[str], Path]
) -> None:
    report = json.loads(
        core("check-data", files["two"], "--model", family("bert"), "--task", "classification", "--json").stdout
    )
    assert report["labels"] == {"pet": 24, "hue": 24}
    assert (report["format"], report["tasks"], report["trained_rows"]) == ("labels", ["classification"], 48)
    read = json.loads(
        core("check-data", files["read"], "--model", family("bert"), "--task", "extractive_qa", "--json").stdout
    )
    assert read["trained_rows"] == 48 and "extractive_qa" in read["tasks"]
    marked = [[text for text, learned in read["preview"] if learned]]
    assert marked == [[]]  # the first row has no answer
    for command in ("train", "estimate"):
        refused = core(
            command, "chat", "--set", f"model.name={family('bert')}", "--set", f"data.train={files['two']}", check=False
        )
        assert refused.returncode == 2 and "cannot do the task chat" in refused.stderr


@pytest.fixture(scope="module")
def client(
    place: Path, trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, family: Callable[[str], Path]
) -> Iterator[httpx.Client]:
    ready = tmp_path_factory.mktemp("serve") / "ready.json"
    command = [sys.executable, "-m", "core", "serve", "--model", str(family("bert")), "--port", "0", "--ready", str(ready), "--parent", str(os.getpid())]  # fmt: skip
    child = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"ATELIER_HOME": str(place), "ATELIER_SERVE_TOKEN": "secret"}
    )
    end = time.time() + 120
    while not ready.exists() and child.poll() is None and time.time() < end:
        time.sleep(0.1)
    with httpx.Client(
        base_url=json.loads(ready.read_text())["url"], headers={"Authorization": "Bearer secret"}, timeout=60
    ) as found:
        yield found
    child.terminate()
    child.wait(timeout=20)


def test_runs_of_several_kinds_answer_in_turn(
    client: httpx.Client, trained: dict[str, Path], files: dict[str, Path]
) -> None:
    def post(path: str, **body: Any) -> dict[str, Any]:
        return client.post(path, json=body).raise_for_status().json()

    names = {name: folder.name for name, folder in trained.items()}
    listed = {model["id"]: model["task"] for model in client.get("/v1/models").json()["data"]}
    assert listed[names["two"]] == listed[f"{names['two']}:merged"] == "classification"
    assert listed[names["read"]] == "extractive_qa"
    text, context = first(files["two"], "pet"), answered(files["read"])
    pet = post("/v1/classify", model=names["two"], input=text)
    assert [one["label"] for one in pet["labels"]] == ["pet", "hue"] and pet["labels"][0]["probability"] > 0.8
    assert sum(one["probability"] for one in pet["labels"]) == pytest.approx(1)
    weights = pet["weights"]
    assert (weights["adapter"], weights["scale"], weights["merged"]) == (names["two"], 1.0, False)
    assert pet["several"] is False and len(weights["digest"]) == 12
    three = post("/v1/classify", model=names["three"], input=first(files["three"], "sum"))
    assert len(three["labels"]) == 3 and three["labels"][0]["label"] == "sum"
    found = post("/v1/answer", model=names["read"], question="what is it", context=context)
    assert (found["answer"], found["start"], found["end"]) == ("qx", context.index("qx"), context.index("qx") + 2)
    assert 0.2 < found["probability"] <= 1 and found["weights"]["adapter"] == names["read"]
    without = json.loads(files["read"].read_text().splitlines()[0])["context"]
    none = post("/v1/answer", model=names["read"], question="what is it", context=without)
    assert (none["answer"], none["start"], none["end"]) == ("", 0, 0) and 0 < none["probability"] <= 1
    assert post("/v1/classify", model=names["two"], input=text)["labels"] == pet["labels"]
    merged = post("/v1/classify", model=f"{names['two']}:merged", input=text)
    assert merged["weights"]["merged"] is True
    assert merged["labels"][0]["probability"] == pytest.approx(pet["labels"][0]["probability"], abs=1e-4)
    off = post("/v1/classify", model=names["two"], input=text, scale=0.0)
    assert off["labels"][0]["probability"] != pytest.approx(pet["labels"][0]["probability"], abs=1e-4)


def test_what_cannot_be_asked_is_refused_in_words(client: httpx.Client, trained: dict[str, Path]) -> None:
    names = {name: folder.name for name, folder in trained.items()}
    for path, body, words in (
        ("/v1/classify", {"model": "base", "input": "x"}, "begins at random"),
        ("/v1/classify", {"model": names["read"], "input": "x"}, "trained for the task extractive_qa"),
        ("/v1/answer", {"model": names["two"], "question": "x", "context": "y"}, "trained for the task classification"),
        ("/v1/answer", {"model": names["read"], "question": "x"}, "context"),
        ("/v1/classify", {"model": names["two"]}, "input"),
        ("/v1/classify", {"model": names["two"], "input": ""}, "input"),
        ("/v1/classify", {"model": names["two"], "input": "x", "scale": 3}, "scale"),
        ("/v1/classify", {"model": "nobody", "input": "x"}, "nobody"),
        ("/v1/chat/completions", {"model": names["two"], "messages": [{"role": "user", "content": "x"}]}, "asked otherwise"),
        ("/v1/chat/completions", {"model": "base", "messages": [{"role": "user", "content": "x"}]}, "cannot do this"),
    ):  # fmt: skip
        reply = client.post(path, json=body)
        assert reply.status_code == 400, path
        assert words in reply.json()["error"]["message"] and reply.json()["error"]["problem"]
    assert client.post("/v1/classify", content=b"{").status_code == 400
    answer = client.post("/v1/classify", json={"model": names["two"], "input": "the cat"})
    assert answer.status_code == 200  # the refusals cost nothing
