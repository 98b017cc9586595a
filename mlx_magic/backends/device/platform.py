"""All that differs by platform: BLAS, compilation, dtype, memory, chunk sizes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mlx_magic import forks, user_folders
from mlx_magic.backends import upstream
from mlx_magic.backends.device import jit_folder, openblas, platform
from mlx_magic.backends.device.jit_folder import Compiling
from mlx_magic.backends.device.openblas import Blas
from mlx_magic.formatting import amount, shown

# A cancel waits for one prefill chunk. On a GPU a chunk of mlx-vlm's default size takes
# milliseconds. On a CPU a chunk is limited to about a second: two operations per weight and
# token, at some 20 GFLOP/s.
PREFILL_CHUNK_GPU = 2048
# Default chunk of mlx-vlm and mlx-lm (mlx-vlm 0.7.10, mlx-lm 0.32.2).
LIBRARY_CHUNK = 2048
PREFILL_CHUNKS_CPU = (16, 256)
PREFILL_WEIGHTS_CPU = 20e9 / 2

IMAGES_GPU = 8

# More threads would not help: they share Python's lock.
HELPERS = 8

# Up to this many tokens at the end of a prompt are read in one call with its last token. Some
# models make logits of every token of a call, which would be too much for a whole chunk.
SHORT = 128
# Bytes of logits, in half precision, that one call may make with CUDA. A call takes milliseconds of
# a CPU, however little it computes (2 B on an H100, mlx 0.32.4: 3 to 5 ms for one row, some 10 for
# many), so that fewer calls are quicker.
LOGITS_CUDA = 256 * 2**20

ARENAS = "MALLOC_ARENA_MAX"
"""The user's own setting of glibc."""

M_ARENA_MAX = -8
"""The same for its function `mallopt`, from malloc.h."""

STAYS = 0.001
"""Share of a model's bytes that may stay allocated without a garbage collection."""

# MLX's CUDA backend compiles attention for each shape, such as each length of a prompt. It caches
# 256 of these, and from the 513th on refuses every new one for good: "Cache thrashing is
# happening" (mlx 0.32.4, measured on an H100). A kernel that lives for days would reach that.
# The setting is for all such caches of the process.
CUDA_CHECK = ("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")

# Control groups of Linux, version 2 and version 1.
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """MLX's memory, in bytes.

    Attributes
    ----------
    active, cached : int
        Bytes in arrays, and bytes that the allocator keeps for reuse.
    limit : int
        Maximum that may be used; 0 is unknown.
    """

    active: int
    cached: int
    limit: int


_blas: Blas | None = None
_compiling: Compiling | None = None


def prepare() -> Blas:
    """Load OpenBLAS if it helps, and configure MLX's CUDA backend; before mlx is imported.

    Runs once. The mlx-cpu wheel has the reference BLAS, which is about forty times slower in
    float32 (measured, see the project's facts). On macOS there is nothing to do.
    """
    global _blas
    if _blas is None:
        limit_arenas()
        _blas = _prepare()
        forks.register_library_threads(openblas)
    return _blas


def blas() -> Blas | None:
    """Return what `prepare` did, or None before it ran."""
    return _blas


def _prepare() -> Blas:
    if sys.platform != "linux":
        return Blas(None, "not needed on this platform")
    if _has_cuda():
        os.environ.setdefault(*CUDA_CHECK)
        return Blas(None, "not needed with CUDA")
    return openblas.load()


@cache
def _has_cuda() -> bool:
    return importlib.util.find_spec("mlx_cuda") is not None or _has_distribution("mlx-cuda")


def _has_distribution(prefix: str) -> bool:
    from importlib.metadata import distributions

    return any((d.metadata["Name"] or "").lower().startswith(prefix) for d in distributions())


def is_gpu() -> bool:
    """Whether MLX runs on a GPU (Metal or CUDA), or will once it is imported."""
    mx = sys.modules.get("mlx.core")
    if mx is None or not hasattr(mx, "default_device"):
        return sys.platform == "darwin" or _has_cuda()
    return bool(mx.default_device() == mx.Device(mx.gpu))


def describe_device() -> str:
    """Return the device's name for display, without importing MLX."""
    mx = sys.modules.get("mlx.core")
    if mx is None:
        return "not started"
    if mx.default_device() != mx.Device(mx.gpu):
        return "CPU"
    return "GPU (Metal)" if mx.metal.is_available() else "GPU (CUDA)"


def has_vector_math() -> bool:
    """Whether MLX vectorizes exponentials: on a GPU, and through Accelerate on a Mac.

    Elsewhere its CPU backend computes them one by one (mlx 0.32.4, measured on x86; read in its
    sources for other processors).
    """
    return is_gpu() or sys.platform == "darwin"


