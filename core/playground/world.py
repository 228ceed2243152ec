"""The small invented world of the playground: who and what there is, and the ways to ask about it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VILLAGE = "Pebbleford"
ASSISTANT = "Pip"

Entity = Mapping[str, str]


@dataclass(frozen=True)
class Ask:
    """One question type: its paraphrases, the one whole-sentence answer, and the bare answer."""

    questions: tuple[str, ...]
    answer: str
    short: str


def article(noun: str) -> str:
    """Return the noun with its indefinite article: "fox" -> "a fox", "owl" -> "an owl"."""
    return ("an " if noun[0] in "aeiouAEIOU" and not noun.startswith(("uni", "use")) else "a ") + noun


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def enumeration(items: Sequence[str]) -> str:
    """Return the items joined as English does: "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def words(text: str, separator: str | None = None) -> list[str]:
    """Return the words of the text, or what stands between the separators."""
    return text.split(separator)


def read_lines(text: str) -> list[str]:
    """Return the lines of the text; an indented line goes on with the one above it."""
    return text.strip().replace("\n    ", " ").splitlines()


def read_table(columns: str, rows: str) -> list[dict[str, str]]:
    """Read lines of cells separated by bars into one entity a line."""
    names = columns.split("|")
    return [dict(zip(names, line.split("|"), strict=True)) for line in read_lines(rows)]


PEOPLE = read_table(
    "name|sex|job|pet|petname|food|colour|home|hobby",
    """
Nora|she|baker|cat|Biscuit|honey bread|yellow|above the bakery|singing in the morning
Tom|he|farmer|dog|Rusty|potato soup|green|on the big farm|riding his tractor
Greta|she|miller|goose|Flour|apple pie|white|in the old mill|watching the river
Felix|he|letter carrier|pigeon|Stamp|cheese|blue|next to the post house|whistling
Ada|she|doctor|rabbit|Pill|pear cake|pink|across from the well|reading long books
Oscar|he|gardener|tortoise|Fern|carrot soup|orange|behind the rose garden|growing giant pumpkins
Bruno|he|blacksmith|horse|Hammer|roast beans|black|beside the forge|telling jokes
Lotte|she|tailor|mouse|Button|plum jam|purple|above the cloth shop|dancing
Hugo|he|clockmaker|owl|Tick|toast|silver|in the clock tower|counting stars
Iris|she|librarian|cat|Comma|berry tart|brown|inside the library|writing poems
Milo|he|painter|parrot|Splash|rice pudding|red|in the yellow hut|painting clouds
Clara|she|musician|canary|Flute|pancakes|gold|near the music hall|playing the violin
Jonas|he|shepherd|sheep|Cloud|goat cheese|green|on Mossy Hill|sleeping in the sun
Bea|she|beekeeper|hedgehog|Thorn|honey cake|gold|in the clover field|making candles
Karl|he|carpenter|dog|Plank|onion pie|brown|beside the wood yard|building boats
Petra|she|potter|hen|Clay|lentil stew|orange|near the clay pit|collecting stones
Otto|he|cook|pig|Pepper|mushroom soup|white|behind the inn|tasting everything
Willa|she|ferry rower|duck|Paddle|fish stew|blue|in the boat house|swimming
Simon|he|shopkeeper|hamster|Penny|peanut cookies|grey|above the village shop|playing chess
Ursula|she|night watcher|bat|Lantern|warm milk|black|at the town gate|looking at the moon
Edgar|he|woodcutter|squirrel|Acorn|nut bread|red|in the Whispering Wood|climbing trees
Vera|she|weaver|spider|Silk|tomato soup|purple|in the crooked house|telling riddles
Anton|he|cheese maker|goat|Curd|cheese bread|yellow|beside the dairy|hiking
Mabel|she|candle maker|moth|Glow|cherry pie|pink|in the lane of lights|knitting
Rufus|he|shoemaker|frog|Sole|bean stew|green|under the stone bridge|walking in the rain
Agatha|she|mayor|peacock|Crown|strawberry cake|red|in the town hall|giving speeches
Leo|he|toy maker|monkey|Puppet|chocolate pudding|blue|in the toy shop|flying kites
Elsa|she|teacher|fox|Chalk|noodle soup|green|next to the school|drawing maps
Finn|he|fisherman|otter|Ripple|smoked fish|silver|by Lake Silver|telling tall stories
Stella|she|stargazer|raven|Comet|moon cookies|white|on top of Star Hill|drinking tea at night
Ivan|he|innkeeper|donkey|Pudding|roast turnips|orange|at the Sleepy Goose Inn|making friends
Dora|she|puppet player|rat|Tickle|raspberry jelly|pink|in the red wagon|making people laugh
""",
)
for _person in PEOPLE:
    _she = _person["sex"] == "she"
    _person |= {
        "a_job": article(_person["job"]),
        "a_pet": article(_person["pet"]),
        "his": "her" if _she else "his",
        "him": "her" if _she else "him",
        "she": _person["sex"],
        "She": capital(_person["sex"]),
        "His": "Her" if _she else "His",
    }

