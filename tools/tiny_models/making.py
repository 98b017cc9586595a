"""What the specs share: the tokenizer, the random weights, quantization and chat templates."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

Config = dict[str, Any]

LLAMA_SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
LLAMA: Config = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
}
QWEN_TEXT: Config = {**LLAMA, "tie_word_embeddings": False}

# With larger ones, the last word decides the next if output and input share the embedding.
EMBEDDING_GAINS = {"embed": 0.5, "wte": 0.5}

# Kinds of rotary position embeddings. Tests go beyond 64 positions.
LLAMA3_ROPE: Config = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE: Config = {"type": "linear", "rope_type": "linear", "factor": 4.0}
DYNAMIC_ROPE: Config = {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
YARN_ROPE: Config = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
DEEPSEEK_YARN_ROPE: Config = {
    **YARN_ROPE,
    "factor": 40.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}


def long_rope(dims: int, kind: str = "longrope") -> Config:
    """
    Make a `rope_scaling` as Phi's, with one factor for each pair of dimensions.

    Parameters
    ----------
    dims
        Number of rotated dimensions of a head.
    kind
        ``longrope`` or, as in older checkpoints, ``su``.

    Returns
    -------
    dict
        The configuration.
    """
    pairs = dims // 2
    return {
        "type": kind,
        "rope_type": kind,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + 0.05 * pair for pair in range(pairs)],
        "long_factor": [1.0 + pair for pair in range(pairs)],
    }


# The latent attention of DeepSeek V2 and V3.
LATENT: Config = {
    "model_type": "deepseek_v2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_shared_experts": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 32,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "topk_method": "greedy",
    "scoring_func": "softmax",
}
LATENT_V3: Config = {
    **LATENT,
    "model_type": "deepseek_v3",
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
}

CLIP_NORM: Config = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
HALF_NORM: Config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def write(path: Path, held: str | Mapping[str, Any]) -> None:
    """
    Write text, or a mapping as JSON.

    Parameters
    ----------
    path
        The file. Missing parent folders are made.
    held
        What to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(held, str):
        held = json.dumps(held, indent=1, ensure_ascii=False) + "\n"
    path.write_text(held, encoding="utf-8")


def finish(folder: Path, config: Mapping[str, Any]) -> None:
    """
    Write ``config.json`` and a ``generation_config.json`` that decodes greedily.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    config
        The configuration.
    """
    ends = {key: config[key] for key in ("eos_token_id", "pad_token_id") if key in config}
    write(folder / "config.json", config)
    write(folder / "generation_config.json", {"do_sample": False, **ends})


