"""A fast BLAS for MLX's CPU backend on Linux, loaded before MLX."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

SWITCH = "MLX_MAGIC_OPENBLAS"

# How long an idle thread of OpenBLAS spins, as a power of two of clock ticks. The default of 26
# (27 ms at 2.5 GHz) slows a small model's decode by 5 % on two cores, since decode begins right
# after the products of the prefill. With 20 the steps of SmolLM2 were 10 % slower, with 24 not.
BUSY_WAIT = ("OPENBLAS_THREAD_TIMEOUT", "24")


@dataclass(frozen=True, slots=True)
class Blas:
    """Which BLAS MLX's CPU backend uses.

    Attributes
    ----------
    loaded : str or None
        Path of the OpenBLAS that replaces the wheel's BLAS, if any.
    reason : str
        Why it was loaded or not; one line for `%vision status`.
    """

    loaded: str | None
    reason: str


def load() -> Blas:
    """Load the first OpenBLAS that computes correctly; must run before mlx is imported.

    On Linux without CUDA.
    """
    if os.environ.get(SWITCH, "1").lower() in {"0", "no", "off", "false"}:
        return Blas(None, f"turned off by {SWITCH}")
    if "mlx.core" in sys.modules:
        return Blas(None, "mlx was imported before mlx-magic could load OpenBLAS")
    tried = []
    for path in _candidates():
        before = _threads()
        problem = check_product(path)
        if problem is None:
            _pool.loaded(_opened(path, ctypes.RTLD_GLOBAL), _threads() - before)
            return Blas(path, "loaded before mlx")
        tried.append(f"{Path(path).name}: {problem}")
    if tried:
        return Blas(None, "; ".join(tried))
    return Blas(None, "not found: install libopenblas0-pthread for up to 40 times the speed")


@dataclass(slots=True)
class _Pool:
    """The threads of the OpenBLAS that MLX uses.

    Attributes
    ----------
    library : ctypes.CDLL or None
    count : int
        Number of threads that share a product, the calling one included.
    ids : set of str
        Linux's ids of the threads.
    """

    library: ctypes.CDLL | None = None
    count: int = 1
    ids: set[str] = field(default_factory=set)

    def loaded(self, library: ctypes.CDLL, ids: set[str]) -> None:
        """Record the library and its threads."""
        self.library, self.ids = library, ids
        self.count = int(library.openblas_get_num_threads())

    def set(self, count: int) -> None:
        """Set the number of threads for further products."""
        if self.library is not None:
            self.library.openblas_set_num_threads(count)


_pool = _Pool()


def pause() -> None:
    """Make a fork safe: use one thread from now on, and wait until the other threads are idle.

    MLX goes on meanwhile, with each product on one thread.
    """
    if _pool.count < 2:
        return
    _pool.set(1)
    # An idle thread spins for a while and then sleeps (`BUSY_WAIT`). Checked twice, because a
    # product may have begun just before the number of threads was set.
    for _ in range(2):
        time.sleep(_POLL_SECONDS)
        while any(_runs(thread) for thread in _pool.ids):
            time.sleep(_POLL_SECONDS)


def resume() -> None:
    """Use all threads again. After a fork this starts them in the child."""
    if _pool.count < 2:
        return
    before = _threads()
    _pool.set(_pool.count)
    _pool.ids = (_pool.ids & _threads()) | (_threads() - before)


_POLL_SECONDS = 0.005


def _threads() -> set[str]:
    """Return Linux's ids of the threads of this process."""
    try:
        return set(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        return set()


def _runs(thread: str) -> bool:
    try:
        state = Path(f"/proc/self/task/{thread}/stat").read_text("ascii", "replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[:1] == ["R"]


def _opened(path: str, mode: int) -> ctypes.CDLL:
    """Open the library with `BUSY_WAIT` set, which it reads when it is first opened."""
    name, ticks = BUSY_WAIT
    if name in os.environ:
        return ctypes.CDLL(path, mode=mode)
    os.environ[name] = ticks
    try:
        return ctypes.CDLL(path, mode=mode)
    finally:
        os.environ.pop(name, None)


def _candidates() -> list[str]:
    """Return the system's OpenBLAS first, then the older one of the opencv wheel."""
    found = []
    if system := ctypes.util.find_library("openblas"):
        found.append(system)
    spec = importlib.util.find_spec("cv2")
    if spec is not None and spec.origin:
        libs = Path(spec.origin).parents[1] / "opencv_python.libs"
        found += [str(p) for p in sorted(libs.glob("libopenblas*.so*"))]
    return found


def check_product(path: str) -> str | None:
    """Multiply two matrices with a library; return None, or what is wrong."""
    import numpy as np

    try:
        sgemm = _opened(path, ctypes.RTLD_LOCAL).cblas_sgemm
    except (OSError, AttributeError) as error:
        return str(error)
    rng = np.random.default_rng(0)
    # Larger than one block of any kernel, so that its assembly code runs.
    m, k, n = 97, 193, 131
    a = rng.standard_normal((m, k), dtype=np.float32)
    b = rng.standard_normal((k, n), dtype=np.float32)
    c = np.zeros((m, n), dtype=np.float32)
    one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
    pointer = ctypes.POINTER(ctypes.c_float)
    row_major, no_trans = 101, 111
    sgemm(
        row_major, no_trans, no_trans, m, n, k,
        one, a.ctypes.data_as(pointer), k, b.ctypes.data_as(pointer), n,
        zero, c.ctypes.data_as(pointer), n,
    )  # fmt: skip
    if not np.allclose(c, a.astype(np.float64) @ b.astype(np.float64), atol=1e-3):
        return "gives wrong products on this processor"
    return None
