"""Probabilities of choices equal those of the libraries: one forward over prompt and choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_magic.backends.base import LoadedModel
from mlx_magic.backends.batch_check import compare_rows
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.request import Choices
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.models.checkpoints.batch_support import Verdict
from tests.architectures.conftest import Build
from tests.architectures.raw_choices import RawChoices
from tools.model_table.ours import OurModel, as_if, finished, small_chunks
from tools.model_table.questions import IMAGE, LONG_IMAGE, LONG_TEXT, TEXT, Question
from tools.tiny_models.spec import all_models

pytestmark = [
    pytest.mark.model,
    # Deprecation warnings of the libraries do not matter here.
    pytest.mark.filterwarnings("default"),
]

CHOICES = ("red", "a red ball", "a red ring", "blue", "a blue ring, and nothing else", "Yes", "no")

CLOSE = 1e-4

# gemma3n reads a prompt differently in other chunks, and internlm3's positions depend on the
# length that is read: raw itself gives other numbers step by step.
NOT_COMPARED = {"gemma3n", "text-gemma3n", "internlm3", "text-internlm3"}

SLOW = {"phi3_v"}

# Plain caches, positions in three parts, windows, recurrences; one that is not batched.
NAMES = ["smolvlm", "qwen3_vl", "gemma3", "lfm2_vl", "text-gpt_bigcode"]


def names() -> list[str]:
    known = {model.name for model in all_models()}
    if not os.environ.get("MLX_MAGIC_EVERY"):
        return [name for name in NAMES if name in known]
    seen: dict[tuple[str, str], str] = {}
    for model in all_models():
        seen.setdefault((model.library, model.architecture), model.name)
    return [name for name in seen.values() if name not in NOT_COMPARED | SLOW]


@pytest.fixture(autouse=True)
def enough_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_rows, "SECONDS", 60.0)


class Scored:
    """A question with choices under way."""

    def __init__(
        self,
        model: LoadedModel,
        question: Question,
        files: Mapping[str, Path],
        choices: Sequence[str] = CHOICES,
        **more: object,
    ) -> None:
        self.chunks: list[GenerationChunk] = []
        self.cancel = CancelToken()
        request = replace(question.request(files), choices=Choices(tuple(choices)), **more)  # type: ignore[arg-type]
        self.steps = model.generate(request, cancel=self.cancel, report=self.chunks.append)

    def probabilities(self) -> tuple[float, ...]:
        finished(self.steps)
        return self.chunks[-1].probabilities


def require_close(ours: Sequence[float], raw: Sequence[float]) -> None:
    assert len(ours) == len(raw)
    assert max(abs(one - other) for one, other in zip(ours, raw, strict=True)) < CLOSE


@pytest.mark.parametrize("name", names())
def test_probabilities_equal_those_of_the_library(
    name: str, tiny: Build, files: dict[str, Path]
) -> None:
    model, folder = tiny(name)
    with small_chunks():
        ours = OurModel(folder, model.library, files)
    raw = RawChoices(folder, model.library, files)
    questions = (TEXT, IMAGE) if model.library == "mlx-vlm" else (TEXT, LONG_TEXT)
    expected = {}
    for question in questions:
        try:
            expected[question.name] = raw.probabilities(question, CHOICES)
        except (AssertionError, StopIteration):
            pytest.skip("its template does not render an answer after the same prompt")
        require_close(Scored(ours.loaded, question, files).probabilities(), expected[question.name])
    # While other requests are answered, and with the prompt in the prefix cache.
    scored = [Scored(ours.loaded, question, files) for question in questions]
    begun = [ours.begin(question) for question in (TEXT, questions[-1])]
    waiting = list(scored)
    while waiting or not all(each.done for each in begun):
        for each in begun:
            if not each.done:
                each.step()
        for each_scored in list(waiting):
            try:
                next(each_scored.steps)
            except StopIteration:
                waiting.remove(each_scored)
    for question, each_scored in zip(questions, scored, strict=True):
        require_close(each_scored.chunks[-1].probabilities, expected[question.name])
    alone = ours.ask(TEXT, questions[-1])
    assert [each.answer for each in begun] == alone
    ours.close()


@pytest.mark.parametrize("verdict", [Verdict(False, True, "a test"), Verdict(True, True)])
def test_rows_one_at_a_time_and_together_have_the_same_probabilities(
    verdict: Verdict, tiny: Build, files: dict[str, Path]
) -> None:
    model, folder = tiny("qwen2_vl")
    raw = RawChoices(folder, model.library, files)
    with as_if(verdict):
        ours = OurModel(folder, model.library, files)
    for question in (IMAGE, LONG_IMAGE):
        ours_now = Scored(ours.loaded, question, files).probabilities()
        require_close(ours_now, raw.probabilities(question, CHOICES))
    ours.close()


def test_many_choices_are_read_in_groups(tiny: Build, files: dict[str, Path]) -> None:
    model, folder = tiny("smolvlm")
    ours, raw = OurModel(folder, model.library, files), RawChoices(folder, model.library, files)
    many = [f"{n} balls" if n % 3 else f"{n} red balls and one more" for n in range(90)]
    scored = Scored(ours.loaded, TEXT, files, many)
    found = scored.probabilities()
    assert sum(found) == pytest.approx(1)
    counts = [chunk.scored for chunk in scored.chunks if chunk.phase == "decode"]
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    few = raw.probabilities(TEXT, many[:8])
    share = sum(found[:8])
    require_close([each / share for each in found[:8]], few)
    ours.close()


def test_labels_are_yes_against_no(tiny: Build, files: dict[str, Path]) -> None:
    model, folder = tiny("qwen3_vl")
    ours, raw = OurModel(folder, model.library, files), RawChoices(folder, model.library, files)
    labels = ("red", "a ring")
    scored = Scored(ours.loaded, IMAGE, files, labels, multiple=True)
    found = scored.probabilities()
    for label, probability in zip(labels, found, strict=True):
        prompt = f'{IMAGE.prompt}\nDoes the label "{label}" apply? Answer with Yes or No.'
        asked = replace(IMAGE, prompt=prompt, name=label)
        assert probability == pytest.approx(raw.probabilities(asked, ("Yes", "No"))[0], abs=CLOSE)
    last = scored.chunks[-1]
    assert last.scored == 2
    assert last.image_tokens > 0
    assert 0 < last.cached_tokens < last.prompt_tokens, "the second question shares the first"
    ours.close()


def stopped_when(condition: Callable[[list[GenerationChunk]], bool], scored: Scored) -> None:
    """Run until a condition holds; cancel then, and expect the end at once."""
    while not condition(scored.chunks):
        next(scored.steps)
    scored.cancel.cancel()
    with pytest.raises(Cancelled):
        finished(scored.steps)


@pytest.mark.parametrize("name", ["smolvlm", "text-gpt_bigcode"])
def test_cancelled_scoring_leaves_the_model_usable(
    name: str, tiny: Build, files: dict[str, Path]
) -> None:
    model, folder = tiny(name)
    with small_chunks():
        ours = OurModel(folder, model.library, files)
    expected = Scored(ours.loaded, LONG_TEXT, files).probabilities()
    in_phase: dict[str, Callable[[list[GenerationChunk]], bool]] = {
        "prefill": lambda chunks: any(chunk.phase == "prefill" for chunk in chunks),
        "scoring": lambda chunks: any(chunk.scored for chunk in chunks),
    }
    many = [f"{n} balls" for n in range(60)]
    for condition in in_phase.values():
        stopped_when(condition, Scored(ours.loaded, LONG_TEXT, files, many))
    require_close(Scored(ours.loaded, LONG_TEXT, files).probabilities(), expected)
    ours.close()
