"""`colq publish`: a quantized checkpoint to the hub, with its card, or a list of what would be sent."""

from dataclasses import dataclass
from pathlib import Path

from colq_utils.base import files
from colq_utils.base.config import Experiment
from colq_utils.base.errors import ColqError
from colq_utils.model import checkpoints, hub
from colq_utils.model.complete import complete

#: What may be sent; a checkpoint folder holds nothing else that anyone needs.
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "modeling_*.py", "processing_*.py")


@dataclass(frozen=True)
class Upload:
    """A checkpoint folder, its card, and the repository they go to."""

    folder: Path
    card: Path
    repository: str

    @property
    def files(self) -> list[Path]:
        """Files of the checkpoint that are sent, the card apart."""
        return sorted({p for pattern in PATTERNS for p in self.folder.glob(pattern) if p.is_file()})

    def lines(self) -> list[str]:
        """What would be sent, a line per file."""
        sizes = [(path.name, path.stat().st_size) for path in self.files]
        sizes.append(("README.md (the card)", self.card.stat().st_size))
        return [f"  {name:<40} {size / 1e6:12,.3f} MB" for name, size in sizes]


def prepare(experiment: Experiment, variant: str, repository: str, export: str = "") -> Upload:
    """Check that a variant may be published; its folder gets what opens it without ColQ, if it lacks that.

    Raises:
        ColqError: no such variant or export, no card, a damaged checkpoint, or one that 03_quantize rejected.
    """
    known = {n: v for n, v in experiment.quantized.items() if (export or v.export) in v.exports}
    if variant not in known:
        wanted = f"{variant} as {export}" if export else variant
        raise ColqError(f"{experiment.name} exports no {wanted}; there are: {', '.join(known)}")
    export = export or known[variant].export
    if not hub.HUB_ID.fullmatch(repository):
        raise ColqError(f"--to takes ORGANISATION/NAME, not {repository!r}")
    results = experiment.output / "results" / experiment.name
    table = files.read_table(results / "quantize" / "variants.csv", f"quantize EXPERIMENT={experiment.name}")
    row = table.reindex(columns=["variant", "export", "accepted"]).query(
        "variant == @variant and export == @export"
    )
    if row.empty or not bool(row.accepted.iloc[0]):
        raise ColqError(
            f"{variant} ({export}) was not accepted by 03_quantize: "
            f"results/{experiment.name}/quantize/variants.csv says why"
        )
    folder = experiment.checkpoint(variant, export)
    if problem := checkpoints.damage(folder):
        raise ColqError(f"{problem}: run `make quantize EXPERIMENT={experiment.name}` first")
    card = files.required(results / "cards" / f"{variant}.md", f"summary EXPERIMENT={experiment.name}")
    complete(folder)
    return Upload(folder, card, repository)


def send(upload: Upload, private: bool = True) -> str:
    """Make the repository if need be and upload everything in one commit; returns its address.

    Raises:
        ColqError: not signed in, no right to write there, or the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    parts = [CommitOperationAdd(path.name, str(path)) for path in upload.files]
    parts.append(CommitOperationAdd("README.md", str(upload.card)))
    try:
        address = api.create_repo(upload.repository, private=private, exist_ok=True)
        api.create_commit(upload.repository, parts, commit_message="Quantized checkpoint and its card")
    except Exception as error:  # the hub client raises a dozen kinds; each means that nothing was published
        raise ColqError(
            f"nothing was published to {upload.repository} ({hub.first_line(error)}); "
            "`hf auth login` signs in; the account needs the right to write there"
        ) from None
    return str(address)
