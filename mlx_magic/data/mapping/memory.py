"""What a map remembers in its journal: stored answers, and digests of images and models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import mlx_magic
from mlx_magic.cancellation import CancelToken
from mlx_magic.data.journal import stored_results
from mlx_magic.data.journal.keys import answer_key, question_digest
from mlx_magic.data.journal.location import default_path
from mlx_magic.data.journal.model_files import model_digest
from mlx_magic.data.journal.store import FileState, Journal, JournalError
from mlx_magic.data.mapping.openers import OpenedImage
from mlx_magic.data.mapping.plan import MapPlan
from mlx_magic.data.mapping.reopened import ImageFacts
from mlx_magic.data.mapping.rows import InputRow
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import VisionResult
from mlx_magic.formatting import shown
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

_KEPT = ("stop", "length")
"""Finish reasons of answers that are stored: others depend on the moment."""


@dataclass(slots=True, eq=False)
class MapMemory:
    """The journal of one map; without one, nothing is found and nothing stored.

    A journal that fails in the middle is left alone from then on, and the map goes on: its rows
    are in memory.

    Parameters
    ----------
    plan : MapPlan
    note : callable
        Takes a line for the person.
    """

    plan: MapPlan
    note: Callable[[str], None]
    journal: Journal | None = None
    number: int = 0
    models: dict[str, str] = field(default_factory=dict)
    _answers: list[tuple[bytes, int, str, str, str]] = field(default_factory=list)
    _files: list[tuple[FileState, str]] = field(default_factory=list)
    _questions: dict[tuple[str, str], str] = field(default_factory=dict)
    _variant: str = ""

    def open(self) -> None:
        """Open the journal.

        Raises
        ------
        JournalError
            One that was named cannot be used. Without the notebook's own, the map goes on.
        """
        if self.plan.journal is False:
            return
        import PIL

        settings = self.plan.settings
        # Another release may decode a file to other pixels.
        self._variant = (
            f"pixels {settings.max_pixels} {settings.normalize} {mlx_magic.__version__} "
            f"{PIL.__version__}"
        )
        try:
            self.journal = Journal(self.plan.journal or default_path())
        except JournalError as error:
            if self.plan.journal is not None:
                raise
            self.note(f"Nothing is stored for a later run: {error}")

    def know_model(self, name: str, checkpoint: Checkpoint, cancel: CancelToken) -> None:
        """Find the digest of a model's files, which may take a second for each gigabyte."""
        if self.journal is None:
            return
        try:
            self.models[name] = model_digest(checkpoint, self.journal, cancel)
        except (JournalError, OSError) as error:
            self._give_up(error)

    def begin(self) -> None:
        """Record the map in the journal's list."""
        if self.journal is None:
            return
        total = self.plan.rows.total
        images = "images" if total is None else f"{total:,} image{'s' * (total != 1)}"
        try:
            self.number = self.journal.begin_map(
                self.plan.prompt, ", ".join(self.plan.models), images
            )
        except JournalError as error:
            self._give_up(error)

    def known_image(self, row: InputRow) -> ImageFacts | None:
        """Return what is known about the image of a file that is the same as before."""
        if self.journal is None or row.path is None:
            return None
        try:
            text = self.journal.digest(FileState.of(row.path), self._variant)
            return None if text is None else ImageFacts.from_json(text)
        except JournalError as error:
            self._give_up(error)
        except OSError:
            pass
        return None

    def key(self, request: GenerationRequest, digest: str) -> bytes | None:
        """Return the key of an answer; None if there is no journal."""
        if self.journal is None:
            return None
        at = (request.model, request.prompt)
        if at not in self._questions:
            if len(self._questions) > 1_000:  # prompts with a column differ for each row
                self._questions.clear()
            try:
                self._questions[at] = question_digest(
                    request, self.plan.settings, self.models[request.model]
                )
            except TypeError as error:
                self._give_up(
                    JournalError(f"an option has a value of type {error}, which has no content.")
                )
                return None
        return answer_key(self._questions[at], digest)

    def find(self, key: bytes | None) -> str | None:
        """Return a stored answer, which `unpack` reads."""
        if self.journal is None or key is None:
            return None
        try:
            return self.journal.find(key)
        except JournalError as error:
            self._give_up(error)
        return None

    def unpack(self, text: str, request: GenerationRequest) -> VisionResult | None:
        """Read a stored answer; None if it is damaged or of a later release."""
        try:
            return stored_results.unpack(text, request)
        except ValueError:
            return None

    def store(self, key: bytes | None, source: str, question: str, result: VisionResult) -> None:
        """Store an answer with the next `flush`."""
        if self.journal is None or key is None or result.finish_reason not in _KEPT:
            return
        try:
            packed = stored_results.pack(result, schema=self.plan.settings.schema is not None)
        except (TypeError, ValueError) as error:
            self._give_up(JournalError(f"an answer has a value of type {error}."))
            return
        self._answers.append((key, self.number, source, question, packed))

    def remember(self, opened: OpenedImage) -> None:
        """Remember what a file's image is with the next `flush`."""
        if self.journal is not None and opened.file is not None and opened.image is not None:
            self._files.append((opened.file, ImageFacts.of(opened.image).to_json()))

    def flush(self) -> None:
        """Write what was stored since the last call."""
        answers, files = self._answers, self._files
        if self.journal is None or not (answers or files):
            return
        self._answers, self._files = [], []
        try:
            self.journal.add(answers, [(file, self._variant, facts) for file, facts in files])
        except JournalError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write the rest, and close the journal."""
        self.flush()
        journal, self.journal = self.journal, None
        if journal is not None:
            try:
                journal.close()
            except JournalError as error:
                self.note(str(error))

    def _give_up(self, error: Exception) -> None:
        """Go on without a journal."""
        journal, self.journal = self.journal, None
        self._answers, self._files = [], []
        self.note(f"From here on nothing is stored for a later run: {shown(str(error), 400)}")
        if journal is not None:
            with contextlib.suppress(JournalError):
                journal.close()
