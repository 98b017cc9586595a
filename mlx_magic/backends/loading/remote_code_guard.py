"""A load without permission runs no code but the installed libraries', and stays on this machine.

mlx-vlm and transformers take code from a checkpoint in many places, some of them with a
``trust_remote_code=True`` of their own. `trust` reads what a checkpoint asks for and refuses it
before a library sees it. This module is the second line: it holds where that reading errs.

It uses Python's audit events, which are documented, and no name of a library. So it does not
matter which function of which version imports a file, or on which thread.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import site
import stat
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any, NoReturn, TypeVar

from mlx_magic.errors import UntrustedCodeError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import remote_code, strict_json
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

T = TypeVar("T")

_PROBE = "mlx_magic.probe"
_COMPILED = (".pyc", ".pyo")
_CODE = (*_COMPILED, ".py", ".pyw", ".so", ".pyd", ".dylib", ".dll")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")


class Guard:
    """What a load without permission may not do, and what it tried.

    Parameters
    ----------
    model : str
        Name of the model, for the errors.
    folders : iterable of Path
        Of the checkpoint and its adapter: nothing in them may run.

    Attributes
    ----------
    refused : list of str
        What it would have run; a library may have caught the error and gone on.
    unreached : list of str
        Addresses that it did not reach. A library that goes on without them is let.
    """

    def __init__(self, model: str, folders: Iterable[Path]) -> None:
        self.model = model
        self.refused: list[str] = []
        self.unreached: list[str] = []
        self._folders = tuple(dict.fromkeys(f for p in folders for f in _both(p)))
        self._foreign = (*self._folders, *_caches())

    def require_nothing_refused(self) -> None:
        """Refuse the load if it tried to run something, whatever a library made of that.

        Raises
        ------
        UntrustedCodeError
        """
        remote_code.require_trust(
            tuple(dict.fromkeys(self.refused)), model=self.model, allowed=False
        )

    def execute(self, code: Any, *_: object) -> None:
        """Judge code that is about to run."""
        if isinstance(code, CodeType) and not code.co_filename.startswith("<"):
            self._require_installed(code.co_filename)

    def import_(self, _name: object, file: object = None, *_: object) -> None:
        """Judge an extension module that is about to be imported; others run as code."""
        if isinstance(file, str | bytes):
            self._require_installed(os.fsdecode(file))

    def link(self, name: object = None, *_: object) -> None:
        """Judge a shared library; one that is named without its folder is the system's."""
        if not isinstance(name, str | bytes) or not os.path.dirname(name):  # noqa: PTH120
            return
        if self._is_foreign(os.fsdecode(name)):
            self._refuse(os.fsdecode(name))

    def open(self, path: object, mode: object = None, flags: object = 0, *_: object) -> None:
        """Judge a file that is about to be opened."""
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        name = os.fsdecode(path)
        if name.casefold().endswith(_COMPILED):
            self._require_installed(name)  # what it says of its own place proves nothing
        elif name.casefold().endswith(_CODE) and self._is_foreign(name):
            self._refuse(name)
        inside = any(_within(self._folders, place) for place in _both(name))
        if inside and not _writes(mode, flags) and not _is_readable(name):
            self._refuse(name)

    def reach(self, *where: object) -> None:
        """Refuse the network."""
        # A name comes first; of a socket, its address comes second.
        self.unreached.append(
            shown(str(next((w for w in where if isinstance(w, str)), where[1:])), 100)
        )
        raise ConnectionRefusedError("mlx-magic keeps the load of a local model off the network")

    def start(self, function: object, *_: object) -> None:
        """Watch a thread that the load starts, as long as it lives.

        Parameters
        ----------
        function : callable
            A method of the thread.
        """
        thread = getattr(function, "__self__", None)
        if not isinstance(thread, threading.Thread):
            self._refuse("a thread that cannot be watched")
        with _lock:
            _begun[thread] = self

    def _require_installed(self, path: str) -> None:
        """Refuse a file of code that is neither an installed library's nor imported by its name."""
        if self._is_foreign(path) or not (_is_installed(path) or _is_module(path)):
            self._refuse(path)

    def _is_foreign(self, path: str) -> bool:
        """Say whether a file lies in a checkpoint, or where the libraries keep those of the Hub."""
        written, *led = _both(path)
        foreign = _deepest(self._foreign, written)
        if foreign or _deepest(_installed(), written):
            # A virtual environment may lie in such a folder, and a checkpoint in a package.
            return foreign > _deepest(_installed(), written)
        return any(_within(self._foreign, place) for place in led)

    def _refuse(self, what: str) -> NoReturn:
        with contextlib.suppress(ValueError):
            what = importlib.util.source_from_cache(what)
        for folder in self._folders:
            what = what.removeprefix(folder + os.sep)
        self.refused.append(shown(what, 200))
        self.require_nothing_refused()
        raise AssertionError(what)


