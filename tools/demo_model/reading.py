"""Questions on what is written: handwritten digits, printed words and numbers."""

from __future__ import annotations

from random import Random

from tools.demo_model.scene import Scene
from tools.demo_model.turns import Turn, pick


def digit(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the digit, or for both."""
    if not scene.digits:
        return None
    values = [str(d.value) for d in sorted(scene.digits, key=lambda d: d.x)]
    if len(values) == 2:
        question = pick(rng, "Which digits are these?", "What digits are in the {pic}?",
                        "What are the two digits?", "Which digits do you see?",
                        "Read the digits.")  # fmt: skip
        return Turn(question, f"The digits are {values[0]} and {values[1]}.", "two digits")
    question = pick(
        rng,
        "What digit is this?",
        "Which digit is this?",
        "What digit is in the {pic}?",
        "Which digit do you see?",
        "Read the digit.",
        "What number is this?",
        "What digit is it?",
        "What is the digit?",
    )
    return Turn(question, f"The digit is {values[0]}.", "digit", values[0])


def read(rng: Random, scene: Scene) -> Turn | None:
    """Ask for the printed word or number."""
    if scene.text is None:
        return None
    text = scene.text.text
    either = ("What does it say?", "What does the {pic} say?", "Read the text.",
              "What is written here?", "What is written in the {pic}?", "What text is this?",
              "What does the text say?", "Read it.", "Transcribe the text.")  # fmt: skip
    if scene.text.is_number:
        question = pick(rng, *either, "What number is this?", "Which number is this?",
                        "Read the number.", "What number is in the {pic}?", "What is the number?",
                        "What number do you see?", "What number is it?")  # fmt: skip
        return Turn(question, f"The number is {text}.", "number", text)
    question = pick(rng, *either, "What word is this?", "Which word is this?", "Read the word.",
                    "What word is in the {pic}?", "What is the word?", "What word do you see?",
                    "What word is it?")  # fmt: skip
    return Turn(question, f'The word is "{text}".', "word", f'"{text}"')
