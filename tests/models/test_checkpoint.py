from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_magic.errors import (
    CheckpointError,
    DownloadError,
    MlxMagicError,
    ModelNotFoundError,
    UnsupportedModelError,
    UntrustedCodeError,
)
from mlx_magic.models.checkpoints import architectures
from mlx_magic.models.checkpoints.checkpoint import (
    Checkpoint,
    RemoteCheckpoint,
    inspect,
    kind_of,
    quantization_of,
    resolve,
)
from tests import checkpoints

ALIASES = {"demo": "/nowhere", "qwen": "mlx-community/Qwen2-VL-2B-Instruct-4bit"}


def found(model: str, **options: Any) -> Checkpoint:
    checkpoint = resolve(model, **{"aliases": {}, **options})
    assert isinstance(checkpoint, Checkpoint)
    return checkpoint


def test_folder_is_described(tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "m")
    checkpoint = inspect(folder, "my model")
    assert checkpoint.name == "my model"
    assert checkpoint.path == folder
    assert checkpoint.kind == "vision"
    assert checkpoint.model_type == "smolvlm"
    assert checkpoint.weight_bytes == 96
    assert checkpoint.bytes_by_dtype == {"F32": 64, "F16": 32}
    assert checkpoint.quantization is None
    assert checkpoint.wants_code == ()
    assert checkpoint.config["image_token_id"] == 4
    checkpoint.require_trust(False)


def test_alias_takes_precedence_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.good_text(tmp_path / "pet")
    aliased = checkpoints.good(tmp_path / "other")
    assert found("pet").kind == "text"
    checkpoint = found("pet", aliases={"pet": str(aliased)})
    assert (checkpoint.name, checkpoint.path, checkpoint.kind) == ("pet", aliased, "vision")


def test_folder_takes_precedence_over_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoints.good(tmp_path / "org" / "name")
    assert found("org/name").path == Path("org/name")


def test_the_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = checkpoints.good(tmp_path / "m")
    assert found("~/m").path == folder


def test_repository_that_is_not_cached_is_remote(tmp_path: Path) -> None:
    assert resolve("org/name", aliases={}, cache=tmp_path) == RemoteCheckpoint(
        "org/name", "org/name"
    )
    assert resolve("qwen", aliases=ALIASES, cache=tmp_path) == RemoteCheckpoint(
        "qwen", ALIASES["qwen"]
    )


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_missing_repository_offline_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    offline = True
    if by == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        offline = None  # type: ignore[assignment]
    with pytest.raises(DownloadError, match=r"^org/name is not in .*HF_HUB_OFFLINE") as caught:
        resolve("org/name", aliases={}, offline=offline, cache=tmp_path)
    assert caught.value.model == "org/name"
    assert "\n" not in str(caught.value)


def cached(cache: Path, repo_id: str) -> Path:
    """Lay out a repository as the Hub's client does."""
    root = cache / f"models--{repo_id.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("c0ffee")
    return root / "snapshots" / "c0ffee"


def test_a_repository_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    folder = checkpoints.good(cached(tmp_path, "org/name"))
    checkpoint = found("org/name", cache=tmp_path, offline=True)
    assert (checkpoint.name, checkpoint.path) == ("org/name", folder)


def test_partially_cached_repository_is_completed(tmp_path: Path) -> None:
    folder = checkpoints.without_weights(cached(tmp_path, "org/name"))
    assert isinstance(resolve("org/name", aliases={}, cache=tmp_path), RemoteCheckpoint)
    with pytest.raises(DownloadError, match="incomplete in the local cache"):
        resolve("org/name", aliases={}, cache=tmp_path, offline=True)
    checkpoints.with_missing_shard(folder)
    assert isinstance(resolve("org/name", aliases={}, cache=tmp_path), RemoteCheckpoint)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("qwne", r"no model 'qwne': did you mean 'qwen'\?"),
        ("Demo", r"did you mean 'demo'\?"),
        ("something", r"name an alias \(demo, qwen\), a folder, or a Hub repository"),
        ("", "no model ''"),
        ("  ", "no model"),
        ("./models/x", r"no folder \./models/x: check the path"),
        ("/models/x", "check the path"),
        ("a/b/c", "check the path"),
        ("demo", r"no folder /nowhere \(alias 'demo'\)"),
        ("org/..", "no model"),
        ("org/na me", "no model"),
        ("What is this? " * 40, "no model"),
        ("x\0y", "no model"),
        ("~nobody-of-this-name/m", "check the path"),
    ],
)
def test_unknown_name_error_says_what_to_do(model: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words) as caught:
        resolve(model, aliases=ALIASES)
    assert caught.value.model == model
    assert "\n" not in str(caught.value)


