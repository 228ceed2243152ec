"""Helper processes share an inspection, and change nothing of it; whatever becomes of them, it comes to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import pytest
from ground import ROOT, run_core

from core import dataset, presets, spool
from core.engine import crew, helper, inspection
from core.engine.crew import Crew, Hand
from core.engine.helper import Helper, Told
from core.engine.inspection import inspect
from core.problem import Problem


@pytest.fixture
def shared_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """All data is large enough, and is done in many pieces."""
    monkeypatch.setattr(helper, "count_helpers", lambda _: 2)
    monkeypatch.setattr(crew, "_BLOCK", 8)
    monkeypatch.setattr(spool, "BLOCK", 4)


def write_rows(path: Path, task: str) -> Path:
    words = "the cat sat <s> on </s> mat é café 日本 cafÃ© what is 12 colour".split()
    texts = [" ".join(words[(n * 7 + k * k) % len(words)] for k in range(1 + n % 31)) for n in range(90)]
    texts += texts[:9]
    rows: list[Any] = [{"text": text, "label": "abc"[n % 7 % 3]} for n, text in enumerate(texts)]
    if task == "text":
        rows = [{"text": text} for text in texts]
    if task in ("chat", "generative_qa"):
        rows = []
        for n, text in enumerate(texts):
            turns = [{"role": "system", "content": f"be {n % 3}"}] * (n % 2)
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": text[::-1] or "-"}] * (
                1 + n % 3
            )
            rows.append({"messages": turns if n % 40 else "nothing"})
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def look(
    path: Path, model: Path, task: str, folder: Path | None, **more: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report but for the time that it took, and all rows."""
    changes = {"data.train": str(path), "model.name": str(model), "data.max_length": 64, "data.eval_rows": 9, **more}
    report = inspect(presets.load(task, changes), folder)
    kept = []
    if folder is not None:
        with pyarrow.memory_map(str(folder / "rows.arrow")) as file:
            kept = pyarrow.ipc.open_file(file).read_all().to_pylist()
    return {name: value for name, value in report.items() if "second" not in name}, kept


APART = {"measure", "survey"}