def tokenizer(
    folder: Path,
    specials: Iterable[str],
    *,
    eos: str,
    style: Literal["bytes", "spm"] = "bytes",
    size: int = 700,
    bos: str | None = None,
    pad: str | None = None,
    unk: str | None = None,
    tokenizer_class: str = "PreTrainedTokenizerFast",
    post_bos: bool = False,
    extra: Mapping[str, Any] | None = None,
    at: Mapping[str, int] | None = None,
    additional: Sequence[str] | None = None,
) -> tuple[int, dict[str, int]]:
    """
    Train a byte-pair tokenizer and write its two files.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    specials
        Special tokens. They get the first numbers.
    eos, bos, pad, unk
        The special tokens of these roles. Without `pad`, `eos` is used.
    style
        ``bytes`` as GPT-2 and Qwen, ``spm`` as SentencePiece with byte fallback.
    size
        Size of the vocabulary.
    tokenizer_class
        ``tokenizer_class`` of ``tokenizer_config.json``.
    post_bos
        Whether the tokenizer puts `bos` before a text.
    extra
        Further entries of ``tokenizer_config.json``.
    at
        Special tokens with a fixed number above the trained vocabulary.
    additional
        ``additional_special_tokens``. Without it, `specials`.

    Returns
    -------
    tuple
        Size of the trained vocabulary, and the number of each special token.
    """
    specials = tuple(specials)
    held = json.loads(_trained(specials, style, size, unk))
    ids: dict[str, int] = {token["content"]: token["id"] for token in held["added_tokens"]}
    if post_bos and bos:
        held["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}},
        }
    for content, number in (at or {}).items():
        held["added_tokens"].append(
            {
                "id": number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        )
        ids[content] = number
    config = {
        "tokenizer_class": tokenizer_class,
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "pad_token": pad or eos,
        "additional_special_tokens": list(specials if additional is None else additional),
        **({"bos_token": bos} if bos else {}),
        **({"unk_token": unk} if unk else {}),
        **(extra or {}),
    }
    write(folder / "tokenizer.json", json.dumps(held, ensure_ascii=False))
    write(folder / "tokenizer_config.json", config)
    return len(held["model"]["vocab"]), ids


@lru_cache(maxsize=64)
def _trained(specials: tuple[str, ...], style: str, size: int, unk: str | None) -> str:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    corpus = (Path(__file__).parent / "corpus.txt").read_text(encoding="utf-8").splitlines()
    if style == "bytes":
        trained = Tokenizer(models.BPE())
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trained.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(specials),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        trained.train_from_iterator(corpus, trainer)
        return str(trained.to_str())
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token=unk or specials[0], fuse_unk=True))
    trained.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
    trained.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*specials, *byte_tokens], show_progress=False
    )
    trained.train_from_iterator(corpus, trainer)
    held = json.loads(trained.to_str())
    # Real SentencePiece tokenizers merge across the whole text. The bytes are ordinary tokens.
    held["pre_tokenizer"] = None
    held["added_tokens"] = [
        token for token in held["added_tokens"] if token["content"] not in byte_tokens
    ]
    return json.dumps(held, ensure_ascii=False)


