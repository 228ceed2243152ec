"""Text into token ids, once: a text that was spelled also knows the ids of its beginnings."""

from __future__ import annotations

import itertools
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from operator import itemgetter
from typing import TypeAlias

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from transformers import PreTrainedTokenizerBase

from core.words import Known

_SHORT = 64
_LONG = 16
"""Characters between two spaces, on average, beyond which a text is hardly made of words that come again."""
_BYTES = {"type": "ByteLevel", "add_prefix_space": False}
_END, _OTHERS = r"'(?:[sdmt]|ll|ve|re)", r"[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
_CUTS = {
    # GPT-2, as tokenizers has it built in.
    None: rf"{_END}| ?[A-Za-z]+| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|{_OTHERS}",
    # GPT-4 and Llama 3 take three digits at a time, Qwen each by itself.
    **{
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": (
            rf"(?i:{_END})|[^\r\nA-Za-z0-9]?[A-Za-z]+|[0-9]{digits}| ?[^\t-\r A-Za-z0-9]+[\r\n]*|[\t-\r ]*[\r\n]+|{_OTHERS}"
        )
        for digits in ("{1,3}", "")
    },
}
"""How tokenizers cut a text into words before each is spelled by itself, and what that comes to for ASCII."""
# How ByteLevel writes what cannot be seen of ASCII.
_AS_BYTES = {byte: 256 + place for place, byte in enumerate((*range(33), 127))}
_PROBES = ("a", " b c", "\n", " d\n\ne ")


Ids: TypeAlias = "array[int]"
"""Numbers of tokens side by side, as the C type int."""

_NOTHING: Ids = array("i")

Mark = tuple[int, int, int]
"""A special token in a text: its first character, its end, its place among the ids."""
_end_of = itemgetter(1)


class Spelling:
    """A text and its ids (`ids`)."""

    def __init__(self, text: str, speller: Speller):
        self.text, self._speller = text, speller
        self.ids, self._marks = speller.encode_marked(text)

    def until(self, place: int) -> Ids:
        """The ids of the text's first `place` characters: exactly those that it has when it is spelled by itself."""
        if place >= len(self.text):
            return self.ids
        known, rest = self._find(place)
        return self.ids[:known] + rest

    def count(self, place: int) -> int | None:
        """How many these are, if they are the first ids of the whole text; None where they are not."""
        if place >= len(self.text):
            return len(self.ids)
        known, rest = self._find(place)
        if not rest:
            return known
        end = known + len(rest)
        return end if self.ids[known:end] == rest else None

    def _find(self, place: int) -> tuple[int, Ids]:
        """How many of the ids are the first of those characters, and the others that they have."""
        if self._marks is None:
            self._marks = self._speller.find_marks(self.text, self.ids)
        before = bisect_right(self._marks, place, key=_end_of) - 1
        if before < 0:
            return 0, self._speller.spell(self.text[:place])
        start, end, position = self._marks[before]
        rest = self._speller.encode_behind(self.text[start:end], self.text[end:place]) if end < place else _NOTHING
        return position + 1, rest


