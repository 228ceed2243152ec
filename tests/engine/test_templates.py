"""What is learned of a conversation, on token ids: every chat template of `tests/templates` times every data format."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import pytest
from ground import ROOT
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Regex as Pattern
from transformers import PreTrainedTokenizerFast

from core import formats
from core.dataset import load
from core.engine.spelling import Spelling
from core.engine.tokens import Tokens
from core.formats import Example, Message
from core.objectives import Row
from core.problem import Problem

TEMPLATES = ROOT / "tests" / "templates"
Speller = Callable[..., Tokens]


@dataclass(frozen=True)
class Family:
    """What is known of a family of models; its template stands in `tests/templates` under its name.

    Attributes:
        shown: a question, its answer, and the prompt for the next: what the template has to make of HELLO.
        eos: the tokenizer's end; `ends` are all that end an answer, also by the generation settings.
        special: the other special tokens.
        spells: how its tokenizer splits text: gpt2, llama3 (line breaks kept together), sentencepiece.
        begins: where the template writes BOS: once, at every question, never, or it is a token that marks turns as well.
        closes: the answers that the template itself ends: all, none, or those before another question (between).
        system: keeps, drops or refuses a system prompt, or how it merges it with the first question.
        tool_turns: keeps, drops or refuses the results of tools; `tools`: whether it shows which tools there are.
        rewrites: the rows of ROWS in which it edits earlier turns, so that every answer needs a row of its own.
        opens: whether the prompt has opened the thinking already.
        adds: what it writes before the last answer where the data has no thinking; `spans` says that a token spans the
            prompt and that.
        cuts: the rows of whose answers it leaves out the beginning; `mute` those of which no row can be made.
    """

    shown: str
    eos: str
    bos: str | None = None
    special: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    spells: str = "gpt2"
    begins: str = "never"
    closes: str = "all"
    system: str = "keeps"
    tool_turns: str = "keeps"
    tools: bool = False
    rewrites: tuple[str, ...] = ()
    opens: bool = False
    adds: str = ""
    spans: bool = False
    cuts: tuple[str, ...] = ()
    mute: tuple[str, ...] = ()


IM = ("<|im_start|>",)
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>")
THINK = ("<think>", "</think>")
SINGLE = ("alpaca", "completion", "pairs", "translation", "questions", "squad")
SEVERAL = ("alpaca history", "sharegpt", "sharegpt tools", "messages", "messages calls", "thinking")
FAMILIES = {
    "llama2": Family(
        "<s>[INST] Hi [/INST] Hello </s><s>[INST] Bye [/INST]",
        "</s>", "<s>", spells="sentencepiece", begins="question",
        system="<<SYS>>\n{system}\n<</SYS>>\n\n{user}", tool_turns="refuses",
    ),
    "llama3": Family(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>", "<|begin_of_text|>", HEADERS, ("<|end_of_text|>",), spells="llama3", begins="once",
    ),
    "llama3_1": Family(
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Knowledge up to: December 2023\nToday: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>", "<|begin_of_text|>", (*HEADERS, "<|eom_id|>"), ("<|end_of_text|>", "<|eom_id|>"),
        spells="llama3", begins="once", tools=True,
    ),
    "qwen2_5": Family(
        "<|im_start|>system\nYou are Qwen, a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>", None, (*IM, "<|endoftext|>"), ("<|endoftext|>",), spells="llama3", tools=True,
    ),
    "qwen3": Family(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>", None, (*IM, *THINK, "<|endoftext|>"), ("<|endoftext|>",), spells="llama3", tools=True,
        rewrites=SEVERAL, adds="<think>\n\n</think>\n\n",
    ),
    "qwen3_thinking": Family(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n<think>\n",
        "<|im_end|>", None, (*IM, *THINK, "<|endoftext|>"), ("<|endoftext|>",), spells="llama3",
        rewrites=SEVERAL, opens=True, adds="\n</think>\n\n",
        spans=True,
    ),
    "gemma": Family(
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>",), spells="sentencepiece",
        begins="once", system="refuses", tool_turns="refuses",
    ),
    "gemma3": Family(
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        "<eos>", "<bos>", ("<start_of_turn>", "<end_of_turn>"), ("<end_of_turn>",), spells="sentencepiece",
        begins="once", system="{system}\n\n{user}", tool_turns="refuses",
    ),
    "mistral_v1": Family(
        "<s>[INST] Hi [/INST]Hello</s> [INST] Bye [/INST]",
        "</s>", "<s>", spells="sentencepiece", begins="once", system="refuses", tool_turns="refuses",
    ),
    "mistral_v3": Family(
        "<s>[INST] Hi[/INST] Hello</s>[INST] Bye[/INST]",
        "</s>", "<s>", ("[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"), spells="sentencepiece",
        begins="once", system="{system}\n\n{user}", tool_turns="refuses", tools=True,
        rewrites=("alpaca history", "messages"),
    ),
    "phi3": Family(
        "<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n<|user|>\nBye<|end|>\n<|assistant|>\n",
        "<|endoftext|>", "<s>", ("<|system|>", "<|user|>", "<|assistant|>"), ("<|end|>",), spells="sentencepiece",
        tool_turns="drops", rewrites=SEVERAL,
    ),
    "phi4": Family(
        "<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>Hello<|im_end|>"
        "<|im_start|>user<|im_sep|>Bye<|im_end|><|im_start|>assistant<|im_sep|>",
        "<|im_end|>", None, (*IM, "<|im_sep|>"), spells="llama3", tool_turns="drops",
    ),
    "chatml": Family(
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>", "<s>", IM,
    ),
    "zephyr": Family(
        "<|user|>\nHi</s>\n<|assistant|>\nHello</s>\n<|user|>\nBye</s>\n<|assistant|>\n",
        "</s>", "<s>", spells="sentencepiece", tool_turns="drops",
    ),
    "vicuna": Family(
        "<s>A user talks with a helpful assistant. USER: Hi ASSISTANT: Hello</s>USER: Bye ASSISTANT:",
        "</s>", "<s>", spells="sentencepiece", begins="once", tool_turns="drops",
    ),
    "deepseek_v2": Family(
        "<｜begin▁of▁sentence｜>User: Hi\n\nAssistant: Hello<｜end▁of▁sentence｜>User: Bye\n\nAssistant:",
        "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", begins="once", tool_turns="drops",
    ),
    "deepseek_v3": Family(
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>",
        "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>",
        ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"), begins="once",
    ),
    "deepseek_r1": Family(
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜>",
        "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>", *THINK), begins="once",
        tool_turns="drops", rewrites=("thinking",), cuts=("thinking",),
    ),
    "deepseek_r1_opened": Family(
        "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Hello<｜end▁of▁sentence｜><｜User｜>Bye<｜Assistant｜><think>\n",
        "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", ("<｜User｜>", "<｜Assistant｜>", *THINK), begins="once",
        tool_turns="drops", rewrites=("thinking",), opens=True, cuts=("thinking",),
        mute=(*(row for row in SEVERAL if row != "thinking"), *SINGLE),
    ),
    "smollm2": Family(
        "<|im_start|>system\nYou are SmolLM, a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>", "<|im_start|>", ("<|endoftext|>",), begins="marks",
    ),
    "falcon": Family(
        "User: Hi\nFalcon: Hello\nUser: Bye\nFalcon:", "<|endoftext|>", closes="none", tool_turns="drops",
    ),
    "openchat": Family(
        "<s>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Hello<|end_of_turn|>"
        "GPT4 Correct User: Bye<|end_of_turn|>GPT4 Correct Assistant:",
        "<|end_of_turn|>", "<s>", spells="sentencepiece", begins="once", tool_turns="drops",
    ),
    "command_r": Family(
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>",
        ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>"), begins="once",
    ),
    "granite": Family(
        "<|start_of_role|>user<|end_of_role|>Hi<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>Hello<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Bye<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>",
        "<|end_of_text|>", "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>"), begins="marks", tools=True,
    ),
    "olmo": Family(
        "<|endoftext|><|user|>\nHi\n<|assistant|>\nHello<|endoftext|>\n<|user|>\nBye\n<|assistant|>\n",
        "<|endoftext|>", tool_turns="drops",
    ),
    "tulu": Family(
        "<|user|>\nHi\n<|assistant|>\nHello</s>\n<|user|>\nBye\n<|assistant|>\n",
        "</s>", "<s>", spells="sentencepiece", tool_turns="drops",
    ),
    "alpaca": Family(
        "Below is an instruction. Write a response to it.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n"
        "### Instruction:\nBye\n\n### Response:\n",
        "</s>", "<s>", closes="none", system="drops", tool_turns="drops", rewrites=SEVERAL,
    ),
    "internlm": Family(
        "<|User|>:Hi\n<|Bot|>:Hello<eoa><|User|>:Bye\n<|Bot|>:",
        "<eoa>", "<s>", closes="between", system="drops", tool_turns="drops",
    ),
}  # fmt: skip

SPEAKING = [name for name, family in FAMILIES.items() if not family.mute]
HELLO = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
TOOL = {
    "type": "function",
    "function": {"name": "sky", "description": "Its colour.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "sky", "arguments": '{"at": "noon"}'}}
CODE = "```python\nfor cat in range(2):\n    print(cat)\n```"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "alpaca": ("alpaca", {"instruction": "Add the numbers.", "input": "1 and 20", "output": "21"}),
    "alpaca history": (
        "alpaca",
        {
            "instruction": "And the mat?",
            "input": "",
            "output": "Grey, as the cat.",
            "system": "Be kind.",
            "history": [["What colour is the sky?", "Blue.\n\nAt noon."]],
        },
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "Write a loop."},
                {"from": "gpt", "value": CODE},
                {"from": "human", "value": "Danke, ça va? 你好"},
                {"from": "gpt", "value": "Ça va bien 🙂 你好!"},
            ]
        },
    ),
    "sharegpt tools": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "What colour is the sky?"},
                {"from": "function_call", "value": '{"name": "sky", "arguments": {}}'},
                {"from": "observation", "value": "#00f"},
                {"from": "gpt", "value": "It is blue."},
            ],
            "tools": json.dumps([TOOL]),
        },
    ),
    "messages": (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello, what is it?"},
                {"role": "user", "content": "The cat."},
                {"role": "assistant", "content": "It sat on the mat."},
                {"role": "user", "content": "Thanks"},
                {"role": "assistant", "content": "1. The cat\n2. The mat"},
                {"role": "user", "content": "Bye"},  # nobody has answered this
            ]
        },
    ),
    "messages calls": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "What colour is the sky?"},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "#00f", "tool_call_id": "call00001"},
                {"role": "tool", "content": "#fff", "tool_call_id": "call00002"},
                {"role": "assistant", "content": "Blue and white."},
            ],
            "tools": [TOOL],
        },
    ),
    "thinking": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "<think>\nOne more than one.\n</think>\n\nTwo."},
                {"role": "user", "content": "And 2 + 2?"},
                {"role": "assistant", "content": "<think>\nTwice as much.\n</think>\n\nFour."},
            ]
        },
    ),
    "completion": ("completion", {"prompt": "The cat sat", "completion": "on the mat.", "system": "Be kind."}),
    "pairs": ("pairs", {"source": "the colour of the sky", "target": "die Farbe des Himmels"}),
    "translation": ("translation", {"translation": {"en": "the cat", "fr": "le chat"}}),
    "questions": ("questions", {"question": "What fell?", "answers": ["Rain", "Water"]}),
    "squad": ("squad", {"context": "It rained.", "question": "What fell?", "answers": {"text": ["rain"]}}),
}
TEXT_ONLY = {"text", "labels"}
"""Formats that give no conversation."""
JUDGED = {"preference", "judgement", "chosen", "good"}
"""Formats of rows that say how good an answer is: their conversations are as those of the others."""

SENTENCES = ("the cat sat on the mat", "what is the colour of the sky", "Hello, it is blue and grey as the cat. print")
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(spells: str) -> str:
    """A small tokenizer, as JSON, that splits text the way real ones do."""
    if spells == "sentencepiece":
        return _train_sentencepiece()
    tokenizer = Tokenizer(models.BPE())
    if spells == "llama3":
        split = pre_tokenizers.Split(Pattern(LLAMA3), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    breaks = ["a\n\nb\n\nc", "a  b\n\n\nc"]  # so that line breaks become tokens together
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*SENTENCES, *breaks * 9], trainer)
    return tokenizer.to_str()


def _train_sentencepiece() -> str:
    """Spaces as part of words, one before every piece of text, and bytes for what is in no word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), *ends])
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=pieces, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    # Words are split for the training alone; bytes are part of the vocabulary and never read as text.
    return json.dumps(json.loads(tokenizer.to_str()) | {"pre_tokenizer": None, "added_tokens": []})


