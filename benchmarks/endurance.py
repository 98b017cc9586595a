"""A thousand requests, a third of them cancelled: what remains afterwards, and what changes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field

from benchmarks.endurance_plan import Plan, controls, drawn_images, plans
from benchmarks.endurance_session import PATIENCE, Cuttable, Cutting
from benchmarks.figures import Report
from mlx_magic.engine.request import Exchange
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import MlxMagicError

SEED = 20
AT_ONCE = 16
RELOADS = 8
"""How often the model is unloaded meanwhile, so that there are loads to be cancelled."""

TURNS = 4
MOST_MEMORY = 1.02
LEAST_CANCELLED = 1 / 3


@dataclass(slots=True)
class Seen:
    """Outcomes of a run.

    Attributes
    ----------
    ends : list of (Plan, VisionResult or error)
    seconds : float
    changed : dict of str to int
        Number of control questions with a different answer: warm, all at once, and cold.
    memory : dict of str to int
        Bytes.
    left : dict of str to int
    """

    ends: list[tuple[Plan, VisionResult | BaseException]] = field(default_factory=list)
    seconds: float = 0.0
    changed: dict[str, int] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)


def measure(*, requests: int, seed: int = SEED) -> Report:
    """Ask twenty control questions, then the requests, then the control questions again.

    Raises
    ------
    RuntimeError
        A request has no outcome after two minutes.
    """
    session = Cutting()
    try:
        return _report(_endure(session, plans(requests, seed, drawn_images())), seed)
    finally:
        session.close()


def _endure(session: Cutting, planned: list[Plan]) -> Seen:
    held = Seen()
    asked = controls(drawn_images())
    expected = [_answer(session, plan) for plan in asked]
    session.settle()
    held.memory["before"] = session.memory()[2]
    began = time.perf_counter()
    held.ends = _run(session, planned)
    held.seconds = time.perf_counter() - began
    held.left = session.left()

    def changed(answers: list[tuple[object, ...]]) -> int:
        return sum(a != b for a, b in zip(answers, expected, strict=True))

    held.changed["with what is kept"] = changed([_answer(session, plan) for plan in asked])
    together = [session.begin(plan) for plan in asked]
    held.changed["all at once"] = changed([_outcome(each.future) for each in together])
    session.settle()
    held.memory["afterwards"], held.memory["kept"], without = session.memory()
    held.memory["with nothing kept"] = without
    held.changed["with nothing kept"] = changed([_answer(session, plan) for plan in asked])
    return held


def _answer(session: Cutting, plan: Plan) -> tuple[object, ...]:
    return _outcome(session.begin(plan).future)


def _outcome(future: Future[VisionResult]) -> tuple[object, ...]:
    result = future.result(PATIENCE)
    return result.text, result.finish_reason, result.usage.completion_tokens


def _run(
    session: Cutting, planned: Sequence[Plan]
) -> list[tuple[Plan, VisionResult | BaseException]]:
    """Keep `AT_ONCE` requests running; return how each ended."""
    ends: list[tuple[Plan, VisionResult | BaseException]] = []
    chats: dict[int | None, tuple[Exchange, ...]] = defaultdict(tuple)
    flying: dict[Future[VisionResult], tuple[Plan, Cuttable]] = {}

    def land(least: int) -> None:
        while len(flying) > least:
            done, _ = wait(flying, PATIENCE, FIRST_COMPLETED)
            if not done:
                lost = Counter(asked.progress.phase for _, asked in flying.values())
                raise RuntimeError(f"No request came to its end: {dict(lost)}")
            for future in done:
                plan, _ = flying.pop(future)
                error = future.exception()
                ends.append((plan, error or future.result()))
                if plan.chat is not None and error is None:
                    chats[plan.chat] = _gone_on(chats[plan.chat], future.result())
                for _, neighbor in flying.values():
                    neighbor.happens("neighbor")

    stretch = max(len(planned) // RELOADS, 2 * AT_ONCE)
    for number, plan in enumerate(planned):
        if number % stretch == 0:
            land(0)
            session.settle()
            session.unload()
        asked = session.begin(plan, chats[plan.chat])
        flying[asked.future] = plan, asked
        land(AT_ONCE - 1)
    land(0)
    session.settle()
    return ends


def _gone_on(history: tuple[Exchange, ...], result: VisionResult) -> tuple[Exchange, ...]:
    """Return a chat with one more turn, also after an incomplete answer."""
    turn = Exchange(result.prompt, result.text or "...", result.images)
    return (*history, turn) if len(history) < TURNS else ()


def fault(plan: Plan, end: VisionResult | BaseException) -> str:
    """Return what is wrong with the end of a request, or ``""``."""
    if isinstance(end, BaseException):
        if not isinstance(end, MlxMagicError):
            return f"an error that is not ours: {end!r}"
        return "" if plan.broken else f"an error without a reason: {end}"
    reason, usage = end.finish_reason, end.usage
    if reason in ("cancelled", "timeout"):
        wanted = plan.cut if reason == "cancelled" else plan.timeout
        told = end.stopped_in is not None and end.stopping is not None
        return "" if wanted and told else f"{reason}, without a reason or a phase"
    whole = reason in ("stop", "length") and not plan.broken and usage.prompt_tokens > 0
    if not whole or not 0 < usage.completion_tokens <= plan.sampling.max_tokens:
        return f"ended as {reason} with {usage}"
    if reason == "length" and usage.completion_tokens != plan.sampling.max_tokens:
        return f"ended for its length after {usage.completion_tokens} tokens"
    if any(stop in end.text for stop in plan.sampling.stop):
        return "shows its stop text"
    return "" if usage.cached_tokens < usage.prompt_tokens else "read nothing"


def _report(held: Seen, seed: int) -> Report:
    report = Report("endurance", {"requests": len(held.ends), "at once": AT_ONCE, "seed": seed})
    results = [end for _, end in held.ends if isinstance(end, VisionResult)]
    ended = Counter(result.finish_reason for result in results)
    report.add("all of them", "s", [held.seconds])
    for name, count in sorted(ended.items()):
        report.add(f"ended: {name}", "requests", [count])
    report.add("ended: an error of ours", "requests", [len(held.ends) - len(results)])
    stopping: dict[str, list[float]] = defaultdict(list)
    for result in results:
        if result.finish_reason == "cancelled" and result.stopping is not None:
            stopping[str(result.stopped_in)].append(1000 * result.stopping)
    for phase in ("queued", "loading", "vision", "prefill", "decode"):
        if stopping[phase]:
            report.add(f"{phase}: cancel to the end", "ms", stopping[phase])
    for when, size in held.memory.items():
        report.add(f"memory: {when}", "MB", [size / 1e6])
    faults = [found for plan, end in held.ends if (found := fault(plan, end))]
    _expect(report, held, faults, ended["cancelled"])
    events = Counter(plan.cut.event for plan, _ in held.ends if plan.cut is not None)
    report.samples = {"cancelled by": events, "left": held.left, "faults": faults}
    return report


def _expect(report: Report, held: Seen, faults: list[str], cancelled: int) -> None:
    report.expect("requests whose end is not defined", len(faults), 0)
    share = cancelled / len(held.ends)
    report.expect("cancelled, of all", share, LEAST_CANCELLED, at_least=True)
    left = sum(held.left.values())
    report.expect("seats, rows, leases, threads left behind", left, 0)
    memory = held.memory
    # MLX may allocate a buffer that is a little larger than its content.
    share = memory["afterwards"] / (memory["before"] + memory["kept"])
    report.expect("memory afterwards/before and what is kept", share, MOST_MEMORY)
    share = memory["with nothing kept"] / memory["before"]
    report.expect("memory afterwards with nothing kept/before", share, MOST_MEMORY)
    for how, changed in held.changed.items():
        report.expect(f"control answers that changed, {how}", changed, 0)
