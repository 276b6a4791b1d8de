"""At most so many different widths: one search for every way to choose them, most of them closed by a bound."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from bitalloc.policy import Bits
from bitalloc.search.exact import CoreTooLargeError, Found, minimise
from bitalloc.search.layout import Floats, Indices, Layout, Mask
from bitalloc.search.relaxation import Relaxation
from bitalloc.search.width_sets import width_sets
from bitalloc.space import SearchSpace


def masks(space: SearchSpace, pairs: Sequence[Sequence[Bits]], layout: Layout) -> Iterator[Mask]:
    """The entries of every largest set of weight widths and of activation widths that ``max_widths`` allows."""
    chosen = [pairs[layer][pair] for layer, pair in zip(layout.layer.tolist(), layout.pair.tolist(), strict=True)]
    sides = []
    for side in ("weight", "act"):
        width = np.array([getattr(bits, side) for bits in chosen])
        sides.append([np.isin(width, allowed) for allowed in width_sets(space, side)])
    return (weight & act for weight, act in itertools.product(*sides))


class Palette:
    """Searches the palettes in the order of their bounds at the prices of the whole problem."""

    def __init__(self, layout: Layout, limits: Floats, gap: float, offset: float, deadline: float) -> None:
        self.layout, self.limits, self.gap, self.offset, self.deadline = layout, limits, gap, offset, deadline

    def best(self, palettes: Iterator[Mask]) -> Found:
        """The best choice inside the limits whose entries are all in one palette."""
        relaxation = Relaxation(self.layout, self.limits, self.deadline)
        found = Found(None, math.inf, math.inf, relaxation.prices)
        for least, layout, origin in self._by_bound(palettes, relaxation.prices):
            if least >= found.objective:
                break
            try:
                part = minimise(layout, self.limits, self.gap, self.offset, self.deadline, found.objective)
            except CoreTooLargeError as error:
                everything = np.arange(len(self.layout.score))
                raise CoreTooLargeError(Found(found.entries, found.objective, relaxation.bound, relaxation.prices), everything) from error
            bound = min(found.bound, max(least, part.bound))
            if part.entries is not None:
                found = Found(origin[part.entries], part.objective, bound, part.prices)
            else:
                found = Found(found.entries, found.objective, bound, found.prices)
        return found

    def _by_bound(self, palettes: Iterator[Mask], prices: Floats) -> list[tuple[float, Layout, Indices]]:
        parts = []
        for mask in palettes:
            kept = self.layout.restricted(mask)
            if kept is not None:
                least = kept[0].excess(kept[0].score + prices @ kept[0].cost)[1]
                parts.append((least - float(prices @ self.limits), *kept))
        return sorted(parts, key=lambda part: part[0])
