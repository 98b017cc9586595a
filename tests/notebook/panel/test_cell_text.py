from __future__ import annotations

import ast
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from mlx_magic.engine.request import Sampling
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import RequestError
from mlx_magic.images.image import ImageInput, make_image_input
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.options import CellArguments, parse_cell
from mlx_magic.notebook.magic_line.template import fill
from mlx_magic.notebook.magic_line.tokens import split_line
from mlx_magic.notebook.panel.state.cell_text import (
    WITHOUT_HISTORY,
    cell_text,
    what_is_left_out,
    words_for,
)
from mlx_magic.notebook.panel.state.conversation import Answer, PanelImage, Turn
from mlx_magic.options import Settings
from mlx_magic.testing import ScriptedBackend


def image(name: str = "cat.png") -> ImageInput:
    return make_image_input(Image.new("RGB", (8, 6), "red"), name)


def panel_images(count: int) -> tuple[PanelImage, ...]:
    return tuple(PanelImage(f"p{at}", image()) for at in range(count))


def asked(
    prompt: str = "What is it?",
    *,
    images: tuple[PanelImage, ...] = (),
    sampling: Sampling | None = None,
    follows: bool = True,
    **values: object,
) -> Turn:
    settings = Settings(**asdict(sampling or Sampling()), **values)
    return Turn("t1", prompt, images, settings=settings, follows=follows)


def literal(expression: str) -> object:
    """Only a string may be filled in: anything else would be the notebook's."""
    value = ast.literal_eval(expression)
    assert isinstance(value, str)
    return value


def as_ipython_runs(cell: str) -> tuple[str, str]:
    """Return the line and the body that IPython gives to the magic."""
    code = TransformerManager().transform_cell(cell)
    statement = ast.parse(code).body
    assert len(statement) == 1
    assert isinstance(statement[0], ast.Expr)
    call = statement[0].value
    assert isinstance(call, ast.Call)
    assert ast.unparse(call.func) == "get_ipython().run_cell_magic"
    magic, line, body = map(ast.literal_eval, call.args)
    assert magic == "vision"
    return line, body


def read_back(cell: str, defaults: Settings | None = None) -> tuple[CellArguments, str]:
    """Return what the magic makes of a cell, and the prompt that is asked."""
    arguments = parse_cell(*as_ipython_runs(cell), defaults)
    return arguments, fill(arguments.prompt, literal)


def test_plain_question_is_a_short_cell() -> None:
    assert cell_text(asked(), "demo", []) == "%%vision -m demo\nWhat is it?"


def test_options_that_differ_from_the_defaults_are_written() -> None:
    turn = asked(
        images=panel_images(2),
        system="Be brief.",
        sampling=Sampling(100, temperature=0.0, top_p=0.5, top_k=0, seed=7),
        max_pixels=250_000,
    )
    assert cell_text(turn, "my model", ["cat.png", "df['a b'][3]"], output="r") == (
        "%%vision cat.png df['a b'][3] -m 'my model' -o r --system 'Be brief.' --max-tokens 100 "
        "--temperature 0 --top-p 0.5 --top-k 0 --seed 7 --max-pixels 250000\nWhat is it?"
    )


def test_options_equal_to_the_notebook_defaults_are_omitted() -> None:
    defaults = Settings(system="s", max_tokens=9, temperature=1.0, format="text", output="r")
    turn = asked(system="s", sampling=Sampling(9, temperature=1.0))
    assert cell_text(turn, "demo", [], output="r", defaults=defaults) == (
        "%%vision -m demo -f markdown\nWhat is it?"
    )
    assert "--max-tokens 512" in cell_text(asked(), "demo", [], defaults=defaults)


def test_notebook_defaults_not_used_by_the_turn_are_turned_off() -> None:
    defaults = Settings(min_p=0.1, repetition_penalty=1.2)
    cell = cell_text(asked(), "demo", [], defaults=defaults)
    assert cell == "%%vision -m demo --min-p 0 --repetition-penalty 1\nWhat is it?"
    sampling = read_back(cell, defaults)[0].settings.sampling
    assert (sampling.min_p, sampling.repetition_penalty) == (0, 1)
    turn = asked(sampling=defaults.sampling)
    assert cell_text(turn, "demo", [], defaults=defaults) == "%%vision -m demo\nWhat is it?"


