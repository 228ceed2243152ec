"""What is taken away answers as what was trained, for every method."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ground import FAMILIES
from safetensors.torch import load_file
from test_adapt import REFUSED, fill, load, logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import methods, runs
from core.config import Config
from core.engine import export as exports
from core.engine import wishes, worker
from core.engine.adapt import Adapted
from core.engine.chat import Speaker
from core.engine.generate import GREEDY
from core.engine.tokens import PLAIN_TEMPLATE
from core.formats import Message
from core.problem import Problem
from core.runs import ExportConfig, Run

ASK = [Message("user", "what is 3")]
KINDS = list(methods.catalogue())
MERGING = [kind for kind in KINDS if methods.find(kind).merges]
THIN = [kind for kind in KINDS if getattr(methods.find(kind), "is_low_rank", False)]
#: What one rank and one scale for all layers could not say.
PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", {"rank": 4, "alpha": 3, "scaling": "rslora", "targets": "attention"}),
    ("lora", {"rank": 4, "rank_pattern": {"q_proj|c_attn|query_key_value": 7}, "alpha_pattern": {"fc1|c_proj|up_proj|dense": 5}}),
    ("lora", {"rank": 3, "init": "pissa", "scaling": "rslora"}),
    ("lora", {"rank": 3, "init": "olora"}),
    ("adalora", {"init_rank": 4, "target_rank": 2}),
    ("vera", {"rank": 9}),
]  # fmt: skip


def train(model: Path, rows: Path, method: dict, **more: Any) -> Run:
    settings = {
        "name": "`evil` | name\n# title",
        "model": {"name": str(model)},
        "data": {"train": str(rows), "max_length": 64},
        "method": method,
        "train": {
            "max_steps": 8,
            "batch_size": 8,
            "learning_rate": 1e-2 * max(1, methods.find(method["name"]).learning_rate_factor),
        },
        "samples": {"max_new_tokens": 2},
    } | more
    run = runs.create(Config.read(settings))
    assert worker.work(run)["outcome"] == "completed"
    return run


def keep(model: Path, rows: Path, method: methods.Method, adapted: Adapted) -> Run:
    """A run whose adapter is that one, without the training."""
    config = {"name": method.name, **method.model_dump(mode="json")}
    run = runs.create(Config.read({"model": {"name": str(model)}, "data": {"train": str(rows)}, "method": config}))
    adapted.save("a", run.folder / "adapter", base=str(model), about={"task": "chat", "step": 1, "own_template": True})
    return run


def answer(speaker: Speaker, run: Run | None, **how: object) -> str:
    weights, provenance = speaker.choose(run, **how)
    return "".join(speaker.speak(ASK, GREEDY.model_copy(update={"max_tokens": 12}), weights, provenance).pieces)


@pytest.mark.parametrize(
    ("name", "kind"), [(f, m) for f in ("llama", "gpt2") for m in MERGING if (f, m) not in REFUSED]
)
def test_merged_model_answers_as_the_run(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, name: str, kind: str
) -> None:
    run = train(family(name), rows_file, {"name": kind})
    speaker = Speaker(run.config().model)
    applied = answer(speaker, run)
    assert applied != answer(speaker, None)
    assert answer(speaker, run, merged=True) == applied
    assert answer(speaker, run, scale=0.0) == answer(speaker, None)
    facts = exports.export(run, "merged", tmp_path / "merged")
    assert facts["difference"] < 1e-3
    assert answer(Speaker(run.config().model.model_copy(update={"name": str(tmp_path / "merged")})), None) == applied
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "\n# title" not in card
    assert str(home) not in card
    assert str(rows_file.parent) not in card
    adapter = exports.export(run, "adapter", tmp_path / "adapter")
    assert "adapter_model.safetensors" in adapter["files"]
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert (
        ("PeftModel" in card)
        == ("library_name: peft" in card)
        == (not methods.find(kind).peft_type.startswith("ATELIER_"))
    )


def test_export_is_a_job_of_its_own(home: Path, family: Callable[[str], Path], rows_file: Path) -> None:
    run = train(family("llama"), rows_file, {"name": "lora", "rank": 2})
    job = runs.create(ExportConfig(name="mine", run=run.id, to="merged", dtype="bfloat16"))
    result = worker.work(job)
    assert (result["outcome"], job.state()) == ("completed", "completed")
    assert set(result["files"]) == {path.name for path in (job.folder / "export").iterdir()}
    assert json.loads((job.folder / "export" / "config.json").read_text())["dtype"] == "bfloat16"
    stages = ["loading_model", "merging", "saving", "checking"]
    steps = job.metrics().steps
    assert [(line["step"], line["steps"], line["doing"]) for line in steps] == [
        (number, 4, doing) for number, doing in enumerate(stages, 1)
    ]
    assert (result["step"], result["steps"]) == (4, 4)

    stopped = runs.create(ExportConfig(run=run.id, to="merged"))
    stopped.ask("stop")
    assert worker.work(stopped)["outcome"] == "stopped"
    assert list((stopped.folder / "export").iterdir()) == []

    wrong = runs.create(ExportConfig(run=job.id, to="merged"))
    result = worker.work(wrong)
    assert (result["outcome"], "has no adapter yet" in result["message"]) == ("failed", True)
    assert not job.resumable and not stopped.resumable and not wrong.resumable  # only a training goes on


def test_a_saved_model_that_answers_otherwise_is_refused(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(family("llama"), rows_file, {"name": "lora", "rank": 2})
    merged = exports.Adapted.merged_weights
    monkeypatch.setattr(exports.Adapted, "merged_weights", lambda self, name: merged(self, name, 0.5))
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(Problem, match="does not answer as"):
            exports.export(run, "merged", tmp_path / dtype, dtype)
        assert list((tmp_path / dtype).iterdir()) == []


def test_what_lies_in_the_folder_is_left_alone(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    run = train(family("llama"), rows_file, {"name": "lora", "rank": 2})
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    for to in ("adapter", "merged"):
        with pytest.raises(Problem, match="not empty"):
            exports.export(run, to, folder)
    with pytest.raises(Problem, match="cannot be made"):
        exports.export(run, "adapter", folder / "mine.txt" / "below")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("mine.txt", "mine")]


def test_the_precision_is_the_bases_or_the_one_that_is_asked_for(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """What is merged is rounded once, at the end."""
    run = train(family("llama"), rows_file, {"name": "lora", "rank": 2})
    merged = {}
    for dtype in ("auto", "bfloat16"):
        facts = exports.export(run, "merged", tmp_path / dtype, dtype)
        assert facts["dtype"] == {"auto": "float32"}.get(dtype, dtype)
        merged[dtype] = load_file(tmp_path / dtype / "model.safetensors")
    for key, value in merged["auto"].items():
        assert value.dtype == torch.float32
        assert torch.equal(value.to(torch.bfloat16), merged["bfloat16"][key]), key

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(family("llama"), dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(family("llama")).save_pretrained(half)
    run = train(half, rows_file, {"name": "lora", "rank": 2})
    assert exports.export(run, "merged", tmp_path / "as-stored")["dtype"] == "bfloat16"


@pytest.mark.parametrize("task", ["chat", "text"])
def test_a_chat_template_goes_along_where_one_was_lent(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, task: str
) -> None:
    """A base without a template: who chats with the result needs the one of the training; a text model needs none."""
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(family("llama")).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(family("llama"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    data = {"train": str(rows_file), "max_length": 64}
    if task == "text":
        (tmp_path / "rows.txt").write_text("the cat sat on the mat\n\n" * 20)
        data["train"] = str(tmp_path / "rows.txt")
    run = train(bare, rows_file, {"name": "lora", "rank": 2}, task=task, data=data)
    for to in ("adapter", "merged"):
        exports.export(run, to, tmp_path / to)
    lent = tmp_path / "adapter" / "chat_template.jinja"
    assert (lent.read_text() if lent.exists() else None) == (PLAIN_TEMPLATE if task == "chat" else None)
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert merged == (PLAIN_TEMPLATE if task == "chat" else None)

    own = train(family("llama"), rows_file, {"name": "lora", "rank": 2}, task=task, data=data)
    exports.export(own, "adapter", tmp_path / "own")
    assert not (tmp_path / "own" / "chat_template.jinja").exists()


def test_a_run_is_spoken_to_and_taken_away_in_the_template_that_it_was_trained_with(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    """The base keeps its own; what the run is asked is what it read, and what transformers writes for the export."""
    data = {"train": str(rows_file), "max_length": 64, "template": "plain"}
    run = train(family("llama"), rows_file, {"name": "lora", "rank": 2}, data=data)
    for to in ("adapter", "lora", "merged"):
        exports.export(run, to, tmp_path / to)  # type: ignore[arg-type]
    for to in ("adapter", "lora"):
        assert (tmp_path / to / "chat_template.jinja").read_text() == PLAIN_TEMPLATE
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    own = AutoTokenizer.from_pretrained(family("llama"))
    turns = [{"role": "user", "content": ASK[0].content}]
    read = [len(one.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]) for one in (own, merged)]
    assert merged.chat_template == PLAIN_TEMPLATE and read[0] != read[1]
    speaker, asked = Speaker(run.config().model), []
    for who, is_merged in ((None, False), (run, False), (None, False), (run, True)):
        speech = speaker.speak(ASK, GREEDY, *speaker.choose(who, merged=is_merged))
        "".join(speech.pieces)
        asked.append(speech.usage["prompt_tokens"])
    assert asked == [read[0], read[1], read[0], read[1]]


def test_a_classifier_is_given_no_chat_template(home: Path, family: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"the cat {n}", "label": "ab"[n % 2]}) + "\n" for n in range(8)))
    run = train(family("bert"), path, {"name": "lora", "rank": 2}, task="classification")
    exports.export(run, "adapter", tmp_path / "out")
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


def test_the_adapter_is_taken_away_as_it_is(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    run = train(family("llama"), rows_file, {"name": "lora", "rank": 2})
    files = exports.export(run, "adapter", tmp_path / "out")["files"]
    names = ["adapter_config.json", "adapter_model.safetensors", "atelier.json"]
    assert files == ["README.md", *names] == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (run.folder / "adapter" / name).read_bytes()


def test_the_card_tells_what_was_measured(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path
) -> None:
    run = train(
        family("llama"), rows_file, {"name": "lora", "rank": 2},
        train={"epochs": 30, "batch_size": 8, "learning_rate": 0.05, "eval_every": 2, "early_stopping": 1},
        data={"train": str(rows_file), "max_length": 64, "eval_fraction": 0.2},
    )  # fmt: skip
    result = run.result()
    assert result["kept"] == "best" and result["kept_step"] < result["step"]
    exports.export(run, "adapter", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    losses = {line["step"]: line["eval_loss"] for line in run.metrics().evals}
    kept = result["kept_step"]
    assert f"{losses[0]:.4g} before, {losses[kept]:.4g} after {kept} steps." in card, "not what was measured after it"
    assert f"after {kept} steps." in card
    assert "# `'evil' / name # title`" in card
    assert "| learning rate | `0.05` |" in card
    assert f"base_model: {json.dumps(family('llama').name)}" in card

    measured = train(
        family("llama"), rows_file, {"name": "lora", "rank": 2},
        data={"train": str(rows_file), "max_length": 64, "eval_fraction": 0.2},
    )  # fmt: skip
    exports.export(measured, "adapter", tmp_path / "measured")
    losses = [line["eval_loss"] for line in measured.metrics().evals]
    assert losses[0] > losses[-1] + 0.01
    told = f"Loss on the rows set aside: {losses[0]:.4g} before, {losses[-1]:.4g} after "
    assert told in (tmp_path / "measured" / "README.md").read_text()

    unmeasured = train(
        family("llama"), rows_file, {"name": "lora", "rank": 2},
        data={"train": str(rows_file), "max_length": 64, "eval_fraction": 0},
    )  # fmt: skip
    exports.export(unmeasured, "adapter", tmp_path / "unmeasured")
    assert "No rows were set aside" in (tmp_path / "unmeasured" / "README.md").read_text()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in MERGING])
def test_what_cannot_be_merged_is_refused_before_anything_is_loaded(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, kind: str
) -> None:
    method = methods.find(kind)()
    adapted = load(family("llama"))
    adapted.add("a", method)
    run = keep(tmp_path / "a model that is not there", rows_file, method, adapted)
    for to in ("merged", "lora"):
        with pytest.raises(Problem, match=r"cannot be (merged|written as plain LoRA)") as caught:
            exports.export(run, to, tmp_path / "out")
        assert "merged" not in caught.value.to_do
        assert not (tmp_path / "out").exists()
    assert "adapter_model.safetensors" in exports.export(run, "adapter", tmp_path / "out")["files"]
    peft = (tmp_path / "out" / "README.md").read_text()
    assert ("library_name: peft" in peft) == ("PeftModel" in peft) == (method.peft_type != "BOTTLENECK")


# --- plain LoRA -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "knobs"), PLAIN)
@pytest.mark.parametrize("name", FAMILIES)
def test_plain_lora_is_the_same_product_and_peft_reads_it(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, name: str, kind: str, knobs: dict
) -> None:
    peft = pytest.importorskip("peft")
    method = methods.find(kind)(**knobs)
    adapted = load(family(name))
    adapted.add("a", method)
    fill(adapted, "a")
    if kind == "adalora":
        for step in range(1, 11):  # ranks go, and other ones in every layer
            adapted.after_step("a", step, 10)
        tables = adapted._tables("a")
        with torch.no_grad():
            for number, table in enumerate(tables.values()):
                table["kept"].copy_(torch.arange(4) < number % 4)
                table["E"].masked_fill_(~table["kept"][:, None], 0.0)
    expected = logits(adapted.model)
    differences = {}
    for path, site in adapted.layers.items():
        tensors = site.all_tensors("a", torch.float32)
        differences[path] = site.methods["a"].merged(site.weight(), tensors, 1.0) - site.weight()
    run = keep(family(name), rows_file, method, adapted)
    facts = exports.export(run, "lora", tmp_path / "out")
    assert facts["difference"] < 1e-4
    assert facts["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {value.shape[0 if "lora_A" in key else 1] for key, value in tensors.items()}
    assert ranks == {config["r"]} == {config["lora_alpha"]}
    assert (config["use_rslora"], config["use_dora"], config["bias"]) == (False, False, "none")
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert tensors.keys() == {f"base_model.model.{path}.lora_{part}.weight" for path in adapted.layers for part in "AB"}
    for path, difference in differences.items():
        a, b = (tensors[f"base_model.model.{path}.lora_{part}.weight"] for part in "AB")
        assert torch.allclose(b @ a, difference, atol=1e-6 * max(1.0, float(adapted.layers[path].weight().abs().max())))
    theirs = AutoModelForCausalLM.from_pretrained(family(name), dtype=torch.float32).eval()
    assert not torch.allclose(logits(theirs), expected, atol=1e-3)
    assert torch.allclose(logits(peft.PeftModel.from_pretrained(theirs, tmp_path / "out")), expected, atol=1e-5)


@pytest.mark.parametrize("kind", THIN)
def test_a_trained_run_goes_out_as_plain_lora(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, kind: str
) -> None:
    run = train(family("gpt2"), rows_file, {"name": kind})
    job = runs.create(ExportConfig(run=run.id, to="lora", dtype="bfloat16"))
    result = worker.work(job)
    assert result["outcome"] == "completed"
    assert [line["doing"] for line in job.metrics().steps] == ["loading_model", "saving", "checking"]
    tensors = load_file(job.folder / "export" / "adapter_model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    card = (job.folder / "export" / "README.md").read_text()
    assert "as plain LoRA" in card and "PeftModel" in card and "(bfloat16)" in card
    adapted = load(family("gpt2"))
    adapted.load("b", job.folder / "export")
    assert adapted.methods["b"].name == "lora"


@pytest.mark.parametrize("kind", [kind for kind in MERGING if kind not in THIN])
def test_what_is_no_thin_product_is_refused(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, kind: str
) -> None:
    method = methods.find(kind)()
    adapted = load(family("gpt2"))
    adapted.add("a", method)
    run = keep(tmp_path / "a model that is not there", rows_file, method, adapted)
    with pytest.raises(Problem, match="cannot be written as plain LoRA") as caught:
        exports.export(run, "lora", tmp_path / "out")
    assert "merged" in caught.value.to_do
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"modules_to_save": ["lm_head"]}, "trained whole"), ({"targets": ["embed_tokens", "q_proj"]}, "embed_tokens")],
)
def test_what_plain_lora_cannot_hold_is_refused(
    home: Path, family: Callable[[str], Path], rows_file: Path, tmp_path: Path, knobs: dict, words: str
) -> None:
    method = methods.find("lora")(**knobs)
    adapted = load(family("llama"))
    adapted.add("a", method)
    run = keep(family("llama"), rows_file, method, adapted)
    with pytest.raises(Problem, match=words) as caught:
        exports.export(run, "lora", tmp_path / "out")
    assert "merged" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_that_half_precision_cannot_hold_are_refused(family: Callable[[str], Path]) -> None:
    adapted = load(family("llama"))
    adapted.add("a", methods.find("lora")(targets=["q_proj"]))
    trained = fill(adapted, "a")
    with torch.no_grad():
        trained["model.layers.1.self_attn.q_proj.B"][0, 0] = 1e5
    with pytest.raises(Problem, match="float16 cannot hold") as caught:
        exports.write_plain(adapted, "a", torch.float16)
    assert "layers.1" in str(caught.value)
    tensors, _ = exports.write_plain(adapted, "a", torch.bfloat16)
    assert all(value.is_contiguous() for value in tensors.values())


# --- one weight for the embedding and the head ------------------------------------------------------------------------


@pytest.fixture
def tied(family: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama whose head is its embedding."""
    model = AutoModelForCausalLM.from_pretrained(family("llama"))
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    AutoTokenizer.from_pretrained(family("llama")).save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


