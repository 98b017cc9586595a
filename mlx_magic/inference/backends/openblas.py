"""A quick BLAS for MLX's CPU backend on Linux, loaded before MLX is."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

SWITCH = "MLX_MAGIC_OPENBLAS"

# How long an idle thread of OpenBLAS keeps its core busy, as a power of two of clock ticks. Its own
# 26 (27 ms at 2.5 GHz) takes 5 % from a small model's answer on two cores, which begins right after
# the products of its prompt; with 20 the steps of SmolLM2 were 10 % slower, with 24 they were not.
BUSY_WAIT = ("OPENBLAS_THREAD_TIMEOUT", "24")


@dataclass(frozen=True, slots=True)
class Blas:
    """Which BLAS MLX's CPU backend uses.

    Attributes
    ----------
    loaded : str or None
        Path of the OpenBLAS that was put before the wheel's own, if any.
    reason : str
        Why, or why not; one line for `%vision status`.
    """

    loaded: str | None
    reason: str


def load() -> Blas:
    """Load the first OpenBLAS that computes rightly; must run before mlx is imported.

    On Linux without CUDA.
    """
    if os.environ.get(SWITCH, "1").lower() in {"0", "no", "off", "false"}:
        return Blas(None, f"turned off by {SWITCH}")
    if "mlx.core" in sys.modules:
        return Blas(None, "mlx was imported before mlx-magic could load OpenBLAS")
    tried = []
    for path in _candidates():
        problem = check_product(path)
        if problem is None:
            _opened(path, ctypes.RTLD_GLOBAL)
            return Blas(path, "loaded before mlx")
        tried.append(f"{Path(path).name}: {problem}")
    if tried:
        return Blas(None, "; ".join(tried))
    return Blas(None, "not found: install libopenblas0-pthread for up to 40 times the speed")


def _opened(path: str, mode: int) -> ctypes.CDLL:
    """Open the library, which looks at `BUSY_WAIT` when it is opened first."""
    name, ticks = BUSY_WAIT
    if name in os.environ:
        return ctypes.CDLL(path, mode=mode)
    os.environ[name] = ticks
    try:
        return ctypes.CDLL(path, mode=mode)
    finally:
        os.environ.pop(name, None)


def _candidates() -> list[str]:
    """Debian's first, then the older one that the opencv wheel carries."""
    found = []
    if system := ctypes.util.find_library("openblas"):
        found.append(system)
    spec = importlib.util.find_spec("cv2")
    if spec is not None and spec.origin:
        libs = Path(spec.origin).parents[1] / "opencv_python.libs"
        found += [str(p) for p in sorted(libs.glob("libopenblas*.so*"))]
    return found


def check_product(path: str) -> str | None:
    """Multiply two matrices with that library alone; None when it is right."""
    import numpy as np

    try:
        sgemm = _opened(path, ctypes.RTLD_LOCAL).cblas_sgemm
    except (OSError, AttributeError) as error:
        return str(error)
    rng = np.random.default_rng(0)
    # Larger than one block of any kernel, so that its assembly really runs.
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
