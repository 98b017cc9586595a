"""Build tiny checkpoints: ``python -m tools.tiny_models FOLDER [name ...]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tools.tiny_models.spec import all_models, build


def main(arguments: list[str] | None = None) -> int:
    """
    Build the models that are named, or all of them.

    Parameters
    ----------
    arguments
        Arguments of the command line. Without them, those of the process.

    Returns
    -------
    int
        Exit status: 1 if a build failed.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.tiny_models", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder for the checkpoints' folders")
    parser.add_argument("names", nargs="*", metavar="name", help="models to build; default: all")
    given = parser.parse_args(arguments)
    models = {model.name: model for model in all_models()}
    if unknown := [name for name in given.names if name not in models]:
        parser.error(f"no such model: {', '.join(unknown)}")
    failed = False
    for name in given.names or models:
        started = time.perf_counter()
        try:
            build(models[name], given.folder / name)
        except Exception as error:
            failed = True
            print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
            continue
        size = sum(path.stat().st_size for path in (given.folder / name).iterdir())
        seconds = time.perf_counter() - started
        print(f"{name}: {size / 1e6:.1f} MB, {seconds:.1f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
