"""The Export tab's handlers, with the real job behind them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core import runs
from core.problem import Problem
from studio import launcher
from studio.tabs import export
from studio.tabs.export import _Export, _jobs, in_bytes, start


@pytest.fixture
def own_home(trained_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the trained home, to write in."""
    shutil.copytree(trained_home, tmp_path / "home")
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def work(run: runs.Run) -> None:
    subprocess.run(
        [sys.executable, "-m", "core", "work", str(run.folder)],
        cwd=launcher.ROOT,
        env=launcher.environment(),
        check=True,
        timeout=300,
        capture_output=True,
    )


def test_presses_at_once_are_one_export(own_home: Path, trained_run: str):
    made: list[str] = []
    threads = [threading.Thread(target=lambda: made.append(start(trained_run, "merged", "auto").id)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 5 and len(set(made)) == 1
    assert start(trained_run, "merged", "bfloat16").id not in made, "another format is another export"
    assert start(trained_run, "adapter", "auto").id not in made
    assert len(_jobs(trained_run)) == 3


@pytest.mark.parametrize(
    ("run_id", "dtype"),
    [
        ("nobody", "auto"),
        ("", "auto"),
        (None, "auto"),
        ("../..", "auto"),
        (["x"], "auto"),
        (True, "auto"),
        ("run", "int2"),
        ("run", ["auto"]),
        ("run", None),
    ],
)
def test_nonsense_starts_nothing(own_home: Path, trained_run: str, run_id: Any, dtype: Any, draw: Any):
    with pytest.raises(Problem):
        start(trained_run if run_id == "run" else run_id, "merged", dtype)
    assert len(runs.all_runs()) == 1
    tab = draw(_Export)
    problem, *_ = tab._start_merged(trained_run if run_id == "run" else run_id, dtype)
    assert "note bad" in problem


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("adapter", {"adapter_model.safetensors", "adapter_config.json"}),
        ("lora", {"adapter_model.safetensors", "adapter_config.json"}),
        ("merged", {"model.safetensors", "config.json", "tokenizer.json"}),
    ],
)
def test_an_export_is_worked_on_and_its_files_are_offered(
    own_home: Path, trained_run: str, kind: Any, files: set[str], draw: Any
):
    tab = draw(_Export)
    problem, made, stamp = (
        tab._start_merged(trained_run, "auto") if kind == "merged" else getattr(tab, f"_start_{kind}")(trained_run)
    )
    assert {"adapter": "Adapter", "lora": "Plain LoRA", "merged": "Merged model"}[kind] in made
    (job,) = _jobs(trained_run)
    assert problem == "" and f"data-cancel='{job.id}'" in made and "bar busy" in made
    work(job)
    assert job.state() == "completed", job.log_tail()
    made, later = tab._look(trained_run, stamp).values()
    assert later != stamp
    for file in files:
        assert f"/atelier/download/{job.id}/export/{file}" in made
        assert (job.folder / "export" / file).stat().st_size > 0
    assert f"/atelier/download/{job.id}.zip?part=export" in made and str(job.folder / "export") in made
    assert "data-cancel" not in made
    assert ("AutoTokenizer" if kind == "merged" else "PeftModel") in made
    assert set(tab._look(trained_run, later)) == {"__type__"}, "nothing new is not drawn again"


def test_cancel_stops_this_runs_export_and_nothing_else(own_home: Path, trained_run: str, draw: Any):
    tab = draw(_Export)
    job = start(trained_run, "merged", "auto")
    training = runs.find_id(trained_run)
    for wanted in (trained_run, "nobody", None, ["x"]):
        tab._cancel(trained_run, SimpleNamespace(_data={"run": wanted}))
        assert not job.asked("stop") and not training.asked("stop")
    tab._cancel(trained_run, SimpleNamespace(_data={"run": job.id}))
    assert job.asked("stop") and not training.asked("stop")
    work(job)
    assert job.state() == "stopped"
    assert "Cancelled" in tab._made(tab_run(trained_run))


def test_a_failed_export_says_why(own_home: Path, trained_run: str, draw: Any):
    tab = draw(_Export)
    job = start(trained_run, "merged", "auto")
    job.finish("failed", "Disk <full>", problem=Problem("The disk is <full>.").to_data())
    made = tab._made(tab_run(trained_run))
    assert "The disk is &lt;full&gt;." in made and "<full>" not in made


def test_the_offer_says_what_whom_and_how_large(own_home: Path, trained_run: str, draw: Any):
    tab, run = draw(_Export), tab_run(trained_run)
    assert "PEFT" in tab._offer(run, "adapter") and "vLLM" in tab._offer(run, "merged")
    whole, half = (tab._offer(run, "merged", dtype) for dtype in ("float32", "bfloat16"))
    assert whole != half and "MB" in whole
    assert "llama.cpp" in tab._offer(run, "lora")
    selective = replace(run, method="full")
    assert "no small adapter" in tab._offer(selective, "adapter")


def test_a_fresh_page_begins_with_the_newest_run(own_home: Path, trained_run: str, draw: Any):
    older = "20200101-000000-older"
    shutil.copytree(own_home / "runs" / trained_run, own_home / "runs" / older)
    tab = draw(_Export)
    chosen, *_, followed = tab._refresh("", "", older, "auto")
    assert chosen.value == trained_run
    assert tab._refresh("", followed, older, "auto")[0].value == older, "what somebody chose stays"
    assert tab._refresh(older, followed, trained_run, "auto")[0].value == older, (
        "what another page selected is taken over"
    )


@pytest.mark.parametrize(
    ("method", "lora", "merged"),
    [("lora", True, True), ("vera", True, True), ("dora", False, True), ("full", False, True), ("prompt_tuning", False, False)],
)  # fmt: skip
def test_what_a_method_has_no_form_for_is_not_offered(
    own_home: Path, trained_run: str, draw: Any, monkeypatch: pytest.MonkeyPatch, method: str, lora: bool, merged: bool
):
    tab, run = draw(_Export), replace(tab_run(trained_run), method=method)
    monkeypatch.setattr(export, "_find", lambda run_id: run)
    shown = tab._show(trained_run, "auto")
    assert [update.visible for update in shown[8:10]] == [lora, merged]
    assert [bool(tab._offer(run, kind)) for kind in ("adapter", "lora", "merged")] == [True, lora, merged]


def test_names_in_files_are_escaped(own_home: Path, trained_run: str, draw: Any):
    tab, job = draw(_Export), start(trained_run, "adapter", "auto")
    (job.folder / "export" / "sub").mkdir(parents=True)
    (job.folder / "export" / "sub" / "a'b&c #1.txt").write_text("x")
    job.finish("completed")
    made = tab._made(tab_run(trained_run))
    assert f"/atelier/download/{job.id}/export/sub/a%27b%26c%20%231.txt" in made and "a&#x27;b&amp;c #1.txt" in made


def test_without_runs_it_says_what_to_do(home: Path, draw: Any):
    tab = draw(_Export)
    update = tab._show("gone", "auto")
    assert update[1].visible is True and update[2].visible is False and "data-go='train'" in tab._nothing()


def test_sizes_for_people():
    assert [in_bytes(size) for size in (0, 999, 1000, 5_700_000, 12e9, 3e15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "5.7 MB",
        "12 GB",
        "3000.0 TB",
    ]


def tab_run(run_id: str) -> Any:
    from studio import answers

    return answers.find(run_id)
