"""What ``bitalloc describe`` says about every layer: its size, its share of the costs, its ties, and why it is pinned or left out."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from bitalloc.costs import BitOps, WeightBytes
from bitalloc.coupling import requantizations
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace

UNIFORM: Final = (8, 4, 2)
_SHARES_AT: Final = Bits(4, 4)


def describe_report(description: Description, space: SearchSpace) -> dict[str, Any]:
    """The description as a JSON object, with what the search space and the costs say about each layer.

    Beside the keys of ``Description.to_json``: for every layer ``macs_share``, ``bitops_share``, ``weight_bytes_share`` (of the whole
    network, free layers at W4A4), ``widths``, ``tied_weights``, ``tied_activations`` and ``note``; ``uniform``, the cost at 8, 4 and 2
    bits; ``requantizations`` at W4A4; ``bitops_convention``.

    Args:
        description: of the model.
        space: of the same model; it says what is pinned, left out and tied.

    Raises:
        SpaceError: the two are not about the same layers.
    """
    bits = space.uniform(_SHARES_AT)
    shares = {key: _shares(values) for key, values in _amounts(description, bits).items()}
    report = description.to_json()
    report["layers"] = [
        {
            **entry,
            **{key: share[layer.name] for key, share in shares.items()},
            "widths": _widths(space, layer.name),
            "tied_weights": _group_of(layer.name, space.weight_ties),
            "tied_activations": _group_of(layer.name, space.act_ties),
            "note": _note(layer, description, space),
        }
        for entry, layer in zip(report["layers"], description.layers, strict=True)
    ]
    report["uniform"] = [_uniform(Bits(width, width), description, space) for width in UNIFORM]
    report["requantizations"] = asdict(requantizations(description, bits))
    report["bitops_convention"] = BitOps().convention(space, description.layers)
    return report


def _amounts(description: Description, bits: Mapping[str, Bits]) -> dict[str, dict[str, float]]:
    return {
        "macs_share": {layer.name: float(layer.macs) for layer in description.layers},
        "bitops_share": {layer.name: BitOps().value(layer, bits[layer.name]) for layer in description.layers},
        "weight_bytes_share": {layer.name: WeightBytes().value(layer, bits[layer.name]) for layer in description.layers},
    }


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    total = sum(values.values())
    return {name: value / total if total else 0.0 for name, value in values.items()}


def _uniform(pair: Bits, description: Description, space: SearchSpace) -> dict[str, Any]:
    bits = space.uniform(pair)
    floating = {layer.name: Bits(FLOAT, FLOAT) for layer in description.layers}
    size = WeightBytes().total(description.layers, bits)
    return {
        "bits": str(pair),
        "bitops": BitOps().total(description.layers, bits),
        "weight_bytes": size,
        "compression": WeightBytes().total(description.layers, floating) / size,
    }


def _widths(space: SearchSpace, name: str) -> str:
    candidates = space.candidates[name]
    weight, act = (",".join(map(str, widths)) for widths in (candidates.weight, candidates.act))
    return f"w{weight} a{act}"


def _group_of(name: str, groups: Sequence[tuple[str, ...]]) -> list[str]:
    """The other layers that are tied to ``name``, directly."""
    return list(dict.fromkeys(other for group in groups if name in group for other in group if other != name))


def _note(layer: LayerInfo, description: Description, space: SearchSpace) -> str:
    """Why the layer has no choice, and what is special about it."""
    notes = []
    pin = space.pinned.get(layer.name)
    ends = [what for what, names in (("reads the input", description.first), ("gives the output", description.last)) if layer.name in names]
    if pin is not None and pin.weight == FLOAT:
        notes.append("left in floating point")
    elif pin is not None:
        notes.append(f"pinned at {pin}" + (f": {' and '.join(ends)}" if ends else ""))
    if layer.weight_only:
        notes.append("weights only")
    if layer.same_weight_as:
        notes.append(f"same weight as {layer.same_weight_as}")
    return "; ".join(notes)
