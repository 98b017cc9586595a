"""What was seen of all checkpoints, as the package's table and as a page of the documentation."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_magic.models.checkpoints import architectures
from tools.model_table import marks
from tools.tiny_models.spec import TinyModel, all_models

Row = Mapping[str, Any]

VERSIONS = ("mlx", "mlx-vlm", "mlx-lm", "transformers")

_HEAD = """\
# Models that were compared

`make models` writes this page. For each row it builds a tiny checkpoint with random weights. It
asks the same questions through mlx-magic and through the library alone ({versions}), with
greedy decoding in float32 (or in 4 bits, if the row says so), and compares the answers. The
questions are asked alone, repeated, with two images, without images, with a system prompt, as
follow-ups, with images of 1 by 1 and 2000 by 30 pixels, with prompts longer than a chunk, than the
attention window and than the original number of positions, four at once, during another answer, and
after a Cancel.

- **together**: concurrent requests are batched, and the answers are the same as the library's.
- **one at a time**: requests are answered in the order of asking, and the answers are the same as
  the library's. The last column says why they are not batched.
- **reused**: a second question about the same image (for a text model: the same long text) reads
  only what is new. `usage.cached_tokens` says how many tokens were not read again.
- **adapter**: a LoRA adapter that the library made for the tiny checkpoint changes its answers. An
  empty cell: the library could not make one, or it was not measured.
- **boxes**: how the architecture writes boxes, where that is known.
- Thoughts depend on the chat template of a checkpoint, not on its architecture: the marks that the
  template shows are found in every model. Videos are not read by any.
- Models that are not in this table, or that differ from their row in the signature, answer one at a
  time, with the library's own prefill chunks.

The loaded weights are also checked once: two short rows must give the same numbers in a batch as
each alone. `%vision models NAME` says what is known of a model before it is loaded, and
`%vision status` how a loaded model answers.

"""


_COLUMNS = ("architecture", "signature", "answers", *marks.COLUMNS, "compared", "why not together")


def line(row: Row) -> str:
    """Return what was seen of a checkpoint, as one line."""
    if row["failed"]:
        return f"FAILED: {row['failed']}"
    alone, together = row["alone"], row["together"]
    counts = f"{alone['compared']} alone, {together['compared']} together"
    verdict = row["verdict"]
    how = "together" if verdict["together"] else f"one at a time ({verdict['why']})"
    chunks = "" if verdict["chunks"] else ", prompts in the library's chunks"
    looked = {True: "", False: ", weights refuted", None: ""}[row["confirmed"]]
    return f"{how}{chunks}; {counts} compared{looked}"


def table(rows: Sequence[Row], path: Path) -> None:
    """Write the package's table: one line a checkpoint, so that a change of one is one line."""
    lines = [json.dumps(_entry(row), ensure_ascii=False) for row in rows if row.get("signature")]
    versions = json.dumps(_versions())
    text = ",\n".join(lines)
    path.write_text(f'{{"versions": {versions},\n"models": [\n{text}\n]}}\n', encoding="utf-8")


def update(rows: Sequence[Row], table_path: Path, page_path: Path) -> None:
    """Put the rows of some checkpoints into the table and the page; the others stay."""
    held = json.loads(table_path.read_text("utf-8"))
    new = {row["name"]: _entry(row) for row in rows if row.get("signature")}
    entries = [new.pop(entry["name"], entry) for entry in held["models"]] + list(new.values())
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    text = f'{{"versions": {json.dumps(held["versions"])},\n"models": [\n{lines}\n]}}\n'
    table_path.write_text(text, encoding="utf-8")
    page_lines = page_path.read_text("utf-8").splitlines(keepends=True)
    for row in rows:
        line = _row(row)
        # Names of vision and text models differ in their signature at least.
        start = "|".join(line.split("|")[:3]) + "|"
        at = [n for n, old in enumerate(page_lines) if old.startswith(start)]
        if len(at) == 1:
            page_lines[at[0]] = line
    page_path.write_text("".join(page_lines), encoding="utf-8")


def page(rows: Sequence[Row], path: Path) -> None:
    """Write the page, with the architectures that were not compared."""
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    text = [_HEAD.format(versions=versions)]
    for library in ("mlx-vlm", "mlx-lm"):
        kind = "vision" if library == "mlx-vlm" else "text"
        text.append(f"## {kind.capitalize()} models ({library})\n\n")
        text.append(_cells(*_COLUMNS) + "|---" * len(_COLUMNS) + "|\n")
        known = [row for row in rows if row["library"] == library]
        text += [_row(row) for row in sorted(known, key=lambda row: str(row["name"]))]
        untested = sorted(_installed(library) - {row["architecture"] for row in known})
        text.append(f"\nUntested, answered one at a time: {', '.join(untested)}.\n\n")
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(text).rstrip() + "\n", encoding="utf-8")