def randomize(
    model: Any, seed: int, gain: float = 2.0, gains: Mapping[str, float] | None = None
) -> None:
    """
    Make the weights large enough that each part of the model changes the answers.

    Parameters
    ----------
    model
        The model, initialized at random.
    seed
        Seed of what is added to vectors and constant matrices.
    gain
        Factor of the matrices.
    gains
        Factors of the matrices whose names contain a key.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    mx.random.seed(seed)
    made = []
    for name, array in tree_flatten(model.parameters()):
        if not mx.issubdtype(array.dtype, mx.floating):
            made.append((name, array))
            continue
        array = array.astype(mx.float32)
        if name.endswith("dt_bias"):
            # State-space layers as initialized forget a prompt before its last words.
            array = array - 4.0
        if array.ndim < 2:
            array = array + 0.1 * mx.random.normal(array.shape)
        elif array.size < 2 or float(mx.std(array)) < 1e-6:
            array = array + 0.3 * mx.random.normal(array.shape)
        else:
            array = array * next((by for key, by in (gains or {}).items() if key in name), gain)
        made.append((name, array))
    model.update(tree_unflatten(made))
    mx.eval(model.parameters())


def vlm_weights(
    folder: Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    gain: float = 2.0,
    gains: Mapping[str, float] | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Any:
    """
    Write random weights for mlx-vlm.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    config
        The configuration.
    seed
        Seed of the weights.
    gain, gains
        Factors as for `randomize`.
    prepare
        Called with the model before its weights are scaled.

    Returns
    -------
    mlx.nn.Module
        The model.
    """
    import mlx.core as mx

    mx.random.seed(seed)
    model = vlm_model(config)
    if prepare:
        prepare(model)
    randomize(model, seed, gain, gains)
    _end_rarely(model, config)
    save(folder, model)
    return model


def vlm_model(given: Mapping[str, Any]) -> Any:
    """
    Make a model of mlx-vlm with the weights of its initialization, which are not computed yet.

    Parameters
    ----------
    given
        The configuration. It is not changed.

    Returns
    -------
    mlx.nn.Module
        The model.
    """
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    # As mlx_vlm.load_model reads a configuration. The library changes what it is given.
    config = copy.deepcopy(dict(given))
    model_class, _ = get_model_and_args(config)
    config.setdefault("text_config", config.pop("llm_config", {}))
    config.setdefault("vision_config", {})
    config.setdefault("audio_config", {})
    model_config = update_module_configs(
        model_class.ModelConfig.from_dict(config),
        model_class,
        config,
        ["text", "vision", "perceiver", "projector", "audio"],
    )
    return model_class.Model(model_config)


def lm_weights(
    folder: Path,
    config: Mapping[str, Any],
    *,
    seed: int = 0,
    gain: float = 2.0,
    gains: Mapping[str, float] | None = None,
) -> Any:
    """
    Write random weights for mlx-lm.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    config
        The configuration.
    seed
        Seed of the weights.
    gain, gains
        Factors as for `randomize`.

    Returns
    -------
    mlx.nn.Module
        The model.
    """
    import mlx.core as mx

    mx.random.seed(seed)
    model = _lm_model(config)
    randomize(model, seed, gain, gains)
    _end_rarely(model, config)
    save(folder, model)
    return model


def text_model(
    folder: Path,
    *,
    config: Mapping[str, Any],
    gain: float = 2.0,
    gains: Mapping[str, float] | None = None,
    seed: int = 0,
    **overrides: Any,
) -> None:
    """
    Write a whole checkpoint for mlx-lm.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    config
        The configuration without what the tokenizer decides.
    gain, gains
        Factors as for `randomize`.
    seed
        Seed of the weights.
    **overrides
        Other values of the configuration, or of its ``text_config`` if it has one.
    """
    size, ids = tokenizer(
        folder,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    write(folder / "chat_template.jinja", chatml())
    made = {
        **config,
        "vocab_size": size,
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
    }
    if "text_config" in made:
        made["text_config"] = {**made["text_config"], "vocab_size": size, **overrides}
    else:
        made |= overrides
    finish(folder, made)
    lm_weights(folder, made, seed=seed, gain=gain, gains={**EMBEDDING_GAINS, **(gains or {})})


def save(folder: Path, model: Any) -> None:
    """
    Write a model's weights as ``model.safetensors``.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    model
        The model.
    """
    import mlx.core as mx
    from mlx.utils import tree_flatten

    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def change_weights(folder: Path, change: Callable[[str, Any], Any]) -> None:
    """
    Change weights that are written already.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    change
        Called with the name of a weight and its array. Returns the new array.
    """
    import mlx.core as mx

    path = str(folder / "model.safetensors")
    held: Any = mx.load(path)
    weights = {name: change(name, array) for name, array in held.items()}
    mx.eval(weights)
    mx.save_safetensors(path, weights, metadata={"format": "mlx"})


def quantize(
    folder: Path, library: Literal["mlx-vlm", "mlx-lm"], *, bits: int = 4, group_size: int = 64
) -> None:
    """
    Quantize a checkpoint in place.

    As in the conversions by mlx-vlm, image encoders stay in float32.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    library
        The library that runs it.
    bits
        Bits of a weight.
    group_size
        Number of weights that share a scale.
    """
    import mlx.nn as nn
    from mlx_vlm.utils import skip_multimodal_module

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = vlm_model(config) if library == "mlx-vlm" else _lm_model(config)
    model.load_weights(str(folder / "model.safetensors"))

    def quantized(path: str, module: Any) -> bool:
        if not hasattr(module, "to_quantized") or skip_multimodal_module(path):
            return False
        weight = module.weight
        return bool(weight.shape[-1] % group_size == 0 and weight.size % 64 == 0)

    nn.quantize(model, group_size=group_size, bits=bits, class_predicate=quantized)
    config["quantization"] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    config["quantization_config"] = config["quantization"]
    save(folder, model)
    write(folder / "config.json", config)


def _end_rarely(model: Any, config: Mapping[str, Any]) -> None:
    """Make the logits of the end tokens smaller, so that few answers are short."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten

    rows = [1.0] * config["vocab_size"]
    # mlx-vlm cannot detokenize DeepSeek's first token and its padding in an answer.
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        ends = config.get(key, [])
        for end in ends if isinstance(ends, list) else [ends]:
            rows[end] = 0.5
    scale = mx.array(rows)[:, None]
    made = [
        (name, array * scale)
        for name, array in tree_flatten(model.parameters())
        if array.ndim == 2 and array.shape[0] == len(rows)
    ]
    model.update(tree_unflatten(made))


