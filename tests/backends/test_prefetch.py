"""Image processing before a request's turn: on which thread, when not, same results."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from mlx_magic.backends.vision.image_cache import prefetch
from mlx_magic.backends.vision.image_cache.prefetch import Prefetch, Prefetched
from mlx_magic.backends.vision.image_cache.processor_cache import ProcessorCache
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.images.image import ImageInput
from mlx_magic.images.opening import open_images

pytestmark = pytest.mark.usefixtures("mlx")

SECONDS = 20
MANY = 10**6


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "KNOWN", (*prefetch.KNOWN, __name__.partition(".")[0]))


def seeded_images(*seeds: int, height: int = 4) -> list[ImageInput]:
    chance = [np.random.default_rng(seed) for seed in seeds]
    return open_images([each.integers(0, 256, (height, 5, 3), np.uint8) for each in chance])


class Log:
    """A mutable object that is not part of an image processor's state."""

    def __init__(self) -> None:
        self.threads: list[int] = []


class Doubler:
    """Converts images to floats and records the threads."""

    def __init__(self) -> None:
        self._log = Log()
        self.before: Callable[[], None] = lambda: None

    @property
    def threads(self) -> list[int]:
        return self._log.threads

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


def make(kept: ProcessorCache, processor: Processor, images: list[ImageInput]) -> Any:
    with kept.intercepting(processor, images):
        return processor(images)["pixel_values"]


