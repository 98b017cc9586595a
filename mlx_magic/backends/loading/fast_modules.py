"""A language model whose steps take less Python: the same operations, found sooner.

A step of a decoder makes a graph of some 1,000 operations, and on a fast GPU that takes longer
than to compute it. mlx-vlm and mlx-lm look up hundreds of parts for it, and turn each weight.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def speed_up(model: Any) -> None:
    """Let a model find its parts at once, and turn its weights only now.

    Measured with the bundled model on two x86 cores (Python 3.11, mlx 0.32.4, medians of 40
    pairs in one process): both together take 4 to 5 % off a step, turned weights alone 2 %.

    Arrays may still be changed at any time; a layer whose weight is another one from then on does
    as MLX's own. Parts may not be replaced from here on, nor quantized: adapters put theirs in
    while a model is loaded. (Of mlx-vlm 0.7.10's models nemotron_labs_diffusion alone replaces
    some later, where linear speculation is asked for.)

    Parameters
    ----------
    model : module
        With all its parts in their places, and its weights in memory; on the inference thread.
    """
    modules = model.modules()
    _cache_submodules(modules)
    _transpose_weights(modules)


def _cache_submodules(modules: list[Any]) -> None:
    """Put parts where Python looks first.

    A module of MLX is a dictionary of its parts. Python looks for ``self.q_proj`` among an
    object's attributes, finds none, and only then calls ``Module.__getattr__``, which is written
    in Python.
    """
    import mlx.nn as nn

    def is_part(value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(isinstance(each, nn.Module) for each in value)
        return isinstance(value, nn.Module)

    for module in modules:
        known, held = type(module), vars(module)
        for name, value in module.items():
            # What its class has under that name is found first, today as well, and so is what
            # stands in front of a part.
            if is_part(value) and name not in held and not hasattr(known, name):
                held[name] = value


def _transpose_weights(modules: list[Any]) -> None:
    """Let linear layers hold their weights as they multiply with them.

    Such a view takes no memory of its own. MLX's layer makes one a call, which is an operation
    to build and to evaluate.
    """
    import mlx.core as mx
    import mlx.nn as nn

    transposed = []
    for module in modules:
        # None of its subclasses: they do something else.
        if type(module) is nn.Linear:
            weight = module["weight"]
            transposed.append(weight.T)
            vars(module)["_transposed"] = (weight, transposed[-1])
            module.__class__ = _transposed_linear()
    mx.eval(transposed)


@cache
def _transposed_linear() -> Any:
    import mlx.core as mx
    import mlx.nn as nn

    class TransposedLinear(nn.Linear):  # type: ignore[misc]
        """A linear layer that knows its turned weight, for as long as that is its weight."""

        def __call__(self, x: Any) -> Any:
            weight, transposed = self._transposed
            if self["weight"] is not weight:
                # The old one is not to be kept in memory.
                self.__dict__["_transposed"] = None, None
                return super().__call__(x)
            return mx.addmm(self["bias"], x, transposed) if "bias" in self else x @ transposed

    return TransposedLinear
