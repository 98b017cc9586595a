"""The bundled model in a real kernel: asked, cancelled in the middle, and asked again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlx_magic.demo

from .conftest import start_client
from .kernel_client import Client

pytestmark = [pytest.mark.kernel, pytest.mark.model]

SETUP = """
%load_ext mlx_magic
from PIL import Image, ImageDraw
img = Image.new("RGB", (128, 128), "white")
ImageDraw.Draw(img).rectangle((30, 30, 98, 98), fill="red")
"""
LOADING = 60.0
"""Seconds that the import of mlx-vlm and the load may take on a slow machine."""


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model, but its end of turn is a token that it does not write."""
    folder = tmp_path_factory.mktemp("endless") / "model"
    shutil.copytree(mlx_magic.demo.folder(), folder)
    tokens = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    never = next(token["id"] for token in tokens if token["content"] == "<global-img>")
    for name in ("config.json", "generation_config.json"):
        change_json(folder / name, eos_token_id=[never])
    change_json(folder / "tokenizer_config.json", eos_token="<global-img>")
    return folder


@pytest.fixture(scope="module", params=["6.29.5", "7.4.0"])
def client(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Client]:
    """A kernel of its own, as the real libraries stay in it."""
    client = start_client(request.param, tmp_path_factory.mktemp("real"))
    assert client.run(SETUP).status == "ok"
    yield client
    client.close()


def test_cancel_works_during_load_and_decode(client: Client, endless: Path) -> None:
    question = f"%%vision img -o answer -m {endless} --max-tokens 1000000\nWhat is this?"
    asking = client.start(question)
    client.wait_for_words(asking, "loading")
    client.click(client.wait_for_button(asking))
    client.finish(asking, LOADING)
    assert (asking.status, client.value("answer.finish_reason")) == ("ok", "cancelled")
    assert client.value("answer.text") == ""

    asking = client.start(question)
    queued = client.start("print(answer.finish_reason, answer.usage.completion_tokens > 0)")
    client.wait_for_words(asking, "red", LOADING)
    client.click(client.wait_for_button(asking))
    client.finish(asking, LOADING)
    assert (asking.status, client.finish(queued).stdout) == ("ok", "cancelled True\n")
    assert "red" in client.value("answer.text")

    # The same model and cache, told to stop by itself.
    short = client.run(question.replace("1000000", "3"))
    assert (short.status, client.value("answer.finish_reason")) == ("ok", "length")


def test_bundled_model_answers(client: Client) -> None:
    cell = client.run("%%vision img -o answer\nWhat color is the square?", LOADING)
    assert cell.status == "ok", cell.summary()
    assert "red" in client.value("answer.text")
    assert client.value("answer.finish_reason") == "stop"
    assert int(client.value("answer.usage.image_tokens")) > 0
