"""Loading of a model with its library, in slices between which a load can be cancelled.

Both libraries share these steps; the weights are loaded lazily, and evaluated a slice at a time.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from mlx_magic.backends.adapter import AdapterKind
from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.backends.model import LibraryModel
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.models.checkpoints.checkpoint import Checkpoint, bytes_in_memory
from mlx_magic.models.checkpoints.safetensors import Span

Opened = tuple[Any, BackgroundCall[Any]]
"""A model with lazy weights, and the background call that loads its tokenizer or processor."""


class LibraryBackend(ABC):
    """Loads models with one library. See `Backend`."""

    library: str
    adapter: AdapterKind

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes of the weights in memory. See `Backend.estimate`."""
        platform.start()
        return bytes_in_memory(checkpoint, float32=platform.wants_float32)

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[None, None, LibraryModel]:
        """Load a model in slices. See `Backend.load`."""
        began = time.monotonic()
        platform.prepare()
        progress(0, 0, f"loading: importing {self.library}")
        yield
        cancel.checkpoint()
        self.import_library()
        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        cancel.checkpoint()
        origins = Origins()
        model, loading = yield from self.opened(
            checkpoint, trust_remote_code=trust_remote_code, cancel=cancel, origins=origins
        )
        yield
        cancel.checkpoint()
        size, tokenizer = yield from materialize(
            model, cancel=cancel, progress=progress, origins=origins, beside=loading
        )
        self.speed_up(model)
        return LibraryModel.of(self.adapter, checkpoint, model, tokenizer, size, began=began)

    @abstractmethod
    def import_library(self) -> None:
        """Import the library: a slice of its own, since it takes long."""

    @abstractmethod
    def opened(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        origins: Origins,
    ) -> Generator[None, None, Opened]:
        """Make the model with lazy weights, and start to load its tokenizer or processor.

        Parameters
        ----------
        checkpoint : Checkpoint
            A folder on disk, perhaps with an adapter.
        trust_remote_code : bool
            Whether the checkpoint's own code may run.
        cancel : CancelToken
        origins : Origins
            Records where the weights are on disk.

        Raises
        ------
        Cancelled
        """

    @abstractmethod
    def speed_up(self, model: Any) -> None:
        """Replace parts of a model by quicker ones with the same results, once it is loaded."""


T = TypeVar("T")

# At 1 GB/s from a disk a slice takes a sixteenth of a second: the longest wait of a cancel, and
# the interval of progress reports.
SLICE_BYTES = 64 * 2**20


def weights_nbytes(model: Any) -> int:
    """Bytes of all parameters of an ``mlx.nn.Module``."""
    return sum(array.nbytes for _, array in _leaves(model))


def materialize(
    model: Any,
    *,
    cancel: CancelToken,
    progress: LoadProgress,
    beside: BackgroundCall[T],
    origins: Origins | None = None,
) -> Generator[None, None, tuple[int, T]]:
    """Evaluate a lazily loaded model's parameters, a slice at a time.

    If the load is cancelled or fails, the parameters are removed from the module, so that they
    are freed even if the module is still referenced.

    Parameters
    ----------
    model : mlx.nn.Module
    cancel : CancelToken
    progress : callable
        Takes bytes done, total bytes and a note.
    beside : BackgroundCall
        A concurrent call whose result the load needs.
    origins : Origins, optional
        Where the large arrays are on disk, which are read in parts.

    Returns
    -------
    tuple
        Bytes of the weights, and the value of `beside`.

    Raises
    ------
    Cancelled
        Between two slices.
    Exception
        The error of `beside`.
    """
    import mlx.core as mx

    if platform.wants_float32(4 * _elements(model)):
        model.set_dtype(mx.float32)
        _dequantize(model)
    total, done = weights_nbytes(model), 0
    recorded = origins or Origins()
    try:
        cancel.checkpoint()
        with contextlib.closing(_read(model, recorded)) as sizes:
            for size in sizes:
                done += size
                progress(done, total, "loading weights")
                yield
                cancel.checkpoint()
                beside.check()
        # Lazy arrays that are not parameters, such as rotary frequencies.
        mx.eval(model)
        value = yield from beside.result(cancel)
    except GeneratorExit:
        # The generator may be closed on another thread, so do not call MLX.
        recorded.forget()
        raise
    except BaseException as error:
        # No garbage collection after a cancel, which should end at once: it holds Python's lock.
        # On CUDA it ran at each cancel (H100, 0.2 to 0.3 s), because not all memory that was read
        # is free at once there.
        with platform.freeing(0 if isinstance(error, Cancelled) else done):
            # The traceback's frames hold the arrays that were being read.
            traceback.clear_frames(error.__traceback__)
            recorded.forget()
            model.clear()
        raise
    return total, value