def run_on_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a function on another thread."""
    given: list[Any] = []

    def run() -> None:
        try:
            given.append(function())
        except BaseException as error:
            given.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, given


def prefetched(
    kept: ProcessorCache, images: list[ImageInput], cancel: CancelToken | None = None
) -> Any:
    """Prefetch images on another thread, and wait."""
    return join(run_on_thread(partial(kept.prefetch.make, images, cancel or CancelToken())))


def join(begun: tuple[threading.Thread, list[Any]]) -> Any:
    """Wait for a started function; return its value or its exception."""
    begun[0].join(SECONDS)
    return begun[1][0]


@pytest.mark.parametrize("seeds", [(2,), (2, 3, 4)])
def test_observed_call_is_prefetched_once(seeds: tuple[int, ...]) -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    original = processor.image_processor
    make(kept, processor, seeded_images(*range(10, 10 + len(seeds))))
    images = seeded_images(*seeds)
    held = prefetched(kept, images)
    assert isinstance(held, Prefetched)
    assert len(original.threads) == 2
    found = make(kept, processor, images)
    assert len(original.threads) == 2, "nothing was made in its turn"
    assert original.threads[1] != threading.get_ident()
    expected = np.stack([np.asarray(image.pixels, np.float32) for image in images]) * 2
    assert np.array_equal(found, expected)
    assert (held.outputs, held.size) == ({}, 0), "it is kept elsewhere now"
    assert prefetched(kept, images) is None
    assert np.array_equal(make(kept, processor, images), expected)
    assert len(original.threads) == 2, "what was used is kept, as ever"


def test_output_removed_by_one_request_is_there_for_the_next() -> None:
    class TakesOut(Processor):
        def __call__(self, images: list[ImageInput]) -> Any:
            made = super().__call__(images)
            return {"pixel_values": made.pop("pixel_values")}

    kept, processor = ProcessorCache(MANY), TakesOut()
    make(kept, processor, seeded_images(1))
    held = prefetched(kept, seeded_images(2))
    assert held.outputs
    first = make(kept, processor, seeded_images(2))
    assert np.array_equal(make(kept, processor, seeded_images(2)), first)
    assert len(processor.image_processor.threads) == 2


def test_nothing_is_prefetched_before_a_call_was_observed() -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    assert prefetched(kept, seeded_images(1)) is None
    make(kept, processor, seeded_images(1))
    assert prefetched(kept, seeded_images(1, 2)) is None, "so many were not seen yet"
    assert prefetched(kept, []) is None
    assert prefetched(kept, seeded_images(1)) is None, "it is kept"
    assert len(processor.image_processor.threads) == 1
    kept.clear()
    assert prefetched(kept, seeded_images(1)).outputs, "it is not kept any more"


def test_unreferenced_prefetch_is_dropped() -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    make(kept, processor, seeded_images(1))
    held = prefetched(kept, seeded_images(2))
    again = prefetched(kept, seeded_images(2))
    assert held is again, "the same images are made once"
    del held, again
    gc.collect()
    make(kept, processor, seeded_images(2))
    assert len(processor.image_processor.threads) == 3


def test_clear_frees_prefetched_outputs() -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    make(kept, processor, seeded_images(1))
    held = prefetched(kept, seeded_images(2))
    kept.clear()
    assert (held.outputs, held.size) == ({}, 0)
    make(kept, processor, seeded_images(2))
    assert len(processor.image_processor.threads) == 3


def test_call_that_depends_on_the_text_is_not_prefetched() -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    original = processor.image_processor
    make(kept, processor, seeded_images(1))
    held = prefetched(kept, seeded_images(2))
    processor.options = {"rows": 7}
    make(kept, processor, seeded_images(2))
    assert len(original.threads) == 3, "made for another call: of no use"
    assert prefetched(kept, seeded_images(3)) is None, "nor is it tried again"
    make(kept, processor, seeded_images(4))
    assert prefetched(kept, seeded_images(3)) is None
    assert held is not None


def test_image_order_is_part_of_the_call() -> None:
    class Turned(Processor):
        turned = False

        def __call__(self, images: list[ImageInput]) -> Any:
            return super().__call__(images[::-1] if self.turned else images)

    kept, processor = ProcessorCache(MANY), Turned()
    make(kept, processor, seeded_images(1, 2))
    held = prefetched(kept, seeded_images(3, 4))
    processor.turned = True
    found = make(kept, processor, seeded_images(3, 4))
    assert held is not None
    expected = [np.asarray(image.pixels, np.float32) * 2 for image in seeded_images(4, 3)]
    assert np.array_equal(found, np.stack(expected))


def test_repeated_image_teaches_no_call() -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    one, other = seeded_images(1, 6)
    make(kept, processor, [one, one])
    assert prefetched(kept, seeded_images(2, 3)) is None
    make(kept, processor, seeded_images(2, 3))
    assert prefetched(kept, [other, other]) is None
    make(kept, processor, [other, other])
    assert prefetched(kept, seeded_images(4, 5)).outputs, "and spoils nothing"


@pytest.mark.parametrize("first", [True, False])
def test_call_with_an_unknown_option_is_not_prefetched(first: bool) -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    if not first:
        make(kept, processor, seeded_images(1))
    processor.options = {"how": object()}
    make(kept, processor, seeded_images(2))
    assert prefetched(kept, seeded_images(3)) is None


def test_mutable_option_is_copied_for_each_call() -> None:
    class Uses(Doubler):
        def __call__(self, images: Any, **options: Any) -> Any:
            made = super().__call__(images)
            return {"pixel_values": made["pixel_values"] * options["factors"].pop()}

    class Gives(Processor):
        def __call__(self, images: list[ImageInput]) -> Any:
            self.options = {"factors": [7, 3]}
            return super().__call__(images)

    kept, processor = ProcessorCache(MANY), Gives(Uses())
    for seed in range(3):
        held = prefetched(kept, seeded_images(seed))
        found = make(kept, processor, seeded_images(seed))
        expected = np.stack([np.asarray(seeded_images(seed)[0].pixels, np.float32)]) * 6
        assert np.array_equal(found, expected), seed
        assert (held is not None) == (seed > 0)
    assert len(processor.image_processor.threads) == 3


class Copies(Processor):
    def __call__(self, images: list[ImageInput]) -> Any:
        return self.image_processor([[image.pixels.copy() for image in images]])


def test_processor_that_copies_images_is_not_prefetched() -> None:
    kept, processor = ProcessorCache(MANY), Copies()
    make(kept, processor, seeded_images(1))
    assert prefetched(kept, seeded_images(2)) is None
    make(kept, processor, seeded_images(1))
    assert len(processor.image_processor.threads) == 1, "the same image is known, as ever"


class Prepares(Doubler):
    def preprocess(self, images: Any, scale: int = 2, **options: Any) -> Any:
        self.threads.append(threading.get_ident())
        return {"pixel_values": np.stack([np.asarray(each, np.float32) for each in images]) * scale}


class CallsPreprocess(Processor):
    def __call__(self, images: list[ImageInput]) -> Any:
        pixels = [image.pixels for image in images]
        once = self.image_processor.preprocess(pixels)["pixel_values"]
        again = self.image_processor.preprocess(images=pixels, scale=3)["pixel_values"]
        return {"pixel_values": once + again}


def test_calls_of_preprocess_are_prefetched_too() -> None:
    kept, processor = ProcessorCache(MANY), CallsPreprocess(Prepares())
    original = processor.image_processor
    make(kept, processor, seeded_images(1))
    images = seeded_images(2)
    held = prefetched(kept, images)
    assert isinstance(held, Prefetched)
    found = make(kept, processor, images)
    assert len(original.threads) == 4, "nothing was made in its turn"
    assert threading.get_ident() not in original.threads[2:]
    assert np.array_equal(found, np.stack([np.asarray(images[0].pixels, np.float32)]) * 5)


def test_preprocess_without_images_is_called_as_it_was() -> None:
    class Odd(Prepares):
        def preprocess(self, image: Any = None, **options: Any) -> Any:  # type: ignore[override]
            return {"pixel_values": np.asarray(image, np.float32)}

    class Caller(Processor):
        def __call__(self, images: list[ImageInput]) -> Any:
            return self.image_processor.preprocess(image=images[0].pixels)

    kept, processor = ProcessorCache(MANY), Caller(Odd())
    (image,) = seeded_images(1)
    assert np.array_equal(make(kept, processor, [image]), np.asarray(image.pixels, np.float32))
    assert prefetched(kept, seeded_images(2)) is None


def test_image_processor_keeps_the_name_of_its_class() -> None:
    class Replaces(Processor):
        def __call__(self, images: list[ImageInput]) -> Any:
            if type(self.image_processor).__name__ != "Doubler":
                self.image_processor = Doubler()
            return super().__call__(images)

    kept, processor = ProcessorCache(MANY), Replaces()
    make(kept, processor, seeded_images(1))
    assert isinstance(prefetched(kept, seeded_images(2)), Prefetched)


class Notes(Doubler):
    def made(self, held: list[Any]) -> Any:
        self.last = len(held)
        return super().made(held)


class NotesWithin(Doubler):
    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, list[int]] = {"heights": []}

    def made(self, held: list[Any]) -> Any:
        self.last["heights"].append(len(held[0]))
        return super().made(held)


class OfMLX(Doubler):
    def made(self, held: list[Any]) -> Any:
        from importlib import import_module

        return import_module("mlx.core").array(super().made(held))


class Foreign(Doubler):
    __module__ = "transformers_modules.somebody"


class OfForeign(Foreign):
    pass


@pytest.mark.parametrize("kind", [Notes, NotesWithin, OfMLX, Foreign, OfForeign])
def test_processors_bound_to_their_thread_are_not_prefetched(kind: type[Doubler]) -> None:
    kept, processor = ProcessorCache(MANY), Processor(kind())
    for seed in range(4):
        make(kept, processor, seeded_images(seed))
        assert prefetched(kept, seeded_images(10 + seed)) is None
    assert set(processor.image_processor.threads) == {threading.get_ident()}


def test_error_in_prefetch_is_raised_by_the_request() -> None:
    kept, processor = ProcessorCache(MANY), Processor()
    make(kept, processor, seeded_images(1))

    def fail() -> None:
        raise ValueError("no such image")

    processor.image_processor.before = fail
    held = prefetched(kept, seeded_images(2))
    assert (held.outputs, held.size) == ({}, 0)
    with pytest.raises(ValueError, match="no such image"):
        make(kept, processor, seeded_images(2))
    processor.image_processor.before = lambda: None
    make(kept, processor, seeded_images(2))
    assert prefetched(kept, seeded_images(3)).outputs


class Gate:
    """Blocks callers until it is opened; counts them."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._came = threading.Semaphore(0)
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self._came.release()
        assert self._open.wait(SECONDS)
        with self._lock:
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


