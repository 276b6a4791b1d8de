"""How much two networks agree on the order of an image's positions."""

import math

import torch
from torch import Tensor

from bitalloc.errors import TrainingError


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 (smallest) in each row of (N, n); ties share their mean rank. No gradient."""
    ordered = values.detach().sort(dim=1).values.contiguous()
    row = values.detach().contiguous()
    below = torch.searchsorted(ordered, row)
    up_to = torch.searchsorted(ordered, row, right=True)
    return (below + up_to + 1).to(values.dtype) / 2


def correlation(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's correlation of each row of (N, n), differentiable; 0 where a row is constant."""
    left, right = left - left.mean(1, keepdim=True), right - right.mean(1, keepdim=True)
    product = left.square().sum(1) * right.square().sum(1)
    varies = product > 0
    return (left * right).sum(1) / torch.where(varies, product, torch.ones_like(product)).sqrt() * varies


def spearman(left: Tensor, right: Tensor) -> Tensor:
    """Spearman's rank correlation of each sample, (N,), float64, from -1 to 1; ties have their mean rank.

    Two constant maps agree (1), one that is constant and one that is not do not (0).

    Args:
        left: maps (N, ...).
        right: maps of the same shape.

    Raises:
        TrainingError: the shapes differ.
    """
    left, right = _rows(left, right)
    return _with_constants(left, right, correlation(ranks(left), ranks(right)))


def spearman_distance(left: Tensor, right: Tensor) -> Tensor:
    """``1 - rho`` of each sample, (N,), see :func:`spearman`: 0 for the same order, 2 for the reverse."""
    return 1 - spearman(left, right)


def kendall(left: Tensor, right: Tensor) -> Tensor:
    """Kendall's tau-b of each sample, (N,), float64, from -1 to 1: pairs in the same order less pairs in the other, ties accounted for.

    Constant maps as in :func:`spearman`. Takes time n log^2 n and memory for a few numbers a position. Knight, "A Computer Method for
    Calculating Kendall's Tau with Ungrouped Data", JASA 1966: pairs in the other order are the inversions left after sorting.

    Raises:
        TrainingError: the shapes differ.
    """
    left, right = _rows(left, right)
    first, second = (torch.searchsorted(row.sort(1).values, row) for row in (left, right))  # how many are smaller
    count = left.shape[1]
    both = first * count + second  # sorts by the first, and among its ties by the second
    # Ordered pairs, each position with itself among the ties.
    tied = [_tied(row) for row in (first, second, both)]
    inverted = _inversions(second.gather(1, both.argsort(1)))
    agreeing = count * count - tied[0] - tied[1] + tied[2] - 4 * inverted
    untied = ((count * count - tied[0]).double() * (count * count - tied[1]).double()).sqrt()
    return _with_constants(left, right, torch.where(untied > 0, agreeing / untied.clamp_min(1), 0.0))


def top_overlap(left: Tensor, right: Tensor, share: float = 0.25) -> Tensor:
    """The share of the positions with the largest values in ``left`` that are so in ``right``, of each sample, (N,), from 0 to 1.

    Args:
        left: maps (N, ...).
        right: maps of the same shape.
        share: of all positions, rounded up to a number k. Default a quarter. Of equal values at the border the earlier position counts.

    Raises:
        TrainingError: the shapes differ, or the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise TrainingError(f"the share of top positions is {share}, expected a number above 0 and up to 1.")
    left, right = _rows(left, right)
    count = max(1, math.ceil(share * left.shape[1] - 1e-9))
    chosen = []
    for rows in (left, right):
        top = rows.sort(dim=1, descending=True, stable=True).indices[:, :count]
        chosen.append(torch.zeros_like(rows, dtype=torch.bool).scatter_(1, top, True))
    return (chosen[0] & chosen[1]).sum(1).double() / count


def _rows(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    if left.shape != right.shape:
        raise TrainingError(f"maps of shapes {tuple(left.shape)} and {tuple(right.shape)} cannot be compared: expected the same layer.")
    return left.detach().flatten(1).double(), right.detach().flatten(1).double()


def _with_constants(left: Tensor, right: Tensor, value: Tensor) -> Tensor:
    constant = (left == left[:, :1]).all(1) & (right == right[:, :1]).all(1)
    return torch.where(constant, torch.ones_like(value), value.clamp(-1, 1))


def _tied(row: Tensor) -> Tensor:
    """How many ordered pairs of positions in each row of (N, n) are equal, (N,); a position and itself are one."""
    ordered = row.sort(1).values
    return (torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)).sum(1)


def _inversions(rows: Tensor) -> Tensor:
    """How many pairs of each row of (N, n), integers from 0 to n - 1, have the larger one in front, (N,).

    The highest bit in which two numbers differ tells which is larger. So for every bit, among numbers with the same bits above it,
    each 0 counts the 1s in front of it.
    """
    found = torch.zeros_like(rows[:, 0])
    for bit in range((rows.shape[1] - 1).bit_length()):
        above, order = (rows >> (bit + 1)).sort(dim=1, stable=True)
        ones = (rows.gather(1, order) >> bit) & 1
        before = ones.cumsum(1) - ones
        start = torch.searchsorted(above, above)  # of the numbers with the same bits above
        found += ((before - before.gather(1, start)) * (1 - ones)).sum(1)
    return found