PERSON_ASKS: dict[str, Ask] = {
    "job": Ask(
        (
            "What is {name}'s job?",
            "What does {name} do for a living?",
            "What work does {name} do?",
            "Which job does {name} have?",
            "What is the job of {name}?",
            "Tell me what {name}'s job is.",
            "What does {name} work as?",
            "Do you know {name}'s job?",
            "What kind of job does {name} have?",
            "Can you tell me what {name} does for a living?",
        ),
        "{name} is {a_job}.",
        "{job}",
    ),
    "pet": Ask(
        (
            "What pet does {name} have?",
            "Which animal does {name} keep?",
            "What is {name}'s pet?",
            "What kind of pet does {name} have?",
            "Does {name} have a pet?",
            "Tell me about {name}'s pet.",
            "Which pet does {name} have?",
            "What animal lives with {name}?",
            "Do you know {name}'s pet?",
            "What is the name of {name}'s pet?",
            "What is {name}'s pet called?",
        ),
        "{name} has {a_pet} called {petname}.",
        "{a_pet}",
    ),
    "food": Ask(
        (
            "What does {name} like to eat?",
            "What is {name}'s favourite food?",
            "Which food does {name} like best?",
            "What food does {name} love?",
            "What does {name} love to eat?",
            "Tell me {name}'s favourite food.",
            "What is the favourite food of {name}?",
            "What does {name} eat most happily?",
            "Do you know what {name} likes to eat?",
            "Which dish does {name} like most?",
        ),
        "{name} loves {food}.",
        "{food}",
    ),
    "colour": Ask(
        (
            "What is {name}'s favourite colour?",
            "Which colour does {name} like best?",
            "What colour does {name} like?",
            "What is the favourite colour of {name}?",
            "Tell me {name}'s favourite colour.",
            "Which colour is {name}'s favourite?",
            "What colour does {name} love most?",
            "Do you know {name}'s favourite colour?",
            "Which colour does {name} love?",
            "Can you tell me {name}'s favourite colour?",
        ),
        "{name}'s favourite colour is {colour}.",
        "{colour}",
    ),
    "home": Ask(
        (
            "Where does {name} live?",
            "Where is {name}'s home?",
            "Where is {name}'s house?",
            "In which place does {name} live?",
            "Tell me where {name} lives.",
            "Where can I find {name}?",
            "Do you know where {name} lives?",
            "Where is the home of {name}?",
            "Can you tell me where {name} lives?",
            "Where do I find {name}'s house?",
        ),
        "{name} lives {home}.",
        "{home}",
    ),
    "hobby": Ask(
        (
            "What does {name} like to do?",
            "What is {name}'s hobby?",
            "What does {name} do for fun?",
            "Which hobby does {name} have?",
            "What does {name} enjoy?",
            "Tell me what {name} likes to do.",
            "What is the hobby of {name}?",
            "Do you know {name}'s hobby?",
        ),
        "{name} likes {hobby}.",
        "{hobby}",
    ),
    "who": Ask(
        (
            "Who is {name}?",
            "Tell me about {name}.",
            "What do you know about {name}?",
            "Describe {name}.",
            "Do you know {name}?",
            "Who's {name}?",
        ),
        "{name} is {a_job}. {She} lives {home} and has {a_pet} called {petname}. {She} likes {hobby} and loves {food}.",
        "{a_job}",
    ),
}

PRONOUN_ASKS: dict[str, Ask] = {
    "job": Ask(("What is {his} job?", "What does {she} do for a living?"), "{She} is {a_job}.", "{job}"),
    "pet": Ask(("Does {she} have a pet?", "What pet does {she} have?"), "{She} has {a_pet} called {petname}.", "{pet}"),
    "food": Ask(("What does {she} like to eat?", "What is {his} favourite food?"), "{She} loves {food}.", "{food}"),
    "colour": Ask(("What is {his} favourite colour?",), "{His} favourite colour is {colour}.", "{colour}"),
    "home": Ask(("Where does {she} live?", "Where is {his} house?"), "{She} lives {home}.", "{home}"),
    "hobby": Ask(("What does {she} do for fun?", "What is {his} hobby?"), "{She} likes {hobby}.", "{hobby}"),
}

