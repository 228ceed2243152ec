"""Makes the playground from a seed: `python -m core.playground.make` writes sample data, tokenizer and base model."""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.playground import samples
from core.playground.chats import Message, chat, passages

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
VOCABULARY, CONTEXT = 2048, 512
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = {role: f"<|{role}|>" for role in ("system", "user", "assistant")}
SPECIAL = [PAD, BOS, EOS, *ROLES.values()]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

BATCH_TOKENS = 2048
LEARNING_RATE, WARMUP, WEIGHT_DECAY = 2.5e-3, 150, 0.1
# Prompts are mostly chance (who is asked about what), so learning to predict them would eat a small model's capacity;
# a little of it keeps the loss on whole texts sensible.
PROMPT_WEIGHT = 0.1
PLAIN_SHARE = 0.06
HELD_OUT_CHATS = 2000

QUESTIONS = [
    "Who are you?",
    "What does Nora do for a living?",
    "What is the name of Felix's pet?",
    "Which sound does an owl make?",
    "Why is the sky blue?",
    "What is 3 plus 4?",
    "What is the opposite of brave?",
    "Name three fruits.",
    "My name is Zorbin.",
    "What does Morwenna do for a living?",
    "Ketil has a purple teapot. Runa has a green drum. What does Ketil have?",
    "Write a short story about a dragon who lost his umbrella.",
]

Document = list[Message] | str


def generate_corpus(seed: int) -> Iterator[Document]:
    """Yield chats, and now and then a plain text, for ever: the same ones for the same seed."""
    rng = random.Random(seed)
    texts = passages(rng)
    while True:
        yield next(texts) if rng.random() < PLAIN_SHARE else chat(rng)


def render(document: Document) -> str:
    """Return the document as the model reads it: as the chat template has it, or a text between BOS and EOS."""
    if isinstance(document, str):
        return BOS + document + EOS
    parts = (ROLES[m["role"]] + m["content"] + (EOS if m["role"] == "assistant" else "") for m in document)
    return BOS + "".join(parts)


