"""The whole window is drawn in every language, and its handlers answer whatever a page may send."""

import hashlib
import html
import json
import math
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from core import formats, methods, runs
from core.advice import advise
from core.config import Config
from core.runs import Metrics, Run
from studio import language, report, tabs, window
from studio.form import Form, knobs
from studio.language import Language
from studio.metrics import read_metrics
from studio.panel import find
from studio.tabs import data as data_tab
from studio.tabs import runs as runs_tab
from studio.tabs import train as train_tab

NONSENSE: list[Any] = [
    None,
    True,
    float("nan"),
    -1,
    [1],
    {"a": 1},
    "../../etc/passwd",
    "x" * 10**6,
    "\0",
    "<script>alert(1)</script>",
]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path))
    return tmp_path


def _run(name: str = "a <b>name</b>", outcome: str | None = "stopped", steps: int = 3) -> Run:
    run = runs.create(Config(name=name))
    lines = [
        {"event": "started", "step": 0, "rows": 9, "trainable": 10, "parameters": 100, "device": "CPU"},
        {"event": "unheard_of", "step": 1, "why": "<i>x</i>"},
    ]
    lines += [
        {"step": step, "steps": 9, "loss": 2.0 / step, "tokens_per_second": 1234.5, "eta_s": 200.0}
        for step in range(1, steps + 1)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.folder / "samples.jsonl").write_text(
        json.dumps({"step": 0, "prompt": "<b>who?</b>", "answer": "<script>alert(1)</script>"}) + "\n"
    )
    if outcome:
        run.finish(outcome, "it ended", step=steps, steps=9)  # type: ignore[arg-type]
    return run


@pytest.mark.parametrize("code", language.codes())
def test_every_tab_is_drawn(code: str) -> None:
    blocks = window.build(code)
    drawn = [block for block in blocks.blocks.values() if isinstance(block, gr.Tab)]
    assert [tab.id for tab in drawn] == list(tabs.walk())
    assert [tab.label for tab in drawn] == [Language(code).t(tab.NAME) for tab in tabs.walk().values()]


