"""The session, as its pool knows it: it loads models by their names, and follows unloads."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mlx_magic import argument_checks
from mlx_magic.engine.task import Work, outcome
from mlx_magic.errors import EngineError, ModelError
from mlx_magic.model_pool.model_info import Load, ModelInfo


class Owner:
    """Whom a pool belongs to; nobody, if all is left out.

    Parameters
    ----------
    opener : callable, optional
        `Session.load`.
    track : callable, optional
        Follows a piece of work to its end.
    """

    def __init__(
        self,
        opener: Callable[..., Load] | None = None,
        track: Callable[[Work[Any]], None] = lambda _: None,
    ) -> None:
        self._opener = opener
        self.track = track

    def load(self, model: str | os.PathLike[str], **options: Any) -> ModelInfo:
        """Load a model with the options of `Session.load`, and wait for it.

        Raises
        ------
        EngineError
            When the pool belongs to nobody.
        ModelError
            When it cannot be loaded, or the load was cancelled.
        """
        if self._opener is None:
            raise EngineError("This pool belongs to no session: use mlx_magic.pool.")
        opener, name = self._opener, argument_checks.name("model", model)
        info: ModelInfo | None = outcome(lambda: opener(name, **options))
        if info is None:
            name = options.get("alias") or name
            raise ModelError(f"The load of {name} was cancelled.", model=name)
        return info
