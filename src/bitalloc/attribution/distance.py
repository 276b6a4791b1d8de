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

    Constant maps as in :func:`spearman`. Takes memory for the square of the number of positions, of one sample at a time.

    Raises:
        TrainingError: the shapes differ.
    """
    left, right = _rows(left, right)
    found = [_tau(a, b) for a, b in zip(left, right, strict=True)]
    return _with_constants(left, right, torch.tensor(found, dtype=torch.float64, device=left.device))


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


def _tau(left: Tensor, right: Tensor) -> float:
    signs = [(row[:, None] - row[None, :]).sign().to(torch.float32) for row in (left, right)]
    agreeing = float((signs[0] * signs[1]).sum(dtype=torch.float64))
    untied = [float(sign.abs().sum(dtype=torch.float64)) for sign in signs]
    return agreeing / math.sqrt(untied[0] * untied[1]) if untied[0] and untied[1] else 0.0
