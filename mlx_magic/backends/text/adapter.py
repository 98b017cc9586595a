"""A text model as mlx-lm loads it: tokenizing, streaming and caches."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.adapter import Prompt
from mlx_magic.backends.batch_check.policy import batch_policy
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.forward import Inputs
from mlx_magic.backends.batching.memory_estimate import ModelDimensions
from mlx_magic.backends.batching.sampling import SamplingParams, processors, sampler_of_one
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.chat_templates.reasoning import (
    TAIL_TOKENS,
    ReasoningStream,
    marks_of,
    template_source,
)
from mlx_magic.backends.model import LibraryModel
from mlx_magic.backends.prefix_cache.prompt_cache import (
    CachedPrefix,
    CacheKind,
    PromptCache,
    reuse_limit,
)
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys
from mlx_magic.backends.text.forward import TextForward
from mlx_magic.backends.text.inputs import TextInputs
from mlx_magic.backends.text.sampling_defaults import generation_config, sampling_params
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.models.checkpoints.checkpoint import Checkpoint


class TextAdapter:
    """See `ModelAdapter`.

    Parameters
    ----------
    checkpoint : Checkpoint
    model, tokenizer : object
        As mlx-lm loads them.
    kind : {"plain", "states"} or None
        See `PromptCache`.
    chunk, nbytes : int
        Prompt tokens per prefill chunk; bytes of the weights.
    """

    library = "mlx-lm"
    sees_images = False
    joint_tokens = 0
    prefetch = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        tokenizer: Any,
        *,
        kind: CacheKind | None,
        chunk: int,
        nbytes: int,
    ) -> None:
        self.forward = TextForward(model, getattr(tokenizer, "eos_token_ids", ()))
        self.prompt_cache = PromptCache(reuse_limit(nbytes), kind=kind)
        self._defaults = generation_config(checkpoint)
        self._inputs = TextInputs(tokenizer, checkpoint.name)
        self._model = model
        self._tokenizer = tokenizer
        self._chunk = chunk
        self._marks = marks_of(
            template_source(tokenizer) or _marks_of_code(tokenizer),
            str(checkpoint.config.get("model_type", "")),
        )
        self._shape = ModelDimensions.of(checkpoint.config)

    @property
    def stats(self) -> CacheStats:
        """Statistics of the prefix cache."""
        held = self.prompt_cache
        return CacheStats(
            prefix_hits=held.hits,
            prefix_misses=held.misses,
            prefix_bytes=held.nbytes,
            limit_bytes=held.limit,
        )

    def prompt(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, Prompt]:
        """Tokenize a request; the chat template renders on a background thread."""
        tokenizing = self._inputs.start_tokenizing(request, cancel)
        yield
        return Prompt((yield from tokenizing.result(cancel)))

    def keyed(
        self, request: GenerationRequest, prompt: Prompt
    ) -> contextlib.AbstractContextManager[None]:
        """Do nothing: a text model has no images."""
        return contextlib.nullcontext()

    def seen_sizes(self, request: GenerationRequest, prompt: Prompt) -> None:
        """Return None: a text model has no images."""

    def fewer_image_tokens(self, prompt: Prompt, max_pixels: int) -> None:
        """Return None: a text model has no images."""

    def start(self, prompt: Prompt) -> CachedPrefix:
        """Look a prompt up in the prefix cache."""
        return self.prompt_cache.start(lambda: PromptKeys(list(prompt.tokens)))

    def embed(self, prompt: Prompt, start: CachedPrefix, active: ActiveRequest) -> Inputs:
        """Return no inputs: a text model reads tokens."""
        return {}

    def probe(self, text: str) -> list[int]:
        """Return the tokens of a text without a template."""
        tokens: list[int] = self._tokenizer.encode(text)
        return tokens

    def probe_inputs(self, tokens: list[int]) -> Inputs:
        """Return no inputs: a text model reads tokens."""
        return {}

    def probe_logits(self, tokens: list[int]) -> Any:
        """Return the logits of such tokens, read in one call."""
        import mlx.core as mx

        with mx.stream(self.forward.stream):
            logits = self._model(mx.array([tokens]), cache=self.forward.new_caches())[0]
            mx.eval(logits)
        return logits

    def sampling_params(self, sampling: Sampling) -> SamplingParams:
        """Return sampling parameters, with the checkpoint's as defaults."""
        return sampling_params(sampling, self._defaults)

    def reasoning(self, prompt: Prompt) -> ReasoningStream | None:
        """Return what separates the thoughts of an answer. See `ModelAdapter.reasoning`."""
        if not self._marks:
            return None
        return ReasoningStream(self._marks, self._tokenizer.decode(prompt.tokens[-TAIL_TOKENS:]))

    def detokenizer(self) -> Any:
        """Return a new detokenizer: the property makes one each time."""
        return self._tokenizer.detokenizer

    @contextlib.contextmanager
    def streaming(
        self, prompt: Prompt, active: ActiveRequest, caches: list[Any]
    ) -> Iterator[Iterator[Any]]:
        """Answer through mlx-lm's own generation. See `ModelAdapter.streaming`."""
        from mlx_lm import stream_generate

        def read(done: int, total: int) -> None:
            active.cancel.checkpoint()
            active.report_prefill(done)

        stream = stream_generate(
            self._model,
            self._tokenizer,
            prompt.tokens,
            max_tokens=active.sampling.max_tokens,
            sampler=sampler_of_one(self.sampling_params(active.sampling)),
            logits_processors=processors(active.sampling, len(prompt.tokens)),
            prefill_step_size=self._chunk,
            prompt_progress_callback=read,
            **kv_cache.library_options(caches, active.request.kv_bits, self._shape),
        )
        with contextlib.closing(stream):
            yield stream

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        self.prompt_cache.reset_counts()

    def forget(self) -> int:
        """Clear the prefix cache; return the bytes that it held."""
        size = self.prompt_cache.nbytes
        self.prompt_cache.clear()
        return size

    def close(self) -> None:
        """Release the model."""
        self._model = self._tokenizer = None
        self.forward.close()


def _marks_of_code(tokenizer: Any) -> str:
    """Return the reasoning marks that mlx-lm knows, if its own code renders the prompts."""
    if not getattr(tokenizer, "has_chat_template", False):
        return ""
    return f"{tokenizer.think_start or ''}{tokenizer.think_end or ''}"


def text_model(
    checkpoint: Checkpoint, model: Any, tokenizer: Any, nbytes: int, *, began: float | None = None
) -> LibraryModel:
    """Return the loaded model of what mlx-lm has loaded.

    Parameters
    ----------
    checkpoint : Checkpoint
    model, tokenizer : object
        As mlx-lm loads them.
    nbytes : int
        Bytes of the weights.
    began : float, optional
        Start of the load, in seconds of `time.monotonic`.
    """
    caches = kv_cache.made(upstream.TEXT_CACHES, model)
    policy = batch_policy("mlx-lm", checkpoint, model, getattr(model, "args", None), caches)
    adapter = TextAdapter(
        checkpoint,
        model,
        tokenizer,
        kind=policy.cache_kind(caches),
        chunk=policy.chunk(nbytes),
        nbytes=nbytes,
    )
    return LibraryModel(checkpoint, adapter, policy, nbytes, began=began)
