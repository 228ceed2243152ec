"""Rows of tokens joined into batches, and how the model's logits at what is learned are had."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from core.objectives import AnswerRow, LabelRow, Row, SpanRow


@dataclass(frozen=True)
class Batch:
    """Rows as tensors.

    `where` (bins, length) marks what `targets` are about: the positions whose *next* token is a target, with `targets`
    (n,) those tokens in reading order; of an encoder and decoder, the decoder's positions that write a target. Where
    one label or one place is learned of each row, `targets` is (rows,), (rows, labels) or (rows, 2), and `where` marks
    the positions that an answer can have.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    where: torch.Tensor
    targets: torch.Tensor
    segments: torch.Tensor | None = None
    answers: torch.Tensor | None = None  # (rows, length) for the decoder, -100 beyond its end

    def to(self, device: torch.device) -> Batch:
        tensors = (getattr(self, one.name) for one in fields(self))
        return Batch(*(None if tensor is None else tensor.to(device) for tensor in tensors))  # type: ignore[arg-type]


def collate(rows: Sequence[Row], pad: int, *, pack: int | None, before: Sequence[int] = ()) -> Batch:
    """Join rows into a batch.

    Args:
        pad: the token that fills up.
        before: virtual tokens that stand before every row, of which none is learned.
        pack: longest sequence to join rows into, or None to give each row a sequence of its own. Joined rows never see
            each other: their positions start again at 0, from which transformers makes the block mask.
    """
    if isinstance(rows[0], LabelRow | SpanRow | AnswerRow):
        return _collate_apart(rows, pad, before)
    if before:
        # A row's own first token is none that is learned, with or without something before it.
        unlearned = [False] * (len(before) + 1)
        rows = [Row([*before, *row.ids], [*unlearned, *row.trained[1:]]) for row in rows]
    bins: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)) if pack else rows:
        room = next((b for b in bins if sum(len(other.ids) for other in b) + len(row.ids) <= (pack or 0)), None)
        if pack and room is not None:
            room.append(row)
        else:
            bins.append([row])
    length = max(sum(len(row.ids) for row in b) for b in bins)
    ids = torch.full((len(bins), length), pad)
    positions = torch.zeros((len(bins), length), dtype=torch.long)
    mask = torch.zeros((len(bins), length), dtype=torch.long)
    where = torch.zeros((len(bins), length), dtype=torch.bool)
    targets = []
    for line, rows_of_bin in enumerate(bins):
        start = 0
        for row in rows_of_bin:
            end = start + len(row.ids)
            ids[line, start:end] = torch.tensor([*row.ids])
            positions[line, start:end] = torch.arange(len(row.ids))
            mask[line, start:end] = 1
            learned = torch.tensor([*row.trained[1:]], dtype=torch.bool)
            where[line, start : end - 1] = learned
            targets.append(ids[line, start + 1 : end][learned])
            start = end
        positions[line, start:] = torch.arange(length - start)
    return Batch(ids, positions, None if pack else mask, where, torch.cat(targets))


def _collate_apart(rows: Sequence[Row], pad: int, before: Sequence[int]) -> Batch:
    """Rows that teach something else than their own next tokens: each has a line of its own. `where` and `targets` are
    about the row's own tokens, whatever stands before them."""
    ids = _pad([[*before, *row.ids] for row in rows], pad)
    mask = _pad([[1] * (len(before) + len(row.ids)) for row in rows], 0)
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    segments = None
    if rows[0].segments is not None:
        segments = _pad([[0] * len(before) + (row.segments or []) for row in rows], 0)
    where, answers = mask[:, len(before) :].bool(), None
    if isinstance(rows[0], SpanRow):
        targets = torch.tensor([row.span for row in rows if isinstance(row, SpanRow)])
        places = [[place is not None for place in row.places] for row in rows if isinstance(row, SpanRow)]
        where = _pad(places, False)
        where[:, 0] = True
    elif isinstance(rows[0], AnswerRow):
        answers = _pad([row.answer for row in rows if isinstance(row, AnswerRow)], -100)
        where = answers != -100
        targets = answers[where]
    else:
        targets = torch.tensor([row.label for row in rows if isinstance(row, LabelRow)])
    return Batch(ids, positions, mask, where, targets, segments, answers)


