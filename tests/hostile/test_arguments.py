"""Any argument of a public function works or is refused in one line that names it."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlx_magic
from mlx_magic import default_session, user_folders
from mlx_magic.backends.batch_check.policy import default_path as confirmed_path
from mlx_magic.engine.running_tasks import Deadlines
from mlx_magic.errors import (
    CheckpointError,
    GenerationError,
    MlxMagicError,
    ModelNotFoundError,
    RequestError,
)
from mlx_magic.model_pool.pool import ModelPool
from mlx_magic.models.catalog.alias_file import NAME, AliasFile, default_path
from mlx_magic.models.catalog.aliases import Names
from mlx_magic.notebook.display import terminal
from mlx_magic.testing import use_scripted
from tests import checkpoints


class NoRepr:
    def __repr__(self) -> str:
        raise ValueError("no repr")


class NoPath:
    def __fspath__(self) -> str:
        raise KeyError("no path")


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"x"


ODD: list[Any] = [
    5, 5.5, -1, True, b"x", [], {}, set(), object(), NoRepr(), NoPath(), BytesPath(), 10**5000,
    -(10**5000), 2**64, float("nan"), float("inf"), 1e300, 1j, "", "   ", "a\0b", "\ud800",
    "\udce9", "~nosuchuser/x", "~\0", "x" * 5000, "/" + "y" * 5000, Path("a\0b"),
    np.array([1, 2]), np.float32("nan"), lambda: 1, "a\nb", "..", "/", ["a", 5], ["\ud800"], [""],
    ("a", None), {"a": 1}, NoRepr,
]  # fmt: skip

# Folders that are there, which a scripted session takes for models.
FOLDERS = ("..", "/")

ASK = list(inspect.signature(mlx_magic.ask).parameters)
LOAD = list(inspect.signature(ModelPool.load).parameters)[1:]


@pytest.fixture(scope="module", autouse=True)
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return a model of a session whose answers are scripted."""
    folder = checkpoints.good(tmp_path_factory.mktemp("models") / "model")
    before = default_session.replace_current(None)
    use_scripted("An answer.")
    yield str(folder)
    default_session.current().close()
    default_session.replace_current(before)


def outcome(
    function: Callable[..., Any], /, *arguments: Any, **options: Any
) -> MlxMagicError | None:
    """Return our error; any other fails the test."""
    found: MlxMagicError | None = None
    try:
        function(*arguments, **options)
    except MlxMagicError as error:
        found = error
    if found is not None:
        assert str(found).isprintable()
        assert 0 < len(str(found)) <= 1000
    return found


def all_of_stream(**options: Any) -> list[str]:
    return list(mlx_magic.stream(**options))


@pytest.mark.parametrize("argument", ASK)
def test_ask_and_stream_accept_odd_values_or_name_the_argument(argument: str, model: str) -> None:
    for value in ODD:
        options: dict[str, Any] = {"prompt": "Hi", "model": model, argument: value}
        error = outcome(mlx_magic.ask, **options)
        if isinstance(error, RequestError) and argument != "images":
            assert argument in str(error), (argument, str(error))
        same = outcome(all_of_stream, **options)
        assert type(same) is type(error)


@pytest.mark.parametrize("argument", LOAD)
def test_load_accepts_odd_values_or_names_the_argument(argument: str, model: str) -> None:
    for value in ODD:
        options = {"model": model, argument: value}
        error = outcome(mlx_magic.pool.load, **options)
        if isinstance(error, RequestError):
            assert argument in str(error), (argument, str(error))


