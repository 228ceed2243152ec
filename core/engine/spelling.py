"""Text into token ids, once: a text that was spelled also knows the ids of its beginnings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

_SHORT = 64
_PROBES = ("a", " b c", "\n", " d\n\ne ")


class Spelling:
    """A text and its ids (`ids`)."""

    def __init__(self, text: str, speller: Speller):
        self.text, self.ids, self._speller = text, speller.encode(text), speller
        self._marks: list[tuple[int, int, int]] | None = None

    def until(self, place: int) -> list[int]:
        """The ids of the text's first `place` characters: exactly those that it has when it is spelled by itself."""
        if place >= len(self.text):
            return self.ids
        if self._marks is None:
            self._marks = self._speller.find_marks(self.text, self.ids)
        before = None
        for mark in self._marks:
            if mark[1] > place:
                break
            before = mark
        if before is None:
            return self._speller.encode(self.text[:place])
        start, end, position = before
        return self.ids[: position + 1] + self._speller.encode_behind(self.text[start:end], self.text[end:place])


class Speller:
    """A tokenizer that spells text as it stands: special tokens only where the text names them, never a second BOS.

    Tokenizers cut a text at the special tokens in it before they do anything else, so that the ids before one do not
    depend on what comes behind it. This is used where the tokenizer is seen to do so, and nowhere else.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend if isinstance(backend, Tokenizer) else None
        self._encode_short: Callable[[str, str], list[int]] = lru_cache(4096)(self._encode_behind)
        self._cuts: Callable[[str], bool] = lru_cache(None)(self._try_mark)
        self._ids, self._pattern, self._unsure = self._find_tokens()
        self._known = frozenset(self._ids.values())

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        backend = self._backend
        if backend is None:
            return self.tokenizer(text, add_special_tokens=False).input_ids
        # Whoever used the tokenizer before may have left it set to cut, to fill up, or not to see special tokens.
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        if backend.encode_special_tokens != self.tokenizer.split_special_tokens:
            backend.encode_special_tokens = self.tokenizer.split_special_tokens
        # Of the ways to call it, the only one that lets other threads work meanwhile.
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def find_marks(self, text: str, ids: Sequence[int]) -> list[tuple[int, int, int]]:
        """The special tokens in a text of these ids: (first character, end, place among the ids); none where it is not
        sure which they are."""
        if self._pattern is None or (self._unsure is not None and self._unsure.search(text)):
            return []
        found = [(*match.span(), match[0]) for match in self._pattern.finditer(text)]
        places = [place for place, token in enumerate(ids) if token in self._known]
        if [self._ids[mark] for *_, mark in found] != [ids[place] for place in places]:
            return []
        if not all(self._cuts(mark) for *_, mark in found):
            return []
        return [(start, end, place) for (start, end, _), place in zip(found, places, strict=True)]

    def encode_behind(self, mark: str, text: str) -> list[int]:
        """The ids of a text that stands behind a special token; what is short stands there again and again."""
        return self._encode_short(mark, text) if len(text) <= _SHORT else self._encode_behind(mark, text)

    def _encode_behind(self, mark: str, text: str) -> list[int]:
        return self.encode(mark + text)[1:] if text else []

    def _find_tokens(self) -> tuple[dict[str, int], re.Pattern[str] | None, re.Pattern[str] | None]:
        """The special tokens that should cut every text in two, a pattern of them, and one of all others."""
        if self._backend is None or self.tokenizer.split_special_tokens:
            return {}, None, None
        plain = self._backend.normalizer is None
        cutting, unsure = {}, []
        for number, token in self._backend.get_added_tokens_decoder().items():
            if token.lstrip or token.rstrip or token.single_word or (token.normalized and not plain):
                unsure.append(token.content)
            else:
                cutting[token.content] = number
        return cutting, _any_of(cutting), _any_of(unsure)

    def _try_mark(self, mark: str) -> bool:
        """Whether what stands before it and behind it is spelled as if the other were not there."""
        for left in _PROBES:
            for right in _PROBES:
                alone, both = self.encode(left), self.encode(left + mark + right)
                if both != [*alone, self._ids[mark], *self.encode(mark + right)[1:]]:
                    return False
        return True


def _any_of(texts: Sequence[str] | dict[str, int]) -> re.Pattern[str] | None:
    """A pattern that finds the longest of these texts wherever one stands."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
