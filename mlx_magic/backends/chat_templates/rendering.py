"""Rendering of chat templates in our sandbox instead of the libraries' own.

transformers renders the templates of most models, in a sandbox without limits. Some processors of
mlx-vlm render theirs without any sandbox. Both are called as usual, within `sandboxed`, and then
render in our sandbox.
"""

from __future__ import annotations

import functools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.chat_templates.limits import BUDGET, TemplateBudget
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import without_frames
from mlx_magic.models.checkpoints import architectures

_HOOK = "_compile_jinja_template"
_lock = threading.Lock()


@contextmanager
def sandboxed(limits: TemplateBudget | None = None) -> Iterator[None]:
    """Let transformers render chat templates in our sandbox, on this thread, within the block.

    Other threads are not affected.

    Parameters
    ----------
    limits : TemplateBudget, optional
        Budget of all templates of the block together.
    """
    _hook_transformers()
    token = BUDGET.set(limits or TemplateBudget())
    try:
        yield
    finally:
        BUDGET.reset(token)


@contextmanager
def rendering(request: GenerationRequest, cancel: CancelToken, *, model: str) -> Iterator[None]:
    """Sandbox a model's chat template within the block, and translate its errors.

    Parameters
    ----------
    request : GenerationRequest
    cancel : CancelToken
        Ends the template when it is set.
    model : str
        Name of the model, for messages.

    Raises
    ------
    GenerationError
    Cancelled
    """
    try:
        with sandboxed(TemplateBudget(cancel=cancel)):
            yield
    except (Cancelled, GenerationError):
        raise
    except Exception as error:
        raise chat_messages.template_error(error, request, model=model) from without_frames(error)


def rendered(source: str, *, like_transformers: bool = False, **variables: Any) -> str:
    """Render a chat template; only within `sandboxed`.

    Parameters
    ----------
    source : str
        The template.
    like_transformers : bool
        Whether to use transformers' settings for chat templates: no blank lines around blocks, and
        ``raise_exception``. Otherwise Jinja's defaults.
    variables : object
        Variables of the template.

    Raises
    ------
    TemplateLimitError
        It takes too much time or memory.
    UnsafeTemplateError
        It tries to run code or to read files.
    jinja2.TemplateError
        It is not a valid template, or refuses the conversation.
    """
    from mlx_magic.backends.chat_templates.sandbox import compiled

    return compiled(source, like_transformers=like_transformers).render(variables)


def processor_for(processor: Any, model_type: str) -> Any:
    """Return the processor that mlx-vlm may use for rendering.

    Parameters
    ----------
    processor : object
        The model's processor.
    model_type : str
        From its config.json.

    Returns
    -------
    object
        The processor, or a proxy of it if it would render without a sandbox.
    """
    if _architecture_uses_jinja(model_type) or _class_uses_jinja(type(processor)):
        return _Sandboxed(processor)
    return processor


class _Sandboxed:
    """Proxy of a processor that renders in our sandbox."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render as mlx-vlm's processors do. For the errors, see `rendered`."""
        source = self._processor.chat_template if chat_template is None else chat_template
        if not isinstance(source, str):
            raise TypeError("it is a set of templates, but the processor needs a single one")
        text = rendered(
            source, messages=conversation, add_generation_prompt=add_generation_prompt, **kwargs
        )
        return self._processor.tokenizer.encode(text) if tokenize else text


@functools.cache
def _architecture_uses_jinja(model_type: str) -> bool:
    sources = architectures.vision_sources({"model_type": model_type})
    return any(map(_mentions_jinja, sources.values()))


def _class_uses_jinja(kind: type) -> bool:
    """Whether the package that defines a processor's `apply_chat_template` uses Jinja directly."""
    owner = next((c for c in kind.__mro__ if "apply_chat_template" in vars(c)), None)
    if owner is None or owner.__module__.partition(".")[0] == "transformers":
        return False
    file = getattr(sys.modules.get(owner.__module__), "__file__", None)
    return file is not None and _folder_uses_jinja(Path(file).parent)


@functools.cache
def _folder_uses_jinja(folder: Path) -> bool:
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in folder.glob("*.py"))
    return any(map(_mentions_jinja, texts))


def _mentions_jinja(source: str) -> bool:
    return re.search(r"\bjinja2\b", source) is not None


def _hook_transformers() -> None:
    """Wrap the function with which transformers compiles templates, once for the process."""
    from transformers.utils import chat_template_utils

    with _lock:
        original: Callable[[str], Any] | None = getattr(chat_template_utils, _HOOK, None)
        # Another version of transformers has its own sandbox, though without our limits.
        if original is None or hasattr(original, "__wrapped_by_mlx_magic__"):
            return

        @functools.wraps(original)
        def compile_template(chat_template: str) -> Any:
            if BUDGET.get() is None:
                return original(chat_template)
            from mlx_magic.backends.chat_templates.sandbox import compiled

            return compiled(chat_template, like_transformers=True)

        compile_template.__wrapped_by_mlx_magic__ = True  # type: ignore[attr-defined]
        setattr(chat_template_utils, _HOOK, compile_template)
