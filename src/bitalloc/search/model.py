"""An integer programme over the choices of a space, with rows and columns of one's own beside them, handed to HiGHS."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, final

import highspy

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError
from bitalloc.policy import FLOAT, Bits
from bitalloc.search.problem import ROUNDING, within
from bitalloc.search.session import configured, finish
from bitalloc.space import SearchSpace

_RANGE: Final = 1e3
"""The largest objective coefficient: a tolerance of 1e-9 is then 1e-12 of it."""
_CHOSEN: Final = 0.5
"""A binary column above this is 1: HiGHS returns values within its tolerance of 0 and 1."""
_STATUS = highspy.HighsModelStatus


@final
@dataclass(frozen=True, slots=True)
class Found:
    """What HiGHS answered.

    Attributes:
        bits: the best assignment found, ``None`` if none was.
        bound: no assignment has a smaller objective; minus infinity where the search ended before it had a bound.
        infeasible: it is proven that there is no assignment.
        complete: the search ended by itself, not by the time limit.
    """

    bits: Mapping[str, Bits] | None
    bound: float
    infeasible: bool
    complete: bool


@final
class Model:
    """min offset + sum of cost x column, with one binary column for every choice: one a layer, ties and ``max_widths`` kept.

    Attributes:
        choice: the column of every layer and pair of widths.
        offset: the constant of the objective.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.choice: dict[tuple[str, Bits], int] = {}
        self.offset = 0.0
        self._cost: list[float] = []
        self._upper: list[float] = []
        self._integer: list[bool] = []
        self._rows: list[tuple[Mapping[int, float], float, float]] = []
        self._budgets: list[Budget] = []
        self._limits: list[tuple[int, float]] = []  # the row of every budget, and what is left to spend there
        for name, choices in space.candidates.items():
            for bits in choices.pairs:
                self.choice[name, bits] = self.column(0.0, integer=True)
            self.row({self.choice[name, bits]: 1.0 for bits in choices.pairs}, 1.0, 1.0)
        for side, groups in (("weight", space.weight_ties), ("act", space.act_ties)):
            for group in groups:
                for other in group[1:]:
                    self._tie(space, side, group[0], other)
            if space.max_widths is not None:
                self._at_most(space, side, space.max_widths)

    def column(self, cost: float, upper: float = 1.0, *, integer: bool = False) -> int:
        """A new column between 0 and ``upper``; its number."""
        self._cost.append(cost)
        self._upper.append(upper)
        self._integer.append(integer)
        return len(self._cost) - 1

    def row(self, coefficients: Mapping[int, float], lower: float, upper: float) -> None:
        """Lower <= sum of coefficient x column <= upper."""
        self._rows.append((coefficients, lower, upper))

    def add(self, values: Mapping[str, Mapping[Bits, float]]) -> None:
        """Adds the values of all choices to the objective."""
        spans, least = self.spans(values)
        self.offset += least
        for column, span in spans.items():
            self._cost[column] += span

    def close(self, columns: Iterable[int]) -> None:
        """The columns cannot be chosen."""
        for column in columns:
            self._upper[column] = 0.0

    def open(self, column: int) -> bool:
        """Whether the column can be chosen."""
        return self._upper[column] > 0

    def under(self, ceiling: float) -> None:
        """Closes the choices of the objective that alone take it above ``ceiling``."""
        room = (ceiling - self.offset) * (1 + ROUNDING) + ROUNDING * abs(self.offset)
        self.close(column for column, cost in enumerate(self._cost) if cost > room)

    def costs(self) -> list[float]:
        """The objective's coefficients of the columns that can be chosen."""
        return [cost for cost, upper in zip(self._cost, self._upper, strict=True) if upper > 0]

    def limit(self, budget: Budget) -> None:
        """Keeps the budget, with the smallest cost of every layer taken out of the sum: it is spent in any case."""
        self._budgets.append(budget)
        spans, least = self.spans(budget.table.values)
        slack = budget.limit * (1 + ROUNDING) - least
        if slack < 0:
            self._limits.append((len(self._rows), math.inf))
            self.row({}, 1.0, 1.0)
            return
        self.close(column for column, span in spans.items() if span > slack + ROUNDING * budget.limit)
        spent = {column: span / slack for column, span in spans.items() if span > 0 and self.open(column)}
        self._limits.append((len(self._rows), slack))
        self.row(spent, -math.inf, 1.0 + ROUNDING)

    def spans(self, values: Mapping[str, Mapping[Bits, float]]) -> tuple[dict[int, float], float]:
        """What every choice adds to the smallest value of its layer, by column, and the sum of these smallest values."""
        layers: dict[str, list[tuple[int, float]]] = {}
        for (name, bits), column in self.choice.items():
            layers.setdefault(name, []).append((column, values[name][bits]))
        least = {name: min(value for _, value in row) for name, row in layers.items()}
        return {column: value - least[name] for name, row in layers.items() for column, value in row}, math.fsum(least.values())

    def minimise(self, gap: float = 0.0, deadline: float = math.inf, start: Mapping[str, Bits] | None = None) -> Found:
        """The best assignment. One that HiGHS's tolerances let through above a budget is excluded, and the search repeated.

        Args:
            gap: the search may stop at a solution proven to be within this share of the optimum.
            deadline: of ``time.perf_counter``.
            start: a known assignment to begin with.

        Raises:
            BitallocError: HiGHS refused the programme, or stopped for another reason than its end or the time limit.
        """
        while True:
            found = self._run(gap, deadline, start)
            if found.bits is None or all(within(budget, found.bits) for budget in self._budgets):
                return found
            self.row({self.choice[name, bits]: 1.0 for name, bits in found.bits.items()}, -math.inf, len(found.bits) - 1.0)

    def prices(self) -> tuple[float, ...]:
        """By how much the objective falls for each further unit of every budget, if layers could be split between candidates."""
        scale = self._scale()
        lp = self._written(scale)
        lp.integrality_ = []
        solver = configured(0.0, math.inf)
        solver.passModel(lp)
        finish(solver)
        duals = solver.getSolution().row_dual
        return tuple(max(-duals[row], 0.0) * scale / slack for row, slack in self._limits)

    def _scale(self) -> float:
        """What one unit of the programme's objective is; differences far below the last digit of the sum cannot be told apart."""
        return max(max(map(abs, self.costs()), default=0.0) / _RANGE, abs(self.offset) * ROUNDING) or 1.0

    def _run(self, gap: float, deadline: float, start: Mapping[str, Bits] | None) -> Found:
        solver = configured(gap, deadline)
        scale = self._scale()
        if solver.passModel(self._written(scale)) == highspy.HighsStatus.kError:
            raise BitallocError("HiGHS refused the integer programme: the scores or the budgets differ by too many orders of magnitude.")
        if start is not None:
            columns = list(self.choice.values())
            values = [float(start[name] == bits) for name, bits in self.choice]
            solver.setSolution(len(columns), columns, values)
        finish(solver)
        if solver.getModelStatus() == _STATUS.kSolveError:  # what presolve made of scores of 1e8 beside ones below 1
            solver.setOptionValue("presolve", "off")
            finish(solver)
        status = solver.getModelStatus()
        if status not in (_STATUS.kOptimal, _STATUS.kInfeasible, _STATUS.kTimeLimit):
            raise BitallocError(f"HiGHS stopped with the status {solver.modelStatusToString(status)!r}: check the scores and budgets.")
        info = solver.getInfo()
        complete = status != _STATUS.kTimeLimit
        # Where HiGHS was stopped before it had a bound: no column can be better than at its best.
        bound = max(info.mip_dual_bound * scale, self.offset + math.fsum(cost for cost in self._cost if cost < 0))
        if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
            return Found(None, bound, status == _STATUS.kInfeasible, complete)
        values = solver.getSolution().col_value
        return Found({name: bits for (name, bits), i in self.choice.items() if values[i] > _CHOSEN}, bound, False, complete)

    def _written(self, scale: float) -> highspy.HighsLp:
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(self._cost), len(self._rows)
        lp.offset_ = self.offset / scale
        lp.col_cost_ = [cost / scale if upper > 0 else 0.0 for cost, upper in zip(self._cost, self._upper, strict=True)]
        lp.col_lower_ = [0.0] * lp.num_col_
        lp.col_upper_ = self._upper
        kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
        lp.integrality_ = [kinds[integer] for integer in self._integer]
        lp.row_lower_ = [lower for _, lower, _ in self._rows]
        lp.row_upper_ = [upper for _, _, upper in self._rows]
        matrix = lp.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.num_col_, matrix.num_row_ = lp.num_col_, lp.num_row_
        starts = [0]
        for coefficients, _, _ in self._rows:
            starts.append(starts[-1] + len(coefficients))
        matrix.start_ = starts
        matrix.index_ = [column for coefficients, _, _ in self._rows for column in coefficients]
        matrix.value_ = [value for coefficients, _, _ in self._rows for value in coefficients.values()]
        return lp

    def _tie(self, space: SearchSpace, side: str, first: str, other: str) -> None:
        """A width that one of the two does not have is closed to both by these rows."""
        if first == other:
            return
        for width in {*getattr(space.candidates[first], side), *getattr(space.candidates[other], side)}:
            same = {
                self.choice[name, bits]: sign
                for name, sign in ((first, 1.0), (other, -1.0))
                for bits in space.candidates[name].pairs
                if getattr(bits, side) == width
            }
            self.row(same, 0.0, 0.0)

    def _at_most(self, space: SearchSpace, side: str, count: int) -> None:
        """At most ``count`` widths of the side: a binary column for every width, above the choices that have it."""
        used: dict[int, int] = {}
        for name, choices in space.candidates.items():
            for width in getattr(choices, side):
                if width != FLOAT:
                    if width not in used:
                        used[width] = self.column(0.0, integer=True)
                    having = {self.choice[name, bits]: 1.0 for bits in choices.pairs if getattr(bits, side) == width}
                    self.row({**having, used[width]: -1.0}, -math.inf, 0.0)
        self.row(dict.fromkeys(used.values(), 1.0), -math.inf, float(count))
