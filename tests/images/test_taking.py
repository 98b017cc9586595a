"""What can change is taken when it is asked for: later changes do not change the images."""

from __future__ import annotations

import array
import io
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from mlx_magic.errors import ImageError, ImageTooLargeError
from mlx_magic.images import sources
from mlx_magic.images.opening import ImageInput, open_images, take_images

RED, BLUE = (255, 0, 0), (0, 0, 255)
Change = Callable[[], object]


def encoded(color: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(buffer, kind, **options)
    return buffer.getvalue()


def color_of(image: ImageInput) -> Any:
    return image.pixels.getpixel((1, 1))


def numpy_array(folder: Path) -> tuple[Any, Change]:
    value = np.full((4, 6, 3), RED, np.uint8)
    return value, lambda: value.fill(9)


def float_array(folder: Path) -> tuple[Any, Change]:
    value = np.zeros((4, 6, 3))
    value[..., 0] = 1
    return value, lambda: value.fill(0.5)


def view_of_an_array(folder: Path) -> tuple[Any, Change]:
    value = np.full((8, 12, 3), RED, np.uint8)
    return value[::2, ::2], lambda: value.fill(9)


def object_with_an_array(folder: Path) -> tuple[Any, Change]:
    value = np.full((4, 6, 3), RED, np.uint8)

    class Tensor:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            return value

    return Tensor(), lambda: value.fill(9)


def pillow_image(folder: Path) -> tuple[Any, Change]:
    value = Image.new("RGB", (6, 4), RED)
    return value, lambda: value.paste(BLUE, (0, 0, 6, 4))


def opened_pillow_image(folder: Path) -> tuple[Any, Change]:
    path = folder / "opened.png"
    path.write_bytes(encoded(RED))
    value = Image.open(path)

    def change() -> None:
        value.paste(BLUE, (0, 0, 6, 4))
        path.write_bytes(encoded(BLUE))

    return value, change


def page_of_a_tiff(folder: Path) -> tuple[Any, Change]:
    pages = encoded(
        BLUE, "TIFF", save_all=True, append_images=[Image.new("RGB", (6, 4), c) for c in (RED, 9)]
    )
    value = Image.open(io.BytesIO(pages))
    value.seek(1)
    return value, lambda: value.seek(2)


def frame_of_a_gif(folder: Path) -> tuple[Any, Change]:
    frames = [Image.new("RGB", (6, 4), color) for color in (RED, "white")]
    value = Image.open(io.BytesIO(encoded(BLUE, "GIF", save_all=True, append_images=frames)))
    value.seek(1)
    return value, lambda: value.seek(2)


def byte_array(folder: Path) -> tuple[Any, Change]:
    value = bytearray(encoded(RED))
    return value, lambda: value.__setitem__(slice(None), encoded(BLUE))


def memory_view(folder: Path) -> tuple[Any, Change]:
    value = bytearray(encoded(RED))
    return memoryview(value), lambda: value.__setitem__(slice(20, 40), bytes(20))


def typed_buffer(folder: Path) -> tuple[Any, Change]:
    value = array.array("B", encoded(RED))
    return value, lambda: value.__setitem__(slice(20, 40), array.array("B", bytes(20)))


def memory_map(folder: Path) -> tuple[Any, Change]:
    path = folder / "mapped.png"
    path.write_bytes(encoded(RED))
    with path.open("r+b") as file:
        value = mmap.mmap(file.fileno(), 0)
    return value, lambda: value.__setitem__(slice(20, 40), bytes(20))


def encoded_array(folder: Path) -> tuple[Any, Change]:
    value = np.frombuffer(bytearray(encoded(RED)), np.uint8)
    return value, lambda: value.fill(0)


def bytes_file(folder: Path) -> tuple[Any, Change]:
    value = io.BytesIO(encoded(RED))
    return value, lambda: value.getbuffer().__setitem__(slice(20, 40), bytes(20))


def open_file(folder: Path) -> tuple[Any, Change]:
    path = folder / "file.png"
    path.write_bytes(encoded(RED))
    value = path.open("rb")

    def change() -> None:
        value.close()
        path.unlink()

    return value, change


def local_file(folder: Path) -> tuple[Any, Change]:
    path = folder / "saved.png"
    path.write_bytes(encoded(RED))
    return str(path), lambda: path.write_bytes(encoded(BLUE))


def local_path(folder: Path) -> tuple[Any, Change]:
    path = folder / "path.png"
    path.write_bytes(encoded(RED))
    return path, path.unlink


def figure(folder: Path) -> tuple[Any, Change]:
    from matplotlib.figure import Figure

    value = Figure(figsize=(1, 1), dpi=20)
    value.add_axes((0.0, 0.0, 1.0, 1.0)).axis("off")
    value.set_facecolor("red")
    return value, lambda: value.set_facecolor("blue")


def displayed(folder: Path) -> tuple[Any, Change]:
    class Shows:
        data = encoded(RED)

        def _repr_png_(self) -> bytes:
            return self.data

    value = Shows()
    return value, lambda: setattr(value, "data", encoded(BLUE))


KINDS = [
    numpy_array, float_array, view_of_an_array, object_with_an_array, pillow_image,
    opened_pillow_image, page_of_a_tiff, frame_of_a_gif, byte_array, memory_view, typed_buffer,
    memory_map, encoded_array, bytes_file, open_file, local_file, local_path, figure, displayed,
]  # fmt: skip
CONTAINERS: list[Callable[[Any], Any]] = [
    lambda value: value,
    lambda value: [value],
    lambda value: (value, value),
    lambda value: iter([value]),
    lambda value: deque([value]),
    lambda value: {"image": value}.values(),
    lambda value: (each for each in [[value]]),
]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), st.sampled_from(CONTAINERS))
def test_changes_after_the_call_do_not_change_the_images(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[Callable[[Path], tuple[Any, Change]]],
    container: Callable[[Any], Any],
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("taken")
    made = [kind(folder) for kind in dict.fromkeys(kinds)]
    taken = take_images([("x", container(value)) for value, _ in made])
    taken.read()
    for _, change in made:
        change()
    images: list[ImageInput] = []
    thread = threading.Thread(target=lambda: images.extend(taken.open()))
    thread.start()
    thread.join()
    assert len(images) >= len(made)
    assert {color_of(image) for image in images} == {RED}


def test_frame_buffer_that_is_filled_again_gives_each_frame() -> None:
    buffer = np.zeros((4, 6, 3), np.uint8)

    def camera() -> Iterator[Any]:
        for level in (10, 20, 30):
            buffer.fill(level)
            yield buffer

    assert [color_of(image)[0] for image in open_images(camera())] == [10, 20, 30]


def test_pages_of_an_open_file_are_that_many_images() -> None:
    colors = [RED, BLUE, (0, 255, 0)]
    pages = [Image.new("RGB", (6, 4), color) for color in colors]
    for kind in ("TIFF", "PNG", "GIF", "WEBP"):
        data = encoded(RED, kind, save_all=True, append_images=pages[1:], lossless=True)
        images = open_images(ImageSequence.Iterator(Image.open(io.BytesIO(data))))
        assert [color_of(image) for image in images] == colors


def test_image_that_was_read_already_is_taken_twice(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(RED))
    image = Image.open(path)
    image.load()
    assert [color_of(each) for each in open_images([image, image])] == [RED, RED]


def test_image_that_was_changed_after_it_was_opened_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 48), RED).save(path)
    drawn = Image.open(path)
    drawn.paste(BLUE, (0, 0, 64, 48))
    assert color_of(open_images(drawn)[0]) == BLUE
    small = Image.open(path)
    small.draft("RGB", (16, 12))
    assert open_images(small)[0].size == small.size != (64, 48)


def test_failing_iterator_is_an_error_of_one_line() -> None:
    def broken() -> Iterator[Any]:
        yield encoded(RED)
        raise OSError("the camera\nis gone")

    with pytest.raises(ImageError) as caught:
        open_images(broken(), name="frames")
    assert str(caught.value) == "frames failed to give its next image: the camera?is gone."


def test_all_that_is_taken_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_TAKEN_BYTES", 100_000)
    with pytest.raises(ImageTooLargeError, match=r"x\[1\] take 120 KB before they are decoded"):
        open_images([np.zeros((100, 200, 3), np.uint8)] * 2, name="x")
