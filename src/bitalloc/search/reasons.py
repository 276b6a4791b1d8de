"""Why no policy meets the budgets."""

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.search.prepared import prepare
from bitalloc.search.problem import Problem


def explained(problem: Problem) -> str:
    """Every limit beside its smallest reachable value, alone and with the other budgets held; of budgets with one name the tightest."""
    parts: list[str] = []
    for name in dict.fromkeys(budget.name for budget in problem.budgets):
        same = [budget for budget in problem.budgets if budget.name == name]
        reached = [_smallest(problem, budget, ()) for budget in same]
        if None in reached:
            parts = []
            break
        alone, budget = max(((value or 0.0, budget) for value, budget in zip(reached, same, strict=True)), key=lambda x: x[0] / x[1].limit)
        text = f"{name}: limit {_written(budget.limit)} {budget.unit}, smallest reachable {_written(alone)}"
        others = tuple(other for other in problem.budgets if other is not budget)
        held = _smallest(problem, budget, others) if others else None
        if held is not None and held != alone:
            text += f" alone and {_written(held)} with the other budgets held"
        parts.append(text)
    if not parts:
        few = "" if problem.space.max_widths is None else f" with {problem.space.max_widths} different widths at most"
        return f"no policy keeps the ties{few}, whatever the budgets: give the tied layers the same candidates."
    return f"no policy of the search space meets all budgets. {'; '.join(parts)}. Raise the limits or add narrower candidates."


def _smallest(problem: Problem, budget: Budget, others: tuple[Budget, ...]) -> float | None:
    try:
        return budget.table.total(prepare(Problem(problem.space, budget.table, others)).solve().bits)
    except InfeasibleError:
        return None


def _written(value: float) -> str:
    """All digits, so that the number can be pasted back as a limit."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))