def _row(row: Row) -> str:
    name = _label(row["architecture"], row["variant"])
    if row["failed"]:
        return _cells(name, "", "failed", *_unmarked(), "0", _cell(row["failed"]))
    verdict = row["verdict"]
    answers = "together" if verdict["together"] else "one at a time"
    count = row["alone"]["compared"] + row["together"]["compared"]
    return _cells(name, _signature(row), answers, *_unmarked(), str(count), _cell(verdict["why"]))


def marked(page_path: Path, readme_path: Path, table_path: Path) -> None:
    """Put the marks of `marks` into the tables of the page and of README.md."""
    page_path.write_text(with_page_marks(page_path.read_text("utf-8")), encoding="utf-8")
    table = json.loads(table_path.read_text("utf-8"))
    readme = with_readme_marks(readme_path.read_text("utf-8"), table)
    readme_path.write_text(readme, encoding="utf-8")


def with_page_marks(page: str) -> str:
    """Return docs/models.md with the columns of `marks`."""
    known: dict[tuple[str, str], TinyModel] = {
        (each.library, _label(each.architecture, each.variant)): each for each in all_models()
    }
    library, lines = "", []
    for line in page.splitlines():
        library = next((each for each in VERSIONS if line.endswith(f" models ({each})")), library)
        cells = _split(line)
        model = known.get((library, cells[0])) if cells else None
        if model is not None:
            found = marks.cells(model.name, model.architecture)
            line = _cells(*cells[:3], *found, *cells[-2:]).rstrip("\n")
        elif cells[:1] == ["architecture"]:
            line = _cells(*_COLUMNS).rstrip("\n")
        elif line.startswith("|---"):
            line = "|---" * len(_COLUMNS) + "|"
        lines.append(line)
    return "\n".join(lines) + "\n"


def with_readme_marks(readme: str, table: Mapping[str, Any]) -> str:
    """Return README.md with the marks of the models in its table.

    Parameters
    ----------
    readme : str
    table : mapping
        Content of together.json.
    """
    known = {each.name: each for each in all_models()}
    together = {entry["name"]: entry["together"] for entry in table["models"]}
    lines = []
    for line in readme.splitlines():
        cells = _split(line)
        repository = re.match(r"\[mlx-community/([^]]+)\]", cells[1]) if len(cells) > 2 else None
        model = known.get(marks.README_MODELS.get(repository[1], "")) if repository else None
        if model is not None:
            reused, adapter, boxes = marks.cells(model.name, model.architecture)
            shown = {
                "together": together.get(model.name),
                "reused": reused == "yes",
                "adapter": adapter == "yes",
                "boxes": boxes,
            }
            works = ", ".join(name for name, yes in shown.items() if yes)
            line = _cells(*cells[:3], works).rstrip("\n")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _split(line: str) -> list[str]:
    """Return the cells of a line of a table; nothing for other lines."""
    if not line.startswith("| "):
        return []
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def _label(architecture: str, variant: str) -> str:
    return architecture + (f", {variant}" if variant else "")


def _unmarked() -> list[str]:
    return [""] * len(marks.COLUMNS)


def _cells(*cells: str) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells) + "\n"


def _signature(row: Row) -> str:
    signature = row["signature"] or {}
    traits = signature.get("traits", {})
    words = [traits.get("heads", ""), f"{traits.get('rope', '')} rope"]
    words += [
        key for key in ("window", "softcap", "cross", "query scale") if traits.get(key) == "yes"
    ]
    return ", ".join([*words, *signature.get("caches", ())])


def _entry(row: Row) -> dict[str, Any]:
    signature, verdict = row["signature"], row["verdict"]
    return {
        "name": row["name"],
        "library": row["library"],
        "architecture": row["architecture"],
        "classes": signature["classes"],
        "caches": signature["caches"],
        "traits": signature["traits"],
        "together": verdict["together"],
        "chunks": verdict["chunks"],
        "why": verdict["why"],
    }


def _cell(text: str) -> str:
    words = " ".join(text.split())
    return (words if len(words) <= 140 else words[:137] + "...").replace("|", "\\|")


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def _installed(library: str) -> set[str]:
    """Return the architectures that an installed library has, as a checkpoint can name them."""
    name = library.replace("-", "_")
    found = architectures.library(name)
    if found is None:
        return set()
    names = {path.stem for path in found.models.iterdir() if not path.name.startswith("_")}
    kind: Any = "vision" if library == "mlx-vlm" else "text"
    return {
        each
        for each in names
        if found.module(each) is not None
        and (kind == "text" or architectures.is_visual({"model_type": each}))
    }
