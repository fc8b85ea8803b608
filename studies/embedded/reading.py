"""Run the reading check on a checkpoint folder, with the model and processor everybody uses.

`python -m studies.embedded.reading --documents data/training/documents.json --pdf FOLDER` cuts
the manifest's held-out documents and prints NDCG@5 by kind of query and language. `--folder`
checks any folder of PDFs instead, whose names begin with the language (`fr__name.pdf`);
`--scanned` degrades the regions, `--random` puts random weights in the model's place (the floor).
"""

import argparse
import json
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from colq_utils.model import loading, processing
from studies.embedded import check
from studies.embedded.tiny_config import TinyConfig
from studies.embedded.tiny_model import TinyColQwen3


@torch.inference_mode()
def vectors(model, processor, images, texts: list[str]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return vectors of queries, a list of (t, d), and of regions (n, 264, d), one region at a time."""
    pages = []
    for image in images:
        inputs = processor.pages([Image.fromarray(image)])
        pages.append(model(**inputs).embeddings[inputs["mm_token_type_ids"] == 1])
    queries = []
    for start in range(0, len(texts), 64):
        inputs = processor.queries(texts[start : start + 64])
        embeddings = model(**inputs).embeddings
        queries += [row[mask.bool()] for row, mask in zip(embeddings, inputs["attention_mask"], strict=True)]
    return queries, torch.stack(pages)


def table(report: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return a report of `check.report` as a table, a kind of query a row."""
    return pd.DataFrame(report).T.astype({"n": int}).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/tiny-colqwen3")
    parser.add_argument("--documents", type=Path, help="manifest with name, lang and split")
    parser.add_argument("--pdf", type=Path, help="folder of the manifest's PDFs")
    parser.add_argument("--folder", type=Path, help="a folder of PDFs named <language>__<name>.pdf")
    parser.add_argument("--saved", type=Path, help="a check saved as .npz")
    parser.add_argument("--per-language", type=int, default=50)
    parser.add_argument("--scanned", action="store_true")
    parser.add_argument("--random", action="store_true")
    args = parser.parse_args()
    if args.saved:
        data = check.load(args.saved)
    elif args.folder:
        names = [{"name": path.stem, "lang": path.stem[:2]} for path in sorted(args.folder.glob("*.pdf"))]
        data = check.build(names, args.folder, args.per_language)
    else:
        documents = json.loads(args.documents.read_text(encoding="utf-8"))
        data = check.build([d for d in documents if d["split"] == "held_out"], args.pdf, args.per_language)
    model = loading.open_model(args.model, dtype=torch.float32)
    if args.random:
        torch.manual_seed(0)
        model.load_state_dict(TinyColQwen3(TinyConfig()).state_dict())
    images = check.degrade(data.images) if args.scanned else data.images
    report = check.report(
        data,
        *vectors(
            model, processing.from_pretrained(args.model), images, [query.text for query in data.queries]
        ),
    )
    print(table(report).to_string())


if __name__ == "__main__":
    main()
