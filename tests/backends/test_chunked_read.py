"""Large arrays read in parts equal those that MLX reads at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_magic.backends import library_backend
from mlx_magic.backends.base import LoadProgress
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import chunked_read
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.backends.loading.chunked_read import Origins
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import Engine

ROWS, WIDTH = 70, 16


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "reads_where_it_evaluates", lambda: True)
    monkeypatch.setattr(platform, "wants_float32", lambda nbytes: False)
    monkeypatch.setattr(chunked_read, "LARGE", 1_000)
    monkeypatch.setattr(chunked_read, "PART", 32 * 2 * WIDTH)
    monkeypatch.setattr(chunked_read, "PIECE", 100)


def model_of(
    tmp_path: Path, *, changed: bool = False, twice: bool = False
) -> tuple[Any, Any, Origins]:
    """Return a module with a large and a small array, the expected large one, and the origins."""
    import mlx.core as mx
    from mlx import nn

    path = tmp_path / "model.safetensors"
    large = mx.random.normal((ROWS, WIDTH)).astype(mx.bfloat16)
    mx.save_safetensors(str(path), {"a": mx.arange(7), "large": large, "z": mx.zeros((3, 2))})
    library, origins = SimpleNamespace(mx=mx), Origins()
    with origins.recording(library):
        held = library.mx.load(str(path))
        assert library.mx.array is mx.array
    assert library.mx is mx
    model: Any = nn.Module()
    model.large = held["large"] * 1 if changed else held["large"]
    if twice:
        model.tied = model.large
    model.small = held["a"]
    return model, large, origins


def reading(
    model: Any,
    origins: Origins,
    cancel: CancelToken,
    progress: LoadProgress = lambda done, total, note: None,
) -> Any:
    beside = BackgroundCall(lambda: None, here=True)
    return library_backend.materialize(
        model, cancel=cancel, progress=progress, beside=beside, origins=origins
    )


def read_all(model: Any, origins: Origins, cancel: CancelToken) -> list[int]:
    done: list[int] = []
    for _ in reading(model, origins, cancel, lambda d, t, n: done.append(d)):
        pass
    return done


@pytest.mark.usefixtures("as_on_cuda")
def test_large_array_read_in_parts_is_equal(engine: Engine, tmp_path: Path) -> None:
    def work() -> tuple[list[int], bool, str]:
        import mlx.core as mx

        model, large, origins = model_of(tmp_path)
        done = read_all(model, origins, CancelToken())
        same = bool(mx.array_equal(model.large, large)) and model.small.tolist() == [*range(7)]
        return done, same, str(model.large.dtype)

    done, same, dtype = engine.call(work).result(30)
    part, whole = 32 * 2 * WIDTH, ROWS * 2 * WIDTH
    small = 7 * 4
    assert done == [small, small + part, small + 2 * part, small + whole]
    assert same
    assert dtype == "mlx.core.bfloat16"


@pytest.mark.usefixtures("as_on_cuda")
def test_each_reader_is_called_once_per_part(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each further call waits for the GIL, which a tokenizer may hold for long.
    real, asked = chunked_read._Part._fill, []

    def fill(part: Any, view: memoryview, start: int) -> int:
        asked.append(start)
        return real(part, view, start)

    monkeypatch.setattr(chunked_read._Part, "_fill", fill)

    def work() -> None:
        model, _, origins = model_of(tmp_path)
        read_all(model, origins, CancelToken())

    engine.call(work).result(30)
    parts = -(-ROWS // 32)
    assert parts < len(asked) <= parts * chunked_read.READERS


@pytest.mark.usefixtures("as_on_cuda")
def test_array_changed_by_the_library_is_read_by_mlx(engine: Engine, tmp_path: Path) -> None:
    def work() -> tuple[list[int], bool]:
        import mlx.core as mx

        model, large, origins = model_of(tmp_path, changed=True)
        done = read_all(model, origins, CancelToken())
        return done, bool(mx.array_equal(model.large, large))

    done, same = engine.call(work).result(30)
    assert done == [ROWS * 2 * WIDTH + 7 * 4]
    assert same


@pytest.mark.usefixtures("as_on_cuda")
def test_tied_array_is_read_once_and_stays_shared(engine: Engine, tmp_path: Path) -> None:
    def work() -> tuple[list[int], bool, bool]:
        import mlx.core as mx

        model, large, origins = model_of(tmp_path, twice=True)
        done = read_all(model, origins, CancelToken())
        return done, model.tied is model.large, bool(mx.array_equal(model.large, large))

    done, one, same = engine.call(work).result(30)
    whole = ROWS * 2 * WIDTH
    assert done[-2:] == [7 * 4 + whole, 7 * 4 + 2 * whole]
    assert one
    assert same


@pytest.mark.usefixtures("as_on_cuda")
def test_file_replaced_during_the_load_is_not_read(engine: Engine, tmp_path: Path) -> None:
    def work() -> bool:
        import mlx.core as mx

        model, large, origins = model_of(tmp_path)
        other = tmp_path / "other"
        other.write_bytes(bytes((tmp_path / "model.safetensors").stat().st_size))
        other.replace(tmp_path / "model.safetensors")
        read_all(model, origins, CancelToken())
        return bool(mx.array_equal(model.large, large))

    assert engine.call(work).result(30)


@pytest.mark.usefixtures("as_on_cuda")
def test_source_arrays_are_freed_after_their_conversion(engine: Engine, tmp_path: Path) -> None:
    count, side = 8, 256

    def work() -> int:
        import mlx.core as mx
        from mlx import nn

        path = tmp_path / "model.safetensors"
        mx.save_safetensors(str(path), {f"w{at}": mx.ones((side, side)) for at in range(count)})
        library, origins = SimpleNamespace(mx=mx), Origins()
        model: Any = nn.Module()
        with origins.recording(library):
            model.weights = [array * 2 for array in library.mx.load(str(path)).values()]
        before = platform.memory().active
        mx.reset_peak_memory()
        read_all(model, origins, CancelToken())
        return int(mx.get_peak_memory()) - before

    assert engine.call(work).result(30) < 1.5 * count * side * side * 4


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("slices", [1, 2])
def test_load_can_be_cancelled_before_and_after_the_first_part(
    engine: Engine, tmp_path: Path, slices: int
) -> None:
    def work() -> int:
        model, _, origins = model_of(tmp_path)
        before = platform.memory().active
        token = CancelToken()
        steps = reading(model, origins, token)
        for _ in range(slices):
            next(steps)
        token.cancel()
        with pytest.raises(Cancelled):
            next(steps)
        assert not model.parameters()
        return platform.memory().active - before

    assert engine.call(work).result(30) <= 0


@pytest.mark.usefixtures("as_on_cuda")
def test_file_truncated_during_the_load_is_an_error(engine: Engine, tmp_path: Path) -> None:
    def work() -> tuple[BaseException, int]:
        model, _, origins = model_of(tmp_path)
        before = platform.memory().active
        path = tmp_path / "model.safetensors"
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(RuntimeError, match="read") as caught:
            read_all(model, origins, CancelToken())
        return caught.value, platform.memory().active - before

    error, more = engine.call(work).result(30)
    # The traceback is kept, and keeps no part of the array alive.
    assert error.__traceback__ is not None
    assert more <= 0


def test_mlx_load_is_not_replaced_if_mlx_reads_on_its_own_threads() -> None:
    library = SimpleNamespace(mx=object())
    real = library.mx
    with Origins().recording(library):
        assert library.mx is real
