"""A problem as arrays, searched under any limits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, final

import numpy as np

from bitalloc.errors import BitallocError
from bitalloc.policy import Bits
from bitalloc.search.exact import CoreTooLargeError, Found, minimise
from bitalloc.search.exact import prices as relaxation_prices
from bitalloc.search.highs import minimise as minimise_with_highs
from bitalloc.search.layout import Floats, Indices, Layout, layout_of
from bitalloc.search.model import Model
from bitalloc.search.palette import Palette, masks
from bitalloc.search.problem import ROUNDING, Problem, within
from bitalloc.search.ties import TooManyModesError
from bitalloc.space import Candidates, SearchSpace

_GRID: Final = 2.0**52
"""Costs are multiples of 1/2^52 of the limit's power of two, so that sums inside the limit are exact in floating point."""


@final
@dataclass(frozen=True, slots=True)
class Best:
    """The best policy found, a bound on the score of all, and the price of every budget."""

    bits: Mapping[str, Bits]
    bound: float
    prices: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True)
class Instance:
    """The arrays of a problem, independent of its limits; made by :func:`instance_of`.

    Attributes:
        space: of the problem.
        layout: the arrays, ``None`` where the ties are left to HiGHS.
        offset: the sum of the smallest scores of all layers, which the layout's scores leave out.
        pairs: the pairs of every layer, in the order of the space.
    """

    space: SearchSpace
    layout: Layout | None
    offset: float
    pairs: tuple[tuple[Bits, ...], ...]

    def best(self, problem: Problem, gap: float = 0.0, deadline: float = math.inf) -> Best | None:
        """The best policy of ``problem``, which differs in its limits only; ``None`` if none is inside them.

        Args:
            problem: the limits, and the tables again, from which what is found is counted anew.
            gap: the search may stop at a policy proven to be within this share of the optimum.
            deadline: of ``time.perf_counter``.

        Raises:
            BitallocError: the time is over and no policy was found.
        """
        if self.layout is None:
            return _by_highs(problem, problem.space, gap, deadline, _linear_prices(problem))
        layout, limits, units = _on_grid(self.layout, problem)
        try:
            found = self._search(layout, limits, gap, deadline)
        except CoreTooLargeError as error:
            known = None if error.found.entries is None else self._bits(error.found.entries)
            known = known if known is not None and _inside(problem, known) else None
            bound = error.found.bound + self.offset
            return _by_highs(problem, self._core(error.keep), gap, deadline, _per_unit(error.found.prices, units), known, bound)
        if found.entries is None:
            if found.bound < math.inf:
                raise BitallocError("the time limit passed before any policy inside the budgets was found: give the search more time.")
            return None
        bits = self._bits(found.entries)
        if not _inside(problem, bits):  # a sum within the last digits of a limit, which only the full sum can tell
            return _by_highs(problem, problem.space, gap, deadline, _per_unit(found.prices, units))
        return Best(bits, found.bound + self.offset, _per_unit(found.prices, units))

    def prices(self, problem: Problem) -> tuple[float, ...]:
        """The price of every budget of ``problem``, one for each of several with one name; ``max_widths`` is left out."""
        if self.layout is None:
            return _linear_prices(problem)
        layout, limits, units = _on_grid(self.layout, problem)
        return _per_unit(relaxation_prices(layout, limits), units)

    def _search(self, layout: Layout, limits: Floats, gap: float, deadline: float) -> Found:
        if self.space.max_widths is None:
            return minimise(layout, limits, gap, self.offset, deadline)
        return Palette(layout, limits, gap, self.offset, deadline).best(masks(self.space, self.pairs, layout))

    def _bits(self, entries: Indices) -> dict[str, Bits]:
        assert self.layout is not None
        names = list(self.space.candidates)
        chosen = zip(self.layout.layer[entries].tolist(), self.layout.pair[entries].tolist(), strict=True)
        return {names[layer]: self.pairs[layer][pair] for layer, pair in sorted(chosen)}

    def _core(self, keep: Indices) -> SearchSpace:
        """The space with these entries only."""
        assert self.layout is not None
        allowed: list[set[Bits]] = [set() for _ in self.pairs]
        for layer, pair in zip(self.layout.layer[keep].tolist(), self.layout.pair[keep].tolist(), strict=True):
            allowed[layer].add(self.pairs[layer][pair])
        rows = {
            name: Candidates(choices.weight, choices.act, frozenset(left))
            for (name, choices), left in zip(self.space.candidates.items(), allowed, strict=True)
        }
        return replace(self.space, candidates=rows)


def instance_of(problem: Problem) -> Instance:
    """The arrays of a problem, with its ties worked out.

    Raises:
        InfeasibleError: no policy keeps the ties.
    """
    space = problem.space
    known = {candidates: candidates.pairs for candidates in set(space.candidates.values())}
    pairs = tuple(known[candidates] for candidates in space.candidates.values())
    try:
        return Instance(space, *layout_of(space, pairs, problem.score, [budget.table for budget in problem.budgets]), pairs)
    except TooManyModesError:
        return Instance(space, None, 0.0, pairs)


def _on_grid(layout: Layout, problem: Problem) -> tuple[Layout, Floats, Floats]:
    """Costs and limits in units of the power of two above each limit, the costs rounded to what adds up exactly; and the units.

    Whole numbers and most others are not rounded at all. Where they are, the limit is raised by as much as the rounding can add
    up to, so that nothing inside the budget is lost; the result is counted anew.
    """
    limits = [budget.limit for budget in problem.budgets]
    units = np.array([2.0 ** math.frexp(limit)[1] for limit in limits])
    exact = np.minimum(layout.cost / units[:, None], 4.0)
    rounded = np.rint(exact * _GRID) / _GRID
    loss = np.where((rounded != exact).any(axis=1), len(problem.space.candidates) / 2 / _GRID, 0.0)
    raised = np.array([limit * (1 + ROUNDING) for limit in limits]) / units + loss
    return layout.with_cost(rounded), np.floor(raised * _GRID) / _GRID, units


def _by_highs(
    problem: Problem,
    space: SearchSpace,
    gap: float,
    deadline: float,
    prices: tuple[float, ...],
    known: Mapping[str, Bits] | None = None,
    bound: float = -math.inf,
) -> Best | None:
    found = minimise_with_highs(space, problem.score, problem.budgets, gap, deadline, known)
    return None if found is None else Best(found[0], max(found[1], bound), prices)


def _linear_prices(problem: Problem) -> tuple[float, ...]:
    model = Model(problem.space)
    for budget in problem.budgets:
        model.limit(budget)
    model.add(problem.score.values)
    return model.prices()


def _per_unit(prices: Floats, units: Floats) -> tuple[float, ...]:
    return tuple(float(price) for price in prices / units)


def _inside(problem: Problem, bits: Mapping[str, Bits]) -> bool:
    return all(within(budget, bits) for budget in problem.budgets)