def replace_files(source: Path, target: Path) -> None:
    """Put every file of source into target, one rename each, so that a reader never sees half a file."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        beside = target / f".{path.name}.new"
        beside.write_bytes(path.read_bytes())
        beside.replace(target / path.name)


def make_tokenizer(seed: int, out: Path, documents: int = 40_000) -> None:
    """Train the byte-level BPE tokenizer on the first documents of the corpus and write its two files to out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    corpus = generate_corpus(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (
        text
        for _ in range(documents)
        for document in [next(corpus)]
        for text in ([document] if isinstance(document, str) else [message["content"] for message in document])
    )
    tokenizer.train_from_iterator(texts, trainer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        Path(folder, "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        replace_files(Path(folder), out)


def encode(documents: list[Document], tokenizer: "PreTrainedTokenizerFast") -> list[tuple[list[int], list[float]]]:
    """Return the token ids of each document, and the weight of each token in the loss."""
    parts = [[document] if isinstance(document, str) else [m["content"] for m in document] for document in documents]
    flat = [text for texts in parts for text in texts]
    encoded = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    roles = {role: tokenizer.convert_tokens_to_ids(token) for role, token in ROLES.items()}
    rows = []
    for document in documents:
        ids, weights = [bos], [0.0]
        if isinstance(document, str):
            ids += [*next(encoded), eos]
            weights += [1.0] * (len(ids) - 1)
        else:
            for message in document:
                content, answer = next(encoded), message["role"] == "assistant"
                ids += [roles[message["role"]], *content] + [eos] * answer
                weights += [PROMPT_WEIGHT] + [1.0 if answer else PROMPT_WEIGHT] * len(content) + [1.0] * answer
        rows.append((ids, weights))
    return rows


def make_batches(rows: list[tuple[list[int], list[float]]], pad: int, seed: int) -> "list[dict[str, torch.Tensor]]":
    """Put documents of like length together, so that there is little padding and no document sees another.

    Returns:
        Batches of at most BATCH_TOKENS tokens in shuffled order: ids, targets (int64) and weights (float32), each of
        shape (documents, length of the longest). The padding is on the right, where causal attention never looks.
    """
    import torch

    rng = random.Random(seed)
    rows = [row for row in rows if len(row[0]) <= CONTEXT]
    rng.shuffle(rows)
    rows.sort(key=lambda row: len(row[0]))
    batches: list[dict[str, torch.Tensor]] = []
    while rows:
        longest = len(rows[-1][0])
        group = rows[-(BATCH_TOKENS // longest) :]
        del rows[-len(group) :]
        batch = {
            "ids": torch.full((len(group), longest), pad),
            "targets": torch.full((len(group), longest), pad),
            "weights": torch.zeros(len(group), longest),
        }
        for r, (ids, weights) in enumerate(group):
            batch["ids"][r, : len(ids)] = torch.tensor(ids)
            batch["targets"][r, : len(ids) - 1] = torch.tensor(ids[1:])
            batch["weights"][r, : len(ids) - 1] = torch.tensor(weights[1:])
        batches.append(batch)
    rng.shuffle(batches)
    return batches


def build_model(seed: int, tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    """Return the untrained base: a Llama of 2.8 M parameters."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **tokens,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.5, top_p=0.9, max_new_tokens=256, **tokens)
    return model


def weighted_loss(model: "LlamaForCausalLM", batch: "dict[str, torch.Tensor]", answers_only: bool = False) -> Any:
    """Return the weighted sum of the token losses and the sum of the weights."""
    import torch

    device = batch["ids"].device.type
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = model(input_ids=batch["ids"], use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), batch["targets"].flatten(), reduction="none"
    )
    weights = batch["weights"].flatten()
    if answers_only:
        weights = (weights == 1.0).float()
    return (losses * weights).sum(), weights.sum()


def measure(model: "LlamaForCausalLM", held_out: "list[dict[str, torch.Tensor]]") -> float:
    """Return the mean loss of an answer's token on the held-out documents, in nats."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    total = weight = 0.0
    with torch.no_grad():
        for batch in held_out:
            part, weights = weighted_loss(
                model, {key: value.to(device) for key, value in batch.items()}, answers_only=True
            )
            total, weight = total + part.item(), weight + weights.item()
    model.train()
    return total / weight


def answer(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerFast", messages: list[Message]) -> str:
    """Return the model's most likely answer to the chat."""
    import torch

    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = prompt.to(model.device)
    with torch.no_grad():
        output = model.generate(**prompt, do_sample=False, temperature=None, top_p=None, max_new_tokens=256)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


def make_data(
    seed: int, tokens: int, tokenizer: "PreTrainedTokenizerFast"
) -> "tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]":
    """Return the batches of training and held-out documents; none of the latter is among the former."""
    corpus, seen, rows, count = generate_corpus(seed), set(), [], 0
    while count < tokens:
        documents = [next(corpus) for _ in range(5000)]
        seen.update(map(render, documents))
        rows += encode(documents, tokenizer)
        count += sum(len(ids) for ids, _ in rows[-5000:])
    fresh = generate_corpus(seed + 1)
    held_out: list[Document] = []
    while len(held_out) < HELD_OUT_CHATS:
        document = next(fresh)
        if not isinstance(document, str) and render(document) not in seen:
            held_out.append(document)
    print(f"{len(rows):,} documents, {count:,} tokens, {len(held_out):,} held out", flush=True)
    pad = tokenizer.pad_token_id
    return make_batches(rows, pad, seed), make_batches(encode(held_out, tokenizer), pad, seed)


def save_state(folder: Path, model: Any, optimizer: Any, step: int) -> None:
    """Write weights, optimizer moments and step to the folder, as safetensors."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value.detach().clone() for name, value in model.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": torch.as_tensor(value).clone() for name, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "state.new", metadata={"step": str(step)})
    (folder / "state.new").replace(folder / "state.safetensors")


def load_state(folder: Path, model: Any, optimizer: Any) -> int:
    """Load what save_state wrote, if it did; return the step to continue from."""
    from safetensors import safe_open

    path = folder / "state.safetensors"
    if not path.exists():
        return 0
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step = int(file.metadata()["step"])
    parameters = dict(model.named_parameters())
    state = optimizer.state_dict()
    for key, value in tensors.items():
        if key.startswith("model."):
            parameters[key.removeprefix("model.")].data.copy_(value)
        else:
            _, i, name = key.split(".")
            state["state"].setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(state)
    return step


def train(
    seed: int, tokens: int, device: str, compiled: bool, tokenizer: "PreTrainedTokenizerFast", folder: Path
) -> "LlamaForCausalLM":
    """Train the base model, continuing from the checkpoint in the folder if there is one; print how it goes."""
    import torch

    training, held_out = make_data(seed, tokens, tokenizer)
    model = build_model(seed, tokenizer).to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    steps = len(training)
    forward = torch.compile(model, dynamic=True) if compiled else model
    first = load_state(folder, model, optimizer)
    started = time.monotonic()
    for step in range(first, steps):
        warm, done = min(1.0, (step + 1) / WARMUP), step / steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        total, weight = weighted_loss(forward, {key: value.to(device) for key, value in training[step].items()})
        loss = total / weight
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            speed = (step + 1 - first) * BATCH_TOKENS / (time.monotonic() - started)
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {speed:,.0f} tokens/s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(folder, model, optimizer, step + 1)
        if (step + 1) % 1000 == 0 or step + 1 == steps:
            print(f"step {step + 1}/{steps}  held-out loss {measure(model, held_out):.4f}", flush=True)
    return model


def write_model(model: "LlamaForCausalLM", out: Path) -> None:
    """Write config.json, generation_config.json and the weights in bfloat16 to out."""
    import copy

    import torch

    with tempfile.TemporaryDirectory() as folder:
        copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(folder)
        replace_files(Path(folder), out)


def report(seed: int, tokens: int, device: str, out: Path) -> None:
    """Print the held-out loss of the written model and its answers to some questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="float32").to(device).eval()
    _, held_out = make_data(seed, tokens, tokenizer)
    print(f"parameters: {model.num_parameters():,}\nheld-out loss (answer tokens): {measure(model, held_out):.4f}")
    model.eval()
    for question in QUESTIONS:
        print(f"\n> {question}\n{answer(model, tokenizer, [{'role': 'user', 'content': question}])}")


def main() -> None:
    """Read the command line and make what it names."""
    parser = argparse.ArgumentParser(prog="python -m core.playground.make", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="length of the training corpus")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="train twice as fast; needs a C++ compiler")
    parser.add_argument("--out", type=Path, default=HERE, help="gets the folders model/ and data/")
    parser.add_argument("--only", choices=["data", "tokenizer", "model", "report"], help="make one part")
    options = parser.parse_args()
    seed, tokens, out = options.seed, options.tokens, options.out / "model"
    if options.only in (None, "data"):
        samples.write(options.out / "data", seed)
    if options.only in (None, "tokenizer"):
        make_tokenizer(seed, out)
    if options.only == "data" or options.only == "tokenizer":
        return

    import torch
    from transformers import AutoTokenizer

    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.only in (None, "model"):
        tokenizer = AutoTokenizer.from_pretrained(out)
        folder = Path(tempfile.gettempdir(), f"playground-{seed}-{tokens}")
        write_model(train(seed, tokens, device, options.compile, tokenizer, folder), out)
    report(seed, tokens, device, out)


if __name__ == "__main__":
    main()
