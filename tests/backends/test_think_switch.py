"""`think` sets the switch of a chat template, or is refused."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_magic.backends.chat_templates import think_switch
from mlx_magic.backends.chat_templates.rendering import rendered, sandboxed
from mlx_magic.errors import GenerationError

ASSISTANT = "{{ messages[0].content }}"
SWITCHES = {
    "qwen": (
        ASSISTANT + "{% if enable_thinking is defined and enable_thinking is false %}"
        "<think></think>{% endif %}",
        {"enable_thinking": True},
        {"enable_thinking": False},
    ),
    "deepseek": (
        "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
        + ASSISTANT
        + "{% if thinking %}<think>{% else %}</think>{% endif %}",
        {"thinking": True},
        {"thinking": False},
    ),
    "minimax": (
        ASSISTANT + "{% if thinking_mode == 'enabled' %}<think>"
        "{% elif thinking_mode == 'disabled' %}</think>{% endif %}",
        {"thinking_mode": "enabled"},
        {"thinking_mode": "disabled"},
    ),
    "mistral": (
        ASSISTANT + "{% set effort = reasoning_effort | default('high') %}"
        "{% if effort == 'none' %}[no thoughts]{% endif %}",
        {"reasoning_effort": "high"},
        {"reasoning_effort": "none"},
    ),
    "seed": (
        "{% if not thinking_budget is defined %}{% set thinking_budget = -1 %}{% endif %}"
        + ASSISTANT
        + "{% if thinking_budget == 0 %}<seed:think></seed:think>{% endif %}",
        {"thinking_budget": -1},
        {"thinking_budget": 0},
    ),
}


def arguments(think: bool | None, source: str, renderer: Any = None) -> dict[str, Any]:
    def render(given: dict[str, Any]) -> object:
        messages = [{"role": "user", "content": "Hello"}]
        return rendered(source, like_transformers=True, messages=messages, **given)

    with sandboxed():
        return think_switch.arguments(think, source, renderer, render, model="tiny")


@pytest.mark.parametrize(("source", "on", "off"), SWITCHES.values(), ids=SWITCHES)
def test_switch_of_a_template_is_set(source: str, on: object, off: object) -> None:
    assert arguments(True, source) == on
    assert arguments(False, source) == off
    assert arguments(None, source) == {}


@pytest.mark.parametrize(
    "source",
    [
        "",
        ASSISTANT,
        # A variable that makes no difference.
        ASSISTANT + "{% set enable_thinking = true %}{% if enable_thinking %}<think>{% endif %}",
        # gpt-oss always thinks.
        ASSISTANT + "{{ reasoning_effort | default('medium') }}",
        ASSISTANT + "{{ message.enable_thinking }}",
    ],
)
@pytest.mark.parametrize("think", [True, False])
def test_template_without_a_switch_is_refused_in_one_line(source: str, think: bool) -> None:
    with pytest.raises(GenerationError, match="tiny: its chat template has no switch") as failed:
        arguments(think, source)
    assert "\n" not in str(failed.value)
    assert arguments(None, source) == {}


def test_parameter_of_a_processor_that_renders_itself_counts() -> None:
    class Processor:
        def apply_chat_template(self, messages: object, thinking: bool = True) -> str:
            return "<think>" if thinking else ""

    processor = Processor()

    def render(given: dict[str, Any]) -> object:
        return processor.apply_chat_template([], **given)

    with sandboxed():
        found = think_switch.arguments(False, "", processor, render, model="tiny")
    assert found == {"thinking": False}
