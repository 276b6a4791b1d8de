"""The search through what bound and incumbent leave open: dynamic programming over blocks, states pruned by bounds."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from bitalloc.search.layout import Floats, Indices, Layout

_BINS: Final = {2: 256, 3: 40}
"""Bins a budget for the comparison of states under that many budgets."""
_COMPARED: Final = 64
"""Fewer states than that are not worth comparing."""


class TooManyStatesError(Exception):
    """The search holds more partial solutions than it may."""


class TimeOverError(Exception):
    """The deadline passed."""


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


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """What a search is held against.

    Attributes:
        limits: of every budget.
        cutoff: only solutions with a score below that are wanted.
        prices: several price vectors, each of which gives a bound for every partial solution; shape (vectors, budgets).
        states: most partial solutions that may be held at once.
        deadline: of ``time.perf_counter``.
    """

    limits: Floats
    cutoff: float
    prices: Floats
    states: int
    deadline: float


def search(blocks: Sequence[Choices], frame: Frame) -> Indices | None:
    """The entries of the best solution with a score below the cutoff, ``None`` if there is none.

    One block after the other; a partial solution is dropped if at one of the prices its bound reaches the cutoff, if what the rest
    needs at least no longer fits, or if another one has a lower score and takes no more of any budget.

    Raises:
        TooManyStatesError: more partial solutions than ``frame.states``.
        TimeOverError: the deadline passed.
    """
    rests, needs = _rests(blocks, frame)
    score, use = np.zeros(1), np.zeros((len(frame.limits), 1))
    trail: list[tuple[Indices, Indices]] = []
    for i, block in enumerate(blocks):
        if time.perf_counter() > frame.deadline:
            raise TimeOverError
        room = frame.cutoff - rests[i + 1] + frame.prices @ frame.limits
        parent, choice = _children(score, use, block, frame.prices[0], room[0], frame.states)
        score = score[parent] + block.score[choice]
        use = use[:, parent] + block.cost[:, choice]
        keep = (use <= (frame.limits - needs[i + 1])[:, None]).all(axis=0)
        if len(frame.prices) > 1:
            keep &= (score + frame.prices[1:] @ use < room[1:, None]).all(axis=0)
        kept = np.flatnonzero(keep)
        kept = kept[_undominated(score[kept], use[:, kept])]
        if not len(kept):
            return None
        score, use = score[kept], use[:, kept]
        trail.append((parent[kept], choice[kept]))
    return _entries(blocks, trail, int(np.argmin(score)))


def _rests(blocks: Sequence[Choices], frame: Frame) -> tuple[Floats, Floats]:
    """For every block what the blocks from there on add at least: at every price vector, and to every budget."""
    values = np.array([(block.score + frame.prices @ block.cost).min(axis=1) for block in blocks])
    costs = np.array([block.cost.min(axis=1) for block in blocks])
    return tuple(np.concatenate([np.cumsum(of[::-1], axis=0)[::-1], np.zeros((1, of.shape[1]))]) for of in (values, costs))  # type: ignore[return-value]


def _children(score: Floats, use: Floats, block: Choices, prices: Floats, room: float, most: int) -> tuple[Indices, Indices]:
    """The pairs of a state and a choice whose bound at the best prices is below the cutoff."""
    value = score + prices @ use
    extra = block.score + prices @ block.cost
    order = np.argsort(value)
    counts = np.searchsorted(value[order], room - extra)
    if counts.sum() > most:
        raise TooManyStatesError
    choice = np.repeat(np.arange(len(extra)), counts)
    return np.concatenate([order[:count] for count in counts]), choice


def _undominated(score: Floats, use: Floats) -> Indices:
    """States that may be the best, in any order. One budget: exactly those; more: none is lost, some are kept needlessly."""
    budgets = len(use)
    if budgets == 0:
        return np.array([np.argmin(score)]) if len(score) else np.zeros(0, dtype=np.intp)
    if len(score) < _COMPARED or budgets > max(_BINS):
        return np.arange(len(score))
    if budgets == 1:
        order = np.lexsort((score, use[0]))
        best = np.minimum.accumulate(score[order])
        keep = np.ones(len(order), dtype=bool)
        keep[1:] = score[order[1:]] < best[:-1]
        return order[keep]
    return np.flatnonzero(score < _best_below(score, use, _BINS[budgets]))


def _best_below(score: Floats, use: Floats, bins: int) -> Floats:
    """For every state the best score among those in lower bins of every budget, which surely take less."""
    bins = min(bins, max(2, math.isqrt(len(score))))
    places = []
    for row in use:
        edges = np.quantile(row, np.linspace(0, 1, bins + 1)[1:-1])
        places.append(np.searchsorted(edges, row, side="left"))
    table = np.full((bins + 1,) * len(use), np.inf)
    np.minimum.at(table, tuple(place + 1 for place in places), score)
    for axis in range(len(use)):
        np.minimum.accumulate(table, axis=axis, out=table)
    return np.asarray(table[tuple(places)])


def _entries(blocks: Sequence[Choices], trail: Sequence[tuple[Indices, Indices]], state: int) -> Indices:
    rows = []
    for block, (parent, choice) in zip(reversed(blocks), reversed(trail), strict=True):
        rows.append(block.entries[choice[state]])
        state = int(parent[state])
    entries = np.concatenate(rows) if rows else np.zeros(0, dtype=np.intp)
    return np.sort(entries[entries >= 0])


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
            keep = _undominated(layout.score[picked].sum(axis=1), layout.cost[:, picked].sum(axis=2))
            spent, picked = spent[keep], picked[keep]
        scores.append(layout.score[picked].sum(axis=1))
        costs.append(layout.cost[:, picked].sum(axis=2))
        rows.append(np.pad(origin[picked], ((0, 0), (0, widest - picked.shape[1])), constant_values=-1))
    score, cost, entries = np.concatenate(scores), np.concatenate(costs, axis=1), np.concatenate(rows)
    keep = _undominated(score, cost)
    return Choices(score[keep], cost[:, keep], entries[keep])
