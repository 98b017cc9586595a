"""Which kind of model may answer which request."""

from __future__ import annotations

from collections.abc import Iterable

from mlx_magic.engine.request import DEMO
from mlx_magic.errors import ImagesNotSupportedError
from mlx_magic.model_pool.model_info import ModelInfo


def no_images(name: str, models: Iterable[ModelInfo], *, before: bool) -> ImagesNotSupportedError:
    """Return the refusal of pictures for a text model.

    Parameters
    ----------
    name : str
        The text model.
    models : iterable of ModelInfo
        Those in memory, to name the ones that can see.
    before : bool
        Whether the pictures came in an earlier turn of the conversation.
    """
    vision = [model.name for model in models if model.kind == "vision"]
    vision = list(dict.fromkeys([*vision, DEMO]))
    otherwise = "begin a new conversation" if before else "leave the pictures out"
    return ImagesNotSupportedError(
        f"{name} is a text model and cannot see pictures"
        f"{', and this conversation has some' if before else ''}: ask a vision model "
        f"instead (at hand: {', '.join(vision)}), or {otherwise}.",
        model=name,
        vision_models=vision,
    )