@pytest.mark.parametrize(
    "prompt",
    ['Answer as {"total": 0.0, "items": [{"name": "..."}]}', "a {} b", "{key: value}", "}} {"],
)
def test_braces_that_are_not_expressions_are_unchanged(prompt: str) -> None:
    assert cell_text(asked(prompt), "demo", []) == f"%%vision -m demo\n{prompt}"


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        ("Say {x}.", "Say {{x}}."),
        ("{{", "{{{{"),
        ("a\n  \nb", "a\n{'  '}\nb"),
        (">>> 1 + 1\n2", "{'>>>'} 1 + 1\n2"),
        ("In [3]: x", "{'In'} [3]: x"),
        ("...: x", "{'...'}: x"),
        ("a\r\nb", "a{'\\r'}\nb"),
        ("a\u2028b\x00", "a{'\\u2028'}b{'\\x00'}"),
        ("{\x0b{'\x0b'}", "{{{'\\x0b'}{{'{'\\x0b'}'}}"),
    ],
)
def test_prompt_that_ipython_would_change_is_a_string_literal(prompt: str, written: str) -> None:
    cell = cell_text(asked(prompt), "demo", [])
    assert cell == f"%%vision -m demo\n{written}"
    assert read_back(cell)[1].removesuffix("\n") == prompt


def test_multiline_system_prompt_becomes_a_run_cell_magic_call() -> None:
    turn = asked("Is {x} \n \nit?", images=panel_images(1), system='Be brief.\nIt\'s "nice".')
    cell = cell_text(turn, "demo", ["cat.png"])
    assert cell.startswith("get_ipython().run_cell_magic('vision', ")
    assert len(cell.splitlines()) == 1
    arguments, prompt = read_back(cell)
    assert (arguments.settings.system, prompt) == (turn.settings.system, turn.prompt)
    assert [token.raw for token in arguments.images] == ["cat.png"]


TEXT = st.text(max_size=40) | st.text(
    alphabet=st.sampled_from(" \t\n\r\x0b\x1c\x85\u2028\xa0{}[]()'\"\\-%=.>x1:#?In…é"), max_size=40
)
WORDS = st.sampled_from(
    ["cat.png", "img", "df['a b'][3]", "'a b.jpg'", "~/x/*.png", "https://x.example/a?b=1&c=(2)",
     "[a, b]", "{img}", "a[1.jpg", "x if y else z", "my photo.jpg", "-o", "--", "it's", 'a"b', ":)",
     "f('(')", "a\\", "a - b.jpg", "x # y", "'a\nb.jpg'", "''"]
)  # fmt: skip


@given(
    prompt=TEXT.filter(str.strip),
    system=st.none() | TEXT,
    model=TEXT.filter(str.strip),
    words=st.lists(WORDS, max_size=3),
    sampling=st.builds(
        Sampling,
        max_tokens=st.integers(1, 10_000),
        temperature=st.none() | st.floats(0, 1e300),
        top_p=st.none() | st.floats(0, 1, exclude_min=True),
        top_k=st.none() | st.integers(0, 1_000),
        seed=st.none() | st.integers(0, 2**64 - 1),
        min_p=st.none() | st.floats(0, 1),
        repetition_penalty=st.none() | st.floats(0, 1e300, exclude_min=True),
        # A backslash before an n is the end of a line, to the magic.
        stop=st.tuples() | st.tuples(TEXT.filter(lambda text: text and "\\n" not in text)),
    ),
    max_pixels=st.none() | st.integers(1, 10**9),
    timeout=st.none() | st.floats(0, 1e9, exclude_min=True),
    kv_bits=st.sampled_from([None, 4, 8]),
    think=st.sampled_from([None, True, False]),
    output=st.sampled_from([None, "r", "größe"]),
)
@example("\n\n%%time\n  a  ", None, "demo", [], Sampling(), None, None, None, None, None)
@example("{'\x0b'}\x0b{x}", "--", "-m", ["-m", "["], Sampling(), None, None, 8, True, "r")
def test_copied_cell_sends_the_same_request(
    prompt: str,
    system: str | None,
    model: str,
    words: list[str],
    sampling: Sampling,
    max_pixels: int | None,
    timeout: float | None,
    kv_bits: int | None,
    think: bool | None,
    output: str | None,
) -> None:
    turn = asked(
        prompt,
        images=panel_images(len(words)),
        system=system,
        sampling=sampling,
        max_pixels=max_pixels,
        timeout=timeout,
        kv_bits=kv_bits,
        think=think,
    )
    arguments, asks = read_back(cell_text(turn, model, words, output=output))
    # IPython ends a cell with a line feed; the magic takes those around the prompt off.
    assert asks in (prompt, prompt + "\n")
    assert arguments.settings.system == system
    assert arguments.settings.model == model
    assert arguments.settings.sampling == sampling
    assert arguments.settings.max_pixels == max_pixels
    assert arguments.settings.timeout == timeout
    assert arguments.settings.kv_bits == kv_bits
    assert arguments.settings.think == think
    assert arguments.settings.output == output
    assert len(arguments.images) == len(words)
    alone = [cell_text(asked(images=panel_images(1)), "m", [word]) for word in words]
    assert arguments.images == tuple(read_back(cell)[0].images[0] for cell in alone)


