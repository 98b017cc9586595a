"""Faster vision encoders on CPUs without vector exponentials in MLX: NumPy computes them."""

from __future__ import annotations

import math
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.backends.proxy import Proxy, install_proxy
from mlx_magic.backends.vision.image_cache.encoders import vision_encoders

LEAST = 32_768
"""Number of exponentials below which leaving MLX's graph (some 40 us) costs more than it saves."""

AT_ONCE = 2**18
"""Exponentials per call of NumPy: 1 MB, which stays in a processor's cache."""

MOST_SCORES = 2**21
"""Attention scores held at once: 8 MB. MLX would hold the scores of all heads and rows."""


def use_numpy_exponentials(model: Any) -> int:
    """Let a model's vision encoders use NumPy for exponentials; return how many parts changed.

    On x86 under Linux mlx 0.32.4 takes 11 ns per exponential and 18 ns per tanh, NumPy 0.4 and
    0.2 ns (measured, float32). That is three quarters of the time of the bundled model's encoder.
    Proxies are installed in front of the model's parts. They give the same values but for
    rounding, and call the part itself for other dtypes, masks and small arrays.

    Parameters
    ----------
    model : module
        As mlx-vlm loads it.
    """
    import mlx.nn as nn

    if not upstream.CPU_ENCODERS.is_on(_agree_with_the_library):
        return 0
    attention = upstream.CPU_ENCODERS.names.VisionAttention
    made: dict[type, type[Proxy]] = {nn.GELU: _Gelu, attention: _Attention}
    replaced = 0
    for _, _, tower in vision_encoders(model):
        for owner in tower.modules():
            for name, part in owner.items():
                if type(part) in made:
                    install_proxy(owner, name, made[type(part)](part))
                    replaced += 1
    return replaced


def _agree_with_the_library(names: Any) -> bool:
    """Whether the parts give the library's numbers, on tiny ones."""
    import mlx.core as mx
    import mlx.nn as nn

    x = (mx.arange(40).reshape(1, 5, 8) % 7 - 3) / 2
    attention = names.VisionAttention(8, 2)
    pairs = [(attention(x), _Attention(attention).attended(x))]
    for approx in ("precise", "tanh", "fast"):
        gelu = nn.GELU(approx=approx)
        pairs.append((gelu(x), _Gelu(gelu).activated(x)))
    return all(bool(mx.allclose(a, b, rtol=1e-4, atol=1e-5)) for a, b in pairs)


class _Gelu(Proxy):
    def __call__(self, x: Any) -> Any:
        if self._part._approx not in _ACTIVATIONS or not _is_worth(x.dtype, x.size):
            return self._part(x)
        return self.activated(x)

    def activated(self, x: Any) -> Any:
        """Return the activation of an array, by NumPy."""
        import mlx.core as mx
        import numpy as np

        act = _ACTIVATIONS[self._part._approx]
        mx.eval(x)
        values = np.asarray(x).reshape(-1)
        out = np.empty_like(values)
        # As in MLX, overflow gives infinity without a warning.
        with np.errstate(all="ignore"):
            for at in range(0, values.size, AT_ONCE):
                act(values[at : at + AT_ONCE], out[at : at + AT_ONCE])
        return mx.array(out.reshape(x.shape))


def _by_tanh(x: Any, out: Any) -> None:
    import numpy as np

    np.multiply(x, x, out=out)
    out *= 0.044715
    out += 1
    out *= x
    out *= math.sqrt(2 / math.pi)
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= 0.5


def _by_sigmoid(x: Any, out: Any) -> None:
    import numpy as np

    np.multiply(x, -1.702, out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(x, out, out=out)


_ACTIVATIONS = {"precise": _by_tanh, "tanh": _by_tanh, "fast": _by_sigmoid}


class _Attention(Proxy):
    """`VisionAttention` with NumPy's softmax."""

    def __call__(self, x: Any, mask: Any = None) -> Any:
        batch, length, _ = x.shape
        if mask is not None or not _is_worth(
            x.dtype, batch * self._part.num_heads * length * length
        ):
            return self._part(x, mask)
        return self.attended(x)

    def attended(self, x: Any) -> Any:
        """Return the attention's output without a mask."""
        import mlx.core as mx

        part = self._part
        batch, length, _ = x.shape
        heads = part.num_heads
        by_head = (batch, length, heads, -1)
        queries = (part.q_proj(x) * part.scale).reshape(by_head).transpose(0, 2, 1, 3)
        keys = part.k_proj(x).reshape(by_head).transpose(0, 2, 3, 1)
        values = part.v_proj(x).reshape(by_head).transpose(0, 2, 1, 3)
        if values.dtype != mx.float32:
            return part(x)
        rows = max(MOST_SCORES // (batch * heads * length), 1)
        outputs = []
        for at in range(0, length, rows):
            scores = queries[:, :, at : at + rows] @ keys
            mx.eval(scores)
            outputs.append(mx.array(_softmax(scores)) @ values)
            if rows < length:
                mx.eval(outputs[-1])
        joined = mx.concatenate(outputs, axis=2) if len(outputs) > 1 else outputs[0]
        return part.out_proj(joined.transpose(0, 2, 1, 3).reshape(batch, length, -1))


def _softmax(scores: Any) -> Any:
    """Return the softmax over the last axis of evaluated scores."""
    import numpy as np

    values = np.asarray(scores)
    with np.errstate(all="ignore"):
        weights = values - values.max(-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(-1, keepdims=True)
    return weights


def _is_worth(dtype: Any, exponentials: int) -> bool:
    import mlx.core as mx

    return bool(dtype == mx.float32) and exponentials >= LEAST
