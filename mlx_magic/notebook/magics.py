"""``%%vision`` and ``%vision``: parse, call, translate errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand
from IPython.display import display
from IPython.utils.capture import capture_output
from traitlets import Any as Any_
from traitlets import Bool, Enum, Float, Int, List, TraitError, Unicode, observe, validate

from mlx_magic.engine.request import DEFAULT_MAX_TOKENS, DEMO, GenerationRequest, OutputFormat
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import EngineError, GenerationError, MlxMagicError, RequestError
from mlx_magic.interrupts import Interrupt, deferred
from mlx_magic.model_pool.budget import check_setting, check_ttl
from mlx_magic.notebook import pool_commands
from mlx_magic.notebook.display import pool_messages, render, terminal
from mlx_magic.notebook.kernel import click_routing
from mlx_magic.notebook.kernel.running_cell import RunningCell
from mlx_magic.notebook.magic_line import commands, template
from mlx_magic.notebook.magic_line.cell_arguments import CellArguments, Defaults, parse_cell
from mlx_magic.notebook.magic_line.expressions import evaluator
from mlx_magic.notebook.magic_line.help_text import help_text
from mlx_magic.notebook.magic_line.image_arguments import image_values
from mlx_magic.notebook.magic_line.options import FORMATS

if TYPE_CHECKING:
    from mlx_magic.engine.generation import Generation
    from mlx_magic.session import Session

DEMO_NOTE = "This is the bundled demo model; choose another with -m MODEL or %vision use MODEL."


@magics_class
class VisionMagics(Magics):
    """The magics. Every option of ``%%vision`` has a trait here."""

    model = Unicode(None, allow_none=True, help="Model of cells without -m.").tag(config=True)
    output = Unicode(None, allow_none=True, help="Variable that keeps each result.").tag(
        config=True
    )
    system = Unicode(None, allow_none=True, help="System prompt.").tag(config=True)
    max_tokens = Int(DEFAULT_MAX_TOKENS, help="Longest answer, in tokens.").tag(config=True)
    temperature = Float(None, allow_none=True, help="0 is greedy; None: the checkpoint's.").tag(
        config=True
    )
    top_p = Float(None, allow_none=True, help="Nucleus; None: the checkpoint's.").tag(config=True)
    top_k = Int(None, allow_none=True, help="0 is off; None: the checkpoint's.").tag(config=True)
    min_p = Float(None, allow_none=True, help="0 is off; None: the checkpoint's.").tag(config=True)
    repetition_penalty = Float(
        None, allow_none=True, help="Above 1: repeat less; None: the checkpoint's."
    ).tag(config=True)
    seed = Int(None, allow_none=True, help="Makes sampled answers repeat.").tag(config=True)
    stop = List(Unicode(), help="Texts that end an answer.").tag(config=True)
    timeout = Float(None, allow_none=True, help="Seconds until a cell ends.").tag(config=True)
    kv_bits = Int(None, allow_none=True, help="4 or 8: quantize the KV cache.").tag(config=True)
    format = Enum(FORMATS, "markdown", help="How answers are shown.").tag(config=True)
    show = Bool(True, help="Whether cells show pictures and answers.").tag(config=True)
    max_pixels = Int(
        None, allow_none=True, help="Larger pictures are scaled down to so many pixels."
    ).tag(config=True)

    memory_budget = Any_(None, help="What models may take: '8 GB', 0.6, None for all.").tag(
        config=True
    )
    idle_ttl = Float(None, allow_none=True, help="Seconds until an idle model is unloaded.").tag(
        config=True
    )
    model_folders = List(Unicode(), help="Folders with models, beside the Hub's cache.").tag(
        config=True
    )

    def __init__(self, shell: Any, **kwargs: Any) -> None:
        super().__init__(shell, **kwargs)
        self._ip: Any = shell
        self._demo_noted = False

    @observe("model")
    def _model_chosen(self, change: Any) -> None:
        """Let `mlx_magic.ask` use the same default."""
        _session().default_model = change["new"]

    @validate("memory_budget", "idle_ttl")
    def _pool_setting(self, proposal: Any) -> Any:
        """Refuse what cannot be one, in a line."""
        check = {"memory_budget": check_setting, "idle_ttl": check_ttl}[proposal["trait"].name]
        try:
            return check(proposal["value"])
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
    def vision_cell(self, line: str, cell: str) -> VisionResult | None:
        """``%%vision``; the text of its help stands in help_text."""
        with _translated():
            question = self._question(line, cell)
            # Nothing has begun before this line, and nothing runs on after it.
            with deferred() as interrupt:
                asked = self._ask(question)
                self._cell(asked, awaited=False, first=False).blocking(interrupt)
                if not interrupt.came:
                    return self._answered(asked)
                self._keep_partial(asked)
        return None

    @no_var_expand
    @line_magic("vision")  # type: ignore[arg-type]
    def vision_line(self, line: str) -> Any:
        """``%vision``; the text of its help stands in help_text."""
        with _translated():
            command = commands.parse_line(line)
            if not isinstance(command, pool_commands.WAITED_FOR):
                return self._run(command)
            return pool_commands.blocking(self._ip, _session(), command)

    async def awaited(self, first: bool, line: str, cell: str | None = None) -> Any:
        """Do what a cell with the magic at its top asks; such cells are rewritten to this."""
        with _translated():
            if cell is None:
                command = commands.parse_line(line)
                if isinstance(command, commands.ListCommand | commands.ModelsCommand):
                    # They read many files, or ask the Hub.
                    with deferred():
                        loop = asyncio.get_running_loop()
                        return await loop.run_in_executor(None, self._run, command)
                if not isinstance(command, pool_commands.WAITED_FOR):
                    return self._run(command)
                return await pool_commands.awaited(self._ip, _session(), command, alone=first)
            question = self._question(line, cell)
            with deferred() as interrupt:
                asked = self._ask(question)
                await self._cell(asked, awaited=True, first=first).awaited(interrupt)
                if not interrupt.came:
                    await self._drawn(asked, interrupt)
                if not interrupt.came:
                    return self._answered(asked)
                self._keep_partial(asked)
        return None

    def _cell(self, asked: _Asked, *, awaited: bool, first: bool) -> RunningCell[VisionResult]:
        return RunningCell(
            self._ip,
            asked.generation,
            awaited=awaited,
            alone=first and not asked.said_something,
            show=asked.arguments.show,
        )

    def _question(self, line: str, cell: str) -> _Question:
        """Everything that needs the notebook's variables, on the thread that owns them."""
        arguments = parse_cell(line, cell, self.defaults())
        with contextlib.ExitStack() as after, capture_output() as said:
            # Shown in any case, once nothing is captured any more.
            after.callback(said.show)
            evaluate = evaluator(self._ip)
            prompt = template.fill(arguments.prompt, evaluate).strip("\n")
            images = image_values(arguments.images, self._ip.user_ns, evaluate)
        said_something = bool(said.stdout or said.stderr or said.outputs)
        request = GenerationRequest(
            prompt=prompt,
            model=arguments.model or DEMO,
            system=arguments.system,
            sampling=arguments.sampling,
            format=arguments.format,
            timeout=arguments.timeout,
            kv_bits=arguments.kv_bits,
        )
        return _Question(arguments, request, images, said_something)

    def _ask(self, question: _Question) -> _Asked:
        arguments = question.arguments
        generation = _session().start(
            question.request,
            images=question.images,
            max_pixels=arguments.max_pixels,
            thumbnails=True,
        )
        return _Asked(arguments, generation, question.said_something)

    async def _drawn(self, asked: _Asked, interrupt: Interrupt) -> None:
        """Draw a large result off the loop; showing it then takes what is there."""
        result = asked.generation.future.result()
        if asked.arguments.show and (result.images or len(result.text) > 2_000):
            await click_routing.in_thread(partial(render.bundle, result), interrupt)

    def _answered(self, asked: _Asked) -> VisionResult | None:
        result = asked.generation.future.result()
        self._note_demo(asked)
        self._keep(asked, result)
        if asked.arguments.show and getattr(self._ip, "kernel", None) is not None:
            return result
        # A terminal has shown the text as it came; --no-show shows nothing.
        if asked.arguments.show and (ending := render.ending(result)):
            terminal.say(ending)
        self._ip.displayhook.update_user_ns(result)
        return None

    def _keep(self, asked: _Asked, result: VisionResult) -> None:
        if asked.arguments.output is not None:
            self._ip.user_ns[asked.arguments.output] = result

    def _keep_partial(self, asked: _Asked) -> None:
        """Keep and show what an interrupted answer has."""
        future = asked.generation.future
        if future.exception() is not None:
            return
        result = future.result()
        self._keep(asked, result)
        self._ip.displayhook.update_user_ns(result)
        if asked.arguments.show and getattr(self._ip, "kernel", None) is not None:
            display(result)

    def _note_demo(self, asked: _Asked) -> None:
        if asked.arguments.show and asked.arguments.model is None and not self._demo_noted:
            self._demo_noted = True
            terminal.say(DEMO_NOTE)

    def defaults(self) -> Defaults:
        """Return what holds where a cell has no flag."""
        return Defaults(
            model=self.model,
            output=self.output,
            system=self.system,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            format=cast("OutputFormat", self.format),
            show=self.show,
            max_pixels=self.max_pixels,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            stop=tuple(self.stop),
            timeout=self.timeout,
            kv_bits=self.kv_bits,
        )

    def _run(self, command: commands.Command) -> Any:
        now = _session()
        match command:
            case commands.ListCommand():
                from mlx_magic.notebook.display.tables import ModelTable

                return ModelTable.of(now)
            case commands.ModelsCommand(model):
                from mlx_magic.notebook.display.tables import SummaryTable

                return SummaryTable.of(now, model)
            case commands.StatusCommand() | commands.HelpCommand():
                from mlx_magic.notebook.display.tables import StatusTable

                return StatusTable.of(now, default=self.model)
            case commands.CancelCommand():
                count = now.cancel()
                terminal.say(f"Cancelled {count}." if count else "Nothing is running.")
            case commands.PanelCommand():
                from mlx_magic.notebook.panel.open import panel

                return panel(ipython=self._ip)
            case commands.UseCommand(model):
                found = now.check(model)
                self.model = model
                terminal.say(f"Using {model} ({found}).")
            case commands.PinCommand(model, pinned):
                info = now.pool.pin(model) if pinned else now.pool.unpin(model)
                terminal.say(f"{'Pinned' if pinned else 'Unpinned'} {info.name}.")
        return None


def _session() -> Session:
    """Return the session; what it needs is imported at the first use, not by %load_ext."""
    from mlx_magic import default_session

    return default_session.current()


@dataclass(frozen=True)
class _Question:
    """What a cell asks, with the notebook's variables in it."""

    arguments: CellArguments
    request: GenerationRequest
    images: Sequence[tuple[str | None, Any]]
    said_something: bool


@dataclass(frozen=True)
class _Asked:
    """A question on its way, with what the cell wanted of it."""

    arguments: CellArguments
    generation: Generation
    said_something: bool


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Show a person's slip as one line; what is not theirs keeps its traceback."""
    try:
        yield
    except (GenerationError, EngineError):
        raise
    except MlxMagicError as error:
        # Exactly this class: IPython shows a traceback for any other, subclasses included.
        raise UsageError(str(error)) from None


VisionMagics.vision_cell.__doc__ = help_text("cell")  # type: ignore[assignment]
VisionMagics.vision_line.__doc__ = help_text("line")  # type: ignore[assignment]
