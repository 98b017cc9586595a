"""What a map is to do, checked before it begins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mlx_magic.argument_checks import name as require_name
from mlx_magic.argument_checks import plain, short_repr
from mlx_magic.data.mapping.prompts import PromptTemplate, parse
from mlx_magic.data.mapping.rows import InputRows
from mlx_magic.data.mapping.sources import rows_of
from mlx_magic.errors import RequestError
from mlx_magic.images.opening import take_images
from mlx_magic.options import Settings
from mlx_magic.session import TakenExample

Errors = Literal["coerce", "raise"]


@dataclass(frozen=True, slots=True)
class Question:
    """One of the questions about each image.

    Attributes
    ----------
    name : str
        Empty if there is only one, without a name.
    prompt : PromptTemplate
    """

    name: str
    prompt: PromptTemplate


@dataclass(frozen=True, slots=True, eq=False)
class MapPlan:
    """All arguments of a map.

    Attributes
    ----------
    rows : InputRows
    questions : tuple of Question
    models : tuple of str
    settings : Settings
        The options of each question.
    errors : {"coerce", "raise"}
    journal : Path, None or False
        None is the notebook's own, False none.
    named : bool
        Whether `prompt` was a dictionary, so that the questions have a column.
    several_models : bool
        Whether `model` was a list, so that the models have a column.
    examples : tuple of TakenExample
        Earlier answers to the same question.
    """

    rows: InputRows
    questions: tuple[Question, ...]
    models: tuple[str, ...]
    settings: Settings
    errors: Errors = "coerce"
    journal: Path | Literal[False] | None = None
    named: bool = False
    several_models: bool = False
    examples: tuple[TakenExample, ...] = ()

    @property
    def prompt(self) -> str:
        """The prompts as text, for the journal's list."""
        texts = []
        for each in self.questions:
            parts = (
                part if isinstance(part, str) else f"{{{part.name}}}" for part in each.prompt.parts
            )
            texts.append((f"{each.name}: " if each.name else "") + "".join(parts))
        return "\n".join(texts)


def make_plan(
    prompt: object,
    images: Any,
    model: object,
    settings: Settings,
    *,
    limit: object = None,
    errors: object = "coerce",
    journal: object = None,
    examples: tuple[TakenExample, ...] = (),
    default_model: str,
) -> MapPlan:
    """Check the arguments of a map, and list its images.

    Raises
    ------
    RequestError
        An argument cannot be used.
    ImageError
        There is no image.
    """
    limit = plain(limit)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise RequestError(
            f"limit is {short_repr(limit)}: use a whole number of 1 or more.", option="limit"
        )
    mode = _errors(errors)
    place = _journal(journal)
    models = _models(model, default_model)
    _ = settings.sampling  # checks its values
    take_images([], max_pixels=settings.max_pixels, normalize=settings.normalize)
    rows = rows_of(images, limit)
    questions = _questions(prompt, rows.columns)
    for name in models:
        # Checks the options with a text that stands for the filled prompt.
        settings.request("?", model=name)
    return MapPlan(
        rows,
        questions,
        models,
        settings,
        mode,
        place,
        named=isinstance(prompt, Mapping),
        several_models=not isinstance(model, str | os.PathLike) and model is not None,
        examples=examples,
    )


def _errors(errors: object) -> Errors:
    if isinstance(errors, str):
        for mode in get_args(Errors):
            if errors == mode:
                found: Errors = mode
                return found
    raise RequestError(f'errors is {short_repr(errors)}: use "coerce" or "raise".', option="errors")


def _questions(prompt: object, columns: Sequence[str]) -> tuple[Question, ...]:
    if isinstance(prompt, PromptTemplate):
        return (Question("", prompt),)
    if not isinstance(prompt, Mapping):
        return (Question("", parse(prompt, columns)),)
    if not prompt:
        raise RequestError("prompt is an empty dictionary: name a question.", option="prompt")
    found: list[Question] = []
    for name, text in prompt.items():
        if not isinstance(name, str) or not name.strip():
            raise RequestError(
                f"The name of a question is {short_repr(name)}: use a str.", option="prompt"
            )
        if name.strip() in [question.name for question in found]:
            raise RequestError(
                f"Two questions are named {short_repr(name.strip())}.", option="prompt"
            )
        found.append(Question(name.strip(), parse(text, columns)))
    return tuple(found)


def _models(model: object, default: str) -> tuple[str, ...]:
    if model is None:
        return (default,)
    if isinstance(model, str | os.PathLike):
        return (require_name("model", model),)
    if not isinstance(model, list | tuple):
        raise RequestError(
            f"model is {short_repr(model)}: use a name, or a list of names.", option="model"
        )
    names = tuple(require_name("model", each) for each in model)
    if not names:
        raise RequestError("model is an empty list: name a model.", option="model")
    if len(set(names)) < len(names):
        raise RequestError("model names the same model twice.", option="model")
    return names


def _journal(journal: object) -> Path | Literal[False] | None:
    if journal is None or journal is True:
        return None
    if journal is False:
        return False
    from mlx_magic.user_folders import absolute

    if not isinstance(journal, str | os.PathLike):
        raise RequestError(
            f"journal is {short_repr(journal)}: use a path, or False for none.", option="journal"
        )
    return absolute(require_name("journal", journal))
