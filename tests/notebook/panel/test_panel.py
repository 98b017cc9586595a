"""The panel without a browser: user actions and messages to the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import GenerationError, RequestError
from mlx_magic.model_pool.unload import Unload
from mlx_magic.notebook.panel.panel import NO_WIDGETS, Panel
from mlx_magic.testing import ScriptedBackend
from tests.notebook.panel.conftest import WAIT, DrivenPanel, png, walk

AddModel = Callable[..., str]


def test_asking_shows_the_turn_and_the_answer(driven: DrivenPanel, script: ScriptedBackend) -> None:
    driven.ask("What is it?")
    driven.finish()
    assert driven.sent[0]["type"] == "turn"
    (answer,) = driven.answers()
    assert answer["state"] == "done"
    assert answer["blocks"] == ["<p>It is <strong>red</strong>.</p>\n"]
    assert answer["cell"] == "%%vision -m demo\nWhat is it?"
    assert "written" in answer["footer"]
    assert script.requests[0].prompt == "What is it?"
    assert driven.form.prompt.value == ""
    assert driven.panel.result is not None
    assert driven.panel.result.text == "It is **red**."


def test_an_end_that_could_not_be_sent_is_sent_again(
    driven: DrivenPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no page")

    driven.ask("What is it?")
    with monkeypatch.context() as broken:
        broken.setattr(driven.panel._actions.view, "send", fail)
        with pytest.raises(RuntimeError, match="no page"):
            driven.finish()
    assert not [sent for sent in driven.sent if sent["type"] == "answer"]
    driven.update()
    (answer,) = driven.answers()
    assert answer["state"] == "done"
    driven.update()
    assert len([sent for sent in driven.sent if sent["type"] == "answer"]) == 1


def test_controls_that_failed_to_update_are_shown_by_the_next_update(
    driven: DrivenPanel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no page")

    with monkeypatch.context() as broken:
        broken.setattr(driven.panel, "_refresh", fail)
        with pytest.raises(RuntimeError, match="no page"):
            driven.write("What is it?")
    assert driven.button("Run").disabled
    driven.update()
    assert not driven.button("Run").disabled


def test_new_page_gets_the_whole_conversation(driven: DrivenPanel) -> None:
    driven.ask("What is it?")
    driven.finish()
    state = driven.panel._actions.view.get_state()
    assert [turn["prompt"] for turn in state["turns"]] == ["What is it?"]


def test_run_is_disabled_without_a_prompt_and_says_why(driven: DrivenPanel) -> None:
    run = driven.button("Run")
    assert run.disabled
    assert run.tooltip == "Write a prompt first"
    driven.write("What?")
    assert not run.disabled
    driven.write("   ")
    assert run.disabled


def test_cancel_is_enabled_only_while_an_answer_runs(
    driven: DrivenPanel, script: ScriptedBackend
) -> None:
    assert driven.button("Cancel").disabled
    script.hold = "decode"
    driven.ask("What?")
    assert driven.button("Run").disabled
    driven.click("Cancel")
    driven.finish()
    assert driven.answers()[0]["state"] == "cancelled"
    assert driven.button("Cancel").tooltip == "Nothing is running"
    driven.write("Again?")
    assert not driven.button("Run").disabled


def test_keyboard_shortcuts_run_and_cancel(driven: DrivenPanel, script: ScriptedBackend) -> None:
    script.hold = "decode"
    driven.page("run", prompt="Typed faster than sent")
    assert driven.panel.turns[0].prompt == "Typed faster than sent"
    driven.tray._handle_custom_msg({"type": "cancel"}, [])
    driven.finish()
    assert driven.answers()[0]["state"] == "cancelled"


def test_ctrl_enter_without_a_prompt_says_what_is_missing(driven: DrivenPanel) -> None:
    driven.page("run", prompt=" ")
    assert "Write a prompt first" in driven.hint
    assert driven.panel.turns == ()


def test_a_failed_answer_shows_its_reason(driven: DrivenPanel, script: ScriptedBackend) -> None:
    script.error = GenerationError("demo failed: no luck.", model="demo")
    driven.ask("What?")
    driven.finish()
    assert driven.answers()[0]["error"] == "demo failed: no luck."
    assert not driven.panel._turns.running


def test_missing_model_fails_in_its_answer(driven: DrivenPanel) -> None:
    turn = driven.panel._ask("What?", ["no/such/model/at/all"], ())
    driven.finish()
    assert "There is no" in turn.answers[0].error


class TestImages:
    def test_upload_is_opened_and_sent_with_the_question(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        driven.upload("red.png", png())
        (shown,) = driven.tray.images
        assert (shown["name"], shown["width"], shown["height"]) == ("red.png", 40, 20)
        assert shown["thumb"].startswith("data:image/")
        driven.ask("What?")
        driven.finish()
        assert [image.size for image in script.requests[0].images] == [(40, 20)]
        assert driven.tray.images == []
        assert driven.panel._turns.state()[0]["images"][0]["name"] == "red.png"

    def test_upload_chunks_are_joined(self, driven: DrivenPanel) -> None:
        data = png(size=(300, 200))
        half = len(data) // 2
        fields: dict[str, Any] = {"id": "u", "name": "a.png", "size": len(data), "pieces": 2}
        driven.page("file", **fields, piece=0, data=data[:half])
        assert driven.tray.opening[0]["fraction"] == pytest.approx(half / len(data))
        assert "opened" in driven.form.hint.value or driven.button("Run").disabled
        driven.page("file", **fields, piece=1, data=data[half:])
        driven.opened()
        assert [p["width"] for p in driven.tray.images] == [300]
        assert driven.tray.opening == []

    def test_file_that_is_not_an_image_is_an_error_that_can_be_dismissed(
        self, driven: DrivenPanel
    ) -> None:
        driven.upload("notes.txt", b"hello there")
        (problem,) = driven.tray.problems
        assert problem["text"].startswith("notes.txt ")
        assert "\n" not in problem["text"]
        driven.page("dismiss", id=problem["id"])
        assert driven.tray.problems == []

    def test_images_can_be_removed_and_reordered(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        for at, colour in enumerate(("red", "green", "blue")):
            driven.upload(f"{colour}.png", png(colour), key=f"u{at}")
        driven.page("order", ids=["u2", "u0", "u1"])
        driven.page("remove", id="u0")
        assert [p["name"] for p in driven.tray.images] == ["blue.png", "green.png"]
        driven.ask("What?")
        driven.finish()
        assert [i.source for i in script.requests[0].images] == ["blue.png", "green.png"]

    def test_notebook_variable_can_be_added(
        self, driven: DrivenPanel, shell: InteractiveShell
    ) -> None:
        assert "img" in driven.form.word.options
        driven.form.word.value = "img"
        driven.update()
        driven.click("Add")
        driven.opened()
        assert [p["name"] for p in driven.tray.images] == ["img"]
        driven.ask("What?")
        driven.finish()
        assert driven.answers()[0]["cell"] == "%%vision img -m demo\nWhat?"

    def test_variables_are_listed_again_after_each_cell(
        self, driven: DrivenPanel, shell: InteractiveShell
    ) -> None:
        shell.run_cell("other = img.copy()")
        driven.update()
        assert set(driven.form.word.options) == {"img", "other"}

    def test_unknown_image_word_is_reported(self, driven: DrivenPanel) -> None:
        driven.form.word.value = "nosuchthing"
        driven.update()
        driven.click("Add")
        assert "nosuchthing" in driven.hint
        assert driven.form.word.value == "nosuchthing"

    def test_text_model_refuses_images(
        self, driven: DrivenPanel, add_model: AddModel, script: ScriptedBackend
    ) -> None:
        name = add_model("words", kind="text")
        driven.session.pool.load(name)
        driven.update()
        driven.form.model.value = name
        driven.update()
        assert "cannot see images" in driven.tray.why_not
        driven.upload("red.png", png())
        driven.write("What?")
        assert driven.button("Run").disabled
        assert "words cannot see images" in driven.button("Run").tooltip
        driven.form.model.value = "demo"
        driven.update()
        assert not driven.button("Run").disabled


class TestConversation:
    def test_follow_up_includes_earlier_turns(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        driven.upload("red.png", png())
        driven.ask("What is it?")
        driven.finish()
        driven.ask("And now?")
        driven.finish()
        (before,) = script.requests[1].history
        assert (before.prompt, before.answer) == ("What is it?", "It is **red**.")
        assert [image.source for image in before.images] == ["red.png"]

    def test_standalone_question_omits_earlier_turns(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        driven.ask("One?")
        driven.finish()
        driven.form.follow.value = False
        driven.ask("Two?")
        driven.finish()
        driven.form.follow.value = True
        driven.ask("Three?")
        driven.finish()
        assert [len(request.history) for request in script.requests] == [0, 0, 1]

    def test_cancelled_answer_is_not_part_of_the_history(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        script.hold = "prefill"
        driven.ask("One?")
        driven.click("Cancel")
        driven.finish()
        script.hold = None
        driven.ask("Two?")
        driven.finish()
        assert script.requests[-1].history == ()

    def test_edit_restores_a_turn_and_replaces_later_ones(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        driven.upload("red.png", png())
        for prompt in ("One?", "Two?", "Three?"):
            driven.ask(prompt)
            driven.finish()
        driven.write("A draft")
        driven.page("edit", turn=driven.panel.turns[0].id)
        assert driven.form.prompt.value == "One?"
        assert [p["name"] for p in driven.tray.images] == ["red.png"]
        assert "Editing turn 1" in driven.hint
        driven.ask("One, again?")
        driven.finish()
        assert [turn.prompt for turn in driven.panel.turns] == ["One, again?"]
        assert [image.source for image in script.requests[-1].images] == ["red.png"]
        assert script.requests[-1].history == ()
        assert driven.form.prompt.value == "A draft"

    def test_edit_can_be_abandoned(self, driven: DrivenPanel) -> None:
        driven.ask("One?")
        driven.finish()
        driven.write("A draft")
        driven.page("edit", turn=driven.panel.turns[0].id)
        driven.click("Stop editing")
        assert driven.form.prompt.value == "A draft"
        assert len(driven.panel.turns) == 1

    def test_save_stores_the_result_in_a_variable(
        self, driven: DrivenPanel, shell: InteractiveShell
    ) -> None:
        driven.ask("One?")
        driven.finish()
        turn = driven.panel.turns[0].id
        driven.page("save", turn=turn, index=0, name=" answer ", replace=False)
        assert isinstance(shell.user_ns["answer"], VisionResult)
        assert driven.sent[-1]["ok"]
        assert driven.answers()[0]["saved"] == "answer"

    def test_save_asks_before_it_replaces(
        self, driven: DrivenPanel, shell: InteractiveShell
    ) -> None:
        driven.ask("One?")
        driven.finish()
        turn = driven.panel.turns[0].id
        image = shell.user_ns["img"]
        driven.page("save", turn=turn, index=0, name="img", replace=False)
        assert driven.sent[-1]["ask"] == "replace"
        assert shell.user_ns["img"] is image
        driven.page("save", turn=turn, index=0, name="img", replace=True)
        assert isinstance(shell.user_ns["img"], VisionResult)

    @pytest.mark.parametrize("name", ["", "1st", "class", "two words", "print"])
    def test_invalid_variable_name_is_refused_next_to_its_field(
        self, driven: DrivenPanel, shell: InteractiveShell, name: str
    ) -> None:
        driven.ask("One?")
        driven.finish()
        before = dict(shell.user_ns)
        driven.page("save", turn=driven.panel.turns[0].id, index=0, name=name, replace=True)
        assert driven.sent[-1]["type"] == "said"
        assert not driven.sent[-1]["ok"]
        assert shell.user_ns == before

    def test_copied_cell_has_its_image_and_runs(
        self, driven: DrivenPanel, shell: InteractiveShell, script: ScriptedBackend
    ) -> None:
        driven.upload("my receipt.png", png())
        driven.ask("What?")
        driven.finish()
        cell = driven.answers()[0]["cell"]
        assert cell == "%%vision my_receipt -m demo\nWhat?"
        driven.page("cell_used", turn=driven.panel.turns[0].id, index=0)
        assert "my_receipt" in driven.sent[-1]["text"]
        assert shell.run_cell(cell).success
        assert script.requests[0].images[0].digest == script.requests[1].images[0].digest

    def test_export_sends_a_file(self, driven: DrivenPanel) -> None:
        driven.ask("What is it?")
        driven.finish()
        driven.page("export", format="json")
        assert driven.sent[-1]["name"].endswith(".json")
        assert json.loads(driven.sent[-1]["text"])["turns"][0]["prompt"] == "What is it?"
        driven.page("export", format="markdown")
        assert driven.sent[-1]["name"].endswith(".md")
        assert "It is **red**." in driven.sent[-1]["text"]

    def test_new_conversation_cancels_and_clears(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        script.hold = "decode"
        driven.ask("One?")
        generation = driven.panel.turns[0].answers[0].generation
        assert generation is not None
        driven.click("New conversation")
        assert driven.panel.turns == ()
        assert generation.future.result(timeout=WAIT).finish_reason == "cancelled"

    def test_action_on_a_removed_turn_is_reported(self, driven: DrivenPanel) -> None:
        driven.page("edit", turn="t99")
        assert "no longer exists" in driven.hint
        driven.page("refresh", turn="t99")
        assert driven.sent[-1] == {"type": "drop", "ids": ["t99"]}


class TestCompare:
    def test_two_models_answer_side_by_side(
        self, driven: DrivenPanel, add_model: AddModel, script: ScriptedBackend
    ) -> None:
        other = add_model("other")
        driven.update()
        driven.form.compare.value = True
        driven.form.others[0].value = other
        driven.ask("What?")
        driven.finish()
        assert [answer["model"] for answer in driven.answers()] == ["demo", "other"]
        assert [answer["state"] for answer in driven.answers()] == ["done", "done"]
        assert sorted(request.model for request in script.requests) == ["demo", "other"]

    def test_one_answer_can_be_cancelled_while_the_other_continues(
        self, driven: DrivenPanel, add_model: AddModel, script: ScriptedBackend
    ) -> None:
        script.hold = "decode"
        turn = driven.panel._ask("What?", ["demo", add_model("other")], ())
        driven.page("cancel", turn=turn.id, index=1)
        generation = turn.answers[1].generation
        assert generation is not None
        generation.future.result(timeout=WAIT)
        driven.update()
        assert [a["state"] for a in driven.answers()] == ["running", "cancelled"]
        script.release()
        driven.finish()
        assert driven.answers()[0]["state"] == "done"

    def test_cancel_stops_all_compared_answers(
        self, driven: DrivenPanel, add_model: AddModel, script: ScriptedBackend
    ) -> None:
        script.hold = "decode"
        driven.panel._ask("What?", ["demo", add_model("other")], ())
        driven.update()
        driven.click("Cancel")
        driven.finish()
        assert {a["state"] for a in driven.answers()} == {"cancelled"}

    def test_same_model_chosen_twice_is_asked_once(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        driven.form.compare.value = True
        driven.form.others[0].value = "demo"
        driven.ask("What?")
        driven.finish()
        assert len(script.requests) == 1

    def test_comparing_four_models_is_refused(self, driven: DrivenPanel) -> None:
        with pytest.raises(RequestError, match="up to 3"):
            driven.panel._ask("What?", ["a", "b", "c", "d"], ())


class TestModels:
    def test_panel_shows_models_loaded_by_a_cell(
        self, driven: DrivenPanel, shell: InteractiveShell
    ) -> None:
        assert "mlxm-loaded" not in driven.models
        shell.run_line_magic("vision", "load demo")
        driven.update()
        assert "mlxm-loaded" in driven.models
        assert driven.button("Unload").tooltip == "Unload demo"

    def test_model_can_be_loaded_and_unloaded(
        self, driven: DrivenPanel, add_model: AddModel
    ) -> None:
        name = add_model("other")
        driven.panel._models.load(name)
        for load in list(driven.session.running):
            load.future.result(timeout=WAIT)
        driven.update()
        assert name in driven.session.pool
        assert "Loaded other" in driven.models
        driven.click("Unload")
        driven.session.engine.call(lambda: None).result(timeout=WAIT)
        driven.update()
        assert len(driven.session.pool) == 0
        assert "Unloaded other" in driven.models

    def test_a_load_shows_its_progress_and_can_be_cancelled(
        self, driven: DrivenPanel, add_model: AddModel, script: ScriptedBackend
    ) -> None:
        script.hold = "loading"
        name = add_model("other")
        driven.panel._models.load(name)
        (load,) = driven.session.running
        driven.update()
        driven.click("Cancel load")
        assert load.future.result(timeout=WAIT) is None
        driven.update()
        assert "Cancelled: other was not loaded." in driven.models

    def test_cancel_of_the_panel_stops_its_loads(
        self, driven: DrivenPanel, add_model: AddModel, script: ScriptedBackend
    ) -> None:
        script.hold = "loading"
        driven.panel._models.load(add_model("other"))
        (load,) = driven.session.running
        driven.update()
        driven.click("Cancel")
        assert load.future.result(timeout=WAIT) is None

    def test_unknown_model_name_is_an_error_of_one_line(self, driven: DrivenPanel) -> None:
        section = driven.panel._models.section
        assert section.load_other.disabled
        section.name.value = "./nowhere"
        section.load_other.click()
        for load in list(driven.session.running):
            load.future.exception(timeout=WAIT)
        driven.update()
        assert "There is no folder ./nowhere" in driven.models
        assert section.name.value == "./nowhere"

    def test_an_unload_waits_for_the_answer_and_can_be_cancelled(
        self, driven: DrivenPanel, script: ScriptedBackend
    ) -> None:
        script.hold = "decode"
        driven.ask("One?")
        generation = driven.panel.turns[0].answers[0].generation
        assert generation is not None
        while not generation.snapshot().text:
            generation.token.wait(0.01)
        driven.update()
        driven.click("Unload")
        assert "loaded, in use, unloading" in driven.models
        assert "Unloading demo once no request uses it" in driven.models
        driven.click("Cancel unload")
        assert "Cancelled: demo was not unloaded." in driven.models
        driven.click("Unload")
        (unload,) = [work for work in driven.session.running if isinstance(work, Unload)]
        driven.click("Cancel")
        driven.finish()
        assert unload.future.result(timeout=WAIT)
        driven.update()
        assert len(driven.session.pool) == 0
        assert "Unloaded demo" in driven.models

    def test_model_can_be_pinned_and_unpinned(
        self, driven: DrivenPanel, shell: InteractiveShell
    ) -> None:
        shell.run_line_magic("vision", "load demo --as tiny")
        driven.update()
        driven.click("Pin")
        assert driven.session.pool["tiny"].pinned
        assert "loaded, pinned" in driven.models
        assert "Pinned tiny." in driven.models
        # Changes by a cell are shown, too.
        shell.run_line_magic("vision", "unpin tiny")
        driven.update()
        assert "pinned" not in driven.models
        shell.run_line_magic("vision", "pin tiny")
        driven.update()
        driven.click("Unpin")
        assert not driven.session.pool["tiny"].pinned

    def test_only_loaded_models_have_a_pin_button_and_it_is_removed_on_unload(
        self, driven: DrivenPanel
    ) -> None:
        def pins() -> int:
            return sum(getattr(w, "description", "") == "Pin" for w in walk(driven.panel.box))

        driven.panel._models.scan_disk()
        for thread in threading.enumerate():
            if thread.name == "mlx-magic-disk":
                thread.join(WAIT)
        driven.update()
        assert pins() == 0
        driven.session.pool.submit_load("demo").future.result(timeout=WAIT)
        driven.update()
        assert pins() == 1
        driven.button("Pin")
        driven.session.pool.unload("demo")
        driven.update()
        assert pins() == 0
        assert "mlxm-bundled" in driven.models
        # Pinning a model whose row is gone is reported.
        driven.panel._models.pin("demo", True)
        driven.update()
        assert "demo is not loaded" in driven.models


def test_status_line_shows_what_a_cell_does(driven: DrivenPanel, script: ScriptedBackend) -> None:
    assert "idle" in driven.panel._status.value
    script.hold = "decode"
    generation = driven.session.start(GenerationRequest("From a cell?"))
    while not generation.snapshot().text:
        generation.token.wait(0.01)
    assert driven.update()
    assert "demo: writing" in driven.panel._status.value
    generation.cancel()
    generation.future.result(timeout=WAIT)
    driven.update()
    assert "idle" in driven.panel._status.value


def test_two_panels_do_not_cancel_each_other(
    driven: DrivenPanel, shell: InteractiveShell, script: ScriptedBackend
) -> None:
    script.hold = "decode"
    other = DrivenPanel(shell)
    driven.ask("One?")
    other.ask("Two?")
    driven.click("Cancel")
    driven.finish()
    assert driven.answers()[0]["state"] == "cancelled"
    assert other.answers()[0]["state"] == "running"
    other.click("Cancel")
    other.finish()
    other.panel.close()


def test_an_idle_panel_sends_nothing_and_needs_no_thread(driven: DrivenPanel) -> None:
    sent: list[str] = []
    for widget in [driven.form.run, driven.form.model, driven.panel._status, driven.tray]:
        widget.observe(lambda change: sent.append(change["name"]))
    for _ in range(5):
        assert not driven.update()
    assert sent == []


def test_the_options_reach_the_request(driven: DrivenPanel, script: ScriptedBackend) -> None:
    options = driven.form.options
    options.system.value = "Be brief."
    options.max_tokens.value = 7
    options.default_sampling.value = False
    options.temperature.value = 0.5
    options.top_k.value = 5
    options.seed.value = "3"
    driven.ask("What?")
    driven.finish()
    request = script.requests[0]
    assert request.system == "Be brief."
    assert request.sampling.max_tokens == 7
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 5)
    assert request.sampling.seed == 3


def test_a_schema_makes_the_answer_an_object(
    driven: DrivenPanel, script: ScriptedBackend, shell: InteractiveShell
) -> None:
    script.pieces = ["[1, ", "2]"]
    driven.form.options.schema.value = "list[int]"
    driven.ask("Which?")
    driven.finish()
    [answer] = driven.panel.turns[0].answers
    assert answer.result is not None
    assert (answer.result.data, answer.result.complete) == ([1, 2], True)
    assert script.requests[0].schema is not None
    script.pieces = ['{"n": 3}']
    driven.form.options.schema.value = "n: int"
    driven.ask("How many?")
    driven.finish()
    assert "<th>n</th><td>3</td>" in "".join(driven.answers()[0]["blocks"])
    driven.form.options.schema.value = "list[nothing]"
    driven.ask("Again?")
    assert "is not defined" in driven.hint
    assert len(driven.panel.turns) == 2


def test_settings_without_a_control_are_used_and_shown(
    shell: InteractiveShell, script: ScriptedBackend
) -> None:
    for setting in (
        "min_p = 0.1", "repetition_penalty = 1.2", "stop = ['END', 'Q:']", "timeout = 30.0",
        "max_pixels = 123456", "temperature = 3.5", "top_p = 0.01", "format = 'json'",
    ):  # fmt: skip
        shell.run_line_magic("config", f"VisionMagics.{setting}")
    driven = DrivenPanel(shell)
    assert driven.form.options.others.value == (
        "also: min_p 0.1, repetition_penalty 1.2, stop 'END' 'Q:', timeout 30.0"
    )
    assert driven.form.options.max_pixels.label == "at most 123,456 pixels"
    driven.ask("What?")
    driven.finish()
    [request] = script.requests
    sampling = request.sampling
    assert (sampling.min_p, sampling.repetition_penalty) == (0.1, 1.2)
    assert (sampling.temperature, sampling.top_p) == (3.5, 0.01)
    assert (sampling.stop, request.timeout, request.format) == (("END", "Q:"), 30.0, "markdown")
    # Options equal to the notebook's defaults are not repeated.
    [answer] = driven.answers()
    assert answer["cell"] == "%%vision -m demo -f markdown\nWhat?"

    # An edited turn brings its own settings back.
    shell.run_line_magic("config", "VisionMagics.timeout = None")
    driven.panel.edit(driven.panel.turns[0].id)
    assert driven.form.options.read() == driven.panel.turns[0].settings
    driven.panel.close()


@pytest.mark.parametrize(
    "settings",
    [{"top_p": 0.9}, {"top_p": 1.0, "top_k": 0}, {"temperature": 0.7}, {"top_k": 0}, {"top_k": 5}],
)
def test_sampling_settings_reach_the_request_unchanged(
    settings: dict[str, float], shell: InteractiveShell, script: ScriptedBackend
) -> None:
    for name, value in settings.items():
        shell.run_line_magic("config", f"VisionMagics.{name} = {value}")
    driven = DrivenPanel(shell)
    driven.ask("What?")
    driven.finish()
    assert script.requests[0].sampling == Sampling(**settings)  # type: ignore[arg-type]
    # A control that is changed takes precedence.
    driven.form.options.temperature.value = 0.25
    driven.ask("And now?")
    driven.finish()
    assert script.requests[1].sampling.temperature == 0.25
    driven.panel.close()


def test_invalid_seed_keeps_the_prompt(driven: DrivenPanel) -> None:
    driven.form.options.seed.value = "dice"
    driven.ask("What?")
    assert "The seed is" in driven.hint
    assert driven.form.prompt.value == "What?"


def test_panel_can_be_asked_from_python(driven: DrivenPanel, shell: InteractiveShell) -> None:
    result = driven.panel.ask("What?", images=shell.user_ns["img"])
    assert result is not None
    assert result.text == "It is **red**."
    assert len(driven.panel.turns) == 1


def test_panel_display_is_the_same_each_time(shell: InteractiveShell, script: Any) -> None:
    panel = shell.run_line_magic("vision", "panel")
    assert isinstance(panel, Panel)
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == NO_WIDGETS
    assert "application/vnd.jupyter.widget-view+json" in bundle
    panel.close()


def test_cell_that_runs_again_closes_its_previous_panel(
    shell: InteractiveShell, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {"metadata": {"cellId": "one"}}
    monkeypatch.setattr(shell, "get_parent", lambda: cell, raising=False)
    first = shell.run_line_magic("vision", "panel")
    second = shell.run_line_magic("vision", "panel")
    assert first.box.comm is None
    assert second.box.comm is not None
    cell["metadata"]["cellId"] = "two"
    third = shell.run_line_magic("vision", "panel")
    assert second.box.comm is not None
    second.close()
    third.close()


def test_a_closed_panel_leaves_no_widget(shell: InteractiveShell, script: Any) -> None:
    from ipywidgets.widgets.widget import _instances

    before = set(_instances)
    panel = Panel(ipython=shell)
    panel.close()
    assert set(_instances) <= before


def test_keystrokes_received_after_their_question_are_cleared(driven: DrivenPanel) -> None:
    driven.page("run", prompt="What is it?")
    driven.write("What is it?")
    assert driven.form.prompt.value == ""
    driven.write("What is it?")
    assert driven.form.prompt.value == "What is it?"


def test_update_after_close_changes_nothing(driven: DrivenPanel, add_model: AddModel) -> None:
    driven.panel.close()
    add_model("late")
    assert not driven.update()


def test_ask_from_python_does_not_change_the_controls(
    driven: DrivenPanel, shell: InteractiveShell
) -> None:
    driven.ask("One?")
    driven.finish()
    driven.upload("red.png", png())
    driven.write("A draft")
    driven.page("edit", turn=driven.panel.turns[0].id)
    with pytest.raises(RequestError):
        driven.panel.ask(" ", images=shell.user_ns["img"])
    driven.panel.ask("Two?", images=shell.user_ns["img"])
    driven.update()
    assert [turn.prompt for turn in driven.panel.turns] == ["One?", "Two?"]
    assert driven.form.prompt.value == "One?"
    driven.click("Stop editing")
    assert driven.form.prompt.value == "A draft"
    assert [p["name"] for p in driven.tray.images] == ["red.png"]
