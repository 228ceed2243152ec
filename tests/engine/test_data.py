"""What is learned of a row, token by token, and how rows are joined."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ground import FAMILIES

from core import presets
from core.config import ModelSettings
from core.engine.data import Reader, collate
from core.engine.inspection import inspect
from core.engine.model import end_token_ids, load_model
from core.engine.rows import order_rows
from core.engine.tokens import Tokens
from core.formats import Message
from core.objectives import Row
from core.problem import Problem

TALK = (
    Message("system", "be kind"),
    Message("user", "the cat"),
    Message("assistant", "sat"),
    Message("user", "what is the sky"),
    Message("assistant", "the colour of the mat"),
)
REWRITES = (  # drops what earlier answers said before a bar, as templates of thinking models do
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>"
    "{{ message.content if loop.last else message.content.split('|')[-1] }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def look_at(path: Path, model: Path, **data: object) -> dict[str, Any]:
    """What an inspection tells of a file, with a model's tokens."""
    changes = {"data.train": str(path), "model.name": str(model)} | {
        f"data.{key}": value for key, value in data.items()
    }
    return inspect(presets.load("chat", changes))


def tokens_of(folder: Path, template: str | None = "own", max_length: int = 128) -> Tokens:
    model, tokenizer = load_model(ModelSettings(name=str(folder)), torch.device("cpu"), torch.float32)
    if template != "own":
        tokenizer.chat_template = template
    return Tokens(tokenizer, max_length, end_token_ids(model.generation_config, tokenizer))


def learned(tokens: Tokens, row: Row) -> str:
    return tokens.tokenizer.decode([token for token, trained in zip(row.ids, row.trained, strict=True) if trained])


@pytest.fixture(scope="module")
def llama(family: Callable[[str], Path]) -> Path:
    return family("llama")


def test_answers_are_learned_each_with_its_end(llama: Path) -> None:
    tokens = tokens_of(llama)
    (row,) = tokens.spell_conversation(TALK, "answers")
    assert learned(tokens, row) == "sat</s>the colour of the mat</s>"
    assert [*row.ids] == tokens.encode(tokens.render(TALK))
    assert row.ids.count(tokens.tokenizer.bos_token_id) == 1


def test_last_answer_and_everything(llama: Path) -> None:
    tokens = tokens_of(llama)
    (row,) = tokens.spell_conversation(TALK, "last_answer")
    assert learned(tokens, row) == "the colour of the mat</s>"
    (row,) = tokens.spell_conversation(TALK, "everything")
    assert all(row.trained)
    assert [*row.ids] == tokens.encode(tokens.render(TALK))


def test_what_is_before_an_answer_is_what_is_read_at_use(llama: Path) -> None:
    tokens = tokens_of(llama)
    (row,) = tokens.spell_conversation(TALK, "answers")
    prompt = tokens.prompt(TALK[:4])
    assert [*row.ids[: len(prompt)]] == prompt
    assert not row.trained[len(prompt) - 1]
    assert row.trained[len(prompt)]


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_template_where_there_is_none(family: Callable[[str], Path], name: str) -> None:
    tokens = tokens_of(family(name), None)
    assert not tokens.own_template
    (row,) = tokens.spell_conversation(TALK, "answers")
    assert learned(tokens, row) == "sat</s>the colour of the mat</s>"
    prompt = tokens.prompt(TALK[:2])
    assert [*row.ids[: len(prompt)]] == prompt


def test_template_without_an_end_gets_one(llama: Path) -> None:
    tokens = tokens_of(
        llama,
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    )
    (row,) = tokens.spell_conversation(TALK[:3], "answers")
    assert learned(tokens, row) == "sat</s>"
    # Between the turns there is none at use either: only the last answer is given one.
    (row,) = tokens.spell_conversation(TALK, "answers")
    assert learned(tokens, row) == "sat" + "the colour of the mat</s>"
    assert tokens.tokenizer.decode([*row.ids]).count("</s>") == 1


def test_an_end_within_an_answer_is_not_its_end(llama: Path) -> None:
    tokens = tokens_of(llama)
    (row,) = tokens.spell_conversation((Message("user", "a"), Message("assistant", "one</s>two")), "answers")
    assert learned(tokens, row) == "one</s>two</s>"


