"""Schemas of many kinds as one: a grammar for the model, and the typed object of its answer."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlx_magic.argument_checks import short_repr
from mlx_magic.data.grammar import json_grammar, short_form
from mlx_magic.data.grammar.json_schemas import ANNOTATIONS, JsonSchema, SchemaError
from mlx_magic.data.grammar.partial_json import whole_values
from mlx_magic.errors import RequestError
from mlx_magic.formatting import reason, shown
from mlx_magic.user_folders import expanded

PROMPT = "Answer in JSON that follows this schema:\n{schema}"
"""What is added to a question with a schema; ``{schema}`` is the JSON schema."""

MAX_CHARACTERS = 1_000_000
"""Characters of a schema as JSON."""

_EXPECTED = (
    "use a pydantic model, a dataclass, a TypedDict, an Enum, a type such as list[int], a JSON "
    "schema (a dict, a Path, or the name of a .json file) or a short form such as 'count: int'"
)


@dataclass(frozen=True, slots=True, eq=False)
class Schema:
    """The shape of an answer.

    Attributes
    ----------
    json_schema : dict or bool
        As the model is told.
    grammar : str
        For llguidance, in Lark's notation.
    instructions : str
        What is added to the question; may be empty.
    key : str
        Equal for equal schemas, also in another process.
    """

    json_schema: JsonSchema
    grammar: str
    instructions: str
    key: str
    _adapter: Any = None

    def read(self, text: str) -> tuple[Any, str | None]:
        """Return the object of an answer, and None or why there is none."""
        try:
            if self._adapter is None:
                return json.loads(text), None
            return self._adapter.validate_json(text), None
        except RecursionError:
            return None, "it is nested too deeply"
        except Exception as error:  # validators of a class may raise anything
            return None, _validation_reason(error)

    def partial(self, text: str) -> Any:
        """Return the whole fields or items of an answer that was cut. See `whole_values`."""
        return whole_values(text)

    def write(self, value: object) -> str:
        """Return an object as the JSON that a model would answer.

        Raises
        ------
        RequestError
            It does not follow the schema.
        """
        try:
            if self._adapter is not None:
                checked = self._adapter.validate_python(value)
                value = self._adapter.dump_python(checked, mode="json", by_alias=True)
            text = json_grammar.literal(value)
        except Exception as error:
            raise RequestError(
                f"{short_repr(value)} does not follow the schema: {_validation_reason(error)}",
                option="examples",
            ) from None
        if not json_grammar.accepts(self.grammar, text):
            raise RequestError(
                f"{short_repr(value)} does not follow the schema.", option="examples"
            )
        return text


def schema_of(value: object, prompt: str | None = None) -> Schema:
    """Return the schema of a class, a type, a JSON schema, a file or a short form.

    Parameters
    ----------
    value : object
        See the page `docs/data.md`.
    prompt : str, optional
        How the model is told, instead of `PROMPT`. Empty tells it nothing.

    Raises
    ------
    RequestError
        It is no schema, is not supported, or no answer satisfies it.
    """
    if isinstance(value, Schema):
        return value
    json_schema, adapter = _json_schema(value)
    try:
        text = json.dumps(json_schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SchemaError(f"it is not JSON: {reason(error)}", "") from None
    if len(text) > MAX_CHARACTERS:
        raise SchemaError(
            f"it has {len(text):,} characters as JSON, and may have {MAX_CHARACTERS:,}", ""
        )
    told = _without_titles(json_schema)
    template = PROMPT if prompt is None else prompt
    instructions = template.replace("{schema}", json_grammar.literal(told))
    made = Schema(told, _grammar(text), instructions, text, adapter)
    _require_built(made, value)
    return made


@lru_cache(maxsize=64)
def _grammar(text: str) -> str:
    grammar = json_grammar.grammar_of(json.loads(text))
    problem = json_grammar.problem_of(grammar)
    if problem is not None:
        raise SchemaError(f"llguidance refuses its grammar: {problem}", "")
    return grammar


def _json_schema(value: object) -> tuple[JsonSchema, Any]:
    """Return a JSON schema, and pydantic's adapter if answers are typed objects."""
    if isinstance(value, str):
        text = value.strip()
        if text.lower().endswith(".json"):
            return _of_file(Path(text)), None
        if text.startswith("{"):
            return _of_json(text, "the text"), None
        if ":" in text:
            return short_form.parse(text), None
        raise SchemaError(
            f"{short_repr(value)} is neither a file nor a short form: {_EXPECTED}", ""
        )
    if isinstance(value, Path):
        return _of_file(value), None
    if isinstance(value, Mapping):
        return dict(value), None
    if value is None or isinstance(value, bool | int | float | bytes | list | tuple | set):
        raise SchemaError(f"{short_repr(value)} is not a schema: {_EXPECTED}", "")
    return _of_type(value)


