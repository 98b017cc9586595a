"""Calls of a vision model, as mlx-vlm makes them: embeddings, prefill and decode.

mlx-vlm's own prefill has neither cancellation points nor progress; hooks add both.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.batching.active_request import ActiveRequest
from mlx_magic.backends.batching.forward import Inputs, Row
from mlx_magic.backends.batching.kv_cache import leaf_caches
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.prompt_cache import CachedPrefix
from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys
from mlx_magic.backends.vision import joint_inputs
from mlx_magic.backends.vision.caches import VisionCaches
from mlx_magic.backends.vision.image_cache.feature_cache import WaitingImages
from mlx_magic.cancellation import CancelToken

STORED = "stored_positions"
"""Key of `Inputs` for positions that the model keeps in itself instead of returning them."""


class VisionForward:
    """See `ForwardModel`.

    Each call gets the inputs of the prompt uncut, as in mlx-vlm's `stream_generate`. mlx-vlm's
    own batch cuts masks to each chunk, but not the features that the masks select: from the
    second chunk on qwen3_vl would get the features of the first (mlx-vlm 0.7.10).

    Parameters
    ----------
    language_model : module
    is_stop_token : callable or None
        Whether a token ends an answer. None only if requests are never batched.
    """

    def __init__(self, language_model: Any, is_stop_token: Any) -> None:
        self._model = language_model
        self._is_stop_token = is_stop_token

    @property
    def stream(self) -> Any:
        """The MLX stream on which mlx-vlm runs its models."""
        return upstream.VISION_BATCHES.names.generation_stream

    def new_caches(self) -> list[Any]:
        """Return empty caches of one request. See `ForwardModel`."""
        return kv_cache.made(upstream.VISION_CACHES, self._model)

    def is_stop_token(self, token: int) -> bool:
        """Whether a token ends an answer."""
        return bool(self._is_stop_token(token))

    def reads_in_chunks(self, tokens: Any, caches: list[Any], inputs: Inputs) -> bool:
        """Whether a prompt may be read in chunks, as the model's own policy says."""
        extra = {k: value for k, value in inputs.items() if k not in ("inputs_embeds", STORED)}
        return bool(
            upstream.VISION_BATCHES.names._chunked_prefill_enabled(
                self._model,
                input_ids=tokens,
                inputs_embeds=inputs.get("inputs_embeds"),
                prompt_cache=caches,
                prefill_kwargs=extra,
            )
        )

    def joins(self, inputs: Inputs) -> bool:
        """Whether a prompt with these inputs can share a prefill. See `ForwardModel`."""
        return joint_inputs.can_join(inputs)

    def columns(self, rows: Sequence[Row], width: int) -> Inputs:
        """Return the inputs of several prompts. See `ForwardModel`."""
        return joint_inputs.columns(rows, width)

    def prefill(self, tokens: Any, caches: list[Any], inputs: Inputs) -> None:
        """Read tokens that are not the last ones of their prompts."""
        self._call(tokens, caches, inputs, n_to_process=tokens.shape[1])

    def prefill_end(self, tokens: Any, caches: list[Any], inputs: Inputs, keep: int) -> Any:
        """Read the last tokens of prompts. See `ForwardModel`."""
        return self._call(tokens, caches, inputs, logits_to_keep=keep).logits

    def read_whole(self, tokens: Any, inputs: Inputs) -> Any:
        """Read prompts in one call; return all logits that the model gives."""
        return self._call(tokens, self.new_caches(), inputs).logits

    def position_offsets(self, inputs: Inputs, rows: int) -> Any:
        """Return what rotary positions in three parts add to the count of tokens."""
        import mlx.core as mx

        offsets = inputs.get("rope_deltas")
        if offsets is None and STORED in inputs:
            offsets = inputs[STORED].get(upstream.ROPE_DELTAS)
        elif offsets is None:
            if not hasattr(self._model, upstream.ROPE_DELTAS):
                return None
            offsets = getattr(self._model, upstream.ROPE_DELTAS)
        if offsets is None:
            return mx.zeros((rows, 1), dtype=mx.int32)
        return mx.broadcast_to(offsets.reshape(-1, 1)[:rows], (rows, 1))

    def decode(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read one token of each row; return logits."""
        return self.read_rows(tokens, caches, offsets)[:, -1]

    def read_rows(self, tokens: Any, caches: list[Any], offsets: Any) -> Any:
        """Read tokens of each row; return all logits. See `ForwardModel`."""
        extra = {} if offsets is None else {"rope_deltas": offsets}
        inner = getattr(self._model, "language_model", self._model)
        if offsets is not None:
            # Some models look at those that they have stored, even if they are handed others.
            upstream.restore_positions(inner, {upstream.ROPE_DELTAS: offsets})
        return inner(tokens, cache=caches, **extra).logits

    def _call(self, tokens: Any, caches: list[Any], inputs: Inputs, **options: Any) -> Any:
        """Read tokens, with the positions of this prompt in the model, which may update them."""
        stored = inputs.get(STORED)
        if stored is None:
            return self._model(tokens, cache=caches, **options, **inputs)
        given = {key: value for key, value in inputs.items() if key != STORED}
        upstream.restore_positions(self._model, stored)
        output = self._model(tokens, cache=caches, **options, **given)
        stored.update(upstream.stored_positions(self._model))
        return output

    def wired(self) -> AbstractContextManager[None]:
        """Wire the weights meanwhile. See `ForwardModel`."""
        names = upstream.VISION_BATCHES.names
        limit: AbstractContextManager[None] = names.wired_limit(self._model, [self.stream])
        return limit

    def close(self) -> None:
        """Release the model."""
        self._model = None


_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
"""Outputs of processors that say of each token whether it is text or of an image."""


def _takes(language: Any, name: str) -> bool:
    """Whether a language model, or the model within it, has a parameter of this name."""
    return any(
        name in inspect.signature(type(each).__call__).parameters
        for each in (language, getattr(language, "model", None))
        if each is not None
    )


class Embedder:
    """Makes embeddings after the cached prefix, and encodes only images that are not cached.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it.
    caches : VisionCaches
    """

    def __init__(self, model: Any, caches: VisionCaches) -> None:
        self._model = model
        self._caches = caches
        self._needs_whole = caches.keeps_positions
        self._waiting: dict[int, WaitingImages] = {}
        self._numbers = itertools.count()

    @contextlib.contextmanager
    def waiting(
        self, inputs: Mapping[str, Any], image_keys: ImageKeys | None, start: CachedPrefix
    ) -> Iterator[None]:
        """Let others encode the images of a request together with theirs, within this block.

        Images of the cached prefix need not be encoded.
        """
        number = next(self._numbers)
        if platform.images_at_once() > 1 and self._caches.has_images(inputs, start.count):
            self._waiting[number] = WaitingImages(partial(self._outputs, inputs), image_keys)
        try:
            yield
        finally:
            self._waiting.pop(number, None)
            if not self._waiting:
                self._caches.forget_ahead()

    def embeds(
        self,
        inputs: Mapping[str, Any],
        image_keys: ImageKeys | None,
        start: CachedPrefix,
        active: ActiveRequest,
    ) -> dict[str, Any]:
        """Return the language model's inputs after the cached prefix.

        Parameters
        ----------
        inputs : mapping
            The processor's output.
        image_keys : ImageKeys or None
        start : CachedPrefix
            Reset to no prefix if the prefix cannot be used.
        active : ActiveRequest
            Its token counts are updated.

        Returns
        -------
        dict
            ``inputs_embeds`` of shape (1, tokens, width), and the model's further outputs.

        Raises
        ------
        Cancelled
            Between two groups of images.
        """
        caches = self._caches
        # Without images after the prefix, the vision encoder need not run. But some models cut
        # further inputs themselves, and need those of the whole prompt: positions depend on all
        # images, whose features are cached.
        whole = not start.count or self._needs_whole or caches.has_images(inputs, start.count)
        suffix = {"input_ids": inputs["input_ids"][:, start.count :]}
        embeds = caches.without_ignored(
            self._embed(inputs if whole else suffix, image_keys, active)
        )
        embeds = {**self._token_types(inputs), **embeds}
        length = int(embeds["inputs_embeds"].shape[1]) + (0 if whole else start.count)
        extra = embeds.keys() - {"inputs_embeds"}
        # These are cut by the model, which then needs them of the whole prompt.
        self._needs_whole = self._needs_whole or bool(extra)
        if not caches.may_follow_prefix(extra) or length != active.prompt_tokens:
            # Something of the prompt depends on all of it: read it as a whole, do not cache it.
            if start.count:
                return self.embeds(inputs, image_keys, start.without_cache(), active)
            start.without_cache()
        if start.count and whole:
            embeds["inputs_embeds"] = embeds["inputs_embeds"][:, start.count :]
        active.expand_image_tokens(length)
        if caches.keeps_positions and "position_ids" not in extra:
            # The model has stored them in itself, where the next prompt's would replace them.
            embeds[STORED] = upstream.stored_positions(self._model.language_model)
        return embeds

    def _embed(
        self, inputs: Mapping[str, Any], image_keys: ImageKeys | None, active: ActiveRequest
    ) -> dict[str, Any]:
        """Let the model make embeddings; its vision encoder runs for new images only."""
        import mlx.core as mx

        def embed() -> dict[str, Any]:
            output = self._outputs(inputs)
            mx.eval(output.inputs_embeds)
            return {key: value for key, value in output.to_dict().items() if value is not None}

        with mx.stream(upstream.VISION_BATCHES.names.generation_stream):
            if self._waiting and inputs.get("pixel_values") is not None:
                self._encode_waiting(WaitingImages(partial(self._outputs, inputs), image_keys))
            return self._caches.encode(self._model, embed, active.vision_progress, image_keys)

    def _token_types(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the processor's types of tokens, if the language model's masks depend on them.

        With ``use_bidirectional_attention`` Gemma 4 lets the tokens of an image see each other:
        mlx-vlm's `stream_generate` hands on all outputs of the processor. Such a prompt is read
        in one piece. If the model's policy allows chunks, its masks are causal.
        """
        language = getattr(self._model, "language_model", None)
        given = {
            name: inputs[name]
            for name in _TOKEN_TYPES
            if inputs.get(name) is not None and _takes(language, name)
        }
        policy = getattr(language, "chunked_prefill_policy", None)
        if not given or (policy is not None and policy(prefill_kwargs=given)):
            return {}
        return given

    def _encode_waiting(self, first: WaitingImages) -> None:
        """Encode the images of requests that wait, with those of the first one."""
        others = [
            each for each in self._waiting.values() if each.image_keys is not first.image_keys
        ]
        if others:
            some = [first, *others[: platform.images_at_once() - 1]]
            self._caches.encode_together(self._model, some)

    def _outputs(self, inputs: Mapping[str, Any]) -> Any:
        """Return what the model makes of a processor's output."""
        extra = {
            key: value
            for key, value in inputs.items()
            if key not in ("input_ids", "pixel_values", "mask")
        }
        return self._model.get_input_embeddings(
            inputs["input_ids"], inputs.get("pixel_values"), mask=inputs.get("mask"), **extra
        )


@contextlib.contextmanager
def cancellable_prefill(
    caches: list[Any], cancel: CancelToken, tokens_read: Callable[[int], None]
) -> Iterator[Callable[[], None]]:
    """Check `cancel` whenever a layer stores keys and values.

    An instance attribute overrides ``update_and_fetch``, so the cache's class is unchanged.
    Discard a cache whose update was cancelled.

    Parameters
    ----------
    caches : list of KV caches, one per layer
    cancel : CancelToken
    tokens_read : callable
        Takes the number of tokens stored so far, once per chunk.

    Yields
    ------
    callable
        Removes the hooks. Call it after prefill: the decode loop checks `cancel` itself.

    Raises
    ------
    Cancelled
        From within the model's forward pass.
    """
    layers = [c for c in leaf_caches(caches) if hasattr(c, "update_and_fetch")]

    def hook(cache: Any, first: bool) -> None:
        original = cache.update_and_fetch

        def update_and_fetch(*args: Any, **kwargs: Any) -> Any:
            cancel.checkpoint()
            if first:
                tokens_read(int(getattr(cache, "offset", 0)))
            return original(*args, **kwargs)

        cache.update_and_fetch = update_and_fetch

    def remove_hooks() -> None:
        for cache in layers:
            cache.__dict__.pop("update_and_fetch", None)

    for index, cache in enumerate(layers):
        hook(cache, first=index == 0)
    try:
        yield remove_hooks
    finally:
        remove_hooks()


@contextlib.contextmanager
def replaced(obj: Any, name: str, value: Any) -> Iterator[None]:
    """Override a method by an instance attribute within this block."""
    setattr(obj, name, value)
    try:
        yield
    finally:
        delattr(obj, name)
