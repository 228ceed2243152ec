"""Seeded chats about the small world: single questions, follow-ups, tasks on given text, memory and system messages."""

import random
from collections.abc import Callable, Iterator

from core.playground import everyday, stories
from core.playground.world import (
    ANIMAL_ASKS,
    ANIMALS,
    ASSISTANT,
    BOYS,
    COLOUR_ASKS,
    COLOURED,
    DAYS,
    FOOD_ASKS,
    FOODS,
    GIRLS,
    KNOWN_NAMES,
    LISTS,
    MONTHS,
    NUMBERS,
    OPPOSITE_ASK,
    OPPOSITES,
    PEOPLE,
    PERSON_ASKS,
    PLACE_ASKS,
    PLACES,
    PLURALS,
    PRONOUN_ASKS,
    REVERSE_ASKS,
    RHYMES,
    SEASONS,
    THING_ASKS,
    THINGS,
    VILLAGE,
    Ask,
    Entity,
    article,
    capital,
    enumeration,
    invent_name,
    invent_word,
    pick_name,
    words,
)

Message = dict[str, str]
Exchange = tuple[str, str]
Topic = Callable[[random.Random], Exchange]

ENTITIES: list[tuple[list[dict[str, str]], dict[str, Ask], float]] = [
    (PEOPLE, PERSON_ASKS, 10.0),
    (ANIMALS, ANIMAL_ASKS, 8.0),
    (THINGS, THING_ASKS, 3.0),
    (FOODS, FOOD_ASKS, 3.0),
    (PLACES, PLACE_ASKS, 4.0),
    (COLOURED, COLOUR_ASKS, 2.0),
]


def ask(rng: random.Random, form: Ask, entity: Entity) -> Exchange:
    """Return one paraphrase of the question about the entity, and the answer."""
    return rng.choice(form.questions).format(**entity), form.answer.format(**entity)


def _known(rng: random.Random) -> Exchange:
    entities, asks, _ = rng.choices(ENTITIES, [weight for _, _, weight in ENTITIES])[0]
    return ask(rng, asks[rng.choice(list(asks))], rng.choice(entities))


def _person(rng: random.Random) -> Exchange:
    return ask(rng, PERSON_ASKS[rng.choice(list(PERSON_ASKS))], rng.choice(PEOPLE))


def _reverse(rng: random.Random) -> Exchange:
    if rng.random() < 0.1:
        pet = rng.choice(PEOPLE)["pet"]
        owners = [person["name"] for person in PEOPLE if person["pet"] == pet]
        question = rng.choice(["Who has {a}?", "Who keeps {a}?", "Which person has {a}?"]).format(a=article(pet))
        return question, f"{enumeration(owners)} {'has' if len(owners) == 1 else 'have'} {article(pet)}."
    return ask(rng, REVERSE_ASKS[rng.choice(list(REVERSE_ASKS))], rng.choice(PEOPLE))


def _unknown(rng: random.Random) -> Exchange:
    """Somebody, some place or some word that is not in the world."""
    kind = rng.random()
    name = invent_name(rng)
    if kind < 0.7:
        asked = PERSON_ASKS[rng.choice(list(PERSON_ASKS))]
        person = {"name": name}
        return rng.choice(asked.questions).format(**person), f"Sorry, I do not know {name}."
    if kind < 0.85:
        place = f"the {name} {rng.choice(words('cave tower beach harbour market bridge well inn cliff rock'))}"
        asked = PLACE_ASKS[rng.choice(list(PLACE_ASKS))]
        return rng.choice(asked.questions).format(name=place), f"Sorry, I do not know {place}."
    word = invent_word(rng)
    question = rng.choice(
        ["What is {a}?", "What is {a} for?", "Tell me about {a}.", "What does {a} eat?", "Describe {a}."]
    )
    return question.format(a=article(word)), f"Sorry, I do not know what {article(word)} is."


def _outside(rng: random.Random) -> Exchange:
    thing = rng.choice(everyday.OUTSIDE)
    question = rng.choice(
        [
            "What is {x}?",
            "Tell me about {x}.",
            "What do you know about {x}?",
            "Explain {x}.",
            "Can you explain {x} to me?",
        ]
    )
    answer = "I do not know much about {x}. I only know the small world of {v}."
    return question.format(x=thing), answer.format(x=thing, v=VILLAGE)


def _everyday(rng: random.Random) -> Exchange:
    questions, answers = rng.choice(everyday.QUESTIONS)
    return rng.choice(questions), rng.choice(answers)


def _small_talk(rng: random.Random) -> Exchange:
    questions, answers = rng.choice(everyday.SMALL_TALK)
    return rng.choice(questions), rng.choice(answers)


