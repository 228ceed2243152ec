"""Spools: what is kept in a file is what was given, and the file is nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core import dataset, spool
from core.examples import as_lines, from_line, keep_examples, ranges
from core.formats import Answer, Example, Message
from core.spool import Spool

EXAMPLES = [
    Example((Message("system", ""), Message("user", "Hi\r\n\0"), Message("assistant", "你好 🦜")), tools='[{"a": 1}]'),
    Example(text="good", labels=("a", "b"), several=True),
    Example(text="none", labels=()),
    Example(text=""),
    Example(question="Who?", context="Ann.", answers=(Answer("Ann", 0), Answer("nobody"))),
    Example(question="Who?", context="Ann.", answers=()),
    Example(source="cat", target="Katze"),
    Example(text="better", rejected=Example(text="worse", labels=())),
    Example((Message("user", "Hi"), Message("assistant", "Go away")), good=False),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hardly anything is kept in memory."""
    monkeypatch.setattr(spool, "IN_MEMORY", 4000)
    monkeypatch.setattr(spool, "BLOCK", 4)
    yield


def fill(count: int) -> Spool[Example]:
    kept = keep_examples()
    for place in range(count):
        kept.append(EXAMPLES[place % len(EXAMPLES)])
    return kept


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 12, 29])
def test_what_is_read_is_what_was_kept(small: None, count: int) -> None:
    kept, wanted = fill(count), [EXAMPLES[place % len(EXAMPLES)] for place in range(count)]
    assert len(kept) == count
    assert [kept[place] for place in range(count)] == wanted
    assert list(kept) == wanted == list(kept)
    assert kept[-3:] == wanted[-3:] and kept[1:20:5] == wanted[1:20:5]
    assert not count or kept[-1] == wanted[-1]
    for place in (count, -count - 1):
        with pytest.raises(IndexError):
            kept[place]


@pytest.mark.parametrize("count", [0, 1, 9, 12, 29])
@pytest.mark.parametrize("most", [1, 5, 8, 100])
def test_another_process_reads_what_was_kept(count: int, most: int, small: None) -> None:
    """Line by line, some together; those in a file as those in memory."""
    for kept in (fill(count), fill(min(count, 7))):
        some = list(ranges(kept, most))
        assert [place for one in some for place in one] == list(range(len(kept)))
        assert all(len(one) <= max(4, most) for one in some) and not any(len(one) == 0 for one in some)
        assert [from_line(line) for one in some for line in as_lines(kept, one)] == list(kept)
        middle = range(1, len(kept) - 1)
        assert [from_line(line) for line in as_lines(kept, middle)] == list(kept)[1:-1]


def test_what_is_heavy_is_not_read_together(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "BLOCK_BYTES", 2000)
    kept = keep_examples()
    for size in (10, 5000, 10, 10, 10, 10, 900, 900, 900, 10):
        kept.append(Example(text="a" * size))
    sizes = [sum(len(line) for line in as_lines(kept, one)) for one in ranges(kept, 100)]
    assert len(sizes) > 2 and max(sizes) < 6000 and sorted(sizes)[-2] < 2500


def test_what_is_being_read_does_not_grow(small: None) -> None:
    kept = fill(9)
    assert kept[0] == EXAMPLES[0]
    with pytest.raises(ValueError, match="cannot grow"):
        kept.append(EXAMPLES[0])


def test_a_data_set_is_the_same_in_a_file(small: None, tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": str(n)} for n in range(30)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"prompt": "\\ud800", "completion": "x"}\n')
    data = dataset.load(path)
    assert [example.messages[1].content for example in data.examples] == [str(n) for n in range(30)]
    assert list(data.numbers) == list(range(1, 31)) and [bad.row for bad in data.bad] == [31]


def test_the_file_has_no_name_and_is_gone_with_the_process(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from core import spool\n"
        "from core.examples import as_lines, from_line, keep_examples, ranges\n"
        "from core.formats import Example\n"
        "spool.IN_MEMORY, spool.BLOCK = 4000, 4\n"
        "kept = keep_examples()\n"
        "for _ in range(20): kept.append(Example(text='secret'))\n"
        "assert len(list(kept)) == 20\n"
        "print(len(os.listdir(os.environ['ATELIER_HOME'] + '/spool')), flush=True)\n"
        "os.kill(os.getpid(), 9 if os.name == 'posix' else signal.SIGTERM)\n"
    )
    env = os.environ | {"ATELIER_HOME": str(tmp_path / "home")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == ("0" if os.name == "posix" else "1"), done.stderr
    assert list((tmp_path / "home" / "spool").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_disk_without_room_is_said(tmp_path: Path) -> None:
    code = (
        "import resource\n"
        "from core import spool\n"
        "from core.examples import as_lines, from_line, keep_examples, ranges\n"
        "from core.formats import Example\n"
        "from core.problem import Problem\n"
        "spool.IN_MEMORY, spool.BLOCK = 4000, 4\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "kept = keep_examples()\n"
        "try:\n"
        "    for _ in range(200): kept.append(Example(text='x' * 100))\n"
        "except Problem as problem: print(problem)\n"
    )
    env = os.environ | {"ATELIER_HOME": str(tmp_path / "home")}
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("The data does not fit onto the disk: File too large."), done.stderr


def test_two_who_read_first_at_once_read_the_same(small: None) -> None:
    for _ in range(20):
        kept, found = fill(60), {}

        def read(name: int, kept: Spool[Example] = kept, found: dict[int, list[Example]] = found) -> None:
            found[name] = list(kept)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [found.get(number) for number in range(4)] == [list(kept)] * 4


def test_what_was_let_go_is_read_again(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "_LET_GO_EVERY", 3)
    kept = fill(60)
    assert [kept[place] for place in range(60)] == list(kept) == [kept[place] for place in range(60)]
    assert kept._reads == 120
    assert [from_line(line) for some in ranges(kept, 8) for line in as_lines(kept, some)] == list(kept)
    assert kept._reads == 180


def test_large_things_are_written_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "IN_MEMORY", 100_000)
    monkeypatch.setattr(spool, "BLOCK_BYTES", 50_000)
    kept = keep_examples()
    for number in range(40):
        kept.append(Example(text=str(number) * 20_000))
        assert len(kept._items) <= 6  # never many of them in memory
    assert [example.text[:1] for example in kept] == [str(number)[:1] for number in range(40)]
    assert kept[33].text == "33" * 20_000 and len(kept._batches) > 10
