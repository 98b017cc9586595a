"""Compilation of a chat template to Python code that counts its work.

Imports jinja2: import it inside functions.
"""

# ruff: noqa: D102, N802 - methods of Jinja's, under its names

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates.limits import (
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