def _yes_no(rng: random.Random) -> Exchange:
    kind = rng.randrange(8)
    if kind == 0:
        person, other = rng.choice(PEOPLE), rng.choice(PEOPLE)
        job = person["job"] if rng.random() < 0.5 else other["job"]
        verdict = "Yes" if job == person["job"] else "No"
        return f"Is {person['name']} {article(job)}?", f"{verdict}, {person['name']} is {person['a_job']}."
    if kind == 1:
        person, other = rng.choice(PEOPLE), rng.choice(PEOPLE)
        pet = person["pet"] if rng.random() < 0.5 else other["pet"]
        verdict = "Yes" if pet == person["pet"] else "No"
        return f"Does {person['name']} have {article(pet)}?", f"{verdict}, {person['name']} has {person['a_pet']}."
    if kind in (2, 3):
        animal = rng.choice(ANIMALS)
        verb = rng.choice(["swim", "fly"])
        can = animal["swims" if verb == "swim" else "flies"] == "yes"
        question = rng.choice(["Can {a} {v}?", "Is {a} able to {v}?", "Can {p} {v}?"])
        answer = f"Yes, {animal['a']} can {verb}." if can else f"No, {animal['a']} cannot {verb}."
        return question.format(a=animal["a"], v=verb, p=animal["plural"]), answer
    if kind == 4:
        food = rng.choice(FOODS)
        if rng.random() < 0.4:
            animal = rng.choice(ANIMALS)
            guess = rng.choice(["animal", "animal", "fruit", "tool"])
            return (
                f"Is {animal['a']} {article(guess)}?",
                f"{'Yes' if guess == 'animal' else 'No'}, {animal['a']} is an animal.",
            )
        guess = rng.choice(["fruit", "vegetable", "dish", "animal"])
        verdict = "Yes" if guess == food["kind"] else "No"
        return f"Is {food['a']} {article(guess)}?", f"{verdict}, {food['a']} is {food['a_kind']}."
    if kind == 5:
        small, big = sorted(rng.sample(ANIMALS, 2), key=lambda animal: int(animal["size"]))
        first, second = rng.sample([small, big], 2)
        if int(big["size"]) - int(small["size"]) < 3:
            return _yes_no(rng)
        word = rng.choice(["bigger", "smaller"])
        right = (first is big) == (word == "bigger")
        truth = f"{big['a']} is bigger than {small['a']}"
        return f"Is {first['a']} {word} than {second['a']}?", f"{'Yes' if right else 'No'}, {truth}."
    if kind == 6:
        thing = rng.choice(COLOURED)
        guess = thing["colour"] if rng.random() < 0.5 else rng.choice(words("green blue yellow white black red"))
        verdict = "Yes" if guess == thing["colour"] else "No"
        return f"Is {thing['name']} {guess}?", f"{verdict}, {thing['name']} is {thing['colour']}."
    first, second = rng.randint(1, 20), rng.randint(1, 20)
    if first == second:
        return _yes_no(rng)
    verdict = "Yes" if first > second else "No"
    return f"Is {first} bigger than {second}?", f"{verdict}, {max(first, second)} is bigger than {min(first, second)}."


def _compare(rng: random.Random) -> Exchange:
    first, second = rng.sample(ANIMALS, 2)
    if abs(int(first["size"]) - int(second["size"])) < 3:
        return _compare(rng)
    word = rng.choice(["bigger", "smaller"])
    winner = max if word == "bigger" else min
    best = winner(first, second, key=lambda animal: int(animal["size"]))
    other = second if best is first else first
    question = rng.choice(["Which is {w}, {a} or {b}?", "What is {w}, {a} or {b}?", "Which animal is {w}: {a} or {b}?"])
    return (
        question.format(w=word, a=first["a"], b=second["a"]),
        f"{best['A']} is {word} than {other['a']}.",
    )


def _arithmetic(rng: random.Random) -> Exchange:
    kind = rng.random()
    if kind < 0.45:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        question = rng.choice(
            [
                "What is {a} plus {b}?",
                "How much is {a} plus {b}?",
                "What is {a} + {b}?",
                "What is {a}+{b}?",
                "{a}+{b}",
                "Add {a} and {b}.",
                "{a} + {b} = ?",
            ]
        )
        return question.format(a=a, b=b), f"{a} plus {b} is {a + b}."
    if kind < 0.7:
        a = rng.randint(0, 12)
        b = rng.randint(0, a)
        question = rng.choice(
            [
                "What is {a} minus {b}?",
                "How much is {a} minus {b}?",
                "What is {a} - {b}?",
                "What is {a}-{b}?",
                "Take {b} away from {a}.",
            ]
        )
        return question.format(a=a, b=b), f"{a} minus {b} is {a - b}."
    if kind < 0.8:
        a = rng.randint(1, 10)
        return rng.choice(["What is twice {a}?", "What is two times {a}?", "Double {a}."]).format(
            a=a
        ), f"Two times {a} is {2 * a}."
    if kind < 0.9:
        n = rng.randint(0, 19)
        if rng.random() < 0.5:
            return rng.choice(["What comes after {n}?", "Which number comes after {n}?"]).format(
                n=n
            ), f"After {n} comes {n + 1}."
        return rng.choice(["What comes before {n}?", "Which number comes before {n}?"]).format(
            n=n + 1
        ), f"Before {n + 1} comes {n}."
    name, _ = pick_name(rng)
    a, b = rng.randint(1, 6), rng.randint(1, 6)
    fruit = rng.choice(FOODS)["plural"]
    if rng.random() < 0.5 or b >= a:
        return (
            f"{name} has {a} {fruit} and gets {b} more. How many {fruit} does {name} have?",
            f"{name} has {a + b} {fruit}.",
        )
    return (
        f"{name} has {a} {fruit} and gives {b} away. How many {fruit} does {name} have?",
        f"{name} has {a - b} {fruit}.",
    )


