"""Guard of a load without permission: it runs installed code only, and uses no network.

mlx-vlm and transformers run code of a checkpoint in many places, in some of them with a hard-coded
``trust_remote_code=True``. `remote_code` reads what code a checkpoint asks for, and refuses it
before a library sees it. This module is the second line of defense, in case that reading errs.

It uses Python's documented audit events, and no names of the libraries. So it works whichever
function of whichever version imports a file, on any thread.
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

from mlx_magic.backends import upstream
from mlx_magic.errors import UntrustedCodeError
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints import remote_code, strict_json
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.hub import upstream as hub_upstream

T = TypeVar("T")

_PROBE = "mlx_magic.probe"
_COMPILED = (".pyc", ".pyo")
_CODE = (*_COMPILED, ".py", ".pyw", ".so", ".pyd", ".dylib", ".dll")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")


class Guard:
    """Rules for a load without permission, and its violations.

    Parameters
    ----------
    model : str
        Name of the model, for the errors.
    folders : iterable of Path
        Folders of the checkpoint and its adapter, from which nothing may run.

    Attributes
    ----------
    refused : list of str
        Code that was refused. A library may have caught the error, so check this afterwards.
    unreached : list of str
        Network addresses that were refused. A library may go on without them.
    """

    def __init__(self, model: str, folders: Iterable[Path]) -> None:
        self.model = model
        self.refused: list[str] = []
        self.unreached: list[str] = []
        self._folders = tuple(dict.fromkeys(f for p in folders for f in _path_and_target(p)))
        self._foreign = (*self._folders, *_caches(model))

    def require_nothing_refused(self) -> None:
        """Refuse the load if code was refused, even if a library has caught the error.

        Raises
        ------
        UntrustedCodeError
        """
        remote_code.require_trust(
            tuple(dict.fromkeys(self.refused)), model=self.model, allowed=False
        )

    def execute(self, code: Any, *_: object) -> None:
        """Check code that is about to run."""
        if isinstance(code, CodeType) and not code.co_filename.startswith("<"):
            self._require_installed(code.co_filename)

    def import_(self, _name: object, file: object = None, *_: object) -> None:
        """Check an extension module that is about to be imported; others come to `execute`."""
        if isinstance(file, str | bytes):
            self._require_installed(os.fsdecode(file))

    def link(self, name: object = None, *_: object) -> None:
        """Check a shared library; a name without a folder is the system's."""
        if not isinstance(name, str | bytes) or not os.path.dirname(name):  # noqa: PTH120
            return
        if self._is_foreign(os.fsdecode(name)):
            self._refuse(os.fsdecode(name))

    def open(self, path: object, mode: object = None, flags: object = 0, *_: object) -> None:
        """Check a file that is about to be opened."""
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor
        name = os.fsdecode(path)
        if name.casefold().endswith(_COMPILED):
            self._require_installed(name)  # the file name inside of it may be forged
        elif name.casefold().endswith(_CODE) and self._is_foreign(name):
            self._refuse(name)
        inside = any(_within(self._folders, variant) for variant in _path_and_target(name))
        if inside and not _writes(mode, flags) and not _is_readable(name):
            self._refuse(name)

    def reach(self, *where: object) -> None:
        """Refuse the network."""
        # Arguments are a host name first, or a socket and then its address.
        self.unreached.append(
            shown(str(next((w for w in where if isinstance(w, str)), where[1:])), 100)
        )
        raise ConnectionRefusedError("mlx-magic keeps the load of a local model off the network")

    def start(self, function: object, *_: object) -> None:
        """Put a thread that the load starts under this guard.

        Parameters
        ----------
        function : callable
            A method of the thread.
        """
        thread = getattr(function, "__self__", None)
        if not isinstance(thread, threading.Thread):
            self._refuse("a thread that cannot be watched")
        with _lock:
            _thread_guards[thread] = self

    def _require_installed(self, path: str) -> None:
        """Refuse a code file, unless it is installed or an imported module's."""
        if self._is_foreign(path) or not (_is_installed(path) or _is_module(path)):
            self._refuse(path)

    def _is_foreign(self, path: str) -> bool:
        """Whether a file is in a checkpoint, or in the libraries' cache of the Hub."""
        written, *targets = _path_and_target(path)
        foreign = _deepest(self._foreign, written)
        if foreign or _deepest(_installed(), written):
            # A virtual environment may be inside such a folder, and a checkpoint in a package.
            return foreign > _deepest(_installed(), written)
        return any(_within(self._foreign, variant) for variant in targets)

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
    """Run the slices of a load, under a `Guard` unless code is allowed.

    Parameters
    ----------
    steps : generator
        Its result is closed if code was refused and a library has hidden the error.
    checkpoint : Checkpoint
    allowed : bool
        Whether the user allowed the checkpoint's own code for this load.

    Raises
    ------
    UntrustedCodeError
        The load tried to run code, or this Python cannot prevent that.
    """
    if allowed:
        return (yield from steps)
    guard = of(checkpoint)
    try:
        while True:
            with active(guard):
                try:
                    step = next(steps)
                except StopIteration as end:
                    made: T = end.value
                    break
                except Exception:
                    guard.require_nothing_refused()
                    raise
            guard.require_nothing_refused()
            yield step
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
    """Guard this thread within the block, and the threads that it starts there.

    Other threads are not affected.

    Raises
    ------
    UntrustedCodeError
        Audit events do not work in this process.
    """
    _watch(guard.model)
    before = _current()
    _thread_state.guard = guard
    try:
        yield
    finally:
        _thread_state.guard = before


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
_thread_state = threading.local()
_thread_guards: weakref.WeakKeyDictionary[threading.Thread, Guard] = weakref.WeakKeyDictionary()
_hooked = False