@pytest.mark.parametrize(
    ("word", "text", "quoted"),
    [
        ("my photo.jpg", "my photo.jpg", True),
        ("a[1.jpg", "a[1.jpg", True),
        ("-o.jpg", "-o.jpg", True),
        ("-img", "(-img)", False),
        ("it's", "it's", True),
        ("a - b.jpg", "a - b.jpg", True),
        ("x # y", "x # y", True),
        ("x if y else z", "(x if y else z)", False),
        (" img ", "img", False),
        ("df['a b'][3]", "df['a b'][3]", False),
        ("'a b.jpg'", "a b.jpg", True),
    ],
)
def test_image_word_is_quoted_as_one_word(word: str, text: str, quoted: bool) -> None:
    arguments, _ = read_back(cell_text(asked(images=panel_images(1)), "demo", [word]))
    assert [(token.text, token.quoted) for token in arguments.images] == [(text, quoted)]


@pytest.mark.parametrize("system", [None, "Be brief.", "Be brief.\nBe kind."])
def test_copied_cell_runs_in_the_notebook(
    system: str | None, shell: InteractiveShell, script: ScriptedBackend
) -> None:
    tray = (PanelImage("p1", image("a (1).png")), PanelImage("p2", image(), "[img]"))
    turn = asked("Is\n  \n{x} it {?", images=tray, system=system, max_pixels=20)
    found = words_for(tray, shell.user_ns)
    shell.user_ns.update(found.variables)
    shell.run_cell(cell_text(turn, "demo", found.words, output="r")).raise_error()
    [request] = script.requests
    assert (request.prompt, request.system) == (turn.prompt, system)
    assert [image.size for image in request.images] == [(5, 3), (6, 3)]
    assert shell.user_ns["r"].text == "It is **red**."


def test_number_of_words_must_match_the_images() -> None:
    with pytest.raises(RequestError, match="2 images have 1 words"):
        cell_text(asked(images=panel_images(2)), "demo", ["a.png"])


def test_ten_thousand_braces_are_escaped_quickly() -> None:
    prompt = "{ " * 10_000
    assert read_back(cell_text(asked(prompt), "demo", []))[1] == prompt + "\n"


def test_image_word_is_kept_and_an_upload_gets_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = image("receipt (1).jpg"), image("receipt (1).jpg")
    tray = [
        PanelImage("p1", image(), "img"),
        PanelImage("p2", first),
        PanelImage("p3", second),
        PanelImage("p4", first),
        PanelImage("p5", image(), "my photo.jpg"),
    ]
    found = words_for(tray, {"img": 1})
    assert found.words == ("img", "receipt_1", "receipt_1_2", "receipt_1", "'my photo.jpg'")
    assert found.variables == {"receipt_1": first, "receipt_1_2": second}
    again = words_for(tray, {"img": 1, **found.variables})
    assert again == found
    taken = words_for(tray, {"receipt_1": "something else"})
    assert taken.words[1:3] == ("receipt_1_2", "receipt_1_3")


def test_variable_is_not_shadowed_by_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "receipt").write_text("no image")
    found = words_for([PanelImage("p1", image("receipt.jpg"))], {})
    assert found.words == ("(receipt)",)
    namespace: dict[str, object] = {**found.variables}
    tokens = split_line(found.words[0])
    [(_, value)] = image_values(tokens, namespace, lambda code: eval(code, {}, namespace))
    assert value is found.variables["receipt"]


def test_earlier_turns_are_omitted_with_a_note() -> None:
    before = asked("Before?")
    before.answers.append(Answer("demo", result=VisionResult("Yes.", "demo", "stop")))
    assert what_is_left_out(asked(), [before], "demo") == WITHOUT_HISTORY
    assert what_is_left_out(asked(follows=False), [before], "demo") == ""
    assert what_is_left_out(asked(), [], "demo") == ""
    assert what_is_left_out(asked(), [asked("Unanswered?")], "demo") == ""