def _counting(rng: random.Random) -> Exchange:
    if rng.random() < 0.6:
        n = rng.randint(2, 20)
        asked = rng.choice([str(n), NUMBERS[n]])
        question = rng.choice(
            ["Count to {n}.", "Can you count to {n}?", "Please count to {n}.", "Count from one to {n}."]
        )
        return question.format(n=asked), capital(", ".join(NUMBERS[1 : n + 1])) + "."
    n = rng.randint(3, 12)
    return rng.choice(["Count down from {n}.", "Count backwards from {n}."]).format(n=n), capital(
        ", ".join(NUMBERS[n:0:-1])
    ) + "."


def _calendar(rng: random.Random) -> Exchange:
    names, noun = rng.choice([(DAYS, "day"), (MONTHS, "month"), (SEASONS, "season")])
    i = rng.randrange(len(names))
    here, after, before = names[i], names[(i + 1) % len(names)], names[i - 1]
    if rng.random() < 0.5:
        question = rng.choice(["What comes after {x}?", "Which {n} comes after {x}?", "What is the {n} after {x}?"])
        return question.format(x=here, n=noun), f"After {here} comes {after}."
    question = rng.choice(["What comes before {x}?", "Which {n} comes before {x}?", "What is the {n} before {x}?"])
    return question.format(x=here, n=noun), f"Before {here} comes {before}."


def _opposite(rng: random.Random) -> Exchange:
    pair = rng.choice(OPPOSITES)
    word, other = rng.sample(pair, 2)
    return ask(rng, OPPOSITE_ASK, {"word": word, "other": other})


def _rhyme(rng: random.Random) -> Exchange:
    word, other = rng.sample(rng.choice(RHYMES), 2)
    question = rng.choice(
        ["What rhymes with {x}?", "Which word rhymes with {x}?", "Find a rhyme for {x}.", "Give me a rhyme for {x}."]
    )
    return question.format(x=word), f"{capital(other)} rhymes with {word}."


def _plural(rng: random.Random) -> Exchange:
    one, many = rng.choice(PLURALS)
    question = rng.choice(["What is the plural of {x}?", "One {x}, two ...?", "How do you say more than one {x}?"])
    return question.format(x=one), f"One {one}, two {many}."


_WORDS = [entity["name"] for table in (ANIMALS, THINGS, FOODS) for entity in table]


def _letters(rng: random.Random) -> Exchange:
    word = rng.choice(_WORDS)
    if rng.random() < 0.5:
        question = rng.choice(
            [
                "Which letter does {x} start with?",
                "What is the first letter of {x}?",
                "What letter does {x} begin with?",
            ]
        )
        return question.format(x=word), f"The word {word} begins with {word[0].upper()}."
    return rng.choice(["Spell {x}.", "How do you spell {x}?", "Spell the word {x}."]).format(x=word), "-".join(
        word.upper()
    ) + "."


def _list(rng: random.Random) -> Exchange:
    topic = rng.choice(list(LISTS))
    n = rng.choice([2, 3, 3, 3, 4])
    items = rng.sample(LISTS[topic], n)
    question = rng.choice(
        [
            "Name {n} {t}.",
            "List {n} {t}.",
            "Tell me {n} {t}.",
            "Give me {n} {t}.",
            "Write a list of {n} {t}.",
            "Can you name {n} {t}?",
            "What are {n} {t}?",
        ]
    )
    answer = capital(enumeration(items)) + "."
    return question.format(n=rng.choice([NUMBERS[n], str(n)]), t=topic), answer


_VERBS = words("sees finds likes buys paints carries hides wants draws")
_PAST = words("saw found bought painted carried hid drew lost sold")


def _thing(rng: random.Random) -> tuple[str, str]:
    """A coloured thing, with and without its article."""
    adjective = rng.choice(words("red blue green yellow black white golden big small old new"))
    noun = f"{adjective} {rng.choice(THINGS)['name']}"
    return noun, article(noun)


def _sentence(rng: random.Random) -> str:
    kind = rng.randrange(5)
    name, _ = pick_name(rng)
    if kind == 0:
        return f"{name} {rng.choice(_VERBS)} {_thing(rng)[1]}."
    if kind == 1:
        animal, verb = rng.choice(ANIMALS)["name"], rng.choice(words("sleeps runs sings sits waits"))
        return f"The {animal} {verb} under the {rng.choice(THINGS)['name']}."
    if kind == 2:
        return f"I like {rng.choice(FOODS)['plural']} and {rng.choice(FOODS)['plural']}."
    if kind == 3:
        return f"{name} and {rng.choice(PEOPLE)['name']} walk to {rng.choice(PLACES)['name']}."
    return f"The {rng.choice(THINGS)['name']} is {rng.choice(words('red blue green old new broken lost big small'))}."


def _join(rng: random.Random, instruction: str, text: str) -> str:
    return instruction + rng.choice([" ", "\n", "\n\n"]) + text