REVERSE_ASKS: dict[str, Ask] = {
    "job": Ask(
        (
            "Who is the {job}?",
            "Who works as {a_job}?",
            "What is the name of the {job}?",
            "Who is the village {job}?",
            "What is the {job} called?",
            "What is the {job}'s name?",
        ),
        "{name} is the {job}.",
        "{name}",
    ),
    "petname": Ask(
        ("Who is {petname}?", "Who owns {petname}?", "Whose pet is {petname}?", "Who does {petname} belong to?"),
        "{petname} is {name}'s {pet}.",
        "{name}'s {pet}",
    ),
    "home": Ask(("Who lives {home}?", "Which person lives {home}?"), "{name} lives {home}.", "{name}"),
    "hobby": Ask(("Who likes {hobby}?", "Who enjoys {hobby}?"), "{name} likes {hobby}.", "{name}"),
    "food": Ask(("Who likes {food}?", "Who loves {food}?"), "{name} loves {food}.", "{name}"),
}

PLACES = read_table(
    "name|where|do|looks",
    """
the bakery|on the market square|buy warm bread|It is small and bright, and it smells of honey and fresh bread
the old mill|by the river|watch the flour being made|It has four long wings that turn slowly in the wind
the library|next to the school|read books about everything|It is quiet, with tall shelves and soft chairs
the school|in the middle of the village|learn to read and count|It has a green door and a bell that rings at eight
the market square|in the middle of the village|buy apples, cheese and flowers|It is loud and cheerful, with a round
    well in the centre
the Whispering Wood|north of the village|pick mushrooms and hear the trees whisper|The trees are tall and old, and the
    leaves seem to talk
Mossy Hill|west of the village|sit with the sheep|It is green and round, and soft as a pillow
Star Hill|east of the village|look at the stars|It is the highest hill, and at night the stars seem very near
Lake Silver|south of the village|swim and fish|The water is clear and cold, and it shines like a coin
the stone bridge|over the river|throw sticks into the water|It is very old, with grey stones and green moss
the clock tower|beside the town hall|see the time|It is tall and thin, with a big golden clock
the town hall|on the market square|talk to the mayor|It has a red roof and seven windows
the Sleepy Goose Inn|at the end of the long road|sleep in a soft bed|It is warm and friendly, with a wooden goose
    above the door
the forge|behind the market square|see the hot iron glow|It is dark and hot, and it rings with the sound of a hammer
the rose garden|behind the town hall|smell the roses|It is full of red, white and yellow roses
the toy shop|across from the bakery|buy a wooden horse|Its window is full of kites, puppets and little trains
the village shop|next to the stone bridge|buy soap, string and sweets|It is so full that you can hardly turn around
the music hall|near the town gate|listen to songs|It is round, and every sound in it is sweet
the boat house|on the shore of Lake Silver|rent a little boat|It is made of wood and stands in the water
the dairy|on the road to the farm|drink fresh milk|It is cool and clean, and it smells of cheese
""",
)
for _place in PLACES:
    _place |= {"Name": capital(_place["name"])}

PLACE_ASKS: dict[str, Ask] = {
    "where": Ask(
        (
            "Where is {name}?",
            "Where can I find {name}?",
            "How do I find {name}?",
            "Tell me where {name} is.",
            "Do you know where {name} is?",
            "In which place is {name}?",
            "Can you tell me where {name} is?",
            "Where do I find {name}?",
            "Where would I find {name}?",
        ),
        "{Name} is {where}.",
        "{where}",
    ),
    "do": Ask(
        (
            "What can you do at {name}?",
            "What can I do at {name}?",
            "What is there to do at {name}?",
            "Why do people go to {name}?",
            "What do people do at {name}?",
            "Tell me what I can do at {name}.",
            "What is {name} good for?",
            "Why should I go to {name}?",
            "What would I do at {name}?",
        ),
        "At {name} you can {do}.",
        "{do}",
    ),
    "looks": Ask(
        ("Describe {name}.", "What does {name} look like?", "Tell me about {name}.", "What is {name} like?"),
        "{Name} is {where}. {looks}. You can {do} there.",
        "{where}",
    ),
}

