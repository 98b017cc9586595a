"""Everything named in the documents exists: options, commands, targets, files; code parses."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import mlx_magic
from mlx_magic.notebook.magic_line.commands import parse_line
from mlx_magic.notebook.magic_line.options import CELL_OPTIONS, LINE_OPTIONS, SETTINGS, parse_cell

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mlx_magic"
PAGES = tuple(sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", *PAGES)
README_LINES = 150
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST_NOTEBOOK = 400_000
# Flags of other programs: pip, mypy.
FOREIGN_FLAGS = {"--help", "--marks", "--force-reinstall", "--no-deps", "--strict"}
# Made by make, or a person's own.
MADE = {".venv", ".cache/ipykernel/", ".mlx-magic/journal.sqlite"}
TOPS = ("mlx_magic", "tests", "tools", "benchmarks")
OPTIONS = [*CELL_OPTIONS, *(option for options in LINE_OPTIONS.values() for option in options)]


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield the language and the content of each block of code."""
    for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        yield match[2], match[3]


def inline_code(text: str) -> list[str]:
    """Return the text in single backticks, outside code blocks."""
    text = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)


def check_code(source: str) -> None:
    """Read a cell as the magics and Python would; nothing is run."""
    if source.startswith("%%vision"):
        head, _, body = source.partition("\n")
        parse_cell(head.removeprefix("%%vision"), body)
        return
    rest = []
    for line in source.splitlines():
        if line.startswith("%vision"):
            parse_line(line.removeprefix("%vision"))
        elif not line.startswith("%"):
            rest.append(line)
    ast.parse("\n".join(rest))


