"""Plain text: paragraphs or lines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from core.readers import Entry, number_lines, read_lines

ENDINGS = (".txt",)


def read(path: Path, limit: int | None) -> Iterator[Entry]:
    """Text: every paragraph is a row when there are blank lines, else every line."""
    lines = number_lines(read_lines(path))
    blocks = _join(lines) if _has_paragraphs(path) else ((number, [line]) for number, line in lines)
    for row, (number, block) in enumerate(itertools.islice(blocks, limit), 1):
        yield Entry(row, number, {"text": "\n".join(block)})


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two that are not."""
    before = None
    for number, _ in number_lines(read_lines(path)):
        if before is not None and number > before + 1:
            return True
        before = number
    return False


def _join(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Lines that follow each other without a blank one between them, with the number of the first."""
    start, block = 0, []
    for number, line in lines:
        if block and number > start + len(block):
            yield start, block
            block = []
        if not block:
            start = number
        block.append(line)
    if block:
        yield start, block
