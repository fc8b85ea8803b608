"""sentence-transformers' MultiVectorEncoder, on the folder as it is."""

import child


def embed(folder, texts, images):
    import torch
    from sentence_transformers import MultiVectorEncoder

    encoder = MultiVectorEncoder(
        str(folder),
        device="cpu",
        trust_remote_code=True,
        model_kwargs={"dtype": torch.float32, **child.options(folder)},
    )
    queries = encoder.encode_query(texts, show_progress_bar=False)
    pages = encoder.encode_document(images, show_progress_bar=False)
    scores = encoder.similarity(queries, pages)
    searched = [page[(page != 0).any(-1)] for page in pages]
    zero = sum(len(page) - len(kept) for page, kept in zip(pages, searched, strict=True))
    said = {"kernel": child.kernels(encoder), "zero_page_vectors": zero}
    return child.Embedded(queries, searched, scores, said)


child.main(embed, ("sentence-transformers", "transformers", "torch"))
