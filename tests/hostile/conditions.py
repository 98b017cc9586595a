"""Asks the bundled model in a process: ``python -m tests.hostile.conditions OUT HOW...``.

Standard files may be closed, so outcomes go into the file OUT: a line of JSON each, with a
label, the class of an error ("" for none, "!" before one that is not ours), and the words.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGE = b"P6 2 2 255 " + bytes(range(12))


def main(out: int, how: list[str]) -> None:
    """Set up the conditions that `how` names, then ask."""
    warnings.simplefilter("ignore")
    if "gone" in how:
        folder = tempfile.mkdtemp()
        os.chdir(folder)
        Path(folder).rmdir()
    if "nohome" in how:
        import pwd

        def nobody(_: int) -> Any:
            raise KeyError("no entry")

        pwd.getpwuid = nobody
        os.environ.pop("HOME", None)
    if "nofiles" in how:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    import mlx_magic
    from mlx_magic import default_session
    from mlx_magic.backends.device import jit_folder
    from mlx_magic.errors import MlxMagicError

    def tried(label: str, function: Callable[[], Any]) -> None:
        try:
            outcome = ["", str(function())]
        except MlxMagicError as error:
            outcome = [type(error).__name__, str(error)]
        except BaseException as error:
            outcome = [f"!{type(error).__name__}", str(error)]
        os.write(out, (json.dumps([label, *outcome]) + "\n").encode())

    if "nowhere" in how:
        jit_folder.fallback_folders = lambda cache: []

    def ask(**options: Any) -> str:
        return mlx_magic.ask("What is this?", max_tokens=8, **options).text

    tried("ask", ask)
    tried("again", ask)
    tried("image", lambda: ask(images=IMAGE))
    tried("stream", lambda: "".join(mlx_magic.stream("Hi", max_tokens=3)))
    tried("unknown", lambda: ask(model="nosuch"))
    tried("of nobody", lambda: ask(model="~nosuchuser/x"))
    tried("image of nobody", lambda: ask(images="~nosuchuser/x.png"))
    tried("adapter of nobody", lambda: mlx_magic.pool.load("demo", adapter="~nosuchuser/a"))
    now = default_session.current()
    tried("list", now.on_disk)
    tried("names", lambda: now.model_names)
    tried("device", now.device)
    tried("save", lambda: now.pool.submit_load("demo", alias="kept", save=True).future.result(60))
    tried("temporary", lambda: os.environ.get("TMPDIR"))
    tried("standard files", lambda: [os.fstat(number).st_mode for number in range(3)] and "open")


if __name__ == "__main__":
    # A high descriptor: 0 to 2 may be closed and must not be reused by this.
    first = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    import fcntl

    high = fcntl.fcntl(first, fcntl.F_DUPFD, 20)
    os.close(first)
    main(high, sys.argv[2:])