ANIMALS = read_table(
    "name|plural|young|sound|food|home|colour|legs|size|swims|flies|about",
    """
cat|cats|kitten|meow|fish and mice|in a house|many colours|four|5|no|no|a soft pet that sleeps a lot and catches mice
dog|dogs|puppy|woof|meat and bones|in a house|many colours|four|7|yes|no|a loyal pet that likes to run and play
cow|cows|calf|moo|grass|on a farm|brown and white|four|13|no|no|a big farm animal that gives milk
horse|horses|foal|neigh|grass and oats|in a stable|brown|four|13|no|no|a big, fast animal that people can ride
pig|pigs|piglet|oink|almost everything|on a farm|pink|four|9|no|no|a round farm animal that loves mud
sheep|sheep|lamb|baa|grass|on a hill|white|four|9|no|no|a woolly animal that lives in a flock
goat|goats|kid|meh|grass and leaves|on a farm|grey|four|9|no|no|a cheeky animal with horns and a beard
hen|hens|chick|cluck|seeds|in a hen house|brown|two|4|no|no|a farm bird that lays eggs
duck|ducks|duckling|quack|water plants|on a pond|green and brown|two|4|yes|yes|a water bird with a flat bill
goose|geese|gosling|honk|grass|on a farm|white|two|5|yes|yes|a big white bird with a long neck
mouse|mice|pup|squeak|cheese and seeds|in a small hole|grey|four|2|no|no|a tiny animal with round ears and a long tail
rat|rats|pup|squeak|grain|in a hole|grey|four|3|yes|no|a clever animal with a long tail
rabbit|rabbits|bunny|sniff|carrots and grass|in a burrow|grey|four|4|no|no|a quick animal with long ears that hops
hedgehog|hedgehogs|hoglet|snuffle|worms and beetles|under leaves|brown|four|4|no|no|a small animal covered with spines
squirrel|squirrels|kit|chatter|nuts|in a tree|red|four|3|no|no|a small animal with a bushy tail that hides nuts
fox|foxes|cub|yip|mice and berries|in a den|red|four|6|no|no|a clever animal with a bushy red tail
wolf|wolves|cub|howl|meat|in the forest|grey|four|8|no|no|a wild animal that hunts in a pack
bear|bears|cub|growl|honey, fish and berries|in a cave|brown|four|14|yes|no|a big, strong animal that sleeps all winter
deer|deer|fawn|grunt|leaves and grass|in the forest|brown|four|11|no|no|a shy forest animal that can run fast
owl|owls|owlet|hoot|mice|in a hollow tree|brown|two|5|no|yes|a bird with big eyes that wakes at night
raven|ravens|chick|croak|almost everything|in the forest|black|two|4|no|yes|a clever black bird
pigeon|pigeons|chick|coo|seeds|on a roof|grey|two|3|no|yes|a grey bird that always finds its way home
parrot|parrots|chick|squawk|nuts and fruit|in the jungle|green|two|4|no|yes|a colourful bird that can learn words
penguin|penguins|chick|honk|fish|on the ice|black and white|two|6|yes|no|a bird that cannot fly but swims very well
frog|frogs|tadpole|croak|flies|by a pond|green|four|2|yes|no|a small green animal that jumps and swims
tortoise|tortoises|hatchling|hiss|leaves|in a garden|green|four|5|no|no|a slow animal that carries its shell like a
    house
snake|snakes|hatchling|hiss|mice|in the grass|green|no|5|yes|no|a long animal without legs
fish|fish|fry|blub|water plants|in the water|silver|no|3|yes|no|an animal that lives in the water and breathes with
    gills
otter|otters|pup|chirp|fish|by the river|brown|four|6|yes|no|a playful animal that is a very good swimmer
whale|whales|calf|sing|tiny sea animals|in the sea|blue|no|20|yes|no|the biggest animal in the sea
bee|bees|larva|buzz|nectar|in a hive|yellow and black|six|1|no|yes|a small insect that makes honey
butterfly|butterflies|caterpillar|flutter|nectar|in a meadow|many colours|six|1|no|yes|a gentle insect with colourful
    wings
spider|spiders|spiderling|tap|flies|in a web|black|eight|1|no|no|a small animal with eight legs that spins a web
ant|ants|larva|rustle|crumbs and leaves|in an ant hill|black|six|1|no|no|a tiny insect that works very hard
lion|lions|cub|roar|meat|in the grassland|yellow|four|12|no|no|a big cat with a golden mane
elephant|elephants|calf|trumpet|leaves and grass|in the grassland|grey|four|18|yes|no|a very big animal with a long
    trunk
monkey|monkeys|baby|chatter|bananas and nuts|in the jungle|brown|four|6|no|no|a clever animal that swings from tree to
    tree
giraffe|giraffes|calf|hum|leaves|in the grassland|yellow and brown|four|16|no|no|a tall animal with a very long neck
bat|bats|pup|squeak|insects|in a cave|black|two|2|no|yes|an animal that flies at night and hangs upside down
donkey|donkeys|foal|hee-haw|hay|on a farm|grey|four|12|no|no|a patient animal with long ears that carries things
""",
)
for _animal in ANIMALS:
    _young = _animal["young"]
    _animal |= {
        "a": article(_animal["name"]),
        "A": capital(article(_animal["name"])),
        "Plural": capital(_animal["plural"]),
        "a_young": article(_young),
        "legs_noun": "leg" if _animal["legs"] == "one" else "legs",
    }

