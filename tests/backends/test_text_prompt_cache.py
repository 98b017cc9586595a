"""The prompt cache of text models: same answers, less prefill, nothing of failed requests.

Random weights in float32; `test_real_models` has a chat with a real model.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.text import adapter
from mlx_magic.backends.text.adapter import TextAdapter
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.request import Exchange
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.engine.stop_sequences import Stopped
from mlx_magic.errors import GenerationError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from tests.backends import test_text_batch
from tests.backends.batch_verdicts import let_answer
from tests.backends.test_text_batch import CHUNK, TextRequest, byte_tokenizer, lfm2, sliding

pytestmark = pytest.mark.usefixtures("templates_render_here")

LONG = "Why is the sky blue at noon, and red at night? "
COUNT = 12


@pytest.fixture(autouse=True)
def answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    let_answer(monkeypatch, together_=True)


@pytest.fixture(scope="module")
def weights() -> Any:
    platform.start()
    return test_text_batch.llama()


@pytest.fixture
def model(weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LibraryModel:
    return made(weights, tmp_path, monkeypatch)


def made(weights: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LibraryModel:
    monkeypatch.setattr(platform, "prefill_chunk", lambda nbytes: CHUNK)
    checkpoint = Checkpoint("tiny", folder, "text", "llama")
    return LibraryModel.of(TextAdapter, checkpoint, weights, endless(), 1)


def endless() -> Any:
    """Make a byte tokenizer without an end token."""
    tokenizer = byte_tokenizer()
    tokenizer._eos_token_ids = set()
    return tokenizer


def mlx_lm_answer(weights: Any, prompt: str) -> str:
    """Generate with mlx-lm itself."""
    from mlx_lm.generate import stream_generate

    pieces = stream_generate(weights, endless(), prompt, max_tokens=COUNT, prefill_step_size=CHUNK)
    return "".join(piece.text for piece in pieces)


class Asked(TextRequest):
    """A request that may be cancelled before one of its slices."""

    cut_at = -1
    slices = 0

    def steps(self) -> Any:
        for _ in super().steps():
            self.slices += 1
            if self.slices == self.cut_at:
                self.cancel.cancel()
            yield

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def cached(self) -> int:
        return self.chunks[-1].cached_tokens


def asked(model: LibraryModel, prompt: str, *, cut_at: int = -1, **sampling: Any) -> Asked:
    return all_asked([question(model, prompt, cut_at=cut_at, **sampling)])[0]


def question(model: LibraryModel, prompt: str, *, cut_at: int = -1, **sampling: Any) -> Asked:
    made = Asked(model, prompt, **{"max_tokens": COUNT, "temperature": 0, **sampling})
    made.cut_at = cut_at
    return made


def all_asked(questions: list[Asked]) -> list[Asked]:
    engine = Engine(threaded=False)
    for each in questions:
        engine.submit(each.steps(), each.failed)
    while engine.step():
        pass
    return questions


def test_prompt_and_answer_are_not_prefilled_again(model: LibraryModel, weights: Any) -> None:
    first = asked(model, LONG)
    read = len(LONG.encode())
    assert (first.cached, model.reuse.prefix_hits, model.reuse.prefix_misses) == (0, 0, 1)
    again = asked(model, LONG + "Say.")
    assert (again.cached, model.reuse.prefix_hits) == (read, 1)
    assert again.text == mlx_lm_answer(weights, LONG + "Say.")
    progress = [chunk.prompt_read for chunk in again.chunks if chunk.phase == "prefill"]
    assert progress[0] == 0, "before the prompt was looked at"
    assert progress[1] == read
    assert progress == sorted(progress)
    same = asked(model, LONG + "Say.")
    assert same.cached == read + 3, "the last token is always read anew"
    assert same.text == again.text != first.text


def test_answer_is_reused_if_the_tokenizer_encodes_it_as_generated(
    model: LibraryModel, weights: Any
) -> None:
    """Decoded bytes of a random model rarely re-encode to the same tokens: the hit ends there."""
    found = []
    for seed in range(12):
        prompt = f"{seed}. {LONG}"
        first = asked(model, prompt, temperature=0.5, seed=seed)
        follows = asked(model, prompt + first.text + "Why?")
        assert follows.text == mlx_lm_answer(weights, prompt + first.text + "Why?")
        assert follows.cached >= len(prompt)
        known = follows.cached - len(prompt)
        written = byte_tokenizer().encode(first.text)
        assert known <= len(written)
        found.append(known)
    assert max(found) > 1


def test_conversation_prefills_only_its_new_turn(model: LibraryModel, weights: Any) -> None:
    history: tuple[Exchange, ...] = ()
    last = 0
    for turn in range(4):
        own = question(model, f"{turn}: {LONG}")
        own.request = replace(own.request, history=history)
        [answer] = all_asked([own])
        whole = "\n\n".join(
            [part for each in history for part in (each.prompt, each.answer)] + [own.request.prompt]
        )
        assert answer.text == mlx_lm_answer(weights, whole)
        assert answer.cached >= last
        last = answer.chunks[-1].prompt_tokens
        history += (Exchange(own.request.prompt, "It is so, because it is."),)


def test_cancelled_request_is_not_cached(model: LibraryModel) -> None:
    whole = asked(model, LONG)
    model.forget()
    expected = asked(model, LONG + "Say.").text
    for at in range(1, whole.slices + 1):
        model.forget()
        cut = asked(model, LONG, cut_at=at)
        assert isinstance(cut.error, Cancelled)
        assert model.reuse.prefix_bytes == 0
        follows = asked(model, LONG + "Say.")
        assert (follows.cached, follows.text) == (0, expected)


def test_failed_request_is_not_cached(model: LibraryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = asked(model, LONG).text
    model.forget()

    def fails(*args: Any) -> None:
        raise GenerationError("No.", model="tiny")

    with monkeypatch.context() as patch:
        patch.setattr(model, "_detokenize", fails)
        assert isinstance(asked(model, LONG).error, GenerationError)
    assert model.reuse.prefix_bytes == 0
    assert asked(model, LONG).text == expected


def test_answer_ended_by_a_stop_sequence_is_cached_up_to_it(
    model: LibraryModel, weights: Any
) -> None:
    stopped = question(model, LONG)

    def report(chunk: GenerationChunk) -> None:
        stopped.chunks.append(chunk)
        if chunk.completion_tokens == 5:
            raise Stopped

    stopped.report = report
    all_asked([stopped, question(model, "Hi")])
    assert isinstance(stopped.error, Stopped)
    # Bytes of each layer's keys and values for a token: 2 heads of 16 numbers.
    tokens = model.reuse.prefix_bytes // (4 * 2 * 2 * 16 * 4)
    assert tokens == len(LONG.encode()) + 5 + len(b"Hi") + COUNT
    follows = asked(model, LONG + "Say.")
    assert follows.cached == len(LONG.encode())
    assert follows.text == mlx_lm_answer(weights, LONG + "Say.")


def test_random_cancellations_do_not_change_later_answers(model: LibraryModel) -> None:
    controls = [f"{'Tell me, ' * (n % 3)}question {n % 7}: {LONG}{n}" for n in range(20)]
    expected = []
    for prompt in controls:
        model.forget()
        expected.append(asked(model, prompt).text)
    model.forget()
    rng = random.Random(4)
    ends = []
    for _ in range(10):
        questions = [
            question(
                model,
                rng.choice(controls) + rng.choice(["", " And then?", " Why?"]),
                cut_at=rng.randrange(1, 20) if rng.random() < 1 / 3 else -1,
                max_tokens=rng.randint(1, COUNT),
            )
            for _ in range(8)
        ]
        all_asked(questions)
        ends += [each.reason or type(each.error).__name__ for each in questions]
    assert set(ends) == {"length", "Cancelled"}
    assert 0.15 < ends.count("Cancelled") / len(ends) < 0.45
    assert model.reuse.prefix_hits > 20
    assert [each.text for each in all_asked([question(model, p) for p in controls])] == expected
    assert [asked(model, prompt).text for prompt in controls] == expected


def test_seed_gives_the_same_answer_with_and_without_the_cache(model: LibraryModel) -> None:
    cold = asked(model, LONG, temperature=1.0, seed=7)
    warm = asked(model, LONG, temperature=1.0, seed=7)
    assert (cold.cached, warm.cached > 16) == (0, True)
    assert warm.text == cold.text
    penalized = asked(model, LONG, repetition_penalty=1.6)
    model.forget()
    assert asked(model, LONG, repetition_penalty=1.6).text == penalized.text


def test_prefix_cache_is_bounded_and_can_be_cleared(
    weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    limit = 200_000
    monkeypatch.setattr(adapter, "reuse_limit", lambda nbytes: limit)
    model = made(weights, tmp_path, monkeypatch)
    before = mx.get_active_memory()
    for n in range(12):
        asked(model, f"{n} {LONG}")
        assert 0 < model.reuse.nbytes <= model.reuse.limit_bytes == limit
    held = model.reuse.nbytes
    assert model.forget() == held
    assert model.reuse.nbytes == 0
    assert asked(model, LONG).cached == 0
    model.close()
    assert model.reuse.nbytes == 0
    assert mx.get_active_memory() <= before + 10_000


def test_warm_up_is_neither_cached_nor_counted(model: LibraryModel) -> None:
    written: list[GenerationChunk] = []
    generate = model.generate

    def seen(*args: Any, **more: Any) -> Any:
        more["report"] = written.append
        return generate(*args, **more)

    model.generate = seen  # type: ignore[method-assign]
    list(model.warm_up(cancel=CancelToken(), progress=lambda done, total, note: None))
    assert written[-1].completion_tokens > 0
    assert model.reuse == CacheStats(limit_bytes=model.reuse.limit_bytes)


def test_models_answered_one_at_a_time_prefill_every_prompt(
    weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_answer(monkeypatch, together_=False)
    model = made(weights, tmp_path, monkeypatch)
    first, again = asked(model, LONG), asked(model, LONG)
    assert (first.text, again.cached) == (again.text, 0)
    assert model.reuse == CacheStats()
    assert model.forget() == 0


@pytest.mark.parametrize("make", [sliding, lfm2])
def test_next_turn_of_a_model_whose_caches_cannot_be_cut_begins_after_the_answer(
    make: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = make()
    model = made(weights, tmp_path, monkeypatch)
    reused = 0
    for seed in range(16):
        count = 1 + seed % 2
        prompt = f"{seed}. {LONG}"
        first = asked(model, prompt, temperature=0.5, seed=seed, max_tokens=count)
        follows = asked(model, prompt + first.text + "Why?")
        assert follows.text == mlx_lm_answer(weights, prompt + first.text + "Why?")
        if count == 1:
            assert follows.cached == len(prompt), "the only token was not read any more"
        else:
            # Decoded bytes of a random model do not always encode to the same tokens.
            assert follows.cached in (0, len(prompt) + 2)
        reused += follows.cached > 0
    assert 8 <= reused == model.reuse.prefix_hits
    held = model.reuse.prefix_bytes
    assert 0 < held == model.forget()
    assert model.reuse.prefix_bytes == 0


def test_states_are_dropped_when_they_exceed_their_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(sliding(), tmp_path, monkeypatch)
    asked(model, LONG)
    one = model.reuse.prefix_bytes
    model.forget()
    monkeypatch.setattr(adapter, "reuse_limit", lambda nbytes: 3 * one)
    model = made(sliding(), tmp_path, monkeypatch)
    for turn in range(6):
        asked(model, f"{turn}. {LONG}")
        assert model.reuse.prefix_bytes <= 3 * one
