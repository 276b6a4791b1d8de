"""Which layers move together: one changed layer carries along those that are tied to it."""

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar, final

from bitalloc.policy import Bits
from bitalloc.space import SearchSpace


@final
class Links:
    """The ties of a space, prepared for searches that change a policy layer by layer.

    A *knob* is a width that several layers share: the weight or the activation width of a group of tied layers, or of one layer
    that is in no tie. Knobs have numbers from 0.

    Args:
        space: the candidates and ties.

    Attributes:
        pairs: the candidate pairs of every layer.
        knobs: the layers of every knob.
        weight_knobs: the numbers of the knobs that set weight widths.
        act_knobs: the numbers of the knobs that set activation widths.
        components: the sets of layers that ties connect, directly or through others.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.pairs = {name: choices.pairs for name, choices in space.candidates.items()}
        names = list(space.candidates)
        weight = joined(names, space.weight_ties)
        act = joined(names, space.act_ties)
        self.knobs = (*weight, *act)
        self._weight = {name: i for i, group in enumerate(weight) for name in group}
        self._act = {name: i for i, group in enumerate(act, len(weight)) for name in group}
        self.weight_knobs = range(len(weight))
        self.act_knobs = range(len(weight), len(self.knobs))
        self.components = joined(names, (*space.weight_ties, *space.act_ties))

    def knobs_of(self, layer: str) -> tuple[int, int]:
        """The knobs of the layer's weight and activation widths."""
        return self._weight[layer], self._act[layer]

    def widths(self, knob: int) -> list[int]:
        """The widths that all layers of the knob have in common, from most to fewest bits."""
        act = knob in self.act_knobs
        sets = [{pair.act if act else pair.weight for pair in self.pairs[name]} for name in self.knobs[knob]]
        return sorted(set.intersection(*sets), reverse=True)

    def changes(self, bits: Mapping[str, Bits], layer: str, pair: Bits) -> dict[str, Bits] | None:
        """What has to change in ``bits``, which keeps the ties, so that ``layer`` has ``pair``; tied layers follow.

        A follower keeps the side that no tie sets where its candidates allow that, and otherwise takes the nearest width.

        Returns:
            Layer name to new widths, ``None`` if no such change was found.
        """
        fixed = dict(zip(self.knobs_of(layer), (pair.weight, pair.act), strict=True))
        changed: dict[str, Bits] = {}
        waiting = deque(name for knob in fixed for name in self.knobs[knob])
        while waiting:
            name = waiting.popleft()
            now = changed.get(name, bits[name])
            weight, act = self.knobs_of(name)
            options = [p for p in self.pairs[name] if fixed.get(weight, p.weight) == p.weight and fixed.get(act, p.act) == p.act]
            if not options:
                return None
            new = min(options, key=lambda p: abs(p.weight - now.weight) + abs(p.act - now.act))
            for knob, before, after in ((weight, now.weight, new.weight), (act, now.act, new.act)):
                if before != after and knob not in fixed:
                    fixed[knob] = after
                    waiting.extend(self.knobs[knob])
            changed[name] = new
        return {name: new for name, new in changed.items() if new != bits[name]}


Name = TypeVar("Name", bound=Hashable)


def joined(names: Iterable[Name], groups: Iterable[Sequence[Name]]) -> tuple[tuple[Name, ...], ...]:
    """The connected sets of names, every name in one, in the order of the names."""
    of = {name: {name: None} for name in names}
    order = list(of)
    for group in groups:
        for name in group[1:]:
            if of[name] is not of[group[0]]:
                of[group[0]].update(of[name])
                for member in of[name]:
                    of[member] = of[group[0]]
    position = {name: i for i, name in enumerate(order)}
    sets = {id(of[name]): of[name] for name in order}
    return tuple(tuple(sorted(members, key=position.__getitem__)) for members in sets.values())
