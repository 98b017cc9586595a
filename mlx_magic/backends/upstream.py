"""The names of mlx-vlm, mlx-lm, transformers and Jinja that these libraries do not document.

This is the only place that names them. Each mechanism is checked once, at its first use; see
`upstream_checks`. Documented names, such as ``mlx_vlm.stream_generate``, are imported where they
are used. Hub names are in `models.hub.upstream`, ipykernel's in `notebook.kernel.shell_tap`.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from mlx_magic.models.upstream_checks import Mechanism, Name

_LM, _LM_CACHE = "mlx_lm.generate", "mlx_lm.models.cache"
_VLM, _VLM_CACHE = "mlx_vlm.generate.common", "mlx_vlm.models.cache"


def _caches(module: str) -> tuple[Name, ...]:
    return (
        Name(module, "make_prompt_cache", ("model",)),
        Name(module, "KVCache", ()),
        Name(module, "KVCache.update_and_fetch", ("keys", "values")),
        Name(module, "KVCache.to_quantized", (), ("group_size", "bits")),
        Name(module, "KVCache.state"),
    )


def _batch_caches(module: str) -> tuple[Name, ...]:
    return (
        Name(module, "KVCache.merge", ("caches",)),
        Name(module, "BatchKVCache.extend", ("other",)),
        Name(module, "BatchKVCache.filter", ("batch_indices",)),
        Name(module, "BatchKVCache.prepare", (), ("right_padding",)),
        Name(module, "BatchKVCache.finalize", ()),
        Name(module, "BatchKVCache.size", ()),
        Name(module, "BatchKVCache.state"),
    )


TEXT_LOAD = Mechanism(
    "loading of text models in slices",
    Name("mlx_lm.utils"),
    Name("mlx_lm.utils", "mx"),
    Name("mlx_lm.utils", "load_model", ("model_path",), ("lazy", "trust_remote_code")),
    Name("mlx_lm.utils", "load_adapters", ("model", "adapter_path")),
    Name(
        "mlx_lm.utils",
        "load_tokenizer",
        ("model_path", "tokenizer_config_extra"),
        ("eos_token_ids",),
    ),
)
"""Otherwise ``mlx_lm.load`` loads the model in one piece."""

TEXT_CACHES = Mechanism("the choice of KV caches of text models", *_caches(_LM_CACHE))
"""Otherwise mlx-lm makes the caches itself."""

TEXT_BATCHES = Mechanism(
    "batching of text models",
    *_caches(_LM_CACHE),
    *_batch_caches(_LM_CACHE),
    Name(_LM, "generation_stream"),
    Name(_LM, "wired_limit", ("model", "streams")),
    Name("mlx_lm.tokenizer_utils", "TokenizerWrapper.eos_token_ids"),
    Name("mlx_lm.tokenizer_utils", "TokenizerWrapper.detokenizer"),
    Name("mlx_lm.tokenizer_utils", "StreamingDetokenizer.add_token", ("token",)),
    Name("mlx_lm.tokenizer_utils", "StreamingDetokenizer.finalize", ()),
    Name("mlx_lm.tokenizer_utils", "StreamingDetokenizer.last_segment"),
)
"""Otherwise requests are answered one at a time, by ``mlx_lm.stream_generate``."""

VISION_LOAD = Mechanism(
    "loading of vision models in slices",
    Name("mlx_vlm.utils"),
    Name("mlx_vlm.utils", "mx"),
    Name("mlx_vlm.utils", "load_model", ("model_path",), ("lazy", "strict", "trust_remote_code")),
    Name("mlx_vlm.utils", "load_image_processor", ("model_path",), ("trust_remote_code",)),
    Name(
        "mlx_vlm.utils",
        "load_processor",
        ("model_path", "add_detokenizer"),
        ("eos_token_ids", "trust_remote_code"),
    ),
)
"""Otherwise ``mlx_vlm.load`` loads the model in one piece."""

VISION_ADAPTERS = Mechanism(
    "loading of vision models with an adapter in slices",
    Name("mlx_vlm.trainer.peft.utils", "apply_lora_layers", ("model", "adapter_path")),
)
"""The same, for a model with an adapter."""

VISION_INPUTS = Mechanism(
    "the processor's call for vision models",
    Name(
        "mlx_vlm.utils",
        "prepare_inputs",
        ("processor",),
        ("images", "prompts", "image_token_index", "add_special_tokens"),
    ),
    Name("mlx_vlm.utils", "should_add_special_tokens", ("model_type", "processor")),
)
"""Otherwise ``mlx_vlm.stream_generate`` calls the processor. See `vision.inputs`."""

VISION_CACHES = Mechanism("the choice of KV caches of vision models", *_caches(_VLM_CACHE))
"""Otherwise mlx-vlm makes the caches itself."""

VISION_BATCHES = Mechanism(
    "batching of vision models",
    *_caches(_VLM_CACHE),
    *_batch_caches(_VLM_CACHE),
    Name(_VLM, "generation_stream"),
    Name(_VLM, "wired_limit", ("model", "streams")),
    Name(_VLM, "resolve_sampling_defaults", ("config",), ("temperature", "top_p", "top_k")),
    Name(
        _VLM,
        "_chunked_prefill_enabled",
        ("model",),
        ("input_ids", "inputs_embeds", "prompt_cache", "prefill_kwargs"),
    ),
    Name("mlx_vlm.tokenizer_utils", "make_streaming_detokenizer", ("processor",)),
    Name(
        "mlx_vlm.tokenizer_utils",
        "StreamingDetokenizer.add_token",
        ("token",),
        ("skip_special_token_ids",),
    ),
    Name("mlx_vlm.tokenizer_utils", "StreamingDetokenizer.finalize", ()),
    Name("mlx_vlm.tokenizer_utils", "StreamingDetokenizer.last_segment"),
    Name("mlx_vlm.models.base", "InputEmbeddingsFeatures.to_dict", ()),
)
"""Otherwise requests are answered one at a time, by ``mlx_vlm.stream_generate``."""

VISION_PREFIXES = Mechanism("the prefix cache of vision models", library="mlx-vlm")
"""Turned off if a model stores something of a prompt in itself that `POSITIONS` does not name."""

ROPE_DELTAS = "_rope_deltas"
"""Attribute of language models of mlx-vlm with rotary positions in three parts: what the positions
of the last prompt add to the count of its tokens."""

POSITIONS = (ROPE_DELTAS, "_position_ids", "get_rope_index")
"""Attributes of such models that store the positions of the last prompt, and the method that
computes them."""

FAST_MODULES = Mechanism("faster modules", library="mlx")
"""Otherwise the library's own modules are used."""

