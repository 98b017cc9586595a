"""The alias file with concurrent writers, disk errors and hostile content."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_magic.errors import RequestError
from mlx_magic.models.catalog import alias_file
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget, require_alias


@pytest.fixture
def file(tmp_path: Path) -> AliasFile:
    return AliasFile(tmp_path / "aliases.toml")


def refused(file: AliasFile, alias: str = "a", target: AliasTarget | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        file.save(alias, target or AliasTarget("org/a"))
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 800
    return text


def left_over(folder: Path) -> set[str]:
    """Return what is in a folder beside the file and its lock."""
    return {path.name for path in folder.iterdir()} - {"aliases.toml", ".aliases.toml.lock"}


WRITER = """
import sys
from pathlib import Path
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget
file = AliasFile(Path(sys.argv[1]), patience=100)
print("ready", flush=True)
sys.stdin.readline()
for at in range(20):
    file.save(f"w{sys.argv[2]}-{at}", AliasTarget(f"org/{at}"))
"""


def test_eight_processes_saving_at_once_keep_all_aliases(file: AliasFile) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file.path), str(at)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for at in range(8)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=100)
        assert writer.returncode == 0
    assert set(file.targets) == {f"w{at}-{n}" for at in range(8) for n in range(20)}
    assert file.problems == ()
    assert left_over(file.path.parent) == set()


HOLDER = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held(file: AliasFile) -> Iterator[subprocess.Popen[str]]:
    place = file.path.with_name(f".{file.path.name}.lock")
    command = [sys.executable, "-c", HOLDER, str(place)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_lock_held_by_a_stuck_process_is_an_error_of_one_line(
    tmp_path: Path,
) -> None:
    file = AliasFile(tmp_path / "aliases.toml", patience=0.05)
    file.save("a", AliasTarget("org/a"))
    before = file.path.read_bytes()
    with held(file):
        assert "is locked by another process" in refused(file, "b")
        assert file.path.read_bytes() == before
        assert file.targets == {"a": AliasTarget("org/a")}
    file.save("b", AliasTarget("org/b"))


def test_lock_of_a_dead_process_is_ignored(tmp_path: Path) -> None:
    file = AliasFile(tmp_path / "aliases.toml", patience=5)
    with held(file) as holder:
        holder.kill()
        holder.wait()
        file.save("a", AliasTarget("org/a"))
    assert file.targets == {"a": AliasTarget("org/a")}


MASKED = """
import os, sys
from pathlib import Path
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget
os.umask(int(sys.argv[2], 8))
AliasFile(Path(sys.argv[1])).save("a", AliasTarget("org/a"))
"""


@pytest.mark.parametrize(("umask", "mode"), [("022", 0o644), ("077", 0o600), ("002", 0o664)])
def test_new_file_mode_respects_the_umask(file: AliasFile, umask: str, mode: int) -> None:
    subprocess.run([sys.executable, "-c", MASKED, str(file.path), umask], check=True)
    assert stat.S_IMODE(file.path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_keeps_its_mode(file: AliasFile, mode: int) -> None:
    file.path.write_text('b = "org/b"\n')
    file.path.chmod(mode)
    file.save("a", AliasTarget("org/a"))
    assert stat.S_IMODE(file.path.stat().st_mode) == mode


@pytest.mark.parametrize("there", [True, False])
def test_symlink_stays_a_symlink(file: AliasFile, tmp_path: Path, there: bool) -> None:
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "aliases.toml"
    if there:
        real.write_text('b = "org/b"\n')
    file.path.symlink_to(real)
    file.save("a", AliasTarget("org/a"))
    assert file.path.is_symlink()
    assert 'a = "org/a"' in real.read_text()
    assert set(file.targets) == ({"a", "b"} if there else {"a"})


FULL = """
import resource, signal, sys
from pathlib import Path
from mlx_magic.errors import RequestError
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    AliasFile(Path(sys.argv[1])).save("a", AliasTarget("org/a"))
except RequestError as error:
    print(error)
