"""Cancel stops work on an image: nothing is decoded, read or searched afterwards."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from mlx_magic import default_session
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.errors import ImageDecodeError
from mlx_magic.images.decoding.stoppable_file import DecodeDeadline, WatchedBytes
from mlx_magic.images.opening import open_images
from mlx_magic.notebook.panel.control.question_images import QuestionImages
from mlx_magic.testing import ScriptedBackend
from tests.hostile.image_cases import encode, scans
from tests.notebook.conftest import script, shell

__all__ = ["script", "shell"]


class CancelAtCheck(CancelToken):
    """A token that is cancelled at its n-th check."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.looks = 0

    @property
    def requested(self) -> bool:
        self.looks += 1
        if self.looks >= self.at:
            self._request("cancelled", 0.0)
        return super().requested

    def checkpoint(self) -> None:
        if self.requested:
            raise Cancelled


def noise(width: int = 600, height: int = 600) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def large(kind: str) -> Any:
    """Return something that takes many steps to open."""
    match kind:
        case "JPEG":
            return encode(noise(), "JPEG", quality=100, subsampling=0)
        case "progressive":
            return encode(noise(), "JPEG", quality=100, progressive=True)
        case "scans":
            return scans(2000, 2000, 90) + bytes(1_000_000)
        case "QOI":
            return encode(noise(300, 300), "QOI")
        case "plain PPM":
            return b"P3 1000 1000 255\n" + b"1 2 3 " * 1_000_000
        case "GIF":
            return encode(noise(300, 300), "GIF")
        case "array":
            return np.zeros((8, 1500, 1500, 3), np.float32)
        case "file":
            return io.BytesIO(encode(noise(1200, 1200), "BMP"))
        case "JPEG 2000":
            return encode(noise(), "JPEG2000")
        case _:
            return encode(noise(), kind)


@pytest.mark.parametrize(
    ("kind", "at"),
    [
        ("JPEG", 5), ("progressive", 5), ("PNG", 5), ("BMP", 5), ("TIFF", 5), ("plain PPM", 5),
        ("QOI", 4), ("array", 5), ("file", 5), ("JPEG 2000", 4), ("GIF", 3), ("scans", 3),
        ("AVIF", 5),
    ],
)  # fmt: skip
def test_cancel_ends_decoding_in_the_middle(kind: str, at: int) -> None:
    value = large(kind)
    token = CancelAtCheck(at)
    with pytest.raises(Cancelled):
        open_images(value, cancel=token)
    # The caller stopped there: at most the layers above checked once more.
    assert at <= token.looks <= at + 1
    (image, *_) = open_images(value, cancel=CancelToken())
    assert image.size[0] >= 300


def test_cancel_ends_a_glob_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
    token = CancelAtCheck(10)
    with pytest.raises(Cancelled):
        open_images("**/no-such-*.png", base=tmp_path, cancel=token)
    assert token.looks == 10
    (tmp_path / "large.bmp").write_bytes(encode(noise(1500, 1500), "BMP"))
    token = CancelAtCheck(5)
    with pytest.raises(Cancelled):
        open_images("large.bmp", base=tmp_path, cancel=token)
    assert token.looks == 5


def test_timeout_ends_image_decoding_as_cancel_does() -> None:
    seconds = itertools.count(0.0, 0.5)
    watch = DecodeDeadline("x", clock=lambda: next(seconds), seconds=2.0)
    file = WatchedBytes(bytes(1 << 20), watch)
    reads = iter(lambda: file.read(1 << 16), b"")
    with pytest.raises(ImageDecodeError, match=r"^x takes more than 2 seconds to decode"):
        list(reads)
    assert 0 < file.tell() < 6 << 16
    with pytest.raises(ImageDecodeError):  # a library that swallows the cancellation has no effect
        watch.reraise()


class Held:
    """The reads of decoders, held at one of them."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reads = 0
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self, real: Any, file: WatchedBytes, size: int | None) -> bytes:
        self.reads += 1
        if self.reads == self.at:
            self.reached.set()
            assert self.released.wait(30)
        data: bytes = real(file, size)
        return data


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held(at=30)
    real = WatchedBytes.read
    monkeypatch.setattr(WatchedBytes, "read", lambda file, size=-1: held(real, file, size))
    yield held
    held.released.set()


def threads(name: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == name]


def end(name: str) -> None:
    for thread in threads(name):
        thread.join(30)
        assert not thread.is_alive()


def test_cancelled_cell_ends_image_decoding(
    shell: InteractiveShell, script: ScriptedBackend, held: Held
) -> None:
    shell.user_ns["slow"] = encode(noise(1000, 1000), "PNG")

    def cancel() -> None:
        assert held.reached.wait(30)
        default_session.current().cancel()
        held.released.set()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    shell.run_cell_magic("vision", "slow -m demo -o r", "What is it?")
    canceller.join()
    assert shell.user_ns["r"].finish_reason == "cancelled"
    end("mlx-magic-prepare")
    # An image of 3 MB has more than a hundred of reads; the one that was held was the last.
    assert held.reads <= held.at + 4
    assert script.requests == []
    shell.run_cell_magic("vision", "img -m demo -o r", "What is it?")
    assert shell.user_ns["r"].finish_reason == "stop"


def test_removing_an_image_from_the_panel_ends_its_decoding(held: Held) -> None:
    images = QuestionImages(lambda: None)
    images.open(encode(noise(1000, 1000), "PNG"), "slow", as_id="a")
    assert held.reached.wait(30)
    images.remove("a")
    held.released.set()
    end("mlx-magic-open")
    assert held.reads <= held.at + 4
    assert not images.ready
    assert not images.problems
