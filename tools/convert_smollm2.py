"""Make mlx-lm folders for tests: SmolLM2 from its GGUF, and the language model of a SmolVLM.

Usage: python -m tools.convert_smollm2 GGUF_PATH OUT_DIR
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Names of tensors in llama.cpp and in mlx-lm.
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
# Defaults of mlx-vlm for keys that a smolvlm config.json omits; those of mlx-lm differ.
_SMOLVLM = {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5, "vocab_size": 49152}
_LLAMA = {"architectures": ["LlamaForCausalLM"], "attention_bias": False, "mlp_bias": False}
# GGUF's type of a control token.
_CONTROL = 3


def convert(gguf: Path, out: Path, *, quantized: bool = True) -> Path:
    """Convert a llama GGUF with a GPT-2 tokenizer, such as SmolLM2's, to an mlx-lm folder.

    Parameters
    ----------
    gguf : Path
        Q4_0, Q4_1 or Q8_0, which MLX reads as affine weights in groups of 32.
    out : Path
        Folder to make; files in it are replaced.
    quantized : bool
        False writes float32: 540 MB, and more than twice as fast on MLX's CPU backend.

    Returns
    -------
    Path
        `out`.
    """
    import mlx.core as mx

    loaded: Any = mx.load(str(gguf), return_metadata=True)
    tensors, metadata = loaded
    config = _config(tensors, metadata)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    weights = {}
    for name, tensor in tensors.items():
        new = mlx_name(name)
        part = new.split(".")[-2]
        weights[new] = unpermuted(tensor, heads[part]) if part in heads else tensor
    if not quantized:
        weights = _dequantized(weights, config.pop("quantization")["group_size"])
    _save(out, weights, config)
    _write_tokenizer(out, metadata)
    return out


def _dequantized(weights: Mapping[str, Any], group_size: int) -> dict[str, Any]:
    import mlx.core as mx

    whole = {}
    for name, tensor in weights.items():
        prefix = name.rpartition(".")[0]
        if name.endswith((".scales", ".biases")):
            continue
        if f"{prefix}.scales" in weights:
            scales, biases = weights[f"{prefix}.scales"], weights[f"{prefix}.biases"]
            bits = 32 * tensor.shape[-1] // (group_size * scales.shape[-1])
            tensor = mx.dequantize(tensor, scales, biases, group_size=group_size, bits=bits)
        whole[name] = tensor.astype(mx.float32)
    return whole


def mlx_name(name: str) -> str:
    """Rename a tensor: ``blk.3.attn_q.scales`` to ``model.layers.3.self_attn.q_proj.scales``."""
    if found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name):
        layer, part, kind = found.groups()
        return f"model.layers.{layer}.{_LAYER_NAMES[part]}.{kind}"
    part, kind = name.split(".")
    return f"{_NAMES[part]}.{kind}"


def unpermuted(tensor: Any, heads: int) -> Any:
    """Undo llama.cpp's order of rows, which interleaves the pairs of the rotary embedding.

    Parameters
    ----------
    tensor : mlx.core.array
        Weights, scales or biases; rows are outputs.
    heads : int
        Number of heads in the rows.
    """
    rows, *rest = tensor.shape
    pairs = tensor.reshape(heads, rows // heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(rows, *rest)


def language_name(name: str) -> str | None:
    """Rename a tensor of a SmolVLM to mlx-lm's llama; None if it is not in the language model.

    Takes mlx-vlm's names (``language_model.norm.weight``) and transformers' own
    (``model.text_model.norm.weight``, ``lm_head.weight``).
    """
    if name.startswith("lm_head."):
        return name
    found = re.fullmatch(r"(?:language_model|(?:model\.)?text_model)\.(.+)", name)
    if found is None:
        return None
    return found[1] if found[1].startswith("lm_head.") else f"model.{found[1]}"


def tiny_text_folder(vlm: Path, out: Path) -> Path:
    """Save the language model of a SmolVLM checkpoint as a text model.

    Parameters
    ----------
    vlm : Path
        A smolvlm or idefics3 folder with one weight file.
    out : Path
        Folder to make; files in it are replaced.

    Returns
    -------
    Path
        `out`.
    """
    import mlx.core as mx

    whole = json.loads((vlm / "config.json").read_text(encoding="utf-8"))
    tensors: Any = mx.load(str(vlm / "model.safetensors"))
    weights = {new: tensors[name] for name in tensors if (new := language_name(name))}
    config = {
        **_LLAMA,
        **_SMOLVLM,
        **{key: whole[key] for key in ("eos_token_id", "pad_token_id") if key in whole},
        **whole["text_config"],
        "model_type": "llama",
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }
    if "quantization" in whole:
        config["quantization"] = whole["quantization"]
    _save(out, weights, config)
    for pattern in ("tokenizer*", "special_tokens*", "generation_config.json", "chat_template*"):
        for file in vlm.glob(pattern):
            shutil.copyfile(file, out / file.name)
    return out


def _config(tensors: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    def number(key: str) -> Any:
        return metadata[key].item()

    return {
        **_LLAMA,
        "model_type": "llama",
        "hidden_size": number("llama.embedding_length"),
        "num_hidden_layers": number("llama.block_count"),
        "intermediate_size": number("llama.feed_forward_length"),
        "num_attention_heads": number("llama.attention.head_count"),
        "num_key_value_heads": number("llama.attention.head_count_kv"),
        "rms_norm_eps": round(number("llama.attention.layer_norm_rms_epsilon"), 12),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "max_position_embeddings": number("llama.context_length"),
        "rope_theta": number("llama.rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": number("tokenizer.ggml.bos_token_id"),
        "eos_token_id": number("tokenizer.ggml.eos_token_id"),
        # mlx-lm infers other bit widths, such as of 8-bit embeddings, from the shapes.
        "quantization": {"group_size": 32, "bits": 4},
    }


def _save(out: Path, weights: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    import mlx.core as mx

    out.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(out / "model.safetensors"), dict(weights), metadata={"format": "mlx"})
    _write_json(out / "config.json", config)


def _write_tokenizer(out: Path, metadata: Mapping[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.save(str(out / "tokenizer.json"))

    def token(key: str) -> str:
        return str(tokens[metadata[f"tokenizer.ggml.{key}_token_id"].item()])

    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token("bos"),
            "eos_token": token("eos"),
            "unk_token": token("unknown"),
            "pad_token": token("padding"),
            "model_max_length": metadata["llama.context_length"].item(),
            "clean_up_tokenization_spaces": False,
            "chat_template": metadata["tokenizer.chat_template"],
        },
    )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Run from the command line."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    gguf, out = map(Path, arguments)
    if not gguf.is_file():
        print(f"There is no file {gguf}.", file=sys.stderr)
        return 1
    print(convert(gguf, out))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
