"""One checkpoint against its library: alone, again, together, beside, after a cancel."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlx_magic.backends.batch_check.compare_rows import Budget, rows_agree
from mlx_magic.backends.batch_check.policy import signature
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints.batch_support import Signature, Verdict
from tools.model_table.ours import Asked, OurModel, as_if, finished, small_chunks
from tools.model_table.questions import (
    FOLLOW_UP,
    IMAGE,
    LONG_IMAGE,
    LONG_TEXT,
    STRIP,
    SYSTEM,
    TEXT,
    TWO,
    VISION,
    WORDS,
    Question,
)
from tools.model_table.raw import Answer, RawModel


@dataclass(slots=True)
class Tally:
    """How many answers were held against the library's, and which were not the same.

    Attributes
    ----------
    compared : int
        Answers that both sides gave; of these,
    images : int
        were about images.
    wrong : list of str
        What differed or failed, a line each.
    refused : list of str
        Where mlx-magic said in one line that it cannot.
    raw_fails : list of str
        Where the library itself has no answer.
    """

    compared: int = 0
    wrong: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    raw_fails: list[str] = field(default_factory=list)

    images: int = 0

    @property
    def right(self) -> bool:
        """Whether anything was compared, and all was the same."""
        return self.compared > 0 and not self.wrong


@dataclass(slots=True)
class Report:
    """What was seen of one checkpoint.

    Attributes
    ----------
    signature : Signature or None
        None where it does not load.
    verdict : Verdict
    alone, together : Tally
    confirmed : bool or None
        What a look at its weights says.
    problem : str
        Why nothing could be compared; empty otherwise.
    """

    signature: Signature | None
    verdict: Verdict
    alone: Tally = field(default_factory=Tally)
    together: Tally = field(default_factory=Tally)
    confirmed: bool | None = None
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Comparison:
    """Compares one checkpoint's answers with its library's.

    Parameters
    ----------
    folder : Path
    library : {"mlx-vlm", "mlx-lm"}
    files : mapping
        The images, by name.

    Attributes
    ----------
    library : str
    questions : tuple of Question
        What it is asked.
    """

    def __init__(self, folder: Path, library: str, files: Mapping[str, Path]) -> None:
        self._folder, self.library, self._files = folder, library, files
        self._raw = RawModel(folder, library, files)
        self._known: dict[str, Answer] = {}
        self.questions = VISION if library == "mlx-vlm" else WORDS

    @property
    def library_model(self) -> Any:
        """The model as its library loads it."""
        return self._raw.model

    def raw(self, question: Question) -> Answer:
        """Return the library's answer; asked once."""
        if question.name not in self._known:
            self._known[question.name] = self._raw.ask(question)
        return self._known[question.name]

    def repeats(self, *questions: Question) -> bool:
        """Say whether the library gives the same answers once more."""
        return all(self._raw.ask(question) == self.raw(question) for question in questions)

    def load(self) -> OurModel:
        """Load it with mlx-magic."""
        return OurModel(self._folder, self.library, self._files)

    def hold(self, tally: Tally, where: str, question: Question, answer: Answer) -> None:
        """Hold an answer against the library's."""
        raw, name = self.raw(question), f"{question.name}, {where}"
        if raw.error:
            # What it raises is one line of ours by the time that a person sees it.
            tally.raw_fails.append(f"{name}: {raw.error}")
        elif answer.error and answer.own:
            tally.refused.append(f"{name}: {answer.error}")
        elif answer.error:
            tally.wrong.append(f"{name}: {answer.error}")
        else:
            tally.compared += 1
            tally.images += bool(question.all_images)
            if (answer.text, answer.tokens) != (raw.text, raw.tokens):
                tally.wrong.append(f"{name}: {answer.text!r} for {raw.text!r}")

    def alone(self, model: OurModel, questions: Iterable[Question] = ()) -> Tally:
        """Ask each question by itself, and the first one again at the end."""
        tally = Tally()
        chosen = tuple(questions) or self.questions
        for question in (*chosen, chosen[0]):
            self.hold(tally, "alone", question, model.ask(question)[0])
        return tally

    def together(self, model: OurModel) -> Tally:
        """Ask questions together, in every constellation."""
        tally = Tally()
        for where, constellation in self._constellations().items():
            for question, answer in constellation(model):
                self.hold(tally, where, question, answer)
        return tally

    def _constellations(self) -> dict[str, Callable[[OurModel], list[tuple[Question, Answer]]]]:
        if self.library == "mlx-vlm":
            four = (IMAGE, TEXT, TWO, SYSTEM)
            late = (TEXT, FOLLOW_UP, STRIP)
            long = (LONG_TEXT, TEXT, LONG_IMAGE)
        else:
            four = WORDS[:4]
            late = WORDS[2:5]
            long = (LONG_TEXT, TEXT, WORDS[-1])
        return {
            "four together": lambda model: list(zip(four, model.ask(*four), strict=True)),
            "beside one that is written": lambda model: _beside(model, long[-1], late),
            "long beside short": lambda model: list(zip(long, model.ask(*long), strict=True)),
            "beside one that is cancelled": lambda model: _cancelled(model, long[0], four[:2]),
            "same ones together": lambda model: [
                (four[0], answer) for answer in model.ask(*[four[0]] * 4)
            ],
        }


