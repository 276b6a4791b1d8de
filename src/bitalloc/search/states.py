"""Which partial solutions of the search may be part of the best one."""

import math
from typing import Final

import numpy as np

from bitalloc.search.layout import Floats, Indices

_BINS: Final = {2: 256, 3: 40}
"""Bins a budget for the comparison of states under that many budgets."""
_COMPARED: Final = 64
"""Fewer states than that are not worth comparing."""


def best_states(score: Floats, use: Floats) -> Indices:
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
        edges = np.sort(row)[np.arange(1, bins) * len(row) // bins]
        places.append(np.searchsorted(edges, row, side="left"))
    table = np.full((bins + 1,) * len(use), np.inf)
    np.minimum.at(table, tuple(place + 1 for place in places), score)
    for axis in range(len(use)):
        np.minimum.accumulate(table, axis=axis, out=table)
    return np.asarray(table[tuple(places)])
