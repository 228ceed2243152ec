"""The launcher with real processes: one at a time, adopted after a restart, buried with their last words."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from core import devices, notice, queue, runs
from core.config import Config
from core.problem import Problem
from core.runs import Run
from studio import launcher
from studio.launcher import Launcher

_WORKER = """
import sys, time, json
from pathlib import Path
from core.runs import Run
run = Run(Path(sys.argv[-1]))
if (run.folder / "die").exists():
    sys.exit("no such model, alas")
with run.claim():
    run.take("resume")
    (run.folder / "result.json").unlink(missing_ok=True)
    with (run.folder / "begun").open("a") as file: file.write("x")
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "loss": 2.0, "time": time.time()}) + "\\n")
    end = time.time() + 60
    while time.time() < end and not run.take("stop") and not (run.folder / "finish").exists():
        time.sleep(0.05)
    run.finish("completed" if (run.folder / "finish").exists() else "stopped", step=1, steps=2)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def workers(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A worker that does nothing but keep the folder's contract, started by the launcher's own `spawn`."""
    script = home / "worker.py"
    script.write_text(_WORKER)
    started: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(arguments: list[str], **options: object) -> subprocess.Popen[bytes]:
        if arguments[:3] != [sys.executable, "-m", "core"]:
            return real(arguments, **options)  # type: ignore[call-overload]
        environment = {**options.pop("env"), "PYTHONPATH": str(launcher.ROOT)}  # type: ignore[dict-item]
        started.append(real([sys.executable, str(script), *arguments[3:]], env=environment, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(launcher.subprocess, "Popen", popen)
    yield started
    for child in started:
        child.kill()
        child.wait()


def _new(name: str) -> Run:
    return runs.create(Config(name=name))


def _until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def test_what_is_over_is_asked_for_its_state_when_it_is_touched_alone(
    workers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked, looking = _new("a"), list[str](), Launcher()
    run.finish("stopped", step=1)
    real = Run.state
    monkeypatch.setattr(Run, "state", lambda run: (asked.append(run.id), real(run))[1])
    looking.step()
    asked.clear()
    looking.step()
    assert asked, "what was touched a moment ago may be touched again at the same time"
    os.utime(run.folder, (1000, 1000))
    looking.step()
    asked.clear()
    looking.step()
    assert asked == [] and workers == []
    run.ask("resume")
    looking.step()
    assert len(workers) == 1


def test_one_at_a_time_in_the_order_of_their_start(workers: list[subprocess.Popen[bytes]]) -> None:
    first, second = _new("a"), _new("b")
    looking = Launcher()
    looking.step()
    looking.step()
    assert len(workers) == 1
    _until(lambda: first.state() == "running")
    looking.step()
    assert second.state() == "queued" and len(workers) == 1
    (first.folder / "finish").touch()
    _until(lambda: first.state() == "completed")
    _until(lambda: (looking.step(), second.state() == "running")[1])
    assert len(workers) == 2


def test_a_restarted_studio_starts_no_second_worker(workers: list[subprocess.Popen[bytes]]) -> None:
    run = _new("a")
    Launcher().step()
    # The next studio looks before the worker has signed in: only the launcher's note tells it.
    assert run.state() == "queued"
    Launcher().step()
    assert len(workers) == 1
    _until(lambda: run.state() == "running")
    Launcher().step()
    assert len(workers) == 1


def test_a_note_of_another_process_is_not_believed(workers: list[subprocess.Popen[bytes]]) -> None:
    run = _new("a")
    (run.folder / "launch.json").write_text(json.dumps({"pid": os.getpid(), "birth": 1.0}))
    Launcher().step()
    assert len(workers) == 1


def test_a_worker_that_dies_early_leaves_its_last_words(workers: list[subprocess.Popen[bytes]]) -> None:
    run = _new("a")
    (run.folder / "die").touch()
    looking = Launcher()
    looking.step()
    workers[0].wait()
    looking.step()
    assert run.state() == "failed"
    assert "no such model, alas" in (run.result() or {})["message"]
    looking.step()
    assert len(workers) == 1


def test_stop_and_resume(workers: list[subprocess.Popen[bytes]]) -> None:
    run, looking = _new("a"), Launcher()
    looking.step()
    _until(lambda: run.state() == "running")
    looking.stop(run)
    _until(lambda: run.state() == "stopped")
    workers[0].wait()
    looking.resume(run)
    assert run.state() == "queued"
    _until(lambda: (looking.step(), run.state() == "running")[1])
    assert (run.folder / "begun").read_text() == "xx"


def test_a_waiting_run_can_be_taken_out_of_the_queue(workers: list[subprocess.Popen[bytes]]) -> None:
    run, looking = _new("a"), Launcher()
    looking.stop(run)
    looking.step()
    assert run.state() == "stopped" and workers == []


def test_a_resume_can_be_taken_back(workers: list[subprocess.Popen[bytes]]) -> None:
    run, looking = _new("a"), Launcher()
    run.finish("failed", "it broke", step=3)
    looking.resume(run)
    looking.stop(run)
    looking.step()
    assert run.state() == "failed" and (run.result() or {})["message"] == "it broke" and workers == []


def test_a_completed_run_is_not_resumed(home: Path) -> None:
    run = _new("a")
    run.finish("completed")
    with pytest.raises(Problem):
        Launcher().resume(run)


def test_the_worker_outlives_the_studio_and_is_interrupted_only_by_its_death(
    workers: list[subprocess.Popen[bytes]],
) -> None:
    run, looking = _new("a"), Launcher()
    looking.step()
    _until(lambda: run.state() == "running")
    if os.name == "posix":
        assert os.getsid(workers[0].pid) == workers[0].pid, (
            "its own session: a signal to the studio's does not reach it"
        )
    looking.close()
    assert run.state() == "running"
    os.kill(workers[0].pid, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    # A dead child that nobody has waited for is a zombie, and no longer running.
    _until(lambda: run.state() == "interrupted")
    looking.step()
    assert psutil.pid_exists(workers[0].pid) is False


def test_the_environment_holds_no_secret(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ATELIER_SIGN_IN", "AWS_SECRET_ACCESS_KEY", "GRADIO_SHARE", "PYTHONSTARTUP", "LD_PRELOAD"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    given = launcher.environment()
    assert "secret" not in given.values()
    assert given["CUDA_VISIBLE_DEVICES"] == "0" and given["ATELIER_HOME"] == str(home)


def test_the_log_is_private(workers: list[subprocess.Popen[bytes]]) -> None:
    run = _new("a")
    Launcher().step()
    if os.name == "posix":
        assert (run.folder / "log.txt").stat().st_mode & 0o077 == 0


def test_a_broken_folder_does_not_hold_up_the_others(
    workers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Launcher, "_ask_device", lambda self: None)
    broken = runs.runs_folder() / "00000000-000000-broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("[: no yaml")
    (broken / "result.json").write_text('{"outcome": "failed"}')
    run, looking = _new("a"), Launcher()
    looking.start()
    try:
        _until(lambda: run.state() == "running")
    finally:
        looking.close()
    assert len(workers) == 1 and Run(broken).state() == "failed"
    assert sorted(path.name for path in broken.iterdir()) == ["config.yaml", "result.json"], "it is left as it was"


def test_a_folder_that_is_half_written_is_looked_at_again(
    workers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Launcher, "_ask_device", lambda self: None)
    half = _new("half")
    (half.folder / "result.json").mkdir()
    looking, told = Launcher(), ""

    def says_so() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return "launcher: " in told

    looking.start()
    try:
        _until(says_so)
        (half.folder / "result.json").rmdir()
        looking.wake()
        _until(lambda: half.state() == "running")
    finally:
        looking.close()
    assert len(workers) == 1


def test_a_resumed_run_whose_worker_dies_early_is_failed_too(workers: list[subprocess.Popen[bytes]]) -> None:
    run, looking = _new("a"), Launcher()
    looking.step()
    _until(lambda: run.state() == "running")
    looking.stop(run)
    workers[0].wait()
    looking.step()
    (run.folder / "die").touch()
    time.sleep(2.5)  # the launcher tells two workers apart by the time of their birth
    looking.resume(run)
    looking.step()
    workers[1].wait()
    looking.step()
    assert run.state() == "failed" and not run.asked("resume")
    assert "no such model, alas" in (run.result() or {})["message"]


@pytest.mark.parametrize("wish", ["stop", "discard"])
def test_a_stop_that_comes_while_the_worker_starts_is_left_for_it(
    workers: list[subprocess.Popen[bytes]], wish: str
) -> None:
    run = _new("a")
    looking = Launcher()
    looking.step()
    workers[0].send_signal(signal.SIGSTOP) if os.name == "posix" else None
    if run.state() != "queued":
        pytest.skip("it was quicker than we are")
    getattr(looking, wish)(run)
    looking.step()
    queue.remove(run)
    assert run.asked("stop") and run.asked(wish) and run.result() is None
    workers[0].send_signal(signal.SIGCONT) if os.name == "posix" else None
    _until(lambda: run.state() == "stopped")
    assert workers[0].wait() == 0 and (run.folder / "begun").exists(), "it was the worker that said so"


def test_nothing_is_said_of_a_run_that_another_process_works_on(workers: list[subprocess.Popen[bytes]]) -> None:
    run = _new("a")
    (run.folder / "die").touch()
    looking = Launcher()
    looking.step()
    workers[0].wait()
    looking._children[run.id] = workers[0], time.time() + 10  # the other one signed in before ours was started
    with run.claim():
        looking.step()
        assert run.result() is None and looking._children == {}
        (run.folder / "worker.json").unlink()
        looking._children[run.id] = workers[0], time.time() + 10
        looking._bury()
        assert run.result() is None, "its lock alone tells of it"


def test_a_run_that_the_command_line_is_about_to_work_on_is_not_started(
    workers: list[subprocess.Popen[bytes]],
) -> None:
    new, old = runs.create(Config(name="new"), here=True), _new("old")
    old.finish("stopped", step=1)
    runs.note_start(old)
    old.ask("resume")
    Launcher().step()
    assert workers == [] and {new.state(), old.state()} == {"queued"}


def test_somebody_is_told_of_a_worker_that_cannot_tell_it_itself(
    workers: list[subprocess.Popen[bytes]], home: Path
) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], sys.argv[2]).touch()"
    notice.Wishes(command=(sys.executable, "-c", code, str(home), "{name}-{outcome}")).write()
    dies, killed, looking = _new("dies"), _new("killed"), Launcher()
    (dies.folder / "die").touch()
    looking.step()
    workers[0].wait()
    _until(lambda: (looking.step(), killed.state() == "running")[1])
    looking.step()
    workers[1].kill()
    workers[1].wait()
    looking.step()
    _until(lambda: (home / "dies-failed").exists() and (home / "killed-interrupted").exists())


def test_two_devices_have_a_worker_each(workers: list[subprocess.Popen[bytes]]) -> None:
    devices.note({"variable": "CUDA_VISIBLE_DEVICES", "names": ["0", "1"]})
    first, second, third = _new("a"), _new("b"), _new("c")
    looking = Launcher()
    looking.step()
    looking.step()
    assert len(workers) == 2
    _until(lambda: first.state() == second.state() == "running")
    seen = [psutil.Process(child.pid).environ()["CUDA_VISIBLE_DEVICES"] for child in workers]
    assert seen == ["0", "1"]
    Launcher().step()  # a studio that was started anew
    assert third.state() == "queued" and len(workers) == 2
    (second.folder / "finish").touch()
    _until(lambda: second.state() == "completed")
    _until(lambda: (looking.step(), third.state() == "running")[1])
    assert psutil.Process(workers[2].pid).environ()["CUDA_VISIBLE_DEVICES"] == "1" and first.state() == "running"


def test_a_studio_tells_of_a_worker_that_was_killed_while_none_was_open(
    workers: list[subprocess.Popen[bytes]], home: Path
) -> None:
    code = "import sys, pathlib; pathlib.Path(sys.argv[1], sys.argv[2]).open('a').write('x')"
    notice.Wishes(command=(sys.executable, "-c", code, str(home), "{name}-{outcome}")).write()
    killed, told = _new("killed"), home / "killed-interrupted"
    _until(lambda: (Launcher().step(), killed.state() == "running")[1])
    workers[0].kill()
    workers[0].wait()
    Launcher().step()
    _until(told.exists)
    for looking in (Launcher(), Launcher()):
        looking.step()
        looking.step()
    _until(lambda: all(thread.name != "notice" for thread in threading.enumerate()))
    assert told.read_text() == "x"
