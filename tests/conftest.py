"""Small models made from configs, and homes for runs, shared by all tests."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from ground import SHARED

from core import garbage

garbage.put_off()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run three at a time on two cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take a moment come last: of several processes none works on long after the others."""
    items.sort(key=lambda item: item.path.parent == Path(__file__).parent / "core")


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is loaded by now stays: to look through torch for garbage again and again takes a twelfth of the time."""
    gc.collect()
    garbage.take_up(stays=True)


TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder of real models and data beside the repository")
    return SHARED


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A studio's home of its own."""
    monkeypatch.setenv("ATELIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a tiny random model of a family, as `save_pretrained` writes it."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = _make_model(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


def _make_model(name: str, folder: Path) -> Path:
    import torch
    from ground import ENCODERS, SEQ2SEQ
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    tokenizer = _make_tokenizer()
    usual = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    }
    grouped = usual | {"num_key_value_heads": 2}
    sizes = {
        "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128, "max_position_embeddings": 128},
        "opt": {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                "dropout": 0.0, "max_position_embeddings": 128},
        "gpt_neox": usual,
        "qwen3": grouped | {"head_dim": 8},
        "gemma3_text": grouped | {"head_dim": 8, "sliding_window": 64},
        "phi3": grouped | {"original_max_position_embeddings": 128, "pad_token_id": tokenizer.pad_token_id},
        "mixtral": grouped | {"num_local_experts": 4, "num_experts_per_tok": 2},
        "bert": usual,
        "roberta": usual | {"max_position_embeddings": 129},  # it counts from behind the padding's number, here 0
        "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 3, "n_heads": 4, "max_position_embeddings": 128},
        "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": tokenizer.pad_token_id},
    }.get(name, grouped)  # fmt: skip
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **special | sizes)
    torch.manual_seed(0)
    build = AutoModel if name in ENCODERS else AutoModelForSeq2SeqLM if name in SEQ2SEQ else AutoModelForCausalLM
    model = build.from_config(config)
    for path, parameter in model.named_parameters():  # the usual tiny start would hide a wrong layer behind rounding
        torch.nn.init.normal_(parameter, std=0.2)
        if name in ENCODERS + SEQ2SEQ and "norm" in path.lower() and path.endswith("weight"):
            parameter.data += 1.0  # or nothing of a text is left after three blocks of these
    model.save_pretrained(folder)
    if name in ENCODERS + SEQ2SEQ:
        _surround(tokenizer, name)
    tokenizer.save_pretrained(folder)
    if name == "bert":  # its tokenizer says which of two texts a token is of
        path = folder / "tokenizer_config.json"
        names = ["input_ids", "token_type_ids", "attention_mask"]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_input_names": names}))
    return folder


def _surround(tokenizer, name: str) -> None:
    """Special tokens around a text and between two, as these families' own tokenizers put them."""
    from tokenizers.processors import TemplateProcessing

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>")}
    single, pair = "<s> $A </s>", "<s> $A </s> $B:1 </s>:1"
    if name == "t5":
        single, pair = "$A </s>", "$A </s> $B </s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=pair, special_tokens=list(ids.items())
    )
    tokenizer.chat_template = None


def _make_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", "what is the colour of the sky"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short conversations of different lengths."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = []
    for number in range(40):
        answer = "the cat " * (1 + number % 5) + str(number)
        turns = [{"role": "user", "content": f"what is {number}"}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
