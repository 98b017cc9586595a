"""What differs by platform, behind one door: BLAS, compiling, dtype, memory, chunk size."""

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
from mlx_magic.backends.device import jit_folder, openblas, platform
from mlx_magic.backends.device.jit_folder import Compiling
from mlx_magic.backends.device.openblas import Blas
from mlx_magic.formatting import amount, shown

# A cancel waits for one prefill chunk. On a GPU a chunk of mlx-vlm's own size
# takes milliseconds. On a CPU it is kept to about a second: two operations a
# weight and token, at some 20 GFLOP/s.
PREFILL_CHUNK_GPU = 2048
# What mlx-vlm and mlx-lm read at once where nothing is said (mlx-vlm 0.7.10, mlx-lm 0.32.2).
LIBRARY_CHUNK = 2048
PREFILL_CHUNKS_CPU = (16, 256)
PREFILL_WEIGHTS_CPU = 20e9 / 2

PICTURES_GPU = 8

# Of so many threads few work at the same time: they share Python's lock.
HELPERS = 8

# The end of a prompt is read with its last token, not by a call of its own, where it is so short.
# Some models make logits of every token of a call, which for a whole chunk is too much.
SHORT = 128
# With CUDA a call takes milliseconds of a processor, however little it computes (2 B on an H100,
# mlx 0.32.4: 3 to 5 ms for one row, some 10 for many): there so many bytes of logits are made, in
# half precision.
LOGITS_CUDA = 256 * 2**20

STAYS = 0.001
"""Of a model's bytes, what may stay without a search for cycles."""

# MLX's CUDA backend compiles attention anew for each shape, such as each length of a prompt. It
# keeps 256 of these, and from the 513th on refuses every new one for good: "Cache thrashing is
# happening" (mlx 0.32.4, measured on an H100). A kernel that lives for days would come to that.
# The setting is for all such caches of the process.
CUDA_CHECK = ("MLX_ENABLE_CACHE_THRASHING_CHECK", "0")

