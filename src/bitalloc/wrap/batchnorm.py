"""Batch norms that switch with the width: every candidate width has its own statistics and affine parameters."""

from collections.abc import Sequence
from copy import deepcopy

from torch import Tensor, nn

from bitalloc.policy import Bits
from bitalloc.space import Candidates


class SwitchableBatchNorm(nn.Module):
    """One copy of a batch norm for each uniform pass of the joint training (LIMPQ, section 3).

    A network at another width has other activation statistics, so widths must not share running averages.

    Args:
        norm: the pretrained batch norm, which every branch is copied from.
        follows: name of the layer whose widths choose the branch.
        passes: the widths that this layer has in the uniform passes, one branch each.
    """

    def __init__(self, norm: nn.Module, follows: str, passes: Sequence[Bits]) -> None:
        super().__init__()
        self.follows = follows
        self.passes = tuple(passes)
        self.branches = nn.ModuleList(deepcopy(norm) for _ in self.passes)
        self.active = 0

    def switch(self, bits: Bits) -> None:
        """Makes the branch for ``bits`` active; for widths of no uniform pass the nearest branch, see :func:`branch_of`."""
        self.active = branch_of(bits, self.passes)

    def forward(self, x: Tensor) -> Tensor:
        """The active branch's output."""
        out: Tensor = self.branches[self.active](x)
        return out


def uniform_passes(candidates: Candidates) -> tuple[Bits, ...]:
    """The widths of a layer in each uniform pass, from most to fewest bits.

    Weights and activations step down together; the side with fewer candidates stays at its last one.
    """
    count = max(len(candidates.weight), len(candidates.act))
    return tuple(Bits(_at(candidates.weight, index), _at(candidates.act, index)) for index in range(count))


def branch_of(bits: Bits, passes: Sequence[Bits]) -> int:
    """The index of the pass nearest to ``bits``: the smallest sum of width differences, and of equals the one with fewest bits.

    Fewest bits, because the coarser of weight and activation dominates the statistics.
    """

    def distance(index: int) -> tuple[int, int]:
        there = passes[index]
        return abs(there.weight - bits.weight) + abs(there.act - bits.act), there.weight + there.act

    return min(range(len(passes)), key=distance)


def _at(widths: tuple[int, ...], index: int) -> int:
    return widths[min(index, len(widths) - 1)]
