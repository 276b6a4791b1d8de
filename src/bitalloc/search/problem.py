"""What is asked of a solver."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from bitalloc.budget import Budget
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace, Table

ROUNDING: Final = 1e-15
"""A sum that exceeds a limit by this share counts as equal to it: 0.1 + 0.2 is inside 0.3. Whole numbers stay exact up to 1e15."""


@final
@dataclass(frozen=True, slots=True)
class Problem:
    """Choose one pair of widths for every layer: least total score, every budget kept, tied layers at one width.

    Attributes:
        space: what may be chosen.
        score: the objective of every choice, lower is better.
        budgets: the limits; none is allowed, then every layer gets its best choice.

    Raises:
        SpaceError: the score or a budget's table lacks a value for a choice; the message names the layer and the widths.
    """

    space: SearchSpace
    score: Table
    budgets: tuple[Budget, ...]

    def __post_init__(self) -> None:
        self.score.check(self.space)
        for budget in self.budgets:
            budget.table.check(self.space)

    def fits(self, bits: Mapping[str, Bits]) -> bool:
        """Whether ``bits``, a choice for every layer, is in the space, keeps the ties and is inside every budget."""
        return self._allowed(bits) and all(within(budget, bits) for budget in self.budgets)

    def _allowed(self, bits: Mapping[str, Bits]) -> bool:
        return (
            all(bits[name] in choices.pairs for name, choices in self.space.candidates.items())
            and all(len({bits[name].weight for name in group}) == 1 for group in self.space.weight_ties if group)
            and all(len({bits[name].act for name in group}) == 1 for group in self.space.act_ties if group)
            and self._few_widths(bits)
        )

    def _few_widths(self, bits: Mapping[str, Bits]) -> bool:
        most = self.space.max_widths
        sides = ({choice.weight for choice in bits.values()}, {choice.act for choice in bits.values()})
        return most is None or all(len(widths - {FLOAT}) <= most for widths in sides)


def within(budget: Budget, bits: Mapping[str, Bits]) -> bool:
    """Whether ``bits`` is inside ``budget``, but for float rounding."""
    return budget.table.total(bits) <= budget.limit * (1 + ROUNDING)
