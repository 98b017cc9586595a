"""A JSON schema as a grammar of llguidance, in Lark's notation.

The grammar is narrower than the schema: it has one spelling of white space, properties come in
the order of the schema, only declared properties are written, and what the schema leaves open has
a bound. So each answer that follows the grammar is valid, and every answer ends.

The notation is that of https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md, and the
keywords are those of JSON Schema 2020-12.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from mlx_magic.argument_checks import short_repr
from mlx_magic.data.grammar import json_schemas, string_formats
from mlx_magic.data.grammar.decimal_ranges import LARGEST, decimal_regex
from mlx_magic.data.grammar.json_schemas import JsonSchema, References, SchemaError
from mlx_magic.formatting import shown

MAX_LENGTH = 2_000
"""Characters of a string whose schema has no ``maxLength``."""

MAX_ITEMS = 200
"""Items of an array without ``maxItems``, and entries of an object with free keys."""

MAX_KEY_LENGTH = 100
"""Characters of a free key."""

MAX_RECURSION = 6
"""Levels to which a schema that refers to itself is nested."""

MAX_OPTIONAL = 500
"""Optional properties before the first that is required. Each of them may come first."""

MAX_RULES = 20_000
MAX_NESTING = 100

_ANY_LEVELS = 3


def literal(value: object) -> str:
    """Return a value as JSON, as the grammar writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def grammar_of(schema: JsonSchema) -> str:
    """Return the grammar of a JSON schema.

    Parameters
    ----------
    schema : dict or bool

    Raises
    ------
    SchemaError
        The schema is none, has a keyword that is not supported, or no answer satisfies it.
    """
    compiler = _Compiler(schema)
    try:
        start = compiler.expression(schema, "")
    except RecursionError:
        raise SchemaError("it is nested too deeply", "") from None
    if start is None:
        raise compiler.impossible()
    return compiler.text(start)