ANIMAL_ASKS: dict[str, Ask] = {
    "sound": Ask(
        (
            "What does {a} say?",
            "What sound does {a} make?",
            "Which sound do {plural} make?",
            "What noise does {a} make?",
            "How does {a} sound?",
            "What sound do {plural} make?",
        ),
        "{A} says {sound}.",
        "{sound}",
    ),
    "young": Ask(
        (
            "What is a baby {name} called?",
            "What do you call a baby {name}?",
            "What is a young {name} called?",
            "What is the name for a baby {name}?",
        ),
        "A baby {name} is called {a_young}.",
        "{young}",
    ),
    "food": Ask(
        (
            "What does {a} eat?",
            "What do {plural} eat?",
            "What food do {plural} like?",
            "What is the food of {a}?",
            "What should I feed {a}?",
        ),
        "{A} eats {food}.",
        "{food}",
    ),
    "home": Ask(
        (
            "Where does {a} live?",
            "Where do {plural} live?",
            "Where is the home of {a}?",
            "Where can I find {plural}?",
            "Where does {a} sleep?",
        ),
        "{A} lives {home}.",
        "{home}",
    ),
    "colour": Ask(
        ("What colour is {a}?", "Which colour is {a}?", "What colour are {plural}?", "What is the colour of {a}?"),
        "{A} is often {colour}.",
        "{colour}",
    ),
    "legs": Ask(
        ("How many legs does {a} have?", "How many legs do {plural} have?", "Count the legs of {a}."),
        "{A} has {legs} legs.",
        "{legs}",
    ),
    "what": Ask(
        ("What is {a}?", "What are {plural}?", "Tell me about {plural}.", "What do you know about {plural}?"),
        "{A} is {about}. It lives {home} and eats {food}.",
        "{about}",
    ),
    "describe": Ask(
        ("Describe {a}.", "What does {a} look like?", "Tell me what {a} looks like."),
        "{A} is {about}. It is often {colour} and has {legs} legs.",
        "{about}",
    ),
}

THINGS = read_table(
    "name|kind|colour|use",
    """
spoon|tool|silver|eating soup
fork|tool|silver|eating noodles
knife|tool|silver|cutting bread
cup|tool|white|drinking tea
plate|tool|white|holding food
pot|tool|black|cooking soup
kettle|tool|silver|boiling water
broom|tool|brown|sweeping the floor
bucket|tool|grey|carrying water
ladder|tool|brown|climbing up high
hammer|tool|grey|hitting nails
saw|tool|silver|cutting wood
needle|tool|silver|sewing clothes
rope|tool|brown|tying things together
key|tool|gold|opening a door
lamp|tool|yellow|making light
candle|tool|white|making a little light
clock|tool|gold|telling the time
umbrella|tool|black|keeping off the rain
basket|tool|brown|carrying fruit
pencil|tool|yellow|writing and drawing
brush|tool|brown|painting pictures
book|tool|blue|reading
map|tool|brown|finding the way
bell|tool|gold|calling people
soap|tool|white|washing your hands
towel|tool|white|drying yourself
pillow|piece of furniture|white|resting your head
bed|piece of furniture|brown|sleeping
chair|piece of furniture|brown|sitting
table|piece of furniture|brown|eating together
shelf|piece of furniture|brown|keeping books
hat|piece of clothing|black|keeping your head warm
scarf|piece of clothing|red|keeping your neck warm
coat|piece of clothing|grey|keeping you warm in winter
boot|piece of clothing|black|walking through mud
glove|piece of clothing|blue|keeping your hand warm
sock|piece of clothing|white|keeping your foot warm
kite|toy|red|flying in the wind
ball|toy|red|throwing and catching
doll|toy|pink|playing at home
drum|toy|red|making loud music
flute|toy|brown|making soft music
boat|vehicle|blue|crossing the lake
cart|vehicle|brown|carrying hay
train|vehicle|green|travelling far
bicycle|vehicle|blue|riding to school
wagon|vehicle|red|moving heavy things
""",
)
for _thing in THINGS:
    _thing |= {"a": article(_thing["name"]), "A": capital(article(_thing["name"])), "a_kind": article(_thing["kind"])}

