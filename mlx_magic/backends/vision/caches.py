"""All caches of one vision model: features, processor outputs and prompt prefixes.

A language model may store positions of a prompt in itself: they must not leak into another prompt.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from mlx_magic.backends import upstream
from mlx_magic.backends.batching import kv_cache
from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.prefix_cache.fingerprints import as_numpy
from mlx_magic.backends.prefix_cache.prompt_cache import (
    CachedPrefix,
    CacheKind,
    PromptCache,
    reuse_limit,
)
from mlx_magic.backends.prefix_cache.prompt_keys import ImageKeys, prompt_keys_of
from mlx_magic.backends.vision.image_cache.feature_cache import FeatureCache, OnGroup, WaitingImages
from mlx_magic.backends.vision.image_cache.processor_cache import ProcessorCache


class StoredState:
    """Attributes of a language model that a prompt may change.

    Some models store the positions of the last prompt, and a later prompt after a cached prefix
    would get wrong ones, unless it hands over its own. mlx-vlm's names for them are known. Since a
    release may rename them, all other plain attributes are compared around a prompt, too.

    Parameters
    ----------
    language_model : module or None
    """

    def __init__(self, language_model: Any) -> None:
        # Not the model itself: an unloaded one must be freed without a search for cycles.
        self._model = _weakly(language_model)
        self._before: dict[str, Any] | None = None
        self.has_positions = upstream.keeps_positions(language_model)

    def look(self) -> None:
        """Remember the attributes, before a prompt."""
        if self._before is None:
            self._before = self._attributes()

    def is_unchanged(self) -> bool:
        """Whether no attribute has changed since `look`."""
        now = self._attributes()
        before = self._before if self._before is not None else now
        changed = before.keys() != now.keys() or any(
            before[name] is not value for name, value in now.items()
        )
        if changed:
            upstream.VISION_PREFIXES.turn_off("keeps positions of a prompt under other names")
        return not changed

    def forget(self) -> None:
        """Release the attributes."""
        self._before = None

    def _attributes(self) -> dict[str, Any]:
        # A module of MLX keeps arrays among its parts, and anything else as attributes.
        model = self._model()
        found = {**getattr(model, "__dict__", {}), **dict(_items(model))}
        return {name: value for name, value in found.items() if name not in upstream.POSITIONS}


def _weakly(thing: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(thing)
    except TypeError:  # None, or an object without weak references
        return lambda: thing


def _items(module: Any) -> Any:
    return module.items() if isinstance(module, dict) else ()


T = TypeVar("T")

SHARE_OF_IMAGES = 1 / 4
"""Share of the feature cache; the prefix cache gets most of the rest."""

SHARE_OF_INPUTS = 1 / 4
"""Share of the image processor's outputs."""


CUT_BY_MODEL = frozenset(
    {"position_ids", "rope_deltas", "visual_pos_masks", "deepstack_visual_embeds"}
    | {"per_layer_inputs"}
)
"""Inputs that the language models of mlx-vlm cut at the number of cached tokens, and under which
no token depends on later ones (read in mlx-vlm 0.7.10: the Qwen-VL families, gemma3n, gemma4)."""


class VisionCaches:
    """Image features, processor outputs and prompt prefixes of one model.

    Prompts are cached for models that are batched (their KV caches are plain ones) and whose
    ``get_input_embeddings`` returns nothing that makes a token depend on later ones: embeddings,
    rotary positions in three parts, features for deeper layers. See `may_follow_prefix`. Other
    models read each prompt from its start.

    Parameters
    ----------
    model : module
    nbytes : int
        Bytes of its weights.
    kind : {"plain", "states"} or None
        See `PromptCache`.

    Attributes
    ----------
    processor_cache : ProcessorCache
        Outputs of the image processor.
    prompt_cache : PromptCache
    """

    def __init__(self, model: Any, nbytes: int, *, kind: CacheKind | None) -> None:
        self._limit = reuse_limit(nbytes)
        self._features = FeatureCache(int(self._limit * SHARE_OF_IMAGES))
        self.processor_cache = ProcessorCache(int(self._limit * SHARE_OF_INPUTS))
        self._stored = StoredState(getattr(model, "language_model", None))
        self.prompt_cache = PromptCache(
            self._limit - self._features.limit - self.processor_cache.limit,
            kind=kind,
            may_keep=self._stored.is_unchanged,
            trim=kv_cache.trimmed,
        )
        self._ignored = upstream.ignored_inputs(getattr(model, "language_model", None))
        config = getattr(model, "config", None)
        named = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
        self._image_token = next((token for token in named if isinstance(token, int)), None)

    @property
    def counts(self) -> CacheStats:
        """Counts and bytes; safe from any thread."""
        features, prefixes = self._features, self.prompt_cache
        return CacheStats(
            image_hits=features.hits,
            image_misses=features.misses,
            image_bytes=features.nbytes,
            input_bytes=self.processor_cache.nbytes,
            prefix_hits=prefixes.hits,
            prefix_misses=prefixes.misses,
            prefix_bytes=prefixes.nbytes,
            limit_bytes=self._limit,
        )

    def encode(
        self, model: Any, embed: Callable[[], T], on_group: OnGroup, image_keys: ImageKeys | None
    ) -> T:
        """Make embeddings, and encode new images only. See `FeatureCache.encode`."""
        return self._features.encode(model, embed, on_group, image_keys=image_keys)

    def encode_together(self, model: Any, waiting: Sequence[WaitingImages]) -> None:
        """Encode the images of several requests in one call. See `FeatureCache`."""
        self._features.encode_together(model, waiting)

    def forget_ahead(self) -> None:
        """Drop encoder outputs that no request waits for any more."""
        self._features.forget_ahead()

    def start(self, inputs: Mapping[str, Any], image_keys: ImageKeys | None) -> CachedPrefix:
        """Look a prompt up in the prefix cache."""
        self._stored.look()
        return self.prompt_cache.start(
            lambda: prompt_keys_of(inputs, self._image_token, image_keys)
        )

    def image_end(self, tokens: Sequence[int]) -> int:
        """Return the position after the last image token; 0 without images."""
        if self._image_token is None or self._image_token not in tokens:
            return 0
        return len(tokens) - list(reversed(tokens)).index(self._image_token)

    @property
    def keeps_positions(self) -> bool:
        """Whether the model stores the positions of the last prompt."""
        return self._stored.has_positions

    def without_ignored(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the inputs that the language model reads."""
        return {name: value for name, value in inputs.items() if name not in self._ignored}

    def may_follow_prefix(self, extra: Collection[str]) -> bool:
        """Whether a prompt with these inputs beside its embeddings can follow a cached prefix.

        A cached prefix is then the same as the end of a prefill chunk: the model gets these inputs
        whole, and cuts them at the number of cached tokens.
        """
        if not CUT_BY_MODEL.issuperset(extra):
            return False
        return not self.keeps_positions or "position_ids" in extra

    def has_images(self, inputs: Mapping[str, Any], start: int) -> bool:
        """Whether a prompt has image tokens at or after position `start`."""
        if inputs.get("pixel_values") is None:
            return False
        tokens = as_numpy(inputs["input_ids"]).reshape(-1)[start:]
        return self._image_token is None or bool((tokens == self._image_token).any())

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        self._features.hits = self._features.misses = 0
        self.prompt_cache.reset_counts()

    def forget(self) -> int:
        """Clear all caches; return the bytes that they held."""
        size = self.counts.nbytes
        self._features.clear()
        self.prompt_cache.clear()
        self._stored.forget()
        self.processor_cache.clear()
        return size