def guarded(
    steps: Generator[Any, None, T], checkpoint: Checkpoint, *, allowed: bool
) -> Generator[Any, None, T]:
    """Do the slices of a load; without permission, under a `Guard`.

    Parameters
    ----------
    steps : generator
        What it returns is closed if something was refused that a library kept to itself.
    checkpoint : Checkpoint
    allowed : bool
        Whether the person allowed the checkpoint's own code for this load.

    Raises
    ------
    UntrustedCodeError
        It tried to run code, or this Python cannot keep it from that.
    """
    if allowed:
        return (yield from steps)
    guard = of(checkpoint)
    try:
        while True:
            with active(guard):
                try:
                    said = next(steps)
                except StopIteration as end:
                    made: T = end.value
                    break
                except Exception:
                    guard.require_nothing_refused()
                    raise
            guard.require_nothing_refused()
            yield said
        try:
            guard.require_nothing_refused()
        except UntrustedCodeError:
            if (close := getattr(made, "close", None)) is not None:
                close()
            raise
        return made
    finally:
        with active(guard):
            steps.close()


def of(checkpoint: Checkpoint) -> Guard:
    """Return a new guard for a load of a checkpoint."""
    adapter = checkpoint.adapter
    folders = [checkpoint.path] if adapter is None else [checkpoint.path, adapter.path]
    return Guard(checkpoint.name, folders)


@contextlib.contextmanager
def active(guard: Guard) -> Iterator[None]:
    """Put this thread under a guard inside the block, and the threads that are started there.

    Other threads are left as they are.

    Raises
    ------
    UntrustedCodeError
        Audit events do not reach us in this process.
    """
    _watch(guard.model)
    before = _current()
    _here.guard = guard
    try:
        yield
    finally:
        _here.guard = before


_EVENTS: Mapping[str, Callable[..., None]] = {
    "exec": Guard.execute,
    "import": Guard.import_,
    "ctypes.dlopen": Guard.link,
    "open": Guard.open,
    "socket.connect": Guard.reach,
    "socket.getaddrinfo": Guard.reach,
    "socket.gethostbyname": Guard.reach,
    "socket.sendto": Guard.reach,
    "socket.sendmsg": Guard.reach,
    "_thread.start_new_thread": Guard.start,
    "_thread.start_joinable_thread": Guard.start,
}

_WATCHED = frozenset({*_EVENTS, _PROBE})

_lock = threading.Lock()
_here = threading.local()
_begun: weakref.WeakKeyDictionary[threading.Thread, Guard] = weakref.WeakKeyDictionary()
_hooked = False


def _watch(model: str) -> None:
    """Make sure that the process tells us of its events: a hook stays for good, and is added once.

    Raises
    ------
    UntrustedCodeError
        It does not: another hook may have forbidden ours.
    """
    global _hooked
    with _lock:
        if not _hooked:
            sys.addaudithook(_hook)
            if sys.version_info < (3, 12):  # there no event tells of a new thread
                _hook_threads()
            _hooked = True
    _here.probed = False
    sys.audit(_PROBE)
    if not _here.probed:
        raise UntrustedCodeError(
            f"{model}: this Python does not say what a library is about to run, so nothing can be "
            "kept from running: load it with --trust-remote-code if you trust it.",
            model=model,
            wanted=(),
        )


