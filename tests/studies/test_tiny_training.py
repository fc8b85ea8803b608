"""The compact training model is Qwen3-VL; lessons lie where words are printed; training lowers the loss."""

import gzip
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip(
    "pypdfium2", reason="only the study that built the benchmark needs it: pip install .[studies]"
)

from colq_utils.model import processing
from colq_utils.model.modeling import ColQwen3Config, ColQwen3ForRetrieval
from studies.embedded import augment, canvases, check, losses, muon, sources, train
from studies.embedded.tiny_config import HEIGHT, IMAGE, VISION_END, VISION_START, WIDTH, TinyConfig
from studies.embedded.tiny_model import TinyColQwen3

CHECKPOINT = Path(__file__).resolve().parents[2] / "models/tiny-colqwen3"
SMALL = TinyConfig(
    hidden=128,
    layers=2,
    heads=2,
    kv_heads=1,
    mlp=128,
    vision_hidden=64,
    vision_depth=2,
    vision_heads=1,
    vision_mlp=64,
    deepstack=(0,),
    embed_dim=32,
)


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """Makes examples from nonsense text set in the fonts that come with matplotlib."""
    import matplotlib

    folder = tmp_path_factory.mktemp("training")
    (folder / "texts").mkdir(), (folder / "fonts").mkdir()
    words = [
        "river",
        "mountain",
        "document",
        "printer",
        "window",
        "network",
        "password",
        "library",
        "system",
        "journal",
    ]
    r = random.Random(0)
    lines = [
        " ".join(r.choices(words, k=60)) if i % 4 else "# A heading of " + r.choice(words) for i in range(60)
    ]
    for language in canvases.LANGUAGES:
        with gzip.open(folder / "texts" / f"{language}.txt.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines))
    for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf"):
        shutil.copy(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, folder / "fonts")
    texts, fonts, tokenizer = (
        str(p) for p in (folder / "texts", folder / "fonts", CHECKPOINT / "tokenizer.json")
    )
    return canvases.Maker(canvases.Sources({}, texts, fonts, tokenizer, synthetic=1.0), seed=1)


def batch(maker, pairs: int) -> dict[str, torch.Tensor]:
    drawn = [canvas for _ in range(pairs) for canvas in maker.pair()]
    return {name: torch.from_numpy(np.stack([canvas[name] for canvas in drawn])) for name in drawn[0]}


def test_the_compact_model_equals_transformers():
    torch.manual_seed(0)
    compact = TinyColQwen3(SMALL).eval()
    for parameter in compact.parameters():  # norms and biases away from one and zero
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    reference = ColQwen3ForRetrieval(ColQwen3Config(**SMALL.published())).eval()
    reference.load_state_dict(compact.state_dict(), strict=True)
    images = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH), dtype=np.uint8)
    grey = torch.from_numpy(images).float() / 127.5 - 1
    patches = grey.view(2, HEIGHT // 32, 2, 16, WIDTH // 32, 2, 16).permute(0, 1, 4, 2, 5, 3, 6)
    patches = patches.reshape(-1, 1, 256).expand(-1, 6, -1).reshape(-1, 6 * 256)  # 3 colours x 2 frames
    ids = torch.tensor([[VISION_START] + [IMAGE] * 264 + [VISION_END]] * 2)
    query = torch.randint(7, 6144, (3, 11))
    with torch.no_grad():
        expected = reference(
            ids,
            pixel_values=patches,
            image_grid_thw=torch.tensor([[1, 24, 44]] * 2),
            mm_token_type_ids=(ids == IMAGE).int(),
            attention_mask=torch.ones_like(ids),
        ).embeddings
        assert torch.allclose(compact.pages(grey)[0], expected[:, 1:-1], atol=2e-6)
        expected = reference(query, attention_mask=torch.ones_like(query)).embeddings
        assert torch.allclose(compact.queries(query), expected, atol=2e-6)


def test_the_checkpoint_reads_image_tokens_only_and_leaves_regions_unscaled():
    from PIL import Image

    processor = processing.from_pretrained(str(CHECKPOINT))
    inputs = processor.pages([Image.new("L", (WIDTH, HEIGHT), 255)])
    assert inputs["input_ids"][0].tolist() == [VISION_START] + [IMAGE] * 264 + [VISION_END]
    assert inputs["image_grid_thw"].tolist() == [[1, 24, 44]] and float(inputs["pixel_values"].min()) == 1.0
    assert processor.page_tokens == "image"
    query = processor.queries(["Ünïted"])["input_ids"]
    assert query.tolist() == processor.queries(["ünïted"])["input_ids"].tolist() and VISION_START not in query


def test_boxes_follow_the_printed_words(maker):
    torch.manual_seed(3)
    example = batch(maker, 3)
    views = augment.draw_views(6, (canvases.HEIGHT, canvases.WIDTH), "cpu")
    pages = augment.crop(example["image"], views)
    boxes = augment.move_boxes(example["boxes"], views)
    tokens, boxes = losses.choose(example["tokens"].long(), boxes, (HEIGHT, WIDTH), 4)
    seen = [
        float(page[max(0, y0) : y1, max(0, x0) : x1].min())
        for page, words, places in zip(pages, tokens, boxes, strict=True)
        for (x0, y0, x1, y1) in places[words > 0].round().int().tolist()
        if y1 - y0 > 4 and x1 - x0 > 4
    ]
    assert len(seen) > 30 and np.mean(np.array(seen) < 160) > 0.97
    cells = losses.printed_cells(boxes)[tokens > 0]
    assert cells.any(-1).float().mean() > 0.97 and cells.sum(-1).max() <= 24


def test_characters_are_read_where_there_is_ink(maker):
    example = batch(maker, 2)
    views = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]).expand(4, -1, -1)
    classes = augment.read_characters(example["characters"], views)
    assert classes.shape == (4, 1056, 8)
    pages = augment.crop(example["image"], views)
    assert torch.allclose(pages, example["image"][:, :HEIGHT, :WIDTH].float(), atol=0.5)
    ink = (
        pages.view(4, 12, 2, 16, 22, 2, 16).permute(0, 1, 4, 2, 5, 3, 6).flatten(-2).amin(-1) < 128
    ).flatten(1)
    written = (classes > 0).any(-1)
    assert (ink & written).sum() > 0.85 * written.sum()


