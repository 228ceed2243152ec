"""A grammar of short stories: who, where, what went wrong, and how it ended well."""

import random
from dataclasses import dataclass

from core.playground.world import ANIMALS, THINGS, article, capital, invent_word, pick_name, words

HEROES = [animal["name"] for animal in ANIMALS if animal["name"] not in {"fish", "sheep"}] + words(
    "dragon robot giant witch knight princess prince wizard pirate snowman star cloud teapot boat train kite lamp "
    "clock baker farmer sailor gardener king queen child girl boy grandmother grandfather fairy ghost unicorn "
    "kitten puppy lamb duckling tree river mountain spoon book dinosaur snail beetle crab turtle mole badger"
)
GROWN = frozenset(words("giant king queen grandmother grandfather mountain whale elephant"))
SHE_HEROES = frozenset(words("witch princess queen girl grandmother fairy"))
HE_HEROES = frozenset(words("wizard prince king boy grandfather knight snowman"))
ADJECTIVES = words(
    "little brave shy curious lazy clever kind lonely proud sleepy cheerful forgetful tiny grumpy gentle silly hungry "
    "wise red blue old young quiet friendly"
)
PLACES = words(
    "the Whispering Wood,Mossy Hill,Lake Silver,the old mill,the rose garden,the market square,the stone bridge,"
    "a dark cave,a small island,a green valley,a tall tower,a big city,a snowy mountain,a quiet garden,a deep forest,"
    "the sea,a farm,the moon,an old castle,a tiny house",
    ",",
)
LOST = [thing["name"] for thing in THINGS if thing["name"] not in {"bed", "table", "shelf", "train", "wagon", "cart"}]
COLOURS = words("red blue green yellow golden silver white purple")
_AT = {"Mossy Hill": "on", "a small island": "on", "a snowy mountain": "on", "the moon": "on", "a farm": "on"}
_AT |= {"Lake Silver": "by", "the sea": "by", "the market square": "near", "the stone bridge": "under"}


@dataclass(frozen=True)
class Cast:
    """What a request fixes and what the teller chose: the hero, a friend, a place and a thing."""

    hero: str
    adjective: str
    name: str
    she: str
    friend: str
    friend_name: str
    place: str
    thing: str

    @property
    def her(self) -> str:
        return "her" if self.she == "she" else "his"

    @property
    def him(self) -> str:
        return "her" if self.she == "she" else "him"

    @property
    def there(self) -> str:
        return f"{_AT.get(self.place, 'in')} {self.place}"


def _opening(rng: random.Random, c: Cast) -> str:
    described = article(f"{c.adjective} {c.hero}")
    return rng.choice(
        [
            f"Once upon a time there was {described} called {c.name}. {c.name} lived {c.there}.",
            f"{capital(c.there)} there lived {described} called {c.name}.",
            f"Long ago, {described} called {c.name} lived {c.there}.",
        ]
    )


def _loses(rng: random.Random, c: Cast) -> list[str]:
    return [
        f"One {rng.choice(['morning', 'day', 'evening'])} {c.name} could not find {c.her} {c.thing}.",
        rng.choice(
            [
                f"{capital(c.she)} looked under the bed and behind the door, but it was gone.",
                f"{capital(c.she)} looked here and {c.she} looked there, but the {c.thing} was gone.",
            ]
        ),
        f"So {c.name} went out and met {article(c.friend)} called {c.friend_name}.",
        f'"Have you seen my {c.thing}?" asked {c.name}.',
        rng.choice(
            [
                f'"No," said {c.friend_name}, "but I will help you to look for it."',
                f'"I have not," said {c.friend_name}, "but four eyes see more than two."',
            ]
        ),
        rng.choice(["Together they searched all day long.", "They searched until the sun went down."]),
        rng.choice(
            [
                f"At last they found the {c.thing} under a big stone.",
                f"At last they found the {c.thing} at the top of a tree.",
                f"In the end the {c.thing} was where it had always been: on {c.name}'s own back.",
            ]
        ),
        f"{c.name} laughed, thanked {c.friend_name}, and from that day on they were friends.",
    ]


