"""The records of make_lm_eval_tasks.py, written for this repository, in Hugging Face's fields; POOL holds few-shot examples.

They carry what the tasks' rules are about: spaces at the ends, brackets, capitals, several labels, empty supports, quotes
and line ends in CSV, numbers with commas, text beyond ASCII.
"""

LETTERS = ("A", "B", "C", "D", "E")


def options(*texts, labels=LETTERS):
    return {"text": list(texts), "label": list(labels[: len(texts)])}


def openbook(i, stem, texts, key):
    return {"id": f"7-{i}", "question_stem": stem, "choices": options(*texts), "answerKey": key}


OPENBOOKQA = [
    openbook(1, "A candle goes out under a glass because", ["it used up the oxygen", "glass is heavy", "wax is cold", "light has weight"], "A"),
    openbook(2, "Which of these can a magnet lift?", ["a paper cup", "an iron nail", "a glass ball", "a wooden spoon"], " B"),
    openbook(3, "Frost on a window is", ["dust", "salt", "frozen water", "smoke"], "C"),
    openbook(4, "A plant kept in the dark will", ["bloom", "glow", "sing", "turn pale"], "D"),
    openbook(5, "Sand on a beach was once", ["rock", "rain", "wool", "steam"], "A"),
    openbook(6, "Bees visit flowers and carry", ["pollen", "pebbles", "paint", "paper"], "A"),
    openbook(7, "A shadow is longest", ["at noon", "in the evening", "under water", "in a cave"], "B"),
    openbook(8, "A hot spoon in cold water makes the water", ["colder", "warmer", "salty", "solid"], "B"),
    openbook(9, "An echo is sound that", ["comes back", "is lost", "has colour", "melts"], "A"),
    openbook(10, "Wool keeps us warm since it holds", ["light", "air", "salt", "iron"], "B"),
]  # fmt: skip


def sciq(question, correct, others, support):
    return {
        "question": question,
        "distractor3": others[2],
        "distractor1": others[0],
        "distractor2": others[1],
        "correct_answer": correct,
        "support": support,
    }


SCIQ = [
    sciq("What gas do leaves take in?", "carbon dioxide", ["helium", "oxygen", "neon"], "Leaves take in carbon dioxide and give off oxygen. Light drives the exchange."),
    sciq("What do we call the path of a planet?", "orbit", ["axis", "comet", "crater"], ""),
    sciq("What is the hard part of a tooth called?", "enamel", ["marrow", "gum", "nerve"], "  A tooth is covered by enamel,\nthe hardest substance in the body."),
    sciq("What force slows a sliding sledge?", "friction", ["gravity", "magnetism", "pressure"], "\nRough surfaces rub against each other."),
    sciq("At which temperature, in °C, does water freeze?", "0", ["-10", "4", "100"], "Water freezes at 0 °C and boils at 100 °C."),
    sciq("What carries signals from the eye?", "the optic nerve", ["the lens", "the iris", "the lid"], "The optic nerve joins eye and brain."),
    sciq("Which animal is a mammal?", "whale", ["shark", "crab", "trout"], "Whales breathe air."),
    sciq("What is molten rock called below ground?", "magma", ["lava", "basalt", "ash"], "Magma that reaches the surface is called lava."),
    sciq("What do roots take up?", "water", ["light", "pollen", "nectar"], ""),
]  # fmt: skip


def boolq(i, question, passage, label):
    return {"question": question, "passage": passage, "idx": i, "label": label}


BOOLQ = [
    boolq(0, "is the mill still grinding corn", "Old mill -- The old mill by the river stopped grinding in 1931. Since then it has housed a bakery.", 0),
    boolq(1, "can you cross the bridge by car", "Stone bridge -- The stone bridge was closed to carts for a century. Since 1988 cars may cross it, one at a time.", 1),
    boolq(2, "is café crème made with milk", "Coffee -- A café crème is coffee with milk or cream, served in a large cup.", 1),
    boolq(3, "do the lighthouse keepers live on the island", "Lighthouse -- The light was made automatic in 1974; the last keepers left a year later.", 0),
    boolq(4, "is the red fox a kind of dog", "Red fox -- The red fox belongs to the dog family, but it is not a domestic dog.", 0),
    boolq(5, "does the train stop at the harbour", "Coast line -- Every second train stops at the harbour.", 1),
    boolq(6, "was the tower built of wood", "Watchtower -- The tower is of brick on a base of granite.", 0),
    boolq(7, "is the lake open in winter", "Lake -- The lake is open all year.", 1),
]  # fmt: skip


