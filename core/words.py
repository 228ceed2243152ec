"""What is found out about words, remembered for those seen lately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

MOST = 1 << 17
"""Words that are remembered; when there are more, all are forgotten, and those that are used are soon known again."""

SHORT = 64
"""Characters of the longest word that is remembered."""


class Known(dict[str, T], Generic[T]):
    """What `find` says of a word, looked up like anything else in a dictionary."""

    def __init__(self, find: Callable[[str], T]):
        super().__init__()
        self._find = find

    def __missing__(self, word: str) -> T:
        found = self._find(word)
        if len(word) <= SHORT:
            if len(self) >= MOST:
                self.clear()
            self[word] = found
        return found
