"""The whole window is drawn in every language, and its handlers answer whatever a page may send."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from core import methods, runs
from core.config import Config
from core.runs import Run
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
    assert (
        "秩 不能是 0" in answer[train.notes["lora:method.rank"]]
        and "method.rank" not in answer[train.notes["lora:method.rank"]]
    )
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


@pytest.mark.parametrize("value", NONSENSE, ids=[repr(value)[:20] for value in NONSENSE])
def test_data_answers_nonsense(draw: Any, value: Any) -> None:
    tab = draw(data_tab._Data)
    for answer in (
        tab._open(value),
        tab._pick(value),
        tab._take_file(value),
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
    assert "No file arrived" in tab._take_file(str(secret))[tab.trouble]
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
    assert tab.panel.chart in tab.panel.refresh(run.id, panel_seen)


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
