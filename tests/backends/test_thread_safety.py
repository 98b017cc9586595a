"""Which image processors can run on any thread: those whose code does not use MLX."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from mlx_magic.backends.vision.image_cache import prefetch
from mlx_magic.backends.vision.image_cache.prefetch import is_mlx_free

pytestmark = pytest.mark.usefixtures("mlx")

VLM = "mlx_vlm.models"


def class_named(module: str, name: str) -> Any:
    """Return an object of a library's class; nobody calls it."""
    return object.__new__(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("transformers.models.smolvlm.image_processing_pil_smolvlm", "SmolVLMImageProcessorPil"),
        ("transformers.models.siglip.image_processing_pil_siglip", "SiglipImageProcessorPil"),
        (f"{VLM}.qwen3_vl.processing_qwen3_vl", "Qwen3VLImageProcessor"),
        (f"{VLM}.gemma4.processing_gemma4", "Gemma4ImageProcessor"),
        (f"{VLM}.pixtral.image_processing_pixtral", "PixtralImageProcessor"),
    ],
)
def test_numpy_processors_are_mlx_free(module: str, name: str) -> None:
    assert is_mlx_free(class_named(module, name))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (f"{VLM}.phi3_v.processing_phi3_v", "Phi3VImageProcessor"),
        (f"{VLM}.internvl_chat.processor", "InternVLImageProcessor"),
        (f"{VLM}.minimax_m3_vl.processing_minimax_m3_vl", "MiniMaxM3VLImageProcessor"),
        (f"{VLM}.smolvlm.processing_smolvlm", "SmolVLMProcessor"),
    ],
)
def test_processors_that_make_mlx_arrays_are_not_mlx_free(module: str, name: str) -> None:
    assert not is_mlx_free(class_named(module, name))


class Plain:
    """A class outside the model libraries."""


def test_classes_outside_the_libraries_are_not_mlx_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_mlx_free(Plain())
    monkeypatch.setattr(prefetch, "KNOWN", ("tests",))
    assert is_mlx_free(Plain())


class Imports:
    def method(self) -> Any:
        import mlx.core

        return mlx.core


class Within:
    def method(self) -> Any:
        def inner() -> Any:
            import mlx.nn as nn

            return nn

        return inner


class Property:
    @property
    def method(self) -> Any:
        import mlx.core as mx

        return mx


class Static:
    @staticmethod
    def method() -> Any:
        import mlx.core as mx

        return mx


class Inherits(Imports):
    pass


@pytest.mark.parametrize("kind", [Imports, Within, Property, Static, Inherits])
def test_mlx_import_is_detected_in_every_kind_of_method(
    kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "KNOWN", ("tests",))
    assert not is_mlx_free(kind())
