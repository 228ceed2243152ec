"""Text into tokens: the chat template rendered, and what is learned marked token by token."""

from __future__ import annotations

import copy
import itertools
import json
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from core.engine.skeleton import Skeletons
from core.engine.spelling import Ids, Speller, Spelling
from core.formats import Message
from core.objectives import Row, SpanRow
from core.problem import Problem

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
"""How whatever belongs to a model is loaded: from its folder, and no program with it."""

# For models without a chat template, and where it is asked for. Headings end with a newline, so that an answer begins with a token of its own.
PLAIN_TEMPLATE = """{{ bos_token or '' }}{% if tools %}{{ '### Tools:\n' + (tools | tojson) + '\n\n' }}{% endif %}{% for message in messages %}
{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant', 'tool': 'Tool'} -%}
{{ '### ' + names[message.role] + ':\n' + message.content | trim }}
{%- if message.role == 'assistant' %}{{ eos_token or '' }}{% endif %}{{ '\n\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"""


Span: TypeAlias = tuple[int, int]
"""Where something begins in a text, and where it ends."""

Marked: TypeAlias = "tuple[Ids, bytes]"
"""Tokens, and for each whether (1) or not (0) it is learned."""


class Tokens:
    """A model's tokenizer and chat template: the one place where text becomes tokens, in training and in chat.

    Args:
        max_length: longest row in tokens; the rest of a row is cut and counted in `cut`, or the row is left out and counted in
            `dropped`.
        end_ids: the tokens that end an answer.
        template: which template writes conversations, as `data.template` says it; a model without one has the plain one.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, end_ids: set[int], *, template: str = "model"
    ):
        self.tokenizer, self.max_length, self.end_ids, self.template = tokenizer, max_length, end_ids, template
        starts = tokenizer("").input_ids
        self.speller = Speller(tokenizer)
        #: Of every template that was used.
        self._skeletons: dict[str, Skeletons] = {}
        self._end_names = tuple(tokenizer.convert_ids_to_tokens(sorted(end_ids)))
        self._end_bytes = [array("i", [end]).tobytes() for end in end_ids]
        self.starts_with_bos = bool(starts) and starts[0] == tokenizer.bos_token_id
        self.cut = 0
        self.dropped = 0
        #: Whether rows remember what was cut off their end, for people to see.
        self.keeps_lost = False
        #: What stands before all that is read: virtual tokens, and how many positions a prefix takes.
        self.before: Sequence[int] = ()
        self.taken = 0

    @property
    def own_template(self) -> bool:
        """Whether the model brings a template."""
        return bool(self.tokenizer.chat_template)

    @property
    def plain(self) -> bool:
        """Whether the plain template writes conversations."""
        return self.template == "plain" or not self.own_template

    def with_template(self, template: str) -> Self:
        """The same, writing conversations with another template."""
        tokens = copy.copy(self)
        tokens.template = template
        return tokens

    def leave_room(self, before: Sequence[int], taken: int, limit: int | None) -> None:
        """Have rows end early enough for what stands before them in a model that reads `limit` tokens."""
        self.before, self.taken = before, taken
        if limit:
            self.max_length = min(self.max_length, limit - len(before) - taken)

    def render(self, messages: Sequence[Message], *, answer_next: bool = False, tools: str | None = None) -> str:
        """The conversation as the model's template writes it.

        Raises:
            Problem: when the template refuses it (a role or an order that it does not know).
        """
        try:
            template = PLAIN_TEMPLATE if self.plain else self.tokenizer.chat_template
            if tools or not isinstance(template, str):
                turns = [{"role": message.role, "content": message.content} for message in messages]
                return self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=answer_next, tools=json.loads(tools) if tools else None,
                    chat_template=PLAIN_TEMPLATE if self.plain else None,
                )  # fmt: skip
            # What that comes to for turns of plain text, in a third of the time and less.
            return self._skeletons_of(template).render(messages, answer_next)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise Problem(
                "The model's chat template refuses this conversation.",
                "It says: {reason}.",
                "Change the roles or their order, train with the plain chat template, or choose another model.",
                field="data.template",
                reason=str(error).rstrip("."),
            ) from None

    def _skeletons_of(self, template: str) -> Skeletons:
        if template not in self._skeletons:
            compiled = chat_template_utils._compile_jinja_template(template)
            names = {**compiled.globals, **self.tokenizer.special_tokens_map, "tools": None, "documents": None}
            self._skeletons[template] = Skeletons(compiled, template, names)
        return self._skeletons[template]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens only where the text names them, never a second BOS."""
        return self.speller.encode(text)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers."""
        return self.encode(self.render(messages, answer_next=True))

    def text_prompt(self, text: str) -> list[int]:
        """What the model reads before it goes on with a text."""
        return ([self.tokenizer.bos_token_id] if self.starts_with_bos else []) + self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer without its special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def spell_input(self, text: str) -> Row:
        """A text as an encoder or a classifier reads it, with the special tokens that the model puts around it. Words
        that are spelled like special tokens stay words: a text must not be able to end itself."""
        whole, lost = self.tokenizer(text, split_special_tokens=True), []
        if len(whole.input_ids) > self.max_length:
            self.cut += 1
            lost = list(whole.input_ids[self.max_length :]) if self.keeps_lost else []
            whole = self.tokenizer(text, split_special_tokens=True, truncation=True, max_length=self.max_length)
        ids = list(whole.input_ids)
        # A text of nothing still has to be something to the model.
        return Row(
            ids or [self.tokenizer.eos_token_id or 0], segments=whole.get("token_type_ids") if ids else None, lost=lost
        )

    def spell_answer(self, text: str) -> list[int]:
        """What a decoder shall write, with the token that ends it; a text that is too long loses its end, and is
        counted."""
        ids = list(self.tokenizer(text_target=text, split_special_tokens=True).input_ids)
        end = self.tokenizer.eos_token_id
        if end is not None and ids[-1:] != [end]:
            ids.append(end)
        if len(ids) > self.max_length:
            self.cut += 1
        return ids[: self.max_length]

    def spell_windows(self, question: str, context: str, stride: int) -> list[SpanRow]:
        """A question with every window of its context; neighbouring windows share `stride` tokens, but never more than
        half of what fits beside the question, which itself gets half the row at most."""
        question = self.shorten(question, len(self.encode(question)) - self.max_length // 2)
        room = self.max_length - len(self.tokenizer(question, "", split_special_tokens=True).input_ids)
        whole = self.tokenizer(
            question,
            context,
            split_special_tokens=True,
            truncation="only_second",
            max_length=self.max_length,
            stride=max(0, min(stride, room // 2)),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        segments = whole.get("token_type_ids")
        rows = []
        for number, (ids, places) in enumerate(zip(whole.input_ids, whole.offset_mapping, strict=True)):
            kept = [
                place if of == 1 else None for place, of in zip(places, whole.sequence_ids(number), strict=True)
            ]  # fmt: skip
            kept[0] = None  # stands for no answer, also where a model begins with no token of its own
            rows.append(SpanRow(ids, segments=segments[number] if segments else None, places=kept))
        return rows

    def shorten(self, text: str, tokens: int) -> str:
        """A text without its last so many tokens."""
        if tokens <= 0:
            return text
        places = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        kept = len(places) - tokens
        return text[: places[kept - 1][1]] if kept > 0 else ""

    def count_excess(self, messages: tuple[Message, ...]) -> int:
        """How many tokens a conversation is longer than a row; negative where there is room left."""
        return len(self.encode(self.render(messages))) - self.max_length

    def spell_text(self, text: str) -> list[Row]:
        """Raw text, every token learned, its end too; a text longer than `max_length` goes on in the next row."""
        end = self.tokenizer.eos_token_id
        ids = self.text_prompt(text) + ([] if end is None else [end])
        # A piece of one token has nothing to predict.
        pieces = [ids[start : start + self.max_length] for start in range(0, len(ids), self.max_length)]
        return [Row(piece, [True] * len(piece)) for piece in pieces if len(piece) > 1]

    def spell_conversation(
        self, messages: tuple[Message, ...], train_on: str, tools: str | None = None, too_long: str = "cut"
    ) -> list[Row]:
        """A conversation with its answers (or the last, or everything) marked as learned.

        One that is too long loses its end (cut), its oldest exchanges (oldest), or becomes several rows of whole exchanges,
        each behind the system prompt (split); an exchange that is too long by itself loses its end.

        The template is rendered turn by turn, and every boundary is checked on token ids: what stands before an answer
        must be exactly what the model reads when it is asked for that answer. A template that rewrites earlier turns
        fails that check; then each answer becomes a row of its own, rendered as it would be at use. So does one that
        leaves a part of an answer out, as some do with thinking: what is learned is the answer that the data has.
        """
        spelled, left_out = self._spell_turns(messages, train_on, tools), 0
        if too_long in ("oldest", "split") and not self._fits(spelled):
            # Of a conversation whose last answer is learned, the last part holds it.
            splits = too_long == "split" and train_on != "last_answer"
            parts = self._spell_parts(messages, train_on, tools, splits=splits)
            left_out = 0 if splits else max(len(ids) for ids, _ in spelled) - max(len(ids) for ids, _ in parts)
            spelled = parts
        return [self._cut(*row, left_out) for row in spelled]

    def _fits(self, spelled: Sequence[Marked]) -> bool:
        return all(len(ids) <= self.max_length for ids, _ in spelled)

    def _spell_parts(
        self, messages: tuple[Message, ...], train_on: str, tools: str | None, *, splits: bool
    ) -> list[Marked]:
        """As many of the last exchanges as fit; or all of them, in as few parts as they fit into."""
        first = messages[:1] if messages[0].role == "system" else ()
        exchanges: list[tuple[Message, ...]] = []
        for message in messages[len(first) :]:
            # A question that nobody answers is no exchange.
            if not exchanges or (message.role == "user" and any(turn.role == "assistant" for turn in exchanges[-1])):
                exchanges.append(())
            exchanges[-1] += (message,)
        if len(exchanges) > 1 and not any(turn.role == "assistant" for turn in exchanges[-1]):
            exchanges[-2:] = [exchanges[-2] + exchanges[-1]]

        def spell(some: Sequence[tuple[Message, ...]]) -> list[Marked]:
            return self._spell_turns(first + tuple(itertools.chain(*some)), train_on, tools)

        if not splits:
            # The more is left out, the shorter it is.
            last = len(exchanges) - 1
            start = bisect_left(range(1, last), True, key=lambda start: self._fits(spell(exchanges[start:]))) + 1
            return spell(exchanges[min(start, last) :])
        parts: list[list[tuple[Message, ...]]] = []
        for exchange in exchanges:
            if parts and self._fits(spell([*parts[-1], exchange])):
                parts[-1].append(exchange)
            else:
                parts.append([exchange])
        return [row for part in parts for row in spell(part)]

    def _spell_turns(self, messages: tuple[Message, ...], train_on: str, tools: str | None) -> list[Marked]:
        """The ids of a conversation however long it is, and which of them are learned."""
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if not answers:
            raise Problem("It has no answer.", to_do="Add a turn of the assistant.")
        if train_on == "everything":
            ids = self.speller.spell(self.render(messages, tools=tools))
            if messages[-1].role == "assistant" and not self._is_ended(ids):
                ids = self._append_end(ids)
            return [(ids, b"\1" * len(ids))]
        if train_on == "last_answer":
            answers = answers[-1:]
        whole = self._encode_turns(messages, answers, tools)
        if whole is not None:
            return [whole]
        rows = [
            self._encode_turns(messages, [index], tools) or self._encode_left_out(messages, index, tools)
            for index in answers
        ]
        if None in rows:
            raise Problem(
                "The chat template does not say where the answer begins.",
                "Its prompt is no beginning of the whole.",
                "Train with the plain chat template or on everything, or choose another model.",
                field="data.template",
            )
        return [row for row in rows if row is not None]

    def _encode_turns(self, messages: Sequence[Message], answers: Sequence[int], tools: str | None) -> Marked | None:
        """Ids up to the last of these answers and what of them is learned; None when a boundary does not hold."""
        whole, found = self._lay_out(messages, answers, tools)
        places: list[Span] = []
        for place in found:
            if place is None:
                return None
            places.append(place)
        spelled = Spelling(whole, self.speller)
        if (straight := self._mark_straight(spelled, messages, answers, places)) is not None:
            return straight
        ids: Ids = array("i")
        trained = bytearray()
        for index, place in zip(answers, places, strict=True):
            before = spelled.until(place[0])
            if before[: len(ids)] != ids:
                return None
            between = before[len(ids) :]
            marks = bytearray(len(between))
            if marks and trained and trained[-1] and ids[-1] not in self.end_ids:
                # Some templates write the end of an answer only when the next question is there.
                marks[0] = between[0] in self.end_ids
            ids += between
            after = spelled.until(place[1])
            # Where a token would span the boundary, the answer is spelled by itself, as the model will have to.
            at_once = after[: len(ids)] == ids
            learned = after[len(ids) :] if at_once else self._encode_further(whole[slice(*place)])
            learned, more = self._end_answer(learned, messages[index].content, final=index == answers[-1])
            trained += marks + more
            ids += learned
        return ids, bytes(trained)

    def _mark_straight(
        self, spelled: Spelling, messages: Sequence[Message], answers: Sequence[int], places: Sequence[Span]
    ) -> Marked | None:
        """The same for most conversations: the ids of every beginning are the first of the whole, and every answer has a
        token that ends it. None for others."""
        ids, trained, end = spelled.ids, bytearray(), 0
        for index, place in zip(answers, places, strict=True):
            before = end
            start, stop = spelled.count(place[0]), spelled.count(place[1])
            if start is None or stop is None or self._count_ends(messages[index].content):
                return None
            if start < before:  # what asks for an answer may leave out the end of the one before
                return None
            end, data = stop, ids[start:stop].tobytes()
            found = [place for one in self._end_bytes if (place := data.find(one)) >= 0]
            # What looks like an end in the bytes of two others is none.
            if not found or min(found) % ids.itemsize:
                return None
            learned = min(found) // ids.itemsize + 1
            trained += bytes(start - before) + b"\1" * learned + bytes(stop - start - learned)
        return ids, bytes(trained)

    def _lay_out(
        self, messages: Sequence[Message], answers: Sequence[int], tools: str | None
    ) -> tuple[str, Iterable[Span | None]]:
        """A conversation up to the last of these answers as text, and of each where its prompt ends and where itself does;
        None where that is no beginning of the whole, or does not say the answer."""
        messages = messages[: answers[-1] + 1]
        template = PLAIN_TEMPLATE if self.plain else self.tokenizer.chat_template
        if (
            not tools
            and isinstance(template, str)
            and (layout := self._skeletons_of(template).lay_out(messages, answers))
        ):
            return layout.fill(messages)
        whole = self.render(messages, tools=tools)
        return whole, self._find_places(whole, messages, answers, tools)

    def _find_places(
        self, whole: str, messages: Sequence[Message], answers: Sequence[int], tools: str | None
    ) -> Iterator[Span | None]:
        for index in answers:
            prompt = self.render(messages[:index], answer_next=True, tools=tools)
            answered = whole if index == answers[-1] else self.render(messages[: index + 1], tools=tools)
            holds = answered.startswith(prompt) and whole.startswith(answered)
            said = holds and _says(answered, messages[index].content, behind=prompt)
            yield (len(prompt), len(answered)) if said else None

    def _encode_left_out(self, messages: Sequence[Message], index: int, tools: str | None) -> Marked | None:
        """The same for one answer of which the template leaves the beginning out: all of it stands where the template
        puts the rest. What the prompt has begun already (<think>) is not said twice. None where the answer begins in
        other words, and where more than its beginning is missing."""
        prompt = self.render(messages[:index], answer_next=True, tools=tools)
        answered = self.render(messages[: index + 1], tools=tools)
        content = messages[index].content.strip()
        pairs = enumerate(zip(prompt, answered, strict=False))
        shared = next((place for place, (asked, said) in pairs if asked != said), len(prompt))
        begun, written = prompt[shared:], answered[shared:]
        left_out = bisect_left(range(len(content)), True, key=lambda start: content[start:] in written)
        if left_out == len(content) or not content.startswith(begun):
            return None
        lead, _, tail = written.partition(content[left_out:])
        if lead.strip() or self.decode(self.encode(tail)).strip():
            return None
        before = self.speller.spell(prompt)
        learned = self._encode_further((content.removeprefix(begun) if begun else lead + content) + tail)
        learned, marks = self._end_answer(learned, content, final=True)
        return before + learned, bytes(len(before)) + marks

    def _encode_further(self, text: str) -> Ids:
        """Token ids of a text that goes on behind another: without the space that some tokenizers put before a text."""
        break_, both = self.speller.spell("\n"), self.speller.spell("\n" + text)
        return both[len(break_) :] if both[: len(break_)] == break_ else self.speller.spell(text)

    def _end_answer(self, learned: Ids, content: str, *, final: bool) -> Marked:
        """Marks an answer as learned up to the token that ends it; the last one is given an end if it has none. Of
        several ends one behind the other, it is the first, where the model stops; one that is within the answer's own
        text ends nothing."""
        if learned and learned[-1] in self.end_ids and not self._count_ends(content):
            # Of most it is the last token alone; what else looks so in the bytes of others is looked at one by one.
            others = learned[:-1].tobytes()
            if not any([end in others for end in self._end_bytes]):
                return learned, b"\1" * len(learned)
        ends = sorted(place for end in self.end_ids for place in _find(end, learned))[self._count_ends(content) :]
        if ends:
            return learned, b"\1" * (ends[0] + 1) + bytes(len(learned) - ends[0] - 1)
        if final:
            learned = self._append_end(learned)
        return learned, b"\1" * len(learned)

    def _count_ends(self, content: str) -> int:
        """How often a token that ends an answer stands within its text, with more text behind it."""
        names = [name for name in self._end_names if name in content]
        if not names:
            return 0
        content = content.rstrip()
        while name := next((name for name in names if content.endswith(name)), None):
            content = content.removesuffix(name).rstrip()
        return sum(content.count(name) for name in names)

    def _is_ended(self, ids: Ids) -> bool:
        """Whether no text stands behind the last token that ends an answer."""
        last = max((position for position, token in enumerate(ids) if token in self.end_ids), default=None)
        return last is not None and not self.decode(ids[last + 1 :].tolist()).strip()

    def _append_end(self, ids: Ids) -> Ids:
        end = self.tokenizer.eos_token_id
        return ids if end is None else ids + array("i", [end])

    def _cut(self, ids: Ids, trained: bytes, left_out: int) -> Row:
        if len(ids) > self.max_length:
            self.cut += 1
        elif not left_out:
            return Row(ids, trained)
        lost = ids[self.max_length :] if self.keeps_lost else []
        return Row(ids[: self.max_length], trained[: self.max_length], lost=lost, left_out=left_out)


def _find(token: int, ids: Sequence[int]) -> Iterator[int]:
    """Where a token stands."""
    place = -1
    for _ in range(ids.count(token)):
        place = ids.index(token, place + 1)
        yield place


def _says(answered: str, content: str, *, behind: str) -> bool:
    """Whether an answer stands whole in a conversation, up to white space, and ends behind the prompt."""
    if content and answered.find(content, len(behind)) >= 0:
        return True
    said, answered = "".join(content.split()), "".join(answered.split())
    start = answered.rfind(said)
    return start >= 0 and start + len(said) > len("".join(behind.split()))