def _repeat(rng: random.Random) -> Exchange:
    sentence = _sentence(rng)
    kind = rng.random()
    if kind < 0.35:
        order = rng.choice(
            [
                "Repeat after me:",
                "Repeat this sentence:",
                "Say this:",
                "Please repeat:",
                "Copy this sentence:",
                "Repeat the text.",
            ]
        )
        return _join(rng, order, sentence), sentence
    if kind < 0.9:
        # Strings of strange words teach a small model to copy much sooner than one name in a sentence does.
        count = rng.randint(3, 14)
        strange = [rng.choice([invent_name(rng), invent_word(rng), rng.choice(_WORDS)]) for _ in range(count)]
        order = rng.choice(["Repeat these words:", "Repeat:", "Copy these words:", "Say these words:"])
        return _join(rng, order, " ".join(strange)), " ".join(strange)
    word = rng.choice([*_WORDS, invent_word(rng)])
    n = rng.choice([2, 3, 4])
    return f'Say "{word}" {NUMBERS[n]} times.', capital(" ".join([word] * n)) + "."


def _word_task(rng: random.Random) -> Exchange:
    sentence = _sentence(rng)
    words = sentence.rstrip(".").split()
    kind = rng.random()
    if kind < 0.34:
        order = rng.choice(
            ["How many words are in this sentence?", "Count the words.", "Count the words in this sentence."]
        )
        return _join(rng, order, sentence), f"There are {NUMBERS[len(words)]} words."
    if kind < 0.67:
        order = rng.choice(["What is the first word of this sentence?", "Which word comes first?"])
        return _join(rng, order, sentence), f'The first word is "{words[0]}".'
    order = rng.choice(["What is the last word of this sentence?", "Which word comes last?"])
    return _join(rng, order, sentence), f'The last word is "{words[-1]}".'


def _choose(rng: random.Random) -> Exchange:
    """Which of the given words belongs to a category, or does not."""
    tables = {"animal": ANIMALS, "thing": THINGS, "food": FOODS}
    right = rng.choice(list(tables))
    others = [table for name, table in tables.items() if name != right]
    best, wrong = rng.choice(tables[right])["name"], rng.choice(rng.choice(others))["name"]
    if rng.random() < 0.6:
        first, second = rng.sample([best, wrong], 2)
        noun = {"animal": "an animal", "thing": "something to use", "food": "something to eat"}[right]
        question = rng.choice(
            ["Which is {n}: {a} or {b}?", "Which one is {n}, {a} or {b}?", "Which of the two is {n}: {a} or {b}?"]
        )
        return question.format(n=noun, a=article(first), b=article(second)), f"{capital(article(best))} is {noun}."
    words = [entity["name"] for entity in rng.sample(tables[right], 3)] + [wrong]
    rng.shuffle(words)
    order = rng.choice(["Which word does not belong?", "Find the odd one out:", "Which one does not fit?"])
    return f"{order} {', '.join(words)}", f"{capital(wrong)} does not belong."


def _sort(rng: random.Random) -> Exchange:
    numbers = rng.sample(range(1, 21), 3)
    text = ", ".join(map(str, numbers))
    kind = rng.randrange(3)
    if kind == 0:
        order = rng.choice(["Sort these numbers:", "Put these numbers in order:"])
        return f"{order} {text}", ", ".join(map(str, sorted(numbers))) + "."
    if kind == 1:
        return f"Which number is the biggest: {text}?", f"The biggest number is {max(numbers)}."
    return f"Which number is the smallest: {text}?", f"The smallest number is {min(numbers)}."


def _any_name(rng: random.Random) -> str:
    return invent_name(rng) if rng.random() < 0.4 else rng.choice(GIRLS + BOYS)


def _names(rng: random.Random, count: int) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = _any_name(rng)
        if name not in names:
            names.append(name)
    return names


def _read_text(rng: random.Random) -> Exchange:
    """A few new facts in the prompt, then a question about one of them."""
    count = rng.choice([1, 2, 2, 3])
    names = _names(rng, count)
    pick = rng.randrange(count)
    kind = rng.randrange(5)
    name = names[pick]
    if kind == 0:
        things = [_thing(rng)[1] for _ in names]
        facts = [f"{n} has {t}." for n, t in zip(names, things, strict=True)]
        questions = [(f"What does {name} have?", f"{name} has {things[pick]}.")]
        if things.count(things[pick]) == 1:
            questions.append((f"Who has {things[pick]}?", f"{name} has {things[pick]}."))
    elif kind == 1:
        places = [rng.choice(stories.PLACES) for _ in names]
        facts = [f"{n} is at {p}." for n, p in zip(names, places, strict=True)]
        questions = [(f"Where is {name}?", f"{name} is at {places[pick]}.")]
    elif kind == 2:
        foods = [rng.choice(FOODS)["plural"] for _ in names]
        facts = [f"{n} likes {f}." for n, f in zip(names, foods, strict=True)]
        questions = [(f"What does {name} like?", f"{name} likes {foods[pick]}.")]
    elif kind == 3:
        verbs, things = [rng.choice(_PAST) for _ in names], [_thing(rng)[1] for _ in names]
        facts = [f"{n} {v} {t}." for n, v, t in zip(names, verbs, things, strict=True)]
        questions = [(f"Who {verbs[pick]} {things[pick]}?", f"{name} {verbs[pick]} {things[pick]}.")]
    else:
        pets = [rng.choice(ANIMALS) for _ in names]
        petnames = [_any_name(rng) for _ in names]
        facts = [f"{n} has {p['a']} called {m}." for n, p, m in zip(names, pets, petnames, strict=True)]
        questions = [(f"What pet does {name} have?", f"{name} has {pets[pick]['a']} called {petnames[pick]}.")]
        questions.append((f"What is {name}'s pet called?", f"{name} has {pets[pick]['a']} called {petnames[pick]}."))
    question, answer = rng.choice(questions)
    text = " ".join(facts)
    if rng.random() < 0.6:
        return text + rng.choice([" ", "\n", "\n\n"]) + question, answer
    return _join(rng, question, text), answer


