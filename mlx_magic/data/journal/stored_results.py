"""Results as JSON: nothing in a journal is ever executed or unpickled."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from typing import Any

from mlx_magic.engine.generation import choice_fields
from mlx_magic.engine.json_output import parse_json
from mlx_magic.engine.request import AnswerSchema, GenerationRequest
from mlx_magic.engine.result import VisionResult

_NOT_STORED = ("images", "annotated", "model", "prompt", "format")
"""Fields that the request gives back."""

_OF_CHOICES = ("choice", "probabilities")
"""Fields that may hold members of a person's Enum: the request has these."""

_MARKS = {"!tuple", "!object", "!map", "!float"}


_READ_AGAIN = ("data", "partial")
"""Fields that a schema reads from the text again: they may be objects of a person's class."""


def pack(result: VisionResult, *, schema: bool = False) -> str:
    """Return the fields of a result as JSON.

    Parameters
    ----------
    result : VisionResult
    schema : bool
        Whether the request had a schema.

    Raises
    ------
    TypeError
        A field has a value that JSON cannot hold.
    """
    fields = {
        each.name: _packed(getattr(result, each.name))
        for each in dataclasses.fields(result)
        if each.name not in (*_NOT_STORED, *_OF_CHOICES)
        and not (schema and each.name in _READ_AGAIN)
    } | _choice_packed(result)
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def unpack(text: str, request: GenerationRequest) -> VisionResult:
    """Return a stored result, as if the request had been answered now.

    Raises
    ------
    ValueError
        It is damaged, or of another release.
    """
    try:
        fields: dict[str, Any] = {key: _unpacked(value) for key, value in json.loads(text).items()}
        known = {each.name for each in dataclasses.fields(VisionResult)}
        if fields.keys() - known:
            raise ValueError("unknown fields")
        if request.schema is not None:
            fields |= _read(request.schema, fields)
        elif request.format == "json":
            # How an answer is shown is not part of its key.
            fields["data"], fields["data_error"] = parse_json(fields["text"])
        fields |= choice_fields(request, tuple(fields.get("probabilities") or ()))
        fields |= {"model": request.model, "prompt": request.prompt, "format": request.format}
        result = VisionResult(**fields)
        if not isinstance(result.text, str):
            raise ValueError("no text")
        return result
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"a damaged answer: {error}") from error


def _choice_packed(result: VisionResult) -> dict[str, Any]:
    """Return the probabilities of choices, in their order, without the choices."""
    held = result.probabilities
    return {} if held is None else {"probabilities": list(held.values())}


def _read(schema: AnswerSchema, fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema reads in the text of a stored answer."""
    text = fields["text"]
    if fields["complete"]:
        data, error = schema.read(text)
        if error is None:
            return {"data": data}
        # The class is another one now.
        fields = {"data_error": error}
    return {
        "data": None,
        "data_error": fields["data_error"],
        "partial": schema.partial(text),
        "complete": False,
    }


def _packed(value: Any) -> Any:
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"!float": repr(value)}
    if isinstance(value, list):
        return [_packed(item) for item in value]
    if isinstance(value, tuple):
        return {"!tuple": [_packed(item) for item in value]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in _MARKS for key in value):
            return {key: _packed(item) for key, item in value.items()}
        return {"!map": [[_packed(key), _packed(item)] for key, item in value.items()]}
    if dataclasses.is_dataclass(value) and _is_ours(type(value)):
        fields = {
            each.name: _packed(getattr(value, each.name)) for each in dataclasses.fields(value)
        }
        return {"!object": [type(value).__module__, type(value).__qualname__, fields]}
    raise TypeError(type(value).__name__)


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((mark, content),) = value.items()
        if mark == "!float":
            return float(content)
        if mark == "!tuple":
            return tuple(_unpacked(item) for item in content)
        if mark == "!map":
            return {_unpacked(key): _unpacked(item) for key, item in content}
        if mark == "!object":
            return _restored(*content)
    return {key: _unpacked(item) for key, item in value.items()}


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "mlx_magic"


def _restored(module: str, name: str, fields: dict[str, Any]) -> Any:
    """Return a record of ours. A journal may come from anybody: no other class is made."""
    # Imported before: a journal must not choose what is imported.
    kind = getattr(sys.modules.get(module), name, None)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind) and _is_ours(kind)):
        raise ValueError(f"no record {name}")
    return kind(**{key: _unpacked(value) for key, value in fields.items()})