def test_the_tabs_are_the_files_of_their_folder() -> None:
    files = {path.stem for path in Path(tabs.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(tabs.walk()) == files


def test_the_window_never_loads_torch(home: Path) -> None:
    script = "import sys; from studio import window; [window.build(code) for code in window.languages.codes()]; assert not {'torch', 'transformers'} & set(sys.modules), 'torch was loaded'"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(window.__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_header_says_the_machine_in_the_pages_language(draw: Any, home: Path) -> None:
    header = draw(window._Header, "zh")

    def said(told: dict[str, Any]) -> str:
        header.page.launcher._device = told
        return header._refresh([])[header.device]

    assert "正在查看本机" in said({})
    assert "CPU · 2 核 · 24 GB" in said({"kind": "cpu", "device": "CPU · 2 cores · 24 GB", "cores": 2, "memory_gb": 24})
    assert "H200 &lt;b&gt; · 139 GB" in said({"kind": "cuda", "device": "H200 <b> · 139 GB"})


def test_every_field_is_labelled(draw: Any) -> None:
    train = draw(train_tab._Train)
    assert all(box.label for box in train.boxes.values())


def test_each_knob_is_drawn_once_and_says_where_its_value_comes_from(draw: Any) -> None:
    train = draw(train_tab._Train)
    hidden = {id for id, knob in knobs().items() if knob.kind == "choice" and len(knob.choices) == 1}
    assert set(train.boxes) == set(knobs()) - hidden
    assert "task preset" in train.notes["lora:method.rank"].value
    assert "size preset" in train.notes["train.learning_rate"].value
    assert "default" in train.notes["train.seed"].value


def _entries(train: Any, form: Form) -> list[Any]:
    return [form.to_memory(), form.size, form.method, *(form.shown[id] for id in train.boxes)]


@pytest.mark.parametrize("code", language.codes())
def test_start_makes_one_run_however_often_it_is_pressed(draw: Any, code: str) -> None:
    train = draw(train_tab._Train, code)
    form = Form.fresh()
    answers = [train._start("0123456789abcdef", *_entries(train, form)) for _ in range(5)]
    made = runs.all_runs()
    assert len(made) == 1 and made[0].state() == "queued"
    assert {answer[train.page.run] for answer in answers} == {made[0].id}
    assert answers[0][train.watched] == made[0].id


def test_a_mistake_is_told_beside_its_field_and_starts_nothing(draw: Any) -> None:
    train = draw(train_tab._Train, "zh")
    form = Form.fresh()
    form.shown["lora:method.rank"] = 0
    answer = train._start("0123456789abcdef", *_entries(train, form))
    assert runs.all_runs() == []
    said = re.sub("<[^>]*>", "", answer[train.notes["lora:method.rank"]])
    assert "秩 不能是 0" in said and "method.rank" not in said
    assert train.boxes["lora:method.rank"] not in answer, "what was typed stays"


@pytest.mark.parametrize("value", NONSENSE, ids=[repr(value)[:20] for value in NONSENSE])
def test_train_answers_nonsense_in_every_field(draw: Any, value: Any) -> None:
    train = draw(train_tab._Train)
    form = Form.fresh()
    for place in range(len(_entries(train, form))):
        entries = _entries(train, form)
        entries[place] = value
        answer = train._change(*entries)
        json.dumps([gr_value for gr_value in answer.values() if isinstance(gr_value, str)])
        assert "<script>alert(1)" not in "".join(
            str(shown) for part, shown in answer.items() if isinstance(part, gr.HTML)
        )
    assert train._open(value, value, value)[train.setup]["visible"] is True


def test_train_opens_with_the_run_that_is_under_way(draw: Any) -> None:
    run = _run(outcome=None)
    train = draw(train_tab._Train)
    assert run.state() == "queued"
    assert train._open(None, None, "")[train.watched] == run.id
    # Who went back to the form stays there.
    assert train._open(None, "", "")[train.watched] == ""


def test_a_page_that_opens_is_told_what_it_does_not_show_already(draw: Any) -> None:
    train = draw(train_tab._Train)
    form = Form.fresh()
    # A number without a value is drawn as 0.
    empty = {box for id, box in train.boxes.items() if form.shown[id] is None}
    with_choices = {train.boxes["data.train"], train.boxes["task"]}
    parts = {*train.boxes.values(), *train.notes.values(), *train.method_groups.values()}
    assert empty and parts.intersection(train._open(None, "", "")) == empty | with_choices
    form.shown |= {"train.epochs": 7, "train.max_steps": 5}
    told = train._open(form.to_memory(), "", "")
    changed = [part for id in ("train.epochs", "train.max_steps") for part in (train.boxes[id], train.notes[id])]
    assert [told[part] for part in changed[::2]] == [7, 5]
    assert parts.intersection(told) == empty | with_choices | set(changed)


def test_a_knob_goes_back_to_its_preset(draw: Any) -> None:
    train = draw(train_tab._Train)
    form = Form.fresh()
    form.shown |= {"train.epochs": 7, "lora:method.rank": 5}

    def reset(knob: Any) -> dict[Any, Any]:
        return train._reset(SimpleNamespace(_data=knob), *_entries(train, form))

    boxes = train.boxes["train.epochs"], train.boxes["lora:method.rank"]
    said = re.search("data-reset='(.*?)'", train._change(*_entries(train, form))[train.notes["lora:method.rank"]])
    assert [reset({"knob": said[1]})[box] for box in boxes] == [7, Form.fresh().shown["lora:method.rank"]]
    for nonsense in NONSENSE:
        assert [reset(nonsense)[box] for box in boxes] == [reset({"knob": nonsense})[box] for box in boxes] == [7, 5]


def test_a_field_is_no_handler_of_its_own() -> None:
    assert len(window.build("en").fns) < 200, "a page that opens looks for each among those of every other field"


def test_a_page_finds_what_its_events_ask_for_without_looking_far() -> None:
    """Gradio walks through the page to every input of all that was asked since it was opened, at each event anew."""
    blocks = window.build("en")
    unseen = {one for one in blocks.blocks.values() if isinstance(one, gr.State) or one.visible == "hidden"}
    assert unseen == set(blocks.children[: len(unseen)])
    stored = {one._id: one for one in blocks.blocks.values() if isinstance(one, gr.BrowserState)}
    always = [
        handler
        for handler in blocks.fns.values()
        if any(event == "load" or id in stored for id, event in handler.targets)
    ]
    seen = {one for handler in always for one in handler.inputs}.difference(unseen, stored.values())
    assert seen == set()


def test_settings_of_a_run_come_back_into_the_form(draw: Any) -> None:
    train = draw(train_tab._Train)
    run = runs.create(Config.read({"train": {"epochs": 7}, "method": {"name": "freeze", "layers": 1}}))
    answer = train._take_config({"config": run.config_data()})
    assert answer[train.boxes["train.epochs"]] == 7 and answer[train.method] == "freeze"
    assert answer[train.boxes["freeze:method.layers"]] == 1


def test_data_shows_a_row_and_hands_it_to_train(draw: Any) -> None:
    tab = draw(data_tab._Data)
    answer = tab._open(None)
    assert "learned" in answer[tab.preview] and "400" in answer[tab.findings]
    moved = tab._move(answer[tab.view], "next")
    assert moved[tab.view]["row"] == 1
    assert tab._move(moved[tab.view], "first")[tab.view]["row"] == 0
    assert tab._use(answer[tab.view])[tab.page.data]["train"] == "sample:style"


def test_data_offers_the_columns_of_a_shape_that_it_does_not_know(draw: Any, home: Path) -> None:
    tab = draw(data_tab._Data)
    file = home / "mine.csv"
    file.write_text("Frage,Antwort\n<b>zwei</b>,2\n", encoding="utf-8")
    answer = tab._pick(str(file))
    assert answer[tab.columns[0]]["visible"] is True and ("Frage", "Frage") in answer[tab.columns[0]]["choices"]
    answer = tab._choose_columns(answer[tab.view], "Frage", "Antwort", None, None, None, None)
    assert answer[tab.trouble] == "" and "&lt;b&gt;zwei&lt;/b&gt;" in answer[tab.preview]


def _press(tab: Any, answer: Any, way: int = 0) -> Any:
    """The page after one of the offered ways was pressed."""
    told = html.unescape(re.findall("data-way='(.*?)'", answer[tab.ways])[way])
    return tab._take_way(answer[tab.view], gr.EventData(None, {"way": told}))


def test_data_proposes_what_unknown_columns_could_be(draw: Any, home: Path) -> None:
    tab, train = draw(data_tab._Data, "zh"), draw(train_tab._Train)
    file = home / "mine.csv"
    rows = "".join(f"The <b>ball</b> number {n} was in the net,{'sport' if n % 2 else 'other'}\n" for n in range(9))
    file.write_text("body,group\n" + rows, encoding="utf-8")
    answer = tab._pick(str(file))
    assert "无法识别这些行的形式" in answer[tab.trouble]
    assert ">带标签的文本：text = body, label = group<" in answer[tab.ways]
    view = answer[tab.view]
    answer = _press(tab, answer)
    assert answer[tab.trouble] == "" == answer[tab.ways] and "label-chip'>other<" in answer[tab.preview]
    assert answer[tab.view] == {
        "source": str(file),
        "format": "labels",
        "columns": {"text": "body", "label": "group"},
        "row": 0,
    }
    filled = train._take_data(answer[tab.page.data], *_entries(train, Form.fresh()))
    assert filled[train.boxes["data.format"]] == "labels" and filled[train.memory]["task"] == "classification"
    assert filled[train.boxes["data.columns"]] == "text = body\nlabel = group"
    for nonsense in (*NONSENSE, "{}", "[]", "3", '{"format": "auto"}', '{"format": [], "columns": 7}', "[" * 9000):
        for told in (nonsense, {"way": nonsense}):
            assert tab._take_way(view, gr.EventData(None, told)) == gr.skip()
        tab._take_way(nonsense, gr.EventData(None, {"way": '{"format": "text"}'}))


def test_each_button_does_what_it_says(draw: Any, home: Path) -> None:
    """Once the page has guessed a format for the fields below, the same rows would be offered in another order."""
    tab = draw(data_tab._Data)
    rows = [{"a": f"Short {n}", "b": f"A much longer text {n}", "my_label": "xy"[n % 2]} for n in range(9)]
    answer = tab._pick(_write(home / "a.jsonl", *rows))
    said = re.findall("data-way='.*?'>(.*?)<", answer[tab.ways])
    assert len(said) == 4 and said[0].startswith("Texts with labels")
    for way, says in enumerate(said):
        view = _press(tab, answer, way)[tab.view]
        mapped = ", ".join(f"{role} = {column}" for role, column in view["columns"].items())
        assert says == f"{formats.find(view['format']).title}: {mapped}"


def test_data_proposes_the_column_that_a_chosen_format_lacks(draw: Any, home: Path) -> None:
    tab = draw(data_tab._Data)
    view = tab._pick(
        _write(home / "a.jsonl", *[{"instruction": f"Say {n}", "said": f"It is so {n}"} for n in range(5)])
    )
    answer = tab._choose_format(view[tab.view], "alpaca")
    assert "needs a column for output" in answer[tab.trouble] and "output = said" in answer[tab.ways]
    answer = _press(tab, answer)
    assert answer[tab.page.data]["format"] == "alpaca" and "It is so 0" in answer[tab.preview]


def _upload(name: str, *rows: Any) -> str:
    """A file as the page sends it."""
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder()) / secrets.token_hex(4)
    folder.mkdir(parents=True)
    return _write(folder / name, *rows)


def _named(count: int, mark: str) -> list[dict[str, Any]]:
    return [{"prompt": f"{mark} {n}", "completion": f"Hello {n}"} for n in range(count)]


def test_several_files_are_one_data_set_and_bad_ones_are_named(draw: Any, home: Path) -> None:
    tab, train = draw(data_tab._Data), draw(train_tab._Train)
    bad = [
        _upload("weights.bin", {}),
        _upload("<b>none.jsonl"),
        _upload("blank.jsonl", {"prompt": "a", "completion": ""}),
    ]
    files = [_upload("one.jsonl", *_named(3, "one")), bad[0], _upload("two.jsonl", *_named(4, "two")), *bad[1:]]
    answer = tab._take_file(files)
    assert answer[tab.file] is None and answer[tab.trouble] == ""
    said = answer[tab.left_out]
    assert "Not taken" in said and "<b>weights.bin</b>" in said and "refused" in said
    assert "&lt;b&gt;none.jsonl" in said and "is empty" in said and "<b>blank.jsonl</b>" in said
    assert [path.name[13:] for path in sorted((home / "data").iterdir(), key=lambda one: one.name[13:])] == [
        "one.jsonl",
        "two.jsonl",
    ]
    listed, view = answer[tab.listed], answer[tab.view]
    assert listed.count("<tr>") == 3 and "<td>one</td><td>Prompt and completion</td><td class='number'>3</td>" in listed
    assert "one + 1" in answer[tab.recognised] and "of 7" in answer[tab.preview] and answer[tab.more]["visible"]
    # More of them later.
    answer = tab._add_files(view, [_upload("three.jsonl", *_named(5, "three")), _upload("x.zip", {})])
    assert answer[tab.listed].count("<tr>") == 4 and "of 12" in answer[tab.preview] and "x.zip" in answer[tab.left_out]
    # One is taken away, and stays among the uploads.
    view = answer[tab.view]
    answer = tab._take_away(view, gr.EventData(None, {"away": "0"}))
    assert "of 9" in answer[tab.preview] and "<td>one</td>" not in answer[tab.listed] and answer[tab.left_out] == ""
    assert len(list((home / "data").iterdir())) == 3
    # Train takes them, and has a word for them.
    handed = tab._use(answer[tab.view])[tab.page.data]
    filled = train._take_data(handed, *_entries(train, Form.fresh()))
    assert ("two + 1", handed["train"]) in filled[train.boxes["data.train"]]["choices"]
    train._start("0123456789abcdef", *_entries(train, Form.from_memory(filled[train.memory])))
    assert [run.config().data.train for run in runs.all_runs()] == [handed["train"]]
    view = answer[tab.view]
    answer = tab._take_away(view, gr.EventData(None, {"away": "1"}))
    assert answer[tab.listed] == "" and "of 4" in answer[tab.preview]
    for nonsense in (*NONSENSE, "7", "-1", "99999"):
        assert tab._take_away(view, gr.EventData(None, {"away": nonsense})) == gr.skip()
        assert tab._take_away(answer[tab.view], gr.EventData(None, {"away": "0"})) == gr.skip()


def test_another_model_that_was_chosen_elsewhere_is_taken_with_its_size(draw: Any, home: Path) -> None:
    train = draw(train_tab._Train)
    told = {"settings": {"model.name": "owner/unknown"}, "press": "1"}
    filled = train._take_data(told, *_entries(train, Form.fresh()))
    assert filled[train.boxes["model.name"]] == "owner/unknown" and filled[train.size] == "small"
    assert filled[train.memory] == Form.fresh().for_model("owner/unknown").to_memory()
    assert filled[train.memory]["shown"] == {"model.name": "owner/unknown"}, "the rest is as the presets have it"
    # The rows stay as they are chosen, and a run that is looked at stays in sight.
    assert filled[train.boxes["data.train"]]["value"] == "sample:style" and train.watched not in filled
    assert train.watched in train._take_data({"train": "sample:facts"}, *_entries(train, Form.fresh()))


def test_files_of_two_shapes_stay_in_the_list_until_one_is_taken_away(draw: Any, home: Path) -> None:
    tab = draw(data_tab._Data)
    answer = tab._take_file(
        [_upload("a.jsonl", *_named(3, "a")), _upload("b.jsonl", *LABELLED), _upload("c.jsonl", {"x": "y", "z": "w"})]
    )
    assert "not of one shape" in answer[tab.trouble] and answer[tab.use]["interactive"] is False
    assert "Texts with labels" in answer[tab.listed] and "not recognised" in answer[tab.listed]
    for number in ("2", "1"):
        answer = tab._take_away(answer[tab.view], gr.EventData(None, {"away": number}))
    assert answer[tab.trouble] == "" and answer[tab.use]["interactive"] is True


def test_one_file_alone_is_kept_with_what_is_wrong(draw: Any, home: Path) -> None:
    tab = draw(data_tab._Data)
    answer = tab._take_file([_upload("blank.jsonl", {"prompt": "a", "completion": ""})])
    assert "completion is empty" in answer[tab.trouble] and answer[tab.left_out] == "" == answer[tab.listed]
    answer = tab._take_file([_upload(f"{n}.jsonl", *_named(1, "a")) for n in range(52)])
    assert answer[tab.listed].count("data-away") == 50 and answer[tab.left_out].count("too many files") == 2


CHOSEN = [{"prompt": f"<i>Hi</i> {n}", "chosen": f"Hello {n}", "rejected": f"Go {n}"} for n in range(20)]
JUDGED = [{"prompt": f"Hi {n}", "completion": f"Hello {n}", "label": n % 4 > 0} for n in range(20)]


@pytest.mark.parametrize(("rows", "alone", "left"), [(CHOSEN, "chosen", 20), (JUDGED, "good", 15)])
def test_judged_rows_are_shown_and_trained_on_after_a_word_alone(
    draw: Any, home: Path, rows: list[dict[str, Any]], alone: str, left: int
) -> None:
    tab, train = draw(data_tab._Data), draw(train_tab._Train)
    file = _write(home / "judged.jsonl", *rows)
    answer = tab._pick(file)
    view = answer[tab.view]
    assert "is read as" in answer[tab.recognised] and answer[tab.trouble] == ""
    assert "not possible yet" in answer[tab.ways] and f"the {alone} answers alone" in answer[tab.ways]
    assert "learned" not in answer[tab.preview] and "<i>" not in answer[tab.preview]
    assert answer[tab.use]["interactive"] is False and tab._use(view) == gr.skip()
    # In Train, too, nothing begins without the word, and it is said beside the field.
    form = Form.fresh()
    form.shown["data.train"] = file
    refused = train._start("0123456789abcdef", *_entries(train, form))
    assert runs.all_runs() == [] and "not possible yet" in refused[train.notes["data.format"]]
    assert formats.find(alone).title in refused[train.notes["data.format"]]
    # The word.
    answer = _press(tab, answer)
    assert answer[tab.use]["interactive"] is True and answer[tab.ways] == ""
    assert "Hello" in answer[tab.preview] and "learned" in answer[tab.preview] and "Go" not in answer[tab.preview]
    assert f"<dd>{left}</dd>" in answer[tab.findings]
    assert ("left out" in answer[tab.findings]) is (left < 20)
    filled = train._take_data(answer[tab.page.data], *_entries(train, Form.fresh()))
    form = Form.from_memory(filled[train.memory])
    train._start("0123456789abcdef", *_entries(train, form))
    assert [run.config().data.format for run in runs.all_runs()] == [alone]


def test_two_answers_stand_side_by_side_and_one_is_marked(draw: Any, home: Path) -> None:
    tab = draw(data_tab._Data)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    longer = [*turns, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "So <b>it</b> is"}]
    shown = tab._pick(_write(home / "a.jsonl", {"chosen": longer, "rejected": [*turns, *turns]}))[tab.preview]
    before, _, answers = shown.partition("class='versus'")
    assert before.count("class='turn ") == 2 and "And?" not in before
    chosen, _, rejected = answers.partition("Rejected answer")
    assert "Chosen answer" in chosen and "And?" in chosen and "So &lt;b&gt;it" in chosen and "Hello" in rejected
    shown = tab._pick(_write(home / "b.jsonl", {"prompt": "Hi", "chosen": "Same", "rejected": "Same"}))[tab.preview]
    assert shown.count("Same") == 2
    shown = tab._pick(_write(home / "c.jsonl", {"chosen": "A story", "rejected": "No story"}))[tab.preview]
    assert "A story" in shown and "No story" in shown
    view = tab._pick(_write(home / "d.jsonl", *JUDGED))
    assert "Bad answer" in view[tab.preview] and "15 · 5" in view[tab.findings]
    assert "Good answer" in tab._move(view[tab.view], "next")[tab.preview]


@pytest.mark.parametrize("value", NONSENSE, ids=[repr(value)[:20] for value in NONSENSE])
def test_data_answers_nonsense(draw: Any, value: Any) -> None:
    tab = draw(data_tab._Data)
    for answer in (
        tab._open(value),
        tab._pick(value),
        tab._take_file(value),
        tab._take_file([value]),
        tab._add_files(value, value),
        tab._choose_format(value, value),
        tab._choose_columns(value, value, value),
        tab._use({"source": value}),
    ):
        shown = "".join(str(part) for part in answer.values())
        assert "<script>alert(1)" not in shown.replace("'<script>alert(1)</script>'", "") or "choices" in shown


def test_an_upload_elsewhere_is_refused(draw: Any, home: Path) -> None:
    secret = home / "secret.txt"
    secret.write_text("my secret")
    tab = draw(data_tab._Data)
    assert "No file arrived" in tab._take_file(str(secret))[tab.left_out]
    assert "No file arrived" in tab._add_files(tab._open(None)[tab.view], [str(secret)])[tab.left_out]
    assert list((home / "data").glob("*")) == [] if (home / "data").exists() else True


def test_runs_shows_all_and_escapes_what_others_wrote(draw: Any) -> None:
    run = _run()
    tab = draw(runs_tab._Runs)
    answer = tab._open(run.id, {}, {}, [], "")
    assert "a &lt;b&gt;name&lt;/b&gt;" in answer[tab.table] and "<b>name" not in answer[tab.table]
    panel = tab.panel.refresh(run.id, "")
    shown = "".join(panel[part] for part in (tab.panel.head, tab.panel.samples, tab.panel.events))
    assert "<script>" not in shown and "<i>" not in shown and "unheard of" in shown
    assert panel[tab.panel.resume]["visible"] is True and panel[tab.panel.stop]["visible"] is False


def test_nothing_is_sent_when_nothing_is_new(draw: Any) -> None:
    run = _run()
    tab = draw(runs_tab._Runs)
    seen = tab._open(run.id, {}, {}, [], "")[tab.seen]
    assert tab._refresh(run.id, seen, {}, [], "") == gr.skip()
    panel_seen = tab.panel.refresh(run.id, "")[tab.panel.seen]
    assert tab.panel.refresh(run.id, panel_seen) == {}
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "steps": 9, "loss": 1.0}\n')
    grown = tab.panel.refresh(run.id, panel_seen)
    assert tab.panel.chart in grown and tab.panel.chat not in grown, (
        "a button that stays as it is costs as much as a curve"
    )
    told = {tab.panel.advice, tab.panel.matrix, tab.panel.samples, tab.panel.events}
    assert told.isdisjoint(grown), "and so does what seldom changes"
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "resumed", "step": 4, "time": 1.0}\n')
    later = tab.panel.refresh(run.id, grown[tab.panel.seen])
    assert told & set(later) == {tab.panel.events}
    # What is seen of one run says nothing of another, though both say the same.
    other = _run("other")
    assert told < set(tab.panel.refresh(other.id, later[tab.panel.seen]))
    run.ask("resume")
    assert tab.panel.refresh(run.id, grown[tab.panel.seen])[tab.panel.stop]["visible"] is True