def _lm_model(given: Mapping[str, Any]) -> Any:
    from mlx_lm.utils import _get_classes

    config = copy.deepcopy(dict(given))
    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(config))


def chatml(
    image: str = "<image>",
    *,
    bos: str = "",
    start: str = "<|im_start|>",
    end: str = "<|im_end|>",
) -> str:
    r"""
    Make a chat template as Qwen's, with images in their place among the words.

    Parameters
    ----------
    image
        What stands for an image.
    bos
        What comes before the first message, as a template.
    start, end
        What surrounds a message.

    Returns
    -------
    str
        The template.
    """
    first = "{% if loop.first %}" + bos + "{% endif %}" if bos else ""
    return (
        "{% for message in messages %}" + first + start + "{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] in ('image', 'image_url') %}" + image + ""
        "{% elif 'text' in part %}{{ part['text'] }}"
        "{% elif 'content' in part %}{{ part['content'] }}{% endif %}{% endfor %}{% endif %}"
        + end
        + "\n{% endfor %}{% if add_generation_prompt %}"
        + start
        + "assistant\n{% endif %}"
    )


def gemma_template(
    image: str, *, start: str = "<start_of_turn>", end: str = "<end_of_turn>"
) -> str:
    """
    Make a chat template as Gemma's.

    Parameters
    ----------
    image
        What stands for an image, as a template.
    start, end
        What surrounds a message.

    Returns
    -------
    str
        The template.
    """
    return (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
        "{% else %}{% set role = message['role'] %}{% endif %}"
        "{{ '" + start + "' + role + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + ""
        "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
        "{% endif %}{{ '" + end + "\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + start + "model\n' }}{% endif %}"
    )


def llava_template(image: str = "<image>\n") -> str:
    """
    Make a chat template as LLaVA 1.5's.

    Parameters
    ----------
    image
        What stands for an image.

    Returns
    -------
    str
        The template.
    """
    return (
        "{% for message in messages %}{% if message['role'] == 'system' %}{{ 'SYSTEM: ' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' }}{% else %}{{ 'ASSISTANT: ' }}{% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "{{ '" + image.replace("\n", "\\n") + "' }}"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ ' ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


def parts_template(turn: str, image: str, *, first: str = "", last: str, end: str = "") -> str:
    """
    Make a chat template out of what surrounds a message.

    Parameters
    ----------
    turn
        What comes before a message, as a template. ``message['role']`` is its role.
    image
        What stands for an image.
    first
        What comes before all messages, as a template.
    last
        What asks for an answer.
    end
        What comes after a message, as a template.

    Returns
    -------
    str
        The template.
    """
    return (
        first + "{% for message in messages %}" + turn + ""
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + image + ""
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        + end
        + "{% endfor %}{% if add_generation_prompt %}"
        + last
        + "{% endif %}"
    )


def clip_processor(folder: Path, side: int, kind: str = "CLIPImageProcessor", **more: Any) -> None:
    """
    Write ``preprocessor_config.json`` as CLIP's.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    side
        Side of the square that images are cropped to.
    kind
        ``image_processor_type``.
    **more
        Further entries.
    """
    held = {
        "image_processor_type": kind,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        **CLIP_NORM,
        **more,
    }
    write(folder / "preprocessor_config.json", held)


def siglip_processor(
    folder: Path, side: int, kind: str = "SiglipImageProcessor", **more: Any
) -> None:
    """
    Write ``preprocessor_config.json`` as SigLIP's.

    Parameters
    ----------
    folder
        Folder of the checkpoint.
    side
        Side of the square that images are scaled to.
    kind
        ``image_processor_type``.
    **more
        Further entries.
    """
    held = {
        "image_processor_type": kind,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"height": side, "width": side},
        **HALF_NORM,
        **more,
    }
    write(folder / "preprocessor_config.json", held)


def tower(kind: str, **more: Any) -> Config:
    """
    Make the configuration of a two-layer image encoder.

    Parameters
    ----------
    kind
        ``model_type``.
    **more
        Other entries, and other values of those that are there.

    Returns
    -------
    dict
        The configuration.
    """
    return {
        "model_type": kind,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 112,
        "patch_size": 14,
        **more,
    }
