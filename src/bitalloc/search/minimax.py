"""The policy whose worst case over several sums is best."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

from bitalloc.budget import Budget
from bitalloc.policy import Bits
from bitalloc.search.model import Found, Model
from bitalloc.search.problem import ROUNDING
from bitalloc.space import SearchSpace

_MARGIN: Final = 1e-9
"""How far above the known worst case a choice must be, as a share, to be closed."""


def minimax(
    space: SearchSpace,
    functions: Sequence[Mapping[str, Mapping[Bits, float]]],
    budgets: Sequence[Budget],
    gap: float = 0.0,
    deadline: float = math.inf,
    start: Mapping[str, Bits] | None = None,
) -> Found:
    """The assignment whose largest sum is least: min z with sum f[l, p] x[l, p] <= z for every function f, inside the budgets.

    Args:
        space: what may be chosen.
        functions: the values of every choice, all in one unit.
        budgets: the limits.
        gap: see :meth:`Model.minimise`.
        deadline: of ``time.perf_counter``.
        start: a known assignment inside the budgets; choices that alone are worse than it are closed, so that they blur nothing.
    """
    model = Model(space)
    for budget in budgets:
        model.limit(budget)
    parts = [model.spans(values) for values in functions]
    if start is not None:
        ceiling = max(math.fsum(values[name][bits] for name, bits in start.items()) for values in functions)
        for spans, least in parts:
            model.close(column for column, span in spans.items() if span > (ceiling - least) * (1 + _MARGIN) + ROUNDING * abs(ceiling))
    floor = max(least for _, least in parts)
    usable = [{column: span for column, span in spans.items() if span > 0 and model.open(column)} for spans, _ in parts]
    widest = max((span for spans in usable for span in spans.values()), default=0.0) or 1.0
    model.offset = floor
    # z is counted from the floor and in units of the widest choice, so that all rows have coefficients up to 1.
    z = model.column(widest, upper=math.inf)
    for spans, (_, least) in zip(usable, parts, strict=True):
        model.row({**{column: span / widest for column, span in spans.items()}, z: -1.0}, -math.inf, (floor - least) / widest)
    found = model.minimise(gap, deadline, start)
    return Found(found.bits, max(found.bound, floor), found.infeasible, found.complete)
