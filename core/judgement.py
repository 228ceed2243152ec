"""What is wrong with an example whatever a model makes of it: said twice, given away, contradicted, garbled."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import regex
import xxhash

from core import likeness
from core.formats import Example
from core.words import Known

if TYPE_CHECKING:
    from core.dataset import Dataset

# UTF-8 read as Windows-1252 or Latin-1, and the mark that decoders put where they gave up.
_MOJIBAKE = re.compile("[ÂÃ][\x80-\xbf©®°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§¨ª«¬¯]|â€[\x80-\xbf™œž“”˜¦]|ï»¿|\ufffd")
_SEPARATORS = regex.compile(r"[^\p{L}\p{N}\p{M}\p{S}]+")
_ASCII_SEPARATORS = "".join(char for char in map(chr, range(128)) if _SEPARATORS.fullmatch(char)).encode()
_SMALL = bytes(range(256)).lower()
#: The same, and a space for what is white space in ASCII.
_SPACED = bytes(32 if chr(byte).isspace() and byte < 128 else byte for byte in _SMALL)


Flags = dict[int, list[str]]
"""Example -> the names of what is wrong with it, as `core.findings` has them; those that are fine are not in it."""

_ALONE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_OF_WORDS = regex.compile(r"[\p{L}\p{N}\p{M}]")


class _Letters(dict[int, int | str]):
    """What becomes of a character where words are told apart by spaces: what is written without spaces is compared letter
    by letter."""

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        self[code] = f" {char} " if _ALONE.match(char) else code if _OF_WORDS.match(char) else " "
        return self[code]


_LETTERS = _Letters()
#: Bytes of words in small letters, and a zero for what stands between words.
_IN_WORDS = bytes(byte if byte > 127 or chr(byte).isalnum() else 0 for byte in _SMALL)
_APART = _IN_WORDS.replace(b"\0", b" ")
_OTHERS = re.compile("[^\0-\x7f]+")
# Of what stands between two spaces, which hangs on nothing beyond them.
_BARE: Known[bytes] = Known(lambda part: _encode(_SEPARATORS.sub("", part.casefold())))
_WORDS_IN: Known[bytes] = Known(lambda part: _encode(part.lower().translate(_LETTERS)))
_FOLDED: Known[bytes] = Known(lambda part: _encode(" ".join(unicodedata.normalize("NFC", part).casefold().split())))
_GARBLED: Known[bool] = Known(lambda part: _MOJIBAKE.search(part) is not None)
_ALIKE = 0.75
"""The share of their shingles that rows have in common that are nearly the same."""

_BLOCK = 1000
"""Examples that are measured together."""
_BYTES_AT_ONCE, _PIECE = 1 << 20, 1 << 15
# An odd number without a pattern, the digits of the golden ratio, and by what it is undone.
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = pow(int(_BASE), -1, 1 << 64)

LEAVABLE = ("duplicate", "near_duplicate", "overlap", "near_overlap", "conflict", "mojibake")
"""What rows can be left out for."""

REPEATED = frozenset({"duplicate", "near_duplicate"})
"""Of these, what a row has because of another that is trained on."""


@dataclass(frozen=True)
class Facts:
    """What is compared of some examples, a number for each: the same number where they are alike.

    Attributes:
        bare: all that is said, without case, spaces and punctuation (uint64).
        content: their `content_key` (uint64).
        garbled: whether text was read in a wrong encoding.
        labelled: whether another's label may contradict theirs; what is labelled is `text`, and what it is called `label`
            (uint64).
        signatures: what `core.likeness` makes of their words.
    """

    bare: np.ndarray
    content: np.ndarray
    garbled: np.ndarray
    labelled: np.ndarray
    text: np.ndarray
    label: np.ndarray
    signatures: np.ndarray

    def take(self, places: np.ndarray) -> Facts:
        """Those of some of the examples."""
        return Facts(*(getattr(self, one.name)[places] for one in fields(self)))


Measure = Callable[["Dataset", Sequence[int]], Iterator[Facts]]
"""The facts of the examples of these indices, some at a time, in their order."""


def judge(
    data: Dataset, train: Sequence[int], held: Dataset, aside: Sequence[int], tell: Callable[[int], None] | None = None,
    measure: Measure | None = None,
) -> tuple[Flags, Flags]:  # fmt: skip
    """Look at every example that is trained on, and at those of `held` (often `data` itself) that are set aside.

    An evaluation row that is trained on has an overlap; of rows that are alike, and of inputs with different labels, all
    but the first are named. Rows that are nearly alike share most of their words, in most of their order.

    Args:
        tell: is told how many have been looked at, now and then; what it raises ends the looking.
        measure: finds the facts, if somebody else shall.

    Returns:
        The flags of `data` and those of `held`: the same dictionary when these are the same.
    """
    apart = held is not data
    first = sorted(train if apart else [*train, *aside])
    indices = np.array([*first, *(aside if apart else ())], np.int64)
    is_aside = np.arange(len(indices)) >= len(first) if apart else np.isin(indices, np.array(aside, np.int64))
    parts, count = [], 0
    for dataset, some in ((data, first), *([(held, aside)] if apart else [])):
        for facts in (measure or measure_each)(dataset, some):
            parts.append(facts)
            count += len(facts.bare)
            if tell:
                tell(count)

    @lru_cache(maxsize=2)  # what many resemble is asked for again and again
    def find(place: int) -> set[tuple[str, ...]]:
        return _shingles((held if apart and place >= len(first) else data).examples[int(indices[place])])

    found = _compare(parts, is_aside, lambda one, other: _are_alike(find(one), find(other)))
    own: Flags = {}
    others: Flags = {} if apart else own
    for place in sorted(found):
        (others if place >= len(first) else own)[int(indices[place])] = found[place]
    return own, others


def _compare(parts: list[Facts], is_aside: np.ndarray, alike: Callable[[int, int], bool]) -> Flags:
    """What is wrong with each of these, by its place among them; lets go of the parts. `alike` is asked of those that seem so."""
    names = ("bare", "content", "garbled", "labelled", "text", "label")
    bare, content, garbled, labelled, text, label = (
        np.concatenate([getattr(part, name) for part in parts]) for name in names
    )
    trained, aside, labelled = np.flatnonzero(~is_aside), np.flatnonzero(is_aside), np.flatnonzero(labelled)
    _, firsts, which = np.unique(text[labelled], return_index=True, return_inverse=True)
    flagged = {
        "mojibake": np.flatnonzero(garbled),
        "overlap": aside[np.isin(content[aside], content[trained])],
        "duplicate": np.delete(trained, np.unique(bare[trained], return_index=True)[1]),
        "conflict": labelled[label[labelled] != label[labelled[firsts[which]]]],
    }
    found: Flags = {}
    for name, places in flagged.items():
        for place in places.tolist():
            found.setdefault(place, []).append(name)
    # Those to train on first: what is set aside is compared with them all.
    order = np.concatenate([trained, aside])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    joined = np.empty((len(order), likeness.SLOTS), np.uint32)
    place = 0
    while parts:
        # Each is let go as it is copied: of a million rows they take a quarter of a gigabyte.
        signatures = parts.pop(0).signatures
        joined[rank[place : place + len(signatures)]] = signatures
        place += len(signatures)
    pairs = likeness.find_pairs(joined)
    for earlier, later in pairs[np.argsort(pairs[:, 0], kind="stable")].tolist():
        one, other = int(order[earlier]), int(order[later])
        # What is the same is not also nearly the same.
        is_same = {"duplicate", "overlap"}.intersection(found.get(other, ()))
        if earlier < len(trained) and not is_same and alike(one, other):
            found.setdefault(other, []).append("near_overlap" if later >= len(trained) else "near_duplicate")
    return found


def _are_alike(mine: set[tuple[str, ...]], theirs: set[tuple[str, ...]]) -> bool:
    """Whether two examples share so many of their shingles, exactly: signatures are samples, and short rows have few words."""
    shared = len(mine & theirs)
    return shared >= _ALIKE * (len(mine) + len(theirs) - shared)


def _shingles(example: Example) -> set[tuple[str, ...]]:
    text = "\n".join(texts_of(example))
    words = (text.encode().translate(_APART).decode() if text.isascii() else text.lower().translate(_LETTERS)).split()
    return set(zip(*(words[start:] for start in range(likeness.SHINGLE)), strict=False)) or {tuple(words)}


def measure_each(data: Dataset, indices: Sequence[int]) -> Iterator[Facts]:
    """The facts of the examples of these indices, found in this process."""
    for start in range(0, max(1, len(indices)), _BLOCK):
        yield measure(data.examples[index] for index in indices[start : start + _BLOCK])


def measure(examples: Iterable[Example]) -> Facts:
    """The facts of some examples."""
    bare, content, garbled, labels = [], [], [], []
    words: list[bytes] = []
    signatures = [np.empty((0, likeness.SLOTS), np.uint32)]
    size = 0
    for example in examples:
        text = "\n".join(texts_of(example))
        if text.isascii():
            data = text.encode()
            garbled.append(False)
            bare.append(_digest(_bare(text) or data))
            words.append(data)
        else:
            parts = _cut(text)
            garbled.append(any(map(_GARBLED.__getitem__, parts[1::2])))
            bare.append(_digest(_mend(parts, _bare, _BARE) or _encode(text)))
            words.append(_mend(parts, str.encode, _WORDS_IN))
        content.append(content_key(example))
        size += len(words[-1])
        if size > _BYTES_AT_ONCE:
            signatures.append(likeness.signatures(*_number_words(words)))
            words, size = [], 0
        is_labelled = example.labels is not None and not example.several
        told = (example.text or "", "\n".join(example.labels or ())) if is_labelled else ()
        labels.append((is_labelled, *(_digest(_encode(one)) for one in told)) if told else (False, 0, 0))
    labelled, given, told = zip(*labels, strict=True) if labels else ((), (), ())
    numbers = (np.array(column, np.uint64) for column in (bare, content, given, told))
    keys, contents, texts, names = numbers
    signatures.append(likeness.signatures(*_number_words(words)))
    joined = np.concatenate(signatures)
    return Facts(keys, contents, np.array(garbled, bool), np.array(labelled, bool), texts, names, joined)


@lru_cache(maxsize=4)
def _make_powers(base: int, size: int) -> np.ndarray:
    powers = np.full(size, base, np.uint64)
    return np.multiply.accumulate(powers, out=powers)


def _powers(base: int, most: int) -> np.ndarray:
    """The powers of a number, modulo 2 to the 64, from the first on; more than `most`."""
    return _make_powers(base, 2 * _PIECE if most < 2 * _PIECE else most + 1)


def _number_words(rows: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The words of some rows as numbers, uint32, and where those of each row begin, and the last ones end."""
    joined = b"\0".join(rows).translate(_IN_WORDS)
    numbers, begins, start = [], [], 0
    while start < len(joined):
        stop = joined.find(b"\0", start + _PIECE)
        stop = len(joined) if stop < 0 else stop
        letters = np.zeros(stop - start + 2, np.uint64)
        letters[1:-1] = np.frombuffer(joined, np.uint8, stop - start, start)
        edges = np.flatnonzero(np.diff(letters != 0))
        # A word is the sum of its letters times the powers of a number, as if it stood at the beginning.
        powers = _powers(int(_BASE), stop - start)[: stop - start + 1]
        letters[1:] *= powers
        sums = np.cumsum(letters)
        found = (sums[edges[1::2]] - sums[edges[::2]]) * _powers(_INVERSE, stop - start)[edges[::2]]
        numbers.append(((found ^ (found >> np.uint64(29))) * _BASE >> np.uint64(32)).astype(np.uint32))
        begins.append(edges[::2] + start)
        start = stop
    ends = np.cumsum([0, *(len(row) + 1 for row in rows)])
    if not numbers:
        return np.zeros(0, np.uint32), np.zeros(len(ends), np.int64)
    return np.concatenate(numbers), np.searchsorted(np.concatenate(begins), ends)


