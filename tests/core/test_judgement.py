"""Judgements: rows that are said twice, given away, contradicted or garbled, told by their content."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import regex

from core import dataset, likeness
from core.formats import Example
from core.judgement import (
    _MOJIBAKE,
    _SEPARATORS,
    _cut,
    _digest,
    _number_words,
    _shingles,
    content_key,
    judge,
    measure,
)

#: What is written without spaces is compared letter by letter.
ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORDS = regex.compile(rf"(?V1)[{ALONE}]|[[\p{{L}}\p{{N}}\p{{M}}]--[{ALONE}]]+")
ROW = '{"prompt": "Hi", "completion": "Hello"}\n'


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(name: str, data: str) -> dataset.Dataset:
        path = tmp_path / name
        path.write_text(data, encoding="utf-8")
        return dataset.load(path)

    return write


def overlap(train: dataset.Dataset, held: dataset.Dataset, some: list[int] | None = None) -> list[int]:
    """The rows of `held` that are trained on, when these examples (all by default) are."""
    _, found = judge(train, range(len(train.examples)) if some is None else some, held, range(len(held.examples)))
    return [held.numbers[index] for index, flags in found.items() if "overlap" in flags]


def test_rows_that_are_in_both_are_found_by_content(write: Any) -> None:
    train = write("a.jsonl", ROW.replace("Hi", "Ho") + "{oops\n" + ROW + ROW)
    held = write("b.jsonl", ROW.replace("Hi", " HI\\n") + ROW.replace("Hello", "Hell o") + ROW)
    assert overlap(train, held) == [1, 3] and overlap(held, train) == [3, 4]
    assert overlap(train, held, [0]) == [] and overlap(train, held, [2]) == [1, 3]


def test_white_space_and_capitals_make_no_other_content() -> None:
    """Of ASCII they are found in another way; a kelvin sign is a k."""
    draw, letters = random.Random(0), "".join(map(chr, range(128))) + " \t\n\x0b\x1c" * 20
    for _ in range(2000):
        text = "".join(draw.choices(letters, k=draw.randint(0, 12)))
        key = content_key(Example(text=f"k{text}k"))
        assert key == content_key(Example(text=f" \u212a{text}K\n")), repr(text)
        assert (key == content_key(Example(text=f"k{text} k"))) == (text != text.rstrip()), repr(text)


def test_words_of_ascii_are_those_of_any_text() -> None:
    draw, letters = random.Random(0), "".join(map(chr, range(128))) + " aB1_" * 20
    for _ in range(2000):
        text = "".join(draw.choices(letters, k=draw.randint(0, 60)))
        assert _shingles(Example(text=text)) == _shingles(Example(text=f"{text} …")), repr(text)


def test_of_any_text_is_found_what_its_letters_say() -> None:
    """Texts are looked at in parts, most of them as bytes; it makes no difference to what a look at all of it would find."""
    letters = " " * 30 + "abcAB12_.,!\n\t\x1c-" * 3
    letters += (
        "éÉßñΣσςİıǅ日本かな한ᄒ\u0301\u0308\u0327\u00a0\u0085\u2003\u2028\u3000\u180e\u200b\ufeff–…½²😀ﬁＡÂÃ©€â\ufffd™"
    )
    draw, garbled = random.Random(0), 0
    for _ in range(6000):
        text = "".join(draw.choices(letters, k=draw.randint(1, 40)))
        parts = _cut(text)
        assert "".join(parts) == text and all(part.isascii() for part in parts[::2])
        found = measure([Example(text=text)])
        whole = _SEPARATORS.sub("", text.casefold())
        assert found.bare.tolist() == [_digest((whole or text).encode())], repr(text)
        plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
        assert content_key(Example(text=text)) == _digest(plain.encode()), repr(text)
        assert found.garbled.tolist() == [_MOJIBAKE.search(text) is not None], repr(text)
        garbled += bool(found.garbled[0])
        words = " ".join(WORDS.findall(text.lower()))
        expected = likeness.signatures(*_number_words([words.encode()]))
        assert (found.signatures == expected).all(), repr(text)
    assert garbled > 100


def test_a_text_is_the_same_whatever_it_is_called(write: Any) -> None:
    train = write("a.csv", "text,label\nSTRASSE  is\tcafe\u0301,a\nother,a\n")
    held = write("b.csv", "text,label\nstra\u00dfe is café,b\nthe other,a\n")
    assert overlap(train, held) == [1]
    assert overlap(train, write("c.txt", "Other\n")) == [1]


def test_a_question_is_the_same_with_another_answer_and_not_about_another_text(write: Any) -> None:
    asked = '{"context": "%s", "question": "Who?", "answers": ["%s"]}\n'
    train = write("a.jsonl", asked % ("Ann and Bo", "Ann"))
    held = write("b.jsonl", asked % ("Ann and Bo", "Bo") + asked % ("Ann and Cy", "Ann"))
    assert overlap(train, held) == [1]
    # Where one text ends and the next begins makes a difference.
    turned = write("c.jsonl", '{"context": "and Bo", "question": "Who? Ann", "answers": ["Bo"]}\n')
    assert overlap(train, turned) == []


def test_repeated_contradicted_and_garbled_rows_of_one_set(write: Any) -> None:
    texts = [
        ("It rained.", "a"),
        ("IT rained", "a"),
        ("Снег шёл!", "b"),
        ("снег, шёл", "b"),
        ("cafÃ© ole", "b"),
        ("It rained.", "b"),
    ]
    rows = [json.dumps({"text": text, "label": label}) for text, label in texts]
    data = write("a.jsonl", "\n".join(rows))
    own, same = judge(data, [0, 1, 2, 3, 4, 5], data, [])
    assert own is same == {1: ["duplicate"], 3: ["duplicate"], 4: ["mojibake"], 5: ["duplicate", "conflict"]}
    # What is set aside repeats nothing: it is trained on elsewhere, or not.
    own, _ = judge(data, [0, 2, 4], data, [1, 3, 5])
    assert own == {
        1: ["near_overlap"],
        3: ["near_overlap"],
        4: ["mojibake"],
        5: ["overlap", "conflict"],
    }


def test_whoever_asked_can_end_it(write: Any) -> None:
    data, told = write("a.jsonl", ROW * 2500), []

    def tell(count: int) -> None:
        told.append(count)
        if count == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(data, range(2500), data, [], tell)
    assert told == [1000, 2000]


def test_rows_that_are_nearly_the_same(write: Any) -> None:
    words = [f"word{n}" for n in range(400)]
    texts = [" ".join(words[n * 40 : n * 40 + 40]) for n in range(8)]
    changed = texts[2].replace(words[119], "another")
    chinese = "昨天夜里下了一场大雨河水涨得很高桥都被淹没了人们只好绕道走山路回家"
    rows = [*texts, changed, chinese, chinese[:-1] + "村", texts[3].upper() + "!"]
    data = write("a.jsonl", "\n".join(json.dumps({"text": text}) for text in rows))
    own, _ = judge(data, range(len(rows)), data, [])
    assert own == {8: ["near_duplicate"], 10: ["near_duplicate"], 11: ["duplicate"]}
    # What is set aside is compared with what is trained on, wherever it stands, and not with its like.
    own, _ = judge(data, [1, 8], data, [2, 9, 10])
    assert own == {2: ["near_overlap"]}
    held = write("b.jsonl", json.dumps({"text": changed}) + "\n" + json.dumps({"text": "other"}))
    own, others = judge(data, [0, 1, 2], held, [0, 1])
    assert (own, others) == ({}, {0: ["near_overlap"]})


def test_a_word_has_one_number_wherever_it_stands() -> None:
    endless = b"x" * 100_000
    rows = [b"The cat!", b"", "the cät".encode(), b"cat, " * 20_000, endless + b" cat", b"act", endless, b"...", b"CAT"]
    numbers, starts = _number_words(rows)
    the, cat, also_the, cät, *cats = numbers.tolist()
    assert starts.tolist() == [0, 2, 2, 4, 20_004, 20_006, 20_007, 20_008, 20_008, 20_009] and len(numbers) == 20_009
    assert the == also_the and set(cats[:20_000]) == {cat} and cats[20_001] == cats[-1] == cat
    assert cats[20_000] == cats[20_003] and len({the, cat, cät, cats[20_000], cats[20_002]}) == 5
    words = [f"w{number}" for number in range(50_000)]
    numbers, starts = _number_words([" ".join(words).encode(), b"w7"])
    assert len(set(numbers.tolist())) > 49_990 and numbers[7] == numbers[-1] and starts.tolist() == [0, 50_000, 50_001]
    assert [len(one) for one in _number_words([])] == [0, 1]


def test_the_first_of_those_that_are_alike_is_said_of_none(write: Any) -> None:
    """Of each block that is measured by itself, and across them."""
    rows = [
        json.dumps({"text": f"text {number % 1200} of number", "label": "ab"[number > 2000]}) for number in range(2400)
    ]
    data = write("a.jsonl", "\n".join(rows))
    own, _ = judge(data, range(2400), data, [])
    assert {index for index, flags in own.items() if "duplicate" in flags} == set(range(1200, 2400))
    assert {index for index, flags in own.items() if "conflict" in flags} == set(range(2001, 2400))
    own, _ = judge(data, range(1000), data, range(1000, 2400))
    assert {index for index, flags in own.items() if "overlap" in flags} == set(range(1200, 2200))
    assert not any("duplicate" in flags for flags in own.values())


def test_short_rows_that_share_two_thirds_are_not_taken_for_nearly_the_same(write: Any) -> None:
    """Their signatures agree by chance as often as those of rows that are nearly the same: one in five."""
    lines = []
    for number in range(60):
        names = [
            f"{word}{number}" for word in ("harbour", "boat", "net", "stone", "dawn", "pier", "long", "west", "tide")
        ]
        lines += [f"where {' '.join(names)} lies", f"tell me {' '.join(names)} lies"]
    data = write("a.txt", "\n".join(lines))
    assert judge(data, range(len(lines)), data, []) == ({}, {})
