"""When requests are batched, when they wait, and when weights are compared first; real models."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.batch_check import compare_rows, policy
from mlx_magic.backends.batch_check.compare_rows import Budget, rows_agree
from mlx_magic.cancellation import CancelToken
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import UNTESTED, Verdict
from tests.architectures.conftest import Build
from tools.model_table.compare import Comparison
from tools.model_table.ours import OurModel, finished
from tools.model_table.questions import FOLLOW_UP, IMAGE, TEXT, WORDS

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("templates_render_here"),
]


def loaded(tiny: Build, name: str, files: dict[str, Path]) -> OurModel:
    model, folder = tiny(name)
    return OurModel(folder, model.library, files)


def largest_batch(model: OurModel, *questions: Any) -> int:
    """Send requests at once; return the largest number that decoded at the same time."""
    asked = [model.begin(question) for question in questions]
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, sum(each.tokens > 0 and not each.done for each in asked))
        return False

    model.run(asked, until=look)
    assert not [each.error for each in asked if each.error]
    return most


@pytest.mark.parametrize("name", ["smolvlm", "text-llama"])
def test_tested_model_is_compared_once_and_answers_in_batches(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)
    model = loaded(tiny, name, files)
    assert model.loaded.together == Verdict(True, True)
    assert largest_batch(model, TEXT, WORDS[1], WORDS[3]) == 3
    model.close()

    def no_look(*args: Any) -> Any:
        raise AssertionError("looked at again")

    monkeypatch.setattr(policy, "rows_agree", no_look)
    again = loaded(tiny, name, files)
    assert again.loaded.together.together
    again.close()


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "text-llama"])
def test_untested_model_answers_one_at_a_time_in_order(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_support, "table", lambda: ())
    model = loaded(tiny, name, files)
    assert model.loaded.together == Verdict(False, False, UNTESTED)
    questions = [TEXT, WORDS[1], WORDS[3], TEXT]
    asked = [model.begin(question) for question in questions]
    order: list[int] = []

    def note() -> bool:
        order.extend(n for n, each in enumerate(asked) if each.tokens and n not in order)
        return False

    assert largest_batch(model, *questions) == 1
    model.run(asked, until=note)
    assert order == [0, 1, 2, 3]
    model.close()


@pytest.mark.parametrize("name", ["paligemma", "text-gemma2"])
def test_weights_that_differ_in_a_batch_answer_one_at_a_time(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        batch_support, "verdict", lambda signature, architecture: Verdict(True, True)
    )
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    assert ours.loaded.together == Verdict(False, True, policy.DIFFERENT)
    tally = comparison.together(ours)
    assert tally.compared > 5
    assert not tally.wrong
    ours.close()


@pytest.mark.parametrize("name", ["smolvlm", "text-llama"])
def test_weights_that_are_slow_to_compare_are_compared_when_requests_overlap(
    name: str, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_rows, "SECONDS", 0.0)
    monkeypatch.setattr(compare_rows, "SHARE", 0.0)
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    assert ours.loaded.together == Verdict(False, True, policy.NOT_COMPARED)
    lone = comparison.alone(ours, [TEXT, WORDS[1]])
    assert ours.loaded.together.why == policy.NOT_COMPARED, "a lone question needs no look"
    tally = comparison.together(ours)
    assert ours.loaded.together.together
    assert not tally.wrong + lone.wrong
    ours.close()


def test_comparison_ends_if_its_time_budget_does_not_suffice(
    tiny: Build, files: dict[str, Path]
) -> None:
    model = loaded(tiny, "text-llama", files)
    probe: Any = model.loaded
    ticks = itertools.count()
    slow = Budget(3.0, clock=lambda: float(next(ticks)))
    assert finished(rows_agree(probe._answering._probed, slow, CancelToken())) is None
    quick = Budget(9.0, clock=lambda: float(next(ticks)))
    assert finished(rows_agree(probe._answering._probed, quick, CancelToken())) is True
    model.close()


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl", "text-llama", "text-qwen2"])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_error_in_one_row_ends_only_that_row(
    name: str, at: int, tiny: Build, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch step fails if the faulty row is in it, and only then."""
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    assert ours.loaded.together.together
    answering: Any = getattr(ours.loaded, "_answering")  # noqa: B009 - none of the protocol's
    faulty = ours.begin(TEXT)
    others = [IMAGE, FOLLOW_UP, WORDS[1]] if model.library == "mlx-vlm" else list(WORDS[1:4])
    asked = [ours.begin(question) for question in others]
    fail_decode_steps(answering, monkeypatch, after=at)
    ours.run([faulty, *asked])
    assert "spoiled" in str(faulty.error)
    for question, each in zip(others, asked, strict=True):
        assert each.answer == comparison.raw(question)
    monkeypatch.undo()
    assert ours.ask(TEXT)[0] == comparison.raw(TEXT), "and the next ones are answered"
    ours.close()


def fail_decode_steps(answering: Any, patch: pytest.MonkeyPatch, *, after: int) -> None:
    """Make every step with the first request's row fail, after `after` decode steps."""
    steps = itertools.count()
    # Sampling parameters belong to their request, also when it is answered again.
    draws: list[Any] = []

    def spoiled(batch: Any) -> Any:
        write, take_slot = batch._decode_step, batch.take_slot

        def _decode_step(decode: Any) -> None:
            mine = any(slot.params is draws[0] for slot in decode.slots)
            if mine and next(steps) >= after:
                raise RuntimeError("spoiled")
            write(decode)

        def noted(**fields: Any) -> Any:
            draws.append(fields["params"])
            return take_slot(**fields)

        patch.setattr(batch, "_decode_step", _decode_step)
        patch.setattr(batch, "take_slot", noted)
        return batch

    spoiled(answering.batch)
    make = answering._new_batch
    patch.setattr(answering, "_new_batch", lambda most, caches: spoiled(make(most, caches)))
