"""Reasoning marks: which ones a model's chat template shows, and where thoughts end in an answer.

What stands between the marks of a model that reasons is not part of its answer. Only the marks of
the model's own template count: in an answer of any other model, ``</think>`` is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

TAIL_TOKENS = 64
"""Tokens at the end of a prompt in which a mark is looked for; a mark in pieces has some ten."""


class Pair(NamedTuple):
    """The marks before and after the thoughts."""

    opening: str
    closing: str


# Each pair, and the texts that a template must have to show it; any of them is enough.
_FAMILIES: tuple[tuple[Pair, tuple[tuple[str, ...], ...]], ...] = (
    *(
        (Pair(opening, closing), ((opening,), (closing,)))
        for opening, closing in (
            ("<think>", "</think>"),  # Qwen, DeepSeek, GLM, MiMo, ERNIE, MiniCPM, Hunyuan
            ("◁think▷", "◁/think▷"),  # Kimi
            ("[THINK]", "[/THINK]"),  # Magistral
            ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
            ("<seed:think>", "</seed:think>"),
            ("<longcat_think>", "</longcat_think>"),
        )
    ),
    # Gemma 4
    (Pair("<|channel>thought", "<channel|>"), (("<|channel>", "<channel|>"),)),
    # gpt-oss: thoughts are one channel of several.
    (
        Pair(
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        (("<|channel|>", "analysis"),),
    ),
    # Kimi K3
    (
        Pair("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
        (("<|open|>think<|sep|>",), ("<|close|>think<|sep|>",)),
    ),
    # Apriel
    (
        Pair("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
        (("[BEGIN FINAL RESPONSE]",),),
    ),
)
# Marks around the answer itself.
_RESPONSE = Pair("<|open|>response<|sep|>", "<|close|>response<|sep|>")
_WRAPPERS = (
    Pair("<answer>", "</answer>"),
    Pair("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    Pair("<|START_TEXT|>", "<|END_TEXT|>"),
    _RESPONSE,
)
# gpt-oss without thoughts, and the end of Apriel's answer, whose beginning ends the thoughts.
_HARMONY_ANSWER = "<|channel|>final<|message|>"
_APRIEL_END = "[END FINAL RESPONSE]"
# Architectures with models that reason although their templates show no marks.
_SILENT = {
    "kimi_vl": Pair("◁think▷", "◁/think▷"),
    "glm4v": Pair("<think>", "</think>"),
    "glm4v_moe": Pair("<think>", "</think>"),
    # mlx-vlm renders its prompts by code.
    "kimi_k3": Pair("<|open|>think<|sep|>", "<|close|>think<|sep|>"),
}
_TAG = re.compile(
    r"[<\[◁]\|?/?[\w:.-]{0,40}(?:think|thought|reason)[\w:.-]{0,40}\|?[>\]▷]", re.IGNORECASE
)
_ENDS = (("END", "START"), ("END", "BEGIN"), ("end", "start"), ("end", "begin"))


@dataclass(frozen=True, slots=True)
class Marks:
    """The reasoning marks of one model; false if it has none.

    Attributes
    ----------
    pairs : tuple of Pair
        Marks that the template shows.
    silent : tuple of Pair
        Marks that only count at the beginning of an answer.
    wrappers : tuple of Pair
        Marks around the answer itself; they belong to neither the answer nor the thoughts. The
        opening mark may be empty: the answer then begins without one.
    """

    pairs: tuple[Pair, ...] = ()
    silent: tuple[Pair, ...] = ()
    wrappers: tuple[Pair, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pairs or self.silent)

    @property
    def opening(self) -> tuple[Pair, ...]:
        """The pairs whose opening mark begins thoughts."""
        return (*self.pairs, *self.silent)

    def rewritten(self, words: Mapping[str, str]) -> Marks:
        """Return the marks with these parts replaced, the longest first."""
        order = sorted(words, key=len, reverse=True)

        def changed(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
            return tuple(Pair(*(_replaced(mark, order, words) for mark in pair)) for pair in pairs)

        return Marks(changed(self.pairs), changed(self.silent), changed(self.wrappers))


def _replaced(mark: str, order: list[str], words: Mapping[str, str]) -> str:
    for word in order:
        mark = mark.replace(word, words[word])
    return mark


def template_source(*holders: Any) -> str:
    """Return the chat template of the first of these objects that has one; ``""`` if none has.

    Of a set of templates it is all of them.
    """
    for holder in holders:
        template = getattr(holder, "chat_template", None)
        if isinstance(template, str):
            return template
        if isinstance(template, Mapping):
            return "\n".join(text for text in template.values() if isinstance(text, str))
    return ""


def marks_of(template: str, model_type: str = "") -> Marks:
    """Return the marks that a chat template shows.

    Parameters
    ----------
    template : str
        Source of the template; ``""`` if there is none.
    model_type : str
        From config.json. A few architectures reason although their templates show no marks.
    """
    pairs = [
        pair
        for pair, needles in _FAMILIES
        if any(all(word in template for word in words) for words in needles)
    ]
    tags = set(_TAG.findall(template))
    for tag in sorted(tags):
        opening = _opening_of(tag, tags)
        if opening is not None and all(pair.closing != tag for pair in pairs):
            pairs.append(Pair(opening, tag))
    silent = [pair for kind, pair in _SILENT.items() if kind == model_type and pair not in pairs]
    if not pairs and not silent:
        return Marks()
    wrappers = [pair for pair in _WRAPPERS if all(mark in template for mark in pair)]
    if any(pair.opening.startswith("<|open|>") for pair in silent):
        wrappers.append(_RESPONSE)
    if any(pair.opening.startswith("<|channel|>") for pair in pairs):
        wrappers.append(Pair(_HARMONY_ANSWER, ""))
    if _APRIEL_END in template:
        wrappers.append(Pair("", _APRIEL_END))
    return Marks(tuple(pairs), tuple(silent), tuple(wrappers))


def _opening_of(tag: str, tags: set[str]) -> str | None:
    """Return the opening mark among `tags` of a closing mark; None if `tag` closes nothing."""
    made = [tag.replace("/", "", 1)] if tag[1:2] == "/" or tag[1:3] == "|/" else []
    made += [tag.replace(end, begin) for end, begin in _ENDS if end in tag]
    return next((opening for opening in made if opening in tags and opening != tag), None)


class Split(NamedTuple):
    """New thoughts and new text of an answer.

    Attributes
    ----------
    reasoning, text : str
    all_reasoning : bool
        Whether the text of earlier pieces was reasoning, too: the model had left out its opening
        mark, which was seen only at the closing one.
    """

    reasoning: str = ""
    text: str = ""
    all_reasoning: bool = False


def _state_of(prompt_end: str, marks: Marks) -> tuple[Pair | None, bool]:
    """Return the pair whose thoughts a prompt has opened, and whether it has closed thoughts."""
    end = prompt_end.rstrip()
    for pair in marks.wrappers:
        if pair.opening and end.endswith(pair.opening):
            return None, True
    for pair in marks.opening:
        if end.endswith(pair.closing):
            return None, True
        if end.endswith(pair.opening):
            return pair, False
    return None, False


_FIRST_SIGN = 0xD800  # a lone surrogate: no detokenizer makes one
_SHORTEST_CONTROL = 3


def _hidden(marks: Marks, skipped: Mapping[int, str]) -> dict[int, tuple[str, str]]:
    """Return the text and a sign of each skipped token that is a part of a mark, by id."""
    known = {mark for pair in (*marks.opening, *marks.wrappers) for mark in pair}
    parts = {
        token: text
        for token, text in skipped.items()
        if len(text) >= _SHORTEST_CONTROL and any(text in mark for mark in known)
    }
    return {
        token: (text, chr(_FIRST_SIGN + count))
        for count, (token, text) in enumerate(sorted(parts.items()))
    }


_Step = Callable[[bool], Split]


class ReasoningStream:
    """Separates thoughts and text of one answer that arrives in pieces.

    The result does not depend on how the answer is split.

    Parameters
    ----------
    marks : Marks
    prompt_end : str
        The last characters of the prompt: its template may have opened the thoughts, or closed
        them.
    skipped : mapping
        Control tokens that the detokenizer leaves out, by id: those of the marks are put back.

    Attributes
    ----------
    is_open : bool
        Whether the prompt has opened thoughts.
    """

    def __init__(
        self, marks: Marks, prompt_end: str = "", skipped: Mapping[int, str] | None = None
    ) -> None:
        inside, closed = _state_of(prompt_end, marks)
        self._original = marks
        self._late_marks = True
        hidden = _hidden(marks, skipped or {})
        self._hidden = {token: sign for token, (_, sign) in hidden.items()}
        self._signs = dict.fromkeys(map(ord, self._hidden.values()))
        self._marks = marks.rewritten(dict(hidden.values()))
        self._step: _Step = self._in_answer_start if closed else self._at_start
        self._closing, self._end = "", ""
        self._buffer = ""
        self.is_open = inside is not None
        if inside is not None:
            self._closing = self._marks.opening[marks.opening.index(inside)].closing
            self._step = self._in_opened

    @property
    def openings(self) -> tuple[str, ...]:
        """The marks that may open thoughts now: before the first word of an answer."""
        if self._step != self._at_start:
            return ()
        return tuple(pair.opening for pair in self._original.opening)

    @property
    def answer_begun(self) -> bool:
        """Whether the answer has begun, so that nothing but its text comes."""
        thinking = (self._at_start, self._in_opened, self._in_thoughts)
        return self._step not in thinking

    def expect_no_thoughts_after_text(self) -> None:
        """Take what looks like a mark for text once the answer has begun."""
        self._late_marks = False

    def feed(self, text: str, token: int | None = None) -> Split:
        """Process the next piece.

        Parameters
        ----------
        text : str
        token : int, optional
            The token that came with it; only new tokens, each once.
        """
        self._buffer += text
        if token is not None:
            self._buffer += self._hidden.get(token, "")
        return self._run(last=False)

    def finish(self) -> Split:
        """Return what was held back as a possible start of a mark, at the end of the answer."""
        return self._run(last=True)

    def _run(self, *, last: bool) -> Split:
        thoughts, text, everything = "", "", False
        while True:
            step = self._step
            split = step(last)
            if split.all_reasoning:
                thoughts, text, everything = thoughts + text, "", True
            thoughts += split.reasoning
            text += split.text
            if self._step == step:
                break
        return Split(thoughts.translate(self._signs), text.translate(self._signs), everything)

    # Each step takes what it can from the buffer, and sets the next one.

    def _at_start(self, last: bool) -> Split:
        """Before the first word: the model may open its thoughts."""
        opened = self._begins([pair.opening for pair in self._marks.opening], last=last)
        if opened is None:
            return Split()
        if opened:
            self._closing = next(
                pair.closing for pair in self._marks.opening if pair.opening == opened
            )
            self._step = self._in_thoughts
            return Split()
        otherwise = self._in_text if self._late_marks else self._in_rest
        return self._begin_answer(last, otherwise=otherwise)

    def _in_opened(self, last: bool) -> Split:
        """In thoughts that the prompt opened: the model may repeat the opening mark."""
        openings = [pair.opening for pair in self._marks.opening if pair.closing == self._closing]
        if self._begins(openings, last=last) is not None:
            self._step = self._in_thoughts
        return Split()

    def _in_thoughts(self, last: bool) -> Split:
        found = self._buffer.find(self._closing)
        if found < 0:
            return Split(reasoning=self._take(self._safe([self._closing], last=last)))
        thoughts = self._take(found)
        self._take(len(self._closing))
        self._step = self._in_answer_start
        return Split(reasoning=thoughts)

    def _in_answer_start(self, last: bool) -> Split:
        """Before the first word of the answer, which may be marked, too."""
        return self._begin_answer(last, otherwise=self._in_rest)

    def _begin_answer(self, last: bool, *, otherwise: _Step) -> Split:
        wrapped = [pair for pair in self._marks.wrappers if pair.opening]
        opened = self._begins([pair.opening for pair in wrapped], last=last)
        if opened is None:
            return Split()
        if opened:
            self._end = next(pair.closing for pair in wrapped if pair.opening == opened)
        elif otherwise == self._in_rest:
            self._end = next((p.closing for p in self._marks.wrappers if not p.opening), "")
        self._step = self._in_wrapped if self._end else self._in_rest if opened else otherwise
        return Split()

    def _in_text(self, last: bool) -> Split:
        """In text after which a closing mark would say that it was reasoning."""
        closings = [pair.closing for pair in self._marks.pairs]
        found = [(at, mark) for mark in closings if (at := self._buffer.find(mark)) >= 0]
        if not found:
            return Split(text=self._take(self._safe(closings, last=last)))
        at, mark = min(found)
        thoughts = self._take(at)
        self._take(len(mark))
        self._step = self._in_answer_start
        return Split(reasoning=thoughts, all_reasoning=True)

    def _in_wrapped(self, last: bool) -> Split:
        """In an answer whose end is marked: the mark is left out if nothing follows it."""
        text = ""
        while (found := self._buffer.find(self._end)) >= 0:
            if not self._buffer[found + len(self._end) :].strip():
                text += self._take(found)
                if last:
                    self._buffer = ""
                return Split(text=text)
            text += self._take(found + len(self._end))
        return Split(text=text + self._take(self._safe([self._end], last=last)))

    def _in_rest(self, last: bool) -> Split:
        return Split(text=self._take(len(self._buffer)))

    def _begins(self, marks: list[str], *, last: bool) -> str | None:
        """Return the mark that the buffer begins with, and take it.

        ``""`` is none of them, None is not known yet.
        """
        begun = self._buffer.lstrip()
        if not last and any(mark != begun and mark.startswith(begun) for mark in marks):
            return None
        matching = [mark for mark in marks if begun.startswith(mark)]
        if not matching:
            return ""
        mark = max(matching, key=len)
        self._buffer = begun[len(mark) :]
        return mark

    def _safe(self, marks: Iterable[str], *, last: bool) -> int:
        """Return the length of the buffer without a possible start of a mark at its end."""
        if last:
            return len(self._buffer)
        longest = max(map(len, marks), default=1) - 1
        for length in range(min(longest, len(self._buffer)), 0, -1):
            if any(mark.startswith(self._buffer[-length:]) for mark in marks):
                return len(self._buffer) - length
        return len(self._buffer)

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken
