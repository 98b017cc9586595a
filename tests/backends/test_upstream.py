"""The answer stays the same whatever name of a library is removed or changed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mlx_magic import default_session
from mlx_magic.backends import upstream
from mlx_magic.backends.batch_check import policy
from mlx_magic.backends.chat_templates import control_tokens, rendering
from mlx_magic.backends.device import platform
from mlx_magic.backends.loading import fast_modules
from mlx_magic.backends.vision import cpu_encoders
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.engine.result import VisionResult
from mlx_magic.errors import GenerationError, UntrustedCodeError
from mlx_magic.models import upstream_checks
from mlx_magic.models.checkpoints import remote_code
from mlx_magic.models.upstream_checks import Mechanism, Name
from mlx_magic.session import Session
from tests.backends.upstream_cases import EVERY, breaks, broken, named, recheck
from tools.tiny_models.spec import build, find

MECHANISMS = [value for value in vars(upstream).values() if isinstance(value, Mechanism)]
CLOSED = [upstream.COPIED_CODE]
"""Mechanisms without which a load is refused."""

TEXT = [m for m in MECHANISMS if any(n.module.startswith("mlx_lm") for n in m.needed)]
TEMPLATES = [upstream.TEMPLATE_SANDBOX, upstream.TEMPLATE_HOOK, upstream.CONTROL_TOKENS]
VISION = [m for m in MECHANISMS if m.needed and m not in (*TEXT, *CLOSED)]

QUESTION = "What color is the shape?"
CONTROL_WORD = "What does <end_of_utterance> mean?"


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    before = default_session.replace_current(None)
    made = default_session.current()
    yield made
    made.close()
    default_session.replace_current(before)


@pytest.fixture(autouse=True)
def checked_again() -> Iterator[None]:
    yield
    recheck()


@pytest.fixture(scope="module")
def text_model(session: Session, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny") / "text-mistral"
    session.engine.call(lambda: build(find("text-mistral"), folder)).result(120)
    return str(folder)


Ask = Callable[..., VisionResult]


@pytest.fixture
def ask(session: Session) -> Ask:
    """Answer in a model that is loaded anew."""

    def asked(
        model: str, prompt: str = QUESTION, *images: Image.Image, **options: Any
    ) -> VisionResult:
        if model in session.pool:
            session.pool.unload(model)
        sampling = Sampling(max_tokens=12, temperature=0)
        request = GenerationRequest(prompt, model=model, sampling=sampling, **options)
        return session.start(request, images=[("i", i) for i in images]).future.result(120)

    return asked


def content(result: VisionResult) -> tuple[object, ...]:
    usage = result.usage
    return result.text, result.finish_reason, usage.prompt_tokens, usage.completion_tokens


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[object, ...]]:
    """Answers with all mechanisms, filled by the first test that needs one."""
    return {}


def answers_as_before(
    ask: Ask,
    expected: dict[str, tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    name: Name,
    how: str,
    *args: Any,
) -> None:
    model = args[0]
    if model not in expected:
        expected[model] = content(ask(*args))
    broken(monkeypatch, name, how)
    assert content(ask(*args)) == expected[model]


def test_all_mechanisms_are_on() -> None:
    comparisons: dict[Mechanism, Callable[[Any], bool]] = {
        upstream.TEXT_BATCHES: policy.batch_caches_work,
        upstream.VISION_BATCHES: policy.batch_caches_work,
        upstream.FAST_MODULES: fast_modules._agree_with_mlx,
        upstream.CPU_ENCODERS: cpu_encoders._agree_with_the_library,
        upstream.TEMPLATE_SANDBOX: rendering._agrees_with_jinja,
        upstream.TEMPLATE_HOOK: rendering._install_hook,
        upstream.CONTROL_TOKENS: control_tokens._is_replaceable,
        remote_code.FETCHED_CODE: remote_code._is_found,
    }
    recheck()
    platform.prepare()
    for mechanism in [*MECHANISMS, remote_code.FETCHED_CODE]:
        compare = comparisons.get(mechanism)
        assert mechanism.off is None if compare is None else mechanism.is_on(compare), mechanism.off


@pytest.mark.parametrize(("mechanism", "name", "how"), breaks(MECHANISMS, every=True), ids=named)
def test_each_changed_name_turns_its_mechanism_off(
    mechanism: Mechanism, name: Name, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, name, how)
    what = f"has no {name}" if how == "removed" else f"takes other arguments for {name}"
    assert mechanism.off == f"{mechanism.title} is off: {name.library} {what}"


@pytest.mark.model
@pytest.mark.parametrize(("mechanism", "name", "how"), breaks(TEXT, every=EVERY), ids=named)
def test_text_answers_stay_the_same(
    mechanism: Mechanism,
    name: Name,
    how: str,
    ask: Ask,
    text_model: str,
    expected: dict[str, tuple[object, ...]],
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers_as_before(ask, expected, monkeypatch, name, how, text_model)
    assert mechanism.off in session.pool.switched_off


@pytest.mark.model
@pytest.mark.parametrize(("mechanism", "name", "how"), breaks(VISION, every=EVERY), ids=named)
def test_vision_answers_stay_the_same(
    mechanism: Mechanism,
    name: Name,
    how: str,
    ask: Ask,
    circle: Image.Image,
    expected: dict[str, tuple[object, ...]],
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers_as_before(ask, expected, monkeypatch, name, how, "demo", QUESTION, circle)
    assert mechanism.off in upstream_checks.switched_off()


@pytest.mark.model
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["text", "vision"])
def test_quantized_caches_are_left_to_the_library(
    kind: str,
    bits: int,
    ask: Ask,
    text_model: str,
    circle: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    args = (text_model, QUESTION) if kind == "text" else ("demo", QUESTION, circle)
    mechanism = upstream.TEXT_CACHES if kind == "text" else upstream.VISION_CACHES
    before = ask(*args, kv_bits=bits)
    broken(monkeypatch, mechanism.needed[0], "removed")
    # mlx-lm quantizes after the prefill: with 4 bits random weights then answer otherwise.
    shown = 1 if (kind, bits) == ("text", 4) else 0
    assert content(ask(*args, kv_bits=bits))[shown:] == content(before)[shown:]
    assert mechanism.off is not None


@pytest.mark.model
def test_a_question_with_control_words_is_refused_if_it_cannot_be_masked(
    ask: Ask, circle: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("demo", CONTROL_WORD, circle)
    broken(monkeypatch, upstream.CONTROL_TOKENS.needed[0], "removed")
    with pytest.raises(GenerationError, match="end_of_utterance"):
        ask("demo", CONTROL_WORD, circle)


@pytest.mark.model
@pytest.mark.parametrize(("mechanism", "name", "how"), breaks(CLOSED, every=True), ids=named)
def test_a_load_is_refused_without_the_guard_and_possible_with_permission(
    mechanism: Mechanism,
    name: Name,
    how: str,
    session: Session,
    text_model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session.pool.load("demo")  # imports transformers
    if text_model in session.pool:
        session.pool.unload(text_model)
    broken(monkeypatch, name, how)
    with pytest.raises(UntrustedCodeError, match="--trust-remote-code") as caught:
        session.pool.load(text_model)
    assert "\n" not in str(caught.value)
    assert str(mechanism.off) in str(caught.value)
    assert session.pool.load(text_model, trust_remote_code=True).kind == "text"


@pytest.mark.model
@pytest.mark.parametrize(
    ("module", "function"),
    [(fast_modules, "_transpose_weights"), (cpu_encoders, "_softmax")],
)
def test_mathematics_that_differs_from_the_library_is_not_used(
    module: Any,
    function: str,
    ask: Ask,
    circle: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "has_vector_math", lambda: False)
    before = ask("demo", QUESTION, circle)
    real = getattr(module, function)

    def wrong(given: Any) -> Any:
        if function == "_softmax":
            return real(given) * 1.5
        real(given)
        for part in given:
            if "_transposed" in vars(part):
                weight, transposed = part._transposed
                vars(part)["_transposed"] = weight, transposed * 1.5
        return None

    monkeypatch.setattr(module, function, wrong)
    recheck()
    after = ask("demo", QUESTION, circle)
    mechanism = upstream.FAST_MODULES if module is fast_modules else upstream.CPU_ENCODERS
    assert str(mechanism.off).endswith("works differently")
    assert content(after) == content(before)


@pytest.mark.model
def test_a_model_that_stores_positions_under_a_new_name_reuses_no_prompt(
    ask: Ask, session: Session, circle: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_vlm.models.smolvlm import LanguageModel

    before = ask("demo", QUESTION, circle)
    real = LanguageModel.__call__

    def storing(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._renamed_positions = object()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(LanguageModel, "__call__", storing)
    for _ in range(2):
        request = GenerationRequest(
            QUESTION, model="demo", sampling=Sampling(max_tokens=12, temperature=0)
        )
        result = session.start(request, images=[("i", circle)]).future.result(120)
        assert content(result) == content(before)
    assert result.usage.cached_tokens == 0
    assert upstream.VISION_PREFIXES.off in session.pool.switched_off


def test_status_shows_what_is_off(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_magic.notebook.display.tables import StatusTable

    assert "switched off" not in repr(StatusTable.of(session, default=None))
    broken(monkeypatch, Name("mlx_lm.generate", "wired_limit"), "removed")
    reason = str(upstream.TEXT_BATCHES.off)
    assert "batching of text models is off: mlx-lm" in reason
    assert "has no wired_limit" in reason
    shown = repr(StatusTable.of(session, default=None))
    assert "switched off" in shown
    assert reason in shown


def test_importing_the_door_imports_no_library() -> None:
    code = (
        "import sys\n"
        "import mlx_magic.backends.upstream, mlx_magic.models.hub.upstream\n"
        "slow = {'mlx', 'mlx_lm', 'mlx_vlm', 'transformers', 'huggingface_hub', 'jinja2'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
