"""Quantized KV caches: less memory for their request, no effect on others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_magic
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.memory_estimate import ModelDimensions
from mlx_magic.backends.device import platform
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.text.adapter import TextAdapter
from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.errors import GenerationError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from tests.backends.batch_verdicts import let_answer
from tests.backends.test_text_batch import (
    CHUNK,
    TextRequest,
    ask,
    byte_tokenizer,
    llama,
    mlx_lm_text,
)
from tests.backends.test_vision_reuse import (
    BLUE,
    QUESTION,
    RED,
    Cut,
    ModelBench,
    RunningRequest,
    answers_alone,
    cut_at,
    opened,
)

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("templates_render_here")]

HEADS_OF_32 = {"head_dim": 32}


@pytest.fixture(autouse=True)
def answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    let_answer(monkeypatch, together_=True)


@pytest.fixture(scope="module")
def demo(engine: Engine) -> Iterator[ModelBench]:
    room = ModelBench(engine, mlx_magic.demo_model())
    yield room
    engine.call(room.model.close).result(60)


@pytest.fixture(params=["together", "alone"])
def way(request: pytest.FixtureRequest, demo: ModelBench, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the model answers in batches."""
    if request.param == "alone":
        answers_alone(demo, monkeypatch)
    return str(request.param)


