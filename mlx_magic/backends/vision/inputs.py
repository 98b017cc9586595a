"""Inputs of a vision model, made by its own processor: tokens, pixels and masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates import chat_messages, think_switch
from mlx_magic.backends.chat_templates import rendering as chat_templates_rendering
from mlx_magic.backends.chat_templates.control_tokens import ControlTokens, Masked
from mlx_magic.backends.chat_templates.reasoning import template_source
from mlx_magic.backends.loading.background import BackgroundCall, is_known
from mlx_magic.backends.vision.captured_inputs import captured_inputs
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import one_line, without_frames


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A request rendered by the chat template.

    Attributes
    ----------
    text : object
        A str for nearly all models.
    masked : Masked
        The request that was rendered.
    """

    text: Any
    masked: Masked


class VisionInputs:
    """Makes the inputs of one model.

    Parameters
    ----------
    model : str
        Name of the model, for messages.
    config, processor : object
        The model's.
    """

    def __init__(self, model: str, config: Any, processor: Any) -> None:
        self._model = model
        self._config = config
        self._processor = processor
        tokenizer = getattr(processor, "tokenizer", processor)
        self._control = ControlTokens(tokenizer, model, processor)

    def prompt(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> BackgroundCall[PreparedPrompt]:
        """Start to render a request with the chat template, on a background thread.

        The result raises `GenerationError` if the chat template refuses the request.
        """
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        known = is_known(self._processor, tokenizer)
        return BackgroundCall(partial(self._prompt, request, cancel), here=not known)

    def make_inputs(self, prompt: PreparedPrompt) -> dict[str, Any]:
        """Return the processor's output: ``input_ids`` of shape (1, tokens), pixels and masks.

        Raises
        ------
        GenerationError
            The processor refuses the request.
        """
        config, processor = self._config, self._control.processor(self._processor, prompt.masked)
        try:
            images = [image.pixels for image in chat_messages.images(prompt.masked.request)] or None
            inputs = _prepared(config, processor, images, prompt.text)
        except GenerationError:
            raise
        except Exception as error:
            raise GenerationError(
                f"{self._model}: its processor refused the question: {one_line(error)}",
                model=self._model,
            ) from without_frames(error)
        if prompt.masked.words:
            import numpy as np

            tokens = np.asarray(inputs["input_ids"]).reshape(-1).tolist()
            self._control.require_restored(tokens, prompt.masked)
        inputs["mask"] = inputs.pop("attention_mask", None)
        return {key: value for key, value in inputs.items() if value is not None}

    def _prompt(self, request: GenerationRequest, cancel: CancelToken) -> PreparedPrompt:
        from mlx_vlm.prompt_utils import apply_chat_template

        masked = self._control.masked(request)

        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        extra: dict[str, Any] = {}

        def rendered(variant: GenerationRequest, **arguments: Any) -> Any:
            return apply_chat_template(
                chat_templates_rendering.processor_for(self._processor, self._config.model_type),
                self._config,
                chat_messages.messages(variant, _content),
                num_images=len(chat_messages.images(request)),
                **{**extra, **arguments},
            )

        with chat_templates_rendering.rendering(request, cancel, model=self._model):
            extra |= think_switch.arguments(
                request.think,
                template_source(self._processor, tokenizer),
                self._processor,
                lambda arguments: rendered(masked.request, **arguments),
                model=self._model,
            )
            text = rendered(masked.request)
            self._control.require_template(text, masked, rendered)
        chat_messages.require_whole(text, masked.request, model=self._model)
        return PreparedPrompt(text, masked)


def _prepared(config: Any, processor: Any, images: list[Any] | None, text: Any) -> dict[str, Any]:
    """Call the processor as mlx-vlm does."""
    if upstream.VISION_INPUTS.off is not None:
        return captured_inputs(config, processor, images, text)
    names = upstream.VISION_INPUTS.names
    inputs: dict[str, Any] = names.prepare_inputs(
        processor,
        images=images,
        prompts=text,
        image_token_index=getattr(config, "image_token_index", None),
        add_special_tokens=names.should_add_special_tokens(config.model_type, processor),
    )
    return inputs


def image_tokens(inputs: Mapping[str, Any], config: Any) -> int:
    """Count the image tokens of a prompt."""
    import numpy as np

    if "pixel_values" not in inputs:
        return 0
    for key in ("image_token_id", "image_token_index"):
        token = getattr(config, key, None)
        if isinstance(token, int):
            # In NumPy: a GPU would have to be waited for.
            return int((np.asarray(inputs["input_ids"]) == token).sum())
    return 0


def _content(text: str, image_count: int) -> str | list[dict[str, str]]:
    """Return a turn's content with a part for each of its images.

    A turn without images stays a str: mlx-vlm strips the text in a list of parts.
    """
    if not image_count:
        return text
    return [*({"type": "image"} for _ in range(image_count)), {"type": "text", "text": text}]