@pytest.mark.parametrize("method", ["unload", "pin", "unpin", "__getitem__", "lease", "force"])
def test_pool_methods_refuse_invalid_names_with_the_argument(method: str) -> None:
    def called(value: Any) -> None:
        if method == "lease":
            with mlx_magic.pool.lease(value):
                raise AssertionError
        elif method == "force":
            mlx_magic.pool.unload("nosuch", force=value)
        else:
            getattr(mlx_magic.pool, method)(value)

    for value in ODD:
        if isinstance(value, str) and value in FOLDERS:
            continue
        error = outcome(called, value)
        assert error is not None
        if isinstance(error, RequestError):
            assert str(error).startswith(("model ", "force "))
        assert (value in mlx_magic.pool) is False


@pytest.mark.filterwarnings("ignore:Models take")
@pytest.mark.parametrize("name", ["budget", "idle_ttl"])
def test_invalid_pool_settings_are_refused(name: str) -> None:
    for value in ODD:
        outcome(setattr, mlx_magic.pool, name, value)
        setattr(mlx_magic.pool, name, None)


def test_panel_refuses_invalid_arguments() -> None:
    for value in ODD:
        error = outcome(mlx_magic.panel, value)
        assert isinstance(error, RequestError)
        assert str(error).startswith("session is ")


@pytest.mark.parametrize("argument", ["trust_remote_code", "pin"])
def test_string_for_false_is_not_taken_as_true(argument: str, model: str) -> None:
    options: dict[str, Any] = {argument: "no"}
    with pytest.raises(RequestError, match=f"^{argument} is 'no': use True or False"):
        mlx_magic.pool.load(model, **options)
    mlx_magic.pool.load(model, pin=np.bool_(False))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a\0b", "\ud800", Path("x\0")])
def test_impossible_path_is_refused_at_once(name: str | Path) -> None:
    with pytest.raises(RequestError, match=r"^model is .*: a name cannot have"):
        mlx_magic.ask("Hi", model=name)


def test_ordinary_arguments_are_accepted(model: str) -> None:
    assert mlx_magic.ask("Hi\0 \U0001f600 模型", model=Path(model)).text == "An answer."
    numbers: dict[str, Any] = {"max_tokens": np.int64(5), "temperature": np.float32(0)}
    found = mlx_magic.ask("Hi", model=model, seed=2**64 - 1, stop=["zzz"], timeout=1e9, **numbers)
    assert found.text == "An answer."


def test_very_long_timeout_does_not_end_the_deadline_thread() -> None:
    watched = Deadlines(lambda: 0.0)

    class Late:
        deadline = 1e300

    watched._tasks.add(Late())  # type: ignore[arg-type]
    pause = watched._pause()
    assert pause is not None
    done = threading.Event()
    done.set()
    assert done.wait(pause)  # which would be an OverflowError


