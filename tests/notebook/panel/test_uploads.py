from __future__ import annotations

import contextlib
import tracemalloc
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import ImageError, ImageTooLargeError
from mlx_magic.notebook.panel.control.image_tray import PATIENCE, PIECE_BYTES, Uploads
from mlx_magic.testing import ManualClock


def message(piece: object = 0, pieces: object = 2, size: object = 6, **more: object) -> Any:
    return {"id": "u1", "name": "cat.png", "size": size, "piece": piece, "pieces": pieces} | more


def refused(uploads: Uploads, told: Any, piece: bytes = b"abc") -> str:
    with pytest.raises(ImageError) as caught:
        uploads.take(told, piece)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_chunks_become_the_file() -> None:
    uploads = Uploads()
    assert uploads.fraction("u1") == 0
    assert uploads.take(message(0), memoryview(b"abc")) is None
    assert uploads.in_flight == ["u1"]
    assert uploads.fraction("u1") == 0.5
    assert uploads.take(message(1), bytearray(b"def")) == b"abcdef"
    assert uploads.in_flight == []
    assert uploads.fraction("u1") == 0
    assert uploads.held == 0


def test_one_chunk_can_be_a_file() -> None:
    assert Uploads().take(message(0, 1, 3), b"abc") == b"abc"


def test_two_uploads_can_be_interleaved() -> None:
    uploads = Uploads()
    uploads.take(message(0), b"abc")
    uploads.take(message(0, id="u2"), b"123")
    assert uploads.take(message(1), b"def") == b"abcdef"
    assert uploads.take(message(1, id="u2"), b"456") == b"123456"


def test_chunk_is_copied() -> None:
    uploads = Uploads()
    buffer = bytearray(b"abc")
    uploads.take(message(0), memoryview(buffer))
    buffer[:] = b"xyz"
    assert uploads.take(message(1), b"def") == b"abcdef"


