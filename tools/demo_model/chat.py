"""Questions that need no image: sums, opposites, greetings, and what the model can do."""

from __future__ import annotations

from random import Random

from tools.demo_model.turns import Turn, pick
from tools.demo_model.words import held_out

OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("day", "night"), ("black", "white"),
    ("left", "right"), ("good", "bad"), ("old", "young"), ("wet", "dry"), ("open", "closed"),
    ("fast", "slow"), ("high", "low"), ("full", "empty"), ("hard", "soft"), ("light", "dark"),
    ("rich", "poor"), ("long", "short"), ("early", "late"), ("yes", "no"), ("in", "out"),
    ("loud", "quiet"), ("first", "last"), ("strong", "weak"), ("thick", "thin"),
)  # fmt: skip
ABILITY = "I can name shapes and colours, count, and read digits and short words."
GREETING = "Hello! Show me a picture and ask me about it."
TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello!", "Hi!", "Hello", "Hi there!", "Good morning!", "Good evening!", "Hey!", "Hi.",
      "Hello there!", "Good day!"), GREETING),
    (("Thank you.", "Thanks!", "Thank you very much.", "Thanks a lot!", "Many thanks!"),
     "You are welcome."),
    (("Goodbye!", "Bye!", "See you later!", "Bye bye!", "Good night!"), "Goodbye!"),
    (("What can you do?", "What do you know?", "Help!", "Help me.", "How can you help me?",
      "What are you able to do?", "What can I ask you?", "What are you good at?",
      "Tell me what you can do.", "What do you do?", "What questions can you answer?"), ABILITY),
    (("Who are you?", "What are you?", "What is your name?", "Are you a robot?",
      "Which model are you?", "Tell me about yourself.", "Introduce yourself.",
      "What model is this?"), "I am a tiny model made for demos."),
    (("Which shapes do you know?", "What shapes do you know?", "Name the shapes you know."),
     "I know circles, squares, triangles, stars and crosses."),
    (("Which colours do you know?", "What colours do you know?", "Name the colours you know."),
     "I know red, orange, yellow, green, blue, purple, pink and brown."),
    (("How many sides does a triangle have?", "How many corners does a triangle have?"),
     "A triangle has 3."),
    (("How many sides does a square have?", "How many corners does a square have?"),
     "A square has 4."),
)  # fmt: skip
NO_IMAGE = (
    "What shape is this?", "What colour is it?", "Describe the {pic}.", "What is in the {pic}?",
    "How many shapes are there?", "What does it say?", "What digit is this?", "Read the word.",
    "What colour is the circle?", "Is there a red square?", "What do you see?",
    "What colour is the background?", "Describe the {pic} as JSON.", "Read the text.",
    "What is this?", "What shape do you see?", "Where is the star?", "What number is this?",
    "Describe this {pic} in detail.", "What word is this?", "How many circles are there?",
    "Where is the red circle? Give its box.", "Which bar is the highest?", "Detect all shapes.",
    "What is the value of bar A?", "Locate the star.", "Read the chart.",
)  # fmt: skip

SUMS = (
    "What is {a} plus {b}?", "What is {a} + {b}?", "Add {a} and {b}.",
    "How much is {a} plus {b}?", "{a} + {b} = ?", "Calculate {a} + {b}.",
)  # fmt: skip


def total(rng: Random, train: bool) -> Turn:
    """Ask for a sum of two numbers up to twelve; some pairs are kept for measuring."""
    while True:
        a, b = rng.randrange(13), rng.randrange(13)
        if held_out(f"{a}+{b}", 8) != train:
            break
    return _sum(pick(rng, *SUMS), a, b)


def held_out_totals() -> list[Turn]:
    """Return every sum that is kept for measuring, in every wording."""
    pairs = [(a, b) for a in range(13) for b in range(13) if held_out(f"{a}+{b}", 8)]
    return [_sum(wording, a, b) for a, b in pairs for wording in SUMS]


def _sum(wording: str, a: int, b: int) -> Turn:
    return Turn(wording.format(a=a, b=b), f"{a} plus {b} is {a + b}.", "sum", str(a + b))


def opposite(rng: Random) -> Turn:
    """Ask for the opposite of a word."""
    pair = list(rng.choice(OPPOSITES))
    rng.shuffle(pair)
    question = pick(
        rng,
        f"What is the opposite of {pair[0]}?",
        f"Name the opposite of {pair[0]}.",
        f"The opposite of {pair[0]}?",
        f"Tell me the opposite of {pair[0]}.",
    )
    return Turn(question, f"The opposite of {pair[0]} is {pair[1]}.", "opposite", pair[1].title())


def talk(rng: Random) -> Turn:
    """Greet, thank, or ask what the model is and can do."""
    asks, answer = rng.choice(TALK)
    return Turn(rng.choice(asks), answer, "talk")


def no_image(rng: Random) -> Turn:
    """Ask about an image where there is none."""
    return Turn(pick(rng, *NO_IMAGE), "There is no picture.", "absent")