def test_file_is_refused_as_a_model(tmp_path: Path) -> None:
    path = checkpoints.good(tmp_path / "m") / "model.safetensors"
    with pytest.raises(ModelNotFoundError, match="is a file: name the folder"):
        resolve(str(path), aliases={})


@pytest.mark.parametrize("word", checkpoints.BROKEN)
def test_broken_folder_is_an_error_of_one_line(tmp_path: Path, word: str) -> None:
    folder = checkpoints.BROKEN[word](tmp_path / "m")
    with pytest.raises((CheckpointError, UnsupportedModelError), match=word) as caught:
        resolve(str(folder), aliases={})
    assert caught.value.model == str(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "names no model_type"),
        ('{"model_type": 7}', "names no model_type"),
        ('{"model_type": ""}', "names no model_type"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_damaged_config_is_named_in_the_error(tmp_path: Path, content: str, words: str) -> None:
    folder = checkpoints.good(tmp_path / "m")
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=words):
        inspect(folder, "m")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model.bin", r"pickled weights \(pytorch_model\.bin\).*mlx_vlm convert"),
        ("model.pth", "pickled weights"),
        ("model-Q4_K_M.gguf", r"GGUF is not read"),
        ("consolidated.safetensors", "rename or convert"),
    ],
)
def test_other_weight_formats_are_named_in_the_error(tmp_path: Path, file: str, words: str) -> None:
    folder = checkpoints.without_weights(tmp_path / "m")
    checkpoints.write_safetensors(folder / file)
    with pytest.raises(CheckpointError, match=words):
        inspect(folder, "m")


def test_mlx_lm_reads_only_files_named_model(tmp_path: Path) -> None:
    folder = checkpoints.good_text(tmp_path / "m")
    checkpoints.write_safetensors(folder / "adapters.safetensors")
    assert inspect(folder, "m").weight_bytes == 96
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"only adapters\.safetensors"):
        inspect(folder, "m")


def test_shards_are_summed_and_all_checked(tmp_path: Path) -> None:
    folder = checkpoints.with_missing_shard(tmp_path / "m")
    second = checkpoints.write_safetensors(folder / "model-00002-of-00002.safetensors")
    assert inspect(folder, "m").weight_bytes == 192
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is cut short"):
        inspect(folder, "m")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"a": "../m/model.safetensors"}}, "not in its folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not in its folder"),
        ({"weight_map": {"a": "x\ny"}}, r"missing \('x.{1,2}ny'\)"),
        ({"weight_map": {"a": 3}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_weights_index_is_verified(tmp_path: Path, index: object, words: str) -> None:
    folder = checkpoints.good(tmp_path / "m")
    checkpoints.write_json(folder / "model.safetensors.index.json", index)
    with pytest.raises(CheckpointError, match=words):
        inspect(folder, "m")


def test_weights_without_tensors_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "m")
    checkpoints.write_raw_safetensors(folder / "model.safetensors", {}, 0)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        inspect(folder, "m")


def test_a_tokenizer_cut_short_is_refused(tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "m")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {"vo')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged .*cut short"):
        inspect(folder, "m")


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json", "vocab.json", "qwen.tiktoken"])
def test_other_tokenizer_files_are_accepted(tmp_path: Path, name: str) -> None:
    folder = checkpoints.without_tokenizer(tmp_path / "m")
    (folder / name).write_text("{}")
    assert inspect(folder, "m").kind == "vision"


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama"}, "text"),
        ({"model_type": "smolvlm", "vision_config": {"hidden_size": 8}}, "vision"),
        ({"model_type": "gemma3", "vision_config": {"hidden_size": 8}}, "vision"),
        # The language half of a vision model, as it is saved by itself.
        ({"model_type": "gemma3", "vision_config": None, "image_token_index": 9}, "text"),
        ({"model_type": "gemma3_text"}, "text"),
        ({"model_type": "llava_qwen2", "mm_vision_tower": "mobileclip_l_1024"}, "vision"),
        ({"model_type": "phi3_v", "img_processor": {"name": "clip"}}, "vision"),
        (
            {"model_type": "phi4mm", "embd_layer": {"image_embd_layer": {"crop_size": 448}}},
            "vision",
        ),
        ({"model_type": "qwen2_vl", "vision_start_token_id": 5}, "vision"),
        ({"model_type": "qwen3_omni_moe", "thinker_config": {"vision_config": {"a": 1}}}, "vision"),
        # Nothing in these configs but the architecture speaks of images.
        ({"model_type": "molmo"}, "vision"),
        ({"model_type": "moondream1"}, "vision"),
        ({"model_type": "qwen3_5_text"}, "text"),
        ({"model_type": "qwen2", "_name_or_path": "org/vision-vlm-llava"}, "text"),
        ({"model_type": "no_such_type"}, "text"),
    ],
)
def test_the_kind_is_read_from_the_config(config: dict[str, Any], kind: str) -> None:
    assert kind_of(config) == kind


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, None),
        ({"quantization": None}, None),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4-bit, group 64"),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}, "4-bit, group 64"),
        (
            {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}},
            "mxfp4, 4-bit, group 32",
        ),
        (
            {"quantization": {"group_size": 64, "bits": 4, "model.head": {"bits": 8}}},
            "4-bit, group 64, mixed",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": []}, None),
    ],
)
def test_quantization_is_described(config: dict[str, Any], said: str | None) -> None:
    assert quantization_of(config) == said


