"""Reading comprehension (SQuAD, flat or as published): a context, a question about it, and its answers or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.formats import Answer, Example, Format, Message, as_text, check_text, conversation, parse
from core.problem import Problem


class Squad(Format):
    title = "Questions about a text (SQuAD)"
    about = (
        "A row has context, question and answers (text, a list, or an object with text and answer_start); "
        "an empty list says that the text holds no answer."
    )
    because = "The rows have {context}, {question} and {answers}."
    needs = {
        "context": ("context", "passage"),
        "question": ("question",),
        "answers": ("answers", "answer", "answer_text"),
    }
    may = {"start": ("answer_start", "start"), "none": ("is_impossible",)}
    order = 40

    def read(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
        context, question = self.text(row, "context", columns), self.text(row, "question", columns)
        texts, starts = self._read_answers(row, columns)
        check_text([context, question, *texts])
        answers = tuple(
            Answer(text, _find(text, context, start)) for text, start in zip(texts, starts, strict=True)
        )  # fmt: skip
        if not answers:
            return Example(question=question, context=context, answers=())
        talk = conversation([Message("user", f"{context}\n\n{question}"), Message("assistant", texts[0])])
        return Example(talk.messages, question=question, context=context, answers=answers)

    def _read_answers(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[list[str], list[Any]]:
        """Every answer, and where it is said to begin; none where the data says that there is none."""
        column = columns["answers"]
        value, starts = self.cell(row, "answers", columns), self.cell(row, "start", columns)
        if self.cell(row, "none", columns) is True:
            return [], []
        if isinstance(value, str) and value.strip().startswith(('{"', "[{")):
            value = parse(value, column)
        if isinstance(value, Mapping):
            value, starts = value.get("text"), value.get("answer_start", starts)
        if not isinstance(value, list | tuple):
            if value is None or value == "":
                to_do = "Write one, such as 'The text does not say.', or delete the row."
                raise Problem("The question has no answer.", "", to_do)
            value, starts = [value], starts if isinstance(starts, list | tuple) else [starts]
        if all(isinstance(one, Mapping) for one in value):
            starts = [one.get("answer_start") for one in value]
            value = [one.get("text") for one in value]
        starts = list(starts) if isinstance(starts, list | tuple) else []
        pairs = [
            (as_text(one, column), starts[number] if number < len(starts) else None) for number, one in enumerate(value)
        ]
        pairs = [pair for pair in pairs if pair[0].strip()]
        return [text for text, _ in pairs], [start for _, start in pairs]


def _find(answer: str, context: str, start: Any) -> int | None:
    """Where the answer stands: where the data says, else at the occurrence nearest to that, else at the first."""
    try:
        said = int(start)
    except (TypeError, ValueError):
        said = 0
    if said >= 0 and context.startswith(answer, said):
        return said
    places, at = [], context.find(answer)
    while at >= 0:
        places.append(at)
        at = context.find(answer, at + 1)
    return min(places, key=lambda place: abs(place - said), default=None)


def unfold(data: Any) -> Iterator[dict[str, Any]]:
    """The rows of a file as SQuAD is published: articles with paragraphs with questions. Raises Problem for another."""
    try:
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    yield {"context": paragraph["context"], "title": article.get("title", "")} | asked
    except (KeyError, TypeError, AttributeError) as error:
        raise Problem(
            "The file looks like SQuAD and is not whole.", "An article lacks {part}.", "Fetch it again.", part=error,
        ) from None  # fmt: skip
