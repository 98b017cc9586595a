"""Import rules, checked on the source. CONTRIBUTING.md has the diagram."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_magic"
MODULES = sorted(PACKAGE.rglob("*.py"))

NOTEBOOK_ONLY = {"IPython", "ipykernel", "ipywidgets", "anywidget", "jupyter_ui_poll", "traitlets"}
BACKENDS_ONLY = {"mlx", "mlx_vlm", "mlx_lm", "transformers", "tokenizers"}
# Used when a person has them, or came with them; not needed by the project itself.
AT_HAND = {"certifi", "ipykernel", "matplotlib", "pandas", "pyarrow", "supervision"}
AT_HAND |= {"tornado", "zmq"}
# What brings these is a dependency, and its version decides which of these fits.
BROUGHT_ALONG = {
    "tokenizers": "mlx-vlm",
    "jinja2": "mlx-lm",
    "traitlets": "ipython",
    "comm": "ipywidgets",
}
IMPORT_NAMES = {"ipython": "IPython", "pillow": "PIL", "markdown-it-py": "markdown_it"}
SLOW = {
    "mlx", "mlx_vlm", "mlx_lm", "transformers", "tokenizers", "huggingface_hub", "numpy", "pandas",
    "matplotlib", "PIL", "IPython", "ipywidgets", "anywidget", "asyncio",
}  # fmt: skip


def name_of(path: Path) -> str:
    """Return the module's dotted name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk(node: ast.AST, *, with_types: bool) -> Iterator[ast.AST]:
    """Walk the tree; without what only type checkers see, unless `with_types`."""
    yield node
    children = ast.iter_child_nodes(node)
    if is_type_checking(node) and not with_types:
        assert isinstance(node, ast.If)
        children = iter(node.orelse)
    for child in children:
        yield from walk(child, with_types=with_types)


@functools.cache
def imports(path: Path, *, with_types: bool = True) -> set[str]:
    """Return every module that is imported anywhere in a file, inside functions too."""
    found: set[str] = set()
    package = (
        name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    )
    for node in walk(ast.parse(path.read_text()), with_types=with_types):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*up, *([node.module] if node.module else [])])
            found.add(source)
            found.update(f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found.update(
                argument.value
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            )
    return found


def top_packages(names: set[str]) -> set[str]:
    """Return the top-level packages of dotted names."""
    return {name.partition(".")[0] for name in names}


def is_within(names: set[str], package: str) -> set[str]:
    """Return the names that are `package` or lie in it."""
    return {name for name in names if name == package or name.startswith(package + ".")}


def test_import_scan_finds_nested_imports(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from importlib import import_module\n"
        "if TYPE_CHECKING:\n    import for_types\n"
        "def work():\n"
        "    import inside.function\n"
        "    from . import sibling\n"
        "    return import_module('by.name')\n"
    )
    path = PACKAGE / "engine" / "imagined.py"
    real_read = Path.read_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self: source if self == path else real_read(self))
        seen = imports(path)
        assert {"for_types", "inside.function", "by.name"} <= seen
        assert "mlx_magic.engine.sibling" in seen
        assert "for_types" not in imports(path, with_types=False)
    imports.cache_clear()


def test_import_scan_finds_modules() -> None:
    assert {"mlx_magic", "mlx_magic.errors", "mlx_magic.engine.request"} <= {
        name_of(path) for path in MODULES
    }


ROOMS = (
    "notebook",
    "data",
    "default_session",
    "session",
    "model_pool",
    "backends",
    "models",
    "options",
    "engine",
    "images",
    "demo",
)
"""From the top to the bottom: imports go down."""

GROUND = (
    "errors",
    "cancellation",
    "formatting",
    "argument_checks",
    "user_folders",
    "interrupts",
    "forks",
)
"""Modules below all layers; they may import each other without a cycle."""

FACE = ("api", "testing", "inference")
"""Modules above all layers: the public API, fakes for tests, and names in old pickles."""

PLAIN = {"mlx_magic.backends", "mlx_magic.backends.cache_stats"}

MOST_MODULES = 12
"""In a folder, its `__init__.py` not counted."""

BY_NAME = {name_of(path): path for path in MODULES}


