"""The Python API: `ask` waits for the answer, `stream` yields it, `map` asks about many images."""

from __future__ import annotations

import os
import queue
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mlx_magic import argument_checks, default_session
from mlx_magic.data.choices import read_choices
from mlx_magic.data.examples import take_examples
from mlx_magic.data.mapping.plan import make_plan
from mlx_magic.data.mapping.result import MapProgress, MapResult
from mlx_magic.data.mapping.run import start
from mlx_magic.data.schema import Schema, schema_of
from mlx_magic.engine.generation import Generation, OnProgress, Sink, Snapshot
from mlx_magic.engine.request import (
    DEFAULT_MAX_TOKENS,
    DEMO,
    Choices,
    GenerationRequest,
    OutputFormat,
    Sampling,
)
from mlx_magic.engine.result import GenerationChunk, VisionResult
from mlx_magic.engine.task import outcome, wait
from mlx_magic.errors import RequestError, ShortTraceback
from mlx_magic.images.opening import TakenImages, take_images
from mlx_magic.interrupts import deferred
from mlx_magic.notebook.maps.follow import follow
from mlx_magic.options import Settings
from mlx_magic.session import TakenExample

Model = str | os.PathLike[str] | None

# Seconds of one wait: short, so that Ctrl-C is handled.
_WAIT = 0.1


def ask(
    prompt: str,
    images: Any = None,
    model: Model = None,
    *,
    system: str | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | Sequence[str] = (),
    format: OutputFormat = "text",
    max_pixels: int | None = None,
    normalize: bool = True,
    timeout: float | None = None,
    kv_bits: int | None = None,
    think: bool | None = None,
    schema: Any = None,
    schema_prompt: str | None = None,
    examples: Sequence[tuple[Any, Any]] = (),
    choices: Any = None,
    multiple: bool = False,
    on_progress: OnProgress | None = None,
) -> VisionResult:
    """Ask a model, and wait for the whole answer.

    Parameters
    ----------
    prompt : str
        The question.
    images : object, optional
        A path, glob, URL, data URI, PIL image, NumPy array, matplotlib figure,
        bytes, a column of pandas, polars, pyarrow or a Hugging Face dataset, an earlier result,
        or a list of these. The model sees them as they are at the time of the call.
    model : str or path, optional
        Alias, folder or Hub repository id; by default the default model.
    system : str, optional
        System prompt.
    max_tokens : int
        Maximum length of the answer, in tokens.
    temperature, top_p, top_k, seed, min_p, repetition_penalty : optional
        Sampling parameters; by default those of the checkpoint. Temperature 0 is greedy.
    stop : str or sequence of str
        Stop sequences: the answer ends before the first of them. Thoughts do not count.
    format : {"text", "markdown", "json", "raw"}
        ``"json"`` parses the answer into `VisionResult.data`.
    max_pixels : int, optional
        Larger images are scaled down to this many pixels.
    normalize : bool
        Whether values wider than 8 bits are scaled to black to white by the smallest depth (8,
        10, 12, 14 or 16 bits) that holds them; `ImageInput.note` says what was done.
    timeout : float, optional
        Seconds, after which the answer ends with the text generated so far
        (``finish_reason`` "timeout").
    kv_bits : {4, 8}, optional
        Quantizes the KV cache of this request, to save memory.
    think : bool, optional
        Whether a model that reasons thinks before it answers; by default its chat template
        decides. An error if the template has no switch for it.
    schema : object, optional
        The shape of the answer: a pydantic model, a dataclass, a TypedDict, an Enum or Literal, a
        type such as ``list[Receipt]``, a JSON schema (a dict, a Path, or a str that ends in
        ``.json``), or a short form such as ``"shape: str, count: int, color: red|green|blue"``.
        `VisionResult.data` is then the typed object. See docs/data.md.
    schema_prompt : str, optional
        How the model is told of the schema; ``{schema}`` in it is the JSON schema. Empty: not.
    examples : sequence of (image, object), optional
        Earlier answers to the same question: they come before it as turns of the conversation.
    choices : object, optional
        The answers among which the model chooses: a list of str or of Enum members, an Enum class
        or a Literal type. Nothing is generated, so that sampling options have no effect:
        `VisionResult.probabilities` has the probability of each answer as the whole answer,
        and `VisionResult.choice` is the most probable one. See docs/data.md.
    multiple : bool
        Whether several of the choices may hold: the model is asked about each, yes or no.
        `VisionResult.choice` is then a tuple of those above 0.5.
    on_progress : callable, optional
        Called with a `Snapshot` (phase, prompt and completion tokens, tokens per second, text),
        at most 20 times a second and at the end of the answer. It runs on another thread and
        must return quickly.

    Returns
    -------
    VisionResult

    Raises
    ------
    MlxMagicError
        See `mlx_magic.errors`.
    """
    with ShortTraceback():
        sampling = Sampling(
            max_tokens, temperature, top_p, top_k, seed, min_p, repetition_penalty, _texts(stop)
        )
        shape, picked = _schema(schema, schema_prompt, format), read_choices(choices)
        request = _request(
            prompt,
            model,
            system,
            sampling,
            format,
            timeout,
            kv_bits,
            think,
            shape,
            picked,
            multiple,
        )
        shown = take_examples(examples, shape or picked, max_pixels=max_pixels, normalize=normalize)
        taken = _taken(images, max_pixels, normalize, on_progress)
        return outcome(lambda: _start(request, taken, shown, on_progress=on_progress))


