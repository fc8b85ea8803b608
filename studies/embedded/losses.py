"""What the model is taught, from the easiest lesson to the task itself.

Characters: name the letter at eight points of each patch; this makes the first layers read.
Spotting: each query token finds the cells where it is printed, among all cells of all regions of
the batch, and among those of its own region. Retrieval: the MaxSim score of each query ranks its
own region first, the other crop of the same page being the hardest rival.
"""

import torch
import torch.nn.functional as F

from studies.embedded.tiny_config import COLUMNS, PAGE_TOKENS, ROWS


def printed_cells(boxes: torch.Tensor) -> torch.Tensor:
    """Return which of the 264 cells print a token, (..., 264) bool, from boxes (..., 4) in pixels."""
    x0, y0, x1, y1 = (boxes[..., i, None] for i in range(4))
    left, top = (torch.arange(k, device=boxes.device) * 32 for k in (COLUMNS, ROWS))
    x = torch.minimum(x1, left + 32) - torch.maximum(x0, left) >= torch.minimum(
        0.35 * (x1 - x0), torch.full_like(x0, 8)
    )
    y = torch.minimum(y1, top + 32) - torch.maximum(y0, top) >= 0.35 * (y1 - y0)
    return (y[..., :, None] & x[..., None, :]).flatten(-2)


def choose(tokens: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], count: int):
    """Keep `count` random queries of each region, those printed wholly inside it.

    tokens (n, candidates, t), boxes (n, candidates, t, 4) in region pixels. Returns tokens
    (n, count, t), zero where there are too few, and boxes (n, count, t, 4).
    """
    inside = (boxes[..., :2] > -3).all(-1) & (boxes[..., 2] < size[1] + 3) & (boxes[..., 3] < size[0] + 3)
    real = tokens > 0
    fit = (inside | ~real).all(-1) & real.any(-1)  # (n, candidates)
    order = (torch.rand(fit.shape, device=fit.device) + fit).argsort(1, descending=True)[:, :count]
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    kept = torch.where(fit[rows, order][..., None], tokens[rows, order], 0)
    return kept, boxes[rows, order]


def pack(tokens: torch.Tensor, limit: int) -> torch.Tensor:
    """Return the places of the first `limit` real tokens of a flattened batch, padding after them."""
    return (tokens.flatten() == 0).to(torch.uint8).argsort(stable=True)[:limit]


def retrieval_losses(words, cells, scales, query_of, printed, real, rivals_off, n_queries: int):
    """Spotting and MaxSim losses of packed query tokens against all regions.

    words (t, d) unit vectors of tokens; cells (n, 264, d) unit vectors of regions; scales (2,)
    logarithms of the factors on cosines; query_of (t,) the query of each token, `n_queries` = n x q
    in all, q a region; printed (t, 264) cells of its own region; real (t,) not padding; rivals_off
    (n, n) regions that may not count as wrong. Returns spotting among all, within, and MaxSim
    losses and the share of queries whose own region scores highest.
    """
    n = len(cells)
    per_region = n_queries // n
    spot_scale, rank_scale = scales.exp().clamp(max=60.0)
    logits = ((words * spot_scale).bfloat16() @ cells.flatten(0, 1).bfloat16().T).view(-1, n, PAGE_TOKENS)
    own = query_of // per_region  # (t,)
    own_logits = logits.gather(1, own[:, None, None].expand(-1, 1, PAGE_TOKENS))[:, 0].float()  # (t, 264)
    hit = torch.logsumexp(own_logits.masked_fill(~printed, -1e4), -1)
    use = real & printed.any(-1)
    count = use.sum().clamp(min=1)
    best = logits.amax(-1).float()  # (t, n)
    every = torch.logsumexp(torch.logsumexp(logits.float(), -1), -1)
    spot = ((every - hit) * use).sum() / count
    within = ((torch.logsumexp(own_logits, -1) - hit) * use).sum() / count
    best = torch.where(real[:, None], best, 0.0) * (rank_scale / spot_scale)
    scores = torch.zeros(n_queries, n, device=best.device).index_add(0, query_of, best)
    target = torch.arange(n_queries, device=best.device) // per_region
    scores = scores.masked_fill(rivals_off[target], -1e4)
    asked = torch.zeros(n_queries, device=best.device).index_add(0, query_of, real.float()) > 0
    rank = (F.cross_entropy(scores, target, reduction="none") * asked).sum() / asked.sum().clamp(min=1)
    right = ((scores.argmax(1) == target) & asked).sum() / asked.sum().clamp(min=1)
    return spot, within, rank, right


def rivals(pages: torch.Tensor) -> torch.Tensor:
    """Return (n, n) bool: regions of the same page that may show the same words.

    pages (n, 2): an identity, and whether the pair (2i, 2i + 1) overlaps. Disjoint pairs stay rivals.
    """
    n = len(pages)
    same = pages[:, None, 0] == pages[None, :, 0]
    at = torch.arange(n, device=pages.device)
    pair = (at[:, None] // 2) == (at[None, :] // 2)
    return same & (~pair | (pages[:, 1] > 0)[:, None]) & (at[:, None] != at[None, :])
