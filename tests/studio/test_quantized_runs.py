"""A run on a quantised base in the window: which base it may be merged into, and which base answers for it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml

from core import runs
from core.problem import Problem
from studio import answers
from studio.serving import Base, Piece, Sampling, Serving, Weights
from studio.tabs.export import _Export, _jobs, start

pytest.importorskip("bitsandbytes")

HELLO = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def quantized(trained_home: Path, trained_run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A home of its own with two runs: the trained one, and the same as if its base had been quantised; the latter's id."""
    home = Path(shutil.copytree(trained_home, tmp_path / "home"))
    monkeypatch.setenv("ATELIER_HOME", str(home))
    folder = Path(shutil.copytree(home / "runs" / trained_run, home / "runs" / "packed"))
    data = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    data["model"]["quantization"] = "nf4"
    (folder / "config.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return "packed"


def test_only_a_quantised_run_asks_for_the_base(quantized: str, trained_run: str, draw: Callable[..., Any]):
    tab = draw(_Export)
    for run, visible in ((quantized, True), (trained_run, False)):
        (asked,) = [update for update in tab._show(run, "auto") if isinstance(update, gr.Radio)]
        assert asked.visible is visible
    original, unpacked = (start(quantized, "merged", "auto", base) for base in ("original", "dequantised"))
    assert [job.config_data()["merge_base"] for job in (original, unpacked)] == ["original", "dequantised"]
    assert start(quantized, "merged", "auto", "dequantised").id == unpacked.id, "pressed twice it is one export"
    assert start(trained_run, "merged", "auto", "dequantised").config_data()["merge_base"] == "original"
    assert start(quantized, "adapter", "auto", "dequantised").config_data()["merge_base"] == "original"
    for nonsense in ("", None, 3, "both"):
        with pytest.raises(Problem, match="no base"):
            start(quantized, "merged", "auto", nonsense)


@pytest.mark.parametrize(
    ("base", "says"),
    [("original", "merged into the original one"), ("dequantised", "that it was trained on, unpacked")],
)
def test_the_result_says_what_the_base_cost(quantized: str, draw: Callable[..., Any], base: str, says: str):
    from core.engine.worker import work

    tab = draw(_Export)
    problem, *_ = tab._start_merged(quantized, "auto", base)
    (job,) = _jobs(quantized)
    assert problem == ""
    assert work(job)["outcome"] == "completed"
    assert says in tab._made(answers.find(quantized))
    result = job.result() or {}
    assert f"{result['tested_difference']:.2g}" in tab._made(answers.find(quantized))
    # The base is stored in half precision, and so is what is merged into it.
    assert (result["tested_difference"] < 0.1) == (base == "dequantised")


def test_the_quantised_base_answers_for_its_runs_alone(quantized: str, trained_run: str):
    async def ask(weights: Weights) -> list[Piece]:
        return [piece async for piece in serving.stream(weights, HELLO, Sampling(temperature=0.0, max_tokens=8))]

    found = answers.find(quantized)
    assert found is not None and found.base == Base("playground", None, "nf4") != answers.find(trained_run).base
    serving = Serving()
    try:
        pieces = asyncio.run(ask(Weights(found.base, quantized, "applied")))
        assert pieces[-1].weights is not None
        assert (pieces[-1].weights["adapter"], pieces[-1].weights["quantization"]) == (quantized, "nf4")
        assert serving.base == found.base
        with pytest.raises(Problem, match="another base"):
            asyncio.run(ask(Weights(found.base, trained_run, "applied")))
    finally:
        serving.end()
    assert runs.find_id(quantized).config().model.quantization == "nf4"
