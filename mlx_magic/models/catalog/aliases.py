"""Model names: aliases of the session and of the user's alias file, and model folders."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mlx_magic import demo
from mlx_magic.engine.request import DEMO
from mlx_magic.errors import RequestError
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget
from mlx_magic.models.checkpoints import checkpoint
from mlx_magic.user_folders import absolute, expanded


class Names:
    """Names of models; safe from any thread.

    Parameters
    ----------
    file : AliasFile, optional
        The user's alias file; none if left out.

    Attributes
    ----------
    folders : tuple of Path
        The user's model folders; may be set at any time.
    """

    def __init__(self, file: AliasFile | None = None) -> None:
        self.file = file
        self.folders: tuple[Path, ...] = ()
        self._session_aliases: Mapping[str, AliasTarget] = MappingProxyType({})
        self._lock = threading.Lock()

    @property
    def targets(self) -> Mapping[str, AliasTarget]:
        """The aliases; those of the session take precedence over those of the file."""
        from_file = self.file.targets if self.file is not None else {}
        return {**from_file, **self._session_aliases}

    @property
    def aliases(self) -> Mapping[str, str]:
        """The current aliases, to folder or repository id."""
        return MappingProxyType({name: target.model for name, target in self.targets.items()})

    @property
    def plain_aliases(self) -> Mapping[str, str]:
        """The aliases of models without an adapter."""
        return {
            name: target.model for name, target in self.targets.items() if target.adapter is None
        }

    def look_in(self, folders: Sequence[str]) -> None:
        """Set the model folders; ``~`` is expanded."""
        self.folders = tuple(expanded(folder) for folder in folders)

    def give(self, alias: str, target: AliasTarget) -> None:
        """Set an alias for this session."""
        with self._lock:
            self._session_aliases = MappingProxyType({**self._session_aliases, alias: target})

    def save(self, alias: str, name: str, adapter: str | None) -> None:
        """Save an alias in the user's alias file.

        Parameters
        ----------
        alias, name : str
            If `name` is an alias, its target is saved. A repository is saved by its id, since
            its folder changes with each commit.
        adapter : str or None

        Raises
        ------
        RequestError
            There is no alias file, or it cannot be written.
        """
        file = self.require_file()
        model = self.known(name).get(name, name)
        if checkpoint.is_folder(model):
            model = str(absolute(model))
        file.save(alias, AliasTarget(model, adapter))

    def require_file(self) -> AliasFile:
        """Return the user's alias file.

        Raises
        ------
        RequestError
            There is none, since there is no home folder.
        """
        if self.file is None:
            raise RequestError(
                "Aliases cannot be kept without a home folder: set MLX_MAGIC_CONFIG to a folder.",
                option="save",
            )
        return self.file

    def known(self, name: str) -> dict[str, str]:
        """Return the aliases for the look-up of a name, including that of the bundled model.

        If `name` is a model in a model folder, it is added.
        """
        found = {DEMO: str(demo.folder()), **self.aliases}
        if name not in found and (folder := self._in_folders(name)) is not None:
            found[name] = str(folder)
        return found

    def problem_with(self, name: str) -> str:
        """Return the problem of the alias file that may explain why a name is unknown."""
        return "" if self.file is None else self.file.problem_with(name)

    def adapter(self, name: str) -> str | None:
        """Return the adapter folder of an alias, or None."""
        target = self.targets.get(name)
        return None if target is None else target.adapter

    def _in_folders(self, name: str) -> Path | None:
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            return None
        candidates = (folder.joinpath(*parts) for folder in self.folders)
        return next(
            (candidate for candidate in candidates if (candidate / "config.json").is_file()), None
        )


def adapted_name(model: str, adapter: str) -> str:
    """Return the default name of a model with an adapter."""
    return f"{Path(model).name or model}+{Path(adapter).name or 'adapter'}"
