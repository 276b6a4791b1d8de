"""At which limit the best policy changes, exactly and without a walk along the whole frontier."""

import math
from dataclasses import dataclass, replace
from typing import final

from bitalloc.errors import InfeasibleError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search.limits import below, budgets_named, cheapest, rounding, sizes, smallest, without
from bitalloc.search.prepared import prepare
from bitalloc.search.problem import ROUNDING, Problem
from bitalloc.search.solution import Solution
from bitalloc.search.solver import solve


@final
@dataclass(frozen=True, slots=True)
class Turn:
    """A limit where the best policy changes, and the best policy then: below it if the budget shrinks, from it on if it grows."""

    limit: float
    solution: Solution


def next_smaller(problem: Problem, name: str, objective: float) -> Turn | None:
    """Where a shrinking budget costs the first score; ``None`` if nothing smaller can be reached."""
    limit = cheapest(problem, name, objective)
    found = _Side(problem, name).best(below(problem, name, limit))
    return None if found is None else Turn(limit, found)


def next_larger(problem: Problem, name: str, objective: float) -> Turn | None:
    """Where a growing budget first allows a better score; ``None`` if none is better."""
    side = _Side(problem, name)
    limit = side.cheapest_below(objective)
    found = None if limit is None else side.best(limit)
    return None if limit is None or found is None else Turn(limit, found)


def shrinking(problem: Problem, name: str, layer: str, bits: Bits) -> Turn | None:
    """Where the layer no longer has ``bits`` in the best policy, as the budget shrinks; ``None`` if it keeps them to the end.

    With k(L) the best score at limit L of the policies that keep ``bits`` and o(L) that of the others, the largest L with o(L) < k(L) is
    wanted. Neither falls as L shrinks, so between L and the least cost at which k is still at most o(L) nothing changes, and the search
    jumps there.
    """
    keeping, others = _sides(problem, name, layer, bits)
    limit = turn = budgets_named(problem, name)[0].limit
    while (other := others.best(limit)) is not None:
        kept = keeping.best(limit)
        if kept is None or _better(problem, other, kept):
            return Turn(turn, other)
        turn = min(turn, keeping.cheapest(other.objective))
        limit = below(problem, name, turn)
    return None


def growing(problem: Problem, name: str, layer: str, bits: Bits) -> Turn | None:
    """Where the layer gets other widths than ``bits`` in the best policy, as the budget grows; ``None`` if it never does.

    With k and o as in :func:`shrinking`: o can be better than k(L) only from the least cost of a score below k(L) on, and the search
    jumps there.
    """
    keeping, others = _sides(problem, name, layer, bits)
    limit = budgets_named(problem, name)[0].limit
    kept = keeping.best(limit)
    while kept is not None:
        start = others.cheapest_below(kept.objective)
        if start is None:
            return None
        limit = max(limit, start)
        kept, other = keeping.best(limit), others.best(limit)
        if other is not None and (kept is None or _better(problem, other, kept)):
            return Turn(limit, other)
    return None


def _sides(problem: Problem, name: str, layer: str, bits: Bits) -> "tuple[_Side, _Side]":
    pairs = problem.space.candidates[layer].pairs
    kept = _narrowed(problem, layer, [bits])
    return _Side(kept, name), _Side(_narrowed(problem, layer, [pair for pair in pairs if pair != bits]), name)


def _narrowed(problem: Problem, layer: str, pairs: list[Bits]) -> Problem | None:
    """The problem with fewer candidates of a layer; ``None`` if there are none or its ties leave none."""
    if not pairs:
        return None
    choices = problem.space.candidates[layer]
    few = replace(choices, allowed=frozenset(pairs))
    try:
        return replace(problem, space=replace(problem.space, candidates={**problem.space.candidates, layer: few}))
    except SpaceError:
        return None


def _better(problem: Problem, one: Solution, other: Solution) -> bool:
    return one.objective < other.objective - rounding(other.objective, sizes(problem))


class _Side:
    """Some of the policies, over the limits of one budget; ``None`` for no policy."""

    def __init__(self, problem: Problem | None, name: str) -> None:
        self._problem = problem
        self._name = name
        try:
            self._least = math.inf if problem is None else smallest(problem, name)
        except InfeasibleError:  # with these widths the other budgets cannot be met
            self._least = math.inf
        self._prepared = None if problem is None or self._least == math.inf else prepare(problem)

    def best(self, limit: float) -> Solution | None:
        """The best policy inside ``limit``."""
        if self._prepared is None or limit * (1 + ROUNDING) < self._least:
            return None
        return self._prepared.solve({self._name: limit})

    def cheapest(self, score: float) -> float:
        """The least cost of a policy with at most this score, which there must be."""
        assert self._problem is not None
        return cheapest(self._problem, self._name, score)

    def cheapest_below(self, score: float) -> float | None:
        """The least cost of a score that is better by more than rounding."""
        if self._problem is None or self._least == math.inf:
            return None
        wanted = score - 2 * rounding(score, sizes(self._problem))
        if solve(without(self._problem, self._name)).objective > wanted:
            return None
        return cheapest(self._problem, self._name, wanted)
