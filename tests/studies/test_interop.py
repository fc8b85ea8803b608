"""A completed folder opens without ColQ: stock transformers in a process that cannot import colq_utils."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from colq_utils.base import config
from colq_utils.base.errors import ColqError
from colq_utils.model import encode, kernels, loading, packing, processing
from colq_utils.model.complete import FILES, TEMPLATE, chat_template, complete
from colq_utils.model.maxsim import maxsim
from studies.interop import __main__ as interop
from studies.interop import compare, engines, folders, gguf_text, report

TEXTS = ["alpha beta", " gamma delta epsilon "]
#: Opens folders, embeds the texts and pages of a file, and writes vectors and scores.
STRANGER = """
import sys
sys.modules["colq_utils"] = None  # its import fails
import torch
from transformers import AutoModel, AutoProcessor
given, out, *folders = sys.argv[1:]
texts, images = torch.load(given, weights_only=False)
answers = []
for folder in folders:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True, max_num_visual_tokens=64)
    with torch.inference_mode():
        queries = model(**processor(text=texts)).embeddings
        pages = model(**processor(images=images)).embeddings
    scores = processor.score_multi_vector(queries, pages)
    answers.append((*([row[(row != 0).any(-1)] for row in rows] for rows in (queries, pages)), scores))
torch.save(answers, out)
"""


@pytest.fixture
def folder(random_checkpoint, tmp_path):
    """A private copy of the random checkpoint."""
    return shutil.copytree(random_checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def opened(random_checkpoint, page_images, tmp_path_factory):
    """The export's folder, and what a stranger makes of base and export: queries, pages, scores."""
    place = tmp_path_factory.mktemp("stranger")
    base, export = shutil.copytree(random_checkpoint, place / "base"), place / "export"
    export.mkdir()
    packing.write_checkpoint(random_checkpoint, export, 4, 128, "cpu")
    for path in (base, export):
        complete(path)
    torch.save((TEXTS, page_images), place / "given.pt")
    command = [
        sys.executable,
        "-c",
        STRANGER,
        *map(str, (place / "given.pt", place / "out.pt", base, export)),
    ]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return export, *torch.load(place / "out.pt")


def agree(own, others):
    assert [len(v) for v in own] == [len(v) for v in others]
    cosine = torch.cat([compare.cosines(a, b) for a, b in zip(own, others, strict=True)])
    assert cosine.mean() >= 0.9999


def test_the_base_opens_without_colq(opened, page_images, random_model):
    """With a bias in the projection, and pages searched by their image tokens."""
    _, (queries, pages, scores), _ = opened
    agree(encode.queries(random_model, TEXTS), queries)
    agree(encode.pages(random_model, page_images), pages)
    assert torch.allclose(scores, maxsim(queries, len(pages), pages.__getitem__), atol=1e-5)


def test_an_export_opens_without_colq(opened, page_images, random_model):
    folder, _, (queries, pages, _) = opened
    model = loading.open_model(str(folder), backend=kernels.on_cpu("auto_round", 4))
    own = loading.Loaded("export", model, random_model.processor, (), 0.0)
    agree(encode.queries(own, TEXTS), queries)
    agree(encode.pages(own, page_images), pages)


def test_completing_twice_changes_nothing_and_colq_still_opens_the_folder(folder):
    assert set(FILES) <= set(complete(folder))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert complete(folder) == []
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    config = json.loads(before["config.json"])
    assert config["architectures"] == ["ColQwen3", "ColQwen3ForRetrieval"]
    assert config["projection_bias"] is True and config["embedding_dim"] == 32
    assert loading.open_model(str(folder)).embedding_proj_layer.bias is not None
    assert processing.from_pretrained(str(folder)).page_tokens == "image"


def test_what_a_folder_carries_is_kept(folder):
    """A published checkpoint brings its own files; names without their files do not count."""
    own = {"AutoConfig": "configuration_own.Config", "AutoModel": "modeling_own.Model"}
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_own.py", "modeling_own.py", TEMPLATE):
        (folder / name).write_text("own")
    export = shutil.copytree(folder, folder.parent / "export", ignore=shutil.ignore_patterns("*.py"))
    assert complete(folder) == ["video_preprocessor_config.json"]
    assert json.loads((folder / "config.json").read_text()) == config
    assert (folder / TEMPLATE).read_text() == "own"
    assert {*FILES, "config.json"} <= set(complete(export))


