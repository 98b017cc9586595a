"""The handle of a request: phases, timings, cancelling, snapshots."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from mlx_magic.cancellation import Cancelled
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.engine.running_tasks import RunningTasks
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.errors import GenerationError
from mlx_magic.notebook.display.phase_line import phase_line
from mlx_magic.testing import ManualClock, RecordingSink


def text_chunk(text: str, count: int, **more: Any) -> GenerationChunk:
    return GenerationChunk("decode", text=text, completion_tokens=count, **more)


def test_timings_are_the_time_spent_in_each_phase(
    generation: Generation, clock: ManualClock
) -> None:
    clock.advance(1)  # queued
    generation.enter("loading")
    clock.advance(2)
    generation.report(GenerationChunk("vision", prompt_tokens=20, image_tokens=16))
    clock.advance(3)
    generation.report(GenerationChunk("prefill", prompt_tokens=20, image_tokens=16))
    clock.advance(1)
    generation.report(text_chunk("A", 1, prompt_tokens=20, image_tokens=16))
    clock.advance(2)
    generation.report(text_chunk("B", 5, prompt_tokens=20, image_tokens=16, peak_memory=7))
    generation.finish("stop")

    result = generation.future.result(0)
    t = result.timings
    assert (t.queued, t.load, t.vision, t.prefill, t.decode) == (1, 2, 3, 1, 2)
    assert t.time_to_first_token == 7
    assert t.prompt_tps == 20 / 4
    assert t.generation_tps == 4 / 2
    assert result.usage.prompt_tokens == 20
    assert result.usage.image_tokens == 16
    assert result.usage.total_tokens == 25
    assert result.peak_memory == 7
    assert str(result) == result.text == "AB"


def test_result_without_tokens_has_no_time_to_first_token(generation: Generation) -> None:
    generation.cancel()
    timings = generation.future.result(0).timings
    assert timings.time_to_first_token is None
    assert timings.generation_tps == 0.0


@pytest.mark.parametrize("phase", ["queued", "downloading", "loading"])
def test_cancel_before_the_model_runs_ends_the_request_at_once(
    generation: Generation, phase: str
) -> None:
    if phase != "queued":
        generation.enter(phase)  # type: ignore[arg-type]
    generation.cancel()

    assert generation.done
    assert generation.future.result(0).finish_reason == "cancelled"
    with pytest.raises(Cancelled):
        generation.enter("vision")


def test_cancel_during_generation_waits_for_the_next_checkpoint(generation: Generation) -> None:
    generation.report(GenerationChunk("prefill"))
    generation.report(text_chunk("Half an", 2))
    generation.cancel()

    assert generation.token.requested
    assert not generation.done
    generation.stopped()
    result = generation.future.result(0)
    assert (result.finish_reason, result.text) == ("cancelled", "Half an")


def test_first_outcome_is_kept(generation: Generation) -> None:
    generation.finish("stop")
    generation.cancel()
    generation.fail(GenerationError("late", model="m"))
    assert generation.future.result(0).finish_reason == "stop"


def test_leading_spaces_are_dropped_and_others_kept(generation: Generation) -> None:
    sink = RecordingSink()
    generation = Generation(generation.request, clock=ManualClock(), sink=sink)
    for count, text in enumerate(["", " ", " Two", " words", "\n"], start=1):
        generation.report(text_chunk(text, count))
    generation.finish("stop")

    assert generation.future.result(0).text == "Two words\n"
    assert sink.text.lstrip() == "Two words\n"


def test_snapshot_has_progress_text_and_elapsed_time(
    generation: Generation, clock: ManualClock
) -> None:
    generation.report(GenerationChunk("prefill", prompt_read=5, prompt_tokens=9))
    now = generation.snapshot()
    assert (now.progress.phase, now.progress.done, now.progress.total) == ("prefill", 5, 9)
    clock.advance(4)
    generation.report(text_chunk("x", 1))
    assert generation.snapshot().text == "x"
    assert generation.snapshot().elapsed == 4


def test_failure_becomes_the_exception_of_the_future(generation: Generation) -> None:
    generation.fail(GenerationError("it broke", model="m"))
    with pytest.raises(GenerationError, match="it broke"):
        generation.future.result(0)


def generation_with_stop(*stop: str) -> tuple[Generation, RecordingSink]:
    sink = RecordingSink()
    request = GenerationRequest(prompt="What?", sampling=Sampling(stop=stop))
    return Generation(request, clock=ManualClock(), sink=sink), sink


def test_stop_sequence_ends_the_answer_and_is_not_included() -> None:
    generation, sink = generation_with_stop("END")
    for count, text in enumerate([" One E", "N"], start=1):
        generation.report(text_chunk(text, count))
    assert sink.text == generation.snapshot().text == "One "
    with pytest.raises(Stopped):
        generation.report(text_chunk("D. More", 3))
    generation.finish("stop")

    result = generation.future.result(0)
    assert (result.text, sink.text) == ("One ", "One ")
    assert result.usage.completion_tokens == 3


@pytest.mark.parametrize("end", ["finish", "stopped"])
def test_held_back_text_is_flushed_at_the_end(end: str) -> None:
    generation, sink = generation_with_stop("END", "\n\n")
    generation.report(text_chunk("One E", 1))
    generation.report(text_chunk("N", 2))
    assert sink.text == "One "
    if end == "finish":
        generation.finish("length")
    else:
        generation.cancel()
        generation.stopped()
    result = generation.future.result(0)
    assert result.text == sink.text == "One EN"
    assert sink.chunks[-1].completion_tokens == 2


def test_a_deadline_is_measured_from_the_request(clock: ManualClock) -> None:
    generation = Generation(GenerationRequest(prompt="What?", timeout=5.0), clock=clock)
    assert generation.deadline == 105.0
    generation.report(GenerationChunk("prefill"))
    clock.advance(7)
    generation.expire()
    assert not generation.done
    clock.advance(1)
    generation.stopped()
    result = generation.future.result(0)
    assert (result.finish_reason, result.stopped_in, result.stopping) == ("timeout", "prefill", 3)


def test_cancel_after_the_last_token_does_not_change_the_result(generation: Generation) -> None:
    generation.report(text_chunk("All", 1))
    generation.cancel()
    generation.finish("stop")
    result = generation.future.result(0)
    assert (result.finish_reason, result.stopped_in, result.stopping) == ("stop", None, None)


def test_vision_progress_names_the_current_image(generation: Generation) -> None:
    generation.report(GenerationChunk("vision", seen=("9 x 9", "9 x 9")))
    generation.report(GenerationChunk("vision", images_seen=2, image_count=20))
    progress = generation.progress
    assert (progress.done, progress.total) == (2, 20)
    assert progress.note == "looking at picture 3 of 20 at 9 x 9"
    assert phase_line(progress) == "looking at picture 3 of 20 at 9 x 9 …"
    generation.report(GenerationChunk("vision", seen=("9 x 9", "5 x 5")))
    generation.report(GenerationChunk("vision", images_seen=3, image_count=20))
    assert generation.progress.note == "looking at picture 4 of 20"


def test_waiting_for_memory_is_reported_and_cancel_ends_it_at_once(generation: Generation) -> None:
    generation.report(GenerationChunk("vision"))
    generation.report(GenerationChunk("queued"))
    assert phase_line(generation.progress) == "waiting for memory …"
    generation.cancel()
    assert generation.future.result(0).stopped_in == "queued"


def test_ended_request_is_freed_at_once(clock: ManualClock) -> None:
    """Its images would otherwise stay until a garbage collection of the oldest generation."""
    running = RunningTasks(clock)
    generation = Generation(GenerationRequest(prompt="What?"), clock=clock)
    running.add(generation)
    generation.observe(lambda _: None)
    generation.report(text_chunk("A cat.", 3))
    freed = weakref.ref(generation)
    gc.disable()
    try:
        generation.finish("stop")
        assert generation.future.result().text == "A cat."
        del generation
        assert freed() is None
    finally:
        gc.enable()
    assert running.tasks == []


def thought(text: str, count: int, **more: Any) -> GenerationChunk:
    return GenerationChunk("decode", reasoning=text, completion_tokens=count, **more)


def test_thoughts_are_not_part_of_the_text(clock: ManualClock) -> None:
    sink = RecordingSink()
    generation = Generation(GenerationRequest(prompt="What?"), clock=clock, sink=sink)
    generation.report(thought("\nSo it", 1))
    assert generation.progress.note == "thinking"
    generation.report(thought(" is. \n", 2))
    assert generation.snapshot().reasoning == "So it is."
    generation.report(text_chunk("\n\nRed.", 3))
    assert generation.progress.note == ""
    generation.finish("stop")
    result = generation.future.result(0)
    assert (result.reasoning, result.text) == ("So it is.", "Red.")
    assert result.usage.completion_tokens == 3
    assert (sink.reasoning, sink.text) == ("So it is. \n", "Red.")


def test_data_are_parsed_from_the_text_alone(clock: ManualClock) -> None:
    request = GenerationRequest(prompt="What?", format="json")
    generation = Generation(request, clock=clock)
    generation.report(thought('{"draft": 1}', 1))
    generation.report(text_chunk('{"final": 2}', 2))
    generation.finish("stop")
    assert generation.future.result(0).data == {"final": 2}


def test_stop_sequences_do_not_apply_to_thoughts(clock: ManualClock) -> None:
    request = GenerationRequest(prompt="What?", sampling=Sampling(stop=("END",)))
    generation = Generation(request, clock=clock)
    generation.report(thought("the END is E", 1))
    with pytest.raises(Stopped):
        generation.report(text_chunk("NDRed END", 2))
    generation.finish("stop")
    result = generation.future.result(0)
    assert (result.reasoning, result.text) == ("the END is E", "NDRed ")


def test_text_before_a_closing_mark_alone_becomes_thoughts(clock: ManualClock) -> None:
    request = GenerationRequest(prompt="What?", sampling=Sampling(stop=("END",)))
    generation = Generation(request, clock=clock)
    generation.report(text_chunk("So it E", 1))
    assert generation.snapshot().text == "So it "
    generation.report(thought("is.", 2, all_reasoning=True))
    assert generation.snapshot().text == ""
    generation.report(text_chunk("\nRed.", 3))
    generation.finish("stop")
    result = generation.future.result(0)
    assert (result.reasoning, result.text) == ("So it Eis.", "Red.")


def test_answer_that_is_cancelled_in_its_thoughts_has_no_text(generation: Generation) -> None:
    generation.report(thought("So it", 1))
    generation.cancel()
    generation.stopped()
    result = generation.future.result(0)
    assert (result.reasoning, result.text, result.finish_reason) == ("So it", "", "cancelled")
