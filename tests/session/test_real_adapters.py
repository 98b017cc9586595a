"""LoRA adapters that the libraries themselves wrote, on real weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import mlx_magic
from mlx_magic import default_session
from mlx_magic.backends import upstream
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.errors import CheckpointError
from mlx_magic.session import Session
from tests import checkpoints
from tests.backends.upstream_cases import broken, recheck
from tests.model_folders import smollm2_folder

pytestmark = pytest.mark.model

QUESTION = "What is in the picture?"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    before = default_session.replace_current(None)
    made = default_session.current()
    yield made
    made.close()
    default_session.replace_current(before)


def shaken(model: Any) -> None:
    """Set the second LoRA factors: their initial zeros change nothing."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    mx.random.seed(3)

    def shake(name: str, value: Any) -> Any:
        is_factor = name.endswith("lora_b")
        return mx.random.normal(value.shape) if is_factor else value

    model.update(tree_map_with_path(shake, model.trainable_parameters()))


@pytest.fixture(scope="module")
def vision_adapter(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "eyes"

    def write() -> None:
        import mlx_vlm
        from mlx_vlm.trainer.peft import get_peft_model, save_adapter

        model, _ = mlx_vlm.load(str(mlx_magic.demo_model()))
        get_peft_model(model, ["q_proj", "v_proj"], rank=4, alpha=8, dropout=0.1, verbose=False)
        shaken(model)
        save_adapter(model, folder / "adapters.safetensors")

    session.engine.call(write).result(120)
    return folder


@pytest.fixture(scope="module")
def text_adapter(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tongue"
    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.1, "keys": keys}
    config = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": parameters}

    def write() -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten
        from mlx_lm.tuner.utils import linear_to_lora_layers
        from mlx_lm.utils import load

        model = load(str(smollm2_folder(quantized=False)), lazy=True)[0]
        model.freeze()
        linear_to_lora_layers(model, 16, parameters)
        shaken(model)
        weights = dict(tree_flatten(model.trainable_parameters()))
        checkpoints.write_json(folder / "adapter_config.json", config)
        mx.save_safetensors(str(folder / "adapters.safetensors"), weights)

    session.engine.call(write).result(120)
    return folder


def circle() -> Image.Image:
    image = Image.new("RGB", (200, 150), "white")
    ImageDraw.Draw(image).ellipse((60, 30, 140, 110), fill="red")
    return image


def ask(session: Session, model: str, prompt: str, *images: Image.Image) -> str:
    request = GenerationRequest(
        prompt=prompt, model=model, sampling=Sampling(max_tokens=24, temperature=0)
    )
    named = [("img", image) for image in images]
    return session.start(request, images=named).future.result(120).text


def test_vision_adapter_changes_its_answer_and_not_that_of_the_base(
    session: Session, vision_adapter: Path
) -> None:
    before = ask(session, "demo", QUESTION, circle())
    info = session.pool.submit_load(
        "demo", alias="tuned", adapter=str(vision_adapter)
    ).future.result(120)
    assert info is not None
    assert info.adapter == str(vision_adapter)
    assert info.nbytes > session.pool["demo"].nbytes
    tuned = ask(session, "tuned", QUESTION, circle())
    assert tuned != before
    assert ask(session, "demo", QUESTION, circle()) == before
    # Neither reuses caches of the other.
    assert ask(session, "tuned", QUESTION, circle()) == tuned
    session.pool.unload("tuned")
    assert ask(session, "demo", QUESTION, circle()) == before


def test_vision_adapter_answers_equal_mlx_vlm(session: Session, vision_adapter: Path) -> None:
    session.pool.submit_load("demo", alias="same", adapter=str(vision_adapter)).future.result(120)
    ours = ask(session, "same", "What is 3 plus 4?")

    def raw() -> str:
        import mlx.core as mx
        import mlx_vlm

        model, processor = mlx_vlm.load(
            str(mlx_magic.demo_model()), adapter_path=str(vision_adapter)
        )
        model.set_dtype(mx.float32)
        message = {"role": "user", "content": "What is 3 plus 4?"}
        prompt = mlx_vlm.apply_chat_template(processor, model.config, [message], num_images=0)
        pieces = mlx_vlm.stream_generate(model, processor, prompt, max_tokens=24, temperature=0)
        return "".join(piece.text for piece in pieces).strip()

    assert ours == session.engine.call(raw).result(120)
    session.pool.unload("same")


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_an_adapter_that_the_library_loads_in_one_piece_answers_the_same(
    kind: str,
    session: Session,
    vision_adapter: Path,
    text_adapter: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "vision":
        base, adapter, mechanism = "demo", vision_adapter, upstream.VISION_ADAPTERS
    else:
        base, adapter = str(smollm2_folder(quantized=False)), text_adapter
        mechanism = upstream.TEXT_LOAD
    name = next(n for n in mechanism.needed if n.path in ("apply_lora_layers", "load_adapters"))
    answers = []
    for _ in range(2):
        session.pool.load(base, alias="piece", adapter=str(adapter))
        answers.append(ask(session, "piece", QUESTION))
        session.pool.unload("piece")
        broken(monkeypatch, name, "removed")
    assert answers[0] == answers[1]
    assert mechanism.off in session.pool.switched_off
    monkeypatch.undo()
    recheck()


def test_text_adapter_changes_its_answer_and_not_that_of_the_base(
    session: Session, text_adapter: Path
) -> None:
    base, question = str(smollm2_folder(quantized=False)), "What is the capital of France?"
    before = ask(session, base, question)
    info = session.pool.submit_load(base, alias="said", adapter=str(text_adapter)).future.result(
        120
    )
    assert info is not None
    assert info.adapter == str(text_adapter)
    assert ask(session, "said", question) != before
    assert ask(session, base, question) == before
    session.pool.unload("said")
    session.pool.unload(base)


def spoilt(adapter: Path, folder: Path, change: Any) -> Path:
    """Copy an adapter with its tensors changed."""
    import mlx.core as mx

    shutil.copytree(adapter, folder)
    tensors: Any = mx.load(str(folder / "adapters.safetensors"))
    mx.save_safetensors(str(folder / "adapters.safetensors"), change(tensors))
    return folder


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}.else": value for name, value in tensors.items()}


def reshaped(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:, :3] for name, value in tensors.items()}


@pytest.mark.parametrize("change", [renamed, reshaped])
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_adapter_of_another_model_is_refused_in_one_line_and_frees_memory(
    session: Session,
    tmp_path: Path,
    kind: str,
    change: Any,
    request: pytest.FixtureRequest,
) -> None:
    adapter = request.getfixturevalue(f"{kind}_adapter")
    other = tmp_path / "other"
    session.engine.call(lambda: spoilt(adapter, other, change)).result(60)
    base = "demo" if kind == "vision" else str(smollm2_folder(quantized=False))
    count, active = len(session.pool), session.pool.memory.active
    with pytest.raises(CheckpointError, match="other") as caught:
        session.pool.submit_load(base, adapter=str(other)).future.result(120)
    assert "\n" not in str(caught.value)
    assert len(session.pool) == count
    assert session.pool.memory.active <= active + 1_000_000
