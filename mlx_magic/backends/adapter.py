"""Protocol of the part of a loaded model in which the libraries differ."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlx_magic.backends.base import PrefetchFunction
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.forward import ForwardModel, Inputs
from mlx_magic.backends.batching.sampling import LogitsProcessor, SamplingParams
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.chat_templates.reasoning import ReasoningStream
from mlx_magic.backends.given_answers.frame import AnswerFrame
from mlx_magic.backends.given_answers.tokens import AnswerTokens
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix, CacheKind, PromptCache
from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.places.grounding import Grounding
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.upstream_checks import Mechanism


@dataclass(slots=True)
class Prompt:
    """A tokenized request.

    Attributes
    ----------
    tokens : list of int
    image_tokens : int
        How many of the tokens stand for images.
    inputs : mapping
        The processor's output; empty for a text model.
    image_end : int
        Position after the last image token; 0 without images, or if it is not known.
    image_keys : ImageKeys or None
        Keys of the inputs other than text, within `ModelAdapter.keyed`.
    frame : AnswerFrame or None
        What the template puts around an answer; only for a request with choices.
    """

    tokens: list[int]
    image_tokens: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    image_end: int = 0
    image_keys: ImageKeys | None = None
    frame: AnswerFrame | None = None


class Detokenizer(Protocol):
    """Text of an answer, token by token."""

    @property
    def last_segment(self) -> str:
        """Text since the last read of this property."""

    def add_token(self, token: int) -> None:
        """Add a token."""

    def finalize(self) -> None:
        """End the text."""


class ModelAdapter(Protocol):
    """Tokenizing, embedding and streaming of one loaded model, and its caches.

    On the inference thread, but for `prefetch` and `stats`.
    """

    @property
    def library(self) -> str:
        """Name of the library."""

    @property
    def forward(self) -> ForwardModel:
        """The forward pass."""

    @property
    def joint_tokens(self) -> int:
        """Tokens that may be read in one call with the last one. See `PrefillBatch`."""

    @property
    def sees_images(self) -> bool:
        """Whether the model takes images."""

    @property
    def prompt_cache(self) -> PromptCache:
        """The prefix cache."""

    @property
    def prefetch(self) -> PrefetchFunction | None:
        """See `LoadedModel.prefetch`."""

    @property
    def stats(self) -> CacheStats:
        """Statistics of the caches; safe from any thread."""

    def prompt(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> Generator[None, None, Prompt]:
        """Tokenize a request, in slices.

        Raises
        ------
        Cancelled, GenerationError
        """

    def keyed(self, request: GenerationRequest, prompt: Prompt) -> AbstractContextManager[None]:
        """Set `Prompt.image_keys` within this block."""

    def seen_sizes(self, request: GenerationRequest, prompt: Prompt) -> tuple[str, ...] | None:
        """Return the size at which the model sees each image of the request's own turn.

        Empty if the inputs do not tell; None without images.
        """

    def grounding(self, request: GenerationRequest, prompt: Prompt) -> Grounding | None:
        """Return what coordinates in the answer depend on; None if the model sees no images."""

    def marked(self, tokens: list[int]) -> str:
        """Return an answer with the special tokens that mark places; ``""`` if it has none."""

    def fewer_image_tokens(self, prompt: Prompt, max_pixels: int) -> int | None:
        """Return how many image tokens ``max_pixels`` would leave; None if it has no effect."""

    def start(self, prompt: Prompt) -> CachedPrefix:
        """Look a prompt up in the prefix cache."""

    def waiting(self, prompt: Prompt, start: CachedPrefix) -> AbstractContextManager[None]:
        """Within this block, a request that makes its embeddings may encode this one's images."""

    def embed(self, prompt: Prompt, start: CachedPrefix, active: ActiveRequest) -> Inputs:
        """Return the model's inputs after the cached prefix; `start` is reset if it is of no use.

        Raises
        ------
        Cancelled
        """

    def probe(self, text: str) -> list[int]:
        """Return the tokens of a text without a template, for the comparison of the weights."""

    def probe_inputs(self, tokens: list[int]) -> Inputs:
        """Return the model's inputs for such tokens."""

    def probe_logits(self, tokens: list[int]) -> Any:
        """Return the logits of such tokens, shape (tokens, vocabulary), read in one call."""

    def sampling_params(self, sampling: Sampling) -> SamplingParams:
        """Return sampling parameters, with the checkpoint's as defaults."""

    def reasoning(self, prompt: Prompt) -> ReasoningStream | None:
        """Return what separates the thoughts of an answer; None if the model has no marks."""

    @property
    def reasons(self) -> bool:
        """Whether the model may write thoughts before its answer."""

    def answer_tokens(self, prompt: Prompt, labels: Sequence[str]) -> AnswerTokens:
        """Return the tokens of answers as they would stand after a prompt with choices.

        Raises
        ------
        GenerationError
            An answer has a control token.
        """

    def detokenizer(self) -> Detokenizer:
        """Return a new detokenizer."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end an answer, as far as they are known."""

    def streaming(
        self,
        prompt: Prompt,
        active: ActiveRequest,
        caches: list[Any],
        processors: list[LogitsProcessor],
    ) -> AbstractContextManager[Iterator[Any]]:
        """Answer through the library's own generation, with exclusive use of the model.

        Parameters
        ----------
        prompt : Prompt
        active : ActiveRequest
        caches : list
            One per layer.
        processors : list of callable
            Logits processors, besides those of the sampling parameters.

        Yields
        ------
        iterator
            Its items have ``text``, ``token``, ``generation_tokens`` and ``finish_reason``.
        """

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""

    def forget(self) -> int:
        """Clear the caches; return the bytes that they held."""

    def close(self) -> None:
        """Release the model."""


class AdapterKind(Protocol):
    """The adapter class of one library."""

    library: str
    caches: Mechanism

    def language_model(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Return the part of a model that decodes, and its configuration.

        What the library's batches need of the tokenizer or processor is checked here.
        """

    def __call__(
        self,
        checkpoint: Checkpoint,
        model: Any,
        tokenizer: Any,
        /,
        *,
        kind: CacheKind | None,
        chunk: int,
        nbytes: int,
    ) -> ModelAdapter:
        """Make an adapter.

        Parameters
        ----------
        checkpoint : Checkpoint
        model, tokenizer : object
            As the library loads them; the processor for a vision model.
        kind : {"plain", "states"} or None
            See `PromptCache`.
        chunk, nbytes : int
            Prompt tokens per prefill chunk; bytes of the weights.
        """
