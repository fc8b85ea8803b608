"""A random ColQwen3 of two layers with tokenizer and processor, and what experiments of it need.

It has the right shape and no knowledge. Its projection has a bias, as published.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from colq_utils.model import kernels, loading, packing, processing
from colq_utils.model.modeling import ColQwen3Config, ColQwen3ForRetrieval

SPECIAL = ["<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]

TEXT = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu"


@pytest.fixture(autouse=True)
def same_threads():
    """Torch's threads as they were: packed kernels go wrong where a test leaves it with fewer."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few merges: any text has tokens."""
    raw = Tokenizer(models.BPE())
    raw.normalizer, raw.decoder = normalizers.Lowercase(), decoders.ByteLevel()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        ["alpha beta gamma delta epsilon"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=SPECIAL[0], eos_token=SPECIAL[0])


def configuration(bias: bool = True) -> ColQwen3Config:
    """Two layers of 128, a vision tower of two layers of 64, deepstack on the first."""
    return ColQwen3Config(
        text_config=dict(
            vocab_size=384,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=128,
            max_position_embeddings=2048,
            rope_parameters=dict(
                rope_type="default", rope_theta=1e4, mrope_section=[24, 20, 20], mrope_interleaved=True
            ),
        ),
        vision_config=dict(
            depth=2,
            hidden_size=64,
            num_heads=2,
            intermediate_size=128,
            patch_size=16,
            spatial_merge_size=2,
            out_hidden_size=128,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
        ),
        embed_dim=32,
        projection_bias=bias,
        image_token_id=3,
        vision_start_token_id=1,
        vision_end_token_id=2,
        video_token_id=4,
        tie_word_embeddings=True,
    )


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory):
    """Folder of a complete random checkpoint in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "random-colqwen3"
    torch.manual_seed(0)
    model = ColQwen3ForRetrieval(configuration()).bfloat16()
    torch.nn.init.normal_(model.embedding_proj_layer.bias)
    model.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    del fields["projection_bias"]  # no published config tells; the stored tensors do
    (folder / "config.json").write_text(json.dumps(fields))
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 32 * 32, "longest_edge": 64 * 32 * 32},
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processing.ColQwen3Processor(
        images,
        tokenizer(),
        visual_prompt_prefix="<|vision_start|><|image_pad|><|vision_end|>",
        visual_prompt_suffix="",
        query_suffix="",
        page_tokens="image",
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model(random_checkpoint):
    """The random checkpoint, loaded."""
    model = loading.open_model(str(random_checkpoint))
    return loading.Loaded(
        "random", model, processing.from_pretrained(str(random_checkpoint)), kernels.census(model), 0.0
    )


@pytest.fixture(scope="session")
def page_images():
    """Four small pictures of noise."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (96, 160, 3), dtype=np.uint8)) for _ in range(4)]


@pytest.fixture(scope="session")
def packed_checkpoint(random_checkpoint, tmp_path_factory):
    """The random checkpoint rounded to four bits and packed as for GPTQ."""
    folder = tmp_path_factory.mktemp("packed")
    packing.write_checkpoint(random_checkpoint, folder, 4, 128, "cpu")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Folder of 60 made-up documents in two languages, to calibrate on."""
    folder = tmp_path_factory.mktemp("corpus")
    words = TEXT.split()
    texts = [" ".join(words[(i * j) % 12] for j in range(1, 300)) for i in range(60)]
    rows = [{"document": f"d{i}", "lang": ("en", "fr")[i % 2], "text": text} for i, text in enumerate(texts)]
    pd.DataFrame(rows).to_parquet(folder / "text.parquet")
    return folder


@pytest.fixture(scope="session")
def experiment_file(random_checkpoint):
    """Writes an experiment of the random model; a section that is not given is empty."""

    def write(folder: Path, name: str, **sections) -> str:
        fields = {
            "title": name,
            "model": {"path": str(random_checkpoint), "size": "random"},
            "calibration": {"source": "data/calibration", "sets": []},
            "variants": [{"scheme": "bf16"}],
            "benchmark": {"variants": [], "workloads": []},
            "evaluation": {"tasks": []},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(fields | sections))
        return str(path)

    return write