def test_the_chat_template_renders_the_prompts(folder, random_model):
    """Those of the folder, or the published ones where it names none; a page's message may carry text."""
    tokenizer = random_model.processor.tokenizer
    page = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    for named in ({}, json.loads((folder / "processor_config.json").read_text())):
        prompts = {k: v for k, v in named.items() if k.startswith(("visual_", "query_"))}
        images = random_model.processor.image_processor
        processor = processing.ColQwen3Processor(images, tokenizer, **prompts)
        template = chat_template(named)
        rendered = tokenizer.apply_chat_template(page, chat_template=template, tokenize=False)
        assert rendered == processor.visual_prompt_prefix + processor.visual_prompt_suffix
        query = [{"role": "user", "content": " alpha "}]
        rendered = tokenizer.apply_chat_template(query, chat_template=template, tokenize=False)
        assert rendered == "alpha" + processor.query_suffix


def test_the_copy_for_colpali_engine(random_checkpoint, folder):
    """Its names, in the quantization configuration too; its width, a bias in any case, no head."""
    tensors = load_file(random_checkpoint / "model.safetensors")
    tensors["vlm.lm_head.weight"] = torch.zeros(1)
    del tensors["embedding_proj_layer.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"block_name_to_quantize": "vlm.model.language_model.layers"}
    (folder / "config.json").write_text(json.dumps(config))
    converted = folders.colpali(folder, folder.parent / "colpali")
    renamed = load_file(converted / "model.safetensors")
    assert {name.split(".")[0] for name in renamed} == {"language_model", "visual", "custom_text_proj"}
    assert renamed["custom_text_proj.weight"].shape == (320, 128)
    assert renamed["custom_text_proj.bias"].shape == (320,) and not renamed["custom_text_proj.bias"].any()
    stored = json.loads((converted / "config.json").read_text())
    assert stored["model_type"] == "qwen3_vl" and "auto_map" not in stored
    assert stored["quantization_config"]["block_name_to_quantize"] == "language_model.layers"


def test_a_failure_is_one_line_and_finished_rows_are_kept(monkeypatch, tmp_path):
    """One engine cannot be installed, one refuses the folder, one answers: a row each."""
    answering, refusing, absent = engines.ENGINES[:3]
    asked = []

    def python(engine, root):
        if engine is absent:
            raise ColqError("mteb is not installable here: no network")
        return root

    def ask(engine, interpreter, folder, inputs, out):
        asked.append(engine.name)
        if engine is refusing:
            raise ColqError(engines.reason("INFO loading\nTraceback\n  x\nValueError: two\n  lines\n"))

    agreed = dict(loads=True, queries_ranked_alike=8, queries=8, versions="x 1", kernel="")
    agreed |= dict.fromkeys(interop.COSINES, 1.0)
    monkeypatch.setattr(engines, "python", python)
    monkeypatch.setattr(engines, "ask", ask)
    monkeypatch.setattr(compare, "row", lambda answer, reference: agreed)
    monkeypatch.setattr(interop.Study, "_reference", lambda *given: None)
    experiment = config.load("tiny", tmp_path)
    for _ in range(2):
        study = interop.Study(experiment)
        study.run([answering, refusing, absent])
    assert asked == [answering.name, refusing.name]  # neither a success nor a refusal is asked for again
    text = study.path.with_suffix(".md").read_text()
    assert "ValueError: two lines" in text and "not installable here: no network" in text
    assert report.line(study.rows[(absent.name, "tiny-bf16")]).endswith("no network")


def test_the_reason_is_the_exception_that_ended_the_script():
    log = "RuntimeError: first\n\nDuring handling\n[rank0]: pkg.CustomError: last\n[rank0]:   detail\n"
    assert engines.reason(log) == "pkg.CustomError: last detail"
    assert engines.reason("killed") == ""


def test_hidden_states_of_another_engine_are_compared_token_by_token(experiment_file, tmp_path):
    """What transformers gives for the prepared ids agrees; the same rows in another order do not."""
    experiment = config.load(experiment_file(tmp_path, "random"), tmp_path)
    base, ids = gguf_text.prepare(experiment, tmp_path / "gguf")
    assert json.loads((tmp_path / "gguf" / "ids.json").read_text()) == ids
    with np.load(tmp_path / "gguf" / "weights.npz") as tensors:
        assert tensors["model.norm.weight"].dtype == np.float32
    with torch.inference_mode():
        texts = [base.model.language_model(torch.tensor([text])).last_hidden_state[0] for text in ids]
    rows = torch.cat(texts).numpy()
    formats = {"same": rows, "same bytes": 1, "turned": rows[::-1], "turned bytes": 2}
    np.savez(tmp_path / "answer.npz", **formats)
    same, turned = gguf_text.compare(experiment, base, tmp_path / "answer.npz").itertuples()
    assert same.cosine_min > 0.9999 and (same.tokens, same.file_bytes) == (len(rows), 1)
    assert turned.cosine_mean < 0.99
