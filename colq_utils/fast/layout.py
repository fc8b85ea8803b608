"""Where the tokens of a batch stand: packed without padding, or shifted to the left edge."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn


@dataclass(frozen=True)
class Packed:
    """Rows of several lengths as one sequence of `total` tokens, without the padding between them.

    Padding to the longest row is most of a batch of real queries; no product has to be computed for it.

    Attributes:
        mask: ``(n_rows, n_tokens)``, 1 where there is a token; padding on any side.
        total: tokens in the packed sequence, at least as many as the mask has; what is over holds no row.
    """

    mask: torch.Tensor
    total: int

    @cached_property
    def source(self) -> torch.Tensor:
        """Place of each packed token in the flat mask, ``(total,)``; 0 for what is over."""
        flat = self.mask.flatten()
        place = torch.where(flat.bool(), flat.cumsum(0) - 1, self.total)
        return flat.new_zeros(self.total + 1).scatter_(0, place, torch.arange(len(flat), device=flat.device))[
            :-1
        ]

    @cached_property
    def positions(self) -> torch.Tensor:
        """Place of each packed token in its row, ``(total,)``."""
        return (self.mask.cumsum(1) - 1).flatten()[self.source]

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Where each row begins in the packed sequence, and the last one ends, ``(n_rows + 1,)``, int32."""
        return nn.functional.pad(self.mask.sum(1).cumsum(0), (1, 0)).int()

    @cached_property
    def slots(self) -> torch.Tensor:
        """Packed tokens by row from the left edge, ``(n_rows, n_tokens)``; others' behind a row's end."""
        place = torch.arange(self.mask.shape[1], device=self.mask.device)
        return (self.offsets[:-1, None] + place).clamp(max=self.total - 1)

    @cached_property
    def back(self) -> torch.Tensor:
        """Place of each packed token in the flat `slots`, ``(total,)``."""
        width = self.mask.shape[1]
        return (self.source // width * width + self.positions).clamp(min=0)

    def unpack(self, values: torch.Tensor) -> torch.Tensor:
        """``(total, dim)`` back to the mask's rows, ``(n_rows, n_tokens, dim)``, zero where no token is."""
        place = (self.mask.flatten().cumsum(0) - 1).clamp(min=0)
        return values[place].view(*self.mask.shape, -1) * self.mask.unsqueeze(-1).to(values.dtype)


def page_positions(types: torch.Tensor, grids: torch.Tensor, merge: int) -> torch.Tensor:
    """Time, height and width position of each token, ``(3, n, n_tokens)``, of rows with one picture each.

    The model's own rule without its loop over rows, each of which waits for the GPU; no padding on the left.

    Args:
        types: 1 where a token is of the picture, ``(n, n_tokens)``.
        grids: patch grids ``(n, 3)``; `merge`² patches make a token.
    """
    picture, index = types == 1, torch.arange(types.shape[1], device=types.device).expand_as(types)
    first, count = picture.int().argmax(1, keepdim=True), picture.sum(1, keepdim=True)
    height, width = (grids[:, 1:] // merge).split(1, dim=1)
    place = index - first
    text = torch.where(index < first, index, place - count + first + torch.maximum(height, width))
    return torch.stack(
        [torch.where(picture, first + offset, text) for offset in (0 * place, place // width, place % width)]
    )


def shifts(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where tokens come from when rows move to the left edge, and the way back, ``(n, n_tokens)`` each."""
    order = mask.argsort(dim=1, descending=True, stable=True)
    return order, order.argsort(dim=1)


def bucket(rows: int, tokens: int, total: int) -> tuple[int, int, int]:
    """The next sizes that are captured.

    Of the mask, rows and tokens to a power of two (beyond 128 tokens to a multiple of 64); of the packed
    sequence in steps of 16 up to an eighth of its size, for these are the rows of every product.
    """
    tokens = max(16, 1 << (tokens - 1).bit_length()) if tokens <= 128 else -(-tokens // 64) * 64
    step = max(16, (1 << (total - 1).bit_length()) // 16)
    return 1 << (rows - 1).bit_length(), tokens, -(-total // step) * step
