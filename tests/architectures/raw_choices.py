"""Probabilities of choices from the libraries alone: one forward over prompt and choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.model_table.questions import Question
from tools.model_table.raw import RawModel


class RawChoices(RawModel):
    """A checkpoint loaded by its library alone; scores are teacher-forced, without a cache."""

    def __init__(self, folder: Path, library: str, files: Mapping[str, Path]) -> None:
        super().__init__(folder, library, files)
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        if self._vision:
            self._ends = set(tokenizer.stopping_criteria.eos_token_ids)
        else:
            self._ends = set(self._processor.eos_token_ids)

    def probabilities(self, question: Question, choices: Sequence[str]) -> list[float]:
        """Return the probability of each choice, the end of its turn included."""
        scores = np.array([self._score(question, choice) for choice in choices], np.float64)
        weights = np.exp(scores - scores.max())
        shares: list[float] = (weights / weights.sum()).tolist()
        return shares

    def _score(self, question: Question, choice: str) -> float:
        import mlx.core as mx

        messages = question.messages()
        prompt = self._inputs(question, messages, True)
        whole = self._inputs(question, [*messages, {"role": "assistant", "content": choice}], False)
        start, tokens = _tokens(prompt), _tokens(whole)
        assert tokens[: len(start)] == start, "the template renders another prompt"
        end = next(at for at in range(len(start), len(tokens)) if tokens[at] in self._ends)
        logits = self._logits({**whole, "input_ids": whole["input_ids"][:, : end + 1]})
        logits = logits.astype(mx.float32)[0]
        # Expansion of image tokens makes more positions than tokens.
        more = logits.shape[0] - (end + 1)
        chosen = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        return sum(
            float(chosen[more + at - 1, tokens[at]].item()) for at in range(len(start), end + 1)
        )

    def _inputs(self, question: Question, messages: list[dict[str, Any]], opens: bool) -> Any:
        import mlx.core as mx

        if not self._vision:
            text = self._processor.apply_chat_template(
                messages, add_generation_prompt=opens, tokenize=False
            )
            tokens = self._processor.encode(text, add_special_tokens=False)
            return {"input_ids": mx.array([tokens])}
        from mlx_vlm.prompt_utils import apply_chat_template
        from mlx_vlm.utils import prepare_inputs, should_add_special_tokens
        from PIL import Image

        images = [Image.open(self._files[name]).convert("RGB") for name in question.all_images]
        config = self.model.config
        text = apply_chat_template(
            self._processor,
            config,
            messages,
            num_images=len(images),
            add_generation_prompt=opens,
        )
        return prepare_inputs(
            self._processor,
            images=images or None,
            prompts=text,
            image_token_index=getattr(config, "image_token_index", None),
            add_special_tokens=should_add_special_tokens(config.model_type, self._processor),
        )

    def _logits(self, inputs: dict[str, Any]) -> Any:
        import mlx.core as mx

        if not self._vision:
            return self.model(inputs["input_ids"])
        length = inputs["input_ids"].shape[1]
        mask = inputs.get("attention_mask")
        extra = {
            key: value
            for key, value in inputs.items()
            if key not in ("input_ids", "pixel_values", "attention_mask") and value is not None
        }
        for key, value in extra.items():
            if key in ("mm_token_type_ids", "token_type_ids") and value.ndim == 2:
                extra[key] = value[:, :length]
        made = self.model.get_input_embeddings(
            inputs["input_ids"],
            inputs.get("pixel_values"),
            mask=None if mask is None else mask[:, :length],
            **extra,
        )
        given = {key: value for key, value in made.to_dict().items() if value is not None}
        embeds = given.pop("inputs_embeds")
        mx.eval(embeds)
        from mlx_vlm.models.cache import make_prompt_cache

        return self.model.language_model(
            inputs["input_ids"],
            inputs_embeds=embeds,
            cache=make_prompt_cache(self.model.language_model),
            **given,
        ).logits


def _tokens(inputs: Any) -> list[int]:
    tokens: list[int] = np.asarray(inputs["input_ids"]).reshape(-1).tolist()
    return tokens
