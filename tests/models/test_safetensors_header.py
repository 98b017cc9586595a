from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_magic.errors import CheckpointError
from mlx_magic.models.checkpoints.safetensors import MAX_HEADER_BYTES, tensor_bytes
from tests.checkpoints import write_raw_safetensors, write_safetensors


def entry(start: int, end: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [max(end - start, 0)], "data_offsets": [start, end]}


def test_bytes_are_counted_by_dtype(tmp_path: Path) -> None:
    path = write_safetensors(
        tmp_path / "m.safetensors",
        {"a": ("F32", (2, 3)), "b": ("F16", (5,)), "c": ("F32", ()), "d": ("F16", (0, 7))},
    )
    assert tensor_bytes(path, model="m") == {"F32": 28, "F16": 10}


def test_an_unknown_dtype_is_counted_by_its_offsets(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}
    path = write_raw_safetensors(tmp_path / "m.safetensors", header, 2)
    assert tensor_bytes(path, model="m") == {"F4": 2}


def test_files_written_by_mlx_are_read(tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    path = tmp_path / "m.safetensors"
    mx.save_safetensors(str(path), {"x": mx.zeros((3, 4)), "y": mx.zeros((2,), mx.bfloat16)})
    assert tensor_bytes(path, model="m") == {"F32": 48, "BF16": 4}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_file_truncated_anywhere_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    whole = write_safetensors(tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError, match=r"^smol: cut\.safetensors is cut short.*again\.$"):
        tensor_bytes(path, model="smol")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200))
def test_any_content_raises_only_checkpoint_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.safetensors"
    path.write_bytes(content)
    # Never a header's worth of luck: 8 bytes of length and a JSON object that fits.
    with pytest.raises(CheckpointError, match=r"^m: noise\.safetensors .+\.$"):
        tensor_bytes(path, model="m")


@pytest.mark.parametrize(
    ("header", "size", "words"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "overlap"),
        ({"a": entry(4, 0)}, 4, "damaged header"),
        ({"a": entry(-4, 0)}, 4, "damaged header"),
        ({"a": {**entry(0, 4), "dtype": "F32"}}, 4, "damaged header"),
        ({"a": {"dtype": "U8", "shape": [4]}}, 4, "damaged header"),
        ({"a": {**entry(0, 4), "shape": ["x"]}}, 4, "damaged header"),
        ({"a": {**entry(0, 4), "data_offsets": [0, 4, 5]}}, 4, "damaged header"),
        ({"a": {**entry(0, 4), "dtype": None}}, 4, "damaged header"),
        ({"a": 7}, 4, "damaged header"),
        ([1, 2], 0, "damaged header"),
        ({"a": entry(0, 4)}, 9, "5 bytes more"),
        ({"a": entry(0, 2**60)}, 4, "cut short"),
    ],
)
def test_inconsistent_header_is_refused(
    tmp_path: Path, header: object, size: int, words: str
) -> None:
    path = write_raw_safetensors(tmp_path / "m.safetensors", header, size)
    with pytest.raises(CheckpointError, match=words):
        tensor_bytes(path, model="m")


def test_an_absurd_header_length_is_not_allocated(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        tensor_bytes(path, model="m")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    raw = b"[" * 200_000
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    with pytest.raises(CheckpointError, match="damaged header"):
        tensor_bytes(path, model="m")


def test_git_lfs_pointer_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        tensor_bytes(path, model="m")


def test_missing_file_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        tensor_bytes(tmp_path / "gone.safetensors", model="m")
