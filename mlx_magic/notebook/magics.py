"""The magics ``%%vision`` and ``%vision``: parse, call, translate errors."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.display import display
from IPython.utils.capture import capture_output
from traitlets import Any as Any_
from traitlets import Bool, Enum, Float, Int, List, TraitError, Unicode, Union, observe, validate

from mlx_magic.argument_checks import plain, plain_flag
from mlx_magic.data.choices import read_choices
from mlx_magic.data.mapping.run import start as start_map
from mlx_magic.engine.request import GenerationRequest
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import RequestError
from mlx_magic.images.opening import TakenImages, take_images
from mlx_magic.interrupts import Interrupt, deferred
from mlx_magic.model_pool.budget import check_setting, check_ttl
from mlx_magic.notebook import pool_commands
from mlx_magic.notebook.display import pool_messages, render, terminal
from mlx_magic.notebook.kernel import click_routing
from mlx_magic.notebook.kernel.cell_errors import one_line_errors
from mlx_magic.notebook.kernel.running_cell import RunningCell
from mlx_magic.notebook.magic_line import commands, template
from mlx_magic.notebook.magic_line.expressions import (
    Evaluate,
    evaluator,
    expression_or_text,
    variables_in_scope,
)
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.options import (
    CellArguments,
    asks_for_help,
    evaluated,
    help_text,
    parse_cell,
)
from mlx_magic.notebook.maps import cell as map_cell
from mlx_magic.notebook.maps import table as map_table
from mlx_magic.options import OPTIONS, RequestOption, Settings

if TYPE_CHECKING:
    from mlx_magic.data.mapping.plan import MapPlan
    from mlx_magic.data.mapping.result import MapResult
    from mlx_magic.data.mapping.run import MapTask
    from mlx_magic.engine.generation import Generation
    from mlx_magic.session import Session

DEMO_NOTE = "This is the bundled demo model; choose another with -m MODEL or %vision use MODEL."


class _Integer(Int[Any, Any]):
    """A whole number, also one of NumPy; kept as an int."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value as an int, or raise TraitError."""
        return super().validate(obj, plain(value))


class _Number(Float[Any, Any]):
    """A number, also one of NumPy; kept as a float."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value as a float, or raise TraitError."""
        return super().validate(obj, plain(value))


class _Switch(Bool[Any, Any]):
    """True or False, also those of NumPy; kept as a bool."""

    def validate(self, obj: Any, value: Any) -> Any:
        """Return the value as a bool, or raise TraitError."""
        return super().validate(obj, plain_flag(value))


_TRAITS: dict[str, Any] = {
    "text": Unicode,
    "integer": _Integer,
    "number": _Number,
    "switch": _Switch,
    "optional switch": _Switch,
    "flag": _Switch,
    "expression": Any_,
}


def _trait(option: RequestOption) -> Any:
    """Return the trait that holds the default of an option."""
    optional = option.default is None
    off = "Off: " if option.kind == "switch" else ""
    unset = " None: the checkpoint's default." if optional and option.target == "sampling" else ""
    text = f"{off}{option.help[0].upper()}{option.help[1:]}.{unset}"
    if option.kind == "texts":
        trait: Any = List(Unicode(), help=text)
    elif option.kind == "choice":
        trait = Enum(option.choices, option.default, help=text)
    elif option.kind == "text or off":
        trait = Union([Bool(), Unicode()], default_value=option.default, allow_none=True, help=text)
    else:
        trait = _TRAITS[option.kind](option.default, allow_none=optional, help=text)
    return trait.tag(config=True)


