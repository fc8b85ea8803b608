"""`colq new`: an experiment file for one's own checkpoint and documents, checked before it is written."""

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd

from colq_utils.base import files
from colq_utils.base.config import ROOT, Documents, load
from colq_utils.base.errors import ColqError
from colq_utils.data import documents
from colq_utils.model import hub

TEMPLATE = Path(__file__).with_name("new.yaml.j2")
EXPERIMENTS = ROOT / "experiments"
#: Width of the language model -> size as results name it.
SIZES = {2560: "4b", 4096: "8b"}


@dataclass(frozen=True)
class Written:
    """The file, and what was seen on the way: a row per document (file, pages, problem)."""

    path: Path
    documents: pd.DataFrame
    kinds: dict[str, int]


def write(name: str, model: str, folder: str, queries: str | None, revision: str | None) -> Written:
    """Write ``experiments/<name>.yaml`` for a checkpoint and a folder of documents.

    Args:
        model: a checkpoint folder, or a hub id.
        queries: a file as `documents.questions` takes it; None: phrases from the text layers alone.
        revision: commit of a hub id; None: its newest, asked for and pinned.

    Raises:
        ColqError: a taken name, no ColQwen3, no document that can be read, a wrong queries file.
    """
    target = EXPERIMENTS / f"{name}.yaml"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ColqError(f"{name!r} is no name for an experiment: take letters, digits, - and _")
    if target.exists():
        raise ColqError(f"{target} is there already; take another name, or remove it first")
    path, revision, size = _model(model, revision)
    settings = Documents(folder=_portable(folder), queries=_portable(queries) if queries else None)
    surveyed = documents.survey(settings)
    kinds = documents.expected(settings, surveyed)
    import torch  # seconds to import

    text = jinja2.Template(TEMPLATE.read_text(), keep_trailing_newline=True).render(
        name=name,
        path=path,
        revision=revision,
        size=size,
        documents=settings,
        cuda=torch.cuda.is_available(),
        ark=_runs("ark"),
    )
    files.write_text(target, text)
    try:
        load(str(target))
    except ColqError:
        target.unlink()
        raise
    return Written(target, surveyed, kinds)


def _model(model: str, revision: str | None) -> tuple[str, str | None, str]:
    """Path as the experiment file gives it, pinned revision and size of a checkpoint."""
    if Path(model).is_dir():
        path, revision = _portable(model), None
        hub.read_headers(str(Path(model).resolve()))
    elif hub.HUB_ID.fullmatch(model) and not model.startswith(("models/", ".")):
        path, revision = model, revision or _newest(model)
    else:
        raise ColqError(f"{model} is neither a checkpoint folder nor a hub id (organisation/name)")
    config = hub.read_config(str(Path(model).resolve()) if revision is None else model, revision)
    from colq_utils.model import processing  # seconds to import
    from colq_utils.model.modeling import configuration

    width = configuration(config).text_config.hidden_size
    if revision is None:
        processing.from_pretrained(str(Path(model).resolve()))
    bundled = path == "models/tiny-colqwen3"
    return path, revision, "tiny" if bundled else SIZES.get(width, f"d{width}")


def _runs(backend: str) -> bool:
    """Whether a kernel can be timed on this machine."""
    from colq_utils.model import kernels

    try:
        kernels.require(backend)
    except ColqError:
        return False
    return True


def _newest(model: str) -> str:
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(model, timeout=30).sha
    except Exception as error:  # the hub client raises a dozen kinds
        raise ColqError(
            f"the hub does not say which revision of {model} is the newest ({hub.first_line(error)}); "
            "give --revision, or download the model and give its folder"
        ) from None


def _portable(path: str) -> str:
    """Relative to the repository where it lies inside, else absolute."""
    full = Path(path).expanduser().resolve()
    return full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else str(full)
