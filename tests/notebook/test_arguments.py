from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.engine.request import DEFAULT_MAX_TOKENS, Sampling
from mlx_magic.errors import RequestError
from mlx_magic.notebook.magic_line.options import CellArguments, parse_cell
from mlx_magic.notebook.magic_line.tokens import quote
from mlx_magic.options import Settings


def parse(line: str, defaults: Settings | None = None) -> CellArguments:
    return parse_cell(line, "What is it?\n", defaults)


def refusal(line: str, body: str = "What is it?") -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_cell(line, body)
    assert "\n" not in str(caught.value)
    return caught.value


def test_cell_without_options_has_the_defaults() -> None:
    assert parse("") == CellArguments(prompt="What is it?\n")
    assert parse("").settings.sampling == Sampling(max_tokens=DEFAULT_MAX_TOKENS)


def test_every_option_is_parsed() -> None:
    found = parse(
        "a.jpg -m demo 'b c.jpg' -o answer --system 'be (very) terse' --max-tokens 7 "
        "--temperature 0.5 --top-p 0.9 --top-k 5 --seed 1 -f json --no-show "
        "--max-pixels 1000 --min-p 0.1 --repetition-penalty 1.2 --stop 'The end' --timeout 2.5 "
        "--kv-bits 8 [x, y]"
    )
    assert [token.text for token in found.images] == ["a.jpg", "b c.jpg", "[x, y]"]
    assert found.settings.model == "demo"
    assert found.settings.output == "answer"
    assert found.settings.system == "be (very) terse"
    assert found.settings.sampling == Sampling(
        max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, seed=1, min_p=0.1,
        repetition_penalty=1.2, stop=("The end",),
    )  # fmt: skip
    assert found.settings.timeout == 2.5
    assert found.settings.kv_bits == 8
    assert found.settings.format == "json"
    assert found.settings.show is False
    assert found.settings.max_pixels == 1000


@pytest.mark.parametrize(
    "line", ["--model demo", "--model=demo", "-m demo", "-m=demo", "-m 'demo'", "--model='demo'"]
)
def test_value_can_follow_in_each_syntax(line: str) -> None:
    assert parse(line).settings.model == "demo"


def test_short_flags_have_long_names() -> None:
    found = parse("--model a --output b --format text")
    assert (found.settings.model, found.settings.output, found.settings.format) == (
        "a",
        "b",
        "text",
    )


def test_defaults_apply_without_a_flag() -> None:
    defaults = Settings(
        model="m", output="o", system="s", max_tokens=3, temperature=1.0, top_p=0.5, top_k=2,
        seed=9, format="raw", show=False, max_pixels=10, min_p=0.2, repetition_penalty=1.1,
        stop=("x", "y"), timeout=30.0, kv_bits=8,
    )  # fmt: skip
    found = parse("", defaults)
    assert found == CellArguments(prompt="What is it?\n", settings=defaults)
    assert parse("--kv-bits 4", defaults).settings.kv_bits == 4
    assert parse("--no-think", Settings(think=True)).settings.think is False
    assert parse("--think", Settings(think=False)).settings.think is True
    assert parse("").settings.think is None
    assert parse("--temperature 0 -f text -m n", defaults).settings.sampling.temperature == 0
    assert parse("--system ''", defaults).settings.system == ""
    assert parse("--stop z", defaults).settings.sampling.stop == ("z",)
    assert parse("--timeout 1", defaults).settings.timeout == 1


def test_stop_sequence_can_contain_a_newline() -> None:
    assert parse(r"--stop '\n\nQ:'").settings.sampling.stop == ("\n\nQ:",)


@pytest.mark.parametrize("flag", ["-c", "--chat", "--reset", "--detach"])
@pytest.mark.parametrize("tail", ["", " x", "=x"])
def test_planned_flags_are_reported_as_planned(flag: str, tail: str) -> None:
    error = refusal(f"a.jpg {flag}{tail}")
    assert str(error) == f"{flag} is not available yet."
    assert error.option in {"chat", "reset", "schema", "detach"}


@pytest.mark.parametrize(
    ("flag", "hint"),
    [
        ("--max-token", "; did you mean --max-tokens?"),
        ("--temp", "; did you mean --temperature?"),
        ("--max", "; did you mean --max-tokens?"),
        ("--modle", "; did you mean --model?"),
        ("--noshow", "; did you mean --no-show?"),
        ("-x", "."),
        ("--completely-different", "."),
        ("-max-tokens", "; did you mean --max-tokens?"),
    ],
)
def test_unknown_flags_are_one_line_with_a_suggestion(flag: str, hint: str) -> None:
    hints = {hint, "; did you mean -m?"} if flag == "-x" else {hint}
    assert str(refusal(f"a.jpg {flag} 3")) in {f"Unknown flag {flag}{end}" for end in hints}


