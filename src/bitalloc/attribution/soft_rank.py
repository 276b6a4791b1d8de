"""Ranks that have a gradient.

Blondel et al., "Fast Differentiable Sorting and Ranking", ICML 2020, arXiv 2002.08871: with quadratic regularisation.
"""

import torch
from torch import Tensor

from bitalloc.errors import TrainingError


def soft_rank(values: Tensor, strength: float = 1.0) -> Tensor:
    """Ranks from 1 (smallest) to n (largest), as the Euclidean projection of ``values / strength`` onto the permutahedron of (1, ..., n).

    With a small strength these are the exact ranks, ties sharing their mean; with a large one all tend to ``(n + 1) / 2``. The
    projection is one isotonic regression of the sorted values (their proposition 3)::

        P(z) = z - v,    v = argmin over v_1 >= ... >= v_n of  || (sort(z) - (n, ..., 1)) - v ||^2    in the order of z

    which pools neighbours to their mean (O(n) after sorting, in Python on the processor). Given the pools it is linear, so it
    can be differentiated as often as needed.

    Args:
        values: (N, n); ranked in each row.
        strength: positive.

    Raises:
        TrainingError: ``values`` has another number of dimensions or is not finite, or the strength is not positive.
    """
    if values.dim() != 2 or not strength > 0 or not bool(torch.isfinite(values).all()):
        raise TrainingError(f"soft ranks need finite values (N, n) and a positive strength, got {tuple(values.shape)} and {strength}.")
    count = values.shape[1]
    # As the values less any constant have the same ranks and sums of large numbers lose digits.
    scaled = (values - values.detach().mean(1, keepdim=True)) / strength
    ordered, order = scaled.sort(dim=1, descending=True, stable=True)
    gap = ordered - torch.arange(count, 0, -1, dtype=values.dtype, device=values.device)
    pools = torch.tensor([_pools(row) for row in gap.detach().double().tolist()], device=values.device)
    sizes = torch.zeros_like(gap).scatter_add(1, pools, torch.ones_like(gap))
    means = torch.zeros_like(gap).scatter_add(1, pools, gap) / sizes.clamp_min(1)
    return torch.zeros_like(gap).scatter(1, order, ordered - means.gather(1, pools))


def _pools(row: list[float]) -> list[int]:
    """The number of the pool of each entry, where pooling adjacent violators makes the row non-increasing."""
    sums: list[float] = []
    sizes: list[int] = []
    for value in row:
        total, size = value, 1
        while sums and sums[-1] * size <= total * sizes[-1]:
            total, size = total + sums.pop(), size + sizes.pop()
        sums.append(total)
        sizes.append(size)
    return [number for number, size in enumerate(sizes) for _ in range(size)]
