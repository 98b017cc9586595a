"""Put the figures of results/*.json into README.md: ``python -m benchmarks.readme``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.figures import amount

HERE = Path(__file__).parent
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"


def table(held: dict[str, Any]) -> str:
    """Return one JSON file's figures as Markdown."""
    machine, settings = held["machine"], held["settings"]
    where = ", ".join(
        [*([machine["gpu"]] if "gpu" in machine else []), machine["processor"], machine["memory"]]
    )
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("python", "mlx", "mlx-vlm", "ipykernel", "ipython")
        if name in machine
    )
    what = ", ".join(f"{key} {value}" for key, value in settings.items())
    lines = [f"### {held['name']}: {what}", "", f"{where}; {machine['system']}; {versions}; "]
    lines[-1] += machine["date"]
    lines += ["", "| measured | median | lowest to highest | runs |", "|---|---|---|---|"]
    for row in held["measured"]:
        figures = row["summary"]
        median = f"{amount(figures['median'])} {row['unit']}".strip()
        span = f"{amount(figures['lowest'])} to {amount(figures['highest'])}"
        lines.append(f"| {row['what']} | {median} | {span} | {figures['n']} |")
    lines += ["", "| target | measured | limit | |", "|---|---|---|---|"]
    for target in held["targets"]:
        limit = f"{'at least' if target['at_least'] else 'at most'} {amount(target['limit'])}"
        verdict = "met" if target["met"] else "**missed**"
        lines.append(f"| {target['what']} | {amount(target['measured'])} | {limit} | {verdict} |")
    return "\n".join(lines)


def filled(text: str, tables: list[str]) -> str:
    """Return `text` with the tables between the two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{chr(10).join(f'{held}{chr(10)}' for held in tables)}\n{END}{after}"


def main() -> None:
    """Rewrite the figures in README.md."""
    found = sorted((HERE / "results").glob("*.json"))
    tables = [table(json.loads(path.read_text(encoding="utf-8"))) for path in found]
    readme = HERE / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
