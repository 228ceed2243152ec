"""What a task takes, what it counts as right, and its measures against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from core import objectives
from core.formats import Answer, Example, Message
from core.objectives import SpanRow
from core.objectives.classification import Classification
from core.objectives.extractive_qa import ExtractiveQA, Span, score_answers, split_words
from core.problem import Problem

TALK = (Message("user", "Hi"), Message("assistant", "Hello"))
LONG_TALK = (*TALK, Message("user", "And?"), Message("assistant", "So"))


def label(*names: str, several: bool = False, text: str = "x") -> Example:
    return Example(text=text, labels=names, several=several)


@pytest.mark.parametrize(
    ("example", "tasks"),
    [
        (Example(TALK), ("chat", "seq2seq", "generative_qa")),
        (Example(LONG_TALK), ("chat",)),
        (Example(text="x"), ("text",)),
        (label("a"), ("classification",)),
        (Example(TALK, question="q", context="c", answers=(Answer("c", 0),)), ("chat", "seq2seq", "generative_qa", "extractive_qa")),
        (Example(question="q", context="c", answers=()), ("extractive_qa",)),
        (Example(TALK, source="Hi", target="Hello"), ("chat", "seq2seq", "generative_qa")),
    ],
)  # fmt: skip
def test_a_row_names_the_tasks_that_it_fits(example: Example, tasks: tuple[str, ...]) -> None:
    assert objectives.fitting(example) == tasks


@pytest.mark.parametrize("name", objectives.catalogue())
def test_a_row_of_another_shape_is_refused_with_the_task_that_fits(name: str) -> None:
    task = objectives.find(name)
    shapes = [Example(LONG_TALK), Example(text="x"), label("a"), Example(question="q", context="c", answers=())]
    refused = [example for example in shapes if not task.fits(example)]
    assert len(refused) >= 3
    for example in refused:
        with pytest.raises(Problem) as caught:
            task.spell(example, None, None)  # type: ignore[arg-type]
        assert caught.value.field == "task"
        assert f"fits {', '.join(objectives.fitting(example))}" in str(caught.value)


@pytest.mark.parametrize("name", objectives.catalogue())
def test_judged_answers_are_learned_by_no_task_without_a_word(name: str) -> None:
    task, text = objectives.find(name), Example(text="x")
    worse = Example((TALK[0], Message("assistant", "Go")))
    judged = {
        "chosen": [Example(TALK, rejected=worse), Example(text="x", rejected=text)],
        "good": [Example(TALK, good=True), Example(TALK, good=False), Example(text="x", good=True)],
    }
    for format, examples in judged.items():
        for example in examples:
            with pytest.raises(Problem, match=f"not possible yet.* choose the format {format}") as caught:
                task.spell(example, None, None)  # type: ignore[arg-type]
            assert caught.value.field == "data.format"


def test_facts_restore_the_task() -> None:
    fitted = Classification().fitted([label("b"), label("a", several=True), label("10"), label("9")])
    assert (fitted.labels, fitted.several) == (("9", "10", "a", "b"), True)
    for task in (fitted, ExtractiveQA(True), objectives.find("chat")):
        again = objectives.restore({"task": task.name} | task.facts())
        assert (type(again), vars(again)) == (type(task), vars(task))


def test_data_without_a_choice_is_refused() -> None:
    with pytest.raises(Problem, match="every row has the same label"):
        Classification().fitted([label("a")] * 3)
    with pytest.raises(Problem, match="30 labels in 30 rows"):
        Classification().fitted([label(f"text {n}") for n in range(30)])
    assert len(Classification().fitted([label(f"text {n}") for n in range(5)]).labels) == 5


def test_single_labels_by_hand() -> None:
    task = Classification(("a", "b", "c", "unseen"))
    truth, guess = "aaabbc", "aabbbb"
    scored = [(label(t), [(task.labels.index(g),)]) for t, g in zip(truth, guess, strict=True)]
    found = task.score(scored)
    assert found["accuracy"] == pytest.approx(4 / 6)
    # a: precision 1, recall 2/3; b: precision 2/4, recall 1; c: never given; the fourth is neither there nor given
    assert found["macro_f1"] == pytest.approx((0.8 + 2 / 3 + 0) / 3)
    assert task.tables(scored) == {
        "labels": ["a", "b", "c", "unseen"],
        "confusion": [[2, 1, 0, 0], [0, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
    }


def test_several_labels_by_hand() -> None:
    task = Classification(("a", "b"), several=True)
    scored = [
        (label("a", "b", several=True), [(0, 1)]),
        (label("a", several=True), [(0, 1)]),
        (label(several=True), [()]),
    ]
    found = task.score(scored)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["macro_f1"] == pytest.approx((1.0 + 2 / 3) / 2)
    assert task.tables(scored)["confusion"] == [[[1, 0], [0, 2]], [[1, 1], [0, 1]]]
    one = [(label("a", several=True), [(0,)]), (label(several=True), [(0,)])]  # b is neither there nor given
    assert task.score(one) == {"accuracy": 0.5, "macro_f1": pytest.approx(2 / 3)}
    assert task.score([(label(several=True), [()])]) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_losses_are_sums_over_rows() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    single = Classification(("a", "b"))
    by_hand = -math.log(math.exp(2) / (math.exp(2) + math.exp(-1))) - math.log(1 / (math.exp(0.5) + 1))
    assert float(single.loss(logits, torch.tensor([0, 1]))) == pytest.approx(by_hand)
    several = Classification(("a", "b"), several=True)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    terms = [-math.log(sigmoid(2)), -math.log(1 - sigmoid(-1)), -math.log(sigmoid(0.5)), -math.log(sigmoid(0))]
    targets = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert float(several.loss(logits, targets)) == pytest.approx(sum(terms) / 2)
    assert sum(several.probabilities(logits[0])) != pytest.approx(1)
    assert float(sum(single.probabilities(logits[0]))) == pytest.approx(1)
    spans = torch.zeros(2, 4, 2)
    spans[:, 3] = -torch.inf
    assert float(ExtractiveQA().loss(spans, torch.tensor([[0, 1], [2, 2]]))) == pytest.approx(2 * math.log(3))


@pytest.mark.parametrize(
    ("guess", "answers", "exact", "f1"),
    [
        ("The cat.", ["a cat"], 1.0, 1.0),
        ("the big cat", ["cat"], 0.0, 2 / 3),
        ("cat sat", ["dog", "sat"], 0.0, 2 / 3),
        ("", ["", "x"], 1.0, 1.0),
        ("", ["x"], 0.0, 0.0),
        ("dog dog", ["dog"], 0.0, 2 / 3),
        ("北京市", ["北京"], 0.0, 0.8),
    ],
)
def test_answers_are_compared_as_squad_does(guess: str, answers: list[str], exact: float, f1: float) -> None:
    assert score_answers([(guess, answers)]) == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_words_that_count() -> None:
    assert split_words("An apple, the U.S. theme!") == ["apple", "us", "theme"]


def window(*places: tuple[int, int] | None) -> SpanRow:
    return SpanRow(list(range(len(places))), places=list(places))


def test_the_best_span_begins_before_it_ends_and_lies_in_the_context() -> None:
    row = window(None, None, (0, 3), (4, 7), (8, 11))
    logits = torch.tensor([[0.0, 0.0], [9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    logits[1] = -torch.inf  # the question
    found = ExtractiveQA().predict(row, logits)
    # token 4 alone (5 + 0) is less than 4..3 (5 + 2), which ends before it begins; 2..3 has 1 + 2
    assert (found.start, found.end, found.score, found.none) == (8, 11, 5.0, 0.0)
    starts, ends = [math.exp(x) for x in (0, 1, 0, 5)], [math.exp(x) for x in (0, 0, 2, 0)]
    assert found.probability == pytest.approx(math.exp(5) / sum(starts) * 1 / sum(ends))


def test_no_span_is_longer_than_an_answer() -> None:
    row = window(None, *((n, n + 1) for n in range(60)))
    logits = torch.full((61, 2), -50.0)
    logits[1, 0] = logits[60, 1] = 9.0
    found = ExtractiveQA().predict(row, logits)
    assert 0 < found.end - found.start <= 30
    assert found.score == -41.0


def test_over_windows_the_best_counts_and_none_only_where_there_may_be_none() -> None:
    weak, strong = Span(0, 4, 3.0, 6.0, 0.1), Span(9, 12, 5.0, 5.5, 0.2)
    assert ExtractiveQA(False).choose([weak, strong]) == strong
    assert ExtractiveQA(True).choose([weak, strong]) is None  # 5.5 is more than 5
    sure = strong._replace(none=4.0)
    assert ExtractiveQA(True).choose([weak, sure]) == sure
    context = "It rained all day"
    example = Example(question="q", context=context, answers=(Answer("rained", 3),))
    none = Example(question="q", context=context, answers=())
    spans = {"right": Span(3, 9, 5.0, 0.0, 0.9), "none": Span(0, 2, 1.0, 4.0, 0.1)}
    task = ExtractiveQA().fitted([example, none])
    assert task.unanswered and not ExtractiveQA().fitted([example]).unanswered
    assert task.score([(example, [spans["right"]]), (none, [spans["none"]])]) == {"exact_match": 1.0, "f1": 1.0}
    assert task.score([(example, [spans["none"]])]) == {"exact_match": 0.0, "f1": 0.0}


def test_a_written_answer_counts_as_the_best_of_the_right_ones() -> None:
    task = objectives.find("generative_qa")
    several = Example(TALK, question="q", answers=(Answer("one"), Answer("two words")))
    assert task.score([(several, ["two words"]), (Example(TALK), ["Hello!"])]) == {"exact_match": 1.0, "f1": 1.0}
    assert task.score([]) == {}


def test_rouge_and_bleu_by_hand() -> None:
    task = objectives.find("seq2seq")
    example = Example(source="s", target="the cat sat on the mat")
    same = task.score([(example, ["the cat sat on the mat"])])
    assert (same["rouge_1"], same["rouge_2"], same["rouge_l"]) == (1.0, 1.0, 1.0)
    assert same["bleu"] == pytest.approx(100.0)
    found = task.score([(example, ["the cat on mat"])])
    # words shared 4 of 6 and of 4; pairs shared 1 ("the cat") of 5 and of 3; the longest common order is all 4
    assert found["rouge_1"] == pytest.approx(2 * 4 / 10)
    assert found["rouge_2"] == pytest.approx(2 * 1 / 8)
    assert found["rouge_l"] == pytest.approx(2 * 4 / 10)
    chinese = task.score([(Example(source="s", target="今天天气很好"), ["今天天气很好"])])
    assert chinese["rouge_l"] == 1.0 and chinese["bleu"] == pytest.approx(100.0)
