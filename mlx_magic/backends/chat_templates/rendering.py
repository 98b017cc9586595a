"""Chat templates rendered in our sandbox, wherever the libraries would render them.

transformers renders those of most models, in a sandbox that has no limits. Some processors of
mlx-vlm render theirs without any sandbox. Both are asked for the prompt as before, inside
`sandboxed`.
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
    """Let transformers render chat templates in our sandbox, on this thread, inside the block.

    What other threads render, and what other code of the process does, is left as it is.

    Parameters
    ----------
    limits : TemplateBudget, optional
        What all templates of the block may take together.
    """
    _hook_transformers()
    token = BUDGET.set(limits or TemplateBudget())
    try:
        yield
    finally:
        BUDGET.reset(token)


@contextmanager
def rendering(request: GenerationRequest, cancel: CancelToken, *, model: str) -> Iterator[None]:
    """Let the chat template of a model render a request in the block, or say why it does not.

    Parameters
    ----------
    request : GenerationRequest
    cancel : CancelToken
        Ends the template when it is thrown.
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
    """Render a chat template; inside of `sandboxed`.

    Parameters
    ----------
    source : str
        The template.
    like_transformers : bool
        Whether to read it as transformers reads chat templates: without blank lines around
        blocks, and with ``raise_exception``. Otherwise it is read as Jinja's defaults do.
    variables : object
        What the template gets.

    Raises
    ------
    TemplateLimitError
        It takes too much time or memory.
    UnsafeTemplateError
        It tries to run code or to read files.
    jinja2.TemplateError
        It is no template, or refuses the conversation.
    """
    from mlx_magic.backends.chat_templates.sandbox import compiled

    return compiled(source, like_transformers=like_transformers).render(variables)


def processor_for(processor: Any, model_type: str) -> Any:
    """Return what mlx-vlm may be given to render with, in place of a model's processor.

    Parameters
    ----------
    processor : object
        The model's.
    model_type : str
        From its config.json.

    Returns
    -------
    object
        The processor, or a stand-in for one that would render without a sandbox.
    """
    if _architecture_uses_jinja(model_type) or _class_uses_jinja(type(processor)):
        return _Sandboxed(processor)
    return processor


class _Sandboxed:
    """A processor whose own rendering is never called; the rest of it is the processor's."""

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
        """Render as those processors of mlx-vlm do. For the errors, see `rendered`."""
        source = self._processor.chat_template if chat_template is None else chat_template
        if not isinstance(source, str):
            raise TypeError("it is a set of templates, of which the processor takes none")
        text = rendered(
            source, messages=conversation, add_generation_prompt=add_generation_prompt, **kwargs
        )
        return self._processor.tokenizer.encode(text) if tokenize else text


@functools.cache
def _architecture_uses_jinja(model_type: str) -> bool:
    sources = architectures.vision_sources({"model_type": model_type})
    return any(map(_mentions_jinja, sources.values()))


def _class_uses_jinja(kind: type) -> bool:
    """Say whether the package that defines how a processor renders uses Jinja directly."""
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
    """Make transformers ask us for each compiled template, once for the process."""
    from transformers.utils import chat_template_utils

    with _lock:
        original: Callable[[str], Any] | None = getattr(chat_template_utils, _HOOK, None)
        # Of another version: its own sandbox holds, though without our limits.
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
