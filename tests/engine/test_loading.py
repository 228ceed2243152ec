"""The lines that an export says it is loaded by are Python, name the right class, and load it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core import methods, objectives
from core.config import ModelSettings
from core.engine.adapt import Adapted
from core.engine.device import _name_devices
from core.engine.model import find_heads, load_model
from core.loading import write_lines


@pytest.mark.parametrize("to", ["adapter", "merged"])
@pytest.mark.parametrize("task", objectives.catalogue())
@pytest.mark.parametrize("kind", methods.catalogue())
def test_every_export_says_how_it_is_loaded(kind: str, task: str, to: str) -> None:
    lines = write_lines(to, methods.find(kind), objectives.find(task), "some/base", "a'b\\c")
    if kind in ("adapter_h", "adapter_p", "parallel_adapter") and to == "adapter":
        assert lines is None, "PEFT has them not"
        return
    assert lines is not None and objectives.find(task).auto_class in lines
    texts = [node.value for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Constant)]
    assert any(isinstance(text, str) and text.startswith("a'b\\c") for text in texts)


@pytest.mark.parametrize("kind", ["lora", "ia3", "bitfit", "full"])
def test_the_lines_load_what_they_say(family: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    base = family("bert")
    task = objectives.find("classification").restored({"labels": ["a", "b"]})
    torch.manual_seed(0)
    adapted = Adapted(load_model(ModelSettings(name=str(base)), torch.device("cpu"), torch.float32, task)[0])
    adapted.add("a", methods.find(kind)(), heads=find_heads(adapted.model))
    trained = adapted.start_training("a")
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.05)
    adapted.save("a", tmp_path / "out", base=str(base), about={}, task_type="SEQ_CLS")
    ids = torch.arange(10, 20)[None]
    adapted.model.eval()
    expected = adapted.model(input_ids=ids).logits
    lines = write_lines("adapter", methods.find(kind), task, str(base), str(tmp_path / "out"))
    assert lines is not None
    place: dict[str, torch.nn.Module] = {}
    exec(lines, place)
    assert torch.allclose(place["model"].eval()(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("hip", "seen", "expected"),
    [
        (None, {}, ("CUDA_VISIBLE_DEVICES", ["0", "1"])),
        (None, {"CUDA_VISIBLE_DEVICES": "2, 5"}, ("CUDA_VISIBLE_DEVICES", ["2", "5"])),
        (None, {"CUDA_VISIBLE_DEVICES": "2,3,9"}, ("CUDA_VISIBLE_DEVICES", [])),
        ("6.0", {}, ("HIP_VISIBLE_DEVICES", ["0", "1"])),
        ("6.0", {"CUDA_VISIBLE_DEVICES": "2,3"}, ("CUDA_VISIBLE_DEVICES", ["2", "3"])),
    ],
)
def test_only_devices_that_may_be_seen_are_named(
    hip: str | None, seen: dict[str, str], expected: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = _name_devices("cuda")
    assert (told["variable"], told["names"]) == expected
    assert _name_devices("cpu") == {"variable": "", "names": []}
