"""Plain text: paragraphs or lines."""

from __future__ import annotations

import re
from pathlib import Path

from core.readers import Rows, number_lines, read_text

ENDINGS = (".txt",)


def read(path: Path, limit: int | None) -> Rows:
    """Text: every paragraph is a row when there are blank lines, else every line."""
    text = read_text(path).replace("\r\n", "\n")
    paragraphs = re.search(r"\n[ \t]*\n", text.strip()) is not None
    blocks: list[list[str]] = []
    starts: list[int] = []
    before = -1
    for number, line in number_lines(text):
        if paragraphs and number == before + 1:
            blocks[-1].append(line)
        else:
            blocks.append([line])
            starts.append(number)
        before = number
    return Rows([{"text": "\n".join(block)} for block in blocks[:limit]], (), starts[:limit])
