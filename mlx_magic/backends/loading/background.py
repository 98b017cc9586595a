"""What needs no arrays is done beside the inference thread: reading tokenizers, above all."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

from mlx_magic.backends.loading import library_environment
from mlx_magic.cancellation import CancelToken

T = TypeVar("T")

SLICE = 0.0005
"""Seconds that the inference thread waits in one slice: others wait with it."""


class BackgroundCall(Generic[T]):
    """One function on a thread of its own, while the inference thread goes on in slices.

    Reading a tokenizer of 150,000 words took 0.1 to 0.14 s in one piece, and no other model
    wrote anything meanwhile (two cores, no GPU). Python's lock changes hands within that.

    The thread is not stopped by a cancelled load: it ends by itself, and what it made is
    dropped. It is no daemon, so an exit of the interpreter waits for it: killed in foreign
    code it could take the process down.

    Parameters
    ----------
    function : callable
        Must not touch MLX.
    here : bool
        Do it at once, on this thread: for code that nobody knows.
    """

    def __init__(self, function: Callable[[], T], *, here: bool = False) -> None:
        if here:
            self._future: Future[T] = Future()
            with library_environment.usual():
                self._future.set_result(function())
            return
        thread = ThreadPoolExecutor(1, "mlx-magic-aside")
        self._future = thread.submit(_in_usual_environment, function)
        thread.shutdown(wait=False)

    def check(self) -> None:
        """Raise what the function raised, if it has."""
        if self._future.done():
            self._future.result()

    def result(self, cancel: CancelToken) -> Generator[None, None, T]:
        """Wait for its value in slices.

        Raises
        ------
        Cancelled
        Exception
            Whatever the function raised.
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
    """Say whether all of these are of a class of the libraries, and not of a checkpoint's code."""
    libraries = {"transformers", "mlx_lm", "mlx_vlm", "tokenizers"}
    return all(type(thing).__module__.partition(".")[0] in libraries for thing in things)