def test_a_merged_head_of_a_tied_model_leaves_the_embedding_alone(
    home: Path, tied: Path, rows_file: Path, tmp_path: Path
) -> None:
    """PEFT 0.21 merges the head's LoRA into the weight that is the embedding too, and the answers are others."""
    peft = pytest.importorskip("peft")
    method = methods.find("lora")(targets=["lm_head"], rank=4)
    adapted = load(tied)
    assert adapted.model.config.tie_word_embeddings
    adapted.add("a", method)
    fill(adapted, "a")
    expected = logits(adapted.model)
    run = keep(tied, rows_file, method, adapted)
    assert exports.export(run, "merged", tmp_path / "merged")["difference"] < 1e-3
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["tie_word_embeddings"] is False
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert torch.allclose(logits(saved), expected, atol=1e-4)

    base = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32).eval()
    theirs = peft.PeftModel.from_pretrained(base, run.folder / "adapter")
    assert torch.allclose(logits(theirs), expected, atol=1e-5)  # applied, both agree
    theirs.merge_and_unload().save_pretrained(tmp_path / "theirs")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32).eval()
    assert float((logits(merged) - expected).abs().max()) > 1.0


# --- other tasks than chats -------------------------------------------------------------------------------------------

ROWS: dict[str, dict[str, Any]] = {
    "classification": {"text": "the cat {}", "label": "label {}"},
    "extractive_qa": {"context": "sky {}", "question": "what", "answers": {"text": ["sky"], "answer_start": [0]}},
    "seq2seq": {"source": "the cat {}", "target": "sky {}"},
}