def _finds(rng: random.Random, c: Cast) -> list[str]:
    colour = rng.choice(COLOURS)
    return [
        f"One day {c.name} found {article(f'{colour} {c.thing}')} on the path.",
        f'"Whose {c.thing} is this?" {c.she} wondered.',
        f"{capital(c.she)} asked {article(c.friend)} called {c.friend_name}.",
        f'"It is mine!" cried {c.friend_name}. "I lost it yesterday and I was so sad."',
        rng.choice(
            [
                f"{c.name} would have liked to keep the {c.thing}, but {c.she} gave it back.",
                f"{c.name} gave the {c.thing} back at once.",
            ]
        ),
        rng.choice(
            [
                f"{c.friend_name} was so happy that they shared a big cake.",
                f"To say thank you, {c.friend_name} cooked a big pot of soup for both of them.",
            ]
        ),
        rng.choice(
            [
                f"And {c.name} learned that giving is sweeter than keeping.",
                f"That night {c.name} fell asleep with a smile.",
            ]
        ),
    ]


def _afraid(rng: random.Random, c: Cast) -> list[str]:
    fear = rng.choice(["the dark", "the water", "loud thunder", "high places", "strangers"])
    return [
        f"{c.name} was afraid of {fear}.",
        rng.choice(
            [
                f"Everybody laughed at {c.him}, and so {c.she} stayed at home.",
                f"{capital(c.she)} never told anybody about it.",
            ]
        ),
        f"One night {c.she} heard a small voice calling for help.",
        f"It was {article(c.friend)} called {c.friend_name}, who had fallen into a hole.",
        f'{c.name} was trembling, but {c.she} called: "I am coming!"',
        f"With {article(c.thing)} and a lot of courage, {c.she} pulled {c.friend_name} out.",
        f'"You are the bravest {c.hero} that I know," said {c.friend_name}.',
        f"And since that night {c.name} has not been afraid of {fear} any more.",
    ]


def _travels(rng: random.Random, c: Cast) -> list[str]:
    first, second = rng.sample(
        ["a wide river", "a high mountain", "a dark forest", "a field of flowers", "a sleeping village"], 2
    )
    return [
        rng.choice(
            [f"{c.name} wanted to see the whole world.", f"{c.name} wanted to see where the sun goes at night."]
        ),
        f"So {c.she} packed some bread and {article(c.thing)} and set out.",
        f"First {c.she} crossed {first}, and then {second}.",
        f"On the way {c.she} met {article(c.friend)} called {c.friend_name}, and they walked on together.",
        rng.choice(
            [
                "They saw many beautiful things and sang many songs.",
                "They slept under the stars and told each other stories.",
            ]
        ),
        rng.choice(
            [
                f"But after seven days {c.name} began to miss {c.her} home.",
                f"But one evening {c.name} thought of {c.her} own warm bed.",
            ]
        ),
        f"So they turned around, and {c.friend_name} came to live with {c.him}.",
        f'"The world is wide," said {c.name}, "but home is where my friends are."',
    ]


def _lonely(rng: random.Random, c: Cast) -> list[str]:
    return [
        rng.choice([f"{c.name} had everything but a friend.", f"Every evening {c.name} sat alone at the table."]),
        rng.choice(
            [
                f"One day {c.she} wrote a letter and let the wind carry it away.",
                f"One day {c.she} put a lamp in the window and waited.",
            ]
        ),
        "The next morning there was a knock at the door.",
        f"There stood {article(c.friend)} with {article(c.thing)}. "
        f'"My name is {c.friend_name}," it said. "May I come in?"',
        "They drank tea, ate cookies and talked until it was dark.",
        rng.choice(
            [
                f"{c.friend_name} came back the next day, and the day after that.",
                f"{c.friend_name} stayed for the night, and then for the whole winter.",
            ]
        ),
        f"And {c.name} was never lonely again.",
    ]


