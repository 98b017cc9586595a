"""Names of libraries that the libraries do not promise: each is checked once, before it is used.

A mechanism lists the names that it needs. If one is missing or takes other arguments, the mechanism
is off, its caller goes the library's public way, and ``%vision status`` shows the reason.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

_log = logging.getLogger(__name__)


class MechanismOffError(RuntimeError):
    """The names of a mechanism were used although the mechanism is off."""


@dataclass(frozen=True, slots=True)
class Name:
    """A name of a library, and how this project uses it.

    Attributes
    ----------
    module : str
    path : str
        Name in the module, such as ``"GenerationBatch.extend"``; empty for the module itself.
    positional : tuple of str, optional
        The parameters to which positional arguments are passed, in order. None if it is not
        called, so that only its existence is checked.
    keywords : tuple of str
        Arguments that are passed by keyword.
    """

    module: str
    path: str = ""
    positional: tuple[str, ...] | None = None
    keywords: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.path or self.module

    @property
    def library(self) -> str:
        """The distribution and its version, such as ``"mlx-lm 0.32.2"``."""
        return versioned(self.module.partition(".")[0].replace("_", "-"))


class Mechanism:
    """A way of working that needs names of a library; off if they are not as expected.

    Parameters
    ----------
    title : str
        What is off, for ``%vision status``: "batching of text models".
    names : Name
        The names.
    library : str, optional
        Distribution for messages about `compare`; by default that of the first name.
    """

    def __init__(self, title: str, *names: Name, library: str = "") -> None:
        self.title = title
        self.needed = names
        self._library = library
        self._held: SimpleNamespace | None = None
        self._reason: str | None = None
        self._checked = self._compared = False
        MECHANISMS.append(self)

    @property
    def off(self) -> str | None:
        """Why this is off, in one line; None if it is on. The first call checks the names."""
        if not self._checked:
            self._check()
        return self._reason

    @property
    def known_reason(self) -> str | None:
        """Why this is off; None also if it was not checked yet."""
        return self._reason

    @property
    def names(self) -> Any:
        """The checked objects, as attributes; methods are only checked.

        Raises
        ------
        MechanismOffError
        """
        if self._held is None and (self.off is not None or self._held is None):
            raise MechanismOffError(self._reason)
        return self._held

    def is_on(self, compare: Callable[[Any], bool]) -> bool:
        """Whether the names are as expected, and `compare` agrees.

        Parameters
        ----------
        compare : callable
            Takes `names`; returns whether the library behaves as expected. Called once, on the
            calling thread.
        """
        if self.off is None and not self._compared:
            try:
                if not compare(self._held):
                    self.turn_off("works differently")
            except Exception as error:
                _log.info("%s could not be compared", self.title, exc_info=True)
                self.turn_off(f"could not be compared: {type(error).__name__}")
            self._compared = True
        return self._reason is None

    def turn_off(self, what: str, library: str = "") -> None:
        """Turn this off, for what was seen of a library.

        Parameters
        ----------
        what : str
            Continues "mlx-lm 0.32.2 ...".
        library : str, optional
            The library and its version.
        """
        library = library or versioned(self._library or self._distribution)
        self._held = None
        self._reason = f"{self.title} is off: {library} {what}"
        self._checked = True
        _log.info("%s", self._reason)

    def recheck(self) -> None:
        """Forget the result, so that the next use checks again."""
        self._held = self._reason = None
        self._checked = self._compared = False

    def _check(self) -> None:
        held: dict[str, Any] = {}
        for name in self.needed:
            try:
                found = find(name)
            except (ImportError, AttributeError):
                return self.turn_off(f"has no {name}", name.library)
            if name.positional is not None and not _accepts(found, name):
                return self.turn_off(f"takes other arguments for {name}", name.library)
            if "." not in name.path:
                held[name.path or name.module.rpartition(".")[2]] = found
        self._held = SimpleNamespace(**held)
        self._checked = True
        return None

    @property
    def _distribution(self) -> str:
        return self.needed[0].module.partition(".")[0].replace("_", "-")


MECHANISMS: list[Mechanism] = []
"""All mechanisms of the modules that are imported."""


def switched_off() -> tuple[str, ...]:
    """Return a line for each mechanism that was checked and is off; safe from any thread."""
    return tuple(reason for each in tuple(MECHANISMS) if (reason := each.known_reason))


def find(name: Name) -> Any:
    """Import a name.

    Raises
    ------
    ImportError, AttributeError
        The library does not have it.
    """
    found: Any = importlib.import_module(name.module)
    for part in filter(None, name.path.split(".")):
        found = getattr(found, part)
    return found


def accepted(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a documented function takes by keyword."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return options
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in options.items() if name in names}


def versioned(distribution: str) -> str:
    """Return a distribution with its installed version."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return distribution


def _accepts(found: Any, name: Name) -> bool:
    """Whether an object can be called with the arguments that this project passes."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return False
    parameters = list(signature.parameters.values())
    positional = name.positional or ()
    if _is_method(name, found):
        parameters = parameters[1:]
    names = tuple(p.name for p in parameters if p.kind in _POSITIONAL)
    if names[: len(positional)] != positional:
        return False
    try:
        signature.replace(parameters=parameters).bind(*positional, **dict.fromkeys(name.keywords))
    except TypeError:
        return False
    known = {p.name for p in parameters}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return takes_any or set(name.keywords) <= known


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _is_method(name: Name, found: Any) -> bool:
    """Whether an object is a function of a class, which takes ``self`` first."""
    return "." in name.path and inspect.isfunction(found)