class Sizes:
    """Records the largest size of one request's caches."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        make = model._caches

        def caches(kv_bits: int | None) -> list[Any]:
            made: list[Any] = make(kv_bits)
            first = made[0]
            update = first.update_and_fetch

            def watched(*args: Any, **kwargs: Any) -> Any:
                self.most = max(self.most, kv_cache.caches_nbytes(made))
                return update(*args, **kwargs)

            first.update_and_fetch = watched
            return made

        monkeypatch.setattr(model, "_caches", caches)
        monkeypatch.setattr(model._answering, "_caches", caches)
        monkeypatch.setattr(model._answering, "_quantized", {})


def asked(bits: int | None, *images: Any, prompt: str = QUESTION) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt, images=opened(*images), sampling=Sampling(12), kv_bits=bits
    )


def answer(
    demo: ModelBench, bits: int | None, *images: Any, prompt: str = QUESTION
) -> RunningRequest:
    return demo.all([(asked(bits, *images, prompt=prompt), None)])[0]


@pytest.mark.parametrize(("bits", "share"), [(8, 0.32), (4, 0.2)])
def test_quantized_kv_cache_is_smaller(
    demo: ModelBench, way: str, monkeypatch: pytest.MonkeyPatch, bits: int, share: float
) -> None:
    plain = demo.cold(QUESTION, RED)
    demo.forget()
    sizes = Sizes(demo.model, monkeypatch)
    quantized = answer(demo, bits, RED)
    # 4 layers, 5 heads of 32, float32, for the 256 tokens that a cache starts with.
    assert 0 < sizes.most <= share * 2 * 4 * 5 * 32 * 4 * 256
    assert (quantized.text, quantized.reason) == (plain.text, plain.reason)
    assert quantized.usage == plain.usage
    assert sizes.most <= demo.model._admission.require(
        prompt_tokens=78, image_tokens=64, max_tokens=12, kv_bits=bits
    ).cache  # fmt: skip


def test_quantized_requests_do_not_use_the_prefix_cache(demo: ModelBench) -> None:
    plain = demo.cold(QUESTION, RED)
    demo.forget()
    for bits in (8, 4, 8):
        assert answer(demo, bits, RED).usage.cached_tokens == 0
    assert demo.model.reuse.prefix_bytes == 0
    before = demo.model.reuse.image_misses
    again = demo.ask(QUESTION, RED)
    assert (again.text, again.usage) == (plain.text, plain.usage), "nothing of them is left"
    assert demo.model.reuse.image_misses == before, "but the image is known"
    held = demo.model.reuse.prefix_bytes
    assert held > 0
    assert answer(demo, 8, RED).usage.cached_tokens == 0
    assert demo.model.reuse.prefix_bytes == held
    assert demo.ask(QUESTION, RED).usage.cached_tokens > 64


def test_concurrent_requests_with_mixed_kv_bits_answer_as_alone(demo: ModelBench, way: str) -> None:
    prompts = [QUESTION, "Which shape is it?", "Describe the picture."]
    kinds = [None, 8, 4, 8, None, 4, 8, None]
    images = [RED, BLUE]

    def request(n: int) -> GenerationRequest:
        return asked(kinds[n], images[n % 2], prompt=prompts[n % 3])

    expected = []
    for n in range(len(kinds)):
        demo.forget()
        expected.append(demo.all([(request(n), None)])[0].text)
    demo.forget()
    cuts: list[Cut | None] = [None] * len(kinds)
    cuts[3] = cut_at(5)
    together = demo.all([(request(n), cuts[n]) for n in range(len(kinds))])
    for n, each in enumerate(together):
        assert each.error is None
        assert each.reason == "cancelled" if n == 3 else each.text == expected[n]


def test_unquantizable_heads_are_an_error_of_one_line(
    demo: ModelBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = demo.cold(QUESTION, RED).text
    monkeypatch.setattr(demo.model._admission, "_shape", ModelDimensions.of({"head_dim": 80}))
    error = answer(demo, 8, RED).error
    assert isinstance(error, GenerationError)
    assert str(error) == (
        "model: --kv-bits needs a head size divisible by 64 or 32, but this model's is 80: "
        "leave --kv-bits out."
    )
    assert demo.ask(QUESTION, RED).text == expected


@pytest.fixture(scope="module")
def model() -> Any:
    platform.start()
    return llama(**HEADS_OF_32)


def text_model(model: Any, folder: Path, **config: Any) -> LibraryModel:
    checkpoint = Checkpoint("tiny", folder, "text", "llama", config=config)
    return LibraryModel.of(TextAdapter, checkpoint, model, byte_tokenizer(), 1)


def quantized_raw(model: Any, prompt: str, bits: int, count: int) -> str:
    """Generate with mlx-lm itself and quantized caches."""
    from mlx_lm.generate import stream_generate
    from mlx_lm.models.cache import QuantizedKVCache

    caches = [QuantizedKVCache(group_size=32, bits=bits) for _ in model.layers]
    pieces = stream_generate(
        model, byte_tokenizer(), prompt, max_tokens=count, prefill_step_size=CHUNK,
        prompt_cache=caches,
    )  # fmt: skip
    return "".join(piece.text for piece in pieces)


def question(model: LibraryModel, prompt: str, bits: int | None, **sampling: Any) -> TextRequest:
    made = TextRequest(model, prompt, **sampling)
    object.__setattr__(made.request, "kv_bits", bits)
    return made


@pytest.mark.parametrize("text_way", ["together", "alone"])
def test_text_model_with_quantized_cache_equals_mlx_lm(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_way: str
) -> None:
    if text_way == "alone":
        let_answer(monkeypatch, together_=False)
    monkeypatch.setattr(platform, "prefill_chunk", lambda nbytes: CHUNK)
    prompts = ["Why is the sky blue at noon, and red at night?", "What is it?"]
    kinds = [(prompt, bits) for prompt in prompts for bits in (None, 8, 4)]
    expected = [
        mlx_lm_text(model, prompt, 20)[0]
        if bits is None
        else quantized_raw(model, prompt, bits, 20)
        for prompt, bits in kinds
    ]
    assert expected[0] != expected[2], "else nothing is proven"
    made = text_model(model, tmp_path, **HEADS_OF_32)
    asked = [question(made, prompt, bits, max_tokens=20) for prompt, bits in kinds]
    assert [outcome[0] for outcome in ask(*asked)] == expected
    assert [ask(each)[0][0] for each in [question(made, *k, max_tokens=20) for k in kinds]] == (
        expected
    )


def test_text_model_cache_is_smaller_and_cancel_while_waiting_works(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = text_model(model, tmp_path, **HEADS_OF_32)
    most = {}
    for bits in (None, 8, 4):
        with monkeypatch.context() as patch:
            sizes = Sizes(made, patch)
            if bits is None:
                patch.setattr(made._answering.batch, "_make_caches", lambda: made._caches(None))
            ask(question(made, "What is it?", bits, max_tokens=5))
            most[bits] = sizes.most
    assert most[None] > 3 * most[8] > 4.5 * most[4] > 0

    questions = [question(made, "What is it?", 8, max_tokens=9) for _ in range(3)]
    questions[0].report = lambda chunk: (
        questions[1].cancel.cancel() if chunk.completion_tokens == 2 else None
    )
    ask(*questions)
    assert isinstance(questions[1].error, Cancelled)
    assert questions[2].outcome[0] == quantized_raw(model, "What is it?", 8, 9)
    assert not made._answering._quantized[8], "nobody is left in it"


def test_text_model_with_unquantizable_heads_is_an_error_of_one_line(
    model: Any, tmp_path: Path
) -> None:
    made = text_model(model, tmp_path, hidden_size=64, num_attention_heads=4)
    refused, plain = question(made, "Hi", 4), question(made, "Hi", None, max_tokens=3)
    ask(refused, plain)
    assert isinstance(refused.error, GenerationError)
    assert str(refused.error) == (
        "tiny: --kv-bits needs a head size divisible by 64 or 32, but this model's is 16: "
        "leave --kv-bits out."
    )
    assert plain.outcome[0] == mlx_lm_text(model, "Hi", 3)[0]


def test_only_plain_caches_are_quantized() -> None:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

    shape = ModelDimensions.of(HEADS_OF_32)
    mixed = [RotatingKVCache(8), KVCache()]
    made = kv_cache.quantized(mixed, 8, shape, "tiny")
    assert made[0] is mixed[0]
    assert isinstance(made[1], QuantizedKVCache)
    assert (made[1].bits, made[1].group_size) == (8, 32)
    assert kv_cache.quantized(mixed, None, shape, "tiny") == mixed
    with pytest.raises(
        GenerationError, match=r"tiny: this model has no KV cache .* --kv-bits out\."
    ):
        kv_cache.quantized([RotatingKVCache(8)], 8, shape, "tiny")


def test_repetition_penalty_applies_to_a_text_model_without_batching(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers() -> list[str]:
        made = text_model(model, tmp_path)
        how = [{"repetition_penalty": 3.0}, {}]
        return [ask(TextRequest(made, "Hi", max_tokens=20, **more))[0][0] for more in how]

    together = answers()
    let_answer(monkeypatch, together_=False)
    assert answers() == together
    assert together[0] != together[1]