def test_unknown_architecture_error_names_both_library_versions(tmp_path: Path) -> None:
    from importlib.metadata import version

    folder = checkpoints.unknown_architecture(tmp_path / "m")
    with pytest.raises(UnsupportedModelError) as caught:
        inspect(folder, "m")
    for word in (f"mlx-vlm {version('mlx-vlm')}", f"mlx-lm {version('mlx-lm')}", "'hologram9000'"):
        assert word in str(caught.value)


def test_architecture_must_be_known_to_the_library_of_its_kind(tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "m", {"model_type": "qwen3_5_text"})
    with pytest.raises(UnsupportedModelError, match=r"mlx-lm .* does not know .* as a text model"):
        inspect(folder, "m")


@pytest.mark.parametrize("model_type", ["base", "cache", "../llama", "llama.x", "a/b", "x\ny", ""])
def test_helper_modules_are_not_architectures(model_type: str) -> None:
    for library in (architectures.VISION_LIBRARY, architectures.TEXT_LIBRARY):
        assert architectures.knows(library, {"model_type": model_type}) is False


@pytest.mark.parametrize(
    ("library", "model_type"),
    [
        ("mlx_vlm", "smolvlm"),
        ("mlx_vlm", "Llava_Qwen2"),  # mlx-vlm lowers, then renames
        ("mlx_vlm", "lfm2-vl"),
        ("mlx_lm", "llama"),
        ("mlx_lm", "mistral"),
        ("mlx_lm", "lille-130m"),
    ],
)
def test_known_architectures_are_known(library: str, model_type: str) -> None:
    assert architectures.knows(library, {"model_type": model_type}) is True


def test_library_with_another_layout_refuses_no_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architectures, "library", lambda name: None)
    folder = checkpoints.unknown_architecture(tmp_path / "m")
    assert inspect(folder, "m").model_type == "hologram9000"


def test_missing_library_is_reported() -> None:
    assert architectures.library("mlx_nothing_of_this_name") is None


def test_code_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    folder = checkpoints.with_model_file(checkpoints.without_weights(tmp_path / "m"))
    with pytest.raises(UntrustedCodeError):
        inspect(folder, "m", trust_remote_code=False)
    with pytest.raises(CheckpointError, match="no weights"):
        inspect(folder, "m")


def test_checkpoint_with_its_own_code_can_use_any_architecture_name(tmp_path: Path) -> None:
    folder = checkpoints.with_model_file(checkpoints.unknown_architecture(tmp_path / "m"))
    checkpoint = inspect(folder, "m")
    checkpoint.require_trust(True)
    with pytest.raises(UntrustedCodeError) as caught:
        checkpoint.require_trust(False)
    assert caught.value.wanted == ("config.json: model_file = 'evil.py'",)
    assert isinstance(caught.value, MlxMagicError)


def test_inspecting_imports_no_model_library(tmp_path: Path) -> None:
    folder = checkpoints.good(tmp_path / "m")
    code = (
        "import sys; from mlx_magic.models.checkpoints.checkpoint import resolve\n"
        f"c = resolve({str(folder)!r}, aliases={{}})\n"
        "slow = {'mlx', 'mlx_vlm', 'mlx_lm', 'transformers', 'huggingface_hub'}\n"
        "import json; print(json.dumps([c.kind, sorted(slow & set(sys.modules))]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == ["vision", []]
