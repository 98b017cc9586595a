"""Keys of answers: digests of everything that affects an answer, and of nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_magic.argument_checks import plain
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.options import OPTIONS, RequestOption, Settings

_FORMAT = 1
"""Counted up when the meaning of a key changes."""

_APART = ("model", "timeout")
"""Options that the key has in another way, or that no stored answer depends on: the model by the
content of its files; an answer that has timed out is not stored."""


def answer_key(question: str, image: str) -> bytes:
    """Return the key of one answer.

    Parameters
    ----------
    question : str
        From `question_digest`.
    image : str
        Digest of the pixels that the model sees.
    """
    return hashlib.sha256(f"{question}\n{image}".encode()).digest()


def question_digest(request: GenerationRequest, settings: Settings, model: str) -> str:
    """Return the digest (hex) of a question without its image.

    The image options are left out: they decide the pixels, which have a digest of their own.

    Parameters
    ----------
    request : GenerationRequest
        With the filled prompt.
    settings : Settings
        The options, of which those count that affect an answer.
    model : str
        Digest of the model's files.
    """
    options = {
        option.name: _same_type(option, value)
        for option, value in settings
        if option.affects_answer
        and option.target in ("request", "sampling")
        and option.name not in _APART
        and value != option.default
    }
    content = {
        "format": _FORMAT,
        "model": model,
        "prompt": request.prompt,
        "history": [
            (turn.prompt, turn.answer, [image.digest for image in turn.images])
            for turn in request.history
        ],
        "options": options,
    }
    text = json.dumps(canonical(content), sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _same_type(option: RequestOption, value: Any) -> Any:
    """Return a number as the type of its option: a cell has 0.0 where Python has 0."""
    if option.kind == "number" and value is not None:
        return float(value) + 0.0  # without the sign of zero
    return plain(value)


def canonical(value: Any) -> Any:
    """Return a value as JSON that is equal for equal values, and for no others.

    Raises
    ------
    TypeError
        The value has no content that could be compared, such as a function.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return {"int": str(int(value))}
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, Mapping):
        return {"map": [[canonical(key), canonical(item)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [canonical(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": sorted(json.dumps(canonical(item)) for item in value)}
    return _object(value)


def _object(value: Any) -> Any:
    """Return a schema or another object by its content."""
    if (digest := getattr(value, "digest", None)) is not None and isinstance(digest, str):
        # An image, such as that of an example.
        return {"digest": digest}
    if isinstance(getattr(value, "grammar", None), str):  # of `mlx_magic.data.schema`
        return {"schema": value.key, "instructions": value.instructions}
    schema = getattr(value, "model_json_schema", None)
    if callable(schema):  # a class of pydantic
        return {"schema": canonical(schema())}
    if dataclasses.is_dataclass(value):
        fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(value)
        if isinstance(value, type):
            return {
                "class": value.__qualname__,
                "fields": [[each.name, str(each.type), repr(each.default)] for each in fields],
            }
        return {
            "object": type(value).__qualname__,
            "fields": [[each.name, canonical(getattr(value, each.name))] for each in fields],
        }
    raise TypeError(type(value).__name__)


def keyed_options() -> tuple[str, ...]:
    """Return the names of the options that are part of a key, the image options not counted."""
    return tuple(
        option.name
        for option in OPTIONS
        if option.affects_answer
        and option.target in ("request", "sampling")
        and option.name not in _APART
    )
