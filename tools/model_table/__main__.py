"""Compare all tiny checkpoints with their libraries, and write the table of what was shown.

python -m tools.model_table                 all; writes the package's table and docs/models.md
python -m tools.model_table NAME ...        these, and prints what was seen
python -m tools.model_table --update NAME   these, and puts them into the table and the page
python -m tools.model_table --marks [NAME ...]   measures reuse and adapters, and writes these marks
python -m tools.model_table --one NAME      one in this process, as JSON on the last line
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlx_magic.backends.device import platform
from tools.model_table import marks, written
from tools.tiny_models.spec import TinyModel, all_models, build, find, shrunk

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "tiny_models"
TABLE = ROOT / "mlx_magic" / "models" / "checkpoints" / "together.json"
PAGE = ROOT / "docs" / "models.md"
README = ROOT / "README.md"
SECONDS = 600
"""For one checkpoint."""

MARK = "mlx-magic-report: "


def main() -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.model_table", description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--one", action="store_true", help="in this process")
    parser.add_argument("--update", action="store_true", help="write the rows of these names")
    parser.add_argument("--marks", action="store_true", help="reuse and adapters")
    options = parser.parse_args()
    if options.one and options.marks:
        print(MARK + json.dumps(_marks(find(options.names[0]))))
        return 0
    if options.one:
        print(MARK + json.dumps(_one(find(options.names[0]))))
        return 0
    chosen = [find(name) for name in options.names] or list(all_models())
    if options.marks:
        for model in chosen:
            found = _in_a_process(model, "--marks")
            print(f"{model.name:32} {found}", flush=True)
            if "failed" not in found:
                marks.write({model.name: marks.Marks(**found)})
        written.marked(PAGE, README, TABLE)
        return 0
    began = time.monotonic()
    with ThreadPoolExecutor(max(1, (os.cpu_count() or 2) // 1)) as pool:
        rows = []
        for row in pool.map(_in_a_process, chosen):
            rows.append(row)
            print(f"{len(rows):3}/{len(chosen)}  {row['name']:32} {written.line(row)}", flush=True)
    print(f"{len(rows)} checkpoints in {time.monotonic() - began:.0f} s")
    if not options.names:
        written.table(rows, TABLE)
        written.page(rows, PAGE)
        written.marked(PAGE, README, TABLE)
    elif options.update:
        written.update(rows, TABLE, PAGE)
        written.marked(PAGE, README, TABLE)
    return 1 if any(row["failed"] for row in rows) else 0


def _in_a_process(model: TinyModel, *options: str) -> dict[str, Any]:
    """Examine a checkpoint where it can crash by itself."""
    command = [sys.executable, "-m", "tools.model_table", "--one", *options, model.name]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        why = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    except subprocess.TimeoutExpired:
        lines, why = [], [f"not done after {SECONDS} s"]
    if lines:
        row: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
        return row
    return {**_named(model), "failed": why[0][:300]}


def _one(model: TinyModel) -> dict[str, Any]:
    platform.prepare()
    os.environ["MLX_MAGIC_CACHE"] = tempfile.mkdtemp()
    # After the BLAS, which must be there before MLX.
    from tools.model_table.compare import examined
    from tools.model_table.questions import draw

    folder = CACHE / model.name
    build(model, folder)
    shrunk(model.architecture)
    report = examined(folder, model.library, draw(Path(tempfile.mkdtemp())))
    return {**_named(model), "failed": "", **report.as_json()}


def _marks(model: TinyModel) -> dict[str, Any]:
    platform.prepare()
    os.environ["MLX_MAGIC_CACHE"] = tempfile.mkdtemp()
    from tools.model_table.questions import draw

    folder = CACHE / model.name
    build(model, folder)
    shrunk(model.architecture)
    files = draw(Path(tempfile.mkdtemp()))
    return marks.measured(folder, model.library, files).as_json()


def _named(model: TinyModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "library": model.library,
        "architecture": model.architecture,
        "variant": model.variant,
    }


if __name__ == "__main__":
    sys.exit(main())
