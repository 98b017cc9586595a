"""Answers of mlx-magic's models, in an order of steps that is the same on every run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from mlx_magic.backends.base import Backend, LoadedModel
from mlx_magic.backends.batch_check.policy import VerdictCache
from mlx_magic.backends.device import platform
from mlx_magic.backends.text.backend import TextBackend
from mlx_magic.backends.vision.backend import VisionBackend
from mlx_magic.cancellation import Cancelled, CancelToken
from mlx_magic.engine.result import GenerationChunk
from mlx_magic.errors import MlxMagicError
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import Verdict
from mlx_magic.models.checkpoints.checkpoint import inspect
from mlx_magic.models.checkpoints.lora import Adapter
from tools.model_table.questions import Question
from tools.model_table.raw import Answer

T = TypeVar("T")

CHUNK = 48
"""Prompt tokens that are read at once: so few that a long prompt takes several chunks."""


class Asked:
    """A question under way.

    Attributes
    ----------
    text : str
    tokens, cached : int
        Of the answer; of the prompt, from the prefix cache.
    error : BaseException or None
    done : bool
    """

    def __init__(self, model: LoadedModel, question: Question, files: Mapping[str, Path]) -> None:
        self.text, self.tokens, self.cached = "", 0, 0
        self.error: BaseException | None = None
        self.done = False
        self._cancel = CancelToken()
        request = question.request(files)
        self._steps = model.generate(request, cancel=self._cancel, report=self._report)

    def step(self) -> None:
        """Do a slice of its work."""
        try:
            next(self._steps)
        except StopIteration:
            self.done = True
        except (Cancelled, Exception) as error:
            self.error, self.done = error, True

    def cancel(self) -> None:
        """Ask it to stop."""
        self._cancel.cancel()

    @property
    def answer(self) -> Answer:
        """What there is of its answer."""
        if self.error is None:
            return Answer(self.text, self.tokens)
        line = f"{type(self.error).__name__}: {' '.join(str(self.error).split())[:200]}"
        own = isinstance(self.error, MlxMagicError | Cancelled)
        return Answer(self.text, self.tokens, line, own)

    def _report(self, chunk: GenerationChunk) -> None:
        self.text += chunk.text
        self.tokens = max(self.tokens, chunk.completion_tokens)
        self.cached = chunk.cached_tokens


class OurModel:
    """A checkpoint loaded by mlx-magic.

    Parameters
    ----------
    folder : Path
    library : {"mlx-vlm", "mlx-lm"}
    files : mapping
        The images, by name.
    adapter : Adapter, optional
        LoRA adapter to load with it.
    """

    def __init__(
        self,
        folder: Path,
        library: str,
        files: Mapping[str, Path],
        adapter: Adapter | None = None,
    ) -> None:
        self._files = files
        backend: Backend = VisionBackend() if library == "mlx-vlm" else TextBackend()
        checkpoint = inspect(folder, "tiny")
        if adapter is not None:
            checkpoint = checkpoint.adapted(adapter)
        checkpoint.require_trust(False)
        quiet: Callable[[int, int, str], None] = lambda done, total, note: None  # noqa: E731
        self.loaded = finished(
            backend.load(checkpoint, trust_remote_code=False, cancel=CancelToken(), progress=quiet)
        )
        finished(self.loaded.warm_up(cancel=CancelToken(), progress=quiet))

    def ask(self, *questions: Question) -> list[Answer]:
        """Answer questions that are asked at once."""
        return self.run([self.begin(question) for question in questions])

    def begin(self, question: Question) -> Asked:
        """Ask a question; nothing is done for it yet."""
        return Asked(self.loaded, question, self._files)

    def run(
        self, asked: Sequence[Asked], until: Callable[[], bool] = lambda: False
    ) -> list[Answer]:
        """Go round the questions, a slice of each, until all are answered or `until` says so."""
        while not until() and not all(each.done for each in asked):
            for each in asked:
                if not each.done:
                    each.step()
        return [each.answer for each in asked]

    def close(self) -> None:
        """Let go of the model."""
        self.loaded.close()


def finished(steps: Generator[Any, Any, T]) -> T:
    """Do all slices of a piece of work; return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            value: T = end.value
            return value


@contextlib.contextmanager
def as_if(verdict: Verdict) -> Iterator[None]:
    """Let every model that is loaded within the block answer by this verdict, unlooked at."""
    with (
        mock.patch.object(batch_support, "verdict", return_value=verdict),
        mock.patch.object(VerdictCache, "known", property(lambda self: True)),
        small_chunks(),
    ):
        yield


@contextlib.contextmanager
def small_chunks() -> Iterator[None]:
    """Let models that are loaded within the block read `CHUNK` tokens at once on a CPU."""
    with mock.patch.object(platform, "PREFILL_CHUNKS_CPU", (CHUNK, CHUNK)):
        yield