# Of version 2 of Linux's control groups, and of version 1.
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
        In arrays, and kept by the allocator for reuse.
    limit : int
        What may be used in all; 0 is unknown.
    """

    active: int
    cached: int
    limit: int


_blas: Blas | None = None
_compiling: Compiling | None = None


def prepare() -> Blas:
    """Load OpenBLAS where it helps, and set MLX's CUDA backend up; before mlx is imported.

    Runs once. The mlx-cpu wheel ships reference BLAS, about forty times slower in float32
    (measured, see the project's facts). macOS needs none of this.
    """
    global _blas
    if _blas is None:
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
    """Whether MLX runs on a GPU (Metal or CUDA); before it is in use, whether it will."""
    mx = sys.modules.get("mlx.core")
    if mx is None or not hasattr(mx, "default_device"):
        return sys.platform == "darwin" or _has_cuda()
    return bool(mx.default_device() == mx.Device(mx.gpu))


def describe_device() -> str:
    """Name the device for a person, without importing MLX for it."""
    mx = sys.modules.get("mlx.core")
    if mx is None:
        return "not started"
    if mx.default_device() != mx.Device(mx.gpu):
        return "CPU"
    return "GPU (Metal)" if mx.metal.is_available() else "GPU (CUDA)"


def has_vector_math() -> bool:
    """Whether MLX takes exponentials in vectors: on a GPU, and through Accelerate on a Mac.

    Elsewhere its CPU backend takes them one by one (mlx 0.32.4, measured on x86; read in its
    sources for other processors).
    """
    return is_gpu() or sys.platform == "darwin"


def _is_cuda() -> bool:
    return is_gpu() and sys.platform != "darwin"


def reads_where_it_evaluates() -> bool:
    """Whether MLX reads a file on the thread that evaluates: on CUDA.

    On Metal and a CPU its own threads read (read in mlx's ``load.cpp``, one a backend).
    """
    return _is_cuda()


def read_at_once(vocabulary: int) -> int:
    """Return how many tokens, of all rows, are read in one call with the last of a prompt.

    Parameters
    ----------
    vocabulary : int
        Tokens that the model knows; 0 is unknown.
    """
    if not _is_cuda() or not vocabulary:
        return SHORT
    return max(LOGITS_CUDA // (2 * vocabulary), SHORT)


def helpers() -> int:
    """Return how many threads may work on pictures beside the inference thread."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(HELPERS, cores // 2))


def pictures_at_once() -> int:
    """Return how many pictures are encoded between two looks at the cancel token.

    One fills a CPU (some 20 ms for the bundled model, seconds for larger ones); a GPU is
    faster with several.
    """
    return PICTURES_GPU if is_gpu() else 1


def prefill_chunk(nbytes: int) -> int:
    """Tokens that are read between two looks at the cancel token.

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
    """Whether weights should be unpacked and cast to float32 after loading.

    On the CPU backend half-precision and quantized products do not go through
    BLAS (three times slower and more, measured). Not if the weights would then
    take more than half of the memory there is.

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
    """Import MLX, after what must come before it; on the inference thread."""
    global _compiling
    prepare()
    mx = import_module("mlx.core")
    # On a GPU MLX compiles within the driver.
    if _compiling is None and not is_gpu():
        _compiling = jit_folder.arrange(mx, jit_folder.elsewhere(user_folders.cache()))


def compiles() -> Compiling | None:
    """Return where MLX's CPU backend compiles; None before `start`, and on a GPU."""
    return _compiling


def compile_failure(error: BaseException) -> str:
    """Say what to do about an error of MLX's compiler; empty if it is another error.

    From then on MLX compiles nothing: whoever asks again gets an answer.
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
    """Bytes this machine lets a model use; 0 is unknown.

    Before `start` that is the machine's memory, afterwards the device's.
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
    """Bytes that a container lets its processes take; 0 where nothing says so."""
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text(encoding="ascii"))
    return 0


def memory() -> Memory:
    """Return MLX's counters; zeros before MLX is in use."""
    mx = sys.modules.get("mlx.core")
    if mx is None or not hasattr(mx, "get_active_memory"):
        return Memory(0, 0, total_memory())
    return Memory(mx.get_active_memory(), mx.get_cache_memory(), total_memory())


def reset_peak() -> None:
    """Start measuring peak memory anew; on the inference thread."""
    import mlx.core as mx

    mx.reset_peak_memory()


def peak() -> int:
    """Peak memory since `reset_peak`, in bytes."""
    import mlx.core as mx

    return int(mx.get_peak_memory())


@contextlib.contextmanager
def freeing(nbytes: int) -> Iterator[None]:
    """Give memory of arrays that are dropped within the block back to the system.

    On the inference thread. Cycles are looked for only if something stays: that holds Python's
    lock for 30 ms, for 0.3 s where PyTorch is imported, and in a full notebook for longer.

    Parameters
    ----------
    nbytes : int
        What is dropped; 0 looks for no cycles.
    """
    import mlx.core as mx

    before = mx.get_active_memory()
    yield
    # What is dropped goes to MLX's buffer cache first.
    if before - mx.get_active_memory() < nbytes * (1 - STAYS):
        gc.collect()
    mx.clear_cache()


def keep_buffers(resident: int) -> None:
    """Let MLX's buffer cache follow the models; on the inference thread.

    Parameters
    ----------
    resident : int
        Bytes of the weights of all models in memory, as they are now.
    """
    mx = sys.modules.get("mlx.core")
    if mx is not None:
        mx.set_cache_limit(cache_limit(resident, total_memory()))


def fresh_seed(seed: int | None = None) -> None:
    """Seed this thread's random state, by chance if no seed is given."""
    import mlx.core as mx

    mx.random.seed(secrets.randbits(63) if seed is None else seed)


def give_back() -> None:
    """Give memory back to the system that malloc keeps of what was freed.

    glibc keeps it in arenas, one or more a thread, which a long day leaves half empty. After 277
    questions 303 MB were resident, and 194 MB afterwards. Takes some milliseconds.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl


def settle() -> None:
    """Wait for all that MLX does in the background for the inference thread; on that thread."""
    if "mlx.core" not in sys.modules:
        return
    import mlx.core as mx

    mx.synchronize()
    # The libraries have a stream each for what they generate.
    for name in ("mlx_lm.generate", "mlx_vlm.generate.common"):
        stream = getattr(sys.modules.get(name), "generation_stream", None)
        if stream is not None:
            mx.synchronize(stream)


def release_thread() -> None:
    """Let go of MLX's streams of this thread, which is about to end.

    MLX's threads behind them would otherwise abort the process at its exit.
    """
    mx = sys.modules.get("mlx.core")
    if mx is not None and hasattr(mx, "clear_streams"):
        gc.collect()
        mx.clear_streams()


def facts() -> list[tuple[str, str]]:
    """Return pairs of a word and its value: device, memory, BLAS, and trouble with compiling."""
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
"""What is kept however small the models are: MLX's own limit on the CPU."""


SHARE = 1 / 4
"""Of the bytes of the models resident."""


SHARE_OF_MEMORY = 1 / 8
"""Of the device's memory: no more than this, however large the models are."""


def cache_limit(resident: int, memory: int) -> int:
    """Return the bytes that MLX's buffer cache may hold.

    Each step frees the arrays of the one before, and asks for as many again: what is kept
    in between spares a call to the system's allocator. By itself MLX keeps 32 MiB on the
    CPU, and on a GPU as much as the whole memory limit, which is memory that neither a
    second model nor the notebook beside it gets. What a step needs grows with the model's
    width and layers, as its weights do: hence a quarter of them, between `LEAST` and an
    eighth of the memory.

    Measured with the bundled model (12 MB in float32, two CPU cores, best of eight): without
    any cache a token took 1.56 ms, with 1 MiB 1.51 ms, with 4 MiB to 512 MiB 1.43 to 1.49 ms,
    in no order; the first token came after 52 to 55 ms with each of them. The cache never
    held more than 2.8 MB. So for a small model `LEAST` is plenty.

    Parameters
    ----------
    resident : int
        Bytes of the weights of all models in memory.
    memory : int
        Bytes the device lets models use; 0 is unknown.
    """
    wanted = max(int(resident * SHARE), LEAST)
    return min(wanted, int(memory * SHARE_OF_MEMORY)) if memory else wanted
