"""Text of a prompt that looks like a control token is tokenized as plain text.

A tokenizer finds its control tokens (``<|im_end|>``, ``<image>``) anywhere in a prompt, also in
text that a user or a data set wrote. Such text is masked while the chat template and the processor
work on the prompt. It is restored for a copy of the tokenizer in which the control tokens have
other names.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mlx_magic.backends import upstream
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.formatting import shown

# Processors replace such words, even if the tokenizer does not know them.
_PLACEHOLDER = re.compile(
    r"<\|?/?(?:image|img|picture|video|vid|audio|vision|frame|start_of_image|end_of_image)"
    r"[\w:-]{0,40}/?\|?>",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_MOST_WORDS = 50_000
_FIRST_PRIVATE = 0x100000
_LAST_PRIVATE = 0x10FFFD
# Attributes that `_Reader` takes from the copy; all others are the original tokenizer's.
_ENCODING = frozenset(
    {"encode", "encode_batch", "encode_batch_fast", "encode_special_tokens", "post_processor"}
    | {"truncation", "enable_truncation", "no_truncation"}
    | {"padding", "enable_padding", "no_padding"}
)


@dataclass(frozen=True, slots=True)
class Masked:
    """A request whose text has nothing that looks like a control token.

    Attributes
    ----------
    request : GenerationRequest
    words : mapping
        Each mask character and the word that it stands for; empty if nothing was masked.
    """

    request: GenerationRequest
    words: Mapping[str, str] = field(default_factory=dict)

    def restored(self, text: str) -> str:
        """Return a text with the words in place of their mask characters."""
        return text.translate({ord(mask): word for mask, word in self.words.items()})


class ControlTokens:
    """The control tokens of one model.

    Parameters
    ----------
    tokenizer : object
        As transformers or mlx-lm loads it.
    model : str
        Name of the model, for messages.
    processor : object, optional
        The processor of a vision model.
    """

    def __init__(self, tokenizer: Any, model: str, processor: Any = None) -> None:
        self._model = model
        self._tokenizer = upstream.inner_tokenizer(tokenizer)
        self._backend: Any = upstream.rust_tokenizer(self._tokenizer)
        if not hasattr(self._backend, "encode_batch") or not hasattr(self._backend, "to_str"):
            self._backend = None
        if self._backend is not None:
            # A checkpoint's truncation or padding would hide tokens from the checks here.
            self._backend.no_truncation()
            self._backend.no_padding()
        self._is_vision = processor is not None
        known = {} if self._backend is None else self._backend.get_added_tokens_decoder()
        # The token for unknown characters is not a control token.
        unknown = getattr(self._tokenizer, "unk_token_id", None)
        self._control = frozenset(
            at
            for at, token in known.items()
            if at != unknown and (token.special or _MARKUP.fullmatch(token.content))
        )
        self._by_normal_form = frozenset(
            at
            for at in self._control
            if known[at].normalized and self._backend.normalizer is not None
        )
        self._special, self._others = self._known(processor)
        self._copy: tuple[Any, dict[str, str]] | None = None

    def masked(self, request: GenerationRequest) -> Masked:
        """Mask words of a request that look like control tokens.

        Raises
        ------
        GenerationError
            The tokenizer cannot read such words as plain text.
        """
        everything = "".join(_texts(request))
        masks: dict[str, str] = {}
        free = _free(everything)

        def mask(word: str) -> str:
            if word not in masks:
                if len(masks) == _MOST_WORDS:
                    raise GenerationError(
                        f"{self._model}: the question has more than {_MOST_WORDS} different "
                        "words that look like control tokens of this model: leave some out.",
                        model=self._model,
                    )
                masks[word] = next(free)
            return masks[word]

        def in_question(text: str) -> str:
            return _rewritten(text, self._found(text, self._special, self._others), mask)

        def in_answer(text: str) -> str:
            # Templates look for <think> and the like in answers.
            return _rewritten(text, self._found(text, self._special), mask)

        changed = _changed(request, in_question, in_answer)
        self._require_plain(everything)
        if not masks:
            return Masked(request)
        if self._backend is None:
            raise self._refused(next(iter(masks)))
        return Masked(changed, {character: word for word, character in masks.items()})

    @property
    def tokens(self) -> frozenset[int]:
        """The control tokens that the tokenizer knows."""
        return self._control

    def require_none(self, texts: Iterable[str]) -> None:
        """Refuse texts that have words which look like control tokens.

        Raises
        ------
        GenerationError
        """
        masked = self.masked(GenerationRequest("\n".join(texts)))
        if masked.words:
            raise self._refused(next(iter(masked.words.values())))

    def reading(self, masked: Masked) -> Any:
        """Return a tokenizer for the prompt of a masked request.

        Raises
        ------
        GenerationError
            The tokenizer cannot be copied.
        """
        if not masked.words:
            return self._tokenizer
        if not upstream.CONTROL_TOKENS.is_on(_is_replaceable):
            raise self._refused(next(iter(masked.words.values())))
        if self._copy is None:
            try:
                self._copy = _renamed(self._backend)
            except Exception as error:
                raise self._refused(next(iter(masked.words.values()))) from error
        backend, names = self._copy
        reader = copy.copy(self._tokenizer)
        check = partial(self._require_same, masked)
        upstream.set_rust_tokenizer(reader, _Reader(self._backend, backend, names, masked, check))
        return reader

    def processor(self, processor: Any, masked: Masked) -> Any:
        """Return a processor that tokenizes the prompt of a masked request.

        Raises
        ------
        GenerationError
            The tokenizer cannot be copied.
        """
        if not masked.words:
            return processor
        reader = self.reading(masked)
        if not hasattr(processor, "tokenizer"):
            return reader
        made = copy.copy(processor)
        made.tokenizer = reader
        return made

    def require_restored(self, tokens: Sequence[int], masked: Masked) -> None:
        """Refuse a prompt in which a mask was not restored.

        Parameters
        ----------
        tokens : sequence of int
            The prompt.
        masked : Masked
            The request of the prompt.

        Raises
        ------
        GenerationError
        """
        if not masked.words:
            return
        # Some libraries use negative numbers for images.
        known = [token for token in tokens if token >= 0]
        text = self._tokenizer.decode(known, skip_special_tokens=False)
        # A mask is left if the processor tokenized the prompt without its tokenizer.
        characters, squeezed = set(text), _squeezed(text)
        left = [word for mask, word in masked.words.items() if mask in characters]
        missing = [word for word in masked.words.values() if _squeezed(word) not in squeezed]
        if left or missing:
            raise self._refused((left or missing)[0])

    def needs_template_check(self, masked: Masked) -> bool:
        """Whether `require_template` has something to check."""
        return self._backend is not None and bool(self._edges(masked.request))

    def require_template(
        self, text: object, masked: Masked, again: Callable[[GenerationRequest], object]
    ) -> None:
        """Refuse a prompt if the template or a normalization turned words into control tokens.

        Normalization makes ``</S>``, or a ``</s>`` with an invisible character in it, the same as
        ``</s>``; a chat template may lower-case text, or drop a part of it. So the control tokens
        of a prompt must be those of its template.

        Parameters
        ----------
        text : object
            The rendered masked request; only a str is checked.
        masked : Masked
        again : callable
            Renders another request.

        Raises
        ------
        GenerationError
        """
        if self._backend is None or not isinstance(text, str):
            return
        edges = self._edges(masked.request)
        if not edges:
            return
        found = self._controls(text)
        bare = _without(text, masked.request)
        if bare is not None and self._controls(bare) == found:
            return
        # The template changed the text, or text as short as "<" also occurs in the template.
        twin = again(self._harmless(masked.request, edges, next(_free(text))))
        if not isinstance(twin, str) or self._controls(twin) != found:
            word = next((w for w in _texts(masked.request) if not edges.isdisjoint(w)), "")
            raise self._refused(masked.restored(word))

    def _edges(self, request: GenerationRequest) -> set[str]:
        """Return the characters of a request that could begin or end a control token."""
        edges = self._special.edges | self._others.edges
        normal = getattr(self._backend, "normalizer", None)
        found = set()
        for character in set().union(*_texts(request)):
            forms = character + unicodedata.normalize("NFKC", character)
            if normal is not None:
                forms += normal.normalize_str(character)
            if not edges.isdisjoint(forms + forms.casefold()):
                found.add(character)
        return found

    def _controls(self, text: str) -> list[int]:
        """Return the control tokens of a text."""
        read = self._backend.encode(text, add_special_tokens=False).ids
        return [at for at in read if at in self._control]

    def _harmless(
        self, request: GenerationRequest, edges: set[str], other: str
    ) -> GenerationRequest:
        """Return a request without characters that could begin or end a control token."""
        table = dict.fromkeys(map(ord, edges), other)

        def in_question(text: str) -> str:
            return text.translate(table)

        def in_answer(text: str) -> str:
            return _rewritten(text, self._found(text, self._others), str, in_question)

        return _changed(request, in_question, in_answer)

    def _require_same(self, masked: Masked, prompt: str, tokens: Sequence[int]) -> None:
        """Refuse tokens of the copy whose control tokens differ from the prompt's."""
        if [at for at in tokens if at in self._control] != self._controls(prompt):
            raise self._refused(next(iter(masked.words.values())))

    def _known(self, processor: Any) -> tuple[_Words, _Words]:
        """Return the texts of control tokens, and other markup in the vocabulary."""
        special: set[str] = set()
        others: set[str] = set()
        if self._backend is not None:
            for token in self._backend.get_added_tokens_decoder().values():
                if token.special:
                    special.add(token.content)
                elif _MARKUP.fullmatch(token.content):
                    others.add(token.content)
        else:
            special |= set(map(str, getattr(self._tokenizer, "all_special_tokens", None) or ()))
            known = getattr(self._tokenizer, "get_added_vocab", dict)
            special |= {word for word in known() if _MARKUP.fullmatch(word)}
            table = getattr(self._tokenizer, "special_tokens", None)
            special |= {word for word in table if isinstance(word, str)} if table else set()
        for value in vars(processor).values() if processor is not None else ():
            if isinstance(value, str) and _MARKUP.fullmatch(value):
                special.add(value)
        return _Words(special), _Words(others)

    def _found(self, text: str, *words: _Words) -> Iterator[tuple[int, int]]:
        """Yield the spans of these words in a text: leftmost, longest, not overlapping."""
        spans = [span for known in words for span in known.spans(text)]
        if self._is_vision:
            spans += [match.span() for match in _PLACEHOLDER.finditer(text)]
        return _leftmost(spans)

    def _require_plain(self, text: str) -> None:
        """Refuse words that normalization makes a control token (words in capitals, say)."""
        if not self._by_normal_form:
            return
        text = _rewritten(text, self._found(text, self._special, self._others), lambda word: " ")
        read = self._backend.encode(text, add_special_tokens=False)
        for at, (start, stop) in zip(read.ids, read.offsets, strict=True):
            if at in self._by_normal_form:
                raise self._refused(text[start:stop])

    def _refused(self, word: str) -> GenerationError:
        return GenerationError(
            f"{self._model}: the question has the words {shown(word)}, a control token of this "
            "model that its tokenizer cannot read as plain text: write it in another way.",
            model=self._model,
        )


