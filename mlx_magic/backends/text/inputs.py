"""Prompt tokens of a text model."""

from __future__ import annotations

from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates import chat_messages, think_switch
from mlx_magic.backends.chat_templates.control_tokens import ControlTokens, Masked
from mlx_magic.backends.chat_templates.reasoning import template_source
from mlx_magic.backends.chat_templates.rendering import rendering
from mlx_magic.backends.loading.background import BackgroundCall, is_known
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import GenerationRequest


class TextInputs:
    """Tokenizes requests to one model.

    Parameters
    ----------
    tokenizer : object
        As mlx-lm loads it.
    model : str
        Name of the model, for messages.
    """

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._control = ControlTokens(tokenizer, model)

    def start_tokenizing(
        self, request: GenerationRequest, cancel: CancelToken
    ) -> BackgroundCall[list[int]]:
        """Start to tokenize a request, on a background thread.

        The result raises `GenerationError` if the chat template refuses the request.
        """
        inner = upstream.inner_tokenizer(self._tokenizer)
        return BackgroundCall(
            partial(self._tokens, request, cancel), here=not is_known(self._tokenizer, inner)
        )

    def _tokens(self, request: GenerationRequest, cancel: CancelToken) -> list[int]:
        masked = self._control.masked(request)
        template_of = self._tokenizer
        # mlx-lm renders some models' prompts by its own code.
        if not getattr(template_of, "has_chat_template", template_of.chat_template is not None):
            # A base model has no chat template: it continues the text.
            if request.think is not None:
                raise think_switch.no_switch(request.think, model=self._model)
            text = _continued(masked.request)
            self._control.require_template(text, masked, _continued)
            return self._encode(text, masked)
        messages = chat_messages.messages(masked.request)
        template = self._tokenizer.apply_chat_template

        extra: dict[str, Any] = {}

        def rendered(variant: GenerationRequest, **arguments: Any) -> str:
            text: str = template(
                chat_messages.messages(variant),
                add_generation_prompt=True,
                tokenize=False,
                **{**extra, **arguments},
            )
            return text

        with rendering(request, cancel, model=self._model):
            extra |= think_switch.arguments(
                request.think,
                template_source(self._tokenizer),
                self._tokenizer,
                lambda arguments: rendered(masked.request, **arguments),
                model=self._model,
            )
            if not masked.words:
                tokens: list[int] = template(messages, add_generation_prompt=True, **extra)
                if len(messages) == 1 and not self._control.needs_template_check(masked):
                    return tokens
            text = rendered(masked.request)
            self._control.require_template(text, masked, rendered)
        chat_messages.require_whole(text, masked.request, model=self._model)
        return self._encode(text, masked, add_special_tokens=False) if masked.words else tokens

    def _encode(self, text: str, masked: Masked, **options: Any) -> list[int]:
        tokens: list[int] = self._control.reading(masked).encode(text, **options)
        self._control.require_restored(tokens, masked)
        return tokens


def _continued(request: GenerationRequest) -> str:
    return "\n\n".join(message["content"] for message in chat_messages.messages(request))