def _pad(lines: Sequence[Sequence[Any]], value: Any) -> torch.Tensor:
    """Lines of different lengths as one tensor, filled up on the right."""
    return nn.utils.rnn.pad_sequence([torch.tensor(line) for line in lines], True, value)


class Reader:
    """How logits at the targets are had from this model, found by trying and not by its name.

    Packing is used only where two joined rows give what each gives alone, and the head is computed at the targets only
    where that gives what computing it everywhere gives.

    Args:
        kind: which head the model has, as an objective names it; only causal_lm is ever packed.
        before: virtual tokens that stand before every row; `collate` has to be told of them.
    """

    def __init__(self, model: PreTrainedModel, *, packing: bool, kind: str = "causal_lm", before: Sequence[int] = ()):
        self.selects = False
        self.packs = False
        self.kind = kind
        self.before = before
        names = inspect.signature(model.forward).parameters
        # All others count positions themselves, and not all of them from 0.
        self.takes_positions = kind == "causal_lm" and "position_ids" in names
        self.takes_segments = "token_type_ids" in names
        self.caches = "use_cache" in names
        if kind == "causal_lm":
            self._probe(model, names, packing)

    def behind(self, before: Sequence[int]) -> Reader:
        """The same for rows behind these virtual tokens."""
        reader = copy.copy(self)
        reader.before = before
        return reader

    def _probe(self, model: PreTrainedModel, names: Mapping[str, Any], packing: bool) -> None:
        embedding = model.get_input_embeddings()
        vocabulary = getattr(embedding, "base", embedding).weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randint(vocabulary, (size,), generator=generator).tolist() for size in (5, 7))
        rows = [Row(first, [True] * 5), Row(second, [True] * 7)]
        was_training = model.training
        model.eval()
        with torch.no_grad():
            separate = collate(rows, 0, pack=None, before=self.before)
            apart = self.logits(model, separate.to(model.device))
            if "logits_to_keep" in names:
                self.selects = self._agrees(model, separate, apart, selects=True)
            if packing and self.takes_positions:
                # collate puts the longer row first
                joined = collate(rows, 0, pack=12 + 2 * len(self.before), before=self.before)
                self.packs = self._agrees(model, joined, torch.cat([apart[4:], apart[:4]]), selects=self.selects)
        model.train(was_training)

    def _agrees(self, model: PreTrainedModel, batch: Batch, expected: torch.Tensor, *, selects: bool) -> bool:
        before, self.selects = self.selects, selects
        try:
            got = self.logits(model, batch.to(model.device))
        except (RuntimeError, IndexError, TypeError, ValueError):
            return False
        finally:
            self.selects = before
        tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2
        if got.shape != expected.shape:
            return False
        return bool((got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1))

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """What the objective's loss takes: logits (n, vocabulary) at the targets of a model that writes, (rows, labels)
        of one that classifies, (rows, length, 2) of one that marks answers, minus infinity where none can be."""
        more: dict[str, Any] = {}
        if self.takes_positions:
            more["position_ids"] = batch.position_ids
        if self.takes_segments and batch.segments is not None:
            more["token_type_ids"] = batch.segments
        if self.caches:
            more["use_cache"] = False
        if self.selects:
            more["logits_to_keep"] = batch.where
        if batch.answers is not None:
            more["decoder_input_ids"] = start_decoder(model, batch.answers)
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **more)
        if self.kind == "question_answering":
            both = torch.stack([output.start_logits, output.end_logits], -1).float()[:, len(self.before) :]
            return both.masked_fill(~batch.where[..., None], -torch.inf)
        logits = output.logits
        return logits if logits.ndim == 2 else logits[batch.where]


def start_decoder(model: Any, answers: torch.Tensor) -> torch.Tensor:
    """What the decoder reads to write these answers: the same, one place later, as the model itself would shift them."""
    inner = getattr(model, "module", model)  # several devices wrap the model
    return inner.prepare_decoder_input_ids_from_labels(labels=answers)
