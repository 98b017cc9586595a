"""Questions on bar charts: the highest bar, the value of a bar, all values."""

from __future__ import annotations

import json
from random import Random

from tools.demo_model.scene import SHAPES, Bar, Scene
from tools.demo_model.turns import Turn, article, capital, joined, pick


def _bars(scene: Scene) -> list[Bar]:
    """Return the bars from left to right."""
    return scene.chart.bars if scene.chart else []


def extreme(rng: Random, scene: Scene) -> Turn:
    """Ask for the highest or lowest bar."""
    bars = _bars(scene)
    highest = rng.random() < 0.65
    bar = (max if highest else min)(bars, key=lambda bar: bar.value)
    word = "highest" if highest else "lowest"
    question = pick(
        rng,
        f"Which bar is the {word}?",
        f"Which bar is {word}?",
        f"What is the {word} bar?",
        f"Which bar is the {'tallest' if highest else 'shortest'}?",
        f"Which bar has the {word} value?",
        f"Name the {word} bar.",
        f"Which is the {word} bar?",
        f"Which bar has the {'largest' if highest else 'smallest'} value?",
    )
    return Turn(question, f"{capital(bar.noun)} is the {word}.", "chart", capital(bar.name))


def between(rng: Random, scene: Scene) -> Turn:
    """Ask which of two bars is higher."""
    first, second = rng.sample(_bars(scene), 2)
    higher = first.value > second.value
    question = f"Is {first.noun} higher than {second.noun}?"
    if rng.random() < 0.4:
        question = f"Which is higher, {first.noun} or {second.noun}?"
        top = first if higher else second
        return Turn(question, f"{capital(top.noun)} is higher.", "chart", capital(top.name))
    answer = f"{'Yes' if higher else 'No'}, {first.noun} is {'higher' if higher else 'lower'}."
    return Turn(question, answer, "chart", "Yes" if higher else "No")


def bar_count(rng: Random, scene: Scene) -> Turn:
    """Count the bars."""
    question = pick(rng, "How many bars are there?", "How many bars do you see?", "Count the bars.",
                    "How many bars are in the {pic}?", "How many bars does the chart have?",
                    "How many bars are in the chart?")  # fmt: skip
    return Turn(question, f"There are {len(_bars(scene))} bars.", "chart")


def value(rng: Random, scene: Scene) -> Turn:
    """Ask for the value of one bar, or for the highest value."""
    bars = _bars(scene)
    bar, noun = rng.choice(bars), ""
    if rng.random() < 0.15:
        bar = max(bars, key=lambda bar: bar.value)
        noun = pick(rng, "the highest bar", "the tallest bar", "the highest bar in the chart")
    noun = noun or bar.noun
    question = pick(
        rng,
        f"What is the value of {noun}?",
        f"How high is {noun}?",
        f"What value does {noun} have?",
        f"Give the value of {noun}.",
        f"Read the value of {noun}.",
        f"How much is {noun}?",
        f"What value has {noun}?",
    )
    return Turn(question, f"{capital(bar.noun)} is {bar.value}.", "chart value", str(bar.value))


def values(rng: Random, scene: Scene) -> Turn:
    """Ask for all values, in words or as JSON."""
    bars = _bars(scene)
    if rng.random() < 0.4:
        question = pick(rng, "Read the chart as JSON.", "Give the bars and their values as JSON.",
                        "Describe the chart as JSON.", "List the bars as JSON.",
                        "Return the values of the bars as JSON.")  # fmt: skip
        held = [{"bar": bar.name, "value": bar.value} for bar in bars]
        return Turn(question, json.dumps(held), "chart values")
    question = pick(rng, "Read the chart.", "What are the values of the bars?", "List the values.",
                    "List all bars with their values.", "Give the value of each bar.",
                    "Describe the chart in detail.", "What are the values?",
                    "Read all values.")  # fmt: skip
    said = joined([f"{bar.name} {bar.value}" for bar in bars])
    return Turn(question, f"{capital(said)}.", "chart values")


def what(rng: Random, scene: Scene) -> Turn:
    """Ask what the image is."""
    question = pick(rng, "What is this?", "What does the {pic} show?", "Describe the {pic}.",
                    "What do you see?", "What is in the {pic}?", "Describe the chart.")  # fmt: skip
    return Turn(question, f"{capital(about(scene))} on a {scene.background} background.",
                "describe")  # fmt: skip


def about(scene: Scene) -> str:
    """Return a chart in a few words."""
    return f"a bar chart with {len(_bars(scene))} bars"


def no_shape(rng: Random, scene: Scene) -> Turn:
    """Ask about a shape, which a chart does not hold."""
    kind = rng.choice(SHAPES)
    if rng.random() < 0.5:
        return Turn(f"Is there {article(kind)}?", f"No, there is no {kind}.", "yes/no", "No")
    question = pick(rng, f"What colour is the {kind}?", f"Where is the {kind}?")
    return Turn(question, f"There is no {kind}.", "absent")
