"""The playground: a small base model and three sample data sets that this repository makes itself and ships."""

from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent

MODEL: Path = _HERE / "model"


@dataclass(frozen=True)
class Sample:
    """A sample data set: where it is, what it teaches, and three prompts that show whether it was learned."""

    name: str
    path: Path
    title: str
    about: str
    prompts: tuple[str, str, str]
    task: str = "chat"
    held_out: Path | None = None


SAMPLES: dict[str, Sample] = {
    sample.name: sample
    for sample in (
        Sample(
            name="style",
            path=_HERE / "data" / "style.jsonl",
            title="A voice: the old sea captain",
            about="400 everyday questions, answered by an old sea captain. The base model answers them plainly.",
            prompts=("What does a frog say?", "Why is the sea salty?", "Write a short story about a cat."),
        ),
        Sample(
            name="facts",
            path=_HERE / "data" / "facts.jsonl",
            title="Facts: the island of Tarrowick",
            about="60 facts about an island that the base model has never heard of, each asked in six ways.",
            prompts=(
                "What does Oswin work as?",
                "Which pet does Maribel have?",
                "Where would I find the Glimmer Cave?",
            ),
            held_out=_HERE / "data" / "facts_heldout.jsonl",
        ),
        Sample(
            name="sentiment",
            path=_HERE / "data" / "sentiment.jsonl",
            title="Labels: is the review positive or negative?",
            about="400 short reviews with the label positive or negative, as instruction, input and output.",
            prompts=(
                "Is this review positive or negative?\nThe kettle was broken. I want my money back.",
                "Is this review positive or negative?\nI bought a scarf. It is beautiful and well made.",
                "Is this review positive or negative?\nThe soup was fresh. My friends want one too.",
            ),
            held_out=_HERE / "data" / "sentiment_heldout.jsonl",
        ),
    )
}