@pytest.mark.parametrize("asked", [None, "", 7, {}, [], ["run"], ["", "step", 5, False, 1]])
def test_what_no_list_was_asked_for_shows_all_runs(draw: Any, asked: Any) -> None:
    run = _run()
    tab = draw(runs_tab._Runs)
    (look,) = [one.function for one in tab.page.clock.looks if tab.table in one.outputs]
    assert run.id in look("", {}, {}, [], asked)[tab.table]
    assert run.id not in look("", {}, {}, [], ["nowhere", "step", 5, False])[tab.table]


def test_a_run_is_deleted_only_when_it_does_not_wait_or_work(draw: Any) -> None:
    waiting, ended = _run("waiting", None), _run("ended")
    tab = draw(runs_tab._Runs)
    tab._delete(waiting.id)
    assert find(waiting.id) is not None
    assert tab._delete(ended.id)[tab.page.run] == ""
    assert find(ended.id) is None


@pytest.mark.parametrize("value", NONSENSE, ids=[repr(value)[:20] for value in NONSENSE])
def test_runs_answers_nonsense(draw: Any, value: Any) -> None:
    _run()
    tab = draw(runs_tab._Runs)
    assert tab._open(value, value, value, value, value, value, value, value)[tab.detail]["visible"] is False
    assert tab.panel.refresh(value, value) is not None
    assert tab._delete(value) == gr.skip() and len(runs.all_runs()) == 1


