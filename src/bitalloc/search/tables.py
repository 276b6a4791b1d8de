"""Several score tables of one space: their mean, samples of it, and a common scale."""

import math
from collections.abc import Callable, Sequence
from random import Random

from bitalloc.errors import BitallocError, SpaceError
from bitalloc.policy import Bits
from bitalloc.space import SearchSpace, Table


def mean(tables: Sequence[Table], space: SearchSpace) -> Table:
    """The mean of the tables at every choice of the space, in the first one's unit."""
    return mapped(space, tables[0].unit, lambda name, bits: math.fsum(table.values[name][bits] for table in tables) / len(tables))


def scaled(table: Table, space: SearchSpace) -> Table:
    """The table shifted layer by layer and scaled so that the sum of the layers' best choices is 0 and of their worst ones 1.

    A table that is the same for all choices of every layer becomes 0.
    """
    rows = {name: [table.values[name][bits] for bits in choices.pairs] for name, choices in space.candidates.items()}
    least = {name: min(row) for name, row in rows.items()}
    span = math.fsum(max(row) - least[name] for name, row in rows.items()) or 1.0
    return mapped(space, "share of the range", lambda name, bits: (table.values[name][bits] - least[name]) / span)


def bootstrap(tables: Sequence[Table], draws: int = 100, seed: int = 0) -> tuple[Table, ...]:
    """Bootstrap samples of the mean table (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979).

    Every sample is the mean of as many tables as there are, drawn with replacement. Use it where the tables are repeated
    measurements of one thing, such as a score measured on several batches.

    Args:
        tables: one for each measurement, with the same layers and choices.
        draws: how many samples; 100, after which a share is known to five per cent.
        seed: of the draws.

    Raises:
        BitallocError: there are fewer than two tables, or fewer than one draw.
        SpaceError: the tables differ in layers, choices or units.
    """
    if len(tables) < 2 or draws < 1:
        raise BitallocError(f"a bootstrap of {len(tables)} tables with {draws} draws: expected at least two tables and one draw.")
    for table in tables[1:]:
        if table.unit != tables[0].unit:
            raise SpaceError(f"one table is in {tables[0].unit}, another in {table.unit}: expected measurements of one thing.")
        names = {**tables[0].values, **table.values}
        odd = [name for name in names if set(tables[0].values.get(name, ())) != set(table.values.get(name, ()))]
        if odd:
            raise SpaceError(f"the tables have different choices in {', '.join(odd)}: expected measurements of one search space.")
    random = Random(seed)
    samples = []
    for _ in range(draws):
        drawn = random.choices(tables, k=len(tables))
        rows = {
            name: {bits: math.fsum(table.values[name][bits] for table in drawn) / len(drawn) for bits in row}
            for name, row in tables[0].values.items()
        }
        samples.append(Table(rows, tables[0].unit))
    return tuple(samples)


def mapped(space: SearchSpace, unit: str, value: Callable[[str, Bits], float]) -> Table:
    """The table of ``value`` at every choice of the space."""
    return Table({name: {bits: value(name, bits) for bits in choices.pairs} for name, choices in space.candidates.items()}, unit)
