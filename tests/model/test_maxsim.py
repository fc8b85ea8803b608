"""MaxSim by hand, in blocks of any size, and padding that offers no similarity."""

import pytest
import torch

from colq_utils.model.maxsim import maxsim


def test_known_answer():
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    pages = [torch.tensor([[0.6, 0.8], [1.0, 0.0]]), torch.tensor([[0.0, -1.0]])]
    scores = maxsim([query, query[:1]], 2, pages.__getitem__)
    assert torch.allclose(scores, torch.tensor([[1.8, -1.0], [1.0, 0.0]]))  # 1 + 0.8; 0 + -1


def test_padding_offers_no_similarity():
    """A page whose similarities are all negative must not profit from a neighbour's padding."""
    long, short = torch.eye(2).repeat(3, 1), torch.tensor([[-1.0, 0.0]])
    assert maxsim([torch.tensor([[1.0, 0.0]])], 2, [long, short].__getitem__)[0, 1] == -1.0


@pytest.mark.parametrize("block", [1, 200, 1 << 25])
def test_block_size_does_not_matter(block):
    torch.manual_seed(0)
    queries = [torch.randn(n, 8) for n in (1, 5, 3)]
    pages = [torch.randn(n, 8) for n in (4, 9, 2, 7, 7)]
    expected = torch.tensor([[(q @ p.T).max(1).values.sum() for p in pages] for q in queries])
    assert torch.allclose(maxsim(queries, 5, pages.__getitem__, block), expected, atol=1e-5)


def test_empty_inputs_are_refused():
    with pytest.raises(ValueError, match="query without tokens"):
        maxsim([torch.empty(0, 2)], 1, lambda i: torch.ones(1, 2))
    with pytest.raises(ValueError, match="page 0 has no tokens"):
        maxsim([torch.ones(1, 2)], 1, lambda i: torch.empty(0, 2))
