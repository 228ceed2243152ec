"""Which layers of a model are meant: words, names, regular expressions, and the part that a layer plays in its block."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import regex
import yaml

from core.problem import Problem

#: A search that takes longer than this on one name is one that runs away.
_PATIENCE_S = 0.5
_NUMBER = regex.compile(r"\.(\d+)\.")

#: The part that a linear layer plays, by its path, over the families that transformers knows.
ROLES = {
    "attention": regex.compile(r"(attn|attention)", regex.IGNORECASE),
    "query": regex.compile(r"(^|\.)(q_proj|query|q_lin|q)$"),
    "key": regex.compile(r"(^|\.)(k_proj|key|k_lin|k)$"),
    "value": regex.compile(r"(^|\.)(v_proj|value|v_lin|v)$"),
    # One layer that makes queries, keys and values at once.
    "query_key_value": regex.compile(r"(^|\.)(qkv_proj|c_attn|query_key_value|Wqkv)$"),
    "attention_out": regex.compile(
        r"(^|\.)(o_proj|out_proj|out_lin|attn\.c_proj|attention\.dense|attention\.output\.dense|\w*Attention\.o)$"
    ),
    "mlp_in": regex.compile(
        r"(^|\.)(gate_proj|up_proj|gate_up_proj|c_fc|dense_h_to_4h|fc1|fc_in|lin1|intermediate\.dense|wi|wi_0|wi_1|w1|w3)$"
    ),
    "mlp_out": regex.compile(
        r"(^|\.)(down_proj|mlp\.c_proj|dense_4h_to_h|fc2|fc_out|lin2|(?<!attention\.)output\.dense|wo|w2)$"
    ),
}
#: Words that stand for layers, and the roles behind them.
WORDS: dict[str, tuple[str, ...]] = {
    "attention": ("attention",),
    "mlp": ("mlp_in", "mlp_out"),
    "query-value": ("query", "value", "query_key_value"),
    "query-key-value": ("query", "key", "value", "query_key_value"),
    "key-value-mlp-out": ("key", "value", "query_key_value", "mlp_out"),
    "attention-out": ("attention_out",),
    "mlp-in": ("mlp_in",),
    "mlp-out": ("mlp_out",),
}
#: Where the heads of writers, classifiers and question answerers stand, over all families: the first part of the path.
HEADS = frozenset(
    {"score", "classifier", "qa_outputs", "pre_classifier", "lm_head", "embed_out", "classification_head"}
)


def play(layer: str, *roles: str) -> bool:
    """Whether a layer plays one of these roles."""
    return any(ROLES[role].search(layer) for role in roles)


def number_of_block(path: str) -> int | None:
    """Which block a path lies in: its first number, since experts further down have numbers too."""
    found = _NUMBER.search(path)
    return int(found.group(1)) if found else None


def match_targets(
    targets: str | list[str],
    layers: Iterable[str],
    *,
    named_only: Iterable[str] = (),
    exclude: str | list[str] | None = None,
    blocks: Collection[int] | None = None,
    model_type: str = "",
    table: str = "lora",
    all_names: bool = True,
) -> list[str]:
    """The layers that `targets` means (full module paths).

    A list takes a layer whose path is the name or ends with `.name`; a string is `all-linear`, one of `WORDS`,
    `peft-default`, or a regular expression that must match the whole path (PEFT's rules).

    Args:
        layers: every linear layer, the output head left out.
        named_only: layers that no word means, but a name or an expression may (embeddings, the output head).
        exclude: names, or a regular expression, of layers that are left out whatever `targets` says.
        blocks: only layers of these blocks.
        model_type: for `peft-default`, whose table of that name is read by it.
        all_names: whether every name of a list must be there; adapters of others name layers that a model may not have.

    Raises:
        Problem: when an expression does not compile or runs away, or nothing matches; it lists what there is.
    """
    layers, named_only = list(layers), list(named_only)
    everything = layers + [path for path in named_only if path not in layers]
    if not targets:
        raise Problem(
            "No target layers are named.",
            "The linear layers of this model are {names}.",
            "Choose among them, or take all-linear or attention.",
            field="method.targets",
            names=", ".join(sorted({layer.rsplit(".", 1)[-1] for layer in layers})),
        )
    if targets == "peft-default":
        targets = peft_default(model_type, table)
    if targets == "all-linear":
        chosen = layers
    elif isinstance(targets, str) and targets in WORDS:
        chosen = [layer for layer in layers if play(layer, *WORDS[targets])]
    else:
        chosen = _match(targets, everything, "method.targets")
    missing: list[str] = []
    if all_names and not isinstance(targets, str):
        missing = [name for name in targets if not any(ends_with(layer, [name]) for layer in everything)]
    if missing or not chosen:
        names = sorted({layer.rsplit(".", 1)[-1] for layer in layers})
        raise Problem(
            "No layer of this model is called {targets}.",
            "Its linear layers are {names}.",
            "Choose among them, or take all-linear or attention.",
            field="method.targets",
            targets=", ".join(missing) or targets,
            names=", ".join(names),
        )
    left = set(_match(exclude, everything, "method.exclude")) if exclude else set()
    kept = [
        layer for layer in chosen if layer not in left and (blocks is None or number_of_block(layer) in set(blocks))
    ]
    if not kept:
        raise Problem(
            "Nothing is left of the target layers.",
            "They are {count} layers in {blocks} blocks before some are left out.",
            "Exclude fewer, or choose other blocks.",
            field="method.exclude" if left else "method.blocks",
            count=len(chosen),
            blocks=len({number_of_block(layer) for layer in chosen}),
        )
    return kept


def _match(targets: str | list[str], layers: list[str], field: str) -> list[str]:
    if not isinstance(targets, str):
        return [layer for layer in layers if ends_with(layer, targets)]
    chosen = [layer for layer in layers if full_match(targets, layer, field)]
    # A single plain name typed where a list is meant.
    return chosen or [layer for layer in layers if ends_with(layer, [targets])]


def full_match(expression: str, text: str, field: str) -> bool:
    """Whether the whole text matches.

    Raises:
        Problem: when the expression is none, or takes for ever.
    """
    try:
        return regex.fullmatch(expression, text, timeout=_PATIENCE_S) is not None
    except regex.error as error:
        raise Problem(
            "The target {targets} is no valid regular expression.",
            "{error}.",
            "Mend it, or give names such as q_proj, v_proj.",
            field=field,
            targets=expression,
            error=error,
        ) from None
    except TimeoutError:
        raise Problem(
            "The regular expression {targets} takes for ever.",
            "On {layer} it had found nothing after {seconds} s.",
            "Avoid repetitions of repetitions such as (a+)+, or give names.",
            field=field,
            targets=expression,
            layer=text,
            seconds=_PATIENCE_S,
        ) from None


def ends_with(layer: str, names: Iterable[str]) -> bool:
    """Whether the path is one of the names, or ends with a dot and one of them."""
    return any(layer == name or layer.endswith("." + name) for name in names)


def lies_in(path: str, modules: Iterable[str]) -> bool:
    """Whether the path is one of the modules of these names, or lies in one."""
    return any(f".{name}." in f".{path}." for name in modules)


def read_blocks(text: str | None) -> set[int] | None:
    """`0-3, 8` as the numbers of blocks; None for all of them.

    Raises:
        Problem: when it is no such list.
    """
    if not text or not text.strip():
        return None
    blocks: set[int] = set()
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first) > 4 or len(last) > 4:
            raise Problem(
                "{text} names no blocks.",
                to_do="Write numbers from 0 on, such as 0-3, 8.",
                field="method.blocks",
                text=repr(text),
            )
        blocks |= set(range(int(first), int(last or first) + 1))
    return blocks


@cache
def _table() -> dict[str, dict[str, Any]]:
    return yaml.safe_load((Path(__file__).parent / "targets.yaml").read_text(encoding="utf-8"))


def peft_default(model_type: str, table: str = "lora") -> str | list[str]:
    """The layers that PEFT takes when nobody names any.

    Raises:
        Problem: when PEFT has no default for this family either.
    """
    known = _table()[table]
    if model_type not in known:
        raise Problem(
            "PEFT has no default layers for {model_type}.",
            "It has some for {known}.",
            "Take all-linear, or name the layers.",
            field="method.targets",
            model_type=model_type or "this model",
            known=", ".join(known),
        )
    return known[model_type]
