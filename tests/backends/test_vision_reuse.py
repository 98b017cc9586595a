"""Cached images and prompts of a real model: same answers, less work."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import mlx_magic
from benchmarks.random_model import build
from mlx_magic.backends import model as backends_model
from mlx_magic.backends.batching import model_batch
from mlx_magic.backends.batching.batch import Slot
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.prefill import PrefillBatch
from mlx_magic.backends.device.platform import Memory
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.vision.backend import VisionBackend
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.request import Exchange, GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk, Usage
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.errors import GenerationError
from mlx_magic.images import opening as images_opening
from mlx_magic.models.checkpoints.checkpoint import inspect
from tests.generators import run_to_end

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("templates_render_here")]

SIDE, IMAGE_TOKENS = 512, 1024

Cut = Callable[[int, CancelToken], None]


def shape(colour: str, kind: str = "ellipse") -> Image.Image:
    image = Image.new("RGB", (200, 150), "white")
    getattr(ImageDraw.Draw(image), kind)((60, 30, 140, 110), fill=colour)
    return image


def opened(*images: Image.Image) -> tuple[images_opening.ImageInput, ...]:
    return tuple(images_opening.open_images(list(images))) if images else ()


def cut_at(slice_: int) -> Cut:
    """Cancel before this slice."""

    def cut(now: int, token: CancelToken) -> None:
        if now == slice_:
            token.cancel()

    return cut


class RunningRequest:
    """A running request, stepped one slice at a time as the engine does."""

    def __init__(self, model: LibraryModel, request: GenerationRequest, cut: Cut | None) -> None:
        self.chunks: list[GenerationChunk] = []
        self.text, self.reason, self.slices = "", "", 0
        self.prompt = request.prompt
        self.error: Exception | None = None
        self._cut = cut
        self.token = CancelToken()
        self._steps = model.generate(request, cancel=self.token, report=self._report)

    def _report(self, chunk: GenerationChunk) -> None:
        self.chunks.append(chunk)
        self.text += chunk.text

    @property
    def usage(self) -> Usage:
        last = self.chunks[-1]
        return Usage(
            last.prompt_tokens, last.image_tokens, last.cached_tokens, last.completion_tokens
        )

    def step(self) -> bool:
        """Run one slice; return whether there is more."""
        if self._cut is not None:
            self._cut(self.slices, self.token)
        self.slices += 1
        try:
            next(self._steps)
        except StopIteration as end:
            self.reason = end.value
        except Cancelled:
            self.reason = "cancelled"
        except Exception as error:
            self.error = error
        else:
            return True
        return False


class ModelBench:
    """A model and its inference thread."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.model: LibraryModel = engine.call(lambda: run_to_end(_load(folder))).result(120)

    def ask(
        self,
        prompt: str,
        *images: Image.Image,
        history: tuple[Exchange, ...] = (),
        cut: Cut | None = None,
        **sampling: Any,
    ) -> RunningRequest:
        """Send a request and wait for its end."""
        return self.all([(asking(prompt, *images, history=history, **sampling), cut)])[0]

    def all(self, requests: list[tuple[GenerationRequest, Cut | None]]) -> list[RunningRequest]:
        """Send several requests at once and run them round-robin."""

        def work() -> list[RunningRequest]:
            asked = [RunningRequest(self.model, request, cut) for request, cut in requests]
            going = list(asked)
            while going:
                going = [each for each in going if each.step()]
            return asked

        return self.engine.call(work).result(300)

    def forget(self) -> int:
        return self.engine.call(self.model.forget).result(60)

    def cold(self, prompt: str, *images: Image.Image, **more: Any) -> RunningRequest:
        """Send a request with empty caches."""
        self.forget()
        return self.ask(prompt, *images, **more)


def answers_alone(room: ModelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a model answer through mlx-vlm's `stream_generate`."""
    standing = room.model._answering.policy
    apart = replace(standing.verdict, together=False, why="the test says so")
    monkeypatch.setattr(standing, "verdict", apart)


def asking(
    prompt: str, *images: Image.Image, history: tuple[Exchange, ...] = (), **sampling: Any
) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt,
        images=opened(*images),
        history=history,
        sampling=Sampling(**{"max_tokens": 12, **sampling}),
    )


