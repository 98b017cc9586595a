"""A mechanism is off, with the reason in one line, if a name of a library is not as expected."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from mlx_magic.models import upstream_checks
from mlx_magic.models.upstream_checks import Mechanism, MechanismOffError, Name


class Thing:
    def __init__(self, one: int, two: int = 0, *, named: int = 0) -> None: ...

    def work(self, first: int) -> None: ...

    @classmethod
    def made(cls, first: int) -> None: ...


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A library `made_up`, and no other mechanisms."""
    module = ModuleType("made_up")
    module.Thing = Thing  # type: ignore[attr-defined]
    module.plain = lambda **anything: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "made_up", module)
    monkeypatch.setattr(upstream_checks, "MECHANISMS", [])
    return iter(())


def reason(*names: Name) -> str | None:
    return Mechanism("flying", *names).off


@pytest.mark.parametrize(
    "name",
    [
        Name("made_up"),
        Name("made_up", "Thing"),
        Name("made_up", "Thing", ("one",), ("named",)),
        Name("made_up", "Thing", ("one", "two")),
        Name("made_up", "Thing.work", ("first",)),
        Name("made_up", "Thing.made", ("first",)),
        Name("made_up", "plain", (), ("a", "b")),
    ],
    ids=str,
)
def test_names_as_expected_turn_nothing_off(name: Name) -> None:
    assert reason(name) is None
    assert upstream_checks.switched_off() == ()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (Name("gone", "x"), "gone has no x"),
        (Name("made_up", "Other"), "made-up has no Other"),
        (Name("made_up", "Thing.gone"), "made-up has no Thing.gone"),
        (Name("made_up", "Thing", ("two",)), "made-up takes other arguments for Thing"),
        (Name("made_up", "Thing", ()), "made-up takes other arguments for Thing"),
        (
            Name("made_up", "Thing", ("one", "two", "three")),
            "made-up takes other arguments for Thing",
        ),
        (Name("made_up", "Thing", ("one",), ("new",)), "made-up takes other arguments for Thing"),
        (Name("made_up", "Thing.work", ()), "made-up takes other arguments for Thing.work"),
        (Name("made_up", "plain", ("a",)), "made-up takes other arguments for plain"),
    ],
    ids=str,
)
def test_a_changed_name_turns_its_mechanism_off(name: Name, why: str) -> None:
    assert reason(name) == f"flying is off: {why}"
    assert upstream_checks.switched_off() == (f"flying is off: {why}",)


def test_the_reason_names_the_installed_version() -> None:
    assert str(reason(Name("numpy", "gone"))).startswith("flying is off: numpy 2.")


def test_names_of_a_mechanism_that_is_off_cannot_be_used() -> None:
    with pytest.raises(MechanismOffError, match="flying is off: made-up has no Other"):
        _ = Mechanism("flying", Name("made_up", "Other")).names


def test_names_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = Mechanism("flying", Name("made_up", "Thing"))
    assert mechanism.names.Thing is Thing
    monkeypatch.setattr(upstream_checks, "find", None)
    assert mechanism.off is None
    assert mechanism.names.Thing is Thing


def test_behavior_is_compared_once() -> None:
    calls: list[object] = []

    def compare(names: object) -> bool:
        calls.append(names)
        return True

    mechanism = Mechanism("flying", Name("made_up", "Thing"))
    assert mechanism.is_on(compare)
    assert mechanism.is_on(compare)
    assert len(calls) == 1


def test_other_behavior_turns_a_mechanism_off() -> None:
    mechanism = Mechanism("flying", library="numpy")
    assert not mechanism.is_on(lambda names: False)
    assert str(mechanism.off).endswith("works differently")


def test_a_failed_comparison_turns_a_mechanism_off() -> None:
    def compare(names: object) -> bool:
        raise KeyError("x")

    mechanism = Mechanism("flying", library="numpy")
    assert not mechanism.is_on(compare)
    assert str(mechanism.off).endswith("could not be compared: KeyError")


def test_only_options_that_a_function_takes_are_passed() -> None:
    options = {"named": 1, "new": 2}
    assert upstream_checks.accepted(Thing, options) == {"named": 1}
    assert upstream_checks.accepted(lambda **anything: None, options) == options


def test_nothing_is_compared_if_a_name_is_missing() -> None:
    mechanism = Mechanism("flying", Name("made_up", "Other"))
    assert not mechanism.is_on(lambda names: pytest.fail("compared"))
