"""Inputs of a vision model as ``mlx_vlm.stream_generate`` makes them, by its public interface."""

from __future__ import annotations

from typing import Any


def captured_inputs(
    config: Any, processor: Any, images: list[Any] | None, text: Any
) -> dict[str, Any]:
    """Let mlx-vlm call the processor, and return what it would give to the model.

    Parameters
    ----------
    config, processor : object
        The model's.
    images : list of PIL.Image.Image or None
    text : object
        The rendered prompt.

    Returns
    -------
    dict
        The processor's output: ``input_ids``, ``attention_mask``, pixels and what else there is.

    Raises
    ------
    Exception
        The processor's.
    """
    from mlx_vlm import stream_generate

    model = _Catcher(config)
    # A cache of no layers: mlx-vlm would ask the model for one.
    options: dict[str, Any] = {"max_tokens": 1, "prompt_cache": []}
    try:
        for _ in stream_generate(model, processor, text, image=images, **options):
            break
    except _CaughtError as caught:
        return caught.inputs
    raise TypeError("mlx-vlm did not ask the model for embeddings")


class _CaughtError(Exception):
    """Ends mlx-vlm's generation once the inputs are known."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        super().__init__("the inputs are known")
        self.inputs = inputs


class _Catcher:
    """Stands for the model up to the call of ``get_input_embeddings``."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.language_model = self

    def get_input_embeddings(self, input_ids: Any, pixel_values: Any = None, **data: Any) -> Any:
        """Raise the inputs as `_CaughtError`."""
        data["attention_mask"] = data.pop("mask", None)
        inputs = {"input_ids": input_ids, "pixel_values": pixel_values, **data}
        raise _CaughtError({key: value for key, value in inputs.items() if value is not None})
