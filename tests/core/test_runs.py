"""The run folder: its state is worked out from what lies in it, whatever happened to whoever wrote it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core import changes, runs
from core.config import Config
from core.problem import Problem
from core.runs import Metrics, Run


@pytest.fixture
def run(home: Path) -> Run:
    return runs.create(Config(name="A name: with / all . sorts"))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield child
    child.kill()
    child.wait()


def put_worker(run: Run, pid: int, birth: float, host: str | None = None) -> None:
    about = {"pid": pid, "birth": birth, "host": host or socket.gethostname()}
    (run.folder / "worker.json").write_text(json.dumps(about))


def test_states(run: Run, process: subprocess.Popen[bytes]) -> None:
    assert run.state() == "queued"
    birth = psutil.Process(process.pid).create_time()
    put_worker(run, process.pid, birth)
    assert run.state() == "starting"
    line = {"step": 1, "loss": 2.0, "time": time.time()}
    (run.folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert run.state() == "running"
    run.ask("stop")
    assert run.state() == "stopping"
    assert run.take("stop")
    assert not run.take("stop")
    put_worker(run, process.pid, birth - 100)  # the number went to another process
    assert run.state() == "interrupted"
    put_worker(run, process.pid, birth, "another-host")
    assert run.state() == "interrupted"
    run.finish("stopped", step=3)
    assert run.state() == "stopped"
    assert run.resumable
    run.ask("resume")
    assert run.state() == "queued"


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has zombies")
def test_a_zombie_is_not_alive(run: Run, process: subprocess.Popen[bytes]) -> None:
    put_worker(run, process.pid, psutil.Process(process.pid).create_time())
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert run.state() == "interrupted"


def test_names_never_become_paths(run: Run) -> None:
    assert run.folder.parent == runs.runs_folder()
    assert run.id.endswith("-a-name-with-all-sorts")
    for name in ("../../etc", "/etc", "..", "", ".", run.id + "/..", "a\x00b"):
        with pytest.raises(Problem):
            runs.find_id(name)
    assert runs.find_id(run.id) == run


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_files_are_private(run: Run) -> None:
    assert run.folder.stat().st_mode & 0o077 == 0
    assert (run.folder / "config.yaml").stat().st_mode & 0o077 == 0
    assert runs.home().stat().st_mode & 0o077 == 0


def test_five_clicks_make_one_run(home: Path) -> None:
    made: list[Run] = []
    threads = [threading.Thread(target=lambda: made.append(runs.create(Config(), token="press-1"))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == len(runs.all_runs()) == 1
    assert runs.create(Config(), token="press-2") != made[0]


def test_one_writer(run: Run) -> None:
    with run.claim():
        code = f"from core.runs import Run; from pathlib import Path\nwith Run(Path({str(run.folder)!r})).claim(): pass"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "being worked on" in other.stderr
        assert run.state() == "starting"
    assert run.state() == "starting"  # this process lives on and has written no result
    with run.claim():
        pass


def test_whole_lines_only_and_what_was_undone_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path).read()
    lines = [{"step": n, "loss": n} for n in (1, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    assert [line["step"] for line in metrics.read().steps] == [1, 2, 3]
    with path.open("a") as file:
        file.write(
            'ss": 4}\nnot json\n{"step": 3, "eval_loss": 1}\n{"event": "resumed", "step": 2}\n{"step": 3, "loss": 9}\n'
        )
    metrics.read()
    assert [(line["step"], line["loss"]) for line in metrics.steps] == [(1, 1), (2, 2), (3, 9)]
    assert metrics.evals == []
    assert Metrics(path).read().steps == metrics.steps


def test_write_whole_leaves_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    runs.write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runs.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_delete_refuses_what_runs_and_what_is_elsewhere(
    run: Run, tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    put_worker(run, process.pid, psutil.Process(process.pid).create_time())
    with pytest.raises(Problem, match="still running"):
        runs.delete(run)
    (run.folder / "worker.json").unlink()
    with run.claim():
        run.finish("failed")  # said by somebody who did not know that it is at work
        with pytest.raises(Problem, match="still running"):
            runs.delete(run)
        assert (run.folder / "config.yaml").exists()
    elsewhere = runs.create(Config(), folder=tmp_path / "mine")
    with pytest.raises(Problem, match="not among"):
        runs.delete(elsewhere)
    process.kill()
    process.wait()
    runs.delete(run)
    assert runs.all_runs() == []


def test_a_folder_in_use_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thing").write_text("x")
    with pytest.raises(Problem, match="not empty"):
        runs.create(Config(), folder=tmp_path)


def test_a_wish_to_resume_takes_back_an_old_wish_to_stop(run: Run) -> None:
    run.finish("failed", "it broke", step=3)
    assert run.resumable
    run.ask("stop")
    run.ask("resume")
    assert (run.state(), run.asked("stop"), run.asked("resume")) == ("queued", False, True)
    for outcome in ("completed", "stopped", "failed"):
        run.take("resume")
        run.finish(outcome)
        assert run.resumable == (outcome != "completed")


def test_only_whole_lines_are_read_and_none_is_lost(tmp_path: Path) -> None:
    """A reader that comes back while a line is half written reads it once it is whole."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    written = "".join(json.dumps({"step": step, "loss": 0.5}) + "\n" for step in range(1, 4)).encode()
    for size in range(1, len(written) + 1):
        path.write_bytes(written[:size])
        metrics.read()
        assert len(metrics.steps) == written[:size].count(b"\n")
    assert [line["step"] for line in metrics.steps] == [1, 2, 3]


