"""The wired memory limit: set by the first user, restored by the last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlx_magic.backends.batching.forward import Wired


def test_last_user_restores_the_limit_set_by_the_first() -> None:
    wired = Wired().held
    limits = ["before"]

    @contextlib.contextmanager
    def limit(name: str) -> Iterator[None]:
        limits.append(name)
        try:
            yield
        finally:
            limits.append("before")

    one, other = contextlib.ExitStack(), contextlib.ExitStack()
    one.enter_context(wired(limit("one")))
    other.enter_context(wired(limit("other")))
    one.close()
    assert limits == ["before", "one"], "another one still needs it"
    other.close()
    assert limits == ["before", "one", "before"]
    with wired(limit("third")):
        assert limits[-1] == "third"
    assert limits[-1] == "before"
