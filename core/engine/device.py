"""The device that trains and answers, and its precision; what asks for it need not load any of the rest."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

import psutil
import torch
from accelerate import PartialState

from core import devices, methods


def find_device() -> torch.device:
    """The device that training and chat use: CUDA (ROCm too), Ascend, XPU or MPS where there is one, else the CPU."""
    return PartialState().device


def describe_device() -> dict[str, Any]:
    """What `doctor` and the window's header say: {kind, device, cores, memory_gb, devices, versions}."""
    device, cores = find_device(), os.cpu_count() or 1
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name = f"CPU · {cores} cores" if device.type == "cpu" else device.type.upper()
        memory = psutil.virtual_memory().total
    gigabytes = round(memory / 2**30)
    return {
        "kind": device.type,
        "device": f"{name} · {gigabytes} GB",
        "cores": cores,
        "memory_gb": gigabytes,
        "devices": _name_devices(device.type),
        "versions": {"torch": torch.__version__, "transformers": version("transformers")},
    }


def _name_devices(kind: str) -> dict[str, Any]:
    """Which devices a process could be given: `names`, and the environment `variable` that takes them; none where there
    is nothing to choose from."""
    known = {"cuda": ["CUDA_VISIBLE_DEVICES"], "npu": ["ASCEND_RT_VISIBLE_DEVICES"], "xpu": ["ZE_AFFINITY_MASK"]}
    variables = [*(["HIP_VISIBLE_DEVICES"] if kind == "cuda" and torch.version.hip else []), *known.get(kind, [])]
    if not variables:
        return {"variable": "", "names": []}
    count = getattr(torch, kind).device_count()
    variable = next((name for name in variables if os.environ.get(name)), variables[0])
    if not os.environ.get(variable):
        return {"variable": variable, "names": [str(index) for index in range(count)]}
    # Who sees some of them alone may give away no others.
    names = devices.split_names(os.environ[variable])
    return {"variable": variable, "names": names if len(names) == count else []}


def choose_dtype(setting: str, device: torch.device, method: methods.Method | None = None) -> torch.dtype:
    """The number format of the base weights.

    Weights that are trained themselves stay in float32: a small step on a half-precision weight rounds to nothing.
    """
    if isinstance(method, methods.SelectiveMethod):
        return torch.float32
    if setting != "auto":
        return getattr(torch, setting)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type in ("npu", "xpu"):
        return torch.bfloat16
    return torch.float32  # CPU and MPS: half precision is slower there or not exact enough to train in
