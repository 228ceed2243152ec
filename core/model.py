"""A base model as files: where it lies, what its headers say, and whether it is safe to load. No torch."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from core import objectives
from core.problem import Problem

PLAYGROUND = "playground"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"}
#: Families that store the weights of their linear layers as (in, out): transformers' Conv1D.
_CONV1D = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_NOT_LINEAR = re.compile(
    r"(embed|wte|wpe|shared|relative_attention_bias|lm_head|score|classifier|classification_head|qa_outputs|norm|ln_)",
    re.IGNORECASE,
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|shared)\.weight$")
_EXPERT = re.compile(
    r"(?P<owner>.*\.experts)\.(?P<number>\d+)\.(?P<layer>w1|w2|w3|gate_proj|up_proj|down_proj)\.weight"
)
_KINDS = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq": "SEQ_TO_SEQ_CAUSAL_LM",
    "sequence_classification": "SEQUENCE_CLASSIFICATION",
    "question_answering": "QUESTION_ANSWERING",
}
"""What a task calls the kind of model that it needs -> what transformers calls it."""


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say of it."""

    folder: Path
    model_type: str
    parameters: int
    max_length: int | None
    chat_template: bool
    linear_layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    blocks: int = 0
    names: dict[str, tuple[int, ...]] = field(default_factory=dict)
    hidden_size: int = 0
    #: Numbers that one token leaves in the attention of all blocks: blocks x 2 x key heads x head size.
    prefix_width: int = 0
    #: Which tasks it can do, the likeliest first.
    tasks: tuple[str, ...] = ()

    @property
    def embedding(self) -> str | None:
        """The weight that the input's tokens are looked up in."""
        return next((name for name in self.names if _EMBEDDING.search(name)), None)


