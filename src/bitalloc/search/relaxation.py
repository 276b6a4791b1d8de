"""The Lagrangian bound: budgets turned into prices."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, final

import highspy
import numpy as np

from bitalloc.search.layout import Floats, Indices, Layout

_ROUNDS: Final = 200
"""Points after which the prices are taken as they are: any prices give a bound."""
_PRECISION: Final = 1e-9
"""Prices are good enough when the bound cannot rise by more than this share of the scores at stake."""
_HIGHEST: Final = 1e6
"""Prices, in units of the scores at stake for a whole budget, above which a budget cannot be met in the relaxation."""


@final
@dataclass(frozen=True, slots=True)
class Point:
    """What is best at some prices: a choice for every layer, its score and what it takes of every budget."""

    prices: Floats
    value: float
    score: float
    use: Floats
    entries: Indices


@final
@dataclass(slots=True)
class Relaxation:
    """max over prices >= 0 of  min over choices of  score + prices . (cost - limits).

    The maximum is that of the linear relaxation over the convex hull of every block's choices (Geoffrion, "Lagrangean relaxation
    for integer programming", 1974). One budget: the intersection of the two supporting lines, finite and exact. More: cutting
    planes (Kelley, 1960), with a master programme of one column a budget. Budgets enter only once a solution exceeds them.

    Attributes:
        layout: the choices.
        limits: of every budget.
        deadline: of ``time.perf_counter``; the prices are then the best found until there.
        points: all that were met, in order.
        prices: the best ones.
        bound: no choice inside the budgets has a lower score.
        feasible: whether the relaxation has a solution.
    """

    layout: Layout
    limits: Floats
    deadline: float = math.inf
    points: list[Point] = field(default_factory=list)
    prices: Floats = field(default_factory=lambda: np.zeros(0))
    bound: float = -np.inf
    feasible: bool = True

    def __post_init__(self) -> None:
        self.prices = np.zeros(len(self.limits))
        active = self.at(self.prices).use > self.limits
        while active.any() and self.feasible and not self.late():
            entered = np.flatnonzero(active)
            use = self._one(int(entered[0])) if len(entered) == 1 else _Master(self, entered).solve()
            more = (use > self.limits * (1 + 1e-9)) & ~active
            if not more.any():
                break
            active |= more

    def late(self) -> bool:
        """Whether the deadline has passed."""
        return time.perf_counter() > self.deadline

    def at(self, prices: Floats) -> Point:
        """The point at ``prices``, which raises the bound where it can."""
        entries, least = self.layout.chosen(self.layout.score + prices @ self.layout.cost)
        value = least - float(prices @ self.limits)
        point = Point(prices, value, float(self.layout.score[entries].sum()), self.layout.cost[:, entries].sum(axis=1), entries)
        self.points.append(point)
        if value > self.bound:
            self.bound, self.prices = value, prices
        return point

    def _one(self, k: int) -> Floats:
        """The best price of one budget alone; the use of the relaxation's solution."""
        above = self.points[0]
        below = self._cheapest(k)
        if below.use[k] > self.limits[k]:
            self.feasible = False
            return below.use
        for _ in range(_ROUNDS):
            prices = np.zeros(len(self.limits))
            prices[k] = (below.score - above.score) / (above.use[k] - below.use[k])
            point = self.at(prices)
            known = above.score + prices[k] * (above.use[k] - self.limits[k])
            if point.value >= known - _PRECISION * max(below.score - above.score, 0.0):
                break
            if point.use[k] > self.limits[k]:
                above = point
            else:
                below = point
        share = (self.limits[k] - below.use[k]) / (above.use[k] - below.use[k])
        return np.asarray(share * above.use + (1 - share) * below.use)

    def _cheapest(self, k: int) -> Point:
        """Least use of budget ``k``, and of those the best score: the point at an endless price."""
        rise, _ = self.layout.excess(self.layout.cost[k])
        entries, _ = self.layout.chosen(np.where(rise <= 0, self.layout.score, np.inf))
        use = self.layout.cost[:, entries].sum(axis=1)
        return Point(self.prices, -np.inf, float(self.layout.score[entries].sum()), use, entries)


class _Master:
    """max bound  s.t.  bound <= point.score + prices . (point.use - limits)  for every known point; in units of ``scale``."""

    def __init__(self, relaxation: Relaxation, active: Indices) -> None:
        self.relaxation = relaxation
        self.active = active
        self.solver = highspy.Highs()  # type: ignore[no-untyped-call]
        for name, value in (("output_flag", False), ("parallel", "off"), ("presolve", "off"), ("primal_feasibility_tolerance", 1e-10)):
            self.solver.setOptionValue(name, value)
        self.solver.setOptionValue("dual_feasibility_tolerance", 1e-10)
        self.used: list[Point] = []

    def solve(self) -> Floats:
        relaxation, limits = self.relaxation, self.relaxation.limits[self.active]
        scale = self._ray()
        infinity = highspy.kHighsInf
        self.solver.addVar(-infinity, infinity)
        self.solver.changeColCost(0, -1.0)
        for limit in limits:
            self.solver.addVar(0.0, _HIGHEST / limit)
        for point in relaxation.points:
            self._add(point, scale)
        for _ in range(_ROUNDS):
            if relaxation.late():
                return relaxation.at(relaxation.prices).use
            self.solver.run()
            values = np.array(self.solver.getSolution().col_value)
            prices = np.zeros(len(relaxation.limits))
            prices[self.active] = np.maximum(values[1:], 0.0) * scale
            point = relaxation.at(prices)
            if values[0] * scale - relaxation.bound <= _PRECISION * scale:
                break
            self._add(point, scale)
        relaxation.feasible = not bool((values[1:] * limits > _HIGHEST * 0.99).any())
        weights = np.abs(np.array(self.solver.getSolution().row_dual))
        return sum((w * p.use for w, p in zip(weights / weights.sum(), self.used, strict=True)), np.zeros(len(relaxation.limits)))

    def _add(self, point: Point, scale: float) -> None:
        row = np.concatenate([[1.0], (self.relaxation.limits - point.use)[self.active]])
        self.solver.addRow(-highspy.kHighsInf, point.score / scale, len(row), np.arange(len(row), dtype=np.int32), row)
        self.used.append(point)

    def _ray(self) -> float:
        """Raises all prices together until all budgets are met; the score at stake."""
        relaxation = self.relaxation
        prices = np.zeros(len(relaxation.limits))
        typical = max((point.score for point in relaxation.points), default=0.0)
        prices[self.active] = (typical or float(relaxation.layout.score.max()) or 1.0) / relaxation.limits[self.active]
        for _ in range(40):
            point = relaxation.at(prices)
            if (point.use <= relaxation.limits).all():
                return point.score or 1.0
            prices = prices * 2
        return max(point.score for point in relaxation.points) or 1.0


def feasible_points(points: Sequence[Point], limits: Floats) -> list[Point]:
    """Those inside all budgets, best first."""
    return sorted((point for point in points if (point.use <= limits).all()), key=lambda point: point.score)
