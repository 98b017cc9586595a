"""Run a step: ``python -m tools.demo_model train`` or ``evaluate`` or ``sample_images``.

The steps are imported late, because each process that makes data imports this module again.
"""

from __future__ import annotations

import sys
from importlib import import_module

STEPS = ("train", "evaluate", "sample_images")


def main() -> None:
    """Run the step that the command line names, with the rest of the command line."""
    if len(sys.argv) < 2 or sys.argv[1] not in STEPS:
        raise SystemExit(f"usage: python -m tools.demo_model {{{','.join(STEPS)}}} [options]")
    step = sys.argv.pop(1)
    import_module(f"tools.demo_model.{step}").main()


if __name__ == "__main__":
    main()
