"""Starts `python -m core ...` as a process that outlives whoever started it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import core
from core import runs

ROOT = Path(core.__file__).resolve().parent.parent
"""Where `python -m core` finds the engine."""


# A worker gets what it needs to find its files, its devices and the hub, and nothing else that the user's shell knows.
_ENVIRONMENT = {
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH", "SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "USERPROFILE", "APPDATA", "LOCALAPPDATA",
    "PROGRAMDATA", "NUMBER_OF_PROCESSORS", "ATELIER_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE", "CC", "CXX",
}  # fmt: skip
_ENVIRONMENT_PREFIXES = (
    "LC_",
    "XDG_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "HSA_",
    "ASCEND_",
    "ZE_",
    "ONEAPI_",
    "OMP_",
    "MKL_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "HF_",
    "WANDB_",
    "MLFLOW_",
    "TRACKIO_",
)


def environment() -> dict[str, str]:
    """The variables that a worker gets."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ENVIRONMENT or name.upper().startswith(_ENVIRONMENT_PREFIXES)
    }
    return kept | {"PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "ATELIER_HOME": str(runs.home())}


def spawn(arguments: list[str], log: Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`python -m core ARGUMENTS`, detached: it outlives the studio, and nothing of it is read but the file `log`.

    Args:
        variables: of its environment, beside those that every worker gets.
    """
    detached: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        detached = {
            "creationflags": subprocess.CREATE_NEW_PROCESS_GROUP
            | subprocess.DETACHED_PROCESS
            | subprocess.CREATE_NO_WINDOW
        }  # type: ignore[attr-defined]
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "core", *arguments],
            cwd=ROOT, env=environment() | dict(variables or {}), stdin=subprocess.DEVNULL, stdout=handle,
            stderr=subprocess.STDOUT, close_fds=True, **detached,
        )  # fmt: skip
    finally:
        os.close(handle)
