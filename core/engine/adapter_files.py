"""The files of an adapter, in PEFT's layout: reading them strictly, and what their tensors must be."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from core import methods
from core.methods import Method
from core.problem import Problem

#: What PEFT puts before the name of every layer.
PREFIX = "base_model.model."
_LOOKS = 5


def holds(folder: Path, step: int) -> bool:
    """Whether an adapter that a run wrote is there, is of that step, and has the very bytes that were written."""
    try:
        about = json.loads((folder / "atelier.json").read_text(encoding="utf-8"))
        return (
            about["step"] == step and about["sha256"] == _sha256(folder) and (folder / "adapter_config.json").exists()
        )
    except (OSError, ValueError, LookupError, TypeError):
        return False


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], Method]:
    """An adapter's tensors and the method that made them."""
    path = folder / "adapter_model.safetensors"
    pickled = folder / "adapter_model.bin"
    if pickled.exists() and not path.exists():
        raise Problem(
            "The adapter's weights are pickled, and unpickling runs foreign code.",
            "There is {files}.",
            "Ask its author for a safetensors file.",
            files=pickled.name,
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        # Copies: what is read from a file stays tied to it, and Windows replaces no file that is in use.
        tensors = {key: value.clone() for key, value in load_file(path).items()}
    except FileNotFoundError as error:
        raise Problem(
            "The folder {folder} holds no adapter.",
            "There is no {file}.",
            "Choose a folder with adapter_config.json and adapter_model.safetensors.",
            folder=folder.name,
            file=Path(str(error.filename)).name,
        ) from None
    except (ValueError, OSError, SafetensorError) as error:
        raise Problem(
            "The adapter in {folder} is damaged.",
            "{error}.",
            "Fetch it again, or go back to a checkpoint.",
            folder=folder.name,
            error=str(error).rstrip("."),
        ) from None
    method = methods.find_peft(config)
    if not method.peft_type.startswith("ATELIER_"):
        return tensors, method.from_peft(config, {key: tuple(value.shape) for key, value in tensors.items()})  # type: ignore[attr-defined]
    about = json.loads((folder / "atelier.json").read_text(encoding="utf-8"))
    return tensors, method.model_validate({key: value for key, value in about["method"].items() if key != "name"})


def check_bytes(folder: Path) -> None:
    """Raise a Problem when a run's weights are not those that it saved: safetensors looks at structure, not at bits."""
    for _ in range(_LOOKS):
        try:
            expected = json.loads((folder / "atelier.json").read_text(encoding="utf-8")).get("sha256")
        except (OSError, ValueError, AttributeError):
            return
        if not expected or _sha256(folder) == expected:
            return
        time.sleep(0.2)  # it may be just being saved: two files take their places one after the other
    raise Problem(
        "The adapter in {folder} is damaged.",
        "Its weights are not those that were saved.",
        "Fetch it again, or go back to a checkpoint.",
        folder=folder.name,
    )


def compare(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise a Problem that names all missing, surplus, misshapen and non-finite tensors at once."""
    problems = []
    if missing := sorted(expected.keys() - tensors.keys()):
        problems.append(
            Problem(
                "The adapter lacks {count} tensors that this model needs.",
                "The first are {keys}.",
                "Choose the base model that it was trained on.",
                count=len(missing),
                keys=", ".join(missing[:3]),
            )
        )
    if surplus := sorted(tensors.keys() - expected.keys()):
        problems.append(
            Problem(
                "The adapter has {count} tensors that fit nowhere in this model.",
                "The first are {keys}.",
                "Choose the base model that it was trained on.",
                count=len(surplus),
                keys=", ".join(surplus[:3]),
            )
        )
    for key in sorted(expected.keys() & tensors.keys()):
        if tuple(tensors[key].shape) != expected[key]:
            problems.append(
                Problem(
                    "The tensor {key} has the wrong shape.",
                    "It is {got}, the model needs {want}.",
                    "Choose the base model that it was trained on.",
                    key=key,
                    got=list(tensors[key].shape),
                    want=list(expected[key]),
                )
            )
        elif not torch.isfinite(tensors[key]).all():
            problems.append(
                Problem(
                    "The tensor {key} holds numbers that are not finite.",
                    to_do="Go back to an earlier checkpoint.",
                    key=key,
                )
            )
    Problem.raise_all(problems)


def public_name(name: str) -> str:
    """A model's or data set's name without a path of this machine, whether that path still exists or not."""
    hub_id = (
        re.fullmatch(r"(hub:)?[\w-][\w.-]*(/[\w.-]+)?(@(refs/\w+/)?[\w.-]+)?(:[\w.-]+){0,2}", name)
        and not Path(name).exists()
    )
    return name if hub_id else Path(name.replace("\\", "/")).name


def digest(folder: Path) -> str:
    """The first twelve hex digits of the SHA-256 of an adapter's weights: says which weights made an answer."""
    return _sha256(folder)[:12]


def _sha256(folder: Path) -> str:
    with (folder / "adapter_model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
