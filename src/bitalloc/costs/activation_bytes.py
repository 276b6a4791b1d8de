"""Bytes of the activations that the deployed network has in memory."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, final

from bitalloc.costs.base import Cost
from bitalloc.errors import SpaceError
from bitalloc.layers import Description, LayerInfo, Site
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace, Table


@final
class ActivationBytes(Cost):
    """Elements x activation bits / 8 of activation sites, packed without gaps, for one sample; see :func:`activation_bytes`."""

    unit: ClassVar[str] = "activation_bytes"

    def __init__(self, numel: Mapping[str, int], floating: int, first: str) -> None:
        """Takes what is counted.

        Args:
            numel: layer name to the elements that have its activation width.
            floating: elements that are in floating point at every choice.
            first: the layer that these are charged to, so that a sum over the layers is the sum of everything.
        """
        self.numel = numel
        self.floating = floating
        self._first = first

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        floating = self.floating if layer.name == self._first else 0
        return (self.numel.get(layer.name, 0) * bits.act + floating * FLOAT) / 8

    def over(self, nothing: Mapping[str, Mapping[Bits, float]], layers: Mapping[str, LayerInfo]) -> Table:
        """The table of every choice, from a row of zeros for every layer: quick, as few layers count at one moment of a peak."""
        counted = {name: {bits: self._value(layers[name], bits) for bits in nothing[name]} for name in (self._first, *self.numel)}
        return Table({**nothing, **counted}, self.unit)

    def largest(self, space: SearchSpace) -> float:
        """The most that a policy of ``space`` can take."""
        return sum(numel * max(space.candidates[name].act) for name, numel in self.numel.items()) / 8 + self.floating * FLOAT / 8

    def dominates(self, other: "ActivationBytes") -> bool:
        """Whether this is at least ``other`` at every choice of widths."""
        return self.floating >= other.floating and all(self.numel.get(name, 0) >= numel for name, numel in other.numel.items())


def activation_bytes(description: Description, space: SearchSpace) -> ActivationBytes:
    """The bytes of all sites together.

    - A site that several layers read through one quantizer counts once, at their common width.
    - A site that layers read through quantizers of their own (coupling ``free``) counts once a quantizer: an integer runtime holds a
      copy for each.
    - A site that no layer reads has the width of the one that it flows into through additions, concatenations and max pooling, or 32 bits
      if there is none, like the network's output. So has what a layer in floating point reads.

    Args:
        description: of the model, with its sites.
        space: says which layers share an input quantizer and which are left in floating point.

    Raises:
        SpaceError: the description has no sites, or ``space`` lacks a layer that reads one.
    """
    return _Widths(description, space).cost(description.sites)


def peak_activation_bytes(description: Description, space: SearchSpace) -> tuple[ActivationBytes, ...]:
    """The bytes of the sites that are alive at the same time, one cost a moment; the peak is the largest of their totals.

    A site is alive from the operation that makes it to the last one that reads it. Widths are as in :func:`activation_bytes`. Of the
    moments of the order of execution only those at which something is freed next are kept: the others have no more in memory than the next.

    Raises:
        SpaceError: the description has no sites, or ``space`` lacks a layer that reads one.
    """
    widths = _Widths(description, space)
    made: dict[int, list[Site]] = {}
    for site in sorted(description.sites, key=lambda site: site.born):
        made.setdefault(site.born, []).append(site)
    costs = []
    alive: list[Site] = []
    for moment, following in zip(made, [*list(made)[1:], None], strict=True):
        alive = [site for site in alive if site.dies >= moment] + made[moment]
        if following is None or any(site.dies < following for site in alive):
            costs.append(widths.cost(alive))
    return tuple(costs)


class _Widths:
    """Which layers decide the width of each site: one for each copy, ``None`` for a copy in floating point."""

    def __init__(self, description: Description, space: SearchSpace) -> None:
        if not description.sites:
            raise SpaceError("the description has no activation sites: describe the model again.")
        self._first = description.layers[0].name
        leaders = {name: group[0] for group in space.shared_inputs for name in group}
        self._deciders: dict[str, tuple[str | None, ...]] = {}
        for site in description.sites:
            unknown = [name for name in site.readers if name not in space.candidates]
            if unknown:
                raise SpaceError(f"the search space has no layer {', '.join(unknown)}, which reads {site.name}: it is for another model.")
            copies = (None if space.candidates[name].act == (FLOAT,) else leaders.get(name, name) for name in site.readers)
            self._deciders[site.name] = tuple(dict.fromkeys(copies))
        # Backwards, so that a sum of sums finds the width of the last one.
        for meeting in reversed(description.meetings):
            for name in (meeting.result, *meeting.operands):
                self._deciders[name] = self._deciders[name] or self._deciders[meeting.result][:1]

    def cost(self, sites: Iterable[Site]) -> ActivationBytes:
        """The bytes of ``sites``."""
        numel: dict[str, int] = {}
        floating = 0
        for site in sites:
            for layer in self._deciders[site.name] or (None,):
                if layer is None:
                    floating += site.numel
                else:
                    numel[layer] = numel.get(layer, 0) + site.numel
        return ActivationBytes(numel, floating, self._first)
