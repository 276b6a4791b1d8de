"""Which layers of a search space choose together, and what a supernet asks of a space."""

from typing import Literal

from bitalloc.errors import SpaceError
from bitalloc.space import SearchSpace

Side = Literal["weight", "act"]
SIDES: tuple[Side, Side] = ("weight", "act")


def candidates_of(space: SearchSpace, side: Side, name: str) -> tuple[int, ...]:
    """The candidate widths of one side of a layer, from most to fewest bits."""
    candidates = space.candidates[name]
    return candidates.weight if side == "weight" else candidates.act


def tie_groups(space: SearchSpace, side: Side) -> dict[str, str]:
    """Every layer to the first layer of those that must get its width: itself where there is no tie; ties of ties count."""
    group = {name: name for name in space.candidates}
    for tie in space.weight_ties if side == "weight" else space.act_ties:
        joined = {group[name] for name in tie}
        first = next(name for name in space.candidates if group[name] in joined)
        group.update({name: group[first] for name in group if group[name] in joined})
    return group


def check_space(space: SearchSpace) -> None:
    """Raises SpaceError unless there is something to choose and tied layers have the same candidates."""
    if not space.free:
        raise SpaceError("every layer has one candidate only: there is nothing to search. Give at least two bit-widths.")
    for side in SIDES:
        for name, first in tie_groups(space, side).items():
            own, others = candidates_of(space, side, name), candidates_of(space, side, first)
            if own != others:
                raise SpaceError(
                    f"the layers {first} and {name} are tied but have other {side} candidates: {others} and {own}. "
                    "A supernet needs the same ones; search_space() makes them so."
                )
