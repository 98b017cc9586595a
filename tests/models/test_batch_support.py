"""Batch support: what the configuration implies, verdicts, and remembered comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_magic.backends.batch_check.policy import VerdictCache, fingerprint
from mlx_magic.models.checkpoints import batch_support
from mlx_magic.models.checkpoints.batch_support import (
    UNTESTED,
    Entry,
    Signature,
    Verdict,
    traits,
    verdict,
)
from mlx_magic.models.checkpoints.checkpoint import Checkpoint

LLAMA = {"num_attention_heads": 8, "num_key_value_heads": 2}
PLAIN = Signature("mlx-lm", ("mlx_lm.models.llama.Model",), ("KVCache",), traits(LLAMA))
GOOD = Verdict(True, True)
BAD = Verdict(False, True, "together, 3 of 9 answers were not mlx-lm's")


@pytest.mark.parametrize(
    ("config", "key", "value"),
    [
        (LLAMA, "heads", "gqa"),
        ({"num_attention_heads": 8, "num_key_value_heads": 8}, "heads", "mha"),
        ({"num_attention_heads": 8, "num_key_value_heads": 1}, "heads", "mqa"),
        ({"n_head": 8, "multi_query": True}, "heads", "mqa"),
        ({"num_attention_heads": [8, 8], "num_key_value_heads": [2, 2]}, "heads", "gqa"),
        ({"num_attention_heads": 8}, "heads", "unknown"),
        ({}, "rope", "default"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope", "linear"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope", "llama3"),
        ({"rope_scaling": {"type": "su"}}, "rope", "longrope"),
        ({"rope_scaling": {"type": "default", "mrope_section": [2, 3, 3]}}, "rope", "mrope"),
        (
            {
                "rope_parameters": {
                    "full": {"rope_type": "yarn"},
                    "sliding": {"rope_type": "default"},
                }
            },
            "rope",
            "default+yarn",
        ),
        ({"sliding_window": 4096}, "window", "yes"),
        ({"sliding_window": 4096, "use_sliding_window": False}, "window", "no"),
        ({"sliding_window": None}, "window", "no"),
        ({"attn_logit_softcapping": 50.0}, "softcap", "yes"),
        ({"cross_attention_layers": [3, 8]}, "cross", "yes"),
        ({"rope_parameters": {"llama_4_scaling_beta": 0.1}}, "query scale", "yes"),
    ],
)
def test_verdict_follows_the_configuration(config: dict[str, Any], key: str, value: str) -> None:
    assert traits(config)[key] == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(
    ["num_attention_heads", "num_key_value_heads", "rope_scaling", "rope_parameters",
     "sliding_window", "use_sliding_window", "attn_logit_softcapping", "text_config",
     "cross_attention_layers", "n_head", "model_type"]
)  # fmt: skip


# Drawing nested values is slow at first, on a busy machine.
@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.dictionaries(keys, json_values))
def test_any_configuration_gets_a_verdict(config: dict[str, Any]) -> None:
    found = traits(batch_support.text_part(config))
    assert set(found) == set(traits({}))
    assert all(isinstance(value, str) for value in found.values())
    batch_support.expected("text", config)
    batch_support.expected("vision", config)


def test_the_text_part_of_a_vision_models_configuration_is_read() -> None:
    config = {"model_type": "x", "num_attention_heads": 4, "text_config": {**LLAMA, "y": None}}
    assert traits(batch_support.text_part(config))["heads"] == "gqa"


def test_untested_models_answer_one_at_a_time() -> None:
    known = [Entry("a", "llama", PLAIN, GOOD)]
    assert verdict(PLAIN, "llama", known) == GOOD
    other = [
        replace(PLAIN, library="mlx-vlm"),
        replace(PLAIN, classes=(*PLAIN.classes, "mlx_lm.models.new.Model")),
        replace(PLAIN, caches=("KVCache", "RotatingKVCache")),
        *(replace(PLAIN, traits={**PLAIN.traits, key: "new"}) for key in PLAIN.traits),
    ]
    assert {verdict(each, "llama", known) for each in other} == {Verdict(False, False, UNTESTED)}


def test_each_checkpoint_of_the_table_gets_its_own_verdict() -> None:
    for entry in batch_support.table():
        found = verdict(entry.signature, entry.architecture)
        assert (entry.name, found.together) == (entry.name, entry.verdict.together)


def test_another_model_with_the_same_language_model_is_untested() -> None:
    known = [Entry("a", "llama", PLAIN, GOOD)]
    assert verdict(PLAIN, "wrapper", known) == Verdict(False, False, UNTESTED)


def test_one_wrong_checkpoint_outweighs_a_right_one() -> None:
    known = [Entry("a", "llama", PLAIN, GOOD), Entry("b", "llama", PLAIN, BAD)]
    assert verdict(PLAIN, "llama", known) == BAD
    assert verdict(PLAIN, "llama", known[::-1]) == BAD


def test_expected_verdict_comes_from_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mha = replace(PLAIN, traits={**PLAIN.traits, "heads": "mha"})
    known = (Entry("a", "llama", PLAIN, GOOD), Entry("b", "llama", mha, BAD))
    monkeypatch.setattr(batch_support, "table", lambda: known)
    config = {"model_type": "llama", **LLAMA}
    assert batch_support.expected("text", config) == GOOD
    assert batch_support.expected("text", {**config, "num_key_value_heads": 8}) == BAD
    # The library's default decides, or whether it looks at this at all: known once it is loaded.
    assert batch_support.expected("text", {"model_type": "llama"}) is None
    assert batch_support.expected("text", {**config, "sliding_window": 9}) is None
    assert batch_support.expected("text", {**config, "model_type": "qwen2"}) == (
        Verdict(False, False, UNTESTED)
    )
    assert batch_support.expected("vision", config) == Verdict(False, False, UNTESTED)
    assert batch_support.expected("text", {**config, "model_file": "own.py"}) == (
        Verdict(False, False, UNTESTED)
    )


def checkpoint(folder: Path) -> Checkpoint:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"12345")
    return Checkpoint("tiny", folder, "text", "llama")


def test_verdict_of_weights_is_remembered_until_they_change(tmp_path: Path) -> None:
    file, model = tmp_path / "cache" / "seen.json", checkpoint(tmp_path / "model")
    assert not VerdictCache(model, file).known
    VerdictCache(model, file).keep("padded")
    assert VerdictCache(model, file).known
    assert not VerdictCache(checkpoint(tmp_path / "other"), file).known
    (model.path / "model.safetensors").write_bytes(b"123456")
    assert not VerdictCache(model, file).known


@pytest.mark.parametrize("content", ["", "[", "{}", '{"a": 1}', "[1, 2]", "null", "[" * 100_000])
def test_foreign_verdict_file_is_replaced(tmp_path: Path, content: str) -> None:
    file, model = tmp_path / "seen.json", checkpoint(tmp_path / "model")
    file.write_text(content)
    assert not VerdictCache(model, file).known
    VerdictCache(model, file).keep("padded")
    assert VerdictCache(model, file).known


def test_unwritable_folder_remembers_no_verdict(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    model = checkpoint(tmp_path / "model")
    VerdictCache(model, blocked / "seen.json").keep("padded")
    assert not VerdictCache(model, blocked / "seen.json").known


def test_only_the_newest_verdicts_are_remembered(tmp_path: Path) -> None:
    file, model = tmp_path / "seen.json", checkpoint(tmp_path / "model")
    file.write_text(json.dumps([f"{n:064}" for n in range(1000)]))
    VerdictCache(model, file).keep("padded")
    held = json.loads(file.read_text())
    assert len(held) == 1000
    assert held[-1].startswith(fingerprint(model))
