"""Rendering of chat templates in our sandbox instead of the libraries' own.

transformers renders the templates of most models, in a sandbox without limits. Some processors of
mlx-vlm render theirs without any sandbox. Both are called as usual, within `sandboxed`, and then
render in our sandbox.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.backends.chat_templates.limits import (
    BUDGET,
    TemplateBudget,
    TemplateLimitError,
    TemplateLimits,
    UnsafeTemplateError,
)
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import without_frames
from mlx_magic.models.checkpoints import architectures

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
    if not upstream.TEMPLATE_SANDBOX.is_on(_agrees_with_jinja):
        return str(_by_jinja(source, like_transformers=like_transformers).render(variables))
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


def _by_jinja(source: str, *, like_transformers: bool) -> Any:
    """Compile a template for Jinja's own sandbox, which runs no code but has no limits."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        trim_blocks=like_transformers,
        lstrip_blocks=like_transformers,
        extensions=["jinja2.ext.loopcontrols"],
    ).from_string(source)


_SAMPLE = """{% macro turn(m) %}<{{ m.role|upper }}>{{ m['content'][:3] ~ '!' }}{% endmacro %}
{%- set ns = namespace(n=0) %}
{% for m in messages if m.role != 'x' %}
{%- set ns.n = ns.n + loop.index %}{{ turn(m) }}{{ loop.last and ', '.join(['a', 'b']) }}
{% else %}none{% endfor %}{{ ns.n }} {{ [1, 2]|length }} {{ messages|map(attribute='role')|list }}
"""
_ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def _agrees_with_jinja(_: object) -> bool:
    """Whether our sandbox renders as Jinja's, refuses what is unsafe, and keeps its limits."""
    from mlx_magic.backends.chat_templates.sandbox import compiled

    variables = {"messages": [{"role": "user", "content": "Hello"}, {"role": "a", "content": "b"}]}
    ticks = itertools.count()
    token = BUDGET.set(TemplateBudget())
    try:
        ours = compiled(_SAMPLE, like_transformers=True).render(variables)
        if ours != _by_jinja(_SAMPLE, like_transformers=True).render(variables):
            return False
        for source, refusal in (
            (_ENDLESS, TemplateLimitError),
            ("{{ ''.__class__.__mro__ }}", UnsafeTemplateError),
            ("{{ '%0100000000d' % 1 }}", TemplateLimitError),
        ):
            # A clock that ticks at each look at it, so that the limit is reached soon.
            BUDGET.set(TemplateBudget(TemplateLimits(seconds=2), lambda: next(ticks) / 20))
            with contextlib.suppress(refusal):
                compiled(source, like_transformers=False).render()
                return False
    finally:
        BUDGET.reset(token)
    return True


def _hook_transformers() -> None:
    """Let transformers compile templates with our sandbox, unless that is off."""
    if upstream.TEMPLATE_SANDBOX.is_on(_agrees_with_jinja):
        upstream.TEMPLATE_HOOK.is_on(_install_hook)


def _install_hook(names: Any) -> bool:
    """Wrap the function with which transformers compiles templates, once for the process.

    Returns
    -------
    bool
        Whether transformers calls it.
    """
    module = names.chat_template_utils
    with _lock:
        original: Callable[[str], Any] = getattr(module, upstream.COMPILES)
        if hasattr(original, "__wrapped_by_mlx_magic__"):
            return True
        compiled_here: list[str] = []

        @functools.wraps(original)
        def compile_template(chat_template: str) -> Any:
            if BUDGET.get() is None:
                return original(chat_template)
            compiled_here[:] = [chat_template]
            from mlx_magic.backends.chat_templates.sandbox import compiled

            return compiled(chat_template, like_transformers=True)

        compile_template.__wrapped_by_mlx_magic__ = True  # type: ignore[attr-defined]
        setattr(module, upstream.COMPILES, compile_template)
        token = BUDGET.set(TemplateBudget())
        try:
            names.render_jinja_template(
                conversations=[[{"role": "user", "content": "a"}]],
                chat_template="{{ messages[0].content }}",
                add_generation_prompt=False,
            )
        finally:
            BUDGET.reset(token)
            if not compiled_here:
                setattr(module, upstream.COMPILES, original)
        return bool(compiled_here)