def _hook_threads() -> None:
    start = threading.Thread.start

    @functools.wraps(start)
    def started(self: threading.Thread) -> None:
        if (guard := _current()) is not None:
            guard.start(self.run)
        start(self)

    threading.Thread.start = started  # type: ignore[method-assign]


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event not in _WATCHED:
        return  # first, and with one look: Python tells of each id(), too
    judge = _EVENTS.get(event)
    if judge is None:
        _here.probed = True
        return
    if (guard := _current()) is not None:
        judge(guard, *args)


def _current() -> Guard | None:
    """Return the guard of this thread: its own, or the one that it was started under."""
    guard: Guard | None = getattr(_here, "guard", None)
    if guard is None and _begun:
        guard = _here.guard = _begun.get(threading.current_thread())
    return guard


def _is_readable(path: str) -> bool:
    """Say whether a library may read a file of a checkpoint: data, and of no great size."""
    name = path.casefold()
    if name.endswith((*_CODE, *_PICKLES)):
        return False
    if (
        name.endswith(".safetensors")
        or remote_code.limits_of(path.replace(os.sep, "/")) is not None
    ):
        return True
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return True  # the library will see for itself
    return stat.S_ISDIR(found.st_mode) or (
        stat.S_ISREG(found.st_mode) and found.st_size <= strict_json.VOCABULARY.nbytes
    )


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str):
        return not set(mode).isdisjoint("wax")
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_CREAT))


def _is_installed(path: str) -> bool:
    return _within(_installed(), os.path.normcase(os.path.abspath(path)))  # noqa: PTH100


def _is_module(path: str) -> bool:
    """Say whether a file is being imported by its name, from wherever that may be."""
    path = os.path.normcase(os.path.abspath(path))  # noqa: PTH100
    for name, module in list(sys.modules.items()):
        spec = vars(module).get("__spec__") if hasattr(module, "__dict__") else None
        for file in (getattr(spec, "origin", None), getattr(spec, "cached", None)):
            if isinstance(file, str) and os.path.normcase(os.path.abspath(file)) == path:  # noqa: PTH100
                return not name.startswith("transformers_modules")
    return False


def _caches() -> tuple[str, ...]:
    """Return where transformers copies code to, and where the Hub's client keeps repositories."""
    from huggingface_hub import constants

    home = constants.HF_HOME
    modules = os.environ.get("HF_MODULES_CACHE") or os.path.join(home, "modules")  # noqa: PTH118
    hub = sys.modules.get("transformers.utils.hub")
    found = [modules, constants.HF_HUB_CACHE, home, getattr(hub, "HF_MODULES_CACHE", None)]
    return tuple(dict.fromkeys(place for path in found if path for place in _both(path)))


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    found = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    with contextlib.suppress(AttributeError):  # some virtual environments have neither
        found += [*site.getsitepackages(), site.getusersitepackages()]
    found += [path for path in sys.path if os.path.basename(path) in _PACKAGES]  # noqa: PTH119
    found.append(str(Path(__file__).resolve().parents[2]))
    return tuple(dict.fromkeys(place for path in found if path for place in _both(path)))


_PACKAGES = ("site-packages", "dist-packages", "lib-dynload")


def _both(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return a path as it is written, and where its links lead to."""
    written = os.path.normcase(os.path.abspath(path))  # noqa: PTH100
    return tuple(dict.fromkeys((written, _real(os.fspath(path)))))


def _real(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


def _within(folders: Iterable[str], path: str) -> bool:
    return _deepest(folders, path) > 0


def _deepest(folders: Iterable[str], path: str) -> int:
    """Return the length of the deepest of these folders that holds a path; 0 if none does."""
    return max((len(f) for f in folders if path.startswith(f.rstrip(os.sep) + os.sep)), default=0)
