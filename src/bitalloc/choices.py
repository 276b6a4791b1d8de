"""From what a person asks for (candidates, pins, patterns, hardware pairs, coupling) to a search space."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from bitalloc.coupling import Coupling, Ties, couple
from bitalloc.errors import SpaceError
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import Candidates, SearchSpace, check_tie, listed


def search_space(
    model: Description | Sequence[LayerInfo],
    weight: Iterable[int],
    act: Iterable[int] | None = None,
    *,
    pins: Mapping[str, Bits | str] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    overrides: Mapping[str, Candidates] | None = None,
    allowed: Iterable[Bits | str] | None = None,
    minimum: Mapping[str, Bits | str] | None = None,
    max_widths: int | None = None,
    coupling: Coupling = "shared-input",
    fused_qkv: bool | None = None,
    depthwise_pointwise: bool = False,
) -> SearchSpace:
    """The search space of a model.

    Layers that read no activation (embeddings) have only weight candidates. Where a tie leaves only some widths in common, the
    others are taken out of the tied layers, so that a pin of one layer reaches those that read the same tensor.

    Args:
        model: from ``describe``: the description, or its layers.
        weight: candidate weight widths, for example ``(8, 4, 2)``; they need not be consecutive.
        act: candidate activation widths; the weight candidates when left out.
        pins: layer name or pattern (``fnmatch``: ``layer1.*``) to the widths that these layers keep, ``Bits(4, 8)`` or ``"w4a8"``.
            Later patterns win.
        include: patterns of the layers to quantize; the others stay in floating point, pinned at ``Bits(32, 32)``.
        exclude: patterns of layers that stay in floating point although included or pinned.
        overrides: pattern to other candidates for these layers.
        allowed: the pairs that the hardware has, for example ``("w4a4", "w4a8", "w8a8")``; all by default. Pins and overrides are not
            restricted by them.
        minimum: pattern to the fewest bits of these layers, for example ``{"*.attn.*": "w4a8"}``; pins win.
        max_widths: see :class:`SearchSpace`.
        coupling: which layers share a width or a quantizer, see :func:`~bitalloc.coupling.couple`.
        fused_qkv: see :func:`~bitalloc.coupling.couple`.
        depthwise_pointwise: see :func:`~bitalloc.coupling.couple`.

    Raises:
        SpaceError: no layer or no candidate is left, a pattern matches no layer, tied layers have no width in common, or a weight
            tensor that several layers hold is left in floating point in some of them.
    """
    layers = model.layers if isinstance(model, Description) else model
    names = [layer.name for layer in layers]
    weight = tuple(weight)
    pairs = None if allowed is None else frozenset(_bits(pair) for pair in allowed)
    default = Candidates(weight, weight if act is None else tuple(act), pairs)
    included = {name for pattern in include for name in matching(pattern, names)}
    excluded = {name for pattern in exclude for name in matching(pattern, names)}
    floating = Candidates.pinned(Bits(FLOAT, FLOAT))
    chosen = {name: default if name in included - excluded else floating for name in names}
    quantized = [name for name in names if name in included - excluded]
    if not quantized:
        raise SpaceError("no layer is left to quantize: the model has none, or include and exclude leave none.")
    for pattern, candidates in (overrides or {}).items():
        chosen.update(dict.fromkeys(matching(pattern, names), candidates))
    chosen.update(_weights_only(layers, chosen))
    for pattern, least in (minimum or {}).items():
        chosen.update({name: _at_least(name, chosen[name], _bits(least)) for name in matching(pattern, names)})
    for pattern, bits in (pins or {}).items():
        chosen.update(dict.fromkeys(matching(pattern, names), Candidates.pinned(_bits(bits))))
    chosen.update(dict.fromkeys(excluded, floating))
    chosen.update(_weights_only(layers, chosen))
    _check_same_weight(layers, chosen)
    ties = couple(model, coupling, fused_qkv=fused_qkv, depthwise_pointwise=depthwise_pointwise)
    return _tied(chosen, ties, max_widths)


def first_last_pins(description: Description, bits: Bits = Bits(8, 8), *, first_act: int | None = None) -> dict[str, Bits]:
    """Pins for the layers that read the network's input and those that give its output.

    Args:
        description: of the model.
        bits: widths of these layers; 8 bits, as the published BitOps figures count them.
        first_act: width of the network's input, where it differs; 32 leaves it in floating point.
    """
    pins = dict.fromkeys(description.last, bits)
    return pins | dict.fromkeys(description.first, bits if first_act is None else Bits(bits.weight, first_act))


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that ``pattern`` matches. Raises SpaceError if there is none, with the closest names."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise SpaceError(f"the pattern {pattern!r} matches no layer. The layers are: {shown}")
    return found


def _tied(chosen: Mapping[str, Candidates], ties: Ties, max_widths: int | None) -> SearchSpace:
    """The space with the ties among the quantized layers, and each candidate that a tie rules out taken away."""
    weight, act, shared = (
        tuple(group for group in (tuple(n for n in names if getattr(chosen[n], side) != (FLOAT,)) for names in groups) if len(group) > 1)
        for side, groups in (("weight", ties.weight), ("act", ties.act), ("act", ties.shared_inputs))
    )
    left = dict(chosen)
    before: Mapping[str, Candidates] = {}
    while left != before:  # taking a width out of one tie can take it out of another
        before = dict(left)
        for side, groups in (("weight", weight), ("act", act)):
            for group in groups:
                check_tie(left, side, group)
                common = set.intersection(*(set(getattr(left[name], side)) for name in group))
                left.update({name: left[name].only(**{side: common}) for name in group})
    return SearchSpace(left, weight, act, shared, max_widths)


def _weights_only(layers: Sequence[LayerInfo], chosen: Mapping[str, Candidates]) -> dict[str, Candidates]:
    return {layer.name: Candidates(chosen[layer.name].weight, (FLOAT,)) for layer in layers if layer.weight_only}


def _check_same_weight(layers: Sequence[LayerInfo], chosen: Mapping[str, Candidates]) -> None:
    """One tensor cannot be stored in floating point and quantized."""
    for layer in layers:
        pair = (layer.same_weight_as, layer.name)
        floating = [name for name in pair if name and chosen[name].weight == (FLOAT,)]
        if layer.same_weight_as and len(floating) == 1:
            raise SpaceError(
                f"the layers {' and '.join(pair)} hold the same weight tensor, but only {floating[0]} is left in floating point: "
                "exclude both or neither."
            )


def _at_least(name: str, candidates: Candidates, least: Bits) -> Candidates:
    kept = [pair for pair in candidates.pairs if pair.weight >= least.weight and pair.act >= least.act]
    if not kept:
        raise SpaceError(f"layer {name} must have at least {least} and has only the candidates {listed(candidates.pairs)}.")
    return Candidates(candidates.weight, candidates.act, frozenset(kept))


def _bits(value: Bits | str) -> Bits:
    return Bits.parse(value) if isinstance(value, str) else value