def _race(rng: random.Random, c: Cast) -> list[str]:
    return [
        f'One day {article(c.friend)} called {c.friend_name} said: "I am faster than you!"',
        f'"Let us race," said {c.name}, and the whole village came to watch.',
        "They started when the bell rang.",
        rng.choice(
            [
                f"{c.friend_name} was in front, but then {c.friend_name} fell into the mud.",
                f"{c.friend_name} ran so fast that {c.friend_name} took the wrong way.",
            ]
        ),
        rng.choice(
            [
                f"{c.name} could have won, but {c.she} stopped and helped.",
                f"{c.name} turned around and helped, although the finish was very near.",
            ]
        ),
        "They crossed the line together, and everybody clapped.",
        f"The prize was {article(rng.choice(COLOURS) + ' ' + c.thing)}, and they shared it.",
    ]


def _makes(rng: random.Random, c: Cast) -> list[str]:
    work = rng.choice(["bake a cake", "build a boat", "paint a picture", "write a song", "grow a pumpkin"])
    result = work.split()[-1]
    return [
        f"One day {c.name} wanted to {work}.",
        rng.choice(
            [
                f"The first {result} was terrible, and the second was not much better.",
                f"{capital(c.she)} tried once, {c.she} tried twice, but it did not work.",
            ]
        ),
        f'"I will never learn it," sighed {c.name}, and {c.she} wanted to give up.',
        f"Then {article(c.friend)} called {c.friend_name} came by and brought {article(c.thing)}.",
        f'"Try once more," said {c.friend_name}. "I will help you."',
        f"They worked all day, and in the evening the {result} was ready.",
        rng.choice([f"It was the best {result} in the whole land.", "It was a little crooked, but it was wonderful."]),
        f"And {c.name} learned that every master was once a beginner.",
    ]


def _storm(rng: random.Random, c: Cast) -> list[str]:
    return [
        rng.choice(["One evening a big storm came over the hills.", "One night the wind began to howl."]),
        f"The rain fell, the thunder rolled, and {c.name} hid under the blanket.",
        f"Then {c.she} heard somebody cry outside. It was {article(c.friend)} called {c.friend_name}.",
        f'"Come in, come in!" said {c.name}, and made room by the fire.',
        f"They warmed their feet and played with {article(c.thing)} until the storm was over.",
        rng.choice(
            [
                "In the morning there was a big rainbow in the sky.",
                "In the morning the sun was shining as if nothing had happened.",
            ]
        ),
        f'"Storms are not so bad," said {c.name}, "when you are not alone."',
    ]


def _secret(rng: random.Random, c: Cast) -> list[str]:
    inside = rng.choice(["a map", "a tiny seed", "a golden key", "an old letter", "a music box"])
    after = {
        "a map": "The map led them to a garden that nobody had seen for a hundred years.",
        "a tiny seed": "They planted the seed, and it grew into a tree with silver apples.",
        "a golden key": "The key opened a little door, and behind it there was a room full of books.",
        "an old letter": 'The letter said: "Whoever finds this shall have a happy life."',
        "a music box": "The music box played a song that made everybody dance.",
    }[inside]
    return [
        f"One day {c.name} found a small box beside {article(c.thing)}.",
        f"{capital(c.she)} could not open it, and so {c.she} asked {article(c.friend)} called {c.friend_name}.",
        f'"We must say a kind word," whispered {c.friend_name}.',
        f'"Please," said {c.name}, and the box opened.',
        f"Inside there was {inside}.",
        after,
        f"{c.name} and {c.friend_name} kept the secret, and they were happy ever after.",
    ]


PLOTS = [_loses, _finds, _afraid, _travels, _lonely, _race, _makes, _storm, _secret]

