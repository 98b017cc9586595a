"""The bundled model and SmolLM2, through the session: real weights, no notebook."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import mlx_magic
import mlx_magic.errors
from mlx_magic import default_session
from mlx_magic.backends.batching import admission
from mlx_magic.backends.batching.memory_estimate import (
    ModelDimensions,
    RequestMemory,
    estimate_request,
)
from mlx_magic.backends.device import platform
from mlx_magic.backends.vision import adapter as vision_adapter
from mlx_magic.backends.vision.forward import VisionForward
from mlx_magic.backends.vision.image_cache.prefetch import Prefetch
from mlx_magic.engine.request import Exchange, GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk, VisionResult
from mlx_magic.images import opening as images_opening
from mlx_magic.session import Session
from tests.model_folders import smollm2_folder

pytestmark = pytest.mark.model

QUESTION = "What colour is the shape?"
LONG = "What is this? " * 150


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    before = default_session.replace_current(None)
    made = default_session.current()
    yield made
    made.close()
    default_session.replace_current(before)


def ask(
    session: Session,
    prompt: str,
    *images: Any,
    model: str = "demo",
    sink: Any = None,
    **sampling: Any,
) -> VisionResult:
    request = GenerationRequest(prompt=prompt, model=model, sampling=Sampling(**sampling))
    named = [("img", image) for image in images]
    return session.start(request, images=named, sink=sink).future.result(120)


def test_answer_and_usage_equal_raw_mlx_vlm(session: Session, circle: Image.Image) -> None:
    ours = ask(session, QUESTION, circle, max_tokens=64)

    def raw() -> tuple[str, int, int]:
        import mlx.core as mx
        import mlx_vlm

        model, processor = mlx_vlm.load(str(mlx_magic.demo_model()))
        model.set_dtype(mx.float32)
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        prompt = mlx_vlm.apply_chat_template(
            processor, model.config, [{"role": "user", "content": content}], num_images=1
        )
        pieces = list(mlx_vlm.stream_generate(model, processor, prompt, [circle], max_tokens=64))
        text = "".join(piece.text for piece in pieces)
        return text.strip(), pieces[-1].prompt_tokens, pieces[-1].generation_tokens

    text, prompt_tokens, completion_tokens = session.engine.call(raw).result(120)
    assert ours.text == text
    assert ours.usage.prompt_tokens == prompt_tokens
    assert ours.usage.completion_tokens == completion_tokens
    assert 0 < ours.usage.image_tokens < prompt_tokens
    assert ours.peak_memory > 0
    assert "red" in ours.text


def test_images_are_processed_off_the_inference_thread(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    real, threads = SmolVLMImageProcessorPil.preprocess, []

    def preprocess(self: Any, *args: Any, **options: Any) -> Any:
        threads.append(threading.current_thread().name)
        return real(self, *args, **options)

    monkeypatch.setattr(SmolVLMImageProcessorPil, "preprocess", preprocess)

    def answers() -> list[str]:
        session.pool.forget()
        threads.clear()
        requests = [
            GenerationRequest(QUESTION, model="demo", sampling=Sampling(24)) for _ in colours
        ]
        begun = [
            session.start(request, images=[("img", Image.new("RGB", (90, 60), colour))])
            for request, colour in zip(requests, colours, strict=True)
        ]
        return [generation.future.result(120).text for generation in begun]

    colours = ("red", "green", "blue", "yellow", "black", "white")
    ask(session, QUESTION, Image.new("RGB", (90, 60), "orange"))
    ahead = answers()
    assert threads == ["mlx-magic-prepare"] * len(colours)
    monkeypatch.setattr(Prefetch, "__call__", lambda *_: None)
    assert answers() == ahead
    assert threads == ["mlx-magic"] * len(colours)


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_an_answer_with_a_schema_is_its_object(
    session: Session, circle: Image.Image, kv_bits: int | None
) -> None:
    fields = "color: red|green|blue, shape: circle|square, count: int"
    first = mlx_magic.ask("What is it?", circle, schema=fields, kv_bits=kv_bits, temperature=0)
    again = mlx_magic.ask("What is it?", circle, schema=fields, kv_bits=kv_bits, temperature=0)
    assert first.complete
    assert first.data.keys() == {"color", "shape", "count"}
    assert again.text == first.text
    assert (again.usage.cached_tokens > 0) == (kv_bits is None)


def test_two_images_have_twice_the_image_tokens(session: Session, circle: Image.Image) -> None:
    one = ask(session, QUESTION, circle).usage.image_tokens
    two = ask(session, "Which picture shows a square?", circle, circle).usage.image_tokens
    assert two == 2 * one


def test_question_without_an_image_has_no_image_tokens(session: Session) -> None:
    result = ask(session, "What is 3 plus 4?")
    assert "7" in result.text
    assert result.usage.image_tokens == 0


def test_same_seed_repeats_the_answer_and_another_does_not(
    session: Session, circle: Image.Image
) -> None:
    def sampled(seed: int) -> str:
        return ask(session, QUESTION, circle, temperature=3.0, seed=seed, max_tokens=24).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(6)}) > 1


def cancelling(session: Session, phase: str, prompt: str, *images: Any, **more: Any) -> Any:
    """Ask, and cancel from the inference thread as soon as a phase has begun to move."""

    def sink(chunk: GenerationChunk) -> None:
        moving = chunk.prompt_read > 0 if phase == "prefill" else chunk.completion_tokens > 1
        if chunk.phase == phase and moving:
            chunks.append(chunk)
            session.cancel()

    chunks: list[GenerationChunk] = []
    result = ask(session, prompt, *images, sink=sink, **more)
    return result, chunks


def test_cancel_in_prefill_stops_at_the_next_chunk_and_keeps_the_model_usable(
    session: Session, circle: Image.Image
) -> None:
    before = ask(session, QUESTION, circle).text
    result, chunks = cancelling(session, "prefill", LONG, circle)

    assert result.finish_reason == "cancelled"
    assert result.text == ""
    [chunk] = chunks
    assert chunk.prompt_read < chunk.prompt_tokens, "it stopped before the end of the prompt"
    assert ask(session, QUESTION, circle).text == before


def test_cancel_in_decode_keeps_the_partial_text(session: Session, circle: Image.Image) -> None:
    whole = ask(session, QUESTION, circle).text
    result, chunks = cancelling(session, "decode", QUESTION, circle)

    assert result.finish_reason == "cancelled"
    assert len(chunks) == 1, "not one step was made after the cancel"
    assert result.usage.completion_tokens == 2
    assert whole.startswith(result.text)
    assert ask(session, QUESTION, circle).text == whole


def test_prompts_longer_than_a_chunk_are_prefilled_in_chunks(
    session: Session, circle: Image.Image
) -> None:
    seen: list[int] = []
    ask(
        session,
        LONG,
        circle,
        max_tokens=2,
        sink=lambda chunk: seen.append(chunk.prompt_read) if chunk.phase == "prefill" else None,
    )
    steps = [b - a for a, b in itertools.pairwise(seen) if b > a]
    assert len(steps) > 2
    assert max(steps) <= platform.PREFILL_CHUNK_GPU


def test_unload_frees_memory(session: Session, circle: Image.Image) -> None:
    ask(session, QUESTION, circle)
    held = platform.memory().active
    freed = session.pool.unload("demo")
    now = platform.memory()
    assert freed > 1_000_000
    assert now.active <= held - freed
    assert ask(session, QUESTION, circle).text


def test_image_placeholder_in_the_prompt_is_text(session: Session, circle: Image.Image) -> None:
    plain = ask(session, "What is this here?", circle)
    words = ask(session, "What is <image> here?", circle)
    assert words.usage.image_tokens == plain.usage.image_tokens
    assert words.usage.prompt_tokens > plain.usage.prompt_tokens
    assert ask(session, "What is <image> here?").usage.image_tokens == 0


@pytest.mark.parametrize(("at_once", "calls"), [(40, 1), (1_000, 0)])
def test_prefill_chunk_size_is_that_of_the_device(
    session: Session,
    circle: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    at_once: int,
    calls: int,
) -> None:
    told, reckoned, chunks = [], [], []
    real = VisionForward.prefill

    def read_at_once(vocabulary: int) -> int:
        told.append(vocabulary)
        return at_once

    def noted(shape: ModelDimensions, **given: Any) -> RequestMemory:
        reckoned.append(given["at_once"])
        return estimate_request(shape, **given)

    def prefill(self: VisionForward, tokens: Any, caches: list[Any], inputs: Any) -> None:
        chunks.append(tokens.shape)
        real(self, tokens, caches, inputs)

    whole = ask(session, "What shape is that?", circle, temperature=0).text
    session.pool.unload("demo")
    monkeypatch.setattr(platform, "read_at_once", read_at_once)
    session.pool.load("demo")
    monkeypatch.setattr(admission, "estimate_request", noted)
    monkeypatch.setattr(VisionForward, "prefill", prefill)
    assert ask(session, "What shape is that?", circle, temperature=0).text == whole
    assert (told, set(reckoned), len(chunks)) == ([1_280], {at_once}, calls)
    session.pool.unload("demo")


@pytest.fixture(scope="module")
def smollm2() -> str:
    return str(smollm2_folder(quantized=False))


def test_a_text_model_answers_through_mlx_lm(session: Session, smollm2: str) -> None:
    result = ask(session, "What is the capital of France?", model=smollm2, max_tokens=20)
    assert "Paris" in result.text
    assert result.finish_reason == "stop"
    assert session.pool[smollm2].kind == "text"
    assert result.usage.prompt_tokens > 20


def test_a_text_model_stops_in_prefill_and_in_decode(session: Session, smollm2: str) -> None:
    result, chunks = cancelling(session, "prefill", "The sea was calm. " * 80, model=smollm2)
    assert (result.finish_reason, result.text, len(chunks)) == ("cancelled", "", 1)
    result, chunks = cancelling(session, "decode", "Tell a story.", model=smollm2)
    assert (result.finish_reason, len(chunks)) == ("cancelled", 1)
    assert result.text


def test_text_model_repeats_an_answer_with_the_same_seed(session: Session, smollm2: str) -> None:
    def sampled(seed: int) -> str:
        return ask(
            session, "Hi", model=smollm2, temperature=1.5, seed=seed, max_tokens=8
        ).text  # fmt: skip

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


ASKED = (
    "What is the capital of France?",
    "Name three colours.",
    "Hi",
    "Why is the sky blue?",
    "What is 12 plus 30?",
    "Translate 'good morning' into Spanish.",
    "The sea was calm and the sky was clear. " * 6 + "What was calm?",
    "List four animals.",
)


def ask_at_once(
    session: Session, model: str, sampling: list[Sampling]
) -> list[tuple[str, int, int, str]]:
    """Send concurrent text requests, each with its own options."""
    asked = itertools.islice(itertools.cycle(ASKED), len(sampling))
    generations = [
        session.start(GenerationRequest(prompt=prompt, model=model, sampling=own))
        for prompt, own in zip(asked, sampling, strict=True)
    ]
    return [outcome(generation.future.result(120)) for generation in generations]


def outcome(result: VisionResult) -> tuple[str, int, int, str]:
    usage = result.usage
    return result.text, usage.prompt_tokens, usage.completion_tokens, result.finish_reason


def test_concurrent_text_requests_equal_raw_mlx_lm(session: Session, smollm2: str) -> None:
    def raw() -> list[tuple[str, int, int, str]]:
        import mlx.core as mx
        import mlx_lm
        from mlx_lm.utils import dequantize_model

        model, tokenizer = mlx_lm.load(smollm2)[:2]
        # Float32, as the session uses: 4-bit products take four times as long on a CPU.
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
        found = []
        for prompt in ASKED:
            message = {"role": "user", "content": prompt}
            tokens = tokenizer.apply_chat_template([message], add_generation_prompt=True)
            pieces = list(mlx_lm.stream_generate(model, tokenizer, tokens, max_tokens=10))
            text = "".join(piece.text for piece in pieces).lstrip()
            last = pieces[-1]
            found.append((text, len(tokens), last.generation_tokens, last.finish_reason))
        return found

    greedy = [Sampling(max_tokens=10, temperature=0)] * len(ASKED)
    # Ours first: the session sets up the fast BLAS before MLX is imported.
    eight, sixteen = (ask_at_once(session, smollm2, greedy * times) for times in (1, 2))
    expected = session.engine.call(raw).result(120)
    assert {each[3] for each in expected} == {"stop", "length"}
    assert eight == expected
    assert sixteen == expected * 2


def test_text_model_seed_gives_the_same_answer_in_a_batch(session: Session, smollm2: str) -> None:
    ways = [
        Sampling(max_tokens=8, temperature=0.7, top_p=0.9, seed=1),
        Sampling(max_tokens=8, temperature=1.5, top_k=40, seed=2),
        Sampling(max_tokens=3, temperature=0),
        Sampling(max_tokens=8, temperature=1.2, seed=3),
    ]
    alone = [
        outcome(session.start(
            GenerationRequest(prompt=prompt, model=smollm2, sampling=own)
        ).future.result(120))
        for prompt, own in zip(ASKED, ways, strict=False)
    ]  # fmt: skip
    assert ask_at_once(session, smollm2, ways) == alone


def test_weights_that_do_not_match_the_config_are_refused_and_freed(
    session: Session, tmp_path: Path
) -> None:
    folder = tmp_path / "misfit"
    shutil.copytree(mlx_magic.demo_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    loaded = len(session.pool)

    with pytest.raises(mlx_magic.errors.CheckpointError, match="could not load") as caught:
        ask(session, QUESTION, model=str(folder))
    assert "\n" not in str(caught.value)
    assert len(session.pool) == loaded


def opened(*images: Image.Image) -> tuple[images_opening.ImageInput, ...]:
    return tuple(images_opening.open_images(list(images)))


def square() -> Image.Image:
    image = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(image).rectangle((80, 80, 220, 220), fill="blue")
    return image


def raw_vision(
    session: Session, messages: list[dict[str, Any]], images: list[Image.Image]
) -> tuple[str, int]:
    """Ask mlx-vlm itself; return its text and how many tokens it read."""

    def work() -> tuple[str, int]:
        import mlx.core as mx
        import mlx_vlm

        model, processor = mlx_vlm.load(str(mlx_magic.demo_model()))
        model.set_dtype(mx.float32)
        prompt = mlx_vlm.apply_chat_template(
            processor, model.config, messages, num_images=len(images)
        )
        pieces = list(mlx_vlm.stream_generate(model, processor, prompt, images, max_tokens=48))
        return "".join(piece.text for piece in pieces).strip(), pieces[-1].prompt_tokens

    return session.engine.call(work).result(120)


def user(text: str, *, images: int = 0) -> dict[str, Any]:
    parts: list[dict[str, str]] = [{"type": "image"}] * images
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def follow(
    session: Session, request: GenerationRequest, *images: Image.Image, sink: Any = None
) -> VisionResult:
    return session.start(request, images=[("i", i) for i in images], sink=sink).future.result(120)


def test_follow_up_with_an_earlier_image_equals_raw_mlx_vlm(
    session: Session, circle: Image.Image
) -> None:
    first = ask(session, QUESTION, circle, max_tokens=48)
    again = "Which shape is it?"
    result = follow(
        session,
        GenerationRequest(
            prompt=again,
            history=(Exchange(QUESTION, first.text, first.images),),
            system="Answer briefly.",
            sampling=Sampling(max_tokens=48),
        ),
    )
    messages = [
        {"role": "system", "content": "Answer briefly."},
        user(QUESTION, images=1),
        {"role": "assistant", "content": first.text},
        user(again),
    ]
    assert (result.text, result.usage.prompt_tokens) == raw_vision(session, messages, [circle])
    assert result.usage.image_tokens == first.usage.image_tokens
    assert result.usage.prompt_tokens > first.usage.prompt_tokens
    assert (result.images, result.seen) == ((), ())
    assert result.timings.vision > 0
    assert result.text != ask(session, again, max_tokens=48).text, "the turn before counts"


def test_two_turns_with_an_image_each_equal_raw_mlx_vlm(
    session: Session, circle: Image.Image
) -> None:
    first = ask(session, QUESTION, circle, max_tokens=48)
    again = "And what colour is this one?"
    chunks: list[GenerationChunk] = []
    result = follow(
        session,
        GenerationRequest(
            prompt=again,
            history=(Exchange(QUESTION, first.text, first.images),),
            sampling=Sampling(max_tokens=48),
        ),
        square(),
        sink=chunks.append,
    )
    messages = [
        user(QUESTION, images=1),
        {"role": "assistant", "content": first.text},
        user(again, images=1),
    ]
    expected = raw_vision(session, messages, [circle, square()])
    assert (result.text, result.usage.prompt_tokens) == expected
    assert raw_vision(session, messages, [square(), circle])[0] != result.text, "order counts"
    assert result.usage.image_tokens == 2 * first.usage.image_tokens
    assert [image.size for image in result.images] == [(300, 300)]
    assert result.seen == first.seen
    assert len(result.seen) == 1
    assert chunks[0].phase == "vision"


def with_template(folder: Path, template: str) -> str:
    """Copy the bundled model, and give it another chat template."""
    shutil.copytree(mlx_magic.demo_model(), folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
)
NO_TURNS = "{% if messages | length > 1 %}{{ raise_exception('One turn only') }}{% endif %}"
DROPS = "{% set messages = messages[-1:] %}"


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (NO_SYSTEM, r"System role not supported.*without a system prompt"),
        (NO_TURNS, r"One turn only.*without the turns before"),
        (DROPS, r"leaves out the system prompt.*without a system prompt"),
    ],
    ids=["no system prompt", "one turn", "drops"],
)
def test_template_that_cannot_render_a_conversation_is_an_error_of_one_line(
    session: Session, circle: Image.Image, tmp_path: Path, before: str, words: str
) -> None:
    whole = (mlx_magic.demo_model() / "chat_template.jinja").read_text()
    model = with_template(tmp_path / "one-turn", before + whole)
    history = (Exchange(QUESTION, "Red.", opened(circle)),)
    chat = GenerationRequest(prompt="Why?", model=model, history=history, system="Be kind.")

    with pytest.raises(mlx_magic.errors.GenerationError, match=words) as caught:
        follow(session, chat)
    assert "\n" not in str(caught.value)
    assert caught.value.model == model
    assert model in session.pool
    assert ask(session, QUESTION, circle, model=model).text == ask(session, QUESTION, circle).text
    session.pool.unload(model)


def test_text_model_conversation_equals_raw_mlx_lm(session: Session, smollm2: str) -> None:
    turns = ("My name is Ada.", "Hello Ada!", "What is my name?")
    result = follow(
        session,
        GenerationRequest(
            prompt=turns[2],
            model=smollm2,
            system="You are polite.",
            history=(Exchange(*turns[:2]),),
            sampling=Sampling(max_tokens=16, temperature=0),
        ),
    )
    roles = ("system", "user", "assistant", "user")
    messages = [
        {"role": role, "content": text}
        for role, text in zip(roles, ("You are polite.", *turns), strict=True)
    ]

    def raw() -> tuple[str, int]:
        import mlx.core as mx
        import mlx_lm

        model, tokenizer = mlx_lm.load(smollm2)[:2]
        model.set_dtype(mx.float32)
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        return mlx_lm.generate(model, tokenizer, prompt, max_tokens=16).strip(), len(prompt)

    expected = session.engine.call(raw).result(120)
    assert (result.text.strip(), result.usage.prompt_tokens) == expected
    alone = ask(session, turns[2], model=smollm2, max_tokens=1)
    assert result.usage.prompt_tokens > alone.usage.prompt_tokens


RULES = "Answer politely and briefly, and never twice in the same words. " * 30


def test_five_text_turns_prefill_each_turn_once_and_equal_raw_mlx_lm(
    session: Session, smollm2: str
) -> None:
    session.pool.forget()
    sampling = Sampling(max_tokens=12, temperature=0)
    asked = GenerationRequest(prompt="Hi", model=smollm2, system=RULES, sampling=sampling)
    results: list[VisionResult] = []
    for turn in range(5):
        prompt = f"{ASKED[turn]} ({turn})"
        asked = dataclasses.replace(asked, prompt=prompt)
        results.append(follow(session, asked))
        if turn < 4:
            history = (*asked.history, Exchange(prompt, results[-1].text))
            asked = dataclasses.replace(asked, history=history)

    def messages() -> list[dict[str, str]]:
        found = [{"role": "system", "content": RULES}]
        for turn in asked.history:
            found.append({"role": "user", "content": turn.prompt})
            found.append({"role": "assistant", "content": turn.answer})
        return [*found, {"role": "user", "content": asked.prompt}]

    def raw() -> str:
        import mlx.core as mx
        import mlx_lm
        from mlx_lm.utils import dequantize_model

        model, tokenizer = mlx_lm.load(smollm2)[:2]
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
        prompt = tokenizer.apply_chat_template(messages(), add_generation_prompt=True)
        return str(mlx_lm.generate(model, tokenizer, prompt, max_tokens=12))

    assert {result.finish_reason for result in results} == {"stop", "length"}
    for before, result in itertools.pairwise(results):
        assert result.usage.cached_tokens > before.usage.prompt_tokens, "its answer is known, too"
    usage = results[-1].usage
    assert usage.prompt_tokens - usage.cached_tokens < 0.05 * usage.prompt_tokens
    kept = session.pool.reuse
    assert (kept.prefix_hits >= 4, 0 < kept.prefix_bytes <= kept.limit_bytes) == (True, True)
    assert session.pool.forget() >= kept.prefix_bytes
    cold = follow(session, asked)
    assert cold.usage.cached_tokens == 0
    expected = session.engine.call(raw).result(120).strip()
    assert (results[-1].text.strip(), cold.text.strip()) == (expected, expected)


def test_model_without_a_chat_template_gets_turns_as_plain_text(
    session: Session, smollm2: str, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(smollm2, folder, symlinks=True)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    request = GenerationRequest(
        prompt="c", model=str(folder), system="s", history=(Exchange("a", "b"),),
        sampling=Sampling(max_tokens=1),
    )  # fmt: skip
    result = follow(session, request)

    def raw() -> int:
        from transformers import AutoTokenizer

        return len(AutoTokenizer.from_pretrained(str(folder)).encode("s\n\na\n\nb\n\nc"))

    assert result.usage.prompt_tokens == session.engine.call(raw).result(120)
    session.pool.unload(str(folder))


def test_a_text_models_template_that_drops_turns_is_refused(
    session: Session, smollm2: str, tmp_path: Path
) -> None:
    folder = tmp_path / "forgetful"
    shutil.copytree(smollm2, folder, symlinks=True)
    last = "{{ messages[-1]['content'] }}"
    (folder / "chat_template.jinja").write_text(last)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = last
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = str(folder)
    chat = GenerationRequest(prompt="Why?", model=model, history=(Exchange("What?", "That."),))

    with pytest.raises(mlx_magic.errors.GenerationError, match="leaves out earlier turns"):
        follow(session, chat)
    assert ask(session, "Hi", model=model, max_tokens=1).usage.completion_tokens == 1
    session.pool.unload(model)


def test_the_answer_keeps_the_special_tokens_that_mark_places(
    session: Session, circle: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bundled model has none: the token that ends its answers is taken for one.
    end = frozenset({2})
    text = ask(session, QUESTION, circle).text
    with monkeypatch.context() as patch:
        patch.setattr(vision_adapter, "place_tokens", lambda tokenizer, special: end)
        session.pool.unload("demo")
        result = ask(session, QUESTION, circle)
        stopped = ask(session, QUESTION, circle, stop=("red",))
        session.pool.unload("demo")
    assert result.grounding is not None
    assert result.grounding.model_type == "smolvlm"
    assert result.grounding.marked.strip() == f"{result.text}<end_of_utterance>"
    assert stopped.finish_reason == "stop"
    assert stopped.grounding is not None
    assert stopped.grounding.marked.strip() == stopped.text.strip() == "The circle is"
    assert result.text == text
