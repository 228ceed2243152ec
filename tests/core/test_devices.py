"""Devices that runs share: what the engine said of them, which are free, and what a worker is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import devices, process, queue, runs
from core.config import Config
from core.runs import Run

TWO = {"variable": "CUDA_VISIBLE_DEVICES", "names": ["0", "3"]}


@pytest.fixture(autouse=True)
def own_home(home: Path) -> Path:
    home.mkdir(exist_ok=True)
    return home


def _new(device: str | None = None) -> Run:
    run = runs.create(Config())
    if device is not None:
        runs.note_start(run, device=device)
    return run


def test_one_device_needs_no_name() -> None:
    assert devices.free([]) == [""] and devices.variables("") == {}
    devices.note({"variable": "", "names": []})
    assert devices.free([]) == [""]
    devices.note({**TWO, "names": ["0"]})
    assert devices.free([]) == [""] and devices.free([_new("")]) == []


def test_each_run_has_a_device_of_its_own() -> None:
    devices.note(TWO)
    assert devices.free([]) == ["0", "3"]
    assert devices.free([_new("0")]) == ["3"]
    assert devices.free([_new("0"), _new("3")]) == []
    assert devices.variables("3") == {"CUDA_VISIBLE_DEVICES": "3"}


def test_who_took_one_without_asking_has_the_first() -> None:
    devices.note(TWO)
    assert devices.free([_new()]) == ["3"] == devices.free([_new("7")])


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"variable": 3, "names": ["0", "1"]}', '{"variable": "A", "names": [0, 1]}']
)
def test_a_file_that_is_none_of_ours_is_one_device(home: Path, text: str) -> None:
    (home / "devices.json").write_text(text)
    assert devices.free([]) == [""]


def test_what_was_there_before_the_machine_was_started_anew_is_not_believed(home: Path) -> None:
    (home / "devices.json").write_text(json.dumps({**TWO, "boot": "another"}))
    assert devices.free([]) == [""]
    (home / "devices.json").write_text(json.dumps({**TWO, "boot": process.boot()}))
    assert devices.free([]) == ["0", "3"]
    devices.forget()
    devices.forget()
    assert devices.free([]) == [""]


@pytest.mark.parametrize(("seen", "free"), [("3", ["3"]), ("3,0", ["0", "3"]), ("5", [])])
def test_who_is_to_see_some_devices_gives_away_no_others(
    monkeypatch: pytest.MonkeyPatch, seen: str, free: list[str]
) -> None:
    devices.note(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert devices.free([]) == free


def test_who_works_where_it_was_told_to_is_known_by_its_environment() -> None:
    devices.note(TWO)
    run = _new()
    code = "import sys; print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"CUDA_VISIBLE_DEVICES": "3"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        child.stdout.readline()
        runs.note_start(run, child.pid)
        assert devices.given(run) == "3" and devices.free([run]) == ["0"]
    finally:
        child.communicate()


def test_the_queue_starts_one_on_each_device_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    devices.note(TWO)
    first, second, third = _new(), _new(), _new()
    started: list[subprocess.Popen[bytes]] = []

    def spawn(arguments: list[str], log: Path, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        seen.append(variables)
        return started[-1]

    seen: list[dict[str, str]] = []
    monkeypatch.setattr(queue, "spawn", spawn)
    try:
        assert queue.start_next() == first
        assert seen == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
        assert [devices.given(run) for run in (first, second, third)] == ["0", "3", ""]
        assert queue.start_next() is None and len(started) == 2
        started[1].kill()
        started[1].wait()
        second.finish("stopped")
        assert queue.start_next() == third and devices.given(third) == "3"
    finally:
        for child in started:
            child.kill()
            child.wait()
