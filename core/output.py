"""What this process prints, kept in a file of bounded size: nobody need read it, and nothing that prints ever waits."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

MOST = 8 * 2**20
_HEAD, _TAIL = 2**18, 2**20
_EVERY = 0.1


@contextlib.contextmanager
def kept_in(path: Path, most: int = MOST) -> Iterator[None]:
    """Send stdout and stderr, those of native code included, to a file whose middle is left out when it grows.

    Both go straight to the file, as numbers 1 and 2 of the process, so that no pipe can fill up. A thread looks at its
    size; above `most` bytes, its beginning and its end are kept.
    """
    _join(path)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_EVERY):
            with contextlib.suppress(OSError):
                cut(path, most)

    watcher = threading.Thread(target=watch, name="output", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        ended.set()
        watcher.join()
        with contextlib.suppress(OSError):
            cut(path, most)


def cut(path: Path, most: int) -> None:
    """Leave out the middle of a file that is longer; of what is printed while that is done, a little may be lost."""
    if path.stat().st_size <= most:
        return
    with path.open("r+b", buffering=0) as file:
        head = file.read(min(_HEAD, most // 8))
        start = max(file.tell(), file.seek(0, os.SEEK_END) - min(_TAIL, most // 2))
        file.seek(start)
        tail = file.read(most // 2)
        end = file.tell()
        left_out = f"\n[... {(start - len(head)) // 2**10} kB left out ...]\n".encode()
        file.seek(0)
        file.write(head + left_out + tail)
        place = file.tell()
        # What was printed meanwhile stands behind the old end.
        while file.seek(end) == end and (more := file.read(most)):
            end = file.tell()
            file.seek(place)
            file.write(more)
            place = file.tell()
        file.truncate(place)
    # Where a process writes at a place of its own instead of at the end, it would leave a gap of zeros.
    _join(path)


def _join(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.lseek(handle, 0, os.SEEK_END)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        for number in (1, 2):
            os.dup2(handle, number)
    finally:
        os.close(handle)
