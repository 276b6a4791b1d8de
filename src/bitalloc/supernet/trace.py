"""What a search went through, step by step, as plain numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, final

from bitalloc.errors import FileError
from bitalloc.files import AnyPath, read_json, write_json

SCHEMA = "bitalloc.search_trace"
VERSION = 1


@final
@dataclass(frozen=True, slots=True)
class Trace:
    """One entry a step, as it was before the step.

    Attributes:
        budgets: what the user called them.
        units: of their costs.
        limits: in these units.
        costs: expected cost of every budget, ``costs[step][budget]``.
        prices: what the loss pays for the whole limit of every budget, ``prices[step][budget]``.
        entropy: how undecided the choices are, 1 at first, 0 when all are certain.
    """

    budgets: tuple[str, ...]
    units: tuple[str, ...]
    limits: tuple[float, ...]
    costs: tuple[tuple[float, ...], ...]
    prices: tuple[tuple[float, ...], ...]
    entropy: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {"schema": SCHEMA, "version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], origin: str = "trace") -> Self:
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            costs, prices = (tuple(tuple(row) for row in value[key]) for key in ("costs", "prices"))
            return cls(tuple(value["budgets"]), tuple(value["units"]), tuple(value["limits"]), costs, prices, tuple(value["entropy"]))
        except (KeyError, TypeError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the search trace. Search again.") from error

    def save(self, path: AnyPath) -> None:
        """Writes the trace as JSON, atomically. Raises FileError if that fails."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return cls.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))
