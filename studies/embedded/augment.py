"""Regions from canvases, drawn anew each time: crop, zoom, skew and the faults of a scanner.

All of it runs on the accelerator on whole batches with fixed shapes. About a third of the regions
stay untouched (whole-pixel crops of clean pages), because that is what clean pages look like; the
rest is zoomed and turned a little, and parts of the batch are blurred, resampled, compressed,
unevenly lit or noisy. Boxes and character maps follow the geometry.
"""

import torch
import torch.nn.functional as F

from studies.embedded.canvases import CELL
from studies.embedded.tiny_config import COLUMNS, HEIGHT, ROWS, WIDTH

POINTS_Y, POINTS_X = (4, 12), (2, 6, 10, 14)  # where in a 16 x 16 patch the character is asked for
JPEG_LUMINANCE = torch.tensor(
    [
        16,
        11,
        10,
        16,
        24,
        40,
        51,
        61,
        12,
        12,
        14,
        19,
        26,
        58,
        60,
        55,
        14,
        13,
        16,
        24,
        40,
        57,
        69,
        56,
        14,
        17,
        22,
        29,
        51,
        87,
        80,
        62,
        18,
        22,
        37,
        56,
        68,
        109,
        103,
        77,
        24,
        35,
        55,
        64,
        81,
        104,
        113,
        92,
        49,
        64,
        78,
        87,
        103,
        121,
        120,
        101,
        72,
        92,
        95,
        98,
        112,
        100,
        103,
        99,
    ],
    dtype=torch.float,
).view(8, 8)  # ITU-T T.81, table K.1


def draw_views(n: int, canvas: tuple[int, int], device: str) -> torch.Tensor:
    """Draw affine maps (n, 2, 3) from pixels of a region to pixels of its canvas (height, width)."""

    def u(low, high):
        return torch.empty(n, device=device).uniform_(low, high)

    still = u(0, 1) < 0.35
    zoom = torch.where(still, 1.0, torch.exp(u(-0.18, 0.18)))
    stretch = torch.where(still, 1.0, 1 + u(-0.04, 0.04))
    angle = (
        torch.where(still | (u(0, 1) < 0.4), 0.0, torch.randn(n, device=device) * 0.8)
        .clamp(-2.5, 2.5)
        .deg2rad()
    )
    a, b = angle.cos() * zoom * stretch, -angle.sin() * zoom
    c, d = angle.sin() * zoom * stretch, angle.cos() * zoom
    spare_x = canvas[1] - (a.abs() * WIDTH + b.abs() * HEIGHT)
    spare_y = canvas[0] - (c.abs() * WIDTH + d.abs() * HEIGHT)
    aside = u(-1, 1).clamp(min=0)  # half the regions begin at the canvas's left edge, as text columns do
    x = spare_x * torch.where(spare_x > 0, aside, 0.5) - (b * HEIGHT).clamp(max=0)
    y = spare_y * torch.where(spare_y > 0, u(0, 1), 0.5) - (c * WIDTH).clamp(max=0)
    x, y = torch.where(still, x.round(), x), torch.where(still, y.round(), y)
    return torch.stack([torch.stack([a, b, x], 1), torch.stack([c, d, y], 1)], 1)


