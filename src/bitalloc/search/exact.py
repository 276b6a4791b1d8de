"""The exact search over one layout: bound, incumbent, reduction, and the core that is left."""

import itertools
import math
import time
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from bitalloc.search.core import Frame, TimeOverError, search
from bitalloc.search.core_choices import TooManyStatesError, choices_of
from bitalloc.search.layout import Floats, Indices, Layout, Mask, undominated
from bitalloc.search.primal import improved, repaired
from bitalloc.search.relaxation import Relaxation

_STATES: Final = 400_000
"""Partial solutions held at once: some hundred megabytes at most."""
_COMBINED: Final = 4_000
"""Choices of one block of tied layers."""
_BUDGETS: Final = 6
"""With more binding budgets than that the states are too different to be pruned."""
_FIRST: Final = 1 / 4
"""The first cutoff, as a share of the gap between bound and incumbent."""
_WIDEN: Final = 2.0
"""By how much the next cutoff is further from the bound."""
_DIGITS: Final = 1e-12
"""Scores are equal if they differ by less than this share of what is at stake."""
_FACTORS: Final = {1: (0.5, 0.7, 0.9, 1.1, 1.4, 2.0), 2: (0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0), 3: (0.5, 0.8, 1.0, 1.25, 2.0)}
"""Prices around the best ones: where the rest of the layers must make up for what the first took, other prices bound better."""
_STARTS: Final = 4


