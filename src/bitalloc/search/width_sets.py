"""The ways to use at most so many different widths."""

from collections.abc import Iterator
from itertools import combinations

from bitalloc.policy import FLOAT
from bitalloc.space import SearchSpace


def width_sets(space: SearchSpace, side: str) -> Iterator[tuple[int, ...]]:
    """The largest sets of ``weight`` or ``act`` widths that ``max_widths`` allows, with floating point, which is not counted.

    What a layer without a choice needs is in all of them: two of five widths, where the 8 bits of pinned layers are one of
    the two, leave four sets.
    """
    rows = [getattr(choices, side) for choices in space.candidates.values()]
    needed = {row[0] for row in rows if len(row) == 1} - {FLOAT}
    others = sorted({width for row in rows for width in row} - needed - {FLOAT}, reverse=True)
    left = len(others) if space.max_widths is None else space.max_widths - len(needed)
    if left >= 0:
        for more in combinations(others, min(left, len(others))):
            yield (FLOAT, *needed, *more)
