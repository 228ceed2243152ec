"""Whether a worker gets on is read off its newest lines: starting, running, or stalled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core import pulse

BORN = 1000.0


def steps(*times: float) -> list[dict[str, object]]:
    return [{"step": number, "loss": 1.0, "time": time} for number, time in enumerate(times, 1)]


def doing(what: str, time: float) -> dict[str, object]:
    return {"event": "doing", "doing": what, "time": time}


@pytest.mark.parametrize(
    ("lines", "now", "state"),
    [
        ([], 1001, "starting"),
        ([], 3000, "stalled"),
        ([doing("loading_model", 1005)], 1100, "starting"),
        ([doing("loading_model", 1005)], 2900, "stalled"),
        (steps(500, 501, 502, 503), 1001, "starting"),  # of the worker before
        ([*steps(500, 501), {"event": "resumed", "step": 2, "time": 1009}], 1010, "starting"),
        ([*steps(1010)], 1100, "running"),  # nobody knows yet how long a step takes
        ([*steps(1010, 1011, 1012, 1013)], 1070, "running"),
        ([*steps(1010, 1011, 1012, 1013)], 1074, "stalled"),
        ([*steps(1010, 1110, 1210, 1310)], 2300, "running"),  # ten slow steps
        ([*steps(1010, 1110, 1210, 1310)], 2311, "stalled"),
        ([*steps(1010, 1011, 1012, 1013), doing("evaluating", 1014)], 2800, "running"),
        ([*steps(1010, 1011, 1012, 1013), doing("evaluating", 1014)], 2815, "stalled"),
        ([*steps(1010, 1011, 1012, 1013), {"step": 4, "eval_loss": 1.0, "time": 1100}], 1200, "running"),
    ],
)
def test_the_newest_lines_tell(lines: list[dict[str, object]], now: float, state: str) -> None:
    assert pulse.judge(lines, BORN, now) == state


def test_only_whole_lines_of_the_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert pulse.read(path) == []
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(100_000)) + '{"step": 5')
    lines = pulse.read(path)
    assert lines[-1] == {"step": 99_999} and 100 < len(lines) < 2000
    assert [line["step"] for line in lines] == list(range(100_000 - len(lines), 100_000))
