"""The bundled model and SmolLM2, through the session: real weights, no notebook."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import mlx_magic
import mlx_magic.errors
from mlx_magic.inference import session as sessions
from mlx_magic.inference.backends import device
from mlx_magic.inference.request import GenerationChunk, GenerationRequest, Sampling, VisionResult
from mlx_magic.inference.session import Session
from tests.model_folders import smollm2_folder

pytestmark = pytest.mark.model

QUESTION = "What colour is the shape?"
LONG = "What is this? " * 150


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    before = sessions.replace_current(None)
    made = sessions.current()
    yield made
    made.close()
    sessions.replace_current(before)


@pytest.fixture(scope="module")
def circle() -> Image.Image:
    image = Image.new("RGB", (200, 150), "white")
    ImageDraw.Draw(image).ellipse((60, 30, 140, 110), fill="red")
    return image


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


def test_the_answer_and_the_usage_are_those_of_raw_mlx_vlm(
    session: Session, circle: Image.Image
) -> None:
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


def test_two_pictures_are_twice_the_image_tokens(session: Session, circle: Image.Image) -> None:
    one = ask(session, QUESTION, circle).usage.image_tokens
    two = ask(session, "Which picture shows a square?", circle, circle).usage.image_tokens
    assert two == 2 * one


def test_a_question_without_a_picture_is_a_plain_question(session: Session) -> None:
    result = ask(session, "What is 3 plus 4?")
    assert "7" in result.text
    assert result.usage.image_tokens == 0


def test_a_seed_repeats_and_another_does_not(session: Session, circle: Image.Image) -> None:
    def sampled(seed: int) -> str:
        return ask(session, QUESTION, circle, temperature=3.0, seed=seed, max_tokens=24).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(6)}) > 1


def cancelling(session: Session, phase: str, prompt: str, *images: Any, **more: Any) -> Any:
    """Ask, and cancel from the inference thread as soon as a phase has begun to move."""

    def sink(chunk: GenerationChunk) -> None:
        moving = chunk.prompt_read > 0 if phase == "reading" else chunk.completion_tokens > 1
        if chunk.phase == phase and moving:
            chunks.append(chunk)
            session.cancel()

    chunks: list[GenerationChunk] = []
    result = ask(session, prompt, *images, sink=sink, **more)
    return result, chunks


def test_cancel_in_prefill_stops_at_the_next_chunk_and_hurts_nobody(
    session: Session, circle: Image.Image
) -> None:
    before = ask(session, QUESTION, circle).text
    result, chunks = cancelling(session, "reading", LONG, circle)

    assert result.finish_reason == "cancelled"
    assert result.text == ""
    [chunk] = chunks
    assert chunk.prompt_read < chunk.prompt_tokens, "it stopped before the end of the prompt"
    assert ask(session, QUESTION, circle).text == before


def test_cancel_in_decode_keeps_what_was_written(session: Session, circle: Image.Image) -> None:
    whole = ask(session, QUESTION, circle).text
    result, chunks = cancelling(session, "writing", QUESTION, circle)

    assert result.finish_reason == "cancelled"
    assert len(chunks) == 1, "not one step was made after the cancel"
    assert result.usage.completion_tokens == 2
    assert whole.startswith(result.text)
    assert ask(session, QUESTION, circle).text == whole


def test_prompts_longer_than_a_chunk_are_read_in_chunks(
    session: Session, circle: Image.Image
) -> None:
    seen: list[int] = []
    ask(
        session,
        LONG,
        circle,
        max_tokens=2,
        sink=lambda chunk: seen.append(chunk.prompt_read) if chunk.phase == "reading" else None,
    )
    steps = [b - a for a, b in itertools.pairwise(seen) if b > a]
    assert len(steps) > 2
    assert max(steps) <= device.PREFILL_CHUNK_GPU


def test_unloading_gives_the_memory_back(session: Session, circle: Image.Image) -> None:
    ask(session, QUESTION, circle)
    held = device.memory().active
    freed = session.pool.submit_unload("demo").result(60)
    now = device.memory()
    assert freed > 1_000_000
    assert now.active <= held - freed
    assert ask(session, QUESTION, circle).text


def test_a_picture_the_template_has_no_place_for_is_an_error_of_its_own(
    session: Session, circle: Image.Image
) -> None:
    with pytest.raises(mlx_magic.errors.GenerationError, match="processor"):
        ask(session, "What is <image> here?", circle)
    assert ask(session, QUESTION, circle).text


@pytest.fixture(scope="module")
def smollm2() -> str:
    return str(smollm2_folder())


def test_a_text_model_answers_through_mlx_lm(session: Session, smollm2: str) -> None:
    result = ask(session, "What is the capital of France?", model=smollm2, max_tokens=20)
    assert "Paris" in result.text
    assert result.finish_reason == "stop"
    assert session.pool[smollm2].kind == "text"
    assert result.usage.prompt_tokens > 20


def test_a_text_model_stops_in_prefill_and_in_decode(session: Session, smollm2: str) -> None:
    result, chunks = cancelling(session, "reading", "The sea was calm. " * 80, model=smollm2)
    assert (result.finish_reason, result.text, len(chunks)) == ("cancelled", "", 1)
    result, chunks = cancelling(session, "writing", "Tell a story.", model=smollm2)
    assert (result.finish_reason, len(chunks)) == ("cancelled", 1)
    assert result.text


def test_a_text_models_seed_repeats(session: Session, smollm2: str) -> None:
    def sampled(seed: int) -> str:
        return ask(
            session, "Hi", model=smollm2, temperature=1.5, seed=seed, max_tokens=8
        ).text  # fmt: skip

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_weights_that_do_not_fit_their_config_are_one_line_and_leave_nothing(
    session: Session, tmp_path: Path
) -> None:
    import json
    import shutil

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
