"""Text-only models, through mlx-lm. The only module that imports it."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

from mlx_magic.errors import CheckpointError, GenerationError
from mlx_magic.inference.backends import chat, device, weights
from mlx_magic.inference.backends.base import LoadProgress, Report
from mlx_magic.inference.backends.failure import without_frames
from mlx_magic.inference.cancel import CancelToken
from mlx_magic.inference.checkpoint import Checkpoint
from mlx_magic.inference.request import (
    FinishReason,
    GenerationChunk,
    GenerationRequest,
    Sampling,
)


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
            lazy=True,
            trust_remote_code=trust_remote_code,
        )
        model, tokenizer = loaded[:2]
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

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    def close(self) -> None:
        """Let go of the weights."""
        self._model = self._tokenizer = None
        device.free()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        from mlx_lm.generate import stream_generate

        device.reset_peak()
        report(GenerationChunk("reading"))
        yield
        prompt = self._tokens(request)

        def read(done: int, total: int) -> None:
            cancel.checkpoint()
            report(GenerationChunk("reading", prompt_read=done, prompt_tokens=total))

        reading = True
        stream = stream_generate(
            self._model,
            self._tokenizer,
            prompt,
            max_tokens=request.sampling.max_tokens,
            sampler=self._sampler(request.sampling),
            prefill_step_size=device.prefill_chunk(self._nbytes),
            # Called once more after the first token, when reading is over.
            prompt_progress_callback=lambda done, total: read(done, total) if reading else None,
        )
        try:
            for piece in stream:
                reading = False
                report(
                    GenerationChunk(
                        "writing",
                        text=piece.text,
                        prompt_read=len(prompt),
                        prompt_tokens=len(prompt),
                        completion_tokens=piece.generation_tokens,
                        peak_memory=device.peak(),
                    )
                )
                if piece.finish_reason is not None:
                    return "stop" if piece.finish_reason == "stop" else "length"
                cancel.checkpoint()
                yield
        finally:
            stream.close()
        raise GenerationError(
            f"{self._name}: mlx-lm ended without a finish reason.", model=self._name
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

    def _sampler(self, sampling: Sampling) -> Any:
        from mlx_lm.sample_utils import make_sampler

        def chosen(value: Any, key: str, otherwise: Any) -> Any:
            return value if value is not None else self._defaults.get(key) or otherwise

        greedy = self._defaults.get("do_sample") is False
        temperature = chosen(sampling.temperature, "" if greedy else "temperature", 0.0)
        device.fresh_seed(sampling.seed)
        return make_sampler(
            temp=temperature,
            top_p=chosen(sampling.top_p, "top_p", 0.0),
            top_k=chosen(sampling.top_k, "top_k", 0),
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
