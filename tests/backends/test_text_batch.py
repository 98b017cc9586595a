"""Batched text models answer as one request alone. Random float32 weights, no download."""

from __future__ import annotations

import functools
import itertools
import json
import random
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_magic.backends.batching.admission import AdmissionQueue, MemoryAdmission
from mlx_magic.backends.batching.batch import JointPrefill, Slot
from mlx_magic.backends.batching.memory_estimate import ModelDimensions, estimate_request
from mlx_magic.backends.batching.model_batch import ModelBatch
from mlx_magic.backends.batching.sampling import BAD, SamplingParams, sampler_of_one
from mlx_magic.backends.device import platform
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix, PromptCache
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys
from mlx_magic.backends.text.adapter import TextAdapter, TextForward
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.engine import Engine
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.errors import GenerationError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from tests.backends.batch_verdicts import let_answer

pytestmark = pytest.mark.usefixtures("templates_render_here")

VOCABULARY = 256
CHUNK = 16
GREEDY = SamplingParams()
LENGTHS = (1, 2, 5, 17, 18, 20, 40, 41)


@pytest.fixture(autouse=True)
def answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    let_answer(monkeypatch, together_=True)


def scale_weights(model: Any, scale: float) -> Any:
    """Scale random weights up: with small ones every answer repeats one token."""
    import mlx.core as mx
    from mlx.utils import tree_map

    model.update(tree_map(lambda x: x * scale if x.ndim > 1 else x, model.parameters()))
    mx.eval(model.parameters())
    return model


