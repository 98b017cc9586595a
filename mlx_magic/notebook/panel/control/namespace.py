"""Access to the notebook's variables: reads images, stores results."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line import variable_names
from mlx_magic.notebook.magic_line.expressions import evaluator, expression_or_text
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.image_variables import image_variables
from mlx_magic.notebook.magic_line.tokens import split_line
from mlx_magic.notebook.magic_line.variable_names import check_name
from mlx_magic.options import Settings

if TYPE_CHECKING:
    from mlx_magic.data.schema import Schema


class Namespace:
    """The notebook's variables, as a panel reads and sets them.

    Parameters
    ----------
    ipython : InteractiveShell or None
        With None there are no variables.
    """

    def __init__(self, ipython: Any = None) -> None:
        self._ip = ipython
        self._cached_names: tuple[str, ...] | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The variables and their values."""
        return {} if self._ip is None else self._ip.user_ns

    def image_names(self) -> tuple[str, ...]:
        """Return the variables that hold images; updated after each cell."""
        if self._cached_names is None:
            found = image_variables(self.values)
            self._cached_names = tuple(variable.name for variable in found)
        return self._cached_names

    def named_images(self, words: str) -> list[tuple[str, Any, str]]:
        """Return name, value and source text of each image that a line names.

        Parameters
        ----------
        words : str
            IMAGE arguments, as after ``%%vision``.

        Raises
        ------
        ImageError
            For a word that is not a file, URL or variable.
        RequestError
            If the line is empty.
        """
        tokens = split_line(words)
        if not tokens:
            raise RequestError("Enter a variable, path or URL first.", option="images")
        values = image_values(tokens, self.values, evaluator(self._ip, self._ip.user_ns))
        return [
            (name, value, token.raw) for token, (name, value) in zip(tokens, values, strict=True)
        ]

    def checked(self, name: str) -> str:
        """Return the normalized name.

        Raises
        ------
        RequestError
            If it is not a valid variable name.
        """
        return check_name(name.strip())

    def define(self, name: str, value: Any) -> None:
        """Set a variable.

        Raises
        ------
        RequestError
            If it is not a valid variable name.
        """
        self.values[check_name(name)] = value

    def defaults(self) -> Settings | None:
        """Return the defaults of cells; None if the magics are not loaded."""
        magics = None if self._ip is None else self._ip.magics_manager.registry.get("VisionMagics")
        return None if magics is None else magics.defaults()

    def schema(self, text: str | None) -> Schema | None:
        """Return the schema that an expression, a file or a short form names.

        Raises
        ------
        RequestError
            It names none.
        """
        if text is None:
            return None
        # Imports pydantic.
        from mlx_magic.data.schema import schema_of

        value: object = text
        magics = None
        if self._ip is not None:
            evaluate = evaluator(self._ip, self._ip.user_ns)
            value = expression_or_text(text, self.values, evaluate, option="schema")
            magics = self._ip.magics_manager.registry.get("VisionMagics")
        return schema_of(value, None if magics is None else magics.schema_prompt)

    def existing(self, name: str) -> str:
        """Describe the current value of a variable; ``""`` if it is undefined."""
        return variable_names.describe_existing(name, self.values)

    def after_cells(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each cell; return a function that ends this."""
        if self._ip is None:
            return lambda: None

        def ran(*_: Any) -> None:
            self._cached_names = None
            callback()

        self._ip.events.register("post_run_cell", ran)
        return lambda: self._ip.events.unregister("post_run_cell", ran)
