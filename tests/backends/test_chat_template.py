"""Chat templates in our sandbox: equal to the libraries' rendering, with limits."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_magic
from mlx_magic.backends.chat_templates import chat_messages, rendering
from mlx_magic.backends.chat_templates.limits import (
    BUDGET,
    TemplateBudget,
    TemplateLimitError,
    TemplateLimits,
    UnsafeTemplateError,
)
from mlx_magic.backends.vision import inputs
from mlx_magic.cancellation import CancelToken
from mlx_magic.engine.request import Exchange, GenerationRequest
from mlx_magic.errors import GenerationError
from mlx_magic.models.checkpoints import architectures
from tests.backends.chat_templates import (
    COSTLY,
    HOSTILE,
    LARGE,
    RENDERS,
    TOOLS,
    UNSAFE,
)

CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief. <b>&amp;</b> 'ä' \N{GRINNING FACE}"},
    {"role": "user", "content": "What is {{ 7 }} {% if %}?\n\n  spaces  "},
    {"role": "assistant", "content": '<think>\nhm\n</think>\n\nA "quoted" answer\\n'},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And this?"}]},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Zürich", "n": 3}}}],
    },
    {"role": "tool", "content": "22 °C", "name": "weather"},
]


def transformers_module() -> Any:
    from transformers.utils import chat_template_utils

    return chat_template_utils


def outcome(source: str, messages: list[dict[str, Any]], **more: Any) -> tuple[str, object]:
    """Return what transformers makes of a template, or the error it raises."""
    try:
        texts, _ = transformers_module().render_jinja_template(
            [messages], chat_template=source, **more
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return type(error).__name__, str(error)
    return "text", texts[0]


def require_equal(source: str, messages: list[dict[str, Any]], **more: Any) -> None:
    expected = outcome(source, messages, **more)
    with rendering.sandboxed():
        assert outcome(source, messages, **more) == expected


def rendered(source: str, limits: TemplateLimits | None = None, **variables: Any) -> str:
    with rendering.sandboxed(TemplateBudget(limits)):
        return rendering.rendered(source, like_transformers=True, **variables)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("messages", [CHAT, CALLS, CHAT[1:2]], ids=["chat", "calls", "question"])
@pytest.mark.parametrize("source", RENDERS.values(), ids=RENDERS)
def test_template_renders_as_transformers_does(
    source: str, messages: list[dict[str, Any]], tools: Any, add_generation_prompt: bool
) -> None:
    require_equal(
        source,
        messages,
        tools=tools,
        add_generation_prompt=add_generation_prompt,
        bos_token="<s>",
        eos_token="</s>",
        enable_thinking=False,
    )


@pytest.mark.parametrize("source", RENDERS.values(), ids=RENDERS)
def test_templates_of_these_tests_render(source: str) -> None:
    kind, text = outcome(source, CHAT[1:2], tools=TOOLS, add_generation_prompt=True)
    assert kind == "text", text


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
FRAGMENTS = st.sampled_from(["{{", "}}", "{%", "%}", "{#", "\x00", "\x1b[2J", "\r\n", "{0}", "%s"])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.one_of(TEXTS, FRAGMENTS, st.tuples(TEXTS, FRAGMENTS).map("".join)), min_size=1
    ),
    name=st.sampled_from(sorted(RENDERS)),
)
def test_any_text_renders_as_transformers_does(texts: list[str], name: str) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    require_equal(RENDERS[name], messages, tools=TOOLS, add_generation_prompt=True)


def test_template_raise_exception_is_the_same_error() -> None:
    require_equal("{{ raise_exception('Roles must alternate') }}", CHAT)
    require_equal("{% if x %}", CHAT)
    require_equal("{{ missing.name }}", CHAT)
    require_equal("{{ 1 + 'a' }}", CHAT)


def test_template_date_is_today() -> None:
    assert rendered("{{ strftime_now('%Y') }}") == time.strftime("%Y")


def test_templates_have_the_globals_of_transformers() -> None:
    compile_template = transformers_module()._compile_jinja_template
    theirs = compile_template("x").environment
    with rendering.sandboxed():
        ours = compile_template("x").environment
    assert type(ours) is not type(theirs)
    for kind in ("filters", "tests", "globals"):
        assert getattr(ours, kind).keys() == getattr(theirs, kind).keys()
    for setting in ("trim_blocks", "lstrip_blocks", "keep_trailing_newline", "autoescape"):
        assert getattr(ours, setting) == getattr(theirs, setting)


def test_tokenizer_renders_as_before() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mlx_magic.demo_model())
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is {{ this }}?"}]}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    with rendering.sandboxed():
        again = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert again == expected


def test_other_threads_and_other_callers_render_as_before() -> None:
    compile_template = transformers_module()._compile_jinja_template
    seen: list[str] = []

    def look() -> None:
        seen.append(type(transformers_module()._compile_jinja_template("x").environment).__name__)

    with rendering.sandboxed():
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert seen[0] != seen[1]
    assert seen[1] == seen[2] == type(compile_template("x").environment).__name__
    assert BUDGET.get() is None


# --- templates that exceed limits ------------------------------------------------------------


@pytest.mark.parametrize(
    "source", {**HOSTILE, **COSTLY, **LARGE}.values(), ids=[*HOSTILE, *COSTLY, *LARGE]
)
def test_template_over_its_limits_is_stopped(source: str) -> None:
    began = time.thread_time()
    with pytest.raises((TemplateLimitError, OverflowError)) as caught:
        rendered(source, TemplateLimits(seconds=0.5), messages=CHAT)
    assert time.thread_time() - began < 1.2
    refusal = chat_messages.template_error(caught.value, GenerationRequest(prompt="Hi"), model="m")
    assert "\n" not in str(refusal)
    assert len(str(refusal)) < 400


def test_default_time_limit_of_a_template_is_two_seconds() -> None:
    began = time.thread_time()
    with pytest.raises(TemplateLimitError, match="longer than 2 s"):
        rendered(HOSTILE["nested loops"])
    assert 2 <= time.thread_time() - began < 2.5


MEMORY = """
import resource
from mlx_magic.backends.chat_templates import rendering as chat_template
from mlx_magic.backends.chat_templates.limits import BUDGET, TemplateBudget
from tests.backends.chat_templates import COSTLY, HOSTILE, LARGE

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