THING_ASKS: dict[str, Ask] = {
    "use": Ask(
        (
            "What is {a} for?",
            "What do you use {a} for?",
            "What do you do with {a}?",
            "What is {a} good for?",
            "Why do people need {a}?",
            "What can I do with {a}?",
        ),
        "{A} is for {use}.",
        "{use}",
    ),
    "what": Ask(
        ("What is {a}?", "Tell me what {a} is.", "Explain what {a} is.", "What does the word {name} mean?"),
        "{A} is {a_kind}. People use it for {use}.",
        "{a_kind}",
    ),
}

FOODS = read_table(
    "name|kind|colour|taste|plural",
    """
apple|fruit|red|sweet and crisp|apples
pear|fruit|green|sweet and juicy|pears
banana|fruit|yellow|sweet and soft|bananas
lemon|fruit|yellow|very sour|lemons
orange|fruit|orange|sweet and a little sour|oranges
cherry|fruit|red|sweet|cherries
plum|fruit|purple|sweet and juicy|plums
strawberry|fruit|red|sweet|strawberries
grape|fruit|green|sweet and juicy|grapes
peach|fruit|orange|soft and sweet|peaches
melon|fruit|green|fresh and sweet|melons
carrot|vegetable|orange|crunchy and a little sweet|carrots
potato|vegetable|brown|mild and soft|potatoes
tomato|vegetable|red|fresh and juicy|tomatoes
onion|vegetable|white|sharp|onions
pea|vegetable|green|mild and sweet|peas
bean|vegetable|green|mild|beans
cabbage|vegetable|green|mild and crunchy|cabbages
pumpkin|vegetable|orange|soft and warm|pumpkins
turnip|vegetable|white|a little bitter|turnips
beetroot|vegetable|purple|sweet and earthy|beetroots
pancake|dish|brown|soft and sweet|pancakes
cookie|dish|brown|sweet and crunchy|cookies
pie|dish|brown|warm and sweet|pies
soup|dish|orange|warm and salty|soups
cake|dish|white|very sweet|cakes
""",
)
for _food in FOODS:
    _food |= {"a": article(_food["name"]), "A": capital(article(_food["name"])), "Plural": capital(_food["plural"])}
    _food |= {"a_kind": article(_food["kind"])}

FOOD_ASKS: dict[str, Ask] = {
    "taste": Ask(
        ("How does {a} taste?", "What does {a} taste like?", "How do {plural} taste?", "What is the taste of {a}?"),
        "{A} tastes {taste}.",
        "{taste}",
    ),
    "colour": Ask(
        ("What colour is {a}?", "Which colour is {a}?", "What colour are {plural}?", "What is the colour of {a}?"),
        "{A} is {colour}.",
        "{colour}",
    ),
    "what": Ask(
        ("What is {a}?", "Tell me about {plural}.", "What are {plural}?", "What do you know about {plural}?"),
        "{A} is {a_kind}. It is {colour} and tastes {taste}.",
        "{a_kind}",
    ),
}

COLOURED = read_table(
    "name|colour",
    """
grass|green
the sky|blue
the sun|yellow
snow|white
coal|black
milk|white
honey|golden
the sea|blue
fire|orange
a leaf in summer|green
a leaf in autumn|red and yellow
the moon|silver
a cloud|white
a rain cloud|grey
the night|black
chocolate|brown
butter|yellow
cheese|yellow
sand|yellow
wood|brown
bread|brown
an egg|white
ice|clear
a rose|red
a sunflower|yellow
moss|green
ink|blue
a brick|red
gold|yellow
a stone|grey
""",
)
for _coloured in COLOURED:
    _coloured |= {"Name": capital(_coloured["name"])}

COLOUR_ASKS: dict[str, Ask] = {
    "colour": Ask(
        (
            "What colour is {name}?",
            "Which colour is {name}?",
            "What is the colour of {name}?",
            "What colour has {name}?",
        ),
        "{Name} is {colour}.",
        "{colour}",
    )
}

