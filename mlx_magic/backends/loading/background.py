"""Background calls for work without arrays, mainly loading of tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from mlx_magic.backends.loading import library_environment
from mlx_magic.cancellation import CancelToken

T = TypeVar("T")

SLICE = 0.0005
"""Seconds that the inference thread waits per slice; all other requests wait with it."""


class BackgroundCall(Generic[T]):
    """A function call on a thread of its own, for which the inference thread waits in slices.

    Loading a tokenizer of 150,000 words took 0.1 to 0.14 s in one piece, in which no other model
    generated anything (two cores, no GPU). On its own thread it shares Python's lock with them.

    A cancelled load does not stop the thread: it runs to its end, and its result is dropped. It
    is no daemon, so the interpreter's exit waits for it: a thread killed in native code could
    crash the process.

    Parameters
    ----------
    function : callable
        Must not touch MLX.
    here : bool
        Call it at once, on this thread: for a checkpoint's own code, which may use MLX.
    """

    def __init__(self, function: Callable[[], T], *, here: bool = False) -> None:
        if here:
            self._future: Future[T] = Future()
            with library_environment.usual():
                self._future.set_result(function())
            return
        thread = ThreadPoolExecutor(1, "mlx-magic-background")
        self._future = thread.submit(_in_usual_environment, function)
        thread.shutdown(wait=False)

    def check(self) -> None:
        """Raise the function's error, if it has failed."""
        if self._future.done():
            self._future.result()

    def result(self, cancel: CancelToken) -> Generator[None, None, T]:
        """Wait for the result in slices.

        Raises
        ------
        Cancelled
        Exception
            The function's error.
        """
        while not self._future.done():
            cancel.checkpoint()
            wait([self._future], SLICE)
            yield
        cancel.checkpoint()
        return self._future.result()


def _in_usual_environment(function: Callable[[], T]) -> T:
    with library_environment.usual():
        return function()


def is_known(*things: object) -> bool:
    """Whether the classes of all objects are the libraries', and not of a checkpoint's code."""
    libraries = {"transformers", "mlx_lm", "mlx_vlm", "tokenizers"}
    return all(type(thing).__module__.partition(".")[0] in libraries for thing in things)
