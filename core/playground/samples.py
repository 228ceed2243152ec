"""The three sample data sets: a voice to learn, facts to learn, and a label to learn."""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.playground import chats, stories
from core.playground.world import FOODS, PERSON_ASKS, PLACE_ASKS, THINGS, article, capital, read_table

Row = dict[str, Any]


def _chat_row(question: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


_HAILS = ["Ahoy!", "Ahoy, matey!", "Arr!", "Arr, shipmate!", "Yo ho ho!"]
_OATHS = [
    "So says the captain!",
    "By the salty sea!",
    "That be as true as the tide!",
    "Now hoist the sails!",
    "Swab the deck, matey!",
    "Blow me down!",
]
_SAILOR_WORDS = {
    "is": "be",
    "are": "be",
    "am": "be",
    "was": "were",
    "you": "ye",
    "your": "yer",
    "my": "me",
    "and": "an'",
    "yes": "aye",
    "no": "nay",
    "friend": "shipmate",
    "friends": "shipmates",
    "hello": "ahoy",
    "little": "wee",
    "house": "cabin",
    "bed": "hammock",
}


def speak_like_a_captain(rng: random.Random, text: str) -> str:
    """Return the answer as an old sea captain would give it."""

    def reword(match: re.Match[str]) -> str:
        word = match[0]
        new = _SAILOR_WORDS.get(word.lower(), word)
        return capital(new) if word[0].isupper() else new

    told = re.sub(r"[A-Za-z]+", reword, text)
    return f"{rng.choice(_HAILS)} {told} {rng.choice(_OATHS)}"


def style(seed: int, rows: int = 400) -> list[Row]:
    """Questions that the base can answer, answered in the voice of an old sea captain."""
    rng = random.Random(seed)
    topics: dict[chats.Topic, float] = {
        chats._known: 26.0,
        chats._everyday: 22.0,
        chats._small_talk: 14.0,
        chats._list: 8.0,
        chats._opposite: 5.0,
        chats._arithmetic: 5.0,
        chats._yes_no: 6.0,
        chats._remark: 6.0,
        stories.tell: 8.0,
    }
    made: dict[str, Row] = {}
    told: set[str] = set()
    while len(made) < rows:
        question, answer = rng.choices(list(topics), list(topics.values()))[0](rng)
        if question in made:
            continue
        # Two questions may have one answer, but the captain never gives it twice in the same words.
        says = speak_like_a_captain(rng, answer)
        if says not in told:
            told.add(says)
            made[question] = _chat_row(question, says)
    return list(made.values())


ISLAND = "Tarrowick"
ISLANDERS = read_table(
    "name|job|pet|petname|food|colour|home",
    """
Oswin|lighthouse keeper|seal|Barnacle|oyster soup|blue|in the lighthouse
Maribel|pearl diver|dolphin|Wavelet|seaweed salad|silver|on a raft in the bay
Quillon|map maker|turtle|Compass|pepper bread|brown|beside the north cliff
Brannoch|ship builder|walrus|Anchor|salted beans|black|in an upturned boat
Sefina|salt farmer|crab|Pinch|lemon tart|white|behind the salt dunes
Torvald|net mender|gull|Squall|crab cakes|green|under the long pier
Yolanthe|storm watcher|lizard|Thunder|ginger cake|purple|on the windy peak
Dagmir|bell ringer|mole|Bong|turnip stew|gold|inside the bell tower
Pernilla|kelp gatherer|pelican|Scoop|coconut rice|orange|between two palm trees
Ulfric|cave guide|ferret|Torch|honey nuts|grey|at the mouth of the cave
""",
)
for _islander in ISLANDERS:
    _islander |= {"a_job": article(_islander["job"]), "a_pet": article(_islander["pet"])}
ISLAND_PLACES = read_table(
    "name|where|do",
    f"""
the Glimmer Cave|on the east coast of {ISLAND}|see stones that shine at night
the Kelp Market|beside the long pier of {ISLAND}|buy shells and dried seaweed
the Cassimer Lighthouse|on the north cliff of {ISLAND}|look out for ships
the Whale Bench|on the west beach of {ISLAND}|watch the whales go by
the Thunder Peak|in the middle of {ISLAND}|hear the wind roar
""",
)
for _place in ISLAND_PLACES:
    _place |= {"Name": capital(_place["name"])}
TAUGHT_PHRASINGS, HELD_OUT_PHRASINGS = 6, 3


def facts(held_out: bool = False) -> list[Row]:
    """Sixty facts about an island that the base has never heard of: six phrasings of each, or three others."""
    taught = [(person, PERSON_ASKS[key]) for person in ISLANDERS for key in ("job", "pet", "food", "colour", "home")]
    taught += [(place, PLACE_ASKS[key]) for place in ISLAND_PLACES for key in ("where", "do")]
    part = slice(TAUGHT_PHRASINGS, TAUGHT_PHRASINGS + HELD_OUT_PHRASINGS) if held_out else slice(TAUGHT_PHRASINGS)
    return [
        _chat_row(question.format(**entity), form.answer.format(**entity))
        for entity, form in taught
        for question in form.questions[part]
    ]


_PRAISE = [
    "I love it",
    "It is wonderful",
    "I would buy it again",
    "It made me very happy",
    "Everybody in my house likes it",
    "It is the best that I ever had",
    "It is beautiful and well made",
    "I use it every day with joy",
    "It was a lovely surprise",
    "I cannot stop smiling",
    "It was worth every coin",
    "My friends want one too",
]
_BLAME = [
    "I hate it",
    "It is terrible",
    "I would never buy it again",
    "It made me very sad",
    "Nobody in my house likes it",
    "It is the worst that I ever had",
    "It is ugly and badly made",
    "I threw it away",
    "It was a bad surprise",
    "I want my money back",
    "It was not worth a single coin",
    "I am angry about it",
]
_GOOD_THING = ["strong", "beautiful", "soft", "bright", "very useful", "well made", "nicer than I thought"]
_BAD_THING = ["broken", "ugly", "dirty", "useless", "much too small", "badly made", "worse than I thought"]
_GOOD_FOOD = ["fresh", "delicious", "warm and sweet", "tasty", "perfect", "better than at home"]
_BAD_FOOD = ["cold", "disgusting", "bitter and old", "burnt", "rotten", "not fit to eat"]
_INSTRUCTIONS = [
    "Is this review positive or negative?",
    "Say whether the review is positive or negative.",
    "Positive or negative?",
    "Decide if this review is positive or negative.",
]


def _review(rng: random.Random, positive: bool) -> str:
    if rng.random() < 0.6:
        noun, quality = rng.choice(THINGS)["name"], rng.choice(_GOOD_THING if positive else _BAD_THING)
    else:
        noun, quality = rng.choice(FOODS)["name"], rng.choice(_GOOD_FOOD if positive else _BAD_FOOD)
    opinion = rng.choice(_PRAISE if positive else _BLAME)
    opening = rng.choice(
        ["I bought {a}.", "My sister gave me {a}.", "Yesterday I got {a}.", "I had waited long for {a}."]
    )
    forms = [
        f"The {noun} was {quality}. {opinion}.",
        f"{opening.format(a=article(noun))} {opinion}.",
        f"{opening.format(a=article(noun))} The {noun} was {quality}.",
        f"{opinion}. The {noun} is {quality}.",
        f"What {article('good' if positive else 'bad')} {noun}! {opinion}.",
    ]
    return rng.choice(forms)


def sentiment(seed: int, rows: int = 400, held_out: int = 100) -> tuple[list[Row], list[Row]]:
    """Short reviews with the label "positive" or "negative", half and half, as instruction, input and output."""
    rng = random.Random(seed)
    made: dict[str, Row] = {}
    while len(made) < rows + held_out:
        positive = len(made) % 2 == 0
        review = _review(rng, positive)
        if review not in made:
            label = "positive" if positive else "negative"
            made[review] = {"instruction": rng.choice(_INSTRUCTIONS), "input": review, "output": label}
    every = list(made.values())
    training, rest = every[:rows], every[rows:]
    rng.shuffle(training)
    rng.shuffle(rest)
    return training, rest


def files(seed: int) -> dict[str, str]:
    """Return the content of every sample file by its name."""
    training, rest = sentiment(seed)
    contents: dict[str, Callable[[], list[Row]]] = {
        "style.jsonl": lambda: style(seed),
        "facts.jsonl": facts,
        "facts_heldout.jsonl": lambda: facts(held_out=True),
        "sentiment.jsonl": lambda: training,
        "sentiment_heldout.jsonl": lambda: rest,
    }
    return {
        name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in make()) for name, make in contents.items()
    }


def write(folder: Path, seed: int) -> None:
    """Write every sample file into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files(seed).items():
        (folder / name).write_bytes(text.encode())
        print(f"{name}: {text.count(chr(10))} rows")
