"""A slow chat template does not block other requests: it renders off the inference thread."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_magic import default_session, demo
from mlx_magic.backends.chat_templates.limits import TemplateLimits
from mlx_magic.engine.generation import Generation
from mlx_magic.engine.request import GenerationRequest, Sampling
from mlx_magic.session import Session
from tests.model_folders import smollm2_folder

pytestmark = pytest.mark.model

ENDLESS = (
    "{% if messages[0].role == 'system' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
"""Of no end where there is a system prompt: the request that warms a model up has none."""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("MLX_MAGIC_CACHE", str(tmp_path / "cache"))
    before = default_session.replace_current(None)
    made = default_session.current()
    yield made
    made.close()
    default_session.replace_current(before)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the limit of time: then only the mechanism that is looked at can help."""
    defaults = (1e9, *(TemplateLimits.__init__.__defaults__ or ())[1:])
    monkeypatch.setattr(TemplateLimits.__init__, "__defaults__", defaults)


def with_template(source: Path, folder: Path) -> str:
    shutil.copytree(source, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "chat_template.json").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = ENDLESS
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return str(folder)


def ask(session: Session, model: str) -> Generation:
    request = GenerationRequest(
        prompt="What is this?",
        model=model,
        system="Be brief.",
        sampling=Sampling(max_tokens=8, temperature=0.0),
    )
    return session.start(request)


@pytest.mark.parametrize("kind", ["vision", "text"])
def test_endless_template_does_not_block_others_and_can_be_cancelled(
    kind: str, session: Session, endless: None, tmp_path: Path
) -> None:
    source = demo.folder() if kind == "vision" else smollm2_folder()
    folder = with_template(source, tmp_path / "hostile")
    session.pool.submit_load(folder).future.result(60)
    hostile = ask(session, folder)
    answer = ask(session, "demo").future.result(60)
    assert answer.usage.completion_tokens > 0
    assert not hostile.future.done()
    hostile.cancel()
    result = hostile.future.result(10)
    assert (result.finish_reason, result.text) == ("cancelled", "")
    # The model still works.
    again = ask(session, folder)
    again.cancel()
    assert again.future.result(10).finish_reason == "cancelled"


def test_endless_template_ends_at_its_time_limit(session: Session, tmp_path: Path) -> None:
    folder = with_template(demo.folder(), tmp_path / "hostile")
    with pytest.raises(Exception, match="its chat template was stopped") as caught:
        ask(session, folder).future.result(60)
    assert "\n" not in str(caught.value)
