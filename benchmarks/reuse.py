"""Repeated questions about an image of many tokens: the second question, and the tenth turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.engine import WORDS, in_turn, starts
from benchmarks.figures import Report, ratios
from benchmarks.peers import Peer, running
from benchmarks.random_model import LEAST_IMAGE_TOKENS
from benchmarks.workload import QUESTIONS, Answer, Ask, DrawnImages, matches

TURNS = 10
MOST_SECOND = 0.15
MOST_READ_AGAIN = 0.05


@dataclass(slots=True)
class Chat:
    """One chat about an image.

    Attributes
    ----------
    turns : list of Answer
        Answers of ours.
    cold : Answer
        Raw's answer to the last question, without a prefix cache.
    """

    turns: list[Answer]
    cold: Answer

    @property
    def read_again(self) -> float:
        """Share of the last turn's prompt that was prefilled although it was prefilled before."""
        last = self.turns[-1]
        return (last.prompt_tokens - last.cached_tokens) / last.prompt_tokens


@dataclass(slots=True)
class Seen:
    """All answers.

    Attributes
    ----------
    pairs : dict
        First and second answers by name.
    chats : list of Chat
    """

    pairs: dict[str, list[tuple[Answer, Answer]]] = field(default_factory=dict)
    chats: list[Chat] = field(default_factory=list)


def measure(
    model: Path, folder: Path, *, pairs: int, chats: int, tokens: int, deadline: float
) -> Report:
    """Ask twice about each of many images, then have chats.

    Parameters
    ----------
    model, folder : Path
        A model whose square images have 1,000 tokens or more; an empty folder.
    pairs, chats : int
    tokens : int
        Length of an answer.
    deadline : float
        In seconds of `time.monotonic`; no measurement begins after it.
    """
    images = DrawnImages(folder / "images", (512, 512))
    held = Seen()
    with running(starts(model, folder, ways=("raw", "ours"))) as peers:
        for peer in peers:
            twice(peer, images.draw(), 0, tokens)
        held.pairs = {peer.name: [] for peer in peers}
        for number in range(1, pairs + 1):
            if time.monotonic() > deadline and number > 1:
                break
            image = images.draw()
            for peer in in_turn(peers, number):
                held.pairs[peer.name].append(twice(peer, image, number, tokens))
        by_name = {peer.name: peer for peer in peers}
        for number in range(chats):
            if time.monotonic() > deadline and number:
                break
            held.chats.append(_chat(by_name["ours"], by_name["raw"], images.draw(), tokens))
    report = _report(held, list(held.pairs))
    report.settings = {"model": model.name, **report.settings}
    return report


def twice(peer: Peer, image: str, number: int, tokens: int) -> tuple[Answer, Answer]:
    """Ask two different questions, the second after the answer to the first."""
    first, second = (
        peer.answer([Ask(f"{question} ({number})", image)], tokens).answers[0]
        for question in QUESTIONS[:2]
    )
    return first, second


def _chat(ours: Peer, raw: Peer, image: str, tokens: int) -> Chat:
    ask = Ask(QUESTIONS[0], image)
    turns: list[Answer] = []
    for number in range(1, TURNS + 1):
        turns.append(ours.answer([ask], tokens).answers[0])
        if number < TURNS:
            question = f"{QUESTIONS[number % len(QUESTIONS)]} ({number})"
            history = (*ask.history, (ask.question, turns[-1].text))
            ask = replace(ask, question=question, history=history)
    return Chat(turns, raw.answer([ask], tokens).answers[0])


def _report(held: Seen, names: Sequence[str]) -> Report:
    report = Report("reuse")
    ours = held.pairs["ours"]
    images = min(first.image_tokens for first, _ in ours)
    if images < LEAST_IMAGE_TOKENS:
        raise RuntimeError(f"The image has only {images} tokens: use another model.")
    last = held.chats[0].turns[-1]
    report.settings = {
        "image tokens": images,
        "prompt tokens": f"{ours[0][1].prompt_tokens}, and {last.prompt_tokens} in the tenth turn",
        "same text, ours and raw": _agreement(held),
    }
    for name in (name for name in WORDS if name in names):
        found = held.pairs[name]
        word = WORDS[name]
        report.add(f"{word}: first question, first token", "ms", [1000 * a.first for a, _ in found])
        shares = ratios([b.first for _, b in found], [a.first for a, _ in found])
        share = report.add(f"{word}: second question/first, first token", "", shares).median
        if name == "ours":
            report.expect("second question/first, first token", share, MOST_SECOND)
    again = [100 * chat.read_again for chat in held.chats]
    most = report.add("tenth turn: of the prompt read again", "%", again).highest
    pairs = ratios([c.turns[-1].first for c in held.chats], [c.cold.first for c in held.chats])
    report.add("tenth turn, ours/raw: first token", "", pairs)
    report.expect("tenth turn: of the prompt read again, %", most, 100 * MOST_READ_AGAIN)
    report.samples = {
        "first token of first and second": {
            name: [(a.first, b.first) for a, b in found] for name, found in held.pairs.items()
        },
        "cached tokens of second": [(b.cached_tokens, b.prompt_tokens) for _, b in ours],
        "cached tokens of turns": [
            [(turn.cached_tokens, turn.prompt_tokens) for turn in chat.turns] for chat in held.chats
        ],
    }
    return report


def _agreement(held: Seen) -> str:
    ours = [answer.text for pair in held.pairs["ours"] for answer in pair]
    raw = [answer.text for pair in held.pairs["raw"] for answer in pair]
    ours += [chat.turns[-1].text for chat in held.chats]
    raw += [chat.cold.text for chat in held.chats]
    return f"{matches(ours, raw)} of {len(raw)}"
