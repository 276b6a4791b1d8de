"""Where searches without a solver begin: the widest policy, for every way to use at most so many different widths."""

from collections.abc import Iterator, Mapping
from itertools import product

from bitalloc.errors import InfeasibleError, SpaceError
from bitalloc.policy import Bits
from bitalloc.search.problem import Problem
from bitalloc.search.solver import solve
from bitalloc.search.width_sets import width_sets
from bitalloc.space import SearchSpace, Table


def starts(space: SearchSpace) -> list[tuple[SearchSpace, Mapping[str, Bits]]]:
    """The spaces of :func:`_palettes`, each with its policy of most bits (weights and activations of all layers added up).

    Raises:
        InfeasibleError: the ties and ``max_widths`` leave no policy, whatever the budgets.
    """
    found = []
    reason: InfeasibleError | None = None
    for palette in _palettes(space):
        bits = {name: {pair: -float(pair.weight + pair.act) for pair in c.pairs} for name, c in palette.candidates.items()}
        try:
            found.append((palette, solve(Problem(palette, Table(bits, "bits"), ())).bits))
        except InfeasibleError as error:
            reason = error
    if not found:
        raise reason or InfeasibleError(
            f"no policy has at most {space.max_widths} different widths: the pinned layers and the ties need more. Raise max_widths."
        )
    return found


def _palettes(space: SearchSpace) -> Iterator[SearchSpace]:
    """The spaces without ``max_widths`` whose policies together are those of ``space``; ``space`` itself where it has no such limit."""
    if space.max_widths is None:
        yield space
        return
    for weight, act in product(width_sets(space, "weight"), width_sets(space, "act")):
        try:
            left = {name: c.only(weight, act) for name, c in space.candidates.items()}
            yield SearchSpace(left, space.weight_ties, space.act_ties, space.shared_inputs)
        except SpaceError:  # a layer, or a tie, has none of these widths
            continue
