"""Answers that follow a schema, of tiny models with random weights: alone, in a batch, cut."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from PIL import Image
from pydantic import BaseModel

import mlx_magic
from mlx_magic import default_session
from mlx_magic.backends.batching.decode import DecodeBatch
from mlx_magic.errors import GenerationError, RequestError
from tests.backends.batch_verdicts import let_answer
from tests.data.schemas import json_schemas
from tools.tiny_models.spec import build, find, shrunk

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("default")]

EVERY = os.environ.get("MLX_MAGIC_EVERY") == "1"
TEXT = ("text-llama", "text-lfm2")
VISION = ("smolvlm", "qwen2_vl")
MORE = ("text-gemma3_text", "text-qwen3_5", "text-mamba2", "text-phi3", "gemma3", "qwen3_vl")
NAMES = (*TEXT, *VISION, *(MORE if EVERY else ()))

FIELDS = "shape: str, count: int, color: red|green|dark blue"


class Item(BaseModel):
    """A thing on a receipt."""

    name: Literal["tea", "cake"]
    size: Literal["small", "large"]
    paid: bool


SCHEMAS: list[Any] = [
    list[Item],
    "color: red|green|blue, ok: bool, day: date",
    None,
    Literal["yes", "no"],
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 4},
    "a: bool, b: bool, c: bool, d: bool",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("tiny")
    made = {}
    for name in NAMES:
        model = find(name)
        build(model, place / name)
        shrunk(model.architecture)
        made[name] = place / name
    return made


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = default_session.replace_current(None)
    let_answer(monkeypatch, together_=True)
    yield
    default_session.current().close()
    default_session.replace_current(before)


def stream(folder: Path, schema: Any, at: int = 0, **options: Any) -> mlx_magic.TextStream:
    image = None if folder.name.startswith("text-") else Image.new("RGB", (64, 48), "red")
    given = {"max_tokens": 60, "temperature": 0.0, **options}
    return mlx_magic.stream(
        f"What is it? {'Look. ' * at}", image, str(folder), schema=schema, **given
    )


@pytest.mark.parametrize("name", NAMES)
def test_greedy_answers_are_the_same_in_a_batch_and_alone(
    name: str, folders: dict[str, Path]
) -> None:
    folder = folders[name]
    alone = [stream(folder, schema, at).result for at, schema in enumerate(SCHEMAS)]
    begun = [stream(folder, schema, at) for at, schema in enumerate(SCHEMAS)]
    together = [each.result for each in begun]
    for one, other, schema in zip(alone, together, SCHEMAS, strict=True):
        assert one.text == other.text
        assert one.usage.completion_tokens == other.usage.completion_tokens
        if schema is not None:
            assert one.complete == (one.data_error is None)
            assert one.complete or one.finish_reason == "length"


def test_tokens_without_a_choice_are_read_in_one_call(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    real = DecodeBatch.step

    def step(self: DecodeBatch, sampler: Any) -> list[list[int]]:
        found = real(self, sampler)
        calls.extend(map(len, found))
        return found

    folder = folders["text-llama"]
    before = stream(folder, "color: red|green").result
    monkeypatch.setattr(DecodeBatch, "step", step)
    joint = stream(folder, "color: red|green").result
    assert max(calls) > 3
    assert len(calls) < joint.usage.completion_tokens
    monkeypatch.setattr(DecodeBatch, "_forced", lambda self: [])
    calls.clear()
    mlx_magic.pool.forget()
    single = stream(folder, "color: red|green").result
    assert max(calls) == 1
    assert before.text == joint.text == single.text


@pytest.mark.parametrize("name", ["text-llama", "smolvlm"])
def test_one_at_a_time_answers_follow_the_schema(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = stream(folders[name], list[Item]).result
    mlx_magic.pool.unload(str(folders[name]))
    let_answer(monkeypatch, together_=False)
    for schema in (list[Item], FIELDS):
        result = stream(folders[name], schema).result
        assert result.complete or result.finish_reason == "length"
        if schema is not FIELDS:
            assert result.text == batched.text


def test_an_answer_that_was_cut_has_its_whole_fields(folders: dict[str, Path]) -> None:
    folder = folders["text-llama"]
    whole = stream(folder, "a: bool, b: bool, c: bool").result
    assert whole.complete
    assert whole.partial is None
    assert isinstance(whole.data, dict)
    most = whole.usage.completion_tokens
    for count in range(1, most):
        cut = stream(folder, "a: bool, b: bool, c: bool", max_tokens=count).result
        assert whole.text.startswith(cut.text)
        if cut.text == whole.text:
            assert cut.complete
            continue
        assert (cut.complete, cut.data, cut.finish_reason) == (False, None, "length")
        assert cut.data_error == "it was cut off at max_tokens"
        assert cut.partial.items() <= whole.data.items()


def test_options_work_with_a_schema(folders: dict[str, Path]) -> None:
    folder = folders["text-llama"]
    options: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 3, "top_k": 20},
        {"temperature": 1.0, "seed": 3, "top_p": 0.9, "min_p": 0.01},
        {"repetition_penalty": 1.3},
        {"system": "Be brief."},
        {"format": "raw"},
    ]
    for each in options:
        first, second = (stream(folder, list[Item], **each).result for _ in range(2))
        assert first.complete or first.finish_reason == "length", each
        assert first.text == second.text
    stopped = stream(folder, "a: bool, b: bool", stop='"b"').result
    assert (stopped.complete, list(stopped.partial)) == (False, ["a"])
    assert stopped.data_error == "a stop sequence ended it"


def test_a_cancelled_answer_keeps_what_is_whole(folders: dict[str, Path]) -> None:
    schema = {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 150}
    running = stream(folders["text-llama"], schema, max_tokens=400)
    for _ in range(8):
        next(running)
    running.cancel()
    result = running.result
    assert (result.finish_reason, result.complete, result.data) == ("cancelled", False, None)
    assert result.partial
    assert all(isinstance(each, int) for each in result.partial)


def test_a_stream_with_a_schema_ends_with_its_object(folders: dict[str, Path]) -> None:
    running = stream(folders["text-llama"], Item)
    text = "".join(running)
    assert running.result.data == Item.model_validate_json(text)


@pytest.mark.parametrize("name", ["text-llama", "smolvlm"])
def test_examples_are_earlier_turns(name: str, folders: dict[str, Path]) -> None:
    image = None if name.startswith("text-") else Image.new("RGB", (32, 32), "blue")
    item = {"name": "tea", "size": "large", "paid": True}
    plain = stream(folders[name], Item).result
    shown = stream(folders[name], Item, examples=[(image, item)] * 2).result
    assert shown.complete
    assert shown.usage.prompt_tokens > plain.usage.prompt_tokens + 20
    assert shown.usage.image_tokens == 3 * plain.usage.image_tokens
    assert len(shown.images) == len(plain.images)
    for wrong in ([image], "ab", [(image, {"name": "x"})], [(image, item, 1)]):
        with pytest.raises(RequestError, match="examples"):
            stream(folders[name], Item, examples=wrong)


def test_a_tokenizer_that_cannot_be_read_is_an_error_before_anything_is_generated(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_magic.backends import upstream

    folder = folders["text-llama"]
    monkeypatch.setattr(upstream, "rust_tokenizer", lambda tokenizer: None)
    running = stream(folder, Item)
    with pytest.raises(GenerationError, match="cannot be used with a schema or choices"):
        list(running)
    assert running.progress.prompt_read == 0
    assert stream(folder, None).result.text


def test_a_schema_is_checked_before_a_model_is_loaded() -> None:
    for schema, format in ((3, "text"), ({"enum": []}, "text"), (FIELDS, "markdown")):
        with pytest.raises(RequestError):
            mlx_magic.ask("?", model="no-such-model", schema=schema, format=format)  # type: ignore[arg-type]
    assert not list(mlx_magic.pool)


@pytest.mark.timeout(1_800 if EVERY else 120)
@settings(
    max_examples=1000 if EVERY else 12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(json_schemas())
def test_answers_of_random_weights_are_valid_or_said_to_be_cut(
    folders: dict[str, Path], schema: dict[str, Any]
) -> None:
    jsonschema: Any = import_module("jsonschema")  # has no types
    result = stream(folders["text-llama"], schema, max_tokens=200, temperature=1.0, seed=1).result
    if result.complete:
        jsonschema.validate(result.data, schema)
        assert json.loads(result.text) == result.data
    else:
        assert (result.finish_reason, result.data) == ("length", None)
