"""A running map: keeps the engine's batch full with images that are opened ahead."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mlx_magic.cancellation import Cancelled
from mlx_magic.data.mapping.memory import MapMemory
from mlx_magic.data.mapping.openers import AHEAD_BYTES, OpenedImage, Openers
from mlx_magic.data.mapping.plan import MapPlan
from mlx_magic.data.mapping.reopened import ImageFacts
from mlx_magic.data.mapping.result import MapProgress, MapResult
from mlx_magic.data.mapping.rows import InputRow, MapImage, MapRow
from mlx_magic.data.mapping.speed import Speed
from mlx_magic.engine.generation import Generation, Observers
from mlx_magic.engine.request import Exchange
from mlx_magic.engine.task import Progress, Task
from mlx_magic.errors import (
    ContextLengthError,
    EngineError,
    GenerationError,
    ImageError,
    MemoryBudgetError,
    MlxMagicError,
    RequestError,
)
from mlx_magic.formatting import one_line
from mlx_magic.images.opening import TakenImages
from mlx_magic.model_pool.model_info import no_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlx_magic.engine.request import GenerationRequest
    from mlx_magic.engine.result import VisionResult
    from mlx_magic.images.image import ImageInput
    from mlx_magic.session import Session

AT_ONCE = 38
"""Requests to a model that batches: the slots that a map may take, and the next prefill."""

BEFORE_DECODE = 8
"""Of these, the requests that are not in decode yet: a cell that asks meanwhile waits for them."""

ONE_AT_A_TIME = 2
"""Requests to a model that answers one at a time: one is prepared while the other runs."""

AHEAD_ROWS = 64
"""Rows that were taken from the input and are not finished."""

AHEAD_PULLED = 8
"""Rows of a generator whose images were taken and are not open: each may be a copied array."""

_TICK = 0.05
"""Seconds between two looks at requests of others, which send no event to a map."""

_SLICE = 0.05
"""Seconds for rows that are stored, before the map looks at those that are asked again."""

_ROW_ERRORS = (ImageError, ContextLengthError, GenerationError)


@dataclass(slots=True, eq=False)
class _Item:
    """An image on its way: its row, its pixels while they are needed, and what is not asked yet."""

    number: int
    row: InputRow
    taken: TakenImages | None = None
    facts: ImageFacts | None = None
    image: ImageInput | None = None
    # Held so that all questions have the same object, which is then decoded once.
    pixels: object = None
    nbytes: int = 0
    looked_up: bool = False
    opening: bool = False
    missing: dict[str, deque[int]] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    # Found in the journal, not read yet: model, question, request, text.
    stored: list[tuple[str, int, GenerationRequest, str]] = field(default_factory=list)
    unfinished: int = 0

    @property
    def digest(self) -> str:
        """Digest of the pixels; empty while they are unknown."""
        return "" if self.facts is None else self.facts.digest


@dataclass(slots=True, eq=False)
class _Asked:
    """A request that is being answered."""

    item: _Item
    question: int
    generation: Generation
    key: bytes | None


class MapTask(Task[MapResult]):
    """The task of a map.

    Parameters
    ----------
    session : Session
    plan : MapPlan

    Attributes
    ----------
    result : MapResult
        Filled while the map runs.
    latest : deque of MapRow
        The rows that were answered last.
    """

    def __init__(
        self, session: Session, plan: MapPlan, *, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(clock)
        self.plan = plan
        self.result = MapResult(plan)
        self.latest: deque[MapRow] = deque(maxlen=6)
        self.result._cancel = self.cancel
        self.result._serve = self.serve
        self.notes += self.result.notes
        self._session = session
        self._events: queue.SimpleQueue[OpenedImage | int | None] = queue.SimpleQueue()
        self._rows: Iterator[InputRow] = plan.rows.rows
        self._pulled: queue.SimpleQueue[tuple[InputRow, TakenImages | None]] = queue.SimpleQueue()
        self._wanted = 0
        self._pull_lock = threading.Lock()
        self._source_ended = False
        self._source_error: Exception | None = None
        self._numbers = itertools.count()
        self._items: dict[int, _Item] = {}
        # Those of which every answer is in the journal: they wait for those that are asked.
        self._stored: deque[_Item] = deque()
        self._requests: dict[tuple[str, str], GenerationRequest] = {}
        self._asked: dict[int, _Asked] = {}
        self._asked_ids = itertools.count()
        self._examples: list[tuple[str, tuple[ImageInput, ...]]] = []
        self._answers: list[tuple[_Item, str, int, VisionResult]] = []
        self._open_bytes = 0
        self._openers = Openers(
            plan.settings.max_pixels, plan.settings.normalize, self.token, self._events.put
        )
        self._memory = MapMemory(plan, self._note)
        self._limits: dict[str, int] = {}
        self._limits_known = 0.0
        self._speed = Speed(clock)
        self._done = self._failed = self._reused = 0
        self._total = None if plan.rows.total is None else plan.rows.total * self._per_image
        self._unpaused = threading.Event()
        self._unpaused.set()
        self._observers = Observers[MapProgress](clock)
        self.on_cancel = self._wake

    @property
    def _per_image(self) -> int:
        return len(self.plan.questions) * len(self.plan.models)

    # Called on any thread

    @property
    def paused(self) -> bool:
        """Whether no new images are asked about."""
        return not self._unpaused.is_set()

    def pause(self) -> None:
        """Ask about no new images until `resume`; requests that run are answered."""
        if self._unpaused.is_set():
            self._unpaused.clear()
            self._speed.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        if not self._unpaused.is_set():
            self._speed.resume()
            self._unpaused.set()
            self._wake()

    def observe(self, callback: Callable[[MapProgress], object]) -> Callable[[], None]:
        """Call `callback` with the progress: at most 20 times a second, and at the end."""
        return self._observers.add(callback)

    @property
    def state(self) -> MapProgress:
        """How far the map has come."""
        left = self._speed.left(self._done, self._total)
        return MapProgress(
            self._done,
            self._total,
            self._failed,
            self._reused,
            self._speed.elapsed,
            self._speed.rate,
            left,
            self.paused,
        )

    @property
    def waiting_for(self) -> Progress | None:
        """What the first request does, before the first answer: a download or a load."""
        if self.progress.phase in ("downloading", "queued"):
            return self.progress
        if self._done == self._reused:
            for asked in list(self._asked.values()):
                return asked.generation.progress
        return None

    def serve(self) -> None:
        """Take the next images of a generator, if the map wants some; on the thread that called."""
        with self._pull_lock:
            while self._wanted > 0 and not self._source_ended and not self.done:
                self._wanted -= 1
                try:
                    row = next(self._rows)
                except StopIteration:
                    self._source_ended = True
                except Exception as error:
                    self._source_error, self._source_ended = error, True
                else:
                    self._pulled.put((*self._take(row),))
                self._wake()

    def _take(self, row: InputRow) -> tuple[InputRow, TakenImages | None]:
        """Take an image before its generator goes on, which may use the same buffer again."""
        if row.error is not None or row.path is not None:
            return row, None
        try:
            return row, self._openers.take(row)
        except ImageError as error:
            return replace(row, error=error), None

    def _wake(self) -> None:
        self._events.put(None)

    def _note(self, line: str) -> None:
        self.result.notes.append(line)
        self.notes.append(line)

    # On the map's own thread

    def run(self) -> None:
        """Do the work, from the first image to the last.

        Raises
        ------
        MlxMagicError
            The map cannot go on.
        Cancelled
        """
        try:
            self._memory.open()
            for name in self.plan.models:
                found = self._session.pool.find(name, self)
                if found.kind == "text":
                    raise no_images(name, self._session.pool, before=False)
                self.enter("queued", "reading the model's files")
                self._memory.know_model(name, found, self.token)
            self._examples = [
                (each.answer, tuple(each.images.open(self.token))) for each in self.plan.examples
            ]
            # Held, so that they are decoded once.
            held = [image.pixels for _, images in self._examples for image in images]
            self._memory.begin()
            self.enter("decode")
            self._speed.begin()
            while self._step():
                self.token.checkpoint()
            del held
            self._close()
            self.succeed(self.result)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        for asked in list(self._asked.values()):
            asked.generation.cancel()
        self._openers.close()
        self._memory.close()

    def _step(self) -> bool:
        """Do all that can be done now, then wait for an event; False at the end."""
        self._fill()
        self._submit()
        self._memory.flush()
        self._take_stored_rows()
        if self._source_error is not None and not (self._items or self._stored):
            raise self._source_error
        if not (self._items or self._stored) and self._source_ended and self._pulled.empty():
            return False
        event = self._next_event(wait=not self._stored)
        while event is not _NOTHING:
            self._take_event(event)
            event = self._next_event(wait=False)
        # A row that is there is stored: what a crash loses was in flight.
        self._memory.flush()
        answered, self._answers = self._answers, []
        for item, model, question, result in answered:
            self._set_row(item, model, question, result)
        return True

    def _next_event(self, *, wait: bool = True) -> object:
        try:
            return self._events.get(timeout=_TICK) if wait else self._events.get_nowait()
        except queue.Empty:
            return _NOTHING

    def _take_event(self, event: object) -> None:
        if isinstance(event, OpenedImage):
            self._opened(event)
        elif isinstance(event, int):
            self._answered(event)

    def _fill(self) -> None:
        """Take rows from the input, and open their images, within the limits."""
        if self.paused:
            return
        # Rows whose answers are stored are passed quickly, but not all of them at once.
        until = time.monotonic() + _SLICE
        while len(self._items) < AHEAD_ROWS and time.monotonic() < until:
            taken = self._next_row()
            if taken is None:
                break
            self._add(*taken)
            self.token.checkpoint()
        for item in self._items.values():
            if item.opening or item.image is not None:
                continue
            expected = self._expected_bytes()
            if self._open_bytes + expected * (self._openers.busy + 1) > AHEAD_BYTES and (
                self._openers.busy or self._open_bytes
            ):
                break
            item.opening = True
            self._openers.submit(item.number, item.row, item.taken)
            item.taken = None

    def _expected_bytes(self) -> int:
        opened = [item.nbytes for item in self._items.values() if item.nbytes]
        return max(opened, default=4_000_000)

    def _next_row(self) -> tuple[InputRow, TakenImages | None] | None:
        if not self.plan.rows.pulled:
            if self._source_ended:
                return None
            try:
                return next(self._rows), None
            except StopIteration:
                self._source_ended = True
            except MlxMagicError as error:
                self._source_error, self._source_ended = error, True
            except Exception as error:
                failed = ImageError(f"The images cannot be read: {error}", source="images")
                self._source_error, self._source_ended = failed, True
            return None
        try:
            return self._pulled.get_nowait()
        except queue.Empty:
            unopened = sum(item.image is None for item in self._items.values())
            self._wanted = max(0, AHEAD_PULLED - unopened)
            return None

    def _add(self, row: InputRow, taken: TakenImages | None) -> None:
        """Take a row in. One whose answers are all in the journal is finished at once."""
        item = _Item(next(self._numbers), row, taken, unfinished=self._per_image)
        self._items[item.number] = item
        questions = range(len(self.plan.questions))
        item.missing = {name: deque(questions) for name in self.plan.models}
        if row.error is not None:
            self._fail_item(item, row.error)
            return
        item.facts = self._memory.known_image(row)
        if item.facts is None:
            return
        self._look_up(item)
        if item.stored and not any(item.missing.values()):
            del self._items[item.number]
            self._stored.append(item)
        else:
            self._take_stored(item)

    def _look_up(self, item: _Item) -> None:
        """Take what the journal has of an image's answers, and refuse rows without a prompt."""
        item.looked_up = True
        for name, missing in item.missing.items():
            for question in list(missing):
                try:
                    request = self._request(item, name, question)
                except RequestError as error:
                    missing.remove(question)
                    self._set_row(item, name, question, error=error)
                    continue
                key = self._memory.key(request, item.digest)
                text = self._memory.find(key)
                if text is not None:
                    missing.remove(question)
                    item.stored.append((name, question, request, text))

    def _take_stored_rows(self) -> None:
        """Read stored answers for a moment; the model is not kept waiting by them."""
        until = time.monotonic() + _SLICE
        while self._stored and time.monotonic() < until:
            item = self._stored.popleft()
            self._items[item.number] = item
            self._take_stored(item)

    def _take_stored(self, item: _Item) -> None:
        """Set the rows of an image that the journal has; a damaged answer is asked again."""
        stored, item.stored = item.stored, []
        for name, question, request, text in stored:
            result = self._memory.unpack(text, request)
            if result is None:
                item.missing[name].append(question)
            else:
                self._set_row(item, name, question, result, reused=True)

    def _request(self, item: _Item, model: str, question: int) -> GenerationRequest:
        prompt = self.plan.questions[question].prompt.fill(item.row.columns)
        request = self._requests.get((model, prompt))
        if request is None:
            history = tuple(Exchange(prompt, answer, images) for answer, images in self._examples)
            request = self.plan.settings.request(prompt, model=model, history=history)
            if len(self._requests) < 1_000:  # prompts with a column differ for each row
                self._requests[model, prompt] = request
        return request

    def _opened(self, opened: OpenedImage) -> None:
        self._openers.busy -= 1
        item = self._items.get(opened.number)
        if item is None or isinstance(opened.error, Cancelled):
            return
        if opened.image is None:
            assert opened.error is not None
            self._fail_item(item, opened.error)
            return
        self._memory.remember(opened)
        item.image, item.nbytes = opened.image, opened.nbytes
        item.pixels = opened.image.pixels
        self._open_bytes += item.nbytes
        known = item.looked_up and item.digest == opened.image.digest
        item.facts = ImageFacts.of(opened.image)
        if not known:
            self._look_up(item)
            self._take_stored(item)

    def _fail_item(self, item: _Item, error: Exception) -> None:
        for name, missing in item.missing.items():
            while missing:
                self._set_row(item, name, missing.popleft(), error=error)

    def _submit(self) -> None:
        """Ask about open images, in order, while the model has room for more."""
        if self.paused or self._others_wait():
            return
        before_decode = sum(
            asked.generation.progress.phase != "decode" for asked in self._asked.values()
        )
        room = {name: self._limit(name) for name in self.plan.models}
        for asked in self._asked.values():
            room[asked.generation.request.model] -= 1
        for item in list(self._items.values()):
            if item.image is None:
                continue
            for name, missing in item.missing.items():
                if not missing or name in item.running or room[name] < 1:
                    continue
                if before_decode >= BEFORE_DECODE:
                    return
                room[name] -= 1
                before_decode += 1
                self._ask(item, name, missing.popleft())

    def _ask(self, item: _Item, model: str, question: int) -> None:
        """Ask one question.

        The next one about the same image waits for its end, and then finds the image processed,
        encoded and in the prefix cache.
        """
        assert item.image is not None
        request = replace(
            self._request(item, model, question), images=(item.image,), background=True
        )
        key = self._memory.key(request, item.digest)
        generation = self._session.start(request)
        number = next(self._asked_ids)
        item.running.add(model)
        self._asked[number] = _Asked(item, question, generation, key)
        # Only the number: a future keeps its callbacks, and would keep the image with them.
        events = self._events
        generation.future.add_done_callback(lambda _: events.put(number))

    def _answered(self, number: int) -> None:
        asked = self._asked.pop(number)
        item, question = asked.item, asked.question
        model = asked.generation.request.model
        item.running.discard(model)
        error = asked.generation.future.exception()
        if error is not None:
            if not self._is_row_error(error, model):
                raise error
            self._set_row(item, model, question, error=error)
            return
        result = asked.generation.future.result()
        if result.finish_reason == "cancelled":
            # By `%vision cancel`, or from code: as the whole map.
            self.token.cancel()
            return
        self._memory.store(asked.key, item.row.source, self.plan.questions[question].name, result)
        self._answers.append((item, model, question, result))

    def _is_row_error(self, error: BaseException, model: str) -> bool:
        """Whether other rows can be answered although this one cannot."""
        if isinstance(error, MemoryBudgetError):
            # Of a request, not of the load.
            return model in self._session.pool
        return isinstance(error, _ROW_ERRORS)

    def _set_row(
        self,
        item: _Item,
        model: str,
        question: int,
        result: VisionResult | None = None,
        *,
        error: BaseException | None = None,
        reused: bool = False,
    ) -> None:
        """Set one row; the last one of an image lets the image go."""
        if error is not None and self.plan.errors == "raise":
            raise error
        shown: MlxMagicError | None = None
        if error is not None:
            plain = _plain_error(error)
            shown = plain if isinstance(plain, MlxMagicError) else MlxMagicError(str(plain))
        path = "" if item.row.path is None else str(item.row.path)
        image = MapImage(item.row.source, item.digest, path, item.row.again)
        if result is not None and item.facts is not None:
            settings = self.plan.settings
            light = item.facts.image(image, settings.max_pixels, settings.normalize)
            result = replace(result, images=(light,))
        row = MapRow(
            item.row.index,
            image,
            result,
            shown,
            self.plan.questions[question].name,
            model,
            reused,
        )
        at = self.plan.models.index(model) * len(self.plan.questions) + question
        self._done += 1
        self._failed += error is not None
        self._reused += reused
        if not reused:
            self._speed.count()
        self.latest.append(row)
        total = "" if self._total is None else f" of {self._total:,}"
        self._advance(0, 0, note=f"map: {self._done:,}{total} answers")
        self.result._set(item.number * self._per_image + at, row)
        item.unfinished -= 1
        if not item.unfinished:
            self._open_bytes -= item.nbytes
            del self._items[item.number]
            item.image = item.pixels = None
        self._changed()

    def _limit(self, model: str) -> int:
        """Return how many requests a model is given at once."""
        now = time.monotonic()
        if now - self._limits_known > 0.5:
            self._limits.clear()
            self._limits_known = now
        if model not in self._limits:
            if model not in self._session.pool:
                return 1  # the first request loads it
            together = self._session.pool[model].together and self.plan.settings.kv_bits is None
            self._limits[model] = AT_ONCE if together else ONE_AT_A_TIME
        return self._limits[model]

    def _others_wait(self) -> bool:
        """Whether a question of a cell or the panel waits for its first token."""
        return any(
            isinstance(task, Generation)
            and not task.request.background
            and task.is_before_first_token()
            for task in self._session.running
        )

    def _changed(self, *, at_end: bool = False) -> None:
        self._observers.notify(lambda: self.state, at_end=at_end)

    def succeed(self, outcome: MapResult) -> None:
        """End with all rows."""
        outcome._end()
        super().succeed(outcome)

    def fail(self, error: BaseException) -> None:
        """End with an error; the rows so far stay in `result`."""
        self.result._end(error)
        super().fail(error)

    def _cancelled_outcome(self) -> MapResult:
        self.result._end()
        return self.result


_NOTHING = object()


def _plain_error(error: BaseException) -> Exception:
    """Return an error without its traceback, whose frames hold images."""
    assert isinstance(error, Exception)
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _unexpected(error: Exception) -> MlxMagicError:
    return EngineError(f"The map failed: {one_line(error)}")


def start(
    session: Session, plan: MapPlan, on_progress: Callable[[MapProgress], object] | None = None
) -> MapTask:
    """Begin a map; returns at once."""
    task = MapTask(session, plan)
    if on_progress is not None:
        task.observe(on_progress)
    session.pool.running.begin(task, task.run, failure=_unexpected)
    return task
