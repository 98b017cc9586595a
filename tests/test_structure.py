"""The rules that the folders stand for, read off the source: who may import what, and how long."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_magic"
MODULES = sorted(PACKAGE.rglob("*.py"))

NOTEBOOK_ONLY = {"IPython", "ipykernel", "ipywidgets", "anywidget", "jupyter_ui_poll", "traitlets"}
BACKENDS_ONLY = {"mlx", "mlx_vlm", "mlx_lm", "transformers"}
# Used when a person has them, or came with them; not needed by the project itself.
AT_HAND = {"certifi", "ipykernel", "matplotlib", "pandas", "tornado", "zmq"}
# What brings these is a dependency, and its version decides which of these fits.
BROUGHT_ALONG = {
    "transformers": "mlx-vlm",
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


def module_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


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


def tops(names: set[str]) -> set[str]:
    """Return the top-level packages of dotted names."""
    return {name.partition(".")[0] for name in names}


def within(names: set[str], package: str) -> set[str]:
    """Return the names that are `package` or lie in it."""
    return {name for name in names if name == package or name.startswith(package + ".")}


def belongs_to(path: Path, package: str) -> bool:
    return bool(within({name_of(path)}, package))


def test_the_walk_sees_imports_wherever_they_stand(tmp_path: Path) -> None:
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
    path = PACKAGE / "inference" / "imagined.py"
    real_read = Path.read_text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda self: source if self == path else real_read(self))
        seen = imports(path)
        assert {"for_types", "inside.function", "by.name"} <= seen
        assert "mlx_magic.inference.sibling" in seen
        assert "for_types" not in imports(path, with_types=False)


def test_there_is_something_to_check() -> None:
    assert {"mlx_magic", "mlx_magic.errors", "mlx_magic.engine.request"} <= {
        name_of(path) for path in MODULES
    }


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_only_the_notebook_storey_imports_the_notebook(path: Path) -> None:
    if belongs_to(path, "mlx_magic.notebook"):
        return
    assert not tops(imports(path)) & NOTEBOOK_ONLY


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_only_backends_import_mlx(path: Path) -> None:
    if belongs_to(path, "mlx_magic.inference.backends"):
        return
    assert not tops(imports(path)) & BACKENDS_ONLY


@pytest.mark.parametrize(
    ("library", "modules"),
    [
        (
            "mlx_vlm",
            {
                "cpu_towers",
                "recall",
                "vision",
                "vision_alone",
                "vision_batch",
                "vision_inputs",
                "vision_loading",
                "vision_probe",
                "vision_seeing",
            },
        ),
        ("mlx_lm", {"text", "text_batch", "text_probe", "text_reading", "text_recall"}),
    ],
)
def test_each_library_is_known_to_one_backend(library: str, modules: set[str]) -> None:
    users = {name_of(path) for path in MODULES if library in tops(imports(path))}
    assert users <= {f"mlx_magic.inference.backends.{module}" for module in modules}
    assert users


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_imports_go_downwards(path: Path) -> None:
    """notebook -> inference -> backends; errors is below all, the package's face above all."""
    name = name_of(path)
    seen = imports(path, with_types=False)
    if name == "mlx_magic":
        return
    if name == "mlx_magic.errors":
        assert not within(seen, "mlx_magic")
    if name == "mlx_magic.engine.request":
        below = within(seen, "mlx_magic.errors") | within(seen, "mlx_magic.argument_checks")
        assert within(seen, "mlx_magic") <= below
    if belongs_to(path, "mlx_magic.inference"):
        assert not within(seen, "mlx_magic.notebook")
    if belongs_to(path, "mlx_magic.inference.backends"):
        for above in ("engine", "pool", "session"):
            assert not within(seen, f"mlx_magic.inference.{above}")
    if belongs_to(path, "mlx_magic.notebook"):
        assert not within(seen, "mlx_magic.inference.backends")


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_modules_say_what_they_are(path: Path) -> None:
    if path.read_text().strip():
        assert ast.get_docstring(ast.parse(path.read_text())), "no module docstring"


def test_names_say_what_things_do() -> None:
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
    used = {top for path in MODULES for top in tops(imports(path))}
    return used - set(sys.stdlib_module_names) - {"mlx_magic"}


def test_what_is_imported_is_declared() -> None:
    assert third_party() <= declared() | AT_HAND | BROUGHT_ALONG.keys()


@pytest.mark.parametrize("library", ["mlx", "mlx-vlm", "mlx-lm"])
def test_the_model_libraries_have_a_floor_and_a_ceiling(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["cuda"]]
    found = [Requirement(line) for line in lines if Requirement(line).name == library]
    assert found
    for each in found:
        assert {part.operator for part in each.specifier} == {">=", "<"}
        assert importlib.metadata.version(library) in each.specifier


def test_what_is_declared_is_imported() -> None:
    assert declared() <= third_party()


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh Python has loaded after `statement`."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return tops(set(json.loads(done.stdout)))


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