def make_tokens(family: Family, trained: str, template: str) -> Tokens:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained), bos_token=family.bos, eos_token=family.eos
    )
    # Phi-3's tokens swallow the line break behind them, as its own tokenizer has it.
    swallows = "<|end|>" in family.ends
    others = dict.fromkeys((*family.special, *family.ends))
    added = [AddedToken(text, special=True, normalized=False, rstrip=swallows) for text in others]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = template
    return Tokens(tokenizer, 4096, {tokenizer.convert_tokens_to_ids(text) for text in (family.eos, *family.ends)})


@pytest.fixture(scope="session")
def speller() -> Speller:
    """Tokens of a family, or of another template with its tokenizer."""
    trained = {spells: train_tokenizer(spells) for spells in ("gpt2", "llama3", "sentencepiece")}
    made: dict[str, Tokens] = {}

    def make(name: str, template: str | None = None) -> Tokens:
        family = FAMILIES[name]
        if template is not None:
            return make_tokens(family, trained[family.spells], template)
        if name not in made:
            text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
            made[name] = make_tokens(family, trained[family.spells], text)
        return made[name]

    return make


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Example]:
    """ROWS as the data set reads them from files."""
    folder, read = tmp_path_factory.mktemp("rows"), {}
    for name, (format, row) in ROWS.items():
        path = folder / f"{name}.jsonl"
        path.write_text(json.dumps(row), encoding="utf-8")
        dataset = load(path, strict=True)
        assert dataset.format == format, name
        (read[name],) = dataset.examples
    return read


