"""Stock transformers: ``AutoModel`` and ``AutoProcessor`` with ``trust_remote_code``."""

import child


def embed(folder, texts, images):
    import torch
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32, **child.options(folder)
    ).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        queries = child.kept(model(**processor.process_queries(texts)).embeddings)
        pages = child.kept(model(**processor.process_images(images)).embeddings)
    scores = processor.score_multi_vector(queries, pages)
    return child.Embedded(queries, pages, scores, {"kernel": child.kernels(model)})


child.main(embed, ("transformers", "torch", "torchvision"))
