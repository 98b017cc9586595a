"""Pillow's warnings are dropped while we decode, and only then."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from mlx_magic.images.decoding.pillow_warnings import quiet
from mlx_magic.images.opening import open_images
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