def _beside(
    model: OurModel, first: Question, others: tuple[Question, ...]
) -> list[tuple[Question, Answer]]:
    """Ask questions while another one's answer is being written."""
    begun = model.begin(first)
    model.run([begun], until=lambda: begun.tokens >= 3)
    answers = model.run([begun, *(model.begin(question) for question in others)])
    return list(zip((first, *others), answers, strict=True))


def _cancelled(
    model: OurModel, first: Question, others: tuple[Question, ...]
) -> list[tuple[Question, Answer]]:
    """Cancel an answer beside others: while its prompt is read, and while it is written."""
    found: list[tuple[Question, Answer]] = []
    for tokens in (0, 2):
        begun = model.begin(first)
        rest = [model.begin(question) for question in others]
        slices = 0

        def enough(begun: Asked = begun, tokens: int = tokens) -> bool:
            nonlocal slices
            slices += 1
            return begun.tokens >= tokens if tokens else slices > 3

        model.run([begun, *rest], until=enough)
        begun.cancel()
        answers = model.run([begun, *rest])[1:]
        found += zip(others, answers, strict=True)
        found.append((first, model.ask(first)[0]))
    return found


def examined(folder: Path, library: str, files: Mapping[str, Path]) -> Report:
    """Find out how a checkpoint may be answered: cut into chunks or not, together or not."""
    comparison = Comparison(folder, library, files)
    chunks, alone = True, Tally()
    for chunks in (True, False):
        with as_if(Verdict(False, chunks, "to be examined")):
            model = comparison.load()
            alone = comparison.alone(model)
            model.close()
        if alone.right:
            break
    why = ""
    if not comparison.repeats(*comparison.questions):
        why = f"{library} itself gives several answers to the same question"
    elif alone.wrong:
        why = f"alone, {len(alone.wrong)} of {alone.compared} answers are not {library}'s"
    elif not alone.compared or (library == "mlx-vlm" and not alone.images):
        why = f"{library} has no answer to compare with ({alone.raw_fails[0].partition(': ')[2]})"
    if why:
        return Report(_signature(comparison), Verdict(False, False, why), alone, problem=why)
    with as_if(Verdict(True, chunks)):
        model = comparison.load()
        kept, confirmed_now = model.loaded.together, None
        if kept.together:
            tally = comparison.together(model)
            lone = comparison.alone(model)
            tally.compared += lone.compared
            tally.wrong += lone.wrong
            confirmed_now = _look(model)
            why = "" if tally.right else _words(tally, library)
            if not why and confirmed_now is False:
                # Random weights may choose the same tokens all the same.
                why = "its rows give other numbers together than alone"
        else:
            tally, why = Tally(), kept.why
        model.close()
    verdict = Verdict(not why, chunks, why)
    return Report(_signature(comparison), verdict, alone, tally, confirmed_now)


def checked(folder: Path, library: str, files: Mapping[str, Path]) -> Tally:
    """Compare a checkpoint as a person has it: answered as the package's table says."""
    comparison = Comparison(folder, library, files)
    with small_chunks():
        model = comparison.load()
    tally = comparison.together(model)
    lone = comparison.alone(model)
    model.close()
    return Tally(
        tally.compared + lone.compared,
        tally.wrong + lone.wrong,
        tally.refused + lone.refused,
        tally.raw_fails + lone.raw_fails,
    )


def _words(tally: Tally, library: str) -> str:
    errors = [line for line in tally.wrong if "Error:" in line]
    if errors and len(errors) == len(tally.wrong):
        return f"its batches fail ({errors[0].partition(': ')[2][:120]})"
    return f"together, {len(tally.wrong)} of {tally.compared} answers were not {library}'s"


def _look(model: OurModel) -> bool | None:
    probe: Any = model.loaded
    try:
        return finished(rows_agree(probe._answering._probed, Budget(None), CancelToken()))
    except Exception:
        return False


def _signature(comparison: Comparison) -> Signature:
    model: Any = comparison.library_model
    vision = comparison.library == "mlx-vlm"
    cache: Any = importlib.import_module(f"{comparison.library.replace('-', '_')}.models.cache")
    language_model = model.language_model if vision else model
    config = model.config if vision else getattr(model, "args", None)
    caches = cache.make_prompt_cache(language_model)
    return signature(comparison.library, language_model, config, caches)