def own_imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever it does."""
    return {name for name in imports(path) if name in BY_NAME and name != name_of(path)}


def layer_of(module: str) -> int:
    """Return how far down a module stands."""
    room = module.split(".")[1] if "." in module else ""
    if room in ("", *FACE):
        return 0
    return 1 + (ROOMS.index(room) if room in ROOMS else len(ROOMS))


def children(folder: str) -> dict[str, set[str]]:
    """Return, for each part of a folder, the other parts that anything in it imports."""
    found: dict[str, set[str]] = {}
    inside = f"{folder}."
    for name, path in BY_NAME.items():
        if name.startswith(inside):
            part = name.removeprefix(inside).split(".")[0]
            there = {
                n.removeprefix(inside).split(".")[0]
                for n in own_imports(path)
                if n.startswith(inside)
            }
            found.setdefault(part, set()).update(there - {part})
    return found


def import_cycle(graph: dict[str, set[str]]) -> list[str]:
    """Return what is left once all that imports nothing of the rest is taken away, repeatedly."""
    left = {part: set(needs) for part, needs in graph.items()}
    while free := {part for part, needs in left.items() if not needs & left.keys()}:
        left = {part: needs for part, needs in left.items() if part not in free}
    return sorted(left)


def test_import_cycle_is_detected() -> None:
    assert import_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert import_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["a", "b", "c"]


def test_each_module_belongs_to_a_layer_of_the_plan() -> None:
    known = {*ROOMS, *GROUND, *FACE}
    assert [name for name in BY_NAME if "." in name and name.split(".")[1] not in known] == []


def test_imports_go_to_lower_layers() -> None:
    up = [
        f"{name} -> {other}"
        for name, path in BY_NAME.items()
        for other in own_imports(path)
        if layer_of(other) < layer_of(name) and other != "mlx_magic"
    ]
    assert up == []


def test_modules_have_no_import_cycles() -> None:
    folders = {name.rpartition(".")[0] for name in BY_NAME} - {""}
    folders |= {".".join(folder.split(".")[:depth]) for folder in folders for depth in (1, 2, 3)}
    circles = {folder: import_cycle(children(folder)) for folder in sorted(folders)}
    # The package's own names are looked up when they are asked for.
    assert {folder: parts for folder, parts in circles.items() if parts} == {}


def test_no_folder_holds_more_than_a_dozen_modules() -> None:
    count = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {str(folder): n for folder, n in count.items() if n > MOST_MODULES} == {}


def test_notebook_libraries_are_imported_only_in_notebook() -> None:
    users = {name for name, path in BY_NAME.items() if top_packages(imports(path)) & NOTEBOOK_ONLY}
    assert users == is_within(users, "mlx_magic.notebook")


def test_model_libraries_are_imported_only_in_backends() -> None:
    users = {name for name, path in BY_NAME.items() if top_packages(imports(path)) & BACKENDS_ONLY}
    assert users == is_within(users, "mlx_magic.backends")


@pytest.mark.parametrize(("library", "room"), [("mlx_vlm", "vision"), ("mlx_lm", "text")])
def test_each_model_library_is_imported_by_one_kind_of_backend(library: str, room: str) -> None:
    users = {name for name, path in BY_NAME.items() if library in top_packages(imports(path))}
    assert users
    assert users == is_within(users, f"mlx_magic.backends.{room}")


LIBRARIES = ("mlx_vlm", "mlx_lm", "transformers", "huggingface_hub", "jinja2")

DOCUMENTED = {
    *LIBRARIES,
    "huggingface_hub.errors",
    "jinja2.exceptions",
    "jinja2.ext",
    "jinja2.nodes",
    "jinja2.parser",
    "jinja2.sandbox",
    "mlx_vlm.prompt_utils",
}
"""Modules of these libraries whose public names are documented. All other modules, and names that
begin with an underscore, are for a door only: they are checked there."""

DOORS = {
    "mlx_magic.backends.upstream": {"mlx_vlm", "mlx_lm", "transformers", "jinja2"},
    "mlx_magic.models.hub.upstream": {"huggingface_hub"},
}


def undocumented(names: set[str]) -> set[str]:
    """Return the modules and names of `LIBRARIES` that are for a door only."""
    found = set()
    for name in names:
        library, _, rest = name.partition(".")
        module, _, last = name.rpartition(".")
        if library not in LIBRARIES or name in DOCUMENTED:
            continue
        if last.startswith("_") or module not in DOCUMENTED or is_module(library, rest):
            found.add(name)
    return found


def is_module(library: str, rest: str) -> bool:
    """Whether a library has a module of this name, which is not imported to find out."""
    spec = importlib.util.find_spec(library)
    assert spec is not None
    folder = Path(next(iter(spec.submodule_search_locations or ())))
    path = folder.joinpath(*rest.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def spelled(path: Path) -> set[str]:
    """Return the dotted names of `LIBRARIES` in a file's strings, such as keys of sys.modules."""
    dotted = re.compile(rf"(?:{'|'.join(LIBRARIES)})(?:\.\w+)+")
    return {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and dotted.fullmatch(node.value)
    }


def test_undocumented_names_are_detected() -> None:
    assert undocumented({"mlx_lm.generate", "mlx_lm.generate.StopSequences"}) == {
        "mlx_lm.generate",
        "mlx_lm.generate.StopSequences",
    }
    assert undocumented({"jinja2._hidden", "jinja2.sandbox._x"}) == {
        "jinja2._hidden",
        "jinja2.sandbox._x",
    }
    assert undocumented({"mlx_lm.utils", "huggingface_hub.utils"}) == {
        "mlx_lm.utils",
        "huggingface_hub.utils",
    }
    known = {"mlx_vlm", "mlx_vlm.load", "huggingface_hub.errors.GatedRepoError", "json.decoder"}
    assert undocumented(known) == set()


