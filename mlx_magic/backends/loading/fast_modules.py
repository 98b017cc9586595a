"""Less Python overhead per decode step, with the same operations.

A decode step builds a graph of some 1,000 operations, which on a fast GPU takes longer than
computing it. In each step mlx-vlm and mlx-lm look up hundreds of submodules and transpose each
weight.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def speed_up(model: Any) -> None:
    """Cache a model's submodules as attributes, and transpose its weights once.

    Measured in pairs with and without (Python 3.12, mlx 0.32.4): a 2 B model on an H200 decoded 7 %
    quicker (58 pairs, 95 % interval 2 to 14 %). On CPU cores no difference was seen.

    Arrays may still be replaced at any time: a layer with a new weight then works as MLX's own.
    Submodules must not be replaced or quantized any more; adapters replace theirs during the
    load. (Of mlx-vlm 0.7.10's models only nemotron_labs_diffusion replaces some later, with
    linear speculation.)

    Parameters
    ----------
    model : module
        The complete model with its weights in memory; on the inference thread.
    """
    modules = model.modules()
    _cache_submodules(modules)
    _transpose_weights(modules)


def _cache_submodules(modules: list[Any]) -> None:
    """Store submodules as instance attributes, which Python finds first.

    A module of MLX is a dictionary of its parts. Python looks for ``self.q_proj`` among the
    instance attributes, does not find it, and only then calls ``Module.__getattr__``, which is
    written in Python.
    """
    import mlx.nn as nn

    def is_part(value: Any) -> bool:
        if isinstance(value, list):
            return bool(value) and all(isinstance(each, nn.Module) for each in value)
        return isinstance(value, nn.Module)

    for module in modules:
        known, held = type(module), vars(module)
        for name, value in module.items():
            # An attribute of the class and a proxy of the part take precedence, as before.
            if is_part(value) and name not in held and not hasattr(known, name):
                held[name] = value


def _transpose_weights(modules: list[Any]) -> None:
    """Let linear layers keep their transposed weights.

    A transposed weight is a view and takes no memory. MLX's layer makes one per call, which is an
    operation to build and to evaluate.
    """
    import mlx.core as mx
    import mlx.nn as nn

    transposed = []
    for module in modules:
        # Not subclasses, which compute something else.
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
        """A linear layer that keeps its transposed weight until the weight is replaced."""

        def __call__(self, x: Any) -> Any:
            weight, transposed = self._transposed
            if self["weight"] is not weight:
                # Free the old weight.
                self.__dict__["_transposed"] = None, None
                return super().__call__(x)
            return mx.addmm(self["bias"], x, transposed) if "bias" in self else x @ transposed

    return TransposedLinear