@magics_class
class VisionMagics(Magics):
    """The magics; each option of ``%%vision`` has a trait here."""

    # A trait for each option of a question.
    model: str | None
    journal: str | bool | None
    locals().update({option.name: _trait(option) for option in OPTIONS})

    memory_budget = Any_(None, help="Memory for models: '8 GB', 0.6 of it, None: no limit.").tag(
        config=True
    )
    schema_prompt = Unicode(
        None, allow_none=True, help="How the model is told of a {schema}. None: the default."
    ).tag(config=True)
    idle_ttl = _Number(None, allow_none=True, help="Seconds until an idle model is unloaded.").tag(
        config=True
    )
    model_folders = List(Unicode(), help="Folders with models, besides the Hub's cache.").tag(
        config=True
    )

    def __init__(self, shell: Any, **kwargs: Any) -> None:
        super().__init__(shell, **kwargs)
        self._ip: Any = shell
        self._demo_noted = False

    @observe("model")
    def _model_chosen(self, change: Any) -> None:
        """Make the model the default of `mlx_magic.ask`, too."""
        _session().default_model = change["new"]

    @validate("memory_budget", "idle_ttl")
    def _pool_setting(self, proposal: Any) -> Any:
        """Validate a setting of the pool; an invalid one raises TraitError."""
        check = {"memory_budget": check_setting, "idle_ttl": check_ttl}[proposal["trait"].name]
        try:
            return check(proposal["value"])
        except RequestError as error:
            raise TraitError(str(error)) from None

    @validate("choices")
    def _choices_given(self, proposal: Any) -> Any:
        """Validate the default choices; what are none raises TraitError."""
        try:
            return read_choices(proposal["value"])
        except RequestError as error:
            raise TraitError(str(error)) from None

    @observe("memory_budget")
    def _budget_chosen(self, change: Any) -> None:
        for line in pool_messages.budget(*_session().pool.set_budget(change["new"])):
            terminal.say(line)

    @observe("idle_ttl")
    def _ttl_chosen(self, change: Any) -> None:
        _session().pool.idle_ttl = change["new"]

    @observe("model_folders")
    def _folders_chosen(self, change: Any) -> None:
        _session().names.look_in(change["new"])

    @no_var_expand
    @cell_magic("vision")  # type: ignore[arg-type]
    def vision_cell(self, line: str, cell: str) -> VisionResult | MapResult | None:
        """``%%vision``; its help is in help_text."""
        with one_line_errors():
            if asks_for_help(line):
                terminal.say(help_text("cell"))
                return None
            arguments = parse_cell(line, cell, self.defaults())
            if arguments.settings.map:
                return self._map_blocking(arguments)
            question = self._question(arguments)
            question.images.read()
            # The request starts and ends within this block, so that an interrupt cannot leave it
            # running.
            with deferred() as interrupt:
                active = self._start(question)
                self._running_cell(active, awaited=False, first=False).blocking(interrupt)
                if not interrupt.came:
                    return self._finish(active)
                self._store_partial(active)
        return None

    @no_var_expand
    @line_magic("vision")  # type: ignore[arg-type]
    def vision_line(self, line: str) -> Any:
        """``%vision``; its help is in help_text."""
        with one_line_errors():
            command = commands.parse_line(line)
            if not isinstance(command, pool_commands.WAITING_COMMANDS):
                return self._run(command)
            return pool_commands.blocking(self._ip, _session(), command)

    async def awaited(self, first: bool, line: str, cell: str | None = None) -> Any:
        """Run a cell that begins with a magic; such cells are rewritten to call this."""
        with one_line_errors():
            if cell is not None and asks_for_help(line):
                terminal.say(help_text("cell"))
                return None
            if cell is None:
                command = commands.parse_line(line)
                if isinstance(command, commands.ListCommand | commands.ModelsCommand):
                    # These read many files or query the Hub.
                    with deferred():
                        loop = asyncio.get_running_loop()
                        return await loop.run_in_executor(None, self._run, command)
                if not isinstance(command, pool_commands.WAITING_COMMANDS):
                    return self._run(command)
                return await pool_commands.awaited(self._ip, _session(), command, alone=first)
            arguments = parse_cell(line, cell, self.defaults())
            if arguments.settings.map:
                return await self._map_awaited(arguments, first=first)
            question = self._question(arguments)
            with deferred() as interrupt:
                if question.images.has_files:
                    # Many files, or a slow disk, must not block the event loop.
                    await click_routing.in_thread(question.images.read, interrupt)
                    if interrupt.came:
                        return None
                active = self._start(question)
                await self._running_cell(active, awaited=True, first=first).awaited(interrupt)
                if not interrupt.came:
                    await self._render_in_thread(active, interrupt)
                if not interrupt.came:
                    return self._finish(active)
                self._store_partial(active)
        return None

    def _running_cell(
        self, active: _ActiveRequest, *, awaited: bool, first: bool
    ) -> RunningCell[VisionResult]:
        return RunningCell(
            self._ip,
            active.generation,
            awaited=awaited,
            alone=first and not active.has_output,
            show=active.arguments.settings.show,
        )

    def _map_blocking(self, arguments: CellArguments) -> MapResult | None:
        """Run a cell with ``--map`` that blocks."""
        plan, _ = self._map_plan(arguments)
        with deferred() as interrupt:
            task = start_map(_session(), plan)
            show = arguments.settings.show
            map_cell.running_cell(self._ip, task, awaited=False, show=show).blocking(interrupt)
            if not interrupt.came:
                return self._map_finish(arguments, task)
            self._map_partial(arguments, task)
        return None

    async def _map_awaited(self, arguments: CellArguments, *, first: bool) -> MapResult | None:
        """Run a cell with ``--map`` that awaits."""
        plan, has_output = self._map_plan(arguments)
        with deferred() as interrupt:
            task = start_map(_session(), plan)
            running = map_cell.running_cell(
                self._ip,
                task,
                awaited=True,
                alone=first and not has_output,
                show=arguments.settings.show,
            )
            await running.awaited(interrupt)
            if not interrupt.came:
                return self._map_finish(arguments, task)
            self._map_partial(arguments, task)
        return None

    def _map_plan(self, arguments: CellArguments) -> tuple[MapPlan, bool]:
        """List the images and fill the prompt; returns also whether an expression had output."""
        with contextlib.ExitStack() as cleanup, capture_output() as captured:
            cleanup.callback(captured.show)
            variables = variables_in_scope(self._ip)
            evaluate = evaluator(self._ip, variables)
            settings = evaluated(arguments.settings, variables, evaluate)
            settings = self._with_schema(settings, variables, evaluate)
            plan = map_cell.plan_of(arguments, settings, variables, evaluate, terminal.say)
        return plan, bool(captured.stdout or captured.stderr or captured.outputs)

    def _map_finish(self, arguments: CellArguments, task: MapTask) -> MapResult | None:
        result = task.future.result()
        if arguments.settings.output is not None:
            self._ip.user_ns[arguments.settings.output] = result
        if arguments.settings.show and getattr(self._ip, "kernel", None) is not None:
            return result
        if arguments.settings.show:
            terminal.say(map_table.bundle(result)["text/plain"])
        self._ip.displayhook.update_user_ns(result)
        return None

    def _map_partial(self, arguments: CellArguments, task: MapTask) -> None:
        """Store and show the rows of an interrupted map."""
        if arguments.settings.output is not None:
            self._ip.user_ns[arguments.settings.output] = task.result
        self._ip.displayhook.update_user_ns(task.result)
        if arguments.settings.show and getattr(self._ip, "kernel", None) is not None:
            display(task.result)

    def _question(self, arguments: CellArguments) -> _Question:
        """Build the request; expressions are evaluated here, on the notebook's main thread."""
        with contextlib.ExitStack() as cleanup, capture_output() as captured:
            # What the expressions printed is shown after the capture has ended, also on errors.
            cleanup.callback(captured.show)
            variables = variables_in_scope(self._ip)
            evaluate = evaluator(self._ip, variables)
            prompt = template.fill(arguments.prompt, evaluate, terminal.say).strip("\n")
            images = image_values(arguments.images, variables, evaluate)
            arguments = replace(
                arguments, settings=evaluated(arguments.settings, variables, evaluate)
            )
            request = self._with_schema(arguments.settings, variables, evaluate).request(prompt)
            # Drawing a figure or draining an iterator runs the notebook's code, too.
            taken = take_images(
                images,
                max_pixels=arguments.settings.max_pixels,
                normalize=arguments.settings.normalize,
            )
        has_output = bool(captured.stdout or captured.stderr or captured.outputs)
        return _Question(arguments, request, taken, has_output)

    def _with_schema(
        self, settings: Settings, variables: dict[str, Any], evaluate: Evaluate
    ) -> Settings:
        """Return settings with the schema that their expression names."""
        if settings.schema is None:
            return settings
        value = expression_or_text(settings.schema, variables, evaluate, option="schema")
        # Imports pydantic.
        from mlx_magic.data.schema import schema_of

        return settings.replaced({"schema": schema_of(value, self.schema_prompt)})

    def _start(self, question: _Question) -> _ActiveRequest:
        arguments = question.arguments
        generation = _session().start(question.request, images=question.images, thumbnails=True)
        return _ActiveRequest(arguments, generation, question.has_output)

    async def _render_in_thread(self, active: _ActiveRequest, interrupt: Interrupt) -> None:
        """Render a large result on a thread; displaying it then uses the cached bundle."""
        result = active.generation.future.result()
        if active.arguments.settings.show and (result.images or len(result.text) > 2_000):
            await click_routing.in_thread(partial(render.bundle, result), interrupt)

    def _finish(self, active: _ActiveRequest) -> VisionResult | None:
        result = active.generation.future.result()
        self._note_demo(active)
        self._store(active, result)
        if active.arguments.settings.show and getattr(self._ip, "kernel", None) is not None:
            return result
        # In a terminal the text was streamed; with --no-show nothing is shown.
        if active.arguments.settings.show and (ending := render.ending(result)):
            terminal.say(ending)
        self._ip.displayhook.update_user_ns(result)
        return None

    def _store(self, active: _ActiveRequest, result: VisionResult) -> None:
        if active.arguments.settings.output is not None:
            self._ip.user_ns[active.arguments.settings.output] = result

    def _store_partial(self, active: _ActiveRequest) -> None:
        """Store and show the partial result of an interrupted request."""
        future = active.generation.future
        if future.exception() is not None:
            return
        result = future.result()
        self._store(active, result)
        self._ip.displayhook.update_user_ns(result)
        if active.arguments.settings.show and getattr(self._ip, "kernel", None) is not None:
            display(result)

    def _note_demo(self, active: _ActiveRequest) -> None:
        if (
            active.arguments.settings.show
            and active.arguments.settings.model is None
            and not self._demo_noted
        ):
            self._demo_noted = True
            terminal.say(DEMO_NOTE)

    def displayed(self, value: object) -> None:
        """Display what a ``%vision`` line returns that is not the last one of its cell."""
        if value is not None:
            display(value)

    def defaults(self) -> Settings:
        """Return the settings of a cell without flags."""
        values = {option.name: getattr(self, option.name) for option in OPTIONS}
        return Settings(
            **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        )

    def _run(self, command: commands.Command) -> Any:
        session = _session()
        match command:
            case commands.ListCommand():
                from mlx_magic.notebook.display.tables import ModelTable

                return ModelTable.of(session)
            case commands.ModelsCommand(model):
                from mlx_magic.notebook.display.tables import SummaryTable

                return SummaryTable.of(session, model)
            case commands.HelpCommand():
                terminal.say(help_text("line"))
            case commands.StatusCommand():
                from mlx_magic.notebook.display.tables import StatusTable

                return StatusTable.of(session, default=self.model)
            case commands.CancelCommand():
                count = session.cancel()
                terminal.say(
                    f"Cancelled {count} request{'s' * (count != 1)}."
                    if count
                    else "Nothing is running."
                )
            case commands.PanelCommand():
                from mlx_magic.notebook.panel.panel import panel

                return panel(ipython=self._ip)
            case commands.JournalCommand():
                from mlx_magic.notebook.maps.journal_command import run

                return run(command, self.journal)
            case commands.UseCommand(model):
                summary = session.check(model)
                self.model = model
                terminal.say(f"Using {model} ({summary}).")
            case commands.PinCommand(model, pinned):
                info = session.pool.pin(model) if pinned else session.pool.unpin(model)
                terminal.say(f"{'Pinned' if pinned else 'Unpinned'} {info.name}.")
        return None


def _session() -> Session:
    """Return the session, imported on first use so that %load_ext stays quick."""
    from mlx_magic import default_session

    return default_session.current()


@dataclass(frozen=True)
class _Question:
    """A cell's arguments and request, with its expressions evaluated."""

    arguments: CellArguments
    request: GenerationRequest
    images: TakenImages
    has_output: bool


@dataclass(frozen=True)
class _ActiveRequest:
    """A running generation and the arguments of its cell."""

    arguments: CellArguments
    generation: Generation
    has_output: bool


VisionMagics.vision_cell.__doc__ = help_text("cell")  # type: ignore[assignment]
VisionMagics.vision_line.__doc__ = help_text("line")  # type: ignore[assignment]