def llama(**more: Any) -> Any:
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(1)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rest = {"model_type": "llama", "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY}
    return scale_weights(Model(ModelArgs(**shape, **heads, **rest, **more)), 3.0)


def sliding() -> Any:
    layers = ["sliding_attention", "full_attention"] * 2
    return llama(layer_types=layers, sliding_window=12)


def lfm2() -> Any:
    """Make a model with convolutions and attention, which has two kinds of caches."""
    import mlx.core as mx
    from mlx_lm.models.lfm2 import Model, ModelArgs

    mx.random.seed(1)
    sizes = {"hidden_size": 64, "block_dim": 64, "block_ff_dim": 128, "block_multiple_of": 16}
    layers = {"num_hidden_layers": 4, "full_attn_idxs": [1, 3], "conv_L_cache": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    rest: dict[str, Any] = {
        "model_type": "lfm2", "vocab_size": VOCABULARY, "norm_eps": 1e-5, "conv_bias": False,
        "max_position_embeddings": 1000, "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False, "rope_theta": 10_000.0,
    }  # fmt: skip
    return scale_weights(Model(ModelArgs(**sizes, **layers, **heads, **rest)), 2.0)


@pytest.fixture(scope="module", autouse=True)
def mlx() -> None:
    platform.start()


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


def prompts(count: int, seed: int = 0, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    sizes = [rng.choice(lengths) for _ in range(count)]
    return [[rng.randrange(3, VOCABULARY) for _ in range(size)] for size in sizes]


def mlx_lm_tokens(model: Any, prompt: list[int], count: int) -> list[int]:
    """Generate with mlx-lm itself, greedily."""
    import mlx.core as mx
    from mlx_lm.generate import generate_step

    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=CHUNK)
    return [int(token) for token, _ in steps]


class BatchRequest:
    """One request to a batch, as a task of the engine."""

    def __init__(
        self,
        batch: ModelBatch,
        tokens: list[int],
        draw: SamplingParams = GREEDY,
        *,
        count: int = 20,
    ) -> None:
        self.batch, self.tokens, self.draw, self.count = batch, tokens, draw, count
        self.cache: list[Any] | None = None
        self.at_end: Callable[[Slot], None] = lambda seat: None
        self.cancel = CancelToken()
        self.written: list[int] = []
        self.read: list[int] = []
        self.error: BaseException | None = None
        self.ended = False

    def failed(self, error: BaseException) -> None:
        self.error = error

    def steps(self) -> Generator[None, None, None]:
        seat = self.batch.add(self.tokens, self.draw, cache=self.cache)
        try:
            while len(self.written) < self.count:
                written = yield from self.batch.follow(seat, self.cancel)
                self.read.append(seat.read)
                if written is not None:
                    self.written.append(written.token)
                    if written.stopped:
                        break
            self.at_end(seat)
        finally:
            self.ended = True
            self.batch.leave(seat)


def run_requests(
    asked: Sequence[BatchRequest], between: Callable[[int], None] = lambda slice_: None
) -> None:
    """Run the requests on an engine without a thread; call `between` before each slice."""
    engine = Engine(threaded=False)
    for each in asked:
        engine.submit(each.steps(), each.failed)
    done = 0
    between(done)
    while engine.step():
        done += 1
        between(done)


def answer(
    model: Any, tokens: list[int], draw: SamplingParams = GREEDY, count: int = 20
) -> list[int]:
    """Answer one request alone."""
    asked = BatchRequest(batch(model), tokens, draw, count=count)
    run_requests([asked])
    assert asked.error is None
    return asked.written


@functools.cache
def twelve_requests(seed: int) -> tuple[list[list[int]], list[SamplingParams], list[list[int]]]:
    """Return prompts, their sampling parameters, and the answer to each alone."""
    asked = prompts(12, seed=seed, lengths=(1, 3, 33, 34, 37, 60))
    draws = [GREEDY, SamplingParams(1.0, 0.9, 30, seed=seed)] * 6
    model = llama()
    pairs = zip(asked, draws, strict=True)
    return asked, draws, [answer(model, tokens, draw, 10) for tokens, draw in pairs]


def batch(
    model: Any,
    *,
    most: int = 32,
    ends: Sequence[int] = (),
    joint: JointPrefill = "alone",
    chunk: int = CHUNK,
) -> ModelBatch:
    forward = TextForward(model, ends)
    return ModelBatch(forward, chunk=chunk, most=most, joint_prefill=lambda: joint)


def held() -> int:
    """Active memory once all queued work is done."""
    import gc

    import mlx.core as mx
    from mlx_lm.generate import generation_stream

    mx.synchronize(generation_stream)
    gc.collect()
    return int(mx.get_active_memory())


@pytest.mark.parametrize("joint", ["equal", "padded"])
@pytest.mark.parametrize("make", [sliding, lfm2])
def test_prompts_of_windows_and_states_share_a_prefill(
    make: Callable[[], Any], joint: JointPrefill, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[int]] = []
    start = ModelBatch._start_prefill

    def noted(self: ModelBatch, slots: list[Slot]) -> Any:
        rows.append([len(slot.tokens) for slot in slots])
        return start(self, slots)

    monkeypatch.setattr(ModelBatch, "_start_prefill", noted)
    model = make()
    # Longer than the window of 12 tokens, in one chunk and in several.
    asked = prompts(10, seed=2, lengths=(17, 18, 20, 40, 41))
    together = batch(model, joint=joint, chunk=8 * CHUNK)
    jobs = [BatchRequest(together, tokens, count=12) for tokens in asked]

    def between(slice_: int) -> None:
        if slice_ == 25:
            jobs[1].cancel.cancel()

    run_requests(jobs, between)
    assert max(map(len, rows)) > 2
    assert joint == "padded" or all(len(set(lengths)) == 1 for lengths in rows)
    for job in jobs:
        expected = mlx_lm_tokens(model, job.tokens, 12)
        if job.cancel.requested:
            assert job.written == expected[: len(job.written)]
        else:
            assert (job.error, job.written) == (None, expected)


@pytest.mark.parametrize("cancelled_at", [11, 16])
@pytest.mark.parametrize("make", [sliding, lfm2])
def test_prompt_that_leaves_a_padded_prefill_does_not_change_the_others(
    make: Callable[[], Any], cancelled_at: int
) -> None:
    model = make()
    asked = prompts(4, seed=5, lengths=(37, 40, 41))
    together = batch(model, joint="padded", chunk=2 * CHUNK)
    jobs = [BatchRequest(together, tokens, count=8) for tokens in asked]

    def between(slice_: int) -> None:
        if slice_ == cancelled_at:
            jobs[2].cancel.cancel()

    run_requests(jobs, between)
    assert isinstance(jobs[2].error, Cancelled)
    for job in (jobs[0], jobs[1], jobs[3]):
        assert (job.error, job.written) == (None, mlx_lm_tokens(model, job.tokens, 8))
    assert len(together) == 0


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("make", [llama, sliding, lfm2])
def test_batched_answers_equal_raw_mlx_lm(make: Callable[[], Any], count: int) -> None:
    model = make()
    asked = prompts(count)
    expected = [mlx_lm_tokens(model, tokens, 30) for tokens in asked]
    assert len({tuple(tokens) for tokens in expected}) == count, "else nothing is proven"

    assert [answer(model, tokens, count=30) for tokens in asked] == expected
    together = batch(model)
    jobs = [BatchRequest(together, tokens, count=30) for tokens in asked]
    run_requests(jobs)
    assert [job.written for job in jobs] == expected


@pytest.mark.parametrize("make", [llama, sliding, lfm2])
def test_new_requests_join_a_running_batch(make: Callable[[], Any]) -> None:
    model = make()
    asked = prompts(10, seed=3)
    together = batch(model, most=6)
    jobs = [BatchRequest(together, tokens, count=12 + at) for at, tokens in enumerate(asked)]
    engine = Engine(threaded=False)
    rng = random.Random(1)
    most = 0
    for job in jobs:
        engine.submit(job.steps(), job.failed)
        for _ in range(rng.randrange(25)):
            engine.step()
            most = max(most, len(together))
    while engine.step():
        pass
    assert most > 2
    assert [job.written for job in jobs] == [
        mlx_lm_tokens(model, job.tokens, job.count) for job in jobs
    ]


def test_each_row_has_its_own_sampling_and_a_seed_repeats_in_a_batch(model: Any) -> None:
    draws = [
        SamplingParams(0.7, 0.9, 0, seed=1),
        GREEDY,
        SamplingParams(1.5, 1.0, 20, seed=2),
        SamplingParams(1.0, 0.8, 50, seed=3),
        SamplingParams(1.2, seed=4),
        SamplingParams(1.2, seed=5),
        GREEDY,
        SamplingParams(0.9, 0.95, 8, 0.05, seed=6),
    ]
    asked = prompts(len(draws), seed=7)
    alone = [answer(model, *pair) for pair in zip(asked, draws, strict=True)]
    together = batch(model)
    jobs = [BatchRequest(together, *pair) for pair in zip(asked, draws, strict=True)]
    run_requests(jobs)
    assert [job.written for job in jobs] == alone
    assert alone[1] == mlx_lm_tokens(model, asked[1], 20)
    assert answer(model, asked[0], SamplingParams(1.5, seed=1)) != answer(
        model, asked[0], SamplingParams(1.5, seed=2)
    )


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    seed=st.integers(0, 2),
    # Four of twelve, each before some slice, from waiting to decode.
    cancels=st.lists(
        st.tuples(st.integers(0, 11), st.integers(0, 260)),
        min_size=4, max_size=4, unique_by=lambda pair: pair[0],
    ),
)  # fmt: skip
def test_cancelling_a_third_does_not_change_the_other_answers(
    model: Any, seed: int, cancels: list[tuple[int, int]]
) -> None:
    asked, draws, expected = twelve_requests(seed)
    together = batch(model, most=8)
    jobs = [BatchRequest(together, *pair, count=10) for pair in zip(asked, draws, strict=True)]

    def between(slice_: int) -> None:
        for victim, when in cancels:
            if when == slice_ and not jobs[victim].ended:
                jobs[victim].cancel.cancel()

    run_requests(jobs, between)
    for job, tokens in zip(jobs, expected, strict=True):
        if job.cancel.requested:
            assert isinstance(job.error, Cancelled)
            assert job.written == tokens[: len(job.written)]
        else:
            assert (job.error, job.written) == (None, tokens)
    assert len(together) == 0


def test_cancelled_request_takes_no_further_step(model: Any) -> None:
    together = batch(model)
    job = BatchRequest(together, prompts(1, lengths=(100,))[0])

    def between(slice_: int) -> None:
        if job.read and job.read[-1]:
            job.cancel.cancel()

    run_requests([job], between)
    assert isinstance(job.error, Cancelled)
    assert job.read[-1] == CHUNK, "it stopped after the first chunk"


def test_memory_is_freed_when_all_requests_have_ended(model: Any) -> None:
    import mlx.core as mx

    together = batch(model)
    asked = prompts(8, lengths=(60, 64, 70))
    run_requests([BatchRequest(together, tokens) for tokens in asked])
    before = held()

    most = 0
    jobs = [BatchRequest(together, tokens) for tokens in asked]

    def between(slice_: int) -> None:
        nonlocal most
        most = max(most, int(mx.get_active_memory()))
        if slice_ == 30:
            jobs[0].cancel.cancel()

    run_requests(jobs, between)
    assert most > before + 100_000
    assert held() <= before + 1024


class RecordingModel:
    """Wraps a model: records its inputs and may corrupt its logits."""

    def __init__(self, model: Any, spoil: int | None = None) -> None:
        self._model, self._spoil = model, spoil
        self.shapes: list[tuple[int, ...]] = []
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, tokens: Any, cache: Any) -> Any:
        import mlx.core as mx

        self.shapes.append(tuple(tokens.shape))
        if self.error is not None:
            raise self.error
        logits = self._model(tokens, cache=cache)
        if self._spoil is None:
            return logits
        return mx.where((tokens[:, -1] == self._spoil)[:, None, None], mx.nan, logits)