def test_tools_are_in_the_prompt_and_not_learned(llama: Path) -> None:
    tokens = tokens_of(
        llama,
        "{% if tools %}<|tool|>{{ tools[0].name }}{% endif %}"
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
        "{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    )
    tools = json.dumps([{"name": "compass"}])
    for train_on in ("answers", "everything"):
        (row,) = tokens.spell_conversation(TALK[1:3], train_on, tools)
        assert tokens.tokenizer.decode([*row.ids]) == "<|tool|>compass<|user|>the cat<|assistant|>sat</s>"
        assert (learned(tokens, row) == "sat</s>") == (train_on == "answers")


def test_the_plain_template_writes_tools(llama: Path) -> None:
    tokens = tokens_of(llama).with_template("plain")
    tools = json.dumps([{"name": "compass"}])
    said = tokens.render(TALK[1:2], answer_next=True, tools=tools)
    assert f"### Tools:\n{tools}\n\n### User:\n" in said
    assert "Tools" not in tokens.render(TALK[1:2], answer_next=True)


def test_the_generation_settings_name_ends_too(llama: Path) -> None:
    from transformers import GenerationConfig

    _, tokenizer = load_model(ModelSettings(name=str(llama)), torch.device("cpu"), torch.float32)
    assert end_token_ids(GenerationConfig(eos_token_id=[7, 9]), tokenizer) == {7, 9, tokenizer.eos_token_id}
    assert end_token_ids(None, tokenizer) == {tokenizer.eos_token_id}


def test_text_after_the_end_is_not_learned(llama: Path) -> None:
    tokens = tokens_of(
        llama,
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
        "{% if message.role == 'assistant' %}</s>{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    )
    (row,) = tokens.spell_conversation(TALK[:3], "answers")
    assert learned(tokens, row) == "sat</s>"
    assert not row.trained[-1]


def test_template_that_rewrites_earlier_turns_gives_a_row_for_each_answer(llama: Path) -> None:
    tokens = tokens_of(llama, REWRITES)
    talk = (Message("user", "a"), Message("assistant", "hm|one"), Message("user", "b"), Message("assistant", "hm|two"))
    rows = tokens.spell_conversation(talk, "answers")
    assert [learned(tokens, row) for row in rows] == ["hm|one</s>", "hm|two</s>"]
    assert [*rows[1].ids[: len(tokens.prompt(talk[:3]))]] == tokens.prompt(talk[:3])


def test_boundary_inside_a_token_is_spelled_as_at_use(llama: Path) -> None:
    """ "the" is one token, "t" + "he" are two: an answer that begins within it is not read that way at use."""
    tokens = tokens_of(
        llama,
        "{% for message in messages %}{{ message.content }}{% endfor %}{% if add_generation_prompt %}{% endif %}",
    )
    (row,) = tokens.spell_conversation((Message("user", "t"), Message("assistant", "he")), "answers")
    assert [*row.ids[:1]] == tokens.encode("t")
    assert learned(tokens, row) == "he</s>"
    # Asked for the next answer the model reads "the" as one token: what was learned first is no beginning of that.
    talk = (Message("user", "t"), Message("assistant", "he"), Message("user", " cat"), Message("assistant", " sat"))
    first, second = tokens.spell_conversation(talk, "answers")
    assert [*first.ids] == tokens.encode("t") + tokens.encode("he") + [tokens.tokenizer.eos_token_id]
    assert [*second.ids[: -len(tokens.encode(" sat")) - 1]] == tokens.encode("the cat")
    assert learned(tokens, second) == " sat</s>"


def test_refusal_of_a_template_is_a_problem(llama: Path) -> None:
    tokens = tokens_of(llama, "{{ raise_exception('no system role') }}")
    with pytest.raises(Problem, match="no system role"):
        tokens.spell_conversation(TALK, "answers")


def test_template_runs_in_a_sandbox(llama: Path) -> None:
    tokens = tokens_of(llama, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(Problem):
        tokens.render(TALK)


def test_conversation_without_an_answer_is_refused(llama: Path) -> None:
    with pytest.raises(Problem, match="no answer"):
        tokens_of(llama).spell_conversation(TALK[:2], "answers")


def test_the_text_of_an_answer_has_no_special_tokens(llama: Path) -> None:
    tokens = tokens_of(llama)
    assert tokens.decode(tokens.encode("<s><|user|>the cat</s>")) == "the cat"


def test_long_rows_are_cut_and_counted(llama: Path) -> None:
    tokens = tokens_of(llama, max_length=8)
    (row,) = tokens.spell_conversation(TALK, "answers")
    assert len(row.ids) == len(row.trained) == 8
    assert tokens.cut == 1
    whole = tokens_of(llama).spell_conversation(TALK, "answers")[0]
    fitting = tokens_of(llama, max_length=len(whole.ids))
    assert fitting.spell_conversation(TALK, "answers") == [whole]
    assert fitting.cut == 0


def test_what_becomes_of_a_conversation_that_is_too_long(llama: Path) -> None:
    def turns(*said: str) -> tuple[Message, ...]:
        return tuple(Message(("user", "assistant")[place % 2], text) for place, text in enumerate(said))

    system = (Message("system", "the mat"),)
    said = ("a", "the cat", "what", "sat on", "is", "the sky")
    talk = system + turns(*said)
    free = tokens_of(llama)
    (whole,) = free.spell_conversation(talk, "answers")
    parts = [free.spell_conversation(system + turns(*said[at : at + 2]), "answers")[0] for at in (0, 2, 4)]
    last_two = free.spell_conversation(system + turns(*said[2:]), "answers")[0]

    def spell(room: int, way: str, messages: tuple[Message, ...] = talk) -> list[Row]:
        return tokens_of(llama, max_length=room).spell_conversation(messages, "answers", too_long=way)

    # What fits stays as it is, whatever the way.
    for way in ("cut", "oldest", "split", "drop"):
        assert spell(len(whole.ids), way) == [whole]
    assert spell(len(whole.ids) - 1, "cut")[0].ids == whole.ids[:-1]
    # The system prompt stays in front; as much of the end as has room.
    assert spell(len(whole.ids) - 1, "oldest") == [replace(last_two, left_out=len(whole.ids) - len(last_two.ids))]
    assert spell(len(last_two.ids), "oldest") == [replace(last_two, left_out=len(whole.ids) - len(last_two.ids))]
    assert spell(len(last_two.ids) - 1, "oldest") == [replace(parts[2], left_out=len(whole.ids) - len(parts[2].ids))]
    # Every exchange is in one row, in as few rows as hold them.
    first_two = free.spell_conversation(system + turns(*said[:4]), "answers")[0]
    assert spell(len(whole.ids) - 1, "split") == [first_two, parts[2]]
    longest = max(len(part.ids) for part in parts)
    assert spell(longest, "split") == parts
    # An exchange that has no room by itself loses its end, and is counted.
    short = tokens_of(llama, max_length=longest - 1)
    rows = short.spell_conversation(talk, "answers", too_long="split")
    assert [row.ids for row in rows] == [part.ids[: longest - 1] for part in parts] and short.cut == sum(
        len(part.ids) == longest for part in parts
    )
    assert [row.ids for row in spell(5, "oldest")] == [parts[2].ids[:5]]
    # A last question without an answer goes with the exchange before it.
    open_ended = (*talk, Message("user", "colour"))
    assert spell(longest, "split", open_ended) == parts
    assert [row.ids for row in spell(5, "oldest", open_ended)] == [parts[2].ids[:5]]
    assert spell(len(whole.ids) - 1, "oldest", open_ended) == [
        replace(last_two, left_out=len(whole.ids) - len(last_two.ids))
    ]


def test_raw_text_begins_and_ends(llama: Path) -> None:
    tokens = tokens_of(llama)
    (row,) = tokens.spell_text("the cat sat")
    assert learned(tokens, row).endswith("the cat sat</s>")
    tokens = tokens_of(llama, max_length=4)
    rows = tokens.spell_text("the cat sat on the mat")
    assert len(rows) > 1
    whole = tokens_of(llama).spell_text("the cat sat on the mat")[0].ids
    assert [token for row in rows for token in row.ids] == whole
    assert tokens.cut == 0  # nothing of it is lost
    # One token alone has nothing before it and is no row.
    tokens = tokens_of(llama, max_length=len(whole) - 1)
    assert [row.ids for row in tokens.spell_text("the cat sat on the mat")] == [whole[:-1]]
    tokens = tokens_of(llama, max_length=len(whole))
    assert [row.ids for row in tokens.spell_text("the cat sat on the mat")] == [whole]
    assert tokens.cut == 0


def test_text_begins_as_the_tokenizer_begins(llama: Path) -> None:
    """With a BOS for a tokenizer that sets one, without for one that only knows it; in a conversation never two."""
    from tokenizers.processors import TemplateProcessing

    tokens = tokens_of(llama)
    plain = tokens.encode("the cat")
    assert tokens.text_prompt("the cat") == plain
    bos = tokens.tokenizer.bos_token_id
    tokens.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    tokens = Tokens(tokens.tokenizer, 128, tokens.end_ids)
    assert tokens.text_prompt("the cat") == [bos, *plain]
    assert tokens.spell_text("the cat")[0].ids == [bos, *plain, tokens.tokenizer.eos_token_id]
    assert tokens.prompt(TALK[:2]).count(bos) == 1


def test_first_token_is_never_a_target() -> None:
    assert Row([1, 2, 3], [True, False, True]).targets == 1
    batch = collate([Row([1, 2, 3], [True, False, True])], 0, pack=None)
    assert batch.targets.tolist() == [3]
    assert batch.where.tolist() == [[False, True, False]]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert order_rows(50, 1, 0) == order_rows(50, 1, 0)
    assert order_rows(50, 1, 0) != order_rows(50, 1, 1)
    assert order_rows(50, 1, 0) != order_rows(50, 2, 0)
    assert sorted(order_rows(50, 1, 3)) == list(range(50))


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_padded_and_alone_are_the_same(family: Callable[[str], Path], name: str) -> None:
    model, _ = load_model(ModelSettings(name=str(family(name))), torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(3)
    rows = [
        Row(torch.randint(10, 280, (size,), generator=generator).tolist(), [i % 3 != 1 for i in range(size)])
        for size in (9, 4, 14, 6)
    ]
    reader = Reader(model, packing=True)
    assert reader.selects
    # OPT works its positions out of the mask and not of position_ids: rows joined would see each other.
    assert reader.packs == (name != "opt")
    with torch.no_grad():
        alone = torch.cat([reader.logits(model, collate([row], 0, pack=None)) for row in rows])
        batch = collate(rows, 0, pack=None)
        assert batch.attention_mask is not None
        assert batch.attention_mask.tolist() == [[1] * size + [0] * (14 - size) for size in (9, 4, 14, 6)]
        padded = reader.logits(model, batch)
        assert torch.allclose(padded, alone, atol=1e-4)
        if reader.packs:
            batch = collate(rows, 0, pack=20)
            assert batch.attention_mask is None  # the blocks are made from the positions
            assert batch.position_ids[0].tolist() == [*range(14), *range(6)]
            assert batch.input_ids.shape[0] == 2
            # The longest first, each into the first sequence with room: 14 + 6 and 9 + 4.
            order = [2, 3, 0, 1]
            apart = torch.split(alone, [row.targets for row in rows])
            wanted = [collate([rows[i]], 0, pack=None).targets for i in order]
            assert batch.targets.tolist() == torch.cat(wanted).tolist()
            packed = reader.logits(model, batch)
            assert torch.allclose(packed, torch.cat([apart[i] for i in order]), atol=1e-4)
        everywhere = model(input_ids=torch.tensor([rows[0].ids])).logits[0, :-1]
        assert torch.allclose(
            alone[: rows[0].targets], everywhere[torch.tensor([*rows[0].trained[1:]], dtype=torch.bool)], atol=1e-4
        )


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_leaves_the_model_in_its_mode(family: Callable[[str], Path], training: bool) -> None:
    model, _ = load_model(ModelSettings(name=str(family("llama"))), torch.device("cpu"), torch.float32)
    Reader(model.train(training), packing=True)
    assert model.training is training
    assert not Reader(model, packing=False).packs


def test_a_data_set_is_counted_as_training_would(llama: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    template = next(model.glob("*.jinja"))
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    template.write_text(strict + template.read_text())

    def talk(question: str, answer: str) -> dict:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    refused = {"messages": [{"role": "system", "content": "s"}, *talk("a", "b")["messages"]]}
    rows = [
        {"messages": "nothing"},
        talk("a", "sat"),
        refused,
        talk("a", "the mat " * 80),
        talk("the mat " * 80, "sat"),
        talk("a", "the cat sat"),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tokens = tokens_of(model, max_length=32)
    texts = ("sat", "the mat " * 80, "the cat sat")
    kept = [
        tokens.spell_conversation((Message("user", "a"), Message("assistant", text)), "answers")[0] for text in texts
    ]
    told = look_at(path, model, max_length=32)
    counts = ("rows", "trained_rows", "bad_rows", "refused_rows", "empty_rows", "cut_rows")
    assert [told[key] for key in counts] == [6, 3, 1, 1, 1, 2]
    lengths = [len(row.ids) for row in kept]
    assert lengths[1] == 32 > lengths[2] > lengths[0]
    assert (told["tokens"], told["longest"], told["median"]) == (sum(lengths), 32, lengths[2])
    assert told["trained_tokens"] == sum(row.targets for row in kept)
    # By their numbers in the file, though the first row is no example.
    (bad, told_refused) = told["problems"]
    assert "1 of 6" in bad or "row 1" in bad.lower()
    assert told_refused.startswith("Row 3: ") and "no system" in told_refused
    assert "".join(piece for piece, _ in told["preview"]) == tokens.tokenizer.decode([*kept[0].ids])
    assert [trained for _, trained in told["preview"]] == [*map(bool, kept[0].trained)]
    # Longer than the model reads is no length to ask for.
    assert look_at(path, model, max_length=4096)["longest"] == 128


def test_a_preview_ends_an_answer_where_the_model_ends_it(llama: Path, tmp_path: Path) -> None:
    """By the generation settings, which may name another end than the tokenizer."""
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    template = next(model.glob("*.jinja"))
    template.write_text(template.read_text().replace("{{ eos_token }}", "<|tool|>"))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "sat"}), encoding="utf-8")
    ends = {"the tokenizer's": "<|tool|></s>", "the model's too": "<|tool|>"}
    settings = json.loads((model / "generation_config.json").read_text())
    for whose, end in ends.items():
        if whose == "the model's too":
            named = [settings["eos_token_id"], tokens_of(llama).encode("<|tool|>")[0]]
            (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": named}))
        shown = "".join(piece for piece, learned in look_at(path, model)["preview"] if learned)
        assert shown == "sat" + end, whose


def test_an_end_is_a_number_and_not_bytes_of_two_others(family: Callable[[str], Path]) -> None:
    """Ends are looked for in the bytes of an answer: 512 and 256 side by side hold those of 2, one byte further on."""
    tokens = tokens_of(family("llama"))
    (end,) = tokens.end_ids
    said = Message("assistant", "sat")

    def mark(*ids: int) -> tuple[list[int], bytes] | None:
        spelled = SimpleNamespace(ids=array("i", ids), count=lambda place: place)
        found = tokens._mark_straight(spelled, [said], [0], [(1, len(ids))])  # type: ignore[arg-type]
        return None if found is None else (list(found[0]), found[1])

    assert mark(7, 8, end, 9) == ([7, 8, end, 9], b"\0\1\1\0")
    assert mark(7, end << 8, 256, end) is None
    assert mark(7, 8, 9) is None


def test_what_asks_for_an_answer_may_leave_out_the_end_of_the_one_before(
    family: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two answers behind each other: the prompt of the second ends before the first one does."""
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
        "{% if not (loop.last and add_generation_prompt) %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    tokens = tokens_of(family("llama"), template)
    talk = (Message("user", "the cat"), Message("assistant", "sat"), Message("assistant", "the mat"))
    rows = tokens.spell_conversation(talk, "answers")
    monkeypatch.setattr(Tokens, "_mark_straight", lambda *_: None)
    assert rows == tokens.spell_conversation(talk, "answers") and len(rows) == 2
