"""The language model as GGUF in llama.cpp: last hidden states of token ids. Run with folder, inputs, out.

The folder holds `config.json` (the text tower's) and `weights.npz` (its tensors in float32, named as a plain
Qwen3's); the inputs `ids.json`, a list of ids per text. `out` becomes an .npz: what each format gave for all
texts, a row per token, and the bytes of its file. As ids are given, the file carries no vocabulary.
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

FORMATS = ("F32", "Q8_0", "Q4_0")
CONTEXT = 512


def write(folder: Path, target: Path, kind: str) -> None:
    """The tower as one GGUF; matrices of its blocks in the format `kind`, everything else in float32."""
    config = json.loads((folder / "config.json").read_text())
    rope, layers = config["rope_parameters"], config["num_hidden_layers"]
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3VL])
    writer.add_context_length(CONTEXT)
    writer.add_block_count(layers)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_sections([*rope["mrope_section"], 0])
    writer.add_num_deepstack_layers(0)  # pictures are not asked for
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3VL, layers)
    with np.load(folder / "weights.npz") as tensors:
        for name, tensor in tensors.items():
            own = kind if ".layers." in name and tensor.ndim == 2 else "F32"
            kept = gguf.GGMLQuantizationType[own]
            place = names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(place, gguf.quants.quantize(tensor, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def embed(path: Path, texts: list[list[int]]) -> np.ndarray:
    """Last hidden states after the final norm, ``(n_tokens of all texts, width)``."""
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT
    options.embeddings, options.pooling_type = True, llama_cpp.LLAMA_POOLING_TYPE_NONE
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, options)
    width, rows = llama_cpp.llama_model_n_embd(model), []
    for ids in texts:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp did not decode a text of {len(ids)} tokens")
        states = (llama_cpp.llama_get_embeddings_ith(context, i) for i in range(len(ids)))
        rows += [np.ctypeslib.as_array(state, (width,)).copy() for state in states]
        llama_cpp.llama_batch_free(batch)
    return np.stack(rows)


def main(folder: Path, inputs: Path, out: Path) -> None:
    silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *unused: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    texts, answer = json.loads((inputs / "ids.json").read_text()), {}
    for kind in FORMATS:
        path = folder / f"{kind}.gguf"
        write(folder, path, kind)
        answer[kind], answer[f"{kind} bytes"] = embed(path, texts), path.stat().st_size
    np.savez(out, **answer)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
