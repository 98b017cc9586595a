"""Text-only models, through mlx-lm. It and `text_batch` alone import it."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from mlx_magic.errors import CheckpointError, GenerationError
from mlx_magic.inference.backends import adapters, chat, device, weights
from mlx_magic.inference.backends.base import LoadProgress, Report
from mlx_magic.inference.backends.batch import Written
from mlx_magic.inference.backends.failure import without_frames
from mlx_magic.inference.backends.room import Room
from mlx_magic.inference.backends.sampler import BAD, Draw, fresh_seed, processors
from mlx_magic.inference.backends.text_batch import CountingSampler, TextBatch, can_batch
from mlx_magic.inference.cancel import CancelToken
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.request import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Sampling,
)
from mlx_magic.inference.reuse import Reuse

MOST_TOGETHER = 32
"""Answers of one model that are written at once."""


class TextBackend:
    """Loads text models with mlx-lm."""

    library = "mlx-lm"

    def estimate(self, checkpoint: Checkpoint) -> int:
        """Return the bytes of the weights in memory. See `Backend.estimate`."""
        return weights.estimate(checkpoint)

    def load(
        self,
        checkpoint: Checkpoint,
        *,
        trust_remote_code: bool,
        cancel: CancelToken,
        progress: LoadProgress,
    ) -> Generator[None, None, TextModel]:
        """Load a text model in slices. See `Backend.load`."""
        device.prepare()
        progress(0, 0, "loading: importing mlx-lm")
        yield
        from mlx_lm.utils import load

        cancel.checkpoint()
        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        loaded: tuple[Any, ...] = load(
            str(checkpoint.path),
            tokenizer_config={"trust_remote_code": trust_remote_code},
            adapter_path=adapters.folder(checkpoint),
            lazy=True,
            trust_remote_code=trust_remote_code,
        )
        model, tokenizer = loaded[:2]
        adapters.require_fit(model, checkpoint)
        yield
        size = yield from weights.materialise(model, cancel=cancel, progress=progress)
        return TextModel(checkpoint, model, tokenizer, size)


class TextModel:
    """A loaded text model. See `LoadedModel`."""

    def __init__(self, checkpoint: Checkpoint, model: Any, tokenizer: Any, nbytes: int) -> None:
        self._name = checkpoint.name
        self._defaults = _generation_config(checkpoint)
        self._model = model
        self._tokenizer = tokenizer
        self._nbytes = nbytes
        self._busy = False
        self._room = Room(self._name, checkpoint.config, chunk=device.prefill_chunk(nbytes))
        self._batch: TextBatch | None = None
        if can_batch(model):
            self._batch = TextBatch(
                model,
                tokenizer.eos_token_ids,
                chunk=device.prefill_chunk(nbytes),
                most=MOST_TOGETHER,
            )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    @property
    def reuse(self) -> Reuse:
        """Nothing: text is not kept."""
        return Reuse()

    def forget(self) -> int:
        """Let go of nothing."""
        return 0

    def close(self) -> None:
        """Let go of the weights."""
        self._model = self._tokenizer = self._batch = None
        device.free()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        device.reset_peak()
        report(GenerationChunk("reading"))
        yield
        cancel.checkpoint()
        prompt = self._tokens(request)
        self._room.require(
            prompt_tokens=len(prompt), image_tokens=0, max_tokens=request.sampling.max_tokens
        )
        answer = self._alone if self._batch is None else self._together
        return (yield from answer(prompt, request.sampling, cancel, report))

    def _together(
        self, prompt: list[int], sampling: Sampling, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer beside whatever else this model answers."""
        batch = self._batch
        assert batch is not None
        report(GenerationChunk("reading", prompt_tokens=len(prompt)))
        # The tokenizer gives each who asks a detokenizer of their own.
        words = self._tokenizer.detokenizer
        # Its batch tells a processor of the prompt's last token, and of the answer's.
        seat = batch.add(prompt, self._draw(sampling), processors=processors(sampling, 1))
        count = read = 0
        try:
            while True:
                written = yield from batch.follow(seat, cancel)
                if written is None:
                    if seat.read != read:
                        read = seat.read
                        report(
                            GenerationChunk("reading", prompt_read=read, prompt_tokens=len(prompt))
                        )
                    continue
                count += 1
                reason = self._take(written, words, count, sampling)
                report(_writing(len(prompt), words.last_segment, count))
                if reason is not None:
                    return reason
        finally:
            batch.leave(seat)

    def _take(
        self, written: Written, words: Any, count: int, sampling: Sampling
    ) -> FinishReason | None:
        """Take in a token; say whether it ends the answer, and how."""
        self._require_number(written.token)
        if not written.stopped:
            words.add_token(written.token)
            if count < sampling.max_tokens:
                return None
        words.finalize()
        return "stop" if written.stopped else "length"

    def _alone(
        self, prompt: list[int], sampling: Sampling, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer by itself, where the model's caches cannot be put together."""
        while self._busy:
            cancel.checkpoint()
            yield
        self._busy = True
        stream = self._stream(prompt, sampling, cancel, report)
        try:
            for piece in stream:
                self._require_number(piece.token)
                report(_writing(len(prompt), piece.text, piece.generation_tokens))
                if piece.finish_reason is not None:
                    return "stop" if piece.finish_reason == "stop" else "length"
                cancel.checkpoint()
                yield
        finally:
            stream.close()
            self._busy = False
        raise GenerationError(
            f"{self._name}: mlx-lm ended without a finish reason.", model=self._name
        )

    def _stream(
        self, prompt: list[int], sampling: Sampling, cancel: CancelToken, report: Report
    ) -> Any:
        """Let mlx-lm read the prompt and write, a token at a time."""
        from mlx_lm.generate import stream_generate

        def read(done: int, total: int) -> None:
            cancel.checkpoint()
            report(GenerationChunk("reading", prompt_read=done, prompt_tokens=total))

        return stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=sampling.max_tokens,
            sampler=CountingSampler.alone(self._draw(sampling)),
            prefill_step_size=device.prefill_chunk(self._nbytes),
            prompt_progress_callback=read,
        )

    def _require_number(self, token: int) -> None:
        if token == BAD:
            raise GenerationError(
                f"{self._name}: its numbers overflowed while it answered: ask for less at once, or "
                "use a checkpoint of higher precision.",
                model=self._name,
            )

    def _tokens(self, request: GenerationRequest) -> list[int]:
        messages = chat.messages(request)
        if self._tokenizer.chat_template is None:
            # A base model has no turns: it continues the text.
            text = "\n\n".join(m["content"] for m in messages)
            tokens: list[int] = self._tokenizer.encode(text)
            return tokens
        template = self._tokenizer.apply_chat_template
        try:
            tokens = template(messages, add_generation_prompt=True)
            if len(messages) == 1:
                return tokens
            text = template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            refusal = chat.template_error(error, request, model=self._name)
            raise refusal from without_frames(error)
        chat.require_whole(text, request, model=self._name)
        return tokens

    def _draw(self, sampling: Sampling) -> Draw:
        """Return how tokens are drawn: as asked, else as the checkpoint says."""

        def chosen(value: Any, key: str, otherwise: Any) -> Any:
            return value if value is not None else self._defaults.get(key) or otherwise

        greedy = self._defaults.get("do_sample") is False
        return Draw(
            float(chosen(sampling.temperature, "" if greedy else "temperature", 0.0)),
            float(chosen(sampling.top_p, "top_p", 1.0)),
            int(chosen(sampling.top_k, "top_k", 0)),
            sampling.min_p or 0.0,
            fresh_seed() if sampling.seed is None else sampling.seed,
        )


def _writing(prompt_tokens: int, text: str, written: int) -> GenerationChunk:
    return GenerationChunk(
        "writing",
        text=text,
        prompt_read=prompt_tokens,
        prompt_tokens=prompt_tokens,
        completion_tokens=written,
        peak_memory=device.peak(),
    )


def _generation_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the checkpoint's own defaults; mlx-lm does not."""
    path = checkpoint.path / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint.name}: {path} is no valid JSON ({error}): fetch the model again.",
            model=checkpoint.name,
        ) from error
    return config if isinstance(config, dict) else {}