"""


def test_failed_write_keeps_the_old_file(file: AliasFile) -> None:
    file.path.write_text('# kept\nb = "org/b"\n' + "# more\n" * 50)
    before = file.path.read_bytes()
    command = [sys.executable, "-c", FULL, str(file.path)]
    said = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "cannot be changed (File too large)" in said.stdout
    assert said.stdout.count("\n") == 1
    assert file.path.read_bytes() == before
    assert left_over(file.path.parent) == set()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(
    file: AliasFile, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file.path.write_text('b = "org/b"\n')

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    assert "No space left on device" in refused(file)
    monkeypatch.undo()
    assert file.path.read_text() == 'b = "org/b"\n'
    assert left_over(file.path.parent) == set()


def test_new_file_is_synced_before_it_replaces_the_old_one(
    file: AliasFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        steps.append("fsync")
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        steps.append("replace")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    file.save("a", AliasTarget("org/a"))
    assert steps[:2] == ["fsync", "replace"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_an_error_of_one_line(file: AliasFile, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "Permission denied" in refused(file)
    finally:
        tmp_path.chmod(0o700)


def odd_places(path: Path) -> Iterator[tuple[str, str]]:
    os.mkfifo(path)
    yield "a pipe", "not a regular file"
    path.unlink()
    path.symlink_to("/dev/zero")
    yield "a device", "not a regular file"
    path.unlink()
    path.symlink_to("/dev/tty")
    yield "a terminal", "regular file"
    path.unlink()
    path.mkdir()
    yield "a folder", "not a regular file"
    path.rmdir()
    path.symlink_to(path)
    yield "a loop", "symbolic links"
    path.unlink()
    path.symlink_to(path / "x")
    yield "a loop with a name", ""
    path.unlink()


def test_pipes_and_devices_are_refused_without_waiting(file: AliasFile) -> None:
    for what, why in odd_places(file.path):
        fresh = AliasFile(file.path)
        assert fresh.targets == {}, what
        assert all(problem.isprintable() for problem in fresh.problems), what
        assert why in refused(fresh), what


def test_invalid_path_is_an_error_of_one_line(tmp_path: Path) -> None:
    for name in ("x" * 300, "y\x1b[2J" * 60):
        assert AliasFile(tmp_path / name).targets == {}
        refused(AliasFile(tmp_path / name))


HOSTILE = {
    "brackets": "a = " + "[" * 100_000,
    "brackets over lines": "a = " + "[\n" * 4_900,
    "inline tables": "a = " + "{b = " * 60,
    "dots": "a" + ".a" * 100_000 + " = 1",
    "dots at the limit": "".join(f"a{at}{'.a' * 99} = 1\n" for at in range(100)),
    "dots on every line": "".join(f"a{at}{'.a' * 100} = 1\n" for at in range(1_200)),
    "tables": "[a]\n" * 100_000,
    "deep tables": "".join(f"[{'a.' * 400}b{at}]\n" for at in range(300)),
    "a long number": "a = " + "9" * 250_000,
    "a long hexadecimal number": "a = 0x" + "f" * 390,
    "a long float": "a = 1e" + "9" * 390,
    "empty lines": "\n" * 1_000_000,
    "aliases": "".join(f'a{at} = "b"\n' for at in range(4_900)),
    "wrong aliases": "".join(f"a{at} = 1\n" for at in range(4_900)),
    "a long alias": f'{"a" * 250_000} = "b"',
    "a long target": f'a = "{"b" * 250_000}"',
    "an open string": 'a = "' + '\\"' * 120_000,
    "an open text": 'a = """' + '"\\n' * 4_900,
    "dates": "".join(f"a{at} = 9999-12-31T23:59:60Z\n" for at in range(4_900)),
    "commas": "a = [" + "1," * 250_000 + "]",
    "too large": "#" * (2**18 + 1),
    "commas at the limit": "a = [" + "1," * 4_900 + "]",
    "a terminal's sequences": '"\\u001b]0;x\\u0007\\u009b2J" = "b"\nb = "\\u001b[2J"',
    "directions": '"\\u202e" = 1',
    "carriage returns": 'a = "b"\r' * 1_000,
}
RAW = {
    "no UTF-8": b'a = "\xff\xfe"',
    "half a character": b'a = "\xed\xa0\x80"',
    "UTF-16": 'a = "b"'.encode("utf-16"),
    "zero bytes": bytes(100_000),
}

