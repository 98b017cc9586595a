"""What else works with an architecture: prefixes that are reused, LoRA adapters, boxes.

The first two are measured with a tiny checkpoint, and kept in ``marks.json``.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_magic.errors import MlxMagicError
from mlx_magic.models.checkpoints import lora
from tools.model_table.ours import OurModel
from tools.model_table.questions import IMAGE, LONG_TEXT, Question

MARKS = Path(__file__).with_name("marks.json")
COLUMNS = ("reused", "adapter", "boxes")
"""Names of the columns, in their order."""

README_MODELS = {
    "Qwen2-VL-2B-Instruct-4bit": "qwen2_vl",
    "SmolVLM-Instruct-4bit": "idefics3",
    "Qwen2.5-VL-3B-Instruct-4bit": "qwen2_5_vl",
    "Qwen2.5-VL-32B-Instruct-4bit": "qwen2_5_vl",
    "Qwen3-VL-4B-Instruct-4bit": "qwen3_vl",
    "Qwen3-VL-8B-Instruct-4bit": "qwen3_vl",
    "Qwen3-VL-30B-A3B-Instruct-4bit": "qwen3_vl_moe",
    "gemma-3-4b-it-4bit": "gemma3",
    "gemma-3-12b-it-4bit": "gemma3",
    "gemma-3-27b-it-4bit": "gemma3",
}
"""Architecture (``model_type``) of each repository in the table of README.md."""

_RANK, _SCALE = 2, 2.0
_NAMES = ("q_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Marks:
    """What was measured of one checkpoint.

    Attributes
    ----------
    reused : bool or None
        Whether a second question about the same image (or text) reads only what is new. None if
        there was no answer.
    adapter : bool or None
        Whether a LoRA adapter of the library's own form changes the answer. None if the library
        could not make one.
    """

    reused: bool | None = None
    adapter: bool | None = None

    def as_json(self) -> dict[str, bool | None]:
        """Return it as plain data."""
        return {"reused": self.reused, "adapter": self.adapter}


def measured(folder: Path, library: str, files: Mapping[str, Path]) -> Marks:
    """Measure a checkpoint as a person has it."""
    question = IMAGE if library == "mlx-vlm" else LONG_TEXT
    second = replace(question, prompt=f"{question.prompt} And what else?")
    model = OurModel(folder, library, files)
    first = _answer(model, question)
    again = model.begin(second)
    model.run([again])
    model.close()
    if first is None or again.error is not None:
        return Marks()
    return Marks(again.cached > 0, _adapts(folder, library, files, question, first))


def _answer(model: OurModel, question: Question) -> str | None:
    (answer,) = model.ask(question)
    return None if answer.error else answer.text


def _adapts(
    folder: Path, library: str, files: Mapping[str, Path], question: Question, before: str
) -> bool | None:
    adapter = Path(tempfile.mkdtemp())
    try:
        (_write_vision if library == "mlx-vlm" else _write_text)(folder, adapter)
    # The library has no form of adapters for this architecture.
    except Exception:
        return None
    try:
        model = OurModel(
            folder, library, files, lora.inspect(adapter, _kind(library), model="tiny")
        )
    except MlxMagicError:
        return False
    after = _answer(model, question)
    model.close()
    return after is not None and after != before


def _kind(library: str) -> Any:
    return "vision" if library == "mlx-vlm" else "text"


def _write_vision(folder: Path, adapter: Path) -> None:
    import mlx_vlm
    from mlx_vlm.trainer.peft import get_peft_model, save_adapter

    model, _ = mlx_vlm.load(str(folder))
    get_peft_model(model, list(_NAMES), rank=_RANK, alpha=4, dropout=0.0, verbose=False)
    _shake(model)
    save_adapter(model, adapter / "adapters.safetensors")


def _write_text(folder: Path, adapter: Path) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load

    model = load(str(folder), lazy=True)[0]
    model.freeze()
    count = len(model.layers)
    parameters = {"rank": _RANK, "scale": _SCALE, "dropout": 0.0}
    linear_to_lora_layers(model, count, parameters)
    _shake(model)
    config = {"fine_tune_type": "lora", "num_layers": count, "lora_parameters": parameters}
    (adapter / lora.CONFIG).write_text(json.dumps(config), encoding="utf-8")
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)


def _shake(model: Any) -> None:
    """Set the second factors: their initial zeros change nothing."""
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    mx.random.seed(3)

    def shake(name: str, value: Any) -> Any:
        return mx.random.normal(value.shape) if name.endswith("lora_b") else value

    model.update(tree_map_with_path(shake, model.trainable_parameters()))


def read() -> dict[str, Marks]:
    """Return what was measured, by the checkpoint's name."""
    held = json.loads(MARKS.read_text("utf-8")) if MARKS.exists() else {}
    return {name: Marks(**marks) for name, marks in held.items()}


def write(found: Mapping[str, Marks]) -> None:
    """Put what was measured into the file; other checkpoints stay."""
    held = {**read(), **found}
    lines = [f"{json.dumps(name)}: {json.dumps(held[name].as_json())}" for name in sorted(held)]
    MARKS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def cells(name: str, architecture: str) -> list[str]:
    """Return the cells of `COLUMNS` of a checkpoint; ``""`` is not known."""
    marks = read().get(name, Marks())
    words = {True: "yes", False: "no", None: ""}
    return [words[marks.reused], words[marks.adapter], boxes(architecture)]


def boxes(architecture: str) -> str:
    """Return the name of the dialect in which an architecture writes boxes; ``""`` if unknown."""
    try:
        dialects: Any = importlib.import_module("mlx_magic.data.places.dialects")
    except ModuleNotFoundError:
        return ""
    dialect = dialects.of_architecture(architecture)
    return "" if dialect is None else str(dialect.name)