def locate(name: str, revision: str | None = None, *, download: bool = False) -> Path | None:
    """The folder with the model's files.

    Args:
        name: `playground`, a local folder, or a hub id.
        download: fetch a hub model that is not here yet; otherwise the answer for it is None.

    Raises:
        Problem: when there is no such folder, or the hub does not give it.
    """
    if name == PLAYGROUND:
        from core import playground

        return playground.MODEL
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise Problem(
                "The folder {path} holds no model.",
                "It has no config.json.",
                "Choose the folder with config.json, the tokenizer and .safetensors files.",
                field="model.name",
                path=path,
            )
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise Problem(
            "There is no folder {path}.",
            to_do="Check the path, or give a hub id such as organisation/model.",
            field="model.name",
            path=path,
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, local_files_only=not download))
    except LocalEntryNotFoundError:
        if not download:
            return None
        raise Problem(
            "The model {name} is not on this machine and the hub cannot be reached.",
            to_do="Go online, or give a local folder. `playground` is always here.",
            field="model.name",
            name=name,
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise Problem(
            "The hub does not give the model {name}.",
            "{error}",
            "Check the id; a gated model needs `hf auth login` first.",
            field="model.name",
            name=name,
            error=str(error).splitlines()[0],
        ) from None


def check_safety(folder: Path) -> dict[str, Any]:
    """Refuse what would run foreign code: pickled weights and code of the model's own. Returns config.json.

    Raises:
        Problem: with everything that is wrong.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problem(
            "The model's config.json cannot be read.",
            "{error}",
            "Fetch the model again.",
            field="model.name",
            error=error,
        ) from None
    if not isinstance(config, dict):
        raise Problem(
            "The model's config.json cannot be read.",
            "{error}",
            "Fetch the model again.",
            field="model.name",
            error="It is no object.",
        )
    problems = []
    weights = list(folder.glob("*.safetensors"))
    pickles = sorted(
        path.name for path in folder.iterdir() if path.suffix.lower() in _PICKLES and path.name != "training_args.bin"
    )
    if not weights:
        if pickles:
            problems.append(
                Problem(
                    "The model's weights are pickled, and unpickling runs foreign code.",
                    "There is {files}.",
                    "Convert it to safetensors, or choose a model that has them.",
                    field="model.name",
                    files=", ".join(pickles),
                )
            )
        else:
            problems.append(
                Problem(
                    "The folder {folder} has no .safetensors file.",
                    to_do="Fetch the model's weights.",
                    field="model.name",
                    folder=folder,
                )
            )
    if config.get("auto_map"):
        problems.append(
            Problem(
                "The model brings code of its own, which is never run here.",
                to_do="Choose a model that transformers itself knows.",
                field="model.name",
            )
        )
    Problem.raise_all(problems)
    return config


def describe(folder: Path) -> ModelFacts:
    """What config.json and the headers of the safetensors files say; no weight is read."""
    from safetensors import SafetensorError, safe_open

    config = check_safety(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise Problem(
                "The file {file} is damaged.",
                "{error}.",
                "Fetch the model again.",
                field="model.name",
                file=path.name,
                error=error,
            ) from None
    shapes = _stack_experts(shapes)
    # A router stands beside its experts, and is no linear layer either.
    beside = {name.rsplit(".", 2)[0] for name, shape in shapes.items() if ".experts." in name and len(shape) == 3}
    routers = {f"{path}.{name}.weight" for path in beside for name in ("gate", "router")}
    turned = config.get("model_type") in _CONV1D
    linear = {
        name.removesuffix(".weight"): (shape[1], shape[0]) if turned else (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and not _NOT_LINEAR.search(name) and name not in routers
    }
    text = config.get("text_config") or config
    blocks = [int(match.group(1)) for name in shapes if (match := re.search(r"\.(\d+)\.", name))]
    template = (folder / "chat_template.jinja").exists()
    if not template:
        try:
            template = bool(
                json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
            )
        except (OSError, ValueError):
            template = False
    return ModelFacts(
        folder=folder,
        model_type=str(config.get("model_type", "")),
        parameters=sum(_product(shape) for shape in shapes.values()),
        max_length=text.get("max_position_embeddings") or text.get("n_positions"),
        chat_template=template,
        linear_layers=linear,
        blocks=max(blocks, default=-1) + 1,
        names=shapes,
        tasks=possible_tasks(config),
        **_measure(text),
    )


def _stack_experts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes as they are once the model is loaded, when the weights of single experts have become stacks."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        name = name.replace(".block_sparse_moe.", ".mlp.")  # what Mixtral's files call it
        expert = _EXPERT.fullmatch(name)
        if expert is None:
            found[name] = shape
            continue
        out, inn = shape
        down = expert["layer"] in ("w2", "down_proj")
        stack = f"{expert['owner']}.{'down_proj' if down else 'gate_up_proj'}"
        experts = max(int(expert["number"]) + 1, found.get(stack, (0,))[0])
        found[stack] = (experts, out if down else 2 * out, inn)
    return found


def possible_tasks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tasks that a model with this config.json can do, the likeliest first; none when transformers knows no such
    model."""
    kinds = model_kinds(str(config.get("model_type", "")), tuple(map(str, config.get("architectures") or ())))
    return tuple(name for name, task in objectives.catalogue().items() if task.model_kind in kinds)


def model_kinds(model_type: str, architectures: tuple[str, ...] = ()) -> set[str]:
    """Which heads (causal_lm, seq2seq, sequence_classification, question_answering) fit a model of that type."""
    known = _read_types()
    kinds = {kind for kind, name in _KINDS.items() if model_type in known.get(name, ())}
    # An encoder such as BERT can be built to go on with a text; only one that was trained so can do it.
    writes = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    if (model_type in known.get("MASKED_LM", ()) or "seq2seq" in kinds) and not writes:
        kinds.discard("causal_lm")
    return kinds


def check_task(task: str, config: Mapping[str, Any], name: str) -> None:
    """Raise a Problem when a model with this config.json cannot do that task; `name` is what the user calls it."""
    tasks = possible_tasks(config)
    if task not in tasks:
        raise Problem(
            "The model {name} cannot do the task {task}.",
            "It can do {tasks}." if tasks else "Its type, {kind}, is not known here.",
            "Choose one of these, or another model." if tasks else "Choose another model.",
            field="task",
            name=name,
            task=task,
            tasks=", ".join(tasks),
            kind=str(config.get("model_type")),
        )


@cache
def _read_types() -> dict[str, frozenset[str]]:
    """transformers' own tables of model types by head, read as text: importing them would load torch."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return {}
    path = Path(spec.submodule_search_locations[0]) / "models" / "auto" / "modeling_auto.py"
    found: dict[str, frozenset[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        table = re.fullmatch(r"MODEL_FOR_(\w+)_MAPPING_NAMES", node.targets[0].id)
        if table and isinstance(node.value, ast.Call) and node.value.args and isinstance(node.value.args[0], ast.List):
            pairs = [pair.elts[0] for pair in node.value.args[0].elts if isinstance(pair, ast.Tuple)]
            found[table.group(1)] = frozenset(str(key.value) for key in pairs if isinstance(key, ast.Constant))
    return found


def _measure(config: dict[str, Any]) -> dict[str, int]:
    """The widths of a prompt, under the names that the families give them."""

    def number(*names: str) -> int:
        return next((int(config[name]) for name in names if config.get(name)), 0)

    hidden, heads = (
        number("hidden_size", "n_embd", "d_model", "dim"),
        number("num_attention_heads", "n_head", "num_heads", "n_heads"),
    )
    size = number("head_dim", "d_kv") or (hidden // heads if heads else 0)
    blocks = number("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    return {
        "hidden_size": number("word_embed_proj_dim") or hidden,
        "prefix_width": blocks * 2 * (number("num_key_value_heads") or heads) * size,
    }


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