class _Compiler:
    """Rules and terminals of one schema.

    An expression is a str of Lark, or None if no value satisfies its schema: an optional property
    or an alternative is then left out.
    """

    def __init__(self, schema: JsonSchema) -> None:
        self._references = References(schema)
        self._rules: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._referred: dict[tuple[str, int], str | None] = {}
        self._depth = 0
        self._recursion = MAX_RECURSION
        self._cut: str | None = None
        self._empty: tuple[str, str] | None = None

    def text(self, start: str) -> str:
        """Return the whole grammar."""
        return "\n".join([f"start: {start}", *(f"{n}: {b}" for n, b in self._rules.items())])

    def impossible(self) -> SchemaError:
        """Return the error of a schema that no answer satisfies."""
        if self._cut is not None and self._empty is None:
            return SchemaError(f"{self._cut} requires itself, so that no answer would end", "")
        reason, path = self._empty or ("nothing satisfies it", "")
        return SchemaError(f"no answer satisfies it: {reason}", path)

    def expression(self, schema: JsonSchema, path: str) -> str | None:
        """Return the expression of a schema; None if no value satisfies it."""
        if schema is True:
            return self._any(_ANY_LEVELS)
        if schema is False:
            return self._nothing("false allows no value", path)
        if not isinstance(schema, Mapping):
            raise SchemaError(f"{short_repr(schema)} is not a schema", path)
        self._depth += 1
        if self._depth > MAX_NESTING:
            raise SchemaError(f"it is nested more than {MAX_NESTING} levels deep", path)
        try:
            json_schemas.check_keywords(schema, path)
            return self._combined(schema, path)
        finally:
            self._depth -= 1

    def _combined(self, schema: Mapping[str, Any], path: str) -> str | None:
        """Return the expression of a schema with references and combinations."""
        rest = {k: v for k, v in schema.items() if k not in json_schemas.ANNOTATIONS}
        if "$ref" in rest:
            reference = rest.pop("$ref")
            if not rest:
                return self._reference(reference, path)
            target, where = self._references.resolve(reference, path)
            return self.expression(json_schemas.merged(target, rest, where), path)
        if "allOf" in rest:
            parts = rest.pop("allOf")
            if not isinstance(parts, list) or not parts:
                raise SchemaError("allOf needs a list of schemas", f"{path}/allOf")
            whole: JsonSchema = rest
            for at, part in enumerate(parts):
                whole = json_schemas.merged(whole, self._plain(part, f"{path}/allOf/{at}"), path)
            return self.expression(whole, path)
        for keyword in ("anyOf", "oneOf"):
            if keyword in rest:
                return self._alternatives(keyword, rest, path)
        return self._typed(rest, path)

    def _plain(self, schema: JsonSchema, path: str) -> JsonSchema:
        """Return a part of an allOf with its reference resolved."""
        seen = 0
        while isinstance(schema, Mapping) and "$ref" in schema:
            rest = {k: v for k, v in schema.items() if k != "$ref"}
            target, path = self._references.resolve(schema["$ref"], path)
            schema = json_schemas.merged(target, rest, path) if rest else target
            seen += 1
            if seen > MAX_NESTING:
                raise SchemaError("its references go round in a circle", path)
        return schema

    def _reference(self, reference: object, path: str) -> str | None:
        """Return the rule of a schema that is referred to."""
        target, where = self._references.resolve(reference, path)
        recursive = self._references.is_recursive(where)
        key = (where, self._recursion if recursive else 0)
        if key in self._referred:
            return self._referred[key]
        if recursive and self._recursion == 0:
            self._cut = self._cut or where
            return None
        before, depth = self._recursion, self._depth
        self._recursion -= recursive
        # Whatever refers to it, its rule is the same: levels are counted from here.
        self._depth = min(depth, MAX_NESTING // 2) if recursive else depth
        try:
            found = self.expression(target, where)
        finally:
            self._recursion, self._depth = before, depth
        self._referred[key] = None if found is None else self._rule(found)
        return self._referred[key]

    def _alternatives(self, keyword: str, schema: Mapping[str, Any], path: str) -> str | None:
        rest = {k: v for k, v in schema.items() if k != keyword}
        parts = schema[keyword]
        if not isinstance(parts, list) or not parts:
            raise SchemaError(f"{keyword} needs a list of schemas", f"{path}/{keyword}")
        if keyword == "oneOf":
            self._require_disjoint(parts, f"{path}/oneOf")
        found = []
        for at, part in enumerate(parts):
            where = f"{path}/{keyword}/{at}"
            whole = json_schemas.merged(self._plain(part, where), rest, where) if rest else part
            found.append(self.expression(whole, where))
        return self._either(found)

    def _require_disjoint(self, parts: list[JsonSchema], path: str) -> None:
        plain = [self._plain(part, f"{path}/{at}") for at, part in enumerate(parts)]
        for at, one in enumerate(plain):
            for other in plain[at + 1 :]:
                if not json_schemas.are_disjoint(one, other, lambda part: self._plain(part, path)):
                    raise SchemaError(
                        "oneOf with alternatives that overlap is not supported: use anyOf", path
                    )

    def _either(self, found: list[str | None]) -> str | None:
        parts = list(dict.fromkeys(part for part in found if part is not None))
        if len(parts) < 2:
            return parts[0] if parts else None
        return self._rule(" | ".join(parts))

    def _typed(self, schema: Mapping[str, Any], path: str) -> str | None:
        """Return the expression of a schema without combinations."""
        types = json_schemas.types_of(schema, path)
        if "enum" in schema or "const" in schema:
            return self._values(schema, types, path)
        makers: dict[str, Callable[[Mapping[str, Any], str], str | None]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
        }
        if types is None:
            return self._any(_ANY_LEVELS)
        if "number" in types:
            types = [each for each in types if each != "integer"]
        found: list[str | None] = []
        for each in types:
            if each == "null":
                found.append(_quoted("null"))
            elif each == "boolean":
                found.append('("true" | "false")')
            else:
                found.append(makers[each](schema, path))
        return self._either(found)

    def _values(self, schema: Mapping[str, Any], types: list[str] | None, path: str) -> str | None:
        more = schema.keys() - {"enum", "const", "type"}
        if more:
            raise SchemaError(
                f"{sorted(more)[0]} together with enum or const is not supported", path
            )
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list):
            raise SchemaError("enum needs a list of values", f"{path}/enum")
        if "const" in schema:
            values = [value for value in values if _same(value, schema["const"])]
        allowed = [v for v in values if types is None or json_schemas.type_of(v) & set(types)]
        if not allowed:
            what = "enum without values" if "enum" in schema else "const of another type"
            return self._nothing(what, path)
        try:
            texts = dict.fromkeys(literal(value) for value in allowed)
        except (TypeError, ValueError):
            raise SchemaError("enum has a value that is not JSON", path) from None
        if len(texts) == 1:
            return _quoted(next(iter(texts)))
        return self._terminal(" | ".join(_quoted(text) for text in texts))

    def _object(self, schema: Mapping[str, Any], path: str) -> str | None:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        others = schema.get("additionalProperties", True)
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise SchemaError("properties and required have the wrong type", path)
        names = schema.get("propertyNames")
        free = None
        if isinstance(names, Mapping) and isinstance(self._plain(names, path), Mapping):
            names = self._plain(names, f"{path}/propertyNames")
            free = names.get("enum") if isinstance(names, Mapping) else None
        if not properties and isinstance(free, list):
            properties, names = dict.fromkeys(map(str, free), others), None
        for name in required:
            if name not in properties:
                properties = {**properties, name: others}
        if not properties and others is not False:
            return self._map(schema, others, names, path)
        json_schemas.check_counts(schema, len(properties), len(required), path)
        if names is not None:
            raise SchemaError("propertyNames with properties is not supported", path)
        return self._fields(properties, frozenset(required), path)

    def _fields(
        self, properties: Mapping[str, JsonSchema], required: frozenset[str], path: str
    ) -> str | None:
        """Return an object whose properties come in this order."""
        members: list[tuple[str, str, bool]] = []
        for name, schema in properties.items():
            where = f"{path}/properties/{name}"
            value = self.expression(schema, where)
            if value is None:
                if name in required:
                    return None
                continue
            members.append((literal(name) + ": ", value, name in required))
        if not members:
            return _quoted("{}")
        return self._members(members, path)

    def _members(self, members: list[tuple[str, str, bool]], path: str) -> str:
        """Return an object of these keys, values, and whether they are required."""
        following = [
            f"{_quoted(', ' + key)} {value}" if needed else f"({_quoted(', ' + key)} {value})?"
            for key, value, needed in members
        ]
        alternatives = []
        for at, (key, value, needed) in enumerate(members):
            tail = self._slice(following, at + 1, len(members))
            alternatives.append(f"{_quoted('{' + key)} {value} {tail} {_quoted('}')}")
            if needed:
                break
            if at == MAX_OPTIONAL:
                raise SchemaError(f"more than {MAX_OPTIONAL} optional properties", path)
        else:
            alternatives.append(_quoted("{}"))
        return self._rule(" | ".join(alternatives))

    def _slice(self, parts: list[str], start: int, end: int) -> str:
        """Return parts `start` to `end`, as a tree of rules.

        A chain of rules would overflow llguidance's stack, and all tails in full would take too
        much memory. Slices begin at multiples of their length, so that the tails share them.
        """
        found = []
        while start < end:
            size = 1
            while start % (size * 8) == 0 and start + size * 8 <= end:
                size *= 8
            if size == 1:
                found.append(parts[start])
            else:
                inner = (
                    self._slice_of(parts, at, size // 8)
                    for at in range(start, start + size, size // 8)
                )
                found.append(self._rule(" ".join(inner)))
            start += size
        return " ".join(found)

    def _slice_of(self, parts: list[str], start: int, size: int) -> str:
        return parts[start] if size == 1 else self._slice(parts, start, start + size)

    def _map(
        self, schema: Mapping[str, Any], values: JsonSchema, names: JsonSchema | None, path: str
    ) -> str | None:
        """Return an object with free keys."""
        least, most = json_schemas.counts(schema, "minProperties", "maxProperties", path)
        if least > 1:
            raise SchemaError("minProperties above 1 with free keys is not supported", path)
        most = MAX_ITEMS if most is None else most
        key_schema = {"type": "string", "maxLength": MAX_KEY_LENGTH}
        if isinstance(names, Mapping):
            key_schema |= {k: v for k, v in names.items() if k not in json_schemas.ANNOTATIONS}
        key = self.expression(key_schema, f"{path}/propertyNames")
        value = self.expression(values, f"{path}/additionalProperties")
        if key is None or value is None or most == 0:
            empty = _quoted("{}")
            return empty if least == 0 else self._nothing("its values allow nothing", path)
        entry = self._rule(f"{key} {_quoted(': ')} {value}")
        return self._repeated("{", entry, least, most, "}", path)

    def _array(self, schema: Mapping[str, Any], path: str) -> str | None:
        least, most = json_schemas.counts(schema, "minItems", "maxItems", path)
        prefix = schema.get("prefixItems", [])
        if not isinstance(prefix, list):
            raise SchemaError("prefixItems needs a list of schemas", f"{path}/prefixItems")
        items = schema.get("items", True)
        if prefix:
            return self._tuple(prefix, items, least, most, path)
        most = max(MAX_ITEMS, 2 * least) if most is None else most
        item = None if most == 0 else self.expression(items, f"{path}/items")
        if item is None:
            empty = _quoted("[]")
            return empty if least == 0 else self._nothing("its items allow nothing", path)
        return self._repeated("[", item, least, most, "]", path)

    def _tuple(
        self, prefix: list[JsonSchema], items: JsonSchema, least: int, most: int | None, path: str
    ) -> str | None:
        """Return an array whose first items have schemas of their own; all of these are written."""
        first = prefix if most is None else prefix[:most]
        parts = []
        for at, schema in enumerate(first):
            part = self.expression(schema, f"{path}/prefixItems/{at}")
            if part is None and at < least:
                return None
            if part is None:
                break
            parts.append(part)
        more = least - len(parts)
        body = f" {_quoted(', ')} ".join(parts) if parts else ""
        if more > 0 or (items is not True and len(parts) == len(prefix) and most != len(parts)):
            item = self.expression(items, f"{path}/items")
            if item is None and more > 0:
                return self._nothing("it needs more items than it allows", path)
            if item is not None and len(parts) == len(prefix):
                limit = MAX_ITEMS if most is None else most - len(parts)
                limit = max(limit, more, 0)
                body += f" ({_quoted(', ')} {item}){{{max(more, 0)},{limit}}}"
        return self._rule(f"{_quoted('[')} {body} {_quoted(']')}")

    def _repeated(
        self, opening: str, item: str, least: int, most: int, closing: str, path: str
    ) -> str | None:
        if least > most:
            return self._nothing("its minimum count is above its maximum", path)
        if most == 0:
            return _quoted(opening + closing)
        more = f" ({_quoted(', ')} {item}){{{max(least - 1, 0)},{most - 1}}}" if most > 1 else ""
        body = f"{_quoted(opening)} {item}{more} {_quoted(closing)}"
        if least == 0:
            body = f"{_quoted(opening + closing)} | {body}"
        return self._rule(body)

    def _string(self, schema: Mapping[str, Any], path: str) -> str | None:
        least, most = json_schemas.counts(schema, "minLength", "maxLength", path)
        most = max(MAX_LENGTH, 2 * least) if most is None else most
        if least > most:
            return self._nothing("minLength is above maxLength", path)
        form, pattern = schema.get("format"), schema.get("pattern")
        own = string_formats.REGEXES.get(form) if isinstance(form, str) else None
        if own is not None and pattern is None:
            return self._terminal(f'/"({own})"/')
        leaf: dict[str, Any] = {"type": "string", "minLength": least, "maxLength": most}
        if isinstance(form, str) and form in string_formats.OF_LLGUIDANCE:
            leaf["format"] = form
        if pattern is not None:
            leaf["pattern"] = pattern
        if len(leaf) == 3:
            # One escape is one character. \u is left out: half of a pair would be no text.
            character = r'[^"\\\x00-\x1f\x7f]|\\["\\bfnrt]'
            return self._terminal(f'/"({character}){{{least},{most}}}"/')
        return self._leaf(leaf, path)

    def _integer(self, schema: Mapping[str, Any], path: str) -> str | None:
        low, high, open_low, open_high = json_schemas.bounds(schema, path)
        first = None if low is None else _next_whole(low, open_=open_low)
        last = None if high is None else -_next_whole(-high, open_=open_high)
        step = _multiple(schema, path)
        if first is None and last is None and step is None:
            return self._terminal("/0|-?[1-9][0-9]{0,14}/")
        first = min(-LARGEST, (last or 0) * 10) if first is None else first
        last = max(LARGEST, first * 10) if last is None else last
        leaf: dict[str, Any] = {"type": "integer", "minimum": first, "maximum": last}
        if step is not None:
            if step != step.to_integral_value():
                raise SchemaError("multipleOf of an integer has to be whole", path)
            leaf["multipleOf"] = int(step)
            first = -(-first // int(step)) * int(step)
        if first > last:
            return self._nothing("no whole number is within its bounds", path)
        return self._leaf(leaf, path)

    def _number(self, schema: Mapping[str, Any], path: str) -> str | None:
        low, high, open_low, open_high = json_schemas.bounds(schema, path)
        step = _multiple(schema, path)
        if step is not None:
            leaf: dict[str, Any] = {"type": "number", "multipleOf": _plain_number(step)}
            low = Decimal(-LARGEST) if low is None else low
            leaf["exclusiveMinimum" if open_low else "minimum"] = _plain_number(low)
            high = Decimal(LARGEST) if high is None else high
            leaf["exclusiveMaximum" if open_high else "maximum"] = _plain_number(high)
            return self._leaf(leaf, path)
        try:
            regex = decimal_regex(low, high, open_low=open_low, open_high=open_high)
        except ValueError as error:
            raise SchemaError(f"its bounds have {error}", path) from None
        if regex is None:
            return self._nothing("no number is within its bounds", path)
        return self._terminal(f"/{regex}/")

    def _any(self, levels: int) -> str:
        """Return any JSON value with so many levels of nesting."""
        scalars = [self._string({}, ""), self._number({}, ""), '"true"', '"false"', '"null"']
        value = self._rule(" | ".join(part for part in scalars if part))
        for _ in range(levels):
            entry = self._rule(
                f"{self._string({'maxLength': MAX_KEY_LENGTH}, '')} {_quoted(': ')} {value}"
            )
            array = self._repeated("[", value, 0, MAX_ITEMS, "]", "")
            thing = self._repeated("{", entry, 0, MAX_ITEMS, "}", "")
            value = self._rule(f"{value} | {array} | {thing}")
        return value

    def _leaf(self, schema: Mapping[str, Any], path: str) -> str | None:
        """Return a string or a number that llguidance compiles itself."""
        text = json.dumps(schema, sort_keys=True)
        if text in self._names:
            return self._names[text]
        problem = _problem(text)
        if problem is not None:
            if "nsatisfiable" in problem or "empty" in problem:
                return self._nothing("its pattern and bounds exclude each other", path)
            raise SchemaError(f"not supported: {problem}", path)
        self._names[text] = self._rule(f"%json {text}")
        return self._names[text]

    def _nothing(self, reason: str, path: str) -> str | None:
        """Note the first reason why nothing satisfies a schema, and return None."""
        if self._empty is None:
            self._empty = (reason, path)
        return None

    def _rule(self, body: str) -> str:
        return self._named("r", body)

    def _terminal(self, body: str) -> str:
        return self._named("T", body)

    def _named(self, letter: str, body: str) -> str:
        key = f"{letter}:{body}"
        if key not in self._names:
            if len(self._rules) >= MAX_RULES:
                raise SchemaError(f"it is too large: more than {MAX_RULES:,} rules", "")
            self._names[key] = f"{letter}{len(self._rules)}"
            self._rules[self._names[key]] = body
        return self._names[key]


def _quoted(text: str) -> str:
    """Return a text as a string of Lark."""
    return json.dumps(text)


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _next_whole(value: Decimal, *, open_: bool) -> int:
    top, bottom = value.as_integer_ratio()
    whole = -(-top // bottom)
    return whole + (open_ and whole == value)


def _multiple(schema: Mapping[str, Any], path: str) -> Decimal | None:
    if "multipleOf" not in schema:
        return None
    step = json_schemas.decimal(schema["multipleOf"], f"{path}/multipleOf")
    if step <= 0:
        raise SchemaError("multipleOf has to be above 0", path)
    return step


def _plain_number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _problem(schema: str) -> str | None:
    """Return why llguidance cannot compile a schema; None if it can."""
    from llguidance import LLMatcher

    message: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema))
    if not message or message.startswith("WARNING"):
        return None
    return shown(message.partition("schema: ")[2] or message, 200)


def problem_of(grammar: str) -> str | None:
    """Return why llguidance cannot compile a grammar in Lark's notation; None if it can."""
    from llguidance import LLMatcher

    message: str = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar))
    return None if not message or message.startswith("WARNING") else shown(message, 200)


_ENDS = b'"}]'
_PLAIN = b"0a1b"
_LONGEST_SAMPLE = 4_000


def sample(grammar: str) -> str | None:
    """Return a short text that follows a grammar; None if none is found soon."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar), log_level=0)
    text = bytearray()
    while not matcher.is_accepting():
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        order = (*_ENDS, *_PLAIN, *range(32, 128))
        token = next((token for token in order if bits >> token & 1), None)
        if token is None or len(text) > _LONGEST_SAMPLE or not matcher.consume_token(token):
            return None
        text.append(token)
    return text.decode("ascii")


def accepts(grammar: str, text: str) -> bool:
    """Whether a text follows a grammar."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), LLMatcher.grammar_from_lark(grammar), log_level=0)
    data = list(text.encode("utf-8", "replace"))
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())
