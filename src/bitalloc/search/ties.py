"""Which layers are connected by ties, and what each of them may choose once the tied widths are set."""

from collections.abc import Iterable, Sequence
from itertools import product
from math import prod
from typing import Final

from bitalloc.errors import InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.links import joined
from bitalloc.space import SearchSpace

MODES: Final = 20_000
"""A block with more combinations of tied widths than that is left to HiGHS."""

Pairs = tuple[Bits, ...]
Cell = tuple[int, tuple[int, ...]]
"""A layer, and the positions of the pairs that it may have."""
Block = list[tuple[Cell, ...]]
"""The modes of a block, each with a cell for every layer."""


class TooManyModesError(Exception):
    """A block of tied layers has more modes than are worth listing."""


def blocks_of(space: SearchSpace, pairs: Sequence[Pairs]) -> list[Block]:
    """The blocks of a space, in the order of their first layers.

    Args:
        space: the layers and their ties.
        pairs: the pairs of every layer that may be chosen, in the order of the space.

    Raises:
        InfeasibleError: the ties leave a layer no pair.
        TooManyModesError: a block has more than ``MODES`` modes.
    """
    options = [tuple(range(len(row))) for row in pairs]
    groups = _groups(space)
    widths = _common_widths(groups, pairs, options)
    # A group with one width left couples nothing any more.
    groups = [group for group, common in zip(groups, widths, strict=True) if len(common) > 1]
    widths = [common for common in widths if len(common) > 1]
    blocks: dict[int, Block] = {}
    tied: set[int] = set()
    for together in _connected(groups):
        layers = sorted({layer for k in together for layer, _ in groups[k]})
        tied.update(layers)
        blocks[layers[0]] = _modes([groups[k] for k in together], [widths[k] for k in together], layers, pairs, options)
    for layer, row in enumerate(options):
        if layer not in tied:
            blocks[layer] = [((layer, row),)]
    return [blocks[layer] for layer in sorted(blocks)]


def _groups(space: SearchSpace) -> list[list[tuple[int, str]]]:
    """The sides of layers (layer, ``weight`` or ``act``) that have one width, overlapping ties joined."""
    position = {name: i for i, name in enumerate(space.candidates)}
    sides = (("weight", space.weight_ties), ("act", space.act_ties))
    groups = ([(position[name], side) for name in members] for side, ties in sides for members in joined(position, ties))
    return [group for group in groups if len(group) > 1]


def _common_widths(groups: Sequence[Sequence[tuple[int, str]]], pairs: Sequence[Pairs], options: list[tuple[int, ...]]) -> list[set[int]]:
    """The widths that all members of every group have; takes the others out of ``options`` until nothing changes."""
    while True:
        before = list(options)
        widths = []
        for group in groups:
            common = set.intersection(*({getattr(pairs[layer][i], side) for i in options[layer]} for layer, side in group))
            widths.append(common)
            for layer, side in group:
                options[layer] = tuple(i for i in options[layer] if getattr(pairs[layer][i], side) in common)
        if not all(options):
            raise InfeasibleError(
                "no policy keeps the ties: the tied layers have no widths in common, whatever the budgets. Give them the same candidates."
            )
        if options == before:
            return widths


def _connected(groups: Sequence[Sequence[tuple[int, str]]]) -> Iterable[Sequence[int]]:
    """Groups that share a layer, together."""
    of: dict[int, list[int]] = {}
    for k, group in enumerate(groups):
        for layer, _ in group:
            of.setdefault(layer, []).append(k)
    return joined(range(len(groups)), of.values())


def _modes(
    groups: Sequence[Sequence[tuple[int, str]]],
    widths: Sequence[set[int]],
    layers: Sequence[int],
    pairs: Sequence[Pairs],
    options: Sequence[tuple[int, ...]],
) -> Block:
    if prod(len(common) for common in widths) > MODES:
        raise TooManyModesError
    ties = {layer: [(side, k) for k, group in enumerate(groups) for member, side in group if member == layer] for layer in layers}
    modes: Block = []
    for widths_now in product(*(sorted(common, reverse=True) for common in widths)):
        cells = tuple(
            (layer, tuple(i for i in options[layer] if all(getattr(pairs[layer][i], side) == widths_now[k] for side, k in ties[layer])))
            for layer in layers
        )
        if all(row for _, row in cells):
            modes.append(cells)
    if not modes:
        raise InfeasibleError(
            f"no policy keeps the ties: {len(layers)} layers are tied to each other in weights and activations, and no combination of "
            "their common widths is allowed in all of them. Give them the same candidates."
        )
    return modes
