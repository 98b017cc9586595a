"""Warnings and log messages of libraries are dropped while we call them, and only then."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import mlx_magic
from mlx_magic.images.decoding.quiet_libraries import quiet, without_log_lines
from mlx_magic.images.opening import open_images
from mlx_magic.notebook.display.render import bundle
from tests.hostile.image_cases import CASES, encode

ODD = "jpeg_whose_exif_is_cut_off"


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


def test_user_warnings_stay_while_another_thread_decodes() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("ours", stacklevel=1)
            in_a_thread(lambda: warnings.warn("theirs", stacklevel=1))
        warnings.warn("after", stacklevel=1)
    assert [str(each.message) for each in heard] == ["theirs", "after"]


def test_nested_decoding_is_quiet_until_the_outer_one_ends() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            with quiet():
                pass
            warnings.warn("ours", stacklevel=1)
        with pytest.raises(ValueError, match="x"), quiet():
            raise ValueError("x")
        warnings.warn("after", stacklevel=1)
    assert [str(each.message) for each in heard] == ["after"]


@contextmanager
def errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_warnings_turned_into_errors_refuse_no_image() -> None:
    data = CASES[ODD].make()
    with errors():
        (image,) = open_images(data)
        assert image.size == (256, 256)
        with pytest.raises(UserWarning, match="x"):
            warnings.warn("x", stacklevel=1)
        warnings.resetwarnings()
        warnings.simplefilter("error")
        open_images(data)


def test_warning_filter_is_installed_once() -> None:
    with warnings.catch_warnings():
        open_images(Image.new("RGB", (4, 4)))
        before = list(warnings.filters)
        for _ in range(3):
            open_images(encode(Image.new("RGB", (4, 4)), "PNG"))
        assert list(warnings.filters) == before


def test_resource_warnings_of_other_files_are_shown() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet():
            warnings.warn("unclosed", ResourceWarning, stacklevel=1)
    assert [str(each.message) for each in heard] == ["unclosed"]


@pytest.mark.model
def test_warm_question_with_logging_at_debug_writes_no_line_of_a_library(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure()
    figure.suptitle("a title", fontsize=17)
    files = [tmp_path / f"a.{kind}" for kind in ("png", "jpg", "tiff", "gif", "webp")]
    for file in files:
        Image.new("RGB", (40, 30), "red").save(file)
    images = [*files, figure, None]
    mlx_magic.ask("What?", files[0], max_tokens=2)
    with caplog.at_level(logging.DEBUG):
        for image in images:
            result = mlx_magic.ask("What?", image, max_tokens=2)
            bundle(replace(result, text="# A\n\n- `b` $x$", format="markdown"))
        assert len(caplog.records) <= 2 * len(images)
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"mlx_magic"}
    # The libraries still log for the user.
    with caplog.at_level(logging.DEBUG):
        Image.open(files[0]).load()
    assert "PIL.PngImagePlugin" in {record.name for record in caplog.records}
    mlx_magic.pool.unload("demo")


def test_log_lines_of_other_threads_and_warnings_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("somelibrary.part")
    with caplog.at_level(logging.DEBUG):
        with without_log_lines("somelibrary"):
            log.debug("ours")
            log.warning("odd")
            logging.getLogger("someother").debug("other")
            in_a_thread(lambda: log.debug("theirs"))
        log.debug("after")
    assert caplog.messages == ["odd", "other", "theirs", "after"]
