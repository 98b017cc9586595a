"""Images that were processed before a question's turn give the library's own answers."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.vision.image_cache.prefetch import Prefetched
from mlx_magic.cancellation import CancelToken
from tests.architectures.conftest import Build
from tools.model_table.compare import Comparison, Tally
from tools.model_table.questions import IMAGE, Question

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("default")]

# Their processors call `preprocess`, or look at the class of their image processor.
FAMILIES = ["minicpmv4_6", "lfm2_vl", "minicpmo"]
EVERY = os.environ.get("MLX_MAGIC_EVERY") == "1"


@pytest.mark.parametrize("name", FAMILIES if EVERY else FAMILIES[:1])
def test_answers_about_prefetched_images_are_the_librarys(
    name: str, tiny: Build, files: dict[str, Path]
) -> None:
    model, folder = tiny(name)
    comparison = Comparison(folder, model.library, files)
    ours = comparison.load()
    ours.ask(IMAGE)
    second = replace(IMAGE, name="second image", images=("bars",))
    held = prefetched(ours, second, files)
    assert isinstance(held, Prefetched)
    assert held.outputs
    tally = Tally()
    (answer,) = ours.ask(second)
    assert not held.outputs, "they were used"
    comparison.hold(tally, "prefetched", second, answer)
    ours.close()
    assert tally.right


def prefetched(ours: Any, question: Question, files: dict[str, Path]) -> object:
    """Prefetch the images of a question on another thread."""
    found: list[object] = []
    request = question.request(files)
    work = threading.Thread(
        target=lambda: found.append(ours.loaded.prefetch(request, CancelToken()))
    )
    work.start()
    work.join(60)
    return found[0]