def texts_of(example: Example) -> list[str]:
    """Everything that stands in an example."""
    if example.messages:
        # Pairs are a conversation, too, and would count twice.
        parts: list[str | None] = [message.content for message in example.messages]
    else:
        parts = [example.text, example.question, example.context, example.source, example.target]
        parts += [answer.text for answer in example.answers or ()]
    return [part for part in (parts + texts_of(example.rejected) if example.rejected else parts) if part]


def content_key(example: Example) -> int:
    """A number that rows share whose content is the same: but for capitals and white space, labels, and answers to a
    question, as the text gives these away."""
    if example.question is not None:
        texts = [example.question, example.context or ""]
    elif example.text is not None:
        texts = [example.text]
    else:
        texts = [text for turn in example.messages for text in (turn.role, turn.content)]
    # What parts the texts stands by itself, so that it makes no difference how they begin and end.
    return _digest(_plain(" \0 ".join(texts)))


def _cut(text: str) -> list[str]:
    """ASCII, what is not all ASCII between two spaces, ASCII again ..."""
    parts, place = [], 0
    for match in _OTHERS.finditer(text):
        start, end = match.span()
        if start >= place:  # else it belongs to the one before
            start = max(place, text.rfind(" ", place, start) + 1)
            end = text.find(" ", end)
            end = len(text) if end < 0 else end
            parts += text[place:start], text[start:end]
            place = end
    return [*parts, text[place:]]


def _mend(parts: Sequence[str], of_ascii: Callable[[str], bytes], known: Known[bytes]) -> bytes:
    """What `_cut` has cut, each of the ASCII and of the others in its own way."""
    made = [b""] * len(parts)
    made[::2], made[1::2] = map(of_ascii, parts[::2]), map(known.__getitem__, parts[1::2])
    return b"".join(made)


def _bare(text: str) -> bytes:
    """ASCII without capitals, and nothing between its words."""
    return text.encode().translate(_SMALL, _ASCII_SEPARATORS)


def _spaced(text: str) -> bytes:
    """ASCII without capitals, and spaces for white space."""
    return text.encode().translate(_SPACED)


def _plain(text: str) -> bytes:
    data = (_spaced(text) if text.isascii() else _mend(_cut(text), _spaced, _FOLDED)).strip()
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    return data


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _digest(data: bytes) -> int:
    return xxhash.xxh3_64_intdigest(data)