@pytest.mark.parametrize(
    ("task", "model", "more", "asked"),
    [
        ("chat", "llama", {"data.too_long": "drop"}, {"look"}),
        ("chat", "llama", {"data.eval": "held.jsonl", "data.train_on": "last_answer"}, {"look"}),
        ("text", "gpt2", {}, {"look"}),
        ("generative_qa", "llama", {"data.eval": "held.jsonl"}, {"look"}),
        ("chat", "llama", {"data.leave_out": ["duplicate", "mojibake"], "data.template": "plain"}, APART),
        ("classification", "bert", {}, APART),
    ],
    ids=["chat", "held apart", "text", "refused", "left out", "classification"],
)
def test_what_is_shared_is_found_as_by_one(
    task: str, model: str, more: dict[str, Any], asked: set[str], home: Path, family: Callable[[str], Path], tmp_path: Path,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whether rows are looked at while others are being read, or judged when all are known, and spelled thereafter."""
    path = write_rows(tmp_path / "rows.jsonl", task)
    if "data.eval" in more:
        held = write_rows(tmp_path / "held.jsonl", task)
        held.write_text("\n".join(held.read_text(encoding="utf-8").splitlines()[5:70]), encoding="utf-8")
        more = more | {"data.eval": str(held)}
    refused: list[list[dict[str, Any]]] = []
    report = inspection._Look.report

    def note(one: Any) -> dict[str, Any]:
        refused.append([problem.to_data() for problem in one.all.refusals])
        return report(one)

    monkeypatch.setattr(inspection._Look, "report", note)
    alone = look(path, family(model), task, tmp_path / "alone", **more)
    request.getfixturevalue("shared_work")
    here, there, do, ask = [], [], Hand.do, Helper.ask

    def count_answer(one: Helper, told: Told) -> Told | None:
        reply = ask(one, told)
        there.extend([told[0]["do"]] if reply else [])
        return reply

    monkeypatch.setattr(Hand, "do", lambda hand, *given: here.append(given[0]["do"]) or do(hand, *given))
    monkeypatch.setattr(Helper, "ask", count_answer)
    shared = look(path, family(model), task, tmp_path / "shared", **more)
    assert shared == alone
    assert {*here} == {*there} == asked
    # Where nobody keeps the rows, they are counted all the same.
    assert look(path, family(model), task, None, **more)[0] == alone[0]
    assert refused[0] == refused[1] and bool(refused[0]) == (task == "generative_qa")
    names = {one["name"] for one in shared[0]["findings"]}
    assert names & {"duplicate", "left_out", "near_duplicate"}
    if "data.eval" in more and task == "chat":
        assert "overlap" in names and {row["aside"] for row in shared[1]} == {True, False}


def test_the_command_line_starts_helpers_while_it_starts_itself(
    shared_work: None, home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same helpers do the work, and they are gone with it, also when nothing came of it."""
    path, there, begun = write_rows(tmp_path / "rows.jsonl", "chat"), list[Helper](), list[bool]()
    start, look_at = Helper.__init__, inspection.inspect
    monkeypatch.setattr(Helper, "__init__", lambda one: there.append(one) or start(one))
    monkeypatch.setattr(inspection, "inspect", lambda *given: begun.append(len(there) == 2) or look_at(*given))
    done = run_core(home, "check-data", path, "--model", family("llama"), check=False)
    assert "trained_rows" in done.stdout and begun == [True] and len(there) == 2
    monkeypatch.setattr(inspection, "inspect", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_core(home, "check-data", path, "--model", family("llama"))
    assert len(there) == 4 and all(one.process.poll() is not None for one in there)


@pytest.mark.parametrize("trouble", ["one killed", "all killed", "another tokenizer", "none starts"])
def test_what_helpers_do_not_do_is_done_all_the_same(
    trouble: str, shared_work: None, home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    path = write_rows(tmp_path / "rows.jsonl", "chat")
    there: list[Crew] = []
    begin, ask, end, done, do = Crew.__enter__, Helper.ask, Helper.end, [], Hand.do
    lost: list[bool] = []
    killed = {"one killed": 1, "all killed": 2}.get(trouble, 0)

    def kill(one: Helper, told: Told) -> Told | None:
        if told[0]["do"] == "look" and one.process.pid in there[0].pids[:killed]:
            one.process.kill()
        return ask(one, told)

    monkeypatch.setattr(Crew, "__enter__", lambda one: there.append(one) or begin(one))
    monkeypatch.setattr(Helper, "ask", kill)
    monkeypatch.setattr(Helper, "end", lambda one: lost.append(one._is_lost) or end(one))
    monkeypatch.setattr(Hand, "do", lambda hand, *given: done.append(given[0]["do"]) or do(hand, *given))
    if trouble == "another tokenizer":
        monkeypatch.setattr(crew, "fingerprint", lambda _: "that of none")
    if trouble == "none starts":
        monkeypatch.setattr(helper.launch, "environment", lambda: {"PYTHONHOME": str(tmp_path)})
    shared = look(path, family("llama"), "chat", tmp_path / "shared")
    assert len(there) == 1 and not any(map(psutil.pid_exists, there[0].pids))
    assert "look" in done and lost == [True, trouble != "one killed"]
    monkeypatch.setattr(helper, "count_helpers", lambda _: 0)
    assert shared == look(path, family("llama"), "chat", tmp_path / "alone")
    assert len(there) == 1


def test_who_asked_can_end_it_and_no_helper_stays(
    shared_work: None, home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", "chat")
    monkeypatch.setattr(dataset, "_SAY_EVERY", 5)
    pids: list[int] = []
    prepare = Crew.prepare
    monkeypatch.setattr(
        Crew, "prepare", lambda one, *given, **more: pids.extend(one.pids) or prepare(one, *given, **more)
    )
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if done == 50:
            raise KeyboardInterrupt

    config = presets.load("chat", {"data.train": str(path), "model.name": str(family("llama"))})
    with pytest.raises(KeyboardInterrupt):
        inspect(config, tell=tell)
    assert [done for done, _ in told] == [*range(5, 51, 5)]
    # All of so short a file has been looked at to tell its format: nobody knows what share the rows are.
    assert {total for _, total in told} == {0}
    assert len(pids) == 2 and not any(map(psutil.pid_exists, pids))


def test_how_far_it_is_is_guessed_where_bytes_tell(
    shared_work: None, home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_SAY_EVERY", 100)
    monkeypatch.setattr(crew, "_BLOCK", 1000)
    rows = [{"prompt": f"what {n}", "completion": "the cat sat on the mat " * (1 + n % 9)} for n in range(2000)]
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)

    def totals(train: str, rows: int, **more: str) -> list[int]:
        told: list[tuple[int, int]] = []
        settings = {"data.train": train, "model.name": str(family("llama")), "data.eval_rows": 9} | more
        inspect(presets.load("chat", settings), tell=lambda *given: told.append(given))
        assert told[-1] == (rows, rows)
        return [total for done, total in told[:-1] if done < 1900]

    guessed = totals(str(lines), 2000)
    assert len(guessed) == 18 and all(1900 <= total <= 2300 for total in guessed)
    # Of a table nobody knows, nor where two data sets are read one after the other.
    assert set(totals(str(table), 2000)) == set(totals(f"{lines};{table}", 4000)) == {0}
    assert set(totals(str(lines), 4000, **{"data.eval": str(table)})) == {0}


def test_a_helper_that_the_system_does_not_start_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Helper] = []

    def begin(one: Helper) -> None:
        if begun:
            raise OSError("no more processes")
        begun.append(one)

    monkeypatch.setattr(Helper, "__init__", begin)
    monkeypatch.setattr(helper, "count_helpers", lambda _: 3)
    assert helper.start_helpers(1) == begun and len(begun) == 1


def test_a_mistake_is_the_same_problem(
    shared_work: None, home: Path, family: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", "classification")
    config = presets.load("chat", {"data.train": str(path), "model.name": str(family("llama"))})
    with pytest.raises(Problem, match="not what the task chat learns from"):
        inspect(config)


def test_what_is_found_ahead_is_let_go(
    shared_work: None, home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that people see is kept once, and what was found of some rows until it is counted."""
    there: list[Any] = []
    take = crew._Drafts.take

    def watch(one: Any, *given: Any, **more: Any) -> Any:
        there.append(sum(told["first"] is not None for told, *_ in one._parts))
        for count, found in enumerate(take(one, *given, **more), 1):
            there.append(len(one._parts) + count)
            yield found

    monkeypatch.setattr(crew._Drafts, "take", watch)
    look(write_rows(tmp_path / "rows.jsonl", "chat"), family("llama"), "chat", tmp_path / "look")
    first, *parts = there
    assert first == 1 and len(parts) > 5 and set(parts) == {len(parts)}


def test_helpers_end_with_whoever_started_them(home: Path) -> None:
    code = "import time\nfrom core.engine.helper import Helper\nthere = [Helper(), Helper()]\nprint(*[one.process.pid for one in there], flush=True)\ntime.sleep(60)"
    one = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert one.stdout is not None
    helpers = [psutil.Process(int(pid)) for pid in one.stdout.readline().split()]
    one.kill()
    one.wait()
    gone, there = psutil.wait_procs(helpers, timeout=60)
    assert len(gone) == 2 and not there


def test_small_data_has_no_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper.os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert [helper.count_helpers(size * helper.ENOUGH // 2) for size in (0, 1, 2, 3, 4, 6, 99)] == [
        0,
        0,
        1,
        1,
        2,
        3,
        3,
    ]
    monkeypatch.setattr(helper.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert helper.count_helpers(10**12) == 0
