"""What a frontier is: its points, how they differ, and its files."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from bitalloc.errors import FileError
from bitalloc.files import finite, read_json, write_json, write_text
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits, Policy
from bitalloc.search.solution import BudgetUse, Solution, Status

SCHEMA: Final = "bitalloc.frontier"
VERSION: Final = 1
_NUMBERS: Final = ("limit", "cost", "objective", "bound", "gap")


@final
@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """The best policy under one limit.

    Attributes:
        limit: on the varied budget, in its unit. The policy is the best under every limit from ``cost`` to this one.
        cost: what the policy takes of the varied budget.
        objective: its total score.
        bound: no policy inside the limit has a lower score than this.
        gap: (objective - bound) / abs(objective), 0 when optimal.
        bits: layer name to widths.
        budgets: what is used of every budget, the varied one at ``limit``.
        shared_inputs: groups of layers that read one tensor through one quantizer.
    """

    limit: float
    cost: float
    objective: float
    bound: float
    gap: float
    bits: Mapping[str, Bits]
    budgets: tuple[BudgetUse, ...]
    shared_inputs: tuple[tuple[str, ...], ...] = ()

    def policy(self, layers: Sequence[LayerInfo], provenance: Mapping[str, Any]) -> Policy:
        """The widths as a policy of the model with these layers, see :meth:`bitalloc.search.Solution.policy`."""
        status: Status = "optimal" if self.gap == 0 else "feasible"
        solution = Solution(self.bits, status, self.objective, self.bound, self.gap, self.budgets, 0.0, self.shared_inputs)
        return solution.policy(layers, provenance)


@final
@dataclass(frozen=True, slots=True)
class Frontier:
    """The best policies over one budget, by growing cost and falling score.

    Attributes:
        budget: name of the varied budget.
        unit: of its costs and limits.
        score: unit of the objective.
        smallest: the least value of the budget that can be reached with the other budgets held.
        largest: the least value at which the score is the best that the other budgets allow; more is of no use.
        points: the policies.
        complete: whether these are all Pareto-optimal policies, each proven.
    """

    budget: str
    unit: str
    score: str
    smallest: float
    largest: float
    points: tuple[FrontierPoint, ...]
    complete: bool

    def differences(self) -> tuple[dict[str, tuple[Bits, Bits]], ...]:
        """For every two consecutive points the layers whose widths differ: name to widths at the smaller and the larger cost."""
        pairs = zip(self.points, self.points[1:], strict=False)
        return tuple({n: (bits, new.bits[n]) for n, bits in old.bits.items() if bits != new.bits[n]} for old, new in pairs)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        head = {name: getattr(self, name) for name in ("budget", "unit", "score", "smallest", "largest", "complete")}
        points = [point_to_json(point) for point in self.points]
        return {"schema": SCHEMA, "version": VERSION, **head, "points": points}

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "frontier") -> "Frontier":
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            smallest, largest = (finite(value[key], origin=f"{origin}: {key}") for key in ("smallest", "largest"))
            points = tuple(point_from_json(entry, f"{origin}: point {i}") for i, entry in enumerate(value["points"]))
            budget, unit, score = (str(value[key]) for key in ("budget", "unit", "score"))
            return Frontier(budget, unit, score, smallest, largest, points, bool(value["complete"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the frontier.") from error

    def save(self, path: Path) -> None:
        """Writes the frontier as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> "Frontier":
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return Frontier.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))

    def to_csv(self) -> str:
        """A row a point: limit, cost, objective, bound, gap, ``used:BUDGET`` of every budget and ``bits:LAYER``, such as ``w4a8``."""
        return csv_of(self.points)

    def save_csv(self, path: Path) -> None:
        """Writes :meth:`to_csv`, atomically."""
        write_text(path, self.to_csv())


def under(solution: Solution, limits: Mapping[str, float]) -> Solution:
    """The same solution with other limits on the named budgets, which it keeps."""

    def moved(use: BudgetUse) -> BudgetUse:
        limit = limits.get(use.name, use.limit)
        price = use.price if limit == use.limit else None  # that of another limit is another one
        return replace(use, limit=limit, slack=max(limit - use.used, 0.0), price=price)

    return replace(solution, budgets=tuple(map(moved, solution.budgets)))


def point_of(solution: Solution, name: str) -> FrontierPoint:
    """The solution as a point over the budget ``name``."""
    use = max((use for use in solution.budgets if use.name == name), key=lambda use: use.used)
    numbers = (use.limit, use.used, solution.objective, solution.bound, solution.gap)
    return FrontierPoint(*numbers, solution.bits, solution.budgets, solution.shared_inputs)


def point_to_json(point: FrontierPoint) -> dict[str, Any]:
    """A JSON object."""
    numbers = {name: getattr(point, name) for name in _NUMBERS}
    policy = {name: str(bits) for name, bits in point.bits.items()}
    shared = [list(group) for group in point.shared_inputs]
    return {**numbers, "budgets": [asdict(use) for use in point.budgets], "policy": policy, "shared_inputs": shared}


def point_from_json(value: Mapping[str, Any], origin: str) -> FrontierPoint:
    """The inverse of :func:`point_to_json`. Raises FileError or KeyError, TypeError, AttributeError for a malformed object."""
    numbers = {name: finite(value[name], origin=f"{origin}: {name}") for name in _NUMBERS}
    bits = {str(name): Bits.parse(text) for name, text in value["policy"].items()}
    budgets = tuple(BudgetUse(**use) for use in value["budgets"])
    shared = tuple(tuple(group) for group in value["shared_inputs"])
    return FrontierPoint(**numbers, bits=bits, budgets=budgets, shared_inputs=shared)


def csv_of(points: Sequence[FrontierPoint | None], keys: Sequence[Mapping[str, str]] | None = None) -> str:
    """A header and a row a point: its entry of ``keys`` and its numbers, empty for ``None``. Lines end in a line feed."""
    rows = [{**key, **({} if point is None else _cells(point))} for key, point in zip(keys or [{}] * len(points), points, strict=True)]
    text = io.StringIO()
    writer = csv.DictWriter(text, max(rows, key=len, default={}), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(point: FrontierPoint) -> dict[str, str]:
    numbers = {name: repr(getattr(point, name)) for name in _NUMBERS}
    # Ascending, so that of the sums of a peak the largest stays.
    used = {f"used:{use.name}": repr(use.used) for use in sorted(point.budgets, key=lambda use: use.used)}
    return {**numbers, **used, **{f"bits:{name}": str(bits) for name, bits in point.bits.items()}}