@pytest.mark.parametrize("code", language.codes())
@pytest.mark.parametrize("outcome", [None, "completed", "stopped", "failed"])
def test_every_state_is_a_sentence(code: str, outcome: str | None) -> None:
    run = _run(outcome=outcome)
    text = report.headline(Language(code), run, read_metrics(run))
    assert "{" not in text and run.title not in text, "the name is escaped"


@pytest.mark.parametrize("code", language.codes())
def test_a_run_that_ended_says_what_is_on_disk_and_what_can_be_done(code: str) -> None:
    words, run = Language(code), _run(outcome="stopped")
    assert words.t("common.nothing_kept") in report.sentence(words, run, read_metrics(run))
    (run.folder / "checkpoints" / "step-000180").mkdir(parents=True)
    (run.folder / "adapter").mkdir()
    for name in ("adapter_config.json", "atelier.json"):
        (run.folder / "adapter" / name).write_text('{"step": 180}')
    said = report.sentence(words, run, read_metrics(run))
    for part in ("checkpoint_kept", "adapter_kept"):
        assert words.t(f"common.{part}", step="180") in said
    what = " · ".join(words.t(f"common.{name}") for name in ("resume", "chat_with_it", "export_it"))
    assert said.endswith(words.t("common.next", what=what))
    run.discard()
    run.finish("stopped", discarded=True)
    assert words.t("common.discarded") in report.sentence(words, run, read_metrics(run))


