"""Inputs of a vision model, made by its own processor: tokens, pixels and masks.

The sizes at which the model sees the images are read from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates import chat_messages, think_switch
from mlx_magic.backends.chat_templates import rendering as chat_templates_rendering
from mlx_magic.backends.chat_templates.chat_messages import Message
from mlx_magic.backends.chat_templates.control_tokens import ControlTokens, Masked
from mlx_magic.backends.chat_templates.reasoning import template_source
from mlx_magic.backends.given_answers.frame import AnswerFrame, answer_frame
from mlx_magic.backends.given_answers.tokens import AnswerTokenizer, AnswerTokens
from mlx_magic.backends.loading.background import BackgroundCall, is_known
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import one_line, without_frames


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


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A request rendered by the chat template.

    Attributes
    ----------
    text : object
        A str for nearly all models.
    masked : Masked
        The request that was rendered.
    frame : AnswerFrame or None
        What the template puts around an answer; only for a request with choices.
    """

    text: Any
    masked: Masked
    frame: AnswerFrame | None = None


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

        def rendered(
            variant: GenerationRequest, more: Sequence[Message] = (), **arguments: Any
        ) -> Any:
            return apply_chat_template(
                chat_templates_rendering.processor_for(self._processor, self._config.model_type),
                self._config,
                [*chat_messages.messages(variant, _content), *more],
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
                for_choices=request.choices is not None,
            )
            text = rendered(masked.request)
            self._control.require_template(text, masked, rendered)
            frame = None
            if request.choices is not None:
                frame = answer_frame(
                    text,
                    lambda more: rendered(masked.request, more, add_generation_prompt=False),
                )
        chat_messages.require_whole(text, masked.request, model=self._model)
        return PreparedPrompt(text, masked, frame)

    def answer_tokens(
        self,
        labels: Sequence[str],
        frame: AnswerFrame,
        prompt: Sequence[int],
        is_stop_token: Callable[[int], bool],
    ) -> AnswerTokens:
        """Return the tokens of answers after a prompt. See `AnswerTokenizer.tokens`."""
        self._control.require_none(labels)
        return AnswerTokenizer(
            getattr(self._processor, "tokenizer", self._processor),
            frame,
            prompt,
            is_stop_token=is_stop_token,
            control=self._control.tokens,
            model=self._model,
        ).tokens(labels)


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


def seen_sizes(inputs: Mapping[str, Any], count: int, patch: int) -> tuple[str, ...]:
    """Return for each image the size at which the model sees it.

    Parameters
    ----------
    inputs : mapping
        The processor's output: ``pixel_values`` of shape (images, 3, H, W) or
        (1, tiles, 3, H, W), also with channels last, or a list of such arrays; or packed
        patches with ``image_grid_thw`` of shape (images, 3).
    count : int
        Number of images.
    patch : int
        Side of a patch in pixels, for packed patches.

    Returns
    -------
    tuple of str
        Such as ``"128 x 128"`` or ``"5 tiles of 384 x 384"``; empty if the shapes do not
        tell.
    """
    if resized := resized_sizes(inputs, count, patch):
        return tuple(f"{width} x {height}" for width, height in resized)
    pixels = inputs.get("pixel_values")
    if isinstance(pixels, list | tuple):
        shapes = [tuple(p.shape) for p in pixels if hasattr(p, "shape")]
        return tuple(_size(shape) for shape in shapes) if len(shapes) == count else ()
    shape = tuple(getattr(pixels, "shape", ()))
    if len(shape) not in (4, 5):
        return ()
    tiles = shape[0] if len(shape) == 4 else shape[0] * shape[1]
    if count == 0 or tiles % count:
        return ()
    each = tiles // count
    size = _size(shape)
    return (size if each == 1 else f"{each} tiles of {size}",) * count


def resized_sizes(inputs: Mapping[str, Any], count: int, patch: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes to which whole images were resized, without borders or cuts.

    Parameters
    ----------
    inputs, count, patch
        See `seen_sizes`.

    Returns
    -------
    tuple of (int, int)
        Width and height in pixels; empty unless there are packed patches.
    """
    grid = inputs.get("image_grid_thw")
    if grid is None or len(grid) != count:
        return ()
    rows = [[int(n) for n in row] for row in grid.tolist()]
    return tuple((w * patch, h * patch) for _, h, w in rows)


def fewer_tokens(inputs: Mapping[str, Any], patch: int, tokens: int, max_pixels: int) -> int | None:
    """Return how many image tokens there would be if images had at most `max_pixels` pixels.

    Parameters
    ----------
    inputs : mapping
        The processor's output.
    patch : int
        Side of a patch in pixels.
    tokens : int
        Image tokens now.
    max_pixels : int

    Returns
    -------
    int or None
        None unless the model's tokens follow the size of the image: then the processor gives an
        ``image_grid_thw``.
    """
    grid = inputs.get("image_grid_thw")
    if grid is None:
        return None
    patches = [(int(t), int(h) * int(w)) for t, h, w in grid.tolist()]
    now = sum(t * area for t, area in patches)
    most = max_pixels // patch**2
    return tokens * sum(t * min(area, most) for t, area in patches) // max(now, 1)


def _size(shape: tuple[int, ...]) -> str:
    channels_last = shape[-1] in (1, 3) and shape[-3] not in (1, 3)
    height, width = shape[-3:-1] if channels_last else shape[-2:]
    return f"{width} x {height}"