def _is_cuda() -> bool:
    return is_gpu() and sys.platform != "darwin"


def reads_where_it_evaluates() -> bool:
    """Whether MLX reads files on the evaluating thread, as with CUDA.

    On Metal and a CPU its own threads read (according to each backend's ``load.cpp`` in mlx).
    """
    return _is_cuda()


def read_at_once(vocabulary: int) -> int:
    """Return the maximum number of prompt tokens, over all rows, of a call that makes logits.

    Parameters
    ----------
    vocabulary : int
        Size of the vocabulary; 0 is unknown.
    """
    if not _is_cuda() or not vocabulary:
        return SHORT
    return max(LOGITS_CUDA // (2 * vocabulary), SHORT)


def preprocessing_threads() -> int:
    """Return how many threads may preprocess images beside the inference thread."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(HELPERS, cores // 2))


def images_at_once() -> int:
    """Return how many images are encoded between two checks of the cancel token.

    One image keeps a CPU busy (some 20 ms for the bundled model, seconds for larger ones); a GPU
    is faster with several.
    """
    return IMAGES_GPU if is_gpu() else 1


def prefill_chunk(nbytes: int) -> int:
    """Return the tokens per prefill chunk, between two checks of the cancel token.

    Parameters
    ----------
    nbytes : int
        Bytes of the model's weights.
    """
    if is_gpu():
        return PREFILL_CHUNK_GPU
    least, most = PREFILL_CHUNKS_CPU
    tokens = int(PREFILL_WEIGHTS_CPU / max(nbytes / 4, 1))
    return min(max(tokens, least), most)


def wants_float32(nbytes: int) -> bool:
    """Whether weights should be dequantized and cast to float32 after loading.

    On the CPU backend half-precision and quantized products do not use BLAS (three times slower
    and more, measured). False if the weights would then take more than half of the memory.

    Parameters
    ----------
    nbytes : int
        Bytes of the weights as float32.
    """
    if is_gpu():
        return False
    total = total_memory()
    return total == 0 or nbytes <= total // 2


def start() -> None:
    """Import MLX after `prepare`, and choose its compile folder; on the inference thread."""
    global _compiling
    prepare()
    mx = import_module("mlx.core")
    # On a GPU the driver compiles.
    if _compiling is None and not is_gpu():
        _compiling = jit_folder.choose_jit_folder(
            mx, jit_folder.fallback_folders(user_folders.cache())
        )


def compiles() -> Compiling | None:
    """Return where MLX's CPU backend compiles; None before `start` and on a GPU."""
    return _compiling


def compile_failure(error: BaseException) -> str:
    """Return a message with a remedy for an error of MLX's compiler; empty for other errors.

    Turns compilation off, so that the next request works.
    """
    global _compiling
    problem = jit_folder.failure(error)
    mx = sys.modules.get("mlx.core")
    if not problem or mx is None:
        return ""
    where = shown(jit_folder.temporary(), 200)
    mx.disable_compile()
    _compiling = Compiling(None, f"{where}: {problem}")
    return (
        f"MLX could not compile in {where} ({problem}). Ask again: it works without that, more "
        f"slowly. To compile, make room in {where} or set TMPDIR to another folder, then "
        "restart the kernel."
    )


def total_memory() -> int:
    """Return the bytes of memory that models may use; 0 is unknown.

    The machine's memory before `start`, the device's afterwards.
    """
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        info: dict[str, Any] = {}
        with contextlib.suppress(RuntimeError, AttributeError):
            info = mx.device_info()
        for key in ("max_recommended_working_set_size", "total_memory", "memory_size"):
            value = info.get(key)
            if isinstance(value, int) and value > 0:
                return value
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return min(machine, _container_limit() or machine)
    return 0


@cache
def _container_limit() -> int:
    """Return the memory limit of the container, in bytes; 0 if there is none."""
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text(encoding="ascii"))
    return 0


def memory() -> Memory:
    """Return MLX's memory counters; zeros before MLX is imported."""
    mx = sys.modules.get("mlx.core")
    if mx is None or not hasattr(mx, "get_active_memory"):
        return Memory(0, 0, total_memory())
    return Memory(mx.get_active_memory(), mx.get_cache_memory(), total_memory())


def reset_peak() -> None:
    """Reset MLX's peak memory; on the inference thread."""
    import mlx.core as mx

    mx.reset_peak_memory()


def peak() -> int:
    """Peak memory since `reset_peak`, in bytes."""
    import mlx.core as mx

    return int(mx.get_peak_memory())


