"""A request as a vision model's own processor makes it: tokens, pixels and masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_magic.errors import GenerationError
from mlx_magic.inference.backends import chat, chat_template
from mlx_magic.inference.backends.failure import one_line, without_frames
from mlx_magic.inference.request import GenerationRequest


def made_of(request: GenerationRequest, model: str, config: Any, processor: Any) -> dict[str, Any]:
    """Return what the model is given; ``input_ids`` of shape (1, tokens), and what it has.

    Parameters
    ----------
    request : GenerationRequest
    model : str
        Its name, for messages.
    config, processor : object
        The model's.

    Raises
    ------
    GenerationError
        Where its processor or its chat template refuses the request.
    """
    from mlx_vlm.utils import prepare_inputs, should_add_special_tokens

    prompt = _prompt(request, model, config, processor)
    try:
        inputs: dict[str, Any] = prepare_inputs(
            processor,
            images=[image.pixels for image in chat.pictures(request)] or None,
            prompts=prompt,
            image_token_index=getattr(config, "image_token_index", None),
            add_special_tokens=should_add_special_tokens(config.model_type, processor),
        )
    except Exception as error:
        raise GenerationError(
            f"{model}: its processor refused the question: {one_line(error)}", model=model
        ) from without_frames(error)
    inputs["mask"] = inputs.pop("attention_mask", None)
    return {key: value for key, value in inputs.items() if value is not None}


def image_tokens(inputs: Mapping[str, Any], config: Any) -> int:
    """Count the places of the prompt that stand for pictures."""
    import numpy as np

    if "pixel_values" not in inputs:
        return 0
    for key in ("image_token_id", "image_token_index"):
        token = getattr(config, key, None)
        if isinstance(token, int):
            # On the CPU: a GPU would be waited for, for a few numbers.
            return int((np.asarray(inputs["input_ids"]) == token).sum())
    return 0


def _prompt(request: GenerationRequest, model: str, config: Any, processor: Any) -> Any:
    """Write the conversation as the model's chat template wants it."""
    from mlx_vlm.prompt_utils import apply_chat_template

    try:
        with chat_template.sandboxed():
            prompt = apply_chat_template(
                chat_template.processor_for(processor, config.model_type),
                config,
                chat.messages(request, _content),
                num_images=len(chat.pictures(request)),
            )
    except Exception as error:
        refusal = chat.template_error(error, request, model=model)
        raise refusal from without_frames(error)
    chat.require_whole(prompt, request, model=model)
    return prompt


def _content(text: str, pictures: int) -> str | list[dict[str, str]]:
    """Return a turn's content, its pictures in the turn they came in.

    A turn without pictures stays as it was written: mlx-vlm strips the text of a list of parts.
    """
    if not pictures:
        return text
    return [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]