def render(tokens: Tokens, messages: Sequence[Message], *, asks: bool = False, tools: str | None = None) -> str:
    """What transformers makes of it, without what is tested here."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return tokens.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=asks, tools=json.loads(tools) if tools else None
    )


def ids_of(tokens: Tokens, text: str) -> list[int]:
    return tokens.tokenizer(text, add_special_tokens=False).input_ids


def runs_of(row: Row) -> list[tuple[int, list[int]]]:
    """Where learned tokens stand together: the first position, and their ids."""
    marked = groupby(enumerate(row.trained), lambda place: place[1])
    places = [[position for position, _ in group] for learned, group in marked if learned]
    return [(run[0], [*row.ids[run[0] : run[-1] + 1]]) for run in places]


def refusal(name: str, row: str, messages: Sequence[Message], train_on: str) -> str:
    """Words of the Problem that this row has to be; empty where it is none."""
    family, roles = FAMILIES[name], {message.role for message in messages}
    if (family.system == "refuses" and "system" in roles) or (family.tool_turns == "refuses" and "tool" in roles):
        return "chat template refuses this conversation"
    return "does not say where the answer begins" if row in family.mute and train_on != "everything" else ""


def expect(family: Family, tokens: Tokens, example: Example, last: int, cuts: bool) -> list[int]:
    """The conversation up to this answer as one rendering, in ids."""
    messages, tools = example.messages[: last + 1], example.tools
    prompt, whole = render(tokens, messages[:last], asks=True, tools=tools), render(tokens, messages, tools=tools)
    if cuts:
        return ids_of(tokens, prompt) + ids_of(tokens, spoken(family, messages[last].content, final=True) + family.eos)
    ids = ids_of(tokens, whole) + [tokens.tokenizer.eos_token_id] * (family.closes != "all")
    asked = ids_of(tokens, prompt)
    if ids[: len(asked)] == asked:
        return ids
    # A token spans the boundary: the prompt as it is read at use, and the rest as the model has to write it.
    assert family.spans and "<think>" not in messages[last].content
    return asked + ids_of(tokens, whole.removeprefix(prompt))


def check_row(name: str, tokens: Tokens, example: Example, row: Row, answers: Sequence[int], cuts: bool) -> None:
    """A row against the rendering of the conversation up to the last of the answers that are learned from it."""
    family, messages, tools = FAMILIES[name], example.messages[: answers[-1] + 1], example.tools
    assert [*row.ids] == expect(family, tokens, example, answers[-1], cuts)
    runs = runs_of(row)
    assert len(runs) == len(answers)
    for index, (start, run) in zip(answers, runs, strict=True):
        asked = ids_of(tokens, render(tokens, messages[:index], asks=True, tools=tools))
        assert [*row.ids[:start]] == asked
        assert tools or asked == tokens.prompt(messages[:index])
        final = index == answers[-1]
        between = family.closes == "between" and not final and messages[index + 1].role == "user"
        ends = [token in tokens.end_ids for token in run]
        assert ends == [False] * (len(run) - 1) + [final or between or family.closes == "all"]
        said = tokens.tokenizer.decode([token for token in run if token not in tokens.end_ids])
        assert said.strip() == spoken(family, messages[index].content, final=final).strip()
    check_begin(family, tokens, messages, [*row.ids])


def spoken(family: Family, answer: str, *, final: bool) -> str:
    """The answer as the template has the model say it."""
    if final and "<think>" not in answer:
        return family.adds + answer
    return answer.removeprefix("<think>\n") if family.opens else answer


def check_begin(family: Family, tokens: Tokens, messages: Sequence[Message], ids: list[int]) -> None:
    if family.begins == "marks":
        return
    questions = sum(message.role == "user" for message in messages)
    count = {"once": 1, "question": questions, "never": 0}[family.begins]
    places = [place for place, token in enumerate(ids) if token == tokens.tokenizer.bos_token_id]
    assert len(places) == count
    assert not count or places[0] == 0
    assert all(after - before > 1 for before, after in pairwise(places))


def test_every_family_has_a_template_that_writes_as_is_known_of_it(speller: Speller) -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(FAMILIES)
    assert len(FAMILIES) >= 15
    for name, family in FAMILIES.items():
        assert render(speller(name), HELLO, asks=True) == family.shown, name


def test_every_format_with_conversations_is_spelled(examples: dict[str, Example]) -> None:
    # A format without columns of its own is one whose rows a user writes: they are as those of the others.
    known = {name for name, format in formats.formats().items() if format.needs}
    assert {format for format, _ in ROWS.values()} == known - TEXT_ONLY - JUDGED
    assert all(example.messages for example in examples.values())
    assert {row for family in FAMILIES.values() for row in family.rewrites} <= set(ROWS)


@pytest.mark.parametrize("train_on", ["answers", "last_answer", "everything"])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_learned(name: str, row: str, train_on: str, speller: Speller, examples: dict[str, Example]) -> None:
    """Each answer with its end, behind exactly what the model reads when it is asked, and nothing else."""
    family, tokens, example = FAMILIES[name], speller(name), examples[row]
    answers = [index for index, message in enumerate(example.messages) if message.role == "assistant"]
    wrong = refusal(name, row, example.messages, train_on)
    if wrong:
        with pytest.raises(Problem, match=wrong):
            tokens.spell_conversation(example.messages, train_on, example.tools)
        return
    rows = tokens.spell_conversation(example.messages, train_on, example.tools)
    if train_on == "everything":
        (only,) = rows
        whole = ids_of(tokens, render(tokens, example.messages, tools=example.tools))
        answered = example.messages[-1].role == "assistant"
        assert [*only.ids] == whole + [tokens.tokenizer.eos_token_id] * (answered and family.closes != "all")
        assert all(only.trained)
        check_begin(family, tokens, example.messages, [*only.ids])
        return
    answers = answers[-1:] if train_on == "last_answer" else answers
    learned = [[index] for index in answers] if row in family.rewrites else [answers]
    assert len(rows) == len(learned)
    for one, these in zip(rows, learned, strict=True):
        check_row(name, tokens, example, one, these, row in family.cuts)
    assert tokens.cut == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_what_becomes_of_a_system_prompt(name: str, speller: Speller) -> None:
    family, tokens = FAMILIES[name], speller(name)
    asked = (Message("system", "Be kind."), Message("user", "Hi"))
    if family.system == "refuses":
        with pytest.raises(Problem, match="refuses this conversation"):
            tokens.prompt(asked)
        return
    prompt = tokens.prompt(asked)
    if family.system == "keeps":
        assert "Be kind." in tokens.tokenizer.decode(prompt)
    elif family.system == "drops":
        assert prompt == tokens.prompt(asked[1:])
    else:
        merged = family.system.format(system="Be kind.", user="Hi")
        assert prompt == tokens.prompt([Message("user", merged)])


@pytest.mark.parametrize("name", FAMILIES)
def test_what_becomes_of_tools(name: str, speller: Speller, examples: dict[str, Example]) -> None:
    family, tokens, talk = FAMILIES[name], speller(name), examples["messages calls"]
    shown = render(tokens, talk.messages[:1], asks=True, tools=talk.tools)
    assert ("Its colour." in shown) == family.tools
    if family.tool_turns == "refuses":
        with pytest.raises(Problem, match="refuses this conversation"):
            tokens.prompt(talk.messages[:4])
    else:
        results = tokens.tokenizer.decode(tokens.prompt(talk.messages[:4]))
        assert ("#00f" in results and "#fff" in results) == (family.tool_turns == "keeps")


@pytest.mark.parametrize("answer", ["  cat(1)\n  mat(2)\n", "\n\nthe cat", "\tthe cat\n\n", "the cat "])
@pytest.mark.parametrize("name", SPEAKING)
def test_white_space_around_an_answer_is_learned_as_the_template_writes_it(
    name: str, answer: str, speller: Speller
) -> None:
    """Where a token would span prompt and answer, the answer is spelled apart: the ids differ, and the text does not."""
    check_text(FAMILIES[name], speller(name), answer)


def check_text(family: Family, tokens: Tokens, answer: str) -> None:
    talk = (Message("user", "Hi"), Message("assistant", answer))
    (row,) = tokens.spell_conversation(talk, "answers")
    prompt = tokens.prompt(talk[:1])
    ((start, run),) = runs_of(row)
    assert [*row.ids[:start]] == prompt
    assert run[-1] in tokens.end_ids and not tokens.end_ids & set(run[:-1])
    whole = tokens.tokenizer.decode(ids_of(tokens, render(tokens, talk)))
    assert tokens.tokenizer.decode([*row.ids]) == whole + (family.eos if family.closes != "all" else "")


@pytest.mark.parametrize("name", ["vicuna", "deepseek_v2"])
def test_a_prompt_may_end_with_a_space(name: str, speller: Speller) -> None:
    """The answer has none of its own then, also where a tokenizer puts one before every text."""
    text = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    spaced = text.replace("{{- 'ASSISTANT:' }}", "{{- 'ASSISTANT: ' }}").replace(
        "{{- 'Assistant:' }}", "{{- 'Assistant: ' }}"
    )
    assert spaced != text
    for answer in ("the cat", "Grey", "1"):
        check_text(FAMILIES[name], speller(name, spaced), answer)


@pytest.mark.parametrize("name", SPEAKING)
def test_an_end_that_the_data_writes(name: str, speller: Speller) -> None:
    """Within an answer it ends nothing; behind it, it is its end, and none is learned after it."""
    family, tokens = FAMILIES[name], speller(name)
    for answer, ends in ((f"one{family.eos}two", 2), (f"one two{family.eos}", 1)):
        (row,) = tokens.spell_conversation((Message("user", "Hi"), Message("assistant", answer)), "answers")
        ((_, run),) = runs_of(row)
        assert run[-1] in tokens.end_ids
        assert sum(token in tokens.end_ids for token in run) == ends
        said = tokens.decode(run).replace(" ", "")
        assert said.strip().endswith("onetwo") and said.count("one") == 1


def test_an_answer_that_a_template_changes_is_no_row(speller: Speller) -> None:
    """Only a beginning that is left out can be put back: what else the model should say is not known."""
    text = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    for change in ("message.content[:3]", "message.content | replace('cat', 'dog')", "''"):
        tokens = speller(
            "chatml", text.replace("message.content", f"({change} if message.role == 'assistant' else message.content)")
        )
        with pytest.raises(Problem, match="does not say where the answer begins"):
            tokens.spell_conversation((Message("user", "Hi"), Message("assistant", "the cat sat")), "answers")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_beginning_of_a_text_is_spelled_as_it_is_alone(name: str, speller: Speller) -> None:
    tokens = speller(name)
    roles = [
        Message("user", " the  cat\n\n"),
        Message("assistant", "sat <b> on\nthe mat. "),
        Message("user", "é 日本?"),
    ]
    text = render(tokens, [*roles, Message("assistant", "Hello")])
    spelled = Spelling(text, tokens.speller)
    assert [*spelled.ids] == ids_of(tokens, text)
    for place in range(len(text) + 1):
        assert [*spelled.until(place)] == ids_of(tokens, text[:place]), (place, text[:place])


def test_special_tokens_that_are_spelled_apart_are_used(speller: Speller) -> None:
    marks = {}
    for name in FAMILIES:
        tokens = speller(name)
        text = render(tokens, [Message("user", "the cat"), Message("assistant", "sat")])
        marks[name] = len(tokens.speller.find_marks(text, tokens.encode(text)))
    assert marks["chatml"] >= 3 and marks["llama3"] >= 5
    assert marks["phi3"] == 0  # a token that swallows what is behind it cuts nothing in two


def test_a_token_that_the_tokenizer_does_not_cut_at_is_not_trusted(speller: Speller) -> None:
    tokens = speller("chatml")
    text = render(tokens, [Message("user", "the cat"), Message("assistant", "sat")])
    ids = tokens.encode(text)
    assert tokens.speller.find_marks(text, ids)
    assert not tokens.speller.find_marks(text + "<|im_end|>", ids)
    assert not tokens.speller.find_marks(text, ids[::-1])


def test_a_space_that_is_put_before_the_first_word_alone(speller: Speller) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", "<|im_start|>", "<|im_end|>"], vocab_size=120)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokens = Tokens(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>"), 4096, {2})
    text = "the cat<|im_start|>the mat<|im_end|> the sky"
    spelled = Spelling(text, tokens.speller)
    assert len(tokens.speller.find_marks(text, spelled.ids)) == 2
    assert tokens.encode("the mat") != tokens.encode("<|im_start|>the mat")[1:]
    for place in range(len(text) + 1):
        assert [*spelled.until(place)] == tokens.encode(text[:place]), text[:place]


BLIND = set(FAMILIES) - {"qwen3", "qwen3_thinking", "deepseek_r1", "deepseek_r1_opened"}
"""Those whose templates do not look at what is said."""
ODD = (" a", "\n\nb c\n", "<think>\nd\n</think>\n\ne", "None", '{"f": 1}', "</think>", "日本 é\t", " ", "")
ORDERS = ("ua", "uaua", "sua", "suaua", "uauaua", "uata", "uatau")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_filled_in_is_what_the_template_writes(name: str, speller: Speller) -> None:
    """For turns that come again, whatever is said in them."""
    tokens, roles = speller(name), {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    filled, counts = tokens._skeletons_of(str(tokens.tokenizer.chat_template)), [0, 0]
    for order in ORDERS:
        for first in range(len(ODD)):
            talk = [Message(roles[role], ODD[(first + place) % len(ODD)]) for place, role in enumerate(order)]
            for asks in (False, True):
                try:
                    wanted = render(tokens, talk, asks=asks)
                except Exception:
                    with pytest.raises(Problem, match="refuses"):
                        tokens.render(talk, answer_next=asks)
                else:
                    assert tokens.render(talk, answer_next=asks) == wanted
            answers = [index for index, turn in enumerate(talk) if turn.role == "assistant"]
            with contextlib.suppress(Problem):
                given, places = tokens._lay_out(talk, answers, None)
                whole, slow = tokens.render(talk[: answers[-1] + 1]), None
                slow = list(tokens._find_places(whole, talk, answers, None))
                assert (given, list(places)) == (whole, slow)
                counts[filled.lay_out(talk, answers) is not None] += 1
    assert (counts[1] > 0) == (name in BLIND), counts


LOOKS = (
    "message.content | length", "message.content[:2]", "'cat' in message.content", "message.content in 'the cat sat'",
    "message.content == 'the cat'", "'the cat' == message.content", "message.content | upper", "message.content | tojson",
    "message.content | replace('cat', 'dog')", "('a' ~ message.content) | length", "message.content.split()[0]",
    "(['a', message.content] | join(',')) | length", "','.join([message.content])[1:]", "'a'.replace('a', message.content)[2:]",
    "('-' + message.content).startswith('-the')", "messages | map(attribute='content') | join", "message | tojson",
    "{'the cat': 1}.get(message.content, 2)", "message.content < 'the z'", "'%s' % message.content | length",
    "'%s' | format(message.content) | length", "message.content | e", "message.content.strip('t')", "loop.changed(message.content)",
    "messages | sort(attribute='content') | map(attribute='role') | join", "message.content * 2", "message.content | list | last",
    "message.content | indent", "(message.content + 'x') | trim", "messages | unique(attribute='content') | list | length",
)  # fmt: skip


@pytest.mark.parametrize("looks", LOOKS)
def test_a_template_that_looks_at_what_is_said_is_rendered_every_time(looks: str, speller: Speller) -> None:
    text = (
        "{% for message in messages %}{{ message.role + ': ' + message.content + '\n' }}{{ " + looks + " }}{% endfor %}"
    )
    tokens = speller("chatml", text)
    for said in ("a dog", "a dog", "the cat", "the cat sat", "<the> 'cat'", " the cat\nsat ", "t"):
        talk = [Message("user", said), Message("assistant", said)]
        assert tokens.render(talk) == render(tokens, talk)
    if not looks.startswith("','.join"):
        assert not any(tokens._skeletons_of(text)._known.values())


def test_a_template_that_knows_the_time_is_rendered_every_time(speller: Speller) -> None:
    tokens = speller("chatml", "{{ strftime_now('%Y') }}{{ messages[0].content }}")
    assert len({tokens.render([Message("user", "Hi")]) for _ in range(3)}) == 1
    known = tokens._skeletons_of(str(tokens.tokenizer.chat_template))
    assert not known._known, "what is filled in would stay at the year in which it began"


def test_orders_of_roles_are_forgotten_before_they_fill_the_memory(
    speller: Speller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.engine.skeleton._KNOWN", 5)
    tokens = speller("chatml", "{% for message in messages %}{{ message.role + ':' + message.content }}{% endfor %}")
    known = tokens._skeletons_of(str(tokens.tokenizer.chat_template))
    for count in [*range(1, 40), *range(1, 40)]:
        talk = [Message("user", "a")] * count
        assert tokens.render(talk) == tokens.render(talk) == "user:a" * count
        assert max(map(len, (known._seen, known._known))) <= 5
    for count in [*range(2, 40, 2)] * 2:
        talk = [Message(role, "a") for role in ("user", "assistant") * count]
        rows = tokens.spell_conversation(tuple(talk), "answers"), tokens.spell_conversation(tuple(talk), "answers")
        assert rows[0] == rows[1] and max(map(len, (known._seen, known._known, known._layouts))) <= 5
