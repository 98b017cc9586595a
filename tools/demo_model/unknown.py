"""Questions that the model cannot answer, and says so."""

from __future__ import annotations

from pathlib import Path
from random import Random

from tools.demo_model.turns import REFUSAL, Turn, pick
from tools.demo_model.words import CONSONANTS, VOWELS, held_out

FOLDER = Path(__file__).parent
THINGS = (FOLDER / "things.txt").read_text(encoding="utf-8").split()
NAMES = (FOLDER / "names.txt").read_text(encoding="utf-8").split()
# One wording a line; {t} stands for a thing, {n} for a name, {d} for a number.
ALL = tuple((FOLDER / "unknown.txt").read_text(encoding="utf-8").splitlines())


def unknown(rng: Random, train: bool) -> Turn:
    """Ask what the model cannot know.

    Parameters
    ----------
    rng
        The random source.
    train
        Whether it is for training; if not, the wording is one that training never shows.
    """
    templates = [text for text in ALL if held_out(text, 10) != train]
    question = pick(rng, *templates)
    while "{" in question:
        question = question.replace("{t}", _word(rng, THINGS, train), 1)
        question = question.replace("{n}", _word(rng, NAMES, train), 1)
        question = question.replace("{d}", str(rng.randrange(2, 3000)), 1)
    return Turn(question, REFUSAL, "unknown", "Unknown")


def _word(rng: Random, words: list[str], train: bool) -> str:
    """Return a word; in training some are made up, so that new words are no surprise."""
    if train and rng.random() < 0.12:
        letters = [rng.choice(CONSONANTS if i % 2 else VOWELS) for i in range(rng.randint(3, 9))]
        return "".join(letters)
    return rng.choice([word for word in words if held_out(word, 6) != train])
