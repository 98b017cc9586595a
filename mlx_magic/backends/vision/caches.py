"""What one vision model has seen and read before, and where a prompt may start therefore."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlx_magic.backends.cache_stats import Reuse
from mlx_magic.backends.device import platform
from mlx_magic.backends.prefix_cache.fingerprints import as_numpy
from mlx_magic.backends.prefix_cache.image_keys import ImageKeys
from mlx_magic.backends.prefix_cache.prompt_keys import PromptKeys, prompt_keys_of
from mlx_magic.backends.prefix_cache.radix_tree import PrefixCache, Rows
from mlx_magic.backends.vision.image_cache.feature_cache import FeatureCache, OnGroup
from mlx_magic.backends.vision.image_cache.processor_cache import ProcessorCache

T = TypeVar("T")

SHARE = 1 / 2
"""Of the bytes of a model's weights: what is kept for it at most."""

LEAST_BYTES = 64 * 2**20
"""What is kept for a small model."""

SHARE_OF_MEMORY = 1 / 8
"""Of the machine's memory: what is kept for one model at most."""

SHARE_OF_IMAGES = 1 / 4
"""Of what is kept: features of pictures; most of the others are keys and values of prompts."""

SHARE_OF_INPUTS = 1 / 4
"""Of what is kept: what the image processor made."""


def reuse_limit(nbytes: int) -> int:
    """Return the bytes that may be kept for a model.

    Half of its weights, at least 64 MiB, at most an eighth of the machine's memory.

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
    """Where the reading of one prompt starts.

    Attributes
    ----------
    count : int
        Tokens that need not be read.
    rows : list
        Their keys and values.
    prompt_keys : PromptKeys or None
        What stands at each place of the prompt; None where nothing may be kept of it.
    """

    count: int = 0
    rows: Rows = field(default_factory=list)
    prompt_keys: PromptKeys | None = None

    def cold(self) -> CachedPrefix:
        """Start at the prompt's beginning, and keep nothing of it."""
        self.count, self.rows, self.prompt_keys = 0, [], None
        return self

    def caches(self) -> list[Any] | None:
        """Return caches with what is known in them, for mlx-vlm to go on with."""
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
    """Features of pictures and beginnings of prompts, for one model.

    Prompts are kept of models whose answers are written together (their caches are plain
    ones) and whose ``get_input_embeddings`` gives embeddings and nothing else: position
    ids, masks and features for deeper layers would have to be cut with the prompt. The
    others read each prompt from its start.

    Parameters
    ----------
    model : module
    nbytes : int
        Bytes of its weights.
    prompts : bool
        Whether prompts may be kept at all.

    Attributes
    ----------
    processor_cache : ProcessorCache
        What the image processor made.
    """

    def __init__(self, model: Any, nbytes: int, *, prompts: bool) -> None:
        self._limit = reuse_limit(nbytes)
        self._features = FeatureCache(int(self._limit * SHARE_OF_IMAGES))
        self.processor_cache = ProcessorCache(int(self._limit * SHARE_OF_INPUTS))
        self._prefixes = PrefixCache(
            self._limit - self._features.limit - self.processor_cache.limit
        )
        language = getattr(model, "language_model", None)
        # Such models put the positions of the last prompt into themselves.
        own_positions = hasattr(language, "_rope_deltas") or hasattr(language, "_position_ids")
        self._prompts = prompts and not own_positions
        config = getattr(model, "config", None)
        named = (getattr(config, key, None) for key in ("image_token_id", "image_token_index"))
        self._image_token = next((token for token in named if isinstance(token, int)), None)

    @property
    def counts(self) -> Reuse:
        """Counts and bytes; safe from any thread."""
        features, prefixes = self._features, self._prefixes
        return Reuse(
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
        """Let the model see, without encoding a picture twice. See `FeatureCache.encode`."""
        return self._features.encode(model, embed, on_group, image_keys=image_keys)

    def start(self, inputs: Mapping[str, Any], image_keys: ImageKeys | None) -> CachedPrefix:
        """Find out how much of a prompt was read before."""
        found = prompt_keys_of(inputs, self._image_token, image_keys) if self._prompts else None
        if found is None:
            return CachedPrefix()
        count, rows = self._prefixes.find(found.keys)
        return CachedPrefix(count, rows, found)

    def has_images(self, inputs: Mapping[str, Any], start: int) -> bool:
        """Say whether a picture lies in a prompt from a place on."""
        if inputs.get("pixel_values") is None:
            return False
        tokens = as_numpy(inputs["input_ids"]).reshape(-1)[start:]
        return self._image_token is None or bool((tokens == self._image_token).any())

    def keep(self, start: CachedPrefix, written: list[int], rows: Rows | None) -> None:
        """Keep what was read and written for an answer that came to its end.

        Parameters
        ----------
        start : CachedPrefix
        written : list of int
            The answer's tokens, as far as `rows` go.
        rows : list or None
            Keys and values from where reading started.
        """
        if start.prompt_keys is None or not rows:
            return
        keys = start.prompt_keys.followed_by(written)
        if rows[0][0].shape[2] == len(keys) - start.count:
            for fingerprint in start.prompt_keys.fingerprints:
                fingerprint.settle()
            self._prefixes.keep(keys, rows, start.count)

    def keep_partial(self, start: CachedPrefix, written: list[int], rows: Rows | None) -> None:
        """Keep what there is of an answer that was ended by what it says.

        Parameters
        ----------
        start : CachedPrefix
        written : list of int
            The answer's tokens so far.
        rows : list or None
            Keys and values from where reading started: of the whole prompt, and of more or
            fewer tokens than there are. What both have is kept.
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
        """Begin the counts of hits and misses anew."""
        for part in (self._features, self._prefixes):
            part.hits = part.misses = 0

    def forget(self) -> int:
        """Let go of everything; return the bytes that were kept."""
        size = self.counts.nbytes
        self._features.clear()
        self._prefixes.clear()
        self.processor_cache.clear()
        return size
