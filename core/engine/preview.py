"""What the model would see of a data set: every row as tokens, counted, with an example spelled out."""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import GenerationConfig

from core import dataset, objectives
from core.config import DataSettings
from core.engine.data import Tokens, spell
from core.engine.model import end_token_ids, load_tokenizer
from core.model import check_safety, check_task, locate


def check_data(
    source: str, model: str = "playground", task: str = "chat", settings: DataSettings | None = None
) -> dict[str, Any]:
    """Spell a whole data set with a model's tokenizer, as training would.

    Returns:
        Counts of rows, tokens and labels, the tasks that the first row could be learned by, the Problems of rows that
        cannot be used, and the first row as (text, trained) pieces.

    Raises:
        Problem: when the data or the model cannot be read, or do not suit the task.
    """
    settings = settings or DataSettings(train=source)
    data = dataset.load(source, settings.format, settings.columns)
    folder = locate(model, download=True)
    assert folder is not None
    check_task(task, check_safety(folder), model)
    objective = objectives.find(task).fitted(data.examples)
    tokenizer, config = load_tokenizer(folder, model)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or settings.max_length
    own = (folder / "generation_config.json").exists()
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True) if own else None
    chats = objective.model_kind == "causal_lm"
    tokens = Tokens(tokenizer, min(settings.max_length, limit), end_token_ids(generation, tokenizer), chats=chats)
    spelled = spell(data, range(len(data.examples)), objective, tokens, settings)
    lengths = sorted(row.length for row in spelled.rows)
    first = spelled.rows[0] if spelled.rows else None
    return {
        "format": data.format,
        "reason": data.reason,
        "rows": data.rows,
        "trained_rows": len(spelled.rows),
        "bad_rows": len(data.bad),
        "refused_rows": len(spelled.refused),
        "empty_rows": spelled.empty,
        "cut_rows": spelled.cut,
        "tokens": spelled.tokens,
        "trained_tokens": spelled.targets,
        "longest": lengths[-1] if lengths else 0,
        "median": lengths[len(lengths) // 2] if lengths else 0,
        "tasks": list(objectives.fitting(data.examples[0])),
        "labels": dict(Counter(label for example in data.examples for label in example.labels or ())),
        "problems": [str(problem) for problem in [*data.problems(), *spelled.refused[:10]]],
        "preview": [] if first is None else [(tokenizer.decode([token]), learned) for token, learned in first.shown()],
    }
