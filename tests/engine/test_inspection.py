"""What an inspection shows is what is trained, and whatever is wrong with a data set is found and counted."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from ground import ROOT, run_core
from transformers import AutoTokenizer

from core import presets, runs
from core.engine import inspection, loop, survey, worker
from core.engine.inspection import REPORT_FILE, ROWS_FILE, inspect
from core.findings import KINDS, SEVERITIES, Finding
from core.problem import Problem
from studio.inspections import Inspection


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return path


def talk(question: str, answer: str, system: str = "") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": [{"role": "system", "content": system}, *turns] if system else turns}


def look(path: Path, model: Path, task: str = "chat", folder: Path | None = None, **changes: Any) -> dict[str, Any]:
    """The report on a file, with other settings as `data__max_length=32`."""
    told = {key.replace("__", "."): value for key, value in changes.items()}
    return inspect(presets.load(task, {"data.train": str(path), "model.name": str(model)} | told), folder)


def rows_in(folder: Path) -> list[dict[str, Any]]:
    with pyarrow.memory_map(str(folder / ROWS_FILE)) as file:
        return pyarrow.ipc.open_file(file).read_all().to_pylist()


CASES = [
    ("llama", "chat", "lora"),
    ("llama", "chat", "lora oldest"),
    ("llama", "chat", "lora split"),
    ("llama", "chat", "lora drop"),
    ("llama", "chat", "lora plain"),
    ("llama", "chat", "prompt_tuning"),
    ("llama", "chat", "prefix_tuning"),
    ("gpt2", "text", "lora"),
    ("roberta", "classification", "lora"),
    ("roberta", "classification", "p_tuning"),
    ("bert", "extractive_qa", "lora"),
    ("t5", "seq2seq", "lora"),
]


@pytest.mark.parametrize(("name", "task", "method"), CASES)
def test_what_is_shown_is_what_is_trained(
    home: Path, family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, task: str, method: str
) -> None:  # fmt: skip
    """The rows of an epoch's batches are the shown ones, bit for bit: what is cut, what is learned, what is set aside."""
    words = "the cat sat on the mat what is colour of sky".split()
    texts = [" ".join(words[(n + k) % len(words)] for k in range(2 + 9 * (n % 7))) for n in range(24)]
    rows = {
        "chat": [
            {"messages": talk(text, text[::-1], "be brief" if n % 3 else "")["messages"] + talk("what", "the sky")["messages"] * (n % 4)}
            for n, text in enumerate(texts)
        ],
        "text": [{"text": text} for text in texts],
        "classification": [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts)],
        "extractive_qa": [{"context": text, "question": "what", "answers": {"text": [text.split()[0]], "answer_start": [0]}} for text in texts],
        "seq2seq": [{"source": text, "target": text[:20]} for text in texts],
    }[task]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", rows)
    changes = {
        "data.train": str(path), "model.name": str(family(name)), "method.name": method, "data.max_length": 48, "data.eval_fraction": 0.25,
        "train.epochs": 1, "train.batch_size": 4, "train.eval_every": 0, "train.save_every": 0, "samples.scored": 0,
    }  # fmt: skip
    if method in ("prompt_tuning", "prefix_tuning", "p_tuning"):
        # What the model can read, less what stands before every row.
        changes |= {"method.tokens": 5, "data.max_length": 1000}
    method, _, too_long = method.partition(" ")
    template, too_long = ("plain", "") if too_long == "plain" else ("model", too_long)
    changes |= {"method.name": method, "data.too_long": too_long or "cut", "data.template": template}
    if template == "plain":
        changes["data.max_length"] = 96  # its headings are long
    config = presets.load(task, changes)
    report = inspect(config, tmp_path / "look")
    batched: list[Any] = []
    real = loop.collate

    def collate(given: Any, *arguments: Any, **more: Any) -> Any:
        batched.extend(given)
        return real(given, *arguments, **more)

    # The first rows are read once more, to measure what the head reads: only the steps count here.
    monkeypatch.setattr(loop, "_read_some", lambda *_: None)
    monkeypatch.setattr(loop, "collate", collate)
    run = runs.create(config)
    worker.work(run)
    assert (run.result() or {})["outcome"] == "completed", run.result()
    shown = rows_in(tmp_path / "look")

    def fingerprint(ids: list[int], learned: list[bool]) -> str:
        return json.dumps([ids, learned])

    trained = Counter(fingerprint(*map(list, zip(*row.shown(), strict=True))) for row in batched)
    expected = Counter(
        fingerprint(row["ids"], row["learned"])
        for row in shown
        if not row["aside"] and not {"unlearned", "dropped"} & set(row["findings"])
    )
    assert trained == expected and len(batched) == report["train_rows"] > 3
    started = next(event for event in run.metrics().events if event["event"] == "started")
    assert (started["max_length"], started["eval_rows"]) == (report["max_length"], report["aside_rows"])
    if method in ("prompt_tuning", "p_tuning"):
        assert report["max_length"] == 123
    assert report["aside_rows"] > 0 or too_long == "drop"
    if template == "plain":
        (found,) = (one for one in report["findings"] if one["name"] == "plain")
        assert found["count"] == report["trained_rows"] and found["remedies"] == [{"data.template": "model"}]
        tokenizer = AutoTokenizer.from_pretrained(family(name))
        assert {tokenizer.decode(row["ids"][1:6]) for row in shown} == {"### S", "### U"}
    if task in ("chat", "classification") and method == "lora" and too_long != "drop":
        assert any(row["lost"] for row in shown), "some rows are longer than they may be"
    if too_long == "drop":
        dropped = [row for row in shown if "dropped" in row["findings"]]
        assert report["dropped_rows"] == started["dropped_rows"] == len(dropped) > 0
        assert [bool(row["lost"]) for row in shown] == [row in dropped for row in shown]
        assert not any(row["ids"] for row in dropped) and max(len(row["lost"]) for row in dropped) > 48
    numbers = [row["number"] for row in shown]
    assert (len(set(numbers)) < len(numbers)) == (too_long == "split" or task in ("text", "extractive_qa"))