@contextlib.contextmanager
def freeing(nbytes: int) -> Iterator[None]:
    """Return the memory of arrays that are dropped within the block to the system.

    On the inference thread. Garbage is collected only if arrays stay: that holds Python's lock for
    30 ms, for 0.3 s if PyTorch is imported, and longer in a full notebook.

    Parameters
    ----------
    nbytes : int
        Bytes that are dropped; 0 never collects garbage.
    """
    import mlx.core as mx

    before = mx.get_active_memory()
    yield
    # Freed arrays go to MLX's buffer cache first.
    if before - mx.get_active_memory() < nbytes * (1 - STAYS):
        gc.collect()
    mx.clear_cache()


def keep_buffers(resident: int) -> None:
    """Set the limit of MLX's buffer cache for the models in memory; on the inference thread.

    Parameters
    ----------
    resident : int
        Bytes of the weights of all models in memory.
    """
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        mx.set_cache_limit(cache_limit(resident, total_memory()))


def fresh_seed(seed: int | None = None) -> None:
    """Seed this thread's random state, at random by default."""
    import mlx.core as mx

    mx.random.seed(secrets.randbits(63) if seed is None else seed)


def give_back() -> None:
    """Return memory that malloc keeps after a free to the system.

    glibc keeps it in arenas, one or more per thread, which are half empty after a long time. After
    277 questions 303 MB were resident before the call, and 194 MB after it. It takes some
    milliseconds.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def limit_arenas() -> None:
    """Let malloc have one arena per core, unless the user has set another number.

    By default glibc makes eight per core for threads that allocate at the same time, such as those
    that open the images of concurrent requests, and each keeps what it once held. A process that
    had answered 32 questions at once took 75 MB more for that (two cores, the bundled model).
    """
    if ARENAS in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:
        set_option(M_ARENA_MAX, max(2, os.cpu_count() or 1))


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl


def settle() -> None:
    """Wait for MLX's background work for the inference thread; on that thread."""
    if "mlx.core" not in sys.modules:
        return
    import mlx.core as mx

    mx.synchronize()
    # Each library has a stream of its own for generation.
    for stream in upstream.loaded_streams():
        mx.synchronize(stream)


def release_thread() -> None:
    """Release MLX's streams of this thread, which is about to end.

    Otherwise the streams' threads abort the process at its exit.
    """
    mx = sys.modules.get("mlx.core")
    if mx is not None and hasattr(mx, "clear_streams"):
        gc.collect()
        mx.clear_streams()


def facts() -> list[tuple[str, str]]:
    """Return labels and values for display: device, memory, BLAS, and problems of compilation."""
    memory, blas = platform.memory(), platform.blas()
    limit = f" of {amount(memory.limit)}" if memory.limit else ""
    if blas is None:
        blas = openblas.Blas(None, f"decided at the first load; {openblas.SWITCH}=0 turns it off")
    found = platform.compiles()
    compiled = [("compiled code", found.words)] if found is not None and found.problem else []
    return [
        ("device", platform.describe_device()),
        ("memory", f"{amount(memory.active)} in use, {amount(memory.cached)} kept{limit}"),
        ("OpenBLAS", blas.reason + (f" ({blas.loaded})" if blas.loaded else "")),
        *compiled,
    ]


LEAST = 32 * 2**20
"""Minimum limit of the buffer cache: MLX's own limit on the CPU."""


SHARE = 1 / 4
"""Limit of the buffer cache, as a share of the weights of all models in memory."""


SHARE_OF_MEMORY = 1 / 8
"""Maximum limit of the buffer cache, as a share of the device's memory."""


def cache_limit(resident: int, memory: int) -> int:
    """Return the bytes that MLX's buffer cache may hold.

    Each step frees the arrays of the step before and allocates as many again. The cache saves
    calls to the system's allocator. By default MLX keeps 32 MiB on the CPU, and on a GPU up to
    the whole memory limit, which neither a second model nor another process then gets. The
    arrays of a step grow with the model's width and layers, as its weights do: hence a quarter
    of the weights, between `LEAST` and an eighth of the memory.

    Measured with the bundled model (12 MB in float32, two CPU cores, best of eight): without
    any cache a token took 1.56 ms, with 1 MiB 1.51 ms, with 4 MiB to 512 MiB 1.43 to 1.49 ms,
    in no order; the first token came after 52 to 55 ms with each of them. The cache never
    held more than 2.8 MB. So for a small model `LEAST` is plenty.

    Parameters
    ----------
    resident : int
        Bytes of the weights of all models in memory.
    memory : int
        Bytes of memory that models may use; 0 is unknown.
    """
    wanted = max(int(resident * SHARE), LEAST)
    return min(wanted, int(memory * SHARE_OF_MEMORY)) if memory else wanted