def stream(
    prompt: str,
    images: Any = None,
    model: Model = None,
    *,
    system: str | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | Sequence[str] = (),
    format: OutputFormat = "text",
    max_pixels: int | None = None,
    normalize: bool = True,
    timeout: float | None = None,
    kv_bits: int | None = None,
    think: bool | None = None,
    schema: Any = None,
    schema_prompt: str | None = None,
    examples: Sequence[tuple[Any, Any]] = (),
    choices: Any = None,
    multiple: bool = False,
    on_progress: OnProgress | None = None,
) -> TextStream:
    """Ask a model, and iterate over the text of the answer while it is generated.

    The parameters are those of `ask`.

    Returns
    -------
    TextStream
        Yields str; has `cancel()`, `progress` and `result`. Thoughts are not yielded: they are
        in ``progress.reasoning`` and ``result.reasoning``.
    """
    with ShortTraceback():
        sampling = Sampling(
            max_tokens, temperature, top_p, top_k, seed, min_p, repetition_penalty, _texts(stop)
        )
        shape, picked = _schema(schema, schema_prompt, format), read_choices(choices)
        request = _request(
            prompt,
            model,
            system,
            sampling,
            format,
            timeout,
            kv_bits,
            think,
            shape,
            picked,
            multiple,
        )
        shown = take_examples(examples, shape or picked, max_pixels=max_pixels, normalize=normalize)
        taken = _taken(images, max_pixels, normalize, on_progress)
        return TextStream(request, taken, on_progress, examples=shown)


def demo_model() -> Path:
    """Return the folder of the bundled model."""
    from mlx_magic import demo

    return demo.folder()