def test_undocumented_names_of_libraries_are_only_in_the_doors() -> None:
    # `import jinja2.ext` loads an extension of Jinja by its documented name.
    users = {
        name: found
        for name, path in BY_NAME.items()
        if name not in DOORS
        and (found := undocumented(imports(path, with_types=False)) | undocumented(spelled(path)))
    }
    assert users == {}


def test_the_doors_name_their_own_libraries_and_import_none() -> None:
    for door, libraries in DOORS.items():
        assert top_packages(spelled(BY_NAME[door])) <= libraries
        assert not top_packages(imports(BY_NAME[door])) & set(LIBRARIES)


def at_runtime(module: str) -> set[str]:
    """Return the modules of the package that a module imports when it runs."""
    return imports(BY_NAME[module], with_types=False) & BY_NAME.keys()


def test_errors_and_request_have_few_imports() -> None:
    assert at_runtime("mlx_magic.errors") == set()
    below = {"mlx_magic.errors", "mlx_magic.argument_checks"}
    assert at_runtime("mlx_magic.engine.request") <= {*below, "mlx_magic"}


def test_backends_do_not_import_their_callers() -> None:
    users = [
        name
        for name in is_within(set(BY_NAME), "mlx_magic.backends")
        if "mlx_magic.engine.engine" in at_runtime(name)
    ]
    assert users == []


def test_notebook_reaches_backends_only_through_session() -> None:
    users = {
        name: found
        for name in is_within(set(BY_NAME), "mlx_magic.notebook")
        # What was reused is plain numbers.
        if (found := is_within(at_runtime(name), "mlx_magic.backends") - PLAIN)
    }
    assert users == {}


def test_modules_have_a_docstring() -> None:
    silent = [
        name
        for name, path in BY_NAME.items()
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_public_names_are_not_shadowed_by_modules() -> None:
    everything = "\n".join(f"import {name}" for name in BY_NAME)
    code = (
        f"{everything}\n"
        "from mlx_magic.model_pool.pool import ModelPool\n"
        "assert isinstance(mlx_magic.pool, ModelPool), mlx_magic.pool\n"
        "assert callable(mlx_magic.panel), mlx_magic.panel\n"
        "assert callable(mlx_magic.ask) and callable(mlx_magic.stream)\n"
        "assert mlx_magic.VisionResult.__module__ == mlx_magic.TextStream.__module__ == 'mlx_magic'"
    )
    loaded_by(code)


def test_names_are_descriptive() -> None:
    vague = re.compile(r"manager|helper|handler|utils?$", re.IGNORECASE)
    found = [
        f"{name_of(path)}: {name}"
        for path in MODULES
        for name in [path.stem, *class_names(path)]
        if vague.search(name)
    ]
    assert not found


def class_names(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def declared() -> set[str]:
    """Return the import names of the declared dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[\[<>=; ]", line)[0].lower() for line in project["dependencies"]}
    return {IMPORT_NAMES.get(name, name.replace("-", "_")) for name in names}


def third_party() -> set[str]:
    """Return the packages that the source imports, other than itself and the standard library."""
    used = {top for path in MODULES for top in top_packages(imports(path))}
    return used - set(sys.stdlib_module_names) - {"mlx_magic"}


def test_imported_packages_are_declared() -> None:
    assert third_party() <= declared() | AT_HAND | BROUGHT_ALONG.keys()


@pytest.mark.parametrize("library", ["mlx", "mlx-vlm", "mlx-lm"])
def test_model_libraries_have_a_lower_and_upper_version_bound(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["cuda"]]
    found = [Requirement(line) for line in lines if Requirement(line).name == library]
    assert found
    for each in found:
        assert {part.operator for part in each.specifier} == {">=", "<"}
        assert importlib.metadata.version(library) in each.specifier


def test_declared_packages_are_imported() -> None:
    assert declared() <= third_party()


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return top_packages(set(json.loads(done.stdout)))


def test_import_is_quick() -> None:
    assert not loaded_by("import mlx_magic") & SLOW


def test_no_module_loads_a_model_library_when_imported() -> None:
    everything = "\n".join(f"import {name_of(path)}" for path in MODULES)
    heavy = {"mlx", "mlx_vlm", "mlx_lm", "transformers", "pandas", "matplotlib"}
    assert not loaded_by(everything) & heavy


def committed_text() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every committed text file."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listing.stdout.decode().split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b""
        if b"\0" not in content:
            yield name, content.decode()


def test_no_committed_file_names_a_package_index() -> None:
    # Put together here, so that this file is not one that names them.
    hosts = ["py" + "pi.org", "pythonhosted" + ".org", "registry." + "npmjs", "proxy.gol" + "ang"]
    options = ["--index" + "-url", "--extra-index" + "-url", "--find" + "-links"]
    found = [
        f"{name}: {word}"
        for name, text in committed_text()
        for word in [*hosts, *options]
        if word in text
    ]
    assert not found


def test_constraints_pin_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    wrong = [line for line in pins if not re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.+]*( ; .+)?", line)]
    assert len(pins) > 100
    assert not wrong


def test_constraints_hold_no_second_machine_learning_framework() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"^(torch|tensorflow|jax|nvidia-|mlx-cuda)", text, re.MULTILINE)
