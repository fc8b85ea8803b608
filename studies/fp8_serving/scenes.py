"""Photographs of packages, drawn: one nutrition table each among distractors, with its true box.

A package front is composed of panels that do not overlap, bent round a cylinder (cans, bottles) or left
flat, seen through a random camera, put on a cluttered ground, lit, blurred and made noisy. The truth is the
bounding box of the table's projected edge, computed from the same geometry and not from the pixels. One
seed, one picture.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from studies.fp8_serving import labels

#: Width and height of the pictures: multiples of 28, the model's cell, near 150,000 pixels.
SHAPES = ((448, 336), (336, 448), (392, 392))
#: Streams of seeds, the first entry of a scene's seed.
TRAINING, HELD_OUT, CHECK = 1, 2, 3
_SYLLABLES = ("ba", "lo", "mi", "ta", "ke", "ro", "su", "vi", "no", "ra")
_ARC = 1.15  # half the angle, in radians, that a can's front takes round its cylinder


@dataclass(frozen=True)
class Scene:
    """A picture (RGB) and the box of its table, ``(x1, y1, x2, y2)`` as fractions of width and height."""

    image: Image.Image
    box: tuple[float, float, float, float]
    package: str


def draw(seed: int | list[int], shape: tuple[int, int] | None = None) -> Scene:
    """The scene of a seed.

    Args:
        seed: an integer, or a list of them (stream and number).
        shape: width and height in pixels; drawn from `SHAPES` if None.
    """
    rng = np.random.default_rng(seed)
    width, height = shape or SHAPES[rng.integers(len(SHAPES))]
    while True:
        kind = ("box", "pouch", "can")[rng.choice(3, p=(0.5, 0.25, 0.25))]
        front, place = _front(rng, kind)
        matrix = _camera(rng, front.size, place, (width, height))
        edge = _project(matrix, _bend(_edge(place), front.width, kind))
        box = (*(edge.min(0) / (width, height)), *(edge.max(0) / (width, height)))
        if min(box[:2]) > 0.005 and max(box[2:]) < 0.995 and (box[2] - box[0]) * (box[3] - box[1]) > 0.05:
            break
    ground = _ground(rng, width, height)
    if kind == "can":
        front = _rolled(front)
    cover = _seen(_silhouette(rng, front.size, kind), matrix, (width, height), Image.Resampling.BILINEAR)
    shadow = Image.eval(cover.filter(ImageFilter.GaussianBlur(8)), lambda v: v // 2)
    offset = (int(rng.integers(-12, 13)), int(rng.integers(0, 13)))
    ground.paste((20, 18, 16), offset, shadow)
    ground.paste(_seen(front, matrix, (width, height), Image.Resampling.BICUBIC), (0, 0), cover)
    return Scene(_photographed(rng, ground), tuple(float(v) for v in box), kind)


def _seen(
    front: Image.Image, matrix: np.ndarray, size: tuple[int, int], filtered: Image.Resampling
) -> Image.Image:
    """A front as the camera of `matrix` sees it, `size` pixels."""
    inverse = np.linalg.inv(matrix)
    picture_to_front = (inverse / inverse[2, 2]).reshape(-1)[:8].tolist()  # what PIL takes
    return front.transform(size, Image.Transform.PERSPECTIVE, picture_to_front, filtered)


def _front(rng: np.random.Generator, kind: str) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A package front and where its table stands on it, in its own pixels."""
    paper = labels.colour(rng, 20)
    table = labels.nutrition(rng, paper, int(rng.integers(6, 14)))
    if rng.random() < 0.08:
        table = table.rotate(90, expand=True)
    can = kind == "can"
    width = int(table.width * rng.uniform(1.05, 1.5) if can else table.width + rng.integers(10, 260))
    height = int(table.height + rng.integers(10, 240))
    front = Image.new("RGB", (width, height), paper)
    _decorate(rng, front)
    x, y = int(rng.integers(2, width - table.width - 1)), int(rng.integers(2, height - table.height - 1))
    front.paste(table, (x, y))
    taken = [(x, y, x + table.width, y + table.height)]
    for _ in range(int(rng.integers(2, 9))):
        kind_of_panel = labels.DISTRACTORS[rng.choice(5, p=(0.3, 0.2, 0.2, 0.1, 0.2))]
        _place(rng, front, kind_of_panel(rng, paper, int(rng.integers(6, 12))), taken)
    return front, taken[0]


