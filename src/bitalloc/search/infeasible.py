"""Why no policy meets all budgets: which limits conflict, and how far each can go."""

from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, final

from bitalloc.errors import BitallocError
from bitalloc.search.problem import Problem
from bitalloc.search.reach import grouped, least, possible
from bitalloc.search.units import amount, digits, shortened


@final
@dataclass(frozen=True, slots=True)
class Reach:
    """How far one budget can be lowered.

    Attributes:
        name: what the user called the budget.
        limit: the largest allowed sum, in ``unit``.
        unit: what is limited.
        alone: the smallest sum of any policy of the space.
        together: the smallest sum inside all other budgets, ``None`` if no policy meets those.
    """

    name: str
    limit: float
    unit: str
    alone: float
    together: float | None


@final
@dataclass(frozen=True, slots=True)
class Infeasibility:
    """Why there is no policy.

    Attributes:
        reaches: of every budget, in the order of the problem; empty if there is no policy even without budgets.
        conflicts: the smallest sets of budgets, by name, that no policy meets together: without any one of its budgets, a set can be met.
    """

    reaches: tuple[Reach, ...]
    conflicts: tuple[tuple[str, ...], ...]

    def text(self) -> str:
        """One paragraph: every limit with its smallest reachable values, what conflicts, and what to do."""
        if not self.reaches:
            return (
                "no policy keeps the ties and the limit on the number of widths: the tied layers have no widths in common, "
                "whatever the budgets. Give them the same candidates, or raise max_widths."
            )
        parts = "; ".join(_written(reach) for reach in self.reaches)
        alone = [names[0] for names in self.conflicts if len(names) == 1]
        reasons = [f"{', '.join(alone)} cannot be met even alone"] if alone else []
        reasons += [f"{' and '.join(names)} cannot be met together" for names in self.conflicts if len(names) > 1]
        return (
            f"no policy of the search space meets all budgets. {parts}. {'; '.join(reasons)}. Raise the limits or add narrower candidates."
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"budgets": [asdict(reach) for reach in self.reaches], "conflicts": [list(names) for names in self.conflicts]}


def explain_infeasible(problem: Problem) -> Infeasibility:
    """Which budgets conflict, and the smallest reachable value of each, alone and with the others kept.

    Every value is the optimum of an integer programme, so it is exact; all sets of budgets are tried, from small to large, which
    for the two to four budgets of a real problem are a handful of programmes. Budgets of one name, such as a peak's
    moments, are one budget whose value is the largest of their sums.

    Raises:
        BitallocError: there is a policy that meets all budgets.
    """
    if not possible(problem.space, ()):
        return Infeasibility((), ())
    groups = grouped(problem.budgets)
    conflicts: list[tuple[str, ...]] = []
    for size in range(1, len(groups) + 1):
        for names in combinations(groups, size):
            known = any(set(conflict) <= set(names) for conflict in conflicts)
            if not known and not possible(problem.space, [budget for name in names for budget in groups[name]]):
                conflicts.append(names)
    if not conflicts:
        raise BitallocError("there is a policy inside all budgets: solve() finds the best one.")
    reaches = []
    for name, group in groups.items():
        alone = least(problem.space, group, ())
        assert alone is not None  # the space has a policy
        together = least(problem.space, group, [budget for budget in problem.budgets if budget.name != name])
        reaches.append(Reach(name, group[0].limit, group[0].unit, alone, together))
    return Infeasibility(tuple(reaches), tuple(conflicts))


def _written(reach: Reach) -> str:
    alone, together = ("" if value is None else digits(value) + shortened(value, reach.unit) for value in (reach.alone, reach.together))
    text = f"{reach.name}: limit {amount(reach.limit, reach.unit)}, smallest reachable {alone}"
    if reach.together is not None and reach.together != reach.alone:
        text += f" alone and {together} with the other budgets held"
    return text
