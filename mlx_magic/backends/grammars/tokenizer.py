"""A model's tokenizer as llguidance reads it."""

from __future__ import annotations

from collections.abc import Collection
from copy import copy
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import reason


def grammar_tokenizer(tokenizer: Any, stop_tokens: Collection[int], model: str) -> Any:
    """Return llguidance's tokenizer for a tokenizer of transformers.

    It takes about a second for 150,000 tokens: keep it.

    Parameters
    ----------
    tokenizer : object
        Of transformers.
    stop_tokens : collection of int
        The tokens that end an answer.
    model : str
        Name of the model, for messages.

    Raises
    ------
    GenerationError
        llguidance cannot read it.
    """
    from llguidance import LLTokenizer

    rust = upstream.rust_tokenizer(tokenizer)
    if not callable(getattr(rust, "to_str", None)):
        raise _unreadable(
            model, f"{type(tokenizer).__name__} is Python code, and llguidance reads tokenizer.json"
        )
    try:
        size = rust.get_vocab_size(with_added_tokens=True)
        # Some checkpoints name tokens that their tokenizer has not.
        stop = sorted(token for token in stop_tokens if 0 <= token < size)
        if not stop:
            raise _unreadable(model, "it has no token that ends an answer")
        # Padding and truncation would be a part of what is read.
        rust = copy(rust)
        rust.no_padding()
        rust.no_truncation()
        return LLTokenizer(rust.to_str(), eos_token=stop)
    except GenerationError:
        raise
    except Exception as error:
        raise _unreadable(model, f"llguidance cannot read it: {reason(error)}") from None


def _unreadable(model: str, why: str) -> GenerationError:
    return GenerationError(
        f"{model}: its tokenizer cannot be used with a schema or choices ({why}): ask without, or "
        "choose another model.",
        model=model,
    )
