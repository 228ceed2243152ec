"""A process is known again, and no other is taken for it, not even after the machine was started anew."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from core import parent, process


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as made:
        yield made
        made.kill()


def test_a_process_is_known_until_it_dies(child: subprocess.Popen[bytes]) -> None:
    note = process.identify(child.pid)
    assert process.lives(note) and process.lives(process.identify())
    child.kill()
    while process.lives(note):  # before it is waited for it is a zombie, which is dead
        pass
    child.wait()
    assert not process.lives(note)


@pytest.mark.parametrize(
    "change", [{"birth": 5.0, "ticks": None}, {"boot": "another"}, {"boot": "5"}, {"pid": "x"}, {"birth": None}]
)
def test_another_process_of_the_same_number_is_not_taken_for_it(change: dict[str, object]) -> None:
    assert not process.lives(process.identify() | change)
    assert not process.lives({}) and not process.lives(None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts from the start of the machine")
def test_a_clock_that_is_set_changes_no_process() -> None:
    note = process.identify()
    assert process.lives(note | {"birth": note["birth"] - 3600})
    assert not process.lives(note | {"ticks": note["ticks"] - 1})


def test_without_an_id_of_the_boot_its_second_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows, where setting the clock moves it a little."""
    note = process.identify() | {"boot": "1000"}
    for now, alive in (("1000", True), ("1060", True), ("9000", False)):
        monkeypatch.setattr(process, "boot", lambda now=now: now)
        assert process.lives(note) is alive


def test_a_note_of_an_older_version_is_read() -> None:
    told = process.identify()
    assert process.lives({"pid": os.getpid(), "birth": told["birth"]})


def test_a_helper_takes_no_other_process_for_its_parent(
    child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(parent.os, "_exit", ended.append)
    note = process.identify(child.pid)
    for other in (note | {"birth": note["birth"] - 9, "ticks": (note["ticks"] or 9) - 9}, {}, {"pid": child.pid}):
        parent._watch(other)
    assert ended == [0, 0, 0]
    watcher = threading.Thread(target=parent._watch, args=(note,))
    watcher.start()
    assert watcher.is_alive() and ended == [0, 0, 0]
    child.kill()
    child.wait()
    watcher.join(30)
    assert ended == [0, 0, 0, 0]


@pytest.mark.parametrize("by", ["name", "number"])
def test_a_helper_ends_with_the_process_that_introduced_itself(by: str) -> None:
    """One starts a helper and is killed: the helper closes the pipe that it alone still holds."""
    helper = (
        "import sys; from core import parent; parent.end_with(sys.argv[1]); print('up', flush=True); sys.stdin.read()"
    )
    one = f"import os, subprocess, sys; from core import parent; me = {'parent.introduce()' if by == 'name' else 'str(os.getpid())'}; subprocess.run([sys.executable, '-c', {helper!r}, me])"
    with subprocess.Popen([sys.executable, "-c", one], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None and starter.stdout.readline() == b"up\n"
        starter.kill()
        assert starter.stdout.read() == b""
