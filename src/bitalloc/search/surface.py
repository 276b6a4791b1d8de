"""The best score that every pair of limits on two budgets allows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from bitalloc.errors import BitallocError, BudgetError, FileError
from bitalloc.files import finite, read_json, write_json, write_text
from bitalloc.search.frontier import even_limits, useful_range
from bitalloc.search.frontier_points import FrontierPoint, csv_of, point_from_json, point_of, point_to_json, under
from bitalloc.search.limits import budgets_named, smallest, without
from bitalloc.search.prepared import limited, prepare
from bitalloc.search.problem import ROUNDING, Problem
from bitalloc.search.solution import Solution

SCHEMA: Final = "bitalloc.surface"
VERSION: Final = 1


@final
@dataclass(frozen=True, slots=True)
class Surface:
    """The best policies over a grid of limits on two budgets.

    Attributes:
        first, second: names of the budgets.
        first_unit, second_unit: of their limits.
        score: unit of the objective.
        first_limits, second_limits: the grid, ascending.
        cells: one row for every limit of ``first``, in it one point for every limit of ``second``, whose ``limit`` and ``cost`` are of
            ``second``; its ``budgets`` have both. ``None`` where no policy is inside both limits.
    """

    first: str
    second: str
    first_unit: str
    second_unit: str
    score: str
    first_limits: tuple[float, ...]
    second_limits: tuple[float, ...]
    cells: tuple[tuple[FrontierPoint | None, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        texts = {name: getattr(self, name) for name in _TEXTS}
        limits = {name: list(getattr(self, name)) for name in ("first_limits", "second_limits")}
        cells = [[None if point is None else point_to_json(point) for point in row] for row in self.cells]
        return {"schema": SCHEMA, "version": VERSION, **texts, **limits, "cells": cells}

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "surface") -> "Surface":
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            texts = [str(value[name]) for name in _TEXTS]
            first, second = (
                tuple(finite(limit, origin=f"{origin}: {name}") for limit in value[name]) for name in ("first_limits", "second_limits")
            )
            cells = tuple(tuple(None if c is None else point_from_json(c, f"{origin}: a cell") for c in row) for row in value["cells"])
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the surface.") from error
        if [len(row) for row in cells] != [len(second)] * len(first):
            raise FileError(f"{origin}: the cells do not fit the {len(first)} x {len(second)} limits.")
        return Surface(texts[0], texts[1], texts[2], texts[3], texts[4], first, second, cells)

    def save(self, path: Path) -> None:
        """Writes the surface as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> "Surface":
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return Surface.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))

    def to_csv(self) -> str:
        """A row a pair of limits: ``limit:BUDGET`` of both, then what a frontier's rows have, empty where no policy is inside."""
        keys = [
            {f"limit:{self.first}": repr(first), f"limit:{self.second}": repr(second)}
            for first in self.first_limits
            for second in self.second_limits
        ]
        return csv_of([point for row in self.cells for point in row], keys)

    def save_csv(self, path: Path) -> None:
        """Writes :meth:`to_csv`, atomically."""
        write_text(path, self.to_csv())


_TEXTS: Final = ("first", "second", "first_unit", "second_unit", "score")


def surface(problem: Problem, first: str, second: str, *, points: tuple[int, int] = (10, 10), gap: float = 0.0) -> Surface:
    """The best policies over two budgets, the others held.

    The limits of either budget are evenly spaced from the smallest value that it can have with the other one left out to the largest
    that is of use, so that the last cell has the best score of all. The limits that ``problem`` has on the two play no part.

    Args:
        problem: space, score and budgets.
        first: name of one budget.
        second: name of the other.
        points: how many limits of the first and of the second budget; 10 x 10 by default.
        gap: share of the optimum within which every cell is proven; 0, the default, means optimal.

    Raises:
        BudgetError: ``problem`` has no such budget, or both are the same.
        InfeasibleError: the other budgets cannot be met.
        BitallocError: a number of points is below 2, or ``gap`` negative.
    """
    units = budgets_named(problem, first)[0].unit, budgets_named(problem, second)[0].unit, problem.score.unit
    if first == second:
        raise BudgetError(f"a surface needs two budgets, and {first!r} is both: name another one, or ask for its frontier.")
    if min(points) < 2:
        raise BitallocError(f"points is {points[0]} x {points[1]}, expected at least 2 of each: the smallest and the largest limit.")
    first_limits = even_limits(*useful_range(without(problem, second), first, gap), points[0])
    least = smallest(without(problem, first), second)
    _, most = useful_range(limited(problem, {first: first_limits[-1]}), second, gap)
    second_limits = even_limits(least, most, points[1])
    cells = _cells(problem, (first, second), first_limits, second_limits, gap)
    return Surface(first, second, *units, tuple(first_limits), tuple(second_limits), cells)


def _cells(
    problem: Problem, names: tuple[str, str], first_limits: Sequence[float], second_limits: Sequence[float], gap: float
) -> tuple[tuple[FrontierPoint | None, ...], ...]:
    """From the loosest limits to the tightest: what is best under looser limits and inside tighter ones is best under these."""
    prepared = prepare(problem)
    rows: list[list[Solution | None]] = []
    for first_limit in reversed(first_limits):
        least = smallest(limited(problem, {names[0]: first_limit}), names[1])
        row: list[Solution | None] = []
        for k, second_limit in enumerate(reversed(second_limits)):
            looser = [*row[-1:], *(last[k] for last in rows[-1:])]
            limits = {names[0]: first_limit, names[1]: second_limit}
            found = next((known for known in looser if known is not None and _inside(known, limits)), None)
            if found is None and second_limit * (1 + ROUNDING) >= least:
                found = prepared.solve(limits, gap=gap)
            row.append(None if found is None else under(found, limits))
        rows.append(row)
    return tuple(tuple(None if found is None else point_of(found, names[1]) for found in reversed(row)) for row in reversed(rows))


def _inside(solution: Solution, limits: Mapping[str, float]) -> bool:
    return all(use.used <= limits.get(use.name, use.limit) * (1 + ROUNDING) for use in solution.budgets)
