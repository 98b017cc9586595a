from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from benchmarks import endurance
from benchmarks.endurance import Seen, fault
from benchmarks.endurance_plan import BAD_IMAGE, Cut, Event, Plan, controls, plans
from mlx_magic.engine.request import Sampling
from mlx_magic.engine.result import FinishReason, Usage, VisionResult
from mlx_magic.errors import GenerationError

DRAWN = [b"one", b"two", b"three"]
PLAN = Plan("Why?", sampling=Sampling(max_tokens=5, stop=("no",)))
CANCELLED = replace(PLAN, cut=Cut("token", 2))


def result(reason: FinishReason, tokens: int = 5, text: str = "yes") -> VisionResult:
    usage = Usage(prompt_tokens=9, completion_tokens=tokens)
    if reason in ("cancelled", "timeout"):
        return VisionResult(text, "demo", reason, usage=usage, stopped_in="decode", stopping=0.1)
    return VisionResult(text, "demo", reason, usage=usage)


def test_seed_repeats_the_plan_and_a_third_is_cancelled() -> None:
    made = plans(300, 1, DRAWN)
    assert made == plans(300, 1, DRAWN) != plans(300, 2, DRAWN)
    cuts = [plan.cut for plan in made if plan.cut is not None]
    assert len(cuts) > 100
    assert {cut.event for cut in cuts} == {*get_args(Event)}
    assert all(plan.images for plan in made if plan.cut and plan.cut.event == "vision")
    broken = [plan for plan in made if plan.broken]
    assert broken
    assert all(BAD_IMAGE in plan.images for plan in broken)
    ways = [plan.sampling for plan in made]
    assert any(way.seed is not None for way in ways)
    assert any(way.stop for way in ways)
    assert any(plan.timeout for plan in made)
    assert any(plan.chat is not None for plan in made)
    assert len({(c.prompt, c.images, c.sampling) for c in controls(DRAWN)}) == 20


@pytest.mark.parametrize(
    ("plan", "end"),
    [
        (PLAN, result("length")),
        (PLAN, result("stop", 3)),
        (CANCELLED, result("cancelled", 0)),
        (CANCELLED, result("stop", 1)),
        (replace(PLAN, timeout=0.1), result("timeout")),
        (replace(PLAN, broken=True), GenerationError("No.", model="demo")),
    ],
)
def test_expected_outcomes_are_accepted(plan: Plan, end: VisionResult | BaseException) -> None:
    assert fault(plan, end) == ""


@pytest.mark.parametrize(
    ("plan", "end"),
    [
        (PLAN, result("cancelled")),
        (PLAN, result("timeout")),
        (CANCELLED, replace(result("cancelled"), stopped_in=None)),
        (PLAN, result("length", 4)),
        (PLAN, result("stop", 6)),
        (PLAN, result("stop", 0)),
        (PLAN, result("stop", text="say no")),
        (PLAN, replace(result("stop"), usage=Usage(9, 0, 9, 5))),
        (replace(PLAN, broken=True), result("stop")),
        (PLAN, GenerationError("No.", model="demo")),
        (replace(PLAN, broken=True), RuntimeError("no")),
    ],
)
def test_unexpected_outcomes_are_reported(plan: Plan, end: VisionResult | BaseException) -> None:
    assert fault(plan, end) != ""


def seen(**more: int) -> Seen:
    held = Seen([(CANCELLED, result("cancelled")), (PLAN, result("stop"))], 1.0)
    held.memory = {"before": 100, "afterwards": 150, "kept": 50, "with nothing kept": 100}
    held.memory.update({key: value for key, value in more.items() if key in held.memory})
    held.changed = {"all at once": more.get("changed", 0)}
    held.left = {"seats": more.get("seats", 0)}
    return held


def missed(held: Seen) -> list[str]:
    return [target.what for target in endurance._report(held, 1).targets if not target.met]


def test_leaks_and_changed_answers_miss_the_target() -> None:
    assert missed(seen()) == []
    assert missed(seen(afterwards=160)) == ["memory afterwards/before and what is kept"]
    assert missed(seen(seats=1)) == ["seats, rows, leases, threads left behind"]
    assert missed(seen(changed=1)) == ["control answers that changed, all at once"]
    held = seen()
    held.ends[0] = (PLAN, result("cancelled"))
    assert missed(held) == ["requests whose end is not defined"]
