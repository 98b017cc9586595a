"""A text model as mlx-lm loads it: tokenizing, forward pass, streaming and caches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.adapter import Prompt
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.forward import Inputs, Row
from mlx_magic.backends.batching.memory_estimate import ModelDimensions
from mlx_magic.backends.batching.sampling import (
    LogitsProcessor,
    SamplingParams,
    fresh_seed,
    sampler_of_one,
)
from mlx_magic.backends.batching.sampling import processors as sampling_processors
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.chat_templates import chat_messages, think_switch
from mlx_magic.backends.chat_templates.chat_messages import Message
from mlx_magic.backends.chat_templates.control_tokens import ControlTokens, Masked
from mlx_magic.backends.chat_templates.reasoning import (
    TAIL_TOKENS,
    ReasoningStream,
    marks_of,
    template_source,
)
from mlx_magic.backends.chat_templates.rendering import rendering
from mlx_magic.backends.given_answers.frame import TAIL, AnswerFrame, answer_frame
from mlx_magic.backends.given_answers.tokens import AnswerTokenizer, AnswerTokens
from mlx_magic.backends.loading.background import BackgroundCall, is_known
from mlx_magic.backends.prefix_cache.prompt_cache import (
    CachedPrefix,
    CacheKind,
    PromptCache,
    reuse_limit,
)
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.errors import CheckpointError
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError


class TextForward:
    """See `ForwardModel`.

    Parameters
    ----------
    model : module
        A model of mlx-lm.
    stop_tokens : collection of int
    """

    def __init__(self, model: Any, stop_tokens: Collection[int]) -> None:
        self._model = model
        self.stop_tokens = frozenset(stop_tokens)

    @property
    def stream(self) -> Any:
        """The MLX stream on which mlx-lm runs its models."""
        return upstream.TEXT_BATCHES.names.generation_stream

    def new_caches(self) -> list[Any]:
        """Return empty caches of one request. See `ForwardModel`."""
        return kv_cache.made(upstream.TEXT_CACHES, self._model)

    def is_stop_token(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return token in self.stop_tokens

    def reads_in_chunks(self, tokens: Any, caches: list[Any], inputs: Inputs) -> bool:
        """Return True: mlx-lm reads every prompt in chunks."""
        return True

    def joins(self, inputs: Inputs) -> bool:
        """Return whether there are tokens only, as always with mlx-lm."""
        return not inputs

    def columns(self, rows: Sequence[Row], width: int) -> Inputs:
        """Return nothing: there are tokens only."""
        return {}

    def prefill(self, tokens: Any, caches: list[Any], inputs: Inputs) -> None:
        """Read tokens that are not the last ones of their prompts."""
        self._model(tokens, cache=caches)

    def prefill_end(self, tokens: Any, caches: list[Any], inputs: Inputs, keep: int) -> Any:
        """Read the last tokens of prompts. See `ForwardModel`."""
        return self._model(tokens, cache=caches)

    def position_offsets(self, inputs: Inputs, rows: int) -> None:
        """Return None: text models count positions by tokens."""

    def decode(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read one token of each row; return logits."""
        return self._model(tokens, cache=caches)[:, -1]

    def read_rows(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read tokens of each row; return all logits. See `ForwardModel`."""
        return self._model(tokens, cache=caches)

    def wired(self) -> AbstractContextManager[None]:
        """Wire the weights meanwhile. See `ForwardModel`."""
        names = upstream.TEXT_BATCHES.names
        limit: AbstractContextManager[None] = names.wired_limit(self._model, [self.stream])
        return limit

    def close(self) -> None:
        """Release the model."""
        self._model = None


class TextInputs:
    """Tokenizes requests to one model.

    Parameters
    ----------
    tokenizer : object
        As mlx-lm loads it.
    model : str
        Name of the model, for messages.
    """

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._control = ControlTokens(tokenizer, model)

    def start_tokenizing(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> BackgroundCall[Prompt]:
        """Start to tokenize a request, on a background thread.

        The result raises `GenerationError` if the chat template refuses the request.
        """
        inner = upstream.inner_tokenizer(self._tokenizer)
        return BackgroundCall(
            partial(self._prompt, request, cancel), here=not is_known(self._tokenizer, inner)
        )

    def answer_tokens(
        self,
        labels: Sequence[str],
        frame: AnswerFrame,
        prompt: Sequence[int],
        is_stop_token: Callable[[int], bool],
    ) -> AnswerTokens:
        """Return the tokens of answers after a prompt. See `AnswerTokenizer.tokens`."""
        self._control.require_none(labels)
        return AnswerTokenizer(
            upstream.inner_tokenizer(self._tokenizer),
            frame,
            prompt,
            is_stop_token=is_stop_token,
            control=self._control.tokens,
            model=self._model,
        ).tokens(labels)

    def _prompt(self, request: GenerationRequest, cancel: CancelToken) -> Prompt:
        masked = self._control.masked(request)
        template_of = self._tokenizer
        # mlx-lm renders some models' prompts by its own code.
        if not getattr(template_of, "has_chat_template", template_of.chat_template is not None):
            # A base model has no chat template: it continues the text.
            if request.think is not None:
                raise think_switch.no_switch(request.think, model=self._model)
            text = _continued(masked.request)
            self._control.require_template(text, masked, _continued)
            lead = "" if text[-1:].isspace() else " "
            return Prompt(
                self._encode(text, masked),
                frame=None if request.choices is None else AnswerFrame(text[-TAIL:], lead),
            )
        messages = chat_messages.messages(masked.request)
        template = self._tokenizer.apply_chat_template

        extra: dict[str, Any] = {}

        def rendered(
            variant: GenerationRequest, more: Sequence[Message] = (), **arguments: Any
        ) -> str:
            text: str = template(
                [*chat_messages.messages(variant), *more],
                tokenize=False,
                **{"add_generation_prompt": True, **extra, **arguments},
            )
            return text

        with rendering(request, cancel, model=self._model):
            extra |= think_switch.arguments(
                request.think,
                template_source(self._tokenizer),
                self._tokenizer,
                lambda arguments: rendered(masked.request, **arguments),
                model=self._model,
                for_choices=request.choices is not None,
            )
            frame = None
            if not masked.words:
                tokens: list[int] = template(messages, add_generation_prompt=True, **extra)
                unchecked = len(messages) == 1 and not self._control.needs_template_check(masked)
                if unchecked and request.choices is None:
                    return Prompt(tokens)
            text = rendered(masked.request)
            self._control.require_template(text, masked, rendered)
            if request.choices is not None:
                frame = answer_frame(
                    text,
                    lambda more: rendered(masked.request, more, add_generation_prompt=False),
                )
        chat_messages.require_whole(text, masked.request, model=self._model)
        if masked.words:
            tokens = self._encode(text, masked, add_special_tokens=False)
        return Prompt(tokens, frame=frame)

    def _encode(self, text: str, masked: Masked, **options: Any) -> list[int]:
        tokens: list[int] = self._control.reading(masked).encode(text, **options)
        self._control.require_restored(tokens, masked)
        return tokens


def _continued(request: GenerationRequest) -> str:
    return "\n\n".join(message["content"] for message in chat_messages.messages(request))


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
    caches = upstream.TEXT_CACHES
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
        self.prompt_cache = PromptCache(reuse_limit(nbytes), kind=kind, trim=kv_cache.trimmed)
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

    @staticmethod
    def language_model(model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Return the model and its configuration. See `AdapterKind`."""
        return model, getattr(model, "args", None)

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
        return (yield from tokenizing.result(cancel))

    def keyed(
        self, request: GenerationRequest, prompt: Prompt
    ) -> contextlib.AbstractContextManager[None]:
        """Do nothing: a text model has no images."""
        return contextlib.nullcontext()

    def grounding(self, request: GenerationRequest, prompt: Prompt) -> None:
        """Return None: the model sees no images."""

    def marked(self, tokens: list[int]) -> str:
        """Return ``""``: answers have no places."""
        return ""

    def seen_sizes(self, request: GenerationRequest, prompt: Prompt) -> None:
        """Return None: a text model has no images."""

    def fewer_image_tokens(self, prompt: Prompt, max_pixels: int) -> None:
        """Return None: a text model has no images."""

    def start(self, prompt: Prompt) -> CachedPrefix:
        """Look a prompt up in the prefix cache."""
        return self.prompt_cache.start(lambda: PromptKeys(list(prompt.tokens)))

    def waiting(
        self, prompt: Prompt, start: CachedPrefix
    ) -> contextlib.AbstractContextManager[None]:
        """Return a block without effect: there are no images."""
        return contextlib.nullcontext()

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

    @property
    def reasons(self) -> bool:
        """Whether the model may write thoughts before its answer."""
        return bool(self._marks)

    def answer_tokens(self, prompt: Prompt, labels: Sequence[str]) -> AnswerTokens:
        """Return the tokens of answers after a prompt. See `ModelAdapter`."""
        frame = prompt.frame or AnswerFrame("")
        tokens: AnswerTokens = self._inputs.answer_tokens(
            labels, frame, prompt.tokens, self.forward.is_stop_token
        )
        return tokens

    def detokenizer(self) -> Any:
        """Return a new detokenizer: the property makes one each time."""
        return self._tokenizer.detokenizer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return upstream.inner_tokenizer(self._tokenizer)

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.forward.stop_tokens

    @contextlib.contextmanager
    def streaming(
        self,
        prompt: Prompt,
        active: ActiveRequest,
        caches: list[Any],
        processors: list[LogitsProcessor],
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
            max_tokens=active.request.sampling.max_tokens,
            sampler=sampler_of_one(self.sampling_params(active.request.sampling)),
            logits_processors=[
                *sampling_processors(active.request.sampling, len(prompt.tokens)),
                *processors,
            ],
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


def sampling_params(sampling: Sampling, defaults: Mapping[str, Any]) -> SamplingParams:
    """Return the sampling parameters of a request, with the checkpoint's as defaults.

    Parameters
    ----------
    sampling : Sampling
    defaults : mapping
        See `generation_config`.
    """

    def chosen(value: Any, key: str, fallback: Any) -> Any:
        return value if value is not None else defaults.get(key) or fallback

    greedy = defaults.get("do_sample") is False
    return SamplingParams(
        float(chosen(sampling.temperature, "" if greedy else "temperature", 0.0)),
        float(chosen(sampling.top_p, "top_p", 1.0)),
        int(chosen(sampling.top_k, "top_k", 0)),
        sampling.min_p or 0.0,
        fresh_seed() if sampling.seed is None else sampling.seed,
    )


def generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the checkpoint's generation_config.json; empty if there is none.

    Raises
    ------
    CheckpointError
        The file cannot be read.
    """
    path = checkpoint.path / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = strict_json.read(path)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{checkpoint.name}: {path} {error}: fetch the model again.",
            model=checkpoint.name,
        ) from error
    return config if isinstance(config, dict) else {}
