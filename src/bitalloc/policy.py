"""A decision as data: the bit-widths of every layer, where they come from, and which model they belong to."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bitalloc.errors import PolicyError
from bitalloc.files import AnyPath, parse_json, read_json, write_json
from bitalloc.layers import Description, LayerInfo, by_name, readers_of_sites
from bitalloc.transfer import moved, same_layers

SCHEMA = "bitalloc.policy"
VERSION = 1
FLOAT = 32
"""The width that stands for "not quantized"."""
WIDTHS = (2, 3, 4, 5, 6, 7, 8, FLOAT)
"""Every width that a weight or an activation can have. One bit is left out: a signed one-bit grid has no positive level."""
_BITS = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Bits:
    """Bit-widths of one layer: of its weight, and of the activation tensor that it reads. 32 means not quantized."""

    weight: int
    act: int

    def __post_init__(self) -> None:
        for side, width in (("weight", self.weight), ("activation", self.act)):
            if isinstance(width, bool) or not isinstance(width, int) or width not in WIDTHS:
                raise PolicyError(f"{side} width {width!r} is not supported: expected one of {', '.join(map(str, WIDTHS))}.")

    def __hash__(self) -> int:
        return self.weight << 8 | self.act  # searches look up pairs by the thousand, and the generated one makes a tuple at each

    def __str__(self) -> str:
        return f"w{self.weight}a{self.act}"

    @staticmethod
    def parse(text: str) -> "Bits":
        """Reads ``"w4a8"``. Raises PolicyError for anything else."""
        match = _BITS.fullmatch(text.strip())
        if match is None:
            raise PolicyError(f"{text!r} is not a pair of bit-widths: write it like 'w4a8'.")
        return Bits(int(match[1]), int(match[2]))


@dataclass(frozen=True, slots=True)
class Policy:
    """Bit-widths of every layer of one model.

    Attributes:
        bits: layer name to widths, in the order of the model's layers.
        weight_shapes: layer name to the shape of its weight: which model the policy belongs to.
        provenance: where the policy comes from; JSON values such as method, seed, data fingerprint, budgets, solver status, bound.
        shared_inputs: groups of layers that read one activation tensor through one quantizer, and so have one activation width.
    """

    bits: Mapping[str, Bits]
    weight_shapes: Mapping[str, tuple[int, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    shared_inputs: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.bits:
            raise PolicyError("a policy needs at least one layer.")
        if set(self.bits) != set(self.weight_shapes):
            odd = sorted(set(self.bits) ^ set(self.weight_shapes))
            raise PolicyError(f"the policy has widths and weight shapes of different layers: {', '.join(odd)}.")
        for group in self.shared_inputs:
            self._check_shared(group)

    @staticmethod
    def uniform(
        layers: Sequence[LayerInfo], bits: Bits, pins: Mapping[str, Bits] | None = None, not_counted: Iterable[str] = ()
    ) -> "Policy":
        """The same widths for every layer, but for the pinned ones and the activations of layers that read none.

        Layers that read the same site share its quantizer where their widths agree.

        Args:
            layers: the model's layers.
            bits: widths of all layers that are not pinned.
            pins: layer name to other widths.
            not_counted: names of what a description left out; a quantizable layer that is never called must be among them.
        """
        pins = pins or {}
        chosen = {layer.name: pins.get(layer.name, Bits(bits.weight, FLOAT) if layer.weight_only else bits) for layer in layers}
        same_width = (
            [name for name in group if chosen[name].act == act]
            for group in readers_of_sites(layers)
            for act in dict.fromkeys(chosen[name].act for name in group)
            if act != FLOAT
        )
        return Policy(
            bits=chosen,
            weight_shapes={layer.name: layer.weight_shape for layer in layers},
            provenance={"method": "uniform", "bits": str(bits), "not_counted": list(not_counted)},
            shared_inputs=tuple(tuple(group) for group in same_width if len(group) > 1),
        )

    def transferred(self, target: Description, names: Mapping[str, str] | None = None) -> "Policy":
        """The same widths for the same architecture on another dataset, by layer name.

        The layers that give the output may have other shapes. Layers share a quantizer as they did. What the policy used of its budgets
        was counted on the network that it comes from, so it is kept as that network's, and :class:`~bitalloc.Costs` counts the new one.

        Args:
            target: of the network that the widths are for.
            names: layer of the target to layer of the policy, where they differ. With a map the policy may have layers that the target
                has not; each of the target's needs widths.

        Returns:
            A policy for the target. Its provenance has the ``method``, the target's ``not_counted``, and all of the old one under
            ``transferred_from``.

        Raises:
            PolicyError: the networks have different layers or shapes, or the map sends two layers to one; it names them.
        """
        heads = [(names or {}).get(name, name) for name in target.last]
        known = same_layers(target.layers, self.weight_shapes, heads, names)
        missing = [layer.name for layer in target.layers if layer.name not in known]
        if missing:
            raise PolicyError(f"the policy has no widths for {', '.join(missing)}: map these layers to layers of the policy too.")
        name_of = {source: layer for layer, source in known.items()}
        shared = (tuple(name_of[name] for name in group if name in name_of) for group in self.shared_inputs)
        method = {"method": self.provenance["method"]} if "method" in self.provenance else {}
        return Policy(
            bits=moved(self.bits, known),
            weight_shapes={layer.name: layer.weight_shape for layer in target.layers},
            provenance={
                **method,
                "not_counted": [entry.name for entry in target.not_counted],
                "transferred_from": dict(self.provenance),
            },
            shared_inputs=tuple(group for group in shared if len(group) > 1),
        )

    def check(self, layers: Sequence[LayerInfo]) -> None:
        """Raises PolicyError, naming the layers, unless the policy is for just these layers with these weight shapes."""
        known = by_name(layers)
        missing = [name for name in known if name not in self.bits]
        unknown = [name for name in self.bits if name not in known]
        reshaped = [
            f"{name} (policy {self.weight_shapes[name]}, model {known[name].weight_shape})"
            for name in self.bits
            if name in known and self.weight_shapes[name] != known[name].weight_shape
        ]
        complaints = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("layers without widths", missing),
                ("layers that the model does not have", unknown),
                ("layers of another weight shape", reshaped),
            )
            if names
        ]
        if complaints:
            raise PolicyError(f"the policy belongs to another model: {'; '.join(complaints)}. Search a policy for this model.")

    def _check_shared(self, group: tuple[str, ...]) -> None:
        unknown = [name for name in group if name not in self.bits]
        if unknown:
            raise PolicyError(f"layers share an input quantizer that the policy does not have: {', '.join(map(str, unknown))}.")
        if len({self.bits[name].act for name in group}) > 1:
            widths = ", ".join(f"{name} {self.bits[name]}" for name in group)
            raise PolicyError(f"layers that share an input quantizer need one activation width, and have: {widths}.")

    def as_text(self) -> dict[str, str]:
        """Layer name to widths, written like ``w4a8``."""
        return {name: str(bits) for name, bits in self.bits.items()}

    def mean_weight_bits(self) -> float:
        """Mean weight width over all layers, weighted by their number of weights, pinned layers included."""
        sizes = {name: _numel(shape) for name, shape in self.weight_shapes.items()}
        return sum(sizes[name] * bits.weight for name, bits in self.bits.items()) / sum(sizes.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "layers": {
                name: {"weight_bits": bits.weight, "act_bits": bits.act, "weight_shape": list(self.weight_shapes[name])}
                for name, bits in self.bits.items()
            },
            "shared_inputs": [list(group) for group in self.shared_inputs],
            "provenance": dict(self.provenance),
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "policy") -> "Policy":
        """The inverse of :meth:`to_json`. Raises PolicyError naming the layer that is malformed."""
        layers = value.get("layers")
        if not isinstance(layers, Mapping) or not layers:
            raise PolicyError(f"{origin}: key 'layers' is missing or empty, expected layer names with their widths.")
        bits: dict[str, Bits] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, entry in layers.items():
            try:
                bits[name] = Bits(entry["weight_bits"], entry["act_bits"])
                shapes[name] = tuple(int(size) for size in entry["weight_shape"])
            except (KeyError, TypeError, ValueError, PolicyError) as error:
                raise PolicyError(f"{origin}: layer {name!r} is malformed ({error}).") from error
        provenance = value.get("provenance", {})
        if not isinstance(provenance, Mapping):
            raise PolicyError(f"{origin}: key 'provenance' is {provenance!r}, expected a JSON object.")
        shared = value.get("shared_inputs", [])
        if not isinstance(shared, list) or not all(isinstance(group, list) for group in shared):
            raise PolicyError(f"{origin}: key 'shared_inputs' is {shared!r}, expected a list of lists of layer names.")
        return Policy(bits, shapes, dict(provenance), tuple(tuple(group) for group in shared))

    def save(self, path: AnyPath) -> None:
        """Writes the policy as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: AnyPath) -> "Policy":
        """Reads what :meth:`save` wrote. Raises FileError or PolicyError for anything else."""
        return Policy.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))

    @staticmethod
    def loads(text: str, origin: str = "policy") -> "Policy":
        """Reads a policy from JSON text; ``origin`` names the text in errors."""
        return Policy.from_json(parse_json(text, origin=origin, schema=SCHEMA, version=VERSION), origin=origin)


def _numel(shape: tuple[int, ...]) -> int:
    numel = 1
    for size in shape:
        numel *= size
    return numel
