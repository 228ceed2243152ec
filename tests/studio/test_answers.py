"""What Chat and Compare share: choosing weights, sampling, and saying what made an answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import methods, runs
from core.config import Config
from core.problem import Problem
from studio import answers
from studio.language import Language
from studio.serving import Answer, Base, Passage, Span
from studio.tabs.compare import mark_changes

EN = Language("en")


@pytest.fixture(autouse=True)
def _home(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATELIER_HOME", str(trained_home))


def test_the_fields_become_weights(trained_run: str):
    applied = answers.read_weights(trained_run, "applied", 0.5)
    assert (applied.model, applied.strength, applied.base) == (trained_run, 0.5, Base("playground"))
    assert answers.read_weights(trained_run, "merged", 0.5).strength == 1.0, "a merged model has no strength to choose"
    assert answers.read_weights(trained_run, "merged", 0.5).model == f"{trained_run}:merged"
    assert answers.read_weights(trained_run, "base", 2).model == "base"
    assert answers.read_weights("", "base", 1.0).run is None


@pytest.mark.parametrize(
    ("run_id", "how", "strength"),
    [
        ("nobody", "applied", 1.0), ("../../etc", "applied", 1.0), (["x"], "applied", 1.0), ({"a": 1}, "base", 1.0), (True, "base", 1.0),
        ("A" * 1_000_000, "applied", 1.0), (None, "sideways", 1.0), (None, ["base"], 1.0), (None, "base", -0.1), (None, "base", 2.01),
        (None, "base", float("nan")), (None, "base", True), (None, "base", "1"), (None, "base", None), (None, "base", float("inf")),
    ],
)  # fmt: skip
def test_what_is_no_choice_is_refused(run_id: object, how: object, strength: object):
    with pytest.raises(Problem) as caught:
        answers.read_weights(run_id, how, strength)
    assert len(str(caught.value)) < 1000


def test_a_run_without_an_adapter_is_no_choice(home: Path):
    waiting = runs.create(Config.read({"name": "waiting"}))
    assert [value for _, value in answers.choices(EN)] == [answers.UNTRAINED]
    with pytest.raises(Problem, match="nothing to answer with"):
        answers.read_weights(waiting.id, "applied", 1.0)


def test_a_damaged_run_folder_does_not_hide_the_others(trained_home: Path, trained_run: str):
    broken = trained_home / "runs" / "20990101-000000-broken"
    (broken / "adapter").mkdir(parents=True)
    (broken / "adapter" / "adapter_config.json").write_text("{}")
    (broken / "config.yaml").write_text("model: [")
    try:
        assert [run.id for run in answers.trained()] == [trained_run]
    finally:
        for path in (broken / "adapter" / "adapter_config.json", broken / "config.yaml"):
            path.unlink()
        (broken / "adapter").rmdir()
        broken.rmdir()


def test_sampling_fields_give_a_seed_that_nobody_chose_or_the_one_that_was():
    fields = (0.5, 0.9, 40, 100, 1.1)
    system, sampling = answers.read_sampling("Be brief.", *fields, "7")
    assert (system, sampling.seed, sampling.top_k, sampling.temperature) == ("Be brief.", 7, 40, 0.5)
    assert len({answers.read_sampling("", *fields, "")[1].seed for _ in range(20)}) > 1
    for seed in ("seven", "-1", "1e99", [1]):
        with pytest.raises(Problem):
            answers.read_sampling("", *fields, seed)
    for text in (None, 5, ["x"], "A" * 300_000):
        with pytest.raises(Problem):
            answers.read_sampling(text, *fields, "")


def test_what_made_an_answer_is_said_and_is_text(trained_run: str):
    weights = {
        "base": "<i>base</i>",
        "adapter": trained_run,
        "step": 3,
        "scale": 0.5,
        "merged": False,
        "digest": "abc<def",
    }
    said = answers.made_by(EN, weights)
    assert (
        "first &lt;b&gt;try&lt;/b&gt;" in said and "step 3" in said and "strength 0.5" in said and "abc&lt;def" in said
    )
    assert "<i>" not in said and "<b>try" not in said
    assert "merged" in answers.made_by(EN, weights | {"merged": True})
    assert "no adapter" in answers.made_by(EN, {"base": "playground", "adapter": None})


def test_numbers_under_an_answer_wait_for_its_end():
    answer = Answer("x", "writing", usage={"completion_tokens": 12}, speed=21.37, finish="length")
    assert answers.counted(EN, answer, 5) == ""
    answer.state = "done"
    assert "12 tokens · 21.4 tokens/s · seed 5 · cut" in answers.counted(EN, answer, 5)


def test_prompts_and_answers_are_escaped():
    nasty = "'\"><script>alert(1)</script>"
    assert (
        "<script" not in answers.prompt_buttons(EN, [nasty])
        and "'\"" not in answers.prompt_buttons(EN, [nasty]).split("data-prompt")[1][2:20]
    )
    assert "<script" not in answers.said(EN, Answer(nasty, "done"))
    assert "<script" not in answers.foot(EN, Answer("", "failed", problem=Problem("{given}", given=nasty)), 1)


def test_changes_are_marked_word_by_word():
    marked, missing = mark_changes("The cat sat on the mat.", "The <b>dog</b> sat on the mat!")
    assert "&lt;" in marked and "<b>" not in marked
    assert marked.startswith("The ") and "sat on the mat" in marked and "dog" in marked
    assert missing == 2  # cat and the full stop
    assert mark_changes("same words", "same words") == ("same words", 0)
    chinese, _ = mark_changes("海水是咸的", "海水是甜的")
    assert chinese == "海水是<mark>甜</mark>的"


def test_marking_loses_no_text():
    import html
    import re

    for first, text in (("", "new  text\n\tx"), ("a b c", ""), ("a b c", "c  b & a"), ("x" * 10, "é — 5 < 6")):
        assert html.unescape(re.sub("</?mark>", "", mark_changes(first, text)[0])) == text


@pytest.mark.parametrize(
    ("task", "manner"),
    [
        ("chat", "talk"), ("text", "continue"), ("classification", "label"), ("extractive_qa", "find"),
        ("generative_qa", "ask"), ("seq2seq", "ask"),
    ],
)  # fmt: skip
def test_a_run_is_spoken_to_as_it_was_trained(home: Path, task: str, manner: str):
    run = runs.create(Config.read({"task": task}))
    assert answers.about(run).manner == manner


def test_what_is_sent_suits_what_the_run_learned():
    before = [("One", "1"), ("Two", "2")]
    assert answers.say("label", "Ahoy", "ignored", "Be brief.", before) == Passage("Ahoy")
    assert answers.say("find", "Who?", "The cat.") == Passage("The cat.", "Who?")
    assert answers.say("continue", "Once upon", system="Be brief.") == "Once upon"
    assert answers.say("ask", "Three", before=before) == [{"role": "user", "content": "Three"}]
    talked = answers.say("talk", "Three", system="Be brief.", before=before)
    assert [turn["content"] for turn in talked] == ["Be brief.", "One", "1", "Two", "2", "Three"]
    with pytest.raises(Problem, match="no text to find"):
        answers.say("find", "Who?", "  \n")


def _about(method: str = "lora", manner: str = "talk") -> answers.About:
    return answers.About("x", "x", Base("playground"), method, manner)  # type: ignore[arg-type]


def test_what_cannot_be_merged_is_not_offered_merged():
    found = [methods.catalogue()[name] for name in methods.catalogue()]
    assert {method.merges for method in found} == {True, False}
    for name, method in methods.catalogue().items():
        offered = [how for _, how in answers.ways(EN, _about(name))]
        assert offered == ["applied", *(["merged"] if method.merges else []), "base"]
    assert [how for _, how in answers.ways(EN, None)] == ["base"]


def test_only_what_answers_one_message_stands_side_by_side():
    assert answers.go_together("talk", "continue") and answers.go_together("label", "label")
    assert not answers.go_together("label", "find") and not answers.go_together("talk", "label")


def test_labels_and_places_have_no_tokens_to_count():
    for answer in (Answer("", "done", labels=[("spam", 1.0)]), Answer("x", "done", span=Span(0, 1, 0.5))):
        assert answers.counted(EN, answer, 5) == "" and not answer.is_empty
    assert Answer("", "done").is_empty and not Answer("", "done", span=Span(0, 0)).is_empty


def test_an_answer_is_drawn_as_what_it_is():
    nasty = "<script>alert(1)</script>"
    drawn = answers.said(EN, Answer("", "done", labels=[(nasty, 0.75), ("ham", 0.25)]))
    assert "<script" not in drawn and "75.0 %" in drawn
    drawn = answers.said(EN, Answer("cat", "done", span=Span(4, 7, 0.5)), context=f"The cat {nasty}")
    assert "<mark>cat</mark>" in drawn and "<script" not in drawn


def test_a_base_is_named_so_that_it_fits():
    names = {"playground": "Playground", "org/model-1.5B": "org/model-1.5B", "/srv/me/models/org/tiny": "…/org/tiny"}
    assert {name: answers.base_name(EN, name) for name in names} == names
    assert answers.base_name(EN, "C:\\Users\\me\\tiny") == "…/me/tiny"
