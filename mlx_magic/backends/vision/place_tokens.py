"""Special tokens with which models mark places; a detokenizer leaves them out."""

from __future__ import annotations

import re
from typing import Any

# Florence-2 and PaliGemma; Qwen2-VL. Each is a special token in the tokenizers of some checkpoints
# and an ordinary one in others.
_PLACES = re.compile(
    r"<loc_?\d{1,4}>|<seg\d{3}>|</?poly>|<\|(?:object_ref|box|quad)_(?:start|end)\|>"
)


def place_tokens(tokenizer: Any, special: set[int]) -> frozenset[int]:
    """Return which of the special tokens mark places.

    Parameters
    ----------
    tokenizer : object
        With ``convert_ids_to_tokens``.
    special : set of int
        Ids of the tokens that the detokenizer leaves out.
    """
    found = {token: tokenizer.convert_ids_to_tokens(token) for token in special}
    return frozenset(
        token for token, text in found.items() if isinstance(text, str) and _PLACES.fullmatch(text)
    )


def marked(tokens: list[int], tokenizer: Any, special: set[int], places: frozenset[int]) -> str:
    """Return an answer as text, with the tokens that mark places and no other special ones.

    Parameters
    ----------
    tokens : list of int
    tokenizer : object
        With ``decode``.
    special, places : set of int
        See `place_tokens`.

    Returns
    -------
    str
        Empty if the answer has no such token.
    """
    if places.isdisjoint(tokens):
        return ""
    kept = [token for token in tokens if token in places or token not in special]
    # A special token is not text: nothing may be added or removed around it.
    text: str = tokenizer.decode(
        kept,
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
        spaces_between_special_tokens=False,
    )
    return text