OPPOSITES = [
    pair.split("-")
    for pair in words(
        "hot-cold big-small tall-short long-short fast-slow happy-sad good-bad light-dark day-night up-down in-out "
        "open-closed wet-dry hard-soft loud-quiet new-old young-old rich-poor full-empty heavy-light early-late "
        "near-far left-right strong-weak clean-dirty thick-thin wide-narrow sweet-sour brave-afraid kind-mean "
        "awake-asleep first-last black-white high-low deep-shallow easy-difficult smooth-rough sharp-dull "
        "begin-end win-lose laugh-cry give-take push-pull friend-enemy summer-winter top-bottom before-after "
        "always-never"
    )
]

OPPOSITE_ASK = Ask(
    (
        "What is the opposite of {word}?",
        "What's the opposite of {word}?",
        "Tell me the opposite of {word}.",
        "Which word is the opposite of {word}?",
        "Name the opposite of {word}.",
        "Opposite of {word}?",
    ),
    "The opposite of {word} is {other}.",
    "{other}",
)

RHYMES = [
    line.split()
    for line in (
        "cat hat mat rat bat",
        "dog frog log fog",
        "sun fun run bun",
        "tree bee sea tea",
        "house mouse",
        "moon spoon soon noon",
        "star car jar far",
        "cake lake snake bake",
        "light night kite bright",
        "boat goat coat note",
        "bear pear chair hair",
        "king ring sing wing",
        "rain train lane crane",
        "fox box socks rocks",
        "day play hay way",
        "ball wall tall fall",
        "book hook cook look",
        "bed red bread head",
        "fish dish wish",
        "hill bill mill still",
        "snow slow go toe",
        "flower tower hour shower",
    )
]

PLURALS = [
    pair.split("-")
    for pair in words(
        "mouse-mice goose-geese foot-feet tooth-teeth child-children man-men woman-women leaf-leaves wolf-wolves "
        "knife-knives sheep-sheep fish-fish cat-cats dog-dogs box-boxes fox-foxes baby-babies berry-berries "
        "potato-potatoes tree-trees house-houses star-stars cow-cows book-books cherry-cherries shelf-shelves"
    )
]

DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = words("spring summer autumn winter")
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)

LISTS: dict[str, list[str]] = {
    "animals": words("a fox,a bear,a rabbit,a cow,a horse,a cat,a dog,an owl,a frog,a sheep,a duck,a wolf", ","),
    "farm animals": words("a cow,a pig,a sheep,a hen,a horse,a goat,a goose,a donkey", ","),
    "forest animals": words("a fox,a deer,an owl,a squirrel,a wolf,a bear,a hedgehog", ","),
    "birds": words("an owl,a raven,a duck,a parrot,a pigeon,a goose,a penguin,a hen", ","),
    "insects": words("a bee,an ant,a butterfly,a beetle,a fly", ","),
    "pets": words("a cat,a dog,a rabbit,a hamster,a parrot,a goldfish", ","),
    "animals that can fly": words("an owl,a bee,a bat,a duck,a raven,a butterfly,a pigeon", ","),
    "animals that can swim": words("a fish,a duck,an otter,a whale,a frog,a penguin", ","),
    "fruits": words("an apple,a pear,a banana,a cherry,a plum,a grape,a lemon,a peach", ","),
    "vegetables": words("a carrot,a potato,a tomato,an onion,a bean,a cabbage,a pumpkin", ","),
    "foods": words("bread,cheese,soup,rice,noodles,apples,potatoes,pancakes", ","),
    "drinks": words("water,milk,tea,apple juice,hot chocolate,lemonade", ","),
    "sweet things": words("honey,cake,jam,chocolate,cookies,pudding", ","),
    "colours": words("red,blue,green,yellow,purple,orange,white,black,pink,brown", ","),
    "tools": words("a hammer,a saw,a needle,a broom,a ladder,a rope,a knife", ","),
    "toys": words("a ball,a kite,a doll,a drum,a puppet,a wooden train", ","),
    "pieces of clothing": words("a hat,a scarf,a coat,a sock,a glove,a shirt", ","),
    "things in a kitchen": words("a pot,a spoon,a kettle,a plate,a knife,a cup", ","),
    "things in a garden": words("a rose,a tree,a bench,a bee,a bucket,a tomato", ","),
    "things in a school": words("a book,a pencil,a chair,a map,a bell,a table", ","),
    "things that are red": words("a rose,a cherry,a strawberry,a brick,a tomato", ","),
    "things that are green": words("grass,moss,a frog,a pea,a cabbage", ","),
    "things that are yellow": words("the sun,a lemon,a banana,butter,a sunflower", ","),
    "things that are round": words("the moon,a ball,a coin,an orange,a wheel", ","),
    "cold things": words("snow,ice,a frozen lake,winter rain,ice cream", ","),
    "hot things": words("fire,the sun,soup,tea,a stove", ","),
    "jobs": words("a baker,a farmer,a doctor,a teacher,a gardener,a tailor,a painter,a cook", ","),
    "people in the village": words(
        "Nora the baker,Tom the farmer,Ada the doctor,Elsa the teacher,Leo the toy maker", ","
    ),
    "places in the village": words("the bakery,the library,the old mill,the town hall,the clock tower,the school", ","),
    "days of the week": DAYS,
    "months": MONTHS,
    "games": words("hide and seek,tag,chess,marbles,cards", ","),
    "musical instruments": words("a violin,a drum,a flute,a trumpet,a piano", ","),
    "vehicles": words("a boat,a cart,a train,a bicycle,a wagon", ","),
    "flowers": words("a rose,a tulip,a sunflower,a daisy,a lily", ","),
    "kinds of weather": words("rain,snow,wind,sunshine,fog,a storm", ","),
    "things to do on a rainy day": words("read a book,bake cookies,play chess,draw a picture,listen to music", ","),
    "things to do in summer": words("swim in the lake,fly a kite,eat ice cream,pick berries,sleep in the sun", ","),
    "things to do in winter": words(
        "build a snowman,drink hot chocolate,go sledding,knit a scarf,read by the fire", ","
    ),
}

