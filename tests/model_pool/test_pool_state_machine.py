"""The pool against random loads, requests, failures, cancels, pins, leases and budgets.

The engine is stepped by hand and the clock stands still, so that every failure repeats.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlx_magic.backends.base import LoadProgress, Report
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.engine import StepSignal
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import FinishReason, VisionResult
from mlx_magic.engine.task import Task
from mlx_magic.errors import CheckpointError, MemoryBudgetError, ModelError
from mlx_magic.model_pool.model_info import Load
from mlx_magic.model_pool.unload import Unload
from mlx_magic.models.checkpoints import checkpoint as checkpoint_module
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.testing import ManualClock, ScriptedBackend, ScriptedModel, scripted_session
from tests import checkpoints

ESTIMATES = {"A": 3, "B": 5, "C": 7, "D": 8}
"""Bytes. D takes more than it seems."""
SIZES = {**ESTIMATES, "D": 12}
SLICES = 3
ENOUGH = 5_000
"""Steps after which a task without an outcome counts as lost."""

names = st.sampled_from(sorted(SIZES))
which = st.integers(0, 20)
steps = st.sampled_from([0, 1, 3, 6, 10, 30])
budgets = st.sampled_from([8, 12, 16, 24, 40])
ttls = st.sampled_from([None, 5, 20])
changes = st.one_of(
    st.tuples(st.just("pin"), st.tuples(which, st.booleans())),
    st.tuples(st.just("idle"), st.tuples(st.integers(1, 10), ttls)),
    st.tuples(st.just("fail_next_load"), st.tuples()),
)


@cache
def folder() -> Path:
    """Return a folder with a checkpoint for each name; written once."""
    root = Path(tempfile.mkdtemp(prefix="pool-model-"))
    for name in SIZES:
        checkpoints.good(root / name)
    return root


@cache
def checkpoint(name: str) -> Checkpoint:
    return checkpoint_module.inspect(folder() / name, name)


class Model(ScriptedModel):
    """Detects a close during use and a second close."""

    def __init__(self, backend: Device, name: str) -> None:
        super().__init__(backend, SIZES[name])
        self._device, self._name = backend, name
        self._closed = False
        self._users = 0

    def close(self) -> None:
        assert not self._closed, "closed twice"
        assert not self._users, f"{self._name} was closed under its user"
        self._closed = True
        self._device.alive[self._name] -= 1
        super().close()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[StepSignal | None, None, FinishReason]:
        assert not self._closed, "used after it was closed"
        self._users += 1
        try:
            return (yield from super().generate(request, cancel=cancel, report=report))
        finally:
            self._users -= 1


class Device(ScriptedBackend):
    """Takes memory as soon as a load begins, and counts what is there of each model."""

    def __init__(self) -> None:
        super().__init__("a b c")
        self.total = 0
        self.alive: Counter[str] = Counter()
        self.failures = 0

    def estimate(self, checkpoint: Checkpoint) -> int:
        return ESTIMATES[checkpoint.path.name]

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[None, None, ScriptedModel]:
        name = checkpoint.path.name
        assert not self.alive[name], f"{name} is there, or being loaded: a second load of it"
        self.alive[name] += 1
        self.active += ESTIMATES[name]
        ended = False
        try:
            for index in range(SLICES):
                cancel.checkpoint()
                progress(index, SLICES, "loading weights")
                yield
            if self.failures:
                self.failures -= 1
                raise RuntimeError("broken")
            ended = True
        finally:
            self.active -= ESTIMATES[name]
            self.alive[name] -= not ended
        return Model(self, name)


class PoolMachine(RuleBasedStateMachine):
    """Random pool operations, and the invariants after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.device = Device()
        self.session = scripted_session(backend=self.device, threaded=False, clock=self.clock)
        self.pool = self.session.pool
        self.works: list[Task[Any]] = []
        self.leases: list[tuple[str, contextlib.ExitStack]] = []
        # What the models may take at most: the budget, or what they took when it was lowered.
        self.ceiling = 10**9
        self.pinned: set[str] = set()
        self.closing: dict[int, int] = {}

    # Operations

    @initialize(budget=budgets)
    def begin(self, budget: int) -> None:
        self.set_budget(budget)

    @rule(name=names, pin=st.integers(0, 5), count=steps)
    def load(self, name: str, pin: int, count: int) -> None:
        load = Load(name, clock=self.clock, pin=pin == 5)
        self.works.append(load)
        self.pool.queue_load(load, checkpoint(name))
        self.resume(count)

    @rule(name=names, count=steps)
    def ask(self, name: str, count: int) -> None:
        generation = Generation(GenerationRequest(prompt="Hi", model=name), clock=self.clock)
        self.works.append(generation)
        answer = self.session._steps(generation, checkpoint(name))
        self.session.engine.submit(answer, generation.fail)
        self.clock.advance(1)
        self.resume(count)

    def resume(self, count: int) -> None:
        for _ in range(count):
            self.step()

    @rule(at=which)
    def cancel(self, at: int) -> None:
        if waiting := [work for work in self.works if not work.done]:
            waiting[at % len(waiting)].cancel()

    @rule(at=which, force=st.booleans(), count=steps)
    def unload(self, at: int, force: bool, count: int) -> None:
        if there := self.pool.models:
            with contextlib.suppress(ModelError):
                name = there[at % len(there)].name
                self.works.append(self.pool.submit_unload(name, force=force))
            self.resume(count)

    @rule(at=which)
    def lease(self, at: int) -> None:
        there = [e for e in map(self.pool._registry.find, SIZES) if e and not e.closing]
        if there:
            name = there[at % len(there)].names[0]
            stack = contextlib.ExitStack()
            stack.enter_context(self.pool.lease(name))
            self.leases.append((name, stack))

    @rule(at=which)
    def end_lease(self, at: int) -> None:
        if self.leases:
            self.leases.pop(at % len(self.leases))[1].close()

    @rule(change=changes)
    def change(self, change: tuple[str, Any]) -> None:
        name, arguments = change
        getattr(self, name)(*arguments)

    def pin(self, at: int, pinned: bool) -> None:
        if there := self.pool.models:
            name = there[at % len(there)].name
            (self.pool.pin if pinned else self.pool.unpin)(name)
            self.pinned.discard(name)

    @rule(budget=budgets)
    def set_budget(self, budget: int) -> None:
        self.pool.set_budget(budget)
        # The memory of evicted models is not freed yet.
        self.ceiling = max(budget, self.pool.taken, self.device.active)

    def idle(self, seconds: int, ttl: float | None) -> None:
        self.clock.advance(seconds)
        self.pool.idle_ttl = ttl
        self.pool._eviction.expire()
        if ttl is not None:
            assert all(m.users or m.pinned or m.idle < ttl for m in self.pool)

    def fail_next_load(self) -> None:
        self.device.failures = 1

    # Invariants

    @invariant()
    def holds(self) -> None:
        pool = self.pool
        self.ceiling = max(min(self.ceiling, pool.taken), pool.budget_bytes or self.ceiling)
        assert pool.taken <= self.ceiling, "over the budget"
        over = pool.budget_bytes and pool.taken > pool.budget_bytes
        assert not over or all(m.users or m.pinned for m in pool), "what is over may leave"
        for name, _ in self.leases:
            assert name in pool, "a leased model has left"
        why = {gone.name: gone.why for gone in pool.unloaded}
        left = self.pinned - {model.name for model in pool}
        assert all(why[name] == "asked" for name in left), "a pinned model has left"
        self.pinned = {model.name for model in pool if model.pinned}
        before, self.closing = self.closing, {}
        for entry in filter(None, map(pool._registry.find, SIZES)):
            if entry.closing:
                users = self.closing[id(entry)] = len(entry.holders)
                assert users <= before.get(id(entry), users), "somebody joined one that closes"
        assert max(self.device.alive.values(), default=0) <= 1

    def step(self) -> bool:
        before = self.device.active
        worked = self.session.engine.step()
        # What D takes more than it seemed is there before anybody can know of it.
        most = max(self.ceiling + SIZES["D"] - ESTIMATES["D"], before)
        assert self.device.active <= most, "more than the budget is there"
        self.holds()
        return worked

    def teardown(self) -> None:
        for _, stack in self.leases:
            stack.close()
        self.leases.clear()
        for _ in range(ENOUGH):
            if not self.step():
                break
        else:
            pytest.fail("somebody waits for ever")
        for work in self.works:
            assert work.future.done(), f"{work} was lost"
            error = work.future.exception(0)
            assert error is None or isinstance(error, MemoryBudgetError | CheckpointError), error
            if error is None and isinstance(work, Generation):
                result = work.future.result(0)
                assert isinstance(result, VisionResult)
                assert result.finish_reason != "stop" or result.text == "a b c"
            if error is None and isinstance(work, Unload):
                freed = work.future.result(0)
                assert (freed is None) == (work.withdrawn or work.token.requested)
        assert self.session.running == []
        assert all(model.users == 0 for model in self.pool)
        assert self.device.active == self.pool.taken == sum(SIZES[m.name] for m in self.pool)
        self.session.close()


PoolMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=60,
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow],
)
TestPool = PoolMachine.TestCase
