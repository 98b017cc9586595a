"""All caches of one vision model: features, processor outputs and prompt prefixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlx_magic.backends.cache_stats import CacheStats
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.fingerprints import as_numpy
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys, prompt_keys_of
from mlx_magic.backends.prefix_cache.radix_tree import PrefixCache, Rows
from mlx_magic.backends.vision.image_cache.feature_cache import FeatureCache, OnGroup
from mlx_magic.backends.vision.image_cache.processor_cache import ProcessorCache

T = TypeVar("T")

SHARE = 1 / 2
"""Maximum of a model's caches, as a share of the bytes of its weights."""

LEAST_BYTES = 64 * 2**20
"""Maximum of the caches of a small model."""

SHARE_OF_MEMORY = 1 / 8
"""Maximum of one model's caches, as a share of the machine's memory."""

SHARE_OF_IMAGES = 1 / 4
"""Share of the feature cache; the prefix cache gets most of the rest."""

SHARE_OF_INPUTS = 1 / 4
"""Share of the image processor's outputs."""


def reuse_limit(nbytes: int) -> int:
    """Return the maximum bytes of a model's caches.

    Half of the model's weights, at least 64 MiB, at most an eighth of the machine's memory.

    Parameters
    ----------
    nbytes : int
        Bytes of the weights.
    """
    memory = platform.total_memory()
    most = int(memory * SHARE_OF_MEMORY) if memory else LEAST_BYTES
    return min(max(int(nbytes * SHARE), LEAST_BYTES), max(most, 1))


@dataclass(slots=True)
class CachedPrefix:
    """The cached prefix of one prompt, after which prefill starts.

    Attributes
    ----------
    count : int
        Number of cached tokens.
    rows : list
        Keys and values of the cached tokens.
    prompt_keys : PromptKeys or None
        Keys of the prompt's tokens; None if the prompt must not be cached.
    """

    count: int = 0
    rows: Rows = field(default_factory=list)
    prompt_keys: PromptKeys | None = None

    def without_cache(self) -> CachedPrefix:
        """Start at the beginning of the prompt, and do not cache it."""
        self.count, self.rows, self.prompt_keys = 0, [], None
        return self

    def caches(self) -> list[Any] | None:
        """Return mlx-vlm's KV caches filled with the prefix; None if there is none."""
        from mlx_vlm.models.cache import KVCache

        if not self.count:
            return None
        made = []
        for keys, values in self.rows:
            cache = KVCache()
            cache.keys, cache.values, cache.offset = keys, values, self.count
            made.append(cache)
        self.rows = []
        return made


class VisionCaches:
    """Image features, processor outputs and prompt prefixes of one model.

    Prompts are cached for models that are batched (their KV caches are plain ones) and whose
    ``get_input_embeddings`` returns embeddings and nothing else: position ids, masks and features
    for deeper layers would have to be cut with the prompt. Other models read each prompt from
    its start.

    Parameters
    ----------
    model : module
    nbytes : int
        Bytes of its weights.
    prompts : bool
        Whether prompts may be cached at all.

    Attributes
    ----------
    processor_cache : ProcessorCache
        Outputs of the image processor.
    """

    def __init__(self, model: Any, nbytes: int, *, prompts: bool) -> None:
        self._limit = reuse_limit(nbytes)
        self._features = FeatureCache(int(self._limit * SHARE_OF_IMAGES))
        self.processor_cache = ProcessorCache(int(self._limit * SHARE_OF_INPUTS))
        self._prefixes = PrefixCache(
            self._limit - self._features.limit - self.processor_cache.limit
        )
        language = getattr(model, "language_model", None)
        # Such models store the positions of the last prompt in themselves.
        own_positions = hasattr(language, "_rope_deltas") or hasattr(language, "_position_ids")
        self._prompts = prompts and not own_positions
        config = getattr(model, "config", None)
        named = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
        self._image_token = next((token for token in named if isinstance(token, int)), None)

    @property
    def counts(self) -> CacheStats:
        """Counts and bytes; safe from any thread."""
        features, prefixes = self._features, self._prefixes
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

    def start(self, inputs: Mapping[str, Any], image_keys: ImageKeys | None) -> CachedPrefix:
        """Look a prompt up in the prefix cache."""
        found = prompt_keys_of(inputs, self._image_token, image_keys) if self._prompts else None
        if found is None:
            return CachedPrefix()
        count, rows = self._prefixes.find(found.keys)
        return CachedPrefix(count, rows, found)

    def has_images(self, inputs: Mapping[str, Any], start: int) -> bool:
        """Whether a prompt has image tokens at or after position `start`."""
        if inputs.get("pixel_values") is None:
            return False
        tokens = as_numpy(inputs["input_ids"]).reshape(-1)[start:]
        return self._image_token is None or bool((tokens == self._image_token).any())

    def keep(self, start: CachedPrefix, written: list[int], rows: Rows | None) -> None:
        """Add the prompt and the answer of a finished request to the prefix cache.

        Parameters
        ----------
        start : CachedPrefix
        written : list of int
            Tokens of the answer that `rows` covers.
        rows : list or None
            Keys and values after the cached prefix.
        """
        if start.prompt_keys is None or not rows:
            return
        keys = start.prompt_keys.followed_by(written)
        if rows[0][0].shape[2] == len(keys) - start.count:
            for fingerprint in start.prompt_keys.fingerprints:
                fingerprint.settle()
            self._prefixes.keep(keys, rows, start.count)

    def keep_partial(self, start: CachedPrefix, written: list[int], rows: Rows | None) -> None:
        """Add a request that a stop sequence ended to the prefix cache.

        Parameters
        ----------
        start : CachedPrefix
        written : list of int
            Tokens of the answer so far.
        rows : list or None
            Keys and values after the cached prefix. They cover the whole prompt, and more or
            fewer tokens of the answer than `written`; the part that both have is cached.
        """
        if start.prompt_keys is None or not rows:
            return
        prompt = len(start.prompt_keys.keys) - start.count
        both = min(rows[0][0].shape[2] - prompt, len(written))
        if both >= 0:
            end = prompt + both
            cut = [(keys[:, :, :end], values[:, :, :end]) for keys, values in rows]
            self.keep(start, written[:both], cut)

    def reset_counts(self) -> None:
        """Reset the counts of hits and misses."""
        for part in (self._features, self._prefixes):
            part.hits = part.misses = 0

    def forget(self) -> int:
        """Clear all caches; return the bytes that they held."""
        size = self.counts.nbytes
        self._features.clear()
        self._prefixes.clear()
        self.processor_cache.clear()
        return size
