"""Where things are, which model families the tests walk over, and the command line in the process of the tests."""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

from core.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FAMILIES = ("llama", "gpt2", "qwen3", "gpt_neox", "opt")
ENCODERS = ("bert", "roberta", "distilbert")
SEQ2SEQ = ("t5",)
MORE = ("mistral", "gemma3_text", "phi3", "mixtral")


@dataclass(frozen=True)
class Done:
    """What a command wrote, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


def run_core(home: Path, *arguments: str | Path, check: bool = True) -> Done:
    """One command in this process, which has torch loaded already; `check` says that it must succeed."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {"ATELIER_HOME": str(home)}),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            status = main([str(one) for one in arguments])
        except SystemExit as ended:  # argparse
            status = int(ended.code or 0)
    done = Done(status, out.getvalue(), err.getvalue())
    assert not check or not status, done.stderr
    return done


def open_model(folder: Path, build: Any = None, **more: Any) -> Any:
    """The model of a folder as transformers reads it, in float32 and evaluation mode: a causal one, or what `build` names."""
    return open_once(_read_model, folder, build, tuple(more.items()))


def _read_model(folder: Path, build: Any, more: tuple[tuple[str, Any], ...]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return (build or AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32, **dict(more)).eval()


def open_once(read: Callable[..., Any], folder: Path, *more: Any) -> Any:
    """A copy of what `read(folder, *more)` gave the first time: the same few models are wanted a thousand times, and to copy
    one takes a fifth of the time that its files take."""
    stamps = tuple(sorted((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in folder.iterdir()))
    return copy.deepcopy(_opened(read, folder, stamps, *more))


@lru_cache(maxsize=64)
def _opened(read: Callable[..., Any], folder: Path, stamps: tuple[Any, ...], *more: Any) -> Any:
    return read(folder, *more)