def test_every_kind_of_trouble_is_found(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [
        talk("a", "sat"),
        talk("A !", "sat."),  # the first again, but for case and punctuation
        talk("b", "cafÃ© ole"),
        talk("c", "the </s> mat"),
        talk("d", "the mat " * 60),
        talk("the mat " * 90, "sat"),
        {"messages": "nothing"},
        talk("e", "Сказка о рыбаке"),
        talk("f", "猫坐在垫子上"),
        talk("g", "cat", "be brief"),
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    report = look(path, family("llama"), folder=tmp_path / "look", data__max_length=64, data__eval_fraction=0.0)
    found = {one["name"]: one for one in report["findings"]}
    assert {name: one["rows"] for name, one in found.items()} == {
        "bad": [7], "unlearned": [6], "cut_answer": [5], "mojibake": [3], "special": [4], "duplicate": [2],
    }  # fmt: skip
    assert [SEVERITIES.index(one["severity"]) for one in report["findings"]] == sorted(
        SEVERITIES.index(one["severity"]) for one in report["findings"]
    )
    longest = found["cut_answer"]["remedies"][0]["data.max_length"]
    assert longest == 128 < max(len(row["ids"]) + len(row["lost"]) for row in rows_in(tmp_path / "look"))
    again = look(path, family("llama"), data__max_length=longest, data__eval_fraction=0.0)
    mended = {one["name"] for one in again["findings"]}
    # The model itself reads 128 tokens; beyond that no setting helps, and none is offered.
    assert again["max_length"] == 128 and all(
        "data.max_length" not in way for one in again["findings"] for way in one["remedies"]
    )
    assert mended <= {"bad", "unlearned", "cut_answer", "mojibake", "special", "duplicate"}
    assert report["scripts"] == {"Latin": 7, "Cyrillic": 1, "Han": 1}
    assert report["systems"]["rows"] == 1 and report["turns"] == {"1": 9}
    kept = rows_in(tmp_path / "look")
    assert [row["number"] for row in kept] == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert json.loads((tmp_path / "look" / REPORT_FILE).read_text())["rows"] == report["rows"] == 10
    assert sum(report["lengths"]["counts"]) == 9 and report["trained_rows"] == 8


def test_labels_that_contradict_are_rare_or_leak(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [{"text": f"the cat {n}", "label": "ab"[n % 2]} for n in range(20)]
    train = write(tmp_path / "train.jsonl", [*rows, {"text": "the cat 4", "label": "b"}, {"text": "sky", "label": "c"}])
    held = write(tmp_path / "held.jsonl", [{"text": "The CAT 7", "label": "b"}, {"text": "mat", "label": "a"}])
    report = look(train, family("bert"), "classification", data__eval=str(held))
    found = {one["name"]: (one["count"], one["rows"]) for one in report["findings"]}
    assert found["conflict"] == (1, [21]) and found["overlap"] == (1, [1]) and found["lonely_label"][0] == 1
    assert report["labels"] == {"a": 11, "b": 12, "c": 1}


def test_rows_set_aside_are_found_among_the_trained_wherever_they_stand(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    """A row that is set aside may stand before the one that it repeats."""
    path = write(tmp_path / "rows.jsonl", [talk(f"a {n % 10}", "sat") for n in range(20)])
    report = look(path, family("llama"), folder=tmp_path / "look", data__eval_rows=4)
    aside = [row["number"] for row in rows_in(tmp_path / "look") if row["aside"]]
    found = {one["name"]: one["rows"] for one in report["findings"]}
    both = [number for number in aside if (number + 10 if number <= 10 else number - 10) not in aside]
    assert found["overlap"] == both != [] and len(aside) == 4
    assert any(number <= 10 for number in both)


def test_rows_are_left_out_for_what_was_found(home: Path, family: Callable[[str], Path], tmp_path: Path) -> None:
    """A remedy, taken, leaves exactly the named rows out of the training, and of the evaluation."""
    rows = [{"text": f"the cat {n}", "label": "ab"[n % 2]} for n in range(20)]
    worse = [
        {"text": "The cat, 4!", "label": "a"},
        {"text": "the cat 5", "label": "a"},
        {"text": "cafÃ© ole", "label": "b"},
    ]
    train = write(tmp_path / "train.jsonl", rows + worse)
    held = write(tmp_path / "held.jsonl", [{"text": "The CAT 7", "label": "b"}, {"text": "mat", "label": "a"}])
    report = look(train, family("bert"), "classification", data__eval=str(held))
    found = {one["name"]: one for one in report["findings"]}
    names = ["conflict", "overlap", "duplicate", "mojibake"]
    assert {name: found[name]["rows"] for name in names} == {
        "conflict": [22], "overlap": [1], "duplicate": [21, 22], "mojibake": [23],
    }  # fmt: skip
    changes: dict[str, Any] = {}
    for name in names:
        there = {
            one["name"]: one
            for one in look(train, family("bert"), "classification", data__eval=str(held), **changes)["findings"]
        }
        if name in there:
            (remedy,) = there[name]["remedies"]
            changes = {key.replace(".", "__"): value for key, value in remedy.items()}
    out = tmp_path / "look"
    told = look(train, family("bert"), "classification", out, data__eval=str(held), **changes)
    left = {one["name"]: one for one in told["findings"]}
    assert not set(names) & set(left) and left["left_out"]["count"] == told["left_out_rows"] == 4
    assert left["left_out"]["remedies"] == [{"data.leave_out": []}]
    assert (told["train_rows"], told["aside_rows"], told["trained_rows"]) == (20, 1, 21)
    gone = [(row["aside"], row["number"]) for row in rows_in(out) if "left_out" in row["findings"]]
    assert gone == [(False, 21), (False, 22), (False, 23), (True, 1)]
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    run = runs.create(
        presets.load(
            "classification",
            settings | {
                "data.train": str(train), "data.eval": str(held), "model.name": str(family("bert")), "train.max_steps": 1,
                "train.batch_size": 2,
            },
        )
    )  # fmt: skip
    worker.work(run)
    (started,) = [event for event in run.metrics().events if event["event"] == "started"]
    assert (started["rows"], started["eval_rows"]) == (20, 1)


def test_preferences_are_counted_and_not_trained(home: Path, family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [{"prompt": "what", "chosen": f"the cat {n % 3}", "rejected": "cafÃ©"} for n in range(4)]
    path = write(tmp_path / "rows.jsonl", rows)
    report = look(path, family("llama"), folder=tmp_path / "look", data__eval_fraction=0.0)
    found = {one["name"]: (one["severity"], one["count"], one["rows"]) for one in report["findings"]}
    assert found["judged"] == ("stop", 4, [1, 2, 3, 4]) and found["duplicate"][2] == [4] and found["mojibake"][1] == 4
    assert (report["format"], report["rows"], report["tokens"], report["starts"]) == ("preference", 4, 0, False)
    assert report["turns"] == {"1": 4} and rows_in(tmp_path / "look") == []
    done = run_core(home, "check-data", path, "--model", family("llama"), check=False)
    assert done.returncode == 2 and "[stop] Rows that say how good an answer is: 4." in done.stdout
    chosen = look(path, family("llama"), data__format="chosen", data__eval_fraction=0.0)
    assert chosen["starts"] and chosen["train_rows"] == 4


def test_of_several_files_the_one_with_the_row_is_named(
    home: Path, family: Callable[[str], Path], tmp_path: Path
) -> None:
    write(tmp_path / "one.jsonl", [talk("a", "sat"), {"messages": 3}, talk("b", "cafÃ© ole")])
    write(tmp_path / "two.jsonl", [talk("c", "cafÃ© mat"), talk("A!", "Sat")])
    held = write(tmp_path / "held.jsonl", [talk("d", "cafÃ© sky"), talk("d", "the sky")])
    several = f"{tmp_path / 'one.jsonl'};{tmp_path / 'two.jsonl'}"
    report = look(Path(several), family("llama"), folder=tmp_path / "look", data__eval=str(held))
    found = {one["name"]: Finding.from_data(one) for one in report["findings"]}
    assert found["mojibake"].list_rows(9) == "one.jsonl 3 · two.jsonl 1 · held.jsonl 1"
    assert found["mojibake"].list_rows(2, str.upper) == "ONE.JSONL 3 · TWO.JSONL 1 …"
    assert found["duplicate"].list_rows(9) == "two.jsonl 2" and found["bad"].list_rows(9) == "one.jsonl 2"
    seen = Inspection(tmp_path / "look")
    places = [
        ("one.jsonl", 1),
        ("one.jsonl", 3),
        ("two.jsonl", 1),
        ("two.jsonl", 2),
        ("held.jsonl", 1),
        ("held.jsonl", 2),
    ]
    assert [seen.where(place) for place in range(len(seen))] == places
    done = run_core(home, "check-data", several, "--model", family("llama"), "--set", f"data.eval={held}")
    assert "(rows one.jsonl 3 · two.jsonl 1 · held.jsonl 1)" in done.stdout
    alone = look(tmp_path / "two.jsonl", family("llama"), folder=tmp_path / "alone", data__eval_rows=1)
    (garbled,) = (Finding.from_data(one) for one in alone["findings"] if one["name"] == "mojibake")
    assert (garbled.files, garbled.list_rows(9)) == ((), "1") and Inspection(tmp_path / "alone").where(1) == ("", 2)


def test_the_clean_one_of_two_stays(family: Callable[[str], Path], tmp_path: Path) -> None:
    """What a row repeats may go for another reason; then the repetition is none."""
    words = " ".join(f"word{n}" for n in range(60))
    path = write(tmp_path / "rows.jsonl", [talk("a", f"cafÃ© {words}"), talk("a", f"café {words}"), talk("b", "sat")])
    report = look(path, family("llama"), data__eval_fraction=0.0, data__leave_out=["near_duplicate", "mojibake"])
    found = {one["name"]: one["rows"] for one in report["findings"]}
    assert found["left_out"] == [1] and report["train_rows"] == 2 and "near_duplicate" not in found


def test_rows_that_are_left_out_are_not_counted_as_cut(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [talk("a", "the mat " * 60), talk("a", "the mat " * 60), talk("b", "sat")]
    path = write(tmp_path / "rows.jsonl", rows)
    changes = {"data__eval_fraction": 0.0, "data__leave_out": ["duplicate"], "data__max_length": 64}
    assert look(path, family("llama"), **changes)["cut_rows"] == 1
    assert look(path, family("llama"), data__too_long="drop", **changes)["dropped_rows"] == 1


def test_nothing_is_left_when_all_is_left_out(family: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [talk("a", "cafÃ© ole") for _ in range(4)])
    with pytest.raises(Problem, match="No row is left to train on: all have mojibake") as caught:
        look(path, family("llama"), data__eval_fraction=0.0, data__leave_out=["mojibake"])
    assert caught.value.field == "data.leave_out"


def test_labels_on_one_side_alone(family: Callable[[str], Path], tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", [{"text": f"the cat {n}", "label": "abc"[n % 3]} for n in range(9)])
    held = write(tmp_path / "held.jsonl", [{"text": f"mat {n}", "label": "abd"[n % 3]} for n in range(6)])
    report = look(train, family("bert"), "classification", data__eval=str(held))
    found = {one["name"]: (one["severity"], one["count"]) for one in report["findings"]}
    assert found["unlearned_label"] == ("warn", 2) and found["unmeasured_label"] == ("note", 3)
    same = look(train, family("bert"), "classification", data__eval=str(train))
    assert not {"unlearned_label", "unmeasured_label"} & {one["name"] for one in same["findings"]}


def test_what_long_rows_lose_is_said_however_they_lose_it(family: Callable[[str], Path], tmp_path: Path) -> None:
    turns = [turn for n in range(6) for turn in talk(f"what {n}", "the cat sat")["messages"]]
    path = write(tmp_path / "rows.jsonl", [{"messages": turns}, talk("a", "sat")])
    changes = {"data__max_length": 40, "data__eval_fraction": 0.0}
    found = {one["name"]: one for one in look(path, family("llama"), data__too_long="oldest", **changes)["findings"]}
    assert found["shortened"]["rows"] == [1] and {"data.max_length": 64} in found["shortened"]["remedies"]
    report = look(path, family("llama"), data__too_long="drop", **changes)
    found = {one["name"]: one for one in report["findings"]}
    assert found["dropped"]["rows"] == [1] and {"data.max_length": 64} in found["dropped"]["remedies"]
    assert sum(report["lengths"]["counts"]) == 2 and report["trained_rows"] == 1
    pairs = [{"source": "the cat", "target": "sat on the mat " * 9}, {"source": "the cat", "target": "sat"}]
    report = look(
        write(tmp_path / "pairs.jsonl", pairs), family("t5"), "seq2seq", data__max_length=24, data__eval_fraction=0.0
    )
    found = {one["name"]: one for one in report["findings"]}
    assert found["cut_answer"]["rows"] == [1]
    assert max(report["lengths"]["edges"]) <= 48  # an answer is not counted together with what it answers


def test_a_token_that_fills_up_and_ends_is_said(family: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    path = write(tmp_path / "rows.jsonl", [talk("a", "sat")] * 3)
    model = Path(shutil.copytree(family("llama"), tmp_path / "model"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    names = []
    for pad in (settings["eos_token"], settings.get("unk_token") or "<unk>"):
        (model / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": pad}))
        report = look(path, model, data__eval_fraction=0.0)
        names.append({one["name"]: one["count"] for one in report["findings"]})
    assert names[0]["pad_is_end"] == 3 and "pad_is_end" not in names[1]


def test_templates_that_drop_the_system_prompt_or_never_end(family: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    model = Path(shutil.copytree(family("llama"), tmp_path / "model"))
    template = next(model.glob("*.jinja"))
    body = "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    template.write_text("{{ bos_token }}{{ bos_token }}" + body)
    path = write(
        tmp_path / "rows.jsonl", [talk("a", "sat", "be brief"), talk("a cat", "sat", "be kind"), talk("b", "sat")]
    )
    found = {one["name"]: one["rows"] for one in look(path, model, data__eval_fraction=0.0)["findings"]}
    assert found["dropped_system"] == [1, 2] and found["double_start"] == [1, 2, 3]
    assert "endless" not in found  # an end is given to answers that the template leaves without one


@pytest.mark.parametrize(("template", "finding"), [("internlm", "dropped_system"), ("gemma", "refused")])
def test_the_plain_template_mends_what_the_models_own_drops_or_refuses(
    shared: Path, tmp_path: Path, template: str, finding: str
) -> None:
    """On real models: one press takes the finding away, and another takes the press back."""
    import shutil

    model = Path(shutil.copytree(shared / "models" / "stories260K", tmp_path / "model"))
    path = write(tmp_path / "rows.jsonl", [talk("a", "sat", "be brief"), talk("b", "sat")])
    bare = {one["name"]: one for one in look(path, model, data__eval_fraction=0.0)["findings"]}
    assert bare["plain"]["count"] == 2 and not bare["plain"]["remedies"], "it has no other"
    shutil.copy(ROOT / "tests" / "templates" / f"{template}.jinja", model / "chat_template.jinja")
    before = {one["name"]: one for one in look(path, model, data__eval_fraction=0.0)["findings"]}
    assert before[finding]["rows"] == [1] and before[finding]["remedies"] == [{"data.template": "plain"}]
    after = look(path, model, data__eval_fraction=0.0, data__template="plain")
    there = {one["name"]: one for one in after["findings"]}
    assert finding not in there and "plain" not in before and after["trained_rows"] == 2
    assert there["plain"]["remedies"] == [{"data.template": "model"}]


def test_no_other_template_is_offered_for_what_the_task_refuses(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = [{"context": "the cat sat", "question": "who", "answers": answers} for answers in (["the cat"], [])]
    path = write(tmp_path / "rows.jsonl", rows)
    report = look(path, family("llama"), "generative_qa", data__eval_fraction=0.0)
    found = {one["name"]: one for one in report["findings"]}
    assert found["refused"]["rows"] == [2] and not found["refused"]["remedies"]


def test_nothing_to_learn_is_said_and_ends_with_2(home: Path, family: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [talk("the mat " * 90, "sat") for _ in range(3)])
    done = run_core(home, "check-data", path, "--model", family("llama"), "--set", "data.max_length=16", check=False)
    assert done.returncode == 2 and "[stop] Rows of which nothing is learned: 3." in done.stdout
    out = tmp_path / "out"
    write(path, [talk("a", "sat") for _ in range(3)])
    done = run_core(home, "check-data", path, "--model", family("llama"), "--out", out, "--json")
    told = json.loads(done.stdout)
    assert told["starts"] and json.loads((out / "progress.json").read_text()) == {"done": 3, "total": 3}
    assert len(rows_in(out)) == 3
    done = run_core(home, "check-data", tmp_path / "none.jsonl", "--out", tmp_path / "bad", check=False)
    assert done.returncode == 2
    assert (
        Problem.from_data(json.loads((tmp_path / "bad" / "problem.json").read_text())).what
        == "There is no file {path}."
    )


def test_whoever_asked_can_end_it(family: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [talk("a", "sat")] * 4)
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect(presets.load("chat", {"data.train": str(path), "model.name": str(family("llama"))}), tell=tell)
    assert told == [(0, 4)]


def test_findings_are_plain_data_and_back() -> None:
    for name in KINDS:
        one = Finding(name, 3, (1, 2), ({"data.max_length": 64}, {"data.too_long": "drop"}), ("a", "b"))
        assert Finding.from_data(json.loads(json.dumps(one.to_data()))) == one
        assert "{" not in str(one.problem)


def test_a_folder_that_cannot_be_read_is_told_beside_the_data(family: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(Problem, match="No file of the folder") as caught:
        look(tmp_path / "data", family("llama"))
    assert [problem.field for problem in caught.value.parts] == ["data.train"]


def test_rows_are_counted_as_they_would_be_packed() -> None:
    """First fit, the longest first, in every batch by itself; against the same row by row."""
    draw = random.Random(0)
    for most in (10, 40, 100):
        batches = [[draw.randint(1, 60) for _ in range(draw.randint(1, 8))] for _ in range(50)]
        expected = 0
        for lengths in batches:
            bins: list[int] = []
            for length in sorted(lengths, reverse=True):
                room = [place for place, taken in enumerate(bins) if taken + length <= most]
                if room:
                    bins[room[0]] += length
                else:
                    bins.append(length)
            expected += max(bins) * len(bins)
        table = np.array([lengths + [0] * (8 - len(lengths)) for lengths in batches])
        assert inspection._count_packed(table, most) == expected
    assert inspection._count_packed(np.zeros((0, 8), np.int64), 10) == 0


def test_batches_are_no_wider_than_there_are_rows(
    family: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch size that nobody can fill costs nothing."""
    path = write(tmp_path / "rows.jsonl", [talk(f"a {n}", "sat") for n in range(20)])
    shapes = []
    count = inspection._count_packed
    monkeypatch.setattr(
        inspection, "_count_packed", lambda batches, most: shapes.append(batches.shape) or count(batches, most)
    )
    few = look(path, family("llama"), data__eval_fraction=0.0, train__batch_size=20)
    many = look(path, family("llama"), data__eval_fraction=0.0, train__batch_size=60_000)
    assert few["padding"] == many["padding"] and shapes == [(1, 20), (1, 20)]


def test_the_script_is_that_of_most_letters() -> None:
    letters = "abcXYZ 12.,!éÉßñøΣσжЖ日本語かなカ한글עבאبतमไทย\u0301½😀ＡÂ—"
    draw, seen = random.Random(0), set()
    for _ in range(4000):
        text = "".join(draw.choices(letters[: draw.randint(1, len(letters))], k=draw.randint(1, 30)))
        counts = {name: len(re.findall(f"[{span}]", text)) for name, span in survey.SCRIPTS.items()}
        best = max(counts, key=lambda name: counts[name])
        expected = best if counts[best] else "other" if any(map(str.isalpha, text)) else "none"
        expected = "Kana" if counts["Kana"] and counts["Han"] else expected
        assert survey._script([text]) == expected, repr(text)
        seen.add(expected)
    assert seen >= {"Latin", "Kana", "none"}
