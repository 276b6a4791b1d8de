"""A problem made ready once, to be solved under many limits."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from bitalloc.errors import BitallocError, InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.exact import CoreTooLargeError, Found, minimise
from bitalloc.search.highs import deadline_of
from bitalloc.search.highs import minimise as minimise_with_highs
from bitalloc.search.layout import Floats, Indices, Layout, layout_of, undominated
from bitalloc.search.palette import Palette, palettes_of
from bitalloc.search.problem import ROUNDING, Problem, within
from bitalloc.search.solution import Solution, judged
from bitalloc.search.ties import TooManyModesError
from bitalloc.space import Candidates, SearchSpace

_GRID: Final = 2.0**52
"""Costs are multiples of 1/2^52 of the limit's power of two, so that sums inside the limit are exact in floating point."""


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """The arrays of a problem, independent of its limits; made by :func:`prepare`.

    Attributes:
        problem: as given.
        layout: its arrays, ``None`` where its ties are left to HiGHS.
        pairs: the pairs of every layer, in the order of the space.
        offset: the sum of the smallest scores of all layers, which the layout's scores leave out.
    """

    problem: Problem
    layout: Layout | None
    pairs: tuple[tuple[Bits, ...], ...]
    offset: float

    def solve(self, limits: Sequence[float] | None = None, *, gap: float = 0.0, time_limit: float | None = None) -> Solution:
        """The best policy inside these limits, as :func:`bitalloc.search.solve` finds it.

        Args:
            limits: one for every budget of the problem, in its order; those of the problem by default.
            gap: see :func:`bitalloc.search.solve`.
            time_limit: see :func:`bitalloc.search.solve`.

        Raises:
            InfeasibleError: no policy meets the limits; without the reasons that ``solve`` gives.
            BitallocError: see :func:`bitalloc.search.solve`.
        """
        start = time.perf_counter()
        deadline = deadline_of(gap, time_limit)
        problem = self.problem if limits is None else _with_limits(self.problem, limits)
        bits, bound, prices = self._best(problem, gap, deadline)
        return judged(problem, bits, bound, time.perf_counter() - start, prices)

    def _best(self, problem: Problem, gap: float, deadline: float) -> tuple[Mapping[str, Bits], float, Sequence[float] | None]:
        if self.layout is None:
            return *_by_highs(problem, problem.space, gap, deadline), None
        cost, limits, units = _on_grid(self.layout.cost, [budget.limit for budget in problem.budgets], len(self.pairs))
        layout = self.layout.with_cost(cost)
        try:
            found = self._search(layout, limits, gap, deadline)
        except CoreTooLargeError as error:
            known = None if error.found.entries is None else self._bits(error.found.entries)
            if known is not None and not _inside(problem, known):
                known = None
            bits, bound = _by_highs(problem, self._core(error.keep), gap, deadline, known)
            return bits, max(bound, error.found.bound + self.offset), _per_unit(error.found.prices, units)
        if found.entries is None:
            if found.bound < math.inf:
                raise BitallocError("the time limit passed before any policy inside the budgets was found: give the search more time.")
            raise InfeasibleError("no policy of the search space meets all budgets.")
        bits = self._bits(found.entries)
        if not _inside(problem, bits):  # a sum within the last digits of a limit, which only the full sum can tell
            return *_by_highs(problem, problem.space, gap, deadline), _per_unit(found.prices, units)
        return bits, found.bound + self.offset, _per_unit(found.prices, units)

    def _search(self, layout: Layout, limits: Floats, gap: float, deadline: float) -> Found:
        if self.problem.space.max_widths is None:
            return minimise(layout, limits, gap, self.offset, deadline)
        palette = Palette(layout, limits, gap, self.offset, deadline)
        return palette.best(palettes_of(self.problem.space, self.pairs, layout))

    def _bits(self, entries: Indices) -> dict[str, Bits]:
        assert self.layout is not None
        names = list(self.problem.space.candidates)
        chosen = zip(self.layout.layer[entries].tolist(), self.layout.pair[entries].tolist(), strict=True)
        return {names[layer]: self.pairs[layer][pair] for layer, pair in sorted(chosen)}

    def _core(self, keep: Indices) -> SearchSpace:
        """The space with these entries only."""
        assert self.layout is not None
        allowed: list[set[Bits]] = [set() for _ in self.pairs]
        for layer, pair in zip(self.layout.layer[keep].tolist(), self.layout.pair[keep].tolist(), strict=True):
            allowed[layer].add(self.pairs[layer][pair])
        space = self.problem.space
        rows = {
            name: Candidates(choices.weight, choices.act, frozenset(left))
            for (name, choices), left in zip(space.candidates.items(), allowed, strict=True)
        }
        return replace(space, candidates=rows)


def prepare(problem: Problem) -> Prepared:
    """Makes a problem ready to be solved under many limits: arrays, ties and dominance are worked out once.

    Raises:
        InfeasibleError: no policy keeps the ties.
    """
    space, score = problem.space, problem.score
    known = {candidates: candidates.pairs for candidates in set(space.candidates.values())}
    pairs = tuple(known[candidates] for candidates in space.candidates.values())
    layout: Layout | None
    try:
        layout, offset = layout_of(space, pairs, score, [budget.table for budget in problem.budgets])
        kept = layout.restricted(undominated(layout)) if space.max_widths is None else None
        layout = layout if kept is None else kept[0]
    except TooManyModesError:
        layout, offset = None, 0.0
    return Prepared(problem, layout, pairs, offset)


def _with_limits(problem: Problem, limits: Sequence[float]) -> Problem:
    if len(limits) != len(problem.budgets):
        raise BitallocError(f"there are {len(limits)} limits for {len(problem.budgets)} budgets: give one for every budget.")
    changed = object.__new__(Problem)  # the tables were checked when the problem was made
    for name, value in (("space", problem.space), ("score", problem.score)):
        object.__setattr__(changed, name, value)
    object.__setattr__(changed, "budgets", tuple(replace(b, limit=limit) for b, limit in zip(problem.budgets, limits, strict=True)))
    return changed


def _on_grid(costs: Floats, limits: Sequence[float], layers: int) -> tuple[Floats, Floats, Floats]:
    """Costs and limits in units of the power of two above each limit, the costs rounded to what adds up exactly.

    Whole numbers and most others are not rounded at all. Where they are, the limit is raised by as much as the rounding can add
    up to, so that nothing inside the budget is lost; the result is counted anew.
    """
    units = np.array([2.0 ** math.frexp(limit)[1] for limit in limits])
    exact = costs / units[:, None]
    rounded = np.rint(np.minimum(exact, 4.0) * _GRID) / _GRID
    loss = np.where((rounded != np.minimum(exact, 4.0)).any(axis=1), layers / 2 / _GRID, 0.0)
    raised = np.array([limit * (1 + ROUNDING) for limit in limits]) / units + loss
    return rounded, np.floor(raised * _GRID) / _GRID, units


def _by_highs(
    problem: Problem, space: SearchSpace, gap: float, deadline: float, known: Mapping[str, Bits] | None = None
) -> tuple[Mapping[str, Bits], float]:
    found = minimise_with_highs(space, problem.score, problem.budgets, gap, deadline, known)
    if found is None:
        raise InfeasibleError("no policy of the search space meets all budgets.")
    return found


def _per_unit(prices: Floats, units: Floats) -> list[float]:
    return [float(price) for price in prices / units]


def _inside(problem: Problem, bits: Mapping[str, Bits]) -> bool:
    return all(within(budget, bits) for budget in problem.budgets)
