"""Labels with their probabilities and answers in their texts, drawn so that nothing of them is markup."""

from __future__ import annotations

import html
import re

import pytest

from studio.language import Language
from studio.predictions import label_bars, mark_place, show_answer
from studio.serving import Span

EN = Language("en")
TEXT = "The <b>Amazon</b> basin & its forest."


def read(drawn: str) -> str:
    """The text that a reader sees."""
    return html.unescape(re.sub("<[^>]*>", "", drawn))


def test_labels_stand_in_their_order_with_a_bar_and_a_figure():
    drawn = label_bars(EN, [("spam", 0.9812), ("ham", 0.0187), ("<script>alert(1)</script>", 0.0001)])
    assert re.findall(r"width:([\d.]+)%", drawn) == ["98.12", "1.87", "0.01"]
    assert re.findall(r"class='number'>([^<]*)<", drawn) == ["98.1 %", "1.9 %", "&lt; 0.1 %"]
    assert "<script" not in drawn and "alert(1)" in read(drawn) and "<details" not in drawn


def test_of_many_labels_the_unlikely_ones_are_folded_away_and_none_is_lost():
    labels = [(f"label {number}", 1 / 77) for number in range(77)]
    drawn = label_bars(EN, labels)
    assert drawn.index("label 4") < drawn.index("<details") < drawn.index("label 5<")
    assert drawn.count("<li>") == 77 and "72 more labels" in drawn
    assert "<details" not in label_bars(EN, labels[:6]), "one more is no reason to fold"


@pytest.mark.parametrize("probability", [float("nan"), float("inf"), -0.5, 7.0])
def test_a_bar_never_leaves_its_place(probability: float):
    assert 0 <= float(re.findall(r"width:([\d.]+)%", label_bars(EN, [("x", probability)]))[0]) <= 100


def test_an_answer_is_marked_where_it_stands_and_the_text_is_text():
    start = TEXT.index("<b>Amazon</b>")
    drawn = mark_place(TEXT, start, start + len("<b>Amazon</b>"))
    assert "<mark>&lt;b&gt;Amazon&lt;/b&gt;</mark>" in drawn and "<b>" not in drawn
    assert read(drawn) == TEXT
    said = show_answer(EN, TEXT, "Amazon", Span(start, start + 13, 0.4251))
    assert said.index("42.5 %") < said.index("<mark>") and "<b>Amazon</b>" in said


def test_of_a_long_text_only_what_is_around_the_answer_is_shown():
    long = "a " * 5000 + "here" + " b" * 5000
    drawn = mark_place(long, 10_000, 10_004)
    assert "<mark>here</mark>" in drawn and drawn.startswith("…") and drawn.endswith("…") and len(drawn) < 3100
    assert len(mark_place(long, 0, 0)) < 3100


@pytest.mark.parametrize(("start", "end"), [(0, 0), (-1, 3), (5, 4), (3, 1000), (1000, 2000)])
def test_a_place_outside_the_text_marks_nothing(start: int, end: int):
    assert "<mark>" not in mark_place(TEXT, start, end) and read(mark_place(TEXT, start, end)) == TEXT


def test_where_the_text_does_not_say_that_is_said():
    drawn = show_answer(EN, TEXT, "", Span(0, 0, 0.7))
    assert "The text does not say." in drawn and "70.0 %" in drawn and "<mark>" not in drawn
