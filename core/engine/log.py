"""What a training tells while it runs: metrics.jsonl and samples.jsonl, and the numbers of the machine that stand in them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch

from core.engine.trackers import Tracking
from core.runs import Run


class Log:
    """metrics.jsonl and samples.jsonl, a whole line at a time."""

    def __init__(self, run: Run):
        self.folder = run.folder
        self.fresh = not (run.folder / "metrics.jsonl").exists()
        self.tracking = Tracking.of(run, self.event)
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.folder / name
            # A killed worker may have left half a line; the next one must not be glued to it.
            if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
                with path.open("ab") as file:
                    file.write(b"\n")

    def write(self, **numbers: Any) -> None:
        line = {key: _round(value) for key, value in numbers.items()} | {"time": round(time.time(), 2)}
        self._append("metrics.jsonl", line)
        self.tracking.write(line)

    def event(self, event: str, step: int = 0, **facts: Any) -> None:
        self.write(event=event, step=step, **facts)

    def sample(self, step: int, prompt: str, answer: str) -> None:
        self._append("samples.jsonl", {"step": step, "prompt": prompt, "answer": answer})

    def close(self) -> None:
        """Let the tracker write what it still has, while its library is whole: at the end of the process it may not be."""
        self.tracking.close()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _round(value: Any) -> Any:
    if isinstance(value, float):
        # JSON knows no NaN; a gap in the curve is what it means.
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


class Speed:
    """Speed over the last steps: the mean of all would hide that a machine became slower."""

    def __init__(self) -> None:
        self.recent: list[tuple[int, float]] = []

    def add(self, tokens: int, seconds: float) -> None:
        self.recent = [*self.recent[-19:], (tokens, seconds)]

    @property
    def seconds_per_step(self) -> float:
        return sum(seconds for _, seconds in self.recent) / len(self.recent)

    @property
    def tokens_per_second(self) -> float:
        return sum(tokens for tokens, _ in self.recent) / max(1e-9, sum(seconds for _, seconds in self.recent))


def memory_in_use(device: torch.device) -> float:
    """Gigabytes that this process holds: of the accelerator's memory where there is one."""
    if device.type in ("cuda", "npu", "xpu"):
        return torch.get_device_module().max_memory_allocated() / 2**30
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 2**30
    return psutil.Process().memory_info().rss / 2**30
