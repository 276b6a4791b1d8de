"""A search problem as flat arrays: the form in which the exact solver computes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import is_
from typing import final

import numpy as np
from numpy.typing import NDArray

from bitalloc.policy import Bits
from bitalloc.search.ties import Block, blocks_of
from bitalloc.space import SearchSpace, Table

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]


@final
@dataclass(frozen=True, slots=True)
class Layout:
    """Choose one mode for every block and one entry for every cell of that mode.

    A *block* is a set of layers connected by ties, most often one layer. A *mode* of a block gives every tie inside it a width. In
    a mode the layers are independent: every layer is a *cell* that holds, as *entries*, the pairs of widths that it may have then.
    A layer without ties is one block of one mode of one cell.

    Attributes:
        score: of every entry, above the smallest score of its layer; shape (entries,).
        cost: of every entry in every budget; shape (budgets, entries).
        layer: position of every entry's layer in the space.
        pair: position of every entry's pair among the pairs of its layer's candidates.
        cell_start: the first entry of every cell.
        mode_start: the first cell of every mode.
        block_start: the first mode of every block.
        cell: the cell of every entry.
        mode: the mode of every cell.
        block: the block of every mode.
    """

    score: Floats
    cost: Floats
    layer: Indices
    pair: Indices
    cell_start: Indices
    mode_start: Indices
    block_start: Indices
    cell: Indices
    mode: Indices
    block: Indices

    @property
    def plain(self) -> bool:
        """Whether every block is one cell."""
        return len(self.cell_start) == len(self.block_start)

    def least(self, value: Floats) -> tuple[Floats, Floats, Floats]:
        """The smallest sum of ``value`` in every cell, mode and block."""
        cells = np.minimum.reduceat(value, self.cell_start)
        if self.plain:
            return cells, cells, cells
        modes = np.add.reduceat(cells, self.mode_start)
        return cells, modes, np.minimum.reduceat(modes, self.block_start)

    def excess(self, value: Floats) -> tuple[Floats, float]:
        """By how much the smallest sum of ``value`` rises if an entry is chosen, for every entry; and that sum."""
        cells, modes, blocks = self.least(value)
        rise = value - cells[self.cell]
        if not self.plain:
            rise += (modes - blocks[self.block])[self.mode[self.cell]]
        return rise, float(blocks.sum())

    def chosen(self, value: Floats) -> tuple[Indices, float]:
        """The entries of a choice with the smallest sum of ``value``, and that sum."""
        cells, modes, blocks = self.least(value)
        hits = np.flatnonzero(value == cells[self.cell])
        entries = hits[_first(self.cell[hits])]
        if not self.plain:
            best = np.flatnonzero(modes == blocks[self.block])
            open_modes = np.zeros(len(modes), dtype=bool)
            open_modes[best[_first(self.block[best])]] = True
            entries = entries[open_modes[self.mode]]
        return entries, float(blocks.sum())

    def restricted(self, keep: Mask) -> "tuple[Layout, Indices] | None":
        """The layout with these entries only, and where they were; ``None`` if a block has no choice left."""
        if keep.all():
            return self, np.arange(len(keep))
        held = np.bincount(self.cell[keep], minlength=len(self.cell_start)) > 0
        if not self.plain:
            open_modes = np.logical_and.reduceat(held, self.mode_start)
            if not np.logical_or.reduceat(open_modes, self.block_start).all():
                return None
            held &= open_modes[self.mode]
            keep = keep & held[self.cell]
            block = self.block[open_modes]
            mode = _renumbered(self.mode[held])
        elif not held.all():
            return None
        else:
            block, mode = self.block, self.mode
        cell = _renumbered(self.cell[keep])
        starts = _starts(cell, mode, block)
        kept = np.flatnonzero(keep)
        return Layout(self.score[kept], self.cost[:, kept], self.layer[kept], self.pair[kept], *starts, cell, mode, block), kept

    def with_cost(self, cost: Floats) -> "Layout":
        """The same choices at other costs."""
        starts = (self.cell_start, self.mode_start, self.block_start)
        return Layout(self.score, cost, self.layer, self.pair, *starts, self.cell, self.mode, self.block)


def layout_of(space: SearchSpace, pairs: Sequence[tuple[Bits, ...]], score: Table, tables: Sequence[Table]) -> tuple[Layout, float]:
    """The arrays of a problem, and the sum of the smallest scores of all layers.

    Raises:
        InfeasibleError: the ties leave a layer no pair.
        TooManyModesError: a block has too many modes to list.
    """
    begin = np.concatenate([[0], np.cumsum([len(row) for row in pairs])])
    if space.weight_ties or space.act_ties:
        layer, pair, cell, mode, block = _tied(blocks_of(space, pairs))
    else:
        mode = block = np.arange(len(pairs))
        layer = cell = np.repeat(block, np.diff(begin))
        pair = np.arange(begin[-1]) - begin[layer]
    position = begin[layer] + pair
    values = _column(space, pairs, score)
    least = np.minimum.reduceat(values, begin[:-1])
    values -= np.repeat(least, np.diff(begin))
    cost = np.array([_column(space, pairs, table)[position] for table in tables]).reshape(len(tables), len(position))
    starts = _starts(cell, mode, block)
    return Layout(values[position], cost, layer, pair, *starts, cell, mode, block), math.fsum(least)


def _tied(blocks: Sequence[Block]) -> tuple[Indices, Indices, Indices, Indices, Indices]:
    """Layer, pair and cell of every entry, mode of every cell, block of every mode."""
    cells = [cell for block in blocks for mode in block for cell in mode]
    cell = np.repeat(np.arange(len(cells)), [len(options) for _, options in cells])
    layer = np.array([layer for layer, _ in cells])[cell]
    pair = np.array([option for _, options in cells for option in options])
    mode = np.repeat(np.arange(sum(map(len, blocks))), [len(mode) for block in blocks for mode in block])
    return layer, pair, cell, mode, np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])


def undominated(layout: Layout) -> Mask:
    """Entries that no other of their cell beats or equals in score and in every cost; of equal ones the first."""
    keep = np.ones(len(layout.score), dtype=bool)
    sizes = np.diff(np.append(layout.cell_start, len(keep)))
    for size in np.unique(sizes[sizes > 1]):
        entries = layout.cell_start[sizes == size][:, None] + np.arange(size)
        better = np.ones((*entries.shape, size), dtype=bool)  # [cell, a, b]: a is at least as good as b everywhere
        strictly = np.broadcast_to(np.triu(np.ones((size, size), dtype=bool), 1), better.shape).copy()
        for of in (layout.score, *layout.cost):
            value = of[entries]
            better &= value[:, :, None] <= value[:, None, :]
            strictly |= value[:, :, None] < value[:, None, :]
        keep[entries] = ~(better & strictly).any(axis=1)
    return keep


def _column(space: SearchSpace, pairs: Sequence[tuple[Bits, ...]], table: Table) -> Floats:
    """The table's values in the order of the space; whole rows at once where they have that order, since looking up a pair is slow."""
    values: list[float] = []
    for name, options in zip(space.candidates, pairs, strict=True):
        row = table.values[name]
        if len(row) == len(options) and all(map(is_, row, options)):  # made from the same candidates, the usual case
            values += row.values()
        else:
            values += [row[bits] for bits in options]
    return np.array(values, dtype=np.float64)


def _starts(cell: Indices, mode: Indices, block: Indices) -> tuple[Indices, Indices, Indices]:
    return np.flatnonzero(_first(cell)), np.flatnonzero(_first(mode)), np.flatnonzero(_first(block))


def _first(of: Indices) -> Mask:
    """Where a sorted array has a value for the first time."""
    first = np.ones(len(of), dtype=bool)
    first[1:] = of[1:] != of[:-1]
    return first


def _renumbered(of: Indices) -> Indices:
    """A sorted array with its values replaced by 0, 1, 2 and so on."""
    return np.cumsum(_first(of)) - 1