@pytest.mark.parametrize("code", language.codes())
def test_a_damaged_adapter_of_a_finished_run_can_be_repaired(draw: Any, code: str) -> None:
    words, run = Language(code), _run(outcome="completed")
    adapter, panel = run.folder / "adapter", draw(runs_tab._Runs, code).panel
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"whole")
    (adapter / "atelier.json").write_text(json.dumps({"sha256": hashlib.sha256(b"whole").hexdigest()}))
    assert panel.refresh(run.id, "")[panel.resume]["visible"] is False
    assert words.t("common.damaged") not in panel.refresh(run.id, "")[panel.head]
    (adapter / "adapter_model.safetensors").write_bytes(b"damaged")
    assert (
        panel.refresh(run.id, "")[panel.resume]["visible"] is False
        and words.t("common.lost") in panel.refresh(run.id, "")[panel.head]
    )
    (run.folder / "checkpoints" / "step-000180").mkdir(parents=True)
    drawn = panel.refresh(run.id, "")
    assert drawn[panel.resume] == gr.update(visible=True, value=words.t("common.repair"))
    assert html.escape(words.t("common.repairs", step="180")) in drawn[panel.head]
    panel._act(run.id, panel.page.launcher.resume)
    assert run.state() == "queued"


def test_each_meaning_of_stop_has_its_button(draw: Any) -> None:
    run, panel = _run(outcome=None), draw(runs_tab._Runs).panel

    def shown() -> list[bool]:
        drawn = panel._buttons(run, read_metrics(run))
        return [drawn[button]["visible"] for button in (panel.stop, panel.save, panel.discard, panel.resume)]

    assert shown() == [True, False, False, False]  # it waits: there is nothing to save or to throw away
    with run.claim():
        (run.folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0, "time": time.time()}) + "\n")
        assert shown() == [True, True, True, False]
        for act in (panel.page.launcher.save, panel.page.launcher.discard):
            act(run)
        assert run.asked("save") and run.asked("discard") and run.state() == "stopping"
        assert shown() == [False, False, False, False]
    run.take("stop")
    run.finish("stopped", step=1)
    assert shown() == [False, False, False, True]
    assert panel._buttons(run, read_metrics(run))[panel.sure]["visible"] is False


