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
        stream = io.BytesIO()
        scene.image.save(stream, "WEBP", quality=QUALITY, method=6)
        rows.append(
            {
                "id": f"n{number:03d}",
                "package": scene.package,
                "width": scene.image.width,
                "height": scene.image.height,
                **dict(zip(("x1", "y1", "x2", "y2"), scene.box)),
                "image": stream.getvalue(),
            }
        )
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


def decode(data: bytes) -> Image.Image:
    """An encoded picture as RGB.

    Raises:
        ColqError: the bytes are no picture that PIL reads.
    """
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise ColqError(
            f"the picture does not decode ({len(data)} bytes): {str(error).splitlines()[0][:120]}"
        ) from None


def fingerprint(pictures: list[Picture]) -> str:
    """Digest of ids, bytes and boxes (boxes to six decimals)."""
    return files.sha256_bytes(
        b"".join(
            f"{p.id} {p.width} {p.height} {[round(v, 6) for v in p.box]}".encode() + p.data for p in pictures
        )
    )


def stated(folder: Path = HOME) -> dict:
    """What ``fingerprint.json`` says."""
    return json.loads((folder / "fingerprint.json").read_text())


if __name__ == "__main__":
    print(build())
