"""The embedded detector: configuration, tokenizer and prompt of a Qwen2-VL of about 3.5 million parameters.

Built from transformers' own classes with the tensor names of the published checkpoints, so that
transformers and vLLM load it. Departures from the 7B, all in config.json: narrow and shallow; a rotary base
of 10, because positions here run to fifty and not to thousands; a vocabulary of bytes, digits and the
prompt's words.
"""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from colq_utils.base import files
from studies.fp8_serving.boxes import PROMPT
from studies.fp8_serving.generate import MEAN, STD

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 320
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] in ('image', 'image_url') %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: What the template makes of one picture and the prompt; the image token stands once.
_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
PROMPTED = f"<|im_start|>user\n{_PICTURE}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"


def configuration() -> Qwen2VLConfig:
    """Four layers of 192 with three query heads on one key head; a vision tower of four layers of 160."""
    return Qwen2VLConfig(
        text_config=dict(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=3,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            rms_norm_eps=1e-6,
            use_sliding_window=False,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
            rope_parameters=dict(rope_type="default", rope_theta=10.0, mrope_section=[4, 14, 14]),
        ),
        vision_config=dict(
            depth=4,
            embed_dim=160,
            hidden_size=192,
            num_heads=5,
            mlp_ratio=4,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            in_channels=3,
        ),
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
        tie_word_embeddings=False,
    )


def new(seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """A model with random weights, in fp32."""
    torch.manual_seed(seed)
    return Qwen2VLForConditionalGeneration(configuration())


def tokenizer() -> Tokenizer:
    """Bytes, every digit alone, and merges for the words of the prompt and the template."""
    raw = Tokenizer(models.BPE())
    pieces = Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]|\s")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pieces, "isolated"), in_bytes])
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator([PROMPT, "user assistant"] * 4, trainer)
    return raw


def save_processing(folder: Path) -> None:
    """Write tokenizer, chat template and picture preprocessing as transformers and vLLM read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    files.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 2048,
            "pad_token": SPECIAL[0],
            "eos_token": SPECIAL[2],
            "additional_special_tokens": list(SPECIAL[1:2] + SPECIAL[3:]),
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
        },
    )
    files.write_text(folder / "chat_template.jinja", TEMPLATE)
    files.write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "patch_size": 14,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
            "image_mean": MEAN,
            "image_std": STD,
            "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 256},
        },
    )
    generation = {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0, "max_new_tokens": 32}
    files.write_json(folder / "generation_config.json", generation)


def save(model: Qwen2VLForConditionalGeneration, folder: Path) -> None:
    """Write a complete checkpoint in bf16."""
    model.to(torch.bfloat16).save_pretrained(folder)
    save_processing(folder)
    config = json.loads((folder / "config.json").read_text())
    files.write_json(folder / "config.json", {k: v for k, v in config.items() if k != "transformers_version"})
