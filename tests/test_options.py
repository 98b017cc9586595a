"""The table of options: everything that shows or takes an option follows from it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from typing import Any, get_type_hints

import pytest

import mlx_magic
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.options import OPTIONS, Settings

# What `ask` and `stream` take beside the options, and options of cells alone.
OWN = {"prompt", "images", "examples", "schema_prompt", "on_progress"}
CELL = {option.name for option in OPTIONS if option.target == "cell"}

ADD = """
import json
from mlx_magic import options
options.OPTIONS += (
    options.RequestOption("tone", "text", "how polite it is", "TONE", "request", short="-t"),
    options.RequestOption("beams", "integer", "number of beams", "N", "request", default=1, off=1),
)
from IPython.core.interactiveshell import InteractiveShell
from mlx_magic.notebook.display import sanitize
from mlx_magic.notebook.magic_line.options import parse_cell
from mlx_magic.notebook.kernel.completer import complete
from mlx_magic.notebook.magic_line.options import help_text
from mlx_magic.notebook.panel.panel import Panel
from mlx_magic.notebook.panel.state.cell_text import cell_text
from mlx_magic.notebook.panel.state.conversation import Turn
from mlx_magic.notebook.panel.state.export import to_json, to_markdown

shell = InteractiveShell()
shell.run_line_magic("load_ext", "mlx_magic")
shell.run_line_magic("config", "VisionMagics.tone = 'warm'")
magics = shell.magics_manager.registry["VisionMagics"]
turn = Turn("t1", "What?", settings=options.Settings(tone="cold", beams=4))
panel = Panel(ipython=shell)
form = panel._composer.options
print(json.dumps({
    "trait": [magics.trait_metadata("tone", "help"), magics.tone, magics.beams],
    "default": parse_cell("", "What?", magics.defaults()).settings.tone,
    "parsed": [parse_cell("-t cold --beams 3", "What?").settings.tone,
               parse_cell("--beams 3", "What?").settings.beams],
    "help": [line.split() for line in help_text("cell").splitlines() if "--tone" in line],
    "completed": [found.text for found in complete(
        "%%vision --ton", models=list, files=lambda folder: [], names=list)],
    "cell": cell_text(turn, "demo", [], defaults=magics.defaults()),
    "json": json.loads(to_json([turn]))["turns"][0]["options"]["tone"],
    "markdown": "tone cold, beams 4" in to_markdown([turn]),
    "panel": [form.read().tone, form.others.value],
}))
"""


@pytest.mark.parametrize("function", [mlx_magic.ask, mlx_magic.stream])
def test_functions_take_every_option_with_its_default(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    assert parameters.keys() - OWN == {option.name for option in OPTIONS} - CELL
    for option in OPTIONS:
        if option.name not in CELL and option.name != "format":
            assert parameters[option.name].default == option.default, option.name
    # In a notebook an answer is shown as Markdown; in Python it is a str.
    assert parameters["format"].default == "text"


def test_map_takes_every_option_and_its_own() -> None:
    parameters = inspect.signature(mlx_magic.map).parameters
    own = {"prompt", "images", "errors", "wait", "client", "on_progress", "limit", "journal"}
    own |= {"schema_prompt", "examples"}
    assert parameters.keys() - own == {option.name for option in OPTIONS} - CELL
    for option in OPTIONS:
        if option.name not in CELL and option.name != "format":
            assert parameters[option.name].default == option.default, option.name


def test_requests_have_a_field_for_every_option() -> None:
    for target, kind in (("sampling", Sampling), ("request", GenerationRequest)):
        names = {option.name for option in OPTIONS if option.target == target}
        assert names <= get_type_hints(kind, localns={"ImageInput": object}).keys()


def test_added_option_appears_everywhere() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ADD], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "trait": ["How polite it is.", "warm", 1],
        "default": "warm",
        "parsed": ["cold", 3],
        "help": [["-t,", "--tone", "TONE", "how", "polite", "it", "is", "tone"]],
        "completed": ["--tone"],
        "cell": "%%vision -m demo -t cold --beams 4\nWhat?",
        "json": "cold",
        "markdown": True,
        "panel": ["warm", "also: tone 'warm'"],
    }


def test_settings_equal_the_option_table() -> None:
    settings = Settings(temperature=0.5)
    assert [option.name for option, _ in settings] == [option.name for option in OPTIONS]
    assert (settings.temperature, settings.max_tokens) == (0.5, 512)
    assert settings == Settings().replaced({"temperature": 0.5}) != Settings()
    assert repr(settings) == "Settings(temperature=0.5)"
    with pytest.raises(TypeError, match="no option warmth"):
        Settings(warmth=1)
    with pytest.raises(AttributeError, match="no option warmth"):
        _ = settings.warmth
