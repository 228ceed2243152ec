"""Figures hold the numbers of the run, gaps stay gaps, and a run keeps its colour."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from core.runs import Metrics
from studio import charts

NAMES = {name: name for name in ("raw", "smoothed", "evaluation", "step", "loss")}


def _metrics(count: int = 5) -> Metrics:
    steps = [{"step": step, "loss": 5.0 / step, "learning_rate": 1e-3} for step in range(1, count + 1)]
    return Metrics(Path("none"), steps, [{"step": 0, "eval_loss": 5.0}, {"step": count, "eval_loss": 1.0}])


def test_smoothing_of_a_constant_is_the_constant() -> None:
    assert charts.smooth([2.0] * 50) == [2.0] * 50 or all(
        math.isclose(value or 0, 2.0) for value in charts.smooth([2.0] * 50)
    )


def test_smoothing_begins_with_the_first_value_and_lies_within() -> None:
    smoothed = charts.smooth([1.0, 3.0, 1.0, 3.0], span=3)
    assert smoothed[0] == 1.0
    assert all(1.0 <= value <= 3.0 for value in smoothed if value is not None)


def test_gaps_stay_gaps_and_do_not_count() -> None:
    assert charts.smooth([1.0, None, 1.0]) == [1.0, None, 1.0]


def test_numbers_that_are_none_are_gaps() -> None:
    metrics = Metrics(
        Path("none"),
        [
            {"step": 1, "loss": float("nan")},
            {"step": 2, "loss": None},
            {"step": 3, "loss": True},
            {"step": 4, "loss": 2.0},
        ],
    )
    figure = charts.loss_figure(metrics, "run", NAMES)
    assert figure["data"][0]["y"] == [None, None, None, 2.0]
    json.dumps(figure, allow_nan=False)


def test_loss_and_evaluation_stand_in_one_figure() -> None:
    raw, smoothed, evaluation = charts.loss_figure(_metrics(), "run", NAMES)["data"]
    assert raw["y"][0] == 5.0 and raw["line"]["width"] < smoothed["line"]["width"]
    assert raw["line"]["color"] == smoothed["line"]["color"] == charts.colour("run")
    assert evaluation["x"] == [0, 5] and "markers" in evaluation["mode"]


def test_a_long_run_is_thinned_and_keeps_its_last_point() -> None:
    figure = charts.loss_figure(_metrics(100_000), "run", NAMES)
    assert len(figure["data"][0]["x"]) <= 1600
    assert figure["data"][0]["x"][-1] == 100_000
    assert len(figure["data"][0]["x"]) == len(figure["data"][1]["y"])


def test_a_run_keeps_its_colour_and_runs_differ() -> None:
    assert charts.colour("20261120-153000-a") == charts.colour("20261120-153000-a")
    assert len({charts.colour(f"2026112{day}-153000-a") for day in range(10)}) > 3


def test_the_zoom_is_kept_by_a_key_that_belongs_to_the_run() -> None:
    first, second = (charts.small_figure(_metrics(), run, "learning_rate", "", "")["key"] for run in ("a", "b"))
    assert first != second


def test_names_of_runs_are_no_markup() -> None:
    figure = charts.overlay_figure([("a", "<a href='http://x'>b</a>", _metrics())], NAMES)
    assert "<" not in figure["data"][0]["name"]


def test_an_empty_run_has_an_empty_figure() -> None:
    assert charts.loss_figure(Metrics(Path("none")), "run", NAMES)["data"][0]["x"] == []


def test_scores_are_drawn_from_0_to_100_and_told_apart_by_more_than_colour() -> None:
    rows = [{"step": 0, "eval_loss": 1.0}, {"step": 5, "eval_loss": 0.5, "eval_rouge_l": 0.25, "eval_bleu": 12.5}]
    figure = charts.score_figure(
        Metrics(Path("none"), [], rows), "run", {"eval_rouge_l": "ROUGE-L", "eval_bleu": "BLEU"}, "step"
    )
    rouge, bleu = figure["data"]
    assert (rouge["x"], rouge["y"], bleu["y"]) == ([5], [25.0], [12.5])
    assert rouge["marker"]["symbol"] != bleu["marker"]["symbol"] and rouge["line"]["dash"] != bleu["line"]["dash"]


def test_a_matrix_shows_counts_and_is_as_deep_as_their_share_of_the_row() -> None:
    names = {"title": "t", "true": "y", "said": "x"}
    labels = ["<a href='http://x'>ham</a>", "spam", "a label that is much longer than its tick may be"]
    figure = charts.matrix_figure(labels, labels, [[3, 1, 0], [0, 0, 0], [0, 2, 2]], "key", names)
    (trace,) = figure["data"]
    assert trace["z"] == [[0.75, 0.25, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]] and trace["text"][0] == ["3", "1", "0"]
    assert trace["texttemplate"] and all(len(tick) <= 40 for tick in figure["rows"][1:])
    assert "<" not in json.dumps([figure["rows"], figure["columns"], trace["customdata"]]), "labels are no markup"
    many = [str(number) for number in range(77)]
    figure = charts.matrix_figure(many, many, [[0] * 77] * 77, "key", names)
    assert not figure["data"][0]["texttemplate"], "no room for 77 numbers"


def test_figures_are_sent_as_one_text() -> None:
    """Gradio looks through every number of anything else, several times, for files."""
    box = charts.component("")
    figures = {"figures": [charts.loss_figure(_metrics(), "run", NAMES)]}
    sent = box.postprocess(figures)
    assert isinstance(box.value, str) and isinstance(sent, str) and json.loads(sent) == figures


def test_a_spike_and_a_gap_of_one_step_among_200_000_are_drawn() -> None:
    steps = [{"step": step, "loss": 1.0} for step in range(1, 200_001)]
    steps[77_777]["loss"], steps[123_456]["loss"], steps[150_000]["loss"] = 50.0, -50.0, math.nan
    drawn = charts.loss_figure(Metrics(Path("none"), steps), "run", NAMES)["data"][0]
    at = dict(zip(drawn["x"], drawn["y"], strict=True))
    assert at[77_778] == 50.0 and at[123_457] == -50.0 and at[150_001] is None
    assert len(at) <= 1600 and 1 in at and 200_000 in at
    small = charts.small_figure(Metrics(Path("none"), steps), "run", "loss", "", "")["data"][0]
    assert max(value for value in small["y"] if value is not None) == 50.0 and len(small["x"]) < 600


@pytest.mark.parametrize("count", [0, 1, 2, 3, 999, 1000, 1001, 1501, 4000])
def test_what_is_kept_is_in_order_and_holds_both_ends(count: int) -> None:
    kept = charts.extremes(np.sin(np.arange(count) / 7), 500)
    assert list(kept) == sorted(set(kept.tolist())) and len(kept) <= 1502
    assert count == 0 or (kept[0], kept[-1]) == (0, count - 1)
    assert charts.extremes(np.full(count, np.nan), 500).tolist() == sorted(
        set(charts.extremes(np.full(count, np.nan), 500).tolist())
    )


@pytest.mark.parametrize("span", [None, 1, 2, 3, 50, 5000])
def test_smoothing_by_blocks_is_smoothing_step_by_step(span: float | None) -> None:
    draw = random.Random(0)
    values = [None if draw.random() < 0.05 else draw.gauss(3, 1) for _ in range(3000)]
    keep, total, weight, expected = 1 - 2 / ((span or len(values) / 20) + 1), 0.0, 0.0, []
    for value in values:
        if value is not None:
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        expected.append(None if value is None else total / weight)
    assert charts.smooth(values, span) == [None if value is None else pytest.approx(value) for value in expected]


def test_runs_of_one_colour_are_told_apart_where_they_meet() -> None:
    ids = [f"run {number}" for number in range(8)]
    assert len(set(charts.places(ids))) == 8
    assert charts.PALETTE[charts.places(["alone"])[0]] == charts.colour("alone")


def test_a_sparkline_is_a_label_and_numbers() -> None:
    drawn = charts.sparkline(charts.spark([float(value) for value in range(1000)]), "run", "<b>'\"")
    assert "<b>" not in drawn and drawn.count(",") == 40
    assert charts.sparkline([1.0], "run", "") == "" and charts.spark([None, 2.0]) == [2.0]
