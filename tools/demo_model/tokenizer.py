"""The tokenizer: words with a space before them are merged, everything else is spelled out.

So a printed word, which stands between double quotes, is read letter by letter, and a number digit
by digit. Only the fixed names in JSON answers are merged without a space before them.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.demo_model.prompt import FAKE, GLOBAL, IMAGE, START, STOP
from tools.demo_model.samples import digit_rows, sample
from tools.demo_model.scene import BACKGROUNDS, COLOURS, SHAPES
from tools.demo_model.turns import many

VOCABULARY = 1280
SPECIAL = ("<|endoftext|>", START, STOP, FAKE, IMAGE, GLOBAL)
PLURALS = "|".join(many(shape) for shape in SHAPES)
KEYS = (
    "background|shapes|shape|colours?|colors?|text|digits?|kind|size|place|position|label|name|count|"
    f"total|number|word|objects|items|bars?|value|highest|lowest|bbox_2d|point_2d|image|{PLURALS}|"
    "type|properties|required|title|enum|anyOf|additionalProperties|[$]defs|[$]ref"
)
VALUES = "|".join((*BACKGROUNDS, *COLOURS, *SHAPES, "small", "medium", "large"))
TYPES = "object|array|string|integer|null"
# JSON keys with their colon; a schema's types; keys in a schema's list of required ones; JSON
# values before a comma or bracket; words after a space; the rest.
PATTERN = (
    rf'(?:User|Assistant|System):| ?"(?:{KEYS})":| ?"(?:{TYPES})"(?=[,}}])'
    rf'|(?<=[\[,]) ?"(?:{KEYS})"(?=[,\]])'
    rf'| ?"(?:{VALUES})"(?=[,}}\]])'
    r"| ?[{\[\]}]+,?| [A-Za-z]+| ?[^A-Za-z0-9\s]|\s|."
)


def train_tokenizer(samples: int = 30000, seed: int = 11) -> Tokenizer:
    """Learn the merges from generated conversations.

    Parameters
    ----------
    samples
        How many conversations to learn from.
    seed
        The seed of the conversations.
    """
    rng, rows = Random(seed), digit_rows(train=True)
    texts: list[str] = []
    for _ in range(samples):
        made = sample(rng, rows)
        texts += [f" {made.system}"] if made.system else []
        for turn in made.turns:
            texts += ["User:", f" {turn.question}", "Assistant:", f" {turn.answer}"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return tokenizer


def load(folder: Path) -> Tokenizer:
    """Return the tokenizer of a model folder."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
