"""Idefics3, SmolVLM, Llama 3.2 Vision, Phi, DeepSeek, Kimi, LFM2 and Florence-2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tools.tiny_models.making import (
    CLIP_NORM,
    DEEPSEEK_YARN_ROPE,
    EMBEDDING_GAINS,
    HALF_NORM,
    LATENT,
    LATENT_V3,
    LLAMA,
    LLAMA3_ROPE,
    change_weights,
    chatml,
    clip_processor,
    finish,
    long_rope,
    parts_template,
    tokenizer,
    tower,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import four_bit, shrinks, vary, vision


@vision("smolvlm", most_used=True)
def _smolvlm(folder: Path, **text: Any) -> None:
    import mlx_magic

    bundled = Path(mlx_magic.demo_model())
    for name in (
        "chat_template.jinja",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        shutil.copyfile(bundled / name, folder / name)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    special = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    size = len(vocabulary["model"]["vocab"])
    config = {
        "model_type": "smolvlm",
        "architectures": ["SmolVLMForConditionalGeneration"],
        "vocab_size": size,
        "scale_factor": 2,
        "image_token_id": ids["<image>"],
        "bos_token_id": ids[special["bos_token"]],
        "eos_token_id": sorted({ids[special["eos_token"]], ids[special["pad_token"]]}),
        "pad_token_id": ids[special["pad_token"]],
        "torch_dtype": "float32",
        "text_config": {
            **LLAMA,
            "model_type": "llama",
            "vocab_size": size,
            "head_dim": 16,
            "tie_word_embeddings": False,
            **text,
        },
        "vision_config": tower("siglip_vision_model", image_size=128, patch_size=8, num_channels=3),
    }
    finish(folder, config)
    vlm_weights(folder, config, seed=1)


# As SmolVLM-2.2B. SmolVLM-256M and 500M have grouped key-value heads.
vary("smolvlm", "mha", num_key_value_heads=4)
four_bit("smolvlm")


def _idefics3_like(
    folder: Path, model_type: str, kind: str, encoder: str, text: dict[str, Any]
) -> None:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    size, ids = tokenizer(
        folder,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<end_of_utterance>",
            "<image>",
            "<fake_token_around_image>",
            "<global-img>",
            *tiles,
        ),
        bos="<|begin_of_text|>",
        eos="<end_of_utterance>",
        pad="<|end_of_text|>",
    )
    template = (
        "<|begin_of_text|>{% for message in messages %}{{ message['role'].capitalize() }}:"
        "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
        "{% for line in message['content'] %}"
        "{% if line['type'] == 'text' %}{{ ' ' + line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}"
        "<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    )
    write(folder / "chat_template.jinja", template)
    write(
        folder / "processor_config.json",
        {"processor_class": f"{kind}Processor", "image_seq_len": 16},
    )
    preprocessor = {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "resample": 1,
        "max_image_size": {"longest_edge": 112},
        "size": {"longest_edge": 224},
        **HALF_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        "model_type": model_type,
        "vocab_size": size,
        "image_token_id": ids["<image>"],
        "scale_factor": 2,
        "eos_token_id": [ids["<end_of_utterance>"], ids["<|end_of_text|>"]],
        "torch_dtype": "float32",
        "text_config": {**LLAMA, "model_type": "llama", "vocab_size": size, **text},
        "vision_config": tower(encoder),
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("idefics3")
def _idefics3(folder: Path, **text: Any) -> None:
    _idefics3_like(folder, "idefics3", "Idefics3", "idefics3", text)


vary("idefics3", "mha", num_key_value_heads=4)


@vision("smolvlm", name="smolvlm_tiles", variant="tiles")
def _smolvlm_tiles(folder: Path, **text: Any) -> None:
    _idefics3_like(folder, "smolvlm", "SmolVLM", "siglip_vision_model", text)


@vision("mllama")
def _mllama(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|image|>",
            "<|python_tag|>",
            "<|finetune_right_pad_id|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
    )
    template = parts_template(
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}",
        "{{ '<|image|>' }}",
        first="{{ bos_token }}",
        end="{{ '<|eot_id|>' }}",
        last="{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    )
    write(folder / "chat_template.jinja", template)
    preprocessor = {
        "image_processor_type": "MllamaImageProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "resample": 2,
        "max_image_tiles": 4,
        "size": {"height": 112, "width": 112},
        **CLIP_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    ratios = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
    config = {
        "model_type": "mllama",
        "vocab_size": size,
        "image_token_index": ids["<|image|>"],
        "eos_token_id": [ids["<|eot_id|>"], ids["<|end_of_text|>"]],
        "torch_dtype": "float32",
        "text_config": {
            **LLAMA,
            "model_type": "mllama_text_model",
            "vocab_size": size,
            "num_hidden_layers": 3,
            "cross_attention_layers": [1],
            **text,
        },
        "vision_config": tower(
            "mllama_vision_model",
            num_hidden_layers=3,
            max_num_tiles=4,
            num_global_layers=2,
            vision_output_dim=64 * 3,
            intermediate_layers_indices=[0, 1],
            supported_aspect_ratios=ratios,
        ),
    }
    finish(folder, config)
    vlm_weights(folder, config)

    def opened(name: str, array: Any) -> Any:
        import mlx.core as mx

        gate = "gate" in name.rpartition(".")[2] and array.size == 1
        return mx.full(array.shape, 0.8, dtype=array.dtype) if gate else array

    # Gates of nearly zero would hide the images.
    change_weights(folder, opened)


# As all checkpoints of Llama 3.2 Vision.
vary(
    "mllama",
    "rope llama3",
    rope_scaling=LLAMA3_ROPE,
)


@shrinks("phi3_v")
def _shrink_phi3_v() -> None:
    from types import SimpleNamespace

    from mlx_vlm.models.phi3_v.vision import VisionModel

    large = vars(VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG)
    small = {**large, "num_hidden_layers": 2, "intermediate_size": 128}
    VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG = SimpleNamespace(**small)


@vision("phi3_v")
def _phi3_v(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "<unk>",
            "<s>",
            "</s>",
            "<|endoftext|>",
            "<|user|>",
            "<|assistant|>",
            "<|system|>",
            "<|end|>",
        ),
        bos="<s>",
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        unk="<unk>",
        post_bos=True,
    )
    template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>' + '\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    write(folder / "chat_template.jinja", template)
    preprocessor = {
        "image_processor_type": "Phi3VImageProcessor",
        "num_crops": 1,
        "num_img_tokens": 144,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    config = {
        "model_type": "phi3_v",
        "vocab_size": size,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5,
        "eos_token_id": [ids["<|endoftext|>"], ids["<|end|>"]],
        "torch_dtype": "float32",
        "img_processor": {"name": "clip_vision_model"},
        "vision_config": {"model_type": "phi3_v", "hidden_size": 64},
        "text_config": {"model_type": "phi3_v"},
        **text,
    }
    finish(folder, config)
    vlm_weights(folder, config)


vary(
    "phi3_v",
    "rope su",
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
    rope_scaling=long_rope(16, "su"),
)


@vision("phi4mm")
def _phi4mm(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "<|endoftext|>",
            "<|end|>",
            "<|user|>",
            "<|assistant|>",
            "<|system|>",
            "<|endoftext10|>",
            "<|endoftext11|>",
        ),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
    )
    template = (
        "{% for message in messages %}"
        "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    write(folder / "chat_template.jinja", template)
    lora = {
        "layer": "((layers.*self_attn\\.(qkv_proj|o_proj))|(layers.*mlp\\.(gate_up|down)_proj))",
        "lora_alpha": 16,
        "r": 8,
        "dp": 0.0,
    }
    config = {
        "model_type": "phi4mm",
        "vocab_size": size,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-5,
        "eos_token_id": [ids["<|endoftext|>"], ids["<|end|>"]],
        "pad_token_id": ids["<|endoftext|>"],
        "torch_dtype": "float32",
        "max_num_patches": 64,
        "min_num_patches": 16,
        "mm_hidden_size": 64,
        "image_token_index": -200,
        "audio_token_index": ids["<|endoftext11|>"],
        "vision_lora": lora,
        "speech_lora": {**lora, "lora_alpha": 32},
        "tie_word_embeddings": True,
        "embd_layer": {"image_embd_layer": {"crop_size": 112}},
        "audio_processor": {
            "config": {
                "attention_dim": 32,
                "attention_heads": 2,
                "num_blocks": 1,
                "linear_units": 64,
                "ext_pw_out_channel": 32,
                "depthwise_seperable_out_channel": 32,
                "conv_channels": 32,
            }
        },
        "vision_config": tower("siglip2_vision_model"),
        **text,
    }
    finish(folder, config)
    vlm_weights(folder, config, gains=EMBEDDING_GAINS)


vary(
    "phi4mm",
    "rope longrope",
    max_position_embeddings=1024,
    original_max_position_embeddings=64,
    rope_scaling=long_rope(12),
)


@vision("deepseek_vl_v2")
def _deepseek_vl_v2(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "<\uff5cbegin▁of▁sentence\uff5c>",
            "<\uff5cend▁of▁sentence\uff5c>",
            "<\uff5c▁pad▁\uff5c>",
            "<image>",
            "<|ref|>",
            "<|/ref|>",
            "<|det|>",
            "<|/det|>",
            "<|grounding|>",
            "<|User|>",
            "<|Assistant|>",
        ),
        bos="<\uff5cbegin▁of▁sentence\uff5c>",
        eos="<\uff5cend▁of▁sentence\uff5c>",
        pad="<\uff5c▁pad▁\uff5c>",
    )
    resolutions = [[112, 112], [112, 224], [224, 112], [224, 224], [336, 112]]
    processor = {
        "processor_class": "DeepseekVLV2Processor",
        "candidate_resolutions": resolutions,
        "patch_size": 14,
        "downsample_ratio": 2,
        "image_token": "<image>",
        "pad_token": "<\uff5c▁pad▁\uff5c>",
        "sft_format": "deepseek",
        **HALF_NORM,
    }
    write(folder / "processor_config.json", processor)
    config = {
        "model_type": "deepseek_vl_v2",
        "vocab_size": size,
        "image_token_index": ids["<image>"],
        "bos_token_id": ids["<\uff5cbegin▁of▁sentence\uff5c>"],
        "pad_token_id": ids["<\uff5c▁pad▁\uff5c>"],
        "eos_token_id": ids["<\uff5cend▁of▁sentence\uff5c>"],
        "torch_dtype": "float32",
        "tile_tag": "2D",
        "global_view_pos": "head",
        "candidate_resolutions": resolutions,
        "language_config": {**LATENT, "vocab_size": size, **text},
        "vision_config": {
            "model_type": "vision",
            "layers": 2,
            "width": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 14,
            "mlp_ratio": 2.0,
        },
        "projector_config": {
            "model_type": "mlp_projector",
            "projector_type": "downsample_mlp_gelu",
            "input_dim": 64,
            "n_embed": 64,
            "depth": 2,
            "mlp_ratio": 1,
            "downsample_ratio": 2,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config, gains={"projector": 6.0}, seed=2)


# As deepseek-vl2-tiny, which has ordinary attention.
vary("deepseek_vl_v2", "rope yarn", rope_scaling=DEEPSEEK_YARN_ROPE)
vary("deepseek_vl_v2", "mha", qk_rope_head_dim=0, qk_nope_head_dim=0, v_head_dim=0)


@vision("kimi_vl")
def _kimi_vl(folder: Path, **text: Any) -> None:
    size, ids = tokenizer(
        folder,
        (
            "[BOS]",
            "[EOS]",
            "[PAD]",
            "[UNK]",
            "<|im_end|>",
            "<|im_user|>",
            "<|im_assistant|>",
            "<|im_system|>",
            "<|im_middle|>",
            "<|media_start|>",
            "<|media_content|>",
            "<|media_end|>",
            "<|media_pad|>",
        ),
        bos="[BOS]",
        eos="[EOS]",
        pad="[PAD]",
        unk="[UNK]",
    )
    template = parts_template(
        "{{ '<|im_' + message['role'] + '|>' + message['role'] + '<|im_middle|>' }}",
        "<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
        end="{{ '<|im_end|>' }}",
        last="{{ '<|im_assistant|>assistant<|im_middle|>' }}",
    )
    write(folder / "chat_template.jinja", template)
    config = {
        "model_type": "kimi_vl",
        "vocab_size": size,
        "media_placeholder_token_id": ids["<|media_pad|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["[EOS]"]],
        "torch_dtype": "float32",
        "text_config": {**LATENT_V3, "vocab_size": size, **text},
        "vision_config": {
            "model_type": "moonvit",
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 64,
            "num_heads": 4,
            "patch_size": 14,
            "intermediate_size": 128,
            "init_pos_emb_height": 16,
            "init_pos_emb_width": 16,
            "merge_kernel_size": [2, 2],
            "num_channels": 3,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


vary("kimi_vl", "rope yarn", rope_scaling=DEEPSEEK_YARN_ROPE)


@vision("lfm2_vl")
def _lfm2_vl(folder: Path, **text: Any) -> None:
    markers = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)]
    size, ids = tokenizer(
        folder,
        (
            "<|pad|>",
            "<|startoftext|>",
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<image>",
            "<|image_start|>",
            "<|image_end|>",
            "<|img_thumbnail|>",
            *markers,
        ),
        bos="<|startoftext|>",
        eos="<|im_end|>",
        pad="<|pad|>",
        extra={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail": "<|img_thumbnail|>",
        },
    )
    write(folder / "chat_template.jinja", chatml("<image>", bos="{{ bos_token }}"))
    processor = {"processor_class": "Lfm2VlProcessor", "use_image_special_tokens": True}
    write(folder / "processor_config.json", processor)
    limits = {
        "downsample_factor": 2,
        "encoder_patch_size": 16,
        "tile_size": 128,
        "max_image_tokens": 16,
        "min_image_tokens": 4,
        "max_num_patches": 64,
        "max_tiles": 4,
    }
    preprocessor = {
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "processor_class": "Lfm2VlProcessor",
        **limits,
        "min_tiles": 2,
        "max_pixels_tolerance": 2.0,
        "resample": 2,
        **HALF_NORM,
    }
    write(folder / "preprocessor_config.json", preprocessor)
    encoder = tower("siglip2_vision_model", num_channels=3, patch_size=16, num_patches=64)
    del encoder["image_size"]
    config = {
        "model_type": "lfm2-vl",
        "vocab_size": size,
        "image_token_id": ids["<image>"],
        "image_token_index": ids["<image>"],
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
        **limits,
        "projector_hidden_size": 64,
        "text_config": {
            "model_type": "lfm2",
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": size,
            "block_dim": 64,
            "block_ff_dim": 128,
            "conv_dim": 64,
            "conv_dim_out": 64,
            "num_heads": 4,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "eos_token_id": ids["<|im_end|>"],
            **text,
        },
        "vision_config": encoder,
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("florence2")
def _florence2(folder: Path) -> None:
    paired = ("od", "ocr", "cap", "ncap", "dcap", "grounding", "seg", "region_cap", "proposal")
    size, ids = tokenizer(
        folder,
        (
            *("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>", "<sep>", "<florence_image>"),
            *(f"<loc_{place}>" for place in range(1000)),
            *(f"<{end}{name}>" for name in (*paired, "poly", "and") for end in ("", "/")),
            *("<region_to_desciption>", "</region_to_desciption>"),
        ),
        size=2000,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        additional=[],
    )
    side = {"height": 128, "width": 128}
    clip_processor(
        folder,
        128,
        processor_class="Florence2Processor",
        do_center_crop=False,
        size=side,
        crop_size=side,
        image_seq_length=17,
    )
    config = {
        "model_type": "florence2",
        "vocab_size": size,
        "image_token_id": ids["<image>"],
        "image_token_index": ids["<image>"],
        "eos_token_id": ids["</s>"],
        "bos_token_id": ids["<s>"],
        "pad_token_id": ids["<pad>"],
        "torch_dtype": "float32",
        "projection_dim": 64,
        "text_config": {
            "model_type": "florence2_language",
            "d_model": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "vocab_size": size,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "max_position_embeddings": 1024,
        },
        "vision_config": {
            "model_type": "davit",
            "depths": [1, 1, 1, 1],
            "dim_embed": [16, 32, 64, 64],
            "num_heads": [2, 2, 4, 4],
            "num_groups": [2, 2, 4, 4],
            "window_size": 4,
            "projection_dim": 64,
            "image_size": [128, 128],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)
