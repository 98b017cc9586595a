"""The warm-up after a load: its request, its cancellation, and that it fails no load."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from mlx_magic.backends import warmup
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import Steps
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import FinishReason, GenerationChunk
from mlx_magic.models.checkpoints.batch_support import Verdict


class Model:
    """Records requests; answers in three slices, or fails in the second."""

    reuse = CacheStats()

    def __init__(self, error: Exception | None = None, nbytes: int = 10**9) -> None:
        self.nbytes = nbytes
        self.error = error
        self.calls: list[str] = []
        self.asked: list[GenerationRequest] = []

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Any
    ) -> Generator[None, None, FinishReason]:
        self.asked.append(request)
        for number in range(3):
            cancel.checkpoint()
            if self.error and number == 1:
                raise self.error
            report(GenerationChunk("decode", text="x"))
            yield
        return "length"

    def prepare(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, None]:
        self.calls.append(f"prepare {request.model}")
        if self.error:
            raise self.error
        yield

    prefetch = None
    together = Verdict(True, True)

    def forget(self) -> int:
        self.calls.append("forget")
        return 0

    def warm_up(self, *, cancel: CancelToken, progress: Any) -> Generator[None, None, None]:
        raise AssertionError("it is done by `warmed`")

    def close(self) -> None:
        self.calls.append("close")


class Notes:
    def __init__(self) -> None:
        self.said: list[tuple[int, int, str]] = []

    def __call__(self, done: int, total: int, note: str) -> None:
        self.said.append((done, total, note))


def begin(model: Model, cancel: CancelToken | None = None, notes: Notes | None = None) -> Steps:
    request = warmup.sample("m", image=True)
    return warmup.warmed(
        model, request, model.prepare, cancel=cancel or CancelToken(), progress=notes or Notes()
    )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: True)


def test_warm_up_on_a_gpu_answers_a_short_request_and_keeps_nothing(gpu: None) -> None:
    model, notes = Model(), Notes()
    assert len(list(begin(model, notes=notes))) == 4
    (request,) = model.asked
    assert request.model == "m"
    assert len(request.images) == 1
    assert 1 < request.sampling.max_tokens <= 8
    assert model.calls == ["forget"]
    assert notes.said == [(10**9, 10**9, "loading: warming up")]


def test_warm_up_on_a_cpu_runs_a_small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: False)
    model = Model(nbytes=1000)
    list(begin(model))
    assert len(model.asked) == 1


def test_warm_up_on_a_cpu_only_prepares_inputs_of_a_large_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: False)
    model = Model()
    list(begin(model))
    assert model.asked == []
    assert model.calls == ["prepare m", "forget"]


@pytest.mark.parametrize("slices", [0, 1, 2])
def test_cancelled_load_stops_during_warm_up(gpu: None, slices: int) -> None:
    model, cancel = Model(), CancelToken()
    steps = begin(model, cancel)
    for _ in range(1 + slices):
        next(steps)
    cancel.cancel()
    with pytest.raises(Cancelled):
        list(steps)
    assert model.calls == []


@pytest.mark.parametrize("on_gpu", [True, False])
def test_failing_warm_up_does_not_fail_the_load(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    monkeypatch.setattr(platform, "is_gpu", lambda: on_gpu)
    model = Model(ValueError("no"))
    list(begin(model))
    assert model.calls[-1] == "forget"
    assert "close" not in model.calls


def test_warm_up_of_a_text_model_has_no_image() -> None:
    assert warmup.sample("m", image=False).images == ()