CPU_ENCODERS = Mechanism(
    "faster vision encoders on this CPU",
    Name("mlx_vlm.models.attention", "VisionAttention", ("dims", "num_heads")),
    Name("mlx_vlm.models.attention", "VisionAttention.__call__", ("x", "mask")),
)
"""Otherwise the library's own modules are used."""

CONTROL_TOKENS = Mechanism(
    "questions with words that look like control tokens",
    Name("transformers", "PreTrainedTokenizerFast", (), ("tokenizer_object",)),
    Name("transformers", "PreTrainedTokenizerFast.backend_tokenizer"),
)
"""Otherwise such questions are refused."""

_TEMPLATES = "transformers.utils.chat_template_utils"

COMPILES = "_compile_jinja_template"
"""Function of transformers that compiles a template, which ours replaces."""

TEMPLATE_HOOK = Mechanism(
    "time and memory limits of chat templates",
    Name(_TEMPLATES),
    Name(_TEMPLATES, COMPILES, ("chat_template",)),
    Name(
        _TEMPLATES,
        "render_jinja_template",
        (),
        ("conversations", "chat_template", "add_generation_prompt"),
    ),
)
"""Otherwise transformers renders in its own sandbox, which has no limits."""

JINJA_RUNTIME = "jinja2.runtime"
"""Module of the classes of Jinja's own values in a template, such as macros."""

