"""Tries cases of the corpus in a process of its own: ``python -m tests.hostile.trial FOLDER SET``.

Prints a line of JSON before each case, and one after it. Who reads them ends the process when
a line is late, so a case that hangs fails without blocking the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import checkpoints
from tests.hostile import corpus

BASES = {"text": ("text-llama", corpus.TEXT), "vision": ("qwen2_vl", corpus.VISION)}


def main(place: Path, which: str, only: list[str]) -> None:
    """Try the cases of one set, or those that are named."""
    from mlx_magic import default_session
    from mlx_magic.backends.device import platform
    from mlx_magic.errors import MlxMagicError
    from mlx_magic.models.catalog import model_summary
    from mlx_magic.models.catalog.aliases import Names
    from mlx_magic.models.catalog.local_models import models_on_disk
    from mlx_magic.models.checkpoints import checkpoint
    from tools.tiny_models.spec import build, find

    name, cases = BASES[which]
    build(find(name), place / "good")
    now = default_session.current()
    outcomes: dict[str, Any]

    def noted(step: str, function: Callable[[], Any]) -> Any:
        began, spent = time.monotonic(), time.process_time()
        try:
            value = function()
            outcomes[step] = ["", ""]
            return value
        except MlxMagicError as error:
            outcomes[step] = [type(error).__name__, str(error)]
        except BaseException as error:
            outcomes[step] = [f"!{type(error).__name__}", str(error)[:500]]
        finally:
            outcomes["wall"][step] = time.monotonic() - began
            outcomes["cpu"][step] = time.process_time() - spent
        return None

    def ask(folder: Path) -> None:
        import mlx_magic

        load = now.pool.submit_load(str(folder))
        error = load.future.exception(140)
        if error is not None:
            raise error
        try:
            mlx_magic.ask("Please tell me all of it", model=str(folder), max_tokens=2)
        finally:
            now.pool.unload(str(folder))

    def tried(label: str, spoil: Callable[[Path], None]) -> dict[str, Any]:
        nonlocal outcomes
        root = place / label
        folder = root / "m"
        shutil.copytree(place / "good", folder)
        spoil(folder)
        outcomes = {"wall": {}, "cpu": {}}
        before = peak(reset=True)
        listed = noted(
            "list",
            lambda: models_on_disk(
                {}, float32=platform.wants_float32, folders=[root], cache=place / "none"
            ),
        )
        outcomes["shown"] = [str(m.problem) + m.model_type for m in listed or ()]
        outcomes["listed"] = len(listed or ())
        found = noted("inspect", lambda: checkpoint.inspect(folder, "m"))
        noted(
            "facts",
            lambda: model_summary.read(str(folder), Names(), float32=platform.wants_float32),
        )
        if found is not None and not found.wants_code:
            noted("ask", lambda: ask(folder))
        outcomes["bytes"] = peak() - before
        outcomes["ran"] = checkpoints.mark_of(folder).exists()
        shutil.rmtree(root)
        return outcomes

    say({"case": "good", **tried("itself", lambda folder: None)})  # imports for all cases
    for label, spoil in cases.items():
        if only and label not in only:
            continue
        say({"begins": label})
        say({"case": label, **tried(label, spoil)})
    now.close()


def peak(*, reset: bool = False) -> int:
    """Return the most bytes that the process had in memory, since the last reset."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


_out = os.fdopen(os.dup(1), "w")


def say(what: dict[str, Any]) -> None:
    """Print for the parent process."""
    _out.write(json.dumps(what) + "\n")
    _out.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
