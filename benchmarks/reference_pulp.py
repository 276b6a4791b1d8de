"""The reference formulation of the search: one binary a layer and pair, in PuLP, solved by CBC at its defaults."""

from typing import Any

from bitalloc.errors import MissingDependencyError
from bitalloc.policy import Bits
from bitalloc.search import Problem

CHOSEN = 0.5


class Reference:
    """The integer programme of Tang et al. (ECCV 2022), without ties.

    Raises:
        MissingDependencyError: PuLP is not installed.
    """

    def __init__(self, problem: Problem) -> None:
        try:
            import pulp
        except ImportError as error:
            raise MissingDependencyError("the comparison needs PuLP with CBC: pip install 'bitalloc[bench]'.") from error
        self.problem = problem
        self.pulp: Any = pulp
        self.programme: Any = pulp.LpProblem("allocation", pulp.LpMinimize)
        layers = problem.space.candidates.items()
        self.columns: dict[tuple[str, Bits], Any] = {
            (name, bits): pulp.LpVariable(f"x_{i}_{bits}", cat="Binary") for i, (name, c) in enumerate(layers) for bits in c.pairs
        }
        self.programme += pulp.lpSum(problem.score.values[name][bits] * x for (name, bits), x in self.columns.items())
        for name, choices in layers:
            self.programme += pulp.lpSum(self.columns[name, bits] for bits in choices.pairs) == 1
        for budget in problem.budgets:
            self.programme += pulp.lpSum(budget.table.values[name][bits] * x for (name, bits), x in self.columns.items()) <= budget.limit

    def solve(self) -> None:
        """Runs CBC once, with its default tolerances."""
        self.programme.solve(self.pulp.PULP_CBC_CMD(msg=False))

    def bits(self) -> dict[str, Bits]:
        """The widths that CBC chose."""
        return {name: bits for (name, bits), x in self.columns.items() if (x.value() or 0.0) > CHOSEN}

    def objective(self) -> float:
        """The score of these widths, counted anew."""
        return self.problem.score.total(self.bits())
