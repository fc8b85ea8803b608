"""mteb's own wrapper of ColQwen3, as its leaderboard runs it, but in float32."""

import child


def batches(column: str, values: list):
    """What mteb's wrapper iterates over: dicts of lists, with a data set that tells the modality."""
    from datasets import Dataset
    from torch.utils.data import DataLoader

    def collate(rows: list[dict]) -> dict:
        return {column: [row[column] for row in rows]}

    return DataLoader(Dataset.from_dict({column: values}), batch_size=8, collate_fn=collate)


def embed(folder, texts, images):
    import torch
    from mteb.models.model_implementations.colqwen_models import ColQwen3Wrapper

    wrapper = ColQwen3Wrapper(str(folder), device="cpu", dtype=torch.float32, **child.options(folder))
    whole = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}
    queries = wrapper.encode(batches("text", texts), **whole)  # (n_queries, n_tokens, dim)
    pages = wrapper.encode(batches("image", images), **whole)  # (n_pages, n_tokens, dim)
    scores = wrapper.similarity(queries, pages)
    said = {"kernel": child.kernels(wrapper.model), "pixels": wrapper.processor.image_processor.size}
    return child.Embedded(child.kept(queries), child.kept(pages), scores, said)


child.main(embed, ("mteb", "transformers", "torch", "torchvision"))