def test_prefill_chunk_size_does_not_grow_with_the_batch(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx

    watched = RecordingModel(model)
    evaluate = mx.eval

    def marking(*arrays: Any) -> None:
        watched.shapes.append(())
        evaluate(*arrays)

    monkeypatch.setattr(mx, "eval", marking)
    together = batch(watched)
    jobs = [BatchRequest(together, tokens, count=1) for tokens in prompts(4, lengths=(40, 41))]
    run_requests(jobs)
    chunks = [at for at, shape in enumerate(watched.shapes) if shape and shape[1] > 1]
    assert {watched.shapes[at] for at in chunks} <= {(4, 4), (4, 3)}, "4 rows share 16 tokens"
    assert all(watched.shapes[at + 1] == () for at in chunks)
    for job in jobs:
        assert job.read == sorted(job.read)
        assert set(job.read) >= {0, 4, 8, 36, len(job.tokens)}


def test_nan_logits_end_only_their_row(model: Any) -> None:
    asked = prompts(4, seed=11, lengths=(9,))
    expected = [mlx_lm_tokens(model, tokens, 12) for tokens in asked]
    asked[2] = [*asked[2][:-1], 2]
    together = batch(RecordingModel(model, spoil=2))
    jobs = [BatchRequest(together, tokens, count=12) for tokens in asked]
    run_requests(jobs)
    assert jobs[2].written[0] == BAD
    assert [jobs[at].written for at in (0, 1, 3)] == [expected[at] for at in (0, 1, 3)]


def test_failed_step_ends_all_rows_and_the_batch_is_usable_again(model: Any) -> None:
    watched = RecordingModel(model)
    together = batch(watched)
    jobs = [BatchRequest(together, tokens) for tokens in prompts(3)]

    def between(slice_: int) -> None:
        watched.error = RuntimeError("out of memory") if slice_ > 20 else None

    run_requests(jobs, between)
    assert [str(job.error) for job in jobs] == ["out of memory"] * 3
    watched.error = None
    again = BatchRequest(together, jobs[0].tokens)
    run_requests([again])
    assert again.written == mlx_lm_tokens(model, again.tokens, 20)


def test_each_token_of_a_request_is_sampled_independently() -> None:
    import mlx.core as mx

    sampler = sampler_of_one(SamplingParams(1.0, seed=1))
    same = mx.log(mx.full((1, 64), 1 / 64))
    assert len({int(sampler(same).item()) for _ in range(20)}) > 10


def test_batch_is_limited_and_the_others_wait_for_a_slot(
    model: Any,
) -> None:
    watched = RecordingModel(model)
    together = batch(watched, most=3)
    jobs = [BatchRequest(together, tokens, count=6) for tokens in prompts(8, lengths=(5, 6))]
    run_requests(jobs)
    assert max(shape[0] for shape in watched.shapes) == 3
    assert [job.written for job in jobs] == [mlx_lm_tokens(model, job.tokens, 6) for job in jobs]


def test_end_token_ends_an_answer_and_is_included(model: Any) -> None:
    tokens = prompts(1, lengths=(9,))[0]
    whole = mlx_lm_tokens(model, tokens, 20)
    end = whole[7]
    job = BatchRequest(batch(model, ends=[end]), tokens)
    run_requests([job])
    assert job.written == whole[: whole.index(end) + 1]


@pytest.mark.parametrize("company", [0, 3])
def test_cached_prefix_is_reused_alone_and_in_a_batch(model: Any, company: int) -> None:
    watched = RecordingModel(model)
    together = batch(watched)
    recall = PromptCache(10**9, kind="plain" if together.plain else None)
    asked = prompts(1 + company, seed=2, lengths=(30, 33, 41))
    jobs = [BatchRequest(together, tokens, count=5 + at) for at, tokens in enumerate(asked)]
    for job in jobs:
        start = recall.start(lambda job=job: PromptKeys(list(job.tokens)))  # type: ignore[misc]
        job.at_end = lambda seat, job=job, start=start: recall.keep(  # type: ignore[misc]
            start, job.written, together.row(seat, 0)
        )
    run_requests(jobs)

    again, expected = [], []
    for at, job in enumerate(jobs):
        whole = [*job.tokens, *job.written, *[9, 8, 7][at % 3 :]]
        known = recall.start(lambda whole=whole: PromptKeys(list(whole)))  # type: ignore[misc]
        assert known.count == len(job.tokens) + len(job.written)
        again.append(BatchRequest(together, whole[known.count :], count=20))
        again[-1].cache = known.caches(TextForward(model, ()).new_caches)
        expected.append(mlx_lm_tokens(model, whole, 20))
    watched.shapes.clear()
    run_requests(again)
    assert [job.written for job in again] == expected
    read = [shape for shape in watched.shapes if shape[1] > 1]
    assert read == [(1 + company, 2)], "their last words, and all together"


@pytest.mark.parametrize("make", [sliding, lfm2])
def test_caches_that_cannot_be_trimmed_are_not_kept(make: Callable[[], Any]) -> None:
    together = batch(make())
    recall = PromptCache(10**9, kind="plain" if together.plain else None)
    job = BatchRequest(together, prompts(1, lengths=(40,))[0])
    rows: list[Any] = []
    job.at_end = lambda seat: rows.append(together.row(seat, 0))
    run_requests([job])
    start = recall.start(lambda: PromptKeys(list(job.tokens)))
    recall.keep(start, job.written, rows[0])
    assert rows == [None]
    assert recall.start(lambda: PromptKeys(list(job.tokens))) == CachedPrefix()
    assert (recall.nbytes, recall.limit, recall.misses) == (0, 0, 0)


def byte_tokenizer() -> Any:
    """Make a byte tokenizer: most output of a random model is cut within a character."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, TokenizerWrapper
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: at for at, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made)
    return TokenizerWrapper(fast, BPEStreamingDetokenizer, eos_token_ids=[17, 99, 200])


@pytest.fixture(params=["together", "alone"])
def text_model(
    request: pytest.FixtureRequest, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LibraryModel:
    if request.param == "alone":
        let_answer(monkeypatch, together_=False)
    settings = {"temperature": 0.0, "top_k": 30}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(platform, "prefill_chunk", lambda nbytes: CHUNK)
    return LibraryModel.of(
        TextAdapter, Checkpoint("tiny", tmp_path, "text", "llama"), model, byte_tokenizer(), 1
    )


Outcome = tuple[str, int, int, Any]


class TextRequest:
    """One request to a `LibraryModel`, as a task of the engine."""

    def __init__(self, model: LibraryModel, prompt: str, **sampling: Any) -> None:
        self.request = GenerationRequest(prompt=prompt, sampling=Sampling(**sampling))
        self.model = model
        self.cancel = CancelToken()
        self.chunks: list[GenerationChunk] = []
        self.report: Callable[[GenerationChunk], None] = self.chunks.append
        self.reason: str = ""
        self.error: BaseException | None = None

    def failed(self, error: BaseException) -> None:
        self.error = error

    def steps(self) -> Generator[None, None, None]:
        generation = self.model.generate(self.request, cancel=self.cancel, report=self.report)
        self.reason = yield from generation

    @property
    def outcome(self) -> Outcome:
        text = "".join(chunk.text for chunk in self.chunks)
        last = self.chunks[-1]
        return text, last.completion_tokens, last.prompt_tokens, self.reason


def ask(*questions: TextRequest) -> list[Outcome]:
    engine = Engine(threaded=False)
    for each in questions:
        engine.submit(each.steps(), each.failed)
    while engine.step():
        pass
    return [each.outcome for each in questions if each.chunks]


def mlx_lm_text(model: Any, prompt: str, count: int) -> Outcome:
    from mlx_lm.generate import stream_generate

    tokenizer = byte_tokenizer()
    pieces = list(
        stream_generate(model, tokenizer, prompt, max_tokens=count, prefill_step_size=CHUNK)
    )
    last = pieces[-1]
    whole = "".join(piece.text for piece in pieces)
    return whole, last.generation_tokens, last.prompt_tokens, last.finish_reason


PROMPTS = ["Hi", "What is it?", "é", "Why is the sky blue at noon, and red at night?", "12 + 30 ="]


def test_text_and_token_counts_equal_raw_mlx_lm(text_model: LibraryModel, model: Any) -> None:
    asked = [(prompt, count) for prompt in PROMPTS for count in (1, 40)]
    expected = [mlx_lm_text(model, prompt, count) for prompt, count in asked]
    assert {outcome[3] for outcome in expected} == {"stop", "length"}, "both ends are seen"
    questions = [TextRequest(text_model, prompt, max_tokens=count) for prompt, count in asked]
    assert ask(*questions) == expected
    for question in questions:
        read = [chunk.prompt_read for chunk in question.chunks if chunk.phase == "prefill"]
        total = question.chunks[-1].prompt_tokens
        assert (read, read[-1]) == (sorted(read), total)
        written = [c.completion_tokens for c in question.chunks if c.phase == "decode"]
        assert written == list(range(1, len(written) + 1))


def test_seed_gives_the_same_answer_alone_and_in_a_batch(text_model: LibraryModel) -> None:
    def question(seed: int) -> TextRequest:
        return TextRequest(text_model, "Hi", temperature=1.0, seed=seed, max_tokens=20)

    alone = [ask(question(seed))[0] for seed in range(4)]
    assert ask(*(question(seed) for seed in range(4))) == alone
    assert len(set(alone)) == 4
    unseeded = [
        ask(TextRequest(text_model, "Hi", temperature=1.0, max_tokens=20)) for _ in range(2)
    ]
    assert unseeded[0] != unseeded[1]


def test_cancelled_request_frees_its_slot(text_model: LibraryModel, model: Any) -> None:
    questions = [TextRequest(text_model, prompt, max_tokens=9) for prompt in PROMPTS]
    engine = Engine(threaded=False)
    for each in questions:
        engine.submit(each.steps(), each.failed)
    questions[3].cancel.cancel()
    steps = 0
    while engine.step():
        steps += 1
        if questions[0].chunks and questions[0].chunks[-1].completion_tokens == 3:
            questions[0].cancel.cancel()
    for at in (0, 3):
        assert isinstance(questions[at].error, Cancelled)
    for at in (1, 2, 4):
        assert questions[at].outcome == mlx_lm_text(model, PROMPTS[at], 9)
    assert not text_model._answering.batch, "nobody is left in it"


@pytest.mark.parametrize("text_model", ["together"], indirect=True)
def test_batch_size_is_limited_by_memory(text_model: LibraryModel, model: Any) -> None:
    questions = [TextRequest(text_model, "What is it?", max_tokens=9) for _ in range(6)]
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = {"num_hidden_layers": 4, "hidden_size": 64, **heads}
    assert text_model._answering.batch is not None
    held = text_model._answering.batch.limits.held
    tokens = {"prompt_tokens": len(byte_tokenizer().encode("What is it?")), "max_tokens": 9}
    one = estimate_request(ModelDimensions.of(config), **tokens, chunk=CHUNK, itemsize=4)
    # Two prompts may fill a chunk together.
    limit = 2 * one.cache + min(2 * one.reading, one.joint_reading)
    most: list[int] = []

    def memory() -> platform.Memory:
        most.append(held())
        return platform.Memory(held(), 0, limit)

    text_model._admission = MemoryAdmission(
        "tiny", config, chunk=CHUNK, memory=memory, queue=AdmissionQueue()
    )
    expected = mlx_lm_text(model, "What is it?", 9)
    assert ask(*questions) == [expected] * 6
    assert one.cache < max(most) <= limit, "two at a time"
    waited = [each for each in questions if any(c.phase == "queued" for c in each.chunks)]
    assert waited == questions[2:]


class DelayedInputs:
    """Prompts that are tokenized concurrently and finish in a given order."""

    def __init__(self, inputs: Any, delays: dict[str, int]) -> None:
        self._inputs, self._delays = inputs, delays

    def start_tokenizing(self, request: GenerationRequest, cancel: CancelToken) -> Any:
        made = self._inputs.start_tokenizing(request, cancel)

        def late(cancel: CancelToken) -> Generator[None, None, list[int]]:
            for _ in range(self._delays[request.prompt]):
                cancel.checkpoint()
                yield
            tokens: list[int] = yield from made.result(cancel)
            return tokens

        return SimpleNamespace(result=late)


@pytest.mark.parametrize("text_model", ["alone"], indirect=True)
@pytest.mark.parametrize("delays", list(itertools.permutations((0, 3, 9))))
def test_model_without_batching_answers_in_request_order(
    text_model: LibraryModel, delays: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: Any = text_model._adapter
    late = DelayedInputs(adapter._inputs, dict(zip(PROMPTS, delays, strict=False)))
    monkeypatch.setattr(adapter, "_inputs", late)
    order: list[str] = []
    questions = [TextRequest(text_model, prompt, max_tokens=5) for prompt in PROMPTS[:3]]
    for each in questions:
        each.report = lambda chunk, each=each: order.append(each.request.prompt)  # type: ignore[misc]
    ask(*questions)
    begun = order[len(questions) :]
    assert [prompt for prompt, _ in itertools.groupby(begun)] == PROMPTS[:3]


@pytest.mark.parametrize("text_model", ["alone"], indirect=True)
def test_request_cancelled_during_tokenization_does_not_block_others(
    text_model: LibraryModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter: Any = text_model._adapter
    late = DelayedInputs(adapter._inputs, {"Hi": 1_000_000, "What is it?": 0})
    monkeypatch.setattr(adapter, "_inputs", late)
    first, second = (TextRequest(text_model, prompt, max_tokens=3) for prompt in PROMPTS[:2])
    engine = Engine(threaded=False)
    for each in (first, second):
        engine.submit(each.steps(), each.failed)
    for _ in range(20):
        engine.step()
    assert not [chunk for chunk in second.chunks if chunk.text]
    first.cancel.cancel()
    while engine.step():
        pass
    assert isinstance(first.error, Cancelled)
    assert second.outcome[:1] == mlx_lm_text(model, "What is it?", 3)[:1]


def test_overflow_is_an_error_of_one_line_for_one_request(
    text_model: LibraryModel, model: Any
) -> None:
    watched = RecordingModel(model, spoil=byte_tokenizer().encode("!")[0])
    settled = LibraryModel.of(
        TextAdapter,
        Checkpoint("tiny", Path("/nowhere"), "text", "llama"),
        watched,
        byte_tokenizer(),
        1,
    )
    questions = [TextRequest(settled, prompt, max_tokens=3) for prompt in ("Hi!", "What is it?")]
    ask(*questions)
    assert isinstance(questions[0].error, GenerationError)
    assert "overflowed" in str(questions[0].error)
    assert questions[1].outcome[:1] == mlx_lm_text(model, "What is it?", 3)[:1]