class TextStream:
    """Text of an answer while it is generated. Returned by `stream`."""

    def __init__(
        self,
        request: GenerationRequest,
        images: TakenImages,
        on_progress: OnProgress | None = None,
        *,
        examples: Sequence[TakenExample] = (),
    ) -> None:
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()

        def take(chunk: GenerationChunk) -> None:
            if chunk.text:
                pieces.put(chunk.text)

        self._pieces = pieces
        self._ended = False
        with deferred():
            self._generation = _start(request, images, examples, sink=take, on_progress=on_progress)
            # Leaving the loop early deletes this object, which stops the model. So neither the
            # sink nor the callback may hold a reference to it.
            weakref.finalize(self, self._generation.cancel)
            self._generation.future.add_done_callback(lambda _: pieces.put(None))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with ShortTraceback():
            try:
                return self._next()
            except KeyboardInterrupt:
                self.cancel()
                raise

    def _next(self) -> str:
        while not self._ended:
            try:
                piece = self._pieces.get(timeout=_WAIT)
            except queue.Empty:
                continue
            if piece is not None:
                return piece
            self._ended = True
            error = self._generation.future.exception()
            if error is not None:
                raise error
        raise StopIteration

    def __enter__(self) -> TextStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Stop the answer; the text so far stays in `result`."""
        self._generation.cancel()

    @property
    def progress(self) -> Snapshot:
        """The current state of the answer."""
        return self._generation.snapshot()

    @property
    def result(self) -> VisionResult:
        """The result; waits for the end of the answer."""
        with ShortTraceback():
            return wait(self._generation.future, self._generation.cancel)


TextStream.__module__ = "mlx_magic"


def map(
    prompt: str | Mapping[str, str],
    images: Any,
    model: Model | Sequence[str | os.PathLike[str]] = None,
    *,
    limit: int | None = None,
    journal: str | os.PathLike[str] | bool | None = None,
    errors: Literal["coerce", "raise"] = "coerce",
    wait: bool = True,
    client: Any = None,
    on_progress: Callable[[MapProgress], object] | None = None,
    system: str | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: str | Sequence[str] = (),
    format: OutputFormat = "text",
    max_pixels: int | None = None,
    normalize: bool = True,
    timeout: float | None = None,
    kv_bits: int | None = None,
    think: bool | None = None,
    schema: Any = None,
    schema_prompt: str | None = None,
    examples: Sequence[tuple[Any, Any]] = (),
    choices: Any = None,
    multiple: bool = False,
) -> MapResult:
    """Ask about each of many images by itself, and wait for all answers.

    An image is read when its turn comes. Answers are stored in a journal, and are not asked for
    again as long as the image, the question, the options and the model stay the same.

    Parameters
    ----------
    prompt : str or dict
        The question, or several ``{name: question}``. ``{column}`` is the value of the row, if the
        images come with columns; ``{{`` is then a brace.
    images : object
        A folder (recursive), a glob, ``"rows.csv#column"`` or a Parquet file, a list, an iterator,
        a column of pandas, polars, pyarrow or a Hugging Face dataset, or ``(table, "column")``.
    model : str, path or list, optional
        One model or several.
    limit : int, optional
        Number of images, from the first one.
    journal : str, path or False, optional
        File of the journal; by default ``.mlx-magic/journal.sqlite`` beside the notebook. False
        stores nothing.
    errors : {"coerce", "raise"}
        What to do if an image cannot be read or answered: make it a row with an error, or raise.
    wait : bool
        False returns at once, and the rows arrive later.
    client : optional
        Not available yet: an error.
    on_progress : callable, optional
        Called with a `MapProgress`, at most 20 times a second and at the end. It runs on another
        thread and must return quickly.
    system, max_tokens, temperature, top_p, top_k, seed, min_p, repetition_penalty, stop, format, \
    max_pixels, normalize, timeout, kv_bits, think, schema, schema_prompt, examples : optional
        The options of each question, as those of `ask`.

    Returns
    -------
    MapResult
        The rows, in the order of the images.

    Raises
    ------
    MlxMagicError
        See `mlx_magic.errors`.
    """
    with ShortTraceback():
        if client is not None:
            raise RequestError("client is not available yet: leave it out.", option="client")
        argument_checks.function("on_progress", on_progress)
        shape, picked = _schema(schema, schema_prompt, format), read_choices(choices)
        settings = Settings(
            system=system,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=_texts(stop),
            format=format,
            max_pixels=max_pixels,
            normalize=normalize,
            timeout=timeout,
            kv_bits=kv_bits,
            think=think,
            schema=shape,
            choices=picked,
            multiple=multiple,
        )
        shown = take_examples(examples, shape or picked, max_pixels=max_pixels, normalize=normalize)
        session = default_session.current()
        plan = make_plan(
            prompt,
            images,
            model,
            settings,
            limit=limit,
            errors=errors,
            journal=journal,
            examples=shown,
            default_model=_model_name(None),
        )
        if not argument_checks.flag("wait", wait):
            if plan.rows.pulled:
                raise RequestError(
                    "wait=False needs a list: an iterator is read on the thread that called, which "
                    "does not wait.",
                    option="wait",
                )
            return start(session, plan, on_progress).result
        return follow(session, plan, on_progress)


def _request(
    prompt: str,
    model: Model,
    system: str | None,
    sampling: Sampling,
    format: OutputFormat,
    timeout: float | None,
    kv_bits: int | None,
    think: bool | None,
    schema: Schema | None,
    choices: Choices | None,
    multiple: bool,
) -> GenerationRequest:
    return GenerationRequest(
        prompt=prompt,
        model=_model_name(model),
        system=system,
        sampling=sampling,
        format=format,
        timeout=timeout,
        kv_bits=kv_bits,
        think=think,
        schema=schema,
        choices=choices,
        multiple=multiple,
    )


def _schema(schema: Any, prompt: str | None, format: OutputFormat) -> Schema | None:
    """Translate a schema, before anything is loaded."""
    if schema is None:
        return None
    if format == "markdown":
        raise RequestError(
            "A schema makes the answer JSON: leave out format, or use text, json or raw.",
            option="format",
        )
    return schema_of(schema, prompt)


def _texts(stop: Any) -> Any:
    """Return stop sequences as a tuple. Other types are refused by `Sampling`."""
    if isinstance(stop, str):
        return (stop,)
    return tuple(stop) if isinstance(stop, Sequence) else stop


def _model_name(model: Model) -> str:
    if model is None:
        return default_session.current().default_model or DEMO
    return argument_checks.name("model", model)


def _taken(
    images: Any, max_pixels: int | None, normalize: bool, on_progress: OnProgress | None
) -> TakenImages:
    """Take the images as they are now. An interrupt is not deferred: it may take long."""
    argument_checks.function("on_progress", on_progress)
    nothing = images is None or (isinstance(images, list | tuple) and not images)
    taken = take_images(
        [] if nothing else [(None, images)], max_pixels=max_pixels, normalize=normalize
    )
    taken.read()
    return taken


def _start(
    request: GenerationRequest,
    images: TakenImages,
    examples: Sequence[TakenExample] = (),
    *,
    sink: Sink | None = None,
    on_progress: OnProgress | None = None,
) -> Generation:
    return default_session.current().start(
        request, images=images, examples=examples, sink=sink, on_progress=on_progress
    )
