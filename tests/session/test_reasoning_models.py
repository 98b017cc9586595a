"""Models that reason, with random weights: thoughts and text equal the library's, and are apart.

The weights are changed so that a greedy answer has the mark that ends its thoughts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

import mlx_magic
from mlx_magic import default_session
from mlx_magic.errors import GenerationError
from tests.backends.batch_verdicts import let_answer
from tools.tiny_models import making
from tools.tiny_models.spec import build, find

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("default")]

PROMPT = "What is it?"
LENGTH = 24
SWITCH = (
    "{% if add_generation_prompt %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
ALWAYS = "{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"
NOT_SHOWN = "{% if add_generation_prompt %}{{ '<thi' + 'nk>\n' }}{% endif %}"


class Raw(NamedTuple):
    """An answer of the library itself."""

    tokens: list[int]
    text: str


def raw_text(folder: Path, length: int = LENGTH, **arguments: Any) -> Raw:
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(folder))[:2]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, **arguments
    )
    answer = list(mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=length))
    return Raw([each.token for each in answer], "".join(each.text for each in answer))


def raw_vision(folder: Path, image: Path, length: int = LENGTH, **arguments: Any) -> Raw:
    import mlx_vlm
    from mlx_vlm.prompt_utils import apply_chat_template

    model, processor = mlx_vlm.load(str(folder))
    parts = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    prompt = apply_chat_template(
        processor, model.config, [{"role": "user", "content": parts}], num_images=1, **arguments
    )
    answer = list(
        mlx_vlm.stream_generate(
            model,
            processor,
            prompt,
            image=[str(image)],
            max_tokens=length,
            temperature=0.0,
            skip_special_tokens=True,
        )
    )
    return Raw([int(each.token) for each in answer], "".join(each.text for each in answer))


def end_thoughts(folder: Path, answer: Raw, mark: int) -> None:
    """Swap a token of the answer and the closing mark, so that the mark is written there."""
    import mlx.core as mx

    tokens = answer.tokens
    swapped = next(t for at, t in enumerate(tokens) if at >= 6 and tokens.index(t) == at)

    def change(name: str, array: Any) -> Any:
        if not name.endswith("lm_head.weight"):
            return array
        order = list(range(array.shape[0]))
        order[mark], order[swapped] = swapped, mark
        return array[mx.array(order)]

    making.change_weights(folder, change)


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns the folder of a text model with this end of its chat template."""
    made = tmp_path_factory.mktemp("reasoning") / "text"
    size, ids = making.tokenizer(
        made,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    making.write(made / "chat_template.jinja", making.chatml() + SWITCH)
    config = {
        "model_type": "llama",
        **making.LLAMA,
        "tie_word_embeddings": False,
        "vocab_size": size,
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
    }
    making.finish(made, config)
    making.lm_weights(made, config)
    end_thoughts(made, raw_text(made), ids["</think>"])

    def folder(template_end: str) -> Path:
        kept = {SWITCH: "switch", ALWAYS: "always", NOT_SHOWN: "not-shown"}[template_end]
        other = made.parent / kept
        if not other.exists():
            other.mkdir()
            for file in made.iterdir():
                (other / file.name).symlink_to(file)
            (other / "chat_template.jinja").unlink()
            making.write(other / "chat_template.jinja", making.chatml() + template_end)
        return other

    return folder


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory, picture: Path) -> Path:
    """A vision model whose closing mark is a special token: mlx-vlm leaves it out of its text."""
    folder = tmp_path_factory.mktemp("reasoning") / "vision"
    build(find("qwen2_vl"), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("<|vision_pad|>", "</think>"), encoding="utf-8")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + SWITCH, encoding="utf-8")
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    number = next(token["id"] for token in added if token["content"] == "</think>")
    end_thoughts(folder, raw_vision(folder, picture, enable_thinking=True), number)
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "red.png"
    Image.new("RGB", (64, 48), "red").save(path)
    return path


@pytest.fixture(autouse=True, scope="module")
def session() -> Iterator[None]:
    before = default_session.replace_current(None)
    yield
    default_session.current().close()
    default_session.replace_current(before)


def ask(folder: Path, *images: Any, **options: Any) -> mlx_magic.VisionResult:
    given = {"max_tokens": LENGTH, "temperature": 0.0, **options}
    return mlx_magic.ask(PROMPT, list(images) or None, str(folder), **given)