def test_a_planned_flag_is_never_suggested() -> None:
    assert "--reset" not in str(refusal("--rese x"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--temperature -1", "temperature is -1.0: use 0"),
        ("--temperature -1e-3", "temperature is -0.001: use 0"),
        ("--temperature=-1", "temperature is -1.0: use 0"),
        ("--temperature nan", "temperature is nan"),
        ("--temperature -inf", "temperature is -inf"),
        ("--temperature inf", "temperature is inf"),
        ("--max-tokens 0", "max_tokens is 0: use a whole number of 1"),
        ("--max-tokens -5", "max_tokens is -5: use a whole number of 1"),
        ("--max-tokens 1.5", "--max-tokens is '1.5': use a whole number."),
        ("--max-tokens many", "--max-tokens is 'many': use a whole number."),
        ("--max-tokens ''", "--max-tokens is '': use a whole number."),
        ("--temperature hot", "--temperature is 'hot': use a number."),
        ("--top-p 0", "top_p is 0.0: use a number above 0"),
        ("--top-p 1.1", "top_p is 1.1"),
        ("--top-k -1", "top_k is -1"),
        ("--seed -1", "seed is -1"),
        ("--seed 1e3", "--seed is '1e3': use a whole number."),
        ("--min-p 2", "min_p is 2.0: use a number from 0"),
        ("--min-p low", "--min-p is 'low': use a number."),
        ("--repetition-penalty 0", "repetition_penalty is 0.0: use a number above 0."),
        ("--stop ''", "stop is ('',): use str, none of them empty."),
        ("--timeout 0", "--timeout is 0.0: use a number of seconds above 0."),
        ("--timeout -1", "--timeout is -1.0: use a number of seconds above 0."),
        ("--timeout soon", "--timeout is 'soon': use a number."),
        ("--kv-bits 3", "--kv-bits is 3: use 4 or 8."),
        ("--kv-bits few", "--kv-bits is 'few': use a whole number."),
        ("--max-pixels 0", "--max-pixels is 0: use a whole number of 1 or more."),
        ("--max-pixels -1", "--max-pixels is -1"),
        ("-f markdwon", "Unknown format 'markdwon'; did you mean markdown?"),
        ("-f xml", "Unknown format 'xml': use markdown, text, json or raw."),
        ("-o 2x", "-o '2x' is not a variable name"),
        ("-o class", "-o 'class' is a Python keyword"),
        ("-o a.b", "-o 'a.b' is not a variable name"),
        ("-o ''", "-o '' is not a variable name"),
        ("-m ''", "--model is empty."),
        ("-m", "-m needs a value: -m MODEL."),
        ("-m -o x", "-m needs a value: -m MODEL."),
        ("--seed --", "--seed needs a value: --seed N."),
        ("--model --seed=3", "--model needs a value: --model MODEL."),
        ("-m a -m b", "-m is given twice."),
        ("-m a --model b", "--model is given twice."),
        ("--no-show=1", "--no-show takes no value."),
        ("--think=1", "--think takes no value."),
        ("--think --think", "--think is given twice."),
        ("--think --no-think", "--think and --no-think exclude each other."),
        ("'open", "A quote is not closed: 'open"),
    ],
)
def test_invalid_values_are_an_error_of_one_line(line: str, message: str) -> None:
    assert str(refusal(line)).startswith(message)


def test_very_long_number_is_refused_with_a_short_message() -> None:
    assert len(str(refusal(f"--seed {'9' * 10_000}"))) < 120


@pytest.mark.parametrize("body", ["", " \n\t"])
def test_an_empty_prompt_is_refused(body: str) -> None:
    error = refusal("a.jpg", body)
    assert str(error).startswith("The prompt is empty")
    assert error.option == "prompt"


def test_the_prompt_is_kept_as_written() -> None:
    assert parse_cell("", "  a {b}\n\n").prompt == "  a {b}\n\n"


def test_value_can_begin_with_a_dash() -> None:
    assert parse("--system '- terse'").settings.system == "- terse"
    assert parse("--system -terse").settings.system == "-terse"
    assert parse("--system '--model'").settings.system == "--model"


def test_quoted_words_and_words_after_two_dashes_are_images() -> None:
    found = parse("'-m' -- -o x")
    assert [token.text for token in found.images] == ["-m", "-o", "x"]


def test_single_dash_is_an_image_word() -> None:
    assert [token.raw for token in parse("-").images] == ["-"]


@given(st.text(min_size=1).filter(str.strip))
def test_any_model_name_round_trips(name: str) -> None:
    assert parse(f"-m {quote(name)}").settings.model == name


@given(st.integers(min_value=1, max_value=10**12))
def test_integers_are_parsed(number: int) -> None:
    assert parse(f"--max-tokens {number}").settings.sampling.max_tokens == number


@given(st.text(), st.text())
def test_any_cell_parses_or_raises_only_usage_errors(line: str, body: str) -> None:
    message = ""
    try:
        parse_cell(line, body)
    except RequestError as error:
        message = str(error)
    assert "\n" not in message
