"""Plain text: paragraphs or lines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

from core.formats import LONGEST, too_long
from core.readers import Entry, number_lines, read_lines

ENDINGS = (".txt",)


def read(path: Path, limit: int | None) -> Iterator[Entry]:
    """Text: every paragraph is a row when there are blank lines, else every line."""
    lines = number_lines(read_lines(path))
    blocks = _join(lines) if _has_paragraphs(path) else ((number, [line], len(line)) for number, line in lines)
    for row, (number, block, length) in enumerate(itertools.islice(blocks, limit), 1):
        yield Entry(row, number, {"text": "\n".join(block)} if length <= LONGEST else too_long(length))


def _has_paragraphs(path: Path) -> bool:
    """Whether a blank line stands between two that are not."""
    before = None
    for number, _ in number_lines(read_lines(path)):
        if before is not None and number > before + 1:
            return True
        before = number
    return False


def _join(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str], int]]:
    """Lines that follow each other without a blank one between them, with the number of the first and how many
    characters they have; of too many nothing is kept."""
    start, last, length, block = 0, 0, -1, []
    for number, line in lines:
        if last and number > last + 1:
            yield start, block, length
            start = 0
        if not start:
            start, length, block = number, -1, []
        last, length = number, length + 1 + len(line)
        if length <= LONGEST:
            block.append(line)
        else:
            block.clear()
    if last:
        yield start, block, length