_GLAD = [
    "The sun is shining and {n} is laughing.",
    "{n} found a new friend today.",
    "The {f} was warm and sweet, and {n} loved it.",
    "{n} is dancing in the kitchen.",
    "Everybody clapped when {n} came home.",
    "What a wonderful {t}! It is a joy to have it.",
    "{n} likes the new {t} very much.",
    "The best day of the year was full of songs and {f}.",
]
_SORRY = [
    "{n} lost a {t} and is crying.",
    "Nobody came to the party of {n}.",
    "The {f} was cold and bitter, and {n} hated it.",
    "{n} sits alone in the rain.",
    "The old {t} is broken and {n} misses it.",
    "What a terrible {t}! It broke on the first day.",
    "{n} is ill and must stay in bed.",
    "It was a bad day, and even the {f} did not help.",
]


def _mood(rng: random.Random) -> Exchange:
    glad = rng.random() < 0.5
    text = rng.choice(_GLAD if glad else _SORRY).format(
        n=pick_name(rng)[0], t=rng.choice(THINGS)["name"], f=rng.choice(FOODS)["name"]
    )
    order = rng.choice(
        ["Is this happy or sad?", "Does this sound happy or sad?", "Happy or sad?", "Is this text happy or sad?"]
    )
    return _join(rng, order, text), f"It sounds {'happy' if glad else 'sad'}."


def _remark(rng: random.Random) -> Exchange:
    """Things that people say about themselves; the reply takes up their words."""
    kind = rng.randrange(7)
    if kind == 0:
        name = _any_name(rng)
        question = rng.choice(
            [
                "My name is {n}.",
                "I am {n}.",
                "Hello, my name is {n}.",
                "Hi, I'm {n}!",
                "Hello, I am {n}.",
                "You can call me {n}.",
            ]
        )
        return question.format(n=name), rng.choice(
            [f"Hello {name}! It is nice to meet you.", f"Nice to meet you, {name}!"]
        )
    if kind == 1:
        food = rng.choice(FOODS)
        many = food["plural"]
        question = rng.choice(["I like {x}.", "I love {x}.", "My favourite food is {x}."])
        sold = many in {"cakes", "pies", "cookies"}
        more = "Nora sells them at the bakery." if sold else f"They taste {food['taste']}."
        return question.format(x=many), f"{capital(many)} are a fine choice! {more}"
    if kind == 2:
        animal = rng.choice(ANIMALS)
        name = _any_name(rng)
        question = rng.choice(["I have {a} called {n}.", "My {k} is called {n}.", "The name of my {k} is {n}."])
        return question.format(a=animal["a"], n=name, k=animal["name"]), f"{name} is a lovely name for {animal['a']}!"
    if kind == 3:
        thing = rng.choice(THINGS)["name"]
        question = rng.choice(["I lost my {x}.", "I cannot find my {x}.", "Where is my {x}?", "My {x} is gone."])
        return question.format(x=thing), f"Oh no! Where did you last see your {thing}?"
    if kind == 4:
        colour = rng.choice(words("red blue green yellow purple orange pink black white brown"))
        question = rng.choice(["My favourite colour is {x}.", "I like {x} best of all colours."])
        return question.format(x=colour), f"{capital(colour)} is a beautiful colour!"
    if kind == 5:
        thing = rng.choice(THINGS)["name"]
        return rng.choice(
            [f"My {thing} is broken.", f"I broke my {thing}."]
        ), f"What a pity! Karl the carpenter can repair your {thing}."
    name = _any_name(rng)
    question = rng.choice(["Say hello to {n}.", "Greet {n}.", "Say hi to {n}.", "Please greet my friend {n}."])
    return question.format(n=name), f"Hello {name}! It is nice to meet you."


def _surprise(rng: random.Random) -> Exchange:
    question = rng.choice(
        ["Tell me something.", "Tell me something interesting.", "Tell me a fact.", "Surprise me.", "Say something."]
    )
    animal, person = rng.choice(ANIMALS), rng.choice(PEOPLE)
    facts = [
        f"{animal['A']} is {animal['about']}.",
        "{name} is {a_job} and has {a_pet} called {petname}.".format(**person),
    ]
    return question, f"Did you know? {rng.choice(facts)}"


