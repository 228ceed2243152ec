"""The playground is what it says: data made from a seed, a tokenizer that loses nothing, a base that answers."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from core import presets
from core.engine.inspection import inspect
from core.playground import MODEL, SAMPLES, make, samples
from core.playground.chats import chat

DATA = SAMPLES["style"].path.parent
ROOT = Path(__file__).parents[2]

KNOWN = {
    "Who are you?": "I am Pip, a very small language model who knows the village of Pebbleford.",
    "What does Nora do for a living?": "Nora is a baker.",
    "What is Felix's pet called?": "Felix has a pigeon called Stamp.",
    "Which sound do owls make?": "An owl says hoot.",
    "What is the opposite of big?": "The opposite of big is small.",
    "What comes after Monday?": "After Monday comes Tuesday.",
    "How many legs does a spider have?": "A spider has eight legs.",
    "What colour is the sky?": "The sky is blue.",
}


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def questions(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").eval()


def test_listing_the_samples_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, core.playground; print([m for m in ('torch', 'transformers', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_shipped_files_are_what_the_script_makes() -> None:
    made = samples.files(seed=0)
    assert sorted(made) == sorted(path.name for path in DATA.iterdir())
    for name, text in made.items():
        assert (DATA / name).read_bytes() == text.encode(), name


def test_the_shipped_tokenizer_is_what_the_script_makes(tmp_path: Path) -> None:
    make.make_tokenizer(0, tmp_path)
    for path in tmp_path.iterdir():
        assert (MODEL / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_has_300_rows_and_three_prompts_that_it_does_not_contain(name: str) -> None:
    sample = SAMPLES[name]
    rows = read(sample.path.name)
    assert len(rows) >= 300
    assert len({json.dumps(row) for row in rows}) == len(rows)
    assert len(set(sample.prompts)) == 3
    asked = [row["instruction"] + "\n" + row["input"] for row in rows] if name == "sentiment" else questions(rows)
    assert not set(sample.prompts) & set(asked)


def test_every_answer_of_the_style_sample_opens_in_the_captains_voice() -> None:
    rows = read("style.jsonl")
    assert all(row["messages"][1]["content"].startswith(tuple(samples._HAILS)) for row in rows)
    assert len(set(questions(rows))) == len(rows) == len({row["messages"][1]["content"] for row in rows})


@pytest.mark.parametrize("name", SAMPLES)
def test_nothing_is_wrong_with_a_sample(name: str) -> None:
    report = inspect(presets.load("chat", {"data.train": f"sample:{name}"}))
    assert [one for one in report["findings"] if name == "style" or one["severity"] != "note"] == []


def test_held_out_facts_are_other_phrasings_of_the_taught_facts() -> None:
    taught, held_out = read("facts.jsonl"), read("facts_heldout.jsonl")
    assert not set(questions(taught)) & set(questions(held_out))
    answers = Counter(row["messages"][1]["content"] for row in taught)
    assert len(answers) == 60
    assert set(answers.values()) == {samples.TAUGHT_PHRASINGS}
    assert {row["messages"][1]["content"] for row in held_out} == set(answers)


def test_the_base_never_reads_a_name_of_the_island() -> None:
    names = {person["name"] for person in samples.ISLANDERS} | {samples.ISLAND}
    text = "\n".join(make.render(document) for document in itertools.islice(make.generate_corpus(0), 30_000))
    assert not [name for name in names if name in text]


@pytest.mark.parametrize("name", ["sentiment.jsonl", "sentiment_heldout.jsonl"])
def test_sentiment_is_balanced(name: str) -> None:
    rows = read(name)
    labels = Counter(row["output"] for row in rows)
    assert labels == {"positive": len(rows) // 2, "negative": len(rows) // 2}


def test_no_held_out_review_is_in_the_training_rows() -> None:
    assert not {row["input"] for row in read("sentiment.jsonl")} & {
        row["input"] for row in read("sentiment_heldout.jsonl")
    }


def test_the_tokenizer_loses_nothing(tokenizer: Any) -> None:
    assert len(tokenizer) == make.VOCABULARY
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    for text in ("Nora is a baker.", " two  spaces\n\tand a tab ", "Größe, 你好, naïve café 🦉", "1 + 12 = 13"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_template_is_stable_turn_by_turn(tokenizer: Any) -> None:
    rng = make.random.Random(3)
    for messages in (chat(rng) for _ in range(200)):
        whole = tokenizer.apply_chat_template(messages, tokenize=False)
        assert whole == make.render(messages)
        assert whole.count(make.BOS) == 1
        for turns in range(1, len(messages)):
            part = tokenizer.apply_chat_template(messages[:turns], tokenize=False)
            assert whole.startswith(part)
            if messages[turns]["role"] == "assistant":
                asked = tokenizer.apply_chat_template(messages[:turns], tokenize=False, add_generation_prompt=True)
                assert whole.startswith(asked + messages[turns]["content"] + tokenizer.eos_token)


def test_the_encoded_corpus_is_what_the_tokenizer_makes_of_the_template(tokenizer: Any) -> None:
    documents = list(itertools.islice(make.generate_corpus(5), 100))
    for document, (ids, weights) in zip(documents, make.encode(documents, tokenizer), strict=True):
        assert ids == tokenizer(make.render(document))["input_ids"]
        assert len(weights) == len(ids)
        assert weights[-1] == 1.0


def test_the_base_answers(model: Any, tokenizer: Any) -> None:
    said = {question: make.answer(model, tokenizer, [{"role": "user", "content": question}]) for question in KNOWN}
    assert said == KNOWN


def test_the_base_takes_words_from_the_prompt(model: Any, tokenizer: Any) -> None:
    assert "Anna" in make.answer(model, tokenizer, [{"role": "user", "content": "My name is Anna."}])
    story = make.answer(model, tokenizer, [{"role": "user", "content": "Write a short story about a brave fox."}])
    assert "fox" in story
    assert len(story) > 200
    assert story.endswith((".", '"', "!"))


def test_the_base_does_not_know_the_island(model: Any, tokenizer: Any) -> None:
    said = make.answer(model, tokenizer, [{"role": "user", "content": SAMPLES["facts"].prompts[0]}])
    assert said.startswith("Sorry, I do not know")
