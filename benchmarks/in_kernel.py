"""Code that runs inside the measured kernel: the raw baseline, and clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from IPython.core.getipython import get_ipython

from mlx_magic import default_session
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import GenerationChunk, VisionResult
from mlx_magic.testing import ScriptedBackend, use_scripted

QUESTION = "Describe this picture in every detail."


class CellClock:
    """Records when a cell began to run, and the time from then to its request."""

    def __init__(self) -> None:
        self.began = self.before = 0.0
        ipython: Any = get_ipython()
        ipython.events.register("pre_run_cell", self._begin)
        now = default_session.current()
        start = now.start

        def noted(*args: Any, **kwargs: Any) -> Generation:
            self.before = time.perf_counter() - self.began
            return start(*args, **kwargs)

        setattr(now, "start", noted)  # noqa: B010

    def ours(self, result: VisionResult) -> dict[str, Any]:
        """Return the figures of the latest cell."""
        timings, usage = result.timings, result.usage
        return {
            "ttft": timings.time_to_first_token,
            "ttft_of_cell": (timings.time_to_first_token or 0.0) + self.before,
            "rate": timings.generation_tps,
            "tokens": usage.completion_tokens,
            "prompt_tokens": usage.prompt_tokens,
            "text": result.text.strip(),
            "parts": {
                "opening": timings.queued,
                "vision": timings.vision,
                "prefill": timings.prefill,
            },
        }

    def _begin(self, info: Any = None) -> None:
        self.began = time.perf_counter()


class Raw:
    """mlx-vlm alone, loaded and used in the main thread as its README does.

    Parameters
    ----------
    folder : str
        The model.
    clock : CellClock
    """

    def __init__(self, folder: str, clock: CellClock) -> None:
        import mlx.core as mx
        import mlx_vlm

        self._clock = clock
        self._model, self._processor = mlx_vlm.load(folder)
        if mx.default_device() != mx.Device(mx.gpu):
            # As ours does: half precision is slow on the CPU backend.
            self._model.set_dtype(mx.float32)
        mx.eval(self._model.parameters())
        self.dtype = str(self._model.language_model.lm_head.weight.dtype).rpartition(".")[2]

    def ask(self, question: str, image: str, max_tokens: int) -> dict[str, Any]:
        """Answer once, as fast as mlx-vlm can."""
        from mlx_vlm import stream_generate
        from mlx_vlm.prompt_utils import apply_chat_template

        asked = time.perf_counter()
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = apply_chat_template(
            self._processor,
            self._model.config,
            [{"role": "user", "content": content}],
            num_images=1,
        )
        times, parts, piece = [], [], None
        for piece in stream_generate(
            self._model,
            self._processor,
            prompt,
            [image],
            max_tokens=max_tokens,
            temperature=0.0,
            skip_special_tokens=True,
        ):
            times.append(time.perf_counter())
            parts.append(piece.text)
        if piece is None:
            raise RuntimeError("mlx-vlm yielded nothing.")
        count = piece.generation_tokens
        return {
            "ttft": times[0] - asked,
            "ttft_of_cell": times[0] - self._clock.began,
            "rate": (count - 1) / (times[-1] - times[0]),
            "tokens": count,
            "prompt_tokens": piece.prompt_tokens,
            "text": "".join(parts).strip(),
        }


def paces(model: str, prompt: str, max_tokens: int) -> dict[str, Any]:
    """Answer once, uncancelled; return the seconds of each prefill chunk and decode step."""
    forget()
    marks: list[tuple[float, GenerationChunk]] = []

    def note(chunk: GenerationChunk) -> None:
        marks.append((time.perf_counter(), chunk))

    request = GenerationRequest(
        prompt=prompt, model=model, sampling=Sampling(max_tokens, temperature=0.0)
    )
    result = default_session.current().start(request, sink=note).future.result()
    reading = [at for at, chunk in marks if chunk.phase == "prefill"]
    writing = [at for at, chunk in marks if chunk.phase == "decode"]
    chunks = [*reading[1:], writing[0]]
    return {
        "chunks": [after - before for before, after in pairwise(chunks)],
        "steps": [after - before for before, after in pairwise(writing)],
        "prompt_tokens": result.usage.prompt_tokens,
    }


def longest_hold(model: str) -> float:
    """Load a model, and return the longest time in seconds in which no other thread ran.

    While a library holds the GIL, no click can be received.
    """
    future = default_session.current().pool.submit_load(model).future
    longest, before = 0.0, time.perf_counter()
    while not future.done():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    return longest


def until_free() -> float:
    """Return the seconds until the inference thread has ended its current work."""
    began = time.perf_counter()
    default_session.current().engine.call(lambda: None).result()
    return time.perf_counter() - began


def forget() -> None:
    """Clear the caches, so that the next question is the first one about its image."""
    default_session.current().pool.forget()


class Paced:
    """Words at a steady rate, on an absolute schedule.

    Parameters
    ----------
    words : list of str
    rate : float
        Words per second; 0 is unpaced.
    """

    def __init__(self, words: list[str], rate: float) -> None:
        self._words = words
        self._rate = rate

    def __len__(self) -> int:
        return len(self._words)

    def __iter__(self) -> Iterator[str]:
        began = time.perf_counter()
        for count, word in enumerate(self._words):
            if self._rate:
                time.sleep(max(0.0, began + count / self._rate - time.perf_counter()))
            yield word


def script(path: str, rate: float) -> ScriptedBackend:
    """Let every model answer with the words of a file, one per line as JSON, at this rate."""
    import json

    backend = use_scripted()
    words = json.loads(Path(path).read_text(encoding="utf-8"))
    backend.pieces = Paced(words, rate)  # type: ignore[assignment]
    return backend