def observed_prefetch(limit: int, threads: int, processor: Doubler) -> Prefetch:
    """Return a prefetch that has observed how an image is processed."""
    kept = ProcessorCache(limit)
    made = kept.prefetch = Prefetch(limit, threading.Semaphore(threads))
    make(kept, Processor(processor), seeded_images(0))
    return made


Begun = tuple[threading.Thread, list[Any]]


def test_prefetch_concurrency_is_limited_and_skips_cancelled_requests(gate: Gate) -> None:
    processor = Doubler()
    made = observed_prefetch(MANY, 2, processor)
    processor.before = gate
    tokens = [CancelToken() for _ in range(6)]

    def begin(number: int) -> Begun:
        return run_on_thread(partial(made.make, seeded_images(1 + number), tokens[number]))

    begun = [begin(number) for number in range(2)]
    for _ in range(2):
        gate.wait()
    begun += [begin(number) for number in range(2, 6)]
    tokens[2].cancel()
    gate.open()
    found = [join(each) for each in begun]
    assert gate.most == 2
    assert isinstance(found.pop(2), Cancelled)
    assert all(each.outputs for each in found)
    assert len(processor.threads) == 1 + 5
    again = made.make(seeded_images(3), CancelToken())
    assert again is not None
    assert again.outputs, "what was cancelled is in nobody's way"


def blocked_prefetch(gate: Gate) -> tuple[Doubler, Prefetch, Begun]:
    """Start a prefetch that stops at the gate."""
    processor = Doubler()
    made = observed_prefetch(MANY, 4, processor)
    processor.before = gate
    begun = run_on_thread(partial(made.make, seeded_images(1), CancelToken()))
    gate.wait()
    return processor, made, begun


def test_second_request_waits_for_the_same_prefetch(gate: Gate) -> None:
    processor, made, first = blocked_prefetch(gate)
    second = run_on_thread(partial(made.make, seeded_images(1), CancelToken()))
    gate.open()
    held = join(first)
    assert join(second) is held
    assert held.outputs
    assert len(processor.threads) == 2


