"""A search problem as an integer programme in numbers, scaled so that a solver's absolute tolerances do no harm."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, final

from bitalloc.budget import Budget
from bitalloc.policy import FLOAT, Bits
from bitalloc.search.problem import ROUNDING
from bitalloc.space import SearchSpace, Table

_RANGE: Final = 1e3
"""The largest objective coefficient: a tolerance of 1e-9 is then 1e-12 of the widest choice."""


@final
@dataclass(frozen=True, slots=True)
class Row:
    """lower <= sum of coefficient x column <= upper."""

    coefficients: Mapping[int, float]
    lower: float
    upper: float


@final
@dataclass(frozen=True, slots=True)
class Programme:
    """min offset + sum of objective x column over binary columns, subject to the rows.

    One column is one choice of one layer. Objective and offset are in units of ``scale``.

    Attributes:
        columns: layer and widths of every column.
        objective: one coefficient for every column, 0 at a layer's best choice.
        open: for every column whether it can be chosen at all.
        offset: the objective when every layer has its best choice.
        scale: what to multiply with to get back to the score's own unit.
        rows: one choice a layer, the budgets, the ties, the excluded assignments, the number of widths.
        switches: further binary columns at the end, of no score: one for each side and width that ``max_widths`` counts.
    """

    columns: tuple[tuple[str, Bits], ...]
    objective: tuple[float, ...]
    open: tuple[bool, ...]
    offset: float
    scale: float
    rows: tuple[Row, ...]
    switches: int


def build(
    space: SearchSpace, objective: Table, budgets: Sequence[Budget], excluded: Sequence[Mapping[str, Bits]], ceiling: float = math.inf
) -> Programme | None:
    """The programme of Tang et al. (ECCV 2022), or ``None`` where the sum of the smallest costs already exceeds a limit.

        min  sum s[l, p] x[l, p]     over binary x, layer l, pair of widths p
        s.t. sum_p x[l, p] = 1                           one choice a layer
             sum cost[l, p] x[l, p] <= limit             every budget
             sum_{p of width w} x[l, p] the same         for all layers l of a tie, every w
             sum_{p of width w} x[l, p] <= y[w], sum_w y[w] <= max_widths

    A layer's smallest score and cost are taken out of the sums, since they are spent in any case. A choice that alone takes a
    budget over its limit, or the objective over ``ceiling`` (the score of a solution already known), is closed.

    Args:
        space: what may be chosen.
        objective: the score of every choice.
        budgets: the limits.
        excluded: assignments that must not come out.
        ceiling: total score above which no solution is wanted.
    """
    columns = tuple((name, bits) for name, choices in space.candidates.items() for bits in choices.pairs)
    spans, offset = _spans(space, objective)
    room = (ceiling - offset) * (1 + ROUNDING) + ROUNDING * abs(offset)
    usable = [span <= room for span in spans]
    rows = [*_choices(columns), *_ties(space, columns), *_exclusions(columns, excluded)]
    for budget in budgets:
        extra, least = _spans(space, budget.table)
        slack = budget.limit * (1 + ROUNDING) - least
        if slack < 0:
            return None
        # Rounding again: a choice that takes up the whole slack must not be closed by the last digit of a difference.
        usable = [use and span <= slack + ROUNDING * budget.limit for use, span in zip(usable, extra, strict=True)]
        spent = {i: span / slack for i, span in enumerate(extra) if usable[i] and span > 0}
        if spent:
            rows.append(Row(spent, -math.inf, 1.0 + ROUNDING))
    widest = max((span for span, use in zip(spans, usable, strict=True) if use), default=0.0)
    # Differences far below the last digit of the sum cannot be told apart, and would scale the offset to infinity.
    scale = max(widest / _RANGE, abs(offset) * ROUNDING) or 1.0
    coefficients = tuple(span / scale if use else 0.0 for span, use in zip(spans, usable, strict=True))
    widths, switches = _width_rows(space, columns)
    return Programme(columns, coefficients, tuple(usable), offset / scale, scale, (*rows, *widths), switches)


def _spans(space: SearchSpace, table: Table) -> tuple[list[float], float]:
    """What every choice adds to its layer's smallest value, and the sum of these smallest values."""
    spans: list[float] = []
    smallest: list[float] = []
    for name, choices in space.candidates.items():
        row = [table.values[name][bits] for bits in choices.pairs]
        smallest.append(min(row))
        spans += [value - smallest[-1] for value in row]
    return spans, math.fsum(smallest)


def _choices(columns: Sequence[tuple[str, Bits]]) -> Iterator[Row]:
    members: dict[str, dict[int, float]] = {}
    for i, (name, _) in enumerate(columns):
        members.setdefault(name, {})[i] = 1.0
    for row in members.values():
        yield Row(row, 1.0, 1.0)


def _ties(space: SearchSpace, columns: Sequence[tuple[str, Bits]]) -> Iterator[Row]:
    """A width that one layer of the tie does not have is closed to all by these rows."""
    for side, groups in (("weight", space.weight_ties), ("act", space.act_ties)):
        for group in groups:
            widths = sorted({width for name in group for width in getattr(space.candidates[name], side)})
            for other, width in product(dict.fromkeys(group[1:]), widths):
                if other != group[0]:
                    sign = {group[0]: 1.0, other: -1.0}
                    same = {i: sign[n] for i, (n, bits) in enumerate(columns) if n in sign and getattr(bits, side) == width}
                    yield Row(same, 0.0, 0.0)


def _exclusions(columns: Sequence[tuple[str, Bits]], excluded: Sequence[Mapping[str, Bits]]) -> Iterator[Row]:
    for bits in excluded:
        yield Row({i: 1.0 for i, (name, choice) in enumerate(columns) if bits[name] == choice}, -math.inf, len(bits) - 1.0)


def _width_rows(space: SearchSpace, columns: Sequence[tuple[str, Bits]]) -> tuple[list[Row], int]:
    """The rows of ``max_widths``, and the number of switches that they need."""
    rows: list[Row] = []
    switch = len(columns)
    if space.max_widths is None:
        return rows, 0
    for side in ("weight", "act"):
        first = switch
        for width in sorted({getattr(bits, side) for _, bits in columns} - {FLOAT}):
            users: dict[str, dict[int, float]] = {}
            for i, (name, bits) in enumerate(columns):
                if getattr(bits, side) == width:
                    users.setdefault(name, {switch: -1.0})[i] = 1.0
            rows += [Row(row, -math.inf, 0.0) for row in users.values()]
            switch += 1
        rows.append(Row({i: 1.0 for i in range(first, switch)}, -math.inf, float(space.max_widths)))
    return rows, switch - len(columns)
