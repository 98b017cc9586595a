"""Real models for tests, made from what `make smollm2` fetched and from the bundled one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tools.convert_smollm2 import convert

CACHE = Path(__file__).resolve().parent.parent / ".cache"


def smollm2_folder(cache: Path = CACHE, *, quantized: bool = True) -> Path:
    """Return SmolLM2-135M-Instruct as an mlx-lm folder, converted the first time.

    Parameters
    ----------
    cache : Path
        Has the wheel's content below ``smollm2``; the model goes below ``models``.
    quantized : bool
        False returns it in float32, which is quicker to test on MLX's CPU backend.

    Raises
    ------
    FileNotFoundError
        When `make smollm2` was not run.
    """
    kind = "" if quantized else "-float32"
    folder = cache / "models" / f"SmolLM2-135M-Instruct{kind}"
    if not (folder / "config.json").is_file():
        found = sorted((cache / "smollm2").rglob("*.gguf"))
        if not found:
            raise FileNotFoundError(f"No GGUF below {cache / 'smollm2'}: run `make smollm2`.")
        # Two test runs at once must not see half a model.
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        convert(found[0], part, quantized=quantized)
        try:
            part.rename(folder)
        except OSError:
            shutil.rmtree(part)
    return folder
