"""Tiny checkpoints of mlx-vlm's further architectures: dense language models."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from tools.tiny_models.making import (
    CLIP_NORM,
    HALF_NORM,
    LLAMA,
    QWEN_TEXT,
    Config,
    chatml,
    clip_processor,
    finish,
    llava_template,
    parts_template,
    siglip_processor,
    tokenizer,
    tower,
    vlm_weights,
    write,
)
from tools.tiny_models.spec import shrinks, vision

CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]


def _cohere(folder: Path, model_type: str, template_image: str, **more: object) -> Config:
    specials = (
        "<PAD>",
        "<UNK>",
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
        "<image>",
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE_GLOBAL",
        "TILE",
    )
    size, ids = tokenizer(
        folder,
        specials,
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        unk="<UNK>",
        tokenizer_class="CohereTokenizerFast",
        extra={
            "image_token": "<|IMG_PATCH|>",
            "boi_token": "<|START_OF_IMG|>",
            "eoi_token": "<|END_OF_IMG|>",
            "img_line_break_token": "<|IMG_LINE_BREAK|>",
        },
    )
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{% if message['role'] == 'user' %}{% set turn = '<|USER_TOKEN|>' %}"
            "{% elif message['role'] == 'system' %}{% set turn = '<|SYSTEM_TOKEN|>' %}"
            "{% else %}{% set turn = '<|CHATBOT_TOKEN|>' %}{% endif %}"
            "{{ '<|START_OF_TURN_TOKEN|>' + turn }}",
            template_image,
            first="{{ bos_token }}",
            last="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
            end="<|END_OF_TURN_TOKEN|>",
        ),
    )
    return {
        "model_type": model_type,
        "vocab_size": size,
        "image_token_index": ids["<|IMG_PATCH|>"],
        "image_token_id": ids["<|IMG_PATCH|>"],
        "eos_token_id": ids["<|END_OF_TURN_TOKEN|>"],
        "pad_token_id": 0,
        "torch_dtype": "float32",
        "downsample_factor": 2,
        "alignment_intermediate_size": 128,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {
            **LLAMA,
            "model_type": "cohere2",
            "vocab_size": size,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "sliding_window": 32,
            "sliding_window_pattern": 4,
            # Command R's logit scale of 1/16 would make all tokens nearly as likely.
            "logit_scale": 1.0,
        },
        "vision_config": tower("siglip_vision_model"),
        **more,
    }


@vision("aya_vision")
def aya_vision(folder: Path) -> None:
    """Write a tiny checkpoint of aya_vision."""
    config = _cohere(folder, "aya_vision", "<image>", max_splits_per_img=4)
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "rescale_factor": 1 / 255,
            "resample": 3,
            "size": {"height": 112, "width": 112},
            **HALF_NORM,
        },
    )
    write(
        folder / "processor_config.json",
        {
            "processor_class": "AyaVisionProcessor",
            "patch_size": 14,
            "img_size": 112,
            "downsample_factor": 2,
            "image_token": "<image>",
        },
    )
    finish(folder, config)
    vlm_weights(folder, config)


@vision("idefics2")
def idefics2(folder: Path) -> None:
    """Write a tiny checkpoint of idefics2."""
    specials = (
        "<unk>",
        "<s>",
        "</s>",
        "<pad>",
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        style="spm",
        size=900,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        post_bos=True,
        tokenizer_class="LlamaTokenizerFast",
    )
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{{ message['role'].capitalize() + ': ' }}",
            "<image>",
            last="Assistant:",
            end="<end_of_utterance>\n",
        ),
    )
    write(
        folder / "processor_config.json",
        {"processor_class": "Idefics2Processor", "image_seq_len": 8},
    )
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Idefics2ImageProcessor",
            "do_convert_rgb": True,
            "do_image_splitting": False,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "rescale_factor": 1 / 255,
            "resample": 2,
            "size": {"longest_edge": 112, "shortest_edge": 56},
            **HALF_NORM,
        },
    )
    config: Config = {
        "model_type": "idefics2",
        "vocab_size": size,
        "image_token_id": ids["<image>"],
        "eos_token_id": [ids["</s>"], ids["<end_of_utterance>"]],
        "pad_token_id": ids["<pad>"],
        "torch_dtype": "float32",
        "text_config": {**LLAMA, "model_type": "mistral", "vocab_size": size},
        "vision_config": tower("idefics2"),
        "perceiver_config": {
            "model_type": "idefics2",
            "num_key_value_heads": 2,
            "resampler_depth": 2,
            "resampler_head_dim": 16,
            "resampler_n_heads": 4,
            "resampler_n_latents": 8,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("llava_onevision")
def llava_onevision(folder: Path) -> None:
    """Write a tiny checkpoint of llava_onevision."""
    size, ids = tokenizer(
        folder,
        (*CHATML_SPECIALS, "<image>", "<video>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<image>\n"))
    write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": 64,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
        },
    )
    siglip_processor(
        folder,
        112,
        "LlavaOnevisionImageProcessor",
        do_pad=True,
        do_convert_rgb=True,
        image_grid_pinpoints=PINPOINTS,
    )
    write(
        folder / "video_preprocessor_config.json",
        {
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "size": {"height": 112, "width": 112},
            **HALF_NORM,
        },
    )
    config: Config = {
        "model_type": "llava_onevision",
        "vocab_size": size,
        "image_token_index": ids["<image>"],
        "video_token_index": ids["<video>"],
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
        "image_grid_pinpoints": PINPOINTS,
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "text_config": {**QWEN_TEXT, "model_type": "qwen2", "vocab_size": size},
        "vision_config": {**tower("siglip_vision_model"), "vision_use_head": False},
    }
    finish(folder, config)
    vlm_weights(folder, config)


GRANITE_SPECIALS = (
    "<|end_of_text|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<image>",
    "<|pad|>",
    "<|unk|>",
)


def _granite(folder: Path, model_type: str, **more: object) -> Config:
    size, ids = tokenizer(
        folder,
        GRANITE_SPECIALS,
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        pad="<|pad|>",
        unk="<|unk|>",
        tokenizer_class="GPT2TokenizerFast",
    )
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}",
            "<image>\n",
            last="<|start_of_role|>assistant<|end_of_role|>",
            end="<|end_of_text|>\n",
        ),
    )
    config: Config = {
        "model_type": model_type,
        "vocab_size": size,
        "image_token_index": ids["<image>"],
        "eos_token_id": ids["<|end_of_text|>"],
        "pad_token_id": ids["<|pad|>"],
        "torch_dtype": "float32",
        "image_grid_pinpoints": PINPOINTS,
        "vision_feature_select_strategy": "full",
        "text_config": {
            **LLAMA,
            "model_type": "granite",
            "vocab_size": size,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "tie_word_embeddings": True,
        },
        **more,
    }
    return config


@vision("granite_vision")
def granite_vision(folder: Path) -> None:
    """Write a tiny checkpoint of granite_vision."""
    config = _granite(
        folder,
        "granite_vision",
        vision_feature_layer=[-3, -2, -1],
        vision_config=tower("siglip_vision_model", num_hidden_layers=3),
    )
    write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaNextProcessor",
            "patch_size": 14,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
        },
    )
    clip_processor(
        folder, 112, "LlavaNextImageProcessor", do_pad=True, image_grid_pinpoints=PINPOINTS
    )
    finish(folder, config)
    # Embeddings times 12 would drown the layers, which are times 0.22.
    vlm_weights(folder, config, gains={"embed_tokens": 0.1})


@shrinks("granite4_vision")
def _granite4_vision_small() -> None:
    from mlx_vlm.models.granite4_vision import downsampling

    class Small(downsampling.QFormerConfig):  # type: ignore[misc]
        def __init__(self, **kept: int) -> None:
            super().__init__(**{**kept, "intermediate_size": 128})

    downsampling.QFormerConfig = Small


@vision("granite4_vision")
def granite4_vision(folder: Path) -> None:
    """Write a tiny checkpoint of granite4_vision."""
    config = _granite(
        folder,
        "granite4_vision",
        downsample_rate="4/8",
        use_spatial_sampling=True,
        deepstack_layer_map=[[-3, 0], [-1, 1]],
        spatial_vision_layer=-1,
        spatial_target_layers=[2, 3, 2, 3],
        vision_config=tower("siglip_vision_model", num_hidden_layers=3),
    )
    config["text_config"].update(
        model_type="granitemoehybrid", num_hidden_layers=4, logits_scaling=10.0
    )
    write(
        folder / "processor_config.json",
        {
            "processor_class": "Granite4VisionProcessor",
            "patch_size": 14,
            "downsample_rate": "4/8",
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
        },
    )
    clip_processor(
        folder, 112, "LlavaNextImageProcessor", do_pad=True, image_grid_pinpoints=PINPOINTS
    )
    finish(folder, config)
    vlm_weights(folder, config)


@vision("multi_modality")
def multi_modality(folder: Path) -> None:
    """Write a tiny checkpoint of multi_modality."""
    specials = (
        "<\uff5cbegin▁of▁sentence\uff5c>",
        "<\uff5cend▁of▁sentence\uff5c>",
        "<\uff5c▁pad▁\uff5c>",
        "<image_placeholder>",
        "<image>",
        "<begin_of_image>",
        "<end_of_image>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        bos=specials[0],
        eos=specials[1],
        pad=specials[2],
        tokenizer_class="LlamaTokenizerFast",
    )
    write(folder / "chat_template.jinja", llava_template("<image>"))
    # mlx-vlm brings its own image processor, of 384 pixels.
    siglip_processor(folder, 384)
    config: Config = {
        "model_type": "multi_modality",
        "vocab_size": size,
        "image_token_index": ids["<image>"],
        "eos_token_id": ids[specials[1]],
        "torch_dtype": "float32",
        "num_image_tokens": 144,
        "text_config": {**LLAMA, "model_type": "llama", "vocab_size": size},
        "vision_config": {
            **tower("vision", image_size=384, patch_size=32),
            "cls": "CLIPVisionTower",
            "params": {"image_size": 384},
        },
        "aligner_config": {
            "model_type": "aligner",
            "cls": "MlpProjector",
            "params": {"depth": 2, "input_dim": 64, "n_embed": 64, "projector_type": "mlp_gelu"},
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("molmo")
def molmo(folder: Path) -> None:
    """Write a tiny checkpoint of molmo."""
    specials = (
        "<|endoftext|>",
        "<im_start>",
        "<im_end>",
        "<im_patch>",
        "<im_col>",
        "<|image|>",
        "<unk>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        unk="<unk>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(
        folder / "chat_template.jinja",
        parts_template("{{ ' ' + message['role'].capitalize() + ': ' }}", "", last=" Assistant:"),
    )
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "MolmoImageProcessor",
            "max_crops": 4,
            "overlap_margins": [2, 2],
            "base_image_input_size": [112, 112],
            "image_token_length_w": 4,
            "image_token_length_h": 4,
            "image_patch_size": 14,
            "image_padding_mask": True,
            "do_normalize": True,
        },
    )
    config: Config = {
        "model_type": "molmo",
        "vocab_size": size,
        "eos_token_id": [ids["<|endoftext|>"]],
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "molmo",
            "d_model": 64,
            "n_heads": 4,
            "n_kv_heads": 2,
            "n_layers": 2,
            "mlp_hidden_size": 256,
            "vocab_size": size,
            "embedding_size": size,
            "additional_vocab_size": 16,
        },
        "vision_config": {
            "model_type": "molmo",
            "image_default_input_size": [112, 112],
            "image_emb_dim": 64,
            "image_num_heads": 4,
            "image_num_key_value_heads": 4,
            "image_num_layers": 3,
            "image_head_dim": 16,
            "image_mlp_dim": 128,
            "image_num_pos": 65,
            "hidden_size": 128,
            "d_model": 64,
            "vit_layers": [-1, -2],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@shrinks("hunyuan_vl")
def _hunyuan_vl_small() -> None:
    from mlx_vlm.models.hunyuan_vl.processing_hunyuan_vl import HunYuanVLProcessor

    # The processor takes the numbers of the real vocabulary of 120818 tokens.
    HunYuanVLProcessor.PAD_TOKEN_ID = 0
    HunYuanVLProcessor.IM_START_TOKEN_ID = 5
    HunYuanVLProcessor.IM_END_TOKEN_ID = 6
    HunYuanVLProcessor.IMAGE_TOKEN_ID = 7


@vision("hunyuan_vl")
def hunyuan_vl(folder: Path) -> None:
    """Write a tiny checkpoint of hunyuan_vl."""
    specials = (
        "<\uff5chy_▁pad▁\uff5c>",
        "<\uff5chy_begin▁of▁sentence\uff5c>",
        "<\uff5chy_EOT\uff5c>",
        "<\uff5chy_User\uff5c>",
        "<\uff5chy_Assistant\uff5c>",
        "<\uff5chy_place▁holder▁no▁100\uff5c>",
        "<\uff5chy_place▁holder▁no▁101\uff5c>",
        "<\uff5chy_place▁holder▁no▁102\uff5c>",
    )
    size, _ = tokenizer(folder, specials, bos=specials[1], eos=specials[2], pad=specials[0])
    # The processor puts the last token for an image at first: not one that questions contain.
    held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    held["model"]["vocab"]["<\uff5chy_place▁holder▁no▁799\uff5c>"] = size
    size += 1
    write(folder / "tokenizer.json", json.dumps(held, ensure_ascii=False))
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{% if message['role'] == 'assistant' %}<\uff5chy_Assistant\uff5c>"
            "{% elif message['role'] == 'user' %}<\uff5chy_User\uff5c>{% endif %}",
            f"{specials[5]}{specials[7]}{specials[6]}",
            first="{{ bos_token }}",
            last=specials[4],
        ),
    )
    config: Config = {
        **LLAMA,
        "model_type": "hunyuan_vl",
        "vocab_size": size,
        "org_vocab_size": size,
        "head_dim": 16,
        "attention_head_dim": 16,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "eod_token_id": 2,
        "pad_token_id": 0,
        "pad_id": 0,
        "image_start_token_id": 5,
        "image_end_token_id": 6,
        "image_token_id": 7,
        "torch_dtype": "float32",
        "tie_word_embeddings": True,
        "use_qk_norm": True,
        "min_pixels": 4 * 32 * 32,
        "max_pixels": 64 * 32 * 32,
        "rope_scaling": {
            "type": "xdrope",
            "xdrope_section": [2, 2, 2, 2],
            "alpha": 1000.0,
            "factor": 1.0,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
        "vision_config": {
            "model_type": "hunyuan_vl",
            "hidden_size": 64,
            "out_hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "patch_size": 16,
            "max_image_size": 256,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config, gain=3.0, gains={"embed_tokens": 0.5})


@shrinks("dots_ocr")
def _dots_ocr_small() -> None:
    from mlx_vlm.models.dots_ocr.processing_dots_ocr import DotsVLProcessor

    set_up = DotsVLProcessor.__init__

    # The library reads the signature.
    @functools.wraps(set_up)
    def set_up_small(self: Any, *given: Any, **named: Any) -> None:
        set_up(self, *given, **named)
        # The processor takes the numbers of the real vocabulary of 151936 tokens.
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = self.tokenizer.convert_tokens_to_ids(self.video_token)

    DotsVLProcessor.__init__ = set_up_small


@vision("dots_ocr")
def dots_ocr(folder: Path) -> None:
    """Write a tiny checkpoint of dots_ocr."""
    specials = (
        "<|endoftext|>",
        "<|user|>",
        "<|endofuser|>",
        "<|assistant|>",
        "<|endofassistant|>",
        "<|system|>",
        "<|endofsystem|>",
        "<|img|>",
        "<|endofimg|>",
        "<|imgpad|>",
        "<|video_pad|>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        eos="<|endofassistant|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{{ '<|' + message['role'] + '|>' }}",
            "<|img|><|imgpad|><|endofimg|>",
            last="<|assistant|>",
            end="{{ '<|endof' + message['role'] + '|>' }}",
        ),
    )
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "DotsVLProcessor",
            "patch_size": 14,
            "temporal_patch_size": 1,
            "merge_size": 2,
            "min_pixels": 4 * 28 * 28,
            "max_pixels": 64 * 28 * 28,
            **CLIP_NORM,
        },
    )
    config: Config = {
        **QWEN_TEXT,
        "model_type": "dots_ocr",
        "vocab_size": size,
        "image_token_id": ids["<|imgpad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "eos_token_id": [ids["<|endofassistant|>"], ids["<|endoftext|>"]],
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "dots_vit",
            "embed_dim": 64,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 14,
            "temporal_patch_size": 1,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("internvl")
def internvl(folder: Path) -> None:
    """Write a tiny checkpoint of internvl."""
    specials = (*CHATML_SPECIALS, "<img>", "</img>", "<IMG_CONTEXT>", "<image>")
    size, ids = tokenizer(
        folder,
        specials,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<IMG_CONTEXT>\n"))
    write(
        folder / "processor_config.json",
        {"processor_class": "InternVLProcessor", "image_seq_length": 16},
    )
    clip_processor(folder, 112, "GotOcr2ImageProcessor")
    config: Config = {
        "model_type": "internvl",
        "vocab_size": size,
        "image_token_id": ids["<IMG_CONTEXT>"],
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
        "downsample_ratio": 0.5,
        "max_dynamic_patch": 4,
        "text_config": {**QWEN_TEXT, "model_type": "qwen3", "vocab_size": size, "head_dim": 16},
        "vision_config": {
            **tower("internvl_vision"),
            "image_size": [112, 112],
            "patch_size": [14, 14],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


GLM_SPECIALS = (
    "<|endoftext|>",
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|image|>",
    "<|video|>",
    "<|begin_of_box|>",
    "<|end_of_box|>",
)


def glm_files(folder: Path) -> tuple[int, dict[str, int]]:
    """
    Write the tokenizer and the processor's files of the GLM models.

    Parameters
    ----------
    folder
        Folder of the checkpoint.

    Returns
    -------
    tuple
        As from `tokenizer`.
    """
    size, ids = tokenizer(folder, GLM_SPECIALS, eos="<|endoftext|>")
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{{ '<|' + message['role'] + '|>\\n' }}",
            "<|begin_of_image|><|image|><|end_of_image|>",
            first="[gMASK]<sop>",
            last="<|assistant|>\n",
        ),
    )
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Glm4vImageProcessor",
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "size": {"shortest_edge": 4 * 28 * 28, "longest_edge": 64 * 28 * 28},
            **CLIP_NORM,
        },
    )
    return size, ids


@vision("glm_ocr")
def glm_ocr(folder: Path) -> None:
    """Write a tiny checkpoint of glm_ocr."""
    size, ids = glm_files(folder)
    config: Config = {
        "model_type": "glm_ocr",
        "vocab_size": size,
        "hidden_size": 64,
        "torch_dtype": "float32",
        "image_token_id": ids["<|image|>"],
        "video_token_id": ids["<|video|>"],
        "image_start_token_id": ids["<|begin_of_image|>"],
        "image_end_token_id": ids["<|end_of_image|>"],
        "video_start_token_id": ids["<|begin_of_video|>"],
        "video_end_token_id": ids["<|end_of_video|>"],
        "eos_token_id": [ids["<|endoftext|>"], ids["<|user|>"]],
        "pad_token_id": 0,
        "text_config": {
            "model_type": "glm_ocr_text",
            "vocab_size": size,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "head_dim": 16,
            "num_nextn_predict_layers": 0,
            "eos_token_id": [0],
            "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
                "partial_rotary_factor": 1.0,
                "rope_theta": 10000.0,
            },
        },
        "vision_config": {
            "model_type": "glm_ocr_vision",
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 14,
            "image_size": 112,
            "out_hidden_size": 64,
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("molmo2")
def molmo2(folder: Path) -> None:
    """Write a tiny checkpoint of molmo2."""
    specials = (
        *CHATML_SPECIALS,
        "<im_start>",
        "<im_end>",
        "<im_patch>",
        "<im_col>",
        "<low_res_im_start>",
        "<|image|>",
        "<im_low>",
        "<frame_start>",
        "<frame_end>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        bos="<|im_end|>",
        eos="<|im_end|>",
        pad="<|endoftext|>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<|image|>"))
    # mlx-vlm takes these sizes, whatever a checkpoint says.
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Molmo2ImageProcessor",
            "size": {"height": 378, "width": 378},
            "max_crops": 8,
            "overlap_margins": [4, 4],
            "patch_size": 14,
            "pooling_size": [2, 2],
            **HALF_NORM,
        },
    )
    config: Config = {
        "model_type": "molmo2",
        "vocab_size": size,
        "eos_token_id": ids["<|im_end|>"],
        "torch_dtype": "float32",
        "image_start_token_id": ids["<im_start>"],
        "image_end_token_id": ids["<im_end>"],
        "low_res_image_start_token_id": ids["<low_res_im_start>"],
        "image_low_res_id": ids["<im_low>"],
        "image_patch_id": ids["<im_patch>"],
        "image_col_id": ids["<im_col>"],
        "frame_start_token_id": ids["<frame_start>"],
        "frame_end_token_id": ids["<frame_end>"],
        "text_config": {
            **LLAMA,
            "model_type": "molmo2",
            "vocab_size": size,
            "additional_vocab_size": 16,
            "head_dim": 16,
        },
        "vit_config": {
            "model_type": "molmo2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "image_num_pos": 729,
            "image_default_input_size": [378, 378],
        },
        "adapter_config": {
            "model_type": "molmo2",
            "hidden_size": 64,
            "intermediate_size": 128,
            "text_hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "vit_layers": [-1, -3],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("minicpmv4_6")
def minicpmv4_6(folder: Path) -> None:
    """Write a tiny checkpoint of minicpmv4_6."""
    specials = (
        *CHATML_SPECIALS,
        "<image>",
        "</image>",
        "<slice>",
        "</slice>",
        "<image_id>",
        "</image_id>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<unk>",
        "<|listen|>",
    )
    size, ids = tokenizer(
        folder,
        specials,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        unk="<unk>",
        tokenizer_class="Qwen2TokenizerFast",
    )
    write(folder / "chat_template.jinja", chatml("<image>./</image>"))
    write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "MiniCPMVImageProcessor",
            "max_slice_nums": 4,
            "patch_size": 14,
            "scale_resolution": 112,
            "image_feature_size": 4,
            "slice_mode": True,
        },
    )
    config: Config = {
        "model_type": "minicpmv4_6",
        "vocab_size": size,
        "eos_token_id": [ids["<|im_end|>"]],
        "torch_dtype": "float32",
        "image_size": 112,
        "insert_layer_id": 0,
        "query_num": 4,
        "slice_config": {"max_slice_nums": 4, "patch_size": 14, "scale_resolution": 112},
        "text_config": {
            **QWEN_TEXT,
            "model_type": "qwen3_5_text",
            "vocab_size": size,
            "head_dim": 32,
            "num_hidden_layers": 4,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "full_attention_interval": 4,
            "rope_parameters": {
                "type": "default",
                "mrope_section": [2, 1, 1],
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        "vision_config": tower("siglip_vision_model"),
    }
    finish(folder, config)
    vlm_weights(folder, config)


@vision("cohere_compass")
def cohere_compass(folder: Path) -> None:
    """Write a tiny checkpoint of cohere_compass."""
    specials = (
        "<PAD>",
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
        "<|VISION_START|>",
        "<|VISION_END|>",
        "<|IMAGE_PAD|>",
    )
    size, ids = tokenizer(
        folder, specials, bos="<BOS_TOKEN>", eos="<|END_OF_TURN_TOKEN|>", pad="<PAD>"
    )
    write(
        folder / "chat_template.jinja",
        parts_template(
            "{% if message['role'] == 'assistant' %}{% set turn = 'CHATBOT' %}"
            "{% else %}{% set turn = message['role'].upper() %}{% endif %}"
            "{{ '<|START_OF_TURN_TOKEN|><|' + turn + '_TOKEN|>' }}",
            "<|VISION_START|><|IMAGE_PAD|><|VISION_END|>",
            first="{{ bos_token }}",
            last="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
            end="<|END_OF_TURN_TOKEN|>",
        ),
    )
    config: Config = {
        "model_type": "cohere_compass",
        "image_token_id": ids["<|IMAGE_PAD|>"],
        "torch_dtype": "float32",
        "vision_start_token_id": ids["<|VISION_START|>"],
        "vision_end_token_id": ids["<|VISION_END|>"],
        "eos_token_id": ids["<|END_OF_TURN_TOKEN|>"],
        "pad_token_id": 0,
        "min_pixels": 4 * 32 * 32,
        "max_pixels": 64 * 32 * 32,
        "vocab_size": size,
        "text_config": {
            **LLAMA,
            "model_type": "cohere_compass_text",
            "vocab_size": size,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "sliding_window": 32,
            "swa_rope_theta": 10000.0,
            "rope_on_all_layers": False,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "logit_scale": 1.0,
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "cohere_compass_vision",
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 16,
            "out_hidden_size": 64,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
    }
    finish(folder, config)
    vlm_weights(folder, config)
