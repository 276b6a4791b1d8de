"""What bound and incumbent leave to choose in every block."""

from dataclasses import dataclass
from typing import final

import numpy as np

from bitalloc.search.layout import Floats, Indices, Layout
from bitalloc.search.states import best_states


class TooManyStatesError(Exception):
    """The search holds more partial solutions than it may."""


@final
@dataclass(frozen=True, slots=True)
class Choices:
    """What is left to choose in one block.

    Attributes:
        score: of every choice; shape (choices,).
        cost: of every choice in every budget; shape (budgets, choices).
        entries: the entries of the layout that make up every choice; shape (choices, at most the cells of a mode), filled with -1.
    """

    score: Floats
    cost: Floats
    entries: Indices


def choices_of(layout: Layout, prices: Floats, room: float, most: int) -> list[Choices]:
    """The choices of every block whose bound at ``prices`` rises by less than ``room`` over that of the best one.

    Raises:
        TooManyStatesError: a block has more than ``most``.
    """
    value = layout.score + prices @ layout.cost
    rise, _ = layout.excess(value)
    kept = layout.restricted(rise < room)
    if kept is None:
        return []
    small, origin = kept
    if small.plain:
        ends = np.append(small.cell_start[1:], len(small.score))
        return [Choices(small.score[a:b], small.cost[:, a:b], origin[a:b, None]) for a, b in zip(small.cell_start, ends, strict=True)]
    return [_combined(small, origin, value[origin], block, room, most) for block in range(len(small.block_start))]


def _combined(layout: Layout, origin: Indices, value: Floats, block: int, room: float, most: int) -> Choices:
    """The choices of a block of several modes or cells, made from their entries."""
    _, sums, bests = layout.least(value)
    bounds = [
        np.append(starts, size)
        for starts, size in (
            (layout.cell_start, len(layout.score)),
            (layout.mode_start, len(layout.mode)),
            (layout.block_start, len(layout.block)),
        )
    ]
    widest = max(int(bounds[1][m + 1] - bounds[1][m]) for m in range(bounds[2][block], bounds[2][block + 1]))
    scores, costs, rows = [], [], []
    for mode in range(bounds[2][block], bounds[2][block + 1]):
        spent = np.array([sums[mode] - bests[block]])
        picked = np.zeros((1, 0), dtype=np.intp)
        for cell in range(bounds[1][mode], bounds[1][mode + 1]):
            entries = np.arange(bounds[0][cell], bounds[0][cell + 1])
            total = spent[:, None] + (value[entries] - value[entries].min())[None, :]
            parent, which = np.nonzero(total < room)
            if len(parent) > most:
                raise TooManyStatesError
            spent = total[parent, which]
            picked = np.concatenate([picked[parent], entries[which][:, None]], axis=1)
            # What is not the best of its kind in the cells so far cannot be part of the best.
            keep = best_states(layout.score[picked].sum(axis=1), layout.cost[:, picked].sum(axis=2))
            spent, picked = spent[keep], picked[keep]
        scores.append(layout.score[picked].sum(axis=1))
        costs.append(layout.cost[:, picked].sum(axis=2))
        rows.append(np.pad(origin[picked], ((0, 0), (0, widest - picked.shape[1])), constant_values=-1))
    score, cost, entries = np.concatenate(scores), np.concatenate(costs, axis=1), np.concatenate(rows)
    keep = best_states(score, cost)
    return Choices(score[keep], cost[:, keep], entries[keep])
