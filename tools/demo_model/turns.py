"""One question with its answer, and how questions vary in their wording."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
REFUSAL = "I only know shapes, colours, digits and short words."


@dataclass
class Turn:
    """A question, its answer, the one-word answer where there is one, and its type."""

    question: str
    answer: str
    kind: str
    word: str | None = None
    images: int = 0
    named: tuple[int, ...] = ()  # the shapes, by number, whose boxes are asked for
    image: int = -1  # the image that the question is about; the last one if negative
    fixed: bool = False  # whether the wording must stay, spelling and all


def pick(rng: Random, *choices: str) -> str:
    """Return one of several phrasings, with ``{pic}`` replaced by a word for picture."""
    text = rng.choice(choices)
    if "{pic}" in text:
        text = text.replace("{pic}", rng.choice(("picture", "picture", "image", "photo")))
    return text


def vary(rng: Random, question: str) -> str:
    """Return a question in American or British spelling, at times carelessly typed."""
    if rng.random() < 0.5:
        question = question.replace("colour", "color").replace("grey", "gray")
    if rng.random() < 0.2:
        question = question.rstrip("?.!")
    if rng.random() < 0.2:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.05:
        question = rng.choice(("Please: ", "Hi! ", "Tell me: ", "Now: ", "Well, ")) + question
    return question


def plural(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 circle`` or ``no red crosses``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count or 'no'} {many(noun)}"


def many(noun: str) -> str:
    """Return the plural of a noun."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def there_are(count: int, noun: str) -> str:
    """Return a sentence that counts."""
    return f"There {'is' if count == 1 else 'are'} {plural(count, noun)}."


def article(noun: str) -> str:
    """Return a noun with ``a`` or ``an``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def joined(parts: list[str]) -> str:
    """Return a list in words: ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capital(text: str) -> str:
    """Return a text with a capital first letter."""
    return text[0].upper() + text[1:]