READER = """
import resource, sys, time
from pathlib import Path
from mlx_magic.errors import RequestError
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget
import filelock, tomllib
def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
for path in sorted(Path(sys.argv[1]).iterdir()):
    before, began = peak(), time.process_time()
    file = AliasFile(path)
    said = list(file.problems)
    before_bytes = path.read_bytes()
    try:
        file.save("new", AliasTarget("org/new"))
        said.append("saved")
    except RequestError as error:
        said.append(str(error))
        assert path.read_bytes() == before_bytes
    for alias, target in file.targets.items():
        assert alias.isprintable() and target.model.isprintable(), path
    assert len(said) < 50, path
    assert all(line.isprintable() and len(line) < 900 for line in said), (path, said)
    took, more = time.process_time() - began, peak() - before
    assert took < 2 and more < 300e6, (path, took, more)
    print(path.name, "|", len(file.targets), "|", said[-1][-120:])
"""


def test_hostile_content_takes_little_time_and_memory(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for name, content in {**{k: v.encode() for k, v in HOSTILE.items()}, **RAW}.items():
        (folder / f"{name}.toml").write_bytes(content)
    command = [sys.executable, "-c", READER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stdout.count("\n") == len(HOSTILE) + len(RAW), done.stdout


def test_number_of_aliases_and_problems_is_limited(file: AliasFile) -> None:
    file.path.write_text("".join(f'a{at} = "b"\n' for at in range(alias_file.MOST_ALIASES)))
    assert len(file.targets) == alias_file.MOST_ALIASES
    assert "takes no more" in refused(file, "another")
    file.save("a3", AliasTarget("org/new"))  # one that it has may change
    assert file.targets["a3"] == AliasTarget("org/new")
    file.path.write_text("".join(f"a{at} = 1\n" for at in range(1_000)))
    assert len(file.problems) == 21
    assert "980 more lines" in file.problems[-1]


@pytest.mark.parametrize(
    "alias", ["", " ", "a/b", "-a", "demo", "a\x1b[2J", "a\nb", "a\u202eb", "a\0", "a" * 201]
)
def test_invalid_aliases_are_refused_everywhere_in_one_line(file: AliasFile, alias: str) -> None:
    assert "cannot be an alias" in refused(file, alias)
    with pytest.raises(RequestError, match="cannot be an alias") as caught:
        require_alias(alias)
    assert str(caught.value).isprintable()
    assert not file.path.exists()


@pytest.mark.parametrize("target", ["a\x1b[2J", "a\nb", "a\u202eb", "a\0", "a" * 5_000])
def test_unprintable_aliases_are_not_saved(file: AliasFile, target: str) -> None:
    assert "cannot be kept" in refused(file, "a", AliasTarget(target))
    assert "cannot be kept" in refused(file, "a", AliasTarget("org/a", target))
    assert not file.path.exists()


@pytest.mark.parametrize(
    "word",
    ["größe", "模型", "my model", "a\u00a0b", "👩\u200d💻", "a'b\"c", "a.b", "C:\\x", "a=b #c"],
)
def test_aliases_in_any_language_are_saved(file: AliasFile, word: str) -> None:
    file.save(word, AliasTarget(f"/models/{word}", word))
    file.save("other", AliasTarget("org/b"))
    assert file.targets == {
        word: AliasTarget(f"/models/{word}", word),
        "other": AliasTarget("org/b"),
    }
    assert file.problems == ()


def test_comment_with_other_line_endings_is_kept(file: AliasFile) -> None:
    text = '# one\u2028[two]\x85three\nb = "org/b" # \u2028c = 1\n'
    file.path.write_bytes(text.encode())
    file.save("a", AliasTarget("org/a"))
    assert file.path.read_bytes() == (text + 'a = "org/a"\n').encode()


texts = st.text(st.characters(codec="utf-8")) | st.text("ab=\"[]{}.,#\n\r\t\\u0'-_ 1", max_size=60)


@settings(deadline=None, max_examples=int(os.environ.get("MLX_MAGIC_FUZZ", "60")))
@given(content=texts | st.binary(max_size=60), alias=texts, model=texts)
def test_any_content_and_alias_is_saved_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes, alias: str, model: str
) -> None:
    file = AliasFile(tmp_path_factory.mktemp("f") / "aliases.toml")
    raw = content.encode() if isinstance(content, str) else content
    file.path.write_bytes(raw)
    before = dict(file.targets)
    assert all(line.isprintable() for line in file.problems)
    try:
        file.save(alias, AliasTarget(model))
    except RequestError as error:
        said = str(error)
    else:
        said = ""
    assert said.isprintable()
    if said:
        assert file.path.read_bytes() == raw
    elif model.strip():
        assert file.targets == {**before, alias: AliasTarget(model)}