BUDGET.set(TemplateBudget())
chat_template.rendered("x", like_transformers=True)
for name, source in {**HOSTILE, **LARGE}.items():
    BUDGET.set(TemplateBudget())
    before = peak()
    try:
        chat_template.rendered(source, like_transformers=True, messages=[{"role": "user"}])
    except Exception as error:
        print(peak() - before, name, type(error).__name__)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss is in another unit there")
def test_no_template_uses_200_mb() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ") for line in done.stdout.splitlines()]
    assert len(lines) == len(HOSTILE) + len(LARGE)
    assert sum(int(line[0]) for line in lines) < 200 * 1024, done.stdout


def test_time_limit_uses_the_injected_clock() -> None:
    now = iter(range(10_000))
    budget = TemplateBudget(TemplateLimits(seconds=5), clock=lambda: float(next(now)))
    with (
        rendering.sandboxed(budget),
        pytest.raises(TemplateLimitError, match="longer than 5 s"),
    ):
        rendering.rendered("{% for i in range(100000) %}{% endfor %}")


def test_templates_of_one_block_share_a_time_limit() -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1
        return now[0]

    budget = TemplateBudget(TemplateLimits(seconds=20), clock=clock)
    loop = "{% for i in range(200) %}{% endfor %}"
    with rendering.sandboxed(budget):
        rendering.rendered(loop)
        with pytest.raises(TemplateLimitError, match="longer than 20 s"):
            rendering.rendered(loop * 20)


def test_a_long_conversation_is_within_the_limits() -> None:
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": f"{i} " + "word " * 2000}
        for i in range(300)
    ]
    for source in RENDERS.values():
        require_equal(source, messages, tools=TOOLS)


def test_a_long_text_is_within_the_limits() -> None:
    messages = [{"role": "user", "content": "word \N{GRINNING FACE}\n" * 1_000_000}]
    for name in ("chatml", "gemma", "qwen3"):
        require_equal(RENDERS[name], messages)


# --- templates that try to run code ------------------------------------------------------------


