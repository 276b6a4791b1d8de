"""From one network to the same architecture on another dataset: which layer is which."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from bitalloc.errors import PolicyError
from bitalloc.layers import LayerInfo

Row = TypeVar("Row")


def same_layers(
    layers: Sequence[LayerInfo], source: Mapping[str, tuple[int, ...]], heads: Sequence[str], names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The layers of a network, the target, to those of the source, which was searched or measured; those without one are left out.

    Args:
        layers: of the target.
        source: weight shapes of the source, by layer name.
        heads: layers of the source that give its output, whose shapes depend on the dataset and may differ.
        names: layer of the target to layer of the source, where they differ. With a map only the shapes of layers that both have are
            compared; without one both must have the same layers.

    Raises:
        PolicyError: the networks have different layers or shapes, or the map sends two layers to one; it names them.
    """
    source_of = {layer.name: (names or {}).get(layer.name, layer.name) for layer in layers}
    unknown = [f"{t} -> {s}" for t, s in (names or {}).items() if t not in source_of or s not in source]
    if unknown:
        raise PolicyError(f"the name map has layers that the networks have not: {', '.join(unknown)}. Write target -> source.")
    known = {target: name for target, name in source_of.items() if name in source}
    if names is None and len(known) < max(len(layers), len(source)):
        missing = [name for name in source if name not in known] or ["none"]
        extra = [name for name in source_of if name not in known] or ["none"]
        raise PolicyError(
            f"the source network has other layers: only there {', '.join(missing)}; only here {', '.join(extra)}. "
            "Give a name map, from the layers here to those there, if they are the same network."
        )
    _check_distinct(known)
    shapes = {layer.name: layer.weight_shape for layer in layers}
    reshaped = [
        f"{target} (source {source[name]}, here {shapes[target]})"
        for target, name in known.items()
        if name not in heads and source[name] != shapes[target]
    ]
    if reshaped:
        raise PolicyError(f"the source network has other weight shapes: {', '.join(reshaped)}.")
    return known


def moved(rows: Mapping[str, Row], known: Mapping[str, str]) -> dict[str, Row]:
    """What is said of the source's layers, under the names of the target's; see :func:`same_layers` for ``known``."""
    return {target: rows[source] for target, source in known.items() if source in rows}


def _check_distinct(known: Mapping[str, str]) -> None:
    targets: dict[str, list[str]] = {}
    for target, source in known.items():
        targets.setdefault(source, []).append(target)
    repeated = [f"{' and '.join(several)} -> {source}" for source, several in targets.items() if len(several) > 1]
    if repeated:
        raise PolicyError(
            f"the name map sends two layers to one: {', '.join(repeated)}. A layer that is not in the map keeps its name, so map it too."
        )
