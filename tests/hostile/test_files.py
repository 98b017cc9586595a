"""Hostile paths and globs: no waiting, no search of the whole disk, one error line."""

from __future__ import annotations

import os
import socket
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mlx_magic.errors import ImageDecodeError, ImageError, ImageTooLargeError
from mlx_magic.images import files, globs
from mlx_magic.images import opening as images_module
from mlx_magic.images.opening import open_images
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.tokens import Token
from tests.hostile.image_cases import encode

IMAGE = encode(Image.new("RGB", (4, 3), "red"), "PNG")


def line(value: Any, base: Path | None = None) -> str:
    """Return the line that a value is refused with."""
    with pytest.raises(ImageError) as caught:
        open_images(value, base=base)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "/dev/tty", "/dev/null"])
def test_devices_are_not_opened(path: str) -> None:
    assert "not a regular file" in line(path)


def test_sockets_and_symlink_loops_are_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.png"))
        assert "not a regular file" in line("s.png", tmp_path)
    (tmp_path / "a.png").symlink_to("b.png")
    (tmp_path / "b.png").symlink_to("a.png")
    assert "a.png" in line("a.png", tmp_path)


def test_pipe_that_replaces_a_checked_file_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(IMAGE)
    real = files.find_files

    def swapped(*args: Any, **options: Any) -> list[Path]:
        found = real(*args, **options)
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr(files, "find_files", swapped)
    assert line("x.png", tmp_path) == "x.png is not a regular file."


