"""The whole flow through the real command line, as separate processes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from ground import ROOT, run_core

QUICK = (
    "--set", "train.max_steps=6", "--set", "train.eval_every=3", "--set", "train.save_every=2",
    "--set", "data.max_length=64", "--set", "method.rank=4", "--set", "train.learning_rate=0.01", "--set", "samples.max_new_tokens=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def core(place: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"ATELIER_HOME": str(place)}
        done = subprocess.run(
            [sys.executable, "-m", "core", *map(str, arguments)],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def trained(
    core: Callable, family: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    done = core(
        "train",
        "chat",
        *QUICK,
        "--set",
        f"model.name={family('llama')}",
        "--set",
        f"data.train={rows_file}",
        "--run-dir",
        folder,
    )
    assert "completed at step 6 of 6" in done.stdout
    assert "evaluation loss" in done.stdout
    return folder


def test_train_writes_what_the_house_promises(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {
        "config.yaml",
        "worker.json",
        "metrics.jsonl",
        "samples.jsonl",
        "checkpoints",
        "adapter",
        "result.json",
    } <= names
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["train"]["max_steps"] == 6
    assert config["origins"]["train.max_steps"] == "you"
    assert json.loads((trained / "result.json").read_text())["outcome"] == "completed"


def test_chat(core: Callable, place: Path, trained: Path) -> None:
    ask = ("chat", trained, "--prompt", "what is 3", "--max-tokens", "5", "--temperature", "0")
    assert core(*ask).stdout.strip()
    for how in (["--merged"], ["--base"], ["--scale", "0.5"]):
        assert run_core(place, *ask, *how).stdout.strip()


@pytest.mark.parametrize(
    "wrong", [["--temperature", "-1"], ["--temperature", "nan"], ["--max-tokens", "0"], ["--scale", "3"]]
)
def test_chat_refuses_impossible_settings_in_words(place: Path, trained: Path, wrong: list[str]) -> None:
    done = run_core(place, "chat", trained, "--prompt", "x", *wrong, check=False)
    assert done.returncode == 2
    assert "cannot be" in done.stderr


def test_merged_answers_as_applied(place: Path, trained: Path) -> None:
    core = functools.partial(run_core, place)
    ask = ("--prompt", "what is 3", "--max-tokens", "12", "--temperature", "0")
    assert core("chat", trained, *ask, "--merged").stdout == core("chat", trained, *ask).stdout
    assert core("chat", trained, *ask, "--base").stdout == core("chat", trained, *ask, "--scale", "0").stdout


@pytest.mark.parametrize("to", ["adapter", "merged"])
def test_export(core: Callable, place: Path, trained: Path, tmp_path: Path, to: str) -> None:
    run = core if to == "merged" else functools.partial(run_core, place)
    run("export", trained, "--to", to, "--out", tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out" / "README.md").read_text()
    if to == "adapter":
        assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    else:
        assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
        from transformers import AutoModelForCausalLM, AutoTokenizer

        AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        AutoTokenizer.from_pretrained(tmp_path / "out")
    assert str(trained.parent.parent) not in card
    again = run_core(place, "export", trained, "--to", to, "--out", tmp_path / "out", check=False)
    assert again.returncode == 2
    assert "not empty" in again.stderr


def test_stop_and_resume_from_outside(
    core: Callable, place: Path, family: Callable[[str], Path], rows_file: Path
) -> None:
    environment = os.environ | {"ATELIER_HOME": str(place)}
    arguments = ("train", "chat", *QUICK, "--set", "train.max_steps=null", "--set", "train.epochs=200", "--set", "name=long one",
                 "--set", f"model.name={family('llama')}", "--set", f"data.train={rows_file}")  # fmt: skip

    def newest() -> dict[str, Any]:
        return json.loads(run_core(place, "runs", "--json").stdout)[0]

    child = subprocess.Popen(
        [sys.executable, "-m", "core", *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        run_id = child.stdout.readline().split()[1]
        wait_for(lambda: (newest().get("step") or 0) >= 3)
        listed = json.loads(core("runs", "--json").stdout)[0]
        assert (listed["id"], listed["state"], listed["name"]) == (run_id, "running", "long one")
        twice = core("resume", run_id, check=False)
        assert (twice.returncode, "still running" in twice.stderr) == (2, True)
        core("stop", run_id)
        assert child.wait(timeout=60) == 0
    finally:
        child.kill()
        child.stdout.close()
    stopped = newest()
    assert (stopped["state"], stopped["adapter"], stopped["resumable"]) == ("stopped", True, True)

    child = subprocess.Popen(
        [sys.executable, "-m", "core", "resume", run_id], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: newest()["step"] > stopped["step"])
    if os.name == "posix":  # Ctrl+C is a stop that keeps what was learned
        child.send_signal(signal.SIGINT)
    else:
        core("stop", run_id)
    child.wait(timeout=60)
    assert newest()["state"] == "stopped"


def wait_for(ready: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nothing.yaml"], "no file"),
        (["train", "chess"], "chat"),
        (["train", "chat", "--set", "train.epochs=-1", "--set", "method.rank=0"], "method.rank"),
        (["train", "chat", "--set", "train.epohcs=1"], "epochs"),
        (["train", "chat", "--set", "model.name=/no/such/folder", "--set", "train.max_steps=1"], "/no/such/folder"),
        (["train", "chat", "--set", "data.train=missing.json", "--set", "train.max_steps=1"], "missing.json"),
        (["train", "chat", "--set", "method.targets=[wq]", "--set", "train.max_steps=1"], "q_proj"),
        (["chat", "no-run", "--prompt", "x"], "no-run"),
        (["serve", "--port", "99999"], "99999"),
        (
            ["train", "chat", "--set", "model.name=a/b", "--set", "model.revision=5", "--set", "train.epochs=-1"],
            "epochs",
        ),
        (["check-data", "sample:style", "--model", "no-owner/no-model"], "no-owner/no-model"),
        (["resume", "no-run"], "no-run"),
        (["stop", "no-run"], "no-run"),
        (["export", "no-run", "--to", "merged", "--out", "x"], "no-run"),
        (["check-data", "missing.json"], "missing.json"),
        (["estimate", "chat", "--set", "method.rank=100000"], "method.rank"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_mistake_is_a_sentence_and_status_two(place: Path, arguments: list[str], words: str) -> None:
    done = run_core(place, *arguments, check=False)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_mistake_ends_the_process_so(core: Callable) -> None:
    done = core("export", "no-run", "--to", "merged", "--out", "x", check=False)
    assert (done.returncode, done.stdout) == (2, "") and "no-run" in done.stderr


def test_lists(place: Path) -> None:
    assert "lora" in run_core(place, "methods").stdout
    assert "recipe" in run_core(place, "presets").stdout
    assert "device" in json.loads(run_core(place, "doctor", "--json").stdout)
    assert json.loads(run_core(place, "estimate", "chat", "--json").stdout)["trainable"] > 0


def test_check_data_counts_with_the_models_tokens(place: Path, family: Callable[[str], Path], rows_file: Path) -> None:
    report = json.loads(run_core(place, "check-data", rows_file, "--model", family("llama"), "--json").stdout)
    assert (report["rows"], report["trained_rows"], report["format"]) == (40, 40, "messages")
    text = "".join(piece for piece, _ in report["preview"])
    learned = "".join(piece for piece, trained in report["preview"] if trained)
    assert text.startswith("<s><|user|>what is 0<|assistant|>")
    assert learned.endswith("</s>")
    assert "user" not in learned


@pytest.fixture
def server(place: Path, trained: Path, tmp_path: Path, family: Callable[[str], Path]) -> Iterator[tuple[str, str]]:
    ready = tmp_path / "ready.json"
    link = place / "runs" / "20200101-000000-served"
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.symlink_to(trained)
    environment = os.environ | {"ATELIER_HOME": str(place), "ATELIER_SERVE_TOKEN": "secret"}
    command = [sys.executable, "-m", "core", "serve", "--model", str(family("llama")), "--port", "0", "--ready", str(ready), "--parent", str(os.getpid())]  # fmt: skip
    child = subprocess.Popen(command, cwd=ROOT, env=environment)
    wait_for(lambda: ready.exists() or child.poll() is not None)
    yield json.loads(ready.read_text())["url"], link.name
    child.terminate()
    child.wait(timeout=20)


def test_serving_speaks_the_openai_api(server: tuple[str, str]) -> None:
    url, run_id = server
    bearer = {"Authorization": "Bearer secret"}
    with httpx.Client(base_url=url, headers=bearer, timeout=60) as client:
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names[0] == "base"
        assert {run_id, f"{run_id}:merged"} <= set(names)

        def ask(model: str, **more: object) -> dict:
            body = {
                "model": model,
                "messages": [{"role": "user", "content": "what is 3"}],
                "temperature": 0,
                "max_tokens": 8,
            }
            return client.post("/v1/chat/completions", json=body | more).raise_for_status().json()

        answers = {name: ask(name) for name in ("base", run_id, f"{run_id}:merged")}
        text = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
        assert text[run_id] == text[f"{run_id}:merged"] != text["base"]
        assert ask(run_id, scale=0)["choices"][0]["message"]["content"] == text["base"]
        weights = answers[run_id]["weights"]
        assert (weights["adapter"], weights["step"], weights["scale"], weights["merged"]) == (run_id, 6, 1.0, False)
        assert len(weights["digest"]) == 12
        assert answers["base"]["weights"]["adapter"] is None

        body = {
            "model": run_id,
            "messages": [{"role": "user", "content": "what is 3"}],
            "temperature": 0,
            "max_tokens": 8,
            "stream": True,
        }
        with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            lines = [line.removeprefix("data: ") for line in reply.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text[run_id]
        assert chunks[0]["weights"] == chunks[-1]["weights"] == weights
        assert chunks[-1]["usage"]["completion_tokens"] == 8
        assert chunks[-1]["choices"][0]["finish_reason"] == "length"

        for wrong in (
            {"model": "../etc"},
            {"scale": 3},
            {"temperature": -1},
            {"messages": []},
            {"messages": "x"},
            {"max_tokens": True},
        ):
            refused = client.post("/v1/chat/completions", json=body | {"stream": False} | wrong)
            assert refused.status_code == 400, wrong
            assert refused.json()["error"]["problem"]
        assert client.post("/v1/chat/completions", content=b"{").status_code == 400

        # a reader that goes away frees its place
        with client.stream("POST", "/v1/chat/completions", json=body | {"max_tokens": 120}) as reply:
            next(reply.iter_lines())
        assert ask("base")["choices"][0]["message"]["content"] == text["base"]

    assert httpx.get(url + "/v1/models").status_code == 401
    assert httpx.get(url + "/v1/models", headers=bearer | {"Host": "evil.example"}).status_code == 421
    assert httpx.get(url + "/v1/models", headers=bearer | {"Origin": "https://evil.example"}).status_code == 403


def test_serving_ends_with_its_parent(place: Path, tmp_path: Path, family: Callable[[str], Path]) -> None:
    ready = tmp_path / "ready.json"
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    command = [sys.executable, "-m", "core", "serve", "--model", str(family("llama")), "--port", "0", "--ready", str(ready), "--parent", str(parent.pid)]  # fmt: skip
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"ATELIER_HOME": str(place)})
    try:
        wait_for(lambda: ready.exists())
        assert psutil.pid_exists(child.pid)
        parent.kill()
        child.wait(timeout=20)
    finally:
        parent.kill()
        parent.wait()
        child.kill()


def test_a_finished_run_is_made_longer(place: Path, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "longer")
    core = functools.partial(run_core, place)
    refused = core("resume", folder, check=False)
    assert refused.returncode == 2 and "completed" in refused.stderr
    assert core("resume", folder, "--set", "train.learning_rate=0.5", check=False).returncode == 2
    wrong = core("resume", folder, "--set", "train.max_steps=8", "--set", "method.rank=2", check=False)
    assert wrong.returncode == 2 and "method.rank" in wrong.stderr
    done = core("resume", folder, "--set", "train.max_steps=8")
    assert "completed at step 8 of 8" in done.stdout
    assert "is already completed" in core("change", folder, "--set", "train.max_steps=9", check=False).stderr
    for asked in ("save", "stop"):
        assert "is not running" in core(asked, folder, check=False).stderr