def _of_file(path: Path) -> JsonSchema:
    try:
        path = expanded(str(path))
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise SchemaError(f"{path} is larger than {4 * MAX_CHARACTERS:,} bytes", "")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError, RuntimeError, ValueError) as error:
        raise SchemaError(f"{path}: {reason(error)}", "") from None
    return _of_json(text, str(path))


def _of_json(text: str, source: str) -> JsonSchema:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{source} is not JSON: {reason(error)}", "") from None
    if not isinstance(found, dict | bool):
        raise SchemaError(f"{source} is JSON, but no schema: it begins no object", "")
    return found


def _of_type(value: object) -> tuple[JsonSchema, Any]:
    """Return the JSON schema of a type, by pydantic."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    if not isinstance(value, type) and typing.get_origin(value) is None and callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise SchemaError(f"{name} is a function: {_EXPECTED}", "")
    if not isinstance(value, type) and typing.get_origin(value) is None and not _is_form(value):
        raise SchemaError(f"{short_repr(value)} is not a schema: {_EXPECTED}", "")
    try:
        kind: Any = value
        adapter: Any = TypeAdapter(kind)
        return adapter.json_schema(), adapter
    except RecursionError:
        raise SchemaError("it is nested too deeply", "") from None
    except (PydanticUserError, NameError, TypeError, AttributeError, ValueError) as error:
        name = getattr(value, "__name__", None) or short_repr(value)
        raise SchemaError(f"{name}: {shown(str(error).partition(chr(10))[0], 200)}", "") from None


_OF_FIELDS = {"missing", "unexpected_keyword_argument", "missing_argument", "extra_forbidden"}
"""Pydantic's errors of a class that does not take its own fields."""


def _require_built(schema: Schema, value: object) -> None:
    """Refuse a class that cannot be built from its own fields.

    Validators may refuse the sample: that says nothing about other values.
    """
    if schema._adapter is None:
        return
    text = json_grammar.sample(schema.grammar)
    if text is None:
        return
    try:
        schema._adapter.validate_json(text)
    except (ValueError, AssertionError) as error:
        problems = getattr(error, "errors", None)
        found = problems(include_url=False) if callable(problems) else []
        wrong = any(problem.get("type") in _OF_FIELDS for problem in found)
        why = _validation_reason(error) if wrong else ""
    except Exception as error:
        why = reason(error)
    else:
        return
    if why:
        name = getattr(value, "__name__", None) or short_repr(value)
        raise SchemaError(f"{name} cannot be built from its own fields: {why}", "")


def _is_form(value: object) -> bool:
    """Whether a value is a form of typing or pydantic that is no class."""
    return type(value).__module__ in ("typing", "types", "typing_extensions")


def _without_titles(schema: JsonSchema, *, names: bool = False) -> JsonSchema:
    """Return a schema without titles, which pydantic makes of the names. `names`: of properties."""
    if isinstance(schema, Mapping):
        keep = ANNOTATIONS - {"title", "$schema", "$id", "$comment", "discriminator"}
        return {
            key: _without_titles(
                value, names=not names and key in ("properties", "$defs", "definitions")
            )
            for key, value in schema.items()
            if names or key in keep or key not in ANNOTATIONS
        }
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    return schema


def _validation_reason(error: Exception) -> str:
    """Return the first problem of an answer, and where it is."""
    problems = getattr(error, "errors", None)
    if callable(problems):
        try:
            first = problems(include_url=False, include_context=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            return shown(f"{place}: {first['msg']}" if place else first["msg"], 200)
        except Exception:
            return reason(error)
    return reason(error)