@given(
    data=st.binary(min_size=1, max_size=60),
    cuts=st.sets(st.integers(1, 59), max_size=10),
    shuffle=st.randoms(use_true_random=False),
)
def test_any_order_of_chunks_gives_the_same_bytes(
    data: bytes, cuts: set[int], shuffle: Any
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = list(enumerate(data[a:b] for a, b in pairwise(edges)))
    shuffle.shuffle(pieces)
    uploads = Uploads()
    fractions = []
    for number, piece in pieces:
        whole = uploads.take(message(number, len(pieces), len(data)), piece)
        fractions.append(uploads.fraction("u1") if whole is None else 1.0)
    assert whole == data
    assert fractions == sorted(fractions)
    assert uploads.held == 0


@pytest.mark.parametrize(
    "told",
    [
        message(-1),
        message(2),
        message(None),
        message("0"),
        message(0.0),
        message(True),
        message(0, 0),
        message(0, -1),
        message(0, None),
        message(0, 7),
        message(0, 2, -1),
        message(0, 2, None),
        message(0, 2, "6"),
        message(0, 10**9, 10**8),
        message(0, 2, 3),
        message(0, 1, 6),
        message(0, 2, 2),
        message(0, 2, 10**7, name=None),
    ],
    ids=str,
)
def test_inconsistent_chunk_is_refused(told: Any) -> None:
    uploads = Uploads()
    big = b"x" * (PIECE_BYTES + 1) if told["size"] == 10**7 else b"abc"
    assert refused(uploads, told, big).endswith(" was not received completely: add it again.")
    assert (uploads.held, uploads.in_flight) == (0, [])


@pytest.mark.parametrize("key", [None, 3, "", "x" * 1_000, [1]])
def test_invalid_id_is_refused(key: object) -> None:
    assert "without an id" in refused(Uploads(), message(id=key))


def test_empty_file_and_empty_chunk_are_refused() -> None:
    assert refused(Uploads(), message(0, 1, 0), b"") == "cat.png is an empty file."
    assert "not received completely" in refused(Uploads(), message(0), b"")


def test_name_is_shown_on_one_short_line() -> None:
    said = refused(Uploads(), message(0, 1, 0, name="a\n\u202eb" * 100))
    assert len(said) < 120
    assert "\u202e" not in said


@pytest.mark.parametrize(
    "second",
    [message(0 + 1, 3), message(1, 2, 7), message(1, name="dog.png")],
    ids=["pieces", "size", "name"],
)
def test_contradictory_chunks_drop_the_file_with_one_error(second: Any) -> None:
    uploads = Uploads()
    uploads.take(message(0), b"abc")
    refused(uploads, second)
    assert (uploads.held, uploads.in_flight) == (0, [])
    assert uploads.take(message(1), b"def") is None
    assert uploads.in_flight == []


def test_repeated_chunk_is_refused() -> None:
    uploads = Uploads()
    uploads.take(message(1, 3), b"d")
    refused(uploads, message(1, 3), b"d")
    assert uploads.in_flight == []


@pytest.mark.parametrize("piece", [b"de", b"defg"])
def test_false_size_is_refused(piece: bytes) -> None:
    uploads = Uploads()
    uploads.take(message(0), b"abc")
    refused(uploads, message(1), piece)
    assert uploads.held == 0


def test_repeated_first_chunk_restarts_the_upload() -> None:
    uploads = Uploads()
    uploads.take(message(0), b"abc")
    uploads.take(message(0, size=5, name="dog.png"), b"xyz")
    assert uploads.in_flight == ["u1"]
    assert uploads.take(message(1, size=5, name="dog.png"), b"12") == b"xyz12"
    uploads.take(message(0), b"abc")
    uploads.take(message(0), b"ABC")
    assert uploads.take(message(1), b"def") == b"ABCdef"


def test_dropped_upload_is_ignored_until_it_restarts() -> None:
    uploads = Uploads()
    uploads.take(message(0), b"abc")
    uploads.drop("u1")
    uploads.drop("unknown")
    assert uploads.take(message(1), b"def") is None
    assert uploads.in_flight == []
    uploads.take(message(0), b"abc")
    assert uploads.take(message(1), b"def") == b"abcdef"


def test_too_large_file_is_refused_once_before_its_upload() -> None:
    uploads = Uploads(max_bytes=5_000_000)
    words = r"^cat.png has 6.0 MB; the limit is 5.0 MB\.$"
    with pytest.raises(ImageTooLargeError, match=words) as e:
        uploads.take(message(0, 12, 6_000_000), b"abc")
    assert (e.value.size, e.value.limit) == (6_000_000, 5_000_000)
    assert all(uploads.take(message(n, 12, 6_000_000), b"abc") is None for n in range(1, 12))


def test_running_uploads_are_limited_in_number_and_size() -> None:
    uploads = Uploads(max_files=2, max_total=20)
    uploads.take(message(0, id="a"), b"abc")
    uploads.take(message(0, id="b"), b"abc")
    assert "2 files are being received" in refused(uploads, message(0, id="c"))
    uploads.drop("a")
    with pytest.raises(ImageTooLargeError, match="21 B would be in transfer, the limit is 20 B"):
        uploads.take(message(0, size=15, id="c"), b"abc")
    assert uploads.take(message(1, id="b"), b"def") == b"abcdef"
    assert uploads.take(message(0, size=15, id="c"), b"abc") is None
    assert uploads.in_flight == ["c"]


def test_unfinished_upload_is_forgotten() -> None:
    clock = ManualClock()
    uploads = Uploads(max_files=1, clock=clock)
    uploads.take(message(0, 3, id="left"), b"a")
    clock.advance(PATIENCE)
    uploads.take(message(1, 3, id="left"), b"b")
    clock.advance(PATIENCE)
    refused(uploads, message(0, id="new"))
    clock.advance(1)
    uploads.take(message(0, id="new"), b"abc")
    assert uploads.in_flight == ["new"]
    assert uploads.take(message(2, 3, id="left"), b"cdef") is None
    assert uploads.in_flight == ["new"]


LIES = st.builds(
    message,
    st.integers(-1, 4) | st.none(),
    st.integers(-1, 5) | st.just(10**12),
    st.integers(-1, 300) | st.just(10**12),
    id=st.sampled_from(["a", "b", "c", "", None]),
    name=st.sampled_from(["x", "y"]),
)


@given(st.lists(st.tuples(LIES, st.binary(max_size=150)), max_size=30))
def test_false_sizes_never_use_more_than_the_limit(said: list[tuple[Any, bytes]]) -> None:
    uploads = Uploads(max_bytes=200, max_files=2, max_total=250)
    for told, piece in said:
        with contextlib.suppress(ImageError):
            whole = uploads.take(told, piece)
            assert whole is None or len(whole) == told["size"] <= 200
        assert uploads.held <= 250
        assert len(uploads.in_flight) <= 2
        assert all(0 < uploads.fraction(key) < 1 for key in uploads.in_flight)


def test_declared_size_allocates_no_memory() -> None:
    uploads = Uploads()
    tracemalloc.start()
    try:
        uploads.take(message(0, 400, 200_000_000), b"a")
        for at in range(5_000):
            uploads.take(message(0, 1, 3, id=f"u{at}"), b"abc")
            with pytest.raises(ImageError):
                uploads.take(message(9, id=f"r{at}"), b"abc")
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()
