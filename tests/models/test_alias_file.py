"""The user's alias file: valid lines apply, invalid ones are reported and kept."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget, default_path
from mlx_magic.session import Session
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints


@pytest.fixture
def file(tmp_path: Path) -> AliasFile:
    return AliasFile(tmp_path / "config" / "aliases.toml")


def write(file: AliasFile, text: str) -> None:
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_text(text, encoding="utf-8")


def test_no_file_means_no_aliases(file: AliasFile) -> None:
    assert file.targets == {}
    assert file.problems == ()


def test_edited_file_is_reread_at_once(file: AliasFile) -> None:
    write(file, 'qwen = "org/qwen"\n')
    assert file.targets == {"qwen": AliasTarget("org/qwen")}
    write(file, '# mine\n[tuned]\nmodel = "org/qwen"\nadapter = "~/lora"\n')
    assert file.targets == {"tuned": AliasTarget("org/qwen", "~/lora")}
    file.path.unlink()
    assert file.targets == {}


def test_invalid_lines_are_reported_and_the_others_used(file: AliasFile) -> None:
    write(
        file,
        'good = "org/a"\nnumber = 3\n"a/b" = "org/b"\ndemo = "org/c"\nempty = " "\n'
        'more = { model = "org/d", trust_remote_code = true }\n',
    )
    assert file.targets == {"good": AliasTarget("org/a")}
    said = file.problems
    assert len(said) == 5
    assert all("\n" not in problem and str(file.path) in problem for problem in said)
    for word in ("number", "'a/b'", "'demo'", "empty", "more"):
        assert any(word in problem for problem in said)


def test_invalid_toml_is_reported_with_its_line_and_kept(file: AliasFile) -> None:
    write(file, 'a = "org/a"\n')
    assert file.targets
    write(file, 'a = "org/a"\nb = org/b\n')
    [problem] = file.problems
    assert "line 2" in problem
    assert file.targets == {"a": AliasTarget("org/a")}
    with pytest.raises(RequestError, match="line 2"):
        file.save("c", AliasTarget("org/c"))
    assert file.path.read_text() == 'a = "org/a"\nb = org/b\n'


def test_saving_keeps_every_other_line(file: AliasFile) -> None:
    write(file, '# head\nb = "org/b"  # keep\n\n[tuned]\nmodel = "org/t"\n')
    file.save("a", AliasTarget("org/a"))
    file.save("b", AliasTarget("org/new", "/lora"))
    assert file.path.read_text() == (
        '# head\nb = { model = "org/new", adapter = "/lora" }\n\na = "org/a"\n'
        '[tuned]\nmodel = "org/t"\n'
    )
    assert set(file.targets) == {"a", "b", "tuned"}


def test_alias_written_over_several_lines_is_not_rewritten(file: AliasFile) -> None:
    text = '[tuned]\nmodel = "org/t"\n'
    write(file, text)
    with pytest.raises(RequestError, match=r"aliases\.toml"):
        file.save("tuned", AliasTarget("org/a"))
    assert file.path.read_text() == text


def test_unwritable_folder_is_an_error_of_one_line(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("a file")
    with pytest.raises(RequestError, match="cannot be changed") as caught:
        AliasFile(tmp_path / "config" / "aliases.toml").save("a", AliasTarget("b"))
    assert "\n" not in str(caught.value)


names = st.text(min_size=1).filter(
    lambda text: text.strip() and "/" not in text and text[0] != "-" and text != "demo"
)
words = st.text(alphabet=st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(names.filter(lambda n: n.isprintable()), words, st.none() | words)))
def test_saved_aliases_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str, str | None]]
) -> None:
    file = AliasFile(tmp_path_factory.mktemp("c") / "aliases.toml")
    kept: dict[str, AliasTarget] = {}
    for alias, model, adapter in entries:
        try:
            file.save(alias, AliasTarget(model, adapter))
        except RequestError:
            continue  # what TOML cannot hold, or JSON writes in another way
        kept[alias] = AliasTarget(model, adapter)
    assert file.targets == kept
    if file.path.exists():
        tomllib.loads(file.path.read_text(encoding="utf-8"))


def test_alias_file_location(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLX_MAGIC_CONFIG", str(tmp_path))
    assert default_path() == tmp_path / "aliases.toml"
    monkeypatch.delenv("MLX_MAGIC_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_path() == tmp_path / "mlx-magic" / "aliases.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert default_path() == Path("~/.config/mlx-magic/aliases.toml").expanduser()


def test_saved_alias_keeps_the_given_name(
    session: Session, file: AliasFile, tmp_path: Path
) -> None:
    session.names.file = file
    folder = checkpoints.good(tmp_path / "seer")
    session.pool.submit_load(str(folder), alias="s", save=True).future.result(10)
    assert file.targets == {"s": AliasTarget(str(folder))}
    # Of this session's aliases what they stand for is kept, not their name.
    session.pool.submit_load("s", alias="t", save=True).future.result(10)
    assert file.targets["t"] == AliasTarget(str(folder))


def test_failed_load_saves_no_alias(session: Session, file: AliasFile, tmp_path: Path) -> None:
    session.names.file = file
    folder = checkpoints.with_model_file(checkpoints.good(tmp_path / "evil"))
    load = session.pool.submit_load(str(folder), alias="e", save=True)
    assert load.future.exception(10) is not None
    assert not file.path.exists()
    # Nor is the permission of a load that succeeds ever kept.
    session.pool.submit_load(
        str(folder), alias="e", save=True, trust_remote_code=True
    ).future.result(10)
    assert file.targets == {"e": AliasTarget(str(folder))}
    session.pool.unload("e")
    assert session.pool.submit_load("e").future.exception(10) is not None


def test_session_alias_takes_precedence_over_the_file(
    session: Session, file: AliasFile, tmp_path: Path
) -> None:
    session.names.file = file
    write(file, 'x = "org/far"\ny = "org/near"\n')
    assert session.aliases == {"x": "org/far", "y": "org/near"}
    folder = str(checkpoints.good(tmp_path / "seer"))
    session.pool.submit_load(folder, alias="x").future.result(10)
    assert session.aliases == {"x": folder, "y": "org/near"}


def test_save_without_an_alias_is_an_error_of_one_line(session: Session) -> None:
    with pytest.raises(RequestError, match="--as"):
        session.pool.submit_load("demo", save=True)


def test_model_in_a_models_folder_is_loaded_by_its_name(
    session: Session, script: ScriptedBackend, tmp_path: Path
) -> None:
    folder = checkpoints.good(tmp_path / "models" / "org" / "seer")
    session.names.look_in([str(tmp_path / "models")])
    assert "org/seer" in session.model_names
    info = session.pool.submit_load("org/seer").future.result(10)
    assert info is not None
    assert info.path == str(folder)
    assert info.name == "org/seer"
    assert session.check("org/seer") == "vision, smolvlm"
    for outside in ("../models/org/seer", "/etc", "", "\0"):
        assert list(session.names.known(outside)) == ["demo"]


def test_alias_takes_precedence_over_a_model_in_a_folder(session: Session, tmp_path: Path) -> None:
    checkpoints.good(tmp_path / "models" / "seer")
    other = str(checkpoints.good_text(tmp_path / "other"))
    session.names.look_in([str(tmp_path / "models")])
    session.pool.submit_load(other, alias="seer").future.result(10)
    assert session.names.known("seer")["seer"] == other
