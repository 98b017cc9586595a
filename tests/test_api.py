"""`mlx_magic.ask` and `mlx_magic.stream`, with a scripted model."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlx_magic
from mlx_magic.engine.generation import Snapshot
from mlx_magic.errors import RequestError
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints
from tests.scripted_default import scripted_default


@pytest.fixture
def script() -> Iterator[ScriptedBackend]:
    with scripted_default("One two three.") as script:
        yield script


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoints.good(tmp_path / "model")


def test_ask_waits_for_the_result(script: ScriptedBackend, model: Path) -> None:
    result = mlx_magic.ask("What?", model=model)
    assert (result.text, result.finish_reason) == ("One two three.", "stop")
    assert mlx_magic.ask("What?", [], str(model)).images == ()


def test_stream_yields_text_then_the_result(script: ScriptedBackend, model: Path) -> None:
    stream = mlx_magic.stream("What?", model=model)
    assert list(stream) == ["One ", "two ", "three."]
    assert stream.result.text == "One two three."


def test_cancelled_stream_keeps_its_text(script: ScriptedBackend, model: Path) -> None:
    script.hold = "decode"
    stream = mlx_magic.stream("What?", model=model, max_tokens=10**6)
    assert next(stream) == "One "
    stream.cancel()
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text.startswith("One ")


def test_leaving_a_stream_early_cancels_the_request(script: ScriptedBackend, model: Path) -> None:
    script.hold = "decode"
    for _ in mlx_magic.stream("What?", model=model, max_tokens=10**6):
        break
    gc.collect()
    script.hold = None
    assert mlx_magic.ask("And now?", model=model).text == "One two three."


def test_ask_and_stream_raise_the_error(script: ScriptedBackend, model: Path) -> None:
    with pytest.raises(RequestError, match="empty"):
        mlx_magic.ask(" ", model=model)
    with pytest.raises(mlx_magic.errors.ImageNotFoundError):
        list(mlx_magic.stream("What?", "nowhere.png", model))


def test_pool_is_the_pool_of_the_session(script: ScriptedBackend, model: Path) -> None:
    mlx_magic.ask("What?", model=model)
    assert str(model) in mlx_magic.pool
    assert "mlx" not in dir(mlx_magic)
    assert "pool" in dir(mlx_magic)
    with pytest.raises(AttributeError):
        mlx_magic.nothing  # noqa: B018


def test_stop_sequences_sampling_and_timeout_reach_the_request(
    script: ScriptedBackend, model: Path
) -> None:
    assert mlx_magic.ask("What?", model=model, stop=" three").text == "One two"
    result = mlx_magic.ask(
        "What?", model=model, stop=["x", "two"], min_p=0.1, repetition_penalty=1.1, timeout=60,
        kv_bits=4,
    )  # fmt: skip
    assert (result.text, result.finish_reason) == ("One ", "stop")
    request = script.requests[-1]
    assert request.sampling.stop == ("x", "two")
    assert (request.sampling.min_p, request.sampling.repetition_penalty) == (0.1, 1.1)
    assert (request.timeout, request.kv_bits) == (60, 4)
    stream = mlx_magic.stream("What?", model=model, stop="hree", kv_bits=8)
    assert "".join(stream) == stream.result.text == "One two t"
    assert script.requests[-1].kv_bits == 8


def test_think_reaches_the_request_and_thoughts_are_not_streamed(
    script: ScriptedBackend, model: Path
) -> None:
    script.reasoning = ["So ", "it is."]
    result = mlx_magic.ask("What?", model=model, think=True)
    assert (result.reasoning, result.text) == ("So it is.", "One two three.")
    assert script.requests[-1].think is True
    stream = mlx_magic.stream("What?", model=model, think=False)
    assert list(stream) == ["One ", "two ", "three."]
    assert stream.result.reasoning == stream.progress.reasoning == "So it is."
    assert script.requests[-1].think is False


@pytest.mark.parametrize("stop", [5, None, "", ["a", 5]])
def test_stop_sequence_that_is_not_a_string_is_refused(stop: object) -> None:
    with pytest.raises(RequestError, match="stop"):
        mlx_magic.ask("What?", stop=stop)  # type: ignore[arg-type]


def test_stream_ends_at_its_timeout(script: ScriptedBackend, model: Path) -> None:
    script.hold = "decode"
    stream = mlx_magic.stream("What?", model=model, max_tokens=10**6, timeout=0.2)
    text = "".join(stream)
    assert text == stream.result.text
    assert stream.result.finish_reason == "timeout"


def test_progress_is_reported_and_can_be_polled(script: ScriptedBackend, model: Path) -> None:
    seen: list[Snapshot] = []
    result = mlx_magic.ask("What?", model=model, on_progress=seen.append)
    assert seen[-1].text == result.text
    assert seen[-1].completion_tokens == result.usage.completion_tokens == 3
    assert seen[-1].progress.phase == "done"
    stream = mlx_magic.stream("What?", model=model, on_progress=seen.append)
    assert list(stream) == ["One ", "two ", "three."]
    assert stream.progress.progress == seen[-1].progress
    assert stream.progress.text == seen[-1].text == "One two three."


def test_stream_sees_images_as_they_were_at_the_call(
    script: ScriptedBackend, model: Path, tmp_path: Path
) -> None:
    array = np.full((4, 6, 3), 200, np.uint8)
    path = tmp_path / "tmp.png"
    Image.fromarray(array).save(path)
    frames = (array for _ in range(2))
    script.hold = "decode"
    for value, count in ((array, 1), (path, 1), (str(path), 1), (frames, 2), ([array, path], 2)):
        stream = mlx_magic.stream("What?", value, model)
        array.fill(7)
        path.write_bytes(b"")
        stream.cancel()
        images = stream.result.images
        array.fill(200)
        Image.fromarray(array).save(path)
        assert [image.pixels.getpixel((0, 0)) for image in images] in ([(200,) * 3] * count, [])


def test_numbers_of_deep_images_can_be_kept(script: ScriptedBackend, model: Path) -> None:
    array = np.full((4, 6), 4095, np.uint16)
    for normalize, level in ((True, 255), (False, 16)):
        (image,) = mlx_magic.ask("What?", array, model, normalize=normalize).images
        assert image.pixels.getpixel((0, 0)) == (level,) * 3
    with pytest.raises(RequestError, match="normalize is 0: use True or False"):
        mlx_magic.ask("What?", array, model, normalize=0)  # type: ignore[arg-type]


def test_result_keeps_the_file_of_its_image(
    script: ScriptedBackend, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "photo.jpg"
    Image.effect_noise((800, 600), 40).convert("RGB").save(path)
    result = mlx_magic.ask("What?", path, model)
    (image,) = result.images
    before = image.pixels.tobytes()
    size = path.stat().st_size
    assert image.stored.nbytes == size
    assert len(pickle.dumps(result)) <= 1.2 * size + 2_000
    again = pickle.loads(pickle.dumps(result))
    assert again.images[0].pixels.tobytes() == before
    assert mlx_magic.ask("And?", result, model).images[0].digest == image.digest
