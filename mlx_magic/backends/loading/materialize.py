"""Bringing lazily loaded weights into memory in slices that can be cancelled."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.models.checkpoints import weight_size
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.safetensors import Span

T = TypeVar("T")

# At 1 GB/s from a disk a slice takes a sixteenth of a second: that is how long
# a cancel waits, and how often the progress moves.
SLICE_BYTES = 64 * 2**20


def weights_nbytes(model: Any) -> int:
    """Bytes of all parameters of an ``mlx.nn.Module``."""
    return sum(array.nbytes for _, array in _leaves(model))


def estimate(checkpoint: Checkpoint) -> int:
    """Bytes that a checkpoint's weights will take in memory; on the inference thread."""
    platform.start()
    return weight_size.expected(checkpoint, float32=platform.wants_float32)


def materialize(
    model: Any,
    *,
    cancel: CancelToken,
    progress: LoadProgress,
    beside: BackgroundCall[T],
    origins: Origins | None = None,
) -> Generator[None, None, tuple[int, T]]:
    """Evaluate a lazily loaded model's parameters, a slice at a time.

    The parameters of a load that stops or fails are dropped here, whoever else still holds
    the module.

    Parameters
    ----------
    model : mlx.nn.Module
    cancel : CancelToken
    progress : callable
        Takes bytes done, bytes in all and a note.
    beside : BackgroundCall
        What is done meanwhile, and must be there before the load is over.
    origins : Origins, optional
        What is known of its large arrays, which are read in parts.

    Returns
    -------
    tuple
        Bytes of the weights, and the value of `beside`.

    Raises
    ------
    Cancelled
        Between two slices.
    Exception
        Why `beside` failed.
    """
    import mlx.core as mx

    if platform.wants_float32(4 * _elements(model)):
        model.set_dtype(mx.float32)
        _dequantize(model)
    total, done = weights_nbytes(model), 0
    held = origins or Origins()
    try:
        cancel.checkpoint()
        with contextlib.closing(_read(model, held)) as sizes:
            for size in sizes:
                done += size
                progress(done, total, "loading weights")
                yield
                cancel.checkpoint()
                beside.check()
        # Also what is no parameter but was made lazily, such as rotary frequencies.
        mx.eval(model)
        value = yield from beside.result(cancel)
    except GeneratorExit:
        # Closed by whoever dropped it, perhaps on another thread: nothing is asked of MLX.
        held.forget()
        raise
    except BaseException as error:
        # A search for cycles holds Python's lock, and who cancels is to go on at once. On CUDA it
        # was made at each cancel (H100, 0.2 to 0.3 s): less than was read is free at once there.
        with platform.freeing(0 if isinstance(error, Cancelled) else done):
            # What was being read is held by the frames that it failed in.
            traceback.clear_frames(error.__traceback__)
            held.forget()
            model.clear()
        raise
    return total, value


def _read(model: Any, origins: Origins) -> Generator[int, None, None]:
    """Read a model's weights; yield the bytes of each slice."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    # One array may have several names, and stays one.
    named: dict[Span, list[str]] = {}
    for name, array in _leaves(model):
        if (span := origins.of(array)) is not None:
            named.setdefault(span, []).append(name)
    large = {name: names[0] for names in named.values() for name in names}
    # What a library made others of would else stay beside these.
    origins.drop()
    # MLX asks for Python's lock once a slice, and for the parts of large arrays many times. So
    # those come last: what is done beside the first slices may hold it for long.
    for batch in _slices([array for name, array in _leaves(model) if name not in large]):
        mx.eval(batch)
        size = sum(array.nbytes for array in batch)
        batch.clear()
        yield size
    if large:
        found = yield from origins.read({names[0]: span for span, names in named.items()})
        model.update(tree_unflatten([(name, found[first]) for name, first in large.items()]))
        if again := sum(span.nbytes * (len(names) - 1) for span, names in named.items()):
            yield again
    origins.forget()


def _elements(model: Any) -> int:
    """Count the numbers that the weights stand for; packed ones count as what they unpack to."""
    import mlx.core as mx

    # A quantized module packs its numbers, of `bits` each, into unsigned integers.
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

    Quantized products do not go through BLAS on the CPU backend: a prompt is
    read many times slower than with the same weights in float32.
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
    """Cut into slices of about `SLICE_BYTES`; an array that is as large is one by itself."""
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
