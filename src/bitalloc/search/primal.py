"""From an infeasible or loose choice to a good one: repair, then single changes that improve it."""

from typing import Final

import numpy as np

from bitalloc.search.layout import Floats, Indices, Layout

_LEAST: Final = 1e-12


def repaired(layout: Layout, limits: Floats, entries: Indices, value: Floats) -> Indices | None:
    """Changes one layer after the other until all budgets are met, each time the least rise of ``value`` for what it frees.

    Args:
        layout: the choices.
        limits: of every budget.
        entries: the choice to start from.
        value: of every entry, score and priced cost.

    Returns:
        The repaired choice, or ``None`` if no single change helps any more.
    """
    entries = entries.copy()
    scale = 1 / limits
    movable, place = _movable(layout, entries)
    for _ in range(4 * len(entries)):
        over = (layout.cost[:, entries].sum(axis=1) - limits) * scale
        if (over <= 0).all():
            return entries
        old = entries[place]
        after = over[:, None] + (layout.cost[:, movable] - layout.cost[:, old]) * scale[:, None]
        freed = np.maximum(over, 0).sum() - np.maximum(after, 0).sum(axis=0)
        rise = np.maximum(value[movable] - value[old], 0) + _LEAST
        rate = np.where(freed > _LEAST, rise / np.maximum(freed, _LEAST), np.inf)
        best = int(np.argmin(rate))
        if not np.isfinite(rate[best]):
            return None
        entries[place[best]] = movable[best]
    return None


def improved(layout: Layout, limits: Floats, entries: Indices) -> Indices:
    """Takes the single change of the greatest gain inside the budgets, again and again."""
    entries = entries.copy()
    movable, place = _movable(layout, entries)
    score, cost = layout.score[movable], layout.cost[:, movable]
    while True:
        room = limits - layout.cost[:, entries].sum(axis=1)
        old = entries[place]
        gain = layout.score[old] - score
        fits = ((cost - layout.cost[:, old]) <= room[:, None]).all(axis=0)
        best = int(np.argmax(np.where(fits, gain, -np.inf)))
        if not (fits[best] and gain[best] > 0):
            return entries
        entries[place[best]] = movable[best]


def _movable(layout: Layout, entries: Indices) -> tuple[Indices, Indices]:
    """The entries of all cells that ``entries`` stands in, and for each the place of its cell in ``entries``."""
    where = np.full(len(layout.cell_start), -1)
    where[layout.cell[entries]] = np.arange(len(entries))
    place = where[layout.cell]
    movable = np.flatnonzero(place >= 0)
    return movable, place[movable]