@pytest.fixture
def fast_thread_switching() -> Iterator[None]:
    """Switch threads as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("fast_thread_switching")
def test_concurrent_threads_prefetch_the_same_images_once() -> None:
    processor = Doubler()
    made = observed_prefetch(MANY, 8, processor)

    def come(barrier: threading.Barrier, images: list[ImageInput]) -> Any:
        barrier.wait()
        return made.make(images, CancelToken())

    for number in range(1, 41):
        barrier = threading.Barrier(6, timeout=SECONDS)
        images = seeded_images(number)
        begun = [run_on_thread(partial(come, barrier, images)) for _ in range(6)]
        assert len({id(join(each)) for each in begun}) == 1
        assert len(processor.threads) == 1 + number


def test_used_prefetch_is_repeated_if_not_cached() -> None:
    made = observed_prefetch(MANY, 1, Doubler())
    first = made.make(seeded_images(1), CancelToken())
    assert made.take(seeded_images(1))
    second = made.make(seeded_images(1), CancelToken())
    assert second is not first
    assert second is not None
    assert second.outputs


def test_take_does_not_wait_for_a_running_prefetch(gate: Gate) -> None:
    _, made, first = blocked_prefetch(gate)
    assert made.take(seeded_images(1)) == {}
    assert made.take(seeded_images(2)) == {}
    gate.open()
    assert join(first).outputs


def test_waiter_of_a_cancelled_prefetch_does_the_work_itself(gate: Gate) -> None:
    processor = Doubler()
    slots = SteppedSlots()
    made = observed_prefetch(MANY, 1, processor)
    made._slots = slots
    token = CancelToken()
    first = run_on_thread(partial(made.make, seeded_images(1), token))
    slots.wait()
    second = run_on_thread(partial(made.make, seeded_images(1), CancelToken()))
    token.cancel()
    slots.go()
    assert isinstance(join(first), Cancelled)
    slots.wait()
    slots.go()
    held = join(second)
    assert held.outputs
    assert len(processor.threads) == 2


class SteppedSlots(threading.Semaphore):
    """Admits one thread at a time, on request."""

    def __init__(self) -> None:
        super().__init__(0)
        self._came = threading.Semaphore(0)

    def __enter__(self, *_: Any) -> bool:
        self._came.release()
        return self.acquire(timeout=SECONDS)

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> None:
        assert self._came.acquire(timeout=SECONDS)

    def go(self) -> None:
        self.release()


SIZE = 4 * 5 * 3 * 4
"""Bytes of one processed image."""


def test_prefetched_bytes_are_bounded() -> None:
    made = observed_prefetch(2 * SIZE, 4, Doubler())
    held = [made.make(seeded_images(number), CancelToken()) for number in range(1, 5)]
    assert [each is not None for each in held] == [True, True, False, False]
    made.take(seeded_images(1))
    assert made.make(seeded_images(3), CancelToken()) is not None, "what was used takes no room"
    held.clear()
    gc.collect()
    held = [made.make(seeded_images(number), CancelToken()) for number in range(1, 4)]
    assert [each is not None for each in held] == [True, True, False]


def test_running_prefetches_count_toward_the_limit(gate: Gate) -> None:
    processor = Doubler()
    made = observed_prefetch(2 * SIZE, 4, processor)
    processor.before = gate
    begun = [
        run_on_thread(partial(made.make, seeded_images(number), CancelToken())) for number in (1, 2)
    ]
    for _ in begun:
        gate.wait()
    assert made.make(seeded_images(3), CancelToken()) is None
    gate.open()
    assert all(join(each).outputs for each in begun)


def test_images_larger_than_observed_respect_the_limit() -> None:
    made = observed_prefetch(3 * SIZE, 1, Doubler())
    first = made.make(seeded_images(1), CancelToken())
    large = made.make(seeded_images(2, height=40), CancelToken())
    assert first is not None
    assert large is not None
    assert (large.outputs, large.size) == ({}, 0)
    assert first.outputs
    assert made.make(seeded_images(3), CancelToken()) is not None


@pytest.mark.usefixtures("fast_thread_switching")
def test_many_threads_prefetch_without_conflict() -> None:
    made = observed_prefetch(8 * SIZE, 8, Doubler())

    def many(first: int) -> int:
        found = 0
        for number in range(60):
            images = seeded_images(first + number % 20)
            held = made.make(images, CancelToken())
            found += held is not None and bool(held.outputs)
            if number % 3 == 0:
                made.take(images)
            if number % 7 == 0:
                made.clear()
        return found

    begun = [run_on_thread(partial(many, 10 * number)) for number in range(8)]
    assert all(isinstance(found, int) and found for found in map(join, begun))