def copa(i, premise, choice1, choice2, question, label):
    return {"premise": premise, "choice1": choice1, "choice2": choice2, "question": question, "idx": i, "label": label}


COPA = [
    copa(0, "The ice on the pond broke.", "The boy fell in.", "The boy skated on.", "effect", 0),
    copa(1, "The soup was too salty. ", "The cook forgot the salt.", "The cook spilled the salt.", "cause", 1),
    copa(2, "The wind blew the hat away.", "I ran after it.", "I put it on.", "effect", 0),
    copa(3, "The baby woke up.", "The room was quiet.", "A door slammed.", "cause", 1),
    copa(4, "The lamp went dark.", "The bulb had burnt out.", "The bulb was new.", "cause", 0),
    copa(5, "It rained all night.", "The river fell.", "Überall stand Wasser.", "effect", 1),
    copa(6, "The cake burnt.", "The oven was too hot.", "The oven was off.", "cause", 0),
    copa(7, "She missed the bus.", "She arrived early.", "She walked to work.", "effect", 1),
    copa(8, "The dog barked.", "A stranger came.", "It was asleep.", "cause", 0),
    copa(9, "He lost his key.", "He went in.", "He rang the bell.", "effect", 1),
]


def commonsense(i, question, concept, texts, key):
    choices = options(*texts)
    return {
        "id": f"{i:032x}",
        "question": question,
        "question_concept": concept,
        "choices": {"label": choices["label"], "text": choices["text"]},
        "answerKey": key,
    }


COMMONSENSE_QA = [
    commonsense(1, "Where would you look for a spare button?", "button", ["sewing box", "pond", "chimney", "letter box", "bookshelf"], "A"),
    commonsense(2, " What do people wear on their feet in snow? ", "snow", ["gloves", "boots", "scarf", "belt", "ring"], "B"),
    commonsense(3, "What might you do before the guests arrive?", "guests", ["leave town", "sleep late", "tidy the room", "break a vase", "sell the house"], "C"),
    commonsense(4, "Where do you keep milk?", "milk", ["attic", "drawer", "oven", "fridge", "garage"], "D"),
    commonsense(5, "What is a ladder used for?", "ladder", ["cooking", "reading", "swimming", "sleeping", "climbing"], "E"),
    commonsense(6, "Where does a river end?", "river", ["sea", "roof", "cup", "cloud", "street"], "A"),
    commonsense(7, "What do you need to open a tin?", "tin", ["spoon", "tin opener", "pillow", "rope", "comb"], "B"),
    commonsense(8, "Who repairs shoes?", "shoes", ["baker", "pilot", "cobbler", "judge", "singer"], "C"),
]  # fmt: skip


def social(context, question, answers, label):
    return dict(context=context, question=question, **dict(zip(("answerA", "answerB", "answerC"), answers, strict=True)), label=label)  # fmt: skip


SOCIAL_IQA = [
    social("Kim forgot Lee's birthday.", "How would Lee feel afterwards?", ["proud", "hurt", "hungry"], "2"),
    social("Robin carried the neighbour's bags upstairs.", "How would you describe Robin?", ["kind", "rude", "lazy"], "1"),
    social("Sam studied all night for the test.", "What will Sam want to do next?", ["go dancing", "cook a feast", "sleep"], "3"),
    social("Alex found a purse in the street.", "What does Alex need to do next?", ["look for its owner", "buy a hat", "paint it"], "1"),
    social("Jo spilled juice on Max's book.", "What will Jo want to do?", ["laugh about it", "say sorry", "ask for more"], "2"),
    social("Pat won the race.", "How would Pat feel?", ["sad", "glad", "lost"], "2"),
    social("Toni lent Uma a coat.", "Why did Toni do this?", ["to help", "to boast", "to hide"], "1"),
    social("Vic broke a cup.", "What will Vic do now?", ["sing", "dream", "sweep the floor"], "3"),
]


