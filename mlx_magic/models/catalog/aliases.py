"""What models are called here: aliases of this session, those of a person's file, model folders."""

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
        Where a person keeps aliases; none if left out.

    Attributes
    ----------
    folders : tuple of Path
        Where a person keeps models; set it to others at any time.
    """

    def __init__(self, file: AliasFile | None = None) -> None:
        self.file = file
        self.folders: tuple[Path, ...] = ()
        self._session_aliases: Mapping[str, AliasTarget] = MappingProxyType({})
        self._lock = threading.Lock()

    @property
    def targets(self) -> Mapping[str, AliasTarget]:
        """Alias to what it stands for; those of this session hide those of the file."""
        from_file = self.file.targets if self.file is not None else {}
        return {**from_file, **self._session_aliases}

    @property
    def aliases(self) -> Mapping[str, str]:
        """Alias to folder or repository id, as they are now."""
        return MappingProxyType({name: target.model for name, target in self.targets.items()})

    @property
    def plain_aliases(self) -> Mapping[str, str]:
        """Those of models as they are, without an adapter."""
        return {
            name: target.model for name, target in self.targets.items() if target.adapter is None
        }

    def look_in(self, folders: Sequence[str]) -> None:
        """Set the folders with models; ``~`` is expanded."""
        self.folders = tuple(expanded(folder) for folder in folders)

    def give(self, alias: str, target: AliasTarget) -> None:
        """Let an alias stand for a model, in this session."""
        with self._lock:
            self._session_aliases = MappingProxyType({**self._session_aliases, alias: target})

    def save(self, alias: str, name: str, adapter: str | None) -> None:
        """Keep an alias in the person's file.

        Parameters
        ----------
        alias, name : str
            What is kept of `name` is what it stands for: a repository stays one, since its
            folder changes with its next commit.
        adapter : str or None

        Raises
        ------
        RequestError
            There is no file, or it cannot be written.
        """
        file = self.require_file()
        model = self.known(name).get(name, name)
        if checkpoint.is_folder(model):
            model = str(absolute(model))
        file.save(alias, AliasTarget(model, adapter))

    def require_file(self) -> AliasFile:
        """Return the person's file.

        Raises
        ------
        RequestError
            There is none: there is no home folder to keep it in.
        """
        if self.file is None:
            raise RequestError(
                "Aliases cannot be kept without a home folder: set MLX_MAGIC_CONFIG to a folder.",
                option="save",
            )
        return self.file

    def known(self, name: str) -> dict[str, str]:
        """Return the aliases among which a name is looked up, the bundled model's among them.

        A model of the model folders is one of them, if `name` is its name there.
        """
        found = {DEMO: str(demo.folder()), **self.aliases}
        if name not in found and (folder := self._in_folders(name)) is not None:
            found[name] = str(folder)
        return found

    def problem_with(self, name: str) -> str:
        """Say what is wrong with the person's file where it may hold a name that is unknown."""
        return "" if self.file is None else self.file.problem_with(name)

    def adapter(self, name: str) -> str | None:
        """Return the folder of the adapter that a name stands for, if it does for one."""
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
    """Return what a model with an adapter is called, where nobody gives it a name."""
    return f"{Path(model).name or model}+{Path(adapter).name or 'adapter'}"