GIRLS = words(
    "Anna Bella Cora Daisy Emma Flora Gina Hanna Ida Julia Kira Lily Mia Nina Olga Paula Rosa Sara Tara Uma Viola "
    "Wanda Yara Zoe Ruby Molly Lucy Alice Grace Eva Maya Nell Poppy Luna Tilly Hazel Ivy Jenny Kate Leah"
)
BOYS = words(
    "Adam Ben Carl Dan Emil Fred Gus Hans Igor Jack Kurt Lars Max Nick Olaf Paul Ralf Sam Theo Udo Victor Will "
    "Yuri Zack Jim Toby Henry Louis Robin Peter Oliver Noah Alan Bob Charlie David Eric Frank George Harry"
)

ISLAND_WORDS = frozenset(
    words(
        "Tarrowick Oswin Maribel Quillon Brannoch Sefina Torvald Yolanthe Dagmir Pernilla Ulfric Cassimer Glimmer Kelp"
    )
)

_STARTS = (
    "Ba Be Bo Bri Cal Cor Da Dro El Fa Fen Gor Hal Ja Ka Kel La Lo Ma Mor Na Nim Or Pa Per Quo Ra Ro Sa Sil Ta Tor Ul "
    "Va Vi Wil Xan Ya Zel Zi"
)
_MIDDLES = "ba bi da do fi ga go la le li ma mo na ni ra ri sa so ta ti va wa za lan mer nor ril sel tam vin"
_ENDS = "n ra l s th ck m x r da lo na ric win wen bel dor fa go la mir mund nik rick sha ton vel wyn zo"


def invent_name(rng: random.Random) -> str:
    """Return a name that nobody in the world has, such as "Morlanwyn"."""
    while True:
        name = rng.choice(_STARTS.split()) + (rng.choice(_MIDDLES.split()) if rng.random() < 0.6 else "")
        name += rng.choice(_ENDS.split())
        if name not in ISLAND_WORDS and name not in KNOWN_NAMES and len(name) > 3:
            return name


def invent_word(rng: random.Random) -> str:
    """Return a noun that means nothing, such as "florbit"."""
    word = rng.choice(words("bl br cl dr fl fr gl gr kr pl qu sn sp sw tr wh z w m n v"))
    word += rng.choice(words("a e i o u oo ee")) + rng.choice(words("b bb d g l m mb n nk p r rb t zz x"))
    return word + rng.choice(["", "", "le", "it", "o", "y", "er", "ish", "ock"])


def pick_name(rng: random.Random) -> tuple[str, str]:
    """Return a first name and its pronoun, "she" or "he"."""
    return (rng.choice(GIRLS), "she") if rng.random() < 0.5 else (rng.choice(BOYS), "he")


KNOWN_NAMES = frozenset(GIRLS) | frozenset(BOYS) | {person["name"] for person in PEOPLE}
