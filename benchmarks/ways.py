"""Three peers without a server, each in its own process: ``python -m benchmarks.ways``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.workload import Answer, Ask, Burst
from mlx_magic.backends.device import platform

NAMES = ("raw", "batch", "ours")


class Raw:
    """mlx-vlm alone, used as in its README: one answer after the other.

    Parameters
    ----------
    folder : str
        The model.
    """

    def __init__(self, folder: str) -> None:
        import mlx_vlm

        self._model, self._processor = mlx_vlm.load(folder)

    def answer(self, asks: list[Ask], max_tokens: int) -> Burst:
        """Answer one after the other."""
        began = time.perf_counter()
        answers = tuple(self._one(ask, max_tokens, began) for ask in asks)
        return Burst(time.perf_counter() - began, answers, platform.peak())

    def _one(self, ask: Ask, max_tokens: int, began: float) -> Answer:
        from mlx_vlm import stream_generate

        times, parts, piece = [], [], None
        for piece in stream_generate(
            self._model,
            self._processor,
            prompt_of(self._model, self._processor, ask),
            [ask.image],
            max_tokens=max_tokens,
            temperature=0.0,
            skip_special_tokens=True,
        ):
            times.append(time.perf_counter() - began)
            parts.append(piece.text)
        if piece is None:
            raise RuntimeError("mlx-vlm yielded nothing.")
        text = "".join(parts).strip()
        read = piece.prompt_tokens
        return Answer.of(times, piece.generation_tokens, text, prompt_tokens=read)


class OneBatch:
    """mlx-vlm's ``BatchGenerator``, which gets all questions at once.

    Parameters
    ----------
    folder : str
        The model.
    """

    def __init__(self, folder: str) -> None:
        import mlx_vlm

        self._model, self._processor = mlx_vlm.load(folder)

    def answer(self, asks: list[Ask], max_tokens: int) -> Burst:
        """Encode all images, then prefill and decode in one batch."""
        from mlx_vlm.generate import BatchGenerator

        began = time.perf_counter()
        batch = BatchGenerator(
            self._model.language_model,
            self._processor,
            compute_logprobs=False,
            greedy_sampling=True,
        )
        uids, lengths = [], []
        for ask in asks:
            tokens, embeds = self._inputs(ask)
            uids += batch.insert([tokens], max_tokens, prompt_kwargs=[embeds])
            lengths.append(len(tokens))
        written: dict[int, list[int]] = {uid: [] for uid in uids}
        times: dict[int, list[float]] = {uid: [] for uid in uids}
        while batch.has_work:
            _, responses = batch.next()
            now = time.perf_counter() - began
            for response in responses:
                times[response.uid].append(now)
                if response.finish_reason != "stop":
                    written[response.uid].append(int(response.token))
        batch.close()
        answers = tuple(
            Answer.of(times[uid], len(times[uid]), self._words(written[uid]), prompt_tokens=read)
            for uid, read in zip(uids, lengths, strict=True)
        )
        return Burst(time.perf_counter() - began, answers, platform.peak())

    def _inputs(self, ask: Ask) -> tuple[list[int], dict[str, Any]]:
        """Return the tokens of a question, and the inputs of the language model."""
        from mlx_vlm.utils import prepare_inputs, should_add_special_tokens

        kind = self._model.config.model_type
        held = prepare_inputs(
            self._processor,
            images=[ask.image],
            prompts=prompt_of(self._model, self._processor, ask),
            image_token_index=getattr(self._model.config, "image_token_index", None),
            add_special_tokens=should_add_special_tokens(kind, self._processor),
        )
        ids, pixels = held.pop("input_ids"), held.pop("pixel_values")
        mask = held.pop("attention_mask", None)
        embeds = self._model.get_input_embeddings(ids, pixels, mask=mask, **held).to_dict()
        found = {key: value for key, value in embeds.items() if value is not None}
        return ids.squeeze(0).tolist(), {**held, **found}

    def _words(self, tokens: list[int]) -> str:
        from mlx_vlm.tokenizer_utils import make_streaming_detokenizer

        words = make_streaming_detokenizer(self._processor)
        skipped = set(self._processor.tokenizer.all_special_ids)
        for token in tokens:
            words.add_token(token, skip_special_token_ids=skipped)
        words.finalize()
        return str(words.text).strip()


class Ours:
    """mlx-magic's session, with all questions started at once.

    Parameters
    ----------
    folder : str
        The model.
    """

    def __init__(self, folder: str) -> None:
        from mlx_magic import default_session

        self._folder = folder
        self._session = default_session.current()
        self._session.pool.submit_load(folder).future.result()

    def answer(self, asks: list[Ask], max_tokens: int) -> Burst:
        """Start all questions, and wait for all."""
        from mlx_magic.engine.result import GenerationChunk

        began = time.perf_counter()
        times: list[list[float]] = [[] for _ in asks]

        def noted(at: list[float]) -> Callable[[GenerationChunk], None]:
            def note(chunk: GenerationChunk) -> None:
                if chunk.completion_tokens:
                    at.append(time.perf_counter() - began)

            return note

        started = [
            self._begin(ask, max_tokens, noted(at)) for ask, at in zip(asks, times, strict=True)
        ]
        results = [generation.future.result() for generation in started]
        wall = time.perf_counter() - began
        answers = tuple(
            Answer.of(
                at,
                result.usage.completion_tokens,
                result.text.strip(),
                prompt_tokens=result.usage.prompt_tokens,
                cached_tokens=result.usage.cached_tokens,
                image_tokens=result.usage.image_tokens,
            )
            for at, result in zip(times, results, strict=True)
        )
        return Burst(wall, answers, max(result.peak_memory for result in results))

    def load_again(self, cancel_after: float | None) -> dict[str, float]:
        """Unload the model and load it again.

        Parameters
        ----------
        cancel_after : float or None
            Seconds after which the load is canceled; then it is loaded once more.

        Returns
        -------
        dict
            Seconds of the load (or from the cancel until other requests have their turn), the
            longest slice that all other requests wait for, and MLX's peak in bytes.
        """
        engine, ended, gaps = self._session.engine, threading.Event(), [0.0]

        def watch() -> Generator[None, None, None]:
            while not ended.is_set():
                began = time.perf_counter()
                yield
                gaps.append(time.perf_counter() - began)

        self._session.pool.unload(self._folder)
        engine.call(platform.reset_peak).result()
        engine.submit(watch(), lambda _: None)
        began = time.perf_counter()
        load = self._session.pool.submit_load(self._folder)
        if cancel_after is not None:
            time.sleep(cancel_after)
            began = time.perf_counter()
            load.cancel()
        with suppress(Exception):
            load.future.result()
        engine.call(lambda: None).result()
        seconds = time.perf_counter() - began
        ended.set()
        peak = engine.call(platform.peak).result()
        self._session.pool.submit_load(self._folder).future.result()
        return {"seconds": seconds, "slice": max(gaps), "peak": peak}

    def _begin(self, ask: Ask, max_tokens: int, sink: Callable[[Any], None]) -> Any:
        from mlx_magic.engine.request import Exchange, GenerationRequest, Sampling
        from mlx_magic.images.opening import open_images

        opened = tuple(open_images([ask.image])) if ask.history else ()
        history = tuple(
            Exchange(question, answer, images=opened if number == 0 else ())
            for number, (question, answer) in enumerate(ask.history)
        )
        request = GenerationRequest(
            ask.question,
            model=self._folder,
            sampling=Sampling(max_tokens, temperature=0.0),
            history=history,
        )
        own = [] if ask.history else [(None, image) for image in (ask.image, *ask.more)]
        return self._session.start(request, images=own, sink=sink)


def prompt_of(model: Any, processor: Any, ask: Ask) -> Any:
    """Return a chat rendered by the model's template, with the image in its turn."""
    from mlx_vlm.prompt_utils import apply_chat_template

    return apply_chat_template(
        processor, model.config, ask.messages({"type": "image"}), num_images=1
    )


def main() -> None:
    """Answer questions from JSON lines, until the input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ways")
    parser.add_argument("way", choices=NAMES)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    # Libraries print to the standard output.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    platform.prepare()
    ways: dict[str, Callable[[str], Raw | OneBatch | Ours]] = {
        "raw": Raw,
        "batch": OneBatch,
        "ours": Ours,
    }
    way = ways[given.way](str(given.folder))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "cancel_after" in order:
            assert isinstance(way, Ours)
            print(json.dumps(way.load_again(order["cancel_after"])), file=replies, flush=True)
            continue
        asks = [
            Ask(
                held["question"],
                held["image"],
                tuple(map(tuple, held["history"])),
                tuple(held["more"]),
            )
            for held in order["asks"]
        ]
        burst = way.answer(asks, order["max_tokens"])
        print(json.dumps(burst.as_json()), file=replies, flush=True)


if __name__ == "__main__":
    main()