def test_what_a_checkpoint_holds_is_not_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": n, "loss": n} for n in (1, 2, 3)] + [{"step": n, "eval_loss": n} for n in (0, 2, 3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"event": "resumed", "step": 2}]))
    metrics = Metrics(path).read()
    assert [line["step"] for line in metrics.steps] == [1, 2]
    assert [line["step"] for line in metrics.evals] == [0, 2]


def test_checkpoints_are_in_the_order_of_their_steps(run: Run) -> None:
    for name in ("step-1000000", "step-000009", "step-999999", ".step-000003", "step-x", "step-5-copy"):
        (run.folder / "checkpoints" / name).mkdir(parents=True)
    assert [path.name for path in run.checkpoints()] == ["step-000009", "step-999999", "step-1000000"]


def test_a_sample_that_was_made_again_counts_once(run: Run) -> None:
    lines = [(0, "a", "old"), (0, "b", "other"), (0, "a", "new"), (4, "a", "later")]
    text = "".join(json.dumps({"step": step, "prompt": prompt, "answer": said}) + "\n" for step, prompt, said in lines)
    (run.folder / "samples.jsonl").write_text(
        "no json\n" + text + json.dumps({"step": 8, "prompt": "a", "answer": "x"})
    )
    assert [(sample["step"], sample["prompt"], sample["answer"]) for sample in run.samples()] == [
        (0, "a", "new"), (0, "b", "other"), (4, "a", "later"),
    ]  # fmt: skip


def test_the_end_of_the_log_and_no_more(run: Run) -> None:
    assert run.log_tail() == ""
    (run.folder / "log.txt").write_bytes(b"begin " + b"x" * 100 + "é end".encode())
    assert run.log_tail(6) == "é end"
    assert run.log_tail(5) == "\N{REPLACEMENT CHARACTER} end"  # cut within a character
    assert run.log_tail().startswith("begin ")


def test_runs_that_begin_in_the_same_second_have_folders_of_their_own(home: Path) -> None:
    made = [runs.create(Config(name="same")) for _ in range(4)]
    assert len({one.folder for one in made}) == 4
    assert runs.all_runs() == sorted(made, key=lambda one: one.id, reverse=True)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Über-Größe 2", "uber-groe-2"), ("中文", "run"), ("", "run"), ("--", "run"), ("a" * 60, "a" * 40),
        ("a" * 39 + " b", "a" * 39),
    ],
)  # fmt: skip
def test_short_names(name: str, short: str) -> None:
    assert runs.slug(name) == short


def test_paths_mean_the_same_from_every_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "playground").mkdir()  # a folder of that name is not the built-in model
    monkeypatch.chdir(tmp_path)
    made = runs.create(Config.read({"data": {"train": "rows.jsonl"}, "model": {"name": "playground"}}))
    assert made.config().data.train == str(tmp_path / "rows.jsonl")
    assert made.config().model.name == "playground"
    assert made.title == Config.read({"data": {"train": "rows.jsonl"}}).title
    several = runs.create(Config.read({"data": {"train": "rows.jsonl; someone/rows;rows.jsonl", "eval": "x" * 5000}}))
    there = str(tmp_path / "rows.jsonl")
    assert several.config().data.train == f"{there};someone/rows;{there}"
    assert several.config().data.eval == "x" * 5000  # no file system takes it: it is told when it is read
    hub = runs.create(Config.read({"data": {"train": "someone/rows"}, "model": {"name": "someone/model"}}))
    assert (hub.config().data.train, hub.config().model.name) == ("someone/rows", "someone/model")