def _joke(rng: random.Random) -> Exchange:
    question = rng.choice(
        [
            "Tell me a joke.",
            "Do you know a joke?",
            "Make me laugh.",
            "Can you tell me a joke?",
            "Tell a joke.",
            "Another joke, please.",
        ]
    )
    return question, rng.choice(everyday.JOKES)


def _riddle(rng: random.Random) -> Exchange:
    riddle, solution = rng.choice(everyday.RIDDLES)
    if rng.random() < 0.5:
        return riddle, f"It is {solution}."
    return rng.choice(["Tell me a riddle.", "Do you know a riddle?", "Give me a riddle."]), riddle


def _poem(rng: random.Random) -> Exchange:
    noun = rng.choice([rng.choice(stories.HEROES), rng.choice(_WORDS)])
    order = rng.choice(
        [
            "Write a poem about {a}.",
            "Write a short poem about {a}.",
            "Can you write a poem about {a}?",
            "A poem about {a}, please.",
        ]
    )
    return order.format(a=article(noun)), rng.choice(everyday.POEMS).format(x=noun, a_x=article(noun))


def _likes(rng: random.Random) -> Exchange:
    if rng.random() < 0.5:
        animal = rng.choice(ANIMALS)
        return (
            f"Do you like {animal['plural']}?",
            f"Yes, I like {animal['plural']}! {animal['A']} is {animal['about']}.",
        )
    food = rng.choice(FOODS)
    return f"Do you like {food['plural']}?", f"I cannot eat, but I know that {food['a']} tastes {food['taste']}."


def _sentence_about(rng: random.Random) -> Exchange:
    noun = rng.choice([*stories.HEROES, *_WORDS, invent_word(rng)])
    question = rng.choice(
        ["Write a sentence about {a}.", "Make a sentence with the word {x}.", "Write one sentence with {x}."]
    )
    person, place = rng.choice(PEOPLE)["name"], rng.choice(PLACES)["name"]
    answer = rng.choice(
        ["{p} saw {a} near {w}.", "There is {a} at {w}, and {p} likes it.", "One day {p} drew {a} for the children."]
    )
    return question.format(x=noun, a=article(noun)), answer.format(p=person, a=article(noun), w=place)


def _letter(rng: random.Random) -> Exchange:
    name = rng.choice([_any_name(rng), rng.choice(PEOPLE)["name"]])
    noun = rng.choice([*stories.HEROES, *_WORDS])
    about = rng.random() < 0.5
    question = rng.choice(["Write a letter to {n}", "Write a short letter to {n}", "Please write a letter to {n}"])
    thing = article(noun) if about else _thing(rng)[1]
    ending = rng.choice(["Please visit me soon.", "I hope that you are well.", "Come and drink tea with me."])
    return (
        question.format(n=name) + (f" about {thing}." if about else "."),
        f"Dear {name},\nhow are you? Today I saw {thing} and thought of you. {ending}\nYour friend {ASSISTANT}",
    )


def _describe(rng: random.Random) -> Exchange:
    """A made-up thing that keeps to the words of the prompt."""
    adjective = rng.choice(stories.ADJECTIVES)
    hero = rng.choice(stories.HEROES)
    a_thing = _thing(rng)[1]
    if rng.random() < 0.5:
        whole = article(f"{adjective} {hero}")
        home = rng.choice(["in a little house", "under a big tree", "near the river", "on a hill"])
        answer = f"It is {whole}. It lives {home} and carries {a_thing} wherever it goes."
        return rng.choice(["Describe {x}.", "Describe {x} to me.", "What could {x} be like?"]).format(x=whole), answer
    mark = rng.choice(
        [
            "somebody has scratched a star into it",
            "it smells of honey",
            "it once belonged to a king",
            "it shines in the sun",
        ]
    )
    answer = f"It is {a_thing}, a little dusty, and {mark}."
    return rng.choice(["Describe {x}.", "Describe {x} to me."]).format(x=a_thing), answer


TOPICS: dict[Topic, float] = {
    _known: 22.0,
    _person: 9.0,
    _reverse: 4.0,
    _unknown: 4.0,
    _outside: 1.0,
    _everyday: 10.0,
    _small_talk: 6.0,
    _yes_no: 4.0,
    _compare: 2.0,
    _arithmetic: 5.0,
    _counting: 1.5,
    _calendar: 2.0,
    _opposite: 2.5,
    _rhyme: 1.0,
    _plural: 0.7,
    _letters: 1.5,
    _list: 4.0,
    _repeat: 6.0,
    _word_task: 1.5,
    _choose: 2.5,
    _sort: 1.0,
    _read_text: 7.0,
    _mood: 2.0,
    _remark: 4.0,
    _surprise: 0.7,
    _joke: 0.8,
    _riddle: 0.8,
    _poem: 1.0,
    _describe: 1.5,
    _likes: 1.0,
    _sentence_about: 1.0,
    _letter: 0.8,
    stories.tell: 12.0,
}
_TOPICS, _WEIGHTS = list(TOPICS), list(TOPICS.values())

_BEFORE = [
    "Hi! ",
    "Hello! ",
    "Hey Pip! ",
    "Please tell me: ",
    "Tell me: ",
    "I have a question. ",
    "One question: ",
    "Hello Pip, ",
]
_AFTER = [" Please tell me.", " Thank you!", " Please.", " I would like to know."]


