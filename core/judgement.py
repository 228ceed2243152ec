"""What is wrong with an example whatever a model makes of it: said twice, given away, contradicted, garbled."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import regex

from core.formats import Example

# UTF-8 read as Windows-1252 or Latin-1, and the mark that decoders put where they gave up.
_MOJIBAKE = re.compile("[ÂÃ][\x80-\xbf©®°±²³´µ¶·¸¹º»¼½¾¿¡¢£¤¥¦§¨ª«¬¯]|â€[\x80-\xbf™œž“”˜¦]|ï»¿|\ufffd")
_SEPARATORS = regex.compile(r"[^\p{L}\p{N}\p{M}\p{S}]+")
_ASCII_SEPARATORS = "".join(char for char in map(chr, range(128)) if _SEPARATORS.fullmatch(char)).encode()


class Judge:
    """Looks at every example of a data set once, in the order of the file.

    Args:
        trained: those that are trained on, when others are `set aside` to measure on.
    """

    def __init__(self, trained: Iterable[Example] = ()):
        self._trained = {content_key(example) for example in trained}
        self._seen: set[int] = set()
        self._labels: dict[int, int] = {}

    def judge(self, example: Example, is_aside: bool) -> list[str]:
        """The names of what is wrong with it, as `core.findings` has them.

        An evaluation row that is trained on has an overlap; of rows that are alike, and of inputs with different labels,
        all but the first are named.
        """
        flags = []
        text = "\n".join(texts_of(example))
        if not text.isascii() and _MOJIBAKE.search(text):
            flags.append("mojibake")
        if is_aside and content_key(example) in self._trained:
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
    return [part for part in (*parts, *answers) if part]


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
