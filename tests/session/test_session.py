"""The session with a scripted backend: routing, order, cancelling, errors, unloading."""

from __future__ import annotations

import gc
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import Exchange, GenerationRequest, Sampling
from mlx_magic.engine.task import Task
from mlx_magic.errors import (
    CheckpointError,
    EngineError,
    GenerationError,
    ImageNotFoundError,
    ImagesNotSupportedError,
    MemoryBudgetError,
    ModelNotFoundError,
    RequestError,
    UntrustedCodeError,
)
from mlx_magic.images.image import ImageInput
from mlx_magic.images.opening import open_images
from mlx_magic.session import Session
from mlx_magic.testing import RecordingSink, ScriptedBackend, scripted_session
from tests import checkpoints


@pytest.fixture
def vision(tmp_path: Path) -> str:
    return str(checkpoints.good(tmp_path / "seer"))


@pytest.fixture
def text(tmp_path: Path) -> str:
    return str(checkpoints.good_text(tmp_path / "reader"))


def red_image() -> Image.Image:
    return Image.new("RGB", (20, 10), "red")


def question(model: str, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(prompt="What is it?", model=model, sampling=Sampling(**sampling))


def wait_for_phase(work: Task[Any], phase: str) -> None:
    while work.progress.phase != phase:
        assert not work.done


def test_question_about_an_image_is_answered(session: Session, vision: str) -> None:
    sink = RecordingSink()
    generation = session.start(question(vision), images=[("img", red_image())], sink=sink)
    result = generation.future.result(10)

    assert result.text == sink.text == "It is a red circle."
    assert result.finish_reason == "stop"
    assert [image.size for image in result.images] == [(20, 10)]
    assert result.usage.image_tokens == 16
    phases = list(dict.fromkeys(chunk.phase for chunk in sink.chunks))
    assert phases == ["vision", "prefill", "decode"]
    assert session.running == []


def test_thumbnails_are_made_only_for_sinks_that_show_them(
    session: Session, vision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    real = ImageInput.thumbnail

    def noted(image: ImageInput) -> Any:
        made.append(image.size)
        return real(image)

    monkeypatch.setattr(ImageInput, "thumbnail", noted)

    def ask(size: tuple[int, int], *, thumbnails: bool) -> tuple[ImageInput, ...]:
        images = [("img", Image.new("RGB", size))]
        generation = session.start(question(vision), images=images, thumbnails=thumbnails)
        generation.future.result(10)
        for thread in threading.enumerate():
            if thread.name == "mlx-magic-prepare":
                thread.join(10)
        return generation.images

    assert ask((20, 10), thumbnails=False) == ()
    assert made == []
    assert [image.size for image in ask((30, 10), thumbnails=True)] == [(30, 10)]
    assert made == [(30, 10)]


class PrefetchedInputs:
    """Prefetched inputs."""


def test_prefetched_inputs_live_as_long_as_their_request(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    made: list[weakref.ref[PrefetchedInputs]] = []
    threads: list[str] = []

    def ahead(request: GenerationRequest, cancel: CancelToken) -> PrefetchedInputs:
        assert [image.size for image in request.images] == [(20, 10)], "images are open by then"
        threads.append(threading.current_thread().name)
        held = PrefetchedInputs()
        made.append(weakref.ref(held))
        return held

    script.prefetch = ahead
    asked = partial(session.start, question(vision), images=[("img", red_image())])
    asked().future.result(10)
    assert made == [], "the model was not there yet"
    script.hold = "decode"
    generation = asked()
    wait_for_phase(generation, "decode")
    gc.collect()
    assert made[0]() is not None
    script.release()
    generation.future.result(10)
    # The engine releases the task's generator after the outcome is set.
    session.engine.call(lambda: None).result(10)
    gc.collect()
    assert made[0]() is None
    assert threads == ["mlx-magic-prepare"]


class SlowPrefetch:
    """Prefetches nothing, slowly."""

    def __init__(self) -> None:
        self.came, self.go = threading.Event(), threading.Event()

    def __call__(self, request: GenerationRequest, cancel: CancelToken) -> None:
        self.came.set()
        assert self.go.wait(10)
        cancel.checkpoint()


def test_cancel_does_not_wait_for_prefetch(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    session.start(question(vision)).future.result(10)
    script.prefetch = ahead = SlowPrefetch()
    generation = session.start(question(vision), images=[("img", red_image())])
    assert ahead.came.wait(10)
    generation.cancel()
    result = generation.future.result(10)
    assert result.finish_reason == "cancelled"
    assert session.running == []
    ahead.go.set()
    script.prefetch = None
    assert session.start(question(vision)).future.result(10).text


def test_prefetch_does_not_keep_an_unloaded_model_alive(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    session.start(question(vision)).future.result(10)
    model = weakref.ref(session.pool._registry.loaded[0])
    script.prefetch = ahead = SlowPrefetch()
    generation = session.start(question(vision))
    assert ahead.came.wait(10)
    session.engine.call(session.pool._registry.clear).result(10)
    gc.collect()
    assert model() is None, "it would be freed on the wrong thread"
    ahead.go.set()
    assert generation.future.result(10).text


def test_max_tokens_ends_with_finish_reason_length(session: Session, vision: str) -> None:
    result = session.start(question(vision, max_tokens=2)).future.result(10)
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 2)


def test_stop_sequence_ends_an_answer(session: Session, vision: str) -> None:
    sink = RecordingSink()
    request = question(vision, stop=("nothing", " red"))
    result = session.start(request, sink=sink).future.result(10)
    assert (result.finish_reason, result.text, sink.text) == ("stop", "It is a", "It is a")
    assert result.usage.completion_tokens == 4
    assert [model.users for model in session.pool] == [0]


def test_model_is_loaded_once_on_the_inference_thread(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    generations = [session.start(question(vision)) for _ in range(5)]
    for generation in generations:
        generation.future.result(10)
    assert script.loads == 1
    assert script.threads == {"mlx-magic"}
    assert [m.users for m in session.pool] == [0]


def test_images_for_a_text_model_are_refused_before_the_load(
    session: Session, script: ScriptedBackend, text: str
) -> None:
    with pytest.raises(ImagesNotSupportedError, match="demo") as caught:
        session.start(question(text), images=[("img", red_image())]).future.result(10)
    assert caught.value.vision_models == ("demo",)
    assert script.loads == 0
    assert session.start(question(text)).future.result(10).text


@pytest.mark.parametrize("broken", sorted(checkpoints.BROKEN))
def test_broken_checkpoint_leaves_no_model_loaded(
    session: Session, script: ScriptedBackend, tmp_path: Path, broken: str
) -> None:
    folder = checkpoints.BROKEN[broken](tmp_path / "broken")
    with pytest.raises(Exception, match=r"\S") as caught:
        session.start(question(str(folder))).future.result(10)
    assert caught.type.__module__ == "mlx_magic.errors"
    assert "\n" not in str(caught.value)
    assert len(session.pool) == 0
    good = str(checkpoints.good(tmp_path / "good"))
    assert session.start(question(good)).future.result(10).text


def test_missing_image_fails_only_its_request(session: Session, vision: str) -> None:
    with pytest.raises(ImageNotFoundError):
        session.start(question(vision), images=[(None, "nowhere.png")]).future.result(10)
    assert session.start(question(vision)).future.result(10).text


@pytest.mark.parametrize("phase", ["loading", "vision", "prefill", "decode"])
def test_cancel_works_in_every_phase_and_leaves_the_model_usable(
    session: Session, script: ScriptedBackend, vision: str, phase: str
) -> None:
    script.hold = phase  # type: ignore[assignment]
    sink = RecordingSink()
    generation = session.start(question(vision, max_tokens=10**6), images=[("i", red_image())],
                               sink=sink)  # fmt: skip
    wait_for_phase(generation, phase)
    assert session.cancel() == 1
    result = generation.future.result(10)

    assert result.finish_reason == "cancelled"
    assert result.text == sink.text
    script.hold = None
    again = session.start(question(vision)).future.result(10)
    assert (again.finish_reason, again.text) == ("stop", "It is a red circle.")


def test_cancel_of_a_queued_request_does_not_affect_the_running_one(
    script: ScriptedBackend, vision: str
) -> None:
    script.hold = "prefill"
    session = scripted_session(backend=script, threaded=False)
    first = session.start(question(vision))
    while first.progress.phase != "prefill":
        session.engine.step()
    second = session.start(question(vision))
    second.cancel()

    assert second.future.result(0).finish_reason == "cancelled"
    assert not first.done
    script.release()
    while session.engine.step():
        pass
    assert first.future.result(0).finish_reason == "stop"
    assert len(script.requests) == 1
    session.close()


def test_cancelled_request_gets_the_next_slice(script: ScriptedBackend, vision: str) -> None:
    script.hold = "decode"
    session = scripted_session(backend=script, threaded=False)
    # Images are opened on threads of their own: the order is that of their submission.
    asked = []
    for _ in range(6):
        asked.append(session.start(question(vision, max_tokens=10**6)))
        while asked[-1].progress.phase != "decode":
            session.engine.step()
    asked[3].cancel()
    slices = 0
    while not asked[3].done:
        session.engine.step()
        slices += 1
    assert slices <= 2, "the slice in hand, and its own"
    assert asked[3].future.result(0).finish_reason == "cancelled"
    session.close()


def test_model_error_is_named_and_keeps_the_model_loaded(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    script.error = ZeroDivisionError("by zero")
    with pytest.raises(GenerationError, match="ZeroDivisionError: by zero") as caught:
        session.start(question(vision)).future.result(10)
    assert caught.value.model == vision
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None, "frames would hold the model's arrays"
    script.error = None
    assert session.start(question(vision)).future.result(10).text


def test_load_use_and_unload_by_alias(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    info = session.pool.submit_load(vision, alias="seer").future.result(10)
    assert info is not None
    assert (info.name, info.kind, info.users) == ("seer", "vision", 0)
    assert "seer" in session.pool
    assert session.pool["seer"] == info
    assert "seer" in session.model_names
    session.start(question("seer")).future.result(10)
    assert script.loads == 1
    assert session.pool.submit_unload("seer").future.result(10) == info.nbytes
    assert script.closed == 1
    assert len(session.pool) == 0
    with pytest.raises(ModelNotFoundError, match="not loaded"):
        session.pool.submit_unload("seer")


@pytest.mark.parametrize("alias", ["demo", "", "a/b", "-x"])
def test_invalid_alias_is_refused(session: Session, vision: str, alias: str) -> None:
    with pytest.raises(RequestError, match="alias"):
        session.pool.submit_load(vision, alias=alias)


def test_unload_waits_for_running_requests(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    script.hold = "prefill"
    generation = session.start(question(vision))
    wait_for_phase(generation, "prefill")
    unload = session.pool.submit_unload(vision)
    assert not unload.done
    assert unload in session.running
    assert vision in session.pool
    script.release()
    assert generation.future.result(10).text == "It is a red circle."
    assert unload.future.result(10) == 96
    assert vision not in session.pool


def test_cancelled_load_leaves_no_model(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    script.hold = "loading"
    load = session.pool.submit_load(vision)
    wait_for_phase(load, "loading")
    load.cancel()
    assert load.future.result(10) is None
    session.engine.call(lambda: None).result(10)
    assert len(session.pool) == 0
    assert script.loads == 0


def test_remote_code_needs_permission_for_each_load(session: Session, tmp_path: Path) -> None:
    folder = str(checkpoints.with_auto_map(checkpoints.good(tmp_path / "evil")))
    with pytest.raises(UntrustedCodeError) as caught:
        session.start(question(folder)).future.result(10)
    assert caught.value.wanted
    with pytest.raises(UntrustedCodeError):
        session.pool.submit_load(folder).future.result(10)
    info = session.pool.submit_load(folder, trust_remote_code=True).future.result(10)
    assert info is not None
    assert info.trusted
    assert session.start(question(folder)).future.result(10).text
    session.pool.submit_unload(folder).future.result(10)
    with pytest.raises(UntrustedCodeError):
        session.start(question(folder)).future.result(10)


def test_a_load_that_does_not_fit_is_refused_with_the_numbers(vision: str) -> None:
    session = scripted_session()
    session.pool.budget = 10
    with pytest.raises(MemoryBudgetError) as caught:
        session.pool.submit_load(vision).future.result(10)
    assert caught.value.limit_bytes == 10
    assert caught.value.needed_bytes > 10
    session.close()


def test_check_returns_the_kind_of_a_model(session: Session, vision: str, tmp_path: Path) -> None:
    assert session.check(vision).startswith("vision")
    with pytest.raises(ModelNotFoundError):
        session.check("nonsense")
    with pytest.raises(CheckpointError):
        session.check(str(checkpoints.without_weights(tmp_path / "w")))


def test_reused_alias_names_the_new_model(
    session: Session, script: ScriptedBackend, tmp_path: Path
) -> None:
    first, second = (str(checkpoints.good(tmp_path / name)) for name in ("first", "second"))
    session.pool.submit_load(first, alias="m").future.result(10)
    session.pool.submit_load(second, alias="m").future.result(10)

    assert session.pool["m"].path == second
    assert session.pool[first].path == first
    session.pool.unload("m")
    assert [m.path for m in session.pool] == [first]


def test_failed_load_leaves_no_alias(session: Session, tmp_path: Path) -> None:
    folder = checkpoints.with_auto_map(checkpoints.good(tmp_path / "evil"))
    with pytest.raises(UntrustedCodeError):
        session.pool.submit_load(str(folder), alias="e").future.result(10)
    assert "e" not in session.aliases


def test_model_can_be_unloaded_while_another_answers(
    session: Session, script: ScriptedBackend, vision: str, tmp_path: Path
) -> None:
    other = str(checkpoints.good(tmp_path / "other"))
    session.pool.submit_load(other).future.result(10)
    script.hold = "decode"
    generation = session.start(question(vision, max_tokens=10**6))
    wait_for_phase(generation, "decode")

    assert session.pool.unload(other) > 0
    assert script.closed == 1
    assert not generation.done
    generation.cancel()
    generation.future.result(10)


def test_futures_cannot_be_cancelled_directly(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    script.hold = "prefill"
    generation = session.start(question(vision))
    wait_for_phase(generation, "prefill")
    assert not generation.future.cancel()
    called = session.engine.call(lambda: 1)
    assert not called.cancel()
    script.release()
    assert called.result(10) == 1


def test_load_error_names_the_model_and_keeps_no_frames(
    session: Session, script: ScriptedBackend, vision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> Any:
        raise RuntimeError("no room for weights")

    monkeypatch.setattr(script, "load", broken)
    with pytest.raises(CheckpointError, match=r"could not load .*no room for weights") as caught:
        session.pool.submit_load(vision).future.result(10)
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__traceback__ is None


def test_failing_sink_does_not_fail_the_answer(session: Session, vision: str) -> None:
    def sink(chunk: object) -> None:
        raise ValueError("sink")

    assert session.start(question(vision), sink=sink).future.result(10).text


def test_closed_session_refuses_requests(vision: str) -> None:
    session = scripted_session()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.start(question(vision))
    assert session.running == []


def test_the_pool_loads_and_unloads_from_code(
    session: Session, vision: str, tmp_path: Path
) -> None:
    info = session.pool.load(Path(vision), alias="seer")
    assert info.names == ("seer",)
    assert session.pool.memory.limit > 0
    assert session.pool.unload("seer") == info.nbytes
    with pytest.raises(CheckpointError):
        session.pool.load(checkpoints.without_weights(tmp_path / "none"))


def test_alias_exists_as_soon_as_its_load_is_done(session: Session, vision: str) -> None:
    # A callback of the future comes before all that others do with its outcome.
    there: list[bool] = []
    load = session.pool.submit_load(vision, alias="seer")
    load.future.add_done_callback(lambda _: there.append("seer" in session.aliases))
    assert load.future.result(10) is not None
    assert session.start(question("seer")).future.result(10).text
    assert there == [True]


def test_cancelled_load_leaves_no_alias(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    script.hold = "loading"
    load = session.pool.submit_load(vision, alias="seer")
    wait_for_phase(load, "loading")
    load.cancel()
    script.release()
    session.engine.call(lambda: None).result(10)
    assert load.future.result(10) is None
    assert not session.aliases


def test_images_of_earlier_turns_are_refused_by_a_text_model(
    session: Session, script: ScriptedBackend, text: str
) -> None:
    seen = tuple(open_images(red_image()))
    chat = GenerationRequest(prompt="Why?", model=text, history=(Exchange("What?", "It.", seen),))
    with pytest.raises(ImagesNotSupportedError, match="begin a new conversation") as caught:
        session.start(chat).future.result(10)
    assert "\n" not in str(caught.value)
    assert script.loads == 0


def test_scripted_model_gets_earlier_turns(
    session: Session, script: ScriptedBackend, vision: str
) -> None:
    seen = tuple(open_images(red_image()))
    history = (Exchange("What is it?", "A circle.", seen),)
    chat = GenerationRequest(prompt="And this?", model=vision, history=history)
    result = session.start(chat, images=[("img", red_image())]).future.result(10)

    assert script.requests[-1].history == history
    assert (result.usage.prompt_tokens, result.usage.image_tokens) == (7, 32)
    assert len(result.images) == 1