def _load(folder: Path) -> Generator[None, None, LibraryModel]:
    return VisionBackend().load(
        inspect(folder, folder.name),
        trust_remote_code=False,
        cancel=CancelToken(),
        progress=lambda done, total, note: None,
    )


@pytest.fixture(scope="module")
def demo(engine: Engine) -> Iterator[ModelBench]:
    room = ModelBench(engine, mlx_magic.demo_model())
    yield room
    engine.call(room.model.close).result(60)


@pytest.fixture(scope="module")
def large(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelBench]:
    """A model with random weights and 1,024 tokens per image."""
    folder = engine.call(lambda: large_model(tmp_path_factory.mktemp("large"))).result(60)
    room = ModelBench(engine, folder)
    yield room
    engine.call(room.model.close).result(60)


def large_model(folder: Path) -> Path:
    base = folder / "base"
    shutil.copytree(mlx_magic.demo_model(), base)

    def change(name: str, **more: Any) -> None:
        held = json.loads((base / name).read_text(encoding="utf-8"))
        (base / name).write_text(json.dumps({**held, **more}), encoding="utf-8")

    vision = json.loads((base / "config.json").read_text())["vision_config"]
    vision.update(image_size=SIDE, num_hidden_layers=1)
    change("config.json", vision_config=vision, torch_dtype="float32")
    size = {"height": SIDE, "width": SIDE}
    change("preprocessor_config.json", size=size, max_image_size={"longest_edge": SIDE})
    change("processor_config.json", image_seq_len=IMAGE_TOKENS)
    made = build("tiny", base, folder / "model")
    _enliven(made / "model.safetensors")
    return made


def _enliven(weights: Path) -> None:
    """Scale the weights up: with fresh weights all prompts get the same answer."""
    import mlx.core as mx

    held: Any = mx.load(str(weights))
    held = {
        name: array * 4 if array.ndim > 1 and "embed" not in name else array
        for name, array in held.items()
    }
    mx.eval(held)
    mx.save_safetensors(str(weights), held, metadata={"format": "mlx"})


RED, BLUE, SQUARE = shape("red"), shape("blue"), shape("green", "rectangle")
QUESTION = "What colour is the shape?"


def test_second_question_on_an_image_prefills_only_new_tokens(large: ModelBench) -> None:
    first = large.cold(QUESTION, RED)
    second = large.ask("Which shape is it then?", RED)
    reuse = large.model.reuse
    again = large.cold("Which shape is it then?", RED)

    assert first.usage.image_tokens == IMAGE_TOKENS
    assert first.usage.cached_tokens == 0
    assert second.usage.prompt_tokens - second.usage.cached_tokens < 20
    assert second.usage.cached_tokens > IMAGE_TOKENS
    assert (second.text, second.reason) == (again.text, again.reason)
    assert first.text != second.text, "the model's answers depend on the question"
    assert large.cold(QUESTION, BLUE).text != first.text, "and on the image"
    assert (reuse.prefix_hits, reuse.image_misses) == (1, 1), "nor did it look again"


def test_progress_starts_at_the_cached_prefix(large: ModelBench) -> None:
    large.cold(QUESTION, RED)
    second = large.ask("Which shape is it then?", RED)
    read = [chunk.prompt_read for chunk in second.chunks if chunk.phase == "prefill"]
    assert read[0] == second.usage.cached_tokens > IMAGE_TOKENS
    assert read == sorted(read)
    assert read[-1] <= second.usage.prompt_tokens


def test_image_at_another_position_is_not_encoded_again(demo: ModelBench) -> None:
    demo.cold(QUESTION, RED)
    before = demo.model.reuse
    other = demo.ask(QUESTION, BLUE, RED)
    after = demo.model.reuse
    assert after.image_hits + after.image_misses == before.image_misses + 2
    demo.ask("Now?", SQUARE, BLUE)
    assert demo.model.reuse.image_hits == after.image_hits + 1
    assert demo.model.reuse.image_misses == after.image_misses + 1
    assert other.text == demo.cold(QUESTION, BLUE, RED).text