TEMPLATE_SANDBOX = Mechanism(
    "our sandbox of chat templates",
    Name("jinja2.compiler", "CodeGenerator"),
    *(
        Name("jinja2.compiler", f"CodeGenerator.{visit}", ("node", "frame"))
        for visit in (
            "visit_Compare",
            "visit_Concat",
            "visit_List",
            "visit_Dict",
            "visit_Tuple",
            "visit_Getitem",
            "visit_ScopedEvalContextModifier",
            "visit_Include",
            "visit_Import",
            "visit_FromImport",
            "visit_Extends",
        )
    ),
    Name("jinja2.compiler", "CodeGenerator.write", ("x",)),
    Name("jinja2.compiler", "CodeGenerator.writeline", ("x",)),
    Name("jinja2.compiler", "CodeGenerator.visit"),
    Name("jinja2.compiler", "CodeGenerator.blockvisit", ("nodes", "frame")),
    Name("jinja2.environment", "Environment._tokenize"),
    Name("jinja2.environment", "Environment._compile", ("source", "filename")),
    Name("jinja2.filters", "make_attrgetter", ("environment", "attribute"), ("default",)),
    Name(JINJA_RUNTIME, "BlockReference"),
    Name(JINJA_RUNTIME, "LoopContext"),
    Name(JINJA_RUNTIME, "Macro"),
    Name(JINJA_RUNTIME, "Undefined"),
    Name(JINJA_RUNTIME, "str_join", ("seq",)),
    Name("jinja2.utils", "Cycler"),
    Name("jinja2.utils", "Joiner"),
    Name("jinja2.utils", "Namespace"),
    Name("jinja2.utils", "_PassArg.from_obj", ("obj",)),
    Name("jinja2.utils", "_PassArg"),
    Name("jinja2.sandbox", "SandboxedFormatter", ("env",)),
    Name("jinja2.sandbox", "SandboxedEnvironment.call_binop"),
    Name("jinja2.sandbox", "SandboxedEnvironment.wrap_str_format", ("value",)),
    Name("jinja2.sandbox", "SandboxedEnvironment.unsafe_undefined", ("obj", "attribute")),
)
"""Otherwise Jinja's own sandbox renders, which has no limits."""


COPIED_CODE = Mechanism(
    "the guard against a checkpoint's own code",
    Name("transformers.utils.hub", "HF_MODULES_CACHE"),
)
"""Otherwise a load without ``--trust-remote-code`` is refused."""


def inner_tokenizer(tokenizer: Any) -> Any:
    """Return transformers' tokenizer inside mlx-lm's wrapper; another tokenizer as it is."""
    inner = getattr(tokenizer, "_tokenizer", None)
    # A tokenizer of transformers has such an attribute, too: its Rust tokenizer.
    is_wrapped = hasattr(inner, "decode") and hasattr(inner, "all_special_tokens")
    return inner if is_wrapped else tokenizer


def rust_tokenizer(tokenizer: Any) -> Any:
    """Return the Rust tokenizer of transformers' tokenizer; None if it has none."""
    return getattr(tokenizer, "backend_tokenizer", None) or getattr(tokenizer, "_tokenizer", None)


def set_rust_tokenizer(tokenizer: Any, made: Any) -> None:
    """Let a copy of transformers' tokenizer use another Rust tokenizer."""
    tokenizer._tokenizer = made


def keeps_positions(language_model: Any) -> bool:
    """Whether a language model stores the positions of the last prompt in itself."""
    return any(hasattr(language_model, name) for name in POSITIONS)


def stored_positions(language_model: Any) -> dict[str, Any]:
    """Return the positions of the last prompt that a language model has stored in itself."""
    names = (name for name in POSITIONS[:-1] if hasattr(language_model, name))
    return {name: getattr(language_model, name) for name in names}


def restore_positions(language_model: Any, positions: dict[str, Any]) -> None:
    """Let a language model have the positions of another prompt."""
    for name, value in positions.items():
        setattr(language_model, name, value)


def ignored_inputs(language_model: Any) -> frozenset[str]:
    """Return the inputs that ``get_input_embeddings`` gives and a language model never reads.

    gemma3's is ``attention_mask_4d``: its language model names no such argument (mlx-vlm 0.7.10).
    """
    kind = type(language_model)
    if kind.__module__ != "mlx_vlm.models.gemma3.language":
        return frozenset()
    source = inspect.getsourcefile(kind)
    text = "" if source is None else Path(source).read_text("utf-8", "replace")
    return frozenset(name for name in ("attention_mask_4d",) if text and name not in text)


def positions_are_known(language_model: Any) -> bool:
    """Whether the positions that a language model computes, if it does, can be read."""
    return not hasattr(language_model, POSITIONS[-1]) or hasattr(language_model, ROPE_DELTAS)


def loaded_streams() -> list[Any]:
    """Return the streams on which the libraries that are loaded generate."""
    modules = (sys.modules.get(name) for name in (_LM, _VLM))
    streams = (getattr(module, "generation_stream", None) for module in modules)
    return [stream for stream in streams if stream is not None]