@pytest.mark.parametrize("code", language.codes())
def test_trouble_is_said_beside_the_chart(code: str) -> None:
    words, metrics = Language(code), Metrics(Path("none"))
    assert report.advice(words, metrics) == ""
    metrics.steps += [{"step": step, "steps": 50, "loss": 3.0} for step in range(50)]
    metrics.events.append({"event": "damaged_checkpoint", "name": "step-<9>"})
    said = report.advice(words, metrics)
    assert "step-&lt;9&gt;" in said and "{" not in said
    assert words.explain(advise(metrics)[0]) in html.unescape(said)


def test_a_metrics_file_that_begins_anew_is_read_anew() -> None:
    run = _run(steps=3)
    assert len(read_metrics(run).steps) == 3
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "steps": 2, "loss": 1.0}\n')
    assert [row["step"] for row in read_metrics(run).steps] == [1]


def test_numbers_for_people() -> None:
    words = Language("en")
    assert [words.number(value) for value in (0, 950, 1234, 2_828_736, 7_000_000_000, math.nan, None)] == [
        "0",
        "950",
        "1.23k",
        "2.83M",
        "7B",
        "–",
        "–",
    ]
    assert [words.share(value) for value in (0.0042, 0.117, 1.0)] == ["0.42 %", "12 %", "100 %"]
    assert [words.duration(value) for value in (40, 200, 7800, 400_000)] == ["40 s", "3 min", "2 h 10 min", "4 d 15 h"]


