"""A smaller run of the endurance benchmark: all kinds of requests, a third cancelled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import endurance
from benchmarks.endurance_plan import Plan, drawn_images
from benchmarks.endurance_session import Cutting
from mlx_magic.backends.batching.batch import Batch, Slot
from mlx_magic.engine.request import Sampling

pytestmark = pytest.mark.model


def test_many_requests_with_a_third_cancelled_leak_nothing_and_change_no_answer() -> None:
    report = endurance.measure(requests=60, seed=27)
    # How many requests end before their cancellation depends on the machine.
    missed = {target.what for target in report.targets if not target.met}
    assert missed <= {"cancelled, of all"}
    assert len(report.samples["cancelled by"]) >= 5, "many kinds of moment were among them"
    ends = {row.what: row.summary.median for row in report.rows if row.what.startswith("ended")}
    assert sum(ends.values()) == 60
    assert ends["ended: cancelled"] >= 10
    assert ends["ended: stop"] + ends["ended: length"] >= 10


@pytest.fixture
def session() -> Iterator[Cutting]:
    made = Cutting()
    yield made
    made.close()


def test_leaks_would_be_detected(session: Cutting, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("What is it?", tuple(drawn_images()[:1]), Sampling(max_tokens=2))
    assert session.begin(plan).future.result(120).finish_reason == "length"
    session.settle()
    assert set(session.left().values()) == {0}

    def stays(self: Batch, seat: Slot) -> None:
        """Keep nothing."""

    monkeypatch.setattr(Batch, "leave", stays)
    session.begin(plan).future.result(120)
    session.settle()
    assert session.left()["seats"] == 1
