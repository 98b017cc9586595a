"""What pandoc makes of Markdown on nbconvert's way to LaTeX."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from mlx_magic.notebook.display import formulas

PANDOC = os.environ.get("PANDOC") or shutil.which("pandoc")
"""Its path, where it is installed."""
_FORMAT = "markdown+tex_math_double_backslash"  # as nbconvert's LaTeX template says
_ENVIRONMENT = re.compile(r"\\begin\{([a-z]+\*?)\}.*\\end\{\1\}", re.DOTALL)


def tree(markdown: str) -> Any:
    """Return a document as pandoc reads it."""
    assert PANDOC is not None
    command = [PANDOC, "-f", _FORMAT, "-t", "json"]
    made = subprocess.run(command, input=markdown.encode(), capture_output=True, timeout=30)
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def faults(document: Any) -> Iterator[str]:
    """Yield what would reach LaTeX as a command, or be a link that is not absolute."""
    for node in _nodes(document):
        content: Any = node.get("c")
        match node["t"]:
            case "RawInline" | "RawBlock" if content[0] in ("tex", "latex", "context"):
                if not (_ENVIRONMENT.fullmatch(content[1]) and formulas.draws_only(content[1])):
                    yield f"raw {content[1]!r}"
            case "Math" if not formulas.draws_only(content[1]):
                yield f"formula {content[1]!r}"
            case "Image":
                if not content[2][0].startswith("data:image/png;base64,"):
                    yield f"image {content[2][0]!r}"
            case "Link" if not re.match(r"(https?://[^/]|mailto:.)", content[2][0]):
                yield f"link {content[2][0]!r}"


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if "t" in value:
                yield value
            stack += value.values()
        elif isinstance(value, list):
            stack += value
