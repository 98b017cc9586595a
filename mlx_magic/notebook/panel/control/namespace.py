"""The notebook's variables: pictures out of them, results into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.cell_arguments import Defaults
from mlx_magic.notebook.magic_line.expressions import evaluator
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.tokens import split_line
from mlx_magic.notebook.magic_line.variable_names import check_name
from mlx_magic.notebook.panel.state import variables


class Namespace:
    """What a panel may see and set in its notebook.

    Parameters
    ----------
    ipython : InteractiveShell or None
        None has no variables.
    """

    def __init__(self, ipython: Any = None) -> None:
        self._ip = ipython
        self._cached_names: tuple[str, ...] | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The variables themselves."""
        return {} if self._ip is None else self._ip.user_ns

    def picture_names(self) -> tuple[str, ...]:
        """Return the variables that hold pictures, as of the last cell."""
        if self._cached_names is None:
            found = variables.picture_variables(self.values)
            self._cached_names = tuple(variable.name for variable in found)
        return self._cached_names

    def pictures(self, words: str) -> list[tuple[str, Any, str]]:
        """Return name, value and word of each picture that a line names.

        Parameters
        ----------
        words : str
            What could stand after ``%%vision``.

        Raises
        ------
        ImageError
            For what is no file, address or variable.
        RequestError
            Where nothing is named.
        """
        tokens = split_line(words)
        if not tokens:
            raise RequestError("Enter a variable, path or URL first.", option="images")
        values = image_values(tokens, self.values, evaluator(self._ip))
        return [
            (name, value, token.raw) for token, (name, value) in zip(tokens, values, strict=True)
        ]

    def checked(self, name: str) -> str:
        """Return a name as Python reads it.

        Raises
        ------
        RequestError
            When that is no name for a variable.
        """
        return check_name(name.strip())

    def define(self, name: str, value: Any) -> None:
        """Set a variable.

        Raises
        ------
        RequestError
            When that is no name for a variable.
        """
        self.values[check_name(name)] = value

    def defaults(self) -> Defaults | None:
        """Return what cells without flags use; None where the magics are not loaded."""
        magics = None if self._ip is None else self._ip.magics_manager.registry.get("VisionMagics")
        return None if magics is None else magics.defaults()

    def existing(self, name: str) -> str:
        """Say what a variable holds already; ``""`` if there is none."""
        return variables.describe_existing(name, self.values)

    def after_cells(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each cell that has run; returns what ends that."""
        if self._ip is None:
            return lambda: None

        def ran(*_: Any) -> None:
            self._cached_names = None
            callback()

        self._ip.events.register("post_run_cell", ran)
        return lambda: self._ip.events.unregister("post_run_cell", ran)