def test_device_that_replaces_a_checked_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(IMAGE)
    real = files.find_files

    def swapped(*args: Any, **options: Any) -> list[Path]:
        found = real(*args, **options)
        path.unlink()
        path.symlink_to("/dev/zero")
        return found

    monkeypatch.setattr(files, "find_files", swapped)
    assert line("x.png", tmp_path) == "x.png is not a regular file."


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("name", ["pagemap", "environ", "maps", "mem", "cmdline"])
def test_system_files_without_a_size_are_read_only_at_their_start(name: str) -> None:
    tracemalloc.start()
    try:
        line(f"/proc/self/{name}")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_file_without_an_image_header_is_not_read_further(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(199_000_000)
    tracemalloc.start()
    try:
        assert "not an image of a supported format" in line("sparse.png", tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(100_000_000_000)
    assert "the limit is 200 MB" in line("sparse.png", tmp_path)


def test_glob_through_a_symlink_loop_ends(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "one.png").write_bytes(IMAGE)
    assert "No file matches" in line("**/no-such-*.png", tmp_path)
    assert [image.source for image in open_images("**/one.png", base=tmp_path)] == ["one.png"]


def test_glob_over_the_whole_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globs, "MAX_ENTRIES", 50)
    # Each folder leads to the next by two ways: 2 to the power of 11 paths.
    here = tmp_path
    for _ in range(11):
        (here / "x").mkdir()
        (here / "y").symlink_to("x")
        here = here / "x"
    text = line("**/no-such.png", tmp_path)
    assert text == (
        "'**/no-such.png' looks through more than 50 files and folders: begin it with a smaller "
        "folder."
    )
    # The cell's main thread looks no further either; the request says it.
    token = Token("**/no-such.png", "**/no-such.png", quoted=False)
    assert image_values([token], {}, lambda text: None, tmp_path) == [
        ("**/no-such.png", "**/no-such.png")
    ]


def test_globs_match_as_before(tmp_path: Path) -> None:
    import glob

    for name in ("a/1.png", "a/b/2.png", "a/b/c/3.png", ".h/4.png", "a/.5.png", "d[1]/6.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(IMAGE)
    (tmp_path / "link").symlink_to("a")
    patterns = [
        "*.png", "*/*.png", "**/*.png", "a/**/*.png", "**/b/*.png", "a/**", "**", "*/b/2.png",
        ".h/*", "a/.*", "**/.*", "d[[]1]/*.png", "./a/*.png", "a/../a/*.png", "link/*.png",
        "**/**/3.png", "a/[!x].png", "a/?.png", "a//1.*", "nothing/*", "*/",
        str(tmp_path / "a/*.png"), str(tmp_path / "**/*.png"),
    ]  # fmt: skip
    for pattern in patterns:
        expected = {
            (tmp_path / found).resolve()
            for found in glob.iglob(pattern, root_dir=tmp_path, recursive=True)  # noqa: PTH207
            if (tmp_path / found).is_file()
        }
        found = {
            (tmp_path / each).resolve()
            for each in globs.match_files(pattern, tmp_path)
            if (tmp_path / each).is_file()
        }
        assert found == expected, pattern


def test_large_data_uri_of_escapes_or_spaces_is_refused() -> None:
    assert "write it as base64" in line("data:image/png," + "%" * 4_000_000)
    assert "is empty" in line("data:image/png;base64," + " " * 4_000_000)


# Arrays


def broadcast(shape: tuple[int, ...], kind: Any = np.uint8) -> Any:
    """Return an array of one value that looks as large as `shape`."""
    return np.broadcast_to(np.zeros((), kind), shape)


@pytest.mark.parametrize(
    ("shape", "kind", "says"),
    [
        ((100_000, 1_000_000), np.uint8, "megapixels; the limit is 64"),
        ((10**9, 10, 10), np.uint8, "shape"),
        ((10**9, 10, 10, 3), np.uint8, "at most 64"),
        ((1 << 20, 1 << 20, 3), np.float64, "the limit is 64"),
        ((4, 4, 10**9), np.uint8, "shape"),
        ((4, 4), np.dtype([(f"field{at}", "u1") for at in range(5_000)]), "use uint8"),
        ((4, 4), np.complex64, "use uint8"),
        ((4, 4), "M8[s]", "use uint8"),
    ],
)
def test_broadcast_arrays_are_limited_by_their_shape(
    shape: tuple[int, ...], kind: Any, says: str
) -> None:
    assert says in line(broadcast(shape, kind))


def test_broadcast_object_array_stops_at_the_image_limit() -> None:
    array = np.broadcast_to(np.array([IMAGE], object), (10**8,))
    assert "At most 64 images" in line(array)


def test_many_large_arrays_are_not_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "MAX_PIXELS_TOTAL", 3_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match="set max_pixels"):
            open_images([broadcast((64, 1000, 1000, 3))[:32], *[broadcast((1000, 1000, 3))] * 32])
        # All together are 192 MB; one at a time is converted, and three are allowed.
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_large_float_array_needs_little_extra_memory() -> None:
    tracemalloc.start()
    try:
        (image,) = open_images(broadcast((3000, 3000, 3), np.float64))
        assert image.size == (3000, 3000)
        assert tracemalloc.get_traced_memory()[1] < 110_000_000
    finally:
        tracemalloc.stop()


class Lies:
    """Claims to be an array."""

    def __init__(self, gives: Any) -> None:
        self.gives = gives

    def __array__(self, *args: Any, **options: Any) -> Any:
        if isinstance(self.gives, Exception):
            raise self.gives
        return self.gives


@pytest.mark.parametrize("gives", [ValueError("a\nb"), "text", None, MemoryError(), [1]])
def test_objects_with_a_false_array_interface_are_refused(gives: Any) -> None:
    with pytest.raises(ImageDecodeError, match="could not be turned into a NumPy array"):
        open_images(Lies(gives))
    line(Lies(gives))


def test_file_objects_with_wrong_or_endless_reads_are_refused() -> None:
    class Endless:
        def read(self, size: int = -1) -> Any:
            return b"\x89PNG\r\n\x1a\n" + bytes(1 << 20)

    class Text:
        def read(self, size: int = -1) -> Any:
            return "text"

    class Nothing:
        def read(self, size: int = -1) -> Any:
            return None

    assert "the limit is 200 MB" in line(Endless())
    assert "opened for text" in line(Text())
    assert "is empty" in line(Nothing())