def cells(path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def source_of(cell: dict[str, object]) -> str:
    source = cell["source"]
    return source if isinstance(source, str) else "".join(source)  # type: ignore[arg-type]


def tags_of(cell: dict[str, object]) -> list[str]:
    metadata = cell["metadata"]
    assert isinstance(metadata, dict)
    return list(metadata.get("tags", []))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_code_in_documents_parses(name: str) -> None:
    for language, code in code_blocks(text_of(name)):
        if language == "python" or code.startswith("%"):
            check_code(code)


def test_readme_shows_magics_and_python() -> None:
    blocks = list(code_blocks(text_of("README.md")))
    assert any(code.startswith("%%vision") for _, code in blocks)
    assert any(code.startswith("%vision") for _, code in blocks)
    assert any(language == "python" for language, _ in blocks)


def test_unknown_flags_in_documents_would_be_detected() -> None:
    with pytest.raises(mlx_magic.errors.RequestError):
        check_code("%%vision --no-such-flag\nWhat?")
    with pytest.raises(mlx_magic.errors.RequestError):
        check_code("%vision lost")
    with pytest.raises(SyntaxError):
        check_code("for piece in")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_flags_exist(name: str) -> None:
    known = {flag for option in OPTIONS for flag in option.flags if flag.startswith("--")}
    named = {
        flag for code in inline_code(text_of(name)) for flag in re.findall(r"--[a-z][a-z-]+", code)
    }
    assert named <= known | FOREIGN_FLAGS


def test_readme_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= README_LINES


def test_readme_links_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#\s]+)\)", text_of("README.md")))
    assert {*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= links


def rows(name: str) -> list[str]:
    """Return the rows of a document's tables."""
    return [line for line in text_of(name).splitlines() if line.startswith("| ")]


def test_options_page_has_a_row_for_every_option_and_its_setting() -> None:
    found, named = rows("docs/options.md"), inline_code(text_of("docs/options.md"))
    for option in CELL_OPTIONS:
        if not option.available:
            assert set(option.flags) <= set(named)
            continue
        [row] = [row for row in found if row.startswith(f"| `{option.flags[0]}")]
        assert all(flag in row for flag in option.flags)
        assert f"`{option.trait}`" in row


def test_options_page_has_every_setting() -> None:
    named = inline_code(text_of("docs/options.md"))
    assert {setting.trait for setting in SETTINGS} <= set(named)


def test_options_page_has_every_command_with_its_flags() -> None:
    found = rows("docs/options.md")
    for verb, options in LINE_OPTIONS.items():
        [row] = [row for row in found if re.search(rf"^\| .*`%vision {verb}\b", row)]
        assert all(flag in row for option in options for flag in option.flags)


def test_readme_calls_unavailable_what_is_unavailable() -> None:
    text = " ".join(text_of("README.md").split())
    [sentence] = re.findall(r"Their flags \((.*?)\) are errors", text)
    planned = {flag for option in OPTIONS if not option.available for flag in option.flags}
    named = set(re.findall(r"`(-[^`]+)`", sentence))
    assert named
    assert named <= planned


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_subcommands_exist(name: str) -> None:
    for code in inline_code(text_of(name)):
        if match := re.match(r"%vision ([a-z]+)", code):
            assert match[1] in LINE_OPTIONS


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_make_targets_exist(name: str) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", text_of("Makefile"), re.MULTILINE))
    shell = [line for language, code in code_blocks(text_of(name)) if language == "console"
             for line in code.splitlines()]  # fmt: skip
    used = {match[1] for code in [*inline_code(text_of(name)), *shell]
            if (match := re.match(r"\s*make ([a-z0-9]+)", code))}  # fmt: skip
    assert used <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_named_files_exist(name: str) -> None:
    paths = [
        code for code in inline_code(text_of(name)) if re.fullmatch(r"[\w.-]+(/[\w.-]*)+", code)
    ]
    for path in {*paths} - MADE:
        assert any((place / path).exists() for place in (ROOT, PACKAGE)), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_a_file_and_a_heading(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Return what a link may name behind its # sign: the headings, as GitHub spells them."""
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def test_contributing_has_every_folder_and_layer() -> None:
    firsts = " ".join(row.split("|")[1] for row in rows("CONTRIBUTING.md"))
    folders = {path.parent for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    names = {f"{folder.relative_to(PACKAGE)}/" for folder in folders - {PACKAGE}}
    names |= {path.name for path in PACKAGE.glob("*.py")}
    assert sorted(name for name in names if f"`{name}`" not in firsts) == []


def test_contributing_names_modules_that_exist() -> None:
    tracked = {path.name for top in TOPS for path in (ROOT / top).rglob("*.py")}
    named = [
        code for code in inline_code(text_of("CONTRIBUTING.md")) if re.fullmatch(r"\w+\.py", code)
    ]
    assert set(named) <= tracked


def test_named_public_names_exist() -> None:
    for name in DOCUMENTS:
        for attribute in re.findall(r"`mlx_magic\.(\w+)", text_of(name)):
            assert hasattr(mlx_magic, attribute) or (ROOT / f"mlx_magic/{attribute}.py").exists()


def test_changelog_has_this_version() -> None:
    assert f"## [{mlx_magic.__version__}]" in text_of("CHANGELOG.md")


def test_readme_image_is_sharp_and_small() -> None:
    path = ROOT / "docs" / "images" / "quickstart.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as image:
        assert image.width >= 1200


def test_example_notebooks_exist() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "data.ipynb",
        "map.ipynb",
        "panel.ipynb",
        "pool.ipynb",
        "quickstart.ipynb",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_code_parses(path: Path) -> None:
    for cell in cells(path):
        if cell["cell_type"] == "code":
            check_code(source_of(cell))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_small_and_was_run_in_order(path: Path) -> None:
    assert path.stat().st_size < LARGEST_NOTEBOOK
    assert "widgets" not in json.loads(path.read_text(encoding="utf-8"))["metadata"]
    counts = [cell["execution_count"] for cell in cells(path) if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_cell_excluded_from_comparison_has_a_reason_before_it(path: Path) -> None:
    before = ""
    for cell in cells(path):
        skipped = any(tag.startswith("nbval") for tag in tags_of(cell)) or "NBVAL" in source_of(
            cell
        )
        assert not skipped or "depends on your machine" in " ".join(before.split())
        before = source_of(cell) if cell["cell_type"] == "markdown" else ""
