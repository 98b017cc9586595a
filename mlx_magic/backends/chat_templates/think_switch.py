"""The switch of a chat template that turns thinking on or off."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mlx_magic.errors import GenerationError

_SWITCHES: Mapping[str, tuple[tuple[Any, Any], ...]] = {
    "enable_thinking": ((True, False),),  # Qwen, GLM, ERNIE, Gemma, SmolLM, MiniCPM, Hunyuan
    "thinking": ((True, False),),  # DeepSeek, Granite, Kimi
    "reasoning": ((True, False),),  # Cohere
    "thinking_mode": (("enabled", "disabled"), ("thinking", "chat"), ("on", "off")),
    "reasoning_effort": (("high", "none"),),
    "thinking_budget": ((-1, 0),),  # Seed
}
"""Variables that templates have for it, and their values for on and off.

A str is used only if the template has both values, a number only if it has the first one.
"""

Arguments = dict[str, Any]


def arguments(
    think: bool | None,
    source: str,
    renderer: Any,
    render: Callable[[Arguments], object],
    *,
    model: str,
    for_choices: bool = False,
) -> Arguments:
    """Return the template's arguments for `think`; none if it is None.

    Parameters
    ----------
    think : bool or None
    source : str
        The template; ``""`` if there is none.
    renderer : object
        What has the method ``apply_chat_template``; its own parameters count, too.
    render : callable
        Renders a prompt with such arguments.
    model : str
        Name of the model, for messages.
    for_choices : bool
        Whether thinking is turned off to score choices, which the message then says.

    Raises
    ------
    GenerationError
        The template has no such switch, or it makes no difference.
    """
    if think is None:
        return {}
    # Imports jinja2, which takes long.
    from mlx_magic.backends.chat_templates.sandbox import template_names

    names = {*template_names(source), *_parameters(renderer)}
    on, off = dict(_values(names, source, on=True)), dict(_values(names, source, on=False))
    if not on or render(on) == render(off):
        raise always_thinks(model) if for_choices else no_switch(think, model=model)
    return on if think else off


def no_switch(think: bool, *, model: str) -> GenerationError:
    """Return the error for `think` with a model that cannot be told to think or not."""
    return GenerationError(
        f"{model}: its chat template has no switch for thinking: leave out "
        f"{'--think' if think else '--no-think'}, or choose another model.",
        model=model,
    )


def always_thinks(model: str) -> GenerationError:
    """Return the error for choices with a model whose thoughts cannot be turned off."""
    return GenerationError(
        f"{model}: it may think before it answers, and its chat template has no switch for that, "
        "so that choices cannot be scored: choose another model, or ask without choices.",
        model=model,
    )


def _values(names: set[str], source: str, *, on: bool) -> Iterator[tuple[str, Any]]:
    for name, choices in _SWITCHES.items():
        if name not in names:
            continue
        for values in choices:
            if all(_is_known(value, source) for value in values):
                yield name, values[0 if on else 1]
                break


def _is_known(value: Any, source: str) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return value >= 0 or f"= {value}" in source
    return f"'{value}'" in source or f'"{value}"' in source


def _parameters(renderer: Any) -> set[str]:
    """Return the parameters of a method that is not transformers' own.

    One that passes any argument on may take ``enable_thinking``, as mlx-lm and mlx-vlm call it.
    """
    kind = type(renderer)
    owner = next((c for c in kind.__mro__ if "apply_chat_template" in vars(c)), None)
    if owner is None or owner.__module__.partition(".")[0] in ("transformers", "mlx_magic"):
        return set()
    try:
        parameters = inspect.signature(vars(owner)["apply_chat_template"]).parameters
    except (TypeError, ValueError):
        return set()
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {*parameters, "enable_thinking"} if takes_any else set(parameters)