@pytest.mark.parametrize(
    ("task", "name", "loader"),
    [
        ("classification", "bert", "AutoModelForSequenceClassification"),
        ("classification", "llama", "AutoModelForSequenceClassification"),
        ("extractive_qa", "roberta", "AutoModelForQuestionAnswering"),
        ("seq2seq", "t5", "AutoModelForSeq2SeqLM"),
    ],
)
def test_heads_of_other_tasks_go_out_with_the_merged_model(
    home: Path, family: Callable[[str], Path], tmp_path: Path, task: str, name: str, loader: str
) -> None:
    import transformers

    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps(ROWS[task]).replace("{}", str(number % 3)) for number in range(12)]
    rows.write_text("\n".join(lines), encoding="utf-8")
    settings = {
        "task": task,
        "model": {"name": str(family(name))},
        "data": {"train": str(rows), "max_length": 64},
        "method": {"name": "lora", "rank": 4},
        "train": {"max_steps": 6, "learning_rate": 1e-2},
    }
    run = runs.create(Config.read(settings))
    assert worker.work(run)["outcome"] == "completed"
    assert exports.export(run, "merged", tmp_path / "merged")["difference"] < 1e-3
    model, told = getattr(transformers, loader).from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    assert f"{loader}.from_pretrained" in (tmp_path / "merged" / "README.md").read_text()
    if task == "classification":
        assert list(model.config.id2label.values()) == ["label 0", "label 1", "label 2"]
    if task == "seq2seq":
        assert exports.export(run, "lora", tmp_path / "lora")["difference"] < 1e-3
    else:
        with pytest.raises(Problem, match="trained whole"):
            exports.export(run, "lora", tmp_path / "lora")


def test_a_stop_breaks_into_an_export_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = runs.create(Config(name="source"))
    (source.folder / "adapter").mkdir()
    (source.folder / "adapter" / "adapter_config.json").write_text("{}")
    job = runs.create(ExportConfig(run=source.id, to="adapter"))

    def slow(run: Run, out: Path) -> None:
        (out / "half").write_text("half")
        job.ask("discard")
        threading.Event().wait(60)
        raise AssertionError("nobody came")

    monkeypatch.setattr(exports, "_export_adapter", slow)
    monkeypatch.setattr(wishes, "_PATIENCE", 0.0)
    assert worker.work(job)["outcome"] == "stopped" and list((job.folder / "export").iterdir()) == []
    job.ask("discard")  # while the next worker was starting
    assert worker.work(job)["discarded"] is True
