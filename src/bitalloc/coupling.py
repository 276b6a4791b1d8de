"""Which layers must share a width because the network's graph makes their tensors meet."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from bitalloc.errors import SpaceError
from bitalloc.layers import Description, LayerInfo, Meeting, readers_of_sites
from bitalloc.policy import FLOAT, Bits

Coupling = Literal["strict", "shared-input", "free"]
Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Ties:
    """Groups of layers that get one width.

    Attributes:
        weight: groups whose weights have one width.
        act: groups whose input activations have one width, those of ``shared_inputs`` among them.
        shared_inputs: groups that read one tensor through one quantizer.
    """

    weight: Groups = ()
    act: Groups = ()
    shared_inputs: Groups = ()


@dataclass(frozen=True, slots=True)
class Requantizations:
    """What an integer runtime must bring to another scale where tensors meet.

    Attributes:
        operands: operands of additions and concatenations that layers read at a scale that is not that of the result.
        width_changes: those of them whose width differs from that of the result as well.
        numel: elements of all these operands, for one sample.
    """

    operands: int
    width_changes: int
    numel: int


def couple(
    model: Description | Sequence[LayerInfo],
    coupling: Coupling = "shared-input",
    *,
    fused_qkv: bool | None = None,
    depthwise_pointwise: bool = False,
) -> Ties:
    """The ties that the graph of a model asks for.

    Layers with the same weight tensor (tied embeddings) always have one weight width: the tensor exists once.

    Args:
        model: the description of the model, or just its layers, which know what they read but not where tensors meet.
        coupling: ``shared-input``, the default: layers that read the same tensor share its quantizer, because the tensor is stored
            once. ``strict``: besides, all activations that meet in additions and concatenations have one width, and so have the weights
            of Q, K and V, as integer runtimes without mixed operands need it. ``free``: one quantizer for every layer, as LIMPQ has it.
        fused_qkv: the weights of the Q, K and V projections of one attention have one width; by default only when ``strict``.
        depthwise_pointwise: a depthwise convolution has the widths of the pointwise one after it, for runtimes that fuse them.

    Raises:
        SpaceError: the name of the coupling is unknown, or it needs the graph and only layers are given.
    """
    if coupling not in get_args(Coupling):
        raise SpaceError(f"the coupling {coupling!r} is unknown: expected one of {', '.join(get_args(Coupling))}.")
    layers = model.layers if isinstance(model, Description) else model
    qkv = coupling == "strict" if fused_qkv is None else fused_qkv
    if not isinstance(model, Description) and (coupling == "strict" or qkv or depthwise_pointwise):
        raise SpaceError("these ties need the graph of the model: pass the description that describe() returned, not its layers.")
    wanted = {kind for kind, asked in (("qkv", qkv), ("depthwise-pointwise", depthwise_pointwise)) if asked}
    groups = [group for group in model.groups if group.kind in wanted] if isinstance(model, Description) else []
    shared = () if coupling == "free" else readers_of_sites(layers)
    meeting = _readers_that_meet(model) if coupling == "strict" and isinstance(model, Description) else ()
    return Ties(
        weight=(*_same_weight(layers), *(group.layers for group in groups)),
        act=(*shared, *meeting, *(group.layers for group in groups if group.kind == "depthwise-pointwise")),
        shared_inputs=shared,
    )


def requantizations(description: Description, bits: Mapping[str, Bits]) -> Requantizations:
    """Counts the operands that an integer runtime must bring to another scale, at the given widths.

    A site has the scale of the layers that read it. One that no layer reads takes the scale of what it flows into, or where that has
    none, of the widest operand that it is made of, and costs nothing. What is in floating point has no scale.

    Args:
        description: of the model.
        bits: widths by layer name.

    Raises:
        SpaceError: a layer that reads a meeting site has no widths.
    """
    sites = {site.name: site for site in description.sites}
    widths = {name: _width(site.readers, bits) for name, site in sites.items()}
    scale = {name: None if width is None else name for name, width in widths.items()}
    for meeting in reversed(description.meetings):  # backwards, so that a sum of sums finds the scale of the last one
        for name in meeting.operands:
            scale[name] = scale[name] or scale[meeting.result]
    operands = changes = numel = 0
    for meeting in description.meetings:
        own = [name for name in dict.fromkeys(meeting.operands) if widths[name] not in (None, FLOAT)]
        target = scale[meeting.result] or max(own, key=lambda name: widths[name] or 0, default=None)
        if target is None or widths[target] == FLOAT:
            continue
        moved = [name for name in own if name not in (target, meeting.result)]
        operands += len(moved)
        changes += sum(widths[name] != widths[target] for name in moved)
        numel += sum(sites[name].numel for name in moved)
    return Requantizations(operands, changes, numel)


def _width(readers: Iterable[str], bits: Mapping[str, Bits]) -> int | None:
    for name in readers:
        if name not in bits:
            raise SpaceError(f"there are no bit-widths for layer {name}: expected a pair for every layer.")
    return max((bits[name].act for name in readers), default=None)


def _same_weight(layers: Sequence[LayerInfo]) -> Groups:
    holders: dict[str, list[str]] = {}
    for layer in layers:
        if layer.same_weight_as:
            holders.setdefault(layer.same_weight_as, [layer.same_weight_as]).append(layer.name)
    return tuple(tuple(group) for group in holders.values())


def _readers_that_meet(description: Description) -> Groups:
    """The readers of all sites that are connected by additions and concatenations."""
    position = {layer.name: index for index, layer in enumerate(description.layers)}
    readers = {site.name: site.readers for site in description.sites}
    groups = []
    for connected in _connected(description.meetings):
        names = {name for site in connected for name in readers[site]}
        groups.append(tuple(sorted(names, key=position.__getitem__)))
    return tuple(group for group in groups if len(group) > 1)


def _connected(meetings: Sequence[Meeting]) -> list[set[str]]:
    components: list[set[str]] = []
    for meeting in meetings:
        together = {*meeting.operands, meeting.result}
        apart = []
        for component in components:
            if component & together:
                together |= component
            else:
                apart.append(component)
        components = [*apart, together]
    return components
