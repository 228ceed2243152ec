"""What is wrong with an example whatever a model makes of it: said twice, given away, contradicted, garbled."""

from __future__ import annotations

import hashlib
import itertools
import re
import unicodedata
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import regex

from core import likeness
from core.formats import Example

if TYPE_CHECKING:
    from core.dataset import Dataset

# UTF-8 read as Windows-1252 or Latin-1, and the mark that decoders put where they gave up.
_MOJIBAKE = re.compile("[ÂÃ][\x80-\xbf©®°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§¨ª«¬¯]|â€[\x80-\xbf™œž“”˜¦]|ï»¿|\ufffd")
_SEPARATORS = regex.compile(r"[^\p{L}\p{N}\p{M}\p{S}]+")
_ASCII_SEPARATORS = "".join(char for char in map(chr, range(128)) if _SEPARATORS.fullmatch(char)).encode()


Flags = dict[int, list[str]]
"""Example -> the names of what is wrong with it, as `core.findings` has them; those that are fine are not in it."""

# What is written without spaces is compared letter by letter.
_WORDS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]|[\p{L}\p{N}\p{M}]+")
_ASCII_WORDS = re.compile("[a-z0-9]+")
_WORDS_AT_ONCE = 1 << 18
_WORD, _WORDS_KNOWN = 32, 1 << 17
_SAY_EVERY = 1000

LEAVABLE = ("duplicate", "near_duplicate", "overlap", "near_overlap", "conflict", "mojibake")
"""What rows can be left out for."""

REPEATED = frozenset({"duplicate", "near_duplicate"})
"""Of these, what a row has because of another that is trained on."""


def judge(
    data: Dataset, train: Sequence[int], held: Dataset, aside: Sequence[int], tell: Callable[[int], None] | None = None
) -> tuple[Flags, Flags]:
    """Look at every example that is trained on, and at those of `held` (often `data` itself) that are set aside.

    An evaluation row that is trained on has an overlap; of rows that are alike, and of inputs with different labels, all
    but the first are named. Rows that are nearly alike share most of their words, in most of their order.

    Args:
        tell: is told how many have been looked at, now and then; what it raises ends the looking.

    Returns:
        The flags of `data` and those of `held`: the same dictionary when these are the same.
    """
    look, likes, done = _Look(), _Likeness(), itertools.count(1)
    own: Flags = {}
    others = own if held is data else {}

    def note(flags: Flags, dataset: Dataset, index: int, aside: bool) -> None:
        example = dataset.examples[index]
        texts = texts_of(example)
        if found := look.judge(example, texts, aside):
            flags[index] = found
        likes.add(texts, index, aside)
        if (count := next(done)) % _SAY_EVERY == 0 and tell:
            tell(count)

    if aside:
        look.trained = {content_key(data.examples[index]) for index in train}
    is_aside = set(aside) if held is data else set()
    for index in sorted([*train, *is_aside]):
        note(own, data, index, index in is_aside)
    for index in () if held is data else aside:
        note(others, held, index, True)
    look.forget()
    for index, of_aside in likes.find():
        flags = (others if of_aside else own).setdefault(index, [])
        # What is the same is not also nearly the same.
        if not {"duplicate", "overlap"}.intersection(flags):
            flags.append("near_overlap" if of_aside else "near_duplicate")
    return own, others


class _Likeness:
    """Finds what is nearly the same, by the words of rows."""

    def __init__(self) -> None:
        #: Of the rows to train on, and of those set aside: which they are, and their signatures.
        self._indices = (array("q"), array("q"))
        self._signatures: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._words = (array("I"), array("I"))
        self._starts = (array("q", [0]), array("q", [0]))

    def add(self, texts: Sequence[str], index: int, aside: bool) -> None:
        for text in texts:
            words = _ASCII_WORDS if text.isascii() else _WORDS
            self._words[aside].extend(map(_hashes.__getitem__, words.findall(text.lower())))
        self._starts[aside].append(len(self._words[aside]))
        self._indices[aside].append(index)
        if len(self._words[aside]) > _WORDS_AT_ONCE:
            self._sign(aside)

    def _sign(self, aside: bool) -> None:
        words, starts = self._words[aside], self._starts[aside]
        self._signatures[aside].append(likeness.signatures(np.asarray(words), np.asarray(starts)))
        del words[:], starts[1:]

    def find(self) -> Iterator[tuple[int, bool]]:
        """Rows that resemble one before them that is trained on, and whether they are set aside."""
        for aside in (False, True):
            self._sign(aside)
        # Those to train on first: what is set aside is compared with them all.
        count = len(self._indices[0])
        joined = np.empty((count + len(self._indices[1]), likeness.SLOTS), np.uint32)
        place = 0
        for parts in self._signatures:
            while parts:
                # Each is let go as it is copied: of a million rows they take a quarter of a gigabyte.
                part = parts.pop(0)
                joined[place : place + len(part)] = part
                place += len(part)
        pairs = likeness.find_pairs(joined)
        for earlier, later in pairs.tolist():
            if earlier < count:
                yield (self._indices[0][later], False) if later < count else (self._indices[1][later - count], True)


class _Hashes(dict[str, int]):
    """The number of every word, known for those seen lately."""

    def __missing__(self, word: str) -> int:
        found = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        if len(word) <= _WORD:
            if len(self) >= _WORDS_KNOWN:
                self.clear()
            self[word] = found
        return found


_hashes = _Hashes()


class _Look:
    """What is remembered of the examples seen so far."""

    def __init__(self) -> None:
        self.trained: set[int] = set()
        self._seen: set[int] = set()
        self._labels: dict[int, int] = {}

    def forget(self) -> None:
        """Let go of all that."""
        for one in (self.trained, self._seen, self._labels):
            one.clear()

    def judge(self, example: Example, texts: Sequence[str], is_aside: bool) -> list[str]:
        flags, text = [], "\n".join(texts)
        if not text.isascii() and _MOJIBAKE.search(text):
            flags.append("mojibake")
        if is_aside and content_key(example) in self.trained:
            flags.append("overlap")
        elif not is_aside:
            key = _digest(_bare(text) or text)
            flags += ["duplicate"] if key in self._seen else []
            self._seen.add(key)
        if example.labels is not None and not example.several:
            given, told = _digest(example.text or ""), _digest("\n".join(example.labels))
            if self._labels.setdefault(given, told) != told:
                flags.append("conflict")
        return flags


def texts_of(example: Example) -> list[str]:
    """Everything that stands in an example."""
    parts = [example.text, example.question, example.context, example.source, example.target]
    answers = [answer.text for answer in example.answers or ()]
    if example.messages:
        # Pairs are a conversation, too, and would count twice.
        parts = []
        answers = [message.content for message in example.messages]
    return [part for part in (*parts, *answers, *(texts_of(example.rejected) if example.rejected else ())) if part]


def content_key(example: Example) -> int:
    """A number that rows share whose content is the same: but for capitals and white space, labels, and answers to a
    question, as the text gives these away."""
    if example.question is not None:
        texts = [example.question, example.context or ""]
    elif example.text is not None:
        texts = [example.text]
    else:
        texts = [text for turn in example.messages for text in (turn.role, turn.content)]
    return _digest("\0".join(map(_plain, texts)))


def _plain(text: str) -> str:
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFC", text).casefold()
    return " ".join(folded.split())


def _bare(text: str) -> str:
    """Without case, spaces and punctuation."""
    if text.isascii():
        return text.encode().lower().translate(None, _ASCII_SEPARATORS).decode()
    return _SEPARATORS.sub("", text.casefold())


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