def _place(rng: np.random.Generator, front: Image.Image, panel: Image.Image, taken: list) -> None:
    """Put a panel where nothing stands yet, if a few tries find room."""
    room = front.width - panel.width - 2, front.height - panel.height - 2
    if min(room) < 2:
        return
    for _ in range(6):
        x, y = int(rng.integers(1, room[0])), int(rng.integers(1, room[1]))
        right, foot = x + panel.width, y + panel.height
        if all(right + 3 < a or c + 3 < x or foot + 3 < b or d + 3 < y for a, b, c, d in taken):
            front.paste(panel, (x, y))
            taken.append((x, y, right, foot))
            return


def _decorate(rng: np.random.Generator, front: Image.Image) -> None:
    """Colour fields, curves and a brand name below the panels."""
    pen = ImageDraw.Draw(front)
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.integers(0, front.width), rng.integers(0, front.height)
        w, h = rng.integers(10, front.width), rng.integers(10, front.height)
        fill = labels.colour(rng)
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((int(x - w // 2), int(y - h // 2), int(x + w // 2), int(y + h // 2)), fill=fill)
    if rng.random() < 0.7:
        name = "".join(rng.choice(_SYLLABLES, rng.integers(2, 4))).capitalize()
        x, y = (int(rng.integers(0, max(1, room))) for room in (front.width // 2, front.height - 30))
        fill, face = labels.colour(rng), labels.font("DejaVuSerif-Bold", int(rng.integers(18, 54)))
        pen.text((x, y), name, fill=fill, font=face)


def _edge(place: tuple[int, int, int, int], steps: int = 24) -> np.ndarray:
    """Points along the border of a rectangle, ``(4 * steps, 2)``."""
    x1, y1, x2, y2 = place
    xs, ys = np.linspace(x1, x2, steps), np.linspace(y1, y2, steps)
    level = [np.stack((xs, np.full(steps, y)), 1) for y in (y1, y2)]
    upright = [np.stack((np.full(steps, x), ys), 1) for x in (x1, x2)]
    return np.concatenate(level + upright)


def _bend(points: np.ndarray, width: int, kind: str) -> np.ndarray:
    """Where points of a flat front come to lie when it is rolled; a front keeps its width."""
    if kind != "can":
        return points
    angle = (points[:, 0] / width * 2 - 1) * _ARC
    return np.stack((width / 2 * (1 + np.sin(angle) / np.sin(_ARC)), points[:, 1]), 1)


def _rolled(front: Image.Image) -> Image.Image:
    """The front as a cylinder shows it: columns pressed together and darker towards the rim."""
    pixels, width = np.asarray(front, dtype=np.float32), front.width
    angle = np.arcsin(np.clip((np.arange(width) + 0.5) / width * 2 - 1, -1, 1) * np.sin(_ARC))
    source = np.clip((angle / _ARC + 1) / 2 * width - 0.5, 0, width - 1)
    left = np.floor(source).astype(int)
    part = (source - left)[None, :, None].astype(np.float32)
    rolled = pixels[:, left] * (1 - part) + pixels[:, np.minimum(left + 1, width - 1)] * part
    return Image.fromarray((rolled * (0.35 + 0.65 * np.cos(angle))[None, :, None]).astype(np.uint8))


def _camera(
    rng: np.random.Generator, size: tuple[int, int], place: tuple[int, int, int, int], frame: tuple[int, int]
) -> np.ndarray:
    """A homography from front to picture, 3 x 3: zoom, turn, tilt, and a place for the table."""
    corners = np.array([(0, 0), (size[0], 0), (size[0], size[1]), (0, size[1])], float)
    table = np.array([place[2] - place[0], place[3] - place[1]], float)
    middle = np.array([place[0] + place[2], place[1] + place[3]], float) / 2
    fill = np.sqrt(rng.uniform(0.06, 0.5))
    wanted = np.sqrt(frame[0] * frame[1]) * fill / np.sqrt(table.prod())
    zoom = min(wanted, 0.92 * frame[0] / table[0], 0.92 * frame[1] / table[1])
    turn = np.deg2rad(rng.normal(0, 5) if rng.random() < 0.85 else rng.uniform(-20, 20))
    rotation = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    target = (corners - middle) * zoom @ rotation.T
    target *= 1 + rng.uniform(-0.09, 0.09, (4, 1)) + rng.uniform(-0.02, 0.02, (4, 2))
    margin = table * zoom / 2
    centre = [rng.uniform(min(m, f / 2), max(f - m, f / 2)) for m, f in zip(margin, frame)]
    return _homography(corners, target + centre)


def _homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 3 x 3 matrix that takes four points to four points."""
    rows = []
    for (x, y), (u, v) in zip(source, target):
        rows += [(x, y, 1, 0, 0, 0, -u * x, -u * y), (0, 0, 0, x, y, 1, -v * x, -v * y)]
    return np.append(np.linalg.solve(np.array(rows), target.reshape(-1)), 1).reshape(3, 3)


def _project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    image = np.concatenate((points, np.ones((len(points), 1))), 1) @ matrix.T
    return image[:, :2] / image[:, 2:]


def _silhouette(rng: np.random.Generator, size: tuple[int, int], kind: str) -> Image.Image:
    """What of the front is package: sharp corners, round ones for a pouch."""
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rounded_rectangle(
        (1, 1, size[0] - 2, size[1] - 2), radius=int(rng.integers(4, 14)) if kind == "pouch" else 1, fill=255
    )
    return mask


def _ground(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Table, shelf or wall: a shaded colour, boards or noise, with things lying about."""
    a, b = rng.integers(20, 240, 3), rng.integers(20, 240, 3)
    down = rng.random() < 0.5
    ramp = np.linspace(0, 1, height)[:, None, None] if down else np.linspace(0, 1, width)[None, :, None]
    spots = rng.integers(0, 256, (int(rng.integers(3, 40)), int(rng.integers(3, 40))), dtype=np.uint8)
    coarse = Image.fromarray(spots).resize((width, height))
    pixels = a * (1 - ramp) + b * ramp + (np.asarray(coarse, float)[:, :, None] - 128) * rng.uniform(0, 0.4)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    if rng.random() < 0.3:
        for x in range(0, width, int(rng.integers(20, 80))):
            pen.line((x, 0, x + int(rng.integers(-20, 20)), height), fill=tuple((a // 2).tolist()), width=2)
    for _ in range(int(rng.integers(0, 7))):
        x, y = int(rng.integers(-40, width)), int(rng.integers(-40, height))
        w, h = int(rng.integers(15, 150)), int(rng.integers(15, 150))
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=labels.colour(rng))
    for _ in range(int(rng.integers(0, 3))):
        panel = labels.DISTRACTORS[rng.integers(5)](rng, tuple(a.tolist()), int(rng.integers(6, 12)))
        turned = panel.rotate(float(rng.uniform(-30, 30)), expand=True, fillcolor=tuple(a.tolist()))
        image.paste(turned, (int(rng.integers(-20, width)), int(rng.integers(-20, height))))
    return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 2.0))))


def _photographed(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Light, glare, colour cast, blur and noise."""
    width, height = image.size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.65, 1.15) * (1 + rng.uniform(0, 0.5) * (np.cos(angle) * x + np.sin(angle) * y))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
    pixels = np.asarray(image, np.float32) * light[:, :, None] * rng.uniform(0.85, 1.1, 3).astype(np.float32)
    if rng.random() < 0.25:
        cx, cy, spread = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.003, 0.03)
        pixels += rng.uniform(40, 130) * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / spread)[:, :, None]
    contrast = rng.uniform(0.7, 1.15)
    pixels = (pixels - 128) * contrast + 128 + rng.uniform(-15, 15)
    pixels += rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0, 4)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
