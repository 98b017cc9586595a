"""Pictures that are made ready before their turn: where, when not, and that nothing changes."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mlx_magic.inference.backends import ahead, device
from mlx_magic.inference.backends.ahead import Ahead, Ready
from mlx_magic.inference.backends.processed import Processed
from mlx_magic.inference.cancel import Cancelled, CancelToken
from mlx_magic.inference.image_input import ImageInput
from mlx_magic.inference.images import open_images

SECONDS = 20
MANY = 10**6


@pytest.fixture(scope="module", autouse=True)
def mlx() -> None:
    device.start()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "KNOWN", (*ahead.KNOWN, __name__.partition(".")[0]))


def pictures(*seeds: int, height: int = 4) -> list[ImageInput]:
    chance = [np.random.default_rng(seed) for seed in seeds]
    return open_images([each.integers(0, 256, (height, 5, 3), np.uint8) for each in chance])


class Doubler:
    """Makes floats of pictures; notes on which threads."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.before: Callable[[], None] = lambda: None

    def __call__(self, images: Any, **options: Any) -> Any:
        self.threads.append(threading.get_ident())
        self.before()
        return {"pixel_values": self.made([np.asarray(each, np.float32) for each in images[0]])}

    def made(self, held: list[Any]) -> Any:
        return np.stack(held) * 2


class Processor:
    """Gives its image processor lists in a list, as SmolVLM's does."""

    def __init__(self, image_processor: Any = None) -> None:
        self.image_processor: Any = image_processor or Doubler()
        self.options: dict[str, Any] = {"rows": True}

    def __call__(self, images: list[ImageInput]) -> Any:
        return self.image_processor([[image.pixels for image in images]], **self.options)


def make(kept: Processed, processor: Processor, images: list[ImageInput]) -> Any:
    with kept.standing_in(processor, images):
        return processor(images)["pixel_values"]