@pytest.mark.parametrize("together", [True, False])
def test_thoughts_and_text_are_those_of_the_library(
    text_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    folder = text_folder(SWITCH)
    let_answer(monkeypatch, together_=together)
    for model in mlx_magic.pool:
        mlx_magic.pool.unload(model.name)
    raw = raw_text(folder)
    thoughts, mark, text = raw.text.partition("</think>")
    assert mark
    result = ask(folder)
    assert (result.reasoning, result.text) == (thoughts.strip(), text.lstrip())
    assert result.reasoning
    assert result.text
    assert result.usage.completion_tokens == len(raw.tokens)


def test_thoughts_are_not_streamed_as_text(text_folder: Callable[[str], Path]) -> None:
    stream = mlx_magic.stream(
        PROMPT, model=str(text_folder(SWITCH)), max_tokens=LENGTH, temperature=0.0
    )
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text
    assert stream.progress.reasoning == stream.result.reasoning != ""


def test_an_answer_cut_in_its_thoughts_has_no_text(text_folder: Callable[[str], Path]) -> None:
    folder = text_folder(SWITCH)
    result = ask(folder, max_tokens=3)
    assert (result.text, result.finish_reason) == ("", "length")
    assert result.reasoning == raw_text(folder, 3).text.strip()


def test_data_come_from_the_text_after_the_thoughts(text_folder: Callable[[str], Path]) -> None:
    result = ask(text_folder(SWITCH), format="json", max_tokens=3)
    assert (result.data, result.data_error) == (None, "the answer is empty")


def test_stop_texts_end_the_answer_and_not_the_thoughts(
    text_folder: Callable[[str], Path],
) -> None:
    folder = text_folder(SWITCH)
    whole = ask(folder)
    in_thoughts = whole.reasoning[:3]
    assert in_thoughts not in whole.text
    assert ask(folder, stop=in_thoughts).text == whole.text
    stopped = ask(folder, stop=whole.text[2:5])
    assert (stopped.reasoning, stopped.finish_reason) == (whole.reasoning, "stop")
    assert stopped.text == whole.text[: whole.text.index(whole.text[2:5])]


def test_no_think_sets_the_switch_of_the_template(text_folder: Callable[[str], Path]) -> None:
    folder = text_folder(SWITCH)
    raw = raw_text(folder, enable_thinking=False)
    result = ask(folder, think=False)
    assert (result.reasoning, result.text) == ("", raw.text.lstrip())
    assert ask(folder, think=True).text == ask(folder).text


@pytest.mark.parametrize("think", [True, False])
def test_a_template_without_a_switch_is_an_error(
    text_folder: Callable[[str], Path], think: bool
) -> None:
    with pytest.raises(GenerationError, match="no switch for thinking") as failed:
        ask(text_folder(ALWAYS), think=think)
    assert "\n" not in str(failed.value)
    assert ("--no-think" in str(failed.value)) is not think


def test_marks_that_the_template_does_not_show_are_text(
    text_folder: Callable[[str], Path],
) -> None:
    folder = text_folder(NOT_SHOWN)
    raw = raw_text(folder)
    assert "</think>" in raw.text
    result = ask(folder)
    assert (result.reasoning, result.text) == ("", raw.text.lstrip())


def test_a_mark_that_mlx_vlm_leaves_out_is_found_by_its_token(
    vision_folder: Path, picture: Path
) -> None:
    raw = raw_vision(vision_folder, picture, enable_thinking=True)
    assert "</think>" not in raw.text
    result = ask(vision_folder, picture, think=True)
    assert result.reasoning
    assert result.text
    # Half of a character before the mark is dropped: mlx-vlm shows it as a replacement sign.
    pairs = [f"{result.reasoning}{result.text}", raw.text]
    assert len({"".join(text.replace("\ufffd", "").split()) for text in pairs}) == 1


def test_a_vision_model_thinks_as_mlx_vlm_does_by_default(
    vision_folder: Path, picture: Path
) -> None:
    raw = raw_vision(vision_folder, picture)
    result = ask(vision_folder, picture)
    assert result.reasoning == ""
    assert result.text == raw.text.lstrip()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("template", [SWITCH, ALWAYS])
def test_a_schema_begins_after_the_thoughts(
    text_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    together: bool,
    template: str,
) -> None:
    folder = text_folder(template)
    let_answer(monkeypatch, together_=together)
    for model in mlx_magic.pool:
        mlx_magic.pool.unload(model.name)
    free = ask(folder, max_tokens=80, schema_prompt="", schema="color: red|green, ok: bool")
    assert free.reasoning == ask(folder).reasoning != ""
    assert free.complete
    assert free.text.startswith('{"color": ')
    assert free.data.keys() == {"color", "ok"}
    if template == SWITCH:
        without = ask(folder, think=False, max_tokens=80, schema="color: red|green")
        assert (without.reasoning, without.complete) == ("", True)


def test_a_schema_begins_after_the_thoughts_of_a_vision_model(
    vision_folder: Path, picture: Path
) -> None:
    options = {"think": True, "schema_prompt": ""}
    result = ask(vision_folder, picture, max_tokens=80, schema="ok: bool", **options)
    assert result.reasoning == ask(vision_folder, picture, think=True).reasoning != ""
    assert result.data in ({"ok": True}, {"ok": False})