def crop(canvases: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Sample regions (n, 384, 704) in 0..255 fp32 from uint8 canvases (n, height, width)."""
    height, width = canvases.shape[1:]
    y, x = torch.meshgrid(
        torch.arange(HEIGHT, device=views.device) + 0.5,
        torch.arange(WIDTH, device=views.device) + 0.5,
        indexing="ij",
    )
    places = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3) @ views.transpose(
        1, 2
    )  # (n, pixels, 2)
    grid = (places * torch.tensor([2 / width, 2 / height], device=views.device) - 1).view(
        -1, HEIGHT, WIDTH, 2
    )
    ink = 255 - canvases[:, None].float()  # outside a canvas is white
    return 255 - F.grid_sample(ink, grid, padding_mode="zeros", align_corners=False)[:, 0]


def move_boxes(boxes: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Map boxes (n, ..., 4) from canvas to region pixels, as upright boxes around the same centres."""
    shape, flat = boxes.shape, boxes.float().flatten(1, -2)  # (n, k, 4)
    linear, shift = views[:, :, :2], views[:, :, 2]
    centre = (flat[..., :2] + flat[..., 2:]) / 2 - shift[:, None]
    centre = centre @ torch.linalg.inv(linear).transpose(1, 2)
    size = (flat[..., 2:] - flat[..., :2]) / torch.stack(
        [linear[:, 0].norm(dim=1), linear[:, 1].norm(dim=1)], 1
    )[:, None]
    return torch.cat([centre - size / 2, centre + size / 2], -1).view(shape)


def read_characters(maps: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """Return the classes (n, 1056, 8) at 8 points of each patch, patches in merge-block order."""
    ys = (torch.arange(2 * ROWS).view(-1, 1) * 16 + torch.tensor(POINTS_Y)).to(views.device)  # (24, 2)
    xs = (torch.arange(2 * COLUMNS).view(-1, 1) * 16 + torch.tensor(POINTS_X)).to(views.device)  # (44, 4)
    y, x = ys[:, None, :, None].expand(-1, len(xs), -1, 4), xs[None, :, None, :].expand(len(ys), -1, 2, -1)
    y, x = (t.reshape(ROWS, 2, COLUMNS, 2, 8).transpose(1, 2).reshape(-1, 8) for t in (y, x))  # (1056, 8)
    places = torch.stack([x, y, torch.ones_like(x)], -1).view(1, -1, 3).float() @ views.transpose(1, 2)
    rows, columns = (places[..., 1] / CELL).long(), (places[..., 0] / CELL).long()
    height, width = maps.shape[1:]
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    index = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    classes = maps.flatten(1).gather(1, index).long().masked_fill(outside, 0)
    return classes.view(len(maps), -1, 8)


def scan(pages: torch.Tensor) -> torch.Tensor:
    """Add the faults of scanning to parts of a batch (n, 384, 704), values 0..255, in place."""
    n, device = len(pages), pages.device

    def drawn(share: float) -> torch.Tensor:
        return torch.randperm(n, device=device)[: max(1, int(share * n))]

    for low, high, share in ((0.55, 0.8, 0.05), (0.65, 0.9, 0.05)):
        pick = drawn(share)
        pages[pick] = resample(pages[pick], torch.empty(()).uniform_(low, high).item())
    pick = drawn(0.2)
    pages[pick] = blur(pages[pick], torch.empty(len(pick), device=device).uniform_(0.3, 1.3))
    pick = drawn(0.04)
    thick = torch.rand((), device=device) < 0.5
    pages[pick] = torch.where(
        thick,
        -F.max_pool2d(-pages[pick][:, None], 2, 1, 1)[:, 0, :-1, :-1],
        F.avg_pool2d(pages[pick][:, None], 2, 1, 1)[:, 0, :-1, :-1],
    )
    pick = drawn(0.5)

    def u(low, high):
        return torch.empty(len(pick), 1, 1, device=device).uniform_(low, high)

    contrast, paper, gamma = u(0.35, 1.05), u(200, 255), u(0.7, 1.4)
    pages[pick] = paper - (255 - 255 * (pages[pick].clamp(0, 255) / 255) ** gamma) * contrast * paper / 255
    pick = drawn(0.1)
    ramp = torch.linspace(-1, 1, WIDTH, device=device) * u(-25, 25)[: len(pick)]
    pages[pick] = (
        pages[pick] + ramp + torch.linspace(-1, 1, HEIGHT, device=device)[:, None] * u(-25, 25)[: len(pick)]
    )
    pick = drawn(0.3)
    noise = torch.randn(len(pick), HEIGHT, WIDTH, device=device)
    pages[pick] = pages[pick] + noise * torch.empty(len(pick), 1, 1, device=device).uniform_(1, 18)
    pick = drawn(0.15)
    pages[pick] = jpeg(pages[pick], torch.empty(len(pick), 1, 1, 1, 1, device=device).uniform_(0.8, 4.5))
    return pages.clamp_(0, 255)


def resample(pages: torch.Tensor, factor: float) -> torch.Tensor:
    """Shrink by `factor` and enlarge again."""
    small = F.interpolate(pages[:, None], scale_factor=factor, mode="bilinear", antialias=True)
    return F.interpolate(small, size=(HEIGHT, WIDTH), mode="bicubic")[:, 0]


def blur(pages: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each region by a Gaussian of its own `sigma` (n,) in pixels."""
    kernel = torch.exp(-0.5 * (torch.arange(-3, 4, device=pages.device) / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (n, 7)
    padded = F.pad(pages[None], (3, 3, 3, 3), mode="replicate")
    rows = F.conv2d(padded, kernel[:, None, None], groups=len(pages))
    return F.conv2d(rows, kernel[:, None, :, None], groups=len(pages))[0]


def jpeg(pages: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Round the cosine transform of 8 x 8 blocks as JPEG does; strength 1 is quality 50, 2 quality 25."""
    k = torch.arange(8, device=pages.device, dtype=torch.float)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * torch.pi / 16) * 0.5
    basis[0] /= 2**0.5  # orthonormal
    blocks = pages.view(-1, HEIGHT // 8, 8, WIDTH // 8, 8).transpose(2, 3) - 128
    step = JPEG_LUMINANCE.to(pages.device) * strength
    coefficients = torch.round(basis @ blocks @ basis.T / step) * step
    return (basis.T @ coefficients @ basis + 128).transpose(2, 3).reshape(-1, HEIGHT, WIDTH)
