"""Validation of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.errors import RequestError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -3),
        ("max_tokens", 2.5),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("seed", -1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", True),
    ],
)
def test_value_out_of_range_is_refused_with_its_name(field: str, value: float) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    assert caught.value.option == field
    assert "\n" not in str(caught.value)


def test_seed_of_more_than_64_bits_is_refused_as_such() -> None:
    assert Sampling(seed=2**64 - 1).seed == 2**64 - 1
    for seed in (2**64, 10**30):
        with pytest.raises(RequestError, match="more than 64 bits: use a number below") as caught:
            Sampling(seed=seed)
        assert caught.value.option == "seed"


@pytest.mark.parametrize("value", ["yes", 1, 0, "auto"])
def test_think_is_true_false_or_none(value: Any) -> None:
    with pytest.raises(RequestError, match=r"think is .*: use True or False\.") as caught:
        GenerationRequest(prompt="What?", think=value)
    assert caught.value.option == "think"
    for allowed in (True, False, None):
        assert GenerationRequest(prompt="What?", think=allowed).think is allowed


@pytest.mark.parametrize("value", [0, 2, 3, 16, 8.0, True, "8", float("nan")])
def test_kv_bits_other_than_4_and_8_are_refused(value: Any) -> None:
    with pytest.raises(RequestError, match=r"kv_bits is .*: use 4 or 8\.") as caught:
        GenerationRequest(prompt="What?", kv_bits=value)
    assert caught.value.option == "kv_bits"
    for allowed in (None, 4, 8):
        assert GenerationRequest(prompt="What?", kv_bits=allowed).kv_bits == allowed


@pytest.mark.parametrize("prompt", ["", " ", "\n\t "])
def test_an_empty_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(RequestError, match="empty"):
        GenerationRequest(prompt=prompt)


def test_limits_of_each_range_are_allowed() -> None:
    Sampling(max_tokens=1, temperature=0, top_p=1.0, top_k=0, seed=0)
    Sampling(min_p=0, repetition_penalty=1, stop=("\n", "END"))
    Sampling(min_p=1.0, repetition_penalty=0.5)


@pytest.mark.parametrize("stop", ["END", ["END"], ("",), ("END", 5), None])
def test_stop_accepts_only_strings(stop: Any) -> None:
    with pytest.raises(RequestError, match="stop") as caught:
        Sampling(stop=stop)
    assert caught.value.option == "stop"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5),
        ("model", None),
        ("model", " "),
        ("system", 5),
        ("format", "xml"),
        ("timeout", 0),
        ("timeout", -1.5),
        ("timeout", float("inf")),
        ("timeout", float("nan")),
        ("timeout", "5"),
        ("timeout", True),
    ],
)
def test_argument_of_the_wrong_type_is_refused_with_its_name(field: str, value: object) -> None:
    question: dict[str, Any] = {"prompt": "What?", field: value}
    with pytest.raises(RequestError) as caught:
        GenerationRequest(**question)
    assert caught.value.option == field


def test_numpy_numbers_are_accepted() -> None:
    Sampling(max_tokens=np.int64(5), temperature=np.float32(0.5))  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="temperature"):
        Sampling(temperature="0")  # type: ignore[arg-type]
