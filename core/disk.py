"""A full disk: recognised by whoever says so, and told with what is needed and what is free."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from core.problem import Problem

_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
_WINDOWS_FULL = (39, 112)  # ERROR_HANDLE_DISK_FULL and ERROR_DISK_FULL
# What a library says that passes on no number of the error.
_SAID = ("no space left on device", "os error 28)", "os error 112)", "disk quota exceeded")
_ROOM = 2**20
"""Bytes for numbers, samples and the result, beside what is known to be needed."""


class DiskFull(Exception):
    """There is no room for what must be kept. Nothing is lost: a run goes on from its newest checkpoint."""

    def __init__(self, problem: Problem):
        super().__init__(str(problem))
        self.problem = problem


def require(folder: Path, needed: int) -> None:
    """Raise DiskFull when the disk of `folder` has no room for so many bytes more."""
    if shutil.disk_usage(folder).free < needed + _ROOM:
        raise DiskFull(describe(folder, needed))


def is_full(error: BaseException) -> bool:
    """Whether an error means that."""
    if isinstance(error, OSError) and (error.errno in _FULL or getattr(error, "winerror", None) in _WINDOWS_FULL):
        return True
    return any(said in str(error).lower() for said in _SAID)


def describe(folder: Path, needed: int) -> Problem:
    """What is told of it.

    Args:
        needed: bytes; 0 where nobody knows more than that a little is.
    """
    return Problem(
        "The disk is full: {needed} MB are needed, {free} MB are free.",
        to_do="Free some space and resume the run; it goes on exactly where it was saved.",
        needed=_megabytes(needed + _ROOM),
        free=_megabytes(shutil.disk_usage(folder).free),
    )


def _megabytes(size: int) -> float:
    return round(size / 2**20, 1) if size < 100 * 2**20 else round(size / 2**20)