class Speller:
    """A tokenizer that spells text as it stands: special tokens only where the text names them, never a second BOS.

    Tokenizers cut a text at the special tokens in it before they do anything else, so that the ids before one do not
    depend on what comes behind it. This is used where the tokenizer is seen to do so, and nowhere else.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._backend = backend if isinstance(backend, Tokenizer) else None
        self._encode_short: Callable[[str, str], Ids] = lru_cache(4096)(self._encode_behind)
        self._cuts: Callable[[str], bool] = lru_cache(None)(self._try_mark)
        self._ids, self._pattern, self._unsure = self._find_tokens()
        #: Cuts a text at its special tokens, which stand between what it gives.
        self._split = re.compile(f"({self._pattern.pattern})").split if self._pattern is not None else None
        self._known = frozenset(self._ids.values())
        # As bytes, which are joined faster than numbers.
        self._words: Known[bytes] = Known(self._spell_word)
        self._first: Known[bytes] = Known(lambda stretch: self._spell_stretch("", stretch))
        self._further: Known[bytes] = Known(lambda stretch: self._spell_stretch(" ", stretch))

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self.spell(text).tolist()

    def spell(self, text: str) -> Ids:
        """The same, side by side."""
        return self.encode_marked(text)[0]

    def encode_marked(self, text: str) -> tuple[Ids, list[Mark] | None]:
        """The ids of a text, and the special tokens in it where they come to light by the way."""
        if self._cut_words is None or (self._unsure and self._unsure.search(text)):
            return array("i", self._encode(text)), None
        ids: Ids = array("i")
        marks: list[Mark] = []
        place, further = 0, self._further.__getitem__
        pieces = self._split(text) if self._split is not None else [text]
        for piece, mark in itertools.zip_longest(pieces[::2], pieces[1::2]):
            if piece:
                try:
                    if not _comes_again(piece):
                        raise KeyError(piece)
                    others = piece.split(" ")
                    first = others.pop(0)
                    ids.frombytes((self._first[first] if first else b"") + b"".join(map(further, others)))
                except KeyError:
                    ids.frombytes(self._spell_words(piece))
                place += len(piece)
            if mark:
                marks.append((place, place + len(mark), len(ids)))
                ids.append(self._ids[mark])
                place += len(mark)
        return ids, marks

    def _spell_word(self, word: str) -> bytes:
        """The ids of a word of ASCII, asked of the model itself: a quarter of the way through all of the tokenizer."""
        return array("i", [token.id for token in self._model.tokenize(word.translate(_AS_BYTES))]).tobytes()

    def _spell_words(self, text: str) -> bytes:
        """The ids of a text without special tokens."""
        if not text.isascii():
            return array("i", self._encode(text)).tobytes()
        assert self._cut_words is not None
        return b"".join(map(self._words.__getitem__, self._cut_words.findall(text)))

    def _spell_stretch(self, space: str, stretch: str) -> bytes:
        """The ids of what stands behind a space (or, without one, at the beginning) and before the next.

        Texts are cut into words at every single space between others than white space: what cuts them takes a space to
        what is behind it, and looks no further. Nor is anything composed across a space.

        Raises:
            KeyError: when it is nothing, or begins or ends with white space.
        """
        if not stretch or stretch[-1].isspace() or (space and stretch[0].isspace()):
            raise KeyError(stretch)
        return self._spell_words(space + stretch)

    def knows(self, text: str) -> bool:
        """Whether the text is spelled word by word, mostly from memory, and hardly needs the tokenizer. Scripts without
        spaces are not."""
        if self._cut_words is None or (self._unsure and self._unsure.search(text)):
            return False
        return _comes_again(text)

    def _encode(self, text: str) -> list[int]:
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

    def find_marks(self, text: str, ids: Sequence[int]) -> list[Mark]:
        """The special tokens in a text of these ids; none where it is not sure which they are."""
        if self._pattern is None or (self._unsure is not None and self._unsure.search(text)):
            return []
        found = [(*match.span(), match[0]) for match in self._pattern.finditer(text)]
        if sum(map(self._known.__contains__, ids)) != len(found) or not all(self._cuts(mark) for *_, mark in found):
            return []
        marks, place = [], -1
        for start, end, mark in found:
            try:
                place = ids.index(self._ids[mark], place + 1)
            except ValueError:
                return []
            marks.append((start, end, place))
        return marks

    def encode_behind(self, mark: str, text: str) -> Ids:
        """The ids of a text that stands behind a special token; what is short stands there again and again."""
        return self._encode_short(mark, text) if len(text) <= _SHORT else self._encode_behind(mark, text)

    def _encode_behind(self, mark: str, text: str) -> Ids:
        return self.spell(mark + text)[1:] if text else _NOTHING

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

    @cached_property
    def _cut_words(self) -> re.Pattern[str] | None:
        """What cuts a text of ASCII into the words that this tokenizer spells one by one; None where it may be otherwise."""
        if self._backend is None or self.tokenizer.split_special_tokens:
            return None
        model, normalizer, cut = self._backend.model, self._backend.normalizer, self._backend.pre_tokenizer
        if not isinstance(model, BPE) or model.dropout or cut is None:
            return None
        if normalizer is not None and not isinstance(normalizer, NFC):  # which leaves ASCII as it is
            return None
        if len({token.normalized for token in self._backend.get_added_tokens_decoder().values()}) > 1:
            return None  # they are looked for one kind after the other, and one may hide another
        told = json.loads(cut.__getstate__())
        parts = told.get("pretokenizers", [told])
        *first, last = ({key: value for key, value in part.items() if key != "trim_offsets"} for part in parts)
        pattern = None
        if first:
            pattern = first[0].get("pattern", {}).get("Regex")
            split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
            if first != [split] or pattern is None:
                return None
        if last != {**_BYTES, "use_regex": pattern is None} or pattern not in _CUTS:
            return None
        self._model = model
        return re.compile(_CUTS[pattern])

    def _try_mark(self, mark: str) -> bool:
        """Whether what stands before it and behind it is spelled as if the other were not there."""
        for left in _PROBES:
            for right in _PROBES:
                alone, both = self.encode(left), self.encode(left + mark + right)
                if both != [*alone, self._ids[mark], *self.encode(mark + right)[1:]]:
                    return False
        return True


def _comes_again(text: str) -> bool:
    """Whether what stands between its spaces is likely to stand there again."""
    return text.isascii() or len(text) <= _LONG * (1 + text.count(" "))


def _any_of(texts: Sequence[str] | dict[str, int]) -> re.Pattern[str] | None:
    """A pattern that finds the longest of these texts wherever one stands."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
