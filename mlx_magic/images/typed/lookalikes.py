"""Names that look the same: other kinds of spaces, other normal forms, other alphabets.

macOS puts U+202F into the names of screenshots, and some disks store accents in two characters.
"""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_MOST_ENTRIES = 10_000
_ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u200e\u200f\u00ad"))


def look(name: str) -> str:
    """Return what a name looks like: the same text for names that only seem to be equal.

    All kinds of spaces become a plain one, characters without a width are left out, and accents
    are one character with their letter (NFC).
    """
    name = name.translate(_ZERO_WIDTH)
    name = "".join(" " if unicodedata.category(char) == "Zs" else char for char in name)
    return unicodedata.normalize("NFC", name)


def may_differ(text: str) -> bool:
    """Return whether another name may look like `text`: not for plain words in ASCII."""
    return " " in text or not text.isascii()


def same_looks(folder: Path, name: str) -> list[str]:
    """Return the names in a folder that look like `name`, except `name` itself; sorted."""
    if not may_differ(name):
        return []
    wanted = look(name)
    return sorted(entry for entry in _entries(folder) if entry != name and look(entry) == wanted)


def find(path: Path) -> list[Path]:
    """Return the paths that exist and look like `path`, folders included; the exact one alone."""
    if path.exists() or not may_differ(str(path)):
        return [path] if path.exists() else []
    found = [Path(path.anchor)]
    for part in path.relative_to(path.anchor).parts:
        found = [
            parent / name
            for parent in found
            for name in ([part] if (parent / part).exists() else same_looks(parent, part))
        ]
        if not found:
            return []
    return found


def difference(first: str, second: str) -> str:
    """Return where two names differ, if a person may not see it; else ``""``.

    The code points and names of the characters are given, for example "character 3 is U+202F
    NARROW NO-BREAK SPACE, not U+0020 SPACE".
    """
    if first == second:
        return ""
    matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
    for kind, at, end, other, stop in matcher.get_opcodes():
        if kind == "equal":
            continue
        one, two = first[at:end], second[other:stop]
        if (one + two).isascii() and (one + two).isprintable() and (one + two).strip():
            return ""  # a person sees it
        return f"character {at + 1} is {_points(one)}, not {_points(two)}"
    return ""


def ambiguity(shown: str, names: list[Path]) -> str:
    """Return a message for several names that look like one that was typed."""
    one_folder = names[0].parent == names[1].parent
    first, second = (each.name if one_folder else str(each) for each in names[:2])
    return (
        f"{shown} looks like {len(names)} files, and is none of them exactly: in one of them "
        f"{difference(first, second) or 'the case differs'}. Use a glob or Tab to choose."
    )


def _points(text: str) -> str:
    if not text:
        return "nothing"
    shown = [f"U+{ord(char):04X} {unicodedata.name(char, '')}".rstrip() for char in text[:3]]
    return " ".join(shown) + (" …" if len(text) > 3 else "")


def _entries(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from islice((entry.name for entry in entries), _MOST_ENTRIES)
    except OSError:
        return