class _Words:
    """A set of words to find in texts."""

    def __init__(self, words: Iterable[str]) -> None:
        self._words = {word for word in words if word.strip()}
        self.edges = {edge for word in self._words for edge in (word[0], word[-1])}
        lengths: dict[str, set[int]] = {}
        for word in self._words:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(sizes) for first, sizes in lengths.items()}
        firsts = "".join(map(re.escape, sorted(self._lengths)))
        self._first = re.compile(f"[{firsts}]") if firsts else re.compile(r"(?!)")

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield the span of each occurrence in a text; spans may overlap."""
        for match in self._first.finditer(text):
            start = match.start()
            for length in self._lengths[match.group()]:
                if text[start : start + length] in self._words:
                    yield start, start + length


class _Reader:
    """A Rust tokenizer that encodes with a copy in which control tokens have other names.

    Parameters
    ----------
    original, renamed : tokenizers.Tokenizer
    names : mapping
        The copy's name of each control token.
    masked : Masked
    check : callable
        Takes a prompt and its tokens; may raise.
    """

    def __init__(
        self,
        original: Any,
        renamed: Any,
        names: Mapping[str, str],
        masked: Masked,
        check: Callable[[str, Sequence[int]], None],
    ) -> None:
        # Not by assignment, which sets attributes of the tokenizers.
        self.__dict__.update(
            _original=original,
            _renamed=renamed,
            _names=names,
            _words=_Words(names),
            _masked=masked,
            _check=check,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renamed if name in _ENCODING else self._original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._renamed if name in _ENCODING else self._original, name, value)

    def encode(self, sequence: Any, *args: Any, **kwargs: Any) -> Any:
        """Encode a prompt. See ``tokenizers.Tokenizer.encode``."""
        return self._checked(
            [sequence], [self._renamed.encode(self._put(sequence), *args, **kwargs)]
        )[0]

    def encode_batch(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """Encode prompts. See ``tokenizers.Tokenizer.encode_batch``."""
        put = [self._put(sequence) for sequence in input]
        return self._checked(input, self._renamed.encode_batch(put, *args, **kwargs))

    encode_batch_fast = encode_batch

    def _put(self, sequence: Any) -> Any:
        """Rename the control tokens of a prompt, and restore the masked words."""
        if isinstance(sequence, (list, tuple)):
            return type(sequence)(map(self._put, sequence))
        called = _rewritten(
            sequence, _leftmost(self._words.spans(sequence)), self._names.__getitem__
        )
        return self._masked.restored(called)

    def _checked(self, sequences: Sequence[Any], made: Any) -> Any:
        for sequence, encoding in zip(sequences, made, strict=True):
            if isinstance(sequence, str):
                mask = encoding.special_tokens_mask
                own = [at for at, added in zip(encoding.ids, mask, strict=True) if not added]
                self._check(sequence, own)
        return made


def _renamed(backend: Any) -> tuple[Any, dict[str, str]]:
    """Return a copy of a Rust tokenizer in which the control tokens have other names."""
    content = json.loads(backend.to_str())
    # A random name, so that no text can contain it.
    secret = secrets.token_hex(8)
    names: dict[str, str] = {}
    for at, token in enumerate(content["added_tokens"]):
        if token["special"] or _MARKUP.fullmatch(token["content"]):
            names[token["content"]] = token["content"] = f"\U000f0000{secret}{at}\U000f0001"
    model = content["model"]
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): at for word, at in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    made = type(backend).from_str(json.dumps(content))
    for name, other in names.items():
        if made.token_to_id(other) != backend.token_to_id(name):
            raise ValueError("the copy has other numbers")
    return made, names


def _is_replaceable(names: Any) -> bool:
    """Whether a copy of transformers' tokenizer can be given another Rust tokenizer."""
    from tokenizers import Tokenizer, models

    def made(token: int) -> Any:
        return Tokenizer(models.WordLevel({"a": token}, unk_token="a"))

    tokenizer = copy.copy(names.PreTrainedTokenizerFast(tokenizer_object=made(0)))
    upstream.set_rust_tokenizer(tokenizer, made(1))
    return bool(tokenizer.encode("a", add_special_tokens=False) == [1])