def test_a_run_elsewhere_is_found_by_its_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = runs.create(Config(), folder=tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert runs.find("mine") == runs.find(str(tmp_path / "mine")) == made
    assert runs.all_runs() == []
    with pytest.raises(Problem, match="There are no runs yet"):
        runs.find("elsewhere")
    known = [runs.create(Config(name=f"run {number}")) for number in range(6)]
    with pytest.raises(Problem) as caught:
        runs.find("elsewhere")
    newest = sorted((one.id for one in known), reverse=True)
    assert ", ".join(newest[:5]) in str(caught.value) and newest[5] not in str(caught.value)
    (tmp_path / "file").write_text("x")
    with pytest.raises(Problem, match="is a file"):
        runs.create(Config(), folder=tmp_path / "file")


def test_a_finished_run_is_deleted_though_its_worker_still_lives(run: Run) -> None:
    with run.claim():
        pass
    with pytest.raises(Problem, match="still running"):
        runs.delete(run)
    run.finish("completed")
    runs.delete(run)
    assert runs.all_runs() == []


def test_a_list_shows_the_newest_numbers(run: Run) -> None:
    lines = [{"step": 0, "eval_loss": 5.0}, {"step": 1, "steps": 4, "loss": 4.0}, {"step": 2, "steps": 4, "loss": 3.0},
             {"step": 2, "eval_loss": 2.5}]  # fmt: skip
    before = runs.summarise(run)
    assert (before["step"], before["loss"], before["eval_loss"], before["state"]) == (0, None, None, "queued")
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.finish("stopped", "enough", step=2)
    told = runs.summarise(run)
    assert (told["step"], told["steps"], told["loss"], told["eval_loss"]) == (2, 4, 3.0, 2.5)
    assert (told["state"], told["message"], told["resumable"], told["adapter"]) == ("stopped", "enough", True, False)
    assert (told["id"], told["name"], told["method"]) == (run.id, "A name: with / all . sorts", "lora")


@pytest.mark.parametrize("result", ["{}", "[]", '{"outcome": 3}', "half"])
@pytest.mark.parametrize("worker", ["{}", '{"host": "HOST", "pid": "x", "birth": []}'])
def test_a_folder_that_makes_no_sense_has_a_state_all_the_same(home: Path, result: str, worker: str) -> None:
    run = runs.create(Config.read({}))
    (run.folder / "worker.json").write_text(worker.replace("HOST", socket.gethostname()))
    (run.folder / "result.json").write_text(result)
    assert run.worker() is None
    assert run.state() == "interrupted"


def test_a_wish_to_discard_is_a_wish_to_stop(run: Run) -> None:
    run.ask("discard")
    assert run.asked("stop") and run.asked("discard")
    run.ask("resume")
    assert not run.asked("stop") and not run.asked("discard")
    for name in ("checkpoints/step-000003", "best", "adapter", "other"):
        (run.folder / name).mkdir(parents=True)
    run.discard()
    assert {path.name for path in run.folder.iterdir() if path.is_dir()} == {"control", "other"}


@pytest.mark.parametrize("outcome", ["queued", "running", "xyz", 3, ["completed"]])
def test_a_result_that_is_none_starts_nothing(run: Run, outcome: object) -> None:
    (run.folder / "result.json").write_text(json.dumps({"outcome": outcome}))
    assert run.result() is None and run.state() == "interrupted"


def test_a_change_that_is_asked_while_another_is_taken_is_not_lost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    changes.ask(run, {"train.epochs": 5})
    read = Run.read_json

    def reads(self: Run, name: str) -> dict[str, object] | None:
        found = read(self, name)
        if name.startswith("control/change") and found is not None and found["set"] == {"train.epochs": 5}:
            monkeypatch.setattr(Run, "read_json", read)
            changes.ask(run, {"train.keep": 7})
        return found

    monkeypatch.setattr(Run, "read_json", reads)
    changes.take(run, 1)
    later = changes.take(run, 2)
    assert [(one["step"], one["set"].get("train.keep")) for one in later] == [(1, None), (2, 7)]
    assert not changes.waits(run)


def test_a_change_that_a_killed_worker_took_is_taken_by_the_next(run: Run) -> None:
    changes.ask(run, {"train.epochs": 5})
    os.replace(run.folder / "control" / "change", run.folder / "control" / "change.taken")
    assert changes.waits(run)
    changes.ask(run, {"train.keep": 7})
    assert [one["set"] for one in changes.take(run, 3)] == [{"train.epochs": 5}, {"train.keep": 7}]
    assert not changes.waits(run) and len(changes.take(run, 4)) == 2


def test_a_file_that_is_being_read_is_replaced_as_soon_as_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows replaces no file that is open; a page may read for a moment, and somebody else for ever."""
    path, real, refused = tmp_path / "result.json", os.replace, 3
    path.write_text("old")
    monkeypatch.setattr(runs, "_PATIENCE", 5)
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: None)

    def replace(*names: object) -> None:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            raise PermissionError(13, "Access is denied")
        real(*names)  # type: ignore[arg-type]

    monkeypatch.setattr(runs.os, "replace", replace)
    runs.write_whole(path, "new")
    assert path.read_text() == "new"
    refused = 10**6
    with pytest.raises(PermissionError):
        runs.write_whole(path, "newer")
    assert path.read_text() == "new" and [one.name for one in tmp_path.iterdir()] == ["result.json"]


def test_a_wish_is_expected_while_the_worker_takes_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Run.read_json
    changes.ask(run, {"train.epochs": 7})

    def read_late(self: Run, name: str) -> dict[str, object] | None:
        found = read(self, name)
        if (wish := run.folder / "control" / "change").exists():
            os.replace(wish, wish.with_name("change.taken"))  # between this read and the next
        return found

    monkeypatch.setattr(Run, "read_json", read_late)
    assert changes.expected(run).train.epochs == 7