def _read(model: Any, origins: Origins) -> Generator[int, None, None]:
    """Read a model's weights; yield the bytes of each slice."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    # An array may have several names; it is read once.
    named: dict[Span, list[str]] = {}
    for name, array in _leaves(model):
        if (span := origins.of(array)) is not None:
            named.setdefault(span, []).append(name)
    large = {name: names[0] for names in named.values() for name in names}
    # Otherwise the recorded arrays that are not parameters would stay in memory.
    origins.drop()
    # Large arrays last: reading their parts takes Python's lock many times, which the background
    # call may hold for long during the first slices.
    for batch in _slices([array for name, array in _leaves(model) if name not in large]):
        mx.eval(batch)
        size = sum(array.nbytes for array in batch)
        batch.clear()
        yield size
    if large:
        found = yield from origins.read({names[0]: span for span, names in named.items()})
        model.update(tree_unflatten([(name, found[first]) for name, first in large.items()]))
        if shared_bytes := sum(span.nbytes * (len(names) - 1) for span, names in named.items()):
            yield shared_bytes
    origins.forget()


def _elements(model: Any) -> int:
    """Return the number of elements of the weights; quantized ones count as unpacked."""
    import mlx.core as mx

    # A quantized module packs elements of `bits` each into unsigned integers.
    packed = {
        name: module.bits for name, module in model.named_modules() if hasattr(module, "bits")
    }
    total = 0
    for name, array in _leaves(model):
        bits = packed.get(name.removesuffix(".weight"))
        unpacks = bits and name.endswith(".weight") and array.dtype == mx.uint32
        total += array.size * 32 // bits if unpacks else array.size
    return total


def _dequantize(model: Any) -> None:
    """Unpack quantized layers, lazily.

    On the CPU backend quantized products do not use BLAS: prefill is many times slower than with
    the same weights in float32.
    """
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_unflatten

    unpacked: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            plain: Any = nn.Linear(1, 1, bias="bias" in module)
        elif isinstance(module, nn.QuantizedEmbedding):
            plain = nn.Embedding(1, 1)
        else:
            continue
        plain.weight = mx.dequantize(
            module.weight,
            module.scales,
            module.get("biases"),
            module.group_size,
            module.bits,
            module.mode,
        )
        if "bias" in module:
            plain.bias = module.bias
        unpacked.append((name, plain))
    if unpacked:
        model.update_modules(tree_unflatten(unpacked))


def _leaves(model: Any) -> list[tuple[str, Any]]:
    from mlx.utils import tree_flatten

    leaves: list[tuple[str, Any]] = tree_flatten(model.parameters())
    return leaves


def _slices(arrays: Iterable[Any]) -> Generator[list[Any], None, None]:
    """Group arrays into slices of about `SLICE_BYTES`; a larger array is a slice by itself."""
    batch: list[Any] = []
    size = 0
    for array in arrays:
        if batch and array.nbytes >= SLICE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(array)
        size += array.nbytes
        if size >= SLICE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
