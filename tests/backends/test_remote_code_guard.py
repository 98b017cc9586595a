"""What the guard blocks in a load without permission, on any thread, and what it allows."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import marshal
import os
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.backends.loading import remote_code_guard
from mlx_magic.backends.loading.background import BackgroundCall
from mlx_magic.cancellation import CancelToken
from mlx_magic.errors import UntrustedCodeError
from mlx_magic.models.checkpoints.checkpoint import Checkpoint
from tests import checkpoints
from tests.generators import run_to_end


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A checkpoint with Python in it."""
    folder = checkpoints.good(tmp_path / "m")
    checkpoints.write_evil_code(folder)
    return folder


def as_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint("m", folder, "text", "llama")


def imported(path: Path) -> Any:
    """Import a file as mlx-vlm imports a ``model_file``."""
    spec = importlib.util.spec_from_file_location("custom_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_a_thread(function: Callable[[], Any]) -> None:
    """Run on another thread as a library would; re-raise the error here."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if found:
        raise found[0]


def in_a_pool(function: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: function(), range(3)))


def on_a_threads_thread(function: Callable[[], Any]) -> None:
    on_a_thread(lambda: on_a_thread(function))


def aside(function: Callable[[], Any]) -> None:
    for _ in BackgroundCall(function).result(CancelToken()):
        pass


def here(function: Callable[[], Any]) -> None:
    function()


WHERE = [here, on_a_thread, in_a_pool, on_a_threads_thread, aside]


@pytest.mark.parametrize("where", WHERE)
def test_checkpoint_code_does_not_run(evil: Path, where: Callable[..., None]) -> None:
    guard = remote_code_guard.of(as_checkpoint(evil))
    with remote_code_guard.active(guard), pytest.raises(UntrustedCodeError):
        where(lambda: imported(evil / "evil.py"))
    assert not checkpoints.mark_of(evil).exists()
    assert guard.refused
    where(lambda: imported(evil / "evil.py"))  # control: without the guard it runs
    assert checkpoints.mark_of(evil).exists()


def by_link(evil: Path) -> Path:
    (evil.parent / "elsewhere").mkdir()
    link = evil.parent / "elsewhere" / "linked.py"
    link.symlink_to(evil / "evil.py")
    return link


def beside(evil: Path) -> Path:
    other = evil.parent / "other.py"
    other.write_text((evil / "evil.py").read_text())
    return evil / ".." / "other.py"


def compiled_only(evil: Path) -> Path:
    """A .pyc outside the checkpoint that claims to be part of the standard library."""
    code = compile((evil / "evil.py").read_text(), json.__file__, "exec")
    path = evil.parent / "lies.pyc"
    path.write_bytes(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
    return path


def from_the_hub(evil: Path) -> Path:
    """The folder to which transformers copies code."""
    path = Path(os.environ["HF_MODULES_CACHE"]) / "transformers_modules" / "m" / "evil.py"
    path.parent.mkdir(parents=True)
    path.write_text((evil / "evil.py").read_text())
    return path


@pytest.mark.parametrize("place", [by_link, beside, compiled_only, from_the_hub])
def test_files_outside_installed_modules_do_not_run(
    evil: Path, place: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    path = place(evil)
    guard = remote_code_guard.of(as_checkpoint(evil))
    with remote_code_guard.active(guard), pytest.raises(UntrustedCodeError):
        imported(path)
    assert not checkpoints.mark_of(evil).exists()
    imported(path)
    assert checkpoints.mark_of(evil).exists()


def test_code_is_not_read_as_text(evil: Path) -> None:
    guard = remote_code_guard.of(as_checkpoint(evil))
    with remote_code_guard.active(guard), pytest.raises(UntrustedCodeError):
        (evil / "evil.py").read_text()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pkl", "X.PTH"])
def test_pickle_of_a_checkpoint_is_not_opened(evil: Path, name: str) -> None:
    (evil / name).write_bytes(b"x")
    guard = remote_code_guard.of(as_checkpoint(evil))
    with remote_code_guard.active(guard), pytest.raises(UntrustedCodeError):
        (evil / name).read_bytes()


def test_unchecked_data_files_are_read_only_if_small(evil: Path) -> None:
    (evil / "voices.dat").write_bytes(b"x")
    with (evil / "huge.dat").open("wb") as file:
        file.truncate(2**37)
    with remote_code_guard.active(remote_code_guard.of(as_checkpoint(evil))):
        assert (evil / "voices.dat").read_bytes() == b"x"
        assert json.loads((evil / "config.json").read_text())
        with pytest.raises(UntrustedCodeError):
            (evil / "huge.dat").open("rb")


def test_an_installed_library_is_imported(evil: Path) -> None:
    import colorsys

    sys.modules.pop("colorsys")
    with remote_code_guard.active(remote_code_guard.of(as_checkpoint(evil))):
        assert importlib.import_module("colorsys").__file__ == colorsys.__file__


def test_library_on_sys_path_is_imported(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = evil.parent / "src"
    place.mkdir()
    (place / "mlx_magic_unlikely.py").write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(place))
    with remote_code_guard.active(remote_code_guard.of(as_checkpoint(evil))):
        assert importlib.import_module("mlx_magic_unlikely").f() == 1
    del sys.modules["mlx_magic_unlikely"]
    with remote_code_guard.active(remote_code_guard.of(as_checkpoint(evil))):  # its .pyc
        assert importlib.import_module("mlx_magic_unlikely").f() == 1
    del sys.modules["mlx_magic_unlikely"]


def test_module_in_a_checkpoint_on_sys_path_does_not_run(
    evil: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (evil / "mlx_magic_unlikely.py").write_text((evil / "evil.py").read_text())
    monkeypatch.syspath_prepend(str(evil))
    guard = remote_code_guard.of(as_checkpoint(evil))
    with remote_code_guard.active(guard), pytest.raises(UntrustedCodeError):
        importlib.import_module("mlx_magic_unlikely")
    assert not checkpoints.mark_of(evil).exists()


def test_code_on_other_threads_is_not_guarded(evil: Path) -> None:
    """The user calls a library on another thread during a load."""
    inside, done = threading.Event(), threading.Event()
    found: list[object] = []

    def person() -> None:
        inside.wait(10)
        try:
            found.append(imported(evil / "evil.py"))
        finally:
            done.set()

    thread = threading.Thread(target=person)
    thread.start()
    guard = remote_code_guard.of(as_checkpoint(evil))
    with remote_code_guard.active(guard):
        inside.set()
        assert done.wait(10)
    thread.join()
    assert found
    assert checkpoints.mark_of(evil).exists()
    assert not guard.refused


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that would be reached."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@pytest.mark.parametrize("where", WHERE)
def test_guard_blocks_the_network(listener: socket.socket, where: Callable[..., None]) -> None:
    address = listener.getsockname()

    def reach() -> None:
        with socket.create_connection(address, 5):
            pass

    guard = remote_code_guard.Guard("m", [])
    with remote_code_guard.active(guard), pytest.raises(ConnectionRefusedError):
        where(reach)
    assert guard.unreached[0] == "127.0.0.1"
    assert not guard.refused  # a library that continues without it may
    where(reach)


def steps_of(function: Callable[[], Any]) -> Generator[None, None, str]:
    yield
    function()
    yield
    return "loaded"


def test_load_without_permission_names_the_refused_code(evil: Path) -> None:
    steps = steps_of(lambda: imported(evil / "evil.py"))
    with pytest.raises(UntrustedCodeError, match=r"^m wants to run its own code \(evil.py\), and"):
        run_to_end(remote_code_guard.guarded(steps, as_checkpoint(evil), allowed=False))


def test_load_fails_even_if_the_library_swallows_the_refusal(evil: Path) -> None:
    def swallows() -> None:
        with contextlib.suppress(Exception):
            imported(evil / "evil.py")

    with pytest.raises(UntrustedCodeError, match="wants to run its own code"):
        run_to_end(
            remote_code_guard.guarded(steps_of(swallows), as_checkpoint(evil), allowed=False)
        )
    assert not checkpoints.mark_of(evil).exists()


def test_swallowed_refusal_ends_the_load_at_the_same_slice(evil: Path) -> None:
    went_on = []

    def steps() -> Generator[None, None, str]:
        with contextlib.suppress(Exception):
            imported(evil / "evil.py")
        yield
        went_on.append(True)
        return "loaded"

    load = remote_code_guard.guarded(steps(), as_checkpoint(evil), allowed=False)
    with pytest.raises(UntrustedCodeError):
        next(load)
    assert not went_on


def test_loaded_model_is_closed_if_the_refusal_came_last(evil: Path) -> None:
    closed = []

    class Made:
        def close(self) -> None:
            closed.append(self)

    def steps() -> Generator[None, None, Made]:
        yield
        with contextlib.suppress(Exception):
            imported(evil / "evil.py")
        return Made()

    with pytest.raises(UntrustedCodeError):
        run_to_end(remote_code_guard.guarded(steps(), as_checkpoint(evil), allowed=False))
    assert len(closed) == 1


def test_load_with_permission_runs_the_code(evil: Path) -> None:
    steps = steps_of(lambda: imported(evil / "evil.py"))
    assert (
        run_to_end(remote_code_guard.guarded(steps, as_checkpoint(evil), allowed=True)) == "loaded"
    )
    assert checkpoints.mark_of(evil).exists()


def test_interleaved_loads_have_separate_permissions(evil: Path) -> None:
    """The inference thread runs slices of both alternately."""

    def evil_steps() -> Generator[None, None, str]:
        yield
        imported(evil / "evil.py")
        yield
        return "loaded"

    allowed = remote_code_guard.guarded(evil_steps(), as_checkpoint(evil), allowed=True)
    refused = remote_code_guard.guarded(evil_steps(), as_checkpoint(evil), allowed=False)
    next(refused)
    next(allowed)
    next(allowed)
    assert checkpoints.mark_of(evil).exists()
    with pytest.raises(UntrustedCodeError):
        next(refused)


def test_abandoned_load_cleans_up_under_the_guard(evil: Path) -> None:
    tried: list[BaseException] = []

    def steps() -> Generator[None, None, None]:
        try:
            yield
        finally:
            try:
                imported(evil / "evil.py")
            except UntrustedCodeError as error:
                tried.append(error)

    load = remote_code_guard.guarded(steps(), as_checkpoint(evil), allowed=False)
    next(load)
    load.close()
    assert len(tried) == 1


def test_load_is_refused_without_audit_hooks(evil: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another audit hook may forbid ours; then loads must be refused."""
    monkeypatch.setattr(sys, "audit", lambda *args: None)
    steps = steps_of(lambda: imported(evil / "evil.py"))
    with pytest.raises(UntrustedCodeError, match="audit hooks do not work in this Python"):
        run_to_end(remote_code_guard.guarded(steps, as_checkpoint(evil), allowed=False))
    assert not checkpoints.mark_of(evil).exists()
