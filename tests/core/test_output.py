"""A worker that prints without end is not slowed, and its log stays small, whoever prints and whoever reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ground import ROOT

from core import output

#: Prints 200 MB by each of three ways: Python's own, straight to the file's number, and a program that it starts.
WAYS = {
    "python": "for n in range(2000): print('x' * 99_999)",
    "native": "import os\nfor n in range(2000): os.write(2, b'x' * 99_999 + b'\\n')",
    "child": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', \"for n in range(2000): print('x' * 99_999)\"])",
}


@pytest.mark.parametrize("way", WAYS)
def test_two_hundred_megabytes_leave_a_small_log(tmp_path: Path, way: str) -> None:
    path = tmp_path / "log.txt"
    code = (
        "from pathlib import Path\nfrom core import output\n"
        f"with output.kept_in(Path({str(path)!r})):\n    print('the beginning', flush=True)\n"
        + "".join(f"    {line}\n" for line in WAYS[way].splitlines())
        + "    print('the end')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    data = path.read_bytes()
    assert len(data) <= output.MOST
    assert data.startswith(b"the beginning") and data.endswith(b"the end" + b"\n")
    assert b"left out" in data and b"\0" not in data


def test_the_middle_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "_join", lambda path: None)
    path = tmp_path / "log.txt"
    path.write_bytes(b"a" * 5000 + b"b" * 50_000 + b"c" * 5000)
    output.cut(path, 60_000)
    assert path.stat().st_size == 60_000
    output.cut(path, 8000)
    data = path.read_bytes()
    assert data.startswith(b"a" * 1000) and data.endswith(b"c" * 4000) and b"left out" in data and len(data) < 8000
