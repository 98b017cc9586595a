"""Words and numbers to print, with a fifth of the words kept out of training."""

from __future__ import annotations

import zlib
from functools import lru_cache
from pathlib import Path
from random import Random

VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
# Letters whose capital looks like the small letter, only larger: alone they tell no case.
SAME_IN_CAPITALS = set("cosuvwxz")


def held_out(word: str, every: int = 5) -> bool:
    """Return whether a word is kept for measuring, the same on every machine."""
    return zlib.crc32(word.encode()) % every == 0


@lru_cache(maxsize=1)
def word_list() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words to train on and the words to measure on."""
    words = (Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split()
    train = tuple(w for w in words if not held_out(w))
    return train, tuple(w for w in words if held_out(w))


def invented(rng: Random) -> str:
    """Return a string of letters that is no held-out word; most can be pronounced."""
    while True:
        length = rng.choice((2, 3, 4, 4, 5, 5, 6, 6))
        if rng.random() < 0.35:
            word = "".join(rng.choice(VOWELS + CONSONANTS) for _ in range(length))
        else:
            vowel = rng.random() < 0.4
            word = ""
            while len(word) < length:
                word += rng.choice(VOWELS if vowel else CONSONANTS)
                vowel = not vowel if rng.random() < 0.75 else vowel
        if word not in word_list()[1]:
            return word


def cased(rng: Random, word: str) -> str:
    """Return a word in small letters, capitals or with a capital first letter."""
    chance = rng.random()
    if set(word) <= SAME_IN_CAPITALS:
        return word
    return word if chance < 0.45 else word.upper() if chance < 0.75 else word.capitalize()


def printed(rng: Random, train: bool) -> str:
    """Return a word or a number to print.

    Parameters
    ----------
    rng
        The random source.
    train
        Whether it is for training; if not, the word is one that training never shows.
    """
    if rng.random() < 0.3:
        return str(rng.randrange(1, 10)) + "".join(
            str(rng.randrange(10)) for _ in range(rng.randint(1, 5))
        )
    if not train:
        return cased(rng, rng.choice(word_list()[1]))
    return cased(rng, invented(rng) if rng.random() < 0.65 else rng.choice(word_list()[0]))