def vary(rng: random.Random, question: str) -> str:
    """Return the question as a person might type it: politely, in a hurry, or in American spelling."""
    chance = rng.random()
    if "colour" in question and rng.random() < 0.15:
        question = question.replace("colour", "color")
    if question.startswith(("What is ", "Who is ", "Where is ")) and rng.random() < 0.05:
        question = question.replace(" is ", "'s ", 1)
    if chance < 0.08 and "\n" not in question:
        return rng.choice(_BEFORE) + question
    if chance < 0.11 and question.endswith("?"):
        return question + rng.choice(_AFTER)
    if chance < 0.17 and question.endswith(("?", ".")):
        return question[:-1]
    if chance < 0.23:
        return question[:1].lower() + question[1:]
    if chance < 0.27 and question.endswith(("?", ".")):
        return question[:-1].lower() if not any(c in question for c in '":\n') else question
    return question


def exchange(rng: random.Random) -> Exchange:
    """Return one question and its answer about anything in the world."""
    question, answer = rng.choices(_TOPICS, _WEIGHTS)[0](rng)
    keep = any(name in question for name in KNOWN_NAMES) or answer.startswith("Sorry")
    varied = vary(rng, question)
    # An answer that takes its words from the prompt cannot know the capitals that a lower-cased prompt hides.
    return (question if varied.islower() and keep and rng.random() < 0.5 else varied), answer


def _turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _follow_up(rng: random.Random) -> list[Message]:
    """The same question about another entity, in few words: "And a duck?"."""
    entities, asks, _ = rng.choices(ENTITIES, [weight for _, _, weight in ENTITIES])[0]
    form = asks[rng.choice(list(asks))]
    first, *others = rng.sample(entities, rng.choice([2, 2, 3]))
    messages = _turn(vary(rng, rng.choice(form.questions).format(**first)), form.answer.format(**first))
    for other in others:
        who = other.get("a", other["name"])
        question = rng.choice(["And {x}?", "What about {x}?", "And what about {x}?"]).format(x=who)
        messages += _turn(question, form.answer.format(**other))
    return messages


def _pronouns(rng: random.Random) -> list[Message]:
    person = rng.choice(PEOPLE)
    opening = rng.choice(list(PERSON_ASKS.values()) + [PERSON_ASKS["who"]] * 4 + [REVERSE_ASKS["job"]] * 3)
    messages = _turn(*ask(rng, opening, person))
    for key in rng.sample(list(PRONOUN_ASKS), rng.choice([1, 2, 3])):
        messages += _turn(*ask(rng, PRONOUN_ASKS[key], person))
    return messages


def _memory(rng: random.Random) -> list[Message]:
    """The user says something about themselves and asks for it later."""
    kind = rng.randrange(4)
    name = _any_name(rng)
    if kind == 0:
        say = rng.choice(["My name is {n}.", "Hello, I am {n}.", "Hi, my name is {n}!", "I am {n}."]).format(n=name)
        reply = rng.choice([f"Hello {name}! It is nice to meet you.", f"Nice to meet you, {name}!"])
        recall = (
            rng.choice(["What is my name?", "Do you remember my name?", "Who am I?", "What's my name?"]),
            f"Your name is {name}.",
        )
    elif kind == 1:
        animal = rng.choice(ANIMALS)
        say, reply = f"I have {animal['a']} called {name}.", f"{name} is a lovely name for {animal['a']}!"
        recall = f"What is my {animal['name']} called?", f"Your {animal['name']} is called {name}."
    elif kind == 2:
        colour = rng.choice(words("red blue green yellow purple orange pink black white brown"))
        say, reply = f"My favourite colour is {colour}.", f"{capital(colour)} is a beautiful colour!"
        recall = "What is my favourite colour?", f"Your favourite colour is {colour}."
    else:
        thing = rng.choice(THINGS)["name"]
        say, reply = f"I lost my {thing}.", f"Oh no! Where did you last see your {thing}?"
        recall = rng.choice(["What did I lose?", "What am I looking for?"]), f"You lost your {thing}."
    messages = _turn(say, reply)
    for _ in range(rng.choice([0, 1, 1, 2])):
        messages += _turn(*_brief(rng))
    return messages + _turn(*recall)


def _game(rng: random.Random) -> list[Message]:
    """A riddle with its solution, or comfort with a story, over two turns."""
    if rng.random() < 0.6:
        riddle, solution = rng.choice(everyday.RIDDLES)
        messages = _turn(rng.choice(["Tell me a riddle.", "Do you know a riddle?", "Give me a riddle."]), riddle)
        guess = capital(solution) if rng.random() < 0.5 else rng.choice(["I do not know.", "Tell me!", "I give up."])
        if guess.startswith(capital(solution)):
            return messages + _turn(
                rng.choice([f"{guess}!", f"{guess}.", f"Is it {solution}?"]), f"Yes, it is {solution}!"
            )
        return messages + _turn(guess, f"It is {solution}.")
    messages = _turn(
        rng.choice(["I am sad.", "I feel sad.", "I am unhappy."]),
        "I am sorry to hear that. Would you like to hear a story?",
    )
    return messages + _turn(
        rng.choice(["Yes.", "Yes, please!", "Yes please", "I would love to."]), stories.tell(rng)[1]
    )