def test_error_before_a_request_is_one_line(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(24, "Too many open files")

    now = default_session.current()
    monkeypatch.setattr(now.pool, "find", full)
    with pytest.raises(GenerationError, match="was not asked: OSError: Too many open files"):
        mlx_magic.ask("Hi", model=model)
    with pytest.raises(GenerationError, match="Too many open files"):
        mlx_magic.pool.load(model)
    assert now.running == []


def test_thread_start_failure_is_an_error_of_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(MlxMagicError, match="No thread could be started"):
            mlx_magic.ask("Hi", model=model)
    assert default_session.current().running == []
    assert mlx_magic.ask("Hi", model=model).text == "An answer."


def test_long_messages_are_shortened_in_the_middle() -> None:
    name = "n" * 5000
    error = ModelNotFoundError(f"There is no model {name}: name a folder.", model=name)
    assert len(str(error)) == 1000
    assert str(error).startswith("There is no model nnn")
    assert str(error).endswith("nnn: name a folder.")
    assert error.model == name
    assert len(str(RequestError("x" * 10**7))) == 1000
    assert str(RequestError("a\nb\x1b[31m\ud800c")).isprintable()
    assert str(CheckpointError("exactly  as it is", model="m")) == "exactly  as it is"


@pytest.mark.parametrize(
    ("content", "asked", "words"),
    [
        ("mine = [", "mine", "is not read"),
        ("mine = 5\nfine = 'MODEL'", "mine", "mine is not valid"),
        ("mine = { model = 'a/b', what = 1 }", "mine", "mine is not valid"),
        ("mine = \"a\\u001bb\"", "mine", "control characters"),
        ("\xff\xfe", "mine", "is not read"),
    ],
)  # fmt: skip
def test_broken_alias_file_is_named_and_other_models_work(
    tmp_path: Path, model: str, content: str, asked: str, words: str
) -> None:
    file = tmp_path / NAME
    file.write_bytes(content.replace("MODEL", model).encode("latin-1"))
    now = default_session.current()
    before, now.names.file = now.names.file, AliasFile(file)
    try:
        with pytest.raises(ModelNotFoundError, match=words) as caught:
            mlx_magic.ask("Hi", model=asked)
        assert str(file) in str(caught.value)
        assert "Fix that file" in str(caught.value)
        assert mlx_magic.ask("Hi", model=model).text == "An answer."
        if "fine" in content:
            assert mlx_magic.ask("Hi", model="fine").text == "An answer."
            with pytest.raises(ModelNotFoundError) as other:
                mlx_magic.ask("Hi", model="nosuch")
            assert str(file) not in str(other.value)
        file.write_text(f"mine = '{model}'", encoding="utf-8")
        assert mlx_magic.ask("Hi", model="mine").text == "An answer."
    finally:
        now.names.file = before


def test_file_in_place_of_the_settings_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    names = Names(AliasFile(tmp_path / "file" / NAME))
    assert "is not read: Not a directory" in names.problem_with("mine")
    assert dict(names.targets) == {}
    names = Names(AliasFile(tmp_path / "loop" / NAME))
    assert names.problem_with("mine") == ""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "is not read" in names.problem_with("mine")


def test_missing_home_folder_saves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLX_MAGIC_CONFIG", "MLX_MAGIC_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: os.fspath(path))
    assert default_path() is None
    assert confirmed_path() is None
    with pytest.raises(RequestError, match="without a home folder: set MLX_MAGIC_CONFIG"):
        Names(None).save("a", "b", None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["~nosuchuser/x", "~\0", "~\ud800/x", "a\0b"])
def test_tilde_of_an_unknown_user_is_not_expanded(text: str) -> None:
    assert str(user_folders.expanded(text)) == text


def test_tilde_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_folders.expanded("~/x") == tmp_path / "x"
    assert user_folders.expanded(Path("~")) == tmp_path
    assert user_folders.expanded("a~b") == Path("a~b")


def test_only_unprintable_characters_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as out:
        terminal.write("a\xe4\n", out)
    assert path.read_text() == "a\\xe4\n"
    with path.open("w", encoding="utf-8") as out:
        terminal.write("a\xe4\ud800\n", out)
        monkeypatch.setattr("sys.stdout", out)
        assert terminal.printable("a\xe4模") == "a\xe4模"
    assert path.read_text(encoding="utf-8") == "a\xe4\\ud800\n"
    monkeypatch.setattr("sys.stdout", None)
    terminal.say("to nobody")
    assert terminal.printable("\xe4") == "\xe4"


TEXTS = st.text(st.characters(exclude_categories=()))
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.binary(),
    TEXTS, st.lists(TEXTS),
    st.dictionaries(st.text(), st.integers()), st.tuples(st.integers(), st.text()),
)  # fmt: skip


@settings(
    max_examples=int(os.environ.get("MLX_MAGIC_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(where=st.sampled_from([name for name in ASK if name != "images"]), value=VALUES)
def test_any_value_of_any_argument_is_accepted_or_refused(
    where: str, value: Any, model: str
) -> None:
    options: dict[str, Any] = {"prompt": "Hi", "model": model, where: value}
    outcome(mlx_magic.ask, **options)
    outcome(mlx_magic.pool.load, options["model"], alias=value, pin=False)
