"""Which models are evicted so that a load fits, checked against an exhaustive search."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.model_pool.budget import (
    ModelUsage,
    Refusal,
    Setting,
    budget_bytes,
    check_setting,
    choose_evictions,
    evictions_for_budget,
)

models = st.lists(
    st.builds(
        ModelUsage,
        key=st.integers(),
        name=st.just("m"),
        nbytes=st.integers(1, 20),
        last_used=st.integers(0, 100).map(float),
        users=st.integers(0, 1),
        pinned=st.booleans(),
    ),
    max_size=6,
    unique_by=(lambda model: model.key, lambda model: model.last_used),
)


@given(st.integers(0, 40), st.integers(0, 60), models, st.integers(0, 20))
def test_plan_fits_and_evicts_the_least_recently_used(
    needed: int, budget: int, there: list[ModelUsage], loading: int
) -> None:
    planned = choose_evictions(needed, budget, there, loading=loading)
    free = [model for model in there if not model.users and not model.pinned]
    taken = sum(model.nbytes for model in there) + loading
    ways = [way for n in range(len(free) + 1) for way in combinations(free, n)]
    possible = not budget or any(
        taken - sum(model.nbytes for model in way) + needed <= budget for way in ways
    )
    if isinstance(planned, Refusal):
        assert not possible
        assert set(planned.staying) == set(there) - set(free)
        assert planned.free < needed or needed == 0
        assert "\n" not in str(planned.error("m"))
        return
    assert possible
    assert set(planned) <= set(free)
    gone = sum(model.nbytes for model in planned)
    if budget:
        assert taken - gone + needed <= budget
        for model in planned:
            assert taken - (gone - model.nbytes) + needed > budget, "none leaves for nothing"
    else:
        assert not planned
    # Those used longer ago than the last to leave could not have done in its place.
    if planned:
        newest = max(model.last_used for model in planned)
        older = sum(model.nbytes for model in free if model.last_used < newest)
        assert taken - older + needed > budget


@given(st.integers(1, 60), models, st.integers(0, 20))
def test_smaller_budget_evicts_every_model_that_must_leave(
    budget: int, there: list[ModelUsage], loading: int
) -> None:
    leaving, refused = evictions_for_budget(budget, there, loading=loading)
    rest = sum(model.nbytes for model in there if model not in leaving) + loading
    assert all(model.can_leave for model in leaving)
    if refused is None:
        assert rest <= budget
    else:
        assert rest > budget
        assert not any(model.can_leave for model in there if model not in leaving)
        assert refused.over_budget_message


@pytest.mark.parametrize(
    ("setting", "total", "nbytes"),
    [
        (None, 1000, 1000),
        (None, 0, 0),
        (0.5, 1000, 500),
        (0.5, 0, 0),
        (1.0, 1000, 1000),
        (800, 1000, 800),
        (8000, 1000, 1000),
        (8000, 0, 8000),
        ("8 GB", 0, 8 * 10**9),
        ("8\u00a0GB", 0, 8 * 10**9),
        ("1.5GiB", 0, 3 * 2**29),
        ("500mb", 0, 5 * 10**8),
        ("700", 0, 700),
        ("0.25", 1000, 250),
        ("60%", 1000, 600),
    ],
)
def test_budget_settings_are_converted_to_bytes(setting: Setting, total: int, nbytes: int) -> None:
    assert budget_bytes(check_setting(setting), total) == nbytes


@pytest.mark.parametrize(
    "bad",
    [
        *(0, -1, 0.0, 1.5, -0.2, True, [], 2j),
        *("", "much", "8 GB of it", "-3 GB", "150%", "0%", "0"),
        *("8 iB", "8 G\u0131B", "\u0668 GB", "9" * 400),
    ],
)
def test_invalid_settings_are_refused_in_one_line(bad: object) -> None:
    with pytest.raises(RequestError, match="is not a memory budget") as caught:
        check_setting(bad)
    assert "\n" not in str(caught.value)


@given(st.text() | st.text(alphabet="0123456789. GMKi%b"))
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    try:
        setting = check_setting(text)
    except RequestError:
        return
    assert budget_bytes(setting, 0) >= 0
    assert budget_bytes(setting, 10**9) > 0 or 0 < float(text.strip(" %")) < 1
