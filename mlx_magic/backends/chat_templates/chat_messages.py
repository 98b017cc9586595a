"""A request as chat messages, and errors of chat templates that cannot render them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlx_magic.backends.chat_templates.limits import (
    TemplateLimitError,
    UnsafeTemplateError,
)
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import one_line
from mlx_magic.images.opening import ImageInput

Message = dict[str, Any]


def messages(
    request: GenerationRequest, content: Callable[[str, int], Any] = lambda text, image_count: text
) -> list[Message]:
    """Return the system prompt, the earlier turns, and the question.

    Parameters
    ----------
    request : GenerationRequest
    content : callable
        Takes a question and the number of its images; returns the turn's content.
    """
    chat: list[Message] = []
    if request.system:
        chat.append({"role": "system", "content": request.system})
    for exchange in request.history:
        question = content(exchange.prompt, len(exchange.images))
        chat.append({"role": "user", "content": question})
        chat.append({"role": "assistant", "content": exchange.answer})
    chat.append({"role": "user", "content": content(request.prompt, len(request.images))})
    return chat


def images(request: GenerationRequest) -> tuple[ImageInput, ...]:
    """Return all images of a conversation, in the order of its turns."""
    if not request.history:
        return request.images
    before = [image for exchange in request.history for image in exchange.images]
    return (*before, *request.images)


def require_whole(prompt: object, request: GenerationRequest, *, model: str) -> None:
    """Refuse a rendered prompt that lacks a turn or the system prompt.

    Some templates and libraries silently use the last turn only.

    Parameters
    ----------
    prompt : object
        The rendered prompt; anything but a str counts as empty.
    request : GenerationRequest
    model : str
        Name of the model, for the message.

    Raises
    ------
    GenerationError
    """
    if not request.system and not request.history:
        return
    text = _squeezed(prompt if isinstance(prompt, str) else "")
    if request.system and _squeezed(request.system) not in text:
        raise _refused(model, "it leaves out the system prompt", "ask without a system prompt")
    end = 0
    for asked in (*(exchange.prompt for exchange in request.history), request.prompt):
        place = text.find(_squeezed(asked), end)
        if place < 0:
            raise _refused(
                model, "it leaves out earlier turns", "ask without the turns before this question"
            )
        end = place + len(_squeezed(asked))


def template_error(error: Exception, request: GenerationRequest, *, model: str) -> GenerationError:
    """Return the error for a conversation that a chat template did not render, with a remedy.

    Parameters
    ----------
    error : Exception
        The error of the rendering.
    request : GenerationRequest
    model : str
        Name of the model, for the message.
    """
    if isinstance(error, UnsafeTemplateError):
        return GenerationError(
            f"{model}: its chat template was stopped, because it tries to run code ({error}): "
            "choose another model.",
            model=model,
        )
    if isinstance(error, TemplateLimitError):
        return GenerationError(
            f"{model}: its chat template was stopped ({one_line(error)}): ask something shorter, "
            "or choose another model.",
            model=model,
        )
    extras = []
    if request.system:
        extras.append("a system prompt")
    if request.history:
        extras.append("the turns before this question")
    advice = f"ask without {' or without '.join(extras)}" if extras else "ask in another way"
    return _refused(model, one_line(error).rstrip("."), f"{advice}, or choose another model")


def _refused(model: str, why: str, advice: str) -> GenerationError:
    return GenerationError(
        f"{model}: its chat template cannot render this request ({why}): {advice}.", model=model
    )


def _squeezed(text: str) -> str:
    # Templates trim and join lines.
    return " ".join(text.split())