def elsewhere(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Begin something on another thread."""
    given: list[Any] = []

    def run() -> None:
        try:
            given.append(function())
        except BaseException as error:
            given.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, given


def ready(kept: Processed, images: list[ImageInput], cancel: CancelToken | None = None) -> Any:
    """Make pictures ready on another thread, and wait for it."""
    thread, given = elsewhere(lambda: kept.ready(images, cancel or CancelToken()))
    thread.join(SECONDS)
    return given[0]


@pytest.mark.parametrize("seeds", [(2,), (2, 3, 2)])
def test_what_was_seen_once_is_made_ahead_and_not_again(seeds: tuple[int, ...]) -> None:
    kept, processor = Processed(MANY), Processor()
    original = processor.image_processor
    make(kept, processor, pictures(*range(10, 10 + len(seeds))))
    images = pictures(*seeds)
    held = ready(kept, images)
    assert isinstance(held, Ready)
    assert len(original.threads) == 2
    found = make(kept, processor, images)
    assert len(original.threads) == 2, "nothing was made in its turn"
    assert original.threads[1] != threading.get_ident()
    expected = np.stack([np.asarray(image.pixels, np.float32) for image in images]) * 2
    assert np.array_equal(found, expected)
    del held
    gc.collect()
    assert np.array_equal(make(kept, processor, images), expected)
    assert len(original.threads) == 2, "what was used is kept, as ever"


def test_before_anything_was_seen_nothing_is_made_ahead() -> None:
    kept, processor = Processed(MANY), Processor()
    assert ready(kept, pictures(1)) is None
    make(kept, processor, pictures(1))
    assert ready(kept, pictures(1, 2)) is None, "so many were not seen yet"
    assert ready(kept, []) is None
    assert ready(kept, pictures(1)) is None, "it is kept"
    assert len(processor.image_processor.threads) == 1


def test_what_nobody_holds_is_forgotten() -> None:
    kept, processor = Processed(MANY), Processor()
    make(kept, processor, pictures(1))
    held = ready(kept, pictures(2))
    again = ready(kept, pictures(2))
    assert held is again, "the same pictures are made once"
    del held, again
    gc.collect()
    make(kept, processor, pictures(2))
    assert len(processor.image_processor.threads) == 3


def test_forgetting_takes_what_is_ready() -> None:
    kept, processor = Processed(MANY), Processor()
    make(kept, processor, pictures(1))
    held = ready(kept, pictures(2))
    kept.clear()
    assert np.array_equal(
        make(kept, processor, pictures(2)), held.outputs.popitem()[1]["pixel_values"]
    )
    assert len(processor.image_processor.threads) == 3


def test_a_call_that_follows_the_words_is_not_made_ahead() -> None:
    kept, processor = Processed(MANY), Processor()
    original = processor.image_processor
    make(kept, processor, pictures(1))
    held = ready(kept, pictures(2))
    processor.options = {"rows": 7}
    make(kept, processor, pictures(2))
    assert len(original.threads) == 3, "made for another call: of no use"
    assert ready(kept, pictures(3)) is None, "nor is it tried again"
    make(kept, processor, pictures(4))
    assert ready(kept, pictures(3)) is None
    assert held is not None


def test_an_option_of_unknown_meaning_is_not_repeated() -> None:
    kept, processor = Processed(MANY), Processor()
    processor.options = {"how": object()}
    make(kept, processor, pictures(1))
    assert ready(kept, pictures(2)) is None


class Copies(Processor):
    def __call__(self, images: list[ImageInput]) -> Any:
        return self.image_processor([[image.pixels.copy() for image in images]])


def test_a_processor_that_copies_pictures_is_not_guessed_at() -> None:
    kept, processor = Processed(MANY), Copies()
    make(kept, processor, pictures(1))
    assert ready(kept, pictures(2)) is None
    make(kept, processor, pictures(1))
    assert len(processor.image_processor.threads) == 1, "the same picture is known, as ever"


class Notes(Doubler):
    def made(self, held: list[Any]) -> Any:
        self.last = len(held) * [0]
        return super().made(held)


class OfMLX(Doubler):
    def made(self, held: list[Any]) -> Any:
        import mlx.core as mx

        return mx.array(super().made(held))


class Foreign(Doubler):
    __module__ = "transformers_modules.somebody"


class BesideMLX(Doubler):
    __module__ = "mlx_vlm.models.made_up"


@pytest.fixture
def beside_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core

    module: Any = ModuleType(BesideMLX.__module__)
    module.mx = mlx.core
    monkeypatch.setitem(sys.modules, BesideMLX.__module__, module)


@pytest.mark.usefixtures("beside_mlx")
@pytest.mark.parametrize("kind", [Notes, OfMLX, Foreign, BesideMLX])
def test_what_may_not_leave_its_thread_does_not(kind: type[Doubler]) -> None:
    kept, processor = Processed(MANY), Processor(kind())
    for seed in range(3):
        make(kept, processor, pictures(seed))
        assert ready(kept, pictures(10 + seed)) is None
    assert set(processor.image_processor.threads) == {threading.get_ident()}


def test_the_libraries_own_image_processors_may_work_ahead() -> None:
    from mlx_vlm.models.qwen3_vl.processing_qwen3_vl import Qwen3VLImageProcessor
    from transformers.models.smolvlm import image_processing_pil_smolvlm as smolvlm

    for kind in (smolvlm.SmolVLMImageProcessorPil, Qwen3VLImageProcessor):
        assert ahead._leaves_mlx_alone(object.__new__(kind))


def test_one_that_fails_ahead_fails_in_its_turn() -> None:
    kept, processor = Processed(MANY), Processor()
    make(kept, processor, pictures(1))

    def fail() -> None:
        raise ValueError("no such picture")

    processor.image_processor.before = fail
    held = ready(kept, pictures(2))
    assert held.outputs == {}
    with pytest.raises(ValueError, match="no such picture"):
        make(kept, processor, pictures(2))
    processor.image_processor.before = lambda: None
    make(kept, processor, pictures(2))
    assert ready(kept, pictures(3)).outputs


class Gate:
    """Lets those who come wait until it is opened; counts them."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._came = threading.Semaphore(0)
        self.inside = 0

    def __call__(self) -> None:
        self.inside += 1
        self._came.release()
        assert self._open.wait(SECONDS)
        self.inside -= 1

    def wait(self) -> None:
        assert self._came.acquire(timeout=SECONDS)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def learnt(limit: int, threads: int, processor: Doubler) -> Ahead:
    """Return one that has seen how a picture is processed."""
    kept = Processed(limit)
    made = kept._ahead = Ahead(limit, threads)
    make(kept, Processor(processor), pictures(0))
    return made


def key(images: list[ImageInput]) -> tuple[str, ...]:
    return tuple(image.digest for image in images)


def test_so_many_work_at_the_same_time_and_who_waits_can_be_cancelled(gate: Gate) -> None:
    processor = Doubler()
    made = learnt(MANY, 2, processor)
    processor.before = gate
    tokens = [CancelToken() for _ in range(4)]

    def begin(number: int) -> tuple[threading.Thread, list[Any]]:
        images = pictures(1 + number)
        return elsewhere(lambda: made.make(key(images), images, tokens[number]))

    working = [begin(number) for number in range(2)]
    for _ in range(2):
        gate.wait()
    waiting = [begin(number) for number in (2, 3)]
    tokens[2].cancel()
    waiting[0][0].join(SECONDS)
    assert isinstance(waiting[0][1][0], Cancelled)
    assert gate.inside == 2
    gate.open()
    for thread, given in (*working, waiting[1]):
        thread.join(SECONDS)
        assert given[0].outputs
    # What was cancelled leaves nothing behind.
    images = pictures(3)
    again = made.make(key(images), images, CancelToken())
    assert again is not None
    assert again.outputs


def test_the_same_pictures_are_waited_for(gate: Gate) -> None:
    processor = Doubler()
    made = learnt(MANY, 4, processor)
    processor.before = gate
    images, token = pictures(1), CancelToken()
    first = elsewhere(lambda: made.make(key(images), images, CancelToken()))
    gate.wait()
    second = elsewhere(lambda: made.make(key(images), images, CancelToken()))
    third = elsewhere(lambda: made.make(key(images), images, token))
    token.cancel()
    third[0].join(SECONDS)
    assert isinstance(third[1][0], Cancelled)
    assert made.outputs(key(images)) == {}, "in its turn nobody waits"
    gate.open()
    for thread, _ in (first, second):
        thread.join(SECONDS)
    assert first[1][0] is second[1][0]
    assert len(processor.threads) == 2


def test_what_is_made_ahead_is_bounded() -> None:
    size = 4 * 5 * 3 * 4
    processor = Doubler()
    made = learnt(2 * size, 4, processor)
    held = [made.make(key(images), images, CancelToken()) for images in map(pictures, range(1, 5))]
    assert [each is not None for each in held] == [True, True, False, False]
    held.clear()
    gc.collect()
    images = pictures(3)
    assert made.make(key(images), images, CancelToken()) is not None


def test_larger_pictures_than_were_seen_are_bounded_as_well(gate: Gate) -> None:
    processor = Doubler()
    made = learnt(2000, 1, processor)
    processor.before = gate
    large = [pictures(number, height=40) for number in (1, 2)]  # 2,400 bytes each
    threads = [elsewhere(partial(made.make, key(it), it, CancelToken())) for it in large]
    gate.wait()
    gate.open()
    for thread, _ in threads:
        thread.join(SECONDS)
    made_ready = [given[0] is not None and bool(given[0].outputs) for _, given in threads]
    assert sorted(made_ready) == [False, True]
