"""Checkpoints that are not as published: converted to the same bits, or refused with the next step."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from colq_utils.__main__ import main
from colq_utils.base.errors import ColqError
from colq_utils.model import convert, encode, hub, kernels, loading, processing


def colpali(checkpoint, target, prefix="model."):
    """The checkpoint as colpali-engine saves its ColQwen3; transformers 5 puts `model.` before the names."""
    shutil.copytree(checkpoint, target)
    tensors = load_file(target / "model.safetensors")
    renamed = {n.replace("embedding_proj_layer", "custom_text_proj"): t for n, t in tensors.items()}
    renamed = {prefix + name.removeprefix("vlm.model."): tensor for name, tensor in renamed.items()}
    save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((target / "config.json").read_text())
    fields |= {"model_type": "qwen3_vl", "architectures": ["ColQwen3"]}
    del fields["embed_dim"]
    (target / "config.json").write_text(json.dumps(fields))
    return target


def rewrite(folder, change):
    """Apply `change` to the tensors of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_a_converted_folder_embeds_to_the_same_bits(
    random_checkpoint, random_model, page_images, tmp_path, prefix
):
    source, target = colpali(random_checkpoint, tmp_path / "theirs", prefix), tmp_path / "ours é"
    assert main(["convert", str(source), "--to", str(target)]) == 0
    path = str(target)
    model = loading.open_model(path)
    loaded = loading.Loaded("own", model, processing.from_pretrained(path), kernels.census(model), 0.0)
    texts = ["one query", "another"]
    own = [*encode.pages(loaded, page_images), *encode.queries(loaded, texts)]
    original = [*encode.pages(random_model, page_images), *encode.queries(random_model, texts)]
    assert all(torch.equal(a, b) for a, b in zip(own, original, strict=True))
    names = {tensor.name for tensor in hub.read_headers(path)}
    assert names == {tensor.name for tensor in hub.read_headers(str(random_checkpoint))}
    assert hub.read_config(path)["embed_dim"] == 32


def test_shards_and_head_are_converted(random_checkpoint, tmp_path):
    source = colpali(random_checkpoint, tmp_path / "theirs")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].clone()
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, source / file)
    (source / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    convert.convert(source, tmp_path / "ours")
    places = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())["weight_map"]
    for name, file in places.items():
        with safe_open(tmp_path / "ours" / file, "pt") as content:
            assert name in content.offset_keys()
    assert "vlm.lm_head.weight" in places
    loading.open_model(str(tmp_path / "ours"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.visual.pos_embed.weight"), "visual.pos_embed.weight is missing"),
        (lambda t: t.update({"model.other": torch.zeros(1)}), "model.other is unknown"),
        (lambda t: t.update({"model.custom_text_proj.bias": torch.zeros(3)}), "layer.bias is misshapen"),
    ],
)
def test_a_tensor_that_does_not_map_ends_the_conversion(random_checkpoint, tmp_path, change, message):
    source = colpali(random_checkpoint, tmp_path / "theirs")
    rewrite(source, change)
    with pytest.raises(ColqError, match=message):
        convert.convert(source, tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"], "nothing half-written"


def test_what_is_no_checkpoint_of_colpali_engine_is_not_converted(random_checkpoint, tmp_path):
    with pytest.raises(ColqError, match="published layout already"):
        convert.convert(random_checkpoint, tmp_path / "ours")
    with pytest.raises(ColqError, match="is there already"):
        convert.convert(random_checkpoint, tmp_path)
    source = shutil.copytree(random_checkpoint, tmp_path / "other")
    (source / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ColqError, match="'qwen3_vl'"):
        convert.convert(source, tmp_path / "ours")


def test_the_layout_of_colpali_engine_is_refused_with_the_command(random_checkpoint, tmp_path):
    source = colpali(random_checkpoint, tmp_path / "theirs")
    with pytest.raises(ColqError, match=rf"colq convert {source} --to {source}-published") as refusal:
        loading.open_model(str(source))
    assert "custom_text_proj stands for embedding_proj_layer" in str(refusal.value)


@pytest.mark.parametrize(
    ("projection", "command"),
    [("", "loading.open_model('/models/base', torch.bfloat16"), ("custom_text_proj", "from colpali_engine")],
)
def test_an_adapter_is_refused_with_the_command_that_merges_it(tmp_path, projection, command):
    fields = {"base_model_name_or_path": "/models/base", "peft_type": "LORA", "modules_to_save": [projection]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    for opening in (hub.read_headers, hub.read_config, loading.open_model):
        with pytest.raises(ColqError, match="is a LoRA adapter") as refusal:
            opening(str(tmp_path))
        assert command in str(refusal.value) and "merge_and_unload" in str(refusal.value)
        assert len(str(refusal.value).splitlines()) == 1
    code = str(refusal.value).split('python -c "')[1].removesuffix('"')
    compile(code, "command", "exec")


def test_another_family_and_pickles_are_named(random_checkpoint, tmp_path):
    folder = shutil.copytree(random_checkpoint, tmp_path / "other")
    config = {"model_type": "qwen2_vl", "architectures": ["ColQwen2"]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ColqError, match=r"'qwen2_vl' \(architecture ColQwen2\), not a colqwen3; expected"):
        loading.open_model(str(folder))
    shutil.copy(random_checkpoint / "config.json", folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ColqError, match=r"pytorch_model.bin, a pickle.*save_pretrained"):
        loading.open_model(str(folder))


def test_dimension_and_prompts_are_read_from_the_files(random_checkpoint, tmp_path):
    """A merged LoRA, any folder as published: nothing is assumed of width, prompts or page tokens."""
    folder = shutil.copytree(random_checkpoint, tmp_path / "merged")
    rewrite(folder, lambda t: t.update({n: v[:24].clone() for n, v in t.items() if "embedding_proj" in n}))
    fields = json.loads((folder / "config.json").read_text())
    fields["dims"] = 24
    del fields["embed_dim"]
    (folder / "config.json").write_text(json.dumps(fields))
    prompts = json.loads((folder / "processor_config.json").read_text())
    prompts |= {"query_prefix": "alpha ", "query_suffix": " beta", "page_tokens": "all"}
    (folder / "processor_config.json").write_text(json.dumps(prompts))
    model, processor = loading.open_model(str(folder)), processing.from_pretrained(str(folder))
    loaded = loading.Loaded("merged", model, processor, kernels.census(model), 0.0)
    assert encode.queries(loaded, ["gamma"])[0].shape[1] == 24
    ids = processor.queries(["gamma"])["input_ids"][0]
    assert processor.tokenizer.decode(ids).split() == ["alpha", "gamma", "beta"]
    assert processor.page_tokens == "all"
