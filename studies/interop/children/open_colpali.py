"""colpali-engine's ColQwen3 on a converted copy, given the checkpoint's prompts."""

import json

import child


def embed(folder, texts, images):
    import torch
    from colpali_engine.models import ColQwen3, ColQwen3Processor

    prompts = json.loads((folder / "colq.json").read_text())
    model, info = ColQwen3.from_pretrained(
        folder,
        dtype=torch.float32,
        mask_non_image_embeddings=prompts["page_tokens"] == "image",
        output_loading_info=True,
        **child.options(folder),
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{len(missing)} tensors are missing and were drawn at random, {missing[0]} first")
    processor = ColQwen3Processor.from_pretrained(folder)
    processor.visual_prompt_prefix = prompts["page"]
    framed = [prompts["query_prefix"] + text.strip() + prompts["query_suffix"] for text in texts]
    with torch.inference_mode():
        queries = child.kept(model.eval()(**processor.process_texts(framed)))
        pages = child.kept(model(**processor.process_images(images)))
    scores = processor.score_multi_vector(queries, pages, device="cpu")
    return child.Embedded(queries, pages, scores, {"kernel": child.kernels(model)})


child.main(embed, ("colpali-engine", "transformers", "torch", "torchvision"))
