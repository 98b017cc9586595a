"""The magics in a shell without a kernel: requests, results, output and errors."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

from mlx_magic import default_session, session
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import GenerationError
from mlx_magic.images import files
from mlx_magic.models.catalog.alias_file import AliasFile, AliasTarget
from mlx_magic.notebook.display import render
from mlx_magic.notebook.magics import VisionMagics
from mlx_magic.testing import ScriptedBackend
from tests import checkpoints
from tests.models.test_local_models import snapshot

POOL_TRAITS = {"memory_budget", "idle_ttl", "model_folders", "schema_prompt"}


def cell(shell: InteractiveShell, line: str, body: str = "What is it?") -> object:
    return shell.run_cell_magic("vision", line, body)


def line(shell: InteractiveShell, text: str) -> Any:
    return shell.run_line_magic("vision", text)


def test_cell_streams_and_stores_its_result(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["thing"] = "shape"
    cell(shell, "img -o r --max-tokens 50 --seed 3 --system Short.", "What {thing} is it?")

    result = shell.user_ns["r"]
    assert isinstance(result, VisionResult)
    assert shell.user_ns["_"] is result
    [request] = script.requests
    assert request.prompt == "What shape is it?"
    assert request.system == "Short."
    assert (request.sampling.max_tokens, request.sampling.seed) == (50, 3)
    assert [image.size for image in request.images] == [(40, 20)]
    out = capsys.readouterr().out
    assert "It is **red**.\n" in out
    assert "bundled demo model" in out


def test_cell_of_a_model_that_reasons(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    script.reasoning, script.pieces = ['{"draft": 1} ', "[2]"], ['{"final": 3}']
    cell(shell, "-o r --think -f json")
    result = shell.user_ns["r"]
    assert (result.reasoning, result.data) == ('{"draft": 1} [2]', {"final": 3})
    assert [request.think for request in script.requests] == [True]
    assert "draft" not in capsys.readouterr().out
    shell.run_line_magic("config", "VisionMagics.think = False")
    cell(shell, "")
    assert script.requests[-1].think is False


def test_magic_in_a_function_sees_the_variables_of_the_function(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.user_ns["thing"] = "sky"
    shell.run_cell(
        "def ask(image, thing):\n"
        "    numbers = [1, 2]\n"
        "    get_ipython().run_cell_magic('vision', 'image --no-show',\n"
        "        'What {thing} is it, {[n for n in numbers if thing]}?')\n"
        "ask(img, 'shape')\n"
        "get_ipython().run_cell_magic('vision', '--no-show', 'Is the {thing} blue?')\n"
    ).raise_error()
    asked, then = script.requests
    assert asked.prompt == "What shape is it, [1, 2]?"
    assert [image.size for image in asked.images] == [(40, 20)]
    assert then.prompt == "Is the sky blue?"


def test_function_in_braces_is_not_filled_in_and_a_line_says_so(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(shell, "", "Use {max} here.")
    assert script.requests[0].prompt == "Use {max} here."
    assert "{max} is a builtin of Python: it stays as written.\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ("#| echo: false\n#| label: fig\nWhat is it?", "What is it?"),
        ("  #|export\n\nWhat is it?", "What is it?"),
        ("What is it?\n#| echo: false", "What is it?\n#| echo: false"),
        ("# What is it?", "# What is it?"),
    ],
)
def test_cell_options_of_quarto_and_nbdev_are_not_part_of_the_question(
    shell: InteractiveShell, script: ScriptedBackend, body: str, prompt: str
) -> None:
    cell(shell, "", body)
    assert script.requests[0].prompt == prompt


def test_cell_with_options_of_quarto_only_has_no_question(shell: InteractiveShell) -> None:
    with pytest.raises(UsageError, match="empty"):
        cell(shell, "", "#| echo: false\n")


def test_help_is_shown_and_nothing_is_asked(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ("--help", "a.png -h"):
        cell(shell, words)
        assert "%%vision [IMAGE ...] [OPTIONS]" in capsys.readouterr().out
    for words in ("help", "--help", "load --help"):
        line(shell, words)
        assert "%vision unload" in capsys.readouterr().out
    assert not script.requests


def test_every_line_of_a_cell_shows_what_it_returns(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("%vision list\n\nif True:\n    %vision list\n%vision list\nx = 1").raise_error()
    assert capsys.readouterr().out.count("bundled, fits") == 3
    shell.run_cell("x = %vision list").raise_error()
    assert capsys.readouterr().out == ""
    assert shell.user_ns["x"] is not None


def test_bundled_model_note_is_shown_once_and_only_without_a_chosen_model(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    cell(shell, "-m demo")
    assert "This is the bundled demo model" not in capsys.readouterr().out
    cell(shell, "")
    assert "This is the bundled demo model" in capsys.readouterr().out
    cell(shell, "")
    assert "This is the bundled demo model" not in capsys.readouterr().out


def test_no_show_displays_nothing_and_stores_the_result(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cell(shell, "-m demo --no-show -o r") is None
    assert capsys.readouterr().out == ""
    assert shell.user_ns["r"].text == "It is **red**."
    assert shell.user_ns["_"] is shell.user_ns["r"]


def test_json_is_parsed(shell: InteractiveShell, script: ScriptedBackend) -> None:
    script.pieces = ['{"colour": ', '"red"}']
    cell(shell, "-m demo -f json -o r")
    assert shell.user_ns["r"].data == {"colour": "red"}
    script.pieces = ["no json"]
    cell(shell, "-m demo -f json -o r")
    assert shell.user_ns["r"].data is None
    assert shell.user_ns["r"].data_error
    assert shell.user_ns["r"].text == "no json"


def test_schema_is_an_expression_a_file_or_fields(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path
) -> None:
    script.pieces = ['{"x": ', "3}"]
    shell.run_cell("import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int")
    path = tmp_path / "point.json"
    path.write_text('{"properties": {"x": {"type": "integer"}}}', encoding="utf-8")
    for schema in ("Point", "'x: int'", str(path), '"Point if True else None"'):
        cell(shell, f"-o r --schema {schema}", "Where?")
        result, request = shell.user_ns["r"], script.requests[-1]
        assert result.complete
        assert result.format == "json"
        assert result.prompt == "Where?"
        assert request.schema is not None
        assert request.prompt.startswith("Where?\n\nAnswer in JSON that follows this schema:\n{")
        assert '"x"' in request.prompt
        assert render.bundle(result)["text/plain"] == '{\n  "x": 3\n}'
    assert result.data == shell.user_ns["Point"](3)
    shell.run_line_magic("config", "VisionMagics.schema_prompt = ''")
    shell.run_line_magic("config", "VisionMagics.schema = 'Point'")
    cell(shell, "-o r -f text", "Where?")
    assert script.requests[-1].prompt == "Where?"
    assert (shell.user_ns["r"].data, shell.user_ns["r"].format) == (result.data, "text")


def test_earlier_result_can_be_used_as_an_image(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    cell(shell, "img -o r")
    cell(shell, "r")
    assert script.requests[1].images[0].digest == script.requests[0].images[0].digest


def test_config_gives_defaults_and_a_flag_takes_precedence(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.run_line_magic("config", "VisionMagics.max_tokens = 7")
    shell.run_line_magic("config", "VisionMagics.system = 'Be short.'")
    cell(shell, "")
    cell(shell, "--max-tokens 9")
    assert [r.sampling.max_tokens for r in script.requests] == [7, 9]
    assert script.requests[0].system == "Be short."


def test_sampling_stop_and_timeout_come_from_flags_and_config(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    shell.run_line_magic("config", "VisionMagics.stop = ['**', 'END']")
    shell.run_line_magic("config", "VisionMagics.timeout = 60")
    shell.run_line_magic("config", "VisionMagics.kv_bits = 8")
    cell(shell, "-m demo --min-p 0.1 --repetition-penalty 1.2 -o r")
    [request] = script.requests
    assert request.sampling.stop == ("**", "END")
    assert (request.sampling.min_p, request.sampling.repetition_penalty) == (0.1, 1.2)
    assert (request.timeout, request.kv_bits) == (60, 8)
    assert (shell.user_ns["r"].text, shell.user_ns["r"].finish_reason) == ("It is ", "stop")


def test_timeout_ends_a_cell_with_its_partial_text(
    shell: InteractiveShell, script: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    script.hold = "decode"
    cell(shell, "-m demo --max-tokens 1000000 --timeout 0.3 -o r")
    assert shell.user_ns["r"].finish_reason == "timeout"
    assert shell.user_ns["r"].text.startswith("It is **red**.")
    assert "[timed out]" in capsys.readouterr().out


def usage_errors(tmp_path: Path) -> dict[str, tuple[str, str, str]]:
    """Name -> line, body, words that the message must have."""
    (tmp_path / "notes.txt").write_text("Just text.")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    return {
        "a missing file": ("nowhere.png", "?", "nowhere.png"),
        "a glob without matches": ("none*.png", "?", r"none\*\.png"),
        "a text file": ("notes.txt", "?", r"notes\.txt"),
        "a corrupt image": ("broken.png", "?", r"broken\.png"),
        "an expression that raises": ("1/0", "?", "1/0"),
        "an expression that is no image": ("len", "?", "len"),
        "an unknown flag": ("--colour", "?", "--colour"),
        "a flag that is to come": ("--reset", "?", "not available yet"),
        "a schema that is none": ("--schema 3", "?", "schema cannot be used"),
        "a class that is not defined": ("--schema Recipt", "?", "'Recipt' is not defined"),
        "a schema as Markdown": ("--schema 'a: int' -f markdown", "?", "-f markdown"),
        "an empty prompt": ("img", "\n", "empty"),
        "no tokens": ("--max-tokens 0", "?", "max_tokens"),
        "fewer than none": ("--max-tokens -4", "?", "max_tokens"),
        "a negative temperature": ("--temperature -1", "?", "temperature"),
        "no time": ("--timeout 0", "?", "timeout is 0.0"),
        "a bad variable": ("-o 1x", "?", "1x"),
        "an unknown model": ("-m nonsense", "?", "nonsense"),
        "an undefined name in the prompt": ("", "{nothing}", "nothing"),
    }


@pytest.mark.parametrize("name", sorted(usage_errors(Path("/tmp"))))
def test_usage_error_is_one_line_and_keeps_earlier_results(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path, name: str
) -> None:
    words, body, message = usage_errors(tmp_path)[name]
    with pytest.raises(UsageError, match=message) as caught:
        cell(shell, words, body)
    assert caught.type is UsageError
    assert "\n" not in str(caught.value)
    cell(shell, "-m demo -o r")
    assert shell.user_ns["r"].finish_reason == "stop"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--as a/b", "cannot be an alias"),
        ("--as ''", "cannot be an alias"),
        ("--as demo", "cannot be an alias"),
        ("--save", "--save needs an alias: add --as ALIAS."),
    ],
)
def test_alias_that_cannot_be_one_is_refused_in_one_line(
    shell: InteractiveShell, script: ScriptedBackend, words: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        line(shell, f"load demo {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", sorted(checkpoints.BROKEN))
def test_broken_checkpoint_is_an_error_of_one_line(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path, broken: str
) -> None:
    folder = checkpoints.BROKEN[broken](tmp_path / "broken")
    with pytest.raises(UsageError, match=r"broken") as caught:
        line(shell, f"load {folder}")
    assert "\n" not in str(caught.value)
    assert len(default_session.current().pool) == 0


def test_checkpoint_with_remote_code_is_refused_by_name(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path
) -> None:
    folder = checkpoints.with_model_file(checkpoints.good(tmp_path / "evil"))
    with pytest.raises(UsageError, match=r"model_file.*evil\.py"):
        cell(shell, f"-m {folder}")
    assert not checkpoints.mark_of(folder).exists()


def test_hub_id_while_offline_is_an_error_of_one_line(
    shell: InteractiveShell, script: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client reads the variable once, when it is first imported: not now, for all tests.
    importlib.import_module("huggingface_hub.constants")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="some/model"):
        cell(shell, "-m some/model")


def test_images_for_a_text_model_are_refused(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path
) -> None:
    folder = checkpoints.good_text(tmp_path / "reader")
    with pytest.raises(UsageError, match="demo"):
        cell(shell, f"img -m {folder}")
    assert script.loads == 0


def test_model_failure_is_not_a_usage_error(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    script.error = RuntimeError("nan")
    with pytest.raises(GenerationError, match="RuntimeError: nan"):
        cell(shell, "-m demo")


def test_load_list_use_status_unload(
    shell: InteractiveShell,
    script: ScriptedBackend,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = checkpoints.good(tmp_path / "seer")
    line(shell, f"load {folder} --as seer")
    assert capsys.readouterr().out == "Loaded seer: vision, smolvlm, 96 B.\n"
    assert "seer" in repr(line(shell, "list"))
    line(shell, "use seer")
    assert capsys.readouterr().out == "Using seer (vision, smolvlm).\n"
    cell(shell, "")
    assert script.requests[0].model == "seer"
    assert "seer" in repr(line(shell, "status"))
    capsys.readouterr()
    line(shell, "unload seer")
    assert capsys.readouterr().out == "Unloaded seer: 96 B freed.\n"
    line(shell, "unload --all")
    assert capsys.readouterr().out == "No model is loaded.\n"
    with pytest.raises(UsageError, match="not loaded"):
        line(shell, "unload seer")
    line(shell, "cancel")
    assert capsys.readouterr().out == "Nothing is running.\n"


def test_help_shows_every_option(shell: InteractiveShell) -> None:
    for kind in ("cell", "line"):
        assert shell.find_magic("vision", kind).__doc__
    doc = shell.find_magic("vision", "cell").__doc__
    assert "%config VisionMagics." in doc
    of_the_pool = shell.find_magic("vision", "line").__doc__
    for trait in VisionMagics.class_traits(config=True):
        assert f" {trait}\n" in (of_the_pool if trait in POOL_TRAITS else doc)
    assert "--max-tokens" in doc


def test_extension_can_be_loaded_twice_and_unloads_completely(shell: InteractiveShell) -> None:
    shell.run_line_magic("reload_ext", "mlx_magic")
    before = len(shell.input_transformers_post)
    shell.run_line_magic("unload_ext", "mlx_magic")
    assert shell.find_cell_magic("vision") is None
    assert shell.find_line_magic("vision") is None
    assert len(shell.input_transformers_post) == before - 1
    shell.run_line_magic("load_ext", "mlx_magic")


def test_saved_alias_exists_in_the_next_kernel(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path
) -> None:
    file = AliasFile(tmp_path / "aliases.toml")
    default_session.current().names.file = file
    checkpoints.good(tmp_path / "seer")
    line(shell, "load ./seer --as s --save")
    assert AliasFile(file.path).targets == {"s": AliasTarget(str(tmp_path / "seer"))}
    line(shell, "load ./seer --as t")
    assert set(AliasFile(file.path).targets) == {"s"}


def test_load_accepts_pin_adapter_alias_and_save_together(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path
) -> None:
    now = default_session.current()
    now.names.file = file = AliasFile(tmp_path / "aliases.toml")
    checkpoints.good(tmp_path / "seer")
    lora = str(tmp_path / "lora")
    checkpoints.write_json(tmp_path / "lora" / "adapter_config.json", {"rank": 2})
    checkpoints.write_safetensors(tmp_path / "lora" / "adapters.safetensors")
    line(shell, "load ./seer --as plain")
    line(shell, "load ./seer --pin --adapter lora --as tuned --save")
    tuned, plain = now.pool["tuned"], now.pool["plain"]
    assert (tuned.pinned, tuned.adapter, tuned.path) == (True, lora, plain.path)
    assert (plain.pinned, plain.adapter) == (False, None)
    assert AliasFile(file.path).targets == {"tuned": AliasTarget(str(tmp_path / "seer"), lora)}
    # They are two: one leaves, the other stays.
    now.pool.budget = tuned.nbytes
    assert [model.name for model in now.pool] == ["tuned"]
    cell(shell, "-m tuned")
    assert script.loads == 2


def test_list_shows_loaded_local_and_named_models_and_whether_they_fit(
    shell: InteractiveShell,
    script: ScriptedBackend,
    tmp_path: Path,
) -> None:
    now = default_session.current()
    checkpoints.with_model_file(checkpoints.good(tmp_path / "models" / "evil"))
    checkpoints.good_text(tmp_path / "models" / "reader")
    checkpoints.write_json(tmp_path / "lora" / "adapter_config.json", {"rank": 2})
    checkpoints.write_safetensors(tmp_path / "lora" / "adapters.safetensors")
    now.names.file = AliasFile(tmp_path / "aliases.toml")
    now.names.file.path.write_text('far = "org/far"\nbad = 3\n')
    line(shell, "load demo --adapter lora")
    shell.run_line_magic("config", "VisionMagics.model_folders = ['models']")
    now.pool.budget = 350

    def rows() -> dict[str, str]:
        return {row[0]: row[5] for row in line(shell, "list").rows}

    seen = rows()
    assert seen["demo+lora"] == "loaded, with adapter lora"
    assert seen["demo"] == "bundled, fits"
    assert seen["reader"] == "on disk, fits"
    assert seen["evil"].startswith("unusable: wants to run its own code")
    assert seen["far"] == "not on this disk: org/far"
    assert "bad is not valid" in line(shell, "list").note

    line(shell, "load evil --trust-remote-code")
    assert rows()["evil"] == "loaded, remote code allowed"
    # Idle models would be evicted for it; pinned ones would not.
    assert rows()["reader"] == "on disk, fits"
    line(shell, "pin evil")
    line(shell, "pin demo+lora")
    assert rows()["reader"] == "on disk, does not fit now"
    line(shell, "unload demo+lora")
    assert rows()["demo+lora"].endswith("bundled with adapter lora")
    # Permission for one load does not apply to the next.
    line(shell, "unload evil")
    with pytest.raises(UsageError, match="wants to run its own code"):
        line(shell, "load evil")
    assert not checkpoints.mark_of(tmp_path / "models" / "evil").exists()


def test_models_command_describes_a_model_without_loading_it(
    shell: InteractiveShell, script: ScriptedBackend, tmp_path: Path
) -> None:
    config = {
        **checkpoints.VISION_CONFIG,
        "quantization": {"bits": 4, "group_size": 64},
        "text_config": {"max_position_embeddings": 4096},
        "mm_tokens_per_image": 256,
    }
    checkpoints.with_auto_map(checkpoints.good(tmp_path / "seer", config), "config.json", "AutoX")
    said = dict(line(shell, "models ./seer").rows)
    assert said["kind"] == "vision"
    assert said["quantized"] == "4-bit, group 64"
    assert said["size"] == "96 B"
    assert said["context"] == "4,096 tokens"
    assert said["image"].startswith("256 tokens")
    assert said["remote code"] == "config.json: auto_map AutoX = 'evil.Evil'"
    assert script.loads == 0
    with pytest.raises(UsageError, match="There is no model 'nothing'"):
        line(shell, "models nothing")


def test_a_repository_in_the_cache_is_listed_with_its_alias(
    shell: InteractiveShell,
    script: ScriptedBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    checkpoints.good(snapshot(tmp_path / "cache", "org/name"))
    now = default_session.current()
    now.names.file = AliasFile(tmp_path / "aliases.toml")
    now.names.file.save("q", AliasTarget("org/name"))
    assert "org/name, q" in {row[0] for row in line(shell, "list").rows}
    assert "org/name" in now.model_names
    line(shell, "load q")
    rows = [row for row in line(shell, "list").rows if "q" in row[0].split(", ")]
    assert [row[5] for row in rows] == ["loaded"]


def test_awaited_list_reads_the_disk_off_the_event_loop(
    shell: InteractiveShell, script: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    real = session.Session.on_disk

    def on_disk(self: session.Session) -> Any:
        threads.append(threading.current_thread())
        return real(self)

    monkeypatch.setattr(session.Session, "on_disk", on_disk)
    magics = shell.magics_manager.registry["VisionMagics"]
    table = asyncio.run(magics.awaited(True, "list"))
    assert "demo" in repr(table)
    assert threads
    assert threading.main_thread() not in threads


def test_awaited_cell_takes_its_images_before_it_waits(
    shell: InteractiveShell,
    script: ScriptedBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    where: list[tuple[str, bool]] = []
    main = threading.current_thread()

    def note(what: str) -> None:
        where.append((what, threading.current_thread() is main))

    real_read, real_start = files.read_file, session.Session.start

    def read_file(*args: Any) -> bytes:
        note("file")
        return real_read(*args)

    def start(*args: Any, **options: Any) -> Any:
        note("start")
        return real_start(*args, **options)

    def frames() -> Any:
        note("iterator")
        yield np.full((4, 6), 4095, np.uint16)

    monkeypatch.setattr(files, "read_file", read_file)
    monkeypatch.setattr(session.Session, "start", start)
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    shell.user_ns["frames"] = frames
    magics: Any = shell.magics_manager.registry["VisionMagics"]
    asyncio.run(magics.awaited(True, f"'{tmp_path}/*.png' frames() -o r", "What?"))
    assert where == [("iterator", True), ("file", False), ("file", False), ("start", True)]
    images = shell.user_ns["r"].images
    assert [image.size for image in images] == [(6, 4)] * 3
    assert images[2].note == "values up to 4095 read as 0..4095 (12-bit)"
    assert (
        "values up to 4095 read as 0..4095 (12-bit)"
        in render.bundle(shell.user_ns["r"])["text/html"]
    )


def test_no_normalize_keeps_the_numbers(shell: InteractiveShell, script: ScriptedBackend) -> None:
    shell.user_ns["deep"] = np.full((4, 6), 4095, np.uint16)
    cell(shell, "deep --no-normalize -o r")
    assert shell.user_ns["r"].images[0].pixels.getpixel((0, 0)) == (16,) * 3


def test_typed_names_find_files_that_look_the_same(
    shell: InteractiveShell,
    script: ScriptedBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (6, 4)).save("Screenshot 3.14\u202fPM.png")
    Image.new("RGB", (6, 4)).save("cafe\u0301.png")
    cell(shell, "'Screenshot 3.14 PM.png' caf\u00e9.png -o r")
    assert len(shell.user_ns["r"].images) == 2
    Image.new("RGB", (6, 4)).save("p\u0430per.png")
    with pytest.raises(UsageError, match=r"U\+0430 CYRILLIC SMALL LETTER A, not U\+0061"):
        cell(shell, "paper.png")


def test_pasted_base64_is_an_image(shell: InteractiveShell, script: ScriptedBackend) -> None:
    buffer = io.BytesIO()
    for kind in ("PNG", "JPEG"):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 4)).save(buffer, kind)
        text = base64.b64encode(buffer.getvalue()).decode()
        cell(shell, f"{text} 'data:image/png;base64,{text}' -o r")
        assert [image.size for image in shell.user_ns["r"].images] == [(6, 4)] * 2