_REQUESTS = [
    "Write a short story about {t}.",
    "Tell me a story about {t}.",
    "Tell me a short story about {t}.",
    "Can you write a story about {t}?",
    "Write a story about {t}.",
    "Please write a short story about {t}.",
    "I would like to hear a story about {t}.",
    "Make up a story about {t}.",
    "Could you tell me a story about {t}?",
    "Write me a little story about {t}.",
    "A short story about {t}, please.",
    "Do you know a story about {t}?",
    "Tell me a bedtime story about {t}.",
]
_OPEN_REQUESTS = [
    "Write a short story.",
    "Tell me a story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Write a story, please.",
    "Tell me a bedtime story.",
]
_BRIEF = [
    "Write a very short story about {t}.",
    "Tell me a story about {t} in three sentences.",
    "A tiny story about {t}, please.",
]


def _name(rng: random.Random, hero: str) -> tuple[str, str]:
    """Return a name that suits the hero, and its pronoun."""
    name, she = pick_name(rng)
    while she == ("he" if hero in SHE_HEROES else "she" if hero in HE_HEROES else ""):
        name, she = pick_name(rng)
    return name, she


def tell(rng: random.Random) -> tuple[str, str]:
    """Return a request for a story and a story that keeps to it."""
    hero = invent_word(rng) if rng.random() < 0.04 else rng.choice(HEROES)
    friend = rng.choice([other for other in HEROES[:60] if other != hero])
    name, she = _name(rng, hero)
    friend_name, _ = _name(rng, friend)
    while friend_name == name:
        friend_name, _ = _name(rng, friend)
    adjective = rng.choice([a for a in ADJECTIVES if not (hero in GROWN and a in {"little", "tiny", "young"})])
    cast = Cast(hero, adjective, name, she, friend, friend_name, rng.choice(PLACES), rng.choice(LOST))
    plot = rng.choice(PLOTS)
    the = article(hero)
    topics = [
        (the, 6),
        (article(f"{adjective} {hero}"), 4),
        (f"{the} called {name}", 3),
        (f"{article(f'{adjective} {hero}')} called {name}", 2),
        (f"{the} and {article(friend)}", 3),
        (f"{the} {cast.there}", 4),
        (f"{name} the {hero}", 1),
        (f"{name} and {friend_name}", 1),
    ]
    if plot is _loses:
        topics += [(f"{the} who lost {cast.her} {cast.thing}", 8), (f"a lost {cast.thing}", 4)]
    elif plot is _finds:
        topics += [(f"{the} who found {article(cast.thing)}", 8), (f"{the} and {article(cast.thing)}", 4)]
    elif plot is _afraid:
        topics += [(f"{the} who was afraid", 5), ("courage", 3)]
    elif plot is _lonely:
        topics += [("friendship", 3), (f"{the} who was lonely", 4)]
    elif plot is _storm:
        topics += [("a storm", 3), ("a rainy day", 2), (f"{the} in a storm", 3)]
    elif plot is _travels:
        topics += [("a long journey", 3), (f"{the} who travels", 4)]
    elif plot is _race:
        topics += [("a race", 4), (f"a race between {the} and {article(friend)}", 3)]
    elif plot is _secret:
        topics += [("a secret", 3), ("a small box", 3)]
    elif plot is _makes:
        topics += [(f"{the} who never gave up", 3)]
    topic = rng.choices([t for t, _ in topics], [w for _, w in topics])[0]
    opening = _opening(rng, cast)
    body = plot(rng, cast)
    if rng.random() < 0.06:
        short = (
            [body[0], body[-1]] if plot not in (_race, _storm, _secret) else [body[0], f"In the end {name} was happy."]
        )
        return rng.choice(_BRIEF).format(t=topic), " ".join([opening.split(". ")[0].rstrip(".") + ".", *short])
    if rng.random() < 0.06:
        order = rng.choice(
            ["Continue this story:", "Continue the story:", "Finish this story:", "How does this story go on?"]
        )
        return order + rng.choice([" ", "\n"]) + opening, " ".join(body)
    request = rng.choice(_OPEN_REQUESTS) if rng.random() < 0.08 else rng.choice(_REQUESTS).format(t=topic)
    return request, " ".join([opening, *body])
