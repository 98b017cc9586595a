"""Jinja's sandbox with limits: a chat template is untrusted code of the checkpoint's author.

Imports jinja2: import it inside functions.
"""

# ruff: noqa: D102, N802 - methods of Jinja's, under its names
from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import BuiltinMethodType, MethodType
from typing import TYPE_CHECKING, Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, modifies_known_mutable

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates import builtins, growth
from mlx_magic.backends.chat_templates.limits import (
    BUDGET,
    TemplateLimitError,
    UnsafeTemplateError,
    budget,
)

if TYPE_CHECKING:
    from jinja2.compiler import CodeGenerator, Frame
else:
    CodeGenerator = upstream.TEMPLATE_SANDBOX.names.CodeGenerator


class CountingCode(CodeGenerator):
    """Generates a template's Python code; the environment methods it calls are in `Sandbox`."""

    def write(self, x: str) -> None:
        """Write a piece of Python code, unless the time is up."""
        budget().tick()
        super().write(x)

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        """Begin the body of a loop, a condition, a macro or a block with a check of the time."""
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_Compare(self, node: nodes.Compare, frame: Frame) -> None:
        self.write("(environment.tick() or ")
        super().visit_Compare(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concatenated((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._counted(super().visit_List, node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._counted(super().visit_Dict, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        if node.ctx == "load":
            self._counted(super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._counted(super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def visit_ScopedEvalContextModifier(
        self, node: nodes.ScopedEvalContextModifier, frame: Frame
    ) -> None:
        raise TemplateLimitError("it uses the tag 'autoescape', which is not allowed")

    def visit_Include(self, node: nodes.Include, frame: Frame) -> None:
        _refuse_files()

    def visit_Import(self, node: nodes.Import, frame: Frame) -> None:
        _refuse_files()

    def visit_FromImport(self, node: nodes.FromImport, frame: Frame) -> None:
        _refuse_files()

    def visit_Extends(self, node: nodes.Extends, frame: Frame) -> None:
        _refuse_files()

    def _counted(self, visit: Callable[[Any, Frame], None], node: Any, frame: Frame) -> None:
        self.write("environment.count_value(")
        visit(node, frame)
        self.write(")")


class GenerationTag(Extension):
    """The tag ``generation``, which marks answers for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("answer"), [], [], body).set_lineno(line)

    def answer(self, caller: Callable[[], str]) -> str:
        """Return the text inside of the tag."""
        return caller()


def _refuse_files() -> NoReturn:
    raise UnsafeTemplateError("it reads another file")


if TYPE_CHECKING:
    from jinja2 import runtime, utils
else:
    runtime = utils = upstream.TEMPLATE_SANDBOX.names

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {
            "capitalize",
            "casefold",
            "center",
            "count",
            "endswith",
            "expandtabs",
            "find",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "isidentifier",
            "islower",
            "isnumeric",
            "isprintable",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "ljust",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rjust",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
            "zfill",
        }
    ),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"count", "index"}),
    int: frozenset({"bit_length", "is_integer"}),
    float: frozenset({"is_integer"}),
}


# Arguments that Jinja adds to each call inside a loop or a block.
_OF_JINJA = ("_loop_vars", "_block_vars")


@functools.lru_cache(maxsize=16)
def compiled(source: str, *, like_transformers: bool) -> jinja2.Template:
    """Compile a chat template, which counts its work and renders under a `BUDGET` only.

    Parameters
    ----------
    source : str
    like_transformers : bool
        Whether to use transformers' settings for chat templates, or Jinja's defaults.

    Raises
    ------
    TemplateLimitError
        It is too long, or takes too long to compile.
    UnsafeTemplateError
        It reads files.
    jinja2.TemplateError
        It is not a valid template.
    """
    limit = budget()
    if len(source) > limit.limits.source:
        raise TemplateLimitError(f"it is {len(source):,} characters long")
    try:
        with limit.running(), translated():
            return _sandbox(like_transformers).from_string(source)
    except SyntaxError:
        # A limit of Python's compiler; Jinja's syntax errors are of another class.
        raise TemplateLimitError("it nests too deeply") from None


@functools.lru_cache(maxsize=16)
def template_names(source: str) -> frozenset[str]:
    """Return the names that a chat template reads, its own variables included; none if invalid.

    Only within the limits of `compiled`.
    """
    limit = budget()
    if not source or len(source) > limit.limits.source:
        return frozenset()
    try:
        with limit.running():
            tree = _sandbox(True).parse(source)
            # Not only undeclared ones: a template may set the default of a variable itself.
            names = frozenset(name.name for name in tree.find_all(jinja2.nodes.Name))
    except (jinja2.TemplateError, RecursionError):
        return frozenset()
    return names


@contextmanager
def translated() -> Iterator[None]:
    """Translate the error of Jinja's sandbox."""
    try:
        yield
    except jinja2.exceptions.SecurityError as error:
        raise UnsafeTemplateError(str(error)) from None


class _Template(jinja2.Template):
    """A template that renders within the budget of its thread."""

    def render(self, *args: Any, **kwargs: Any) -> str:
        """Render the template.

        Raises
        ------
        TemplateLimitError, UnsafeTemplateError
        jinja2.TemplateError
            Including errors that the template raises itself.
        """
        variables: dict[str, Any] = dict(*args, **kwargs)
        limit = budget()
        with limit.running(), translated():
            limit.allow_for(variables)
            return limit.joined(self.root_render_func(self.new_context(variables)))


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja environment that counts all work, and calls known functions only."""

    code_generator_class = CountingCode
    template_class = _Template
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, *, like_transformers: bool) -> None:
        super().__init__(
            trim_blocks=like_transformers,
            lstrip_blocks=like_transformers,
            extensions=[GenerationTag, "jinja2.ext.loopcontrols"],
            # Otherwise constants are computed while a template is compiled.
            optimized=False,
            finalize=builtins.shown,
        )
        builtins.install(self, like_transformers=like_transformers)
        self._functions = {id(value) for value in self.globals.values()}

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join the output of a macro or a block."""
        return budget().joined(pieces)

    def tick(self) -> None:
        """Check the time. Returns None, which is false."""
        (BUDGET.get() or budget()).tick()

    def count_value(self, value: Any) -> Any:
        """Count a list, or a part of one, and return it."""
        return budget().count_value(value)

    def concatenated(self, parts: tuple[Any, ...]) -> Any:
        """Join values, as ``~`` does."""
        limit = budget()
        limit.require(sum(map(limit.weight, parts)))
        return limit.count_value(runtime.str_join(parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right``."""
        limit = budget()
        limit.work(left, right)
        growth.require_operands(limit, operator, left, right)
        return limit.count_value(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return ``obj[argument]``."""
        (BUDGET.get() or budget()).tick()
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function for a template, within the limits."""
        limit = budget()
        __self._require_callable(__obj)
        named = {name: value for name, value in kwargs.items() if name not in _OF_JINJA}
        given = (*args, *named.values())
        limit.work(*given)
        limit.require(sum(map(limit.weight, given)))
        text = _owner(__obj)
        if isinstance(text, str):
            limit.work(text)
            growth.require_method(limit, text, __obj.__name__, args, named)
            if __obj.__name__ == "join" and len(args) == 1:
                args = (builtins.joinable(limit, text, args[0]),)
        with limit.called():
            value = super().call(__context, __obj, *args, **kwargs)
        return limit.count_value(value, fresh_items=isinstance(text, str))

    def is_safe_callable(self, obj: Any) -> bool:
        """Whether a template may call this."""
        if isinstance(obj, (BuiltinMethodType, MethodType)):
            owner = _owner(obj)
            known = (runtime.LoopContext, utils.Cycler, builtins.Dictionaries, GenerationTag)
            return isinstance(owner, known) or any(
                isinstance(owner, kind) and obj.__name__ in names
                for kind, names in _METHODS.items()
            )
        return id(obj) in self._functions or isinstance(
            obj,
            (
                builtins.LimitedFormatter,
                runtime.BlockReference,
                runtime.LoopContext,
                runtime.Macro,
                runtime.Undefined,
                utils.Joiner,
            ),
        )

    def _require_callable(self, obj: Any) -> None:
        if not callable(obj):
            raise TypeError(f"{type(obj).__name__!r} object is not callable")
        if not self.is_safe_callable(obj):
            owner = _owner(obj)
            if isinstance(owner, tuple(_METHODS)):
                raise TemplateLimitError(
                    f"it uses {obj.__name__!r} of a {type(owner).__name__}, which is not allowed"
                )
            raise UnsafeTemplateError(f"a call of a {type(obj).__name__}")

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Refuse an attribute at once; Jinja would refuse its use."""
        place = f"{attribute!r} of a {type(obj).__name__}"
        if modifies_known_mutable(obj, attribute):
            raise TemplateLimitError(f"it uses {place}, which is not allowed")
        raise UnsafeTemplateError(place)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the limited ``str.format`` or ``str.format_map``."""
        text = _owner(value)
        if isinstance(text, str) and value.__name__ in ("format", "format_map"):
            return builtins.LimitedFormatter(self, text, by_map=value.__name__ == "format_map")
        return None

    def _tokenize(self, *args: Any, **kwargs: Any) -> Any:
        stream = super()._tokenize(*args, **kwargs)
        stream._iter = map(_ticking, stream._iter)
        return stream

    def _compile(self, source: str, filename: str) -> Any:
        if len(source) > budget().limits.compiled:
            raise TemplateLimitError("it is too long a program")
        return super()._compile(source, filename)


@functools.cache
def _sandbox(like_transformers: bool) -> Sandbox:
    return Sandbox(like_transformers=like_transformers)


def _owner(method: Any) -> Any:
    """Return the object of a bound method; None for anything else."""
    if isinstance(method, (BuiltinMethodType, MethodType)):
        return method.__self__
    return None


def _ticking(token: Any) -> Any:
    budget().tick()
    return token