def test_ten_turns_on_an_image_prefill_each_turn_once(large: ModelBench) -> None:
    large.forget()
    colds: list[tuple[str, tuple[Exchange, ...], str]] = []
    history: tuple[Exchange, ...] = ()
    for turn in range(10):
        prompt = f"Question {turn}: which shape?"
        images = [RED] if turn == 0 else []
        asked = large.ask(prompt, *images, history=history)
        if turn:
            fresh = asked.usage.prompt_tokens - asked.usage.cached_tokens
            assert fresh < 0.05 * asked.usage.prompt_tokens
        if turn in (1, 5, 9):
            colds.append((prompt, history, asked.text))
        history += (Exchange(prompt, asked.text, opened(*images)),)
    assert len({turn.answer for turn in history}) > 5
    for prompt, before, text in colds:
        assert large.cold(prompt, history=before).text == text


def test_second_image_in_a_later_turn_keeps_the_first_cached(demo: ModelBench) -> None:
    first = demo.cold(QUESTION, RED)
    history = (Exchange(QUESTION, first.text, opened(RED)),)
    second = demo.ask("And this one?", BLUE, history=history)
    assert first.usage.prompt_tokens < second.usage.cached_tokens
    assert second.usage.cached_tokens < second.usage.prompt_tokens - first.usage.image_tokens
    assert second.text == demo.cold("And this one?", BLUE, history=history).text


def test_same_question_about_another_image_is_prefilled_again(demo: ModelBench) -> None:
    expected = [demo.cold(QUESTION, image).text for image in (RED, BLUE, SQUARE)]
    demo.forget()
    for _ in range(2):
        assert [demo.ask(QUESTION, image).text for image in (RED, BLUE, SQUARE)] == expected
    assert demo.model.reuse.prefix_bytes > 0
    assert len(set(expected)) == 3


