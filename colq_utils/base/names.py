"""Names of tensors and layers: which tower a tensor belongs to, which layers are quantized."""

import re

TOWERS = {
    "vlm.model.language_model.": "language_model",
    "vlm.model.visual.": "visual",
    "embedding_proj_layer": "projection",
}


def tower_of(name: str) -> str:
    """language_model, visual, projection or other, of a module or tensor."""
    return next((tower for prefix, tower in TOWERS.items() if name.startswith(prefix)), "other")


#: Parts of a checkpoint, in the order of tables and figures.
PARTS = ("language_model", "embedding", "visual", "projection", "lm_head", "other")
#: Layers that AutoRound quantizes: every Linear of the language model's blocks (their norms are vectors).
QUANTIZABLE = re.compile(r"^vlm\.model\.language_model\.layers\.\d+\..*\.weight$")
#: Weights of the vision tower's Linear layers, and of its norms, which are vectors; places are looked up.
VISION_LINEAR = re.compile(r"^vlm\.model\.visual\.(?!pos_embed\.).*\.weight$")
#: The projection's weight and, where the checkpoint has one, its bias.
PROJECTION, BIAS = "embedding_proj_layer.weight", "embedding_proj_layer.bias"
#: The part that has no share in a prediction: the head is never loaded.
UNUSED = "lm_head"


def part_of(name: str) -> str:
    """One of `PARTS`; the embedding table stands apart from the blocks that are quantized."""
    if "lm_head" in name:
        return "lm_head"
    return "embedding" if "embed_tokens." in name else tower_of(name)


#: The language model's blocks, as quantization configs name what they quantize.
BLOCKS = "vlm.model.language_model.layers"
#: Mean cosine of the token embeddings of the fast and the plain path of the bf16 base: at the first or above
#: it is measured in any case, below the second the report says so.
DIFFERENT, SAME = 0.999, 0.9999
#: Kind of query asked of one's own documents -> its task, and what its labels are worth.
DOCUMENT_QUERIES = {
    "labelled": ("DocumentsLabelled", "queries with the pages that answer them, from your file"),
    "known-item": ("DocumentsKnownItem", "phrases of the text layer, each on one page alone (weak labels)"),
    "unlabelled": ("DocumentsUnlabelled", "queries without labels: only agreement with the base is known"),
}
#: The row of agreement.csv, by its name there, for how far the plain path is from itself when queries are not
#: batched: no other path can be closer. A path is another one if it is `COARSE` times further off.
GRAIN, COARSE = "queries, plain path one by one", 2.0