def _watch(model: str) -> None:
    """Add the audit hook once for the process, and check that it works.

    Raises
    ------
    UntrustedCodeError
        It does not work: another hook may have blocked it.
    """
    global _hooked
    with _lock:
        if not _hooked:
            sys.addaudithook(_hook)
            if sys.version_info < (3, 12):  # no audit event for new threads
                _hook_threads()
            _hooked = True
    _thread_state.probed = False
    sys.audit(_PROBE)
    if not _thread_state.probed:
        raise UntrustedCodeError(
            f"{model}: audit hooks do not work in this Python, so a checkpoint's code cannot be "
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
        return  # first and quick: Python raises an event for each id(), too
    judge = _EVENTS.get(event)
    if judge is None:
        _thread_state.probed = True
        return
    if (guard := _current()) is not None:
        judge(guard, *args)


def _current() -> Guard | None:
    """Return this thread's guard: its own, or that of the thread which started it."""
    guard: Guard | None = getattr(_thread_state, "guard", None)
    if guard is None and _thread_guards:
        guard = _thread_state.guard = _thread_guards.get(threading.current_thread())
    return guard


def _is_readable(path: str) -> bool:
    """Whether a library may read a file of a checkpoint: data of limited size."""
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
        return True  # the library will raise the error
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
    """Whether a file is that of a module in ``sys.modules``, wherever it is."""
    path = os.path.normcase(os.path.abspath(path))  # noqa: PTH100
    for name, module in list(sys.modules.items()):
        spec = vars(module).get("__spec__") if hasattr(module, "__dict__") else None
        for file in (getattr(spec, "origin", None), getattr(spec, "cached", None)):
            if isinstance(file, str) and os.path.normcase(os.path.abspath(file)) == path:  # noqa: PTH100
                return not name.startswith("transformers_modules")
    return False


def _caches(model: str) -> tuple[str, ...]:
    """Return the folders of transformers' copied code, and of the Hub client's repositories.

    Raises
    ------
    UntrustedCodeError
        They are unknown.
    """
    home = str(hub_upstream.home_folder())
    modules = os.environ.get("HF_MODULES_CACHE") or os.path.join(home, "modules")  # noqa: PTH118
    found = [modules, str(hub_upstream.cache_folder()), home]
    why = hub_upstream.FOLDERS.off
    if "transformers" in sys.modules:
        why = why or upstream.COPIED_CODE.off
        if why is None:
            found.append(upstream.COPIED_CODE.names.HF_MODULES_CACHE)
    if why is not None:
        raise UntrustedCodeError(
            f"{model}: a checkpoint's code cannot be kept from running ({why}): load it with "
            "--trust-remote-code if you trust it.",
            model=model,
            wanted=(),
        )
    return tuple(dict.fromkeys(variant for path in found for variant in _path_and_target(path)))


@functools.cache
def _installed() -> tuple[str, ...]:
    """Return the folders of the standard library and of installed packages."""
    found = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    with contextlib.suppress(AttributeError):  # some virtual environments have neither
        found += [*site.getsitepackages(), site.getusersitepackages()]
    found += [path for path in sys.path if os.path.basename(path) in _PACKAGES]  # noqa: PTH119
    found.append(str(Path(__file__).resolve().parents[2]))
    return tuple(
        dict.fromkeys(variant for path in found if path for variant in _path_and_target(path))
    )


_PACKAGES = ("site-packages", "dist-packages", "lib-dynload")


def _path_and_target(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return a path as it is written, and with its links resolved."""
    written = os.path.normcase(os.path.abspath(path))  # noqa: PTH100
    return tuple(dict.fromkeys((written, _real(os.fspath(path)))))


def _real(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


def _within(folders: Iterable[str], path: str) -> bool:
    return _deepest(folders, path) > 0


def _deepest(folders: Iterable[str], path: str) -> int:
    """Return the length of the deepest of these folders that holds a path; 0 if none does."""
    return max((len(f) for f in folders if path.startswith(f.rstrip(os.sep) + os.sep)), default=0)
