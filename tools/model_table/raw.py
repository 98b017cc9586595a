"""Answers of raw mlx-vlm and mlx-lm: what every other way is held against."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.model_table.questions import Question


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, or why there is none.

    Attributes
    ----------
    text : str
    tokens : int
        How many were written.
    error : str
        One line; empty where there is an answer.
    own : bool
        Whether the error is one of the side's own, meant for a person.
    """

    text: str = ""
    tokens: int = 0
    error: str = ""
    own: bool = False


class RawModel:
    """A checkpoint loaded by its library alone, one question at a time.

    Parameters
    ----------
    folder : Path
    library : {"mlx-vlm", "mlx-lm"}
    files : mapping
        The images, by name.
    """

    def __init__(self, folder: Path, library: str, files: Mapping[str, Path]) -> None:
        self._vision = library == "mlx-vlm"
        self._files = files
        library_module: Any = importlib.import_module(library.replace("-", "_"))
        self.model, self._processor = library_module.load(str(folder))

    def ask(self, question: Question) -> Answer:
        """Answer a question greedily."""
        try:
            stream = self._see(question) if self._vision else self._read(question)
            text, tokens = [], 0
            for piece in stream:
                text.append(piece.text)
                tokens = piece.generation_tokens
        except Exception as error:
            return Answer(error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return Answer("".join(text), tokens)

    def _see(self, question: Question) -> Any:
        from mlx_vlm import stream_generate
        from mlx_vlm.prompt_utils import apply_chat_template

        images = [str(self._files[name]) for name in question.all_images]
        prompt = apply_chat_template(
            self._processor, self.model.config, question.messages(), num_images=len(images)
        )
        return stream_generate(
            self.model,
            self._processor,
            prompt,
            image=images or None,
            max_tokens=question.tokens,
            temperature=0.0,
            skip_special_tokens=True,
        )

    def _read(self, question: Question) -> Any:
        from mlx_lm import stream_generate

        prompt = self._processor.apply_chat_template(
            question.messages(), add_generation_prompt=True
        )
        return stream_generate(self.model, self._processor, prompt, max_tokens=question.tokens)
