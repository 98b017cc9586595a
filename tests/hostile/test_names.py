"""Text of a checkpoint is shown without control characters, line breaks or markup."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_magic.backends.device import platform
from mlx_magic.backends.library_errors import no_panics
from mlx_magic.errors import CheckpointError, GenerationError, ModelError
from mlx_magic.models.catalog import model_summary
from mlx_magic.models.catalog.alias_file import AliasTarget
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.models.catalog.local_models import ModelOnDisk
from mlx_magic.models.checkpoints import checkpoint, remote_code, strict_json
from mlx_magic.models.checkpoints.strict_json import UnreadableFileError
from mlx_magic.notebook.display.tables import ModelTable, Table
from mlx_magic.notebook.panel.state.model_choices import ModelChoice, choices
from mlx_magic.testing import scripted_session
from tests import checkpoints

ODD = "a\n\x1b[2J\x1b]0;owned\x07\u202eb<script>\x9b31m"


def harmless(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_table_shows_no_control_characters() -> None:
    table = Table(("model", "state"), ((ODD, ODD),), f"one {ODD}\ntwo")
    assert repr(table).count("\n") == 4  # the note's own, and that of the name in it
    assert harmless(repr(table))
    assert harmless(table._repr_html_())
    assert "<script>" not in table._repr_html_()


def test_list_escapes_odd_folder_and_alias_names(tmp_path: Path) -> None:
    folder = tmp_path / ODD.replace("/", "")
    checkpoints.good(folder)
    session = scripted_session()
    try:
        session.names.look_in([str(tmp_path)])
        session.names.give(
            "x\x1b[31m\ny", AliasTarget(str(checkpoints.good(tmp_path / "two")), None)
        )
        said = repr(ModelTable.of(session))
        assert harmless(said)
        assert len(said.splitlines()) == 4  # headings, the bundled one, the alias, the folder
        assert folder.name in session.model_names  # as it is loaded
    finally:
        session.close()


def test_panel_escapes_an_odd_name_and_selects_the_original() -> None:
    choice = ModelChoice(ODD, "on disk", problem=f"bad {ODD}")
    assert choice.name == ODD
    assert choice.label.isprintable()
    assert choice.title.isprintable()
    assert choice.line.isprintable()
    session = scripted_session()
    try:
        disk = [ModelOnDisk(ODD, Path("/m"), "vision", ODD, ODD)]
        found = next(c for c in choices(session, disk) if c.name == ODD)
        assert found.line.isprintable()
    finally:
        session.close()


@pytest.mark.parametrize("kind", [ModelError, CheckpointError, GenerationError])
def test_model_errors_are_one_line_for_any_name(kind: Callable[..., Exception]) -> None:
    error = kind(f"{ODD}: {ODD} is bad: fetch the model again.", model=ODD)
    assert str(error).isprintable()
    assert str(error).endswith("is bad: fetch the model again.")
    assert error.model == ODD  # type: ignore[attr-defined]


def test_ordinary_message_is_unchanged() -> None:
    text = "m: two  spaces, ümlaut, 模型 — all kept: fetch the model again."
    assert str(ModelError(text, model="m")) == text


def test_unlistable_folder_is_a_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.good(tmp_path / "m")
    real = os.scandir

    def refusing(path: object) -> object:
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied")
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(CheckpointError, match=r"^m: m cannot be read \(Permission denied\)"):
        remote_code.wanted_code(folder, model="m")


def test_summary_of_a_folder_that_changes_meanwhile_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.good(tmp_path / "m")
    checkpoints.write_json(folder / "processor_config.json", {"image_seq_length": 64})
    assert (
        model_summary.read(str(folder), Names(), float32=platform.wants_float32).image_tokens == 64
    )

    def gone(path: Path) -> None:
        raise UnreadableFileError("is damaged")

    found = checkpoint.inspect(folder, "m")
    monkeypatch.setattr(strict_json, "read", gone)
    monkeypatch.setattr(checkpoint, "resolve", lambda *args, **more: found)
    assert (
        model_summary.read(str(folder), Names(), float32=platform.wants_float32).image_tokens
        is None
    )


class PanicException(BaseException):
    """What a library in Rust raises; no `Exception`."""


def test_library_panic_is_an_error_and_an_interrupt_passes() -> None:
    with pytest.raises(RuntimeError, match="a library panicked: Onig"), no_panics():
        raise PanicException("Onig: retry-limit-in-match over")
    with pytest.raises(KeyboardInterrupt), no_panics():
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="x"), no_panics():
        raise ValueError("x")


def added(count: int, key: bytes = b'"lstrip"') -> bytes:
    return b'{"added_tokens": [' + b", ".join([b"{%s: false}" % key] * count) + b"]}"


@pytest.mark.parametrize("key", [b'"lstrip"', b'"\\u006cstrip"'])
def test_a_tokenizer_that_adds_too_many_tokens_is_refused(tmp_path: Path, key: bytes) -> None:
    folder = checkpoints.good(tmp_path / "m")
    (folder / "tokenizer.json").write_bytes(added(50_001, key))
    with pytest.raises(CheckpointError, match=r"tokenizer.json adds more than 50000 tokens"):
        remote_code.wanted_code(folder, model="m")


def test_tokenizer_with_28672_added_tokens_and_20_mb_is_accepted(tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "m")
    words = b'"vocab": {' + b", ".join(b'"word-%d": %d' % (i, i) for i in range(1_000_000)) + b"}"
    (folder / "tokenizer.json").write_bytes(added(28_672)[:-1] + b", " + words + b"}")
    assert (folder / "tokenizer.json").stat().st_size > 20e6
    assert checkpoint.inspect(folder, "m").wants_code == ()
