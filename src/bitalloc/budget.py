"""A limit on the sum of a table."""

import math
from dataclasses import dataclass

from bitalloc.errors import BudgetError
from bitalloc.space import Table


@dataclass(frozen=True, slots=True)
class Budget:
    """``table`` summed over the layers must not exceed ``limit``.

    Attributes:
        name: what the user called it, for example ``bitops`` or ``compression``.
        limit: the largest allowed sum, in the table's unit.
        table: the cost of every choice, never negative.

    Raises:
        BudgetError: the limit is not positive and finite, or a cost is negative; the message names the budget and the layer.
    """

    name: str
    limit: float
    table: Table

    def __post_init__(self) -> None:
        if not 0 < self.limit < math.inf:
            raise BudgetError(f"the budget {self.name!r} is {self.limit}, expected a positive, finite number of {self.unit}.")
        for layer, row in self.table.values.items():
            bits = min(row, key=row.__getitem__, default=None)
            if bits is not None and row[bits] < 0:
                raise BudgetError(
                    f"the budget {self.name!r}: layer {layer} at {bits} costs {row[bits]} {self.unit}, expected 0 or more. Mend the table."
                )

    @property
    def unit(self) -> str:
        """The unit of the limit."""
        return self.table.unit