def gap(sentence, first, second, answer):
    return {"sentence": sentence, "option1": first, "option2": second, "answer": answer}


WINOGRANDE = [
    gap("The vase did not fit in the box because the _ was too large.", "vase", "box", "1"),
    gap("The vase did not fit in the box because the _ was too small.", "vase", "box", "2"),
    gap("Ann thanked Bea for the help that _ had given.", "Ann", "Bea", "2"),
    gap("The cat chased the mouse until _ was tired .", "the cat", "the mouse", "1"),
    gap("Carl asked Dan for a loan since _ was out of money.", "Carl", "Dan", "1"),
    gap("The rope held the boat, but the _ tore.", "rope", "boat", "1"),
    gap("Eva paid Fay, so _ had less money.", "Eva", "Fay", "1"),
    gap("The nail went into the board because the _ was soft.", "nail", "board", "2"),
]

LAMBADA = [
    {"text": "She opened the box and looked inside. There was nothing but an old key. She took the key"},
    {"text": "The dog sat by the door and waited. When the boy came home, he greeted the dog"},
    {"text": "\"Where is the map?\" he asked.\n\n\"Under the table,\" she said. He bent down and found the map"},
    {"text": "One spoon, two spoons, three spoons, four  spoons"},
    {"text": "The café was closed, so they drank their tea at the other café"},
    {"text": "Winter came, then spring, then summer, and again it was winter"},
]


def question(subject, text, choices, answer):
    return {"question": text, "subject": subject, "choices": choices, "answer": answer}


MMLU = [
    question("astronomy", "Which body is a star?", ["Venus", "The Moon", "The Sun", "Halley's Comet"], 2),
    question("astronomy", " How long does the Earth take to go round the Sun?", ["A day", "A week", "A month", "A year"], 3),
    question("astronomy", 'What is a "light-year"?', ["A distance", "A time", "A speed, in km/s", "A mass"], 0),
    question("astronomy", "The seasons are caused by\nthe tilt of", ["the Moon", "the Earth's axis", "Mars", "a ring, \"Saturn's\""], 1),
    question("astronomy", "Which planet is the largest?", ["Mars", "Earth", "Mercury", "Jupiter"], 3),
]  # fmt: skip
MMLU_DEV = [
    question("astronomy", "Which planet has rings?", ["Saturn", "Venus", "Mercury", "Mars"], 0),
    question("astronomy", "What lights the Moon?", ["Its lava", "The Sun", "The stars", "The Earth's core"], 1),
    question("astronomy", "What is a meteor?", ["A planet", "A star", "A glowing stone in the air", "A cloud"], 2),
    question("astronomy", "Which is nearest to the Sun?", ["Neptune", "Mars", "Earth", "Mercury"], 3),
    question("astronomy", "What keeps planets in their orbits?", ["Gravity", "Wind", "Light", "Heat"], 0),
]

# (description, documents, examples) of a task of BIG-Bench Hard; the examples stand in for those of lm-eval's task file.
BBH = {
    "boolean_expressions": (
        "Say whether a Boolean expression is true.",
        [
            {"input": "not ( True ) or False is", "target": "False"},
            {"input": "True and not False is", "target": "True"},
            {"input": "( False or True ) and not ( True ) is", "target": "False"},
        ],
        [
            {"input": "not ( False ) is", "target": "not False = True. So the answer is True."},
            {"input": "True and False is", "target": "Both must be true, and one is not. So the answer is False."},
            {"input": "( not False ) or False is", "target": "not False = True.\nTrue or False = True. So the answer is True."},
        ],
    ),
    "word_sorting": (
        "Put words in the order of the alphabet.",
        [
            {"input": "Sort the following words alphabetically: List: pear apple fig", "target": "apple fig pear"},
            {"input": "Sort the following words alphabetically: List: river lake sea pond", "target": "lake pond river sea"},
        ],
        [
            {"input": "Sort the following words alphabetically: List: cup bowl", "target": "b comes before c. So the answer is bowl cup."},
            {"input": "Sort the following words alphabetically: List: dog ant cat", "target": "a, c, d. So the answer is ant cat dog."},
            {"input": "Sort the following words alphabetically: List: sun moon", "target": "m comes before s. So the answer is moon sun."},
        ],
    ),
}  # fmt: skip