def _brief(rng: random.Random) -> Exchange:
    """A question whose answer is short, so that several fit into one chat."""
    while True:
        question, answer = exchange(rng)
        if len(answer) < 120:
            return question, answer


def _talk(rng: random.Random) -> list[Message]:
    """Several questions after one another, often with a greeting and thanks around them."""
    messages: list[Message] = []
    if rng.random() < 0.4:
        questions, answers = everyday.SMALL_TALK[rng.randrange(3)]  # the three greetings
        messages += _turn(rng.choice(questions), rng.choice(answers))
    for _ in range(rng.choice([1, 2, 2, 3, 4])):
        messages += _turn(*_brief(rng))
    if rng.random() < 0.3:
        messages += _turn(*exchange(rng))
    if rng.random() < 0.3:
        questions, answers = everyday.SMALL_TALK[rng.choice([4, 5])]  # farewell, thanks
        messages += _turn(rng.choice(questions), rng.choice(answers))
    return messages


_SYSTEMS = [
    f"You are {ASSISTANT}, a friendly little assistant.",
    "You are a helpful assistant.",
    "You are a kind and cheerful helper.",
    f"You know the village of {VILLAGE}.",
    "Answer in whole sentences.",
    "Be short and friendly.",
    "You tell stories and answer questions.",
]


def _system(rng: random.Random) -> list[Message]:
    """A system message that changes the answer."""
    kind = rng.randrange(6)
    if kind == 0:
        name = _any_name(rng)
        system = rng.choice(
            [f"Your name is {name}.", f"You are {name}, a helpful assistant.", f"You are called {name}."]
        )
        question = rng.choice(["Who are you?", "What is your name?", "What's your name?", "Who am I talking to?"])
        turns = _turn(question, f"I am {name}. How can I help you?")
    elif kind == 1:
        name = _any_name(rng)
        system = rng.choice(
            [f"The user is called {name}.", f"The name of the user is {name}.", f"You are talking to {name}."]
        )
        if rng.random() < 0.5:
            turns = _turn(
                rng.choice(["What is my name?", "Who am I?", "Do you know my name?"]), f"Your name is {name}."
            )
        else:
            turns = _turn(rng.choice(["Hello!", "Hi!", "Good morning!"]), f"Hello {name}! How can I help you today?")
    elif kind == 2:
        system = rng.choice(["Answer with one word.", "Answer as briefly as you can.", "Give very short answers."])
        turns = []
        for _ in range(rng.choice([1, 2])):
            entities, asks, _ = rng.choices(ENTITIES, [weight for _, _, weight in ENTITIES])[0]
            form = asks[rng.choice([key for key in asks if key not in {"who", "what", "describe", "looks"}])]
            entity = rng.choice(entities)
            turns += _turn(rng.choice(form.questions).format(**entity), capital(form.short.format(**entity)) + ".")
    elif kind == 3:
        system = rng.choice(["Answer only with yes or no.", "Say yes or no."])
        turns = []
        for _ in range(rng.choice([1, 2])):
            question, answer = _yes_no(rng)
            turns += _turn(question, answer.split(",")[0] + ".")
    elif kind == 4:
        word = rng.choice(["Well", "My friend", "Oh", "Dear guest", "Sir", "Captain", "Hello", *_names(rng, 2)])
        system = rng.choice([f'Begin every answer with "{word}".', f'Start each answer with "{word}".'])
        turns = []
        for _ in range(rng.choice([1, 2])):
            question, answer = _known(rng)
            turns += _turn(question, f"{word}! {answer}")
    else:
        word = rng.choice(
            ["Have a nice day!", "That is all.", "Good luck!", "Do you like that?", "Tra la la!", "I hope that helps!"]
        )
        system = rng.choice([f'End every answer with "{word}"', f'Finish each answer with "{word}"'])
        turns = []
        for _ in range(rng.choice([1, 2])):
            question, answer = _known(rng)
            turns += _turn(question, f"{answer} {word}")
    return [{"role": "system", "content": system}, *turns]


def chat(rng: random.Random) -> list[Message]:
    """Return one chat: messages with a role (system, user, assistant) and a content, the last one an answer."""
    kind = rng.random()
    if kind < 0.08:
        return _system(rng)
    if kind < 0.68:
        messages = _turn(*exchange(rng))
    elif kind < 0.76:
        messages = _follow_up(rng)
    elif kind < 0.81:
        messages = _pronouns(rng)
    elif kind < 0.87:
        messages = _memory(rng)
    elif kind < 0.885:
        messages = _game(rng)
    else:
        messages = _talk(rng)
    if rng.random() < 0.15:
        return [{"role": "system", "content": rng.choice(_SYSTEMS)}, *messages]
    return messages


def passages(rng: random.Random) -> Iterator[str]:
    """Yield plain text without roles, for ever: stories, and what there is to say about somebody."""
    while True:
        if rng.random() < 0.6:
            yield stories.tell(rng)[1]
        else:
            lines = [_known(rng)[1] for _ in range(rng.choice([2, 3, 4]))]
            yield " ".join(lines)
