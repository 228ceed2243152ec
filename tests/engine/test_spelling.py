"""Words that are spelled from memory have the ids that the tokenizer gives them."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from core.engine.spelling import _CUTS, Speller

LETTERS = "aaabbeestdmrvl'  \n\n\t\r  0123456789.,!?-_<|>/\\\"()ABS\x00\x0b\x0c\x1c\x1f\x7f{}"
# Letters, accents that are put together with what is before them, white space of other kinds, what has no spaces, surprises.
OTHERS = "éÉßñøΣσςіж日本語かな한가ᄒ\u0301\u0308\u0327\u00a0\u0085\u2003\u2028\u3000\u1680\u180e\u200b\u200d\ufeff–—…’“½²٣😀🏽\U0001d7d8ﬁＡ"
MARKS = ["<s>", "</s>", "<|u|>", "<|u|>x"]


def draw_text(draw: random.Random, most: int, letters: str = LETTERS) -> str:
    return "".join(draw.choices(letters, k=draw.randint(0, most)))


def train(cut: str | None, **more: object) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(**more))
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if cut is not None:
        split = pre_tokenizers.Split(Regex(cut), "isolated")
        whole = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = whole
    draw = random.Random(1)
    texts = [draw_text(draw, 400) for _ in range(200)] + ["I'll don't WE'VE they're it's He'S 12345 1 22"] * 5
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=MARKS)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("composes", [False, True], ids=["", "composes"])  # as the tokenizers of Qwen do
@pytest.mark.parametrize("cut", _CUTS, ids=["gpt2", "llama3", "qwen"])
def test_known_words_are_spelled_as_the_tokenizer_spells_the_text(cut: str | None, composes: bool) -> None:
    tokenizer, draw = train(cut), random.Random(2)
    if composes:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    speller = Speller(tokenizer)
    for _ in range(4000):
        text = draw.choice(MARKS).join(draw_text(draw, 20) for _ in range(draw.randint(1, 4)))
        assert speller.knows(text)
        ids, marks = speller.encode_marked(text)
        assert ids.tolist() == tokenizer(text, add_special_tokens=False).input_ids, repr(text)
        assert marks is not None
        for start, end, place in marks:
            assert text[start:end] == tokenizer.convert_ids_to_tokens(ids[place])


@pytest.mark.parametrize("composes", [False, True], ids=["", "composes"])
@pytest.mark.parametrize("cut", _CUTS, ids=["gpt2", "llama3", "qwen"])
def test_words_with_other_letters_are_as_well(cut: str | None, composes: bool) -> None:
    tokenizer, draw = train(cut), random.Random(3)
    if composes:
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    speller, known = Speller(tokenizer), 0
    letters = LETTERS + " " * 30 + OTHERS
    for _ in range(6000):
        text = draw.choice(MARKS).join(draw_text(draw, 24, letters) for _ in range(draw.randint(1, 4)))
        known += speller.knows(text) and not text.isascii()
        assert speller.encode(text) == tokenizer(text, add_special_tokens=False).input_ids, repr(text)
    assert known > 4000
    # What is written without spaces does not come again; it is the tokenizer's business as a whole.
    assert speller.knows("né à Paris") and not speller.knows("猫坐在垫子上。" * 5)
    assert speller.encode("猫坐在垫子上。" * 5) == tokenizer("猫坐在垫子上。" * 5, add_special_tokens=False).input_ids


def prefix_space(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def lower(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def digits(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def two_kinds(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_tokens([AddedToken("a b", normalized=True)])


def apart(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.split_special_tokens = True


@pytest.mark.parametrize("change", [prefix_space, lower, digits, two_kinds, apart])
def test_a_tokenizer_that_may_do_otherwise_spells_every_text_itself(change: object) -> None:
    tokenizer = train(None)
    change(tokenizer)  # type: ignore[operator]
    speller, text = Speller(tokenizer), "ab a b <s> Ab 12"
    assert not speller.knows(text)
    assert speller.encode(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_word_that_is_spelled_by_chance_is_not_remembered() -> None:
    assert not Speller(train(None, dropout=0.5)).knows("ab")


def test_endless_words_and_many_words_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.words.MOST", 10)
    speller = Speller(train(None))
    speller.encode("a" * 1000)
    assert not speller._words
    for number in range(100):
        speller.encode(f"w{number}")
    assert 0 < len(speller._words) <= 10
