"""Whoever wants to know is told that a run ended; whatever fails there hurts nobody."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from core import notice, runs
from core.__main__ import main
from core.config import Config
from core.notice import Wishes
from core.problem import Problem
from core.runs import Run


class _Server(HTTPServer):
    asked: list[tuple[str, dict]]
    headers: dict[str, str]
    answer: int = 200


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, json.loads(body)))
        self.server.headers = {name.lower(): value for name, value in self.headers.items()}
        self.send_response(self.server.answer)
        self.send_header("location", "/elsewhere")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def run(home: Path) -> Run:
    run = runs.create(Config(name="my {message} run"))
    run.finish("failed", "it broke; $(touch x)", step=3)
    return run


def _address(server: _Server) -> str:
    return f"http://127.0.0.1:{server.server_port}/hook?key=secret"


def test_the_address_gets_run_outcome_and_message(run: Run, server: _Server) -> None:
    assert notice.tell(run, Wishes(_address(server), anywhere=True)) == []
    assert server.asked == [("/hook?key=secret", {"run": run.id, "name": "my {message} run", "outcome": "failed", "message": "it broke; $(touch x)"})]  # fmt: skip


@pytest.mark.parametrize("answer", [302, 307, 404, 500])
def test_only_that_address_is_asked_and_its_secret_is_not_told(run: Run, server: _Server, answer: int, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    server.answer = answer
    (wrong,) = notice.tell(run, Wishes(_address(server), anywhere=True))
    assert len(server.asked) == 1 and str(answer) in wrong
    assert "secret" not in capsys.readouterr().err


def test_proxies_of_the_environment_are_not_used(run: Run, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert notice.tell(run, Wishes(_address(server), anywhere=True)) == [] and len(server.asked) == 1


def test_an_address_that_does_not_answer_hurts_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(notice, "_SECONDS", 0.2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        (wrong,) = notice.tell(run, Wishes(f"http://127.0.0.1:{deaf.getsockname()[1]}/", anywhere=True))
    assert "Timeout" in wrong


def test_a_command_gets_its_arguments_as_they_are(run: Run, tmp_path: Path) -> None:
    script = "import json, os, sys; json.dump([sys.argv[2:], os.environ['ATELIER_OUTCOME'], os.environ.get('AWS_SECRET')], open(sys.argv[1], 'w'))"
    out = tmp_path / "out.json"
    os.environ["AWS_SECRET"] = "x"
    try:
        wishes = Wishes(
            command=(sys.executable, "-c", script, str(out), "{name}", "{outcome}: {message}", "{unknown}", "a b")
        )
        assert notice.tell(run, wishes) == []
    finally:
        del os.environ["AWS_SECRET"]
    told, outcome, secret = json.loads(out.read_text())
    assert told == ["my {message} run", "failed: it broke; $(touch x)", "{unknown}", "a b"], (
        "filled once, read by no shell"
    )
    assert (outcome, secret) == ("failed", None)


def test_a_command_that_fails_or_hangs_hurts_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "FileNotFoundError" in notice.tell(run, Wishes(command=("/no/such/program",)))[0]
    assert "ended with 3" in notice.tell(run, Wishes(command=(sys.executable, "-c", "raise SystemExit(3)")))[0]
    monkeypatch.setattr(notice, "_COMMAND_SECONDS", 0.2)
    assert "Timeout" in notice.tell(run, Wishes(command=(sys.executable, "-c", "import time; time.sleep(60)")))[0]


@pytest.mark.parametrize("text", ["ftp://a/b", "file:///etc/passwd", "http://", "x", "http://a b/", "http://a:99999/", 3, None, "https://a/" + "x" * 3000])  # fmt: skip
def test_what_is_no_address_is_refused(text: object) -> None:
    with pytest.raises(Problem):
        notice.check_webhook(text)


INTERNAL = (
    "127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.1.2.3", "192.168.0.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "[fe80::1]",
    "[fd00::1]", "[::ffff:127.0.0.1]", "[64:ff9b::a00:1]", "[2002:7f00:1::]", "224.0.0.1", "2130706433", "0x7f.1",
)  # fmt: skip
"""This machine and its own network, as they may be written."""


@pytest.mark.parametrize("host", INTERNAL)
def test_only_the_owner_of_the_machine_may_have_its_own_network_asked(host: str) -> None:
    address = f"http://{host}:8080/x"
    with pytest.raises(Problem, match="its own network"):
        notice.check_webhook(address)
    assert notice.check_webhook(address, anywhere=True) == address


def test_an_address_may_hold_a_password_and_letters_of_any_language(run: Run, server: _Server) -> None:
    address = f"http://me:p%40ss@127.0.0.1:{server.server_port}/Straße?a=ü"
    assert notice.tell(run, Wishes(address, anywhere=True)) == []
    assert [path for path, _ in server.asked] == ["/Stra%C3%9Fe?a=%C3%BC"]
    assert (
        server.headers["authorization"] == "Basic bWU6cEBzcw=="
        and server.headers["host"] == f"127.0.0.1:{server.server_port}"
    )


def test_a_name_that_comes_to_mean_this_machine_is_not_asked(
    run: Run, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter([["93.184.215.14"], ["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], []])
    monkeypatch.setattr(notice, "_resolve", lambda host: next(numbers))
    address = notice.check_webhook(f"http://name.example:{server.server_port}/")
    for _ in range(3):
        (wrong,) = notice.tell(run, Wishes(address))
        assert "its own network" in wrong
    assert server.asked == []


def test_the_number_that_was_looked_at_is_the_one_that_is_asked(
    run: Run, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "_is_public", lambda number: True)
    monkeypatch.setattr(notice, "_resolve", lambda host: ["127.0.0.1"])
    assert notice.tell(run, Wishes(f"http://nowhere.invalid:{server.server_port}/x")) == []
    assert [path for path, _ in server.asked] == ["/x"]


def test_wishes_lie_privately_and_broken_ones_count_as_none(home: Path) -> None:
    for anywhere in (True, False):
        Wishes("https://a/b", ("x", "y"), anywhere).write()
        assert Wishes.read() == Wishes("https://a/b", ("x", "y"), anywhere)
    if os.name == "posix":
        assert (home / "notify.json").stat().st_mode & 0o077 == 0
    for text in ("[", "[]", '{"webhook": 3, "command": "rm -rf /"}'):
        (home / "notify.json").write_text(text)
        assert Wishes.read() == Wishes()


def test_the_command_line_sets_them_and_a_worker_tells(home: Path, tmp_path: Path, server: _Server, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import subprocess

    from ground import ROOT

    assert main(["notify", "--webhook", _address(server)]) == 0
    assert "secret" not in capsys.readouterr().out
    run = runs.create(Config.read({"model": {"name": "/nowhere/at/all"}}))
    subprocess.run([sys.executable, "-m", "core", "work", str(run.folder)], cwd=ROOT, capture_output=True, timeout=120, check=False)  # fmt: skip
    assert [told["outcome"] for _, told in server.asked] == ["failed"] and run.state() == "failed"


def _kill_a_worker(home: Path, name: str) -> Run:
    """A run whose worker was killed with no studio open."""
    import subprocess

    run = runs.create(Config(name=name))
    code = "import sys, time; from pathlib import Path; from core.runs import Run\nwith Run(Path(sys.argv[1])).claim(): print(); sys.stdout.flush(); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(run.folder)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None and worker.stdout.readline()
        worker.kill()
    assert run.state() == "interrupted"
    return run


def test_a_worker_that_was_killed_is_told_of_once_by_whoever_comes_next(home: Path, server: _Server) -> None:
    _kill_a_worker(home, "before anybody wanted to know")
    for path in home.rglob("*"):
        os.utime(path, (1, 1))
    Wishes(_address(server), anywhere=True).write()
    killed = _kill_a_worker(home, "killed")
    assert main(["queue", "start"]) == 0
    assert [(told["run"], told["outcome"]) for _, told in server.asked] == [(killed.id, "interrupted")]
    assert main(["queue", "start"]) == 0 and len(server.asked) == 1
    again = _kill_a_worker(home, "another")
    threads = [threading.Thread(target=notice.tell_killed, args=(again,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [told["run"] for _, told in server.asked] == [killed.id, again.id]