GSM8K = [
    {"question": "A baker bakes 12 loaves and sells 7. How many are left?", "answer": "12 - 7 = <<12-7=5>>5 loaves are left.\n#### 5"},
    {"question": "Tickets cost $1,250 each. What do 4 tickets cost?", "answer": "4 * 1250 = $<<4*1250=5000>>5,000\n#### 5,000"},
    {"question": "Mia reads 15 pages a day. How many pages does she read in 6 days?", "answer": "15 * 6 = <<15*6=90>>90 pages.\n#### 90"},
]  # fmt: skip
GSM8K_TRAIN = [
    {"question": "Tom has 3 boxes of 8 pens. How many pens has he?", "answer": "3 * 8 = <<3*8=24>>24 pens.\n#### 24"},
    {"question": "A rope of 20 m is cut into 4 equal parts. How long is each?", "answer": "20 / 4 = <<20/4=5>>5 m.\n#### 5"},
    {"question": "Nina had $50 and spent $18. What is left?", "answer": "50 - 18 = $<<50-18=32>>32.\n#### 32"},
    {"question": "There are 9 rows of 11 chairs. How many chairs are there?", "answer": "9 * 11 = <<9*11=99>>99 chairs.\n#### 99"},
    {"question": "A train leaves at 9 and arrives at 14 o'clock. How many hours does it take?", "answer": "14 - 9 = <<14-9=5>>5 hours.\n#### 5"},
    {"question": "Half of 36 eggs are brown. How many are white?", "answer": "36 / 2 = <<36/2=18>>18 eggs.\n#### 18"},
    {"question": "Omar runs 2 km on each of 7 days. How far is that?", "answer": "2 * 7 = <<2*7=14>>14 km.\n#### 14"},
]  # fmt: skip


def gpqa(text, correct, *wrong):
    return {
        "Question": text,
        "Correct Answer": correct,
        "Incorrect Answer 1": wrong[0],
        "Incorrect Answer 2": wrong[1],
        "Incorrect Answer 3": wrong[2],
    }


GPQA = [
    gpqa("Which particle carries a negative charge?", "The electron", "The neutron", "The proton", "The photon"),
    gpqa("What does a catalyst change?", " The rate of a reaction\n", "Its heat", "Its products", "Its equilibrium [title]constant"),
    gpqa("Which quantity is conserved in an elastic collision?", "Kinetic energy", "Temperature  only", "Volume", "Entropy"),
    gpqa("How many electrons does a carbon atom have?", "6", "4", "8", "12"),
    gpqa("Which bond joins two bases of a strand pair in DNA?", "A hydrogen bond", "An ionic bond", "A metallic bond", "A peptide, or amide, bond"),
]  # fmt: skip

WIKITEXT = [
    {
        "page": " = Old mill = \n \n The old mill ( built in 1 @,@ 702 ) stands by the river . It has a well @-@ known wheel , 4 @.@ 5 m wide . \n"
        ' The miller \'s house is called " the <unk> " ; it was sold for N crowns . \n \n = = History = = \n \n'
        " The first miller , John <unk> , came in 1699 : he stayed ! Why ? Nobody knows . \n"
    },
    {
        "page": " = Bridge = \n \n The bridge [ rebuilt twice ] is { as its builders ' plans show } 30 m long . At 20 ° C it grows by 2 mm . \n"
        " = = = Traffic = = = \n \n Carts , ' cars ' and sledges cross it . \n"
    },
    {"page": " = Lake = \n \n A lake . \n \n = = = = Depth = = = = \n \n It is deep . \n"},
]
