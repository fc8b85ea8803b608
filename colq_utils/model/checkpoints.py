"""Checkpoint folders of an experiment: where the base is, what identifies weights, whether one is whole."""

from pathlib import Path

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.model import hub

MANIFEST = "manifest.json"


def base_folder(experiment: Experiment) -> Path:
    """The base checkpoint as a folder, made (random) or downloaded at the pinned revision if need be."""
    if experiment.model.is_random:
        from colq_utils.model import randomized  # transformers takes seconds to import

        return randomized.ensure(experiment)
    if Path(experiment.model_path).is_dir():
        return Path(experiment.model_path)
    return hub.fetch_folder(experiment.model_path, experiment.model.revision)


def tensor_bytes(folder: Path) -> int:
    """Bytes of all tensors in a checkpoint folder, from the headers: what a prediction is compared with."""
    return sum(tensor.bytes for path in folder.glob("*.safetensors") for tensor in hub.file_headers(path))


def base_digest(experiment: Experiment) -> str:
    """What identifies the base: the digest of its weights, or the pinned revision."""
    path = Path(experiment.model_path)
    if experiment.model.is_random:
        from colq_utils.model import randomized

        drawn = f"random {experiment.model.size} {experiment.seed} {randomized.drawn_by()}"
        return files.sha256_bytes(drawn.encode())
    if not path.is_dir():
        return experiment.model.revision
    return files.sha256(*hub.weight_files(path), path / "config.json")


def revision(experiment: Experiment, variant: str) -> str:
    """An id of the variant's weights; result caches are keyed by it, so no two variants may share one."""
    spec = experiment.by_id[variant]
    if spec.is_stored:
        path = experiment.build("checkpoints", spec.stored(experiment.model.size), MANIFEST)
        stored = files.read_json(path, f"quantize EXPERIMENT={experiment.name}")["revision"]
    else:
        stored = f"{base_digest(experiment)[:32]}-{spec.scheme}"
    return "-".join([stored, *spec.rounded])


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint folder, its weights judged by their headers; empty if it is whole."""
    if not (folder / "config.json").exists():
        return f"{folder} has no config.json"
    try:
        files.read_object(folder / "config.json")
        hub.read_headers(str(folder))
    except ColqError as error:
        return str(error)
    return ""