def _texts(request: GenerationRequest) -> list[str]:
    """Return the texts of a request, in the order of its turns."""
    turns = (text for turn in request.history for text in (turn.prompt, turn.answer))
    return [request.system or "", *turns, request.prompt]


def _without(text: str, request: GenerationRequest) -> str | None:
    """Return a prompt with the request's texts replaced by letters; None if one is not in it."""
    parts, end = [], 0
    for words in filter(None, map(str.strip, _texts(request))):
        place = text.find(words, end)
        if place < 0:
            return None
        parts.append(text[end:place])
        end = place + len(words)
    return " a ".join((*parts, text[end:]))


def _squeezed(text: str) -> str:
    # Normalization may change case and spaces.
    return "".join(text.casefold().split())


def _free(text: str) -> Iterator[str]:
    """Yield private-use characters that are not in a text."""
    used = set(text)
    return (chr(at) for at in range(_FIRST_PRIVATE, _LAST_PRIVATE) if chr(at) not in used)


def _changed(
    request: GenerationRequest, in_question: Callable[[str], str], in_answer: Callable[[str], str]
) -> GenerationRequest:
    """Return a request with its texts changed."""
    return replace(
        request,
        prompt=in_question(request.prompt),
        system=request.system and in_question(request.system),
        history=tuple(
            replace(turn, prompt=in_question(turn.prompt), answer=in_answer(turn.answer))
            for turn in request.history
        ),
    )


def _leftmost(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield spans without overlaps; of overlapping ones the leftmost, then the longest."""
    end = 0
    for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= end:
            yield start, stop
            end = stop


def _rewritten(
    text: str,
    spans: Iterable[tuple[int, int]],
    inside: Callable[[str], str],
    outside: Callable[[str], str] = str,
) -> str:
    """Return a text with functions applied inside and outside of its spans."""
    parts, end = [], 0
    for start, stop in spans:
        parts += [outside(text[end:start]), inside(text[start:stop])]
        end = stop
    return "".join((*parts, outside(text[end:])))