def test_the_faults_of_a_scan_keep_shape_and_range(maker):
    pages = batch(maker, 4)["image"][:, :HEIGHT, :WIDTH].float()
    scanned = augment.scan(pages.clone())
    assert scanned.shape == pages.shape and scanned.min() >= 0 and scanned.max() <= 255
    assert float((scanned - pages).abs().mean()) > 1
    assert torch.allclose(augment.jpeg(pages, torch.tensor(1e-4)), pages, atol=0.1)


def test_training_steps_lower_the_loss_and_resume(maker):
    example = batch(maker, 2)
    torch.manual_seed(0)
    trainer = train.Trainer(SMALL, "cpu", batch=4, queries=3, packed=96, compiled=False)

    def loss() -> float:
        torch.manual_seed(5)
        with torch.no_grad():
            return float(trainer.loss(example, 0.0)[0])

    before = loss()
    for _ in range(8):
        trainer.update(example, 0.0, warm_steps=1)
    after = loss()
    assert after < 0.9 * before
    other = train.Trainer(SMALL, "cpu", batch=4, queries=3, packed=96, compiled=False)
    other.load(trainer.state())
    trainer = other
    assert loss() == pytest.approx(after) and other.step == 8


def test_muon_orthogonalises():
    singular = torch.linalg.svdvals(muon.orthogonalise(torch.randn(2, 96, 64)))
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.4


def test_rivals_spare_overlapping_crops_of_a_page():
    pages = torch.tensor([[7, 1], [7, 1], [9, 0], [9, 0], [7, 1], [7, 1]])
    off = losses.rivals(pages)
    assert off[0, 1] and off[0, 4] and not off[2, 3] and not off[0, 2] and not off.diagonal().any()


def test_ndcg_counts_ties_against_the_query():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    assert check.ndcg(scores, torch.tensor([0, 0])).tolist() == pytest.approx([1.0, 1 / np.log2(3)])


def test_sources_are_stripped_of_markup():
    heading, paragraph = '<h1 dir="auto">Mapa de imagem</h1>', "<p>Permite &amp; anexa <b>os URL</b></p>"
    page = f'<div id="DisplayArea">{heading}{paragraph}</div>'
    assert sources.help_paragraphs(page) == ["# Mapa de imagem", "Permite & anexa os URL"]
    manual = ".TH X 1\n.SH NOME\ncat \\- concatena\n.PP\nMostra \\fIos\\fR arquivos\n.B agora"
    assert sources.manual_paragraphs(manual)[-3:] == ["# Nome", "cat - concatena", "Mostra os arquivos agora"]
