from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import model_files, random_model, shapes
from benchmarks.model_files import read_json
from benchmarks.shapes import PUBLISHED, Shape
from benchmarks.wire import write_words
from benchmarks.workload import Ask, DrawnImages
from mlx_magic import demo
from tools.tiny_models import spec

NEVER = (random_model.NEVER, random_model.NEVER_WORD)


def reduced(shape: Shape) -> Shape:
    """Return a shape with a layer of each kind, few words, and its own widths of attention."""
    depth = "depth" if "depth" in shape.vision else "num_hidden_layers"
    sizes = {"num_hidden_layers": 1, "intermediate_size": 1024, "vocab_size": 2000}
    if "sliding_window_pattern" in shape.text:
        sizes |= {"num_hidden_layers": 2, "sliding_window_pattern": 2}
    text, vision, images = {**shape.text, **sizes}, {**shape.vision, depth: 1}, shape.images
    if "image_size" in vision:
        # A quarter of the patches for as many tokens.
        vision["image_size"], images = 448, {"size": {"height": 448, "width": 448}}
    return replace(shape, text=text, vision=vision, images=images)


def narrow(shape: Shape) -> Shape:
    """Return a shape with many narrow layers, whose weights are made within a moment."""
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 12}
    text = {**shape.text, **sizes, **heads, "vocab_size": 2000}
    return replace(shape, text=text, vision={**shape.vision, **sizes, "out_hidden_size": 256})


@given(st.integers(min_value=3, max_value=2000), st.sampled_from(["\u0120", "\u2581"]))
def test_every_token_has_a_distinct_word(size: int, space: str) -> None:
    vocabulary = {"a": 0, f"{space}aaaa": 2}
    model_files.extend(vocabulary, size, space=space)
    assert sorted(vocabulary.values()) == list(range(size))
    assert (vocabulary["a"], vocabulary[f"{space}aaaa"]) == (0, 2)
    assert all(word == "a" or word.startswith(space) for word in vocabulary)


def test_answer_has_the_requested_number_of_words(tmp_path: Path) -> None:
    path = tmp_path / "words.json"
    write_words(path, 200, paragraphs=True)
    words = json.loads(path.read_text(encoding="utf-8"))
    assert len(words) == 200
    assert "".join(words).count("\n\n") == 2
    write_words(path, 200, paragraphs=False)
    assert "\n" not in "".join(json.loads(path.read_text(encoding="utf-8")))


def test_names_are_the_own_shapes_the_published_ones_and_the_tiny_vision_models() -> None:
    names = random_model.names()
    assert names[:5] == ["tiny", "2b", "endless", "qwen2_5_vl-3b", "gemma3-4b"]
    assert {"smolvlm", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "gemma4"} <= {*names}
    assert len(names) == len({*names})
    assert not [name for name in names if name.startswith("text-")]
    # Their processes would load the library's own sizes.
    assert "gemma3n" not in names


