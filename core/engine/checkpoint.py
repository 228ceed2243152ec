"""Checkpoints: everything that a run needs to go on as if nothing had happened, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core import disk
from core.problem import Problem
from core.runs import Run, sync_folder

_FILES = ("trained.safetensors", "optimizer.safetensors", "random.safetensors", "state.json")


def save_checkpoint(
    run: Run,
    step: int,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write checkpoints/step-NNNNNN beside, sync, rename; then remove all but the newest `keep`.

    Args:
        trained: what is trained, by name.
        state: whatever else the loop wants back (must be JSON).
    """
    folder = run.folder / "checkpoints"
    folder.mkdir(exist_ok=True)
    final, beside = folder / f"step-{step:06d}", folder / f".step-{step:06d}"
    if _holds(final):
        return final  # stopped right after it was saved: to write it again would risk the only good one
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    moments = {
        f"{key}|{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for name, parameter in trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    # Once for the checkpoint's own, and once for the adapter beside it.
    needed = 2 * sum(value.nbytes for value in trained.values()) + sum(value.nbytes for value in moments.values())
    try:
        disk.require(folder, needed)
        _save(trained, beside / "trained.safetensors")
        _save(moments, beside / "optimizer.safetensors")
        _save(random_states(), beside / "random.safetensors")
        (beside / "state.json").write_text(json.dumps(dict(state) | {"step": step}, indent=2), encoding="utf-8")
    except Exception as error:
        shutil.rmtree(beside, ignore_errors=True)
        if disk.is_full(error):
            raise disk.DiskFull(disk.describe(folder, needed)) from error
        raise
    manifest = {
        path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in (beside / name for name in _FILES)
    }
    (beside / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for path in beside.iterdir():
        _sync(path)
    sync_folder(beside)
    shutil.rmtree(final, ignore_errors=True)  # a damaged one, else it would have been returned above
    os.replace(beside, final)
    sync_folder(folder)
    # Later ones were passed over as damaged when the run went on from before them.
    everything = run.checkpoints()
    here = everything[: everything.index(final) + 1]
    for old in {*everything} - {*here[-keep:]}:
        shutil.rmtree(old)
    return final


def find_checkpoint(run: Run) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint whose manifest holds, and the damaged ones that were passed over."""
    damaged = []
    for path in reversed(run.checkpoints()):
        if _holds(path):
            return path, damaged
        damaged.append(path)
    return None, damaged


def read_state(path: Path) -> dict[str, Any]:
    """What the loop gave a checkpoint to remember."""
    return json.loads((path / "state.json").read_text(encoding="utf-8"))


def load_checkpoint(
    path: Path, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put everything back in place; returns the loop's own state, `step` in it.

    Raises:
        Problem: when the checkpoint belongs to other settings.
    """
    saved = load_file(path / "trained.safetensors")
    if {name: tuple(value.shape) for name, value in saved.items()} != {
        name: tuple(value.shape) for name, value in trained.items()
    }:
        raise Problem(
            "The checkpoint {name} does not fit this run's settings.",
            to_do="Start a new run with the new settings.",
            name=path.name,
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])
    names = {name: parameter for name, parameter in trained.items()}
    for key, value in load_file(path / "optimizer.safetensors").items():
        kind, name = key.split("|", 1)
        parameter = names[name]
        # AdamW keeps its step count on the CPU and its moments beside the parameter.
        # A copy: what is read from a file stays tied to it, and Windows removes no file that is in use.
        optimizer.state[parameter][kind] = value.clone() if kind == "step" else value.clone().to(parameter.device)
    restore_random(load_file(path / "random.safetensors"))
    return read_state(path)


def restore_random(states: Mapping[str, torch.Tensor]) -> None:
    """Set the generators of random numbers to what `random_states` found."""
    torch.set_rng_state(states["cpu"].clone())
    # A run that goes on upon another kind of device has no use for the random state of the first.
    if _device_key() in states:
        torch.get_device_module().set_rng_state(states[_device_key()].clone())


def random_states() -> dict[str, torch.Tensor]:
    """Where the generators of random numbers are: the CPU's, and the device's where there is one."""
    states = {"cpu": torch.get_rng_state()}
    if torch.accelerator.is_available():
        states[_device_key()] = torch.get_device_module().get_rng_state()
    return states


def _device_key() -> str:
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return f"device-{accelerator.type}" if accelerator else "device-none"


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """The SHA-256 of tensors by name: alike only where not one bit of them differs."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _holds(path: Path) -> bool:
    """Whether a checkpoint has each of its files, and in each the very bytes that were written."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        # By our own names: what else a manifest may name is never opened.
        return all(
            (path / name).stat().st_size == manifest[name]["size"] and _sha256(path / name) == manifest[name]["sha256"]
            for name in _FILES
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