def test_a_page_holds_no_manual_of_its_handlers() -> None:
    """Gradio would write one into every page: some twenty megabytes with so many handlers and fields."""
    blocks = window.build("en")
    assert blocks.get_api_info() == {"named_endpoints": {}, "unnamed_endpoints": {}}


def test_an_event_shows_its_progress_in_one_place() -> None:
    """The page looks up each field that ever showed progress at every event: seconds a click, when all of them do."""
    handlers = window.build("en").fns.values()
    assert handlers and all(len(one.show_progress_on or one.outputs) <= 1 for one in handlers)


def test_every_method_is_in_the_list_under_its_family() -> None:
    drawn = train_tab._picker(Language("en"))
    at = {
        family: drawn.index(f"<legend>{family}</legend>")
        for family in methods.FAMILIES
        if f"<legend>{family}<" in drawn
    }
    assert list(at) == [family for family in methods.FAMILIES if family in at] and list(at.values()) == sorted(
        at.values()
    )
    for name, method in methods.catalogue().items():
        place = drawn.index(f"value='{name}'")
        under = max((start, family) for family, start in at.items() if start < place)[1]
        assert under == method.family
        assert report.escape(method.title) in drawn and report.escape(method.about) in drawn


def test_a_model_that_cannot_do_the_task_changes_it_and_says_so(draw: Any, family: Any) -> None:
    train = draw(train_tab._Train)
    model = str(family("bert"))
    entries = _entries(train, Form.fresh())
    entries[3 + list(train.boxes).index("model.name")] = model
    answer = train._change(*entries)
    offered = [task for _, task in answer[train.boxes["task"]]["choices"]]
    assert "chat" not in offered and "classification" in offered
    assert answer[train.boxes["task"]]["value"] == offered[0] == answer[train.memory]["task"]
    assert "cannot do Chat and instructions" in answer[train.notes["task"]]
    # Back again nothing has to give way, and nothing is said.
    form = Form.from_memory(answer[train.memory])
    entries = _entries(train, form)
    entries[3 + list(train.boxes).index("model.name")] = "playground"
    again = train._change(*entries)
    assert "moved" not in again[train.notes["task"]]
    assert "chat" in [task for _, task in again[train.boxes["task"]]["choices"]]


def _write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


LABELLED = [{"text": f"<i>text</i> {n}", "label": "<b>ham</b>" if n % 3 else "spam"} for n in range(9)]
ASKED = [
    {"context": "The <i>cat</i> sat on the mat.", "question": "Where?", "answers": ["on the mat", "mat"]},
    {"context": "The dog.", "question": "Where?", "answers": []},
]
PAIRS = [{"source": "<i>Guten</i> Morgen", "target": "Good morning"}] * 3


def test_a_row_of_every_shape_is_shown_as_the_model_sees_it(draw: Any, home: Path) -> None:
    tab = draw(data_tab._Data)
    answer = tab._pick(_write(home / "labelled.jsonl", *LABELLED))
    assert "class='label-chip'>spam<" in answer[tab.preview] and "&lt;i&gt;text&lt;/i&gt; 0" in answer[tab.preview]
    assert "Rows a label" in answer[tab.findings] and "3 to 6" in answer[tab.findings]
    answer = tab._pick(_write(home / "asked.jsonl", *ASKED))
    assert "sat <mark>on the mat</mark>." in answer[tab.preview] and "Also right: mat" in answer[tab.preview]
    assert "&lt;i&gt;cat&lt;/i&gt;" in answer[tab.preview] and "<i>" not in answer[tab.preview]
    assert "The text holds no answer." in tab._move(answer[tab.view], "next")[tab.preview]
    answer = tab._pick(_write(home / "pairs.jsonl", *PAIRS))
    source, target = answer[tab.preview].split("Target · learned")
    assert "&lt;i&gt;Guten&lt;/i&gt; Morgen" in source and "Good morning" in target