@pytest.mark.parametrize(
    ("shape", "quantize", "says"),
    [
        ("no-such-shape", False, "There is no shape 'no-such-shape'"),
        ("text-llama", False, "There is no shape 'text-llama'"),
        ("gemma3-4b", True, "gemma3-4b cannot be quantized here"),
    ],
)
def test_unknown_shape_is_an_error(tmp_path: Path, shape: str, quantize: bool, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        random_model.build(shape, demo.folder(), tmp_path / "model", quantize=quantize)
    assert not (tmp_path / "model").exists()


def test_tiny_model_is_built_as_it_is(tmp_path: Path) -> None:
    made = random_model.build("qwen2_5_vl", demo.folder(), tmp_path / "made")
    spec.build(spec.find("qwen2_5_vl"), tmp_path / "plain")
    files = sorted(path.name for path in made.iterdir())
    assert files == sorted(path.name for path in (tmp_path / "plain").iterdir())
    for name in files:
        assert (made / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize(("name", "billions"), [("qwen2_5_vl-3b", 3.75), ("gemma3-4b", 4.30)])
def test_published_shape_has_the_published_number_of_parameters(name: str, billions: float) -> None:
    from mlx.utils import tree_flatten

    from tools.tiny_models.making import vlm_model

    shape = PUBLISHED[name]
    config: dict[str, Any] = {"model_type": shape.base, **shape.top}
    config |= {"vocab_size": shape.text["vocab_size"], "vision_config": dict(shape.vision)}
    config["vision_config"]["model_type"] = shape.base
    if shape.base == "gemma3":
        config["text_config"] = {**shape.text, "model_type": "gemma3_text"}
        config["vision_config"]["model_type"] = "siglip_vision_model"
    else:
        config |= shape.text
    # Nothing is computed: the arrays are only asked for their sizes.
    found = dict(tree_flatten(vlm_model(config).parameters()))
    count = sum(held.size for key, held in found.items() if key not in shape.tied)
    assert count / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.parametrize("name", PUBLISHED)
def test_shards_are_small_listed_and_of_the_requested_dtype(tmp_path: Path, name: str) -> None:
    import mlx.core as mx

    most = 2**20
    shape = narrow(PUBLISHED[name])
    folder = shapes.build(shape, tmp_path, never=NEVER, dtype="bfloat16", shard_bytes=most)
    listed = read_json(folder / "model.safetensors.index.json")
    files = model_files.weight_files(folder)
    assert len(files) > 3
    assert {path.name for path in files} == {*listed["weight_map"].values()}
    total = 0
    for path in files:
        held: Any = mx.load(str(path))
        assert {listed["weight_map"][key] for key in held} == {path.name}
        assert {array.dtype for array in held.values()} == {mx.bfloat16}
        total += sum(array.nbytes for array in held.values())
        assert len(held) == 1 or sum(array.nbytes for array in held.values()) <= most
    assert total == listed["metadata"]["total_size"]
    assert not shape.tied & listed["weight_map"].keys()


def test_memory_for_a_build_is_that_of_a_few_shards(tmp_path: Path) -> None:
    import mlx.core as mx

    shape = narrow(PUBLISHED["gemma3-4b"])
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    folder = shapes.build(shape, tmp_path, never=NEVER, dtype="bfloat16", shard_bytes=2**20)
    total = read_json(folder / "model.safetensors.index.json")["metadata"]["total_size"]
    assert mx.get_peak_memory() - before < total / 3


@pytest.mark.model
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", [*PUBLISHED, "qwen2_5_vl", "gemma3"])
def test_library_answers_about_an_image_with_the_folder(tmp_path: Path, name: str) -> None:
    import mlx_vlm

    from benchmarks.ways import prompt_of

    folder = tmp_path / "model"
    if name in PUBLISHED:
        shapes.build(reduced(PUBLISHED[name]), folder, never=NEVER, dtype="float32")
    else:
        random_model.build(name, demo.folder(), folder)
    ask = Ask("What is this?", DrawnImages(tmp_path / "images").draw())
    model, processor = mlx_vlm.load(str(folder))
    prompt = prompt_of(model, processor, ask)
    asked = {"max_tokens": 6, "temperature": 0.0}
    piece = list(mlx_vlm.stream_generate(model, processor, prompt, [ask.image], **asked))[-1]
    assert piece.generation_tokens == 6
    # 644x476 pixels in squares of 28, and the fixed number of Gemma 3.
    tokens = {"qwen2_5_vl-3b": 23 * 17, "gemma3-4b": 256}.get(name, 16)
    assert tokens < piece.prompt_tokens < tokens + 100


def test_published_shape_cannot_write_its_end(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shape = narrow(PUBLISHED["gemma3-4b"])
    folder = shapes.build(shape, tmp_path, never=NEVER, dtype="bfloat16")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.eos_token_id >= shape.text["vocab_size"]
    assert read_json(folder / "config.json")["eos_token_id"] == [random_model.NEVER]
    assert tokenizer.decode([1999]).strip().isalpha()


def test_twin_of_shards_links_each_of_them(tmp_path: Path) -> None:
    shape = narrow(PUBLISHED["qwen2_5_vl-3b"])
    source = shapes.build(
        shape, tmp_path / "source", never=NEVER, dtype="float32", shard_bytes=2**20
    )
    twin = random_model.twin(source, tmp_path / "twin", tiles=True, float32=True)
    names = [path.name for path in model_files.weight_files(source)]
    assert len(names) > 1
    assert [path.name for path in model_files.weight_files(twin)] == names
    assert all((twin / name).samefile(source / name) for name in names)
    images = read_json(twin / "preprocessor_config.json")
    assert images["min_pixels"] == random_model.LEAST_IMAGE_TOKENS * 28 * 28
    assert images["max_pixels"] >= images["min_pixels"]


def test_twin_of_half_precision_shards_is_widened(tmp_path: Path) -> None:
    import mlx.core as mx

    shape = narrow(PUBLISHED["gemma3-4b"])
    source = shapes.build(
        shape, tmp_path / "source", never=NEVER, dtype="bfloat16", shard_bytes=2**20
    )
    twin = random_model.twin(source, tmp_path / "twin", tiles=False, float32=True)
    assert read_json(twin / "config.json")["torch_dtype"] == "float32"
    for path in model_files.weight_files(source):
        held: Any = mx.load(str(twin / path.name))
        assert {array.dtype for array in held.values()} == {mx.float32}


def test_twin_with_many_tokens_of_a_fixed_size_is_an_error(tmp_path: Path) -> None:
    source = random_model.build("gemma3", demo.folder(), tmp_path / "source")
    with pytest.raises(ValueError, match="number of tokens of an image is fixed"):
        random_model.twin(source, tmp_path / "twin", tiles=True, float32=False)
