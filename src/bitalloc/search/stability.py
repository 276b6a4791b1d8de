"""How much a policy depends on the measurement: one policy for each of several score tables, compared."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from bitalloc.errors import BitallocError
from bitalloc.policy import Bits
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution
from bitalloc.search.solver import solve
from bitalloc.space import Table

Shares = Mapping[str, Mapping[int, float]]
Matrix = tuple[tuple[float, ...], ...]


@final
@dataclass(frozen=True, slots=True)
class Stability:
    """Policies for several tables under one set of budgets. Pinned layers are left out of shares and agreements.

    Attributes:
        solutions: the policy of every table, in the order given.
        weight: free layer to weight width to the share of the policies that have it.
        act: free layer to activation width to the share of the policies that have it.
        weight_agreement: for every two policies the share of the free layers with the same weight width.
        act_agreement: for every two policies the share of the free layers with the same activation width.
        regret: for table i and policy j, by how much its total score in table i is above that of table i's own policy.
    """

    solutions: tuple[Solution, ...]
    weight: Shares
    act: Shares
    weight_agreement: Matrix
    act_agreement: Matrix
    regret: Matrix

    @property
    def objectives(self) -> tuple[float, ...]:
        """The total score of every policy in its own table."""
        return tuple(solution.objective for solution in self.solutions)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "policies": [{name: str(bits) for name, bits in solution.bits.items()} for solution in self.solutions],
            "objectives": list(self.objectives),
            "weight": {name: {str(width): share for width, share in row.items()} for name, row in self.weight.items()},
            "act": {name: {str(width): share for width, share in row.items()} for name, row in self.act.items()},
            "weight_agreement": [list(row) for row in self.weight_agreement],
            "act_agreement": [list(row) for row in self.act_agreement],
            "regret": [list(row) for row in self.regret],
        }

    def text(self) -> str:
        """A table with a line for every free layer, least stable first, below a summary."""
        low, high = min(self.objectives), max(self.objectives)
        spread = statistics.stdev(self.objectives) if len(self.objectives) > 1 else 0.0
        head = [
            f"{len(self.solutions)} policies; objective {statistics.fmean(self.objectives):.6g}, from {low:.6g} to {high:.6g}, "
            f"standard deviation {spread:.3g}",
            f"two policies agree on {_off_diagonal(self.weight_agreement):.1%} of the weight widths and "
            f"{_off_diagonal(self.act_agreement):.1%} of the activation widths, in the mean",
        ]
        names = sorted(self.weight, key=lambda name: max(self.weight[name].values()) + max(self.act[name].values()))
        longest = max((len(name) for name in names), default=0)
        shown = {name: _shown(self.weight[name]) for name in names}
        widest = max((len(text) for text in shown.values()), default=0)
        return "\n".join([*head, *(f"{name:{longest}}  weight {shown[name]:{widest}}  act {_shown(self.act[name])}" for name in names)])


def stability(problem: Problem, tables: Sequence[Table], *, gap: float = 0.0) -> Stability:
    """Solves the problem once for every table and compares the policies.

    Args:
        problem: the space and the budgets; its own score is not used.
        tables: scores from several seeds, data samples or settings, or bootstrap samples (:func:`~bitalloc.search.tables.bootstrap`).
        gap: of every solution, as a share of its objective. With a gap, policies differ by chance too.

    Raises:
        BitallocError: there is no table.
        SpaceError: a table lacks a choice.
        InfeasibleError: no policy meets the budgets.
    """
    if not tables:
        raise BitallocError("there is no score table: give at least one, for example one for each seed.")
    solutions = tuple(solve(replace(problem, score=table), gap=gap) for table in tables)
    policies = [solution.bits for solution in solutions]
    free = problem.space.free
    return Stability(
        solutions=solutions,
        weight=_shares(policies, free, _weight),
        act=_shares(policies, free, _act),
        weight_agreement=_agreement(policies, free, _weight),
        act_agreement=_agreement(policies, free, _act),
        regret=tuple(tuple(table.total(bits) - own.objective for bits in policies) for table, own in zip(tables, solutions, strict=True)),
    )


def _weight(bits: Bits) -> int:
    return bits.weight


def _act(bits: Bits) -> int:
    return bits.act


def _shares(policies: Sequence[Mapping[str, Bits]], names: Sequence[str], side: Callable[[Bits], int]) -> Shares:
    found: dict[str, dict[int, float]] = {}
    for name in names:
        widths = [side(bits[name]) for bits in policies]
        found[name] = {width: widths.count(width) / len(widths) for width in sorted(set(widths), reverse=True)}
    return found


def _agreement(policies: Sequence[Mapping[str, Bits]], names: Sequence[str], side: Callable[[Bits], int]) -> Matrix:
    """1 where there is nothing to disagree about."""
    return tuple(
        tuple(statistics.fmean(side(first[name]) == side(second[name]) for name in names) if names else 1.0 for second in policies)
        for first in policies
    )


def _off_diagonal(matrix: Matrix) -> float:
    others = [value for i, row in enumerate(matrix) for j, value in enumerate(row) if i != j]
    return statistics.fmean(others) if others else 1.0


def _shown(shares: Mapping[int, float]) -> str:
    return ", ".join(f"{width}: {share:.0%}" for width, share in shares.items())
