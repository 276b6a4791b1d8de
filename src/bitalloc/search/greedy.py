"""From the widest policy down, always by the change that costs least score for what it saves."""

import heapq
import time
from collections.abc import Mapping
from typing import final

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.links import Links
from bitalloc.search.problem import Problem, within
from bitalloc.search.solution import Solution, judged, loose_bound
from bitalloc.search.starts import starts
from bitalloc.space import Table


def greedy(problem: Problem) -> Solution:
    """Starts with the widest policy and narrows one layer after another until all budgets are kept.

    Each step takes the narrowing with the smallest

        rise of the score / sum over the exceeded budgets of (cost saved / limit),

    to any narrower pair of the layer; tied layers follow. The greedy rule of the multiple-choice knapsack problem (Sinha and
    Zoltners, "The Multiple-Choice Knapsack Problem", 1979), and what published bit allocations do that sort layers by
    sensitivity per saving. With ``max_widths`` it is done for every choice of that many widths, and the best result is taken.

    Returns:
        A solution inside all budgets, whose bound is that of no budget at all.

    Raises:
        InfeasibleError: no narrowing is left and a budget is still exceeded. With costs that fall with the width, and without
            restrictions on pairs, then no policy meets the budgets; otherwise :func:`solve` may find one.
    """
    start = time.perf_counter()
    ends = [_narrowed(Problem(space, problem.score, problem.budgets), bits) for space, bits in starts(problem.space)]
    inside = [bits for bits in ends if problem.fits(bits)]
    if not inside:
        names = ", ".join(dict.fromkeys(b.name for bits in ends for b in problem.budgets if not within(b, bits)))
        raise InfeasibleError(
            f"the greedy search ends outside the budgets: with every layer narrowed as far as helps, {names} cannot be kept. "
            "Raise the limits, add narrower candidates, or let solve() look for a policy."
        )
    return judged(problem, min(inside, key=problem.score.total), loose_bound(problem), time.perf_counter() - start)


def _narrowed(problem: Problem, start: Mapping[str, Bits]) -> dict[str, Bits]:
    bits = dict(start)
    descent = _Descent(problem, bits)
    while (exceeded := [budget for budget in problem.budgets if not within(budget, bits)]) and descent.step(exceeded):
        pass
    return bits


@final
class _Descent:
    """The next narrowings by ratio, in a heap. A set of tied layers has one version, which rises when one of them changes."""

    def __init__(self, problem: Problem, bits: dict[str, Bits]) -> None:
        self._problem, self._bits = problem, bits
        self._links = Links(problem.space)
        self._set = {name: i for i, names in enumerate(self._links.components) for name in names}
        self._version = dict.fromkeys(self._set.values(), 0)
        self._exceeded: list[Budget] = []
        self._heap: list[tuple[float, float, str, Bits, int]] = []

    def step(self, exceeded: list[Budget]) -> bool:
        """Makes the best narrowing for these budgets; whether there was one."""
        if exceeded != self._exceeded:
            self._exceeded, self._heap = exceeded, []
            for index in self._version:
                self._add(index)
        while self._heap:
            *_, name, pair, version = heapq.heappop(self._heap)
            index = self._set[name]
            if version == self._version[index]:
                self._bits.update(self._links.changes(self._bits, name, pair) or {})
                self._version[index] += 1
                self._add(index)
                return True
        return False

    def _add(self, index: int) -> None:
        for name in self._links.components[index]:
            now = self._bits[name]
            for pair in self._links.pairs[name]:
                if pair != now and pair.weight <= now.weight and pair.act <= now.act:
                    self._offer(name, pair, self._version[index])

    def _offer(self, name: str, pair: Bits, version: int) -> None:
        changes = self._links.changes(self._bits, name, pair)
        # Followers may widen; fewer bits in all is what makes the descent end.
        if changes is None or sum(p.weight + p.act - self._bits[n].weight - self._bits[n].act for n, p in changes.items()) >= 0:
            return
        saved = -sum(self._rise(budget.table, changes) / budget.limit for budget in self._exceeded)
        if saved > 0:
            heapq.heappush(self._heap, (self._rise(self._problem.score, changes) / saved, -saved, name, pair, version))

    def _rise(self, table: Table, changes: Mapping[str, Bits]) -> float:
        return sum(table.values[name][pair] - table.values[name][self._bits[name]] for name, pair in changes.items())