class CoreTooLargeError(Exception):
    """The search gave up: too many partial solutions or budgets. What is known so far is in ``found``."""

    def __init__(self, found: "Found", keep: Indices) -> None:
        super().__init__()
        self.found = found
        self.keep = keep


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a layout's optimum, in scores above the smallest of every layer.

    Attributes:
        entries: the best choice found, ``None`` if there is none.
        objective: its score, infinite if there is none.
        bound: no choice inside the limits has a lower score; infinite if there is no such choice.
        prices: of every budget, at the relaxation.
    """

    entries: Indices | None
    objective: float
    bound: float
    prices: Floats


def minimise(layout: Layout, limits: Floats, gap: float, offset: float, deadline: float, ceiling: float = math.inf) -> Found:
    """The best choice inside the limits with a score below ``ceiling``.

    Args:
        layout: the choices.
        limits: of every budget, in the unit of the layout's costs.
        gap: the search may stop once objective and bound differ by this share of abs(objective + offset).
        offset: the sum of the smallest scores, which the layout leaves out.
        deadline: of ``time.perf_counter``; the best found until then is returned.
        ceiling: only a score below that is wanted.

    Raises:
        CoreTooLargeError: the search would take too much memory.
    """
    return _Search(layout, limits, gap, offset, deadline, ceiling).run()


def prices(layout: Layout, limits: Floats) -> Floats:
    """The prices of the budgets at the relaxation over the entries that fit into them; zeros if there is none."""
    search = _Search(layout, limits, 0.0, 0.0, math.inf, math.inf)
    search.relax()
    return search.prices


class _Search:
    def __init__(self, layout: Layout, limits: Floats, gap: float, offset: float, deadline: float, ceiling: float) -> None:
        self.layout, self.limits = layout, limits
        self.origin: Indices = np.arange(len(layout.score))
        self.gap, self.offset, self.deadline = gap, offset, deadline
        self.objective = ceiling
        self.best: Indices | None = None
        self.prices = np.zeros(len(limits))
        self.bound = -math.inf

    def run(self) -> Found:
        if time.perf_counter() > self.deadline:
            return self._found()
        relaxation = self.relax()
        if relaxation is None:
            return self._found(infeasible=True)
        self._start(relaxation)
        if self._done(self.bound):
            return self._found()
        return self._deepen(relaxation)

    def relax(self) -> Relaxation | None:
        """Takes out what does not fit and sets bound and prices; ``None`` where the relaxation already has no solution."""
        if not self._close():
            return None
        rows = self._binding()
        self.layout = self.layout.with_cost(self.layout.cost[rows])
        self.limits = self.limits[rows]
        relaxation = Relaxation(self.layout, self.limits, self.deadline)
        self.prices[rows] = relaxation.prices
        self.bound = relaxation.bound
        return relaxation if relaxation.feasible else None

    def _close(self) -> bool:
        """Takes out what alone exceeds a limit, since the other layers need something too."""
        for k in range(len(self.limits)):
            rise, least = self.layout.excess(self.layout.cost[k])
            if least > self.limits[k]:
                return False
            if not self._keep(rise <= (self.limits[k] - least) * (1 + 1e-12)):
                return False
        return True

    def _keep(self, entries: Mask) -> bool:
        """Leaves these entries; whether every layer has one."""
        kept = self.layout.restricted(entries)
        if kept is not None:
            self.layout, self.origin = kept[0], self.origin[kept[1]]
        return kept is not None

    def _binding(self) -> Indices:
        """Budgets that some choice exceeds."""
        most = [-self.layout.excess(-row)[1] for row in self.layout.cost]
        return np.flatnonzero(np.array(most) > self.limits) if most else np.zeros(0, dtype=np.intp)

    def _start(self, relaxation: Relaxation) -> None:
        near = sorted(relaxation.points, key=lambda point: -point.value)[:_STARTS]
        value = self.layout.score + relaxation.prices @ self.layout.cost
        for point in near:
            entries = repaired(self.layout, self.limits, point.entries, value)
            if entries is not None:
                self._offer(improved(self.layout, self.limits, entries))
            if self._done(self.bound):
                return
        for point in relaxation.points:
            if (point.use <= self.limits).all() and point.score < self.objective:
                self._offer(point.entries)

    def _offer(self, entries: Indices) -> None:
        score = float(self.layout.score[entries].sum())
        if score < self.objective:
            self.objective, self.best = score, self.origin[entries]

    def _goal(self) -> float:
        """A solution below this would be worth finding."""
        if self.objective == math.inf:
            return math.inf
        return self.objective - max(self.gap * (1 - 1e-9) * abs(self.objective + self.offset), _DIGITS * abs(self.objective))

    def _done(self, bound: float) -> bool:
        return bound >= self._goal()

    def _deepen(self, relaxation: Relaxation) -> Found:
        """Searches below a cutoff near the bound, then below greater ones: what is found first is the best."""
        self._keep(undominated(self.layout))
        most = -self.layout.excess(-self.layout.score)[1] * 1.001 or 1.0  # above the score of every choice
        top = min(self._goal(), most)
        start, step = self.bound, (top - self.bound) * _FIRST
        active = np.flatnonzero(relaxation.prices > 0)
        while True:
            cutoff = min(start + step, self._goal(), top)
            try:
                entries = self._below(cutoff, relaxation, active)
            except TimeOverError:
                return self._found()
            except TooManyStatesError as error:
                raise CoreTooLargeError(self._found(), self._open(relaxation)) from error
            if entries is not None:
                broken = np.setdiff1d(np.flatnonzero(self.layout.cost[:, entries].sum(axis=1) > self.limits), active)
                if len(broken):
                    active = np.union1d(active, broken)
                    continue
                self._offer(entries)
                if self.objective < cutoff:
                    self.bound = self.objective
                    return self._found()
            self.bound = max(self.bound, cutoff)
            if self._done(self.bound) or cutoff >= top:
                return self._found(infeasible=self.best is None and cutoff >= most)
            step *= _WIDEN

    def _below(self, cutoff: float, relaxation: Relaxation, active: Indices) -> Indices | None:
        if len(active) > _BUDGETS:
            raise TooManyStatesError
        layout = self.layout.with_cost(self.layout.cost[active])
        prices, limits = relaxation.prices[active], self.limits[active]
        blocks = choices_of(layout, prices, cutoff - relaxation.bound, _COMBINED)
        if not blocks:
            return None
        fixed = [block for block in blocks if len(block.score) == 1]
        free = [block for block in blocks if len(block.score) > 1]
        free.sort(key=lambda block: -float(np.ptp(block.cost, axis=1) @ prices))
        spent = sum((float(block.score[0]) for block in fixed), 0.0)
        used = sum((block.cost[:, 0] for block in fixed), np.zeros(len(limits)))
        frame = Frame(limits - used, cutoff - spent, _around(prices), _STATES, self.deadline)
        found = search(free, frame)
        if found is None:
            return None
        alone = [block.entries[0][block.entries[0] >= 0] for block in fixed]
        return np.sort(np.concatenate([found, *alone]))

    def _open(self, relaxation: Relaxation) -> Indices:
        """The entries of the first layout that a solution below the goal may have."""
        rise, _ = self.layout.excess(self.layout.score + relaxation.prices @ self.layout.cost)
        open_entries = self.origin[rise <= self.objective - relaxation.bound]
        return open_entries if self.best is None else np.union1d(open_entries, self.best)

    def _found(self, infeasible: bool = False) -> Found:
        bound = math.inf if infeasible else min(self.bound, self.objective)
        if self.best is not None and self.objective - bound <= _DIGITS * abs(self.objective):
            bound = self.objective
        return Found(self.best, self.objective if self.best is not None else math.inf, bound, self.prices)


def _around(prices: Floats) -> Floats:
    positive = np.flatnonzero(prices > 0)
    factors = _FACTORS.get(len(positive))
    if factors is not None:
        combinations = np.array([f for f in itertools.product(factors, repeat=len(positive)) if set(f) != {1.0}])
    else:
        combinations = np.vstack([1 + (factor - 1) * np.eye(len(positive)) for factor in (0.5, 0.8, 1.25, 2.0)])
    around = np.tile(prices, (len(combinations) + 1, 1))
    around[1:, positive] *= combinations
    return around