def test_model_without_batching_does_not_encode_an_image_again(
    demo: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = demo.cold(QUESTION, RED).text
    answers_alone(demo, monkeypatch)
    demo.forget()
    before = demo.model.reuse
    asked = [demo.ask(QUESTION, RED) for _ in range(3)]
    assert {each.text for each in asked} == {together}
    assert demo.model.reuse.image_misses == before.image_misses + 1
    assert demo.model.reuse.image_hits == before.image_hits + 2


def test_seed_gives_the_same_answer_with_and_without_the_cache(large: ModelBench) -> None:
    cold = large.cold(QUESTION, RED, temperature=1.0, seed=7)
    assert large.ask(QUESTION, RED, temperature=1.0, seed=7).text == cold.text


def test_cached_prompts_in_a_batch_answer_as_alone(demo: ModelBench) -> None:
    asked = [f"What colour is the shape?{' please' * (n % 4)}" for n in range(12)]
    images = [RED, BLUE, SQUARE]
    expected = [demo.cold(q, images[n % 3]).text for n, q in enumerate(asked)]
    demo.forget()
    for image in images:
        demo.ask(QUESTION, image)
    requests = [
        (GenerationRequest(prompt=q, images=opened(images[n % 3]), sampling=Sampling(12)), None)
        for n, q in enumerate(asked)
    ]
    together = demo.all([*requests])
    assert [each.text for each in together] == expected
    assert min(each.usage.cached_tokens for each in together) > 64


def numbered(count: int) -> list[Image.Image]:
    """Images that are all different."""
    made = [shape("red") for _ in range(count)]
    for at, image in enumerate(made):
        ImageDraw.Draw(image).rectangle((0, 0, 10 + 5 * at, 8), fill="blue")
    return made


@pytest.mark.parametrize("alone", [False, True], ids=["together", "alone"])
@pytest.mark.parametrize("at", [1, 5, 18])
def test_no_image_is_encoded_after_a_cancel(
    demo: ModelBench, monkeypatch: pytest.MonkeyPatch, alone: bool, at: int
) -> None:
    if alone:
        answers_alone(demo, monkeypatch)
    asked_for: list[int] = []
    adapter: Any = demo.model._adapter
    tower = type(adapter._model.vision_model)
    encode = tower.__call__
    images = numbered(20)
    expected = demo.cold(QUESTION, images[3]).text
    demo.ask(QUESTION, *images[:2])  # the encoder is probed
    demo.forget()
    request = GenerationRequest(prompt=QUESTION, images=opened(*images), sampling=Sampling(4))
    asked = RunningRequest(demo.model, request, None)

    def counting(self: Any, pixels: Any, *more: Any, **rest: Any) -> Any:
        asked_for.append(int(pixels.shape[0]))
        if sum(asked_for) > at:
            asked.token.cancel()
        return encode(self, pixels, *more, **rest)

    def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(tower, "__call__", counting)
            while asked.step():
                pass

    demo.engine.call(work).result(120)
    assert asked.reason == "cancelled"
    assert asked_for == [1] * (at + 1), "it stops after the image in work"
    told = [c.images_seen for c in asked.chunks if c.image_count]
    assert told == list(range(at + 1))
    assert {c.image_count for c in asked.chunks if c.image_count} == {20}
    assert demo.model.reuse.image_bytes == 0
    assert demo.ask(QUESTION, images[3]).text == expected


def test_batch_size_is_limited_by_memory(demo: ModelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = demo.model._answering.batch
    assert batch is not None
    images = [RED, BLUE, SQUARE]
    expected = [demo.cold(QUESTION, image).text for image in images]
    demo.forget()
    held = batch.limits.held
    one = demo.model._admission.require(prompt_tokens=78, image_tokens=64, max_tokens=12)
    limit = 2 * one.cache + one.joint_reading + one.logits
    most: list[int] = []

    def memory() -> Memory:
        most.append(held())
        return Memory(held(), 0, limit)

    monkeypatch.setattr(demo.model._admission, "_memory", memory)
    requests = [
        (
            GenerationRequest(prompt=QUESTION, images=opened(images[n % 3]), sampling=Sampling(12)),
            cut_at(4) if n == 5 else None,
        )
        for n in range(8)
    ]
    together = demo.all([*requests])
    for n, each in enumerate(together):
        assert each.error is None
        assert each.reason == "cancelled" if n == 5 else each.text == expected[n % 3]
    waited = [any(chunk.phase == "queued" for chunk in each.chunks) for each in together]
    assert waited == [False] * 2 + [True] * 6
    assert together[5].chunks[-1].phase == "queued", "it was cancelled while it waited"
    assert one.cache < max(most) <= 2 * one.cache


def kept(room: ModelBench) -> int:
    return room.model.reuse.prefix_bytes


@pytest.mark.parametrize("with_image", [True, False], ids=["image", "words"])
def test_cancelled_request_is_not_cached(demo: ModelBench, with_image: bool) -> None:
    """In mlx-vlm a cancelled turn leaves a cache longer than its tokens, which is wrong later."""
    images = [RED] if with_image else []
    long = "Tell me about the shape, its colour and its place. " * 4
    follow = "Which shape is it?"
    whole = demo.cold(long, *images)
    expected = demo.cold(long + follow, *images).text
    for at in range(whole.slices):
        demo.forget()
        cut = demo.ask(long, *images, cut=cut_at(at))
        assert cut.reason == "cancelled"
        assert kept(demo) == 0
        follows = demo.ask(long + follow, *images)
        assert (follows.usage.cached_tokens, follows.text) == (0, expected)


def test_failed_request_is_not_cached(demo: ModelBench, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = demo.cold(QUESTION, RED).text
    demo.forget()

    def fails(*args: Any) -> None:
        raise GenerationError("No.", model="demo")

    with monkeypatch.context() as patch:
        patch.setattr(demo.model, "_detokenize", fails)
        assert isinstance(demo.ask(QUESTION, RED).error, GenerationError)
    assert kept(demo) == 0
    assert demo.ask(QUESTION, RED).text == expected


@pytest.mark.parametrize("company", [0, 2])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_answer_ended_by_a_stop_sequence_is_cached_up_to_it(
    demo: ModelBench, monkeypatch: pytest.MonkeyPatch, after: int, company: int
) -> None:
    report = RunningRequest._report

    def stopping(self: RunningRequest, chunk: GenerationChunk) -> None:
        report(self, chunk)
        if self.prompt == QUESTION and chunk.completion_tokens == after:
            raise Stopped

    others = [f"{n}: which shape is it?" for n in range(company)]
    demo.forget()
    with monkeypatch.context() as patch:
        patch.setattr(RunningRequest, "_report", stopping)
        stopped = demo.all([(asking(prompt, RED), None) for prompt in (QUESTION, *others)])[0]
    assert isinstance(stopped.error, Stopped)
    assert (stopped.usage.completion_tokens, kept(demo) > 0) == (after, True)
    follow = (Exchange(QUESTION, stopped.text.strip(), opened(RED)),)
    follows = demo.ask("Why?", history=follow)
    # Its text may lag by one token.
    assert follows.usage.cached_tokens >= stopped.usage.prompt_tokens + after // 2
    assert follows.text == demo.cold("Why?", history=follow).text


def test_random_cancellations_do_not_change_later_answers(demo: ModelBench) -> None:
    controls = [(f"Question {n}: {QUESTION}", [RED, BLUE, SQUARE][n % 3]) for n in range(20)]
    expected = [demo.cold(prompt, image).text for prompt, image in controls]
    demo.forget()
    rng = random.Random(4)
    history: dict[int, tuple[Exchange, ...]] = dict.fromkeys(range(8), ())
    ends = []
    for _ in range(12):
        requests: list[tuple[GenerationRequest, Cut | None]] = []
        for chat in history:
            prompt, image = rng.choice(controls)
            first = not history[chat]
            request = GenerationRequest(
                prompt=prompt,
                images=opened(image) if first or rng.random() < 0.2 else (),
                history=history[chat],
                sampling=Sampling(max_tokens=rng.randint(1, 12)),
            )
            at = rng.randrange(1, 14) if rng.random() < 1 / 3 else -1
            requests.append((request, cut_at(at)))
        for chat, (request, _), asked in zip(history, requests, demo.all(requests), strict=True):
            ends.append(asked.reason)
            # Users also continue after an answer that was cut short.
            turn = Exchange(request.prompt, asked.text or "...", request.images)
            history[chat] = (*history[chat], turn) if len(history[chat]) < 4 else ()
    assert set(ends) == {"stop", "length", "cancelled"}
    assert 0.15 < ends.count("cancelled") / len(ends) < 0.4
    assert demo.model.reuse.prefix_hits > 20
    assert [demo.ask(prompt, image).text for prompt, image in controls] == expected


def test_vision_caches_are_bounded_and_freed_by_unload(engine: Engine) -> None:
    import mlx.core as mx

    held = engine.call(mx.get_active_memory).result(60)
    room = ModelBench(engine, mlx_magic.demo_model())
    for n in range(12):
        room.ask(f"Question {n}?", shape("red" if n % 2 else "blue"))
        reuse = room.model.reuse
        assert reuse.nbytes <= reuse.limit_bytes
    assert reuse.prefix_bytes > 0
    assert reuse.image_bytes > 0
    engine.call(room.model.close).result(60)
    assert room.model.reuse.nbytes == 0
    assert engine.call(mx.get_active_memory).result(60) <= held + 100_000


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_failing_processor_ends_only_its_request(
    demo: ModelBench, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    expected = demo.cold(QUESTION, RED).text
    demo.forget()
    calls: list[int] = []

    def raising(tokens: Any, logits: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise ValueError("it broke")
        return logits

    def processors(sampling: Sampling) -> list[Any]:
        return [raising] if sampling.seed == 7 else []

    monkeypatch.setattr(backends_model, "processors", processors)
    pair: list[tuple[GenerationRequest, Cut | None]] = [
        (asking(QUESTION, BLUE, seed=7), None),
        (asking(QUESTION, RED), None),
    ]
    asked = demo.all(pair if first else pair[::-1])
    broken, well = asked if first else asked[::-1]
    assert isinstance(broken.error, ValueError)
    assert broken.reason == ""
    assert (well.text, well.error) == (expected, None)


def test_failed_prefill_does_not_affect_decoding_requests(
    demo: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = demo.cold(QUESTION, RED, max_tokens=20).text
    demo.forget()
    begin = ModelBatch._start_prefill

    def failing(self: ModelBatch, slots: list[Slot]) -> PrefillBatch:
        if any(slot.params.seed == 3 for slot in slots):
            raise MemoryError("too large")
        return begin(self, slots)

    monkeypatch.setattr(ModelBatch, "_start_prefill", failing)
    monkeypatch.setattr(model_batch, "MAX_PREFILL_BATCH", 1)
    well, bad = demo.all(
        [
            (asking(QUESTION, RED, max_tokens=20), None),
            (asking(QUESTION, BLUE, max_tokens=3, seed=3), None),
        ]
    )
    assert isinstance(bad.error, MemoryError)
    assert (well.text, well.error) == (expected, None)
