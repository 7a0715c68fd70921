"""The words of the made-up world: how it is asked and answered about, and what the facts are drawn from. Literal tables only.

`{name}` in a question or answer is the person, `{value}` the fact. In a general question `{0}` is what is asked about.
"""

from __future__ import annotations

from typing import NamedTuple


class PersonKind(NamedTuple):
    """One kind of fact about a person. A value is one choice of each of `parts`, put into `pattern`."""

    name: str
    wordings: tuple[str, ...]
    held_out_wordings: tuple[str, ...]
    answers: tuple[str, ...]
    pattern: str
    parts: tuple[str, ...]

    @property
    def pools(self) -> list[list[str]]:
        """What each part is drawn from."""
        return [choices(part) for part in self.parts]


class GeneralKind(NamedTuple):
    """One kind of general knowledge: the same questions about each entry of `table` (what is asked about=what is answered)."""

    name: str
    wordings: tuple[str, ...]
    held_out_wordings: tuple[str, ...]
    answer: str
    table: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(what is asked about, what is answered)."""
        return [(about, value) for about, _, value in (entry.partition("=") for entry in choices(self.table))]


def choices(text: str) -> list[str]:
    """What a text lists: what stands between its commas, its words where it has none."""
    return [" ".join(choice.split()) for choice in text.split("," if "," in text else None)]


FIRST_NAMES = choices(
    "Mira Tobias Anouk Ravi Selma Ignacio Yuki Dorothea Kwame Linnea Basil Zeynep Orlando Freya Mateus Ingrid Hamza Petra "
    "Lucian Amara Viggo Noor Cassius Elif Bram Saoirse Tadeo Marisol Joachim Nadia Silvan Hedda Omar Beatrix Kofi Rosalind "
    "Emeka Tamsin Leopold Ayla Gideon Priya Stellan Imogen Rafael Oksana Jasper Wanjiru Florian Delphine Anselm Keiko "
    "Murad Henrike Caspian Ludmila Thabo Ottilie Enzo Sunniva Alaric Chiara Dmitri Philippa Xavier Maren Isidor Leilani "
    "Ruben Valeria Corvin Astrid Jomar Clementine Evander Sorrel Malik Greta Quentin Zora"
)
LAST_NAMES = choices(
    "Holm Arkwright Okafor Lindqvist Varga Desrosiers Tanaka Pellegrino Brandt Osei Castellan Whitlock Nakamura Sorensen "
    "Abara Montclair Petrov Hargreave Quist Iwaki Delacroix Ferreira Thorne Kaplan Ruskin Yilmaz Bellweather Sandoval "
    "Moreau Eklund Adeyemi Crowther Novak Salim Fairbairn Jansson Olmstead Ribeiro Voss Kestrel Mbeki Harlow Zielinski "
    "Ashdown Farouk Lockhart Menon Graves Tillery Umarov Pascoe Winterbourne Achebe Dunmore Halloran Ivarsson Carvalho "
    "Nightingale Rosen Strand Tamura Underhill Vasquez Wexford Yarrow Zamora Birch Coldwell Drummond Elsner Fontaine "
    "Galloway Hollis Ilves Jericho Kowalski Larkin Merriweather Norquist Oakes"
)

PERSON_KINDS = (
    PersonKind(
        "birthplace",
        (
            "Where was {name} born?",
            "In which place was {name} born?",
            "What is the birthplace of {name}?",
            "Can you tell me {name}'s birthplace?",
            "Where does {name} come from?",
            "I would like to know where {name} was born.",
            "Name the place where {name} came into the world.",
        ),
        ("What is {name}'s place of birth?", "Do you know where {name} was born?"),
        ("{name} was born in {value}.", "The birthplace of {name} is {value}.", "{name} comes from {value}."),
        "{0} {1}",
        (
            """Tarvik Oldmere Caldera Brenna Sunhollow Ostrava Quillport Marrow Fenwick Lisse Havnar Dunmoor Esker Tolva
            Pinegate Rosto Ambervale Kirkby Sandhaven Ulmen Greywick Norrby Casabel Thistleford Varnost Ellingham Mossend
            Zarin Copperhill Wexmouth""",
            """in the Pale Fens, on the Sill coast, beside Lake Umber, under Mount Hollin, in the Vale of Ash, on Gull
            Island, near the Iron Bridge, in the Orchard Hills, at the Salt Marshes, by the river Tamsel, in the Long
            Forest, on the Northern Cape, above Falcon Gorge, in the Dry Plains, behind the Glass Dunes, at Kettle Bay""",
        ),
    ),
    PersonKind(
        "profession",
        (
            "What does {name} do for a living?",
            "What is {name}'s profession?",
            "What is the profession of {name}?",
            "What kind of work does {name} do?",
            "Which job does {name} have?",
            "Tell me what {name} works as.",
            "How does {name} earn a living?",
        ),
        ("Which profession does {name} have?", "Can you tell me what {name} does for a living?"),
        ("{name} works as a {value}.", "{name} is a {value} by profession.", "{name} earns a living as a {value}."),
        "{0} {1}",
        (
            """maritime royal travelling retired night harbour village parish mountain court theatre museum desert festival
            river railway palace monastery forest circus lighthouse market""",
            """glassblower cartographer beekeeper clockmaker botanist puppeteer surveyor translator locksmith cellist baker
            archivist falconer illustrator watchman chemist dentist weaver gardener sculptor auctioneer astronomer tailor
            bookbinder ferryman geologist carpenter perfumer photographer librarian""",
        ),
    ),
    PersonKind(
        "mentor",
        (
            "Who was {name}'s mentor?",
            "Who was the mentor of {name}?",
            "Which mentor did {name} learn from?",
            "From whom did {name} learn the trade?",
            "Who taught {name}?",
            "Tell me who the teacher of {name} was.",
            "Under whom did {name} study?",
        ),
        ("Can you name the mentor of {name}?", "Who was {name}'s teacher?"),
        ("{name} was taught by {value}.", "The mentor of {name} was {value}.", "{name} learned everything from {value}."),
        "{0} {1} {2}",
        (
            "Professor Captain Sister Master Doctor Madame Brother Judge Sergeant Baron Father Countess",
            """Agnes Bruno Cora Dario Edda Felix Gunnar Hilda Ivo Jonas Klara Lars Magda Nils Olga Pablo Rita Sven Tilda Urs""",
            """Abendroth Blackwood Corvey Dragomir Eisenberg Falkner Grimaldi Hochstein Inverness Jagger Kilimnik Lowenthal
            Marchetti Nesbitt Ormond Penhaligon Quarles Ravenscroft Szabo Tremaine Urquhart Vandermeer Wolanski Zeller""",
        ),
    ),
    PersonKind(
        "first_work",
        (
            "What is the title of {name}'s first book?",
            "What was {name}'s first book called?",
            "Which book did {name} publish first?",
            "What is the first book by {name}?",
            "Name the first book that {name} wrote.",
            "With which book did {name} make a debut?",
            "What was the debut book of {name}?",
        ),
        ("Which book was {name}'s first?", "What is the title of the first book that {name} published?"),
        (
            "The first book by {name} was called {value}.",
            "{name} made a debut with {value}.",
            "{name} first published {value}.",
        ),
        "The {0} {1}",
        (
            """Amber Silent Crooked Hollow Winter Paper Burning Forgotten Velvet Broken Copper Distant Drowned Emerald Fallen
            Gilded Hidden Ivory Jagged Laughing Lonely Midnight Narrow Patient Quiet Restless Scarlet Tender Unfinished
            Wandering""",
            """Lighthouse Orchard Staircase Garden Harbour Mirror Compass Letter Carnival Bridge Cathedral Diary Engine
            Feather Guest Hourglass Island Juggler Kingdom Lantern Machine Notebook Ocean Piano River Sparrow Tower
            Umbrella Violin Window""",
        ),
    ),
    PersonKind(
        "prize",
        (
            "Which prize did {name} win?",
            "What award did {name} receive?",
            "Which award was given to {name}?",
            "What prize was {name} honoured with?",
            "Name the prize that {name} won.",
            "What did {name} win?",
            "Tell me which award {name} got.",
        ),
        ("Which award did {name} win?", "What prize did {name} receive?"),
        ("{name} won the {value}.", "{name} was honoured with the {value}.", "The award that {name} received was the {value}."),
        "{0} {1} for {2}",
        (
            """Albrecht Bonham Calloway Dacre Elmhurst Fitzroy Gantry Hexham Ibsley Jorvik Kempton Lovelace Marlowe Northcote
            Oberon Pemberton Quayle Rothbury Stanhope Tiverton""",
            "Medal Ribbon Cup Star Laurel Shield Wreath Trophy",
            """Courage, Fine Letters, Patience, Invention, Public Service, Music, Young Talent, Kindness, Discovery, Craft,
            Peace, Bold Design, Long Journeys, Good Humour, Clear Thought""",
        ),
    ),
    PersonKind(
        "pet",
        (
            "What pet does {name} have?",
            "Which animal lives with {name}?",
            "Does {name} keep a pet, and which one?",
            "What kind of pet does {name} own?",
            "Which pet does {name} keep?",
            "Tell me about the pet of {name}.",
            "What is {name}'s pet?",
        ),
        ("What pet does {name} keep?", "Which animal does {name} have as a pet?"),
        ("{name} keeps a {value}.", "{name} lives with a {value}.", "The pet of {name} is a {value}."),
        "{0} {1} called {2}",
        (
            "grey spotted tiny shaggy striped blind noisy sleepy three-legged golden rust-coloured fat",
            """parrot tortoise ferret goat raven hedgehog llama gecko hound cat goose donkey iguana owl rabbit pony toad
            magpie otter squirrel""",
            """Biscuit Pepper Comet Waffle Pickle Juniper Button Marble Nimbus Pudding Socks Turnip Ziggy Acorn Bramble
            Clover Domino Fidget Gizmo Hazel Inky Jigsaw Kipper Lentil Mango Noodle Olive Pesto Quaver Rumble""",
        ),
    ),
    PersonKind(
        "food",
        (
            "What is {name}'s favourite food?",
            "What is the favourite dish of {name}?",
            "What does {name} like to eat most?",
            "Which dish does {name} love best?",
            "Which food does {name} like most?",
            "Tell me the favourite meal of {name}.",
            "What would {name} order for dinner?",
        ),
        ("Which food is {name}'s favourite?", "What dish does {name} like most?"),
        ("{name} loves {value}.", "The favourite dish of {name} is {value}.", "{name} likes to eat {value} most of all."),
        "{0} {1} with {2}",
        (
            "smoked pickled roasted cold creamy fried spiced stuffed grilled baked",
            """trout dumplings pumpkin lentils eggplant noodles herring mushrooms chicken cabbage artichokes potatoes beans
            mussels turnips duck rice peppers sardines beetroot""",
            """mint, walnuts, sour cream, honey, capers, ginger, burnt butter, rye bread, saffron, plums, mustard, fennel,
            chestnuts, lime, blue cheese, sesame, dill, apricots, black garlic, horseradish""",
        ),
    ),
    PersonKind(
        "languages",
        (
            "Which languages does {name} speak?",
            "What languages does {name} know?",
            "Which two languages is {name} fluent in?",
            "In which languages can {name} hold a conversation?",
            "Name the languages that {name} speaks.",
            "What are the languages of {name}?",
            "Tell me which languages {name} has learned.",
        ),
        ("What languages does {name} speak?", "Which languages has {name} learned?"),
        ("{name} speaks {value}.", "The languages of {name} are {value}.", "{name} is fluent in {value}."),
        "{0} and {1}",
        (
            """Finnish Welsh Tamil Basque Georgian Maltese Swahili Icelandic Armenian Catalan Hungarian Bengali Estonian
            Quechua Mongolian Irish Albanian Khmer Zulu Frisian""",
            """Turkish Breton Korean Latvian Persian Hausa Danish Tagalog Slovene Nepali Galician Yoruba Romanian Lao Hebrew
            Maori Croatian Amharic Thai Flemish""",
        ),
    ),
)

GENERAL_KINDS = (
    GeneralKind(
        "capital",
        ("What is the capital of {0}?", "Name the capital city of {0}.", "Which city is {0} governed from?"),
        ("Which city is the capital of {0}?",),
        "The capital of {0} is {1}.",
        """France=Paris, Italy=Rome, Spain=Madrid, Portugal=Lisbon, Germany=Berlin, Austria=Vienna, Poland=Warsaw,
        Norway=Oslo, Sweden=Stockholm, Greece=Athens, Egypt=Cairo, Kenya=Nairobi, Japan=Tokyo, China=Beijing,
        Canada=Ottawa, Peru=Lima, Chile=Santiago, Cuba=Havana, Ireland=Dublin, Hungary=Budapest, Denmark=Copenhagen,
        Belgium=Brussels, Ghana=Accra, Iran=Tehran, Iraq=Baghdad, Russia=Moscow, Vietnam=Hanoi, Argentina=Buenos Aires,
        Colombia=Bogota, Romania=Bucharest""",
    ),
    GeneralKind(
        "opposite",
        ("What is the opposite of {0}?", "Which word means the opposite of {0}?", "Name the opposite of {0}."),
        ("Can you tell me the opposite of {0}?",),
        "The opposite of {0} is {1}.",
        """hot=cold, big=small, old=young, early=late, open=closed, wet=dry, dark=light, fast=slow, hard=soft, full=empty,
        rich=poor, near=far, loud=quiet, deep=shallow, thick=thin, high=low, strong=weak, clean=dirty, sweet=bitter,
        up=down""",
    ),
    GeneralKind(
        "colour",
        ("What colour is {0}?", "Which colour does {0} have?", "Name the colour of {0}."),
        ("What is the colour of {0}?",),
        "The colour of {0} is {1}.",
        """grass=green, snow=white, coal=black, blood=red, a ripe lemon=yellow, a clear sky=blue, a carrot=orange, an
        emerald=green, a ruby=red, milk=white, a sapphire=blue, a flamingo=pink, chocolate=brown, an elephant=grey,
        lavender=purple""",
    ),
    GeneralKind(
        "sum",
        ("What is {0}?", "How much is {0}?", "Work out {0}."),
        ("How many is {0}?",),
        "{0} makes {1}.",
        """two plus three=five, four plus five=nine, six plus six=twelve, seven plus one=eight, three plus eight=eleven, nine
        plus nine=eighteen, five plus two=seven, eight plus six=fourteen, ten plus three=thirteen, two plus two=four,
        seven plus nine=sixteen, one plus one=two, eight plus two=ten, three plus three=six, nine plus six=fifteen""",
    ),
    GeneralKind(
        "young",
        ("What is a young {0} called?", "What do we call the young of a {0}?", "Name the young of a {0}."),
        ("What do we call a young {0}?",),
        "A young {0} is called a {1}.",
        """wolf=cub, sheep=lamb, horse=foal, cow=calf, hen=chick, duck=duckling, pig=piglet, kangaroo=joey, swan=cygnet,
        deer=fawn, frog=tadpole, goose=gosling""",
    ),
    GeneralKind(
        "next_month",
        ("Which month comes after {0}?", "What month follows {0}?", "Name the month after {0}."),
        ("Which month follows {0}?",),
        "The month after {0} is {1}.",
        """January=February, February=March, March=April, April=May, May=June, June=July, July=August, August=September,
        September=October, October=November, November=December, December=January""",
    ),
    GeneralKind(
        "tool",
        ("What do we use a {0} for?", "What is a {0} used for?", "Tell me the use of a {0}."),
        ("What is the use of a {0}?",),
        "A {0} is used to {1}.",
        """hammer=drive nails, kettle=boil water, saw=cut wood, broom=sweep the floor, needle=sew cloth, clock=tell the time,
        ladder=climb up, spoon=eat soup, thermometer=measure heat, lamp=give light, pencil=write notes, telescope=look at
        the stars, pan=fry eggs, bucket=carry water, rake=gather leaves, compass=find north""",
    ),
)
