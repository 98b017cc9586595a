"""Conversations as chat messages, and templates that drop a turn."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from mlx_magic.backends.chat_templates import chat_messages
from mlx_magic.engine.request import Exchange, GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.images.opening import ImageInput, open_images


def solid_images(*colours: str) -> tuple[ImageInput, ...]:
    return tuple(open_images([Image.new("RGB", (4, 4), colour) for colour in colours]))


def conversation(**more: Any) -> GenerationRequest:
    return GenerationRequest(
        prompt="Third?",
        history=(
            Exchange("First?", "One.", solid_images("red", "green")),
            Exchange("Second?", "Two."),
        ),
        **more,
    )


def test_turns_are_in_order_with_their_own_images() -> None:
    request = conversation(system="Be brief.", images=solid_images("blue"))
    assert chat_messages.messages(request, lambda text, count: (text, count)) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ("First?", 2)},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": ("Second?", 0)},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": ("Third?", 1)},
    ]
    colours = [image.pixels.getpixel((0, 0)) for image in chat_messages.images(request)]
    assert colours == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]


def test_single_question_is_one_message() -> None:
    assert chat_messages.messages(GenerationRequest(prompt="Hi")) == [
        {"role": "user", "content": "Hi"}
    ]


@pytest.mark.parametrize(
    "prompt",
    [
        "<s>Be brief.</s>First? One. Second? Two. Third?",
        "First? One. Second? Two. Be brief. Third?",
        "Be\n  brief. |  First?\n\nSecond?\nThird?",
    ],
)
def test_complete_prompt_is_accepted(prompt: str) -> None:
    chat_messages.require_whole(prompt, conversation(system="Be brief."), model="m")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("First? Second? Third?", "system prompt"),
        ("Be brief. Third?", "earlier turns"),
        ("Be brief. First? Third? Second?", "earlier turns"),
        ("Third?", "system prompt"),
        ({"role": "user", "content": "Third?"}, "system prompt"),
    ],
)
def test_template_that_drops_a_turn_is_refused(prompt: object, words: str) -> None:
    with pytest.raises(GenerationError, match=words) as caught:
        chat_messages.require_whole(prompt, conversation(system="Be brief."), model="m")
    assert caught.value.model == "m"
    assert "\n" not in str(caught.value)


def test_repeated_question_must_appear_twice() -> None:
    request = GenerationRequest(prompt="Again?", history=(Exchange("Again?", "No."),))
    chat_messages.require_whole("Again? No. Again?", request, model="m")
    with pytest.raises(GenerationError, match="earlier turns"):
        chat_messages.require_whole("Again?", request, model="m")


def test_single_question_may_be_rewritten_by_the_template() -> None:
    chat_messages.require_whole("<|rewritten|>", GenerationRequest(prompt="Hi"), model="m")


@pytest.mark.parametrize(
    ("request_", "advice"),
    [
        (GenerationRequest(prompt="Hi"), "ask in another way"),
        (GenerationRequest(prompt="Hi", system="s"), "without a system prompt, or choose"),
        (conversation(), "without the turns before this question"),
        (conversation(system="s"), "a system prompt or without the turns"),
    ],
)
def test_template_error_suggests_what_to_omit(request_: GenerationRequest, advice: str) -> None:
    error = chat_messages.template_error(ValueError("Roles must\nalternate."), request_, model="m")
    assert advice in str(error)
    assert "(Roles must alternate)" in str(error)