def test_rows_bring_the_task_that_learns_from_them(draw: Any, home: Path) -> None:
    tab, train = draw(data_tab._Data), draw(train_tab._Train)
    view = tab._pick(_write(home / "labelled.jsonl", *LABELLED))[tab.view]
    handed = tab._use(view)[tab.page.data]
    assert handed["tasks"] == ["classification"]
    answer = train._take_data(handed, *_entries(train, Form.fresh()))
    assert answer[train.memory]["task"] == "classification"
    # A conversation about a text can be learned as one: the task that is chosen stays.
    handed = tab._use(tab._pick(_write(home / "asked.jsonl", *ASKED))[tab.view])[tab.page.data]
    assert {"chat", "extractive_qa"} <= set(handed["tasks"])
    for task in ("chat", "extractive_qa"):
        answer = train._take_data(handed, *_entries(train, Form.fresh(task)))
        assert answer[train.memory]["task"] == task
    for nonsense in NONSENSE:
        train._take_data({**handed, "tasks": nonsense}, *_entries(train, Form.fresh()))


def test_rows_that_the_task_cannot_use_are_told_before_anything_starts(draw: Any, home: Path) -> None:
    train = draw(train_tab._Train)
    form = Form.fresh("chat")
    form.shown["data.train"] = _write(home / "labelled.jsonl", *LABELLED)
    answer = train._start("0123456789abcdef", *_entries(train, form))
    assert runs.all_runs() == [] and "They suit Classification." in answer[train.notes["task"]]


def _scored(**last: Any) -> Run:
    run = _run()
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, "eval_loss": 2.0, "eval_accuracy": 0.5, "eval_macro_f1": 0.4}) + "\n")
        file.write(json.dumps({"step": 3, "eval_loss": 1.0, "eval_accuracy": 0.9325, "eval_macro_f1": 0.9}) + "\n")
    run.finish("completed", "", step=3, steps=3, **last)
    return run


def test_scores_stand_in_the_numbers_in_a_chart_and_in_the_table(draw: Any) -> None:
    run = _scored()
    tab = draw(runs_tab._Runs)
    answer, panel = tab._open(run.id, {}, {}, [], ""), tab.panel.refresh(run.id, "")
    assert "<dt>Accuracy</dt><dd>93.2 %</dd>" in panel[tab.panel.head]
    assert "title='Accuracy 93.2 % · Macro F1 90.0 %'>Accuracy 93.2 %<" in answer[tab.table]
    names = [[trace["name"] for trace in figure["data"]] for figure in panel[tab.panel.small]["figures"]]
    assert ["Accuracy", "Macro F1"] in names
    assert panel[tab.panel.matrix] == {"figures": []}
    plain = _run("plain")
    rows = tab._open(plain.id, {}, {}, [], "")[tab.table].split("<tr ")
    assert "Accuracy" not in next(row for row in rows if plain.id in row)


@pytest.mark.parametrize(
    ("labels", "counts", "columns", "text"),
    [
        (["ham", "<b>spam</b>"], [[5, 1], [0, 4]], ["ham", "&lt;b&gt;spam&lt;/b&gt;"], [["5", "1"], ["0", "4"]]),
        (["art", "news"], [[[7, 1], [2, 3]], [[6, 0], [0, 7]]], ["right", "missed", "wrongly given"], [["3", "2", "1"], ["7", "0", "0"]]),
    ],
)  # fmt: skip
def test_what_was_confused_with_what_is_a_matrix(draw: Any, labels: Any, counts: Any, columns: Any, text: Any) -> None:
    run = _scored(labels=labels, confusion=counts)
    tab = draw(runs_tab._Runs)
    (figure,) = tab.panel.refresh(run.id, "")[tab.panel.matrix]["figures"]
    assert figure["columns"] == columns and figure["data"][0]["text"] == text


@pytest.mark.parametrize(
    "table",
    [
        {"labels": 3, "confusion": 3},
        {"labels": [], "confusion": []},
        {"labels": ["a"], "confusion": [[1], [2]]},
        {"labels": ["a"], "confusion": ["x"]},
    ],
)
def test_a_table_that_is_none_is_left_out(draw: Any, table: Any) -> None:
    tab = draw(runs_tab._Runs)
    assert tab.panel.refresh(_scored(**table).id, "").get(tab.panel.matrix, {"figures": []}) == {"figures": []}


def test_what_is_not_talked_to_is_tried(draw: Any) -> None:
    tab = draw(runs_tab._Runs)
    for task, says in (("chat", "Chat with it"), ("classification", "Try it"), ("extractive_qa", "Try it")):
        run = runs.create(Config.read({"name": task, "task": task}))
        (run.folder / "adapter").mkdir()
        (run.folder / "adapter" / "adapter_config.json").write_text("{}")
        assert tab.panel.refresh(run.id, "")[tab.panel.chat]["value"] == says
