"""The held-out pictures: 200 scenes drawn once, kept as WebP in one parquet file with their true boxes.

Training draws its scenes from the same generator and another stream of seeds, so that no picture is shared.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image, UnidentifiedImageError

from colq_utils.base import files
from colq_utils.base.config import ROOT
from colq_utils.base.errors import ColqError
from studies.fp8_serving import scenes

HOME = ROOT / "data" / "nutrition"
COUNT = 200
QUALITY = 60


@dataclass(frozen=True)
class Picture:
    """A held-out picture: encoded bytes, size in pixels, true box in fractions."""

    id: str
    data: bytes
    width: int
    height: int
    box: tuple[float, float, float, float]
    package: str


def build(folder: Path = HOME, count: int = COUNT) -> Path:
    """Draw the held-out pictures and write ``pictures.parquet`` and ``fingerprint.json``."""
    rows = []
    for number in range(count):
        scene = scenes.draw([scenes.HELD_OUT, number])
        row = {"id": f"n{number:03d}", "package": scene.package}
        row |= {"width": scene.image.width, "height": scene.image.height}
        row |= dict(zip(("x1", "y1", "x2", "y2"), scene.box))
        rows.append(row | {"image": encode(scene.image, "WEBP", quality=QUALITY, method=6)})
    path = files.write_table(folder / "pictures.parquet", pd.DataFrame(rows))
    files.write_json(folder / "fingerprint.json", {"pictures": count, "sha256": fingerprint(load(folder))})
    return path


def load(folder: Path = HOME, count: int | None = None) -> list[Picture]:
    """The held-out pictures in order, the first `count` of them if given.

    Raises:
        ColqError: the file is not there.
    """
    path = folder / "pictures.parquet"
    if not path.exists():
        raise ColqError(f"{path} is not there: python -m studies.fp8_serving.pictures draws it")
    table = pd.read_parquet(path)[:count]
    return [
        Picture(r.id, r.image, r.width, r.height, (r.x1, r.y1, r.x2, r.y2), r.package)
        for r in table.itertuples()
    ]


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """A picture as a file of `kind` holds it; `options` as PIL takes them."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(data: bytes) -> Image.Image:
    """An encoded picture as RGB.

    Raises:
        ColqError: the bytes are no picture that PIL reads.
    """
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        cause = str(error).splitlines()[0][:120]
        raise ColqError(f"the picture does not decode ({len(data)} bytes): {cause}") from None


def fingerprint(pictures: list[Picture]) -> str:
    """Digest of ids, bytes and boxes (boxes to six decimals)."""
    lines = [f"{p.id} {p.width} {p.height} {[round(v, 6) for v in p.box]}" for p in pictures]
    return files.sha256_bytes(b"".join(line.encode() + p.data for line, p in zip(lines, pictures)))


def stated(folder: Path = HOME) -> dict:
    """What ``fingerprint.json`` says."""
    return json.loads((folder / "fingerprint.json").read_text())


if __name__ == "__main__":
    print(build())