@pytest.mark.parametrize("like_transformers", [True, False])
@pytest.mark.parametrize("source", UNSAFE.values(), ids=UNSAFE)
def test_template_that_tries_to_run_code_is_stopped(
    source: str, like_transformers: bool, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    messages = [{"role": "user", "content": str(mark)}]
    with rendering.sandboxed(), pytest.raises(UnsafeTemplateError) as caught:
        rendering.rendered(source, like_transformers=like_transformers, messages=messages)
    assert not mark.exists()
    refusal = chat_messages.template_error(caught.value, GenerationRequest(prompt="Hi"), model="m")
    assert isinstance(refusal, GenerationError)
    assert "m: its chat template was stopped, because it tries to run code (" in str(refusal)
    assert "\n" not in str(refusal)


# --- processors of mlx-vlm that render without a sandbox ----------------------------------------


def mentioning_jinja() -> list[Path]:
    library = architectures.library(architectures.VISION_LIBRARY)
    assert library is not None
    root = library.models.parent
    return [p for p in root.rglob("*.py") if "jinja2" in p.read_text(encoding="utf-8")]


def own_renderers() -> list[type]:
    found = []
    for path in mentioning_jinja():
        name = f"mlx_vlm.models.{path.parent.name}.{path.stem}"
        module = importlib.import_module(name)
        found += [
            kind
            for kind in vars(module).values()
            if inspect.isclass(kind)
            and kind.__module__ == name
            and "apply_chat_template" in vars(kind)
        ]
    return found


PLAIN = {
    "chat": "{% for m in messages %}\n  {% if m.role == 'user' %}\nU: {{ m['content'] }}\n"
    "  {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}A: {% endif %}{{ enable_thinking }}\n",
    "filters": "{{ messages|tojson }} {{ messages|tojson(indent=2) }} {{ messages|length }} "
    "{{ messages|map(attribute='role')|join(', ') }} {{ '<&>'|e }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ ns.n }}{{ loop.last }}{% endfor %}{% macro f(x) %}[{{ x|trim }}]{% endmacro %}"
    "{{ f(' a ') }}",
}


@pytest.mark.parametrize("source", PLAIN.values(), ids=PLAIN)
def test_every_unsandboxed_processor_renders_as_before(source: str) -> None:
    from mlx_vlm.prompt_utils import get_chat_template

    kinds = own_renderers()
    assert len(kinds) == len(mentioning_jinja())
    for kind in kinds:
        processor: Any = object.__new__(kind)
        processor.chat_template = source
        processor.tokenizer = None
        expected = get_chat_template(processor, CHAT, True)
        model_type = kind.__module__.split(".")[2]
        for name in (model_type, "an architecture that is not known"):
            with rendering.sandboxed():
                stand_in = rendering.processor_for(processor, name)
                assert stand_in is not processor
                assert get_chat_template(stand_in, CHAT, True) == expected


def test_only_known_architectures_leave_the_sandbox() -> None:
    """Each file of mlx-vlm that mentions Jinja belongs to an architecture that is stood in for."""
    for path in mentioning_jinja():
        assert path.parent.parent.name == "models"
        processor = SimpleNamespace(chat_template="x")
        assert rendering.processor_for(processor, path.parent.name) is not processor


def test_other_processors_are_not_wrapped() -> None:
    from mlx_vlm.models.glm4v.processing import Glm46VProcessor

    processor = object.__new__(Glm46VProcessor)
    assert rendering.processor_for(processor, "glm4v") is processor
    plain = SimpleNamespace(chat_template="x")
    assert rendering.processor_for(plain, "smolvlm") is plain


def test_processor_without_a_template_formats_the_prompt_as_before() -> None:
    from mlx_vlm.prompt_utils import get_chat_template

    for kind in own_renderers():
        processor: Any = object.__new__(kind)
        processor.chat_template = processor.tokenizer = None
        expected = get_chat_template(processor, CHAT, True)
        with rendering.sandboxed():
            stand_in = rendering.processor_for(processor, kind.__module__.split(".")[2])
            assert get_chat_template(stand_in, CHAT, True) == expected


@pytest.mark.parametrize("model_type", ["kimi_vl", "molmo", "phi3_v"])
def test_hostile_template_of_an_unsandboxed_processor_runs_no_code(
    model_type: str, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    (kind,) = (k for k in own_renderers() if k.__module__.split(".")[2] == model_type)
    processor: Any = object.__new__(kind)
    processor.chat_template = UNSAFE["globals"].replace("messages[0].content", repr(str(mark)))
    processor.tokenizer = None
    config = SimpleNamespace(model_type=model_type)
    request = GenerationRequest(prompt="Hi", history=(Exchange("a", "b"),))
    with pytest.raises(GenerationError, match="tries to run code"):
        inputs.VisionInputs("m", config, processor).prompt(request, CancelToken()).check()
    assert not mark.exists()
    processor.apply_chat_template(CHAT)
    assert mark.exists()  # Control: without the sandbox it runs.


def test_rendering_without_limits_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="without a budget"):
        rendering.rendered("never seen before")
