"""Default sampling of a text checkpoint (generation_config.json), which mlx-lm does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_magic.backends.batching.sampling import SamplingParams, fresh_seed
from mlx_magic.engine.request import Sampling
from mlx_magic.errors import CheckpointError
from mlx_magic.models.checkpoints import strict_json
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError


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
