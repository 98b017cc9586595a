"""Vision models, through mlx-vlm. It, `recall` and `vision_*` import it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from mlx_magic.errors import GenerationError
from mlx_magic.inference.backends import adapters, chat, device, vision_inputs, weights
from mlx_magic.inference.backends.base import LoadProgress, Report
from mlx_magic.inference.backends.batch import Written
from mlx_magic.inference.backends.counts import Counts
from mlx_magic.inference.backends.recall import Recall, Start
from mlx_magic.inference.backends.room import Room
from mlx_magic.inference.backends.sampler import (
    BAD,
    Draw,
    fresh_seed,
    processors,
)
from mlx_magic.inference.backends.seen import seen_sizes
from mlx_magic.inference.backends.vision_alone import OneByOne
from mlx_magic.inference.backends.vision_batch import VisionBatch, can_batch
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


class VisionBackend:
    """Loads vision models with mlx-vlm."""

    library = "mlx-vlm"

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
    ) -> Generator[None, None, VisionModel]:
        """Load a vision model in slices. See `Backend.load`."""
        device.prepare()
        progress(0, 0, "loading: importing mlx-vlm")
        yield
        import mlx_vlm

        cancel.checkpoint()
        progress(0, checkpoint.weight_bytes, "loading: reading the checkpoint")
        yield
        # False is said out loud: left open, transformers would ask on a terminal.
        model, processor = mlx_vlm.load(
            str(checkpoint.path),
            adapter_path=adapters.folder(checkpoint),
            lazy=True,
            trust_remote_code=trust_remote_code,
        )
        adapters.require_fit(model, checkpoint)
        yield
        size = yield from weights.materialise(model, cancel=cancel, progress=progress)
        return VisionModel(checkpoint, model, processor, size)


class VisionModel:
    """A loaded vision model. See `LoadedModel`."""

    def __init__(self, checkpoint: Checkpoint, model: Any, processor: Any, nbytes: int) -> None:
        self._name = checkpoint.name
        self._model = model
        self._processor = processor
        self._nbytes = nbytes
        tokenizer = getattr(processor, "tokenizer", processor)
        self._special = set(getattr(tokenizer, "all_special_ids", None) or ())
        self._batch: VisionBatch | None = None
        if can_batch(model):
            self._batch = VisionBatch(
                model.language_model,
                processor,
                chunk=device.prefill_chunk(nbytes),
                most=MOST_TOGETHER,
            )
        self._recall = Recall(model, nbytes, prompts=self._batch is not None)
        self._alone = OneByOne(model, processor, self._recall, nbytes)
        self._room = Room(
            self._name,
            checkpoint.config,
            chunk=device.prefill_chunk(nbytes),
            forget=self._recall.forget,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._nbytes

    @property
    def reuse(self) -> Reuse:
        """What was reused, and what is kept for it; safe from any thread."""
        return self._recall.counts

    def forget(self) -> int:
        """Let go of all pictures and prompts that are kept; return their bytes."""
        return self._recall.forget()

    def close(self) -> None:
        """Let go of the weights, and of what is kept."""
        self._recall.forget()
        self._model = self._processor = self._batch = None
        self._alone.close()
        device.free()

    def generate(
        self, request: GenerationRequest, *, cancel: CancelToken, report: Report
    ) -> Generator[None, None, FinishReason]:
        """Answer one request. See `LoadedModel.generate`."""
        device.reset_peak()
        report(GenerationChunk("seeing" if chat.pictures(request) else "reading"))
        yield
        cancel.checkpoint()
        inputs = vision_inputs.made_of(request, self._name, self._model.config, self._processor)
        counts = Counts(
            prompt_tokens=int(inputs["input_ids"].size),
            image_tokens=vision_inputs.image_tokens(inputs, self._model.config),
        )
        self._say_seen(request, inputs, report)
        self._room.require(
            prompt_tokens=counts.prompt_tokens,
            image_tokens=counts.image_tokens,
            max_tokens=request.sampling.max_tokens,
        )
        if self._batch is None:
            return (yield from self._alone(inputs, counts, request.sampling, cancel, report))
        return (yield from self._together(inputs, counts, request.sampling, cancel, report))

    def _say_seen(self, request: GenerationRequest, inputs: dict[str, Any], report: Report) -> None:
        pictures = chat.pictures(request)
        if pictures:
            patch = getattr(getattr(self._model.config, "vision_config", None), "patch_size", 14)
            seen = seen_sizes(inputs, len(pictures), patch)
            # Those of the turns before were said then.
            own = seen[len(pictures) - len(request.images) :] if seen else seen
            report(GenerationChunk("seeing", seen=own))

    def _together(
        self,
        inputs: dict[str, Any],
        counts: Counts,
        sampling: Sampling,
        cancel: CancelToken,
        report: Report,
    ) -> Generator[None, None, FinishReason]:
        """Answer beside whatever else this model answers."""
        from mlx_vlm.tokenizer_utils import make_streaming_detokenizer

        batch = self._batch
        assert batch is not None
        start = self._recall.start(inputs)
        embeds = self._embeds(inputs, counts, start)
        report(counts.chunk("reading"))
        yield
        tokens = counts.as_many(inputs["input_ids"].reshape(-1).tolist())
        seat = batch.add(
            tokens[start.count :],
            embeds,
            max_tokens=sampling.max_tokens,
            draw=self._draw(sampling),
            cache=start.caches(),
            keep_from=None if start.places is None else start.count,
            processors=processors(sampling, len(tokens) - start.count),
        )
        words = make_streaming_detokenizer(self._processor)
        answer: list[int] = []
        read = 0
        try:
            while True:
                written = yield from batch.follow(seat, cancel)
                if seat.read != read and not answer:
                    read = seat.read
                    report(counts.chunk("reading", read=read))
                if written is None:
                    continue
                answer.append(written.token)
                reason = self._take(written, words, len(answer), sampling)
                report(counts.chunk("writing", text=words.last_segment, written=len(answer)))
                if reason is not None:
                    # Only now: of an answer that was cut short nothing may be kept.
                    self._recall.keep(start, answer, batch.row(seat))
                    return reason
        finally:
            batch.leave(seat)

    def _take(
        self, written: Written, words: Any, count: int, sampling: Sampling
    ) -> FinishReason | None:
        """Take in a token; say whether it ends the answer, and how."""
        if written.token == BAD:
            raise GenerationError(
                f"{self._name}: its numbers overflowed while it answered: ask for less at once, or "
                "use a checkpoint of higher precision.",
                model=self._name,
            )
        if not written.stopped:
            words.add_token(written.token, skip_special_token_ids=self._special)
            if count < sampling.max_tokens:
                return None
        words.finalize()
        return "stop" if written.stopped else "length"

    def _embeds(self, inputs: dict[str, Any], counts: Counts, start: Start) -> dict[str, Any]:
        """Return what the language model reads, from the start on."""
        shows = self._recall.shows(inputs, start.count)
        # Words alone: the vision tower is not asked.
        words = {"input_ids": inputs["input_ids"][:, start.count :]}
        embeds = self._see(inputs if shows or not start.count else words)
        length = int(embeds["inputs_embeds"].shape[1])
        if set(embeds) != {"inputs_embeds"} or length + (not shows) * start.count != (
            counts.prompt_tokens
        ):
            # More than embeddings belongs to this prompt: it is read as a whole, and not kept.
            if start.count:
                return self._embeds(inputs, counts, start.cold())
            start.cold()
        if start.count and shows:
            embeds["inputs_embeds"] = embeds["inputs_embeds"][:, start.count :]
        counts.cached_tokens = start.count
        counts.embedded(length)
        return embeds

    def _see(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Let the model make embeddings; its vision tower looks at what is new to it."""
        import mlx.core as mx
        from mlx_vlm.generate.common import generation_stream

        more = {
            key: value
            for key, value in inputs.items()
            if key not in ("input_ids", "pixel_values", "mask")
        }

        def see() -> dict[str, Any]:
            output = self._model.get_input_embeddings(
                inputs["input_ids"], inputs.get("pixel_values"), mask=inputs.get("mask"), **more
            )
            mx.eval(output.inputs_embeds)
            return {key: value for key, value in output.to_dict().items() if value is not None}

        with mx.stream(generation_stream):
            return self._recall.look(self._model, see)

    def _draw(self, sampling: Sampling) -> Draw:
        """Return how tokens are drawn: as asked, else as the checkpoint says."""
        from mlx_vlm.generate.common import resolve_sampling_defaults

        temperature, top_p, top_k = resolve_sampling_defaults(
            self._model.config,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )
        seed = fresh_seed() if sampling.seed is None else sampling.seed
        min_p = sampling.min_p or 0.0
        return Draw(float(temperature), float(top_p) or 1.0, int(top_k), min_p, seed)
