"""Where results were defined at first: pickles that were written then still load."""

from __future__ import annotations

import sys
from types import ModuleType

from mlx_magic.engine import request, result
from mlx_magic.images import image


def _under_its_old_name(name: str, *homes: ModuleType) -> None:
    module = ModuleType(f"{__name__}.{name}", __doc__)
    for home in homes:
        module.__dict__.update(
            {key: value for key, value in vars(home).items() if isinstance(value, type)}
        )
    sys.modules[module.__name__] = module


_under_its_old_name("request", request, result)
_under_its_old_name("image_input", image)
