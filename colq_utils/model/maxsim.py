"""MaxSim, the late-interaction score, in fp32 and blind to padding.

score(q, p) = sum over the query's tokens of the largest dot product with any of the page's tokens (Khattab
and Zaharia, ColBERT, 2020, eq. 3). A padded page token is a zero vector and would offer a similarity of 0
where every real one is negative, so padding is masked, never multiplied.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

#: Similarities held at once, query by page tokens: 8 MiB in fp32, which fit a cache and fill a GPU call.
BLOCK = 1 << 21
#: Numbers of pages held at once, 32 MiB in fp32: a short query alone would let the block hold hundreds.
PAGES = 1 << 23


def maxsim(
    queries: Sequence[torch.Tensor],
    n_pages: int,
    page: Callable[[int], torch.Tensor],
    block: int = BLOCK,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Score every query against every page: ``(n_queries, n_pages)``, float32, on the CPU.

    Args:
        queries: a tensor ``(n_query_tokens, dim)`` each, without padding.
        page: gives page i as ``(n_page_tokens, dim)``; called once per page, so pages may live on disk.
        block: limit on the similarities held on `device`, where the products are computed.

    Raises:
        ValueError: a query or a page without tokens.
    """
    if any(len(q) == 0 for q in queries):
        raise ValueError("a query without tokens has no score")
    tokens = torch.cat([q.to(device).float() for q in queries])  # (n_all_query_tokens, dim)
    of_query = torch.tensor([len(q) for q in queries], device=device)
    scores, start = [], 0
    while start < n_pages:
        batch = [page(start).to(device).float()]
        room = max(1, min(block // len(tokens), PAGES // tokens.shape[1]) // max(1, len(batch[0])))
        batch += [page(i).to(device).float() for i in range(start + 1, min(start + room, n_pages))]
        lengths = torch.tensor([len(p) for p in batch])
        if (lengths == 0).any():
            raise ValueError(f"page {start + int((lengths == 0).nonzero()[0])} has no tokens")
        stacked = pad_sequence(batch, batch_first=True)  # (n_batch, n_longest, dim)
        best = tokens @ stacked.flatten(0, 1).T
        best = best.unflatten(1, stacked.shape[:2])  # (n_all_query_tokens, n_batch, n_longest)
        padding = torch.arange(stacked.shape[1]) >= lengths[:, None]  # (n_batch, n_longest)
        if padding.any():
            best = best.masked_fill(padding.to(device), float("-inf"))
        # token by token in order: unlike atomic adds, the same bits every time on a GPU too
        scores.append(torch.segment_reduce(best.amax(-1), "sum", lengths=of_query, axis=0))
        start += len(batch)
    return torch.cat(scores, 1).cpu() if scores else torch.zeros(len(queries), 0)
