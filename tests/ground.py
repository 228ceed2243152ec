"""Where things are, which model families the tests walk over, and the command line in the process of the tests."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
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
